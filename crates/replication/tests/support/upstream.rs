//! An upstream on loopback: hooks that record what they are told, behind a real server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use understudy_replication::seed::{SeedSource, Seeder};
use understudy_replication::transport::{CONNECTION_WINDOW_BYTES, FRAME_BYTES_MAX, STREAM_WINDOW_BYTES};
use understudy_replication::{
    AckPosition, ConnectionId, ReplicationService, SenderSettings, ServingTimeline, Source, StandbyInfo, StreamState,
    UpstreamHooks,
};
use understudy_types::{Lsn, NodeId, TimelineHistory, TimelineId};

use super::{TestNode, until, within};

/// What the hooks were told of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    pub standby: StandbyInfo,
    pub state: StreamState,
    pub acked: AckPosition,
    pub connected: bool,
}

/// A node's hooks.
pub struct TestUpstream {
    source: Mutex<Option<Source>>,
    serving: Mutex<Option<ServingTimeline>>,
    sealed: Mutex<TimelineId>,
    history: Mutex<TimelineHistory>,
    seed_source: Mutex<Option<SeedSource>>,
    connections: watch::Sender<BTreeMap<u64, Connection>>,
    on_connected: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    damage: Mutex<Vec<(NodeId, Lsn)>>,
    seeds_past_damage: Mutex<bool>,
}

impl TestUpstream {
    /// The primary of the latest timeline of `history`.
    pub fn primary(node: &TestNode, history: &TimelineHistory) -> Arc<Self> {
        let serving = ServingTimeline { history: history.clone(), ended: CancellationToken::new() };
        Self::new(node.source(), history, Some(serving), TimelineId::NONE)
    }

    /// A node that has sealed for `election`.
    pub fn sealed(node: &TestNode, history: &TimelineHistory, election: TimelineId) -> Arc<Self> {
        Self::new(node.source(), history, None, election)
    }

    pub fn new(
        source: Source,
        history: &TimelineHistory,
        serving: Option<ServingTimeline>,
        sealed: TimelineId,
    ) -> Arc<Self> {
        Arc::new(Self {
            source: Mutex::new(Some(source)),
            serving: Mutex::new(serving),
            sealed: Mutex::new(sealed),
            history: Mutex::new(history.clone()),
            seed_source: Mutex::new(None),
            connections: watch::Sender::new(BTreeMap::new()),
            on_connected: Mutex::new(None),
            damage: Mutex::new(Vec::new()),
            seeds_past_damage: Mutex::new(false),
        })
    }

    /// Done once, when the next standby was taken on and nothing was read for it yet.
    pub fn when_connected(&self, action: impl FnOnce() + Send + 'static) {
        *self.on_connected.lock().expect("unpoisoned") = Some(Box::new(action));
    }

    /// Who was kept by damage of the log, and where it is, each time.
    pub fn damage(&self) -> Vec<(NodeId, Lsn)> {
        self.damage.lock().expect("unpoisoned").clone()
    }

    /// From now on whoever needs what is damaged is to be seeded past it.
    pub fn seed_past_damage(&self) {
        *self.seeds_past_damage.lock().expect("unpoisoned") = true;
    }

    pub fn forget_source(&self) {
        *self.source.lock().expect("unpoisoned") = None;
    }

    pub fn set_seed_source(&self, source: Option<SeedSource>) {
        *self.seed_source.lock().expect("unpoisoned") = source;
    }

    pub fn step_down(&self) {
        if let Some(serving) = self.serving.lock().expect("unpoisoned").take() {
            serving.ended.cancel();
        }
    }

    pub fn connections(&self) -> watch::Receiver<BTreeMap<u64, Connection>> {
        self.connections.subscribe()
    }

    /// Waits for connections as wanted.
    pub async fn until(
        &self,
        what: &str,
        wanted: impl FnMut(&BTreeMap<u64, Connection>) -> bool,
    ) -> BTreeMap<u64, Connection> {
        until(what, &mut self.connections.subscribe(), wanted).await
    }

    /// Waits until `node` streams and has acknowledged the flush of everything below `lsn`.
    pub async fn acked(&self, node: NodeId, lsn: Lsn) {
        let has = |c: &Connection| {
            c.connected && c.standby.node == node && c.state == StreamState::Streaming && c.acked.flush >= lsn
        };
        self.until("an acknowledgement", |connections| connections.values().any(has)).await;
    }

