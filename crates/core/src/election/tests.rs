//! Golden scenarios: each wording of the design's "Failover", 4 to 6, with an execution that needs it.
//!
//! Unless a test says otherwise: three nodes, n1 was the primary of timeline 1, {n2, n3} is the sync list with one
//! acknowledgement, n3 leads Raft, timeline 2 is being decided.

use understudy_types::{Lsn, SyncMode, TimelineId};

use super::fixture::{Scenario, entry, id, new_cluster};
use super::{Criterion, NotWinner, Unmet, decide, may_promote, sync_list};
use crate::observation::Seal;

fn three() -> Scenario {
    Scenario::new(3)
}

// (a) A majority of voters sealed.

#[test]
fn a_minority_of_voters_never_promotes_whatever_it_has() {
    let alone = three().list(&[], 0).sealed(1, 500);
    assert_eq!(
        alone.decide(),
        "nobody can be promoted to timeline 2 yet: 1 of 3 voters sealed, 2 are needed: bring back 1 of n2, n3"
    );
    let blocked = may_promote(&alone.state, &alone.reports(), None).unwrap_err();
    assert!(!blocked.safe_override, "fencing cannot be overridden");
    assert_eq!(blocked.missing_nodes, [id(2), id(3)].into());
}

#[test]
fn a_seal_for_another_timeline_or_an_incomplete_one_counts_for_nothing() {
    let seals = [None, Some((1, true)), Some((3, true)), Some((2, false))];
    for seal in seals.map(|seal| seal.map(|(t, complete)| Seal { timeline: TimelineId::new(t), complete })) {
        let scenario = three().sealed(2, 500).sealed(3, 500).report(3, |report| report.seal = seal);
        assert!(scenario.decide().contains("1 of 3 voters sealed, 2 are needed"), "{seal:?}: {}", scenario.decide());
    }
}

#[test]
fn a_node_that_follows_or_opened_the_timeline_says_that_it_was_decided() {
    let scenario = three().sealed(2, 500).sealed(3, 500);
    let follows = scenario.clone().report(3, |report| report.timeline = TimelineId::new(2));
    assert!(follows.decide().contains("1 of 3 voters sealed, 2 are needed"), "{}", follows.decide());
    let has_records = scenario.sealed_on(3, 2, 900);
    assert!(has_records.decide().contains("1 of 3 voters sealed, 2 are needed"), "{}", has_records.decide());
}

#[test]
fn a_witness_and_a_node_that_stays_out_fence_but_have_no_data_that_counts() {
    let scenario = three().list(&[2], 1).member(3, |n3| n3.witness = true).sealed(2, 500).sealed(3, 900);
    assert_eq!(scenario.decide(), "n2 opens 2 at 500, safe 500, sync 0 of");
    assert_eq!(scenario.rejected(3), Some(NotWinner::Witness));
    let stays_out = three().list(&[2], 1).sealed(2, 500).sealed(3, 900);
    let stays_out = stays_out.report(3, |report| report.stays_out = Some("needs a seed".to_owned()));
    assert_eq!(stays_out.decide(), "n2 opens 2 at 500, safe 500, sync 0 of");
    assert_eq!(stays_out.rejected(3).unwrap().to_string(), "stays out: needs a seed");
}

#[test]
fn a_learner_has_data_but_no_voice() {
    let scenario = Scenario::new(4).list(&[4], 1).member(4, |n4| n4.voter = false).sealed(2, 400).sealed(4, 500);
    assert!(scenario.decide().contains("1 of 3 voters sealed, 2 are needed"), "{}", scenario.decide());
    // Its data counts on the list, as a source, and as a winner.
    assert_eq!(scenario.sealed(3, 300).leader(2).decide(), "n4 opens 2 at 500, safe 500, sync 0 of");
}

// (b) Their grants have run out.

#[test]
fn a_lease_that_may_still_run_holds_a_promotion_up() {
    // INV-LINEAR: n1 and n2 may be the majority that lets n1 answer reads.
    let bound = three().sealed(2, 500).sealed(3, 500).report(2, |report| report.lease_left_ms = 640);
    assert_eq!(
        bound.decide(),
        "nobody can be promoted to timeline 2 yet: leases that n2 granted to the old primary may still run: they run out \
         by themselves within primary_lease"
    );
    let blocked = may_promote(&bound.state, &bound.reports(), None).unwrap_err();
    assert!(!blocked.safe_override, "a clock cannot be overridden");
    let run_out = bound.report(2, |report| report.lease_left_ms = 0);
    assert_eq!(run_out.decide(), "n2 opens 2 at 500, safe 500, sync 1 of n3");
}

