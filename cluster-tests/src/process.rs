//! One server process: started as an operator would start it, ended by its process id and no other way.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

const POLL: Duration = Duration::from_millis(10);

/// The server binary: `UNDERSTUDY_BIN`, else the one that was built beside this program.
///
/// # Errors
/// When there is none.
pub fn server_binary() -> Result<PathBuf> {
    if let Some(set) = std::env::var_os("UNDERSTUDY_BIN") {
        let path = PathBuf::from(set);
        anyhow::ensure!(path.is_file(), "UNDERSTUDY_BIN is {}, which is not a file", path.display());
        return Ok(path);
    }
    let here = std::env::current_exe().context("this program does not know its own path")?;
    let beside = here.ancestors().skip(1).take(2).map(|folder| folder.join("understudy")).find(|path| path.is_file());
    beside.context("there is no understudy binary: run \"cargo build -p understudy\" or \"cargo xtask test\", or set UNDERSTUDY_BIN")
}

/// What a server is started with.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The server binary.
    pub binary: PathBuf,
    /// Everything after the name of the binary.
    pub arguments: Vec<String>,
    /// Where standard output and standard error go, added to what stands there.
    pub log: PathBuf,
    /// Whether the process outlives a Ctrl-C at the terminal and the program that started it.
    pub detached: bool,
}

/// A running, frozen or dead server. Ends with its owner unless it is [`Server::detach`]ed.
#[derive(Debug)]
pub struct Server {
    child: Child,
    pid: Pid,
    detached: bool,
}

impl Server {
    /// Starts a server.
    ///
    /// # Errors
    /// When the process or its log file cannot be made.
    pub fn start(launch: &Launch) -> Result<Server> {
        use std::os::unix::process::CommandExt;

        let log = File::options().create(true).append(true).open(&launch.log);
        let log = log.with_context(|| format!("cannot open {}", launch.log.display()))?;
        let mut command = Command::new(&launch.binary);
        command.args(&launch.arguments).stdin(Stdio::null());
        command.stderr(log.try_clone().context("cannot share the log file")?).stdout(log);
        if launch.detached {
            command.process_group(0);
        }
        let child = command.spawn().with_context(|| format!("cannot start {}", launch.binary.display()))?;
        let pid = Pid::from_child(&child);
        Ok(Server { child, pid, detached: false })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Whether it has ended and nobody has waited for it: it was neither killed nor stopped from here.
    pub fn is_unnoticed_dead(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap_or_default();
        // The state stands behind the name, which is in parentheses.
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid, signal).with_context(|| format!("cannot send {signal:?} to process {}", self.id()))
    }

    /// kill -9, and waits until it is gone.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill9(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("cannot kill process {}", self.id()))?;
        self.child.wait().with_context(|| format!("cannot wait for process {}", self.id()))?;
        Ok(())
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// When it has not by then.
    pub async fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait().context("cannot wait for a process")? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("process {} has not ended within {} s", self.id(), timeout.as_secs());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// SIGTERM, and waits until it has stopped.
    ///
    /// # Errors
    /// When it does not stop in time.
    pub async fn stop(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(timeout).await
    }

    /// Lets it live on when its owner goes.
    pub fn detach(&mut self) {
        self.detached = true;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.detached && self.is_running() {
            // Nothing to be done about a process that cannot be killed; the next start on its port will tell.
            if let Err(error) = self.kill9() {
                eprintln!("{error:#}");
            }
        }
    }
}

/// The last lines of a log.
pub fn tail(log: &Path, lines: usize) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(dir: &Path, script: &str) -> Launch {
        let arguments = vec!["-c".to_owned(), script.to_owned()];
        Launch { binary: "/bin/sh".into(), arguments, log: dir.join("log"), detached: false }
    }

    #[tokio::test]
    async fn a_process_is_frozen_continued_and_stopped() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut server = Server::start(&launch(dir.path(), "echo here; exec sleep 60")).expect("a process");
        server.signal(Signal::STOP).expect("frozen");
        assert!(server.is_running());
        server.signal(Signal::CONT).expect("continued");
        let status = server.stop(Duration::from_secs(10)).await.expect("stopped");
        assert!(!status.success());
        assert!(!server.is_running());
    }

    #[tokio::test]
    async fn output_is_kept_over_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        for word in ["one", "two"] {
            let mut server =
                Server::start(&launch(dir.path(), &format!("echo {word}; echo {word} >&2"))).expect("a process");
            server.wait(Duration::from_secs(10)).await.expect("ends");
        }
        assert_eq!(tail(&dir.path().join("log"), 3), "one\ntwo\ntwo");
    }

    #[tokio::test]
    async fn a_process_that_ended_by_itself_is_noticed() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut server = Server::start(&launch(dir.path(), "read line; exit 1")).expect("a process");
        tokio::time::timeout(Duration::from_secs(10), async {
            while !server.is_unnoticed_dead() {
                tokio::time::sleep(POLL).await;
            }
        })
        .await
        .expect("standard input is empty, so it ends");
        assert!(!server.is_running());
        assert!(!server.is_unnoticed_dead());
    }

    #[test]
    fn a_process_ends_with_its_owner() {
        let dir = tempfile::tempdir().expect("a directory");
        let server = Server::start(&launch(dir.path(), "exec sleep 60")).expect("a process");
        let status = format!("/proc/{}", server.id());
        drop(server);
        assert!(!Path::new(&status).exists());
    }
}
