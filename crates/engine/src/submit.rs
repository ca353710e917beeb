//! The way of a commit as its caller sees it: into the queue, then waiting for what its level asks for.
//!
//! | level | waits for |
//! |---|---|
//! | `off` | nothing |
//! | `local` | the local flush |
//! | `remote_write` | the sync standbys' writes; the position that says so never exceeds the local flush |
//! | `on` | to be visible here: safe (the sync standbys' flushes) and applied |
//! | `remote_apply` | the sync standbys' apply, and to be visible here |
//!
//! Each of them then waits for a majority's word that this node is still the primary, which is there already as a rule.
//! Whatever ends a wait before its time (deadline, a caller that goes away, an administrator, the step-down, the stop)
//! ends it as unknown: the commit is in the log, and nothing takes it out (SYNC-7).
//!
//! A repeated request id is answered at level `on` at least: that a commit was done is told only when no failover can
//! undo it (INV-VISIBLE). At `remote_apply` it waits for the standbys again, for that is what it promises.

use futures::future::join_all;
use tokio::sync::oneshot;
use tokio::time::Instant;
use understudy_types::{DurabilityLevel, Position};

use crate::commit::{Commit, CommitError, Committed, UnknownReason};
use crate::engine::Engine;
use crate::observe::Watched;
use crate::queue::{Ordered, Queued, Refused};
use crate::session::Session;
use crate::waiting::Waiter;

/// A commit that is in the queue.
struct Submitted {
    answer: oneshot::Receiver<Result<Ordered, CommitError>>,
    waiter: Waiter,
}

impl Engine {
    /// Commits, and returns when it is acknowledged at its level. Needs a Tokio runtime with time.
    ///
    /// Dropping the future is a cancel: the commit may or may not take effect.
    ///
    /// # Errors
    /// See [`CommitError`]; only [`CommitError::Unknown`] may have taken effect.
    pub async fn commit(&self, commit: Commit, deadline: Instant) -> Result<Committed, CommitError> {
        let Some(observer) = self.shared().observer() else { return self.make(commit, deadline).await };
        let watched = Watched::begin(observer, commit.level, commit.trace);
        let outcome = self.make(commit, deadline).await;
        watched.end(&outcome);
        outcome
    }

    async fn make(&self, commit: Commit, deadline: Instant) -> Result<Committed, CommitError> {
        let session = self.shared().session().ok_or(CommitError::NotPrimary)?;
        let (queued, submitted) = self.prepare(commit)?;
        session.queue.push(queued, self.shared().unconfirmed_bytes()).map_err(|refused| self.refusal(&refused))?;
        self.outcome(&session, submitted, deadline).await
    }

    /// Makes many commits that are independent of one another, queued together and in their order, so that they share
    /// appends and flushes. Returns one result for each, when the last is known.
    ///
    /// Dropping the future is a cancel of all.
    pub async fn commit_batch(&self, commits: Vec<Commit>, deadline: Instant) -> Vec<Result<Committed, CommitError>> {
        let Some(session) = self.shared().session() else {
            return commits.iter().map(|_| Err(CommitError::NotPrimary)).collect();
        };
        let mut taken = Vec::with_capacity(commits.len());
        let mut queued = Vec::with_capacity(commits.len());
        for commit in commits {
            taken.push(self.prepare(commit).map(|(commit, submitted)| {
                queued.push(commit);
                submitted
            }));
        }
        let mut refusals = session.queue.push_all(queued, self.shared().unconfirmed_bytes()).into_iter();
        let outcomes = taken.into_iter().map(|taken| {
            let refused = taken.is_ok().then(|| refusals.next()).flatten().and_then(Result::err);
            let session = &session;
            async move {
                match (taken, refused) {
                    (Err(error), _) => Err(error),
                    (Ok(_), Some(refused)) => Err(self.refusal(&refused)),
                    (Ok(submitted), None) => self.outcome(session, submitted, deadline).await,
                }
            }
        });
        join_all(outcomes).await
    }

    /// Checks the limits.
    fn prepare(&self, commit: Commit) -> Result<(Queued, Submitted), CommitError> {
        let shared = self.shared();
        let (bytes, trace) = (commit.bytes(), commit.trace);
        let since = shared.clock.monotonic();
        let waiter =
            Waiter { level: commit.level, request_id: commit.request_id, since: Some(since), ..Waiter::nobody() };
        let (record, preconditions) = commit.into_checked(shared.config.segment_size)?;
        let (reply, answer) = oneshot::channel();
        let queued = shared.observer().map(|_| since);
        Ok((Queued { record, preconditions, bytes, reply, queued, trace }, Submitted { answer, waiter }))
    }

