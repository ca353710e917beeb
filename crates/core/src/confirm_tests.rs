use proptest::prelude::*;

use super::*;

fn id(number: u64) -> NodeId {
    NodeId::new(number)
}

fn of(me: u64, voters: u64) -> Confirmation {
    Confirmation::new(id(me), TimelineId::FIRST, (1..=voters).map(id).collect())
}

#[test]
fn a_round_is_confirmed_by_a_majority_that_includes_the_primary() {
    let mut primary = of(1, 3);
    primary.start_round(4, 100);
    assert_eq!((primary.confirmed_round(), primary.confirmed_until_ms(1000)), (None, None));
    primary.start_round(5, 200);
    primary.on_reply(id(2), 5, true);
    assert_eq!((primary.confirmed_round(), primary.confirmed_until_ms(1000)), (Some(5), Some(1200)));
}

#[test]
fn an_answer_confirms_every_earlier_round_and_no_later_one() {
    let mut primary = of(1, 3);
    primary.start_round(1, 100);
    primary.start_round(2, 200);
    primary.on_reply(id(3), 1, true);
    assert_eq!(primary.confirmed_round(), Some(1), "a read that came after 100 still waits");
    primary.start_round(3, 300);
    primary.on_reply(id(3), 3, true);
    primary.on_reply(id(2), 2, true);
    assert_eq!(primary.confirmed_round(), Some(3), "an answer that arrives late takes nothing back");
}

#[test]
fn refusals_and_strangers_do_not_confirm() {
    let mut primary = of(1, 3);
    primary.on_reply(id(2), 1, true);
    primary.start_round(1, 100);
    primary.on_reply(id(2), 1, false);
    primary.on_reply(id(9), 1, true);
    primary.on_reply(id(1), 1, true);
    assert_eq!(primary.confirmed_round(), None);
}

#[test]
fn the_answer_to_a_later_beat_counts_for_the_rounds_before_it_and_no_later_one() {
    let mut primary = of(1, 3);
    primary.start_round(1, 100);
    // Beat 2 carried a report and started no round.
    primary.on_reply(id(2), 2, true);
    assert_eq!(primary.confirmed_round(), Some(1));
    primary.start_round(3, 300);
    assert_eq!(primary.confirmed_round(), Some(1), "it was said before round 3 was sent");
}

#[test]
fn a_primary_that_sealed_has_no_voice_of_its_own() {
    let mut primary = of(1, 3);
    primary.start_round(1, 100);
    primary.seal();
    primary.start_round(2, 200);
    primary.on_reply(id(2), 2, true);
    assert_eq!(primary.confirmed_round(), Some(1), "before it sealed it confirmed round 1");
    primary.on_reply(id(3), 2, true);
    assert_eq!(primary.confirmed_round(), Some(2));
}

#[test]
fn a_primary_that_is_no_voter_needs_a_majority_of_the_others() {
    let mut primary = of(9, 3);
    primary.start_round(1, 100);
    primary.on_reply(id(1), 1, true);
    assert_eq!(primary.confirmed_round(), None);
    primary.on_reply(id(2), 1, true);
    assert_eq!(primary.confirmed_round(), Some(1));
}

#[test]
fn a_single_voter_confirms_itself_at_once() {
    let mut primary = of(1, 1);
    primary.start_round(1, 100);
    assert_eq!((primary.confirmed_round(), primary.confirmed_at_ms()), (Some(1), Some(100)));
}

#[test]
fn a_voter_confirms_unless_it_sealed_a_newer_timeline() {
    let confirms = |sealed, timeline| confirms(TimelineId::new(sealed), TimelineId::new(timeline));
    assert!(confirms(1, 1) && confirms(0, 1) && confirms(1, 2));
    assert!(!confirms(2, 1) && !confirms(0, 0));
}

#[test]
fn it_counts_as_unconfirmed_only_after_somebody_could_have_answered() {
    let mut primary = of(1, 3);
    assert!(primary.is_confirmed(0, 1000), "it has not asked yet");
    primary.start_round(1, 100);
    assert!(primary.is_confirmed(1099, 1000) && !primary.is_confirmed(1100, 1000));
    primary.start_round(2, 900);
    primary.on_reply(id(2), 2, true);
    assert!(primary.is_confirmed(1899, 1000) && !primary.is_confirmed(1900, 1000));
}

