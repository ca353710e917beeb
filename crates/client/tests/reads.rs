//! Reads against fake nodes: sessions, who answers, and what becomes of a read when a node does not.

#[allow(dead_code, reason = "shared with the other tests of the client, which use the rest of it")]
mod fake;

use std::time::Duration;

use fake::Cluster;
use understudy_client::{Client, ClientError, Options, ReadOptions, ReadPreference, Scan};
use understudy_rpc::convert;
use understudy_rpc::error::RpcError;
use understudy_rpc::v1;
use understudy_types::{Lsn, Position, SessionToken, SystemId, TimelineId};

fn options(deadline_ms: u64) -> Options {
    Options {
        deadline: Duration::from_millis(deadline_ms),
        attempt_timeout: Duration::from_millis(500),
        connect_timeout: Duration::from_millis(500),
        ..Options::default()
    }
}

async fn client(endpoints: Vec<String>) -> Client {
    Client::connect(endpoints, options(20_000)).await.expect("endpoints")
}

fn at(timeline: u32, lsn: u64) -> Position {
    Position::new(TimelineId::new(timeline), Lsn::new(lsn))
}

fn too_stale() -> RpcError {
    RpcError::too_stale("the read", 100, Some(900), None)
}

#[tokio::test]
async fn eventual_reads_take_turns_over_all_that_stream() {
    let cluster = Cluster::start(4, Some(0));
    cluster.lags(3);
    // One endpoint is enough: the others are learnt.
    let client = client(vec![cluster.address(1)]).await;
    client.put("k", "v").await.expect("a commit");
    for _ in 0..6 {
        let read = client.read("k", ReadOptions::eventual()).await.expect("a read");
        assert_eq!(read.found.expect("a value").value, "v");
    }
    assert_eq!([0, 1, 2, 3].map(|node| cluster.gets_at(node)), [2, 2, 2, 0]);
}

#[tokio::test]
async fn members_whose_advertised_names_lead_nowhere_answer_at_the_given_endpoints() {
    let cluster = Cluster::start(3, Some(0));
    for (node, name) in ["a", "b", "c"].iter().enumerate() {
        cluster.advertises(node, &format!("{name}.invalid:7400"));
    }
    let client = Client::connect(cluster.addresses(), options(5_000)).await.expect("endpoints");
    let session = client.session();
    session.put("k", "v").await.expect("a commit");
    for _ in 0..6 {
        let read = session.get("k").await.expect("a read");
        assert_eq!(read.found.expect("a value").value, "v");
    }
    assert_eq!([0, 1, 2].map(|node| cluster.gets_at(node)), [2, 2, 2]);
    // A preference means the members, wherever they answer.
    for _ in 0..4 {
        let standby = ReadOptions::eventual().preference(ReadPreference::PreferStandby);
        client.read("k", standby).await.expect("a read");
    }
    assert_eq!(cluster.gets_at(0), 2);
    // The old primary redirects to a name that leads nowhere; the member is known by where it answered.
    cluster.promote(1);
    session.put("k", "w").await.expect("a commit");
    assert_eq!(cluster.commits_at(1).len(), 1);
}

#[tokio::test]
async fn one_given_endpoint_is_enough_though_the_names_lead_nowhere() {
    let cluster = Cluster::start(3, Some(0));
    for (node, name) in ["a", "b", "c"].iter().enumerate() {
        cluster.advertises(node, &format!("{name}.invalid:7400"));
    }
    let client = Client::connect(vec![cluster.address(1)], options(5_000)).await.expect("endpoints");
    for _ in 0..4 {
        client.read("k", ReadOptions::eventual()).await.expect("a read");
    }
    assert_eq!([0, 1, 2].map(|node| cluster.gets_at(node)), [0, 4, 0]);
}

#[tokio::test]
async fn an_endpoint_that_did_not_say_who_it_is_is_asked_when_no_other_answers() {
    let cluster = Cluster::start(2, Some(0));
    cluster.advertises(0, "a.invalid:7400");
    cluster.advertises(1, "b.invalid:7400");
    cluster.freeze(1);
    let client = Client::connect(cluster.addresses(), options(5_000)).await.expect("endpoints");
    client.read("k", ReadOptions::eventual()).await.expect("a read");
    cluster.thaw(1);
    cluster.refuse_reads(0, (0..1000).map(|_| too_stale()));
    let bounded = ReadOptions::eventual().max_staleness(Duration::from_millis(100));
    client.read("k", bounded).await.expect("a read of the one that was frozen");
    assert_eq!(cluster.gets_at(1), 1);
}

