//! All nodes are killed, and not all of them come back at first: the rules decide, never "first up wins".
//!
//! | who is held back | who is there | what happens |
//! |---|---|---|
//! | all but one | one of three, the old primary even | no majority: waits |
//! | a standby | the old primary, which flushed all that it acknowledged | opens |
//! | the old primary, the most advanced | all of the sync list | opens, with everything acknowledged |
//! | the old primary and the only one on the sync list | a majority of five that may lack something | blocked, and says who is missing |

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster_tests::cluster::{Cluster, Options, PATIENCE};
use cluster_tests::scenario::{SOME, Scenario};
use cluster_tests::view::View;

/// How long a cluster that must not open is watched: several times `primary_timeout`.
const WATCH: Duration = Duration::from_secs(4);

/// Watches that nobody opens for writes.
async fn stays_closed(cluster: &Cluster) -> Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < WATCH {
        let view = cluster.view().await;
        ensure!(view.writable_primary().is_none(), "somebody opened:\n{view}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Kills all nodes of a settled cluster under load. Gives the name of the primary that was.
async fn kill_all(scenario: &mut Scenario) -> Result<String> {
    let primary = scenario.cluster.wait_settled().await?;
    scenario.workload.wait_more(SOME, SOME, PATIENCE).await?;
    scenario.cluster.kill9_all()?;
    Ok(primary)
}

/// Waits until somebody acknowledges again, then brings the rest back, and judges.
async fn opens_and_ends_well(mut scenario: Scenario, later: &[&str]) -> Result<()> {
    let old = scenario.workload.progress().timeline();
    scenario.workload.wait_timeline_after(old, PATIENCE).await?;
    scenario.workload.wait_more(SOME, SOME, PATIENCE).await?;
    for name in later {
        scenario.cluster.start_node(name)?;
    }
    scenario.verdict().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_three_waits_even_if_it_was_the_primary() -> Result<()> {
    let mut scenario = Scenario::begin().await?;
    let primary = kill_all(&mut scenario).await?;
    scenario.cluster.start_node(&primary)?;
    stays_closed(&scenario.cluster).await?;
    let others: Vec<String> = scenario.cluster.names().into_iter().filter(|name| *name != primary).collect();
    scenario.cluster.start_node(&others[0])?;
    opens_and_ends_well(scenario, &[&others[1]]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_held_back() -> Result<()> {
    let mut scenario = Scenario::begin().await?;
    let primary = kill_all(&mut scenario).await?;
    let standbys: Vec<String> = scenario.cluster.names().into_iter().filter(|name| *name != primary).collect();
    // The standby is first up, and must not win alone.
    scenario.cluster.start_node(&standbys[0])?;
    scenario.cluster.start_node(&primary)?;
    opens_and_ends_well(scenario, &[&standbys[1]]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_most_advanced_node_is_held_back() -> Result<()> {
    // INV-DURABLE: the old primary has the most, but with ANY 1 of two, both standbys have together all that was acknowledged.
    let mut scenario = Scenario::begin().await?;
    let primary = kill_all(&mut scenario).await?;
    let standbys: Vec<String> = scenario.cluster.names().into_iter().filter(|name| *name != primary).collect();
    for standby in &standbys {
        scenario.cluster.start_node(standby)?;
    }
    opens_and_ends_well(scenario, &[&primary]).await
}

/// Five nodes, of which only n1, the primary, and n2, the sync standby, have everything for sure.
fn five() -> Options {
    let names = ["n1", "n2", "n3", "n4", "n5"].map(str::to_owned).to_vec();
    let options = Options { names, listed: Some(1), ..Options::default() };
    options.sync("FIRST 1 (n2, n1, n3, n4, n5)", "required").node("n1", &["--failover-priority", "1000"])
}

/// Whether n1 is the primary and n2 the one and only sync standby.
fn as_planned(view: &View) -> Option<()> {
    let primary = view.primary()?;
    let listed = &primary.sync.as_ref()?.members;
    (primary.primary == "n1" && listed.iter().eq(["n2"])).then_some(())
}

async fn blocked_until(name: &str, later: &str) -> Result<()> {
    // INV-DURABLE: three of five are a majority, and still nobody may open.
    let mut scenario = Scenario::begin_with(&five()).await?;
    scenario.cluster.wait_for("n1 to be primary and n2 its sync standby", PATIENCE, as_planned).await?;
    kill_all(&mut scenario).await?;
    for behind in ["n3", "n4", "n5"] {
        scenario.cluster.start_node(behind)?;
    }
    let text = scenario.cluster.wait_for("the election to be blocked", PATIENCE, |view| view.blocked()).await?;
    println!("blocked: {text}");
    ensure!(text.contains("n2"), "the text does not name the missing node: {text}");
    stays_closed(&scenario.cluster).await?;
    scenario.cluster.start_node(name)?;
    opens_and_ends_well(scenario, &[later]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn blocked_until_the_sync_standby_comes() -> Result<()> {
    blocked_until("n2", "n1").await.context("the old primary, the most advanced, comes last")
}

#[tokio::test(flavor = "multi_thread")]
async fn blocked_until_the_old_primary_comes() -> Result<()> {
    blocked_until("n1", "n2").await.context("the sync standby comes last")
}
