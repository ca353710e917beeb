use std::collections::BTreeSet;

use proptest::prelude::*;
use understudy_types::{Incarnation, Lsn};

use super::*;
use crate::election::fixture::{BEGIN, entry, id, ids, member, new_cluster};

fn bootstrap_command(members: &[u64]) -> Command {
    Command::Bootstrap {
        system_id: SystemId::new(7),
        members: members.iter().map(|number| (id(*number), member(*number))).collect(),
        segment_size: SegmentSize::DEFAULT,
        settings: Settings::default(),
    }
}

fn list(members: &[u64], acks: u32) -> SyncList {
    SyncList { mode: SyncMode::Preferred, members: ids(members), acks }
}

/// n1 is the primary of timeline 1, {n2, n3} the sync list.
fn settled() -> ClusterState {
    let mut state = new_cluster(4);
    state.history.push(entry(1, 1, BEGIN));
    state.sync = list(&[2, 3], 1);
    state
}

/// Timeline 2 is being decided.
fn in_election() -> ClusterState {
    let mut state = settled();
    let begin = begin_election(&state, 2);
    assert_applied(apply(&mut state, &begin));
    state
}

fn begin_election(state: &ClusterState, timeline: u32) -> Command {
    Command::BeginElection {
        generation: state.generation,
        timeline: TimelineId::new(timeline),
        reason: "n1 is gone".into(),
    }
}

fn promote_to(state: &ClusterState, node: u64, sync: SyncList) -> Command {
    Command::Promote {
        generation: state.generation,
        timeline: TimelineId::new(2),
        node: id(node),
        incarnation: Incarnation::new(node * 10),
        switch_lsn: Lsn::new(500),
        safe_lsn: Lsn::new(400),
        sync,
        time_ms: 1_700_000_000_000,
    }
}

fn set_sync_to(state: &ClusterState, sync: SyncList, epochs: &[(u64, u64)]) -> Command {
    Command::SetSync {
        generation: state.generation,
        timeline: state.timeline(),
        sync,
        damage_epochs: epochs.iter().map(|(node, epoch)| (id(*node), *epoch)).collect(),
    }
}

fn clear_damage_of(state: &ClusterState, node: u64, damage_epoch: u64) -> Command {
    Command::ClearDamage { generation: state.generation, node: id(node), damage_epoch }
}

#[track_caller]
fn assert_applied(outcome: Outcome) {
    assert!(matches!(outcome, Outcome::Applied { .. }), "{outcome:?}");
}

/// Asserts that the command changes nothing, and gives the reason as people read it.
#[track_caller]
fn rejected(state: &ClusterState, command: &Command) -> String {
    let mut after = state.clone();
    let Outcome::Rejected { reason } = apply(&mut after, command) else { panic!("carried out: {command:?}") };
    assert_eq!(&after, state, "a rejected command changed the state");
    reason.to_string()
}

#[test]
fn a_cluster_is_bootstrapped_once() {
    let mut state = ClusterState::default();
    assert_eq!(rejected(&state, &begin_election(&state, 1)), "the cluster is not bootstrapped yet");
    assert_applied(apply(&mut state, &bootstrap_command(&[1, 2, 3])));
    assert_eq!((state.generation, state.members.len(), state.timeline()), (Generation::new(1), 3, TimelineId::NONE));
    let again = rejected(&state, &bootstrap_command(&[1, 2, 3]));
    assert_eq!(again, "the cluster is bootstrapped already, as system 0000000000000007");
}

