//! A cluster under a workload, from the start to the verdict.
//!
//! Every test of a fault has the same frame: three settled servers, clients that write and read all the time, the
//! fault, the way back, and then judgement: all nodes must come back, the history must keep the promises, and the WAL
//! files must agree.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use understudy_types::{Lsn, SystemId};

use crate::audit::{self, Log};
use crate::checker::{self, Violation};
use crate::cluster::{Cluster, Options, PATIENCE};
use crate::history::{Consistency, History, Read};
use crate::ledger::LedgerViolation;
use crate::recorder::read;
use crate::transfers::count;
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
    /// Acknowledged commits that are not there.
    pub lost: usize,
    /// Commits that were made twice.
    pub duplicated: usize,
    /// Promises that were broken, these included.
    pub violations: Vec<String>,
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
        Self::over(Cluster::start(options).await?).await
    }

    /// Over a cluster that is there.
    ///
    /// # Errors
    /// As [`Scenario::begin`].
    pub async fn over(cluster: Cluster) -> Result<Scenario> {
        cluster.wait_settled().await?;
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
        let verdict = self.judged().await?;
        verdict.ensure_kept()?;
        Ok(verdict)
    }

    /// As [`Scenario::verdict`], whatever it is.
    ///
    /// # Errors
    /// When the cluster does not settle, or cannot be asked in the end.
    pub async fn judged(self) -> Result<Verdict> {
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
        let sides = cluster.expected().into_iter().map(|name| (name, Consistency::Eventual));
        for (name, consistency) in [(primary.clone(), Consistency::Linearizable)].into_iter().chain(sides) {
            let counted = count(&recorder, &name, &cluster.client(&name, READ_TIMEOUT), consistency).await;
            history.ledger.finals.push(counted.with_context(|| format!("the final count of the accounts at {name}"))?);
        }
        let client = cluster.client(&primary, READ_TIMEOUT);
        history.timelines = audit::timelines(&client.history().await.context("the primary's history")?)?;
        let log = log_of(&cluster, &primary, &history, applied).await?;
        let folders: Vec<_> =
            cluster.expected().into_iter().map(|name| (name.clone(), cluster.data_dir(&name).join("wal"))).collect();
        let audit = tokio::task::spawn_blocking(move || log.audit(&folders)).await.context("the audit failed")??;
        let verdict = Verdict::of(history, audit, wal_may_be_removed);
        if verdict.violations.is_empty() {
            cluster.finish().await?;
        }
        Ok(verdict)
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

impl Verdict {
    fn of(history: History, audit: audit::Findings, wal_may_be_removed: bool) -> Verdict {
        let broken = checker::check(&history);
        let others = history.writes.iter().filter_map(|w| Some((w.returned, w.acknowledgement()?.position.lsn)));
        let money = history.ledger.check(others);
        let lost = broken.iter().filter(|violation| matches!(violation, Violation::Lost { .. })).count()
            + money.iter().filter(|violation| matches!(violation, LedgerViolation::NotCounted { .. })).count();
        let twice = broken.iter().filter(|violation| matches!(violation, Violation::AppliedTwice { .. })).count()
            + money.iter().filter(|violation| matches!(violation, LedgerViolation::CountedTwice { .. })).count();
        let duplicated = audit.duplicated.len() + twice;
        let mut violations: Vec<String> = broken.iter().map(ToString::to_string).collect();
        violations.extend(money.iter().map(ToString::to_string));
        violations
            .extend(audit.duplicated.iter().map(|commit| format!("a commit stands in the WAL twice: {commit:?}")));
        if !audit.identical() {
            violations.push(format!("the WAL files differ: {:?}", audit.differences));
        }
        if !wal_may_be_removed && audit.commits < history.acknowledged() as u64 {
            violations.push(format!("{} commits in the WAL, {} acknowledged", audit.commits, history.acknowledged()));
        }
        Verdict { history, audit, lost, duplicated, violations }
    }

    /// Prints what was done and seen.
    ///
    /// # Errors
    /// When a promise was broken.
    pub fn ensure_kept(&self) -> Result<()> {
        let Verdict { history, audit, violations, .. } = self;
        let shown = violations.iter().take(VIOLATIONS_SHOWN).map(String::as_str).collect::<Vec<_>>().join("\n");
        ensure!(violations.is_empty(), "{} promises were broken:\n{shown}", violations.len());
        println!(
            "{} commits acknowledged, {} of them transfers; {} reads, {} counts; {} timelines, {} segments compared",
            history.acknowledged(),
            history.ledger.acknowledged().count(),
            history.reads.len(),
            history.ledger.looks.iter().filter(|look| look.whole).count(),
            history.timelines.switches().len(),
            audit.segments
        );
        Ok(())
    }
}
