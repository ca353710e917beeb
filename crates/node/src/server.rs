//! One server process: puts the parts together, and takes them apart again.
//!
//! The order matters. The data directory is locked before anything is read; Raft runs before the engine, because a
//! node learns from Raft which cluster it belongs to; the engine opens before the agent gives the node a role. A
//! failed log, store or Raft log ends the process at once: nothing may be acknowledged after it, and recovery starts
//! over from the disk.

mod belong;
mod error;
mod opening;

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use understudy_control::{Control, ControlConfig};
use understudy_core::lease::Grants;
use understudy_core::state::ClusterState;
use understudy_engine::Engine;
use understudy_replication::seed::{Seeder, SeederSettings, swap};
use understudy_rpc::v1;
use understudy_types::{Incarnation, SystemId};
use understudy_wal::files::{Files, RealFiles};

use crate::agent::seeding::Carried;
use crate::agent::{Agent, AgentEnd, AgentParts, Table};
use crate::bootstrap;
use crate::config::ServerConfig;
use crate::confirmer::Confirmer;
use crate::damage;
use crate::freshness::boot_ms;
use crate::http::HttpPort;
use crate::identity::{DataDir, random_u64};
use crate::mesh::{BEAT_INTERVAL, EVENTS_MAX, Greeting, Me, MeshEvent, MeshHandles, MeshService, Outgoing, Standing};
use crate::promises::PromiseFile;
use crate::services::{self, Places, ServiceParts};
use crate::telemetry::collect::{Collector, CollectorParts};
use crate::telemetry::{self, Telemetry};
use crate::upstream::Upstream;
use crate::view::NodeView;
use error::with_causes;
use opening::{Opened, learn_voters};

pub use error::ServerError;

/// Answers of voters that wait for the confirmer.
const ANSWERS_MAX: usize = 1024;
/// How long requests may hold a store that is to be replaced: longer than a request may take.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(60);
const RELEASE_LOOK: Duration = Duration::from_millis(10);
/// How long streams and requests may take to end when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Who this node is, for those that ask before there is a cluster.
struct Greeter {
    data_dir: crate::identity::Identity,
    config: ServerConfig,
    initial_cluster: bootstrap::InitialCluster,
    incarnation: Incarnation,
    control: Control,
}

impl Greeting for Greeter {
    fn identify(&self) -> v1::IdentifyResponse {
        let state = self.control.state();
        let system_id = state.borrow().state.system_id;
        let known = if system_id == SystemId::default() { self.data_dir.system_id } else { system_id };
        v1::IdentifyResponse {
            node_id: self.data_dir.node_id.get(),
            incarnation: self.incarnation.get(),
            name: self.config.name.to_string(),
            address: self.config.advertise.clone(),
            system_id: known.get(),
            empty: known == SystemId::default() && self.control.is_pristine(),
            initial_cluster: bootstrap::canonical(&self.initial_cluster),
            witness: false,
            failover_priority: self.config.failover_priority,
            no_sync: self.config.no_sync,
            segment_size: self.data_dir.segment_size.get(),
        }
    }
}

/// Runs a server until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start, or ends by itself.
pub async fn run(config: ServerConfig) -> Result<(), ServerError> {
    telemetry::init(config.log_format, &config.log_level)?;
    config.check()?;
    abort_on_panic();
    let stop = CancellationToken::new();
    let signals = stop.clone();
    tokio::spawn(async move {
        wait_for_signal().await;
        tracing::info!("stopping");
        signals.cancel();
    });
    Server::start(config, stop).await?.run().await
}

async fn wait_for_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut terminate), Ok(mut interrupt)) => tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        },
        (terminate, interrupt) => {
            tracing::error!(?terminate, ?interrupt, "signals cannot be received: stop the server by SIGKILL");
            std::future::pending::<()>().await;
        }
    }
}

