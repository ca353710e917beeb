//! Carrying out what [`understudy_core::reconcile`] says.

use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use understudy_core::command::{Command, Outcome};
use understudy_core::observation::FetchOrder;
use understudy_core::reconcile::{Following, NodeAction};
use understudy_engine::RejoinError;
use understudy_replication::{FetchConfig, FollowConfig, ReceiverStatus, WalFormat, fetch, follow};
use understudy_types::{Generation, Lsn, TimelineHistory, TimelineId};

use super::lead::RETRY_INTERVAL;
use super::seeding::Attempted;
use super::{Agent, AgentError, Busy, Follower, Primary};
use crate::confirmer::Claim;
use crate::freshness::boot_ms;
use crate::promises::PromiseFile;
use crate::sync_list::SyncListTask;

/// How something that ran beside the agent ended.
pub enum Done {
    /// The seal is on disk and everything before it is flushed, or that failed.
    Sealed {
        /// Comes back.
        file: Box<PromiseFile>,
        /// The seal.
        outcome: Result<(), AgentError>,
    },
    /// The damage is over on disk too, or that failed.
    DamageCleared {
        /// Comes back.
        file: Box<PromiseFile>,
        /// Whether it is.
        outcome: Result<(), AgentError>,
    },
    /// It is on disk how long a lease this node may grant, or not.
    LeasePromised {
        /// Comes back.
        file: Box<PromiseFile>,
        /// The length, in milliseconds; zero for none.
        lease_ms: u64,
        /// Whether it is.
        outcome: Result<(), AgentError>,
    },
    /// It is on disk that this node does not count, or not.
    DamageMarked {
        /// Comes back.
        file: Box<PromiseFile>,
        /// Whether it is.
        outcome: Result<(), AgentError>,
        /// Why it is to be seeded.
        why: String,
    },
    /// An attempt to be seeded ended.
    Attempted(Attempted),
    /// The WAL was cut back, or the store is beyond that.
    Rejoined(Result<(), RejoinError>),
    /// The timeline is open, or not.
    Opened {
        /// Which.
        timeline: TimelineId,
        /// Why not.
        outcome: Result<(), String>,
    },
    /// The walreceiver has ended.
    StoppedFollowing,
    /// The fetch ended.
    Fetched(Result<Lsn, String>),
    /// The leader's command was answered.
    Proposed,
    /// Leadership was handed over, or not.
    HandedOver,
    /// Raft's answer to ClearDamage.
    DamageRecorded,
    /// A step towards the wanted members has ended.
    MembersChanged,
}

impl Agent {
    pub(super) async fn act(&mut self, action: NodeAction) {
        match action {
            NodeAction::Seal { timeline } => self.seal(timeline).await,
            NodeAction::Fetch { election, source, until } => {
                self.fetch(FetchOrder { election, winner: self.me.node_id, source, until })
            }
            NodeAction::Rejoin { history } => self.rejoin(history),
            NodeAction::Open { history, safe_lsn } => self.open(history, safe_lsn),
            NodeAction::Follow { following, history: _ } => self.follow(following),
            NodeAction::StopFollowing => self.stop_following_first(),
            NodeAction::Seed { why } => self.begin_seed(why),
            NodeAction::ProposeClearDamage { generation, damage_epoch } => {
                self.propose_clear_damage(generation, damage_epoch)
            }
            NodeAction::ClearDamage { damage_epoch } => self.clear_damage(damage_epoch),
        }
    }

    /// Before this node grants a longer lease than ever, and once it has stopped granting such ones: a new process
    /// holds itself bound by what is on the disk (INV-LINEAR).
    pub(super) fn promise_lease(&mut self) {
        if self.busy.is_some() {
            return;
        }
        let Some(mut file) = self.promise_file.take() else { return };
        let mut changed = None;
        self.standing.send_if_modified(|standing| {
            changed = standing.grants.to_promise(boot_ms());
            false
        });
        let Some(lease_ms) = changed else {
            self.promise_file = Some(file);
            return;
        };
        self.begin(None);
        self.beside(move || {
            let outcome = file.allow_lease(lease_ms).map_err(AgentError::from);
            Done::LeasePromised { file: Box::new(file), lease_ms, outcome }
        });
    }

