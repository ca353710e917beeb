//! The one place that maps errors to gRPC status, and back.
//!
//! Who uses it: the service shells of the node build an [`RpcError`] and return it as a `tonic::Status`; the
//! client reads it back. A program goes by the [`Reason`], which is stable, never by the message, which is for
//! people and says what was asked, what is so and what to do. The reason and its metadata travel as a
//! `google.rpc.ErrorInfo` of domain [`DOMAIN`] in the status details.
//!
//! | reason | gRPC code | metadata | was anything done? |
//! |---|---|---|---|
//! | `NOT_PRIMARY` | `FAILED_PRECONDITION` | `primary`, `primary_address` | no |
//! | `NO_PRIMARY` | `UNAVAILABLE` | | no |
//! | `NOT_READY` | `UNAVAILABLE` | | no |
//! | `NOT_CONFIRMED` | `UNAVAILABLE` | | no |
//! | `PRECONDITION_FAILED` | `ABORTED` | `key`, `required`, `found` | no |
//! | `COMMIT_OUTCOME_UNKNOWN` | `DEADLINE_EXCEEDED` or `UNAVAILABLE` | `why`, `timeline`, `lsn` | perhaps |
//! | `QUEUE_FULL` | `RESOURCE_EXHAUSTED` | `limit_bytes` | no |
//! | `LIMIT_EXCEEDED` | `INVALID_ARGUMENT` | `limit` | no |
//! | `INVALID_ARGUMENT` | `INVALID_ARGUMENT` | | no |
//! | `WRONG_CLUSTER`, `WRONG_NODE` | `FAILED_PRECONDITION` | `expected`, `found` | no |
//! | `POSITION_ABANDONED` | `FAILED_PRECONDITION` | `timeline`, `lsn`, `end_lsn` | no |
//! | `POSITION_NOT_REACHED` | `UNAVAILABLE` | `timeline`, `lsn`, `visible_timeline`, `visible_lsn` | no |
//! | `POSITION_TOO_OLD` | `OUT_OF_RANGE` | `timeline`, `lsn`, `horizon_lsn` | no |
//! | `TOO_STALE` | `UNAVAILABLE` | `staleness_ms`, `fresher`, `fresher_address` | no |
//! | `TOO_MANY_READS` | `RESOURCE_EXHAUSTED` | `limit` | no |
//! | `NODE_BUSY` | `RESOURCE_EXHAUSTED` | `limit` | no |
//! | `NOT_LEADER` | `FAILED_PRECONDITION` | `leader`, `leader_address` | no |
//! | `WAL_REMOVED` | `FAILED_PRECONDITION` | `segment`, `asked`, `first` | no |
//! | `WAL_DAMAGED` | `FAILED_PRECONDITION` | `segment`, `asked` | no |
//! | `INTERNAL` | `INTERNAL` | | perhaps |

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use understudy_types::shown::cut;
use understudy_types::{Lsn, Position, TimelineId};

use crate::convert::escape;
use crate::v1;

/// Of every `ErrorInfo` that Understudy sends.
pub const DOMAIN: &str = "understudy";

/// How much of a key goes into an error, in characters: status details travel in HTTP/2 headers.
const KEY_CHARS_MAX: usize = 256;
/// Of a message, in characters. What a message repeats is cut where it is made; this is for what was overlooked, and for
/// what other libraries say.
const MESSAGE_CHARS_MAX: usize = 1_000;
/// Of each fact, in characters.
const FACT_CHARS_MAX: usize = 512;

