//! What clients saw: every operation with the time it was asked, the time it was answered, and the answer.
//!
//! Recorded by the workload, judged by the checker. Times are nanoseconds since the recording began, on one clock:
//! all clients of a test live in one process.

use understudy_types::{Lsn, Position, TimelineHistory};

use crate::ledger::Ledger;

/// Nanoseconds since the recording began.
pub type Nanos = u64;

/// Everything that was recorded, with how the cluster's timelines came out in the end.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Commits of one put each, at level `on`.
    pub writes: Vec<Write>,
    /// Reads of one key each, while the cluster was under faults.
    pub reads: Vec<Read>,
    /// Reads of every key on every node after all clients had stopped and all nodes had caught up.
    pub finals: Vec<Read>,
    /// Transfers between accounts.
    pub ledger: Ledger,
    /// The final chain.
    pub timelines: TimelineHistory,
}

/// A commit that puts a value which no other commit ever puts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// When the client began to ask, the first time.
    pub invoked: Nanos,
    /// When it had its answer or gave up.
    pub returned: Nanos,
    /// What is written.
    pub key: String,
    /// Unique in the history.
    pub value: String,
    /// The condition that the commit carried.
    pub expected: Expected,
    /// What the client was told.
    pub outcome: WriteOutcome,
}

/// The condition of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// None.
    Anything,
    /// The key has no value.
    Absent,
    /// The key's value was written by the commit at this position.
    Version(Position),
}

/// What a client was told of its write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteOutcome {
    /// It is done and stays done.
    Acknowledged(Acknowledgement),
    /// It is not done and never will be.
    Refused,
    /// Nobody said. It may be done, or be done later, or never.
    Unknown,
}

/// A promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledgement {
    /// The id of the node that gave it.
    pub node: String,
    /// Where the commit stands.
    pub position: Position,
    /// It repeats an earlier outcome: the position is that of the first run, perhaps on an earlier timeline.
    pub already_done: bool,
    /// When the request was sent that this answers: the last attempt.
    pub sent: Nanos,
}

/// How a read was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// Must see everything that was acknowledged before it was asked.
    Linearizable,
    /// What the asked node has applied.
    Eventual,
}

/// An answered read. One that got no answer says nothing and is not recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// When the client asked.
    pub invoked: Nanos,
    /// When it had the answer.
    pub returned: Nanos,
    /// What was read.
    pub key: String,
    /// How.
    pub consistency: Consistency,
    /// The name of the node that answered.
    pub node: String,
    /// The value and the commit that wrote it; none when there is no value.
    pub seen: Option<(String, Position)>,
    /// The position that was read.
    pub read_position: Position,
}

impl Write {
    /// The acknowledgement, if there was one.
    pub fn acknowledgement(&self) -> Option<&Acknowledgement> {
        match &self.outcome {
            WriteOutcome::Acknowledged(acknowledgement) => Some(acknowledgement),
            WriteOutcome::Refused | WriteOutcome::Unknown => None,
        }
    }
}

impl History {
    /// The highest LSN that was acknowledged.
    pub fn highest(&self) -> Lsn {
        let acknowledged = self.writes.iter().filter_map(Write::acknowledgement);
        let transferred = self.ledger.acknowledged().map(|(_, acknowledgement)| acknowledgement);
        acknowledged.chain(transferred).map(|done| done.position.lsn).max().unwrap_or(Lsn::INVALID)
    }

    /// Writes and transfers that were acknowledged.
    pub fn acknowledged(&self) -> usize {
        let writes = self.writes.iter().filter(|write| write.acknowledgement().is_some()).count();
        writes + self.ledger.acknowledged().count()
    }
}
