//! Raft's own membership: who votes and who only receives the log.
//!
//! The leader's agent decides by [`understudy_core::membership`] and calls; the consensus library carries a change of the
//! voters out as a joint one. A call that was lost or timed out is made again from what the membership then is.

use std::collections::BTreeSet;

use openraft::{BasicNode, ChangeMembers};
use tokio::time::timeout;
use understudy_core::membership::RaftMembers;
use understudy_types::NodeId;

use crate::control::Control;
use crate::error::ControlError;
use crate::timing;
use crate::wire::Metrics;

/// Entries that a learner may lack and still be called caught up: it has the rest before a change is committed.
const CAUGHT_UP_ENTRIES: u64 = 16;

impl Control {
    /// Who votes and who learns, as this node knows it; who has caught up is known on the leader alone.
    pub fn members(&self) -> RaftMembers {
        members_of(&self.core.raft.metrics().borrow())
    }

    /// Sends the log to `node` from now on. Only on the leader; returns when the change is committed.
    ///
    /// # Errors
    /// When it was not, or is not known to be: look at [`Control::members`] and call again.
    pub async fn add_learner(&self, node: NodeId, address: String) -> Result<(), ControlError> {
        let (asked, after) = ("add a learner", timing::PROPOSE_TIMEOUT);
        let added = timeout(after, self.core.raft.add_learner(node.get(), BasicNode::new(address), false)).await;
        let added = added.map_err(|_| ControlError::TimedOut { asked, after })?;
        added.map(drop).map_err(|error| ControlError::Membership { why: error.to_string() })
    }

    /// Makes `voters` Raft's voters; one that votes and is not among them leaves. Only on the leader; returns when the
    /// change is committed.
    ///
    /// # Errors
    /// As for [`Control::add_learner`].
    pub async fn set_voters(&self, voters: BTreeSet<NodeId>) -> Result<(), ControlError> {
        let (asked, after) = ("change the voters", timing::PROPOSE_TIMEOUT);
        let voters: BTreeSet<u64> = voters.into_iter().map(NodeId::get).collect();
        let changed = timeout(after, self.core.raft.change_membership(voters, false)).await;
        let changed = changed.map_err(|_| ControlError::TimedOut { asked, after })?;
        changed.map(drop).map_err(|error| ControlError::Membership { why: error.to_string() })
    }

    /// Sends the log to `nodes`, which only learn, no more. Only on the leader; returns when the change is committed.
    ///
    /// # Errors
    /// As for [`Control::add_learner`].
    pub async fn forget(&self, nodes: BTreeSet<NodeId>) -> Result<(), ControlError> {
        let (asked, after) = ("remove learners", timing::PROPOSE_TIMEOUT);
        let gone = ChangeMembers::RemoveNodes(nodes.into_iter().map(NodeId::get).collect());
        let changed = timeout(after, self.core.raft.change_membership(gone, true)).await;
        let changed = changed.map_err(|_| ControlError::TimedOut { asked, after })?;
        changed.map(drop).map_err(|error| ControlError::Membership { why: error.to_string() })
    }
}

fn members_of(metrics: &Metrics) -> RaftMembers {
    let membership = metrics.membership_config.membership();
    let learners: BTreeSet<NodeId> = membership.learner_ids().map(NodeId::new).collect();
    let last = metrics.last_log_index.unwrap_or(0);
    let matching = |node: &NodeId| {
        let targets = metrics.replication.as_ref()?;
        targets.get(&node.get()).copied().flatten().map(|log_id| log_id.index)
    };
    let has_nearly_all = |node: &NodeId| matching(node).is_some_and(|index| index + CAUGHT_UP_ENTRIES >= last);
    RaftMembers {
        voters: membership.voter_ids().map(NodeId::new).collect(),
        is_joint: membership.get_joint_config().len() > 1,
        caught_up: learners.iter().copied().filter(has_nearly_all).collect(),
        learners,
    }
}
