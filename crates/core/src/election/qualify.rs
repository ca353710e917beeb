//! May anybody be promoted, where the new timeline begins (S), and what may have been acknowledged (F).

use std::collections::{BTreeMap, BTreeSet};

use understudy_types::{Lsn, NodeId, SyncMode};

use super::blocked::{Blocked, Unmet};
use super::{Reports, counted_positions, is_sealed};
use crate::state::{ClusterState, HistoryEntry, SyncList, majority};

/// A set of reports that allows a promotion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qualified {
    /// Why.
    pub basis: Basis,
    /// Of the counted nodes.
    pub positions: BTreeMap<NodeId, Lsn>,
    /// S.
    pub switch_lsn: Lsn,
    /// F. At most S.
    pub safe_lsn: Lsn,
}

/// What makes sure that nothing acknowledged is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// Nothing was ever acknowledged.
    NewCluster,
    /// Enough of the sync list are counted.
    SyncList,
    /// The old primary is counted: it flushed all that it acknowledged.
    OldPrimary,
    /// Mode `async`: the loss is within the setting.
    WithinLag,
}

/// Whether `reports` allow a promotion (design, "Failover", 4).
///
/// (a) A majority of voters sealed. (b) Of those whose grants have run out there is a majority too, or the old primary itself
/// sealed: whoever may still read by a lease counts on a majority ([`crate::lease`]). (c) Of the sync list,
/// `max(1, |members| - acks + 1)` are counted, or the old primary is; with an empty list or zero acks only the old
/// primary will do; in mode `async` the old primary, or somebody whose position is within
/// `max_lag_on_failover_bytes` of the best known end of the old primary's WAL; in a cluster without history anybody.
///
/// The best known end is the larger of `primary_end`, the old primary's last known position, and of the safe LSN
/// that the counted nodes know: in mode `async` that is the primary's flush LSN when it last spoke. Where neither is
/// known nobody can tell a lag, and none is assumed.
///
/// # Errors
/// [`Blocked`], with all that is missing.
pub fn may_promote(
    state: &ClusterState,
    reports: &Reports<'_>,
    primary_end: Option<Lsn>,
) -> Result<Qualified, Blocked> {
    let positions = counted_positions(state, reports);
    let ballot = Ballot { state, reports, positions: &positions };
    let mut unmet = Vec::new();
    let mut missing_nodes = BTreeSet::new();
    let fenced = ballot
        .majority_sealed(&mut missing_nodes)
        .and_then(|()| ballot.leases_run_out())
        .map_err(|voters| unmet.push(voters))
        .is_ok();
    let basis = ballot.basis(primary_end, &mut missing_nodes);
    match basis {
        Ok((basis, switch_lsn)) if fenced => {
            let safe_lsn = match basis {
                Basis::NewCluster | Basis::WithinLag => switch_lsn,
                Basis::SyncList | Basis::OldPrimary => {
                    let old_primary = state.primary().map(|primary| primary.node);
                    // A basis implies an F; should there be none, everything counts as acknowledged.
                    highest_acknowledged(&state.sync, old_primary, &positions).unwrap_or(switch_lsn)
                }
            };
            Ok(Qualified { basis, positions, switch_lsn, safe_lsn })
        }
        basis => {
            unmet.extend(basis.err());
            Err(Blocked { timeline: state.fence(), unmet, missing_nodes, safe_override: fenced })
        }
    }
}

