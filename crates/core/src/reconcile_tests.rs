use understudy_types::Generation;

use super::*;
use crate::election::fixture::{BEGIN, Scenario, entry, id, ids, new_cluster};

const TWO: TimelineId = TimelineId::new(2);

/// n1 was the primary of timeline 1; n2 was promoted to timeline 2, which left it at 500, with F at 400.
fn promoted() -> ClusterState {
    let mut state = new_cluster(3);
    state.history.push(entry(1, 1, BEGIN));
    let mut second = entry(2, 2, 500);
    second.safe_lsn = Lsn::new(400);
    state.history.push(second);
    state.sync.members = ids(&[3]);
    state
}

/// A node that sealed timeline 2 and has what timeline 1 wrote up to `lsn`.
fn node(number: u64, lsn: u64) -> NodeState {
    NodeState {
        me: id(number),
        incarnation: Incarnation::new(number * 10),
        role: NodeRole::Standby,
        opened: None,
        sealed: TWO,
        seal_complete: true,
        wal_end: Position::new(TimelineId::FIRST, Lsn::new(lsn)),
        applied: Lsn::new(BEGIN),
        following: None,
        damaged: false,
        damage_epoch: 0,
        fetch_order: None,
        failed_to_open: None,
        wal_gone: false,
        stays_out: None,
    }
}

fn following(primary: u64, timeline: u32) -> Option<Following> {
    Some(Following { primary: id(primary), timeline: TimelineId::new(timeline) })
}

#[test]
fn the_seal_comes_before_everything_else() {
    let election = Scenario::new(3).state;
    let primary = NodeState { role: NodeRole::Primary, opened: Some(TimelineId::FIRST), ..node(1, 500) };
    let standby = NodeState { following: following(1, 1), ..node(2, 500) };
    let witness = NodeState { role: NodeRole::Witness, ..node(3, 0) };
    let stays_out = NodeState { stays_out: Some("needs help".to_owned()), ..node(3, 500) };
    for node in [primary, standby, witness, stays_out] {
        for sealed in [TimelineId::NONE, TimelineId::FIRST] {
            let node = NodeState { sealed, ..node.clone() };
            assert_eq!(reconcile(&node, &election), [NodeAction::Seal { timeline: TWO }]);
            // A node that slept through the election seals as well: an old primary that wakes up, a standby that
            // still follows it.
            assert_eq!(reconcile(&node, &promoted()), [NodeAction::Seal { timeline: TWO }]);
        }
        // After a restart the promise stands, but what it means has to be done again.
        let restarted = NodeState { seal_complete: false, following: None, role: node.role, ..node.clone() };
        assert_eq!(reconcile(&restarted, &election), [NodeAction::Seal { timeline: TWO }]);
    }
    assert_eq!(reconcile(&node(2, 500), &election), [], "sealed, and waiting for the promotion");
}

#[test]
fn a_state_that_is_older_than_the_nodes_own_promise_is_not_acted_upon() {
    let mut state = new_cluster(3);
    state.history.push(entry(1, 1, BEGIN));
    for number in [1, 2] {
        assert_eq!(reconcile(&node(number, 500), &state), [], "n{number}");
    }
    let standby = NodeState { following: following(1, 1), ..node(3, 500) };
    assert_eq!(reconcile(&standby, &state), [NodeAction::StopFollowing]);
}

#[test]
fn the_winner_fetches_what_it_lacks() {
    let election = Scenario::new(3).state;
    let order = |election, winner| {
        let (election, winner, source, until) = (TimelineId::new(election), id(winner), id(3), Lsn::new(500));
        Some(FetchOrder { election, winner, source, until })
    };
    let winner = NodeState { fetch_order: order(2, 2), ..node(2, 300) };
    let fetch = NodeAction::Fetch { election: TWO, source: id(3), until: Lsn::new(500) };
    assert_eq!(reconcile(&winner, &election), [fetch]);
    let done = NodeState { fetch_order: order(2, 2), ..node(2, 500) };
    assert_eq!(reconcile(&done, &election), []);
    let other = NodeState { fetch_order: order(2, 3), ..node(2, 300) };
    assert_eq!(reconcile(&other, &election), [], "an order for somebody else");
    let stale = NodeState { fetch_order: order(1, 2), ..node(2, 300) };
    assert_eq!(reconcile(&stale, &election), [], "an order of an earlier election");
    assert_eq!(reconcile(&winner, &promoted()).len(), 0, "no election any more, and it must not open at 300");
}

