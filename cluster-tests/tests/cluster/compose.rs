//! The compose file, as a user starts it, and what happens to containers: killed, paused, cut off, restarted, without their
//! volume. Clients write and read all the time. Each prints one line, `compose=NAME availability=... longest_gap_ms=...`.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::availability::Availability;
use cluster_tests::cluster::PATIENCE;
use cluster_tests::compose::{Compose, NODES, run, workspace};
use cluster_tests::history::Nanos;
use cluster_tests::lines::blocks;
use cluster_tests::node_client::NodeClient;
use cluster_tests::scenario::{SOME, Scenario};

const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a node is paused or cut off, at least.
const LASTS: Duration = Duration::from_secs(4);

struct Case {
    name: &'static str,
    compose: Compose,
    scenario: Scenario,
    primary: String,
    from: Nanos,
}

impl Case {
    async fn begin(name: &'static str) -> Result<Option<Case>> {
        let Some(compose) = Compose::for_test(name)? else { return Ok(None) };
        let scenario = match Scenario::over(compose.cluster()?).await {
            Ok(scenario) => scenario,
            Err(error) => return Err(error.context(compose.logs())),
        };
        let primary = scenario.cluster.wait_settled().await?;
        let from = scenario.workload.recorder.now();
        Ok(Some(Case { name, compose, scenario, primary, from }))
    }

    /// Waits until another node acknowledges.
    async fn fails_over(&self, since: understudy_types::TimelineId) -> Result<()> {
        let acknowledged = self.scenario.workload.wait_timeline_after(since, PATIENCE).await;
        acknowledged.with_context(|| self.compose.logs())?;
        self.scenario.workload.wait_more(SOME, SOME, PATIENCE).await.map(drop)
    }

    /// A fault of the primary's container that lasts for at least `lasts`; another node takes over meanwhile, and then this
    /// one comes back.
    async fn fault(
        &self,
        begin: impl FnOnce(&Compose, &str) -> Result<()>,
        lasts: Duration,
        end: impl FnOnce(&Compose, &str) -> Result<()>,
    ) -> Result<()> {
        let primary = self.scenario.cluster.wait_settled().await.with_context(|| self.compose.logs())?;
        let timeline = self.scenario.workload.progress().timeline();
        begin(&self.compose, &primary)?;
        let lasts = tokio::time::sleep(lasts);
        self.fails_over(timeline).await?;
        lasts.await;
        end(&self.compose, &primary)?;
        let rejoined = self.scenario.cluster.wait_rejoined(&primary, PATIENCE).await;
        rejoined.with_context(|| self.compose.logs()).map(drop)
    }

    async fn killed_and_started(&self) -> Result<()> {
        let kill = |compose: &Compose, name: &str| compose.on("kill", name);
        self.fault(kill, Duration::ZERO, |compose, name| compose.on("start", name)).await
    }

