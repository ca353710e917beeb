//! Nodes for the tests of the shells: real logs in temporary directories, a real gRPC server on loopback, and a relay
//! that can be cut and frozen between them.

#![allow(dead_code, unused_imports, reason = "each test file uses its part")]

mod relay;
mod upstream;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use understudy_replication::{
    FollowConfig, LogError, LogSink, OwnLog, ReceiverStatus, ReceiverTiming, Source, StreamState, WalFormat, follow,
};
use understudy_types::{
    Incarnation, Lsn, NodeId, Position, SegmentNo, SegmentSize, SystemId, TimelineHistory, TimelineId, TimelineSwitch,
};
use understudy_wal::{Appender, CommitRecord, Decoder, Op, RealFiles, Record, Wal, WalConfig, seeded};

pub use relay::Relay;
pub use upstream::{Server, TestUpstream};

pub const SYSTEM: SystemId = SystemId::new(7);
pub const SIZE: SegmentSize = SegmentSize::MIN;
pub const FORMAT: WalFormat = WalFormat { version: understudy_wal::segment::FORMAT_VERSION, segment_size: SIZE };
/// No event in these tests takes so long unless something is wrong.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A log with what a node has around it.
pub struct TestNode {
    pub id: NodeId,
    pub dir: TempDir,
    pub wal: Wal,
    pub safe: watch::Sender<Lsn>,
    visible: watch::Sender<Position>,
}

impl TestNode {
    pub fn new(id: u64) -> Arc<Self> {
        Self::with_ring(id, WalConfig::RING_BYTES_MAX)
    }

    pub fn with_ring(id: u64, ring_bytes_max: usize) -> Arc<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = WalConfig { ring_bytes_max, ..WalConfig::new(dir.path().join("wal"), SYSTEM, SIZE) };
        let (wal, _) = Wal::open(Arc::new(RealFiles), config, Lsn::INVALID).expect("an empty log");
        let (safe, visible) = (watch::Sender::new(Lsn::INVALID), watch::Sender::new(Position::default()));
        Arc::new(Self { id: NodeId::new(id), dir, wal, safe, visible })
    }

    /// A node with the log that `prepare` laid out, which ends at `end`.
    pub fn with_log(id: u64, end: Lsn, prepare: impl FnOnce(&WalConfig)) -> Arc<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = WalConfig { ring_bytes_max: 0, ..WalConfig::new(dir.path().join("wal"), SYSTEM, SIZE) };
        prepare(&config);
        let (wal, _) = Wal::open(Arc::new(RealFiles), config, end).expect("a log");
        let (safe, visible) = (watch::Sender::new(Lsn::INVALID), watch::Sender::new(Position::default()));
        Arc::new(Self { id: NodeId::new(id), dir, wal, safe, visible })
    }

    pub fn source(&self) -> Source {
        Source { system_id: SYSTEM, format: FORMAT, node: self.id, wal: self.wal.clone(), safe: self.safe.subscribe() }
    }

    /// Opens the next timeline of `history` at this log's end, as a promotion does; returns the history with it.
    pub fn promote(&self, history: &TimelineHistory) -> TimelineHistory {
        let mut history = history.clone();
        let (parent, timeline, switch_lsn) = (history.latest(), history.latest().next(), self.wal.end().lsn);
        history.push(TimelineSwitch { timeline, parent, switch_lsn }).expect("a continuation");
        self.wal.begin_timeline(&history).expect("a fork at the end of the log");
        self.append(&Record::EndOfRecovery { previous: parent });
        history
    }

    pub fn append(&self, record: &Record) -> Lsn {
        let (end, timeline) = (self.wal.end().lsn, self.wal.history().latest());
        let mut bytes = BytesMut::new();
        Appender::new(SYSTEM, SIZE, timeline, end).append(&mut bytes, record, 1).expect("it fits into a segment");
        self.wal.append(end, bytes.freeze()).expect("a log that takes records")
    }

    /// Commits of about `each` bytes, `total` bytes of them.
    pub fn fill(&self, total: usize, each: usize) -> Lsn {
        let mut end = self.wal.end().lsn;
        for number in 0..total.div_ceil(each) {
            let value = Bytes::from(vec![u8::try_from(number % 251).expect("a byte"); each]);
            end = self.put(&format!("key-{number}"), value);
        }
        end
    }

    pub fn put(&self, key: &str, value: impl Into<Bytes>) -> Lsn {
        let op = Op::Put { key: Bytes::copy_from_slice(key.as_bytes()), value: value.into() };
        self.append(&Record::Commit(CommitRecord { request_id: None, ops: vec![op] }))
    }
}