/// Why a request was not carried out, in a word that does not change between versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// Another node is the primary.
    NotPrimary,
    /// No node is the primary at present: one is being elected, or cannot be.
    NoPrimary,
    /// The node is starting, stopping, or out of the cluster.
    NotReady,
    /// No majority confirmed that the primary still is one: it may not answer.
    NotConfirmed,
    /// A precondition of a commit does not hold: nothing was written.
    PreconditionFailed,
    /// The commit may or may not take effect: the request id tells later.
    CommitOutcomeUnknown,
    /// More waits to be committed than the primary holds.
    QueueFull,
    /// A key, a value, a commit or a message is too large.
    LimitExceeded,
    /// The request makes no sense.
    InvalidArgument,
    /// The request is meant for another cluster.
    WrongCluster,
    /// The request is meant for another node, or an earlier life of this one.
    WrongNode,
    /// A token or a position lies on a branch of the log that a failover left.
    PositionAbandoned,
    /// The node did not show a token's or a given position before the deadline.
    PositionNotReached,
    /// The history is not kept back to the given position any more.
    PositionTooOld,
    /// The node's data is older than the request allows.
    TooStale,
    /// More reads wait, or more scans are under way, than the node takes.
    TooManyReads,
    /// The node has as many connections, requests or bytes of requests as it takes.
    NodeBusy,
    /// Another node leads the control plane.
    NotLeader,
    /// A standby needs WAL that its upstream has removed: it is seeded.
    WalRemoved,
    /// A standby needs WAL that is damaged on its upstream: it is seeded.
    WalDamaged,
    /// Something that should not happen did.
    Internal,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Reason; 21] = [
        Self::NotPrimary,
        Self::NoPrimary,
        Self::NotReady,
        Self::NotConfirmed,
        Self::PreconditionFailed,
        Self::CommitOutcomeUnknown,
        Self::QueueFull,
        Self::LimitExceeded,
        Self::InvalidArgument,
        Self::WrongCluster,
        Self::WrongNode,
        Self::PositionAbandoned,
        Self::PositionNotReached,
        Self::PositionTooOld,
        Self::TooStale,
        Self::TooManyReads,
        Self::NodeBusy,
        Self::NotLeader,
        Self::WalRemoved,
        Self::WalDamaged,
        Self::Internal,
    ];

    /// As it stands on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotPrimary => "NOT_PRIMARY",
            Self::NoPrimary => "NO_PRIMARY",
            Self::NotReady => "NOT_READY",
            Self::NotConfirmed => "NOT_CONFIRMED",
            Self::PreconditionFailed => "PRECONDITION_FAILED",
            Self::CommitOutcomeUnknown => "COMMIT_OUTCOME_UNKNOWN",
            Self::QueueFull => "QUEUE_FULL",
            Self::LimitExceeded => "LIMIT_EXCEEDED",
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::WrongCluster => "WRONG_CLUSTER",
            Self::WrongNode => "WRONG_NODE",
            Self::PositionAbandoned => "POSITION_ABANDONED",
            Self::PositionNotReached => "POSITION_NOT_REACHED",
            Self::PositionTooOld => "POSITION_TOO_OLD",
            Self::TooStale => "TOO_STALE",
            Self::TooManyReads => "TOO_MANY_READS",
            Self::NodeBusy => "NODE_BUSY",
            Self::NotLeader => "NOT_LEADER",
            Self::WalRemoved => "WAL_REMOVED",
            Self::WalDamaged => "WAL_DAMAGED",
            Self::Internal => "INTERNAL",
        }
    }

    /// The reason of this name; none for a name of a later version.
    pub fn from_name(name: &str) -> Option<Reason> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }

    /// Whether the same request, sent again later or elsewhere, may succeed. A commit may be sent again only
    /// with the same request id.
    pub const fn is_retryable(self) -> bool {
        match self {
            Self::NotPrimary
            | Self::NoPrimary
            | Self::NotReady
            | Self::NotConfirmed
            | Self::CommitOutcomeUnknown
            | Self::QueueFull
            | Self::PositionNotReached
            | Self::TooStale
            | Self::TooManyReads
            | Self::NodeBusy
            | Self::NotLeader
            | Self::Internal => true,
            Self::PositionAbandoned
            | Self::PositionTooOld
            | Self::PreconditionFailed
            | Self::LimitExceeded
            | Self::InvalidArgument
            | Self::WrongCluster
            | Self::WrongNode
            | Self::WalRemoved
            | Self::WalDamaged => false,
        }
    }

    /// Whether the refused request may have taken effect all the same, or may still.
    pub const fn may_have_taken_effect(self) -> bool {
        match self {
            Self::CommitOutcomeUnknown | Self::Internal => true,
            Self::NotPrimary
            | Self::NoPrimary
            | Self::NotReady
            | Self::NotConfirmed
            | Self::PreconditionFailed
            | Self::QueueFull
            | Self::LimitExceeded
            | Self::InvalidArgument
            | Self::WrongCluster
            | Self::WrongNode
            | Self::PositionAbandoned
            | Self::PositionNotReached
            | Self::PositionTooOld
            | Self::TooStale
            | Self::TooManyReads
            | Self::NodeBusy
            | Self::NotLeader
            | Self::WalRemoved
            | Self::WalDamaged => false,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why the outcome of a commit is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnknownWhy {
    /// The sync standbys had not confirmed it at the deadline of the request.
    Deadline,
    /// The primary was deposed, or gave way to an election.
    StepDown,
    /// The primary is stopping.
    Stopping,
    /// An administrator ended the wait.
    Cancelled,
}

impl UnknownWhy {
    /// As it stands in the metadata.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deadline => "deadline",
            Self::StepDown => "step_down",
            Self::Stopping => "stopping",
            Self::Cancelled => "cancelled",
        }
    }
}

