//! The `understudy` binary: the server, and the commands that talk to one.
//!
//! Results go to standard output, errors to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage or settings,
//! 3 the key does not exist or a precondition did not hold, 4 the outcome of a commit is unknown.

mod args;
mod config;
mod exit;
mod history;
mod kv;
mod load;
mod members;
mod output;
mod replication;
mod server;
mod status;
mod sync;

use std::process::ExitCode;

use clap::Parser;
use understudy_client::{Client, Options};
use understudy_node::telemetry::handle::traced;

use crate::args::{Cli, Command, MembersCommand};
use crate::exit::Exit;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli).await {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("error: {}", told(&error));
            Exit::of(&error).into()
        }
    }
}

/// The error with its causes; a cause that a message has in it already is not said twice.
fn told(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

async fn run(cli: Cli) -> anyhow::Result<Exit> {
    let output = cli.global.output;
    let options = Options { deadline: cli.global.timeout.0, ..Options::default() };
    let connect = || Client::connect(cli.global.endpoints.clone(), options);
    match cli.command {
        Command::Server(args) => server::run(args).await,
        Command::Status => status::run(&connect().await?, output).await,
        Command::Config(args) => config::run(args.command, output, connect).await,
        Command::History => history::run(&connect().await?, output).await,
        Command::Members(MembersCommand::Replace(args)) => members::replace(&connect().await?, output, args).await,
        Command::Replication => replication::run(&connect().await?, output).await,
        Command::Sync(args) => sync::run(&connect().await?, output, args).await,
        Command::Get(args) => kv::get(&connect().await?, output, args).await,
        Command::Put(args) => traced("put", async { kv::put(&connect().await?, output, args).await }).await?,
        Command::Delete(args) => traced("delete", async { kv::delete(&connect().await?, output, args).await }).await?,
        Command::Scan(args) => kv::scan(&connect().await?, output, args).await,
        Command::Load(args) => load::run(connect().await?, output, args).await,
    }
}
