//! Where a read stands: what each consistency level asks of this node, and how long the node waits to give it.
//!
//! | level | who answers | what it waits for |
//! |---|---|---|
//! | linearizable | the primary | a majority's word that it still is, given after the read came (INV-LINEAR); nothing while a lease runs |
//! | session | any node | that it shows the token's position |
//! | at a position | any node | that it shows the position |
//! | eventual | any node | nothing |
//!
//! with a bound on staleness also that the data is fresh enough (docs/reading.md).
//!
//! The decisions are [`understudy_core::reading`]'s and [`understudy_core::staleness`]'s. A read that waits is judged anew
//! whenever the visible position, the cluster's history or the node's freshness moves, so that a failover meanwhile is taken
//! into account. While it waits it holds no engine: a node may replace its data under it. A node whose data is not on the
//! cluster's history refuses every read (INV-VISIBLE): it never was consistent, or the cluster left it behind.

use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use understudy_core::reading::{Verdict, Waiting, is_consistent, judge};
use understudy_core::staleness::Freshness;
use understudy_engine::Engine;
use understudy_rpc::error::RpcError;
use understudy_rpc::{convert, v1};
use understudy_types::limits::WAITING_READS_MAX;
use understudy_types::{Position, SessionToken, TimelineHistory, TimelineId};

use crate::confirmer::{Confirmer, Unconfirmed};
use crate::freshness::{Confirmed, Heard, boot_ms};
use crate::view::NodeView;

/// What a read asks for, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    consistency: v1::Consistency,
    /// Not before this position.
    token: Option<SessionToken>,
    /// Exactly this position; set with [`v1::Consistency::At`] alone.
    at: Option<Position>,
    max_staleness_ms: Option<u64>,
}

impl Wanted {
    /// What the fields of a request mean together.
    ///
    /// # Errors
    /// When they contradict one another, or one of them is malformed.
    pub fn of(
        consistency: i32,
        token: &[u8],
        at: Option<v1::Position>,
        max_staleness_ms: Option<u64>,
    ) -> Result<Self, RpcError> {
        use v1::Consistency::{At, Eventual, Linearizable, Session, Unspecified};
        let consistency = convert::consistency(consistency)?;
        let token = convert::token(token)?;
        let refuse = |message: &str| Err(RpcError::invalid_argument(message));
        let (bounded, with_token) = match consistency {
            Unspecified | Linearizable => (false, true),
            Eventual => (true, false),
            Session => (true, true),
            At => (false, false),
        };
        if token.is_some() && !with_token {
            return refuse(
                "a session token goes with consistency session or linearizable; leave it out, or ask for session",
            );
        }
        match max_staleness_ms {
            Some(0) => {
                return refuse(
                    "max_staleness_ms 0 was given, and no standby is ever that fresh: read linearizable instead",
                );
            }
            Some(_) if !bounded => {
                return refuse("max_staleness_ms goes with consistency eventual or session; leave it out");
            }
            Some(_) | None => {}
        }
        let at = match (consistency, at.map(Position::from)) {
            (At, Some(at)) if at.timeline > TimelineId::NONE && at.lsn.is_valid() => Some(at),
            (At, _) => {
                return refuse("a read at a position needs one: a timeline from 1 on, and an LSN that is not 0");
            }
            (Unspecified | Linearizable | Eventual | Session, None) => None,
            (Unspecified | Linearizable | Eventual | Session, Some(_)) => {
                return refuse("a position was given without consistency at; leave it out, or ask for consistency at");
            }
        };
        Ok(Self { consistency, token, at, max_staleness_ms })
    }

    /// The position that must be shown first.
    fn position(&self) -> Option<Position> {
        self.at.or(self.token.map(|token| token.position))
    }
}

/// Where a read stands.
pub struct ReadPoint {
    /// Where to read.
    pub engine: Engine,
    /// As of when.
    pub position: Position,
    /// Stands for `position`.
    pub token: SessionToken,
}

/// What reads stand on.
pub struct ReadParts {
    /// Published by the agent.
    pub view: watch::Receiver<NodeView>,
    /// Of the cluster state. It never lags behind the log.
    pub history: watch::Receiver<TimelineHistory>,
    /// For linearizable reads.
    pub confirmer: Confirmer,
    /// When a majority last confirmed this node, as the primary.
    pub confirmed: watch::Receiver<Option<Confirmed>>,
    /// How fresh this node is, as a standby.
    pub heard: Arc<Heard>,
    /// Ends what waits.
    pub stop: CancellationToken,
}

