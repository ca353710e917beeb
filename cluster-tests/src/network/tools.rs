//! iproute2 and iptables, and what killed test processes left behind.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// How often this process has tried.
static PROBED: AtomicUsize = AtomicUsize::new(0);
/// Waits for the lock that every iptables takes, in seconds.
const LOCK_WAIT: &str = "10";

/// Runs a program and gives its standard output.
fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}", arguments.join(" "), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program in a namespace.
pub(super) fn run_in(namespace: &str, program: &str, arguments: &[&str]) -> Result<String> {
    run("ip", &[&["netns", "exec", namespace, program], arguments].concat())
}

pub(super) fn ip(arguments: &[&str]) -> Result<()> {
    run("ip", arguments).map(drop)
}

pub(super) fn ip_in(namespace: &str, arguments: &[&str]) -> Result<()> {
    run("ip", &[&["-n", namespace], arguments].concat()).map(drop)
}

pub(super) fn iptables(namespace: &str, arguments: &[&str]) -> Result<()> {
    run_in(namespace, "iptables", &[&["-w", LOCK_WAIT], arguments].concat()).map(drop)
}

/// Where a thread finds a namespace to enter.
pub(super) fn namespace_file(namespace: &str) -> PathBuf {
    Path::new("/run/netns").join(namespace)
}

/// Whether this machine can have networks of its own: tried, not guessed.
pub(super) fn probe() -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "only root can make network namespaces");
    let number = PROBED.fetch_add(1, Ordering::Relaxed);
    let name = format!("understudy-{}-probe-{number}", std::process::id());
    ip(&["netns", "add", &name])?;
    let at_random = ["-m", "statistic", "--mode", "random", "--probability", "0.5"];
    let tried = iptables(&name, &[&["-A", "INPUT"], &at_random[..], &["-j", "DROP"]].concat())
        .and_then(|()| run_in(&name, "tc", &["qdisc", "show"]).map(drop));
    ip(&["netns", "delete", &name])?;
    tried
}

/// The names of all network namespaces of the machine.
pub(super) fn namespaces() -> Result<Vec<String>> {
    let listed = run("ip", &["netns", "list"])?;
    Ok(listed.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

/// Removes a link if it is there.
pub(super) fn remove_link(name: &str) -> Result<()> {
    if links()?.iter().any(|link| link == name) { ip(&["link", "delete", "dev", name]) } else { Ok(()) }
}

fn links() -> Result<Vec<String>> {
    let listed = run("ip", &["-o", "link", "show"])?;
    let name = |line: &str| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned());
    Ok(listed.lines().filter_map(name).collect())
}

/// Removes the namespaces and links of test processes that are gone, and the servers that were left in them.
pub(super) fn remove_stale(prefix: &str, link_prefix: &str) -> Result<()> {
    for namespace in namespaces()?.iter().filter(|name| is_stale(name, prefix)) {
        // Another test may be removing the same one.
        for process in run("ip", &["netns", "pids", namespace]).unwrap_or_default().split_whitespace() {
            let process = process.parse().ok().and_then(Pid::from_raw);
            // It may end by itself in between.
            if let Some(Err(error)) = process.map(|process| kill_process(process, Signal::KILL)) {
                eprintln!("cannot kill a server that was left behind: {error}");
            }
        }
        if let Err(error) = ip(&["netns", "delete", namespace]) {
            eprintln!("{error:#}");
        }
    }
    for link in links()?.iter().filter(|name| is_stale(name, link_prefix)) {
        if let Err(error) = remove_link(link) {
            eprintln!("{error:#}");
        }
    }
    Ok(())
}

/// Whether a name was made by a process that lives no more: `PREFIX PID - ...`.
fn is_stale(name: &str, prefix: &str) -> bool {
    let rest = name.strip_prefix(prefix).and_then(|rest| rest.split('-').next());
    let process: Option<u32> = rest.and_then(|process| process.parse().ok());
    process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists())
}

/// A /24 of 198.18.0.0/15 that this machine has no address in, by its number; looked for from `from` on.
pub(super) fn free_subnet(from: u32, count: u32) -> Result<u32> {
    let taken = run("ip", &["-o", "-4", "addr", "show"])?;
    let is_free = |subnet: &u32| {
        let mut begin = String::new();
        write!(begin, " 198.{}.{}.", 18 + subnet / 256, subnet % 256).is_ok() && !taken.contains(&begin)
    };
    (0..count).map(|step| from.wrapping_add(step) % count).find(is_free).context("198.18.0.0/15 is full")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_dead_are_stale() {
        let alive = std::process::id();
        assert!(!is_stale(&format!("understudy-{alive}-0-n1"), "understudy-"));
        assert!(is_stale("understudy-4194999-0-n1", "understudy-"), "above the highest process id");
        assert!(is_stale("us4194999-0", "us"));
        for foreign in ["understudy-", "understudy-x-n1", "usb0", "eth0", "docker0"] {
            assert!(!is_stale(foreign, "understudy-") && !is_stale(foreign, "us"), "{foreign}");
        }
    }
}
