//! Quorum confirmation of the primary (INV-LINEAR): the shell around [`understudy_core::confirm::Confirmation`].
//!
//! One task owns the rounds. It starts one every [`BEAT_INTERVAL`], and one at once when a read waits and none is
//! on its way; reads that come in the meantime share the next one. A round is a beat: [`Outgoing::round`] grows,
//! every dialer sends, the answers come back as [`Answer`]s. Two things follow from a round that a majority
//! confirmed: the reads that waited for it are let go, and the engine may acknowledge commits until
//! `primary_timeout` after the round was *sent*.
//!
//! With `linearizable_reads = lease` each round also asks for a lease ([`understudy_core::lease`]), and a read asks
//! [`Confirmer::holds_lease`] first, after it has noted its position. The lease is dropped before this node seals: in one
//! step, not by a message to the task.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use understudy_core::confirm::Confirmation;
use understudy_core::lease::counted_until_ms;
use understudy_core::settings::Settings;
use understudy_engine::Engine;
use understudy_types::{NodeId, TimelineId};

use crate::freshness::{Confirmed, boot_ms};
use crate::mesh::{Answer, BEAT_INTERVAL, Outgoing};

/// Reads that wait for the confirmer to take them.
const REQUESTS_MAX: usize = 4096;

/// Reads that wait for one round. More wait only while no majority answers.
const WAITING_MAX: usize = 65_536;

/// Why a read was not confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unconfirmed {
    /// This node is not the primary of the timeline that was to be confirmed, or no longer.
    #[error("this node is not the primary of timeline {0}")]
    NotPrimary(TimelineId),
    /// A majority has been silent for long.
    #[error("{WAITING_MAX} reads wait for a majority already")]
    TooManyWait,
}

/// What the primary needs confirmed.
pub struct Claim {
    /// The timeline that this node opened.
    pub timeline: TimelineId,
    /// Who votes.
    pub voters: BTreeSet<NodeId>,
    /// Told until when it may acknowledge.
    pub engine: Engine,
}

/// What is asked of voters for reads by lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LeaseTerms {
    /// Zero: no leases.
    wanted_ms: u64,
    margin_percent: u64,
}

/// The lease of this primary.
#[derive(Debug, Clone, Copy, Default)]
struct Lease {
    timeline: TimelineId,
    /// By [`boot_ms`]; none for no lease.
    until_ms: Option<u64>,
    /// No lease on this timeline or an older one counts, whatever answers still come.
    dropped: TimelineId,
}

impl Lease {
    fn holds(&self, timeline: TimelineId, now_ms: u64) -> bool {
        self.timeline == timeline && timeline > self.dropped && self.until_ms.is_some_and(|until_ms| now_ms < until_ms)
    }
}

enum Order {
    Confirm { timeline: TimelineId, done: oneshot::Sender<Result<(), Unconfirmed>> },
    Claim(Option<Box<Claim>>),
    SetVoters { voters: BTreeSet<NodeId>, done: oneshot::Sender<()> },
}

/// Handle of the confirmer's task.
#[derive(Clone)]
pub struct Confirmer {
    orders: mpsc::Sender<Order>,
    /// By [`boot_ms`].
    confirmed_until_ms: watch::Receiver<Option<u64>>,
    /// How long a confirmation lets commits be acknowledged.
    primary_timeout: watch::Sender<Duration>,
    terms: watch::Sender<LeaseTerms>,
    lease: watch::Sender<Lease>,
}

