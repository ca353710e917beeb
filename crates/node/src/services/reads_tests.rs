use std::time::Duration;

use understudy_control::Leadership;
use understudy_core::state::ClusterState;
use understudy_engine::{Clock, Commit, EngineConfig, SystemClock};
use understudy_rpc::error::Reason;
use understudy_store::{KeyRange, MemoryStore, PageLimit};
use understudy_types::{DurabilityLevel, Lsn, NodeId, SegmentSize, SystemId, TimelineSwitch};
use understudy_wal::Op;
use understudy_wal::files::RealFiles;

use super::*;
use crate::confirmer::Claim;
use crate::mesh::Outgoing;

const SYSTEM: SystemId = SystemId::new(7);
const SIZE: SegmentSize = SegmentSize::MIN;
const ME: NodeId = NodeId::new(1);
/// Longer than any test.
const NEVER: Duration = Duration::from_secs(60);
/// Of a read that is meant to fail at its deadline.
const SHORT: Duration = Duration::from_millis(50);

/// A node: an engine, and what its reads stand on.
pub struct Node {
    pub engine: Engine,
    pub reads: Arc<Reads>,
    view: watch::Sender<NodeView>,
    history: watch::Sender<TimelineHistory>,
    confirmer: Confirmer,
    fresh: watch::Sender<Option<Confirmed>>,
    heard: Arc<Heard>,
    stop: CancellationToken,
    /// Of the other voters: there are none, but the confirmer ends without it.
    _nobody: tokio::sync::mpsc::Sender<crate::mesh::Answer>,
    _dir: tempfile::TempDir,
}

fn timelines(switches: &[(u32, Lsn)]) -> TimelineHistory {
    let mut history = TimelineHistory::new();
    for &(timeline, switch_lsn) in switches {
        let parent = history.latest();
        history.push(TimelineSwitch { timeline: TimelineId::new(timeline), parent, switch_lsn }).unwrap();
    }
    history
}

impl Node {
    /// A standby that knows of timeline 1.
    pub fn standby() -> Self {
        Self::standby_with(Arc::new(MemoryStore::new()))
    }

    /// The same with a store of the test's own.
    pub fn standby_with(store: Arc<MemoryStore>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = EngineConfig { segment_size: SIZE, ..EngineConfig::new(dir.path(), SYSTEM) };
        let engine = Engine::open(config, Arc::new(RealFiles), store, Arc::new(SystemClock)).unwrap();
        let cluster = ClusterState { system_id: SYSTEM, ..ClusterState::default() };
        let view = watch::Sender::new(NodeView {
            me: ME,
            cluster: Arc::new(cluster),
            leadership: Leadership::default(),
            engine: Some(engine.clone()),
            primary_of: None,
            nodes: std::collections::BTreeMap::new(),
            blocked: None,
            waiting_for: None,
        });
        let history = watch::Sender::new(timelines(&[(1, SIZE.log_start())]));
        let stop = CancellationToken::new();
        let (fresh, confirmed) = watch::channel(None);
        let (nobody, answers) = tokio::sync::mpsc::channel(1);
        let outgoing = watch::Sender::new(Outgoing::default());
        let confirmer = Confirmer::spawn(ME, outgoing, answers, fresh.clone(), stop.clone());
        let heard = Arc::new(Heard::default());
        let reads = Reads::new(ReadParts {
            view: view.subscribe(),
            history: history.subscribe(),
            confirmer: confirmer.clone(),
            confirmed,
            heard: Arc::clone(&heard),
            stop: stop.clone(),
        });
        Self {
            engine,
            reads: Arc::new(reads),
            view,
            history,
            confirmer,
            fresh,
            heard,
            stop,
            _nobody: nobody,
            _dir: dir,
        }
    }

    /// A primary of timeline 1 whose flushed commits are safe once [`Node::safe`] is called.
    pub fn primary() -> Self {
        Self::primary_with(Arc::new(MemoryStore::new()))
    }

