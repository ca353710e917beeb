//! Several nodes in one process, over real gRPC.

use std::time::Instant;

use tokio::time::timeout;
use tonic::Code;
use understudy_core::command::{Command, Outcome, Rejection};
use understudy_rpc::v1::raft_client::RaftClient;
use understudy_rpc::v1::{ElectRequest, ProposeRequest, RaftMessage};
use understudy_types::{Generation, NodeId, SystemId, TimelineId};

use crate::test_cluster::{PATIENCE, SYSTEM, TestCluster, TestNode, id, until};
use crate::wire::{BallotReply, BallotRequest, Vote, decode, encode};
use crate::{Control, HandoverError, ProposeError, timing};

fn begin_election(generation: u64) -> Command {
    Command::BeginElection {
        generation: Generation::new(generation),
        timeline: TimelineId::new(1),
        reason: "a test".to_owned(),
    }
}

/// Changes nothing: planned against a generation that never was.
fn stale() -> Command {
    begin_election(u64::MAX)
}

fn vote_message(target: NodeId, system_id: u64) -> RaftMessage {
    let ballot = BallotRequest::new(Vote::new(1_000, 99), None);
    RaftMessage { system_id, source_node_id: 99, target_node_id: target.get(), payload: encode(&ballot) }
}

async fn client(node: &TestNode) -> RaftClient<tonic::transport::Channel> {
    RaftClient::connect(format!("http://{}", node.address)).await.expect("it listens")
}

#[tokio::test]
async fn a_command_through_a_follower_survives_the_restart_of_all() {
    let mut cluster = TestCluster::start(3).await;
    let follower = cluster.follower().await;
    let outcome = cluster.nodes[&follower].propose(cluster.bootstrap()).await;
    assert_eq!(outcome, Outcome::Applied { generation: Generation::new(1) });
    let outcome = cluster.nodes[&follower].propose(begin_election(1)).await;
    assert_eq!(outcome, Outcome::Applied { generation: Generation::new(2) });
    cluster.all_at_generation(2).await;
    let before = cluster.nodes[&follower].control.state().borrow().state.clone();

    for number in 1..=3 {
        cluster.stop(id(number)).await;
    }
    for number in 1..=3 {
        cluster.restart(id(number)).await;
        assert!(!cluster.nodes[&id(number)].control.is_pristine());
    }
    cluster.leader().await;
    cluster.all_at_generation(2).await;
    for node in cluster.nodes.values() {
        assert_eq!(node.control.state().borrow().state, before);
        let leadership = node.control.leadership().borrow().clone();
        assert_eq!(leadership.voters, [1, 2, 3].map(NodeId::new).into());
        assert!(node.control.failure().borrow().is_none());
    }
}

#[tokio::test]
async fn a_stale_command_is_rejected_with_the_reason() {
    let cluster = TestCluster::bootstrapped(3).await;
    let follower = cluster.follower().await;
    let outcome = cluster.nodes[&follower].propose(begin_election(7)).await;
    let reason = Rejection::Stale { planned: Generation::new(7), present: Generation::new(1) };
    assert_eq!(outcome, Outcome::Rejected { reason });
    let again = cluster.nodes[&follower].propose(cluster.bootstrap()).await;
    let reason = Rejection::AlreadyBootstrapped { system_id: SystemId::new(SYSTEM) };
    assert_eq!(again, Outcome::Rejected { reason });
}

#[tokio::test]
async fn a_command_does_not_wait_for_a_heartbeat() {
    let cluster = TestCluster::bootstrapped(3).await;
    let leader = &cluster.nodes[&cluster.leader().await];
    let mut fastest = timing::PROPOSE_TIMEOUT;
    for _ in 0..20 {
        let begin = Instant::now();
        leader.propose(stale()).await;
        fastest = fastest.min(begin.elapsed());
    }
    assert!(fastest < timing::HEARTBEAT_INTERVAL / 2, "{fastest:?}");
}