#[test]
fn the_winner_cuts_off_what_is_not_on_the_history_before_it_fetches() {
    // Timeline 2 left timeline 1 at 400; this node has 700 bytes of timeline 1.
    let mut state = Scenario::new(3).state;
    state.history.push(entry(2, 1, 400));
    state.election.as_mut().unwrap().timeline = TimelineId::new(3);
    let (election, winner, source, until) = (TimelineId::new(3), id(2), id(3), Lsn::new(600));
    let fetch_order = Some(FetchOrder { election, winner, source, until });
    let node = NodeState { fetch_order, sealed: election, ..node(2, 700) };
    assert_eq!(reconcile(&node, &state), [NodeAction::Rejoin { history: state.timeline_history() }]);
    let cut = NodeState { wal_end: Position::new(TimelineId::FIRST, Lsn::new(400)), ..node };
    assert_eq!(reconcile(&cut, &state), [NodeAction::Fetch { election, source, until }]);
}

#[test]
fn the_named_process_opens_once_a_wal_that_ends_at_s() {
    let state = promoted();
    let open = NodeAction::Open { history: state.timeline_history(), safe_lsn: Lsn::new(400) };
    assert_eq!(reconcile(&node(2, 500), &state), std::slice::from_ref(&open));
    // What lies beyond S was left; it is cut off first.
    assert_eq!(reconcile(&node(2, 700), &state), [NodeAction::Rejoin { history: state.timeline_history() }]);
    // A WAL that ends before S lost what the node reported.
    assert_eq!(reconcile(&node(2, 499), &state), []);
    let opened = NodeState {
        role: NodeRole::Primary,
        opened: Some(TWO),
        wal_end: Position::new(TWO, Lsn::new(600)),
        ..node(2, 500)
    };
    assert_eq!(reconcile(&opened, &state), []);
    let stepped_down = NodeState { role: NodeRole::Standby, ..opened };
    assert_eq!(reconcile(&stepped_down, &state), [], "nobody opens a timeline twice");
    let failed = NodeState { failed_to_open: Some(TWO), ..node(2, 500) };
    assert_eq!(reconcile(&failed, &state), []);
    let failed_before = NodeState { failed_to_open: Some(TimelineId::FIRST), ..node(2, 500) };
    assert_eq!(reconcile(&failed_before, &state), [open]);
}

#[test]
fn another_process_of_the_promoted_node_does_nothing() {
    let restarted = NodeState { incarnation: Incarnation::new(99), seal_complete: false, ..node(2, 500) };
    assert_eq!(reconcile(&restarted, &promoted()), []);
    let streams = NodeState { following: following(1, 1), ..restarted };
    assert_eq!(reconcile(&streams, &promoted()), [NodeAction::StopFollowing]);
}

#[test]
fn an_open_election_stops_the_named_process_too() {
    let mut state = promoted();
    state.election = Scenario::new(3).state.election;
    state.election.as_mut().unwrap().timeline = TimelineId::new(3);
    assert_eq!(reconcile(&node(2, 500), &state), [NodeAction::Seal { timeline: TimelineId::new(3) }]);
}

#[test]
fn everybody_else_cuts_its_wal_back_and_follows() {
    let state = promoted();
    let follow = NodeAction::Follow { following: following(2, 2).unwrap(), history: state.timeline_history() };
    assert_eq!(reconcile(&node(3, 450), &state), std::slice::from_ref(&follow));
    assert_eq!(reconcile(&node(1, 500), &state), [follow]);
    // The old primary wrote beyond S.
    assert_eq!(reconcile(&node(1, 700), &state), [NodeAction::Rejoin { history: state.timeline_history() }]);
    let follows = NodeState { following: following(2, 2), ..node(3, 450) };
    assert_eq!(reconcile(&follows, &state), []);
    for old in [following(1, 1), following(2, 1), following(1, 2)] {
        let follows = NodeState { following: old, ..node(3, 450) };
        assert_eq!(reconcile(&follows, &state), [NodeAction::StopFollowing]);
    }
}

#[test]
fn a_node_that_applied_what_was_left_is_seeded() {
    let applied_too_much = NodeState { applied: Lsn::new(501), ..node(3, 700) };
    let [NodeAction::Seed { why }] = &reconcile(&applied_too_much, &promoted())[..] else { panic!("not seeded") };
    assert_eq!(
        why,
        "its store has applied up to 0/000001F5, but of its WAL only what is before 0/000001F4 lies on the history of timeline 2"
    );
    let seeding = NodeState { stays_out: Some(why.clone()), ..applied_too_much.clone() };
    assert_eq!(reconcile(&seeding, &promoted()), [], "under way");
    let follows = NodeState { following: following(2, 2), ..seeding };
    assert_eq!(reconcile(&follows, &promoted()), [NodeAction::StopFollowing]);
    // What it reported when it sealed stays true until the election is over.
    let election = Scenario::new(3).state;
    let sealed = NodeState { wal_end: Position::new(TWO, Lsn::new(700)), ..applied_too_much };
    assert_eq!(reconcile(&sealed, &election), []);
    // For other reasons it stays out as well, even when it was promoted.
    let out = NodeState { stays_out: Some("its WAL is corrupt".to_owned()), ..node(2, 500) };
    assert_eq!(reconcile(&out, &promoted()), []);
}