#[test]
fn a_cluster_that_could_not_work_is_not_bootstrapped() {
    type Change = fn(&mut BTreeMap<NodeId, Member>, &mut SystemId, &mut Settings);
    let cases: [(Change, &str); 7] = [
        (|_, system_id, _| *system_id = SystemId::default(), "the system identifier is zero"),
        (|members, _, _| members.clear(), "no member votes"),
        (|members, _, _| drop(members.insert(NodeId::default(), member(9))), "a node id is zero"),
        (|members, _, _| members.values_mut().for_each(|m| m.voter = false), "no member votes"),
        (
            |members, _, _| members.values_mut().for_each(|m| m.failover_priority = 0),
            "no member could ever be promoted",
        ),
        (|members, _, _| members.values_mut().for_each(|m| m.name = "N1".parse().unwrap()), "two members are named N1"),
        (|_, _, settings| settings.synchronous_standby_names = "ANY 0 (*)".into(), "cannot bootstrap: "),
    ];
    for (change, expected) in cases {
        let Command::Bootstrap { mut system_id, mut members, segment_size, mut settings } = bootstrap_command(&[1, 2])
        else {
            unreachable!()
        };
        change(&mut members, &mut system_id, &mut settings);
        let command = Command::Bootstrap { system_id, members, segment_size, settings };
        let text = rejected(&ClusterState::default(), &command);
        assert!(text.contains(expected), "{text}");
    }
    let all: Vec<u64> = (1..=65).collect();
    let text = rejected(&ClusterState::default(), &bootstrap_command(&all));
    assert_eq!(text, "cannot bootstrap: 65 members, at most 64 are allowed");
}

#[test]
fn a_command_that_was_planned_against_another_state_is_stale() {
    let mut state = in_election();
    let stale = promote_to(&state, 2, list(&[3], 1));
    assert_applied(apply(&mut state, &stale));
    let text = rejected(&state, &stale);
    assert_eq!(text, "planned against generation 2, but the cluster state is at 3; plan again");
    for planned in [0, 2, 4] {
        let begin = Command::BeginElection {
            generation: Generation::new(planned),
            timeline: TimelineId::new(3),
            reason: String::new(),
        };
        assert!(rejected(&state, &begin).starts_with(&format!("planned against generation {planned},")));
    }
}

#[test]
fn an_election_is_of_the_next_timeline_and_never_abandoned() {
    let mut state = settled();
    for timeline in [0, 1, 3] {
        let text = rejected(&state, &begin_election(&state, timeline));
        let expected =
            format!("cannot begin the election of timeline {timeline}: the present timeline is 1, so 2 is next");
        assert_eq!(text, expected);
    }
    let begin = begin_election(&state, 2);
    assert_applied(apply(&mut state, &begin));
    assert_eq!((state.fence(), state.timeline()), (TimelineId::new(2), TimelineId::FIRST));
    for timeline in [2, 3] {
        let text = rejected(&state, &begin_election(&state, timeline));
        assert_eq!(text, "timeline 2 is being decided; wait for the promotion");
    }
}

#[test]
fn a_promotion_ends_the_election_and_sets_history_and_list() {
    let mut state = in_election();
    let promote = promote_to(&state, 2, list(&[3], 1));
    assert_applied(apply(&mut state, &promote));
    let expected = HistoryEntry {
        switch: TimelineSwitch { timeline: TimelineId::new(2), parent: TimelineId::FIRST, switch_lsn: Lsn::new(500) },
        safe_lsn: Lsn::new(400),
        node: id(2),
        incarnation: Incarnation::new(20),
        reason: "n1 is gone".to_owned(),
        time_ms: 1_700_000_000_000,
    };
    assert_eq!(state.primary(), Some(&expected));
    assert_eq!((state.election.clone(), state.sync.clone()), (None, list(&[3], 1)));
    assert_eq!(state.timeline_history().latest(), TimelineId::new(2));
    let text = rejected(&state, &promote_to(&state, 3, list(&[], 0)));
    assert_eq!(text, "cannot promote to timeline 2: no election is open");
}

