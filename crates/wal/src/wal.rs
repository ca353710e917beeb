//! The handle of a log.
//!
//! ```text
//! append -> ring -> writer thread: write, fdatasync -> flushed
//!             \-> readers: walsenders, the applier, from memory before the local flush
//! ```
//!
//! Appending costs no IO: bytes are copied into the ring, and the writer thread is woken. Who appends bounds how much
//! may be unwritten (see [`Wal::unwritten_bytes`]): the sequencer by its queue, a walreceiver by waiting for its
//! writes.
//!
//! There is one writer thread per log, and one log per directory: the server's lock on its data directory sees to that.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use understudy_types::{Lsn, Position, SegmentNo, SegmentSize, SystemId, TimelineHistory, TimelineId};

use crate::cut;
use crate::decoder::record_end;
use crate::directory::Directory;
use crate::error::WalError;
use crate::files::Files;
use crate::observe::FlushObserver;
use crate::reader::WalReader;
use crate::recovery::{Recovered, Recovery, Truncated, recover};
use crate::removal::{Removal, remove_before};
use crate::shared::{Change, Ends, Phase, Request, Shared};
use crate::spares::Spares;
use crate::writer::Writer;

/// How a log is opened.
#[derive(Debug, Clone)]
pub struct WalConfig {
    /// Its directory; made when it is not there.
    pub dir: PathBuf,
    /// Of the cluster: a log of another one is refused.
    pub system_id: SystemId,
    /// Of every segment; a log of another size is refused.
    pub segment_size: SegmentSize,
    /// How much of the written end of the log is kept in memory for readers, in bytes.
    pub ring_bytes_max: usize,
    /// How many files of zeros are kept ready for the next segment, or a fork; zero for none.
    pub spare_segments: usize,
}

impl WalConfig {
    /// What [`WalConfig::ring_bytes_max`] is unless it is set: 16 MiB.
    pub const RING_BYTES_MAX: usize = 16 << 20;

    /// What [`WalConfig::spare_segments`] is unless it is set.
    pub const SPARE_SEGMENTS: usize = 1;

    /// With the default bounds.
    pub fn new(dir: PathBuf, system_id: SystemId, segment_size: SegmentSize) -> Self {
        Self {
            dir,
            system_id,
            segment_size,
            ring_bytes_max: Self::RING_BYTES_MAX,
            spare_segments: Self::SPARE_SEGMENTS,
        }
    }
}

/// A write-ahead log. Clones are the same log; it is closed as if killed when the last one is dropped.
#[derive(Clone)]
pub struct Wal {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            self.shared.lock().phase = Phase::Abandoned;
            self.shared.work.notify_all();
            // The files are free for the next owner only when the thread is gone. Its panic was latched and told.
            drop(thread.join());
        }
    }
}

impl Wal {
    /// Opens the log in `config.dir`, or makes it; recovers it (see the `recovery` module); starts its writer. Blocks
    /// on IO.
    ///
    /// `applied` is what the store has durably, which must be in the log; [`Lsn::INVALID`] for nothing.
    ///
    /// # Errors
    /// [`WalError::Corrupt`] or [`WalError::CorruptFile`] when something is missing that was once flushed,
    /// [`WalError::Mismatch`] for another log's files, [`WalError::Io`].
    pub fn open(files: Arc<dyn Files>, config: WalConfig, applied: Lsn) -> Result<(Wal, Recovery), WalError> {
        let WalConfig { dir, system_id, segment_size, ring_bytes_max, spare_segments } = config;
        let directory = Directory { files, path: dir, system_id, segment_size };
        let Recovered { recovery, chain, watermark } = recover(&directory, applied)?;
        if let Some(cut) = &recovery.truncated {
            let Truncated { from, bytes, expected, found } = cut;
            tracing::warn!(%from, bytes, expected, found, "torn end of the WAL cut off");
        }
        tracing::info!(
            first = %recovery.first, end = %recovery.end, scanned_from = %recovery.scanned_from, watermark = %recovery.watermark,
            rewritten_bytes = recovery.rewritten_bytes, "WAL recovered"
        );
        let path = directory.path.clone();
        let spares = Spares::open(directory.clone(), spare_segments)?;
        let ends = Ends { first: recovery.first, end: recovery.end };
        let shared = Arc::new(Shared::new(spares, directory, chain, ends, ring_bytes_max));
        let writer = Writer::new(Arc::clone(&shared), watermark);
        let thread = std::thread::Builder::new().name("wal-writer".to_owned()).spawn(move || writer.run());
        let thread = thread.map_err(WalError::io("start a writer thread for", &path))?;
        Ok((Wal { inner: Arc::new(Inner { shared, thread: Mutex::new(Some(thread)) }) }, recovery))
    }