    /// The same with a store of the test's own.
    pub fn primary_with(store: Arc<MemoryStore>) -> Self {
        let node = Self::standby_with(store);
        let start = SIZE.log_start();
        node.engine.open_primary(&timelines(&[(1, start)]), start).unwrap();
        node.engine.set_confirmed_until(Some(SystemClock.boot_time() + NEVER));
        node
    }

    /// Commits at level local, and returns where.
    pub async fn put(&self, key: &str, value: impl Into<bytes::Bytes>) -> Position {
        let ops = vec![Op::Put { key: bytes::Bytes::from(key.to_owned()), value: value.into() }];
        let commit = Commit { ops, level: DurabilityLevel::Local, ..Commit::default() };
        self.engine.commit(commit, Instant::now() + NEVER).await.unwrap().position
    }

    /// Gives the engine up, as a node does whose data is replaced: nobody holds it but requests that are being answered.
    pub async fn give_up(self) {
        let Self { engine, view, .. } = self;
        view.send_modify(|view| view.engine = None);
        tokio::task::spawn_blocking(move || engine.stop()).await.unwrap().unwrap();
    }

    /// Everything that is flushed here is safe, and visible when this returns.
    pub async fn safe(&self) -> Position {
        let end = self.engine.wal().flush().unwrap();
        self.engine.advance_safe(end);
        *self.engine.visible().wait_for(|visible| visible.lsn >= end).await.unwrap()
    }

    /// Sends everything that `to` lacks, and shows it there.
    pub async fn ship(&self, to: &Node) -> Position {
        let mut reader = self.engine.wal().reader(to.engine.wal().end().lsn);
        if to.engine.wal().history() != self.engine.wal().history() {
            to.engine.begin_timeline(&self.engine.wal().history()).unwrap();
        }
        while let Some(chunk) = reader.read(Lsn::MAX, 64 << 10).unwrap() {
            to.engine.receive(chunk.start, chunk.bytes).unwrap();
        }
        to.safe().await
    }

    fn learn(&self, switches: &[(u32, Lsn)]) {
        self.history.send_replace(timelines(switches));
    }

    async fn point(&self, wanted: &Wanted, within: Duration) -> Result<Position, RpcError> {
        self.reads.point("the read", wanted, Instant::now() + within).await.map(|point| point.position)
    }

    /// Starts a read and lets it come to where it waits.
    async fn waiting(&self, wanted: Wanted) -> tokio::task::JoinHandle<Result<Position, RpcError>> {
        let reads = Arc::clone(&self.reads);
        let before = self.reads.waiting.available_permits();
        let read = tokio::spawn(async move {
            reads.point("the read", &wanted, Instant::now() + NEVER).await.map(|point| point.position)
        });
        while self.reads.waiting.available_permits() == before && !read.is_finished() {
            tokio::task::yield_now().await;
        }
        read
    }
}

fn session(position: Position) -> Wanted {
    let token = SessionToken::new(SYSTEM, position).to_bytes();
    Wanted::of(v1::Consistency::Session.into(), &token, None, None).unwrap()
}

fn at(position: Position) -> Wanted {
    Wanted::of(v1::Consistency::At.into(), b"", Some(position.into()), None).unwrap()
}

fn at_most(ms: u64) -> Wanted {
    Wanted::of(v1::Consistency::Eventual.into(), b"", None, Some(ms)).unwrap()
}

fn reason<T>(outcome: Result<T, RpcError>) -> Reason {
    outcome.err().expect("a refusal").reason
}

