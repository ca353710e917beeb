use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream as RawStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Server};
use understudy_rpc::error::Reason;
use understudy_rpc::v1;
use understudy_rpc::v1::cluster_client::ClusterClient;
use understudy_rpc::v1::kv_client::KvClient;
use understudy_rpc::v1::mesh_client::MeshClient;
use understudy_types::NodeId;

use super::*;

/// How long what shows nothing is left alone.
struct Pace {
    times: Times,
    ping_interval: Duration,
    ping_timeout: Duration,
}

/// Longer than this machine stalls.
const PATIENT: Pace = Pace {
    times: Times { preface: Duration::from_secs(10), newcomer: Duration::from_secs(3) },
    ping_interval: Duration::from_secs(2),
    ping_timeout: Duration::from_secs(5),
};

struct Port {
    address: std::net::SocketAddr,
    places: Arc<Places>,
    telemetry: Telemetry,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Port {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves nothing but `UNIMPLEMENTED`, which is answered to whoever has a place.
async fn port(max: usize, pace: Pace) -> Port {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let places = Arc::new(Places::new(max));
    let telemetry = Telemetry::start("a", NodeId::new(1), true).expect("telemetry");
    let incoming = accept(listener, Arc::clone(&places), &telemetry, pace.times);
    let router = Server::builder()
        .http2_keepalive_interval(Some(pace.ping_interval))
        .http2_keepalive_timeout(Some(pace.ping_timeout))
        .layer(PlacedLayer)
        .add_routes(tonic::service::Routes::default());
    let task = tokio::spawn(async move {
        router.serve_with_incoming(incoming).await.expect("it serves until it is aborted");
    });
    Port { address, places, telemetry, task }
}

impl Port {
    async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address))
            .expect("an address")
            .connect()
            .await
            .expect("a connection")
    }

    async fn idle(&self) -> RawStream {
        RawStream::connect(self.address).await.expect("a connection")
    }

    /// Until the server has taken note.
    async fn wait(&self, what: &str, mut holds: impl FnMut([usize; 4]) -> bool) {
        let waited = tokio::time::timeout(Duration::from_secs(10), async {
            while !holds(self.places.taken()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{what}: {:?}", self.places.taken()));
    }

    fn refused(&self, why: Why) -> u64 {
        self.telemetry.instruments().connections_refused.with([why.as_str()]).get()
    }
}

/// Of a request of a member and of one of a client.
async fn codes(channel: &Channel) -> (Code, tonic::Status) {
    let member = MeshClient::new(channel.clone()).identify(v1::IdentifyRequest {}).await.expect_err("no service");
    let client = KvClient::new(channel.clone()).get(v1::GetRequest::default()).await.expect_err("no service");
    (member.code(), client)
}

/// A server that ends a connection, within a time in which it should.
async fn is_closed(stream: &mut RawStream) -> bool {
    let mut buffer = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut buffer)).await.is_ok()
}

#[tokio::test]
async fn a_thousand_idle_clients_do_not_keep_a_member_out() {
    let port = port(64, PATIENT).await;
    // They speak HTTP/2 and answer pings, so they stay.
    let mut clients = Vec::new();
    for _ in 0..40 {
        let channel = port.channel().await;
        assert_eq!(codes(&channel).await.1.code(), Code::Unimplemented);
        clients.push(channel);
    }
    let mut idle = Vec::new();
    for _ in 0..1_000 {
        idle.push(port.idle().await);
    }
    let member = port.channel().await;
    let (code, refusal) = codes(&member).await;
    assert_eq!(code, Code::Unimplemented, "the member is let in");
    let refusal_reason = RpcError::from_status(&refusal).map(|error| error.reason);
    assert_eq!(refusal_reason, Some(Reason::NodeBusy), "{refusal:?}");
    assert!(refusal.message().contains("64 connections"), "{refusal:?}");
    // Everybody else in the reserve is closed, and the member stays for longer than a newcomer may.
    port.wait("only the member is left in the reserve", |taken| taken == [40, 0, 1, 0]).await;
    tokio::time::sleep(PATIENT.times.newcomer).await;
    assert_eq!(codes(&member).await.0, Code::Unimplemented);
    assert_eq!(port.places.taken(), [40, 0, 1, 0]);
    for mut stream in idle {
        assert!(is_closed(&mut stream).await);
    }
    assert_eq!(port.refused(Why::Displaced) + port.refused(Why::NotAMember), 1_000);
    assert!(port.refused(Why::Displaced) >= 1_000 - 25);
    // The clients that were there first are served as ever; one that comes later is told, and let in once there is room.
    assert_eq!(codes(&clients[0]).await.1.code(), Code::Unimplemented);
    drop(clients.pop());
    port.wait("a place has come free", |taken| taken[0] == 39).await;
    assert_eq!(codes(&port.channel().await).await.1.code(), Code::Unimplemented);
}

