//! A node whose WAL is gone upstream is seeded by itself, under load, whatever is killed meanwhile, and only with what it
//! does not have.
//!
//! n1 is the primary, and n2 the standby that n3 is seeded from, unless an election had another outcome. WAL goes from n1 and n2
//! while they are down, as if it had been removed for its age.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::audit;
use cluster_tests::cluster::{Cluster, Options, PATIENCE};
use cluster_tests::node_client::{put_request, random_request_id};
use cluster_tests::scenario::{SOME, Scenario};
use cluster_tests::view::{View, member};
use understudy_rpc::v1;
use understudy_rpc::v1::replication_client::ReplicationClient;
use understudy_types::{NodeId, SystemId};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const VALUE_BYTES: usize = 400_000;
/// Segments that n1 and n2 keep.
const KEPT: usize = 2;
const SEEDED: &str = "n3";
/// What n3 logs when an attempt begins, and when it has brought everything.
const ASKED: &str = "asking for a seed";
const COMPLETE: &str = "the seed is complete";
const SWAPPED: &str = "the new data has taken the place of the old";

fn options() -> Options {
    Options::default().node("n1", &["--failover-priority", "1000"]).node(SEEDED, &["--failover-priority", "1"])
}

/// Data that does not compress.
pub async fn fill(cluster: &Cluster, tag: &str, values: usize) -> Result<()> {
    fill_at(cluster, tag, values, v1::Durability::On).await
}

/// The same at a level.
pub async fn fill_at(cluster: &Cluster, tag: &str, values: usize, level: v1::Durability) -> Result<()> {
    let primary = cluster.wait_for("a primary that takes writes", PATIENCE, |view| view.writable_primary()).await?;
    let client = cluster.client(&primary, ANSWER_TIMEOUT);
    for number in 0..values {
        let mut value = vec![0; VALUE_BYTES];
        getrandom::fill(&mut value).map_err(|error| anyhow::anyhow!("{error}"))?;
        let request = put_request(random_request_id(), format!("fill-{tag}-{number}").as_bytes(), &value);
        let request = v1::CommitRequest { durability: level.into(), ..request };
        client.commit(request).await.context("filling")?;
    }
    Ok(())
}

/// The segment files of a log, in their order.
pub fn segments(wal: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut found: Vec<_> =
        std::fs::read_dir(wal)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    found.retain(|path| path.file_name().is_some_and(|name| name.len() == 24));
    found.sort();
    Ok(found)
}

/// Takes n3 away, writes more than a few segments, and lets n1 and n2 forget all but the last of them.
async fn outlive(cluster: &mut Cluster, tag: &str, values: usize) -> Result<()> {
    cluster.kill9(SEEDED)?;
    fill(cluster, tag, values).await?;
    for name in ["n1", "n2"] {
        cluster.stop_node(name).await?;
    }
    for name in ["n1", "n2"] {
        let found = segments(&cluster.data_dir(name).join("wal"))?;
        ensure!(found.len() > KEPT + 2, "{name} has {} segments only", found.len());
        for path in &found[..found.len() - KEPT] {
            std::fs::remove_file(path)?;
        }
    }
    for name in ["n1", "n2"] {
        cluster.start_node(name)?;
    }
    // Else the seed might come from the primary, which has other files.
    cluster.wait_for("n1 and n2 to be primary and standby", PATIENCE, primary_and_standby).await
}

fn primary_and_standby(view: &View) -> Option<()> {
    let primary = view.writable_primary()?;
    let standby = if primary == "n1" { "n2" } else { "n1" };
    view.has_rejoined(standby).then_some(())
}

/// The figures of the last seed that was completed, from the log: total, reused, received.
fn figures(log: &str) -> Result<[u64; 3]> {
    let line = log.lines().rfind(|line| line.contains(COMPLETE)).context("no seed was completed")?;
    let figure = |name: &str| {
        let (_, rest) = line.split_once(&format!("{name}=")).with_context(|| format!("no {name} in {line}"))?;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u64>().with_context(|| line.to_owned())
    };
    Ok([figure("bytes_total")?, figure("bytes_reused")?, figure("bytes_received")?])
}

