//! Nodes of a control plane in this process, for tests: real gRPC over loopback, each node on a runtime of its
//! own, so that stopping one ends its connections as the end of a process does.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use understudy_core::command::{Command, Outcome};
use understudy_core::state::{Member, Settings};
use understudy_types::{NodeId, SegmentSize, SystemId};

use crate::{Control, ControlConfig, Leadership};

/// Longer than anything here takes, on however busy a machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const SYSTEM: u64 = 0x5757;

/// Waits until what is watched is as it should be.
pub(crate) async fn until<T: Clone>(rx: &watch::Receiver<T>, what: &str, so: impl FnMut(&T) -> bool) -> T {
    let mut rx = rx.clone();
    let waited = timeout(PATIENCE, rx.wait_for(so)).await;
    waited.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}")).expect("watched").clone()
}

pub(crate) struct TestNode {
    pub(crate) id: NodeId,
    pub(crate) address: SocketAddr,
    pub(crate) control: Control,
    runtime: Option<Runtime>,
}

/// A port that was free may belong to somebody's outgoing connection for a moment.
async fn bind(address: SocketAddr) -> TcpIncoming {
    let binding = async {
        loop {
            match TcpIncoming::bind(address) {
                Ok(incoming) => return incoming,
                Err(error) => eprintln!("binding {address} again: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, binding).await.expect("the address is free in time")
}

impl TestNode {
    /// At this address; port zero for any that is free.
    pub(crate) async fn start(id: NodeId, dir: &Path, address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let data_dir = dir.to_owned();
        let started = runtime.spawn(async move {
            let incoming = bind(address).await.with_nodelay(Some(true));
            let address = incoming.local_addr().expect("bound");
            let config = ControlConfig { node_id: id, data_dir, address: address.to_string() };
            let control = Control::start(config).await.expect("starts");
            let server = Server::builder().add_service(control.service());
            tokio::spawn(server.serve_with_incoming(incoming));
            (control, address)
        });
        let (control, address) = started.await.expect("no panic");
        Self { id, address, control, runtime: Some(runtime) }
    }

    /// Runs something with the control plane, on the node's own runtime.
    pub(crate) async fn run<T, F>(&self, run: impl FnOnce(Control) -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let runtime = self.runtime.as_ref().expect("it runs");
        runtime.spawn(run(self.control.clone())).await.expect("no panic")
    }

    /// Proposes until it is known what became of it: leaders come and go.
    pub(crate) async fn propose(&self, command: Command) -> Outcome {
        let proposing = async {
            loop {
                let attempt = command.clone();
                match self.run(|control| async move { control.propose(attempt).await }).await {
                    Ok(outcome) => return outcome,
                    Err(error) => {
                        eprintln!("proposing again: {error}");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        };
        timeout(PATIENCE, proposing).await.expect("a leader in time")
    }

    /// As the end of a process: nothing of it is left afterwards.
    pub(crate) async fn stop(self) {
        tokio::task::spawn_blocking(move || drop(self)).await.expect("no panic");
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        let runtime = self.runtime.take().expect("it runs");
        let control = self.control.clone();
        // A runtime neither blocks nor ends on a thread of another one.
        let ending = std::thread::spawn(move || {
            runtime.block_on(control.shutdown()).expect("stops");
            runtime.shutdown_timeout(PATIENCE);
        });
        ending.join().expect("no panic");
    }
}

/// Nodes 1 to n, each with a directory that outlives it.
pub(crate) struct TestCluster {
    pub(crate) dirs: Vec<Arc<TempDir>>,
    pub(crate) nodes: BTreeMap<NodeId, TestNode>,
    addresses: BTreeMap<NodeId, SocketAddr>,
}

pub(crate) fn id(number: u64) -> NodeId {
    NodeId::new(number)
}

impl TestCluster {
    /// Started and made a Raft group, with a leader, not yet bootstrapped.
    pub(crate) async fn start(count: u64) -> Self {
        let mut cluster = Self { dirs: Vec::new(), nodes: BTreeMap::new(), addresses: BTreeMap::new() };
        for number in 1..=count {
            let dir = tempfile::tempdir().expect("a directory");
            let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
            let node = TestNode::start(id(number), dir.path(), any_port).await;
            assert!(node.control.is_pristine());
            cluster.dirs.push(Arc::new(dir));
            cluster.addresses.insert(node.id, node.address);
            cluster.nodes.insert(node.id, node);
        }
        let members = cluster.addresses.iter().map(|(id, address)| (*id, address.to_string())).collect();
        let first = &cluster.nodes[&id(1)];
        first.run(|control| async move { control.initialize(members).await }).await.expect("initialized");
        cluster.leader().await;
        cluster
    }

    /// With a cluster state.
    pub(crate) async fn bootstrapped(count: u64) -> Self {
        let cluster = Self::start(count).await;
        let leader = cluster.leader().await;
        let outcome = cluster.nodes[&leader].propose(cluster.bootstrap()).await;
        assert!(matches!(outcome, Outcome::Applied { .. }), "{outcome:?}");
        cluster.all_at_generation(1).await;
        cluster
    }

    pub(crate) fn bootstrap(&self) -> Command {
        let member = |(id, address): (&NodeId, &SocketAddr)| {
            let name = format!("node-{id}").parse().expect("a name");
            let address = address.to_string();
            let member = Member { name, address, voter: true, witness: false, failover_priority: 1, no_sync: false };
            (*id, member)
        };
        Command::Bootstrap {
            system_id: SystemId::new(SYSTEM),
            members: self.addresses.iter().map(member).collect(),
            segment_size: SegmentSize::DEFAULT,
            settings: Settings::default(),
        }
    }

    /// Who all running nodes say leads.
    pub(crate) async fn leader(&self) -> NodeId {
        let agreeing = async {
            loop {
                for node in self.nodes.values() {
                    until(&node.control.leadership(), "somebody leads", |seen| seen.leader.is_some()).await;
                }
                let seen: Vec<Leadership> =
                    self.nodes.values().map(|node| node.control.leadership().borrow().clone()).collect();
                let leader = seen.iter().find(|one| one.i_am_leader).and_then(|one| one.leader);
                if leader.is_some() && seen.iter().all(|one| one.leader == leader) {
                    return leader;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, agreeing).await.expect("a leader in time").expect("a leader")
    }

    pub(crate) async fn follower(&self) -> NodeId {
        let leader = self.leader().await;
        *self.nodes.keys().find(|id| **id != leader).expect("a follower")
    }

    pub(crate) async fn all_at_generation(&self, generation: u64) {
        for node in self.nodes.values() {
            let what = format!("node {} at generation {generation}", node.id);
            until(&node.control.state(), &what, |applied| applied.state.generation.get() >= generation).await;
        }
    }

    pub(crate) async fn stop(&mut self, id: NodeId) {
        self.nodes.remove(&id).expect("it runs").stop().await;
    }

    pub(crate) fn dir(&self, id: NodeId) -> &Path {
        self.dirs[usize::try_from(id.get()).expect("small") - 1].path()
    }

    pub(crate) fn address(&self, id: NodeId) -> SocketAddr {
        self.addresses[&id]
    }

    pub(crate) async fn restart(&mut self, id: NodeId) {
        let node = TestNode::start(id, self.dir(id), self.address(id)).await;
        self.nodes.insert(id, node);
    }
}