#[test]
fn a_node_whose_wal_is_gone_upstream_is_seeded_once_its_walreceiver_has_ended() {
    let state = promoted();
    let refused = NodeState { wal_gone: true, following: following(2, 2), ..node(3, 450) };
    assert_eq!(reconcile(&refused, &state), [NodeAction::StopFollowing]);
    let stopped = NodeState { following: None, ..refused };
    let [NodeAction::Seed { why }] = &reconcile(&stopped, &state)[..] else { panic!("not seeded") };
    assert_eq!(
        why,
        "the WAL that follows its own, which ends at 0/000001C2, was removed upstream, or is damaged there"
    );
    // An election comes first, whatever is gone.
    let mut election = state.clone();
    election.election = Scenario::new(3).state.election;
    election.election.as_mut().unwrap().timeline = TimelineId::new(3);
    assert_eq!(reconcile(&stopped, &election), [NodeAction::Seal { timeline: TimelineId::new(3) }]);
    let seeding = NodeState { stays_out: Some(why.clone()), ..stopped };
    assert_eq!(reconcile(&seeding, &election), [NodeAction::Seal { timeline: TimelineId::new(3) }], "INV-FENCED");
    assert_eq!(reconcile(&seeding, &state), []);
}

#[test]
fn a_node_that_is_being_seeded_does_not_ask_to_count_again() {
    // INV-DURABLE: it would be put on the sync list for data that is about to be replaced.
    let seeding = NodeState {
        damaged: true,
        damage_epoch: 2,
        wal_gone: true,
        stays_out: Some("is being seeded".to_owned()),
        ..node(1, 450)
    };
    let mut state = promoted();
    assert_eq!(reconcile(&seeding, &state), []);
    state.damage_epochs.insert(id(1), 2);
    assert_eq!(reconcile(&seeding, &state), []);
    let done = NodeState { wal_gone: false, stays_out: None, following: following(2, 2), ..seeding };
    assert_eq!(reconcile(&done, &state), [NodeAction::ClearDamage { damage_epoch: 2 }]);
}

#[test]
fn a_witness_only_seals() {
    let witness =
        NodeState { role: NodeRole::Witness, wal_end: Position::default(), applied: Lsn::INVALID, ..node(3, 0) };
    assert_eq!(reconcile(&witness, &promoted()), []);
}

#[test]
fn a_damaged_node_asks_to_count_again_once_nobody_counts_on_it() {
    let damaged =
        |number| NodeState { damaged: true, damage_epoch: 2, following: following(2, 2), ..node(number, 450) };
    let mut state = promoted();
    let ask = NodeAction::ProposeClearDamage { generation: Generation::new(1), damage_epoch: 2 };
    assert_eq!(reconcile(&damaged(1), &state), std::slice::from_ref(&ask));
    assert_eq!(reconcile(&damaged(3), &state), [], "it is on the sync list");
    let primary = NodeState { incarnation: Incarnation::new(99), following: None, ..damaged(2) };
    assert_eq!(reconcile(&primary, &state), [], "it is the primary: its seal alone would allow the next promotion");
    state.damage_epochs.insert(id(1), 1);
    assert_eq!(reconcile(&damaged(1), &state), [ask], "an earlier damage was recorded, not this one");
    state.damage_epochs.insert(id(1), 2);
    assert_eq!(reconcile(&damaged(1), &state), [NodeAction::ClearDamage { damage_epoch: 2 }]);
    let election = Scenario::new(3).state;
    let mut off_list = election.clone();
    off_list.sync.members = ids(&[2]);
    let sealed = NodeState { following: None, ..damaged(3) };
    assert_eq!(reconcile(&sealed, &off_list), [], "not while an election is open");
}

#[test]
fn strangers_and_nodes_without_a_cluster_do_nothing() {
    assert_eq!(reconcile(&node(1, 500), &ClusterState::default()), []);
    assert_eq!(reconcile(&node(9, 500), &promoted()), []);
    assert_eq!(reconcile(&NodeState { sealed: TimelineId::NONE, ..node(1, 500) }, &new_cluster(3)), []);
}
