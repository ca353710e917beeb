//! The writer: the one thread that writes the log.
//!
//! A group is whatever was appended while the previous group was being synced; there is no timer. It is written, then
//! synced with one `fdatasync`, then published as flushed. Forks and truncations are carried out here too, between
//! groups, so that no two threads ever write to the same segment.
//!
//! A failed write or fsync is latched and never retried: after a failed fsync the kernel may call pages clean that
//! never reached the disk. The thread ends, and so must the process.
//!
//! The next segment is made ahead, by a thread of its own once the present one is half full, so that a switch costs a
//! commit no zero-filling; it, and a fork, take a spare file if one is ready (see `spares`).

use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use understudy_types::{Lsn, Position, TimelineHistory};

use crate::cut::{cut, is_record_end, keep_aside};
use crate::directory::{COPY_BYTES, SegmentFile};
use crate::error::WalError;
use crate::files::File;
use crate::fork;
use crate::observe::Flush;
use crate::ring::RingChunk;
use crate::shared::{Change, Phase, Request, Shared};
use crate::watermark::Watermark;

/// How far the watermark may lag behind the flush LSN, in time.
const WATERMARK_INTERVAL: Duration = Duration::from_secs(1);

struct Segment {
    id: SegmentFile,
    file: Arc<dyn File>,
    /// Written since the last sync.
    dirty: bool,
}

struct Ahead {
    id: SegmentFile,
    thread: JoinHandle<Result<Arc<dyn File>, WalError>>,
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    watermark: Watermark,
    watermark_written: Instant,
    segment: Option<Segment>,
    ahead: Option<Ahead>,
    /// Makes a spare.
    filling: Option<JoinHandle<()>>,
    /// Bytes that are gathered for one write; they end at `gathered_end`.
    buffer: Vec<u8>,
    gathered_end: Lsn,
}

enum Work {
    Group(Vec<RingChunk>),
    Change(Request),
    Watermark,
    Close,
    Stop,
}

