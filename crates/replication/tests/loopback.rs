//! The shells over real gRPC on loopback, with real files: what a standby ends up with is, byte for byte, what its
//! upstream has.

mod support;

use std::time::Duration;

use support::*;
use understudy_replication::{FetchConfig, FetchError, FollowConfig, ReceiverTiming, SenderSettings, fetch};
use understudy_types::{Incarnation, Lsn, NodeId, TimelineHistory, TimelineId, TimelineSwitch};

use tokio_util::sync::CancellationToken;

const MIB: usize = 1 << 20;

/// A primary on timeline 1 and its server.
async fn primary(
    ring_bytes_max: usize,
) -> (std::sync::Arc<TestNode>, std::sync::Arc<TestUpstream>, Server, TimelineHistory) {
    let node = TestNode::with_ring(1, ring_bytes_max);
    let history = node.promote(&TimelineHistory::new());
    let hooks = TestUpstream::primary(&node, &history);
    let server = Server::start(&hooks).await;
    (node, hooks, server, history)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_standby_catches_up_from_files_and_streams_the_live_tail() {
    // INV-BYTES. Only the last 64 KiB are in memory: the first six segments come from files.
    let (upstream, hooks, server, history) = primary(64 << 10).await;
    upstream.fill(6 * MIB, 40_000);
    upstream.wal.flush().unwrap();
    let standby = TestNode::new(2);
    let mut following = Following::start(&standby, standby.id, &server.address(), &history);
    following.streaming().await;
    assert!(following.status.borrow().last_received.is_some());
    // The live tail: each commit is acknowledged by itself.
    for number in 0..50 {
        let end = upstream.put(&format!("live-{number}"), vec![7; 300]);
        hooks.acked(standby.id, end).await;
    }
    let end = upstream.wal.flush().unwrap();
    flushed(&standby, end).await;
    assert_eq!(standby.wal.end(), upstream.wal.end());
    assert!(assert_same_segments(&upstream, &standby, end) >= 6);
    following.stop().await;
    hooks.until("the end of the connection", |c| c.values().all(|c| !c.connected)).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_safe_lsn_reaches_the_standby_without_data() {
    let (upstream, hooks, server, history) = primary(MIB).await;
    let end = upstream.put("a", "1");
    let standby = TestNode::new(2);
    let following = Following::start(&standby, standby.id, &server.address(), &history);
    hooks.acked(standby.id, end).await;
    upstream.safe.send_replace(end);
    until("the safe lsn", &mut standby.safe.subscribe(), |safe| *safe == end).await;
    following.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_larger_than_a_frame_arrive_whole() {
    let (upstream, hooks, server, history) = primary(MIB).await;
    let standby = TestNode::new(2);
    let following = Following::start(&standby, standby.id, &server.address(), &history);
    upstream.fill(4 * 900_000, 900_000);
    let end = upstream.put("last", "1");
    hooks.acked(standby.id, end).await;
    upstream.wal.flush().unwrap();
    assert!(assert_same_segments(&upstream, &standby, end) >= 4);
    following.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_stream_is_taken_up_again_where_it_was() {
    let (upstream, hooks, server, history) = primary(64 << 10).await;
    let relay = Relay::start(server.address).await;
    let standby = TestNode::new(2);
    let following = Following::start(&standby, standby.id, &relay.address(), &history);
    for round in 0..5 {
        let end = upstream.fill(MIB / 2, 10_000);
        if round % 2 == 0 {
            hooks.acked(standby.id, end).await;
        }
        let last = hooks.connections().borrow().keys().next_back().copied();
        relay.cut();
        // The next one may be there before this task sees that one is gone.
        let over = hooks.until("the cut to be noticed", |c| c.iter().all(|(id, c)| Some(*id) > last || !c.connected));
        over.await;
    }
    let end = upstream.put("last", "1");
    hooks.acked(standby.id, end).await;
    upstream.wal.flush().unwrap();
    assert!(assert_same_segments(&upstream, &standby, end) >= 2);
    let connections = hooks.until("one connection", |c| c.values().filter(|c| c.connected).count() == 1).await;
    assert!(connections.len() >= 4, "every cut of a stream that acknowledged ended a connection: {connections:?}");
    following.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_follows_over_forks_in_mid_segment() {
    let (first, hooks, server, history) = primary(MIB).await;
    let (second, third) = (TestNode::new(2), TestNode::new(3));
    let follows_second = Following::start(&second, second.id, &server.address(), &history);
    let follows_third = Following::start(&third, third.id, &server.address(), &history);
    let end = first.fill(MIB + MIB / 3, 5_000);
    hooks.acked(second.id, end).await;
    hooks.acked(third.id, end).await;
    follows_second.stop().await;
    follows_third.stop().await;
    server.stop().await;

    // The second is promoted; the third, which has the same end, follows it, and so does an empty one.
    let history = second.promote(&history);
    second.fill(MIB, 5_000);
    let hooks = TestUpstream::primary(&second, &history);
    let server = Server::start(&hooks).await;
    let fourth = TestNode::new(4);
    let follows_third = Following::start(&third, third.id, &server.address(), &history);
    let follows_fourth = Following::start(&fourth, fourth.id, &server.address(), &history);
    let end = second.put("on the second timeline", "1");
    hooks.acked(third.id, end).await;
    hooks.acked(fourth.id, end).await;
    second.wal.flush().unwrap();
    for standby in [&third, &fourth] {
        assert_eq!(standby.wal.end(), second.wal.end());
        assert!(assert_same_segments(&second, standby, end) >= 3);
    }
    follows_third.stop().await;
    follows_fourth.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_waits_for_the_cluster_state() {
    let (upstream, hooks, server, known) = primary(MIB).await;
    let standby = TestNode::new(2);
    let following = Following::start(&standby, standby.id, &server.address(), &known);
    let end = upstream.put("a", "1");
    hooks.acked(standby.id, end).await;
    following.stop().await;
    server.stop().await;

    let history = upstream.promote(&known);
    let hooks = TestUpstream::primary(&upstream, &history);
    let server = Server::start(&hooks).await;
    let config = config(standby.id, &server.address(), history.latest());
    let mut following = Following::start_with(&standby, config, &known);
    following.problem("waiting for the cluster state to say where timeline 2 begins").await;
    following.history.send_replace(history);
    hooks.acked(standby.id, upstream.wal.end().lsn).await;
    assert_eq!(following.status.borrow().problem, None);
    following.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_whose_wal_left_the_chain_must_rejoin() {
    let (upstream, _, server, history) = primary(MIB).await;
    let standby = TestNode::new(2);
    standby.promote(&TimelineHistory::new());
    standby.fill(100_000, 1_000);
    let mut following = Following::start(&standby, standby.id, &server.address(), &history);
    following.problem("beyond the end of this node's WAL").await;
    following.stop().await;
    server.stop().await;

    let history = upstream.promote(&history);
    let hooks = TestUpstream::primary(&upstream, &history);
    let server = Server::start(&hooks).await;
    let mut following = Following::start(&standby, standby.id, &server.address(), &history);
    following.problem("it must rejoin (truncate its WAL to").await;
    standby.wal.truncate(history.position(standby.wal.end())).unwrap();
    following.stop().await;
    let following = Following::start(&standby, standby.id, &server.address(), &history);
    hooks.acked(standby.id, upstream.wal.end().lsn).await;
    following.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_standby_does_not_grow_the_primary() {
    const RING: usize = 512 << 10;
    let (upstream, hooks, server, history) = primary(RING).await;
    let relay = Relay::start(server.address).await;
    let standby = TestNode::new(2);
    let following = Following::start(&standby, standby.id, &relay.address(), &history);
    hooks.acked(standby.id, upstream.wal.end().lsn).await;
    relay.freeze(true);
    // Much more than every window and buffer between the two.
    for _ in 0..64 {
        upstream.fill(MIB, 50_000);
        let (wal, flush) = (upstream.wal.clone(), upstream.wal.end().lsn);
        tokio::task::spawn_blocking(move || wal.flush()).await.unwrap().unwrap();
        assert!(*upstream.wal.flushed().borrow() >= flush);
        assert!(upstream.wal.memory_bytes() <= RING + MIB, "the ring holds {}", upstream.wal.memory_bytes());
    }
    relay.freeze(false);
    let end = upstream.put("last", "1");
    hooks.acked(standby.id, end).await;
    upstream.wal.flush().unwrap();
    assert!(assert_same_segments(&upstream, &standby, end) >= 64);
    following.stop().await;
    server.stop().await;
}

fn quick() -> ReceiverTiming {
    ReceiverTiming { timeout_ms: 300, status_interval_ms: 100, connect_timeout_ms: 300, ..ReceiverTiming::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_notice_a_frozen_peer() {
    let upstream = TestNode::new(1);
    let history = upstream.promote(&TimelineHistory::new());
    let hooks = TestUpstream::primary(&upstream, &history);
    let server = Server::start_with(&hooks, SenderSettings { timeout_ms: 300, ..SenderSettings::default() }).await;
    let relay = Relay::start(server.address).await;
    let standby = TestNode::new(2);
    let config = config(standby.id, &relay.address(), history.latest());
    let mut following = Following::start_at(&standby, config, steady(quick()), &history);
    following.streaming().await;
    relay.freeze(true);
    following.until("the standby to notice", |status| status.problem.is_some()).await;
    hooks.until("the primary to notice", |c| c.values().all(|c| !c.connected)).await;
    relay.freeze(false);
    let end = upstream.put("a", "1");
    hooks.acked(standby.id, end).await;
    following.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quiet_streams_stay_for_longer_than_the_timeouts() {
    let upstream = TestNode::new(1);
    let history = upstream.promote(&TimelineHistory::new());
    let hooks = TestUpstream::primary(&upstream, &history);
    // Half of it is what a stall of this machine may last.
    let server = Server::start_with(&hooks, SenderSettings { timeout_ms: 2_000, ..SenderSettings::default() }).await;
    let standby = TestNode::new(2);
    // No status of its own accord: the pings of both sides alone keep the stream.
    let timing = ReceiverTiming { timeout_ms: 2_000, status_interval_ms: 0, ..ReceiverTiming::default() };
    let config = config(standby.id, &server.address(), history.latest());
    let mut following = Following::start_at(&standby, config, steady(timing), &history);
    following.streaming().await;
    hooks.until("the stream", |c| c.len() == 1).await;
    // There is no event that says "nothing happened": the time itself is the subject.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let connections = hooks.until("connections", |_| true).await;
    assert_eq!(connections.len(), 1, "{connections:?}");
    assert!(connections[&1].connected);
    following.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_steps_down_says_so() {
    let (upstream, hooks, server, history) = primary(MIB).await;
    let standby = TestNode::new(2);
    let mut following = Following::start(&standby, standby.id, &server.address(), &history);
    hooks.acked(standby.id, upstream.wal.end().lsn).await;
    hooks.step_down();
    following.problem("").await;
    hooks.until("the end of the connection", |c| c.values().all(|c| !c.connected)).await;
    following.problem("this node is not an open primary").await;
    following.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_server_ends_its_streams() {
    let (upstream, hooks, server, history) = primary(MIB).await;
    let standby = TestNode::new(2);
    let mut following = Following::start(&standby, standby.id, &server.address(), &history);
    hooks.acked(standby.id, upstream.wal.end().lsn).await;
    server.stop().await;
    following.until("the end to be noticed", |status| status.problem.is_some()).await;
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_log_serves_nobody() {
    let (_upstream, hooks, server, history) = primary(MIB).await;
    hooks.forget_source();
    let standby = TestNode::new(2);
    let mut following = Following::start(&standby, standby.id, &server.address(), &history);
    following.problem("this node has no wal").await;
    following.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn walsenders_are_bounded_and_a_standby_replaces_its_own() {
    let upstream = TestNode::new(1);
    let history = upstream.promote(&TimelineHistory::new());
    let hooks = TestUpstream::primary(&upstream, &history);
    let server = Server::start_with(&hooks, SenderSettings { senders_max: 1, ..SenderSettings::default() }).await;
    let (second, third) = (TestNode::new(2), TestNode::new(3));
    let mut follows_second = Following::start(&second, second.id, &server.address(), &history);
    follows_second.streaming().await;
    let mut follows_third = Following::start(&third, third.id, &server.address(), &history);
    follows_third.problem("all 1 walsenders (max_wal_senders) of this node are in use").await;
    // The same node again, as after a cut that the primary has not noticed: the older stream gives way.
    let again = TestNode::new(2);
    let follows_again = Following::start(&again, again.id, &server.address(), &history);
    follows_second.problem("").await;
    follows_second.stop().await;
    follows_third.stop().await;
    hooks.acked(again.id, upstream.wal.end().lsn).await;
    follows_again.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn max_wal_senders_changes_for_the_next_stream_and_leaves_the_others_alone() {
    let upstream = TestNode::new(1);
    let history = upstream.promote(&TimelineHistory::new());
    let hooks = TestUpstream::primary(&upstream, &history);
    let (settings, seen) = tokio::sync::watch::channel(SenderSettings { senders_max: 1, ..SenderSettings::default() });
    let server = Server::start_under(&hooks, seen).await;
    let (second, third) = (TestNode::new(2), TestNode::new(3));
    let mut follows_second = Following::start(&second, second.id, &server.address(), &history);
    follows_second.streaming().await;
    let mut follows_third = Following::start(&third, third.id, &server.address(), &history);
    follows_third.problem("all 1 walsenders (max_wal_senders)").await;
    settings.send_replace(SenderSettings { senders_max: 2, ..SenderSettings::default() });
    follows_third.streaming().await;
    // Fewer than there are: nobody is thrown out, and nobody else comes in.
    settings.send_replace(SenderSettings { senders_max: 1, ..SenderSettings::default() });
    hooks.acked(second.id, upstream.put("a", "1")).await;
    follows_third.stop().await;
    let mut again = Following::start(&third, third.id, &server.address(), &history);
    again.problem("all 1 walsenders (max_wal_senders)").await;
    follows_second.stop().await;
    again.streaming().await;
    again.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_walreceiver_takes_another_timeout_while_it_streams() {
    let (_upstream, _hooks, server, history) = primary(MIB).await;
    let relay = Relay::start(server.address).await;
    let standby = TestNode::new(2);
    // It would never give a silent upstream up.
    let patient = ReceiverTiming { timeout_ms: 0, status_interval_ms: 0, ..ReceiverTiming::default() };
    let (pace, seen) = tokio::sync::watch::channel(patient);
    let config = config(standby.id, &relay.address(), history.latest());
    let mut following = Following::start_at(&standby, config, seen, &history);
    following.streaming().await;
    relay.freeze(true);
    pace.send_replace(quick());
    following.until("the standby to notice", |status| status.problem.is_some()).await;
    relay.freeze(false);
    following.streaming().await;
    following.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_no_member_is_refused() {
    let (_upstream, _hooks, server, history) = primary(MIB).await;
    let stranger = TestNode::new(99);
    let mut following = Following::start(&stranger, stranger.id, &server.address(), &history);
    following.problem("is not a member that this node streams to").await;
    following.stop().await;
    server.stop().await;
}

fn fetch_config(node: &TestNode, address: String, election: u32, until: Lsn) -> FetchConfig {
    FetchConfig {
        source_address: address,
        system_id: SYSTEM,
        format: FORMAT,
        node: node.id,
        incarnation: Incarnation::new(5),
        election: TimelineId::new(election),
        until,
        timing: ReceiverTiming::default(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_winner_fetches_over_a_fork_what_it_lacks() {
    // The source wrote on timelines 1 and 2, and more than the winner shall have.
    let source = TestNode::with_ring(1, 64 << 10);
    let history = source.promote(&TimelineHistory::new());
    source.fill(MIB + MIB / 2, 9_000);
    let history = source.promote(&history);
    let until = source.fill(MIB, 9_000);
    source.put("not asked for", "1");
    source.wal.flush().unwrap();
    let hooks = TestUpstream::sealed(&source, &history, TimelineId::new(3));
    let server = Server::start(&hooks).await;

    let winner = TestNode::new(2);
    let cancel = CancellationToken::new();
    let config = fetch_config(&winner, server.address(), 3, until);
    let end =
        within("the fetch", fetch(winner.clone(), config.clone(), history.clone(), cancel.clone())).await.unwrap();
    assert_eq!(end, until);
    assert_eq!(winner.wal.end().lsn, until);
    assert!(assert_same_segments(&source, &winner, until) >= 3);
    assert_eq!(*winner.safe.borrow(), Lsn::INVALID, "what is safe is for the promotion to say");
    assert!(hooks.until("connections", |_| true).await.is_empty(), "a fetch is no standby");
    // Again: there is nothing left to fetch.
    let end = within("the fetch", fetch(winner.clone(), config, history, cancel)).await.unwrap();
    assert_eq!(end, until);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_fails_says_why() {
    let source = TestNode::new(1);
    let history = source.promote(&TimelineHistory::new());
    let until = source.fill(10_000, 1_000);
    let hooks = TestUpstream::sealed(&source, &history, TimelineId::new(2));
    let server = Server::start(&hooks).await;
    let winner = TestNode::new(2);
    let attempt = async |election, until, cancel: CancellationToken| {
        let config = fetch_config(&winner, server.address(), election, until);
        within("the fetch", fetch(winner.clone(), config, history.clone(), cancel))
            .await
            .expect_err("a failure")
            .to_string()
    };
    let running = CancellationToken::new();
    assert!(attempt(3, until, running.clone()).await.contains("sealed for timeline 2"));
    assert!(attempt(2, until.advance(8), running.clone()).await.contains("ask another node"));
    running.cancel();
    assert!(attempt(2, until, running).await.contains("cancelled"));
    let address = server.address();
    server.stop().await;
    let config = fetch_config(&winner, address, 2, until);
    let error = within("the fetch", fetch(winner.clone(), config, history.clone(), CancellationToken::new())).await;
    assert!(matches!(error, Err(FetchError::Failed { .. })), "{error:?}");
    assert_eq!(winner.wal.end().timeline, TimelineId::NONE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_below_the_seal_is_not_followed() {
    // INV-FENCED.
    let (upstream, hooks, server, history) = primary(MIB).await;
    upstream.put("a", "1");
    let standby = TestNode::new(2);
    let sealed = TimelineId::new(2);
    let config = FollowConfig { sealed, ..config(standby.id, &server.address(), history.latest()) };
    let mut following = Following::start_with(&standby, config, &history);
    following.problem("this node has sealed for timeline 2").await;
    let connections = hooks.until("connections", |_| true).await;
    assert!(connections.values().all(|c| c.acked.flush == Lsn::INVALID), "{connections:?}");
    assert_eq!(standby.wal.end().timeline, TimelineId::NONE);
    following.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_record_is_not_appended() {
    // The upstream serves bytes of another chain as if they were of timeline 1: the checksums say otherwise.
    let upstream = TestNode::new(1);
    let history = upstream.promote(&upstream.promote(&TimelineHistory::new()));
    upstream.put("a", "1");
    let mut wrong = TimelineHistory::new();
    let log_start = SIZE.log_start();
    let switch = TimelineSwitch { timeline: TimelineId::FIRST, parent: TimelineId::NONE, switch_lsn: log_start };
    wrong.push(switch).unwrap();
    assert_ne!(wrong, history);
    let hooks = TestUpstream::primary(&upstream, &wrong);
    let server = Server::start(&hooks).await;
    let standby = TestNode::new(2);
    let mut following = Following::start(&standby, standby.id, &server.address(), &wrong);
    following.problem("the received WAL was not accepted").await;
    assert_eq!(standby.wal.end().lsn, log_start);
    following.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_needs_damaged_wal_is_told_so_and_seeded_if_the_node_says_so() {
    // STR-4. A byte of the upstream's second segment has flipped on its disk, and is not in memory any more.
    let upstream = TestNode::with_ring(1, 0);
    let history = upstream.promote(&TimelineHistory::new());
    upstream.fill(3 * MIB, 40_000);
    upstream.wal.flush().unwrap();
    let segment = "000000010000000000000002";
    let flipped = SIZE.start_of(understudy_types::SegmentNo::new(2)).advance(SIZE.get() / 2);
    flip_a_byte(&upstream.dir.path().join("wal").join(segment), SIZE.get() / 2);
    let hooks = TestUpstream::primary(&upstream, &history);
    let server = Server::start(&hooks).await;
    let standby = TestNode::new(2);
    let mut following = Following::start(&standby, standby.id, &server.address(), &history);
    // The node may have another remedy: the standby asks again.
    following.problem(&format!("WAL segment {segment} is damaged on this node at ")).await;
    assert_eq!(following.status.borrow().wal_gone, None);
    hooks.seed_past_damage();
    let status = following.until("the refusal", |status| status.wal_gone.is_some()).await;
    assert_eq!(status.wal_gone.as_deref(), Some(segment));
    let problem = status.problem.expect("there is no stream");
    assert!(problem.starts_with(&format!("requested WAL segment {segment} is damaged on this node at ")), "{problem}");
    let (node, at) = hooks.damage().remove(0);
    assert!(node == standby.id && at <= flipped && flipped < at.advance(50_000), "{node} at {at}");
    assert_eq!(standby.wal.end().lsn, at, "what lies before it is good");
    following.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_is_no_prefix_makes_nobody_damaged() {
    // The standby's end lies within a record of the upstream, which reads it from its files.
    let upstream = TestNode::with_ring(1, 0);
    let history = upstream.promote(&TimelineHistory::new());
    upstream.put("a", "1");
    upstream.put("b", vec![7; 100_000]);
    upstream.wal.flush().unwrap();
    let standby = TestNode::new(2);
    standby.wal.begin_timeline(&upstream.wal.history()).unwrap();
    standby.put("other", vec![8; 50_000]);
    standby.wal.flush().unwrap();
    let hooks = TestUpstream::primary(&upstream, &history);
    let server = Server::start(&hooks).await;
    let mut following = Following::start(&standby, standby.id, &server.address(), &history);
    following.problem("it is not a prefix of this node's").await;
    assert_eq!(hooks.damage(), []);
    following.stop().await;
    server.stop().await;
}

fn flip_a_byte(path: &std::path::Path, at: u64) {
    use std::os::unix::fs::FileExt;

    let file = std::fs::File::options().read(true).write(true).open(path).expect("a segment");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte of it");
    file.write_all_at(&[byte[0] ^ 1], at).expect("written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_where_nobody_listens_is_named() {
    let history = TestNode::new(1).promote(&TimelineHistory::new());
    let standby = TestNode::new(2);
    let mut following = Following::start(&standby, NodeId::new(2), "127.0.0.1:1", &history);
    following.problem("no connection to 127.0.0.1:1").await;
    following.stop().await;
    let mut following = Following::start(&standby, NodeId::new(2), "not an address", &history);
    following.problem("not an address").await;
    following.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_whose_wal_is_gone_is_told_so_and_one_that_was_seeded_streams() {
    // STR-4. The upstream's own log begins in the middle: it was seeded itself.
    let (origin, _hooks, origin_server, history) = primary(MIB).await;
    let at = {
        origin.fill(3 * MIB, 40_000);
        origin.wal.flush().unwrap();
        origin.wal.end()
    };
    let upstream = seeded_from(&origin, 2, at);
    assert!(upstream.wal.first() > SIZE.log_start());
    let history = upstream.promote(&history);
    let hooks = TestUpstream::primary(&upstream, &history);
    let server = Server::start(&hooks).await;

    let empty = TestNode::new(3);
    let mut following = Following::start(&empty, empty.id, &server.address(), &history);
    let status = following.until("the refusal", |status| status.wal_gone.is_some()).await;
    assert_eq!(status.wal_gone.as_deref(), Some("000000010000000000000001"));
    let problem = status.problem.expect("there is no stream");
    assert!(
        problem.starts_with("requested WAL segment 000000010000000000000001 has already been removed"),
        "{problem}"
    );
    following.stop().await;

    let seeded = seeded_from(&upstream, 4, at);
    let mut following = Following::start(&seeded, seeded.id, &server.address(), &history);
    following.streaming().await;
    assert_eq!(following.status.borrow().wal_gone, None);
    let end = upstream.put("after the seeding", "1");
    hooks.acked(seeded.id, end).await;
    upstream.wal.flush().unwrap();
    assert_eq!(seeded.wal.end(), upstream.wal.end());
    assert!(assert_same_segments(&upstream, &seeded, end) >= 1);
    following.stop().await;
    server.stop().await;
    origin_server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_wal_is_removed_ends_with_the_same_words() {
    // STR-4: taken on, and then what it needs goes.
    let (upstream, hooks, server, history) = primary(64 << 10).await;
    let end = upstream.fill(4 * MIB, 40_000);
    upstream.wal.flush().unwrap();
    let wal = upstream.wal.clone();
    hooks.when_connected(move || {
        let removal = wal.remove_before(end, 2).expect("no fault");
        assert!(removal.recycled >= 1 && removal.recycled + removal.removed >= 4, "{removal:?}");
    });
    let standby = TestNode::new(2);
    let mut following = Following::start(&standby, standby.id, &server.address(), &history);
    let status = following.until("the end of the stream", |status| status.wal_gone.is_some()).await;
    assert_eq!(status.wal_gone.as_deref(), Some("000000010000000000000001"));
    let connections = hooks.until("the end of the connection", |c| c.values().all(|c| !c.connected)).await;
    assert_eq!(connections.len(), 1, "it was taken on once, and is refused since");
    assert_eq!(standby.wal.end().lsn, SIZE.log_start(), "nothing of what is not the log's was taken");
    following.stop().await;
    server.stop().await;
}
