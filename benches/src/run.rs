//! One run of the bench, from the first probe to the last.
//!
//! The probes come first and last, in the directory that the servers have, so that each figure can be held against what the
//! machine did in the same minutes. Recovery comes last of the servers' part: it changes settings.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use cluster_tests::cluster::{self, Cluster};
use cluster_tests::ports;
use understudy_types::DurabilityLevel;

use crate::probes::Probes;
use crate::recovery;
use crate::report::Report;
use crate::workloads::{self, Case, Clients, ReadKind};
use crate::{null_server, profile};

const CLIENTS: [usize; 4] = [1, 16, 64, 256];
const QUICK_CLIENTS: [usize; 2] = [1, 64];
const BATCH_CLIENTS: [usize; 2] = [1, 16];
const QUICK_RECOVERY_MIB: u64 = 48;
/// A probe needs no longer than this.
const PROBE_SECONDS_MAX: u64 = 2;

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
    let report = tokio::select! {
        report = measure(options) => report?,
        signal = tokio::signal::ctrl_c() => {
            signal.context("cannot wait for Ctrl-C")?;
            anyhow::bail!("interrupted");
        }
    };
    if options.json {
        println!("{}", serde_json::to_string(&report).context("cannot write JSON")?);
    } else {
        print!("{report}");
    }
    Ok(())
}

async fn measure(options: &Options) -> Result<Report> {
    let folder = folder(options.dir.as_deref())?;
    let most = options.clients().iter().copied().max().unwrap_or(1);
    eprintln!("bench: probes");
    let first = Probes::measure(folder.path(), options.clients(), options.probe_window()).await?;

    let (cluster_options, http) = cluster_options(options, folder.path())?;
    let mut cluster = Cluster::start(&cluster_options).await?;
    let clients = Clients::connect(&cluster, most).await?;
    let puts = puts(options, &clients).await?;
    let reads = reads(options, &clients).await?;
    let mut batches = Vec::new();
    for count in BATCH_CLIENTS {
        let figures = workloads::batches(&clients, count, options.window()).await?;
        batches.push(Case { name: DurabilityLevel::On.to_string(), clients: count, figures });
    }
    let profile = profile::measure(&cluster, &clients, &http, options.window()).await?;
    let catch_up = recovery::catch_up(&mut cluster, &clients, options.recovery_mib()).await?;
    let seeding = recovery::seeding(&mut cluster, &clients, options.recovery_mib()).await?;
    drop(clients);
    cluster.finish().await?;

    eprintln!("bench: probes");
    let last = Probes::measure(folder.path(), options.clients(), options.probe_window()).await?;
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let seconds = options.window().as_secs();
    Ok(Report { processors, seconds, first, last, puts, reads, batches, profile, catch_up, seeding })
}

async fn puts(options: &Options, clients: &Clients) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for level in DurabilityLevel::ALL {
        for count in options.clients() {
            let figures = workloads::puts(clients, level, *count, options.window()).await?;
            cases.push(Case { name: level.to_string(), clients: *count, figures });
        }
    }
    Ok(cases)
}

async fn reads(options: &Options, clients: &Clients) -> Result<Vec<Case>> {
    let token = workloads::write_keys(clients).await?;
    let mut cases = Vec::new();
    for kind in [ReadKind::Linearizable, ReadKind::Session(token), ReadKind::Eventual] {
        for count in options.clients() {
            let figures = workloads::reads(clients, kind, *count, options.window()).await?;
            cases.push(Case { name: kind.name().to_owned(), clients: *count, figures });
        }
    }
    Ok(cases)
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
