//! Running cargo and what it built, in one target directory.
//!
//! RocksDB takes minutes to build, so every task shares one target directory: `CARGO_TARGET_DIR`, else one in the
//! user's cache, so that a second clone of the repository does not build it again.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

/// The root of the workspace that cargo runs this binary for. Asked at run time: two clones share a target directory, and the
/// binary may have been built from the other one.
pub fn workspace_root() -> PathBuf {
    let manifest =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    manifest.ancestors().nth(2).expect("this crate stands two folders below the root").to_path_buf()
}

/// Where everything is built: `CARGO_TARGET_DIR`, else the user's cache, else `target` in the workspace.
pub fn target_dir() -> PathBuf {
    target_dir_from(
        std::env::var_os("CARGO_TARGET_DIR").as_deref(),
        std::env::var_os("HOME").as_deref(),
        &workspace_root(),
    )
}

fn target_dir_from(set: Option<&OsStr>, home: Option<&OsStr>, root: &Path) -> PathBuf {
    match (set, home) {
        (Some(dir), _) if !dir.is_empty() => root.join(dir),
        (_, Some(home)) if !home.is_empty() => Path::new(home).join(".cache/understudy/target"),
        (_, _) => root.join("target"),
    }
}

/// The path of a built binary of the workspace.
pub fn binary(name: &str) -> PathBuf {
    target_dir().join("debug").join(name)
}

/// A cargo command in the workspace.
pub fn command<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    // The cargo that runs this xtask, so that one toolchain builds everything.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(arguments).current_dir(workspace_root()).env("CARGO_TARGET_DIR", target_dir());
    command
}

/// Runs cargo in the workspace.
///
/// # Errors
/// When it cannot be started or fails; its own output says why.
pub fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Result<()> {
    checked(&mut command(arguments))
}

/// Runs a command after saying so.
///
/// # Errors
/// When it cannot be started or fails.
pub fn checked(command: &mut Command) -> Result<()> {
    let text = shown(command);
    eprintln!("xtask: {text}");
    let status = command.status().with_context(|| format!("cannot run {text}"))?;
    if !status.success() {
        bail!("{text} failed: {status}");
    }
    Ok(())
}

/// Runs a command after saying so, and passes its exit code on.
///
/// # Errors
/// When it cannot be started.
pub fn exit_code_of(command: &mut Command) -> Result<ExitCode> {
    let text = shown(command);
    eprintln!("xtask: {text}");
    let status = command.status().with_context(|| format!("cannot run {text}"))?;
    // A signal has no exit code: a failure like any other.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_directory_is_shared_unless_one_is_set() {
        let root = Path::new("/src");
        let of =
            |set: Option<&str>, home: Option<&str>| target_dir_from(set.map(OsStr::new), home.map(OsStr::new), root);
        assert_eq!(of(None, Some("/home/me")), Path::new("/home/me/.cache/understudy/target"));
        assert_eq!(of(Some("/big/target"), Some("/home/me")), Path::new("/big/target"));
        assert_eq!(of(Some("out"), Some("/home/me")), Path::new("/src/out"));
        assert_eq!(of(Some(""), None), Path::new("/src/target"));
    }

    #[test]
    fn a_command_is_shown_as_it_would_be_typed() {
        let mut command = Command::new("/usr/bin/cargo");
        command.args(["build", "--bins"]);
        assert_eq!(shown(&command), "cargo build --bins");
    }

    #[test]
    fn the_workspace_root_holds_the_lock_file() {
        assert!(workspace_root().join("Cargo.lock").is_file());
    }
}
