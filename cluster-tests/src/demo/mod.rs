//! The demo: three servers, real data, a killed primary; what was lost, and how long writes were away.
//!
//! | step | module |
//! |---|---|
//! | read this machine's package database | [`source`] |
//! | load it, pass after pass, and keep a ledger of every acknowledgement | [`load`] |
//! | kill the primary of the settled cluster, see who takes over, restart the dead node | [`kill`] |
//! | read everything back on every node, and the WAL files as well | [`verify`] |
//! | say it, to people or to programs | [`report`] |
//!
//! What is claimed is measured: nothing is taken from a server's word that can be read back from the data.

pub mod kill;
pub mod load;
pub mod place;
pub mod report;
pub mod source;
pub mod verify;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Parser;
use understudy_client::{Client, Options as ClientOptions};

use self::load::{Feed, Loader};
use self::report::{Report, Talk};
use crate::cluster::{self, Cluster};

/// What the demo is told.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "cargo xtask demo",
    bin_name = "cargo xtask demo",
    about = "Three servers on loopback, real data, a killed primary: prints what was lost and how long writes were away",
    after_help = "Examples:\n  cargo xtask demo\n  cargo xtask demo --kills 10 --json\n  cargo xtask demo --keep\n  cargo xtask demo --input packages.jsonl"
)]
pub struct Options {
    /// How often the primary is killed, each time once the cluster is settled
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub kills: u32,
    /// Leave the servers running at the end
    #[arg(long)]
    pub keep: bool,
    /// Load this file instead of this machine's package database: JSON lines {"key": .., "value": ..}, or Debian control stanzas
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Print the result as one line of JSON, the last on standard output; everything else goes to standard error
    #[arg(long)]
    pub json: bool,
    /// Commits under way at a time
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub in_flight: u32,
    /// Records a second at most; 0 for as fast as it goes
    #[arg(long, value_name = "N", default_value_t = 2_000)]
    pub rate: u32,
    /// Where data and logs lie; must be empty [default: a new folder in the user's cache]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The server binary [default: UNDERSTUDY_BIN, or the one that was built beside this program]
    #[arg(long, value_name = "FILE")]
    pub server: Option<PathBuf>,
}

/// Runs the demo until it has a result, or is interrupted.
///
/// # Errors
/// When the input, the servers or the machine do not do their part; the servers are ended then.
pub async fn run(options: &Options) -> Result<Report> {
    tokio::select! {
        result = perform(options) => result,
        signal = tokio::signal::ctrl_c() => {
            signal.context("cannot wait for Ctrl-C")?;
            bail!("interrupted");
        }
    }
}

async fn perform(options: &Options) -> Result<Report> {
    let talk = Talk::new(options.json);
    let sources = match &options.input {
        Some(path) => vec![source::of_file(path)?],
        None => source::of_this_machine()?,
    };
    let dir = place::choose(options.dir.as_deref())?;
    let cluster_options = cluster::Options {
        segment_size: None,
        binary: options.server.clone(),
        dir: Some(dir),
        detached: options.keep,
        ..cluster::Options::default()
    };
    let mut cluster = Cluster::prepare(&cluster_options)?;
    talk.begin(options, &cluster, &sources);
    cluster.start_all()?;
    place::remember(&cluster)?;
    let primary = cluster.wait_settled().await?;
    talk.settled(&primary);

    let client =
        Client::connect(cluster.endpoints(), ClientOptions::default()).await.context("the client's endpoints")?;
    let loader = Loader::start(&client, Feed::new(sources, options.rate), options.in_flight);
    let mut kills = Vec::new();
    for number in 1..=options.kills {
        kills.push(kill::round(&mut cluster, &loader, number, options.kills, &talk).await?);
    }
    let ledger = loader.stop().await?;
    talk.verifying(&ledger);
    let verified = verify::verify(&cluster, &ledger).await?;
    let report = Report::new(&cluster, &ledger, verified, kills);
    talk.end(options, &cluster, &report);
    if options.keep {
        cluster.detach();
    } else {
        cluster.finish().await?;
    }
    talk.json(&report)?;
    Ok(report)
}
