//! Unless a test says otherwise: three nodes; n1 is the open primary of timeline 1; n3 leads Raft since long; everybody
//! was heard 10 ms ago and is well. Now is 100,000 ms.

use understudy_types::{Generation, Incarnation, Lsn, TimelineId};

use super::*;
use crate::election::fixture::{BEGIN, Scenario, entry, id, ids, new_cluster, report};
use crate::observation::{NodeReport, NodeRole, Seal};

const NOW_MS: u64 = 100_000;

#[derive(Clone)]
struct World {
    state: ClusterState,
    seen: Observations,
}

fn world() -> World {
    let mut state = new_cluster(3);
    state.history.push(entry(1, 1, BEGIN));
    state.sync.members = ids(&[2, 3]);
    state.sync.acks = 1;
    let mut world = World { state, seen: Observations { me: id(3), unix_time_ms: 42, ..Observations::default() } };
    for number in 1..=3 {
        let report = report(number, 1, 500);
        let seen = Observed { heard_at_ms: NOW_MS - 10, connected: true, refused: false, report };
        world.seen.nodes.insert(id(number), seen);
    }
    world.report(1, |n1| (n1.role, n1.timeline) = (NodeRole::Primary, TimelineId::FIRST))
}

impl World {
    fn seen(mut self, number: u64, change: impl FnOnce(&mut Observed)) -> Self {
        change(self.seen.nodes.get_mut(&id(number)).expect("known"));
        self
    }

    fn report(self, number: u64, change: impl FnOnce(&mut NodeReport)) -> Self {
        self.seen(number, |seen| change(&mut seen.report))
    }

    /// n1 vanished: its connections are gone and its last beat is old.
    fn without(self, number: u64) -> Self {
        self.seen(number, |seen| (seen.connected, seen.refused, seen.heard_at_ms) = (false, true, NOW_MS - 5000))
    }

    fn suspicion(&self) -> Option<String> {
        let plan = plan(&self.state, &self.seen, NOW_MS);
        assert_eq!((&plan.fetch_order, &plan.blocked, &plan.ranking), (&None, &None, &None));
        let Command::BeginElection { generation, timeline, reason } = plan.command? else { panic!("not an election") };
        assert_eq!((generation, timeline), (self.state.generation, self.state.timeline().next()));
        assert_eq!(plan.hand_leadership_to, None);
        Some(reason)
    }

    fn hands_to(&self) -> Option<NodeId> {
        let plan = plan(&self.state, &self.seen, NOW_MS);
        assert_eq!(plan.command, None);
        plan.hand_leadership_to
    }
}

#[test]
fn all_is_well() {
    assert_eq!(plan(&world().state, &world().seen, NOW_MS), Plan::default());
    assert_eq!(plan(&ClusterState::default(), &world().seen, NOW_MS), Plan::default());
}

// Suspect.

#[test]
fn a_new_cluster_elects_as_soon_as_a_majority_of_voters_is_heard() {
    let mut new = world();
    new.state = new_cluster(3);
    assert_eq!(new.suspicion().as_deref(), Some("new cluster"));
    assert_eq!(new.clone().without(1).suspicion().as_deref(), Some("new cluster"));
    assert_eq!(new.clone().without(1).without(2).suspicion(), None);
    new.seen.nodes.remove(&id(1));
    new.seen.nodes.remove(&id(2));
    assert_eq!(new.suspicion(), None);
}

#[test]
fn the_primary_is_gone_when_a_majority_of_voters_has_not_heard_it() {
    let unheard = |number, ms| move |world: World| world.report(number, |report| report.primary_heard_ms_ago = ms);
    let frozen = world().seen(1, |n1| n1.heard_at_ms = NOW_MS - 1100);
    let both = unheard(3, 1000)(unheard(2, 1000)(frozen.clone()));
    let text = "primary n1 is gone: 2 of 3 voters have not heard it for 1000 ms";
    assert_eq!(both.suspicion().as_deref(), Some(text));
    assert_eq!(unheard(2, 1000)(frozen.clone()).suspicion(), None, "one is not a majority");
    assert_eq!(unheard(3, 999)(unheard(2, 1000)(frozen)).suspicion(), None, "not long enough");
    // It counts for the voters that n2 heard it 50 ms before its last beat, whatever the leader hears.
    assert_eq!(unheard(3, 5000)(unheard(2, 50)(world().without(1))).suspicion(), None);
}

