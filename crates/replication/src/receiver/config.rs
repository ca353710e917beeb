//! Who a walreceiver is, whom it follows, at what pace, and what it asks its shell to do.

use bytes::Bytes;
use understudy_types::{Incarnation, Lsn, NodeId, SystemId, TimelineHistory, TimelineId};

use crate::message::{FetchRange, Start, WalFormat};

/// Who the standby is, and whom it follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiverConfig {
    /// Its cluster.
    pub system_id: SystemId,
    /// Its WAL's.
    pub format: WalFormat,
    /// Itself.
    pub node: NodeId,
    /// Its process start.
    pub incarnation: Incarnation,
    /// How often its WAL was marked damaged.
    pub damage_epoch: u64,
    /// The timeline of the primary to follow. In a fetch: ignored.
    pub timeline: TimelineId,
    /// What this node has sealed; zero for nothing.
    pub sealed: TimelineId,
    /// Set for the winner of an election, which fetches from a sealed node.
    pub fetch: Option<FetchRange>,
    /// The pace.
    pub timing: ReceiverTiming,
}

/// The pace of a walreceiver, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiverTiming {
    /// `wal_receiver_timeout`: an upstream from which nothing came for so long is left. Zero for never.
    pub timeout_ms: u64,
    /// `wal_receiver_status_interval`: an acknowledgement is sent at least so often. Zero for only when something moved.
    pub status_interval_ms: u64,
    /// A connection, and the answer to `Start`, must come within this.
    pub connect_timeout_ms: u64,
    /// The pause after the first failed attempt; doubled with every further one.
    pub pause_min_ms: u64,
    /// The longest pause.
    pub pause_max_ms: u64,
}

impl Default for ReceiverTiming {
    fn default() -> Self {
        Self {
            timeout_ms: 10_000,
            status_interval_ms: 1_000,
            connect_timeout_ms: 3_000,
            pause_min_ms: 20,
            pause_max_ms: 1_000,
        }
    }
}

/// Where the standby's own log stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnLog {
    /// The timeline that it stands on: that of its last record, or one that was begun at its end.
    pub timeline: TimelineId,
    /// Its end, appended.
    pub end: Lsn,
    /// Written to files.
    pub written: Lsn,
    /// On disk.
    pub flushed: Lsn,
    /// Visible.
    pub applied: Lsn,
}

/// What the shell shall do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Open a stream with this first message; over the connection that there is, if there is one.
    Connect(Start),
    /// Drop the stream, and the connection too.
    Disconnect,
    /// Append to the own log, then tell [`super::WalReceiver::appended`] or [`super::WalReceiver::log_failed`].
    Append {
        /// The own end.
        start: Lsn,
        /// Whole records.
        bytes: Bytes,
    },
    /// Everything below is safe.
    AdvanceSafe(Lsn),
    /// Begin the latest timeline of this history at the own end, then tell [`super::WalReceiver::switched`] or
    /// [`super::WalReceiver::log_failed`].
    SwitchTimeline(TimelineHistory),
}
