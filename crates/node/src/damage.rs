//! Data that was found damaged is set aside, whole, and the node starts with none.
//!
//! ```text
//! damaged.new/            being filled: store, then wal, moves in
//! damaged/                what is left of the last time, for people; table files of it that are sound are not fetched again
//! ```
//!
//! That the node does not count is on disk before (INV-DURABLE). It then streams from the beginning of the log, or is
//! seeded. Nothing is done to the only copy that there is: a node without others refuses to start.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::identity::DataDirError;

const PARTS: [&str; 2] = ["store", "wal"];

/// Where damaged data lies.
pub fn damaged_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("damaged")
}

fn filling_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("damaged.new")
}

/// Moves store and log away, in place of what was moved there before. Blocks on IO; nothing of them may be open.
///
/// # Errors
/// What the system says: the next start goes on with it.
pub fn set_aside(data_dir: &Path) -> Result<(), DataDirError> {
    let filling = filling_dir(data_dir);
    fs::create_dir_all(&filling).map_err(failed("make", &filling))?;
    sync(data_dir)?;
    finish(data_dir)
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

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().expect("below the directory")).expect("made");
        fs::write(path, text).expect("written");
    }

    #[test]
    fn damaged_data_is_kept_whole_whenever_the_process_dies() {
        // INV-DURABLE: it may be the last copy of something.
        for moved in 0..=2 {
            let dir = tempfile::tempdir().expect("a directory");
            write(&dir.path().join("damaged/store/1.sst"), "of the last time");
            write(&dir.path().join("store/CURRENT"), "store");
            write(&dir.path().join("wal/watermark"), "wal");
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
            finish(dir.path()).expect("nothing to do");
            assert!(read("store/CURRENT").is_some());
        }
    }
}