#[test]
fn a_promotion_that_does_not_fit_is_rejected() {
    let mut state = in_election();
    let other_timeline = |timeline| {
        let Command::Promote { generation, node, incarnation, switch_lsn, safe_lsn, sync, time_ms, timeline: _ } =
            promote_to(&state, 2, list(&[], 0))
        else {
            unreachable!()
        };
        let timeline = TimelineId::new(timeline);
        Command::Promote { generation, timeline, node, incarnation, switch_lsn, safe_lsn, sync, time_ms }
    };
    let text = rejected(&state, &other_timeline(3));
    assert_eq!(text, "cannot promote to timeline 3: the open election is of timeline 2");
    let text = rejected(&state, &promote_to(&state, 9, list(&[], 0)));
    assert_eq!(text, "node 0000000000000009 is not a member of the cluster");
    state.members.get_mut(&id(2)).unwrap().failover_priority = 0;
    let text = rejected(&state, &promote_to(&state, 2, list(&[], 0)));
    assert_eq!(text, "n2 cannot be promoted: it is of failover_priority 0");
    state.members.get_mut(&id(3)).unwrap().witness = true;
    let text = rejected(&state, &promote_to(&state, 3, list(&[], 0)));
    assert_eq!(text, "n3 cannot be promoted: it is a witness");
    let text = rejected(&state, &promote_to(&state, 1, list(&[3], 1)));
    assert_eq!(text, "n3 cannot be on the sync list: it is a witness");
    let text = rejected(&state, &promote_to(&state, 1, list(&[1], 1)));
    assert_eq!(text, "n1 cannot be on the sync list: it is the primary");
}

#[test]
fn f_is_never_beyond_s_and_s_is_a_position() {
    let state = in_election();
    let with = |switch_lsn, safe_lsn| {
        let (timeline, node, incarnation) = (TimelineId::new(2), id(2), Incarnation::new(20));
        let (switch_lsn, safe_lsn, sync) = (Lsn::new(switch_lsn), Lsn::new(safe_lsn), list(&[], 0));
        Command::Promote {
            generation: state.generation,
            timeline,
            node,
            incarnation,
            switch_lsn,
            safe_lsn,
            sync,
            time_ms: 0,
        }
    };
    let text = rejected(&state, &with(500, 501));
    assert_eq!(
        text,
        "cannot promote: up to 0/000001F5 may have been acknowledged, but the timeline would begin at 0/000001F4"
    );
    assert_eq!(rejected(&state, &with(0, 0)), "cannot promote: timeline 2 begins at an invalid LSN");
    assert_applied(apply(&mut state.clone(), &with(500, 500)));
}

#[test]
fn the_sync_list_changes_between_elections_only_and_by_the_present_primary() {
    let mut state = settled();
    let change = set_sync_to(&state, list(&[3, 4], 2), &[]);
    assert_applied(apply(&mut state, &change));
    assert_eq!((state.sync.clone(), state.generation), (list(&[3, 4], 2), Generation::new(2)));
    let Command::SetSync { generation, sync, damage_epochs, .. } = set_sync_to(&state, list(&[], 0), &[]) else {
        unreachable!()
    };
    let earlier = Command::SetSync { generation, timeline: TimelineId::NONE, sync, damage_epochs };
    assert_eq!(rejected(&state, &earlier), "the sync list was proposed on timeline 0, but the present one is 1");
    let election = in_election();
    let text = rejected(&election, &set_sync_to(&election, list(&[], 0), &[]));
    assert_eq!(text, "timeline 2 is being decided; wait for the promotion");
    let new = new_cluster(3);
    let text = rejected(&new, &set_sync_to(&new, list(&[2], 1), &[]));
    assert_eq!(text, "the sync list was proposed on timeline 0, but the present one is 0");
}

