//! Data that was found damaged is set aside, whole, and the node starts with none.
//!
//! ```text
//! damage-found            what was found while the node ran: the next start does not open the data
//! damaged.new/            being filled: store, wal and damage-found move in
//! damaged/                what is left of the last time, for people; table files of it that are sound are not fetched again
//! ```
//!
//! What a start finds it sets aside at once. What is found later (a bad block that a read, a flush or a compaction comes across)
//! ends the process, and `damage-found` tells the next one: it need not read that block to know. A file of its own, because the
//! promises may be being written at that moment by whom the end of the process overtakes.
//!
//! That the node does not count is on disk before (INV-DURABLE). It then streams from the beginning of the log, or is
//! seeded. Nothing is done to the only copy that there is: a node without others refuses to start, and one that alone has what
//! was acknowledged waits until somebody else leads. What was set aside is kept until the node counts again: if what it fetched since is
//! damaged too, that is thrown away instead, because nobody ever counted on it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use understudy_wal::files::{Files, RealFiles, read_file, replace_file};

use crate::identity::DataDirError;

const FOUND: &str = "damage-found";
/// In `damaged`: under which damage epoch it was set aside.
const EPOCH: &str = "epoch";
/// In the order in which they are moved: while the finding is there the data is not opened.
const PARTS: [&str; 3] = ["store", "wal", FOUND];

/// Where damaged data lies.
pub fn damaged_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("damaged")
}

fn filling_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("damaged.new")
}

/// Where it is written that the data is damaged.
pub fn found_file(data_dir: &Path) -> PathBuf {
    data_dir.join(FOUND)
}

/// Writes durably that the data is damaged, and what was found. Blocks on IO.
///
/// # Errors
/// What the system says: the next start opens the data, and may find the same.
pub fn record(files: &dyn Files, data_dir: &Path, what: &str) -> Result<(), DataDirError> {
    let path = found_file(data_dir);
    replace_file(files, &path, format!("{what}\n").as_bytes()).map_err(failed("write", &path))
}

/// What was found; none where nothing was. Blocks on IO.
///
/// # Errors
/// What the system says: data that may be damaged must not be opened.
pub fn found(files: &dyn Files, data_dir: &Path) -> Result<Option<String>, DataDirError> {
    let path = found_file(data_dir);
    let text = read_file(files, &path).map_err(failed("read", &path))?;
    Ok(text.map(|bytes| String::from_utf8_lossy(&bytes).trim_end().to_owned()))
}

/// The data that it was found in is given up for other data. Blocks on IO.
///
/// # Errors
/// What the system says.
pub fn forget(data_dir: &Path) -> Result<(), DataDirError> {
    let path = found_file(data_dir);
    match fs::remove_file(&path) {
        Ok(()) => sync(data_dir),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(failed("remove", &path)(source)),
    }
}

/// Moves store and log away, in place of what was moved there before; `epoch` is the damage that it is moved for. `before` is the
/// damage that the node had not got over yet: what was set aside for that one stays, and this goes. Blocks on IO; nothing of store and
/// log may be open.
///
/// # Errors
/// What the system says: the next start goes on with it.
pub fn set_aside(data_dir: &Path, before: Option<u64>, epoch: u64) -> Result<(), DataDirError> {
    if before.is_some() && aside_for(data_dir)? == before {
        return discard(data_dir, epoch);
    }
    let filling = filling_dir(data_dir);
    fs::create_dir_all(&filling).map_err(failed("make", &filling))?;
    write_epoch(&filling, epoch)?;
    sync(data_dir)?;
    finish(data_dir)
}

/// The damage that what lies in `damaged` was set aside for; none where nothing does, or what an older version moved there.
fn aside_for(data_dir: &Path) -> Result<Option<u64>, DataDirError> {
    let path = damaged_dir(data_dir).join(EPOCH);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().parse().ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("read", &path)(source)),
    }
}

fn write_epoch(dir: &Path, epoch: u64) -> Result<(), DataDirError> {
    let path = dir.join(EPOCH);
    replace_file(&RealFiles, &path, format!("{epoch}\n").as_bytes()).map_err(failed("write", &path))
}

/// Removes store and log, which were fetched for the damage that `damaged` is kept for. The epoch first: it is still that damage.
fn discard(data_dir: &Path, epoch: u64) -> Result<(), DataDirError> {
    write_epoch(&damaged_dir(data_dir), epoch)?;
    for part in PARTS {
        let path = data_dir.join(part);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Ok(()) => sync(data_dir)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(failed("remove", &path)(source)),
        }
    }
    Ok(())
}

