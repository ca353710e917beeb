//! What the tests of this crate share.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use understudy_types::{
    Lsn, Position, RequestId, SegmentNo, SegmentSize, SystemId, TimelineHistory, TimelineId, TimelineSwitch,
};

use crate::directory::{Directory, SegmentFile};
use crate::fakes::SimFiles;
use crate::{Appender, CommitRecord, Op, Record, Recovery, Wal, WalConfig, WalError};

pub(crate) const SIZE: SegmentSize = SegmentSize::MIN;
pub(crate) const SYSTEM: SystemId = SystemId::new(0x5157_u64);
pub(crate) const TIME_US: i64 = 1_700_000_000_000_000;

pub(crate) fn start() -> Lsn {
    SIZE.log_start()
}

pub(crate) fn history(switches: &[(u32, Lsn)]) -> TimelineHistory {
    let mut history = TimelineHistory::new();
    for &(timeline, switch_lsn) in switches {
        let parent = history.latest();
        let switch = TimelineSwitch { timeline: TimelineId::new(timeline), parent, switch_lsn };
        history.push(switch).expect("a continuation");
    }
    history
}

/// A commit whose body is `bytes` long: at least 18.
pub(crate) fn commit(number: u64, bytes: usize) -> Record {
    let key = Bytes::copy_from_slice(&number.to_le_bytes()[..1]);
    let value = Bytes::from(vec![u8::try_from(number % 251).expect("small") | 1; bytes - 18]);
    Record::Commit(CommitRecord { request_id: None, ops: vec![Op::Put { key, value }] })
}

pub(crate) fn request_commit(number: u8) -> Record {
    let request_id = Some(RequestId::new([number; 16]));
    Record::Commit(CommitRecord { request_id, ops: vec![Op::Delete { key: Bytes::from_static(b"key") }] })
}

pub(crate) fn config(ring_bytes_max: usize) -> WalConfig {
    WalConfig {
        dir: PathBuf::from("/data/wal"),
        system_id: SYSTEM,
        segment_size: SIZE,
        ring_bytes_max,
        spare_segments: 0,
    }
}

pub(crate) fn directory(files: &SimFiles) -> Directory {
    Directory { files: Arc::new(files.clone()), path: config(0).dir, system_id: SYSTEM, segment_size: SIZE }
}

pub(crate) fn path_of(timeline: u32, segment: u64) -> PathBuf {
    let file = SegmentFile { timeline: TimelineId::new(timeline), segment: SegmentNo::new(segment) };
    directory(&SimFiles::new()).segment_path(file)
}

pub(crate) fn open(files: &SimFiles, applied: Lsn) -> Result<(Wal, Recovery), WalError> {
    Wal::open(Arc::new(files.clone()), config(WalConfig::RING_BYTES_MAX), applied)
}

/// A log that is appended to, with the appender that lays its records out.
pub(crate) struct Log {
    pub files: SimFiles,
    pub wal: Wal,
    appender: Option<Appender>,
    /// Every byte that the log should hold, from its begin.
    pub content: Vec<u8>,
}

impl Log {
    /// An open log that is empty.
    pub(crate) fn over(files: SimFiles, wal: Wal) -> Self {
        Self { files, wal, appender: None, content: Vec::new() }
    }

    /// An empty log without a timeline.
    pub(crate) fn empty() -> Self {
        let files = SimFiles::new();
        let (wal, _) = open(&files, Lsn::INVALID).expect("an empty directory");
        Self::over(files, wal)
    }

    /// A log on timeline 1.
    pub(crate) fn new() -> Self {
        let mut log = Self::empty();
        log.begin(&history(&[(1, start())])).expect("the first timeline");
        log
    }

    pub(crate) fn begin(&mut self, history: &TimelineHistory) -> Result<(), WalError> {
        self.appender = None;
        self.wal.begin_timeline(history)
    }

    pub(crate) fn append(&mut self, record: &Record) -> Result<Lsn, WalError> {
        let wal = &self.wal;
        let appender =
            self.appender.get_or_insert_with(|| Appender::new(SYSTEM, SIZE, wal.history().latest(), wal.end().lsn));
        let start = appender.next();
        let mut bytes = BytesMut::new();
        appender.append(&mut bytes, record, TIME_US).expect("fits into a segment");
        let bytes = bytes.freeze();
        let end = wal.append(start, bytes.clone())?;
        self.content.extend_from_slice(&bytes);
        Ok(end)
    }

    /// Appends commits until the log ends exactly at `end`.
    pub(crate) fn fill_to(&mut self, end: Lsn) -> Result<(), WalError> {
        while self.wal.end().lsn < end {
            let at = self.wal.end().lsn;
            let header = if SIZE.offset_of(at) == 0 { 64 } else { 0 };
            match usize::try_from(end.saturating_since(at)).expect("small") - header {
                left if left > 100_000 => self.append(&commit(left as u64, 60_000))?,
                left => self.append(&commit(left as u64, left - 24))?,
            };
        }
        Ok(())
    }

    pub(crate) fn end(&self) -> Position {
        self.wal.end()
    }

    pub(crate) fn content(&self, path: &Path) -> Vec<u8> {
        self.files.content(path).expect("the file is there")
    }

    /// Truncates, and appends behind the cut from then on.
    pub(crate) fn truncate(&mut self, to: Lsn) -> Result<(), WalError> {
        self.appender = None;
        self.wal.truncate(to)?;
        self.content.truncate(usize::try_from(to.saturating_since(start())).expect("small"));
        Ok(())
    }

    /// Closes the log cleanly; the files are left.
    pub(crate) fn close(self) -> SimFiles {
        self.wal.close().expect("no failure");
        self.files
    }

    /// The process is killed: what is in the cache stays.
    pub(crate) fn kill(self) -> SimFiles {
        self.files.kill();
        self.files
    }
}

pub(crate) fn position(timeline: u32, lsn: Lsn) -> Position {
    Position::new(TimelineId::new(timeline), lsn)
}

/// All bytes of the log from `from`, read in pieces of at most `bytes_max`.
pub(crate) fn read_all(wal: &Wal, from: Lsn, bytes_max: usize) -> Vec<u8> {
    let mut reader = wal.reader(from);
    let mut all = Vec::new();
    while let Some(chunk) = reader.read(Lsn::MAX, bytes_max).expect("readable") {
        assert_eq!(chunk.start.advance(chunk.bytes.len() as u64), chunk.end);
        all.extend_from_slice(&chunk.bytes);
    }
    assert_eq!(reader.position(), wal.end().lsn);
    all
}
