//! Nodes for the engine's tests: a simulated disk, a store in memory, and short ways to say what happens.

// Each test binary uses its own part of this.
#![allow(dead_code, reason = "shared by several test binaries")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use understudy_engine::{
    Clock, Commit, CommitError, Committed, Condition, Engine, EngineConfig, OpenError, Precondition, SystemClock,
    UnknownReason,
};
use understudy_store::{AppliedCommit, KeyRange, MemoryStore, PageLimit, ScanPage, Store, StoreError, VersionedValue};
use understudy_types::TimelineSwitch;
use understudy_types::{DurabilityLevel, Lsn, Position, RequestId, SegmentSize, SystemId, TimelineHistory, TimelineId};
use understudy_wal::fakes::SimFiles;
use understudy_wal::{GcHorizon, Op};

pub const SYSTEM: SystemId = SystemId::new(7);
pub const SIZE: SegmentSize = SegmentSize::MIN;
/// Longer than any test: what waits for it would hang.
pub const NEVER: Duration = Duration::from_secs(60);

/// What outlives a process: its disk and what its store had flushed.
pub struct Disk {
    pub files: SimFiles,
    pub store: Arc<MemoryStore>,
}

pub fn config() -> EngineConfig {
    EngineConfig { segment_size: SIZE, ..EngineConfig::new("/node", SYSTEM) }
}

impl Disk {
    pub fn new() -> Self {
        Self { files: SimFiles::new(), store: Arc::new(MemoryStore::new()) }
    }

    pub fn try_open(&self, config: EngineConfig) -> Result<Engine, OpenError> {
        self.open_with(config, Arc::clone(&self.store) as Arc<dyn Store>)
    }

    fn open_with(&self, config: EngineConfig, store: Arc<dyn Store>) -> Result<Engine, OpenError> {
        Engine::open(config, Arc::new(self.files.clone()), store, Arc::new(SystemClock))
    }

    /// Calls `before_apply` with every position that the applier is about to move the store to.
    pub fn open_watched(&self, before_apply: impl Fn(Position) + Send + Sync + 'static) -> Engine {
        let (inner, before_read) = (Arc::clone(&self.store), Box::new(|| ()));
        let store = WatchedStore { inner, before_apply: Box::new(before_apply), before_read };
        self.open_with(config(), Arc::new(store)).unwrap()
    }

    /// Calls `before_read` when the store is about to be read.
    pub fn open_read_watched(&self, before_read: impl Fn() + Send + Sync + 'static) -> Engine {
        let (inner, before_apply) = (Arc::clone(&self.store), Box::new(|_| ()));
        let store = WatchedStore { inner, before_apply, before_read: Box::new(before_read) };
        self.open_with(config(), Arc::new(store)).unwrap()
    }

    pub fn open(&self) -> Engine {
        self.try_open(config()).unwrap()
    }

    /// Opens the node and timeline 1 on it, confirmed for as long as the test runs.
    pub fn open_primary(&self) -> Engine {
        let engine = self.open();
        let start = SIZE.log_start();
        engine.open_primary(&history(&[(1, start)]), start).unwrap();
        confirm(&engine);
        engine
    }

    /// The power goes: unsynced writes and what the store had not flushed are gone.
    pub fn crash(&self, seed: u64) {
        self.files.crash(seed);
        self.store.crash();
    }
}

struct WatchedStore {
    inner: Arc<MemoryStore>,
    before_apply: Box<dyn Fn(Position) + Send + Sync>,
    before_read: Box<dyn Fn() + Send + Sync>,
}

impl Store for WatchedStore {
    fn applied(&self) -> Position {
        self.inner.applied()
    }

    fn durable_applied(&self) -> Result<Position, StoreError> {
        self.inner.durable_applied()
    }

    fn apply(&self, commits: &[AppliedCommit], applied: Position) -> Result<(), StoreError> {
        (self.before_apply)(applied);
        self.inner.apply(commits, applied)
    }

    fn raise_horizon(&self, horizon: GcHorizon, applied: Position) -> Result<(), StoreError> {
        (self.before_apply)(applied);
        self.inner.raise_horizon(horizon, applied)
    }

    fn horizon(&self) -> GcHorizon {
        self.inner.horizon()
    }

    fn get(&self, key: &[u8], at: Lsn) -> Result<Option<VersionedValue>, StoreError> {
        (self.before_read)();
        self.inner.get(key, at)
    }

    fn scan(&self, range: &KeyRange, at: Lsn, limit: PageLimit) -> Result<ScanPage, StoreError> {
        (self.before_read)();
        self.inner.scan(range, at, limit)
    }

    fn request(&self, id: &RequestId) -> Result<Option<Position>, StoreError> {
        self.inner.request(id)
    }

    fn flush(&self) -> Result<Position, StoreError> {
        self.inner.flush()
    }

    fn checkpoint(&self, dir: &std::path::Path) -> Result<Position, StoreError> {
        self.inner.checkpoint(dir)
    }
}

pub fn confirm(engine: &Engine) {
    engine.set_confirmed_until(Some(SystemClock.boot_time() + NEVER));
}

