//! Taking WAL away that nobody needs any more (INV-RETAIN).
//!
//! Whoever calls says below which LSN nothing is needed; here whole segments go, of every timeline: also those of
//! branches that were left, and the older file of a segment that a fork lies in. What is never taken: a segment from the
//! floor on, the segment that the log ends in, and what recovery reads from (the watermark).
//!
//! 1. The first kept LSN is raised, before any file is touched: readers look at it after each read (see `reader`).
//! 2. The files below go, the oldest first: they become spares, up to a bound, or are removed.
//! 3. The directory is synced. Only then is the content of a spare changed.
//!
//! A crash in between leaves some of the files. The log begins behind the last one that is missing, at or below the floor; what lies
//! below stays as it is until the next removal, which goes by the names and takes it.
//!
//! It runs on the caller's thread, beside the writer: it touches no file that the writer does. A truncation waits for
//! it, and it for a truncation; a fork does not.

use std::sync::PoisonError;

use understudy_types::Lsn;

use crate::error::WalError;
use crate::shared::Shared;

/// What a removal did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Removal {
    /// Segment files that are gone.
    pub removed: usize,
    /// Segment files that became spares.
    pub recycled: usize,
}

/// See [`crate::Wal::remove_before`].
pub(crate) fn remove_before(shared: &Shared, floor: Lsn, spares_max: usize) -> Result<Removal, WalError> {
    let directory = &shared.directory;
    let size = directory.segment_size;
    let gate = shared.removal.lock().unwrap_or_else(PoisonError::into_inner);
    let keep = {
        let mut state = shared.lock();
        state.check_usable()?;
        let last_byte = Lsn::new(state.flushed.get().saturating_sub(1));
        let keep = size.segment_of(floor.min(state.watermark).min(last_byte));
        state.first = state.first.max(size.start_of(keep));
        keep
    };
    let mut files = directory.segments()?;
    files.retain(|file| file.segment < keep);
    files.sort_by_key(|file| (file.segment, file.timeline));
    let mut spares = Vec::new();
    let mut removal = Removal::default();
    for file in &files {
        let path = directory.segment_path(*file);
        if shared.spares.count() + spares.len() < spares_max {
            spares.push(shared.spares.rename(&path)?);
            removal.recycled += 1;
        } else {
            directory.remove(&path)?;
            removal.removed += 1;
        }
    }
    shared.spares.shrink_to(spares_max)?;
    if !files.is_empty() {
        directory.sync()?;
        shared.spares.add(spares);
        let Removal { removed, recycled } = removal;
        tracing::info!(%floor, removed, recycled, "WAL segments removed that nobody needs any more");
    }
    drop(gate);
    Ok(removal)
}

#[cfg(test)]
#[path = "removal_tests.rs"]
mod tests;
