//! Who wants to know how long the disk takes.
//!
//! The writer tells it once per sync, from its own thread and before the flush LSN is published: whoever sees the
//! LSN finds the time. An observer must not block, and nothing of the log depends on it.

use std::time::Instant;

use understudy_types::Lsn;

/// One sync that succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flush {
    /// Everything below is durable here.
    pub end: Lsn,
    /// When `fdatasync` was called.
    pub began: Instant,
    /// When it returned.
    pub ended: Instant,
}

/// Told by the writer; see the module.
pub trait FlushObserver: Send + Sync + 'static {
    /// A group is on disk.
    fn flushed(&self, flush: Flush);
}