#[test]
fn a_majority_without_leases_is_enough_and_one_of_unsealed_voters_is_not() {
    let five = Scenario::new(5).sealed(2, 500).sealed(3, 500).sealed(4, 500).sealed(5, 500);
    let one = five.clone().report(2, |report| report.lease_left_ms = 640);
    assert_eq!(one.decide(), "n4 opens 2 at 500, safe 500, sync 1 of n2 n3 n5");
    let two = one.report(3, |report| report.lease_left_ms = 1);
    assert!(two.decide().contains("leases that n2, n3 granted"), "{}", two.decide());
    let unsealed = five.report(3, |report| report.lease_left_ms = 1).report(4, |report| report.seal = None);
    assert!(unsealed.decide().contains("leases that n3 granted"), "{}", unsealed.decide());
}

#[test]
fn the_old_primarys_own_seal_ends_its_lease() {
    let bound = three().list(&[2], 1).sealed(1, 500).sealed(2, 500).report(2, |report| report.lease_left_ms = 640);
    assert_eq!(bound.decide(), "n1 opens 2 at 500, safe 500, sync 1 of n2");
    let incomplete = bound.report(1, |report| report.seal = None).sealed(3, 500);
    assert!(incomplete.decide().contains("leases that n2 granted"), "{}", incomplete.decide());
}

#[test]
fn a_node_that_most_cannot_connect_to_gives_way() {
    // It is heard, but nobody could stream from it: the next election would follow at once, and it would win again.
    let two = three().list(&[2, 3], 2).sealed(2, 900).sealed(3, 500).leader(1);
    assert!(two.decide().starts_with("n2 opens 2 at 900"), "{}", two.decide());
    let one_lost_it = two.clone().report(3, |report| report.lost = [id(2)].into());
    assert!(one_lost_it.decide().starts_with("n2 opens"), "one of three is no majority");
    let lost = one_lost_it.sealed(1, 400).report(1, |report| report.lost = [id(2)].into());
    assert_eq!(lost.decide(), "n3 fetches from n2 up to 900");
    assert_eq!(lost.rejected(2), Some(NotWinner::Outranked { by: Criterion::Unreachable }));
}

// (c) Of the sync list max(1, |members| - acks + 1), or the old primary.

#[test]
fn the_share_of_the_sync_list_grows_as_the_acknowledgements_shrink() {
    // Five nodes, the list is {n2, n3, n4, n5}: 4 - acks + 1 of them must count. The primary is gone.
    for (acks, needed) in [(1, 4), (2, 3), (3, 2), (4, 1)] {
        for counted in 1..=4_u64 {
            let mut scenario = Scenario::new(5).list(&[2, 3, 4, 5], acks);
            for node in 2..=5 {
                scenario = scenario.sealed(node, 500);
                // The others fence, so that (a) is met, but their data is not believed.
                scenario = scenario.report(node, |report| report.damaged = node - 1 > counted);
            }
            let result = may_promote(&scenario.state, &scenario.reports(), None);
            assert_eq!(result.is_ok(), counted >= needed, "{acks} acks, {counted} counted");
        }
    }
}

#[test]
fn one_missing_sync_standby_may_alone_have_what_was_acknowledged() {
    let scenario = Scenario::new(4).list(&[2, 3], 1).sealed(2, 500).sealed(4, 900).member(1, |n1| n1.voter = false);
    assert_eq!(
        scenario.decide(),
        "nobody can be promoted to timeline 2 yet: 1 of 2 sync standbys sealed undamaged, 2 are needed, because any of \
         the others may alone have what was acknowledged: bring back 1 of n3, or the old primary n1"
    );
    let blocked = decide(&scenario.state, &scenario.reports(), None, id(4)).unwrap_err();
    assert_eq!(blocked.missing_nodes, [id(1), id(3)].into());
    assert!(blocked.safe_override, "only data is missing");
    // Either of them ends it.
    assert_eq!(scenario.clone().sealed(3, 600).decide(), "n3 fetches from n4 up to 900");
    assert_eq!(scenario.sealed(1, 700).decide(), "n1 fetches from n4 up to 900");
}