    fn shared(&self) -> &Shared {
        &self.inner.shared
    }

    /// The appended end, with the timeline of the last record.
    pub fn end(&self) -> Position {
        self.shared().lock().end
    }

    /// The first position that is kept: WAL below was removed, or the log was seeded. It only moves up.
    pub fn first(&self) -> Lsn {
        self.shared().lock().first
    }

    /// The chain that this log is on, with a timeline that was begun but has no record yet.
    pub fn history(&self) -> TimelineHistory {
        self.shared().lock().chain.history().clone()
    }

    /// Of the cluster.
    pub fn system_id(&self) -> SystemId {
        self.shared().directory.system_id
    }

    /// Of every segment.
    pub fn segment_size(&self) -> SegmentSize {
        self.shared().directory.segment_size
    }

    /// The appended end as it moves. A truncation moves it back.
    pub fn appended(&self) -> watch::Receiver<Lsn> {
        self.shared().appended.subscribe()
    }

    /// The end of what was written to the files, as it moves.
    pub fn written(&self) -> watch::Receiver<Lsn> {
        self.shared().written.subscribe()
    }

    /// The end of what is durable here, as it moves.
    pub fn flushed(&self) -> watch::Receiver<Lsn> {
        self.shared().flushed.subscribe()
    }

    /// The segment that is written to, as it moves.
    pub fn segment(&self) -> watch::Receiver<SegmentNo> {
        self.shared().segment.subscribe()
    }

    /// The failure after which nothing is flushed any more; none while all is well. The process must exit.
    pub fn failure(&self) -> watch::Receiver<Option<Arc<WalError>>> {
        self.shared().failure.subscribe()
    }

    /// How much was appended and is not written yet, in bytes: who appends keeps it bounded.
    pub fn unwritten_bytes(&self) -> u64 {
        let state = self.shared().lock();
        state.end.lsn.saturating_since(state.written)
    }

    /// How many spare segment files are zeroed and can be used at once.
    pub fn spares_ready(&self) -> usize {
        self.shared().spares.ready()
    }

