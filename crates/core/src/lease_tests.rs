use proptest::prelude::*;

use super::*;

/// Wanted and promised: ready to grant.
fn granting(lease_ms: u64) -> Grants {
    let mut grants = Grants::default();
    grants.want(lease_ms);
    grants.promised(lease_ms);
    grants
}

#[test]
fn nothing_is_granted_that_is_not_on_disk_first() {
    let mut grants = Grants::default();
    grants.want(1_000);
    assert_eq!(grants.grant(1_000, 50), 0, "a restart would forget it");
    assert_eq!(grants.left_ms(50), 0);
    assert_eq!(grants.to_promise(50), Some(1_000));
    assert_eq!(grants.grant(1_000, 50), 0, "it is only being written");
    grants.promised(1_000);
    assert_eq!((grants.grant(1_000, 60), grants.left_ms(60)), (1_000, 1_001));
    assert_eq!(grants.to_promise(60), None);
}

#[test]
fn a_grant_is_never_longer_than_asked_for_or_wanted() {
    assert_eq!(granting(1_000).grant(300, 0), 300);
    assert_eq!(granting(300).grant(1_000, 0), 300);
    assert_eq!(granting(300).grant(0, 0), 0);
}

#[test]
fn a_later_grant_never_shortens_an_earlier_one() {
    let mut grants = granting(1_000);
    grants.grant(1_000, 0);
    grants.grant(10, 500);
    assert_eq!(grants.left_ms(500), 501);
}

#[test]
fn a_new_process_counts_as_having_granted_what_the_disk_allows() {
    assert_eq!(Grants::at_start(1_000, 70).left_ms(70), 1_001);
    assert_eq!(Grants::at_start(0, 70).left_ms(70), 0, "it never granted: nothing is waited for");
}

#[test]
fn a_shorter_promise_is_written_once_nothing_longer_runs() {
    let mut grants = granting(1_000);
    grants.grant(1_000, 0);
    grants.want(100);
    assert_eq!(grants.to_promise(1_000), None, "a restart now must still wait for the long one");
    assert_eq!(grants.grant(1_000, 900), 100);
    assert_eq!(grants.to_promise(1_001), Some(100), "the short ones go on all the time");
    grants.want(1_000);
    assert_eq!(grants.grant(1_000, 1_001), 100, "the shorter one may be on disk already");
    grants.want(100);
    grants.promised(100);
    grants.want(0);
    assert_eq!((grants.grant(100, 1_001), grants.to_promise(1_101)), (0, None));
    assert_eq!(grants.to_promise(1_102), Some(0));
}

#[test]
fn a_longer_promise_that_was_meant_for_a_moment_is_not_forgotten() {
    let mut grants = granting(1_000);
    grants.grant(1_000, 0);
    grants.want(100);
    grants.want(200);
    grants.want(50);
    assert_eq!((grants.to_promise(999), grants.to_promise(1_001)), (None, Some(50)));
}

#[test]
fn a_new_voter_counts_as_having_granted_a_full_lease() {
    let mut grants = granting(400);
    grants.became_voter(7);
    assert_eq!(grants.left_ms(7), 401);
    let mut without = Grants::default();
    without.became_voter(7);
    assert_eq!(without.left_ms(7), 0);
}

#[test]
fn the_primary_counts_from_the_sending_and_less_the_margin() {
    assert_eq!(counted_until_ms(100, 1_000, 10), Some(1_000));
    assert_eq!(counted_until_ms(100, 1_001, 10), Some(1_000), "the margin is rounded up");
    assert_eq!(counted_until_ms(100, 0, 10), None);
    assert_eq!(counted_until_ms(100, 1, 10), None);
    assert_eq!(counted_until_ms(100, 5, 200), None);
    assert_eq!(counted_until_ms(u64::MAX, 1_000, 10), Some(u64::MAX));
}

/// What happens to a voter; times are real ones, in microseconds.
#[derive(Debug, Clone)]
enum Event {
    Want(u64),
    BeginToPersist,
    Persisted,
    Restart { written: bool },
    Grant,
}

fn events() -> impl Strategy<Value = Vec<(u64, Event)>> {
    let event = prop_oneof![
        2 => prop_oneof![Just(0_u64), 1..2_000_u64].prop_map(Event::Want),
        3 => Just(Event::BeginToPersist),
        3 => Just(Event::Persisted),
        1 => any::<bool>().prop_map(|written| Event::Restart { written }),
        6 => Just(Event::Grant),
    ];
    proptest::collection::vec((0..400_000_u64, event), 1..60)
}

proptest! {
    /// INV-LINEAR: while the primary counts on a grant, the voter says that it is bound, whatever happened to it, though its
    /// clock runs up to a tenth faster than the primary's and began at another time.
    #[test]
    fn whoever_counts_on_a_grant_is_met_by_a_voter_that_is_bound(
        events in events(),
        faster_permille in 0..110_u64,
        delays in proptest::collection::vec(0..50_000_u64, 60),
    ) {
        let voter_ms = |real_us: u64| (77_000_000 + real_us * (1_000 + faster_permille) / 1_000) / 1_000;
        let primary_ms = |real_us: u64| (5_000_000 + real_us) / 1_000;
        let mut now_us = 0_u64;
        let mut disk_ms = 0;
        let (mut wanted_ms, mut writing) = (0, None);
        let mut grants = Grants::at_start(0, voter_ms(0));
        // When the primary stops counting on any grant, by its own clock.
        let mut counted = 0;
        for ((pause_us, event), delay_us) in events.into_iter().zip(delays) {
            now_us += pause_us;
            match event {
                Event::Want(ms) => {
                    wanted_ms = ms;
                    grants.want(ms);
                }
                Event::BeginToPersist if writing.is_none() => writing = grants.to_promise(voter_ms(now_us)),
                Event::BeginToPersist => {}
                Event::Persisted => {
                    if let Some(ms) = writing.take() {
                        disk_ms = ms;
                        grants.promised(ms);
                    }
                }
                Event::Restart { written } => {
                    // What was being written is there, or it is not.
                    disk_ms = writing.take().filter(|_| written).unwrap_or(disk_ms);
                    grants = Grants::at_start(disk_ms, voter_ms(now_us));
                    grants.want(wanted_ms);
                }
                Event::Grant => {
                    let sent_us = now_us;
                    now_us += delay_us;
                    let granted = grants.grant(1_500, voter_ms(now_us));
                    if let Some(until) = counted_until_ms(primary_ms(sent_us), granted, 10) {
                        counted = counted.max(until);
                    }
                }
            }
            if primary_ms(now_us) < counted {
                prop_assert!(grants.left_ms(voter_ms(now_us)) > 0, "at {now_us} us");
            }
        }
        // And at the very last moment at which it counts on one.
        let last_us = (counted.saturating_sub(5_000) * 1_000).saturating_sub(1);
        if last_us >= now_us {
            prop_assert!(grants.left_ms(voter_ms(last_us)) > 0, "at the end");
        }
    }
}
