//! Files for segments to come: zeroed ahead, so that neither a switch nor a fork waits for megabytes of zeros.
//!
//! ```text
//! removed segment --rename, sync of the directory--> 3.spare --zeros, sync--> ready --rename--> next segment, or a fork's
//!                                 nothing to use again? made anew: 4.spare --^
//! ```
//!
//! A spare's name is a number and no segment's, so nothing that looks for segments ever finds one: not recovery, not a
//! truncation, not a fork. What a spare holds is trusted only in the process that zeroed it: after a start every one
//! is zeroed again before it is used. A crash at any point leaves spares that may hold anything, or none, and that is all.
//!
//! Why zeroed, when PostgreSQL uses segments again as they are: a record's checksum covers its LSN, so stale bytes would not
//! pass here either. But zeros behind the end are what recovery tells a torn tail from an end by (it reports what it
//! cuts off), what a fresh segment's header is known by, and what leaves the files of a fork the same on every node
//! (INV-BYTES). The zeros are written in the background, into blocks that the file has already.
//!
//! One file is kept ready ([`crate::WalConfig::spare_segments`]). It is made by a thread of its own, a piece at a time with
//! a sync and a pause behind each, so that a commit's sync never waits for all of it. That it could not be made is no
//! failure of the log: whoever needs a file then makes it himself.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::directory::{COPY_BYTES, Directory, pieces};
use crate::error::WalError;

const SUFFIX: &str = ".spare";
/// Between two pieces: commits go first.
const PAUSE: Duration = Duration::from_millis(2);

/// The spares of one open log.
pub(crate) struct Spares {
    directory: Directory,
    /// How many are kept ready; zero for none.
    ready_max: usize,
    /// The log is closed: what is being zeroed is left as it is.
    stopping: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Zeros, durable.
    ready: Vec<PathBuf>,
    /// Of any content.
    raw: Vec<PathBuf>,
    next_number: u64,
    /// None could be made: not tried again before [`Spares::retry`].
    gave_up: bool,
}

impl Spares {
    /// Takes over what an earlier process left. The names of the directory are durable.
    pub(crate) fn open(directory: Directory, ready_max: usize) -> Result<Self, WalError> {
        let mut numbers = directory.numbered(SUFFIX)?;
        numbers.sort_unstable();
        let next_number = numbers.last().map_or(0, |last| last + 1);
        let raw = numbers.into_iter().map(|number| path_of(&directory, number)).collect();
        let state = Mutex::new(State { ready: Vec::new(), raw, next_number, gave_up: false });
        Ok(Self { directory, ready_max, stopping: AtomicBool::new(false), state })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is one step: a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file of zeros, durable as to its content; none when there is none ready.
    pub(crate) fn take(&self) -> Option<PathBuf> {
        self.lock().ready.pop()
    }

    /// How many are ready.
    pub(crate) fn ready(&self) -> usize {
        self.lock().ready.len()
    }

    /// How many there are, ready or not.
    pub(crate) fn count(&self) -> usize {
        let state = self.lock();
        state.ready.len() + state.raw.len()
    }

    /// Gives a file that is needed no more a spare's name. It is one for [`Self::add`] once the directory was synced: before
    /// that a crash may bring the old name back, and what stands under it must not have changed.
    pub(crate) fn rename(&self, path: &Path) -> Result<PathBuf, WalError> {
        let spare = self.new_path();
        self.directory.files.rename(path, &spare).map_err(WalError::io("rename", path))?;
        Ok(spare)
    }

    /// Adds renamed files.
    pub(crate) fn add(&self, spares: Vec<PathBuf>) {
        self.lock().raw.extend(spares);
    }

    /// Removes what is more than `count`.
    pub(crate) fn shrink_to(&self, count: usize) -> Result<(), WalError> {
        while self.count() > count {
            let Some(spare) = self.lock().raw.pop() else { break };
            self.directory.remove(&spare)?;
        }
        Ok(())
    }

    /// Whether [`Self::fill`] has something to do.
    pub(crate) fn is_short(&self) -> bool {
        let state = self.lock();
        state.ready.len() < self.ready_max && !state.gave_up && !self.stopping.load(Ordering::Relaxed)
    }

    /// After a failure, once per segment: the disk may have room again.
    pub(crate) fn retry(&self) {
        self.lock().gave_up = false;
    }

    /// What is being zeroed is left as it is.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Zeroes spares, or makes them, until enough are ready. Blocks on IO.
    pub(crate) fn fill(&self) -> Result<(), WalError> {
        while self.is_short() {
            let reused = self.lock().raw.pop();
            let is_new = reused.is_none();
            let path = reused.unwrap_or_else(|| self.new_path());
            match self.zero(&path, is_new) {
                Ok(true) => self.lock().ready.push(path),
                Ok(false) => self.lock().raw.push(path),
                Err(error) => {
                    // Half made it is of no use, and on a full disk in the way.
                    self.lock().gave_up = true;
                    self.directory.remove(&path)?;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Fills a file with zeros, durably; says whether it came to the end.
    fn zero(&self, path: &Path, is_new: bool) -> Result<bool, WalError> {
        let files = &self.directory.files;
        let file = if is_new { files.create(path) } else { files.open(path) };
        let file = file.map_err(WalError::io("open", path))?;
        let zeros = vec![0; COPY_BYTES];
        for (at, count) in pieces(0, self.directory.segment_size.get()) {
            if self.stopping.load(Ordering::Relaxed) {
                return Ok(false);
            }
            file.write_all_at(at, &zeros[..count]).map_err(WalError::io("write", path))?;
            file.sync_data().map_err(WalError::io("sync", path))?;
            std::thread::sleep(PAUSE);
        }
        Ok(true)
    }

    fn new_path(&self) -> PathBuf {
        let mut state = self.lock();
        let number = state.next_number;
        state.next_number += 1;
        path_of(&self.directory, number)
    }
}

fn path_of(directory: &Directory, number: u64) -> PathBuf {
    directory.path.join(format!("{number}{SUFFIX}"))
}

#[cfg(test)]
#[path = "spares_tests.rs"]
mod tests;