/// What stands before the node belongs to a cluster.
struct Server {
    config: ServerConfig,
    /// Of the store that is open, or was last.
    held: Weak<()>,
    files: Arc<dyn Files>,
    data_dir: DataDir,
    me: Me,
    control: Control,
    confirmer: Confirmer,
    upstream: Arc<Upstream>,
    seeder: Arc<Seeder>,
    view: watch::Sender<NodeView>,
    outgoing: watch::Sender<Outgoing>,
    standing: watch::Sender<Standing>,
    /// None once it lives.
    unborn: Option<(PromiseFile, mpsc::Receiver<MeshEvent>)>,
    mesh: MeshHandles,
    health: services::Health,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
    telemetry: Telemetry,
    stop: CancellationToken,
    /// Cancelled last, when the node has no role any more.
    stop_serving: CancellationToken,
}

impl Server {
    async fn start(config: ServerConfig, stop: CancellationToken) -> Result<Self, ServerError> {
        let files: Arc<dyn Files> = Arc::new(RealFiles);
        let data_dir = DataDir::open(&*files, &config.data_dir, &config.name, config.segment_size)?;
        // Before anything in it is opened: a seed that was complete takes the place of the old data.
        if swap::is_due(&config.data_dir) {
            damage::forget(&config.data_dir)?;
        }
        swap::complete(&config.data_dir)?;
        damage::finish(&config.data_dir)?;
        let seeder = Arc::new(Seeder::new(&config.data_dir, SeederSettings::default()));
        let address = config.listen;
        let listener = TcpListener::bind(address).await.map_err(|source| ServerError::Listen { address, source })?;
        let http = match config.http_listen {
            Some(address) => {
                Some(HttpPort::bind(address).await.map_err(|source| ServerError::ListenHttp { address, source })?)
            }
            None => None,
        };
        let me = Me { node_id: data_dir.identity().node_id, incarnation: Incarnation::new(random_u64()?) };
        let telemetry = Telemetry::start(config.name.as_str(), me.node_id, http.is_some())?;
        tracing::info!(name = %config.name, node_id = %me.node_id, incarnation = %me.incarnation, %address,
            data_dir = %config.data_dir.display(), "starting");

        let control = Control::start(ControlConfig {
            node_id: me.node_id,
            data_dir: config.data_dir.clone(),
            address: config.advertise.clone(),
        })
        .await?;
        if control.is_pristine() && data_dir.identity().system_id != SystemId::default() {
            // Its votes are gone: under this id it could vote twice.
            return Err(ServerError::RaftLogLost { path: config.data_dir.clone() });
        }
        // Until the agent runs nobody would plan on a node that leads.
        control.stand_aside(data_dir.identity().system_id != SystemId::default());
        let stop_serving = CancellationToken::new();
        let (outgoing, outgoing_rx) = watch::channel(Outgoing::default());
        // Before the port is served: what this node has promised binds its first answer to a beat.
        let promises = PromiseFile::open(Arc::clone(&files), data_dir.path(), data_dir.has_data())?;
        let promised = promises.get();
        let standing = watch::Sender::new(Standing {
            system_id: data_dir.identity().system_id,
            sealed: promised.sealed,
            voters_version: None,
            grants: Grants::at_start(promised.lease_ms, boot_ms()),
        });
        let (events_tx, events) = mpsc::channel(EVENTS_MAX);
        let (answers_tx, answers) = mpsc::channel(ANSWERS_MAX);
        let (fresh, confirmed) = watch::channel(None);
        let mesh = MeshHandles {
            me,
            outgoing: outgoing_rx,
            standing: standing.clone(),
            events: events_tx,
            answers: answers_tx,
            confirmed,
            heard: Arc::default(),
        };
        let confirmer = Confirmer::spawn(me.node_id, outgoing.clone(), answers, fresh, stop_serving.clone());
        let upstream = Arc::new(Upstream::new(telemetry.clone()));
        let (view, view_rx) = watch::channel(NodeView {
            me: me.node_id,
            cluster: Arc::new(ClusterState::default()),
            leadership: control.leadership().borrow().clone(),
            engine: None,
            primary_of: None,
            nodes: std::collections::BTreeMap::new(),
            blocked: None,
            waiting_for: Some("the node is starting".to_owned()),
        });
        let greeter = Greeter {
            data_dir: data_dir.identity().clone(),
            initial_cluster: config.initial_cluster.iter().cloned().collect(),
            config: config.clone(),
            incarnation: me.incarnation,
            control: control.clone(),
        };
        let places = Arc::new(Places::new(services::room_for(config.max_connections)));
        if let Some(http) = http {
            let name = config.name.to_string();
            let parts = CollectorParts {
                view: view_rx.clone(),
                confirmer: confirmer.clone(),
                telemetry: telemetry.clone(),
                places: Arc::clone(&places),
                upstream: Arc::clone(&upstream),
            };
            http.serve(Collector::new(name, parts), stop_serving.clone());
        }
        let (health, serving) = services::spawn(ServiceParts {
            listener,
            places,
            view: view_rx,
            confirmer: confirmer.clone(),
            confirmed: mesh.confirmed.clone(),
            heard: Arc::clone(&mesh.heard),
            mesh: MeshService::new(mesh.clone(), greeter, stop_serving.clone()),
            control: control.clone(),
            config: Arc::new(config.clone()),
            upstream: Arc::clone(&upstream),
            seeder: Arc::clone(&seeder),
            telemetry: telemetry.clone(),
            stop: stop_serving.clone(),
        })
        .await;
        Ok(Self {
            config,
            held: Weak::new(),
            files,
            data_dir,
            me,
            control,
            confirmer,
            upstream,
            seeder,
            view,
            outgoing,
            standing,
            unborn: Some((promises, events)),
            mesh,
            health,
            serving,
            telemetry,
            stop,
            stop_serving,
        })
    }

