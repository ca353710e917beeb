//! kill -9 of one node at a time, and of all of them.

use anyhow::{Result, ensure};
use cluster_tests::cluster::PATIENCE;
use cluster_tests::scenario::{SOME, Scenario};
use cluster_tests::view::View;

/// The standby that leads Raft, or the one that does not.
fn standby(view: &View, leads_raft: bool) -> Option<String> {
    let primary = view.primary()?;
    let leader = &primary.raft.as_ref()?.leader;
    let mut standbys = primary.members.iter().map(|member| &member.name).filter(|name| **name != primary.primary);
    standbys.find(|name| (*name == leader) == leads_raft).cloned()
}

/// Kills the primary of the settled cluster, waits until another one acknowledges, and starts the dead node again.
async fn kill_the_primary(scenario: &mut Scenario) -> Result<()> {
    let primary = scenario.cluster.wait_settled().await?;
    let before = scenario.workload.progress();
    scenario.cluster.kill9(&primary)?;
    let timeline = scenario.workload.wait_timeline_after(before.timeline(), PATIENCE).await?;
    let after = scenario.workload.wait_more(SOME, SOME, PATIENCE).await?;
    let (old, new) = (after.acknowledged[&before.timeline()], after.acknowledged[&timeline]);
    println!("write gap {} ms, timeline {timeline}", new.first.saturating_sub(old.last) / 1_000_000);
    scenario.cluster.start_node(&primary)?;
    scenario.cluster.wait_rejoined(&primary, PATIENCE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_primary_is_killed() -> Result<()> {
    // INV-DURABLE, INV-LINEAR, INV-ONE-PRIMARY: see the checker.
    let mut scenario = Scenario::begin().await?;
    kill_the_primary(&mut scenario).await?;
    let verdict = scenario.verdict().await?;
    ensure!(verdict.history.timelines.switches().len() >= 2, "nobody was promoted");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_primary_is_killed_three_times() -> Result<()> {
    let mut scenario = Scenario::begin().await?;
    for _ in 0..3 {
        kill_the_primary(&mut scenario).await?;
    }
    let verdict = scenario.verdict().await?;
    ensure!(verdict.history.timelines.switches().len() >= 4, "three promotions follow the first");
    Ok(())
}

async fn a_standby_is_killed(leads_raft: bool) -> Result<()> {
    let mut scenario = Scenario::begin().await?;
    let names = scenario.cluster.names();
    let settled = |view: &View| {
        view.settled(&names, None)?;
        Some((standby(view, leads_raft)?, view.timeline()))
    };
    let (name, timeline) = scenario.cluster.wait_for("a settled cluster", PATIENCE, settled).await?;
    scenario.cluster.kill9(&name)?;
    scenario.workload.wait_more(SOME, SOME, PATIENCE).await?;
    scenario.cluster.start_node(&name)?;
    scenario.cluster.wait_rejoined(&name, PATIENCE).await?;
    let verdict = scenario.verdict().await?;
    let latest = verdict.history.timelines.latest();
    ensure!(latest == timeline, "the death of a standby made elections: from timeline {timeline} to {latest}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_standby_that_leads_raft_is_killed() -> Result<()> {
    a_standby_is_killed(true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_follows_raft_is_killed() -> Result<()> {
    a_standby_is_killed(false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_are_killed_at_once_and_restarted() -> Result<()> {
    // INV-DURABLE, INV-REDO: everything comes back from the disks.
    let mut scenario = Scenario::begin().await?;
    for _ in 0..2 {
        scenario.cluster.wait_settled().await?;
        let before = scenario.workload.progress();
        scenario.cluster.kill9_all()?;
        scenario.cluster.start_all()?;
        scenario.workload.wait_timeline_after(before.timeline(), PATIENCE).await?;
        scenario.workload.wait_more(SOME, SOME, PATIENCE).await?;
    }
    scenario.verdict().await?;
    Ok(())
}
