//! `cargo xtask bench`: the servers measured, beside the raw speed of the machine, in one run.
//!
//! Like the demo, the bench is a binary of its own (`understudy-bench` in `benches`), built once the prerequisites are there.
//! It is built with the one profile that everything is built with: what is measured is what is tested.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::{cargo, prerequisites};

/// Builds and runs it; its tables are on standard output.
///
/// # Errors
/// When something is missing and cannot be installed, or the build fails.
pub fn run(options: &[OsString]) -> Result<ExitCode> {
    prerequisites::for_building()?;
    cargo::run(["build", "--workspace", "--bins"])?;
    let server = cargo::binary("understudy");
    cargo::exit_code_of(Command::new(cargo::binary("understudy-bench")).arg("--server").arg(server).args(options))
}