#[test]
fn only_those_who_can_have_everything_are_listed() {
    let mut state = settled();
    state.members.get_mut(&id(2)).unwrap().no_sync = true;
    state.members.get_mut(&id(3)).unwrap().witness = true;
    let text = |members: &[u64], acks| rejected(&state, &set_sync_to(&state, list(members, acks), &[]));
    assert_eq!(text(&[1, 4], 1), "n1 cannot be on the sync list: it is the primary");
    assert_eq!(text(&[2, 4], 1), "n2 cannot be on the sync list: it is tagged no_sync");
    assert_eq!(text(&[3, 4], 1), "n3 cannot be on the sync list: it is a witness");
    assert_eq!(text(&[9], 1), "node 0000000000000009 is not a member of the cluster");
    assert_eq!(text(&[4], 2), "2 acknowledgements cannot come from a sync list of 1");
    let required = SyncList { mode: SyncMode::Required, ..list(&[4], 2) };
    assert_applied(apply(&mut state.clone(), &set_sync_to(&state, required, &[])));
}

#[test]
fn an_acknowledgement_from_before_a_damage_does_not_put_a_node_back_on_the_list() {
    let mut state = settled();
    assert_eq!(rejected(&state, &clear_damage_of(&state, 2, 1)), "n2 stays damaged while it is on the sync list");
    let drop_n2 = set_sync_to(&state, list(&[3], 1), &[]);
    assert_applied(apply(&mut state, &drop_n2));
    let clear = clear_damage_of(&state, 2, 2);
    assert_applied(apply(&mut state, &clear));
    for epochs in [&[][..], &[(2, 0)], &[(2, 1)]] {
        let text = rejected(&state, &set_sync_to(&state, list(&[2, 3], 1), epochs));
        let acknowledged = epochs.first().map_or(0, |(_, epoch)| *epoch);
        let expected = format!(
            "n2 cannot join the sync list: it acknowledged under damage epoch {acknowledged}, but its WAL was damaged \
             since (epoch 2)"
        );
        assert_eq!(text, expected);
    }
    let back = set_sync_to(&state, list(&[2, 3], 1), &[(2, 2)]);
    assert_applied(apply(&mut state, &back));
    // Who stays on the list needs no proof.
    let keep = set_sync_to(&state, list(&[2], 1), &[]);
    assert_applied(apply(&mut state, &keep));
}

#[test]
fn damage_is_cleared_only_while_nobody_counts_on_the_node() {
    let mut state = in_election();
    assert_eq!(rejected(&state, &clear_damage_of(&state, 4, 1)), "timeline 2 is being decided; wait for the promotion");
    state.election = None;
    assert_eq!(rejected(&state, &clear_damage_of(&state, 3, 1)), "n3 stays damaged while it is on the sync list");
    // Its seal alone would allow the next promotion.
    let text = rejected(&state, &clear_damage_of(&state, 1, 1));
    assert_eq!(text, "n1 stays damaged while it is the primary of the present timeline");
    for (epoch, recorded) in [(3, 3), (2, 3), (4, 4)] {
        let clear = clear_damage_of(&state, 4, epoch);
        assert_applied(apply(&mut state, &clear));
        assert_eq!(state.damage_epochs.get(&id(4)), Some(&recorded));
    }
}

fn retag(state: &ClusterState, node: u64, failover_priority: u32, no_sync: bool) -> Command {
    Command::Retag { generation: state.generation, node: id(node), failover_priority, no_sync }
}

#[test]
fn a_member_is_tagged_anew() {
    let mut state = settled();
    for (node, priority, no_sync) in [(1, 0, true), (2, 7, false), (4, 3, true), (4, 3, false)] {
        let command = retag(&state, node, priority, no_sync);
        assert_applied(apply(&mut state, &command));
        let member = &state.members[&id(node)];
        assert_eq!((member.failover_priority, member.no_sync), (priority, no_sync));
    }
    assert_eq!(state.sync, settled().sync, "the list is SetSync's");
    assert!(rejected(&state, &retag(&settled(), 2, 1, false)).starts_with("planned against generation"));
    assert!(rejected(&state, &retag(&state, 9, 1, false)).contains("not a member"));
    let open = in_election();
    assert!(rejected(&open, &retag(&open, 2, 7, false)).contains("timeline 2 is being decided"));
}

