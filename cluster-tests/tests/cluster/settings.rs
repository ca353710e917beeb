//! Settings of the cluster, changed while it runs.
//!
//! | what is changed | under what | what must happen |
//! |---|---|---|
//! | rule and mode, each into each | clients that write and read | nothing breaks, and a failover afterwards loses nothing |
//! | the rule, to nobody | a commit that waits for a dead standby in mode `required` | it is acknowledged |
//! | nonsense beside something right | the same | neither is changed |
//! | a rule that nobody matches | | taken, and told of |
//! | what one server is started with: `no_sync`, no priority | | it leaves the sync list, the cluster has its tags, and back |
//! | | all nodes are stopped and started again | what was set stands |

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::cluster::{Cluster, Options, PATIENCE};
use cluster_tests::node_client::{put_request, random_request_id};
use cluster_tests::scenario::{SOME, Scenario};
use cluster_tests::view::{View, member};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

async fn set(cluster: &Cluster, node: &str, settings: &[(&str, &str)]) -> Result<String> {
    let client = cluster.client(node, ANSWER_TIMEOUT);
    let answer = client.set_settings(settings).await.with_context(|| format!("{settings:?} at {node}"))?;
    Ok(answer.warning)
}

async fn value(cluster: &Cluster, node: &str, name: &str) -> Result<String> {
    let shown = cluster.client(node, ANSWER_TIMEOUT).show_settings().await.context("the settings")?;
    let setting = shown.settings.into_iter().find(|setting| setting.name == name);
    Ok(setting.with_context(|| format!("no setting {name}"))?.value)
}