/// Ends what was begun, before anything is opened. Does nothing where nothing was. Blocks on IO.
///
/// # Errors
/// What the system says.
pub fn finish(data_dir: &Path) -> Result<(), DataDirError> {
    let (filling, damaged) = (filling_dir(data_dir), damaged_dir(data_dir));
    if !filling.exists() {
        return Ok(());
    }
    for part in PARTS {
        let (from, to) = (data_dir.join(part), filling.join(part));
        if from.exists() && !to.exists() {
            fs::rename(&from, &to).map_err(failed("move", &from))?;
            sync(&filling)?;
            sync(data_dir)?;
        }
    }
    match fs::remove_dir_all(&damaged) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(failed("remove", &damaged)(source)),
    }
    fs::rename(&filling, &damaged).map_err(failed("move", &filling))?;
    sync(data_dir)
}

fn sync(dir: &Path) -> Result<(), DataDirError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", dir))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |source| DataDirError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_known_until_the_data_is_given_up() {
        let dir = tempfile::tempdir().expect("a directory");
        let known = || found(&RealFiles, dir.path()).expect("readable");
        assert_eq!(known(), None);
        forget(dir.path()).expect("nothing to forget");
        record(&RealFiles, dir.path(), "a bad block").expect("written");
        record(&RealFiles, dir.path(), "another one").expect("written");
        assert_eq!(known().as_deref(), Some("another one"));
        forget(dir.path()).expect("forgotten");
        assert_eq!(known(), None);
    }

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().expect("below the directory")).expect("made");
        fs::write(path, text).expect("written");
    }

    #[test]
    fn what_was_set_aside_is_kept_until_the_node_counts_again() {
        // INV-DURABLE: it may be the last copy of something, and what was fetched since never is.
        let dir = tempfile::tempdir().expect("a directory");
        let aside = || fs::read_to_string(damaged_dir(dir.path()).join("store/CURRENT")).ok();
        let damage = |text: &str, before, epoch| {
            write(&dir.path().join("store/CURRENT"), text);
            write(&dir.path().join("wal/watermark"), text);
            set_aside(dir.path(), before, epoch).expect("set aside");
            assert!(!dir.path().join("store").exists() && !dir.path().join("wal").exists());
        };
        damage("acknowledged", None, 1);
        damage("fetched, and damaged too", Some(1), 2);
        damage("fetched again", Some(2), 3);
        assert_eq!(aside().as_deref(), Some("acknowledged"));
        // It counted again, and a start that died had marked the next damage and moved nothing yet.
        damage("acknowledged later", Some(4), 5);
        assert_eq!(aside().as_deref(), Some("acknowledged later"));
        damage("later still", None, 6);
        assert_eq!(aside().as_deref(), Some("later still"));
    }

    #[test]
    fn damaged_data_is_kept_whole_whenever_the_process_dies() {
        // INV-DURABLE: it may be the last copy of something.
        for moved in 0..=PARTS.len() {
            let dir = tempfile::tempdir().expect("a directory");
            write(&dir.path().join("damaged/store/1.sst"), "of the last time");
            write(&dir.path().join("store/CURRENT"), "store");
            write(&dir.path().join("wal/watermark"), "wal");
            record(&RealFiles, dir.path(), "a bad block").expect("written");
            // What `set_aside` has done when it dies after so many moves.
            fs::create_dir(filling_dir(dir.path())).expect("made");
            for part in &PARTS[..moved] {
                fs::rename(dir.path().join(part), filling_dir(dir.path()).join(part)).expect("moved");
            }
            finish(dir.path()).expect("finished");
            let read = |path: &str| fs::read_to_string(damaged_dir(dir.path()).join(path)).ok();
            assert_eq!(read("store/CURRENT").as_deref(), Some("store"));
            assert_eq!(read("wal/watermark").as_deref(), Some("wal"));
            assert_eq!(read("store/1.sst"), None);
            assert!(!dir.path().join("store").exists() && !dir.path().join("wal").exists());
            assert_eq!(read(FOUND).as_deref(), Some("a bad block\n"), "people find why");
            assert_eq!(found(&RealFiles, dir.path()).expect("readable"), None, "what comes next is trusted");
            finish(dir.path()).expect("nothing to do");
            assert!(read("store/CURRENT").is_some());
        }
    }
}
