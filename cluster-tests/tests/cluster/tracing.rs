//! One commit is one trace, over the client, the primary and its standbys; and what a scrape of each node shows.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use cluster_tests::cluster::{Cluster, Options, PATIENCE};
use cluster_tests::{ports, process};
use opentelemetry::Context;
use opentelemetry::trace::{FutureExt, SpanContext, TraceContextExt, TraceFlags, TraceState};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use understudy_client::{Client, Options as ClientOptions};

/// A span as the collector got it.
#[derive(Debug, Clone)]
struct Seen {
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
    name: String,
    /// Empty for one that no node made.
    node: String,
    service: String,
    began_ns: u64,
    ended_ns: u64,
}

struct Collector(watch::Sender<Vec<Seen>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut seen = Vec::new();
        for spans in request.into_inner().resource_spans {
            let attributes = spans.resource.map(|resource| resource.attributes).unwrap_or_default();
            let text = |key: &str| {
                let found = attributes.iter().find(|attribute| attribute.key == key);
                match found.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
                    Some(Value::StringValue(text)) => text.clone(),
                    _ => String::new(),
                }
            };
            for span in spans.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                seen.push(Seen {
                    trace: span.trace_id,
                    id: span.span_id,
                    parent: span.parent_span_id,
                    name: span.name,
                    node: text("understudy.node.name"),
                    service: text("service.name"),
                    began_ns: span.start_time_unix_nano,
                    ended_ns: span.end_time_unix_nano,
                });
            }
        }
        self.0.send_modify(|all| all.extend(seen));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// An OTLP collector on loopback: its endpoint, and what it got.
async fn collector() -> Result<(String, watch::Receiver<Vec<Seen>>)> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let (all, seen) = watch::channel(Vec::new());
    let incoming = futures::stream::unfold(listener, |listener| async move {
        Some((listener.accept().await.map(|(stream, _)| stream), listener))
    });
    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Collector(all)));
    tokio::spawn(server.serve_with_incoming(incoming));
    Ok((endpoint, seen))
}

/// The server binary with variables in its environment.
fn with_environment(dir: &Path, variables: &[(&str, &str)]) -> Result<PathBuf> {
    let binary = process::server_binary()?;
    let exports: String = variables.iter().map(|(name, value)| format!("export {name}='{value}'\n")).collect();
    let script = dir.join("understudy");
    std::fs::write(&script, format!("#!/bin/sh\n{exports}exec '{}' \"$@\"\n", binary.display()))?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    Ok(script)
}

