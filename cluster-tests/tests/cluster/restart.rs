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

const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
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

/// Whichever of these comes back first: the other one comes last.
enum First {
    Primary,
    SyncStandby,
}

/// Five nodes, of which only the primary and the one sync standby have everything for sure.
async fn blocked_until(first: First) -> Result<()> {
    // INV-DURABLE: three of five are a majority, and still nobody may open.
    let names = ["n1", "n2", "n3", "n4", "n5"].map(str::to_owned).to_vec();
    let options = Options { names, listed: Some(1), ..Options::default() }.sync("FIRST 1 (*)", "required");
    let mut scenario = Scenario::begin_with(&options).await?;
    let primary = scenario.cluster.wait_settled().await?;
    let others: Vec<String> = scenario.cluster.names().into_iter().filter(|name| *name != primary).collect();
    let (standby, behind) = others.split_first().context("four standbys")?;
    let rule = format!("FIRST 1 ({standby}, {primary}, {})", behind.join(", "));
    let client = scenario.cluster.client(&primary, ANSWER_TIMEOUT);
    client.set_settings(&[("synchronous_standby_names", &rule)]).await?;
    let as_planned = |view: &View| {
        let answer = view.primary()?;
        (answer.primary == primary && answer.sync.as_ref()?.members.iter().eq([standby])).then_some(())
    };
    let what = format!("{standby} to be the one sync standby of {primary}");
    scenario.cluster.wait_for(&what, PATIENCE, as_planned).await?;
    let killed = kill_all(&mut scenario).await?;
    ensure!(killed == primary, "{killed} was promoted in the place of {primary}");
    for name in behind {
        scenario.cluster.start_node(name)?;
    }
    let text = scenario.cluster.wait_for("the election to be blocked", PATIENCE, |view| view.blocked()).await?;
    println!("blocked: {text}");
    ensure!(text.contains(standby), "the text does not name the missing node: {text}");
    stays_closed(&scenario.cluster).await?;
    let (first, last) = match first {
        First::Primary => (&primary, standby),
        First::SyncStandby => (standby, &primary),
    };
    scenario.cluster.start_node(first)?;
    opens_and_ends_well(scenario, &[last]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn blocked_until_the_sync_standby_comes() -> Result<()> {
    blocked_until(First::SyncStandby).await.context("the old primary, the most advanced, comes last")
}

#[tokio::test(flavor = "multi_thread")]
async fn blocked_until_the_old_primary_comes() -> Result<()> {
    blocked_until(First::Primary).await.context("the sync standby comes last")
}
