//! `cargo xtask bench`, once everything is built: see the library beside it.

use std::process::ExitCode;

use benches::run::{self, Options};
use clap::Parser;

#[tokio::main]
async fn main() -> ExitCode {
    match run::main(&Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
