//! Who waits (SYNC-9): the commits that are in the log and not acknowledged, and how an administrator ends their waits.
//!
//! The list is put together from the waiters' own maps when somebody asks; see [`crate::waiters`]. It knows for which
//! position a commit waits, not for which node: that is the sync rule's business, which the node's shell joins to it.
//! A wait that is ended here ends as unknown, never as committed (SYNC-7): the commit stays in the log, and a request
//! with the same id learns later what became of it.

use std::time::{Duration, Instant};

use understudy_types::{DurabilityLevel, Lsn, Position, RequestId};

use crate::engine::Engine;
use crate::session::Session;

/// Commits that [`Engine::waiting`] tells of.
pub const WAITING_COMMITS_MAX: usize = 1_000;

/// What a commit waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitStage {
    /// The local flush.
    Flush,
    /// The sync standbys' writes.
    RemoteWrite,
    /// The safe LSN, and then to be visible here.
    Visible,
    /// The sync standbys' apply.
    RemoteApply,
    /// A majority's word that this node is still the primary.
    Confirmation,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitingCommit {
    /// Where it ends in the log; for one that only asks about another (a repeated request id, a failed precondition):
    /// where that one ends.
    pub position: Position,
    /// At which it will be acknowledged.
    pub level: DurabilityLevel,
    /// None for a commit that is never retried.
    pub request_id: Option<RequestId>,
    /// Since it was asked for.
    pub waited: Duration,
    /// What for.
    pub stage: WaitStage,
}

/// What [`Engine::waiting`] tells.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Waiting {
    /// Of all that wait, listed or not.
    pub total: u64,
    /// By position, the lowest first; at most [`WAITING_COMMITS_MAX`].
    pub commits: Vec<WaitingCommit>,
}

impl Waiting {
    /// How long the oldest has waited; zero when none waits.
    pub fn oldest(&self) -> Duration {
        self.commits.iter().map(|commit| commit.waited).max().unwrap_or_default()
    }
}

/// Whose waits are to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelWaiting {
    /// Everybody's who waits now.
    All,
    /// Those of this request id.
    Request(RequestId),
}

impl CancelWaiting {
    pub(crate) fn includes(self, waiter: &Waiter) -> bool {
        match self {
            Self::All => true,
            Self::Request(id) => waiter.request_id == Some(id),
        }
    }
}

/// What a waiter says of itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waiter {
    pub position: Position,
    pub level: DurabilityLevel,
    pub request_id: Option<RequestId>,
    /// On the engine's clock; none says nothing.
    pub since: Option<Instant>,
}

impl Waiter {
    /// Before it is known what it is.
    pub(crate) const fn nobody() -> Self {
        let position = Position::new(understudy_types::TimelineId::NONE, Lsn::INVALID);
        Self { position, level: DurabilityLevel::On, request_id: None, since: None }
    }
}

impl Engine {
    /// What the sync rule yields for write: releases commits at level `remote_write`. Never above the local flush.
    pub fn advance_remote_write(&self, lsn: Lsn) {
        let flushed = *self.shared().wal.flushed().borrow();
        if let Some(session) = self.shared().session() {
            session.remote_write.release(lsn.min(flushed));
        }
    }

    /// What the sync rule yields for apply: releases commits at level `remote_apply`, once they are visible here too.
    pub fn advance_remote_apply(&self, lsn: Lsn) {
        if let Some(session) = self.shared().session() {
            session.remote_apply.release(lsn);
        }
    }

    /// The commits that wait to be acknowledged. None on a node that is not the primary.
    pub fn waiting(&self) -> Waiting {
        let Some(session) = self.shared().session() else { return Waiting::default() };
        let now = self.shared().clock.monotonic();
        let mut waiting = Waiting::default();
        for (stage, waiters) in stages(&session) {
            waiting.total += waiters.len() as u64;
            waiting.commits.extend(waiters.first(WAITING_COMMITS_MAX).iter().map(|waiter| WaitingCommit {
                position: waiter.position,
                level: waiter.level,
                request_id: waiter.request_id,
                waited: waiter.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
                stage,
            }));
        }
        waiting.commits.sort_unstable_by_key(|commit| commit.position.lsn);
        waiting.commits.truncate(WAITING_COMMITS_MAX);
        waiting
    }

    /// Ends waits as unknown, for the reason [`crate::UnknownReason::Cancelled`]; returns how many.
    pub fn cancel_waiting(&self, which: CancelWaiting) -> u64 {
        let Some(session) = self.shared().session() else { return 0 };
        stages(&session).into_iter().map(|(_, waiters)| waiters.cancel(which)).sum()
    }
}

fn stages(session: &Session) -> [(WaitStage, &crate::waiters::LsnWaiters); 5] {
    [
        (WaitStage::Flush, &session.flushed),
        (WaitStage::RemoteWrite, &session.remote_write),
        (WaitStage::Visible, &session.visible),
        (WaitStage::RemoteApply, &session.remote_apply),
        (WaitStage::Confirmation, &session.unconfirmed),
    ]
}