#[test]
fn fields_that_contradict_one_another_are_refused() {
    let token = SessionToken::new(SYSTEM, Position::default()).to_bytes();
    let position = |timeline, lsn| Some(v1::Position { timeline, lsn });
    let of = |consistency: v1::Consistency, token: &[u8], at, max| Wanted::of(consistency.into(), token, at, max);
    use v1::Consistency::{At, Eventual, Linearizable, Session, Unspecified};
    for (refused, hint) in [
        (of(Eventual, &token, None, None), "ask for session"),
        (of(At, &token, position(1, 1), None), "ask for session"),
        (of(Session, &token[..5], None, None), "25"),
        (of(Session, &[1; 25], None, None), "mangled"),
        (of(Session, &[7; 25], None, None), "format version 7"),
        (of(Eventual, b"", None, Some(0)), "linearizable"),
        (of(Linearizable, b"", None, Some(5)), "leave it out"),
        (of(At, b"", position(1, 1), Some(5)), "leave it out"),
        (of(At, b"", None, None), "a timeline from 1 on"),
        (of(At, b"", position(0, 5), None), "a timeline from 1 on"),
        (of(At, b"", position(1, 0), None), "an LSN that is not 0"),
        (of(Session, b"", position(1, 1), None), "consistency at"),
        (Wanted::of(77, b"", None, None), "77"),
    ] {
        let error = refused.expect_err(hint);
        assert_eq!(error.reason, Reason::InvalidArgument);
        assert!(error.message.contains(hint), "{hint}: {}", error.message);
    }
    for taken in [
        of(Unspecified, &token, None, None),
        of(Session, b"", None, None),
        of(Session, &token, None, Some(u64::MAX)),
        of(At, b"", position(u32::MAX, u64::MAX), None),
    ] {
        assert!(taken.is_ok(), "{taken:?}");
    }
}

#[tokio::test]
async fn a_session_read_waits_until_the_position_is_visible() {
    let (primary, standby) = (Node::primary(), Node::standby());
    let position = primary.put("k", "v").await;
    assert_eq!(
        primary.point(&session(position), SHORT).await.map_err(|error| error.reason),
        Err(Reason::PositionNotReached)
    );
    let read = standby.waiting(session(position)).await;
    assert!(!read.is_finished());
    let visible = primary.ship(&standby).await;
    assert_eq!(read.await.unwrap(), Ok(visible));
    assert_eq!(standby.point(&session(position), SHORT).await, Ok(visible), "at once now");
}

#[tokio::test]
async fn a_read_at_a_position_sees_neither_more_nor_less() {
    let (primary, standby) = (Node::primary(), Node::standby());
    let first = primary.put("k", "1").await;
    let second = primary.put("k", "2").await;
    primary.ship(&standby).await;
    for (position, value) in [(first, "1"), (second, "2")] {
        let point = standby.reads.point("the read", &at(position), Instant::now() + SHORT).await.unwrap();
        assert_eq!(point.position, position);
        assert_eq!(point.token, SessionToken::new(SYSTEM, position));
        assert_eq!(point.engine.get(b"k", position.lsn).unwrap().unwrap().value, value);
    }
    let future = Position::new(TimelineId::FIRST, Lsn::new(u64::MAX));
    let error = standby.point(&at(future), SHORT).await.expect_err("in the future");
    assert_eq!(error.reason, Reason::PositionNotReached);
    assert!(error.message.contains("FFFFFFFF/FFFFFFFF@1"), "{}", error.message);
}

#[tokio::test]
async fn a_token_of_a_later_timeline_is_waited_for_and_then_said_not_to_be_known() {
    let node = Node::primary();
    node.put("k", "v").await;
    let visible = node.safe().await;
    let later = Position::new(TimelineId::new(2), visible.lsn);
    let error = node.point(&session(later), SHORT).await.expect_err("nobody knows timeline 2");
    assert_eq!(error.reason, Reason::PositionNotReached);
    assert!(error.message.contains("has not heard of that timeline, the latest that it knows is 1"), "{error}");
    let read = node.waiting(session(later)).await;
    node.learn(&[(1, SIZE.log_start()), (2, visible.lsn)]);
    assert_eq!(read.await.unwrap(), Ok(visible), "the fork itself lies on both");
}

