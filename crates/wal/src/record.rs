//! Records: what the log is made of.
//!
//! ```text
//! offset  bytes  what
//!      0      4  total length in bytes: this header, the body and the padding; a multiple of 8
//!      4      4  CRC32C, see below
//!      8      1  kind: 1 commit, 2 end of recovery, 3 filler, 4 no-op, 5 GC horizon
//!      9      1  flags, zero
//!     10      1  padding: how many of the last bytes are padding, at most 23
//!     11      5  zeros
//!     16      8  commit time, microseconds since 1970, signed
//!     24         body, then padding of zeros
//! ```
//!
//! The CRC covers bytes 0 to 3, bytes 8 to the end, the LSN of the record's first byte (8 bytes) and its
//! timeline (4 bytes), in this order, so stale bytes of another place or branch never pass. Of a filler it
//! covers the header alone, but its body must be zeros.
//!
//! Bodies (all integers little-endian):
//!
//! ```text
//! commit            4  how many operations
//!                   1  1 if a request id follows, else 0
//!                   3  zeros
//!               0, 16  request id
//!                      operations, each:
//!                      1  1 put, 2 delete
//!                      4  length of the key
//!                      4  length of the value (put only)
//!                         key, value
//! end of recovery   4  the timeline before
//! filler               zeros to the end of the segment
//! no-op                nothing
//! GC horizon        8  versions that a newer one shadows at or below this LSN may go, and nothing is read below it
//!                   8  request ids of commits that end below this LSN are forgotten
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};
use understudy_types::{Lsn, RequestId, TimelineId};

use crate::segment::{u32_at, u64_at};

/// Of a record's header.
pub const RECORD_HEADER_BYTES: u64 = 24;
/// The most padding that a record can have: 7 to a multiple of 8, and 16 that no record would fit into.
pub(crate) const PADDING_BYTES_MAX: u64 = 23;

const OP_PUT: u8 = 1;
const OP_DELETE: u8 = 2;
/// A delete of an empty key: kind and key length.
const OP_BYTES_MIN: usize = 5;
const COMMIT_HEAD_BYTES: usize = 8;
const GC_HORIZON_BYTES: usize = 16;

/// One write of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// The key has this value from now on.
    Put {
        /// Which key.
        key: Bytes,
        /// May be empty.
        value: Bytes,
    },
    /// The key has no value from now on.
    Delete {
        /// Which key.
        key: Bytes,
    },
}

impl Op {
    /// The key that is written.
    pub fn key(&self) -> &Bytes {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }

    fn encoded_bytes(&self) -> u64 {
        match self {
            Op::Put { key, value } => 9 + key.len() as u64 + value.len() as u64,
            Op::Delete { key } => 5 + key.len() as u64,
        }
    }
}

/// The write set of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommitRecord {
    /// What makes it take effect once; none when the client gave none.
    pub request_id: Option<RequestId>,
    /// In the order given.
    pub ops: Vec<Op>,
}

impl CommitRecord {
    /// The length of its body, to be compared with [`crate::max_commit_bytes`].
    pub fn encoded_bytes(&self) -> u64 {
        let request_id = if self.request_id.is_some() { 16 } else { 0 };
        COMMIT_HEAD_BYTES as u64 + request_id + self.ops.iter().map(Op::encoded_bytes).sum::<u64>()
    }
}

/// How much of the past is kept. Every node that has applied it answers no read below `versions_below`, whether it
/// has dropped versions or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GcHorizon {
    /// The oldest LSN that can be read at: of the versions at or below it only the newest of each key is kept. Invalid
    /// for everything.
    pub versions_below: Lsn,
    /// Request ids of commits that end below it are not known any more. Invalid for none.
    pub requests_below: Lsn,
}

impl GcHorizon {
    /// The higher one of both, in each part: a horizon never goes back.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            versions_below: self.versions_below.max(other.versions_below),
            requests_below: self.requests_below.max(other.requests_below),
        }
    }
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A transaction.
    Commit(CommitRecord),
    /// The first record of a timeline: a promotion took place.
    EndOfRecovery {
        /// The timeline of the record before.
        previous: TimelineId,
    },
    /// Closes a segment whose rest is too small for the next record. Made by the appender alone.
    Filler,
    /// Nothing; it only makes the log longer.
    Noop,
    /// History below it is given up.
    GcHorizon(GcHorizon),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Commit = 1,
    EndOfRecovery = 2,
    Filler = 3,
    Noop = 4,
    GcHorizon = 5,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] = [Self::Commit, Self::EndOfRecovery, Self::Filler, Self::Noop, Self::GcHorizon];

    fn parse(kind: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|known| *known as u8 == kind)
    }
}

