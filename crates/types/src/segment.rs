//! Segments: the fixed-size files that the log is cut into.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Lsn;

/// The size of every segment of a log, in bytes: a power of two from 1 MiB to 1 GiB, fixed when the
/// cluster is made (PostgreSQL's `wal_segment_size`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct SegmentSize(u64);

/// A number is not a segment size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes is not a WAL segment size: expected a power of two from 1048576 (1 MiB) to 1073741824 (1 GiB)")]
pub struct SegmentSizeError {
    /// What was given.
    pub bytes: u64,
}

impl SegmentSize {
    /// 16 MiB.
    pub const DEFAULT: SegmentSize = SegmentSize(16 << 20);
    /// 1 MiB.
    pub const MIN: SegmentSize = SegmentSize(1 << 20);
    /// 1 GiB.
    pub const MAX: SegmentSize = SegmentSize(1 << 30);

    /// A segment of `bytes`.
    ///
    /// # Errors
    /// When it is not a power of two, or out of bounds.
    pub fn new(bytes: u64) -> Result<Self, SegmentSizeError> {
        let allowed = bytes.is_power_of_two() && (Self::MIN.0..=Self::MAX.0).contains(&bytes);
        allowed.then_some(Self(bytes)).ok_or(SegmentSizeError { bytes })
    }

    /// In bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The segment that the byte at `lsn` stands in.
    pub fn segment_of(self, lsn: Lsn) -> SegmentNo {
        SegmentNo(lsn.get() / self.0)
    }

    /// The offset of `lsn` in its segment, in bytes.
    pub fn offset_of(self, lsn: Lsn) -> u64 {
        lsn.get() % self.0
    }

    /// Where segment `no` begins.
    pub fn start_of(self, no: SegmentNo) -> Lsn {
        Lsn::new(no.0.checked_mul(self.0).expect("a segment begins within 64 bits"))
    }

    /// Where a log with this segment size begins: segment 1, because LSN 0 is invalid.
    pub fn log_start(self) -> Lsn {
        self.start_of(SegmentNo::FIRST)
    }
}

impl Default for SegmentSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl TryFrom<u64> for SegmentSize {
    type Error = SegmentSizeError;

    fn try_from(bytes: u64) -> Result<Self, Self::Error> {
        Self::new(bytes)
    }
}

impl From<SegmentSize> for u64 {
    fn from(size: SegmentSize) -> u64 {
        size.0
    }
}

impl fmt::Display for SegmentSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0 >> 20)
    }
}

/// The number of a segment: the position of its first byte divided by the segment size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SegmentNo(u64);

impl SegmentNo {
    /// The first segment of every log.
    pub const FIRST: SegmentNo = SegmentNo(1);

    /// Segment `number`.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The one after this.
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("a segment number stays within 64 bits"))
    }
}

impl fmt::Display for SegmentNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_powers_of_two_within_bounds_are_sizes() {
        for bytes in [0, 1, 1 << 19, (1 << 20) + 1, 3 << 20, 1 << 31, u64::MAX] {
            assert_eq!(SegmentSize::new(bytes), Err(SegmentSizeError { bytes }));
        }
        for shift in 20..=30 {
            assert_eq!(SegmentSize::new(1 << shift).map(SegmentSize::get), Ok(1 << shift));
        }
    }

    #[test]
    fn a_boundary_belongs_to_the_later_segment() {
        let size = SegmentSize::DEFAULT;
        assert_eq!(size.log_start(), Lsn::new(16 << 20));
        assert_eq!(size.segment_of(Lsn::new((32 << 20) - 1)), SegmentNo::new(1));
        assert_eq!(size.segment_of(Lsn::new(32 << 20)), SegmentNo::new(2));
        assert_eq!(size.offset_of(Lsn::new((32 << 20) + 7)), 7);
    }
}