#[tokio::test]
async fn a_token_beyond_the_fork_is_refused_even_while_it_waits() {
    let (primary, standby) = (Node::primary(), Node::standby());
    primary.put("k", "1").await;
    let fork = primary.ship(&standby).await;
    let lost = primary.put("k", "2").await;
    let read = standby.waiting(session(lost)).await;
    assert!(!read.is_finished());
    standby.learn(&[(1, SIZE.log_start()), (2, fork.lsn)]);
    let error = read.await.unwrap().expect_err("it was abandoned");
    assert_eq!(error.reason, Reason::PositionAbandoned);
    for word in [lost.to_string(), fork.lsn.to_string(), "timeline 2 is present".to_owned(), "new session".to_owned()] {
        assert!(error.message.contains(&word), "{word}: {}", error.message);
    }
    assert_eq!(reason(standby.point(&at(lost), SHORT).await), Reason::PositionAbandoned);
    assert_eq!(standby.point(&at(fork), SHORT).await, Ok(fork), "what came before the fork is still there");
}

#[tokio::test]
async fn a_token_of_another_cluster_is_refused() {
    let node = Node::standby();
    let token = SessionToken::new(SystemId::new(8), Position::new(TimelineId::FIRST, Lsn::new(9))).to_bytes();
    let wanted = Wanted::of(v1::Consistency::Session.into(), &token, None, None).unwrap();
    let error = node.point(&wanted, SHORT).await.expect_err("refused");
    assert_eq!(error.reason, Reason::WrongCluster);
    assert!(error.message.contains("0000000000000008"), "{}", error.message);
}

#[tokio::test]
async fn a_node_that_shows_what_the_cluster_left_behind_refuses_every_read() {
    let node = Node::primary();
    let kept = node.put("k", "1").await;
    node.put("k", "2").await;
    node.safe().await;
    node.learn(&[(1, SIZE.log_start()), (2, kept.lsn)]);
    let eventual = Wanted::of(v1::Consistency::Eventual.into(), b"", None, None).unwrap();
    for wanted in [eventual, session(kept), at(kept), at_most(1000)] {
        let error = node.point(&wanted, SHORT).await.expect_err("not consistent");
        assert_eq!(error.reason, Reason::NotReady);
        assert!(error.message.contains("not on the history of the cluster"), "{}", error.message);
    }
}

#[tokio::test]
async fn a_node_without_data_yet_refuses_and_a_stopping_one_lets_go() {
    let node = Node::standby();
    let never = Position::new(TimelineId::FIRST, Lsn::MAX);
    let read = node.waiting(session(never)).await;
    node.stop.cancel();
    assert_eq!(reason(read.await.unwrap()), Reason::NotReady);
    node.view.send_modify(|view| view.engine = None);
    assert_eq!(reason(node.point(&session(never), NEVER).await), Reason::NotReady);
}

#[tokio::test]
async fn a_standby_answers_only_when_it_is_fresh_enough() {
    let (primary, standby) = (Node::primary(), Node::standby());
    primary.put("k", "1").await;
    let visible = primary.ship(&standby).await;
    let error = standby.point(&at_most(10_000), SHORT).await.expect_err("nobody confirmed anything");
    assert_eq!(error.reason, Reason::TooStale);
    assert!(error.message.contains("cannot be told"), "{}", error.message);

    let claim = |lsn: Lsn, confirmed_ms_ago| v1::FreshnessClaim { timeline: 1, safe_lsn: lsn.get(), confirmed_ms_ago };
    standby.heard.hear(&claim(visible.lsn, 5_000), boot_ms());
    assert_eq!(standby.point(&at_most(60_000), SHORT).await, Ok(visible));
    let error = standby.point(&at_most(1_000), SHORT).await.expect_err("5 s old");
    assert_eq!(error.reason, Reason::TooStale);
    assert!(error.get("staleness_ms").and_then(|ms| ms.parse().ok()).is_some_and(|ms: u64| ms >= 5_000), "{error:?}");

    // What the primary calls safe now has not arrived: the read waits for it.
    let more = primary.put("k", "2").await;
    standby.heard.hear(&claim(more.lsn, 0), boot_ms());
    let read = standby.waiting(at_most(30_000)).await;
    assert_eq!(read.await.unwrap(), Ok(visible), "the older claim is fresh enough for that");
    let read = standby.waiting(at_most(4_000)).await;
    assert!(!read.is_finished());
    let visible = primary.ship(&standby).await;
    assert_eq!(read.await.unwrap(), Ok(visible));
}

