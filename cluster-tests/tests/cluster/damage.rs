//! A store that is damaged where a start does not look: the node that comes across it ends, and its next start fetches the data
//! again from another node. A node without others refuses.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::cluster::{Cluster, Options, PATIENCE};
use cluster_tests::view::View;
use understudy_rpc::v1::Consistency;

use crate::seeding::fill;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const VALUES: usize = 20;
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
    let file = std::fs::File::options().read(true).write(true).open(&path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, size / 2)?;
    file.write_all_at(&[byte[0] ^ 1], size / 2)?;
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
