//! The new data takes the place of the old.
//!
//! ```text
//! seed/new/store, seed/new/wal   laid out and synced by the attempt
//! seed/complete                  from here on the new data counts: whatever stands in store/ and wal/ is the old
//! ```
//!
//! | step | what | known to be due by |
//! |---|---|---|
//! | 1 | `wal/diverged` moves into the new log, where people look for it | both are there |
//! | 2 | `store` moves to `seed/old/store` | `seed/new/store` and `store` are there |
//! | 3 | `seed/new/store` moves to `store` | `store` is not there |
//! | 4, 5 | the same for `wal` | the same |
//! | 6 | `seed/complete` becomes `seed/swapped` | nothing new is left to move |
//! | 7 | all of `seed` goes | `seed/swapped` or `seed/old` is there, and no mark |
//!
//! Each step is one rename or removal and is durable before the next one begins; which one is due is read from the
//! directory alone. So the swap may be broken off anywhere and is completed by the next start, before anything is
//! opened. Before the mark nothing of the old data has been touched; the old data goes last.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use understudy_types::Position;
use understudy_wal::files::{RealFiles, replace_file};

use super::error::SeedError;
use super::objects::sync_dir;

/// What a seed works in, below the data directory.
pub const SEED_DIR: &str = "seed";
const MARK: &str = "complete";
const SWAPPED: &str = "swapped";
const PARTS: [&str; 2] = ["store", "wal"];

/// What is due next.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Move { from: PathBuf, to: PathBuf },
    RemoveDir(PathBuf),
}

/// From here on the new data in `seed/new` counts. The store of the data directory must be closed, or the process must
/// end, before [`complete`] follows. Blocks on IO.
///
/// # Errors
/// What the system says: the old data counts.
pub fn mark_complete(data_dir: &Path, at: Position) -> Result<(), SeedError> {
    let path = data_dir.join(SEED_DIR).join(MARK);
    replace_file(&RealFiles, &path, format!("{at}\n").as_bytes()).map_err(SeedError::io("write", &path))
}

/// Whether a swap was begun and not ended.
pub fn is_due(data_dir: &Path) -> bool {
    data_dir.join(SEED_DIR).join(MARK).exists()
}

/// Where the new store lies before the swap.
pub fn new_store(data_dir: &Path) -> PathBuf {
    data_dir.join(SEED_DIR).join("new").join("store")
}

/// Ends a swap that was begun. Does nothing where there is none. Blocks on IO; nothing of the data directory's store and
/// log may be open.
///
/// # Errors
/// What the system says: it is called again.
pub fn complete(data_dir: &Path) -> Result<(), SeedError> {
    while let Some(step) = next_step(data_dir) {
        perform(&step)?;
    }
    Ok(())
}

fn next_step(data_dir: &Path) -> Option<Step> {
    let seed = data_dir.join(SEED_DIR);
    let (new, old, mark) = (seed.join("new"), seed.join("old"), seed.join(MARK));
    if mark.exists() {
        let (diverged, kept) = (data_dir.join("wal").join("diverged"), new.join("wal").join("diverged"));
        if new.join("wal").exists() && diverged.exists() && !kept.exists() {
            return Some(Step::Move { from: diverged, to: kept });
        }
        for part in PARTS {
            let (live, new, old) = (data_dir.join(part), new.join(part), old.join(part));
            match (new.exists(), live.exists()) {
                (true, true) => return Some(Step::Move { from: live, to: old }),
                (true, false) => return Some(Step::Move { from: new, to: live }),
                (false, _) => {}
            }
        }
        return Some(Step::Move { from: mark, to: seed.join(SWAPPED) });
    }
    // Objects of an interrupted seed are worth keeping, unless a swap has used them.
    if old.exists() || seed.join(SWAPPED).exists() {
        return Some(Step::RemoveDir(seed));
    }
    new.exists().then_some(Step::RemoveDir(new))
}

