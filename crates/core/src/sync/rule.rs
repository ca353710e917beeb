//! The safe LSN: what a sync rule makes of the acknowledgements.
//!
//! | acks of members | flushes of the members | local flush | safe LSN |
//! |---|---|---|---|
//! | 0 of {} | | 90 | 90 |
//! | 1 of {b, c} | b 70, c 50 | 90 | 70 |
//! | 2 of {b, c} | b 70, c 50 | 90 | 50 |
//! | 2 of {b, c} | b 70, c 95 | 60 | 60 |
//! | 2 of {b} | b 70 | 90 | none: nothing is safe until somebody else is listed |
//!
//! As PostgreSQL's `SyncRepGetSyncRecPtr`: `FIRST n` takes the oldest of the n sync standbys and `ANY n` the n-th
//! latest of the listed ones. Both are the same function here, because a `FIRST` list has n members and no more.

use std::collections::{BTreeMap, BTreeSet};

use understudy_types::{Lsn, NodeId};

use crate::state::SyncList;

/// How many of whom must have flushed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SyncRule {
    /// Who counts. Never the primary.
    pub members: BTreeSet<NodeId>,
    /// How many of them. Zero: the primary's own flush is enough.
    pub acks: u32,
}

impl From<&SyncList> for SyncRule {
    fn from(list: &SyncList) -> Self {
        Self { members: list.members.clone(), acks: list.acks }
    }
}

/// The highest LSN that satisfies `rule`: the `acks`-th highest flush among the members, never above the local flush.
///
/// A member that is absent from `flushes` has flushed nothing. With fewer members than acks no LSN satisfies the
/// rule: [`Lsn::INVALID`].
pub fn safe_lsn(rule: &SyncRule, local_flush: Lsn, flushes: &BTreeMap<NodeId, Lsn>) -> Lsn {
    nth_highest(&rule.members, rule.acks, flushes).map_or(local_flush, |lsn| lsn.min(local_flush))
}

/// Whether a list with this rule would tell the truth about everything up to `published`: whichever
/// `max(1, |members| - acks + 1)` members an election finds, one of them has flushed all of it (INV-DURABLE).
///
/// That is the case when the rule alone yields at least `published`; the primary itself has what it published. A list
/// with fewer members than acks yields nothing, yet one of them is enough for an election: there every member must
/// have it. An empty list says that the primary alone has it.
pub fn holds(rule: &SyncRule, published: Lsn, flushes: &BTreeMap<NodeId, Lsn>) -> bool {
    let members = u32::try_from(rule.members.len()).unwrap_or(u32::MAX);
    nth_highest(&rule.members, rule.acks.min(members), flushes).is_none_or(|lsn| lsn >= published)
}

/// None for n = 0: no member is needed.
fn nth_highest(members: &BTreeSet<NodeId>, n: u32, flushes: &BTreeMap<NodeId, Lsn>) -> Option<Lsn> {
    let below = usize::try_from(n).expect("32 bits fit into a word").checked_sub(1)?;
    let mut flushed: Vec<Lsn> = members.iter().filter_map(|node| flushes.get(node).copied()).collect();
    flushed.sort_unstable_by(|a, b| b.cmp(a));
    Some(flushed.get(below).copied().unwrap_or(Lsn::INVALID))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(members: &[u64], acks: u32) -> SyncRule {
        SyncRule { members: members.iter().copied().map(NodeId::new).collect(), acks }
    }

    fn flushes(of: &[(u64, u64)]) -> BTreeMap<NodeId, Lsn> {
        of.iter().map(|&(node, lsn)| (NodeId::new(node), Lsn::new(lsn))).collect()
    }

    #[test]
    fn the_table_of_the_module() {
        let safe = |members: &[u64], acks, of: &[(u64, u64)], local| {
            safe_lsn(&rule(members, acks), Lsn::new(local), &flushes(of)).get()
        };
        assert_eq!(safe(&[], 0, &[], 90), 90);
        assert_eq!(safe(&[2, 3], 1, &[(2, 70), (3, 50)], 90), 70);
        assert_eq!(safe(&[2, 3], 2, &[(2, 70), (3, 50)], 90), 50);
        assert_eq!(safe(&[2, 3], 2, &[(2, 70), (3, 95)], 60), 60);
        assert_eq!(safe(&[2], 2, &[(2, 70)], 90), 0);
    }

    #[test]
    fn a_flush_of_somebody_who_is_not_listed_counts_nothing() {
        assert_eq!(safe_lsn(&rule(&[2], 1), Lsn::new(90), &flushes(&[(2, 10), (4, 90)])), Lsn::new(10));
    }

    #[test]
    fn a_list_that_is_too_short_holds_when_every_member_has_everything() {
        let of = flushes(&[(2, 70), (3, 50)]);
        assert!(holds(&rule(&[2], 3), Lsn::new(70), &of));
        assert!(!holds(&rule(&[2, 3], 3), Lsn::new(70), &of));
        assert!(holds(&rule(&[], 1), Lsn::new(90), &of));
    }

    /// The dumb oracle: try every LSN, count who has it.
    fn oracle(rule: &SyncRule, local_flush: Lsn, of: &BTreeMap<NodeId, Lsn>) -> Lsn {
        let satisfied = |lsn: Lsn| {
            let have = rule.members.iter().filter(|node| of.get(node).is_some_and(|flush| *flush >= lsn)).count();
            lsn <= local_flush && have >= rule.acks as usize
        };
        (1..=20).rev().map(Lsn::new).find(|lsn| satisfied(*lsn)).unwrap_or(Lsn::INVALID)
    }

    /// The dumb oracle: try every set of members that an election may find.
    fn truth(rule: &SyncRule, published: Lsn, of: &BTreeMap<NodeId, Lsn>) -> bool {
        let members: Vec<NodeId> = rule.members.iter().copied().collect();
        let needed = (members.len() + 1).saturating_sub(rule.acks as usize).max(1);
        (0_u32..1 << members.len()).filter(|set| set.count_ones() as usize == needed).all(|set| {
            let mut found = members.iter().enumerate().filter(|(at, _)| set & (1 << at) != 0);
            found.any(|(_, node)| of.get(node).is_some_and(|flush| *flush >= published))
        })
    }

    proptest! {
        #[test]
        fn safe_lsn_is_what_counting_gives(
            members in proptest::collection::btree_set(0_u64..6, 0..6),
            acks in 0_u32..7,
            local in 0_u64..20,
            of in proptest::collection::btree_map(0_u64..6, 0_u64..20, 0..6),
        ) {
            let rule = rule(&members.into_iter().collect::<Vec<_>>(), acks);
            let of = flushes(&of.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(safe_lsn(&rule, Lsn::new(local), &of), oracle(&rule, Lsn::new(local), &of));
        }

        #[test]
        fn a_rule_holds_when_every_election_finds_everything(
            members in proptest::collection::btree_set(0_u64..6, 0..6),
            acks in 1_u32..7,
            published in 1_u64..20,
            of in proptest::collection::btree_map(0_u64..6, 0_u64..20, 0..6),
        ) {
            let rule = rule(&members.into_iter().collect::<Vec<_>>(), acks);
            let of = flushes(&of.into_iter().collect::<Vec<_>>());
            let published = Lsn::new(published);
            prop_assert_eq!(holds(&rule, published, &of), truth(&rule, published, &of));
        }
    }
}