#[tokio::test]
async fn the_death_of_the_leader_is_survived_and_it_follows_when_it_is_back() {
    let mut cluster = TestCluster::bootstrapped(3).await;
    let dead = cluster.leader().await;
    cluster.stop(dead).await;
    let survivor = cluster.nodes.values().next().expect("two are left");
    let gone = |seen: &crate::Leadership| seen.leader.is_some_and(|leader| leader != dead);
    until(&survivor.control.leadership(), "another leader", gone).await;
    let outcome = survivor.propose(begin_election(1)).await;
    assert_eq!(outcome, Outcome::Applied { generation: Generation::new(2) });
    cluster.restart(dead).await;
    cluster.all_at_generation(2).await;
}

#[tokio::test]
async fn leadership_is_handed_to_whom_it_is_meant_for() {
    for count in [3, 5] {
        let cluster = TestCluster::bootstrapped(count).await;
        let from = cluster.leader().await;
        let to = cluster.follower().await;
        cluster.nodes[&from]
            .run(move |control| async move { control.hand_leadership(to).await })
            .await
            .expect("handed");
        until(&cluster.nodes[&to].control.leadership(), "the target leads", |seen| seen.i_am_leader).await;
        until(&cluster.nodes[&from].control.leadership(), "the old one follows", |seen| seen.leader == Some(to)).await;
        let outcome = cluster.nodes[&from].propose(begin_election(1)).await;
        assert_eq!(outcome, Outcome::Applied { generation: Generation::new(2) });
    }
}

#[tokio::test]
async fn a_handover_that_cannot_be_is_refused_and_the_leader_goes_on() {
    let mut cluster = TestCluster::bootstrapped(3).await;
    let leader = cluster.leader().await;
    let follower = cluster.follower().await;
    let hand = |from: NodeId, to: NodeId| {
        cluster.nodes[&from].run(move |control: Control| async move { control.hand_leadership(to).await })
    };
    assert!(matches!(hand(follower, leader).await, Err(HandoverError::NotLeader)));
    assert!(matches!(hand(leader, id(99)).await, Err(HandoverError::NotVoter { .. })));
    assert!(matches!(hand(leader, leader).await, Err(HandoverError::NotVoter { .. })));

    cluster.stop(follower).await;
    cluster.nodes[&leader].propose(stale()).await;
    let refused =
        cluster.nodes[&leader].run(move |control| async move { control.hand_leadership(follower).await }).await;
    assert!(matches!(refused, Err(HandoverError::Behind { .. })), "{refused:?}");
    let outcome = cluster.nodes[&leader].propose(begin_election(1)).await;
    assert_eq!(outcome, Outcome::Applied { generation: Generation::new(2) });
}

#[tokio::test]
async fn a_command_goes_before_a_handover() {
    let cluster = TestCluster::bootstrapped(5).await;
    let leader = cluster.leader().await;
    let to = cluster.follower().await;
    let handing = cluster.nodes[&leader].run(move |control| async move { control.hand_leadership(to).await });
    tokio::pin!(handing);
    // With five voters it takes longer than a lease: some of these commands come in between.
    let handed = loop {
        tokio::select! {
            handed = &mut handing => break handed,
            outcome = cluster.nodes[&leader].propose(stale()) => assert!(matches!(outcome, Outcome::Rejected { .. })),
        }
    };
    assert!(matches!(handed, Err(HandoverError::Interrupted | HandoverError::Behind { .. })), "{handed:?}");
    let outcome = cluster.nodes[&leader].propose(begin_election(1)).await;
    assert_eq!(outcome, Outcome::Applied { generation: Generation::new(2) });
    assert!(cluster.nodes[&leader].control.leadership().borrow().i_am_leader);
}

