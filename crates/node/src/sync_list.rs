//! The primary's sync list at work: the shell around [`SyncManager`], one for each timeline that this node opens.
//!
//! Acknowledgements come in on the walsenders' tasks and are taken in there, under a short lock: the
//! positions that follow (written, safe, applied) go to the engine in the same breath, because commits wait for them. Changes of the list go to Raft from
//! a task of their own, one proposal at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use understudy_control::Control;
use understudy_core::command::Outcome;
use understudy_core::observation::NodeReport;
use understudy_core::state::ClusterState;
use understudy_core::sync::{Ack, ConnectionId, Report, SyncManager, SyncStatus, WaitsFor, WalSenderState};
use understudy_engine::Engine;
use understudy_types::{DurabilityLevel, Incarnation, Lsn, NodeId, TimelineId};

use crate::standby_stats::{StandbyStats, StreamStats};

/// A proposal that failed, or that the state machine here has not caught up with, is looked at again after this.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

struct Shell {
    manager: Mutex<SyncManager>,
    /// For people.
    stats: Mutex<StandbyStats>,
    began: Instant,
    engine: Engine,
    /// The manager may have something to propose.
    changed: Notify,
    stop: CancellationToken,
}

/// Handle of one timeline's sync list. Clones are the same.
#[derive(Clone)]
pub struct SyncListTask {
    shell: Arc<Shell>,
}

impl SyncListTask {
    /// Starts for `timeline`, which this node has just opened.
    pub fn start(
        me: NodeId,
        timeline: TimelineId,
        cluster: &Arc<ClusterState>,
        engine: &Engine,
        control: &Control,
    ) -> Self {
        let safe_lsn = *engine.safe().borrow();
        let manager = SyncManager::new(me, timeline, safe_lsn, cluster);
        let shell = Arc::new(Shell {
            manager: Mutex::new(manager),
            stats: Mutex::default(),
            began: Instant::now(),
            engine: engine.clone(),
            changed: Notify::new(),
            stop: CancellationToken::new(),
        });
        let task = Self { shell };
        tokio::spawn(task.clone().follow_flushes());
        tokio::spawn(task.clone().propose(control.clone()));
        let grace = Duration::from_millis(cluster.settings.primary_timeout_ms);
        tokio::spawn(task.clone().end_grace(grace));
        task
    }

    /// Ends it: nothing becomes safe any more, nothing is proposed.
    pub fn stop(&self) {
        let _manager = self.lock();
        self.shell.stop.cancel();
    }

    fn lock(&self) -> MutexGuard<'_, SyncManager> {
        // A panic under the lock leaves a manager that is as true as before: it only ever changes by whole events.
        self.shell.manager.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One event; what became safe by it is told to the engine, in order.
    fn handle(&self, event: impl FnOnce(&mut SyncManager)) {
        let mut manager = self.lock();
        // Under the lock: after `stop` nothing of this timeline becomes safe any more.
        if self.shell.stop.is_cancelled() {
            return;
        }
        event(&mut manager);
        let engine = &self.shell.engine;
        engine.advance_remote_write(manager.remote_write_lsn());
        engine.advance_safe(manager.safe_lsn());
        engine.advance_remote_apply(manager.remote_apply_lsn());
        drop(manager);
        self.shell.changed.notify_one();
    }

    /// A beat of `node` came.
    pub fn heard(&self, node: NodeId, report: &NodeReport) {
        let &NodeReport { incarnation, damaged, damage_epoch, no_sync, .. } = report;
        self.handle(|manager| manager.handle_report(node, Report { incarnation, damaged, damage_epoch, no_sync }));
    }

    /// Raft's state moved.
    pub fn learn_state(&self, cluster: &Arc<ClusterState>) {
        self.handle(|manager| manager.handle_cluster_state(cluster));
    }

    /// A standby began to stream.
    pub fn connected(&self, id: ConnectionId, node: NodeId, incarnation: Incarnation, damage_epoch: u64) {
        self.stats().connected(id, node, unix_ms());
        self.handle(|manager| manager.handle_connected(id, node, incarnation, damage_epoch));
    }

    /// Its walsender is in another state.
    pub fn state(&self, id: ConnectionId, state: WalSenderState) {
        self.handle(|manager| manager.handle_state(id, state));
    }

    /// Everything up to `sent` is on its way to it.
    pub fn sent(&self, id: ConnectionId, sent: Lsn) {
        let now_us = self.now_us();
        self.stats().sent(id, sent, now_us);
    }

    /// It acknowledged.
    pub fn acked(&self, id: ConnectionId, ack: Ack) {
        let now_us = self.now_us();
        self.stats().acked(id, ack, now_us, unix_ms());
        self.handle(|manager| manager.handle_ack(id, ack));
    }

    /// Its stream ended.
    pub fn disconnected(&self, id: ConnectionId) {
        self.handle(|manager| manager.handle_disconnected(id));
    }

    /// For people.
    pub fn status(&self) -> SyncStatus {
        self.lock().status()
    }

    /// For people: the stream of a standby; none when it was never connected on this timeline.
    pub fn stream(&self, node: NodeId) -> Option<StreamStats> {
        let now_us = self.now_us();
        self.stats().of(node, now_us)
    }

    /// For people: for whom each of these commits waits, by the level and the position that it waits for.
    pub fn waits_for(&self, commits: impl Iterator<Item = (DurabilityLevel, Lsn)>) -> Vec<WaitsFor> {
        let manager = self.lock();
        commits.map(|(level, lsn)| manager.waits_for(level, lsn)).collect()
    }

    fn stats(&self) -> MutexGuard<'_, StandbyStats> {
        // Figures for people: half of an update is as good as none.
        self.shell.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.shell.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    async fn follow_flushes(self) {
        let mut flushed = self.shell.engine.wal().flushed();
        let stop = self.shell.stop.clone();
        loop {
            let lsn = *flushed.borrow_and_update();
            self.handle(|manager| manager.handle_local_flush(lsn));
            tokio::select! {
                () = stop.cancelled() => return,
                changed = flushed.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn end_grace(self, grace: Duration) {
        tokio::select! {
            () = self.shell.stop.cancelled() => {}
            () = tokio::time::sleep(grace) => self.handle(SyncManager::handle_grace_over),
        }
    }

    async fn propose(self, control: Control) {
        loop {
            let proposal = self.lock().poll_proposal();
            let retry = proposal.is_some();
            if let Some(command) = proposal {
                match control.propose(command.clone()).await {
                    Ok(Outcome::Applied { generation }) => {
                        tracing::info!(%generation, ?command, "the sync list was changed")
                    }
                    Ok(Outcome::Rejected { reason }) => {
                        tracing::info!(%reason, "a change of the sync list was rejected")
                    }
                    Err(error) => tracing::warn!(%error, "a change of the sync list could not be proposed"),
                }
            }
            let wait = async {
                if retry {
                    tokio::time::sleep(RETRY_INTERVAL).await;
                } else {
                    self.shell.changed.notified().await;
                }
            };
            tokio::select! {
                () = self.shell.stop.cancelled() => return,
                () = wait => {}
            }
        }
    }
}

fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
