//! The failover agent's mind: which command to propose next, or why none.
//!
//! The Raft leader alone runs it, at every beat and whenever something that it looks at has changed. It proposes and
//! never acts: its word counts once Raft has committed it, and only if the state is still the one that it planned
//! against. Two leaders who both believe to be one can therefore do no harm, and a suspicion that is wrong costs an
//! unneeded failover, never data.
//!
//! | the state | what is planned |
//! |---|---|
//! | no timeline yet | BeginElection 1, when a majority of voters is heard |
//! | no election, the primary counts as gone ([`Suspicion`]) | BeginElection |
//! | no election, all is well | nothing; perhaps another Raft leader |
//! | an election is open, a heard node has not sealed yet | nothing for [`GRACE_MS`] |
//! | an election is open, the reports qualify, the winner has everything | Promote |
//! | an election is open, the reports qualify, the winner is behind S | a fetch order |
//! | an election is open, the reports do not qualify | nothing; [`Blocked`] says what is missing |

mod leadership;
mod suspect;

use understudy_types::{Lsn, NodeId};

pub use self::suspect::{OPEN_MS_MAX, Suspicion, suspect};
use crate::command::Command;
use crate::election::{Blocked, Decision, Ranking, Reports, decide, is_sealed};
use crate::observation::{FetchOrder, Observations, Observed};
use crate::state::{ClusterState, majority};

/// How long an election waits for nodes that are heard but have not sealed yet, in milliseconds since the leader saw
/// it open. With everybody sealed the candidate is the best there is and the new sync list the longest; one slow
/// disk must not hold up the rest.
pub const GRACE_MS: u64 = 200;

/// What the Raft leader does next. All empty: nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// To be proposed to Raft.
    pub command: Option<Command>,
    /// To be sent with every beat until the plan has another one or none.
    pub fetch_order: Option<FetchOrder>,
    /// Why the open election does not go on.
    pub blocked: Option<Blocked>,
    /// With a Promote or a fetch order: the winner, and every other member with the reason.
    pub ranking: Option<Ranking>,
    /// Somebody who is better placed to lead Raft.
    pub hand_leadership_to: Option<NodeId>,
}

/// Plans the next step from the cluster state and what the leader has observed. `now_ms` is on the same clock as the
/// times in `observations`.
pub fn plan(state: &ClusterState, observations: &Observations, now_ms: u64) -> Plan {
    if !state.is_bootstrapped() {
        return Plan::default();
    }
    let view = View { state, observations, now_ms };
    if state.election.is_some() {
        return view.election();
    }
    if let Some(suspicion) = suspect(state, observations, now_ms) {
        let command = Command::BeginElection {
            generation: state.generation,
            timeline: state.timeline().next(),
            reason: suspicion.to_string(),
        };
        return Plan { command: Some(command), ..Plan::default() };
    }
    Plan { hand_leadership_to: leadership::hand_to(state, observations, now_ms), ..Plan::default() }
}

struct View<'a> {
    state: &'a ClusterState,
    observations: &'a Observations,
    now_ms: u64,
}

impl View<'_> {
    fn election(&self) -> Plan {
        if self.waits_for_seals() {
            return Plan::default();
        }
        let reports = self.reports();
        match decide(self.state, &reports, self.primary_end(), self.observations.me) {
            Ok(Decision::Promote(promotion)) => {
                let command = Command::Promote {
                    generation: self.state.generation,
                    timeline: self.state.fence(),
                    node: promotion.node,
                    incarnation: promotion.incarnation,
                    switch_lsn: promotion.switch_lsn,
                    safe_lsn: promotion.safe_lsn,
                    sync: promotion.sync,
                    time_ms: self.observations.unix_time_ms,
                };
                Plan { command: Some(command), ranking: Some(promotion.ranking), ..Plan::default() }
            }
            Ok(Decision::Fetch { order, ranking }) => {
                Plan { fetch_order: Some(order), ranking: Some(ranking), ..Plan::default() }
            }
            Err(blocked) => Plan { blocked: Some(blocked), ..Plan::default() },
        }
    }

    /// The reports that count: of members heard within `primary_timeout`.
    fn reports(&self) -> Reports<'_> {
        let timeout_ms = self.state.settings.primary_timeout_ms;
        let members = self.observations.nodes.iter().filter(|(node, _)| self.state.members.contains_key(node));
        let recent = members.filter(|(node, seen)| age_ms(self.observations, **node, seen, self.now_ms) <= timeout_ms);
        recent.map(|(node, seen)| (*node, &seen.report)).collect()
    }

    /// Whether the grace still runs and somebody who will seal soon has not. A node whose connection is gone, or that
    /// missed several beats, is not waited for.
    fn waits_for_seals(&self) -> bool {
        let grace_over = self.now_ms.saturating_sub(self.observations.phase_since_ms) >= GRACE_MS;
        let patience_ms = self.state.settings.primary_timeout_ms / 2;
        let alive = |node: NodeId, seen: &Observed| {
            let linked = node == self.observations.me || (seen.connected && !seen.refused);
            linked && age_ms(self.observations, node, seen, self.now_ms) <= patience_ms
        };
        let unsealed = |(node, seen): (&NodeId, &Observed)| {
            self.state.members.contains_key(node) && alive(*node, seen) && !is_sealed(self.state, &seen.report)
        };
        !grace_over && self.observations.nodes.iter().any(unsealed)
    }

    /// The last known position of the old primary, however long ago it was heard.
    fn primary_end(&self) -> Option<Lsn> {
        let primary = self.state.primary()?;
        let report = &self.observations.nodes.get(&primary.node)?.report;
        let is_on_timeline = report.wal_end.timeline == primary.switch.timeline;
        is_on_timeline.then(|| self.state.timeline_history().position(report.wal_end))
    }
}

/// How old the last word of `node` is, in milliseconds. The observer's own is never old.
fn age_ms(observations: &Observations, node: NodeId, seen: &Observed, now_ms: u64) -> u64 {
    if node == observations.me { 0 } else { now_ms.saturating_sub(seen.heard_at_ms) }
}

/// Whether `count` voters are a majority.
fn is_majority(state: &ClusterState, count: usize) -> bool {
    count >= majority(state.voters().len())
}

#[cfg(test)]
#[path = "plan/tests.rs"]
mod tests;