    fn change(&self, id: ConnectionId, change: impl FnOnce(&mut Connection)) {
        self.connections.send_modify(|connections| {
            let connection = connections.get_mut(&id.get()).expect("a connection that was made");
            assert!(connection.connected, "nothing is said of a connection that is over");
            change(connection);
        });
    }
}

impl UpstreamHooks for TestUpstream {
    fn source(&self) -> Option<Source> {
        self.source.lock().expect("unpoisoned").clone()
    }

    fn serving(&self) -> Option<ServingTimeline> {
        self.serving.lock().expect("unpoisoned").clone()
    }

    fn sealed_for(&self) -> TimelineId {
        *self.sealed.lock().expect("unpoisoned")
    }

    fn history(&self) -> TimelineHistory {
        self.history.lock().expect("unpoisoned").clone()
    }

    fn seed_source(&self) -> Option<SeedSource> {
        self.seed_source.lock().expect("unpoisoned").clone()
    }

    /// Node 99 is none.
    fn is_member(&self, node: NodeId) -> bool {
        node != NodeId::new(99)
    }

    fn seeds_past_damage(&self, standby: NodeId, at: Lsn) -> bool {
        self.damage.lock().expect("unpoisoned").push((standby, at));
        *self.seeds_past_damage.lock().expect("unpoisoned")
    }

    fn connected(&self, standby: StandbyInfo) -> Option<ConnectionId> {
        if let Some(action) = self.on_connected.lock().expect("unpoisoned").take() {
            action();
        }
        let connection =
            Connection { standby, state: StreamState::Startup, acked: AckPosition::default(), connected: true };
        let mut id = 0;
        self.connections.send_modify(|connections| {
            id = connections.len() as u64 + 1;
            connections.insert(id, connection);
        });
        Some(ConnectionId::new(id))
    }

    fn state(&self, connection: ConnectionId, state: StreamState) {
        self.change(connection, |connection| connection.state = state);
    }

    fn ack(&self, connection: ConnectionId, position: AckPosition) {
        self.change(connection, |connection| connection.acked = position);
    }

    fn disconnected(&self, connection: ConnectionId) {
        self.change(connection, |connection| connection.connected = false);
    }
}

/// A gRPC server with the replication service alone.
pub struct Server {
    pub address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Server {
    pub async fn start(hooks: &Arc<TestUpstream>) -> Self {
        Self::start_with(hooks, SenderSettings::default()).await
    }

    pub async fn start_with(hooks: &Arc<TestUpstream>, settings: SenderSettings) -> Self {
        Self::start_as(hooks, watch::channel(settings).1, None).await
    }

    pub async fn start_under(hooks: &Arc<TestUpstream>, settings: watch::Receiver<SenderSettings>) -> Self {
        Self::start_as(hooks, settings, None).await
    }

    /// A server that other nodes can be seeded from.
    pub async fn start_seeding(hooks: &Arc<TestUpstream>, seeder: &Arc<Seeder>) -> Self {
        Self::start_seeding_with(hooks, seeder, SenderSettings::default()).await
    }

    pub async fn start_seeding_with(hooks: &Arc<TestUpstream>, seeder: &Arc<Seeder>, settings: SenderSettings) -> Self {
        Self::start_as(hooks, watch::channel(settings).1, Some(Arc::clone(seeder))).await
    }

    async fn start_as(
        hooks: &Arc<TestUpstream>,
        settings: watch::Receiver<SenderSettings>,
        seeder: Option<Arc<Seeder>>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let stop = CancellationToken::new();
        let service = ReplicationService::under(Arc::clone(hooks), stop.clone(), settings);
        let service = match seeder {
            Some(seeder) => service.seeding(seeder),
            None => service,
        };
        let service = service.into_server();
        let serving = tonic::transport::Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX)
            .add_service(service)
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.clone().cancelled_owned());
        let task = tokio::spawn(async move { serving.await.expect("a server that ends in peace") });
        Self { address, stop, task }
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Ends every stream, then the server.
    pub async fn stop(self) {
        self.stop.cancel();
        within("the server to end", self.task).await.expect("no panic");
    }
}
