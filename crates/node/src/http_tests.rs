use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use understudy_control::Leadership;
use understudy_core::state::ClusterState;
use understudy_types::NodeId;

use super::*;
use crate::confirmer::Confirmer;
use crate::mesh::{Answer, Outgoing};
use crate::telemetry::Telemetry;
use crate::telemetry::collect::CollectorParts;
use crate::view::NodeView;

/// A port of a node that belongs to no cluster yet.
struct Port {
    address: SocketAddr,
    telemetry: Telemetry,
    stop: CancellationToken,
    _kept: (watch::Sender<NodeView>, mpsc::Sender<Answer>),
}

async fn port() -> Port {
    let port = HttpPort::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (address, stop, me) = (port.address().unwrap(), CancellationToken::new(), NodeId::new(1));
    let (outgoing, _) = watch::channel(Outgoing::default());
    let (answers_tx, answers) = mpsc::channel(1);
    let confirmer = Confirmer::spawn(me, outgoing, answers, watch::channel(None).0, stop.clone());
    let (view, view_rx) = watch::channel(NodeView {
        me,
        cluster: Arc::new(ClusterState::default()),
        leadership: Leadership::default(),
        engine: None,
        primary_of: None,
        nodes: std::collections::BTreeMap::new(),
        blocked: None,
        waiting_for: Some("no cluster has been \"made\" yet".to_owned()),
    });
    let telemetry = Telemetry::start("a", me, true).unwrap();
    let places = Arc::new(crate::services::Places::new(64));
    let upstream = Arc::new(crate::upstream::Upstream::new(telemetry.clone()));
    let parts = CollectorParts { view: view_rx, confirmer, telemetry: telemetry.clone(), places, upstream };
    port.serve(Collector::new("a".to_owned(), parts), stop.clone());
    Port { address, telemetry, stop, _kept: (view, answers_tx) }
}

async fn ask(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // A refusal may come as a reset.
    let read = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await.expect("an end");
    drop(read);
    String::from_utf8(answer).unwrap()
}

async fn get(address: SocketAddr, path: &str) -> String {
    ask(address, format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await
}

#[tokio::test]
async fn a_node_without_a_cluster_lives_and_is_not_ready_and_says_why() {
    let port = port().await;
    assert!(get(port.address, "/liveness").await.starts_with("HTTP/1.1 200"));
    let answer = get(port.address, "/readiness").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains(r#""role":"starting""#), "{answer}");
    assert!(answer.contains(r#"no cluster has been \"made\" yet"#), "{answer}");
    let answer = get(port.address, "/metrics").await;
    assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
    assert!(answer.contains("\nunderstudy_role{role=\"starting\"} 1\n"), "{answer}");
    assert!(answer.contains("\nunderstudy_not_writable{reason=\"no_primary\"} 1\n"), "{answer}");
    assert!(get(port.address, "/").await.starts_with("HTTP/1.1 404"));
    assert!(ask(port.address, b"POST /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await.starts_with("HTTP/1.1 405"));
}

#[tokio::test]
async fn nonsense_and_endless_headers_are_refused() {
    let port = port().await;
    assert!(ask(port.address, b"\x16\x03\x01 nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    let long = format!("GET /liveness HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(2 * HEADER_BYTES_MAX));
    assert!(!ask(port.address, long.as_bytes()).await.contains(" 200 "));
    let many = format!("GET /liveness HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(HEADERS_MAX + 1));
    assert!(!ask(port.address, many.as_bytes()).await.contains(" 200 "));
    assert!(get(port.address, "/liveness").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn idle_connections_are_bounded_and_do_not_last() {
    let port = port().await;
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        idle.push(TcpStream::connect(port.address).await.unwrap());
    }
    // One more is closed without an answer.
    assert_eq!(get(port.address, "/liveness").await, "");
    assert_eq!(port.telemetry.instruments().http_refused.get(), 1);
    // The idle ones are closed by the timeout for headers, and there is room again.
    for stream in &mut idle {
        let mut rest = Vec::new();
        let read = tokio::time::timeout(2 * CONNECTION_TIMEOUT, stream.read_to_end(&mut rest)).await;
        assert!(read.is_ok(), "an idle connection stays open");
    }
    assert!(get(port.address, "/liveness").await.starts_with("HTTP/1.1 200"));
    port.stop.cancel();
}