    async fn end(self) -> Result<()> {
        let Case { name, compose, scenario, from, .. } = self;
        let to = scenario.workload.recorder.now();
        let verdict = scenario.judged().await.with_context(|| compose.logs())?;
        println!(
            "compose={name} {} elections={} lost={} duplicated={} violations={}",
            Availability::during(&verdict.history, from, to),
            verdict.history.timelines.switches().len() - 1,
            verdict.lost,
            verdict.duplicated,
            verdict.violations.len()
        );
        verdict.ensure_kept()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_primarys_container_is_killed() -> Result<()> {
    let Some(case) = Case::begin("kill").await? else { return Ok(()) };
    case.killed_and_started().await?;
    case.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_primarys_container_is_paused() -> Result<()> {
    let Some(case) = Case::begin("pause").await? else { return Ok(()) };
    let pause = |compose: &Compose, name: &str| compose.on("pause", name);
    case.fault(pause, LASTS, |compose, name| compose.on("unpause", name)).await?;
    case.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_primarys_container_is_disconnected() -> Result<()> {
    let Some(case) = Case::begin("disconnect").await? else { return Ok(()) };
    case.fault(Compose::disconnect, LASTS, Compose::connect).await?;
    case.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn all_containers_are_restarted() -> Result<()> {
    let Some(case) = Case::begin("restart").await? else { return Ok(()) };
    let timeline = case.scenario.workload.progress().timeline();
    case.compose.compose(&["restart", "--timeout", "10"])?;
    case.fails_over(timeline).await?;
    case.scenario.cluster.wait_settled().await?;
    case.end().await
}

/// The `understudy` of this machine, as an operator uses it.
fn understudy(endpoints: &str, arguments: &[&str]) -> Result<String> {
    let binary = std::env::var_os("UNDERSTUDY_BIN").context("UNDERSTUDY_BIN names the binary")?;
    run(Command::new(binary).args(arguments).env("UNDERSTUDY_ENDPOINTS", endpoints))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standbys_volume_is_removed() -> Result<()> {
    let Some(mut case) = Case::begin("volume").await? else { return Ok(()) };
    let lost = NODES.iter().copied().find(|name| *name != case.primary).context("a standby")?;
    let endpoints = case.compose.address(&case.primary);
    // The WAL goes soon, so that the new node has to be seeded.
    understudy(&endpoints, &["config", "set", "wal_keep_size=0", "max_wal_size=32MiB"])?;
    case.scenario.wal_may_be_removed = true;
    case.compose.lose_volume(lost)?;
    case.scenario.workload.wait_more(SOME, SOME, PATIENCE).await?;
    case.compose.compose(&["up", "-d", "--no-recreate", lost])?;
    // The operator is told what to run, by the node itself, and by `status` with all endpoints.
    wait_told(&case.compose, &case.scenario.cluster.client(lost, CLIENT_TIMEOUT), lost).await?;
    let all = NODES.map(|name| case.compose.address(name)).join(",");
    let shown = understudy(&all, &["status"])?;
    ensure!(shown.contains(&format!("run: understudy members replace {lost}")), "{shown}");
    let said = understudy(&endpoints, &["members", "replace", lost])?;
    ensure!(said.contains("in the place of"), "{said}");
    case.scenario.cluster.wait_rejoined(lost, PATIENCE).await.with_context(|| case.compose.logs())?;
    let votes = |view: &cluster_tests::view::View| {
        let member = view.primary()?.members.iter().find(|member| member.name == lost)?;
        (member.voter && !member.joining).then_some(())
    };
    case.scenario.cluster.wait_for("the new node to vote", PATIENCE, votes).await?;
    // It counts like any other: the primary may go now.
    case.killed_and_started().await?;
    case.end().await
}

/// Waits until the node itself says which command gives `lost` its place back.
async fn wait_told(compose: &Compose, client: &NodeClient, lost: &str) -> Result<()> {
    let command = format!("understudy members replace {lost}");
    let told = async {
        loop {
            let status = client.status().await.ok();
            if status.is_some_and(|status| status.not_writable_reason.contains(&command)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.with_context(|| compose.logs())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lines_of_the_grpcurl_cookbook_work() -> Result<()> {
    let Some(compose) = Compose::for_test("grpcurl")? else { return Ok(()) };
    let cluster = compose.cluster()?;
    let primary = cluster.wait_settled().await.with_context(|| compose.logs())?;
    let grpcurl = std::env::var_os("UNDERSTUDY_GRPCURL").context("UNDERSTUDY_GRPCURL names the binary")?;
    let grpcurl = PathBuf::from(grpcurl);
    let folder = grpcurl.parent().context("the folder of grpcurl")?;
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
    let text = std::fs::read_to_string(workspace().join("docs/grpcurl.md")).context("the cookbook")?;
    let (of_a_lost_node, blocks): (Vec<&str>, Vec<&str>) =
        blocks(&text, None).into_iter().partition(|block| block.contains("ReplaceMember"));
    ensure!(blocks.len() >= 12, "the cookbook has {} blocks", blocks.len());
    let copied = |block: &str| -> Result<()> {
        let lines = compose.lines_here(&format!("set -e\nPRIMARY={}\n{block}", compose.address(&primary)));
        let said = run(Command::new("sh").arg("-c").arg(&lines).env("PATH", &path))?;
        ensure!(!said.trim().is_empty(), "{block}\nprinted nothing");
        Ok(())
    };
    blocks.into_iter().try_for_each(copied)?;
    // The one that takes a lost disk. The cookbook has c's, asked of a.
    let lost = NODES.into_iter().find(|name| *name != primary).context("a standby")?;
    compose.lose_volume(lost)?;
    compose.compose(&["up", "-d", "--no-recreate", lost])?;
    wait_told(&compose, &cluster.client(lost, CLIENT_TIMEOUT), lost).await?;
    let [block] = of_a_lost_node[..] else { anyhow::bail!("not one block has ReplaceMember: {of_a_lost_node:?}") };
    ensure!(block.contains("\"c\"") && block.contains("127.0.0.1:7401"), "{block}");
    copied(&block.replace("\"c\"", &format!("\"{lost}\"")).replace("127.0.0.1:7401", "$PRIMARY"))?;
    cluster.wait_rejoined(lost, PATIENCE).await.with_context(|| compose.logs())
}
