//! One run of the bench, from the first probe to the last.
//!
//! The probes come first and last, in the directory that the servers have, so that each figure can be held against what the
//! machine did in the same minutes. Recovery comes last of the servers' part: it changes settings.
//!
//! What was measured is put into the report as it comes, so that an error at the end does not lose what came before it. The
//! timeline of the cluster is looked at before and after each case: a failover in between is not what a case is about.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use cluster_tests::cluster::{self, Cluster, PATIENCE};
use cluster_tests::ports;
use understudy_types::DurabilityLevel;

use crate::figures::Figures;
use crate::probes::Probes;
use crate::recovery;
use crate::report::Report;
use crate::workloads::{self, Case, Clients, ReadKind};
use crate::{null_server, profile, scrape};

const CLIENTS: [usize; 4] = [1, 16, 64, 256];
const QUICK_CLIENTS: [usize; 2] = [1, 64];
const BATCH_CLIENTS: [usize; 2] = [1, 16];
const QUICK_RECOVERY_MIB: u64 = 48;
/// A probe needs no longer than this.
const PROBE_SECONDS_MAX: u64 = 2;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// A part of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Commits at every level.
    Puts,
    /// Reads of every kind.
    Reads,
    /// Commits in batches.
    Batches,
    /// Where the time goes.
    Profile,
    /// Standbys that come back.
    Recovery,
}

/// What the bench is told.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "cargo xtask bench",
    bin_name = "cargo xtask bench",
    about = "Three servers on loopback: commits at every level, reads, batches, catch-up and seeding, beside the raw speed of the machine",
    after_help = "Examples:\n  cargo xtask bench\n  cargo xtask bench --quick\n  cargo xtask bench --seconds 10 --json"
)]
pub struct Options {
    /// How long each case is measured
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// One second a case, and fewer of them: to see that everything works
    #[arg(long)]
    pub quick: bool,
    /// How much a standby misses before it catches up, and again before it is seeded
    #[arg(long, value_name = "MIB", default_value_t = 128, value_parser = clap::value_parser!(u64).range(48..=200))]
    pub recovery_mib: u64,
    /// Only this part, with the probes; may be given several times [default: all of them]
    #[arg(long, value_name = "PART", value_enum)]
    pub only: Vec<Part>,
    /// Print the figures as one line of JSON instead of tables
    #[arg(long)]
    pub json: bool,
    /// Where the servers' data lies while they are measured [default: a new folder in the user's cache, removed at the end]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The server binary [default: UNDERSTUDY_BIN, or the one that was built beside this program]
    #[arg(long, value_name = "FILE")]
    pub server: Option<PathBuf>,
    /// Be the server that does nothing, for the probes
    #[arg(long, value_name = "ADDRESS", hide = true)]
    pub null_server: Option<SocketAddr>,
}

impl Options {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn window(&self) -> Duration {
        Duration::from_secs(if self.quick { 1 } else { self.seconds })
    }

    fn probe_window(&self) -> Duration {
        self.window().min(Duration::from_secs(PROBE_SECONDS_MAX))
    }

    fn clients(&self) -> &'static [usize] {
        if self.quick { &QUICK_CLIENTS } else { &CLIENTS }
    }

    fn recovery_mib(&self) -> u64 {
        if self.quick { QUICK_RECOVERY_MIB } else { self.recovery_mib }
    }
}

/// Measures and prints, or is the null server.
///
/// # Errors
/// When the servers or the machine do not do their part, or the run is interrupted.
pub async fn main(options: &Options) -> Result<()> {
    if let Some(address) = options.null_server {
        return null_server::serve(address).await;
    }
    let mut report = Report {
        processors: std::thread::available_parallelism().map_or(0, usize::from),
        seconds: options.window().as_secs(),
        ..Report::default()
    };
    let measured = tokio::select! {
        measured = measure(options, &mut report) => measured,
        signal = tokio::signal::ctrl_c() => {
            signal.context("cannot wait for Ctrl-C").and_then(|()| Err(anyhow::anyhow!("interrupted")))
        }
    };
    report.error = measured.as_ref().err().map(|error| format!("{error:#}"));
    if options.json {
        println!("{}", serde_json::to_string(&report).context("cannot write JSON")?);
    } else {
        print!("{report}");
    }
    measured
}

async fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let folder = folder(options.dir.as_deref())?;
    let most = options.clients().iter().copied().max().unwrap_or(1);
    eprintln!("bench: probes");
    report.first = Some(Probes::measure(folder.path(), options.clients(), options.probe_window()).await?);

    let (cluster_options, http) = cluster_options(options, folder.path())?;
    let mut cluster = Cluster::start(&cluster_options).await?;
    let clients = Clients::connect(&cluster, most).await?;
    if options.wants(Part::Puts) {
        puts(options, &cluster, &clients, &mut report.puts).await?;
    }
    if options.wants(Part::Reads) {
        reads(options, &cluster, &clients, &http, &mut report.reads).await?;
    }
    if options.wants(Part::Batches) {
        for count in BATCH_CLIENTS {
            let figures = workloads::batches(&clients, count, options.window());
            report.batches.push(case(&cluster, &DurabilityLevel::On.to_string(), count, figures).await?);
        }
    }
    if options.wants(Part::Profile) {
        report.profile = Some(profile::measure(&cluster, &clients, &http, options.window()).await?);
    }
    if options.wants(Part::Recovery) {
        report.catch_up = Some(recovery::catch_up(&mut cluster, &clients, options.recovery_mib()).await?);
        report.seeding = Some(recovery::seeding(&mut cluster, &clients, options.recovery_mib()).await?);
    }
    drop(clients);
    cluster.finish().await?;

    eprintln!("bench: probes");
    report.last = Some(Probes::measure(folder.path(), options.clients(), options.probe_window()).await?);
    Ok(())
}

