//! The cluster state: what Raft agrees on.
//!
//! | generation | what happened | timeline | primary | election | sync list |
//! |---|---|---|---|---|---|
//! | 1 | Bootstrap | 0 | none | none | {} |
//! | 2 | BeginElection 1 | 0 | none | 1 | {} |
//! | 3 | Promote a to 1 | 1 | a | none | {b, c}, 1 ack |
//! | 4 | BeginElection 2: a crashed | 1 | a | 2 | {b, c}, 1 ack |
//! | 5 | Promote b to 2 | 2 | b | none | {c}, 1 ack |
//! | 6 | SetSync: a streams again | 2 | b | none | {a, c}, 1 ack |

use std::collections::{BTreeMap, BTreeSet};

pub use crate::settings::Settings;
use serde::{Deserialize, Serialize};
use understudy_types::{
    Generation, Incarnation, Lsn, NodeId, NodeName, SegmentSize, SyncMode, SystemId, TimelineHistory, TimelineId,
    TimelineSwitch,
};

/// What every node knows once it has applied the same Raft log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClusterState {
    /// Zero before the cluster is bootstrapped.
    pub system_id: SystemId,
    /// One larger with every command that was carried out.
    pub generation: Generation,
    /// Who belongs to the cluster.
    pub members: BTreeMap<NodeId, Member>,
    /// Of every node's WAL. None before the bootstrap.
    pub segment_size: Option<SegmentSize>,
    /// Every promotion, in the order of the timelines.
    pub history: Vec<HistoryEntry>,
    /// Set from BeginElection to Promote: it is being decided who opens this timeline.
    pub election: Option<Election>,
    /// The sync-standby list: the truth about who has everything that was acknowledged (INV-DURABLE).
    pub sync: SyncList,
    /// What operators can set.
    pub settings: Settings,
    /// Per node, how often its WAL was marked damaged when it was last found to be off the sync list: an
    /// acknowledgement given under a smaller damage epoch does not put it back on.
    pub damage_epochs: BTreeMap<NodeId, u64>,
    /// The generation at which the voters changed last; zero since the bootstrap. A voter confirms only a primary that
    /// goes by the same one.
    #[serde(default)]
    pub voters_generation: Generation,
    /// The member that becomes a voter as soon as that is safe, and until the primary goes by it (see
    /// [`crate::membership`]); none most of the time. Meanwhile nobody else is replaced.
    #[serde(default)]
    pub joining: Option<NodeId>,
    /// Nodes that were replaced, with the names they had: they never come back.
    #[serde(default)]
    pub former_members: BTreeMap<NodeId, NodeName>,
    /// By timeline, for how long no commit could be acknowledged before it was opened, in milliseconds. For people only;
    /// absent where nobody knows.
    #[serde(default)]
    pub outages_ms: BTreeMap<TimelineId, u64>,
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Unique among the members, without regard to case.
    pub name: NodeName,
    /// `host:port` of its gRPC port.
    pub address: String,
    /// Whether it votes in Raft, seals and confirms.
    pub voter: bool,
    /// Whether it holds no data.
    pub witness: bool,
    /// Larger is preferred in an election; zero is never promoted.
    pub failover_priority: u32,
    /// Never on the sync list.
    pub no_sync: bool,
}

impl Member {
    /// Whether it may be promoted.
    pub fn is_eligible(&self) -> bool {
        !self.witness && self.failover_priority > 0
    }
}

/// One promotion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// What was opened, from which parent, where (S).
    pub switch: TimelineSwitch,
    /// F: the highest LSN that may have been acknowledged before.
    pub safe_lsn: Lsn,
    /// Who opens it.
    pub node: NodeId,
    /// This process start of the node, and no other, opens it (INV-ONE-PRIMARY).
    pub incarnation: Incarnation,
    /// Why there was an election.
    pub reason: String,
    /// Unix time of the decision, in milliseconds. For people only.
    pub time_ms: i64,
}

/// The decision about the next timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Election {
    /// What will be opened.
    pub timeline: TimelineId,
    /// Why.
    pub reason: String,
}

/// Who must have flushed a commit before it is acknowledged at level `on`, and so who may be promoted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SyncList {
    /// The mode that the list was made under.
    pub mode: SyncMode,
    /// Without the primary.
    pub members: BTreeSet<NodeId>,
    /// How many of `members`. Zero: the primary alone is eligible, or the mode is `async`.
    pub acks: u32,
}

impl ClusterState {
    /// Whether the cluster exists.
    pub fn is_bootstrapped(&self) -> bool {
        self.system_id != SystemId::default()
    }

    /// What people call `node`: its name, or its id when it never was a member.
    pub fn name_of(&self, node: NodeId) -> String {
        let name = self.members.get(&node).map(|member| &member.name).or_else(|| self.former_members.get(&node));
        name.map_or_else(|| format!("node {node}"), ToString::to_string)
    }

    /// The present timeline; zero before the first promotion.
    pub fn timeline(&self) -> TimelineId {
        self.history.last().map_or(TimelineId::NONE, |entry| entry.switch.timeline)
    }

    /// Who was promoted to the present timeline. While an election is open it may be gone.
    pub fn primary(&self) -> Option<&HistoryEntry> {
        self.history.last()
    }

    /// The switches of the history, for comparing positions.
    ///
    /// # Panics
    /// Never for a state that [`crate::command::apply`] made: it checks every switch.
    pub fn timeline_history(&self) -> TimelineHistory {
        let switches: Vec<TimelineSwitch> = self.history.iter().map(|entry| entry.switch).collect();
        TimelineHistory::try_from(switches).expect("the cluster state's history continues")
    }

    /// The voters. A majority of them is needed for every promotion and confirmation.
    pub fn voters(&self) -> BTreeSet<NodeId> {
        self.members.iter().filter(|(_, member)| member.voter).map(|(id, _)| *id).collect()
    }

    /// Whether `node` is the primary and nobody else is waited for: others may lack what it acknowledged.
    pub fn counts_on_alone(&self, node: NodeId) -> bool {
        let nobody_else = self.sync.members.is_empty() || self.sync.acks == 0;
        self.primary().is_some_and(|primary| primary.node == node) && nobody_else
    }

    /// The highest timeline that a node must not act below: that of the election, else the present one.
    pub fn fence(&self) -> TimelineId {
        self.election.as_ref().map_or(self.timeline(), |election| election.timeline)
    }
}

/// How many of `count` are a majority.
pub const fn majority(count: usize) -> usize {
    count / 2 + 1
}
