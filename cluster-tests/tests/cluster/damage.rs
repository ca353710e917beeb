//! A store or WAL that is damaged where a start does not look: the node that comes across it ends, and its next start fetches the data
//! again from another node. A node without others refuses.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::cluster::{Cluster, Options, PATIENCE};
use cluster_tests::view::View;
use understudy_rpc::v1::{Consistency, Durability};

use crate::seeding::{fill, fill_at, segments};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const VALUES: usize = 20;
/// More than a primary keeps of its WAL in memory.
const MANY: usize = 100;
const SEGMENT_BYTES: u64 = 1 << 20;
const FOUND: &str = "damage-found";

/// Flips a byte in the middle of the largest table file: in a block of values.
fn damage(data_dir: &Path) -> Result<()> {
    let mut tables = Vec::new();
    for entry in std::fs::read_dir(data_dir.join("store"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "sst") {
            tables.push((path.metadata()?.len(), path));
        }
    }
    let (size, path) = tables.into_iter().max().context("a table file")?;
    ensure!(size > 1 << 20, "{} has {size} bytes only", path.display());
    flip_a_byte(&path, size / 2)
}

fn flip_a_byte(path: &Path, at: u64) -> Result<()> {
    let file = std::fs::File::options().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 1], at)?;
    Ok(())
}

/// Stops a node that has all values in its store, damages one, starts it again and reads all of them: it ends by itself.
async fn ends_by_damage(cluster: &mut Cluster, name: &str, is_back: fn(&View) -> bool) -> Result<()> {
    // A stop flushes the store: the values lie in a table file.
    cluster.stop_node(name).await?;
    damage(cluster.data_dir(name))?;
    cluster.start_node(name)?;
    cluster.wait_for("the damaged node to be back", PATIENCE, |view| is_back(view).then_some(())).await?;
    let read = all(cluster, name).await;
    ensure!(read.is_err(), "the damage was not read: {read:?} values");
    let status = cluster.wait_exit(name).await?;
    ensure!(!status.success(), "{name} ended as if all were well: {status}");
    ensure!(cluster.data_dir(name).join(FOUND).exists(), "it is not written down\n{}", cluster.log_ends());
    Ok(())
}

