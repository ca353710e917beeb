use proptest::prelude::*;

use super::*;

fn history(switches: &[(u32, u64)]) -> TimelineHistory {
    let mut history = TimelineHistory::new();
    for &(timeline, lsn) in switches {
        let parent = history.latest();
        let switch = TimelineSwitch { timeline: TimelineId::new(timeline), parent, switch_lsn: Lsn::new(lsn) };
        history.push(switch).expect("a continuation");
    }
    history
}

fn end(timeline: u32, lsn: u64) -> Position {
    Position::new(TimelineId::new(timeline), Lsn::new(lsn))
}

#[test]
fn a_larger_lsn_on_a_branch_that_was_left_counts_nothing() {
    let chain = history(&[(1, 100), (2, 500)]);
    assert_eq!(chain.position(end(1, 900)), Lsn::new(500));
    assert_eq!(chain.position(end(1, 400)), Lsn::new(400));
    assert_eq!(chain.position(end(2, 900)), Lsn::new(900));
}

#[test]
fn a_timeline_that_wrote_nothing_leaves_no_span() {
    let chain = history(&[(1, 100), (2, 500), (3, 500)]);
    let timelines: Vec<u32> = chain.spans().iter().map(|span| span.timeline.get()).collect();
    assert_eq!(timelines, [1, 3]);
    assert_eq!(chain.next_after(TimelineId::new(1)).map(|s| s.timeline.get()), Some(3));
}

#[test]
fn a_switch_before_its_parents_begin_cuts_the_grandparent() {
    let chain = history(&[(1, 100), (2, 500), (3, 300)]);
    assert_eq!(chain.position(end(1, 450)), Lsn::new(300));
    assert_eq!(chain.position(end(2, 700)), Lsn::new(300));
    assert_eq!(chain.timeline_at(Lsn::new(299)), Some(TimelineId::new(1)));
    assert_eq!(chain.timeline_at(Lsn::new(300)), Some(TimelineId::new(3)));
}

#[test]
fn refuses_a_switch_that_does_not_continue() {
    let mut chain = history(&[(1, 100), (2, 500)]);
    let stale = TimelineSwitch { timeline: TimelineId::new(2), parent: TimelineId::new(1), switch_lsn: Lsn::new(600) };
    assert!(matches!(chain.push(stale), Err(TimelineHistoryError::NotLater { .. })));
    let foreign =
        TimelineSwitch { timeline: TimelineId::new(4), parent: TimelineId::new(1), switch_lsn: Lsn::new(600) };
    assert!(matches!(chain.push(foreign), Err(TimelineHistoryError::WrongParent { .. })));
    let nowhere = TimelineSwitch { timeline: TimelineId::new(4), parent: TimelineId::new(2), switch_lsn: Lsn::INVALID };
    assert!(matches!(chain.push(nowhere), Err(TimelineHistoryError::InvalidLsn { .. })));
}

/// The dumb oracle: each byte's writer, byte by byte.
fn writers(switches: &[(u32, u64)], until: u64) -> Vec<u32> {
    let mut bytes = vec![0; usize::try_from(until).expect("small")];
    for &(timeline, lsn) in switches {
        for (at, byte) in (0_u64..).zip(bytes.iter_mut()) {
            if at >= lsn {
                *byte = timeline;
            }
        }
    }
    bytes
}

proptest! {
    #[test]
    fn position_is_the_longest_common_prefix(
        cuts in proptest::collection::vec(1_u64..40, 1..7),
        writer in 0_usize..7,
        written in 0_u64..20,
    ) {
        let switches: Vec<(u32, u64)> = (1_u32..).zip(cuts.iter().copied()).collect();
        let chain = history(&switches);
        let until = 64;
        let of_chain = writers(&switches, until);
        // The WAL of a node that followed the chain up to some timeline, and wrote at least a byte on it.
        let (timeline, begin) = switches[writer.min(switches.len() - 1)];
        let own_end = begin + 1 + written;
        let own = &writers(&switches[..writer.min(switches.len() - 1) + 1], until)[..usize::try_from(own_end).expect("small")];
        let common = own.iter().zip(&of_chain).take_while(|(a, b)| a == b).count();
        let first = usize::try_from(switches.iter().map(|s| s.1).min().expect("one")).expect("small");
        // Bytes before every switch were written by nobody: they agree trivially.
        prop_assert!(common >= first.min(own.len()));
        prop_assert_eq!(chain.position(end(timeline, own_end)).get(), common as u64);
    }

    #[test]
    fn spans_name_the_writer_of_every_byte(cuts in proptest::collection::vec(1_u64..40, 1..7)) {
        let switches: Vec<(u32, u64)> = (1_u32..).zip(cuts.iter().copied()).collect();
        let chain = history(&switches);
        for (at, writer) in (0_u64..).zip(writers(&switches, 50)) {
            let named = chain.timeline_at(Lsn::new(at)).map_or(0, TimelineId::get);
            prop_assert_eq!(named, writer);
        }
    }
}