/// The latest timeline that any node knows.
pub async fn timeline(cluster: &Cluster) -> Result<u32> {
    let mut latest = None;
    for name in cluster.names() {
        if let Ok(status) = cluster.client(&name, ANSWER_TIMEOUT).status().await {
            latest = latest.max(Some(status.timeline));
        }
    }
    latest.context("no node answers")
}

/// One case, and whether the primary stayed the same.
async fn case(
    cluster: &Cluster,
    name: &str,
    clients: usize,
    workload: impl Future<Output = Result<Figures>>,
) -> Result<Case> {
    let before = timeline(cluster).await?;
    let figures = workload.await?;
    let case = Case { name: name.to_owned(), clients, figures, timelines: (before, timeline(cluster).await?) };
    if case.had_failover() {
        eprintln!("bench: there was a failover during this case");
    }
    Ok(case)
}

async fn puts(options: &Options, cluster: &Cluster, clients: &Clients, cases: &mut Vec<Case>) -> Result<()> {
    for level in DurabilityLevel::ALL {
        for count in options.clients() {
            let figures = workloads::puts(clients, level, *count, options.window());
            cases.push(case(cluster, &level.to_string(), *count, figures).await?);
        }
    }
    Ok(())
}

async fn reads(
    options: &Options,
    cluster: &Cluster,
    clients: &Clients,
    http: &BTreeMap<String, String>,
    cases: &mut Vec<Case>,
) -> Result<()> {
    let token = workloads::write_keys(clients).await?;
    for kind in [ReadKind::Linearizable, ReadKind::Leased, ReadKind::Session(token), ReadKind::Eventual] {
        let leased = matches!(kind, ReadKind::Leased);
        if leased {
            lease_reads(cluster, http).await?;
        }
        let measured = reads_of(options, cluster, clients, kind, cases).await;
        if leased {
            set(cluster, "quorum").await?;
        }
        measured?;
    }
    Ok(())
}

async fn reads_of(
    options: &Options,
    cluster: &Cluster,
    clients: &Clients,
    kind: ReadKind,
    cases: &mut Vec<Case>,
) -> Result<()> {
    for count in options.clients() {
        let figures = workloads::reads(clients, kind, *count, options.window());
        cases.push(case(cluster, kind.name(), *count, figures).await?);
    }
    Ok(())
}

async fn set(cluster: &Cluster, linearizable_reads: &str) -> Result<()> {
    let primary = cluster.wait_settled().await?;
    let client = cluster.client(&primary, ANSWER_TIMEOUT);
    client.set_settings(&[("linearizable_reads", linearizable_reads)]).await.context("the setting is taken")?;
    Ok(())
}

/// Sets the cluster to leases, and waits until the primary holds one.
async fn lease_reads(cluster: &Cluster, http: &BTreeMap<String, String>) -> Result<()> {
    set(cluster, "lease").await?;
    let holds = async {
        loop {
            for address in http.values() {
                let text = scrape::metrics(address).await?;
                if text.lines().any(|line| line == "understudy_read_lease 1") {
                    return Ok(());
                }
            }
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(PATIENCE, holds).await.context("the primary has no lease")?
}

/// How the servers are started, and where each has its metrics.
fn cluster_options(options: &Options, dir: &Path) -> Result<(cluster::Options, BTreeMap<String, String>)> {
    let mut made = cluster::Options {
        segment_size: None,
        binary: options.server.clone(),
        dir: Some(dir.to_owned()),
        ..cluster::Options::default()
    };
    let ports = ports::free(made.names.len())?;
    let address = |port: &u16| format!("127.0.0.1:{port}");
    let http: BTreeMap<String, String> = made.names.iter().cloned().zip(ports.iter().map(address)).collect();
    for (name, address) in &http {
        made = made.node(name, &["--http-listen", address]);
    }
    Ok((made, http))
}

/// A folder on a disk: what is temporary for the system may lie in memory.
fn folder(asked: Option<&Path>) -> Result<tempfile::TempDir> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache =
        || set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache"))).map(|dir| dir.join("understudy"));
    let base = asked.map(Path::to_owned).or_else(cache).unwrap_or_else(std::env::temp_dir);
    std::fs::create_dir_all(&base).with_context(|| format!("cannot make {}", base.display()))?;
    let base = std::path::absolute(&base).context("the working directory is gone")?;
    tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in(&base)
        .with_context(|| format!("cannot use {}", base.display()))
}
