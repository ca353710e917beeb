//! What the two ends of a replication stream say to each other, in the vocabulary of the database.
//!
//! The machines ([`crate::sender`], [`crate::receiver`]) speak these types; only the shells turn them into
//! protobuf and back.

use bytes::Bytes;
use understudy_engine::Mark;
use understudy_types::{Incarnation, Lsn, NodeId, SegmentSize, SystemId, TimelineId};

/// The first message of a standby: who it is and where its WAL ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The cluster that its WAL belongs to.
    pub system_id: SystemId,
    /// The version of the WAL format that it reads and writes.
    pub wal_format_version: u32,
    /// Of its WAL, in bytes, as it was said: not checked yet.
    pub segment_size_bytes: u64,
    /// The standby.
    pub node: NodeId,
    /// Its process start.
    pub incarnation: Incarnation,
    /// The timeline that its WAL stands on: that of its last record, or one that it has begun exactly at its end.
    /// Zero when its WAL is empty.
    pub timeline: TimelineId,
    /// Where its WAL ends: the first byte that it wants.
    pub start_lsn: Lsn,
    /// How often its WAL was marked damaged.
    pub damage_epoch: u64,
    /// Set when the winner of an election fetches what it lacks from a sealed node.
    pub fetch: Option<FetchRange>,
}

/// What the winner of an election wants from a sealed node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchRange {
    /// The timeline that is being decided: both sides must have sealed for it.
    pub election: TimelineId,
    /// Up to here, a record boundary (S).
    pub until: Lsn,
}

/// How far a standby has come: `write >= flush >= apply`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AckPosition {
    /// Written to its files, perhaps not on disk.
    pub write: Lsn,
    /// On its disk.
    pub flush: Lsn,
    /// Visible there.
    pub apply: Lsn,
    /// The send time of the last message of the upstream that it had received, as the upstream gave it; zero for
    /// none. Unix time in microseconds on the upstream's clock.
    pub reply_time_us: i64,
}

/// A standby's acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// The timeline that the upstream named in `Started`: an acknowledgement belongs to one timeline and one
    /// connection.
    pub timeline: TimelineId,
    /// How far it has come.
    pub position: AckPosition,
    /// Whether the upstream shall answer at once.
    pub reply_requested: bool,
}

/// Standby to upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromStandby {
    /// First, and once.
    Start(Start),
    /// Any number of times after it.
    Ack(Ack),
}

/// The upstream's answer to [`Start`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// The upstream's cluster.
    pub system_id: SystemId,
    /// The upstream.
    pub node: NodeId,
    /// The upstream's present timeline.
    pub timeline: TimelineId,
    /// Its end of WAL, appended.
    pub end: Lsn,
    /// Its safe LSN.
    pub safe: Lsn,
}

/// A piece of the log: whole records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    /// Of the first byte.
    pub start: Lsn,
    /// At least one record.
    pub bytes: Bytes,
    /// The upstream's end of WAL, appended, when this was sent.
    pub end: Lsn,
    /// Its safe LSN.
    pub safe: Lsn,
    /// Unix time in microseconds on its clock.
    pub send_time_us: i64,
    /// The traced commits among the records, in their order: at most [`MARKS_PER_DATA_MAX`].
    pub marks: Vec<Mark>,
}

/// Traced commits in one piece of the log; what comes beyond is not traced on the standby.
pub const MARKS_PER_DATA_MAX: usize = 64;

/// A sign of life, and the news without data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// The upstream's end of WAL, appended.
    pub end: Lsn,
    /// Its safe LSN.
    pub safe: Lsn,
    /// Unix time in microseconds on its clock.
    pub send_time_us: i64,
    /// Whether the standby shall acknowledge at once.
    pub reply_requested: bool,
}

/// Upstream to standby.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromUpstream {
    /// First, and once.
    Started(Started),
    /// A piece of the log.
    Data(Data),
    /// A sign of life.
    Keepalive(Keepalive),
    /// The streamed timeline ends on the upstream's chain; the stream ends too. The standby begins `next` and starts
    /// anew.
    EndOfTimeline {
        /// What follows on the chain.
        next: TimelineId,
        /// Where it begins.
        switch_lsn: Lsn,
    },
    /// Everything that was asked for was sent; the stream ends.
    FetchDone,
    /// The upstream ends the stream on purpose.
    Stopping {
        /// For people.
        reason: String,
    },
}

impl FromUpstream {
    /// The kind of message, for people.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Started(_) => "Started",
            Self::Data(_) => "Data",
            Self::Keepalive(_) => "Keepalive",
            Self::EndOfTimeline { .. } => "EndOfTimeline",
            Self::FetchDone => "FetchDone",
            Self::Stopping { .. } => "Stopping",
        }
    }
}

/// The two things by which both ends know that their logs can be exchanged at all, beside the cluster's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalFormat {
    /// The version of the WAL format.
    pub version: u32,
    /// The size of every segment.
    pub segment_size: SegmentSize,
}

/// The state of a replication stream (`pg_stat_replication.state`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StreamState {
    /// Not connected, or the handshake is under way.
    Startup,
    /// The standby has not had everything yet.
    Catchup,
    /// The standby has had everything once; what it lacks now is under way.
    Streaming,
    /// The upstream ends the stream.
    Stopping,
}

impl StreamState {
    /// As it is shown to people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Catchup => "catchup",
            Self::Streaming => "streaming",
            Self::Stopping => "stopping",
        }
    }
}

impl std::fmt::Display for StreamState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}
