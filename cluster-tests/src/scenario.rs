//! A cluster under a workload, from the start to the verdict.
//!
//! Every test of a fault has the same frame: three settled servers, clients that write and read all the time, the
//! fault, the way back, and then judgement: all nodes must come back, the history must keep the promises, and the WAL
//! files must agree.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use understudy_types::{Lsn, SystemId};

use crate::audit::{self, Log};
use crate::checker;
use crate::cluster::{Cluster, Options, PATIENCE};
use crate::history::{Consistency, History, Read};
use crate::recorder::read;
use crate::workload::{Load, Workload};

/// Before the first fault, after the last, and in between: enough that a fault hits commits under way.
pub const SOME: u64 = 200;
const READ_TIMEOUT: Duration = Duration::from_secs(10);
const VIOLATIONS_SHOWN: usize = 20;

/// A settled cluster with clients at work.
#[derive(Debug)]
pub struct Scenario {
    /// The servers.
    pub cluster: Cluster,
    /// The clients.
    pub workload: Workload,
    /// Nodes may have removed WAL: not every commit is found in what is left of it.
    pub wal_may_be_removed: bool,
}

/// What a scenario came to.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// What clients saw.
    pub history: History,
    /// What the WAL files say.
    pub audit: audit::Findings,
}

impl Scenario {
    /// Three nodes with the default settings.
    ///
    /// # Errors
    /// When the cluster does not settle or the clients get no answers.
    pub async fn begin() -> Result<Scenario> {
        Self::begin_with(&Options::default()).await
    }

    /// A cluster made like this.
    ///
    /// # Errors
    /// As [`Scenario::begin`].
    pub async fn begin_with(options: &Options) -> Result<Scenario> {
        let cluster = Cluster::start(options).await?;
        let workload = Workload::start(&cluster, Load::default());
        workload.wait_more(SOME, SOME, PATIENCE).await?;
        Ok(Self { cluster, workload, wal_may_be_removed: false })
    }

    /// The name of the primary of a cluster that takes writes.
    ///
    /// # Errors
    /// When it takes none.
    pub async fn primary(&self) -> Result<String> {
        self.cluster.wait_for("a primary that takes writes", PATIENCE, |view| view.writable_primary()).await
    }

    /// Lets the clients go on for a while, waits until all nodes are back, and judges. Every node must run
    /// that was not given up.
    ///
    /// # Errors
    /// When something is wrong: all of it is in the message.
    pub async fn verdict(self) -> Result<Verdict> {
        let Scenario { cluster, workload, wal_may_be_removed } = self;
        workload.wait_more(SOME, SOME, PATIENCE).await?;
        cluster.wait_settled().await?;
        workload.wait_more(SOME, SOME, PATIENCE).await?;
        let (load, recorder) = (workload.load.clone(), workload.recorder.clone());
        let mut history = workload.stop().await?;
        let highest = history.highest();
        let applied = caught_up(&cluster, highest).await?;
        let primary = cluster.wait_settled().await?;
        for key in load.keys() {
            history.finals.push(final_read(&recorder, &cluster, &primary, &key, Consistency::Linearizable).await?);
            for name in cluster.expected() {
                history.finals.push(final_read(&recorder, &cluster, &name, &key, Consistency::Eventual).await?);
            }
        }
        let client = cluster.client(&primary, READ_TIMEOUT);
        history.timelines = audit::timelines(&client.history().await.context("the primary's history")?)?;
        let log = log_of(&cluster, &primary, &history, applied).await?;
        let folders: Vec<_> =
            cluster.expected().into_iter().map(|name| (name.clone(), cluster.data_dir(&name).join("wal"))).collect();
        let audit = tokio::task::spawn_blocking(move || log.audit(&folders)).await.context("the audit failed")??;
        judge(&history, &audit, wal_may_be_removed)?;
        cluster.finish().await?;
        Ok(Verdict { history, audit })
    }
}

/// Waits until every node has applied everything that was acknowledged; gives how far all have.
async fn caught_up(cluster: &Cluster, highest: Lsn) -> Result<Lsn> {
    let names = cluster.expected();
    let all = |view: &crate::view::View| {
        let applied = view.applied();
        let least = names.iter().map(|name| applied.get(name).copied()).min().flatten()?;
        (least >= highest).then_some(least)
    };
    cluster.wait_for(&format!("all nodes to apply up to {highest}"), PATIENCE, all).await
}

async fn final_read(
    recorder: &crate::recorder::Recorder,
    cluster: &Cluster,
    node: &str,
    key: &str,
    consistency: Consistency,
) -> Result<Read> {
    let client = cluster.client(node, READ_TIMEOUT);
    read(recorder, node, &client, key, consistency).await.with_context(|| format!("the final read of {key} at {node}"))
}

async fn log_of(cluster: &Cluster, primary: &str, history: &History, upto: Lsn) -> Result<Log> {
    let status = cluster.client(primary, READ_TIMEOUT).status().await.context("the primary's status")?;
    let system_id: SystemId = status.system_id.parse().context("the primary's status")?;
    let segment_size = audit::segment_size(&cluster.data_dir(primary).join("wal"))?;
    Ok(Log { system_id, segment_size, timelines: history.timelines.clone(), upto })
}

fn judge(history: &History, audit: &audit::Findings, wal_may_be_removed: bool) -> Result<()> {
    let violations = checker::check(history);
    let shown: Vec<String> = violations.iter().take(VIOLATIONS_SHOWN).map(ToString::to_string).collect();
    ensure!(violations.is_empty(), "{} promises were broken:\n{}", violations.len(), shown.join("\n"));
    ensure!(audit.duplicated.is_empty(), "commits stand in the WAL twice: {:?}", audit.duplicated);
    ensure!(audit.identical(), "the WAL files differ: {:?}", audit.differences);
    ensure!(
        wal_may_be_removed || audit.commits >= history.acknowledged() as u64,
        "{} commits in the WAL, {} acknowledged",
        audit.commits,
        history.acknowledged()
    );
    println!(
        "{} commits acknowledged, {} reads, {} timelines, {} segments compared",
        history.acknowledged(),
        history.reads.len(),
        history.timelines.switches().len(),
        audit.segments
    );
    Ok(())
}
