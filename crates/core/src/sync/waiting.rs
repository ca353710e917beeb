//! For whom a commit waits, for people: which nodes, and whether they can acknowledge at all.
//!
//! | level | rule | acknowledged | commit ends at | waits for |
//! |---|---|---|---|---|
//! | on | 1 of {b, c} | b flushed 70, c flushed 50 | 80 | b or c |
//! | on | 2 of {b, c} | b flushed 90, c flushed 50 | 80 | c |
//! | remote_write | 1 of {b, c} | b written 90 | 80 | nobody: its answer is on the way |
//! | any | | the local flush is at 70 | 80 | this node, beside whom else |
//! | on | 2 of {b} | b flushed 90 | 80 | nobody can acknowledge: one member is not enough |
//!
//! It decides nothing: what is acknowledged is the business of [`super::SyncManager`], which asks the same rules.

use std::collections::{BTreeMap, BTreeSet};

use understudy_types::{DurabilityLevel, Lsn, NodeId};

use super::rule::SyncRule;
use super::standbys::Believed;

/// What keeps a commit from being acknowledged. Empty: nothing does any more, or only the apply on the primary itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WaitsFor {
    /// The primary has not flushed it itself.
    pub own_flush: bool,
    /// Those on the sync list that have not got there: any of them may do where fewer than all are asked for.
    pub nodes: BTreeSet<NodeId>,
    /// It cannot be acknowledged before another standby connects.
    pub too_few: Option<TooFewConnected>,
}

/// Fewer standbys of the sync list are connected than must acknowledge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooFewConnected {
    /// As many must acknowledge.
    pub acks: u32,
    /// As many are connected.
    pub connected: u32,
}

/// See the module. `connected` says of a node whether it streams from this primary now.
pub(super) fn waits_for(
    level: DurabilityLevel,
    lsn: Lsn,
    local_flush: Lsn,
    rules: &[SyncRule],
    believed: &Believed,
    connected: impl Fn(NodeId) -> bool,
) -> WaitsFor {
    let positions: Option<&BTreeMap<NodeId, Lsn>> = match level {
        DurabilityLevel::Off | DurabilityLevel::Local => None,
        DurabilityLevel::RemoteWrite => Some(&believed.writes),
        DurabilityLevel::On => Some(&believed.flushes),
        DurabilityLevel::RemoteApply => Some(&believed.applies),
    };
    let own_flush = level != DurabilityLevel::Off && local_flush < lsn;
    let mut waits = WaitsFor { own_flush, ..WaitsFor::default() };
    let Some(positions) = positions else { return waits };
    let count = |nodes: &BTreeSet<NodeId>| u32::try_from(nodes.len()).unwrap_or(u32::MAX);
    for rule in rules {
        let has = |node: &NodeId| positions.get(node).is_some_and(|position| *position >= lsn);
        let (there, behind): (BTreeSet<NodeId>, BTreeSet<NodeId>) = rule.members.iter().partition(|node| has(node));
        if count(&there) >= rule.acks {
            continue;
        }
        // Whoever has it counts, connected or not.
        let able: BTreeSet<NodeId> = behind.iter().copied().filter(|node| connected(*node)).collect();
        let able = count(&there) + count(&able);
        if able < rule.acks {
            waits.too_few = Some(TooFewConnected { acks: rule.acks, connected: able });
        }
        waits.nodes.extend(behind);
    }
    waits
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: NodeId = NodeId::new(2);
    const C: NodeId = NodeId::new(3);

    fn rule(acks: u32, members: &[NodeId]) -> SyncRule {
        SyncRule { acks, members: members.iter().copied().collect() }
    }

    fn at(b: u64, c: u64) -> BTreeMap<NodeId, Lsn> {
        [(B, Lsn::new(b)), (C, Lsn::new(c))].into()
    }

    fn believed() -> Believed {
        Believed { writes: at(90, 80), flushes: at(70, 50), applies: at(60, 50) }
    }

    fn asked(level: DurabilityLevel, lsn: u64, rules: &[SyncRule]) -> WaitsFor {
        waits_for(level, Lsn::new(lsn), Lsn::new(85), rules, &believed(), |node| node == B)
    }

    #[test]
    fn those_who_are_behind_at_the_level_are_named() {
        let any = [rule(1, &[B, C])];
        let nodes = |level, lsn| asked(level, lsn, &any).nodes.into_iter().collect::<Vec<_>>();
        assert_eq!(nodes(DurabilityLevel::RemoteWrite, 85), []);
        assert_eq!(nodes(DurabilityLevel::On, 70), []);
        assert_eq!(nodes(DurabilityLevel::On, 80), [B, C]);
        assert_eq!(nodes(DurabilityLevel::RemoteApply, 70), [B, C]);
        assert_eq!(nodes(DurabilityLevel::Local, 80), []);
        assert_eq!(asked(DurabilityLevel::On, 60, &[rule(2, &[B, C])]).nodes.into_iter().collect::<Vec<_>>(), [C]);
    }

    #[test]
    fn the_own_disk_counts_at_every_level_but_off() {
        for level in DurabilityLevel::ALL {
            assert_eq!(asked(level, 86, &[]).own_flush, level != DurabilityLevel::Off, "{level}");
            assert!(!asked(level, 85, &[]).own_flush);
        }
    }

    #[test]
    fn nobody_can_acknowledge_when_too_few_are_connected() {
        let too_few = |acks, members: &[NodeId]| asked(DurabilityLevel::On, 80, &[rule(acks, members)]).too_few;
        assert_eq!(too_few(1, &[B, C]), None);
        assert_eq!(too_few(2, &[B, C]), Some(TooFewConnected { acks: 2, connected: 1 }));
        assert_eq!(too_few(1, &[C]), Some(TooFewConnected { acks: 1, connected: 0 }));
        assert_eq!(too_few(1, &[]), Some(TooFewConnected { acks: 1, connected: 0 }));
        // c is not connected, but has it already; b is awaited.
        assert_eq!(asked(DurabilityLevel::RemoteWrite, 80, &[rule(2, &[B, C])]), WaitsFor::default());
    }

    #[test]
    fn while_the_list_changes_both_rules_name_theirs() {
        let both = [rule(1, &[B]), rule(1, &[C])];
        assert_eq!(asked(DurabilityLevel::On, 60, &both).nodes.into_iter().collect::<Vec<_>>(), [C]);
        assert_eq!(asked(DurabilityLevel::On, 80, &both).nodes.into_iter().collect::<Vec<_>>(), [B, C]);
    }
}
