//! The client against fake nodes: routing, failover, retries, and what each call comes to.

#[allow(dead_code, reason = "shared with the other tests, which use the rest of it")]
mod fake;

use std::time::{Duration, Instant};

use fake::{Cluster, Forwarder, Step};
use understudy_client::{Client, ClientError, Commit, Options, Scan};
use understudy_rpc::error::{RpcError, UnknownWhy};

fn options(deadline_ms: u64) -> Options {
    Options {
        deadline: Duration::from_millis(deadline_ms),
        attempt_timeout: Duration::from_millis(200),
        connect_timeout: Duration::from_millis(200),
        ..Options::default()
    }
}

async fn client(endpoints: Vec<String>) -> Client {
    Client::connect(endpoints, options(20_000)).await.expect("endpoints")
}

/// Most of the times it takes less than `limit`: a pause that the client makes is in every time, a stall of the machine not.
async fn takes_less_than(limit: Duration, once: impl AsyncFn() -> Duration) {
    let (mut quick, mut slow) = (0, Vec::new());
    while quick < 3 {
        let time = once().await;
        if time < limit {
            quick += 1;
        } else {
            slow.push(time);
        }
        assert!(slow.len() < 3, "not less than {limit:?}: {slow:?}");
    }
}

#[tokio::test]
async fn one_standby_is_enough_to_find_the_primary() {
    let cluster = Cluster::start(3, Some(2));
    let client = client(vec![cluster.address(0)]).await;
    let outcome = client.put("k", "v").await.expect("a commit");
    assert_eq!((outcome.node_id.get(), outcome.position.timeline.get(), outcome.already_done), (3, 1, false));
    let read = client.get("k").await.expect("a read");
    assert_eq!(read.found.map(|found| (found.value, found.version)), Some(("v".into(), outcome.position)));
    assert_eq!(client.get("other").await.expect("a read").found, None);
    assert_eq!(cluster.commits_at(0).len(), 0, "the standby was asked for its status only");
}

#[tokio::test]
async fn a_redirect_is_followed() {
    let cluster = Cluster::start(2, Some(0));
    let client = client(cluster.addresses()).await;
    client.put("k", "1").await.expect("a commit");
    cluster.promote(1);
    let outcome = client.put("k", "2").await.expect("a commit");
    assert_eq!((outcome.node_id.get(), outcome.position.timeline.get()), (2, 2));
    assert_eq!(cluster.commits_at(0).len(), 2, "the old primary was tried once, and named the new one");
}

#[tokio::test]
async fn a_redirect_is_not_followed_to_a_balancer_behind_which_another_node_answers() {
    let cluster = Cluster::start(2, Some(0));
    let balancer = Forwarder::start(Some(cluster.address(1))).await;
    let advertised = Forwarder::start(None).await;
    cluster.advertises(1, &advertised.address());
    let client = Client::connect(vec![balancer.address()], options(5_000)).await.expect("endpoints");
    // So far the second node has answered behind the balancer only.
    client.put("k", "1").await.expect("a commit");
    balancer.turn_to(cluster.address(0));
    advertised.turn_to(cluster.address(1));
    cluster.promote(1);
    let outcome = client.put("k", "2").await.expect("a commit");
    assert_eq!((outcome.node_id.get(), outcome.position.timeline.get()), (2, 2));
    let refused = cluster.commits_at(0).len() - 1;
    assert!(refused <= 3, "the old primary was asked {refused} times, here and behind the balancer");
}

#[tokio::test]
async fn a_commit_waits_for_a_primary_and_goes_there_at_once() {
    takes_less_than(Duration::from_millis(500), async || {
        let cluster = Cluster::start(3, None);
        let client = client(cluster.addresses()).await;
        let commit = tokio::spawn({
            let client = client.clone();
            async move { client.put("k", "v").await }
        });
        let mut asked = cluster.asked.clone();
        asked.wait_for(|count| *count >= 20).await.expect("the nodes are asked again and again");
        assert!(!commit.is_finished());
        let opened = Instant::now();
        cluster.promote(1);
        let before = cluster.asked_at(1);
        let outcome = commit.await.expect("no panic").expect("a commit");
        let took = opened.elapsed();
        assert_eq!(outcome.node_id.get(), 2);
        // Its first answer is enough, if it does not come too late.
        let asked = cluster.asked_at(1) - before;
        assert!(asked <= 3, "the new primary was asked {asked} times");
        took
    })
    .await;
}