    fn clear_damage(&mut self, damage_epoch: u64) {
        let Some(mut file) = self.promise_file.take() else { return };
        self.begin(None);
        self.beside(move || {
            let outcome = file.clear_damage(damage_epoch).map_err(AgentError::from);
            Done::DamageCleared { file: Box::new(file), outcome }
        });
    }

    /// A walreceiver runs until it is told to stop. One that does not is started again.
    pub(super) fn notice_dead_follower(&mut self) {
        if self.follower.as_ref().is_some_and(|follower| follower.task.is_finished()) {
            tracing::error!("the walreceiver has ended by itself");
            self.follower = None;
        }
    }

    /// An action begins; the next one waits for its end. `order`: when it is a fetch.
    pub(super) fn begin(&mut self, order: Option<FetchOrder>) -> CancellationToken {
        let cancel = CancellationToken::new();
        self.busy = Some(Busy { order, cancel: cancel.clone() });
        cancel
    }

    /// Runs `work` where it may block, and tells the agent how it ended.
    pub(super) fn beside(&self, work: impl FnOnce() -> Done + Send + 'static) {
        let done = self.done_tx.clone();
        tokio::task::spawn_blocking(move || {
            if done.blocking_send(work()).is_err() {
                tracing::debug!("the agent has ended");
            }
        });
    }

    /// No primary any more: nothing is acknowledged, confirmed or streamed by this node from here on.
    pub(super) async fn step_down(&mut self, why: &str) {
        self.upstream.set_sealed_for(TimelineId::NONE);
        self.upstream.stop_serving();
        if let Some(primary) = self.primary.take() {
            tracing::info!(timeline = %primary.timeline, why, "this node is not the primary any more");
            self.engine.set_confirmed_until(None);
            self.confirmer.drop_lease(primary.timeline);
            primary.sync.stop();
            self.confirmer.claim(None).await;
            self.control.stand_aside(false);
        }
    }

    async fn seal(&mut self, timeline: TimelineId) {
        let Some(mut file) = self.promise_file.take() else { return };
        self.begin(None);
        self.seal_complete = false;
        self.step_down("it seals for a newer timeline").await;
        let following = self.stop_following();
        let (engine, standing) = (self.engine.clone(), self.standing.clone());
        tracing::info!(%timeline, "sealing");
        self.beside(move || {
            let promised = file.seal(timeline).map_err(AgentError::from);
            let outcome = promised.and_then(|()| {
                // On disk: from this moment on no beat of an older primary is confirmed.
                standing.send_modify(|standing| standing.sealed = standing.sealed.max(timeline));
                // The walreceiver acknowledges no more once its task has ended: what is flushed below is all there is.
                wait_for_end(following);
                let sealed = engine.seal().map(drop);
                sealed.map_err(|error| AgentError::Action { action: "the seal", why: error.to_string() })
            });
            Done::Sealed { file: Box::new(file), outcome }
        });
    }

    fn rejoin(&mut self, history: TimelineHistory) {
        self.begin(None);
        let engine = self.engine.clone();
        tracing::info!(wal_end = %engine.wal().end(), timeline = %history.latest(), "cutting the wal back to the history");
        self.beside(move || Done::Rejoined(engine.rejoin(&history).map(drop)));
    }

    fn open(&mut self, history: TimelineHistory, safe_lsn: Lsn) {
        self.begin(None);
        let timeline = history.latest();
        // Said before it is tried: whatever happens, this process never tries it again (INV-ONE-PRIMARY).
        self.opened = Some(timeline);
        let engine = self.engine.clone();
        tracing::info!(%timeline, wal_end = %engine.wal().end(), %safe_lsn, "opening a timeline");
        self.beside(move || {
            let outcome = engine.open_primary(&history, safe_lsn).map_err(|error| error.to_string());
            Done::Opened { timeline, outcome }
        });
    }

