//! Commits: what is asked, what may be answered.
//!
//! A commit has three results: committed, not committed (every error but one), and unknown. `Unknown` is
//! never folded into one of the others: the client asks again with the same request id.

use bytes::Bytes;
use understudy_types::{DurabilityLevel, Position, RequestId, SegmentSize, limits};
use understudy_wal::{CommitRecord, Op, max_commit_bytes};

use crate::observe::TraceContext;

/// What is asked: all operations or none, if every precondition holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Commit {
    /// Makes the commit take effect once, however often it is sent; none for one that is never retried.
    pub request_id: Option<RequestId>,
    /// In this order: of several on one key the last counts.
    pub ops: Vec<Op>,
    /// On the state that the commit is ordered after.
    pub preconditions: Vec<Precondition>,
    /// When it is acknowledged.
    pub level: DurabilityLevel,
    /// The trace that it belongs to; none for one that is not traced.
    pub trace: Option<TraceContext>,
}

/// What must hold of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Precondition {
    /// Which key.
    pub key: Bytes,
    /// What of it.
    pub condition: Condition,
}

/// See [`Precondition`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// It has no value.
    Absent,
    /// It has a value.
    Present,
    /// It has this value.
    ValueEquals(Bytes),
    /// Its value was written by this commit: timeline and end of its record.
    VersionEquals(Position),
}

/// The commit is in the log, durable at the level that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// Its timeline and the end of its record: the version of all that it wrote.
    pub position: Position,
    /// Whether an earlier request with the same id had made it; `position` is that one's.
    pub already_done: bool,
}

/// Why the outcome is not known, or not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnknownReason {
    /// Its deadline came first.
    #[error("the deadline came first")]
    Deadline,
    /// The node sealed its timeline.
    #[error("the node is not the primary any more")]
    StepDown,
    /// The node is being stopped.
    #[error("the node is being stopped")]
    Stopping,
    /// The log or the store failed; the node exits.
    #[error("the node's disk failed")]
    Failed,
    /// An administrator ended the wait.
    #[error("an administrator ended the wait")]
    Cancelled,
}

/// A commit breaks a limit that holds on every node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCommit {
    /// Keys have at least one byte.
    #[error("a key is empty: a key has 1 to {max} bytes", max = limits::KEY_BYTES_MAX)]
    EmptyKey,
    /// A key is too long.
    #[error("a key has {bytes} bytes: at most {max} are allowed", max = limits::KEY_BYTES_MAX)]
    KeyTooLong {
        /// Its length.
        bytes: usize,
    },
    /// A value is too long.
    #[error("a value has {bytes} bytes: at most {max} are allowed, split it over several keys", max = limits::VALUE_BYTES_MAX)]
    ValueTooLong {
        /// Its length.
        bytes: usize,
    },
    /// Too many operations and preconditions.
    #[error(
        "a commit has {count} operations and preconditions: at most {max} are allowed, split it",
        max = limits::COMMIT_OPERATIONS_MAX
    )]
    TooManyOperations {
        /// How many.
        count: usize,
    },
    /// Keys and values together are too long.
    #[error("a commit has {bytes} bytes of keys and values: at most {bytes_max} are allowed, split it")]
    TooLarge {
        /// Of all keys and values.
        bytes: u64,
        /// What the limit or a WAL segment takes.
        bytes_max: u64,
    },
}