    async fn run(mut self) -> Result<(), ServerError> {
        let outcome = self.live().await;
        if let Err(error) = &outcome {
            tracing::error!(%error, "the server stops");
        }
        self.health.stopping().await;
        self.stop_serving.cancel();
        if let Err(error) = self.control.shutdown().await {
            tracing::warn!(%error, "raft did not stop in order");
        }
        match tokio::time::timeout(STOP_TIMEOUT, self.serving).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the grpc port ended badly"),
            Ok(Err(error)) => tracing::warn!(%error, "the grpc port ended badly"),
            Err(_) => tracing::warn!("connections did not end in time"),
        }
        self.telemetry.stop().await;
        tracing::info!("stopped");
        outcome
    }

    async fn live(&mut self) -> Result<(), ServerError> {
        let stop = self.stop.clone();
        let mut control_failure = self.control.failure();
        let Some((promises, mut events)) = self.unborn.take() else {
            return Err(ServerError::Failed("it has lived already".to_owned()));
        };
        let mut carried = Carried::new(promises);
        let cluster = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            failure = first_failure(&mut control_failure) => return Err(ServerError::Failed(failure)),
            () = hear(&mut events, &mut carried.table) => return Err(ServerError::Failed("the mesh ended".to_owned())),
            cluster = self.belong() => cluster?,
        };
        loop {
            let Opened { engine, held } = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                failure = first_failure(&mut control_failure) => return Err(ServerError::Failed(failure)),
                () = learn_voters(self.control.state(), &self.standing) => return Err(ServerError::Failed("raft ended".to_owned())),
                () = hear(&mut events, &mut carried.table) => return Err(ServerError::Failed("the mesh ended".to_owned())),
                opened = self.open_engine(&cluster, &mut carried.promises) => opened?,
            };
            self.telemetry.watch(&engine);
            self.held = held;
            match self.serve_until_replaced(engine, carried, &mut events).await? {
                Some(next) => carried = next,
                None => return Ok(()),
            }
        }
    }

    /// One engine and its agent. Gives what the next ones go on with when the node was seeded; none when it stops.
    async fn serve_until_replaced(
        &mut self,
        engine: Engine,
        carried: Carried,
        events: &mut mpsc::Receiver<MeshEvent>,
    ) -> Result<Option<Carried>, ServerError> {
        let mut control_failure = self.control.failure();
        let mut wal_failure = engine.wal().failure();
        let mut engine_failure = engine.failure();
        let agent = Agent::new(AgentParts {
            me: self.me,
            files: Arc::clone(&self.files),
            data_dir: self.data_dir.path().to_owned(),
            carried,
            control: self.control.clone(),
            engine: engine.clone(),
            confirmer: self.confirmer.clone(),
            upstream: Arc::clone(&self.upstream),
            seeder: Arc::clone(&self.seeder),
            view: self.view.clone(),
            outgoing: self.outgoing.clone(),
            standing: self.standing.clone(),
            mesh: self.mesh.clone(),
            health: self.health.clone(),
            no_sync: self.config.no_sync,
            stop: self.stop.clone(),
        });
        let outcome = tokio::select! {
            ended = agent.run(events) => ended.map_err(|error| ServerError::Failed(error.to_string())),
            failure = first_failure(&mut control_failure) => Err(ServerError::Failed(failure)),
            failure = first_failure(&mut wal_failure) => Err(ServerError::Failed(failure)),
            failure = first_failure(&mut engine_failure) => Err(ServerError::Failed(failure)),
        };
        // However it ended: nothing more is acknowledged or streamed while the rest is taken apart.
        engine.set_confirmed_until(None);
        self.upstream.stop_serving();
        match outcome {
            Ok(AgentEnd::Stopped) => {
                let stopping = engine.clone();
                let stopped = tokio::task::spawn_blocking(move || stopping.stop()).await;
                if !matches!(stopped, Ok(Ok(()))) {
                    tracing::warn!(?stopped, "the engine did not stop cleanly: the next start recovers");
                }
                self.record_damage(&engine);
                Ok(None)
            }
            Ok(AgentEnd::Seeded(carried)) => self.swap(engine, *carried, events).await.map(Some),
            Err(error) => {
                self.record_damage(&engine);
                Err(error)
            }
        }
    }

    /// Closes the engine and puts the new data in its place, while the mesh goes on. If this fails or the process dies, the
    /// next start does it.
    async fn swap(
        &mut self,
        engine: Engine,
        mut carried: Carried,
        events: &mut mpsc::Receiver<MeshEvent>,
    ) -> Result<Carried, ServerError> {
        self.upstream.clear_source();
        self.view.send_modify(|view| {
            view.engine = None;
            view.waiting_for = Some("this node was seeded and opens its new data".to_owned());
        });
        let (data_dir, held) = (self.data_dir.path().to_owned(), self.held.clone());
        let swapping = async {
            let closed = tokio::task::spawn_blocking(move || engine.stop()).await;
            if !matches!(closed, Ok(Ok(()))) {
                tracing::warn!(?closed, "the engine that is given up did not stop cleanly");
            }
            // Requests that are being answered may still hold it; and the last handle is gone before the files are closed.
            let released = async {
                while held.strong_count() > 0 {
                    tokio::time::sleep(RELEASE_LOOK).await;
                }
            };
            if tokio::time::timeout(RELEASE_TIMEOUT, released).await.is_err() {
                return Err(ServerError::Failed(
                    "requests hold the store that is to be replaced: the next start replaces it".to_owned(),
                ));
            }
            let swapped = tokio::task::spawn_blocking(move || swap::complete(&data_dir)).await;
            swapped.map_err(|error| ServerError::Failed(error.to_string()))?.map_err(ServerError::from)
        };
        tokio::pin!(swapping);
        let mut again = tokio::time::interval(BEAT_INTERVAL);
        loop {
            tokio::select! {
                outcome = &mut swapping => break outcome?,
                // What was said last is said again: the others keep WAL for this node.
                _ = again.tick() => self.outgoing.send_modify(|outgoing| outgoing.report_seq += 1),
                () = learn_voters(self.control.state(), &self.standing) => return Err(ServerError::Failed("raft ended".to_owned())),
                () = hear(events, &mut carried.table) => return Err(ServerError::Failed("the mesh ended".to_owned())),
            }
        }
        tracing::info!("the new data has taken the place of the old");
        Ok(carried)
    }
}

/// A panic is a mistake in the program, and what it leaves behind may be half done: the process ends, and recovery starts
/// over from the disk.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

/// Takes in what the mesh hears while there is no agent: otherwise its queue fills, and this node answers no beat any more.
/// Ends with the mesh.
async fn hear(events: &mut mpsc::Receiver<MeshEvent>, table: &mut Table) {
    while let Some(event) = events.recv().await {
        table.handle(&event);
    }
}

/// What failed for good, once something has.
async fn first_failure<E: std::error::Error + 'static>(failure: &mut watch::Receiver<Option<Arc<E>>>) -> String {
    match failure.wait_for(Option::is_some).await {
        Ok(found) => found.as_ref().map_or_else(String::new, |error| with_causes(&**error)),
        Err(_) => std::future::pending().await,
    }
}
