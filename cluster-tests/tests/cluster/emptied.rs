//! A node whose data directory was lost, restarted under its old name: another node, which counts for nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster_tests::cluster::{Cluster, PATIENCE};
use cluster_tests::scenario::{SOME, Scenario};

const WATCH: Duration = Duration::from_secs(4);

async fn wait_for_log(cluster: &Cluster, name: &str, text: &str) -> Result<()> {
    let what = format!("{name} to say \"{text}\"");
    cluster.wait_for(&what, PATIENCE, |_| cluster.log(name).contains(text).then_some(())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_node_never_votes_bootstraps_or_counts() -> Result<()> {
    let mut scenario = Scenario::begin().await?;
    let primary = scenario.cluster.wait_settled().await?;
    let emptied = scenario.cluster.names().into_iter().find(|name| *name != primary).expect("two standbys");
    scenario.cluster.kill9(&emptied)?;
    std::fs::remove_dir_all(scenario.cluster.data_dir(&emptied)).context("emptying a node")?;
    scenario.cluster.start_node(&emptied)?;
    scenario.cluster.give_up(&emptied);
    wait_for_log(&scenario.cluster, &emptied, "lost its data directory").await?;
    scenario.workload.wait_more(SOME, SOME, PATIENCE).await?;
    let listed = |view: &cluster_tests::view::View| {
        let sync = view.primary()?.sync.clone()?;
        (!sync.members.contains(&emptied)).then_some(())
    };
    scenario.cluster.wait_for("the emptied node to be off the sync list", PATIENCE, listed).await?;

    // One of three voters is left: with the emptied node there would be a majority.
    let primary = scenario.primary().await?;
    let before = scenario.workload.progress();
    scenario.cluster.kill9(&primary)?;
    let begin = Instant::now();
    while begin.elapsed() < WATCH {
        let view = scenario.cluster.view().await;
        ensure!(view.writable_primary().is_none(), "somebody opened without a majority:\n{view}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure!(scenario.workload.progress().timeline() == before.timeline(), "an acknowledgement without a majority");
    scenario.cluster.start_node(&primary)?;
    scenario.workload.wait_timeline_after(before.timeline(), PATIENCE).await?;
    scenario.verdict().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_were_all_emptied_but_one_make_no_new_cluster() -> Result<()> {
    let mut scenario = Scenario::begin().await?;
    let kept = scenario.cluster.wait_settled().await?;
    scenario.cluster.kill9_all()?;
    let emptied: Vec<String> = scenario.cluster.names().into_iter().filter(|name| *name != kept).collect();
    for name in &emptied {
        let (dir, aside) =
            (scenario.cluster.data_dir(name).to_owned(), scenario.cluster.dir().join(format!("{name}.aside")));
        std::fs::rename(&dir, &aside).context("setting a data directory aside")?;
    }
    scenario.cluster.start_all()?;
    for name in &emptied {
        wait_for_log(&scenario.cluster, name, "lost its data directory").await?;
    }
    let view = scenario.cluster.view().await;
    ensure!(view.writable_primary().is_none(), "two empty nodes and one made a cluster:\n{view}");
    // The directories are found again: it is the old cluster, with everything.
    scenario.cluster.kill9_all()?;
    for name in &emptied {
        let (dir, aside) =
            (scenario.cluster.data_dir(name).to_owned(), scenario.cluster.dir().join(format!("{name}.aside")));
        std::fs::remove_dir_all(&dir).context("removing the empty directory")?;
        std::fs::rename(&aside, &dir).context("putting a data directory back")?;
    }
    scenario.cluster.start_all()?;
    scenario.verdict().await?;
    Ok(())
}
