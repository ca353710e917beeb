//! What a node knows about the others, from their beats.
//!
//! Times are milliseconds on the observing node's own monotonic clock: they are never compared with
//! another node's.

use std::collections::BTreeMap;

use understudy_types::{Incarnation, Lsn, NodeId, Position, TimelineId};

/// Everything that the Raft leader's planner looks at besides the cluster state.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observations {
    /// The observer.
    pub me: NodeId,
    /// When the observer became Raft leader.
    pub leader_since_ms: u64,
    /// By node, the observer included. A node that was never heard is absent.
    pub nodes: BTreeMap<NodeId, Observed>,
}

/// One node, as it was last heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// When its last beat came; now for the observer itself.
    pub heard_at_ms: u64,
    /// Whether the observer's own beat stream to it stands.
    pub connected: bool,
    /// Whether the observer's last attempt to connect was refused (nobody listens there).
    pub refused: bool,
    /// What it said.
    pub report: NodeReport,
}

/// What a node says of itself with every beat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeReport {
    /// This process start.
    pub incarnation: Incarnation,
    /// What it is now.
    pub role: NodeRole,
    /// A primary: the timeline that it opened. Otherwise the timeline that it follows; zero for none.
    pub timeline: TimelineId,
    /// End of its WAL: written, and the timeline of the last record.
    pub wal_end: Position,
    /// Flushed.
    pub flush_lsn: Lsn,
    /// Applied.
    pub apply_lsn: Lsn,
    /// The safe LSN as it knows it.
    pub safe_lsn: Lsn,
    /// Present once it sealed for an election: nothing below this timeline is acknowledged any more (INV-FENCED).
    pub seal: Option<Seal>,
    /// Its WAL may lack what it once confirmed.
    pub damaged: bool,
    /// How often it was marked damaged.
    pub damage_epoch: u64,
    /// How long ago it last heard the present primary: a beat or WAL from it; since its own process start or the
    /// promotion, whichever is later, if it never did. In milliseconds. A primary hears itself: zero.
    pub primary_heard_ms_ago: u64,
    /// It had a connection to the present primary, lost it, and cannot have a new one.
    pub primary_refused: bool,
    /// A primary's own word: a majority confirms it. True for everybody else.
    pub confirmed: bool,
    /// The Raft leader that it knows.
    pub raft_leader: Option<NodeId>,
    /// The timeline that it was promoted to last and failed to open.
    pub failed_to_open: Option<TimelineId>,
    /// Why it takes no part until somebody helps it; none when it does.
    pub stays_out: Option<String>,
}

/// A role that a node has, as opposed to one that it is assigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeRole {
    /// It opened its timeline.
    Primary,
    /// Everybody else with data.
    Standby,
    /// Votes, seals and confirms; holds no data.
    Witness,
}

/// A node's seal (design, "Failover", 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seal {
    /// Nothing below this timeline is acknowledged, granted or confirmed any more. Persisted before it is said.
    pub timeline: TimelineId,
    /// Everything written before is flushed, and the walreceiver is stopped: `wal_end` stands. Before that the
    /// seal counts for nothing.
    pub complete: bool,
}

/// What the Raft leader tells the winner of an election that is behind S (design, "Failover", 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchOrder {
    /// The timeline that is being decided.
    pub election: TimelineId,
    /// Who fetches.
    pub winner: NodeId,
    /// From whom.
    pub source: NodeId,
    /// Up to here (S).
    pub until: Lsn,
}