/// Three nodes, of which the first is cut off and answers at once, and the others have gone on, and take a little longer.
fn with_a_stale_primary() -> Cluster {
    let cluster = Cluster::start(3, Some(0));
    cluster.cut_off(0);
    cluster.promote(1);
    for node in [1, 2] {
        cluster.status_takes(node, Duration::from_millis(50));
    }
    cluster
}

#[tokio::test]
async fn a_stale_primary_that_answers_first_is_not_believed() {
    let cluster = with_a_stale_primary();
    let client = Client::connect(cluster.addresses(), options(5_000)).await.expect("endpoints");
    for _ in 0..4 {
        client.read("k", ReadOptions::eventual()).await.expect("a read");
    }
    assert_eq!([0, 1, 2].map(|node| cluster.gets_at(node)), [0, 2, 2]);
}

#[tokio::test]
async fn a_stale_primary_is_left_though_it_alone_was_given() {
    let cluster = with_a_stale_primary();
    cluster.stands_still(0);
    let writer = Client::connect(vec![cluster.address(1)], options(5_000)).await.expect("endpoints").session();
    writer.put("k", "v").await.expect("a commit");
    let token = writer.token().expect("a token");

    let client = Client::connect(vec![cluster.address(0)], options(3_000)).await.expect("endpoints");
    let read = client.session().resume(token).get("k").await.expect("a read of one that is not stale");
    assert_eq!(read.found.expect("a value").value, "v");
    let before = cluster.gets_at(0);
    client.read("k", ReadOptions::eventual()).await.expect("a read");
    assert_eq!(cluster.gets_at(0), before);
}

#[tokio::test]
async fn a_preference_is_kept_to() {
    let mut cluster = Cluster::start(3, Some(0));
    let client = client(cluster.addresses()).await;
    client.put("k", "v").await.expect("a commit");
    let read = |preference| client.read("k", ReadOptions::eventual().preference(preference));
    for _ in 0..4 {
        read(ReadPreference::PreferStandby).await.expect("a read");
    }
    assert_eq!(cluster.gets_at(0), 0);
    for _ in 0..4 {
        read(ReadPreference::Primary).await.expect("a read");
    }
    assert_eq!(cluster.gets_at(0), 4);
    cluster.kill(1);
    cluster.kill(2);
    read(ReadPreference::PreferStandby).await.expect("a read of the primary, as no standby is left");
    assert_eq!(cluster.gets_at(0), 5);
}

#[tokio::test]
async fn a_node_that_refuses_or_is_frozen_is_passed_over_for_a_while() {
    let cluster = Cluster::start(3, Some(0));
    let client = client(cluster.addresses()).await;
    client.put("k", "v").await.expect("a commit");
    cluster.refuse_reads(1, (0..100).map(|_| too_stale()));
    cluster.freeze(2);
    let bounded = ReadOptions::eventual().max_staleness(Duration::from_millis(100));
    for _ in 0..3 {
        client.read("k", bounded).await.expect("a read");
    }
    // Passed over: they are asked once each, and not again at once.
    let before = cluster.gets_at(1);
    assert!((1..=2).contains(&before), "{before}");
    for _ in 0..5 {
        client.read("k", bounded).await.expect("a read");
    }
    assert!(cluster.gets_at(0) >= 8, "{}", cluster.gets_at(0));
    assert_eq!(cluster.reads_at(0)[0].max_staleness_ms, Some(100));
}

#[tokio::test]
async fn a_session_sees_its_own_writes_on_whatever_node() {
    let cluster = Cluster::start(3, Some(0));
    let client = client(cluster.addresses()).await;
    let session = client.session().preference(ReadPreference::PreferStandby);
    session.put("k", "1").await.expect("a commit");
    cluster.stands_still(1);
    session.put("k", "2").await.expect("a commit");
    for _ in 0..4 {
        let read = session.get("k").await.expect("a read");
        assert_eq!(read.found.expect("a value").value, "2", "never from the one that stands still");
    }
    let token = session.token().expect("a token");
    let asked = cluster.reads_at(2).last().expect("a read").clone();
    assert_eq!(asked.token, convert::token_bytes(token));
    assert_eq!(asked.consistency, v1::Consistency::Session as i32);
    // Somebody else goes on with it, and with a new session the past may be seen.
    let resumed = client.session().resume(token).preference(ReadPreference::PreferStandby);
    assert_eq!(resumed.get("k").await.expect("a read").found.expect("a value").value, "2");
}

