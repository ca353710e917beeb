//! How a member that was replaced comes to vote: what the Raft leader does next.
//!
//! Two sets have to change: Raft's own voters, by the consensus library's joint change, and the voters of the cluster
//! state, whose majorities seal and confirm.
//!
//! | | voters of the state | Raft's voters | what comes next |
//! |---|---|---|---|
//! | before | a b c | a b c | ReplaceMember: c by d |
//! | | a b | a b c | d learns Raft's log |
//! | | a b | a b c, d learns | Raft's voters become a b d |
//! | | a b | a b d | AddVoter d, once the primary goes by a b |
//! | | a b d | a b d | FinishJoin d, once the primary goes by a b d |
//! | after | a b d | a b d | the next member may be replaced |
//!
//! Why AddVoter and the next ReplaceMember wait for the primary: a primary that still goes by {a, b, c} could be confirmed by c while {b, d}
//! promote another one. Majorities of {a, b, c} and {a, b} have a node in common, and so have those of {a, b} and
//! {a, b, d}; those of the first and the last need not. Once the primary of the present timeline goes by {a, b}, or a
//! newer timeline was decided by {a, b}, nobody can be confirmed by the first set any more (INV-LINEAR).
//!
//! Pure, and total: run again and again, by whoever leads, it ends where state and Raft agree.

use std::collections::BTreeSet;

use understudy_types::NodeId;

use crate::command::Command;
use crate::observation::{NodeRole, Observations};
use crate::state::ClusterState;

/// Raft's own membership, as its leader sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RaftMembers {
    /// Who votes; of both halves while a change is under way.
    pub voters: BTreeSet<NodeId>,
    /// Whether a change is under way.
    pub is_joint: bool,
    /// Who receives the log without a vote.
    pub learners: BTreeSet<NodeId>,
    /// The learners that have nearly all of the log.
    pub caught_up: BTreeSet<NodeId>,
}

/// What the Raft leader does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MembershipStep {
    /// Send the log to a member that Raft does not know.
    AddLearner {
        /// Which.
        node: NodeId,
        /// Where it is reached.
        address: String,
    },
    /// Make these, and no others, Raft's voters. Whoever is neither among them nor a member leaves Raft.
    SetVoters(BTreeSet<NodeId>),
    /// Send these the log no more: they learn, and are no members.
    Forget(BTreeSet<NodeId>),
    /// Propose a command.
    Propose(Command),
}

/// What the Raft leader, which has applied `state` and has no step under way, does next; none when all is as it should
/// be or has to be waited for.
/// A member that voted at the bootstrap is a voter of Raft before there is a state.
pub fn next_step(state: &ClusterState, raft: &RaftMembers, observations: &Observations) -> Option<MembershipStep> {
    if !state.is_bootstrapped() {
        return None;
    }
    let unknown = state.members.iter().find(|(id, _)| !raft.voters.contains(id) && !raft.learners.contains(id));
    if let Some((node, member)) = unknown {
        return Some(MembershipStep::AddLearner { node: *node, address: member.address.clone() });
    }
    let strangers: BTreeSet<NodeId> =
        raft.learners.iter().copied().filter(|node| !state.members.contains_key(node)).collect();
    if !strangers.is_empty() && !raft.is_joint {
        return Some(MembershipStep::Forget(strangers));
    }
    let joins = state.joining.filter(|node| raft.voters.contains(node) || raft.caught_up.contains(node));
    // Until the one that joins can vote in Raft, the one that it replaces does: two voters would not survive one.
    let waits = state.joining.is_some() && joins.is_none();
    let wanted: BTreeSet<NodeId> = state.voters().into_iter().chain(joins).collect();
    // A change that its leader did not live to end is ended by the next.
    if raft.is_joint || (wanted != raft.voters && !waits) {
        return Some(MembershipStep::SetVoters(wanted));
    }
    let is_settled = !waits && state.election.is_none() && primary_goes_by_present(state, observations);
    let (node, generation) = (joins.filter(|_| is_settled)?, state.generation);
    Some(MembershipStep::Propose(match state.voters().contains(&node) {
        false => Command::AddVoter { generation, node },
        true => Command::FinishJoin { generation, node },
    }))
}

/// Whether the primary of the present timeline has said that it has applied the last change of the voters.
fn primary_goes_by_present(state: &ClusterState, observations: &Observations) -> bool {
    let Some(entry) = state.primary() else { return true };
    observations.nodes.get(&entry.node).is_some_and(|seen| {
        let report = &seen.report;
        report.role == NodeRole::Primary
            && report.timeline == entry.switch.timeline
            && report.generation >= state.voters_generation
    })
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;
