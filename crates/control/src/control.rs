//! The handle of the control plane.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use openraft::BasicNode;
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::time::{Instant, timeout};
use understudy_core::command::{Command, Outcome};
use understudy_rpc::v1::raft_server::RaftServer;
use understudy_types::{NodeId, SystemId};

use crate::database::{Database, DatabaseError};
use crate::error::{ControlError, HandoverError, ProposeError};
use crate::leadership::{self, Derived, Leadership};
use crate::log_store::LogStore;
use crate::network::Network;
use crate::service::RaftService;
use crate::state_machine::{Applied, StateMachine};
use crate::timing;
use crate::wire::{Raft, Vote};

/// Where under the data directory the log lies.
const DIRECTORY: &str = "raft";

/// Commands that wait on the leader. Nodes propose one at a time.
const PROPOSALS_MAX: usize = 64;

/// What a node tells its control plane.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// The node's identity. A log of another node is refused.
    pub node_id: NodeId,
    /// The node's data directory; the log lies in its subdirectory `raft`.
    pub data_dir: PathBuf,
    /// `host:port` where the other nodes reach this one. For messages to people.
    pub address: String,
}

/// What the handle, the service and the tasks share.
pub(crate) struct Core {
    pub(crate) me: NodeId,
    pub(crate) address: String,
    pub(crate) raft: Raft,
    pub(crate) network: Network,
    pub(crate) applied: watch::Receiver<Arc<Applied>>,
    /// Messages that a leader sent and this node accepted.
    pub(crate) heard: AtomicU64,
    /// Counts the commands that were proposed here: each gives a handover up.
    pub(crate) interrupts: watch::Sender<u64>,
    pub(crate) proposals: Semaphore,
    pub(crate) handing_over: Mutex<()>,
    pub(crate) leading_since: watch::Receiver<Option<Instant>>,
    /// Up to when a majority followed this node at least; none when it does not lead, or nobody has followed yet.
    pub(crate) followed: watch::Receiver<Option<Instant>>,
    /// Whom this node, leading, has asked last to stand in its place, and when.
    pub(crate) asked_to_stand: watch::Sender<Option<(NodeId, Instant)>>,
}

impl Core {
    pub(crate) fn system_id(&self) -> SystemId {
        self.applied.borrow().state.system_id
    }

    /// Where Raft's membership says that a node is.
    pub(crate) fn address_of(&self, node: NodeId) -> Option<String> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        membership.get_node(&node.get()).map(|node| node.addr.clone())
    }
}

/// The control plane of one node. Its clones are the same one.
#[derive(Clone)]
pub struct Control {
    pub(crate) core: Arc<Core>,
    /// Whether there was nothing on disk at the start.
    started_pristine: bool,
    leadership: watch::Receiver<Leadership>,
    failure: watch::Receiver<Option<Arc<ControlError>>>,
    aside: watch::Sender<bool>,
    stopping: Arc<AtomicBool>,
    /// Its sender is dropped when the log's database is closed.
    closed: watch::Receiver<()>,
}

impl Control {
    /// Opens the node's Raft log, makes the cluster state from it, and takes part in Raft from now on. The service
    /// must be served for the others to be heard.
    ///
    /// # Errors
    /// When the log cannot be opened, belongs to another node, or is damaged.
    pub async fn start(config: ControlConfig) -> Result<Self, ControlError> {
        let path = config.data_dir.join(DIRECTORY);
        let me = config.node_id;
        let damaged = |error: DatabaseError| ControlError::Damaged { path: path.clone(), what: error.0 };

        let to_open = path.clone();
        let opened = tokio::task::spawn_blocking(move || Database::open(&to_open, me)).await;
        let (database, closed) =
            opened.map_err(|error| ControlError::Open { path: path.clone(), why: error.to_string() })??;
        let log_store = LogStore::new(database.clone());
        let (state_machine, applied) = StateMachine::open(database).map_err(damaged)?;
        let started_pristine = log_store.is_pristine().map_err(damaged)?;

        let network = Network::new(me, applied.clone());
        let raft_config = Arc::new(timing::raft_config());
        let raft = Raft::new(me.get(), raft_config, network.clone(), log_store, state_machine)
            .await
            .map_err(|fatal| ControlError::Damaged { path: path.clone(), what: fatal.to_string() })?;

        let stopping = Arc::new(AtomicBool::new(false));
        let (leadership, leadership_seen) = watch::channel(Leadership::of(&raft.metrics().borrow()));
        let (leading_since, leading_since_seen) = watch::channel(None);
        let (followed, followed_seen) = watch::channel(None);
        let (failure, failure_seen) = watch::channel(None);
        let derived = Derived { leadership, leading_since, followed, failure, stopping: Arc::clone(&stopping) };
        tokio::spawn(derived.run(raft.metrics()));

        let core = Arc::new(Core {
            me,
            address: config.address,
            raft,
            network,
            applied,
            heard: AtomicU64::new(0),
            interrupts: watch::Sender::new(0),
            proposals: Semaphore::new(PROPOSALS_MAX),
            handing_over: Mutex::new(()),
            leading_since: leading_since_seen,
            followed: followed_seen,
            asked_to_stand: watch::Sender::new(None),
        });
        let aside = watch::Sender::new(false);
        tokio::spawn(leadership::stand_aside(Arc::clone(&core), aside.subscribe()));
        Ok(Self { core, started_pristine, leadership: leadership_seen, failure: failure_seen, aside, stopping, closed })
    }

