//! Engines at both ends: commits become visible on the standbys, the winner of an election fetches what it lacks, and
//! everybody follows it over the fork. What the node's agent decides is decided here by hand.

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use support::*;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use understudy_engine::{Clock, Commit, Committed, Engine, EngineConfig, SystemClock};
use understudy_replication::{FetchConfig, ReceiverTiming, ServingTimeline, Source, fetch};
use understudy_store::MemoryStore;
use understudy_types::{
    DurabilityLevel, Incarnation, Lsn, NodeId, Position, TimelineHistory, TimelineId, TimelineSwitch,
};
use understudy_wal::{Op, RealFiles};

struct Node {
    id: NodeId,
    dir: TempDir,
    engine: Engine,
}

impl Node {
    fn open(id: u64) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = EngineConfig { segment_size: SIZE, ..EngineConfig::new(dir.path(), SYSTEM) };
        let engine = Engine::open(config, Arc::new(RealFiles), Arc::new(MemoryStore::new()), Arc::new(SystemClock));
        Self { id: NodeId::new(id), dir, engine: engine.expect("an empty engine") }
    }

    fn upstream(&self, history: &TimelineHistory, sealed: TimelineId) -> Arc<TestUpstream> {
        let serving = ServingTimeline { history: history.clone(), ended: CancellationToken::new() };
        let serving = (sealed == TimelineId::NONE).then_some(serving);
        TestUpstream::new(Source::of(&self.engine, self.id), history, serving, sealed)
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Engine) -> T + Send + 'static) -> T {
        let engine = self.engine.clone();
        within("the engine", tokio::task::spawn_blocking(move || work(&engine))).await.expect("no panic")
    }

    async fn promote(&self, history: &TimelineHistory, safe: Lsn) -> TimelineHistory {
        let mut history = history.clone();
        let (parent, timeline, switch_lsn) = (history.latest(), history.latest().next(), self.engine.wal().end().lsn);
        history.push(TimelineSwitch { timeline, parent, switch_lsn }).expect("a continuation");
        let opened = history.clone();
        self.blocking(move |engine| engine.open_primary(&opened, safe)).await.expect("a fork at the end of the log");
        self.engine.set_confirmed_until(Some(SystemClock.boot_time() + Duration::from_secs(600)));
        history
    }

    async fn put(&self, key: String, value: Vec<u8>, level: DurabilityLevel) -> Committed {
        let op = Op::Put { key: key.into(), value: value.into() };
        let commit = Commit { ops: vec![op], level, ..Commit::default() };
        self.engine.commit(commit, tokio::time::Instant::now() + PATIENCE).await.expect("a commit")
    }

    async fn visible(&self, position: Position) {
        until("visibility", &mut self.engine.visible(), |visible| visible.lsn >= position.lsn).await;
    }

    fn get(&self, key: &str) -> Option<Bytes> {
        let at = self.engine.visible().borrow().lsn;
        self.engine.get(key.as_bytes(), at).expect("visible").map(|found| found.value)
    }

    fn assert_same_log(&self, other: &Node) {
        let (end, history) = (self.engine.wal().end(), self.engine.wal().history());
        assert_eq!((end, &history), (other.engine.wal().end(), &other.engine.wal().history()));
        let compared = compare_segments(&history, &self.dir.path().join("wal"), &other.dir.path().join("wal"), end.lsn);
        assert!(compared >= 2, "{compared} segments compared");
    }
}