async fn rejoined(cluster: &Cluster) -> Result<()> {
    cluster.wait_rejoined(SEEDED, PATIENCE * 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_whose_wal_is_gone_comes_back_by_itself_under_load() -> Result<()> {
    // STR-4.
    let mut scenario = Scenario::begin_with(&options()).await?;
    scenario.wal_may_be_removed = true;
    outlive(&mut scenario.cluster, "load", 60).await?;
    scenario.cluster.start_node(SEEDED)?;
    rejoined(&scenario.cluster).await?;
    let log = scenario.cluster.log(SEEDED);
    ensure!(log.contains("has already been removed"), "the upstream did not say what is missing");
    let [total, reused, received] = figures(&log)?;
    println!("{total} bytes, {reused} reused, {received} received");
    ensure!(total >= (60 * VALUE_BYTES) as u64, "{total} {reused} {received}");
    for gone in ["seed", "damaged"] {
        ensure!(!scenario.cluster.data_dir(SEEDED).join(gone).exists(), "{gone} was left behind");
    }
    scenario.verdict().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_away_until_checkpoints_have_removed_its_wal() -> Result<()> {
    // STR-4, WAL-2: nobody touches a file but the servers.
    let mut options = options();
    options.segment_size = Some(1 << 20);
    options.arguments.extend(["--wal-keep-size", "0", "--max-wal-size", "2MiB"].map(str::to_owned));
    let mut scenario = Scenario::begin_with(&options).await?;
    scenario.wal_may_be_removed = true;
    scenario.cluster.kill9(SEEDED)?;
    let names = |cluster: &Cluster, node: &str| segments(&cluster.data_dir(node).join("wal"));
    let last = names(&scenario.cluster, SEEDED)?.pop().context("a segment")?;
    fill(&scenario.cluster, "age", 60).await?;
    let deadline = std::time::Instant::now() + PATIENCE;
    for node in ["n1", "n2"] {
        while names(&scenario.cluster, node)?.first().is_none_or(|first| first.file_name() <= last.file_name()) {
            ensure!(std::time::Instant::now() < deadline, "{node} removes no WAL:\n{}", scenario.cluster.log_ends());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    scenario.cluster.start_node(SEEDED)?;
    rejoined(&scenario.cluster).await?;
    let log = scenario.cluster.log(SEEDED);
    ensure!(log.contains("has already been removed"), "the upstream did not say what is missing");
    let [total, reused, received] = figures(&log)?;
    println!("{total} bytes, {reused} reused, {received} received");
    scenario.verdict().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_seed_sends_only_what_differs() -> Result<()> {
    // BAK-5. Nobody else writes: compactions make other files of the same data when they like to.
    let mut cluster = Cluster::start(&options()).await?;
    outlive(&mut cluster, "first", 60).await?;
    cluster.start_node(SEEDED)?;
    rejoined(&cluster).await?;
    let [total, reused, received] = figures(&cluster.log(SEEDED))?;
    println!("first seed: {total} bytes, {reused} reused, {received} received");
    ensure!(total >= (60 * VALUE_BYTES) as u64 && received == total, "{total} {reused} {received}");
    // Two nodes have different files of the same data: what counts is a second seed from the same one.
    let mut before = last_source(&cluster.log(SEEDED))?;
    for number in 2..5 {
        outlive(&mut cluster, &format!("seed-{number}"), 15).await?;
        cluster.start_node(SEEDED)?;
        rejoined(&cluster).await?;
        let log = cluster.log(SEEDED);
        let (source, [total, reused, received]) = (last_source(&log)?, figures(&log)?);
        println!("seed {number} from {source}, after {before}: {total} bytes, {reused} reused, {received} received");
        ensure!(reused + received == total, "{total} {reused} {received}");
        if source == before {
            ensure!(received < total / 2, "{total} {reused} {received}");
            return cluster.finish().await;
        }
        before = source;
    }
    anyhow::bail!("no two seeds came from the same node\n{}", cluster.log_ends())
}

/// Whom n3 was seeded from last.
fn last_source(log: &str) -> Result<String> {
    let line = log.lines().rfind(|line| line.contains(ASKED)).context("no seed was asked for")?;
    let (_, rest) = line.split_once("source=").with_context(|| format!("no source in {line}"))?;
    Ok(rest.split_whitespace().next().unwrap_or_default().to_owned())
}

fn times(cluster: &Cluster, text: &str) -> usize {
    cluster.log(SEEDED).matches(text).count()
}

/// Starts n3 and kills it a moment after its seed has begun. Whether the seed was still under way.
async fn killed_while_it_is_seeded(cluster: &mut Cluster, after_ms_max: u64, shown: &mut u32) -> Result<bool> {
    let (asked, completed) = (times(cluster, ASKED), times(cluster, COMPLETE));
    cluster.start_node(SEEDED)?;
    let begun = |_: &View| (times(cluster, ASKED) > asked).then_some(());
    cluster.wait_for("the seed to begin", PATIENCE, begun).await?;
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| anyhow::anyhow!("{error}"))?;
    tokio::time::sleep(Duration::from_millis(u64::from_le_bytes(random) % after_ms_max)).await;
    let view = cluster.view().await;
    let seen =
        view.primary().and_then(|primary| member(primary, SEEDED)).is_some_and(|member| member.state == "seeding");
    cluster.kill9(SEEDED)?;
    let in_time = times(cluster, COMPLETE) == completed;
    *shown += u32::from(seen && in_time);
    Ok(in_time)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_killed_ten_times_while_it_is_seeded_ends_well() -> Result<()> {
    let mut scenario = Scenario::begin_with(&options()).await?;
    scenario.wal_may_be_removed = true;
    outlive(&mut scenario.cluster, "killed", 200).await?;
    let (mut kills, mut too_late, mut shown) = (0, 0, 0);
    while kills < 10 {
        // Another moment each time, later and later: what has come is kept, so there is less and less to send.
        if killed_while_it_is_seeded(&mut scenario.cluster, 20 + 15 * kills, &mut shown).await? {
            kills += 1;
            continue;
        }
        // It was through before it was killed: that kill says nothing, and there must be something to send again.
        too_late += 1;
        ensure!(too_late <= 5, "{kills} kills fell into a seed, {too_late} came after one");
        scenario.cluster.start_node(SEEDED)?;
        rejoined(&scenario.cluster).await?;
        outlive(&mut scenario.cluster, &format!("again-{too_late}"), 200).await?;
    }
    println!("{kills} kills fell into a seed, {shown} of them while status showed it; {too_late} came too late");
    let completed = times(&scenario.cluster, COMPLETE);
    scenario.cluster.start_node(SEEDED)?;
    rejoined(&scenario.cluster).await?;
    ensure!(
        times(&scenario.cluster, COMPLETE) == completed + 1,
        "the seed that was killed was not the one that it needed"
    );
    let [total, reused, received] = figures(&scenario.cluster.log(SEEDED))?;
    println!("{total} bytes, {reused} reused, {received} received");
    ensure!(total >= (200 * VALUE_BYTES) as u64 && reused + received == total, "{total} {reused} {received}");
    scenario.verdict().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_and_the_primary_are_killed_while_a_node_is_seeded() -> Result<()> {
    // INV-FENCED: the node that is seeded seals for the election, which needs it: only two of three are left.
    let mut scenario = Scenario::begin_with(&options()).await?;
    scenario.wal_may_be_removed = true;
    outlive(&mut scenario.cluster, "source", 150).await?;
    scenario.cluster.start_node(SEEDED)?;
    let cluster = &scenario.cluster;
    let asks = |_: &View| cluster.log(SEEDED).contains(ASKED).then_some(());
    cluster.wait_for("the seed to begin", PATIENCE, asks).await?;
    scenario.cluster.kill9("n2")?;
    scenario.cluster.start_node("n2")?;
    scenario.workload.wait_more(SOME, SOME, PATIENCE).await?;
    scenario.cluster.kill9("n1")?;
    scenario.cluster.start_node("n1")?;
    rejoined(&scenario.cluster).await?;
    scenario.verdict().await?;
    Ok(())
}

/// A seed that somebody asked for and does not take: it has a walsender's place until it is dropped.
struct HeldPlace {
    _asks: futures::channel::mpsc::Sender<v1::FromSeeded>,
    _answers: tonic::Streaming<v1::FromSeeder>,
}

/// In the name of `node`, at `from`.
async fn hold_place(cluster: &Cluster, from: &str, node: &str) -> Result<HeldPlace> {
    let status = cluster.client(from, ANSWER_TIMEOUT).status().await.context("the status")?;
    let node_id: NodeId = member(&status, node).with_context(|| format!("{node} is no member"))?.node_id.parse()?;
    let system_id: SystemId = status.system_id.parse()?;
    let start = v1::SeedStart {
        system_id: system_id.get(),
        wal_format_version: understudy_wal::segment::FORMAT_VERSION,
        segment_size: audit::segment_size(&cluster.data_dir(from).join("wal"))?.get(),
        node_id: node_id.get(),
        resume_lsn: 0,
    };
    let start = v1::FromSeeded { message: Some(v1::from_seeded::Message::Start(start)) };
    let (mut asks, messages) = futures::channel::mpsc::channel(1);
    asks.try_send(start).context("there is room for one")?;
    let mut client = ReplicationClient::connect(format!("http://{}", cluster.address(from))).await?;
    let mut answers = client.seed(messages).await?.into_inner();
    loop {
        let message = answers.message().await?.context("the seed was not begun")?;
        if let Some(v1::from_seeder::Message::Begun(_)) = message.message {
            return Ok(HeldPlace { _asks: asks, _answers: answers });
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_leads_raft_hands_leadership_over_before_its_data_is_replaced() -> Result<()> {
    // STR-2 as well: while all places of the sources are taken, the node waits for one.
    let mut cluster = Cluster::start(&options()).await?;
    outlive(&mut cluster, "leads", 20).await?;
    let held_there = hold_place(&cluster, "n2", "n1").await?;
    let held = hold_place(&cluster, "n1", "n2").await?;
    cluster.client("n1", ANSWER_TIMEOUT).set_settings(&[("max_wal_senders", "1")]).await?;
    cluster.start_node(SEEDED)?;
    let refused = |_: &View| cluster.log(SEEDED).contains("walsenders (max_wal_senders)").then_some(());
    cluster.wait_for("n3 to be refused", PATIENCE, refused).await?;
    // It can lead once it has what the others have.
    let knows = |view: &View| (view.answer(SEEDED)?.generation == view.answer("n1")?.generation).then_some(());
    cluster.wait_for("n3 to know the cluster", PATIENCE, knows).await?;
    // The primary stands aside: n3 is the only one that can lead.
    cluster.kill9("n2")?;
    drop(held_there);
    let leads = |view: &View| {
        let answer = view.answer(SEEDED)?;
        let seeding = member(answer, SEEDED)?.state == "seeding";
        (seeding && answer.raft.as_ref()?.leader == SEEDED).then_some(())
    };
    cluster.wait_for("n3 to lead while it is seeded", PATIENCE, leads).await?;
    ensure!(times(&cluster, COMPLETE) == 0, "n3 was seeded while there was no place for it");
    let before = cluster.log(SEEDED).len();
    drop(held);
    let swapped = |_: &View| cluster.log(SEEDED).contains(SWAPPED).then_some(());
    cluster.wait_for("the new data to take the place of the old", PATIENCE, swapped).await?;
    let log = cluster.log(SEEDED);
    let (since, _) = log[before..].split_once(SWAPPED).context("the swap")?;
    let (_, complete) = since.split_once(COMPLETE).context("a seed that was completed")?;
    ensure!(complete.contains("handing raft leadership over"), "n3 swapped as the leader:\n{complete}");
    ensure!(!complete.contains("was not handed over"), "n3 was not relieved:\n{complete}");
    cluster.start_node("n2")?;
    let primary = cluster.wait_for("a primary that takes writes", PATIENCE, |view| view.writable_primary()).await?;
    cluster.client(&primary, ANSWER_TIMEOUT).set_settings(&[("max_wal_senders", "10")]).await?;
    cluster.wait_settled().await?;
    cluster.finish().await
}
