//! What goes wrong between a standby and its upstream, and what to do about it.
//!
//! | family | meaning | what the caller does |
//! |---|---|---|
//! | [`Refusal`] | the upstream does not take the standby on | reject with the text; the standby tries again later, rejoins first, or is seeded |
//! | [`AckError`] | the standby acknowledged what cannot be | end the connection |
//! | [`TimedOut`] | the peer is silent | end the connection |
//! | [`Failure`] | the standby's attempt came to nothing | retry after a pause |

use understudy_types::{Lsn, NodeId, SystemId, TimelineId};

/// Why an upstream does not stream to a standby.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Two clusters never exchange WAL.
    #[error(
        "the standby's WAL belongs to cluster {standby}, this node's to cluster {upstream}: \
         the standby has the data directory of another cluster"
    )]
    SystemId {
        /// What the standby said.
        standby: SystemId,
        /// What is so here.
        upstream: SystemId,
    },
    /// The bytes would mean something else there.
    #[error(
        "the standby's WAL format is version {standby}, this node's is version {upstream}: run the same release on both"
    )]
    FormatVersion {
        /// What the standby said.
        standby: u32,
        /// What is so here.
        upstream: u32,
    },
    /// Segments could not be byte-identical.
    #[error(
        "the standby's WAL segments have {standby_bytes} bytes, this node's have {upstream_bytes}: \
         the segment size is the cluster's and fixed when it is made"
    )]
    SegmentSize {
        /// What the standby said.
        standby_bytes: u64,
        /// What is so here.
        upstream_bytes: u64,
    },
    /// A loop.
    #[error("node {node} asked itself for a stream: its upstream's address leads back to it")]
    Itself {
        /// The node.
        node: NodeId,
    },
    /// It stands on a branch that this node knows nothing of.
    #[error(
        "the standby's WAL stands on timeline {timeline}, which is not in this node's history (present timeline {latest}): \
         the standby must follow the present primary"
    )]
    UnknownTimeline {
        /// The standby's.
        timeline: TimelineId,
        /// This node's present one.
        latest: TimelineId,
    },
    /// Its WAL left the chain.
    #[error(
        "the standby's WAL on timeline {timeline} ends at {start_lsn}, beyond {fork_lsn}, where timeline {timeline} ends on \
         the way to the present timeline {latest}: it must rejoin (truncate its WAL to {fork_lsn}) first"
    )]
    PastFork {
        /// The standby's.
        timeline: TimelineId,
        /// Where its WAL ends.
        start_lsn: Lsn,
        /// Where it should have ended at most.
        fork_lsn: Lsn,
        /// This node's present one.
        latest: TimelineId,
    },
    /// It has more than there is.
    #[error(
        "the standby's WAL on timeline {timeline} ends at {start_lsn}, beyond the end of this node's WAL at {end_lsn}: \
         it holds what this node never wrote and must rejoin after the next election"
    )]
    PastEnd {
        /// The standby's.
        timeline: TimelineId,
        /// Where its WAL ends.
        start_lsn: Lsn,
        /// Where this node's ends.
        end_lsn: Lsn,
    },
    /// There is no such position.
    #[error("the standby asked for WAL from {start_lsn}, but the log begins at {log_start}")]
    BeforeLog {
        /// What was asked for.
        start_lsn: Lsn,
        /// The first position.
        log_start: Lsn,
    },
    /// It was there, and was removed: PostgreSQL's words.
    #[error(
        "requested WAL segment {segment} has already been removed: the standby's WAL ends at {start_lsn}, \
         and this node's is kept from {first} on; the standby must be seeded"
    )]
    Removed {
        /// What was asked for.
        start_lsn: Lsn,
        /// The first position that is kept here.
        first: Lsn,
        /// The file that it stood in.
        segment: String,
    },
    /// Only what cannot change any more is fetched.
    #[error(
        "a fetch for the election of timeline {election} was asked for, but this node has sealed for timeline {sealed}"
    )]
    NotSealed {
        /// What the fetching node said.
        election: TimelineId,
        /// What is so here; zero for nothing.
        sealed: TimelineId,
    },
    /// Nothing to fetch.
    #[error("a fetch up to {until} was asked for from {start_lsn} on, which lies beyond it: it must rejoin first")]
    FetchBackwards {
        /// Where the fetching node's WAL ends.
        start_lsn: Lsn,
        /// What it wants.
        until: Lsn,
    },
    /// It is not here.
    #[error(
        "a fetch up to {until} was asked for, but this node's WAL ends at {end_lsn} on the cluster's history: ask another node"
    )]
    FetchPastEnd {
        /// What was asked for.
        until: Lsn,
        /// What is here.
        end_lsn: Lsn,
    },
}