impl Record {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Record::Commit(_) => Kind::Commit,
            Record::EndOfRecovery { .. } => Kind::EndOfRecovery,
            Record::Filler => Kind::Filler,
            Record::Noop => Kind::Noop,
            Record::GcHorizon(_) => Kind::GcHorizon,
        }
    }

    /// Of the body, without padding; a filler's is as long as the segment asks for.
    pub(crate) fn body_bytes(&self) -> u64 {
        match self {
            Record::Commit(commit) => commit.encoded_bytes(),
            Record::EndOfRecovery { .. } => 4,
            Record::Filler | Record::Noop => 0,
            Record::GcHorizon(_) => GC_HORIZON_BYTES as u64,
        }
    }

    pub(crate) fn encode_body(&self, out: &mut BytesMut) {
        match self {
            Record::Commit(commit) => encode_commit(commit, out),
            Record::EndOfRecovery { previous } => out.put_u32_le(previous.get()),
            Record::Filler | Record::Noop => {}
            Record::GcHorizon(horizon) => {
                out.put_u64_le(horizon.versions_below.get());
                out.put_u64_le(horizon.requests_below.get());
            }
        }
    }

    /// The record with this body; what is wrong with it when it has none.
    pub(crate) fn decode(kind: Kind, body: Bytes) -> Result<Record, &'static str> {
        match kind {
            Kind::Commit => decode_commit(body).map(Record::Commit),
            Kind::EndOfRecovery if body.len() == 4 => {
                Ok(Record::EndOfRecovery { previous: TimelineId::new(u32_at(&body, 0)) })
            }
            Kind::EndOfRecovery => Err("an end-of-recovery record whose body is not 4 bytes long"),
            Kind::Filler => Ok(Record::Filler),
            Kind::Noop if body.is_empty() => Ok(Record::Noop),
            Kind::Noop => Err("a no-op record with a body"),
            Kind::GcHorizon if body.len() == GC_HORIZON_BYTES => Ok(Record::GcHorizon(GcHorizon {
                versions_below: Lsn::new(u64_at(&body, 0)),
                requests_below: Lsn::new(u64_at(&body, 8)),
            })),
            Kind::GcHorizon => Err("a GC horizon record whose body is not 16 bytes long"),
        }
    }
}

fn encode_commit(commit: &CommitRecord, out: &mut BytesMut) {
    let length = |bytes: &Bytes| u32::try_from(bytes.len()).expect("shorter than a segment");
    out.put_u32_le(u32::try_from(commit.ops.len()).expect("fewer operations than bytes in a segment"));
    out.put_u8(u8::from(commit.request_id.is_some()));
    out.put_bytes(0, 3);
    if let Some(request_id) = &commit.request_id {
        out.put_slice(request_id.as_bytes());
    }
    for op in &commit.ops {
        match op {
            Op::Put { key, value } => {
                out.put_u8(OP_PUT);
                out.put_u32_le(length(key));
                out.put_u32_le(length(value));
                out.put_slice(key);
                out.put_slice(value);
            }
            Op::Delete { key } => {
                out.put_u8(OP_DELETE);
                out.put_u32_le(length(key));
                out.put_slice(key);
            }
        }
    }
}

/// Every length is compared with what is there before anything is allocated.
fn decode_commit(mut body: Bytes) -> Result<CommitRecord, &'static str> {
    if body.len() < COMMIT_HEAD_BYTES {
        return Err("a commit record shorter than its head");
    }
    let count = body.get_u32_le() as usize;
    let has_request_id = body.get_u8();
    if has_request_id > 1 || body.split_to(3).iter().any(|byte| *byte != 0) {
        return Err("a commit record with unknown flags");
    }
    let request_id = if has_request_id == 1 {
        if body.len() < 16 {
            return Err("a commit record that ends in its request id");
        }
        Some(RequestId::new(body.split_to(16).as_ref().try_into().expect("16 bytes")))
    } else {
        None
    };
    if count > body.len() / OP_BYTES_MIN {
        return Err("a commit record that says it has more operations than it has room for");
    }
    let mut ops = Vec::with_capacity(count);
    for _ in 0..count {
        ops.push(decode_op(&mut body)?);
    }
    if !body.is_empty() {
        return Err("a commit record with bytes behind its last operation");
    }
    Ok(CommitRecord { request_id, ops })
}

