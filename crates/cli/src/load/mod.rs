//! `understudy load`: records from files into the cluster, many commits at a time, with exact accounting.
//!
//! | module | what it does | where it runs |
//! |---|---|---|
//! | `lines` | bounded lines with their numbers | reader thread |
//! | `jsonl`, `deb822` | one record after the other out of lines | reader thread |
//! | `source` | files, passes, prefixes, batches | reader thread |
//! | `pump` | commits in flight, bounded in number and bytes | the command's task |
//! | `account` | what became of every record | the command's task |
//! | `acks` | one line per acknowledged record | the command's task |
//!
//! Memory is bounded: by the longest record, the channel between reader and pump, and the bytes in flight. Two records
//! with the same key are never in flight together, so the later one wins as it would one by one.

mod account;
mod acks;
mod deb822;
mod jsonl;
mod lines;
mod progress;
mod pump;
mod source;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use understudy_client::Client;

use crate::args::{LoadArgs, Output};
use crate::exit::Exit;
use crate::load::acks::Acks;
use crate::load::progress::Progress;
use crate::load::pump::Pump;
use crate::load::source::{Source, batches};
use crate::output::{print, print_json};

/// Loads, prints the accounting, and fails if anything was left out.
pub async fn run(client: Client, output: Output, args: LoadArgs) -> anyhow::Result<Exit> {
    let source = Source::new(&args)?;
    let acks = args.acks.as_deref().map(Acks::create).transpose()?;
    let bytes_read = Arc::new(AtomicU64::new(0));
    let progress = Progress::start(source.bytes_total(), Arc::clone(&bytes_read));
    let pump = Pump::new(client, args.durability, usize::from(args.in_flight), acks, progress);
    let (account, problem) = pump.run(batches(source, bytes_read), signals()?).await;
    match output {
        Output::Table => print(&account.table())?,
        Output::Json => print_json(&account.json(problem.as_ref()))?,
    }
    match problem {
        Some(problem) => Err(problem.into()),
        None => Ok(Exit::Done),
    }
}

/// One message per SIGINT or SIGTERM.
fn signals() -> std::io::Result<mpsc::Receiver<()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (sender, receiver) = mpsc::channel(2);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if sender.send(()).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// Why a load did not take everything.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file cannot be opened, or is read in vain.
    #[error("cannot {what} {file}: {source}")]
    Io {
        /// open, read or write.
        what: &'static str,
        /// Which one.
        file: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The arguments do not fit together.
    #[error("{0}")]
    Arguments(String),
    /// The input is not what it should be.
    #[error("{file}, line {line}: {what}; records before it are loaded, correct this one and load again")]
    Malformed {
        /// Which file.
        file: String,
        /// Where its trouble begins, from 1.
        line: u64,
        /// What is so, and what should be.
        what: String,
    },
    /// A commit did not succeed.
    #[error("{file}, line {line}: the record was not acknowledged: {source}")]
    NotAcknowledged {
        /// Which file.
        file: String,
        /// Of the first record of the commit.
        line: u64,
        /// Why not.
        source: understudy_client::ClientError,
    },
    /// The user had enough.
    #[error("stopped by a signal; what the accounting calls acknowledged is loaded")]
    Interrupted,
}