#[test]
fn time_since_a_voters_beat_counts_but_not_more_than_a_beats_worth() {
    let world = world().without(1).report(3, |n3| n3.primary_heard_ms_ago = 1000);
    let n2 = |heard_ms, age_ms| {
        let world = world.clone().report(2, |n2| n2.primary_heard_ms_ago = heard_ms);
        world.seen(2, |n2| n2.heard_at_ms = NOW_MS - age_ms).suspicion().is_some()
    };
    assert!(n2(900, 100), "1000 ms by now");
    assert!(n2(800, 900), "200 ms of its silence count");
    assert!(!n2(700, 900), "a leader that was paused does not take its own absence for the primary's");
}

#[test]
fn a_voter_that_was_not_heard_for_primary_timeout_says_nothing() {
    let unheard = |age_ms| {
        let world = world().without(1).report(3, |n3| n3.primary_heard_ms_ago = 3000);
        let world = world.report(2, |n2| n2.primary_heard_ms_ago = 3000);
        world.seen(2, |n2| n2.heard_at_ms = NOW_MS - age_ms).suspicion()
    };
    assert!(unheard(1000).is_some());
    assert_eq!(unheard(1001), None);
}

#[test]
fn a_primary_whose_connections_a_majority_lost_is_gone_at_once() {
    let refused = |number| move |world: World| world.report(number, |report| report.primary_refused = true);
    let text = "primary n1 is gone: 2 of 3 voters lost their connections to it and get no new ones";
    assert_eq!(refused(3)(refused(2)(world().without(1))).suspicion().as_deref(), Some(text));
    assert_eq!(refused(2)(world().without(1)).suspicion(), None);
    assert_eq!(world().without(1).suspicion(), None, "the leader's own trouble is not a majority's");
}

#[test]
fn a_primary_that_is_heard_and_lost_is_replaced_by_somebody_or_not_at_all() {
    // Nobody gets a connection to n1, whose own beats come through. With no other candidate an election would end with n1,
    // and the next would begin.
    let refused = |number| move |world: World| world.report(number, |report| report.primary_refused = true);
    let lost = || refused(3)(refused(2)(world()));
    assert!(lost().suspicion().is_some());
    let mut sources_only = lost();
    for node in [2, 3] {
        sources_only.state.members.get_mut(&id(node)).expect("a member").failover_priority = 0;
    }
    assert_eq!(sources_only.suspicion(), None);
    assert!(sources_only.without(1).suspicion().is_some(), "one that is silent is gone, whoever is there");
    let unwell = lost().report(2, |n2| n2.damaged = true).report(3, |n3| n3.stays_out = Some("a seed".to_owned()));
    assert_eq!(unwell.suspicion(), None);
    let all_lost = |report: &mut NodeReport| report.lost = [id(1), id(2), id(3)].into();
    assert_eq!(lost().report(2, all_lost).report(3, all_lost).suspicion(), None);
}

#[test]
fn complaints_about_the_old_primary_do_not_bring_down_the_new_one() {
    // n2 was just promoted; the others' last beats speak of n1.
    let mut after = world().without(1);
    after.state.history.push(entry(2, 2, 500));
    after.state.generation = Generation::new(3);
    let complain = |report: &mut NodeReport| {
        report.primary_refused = true;
        report.primary_heard_ms_ago = 4000;
        report.generation = Generation::new(2);
    };
    after.seen.phase_since_ms = NOW_MS - 5;
    let after = after.report(2, complain).report(3, complain);
    assert_eq!(after.suspicion(), None);
    // The same words about the new one count.
    let caught_up = |report: &mut NodeReport| report.generation = Generation::new(3);
    assert!(after.report(2, caught_up).report(3, caught_up).suspicion().is_some());
}