#[test]
fn a_listed_node_is_not_tagged_no_sync() {
    // INV-DURABLE: who is listed has what was acknowledged, until SetSync says otherwise.
    let mut state = settled();
    let text = rejected(&state, &retag(&state, 2, 1, true));
    assert_eq!(text, "n2 cannot be tagged no_sync while it is on the sync list");
    let dropped = set_sync_to(&state, list(&[3], 1), &[]);
    assert_applied(apply(&mut state, &dropped));
    let command = retag(&state, 2, 1, true);
    assert_applied(apply(&mut state, &command));
    assert!(rejected(&state, &set_sync_to(&state, list(&[2, 3], 1), &[])).contains("tagged no_sync"));
}

#[test]
fn a_primary_is_counted_on_alone_while_nobody_is_waited_for() {
    // INV-DURABLE: nobody else need have what it acknowledged.
    let state = settled();
    assert!(!state.counts_on_alone(id(1)));
    for list in
        [SyncList { members: BTreeSet::new(), ..state.sync.clone() }, SyncList { acks: 0, ..state.sync.clone() }]
    {
        let alone = ClusterState { sync: list, ..state.clone() };
        assert!(alone.counts_on_alone(id(1)) && !alone.counts_on_alone(id(2)));
    }
}

#[test]
fn somebody_can_always_be_promoted() {
    let mut state = settled();
    for node in [1, 2, 3] {
        let command = retag(&state, node, 0, false);
        assert_applied(apply(&mut state, &command));
    }
    let text = rejected(&state, &retag(&state, 4, 0, false));
    assert_eq!(text, "n4 cannot have failover_priority 0: no other member could ever be promoted");
}

#[test]
fn commands_and_outcomes_travel_as_json() {
    let state = in_election();
    let command = promote_to(&state, 2, list(&[3], 1));
    let text = serde_json::to_string(&command).unwrap();
    assert_eq!(serde_json::from_str::<Command>(&text).unwrap(), command);
    let outcome = apply(&mut settled(), &command);
    let text = serde_json::to_string(&outcome).unwrap();
    assert_eq!(serde_json::from_str::<Outcome>(&text).unwrap(), outcome);
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<ClusterState>(&text).unwrap(), state);
}

fn commands() -> impl Strategy<Value = Vec<(u8, u64, u32, u64, Vec<u64>, u32)>> {
    let members = proptest::collection::vec(1..6_u64, 0..4);
    proptest::collection::vec((0..5_u8, 0..4_u64, 0..4_u32, 1..6_u64, members, 0..3_u32), 0..40)
}

proptest! {
    /// Whatever is proposed: a rejected command changes nothing, one that is carried out raises the generation by one,
    /// timelines come one by one, and the list is always one that could be true.
    #[test]
    fn the_state_stays_sound(commands in commands()) {
        let mut state = new_cluster(4);
        for (kind, behind, ahead, node, members, acks) in commands {
            let before = state.clone();
            let generation = Generation::new(state.generation.get().saturating_sub(behind / 3));
            let timeline = TimelineId::new(state.timeline().get() + ahead / 2);
            let sync = list(&members, acks);
            let (incarnation, switch_lsn, safe_lsn) = (Incarnation::new(node), Lsn::new(node * 10), Lsn::new(node * 12 - acks as u64));
            let command = match kind {
                0 => Command::BeginElection { generation, timeline, reason: String::new() },
                1 => {
                    let node = id(node);
                    Command::Promote { generation, timeline, node, incarnation, switch_lsn, safe_lsn, sync, time_ms: 0 }
                }
                2 => Command::SetSync { generation, timeline, sync, damage_epochs: BTreeMap::from([(id(node), behind)]) },
                3 => Command::ClearDamage { generation, node: id(node), damage_epoch: behind },
                _ => Command::Retag { generation, node: id(node), failover_priority: acks, no_sync: ahead == 1 },
            };
            match apply(&mut state, &command) {
                Outcome::Applied { generation } => {
                    prop_assert_eq!(generation, before.generation.next());
                    prop_assert_eq!(state.generation, generation);
                    prop_assert_ne!(state.election == before.election && state.history == before.history, kind < 2);
                }
                Outcome::Rejected { .. } => prop_assert_eq!(&state, &before),
            }
            prop_assert!(state.fence() == state.timeline() || state.fence() == state.timeline().next());
            prop_assert!(state.history.len() <= before.history.len() + 1);
            let primary = state.primary().map(|primary| primary.node);
            prop_assert!(state.sync.members.iter().all(|node| Some(*node) != primary && state.members.contains_key(node)));
            prop_assert!(state.sync.members.iter().all(|node| !state.members[node].no_sync));
            prop_assert!(state.members.values().any(Member::is_eligible));
            prop_assert!(state.primary().is_none_or(|primary| primary.safe_lsn <= primary.switch.switch_lsn));
        }
    }
}

