//! What an engine is opened with.

use std::path::{Path, PathBuf};

use understudy_types::limits::QUEUE_BYTES_MAX;
use understudy_types::{SegmentSize, SystemId};

/// Appended bytes that are kept in memory for the walsenders.
pub(crate) const RING_BYTES_MAX: usize = 16 << 20;

/// Where an engine lies and what bounds it.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// The node's data directory; the WAL lies in `wal` below it.
    pub data_dir: PathBuf,
    /// Whose data it is.
    pub system_id: SystemId,
    /// The size of the log's segments.
    pub segment_size: SegmentSize,
    /// Commits that are queued, or appended but not visible, in bytes: over it a commit is refused.
    pub queue_bytes_max: u64,
    /// Appended bytes that are kept in memory for the walsenders.
    pub ring_bytes_max: usize,
}

impl EngineConfig {
    /// The default bounds: segments of 16 MiB, 64 MiB of unconfirmed commits, 16 MiB of log in memory.
    pub fn new(data_dir: impl Into<PathBuf>, system_id: SystemId) -> Self {
        Self {
            data_dir: data_dir.into(),
            system_id,
            segment_size: SegmentSize::DEFAULT,
            queue_bytes_max: QUEUE_BYTES_MAX,
            ring_bytes_max: RING_BYTES_MAX,
        }
    }

    /// Where the log lies.
    pub fn wal_dir(&self) -> PathBuf {
        Path::new(&self.data_dir).join("wal")
    }
}