    fn fetch(&mut self, order: FetchOrder) {
        let Some(source) = self.cluster.members.get(&order.source).map(|member| member.address.clone()) else { return };
        if let Err(error) = self.engine.allow_fetch(order.until) {
            tracing::warn!(%error, "cannot fetch");
            return;
        }
        let cancel = self.begin(Some(order));
        let config = FetchConfig {
            source_address: source,
            system_id: self.cluster.system_id,
            format: WalFormat::of(&self.engine),
            node: self.me.node_id,
            incarnation: self.incarnation(),
            election: order.election,
            until: order.until,
            timing: *self.receiver_timing.borrow(),
        };
        let (log, history, done) = (self.engine.clone(), self.cluster.timeline_history(), self.done_tx.clone());
        tokio::spawn(async move {
            let outcome =
                fetch(Arc::new(log), config, history, cancel.clone()).await.map_err(|error| error.to_string());
            if outcome.is_err() {
                tokio::select! {
                    () = cancel.cancelled() => {}
                    () = tokio::time::sleep(RETRY_INTERVAL) => {}
                }
            }
            if done.send(Done::Fetched(outcome)).await.is_err() {
                tracing::debug!("the agent has ended");
            }
        });
    }

    /// A fetch for an election that is over, or by an order that was replaced, gives way.
    pub(super) fn break_off_stale_fetch(&mut self) {
        let Some(busy) = &self.busy else { return };
        if let Some(order) = busy.order {
            let open = self.cluster.election.as_ref().is_some_and(|election| election.timeline == order.election);
            if !open || self.fetch_order != Some(order) {
                busy.cancel.cancel();
            }
        }
    }

    fn follow(&mut self, following: Following) {
        let Some(member) = self.cluster.members.get(&following.primary) else { return };
        let config = FollowConfig {
            upstream_address: member.address.clone(),
            system_id: self.cluster.system_id,
            format: WalFormat::of(&self.engine),
            node: self.me.node_id,
            incarnation: self.incarnation(),
            damage_epoch: self.promises.damage_epoch,
            timeline: following.timeline,
            sealed: self.promises.sealed,
        };
        tracing::info!(primary = %member.name, timeline = %following.timeline, wal_end = %self.engine.wal().end(), "following");
        self.engine.unseal();
        self.seal_complete = false;
        self.upstream.set_sealed_for(TimelineId::NONE);
        let stop = self.stop.child_token();
        let (status_tx, status) = watch::channel(ReceiverStatus::default());
        let log = Arc::new(self.engine.clone());
        let (timing, history) = (self.receiver_timing.subscribe(), self.upstream.history_watch());
        let task = tokio::spawn(follow(log, config, timing, history, stop.clone(), status_tx));
        self.follower = Some(Follower { following, stop, status, task });
    }

    /// The walreceiver's task, which ends soon.
    pub(super) fn stop_following(&mut self) -> Option<JoinHandle<()>> {
        let follower = self.follower.take()?;
        follower.stop.cancel();
        Some(follower.task)
    }

    /// Nothing else happens until the walreceiver has ended.
    fn stop_following_first(&mut self) {
        if let Some(task) = self.stop_following() {
            self.begin(None);
            self.beside(move || {
                wait_for_end(Some(task));
                Done::StoppedFollowing
            });
        }
    }