/// Latches a failure should the writer panic, so that nobody waits for it for ever.
struct Guard(Arc<Shared>);

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(WalError::WriterGone);
        }
    }
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, watermark: Watermark) -> Self {
        let gathered_end = shared.lock().written;
        let watermark_written = Instant::now();
        Self {
            shared,
            watermark,
            watermark_written,
            segment: None,
            ahead: None,
            filling: None,
            buffer: Vec::new(),
            gathered_end,
        }
    }

    /// Writes until the log is closed, abandoned or failed.
    pub(crate) fn run(mut self) {
        let guard = Guard(Arc::clone(&self.shared));
        if self.gathered_end > self.shared.directory.segment_size.log_start() {
            self.fill_spares();
        }
        loop {
            let step = match self.next_work() {
                Work::Group(chunks) => self.write_group(&chunks),
                Work::Change(request) => self.change(request),
                Work::Watermark => self.raise_watermark(),
                Work::Close => {
                    if let Err(error) = self.raise_watermark() {
                        self.shared.fail(error);
                    }
                    break;
                }
                Work::Stop => break,
            };
            if let Err(error) = step {
                self.shared.fail(error);
                break;
            }
        }
        self.discard_ahead();
        self.shared.spares.stop();
        if self.filling.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!("the thread that makes spare WAL segments ended unexpectedly");
        }
        drop(guard);
    }

    fn next_work(&self) -> Work {
        let mut state = self.shared.lock();
        loop {
            if state.failure.is_some() || state.phase == Phase::Abandoned {
                return Work::Stop;
            }
            if state.written < state.end.lsn {
                let chunks = state.ring.from(state.written).expect("what is not written is in the ring");
                return Work::Group(chunks.cloned().collect());
            }
            if let Some(request) = state.request.take() {
                return Work::Change(request);
            }
            if state.phase == Phase::Closing {
                return Work::Close;
            }
            state = if self.watermark.position().lsn < state.flushed {
                let left = WATERMARK_INTERVAL.saturating_sub(self.watermark_written.elapsed());
                if left.is_zero() {
                    return Work::Watermark;
                }
                self.shared.work.wait_timeout(state, left).expect("nobody panics while holding the state").0
            } else {
                self.shared.work.wait(state).expect("nobody panics while holding the state")
            };
        }
    }

    fn write_group(&mut self, chunks: &[RingChunk]) -> Result<(), WalError> {
        self.shared.lock().io_started = Some(Instant::now());
        for chunk in chunks {
            assert!(chunk.start == self.gathered_end, "the log is written without holes");
            self.gather(chunk)?;
        }
        self.write_gathered()?;
        self.sync()?;
        self.shared.lock().io_started = None;
        self.prepare_ahead();
        self.fill_spares();
        if self.watermark_written.elapsed() >= WATERMARK_INTERVAL { self.raise_watermark() } else { Ok(()) }
    }

    /// Puts a chunk into the segments that it belongs to, small ones together.
    fn gather(&mut self, chunk: &RingChunk) -> Result<(), WalError> {
        let size = self.shared.directory.segment_size;
        let mut rest = chunk.bytes.as_ref();
        while !rest.is_empty() {
            let segment = size.segment_of(self.gathered_end);
            if self.segment.as_ref().is_none_or(|open| open.id.segment != segment) {
                self.write_gathered()?;
                self.switch_segment()?;
            }
            let room = size.start_of(segment.next()).saturating_since(self.gathered_end);
            let count = rest.len().min(usize::try_from(room).unwrap_or(usize::MAX)).min(COPY_BYTES - self.buffer.len());
            let (now, later) = rest.split_at(count);
            self.buffer.extend_from_slice(now);
            self.gathered_end = self.gathered_end.advance(count as u64);
            if self.buffer.len() == COPY_BYTES {
                self.write_gathered()?;
            }
            rest = later;
        }
        Ok(())
    }

    /// Writes what was gathered; from here on readers find it in the file.
    fn write_gathered(&mut self) -> Result<(), WalError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let directory = &self.shared.directory;
        let segment = self.segment.as_mut().expect("bytes are gathered for an open segment");
        let start = directory.segment_size.start_of(segment.id.segment);
        let offset = self.gathered_end.saturating_since(start) - self.buffer.len() as u64;
        segment.dirty = true;
        let written = segment.file.write_all_at(offset, &self.buffer);
        written.map_err(|source| WalError::io("write", &directory.segment_path(segment.id))(source))?;
        self.buffer.clear();
        let mut state = self.shared.lock();
        state.written = self.gathered_end;
        state.ring.evict(self.gathered_end);
        self.shared.written.send_replace(self.gathered_end);
        Ok(())
    }

    /// Syncs what was written, and publishes it as flushed.
    fn sync(&mut self) -> Result<(), WalError> {
        let Some(segment) = self.segment.as_mut().filter(|segment| segment.dirty) else {
            return Ok(());
        };
        let began = Instant::now();
        let synced = segment.file.sync_data();
        synced.map_err(|source| WalError::io("sync", &self.shared.directory.segment_path(segment.id))(source))?;
        segment.dirty = false;
        if let Some(observer) = self.shared.observer.get() {
            // Whatever was gathered is written before it is synced.
            observer.flushed(Flush { end: self.gathered_end, began, ended: Instant::now() });
        }
        let mut state = self.shared.lock();
        state.flushed = state.written;
        self.shared.flushed.send_replace(state.flushed);
        drop(state);
        self.shared.progress.notify_all();
        Ok(())
    }

    /// Syncs the segment that is left and opens the one that the next byte belongs to.
    fn switch_segment(&mut self) -> Result<(), WalError> {
        self.sync()?;
        if self.segment.take().is_some() {
            self.raise_watermark()?;
        }
        let segment = self.shared.directory.segment_size.segment_of(self.gathered_end);
        let id = SegmentFile { timeline: self.shared.lock().chain.latest(), segment };
        let prepared = match self.ahead.take() {
            Some(ahead) if ahead.id == id => Some(join(ahead)?),
            other => {
                self.ahead = other;
                self.discard_ahead();
                None
            }
        };
        let directory = &self.shared.directory;
        let file = match prepared {
            Some(file) => file,
            None => match directory.open(id)? {
                Some(file) => file,
                None => directory.create_empty(id, self.shared.spares.take())?,
            },
        };
        self.segment = Some(Segment { id, file, dirty: false });
        self.shared.segment.send_replace(segment);
        self.shared.spares.retry();
        Ok(())
    }

    /// Has the next segment made once the present one is half full.
    fn prepare_ahead(&mut self) {
        let directory = &self.shared.directory;
        let Some(segment) = self.segment.as_ref().filter(|_| self.ahead.is_none()) else {
            return;
        };
        let half = directory.segment_size.start_of(segment.id.segment).advance(directory.segment_size.get() / 2);
        if self.gathered_end < half {
            return;
        }
        let id = SegmentFile { timeline: segment.id.timeline, segment: segment.id.segment.next() };
        let shared = Arc::clone(&self.shared);
        let prepare = move || shared.directory.create_empty(id, shared.spares.take());
        let thread = std::thread::Builder::new().name("wal-prepare".to_owned()).spawn(prepare);
        match thread {
            Ok(thread) => self.ahead = Some(Ahead { id, thread }),
            Err(error) => tracing::warn!(%error, "no thread to prepare a WAL segment: the next switch makes it"),
        }
    }

    /// Has a spare made, unless there are enough or one is being made.
    fn fill_spares(&mut self) {
        if !self.shared.spares.is_short() || self.filling.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let fill = move || {
            if let Err(error) = shared.spares.fill() {
                tracing::warn!(%error, "no spare WAL segment was made: the next segment or fork makes its own");
            }
        };
        match std::thread::Builder::new().name("wal-spare".to_owned()).spawn(fill) {
            Ok(thread) => self.filling = Some(thread),
            Err(error) => tracing::warn!(%error, "no thread to make a spare WAL segment"),
        }
    }

    /// Waits until no other thread makes a segment. What it made is removed by whoever changes the log.
    fn discard_ahead(&mut self) {
        if let Some(Err(error)) = self.ahead.take().map(join) {
            tracing::warn!(%error, "a WAL segment was not prepared: the next switch makes it");
        }
    }

    /// Claims what is flushed. Only ever called with nothing between a write and its sync but later bytes.
    fn raise_watermark(&mut self) -> Result<(), WalError> {
        let position = {
            let state = self.shared.lock();
            Position::new(state.chain.timeline_ending_at(state.flushed), state.flushed)
        };
        self.watermark.raise(position)?;
        self.shared.lock().watermark = position.lsn;
        self.watermark_written = Instant::now();
        Ok(())
    }

    /// Carries out a request; the error that is returned is one that the log does not survive.
    fn change(&mut self, request: Request) -> Result<(), WalError> {
        let outcome = match request.change {
            Change::Begin(history) => self.begin(&history),
            Change::Truncate(to) => self.truncate(to),
        };
        let outcome = match outcome {
            Err(error) if error.is_fatal() => Err(WalError::Failed { source: self.shared.fail(error) }),
            other => other,
        };
        self.shared.lock().changing = false;
        self.shared.progress.notify_all();
        if request.reply.send(outcome).is_err() {
            tracing::debug!("nobody waits for the outcome of a change of the WAL");
        }
        Ok(())
    }

    fn begin(&mut self, history: &TimelineHistory) -> Result<(), WalError> {
        let (chain, end) = {
            let state = self.shared.lock();
            (Arc::clone(&state.chain), state.end)
        };
        let Some(next) = fork::next_chain(&chain, end, history)? else {
            return Ok(());
        };
        self.discard_ahead();
        self.segment = None;
        self.raise_watermark()?;
        fork::begin(&self.shared.directory, &self.shared.spares, &chain, &next, end.lsn)?;
        tracing::info!(timeline = %next.latest(), switch_lsn = %end.lsn, "WAL timeline begun");
        self.shared.lock().chain = Arc::new(next);
        Ok(())
    }

    fn truncate(&mut self, to: Lsn) -> Result<(), WalError> {
        let shared = Arc::clone(&self.shared);
        let _gate = shared.removal.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = self.shared.directory.clone();
        let (chain, begin, end) = {
            let state = self.shared.lock();
            (Arc::clone(&state.chain), state.first, state.end)
        };
        if to < begin || to > end.lsn {
            return Err(WalError::OutOfRange { lsn: to, begin, end: end.lsn });
        }
        if to == end.lsn {
            return Ok(());
        }
        if !is_record_end(&directory, &chain, to)? {
            return Err(WalError::NotARecordEnd { lsn: to });
        }
        self.discard_ahead();
        self.segment = None;
        let position = Position::new(chain.timeline_ending_at(to), to);
        if self.watermark.position().lsn > to {
            self.watermark.lower(position)?;
        }
        keep_aside(&directory, &chain, end.timeline, to, end.lsn)?;
        {
            // Readers must not take bytes that are about to go for those that will come.
            let mut state = self.shared.lock();
            state.cuts.push(to);
            state.ring.clear();
            state.end = position;
            state.watermark = state.watermark.min(to);
            (state.written, state.flushed) = (to, to);
            self.gathered_end = to;
            for watch in [&self.shared.appended, &self.shared.written, &self.shared.flushed] {
                watch.send_replace(to);
            }
        }
        let (chain, dropped) = cut(&directory, &chain, to)?;
        self.watermark.raise(position)?;
        tracing::warn!(%to, from = %end, dropped_bytes = dropped, "WAL truncated; the rest is kept in diverged/");
        self.shared.lock().chain = Arc::new(chain);
        Ok(())
    }
}

fn join(ahead: Ahead) -> Result<Arc<dyn File>, WalError> {
    ahead.thread.join().unwrap_or(Err(WalError::WriterGone))
}
