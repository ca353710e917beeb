//! The containers of `docker/compose.yaml`, as a user starts them: each test under a project name and on ports of its own.
//!
//! Containers, networks and volumes are removed when the [`Compose`] goes. Clients stand outside, on this machine, and reach the
//! nodes by their published ports, as a user does. What is in the volumes is read for the audit of the WAL, which takes root.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::{Cluster, Standing};
use crate::{ports, requires};

/// The services of the compose file.
pub const NODES: [&str; 3] = ["a", "b", "c"];
/// Of the projects of tests, and of nobody else: what is left of them is removed.
const PROJECT: &str = "understudy-cluster-tests-";
const IMAGE: &str = "understudy:dev";

/// Three nodes in containers.
#[derive(Debug)]
pub struct Compose {
    project: String,
    file: PathBuf,
    /// Of all nodes for gRPC, then of all for HTTP.
    ports: Vec<u16>,
}

impl Compose {
    /// Starts the nodes; none where this machine cannot, if that is allowed.
    ///
    /// # Errors
    /// When they do not start, or nothing may be skipped and something is missing.
    pub fn for_test(name: &str) -> Result<Option<Compose>> {
        let Some(compose) = Self::prepared(name)? else { return Ok(None) };
        compose.compose(&["up", "-d"])?;
        Ok(Some(compose))
    }

    /// As [`Compose::for_test`], but nothing is started.
    ///
    /// # Errors
    /// When nothing may be skipped and something is missing.
    pub fn prepared(name: &str) -> Result<Option<Compose>> {
        if !requires::require("containers", probe())? {
            return Ok(None);
        }
        remove_stale()?;
        let file = workspace().join("docker/compose.yaml");
        let ports = ports::free(2 * NODES.len())?;
        Ok(Some(Compose { project: format!("{PROJECT}{name}-{}", std::process::id()), file, ports }))
    }

    /// What `docker-compose` finds in its environment, so that it means this project and these ports.
    pub fn environment(&self) -> Vec<(String, String)> {
        let mut environment = vec![("COMPOSE_PROJECT_NAME".to_owned(), self.project.clone())];
        let (grpc, http) = self.ports.split_at(NODES.len());
        for (name, (grpc, http)) in NODES.iter().zip(grpc.iter().zip(http)) {
            let name = name.to_uppercase();
            environment.push((format!("UNDERSTUDY_PORT_{name}"), grpc.to_string()));
            environment.push((format!("UNDERSTUDY_HTTP_PORT_{name}"), http.to_string()));
        }
        environment
    }

    /// Lines that a document has for the ports of the compose file, for the ports of this project.
    pub fn lines_here(&self, lines: &str) -> String {
        let of_node =
            |lines: String, (name, port): (&str, u16)| lines.replace(&format!("127.0.0.1:{port}"), &self.address(name));
        NODES.into_iter().zip(7401..).fold(lines.to_owned(), of_node)
    }