#[tokio::test]
async fn a_session_over_a_failover_asks_for_the_older_commit_first() {
    let cluster = Cluster::start(2, Some(0));
    let client = client(cluster.addresses()).await;
    let session = client.session();
    let first = session.put("k", "1").await.expect("a commit").position;
    cluster.promote(1);
    let second = session.put("k", "2").await.expect("a commit").position;
    assert_eq!((first.timeline.get(), second.timeline.get()), (1, 2));
    session.get("k").await.expect("a read");
    let asked: Vec<Position> = (0..2)
        .flat_map(|node| cluster.reads_at(node))
        .map(|read| convert::token(&read.token).expect("well-formed").expect("a token").position)
        .collect();
    assert_eq!(asked, [first], "the answer is at or beyond the second commit: one read is enough");
    assert_eq!(session.token().map(|token| token.position.timeline.get()), Some(2));
}

#[tokio::test]
async fn what_was_lost_in_a_failover_is_said_and_not_retried() {
    let cluster = Cluster::start(2, Some(0));
    let client = client(cluster.addresses()).await;
    let session = client.session();
    session.put("k", "1").await.expect("a commit");
    let lost = || RpcError::position_abandoned("the read", at(1, 9), Some(Lsn::new(5)), TimelineId::new(2));
    for node in 0..2 {
        cluster.refuse_reads(node, [lost()]);
    }
    match session.get("k").await {
        Err(ClientError::Abandoned { message }) => assert!(message.contains("new session"), "{message}"),
        other => panic!("not abandoned: {other:?}"),
    }
    assert_eq!(cluster.gets_at(0) + cluster.gets_at(1), 1);
    session.reset();
    assert_eq!(session.token(), None);
}

#[tokio::test]
async fn no_node_is_fresh_enough_until_the_deadline() {
    let cluster = Cluster::start(2, Some(0));
    for node in 0..2 {
        cluster.refuse_reads(node, (0..1000).map(|_| too_stale()));
    }
    let client = Client::connect(cluster.addresses(), options(400)).await.expect("endpoints");
    let bounded = ReadOptions::eventual().max_staleness(Duration::from_millis(100));
    match client.read("k", bounded).await {
        Err(ClientError::Unavailable { why }) => assert!(why.contains("900 ms old"), "{why}"),
        other => panic!("not unavailable: {other:?}"),
    }
}

#[tokio::test]
async fn a_position_and_a_token_go_out_as_they_were_given() {
    let cluster = Cluster::start(1, Some(0));
    let client = client(cluster.addresses()).await;
    client.read("k", ReadOptions::at(at(3, 77))).await.expect("a read");
    let token = SessionToken::new(SystemId::new(0xaa), at(1, 5));
    client.read("k", ReadOptions::linearizable().token(token)).await.expect("a read");
    let reads = cluster.reads_at(0);
    assert_eq!(reads[0].at, Some(v1::Position { timeline: 3, lsn: 77 }));
    assert_eq!(reads[0].consistency, v1::Consistency::At as i32);
    assert_eq!(reads[1].token, convert::token_bytes(token));
    assert_eq!(reads[1].consistency, v1::Consistency::Linearizable as i32);
}

#[tokio::test]
async fn endpoints_of_two_clusters_are_refused_before_anything_is_written() {
    let cluster = Cluster::start(2, Some(0));
    cluster.is_foreign(1);
    let client = client(cluster.addresses()).await;
    for _ in 0..2 {
        match client.put("k", "v").await {
            Err(ClientError::Invalid { message }) => {
                let both = ["00000000000000aa", "00000000000000bb"];
                assert!(both.iter().all(|id| message.contains(id)), "{message}");
            }
            other => panic!("not refused: {other:?}"),
        }
    }
    assert_eq!(cluster.done(), 0);
    assert!(matches!(client.read("k", ReadOptions::eventual()).await, Err(ClientError::Invalid { .. })));
    assert!(matches!(client.scan(Scan::all()).await, Err(ClientError::Invalid { .. })));
}
