//! Commits on their way to the sequencer: bounded by bytes and by number, in the order in which they came.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use understudy_types::limits::QUEUE_COMMITS_MAX;
use understudy_types::{Lsn, Position};
use understudy_wal::CommitRecord;

use crate::commit::{CommitError, Precondition};
use crate::observe::TraceContext;

/// What a queued commit, and each of its operations and preconditions, costs beside its keys and values: a bound for its
/// place in queue and index, and for the reads of one batch.
const OVERHEAD_BYTES: u64 = 64;
/// How often the sequencer looks up from an empty queue, for what depends on time.
const IDLE_WAIT: Duration = Duration::from_secs(1);

/// What the sequencer made of a commit.
#[derive(Debug)]
pub(crate) enum Ordered {
    /// It was appended.
    Appended(Position),
    /// An earlier request with the same id had made this commit.
    AlreadyDone(Position),
    /// A precondition does not hold because of a commit that ends at `basis`; it may be told once that is
    /// visible.
    PreconditionFailed {
        /// What to answer then.
        error: CommitError,
        /// What it rests on; invalid where it rests on what is visible already.
        basis: Lsn,
    },
}

/// How the sequencer answers.
pub(crate) type Reply = oneshot::Sender<Result<Ordered, CommitError>>;

/// A commit that waits for its turn.
#[derive(Debug)]
pub(crate) struct Queued {
    pub record: CommitRecord,
    pub preconditions: Vec<Precondition>,
    /// Of keys and values.
    pub bytes: u64,
    pub reply: Reply,
    /// When it was queued; none when nobody observes.
    pub queued: Option<Instant>,
    /// None for one that is not traced.
    pub trace: Option<TraceContext>,
}

impl Queued {
    fn charge(&self) -> u64 {
        let parts = 1 + self.record.ops.len() + self.preconditions.len();
        self.bytes + OVERHEAD_BYTES * parts as u64
    }
}

/// A commit was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Nobody sequences any more.
    Closed,
    /// With it, this many bytes would be unconfirmed.
    Full {
        /// Queued and appended.
        bytes: u64,
    },
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Queued>,
    /// Of those that wait and of those that the sequencer has taken and not settled.
    bytes: u64,
    closed: bool,
}