/// Waits until the primary says that the sync list asks for `acks` of `members`, under this rule.
async fn wait_list(cluster: &Cluster, rule: &str, acks: u32, members: usize) -> Result<()> {
    let as_wanted = |view: &View| {
        let sync = view.primary()?.sync.as_ref()?;
        let is_so = sync.synchronous_standby_names == rule && sync.acks == acks && sync.members.len() == members;
        is_so.then_some(())
    };
    cluster.wait_for(&format!("a sync list of {acks} of {members}"), PATIENCE, as_wanted).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rule_and_the_mode_change_while_clients_write() -> Result<()> {
    // SYNC-8, INV-DURABLE.
    let mut scenario = Scenario::begin().await?;
    let primary = scenario.cluster.wait_settled().await?;
    let standby = scenario.cluster.names().into_iter().find(|name| *name != primary).context("a standby")?;
    // In mode async a needless failover may lose commits: none shall happen on a slow machine.
    set(&scenario.cluster, &standby, &[("primary_timeout", "20s")]).await?;
    for (rule, mode, acks, members) in [
        ("ANY 2 (*)", "required", 2, 2),
        ("ANY 1 (*)", "async", 0, 0),
        ("FIRST 1 (*)", "preferred", 1, 1),
        ("", "required", 0, 0),
        ("ANY 1 (*)", "preferred", 1, 2),
        ("ANY 1 (*)", "async", 0, 0),
        ("ANY 2 (*)", "required", 2, 2),
    ] {
        let change = [("synchronous_standby_names", rule), ("sync_mode", mode)];
        set(&scenario.cluster, &standby, &change).await?;
        wait_list(&scenario.cluster, rule, acks, members).await?;
        scenario.workload.wait_more(SOME, SOME, PATIENCE).await?;
    }
    set(&scenario.cluster, &standby, &[("primary_timeout", "1s")]).await?;
    let old = scenario.workload.progress().timeline();
    scenario.cluster.kill9(&primary)?;
    // Two are asked for and one is there: the new primary waits, until it is asked for less.
    scenario.cluster.wait_for("another primary", PATIENCE, |view| (view.timeline() > old).then_some(())).await?;
    set(&scenario.cluster, &standby, &[("synchronous_standby_names", "ANY 1 (*)")]).await?;
    scenario.workload.wait_timeline_after(old, PATIENCE).await?;
    scenario.cluster.start_node(&primary)?;
    set(&scenario.cluster, &standby, &[("sync_mode", "preferred")]).await?;
    scenario.verdict().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_rule_releases_what_waits_and_outlives_a_restart_of_all() -> Result<()> {
    // SYNC-7.
    let mut cluster = Cluster::start(&Options::default()).await?;
    let primary = cluster.wait_settled().await?;
    let standbys: Vec<String> = cluster.names().into_iter().filter(|name| *name != primary).collect();
    let rule = ("synchronous_standby_names", "ANY 2 (*)");
    set(&cluster, &standbys[0], &[rule, ("sync_mode", "required"), ("commit_deadline", "50s")]).await?;
    wait_list(&cluster, "ANY 2 (*)", 2, 2).await?;
    cluster.kill9(&standbys[1])?;

    let client = cluster.client(&primary, PATIENCE);
    let request = put_request(random_request_id(), b"waits", b"for somebody");
    let waiting = tokio::spawn(async move { client.commit(request).await });
    let is_stuck = |view: &View| {
        let own = member(view.primary()?, &primary)?;
        (own.flush_lsn > own.safe_lsn).then_some(())
    };
    cluster.wait_for("the commit to be flushed and not safe", PATIENCE, is_stuck).await?;
    ensure!(!waiting.is_finished(), "acknowledged without the standby that is dead");

    let wrong = [("synchronous_standby_names", "ANY 0 (*)"), ("sync_mode", "async")];
    let refused = set(&cluster, &standbys[0], &wrong).await.expect_err("a refusal");
    ensure!(format!("{refused:#}").contains("no setting was changed"), "{refused:#}");
    ensure!(value(&cluster, &primary, "sync_mode").await? == "required", "half of a wrong change was carried out");
    ensure!(!waiting.is_finished(), "a refused change released a commit");

    set(&cluster, &standbys[0], &[("synchronous_standby_names", "")]).await?;
    let released = tokio::time::timeout(PATIENCE, waiting).await.context("the commit still waits")??;
    released.context("the commit was not acknowledged")?;

    let warning = set(&cluster, &standbys[0], &[("synchronous_standby_names", "nobody")]).await?;
    ensure!(warning.starts_with("nobody can acknowledge"), "{warning}");
    let told = |view: &View| view.primary()?.sync_problem.starts_with("nobody can acknowledge").then_some(());
    cluster.wait_for("the status to say so", PATIENCE, told).await?;

    set(&cluster, &standbys[0], &[("synchronous_standby_names", "FIRST 2 (*)"), ("sync_mode", "preferred")]).await?;
    for name in [&primary, &standbys[0]] {
        cluster.stop_node(name).await?;
    }
    cluster.start_all()?;
    cluster.wait_settled().await?;
    for name in cluster.names() {
        ensure!(value(&cluster, &name, "synchronous_standby_names").await? == "FIRST 2 (*)", "{name} has another rule");
        ensure!(value(&cluster, &name, "commit_deadline").await? == "50s", "{name} has another deadline");
        // The flag that made the segment small counts for a new cluster only, and shows as what the server was given.
        ensure!(value(&cluster, &name, "wal_segment_size").await? == "1MiB", "{name} has another segment size");
    }
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_tagged_as_it_was_started() -> Result<()> {
    // FAIL-8, INV-DURABLE: it is dropped from the sync list first.
    let mut cluster = Cluster::start(&Options::default()).await?;
    let primary = cluster.wait_settled().await?;
    let standby = cluster.names().into_iter().find(|name| *name != primary).context("a standby")?;
    let before = cluster.launch(&standby).arguments.clone();
    for (given, priority, no_sync) in [(&["--no-sync=true", "--failover-priority", "0"][..], 0, true), (&[], 1, false)]
    {
        cluster.stop_node(&standby).await?;
        cluster.launch_mut(&standby).arguments = before.clone();
        cluster.launch_mut(&standby).arguments.extend(given.iter().map(|text| (*text).to_owned()));
        cluster.start_node(&standby)?;
        let is_so = |view: &View| {
            let status = view.primary()?;
            let found = member(status, &standby)?;
            let listed = status.sync.as_ref()?.members.contains(&standby);
            let tagged = (found.failover_priority, found.no_sync) == (priority, no_sync);
            (tagged && listed != no_sync && found.state == "streaming").then_some(())
        };
        cluster.wait_for(&format!("priority {priority}, no_sync {no_sync}"), PATIENCE, is_so).await?;
    }
    cluster.finish().await
}