#[test]
fn the_old_primary_flushed_all_that_it_acknowledged() {
    assert_eq!(three().sealed(1, 500).sealed(2, 300).decide(), "n1 opens 2 at 500, safe 500, sync 0 of");
}

#[test]
fn with_an_empty_list_or_no_acknowledgements_only_the_old_primary_will_do() {
    for (members, acks) in [(&[][..], 0), (&[][..], 1), (&[2, 3][..], 0)] {
        let scenario = three().mode(SyncMode::Required).list(members, acks).sealed(2, 500).sealed(3, 500);
        assert_eq!(
            scenario.decide(),
            "nobody can be promoted to timeline 2 yet: only the old primary has everything that was acknowledged: \
             bring back n1",
            "{members:?} {acks}"
        );
        assert!(scenario.sealed(1, 600).decide().starts_with("n1 opens 2 at 600, safe 600"), "{members:?} {acks}");
    }
}

#[test]
fn in_a_new_cluster_anybody_will_do() {
    let mut scenario = three();
    scenario.state = new_cluster(3);
    scenario.state.election = three().state.election;
    scenario.state.election.as_mut().unwrap().timeline = TimelineId::FIRST;
    let scenario = scenario.sealed_on(2, 0, 100).sealed_on(3, 0, 100);
    assert_eq!(scenario.decide(), "n2 opens 1 at 100, safe 100, sync 1 of n3");
}

#[test]
fn a_list_that_is_shorter_than_its_acknowledgements_needs_one() {
    let scenario = three().mode(SyncMode::Required).names("ANY 2 (*)").list(&[2], 2).sealed(2, 500).sealed(3, 300);
    assert_eq!(scenario.decide(), "n2 opens 2 at 500, safe 500, sync 2 of");
}

// Damaged.

#[test]
fn a_damaged_standby_fences_but_does_not_count() {
    let scenario = three().sealed(2, 500).sealed(3, 500).report(3, |report| report.damaged = true);
    assert_eq!(
        scenario.decide(),
        "nobody can be promoted to timeline 2 yet: 1 of 2 sync standbys sealed undamaged, 2 are needed, because any of \
         the others may alone have what was acknowledged: bring back 1 of n3 (its WAL is damaged), or the old primary n1"
    );
}

#[test]
fn a_damaged_old_primary_does_not_count_either() {
    let scenario = three().list(&[], 0).sealed(1, 300).sealed(2, 200).report(1, |report| report.damaged = true);
    assert!(scenario.decide().ends_with("bring back n1 (its WAL is damaged)"), "{}", scenario.decide());
}

#[test]
fn a_damaged_node_is_neither_source_nor_winner_nor_on_the_new_list() {
    let scenario = Scenario::new(4).list(&[2, 3], 2).sealed(2, 500).sealed(3, 500).sealed(4, 900);
    let scenario = scenario.member(4, |n4| n4.failover_priority = 500).report(4, |report| report.damaged = true);
    assert_eq!(scenario.decide(), "n2 opens 2 at 500, safe 500, sync 1 of n3");
    assert_eq!(scenario.rejected(4), Some(NotWinner::Damaged));
}

// Positions.

#[test]
fn a_larger_lsn_on_a_branch_that_was_left_counts_nothing() {
    // Timeline 2 left timeline 1 at 400. n3 has 900 bytes of timeline 1: it is at 400.
    let mut scenario = three();
    scenario.state.history.push(entry(2, 1, 400));
    scenario.state.election.as_mut().unwrap().timeline = TimelineId::new(3);
    let scenario = scenario.sealed_on(2, 2, 450).sealed_on(3, 1, 900);
    assert_eq!(scenario.decide(), "n2 opens 3 at 450, safe 450, sync 0 of");
}

#[test]
fn only_flushed_wal_counts() {
    let scenario = three().list(&[2, 3], 2).sealed(2, 500).report(2, |report| report.flush_lsn = Lsn::new(350));
    assert_eq!(scenario.sealed(3, 400).leader(1).decide(), "n3 opens 2 at 400, safe 350, sync 1 of n2");
}

