//! Raft leadership is kept off the primary, and with those who hear it (design, "Beats, confirmation, reads").
//!
//! Then the death of the primary is seen and acted upon by a leader that is already there, and the death of the
//! leader does not touch the primary. Only while no election is open: a leader that decides stays.

use std::cmp::Reverse;

use understudy_types::NodeId;

use super::suspect::is_open;
use super::{age_ms, is_majority};
use crate::observation::{Observations, Observed};
use crate::state::ClusterState;

/// Who should lead Raft instead of the observer; none while it is in place.
///
/// - The observer is the open and confirmed primary: somebody who hears it and a majority of voters.
/// - The observer has lost the primary for half of `primary_timeout`, while a majority of voters heard it within a
///   quarter: one of those. The distance keeps a primary that froze for all of them from looking like that.
///
/// A leader waits for `primary_timeout` before it hands on what it was just given. Of several, the one that is least
/// likely to be the next primary: no data, then the smallest failover_priority, then the largest node id.
pub(super) fn hand_to(state: &ClusterState, observations: &Observations, now_ms: u64) -> Option<NodeId> {
    let timeout_ms = state.settings.primary_timeout_ms;
    let primary = state.primary()?;
    let me = observations.me;
    let mine = &observations.nodes.get(&me)?.report;
    if now_ms.saturating_sub(observations.leader_since_ms) < timeout_ms {
        return None;
    }
    let hears = |node: NodeId, seen: &Observed, within_ms: u64| {
        let unheard_ms = seen.report.primary_heard_ms_ago.saturating_add(age_ms(observations, node, seen, now_ms));
        node == primary.node || (seen.report.generation >= state.generation && unheard_ms <= within_ms)
    };
    let within_ms = if me == primary.node {
        let is_settled =
            mine.incarnation == primary.incarnation && is_open(mine, primary.switch.timeline) && mine.confirmed;
        is_settled.then_some(timeout_ms / 2)?
    } else {
        let within_ms = timeout_ms / 4;
        let voters = state.voters();
        let hearing =
            observations.nodes.iter().filter(|(node, seen)| voters.contains(node) && hears(**node, seen, within_ms));
        let is_lost = mine.primary_heard_ms_ago > timeout_ms / 2 && is_majority(state, hearing.count());
        is_lost.then_some(within_ms)?
    };
    let is_fit = |node: NodeId, seen: &Observed| {
        let voters = state.voters();
        let hears_voters = voters.iter().filter(|voter| **voter == node || seen.report.hears.contains(voter)).count();
        voters.contains(&node)
            && node != me
            && node != primary.node
            && seen.connected
            && age_ms(observations, node, seen, now_ms) <= timeout_ms / 2
            && hears(node, seen, within_ms)
            && is_majority(state, hears_voters)
    };
    let fit = observations.nodes.iter().filter(|(node, seen)| is_fit(**node, seen)).map(|(node, _)| *node);
    fit.min_by_key(|node| {
        let member = state.members.get(node);
        (member.map(|member| (member.is_eligible(), member.failover_priority)), Reverse(*node))
    })
}
