use proptest::prelude::*;
use understudy_types::TimelineSwitch;

use super::*;

fn at(timeline: u32, lsn: u64) -> Position {
    Position::new(TimelineId::new(timeline), Lsn::new(lsn))
}

fn claim(timeline: u32, lsn: u64, as_of_ms: u64) -> Claim {
    Claim { timeline: TimelineId::new(timeline), safe_lsn: Lsn::new(lsn), as_of_ms }
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

fn heard(claims: &[Claim]) -> Freshness {
    let mut freshness = Freshness::default();
    claims.iter().for_each(|claim| freshness.hear(*claim));
    freshness
}

#[test]
fn a_claim_counts_from_when_the_beat_was_sent_back_to_the_confirmed_round() {
    let claim = Claim::of_reply(TimelineId::FIRST, Lsn::new(90), 1000, 70);
    assert_eq!(claim.map(|claim| claim.as_of_ms), Some(930));
    assert_eq!(Claim::of_reply(TimelineId::FIRST, Lsn::new(90), 50, 70), None, "before the clock began");
    assert_eq!(Claim::of_reply(TimelineId::FIRST, Lsn::new(90), u64::MAX, u64::MAX).map(|c| c.as_of_ms), Some(0));
    assert_eq!(Claim::of_reply(TimelineId::NONE, Lsn::new(90), 1000, 0), None, "nobody's claim");
}

#[test]
fn data_is_as_fresh_as_the_newest_claim_that_is_shown() {
    let history = history(&[(1, 16)]);
    let freshness = heard(&[claim(1, 50, 100), claim(1, 60, 200), claim(1, 70, 300)]);
    assert_eq!(freshness.as_of_ms(&history, at(1, 49)), None);
    assert_eq!(freshness.as_of_ms(&history, at(1, 50)), Some(100));
    assert_eq!(freshness.as_of_ms(&history, at(1, 69)), Some(200));
    assert_eq!(freshness.staleness_ms(&history, at(1, 99), 450), Some(150));
    assert_eq!(freshness.staleness_ms(&history, at(1, 99), 250), Some(0), "never negative");
}

#[test]
fn an_idle_standby_goes_stale_when_it_hears_nobody() {
    let history = history(&[(1, 16)]);
    let freshness = heard(&[claim(1, 50, 100)]);
    assert_eq!(freshness.staleness_ms(&history, at(1, 50), 10_100), Some(10_000));
    assert_eq!(Freshness::default().staleness_ms(&history, at(1, 50), 10_100), None);
}

#[test]
fn claims_of_a_branch_that_was_left_or_is_not_known_do_not_count() {
    let freshness = heard(&[claim(1, 50, 100), claim(1, 85, 200), claim(2, 90, 300)]);
    assert_eq!(freshness.as_of_ms(&history(&[(1, 16)]), at(1, 95)), Some(200), "timeline 2 is not known here");
    let forked = history(&[(1, 16), (2, 80)]);
    assert_eq!(freshness.as_of_ms(&forked, at(2, 85)), Some(100), "85 on timeline 1 was lost");
    assert_eq!(freshness.as_of_ms(&forked, at(2, 90)), Some(300));
    assert_eq!(freshness.as_of_ms(&forked, at(1, 85)), None, "it shows what the cluster left behind");
}

#[test]
fn memory_is_bounded_and_forgetting_only_makes_it_older() {
    let history = history(&[(1, 1)]);
    let mut freshness = Freshness::default();
    for step in 1..=100_000_u64 {
        freshness.hear(claim(1, step, step * 10));
        assert!(freshness.claims.len() <= CLAIMS_MAX);
    }
    let as_of = freshness.as_of_ms(&history, at(1, 50_000));
    assert!(as_of.is_none_or(|as_of| as_of <= 500_000), "{as_of:?}");
    assert_eq!(freshness.as_of_ms(&history, at(1, 100_000)), Some(1_000_000), "the newest is never forgotten");
}

proptest! {
    /// A primary writes, a majority confirms its rounds, beats and claims travel for any time, the standby applies any
    /// prefix: whatever it says of its age, everything that was acknowledged before then is shown.
    #[test]
    fn nothing_acknowledged_before_is_missing(
        steps in proptest::collection::vec((0..3_u8, 1..50_u64, 0..200_u64, 0..200_u64), 1..80),
        shown_share in 0..=100_u64,
    ) {
        let history = history(&[(1, 1)]);
        let (mut now, mut safe, mut confirmed_at) = (1000_u64, 1_u64, None);
        let mut acknowledged: Vec<(u64, u64)> = Vec::new();
        let mut freshness = Freshness::default();
        for (what, wait, there, back) in steps {
            now += wait;
            match what {
                0 => {
                    safe += wait;
                    acknowledged.push((now, safe));
                }
                1 => confirmed_at = Some(now),
                _ => {
                    let Some(confirmed_at) = confirmed_at else { continue };
                    let sent = now;
                    now += there;
                    let said = Claim::of_reply(TimelineId::FIRST, Lsn::new(safe), sent, now - confirmed_at);
                    now += back;
                    said.into_iter().for_each(|claim| freshness.hear(claim));
                }
            }
        }
        let shown = 1 + (safe - 1) * shown_share / 100;
        if let Some(as_of) = freshness.as_of_ms(&history, at(1, shown)) {
            for (acknowledged_at, lsn) in acknowledged {
                prop_assert!(acknowledged_at > as_of || lsn <= shown, "{} at {}", lsn, acknowledged_at);
            }
        }
    }
}