fn decode_op(body: &mut Bytes) -> Result<Op, &'static str> {
    const CUT: &str = "a commit record that ends in an operation";
    let length = |body: &mut Bytes| if body.len() < 4 { Err(CUT) } else { Ok(body.get_u32_le() as usize) };
    let take = |body: &mut Bytes, count: usize| if body.len() < count { Err(CUT) } else { Ok(body.split_to(count)) };
    if body.is_empty() {
        return Err(CUT);
    }
    match body.get_u8() {
        OP_PUT => {
            let (key_bytes, value_bytes) = (length(body)?, length(body)?);
            let key = take(body, key_bytes)?;
            Ok(Op::Put { key, value: take(body, value_bytes)? })
        }
        OP_DELETE => {
            let key_bytes = length(body)?;
            Ok(Op::Delete { key: take(body, key_bytes)? })
        }
        _ => Err("a commit record with an unknown kind of operation"),
    }
}

/// The first 24 bytes of a record, checked for what can be checked without its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    /// With header and padding.
    pub total: u32,
    pub crc: u32,
    pub kind: Kind,
    pub padding: u8,
    pub time_us: i64,
}

impl RecordHeader {
    pub(crate) fn encode(&self) -> [u8; RECORD_HEADER_BYTES as usize] {
        let mut bytes = [0; RECORD_HEADER_BYTES as usize];
        bytes[0..4].copy_from_slice(&self.total.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.crc.to_le_bytes());
        bytes[8] = self.kind as u8;
        bytes[10] = self.padding;
        bytes[16..24].copy_from_slice(&self.time_us.to_le_bytes());
        bytes
    }

    /// `bytes` are at least 24, `room` is what the segment has left for the record. What is expected and what
    /// is found instead, when this is no header.
    pub(crate) fn parse(bytes: &[u8], room: u64) -> Result<Self, (String, String)> {
        let (total, padding) = (u32_at(bytes, 0), bytes[10]);
        if bytes[..RECORD_HEADER_BYTES as usize].iter().all(|byte| *byte == 0) {
            return Err(("a record".to_owned(), "zeros".to_owned()));
        }
        let length = u64::from(total);
        if length < RECORD_HEADER_BYTES || length % 8 != 0 || length > room {
            let expected = format!("a length from {RECORD_HEADER_BYTES} to {room} that is a multiple of 8");
            return Err((expected, total.to_string()));
        }
        let Some(kind) = Kind::parse(bytes[8]) else {
            return Err(("a record of kind 1 to 5".to_owned(), format!("kind {}", bytes[8])));
        };
        if bytes[9] != 0 || bytes[11..16].iter().any(|byte| *byte != 0) {
            return Err(("zeros in the reserved fields".to_owned(), format!("{:02x?}", &bytes[8..16])));
        }
        if u64::from(padding) > PADDING_BYTES_MAX.min(length - RECORD_HEADER_BYTES) {
            return Err(("at most 23 bytes of padding, within the record".to_owned(), padding.to_string()));
        }
        let time_us = i64::from_le_bytes(u64_at(bytes, 16).to_le_bytes());
        Ok(Self { total, crc: u32_at(bytes, 4), kind, padding, time_us })
    }

    /// The CRC of `record`, which is this header and all that follows it up to `total`.
    pub(crate) fn checksum(kind: Kind, record: &[u8], start: Lsn, timeline: TimelineId) -> u32 {
        let covered = match kind {
            Kind::Filler => &record[8..RECORD_HEADER_BYTES as usize],
            Kind::Commit | Kind::EndOfRecovery | Kind::Noop | Kind::GcHorizon => &record[8..],
        };
        let crc = crc32c::crc32c(&record[0..4]);
        let crc = crc32c::crc32c_append(crc, covered);
        let crc = crc32c::crc32c_append(crc, &start.get().to_le_bytes());
        crc32c::crc32c_append(crc, &timeline.get().to_le_bytes())
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