#[test]
fn memory_is_bounded_and_a_forgotten_round_only_makes_it_careful() {
    let mut primary = of(1, 3);
    for round in 1..=100_000_u64 {
        primary.start_round(round, round * 10);
        assert!(primary.sent.len() <= ROUNDS_MAX);
    }
    primary.on_reply(id(2), 90_000, true);
    let at_ms = primary.confirmed_at_ms().expect("confirmed");
    assert!(at_ms <= 900_000, "never later than the round itself was sent: {at_ms}");
    assert!(at_ms > 0);
    primary.on_reply(id(2), 100_000, true);
    assert_eq!(primary.confirmed_at_ms(), Some(1_000_000), "the newest is never forgotten");
}

proptest! {
    /// The dumb way: keep every answer, and look for the newest round that enough voters answered with it or a later one.
    #[test]
    fn agrees_with_counting_all_answers(
        voters in 1..=5_u64,
        events in proptest::collection::vec((0..=5_u64, 1..30_u64, proptest::bool::weighted(0.8)), 0..60),
    ) {
        let mut primary = of(1, voters);
        let mut answers: Vec<(u64, u64)> = Vec::new();
        let mut sent: Vec<(u64, u64)> = Vec::new();
        for (step, (voter, round, confirmed)) in (1_u64..).zip(events) {
            if voter == 0 {
                let next = sent.len() as u64 + 1;
                primary.start_round(next, step * 10);
                sent.push((next, step * 10));
                answers.push((1, next));
            } else {
                primary.on_reply(id(voter), round, confirmed);
                if confirmed && voter != 1 && voter <= voters && !sent.is_empty() {
                    answers.push((voter, round.min(sent.len() as u64)));
                }
            }
            let confirming = |round: u64| (1..=voters).filter(|v| answers.iter().any(|(a, r)| a == v && *r >= round)).count();
            let dumb = sent.iter().rev().find(|(round, _)| confirming(*round) >= majority(voters as usize));
            prop_assert_eq!(primary.confirmed_round(), dumb.map(|(round, _)| *round));
            prop_assert_eq!(primary.confirmed_at_ms(), dumb.map(|(_, at_ms)| *at_ms));
        }
    }
}

#[test]
fn a_lease_is_a_majority_of_grants_that_run() {
    let mut primary = of(1, 5);
    assert_eq!(primary.leased_until_ms(), None);
    primary.on_grant(id(2), 900);
    assert_eq!(primary.leased_until_ms(), None, "two of five");
    primary.on_grant(id(3), 700);
    assert_eq!(primary.leased_until_ms(), Some(700), "the first of the three to run out");
    primary.on_grant(id(3), 600);
    assert_eq!(primary.leased_until_ms(), Some(700), "an answer that comes late takes nothing back");
    primary.on_grant(id(9), 5_000);
    primary.on_grant(id(1), 5_000);
    assert_eq!(primary.leased_until_ms(), Some(700), "strangers grant nothing, and nobody grants himself twice");
    primary.forget_grants();
    assert_eq!(primary.leased_until_ms(), None);
}

#[test]
fn what_a_former_voter_granted_counts_no_more() {
    // INV-LINEAR: an election asks the present voters alone.
    let mut primary = of(1, 3);
    primary.on_grant(id(3), 900);
    primary.set_voters([id(1), id(2)].into());
    assert_eq!(primary.leased_until_ms(), None);
    primary.on_grant(id(2), 800);
    primary.set_voters([id(1), id(2), id(4)].into());
    assert_eq!(primary.leased_until_ms(), Some(800));
}

#[test]
fn a_primary_that_sealed_or_does_not_vote_needs_a_majority_of_others() {
    let mut sealed = of(1, 3);
    sealed.on_grant(id(2), 900);
    sealed.seal();
    assert_eq!(sealed.leased_until_ms(), None);
    let mut learner = of(9, 3);
    learner.on_grant(id(2), 900);
    assert_eq!(learner.leased_until_ms(), None);
    learner.on_grant(id(3), 800);
    assert_eq!(learner.leased_until_ms(), Some(800));
    assert_eq!(of(1, 1).leased_until_ms(), Some(u64::MAX), "alone it needs nobody");
}