#[tokio::test]
async fn one_of_three_that_has_led_for_a_while_hands_over_at_once() {
    let cluster = TestCluster::bootstrapped(3).await;
    let from = cluster.leader().await;
    let to = cluster.follower().await;
    // The end of a lease is no event that could be awaited.
    tokio::time::sleep(timing::ELECTION_TIMEOUT_MAX + timing::HEARTBEAT_INTERVAL).await;
    let begin = Instant::now();
    cluster.nodes[&from].run(move |control| async move { control.hand_leadership(to).await }).await.expect("handed");
    assert!(begin.elapsed() < timing::ELECTION_TIMEOUT_MAX, "{:?}", begin.elapsed());
    until(&cluster.nodes[&to].control.leadership(), "the target leads", |seen| seen.i_am_leader).await;
    let outcome = cluster.nodes[&to].propose(begin_election(1)).await;
    assert_eq!(outcome, Outcome::Applied { generation: Generation::new(2) });
}

/// The library's own lease runs from a leader's election on.
async fn leads_for_long(leader: &TestNode) {
    let since = until(&leader.control.core.leading_since, "it leads", Option::is_some).await.expect("it leads");
    tokio::time::sleep_until(since + 2 * timing::ELECTION_TIMEOUT_MAX).await;
}

#[tokio::test]
async fn a_candidate_that_hears_the_leader_is_elected_in_its_first_term() {
    // It was frozen, say, and did not hear the leader for that long. It has the higher term already: to refuse it would leave nobody.
    let cluster = TestCluster::bootstrapped(3).await;
    let (leader, stands) = (cluster.leader().await, cluster.follower().await);
    let before = cluster.nodes[&leader].control.leadership().borrow().term;
    leads_for_long(&cluster.nodes[&leader]).await;
    let stood = cluster.nodes[&stands].run(|control| async move { control.core.raft.trigger().elect().await }).await;
    stood.expect("raft runs");
    let other = |seen: &crate::Leadership| seen.leader.is_some_and(|now| now != leader);
    let seen = until(&cluster.nodes[&stands].control.leadership(), "another leader", other).await;
    assert_eq!((seen.leader, seen.term), (Some(stands), before + 1));
}

#[tokio::test]
async fn a_leader_keeps_its_place_while_it_is_followed() {
    // A follower that is heard, and hears nobody, stands: it has the whole log, a higher term, and needs one vote.
    let mut cluster = TestCluster::bootstrapped(3).await;
    let (leader, deaf) = (cluster.leader().await, cluster.follower().await);
    let before = cluster.nodes[&leader].control.leadership().borrow().clone();
    let metrics = cluster.nodes[&deaf].control.core.raft.data_metrics();
    let last_log = metrics.borrow().last_log;
    let ballot = BallotRequest::new(Vote::new(before.term + 10, deaf.get()), last_log);
    let message = RaftMessage { payload: encode(&ballot), source_node_id: deaf.get(), ..vote_message(leader, SYSTEM) };
    let mut client = client(&cluster.nodes[&leader]).await;
    leads_for_long(&cluster.nodes[&leader]).await;
    for _ in 0..3 {
        let answer = client.vote(message.clone()).await.expect("an answer").into_inner();
        let reply: BallotReply = decode(&answer.payload).expect("a ballot");
        let reply = reply.expect("no failure");
        assert!(!reply.vote_granted && reply.vote.is_committed(), "{reply:?}");
    }
    let after = cluster.nodes[&leader].control.leadership().borrow().clone();
    assert!(after.i_am_leader && after.term == before.term, "{after:?}");

    // Nobody follows it any more: then it grants what it would have granted.
    let followers: Vec<NodeId> = cluster.nodes.keys().copied().filter(|node| *node != leader).collect();
    for follower in followers {
        cluster.stop(follower).await;
    }
    let granted = async {
        loop {
            let answer = client.vote(message.clone()).await.expect("an answer").into_inner();
            let reply: BallotReply = decode(&answer.payload).expect("a ballot");
            if reply.expect("no failure").vote_granted {
                return;
            }
        }
    };
    timeout(PATIENCE, granted).await.expect("a vote");
}