#[test]
fn a_primary_that_restarted_is_not_the_primary_any_more() {
    let mut restarted = world().report(1, |n1| n1.incarnation = Incarnation::new(11));
    restarted = restarted.report(1, |n1| (n1.role, n1.generation) = (NodeRole::Standby, Generation::new(0)));
    assert_eq!(restarted.suspicion().as_deref(), Some("primary n1 has restarted"));
    // A beat from before the promotion speaks of an earlier process.
    restarted.seen.phase_since_ms = NOW_MS - 9;
    assert_eq!(restarted.suspicion(), None);
}

#[test]
fn a_promoted_node_opens_or_says_that_it_failed_or_has_had_its_time() {
    let opening = |waited_ms: u64| {
        let mut world = world().report(1, |n1| (n1.role, n1.timeline) = (NodeRole::Standby, TimelineId::NONE));
        world.seen.phase_since_ms = NOW_MS - waited_ms;
        world
    };
    assert_eq!(opening(OPEN_MS_MAX - 1).suspicion(), None);
    let late = opening(OPEN_MS_MAX).suspicion();
    assert_eq!(late.as_deref(), Some("n1 has not opened timeline 1 within 10000 ms"));
    let failed = opening(20).report(1, |n1| n1.failed_to_open = Some(TimelineId::FIRST));
    assert_eq!(failed.suspicion().as_deref(), Some("n1 failed to open timeline 1"));
    let failed_before = opening(20).report(1, |n1| n1.failed_to_open = Some(TimelineId::new(7)));
    assert_eq!(failed_before.suspicion(), None);
}

#[test]
fn a_primary_that_says_that_it_is_not_confirmed_is_replaced() {
    let unconfirmed = world().report(1, |n1| n1.confirmed = false);
    let text = "primary n1 is no longer confirmed by a majority of voters";
    assert_eq!(unconfirmed.suspicion().as_deref(), Some(text));
    assert_eq!(unconfirmed.seen(1, |n1| n1.heard_at_ms = NOW_MS - 1001).suspicion(), None, "an old word");
}

#[test]
fn two_nodes_cannot_replace_each_other() {
    let mut two = world();
    two.state.members.remove(&id(3));
    two.seen.me = id(2);
    two.seen.nodes.remove(&id(3));
    let two = two.without(1).report(2, |n2| (n2.primary_refused, n2.primary_heard_ms_ago) = (true, 60_000));
    assert_eq!(two.suspicion(), None);
}

// An open election.

fn election(scenario: &Scenario, since_ms: u64) -> World {
    let mut world = World { state: scenario.state.clone(), seen: world().seen };
    world.seen.nodes.clear();
    world.seen.phase_since_ms = NOW_MS - since_ms;
    world.seen.me = scenario.leader;
    for (node, report) in scenario.reports() {
        let seen = Observed { heard_at_ms: NOW_MS - 10, connected: true, refused: false, report: report.clone() };
        world.seen.nodes.insert(node, seen);
    }
    world
}

#[test]
fn a_promotion_is_proposed_with_all_that_was_decided() {
    let world = election(&Scenario::new(3).sealed(2, 500).sealed(3, 450), 0);
    let plan = plan(&world.state, &world.seen, NOW_MS);
    let Some(Command::Promote { generation, timeline, node, incarnation, switch_lsn, safe_lsn, sync, time_ms }) =
        plan.command
    else {
        panic!("not a promotion: {plan:?}");
    };
    assert_eq!((generation, timeline), (world.state.generation, TimelineId::new(2)));
    assert_eq!((node, incarnation, time_ms), (id(2), Incarnation::new(20), 42));
    assert_eq!((switch_lsn, safe_lsn, sync.members), (Lsn::new(500), Lsn::new(500), ids(&[])));
    assert_eq!(plan.ranking.map(|ranking| ranking.rejected.len()), Some(2));
}