/// How many values can be read there.
async fn all(cluster: &Cluster, name: &str) -> Result<usize, tonic::Status> {
    let client = cluster.client(name, ANSWER_TIMEOUT);
    let (entries, _) = client.scan_at(b"fill-", b"fill.", Consistency::Eventual).await?;
    Ok(entries.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_comes_across_a_bad_block_fetches_its_data_again() -> Result<()> {
    let mut cluster = Cluster::start(&Options::default().node("n1", &["--failover-priority", "1000"])).await?;
    fill(&cluster, "damage", VALUES).await?;
    cluster.wait_settled().await?;
    ends_by_damage(&mut cluster, "n3", |view| view.has_rejoined("n3")).await?;
    cluster.start_node("n3")?;
    cluster.wait_rejoined("n3", PATIENCE).await?;
    let log = cluster.log("n3");
    ensure!(log.contains("it is set aside, and fetched again from another node"), "the data was not set aside");
    let data_dir = cluster.data_dir("n3");
    ensure!(!data_dir.join(FOUND).exists(), "the new data counts as damaged");
    for kept in ["store", "wal", FOUND] {
        ensure!(data_dir.join("damaged").join(kept).exists(), "{kept} was not kept for people");
    }
    cluster.wait_settled().await?;
    ensure!(all(&cluster, "n3").await? == VALUES, "not all that was written is there");
    cluster.finish().await
}

/// Kills n3, has more written than a primary keeps in memory, damages what n3 needs of n1's WAL, and starts n3 again.
async fn n3_needs_what_is_damaged(cluster: &mut Cluster) -> Result<String> {
    cluster.kill9("n3")?;
    fill(cluster, "damage", MANY).await?;
    let needed = damage_what_n3_needs(cluster)?;
    cluster.start_node("n3")?;
    Ok(needed)
}

/// Flips a byte of n1's WAL, in the second segment after the last that n3 has. Gives the segment's name.
fn damage_what_n3_needs(cluster: &Cluster) -> Result<String> {
    let last = segments(&cluster.data_dir("n3").join("wal"))?.pop().context("a segment")?;
    let last = last.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (high, low) = (&last[..16], u64::from_str_radix(&last[16..], 16)?);
    let needed = format!("{high}{:08X}", low + 2);
    flip_a_byte(&cluster.data_dir("n1").join("wal").join(&needed), SEGMENT_BYTES / 2)?;
    Ok(needed)
}

fn n1_is_primary(view: &View) -> Option<()> {
    (view.writable_primary()? == "n1").then_some(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_seeded_past_a_damaged_wal_segment_of_the_primary() -> Result<()> {
    // STR-4. The primary goes on: its store has what the segment said.
    let mut options = Options::default().node("n1", &["--failover-priority", "1000"]);
    options.segment_size = Some(SEGMENT_BYTES);
    let mut cluster = Cluster::start(&options).await?;
    cluster.wait_for("n1 to be the primary", PATIENCE, n1_is_primary).await?;
    cluster.wait_settled().await?;
    let needed = n3_needs_what_is_damaged(&mut cluster).await?;
    cluster.wait_settled().await?;
    let told = format!("requested WAL segment {needed} is damaged on this node");
    ensure!(cluster.log("n3").contains(&told), "it was not told so\n{}", cluster.log_ends());
    ensure!(cluster.log("n3").contains("the seed is complete"), "it was not seeded\n{}", cluster.log_ends());
    cluster.wait_for("n1 to be the primary", PATIENCE, n1_is_primary).await?;
    ensure!(all(&cluster, "n3").await? == MANY, "not all that was written is there");
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_on_the_sync_list_keeps_what_it_has_when_the_primarys_wal_is_damaged() -> Result<()> {
    // INV-DURABLE: of what was acknowledged n3 may have one of two copies, and the other lies on a disk that was found bad.
    let options = Options::default().node("n1", &["--failover-priority", "1000"]);
    let mut options = options.sync("FIRST 1 (n3)", "required");
    (options.segment_size, options.listed) = (Some(SEGMENT_BYTES), Some(1));
    let mut cluster = Cluster::start(&options).await?;
    cluster.wait_for("n1 to be the primary", PATIENCE, n1_is_primary).await?;
    cluster.wait_settled().await?;
    cluster.kill9("n3")?;
    // At level local: n3, which has to acknowledge, is away.
    fill_at(&cluster, "damage", MANY, Durability::Local).await?;
    let needed = damage_what_n3_needs(&cluster)?;
    cluster.start_node("n3")?;
    let told = format!("WAL segment {needed} is damaged on this node");
    let kept = |_: &View| cluster.log("n3").contains(&told).then_some(());
    cluster.wait_for("n3 to be told", PATIENCE, kept).await?;
    ensure!(!cluster.log("n3").contains("asking for a seed"), "n3 gave up what it had\n{}", cluster.log_ends());
    // What lies there is not acknowledged yet. When n2 has it in n3's place, n1 has to apply it, and comes across the damage itself.
    cluster.client("n2", ANSWER_TIMEOUT).set_settings(&[("synchronous_standby_names", "FIRST 1 (n2, n3, n1)")]).await?;
    let status = cluster.wait_exit("n1").await?;
    ensure!(!status.success(), "n1 ended as if all were well: {status}");
    let found = std::fs::read_to_string(cluster.data_dir("n1").join(FOUND))?;
    ensure!(found.contains(&needed), "{found}");
    let took_over = |view: &View| view.writable_primary().filter(|primary| primary != "n1");
    cluster.wait_for("another node to take over", PATIENCE, took_over).await?;
    cluster.start_node("n1")?;
    cluster.wait_settled().await?;
    ensure!(!cluster.log("n3").contains("asking for a seed"), "n3 was seeded, though n2 has all of the WAL");
    for name in cluster.names() {
        ensure!(all(&cluster, &name).await? == MANY, "{name} has not all that was written");
    }
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_others_keeps_its_damaged_data_and_refuses_to_start() -> Result<()> {
    let options = Options { names: vec!["n1".to_owned()], ..Options::default() };
    let mut cluster = Cluster::prepare(&options)?;
    cluster.start_all()?;
    fill(&cluster, "damage", VALUES).await?;
    ends_by_damage(&mut cluster, "n1", |view| view.writable_primary().is_some()).await?;
    cluster.start_node("n1")?;
    let status = cluster.wait_exit("n1").await?;
    ensure!(!status.success(), "it started: {status}");
    let log = cluster.log("n1");
    ensure!(log.contains("was found damaged"), "it does not say why\n{}", cluster.log_ends());
    let data_dir = cluster.data_dir("n1").to_owned();
    ensure!(data_dir.join("store").exists() && !data_dir.join("damaged").exists(), "the only copy was touched");
    cluster.give_up("n1");
    cluster.finish().await
}
