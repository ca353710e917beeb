//! What standbys stream from: this node's log, while it is the primary or has sealed for an election.
//!
//! The walsenders ask here, the agent decides: it says when the log is there, when a timeline is served, and when that
//! ends. Acknowledgements go straight to the sync list of the timeline that they belong to; a connection that was made
//! under an earlier one is not known to the next.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use understudy_core::sync::{Ack, WalSenderState};
use understudy_engine::Mark;
use understudy_replication::seed::SeedSource;
use understudy_replication::{
    AckPosition, ConnectionId, SenderSettings, ServingTimeline, Source, StandbyInfo, StreamState, UpstreamHooks,
};
use understudy_types::{Lsn, NodeId, TimelineHistory, TimelineId};

use crate::sync_list::SyncListTask;
use crate::telemetry::Telemetry;

/// The timeline that this node serves.
struct Served {
    timeline: ServingTimeline,
    sync: SyncListTask,
}

#[derive(Default)]
struct State {
    source: Option<Source>,
    seed_source: Option<SeedSource>,
    /// Completely.
    sealed_for: TimelineId,
    served: Option<Served>,
    /// By member: whom the walsenders may take on.
    members: Vec<NodeId>,
    next_connection: u64,
}

/// See the module.
pub struct Upstream {
    state: Mutex<State>,
    history: watch::Sender<TimelineHistory>,
    sender_settings: watch::Sender<SenderSettings>,
    telemetry: Telemetry,
}

impl Default for Upstream {
    fn default() -> Self {
        Self::new(Telemetry::off())
    }
}

impl Upstream {
    /// Nothing to stream yet.
    pub fn new(telemetry: Telemetry) -> Self {
        Self {
            state: Mutex::default(),
            history: watch::Sender::new(TimelineHistory::new()),
            sender_settings: watch::Sender::new(SenderSettings::default()),
            telemetry,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is one assignment: a panic leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The engine is open.
    pub fn set_source(&self, source: Source) {
        self.lock().source = Some(source);
    }

    /// What other nodes may be seeded from; none while that is not to be had.
    pub fn set_seed_source(&self, source: Option<SeedSource>) {
        self.lock().seed_source = source;
    }

    /// The engine is about to be closed.
    pub fn clear_source(&self) {
        let mut state = self.lock();
        (state.source, state.seed_source) = (None, None);
    }

    /// The cluster state moved.
    pub fn learn(&self, history: TimelineHistory, members: Vec<NodeId>) {
        self.lock().members = members;
        self.history.send_if_modified(|known| {
            let changed = *known != history;
            *known = history;
            changed
        });
    }

    /// The history of the cluster state, as this node has applied it.
    pub fn history_watch(&self) -> watch::Receiver<TimelineHistory> {
        self.history.subscribe()
    }

    /// For walsenders that begin from now on.
    pub fn set_sender_settings(&self, settings: SenderSettings) {
        self.sender_settings.send_if_modified(|present| std::mem::replace(present, settings) != settings);
    }

    /// What walsenders go by.
    pub fn sender_settings_watch(&self) -> watch::Receiver<SenderSettings> {
        self.sender_settings.subscribe()
    }

    /// This node has opened the latest timeline of `history`.
    pub fn serve(&self, history: TimelineHistory, sync: SyncListTask) {
        let timeline = ServingTimeline { history, ended: CancellationToken::new() };
        self.lock().served = Some(Served { timeline, sync });
    }

    /// This node serves no timeline any more: every stream of it ends.
    pub fn stop_serving(&self) {
        if let Some(served) = self.lock().served.take() {
            served.timeline.ended.cancel();
        }
    }

    /// This node's WAL stands for the election of `timeline`; zero: it does not.
    pub fn set_sealed_for(&self, timeline: TimelineId) {
        self.lock().sealed_for = timeline;
    }

    /// The sync list of the timeline that this node serves; none when it serves none.
    pub fn sync(&self) -> Option<SyncListTask> {
        self.lock().served.as_ref().map(|served| served.sync.clone())
    }
}

impl UpstreamHooks for Upstream {
    fn source(&self) -> Option<Source> {
        self.lock().source.clone()
    }

    fn serving(&self) -> Option<ServingTimeline> {
        self.lock().served.as_ref().map(|served| served.timeline.clone())
    }

    fn sealed_for(&self) -> TimelineId {
        self.lock().sealed_for
    }

    fn history(&self) -> TimelineHistory {
        self.history.borrow().clone()
    }

    fn seed_source(&self) -> Option<SeedSource> {
        self.lock().seed_source.clone()
    }

    fn is_member(&self, node: NodeId) -> bool {
        self.lock().members.contains(&node)
    }

    fn seeds_past_damage(&self, standby: NodeId, at: Lsn) -> bool {
        let (source, sync) = {
            let state = self.lock();
            (state.seed_source.clone(), state.served.as_ref().map(|served| served.sync.clone()))
        };
        let (Some(SeedSource { engine, .. }), Some(sync)) = (source, sync) else { return false };
        if sync.status().counts_on(standby) {
            return false;
        }
        // A seed begins with the segment that it ends in.
        let (size, visible) = (engine.wal().segment_size(), engine.visible().borrow().lsn);
        if size.segment_of(at) >= size.segment_of(visible) {
            return false;
        }
        // The next recovery must not need it either.
        tokio::task::spawn_blocking(move || {
            if let Err(error) = engine.store().flush() {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the store is not flushed: the next start may need damaged WAL"
                );
            }
        });
        true
    }

    fn connected(&self, standby: StandbyInfo) -> Option<ConnectionId> {
        let mut state = self.lock();
        let served = state.served.as_ref().filter(|served| served.timeline.history.latest() == standby.timeline)?;
        let sync = served.sync.clone();
        state.next_connection += 1;
        let id = ConnectionId::new(state.next_connection);
        drop(state);
        sync.connected(id, standby.node, standby.incarnation, standby.damage_epoch);
        Some(id)
    }

    fn state(&self, connection: ConnectionId, state: StreamState) {
        let state = match state {
            StreamState::Startup | StreamState::Stopping => WalSenderState::Startup,
            StreamState::Catchup => WalSenderState::Catchup,
            StreamState::Streaming => WalSenderState::Streaming,
        };
        if let Some(sync) = self.sync() {
            sync.state(connection, state);
        }
    }

    fn sent(&self, connection: ConnectionId, sent: Lsn) {
        if let Some(sync) = self.sync() {
            sync.sent(connection, sent);
        }
    }

    fn sending(&self, standby: NodeId, piece: Range<Lsn>, read_began: Instant) -> Vec<Mark> {
        self.telemetry.stages().map_or_else(Vec::new, |stages| stages.sending(standby, piece, read_began))
    }

    fn ack(&self, connection: ConnectionId, position: AckPosition) {
        if let Some(sync) = self.sync() {
            sync.acked(connection, Ack { write: position.write, flush: position.flush, apply: position.apply });
        }
    }

    fn disconnected(&self, connection: ConnectionId) {
        if let Some(sync) = self.sync() {
            sync.disconnected(connection);
        }
    }
}