impl Confirmer {
    /// Starts the task. It ends when `stop` is cancelled.
    pub fn spawn(
        me: NodeId,
        outgoing: watch::Sender<Outgoing>,
        answers: mpsc::Receiver<Answer>,
        fresh: watch::Sender<Option<Confirmed>>,
        stop: CancellationToken,
    ) -> Self {
        let (orders, queue) = mpsc::channel(REQUESTS_MAX);
        let (confirmed, confirmed_until_ms) = watch::channel(None);
        let default = Duration::from_millis(Settings::default().primary_timeout_ms);
        let (primary_timeout, timeout) = watch::channel(default);
        let (terms, terms_seen) = watch::channel(LeaseTerms { wanted_ms: 0, margin_percent: 100 });
        let lease = watch::Sender::new(Lease::default());
        let task = Task {
            me,
            outgoing,
            answers,
            queue,
            confirmed,
            fresh,
            primary: None,
            timeout,
            terms: terms_seen,
            lease: lease.clone(),
            began_ms: boot_ms(),
        };
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task.run() => {}
            }
        });
        Self { orders, confirmed_until_ms, primary_timeout, terms, lease }
    }

    /// Waits until a majority of voters has said, after this call began, that nothing newer than `timeline` is sealed.
    ///
    /// # Errors
    /// When this node is not, or no longer, the primary of `timeline`. It does not end by itself while a majority
    /// is silent: give it a deadline.
    pub async fn confirm(&self, timeline: TimelineId) -> Result<(), Unconfirmed> {
        let (done, outcome) = oneshot::channel();
        if self.orders.send(Order::Confirm { timeline, done }).await.is_err() {
            return Err(Unconfirmed::NotPrimary(timeline));
        }
        outcome.await.unwrap_or(Err(Unconfirmed::NotPrimary(timeline)))
    }

    /// How long a confirmation lets commits be acknowledged, for the one that stands too: within a beat.
    pub fn set_primary_timeout(&self, timeout: Duration) {
        self.primary_timeout.send_if_modified(|present| std::mem::replace(present, timeout) != timeout);
    }

    /// For how long voters are asked to grant a lease, in milliseconds, and what is taken off it, in percent. Zero: for
    /// none, and what was granted counts no more; both within a beat.
    pub fn set_lease(&self, wanted_ms: u64, margin_percent: u64) {
        let terms = LeaseTerms { wanted_ms, margin_percent };
        self.terms.send_if_modified(|present| std::mem::replace(present, terms) != terms);
    }

    /// Whether a lease for `timeline` runs now: nobody newer has acknowledged anything yet.
    pub fn holds_lease(&self, timeline: TimelineId) -> bool {
        self.lease.borrow().holds(timeline, boot_ms())
    }

    /// No lease for `timeline` or an older one counts any more, from the moment that this returns.
    pub fn drop_lease(&self, timeline: TimelineId) {
        self.lease.send_modify(|lease| lease.dropped = lease.dropped.max(timeline));
    }

    /// From now on this node claims to be the primary, or no longer does.
    pub async fn claim(&self, claim: Option<Claim>) {
        if self.orders.send(Order::Claim(claim.map(Box::new))).await.is_err() {
            tracing::debug!("the confirmer has stopped");
        }
    }

    /// The voters changed; returns once majorities are counted among the new ones.
    pub async fn set_voters(&self, voters: BTreeSet<NodeId>) {
        let (done, taken) = oneshot::channel();
        let sent = self.orders.send(Order::SetVoters { voters, done }).await;
        if sent.is_err() || taken.await.is_err() {
            tracing::debug!("the confirmer has stopped");
        }
    }

    /// Whether a majority confirms the claim, and did so recently enough to acknowledge commits.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed_until_ms.borrow().is_some_and(|until_ms| boot_ms() < until_ms)
    }
}

struct Primary {
    claim: Claim,
    confirmation: Confirmation,
    /// What the engine was told last.
    told_until_ms: Option<u64>,
    /// The newest round that was started for reads and is not confirmed yet.
    in_flight: Option<u64>,
    /// Reads that the round in flight answers.
    covered: Vec<oneshot::Sender<Result<(), Unconfirmed>>>,
    /// Reads that came after it was started.
    waiting: Vec<oneshot::Sender<Result<(), Unconfirmed>>>,
}

struct Task {
    me: NodeId,
    outgoing: watch::Sender<Outgoing>,
    answers: mpsc::Receiver<Answer>,
    queue: mpsc::Receiver<Order>,
    confirmed: watch::Sender<Option<u64>>,
    /// For those that want to know how fresh what is safe here makes them.
    fresh: watch::Sender<Option<Confirmed>>,
    primary: Option<Primary>,
    timeout: watch::Receiver<Duration>,
    terms: watch::Receiver<LeaseTerms>,
    lease: watch::Sender<Lease>,
    /// Zero of the milliseconds that the pure part counts in, by [`boot_ms`].
    began_ms: u64,
}