#[test]
fn a_winner_that_is_behind_gets_an_order() {
    let scenario = Scenario::new(3).member(2, |n2| n2.failover_priority = 200).sealed(2, 300).sealed(3, 500);
    let world = election(&scenario, 0);
    let plan = plan(&world.state, &world.seen, NOW_MS);
    let expected = FetchOrder { election: TimelineId::new(2), winner: id(2), source: id(3), until: Lsn::new(500) };
    assert_eq!((plan.fetch_order, plan.command, plan.blocked), (Some(expected), None, None));
}

#[test]
fn nodes_that_will_seal_soon_are_waited_for_a_moment() {
    let scenario = Scenario::new(3).sealed(2, 500).sealed(3, 500).sealed(1, 500).report(1, |n1| n1.seal = None);
    let plans = |world: &World| plan(&world.state, &world.seen, NOW_MS);
    assert_eq!(plans(&election(&scenario, GRACE_MS - 1)), Plan::default());
    assert!(plans(&election(&scenario, GRACE_MS)).command.is_some());
    // Nobody waits for a node that is gone, or that has been silent for half the timeout.
    for gone in [
        |n1: &mut Observed| n1.refused = true,
        |n1: &mut Observed| n1.connected = false,
        |n1: &mut Observed| n1.heard_at_ms = NOW_MS - 501,
    ] {
        assert!(plans(&election(&scenario, 0).seen(1, gone)).command.is_some());
    }
    // A node that is removed from the cluster is nobody's business.
    let mut stranger = election(&scenario, 0);
    stranger.seen.nodes.remove(&id(1));
    let unsealed = Observed { heard_at_ms: NOW_MS, connected: true, refused: false, report: report(9, 1, 500) };
    stranger.seen.nodes.insert(id(9), unsealed);
    assert!(plans(&stranger).command.is_some());
}

#[test]
fn an_incomplete_seal_is_waited_for_and_then_goes_without() {
    let incomplete = Some(Seal { timeline: TimelineId::new(2), complete: false });
    let scenario = Scenario::new(3).sealed(1, 500).sealed(2, 400).sealed(3, 500);
    let scenario = scenario.report(3, |n3| n3.seal = incomplete);
    let at = |since_ms| {
        let world = election(&scenario, since_ms);
        plan(&world.state, &world.seen, NOW_MS)
    };
    assert_eq!(at(0), Plan::default());
    assert!(at(GRACE_MS).command.is_some());
}

#[test]
fn a_blocked_election_says_so_after_the_grace() {
    let scenario = Scenario::new(3).sealed(3, 500).sealed(2, 500).report(2, |n2| n2.seal = None);
    let at = |since_ms| {
        let world = election(&scenario, since_ms);
        plan(&world.state, &world.seen, NOW_MS)
    };
    assert_eq!(at(10), Plan::default());
    let plan = at(GRACE_MS);
    assert_eq!(plan.command, None);
    assert_eq!(
        plan.blocked.expect("blocked").to_string(),
        "nobody can be promoted to timeline 2 yet: 1 of 3 voters sealed, 2 are needed: bring back 1 of n1, n2; 1 of 2 \
         sync standbys sealed undamaged, 2 are needed, because any of the others may alone have what was acknowledged: \
         bring back 1 of n2 (has not sealed yet), or the old primary n1"
    );
}

#[test]
fn only_what_was_heard_lately_decides() {
    let scenario = Scenario::new(3).sealed(2, 500).sealed(3, 450);
    let heard = |ms_ago| {
        let world = election(&scenario, 5000).seen(2, |n2| n2.heard_at_ms = NOW_MS - ms_ago);
        plan(&world.state, &world.seen, NOW_MS)
    };
    assert!(heard(1000).command.is_some());
    assert!(heard(1001).command.is_none() && heard(1001).blocked.is_some());
}