/// The sync rule `ANY 1 (*)`, roughly: what some standby has flushed, as far as the primary has.
fn acknowledge(primary: &Node, hooks: &TestUpstream) -> JoinHandle<()> {
    let (engine, mut connections) = (primary.engine.clone(), hooks.connections());
    tokio::spawn(async move {
        let mut flushed = engine.wal().flushed();
        loop {
            let acked = connections.borrow_and_update().values().map(|c| c.acked.flush).max();
            engine.advance_safe(acked.unwrap_or(Lsn::INVALID).min(*flushed.borrow_and_update()));
            tokio::select! {
                changed = connections.changed() => if changed.is_err() { return },
                changed = flushed.changed() => if changed.is_err() { return },
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_become_visible_everywhere_and_survive_a_failover_with_a_fetch() {
    let (a, b, c) = (Node::open(1), Node::open(2), Node::open(3));
    let log_start = SIZE.log_start();
    let history = a.promote(&TimelineHistory::new(), log_start).await;
    let hooks = a.upstream(&history, TimelineId::NONE);
    let server = Server::start(&hooks).await;
    let acknowledging = acknowledge(&a, &hooks);
    let b_follows = Following::start(&Arc::new(b.engine.clone()), b.id, &server.address(), &history);
    let c_follows = Following::start(&Arc::new(c.engine.clone()), c.id, &server.address(), &history);

    let mut last = Position::default();
    for number in 0..40 {
        last = a.put(format!("both/{number}"), vec![1; 40_000], DurabilityLevel::On).await.position;
    }
    for node in [&a, &b, &c] {
        node.visible(last).await;
        assert_eq!(node.get("both/39").unwrap().len(), 40_000);
    }

    // c is cut off; b alone acknowledges more; then the primary takes a commit that nobody else has.
    c_follows.stop().await;
    for number in 0..10 {
        last = a.put(format!("b-only/{number}"), vec![2; 30_000], DurabilityLevel::On).await.position;
    }
    b_follows.stop().await;
    let lost = a.put("a-only".to_owned(), vec![3; 10], DurabilityLevel::Local).await.position;
    server.stop().await;
    acknowledging.abort();

    // The election of timeline 2 among b and c: b's end is the highest, c shall win and fetches.
    for node in [&b, &c] {
        node.blocking(|engine| engine.seal()).await.unwrap();
    }
    let until_lsn = b.engine.wal().end().lsn;
    assert_eq!(until_lsn, last.lsn);
    let server = Server::start(&b.upstream(&history, TimelineId::new(2))).await;
    let config = FetchConfig {
        source_address: server.address(),
        system_id: SYSTEM,
        format: FORMAT,
        node: c.id,
        incarnation: Incarnation::new(9),
        election: TimelineId::new(2),
        until: until_lsn,
        timing: ReceiverTiming::default(),
    };
    let sink = Arc::new(c.engine.clone());
    let refused = fetch(sink.clone(), config.clone(), history.clone(), CancellationToken::new()).await;
    assert!(refused.expect_err("a sealed engine takes nothing").to_string().contains("was not accepted"));
    c.engine.allow_fetch(until_lsn).unwrap();
    let end = within("the fetch", fetch(sink, config, history.clone(), CancellationToken::new())).await.unwrap();
    assert_eq!(end, until_lsn);
    server.stop().await;

    // c opens timeline 2; b follows it; a is sealed, rejoins and follows it too.
    let history = c.promote(&history, until_lsn).await;
    let hooks = c.upstream(&history, TimelineId::NONE);
    let server = Server::start(&hooks).await;
    let acknowledging = acknowledge(&c, &hooks);
    let known = history.clone();
    a.blocking(move |engine| (engine.seal().unwrap(), engine.rejoin(&known).unwrap())).await;
    for node in [&a, &b] {
        node.engine.unseal();
    }
    let b_follows = Following::start(&Arc::new(b.engine.clone()), b.id, &server.address(), &history);
    let a_follows = Following::start(&Arc::new(a.engine.clone()), a.id, &server.address(), &history);
    let mut last = Position::default();
    for number in 0..40 {
        last = c.put(format!("after/{number}"), vec![4; 40_000], DurabilityLevel::On).await.position;
    }
    assert_eq!(last.timeline, TimelineId::new(2));
    assert!(lost.lsn > until_lsn);
    for node in [&a, &b, &c] {
        node.visible(last).await;
        assert_eq!(node.get("b-only/9").unwrap().len(), 30_000);
        assert_eq!(node.get("after/39").unwrap().len(), 40_000);
        assert_eq!(node.get("a-only"), None, "it was acknowledged at level local alone");
        until("the flush", &mut node.engine.wal().flushed(), |flushed| *flushed >= last.lsn).await;
    }
    c.assert_same_log(&a);
    c.assert_same_log(&b);
    a_follows.stop().await;
    b_follows.stop().await;
    server.stop().await;
    acknowledging.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seal_ends_what_is_received_even_before_the_follower_is_told() {
    // INV-FENCED: the engine itself refuses, whatever the walreceiver still has in hand.
    let (a, b) = (Node::open(1), Node::open(2));
    let history = a.promote(&TimelineHistory::new(), SIZE.log_start()).await;
    let hooks = a.upstream(&history, TimelineId::NONE);
    let server = Server::start(&hooks).await;
    let mut follows = Following::start(&Arc::new(b.engine.clone()), b.id, &server.address(), &history);
    hooks.acked(b.id, a.engine.wal().end().lsn).await;
    let sealed_at = b.blocking(|engine| engine.seal()).await.unwrap();
    let after = a.put("after".to_owned(), vec![1; 10], DurabilityLevel::Local).await.position;
    follows.problem("the received WAL was not accepted").await;
    assert_eq!(b.engine.wal().end(), sealed_at);
    let connections = hooks.until("connections", |_| true).await;
    assert!(connections.values().all(|c| c.acked.flush < after.lsn), "{connections:?}");
    follows.stop().await;
    server.stop().await;
}
