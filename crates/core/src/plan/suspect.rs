//! When the primary counts as gone (design, "Failover", 1).
//!
//! A voter's word about the primary counts only if it speaks of the present one: it must have applied the cluster
//! state that the leader has. Otherwise the complaints about the old primary would bring down the new one in the
//! first moments after every promotion.

use std::fmt;

use understudy_types::{NodeId, TimelineId};

use super::{age_ms, is_majority};
use crate::observation::{NodeReport, NodeRole, Observations, Observed};
use crate::state::{ClusterState, HistoryEntry};

/// How long a promoted node that is heard may take to open its timeline before somebody else is tried, in
/// milliseconds. Generous: it rebuilds its indexes from the WAL first, and says so itself when it fails.
pub const OPEN_MS_MAX: u64 = 10_000;

/// Why there is an election. Its text stands in the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Suspicion {
    /// There was no primary yet.
    NewCluster,
    /// A majority of voters have not heard the primary for `primary_timeout`.
    Unheard {
        /// Its name.
        primary: String,
        /// How many.
        voters: usize,
        /// Of how many.
        of: usize,
        /// In milliseconds.
        timeout_ms: u64,
    },
    /// A majority of voters have lost their connections to it and cannot have new ones.
    Refused {
        /// Its name.
        primary: String,
        /// How many.
        voters: usize,
        /// Of how many.
        of: usize,
    },
    /// Another process of the promoted node runs.
    Restarted {
        /// Its name.
        primary: String,
    },
    /// It says that it could not open its timeline.
    FailedToOpen {
        /// Its name.
        primary: String,
        /// What it was promoted to.
        timeline: TimelineId,
    },
    /// It lives but has not opened its timeline.
    NotOpen {
        /// Its name.
        primary: String,
        /// What it was promoted to.
        timeline: TimelineId,
        /// How long it had, in milliseconds.
        waited_ms: u64,
    },
    /// It says that no majority has confirmed it for `primary_timeout`.
    Unconfirmed {
        /// Its name.
        primary: String,
    },
}

impl fmt::Display for Suspicion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewCluster => f.write_str("new cluster"),
            Self::Unheard { primary, voters, of, timeout_ms } => {
                write!(f, "primary {primary} is gone: {voters} of {of} voters have not heard it for {timeout_ms} ms")
            }
            Self::Refused { primary, voters, of } => {
                write!(
                    f,
                    "primary {primary} is gone: {voters} of {of} voters lost their connections to it and get no new ones"
                )
            }
            Self::Restarted { primary } => write!(f, "primary {primary} has restarted"),
            Self::FailedToOpen { primary, timeline } => write!(f, "{primary} failed to open timeline {timeline}"),
            Self::NotOpen { primary, timeline, waited_ms } => {
                write!(f, "{primary} has not opened timeline {timeline} within {waited_ms} ms")
            }
            Self::Unconfirmed { primary } => {
                write!(f, "primary {primary} is no longer confirmed by a majority of voters")
            }
        }
    }
}

/// Why there should be an election now; none when all is well, or when too few are heard to say so.
pub fn suspect(state: &ClusterState, observations: &Observations, now_ms: u64) -> Option<Suspicion> {
    let view = View { state, observations, now_ms };
    let Some(primary) = state.primary() else {
        let heard = state.voters().into_iter().filter(|voter| view.recent(*voter).is_some()).count();
        return is_majority(state, heard).then_some(Suspicion::NewCluster);
    };
    view.own_word(primary).or_else(|| view.word_of_voters(primary))
}

struct View<'a> {
    state: &'a ClusterState,
    observations: &'a Observations,
    now_ms: u64,
}

