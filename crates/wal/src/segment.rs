//! Segment files: their names and their 64-byte header.
//!
//! ```text
//! offset  bytes  what
//!      0      8  magic "USTDYWAL"
//!      8      4  format version, 1
//!     12      4  timeline
//!     16      8  system identifier
//!     24      8  segment number
//!     32      8  segment size in bytes
//!     40     20  zeros
//!     60      4  CRC32C of the 60 bytes before
//! ```
//!
//! All integers are little-endian. Nothing in it depends on the node or on the time, so that a segment of the
//! same name is the same on every node (INV-BYTES).
//!
//! In the file of a segment that a fork lies in, the header names the new timeline, although the records below
//! the switch are of the old one. On the wire and in memory the header is that of the timeline of the first
//! record in the segment: it belongs to that record's bytes, and whoever follows the old timeline needs the old one.

use understudy_types::{Lsn, SegmentNo, SegmentSize, SystemId, TimelineHistory, TimelineId};

/// At the begin of every segment, in bytes.
pub const SEGMENT_HEADER_BYTES: u64 = 64;
/// Of segments, records and the watermark file.
pub const FORMAT_VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"USTDYWAL";
const CRC_OFFSET: usize = 60;

/// What a segment says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Of the cluster.
    pub system_id: SystemId,
    /// Of the file; on the wire, of the first record.
    pub timeline: TimelineId,
    /// Which segment this is.
    pub segment: SegmentNo,
    /// Of every segment of this log.
    pub segment_size: SegmentSize,
}

/// A segment header is not the one expected here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It is none, or a damaged one.
    #[error("expected {expected}, found {found}")]
    Invalid {
        /// What should stand there.
        expected: String,
        /// What does.
        found: String,
    },
    /// It is whole, but of another log.
    #[error("the {what} is {found}, expected {expected}")]
    Mismatch {
        /// The field.
        what: &'static str,
        /// Our value.
        expected: String,
        /// The header's.
        found: String,
    },
}

impl SegmentHeader {
    /// Its 64 bytes.
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES as usize] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES as usize];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.timeline.get().to_le_bytes());
        bytes[16..24].copy_from_slice(&self.system_id.get().to_le_bytes());
        bytes[24..32].copy_from_slice(&self.segment.get().to_le_bytes());
        bytes[32..40].copy_from_slice(&self.segment_size.get().to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..CRC_OFFSET]);
        bytes[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Checks that `bytes` begin with this very header.
    ///
    /// # Errors
    /// [`HeaderError::Invalid`] when it is not a whole header, [`HeaderError::Mismatch`] when it is that of
    /// another log, format or place (WAL-3): both values are named.
    pub fn check(&self, bytes: &[u8]) -> Result<(), HeaderError> {
        let invalid = |expected: &str, found: String| HeaderError::Invalid { expected: expected.to_owned(), found };
        let Some(bytes) = bytes.get(..SEGMENT_HEADER_BYTES as usize) else {
            return Err(invalid("a segment header of 64 bytes", format!("{} bytes", bytes.len())));
        };
        if bytes.iter().all(|byte| *byte == 0) {
            return Err(invalid("a segment header", "zeros".to_owned()));
        }
        if bytes[0..8] != MAGIC {
            return Err(invalid("the magic of a segment header", format!("{:02x?}", &bytes[0..8])));
        }
        let (stored, computed) = (u32_at(bytes, CRC_OFFSET), crc32c::crc32c(&bytes[..CRC_OFFSET]));
        if stored != computed {
            return Err(invalid(&format!("segment header checksum {computed:08x}"), format!("{stored:08x}")));
        }
        let fields = [
            ("format version", u64::from(FORMAT_VERSION), u64::from(u32_at(bytes, 8))),
            ("segment size", self.segment_size.get(), u64_at(bytes, 32)),
            ("segment number", self.segment.get(), u64_at(bytes, 24)),
            ("timeline", u64::from(self.timeline.get()), u64::from(u32_at(bytes, 12))),
        ];
        let mismatch = |what, expected, found| Err(HeaderError::Mismatch { what, expected, found });
        let system_id = SystemId::new(u64_at(bytes, 16));
        if system_id != self.system_id {
            return mismatch("system identifier", self.system_id.to_string(), system_id.to_string());
        }
        match fields.into_iter().find(|(_, expected, found)| expected != found) {
            Some((what, expected, found)) => mismatch(what, expected.to_string(), found.to_string()),
            None => Ok(()),
        }
    }
}

/// The little-endian number at `offset`.
///
/// # Panics
/// Beyond the end: the caller has checked the length.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"))
}

/// The little-endian number at `offset`.
///
/// # Panics
/// Beyond the end: the caller has checked the length.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"))
}

