use std::collections::BTreeMap;

use understudy_types::{Generation, TimelineId};

use super::*;
use crate::command::{Outcome, apply};
use crate::election::fixture::{BEGIN, entry, id, ids, new_cluster, report};
use crate::observation::Observed;
use crate::state::{SyncList, majority};

/// n1 is the primary of timeline 1 and goes by `generation`; n2 leads Raft.
fn observations(generation: Generation) -> Observations {
    let own_word = report(1, 1, 500);
    let own_word =
        crate::observation::NodeReport { role: NodeRole::Primary, timeline: TimelineId::FIRST, generation, ..own_word };
    let primary = Observed { heard_at_ms: 0, connected: true, refused: false, report: own_word };
    Observations { me: id(2), nodes: BTreeMap::from([(id(1), primary)]), ..Observations::default() }
}

/// n1 to n`nodes`; n1 is the primary of timeline 1 and the list is empty of `nodes`, which lost its directory.
fn settled(nodes: u64) -> ClusterState {
    let mut state = new_cluster(nodes);
    state.history.push(entry(1, 1, BEGIN));
    state.sync = SyncList { members: ids(&[2]), acks: 1, ..SyncList::default() };
    state
}

fn raft(voters: &[u64], learners: &[u64], caught_up: &[u64]) -> RaftMembers {
    RaftMembers { voters: ids(voters), is_joint: false, learners: ids(learners), caught_up: ids(caught_up) }
}

fn replace(state: &ClusterState, old: u64, new: u64) -> Command {
    Command::ReplaceMember {
        generation: state.generation,
        old: id(old),
        new: id(new),
        address: "10.0.0.9:7000".to_owned(),
        failover_priority: 50,
        no_sync: false,
    }
}

fn carried_out(state: &mut ClusterState, command: &Command) {
    let outcome = apply(state, command);
    assert!(matches!(outcome, Outcome::Applied { .. }), "{command:?}: {outcome:?}");
}

fn rejected(state: &ClusterState, command: &Command) -> String {
    let mut after = state.clone();
    let Outcome::Rejected { reason } = apply(&mut after, command) else { panic!("carried out: {command:?}") };
    assert_eq!(&after, state, "a rejected command changed the state");
    reason.to_string()
}

#[test]
fn a_member_is_replaced_step_by_step() {
    let mut state = settled(3);
    let before = state.generation;
    assert_eq!(next_step(&state, &raft(&[1, 2, 3], &[], &[]), &observations(before)), None);

    let command = replace(&state, 3, 9);
    carried_out(&mut state, &command);
    assert_eq!((state.voters(), state.joining), (ids(&[1, 2]), Some(id(9))));
    assert_eq!(state.members[&id(9)].name, "n3".parse().unwrap());
    assert_eq!(state.members[&id(9)].failover_priority, 50);
    assert_eq!(state.name_of(id(3)), "n3");

    let learner = MembershipStep::AddLearner { node: id(9), address: "10.0.0.9:7000".to_owned() };
    assert_eq!(next_step(&state, &raft(&[1, 2, 3], &[], &[]), &observations(before)), Some(learner));
    // The one that is gone votes in Raft until the one that comes can.
    assert_eq!(next_step(&state, &raft(&[1, 2, 3], &[9], &[]), &observations(before)), None);
    let step = next_step(&state, &raft(&[1, 2, 3], &[9], &[9]), &observations(before));
    assert_eq!(step, Some(MembershipStep::SetVoters(ids(&[1, 2, 9]))));
    let joint = RaftMembers { is_joint: true, ..raft(&[1, 2, 3, 9], &[], &[]) };
    assert_eq!(next_step(&state, &joint, &observations(before)), Some(MembershipStep::SetVoters(ids(&[1, 2, 9]))));

    // The primary still goes by the voters before.
    assert_eq!(next_step(&state, &raft(&[1, 2, 9], &[], &[]), &observations(before)), None);
    assert_eq!(next_step(&state, &raft(&[1, 2, 9], &[], &[]), &Observations::default()), None);
    let add = Command::AddVoter { generation: state.generation, node: id(9) };
    let step = next_step(&state, &raft(&[1, 2, 9], &[], &[]), &observations(state.generation));
    assert_eq!(step, Some(MembershipStep::Propose(add.clone())));
    carried_out(&mut state, &add);
    assert_eq!((state.voters(), state.joining), (ids(&[1, 2, 9]), Some(id(9))));
    assert_eq!(next_step(&state, &raft(&[1, 2, 9], &[], &[]), &observations(before)), None);
    let finish = Command::FinishJoin { generation: state.generation, node: id(9) };
    let step = next_step(&state, &raft(&[1, 2, 9], &[], &[]), &observations(state.generation));
    assert_eq!(step, Some(MembershipStep::Propose(finish.clone())));
    carried_out(&mut state, &finish);
    assert_eq!((state.voters(), state.joining), (ids(&[1, 2, 9]), None));
    assert_eq!(next_step(&state, &raft(&[1, 2, 9], &[], &[]), &observations(state.generation)), None);
}