#[tokio::test]
async fn a_killed_primary_is_left_for_the_new_one() {
    let mut cluster = Cluster::start(3, Some(0));
    let client = client(cluster.addresses()).await;
    client.put("k", "1").await.expect("a commit");
    cluster.kill(0);
    let commit = tokio::spawn({
        let client = client.clone();
        async move { client.put("k", "2").await }
    });
    let mut asked = cluster.asked.clone();
    let before = *asked.borrow();
    asked.wait_for(|count| *count >= before + 4).await.expect("the others are asked");
    cluster.promote(2);
    assert_eq!(commit.await.expect("no panic").expect("a commit").node_id.get(), 3);
}

#[tokio::test]
async fn a_frozen_primary_is_raced_by_the_new_one() {
    takes_less_than(Duration::from_secs(2), async || {
        let cluster = Cluster::start(3, Some(0));
        let client = client(cluster.addresses()).await;
        client.put("k", "1").await.expect("a commit");
        cluster.freeze(0);
        cluster.promote(1);
        let began = Instant::now();
        let outcome = client.put("k", "2").await.expect("a commit");
        let took = began.elapsed();
        assert_eq!(outcome.node_id.get(), 2);
        assert_eq!(client.get("k").await.expect("a read").found.expect("a value").value, "2");
        took
    })
    .await;
}

#[tokio::test]
async fn a_slow_commit_is_waited_for_and_not_sent_twice() {
    let cluster = Cluster::start(2, Some(0));
    let client = client(cluster.addresses()).await;
    // Connected, with the primary known: the deadline is for the commit alone.
    client.put("k", "1").await.expect("a commit");
    cluster.script(0, [Step::Hang]);
    let commit = Commit::new().put("k", "v").deadline(Duration::from_millis(800));
    let id = commit.id();
    match client.commit(commit).await {
        Err(ClientError::Unknown { request_id, .. }) => assert_eq!(request_id, id),
        other => panic!("not unknown: {other:?}"),
    }
    assert_eq!(cluster.commits_at(0).len(), 2, "the first one, and this one once");
}

#[tokio::test]
async fn a_lost_reply_is_asked_for_with_the_same_request_id() {
    let cluster = Cluster::start(2, Some(0));
    let client = client(cluster.addresses()).await;
    cluster.script(0, [Step::DoThenLose]);
    let outcome = client.commit(Commit::new().put("k", "v").if_absent("k")).await.expect("a commit");
    assert!(outcome.already_done, "the first attempt had made it");
    assert_eq!(cluster.done(), 1);
    let ids = cluster.commits_at(0);
    assert_eq!(ids.len(), 2);
    assert_eq!(ids[0], ids[1]);
}

#[tokio::test]
async fn an_unknown_outcome_is_asked_for_until_it_is_known() {
    let cluster = Cluster::start(2, Some(0));
    let client = client(cluster.addresses()).await;
    let unknown = |why| Step::DoThenUnknown(RpcError::commit_outcome_unknown(None, why));
    cluster.script(0, [unknown(UnknownWhy::Deadline), unknown(UnknownWhy::StepDown)]);
    let outcome = client.put("k", "v").await.expect("a commit");
    assert!(outcome.already_done);
    assert_eq!(cluster.done(), 1);
    assert_eq!(cluster.commits_at(0).len(), 3);
}

#[tokio::test]
async fn a_full_queue_is_tried_again() {
    let cluster = Cluster::start(1, Some(0));
    let client = client(cluster.addresses()).await;
    cluster.script(0, (0..3).map(|_| Step::Refuse(RpcError::queue_full(64 << 20))));
    let outcome = client.put("k", "v").await.expect("a commit");
    assert!(!outcome.already_done);
    assert_eq!(cluster.commits_at(0).len(), 4);
}

#[tokio::test]
async fn a_failed_precondition_is_an_abort_and_not_tried_again() {
    let cluster = Cluster::start(1, Some(0));
    let client = client(cluster.addresses()).await;
    client.put("k", "v").await.expect("a commit");
    match client.commit(Commit::new().put("k", "w").if_absent("k")).await {
        Err(ClientError::Aborted { key, precondition, .. }) => {
            assert_eq!((key.as_str(), precondition.as_str()), ("k", "no value"))
        }
        other => panic!("not aborted: {other:?}"),
    }
    assert_eq!(cluster.commits_at(0).len(), 2);
}