// F.

#[test]
fn f_is_the_position_of_the_acks_th_best_of_those_counted() {
    let all = |acks| Scenario::new(4).list(&[2, 3, 4], acks).sealed(2, 500).sealed(3, 450).sealed(4, 400).leader(4);
    assert_eq!(all(1).decide(), "n2 opens 2 at 500, safe 500, sync 0 of");
    assert_eq!(all(2).decide(), "n2 opens 2 at 500, safe 450, sync 1 of n3");
    assert_eq!(all(3).decide(), "n2 opens 2 at 500, safe 400, sync 1 of n3 n4");
}

#[test]
fn f_rises_with_every_list_member_that_is_not_counted() {
    // Two acknowledged. n4 may be one of them, so that one of n2 and n3 alone is the other.
    let scenario = Scenario::new(4).list(&[2, 3, 4], 2).sealed(2, 500).sealed(3, 450).sealed(1, 1).leader(4);
    let scenario = scenario.report(1, |n1| n1.damaged = true);
    assert_eq!(scenario.decide(), "n2 opens 2 at 500, safe 500, sync 0 of");
}

#[test]
fn f_is_the_lowest_where_there_are_fewer_than_acks() {
    let scenario = three().mode(SyncMode::Required).names("ANY 2 (*)").list(&[2], 2).sealed(2, 400).sealed(3, 500);
    assert_eq!(scenario.decide(), "n2 fetches from n3 up to 500");
    let scenario = scenario.leader(2);
    assert_eq!(scenario.decide(), "n3 opens 2 at 500, safe 400, sync 2 of n2");
}

#[test]
fn f_is_at_most_the_old_primarys_position_if_it_counts() {
    // n2 received what n1 had not flushed yet, so n1 never acknowledged it.
    let scenario = three().sealed(1, 450).sealed(2, 500).sealed(3, 400);
    assert_eq!(scenario.decide(), "n2 opens 2 at 500, safe 450, sync 1 of n1");
    assert_eq!(scenario.leader(2).decide(), "n1 fetches from n2 up to 500");
}

#[test]
fn f_is_the_old_primarys_position_where_only_it_qualified() {
    // n3 is not counted: what n2 has says nothing about what n3 acknowledged.
    let scenario = three().sealed(1, 500).sealed(2, 300).leader(3);
    assert_eq!(scenario.decide(), "n1 opens 2 at 500, safe 500, sync 0 of");
    // Also when others have more than it: then only what lies below is known to be acknowledged at most.
    assert_eq!(three().sealed(1, 500).sealed(2, 700).leader(1).decide(), "n2 opens 2 at 700, safe 500, sync 1 of n1");
}

#[test]
fn f_is_s_in_mode_async() {
    let scenario = three().mode(SyncMode::Async).list(&[], 0).sealed(2, 400).sealed(3, 500).leader(2);
    assert_eq!(scenario.decide(), "n3 opens 2 at 500, safe 500, sync 0 of");
}

// Mode async.

#[test]
fn in_mode_async_a_standby_within_the_lag_will_do() {
    let scenario = |end: Option<u64>| {
        let mut scenario = three().mode(SyncMode::Async).list(&[], 0).sealed(2, 400).sealed(3, 500).leader(2);
        scenario.state.settings.max_lag_on_failover_bytes = 2 << 10;
        scenario.primary_end = end.map(Lsn::new);
        scenario
    };
    assert!(scenario(None).decide().starts_with("n3 opens 2 at 500"));
    assert!(scenario(Some(2548)).decide().starts_with("n3 opens 2 at 500"));
    assert_eq!(
        scenario(Some(2549)).decide(),
        "nobody can be promoted to timeline 2 yet: the best standby is 2049 bytes behind the old primary's last known \
         end of WAL, max_lag_on_failover is 2KiB: bring back the old primary n1, or a standby that has more"
    );
    // The old primary needs no such limit, and a standby may know of an end that the leader does not.
    assert!(scenario(Some(2549)).sealed(1, 2549).decide().starts_with("n1 opens 2 at 2549, safe 2549"));
    let told = scenario(None).report(2, |report| report.safe_lsn = Lsn::new(2700));
    assert!(told.decide().contains("2200 bytes behind"), "{}", told.decide());
}