impl View<'_> {
    fn timeout_ms(&self) -> u64 {
        self.state.settings.primary_timeout_ms
    }

    /// What was heard of `node` within `primary_timeout`. An older word says nothing.
    fn recent(&self, node: NodeId) -> Option<&Observed> {
        let seen = self.observations.nodes.get(&node)?;
        (age_ms(self.observations, node, seen, self.now_ms) <= self.timeout_ms()).then_some(seen)
    }

    /// What the primary's own beats say. Only those that came after the leader saw the promotion: earlier ones speak
    /// of what the node was before.
    fn own_word(&self, primary: &HistoryEntry) -> Option<Suspicion> {
        let seen = self.recent(primary.node)?;
        let since_ms = self.observations.phase_since_ms;
        if primary.node != self.observations.me && seen.heard_at_ms < since_ms {
            return None;
        }
        let report = &seen.report;
        let timeline = primary.switch.timeline;
        let name = || self.state.name_of(primary.node);
        if report.incarnation != primary.incarnation {
            return Some(Suspicion::Restarted { primary: name() });
        }
        if report.failed_to_open == Some(timeline) {
            return Some(Suspicion::FailedToOpen { primary: name(), timeline });
        }
        if is_open(report, timeline) {
            return (!report.confirmed).then(|| Suspicion::Unconfirmed { primary: name() });
        }
        // A leader that has just started knows only how long it has waited itself.
        let waited_ms = self.now_ms.saturating_sub(since_ms);
        (waited_ms >= OPEN_MS_MAX).then(|| Suspicion::NotOpen { primary: name(), timeline, waited_ms: OPEN_MS_MAX })
    }

    /// What the voters' beats say, the leader's own included.
    fn word_of_voters(&self, primary: &HistoryEntry) -> Option<Suspicion> {
        let voters = self.state.voters();
        let of = voters.len();
        let words: Vec<(NodeId, &Observed)> = voters
            .into_iter()
            .filter_map(|voter| self.recent(voter).map(|seen| (voter, seen)))
            .filter(|(_, seen)| seen.report.generation >= self.state.generation)
            .collect();
        let name = || self.state.name_of(primary.node);
        let refused = words.iter().filter(|(_, seen)| seen.report.primary_refused).count();
        // One that is still heard is not replaced by itself, again and again.
        let serves = self.recent(primary.node).is_none() || self.another_could_lead(primary.node);
        if is_majority(self.state, refused) && serves {
            return Some(Suspicion::Refused { primary: name(), voters: refused, of });
        }
        let unheard = words.iter().filter(|(voter, seen)| self.unheard_ms(*voter, seen) >= self.timeout_ms()).count();
        is_majority(self.state, unheard).then(|| Suspicion::Unheard {
            primary: name(),
            voters: unheard,
            of,
            timeout_ms: self.timeout_ms(),
        })
    }

    /// Whether somebody else could be promoted whom most voters can connect to.
    fn another_could_lead(&self, primary: NodeId) -> bool {
        let voters = self.state.voters();
        let lost_by = |node: NodeId| {
            let lost = |voter: &&NodeId| self.recent(**voter).is_some_and(|seen| seen.report.lost.contains(&node));
            voters.iter().filter(lost).count()
        };
        let could = |node: NodeId| {
            let is_well = |seen: &Observed| !seen.report.damaged && seen.report.stays_out.is_none();
            node != primary && self.recent(node).is_some_and(is_well) && !is_majority(self.state, lost_by(node))
        };
        self.state.members.iter().any(|(node, member)| member.is_eligible() && could(*node))
    }

    /// How long `voter` has not heard the primary. Since its last beat time has passed for it too, but not more than
    /// a beat's worth is taken for granted: otherwise a leader that was paused itself, and reads its clock before its
    /// mail, would take every voter's silence towards itself for the primary's.
    fn unheard_ms(&self, voter: NodeId, seen: &Observed) -> u64 {
        let beat_ms = self.timeout_ms() / 5;
        seen.report
            .primary_heard_ms_ago
            .saturating_add(age_ms(self.observations, voter, seen, self.now_ms).min(beat_ms))
    }
}

/// Whether a node is the open primary of `timeline`, by its own word.
pub(super) fn is_open(report: &NodeReport, timeline: TimelineId) -> bool {
    report.role == NodeRole::Primary && report.timeline == timeline
}
