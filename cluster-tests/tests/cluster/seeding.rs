//! A node whose WAL is gone upstream is seeded by itself, under load, whatever is killed meanwhile, and only with what it
//! does not have.
//!
//! n1 is the primary and n2 the standby that n3 is seeded from: the same one each time, so that its files are known the
//! second time. WAL goes from n1 and n2 while they are down, as if it had been removed for its age.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::cluster::{Cluster, Options, PATIENCE};
use cluster_tests::node_client::{put_request, random_request_id};
use cluster_tests::scenario::{SOME, Scenario};
use cluster_tests::view::member;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const VALUE_BYTES: usize = 400_000;
/// Segments that n1 and n2 keep.
const KEPT: usize = 2;
const SEEDED: &str = "n3";

fn options() -> Options {
    Options::default().node("n1", &["--failover-priority", "1000"]).node(SEEDED, &["--failover-priority", "1"])
}

/// Data that does not compress.
async fn fill(cluster: &Cluster, tag: &str, values: usize) -> Result<()> {
    let primary = cluster.wait_for("a primary that takes writes", PATIENCE, |view| view.writable_primary()).await?;
    let client = cluster.client(&primary, ANSWER_TIMEOUT);
    for number in 0..values {
        let mut value = vec![0; VALUE_BYTES];
        getrandom::fill(&mut value).map_err(|error| anyhow::anyhow!("{error}"))?;
        let request = put_request(random_request_id(), format!("fill-{tag}-{number}").as_bytes(), &value);
        client.commit(request).await.context("filling")?;
    }
    Ok(())
}

fn segments(wal: &Path) -> Result<Vec<std::path::PathBuf>> {
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
    cluster.wait_for("a primary that takes writes", PATIENCE, |view| view.writable_primary()).await?;
    Ok(())
}

/// The figures of the last seed that was completed, from the log: total, reused, received.
fn figures(log: &str) -> Result<[u64; 3]> {
    let line = log.lines().rfind(|line| line.contains("the seed is complete")).context("no seed was completed")?;
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
    outlive(&mut cluster, "second", 15).await?;
    cluster.start_node(SEEDED)?;
    rejoined(&cluster).await?;
    let [total, reused, received] = figures(&cluster.log(SEEDED))?;
    println!("second seed: {total} bytes, {reused} reused, {received} received");
    ensure!(reused + received == total && received < total / 2, "{total} {reused} {received}");
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_killed_ten_times_while_it_is_seeded_ends_well() -> Result<()> {
    let mut scenario = Scenario::begin_with(&options()).await?;
    scenario.wal_may_be_removed = true;
    outlive(&mut scenario.cluster, "killed", 150).await?;
    let mut shown = 0;
    for round in 0..10_u64 {
        scenario.cluster.start_node(SEEDED)?;
        let asked = scenario.cluster.log(SEEDED).matches("asking for a seed").count();
        // A start takes a while; from then on another moment each time. A seed that is complete by then is as good.
        let cluster = &scenario.cluster;
        let begun = |_: &cluster_tests::view::View| {
            (cluster.log(SEEDED).matches("asking for a seed").count() > asked).then_some(())
        };
        let begun = cluster.wait_for("the seed to begin", Duration::from_secs(10), begun).await;
        if begun.is_err() && scenario.cluster.view().await.has_rejoined(SEEDED) {
            break;
        }
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| anyhow::anyhow!("{error}"))?;
        tokio::time::sleep(Duration::from_millis(u64::from_le_bytes(random) % (100 + 60 * round))).await;
        let view = scenario.cluster.view().await;
        let seen =
            view.primary().and_then(|primary| member(primary, SEEDED)).is_some_and(|member| member.state == "seeding");
        shown += u32::from(seen);
        scenario.cluster.kill9(SEEDED)?;
    }
    println!("{shown} times killed while status showed it seeding");
    if !scenario.cluster.is_running(SEEDED) {
        scenario.cluster.start_node(SEEDED)?;
    }
    rejoined(&scenario.cluster).await?;
    println!("{:?}", figures(&scenario.cluster.log(SEEDED)));
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
    let asks = |_: &cluster_tests::view::View| cluster.log(SEEDED).contains("asking for a seed").then_some(());
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