/// Of an operator's request and of a health probe.
async fn operators_codes(channel: &Channel) -> [Code; 2] {
    let status = ClusterClient::new(channel.clone()).status(v1::StatusRequest {}).await.expect_err("no service");
    let probe = tonic_health::pb::HealthCheckRequest::default();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    [status.code(), health.check(probe).await.expect_err("no service").code()]
}

#[tokio::test]
async fn idle_clients_keep_no_operator_and_no_probe_out() {
    const SERVED: [Code; 2] = [Code::Unimplemented; 2];
    let port = port(64, PATIENT).await;
    let mut clients = Vec::new();
    for _ in 0..40 {
        clients.push(port.channel().await);
    }
    port.wait("clients hold all ordinary places", |taken| taken == [40, 0, 0, 0]).await;
    let operator = port.channel().await;
    assert_eq!(operators_codes(&operator).await, SERVED);
    assert_eq!(port.places.taken(), [40, 0, 0, 1]);
    // It stays for longer than a newcomer may, and does not let a client in.
    tokio::time::sleep(PATIENT.times.newcomer + Duration::from_millis(500)).await;
    assert_eq!(operators_codes(&operator).await, SERVED);
    let (_, refusal) = codes(&port.channel().await).await;
    assert_eq!(refusal.code(), Code::ResourceExhausted, "{refusal:?}");
    // Probes that leak their connections keep the next one not out: the one that asked last the longest ago is closed.
    let mut probes = Vec::new();
    for n in 0..20 {
        let probe = port.channel().await;
        assert_eq!(operators_codes(&probe).await, SERVED, "probe {n}");
        probes.push(probe);
    }
    port.wait("operators have their places and no more", |taken| taken[3] == 7).await;
    assert_eq!(port.refused(Why::Displaced), 14);
    assert_eq!(operators_codes(&probes[19]).await, SERVED);
}

#[tokio::test]
async fn who_shows_nothing_is_closed_and_who_answers_pings_stays() {
    let times = Times { preface: Duration::from_secs(2), ..PATIENT.times };
    let (ping_interval, ping_timeout) = (Duration::from_secs(1), Duration::from_secs(2));
    let port = port(64, Pace { times, ping_interval, ping_timeout }).await;
    let mut silent = port.idle().await;
    // A preface and its settings, and no answer to any ping after that.
    let mut mute = port.idle().await;
    mute.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("written");
    let alive = port.channel().await;
    assert!(is_closed(&mut silent).await && is_closed(&mut mute).await);
    assert_eq!(port.refused(Why::Silent), 1);
    // As long again as the mute one was left alone.
    tokio::time::sleep(ping_interval + ping_timeout).await;
    port.wait("only who is alive is left", |taken| taken == [1, 0, 0, 0]).await;
    assert_eq!(codes(&alive).await.0, Code::Unimplemented);
    drop(alive);
    port.wait("nobody is left", |taken| taken == [0, 0, 0, 0]).await;
}