    /// The gRPC service to serve on the node's port, message limits set.
    pub fn service(&self) -> RaftServer<RaftService> {
        RaftService::server(Arc::clone(&self.core))
    }

    /// The cluster state, as of the last entry that this node applied.
    pub fn state(&self) -> watch::Receiver<Arc<Applied>> {
        self.core.applied.clone()
    }

    /// Who leads, and who votes.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// Set once Raft has stopped by itself, after a failed write for instance. The process must exit then.
    pub fn failure(&self) -> watch::Receiver<Option<Arc<ControlError>>> {
        self.failure.clone()
    }

    /// Whether this node has never voted and has no log: it may take part in making a new cluster.
    pub fn is_pristine(&self) -> bool {
        let metrics = self.core.raft.metrics();
        let metrics = metrics.borrow();
        self.started_pristine && metrics.last_log_index.is_none() && metrics.vote == Vote::default()
    }

    /// Makes a new Raft group of these nodes, with their addresses; this node is one of them. Only one of the
    /// initial members calls this, once [`crate::bootstrap::decide`] says so. The cluster state is still empty
    /// afterwards: the leader proposes [`Command::Bootstrap`].
    ///
    /// # Errors
    /// When this node has a log or has voted, or is not among the members.
    pub async fn initialize(&self, members: BTreeMap<NodeId, String>) -> Result<(), ControlError> {
        let nodes: BTreeMap<u64, BasicNode> =
            members.into_iter().map(|(id, address)| (id.get(), BasicNode::new(address))).collect();
        let after = timing::CALL_TIMEOUT;
        let initialized = timeout(after, self.core.raft.initialize(nodes)).await;
        let initialized = initialized.map_err(|_| ControlError::TimedOut { asked: "initialize", after })?;
        initialized.map_err(|error| ControlError::Initialize { why: error.to_string() })
    }

    /// Has a command carried out: written here if this node leads, otherwise sent to the leader, once. Returns when
    /// the leader has applied it; this node may apply it a moment later. Takes at most a few seconds
    /// ([`timing::PROPOSE_TIMEOUT`]).
    ///
    /// # Errors
    /// [`ProposeError::Unknown`] when it may have been carried out; the others mean that it was not.
    pub async fn propose(&self, command: Command) -> Result<Outcome, ProposeError> {
        self.core.propose(command).await
    }

    /// Hands Raft leadership to another voter; returns once it was elected. A command that is proposed meanwhile
    /// goes first and ends the attempt.
    ///
    /// # Errors
    /// When it did not succeed; this node then goes on leading unless somebody else was elected.
    pub async fn hand_leadership(&self, to: NodeId) -> Result<(), HandoverError> {
        self.core.hand_leadership(to).await
    }

    /// Whether this node leaves leadership to the others: for the primary. It votes and follows as ever, and stands
    /// only after [`timing::STAND_ASIDE_MAX`] without any leader.
    pub fn stand_aside(&self, aside: bool) {
        self.aside.send_if_modified(|present| std::mem::replace(present, aside) != aside);
    }

    /// Stops taking part in Raft and closes the log. Idempotent.
    ///
    /// # Errors
    /// When it does not stop in time; everything acknowledged is on disk nevertheless.
    pub async fn shutdown(&self) -> Result<(), ControlError> {
        self.stopping.store(true, Ordering::SeqCst);
        let after = timing::CLOSE_TIMEOUT;
        let timed_out = |_| ControlError::TimedOut { asked: "stop", after };
        let stopped = timeout(after, self.core.raft.shutdown()).await.map_err(timed_out)?;
        stopped.map_err(|error| ControlError::Stopped { why: error.to_string() })?;
        let mut closed = self.closed.clone();
        // An error is what is waited for: the sender goes with the database.
        timeout(after, async move { while closed.changed().await.is_ok() {} }).await.map_err(timed_out)
    }
}
