//! Reading records back: from the wire, from memory or from a segment. Pure.
//!
//! What arrives is trusted in nothing: every length is checked against what is there, every CRC against the record's
//! own LSN and the timeline that the chain has at that place, every segment header against the one that belongs
//! there. A record that begins below a switch and ends beyond it is not on the chain, whatever its CRC says.

use std::sync::Arc;

use bytes::Bytes;
use understudy_types::{Lsn, SegmentSize, SystemId, TimelineHistory, TimelineId};

use crate::chain::Chain;
use crate::record::{Kind, RECORD_HEADER_BYTES, Record, RecordHeader};
use crate::segment::{HeaderError, SEGMENT_HEADER_BYTES, SegmentHeader, u32_at};

/// A record and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedRecord {
    /// Of its header; behind the segment header at the begin of a segment.
    pub start: Lsn,
    /// End-exclusive: the LSN that the record is known by.
    pub end: Lsn,
    /// It was written on this one.
    pub timeline: TimelineId,
    /// When it was appended, in microseconds since 1970, by the primary's clock.
    pub time_us: i64,
    /// What it says. Keys and values share the memory of the bytes that were decoded.
    pub record: Record,
}

/// Bytes are not the records that the chain has at this place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end within a record: all are fine so far, more are needed.
    #[error("the bytes at {lsn} end within a record: it needs at least {needed} bytes, there are {available}")]
    Incomplete {
        /// Where the record, or the segment header before it, begins.
        lsn: Lsn,
        /// Bytes from there, at least.
        needed: u64,
        /// Bytes from there.
        available: u64,
    },
    /// What stands there is not the segment header that belongs there.
    #[error("segment header at {lsn}: {source}")]
    SegmentHeader {
        /// Where.
        lsn: Lsn,
        /// What is wrong.
        source: HeaderError,
    },
    /// What stands there is not a record.
    #[error("record at {lsn}: expected {expected}, found {found}")]
    Bad {
        /// Where it begins.
        lsn: Lsn,
        /// What should stand there.
        expected: String,
        /// What does.
        found: String,
    },
}

/// Checks and decodes the records of one chain.
#[derive(Debug, Clone)]
pub struct Decoder {
    system_id: SystemId,
    segment_size: SegmentSize,
    chain: Arc<Chain>,
}

/// The place of a record, checked but not decoded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unit {
    pub start: Lsn,
    pub end: Lsn,
    pub timeline: TimelineId,
    pub header: RecordHeader,
}

impl Decoder {
    /// For a log of this cluster along `history`.
    pub fn new(system_id: SystemId, segment_size: SegmentSize, history: &TimelineHistory) -> Self {
        Self::of_chain(system_id, segment_size, Arc::new(Chain::new(history.clone())))
    }

    pub(crate) fn of_chain(system_id: SystemId, segment_size: SegmentSize, chain: Arc<Chain>) -> Self {
        Self { system_id, segment_size, chain }
    }

    /// The records in `bytes`, which begin at `start`: the end of a record or the begin of the log. The
    /// iterator ends behind the last record or with the first error.
    pub fn decode<'a>(&'a self, start: Lsn, bytes: &'a Bytes) -> Records<'a> {
        Records { decoder: self, bytes, start, at: start, failed: false }
    }

    /// Checks the record that follows `at`, with the segment header before it; `bytes` begin at `at`.
    pub(crate) fn check(&self, at: Lsn, bytes: &[u8]) -> Result<Unit, DecodeError> {
        let available = bytes.len() as u64;
        let incomplete = |needed| DecodeError::Incomplete { lsn: at, needed, available };
        let start = record_start(self.segment_size, at);
        let lead = start.saturating_since(at);
        if available < lead + RECORD_HEADER_BYTES {
            return Err(incomplete(lead + RECORD_HEADER_BYTES));
        }
        let bad = |expected: String, found: String| DecodeError::Bad { lsn: start, expected, found };
        let Some(span) = self.chain.span_at(start) else {
            return Err(bad("a timeline that begins at or before it".to_owned(), "none in the history".to_owned()));
        };
        let (head, rest) = bytes.split_at(usize::try_from(lead).expect("64 at most"));
        if !head.is_empty() {
            self.header_at(at).check(head).map_err(|source| DecodeError::SegmentHeader { lsn: at, source })?;
        }
        let room = self.segment_size.get() - self.segment_size.offset_of(start);
        let header = RecordHeader::parse(rest, room).map_err(|(expected, found)| bad(expected, found))?;
        let total = u64::from(header.total);
        let end = start.advance(total);
        if let Some(switch) = span.end.filter(|switch| *switch < end) {
            return Err(bad(
                format!("a record that ends at or before the switch at {switch}"),
                format!("one that ends at {end}"),
            ));
        }
        if available < lead + total {
            return Err(incomplete(lead + total));
        }
        let record = &rest[..usize::try_from(total).expect("as long as bytes that are there")];
        let computed = RecordHeader::checksum(header.kind, record, start, span.timeline);
        if computed != header.crc {
            let expected = format!("checksum {computed:08x} for timeline {}", span.timeline);
            return Err(bad(expected, format!("{:08x}", header.crc)));
        }
        check_filler(&header, record, room).map_err(|(expected, found)| bad(expected, found))?;
        Ok(Unit { start, end, timeline: span.timeline, header })
    }

