//! Reads of every consistency on every node of a real cluster, and what a thousand idle connections cost.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster_tests::cluster::{Cluster, Options, PATIENCE};
use cluster_tests::node_client::{NodeClient, refusal};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use understudy_client::{Client, Commit, ReadPreference};
use understudy_rpc::convert::token_bytes;
use understudy_rpc::error::Reason;
use understudy_rpc::v1;
use understudy_types::{DurabilityLevel, Position, SessionToken, TimelineId};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Of a read that is meant to fail.
const SHORT: Duration = Duration::from_millis(500);

fn get(consistency: v1::Consistency) -> v1::GetRequest {
    v1::GetRequest { key: "k".into(), consistency: consistency.into(), ..v1::GetRequest::default() }
}

fn session(token: SessionToken) -> v1::GetRequest {
    v1::GetRequest { token: token_bytes(token), ..get(v1::Consistency::Session) }
}

fn at(position: Position) -> v1::GetRequest {
    v1::GetRequest { at: Some(position.into()), ..get(v1::Consistency::At) }
}

fn at_most(ms: u64) -> v1::GetRequest {
    v1::GetRequest { max_staleness_ms: Some(ms), ..get(v1::Consistency::Eventual) }
}

fn reason(answer: Result<v1::GetResponse, Status>) -> Result<(Reason, String)> {
    let status = answer.err().context("it was answered")?;
    let error = refusal(&status).with_context(|| format!("not a refusal of a node: {status}"))?;
    Ok((error.reason, error.message))
}

/// Why a node refuses a read that it may not answer, in its own words: the client's clock may end a request before they are here.
async fn refused(node: &NodeClient, request: impl Fn() -> v1::GetRequest) -> Result<(Reason, String)> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = node.read(request()).await;
        if answer.as_ref().err().is_none_or(|status| refusal(status).is_some()) || Instant::now() > deadline {
            return reason(answer);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_keep_their_promises_on_every_node() -> Result<()> {
    let mut cluster = Cluster::start(&Options::default()).await?;
    let primary = cluster.wait_settled().await?;
    let client = Client::connect(cluster.endpoints(), understudy_client::Options::default()).await?;
    let writer = client.session().preference(ReadPreference::PreferStandby);

    let first = writer.put("k", "1").await?.position;
    let second = writer.commit(Commit::new().put("k", "2").level(DurabilityLevel::Local)).await?;
    let token = second.token.context("a commit comes with a token")?;
    for name in cluster.names() {
        let node = cluster.client(&name, ANSWER_TIMEOUT);
        let read = node.read(session(token)).await.with_context(|| format!("a session read of {name}"))?;
        ensure!(read.value.as_deref() == Some(b"2"), "{name} does not show the session's own commit");
        ensure!(SessionToken::from_bytes(&read.token)?.position >= second.position, "the token went back");
        let read = node.read(at(first)).await.with_context(|| format!("a read of {name} at {first}"))?;
        ensure!(read.value.as_deref() == Some(b"1"), "{name} does not show the past as it was");
        node.read(at_most(5_000)).await.with_context(|| format!("a read of {name} with a bound on its age"))?;
    }

    // Cut off from everybody, a standby still answers, and does not pass for fresh.
    let names = cluster.names();
    let alone = names.iter().find(|name| **name != primary).context("a standby")?.clone();
    let others: Vec<&String> = names.iter().filter(|name| **name != alone).collect();
    for name in &others {
        cluster.freeze(name)?;
    }
    let node = cluster.client(&alone, SHORT);
    tokio::time::timeout(PATIENCE, async { while node.read(at_most(1_000)).await.is_ok() {} })
        .await
        .context("it passes for fresh for ever")?;
    let (why, message) = refused(&node, || at_most(500)).await?;
    ensure!(why == Reason::TooStale && message.contains(" ms old"), "{message}");
    let read = cluster.client(&alone, ANSWER_TIMEOUT).read(session(token)).await?;
    ensure!(read.value.as_deref() == Some(b"2"), "a session read needs nobody else");
    let later = Position::new(TimelineId::new(99), second.position.lsn);
    let (why, message) = refused(&node, || session(SessionToken::new(token.system_id, later))).await?;
    ensure!(why == Reason::PositionNotReached && message.contains("not heard of that timeline"), "{message}");
    for name in &others {
        cluster.thaw(name)?;
    }

    let primary = cluster.wait_settled().await?;
    cluster.kill9(&primary)?;
    writer.put("k", "3").await?;
    for _ in 0..3 {
        let read = writer.get("k").await?;
        ensure!(read.found.is_some_and(|found| found.value == "3"), "the session does not see its commit");
    }
    let after = writer.token().context("a token")?;
    ensure!(after.position.timeline > token.position.timeline, "{after:?} is not of a later timeline");
    cluster.start_node(&primary)?;
    for name in cluster.names() {
        let node = cluster.client(&name, PATIENCE);
        let read = loop {
            match node.read(session(after)).await {
                Ok(read) => break read,
                Err(status) if status.code() == Code::Unavailable => tokio::task::yield_now().await,
                Err(status) => return Err(status.into()),
            }
        };
        ensure!(read.value.as_deref() == Some(b"3"), "{name} does not show the commit after the failover");
        ensure!(node.read(session(token)).await?.value.as_deref() == Some(b"3"), "the old token is good on {name}");
    }
    cluster.finish().await
}

/// Of a process, in KiB.
fn resident_kib(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("no figure")?.parse()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_idle_connections_cost_little() -> Result<()> {
    const CONNECTIONS: u64 = 1_000;
    /// For each connection, with room for another allocator.
    const KIB_MAX: u64 = 100;
    let cluster = Cluster::start(&Options::default()).await?;
    let primary = cluster.wait_settled().await?;
    let process = *cluster.process_ids().get(&primary).context("it runs")?;
    let client = Client::connect(cluster.endpoints(), understudy_client::Options::default()).await?;
    client.put("k", "v").await?;

    let before = resident_kib(process)?;
    let endpoint = Endpoint::from_shared(format!("http://{}", cluster.address(&primary)))?;
    let mut connections: Vec<Channel> = Vec::new();
    for _ in 0..CONNECTIONS {
        let channel = endpoint.connect().await?;
        // Each has been used once.
        v1::cluster_client::ClusterClient::new(channel.clone()).history(v1::HistoryRequest {}).await?;
        connections.push(channel);
    }
    let after = resident_kib(process)?;
    let each = after.saturating_sub(before) / CONNECTIONS;
    println!("{CONNECTIONS} idle connections: {before} KiB before, {after} KiB with them, {each} KiB each");
    ensure!(each <= KIB_MAX, "{each} KiB for each idle connection");
    client.put("k", "w").await?;
    ensure!(client.get("k").await?.found.is_some_and(|found| found.value == "w"), "it still works");
    drop(connections);
    cluster.finish().await
}