fn configure(state: &ClusterState, of: &[(&str, &str)]) -> Command {
    let changes = of.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    Command::Configure { generation: state.generation, changes }
}

#[test]
fn settings_are_changed_all_or_none() {
    let mut state = settled();
    let command = configure(&state, &[("sync_mode", "required"), ("primary_timeout", "2s")]);
    let generation = state.generation.next();
    assert_eq!(apply(&mut state, &command), Outcome::Applied { generation });
    assert_eq!((state.settings.sync_mode, state.settings.primary_timeout_ms), (SyncMode::Required, 2_000));
    // The list carries the mode that it was made under, until SetSync changes it.
    assert_eq!(state.sync, list(&[2, 3], 1));

    let before = state.clone();
    for wrong in [
        &[("sync_mode", "async"), ("primary_timeout", "1ms")][..],
        &[("sync_mode", "async"), ("no_such_thing", "1")],
        &[("synchronous_standby_names", "ANY 0 (*)")],
        &[("request_id_retention", "1s")],
    ] {
        let command = configure(&state, wrong);
        let outcome = apply(&mut state, &command);
        assert!(
            matches!(outcome, Outcome::Rejected { reason: Rejection::BadSettings { .. } }),
            "{wrong:?}: {outcome:?}"
        );
        assert_eq!(state, before);
    }
    let stale = configure(&settled(), &[("sync_mode", "async")]);
    assert!(matches!(apply(&mut state, &stale), Outcome::Rejected { reason: Rejection::Stale { .. } }));
    assert_eq!(state, before);
}

#[test]
fn a_refusal_stands_in_the_raft_log_and_is_read_again() {
    let mut state = settled();
    let command = configure(&state, &[("primary_timout", "1s")]);
    let outcome = apply(&mut state, &command);
    let text = serde_json::to_string(&(&command, &outcome)).expect("json");
    assert_eq!(serde_json::from_str::<(Command, Outcome)>(&text).expect("json"), (command, outcome.clone()));
    let Outcome::Rejected { reason } = outcome else { panic!("carried out") };
    assert!(reason.to_string().contains("did you mean primary_timeout?"), "{reason}");
}

#[test]
fn an_election_goes_by_the_list_not_by_the_setting() {
    let mut state = in_election();
    let command = configure(&state, &[("sync_mode", "async")]);
    assert_applied(apply(&mut state, &command));
    assert_eq!((state.settings.sync_mode, state.sync.mode), (SyncMode::Async, SyncMode::Preferred));
}

#[test]
fn a_cluster_does_not_begin_with_settings_that_do_not_fit() {
    let Command::Bootstrap { system_id, members, segment_size, settings } = bootstrap_command(&[1]) else {
        panic!("not a bootstrap")
    };
    let settings = Settings { primary_timeout_ms: 100, ..settings };
    let command = Command::Bootstrap { system_id, members, segment_size, settings };
    let Outcome::Rejected { reason } = apply(&mut ClusterState::default(), &command) else { panic!("carried out") };
    assert!(reason.to_string().contains("500ms to 1h"), "{reason}");
}