/// See the module.
pub struct Reads {
    parts: ReadParts,
    waiting: Semaphore,
}

/// How a read stands at one moment.
enum Now {
    /// It may be answered as of this position.
    Answer(Engine, Position),
    /// Not yet; what is said at the deadline.
    NotYet(watch::Receiver<Position>, RpcError),
    /// As the primary: once a majority confirms the timeline.
    Confirm(Engine, Position, TimelineId),
}

impl Reads {
    /// Over what the rest of the node publishes.
    pub fn new(parts: ReadParts) -> Self {
        Self { parts, waiting: Semaphore::new(WAITING_READS_MAX) }
    }

    /// What the node is and knows.
    pub fn view(&self) -> &watch::Receiver<NodeView> {
        &self.parts.view
    }

    /// The engine, once it is open.
    ///
    /// # Errors
    /// When it is not.
    pub fn engine(&self, asked: &str) -> Result<Engine, RpcError> {
        let view = self.parts.view.borrow();
        match &view.engine {
            Some(engine) => Ok(engine.clone()),
            None => Err(RpcError::not_ready(asked, &view.no_primary_reason())),
        }
    }

    /// The engine, if this node is the primary, and the timeline that it opened.
    ///
    /// # Errors
    /// When it is not: the error names the primary.
    pub fn primary(&self, asked: &str) -> Result<(Engine, TimelineId), RpcError> {
        let engine = self.engine(asked)?;
        match engine.is_primary() {
            Some(timeline) => Ok((engine, timeline)),
            None => Err(self.refuse(asked)),
        }
    }

    /// Why this node does not do what the primary does.
    pub fn refuse(&self, asked: &str) -> RpcError {
        self.parts.view.borrow().refusal(asked)
    }