impl State {
    fn push(&mut self, commit: Queued, unconfirmed: u64, bytes_max: u64) -> Result<(), Refused> {
        if self.closed {
            return Err(Refused::Closed);
        }
        let bytes = self.bytes.saturating_add(unconfirmed).saturating_add(commit.charge());
        if bytes > bytes_max || self.waiting.len() >= QUEUE_COMMITS_MAX {
            return Err(Refused::Full { bytes });
        }
        self.bytes += commit.charge();
        self.waiting.push_back(commit);
        Ok(())
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct CommitQueue {
    state: Mutex<State>,
    arrived: Condvar,
    bytes_max: u64,
}

/// What the sequencer took in one turn.
#[derive(Debug)]
pub(crate) struct Batch {
    pub commits: Vec<Queued>,
    charge: u64,
}

impl CommitQueue {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self { state: Mutex::default(), arrived: Condvar::new(), bytes_max }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a commit, unless that makes more than the bound with the `unconfirmed` bytes of the log.
    pub(crate) fn push(&self, commit: Queued, unconfirmed: u64) -> Result<(), Refused> {
        self.lock().push(commit, unconfirmed, self.bytes_max)?;
        self.arrived.notify_one();
        Ok(())
    }

    /// Queues many, with nobody else's between them; says of each whether it was taken.
    pub(crate) fn push_all(&self, commits: Vec<Queued>, unconfirmed: u64) -> Vec<Result<(), Refused>> {
        let mut state = self.lock();
        let taken = commits.into_iter().map(|commit| state.push(commit, unconfirmed, self.bytes_max)).collect();
        drop(state);
        self.arrived.notify_one();
        taken
    }

    /// Waits for commits and takes up to `bytes_max` of them, at least one; an empty batch when none came for
    /// [`IDLE_WAIT`]; none once the queue is closed.
    pub(crate) fn take(&self, bytes_max: u64) -> Option<Batch> {
        let idle = |state: &mut State| state.waiting.is_empty() && !state.closed;
        let waited = self.arrived.wait_timeout_while(self.lock(), IDLE_WAIT, idle);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return None;
        }
        let mut batch = Batch { commits: Vec::new(), charge: 0 };
        while let Some(first) = state.waiting.front() {
            if !batch.commits.is_empty() && batch.charge + first.charge() > bytes_max {
                break;
            }
            batch.charge += first.charge();
            batch.commits.extend(state.waiting.pop_front());
        }
        Some(batch)
    }

    /// A batch is in the log, or refused: it does not count as queued any more.
    pub(crate) fn settled(&self, charge: u64) {
        let mut state = self.lock();
        state.bytes = state.bytes.checked_sub(charge).expect("only what was taken is settled");
    }

    /// Ends the queue. What still waits was never appended, and is told so.
    pub(crate) fn close(&self) {
        let waiting = {
            let mut state = self.lock();
            state.closed = true;
            std::mem::take(&mut state.waiting)
        };
        self.arrived.notify_all();
        for commit in waiting {
            // One whose caller has gone hears nothing.
            commit.reply.send(Err(CommitError::NotPrimary)).ok();
        }
    }
}

impl Batch {
    /// What [`CommitQueue::settled`] is told.
    pub(crate) fn charge(&self) -> u64 {
        self.charge
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(bytes: u64) -> (Queued, oneshot::Receiver<Result<Ordered, CommitError>>) {
        let (reply, answer) = oneshot::channel();
        (
            Queued {
                record: CommitRecord::default(),
                preconditions: Vec::new(),
                bytes,
                reply,
                queued: None,
                trace: None,
            },
            answer,
        )
    }

    #[test]
    fn bytes_are_bounded_until_they_are_settled() {
        let queue = CommitQueue::new(1_000);
        assert_eq!(queue.push(commit(400).0, 0), Ok(()));
        assert_eq!(queue.push(commit(400).0, 73), Err(Refused::Full { bytes: 464 + 464 + 73 }));
        assert_eq!(queue.push(commit(400).0, 72), Ok(()));
        let batch = queue.take(500).expect("open");
        assert_eq!((batch.commits.len(), batch.charge()), (1, 464));
        assert_eq!(queue.push(commit(400).0, 0), Err(Refused::Full { bytes: 3 * 464 }));
        queue.settled(batch.charge());
        assert_eq!(queue.push(commit(400).0, 0), Ok(()));
        assert_eq!(queue.take(10_000).expect("open").commits.len(), 2);
    }

    #[test]
    fn of_many_those_that_fit_are_taken_together() {
        let queue = CommitQueue::new(1_000);
        let full = Err(Refused::Full { bytes: 464 * 2 + 164 });
        let many = [400, 400, 100, 1].map(|bytes| commit(bytes).0).into();
        assert_eq!(queue.push_all(many, 0), [Ok(()), Ok(()), full, Ok(())]);
        assert_eq!(queue.take(10_000).expect("open").commits.len(), 3);
        queue.close();
        assert_eq!(queue.push_all(vec![commit(1).0], 0), [Err(Refused::Closed)]);
    }

    #[test]
    fn closing_tells_the_waiting_that_nothing_was_written() {
        let queue = CommitQueue::new(1_000);
        let (waiting, mut answer) = commit(1);
        queue.push(waiting, 0).unwrap();
        queue.close();
        assert!(matches!(answer.try_recv(), Ok(Err(CommitError::NotPrimary))));
        assert_eq!(queue.push(commit(1).0, 0), Err(Refused::Closed));
        assert!(queue.take(1).is_none());
    }
}