    fn propose_clear_damage(&mut self, generation: Generation, damage_epoch: u64) {
        if self.clearing_damage {
            return;
        }
        self.clearing_damage = true;
        let command = Command::ClearDamage { generation, node: self.me.node_id, damage_epoch };
        let (control, done) = (self.control.clone(), self.done_tx.clone());
        tokio::spawn(async move {
            match control.propose(command).await {
                Ok(Outcome::Applied { .. }) => tracing::info!(damage_epoch, "raft has recorded the damage"),
                Ok(Outcome::Rejected { reason }) => tracing::info!(%reason, "raft has not recorded the damage"),
                Err(error) => tracing::info!(%error, "raft could not be told of the damage"),
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
            if done.send(Done::DamageRecorded).await.is_err() {
                tracing::debug!("the agent has ended");
            }
        });
    }

    /// Takes in how an action ended.
    pub(super) async fn finish(&mut self, done: Done) -> Result<(), AgentError> {
        match done {
            Done::StoppedFollowing => self.busy = None,
            Done::Proposed => self.leading.proposed(),
            Done::HandedOver => self.leading.handed_over(),
            Done::DamageRecorded => self.clearing_damage = false,
            Done::MembersChanged => self.leading.is_changing_members = false,
            Done::Sealed { file, outcome } => {
                self.busy = None;
                self.promises = file.get();
                self.promise_file = Some(*file);
                self.publish_standing();
                outcome?;
                self.seal_complete = true;
                self.upstream.set_sealed_for(self.promises.sealed);
                tracing::info!(timeline = %self.promises.sealed, wal_end = %self.engine.wal().end(), "sealed");
            }
            Done::DamageCleared { file, outcome } => {
                self.busy = None;
                self.promises = file.get();
                self.promise_file = Some(*file);
                outcome?;
                tracing::info!(damage_epoch = self.promises.damage_epoch, "this node counts again");
            }
            Done::LeasePromised { file, lease_ms, outcome } => {
                self.busy = None;
                self.promises = file.get();
                self.promise_file = Some(*file);
                outcome?;
                self.standing.send_modify(|standing| standing.grants.promised(lease_ms));
                tracing::info!(lease_ms, "leases of this length may be granted to the primary");
            }
            Done::DamageMarked { file, outcome, why } => {
                self.busy = None;
                self.promises = file.get();
                self.promise_file = Some(*file);
                outcome?;
                self.seed_may_begin(why);
            }
            Done::Attempted(attempted) => self.attempted(attempted),
            Done::Rejoined(outcome) => {
                self.busy = None;
                self.rejoined(outcome)?;
            }
            Done::Opened { timeline, outcome } => {
                self.busy = None;
                self.opened(timeline, outcome).await;
            }
            Done::Fetched(outcome) => {
                self.busy = None;
                match outcome {
                    Ok(end) => tracing::info!(%end, "fetched"),
                    Err(why) => {
                        tracing::warn!(%why, "could not fetch the missing wal");
                        self.could_not_fetch = Some(self.cluster.fence());
                    }
                }
            }
        }
        Ok(())
    }

    fn rejoined(&mut self, outcome: Result<(), RejoinError>) -> Result<(), AgentError> {
        match outcome {
            Ok(()) => tracing::info!(wal_end = %self.engine.wal().end(), "the wal lies on the history"),
            Err(error @ RejoinError::NeedsUndo { .. }) => {
                // What is applied only grows: the next look finds the same and says what follows.
                tracing::warn!(%error, "the wal cannot be cut back");
            }
            Err(error) => return Err(AgentError::Action { action: "cutting the wal back", why: error.to_string() }),
        }
        Ok(())
    }

    async fn opened(&mut self, timeline: TimelineId, outcome: Result<(), String>) {
        if let Err(why) = outcome {
            tracing::error!(%timeline, %why, "the timeline could not be opened");
            self.failed_to_open = Some(timeline);
            return;
        }
        if self.cluster.fence() > timeline {
            // An election began meanwhile: the next step seals, nothing was acknowledged.
            tracing::warn!(%timeline, "the timeline was opened too late");
            return;
        }
        self.seal_complete = false;
        self.control.stand_aside(true);
        let sync = SyncListTask::start(self.me.node_id, timeline, &self.cluster, &self.engine, &self.control);
        for (node, report) in self.table.reports() {
            sync.heard(node, report);
        }
        self.confirmer
            .claim(Some(Claim { timeline, voters: self.cluster.voters(), engine: self.engine.clone() }))
            .await;
        self.upstream.set_sealed_for(TimelineId::NONE);
        self.upstream.serve(self.cluster.timeline_history(), sync.clone());
        self.primary = Some(Primary { timeline, sync, opened_at: Instant::now(), unconfirmed_since: None });
        tracing::info!(%timeline, wal_end = %self.engine.wal().end(), "this node is the primary");
    }
}

/// Blocks until a walreceiver that was told to stop has ended. For blocking threads only.
fn wait_for_end(task: Option<JoinHandle<()>>) {
    if let Some(task) = task
        && let Err(error) = Handle::current().block_on(task)
    {
        tracing::warn!(%error, "the walreceiver did not end well");
    }
}