#[tokio::test]
async fn an_abort_after_an_unanswered_attempt_is_unknown() {
    let cluster = Cluster::start(2, Some(0));
    let client = client(cluster.addresses()).await;
    client.put("k", "v").await.expect("a commit");
    // The first attempt is under way at a frozen node: nobody can say that it will not take effect.
    cluster.freeze(0);
    cluster.promote(1);
    let outcome = client.commit(Commit::new().put("k", "w").if_absent("k")).await;
    assert!(matches!(outcome, Err(ClientError::Unknown { .. })), "{outcome:?}");
}

#[tokio::test]
async fn what_was_never_sent_is_unavailable_and_not_unknown() {
    let mut cluster = Cluster::start(1, Some(0));
    cluster.kill(0);
    let client = Client::connect(cluster.addresses(), options(1_000)).await.expect("endpoints");
    match client.put("k", "v").await {
        Err(ClientError::Unavailable { why }) => assert!(why.contains(&cluster.address(0)), "{why}"),
        other => panic!("not unavailable: {other:?}"),
    }
}

#[tokio::test]
async fn no_primary_until_the_deadline_is_unavailable_and_says_why() {
    let cluster = Cluster::start(2, None);
    let client = Client::connect(cluster.addresses(), options(1_000)).await.expect("endpoints");
    // Connected: all that the deadline is for is that one of them answers.
    client.status().await;
    match client.put("k", "v").await {
        Err(ClientError::Unavailable { why }) => assert!(why.contains("no primary"), "{why}"),
        other => panic!("not unavailable: {other:?}"),
    }
    assert!(matches!(client.get("k").await, Err(ClientError::Unavailable { .. })));
}

#[tokio::test]
async fn a_stale_primary_is_left_for_the_later_timeline() {
    let cluster = Cluster::start(2, Some(0));
    let client = client(cluster.addresses()).await;
    client.put("k", "1").await.expect("a commit");
    cluster.misses_everything(0);
    cluster.promote(1);
    // It takes the commit and cannot confirm it; asked again, the node with the later timeline answers.
    cluster.script(0, [Step::Refuse(RpcError::not_confirmed("a commit", "no majority answers"))]);
    cluster.script(0, (0..100).map(|_| Step::Hang));
    let outcome = client.put("k", "2").await.expect("a commit");
    assert_eq!((outcome.node_id.get(), outcome.position.timeline.get()), (2, 2));
}

#[tokio::test]
async fn limits_and_endpoints_are_refused_here() {
    let cluster = Cluster::start(1, Some(0));
    let client = client(cluster.addresses()).await;
    assert!(matches!(client.put("", "v").await, Err(ClientError::Invalid { .. })));
    assert!(matches!(client.get("").await, Err(ClientError::Invalid { .. })));
    assert_eq!(cluster.commits_at(0).len(), 0);
    assert!(matches!(Client::connect(["nonsense"], options(100)).await, Err(ClientError::Invalid { .. })));
    assert!(matches!(Client::connect(Vec::<String>::new(), options(100)).await, Err(ClientError::Invalid { .. })));
}

#[tokio::test]
async fn an_eventual_read_asks_the_given_endpoints_only() {
    let mut cluster = Cluster::start(3, Some(0));
    let client = client(vec![cluster.address(0), cluster.address(1)]).await;
    client.put("k", "v").await.expect("a commit, and the third member is known");
    for _ in 0..4 {
        assert_eq!(client.get_eventual("k").await.expect("a read").found.expect("a value").value, "v");
    }
    assert_eq!((cluster.gets_at(0), cluster.gets_at(1), cluster.gets_at(2)), (2, 2, 0));
    cluster.kill(0);
    assert!(client.get_eventual("k").await.expect("a read of the other").found.is_some());
}

