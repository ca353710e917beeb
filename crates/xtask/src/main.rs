//! `cargo xtask`: what a developer and CI run, in Rust instead of shell scripts.
//!
//! | command | what it does |
//! |---|---|
//! | `cargo xtask demo` | installs what is missing, builds, and runs the failover demo on real data |
//! | `cargo xtask bench` | installs what is missing, builds, and measures three real servers beside the raw speed of the machine |
//! | `cargo xtask test` | installs what is missing, builds, and runs every check and every test |
//! | `cargo xtask image` | builds the container image `understudy:dev` |
//! | `cargo xtask tidy` | checks the rules that no compiler checks: dependency edges, file sizes, links, invariants |
//!
//! This crate depends on nothing that needs a C++ compiler or libclang: it is what installs them. The demo itself
//! therefore is a binary of its own (`understudy-demo` in `cluster-tests`), built once the prerequisites are there.

mod bench;
mod cargo;
mod image;
mod prerequisites;
mod tidy;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, checks, tests and shows Understudy", version)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Three servers, real data, a killed primary; prints what was lost (nothing) and how long writes were away.
    ///
    /// Options are those of the demo itself: `cargo xtask demo --help` lists them.
    #[command(disable_help_flag = true)]
    Demo {
        /// For the demo.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<OsString>,
    },
    /// Three servers, every level and every way of reading, catch-up and seeding, beside the raw speed of disk and loopback.
    ///
    /// Options are those of the bench itself: `cargo xtask bench --help` lists them.
    #[command(disable_help_flag = true)]
    Bench {
        /// For the bench.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<OsString>,
    },
    /// Formatting, lints, tidy, doc tests, all tests; the last lines are the test runner's summary.
    Test {
        /// For `cargo nextest run`, e.g. a filter.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<OsString>,
    },
    /// The container image of a server, understudy:dev, for docker/compose.yaml.
    Image,
    /// Dependency edges, file sizes, links in the documentation, invariants in code and tests.
    Tidy,
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Task::Demo { options } => demo(&options),
        Task::Bench { options } => bench::run(&options),
        Task::Test { options } => test(&options),
        Task::Image => image::build().map(|()| ExitCode::SUCCESS),
        Task::Tidy => tidy::run(&cargo::workspace_root()),
    }
}

fn demo(options: &[OsString]) -> Result<ExitCode> {
    prerequisites::for_building()?;
    cargo::run(["build", "--workspace", "--bins"])?;
    let server = cargo::binary("understudy");
    cargo::exit_code_of(
        std::process::Command::new(cargo::binary("understudy-demo")).arg("--server").arg(server).args(options),
    )
}

fn test(options: &[OsString]) -> Result<ExitCode> {
    prerequisites::for_building()?;
    prerequisites::for_testing()?;
    cargo::run(["fmt", "--all", "--check"])?;
    let tidied = tidy::run(&cargo::workspace_root())?;
    if tidied != ExitCode::SUCCESS {
        return Ok(tidied);
    }
    cargo::run(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    cargo::run(["build", "--workspace", "--bins"])?;
    cargo::run(["test", "--workspace", "--doc"])?;
    let grpcurl = prerequisites::grpcurl()?;
    image_for_tests()?;
    // Last, so that its summary is the last thing on the screen.
    let skipped = cargo::target_dir().join("skipped-tests");
    if skipped.exists() {
        std::fs::remove_file(&skipped).with_context(|| format!("cannot remove {}", skipped.display()))?;
    }
    let mut nextest = cargo::command(["nextest", "run", "--workspace"]);
    nextest.args(options).env("UNDERSTUDY_BIN", cargo::binary("understudy")).env("UNDERSTUDY_SKIPPED", &skipped);
    nextest.env("UNDERSTUDY_GRPCURL", grpcurl);
    let code = cargo::exit_code_of(&mut nextest)?;
    if let Some(line) = skipped_line(&std::fs::read_to_string(&skipped).unwrap_or_default()) {
        eprintln!("{line}");
    }
    Ok(code)
}

/// The image for the compose tests. Where there can be none they are skipped, loudly; not in continuous integration.
fn image_for_tests() -> Result<()> {
    match image::build() {
        Err(error) if !is_ci() => {
            eprintln!("xtask: tests with containers will be skipped: {error:#}");
            Ok(())
        }
        outcome => outcome,
    }
}

fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|set| set == "true")
}

/// What tests wrote when they were skipped: a line each, with what they had needed. None when none was.
fn skipped_line(written: &str) -> Option<String> {
    let mut needs: Vec<&str> = written.lines().collect();
    let count = needs.len();
    needs.sort_unstable();
    needs.dedup();
    (count > 0)
        .then(|| format!("xtask: {count} tests were SKIPPED, because this machine has no {}", needs.join(", no ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_tests_are_counted() {
        assert_eq!(skipped_line(""), None);
        let line = skipped_line("network namespaces\ncontainers\nnetwork namespaces\n").expect("some");
        assert!(line.contains("3 tests") && line.ends_with("no containers, no network namespaces"), "{line}");
    }
}