    fn refusal(&self, refused: &Refused) -> CommitError {
        match *refused {
            Refused::Closed => CommitError::NotPrimary,
            Refused::Full { bytes } => {
                CommitError::QueueFull { bytes, bytes_max: self.shared().config.queue_bytes_max }
            }
        }
    }

    async fn outcome(
        &self,
        session: &Session,
        submitted: Submitted,
        deadline: Instant,
    ) -> Result<Committed, CommitError> {
        let Submitted { answer, mut waiter } = submitted;
        let ordered = match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(ordered)) => ordered?,
            // The sequencer went without an answer.
            Ok(Err(_)) => return Err(CommitError::Unknown { position: None, why: UnknownReason::Failed }),
            Err(_) => return Err(CommitError::Unknown { position: None, why: UnknownReason::Deadline }),
        };
        match ordered {
            Ordered::PreconditionFailed { error, basis } => {
                waiter.position = Position::new(session.timeline, basis);
                match until(deadline, session.visible.wait(basis, &waiter)).await {
                    Ok(()) => Err(error),
                    Err(why) => Err(CommitError::NotDecided { why }),
                }
            }
            Ordered::Appended(position) => {
                waiter.position = position;
                self.acknowledge(session, waiter, false, deadline).await
            }
            Ordered::AlreadyDone(position) => {
                waiter.position = position;
                waiter.level = match waiter.level {
                    DurabilityLevel::RemoteApply => DurabilityLevel::RemoteApply,
                    DurabilityLevel::Off
                    | DurabilityLevel::Local
                    | DurabilityLevel::RemoteWrite
                    | DurabilityLevel::On => DurabilityLevel::On,
                };
                self.acknowledge(session, waiter, true, deadline).await
            }
        }
    }

    async fn acknowledge(
        &self,
        session: &Session,
        waiter: Waiter,
        already_done: bool,
        deadline: Instant,
    ) -> Result<Committed, CommitError> {
        let position = waiter.position;
        let reached = async {
            reach(session, &waiter).await?;
            self.confirmed(session, &waiter).await
        };
        match until(deadline, reached).await {
            Ok(()) => Ok(Committed { position, already_done }),
            Err(why) => Err(CommitError::Unknown { position: Some(position), why }),
        }
    }

    /// Waits until a majority confirms this primary, at this very moment. The last thing before an
    /// acknowledgement: the session is still open when it returns.
    async fn confirmed(&self, session: &Session, waiter: &Waiter) -> Result<(), UnknownReason> {
        let shared = self.shared();
        let now = || shared.clock.boot_time();
        if !shared.confirmed_until.borrow().is_some_and(|until| now() < until) {
            let mut confirmed_until = shared.confirmed_until.subscribe();
            tokio::select! {
                // The sender lives as long as the engine.
                _ = confirmed_until.wait_for(|until| until.is_some_and(|until| now() < until)) => {}
                ended = session.unconfirmed.wait(waiter.position.lsn, waiter) => ended?,
            }
        }
        session.closed().map_or(Ok(()), Err)
    }
}

/// Waits for what the level asks for.
async fn reach(session: &Session, waiter: &Waiter) -> Result<(), UnknownReason> {
    let lsn = waiter.position.lsn;
    match waiter.level {
        DurabilityLevel::Off => Ok(()),
        DurabilityLevel::Local => session.flushed.wait(lsn, waiter).await,
        DurabilityLevel::RemoteWrite => session.remote_write.wait(lsn, waiter).await,
        DurabilityLevel::On => session.visible.wait(lsn, waiter).await,
        DurabilityLevel::RemoteApply => {
            // The later of the two comes first: as a rule the other one is there by then.
            session.remote_apply.wait(lsn, waiter).await?;
            session.visible.wait(lsn, waiter).await
        }
    }
}

async fn until(deadline: Instant, wait: impl Future<Output = Result<(), UnknownReason>>) -> Result<(), UnknownReason> {
    tokio::time::timeout_at(deadline, wait).await.unwrap_or(Err(UnknownReason::Deadline))
}