    /// `host:port` of a node, from this machine.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn address(&self, name: &str) -> String {
        let index = NODES.iter().position(|node| *node == name).expect("a node of the compose file");
        format!("127.0.0.1:{}", self.ports[index])
    }

    /// The cluster, for clients and for judging it.
    ///
    /// # Errors
    /// When a volume cannot be found.
    pub fn cluster(&self) -> Result<Cluster> {
        let standing = |name: &&str| {
            let data_dir = self.volume(name)?;
            Ok(Standing { name: (*name).to_owned(), address: self.address(name), data_dir })
        };
        Cluster::standing(NODES.iter().map(standing).collect::<Result<Vec<_>>>()?)
    }

    /// Where the volume of a node lies.
    fn volume(&self, name: &str) -> Result<PathBuf> {
        let volume = format!("{}_{name}", self.project);
        let found = docker(["volume", "inspect", "--format", "{{.Mountpoint}}", &volume])?;
        Ok(PathBuf::from(found.trim()))
    }

    /// The container of a node.
    pub fn container(&self, name: &str) -> String {
        format!("{}_{name}_1", self.project)
    }

    /// `docker-compose` in this project.
    ///
    /// # Errors
    /// When it fails.
    pub fn compose(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("docker-compose");
        command.arg("--file").arg(&self.file).args(arguments).envs(self.environment());
        run(&mut command)
    }

    /// `docker VERB` on a node's container.
    ///
    /// # Errors
    /// When it fails.
    pub fn on(&self, verb: &str, name: &str) -> Result<()> {
        docker([verb, &self.container(name)]).map(drop)
    }

    /// Takes a node off the network of the others, and of the clients.
    ///
    /// # Errors
    /// When it fails.
    pub fn disconnect(&self, name: &str) -> Result<()> {
        docker(["network", "disconnect", &self.network(), &self.container(name)]).map(drop)
    }

    /// Puts it back, under the name by which the others know it.
    ///
    /// # Errors
    /// When it fails.
    pub fn connect(&self, name: &str) -> Result<()> {
        docker(["network", "connect", "--alias", name, &self.network(), &self.container(name)]).map(drop)
    }

    fn network(&self) -> String {
        format!("{}_cluster", self.project)
    }

    /// Removes a node's container and its volume: the disk is gone.
    ///
    /// # Errors
    /// When it fails.
    pub fn lose_volume(&self, name: &str) -> Result<()> {
        docker(["rm", "--force", &self.container(name)])?;
        docker(["volume", "rm", &format!("{}_{name}", self.project)])?;
        Ok(())
    }

    /// What the nodes have logged last.
    pub fn logs(&self) -> String {
        self.compose(&["logs", "--no-color", "--tail", "60"]).unwrap_or_else(|error| format!("{error:#}"))
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        if let Err(error) = self.compose(&["down", "--volumes", "--timeout", "1"]) {
            eprintln!("the containers of {} were not removed: {error:#}", self.project);
        }
    }
}

/// Whether containers can be made here.
fn probe() -> Result<()> {
    docker(["info"]).context("no container engine answers")?;
    docker(["image", "inspect", IMAGE]).context("there is no image: run cargo xtask image")?;
    run(Command::new("docker-compose").arg("version"))?;
    let uid = rustix::process::getuid();
    ensure!(uid.is_root(), "the volumes can be read by root only");
    Ok(())
}

/// Removes what tests have left that were killed: their containers are started again whenever they end, and a later process of the
/// same id would find their volumes.
fn remove_stale() -> Result<()> {
    const LABEL: &str = "com.docker.compose.project";
    for (kind, list, remove) in [
        ("container", &["ps", "--all"][..], &["rm", "--force"][..]),
        ("volume", &["volume", "ls"], &["volume", "rm"]),
        ("network", &["network", "ls"], &["network", "rm"]),
    ] {
        let id = if kind == "volume" { ".Name" } else { ".ID" };
        let format = format!("{{{{{id}}}}} {{{{.Label \"{LABEL}\"}}}}");
        let listed = docker(list.iter().copied().chain(["--filter", &format!("label={LABEL}"), "--format", &format]))?;
        let stale = listed.lines().filter_map(|line| line.split_once(' ')).filter(|(_, project)| is_stale(project));
        for (found, project) in stale {
            // Another test may be removing the same one.
            if let Err(error) = docker(remove.iter().copied().chain([found])) {
                eprintln!("the {kind} {found} of {project} was not removed: {error:#}");
            }
        }
    }
    Ok(())
}

/// Whether a project was made by a test process that lives no more: its name ends with the process id.
fn is_stale(project: &str) -> bool {
    let process = project.strip_prefix(PROJECT).and_then(|rest| rest.rsplit_once('-')).map(|(_, process)| process);
    let process: Option<u32> = process.and_then(|process| process.parse().ok());
    process.is_some_and(|process| !Path::new("/proc").join(process.to_string()).exists())
}

/// The root of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate stands one folder below the root")
}

fn docker<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Result<String> {
    run(Command::new("docker").args(arguments))
}

/// Runs a command and gives what it printed.
///
/// # Errors
/// When it fails, with what it said.
pub fn run(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output: Output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {shown}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{shown} failed: {}\n{said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_projects_of_the_dead_are_stale() {
        assert!(!is_stale(&format!("{PROJECT}kill-{}", std::process::id())));
        assert!(is_stale("understudy-cluster-tests-kill-4194999"), "above the highest process id");
        for foreign in
            ["understudy", "understudy-prod-4194999", "docker-4194999", "understudy-cluster-tests-kill-x", ""]
        {
            assert!(!is_stale(foreign), "{foreign}");
        }
    }
}