#[tokio::test]
async fn a_scan_is_at_one_position_and_a_break_is_an_error() {
    let cluster = Cluster::start(2, Some(1));
    let client = client(vec![cluster.address(0)]).await;
    let commit = ["a/1", "a/2", "a/3", "b/1"].into_iter().fold(Commit::new(), |commit, key| commit.put(key, "v"));
    let position = client.commit(commit).await.expect("a commit").position;

    let mut scan = client.scan(Scan::prefix("a/").limit(2)).await.expect("a scan");
    assert_eq!(scan.position(), position);
    let mut keys = Vec::new();
    while let Some(entry) = scan.next().await {
        let entry = entry.expect("an entry");
        assert_eq!(entry.version, position);
        keys.push(entry.key);
    }
    assert_eq!(keys, ["a/1", "a/2"]);

    cluster.break_scans_after(1, 2);
    let mut scan = client.scan(Scan::all()).await.expect("a scan");
    assert!(scan.next().await.is_some_and(|entry| entry.is_ok()));
    assert!(scan.next().await.is_some_and(|entry| entry.is_ok()));
    assert!(matches!(scan.next().await, Some(Err(ClientError::Unavailable { .. }))));
    assert!(scan.next().await.is_none());
}

#[tokio::test]
async fn status_asks_the_members_that_it_learns_of() {
    let mut cluster = Cluster::start(3, Some(0));
    cluster.kill(2);
    let client = client(vec![cluster.address(1)]).await;
    let answers = client.status().await;
    let answered: Vec<bool> =
        cluster.addresses().iter().map(|a| answers.iter().any(|x| x.address == *a && x.answer.is_ok())).collect();
    assert_eq!(answered, [true, true, false]);
    assert_eq!(answers.len(), 3, "the dead one is there with why it did not answer");
}

#[tokio::test]
async fn many_commits_at_once_survive_a_failover_exactly_once() {
    let mut cluster = Cluster::start(3, Some(0));
    let client = client(cluster.addresses()).await;
    let commits: Vec<_> = (0..200)
        .map(|i| {
            let client = client.clone();
            tokio::spawn(async move { client.put(format!("k{i}"), "v").await })
        })
        .collect();
    cluster.kill(0);
    cluster.promote(2);
    for commit in commits {
        commit.await.expect("no panic").expect("a commit");
    }
    assert_eq!(cluster.done(), 200);
}

#[tokio::test]
async fn of_a_batch_only_what_is_not_settled_is_sent_again() {
    let cluster = Cluster::start(2, Some(1));
    let client = client(vec![cluster.address(0)]).await;
    let unknown = RpcError::commit_outcome_unknown(None, UnknownWhy::StepDown);
    // The first is done and not vouched for, the second is not taken.
    cluster.script(1, [Step::DoThenUnknown(unknown), Step::Refuse(RpcError::queue_full(1))]);
    let commits = vec![
        Commit::new().put("a", "1"),
        Commit::new().put("b", "1"),
        Commit::new().put("c", "1"),
        Commit::new().put("d", "1").if_absent("a"),
        Commit::new(),
    ];
    let ids: Vec<_> = commits.iter().map(Commit::id).collect();
    let results = client.commit_batch(commits).await.expect("a batch within its bounds");
    let [a, b, c, d, e] = <[_; 5]>::try_from(results).expect("one for each");
    assert!(a.expect("committed").already_done, "the first attempt had done it");
    assert!(!b.expect("committed").already_done);
    assert!(!c.expect("committed").already_done);
    assert!(matches!(d, Err(ClientError::Aborted { .. })), "{d:?}");
    assert!(matches!(e, Err(ClientError::Invalid { .. })), "{e:?}");
    let sent: Vec<_> = cluster.commits_at(1);
    let id = |at: usize| sent[at].as_ref() == ids[[0, 1, 2, 3, 0, 1][at]].as_bytes();
    assert!(sent.len() == 6 && (0..6).all(id), "{sent:?}");
}

#[tokio::test]
async fn operators_are_answered_by_the_primary() {
    let cluster = Cluster::start(3, Some(2));
    let client = client(vec![cluster.address(0)]).await;
    assert_eq!(client.replication().await.expect("an answer").primary, "n2");
    assert_eq!(client.waiting(5).await.expect("an answer").total, 5);
    assert_eq!(client.cancel_waiting(None).await, Ok(7));
    assert_eq!(client.cancel_waiting(Some(Commit::new().id())).await, Ok(1));
}
