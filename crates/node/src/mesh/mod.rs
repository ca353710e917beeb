//! Beats: how the nodes watch one another and confirm the primary.
//!
//! Every node keeps one stream with every other node, dialled by itself: its beats go out on it, an answer to each
//! comes back. A beat goes out every [`BEAT_INTERVAL`], and at once when the report changed in something that
//! others wait for, or when the primary wants to be confirmed for a read. The answer says whether the node would
//! still confirm the sender: it is made from [`Standing`], which changes only after a seal is on disk and before
//! the seal is reported (INV-FENCED, INV-LINEAR). A lease that is granted with an answer is written into it first, in one
//! piece with the look at the seal.
//!
//! This module moves messages; it decides nothing. What comes in goes to the agent as [`MeshEvent`]s.

mod dial;
mod service;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use understudy_core::lease::Grants;
use understudy_core::observation::{FetchOrder, NodeReport};
use understudy_types::{Incarnation, NodeId, SystemId, TimelineId};

use crate::freshness::{Confirmed, Heard};

pub use dial::spawn_dialer;
pub use service::{Greeting, MeshService};

/// How often a node is heard when nothing happens.
pub const BEAT_INTERVAL: Duration = Duration::from_millis(100);
/// Mesh events that wait for the agent.
pub const EVENTS_MAX: usize = 1024;

/// What the mesh tells the agent.
#[derive(Debug)]
pub enum MeshEvent {
    /// A node's report came.
    Report {
        /// Who.
        from: NodeId,
        /// What it says.
        report: Box<NodeReport>,
        /// When it comes from the Raft leader and somebody must fetch.
        fetch_order: Option<FetchOrder>,
        /// When it came: it may wait for the agent.
        at: Instant,
    },
    /// A node opened its beat stream to us.
    Opened {
        /// Who.
        from: NodeId,
    },
    /// A node's beat stream to us ended.
    Closed {
        /// Who.
        from: NodeId,
    },
    /// How our own stream to a node stands.
    Link {
        /// To whom.
        to: NodeId,
        /// How.
        link: Link,
    },
}

impl MeshEvent {
    /// Whom it is about.
    pub fn node(&self) -> NodeId {
        match self {
            Self::Report { from, .. } | Self::Opened { from } | Self::Closed { from } => *from,
            Self::Link { to, .. } => *to,
        }
    }
}

/// How our own beat stream to a node stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// It carries beats.
    Up,
    /// Nobody listens there.
    Refused,
    /// It failed otherwise.
    Down {
        /// For people.
        why: String,
    },
}

/// What the beats of this node carry. Published by the agent and the confirmer, sent by every dialer.
#[derive(Debug, Clone, Default)]
pub struct Outgoing {
    /// Grows with every beat that is to be sent.
    pub round: u64,
    /// The timeline that this node opened and wants confirmed; zero when it is not the primary.
    pub confirm_timeline: TimelineId,
    /// For how long it asks each voter to grant it a lease, in milliseconds; zero for none.
    pub lease_ms: u64,
    /// The generation at which the voters changed last, as far as this node has applied.
    pub voters_version: u64,
    /// Grows with every new report.
    pub report_seq: u64,
    /// None until the agent runs.
    pub report: Option<Arc<NodeReport>>,
    /// As the Raft leader, during an election.
    pub fetch_order: Option<FetchOrder>,
}

/// What this node answers beats by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// Zero before it belongs to a cluster.
    pub system_id: SystemId,
    /// Nothing below this is confirmed.
    pub sealed: TimelineId,
    /// The generation at which the voters changed last, as far as this node has applied; none before it knows: it confirms
    /// nobody then.
    pub voters_version: Option<u64>,
    /// Leases that it has granted.
    pub grants: Grants,
}

/// A majority's answers, on their way to the confirmer.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    /// Who answers.
    pub from: NodeId,
    /// Which beat.
    pub round: u64,
    /// For which timeline the beat asked.
    pub timeline: TimelineId,
    /// What it says.
    pub confirmed: bool,
    /// When the beat was made that it answers, by the boot-time clock.
    pub sent_at_ms: u64,
    /// The lease that it grants, in milliseconds; zero for none.
    pub lease_ms: u64,
}

/// Who this process is.
#[derive(Debug, Clone, Copy)]
pub struct Me {
    /// The node.
    pub node_id: NodeId,
    /// This process start.
    pub incarnation: Incarnation,
}

/// The ends that dialers and the service need.
#[derive(Clone)]
pub struct MeshHandles {
    /// Who we are.
    pub me: Me,
    /// What to send.
    pub outgoing: watch::Receiver<Outgoing>,
    /// What to answer by.
    pub standing: watch::Sender<Standing>,
    /// To the agent.
    pub events: mpsc::Sender<MeshEvent>,
    /// To the confirmer.
    pub answers: mpsc::Sender<Answer>,
    /// As a primary: how fresh those are that have what it calls safe. None while no majority has confirmed it.
    pub confirmed: watch::Receiver<Option<Confirmed>>,
    /// What primaries say of that.
    pub heard: Arc<Heard>,
}
