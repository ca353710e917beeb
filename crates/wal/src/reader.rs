//! Reading the log while it grows: walsenders, the applier, whoever catches up.
//!
//! The live end comes from memory, before it is written anywhere; what is older comes from the segment files, in
//! large pieces and checked. A slow reader costs no memory: the ring gives up what is written, and the reader turns
//! to the files. Of a file nothing beyond the written LSN is read: behind it are zeros, or bytes that are being
//! written.
//!
//! A segment may be removed, and its file used again, while it is read. The first kept LSN is raised before the file is
//! touched, and looked at again after the read: what was read below it is given to nobody.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use understudy_types::{Lsn, SegmentSize};

use crate::decoder::record_end;
use crate::error::WalError;
use crate::ring::RingChunk;
use crate::scan::Scan;
use crate::shared::Shared;

/// Whole records, with the segment headers before them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The end of the record before.
    pub start: Lsn,
    /// As they are on the wire.
    pub bytes: Bytes,
    /// The end of the last record.
    pub end: Lsn,
}

/// A place in the log that moves forward.
pub struct WalReader {
    shared: Arc<Shared>,
    scan: Scan,
    position: Lsn,
    /// Of the last truncation that was looked at.
    epoch: u64,
    from_memory: bool,
}

impl WalReader {
    pub(crate) fn new(shared: Arc<Shared>, position: Lsn) -> Self {
        let epoch = shared.lock().cuts.epoch();
        let scan = Scan::new(shared.directory.clone());
        Self { shared, scan, position, epoch, from_memory: false }
    }

    /// The end of what was read.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Whether the last chunk came from memory.
    pub fn from_memory(&self) -> bool {
        self.from_memory
    }

    /// The next whole records that end at or below `upto`: at most `bytes_max` bytes, or one record (with the segment
    /// header before it) that is larger. None when no whole record lies below `upto` and the appended end.
    ///
    /// # Errors
    /// [`WalError::Truncated`] when the log was cut below the position; [`WalError::Removed`] when the position lies
    /// below what is kept; [`WalError::Corrupt`] when a file does not hold what was written to it; [`WalError::Io`].
    pub fn read(&mut self, upto: Lsn, bytes_max: usize) -> Result<Option<Chunk>, WalError> {
        let size = self.shared.directory.segment_size;
        loop {
            let state = self.shared.lock();
            if let Some(to) = state.cuts.lowest_since(self.epoch).filter(|to| *to < self.position) {
                return Err(WalError::Truncated { position: self.position, to });
            }
            self.epoch = state.cuts.epoch();
            let limit = upto.min(state.end.lsn);
            if self.position >= limit {
                return Ok(None);
            }
            let in_memory = state.ring.from(self.position);
            let pieces = in_memory.map(|chunks| gather(size, chunks, self.position, limit, bytes_max));
            if let Some(pieces) = pieces {
                drop(state);
                self.from_memory = true;
                return Ok(self.advance(concatenate(pieces)));
            }
            let directory = &self.shared.directory;
            if self.position < state.first {
                return Err(directory.removed(&state.chain, self.position, state.first));
            }
            let (chain, limit) = (Arc::clone(&state.chain), limit.min(state.written));
            drop(state);
            let scanned = self.scan.read(&chain, self.position, limit, bytes_max);
            let state = self.shared.lock();
            if state.cuts.epoch() != self.epoch {
                // The bytes may be of both sides of the cut, and the open file may be gone.
                self.scan = Scan::new(directory.clone());
                continue;
            }
            if self.position < state.first {
                // Removed under the reader: the open file may hold another segment's bytes by now.
                return Err(directory.removed(&state.chain, self.position, state.first));
            }
            drop(state);
            self.from_memory = false;
            let bytes = scanned.map_err(crate::scan::ScanError::into_wal_error)?.map(|scanned| scanned.bytes);
            return Ok(self.advance(bytes.unwrap_or_default()));
        }
    }

    fn advance(&mut self, bytes: Bytes) -> Option<Chunk> {
        let start = self.position;
        self.position = start.advance(bytes.len() as u64);
        (!bytes.is_empty()).then_some(Chunk { start, bytes, end: self.position })
    }
}

impl std::fmt::Debug for WalReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WalReader").field("position", &self.position).field("from_memory", &self.from_memory).finish()
    }
}

/// The pieces of memory with the whole records from `position` that end at or below `limit`.
fn gather<'a>(
    size: SegmentSize,
    chunks: impl Iterator<Item = &'a RingChunk>,
    position: Lsn,
    limit: Lsn,
    bytes_max: usize,
) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    let mut total = 0;
    for chunk in chunks {
        let start = position.max(chunk.start);
        let skipped = usize::try_from(start.saturating_since(chunk.start)).expect("within a chunk");
        let rest = chunk.bytes.slice(skipped..);
        if chunk.end() <= limit && total + rest.len() <= bytes_max {
            total += rest.len();
            pieces.push(rest);
            continue;
        }
        let count = whole_records(size, start, &rest, limit, bytes_max.saturating_sub(total), pieces.is_empty());
        if count > 0 {
            pieces.push(rest.slice(..count));
        }
        break;
    }
    pieces
}

/// How many of `bytes`, which begin at `start` with a whole record, are whole records that end at or below `limit`
/// and fit into `bytes_max`; the first one need not fit if `at_least_one`.
fn whole_records(
    size: SegmentSize,
    start: Lsn,
    bytes: &[u8],
    limit: Lsn,
    bytes_max: usize,
    at_least_one: bool,
) -> usize {
    let mut taken = 0;
    while taken < bytes.len() {
        let at = start.advance(taken as u64);
        let end = record_end(size, at, &bytes[taken..]).expect("the ring holds whole records");
        let count = usize::try_from(end.saturating_since(start)).expect("within a chunk");
        let fits = count <= bytes_max || (at_least_one && taken == 0);
        if end > limit || !fits {
            break;
        }
        taken = count;
    }
    taken
}

fn concatenate(mut pieces: Vec<Bytes>) -> Bytes {
    if pieces.len() <= 1 {
        return pieces.pop().unwrap_or_default();
    }
    let mut bytes = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    pieces.iter().for_each(|piece| bytes.extend_from_slice(piece));
    bytes.freeze()
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