#[tokio::test]
async fn a_node_that_stands_aside_leaves_leadership_to_the_others() {
    let mut cluster = TestCluster::bootstrapped(3).await;
    let dead = cluster.leader().await;
    let aside = cluster.follower().await;
    cluster.nodes[&aside].control.stand_aside(true);
    cluster.stop(dead).await;
    let other = *cluster.nodes.keys().find(|id| **id != aside).expect("two are left");
    let settled = |seen: &crate::Leadership| seen.leader.is_some_and(|leader| leader != dead);
    let seen = until(&cluster.nodes[&aside].control.leadership(), "another leader", settled).await;
    assert_eq!(seen.leader, Some(other));
}

#[tokio::test]
async fn a_node_that_stands_aside_leads_when_the_other_lacks_what_it_has() {
    // The primary, and a standby that was away, when the leader dies: that one stands again and again, and cannot win.
    let mut cluster = TestCluster::bootstrapped(3).await;
    let dead = cluster.leader().await;
    let aside = cluster.follower().await;
    let behind = *cluster.nodes.keys().find(|id| **id != aside && **id != dead).expect("three there are");
    cluster.stop(behind).await;
    let outcome = cluster.nodes[&dead].propose(begin_election(1)).await;
    assert_eq!(outcome, Outcome::Applied { generation: Generation::new(2) });
    cluster.all_at_generation(2).await;
    cluster.nodes[&aside].control.stand_aside(true);
    cluster.stop(dead).await;
    cluster.restart(behind).await;
    let seen = until(&cluster.nodes[&aside].control.leadership(), "a leader", |seen| seen.i_am_leader).await;
    assert_eq!(seen.leader, Some(aside));
}

#[tokio::test]
async fn nodes_that_stand_aside_lead_when_nobody_else_does() {
    let mut cluster = TestCluster::bootstrapped(3).await;
    let dead = cluster.leader().await;
    for node in cluster.nodes.values() {
        node.control.stand_aside(true);
    }
    cluster.stop(dead).await;
    let survivor = cluster.nodes.values().next().expect("two are left");
    let settled = |seen: &crate::Leadership| seen.leader.is_some_and(|leader| leader != dead);
    until(&survivor.control.leadership(), "another leader", settled).await;
}

#[tokio::test]
async fn an_emptied_node_neither_votes_nor_counts_as_the_one_it_was() {
    let mut cluster = TestCluster::bootstrapped(3).await;
    let emptied = cluster.follower().await;
    cluster.stop(emptied).await;
    std::fs::remove_dir_all(cluster.dir(emptied).join("raft")).expect("emptied");
    let reborn = TestNode::start(id(77), cluster.dir(emptied), cluster.address(emptied)).await;

    let refused = client(&reborn).await.vote(vote_message(emptied, SYSTEM)).await.expect_err("refused");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let text = refused.message();
    assert!(text.contains(&emptied.to_string()) && text.contains(&reborn.id.to_string()), "{text}");

    // The others go on, and what they send to the old node does not reach the new one.
    let leader = cluster.leader().await;
    let outcome = cluster.nodes[&leader].propose(begin_election(1)).await;
    assert_eq!(outcome, Outcome::Applied { generation: Generation::new(2) });
    assert!(reborn.control.is_pristine());
    assert_eq!(reborn.control.leadership().borrow().term, 0);

    // Without the old node's vote one of three is no majority: its commands do not commit.
    let other = *cluster.nodes.keys().find(|id| **id != leader).expect("two are left");
    cluster.stop(other).await;
    let unknown = cluster.nodes[&leader].run(|control| async move { control.propose(begin_election(2)).await }).await;
    assert!(matches!(unknown, Err(ProposeError::Unknown { .. })), "{unknown:?}");
    assert!(reborn.control.is_pristine());
}

