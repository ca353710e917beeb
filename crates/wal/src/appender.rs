//! Laying records out: which byte of the log each of them gets. Pure; the sequencer runs it.
//!
//! A record never spans segments. What is left of a segment when the next record does not fit is closed with a
//! filler; where a record would leave less than a record header (8 or 16 bytes), its padding takes them. So every
//! segment but the last is full of records, and a reader needs no rule but "the next record begins where this one ends,
//! or behind the header of the next segment".

use bytes::{BufMut, BytesMut};
use understudy_types::{Lsn, SegmentSize, SystemId, TimelineId};

use crate::record::{RECORD_HEADER_BYTES, Record, RecordHeader};
use crate::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};

/// A record that no segment can hold. Nothing was laid out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a record of {bytes} bytes does not fit into a WAL segment, which takes at most {bytes_max}: split the commit")]
pub struct RecordTooLarge {
    /// Of the record's body.
    pub bytes: u64,
    /// See [`max_commit_bytes`].
    pub bytes_max: u64,
}

/// The longest body of a record: [`crate::CommitRecord::encoded_bytes`] is at most this.
pub fn max_commit_bytes(segment_size: SegmentSize) -> u64 {
    segment_size.get() - SEGMENT_HEADER_BYTES - RECORD_HEADER_BYTES
}

/// Gives records their places at the end of a log.
#[derive(Debug, Clone)]
pub struct Appender {
    system_id: SystemId,
    segment_size: SegmentSize,
    timeline: TimelineId,
    next: Lsn,
}

impl Appender {
    /// For a log that ends at `next`, the end of a record or the begin of the log; new records are of `timeline`.
    ///
    /// # Panics
    /// When `next` is not a place where a record can end.
    pub fn new(system_id: SystemId, segment_size: SegmentSize, timeline: TimelineId, next: Lsn) -> Self {
        assert!(timeline != TimelineId::NONE, "records need a timeline");
        assert!(next >= segment_size.log_start() && next.get().is_multiple_of(8), "no record ends at {next}");
        let offset = segment_size.offset_of(next);
        assert!(offset == 0 || offset >= SEGMENT_HEADER_BYTES + RECORD_HEADER_BYTES, "no record ends at {next}");
        Self { system_id, segment_size, timeline, next }
    }

    /// Where the log ends, and the bytes of the next [`Appender::append`] begin.
    pub fn next(&self) -> Lsn {
        self.next
    }

    /// Appends the bytes of `record` to `out`, with the filler and the segment header that they may need before
    /// them; says where the record ends.
    ///
    /// # Errors
    /// When no segment can hold the record; nothing has changed then.
    pub fn append(&mut self, out: &mut BytesMut, record: &Record, time_us: i64) -> Result<Lsn, RecordTooLarge> {
        let (bytes, bytes_max) = (record.body_bytes(), max_commit_bytes(self.segment_size));
        if bytes > bytes_max {
            return Err(RecordTooLarge { bytes, bytes_max });
        }
        let needed = (RECORD_HEADER_BYTES + bytes).next_multiple_of(8);
        if self.segment_size.offset_of(self.next) == 0 {
            self.put_segment_header(out);
        } else if needed > self.room() {
            self.put_record(out, &Record::Filler, self.room(), time_us);
            self.put_segment_header(out);
        }
        let left = self.room() - needed;
        let total = if left < RECORD_HEADER_BYTES { needed + left } else { needed };
        self.put_record(out, record, total, time_us);
        Ok(self.next)
    }

    /// From `next` to the end of its segment.
    fn room(&self) -> u64 {
        self.segment_size.get() - self.segment_size.offset_of(self.next)
    }

    fn put_segment_header(&mut self, out: &mut BytesMut) {
        let segment = self.segment_size.segment_of(self.next);
        let header = SegmentHeader {
            system_id: self.system_id,
            timeline: self.timeline,
            segment,
            segment_size: self.segment_size,
        };
        out.put_slice(&header.encode());
        self.next = self.next.advance(SEGMENT_HEADER_BYTES);
    }

    fn put_record(&mut self, out: &mut BytesMut, record: &Record, total: u64, time_us: i64) {
        let kind = record.kind();
        let padding = match record {
            Record::Filler => 0,
            Record::Commit(_) | Record::EndOfRecovery { .. } | Record::Noop | Record::GcHorizon(_) => {
                total - RECORD_HEADER_BYTES - record.body_bytes()
            }
        };
        let mut header = RecordHeader {
            total: u32::try_from(total).expect("a segment is at most 1 GiB"),
            crc: 0,
            kind,
            padding: u8::try_from(padding).expect("at most 23 bytes of padding"),
            time_us,
        };
        let begin = out.len();
        let end = begin + usize::try_from(total).expect("a segment fits into memory");
        out.reserve(end - begin);
        out.put_slice(&header.encode());
        record.encode_body(out);
        out.resize(end, 0);
        header.crc = RecordHeader::checksum(kind, &out[begin..], self.next, self.timeline);
        out[begin + 4..begin + 8].copy_from_slice(&header.crc.to_le_bytes());
        self.next = self.next.advance(total);
    }
}