#[test]
fn in_mode_async_somebody_must_have_data() {
    let scenario = three().mode(SyncMode::Async).list(&[], 0).sealed(2, 400).sealed(3, 400);
    let scenario = scenario.report(2, |report| report.damaged = true).member(3, |n3| n3.witness = true);
    assert_eq!(
        scenario.decide(),
        "nobody can be promoted to timeline 2 yet: no node with data sealed undamaged: bring back one of n1, n2 (its \
         WAL is damaged)"
    );
}

// S, the winner, the source.

#[test]
fn the_winner_fetches_what_it_lacks_before_it_is_promoted() {
    let scenario = three().member(2, |n2| n2.failover_priority = 200).sealed(2, 300).sealed(3, 500);
    assert_eq!(scenario.decide(), "n2 fetches from n3 up to 500");
    let fetched = scenario.sealed(2, 500);
    assert_eq!(fetched.decide(), "n2 opens 2 at 500, safe 500, sync 1 of n3");
}

#[test]
fn a_node_of_priority_zero_is_a_source_only() {
    let scenario = three().member(3, |n3| n3.failover_priority = 0).sealed(2, 300).sealed(3, 500);
    assert_eq!(scenario.decide(), "n2 fetches from n3 up to 500");
    assert_eq!(scenario.rejected(3), Some(NotWinner::PriorityZero));
    let fetched = scenario.sealed(2, 500);
    assert_eq!(fetched.decide(), "n2 opens 2 at 500, safe 500, sync 0 of");
}

#[test]
fn the_order_is_priority_then_not_the_leader_then_position_then_node_id() {
    let five = || Scenario::new(5).list(&[2, 3, 4, 5], 4).sealed(2, 500).sealed(3, 500).sealed(4, 600).leader(5);
    assert!(five().decide().starts_with("n4 opens 2 at 600"), "position: {}", five().decide());
    assert_eq!(five().rejected(2), Some(NotWinner::Outranked { by: Criterion::Position }));
    let leads = five().leader(4);
    assert_eq!(leads.decide(), "n2 fetches from n4 up to 600", "the Raft leader comes after");
    assert_eq!(leads.rejected(4), Some(NotWinner::Outranked { by: Criterion::RaftLeader }));
    assert_eq!(leads.rejected(3), Some(NotWinner::Outranked { by: Criterion::NodeId }));
    assert_eq!(leads.rejected(5), Some(NotWinner::NotHeard));
    let preferred = leads.member(4, |n4| n4.failover_priority = 101);
    assert!(preferred.decide().starts_with("n4 opens 2 at 600"), "priority: {}", preferred.decide());
    assert_eq!(preferred.rejected(2), Some(NotWinner::Outranked { by: Criterion::Priority }));
}

#[test]
fn a_node_that_failed_to_open_last_time_comes_last() {
    let scenario = three().member(2, |n2| n2.failover_priority = 900).sealed(2, 500).sealed(3, 400);
    assert!(scenario.decide().starts_with("n2 opens"));
    let failed = scenario.clone().report(2, |report| report.failed_to_open = Some(TimelineId::new(1)));
    assert_eq!(failed.decide(), "n3 fetches from n2 up to 500");
    assert_eq!(failed.rejected(2), Some(NotWinner::Outranked { by: Criterion::FailedToOpen }));
    // An earlier failure is forgotten: others failed since, or nobody else could.
    let mut earlier = scenario.report(2, |report| report.failed_to_open = Some(TimelineId::new(1)));
    earlier.state.history.push(entry(2, 3, 400));
    earlier.state.election.as_mut().unwrap().timeline = TimelineId::new(3);
    let earlier = earlier.sealed_on(3, 1, 400).sealed_on(2, 1, 500);
    assert!(earlier.clone().decide().starts_with("n2 opens 3 at 400"), "{}", earlier.decide());
}