/// The timelines, and where each begins.
pub fn history(switches: &[(u32, Lsn)]) -> TimelineHistory {
    let mut history = TimelineHistory::new();
    for &(timeline, switch_lsn) in switches {
        let parent = history.latest();
        history.push(TimelineSwitch { timeline: TimelineId::new(timeline), parent, switch_lsn }).unwrap();
    }
    history
}

pub fn put(key: &str, value: &str) -> Op {
    Op::Put { key: Bytes::from(key.to_owned()), value: Bytes::from(value.to_owned()) }
}

pub fn delete(key: &str) -> Op {
    Op::Delete { key: Bytes::from(key.to_owned()) }
}

pub fn request(number: u8) -> Option<RequestId> {
    Some(RequestId::new([number; 16]))
}

pub fn when(key: &str, condition: Condition) -> Vec<Precondition> {
    vec![Precondition { key: Bytes::from(key.to_owned()), condition }]
}

pub fn equals(value: &str) -> Condition {
    Condition::ValueEquals(Bytes::from(value.to_owned()))
}

pub fn at(level: DurabilityLevel, ops: Vec<Op>) -> Commit {
    Commit { ops, level, ..Commit::default() }
}

pub fn local(ops: Vec<Op>) -> Commit {
    at(DurabilityLevel::Local, ops)
}

pub fn deadline() -> tokio::time::Instant {
    tokio::time::Instant::now() + NEVER
}

pub async fn commit(engine: &Engine, commit: Commit) -> Result<Committed, CommitError> {
    engine.commit(commit, deadline()).await
}

/// Starts a commit and does not wait for it.
pub fn start(engine: &Engine, commit: Commit) -> tokio::task::JoinHandle<Result<Committed, CommitError>> {
    let engine = engine.clone();
    tokio::spawn(async move { engine.commit(commit, deadline()).await })
}

/// The error of a commit whose deadline passes while it waits. Where the deadline passed before the sequencer had even
/// looked at it, the next one has ten times as long.
pub async fn deadline_passes(engine: &Engine, mut next: impl FnMut() -> Commit) -> CommitError {
    let mut time = Duration::from_millis(20);
    loop {
        let error = engine.commit(next(), tokio::time::Instant::now() + time).await.unwrap_err();
        let unseen = matches!(error, CommitError::Unknown { position: None, why: UnknownReason::Deadline });
        if !unseen || time >= NEVER {
            return error;
        }
        time *= 10;
    }
}

/// A record of a put of one byte under a key of one byte, without a request id.
const RECORD_BYTES: u64 = 48;

/// Waits until so many small commits have been appended since the log ended at `before`.
pub async fn grown(engine: &Engine, before: Position, commits: u64) {
    let end = before.lsn.advance(commits * RECORD_BYTES);
    engine.wal().appended().wait_for(|appended| *appended >= end).await.unwrap();
}

/// A commit whose acknowledgement shows that everything before it has been sequenced and flushed.
pub async fn barrier(engine: &Engine) -> Position {
    commit(engine, local(vec![put("barrier", "")])).await.unwrap().position
}

pub async fn visible(engine: &Engine, lsn: Lsn) -> Position {
    *engine.visible().wait_for(|visible| visible.lsn >= lsn).await.unwrap()
}

/// As if the sync rule held for everything that is flushed.
pub async fn make_all_safe(engine: &Engine) -> Position {
    let end = engine.wal().flush().unwrap();
    engine.advance_safe(end);
    visible(engine, end).await
}

/// As in mode `async`: what is flushed is safe, until the task is aborted.
pub fn follow_flush(engine: &Engine) -> tokio::task::JoinHandle<()> {
    let engine = engine.clone();
    tokio::spawn(async move {
        let mut flushed = engine.wal().flushed();
        loop {
            let lsn = *flushed.borrow_and_update();
            engine.advance_safe(lsn);
            if flushed.changed().await.is_err() {
                return;
            }
        }
    })
}

pub fn value(engine: &Engine, key: &str) -> Option<String> {
    let at = engine.visible().borrow().lsn;
    let found = engine.get(key.as_bytes(), at).unwrap()?;
    Some(String::from_utf8(found.value.to_vec()).unwrap())
}

/// Sends everything that `to` lacks.
pub fn ship(from: &Engine, to: &Engine) {
    let mut reader = from.wal().reader(to.wal().end().lsn);
    while let Some(chunk) = reader.read(Lsn::MAX, 64 << 10).unwrap() {
        assert_eq!(to.receive(chunk.start, chunk.bytes).unwrap(), chunk.end);
    }
}

/// The segments of a node up to `end`, each cut there.
pub fn segments(disk: &Disk, end: Lsn) -> Vec<(String, Vec<u8>)> {
    let mut segments = Vec::new();
    for path in disk.files.paths() {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.parent().unwrap().ends_with("wal") && name.len() == 24 {
            let number = u64::from_str_radix(&name[8..16], 16).unwrap() * (0x1_0000_0000 / SIZE.get())
                + u64::from_str_radix(&name[16..], 16).unwrap();
            let begin = number * SIZE.get();
            let mut content = disk.files.content(&path).unwrap();
            content.truncate(usize::try_from(end.get().saturating_sub(begin)).unwrap());
            segments.push((name, content));
        }
    }
    segments
}
