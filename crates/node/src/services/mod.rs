//! The node's one gRPC port.

mod budget;
mod cluster;
mod health;
mod kv;
mod members;
mod metered;
mod port;
mod reads;
mod replication;
mod scan;
mod settings;
mod waiting;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tower::layer::util::{Identity, Stack};
use understudy_control::Control;
use understudy_replication::ReplicationService;
use understudy_replication::seed::Seeder;
use understudy_rpc::v1;
use understudy_types::limits::{self, COMMIT_BYTES_MAX};

use crate::config::ServerConfig;
use crate::confirmer::Confirmer;
use crate::freshness::{Confirmed, Heard};
use crate::mesh::{Greeting, MeshService};
use crate::telemetry::Telemetry;
use crate::upstream::Upstream;
use crate::view::NodeView;

use budget::{Budget, Budgeted, Limits};
pub use cluster::{MEMBER_STATES, MemberWords, NOT_WRITABLE, SYNC_STATES, member_words, not_writable};
pub use health::Health;
pub use port::places::Places;
pub use port::room_for;

/// The largest request: a commit at its limit with what protobuf adds, in bytes.
const REQUEST_BYTES_MAX: usize = COMMIT_BYTES_MAX + (4 << 20);
/// The largest request of an operator: as many settings as there may be in one.
const OPERATOR_REQUEST_BYTES_MAX: usize = 1 << 20;
/// The largest request of a probe, or of somebody who asks which services there are.
const PROBE_BYTES_MAX: usize = 64 << 10;
/// Requests in progress on one connection. A client that has more under way waits, or opens another connection.
const STREAMS_PER_CONNECTION_MAX: u32 = limits::CONNECTION_REQUESTS_MAX;
/// What one stream may send before it is read, in bytes: a catching-up standby should not wait for a window.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;
/// What one connection may send before it is read, in bytes.
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
const FRAME_BYTES_MAX: u32 = 1 << 20;

/// The state of replication; none when this node is not the primary.
pub fn replication_of(view: &NodeView, upstream: &Upstream) -> Option<v1::ReplicationResponse> {
    cluster::Primary::of(view, upstream).map(|primary| replication::replication(&primary))
}

/// What the services stand on.
pub struct ServiceParts<G> {
    /// Bound already, so that a port in use is an error of the start.
    pub listener: TcpListener,
    /// For its connections.
    pub places: Arc<Places>,
    /// Published by the agent.
    pub view: watch::Receiver<NodeView>,
    /// For linearizable reads.
    pub confirmer: Confirmer,
    /// When a majority last confirmed this node, as the primary.
    pub confirmed: watch::Receiver<Option<Confirmed>>,
    /// How fresh this node's data is, as a standby.
    pub heard: Arc<Heard>,
    /// Beats.
    pub mesh: MeshService<G>,
    /// Raft.
    pub control: Control,
    /// What this server was started with.
    pub config: Arc<ServerConfig>,
    /// What standbys stream from.
    pub upstream: Arc<Upstream>,
    /// What other nodes are seeded by.
    pub seeder: Arc<Seeder>,
    /// Metrics and traces.
    pub telemetry: Telemetry,
    /// Ends all of it.
    pub stop: CancellationToken,
}

/// Starts to serve.
pub async fn spawn<G: Greeting>(parts: ServiceParts<G>) -> (Health, JoinHandle<Result<(), tonic::transport::Error>>) {
    let (health, health_service) = Health::new().await;
    let stop = parts.stop.clone();
    let telemetry = parts.telemetry.clone();
    let walsenders = parts.upstream.sender_settings_watch();
    let history = parts.upstream.history_watch();
    let replication =
        ReplicationService::under(Arc::clone(&parts.upstream), parts.stop.clone(), walsenders).seeding(parts.seeder);
    let reads = reads::Reads::new(reads::ReadParts {
        view: parts.view.clone(),
        history,
        confirmer: parts.confirmer.clone(),
        confirmed: parts.confirmed,
        heard: parts.heard,
        stop: parts.stop.clone(),
    });
    let kv = kv::KvService::new(reads, parts.telemetry.clone());
    let settings = settings::SettingsShell::new(parts.view.clone(), parts.control.clone(), parts.config);
    let changes = cluster::Changes { control: parts.control.clone(), settings };
    let cluster = cluster::ClusterService::new(parts.view, parts.confirmer, parts.upstream, changes);
    // Of their own for operators: clients may fill the other one, and somebody has to end the waits of commits.
    let (budget, operators) = (Budget::new(Limits::default()), Budget::new(Limits::for_operators()));
    let kv = v1::kv_server::KvServer::new(kv).max_decoding_message_size(REQUEST_BYTES_MAX);
    let cluster = v1::cluster_server::ClusterServer::new(cluster).max_decoding_message_size(OPERATOR_REQUEST_BYTES_MAX);
    let router = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .layer(metered::MeteredLayer::new(parts.telemetry))
        .layer(port::PlacedLayer)
        .add_service(health_service.max_decoding_message_size(PROBE_BYTES_MAX))
        .add_service(Budgeted::new(kv, &budget, REQUEST_BYTES_MAX))
        .add_service(Budgeted::new(cluster, &operators, OPERATOR_REQUEST_BYTES_MAX))
        .add_service(v1::mesh_server::MeshServer::new(parts.mesh))
        .add_service(parts.control.service())
        .add_service(replication.into_server())
        .add_service(reflection_v1().max_decoding_message_size(PROBE_BYTES_MAX))
        .add_service(reflection_v1alpha().max_decoding_message_size(PROBE_BYTES_MAX));
    let incoming = port::accept(parts.listener, parts.places, &telemetry, port::Times::default());
    let shutdown = async move { stop.cancelled().await };
    (health, tokio::spawn(serve(router, incoming, shutdown)))
}

/// The outermost last.
type Layers = Stack<port::PlacedLayer, Stack<metered::MeteredLayer, Identity>>;

async fn serve(
    router: tonic::transport::server::Router<Layers>,
    incoming: impl futures::Stream<Item = std::io::Result<port::Connection>>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    router.serve_with_incoming_shutdown(incoming, shutdown).await
}

fn descriptors() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

fn reflection_v1()
-> tonic_reflection::server::v1::ServerReflectionServer<impl tonic_reflection::server::v1::ServerReflection> {
    descriptors().build_v1().expect("the compiled descriptors are well-formed")
}

fn reflection_v1alpha()
-> tonic_reflection::server::v1alpha::ServerReflectionServer<impl tonic_reflection::server::v1alpha::ServerReflection> {
    descriptors().build_v1alpha().expect("the compiled descriptors are well-formed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_is_in_the_reflection() {
        reflection_v1();
        reflection_v1alpha();
    }
}
