//! Where the demo's data lies: a folder of its own in the user's cache, so that it can be looked at afterwards.
//!
//! The folders of earlier demos are removed when a new one starts, unless their servers still run (`--keep`).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;

/// Holds the process ids of the servers, one a line.
const PROCESSES: &str = "processes";
/// Of a folder's name, before the demo's own process id.
const PREFIX: &str = "run-";
/// Stands in the command line of a running demo.
const DEMO: &str = "understudy-demo";

/// Makes an empty folder: `asked`, or one in the cache.
///
/// # Errors
/// When it cannot be made or is not empty.
pub fn choose(asked: Option<&Path>) -> Result<PathBuf> {
    let dir = match asked {
        Some(dir) => std::path::absolute(dir).context("the working directory is gone")?,
        None => {
            let base = cache().join("understudy/demo");
            remove_old(&base);
            base.join(format!("{PREFIX}{}", std::process::id()))
        }
    };
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut entries = std::fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
    ensure!(entries.next().is_none(), "{} is not empty: give another --dir", dir.display());
    Ok(dir)
}

/// Writes down which processes live in the folder.
///
/// # Errors
/// When it cannot be written.
pub fn remember(cluster: &Cluster) -> Result<()> {
    let path = cluster.dir().join(PROCESSES);
    let text: String = cluster.process_ids().values().map(|id| format!("{id}\n")).collect();
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn cache() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache"))).unwrap_or_else(std::env::temp_dir)
}

fn remove_old(base: &Path) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let dir = entry.path();
        if !is_in_use(&dir)
            && let Err(error) = std::fs::remove_dir_all(&dir)
        {
            eprintln!("demo: cannot remove the earlier demo in {}: {error}", dir.display());
        }
    }
}

/// Whether the demo that made this folder still runs, or a server that it started: their command lines tell.
fn is_in_use(dir: &Path) -> bool {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let demo = name.strip_prefix(PREFIX).is_some_and(|id| command_line(id).contains(DEMO));
    let processes = std::fs::read_to_string(dir.join(PROCESSES)).unwrap_or_default();
    let folder = dir.to_string_lossy();
    demo || processes.lines().any(|id| command_line(id).contains(&*folder))
}

/// Empty for a process that is gone.
fn command_line(id: &str) -> String {
    String::from_utf8_lossy(&std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_folder_that_is_not_empty_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let chosen = choose(Some(&dir.path().join("new"))).expect("made");
        std::fs::write(chosen.join("file"), "").expect("written");
        assert!(choose(Some(&chosen)).is_err());
    }

    #[test]
    fn the_folder_of_a_running_server_is_left_alone() {
        let base = tempfile::tempdir().expect("a directory");
        let (used, unused) = (base.path().join("run-1"), base.path().join("run-2"));
        for dir in [&used, &unused] {
            std::fs::create_dir(dir).expect("made");
        }
        // The folder stands in its command line, as it does in a server's.
        let mut process = Command::new("sleep").arg0_of(&used).arg("60").spawn().expect("a process");
        std::fs::write(used.join(PROCESSES), format!("{}\n", process.id())).expect("written");
        std::fs::write(unused.join(PROCESSES), "4294967295\n").expect("written");
        // For an instant after its start a process has no command line.
        let deadline = Instant::now() + Duration::from_secs(10);
        while command_line(&process.id().to_string()).is_empty() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        remove_old(base.path());
        assert!(used.exists() && !unused.exists());
        process.kill().expect("killed");
        process.wait().expect("gone");
        remove_old(base.path());
        assert!(!used.exists());
    }

    trait Arg0 {
        fn arg0_of(&mut self, dir: &Path) -> &mut Command;
    }

    impl Arg0 for Command {
        fn arg0_of(&mut self, dir: &Path) -> &mut Command {
            use std::os::unix::process::CommandExt;

            self.arg0(dir.join("n1"))
        }
    }
}