#[test]
fn one_that_is_lost_before_it_votes_is_replaced_again() {
    let mut state = settled(3);
    let command = replace(&state, 3, 9);
    carried_out(&mut state, &command);
    let voters_generation = state.voters_generation;
    let command = replace(&state, 9, 10);
    carried_out(&mut state, &command);
    assert_eq!((state.voters(), state.joining), (ids(&[1, 2]), Some(id(10))));
    assert_eq!(state.voters_generation, voters_generation, "the voters are the same");
    assert_eq!(state.name_of(id(9)), "n3");
    // The lost one leaves Raft, whether it only learned or voted there already.
    let step = next_step(&state, &raft(&[1, 2, 3], &[9, 10], &[10]), &observations(state.generation));
    assert_eq!(step, Some(MembershipStep::Forget(ids(&[9]))));
    let step = next_step(&state, &raft(&[1, 2, 9], &[10], &[10]), &observations(state.generation));
    assert_eq!(step, Some(MembershipStep::SetVoters(ids(&[1, 2, 10]))));
}

#[test]
fn nobody_joins_during_an_election() {
    let mut state = settled(3);
    let command = replace(&state, 3, 9);
    carried_out(&mut state, &command);
    let begin = Command::BeginElection {
        generation: state.generation,
        timeline: TimelineId::new(2),
        reason: "a test".to_owned(),
    };
    carried_out(&mut state, &begin);
    assert_eq!(next_step(&state, &raft(&[1, 2, 9], &[], &[]), &observations(state.generation)), None);
    let add = Command::AddVoter { generation: state.generation, node: id(9) };
    assert_eq!(rejected(&state, &add), "timeline 2 is being decided; wait for the promotion");
}

#[test]
fn who_is_counted_on_is_not_replaced() {
    let mut state = settled(4);
    assert_eq!(
        rejected(&state, &replace(&state, 1, 9)),
        "n1 cannot be replaced while it is the primary of the present timeline"
    );
    assert_eq!(rejected(&state, &replace(&state, 2, 9)), "n2 cannot be replaced while it is on the sync list");
    assert_eq!(rejected(&state, &replace(&state, 8, 9)), "node 0000000000000008 is not a member of the cluster");
    let known =
        "node 0000000000000004 is or was a member of the cluster already: start it with an empty data directory";
    assert_eq!(rejected(&state, &replace(&state, 3, 4)), known);
    let command = replace(&state, 3, 9);
    carried_out(&mut state, &command);
    assert_eq!(rejected(&state, &replace(&state, 4, 10)), "n3 is joining; wait until it votes");
    let not_joining = Command::AddVoter { generation: state.generation, node: id(4) };
    assert_eq!(rejected(&state, &not_joining), "node 0000000000000004 is not joining");
    let early = Command::FinishJoin { generation: state.generation, node: id(9) };
    assert_eq!(rejected(&state, &early), "node 0000000000000009 is not joining");
    let add = Command::AddVoter { generation: state.generation, node: id(9) };
    carried_out(&mut state, &add);
    assert_eq!(rejected(&state, &replace(&state, 4, 10)), "n3 is joining; wait until it votes");
    let finish = Command::FinishJoin { generation: state.generation, node: id(9) };
    carried_out(&mut state, &finish);
    let back = "node 0000000000000003 is or was a member of the cluster already: start it with an empty data directory";
    assert_eq!(rejected(&state, &replace(&state, 4, 3)), back);
}