    /// How much memory the end of the log takes, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.shared().lock().ring.bytes()
    }

    /// For how long the writer has been in the write and fsync that it is in; none while it waits.
    pub fn oldest_sync_age(&self) -> Option<Duration> {
        self.shared().lock().io_started.map(|started| started.elapsed())
    }

    /// Has `observer` told of every sync from now on. The first one stays.
    pub fn observe(&self, observer: Arc<dyn FlushObserver>) {
        self.shared().observer.get_or_init(|| observer);
    }

    /// Appends whole records, laid out by an [`crate::Appender`] here or on the primary, with their segment headers and
    /// fillers. They are visible to readers when this returns, and written and flushed soon after; no IO is waited for.
    ///
    /// Their content is not checked again: whoever takes bytes from elsewhere decodes them first.
    ///
    /// # Errors
    /// When they do not begin at the end of the log or do not end with a record; [`WalError::NoTimeline`];
    /// [`WalError::Busy`] during a fork or truncation; [`WalError::Failed`], [`WalError::Closed`].
    pub fn append(&self, start: Lsn, bytes: Bytes) -> Result<Lsn, WalError> {
        let shared = self.shared();
        let end = end_of_whole_records(shared.directory.segment_size, start, &bytes)?;
        let mut state = shared.lock();
        state.check_usable()?;
        if state.changing {
            return Err(WalError::Busy);
        }
        if start != state.end.lsn {
            return Err(WalError::NotAtEnd { start, end: state.end.lsn });
        }
        let timeline = state.chain.latest();
        if timeline == TimelineId::NONE {
            return Err(WalError::NoTimeline);
        }
        if bytes.is_empty() {
            return Ok(start);
        }
        state.ring.push(start, &bytes);
        state.end = Position::new(timeline, end);
        shared.appended.send_replace(end);
        drop(state);
        shared.work.notify_one();
        Ok(end)
    }

    /// Whether a record ends at `lsn`: its segment is read from the begin up to there. Blocks on IO.
    ///
    /// # Errors
    /// [`WalError::Removed`] below what is kept; [`WalError::Corrupt`] when what lies before it is damaged; [`WalError::Io`].
    pub fn is_record_end(&self, lsn: Lsn) -> Result<bool, WalError> {
        let shared = self.shared();
        let chain = Arc::clone(&shared.lock().chain);
        let found = cut::is_record_end(&shared.directory, &chain, lsn);
        // Looked at afterwards: the file may have been removed, or used again, under the read.
        let first = shared.lock().first;
        if lsn < first { Err(shared.directory.removed(&chain, lsn, first)) } else { found }
    }

    /// Begins a timeline at the end of the log: the latest of `history`, whose switch LSN must be there. Nothing
    /// happens when it was begun already. Blocks on IO; a crash at any point leaves the timeline begun or not begun.
    ///
    /// # Errors
    /// [`WalError::BadHistory`] when the log does not lie on `history` or does not end at the switch; those of
    /// appending.
    pub fn begin_timeline(&self, history: &TimelineHistory) -> Result<(), WalError> {
        self.change(Change::Begin(history.clone()))
    }

    /// Cuts the log at `to`, where a record ends, and the chain to the timelines that begin at or below it. What is
    /// cut off is kept in `diverged/`. The next append continues at `to`. Blocks on IO; a crash at any point leaves a
    /// log that ends at or beyond `to`, and the call is repeated.
    ///
    /// The caller has undone the store to `to` and told the cluster that this node is damaged where that is due.
    ///
    /// # Errors
    /// [`WalError::OutOfRange`], [`WalError::NotARecordEnd`]; those of appending.
    pub fn truncate(&self, to: Lsn) -> Result<(), WalError> {
        self.change(Change::Truncate(to))
    }

    /// Removes the segments that lie below `floor` as a whole, of all timelines (see the `removal` module). Up to
    /// `spares_max` files, with those that are spare already, are kept to be used again; this is also what the spares
    /// are shrunk to. The segment that the log ends in stays, whatever the floor. Blocks on IO, beside the writer; a
    /// crash at any point leaves a log that holds everything from the floor on.
    ///
    /// # Errors
    /// [`WalError::Io`]: some may be gone, and none that is needed; [`WalError::Failed`], [`WalError::Closed`].
    pub fn remove_before(&self, floor: Lsn, spares_max: usize) -> Result<Removal, WalError> {
        remove_before(self.shared(), floor, spares_max)
    }

    fn change(&self, change: Change) -> Result<(), WalError> {
        let shared = self.shared();
        let (reply, outcome) = mpsc::sync_channel(1);
        let mut state = shared.lock();
        while state.changing && state.failure.is_none() {
            state = shared.progress.wait(state).expect("nobody panics while holding the state");
        }
        state.check_usable()?;
        state.changing = true;
        state.request = Some(Request { change, reply });
        drop(state);
        shared.work.notify_one();
        match outcome.recv() {
            Ok(outcome) => outcome,
            // The writer failed before it came to this request.
            Err(mpsc::RecvError) => shared.lock().check_usable().and(Err(WalError::Closed)),
        }
    }

    /// Waits until everything that is appended now is flushed; returns the flush LSN.
    ///
    /// # Errors
    /// [`WalError::Failed`], [`WalError::Closed`].
    pub fn flush(&self) -> Result<Lsn, WalError> {
        let shared = self.shared();
        let mut state = shared.lock();
        let target = state.end.lsn;
        // A truncation meanwhile makes the target smaller.
        while state.flushed < target.min(state.end.lsn) {
            if state.failure.is_some() {
                state.check_usable()?;
            }
            state = shared.progress.wait(state).expect("nobody panics while holding the state");
        }
        Ok(state.flushed)
    }

    /// A reader that begins at `from`, where a record ends, or at the begin of the log. Below [`Wal::first`] its first
    /// read fails.
    pub fn reader(&self, from: Lsn) -> WalReader {
        WalReader::new(Arc::clone(&self.inner.shared), from)
    }

    /// Flushes what was appended, persists the watermark, ends the writer. Blocks on IO. Readers can go on.
    ///
    /// # Errors
    /// [`WalError::Failed`] when not everything was flushed.
    pub fn close(&self) -> Result<(), WalError> {
        let shared = self.shared();
        {
            let mut state = shared.lock();
            if state.phase == Phase::Open {
                state.phase = Phase::Closing;
            }
        }
        shared.work.notify_all();
        let thread = self.inner.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            shared.fail(WalError::WriterGone);
        }
        match &shared.lock().failure {
            Some(source) => Err(WalError::Failed { source: Arc::clone(source) }),
            None => Ok(()),
        }
    }
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal").field("path", &self.shared().directory.path).field("end", &self.end()).finish()
    }
}

/// Where `bytes` end, when they are whole records by their lengths.
fn end_of_whole_records(segment_size: SegmentSize, start: Lsn, bytes: &[u8]) -> Result<Lsn, WalError> {
    let mut at = start;
    loop {
        let done = usize::try_from(at.saturating_since(start)).unwrap_or(usize::MAX);
        match bytes.get(done..) {
            Some([]) => return Ok(at),
            Some(rest) => at = record_end(segment_size, at, rest).ok_or(WalError::NotWholeRecords { start })?,
            None => return Err(WalError::NotWholeRecords { start }),
        }
    }
}

#[cfg(test)]
#[path = "wal_tests.rs"]
mod tests;
