use proptest::prelude::*;
use understudy_types::TimelineSwitch;

use super::*;

fn at(timeline: u32, lsn: u64) -> Position {
    Position::new(TimelineId::new(timeline), Lsn::new(lsn))
}

fn history(switches: &[(u32, u64)]) -> TimelineHistory {
    let mut history = TimelineHistory::new();
    for &(timeline, lsn) in switches {
        let parent = history.latest();
        let switch = TimelineSwitch { timeline: TimelineId::new(timeline), parent, switch_lsn: Lsn::new(lsn) };
        history.push(switch).expect("it continues");
    }
    history
}

#[test]
fn the_table_of_the_module_holds() {
    let history = history(&[(1, 16), (2, 80)]);
    let present = TimelineId::new(2);
    let judge = |asked| judge(&history, at(2, 90), asked);
    assert_eq!(judge(at(1, 70)), Verdict::Covered);
    assert_eq!(judge(at(1, 80)), Verdict::Covered, "the record that ends at the fork is on both");
    assert_eq!(judge(at(1, 85)), Verdict::Abandoned { end: Some(Lsn::new(80)), present });
    assert_eq!(judge(at(2, 90)), Verdict::Covered);
    assert_eq!(judge(at(2, 95)), Verdict::Wait(Waiting::Apply));
    assert_eq!(judge(at(3, 90)), Verdict::Wait(Waiting::Timeline { present }));
    assert_eq!(judge(at(0, 0)), Verdict::Covered);
    assert_eq!(judge(at(u32::MAX, u64::MAX)), Verdict::Wait(Waiting::Timeline { present }));
    let left = super::judge(&history, at(1, 85), at(1, 70));
    assert_eq!(left, Verdict::NotConsistent { agrees_to: Lsn::new(80) });
    assert!(!is_consistent(&history, at(1, 85)) && is_consistent(&history, at(1, 80)));
}

#[test]
fn a_timeline_that_was_cut_twice_ends_at_the_smaller_fork() {
    let history = history(&[(1, 16), (2, 80), (3, 50)]);
    assert_eq!(
        judge(&history, at(3, 60), at(1, 70)),
        Verdict::Abandoned { end: Some(Lsn::new(50)), present: TimelineId::new(3) }
    );
}

#[test]
fn a_read_that_waits_over_a_failover_is_judged_anew() {
    let before = history(&[(1, 16)]);
    assert_eq!(judge(&before, at(1, 70), at(1, 85)), Verdict::Wait(Waiting::Apply));
    let kept = history(&[(1, 16), (2, 90)]);
    assert_eq!(judge(&kept, at(1, 85), at(1, 85)), Verdict::Covered);
    let lost = history(&[(1, 16), (2, 80)]);
    assert!(matches!(judge(&lost, at(1, 70), at(1, 85)), Verdict::Abandoned { .. }));
}

#[test]
fn a_timeline_that_was_never_opened_is_abandoned() {
    let history = history(&[(1, 16), (3, 80)]);
    assert_eq!(judge(&history, at(3, 90), at(2, 20)), Verdict::Abandoned { end: None, present: TimelineId::new(3) });
}

#[test]
fn an_empty_node_is_consistent_and_waits() {
    let none = TimelineHistory::new();
    assert!(is_consistent(&none, at(0, 16)));
    assert_eq!(judge(&none, at(0, 16), at(1, 20)), Verdict::Wait(Waiting::Timeline { present: TimelineId::NONE }));
}

/// The dumb way: write every record of the history down, and look whether the asked one is still there and shown.
fn dumb(switches: &[(u32, u64)], visible: Position, asked: Position) -> Option<bool> {
    let mut chain: Vec<(u32, u64)> = Vec::new();
    for (index, &(timeline, begin)) in switches.iter().enumerate() {
        chain.retain(|(_, end)| *end <= begin);
        let grown_to = switches.get(index + 1).map_or(200, |_| 151);
        chain.extend((begin + 1..=grown_to).map(|end| (timeline, end)));
    }
    let on_chain = |position: Position| chain.contains(&(position.timeline.get(), position.lsn.get()));
    on_chain(visible).then(|| on_chain(asked) && asked.lsn <= visible.lsn)
}

proptest! {
    #[test]
    fn agrees_with_writing_every_record_down(
        forks in proptest::collection::vec(10..150_u64, 0..4),
        visible in (0..5_usize, 0..140_u64),
        asked in (0..5_usize, 0..140_u64),
    ) {
        let switches: Vec<(u32, u64)> = std::iter::once((1, 10)).chain((2..).zip(forks)).collect();
        let history = history(&switches);
        // A position of a timeline lies beyond its begin: a record ends there.
        let pick = |(index, offset): (usize, u64)| {
            let (timeline, begin) = switches[index % switches.len()];
            at(timeline, begin + 1 + offset % (151 - begin))
        };
        let (visible, asked) = (pick(visible), pick(asked));
        let verdict = judge(&history, visible, asked);
        match dumb(&switches, visible, asked) {
            None => prop_assert!(matches!(verdict, Verdict::NotConsistent { .. }), "{:?}", verdict),
            Some(shown) => {
                prop_assert_eq!(verdict == Verdict::Covered, shown, "{:?}", verdict);
                prop_assert!(!matches!(verdict, Verdict::NotConsistent { .. }), "{:?}", verdict);
            }
        }
    }
}
