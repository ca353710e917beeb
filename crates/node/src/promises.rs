//! What a node has promised for good: the seal, that its WAL is damaged, and how long a lease it may grant.
//!
//! All are on disk before anybody is told (INV-FENCED, INV-DURABLE, INV-LINEAR): a seal that was reported binds the node
//! after any crash, a node that was marked damaged stays so until Raft has recorded that it is off the sync list, and a new
//! process holds itself bound by what the one before may have granted.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use understudy_types::TimelineId;
use understudy_wal::files::{Files, read_file, replace_file};

use crate::identity::DataDirError;

/// What the `promises` file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Promises {
    /// Nothing below this timeline is acknowledged, granted or confirmed any more. Zero: no promise yet.
    pub sealed: TimelineId,
    /// The WAL may lack what it once confirmed.
    pub damaged: bool,
    /// How often it was marked damaged.
    pub damage_epoch: u64,
    /// The node has a log: one that is not there is lost, not new.
    #[serde(default)]
    pub has_log: bool,
    /// The longest lease that it may grant, in milliseconds; zero: none.
    #[serde(default)]
    pub lease_ms: u64,
}

/// The `promises` file.
pub struct PromiseFile {
    files: Arc<dyn Files>,
    path: PathBuf,
    promises: Promises,
}

impl PromiseFile {
    /// Reads the promises of the data directory `dir`. Where there is no file none were made, and it is written: before the
    /// directory `has_data`, without which nothing is promised. After that a missing file is a lost one.
    ///
    /// # Errors
    /// When the file cannot be read or is lost. A node that does not know its promises must not run.
    pub fn open(files: Arc<dyn Files>, dir: &std::path::Path, has_data: bool) -> Result<Self, DataDirError> {
        let path = dir.join("promises");
        let io = |source| DataDirError::Io { action: "read", path: path.clone(), source };
        let promises = match read_file(&*files, &path).map_err(io)? {
            Some(bytes) => serde_json::from_slice(&bytes)
                .map_err(|source| DataDirError::MalformedPromises { path: path.clone(), source })?,
            None if has_data => return Err(DataDirError::PromisesLost { path: dir.to_owned() }),
            None => {
                let file = Self { files, path, promises: Promises::default() };
                file.write(Promises::default())?;
                return Ok(file);
            }
        };
        Ok(Self { files, path, promises })
    }

    /// As they stand on disk.
    pub fn get(&self) -> Promises {
        self.promises
    }

    fn replace(&mut self, promises: Promises) -> Result<(), DataDirError> {
        if promises != self.promises {
            self.write(promises)?;
            self.promises = promises;
        }
        Ok(())
    }

    fn write(&self, promises: Promises) -> Result<(), DataDirError> {
        let text = serde_json::to_vec_pretty(&promises).expect("promises are plain data");
        let failed = |source| DataDirError::Io { action: "write", path: self.path.clone(), source };
        replace_file(&*self.files, &self.path, &text).map_err(failed)
    }

    /// Promises nothing below `timeline`. An earlier, higher promise stands.
    ///
    /// # Errors
    /// When it cannot be made durable: the promise is not made.
    pub fn seal(&mut self, timeline: TimelineId) -> Result<(), DataDirError> {
        self.replace(Promises { sealed: timeline.max(self.promises.sealed), ..self.promises })
    }

    /// Marks the WAL damaged, once more if it was already.
    ///
    /// # Errors
    /// When it cannot be made durable.
    pub fn mark_damaged(&mut self) -> Result<(), DataDirError> {
        let damage_epoch = self.promises.damage_epoch + 1;
        self.replace(Promises { damaged: true, damage_epoch, ..self.promises })
    }

    /// Leases of at most `lease_ms` may be granted from now on.
    ///
    /// # Errors
    /// When it cannot be made durable.
    pub fn allow_lease(&mut self, lease_ms: u64) -> Result<(), DataDirError> {
        self.replace(Promises { lease_ms, ..self.promises })
    }

    /// The log was made.
    ///
    /// # Errors
    /// When it cannot be made durable.
    pub fn log_made(&mut self) -> Result<(), DataDirError> {
        self.replace(Promises { has_log: true, ..self.promises })
    }

    /// The damage of epoch `epoch` was recorded in Raft: the node counts again from its next acknowledgement on.
    ///
    /// # Errors
    /// When it cannot be made durable.
    pub fn clear_damage(&mut self, epoch: u64) -> Result<(), DataDirError> {
        if self.promises.damage_epoch != epoch {
            return Ok(());
        }
        self.replace(Promises { damaged: false, ..self.promises })
    }
}

#[cfg(test)]
mod tests {
    use understudy_wal::files::RealFiles;

    use super::*;

    #[test]
    fn promises_survive_and_never_weaken() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = || PromiseFile::open(Arc::new(RealFiles), dir.path(), false).expect("readable");
        let mut file = open();
        assert_eq!(file.get(), Promises::default());
        file.seal(TimelineId::new(3)).expect("written");
        file.seal(TimelineId::new(2)).expect("written");
        file.mark_damaged().expect("written");
        file.mark_damaged().expect("written");
        file.allow_lease(900).expect("written");
        let expected =
            Promises { sealed: TimelineId::new(3), damaged: true, damage_epoch: 2, has_log: false, lease_ms: 900 };
        assert_eq!(open().get(), expected);
        let mut file = open();
        file.clear_damage(1).expect("written");
        assert!(file.get().damaged, "an older damage does not clear a newer one");
        file.clear_damage(2).expect("written");
        assert_eq!(open().get(), Promises { damaged: false, ..expected });
    }

    #[test]
    fn unreadable_promises_are_an_error_not_none() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("promises"), "{").expect("written");
        assert!(PromiseFile::open(Arc::new(RealFiles), dir.path(), false).is_err());
    }

    #[test]
    fn a_node_that_lost_its_promises_does_not_run() {
        // INV-FENCED: it may have sealed.
        let dir = tempfile::tempdir().expect("a directory");
        let open = |has_data| PromiseFile::open(Arc::new(RealFiles), dir.path(), has_data).map(|file| file.get());
        let Err(error) = open(true) else { panic!("nobody knows what it has promised") };
        assert!(error.to_string().contains("start with an empty data directory"), "{error}");
        assert_eq!(open(false).expect("a new directory"), Promises::default());
        assert_eq!(open(true).expect("it is there from then on"), Promises::default());
    }
}
