//! The lines of the README that a reader copies, run as they stand: only the ports are free ones, and `cargo` does nothing,
//! because what it would build is there.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::compose::{Compose, workspace};
use cluster_tests::lines::blocks;
use cluster_tests::ports;
use cluster_tests::process::server_binary;
use rustix::process::{Pid, Signal, kill_process_group};

const LOOK: Duration = Duration::from_millis(50);
/// For all lines below a heading: containers are made, and a failover is waited for.
const LINES_TIMEOUT: Duration = Duration::from_secs(240);

/// The lines below a heading, in one piece: what a block sets, the next one uses.
fn lines_under(heading: &str) -> Result<String> {
    let text = std::fs::read_to_string(workspace().join("README.md")).context("the README")?;
    let lines = blocks(&text, Some(heading)).concat();
    ensure!(!lines.is_empty(), "no lines under {heading}");
    Ok(lines)
}

/// Runs the lines in a shell of its own in `folder`; gives what it printed. Whatever they left running is ended.
async fn copied(lines: &str, folder: &Path, environment: Vec<(String, String)>) -> Result<String> {
    let binary = server_binary()?;
    let beside = binary.parent().context("the folder of the binary")?;
    let path = format!("{}:{}", beside.display(), std::env::var("PATH").unwrap_or_default());
    let (out, err) = (folder.join("printed"), folder.join("errors"));
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("set -e\ncargo() {{ :; }}\n{lines}")).current_dir(folder);
    shell.env("PATH", path).envs(environment).stdin(Stdio::null()).process_group(0);
    shell.stdout(std::fs::File::create(&out)?).stderr(std::fs::File::create(&err)?);
    let mut child = shell.spawn().context("a shell")?;
    let group = Pid::from_child(&child);
    let ended = async {
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok::<_, anyhow::Error>(status);
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let ended = tokio::time::timeout(LINES_TIMEOUT, ended).await;
    // The group is gone where nothing was left.
    let killed = kill_process_group(group, Signal::KILL);
    let said = || {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        format!("{lines}\nprinted:\n{}\n{}\n{killed:?}", read(&out), read(&err))
    };
    let status = ended.with_context(said)??;
    ensure!(status.success(), "{status}: {}", said());
    std::fs::read_to_string(&out).context("what was printed")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lines_for_a_cluster_by_hand_work() -> Result<()> {
    let ports = ports::free(3)?;
    let mut lines = lines_under("A cluster by hand")?;
    for (port, free) in (7401..).zip(&ports) {
        lines = lines.replace(&format!("127.0.0.1:{port}"), &format!("127.0.0.1:{free}"));
    }
    let folder = tempfile::tempdir()?;
    let said = copied(&lines, folder.path(), Vec::new()).await?;
    for expected in ["committed at ", "hello", "writable  yes"] {
        ensure!(said.contains(expected), "no {expected:?} in:\n{said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lines_for_a_cluster_in_containers_work() -> Result<()> {
    let Some(compose) = Compose::prepared("readme")? else { return Ok(()) };
    let file = workspace().join("docker/compose.yaml");
    let lines = lines_under("A cluster in containers")?;
    ensure!(lines.contains("docker/compose.yaml"), "{lines}");
    let lines = compose.lines_here(&lines).replace("docker/compose.yaml", &file.display().to_string());
    let folder = tempfile::tempdir()?;
    let said = copied(&lines, folder.path(), compose.environment()).await.with_context(|| compose.logs())?;
    for expected in ["committed at ", "hello", "writable  yes", "again"] {
        ensure!(said.contains(expected), "no {expected:?} in:\n{said}");
    }
    Ok(())
}