/// The name of a segment's file: timeline, high and low part of the number, 8 hexadecimal digits each
/// (PostgreSQL's `XLogFileName`).
pub fn segment_file_name(timeline: TimelineId, segment: SegmentNo, size: SegmentSize) -> String {
    let per_high = (1_u64 << 32) / size.get();
    format!("{:08X}{:08X}{:08X}", timeline.get(), segment.get() / per_high, segment.get() % per_high)
}

/// The name of the file that holds all of `lsn`'s segment along `history`: of the last timeline that wrote into it.
pub fn segment_file_name_at(history: &TimelineHistory, lsn: Lsn, size: SegmentSize) -> String {
    let segment = size.segment_of(lsn);
    let last_byte = size.start_of(segment).advance(size.get() - 1);
    segment_file_name(history.timeline_at(last_byte).unwrap_or(TimelineId::NONE), segment, size)
}

/// What a segment's file name says; none for another file's name.
pub fn parse_segment_file_name(name: &str, size: SegmentSize) -> Option<(TimelineId, SegmentNo)> {
    if name.len() != 24 || !name.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b)) {
        return None;
    }
    let part = |at: usize| u32::from_str_radix(&name[at..at + 8], 16).ok();
    let (timeline, high, low) = (part(0)?, u64::from(part(8)?), u64::from(part(16)?));
    let per_high = (1_u64 << 32) / size.get();
    (timeline != 0 && low < per_high).then(|| (TimelineId::new(timeline), SegmentNo::new(high * per_high + low)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            system_id: SystemId::new(0x0123_4567_89ab_cdef),
            timeline: TimelineId::new(3),
            segment: SegmentNo::new(7),
            segment_size: SegmentSize::DEFAULT,
        }
    }

    #[test]
    fn the_header_is_these_bytes() {
        let mut expected = Vec::new();
        expected.extend_from_slice(b"USTDYWAL");
        expected.extend_from_slice(&[1, 0, 0, 0, 3, 0, 0, 0]);
        expected.extend_from_slice(&[0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01]);
        expected.extend_from_slice(&[7, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0]);
        expected.extend_from_slice(&[0; 20]);
        expected.extend_from_slice(&GOLDEN_CRC.to_le_bytes());
        assert_eq!(header().encode().as_slice(), expected);
    }

    /// Computed by another implementation of CRC32C.
    const GOLDEN_CRC: u32 = 0x4c4462eb;

    #[test]
    fn a_mismatch_names_both_values() {
        let ours = header();
        let theirs = SegmentHeader { system_id: SystemId::new(0xfeed), ..ours };
        let text = ours.check(&theirs.encode()).expect_err("another cluster").to_string();
        assert_eq!(text, "the system identifier is 000000000000feed, expected 0123456789abcdef");
        let theirs = SegmentHeader { segment_size: SegmentSize::MIN, ..ours };
        let text = ours.check(&theirs.encode()).expect_err("another size").to_string();
        assert_eq!(text, "the segment size is 1048576, expected 16777216");
        let mut theirs = ours.encode();
        theirs[8] = 2;
        let crc = crc32c::crc32c(&theirs[..CRC_OFFSET]);
        theirs[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
        let text = ours.check(&theirs).expect_err("another format").to_string();
        assert_eq!(text, "the format version is 2, expected 1");
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_seen() {
        let ours = header();
        for bit in 0..512 {
            let mut bytes = ours.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(ours.check(&bytes), Err(HeaderError::Invalid { .. })), "bit {bit}");
        }
    }

    #[test]
    fn names_are_postgresqls() {
        let name =
            |timeline, segment, size| segment_file_name(TimelineId::new(timeline), SegmentNo::new(segment), size);
        assert_eq!(name(1, 1, SegmentSize::DEFAULT), "000000010000000000000001");
        assert_eq!(name(1, 255, SegmentSize::DEFAULT), "0000000100000000000000FF");
        assert_eq!(name(2, 256, SegmentSize::DEFAULT), "000000020000000100000000");
        assert_eq!(name(10, 4096 * 3 + 5, SegmentSize::MIN), "0000000A0000000300000005");
        for size in [SegmentSize::MIN, SegmentSize::DEFAULT, SegmentSize::MAX] {
            for segment in [1, 3, 4, 255, 256, 4095, 4096, 1 << 20] {
                let parsed = parse_segment_file_name(&name(7, segment, size), size);
                assert_eq!(parsed, Some((TimelineId::new(7), SegmentNo::new(segment))));
            }
        }
        for name in [
            "",
            "watermark",
            "00000001.history",
            "00000001000000000000000g",
            "000000010000000000000100",
            "000000000000000000000001",
        ] {
            assert_eq!(parse_segment_file_name(name, SegmentSize::DEFAULT), None, "{name}");
        }
    }
}