impl LogSink for TestNode {
    fn own(&self) -> OwnLog {
        OwnLog {
            timeline: self.wal.history().latest(),
            applied: self.visible.borrow().lsn,
            flushed: *self.wal.flushed().borrow(),
            written: *self.wal.written().borrow(),
            end: self.wal.end().lsn,
        }
    }

    fn receive(&self, start: Lsn, bytes: Bytes) -> Result<Lsn, LogError> {
        let decoder = Decoder::new(SYSTEM, SIZE, &self.wal.history());
        for record in decoder.decode(start, &bytes) {
            record.map_err(LogError::new)?;
        }
        self.wal.append(start, bytes).map_err(LogError::new)
    }

    fn begin_timeline(&self, history: &TimelineHistory) -> Result<(), LogError> {
        self.wal.begin_timeline(history).map_err(LogError::new)
    }

    fn flush(&self) -> Result<Lsn, LogError> {
        self.wal.flush().map_err(LogError::new)
    }

    fn advance_safe(&self, lsn: Lsn) {
        self.safe.send_if_modified(|safe| {
            let moved = lsn > *safe;
            *safe = lsn.max(*safe);
            moved
        });
    }

    fn written(&self) -> watch::Receiver<Lsn> {
        self.wal.written()
    }

    fn flushed(&self) -> watch::Receiver<Lsn> {
        self.wal.flushed()
    }

    fn visible(&self) -> watch::Receiver<Position> {
        self.visible.subscribe()
    }
}

/// A node whose log begins in the segment of `at`, with the bytes that `peer` has there.
pub fn seeded_from(peer: &TestNode, id: u64, at: Position) -> Arc<TestNode> {
    TestNode::with_log(id, at.lsn, |config| {
        let mut reader = peer.wal.reader(seeded::segment_start(config, at.lsn));
        let mut bytes = Vec::new();
        while let Some(chunk) = reader.read(at.lsn, 1 << 20).expect("the peer has it") {
            bytes.extend_from_slice(&chunk.bytes);
        }
        let copy = |offset: u64, buffer: &mut [u8]| {
            let from = usize::try_from(offset).expect("small");
            buffer.copy_from_slice(&bytes[from..from + buffer.len()]);
            Ok(())
        };
        seeded::prepare(Arc::new(RealFiles), config, &peer.wal.history(), at, copy).expect("laid out");
    })
}

