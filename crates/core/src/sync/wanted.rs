//! The wanted list: whom the setting and the mode ask for, of the standbys that are there.
//!
//! | setting | mode | present | gone, still listed | wanted |
//! |---|---|---|---|---|
//! | `ANY 1 (*)` | preferred | b, c | | 1 of {b, c} |
//! | `ANY 2 (*)` | preferred | b | c | 1 of {b} |
//! | `ANY 1 (*)` | preferred | | b | 0 of {}: the primary alone |
//! | `FIRST 1 (b, c)` | preferred | b, c | | 1 of {b}; c is potential |
//! | `ANY 2 (*)` | required | b | c | 2 of {b, c} |
//! | `ANY 2 (*)` | required | b | | 2 of {b}: commits wait |
//! | any | async | b, c | | 0 of {} |
//!
//! Mode `required` keeps a listed standby whose connection is gone for as long as fewer than asked for are there.
//! To drop it would let no commit through, and would take its right to be promoted although it has everything that
//! was acknowledged.

use std::collections::BTreeSet;

use understudy_types::{NodeId, SyncMode};

use super::names::{StandbyNames, SyncMethod};
use crate::state::SyncList;

/// A standby that may be on the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Nominee {
    pub node: NodeId,
    /// By the setting; 1 is best.
    pub priority: u32,
    /// Whether it is on the present list.
    pub listed: bool,
    /// Whether it can acknowledge: it streams, or it is listed and connected. False: it is listed and gone.
    pub present: bool,
}

impl Nominee {
    /// Equal priorities (a `*`) go to those that are listed already, so that the list does not change needlessly.
    fn rank(&self) -> (bool, u32, bool, NodeId) {
        (!self.present, self.priority, !self.listed, self.node)
    }
}

/// The list to strive for.
pub(super) fn wanted_list(mode: SyncMode, names: &StandbyNames, mut nominees: Vec<Nominee>) -> SyncList {
    if mode == SyncMode::Async || names.is_nobody() {
        return SyncList { mode, members: BTreeSet::new(), acks: 0 };
    }
    nominees.sort_unstable_by_key(Nominee::rank);
    let asked = usize::try_from(names.wanted_acks()).expect("32 bits fit into a word");
    let present = nominees.iter().filter(|nominee| nominee.present).count();
    let keeps_gone = mode == SyncMode::Required && present < asked;
    let of_those = if keeps_gone { nominees.len() } else { present };
    let chosen = match names.method() {
        SyncMethod::First => of_those.min(asked),
        SyncMethod::Any => of_those,
    };
    let members: BTreeSet<NodeId> = nominees.iter().take(chosen).map(|nominee| nominee.node).collect();
    let acks = match mode {
        SyncMode::Required => names.wanted_acks(),
        SyncMode::Preferred | SyncMode::Async => u32::try_from(asked.min(members.len())).expect("at most 32 bits"),
    };
    SyncList { mode, members, acks }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: u64 = 2;
    const C: u64 = 3;
    const D: u64 = 4;

    fn streams(node: u64, priority: u32) -> Nominee {
        Nominee { node: NodeId::new(node), priority, listed: false, present: true }
    }

    fn listed(node: u64, priority: u32) -> Nominee {
        Nominee { listed: true, ..streams(node, priority) }
    }

    fn gone(node: u64, priority: u32) -> Nominee {
        Nominee { present: false, ..listed(node, priority) }
    }

    fn wanted(mode: SyncMode, names: &str, nominees: &[Nominee]) -> (u32, Vec<u64>) {
        let names = StandbyNames::parse(names).expect("a setting");
        let list = wanted_list(mode, &names, nominees.to_vec());
        assert_eq!(list.mode, mode, "the mode is stored with the list");
        (list.acks, list.members.iter().map(|node| node.get()).collect())
    }

    #[test]
    fn preferred_asks_for_no_more_than_are_there() {
        let mode = SyncMode::Preferred;
        assert_eq!(wanted(mode, "ANY 1 (*)", &[streams(B, 1), streams(C, 1)]), (1, vec![B, C]));
        assert_eq!(wanted(mode, "ANY 2 (*)", &[streams(B, 1), gone(C, 1)]), (1, vec![B]));
        assert_eq!(wanted(mode, "ANY 3 (*)", &[streams(B, 1), listed(C, 1)]), (2, vec![B, C]));
        assert_eq!(wanted(mode, "ANY 1 (*)", &[gone(B, 1)]), (0, vec![]));
        assert_eq!(wanted(mode, "FIRST 2 (*)", &[gone(B, 1), streams(C, 1)]), (1, vec![C]));
    }

    #[test]
    fn first_takes_the_best_by_their_place() {
        let mode = SyncMode::Preferred;
        assert_eq!(wanted(mode, "FIRST 1 (b, c)", &[streams(C, 2), streams(B, 1)]), (1, vec![B]));
        assert_eq!(wanted(mode, "FIRST 2 (d, c, b)", &[streams(B, 3), streams(C, 2), streams(D, 1)]), (2, vec![C, D]));
        assert_eq!(wanted(mode, "FIRST 1 (b, c)", &[gone(B, 1), streams(C, 2)]), (1, vec![C]));
    }

    #[test]
    fn of_equals_the_listed_one_stays() {
        assert_eq!(wanted(SyncMode::Preferred, "FIRST 1 (*)", &[streams(B, 1), listed(C, 1)]), (1, vec![C]));
    }

    #[test]
    fn required_never_asks_for_less() {
        let mode = SyncMode::Required;
        assert_eq!(wanted(mode, "ANY 2 (*)", &[streams(B, 1)]), (2, vec![B]));
        assert_eq!(wanted(mode, "ANY 2 (*)", &[streams(B, 1), gone(C, 1)]), (2, vec![B, C]));
        assert_eq!(wanted(mode, "ANY 1 (*)", &[streams(B, 1), gone(C, 1)]), (1, vec![B]));
        assert_eq!(wanted(mode, "FIRST 2 (*)", &[streams(B, 1), gone(C, 1), gone(D, 2)]), (2, vec![B, C]));
        assert_eq!(wanted(mode, "ANY 1 (*)", &[]), (1, vec![]));
    }

    #[test]
    fn async_and_the_empty_setting_wait_for_nobody() {
        let all = [streams(B, 1), listed(C, 1), gone(D, 1)];
        assert_eq!(wanted(SyncMode::Async, "ANY 1 (*)", &all), (0, vec![]));
        assert_eq!(wanted(SyncMode::Preferred, "", &all), (0, vec![]));
        assert_eq!(wanted(SyncMode::Required, "", &all), (0, vec![]));
    }
}
