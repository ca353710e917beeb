//! A cluster of server processes on loopback, in one directory.
//!
//! Used by the tests and by the demo. The processes are killed when the [`Cluster`] goes, unless they were detached;
//! a cluster that goes without [`Cluster::finish`] prints the last lines of every log, because something went wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::future::join_all;
use rustix::process::Signal;

use crate::network::Network;
use crate::node_client::NodeClient;
pub use crate::options::Options;
use crate::ports;
use crate::process::{Launch, Server, server_binary, tail};
use crate::view::View;

/// Between two looks at the status of other processes.
const POLL: Duration = Duration::from_millis(25);
const STATUS_TIMEOUT: Duration = Duration::from_millis(700);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const LOG_LINES: usize = 40;
/// Long enough for a machine that does other things too; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One member, running or not.
#[derive(Debug)]
struct Node {
    address: String,
    launch: Launch,
    data_dir: PathBuf,
    server: Option<Server>,
}

/// A node that somebody else runs.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Its name.
    pub name: String,
    /// `host:port`, for clients.
    pub address: String,
    /// Where its data lies.
    pub data_dir: PathBuf,
}

/// The processes, and what is needed to start them again.
#[derive(Debug)]
pub struct Cluster {
    nodes: BTreeMap<String, Node>,
    dir: PathBuf,
    listed: Option<usize>,
    /// Not expected to come back.
    given_up: BTreeSet<String>,
    /// Removed when the cluster has finished well.
    temporary: Option<tempfile::TempDir>,
    finished: bool,
    /// Where the servers stand, if not on loopback. Goes after them.
    network: Option<Arc<Network>>,
}

impl Cluster {
    /// Chooses ports and directories; starts nothing.
    ///
    /// # Errors
    /// When there is no server binary, port or directory.
    pub fn prepare(options: &Options) -> Result<Cluster> {
        let binary = options.binary.clone().map_or_else(server_binary, Ok)?;
        let temporary = match &options.dir {
            Some(_) => None,
            None => Some(tempfile::Builder::new().prefix("understudy-").tempdir().context("cannot make a directory")?),
        };
        let dir = options.dir.clone().or_else(|| Some(temporary.as_ref()?.path().to_owned()));
        let dir = dir.context("either a directory is given or one was made")?;
        let members = members(options)?;
        let initial = members.iter().map(|(name, address)| format!("{name}={address}")).collect::<Vec<_>>().join(",");
        let mut nodes = BTreeMap::new();
        for (name, address) in members {
            let data_dir = dir.join(&name);
            let arguments = server_arguments(options, &name, &address, &initial, &data_dir);
            let log = dir.join(format!("{name}.log"));
            let (binary, arguments) = match &options.network {
                Some(network) => network.wrap(&name, binary.clone(), arguments),
                None => (binary.clone(), arguments),
            };
            let launch = Launch { binary, arguments, log, detached: options.detached };
            nodes.insert(name, Node { address, launch, data_dir, server: None });
        }
        let (listed, network) = (options.listed, options.network.clone());
        Ok(Cluster { nodes, dir, listed, given_up: BTreeSet::new(), temporary, finished: false, network })
    }

    /// A cluster whose servers others start and stop.
    ///
    /// # Errors
    /// When no directory can be made.
    pub fn standing(nodes: Vec<Standing>) -> Result<Cluster> {
        let temporary = tempfile::Builder::new().prefix("understudy-").tempdir().context("cannot make a directory")?;
        let dir = temporary.path().to_owned();
        let node = |Standing { name, address, data_dir }: Standing| {
            let log = dir.join(format!("{name}.log"));
            let launch = Launch { binary: PathBuf::new(), arguments: Vec::new(), log, detached: false };
            (name, Node { address, launch, data_dir, server: None })
        };
        let nodes = nodes.into_iter().map(node).collect();
        let given_up = BTreeSet::new();
        // What there is to tell of a failure its servers have logged elsewhere.
        let (temporary, finished) = (Some(temporary), true);
        Ok(Cluster { nodes, dir, listed: None, given_up, temporary, finished, network: None })
    }

    /// Starts all nodes and waits until the cluster is settled.
    ///
    /// # Errors
    /// When it does not settle.
    pub async fn start(options: &Options) -> Result<Cluster> {
        let mut cluster = Self::prepare(options)?;
        cluster.start_all()?;
        cluster.wait_settled().await?;
        Ok(cluster)
    }

    /// The names of all nodes.
    pub fn names(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }

    /// The names of all nodes that are expected to be there in the end.
    pub fn expected(&self) -> Vec<String> {
        self.nodes.keys().filter(|name| !self.given_up.contains(*name)).cloned().collect()
    }

    /// From now on the cluster counts as settled without this node.
    pub fn give_up(&mut self, name: &str) {
        self.given_up.insert(name.to_owned());
    }