/// What a node exports, quickly.
fn exporting(endpoint: &str) -> [(&'static str, String); 2] {
    [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.to_owned()), ("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned())]
}

fn traced(trace: u128, span: u64, flags: TraceFlags) -> Context {
    let context = SpanContext::new(trace.into(), span.into(), flags, false, TraceState::default());
    Context::new().with_remote_span_context(context)
}

/// The spans of one trace, once `complete` says that all are there.
async fn spans_of(
    seen: &mut watch::Receiver<Vec<Seen>>,
    trace: u128,
    complete: impl Fn(&[Seen]) -> bool,
) -> Result<Vec<Seen>> {
    let of =
        |all: &[Seen]| -> Vec<Seen> { all.iter().filter(|span| span.trace == trace.to_be_bytes()).cloned().collect() };
    let came = tokio::time::timeout(PATIENCE, seen.wait_for(|all| complete(&of(all)))).await.is_ok();
    ensure!(came, "not all spans came: {:#?}", of(&seen.borrow()));
    Ok(of(&seen.borrow()))
}

/// Name and node of a span, and of what it hangs on.
fn tree(spans: &[Seen]) -> BTreeSet<(String, String, String)> {
    let parent = |span: &Seen| {
        let found = spans.iter().find(|other| other.id == span.parent);
        found.map_or_else(|| "the client".to_owned(), |parent| format!("{} on {}", parent.name, parent.node))
    };
    spans.iter().map(|span| (span.name.clone(), span.node.clone(), parent(span))).collect()
}

fn expected(primary: &str, standbys: &[String]) -> BTreeSet<(String, String, String)> {
    let commit = format!("commit on {primary}");
    let mut tree: BTreeSet<(String, String, String)> = ["queue", "append", "flush", "send", "apply", "acknowledge"]
        .map(|name| (name.to_owned(), primary.to_owned(), commit.clone()))
        .into();
    tree.insert(("commit".to_owned(), primary.to_owned(), "the client".to_owned()));
    for standby in standbys {
        for name in ["remote flush", "apply"] {
            tree.insert((name.to_owned(), standby.clone(), format!("send on {primary}")));
        }
    }
    tree
}

fn now_ns() -> Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_commit_is_one_trace_over_all_nodes() -> Result<()> {
    let (endpoint, mut seen) = collector().await?;
    let dir = tempfile::tempdir()?;
    let variables = exporting(&endpoint);
    let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let options = Options { binary: Some(with_environment(dir.path(), &variables)?), ..Options::default() };
    let cluster = Cluster::start(&options).await?;
    let primary = cluster.wait_settled().await?;
    let standbys: Vec<String> = cluster.names().into_iter().filter(|name| *name != primary).collect();
    let client = Client::connect(cluster.endpoints(), ClientOptions::default()).await?;

    // The connection, and everything else that happens once.
    client.put("before", "0").await?;
    let (trace, span) = (0x1111_2222_3333_4444_5555_6666_7777_8888, 0x0a0b_0c0d_0e0f_0102);
    let began_ns = now_ns()?;
    client.put("traced", "1").with_context(traced(trace, span, TraceFlags::SAMPLED)).await?;
    let ended_ns = now_ns()?;
    // Whoever says that it does not sample gets nothing, on no node.
    let unsampled = 0x9999_2222_3333_4444_5555_6666_7777_8888;
    client.put("untraced", "1").with_context(traced(unsampled, span, TraceFlags::NOT_SAMPLED)).await?;

    let wanted = expected(&primary, &standbys);
    let spans = spans_of(&mut seen, trace, |spans| tree(spans).is_superset(&wanted)).await?;
    assert_eq!(tree(&spans), wanted, "{spans:#?}");
    // Two standbys, two sends; everything else once.
    assert_eq!(spans.len(), wanted.len() + 1, "{spans:#?}");

    let mut by_name: BTreeMap<&str, Vec<&Seen>> = BTreeMap::new();
    spans.iter().for_each(|span| by_name.entry(&span.name).or_default().push(span));
    let commit = by_name["commit"][0];
    assert_eq!(commit.parent, span.to_be_bytes());
    // One machine, one clock; a reading of it may be stepped by a little.
    let slack_ns = 5_000_000;
    for span in &spans {
        assert_eq!(span.service, "understudy");
        assert!(span.began_ns <= span.ended_ns, "{span:?}");
        assert!(span.began_ns + slack_ns >= began_ns, "{span:?}");
        // A standby may apply it after the client has its answer, and the one that was not needed may be sent it then.
        let may_come_later = span.node != primary || span.name == "send";
        let until_ns = if may_come_later { ended_ns + 10_000_000_000 } else { ended_ns };
        assert!(span.ended_ns <= until_ns + slack_ns, "{span:?}");
    }
    assert!(by_name["send"].iter().any(|span| span.ended_ns <= ended_ns + slack_ns), "{:#?}", by_name["send"]);
    for name in ["queue", "append", "flush", "acknowledge"] {
        let span = by_name[name][0];
        assert!(span.began_ns + slack_ns >= commit.began_ns && span.ended_ns <= commit.ended_ns + slack_ns, "{span:?}");
    }
    let order = [by_name["queue"][0].ended_ns, by_name["append"][0].ended_ns, by_name["flush"][0].ended_ns];
    assert!(order.is_sorted_by(|a, b| *a <= b + slack_ns), "{order:?}");

    by_the_command_line(dir.path(), &cluster, &mut seen).await?;
    ensure!(
        !seen.borrow().iter().any(|span| span.trace == u128::to_be_bytes(unsampled)),
        "the unsampled one was traced"
    );
    cluster.finish().await
}

/// `understudy put` makes a root span of its own, and the primary's hangs on it.
async fn by_the_command_line(dir: &Path, cluster: &Cluster, seen: &mut watch::Receiver<Vec<Seen>>) -> Result<()> {
    let endpoints = cluster.endpoints().join(",");
    let command = tokio::process::Command::new(dir.join("understudy"))
        .args(["put", "by-hand", "1", "--endpoints", &endpoints])
        .output()
        .await?;
    ensure!(command.status.success(), "{}", String::from_utf8_lossy(&command.stderr));
    let root = |all: &[Seen]| all.iter().find(|span| span.name == "put" && span.node.is_empty()).cloned();
    let below = |all: &[Seen]| {
        let root = root(all)?;
        let commit = all.iter().find(|span| span.trace == root.trace && span.name == "commit")?;
        Some((root, commit.clone()))
    };
    let found = tokio::time::timeout(PATIENCE, seen.wait_for(|all| below(all).is_some())).await;
    let all = found.context("the command's trace did not come")??.clone();
    let (root, commit) = below(&all).context("was there")?;
    assert!(root.parent.is_empty(), "{root:?}");
    assert_eq!(commit.parent, root.id);
    Ok(())
}

/// Status and body of a request on a connection of its own.
async fn http(address: &str, request: &str) -> Result<(u16, String)> {
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    tokio::time::timeout(Duration::from_secs(30), stream.read_to_string(&mut answer)).await??;
    let (head, body) = answer.split_once("\r\n\r\n").context("no end of headers")?;
    let status = head.split_whitespace().nth(1).context("no status")?.parse()?;
    Ok((status, body.to_owned()))
}

async fn get(address: &str, path: &str) -> Result<(u16, String)> {
    http(address, &format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")).await
}

/// The value of a sample.
fn sample(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// The metrics of a node, once the last beats of both standbys have reached it.
async fn once_heard(address: &str, primary: &str) -> Result<String> {
    let heard = async {
        loop {
            let (status, text) = get(address, "/metrics").await?;
            ensure!(status == 200, "{text}");
            let streaming = text.lines().filter(|line| line.ends_with(",state=\"streaming\"} 1"));
            if streaming.filter(|line| !line.contains(&format!("\"{primary}\""))).count() == 2 {
                return Ok(text);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, heard).await.context("both standbys are seen to stream")?
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_shows_metrics_and_readiness() -> Result<()> {
    let names = ["n1", "n2", "n3"];
    let http_ports: BTreeMap<String, String> = names
        .iter()
        .zip(ports::free(names.len())?)
        .map(|(name, port)| (name.to_string(), format!("127.0.0.1:{port}")))
        .collect();
    let mut options = Options::default();
    for (name, address) in &http_ports {
        options = options.node(name, &["--http-listen", address]);
    }
    let mut cluster = Cluster::start(&options).await?;
    let primary = cluster.wait_settled().await?;
    let client = Client::connect(cluster.endpoints(), ClientOptions::default()).await?;
    for n in 0..10 {
        client.put(format!("key-{n}"), "value").await?;
    }
    client.get("key-0").await?;

    for (name, address) in &http_ports {
        assert_eq!(get(address, "/liveness").await?.0, 200);
        let (status, body) = get(address, "/readiness").await?;
        let role = if *name == primary { "primary" } else { "standby" };
        assert_eq!(status, 200, "{body}");
        assert!(body.contains(&format!("\"role\":\"{role}\"")) && body.contains("\"writable\":true"), "{body}");
        let text = once_heard(address, &primary).await?;
        assert_eq!(sample(&text, &format!("understudy_role{{role=\"{role}\"}}")), Some(1.0), "{text}");
        assert_eq!(sample(&text, "understudy_timeline"), Some(1.0), "{text}");
        assert_eq!(sample(&text, "understudy_writable"), Some(1.0), "{text}");
        for member in &names {
            let state = if *member == primary { "running" } else { "streaming" };
            let of = |metric: &str, label: &str| sample(&text, &format!("{metric}{{member=\"{member}\"{label}}}"));
            assert_eq!(of("understudy_member_state", &format!(",state=\"{state}\"")), Some(1.0), "{name}: {text}");
            assert_eq!(of("understudy_member_state", ",state=\"seeding\""), Some(0.0), "{name}: {text}");
            let sync = if *member == primary { 0.0 } else { 1.0 };
            assert_eq!(of("understudy_member_sync_state", ",sync_state=\"quorum\""), Some(sync), "{name}: {text}");
            assert_eq!(of("understudy_member_damaged", ""), Some(0.0), "{name}: {text}");
            let lag = of("understudy_standby_lag_bytes", ",position=\"apply\"");
            assert_eq!(lag.is_some(), *name == primary && *member != primary, "{name}: {text}");
        }
        assert!(sample(&text, "understudy_wal_kept_bytes").is_some_and(|bytes| bytes > 0.0), "{text}");
        assert!(sample(&text, "understudy_wal_oldest_bytes").is_some(), "{text}");
        assert_eq!(sample(&text, "understudy_commits_waiting"), Some(0.0), "{text}");
        assert_eq!(sample(&text, "understudy_commits_waiting_oldest_seconds"), Some(0.0), "{text}");
        assert_eq!(sample(&text, "understudy_read_lease"), Some(0.0), "{text}");
        assert_eq!(sample(&text, "understudy_grpc_connections_max"), Some(2000.0), "{text}");
        let connections = sample(&text, "understudy_grpc_connections{place=\"ordinary\"}");
        assert!(connections.is_some_and(|count| count >= 2.0), "{text}");
        assert!(sample(&text, "understudy_wal_fsync_seconds_count").is_some_and(|count| count > 0.0), "{text}");
        let stage = if *name == primary { "flush" } else { "remote_flush" };
        let stage = format!("understudy_commit_stage_seconds_count{{stage=\"{stage}\"}}");
        // The second standby may still be on its way to the last of them.
        assert!(sample(&text, &stage).is_some_and(|count| count > 0.0), "{stage} of {name}: {text}");
        assert_eq!(get(address, "/nothing").await?.0, 404);
    }
    let (_, text) = get(&http_ports[&primary], "/metrics").await?;
    assert_eq!(sample(&text, "understudy_commits_total{level=\"on\",result=\"committed\"}"), Some(10.0), "{text}");
    assert_eq!(sample(&text, "understudy_commit_seconds_count{level=\"on\"}"), Some(10.0), "{text}");
    assert_eq!(sample(&text, "understudy_commits_in_flight"), Some(0.0), "{text}");
    assert_eq!(sample(&text, "understudy_read_seconds_count{consistency=\"linearizable\"}"), Some(1.0), "{text}");
    let method = "understudy_grpc_requests_total{method=\"understudy.v1.Kv/Commit\",code=\"0\"}";
    assert!(sample(&text, method).is_some_and(|count| count >= 10.0), "{text}");
    for standby in cluster.names().iter().filter(|name| **name != primary) {
        let sent = sample(&text, &format!("understudy_standby_sent_bytes{{member=\"{standby}\"}}"));
        assert!(sent.is_some_and(|sent| sent > 0.0), "{standby}: {text}");
        assert_eq!(
            sample(&text, &format!("understudy_standby_connected{{member=\"{standby}\"}}")),
            Some(1.0),
            "{text}"
        );
    }
    cluster.client(&primary, PATIENCE).set_settings(&[("linearizable_reads", "lease")]).await?;
    let leased = async {
        loop {
            let (_, text) = get(&http_ports[&primary], "/metrics").await?;
            if sample(&text, "understudy_read_lease") == Some(1.0) {
                return Ok::<_, anyhow::Error>(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, leased).await??;
    // A commit that nobody can acknowledge is seen to wait.
    for standby in cluster.names().iter().filter(|name| **name != primary) {
        cluster.freeze(standby)?;
    }
    let waiting = client.put("key-0", "value");
    let seen = async {
        loop {
            let (_, text) = get(&http_ports[&primary], "/metrics").await?;
            if sample(&text, "understudy_commits_waiting_oldest_seconds").is_some_and(|age| age > 0.05) {
                return Ok::<_, anyhow::Error>(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        seen = tokio::time::timeout(PATIENCE, seen) => seen??,
        acknowledged = waiting => anyhow::bail!("it was acknowledged: {acknowledged:?}"),
    }
    for standby in cluster.names().iter().filter(|name| **name != primary) {
        cluster.thaw(standby)?;
    }
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_http_port_and_a_wrong_collector_are_errors_of_the_start() -> Result<()> {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = taken.local_addr()?.to_string();
    let dir = tempfile::tempdir()?;
    let binary = with_environment(dir.path(), &[("OTEL_EXPORTER_OTLP_ENDPOINT", "https://127.0.0.1:1")])?;
    let options = Options::default().node("n1", &["--http-listen", &address]);
    let mut cluster = Cluster::prepare(&options)?;
    cluster.start_node("n1")?;
    ensure!(!cluster.wait_exit("n1").await?.success());
    let log = cluster.log("n1");
    assert!(log.contains(&address) && log.contains("--http-listen"), "{log}");

    let mut other = Cluster::prepare(&Options { binary: Some(binary), ..Options::default() })?;
    other.start_node("n1")?;
    ensure!(!other.wait_exit("n1").await?.success());
    let log = other.log("n1");
    assert!(log.contains("OTEL_EXPORTER_OTLP_ENDPOINT") && log.contains("https://127.0.0.1:1"), "{log}");
    cluster.finish().await?;
    other.finish().await
}
