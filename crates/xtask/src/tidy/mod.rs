//! `cargo xtask tidy`: the rules that neither the compiler nor clippy checks.
//!
//! | check | rule |
//! |---|---|
//! | [`edges`] | every dependency between our crates is one that `docs/architecture.md` draws; fenced libraries stay inside their crate |
//! | [`sizes`] | a source file has at most 600 lines without its tests; from 400 on there is a warning |
//! | [`links`] | every relative link in the documentation leads to a file, every `#anchor` to a heading |
//! | [`invariants`] | every `INV-...` of `docs/invariants.md` stands in the code and in a test, and no other is named anywhere |
//! | [`borrows`] | no statement borrows from `tokio::sync::watch` twice: that can wait for ever |
//! | [`words`] | no unfinished business is left in comments |
//!
//! Each check is a function over texts, so that it can be tested without a workspace; this module reads the files.

mod borrows;
mod edges;
mod invariants;
mod links;
mod sizes;
mod source;
mod words;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use self::source::Source;
use crate::cargo;

/// What the checks have to say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Break a rule.
    pub errors: Vec<String>,
    /// Come close to it.
    pub warnings: Vec<String>,
}

impl Findings {
    fn error(&mut self, text: impl Into<String>) {
        self.errors.push(text.into());
    }

    fn warning(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }
}

/// Runs every check on the workspace at `root` and prints what it finds; fails when a rule is broken.
///
/// # Errors
/// When files cannot be read or cargo does not answer.
pub fn run(root: &Path) -> Result<ExitCode> {
    let sources = source::read(root)?;
    let mut findings = Findings::default();
    edges::check(&metadata()?, &mut findings)?;
    sizes::check(&sources, &mut findings);
    links::check(root, &sources, &mut findings);
    invariants::check(&sources, &mut findings);
    borrows::check(&sources, &mut findings);
    words::check(&sources, &mut findings);
    for warning in &findings.warnings {
        eprintln!("tidy: warning: {warning}");
    }
    for error in &findings.errors {
        eprintln!("tidy: error: {error}");
    }
    let (errors, warnings) = (findings.errors.len(), findings.warnings.len());
    eprintln!("tidy: {} files, {errors} errors, {warnings} warnings", sources.len());
    Ok(if findings.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn metadata() -> Result<String> {
    let output = cargo::command(["metadata", "--format-version", "1", "--no-deps"])
        .output()
        .context("cannot run cargo metadata")?;
    anyhow::ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).context("cargo metadata printed something else than text")
}
