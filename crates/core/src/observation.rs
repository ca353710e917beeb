//! What a node knows about the others, from their beats.
//!
//! Times are milliseconds on the observing node's own monotonic clock: they are never compared with
//! another node's.

use std::collections::{BTreeMap, BTreeSet};

use understudy_types::{Generation, Incarnation, Lsn, NodeId, Position, TimelineId};

/// Everything that the Raft leader's planner looks at besides the cluster state.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observations {
    /// The observer.
    pub me: NodeId,
    /// When the observer became Raft leader.
    pub leader_since_ms: u64,
    /// When the observer first had a cluster state with the present timeline and the present election, or with
    /// none: when it saw the last Promote or BeginElection, or the first state after its process start.
    pub phase_since_ms: u64,
    /// Unix time in milliseconds, now. For people only: it stands in the history, nothing is decided by it.
    pub unix_time_ms: i64,
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
    /// promotion, whichever is later, if it never did. In milliseconds. A primary hears itself: zero. "Present" is by
    /// the cluster state of `generation`.
    pub primary_heard_ms_ago: u64,
    /// It had a connection to the present primary, lost it, and cannot have a new one. False again after a promotion.
    pub primary_refused: bool,
    /// A primary's own word: a majority has confirmed it within `primary_timeout`, or it opened less than that ago
    /// ([`crate::confirm::Confirmation::is_confirmed`]). True for everybody else.
    pub confirmed: bool,
    /// The Raft leader that it knows.
    pub raft_leader: Option<NodeId>,
    /// The timeline that it was promoted to last and failed to open.
    pub failed_to_open: Option<TimelineId>,
    /// The election for which it was told to fetch and could not, at least once.
    pub could_not_fetch: Option<TimelineId>,
    /// Why it takes no part until somebody helps it; none when it does.
    pub stays_out: Option<String>,
    /// A standby: how far its stream is.
    pub stream_state: StreamState,
    /// The WAL from here on must be kept for it: it is being seeded, or was and does not stream yet. None otherwise.
    pub seeding_from: Option<Lsn>,
    /// How far its seed is; none when it is not being seeded.
    pub seed: Option<SeedProgress>,
    /// The generation of the cluster state that it has applied.
    pub generation: Generation,
    /// Whom it heard within `primary_timeout`, itself left out.
    pub hears: BTreeSet<NodeId>,
    /// The nodes that it had a connection to, lost it, and cannot have a new one, be they heard or not.
    pub lost: BTreeSet<NodeId>,
    /// For how long a lease may still run that it granted as a voter, in milliseconds; zero once none does
    /// ([`crate::lease`]). In a report with a complete seal it is no older than the seal.
    pub lease_left_ms: u64,
    /// It was started with `no_sync`: it is not put on the sync list, and taken off it if it is there. Its tag in the cluster
    /// state follows ([`crate::command::Command::Retag`]).
    pub no_sync: bool,
}

/// How far a standby's stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StreamState {
    /// No stream.
    #[default]
    Startup,
    /// Behind.
    Catchup,
    /// It had everything once since the stream began.
    Streaming,
}

/// How far a seed is. For people: nothing is decided by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SeedProgress {
    /// Who sends; none between two attempts.
    pub source: Option<NodeId>,
    /// Of the files that are wanted, in bytes; zero before it is known.
    pub bytes_total: u64,
    /// Of these, what is here: reused or received.
    pub bytes_done: u64,
    /// Of these, what was here already and was not sent.
    pub bytes_reused: u64,
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
