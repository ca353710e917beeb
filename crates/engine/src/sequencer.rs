//! The sequencer: the one thread of a timeline that decides in which order commits stand in the log.
//!
//! It takes what has queued up, looks each commit up by its request id, checks its preconditions against the
//! latest state (the pending commits, then the store), lays it out behind the one before, and hands the whole
//! batch to the log in one append. It waits for no IO but reads of the store: flush, acknowledgements and
//! visibility come later, and whoever asked waits for them himself.
//!
//! Why no commit slips between pending commits and store: see [`crate::pending`]. What it answers rests on
//! commits that may not be safe, so every answer but "appended" names the position that must be visible before
//! it is told (INV-VISIBLE).

use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use understudy_store::StoreError;
use understudy_types::{Lsn, Position};
use understudy_wal::{Appender, CommitRecord, Record};

use crate::commit::{CommitError, Condition, InvalidCommit, Precondition, UnknownReason};
use crate::error::EngineFailure;
use crate::gc::Horizons;
use crate::pending::Pending;
use crate::queue::{Ordered, Queued, Reply};
use crate::session::Session;
use crate::shared::Shared;

/// Commits that are appended at once, in bytes, unless one is larger.
const BATCH_BYTES_MAX: u64 = 1 << 20;
/// Operations that are appended but not visible: bounds the index of pending commits, whatever their size.
const PENDING_OPERATIONS_MAX: usize = 1 << 20;

/// See the module.
pub(crate) struct Sequencer {
    shared: Arc<Shared>,
    session: Arc<Session>,
    appender: Appender,
    pending: Pending,
    horizons: Horizons,
    /// Commit times do not go back within a timeline.
    time_us: i64,
}

type Answer = Result<Ordered, CommitError>;

/// The value of a key and what says so.
struct Latest {
    value: Option<Bytes>,
    /// The commit that wrote the value, or deleted it; invalid where none is known.
    version: Position,
    /// Must be visible before this is told; invalid where it is.
    basis: Lsn,
}

impl Sequencer {
    pub(crate) fn new(shared: Arc<Shared>, session: Arc<Session>, appender: Appender, pending: Pending) -> Self {
        // What earlier primaries wrote is not covered by any horizon yet, as far as is known here.
        let horizons = Horizons::new(shared.store.horizon(), appender.next());
        Self { shared, session, appender, pending, horizons, time_us: i64::MIN }
    }

    /// Runs until the session is closed.
    pub(crate) fn run(mut self) {
        while let Some(batch) = self.session.queue.take(BATCH_BYTES_MAX) {
            let charge = batch.charge();
            let (answers, failure) = self.order(batch.commits);
            let failure = failure.or_else(|| self.keep_horizon().err().map(EngineFailure::from));
            // Before the answers: who was answered does not find his own commit counted twice.
            self.session.queue.settled(charge);
            for (reply, answer) in answers {
                // One whose caller has gone hears nothing.
                reply.send(answer).ok();
            }
            if let Some(failure) = failure {
                self.shared.fail(failure);
                self.session.close(UnknownReason::Failed);
            }
        }
    }

    /// Decides and appends one batch. After a failure of store or log what was to be appended is unknown.
    fn order(&mut self, commits: Vec<Queued>) -> (Vec<(Reply, Answer)>, Option<EngineFailure>) {
        let visible = self.shared.visible_now().lsn;
        self.pending.prune(visible);
        self.time_us = self.time_us.max(self.shared.clock.now_us());
        let taken = self.shared.observer().map(|_| Instant::now());
        let start = self.appender.next();
        let mut bytes = BytesMut::new();
        let mut answers = Vec::with_capacity(commits.len());
        let mut failure = None;
        for commit in commits {
            let Queued { record, preconditions, reply, queued, trace, .. } = commit;
            if reply.is_closed() {
                // Whoever asked has gone: nothing was written for it.
                continue;
            }
            // A seal waits for this batch: what is not laid out yet is not written any more.
            let over = failure.is_some() || self.session.closed().is_some();
            let answer = match over {
                true => Err(CommitError::NotPrimary),
                false => self.decide(record, &preconditions, visible, &mut bytes).unwrap_or_else(|error| {
                    failure = Some(EngineFailure::from(error));
                    Err(CommitError::NotDecided { why: UnknownReason::Failed })
                }),
            };
            if let (Some(observer), Some(queued), Some(taken)) = (self.shared.observer(), queued, taken)
                && let Ok(Ordered::Appended(position)) = &answer
            {
                observer.sequenced(queued, taken, position.lsn, trace);
            }
            answers.push((reply, answer));
        }
        if failure.is_none() {
            failure = self.append(taken, start, bytes).err().map(EngineFailure::from);
        }
        if failure.is_some() {
            answers.iter_mut().for_each(|(_, answer)| unknown_if_appended(answer));
        }
        (answers, failure)
    }