    /// Waits until a majority has said that this node is still the primary of `timeline`. Does not wait while a lease runs,
    /// where they are asked for: looked at now, after the caller has noted what it will answer by. What is noted later, or what is looked
    /// at before, could be stale (INV-LINEAR).
    ///
    /// # Errors
    /// When it is not, or no majority answers before the deadline.
    pub async fn confirm(&self, asked: &str, timeline: TimelineId, deadline: Instant) -> Result<(), RpcError> {
        if self.parts.confirmer.holds_lease(timeline) {
            return Ok(());
        }
        match tokio::time::timeout_at(deadline, self.parts.confirmer.confirm(timeline)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Unconfirmed::NotPrimary(_))) => Err(self.refuse(asked)),
            Ok(Err(error @ Unconfirmed::TooManyWait)) => Err(RpcError::not_confirmed(asked, &error.to_string())),
            Err(_) => Err(RpcError::not_confirmed(asked, "too few voters answered before the deadline")),
        }
    }

    /// The token of a position of this cluster.
    pub fn token(&self, position: Position) -> SessionToken {
        SessionToken::new(self.parts.view.borrow().cluster.system_id, position)
    }

    /// Where a read stands that wants `wanted`; waits for it until `deadline`.
    ///
    /// # Errors
    /// When this node may not answer it, or not in time.
    pub async fn point(&self, asked: &str, wanted: &Wanted, deadline: Instant) -> Result<ReadPoint, RpcError> {
        let linearizable = match wanted.consistency {
            v1::Consistency::Linearizable | v1::Consistency::Unspecified => true,
            v1::Consistency::Eventual | v1::Consistency::Session | v1::Consistency::At => false,
        };
        if linearizable {
            self.primary(asked)?;
        } else {
            self.engine(asked)?;
        }
        if let Some(token) = wanted.token {
            let found = self.parts.view.borrow().cluster.system_id;
            if token.system_id != found {
                return Err(RpcError::wrong_cluster(token.system_id, found));
            }
        }
        let (engine, position) = match linearizable {
            true => self.linearizable(asked, wanted, deadline).await?,
            false => self.wait(asked, wanted, deadline).await?,
        };
        let position = wanted.at.unwrap_or(position);
        Ok(ReadPoint { engine, position, token: self.token(position) })
    }

    async fn linearizable(
        &self,
        asked: &str,
        wanted: &Wanted,
        deadline: Instant,
    ) -> Result<(Engine, Position), RpcError> {
        if wanted.token.is_some() {
            self.wait(asked, wanted, deadline).await?;
        }
        let (engine, timeline) = self.primary(asked)?;
        // Noted before the round begins: whatever was acknowledged before this read is in it.
        let position = *engine.visible().borrow();
        self.confirm(asked, timeline, deadline).await?;
        Ok((engine, position))
    }

    async fn wait(&self, asked: &str, wanted: &Wanted, deadline: Instant) -> Result<(Engine, Position), RpcError> {
        let mut history = self.parts.history.clone();
        let mut freshness = self.parts.heard.subscribe();
        let mut view = self.parts.view.clone();
        let mut waiting: Option<SemaphorePermit<'_>> = None;
        loop {
            view.mark_unchanged();
            let (mut visible, error) = match self.judge(asked, wanted, &mut history, &mut freshness)? {
                Now::Answer(engine, position) => return Ok((engine, position)),
                Now::Confirm(engine, position, timeline) => {
                    self.confirm(asked, timeline, deadline).await?;
                    return Ok((engine, position));
                }
                Now::NotYet(visible, error) => (visible, error),
            };
            if waiting.is_none() {
                let permit = self.waiting.try_acquire();
                let full = |_| RpcError::too_many_reads(asked, WAITING_READS_MAX, "reads wait");
                waiting = Some(permit.map_err(full)?);
            }
            let moved = tokio::select! {
                moved = visible.changed() => moved.is_ok(),
                moved = history.changed() => moved.is_ok(),
                _ = freshness.changed(), if wanted.max_staleness_ms.is_some() => true,
                () = tokio::time::sleep_until(deadline) => return Err(error),
                () = self.parts.stop.cancelled() => return Err(RpcError::not_ready(asked, "this node is stopping")),
            };
            if !moved {
                // This engine is gone. Perhaps there will be another.
                tokio::select! {
                    _ = view.changed() => {}
                    () = tokio::time::sleep_until(deadline) => return Err(error),
                    () = self.parts.stop.cancelled() => return Err(RpcError::not_ready(asked, "this node is stopping")),
                }
            }
        }
    }

    fn judge(
        &self,
        asked: &str,
        wanted: &Wanted,
        history: &mut watch::Receiver<TimelineHistory>,
        freshness: &mut watch::Receiver<Freshness>,
    ) -> Result<Now, RpcError> {
        let engine = self.engine(asked)?;
        let mut visible = engine.visible();
        // In this order: the history has every timeline that the visible position has.
        let position = *visible.borrow_and_update();
        let history = history.borrow_and_update();
        if let Some(needed) = wanted.position() {
            match judge(&history, position, needed) {
                Verdict::Covered => {}
                Verdict::Wait(waiting) => {
                    let error = RpcError::position_not_reached(asked, needed, position, &behind(waiting));
                    return Ok(Now::NotYet(visible, error));
                }
                Verdict::Abandoned { end, present } => {
                    return Err(RpcError::position_abandoned(asked, needed, end, present));
                }
                Verdict::NotConsistent { .. } => return Err(self.not_consistent(asked, position)),
            }
        } else if !is_consistent(&history, position) {
            return Err(self.not_consistent(asked, position));
        }
        let Some(max_ms) = wanted.max_staleness_ms else { return Ok(Now::Answer(engine, position)) };
        let now_ms = boot_ms();
        let staleness_ms = match engine.is_primary() {
            Some(timeline) => {
                let confirmed = self.parts.confirmed.borrow();
                let fresh = confirmed.as_ref().filter(|confirmed| confirmed.timeline == timeline);
                if fresh.is_none_or(|confirmed| confirmed.age_ms(now_ms) > max_ms) {
                    return Ok(Now::Confirm(engine, position, timeline));
                }
                Some(0)
            }
            // One more for the fraction of a millisecond that was cut off.
            None => freshness.borrow_and_update().staleness_ms(&history, position, now_ms).map(|ms| ms + 1),
        };
        if staleness_ms.is_some_and(|ms| ms <= max_ms) {
            return Ok(Now::Answer(engine, position));
        }
        let view = self.parts.view.borrow();
        let fresher = view.primary().filter(|(id, _, _)| *id != view.me).map(|(_, name, address)| (name, address));
        let error = RpcError::too_stale(asked, max_ms, staleness_ms, fresher);
        Ok(Now::NotYet(visible, error))
    }

    fn not_consistent(&self, asked: &str, visible: Position) -> RpcError {
        let why = format!("what it shows, up to {visible}, is not on the history of the cluster");
        RpcError::not_ready(asked, &why)
    }
}

fn behind(waiting: Waiting) -> String {
    match waiting {
        Waiting::Apply => "it is behind, or nothing was written there yet".to_owned(),
        Waiting::Timeline { present } => {
            format!("it has not heard of that timeline, the latest that it knows is {present}")
        }
    }
}

#[cfg(test)]
#[path = "reads_tests.rs"]
pub mod tests;