#[tokio::test]
async fn a_primary_is_fresh_while_a_majority_confirms_it() {
    let node = Node::primary();
    node.put("k", "1").await;
    let visible = node.safe().await;
    assert_eq!(reason(node.point(&at_most(1_000), SHORT).await), Reason::NoPrimary, "it claims nothing yet");
    node.confirmer.set_primary_timeout(NEVER);
    node.confirmer
        .claim(Some(Claim { timeline: TimelineId::FIRST, voters: [ME].into(), engine: node.engine.clone() }))
        .await;
    assert_eq!(node.point(&at_most(1), NEVER).await, Ok(visible));
    let mut fresh = node.fresh.subscribe();
    fresh.wait_for(Option::is_some).await.unwrap();
    let claim = fresh.borrow().as_ref().map(Confirmed::claim).unwrap();
    assert_eq!((claim.timeline, claim.safe_lsn), (1, visible.lsn.get()));
}

#[tokio::test]
async fn a_linearizable_read_with_a_token_waits_for_it_at_the_primary() {
    let node = Node::primary();
    node.confirmer.set_primary_timeout(NEVER);
    node.confirmer
        .claim(Some(Claim { timeline: TimelineId::FIRST, voters: [ME].into(), engine: node.engine.clone() }))
        .await;
    let position = node.put("k", "1").await;
    let token = SessionToken::new(SYSTEM, position).to_bytes();
    let wanted = Wanted::of(v1::Consistency::Linearizable.into(), &token, None, None).unwrap();
    let read = node.waiting(wanted).await;
    assert!(!read.is_finished());
    let visible = node.safe().await;
    assert_eq!(read.await.unwrap(), Ok(visible));
    assert_eq!(reason(Node::standby().point(&wanted, NEVER).await), Reason::NoPrimary, "a standby refuses at once");
}

#[tokio::test]
async fn so_many_reads_wait_and_no_more() {
    let node = Node::standby();
    let taken = node.reads.waiting.acquire_many(u32::try_from(WAITING_READS_MAX).unwrap()).await.unwrap();
    let never = session(Position::new(TimelineId::FIRST, Lsn::MAX));
    let error = node.point(&never, NEVER).await.expect_err("no place");
    assert_eq!((error.reason, error.get("limit")), (Reason::TooManyReads, Some("4096")));
    drop(taken);
    assert_eq!(reason(node.point(&never, SHORT).await), Reason::PositionNotReached);
}

#[tokio::test]
async fn a_scan_that_began_on_a_standby_goes_on_over_its_promotion() {
    let (primary, standby) = (Node::primary(), Node::standby());
    for index in 0..10 {
        primary.put(&format!("k{index}"), "before").await;
    }
    let visible = primary.ship(&standby).await;
    let eventual = Wanted::of(v1::Consistency::Eventual.into(), b"", None, None).unwrap();
    let point = standby.reads.point("the scan", &eventual, Instant::now() + NEVER).await.unwrap();
    let page = |start: bytes::Bytes| {
        let range = KeyRange { start, end: None };
        point.engine.scan(&range, point.position.lsn, PageLimit { entries_max: 4, bytes_max: 1 << 20 }).unwrap()
    };
    let mut found = page(bytes::Bytes::new());

    let engine = standby.engine.clone();
    let fork = engine.seal().unwrap().lsn;
    assert_eq!(fork, visible.lsn);
    engine.open_primary(&timelines(&[(1, SIZE.log_start()), (2, fork)]), fork).unwrap();
    engine.set_confirmed_until(Some(SystemClock.boot_time() + NEVER));
    standby.learn(&[(1, SIZE.log_start()), (2, fork)]);
    standby.put("k5", "after").await;
    standby.safe().await;

    let mut entries = std::mem::take(&mut found.entries);
    while let Some(next) = found.next {
        found = page(next);
        entries.append(&mut found.entries);
    }
    assert_eq!(entries.len(), 10);
    assert!(entries.iter().all(|entry| entry.value == "before" && entry.version.timeline == TimelineId::FIRST));
    assert!(standby.point(&session(visible), SHORT).await.is_ok(), "and so does the session");
}