/// F: the highest LSN that may have been acknowledged, from the positions of the counted nodes (design,
/// "Failover", 6). None when they do not qualify.
///
/// A commit at level `on` was flushed by `acks` of the list. With u of its members not counted, at least `acks - u`
/// of the counted have it: so it lies at or below the (acks - u)-th highest of their positions. The old primary has
/// everything that it acknowledged: so it lies at or below its position too.
///
/// | list, acks | counted | old primary | F |
/// |---|---|---|---|
/// | {b, c}, 1 | b 70, c 90 | | 90: c alone may have acknowledged |
/// | {b, c}, 2 | b 70, c 90 | | 70: both acknowledged |
/// | {b, c}, 2 | c 90 | | 90: whatever was acknowledged, c did too |
/// | {b, c}, 1 | b 70, c 90 | 80 | 80: it acknowledged nothing that it had not flushed |
/// | {b, c}, 1 | c 90 | 95 | 95: the list does not qualify, the old primary does |
/// | {b}, 2 | b 70 | | 70: nothing beyond was ever acknowledged |
/// | mode `async` | b 70, c 90 | 80 | 90: everything in the new timeline is safe |
pub fn highest_acknowledged(
    sync: &SyncList,
    old_primary: Option<NodeId>,
    positions: &BTreeMap<NodeId, Lsn>,
) -> Option<Lsn> {
    if sync.mode == SyncMode::Async {
        return positions.values().max().copied();
    }
    let mut counted: Vec<Lsn> = sync.members.iter().filter_map(|node| positions.get(node).copied()).collect();
    counted.sort_unstable_by(|a, b| b.cmp(a));
    let uncounted = sync.members.len() - counted.len();
    let acks = usize::try_from(sync.acks).expect("32 bits fit into a word");
    // The (acks - u)-th highest, or the lowest if there are fewer. With acks <= u there is no such rank: the list
    // does not qualify.
    let rank = acks.checked_sub(uncounted).filter(|rank| *rank > 0);
    let by_list = rank.and_then(|rank| counted.get(rank - 1).or(counted.last()).copied());
    let by_primary = old_primary.and_then(|node| positions.get(&node).copied());
    match (by_list, by_primary) {
        (Some(list), Some(primary)) => Some(list.min(primary)),
        (list, primary) => list.or(primary),
    }
}

/// How many of `sync` must be counted: whichever they are, one of them has everything acknowledged. None when the
/// list cannot qualify.
fn needed_of(sync: &SyncList) -> Option<usize> {
    if sync.members.is_empty() || sync.acks == 0 {
        return None;
    }
    let acks = usize::try_from(sync.acks).expect("32 bits fit into a word");
    Some((sync.members.len() + 1).saturating_sub(acks).max(1))
}

struct Ballot<'a> {
    state: &'a ClusterState,
    reports: &'a Reports<'a>,
    positions: &'a BTreeMap<NodeId, Lsn>,
}

