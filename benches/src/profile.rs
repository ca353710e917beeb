//! Where the time and the CPU of a commit go, at level `on` with 64 clients.
//!
//! The servers' own histograms tell the time by stage, and `/proc` the CPU by thread. Both are taken over exactly the same
//! commits, those of the warming up included, and the number of commits is the primary's own.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use cluster_tests::cluster::Cluster;
use serde::Serialize;
use understudy_types::DurabilityLevel;

use crate::cpu;
use crate::figures::Figures;
use crate::run;
use crate::scrape::{self, Histogram, Stage};
use crate::workloads::{self, Clients};

/// Enough for batches to form.
pub const CLIENTS: usize = 64;
/// The metric, the label, and how the table calls it.
const PRIMARY_STAGES: [(&str, &str, &str); 7] = [
    ("understudy_commit_stage_seconds", "stage=\"queue\"", "queue"),
    ("understudy_commit_stage_seconds", "stage=\"append\"", "append"),
    ("understudy_commit_stage_seconds", "stage=\"flush\"", "flush"),
    ("understudy_wal_fsync_seconds", "", "of it, fdatasync"),
    ("understudy_commit_stage_seconds", "stage=\"safe\"", "safe"),
    ("understudy_commit_stage_seconds", "stage=\"apply\"", "apply"),
    ("understudy_commit_seconds", "level=\"on\"", "total, in the server"),
];
const STANDBY_STAGES: [(&str, &str, &str); 3] = [
    ("understudy_commit_stage_seconds", "stage=\"remote_flush\"", "remote flush"),
    ("understudy_wal_fsync_seconds", "", "of it, fdatasync"),
    ("understudy_commit_stage_seconds", "stage=\"apply\"", "apply"),
];
const TOTAL: (&str, &str) = ("understudy_commit_seconds", "level=\"on\"");

/// How long a stage took on one node.
#[derive(Debug, Clone, Serialize)]
pub struct StageTime {
    /// `primary` or `standby`.
    pub role: &'static str,
    /// Of the node.
    pub node: String,
    /// As the table calls it.
    pub stage: &'static str,
    /// What was recorded.
    #[serde(flatten)]
    pub time: Stage,
}

/// CPU of one process, or of its threads of one name.
#[derive(Debug, Clone, Serialize)]
pub struct CpuTime {
    /// `primary`, `standby` or `load`.
    pub role: &'static str,
    /// Of the node; `bench` for the load.
    pub node: String,
    /// Of the threads; `all` for the whole process.
    pub threads: String,
    /// Seconds for 1,000 commits.
    pub seconds_per_1000: f64,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Profile {
    /// As the clients see it.
    pub seen: Figures,
    /// Whether the primary changed meanwhile: then the figures are of that.
    pub had_failover: bool,
    /// As the primary counts them.
    pub commits: u64,
    /// In the order in which a commit passes them, the primary first.
    pub stages: Vec<StageTime>,
    /// The primary first.
    pub cpu: Vec<CpuTime>,
}

/// A process that is watched.
struct Watched {
    role: &'static str,
    node: String,
    process: u32,
    /// None for what has no metrics.
    metrics: Option<String>,
}

/// What it said at one time.
struct Look {
    cpu: BTreeMap<String, f64>,
    text: String,
}

impl Watched {
    async fn look(&self) -> Result<Look> {
        let text = match &self.metrics {
            Some(address) => scrape::metrics(address).await?,
            None => String::new(),
        };
        Ok(Look { cpu: cpu::by_thread(self.process)?, text })
    }

    fn stages(&self) -> &'static [(&'static str, &'static str, &'static str)] {
        match self.role {
            "primary" => &PRIMARY_STAGES,
            "standby" => &STANDBY_STAGES,
            _ => &[],
        }
    }
}

/// `http` is where each node has its metrics.
fn watched(cluster: &Cluster, primary: &str, http: &BTreeMap<String, String>) -> Vec<Watched> {
    let node = |(name, process): (String, u32)| {
        let role = if name == primary { "primary" } else { "standby" };
        Watched { role, metrics: http.get(&name).cloned(), node: name, process }
    };
    let mut all: Vec<Watched> = cluster.process_ids().into_iter().map(node).collect();
    all.sort_by_key(|one| one.role);
    all.push(Watched { role: "load", node: "bench".to_owned(), process: std::process::id(), metrics: None });
    all
}

fn difference(before: &Look, after: &Look, name: &str, label: &str) -> Histogram {
    scrape::histogram(&after.text, name, label).since(&scrape::histogram(&before.text, name, label))
}

/// Measures for `window`.
///
/// # Errors
/// When no put succeeds, or a server has no metrics.
pub async fn measure(
    cluster: &Cluster,
    clients: &Clients,
    http: &BTreeMap<String, String>,
    window: Duration,
) -> Result<Profile> {
    let primary = cluster.wait_settled().await?;
    let watched = watched(cluster, &primary, http);
    let mut before = Vec::new();
    for one in &watched {
        before.push(one.look().await?);
    }
    let timeline = run::timeline(cluster).await?;
    let seen = workloads::puts(clients, DurabilityLevel::On, CLIENTS, window).await?;
    let (mut stages, mut cpu, mut commits) = (Vec::new(), Vec::new(), 0);
    for (one, before) in watched.iter().zip(&before) {
        let after = one.look().await?;
        for (name, label, stage) in one.stages() {
            if let Some(time) = difference(before, &after, name, label).stage() {
                stages.push(StageTime { role: one.role, node: one.node.clone(), stage, time });
            }
        }
        // The primary is the first.
        if one.role == "primary" {
            let total = difference(before, &after, TOTAL.0, TOTAL.1).stage();
            commits = total.context("the primary has counted no commit")?.count;
        }
        cpu.extend(cpu_of(one, before, &after, commits));
    }
    let had_failover = run::timeline(cluster).await? != timeline;
    Ok(Profile { seen, had_failover, commits, stages, cpu })
}

fn cpu_of(one: &Watched, before: &Look, after: &Look, commits: u64) -> Vec<CpuTime> {
    let line = |threads: &str, seconds: f64| CpuTime {
        role: one.role,
        node: one.node.clone(),
        threads: threads.to_owned(),
        seconds_per_1000: seconds * 1_000.0 / commits as f64,
    };
    let threads = cpu::between(&before.cpu, &after.cpu);
    let all = threads.iter().map(|(_, seconds)| seconds).sum();
    std::iter::once(line("all", all)).chain(threads.iter().map(|(name, seconds)| line(name, *seconds))).collect()
}