#[test]
fn a_winner_that_could_not_fetch_gives_way_to_one_that_need_not() {
    let scenario = three().member(2, |n2| n2.failover_priority = 900).sealed(2, 300).sealed(3, 500);
    assert_eq!(scenario.decide(), "n2 fetches from n3 up to 500");
    let stuck = scenario.clone().report(2, |report| report.could_not_fetch = Some(TimelineId::new(2)));
    assert!(stuck.decide().starts_with("n3 opens"), "{}", stuck.decide());
    assert_eq!(stuck.rejected(2), Some(NotWinner::Outranked { by: Criterion::CouldNotFetch }));
    let of_another_election = scenario.clone().report(2, |report| report.could_not_fetch = Some(TimelineId::new(1)));
    assert_eq!(of_another_election.decide(), "n2 fetches from n3 up to 500");
    // Nobody else can be promoted: it tries again.
    let alone = stuck.member(3, |n3| n3.failover_priority = 0);
    assert_eq!(alone.decide(), "n2 fetches from n3 up to 500");
}

#[test]
fn a_candidate_must_be_heard_by_a_majority_of_voters() {
    let scenario = Scenario::new(3).sealed(2, 500).sealed(3, 400).leader(3);
    assert!(scenario.decide().starts_with("n2 opens"));
    let cut_off = scenario.report(3, |report| report.hears = [id(1)].into());
    assert_eq!(cut_off.rejected(2), None, "n3 would need n2's WAL but does not hear it, and nobody hears n2");
    assert_eq!(
        cut_off.decide(),
        "nobody can be promoted to timeline 2 yet: no node that could be promoted is there: n1 (not heard), n2 (heard by \
         1 voters, 2 are needed), n3 (at 0/00000190, and hears nobody who has the WAL up to 0/000001F4)"
    );
}

#[test]
fn a_blocked_candidate_list_is_no_reason_to_give_up_data() {
    let scenario = three().member(2, |n2| n2.failover_priority = 0).member(3, |n3| n3.failover_priority = 0);
    let scenario = scenario.sealed(2, 500).sealed(3, 400);
    let blocked = decide(&scenario.state, &scenario.reports(), None, id(3)).unwrap_err();
    assert!(matches!(&blocked.unmet[..], [Unmet::Candidate { rejected }] if rejected.len() == 3));
    assert_eq!((blocked.safe_override, blocked.missing_nodes), (false, [id(1)].into()));
}

#[test]
fn the_named_incarnation_is_the_one_that_reported() {
    let scenario = three().sealed(2, 500).sealed(3, 500);
    let scenario = scenario.report(2, |report| report.incarnation = understudy_types::Incarnation::new(77));
    let super::Decision::Promote(promotion) = decide(&scenario.state, &scenario.reports(), None, id(3)).unwrap() else {
        panic!("nothing to fetch");
    };
    assert_eq!((promotion.node, promotion.incarnation.get()), (id(2), 77));
}

// The new sync list.

#[test]
fn the_new_list_has_only_those_with_everything_up_to_f() {
    let five = Scenario::new(5).list(&[2, 3, 4, 5], 3).names("ANY 2 (*)");
    let five = five.sealed(2, 500).sealed(3, 450).sealed(4, 449).sealed(5, 448).leader(5);
    assert_eq!(five.decide(), "n2 opens 2 at 500, safe 449, sync 2 of n3 n4");
    let tagged = five.clone().member(3, |n3| n3.no_sync = true);
    assert_eq!(tagged.decide(), "n2 opens 2 at 500, safe 449, sync 1 of n4");
    let tagged = five.member(3, |n3| n3.failover_priority = 0);
    assert_eq!(tagged.decide(), "n2 opens 2 at 500, safe 449, sync 1 of n4");
}

#[test]
fn the_acknowledgements_of_the_new_list_follow_mode_and_setting() {
    let show = |mode, wanted, members: &[u64]| {
        let list = sync_list(mode, wanted, super::fixture::ids(members));
        (list.acks, list.members.len())
    };
    assert_eq!(show(SyncMode::Async, 2, &[2, 3]), (0, 0));
    assert_eq!(show(SyncMode::Preferred, 0, &[2, 3]), (0, 0));
    assert_eq!(show(SyncMode::Preferred, 2, &[2, 3, 4]), (2, 3));
    assert_eq!(show(SyncMode::Preferred, 2, &[2]), (1, 1));
    assert_eq!(show(SyncMode::Preferred, 1, &[]), (0, 0));
    assert_eq!(show(SyncMode::Required, 2, &[2]), (2, 1));
    assert_eq!(show(SyncMode::Required, 1, &[]), (1, 0));
}