    /// `host:port` of every node, in the order of their names.
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.values().map(|node| node.address.clone()).collect()
    }

    /// Where the servers stand.
    ///
    /// # Panics
    /// When they stand on loopback.
    pub fn network(&self) -> &Network {
        self.network.as_deref().expect("the test has made a network")
    }

    /// Where everything lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn node(&self, name: &str) -> &Node {
        self.nodes.get(name).unwrap_or_else(|| panic!("there is no node {name}"))
    }

    fn node_mut(&mut self, name: &str) -> &mut Node {
        self.nodes.get_mut(name).unwrap_or_else(|| panic!("there is no node {name}"))
    }

    /// `host:port` of a node.
    pub fn address(&self, name: &str) -> &str {
        &self.node(name).address
    }

    /// A node's data directory.
    pub fn data_dir(&self, name: &str) -> &Path {
        &self.node(name).data_dir
    }

    /// How a node is started, for tests that start it differently.
    pub fn launch(&self, name: &str) -> &Launch {
        &self.node(name).launch
    }

    /// How a node is started the next time.
    pub fn launch_mut(&mut self, name: &str) -> &mut Launch {
        &mut self.node_mut(name).launch
    }

    /// Everything that a node has logged.
    pub fn log(&self, name: &str) -> String {
        tail(&self.node(name).launch.log, usize::MAX)
    }

    /// A client that asks this node only and waits at most `timeout` for an answer.
    ///
    /// # Panics
    /// Never: the address is our own.
    pub fn client(&self, name: &str, timeout: Duration) -> NodeClient {
        NodeClient::new(self.address(name), timeout).expect("a well-formed address")
    }

    /// The process ids of the running nodes, by name.
    pub fn process_ids(&self) -> BTreeMap<String, u32> {
        self.nodes.iter().filter_map(|(name, node)| Some((name.clone(), node.server.as_ref()?.id()))).collect()
    }

    /// Starts a node that does not run.
    ///
    /// # Errors
    /// When the process cannot be made.
    pub fn start_node(&mut self, name: &str) -> Result<()> {
        let node = self.node_mut(name);
        assert!(node.server.as_mut().is_none_or(|server| !server.is_running()), "{name} runs already");
        node.server = Some(Server::start(&node.launch)?);
        Ok(())
    }

    /// Starts every node that does not run.
    ///
    /// # Errors
    /// As [`Cluster::start_node`].
    pub fn start_all(&mut self) -> Result<()> {
        for name in self.names() {
            if !self.is_running(&name) {
                self.start_node(&name)?;
            }
        }
        Ok(())
    }

    /// Whether the node's process lives, frozen or not.
    pub fn is_running(&mut self, name: &str) -> bool {
        self.node_mut(name).server.as_mut().is_some_and(Server::is_running)
    }

    fn server(&mut self, name: &str) -> Result<&mut Server> {
        self.node_mut(name).server.as_mut().with_context(|| format!("{name} was never started"))
    }

    /// kill -9.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill9(&mut self, name: &str) -> Result<()> {
        self.server(name)?.kill9()
    }

    /// kill -9 of all nodes, as close together as can be.
    ///
    /// # Errors
    /// When one does not run.
    pub fn kill9_all(&mut self) -> Result<()> {
        for node in self.nodes.values().filter_map(|node| node.server.as_ref()) {
            node.signal(Signal::KILL)?;
        }
        self.nodes.values_mut().filter_map(|node| node.server.as_mut()).try_for_each(Server::kill9)
    }

    /// SIGSTOP: the process is frozen, its sockets stay open.
    ///
    /// # Errors
    /// When it does not run.
    pub fn freeze(&mut self, name: &str) -> Result<()> {
        self.server(name)?.signal(Signal::STOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When it does not run.
    pub fn thaw(&mut self, name: &str) -> Result<()> {
        self.server(name)?.signal(Signal::CONT)
    }

    /// SIGTERM, and waits until it has stopped.
    ///
    /// # Errors
    /// When it does not.
    pub async fn stop_node(&mut self, name: &str) -> Result<ExitStatus> {
        self.server(name)?.stop(STOP_TIMEOUT).await
    }

    /// Waits until a node's process ends by itself.
    ///
    /// # Errors
    /// When it goes on.
    pub async fn wait_exit(&mut self, name: &str) -> Result<ExitStatus> {
        self.server(name)?.wait(PATIENCE).await
    }

    /// What every node that answers says now.
    pub async fn view(&self) -> View {
        let asked =
            self.nodes.keys().map(async |name| (name.clone(), self.client(name, STATUS_TIMEOUT).status().await.ok()));
        let answers = join_all(asked).await;
        View::new(answers.into_iter().filter_map(|(name, status)| Some((name, status?))).collect())
    }

    /// An expected node whose process ended without having been told to.
    fn ended_by_itself(&self) -> Option<&String> {
        let ended = |node: &Node| node.server.as_ref().is_some_and(Server::is_unnoticed_dead);
        self.nodes.iter().find(|(name, node)| !self.given_up.contains(*name) && ended(node)).map(|(name, _)| name)
    }

    /// Waits until the nodes that answer say what is waited for.
    ///
    /// # Errors
    /// When they do not in time: what they said last, and the ends of their logs.
    pub async fn wait_for<T>(
        &self,
        what: &str,
        timeout: Duration,
        mut ready: impl FnMut(&View) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + timeout;
        loop {
            let view = self.view().await;
            if let Some(found) = ready(&view) {
                return Ok(found);
            }
            if let Some(name) = self.ended_by_itself() {
                bail!("{name} ended by itself while {what} was waited for; the nodes say:\n{view}");
            }
            if Instant::now() >= deadline {
                bail!("waited {} s for {what}; the nodes say:\n{view}", timeout.as_secs());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until all expected nodes run and stream, and as many as there should be are in the sync list, with the Raft leader off the primary. Gives
    /// the primary's name.
    ///
    /// # Errors
    /// When they do not.
    pub async fn wait_settled(&self) -> Result<String> {
        let names = self.expected();
        self.wait_for("a settled cluster", PATIENCE, |view| view.settled(&names, self.listed)).await
    }

    /// Waits until a node streams and is in the sync list again.
    ///
    /// # Errors
    /// When it does not.
    pub async fn wait_rejoined(&self, name: &str, timeout: Duration) -> Result<()> {
        self.wait_for(&format!("{name} to stream and be in the sync list"), timeout, |view| {
            view.has_rejoined(name).then_some(())
        })
        .await
    }

    /// Stops every node and removes what was temporary: for a test that has passed.
    ///
    /// # Errors
    /// When a node does not stop cleanly.
    pub async fn finish(mut self) -> Result<()> {
        for name in self.names() {
            if self.is_running(&name) {
                let status = self.stop_node(&name).await?;
                anyhow::ensure!(status.success(), "{name} did not stop cleanly: {status}\n{}", self.log_ends());
            }
        }
        self.finished = true;
        Ok(())
    }

    /// Lets the processes live on, and the directory with them.
    pub fn detach(mut self) {
        for server in self.nodes.values_mut().filter_map(|node| node.server.as_mut()) {
            server.detach();
        }
        if let Some(temporary) = self.temporary.take() {
            self.dir = temporary.keep();
        }
        self.finished = true;
    }

    /// The last lines of every node's log.
    pub fn log_ends(&self) -> String {
        let one = |(name, node): (&String, &Node)| format!("--- {name} ---\n{}", tail(&node.launch.log, LOG_LINES));
        self.nodes.iter().map(one).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.finished {
            eprintln!("{}", self.log_ends());
            if let Some(temporary) = self.temporary.take() {
                eprintln!("data and logs are kept in {}", temporary.keep().display());
            }
        }
    }
}

/// The names and addresses of all nodes.
fn members(options: &Options) -> Result<Vec<(String, String)>> {
    let names = options.names.iter().cloned();
    if let Some(network) = &options.network {
        return Ok(names.map(|name| (name.clone(), network.server_address(&name))).collect());
    }
    let ports = ports::free(options.names.len())?;
    Ok(names.zip(ports.iter().map(|port| format!("127.0.0.1:{port}"))).collect())
}

fn server_arguments(options: &Options, name: &str, address: &str, initial: &str, data_dir: &Path) -> Vec<String> {
    let data_dir = data_dir.display().to_string();
    let fixed = [
        "server",
        "--name",
        name,
        "--data-dir",
        &data_dir,
        "--listen",
        address,
        "--advertise",
        address,
        "--initial-cluster",
        initial,
    ];
    let mut arguments: Vec<String> = fixed.map(str::to_owned).to_vec();
    if let Some(bytes) = options.segment_size {
        arguments.extend(["--wal-segment-size".to_owned(), bytes.to_string()]);
    }
    arguments.extend(options.arguments.iter().cloned());
    arguments.extend(options.node_arguments.get(name).into_iter().flatten().cloned());
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_gets_the_same_members_and_its_own_place() {
        let dir = tempfile::tempdir().expect("a directory");
        let options =
            Options { binary: Some("/bin/true".into()), dir: Some(dir.path().to_owned()), ..Options::default() };
        let options = options.sync("ANY 1 (*)", "required").node("n2", &["--failover-priority", "0"]);
        let cluster = Cluster::prepare(&options).expect("prepared");
        let arguments = |name: &str| cluster.launch(name).arguments.clone();
        let after = |name: &str, flag: &str| {
            let all = arguments(name);
            let at = all.iter().position(|argument| argument == flag)?;
            all.get(at + 1).cloned()
        };
        assert_eq!(after("n1", "--initial-cluster"), after("n3", "--initial-cluster"));
        assert_eq!(after("n2", "--listen").as_deref(), Some(cluster.address("n2")));
        assert_eq!(after("n2", "--failover-priority").as_deref(), Some("0"));
        assert_eq!(after("n1", "--failover-priority"), None);
        assert_eq!(after("n3", "--sync-mode").as_deref(), Some("required"));
        cluster.detach();
    }
}