impl Task {
    async fn run(mut self) {
        let mut beat = tokio::time::interval(BEAT_INTERVAL);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = beat.tick() => {
                    self.forget_gone();
                    self.start_round();
                    self.advance();
                }
                order = self.queue.recv() => match order {
                    Some(order) => self.obey(order),
                    None => return,
                },
                answer = self.answers.recv() => match answer {
                    Some(answer) => self.receive(answer),
                    None => return,
                },
            }
        }
    }

    /// Counted while the machine is suspended, too.
    fn now_ms(&self) -> u64 {
        boot_ms().saturating_sub(self.began_ms)
    }

    /// Every node beats; only for a primary the round also confirms.
    fn start_round(&mut self) -> u64 {
        let now = self.now_ms();
        let lease_ms = self.primary.as_ref().map_or(0, |_| self.terms.borrow().wanted_ms);
        let confirmation = self.primary.as_mut().map(|primary| &mut primary.confirmation);
        let mut round = 0;
        // Numbered and started in one piece: the agent numbers beats too, and a number that came twice would let an
        // answer to an old beat confirm a new read.
        self.outgoing.send_modify(|outgoing| {
            outgoing.round += 1;
            outgoing.lease_ms = lease_ms;
            round = outgoing.round;
            if let Some(confirmation) = confirmation {
                confirmation.start_round(round, now);
            }
        });
        round
    }

    /// Readers that gave up while no majority answered are not kept.
    fn forget_gone(&mut self) {
        if let Some(primary) = &mut self.primary {
            primary.covered.retain(|done| !done.is_closed());
            primary.waiting.retain(|done| !done.is_closed());
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Confirm { timeline, done } => {
                let Some(primary) = self.primary.as_mut().filter(|primary| primary.claim.timeline == timeline) else {
                    reply(done, Err(Unconfirmed::NotPrimary(timeline)));
                    return;
                };
                if primary.waiting.len() >= WAITING_MAX {
                    reply(done, Err(Unconfirmed::TooManyWait));
                    return;
                }
                primary.waiting.push(done);
                self.advance();
            }
            Order::Claim(claim) => self.take(claim.map(|claim| *claim)),
            Order::SetVoters { voters, done } => {
                if let Some(primary) = &mut self.primary {
                    primary.claim.voters.clone_from(&voters);
                    primary.confirmation.set_voters(voters);
                }
                self.advance();
                if done.send(()).is_err() {
                    tracing::trace!("nobody waits for the voters to be taken in");
                }
            }
        }
    }

    fn take(&mut self, claim: Option<Claim>) {
        if let Some(former) = self.primary.take() {
            let same = claim.as_ref().is_some_and(|claim| claim.timeline == former.claim.timeline);
            if !same {
                former.claim.engine.set_confirmed_until(None);
            }
            for done in former.covered.into_iter().chain(former.waiting) {
                reply(done, Err(Unconfirmed::NotPrimary(former.claim.timeline)));
            }
        }
        let timeline = claim.as_ref().map_or(TimelineId::NONE, |claim| claim.timeline);
        self.outgoing.send_modify(|outgoing| outgoing.confirm_timeline = timeline);
        self.confirmed.send_replace(None);
        self.fresh.send_replace(None);
        publish_lease(&self.lease, timeline, None);
        self.primary = claim.map(|claim| Primary {
            confirmation: Confirmation::new(self.me, claim.timeline, claim.voters.clone()),
            claim,
            told_until_ms: None,
            in_flight: None,
            covered: Vec::new(),
            waiting: Vec::new(),
        });
        self.start_round();
        self.advance();
    }

    fn receive(&mut self, answer: Answer) {
        if let Some(primary) = &mut self.primary
            && primary.claim.timeline == answer.timeline
        {
            primary.confirmation.on_reply(answer.from, answer.round, answer.confirmed);
            let margin_percent = self.terms.borrow().margin_percent;
            if let Some(until_ms) = counted_until_ms(answer.sent_at_ms, answer.lease_ms, margin_percent) {
                primary.confirmation.on_grant(answer.from, until_ms);
            }
            self.advance();
        }
    }

    /// Lets go what is confirmed, and starts a round for reads that none covers.
    fn advance(&mut self) {
        let leases = self.terms.borrow().wanted_ms > 0;
        let Some(primary) = &mut self.primary else { return };
        if !leases {
            primary.confirmation.forget_grants();
        }
        let (timeline, until_ms) = (primary.claim.timeline, primary.confirmation.leased_until_ms());
        publish_lease(&self.lease, timeline, until_ms.filter(|_| leases));
        let confirmed_round = primary.confirmation.confirmed_round();
        if primary.in_flight.is_some_and(|round| confirmed_round.is_some_and(|confirmed| confirmed >= round)) {
            primary.in_flight = None;
            for done in primary.covered.drain(..) {
                reply(done, Ok(()));
            }
        }
        let timeout_ms = u64::try_from(self.timeout.borrow().as_millis()).unwrap_or(u64::MAX);
        let until_ms = primary.confirmation.confirmed_until_ms(timeout_ms);
        if primary.told_until_ms != until_ms {
            primary.told_until_ms = until_ms;
            let until_ms = until_ms.map(|until_ms| until_ms.saturating_add(self.began_ms));
            self.confirmed.send_replace(until_ms);
            primary.claim.engine.set_confirmed_until(until_ms.map(Duration::from_millis));
            self.fresh.send_replace(primary.confirmation.confirmed_at_ms().map(|at_ms| Confirmed {
                timeline: primary.claim.timeline,
                at_ms: self.began_ms + at_ms,
                safe_lsn: *primary.claim.engine.safe().borrow(),
            }));
        }
        if primary.in_flight.is_none() && !primary.waiting.is_empty() {
            primary.covered = std::mem::take(&mut primary.waiting);
            let round = self.start_round();
            if let Some(primary) = &mut self.primary {
                primary.in_flight = Some(round);
            }
            // A cluster of one voter confirms itself at once.
            self.advance_alone();
        }
    }

    fn advance_alone(&mut self) {
        let alone = self.primary.as_ref().is_some_and(|primary| {
            let round = primary.confirmation.confirmed_round();
            primary.in_flight.is_some_and(|asked| round.is_some_and(|confirmed| confirmed >= asked))
        });
        if alone {
            self.advance();
        }
    }
}

fn publish_lease(lease: &watch::Sender<Lease>, timeline: TimelineId, until_ms: Option<u64>) {
    lease.send_if_modified(|lease| {
        let changed = (lease.timeline, lease.until_ms) != (timeline, until_ms);
        (lease.timeline, lease.until_ms) = (timeline, until_ms);
        changed
    });
}

/// A reader that went away is not told.
fn reply(done: oneshot::Sender<Result<(), Unconfirmed>>, outcome: Result<(), Unconfirmed>) {
    if done.send(outcome).is_err() {
        tracing::trace!("a reader went away before it was confirmed");
    }
}
