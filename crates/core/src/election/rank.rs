//! Who of those that could be promoted is (design, "Failover", 5). Nothing here is about safety: whoever wins has
//! everything up to S before it is promoted.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;

use understudy_types::{Incarnation, Lsn, NodeId};

use super::blocked::{Blocked, Unmet};
use super::qualify::Qualified;
use super::{Reports, is_sealed};
use crate::state::{ClusterState, Member, majority};

/// The winner, and why everybody else is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranking {
    /// Who is to open the timeline.
    pub winner: NodeId,
    /// Its process start.
    pub incarnation: Incarnation,
    /// Where it gets the WAL that it lacks; none when it has everything up to S.
    pub source: Option<NodeId>,
    /// Every other member, with the reason, for the log.
    pub rejected: Vec<(NodeId, NotWinner)>,
}

/// Why a member is not the winner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotWinner {
    /// It holds no data.
    Witness,
    /// failover_priority 0: its data may be fetched, it is never promoted.
    PriorityZero,
    /// It was not heard within primary_timeout.
    NotHeard,
    /// It has not sealed for this election.
    NotSealed,
    /// Its WAL may lack what it acknowledged.
    Damaged,
    /// Its store has applied what the history left: it has to be seeded, and could neither fetch nor open.
    Diverged {
        /// Up to here.
        applied: Lsn,
        /// Where its WAL leaves the history.
        position: Lsn,
    },
    /// It waits for help.
    StaysOut {
        /// Its own word.
        why: String,
    },
    /// It could not be confirmed, and the next election would follow at once.
    HeardByTooFew {
        /// How many voters hear it, itself included.
        voters: usize,
        /// A majority.
        needed: usize,
    },
    /// It is behind S and hears nobody who is not.
    CannotFetch {
        /// Its position.
        position: Lsn,
        /// S.
        switch_lsn: Lsn,
    },
    /// The winner is better.
    Outranked {
        /// In what.
        by: Criterion,
    },
}

/// What candidates are compared by, the first first.
///
/// Having failed to open last time comes first, not second to last as a tie-break: the node would otherwise win
/// again by its priority or position, fail again, and the cluster would never have a primary. It holds for one
/// election; if the next winner fails too, this one has its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Criterion {
    /// Those that did not fail to open last time.
    FailedToOpen,
    /// Those that a majority of voters can connect to: the next election would follow at once.
    Unreachable,
    /// Those that have everything, or did not fail to fetch what they lack: the winner is the one that can be had.
    CouldNotFetch,
    /// The larger one.
    Priority,
    /// Those that are not the Raft leader: leadership stays off the primary.
    RaftLeader,
    /// The higher one: nothing to fetch.
    Position,
    /// The smaller one, so that two leaders would decide alike.
    NodeId,
}

/// The smallest is the best.
type Key = (bool, bool, bool, Reverse<u32>, bool, Reverse<Lsn>, NodeId);

/// Ranks everybody by `reports`, which qualified.
///
/// A winner that is behind S gets a source that has everything up to S and that it hears.
///
/// # Errors
/// [`Blocked`] when nobody can be promoted; it has everybody with the reason.
pub fn rank(
    state: &ClusterState,
    reports: &Reports<'_>,
    qualified: &Qualified,
    leader: NodeId,
) -> Result<Ranking, Blocked> {
    let mut candidates: BTreeMap<Key, (Incarnation, Option<NodeId>)> = BTreeMap::new();
    let mut rejected: Vec<(NodeId, NotWinner)> = Vec::new();
    for (node, member) in &state.members {
        match candidate(state, reports, qualified, *node, member) {
            Ok((position, incarnation, source)) => {
                let report = reports.get(node);
                let failed = report.is_some_and(|report| report.failed_to_open == Some(state.timeline()));
                let failed = failed && !state.history.is_empty();
                let stuck =
                    source.is_some() && report.is_some_and(|report| report.could_not_fetch == Some(state.fence()));
                let lost = is_lost(state, reports, *node);
                let priority = Reverse(member.failover_priority);
                let key = (failed, lost, stuck, priority, *node == leader, Reverse(position), *node);
                candidates.insert(key, (incarnation, source));
            }
            Err(why) => rejected.push((*node, why)),
        }
    }
    let Some((best, (incarnation, source))) = candidates.pop_first() else {
        let missing_nodes = rejected.iter().filter(|(_, why)| why.would_pass()).map(|(node, _)| *node).collect();
        let rejected = rejected.into_iter().map(|(node, why)| (state.name_of(node), why)).collect();
        let unmet = vec![Unmet::Candidate { rejected }];
        return Err(Blocked { timeline: state.fence(), unmet, missing_nodes, safe_override: false });
    };
    rejected.extend(candidates.keys().map(|key| (key.6, NotWinner::Outranked { by: criterion(&best, key) })));
    rejected.sort_by_key(|(node, _)| *node);
    Ok(Ranking { winner: best.6, incarnation, source, rejected })
}