    /// The header on the wire of the segment that begins at `at`: of the timeline of its first record.
    pub(crate) fn header_at(&self, at: Lsn) -> SegmentHeader {
        SegmentHeader {
            system_id: self.system_id,
            timeline: self.chain.span_at(at).map_or(TimelineId::NONE, |span| span.timeline),
            segment: self.segment_size.segment_of(at),
            segment_size: self.segment_size,
        }
    }
}

/// A filler reaches to the end of its segment and is zeros: its CRC does not cover them, so they are looked at.
fn check_filler(header: &RecordHeader, record: &[u8], room: u64) -> Result<(), (String, String)> {
    if header.kind != Kind::Filler {
        return Ok(());
    }
    if u64::from(header.total) != room {
        return Err((format!("a filler of {room} bytes"), format!("one of {}", header.total)));
    }
    match record[RECORD_HEADER_BYTES as usize..].iter().position(|byte| *byte != 0) {
        Some(offset) => Err(("zeros in a filler".to_owned(), format!("another byte at offset {}", offset + 24))),
        None => Ok(()),
    }
}

/// Where the record that follows `at` begins: behind the header at the begin of a segment.
pub(crate) fn record_start(segment_size: SegmentSize, at: Lsn) -> Lsn {
    if segment_size.offset_of(at) == 0 { at.advance(SEGMENT_HEADER_BYTES) } else { at }
}

/// Where the record that follows `at` ends, by its length alone; none when `bytes`, which begin at `at`, do not
/// hold all of it.
pub(crate) fn record_end(segment_size: SegmentSize, at: Lsn, bytes: &[u8]) -> Option<Lsn> {
    let start = record_start(segment_size, at);
    let lead = usize::try_from(start.saturating_since(at)).ok()?;
    let length = bytes.get(lead..lead + 4).map(|length| u32_at(length, 0))?;
    let whole = u64::from(length) >= RECORD_HEADER_BYTES && lead as u64 + u64::from(length) <= bytes.len() as u64;
    whole.then(|| start.advance(u64::from(length)))
}

/// See [`Decoder::decode`].
#[derive(Debug)]
pub struct Records<'a> {
    decoder: &'a Decoder,
    bytes: &'a Bytes,
    start: Lsn,
    at: Lsn,
    failed: bool,
}

impl Records<'_> {
    /// The end of the last record that was returned.
    pub fn position(&self) -> Lsn {
        self.at
    }

    fn offset_of(&self, lsn: Lsn) -> usize {
        usize::try_from(lsn.saturating_since(self.start)).expect("within bytes that are there")
    }

    fn step(&mut self) -> Result<DecodedRecord, DecodeError> {
        let unit = self.decoder.check(self.at, &self.bytes[self.offset_of(self.at)..])?;
        let Unit { start, end, timeline, header } = unit;
        let begin = self.offset_of(start) + RECORD_HEADER_BYTES as usize;
        let body = self.bytes.slice(begin..self.offset_of(end) - usize::from(header.padding));
        let record = Record::decode(header.kind, body).map_err(|found| DecodeError::Bad {
            lsn: start,
            expected: "a well-formed body".to_owned(),
            found: found.to_owned(),
        })?;
        self.at = end;
        Ok(DecodedRecord { start, end, timeline, time_us: header.time_us, record })
    }
}

impl Iterator for Records<'_> {
    type Item = Result<DecodedRecord, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.offset_of(self.at) == self.bytes.len() {
            return None;
        }
        let step = self.step();
        self.failed = step.is_err();
        Some(step)
    }
}

#[cfg(test)]
#[path = "decoder_tests.rs"]
mod tests;