    /// Gives up what is old enough, when it is time for it.
    fn keep_horizon(&mut self) -> Result<(), understudy_wal::WalError> {
        let (now, visible) = (self.shared.clock.monotonic(), self.shared.visible_now().lsn);
        if self.session.closed().is_some() {
            return Ok(());
        }
        let Some(horizon) = self.horizons.next(now, visible, &self.shared.history_retention) else { return Ok(()) };
        let start = self.appender.next();
        let mut bytes = BytesMut::new();
        let record = Record::GcHorizon(horizon);
        self.appender.append(&mut bytes, &record, self.time_us).expect("a horizon record fits into a segment");
        self.append(None, start, bytes)
    }

    fn append(&self, taken: Option<Instant>, start: Lsn, bytes: BytesMut) -> Result<(), understudy_wal::WalError> {
        if bytes.is_empty() {
            return Ok(());
        }
        if let (Some(observer), Some(taken)) = (self.shared.observer(), taken) {
            // Before it is: the writer may have it on disk before this thread goes on.
            observer.appended(taken, start, self.appender.next(), Instant::now());
        }
        let end = self.shared.wal.append(start, bytes.freeze())?;
        assert!(end == self.appender.next(), "the log ends where the appender does");
        Ok(())
    }

    /// Validates one commit, and lays it out in `bytes` if nothing speaks against it.
    fn decide(
        &mut self,
        record: CommitRecord,
        preconditions: &[Precondition],
        visible: Lsn,
        bytes: &mut BytesMut,
    ) -> Result<Answer, StoreError> {
        if let Some(id) = &record.request_id {
            let made = match self.pending.request(id) {
                Some(position) => Some(position),
                None => self.shared.store.request(id)?,
            };
            if let Some(position) = made {
                return Ok(Ok(Ordered::AlreadyDone(position)));
            }
        }
        for (index, precondition) in preconditions.iter().enumerate() {
            let latest = self.latest(&precondition.key, visible)?;
            if !holds(&precondition.condition, &latest) {
                let found = latest.value.is_some().then_some(latest.version);
                let error = CommitError::PreconditionFailed { index, key: precondition.key.clone(), found };
                return Ok(Ok(Ordered::PreconditionFailed { error, basis: latest.basis }));
            }
        }
        if self.pending.operations() >= PENDING_OPERATIONS_MAX {
            let (bytes, bytes_max) = (self.shared.unconfirmed_bytes(), self.shared.config.queue_bytes_max);
            return Ok(Err(CommitError::QueueFull { bytes, bytes_max }));
        }
        let record = Record::Commit(record);
        let end = match self.appender.append(bytes, &record, self.time_us) {
            Ok(end) => end,
            Err(too_large) => {
                let (bytes, bytes_max) = (too_large.bytes, too_large.bytes_max);
                return Ok(Err(InvalidCommit::TooLarge { bytes, bytes_max }.into()));
            }
        };
        let position = Position::new(self.session.timeline, end);
        if let Record::Commit(commit) = &record {
            self.pending.add(position, commit);
            self.horizons.note_commit(end);
        }
        Ok(Ok(Ordered::Appended(position)))
    }

    /// The state of `key` behind everything that is appended.
    fn latest(&self, key: &Bytes, visible: Lsn) -> Result<Latest, StoreError> {
        if let Some(pending) = self.pending.key(key) {
            return Ok(Latest { value: pending.value.clone(), version: pending.version, basis: pending.version.lsn });
        }
        // No pending commit wrote it, so what is visible is the latest.
        let stored = self.shared.store.get(key, visible)?;
        let (value, version) = stored.map_or((None, Position::default()), |found| (Some(found.value), found.version));
        Ok(Latest { value, version, basis: Lsn::INVALID })
    }
}

/// The log did not take the batch, or took a part of it.
fn unknown_if_appended(answer: &mut Answer) {
    if let Ok(Ordered::Appended(position)) = *answer {
        *answer = Err(CommitError::Unknown { position: Some(position), why: UnknownReason::Failed });
    }
}

fn holds(condition: &Condition, latest: &Latest) -> bool {
    match (condition, &latest.value) {
        (Condition::Absent, value) => value.is_none(),
        (Condition::Present, value) => value.is_some(),
        (Condition::ValueEquals(expected), Some(value)) => expected == value,
        (Condition::VersionEquals(expected), Some(_)) => *expected == latest.version,
        (Condition::ValueEquals(_) | Condition::VersionEquals(_), None) => false,
    }
}