fn perform(step: &Step) -> Result<(), SeedError> {
    let parent = |path: &Path| path.parent().unwrap_or(Path::new(".")).to_owned();
    match step {
        Step::Move { from, to } => {
            let (left, entered) = (parent(from), parent(to));
            fs::create_dir_all(&entered).map_err(SeedError::io("make", &entered))?;
            sync_dir(&parent(&entered))?;
            fs::rename(from, to).map_err(SeedError::io("move", from))?;
            // The new place first: a name that stands twice after a crash is better than one that stands nowhere.
            sync_dir(&entered)?;
            sync_dir(&left)
        }
        Step::RemoveDir(path) => {
            match fs::remove_dir_all(path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(SeedError::io("remove", path)(source)),
            }
            sync_dir(&parent(path))
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use understudy_types::{Lsn, TimelineId};

    use super::*;

    const AT: Position = Position::new(TimelineId::FIRST, Lsn::new(0x100_0040));

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A node with data, and a seed that has come completely.
    fn seeded(with_old: bool) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        if with_old {
            write(&dir.path().join("store/CURRENT"), "old");
            write(&dir.path().join("wal/watermark"), "old");
            write(&dir.path().join("wal/diverged/1"), "kept for people");
        }
        write(&dir.path().join("identity"), "me");
        write(&dir.path().join("seed/objects/1"), "object");
        write(&dir.path().join("seed/new/store/CURRENT"), "new");
        write(&dir.path().join("seed/new/wal/watermark"), "new");
        dir
    }

    fn read(dir: &TempDir, path: &str) -> Option<String> {
        fs::read_to_string(dir.path().join(path)).ok()
    }

    fn assert_swapped(dir: &TempDir, with_old: bool) {
        assert_eq!(read(dir, "store/CURRENT").as_deref(), Some("new"));
        assert_eq!(read(dir, "wal/watermark").as_deref(), Some("new"));
        assert_eq!(read(dir, "wal/diverged/1").as_deref(), with_old.then_some("kept for people"));
        assert_eq!(read(dir, "identity").as_deref(), Some("me"));
        assert!(!dir.path().join("seed").exists());
        assert!(!is_due(dir.path()));
        assert_eq!(next_step(dir.path()), None);
    }

    #[test]
    fn a_swap_that_is_broken_off_after_any_step_is_completed() {
        // INV-REDO: store and log are always both old or both new when the node opens them.
        for with_old in [true, false] {
            let mut steps = 0;
            loop {
                let dir = seeded(with_old);
                mark_complete(dir.path(), AT).unwrap();
                let mut done = 0;
                while done < steps
                    && let Some(step) = next_step(dir.path())
                {
                    perform(&step).unwrap();
                    done += 1;
                }
                complete(dir.path()).unwrap();
                assert_swapped(&dir, with_old);
                complete(dir.path()).unwrap();
                assert_swapped(&dir, with_old);
                if done < steps {
                    break;
                }
                steps += 1;
            }
            assert!(steps >= if with_old { 8 } else { 4 }, "{steps} steps");
        }
    }

    #[test]
    fn a_removal_that_is_broken_off_in_the_middle_is_completed() {
        let dir = seeded(true);
        mark_complete(dir.path(), AT).unwrap();
        while is_due(dir.path()) {
            perform(&next_step(dir.path()).unwrap()).unwrap();
        }
        fs::remove_dir_all(dir.path().join("seed/objects")).unwrap();
        fs::remove_dir_all(dir.path().join("seed/old/wal")).unwrap();
        complete(dir.path()).unwrap();
        assert_swapped(&dir, true);
    }

    #[test]
    fn without_the_mark_the_old_data_stays_and_what_has_come_is_kept() {
        let dir = seeded(true);
        complete(dir.path()).unwrap();
        assert_eq!(read(&dir, "store/CURRENT").as_deref(), Some("old"));
        assert_eq!(read(&dir, "wal/watermark").as_deref(), Some("old"));
        assert_eq!(read(&dir, "seed/objects/1").as_deref(), Some("object"));
        assert!(!dir.path().join("seed/new").exists(), "it may be torn");
    }
}