/// An error as a service answers it and a client reads it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RpcError {
    /// For programs.
    pub reason: Reason,
    /// For people.
    pub message: String,
    /// For programs: see the module's table.
    pub metadata: BTreeMap<String, String>,
}

impl RpcError {
    /// An error without metadata. `message` says what was asked, what is so and what to do.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), metadata: BTreeMap::new() }
    }

    /// This error with one more fact for programs.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl fmt::Display) -> Self {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    /// One fact of the metadata; none when it was not said.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// `asked` (a commit, a linearizable read) needs the primary, and that is another node.
    pub fn not_primary(asked: &str, primary: &str, primary_address: &str) -> Self {
        let message = format!(
            "{asked} needs the primary, and this node is not it: {primary} at {primary_address} is; \
             send the request there"
        );
        Self::new(Reason::NotPrimary, message).with("primary", primary).with("primary_address", primary_address)
    }

    /// `asked` needs the primary, and there is none. `why` says what is going on.
    pub fn no_primary(asked: &str, why: &str) -> Self {
        let message =
            format!("{asked} needs the primary, and there is none now: {why}; try again, with the same request id");
        Self::new(Reason::NoPrimary, message)
    }

    /// This node cannot answer `asked` yet, or any more.
    pub fn not_ready(asked: &str, why: &str) -> Self {
        Self::new(
            Reason::NotReady,
            format!("{asked} cannot be answered by this node: {why}; try again, or ask another node"),
        )
    }

    /// `asked` rests on this node being the primary, and no majority confirmed it in time.
    pub fn not_confirmed(asked: &str, why: &str) -> Self {
        let message = format!(
            "{asked} needs a majority's word that this node is still the primary, and that did not come: \
             {why}; try again"
        );
        Self::new(Reason::NotConfirmed, message)
    }

    /// A commit required something of `key` that is not so. `required` and `found` are short: `no value`,
    /// `version 0/010000A0@1`.
    pub fn precondition_failed(key: &[u8], required: &str, found: &str) -> Self {
        let key = escape(key, KEY_CHARS_MAX);
        let message = format!(
            "the commit requires of key \"{key}\": {required}; found: {found}; nothing was written; \
             read the key again and decide anew"
        );
        Self::new(Reason::PreconditionFailed, message).with("key", key).with("required", required).with("found", found)
    }

    /// The commit stands in the primary's log at `position`, and whether it stays there is not known.
    pub fn commit_outcome_unknown(position: Option<Position>, why: UnknownWhy) -> Self {
        let so = match why {
            UnknownWhy::Deadline => "the sync standbys had not confirmed it at its deadline",
            UnknownWhy::StepDown => "this node gave way to an election before it was confirmed",
            UnknownWhy::Stopping => "this node stops before it was confirmed",
            UnknownWhy::Cancelled => "an administrator ended the wait before it was confirmed",
        };
        let place = position.map_or_else(String::new, |position| format!(" at {position}"));
        let message = format!(
            "the outcome of the commit{place} is unknown: {so}; send it again with the same request id to learn it"
        );
        let error = Self::new(Reason::CommitOutcomeUnknown, message).with("why", why.as_str());
        match position {
            Some(position) => error.with("timeline", position.timeline.get()).with("lsn", position.lsn.get()),
            None => error,
        }
    }

    /// The sequencer's queue holds `limit_bytes` already.
    pub fn queue_full(limit_bytes: usize) -> Self {
        let message = format!(
            "the commit cannot be queued: {limit_bytes} bytes of commits wait already, \
             the most that the primary holds; try again after a pause"
        );
        Self::new(Reason::QueueFull, message).with("limit_bytes", limit_bytes)
    }

    /// `what` has `found` of something (`bytes`, `operations`) and may have `limit`.
    pub fn limit_exceeded(what: &str, found: usize, limit: usize, unit: &str) -> Self {
        let message = format!("{what} has {found} {unit}, the limit is {limit}; split it, or store less");
        Self::new(Reason::LimitExceeded, message).with("limit", limit)
    }

    /// The request makes no sense; `message` says what, and what would.
    pub fn invalid_argument(message: impl Into<String>) -> Self {
        Self::new(Reason::InvalidArgument, message)
    }

    /// The request is meant for cluster `expected`, and this one is `found`.
    pub fn wrong_cluster(expected: impl fmt::Display, found: impl fmt::Display) -> Self {
        let message = format!(
            "the request is meant for the cluster with system id {expected}, and this node \
             belongs to {found}; check the addresses"
        );
        Self::new(Reason::WrongCluster, message).with("expected", expected).with("found", found)
    }

    /// The request is meant for node `expected`, and this one is `found`.
    pub fn wrong_node(expected: impl fmt::Display, found: impl fmt::Display) -> Self {
        let message = format!(
            "the request is meant for node {expected}, and this is node {found}; check the addresses, \
             and whether a data directory was replaced"
        );
        Self::new(Reason::WrongNode, message).with("expected", expected).with("found", found)
    }

    /// `asked` needs the Raft leader; `leader` is it, as far as this node knows.
    pub fn not_leader(asked: &str, leader: Option<(&str, &str)>) -> Self {
        match leader {
            Some((name, address)) => {
                let message = format!(
                    "{asked} needs the Raft leader, and this node is not it: {name} at {address} is; ask there"
                );
                Self::new(Reason::NotLeader, message).with("leader", name).with("leader_address", address)
            }
            None => {
                let message = format!("{asked} needs the Raft leader, and this node knows of none now; try again");
                Self::new(Reason::NotLeader, message)
            }
        }
    }

    /// A standby asked for WAL from `asked`, which stood in `segment`; here it begins at `first`. `message` begins with
    /// PostgreSQL's words.
    pub fn wal_removed(message: impl Into<String>, segment: &str, asked: Lsn, first: Lsn) -> Self {
        Self::new(Reason::WalRemoved, message)
            .with("segment", segment)
            .with("asked", asked.get())
            .with("first", first.get())
    }

    /// A standby asked for WAL from `asked`, and `segment` of it is damaged here: `message` says where and how.
    pub fn wal_damaged(message: impl Into<String>, segment: &str, asked: Lsn) -> Self {
        Self::new(Reason::WalDamaged, message).with("segment", segment).with("asked", asked.get())
    }

    /// `asked` needs what was written up to `position`, and a failover left that branch at `end`; none: the timeline was
    /// never opened. `present` is the timeline that came instead.
    pub fn position_abandoned(asked: &str, position: Position, end: Option<Lsn>, present: TimelineId) -> Self {
        let so = match end {
            Some(end) => format!("timeline {} ended at {end}, and timeline {present} is present", position.timeline),
            None => format!("timeline {} was never opened, and timeline {present} is present", position.timeline),
        };
        let message = format!(
            "{asked} needs what was written up to {position}, but {so}: that was lost in a failover before the sync standbys had it; ask for the outcome of a commit by its request id, and start a new session"
        );
        let error = Self::new(Reason::PositionAbandoned, message).at(position);
        match end {
            Some(end) => error.with("end_lsn", end.get()),
            None => error,
        }
    }

    /// `asked` needs what was written up to `position`, and this node did not show it before the deadline: `why`.
    pub fn position_not_reached(asked: &str, position: Position, visible: Position, why: &str) -> Self {
        let message = format!(
            "{asked} needs what was written up to {position}, and this node shows what was written up to {visible} at the deadline of the request: {why}; give it more time, or ask another node"
        );
        Self::new(Reason::PositionNotReached, message)
            .at(position)
            .with("visible_timeline", visible.timeline.get())
            .with("visible_lsn", visible.lsn.get())
    }

    /// `asked` is to be answered as of `position`, and history is kept from `horizon` on.
    pub fn position_too_old(asked: &str, position: Position, horizon: Lsn) -> Self {
        let message = format!(
            "{asked} cannot be answered as of {position}: this node keeps history from {horizon} on; read a later position, or let history_retention be longer"
        );
        Self::new(Reason::PositionTooOld, message).at(position).with("horizon_lsn", horizon.get())
    }

    /// `asked` allows data `max_ms` old; that of this node is `staleness_ms` old, or of unknown age. `fresher` is the name and
    /// the address of the primary, if it is known.
    pub fn too_stale(asked: &str, max_ms: u64, staleness_ms: Option<u64>, fresher: Option<(&str, &str)>) -> Self {
        let so = staleness_ms.map_or_else(
            || "how old the data of this node is cannot be told: it has not heard a confirmed primary".to_owned(),
            |ms| format!("the data of this node is up to {ms} ms old"),
        );
        let instead = fresher.map_or_else(
            || "ask another node".to_owned(),
            |(name, address)| format!("ask {name} at {address}, the primary"),
        );
        let message = format!("{asked} allows data at most {max_ms} ms old, and {so}; {instead}, or allow more");
        let mut error = Self::new(Reason::TooStale, message);
        if let Some(ms) = staleness_ms {
            error = error.with("staleness_ms", ms);
        }
        match fresher {
            Some((name, address)) => error.with("fresher", name).with("fresher_address", address),
            None => error,
        }
    }

    /// `limit` reads wait (or scans are under way) already.
    pub fn too_many_reads(asked: &str, limit: usize, doing: &str) -> Self {
        let message = format!(
            "{asked} cannot be taken: {limit} {doing} on this node already, the most that it takes; try again after a pause, or ask another node"
        );
        Self::new(Reason::TooManyReads, message).with("limit", limit)
    }

    /// The node has `limit` of something already: `doing`, like "connections are open".
    pub fn node_busy(asked: &str, limit: usize, doing: &str) -> Self {
        let message = format!(
            "{asked} cannot be taken: {limit} {doing} on this node already, the most that it takes; nothing was done; \
             try again after a pause"
        );
        Self::new(Reason::NodeBusy, message).with("limit", limit)
    }

    fn at(self, position: Position) -> Self {
        self.with("timeline", position.timeline.get()).with("lsn", position.lsn.get())
    }

    /// Something failed that should not: `message` says what and where to look.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Reason::Internal, message)
    }

    /// The gRPC code that it is answered with.
    pub fn code(&self) -> Code {
        match self.reason {
            Reason::NotPrimary
            | Reason::WrongCluster
            | Reason::WrongNode
            | Reason::PositionAbandoned
            | Reason::NotLeader
            | Reason::WalRemoved
            | Reason::WalDamaged => Code::FailedPrecondition,
            Reason::NoPrimary
            | Reason::NotReady
            | Reason::NotConfirmed
            | Reason::PositionNotReached
            | Reason::TooStale => Code::Unavailable,
            Reason::PositionTooOld => Code::OutOfRange,
            Reason::TooManyReads | Reason::NodeBusy => Code::ResourceExhausted,
            Reason::PreconditionFailed => Code::Aborted,
            Reason::CommitOutcomeUnknown if self.get("why") == Some(UnknownWhy::Deadline.as_str()) => {
                Code::DeadlineExceeded
            }
            Reason::CommitOutcomeUnknown => Code::Unavailable,
            Reason::QueueFull => Code::ResourceExhausted,
            Reason::LimitExceeded | Reason::InvalidArgument => Code::InvalidArgument,
            Reason::Internal => Code::Internal,
        }
    }

    /// Reads back what a node of this or a similar version answered; none for a status that another party made
    /// (the transport, a proxy) or for a reason that this version does not know.
    pub fn from_status(status: &Status) -> Option<RpcError> {
        let info = status.get_details_error_info()?;
        let reason = Reason::from_name(&info.reason).filter(|_| info.domain == DOMAIN)?;
        Some(Self { reason, message: status.message().to_owned(), metadata: info.metadata.into_iter().collect() })
    }
}

impl From<RpcError> for Status {
    fn from(error: RpcError) -> Status {
        let code = error.code();
        let facts = error.metadata.into_iter().map(|(key, value)| (key, cut(&value, FACT_CHARS_MAX)));
        let metadata: HashMap<String, String> = facts.collect();
        Status::with_error_details(
            code,
            cut(&error.message, MESSAGE_CHARS_MAX),
            ErrorDetails::with_error_info(error.reason.as_str(), DOMAIN, metadata),
        )
    }
}

impl From<RpcError> for v1::CommitFailure {
    fn from(error: RpcError) -> Self {
        Self {
            code: error.code().into(),
            reason: error.reason.as_str().to_owned(),
            message: error.message,
            metadata: error.metadata.into_iter().collect(),
        }
    }
}

/// The status that a single commit would have been answered with.
impl From<v1::CommitFailure> for Status {
    fn from(failure: v1::CommitFailure) -> Self {
        let details = ErrorDetails::with_error_info(failure.reason, DOMAIN, failure.metadata);
        Status::with_error_details(Code::from_i32(failure.code), failure.message, details)
    }
}

#[cfg(test)]
#[path = "error_tests.rs"]
mod tests;