#[test]
fn an_outage_is_recorded_once() {
    let mut state = settled(3);
    let record = Command::RecordOutage { timeline: TimelineId::FIRST, outage_ms: 412 };
    carried_out(&mut state, &record);
    assert_eq!(state.outages_ms, BTreeMap::from([(TimelineId::FIRST, 412)]));
    let again = "the outage before timeline 1 is recorded already, or there is no such timeline";
    assert_eq!(rejected(&state, &record), again);
    let other = Command::RecordOutage { timeline: TimelineId::new(2), outage_ms: 1 };
    assert!(rejected(&state, &other).contains("timeline 2"));
}

/// Every set of at least a majority of `voters`.
fn majorities(voters: &BTreeSet<NodeId>) -> Vec<BTreeSet<NodeId>> {
    let all: Vec<NodeId> = voters.iter().copied().collect();
    let subsets = 0_u32..1 << all.len();
    let subset = |bits: u32| all.iter().enumerate().filter(move |(i, _)| bits >> i & 1 == 1).map(|(_, node)| *node);
    subsets.map(|bits| subset(bits).collect()).filter(|set: &BTreeSet<_>| set.len() >= majority(all.len())).collect()
}

/// INV-LINEAR while voters change: wherever the primary's knowledge stands, a majority that could confirm it has a node in
/// common with every majority that could seal for a newer timeline. Replaces node after node, with a primary that
/// learns late, for as long as the leader may go on.
#[test]
fn who_confirms_and_who_seals_always_have_a_node_in_common() {
    for nodes in 2..=5_u64 {
        for lag in 0..12_u64 {
            let mut state = settled(nodes);
            state.sync = SyncList::default();
            let mut versions = vec![(state.generation, state.voters())];
            let (mut primary_at, mut next_id, mut changes, mut stuck) = (state.generation, 100, 0, 0);
            let mut learned = state.voters();
            while changes < 6 && stuck < 30 {
                let voters = state.voters();
                let raft_voters: BTreeSet<NodeId> = voters.iter().copied().chain(state.joining).collect();
                let raft = RaftMembers { voters: raft_voters, ..RaftMembers::default() };
                let victim = *state.members.keys().find(|node| **node != id(1)).expect("somebody else");
                let command = match next_step(&state, &raft, &observations(primary_at)) {
                    Some(MembershipStep::Propose(command)) => Some(command),
                    Some(other) => panic!("{other:?}"),
                    None if state.joining.is_none() && !voters.is_empty() => {
                        next_id += 1;
                        Some(Command::ReplaceMember {
                            generation: state.generation,
                            old: victim,
                            new: id(next_id),
                            address: String::new(),
                            failover_priority: 1,
                            no_sync: false,
                        })
                    }
                    None => None,
                };
                match command {
                    Some(command) => {
                        carried_out(&mut state, &command);
                        versions.push((state.generation, state.voters()));
                        changes += 1;
                    }
                    None => stuck += 1,
                }
                for confirming in majorities(&learned) {
                    for sealing in majorities(&state.voters()) {
                        assert!(
                            confirming.intersection(&sealing).next().is_some(),
                            "{nodes} nodes: {confirming:?} confirm a primary at {primary_at}, {sealing:?} seal"
                        );
                    }
                }
                // The primary learns one version after `lag` rounds without progress.
                if stuck >= lag
                    && let Some((generation, voters)) = versions.iter().find(|(at, _)| *at > primary_at)
                {
                    (primary_at, learned) = (*generation, voters.clone());
                    stuck = 0;
                }
            }
            assert_eq!(changes, 6, "{nodes} nodes, lag {lag}: the replacement goes on once the primary has learned");
        }
    }
}