#[test]
fn in_mode_async_the_last_word_of_the_dead_primary_bounds_the_loss() {
    let mut scenario =
        Scenario::new(3).mode(understudy_types::SyncMode::Async).list(&[], 0).sealed(2, 500).sealed(3, 500);
    scenario.state.settings.max_lag_on_failover_bytes = 100;
    let dead = |end, timeline| {
        let mut world = election(&scenario, 5000);
        let report = report(1, timeline, end);
        let seen = Observed { heard_at_ms: NOW_MS - 60_000, connected: false, refused: true, report };
        world.seen.nodes.insert(id(1), seen);
        plan(&world.state, &world.seen, NOW_MS)
    };
    assert!(dead(600, 1).command.is_some());
    assert!(dead(601, 1).blocked.is_some());
    assert!(dead(601, 0).command.is_some(), "what it wrote before it was the primary is no measure");
}

// Raft leadership.

#[test]
fn leadership_is_kept_off_the_primary() {
    let mut leads = world();
    leads.seen.me = id(1);
    assert_eq!(leads.hands_to(), Some(id(3)), "all equal: the one that would be promoted last");
    let mut preferred = leads.clone();
    preferred.state.members.get_mut(&id(2)).unwrap().failover_priority = 1;
    assert_eq!(preferred.hands_to(), Some(id(2)), "the least likely to be the next primary");
    preferred.state.members.get_mut(&id(3)).unwrap().witness = true;
    assert_eq!(preferred.hands_to(), Some(id(3)), "a witness never is");
    // Whoever gets it must hear the primary and a majority, and be well connected.
    assert_eq!(leads.clone().report(3, |n3| n3.primary_heard_ms_ago = 600).hands_to(), Some(id(2)));
    assert_eq!(leads.clone().report(3, |n3| n3.hears = ids(&[])).hands_to(), Some(id(2)));
    assert_eq!(leads.clone().seen(3, |n3| n3.connected = false).hands_to(), Some(id(2)));
    assert_eq!(leads.clone().seen(3, |n3| n3.heard_at_ms = NOW_MS - 501).hands_to(), Some(id(2)));
    let mut learner = leads.clone();
    learner.state.members.get_mut(&id(3)).unwrap().voter = false;
    assert_eq!(learner.hands_to(), Some(id(2)));
    assert_eq!(leads.clone().without(2).without(3).hands_to(), None);
    // Not before it is open, and not before the leader has been one for a while.
    leads.seen.phase_since_ms = NOW_MS - 100;
    assert_eq!(leads.clone().report(1, |n1| n1.role = NodeRole::Standby).hands_to(), None);
    leads.seen.leader_since_ms = NOW_MS - 999;
    assert_eq!(leads.hands_to(), None);
}

#[test]
fn a_leader_that_alone_lost_the_primary_hands_over_to_somebody_who_hears_it() {
    let lost = world().report(3, |n3| n3.primary_heard_ms_ago = 501).seen(1, |n1| n1.heard_at_ms = NOW_MS - 501);
    assert_eq!(lost.hands_to(), Some(id(2)));
    assert_eq!(lost.clone().report(3, |n3| n3.primary_heard_ms_ago = 500).hands_to(), None);
    assert_eq!(
        lost.clone().report(2, |n2| n2.primary_heard_ms_ago = 300).hands_to(),
        None,
        "it may have frozen for all"
    );
    assert_eq!(
        lost.report(2, |n2| n2.generation = Generation::new(0)).hands_to(),
        None,
        "it speaks of another primary"
    );
}

#[test]
fn leadership_stays_where_it_is_while_an_election_is_open() {
    let mut world = election(&Scenario::new(3).sealed(1, 500).sealed(2, 500).sealed(3, 500).leader(1), 0);
    world.state.sync.acks = 0;
    assert_eq!(plan(&world.state, &world.seen, NOW_MS).hand_leadership_to, None);
}
