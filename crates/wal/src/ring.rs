//! The end of the log in memory: what walsenders and the applier read, and what the writer has yet to write.
//!
//! Appended bytes are copied into blocks of the ring's own: what arrives from the network shares the memory of larger
//! receive buffers, which the ring must not keep. Only written bytes are given up, oldest first, so that whoever
//! is slower reads the files. The memory is bounded by `bytes_max` and what is not written yet, which the sequencer's
//! queue and the receiver bound.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use understudy_types::Lsn;

/// How much memory is taken at a time.
const BLOCK_BYTES: usize = 256 << 10;
/// What a chunk costs beside its bytes.
const CHUNK_OVERHEAD_BYTES: usize = 64;

/// Whole records from one append.
#[derive(Debug, Clone)]
pub(crate) struct RingChunk {
    pub start: Lsn,
    pub bytes: Bytes,
}

impl RingChunk {
    pub(crate) fn end(&self) -> Lsn {
        self.start.advance(self.bytes.len() as u64)
    }
}

#[derive(Debug)]
pub(crate) struct Ring {
    chunks: VecDeque<RingChunk>,
    block: BytesMut,
    /// Of the chunks, with their overhead.
    bytes: usize,
    bytes_max: usize,
}

impl Ring {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { chunks: VecDeque::new(), block: BytesMut::new(), bytes: 0, bytes_max }
    }

    /// Adds whole records that begin where the last ones end.
    pub(crate) fn push(&mut self, start: Lsn, bytes: &[u8]) {
        debug_assert!(self.chunks.back().is_none_or(|last| last.end() == start), "the ring has no holes");
        if self.block.capacity() < bytes.len() {
            self.block = BytesMut::with_capacity(BLOCK_BYTES.max(bytes.len()));
        }
        self.block.extend_from_slice(bytes);
        self.bytes += bytes.len() + CHUNK_OVERHEAD_BYTES;
        self.chunks.push_back(RingChunk { start, bytes: self.block.split().freeze() });
    }

    /// Gives up the oldest chunks below `written` until the bound holds.
    pub(crate) fn evict(&mut self, written: Lsn) {
        while self.bytes > self.bytes_max {
            match self.chunks.front() {
                Some(chunk) if chunk.end() <= written => {
                    self.bytes -= chunk.bytes.len() + CHUNK_OVERHEAD_BYTES;
                    self.chunks.pop_front();
                }
                Some(_) | None => return,
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        self.chunks.clear();
        self.bytes = 0;
    }

    /// In bytes, with the overhead.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The chunks from that which holds the byte at `position`; none when it is not in memory.
    pub(crate) fn from(&self, position: Lsn) -> Option<impl Iterator<Item = &RingChunk>> {
        let index = self.chunks.partition_point(|chunk| chunk.end() <= position);
        let holds = self.chunks.get(index).is_some_and(|chunk| chunk.start <= position);
        holds.then(|| self.chunks.range(index..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_up_written_bytes_only() {
        let mut ring = Ring::new(1000);
        for index in 0..10 {
            ring.push(Lsn::new(8000 + index * 200), &[0; 200]);
        }
        ring.evict(Lsn::new(8000));
        assert_eq!(ring.bytes(), 10 * 264);
        ring.evict(Lsn::new(8400));
        assert_eq!(ring.bytes(), 8 * 264);
        assert!(ring.from(Lsn::new(8399)).is_none());
        ring.evict(Lsn::new(10_000));
        assert_eq!(ring.bytes(), 3 * 264);
        let starts: Vec<u64> = ring.from(Lsn::new(9600)).expect("in memory").map(|chunk| chunk.start.get()).collect();
        assert_eq!(starts, [9600, 9800]);
        assert!(ring.from(Lsn::new(10_000)).is_none());
    }

    #[test]
    fn does_not_keep_the_memory_that_it_was_given() {
        let mut ring = Ring::new(1000);
        let large = Bytes::from(vec![7; 1 << 20]);
        let slice = large.slice(100..200);
        ring.push(Lsn::new(8000), &slice);
        drop(slice);
        assert!(large.is_unique());
    }
}