#[tokio::test]
async fn malformed_and_misdirected_messages_are_refused() {
    let cluster = TestCluster::bootstrapped(1).await;
    let node = &cluster.nodes[&id(1)];
    let mut client = client(node).await;
    let garbage = |target: NodeId| RaftMessage { payload: "{\"vote\": 7".into(), ..vote_message(target, SYSTEM) };
    for result in [
        client.append_entries(garbage(node.id)).await,
        client.vote(garbage(node.id)).await,
        client.install_snapshot(garbage(node.id)).await,
    ] {
        let refused = result.expect_err("refused");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains("does not parse"), "{refused}");
    }

    let refused = client.vote(vote_message(node.id, 0xbad)).await.expect_err("another cluster");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("0000000000000bad"), "{refused}");

    let propose = ProposeRequest { source_node_id: 9, target_node_id: node.id.get(), command: "nonsense".into() };
    assert_eq!(client.propose(propose).await.expect_err("refused").code(), Code::InvalidArgument);
    let elect = ElectRequest { source_node_id: 9, target_node_id: node.id.get() };
    assert_eq!(client.elect(elect).await.expect_err("not the leader").code(), Code::FailedPrecondition);
    assert!(node.control.leadership().borrow().i_am_leader);
}

#[tokio::test]
async fn a_follower_that_is_asked_to_propose_says_who_leads() {
    let cluster = TestCluster::bootstrapped(3).await;
    let leader = cluster.leader().await;
    let follower = &cluster.nodes[&cluster.follower().await];
    let command = encode(&stale());
    let request = ProposeRequest { source_node_id: 9, target_node_id: follower.id.get(), command: command.clone() };
    let refused = client(follower).await.propose(request).await.expect_err("it follows");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let said = refused.metadata().get("understudy-raft-leader").expect("it knows");
    assert_eq!(said.to_str().expect("ascii"), leader.to_string());

    let request = ProposeRequest { source_node_id: 9, target_node_id: leader.get(), command };
    let answer = client(&cluster.nodes[&leader]).await.propose(request).await.expect("it leads").into_inner();
    assert!(matches!(decode(&answer.outcome).expect("an outcome"), Outcome::Rejected { .. }));
}

#[tokio::test]
async fn a_node_that_was_away_for_long_is_given_a_snapshot() {
    let mut cluster = TestCluster::bootstrapped(3).await;
    let away = cluster.follower().await;
    cluster.stop(away).await;
    let leader = cluster.leader().await;
    cluster.nodes[&leader].propose(begin_election(1)).await;
    let commands = cluster.nodes[&leader].run(|control| async move {
        for _ in 0..60 {
            let batch = (0..25).map(|_| control.propose(stale()));
            for outcome in futures::future::join_all(batch).await {
                outcome.expect("committed");
            }
        }
    });
    commands.await;
    let leader_applied = cluster.nodes[&leader].control.state();
    let end = leader_applied.borrow().index;
    let mut metrics = cluster.nodes[&leader].control.core.raft.metrics();
    let purged = metrics.wait_for(|metrics| metrics.purged.is_some_and(|log_id| log_id.index > 100));
    timeout(PATIENCE, purged).await.expect("the log was cut in time").expect("watched");
    cluster.restart(away).await;
    let back = &cluster.nodes[&away].control;
    until(&back.state(), "it caught up", |applied| applied.index >= end).await;
    assert_eq!(back.state().borrow().state, leader_applied.borrow().state);
    assert!(back.core.raft.metrics().borrow().snapshot.is_some_and(|log_id| log_id.index > 100));

    // What it was given is on its disk.
    cluster.stop(away).await;
    cluster.restart(away).await;
    let back = &cluster.nodes[&away].control;
    until(&back.state(), "it is there again", |applied| applied.index >= end).await;
}
