//! Commands that change who belongs to the cluster, and the one that records an outage.

use understudy_types::{NodeId, TimelineId};

use super::Rejection;
use super::apply::{check_no_election, member, still_counted};
use crate::state::{ClusterState, Member};

/// `new` takes the name of `old`. Not of a node that somebody counts on: the list in Raft tells who has what was
/// acknowledged (INV-DURABLE), and the primary's seal alone allows a promotion. Not beside another change of the voters:
/// majorities of two voter sets in a row have a node in common, those of three need not (INV-LINEAR).
pub(super) fn replace_member(
    state: &ClusterState,
    old: NodeId,
    new: NodeId,
    address: &str,
    (failover_priority, no_sync): (u32, bool),
) -> Result<ClusterState, Rejection> {
    check_no_election(state)?;
    let former = member(state, old)?.clone();
    // One that joins and was lost before it voted may be replaced again: the voters stay as they are.
    if let Some(joining) = state.joining
        && (joining != old || former.voter)
    {
        return Err(Rejection::Joining { name: member(state, joining)?.name.clone() });
    }
    if let Some(why) = still_counted(state, old) {
        return Err(Rejection::StillNeeded { name: former.name, why });
    }
    let is_known = state.members.contains_key(&new) || state.former_members.contains_key(&new);
    if is_known || new == NodeId::default() {
        return Err(Rejection::NotANewNode { node: new });
    }
    let mut next = state.clone();
    next.members.remove(&old);
    next.damage_epochs.remove(&old);
    next.former_members.insert(old, former.name.clone());
    let address = address.to_owned();
    next.members.insert(new, Member { address, voter: false, failover_priority, no_sync, ..former.clone() });
    if former.voter {
        next.voters_generation = state.generation.next();
    }
    if former.voter || state.joining == Some(old) {
        next.joining = Some(new);
    }
    Ok(next)
}

/// See [`super::Command::Retag`]. Not of a listed node as `no_sync`: the list tells who has what was acknowledged, and only
/// SetSync makes it shorter (INV-DURABLE).
pub(super) fn retag(
    state: &ClusterState,
    node: NodeId,
    (failover_priority, no_sync): (u32, bool),
) -> Result<ClusterState, Rejection> {
    check_no_election(state)?;
    let present = member(state, node)?;
    let name = || present.name.clone();
    if no_sync && state.sync.members.contains(&node) {
        return Err(Rejection::StillListed { name: name() });
    }
    let tagged = Member { failover_priority, no_sync, ..present.clone() };
    let others_are = state.members.iter().any(|(id, member)| *id != node && member.is_eligible());
    if !others_are && !tagged.is_eligible() {
        return Err(Rejection::NobodyEligible { name: name() });
    }
    let mut next = state.clone();
    next.members.insert(node, tagged);
    Ok(next)
}

/// See [`super::Command::AddVoter`].
pub(super) fn add_voter(state: &ClusterState, node: NodeId) -> Result<ClusterState, Rejection> {
    check_no_election(state)?;
    if state.joining != Some(node) || member(state, node)?.voter {
        return Err(Rejection::NotJoining { node });
    }
    let mut next = state.clone();
    next.voters_generation = state.generation.next();
    next.members.entry(node).and_modify(|member| member.voter = true);
    Ok(next)
}

/// See [`super::Command::FinishJoin`].
pub(super) fn finish_join(state: &ClusterState, node: NodeId) -> Result<ClusterState, Rejection> {
    check_no_election(state)?;
    if state.joining != Some(node) || !member(state, node)?.voter {
        return Err(Rejection::NotJoining { node });
    }
    Ok(ClusterState { joining: None, ..state.clone() })
}

/// See [`super::Command::RecordOutage`].
pub(super) fn record_outage(
    state: &ClusterState,
    timeline: TimelineId,
    outage_ms: u64,
) -> Result<ClusterState, Rejection> {
    let is_there = state.history.iter().any(|entry| entry.switch.timeline == timeline);
    if !is_there || state.outages_ms.contains_key(&timeline) {
        return Err(Rejection::NoOutageToRecord { timeline });
    }
    let mut next = state.clone();
    next.outages_ms.insert(timeline, outage_ms);
    Ok(next)
}