impl Ballot<'_> {
    /// (a). Everybody's seal counts here, whatever is wrong with its data.
    fn majority_sealed(&self, missing_nodes: &mut BTreeSet<NodeId>) -> Result<(), Unmet> {
        let voters = self.state.voters();
        let is_sealed = |node: &NodeId| self.reports.get(node).is_some_and(|report| is_sealed(self.state, report));
        let (sealed, missing): (Vec<NodeId>, Vec<NodeId>) = voters.iter().partition(|node| is_sealed(node));
        let (sealed, voters, needed) = (sealed.len(), voters.len(), majority(voters.len()));
        if sealed >= needed {
            return Ok(());
        }
        let names = missing.iter().map(|node| self.state.name_of(*node)).collect();
        missing_nodes.extend(missing);
        Err(Unmet::Voters { sealed, voters, needed, missing: names })
    }

    /// (b). The old primary drops its lease before it seals, and a new process of it never had one.
    fn leases_run_out(&self) -> Result<(), Unmet> {
        let sealed = |node: &NodeId| self.reports.get(node).filter(|report| is_sealed(self.state, report));
        if self.state.primary().is_some_and(|primary| sealed(&primary.node).is_some()) {
            return Ok(());
        }
        let voters = self.state.voters();
        let (free, bound): (Vec<NodeId>, Vec<NodeId>) = voters
            .iter()
            .filter(|node| sealed(node).is_some())
            .partition(|node| sealed(node).is_some_and(|report| report.lease_left_ms == 0));
        if free.len() >= majority(voters.len()) {
            return Ok(());
        }
        Err(Unmet::Leases { bound: bound.into_iter().map(|node| self.state.name_of(node)).collect() })
    }

    /// (c), and S.
    fn basis(&self, primary_end: Option<Lsn>, missing_nodes: &mut BTreeSet<NodeId>) -> Result<(Basis, Lsn), Unmet> {
        let highest = self.positions.values().max().copied();
        let Some(old_primary) = self.state.primary() else {
            return highest.map(|lsn| (Basis::NewCluster, lsn)).ok_or_else(|| self.no_data(missing_nodes));
        };
        let sync = &self.state.sync;
        let counted = sync.members.iter().filter(|node| self.positions.contains_key(node)).count();
        match highest {
            Some(lsn) if self.positions.contains_key(&old_primary.node) => return Ok((Basis::OldPrimary, lsn)),
            Some(lsn) if sync.mode == SyncMode::Async => {
                return self.within_lag(lsn, primary_end, old_primary, missing_nodes);
            }
            Some(lsn) if needed_of(sync).is_some_and(|needed| counted >= needed) => return Ok((Basis::SyncList, lsn)),
            Some(_) | None => {}
        }
        if sync.mode == SyncMode::Async {
            return Err(self.no_data(missing_nodes));
        }
        missing_nodes.insert(old_primary.node);
        let old_primary = self.describe(old_primary.node);
        let Some(needed) = needed_of(sync) else {
            return Err(Unmet::OldPrimary { old_primary });
        };
        let missing: Vec<NodeId> = sync.members.iter().copied().filter(|n| !self.positions.contains_key(n)).collect();
        missing_nodes.extend(missing.iter().copied());
        let missing = missing.into_iter().map(|node| self.describe(node)).collect();
        Err(Unmet::SyncList { counted, members: sync.members.len(), needed, missing, old_primary })
    }

    fn within_lag(
        &self,
        highest: Lsn,
        primary_end: Option<Lsn>,
        old_primary: &HistoryEntry,
        missing_nodes: &mut BTreeSet<NodeId>,
    ) -> Result<(Basis, Lsn), Unmet> {
        let timeline = old_primary.switch.timeline;
        let told = self.positions.keys().filter_map(|node| self.reports.get(node));
        // What was told on an earlier timeline may have been left since.
        let safe = told.filter(|report| report.wal_end.timeline == timeline).map(|report| report.safe_lsn).max();
        let known_end = primary_end.max(safe).unwrap_or(highest);
        let lag_bytes = known_end.saturating_since(highest);
        let lag_bytes_max = self.state.settings.max_lag_on_failover_bytes;
        if lag_bytes <= lag_bytes_max {
            return Ok((Basis::WithinLag, highest));
        }
        missing_nodes.insert(old_primary.node);
        Err(Unmet::TooFarBehind { lag_bytes, lag_bytes_max, old_primary: self.describe(old_primary.node) })
    }

    fn no_data(&self, missing_nodes: &mut BTreeSet<NodeId>) -> Unmet {
        let with_data = self.state.members.iter().filter(|(_, member)| !member.witness).map(|(node, _)| *node);
        let missing: Vec<NodeId> = with_data.filter(|node| !self.positions.contains_key(node)).collect();
        missing_nodes.extend(missing.iter().copied());
        Unmet::Data { missing: missing.into_iter().map(|node| self.describe(node)).collect() }
    }

    /// A node that is not counted: its name, and why where it is not just silent.
    fn describe(&self, node: NodeId) -> String {
        let name = self.state.name_of(node);
        match self.reports.get(&node) {
            Some(report) if report.damaged => format!("{name} (its WAL is damaged)"),
            Some(report) => match &report.stays_out {
                Some(why) => format!("{name} (stays out: {why})"),
                None => format!("{name} (has not sealed yet)"),
            },
            None => name,
        }
    }
}
