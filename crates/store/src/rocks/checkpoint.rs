//! Checkpoints: a copy of the store in a directory of its own, made of hard links while commits go on.
//!
//! What a checkpoint holds is known by construction. Everything but the last few writes is flushed while commits
//! are still applied; then, with the applier held out, the rest is flushed, the applied position on disk is compared
//! with the one in memory, and the links are made. Nothing can be applied between the comparison and the
//! links, so the checkpoint holds exactly that position and everything below it (INV-REDO). What does go on beside it
//! is what changes no answer: compactions, and deletions of what lies below the horizon.
//!
//! On another file system than the store's, RocksDB copies instead of linking.

use std::path::{Path, PathBuf};

use rocksdb::checkpoint::Checkpoint;
use understudy_types::Position;

use super::RocksStore;
use crate::api::{CheckpointFile, Store, StoreError};

/// What RocksDB calls its table files, the only ones that never change.
const TABLE_FILE_SUFFIX: &str = ".sst";

impl RocksStore {
    pub(super) fn make_checkpoint(&self, dir: &Path) -> Result<Position, StoreError> {
        if dir.symlink_metadata().is_ok() {
            return Err(StoreError::CheckpointExists { path: dir.to_path_buf() });
        }
        self.flush()?;
        let applied = self.applied_lock();
        let durable = self.flush()?;
        assert!(durable == *applied, "a flush with the applier held out makes all that is applied durable");
        let made = Checkpoint::new(&self.db).and_then(|checkpoint| checkpoint.create_checkpoint(dir));
        drop(applied);
        made.map_err(|source| {
            // The first is what RocksDB renames when it is whole.
            for left in [staging_dir(dir), dir.to_path_buf()] {
                std::fs::remove_dir_all(left).ok();
            }
            StoreError::Rocks { path: dir.to_path_buf(), action: "be made as a checkpoint", source }
        })?;
        Ok(durable)
    }
}

fn staging_dir(dir: &Path) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(".tmp");
    PathBuf::from(name)
}

/// The files of a checkpoint in `dir`, by name.
///
/// # Errors
/// When the directory cannot be read.
pub fn checkpoint_files(dir: &Path) -> Result<Vec<CheckpointFile>, StoreError> {
    let failed = |source| StoreError::List { path: dir.to_path_buf(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let metadata = entry.metadata().map_err(failed)?;
        // RocksDB names its files in ASCII, and makes no directory in a checkpoint.
        if let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) {
            let immutable = name.ends_with(TABLE_FILE_SUFFIX);
            files.push(CheckpointFile { name, size_bytes: metadata.len(), immutable });
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}