/// Whether a majority of voters cannot have the connections to `node` back that they once had, though it may be heard.
fn is_lost(state: &ClusterState, reports: &Reports<'_>, node: NodeId) -> bool {
    let voters = state.voters();
    let lost_by = |voter: &&NodeId| reports.get(*voter).is_some_and(|report| report.lost.contains(&node));
    voters.iter().filter(lost_by).count() >= majority(voters.len())
}

/// Position, incarnation and source of a node that could be promoted.
fn candidate(
    state: &ClusterState,
    reports: &Reports<'_>,
    qualified: &Qualified,
    node: NodeId,
    member: &Member,
) -> Result<(Lsn, Incarnation, Option<NodeId>), NotWinner> {
    if member.witness {
        return Err(NotWinner::Witness);
    }
    if member.failover_priority == 0 {
        return Err(NotWinner::PriorityZero);
    }
    let Some(report) = reports.get(&node) else {
        return Err(NotWinner::NotHeard);
    };
    if let Some(why) = &report.stays_out {
        return Err(NotWinner::StaysOut { why: why.clone() });
    }
    if report.damaged {
        return Err(NotWinner::Damaged);
    }
    let Some(position) = qualified.positions.get(&node).copied().filter(|_| is_sealed(state, report)) else {
        return Err(NotWinner::NotSealed);
    };
    if report.apply_lsn > position {
        return Err(NotWinner::Diverged { applied: report.apply_lsn, position });
    }
    let hearing =
        |voter: &NodeId| *voter == node || reports.get(voter).is_some_and(|heard| heard.hears.contains(&node));
    let voters = state.voters();
    let (heard_by, needed) = (voters.iter().filter(|voter| hearing(voter)).count(), majority(voters.len()));
    if heard_by < needed {
        return Err(NotWinner::HeardByTooFew { voters: heard_by, needed });
    }
    let switch_lsn = qualified.switch_lsn;
    if position >= switch_lsn {
        return Ok((position, report.incarnation, None));
    }
    let mut sources = qualified.positions.iter().filter(|(_, at)| **at >= switch_lsn).map(|(source, _)| *source);
    let source = sources.find(|source| report.hears.contains(source));
    source.map_or(Err(NotWinner::CannotFetch { position, switch_lsn }), |from| {
        Ok((position, report.incarnation, Some(from)))
    })
}

/// The first thing in which `best` and `other` differ.
fn criterion(best: &Key, other: &Key) -> Criterion {
    match () {
        () if best.0 != other.0 => Criterion::FailedToOpen,
        () if best.1 != other.1 => Criterion::Unreachable,
        () if best.2 != other.2 => Criterion::CouldNotFetch,
        () if best.3 != other.3 => Criterion::Priority,
        () if best.4 != other.4 => Criterion::RaftLeader,
        () if best.5 != other.5 => Criterion::Position,
        () => Criterion::NodeId,
    }
}

impl NotWinner {
    /// Whether the node would be a candidate once it is there and well, without anybody changing its tags.
    fn would_pass(&self) -> bool {
        match self {
            Self::Witness
            | Self::PriorityZero
            | Self::Damaged
            | Self::Diverged { .. }
            | Self::StaysOut { .. }
            | Self::Outranked { .. } => false,
            Self::NotHeard | Self::NotSealed | Self::HeardByTooFew { .. } | Self::CannotFetch { .. } => true,
        }
    }
}

impl fmt::Display for NotWinner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Witness => f.write_str("a witness"),
            Self::PriorityZero => f.write_str("failover_priority 0"),
            Self::NotHeard => f.write_str("not heard"),
            Self::NotSealed => f.write_str("has not sealed"),
            Self::Damaged => f.write_str("its WAL is damaged"),
            Self::Diverged { applied, position } => {
                write!(f, "its store has applied up to {applied}, of which only what is before {position} was kept")
            }
            Self::StaysOut { why } => write!(f, "stays out: {why}"),
            Self::HeardByTooFew { voters, needed } => write!(f, "heard by {voters} voters, {needed} are needed"),
            Self::CannotFetch { position, switch_lsn } => {
                write!(f, "at {position}, and hears nobody who has the WAL up to {switch_lsn}")
            }
            Self::Outranked { by } => write!(f, "{by}"),
        }
    }
}

impl fmt::Display for Criterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FailedToOpen => "it failed to open the timeline that it was promoted to last",
            Self::Unreachable => "a majority of voters gets no connection to it",
            Self::CouldNotFetch => "it could not fetch the WAL that it lacks",
            Self::Priority => "the winner has a larger failover_priority",
            Self::RaftLeader => "it is the Raft leader",
            Self::Position => "the winner has more WAL",
            Self::NodeId => "equal, the winner has the smaller node id",
        })
    }
}