/// A standby's walreceiver under way.
pub struct Following {
    pub status: watch::Receiver<ReceiverStatus>,
    pub history: watch::Sender<TimelineHistory>,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Following {
    /// `log` follows the primary of the latest timeline of `history` at `address`.
    pub fn start<L: LogSink>(log: &Arc<L>, id: NodeId, address: &str, history: &TimelineHistory) -> Self {
        Self::start_with(log, config(id, address, history.latest()), history)
    }

    pub fn start_with<L: LogSink>(log: &Arc<L>, config: FollowConfig, history: &TimelineHistory) -> Self {
        Self::start_at(log, config, steady(ReceiverTiming::default()), history)
    }

    /// At a pace that may change.
    pub fn start_at<L: LogSink>(
        log: &Arc<L>,
        config: FollowConfig,
        pace: watch::Receiver<ReceiverTiming>,
        history: &TimelineHistory,
    ) -> Self {
        let (status, status_seen) = watch::channel(ReceiverStatus::default());
        let (history, history_seen) = watch::channel(history.clone());
        let cancel = CancellationToken::new();
        let task = tokio::spawn(follow(Arc::clone(log), config, pace, history_seen, cancel.clone(), status));
        Self { status: status_seen, history, cancel, task }
    }

    pub async fn stop(self) {
        self.cancel.cancel();
        within("the walreceiver to end", self.task).await.expect("no panic");
    }

    pub async fn until(&mut self, what: &str, wanted: impl FnMut(&ReceiverStatus) -> bool) -> ReceiverStatus {
        until(what, &mut self.status, wanted).await
    }

    pub async fn streaming(&mut self) {
        self.until("the standby to stream", |status| status.state == StreamState::Streaming).await;
    }

    pub async fn problem(&mut self, part: &str) {
        let named = |status: &ReceiverStatus| status.problem.as_ref().is_some_and(|problem| problem.contains(part));
        self.until(&format!("a problem with \"{part}\""), named).await;
    }
}

/// A pace that does not change.
pub fn steady(timing: ReceiverTiming) -> watch::Receiver<ReceiverTiming> {
    watch::channel(timing).1
}

pub fn config(id: NodeId, address: &str, timeline: TimelineId) -> FollowConfig {
    FollowConfig {
        upstream_address: address.to_owned(),
        system_id: SYSTEM,
        format: FORMAT,
        node: id,
        incarnation: Incarnation::new(id.get() + 100),
        damage_epoch: 0,
        timeline,
        sealed: TimelineId::NONE,
    }
}

/// Waits until the watched value is as wanted.
pub async fn until<T: Clone + std::fmt::Debug>(
    what: &str,
    watched: &mut watch::Receiver<T>,
    wanted: impl FnMut(&T) -> bool,
) -> T {
    let reached = tokio::time::timeout(PATIENCE, watched.wait_for(wanted))
        .await
        .map(|value| value.expect("the sender lives").clone());
    reached.unwrap_or_else(|_| panic!("waited in vain for {what}: {:?}", watched.borrow()))
}

pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

/// Waits until `node` has flushed everything below `lsn`.
pub async fn flushed(node: &TestNode, lsn: Lsn) {
    until("the standby's flush", &mut node.wal.flushed(), |flushed| *flushed >= lsn).await;
}

/// INV-BYTES: segments of the same name hold the same bytes below `end` on both nodes; says how many were compared.
pub fn assert_same_segments(one: &TestNode, other: &TestNode, end: Lsn) -> usize {
    assert_eq!(one.wal.history(), other.wal.history());
    compare_segments(&one.wal.history(), &one.dir.path().join("wal"), &other.dir.path().join("wal"), end)
}

pub fn compare_segments(history: &TimelineHistory, one: &Path, other: &Path, end: Lsn) -> usize {
    let per_high = (1_u64 << 32) / SIZE.get();
    let mut compared = 0;
    for timeline in history.switches().iter().map(|switch| switch.timeline) {
        for number in SegmentNo::FIRST.get()..=SIZE.segment_of(end).get() {
            let name = format!("{:08X}{:08X}{:08X}", timeline.get(), number / per_high, number % per_high);
            let (Ok(a), Ok(b)) = (std::fs::read(one.join(&name)), std::fs::read(other.join(&name))) else { continue };
            // A left timeline's last segment ends at the fork, the present one at `end`.
            let cut = history.end_of(timeline).unwrap_or(end).min(end);
            let length = cut.saturating_since(Lsn::new(number * SIZE.get())).min(SIZE.get());
            let length = usize::try_from(length).expect("small");
            assert!(a[..length] == b[..length], "segment {name} differs");
            compared += 1;
        }
    }
    compared
}