/// An acknowledgement that no honest standby on this connection sends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AckError {
    /// It belongs to another connection.
    #[error("the standby acknowledged for timeline {acknowledged} on a stream of timeline {streamed}")]
    Timeline {
        /// What it said.
        acknowledged: TimelineId,
        /// The upstream's.
        streamed: TimelineId,
    },
    /// More than it can have.
    #[error("the standby acknowledged {acknowledged}, but only what lies below {sent} was sent to it")]
    NeverSent {
        /// What it said.
        acknowledged: Lsn,
        /// What was sent.
        sent: Lsn,
    },
    /// Less than before.
    #[error("the standby acknowledged {after} after it had acknowledged {before}")]
    Backwards {
        /// First.
        before: Lsn,
        /// Then.
        after: Lsn,
    },
    /// Flushed before written, or applied before flushed.
    #[error("the standby acknowledged write {write}, flush {flush}, apply {apply}: each must be at least the next")]
    OutOfOrder {
        /// Written.
        write: Lsn,
        /// Flushed.
        flush: Lsn,
        /// Applied.
        apply: Lsn,
    },
}

/// Nothing came from the peer for too long.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("nothing came from the {peer} for {silent_ms} ms (timeout {timeout_ms} ms)")]
pub struct TimedOut {
    /// "standby" or "upstream".
    pub peer: &'static str,
    /// For so long.
    pub silent_ms: u64,
    /// So much is allowed.
    pub timeout_ms: u64,
}

/// Why a standby's stream came to nothing. All of them are tried again after a pause.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No connection, or the upstream refused; the text is its own.
    #[error("no stream from the upstream: {reason}")]
    Connect {
        /// The upstream's or the network's words.
        reason: String,
    },
    /// The stream broke.
    #[error("the upstream's stream broke: {reason}")]
    Broken {
        /// The network's words.
        reason: String,
    },
    /// The stream ended without an end message: the upstream died or the connection was cut.
    #[error("the upstream's stream ended without an end message")]
    Ended,
    /// The upstream said so.
    #[error("the upstream ended the stream: {reason}")]
    Stopping {
        /// Its words.
        reason: String,
    },
    /// The upstream is silent.
    #[error(transparent)]
    TimedOut(#[from] TimedOut),
    /// The upstream has removed what comes next, or what it has of it is damaged: only seeding helps. The text is its own.
    #[error("{reason}")]
    WalGone {
        /// The name of the file that is gone.
        segment: String,
        /// The upstream's words.
        reason: String,
    },
    /// Another cluster answered.
    #[error("the upstream belongs to cluster {upstream}, this node to cluster {standby}")]
    SystemId {
        /// This node's.
        standby: SystemId,
        /// The upstream's.
        upstream: SystemId,
    },
    /// The upstream is not who it was taken for.
    #[error("the upstream is on timeline {upstream}, but this node follows the primary of timeline {expected}")]
    Timeline {
        /// What it said.
        upstream: TimelineId,
        /// What the cluster state says.
        expected: TimelineId,
    },
    /// INV-FENCED.
    #[error("the upstream is on timeline {upstream}, but this node has sealed for timeline {sealed}")]
    Fenced {
        /// What it said.
        upstream: TimelineId,
        /// This node's seal.
        sealed: TimelineId,
    },
    /// A piece is missing, or came twice.
    #[error("the upstream sent WAL from {start}, but this node's WAL ends at {end}")]
    Gap {
        /// Of the message.
        start: Lsn,
        /// Own.
        end: Lsn,
    },
    /// The end of a timeline that does not fit.
    #[error("the upstream says that timeline {next} begins at {switch_lsn}: {why}")]
    Switch {
        /// What it said.
        next: TimelineId,
        /// What it said.
        switch_lsn: Lsn,
        /// What is so here.
        why: String,
    },
    /// A message at the wrong time.
    #[error("the upstream sent {message} {when}")]
    Unexpected {
        /// Which.
        message: &'static str,
        /// "before Started", for example.
        when: &'static str,
    },
    /// The own log did not take it: a damaged record, a sealed engine, a failed disk.
    #[error("the received WAL was not accepted: {reason}")]
    Log {
        /// The log's words.
        reason: String,
    },
}