/// A commit was not acknowledged. Of all these only [`CommitError::Unknown`] may have taken effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// Another node is the primary, or none is: ask it, or wait.
    #[error("this node is not the primary: send the commit to the primary")]
    NotPrimary,
    /// The commit breaks a limit: do not send it again.
    #[error("invalid commit: {0}")]
    Invalid(#[from] InvalidCommit),
    /// A precondition does not hold, and what says so is safe.
    #[error("precondition {index} does not hold: nothing was written")]
    PreconditionFailed {
        /// Its place among the preconditions, from 0.
        index: usize,
        /// Its key.
        key: Bytes,
        /// The version of the value that the key has; none when it has no value.
        found: Option<Position>,
    },
    /// Too much waits to be confirmed: try again later.
    #[error("{bytes} bytes of commits wait to be confirmed, at most {bytes_max} may: try again later")]
    QueueFull {
        /// That wait, with this one.
        bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// A precondition did not hold, but because of a commit that is not safe yet: nothing was written, and
    /// whether it will hold is not known. Try again.
    #[error("whether the preconditions hold is not decided, {why}: nothing was written, try again")]
    NotDecided {
        /// What ended the wait.
        why: UnknownReason,
    },
    /// It may or may not be there: ask again with the same request id.
    #[error("the outcome is unknown, {why}: ask again with the same request id")]
    Unknown {
        /// Where it stands in this node's log; none when it may not have got there.
        position: Option<Position>,
        /// What ended the wait.
        why: UnknownReason,
    },
}

impl Commit {
    /// The bytes that its keys and values take, those of the preconditions too.
    pub(crate) fn bytes(&self) -> u64 {
        let ops = self.ops.iter().map(|op| match op {
            Op::Put { key, value } => key.len() + value.len(),
            Op::Delete { key } => key.len(),
        });
        let preconditions = self.preconditions.iter().map(|precondition| match &precondition.condition {
            Condition::Absent | Condition::Present | Condition::VersionEquals(_) => precondition.key.len(),
            Condition::ValueEquals(value) => precondition.key.len() + value.len(),
        });
        ops.chain(preconditions).map(|bytes| bytes as u64).sum()
    }

    /// Checks the limits; gives the record that is to be written, and the preconditions.
    pub(crate) fn into_checked(
        self,
        segment_size: SegmentSize,
    ) -> Result<(CommitRecord, Vec<Precondition>), InvalidCommit> {
        let count = self.ops.len() + self.preconditions.len();
        if count > limits::COMMIT_OPERATIONS_MAX {
            return Err(InvalidCommit::TooManyOperations { count });
        }
        for op in &self.ops {
            check_key(op.key())?;
            match op {
                Op::Put { value, .. } if value.len() > limits::VALUE_BYTES_MAX => {
                    return Err(InvalidCommit::ValueTooLong { bytes: value.len() });
                }
                Op::Put { .. } | Op::Delete { .. } => {}
            }
        }
        self.preconditions.iter().try_for_each(|precondition| check_key(&precondition.key))?;
        let (bytes, bytes_max) = (self.bytes(), limits::COMMIT_BYTES_MAX as u64);
        if bytes > bytes_max {
            return Err(InvalidCommit::TooLarge { bytes, bytes_max });
        }
        let record = CommitRecord { request_id: self.request_id, ops: self.ops };
        let (bytes, bytes_max) = (record.encoded_bytes(), max_commit_bytes(segment_size));
        if bytes > bytes_max {
            return Err(InvalidCommit::TooLarge { bytes, bytes_max });
        }
        Ok((record, self.preconditions))
    }
}

fn check_key(key: &Bytes) -> Result<(), InvalidCommit> {
    match key.len() {
        0 => Err(InvalidCommit::EmptyKey),
        bytes if bytes > limits::KEY_BYTES_MAX => Err(InvalidCommit::KeyTooLong { bytes }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: usize, value: usize) -> Op {
        Op::Put { key: Bytes::from(vec![b'k'; key]), value: Bytes::from(vec![b'v'; value]) }
    }

    fn check(ops: Vec<Op>, segment_size: SegmentSize) -> Result<(), InvalidCommit> {
        Commit { ops, ..Commit::default() }.into_checked(segment_size).map(|_| ())
    }

    #[test]
    fn limits_are_checked_at_their_edges() {
        let size = SegmentSize::DEFAULT;
        assert_eq!(check(vec![put(1, 0), put(limits::KEY_BYTES_MAX, limits::VALUE_BYTES_MAX)], size), Ok(()));
        assert_eq!(check(vec![put(0, 1)], size), Err(InvalidCommit::EmptyKey));
        let bytes = limits::KEY_BYTES_MAX + 1;
        assert_eq!(check(vec![put(bytes, 0)], size), Err(InvalidCommit::KeyTooLong { bytes }));
        let bytes = limits::VALUE_BYTES_MAX + 1;
        assert_eq!(check(vec![put(1, bytes)], size), Err(InvalidCommit::ValueTooLong { bytes }));
        let four_mib = limits::VALUE_BYTES_MAX;
        let error = check(vec![put(1, four_mib), put(1, four_mib), put(1, four_mib)], size).unwrap_err();
        assert!(
            matches!(error, InvalidCommit::TooLarge { bytes_max, .. } if bytes_max == limits::COMMIT_BYTES_MAX as u64)
        );
        let count = limits::COMMIT_OPERATIONS_MAX + 1;
        assert_eq!(check(vec![put(1, 0); count], size), Err(InvalidCommit::TooManyOperations { count }));
    }

    #[test]
    fn a_commit_fits_into_a_segment() {
        let size = SegmentSize::MIN;
        let room = usize::try_from(max_commit_bytes(size)).unwrap() - 8 - 9;
        assert_eq!(check(vec![put(1, room - 1)], size), Ok(()));
        let error = check(vec![put(1, room)], size).unwrap_err();
        assert_eq!(
            error,
            InvalidCommit::TooLarge { bytes: max_commit_bytes(size) + 1, bytes_max: max_commit_bytes(size) }
        );
    }

    #[test]
    fn preconditions_count_too() {
        let on = |key: &'static [u8]| Precondition { key: Bytes::from_static(key), condition: Condition::Absent };
        let commit = Commit { preconditions: vec![on(b"a"), on(b"")], ..Commit::default() };
        assert_eq!(commit.into_checked(SegmentSize::DEFAULT), Err(InvalidCommit::EmptyKey));
    }
}
