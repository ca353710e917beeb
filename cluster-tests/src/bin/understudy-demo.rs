//! `cargo xtask demo`, once everything is built: see `cluster_tests::demo`.

use std::process::ExitCode;

use clap::Parser;
use cluster_tests::demo::{self, Options};

#[tokio::main]
async fn main() -> ExitCode {
    match demo::run(&Options::parse()).await {
        Ok(report) if report.is_good() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
