//! The deciders against deliberately dumb second implementations.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use understudy_types::{Lsn, NodeId, SyncMode};

use super::fixture::{Scenario, id};
use super::{Basis, highest_acknowledged, may_promote, rank};
use crate::state::SyncList;

const PRIMARY: u64 = 1;

/// Every LSN that some primary may have acknowledged, by trying all worlds: each node that is not counted has
/// flushed anything at all, each counted one exactly its position. An LSN may have been acknowledged if in some
/// world the primary and enough of the list have it. None: there is no bound.
fn acknowledged_in_some_world(sync: &SyncList, positions: &BTreeMap<NodeId, Lsn>, limit: u64) -> Option<u64> {
    let has = |node: NodeId, lsn: u64| positions.get(&node).is_none_or(|at| at.get() >= lsn);
    let may = |lsn: u64| {
        let list = sync.members.iter().filter(|node| has(**node, lsn)).count();
        has(id(PRIMARY), lsn) && list >= usize::try_from(sync.acks).unwrap()
    };
    if may(limit) { None } else { Some((0..limit).rev().find(|lsn| may(*lsn)).unwrap_or(0)) }
}

const LIMIT: u64 = 40;

fn sync_lists() -> impl Strategy<Value = SyncList> {
    (proptest::collection::btree_set(2..=6_u64, 0..=4), 0..=4_u32).prop_map(|(members, acks)| {
        let members: BTreeSet<NodeId> = members.into_iter().map(id).collect();
        SyncList { mode: SyncMode::Required, members, acks }
    })
}

fn positions() -> impl Strategy<Value = BTreeMap<NodeId, Lsn>> {
    proptest::collection::btree_map((1..=6_u64).prop_map(id), (1..LIMIT - 1).prop_map(Lsn::new), 0..=6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// F is exactly the highest LSN that may have been acknowledged in any world, wherever there is such a bound and the
    /// list is long enough to acknowledge anything. Where the list is shorter than its acknowledgements, nothing is
    /// acknowledged by it at all: there F is at most what every counted member has.
    #[test]
    fn f_is_the_highest_lsn_that_may_have_been_acknowledged(sync in sync_lists(), positions in positions()) {
        let f = highest_acknowledged(&sync, Some(id(PRIMARY)), &positions);
        let by_worlds = acknowledged_in_some_world(&sync, &positions, LIMIT);
        let can_acknowledge = usize::try_from(sync.acks).unwrap() <= sync.members.len();
        if can_acknowledge && sync.acks > 0 {
            prop_assert_eq!(f.map(Lsn::get), by_worlds, "{:?} {:?}", sync, positions);
        } else if let Some(f) = f {
            let is_listed = |node: NodeId| node == id(PRIMARY) || sync.members.contains(&node);
            prop_assert!(positions.iter().any(|(node, at)| is_listed(*node) && *at == f));
        }
    }

    /// A promotion is allowed by the list or the old primary exactly when there is a bound on what was acknowledged, and
    /// somebody counted has all of it.
    #[test]
    fn a_promotion_needs_a_bound_and_somebody_who_has_everything(sync in sync_lists(), positions in positions()) {
        let mut scenario = Scenario::new(6).mode(SyncMode::Required);
        scenario.state.sync = sync.clone();
        for node in 1..=6 {
            // Everybody fences; who is not in `positions` is damaged.
            scenario = scenario.sealed(node, positions.get(&id(node)).map_or(LIMIT * 2, |at| at.get()));
            scenario = scenario.report(node, |report| report.damaged = !positions.contains_key(&id(node)));
        }
        let qualified = may_promote(&scenario.state, &scenario.reports(), None);
        let bound = acknowledged_in_some_world(&sync, &positions, LIMIT);
        let somebody_has = |bound: u64| positions.values().any(|at| at.get() >= bound);
        let can_acknowledge = usize::try_from(sync.acks).unwrap() <= sync.members.len();
        if can_acknowledge && sync.acks > 0 {
            let dumb = bound.is_some_and(|bound| bound > 0 && somebody_has(bound));
            prop_assert_eq!(qualified.is_ok(), dumb, "{:?} {:?}", &sync, &positions);
        }
        if let Ok(qualified) = qualified {
            prop_assert!(qualified.safe_lsn <= qualified.switch_lsn);
            prop_assert_eq!(Some(qualified.switch_lsn), positions.values().max().copied());
            prop_assert!(matches!(qualified.basis, Basis::SyncList | Basis::OldPrimary));
            if let Some(bound) = bound {
                prop_assert!(qualified.safe_lsn.get() >= bound || !can_acknowledge);
            }
        }
    }

    /// Whatever subset of the qualifying reports is looked at, S is in the set, the winner can reach it, and nobody that
    /// must not win wins.
    #[test]
    fn a_winner_is_always_able_to_open(
        lsns in proptest::collection::vec(1..LIMIT, 5),
        priorities in proptest::collection::vec(0..3_u32, 5),
        hears in proptest::collection::vec(proptest::collection::btree_set(1..=5_u64, 0..=5), 5),
        damaged in proptest::collection::vec(proptest::bool::weighted(0.2), 5),
        leader in 1..=5_u64,
    ) {
        let mut scenario = Scenario::new(5).list(&[2, 3, 4, 5], 2).leader(leader);
        for (index, node) in (1..=5_u64).enumerate() {
            scenario = scenario.sealed(node, lsns[index]).member(node, |member| member.failover_priority = priorities[index]);
            scenario = scenario.report(node, |report| {
                report.hears = hears[index].iter().copied().map(id).collect();
                report.damaged = damaged[index];
            });
        }
        let reports = scenario.reports();
        let Ok(qualified) = may_promote(&scenario.state, &reports, None) else { return Ok(()) };
        let Ok(ranking) = rank(&scenario.state, &reports, &qualified, scenario.leader) else { return Ok(()) };
        let winner = usize::try_from(ranking.winner.get()).unwrap() - 1;
        prop_assert!(priorities[winner] > 0 && !damaged[winner]);
        let hearing = (0..5).filter(|other| *other == winner || hears[*other].contains(&ranking.winner.get())).count();
        prop_assert!(hearing >= 3);
        match ranking.source {
            None => prop_assert_eq!(Lsn::new(lsns[winner]), qualified.switch_lsn),
            Some(source) => {
                let source_index = usize::try_from(source.get()).unwrap() - 1;
                prop_assert!(Lsn::new(lsns[winner]) < qualified.switch_lsn);
                prop_assert_eq!(Lsn::new(lsns[source_index]), qualified.switch_lsn);
                prop_assert!(!damaged[source_index] && hears[winner].contains(&source.get()));
            }
        }
        prop_assert_eq!(ranking.rejected.len(), 4);
    }
}
