//! The tags that this server was started with, and those that the cluster has of it.
//!
//! `failover_priority` and `no_sync` are settings of a server, but elections and the sync list go by the cluster state. So a
//! member that was started with other tags than the state has proposes its own, by [`Command::Retag`]. One that is to be
//! `no_sync` and is on the sync list waits until the primary has dropped it, which its beats ask for. Runs as long as the
//! server does: what is applied here at the start may be old.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use understudy_control::Control;
use understudy_core::command::{Command, Outcome};
use understudy_core::state::{ClusterState, Member};
use understudy_types::NodeId;

/// Between two proposals. The state that they were planned against moves on, or Raft has no leader.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// As they were given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tags {
    /// Larger is preferred in an election; zero is never promoted.
    pub failover_priority: u32,
    /// Never on the sync list.
    pub no_sync: bool,
}

impl Tags {
    /// What has to be proposed now, so that the cluster has these of `me`. None when it has them, and while it cannot.
    fn plan(self, me: NodeId, state: &ClusterState) -> Option<Command> {
        let member = state.members.get(&me)?;
        let has = Self { failover_priority: member.failover_priority, no_sync: member.no_sync };
        let is_listed = self.no_sync && state.sync.members.contains(&me);
        let must_wait = state.election.is_some() || is_listed || self.leaves_nobody(me, state);
        let Self { failover_priority, no_sync } = self;
        let retag = Command::Retag { generation: state.generation, node: me, failover_priority, no_sync };
        (has != self && !must_wait).then_some(retag)
    }
}

impl Tags {
    /// With them nobody could be promoted any more: Raft would refuse them, each time that they are proposed.
    fn leaves_nobody(self, me: NodeId, state: &ClusterState) -> bool {
        let could_be = |node: NodeId, member: &Member| {
            let failover_priority = if node == me { self.failover_priority } else { member.failover_priority };
            Member { failover_priority, ..member.clone() }.is_eligible()
        };
        !state.members.iter().any(|(node, member)| could_be(*node, member))
    }
}

/// Keeps the cluster's tags of `me` what they are here, until `stop`.
pub async fn keep(control: Control, me: NodeId, tags: Tags, stop: CancellationToken) {
    let mut states = control.state();
    let mut warned = false;
    loop {
        let state = states.borrow_and_update().clone();
        let leaves_nobody = tags.leaves_nobody(me, &state.state);
        if leaves_nobody && !warned {
            tracing::warn!(
                ?tags,
                "no other member could ever be promoted: the cluster keeps the tags that it has of this node"
            );
        }
        warned = leaves_nobody;
        let Some(command) = tags.plan(me, &state.state) else {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = states.changed() => if changed.is_err() { return } else { continue },
            }
        };
        match control.propose(command).await {
            Ok(Outcome::Applied { .. }) => tracing::info!(?tags, "the cluster has taken over the tags of this node"),
            Ok(Outcome::Rejected { reason }) => tracing::debug!(%reason, "the tags of this node are proposed again"),
            Err(error) => tracing::debug!(%error, "the tags of this node are proposed again"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY_INTERVAL) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use understudy_core::state::Member;

    use super::*;

    const ME: NodeId = NodeId::new(1);

    fn state() -> ClusterState {
        let member = |name: &str| Member {
            name: name.parse().expect("a name"),
            address: format!("{name}:7400"),
            voter: true,
            witness: false,
            failover_priority: 1,
            no_sync: false,
        };
        let members = [(ME, member("a")), (NodeId::new(2), member("b"))].into();
        ClusterState { members, ..ClusterState::default() }
    }

    fn planned(tags: (u32, bool), state: &ClusterState) -> Option<(u32, bool)> {
        let tags = Tags { failover_priority: tags.0, no_sync: tags.1 };
        let planned = tags.plan(ME, state)?;
        let Command::Retag { node, failover_priority, no_sync, .. } = planned else { panic!("planned {planned:?}") };
        assert_eq!(node, ME);
        Some((failover_priority, no_sync))
    }

    #[test]
    fn what_differs_is_proposed_once_nothing_stands_in_the_way() {
        let mut state = state();
        assert_eq!(planned((1, false), &state), None);
        assert_eq!(planned((0, false), &state), Some((0, false)));
        state.sync.members.insert(ME);
        assert_eq!(planned((1, true), &state), None, "the primary drops it from the list first");
        assert_eq!(planned((5, false), &state), Some((5, false)));
        state.sync.members.clear();
        assert_eq!(planned((1, true), &state), Some((1, true)));
        let election = understudy_core::state::Election { timeline: state.timeline().next(), reason: String::new() };
        state.election = Some(election);
        assert_eq!(planned((1, true), &state), None);
        assert_eq!(planned((1, true), &ClusterState::default()), None, "it is no member");
    }
}
