//! When which commit passed which stage: joins what the engine's threads tell, for histograms and traces.
//!
//! The sequencer, the WAL writer, the applier, the walsenders and the calls themselves each know one moment. What they
//! tell is kept by LSN, in rings of bounded length, until the applier has passed it; then the differences are recorded.
//! Traced commits (marks) are kept beside, and their moments go to the task that makes spans of them ([`super::spans`]):
//! no thread of the engine builds a span.
//!
//! One short lock over positions and times; it is never held over IO, nor while a histogram is written or a span built. An
//! unsampled commit takes it nowhere by itself, only with its batch.
//!
//! Bounds: [`TIMES_MAX`] moments of each kind, [`MARKS_MAX`] marks. What is beyond is dropped and counted: telemetry never
//! makes a commit wait.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use understudy_engine::{CommitError, Finished, Mark, Observer, TraceContext};
use understudy_replication::message::MARKS_PER_DATA_MAX;
use understudy_types::{Lsn, NodeId};
use understudy_wal::observe::{Flush, FlushObserver};

use super::instruments::Instruments;
use super::spans::{Applied, Origin, Record, Spans};

/// Moments of one kind that are kept: as many batches may be unconfirmed before their times are forgotten.
const TIMES_MAX: usize = 8_192;
/// Traced commits that are appended and not applied here.
const MARKS_MAX: usize = 4_096;
/// Traced commits that a walsender may still send; older ones are forgotten.
const SENDABLE_MAX: usize = 4_096;

/// When positions were reached, in their order.
#[derive(Debug, Default)]
struct Times {
    entries: VecDeque<(Lsn, Instant)>,
    /// At or below it the times are forgotten.
    forgotten: Lsn,
}

impl Times {
    /// A lower position than before means that the log was cut: what lay beyond is forgotten.
    fn push(&mut self, lsn: Lsn, at: Instant) {
        while self.entries.back().is_some_and(|(known, _)| *known >= lsn) {
            self.entries.pop_back();
        }
        if self.entries.len() == TIMES_MAX
            && let Some((lsn, _)) = self.entries.pop_front()
        {
            self.forgotten = lsn;
        }
        self.entries.push_back((lsn, at));
    }

    /// When `lsn` was reached; none when it was not, or is forgotten.
    fn at(&self, lsn: Lsn) -> Option<Instant> {
        let index = self.entries.partition_point(|(known, _)| *known < lsn);
        self.entries.get(index).filter(|_| lsn > self.forgotten).map(|(_, at)| *at)
    }
}

/// A piece of the log that was appended in one go.
#[derive(Debug, Clone, Copy)]
struct Batch {
    end: Lsn,
    origin: Origin,
    at: Instant,
}

/// A traced commit that the sequencer has laid out.
#[derive(Debug, Clone, Copy)]
struct Ordered {
    mark: Mark,
    queued: Instant,
    taken: Instant,
}

#[derive(Debug, Default)]
struct State {
    batches: VecDeque<Batch>,
    flushed: Times,
    safe: Times,
    /// Laid out for the batch that is appended next.
    ordered: Vec<Ordered>,
    /// Said of the piece that is received next.
    announced: Vec<Mark>,
    /// In the log and not applied, in their order.
    marks: VecDeque<Mark>,
    /// The latest of this primary's, applied or not.
    sendable: VecDeque<Mark>,
    /// Up to where each standby was sent WAL.
    sent: BTreeMap<NodeId, Lsn>,
}

impl State {
    /// Appends `piece`; what was known beyond its start is gone from the log. Gives how many marks found no room.
    fn append(&mut self, start: Lsn, batch: Batch, marks: impl Iterator<Item = Mark>) -> u64 {
        while self.batches.back().is_some_and(|last| last.end > start) {
            self.batches.pop_back();
        }
        if self.batches.len() == TIMES_MAX {
            self.batches.pop_front();
        }
        self.batches.push_back(batch);
        while self.marks.back().is_some_and(|last| last.end > start) {
            self.marks.pop_back();
        }
        let mut dropped = 0;
        for mark in marks.filter(|mark| mark.end > start && mark.end <= batch.end) {
            if self.marks.len() == MARKS_MAX {
                dropped += 1;
            } else {
                self.marks.push_back(mark);
            }
        }
        dropped
    }
}

/// What a batch took, as far as it is known.
struct Took {
    batch: Batch,
    flushed: Option<Instant>,
    safe: Option<Instant>,
}

/// See the module.
pub struct Stages {
    instruments: Arc<Instruments>,
    spans: Option<Spans>,
    state: Mutex<State>,
}

impl Stages {
    /// Without `spans` nothing is traced.
    pub fn new(instruments: Arc<Instruments>, spans: Option<Spans>) -> Self {
        Self { instruments, spans, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the lock leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn emit(&self, record: Record) {
        if let Some(spans) = &self.spans {
            spans.emit(record);
        }
    }

    /// Up to where each standby was sent WAL since this process became what it is.
    pub fn sent(&self) -> BTreeMap<NodeId, Lsn> {
        self.lock().sent.clone()
    }

    /// See [`understudy_replication::UpstreamHooks::sending`].
    pub fn sending(&self, standby: NodeId, piece: Range<Lsn>, read_began: Instant) -> Vec<Mark> {
        let marks: Vec<Mark> = {
            let mut state = self.lock();
            state.sent.insert(standby, piece.end);
            let begin = state.sendable.partition_point(|mark| mark.end <= piece.start);
            state.sendable.range(begin..).take_while(|mark| mark.end <= piece.end).copied().collect()
        };
        let Some(spans) = self.spans.as_ref().filter(|_| !marks.is_empty()) else { return Vec::new() };
        let beyond = marks.len().saturating_sub(MARKS_PER_DATA_MAX);
        self.instruments.marks_dropped.add(beyond as u64);
        let sent = |mark: &Mark| Mark { trace: spans.send(mark, standby, read_began), ..*mark };
        marks.iter().take(MARKS_PER_DATA_MAX).map(sent).collect()
    }

    fn record(&self, took: &Took, ended: Instant) {
        let stages = &self.instruments.stages;
        let Took { batch, flushed, safe } = took;
        if let Some(flushed) = flushed {
            let stage = match batch.origin {
                Origin::Sequenced => &stages.flush,
                Origin::Received => &stages.remote_flush,
            };
            stage.record(flushed.saturating_duration_since(batch.at));
        }
        match (batch.origin, safe) {
            (Origin::Sequenced, Some(safe)) => stages.safe.record(safe.saturating_duration_since(batch.at)),
            (Origin::Sequenced, None) | (Origin::Received, _) => {}
        }
        if let (Some(flushed), Some(safe)) = (flushed, safe) {
            stages.apply.record(ended.saturating_duration_since(*flushed.max(safe)));
        }
    }
}

impl FlushObserver for Stages {
    fn flushed(&self, flush: Flush) {
        self.instruments.fsync.record(flush.ended.saturating_duration_since(flush.began));
        self.lock().flushed.push(flush.end, flush.ended);
    }
}

impl Observer for Stages {
    fn begun(&self) {
        self.instruments.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    fn sequenced(&self, queued: Instant, taken: Instant, end: Lsn, trace: Option<TraceContext>) {
        self.instruments.stages.queue.record(taken.saturating_duration_since(queued));
        if let Some(trace) = trace {
            let mut state = self.lock();
            if state.ordered.len() < MARKS_MAX {
                state.ordered.push(Ordered { mark: Mark { end, trace }, queued, taken });
            } else {
                self.instruments.marks_dropped.increment();
            }
        }
    }

    fn appended(&self, taken: Instant, start: Lsn, end: Lsn, at: Instant) {
        self.instruments.stages.append.record(at.saturating_duration_since(taken));
        let (ordered, dropped) = {
            let mut state = self.lock();
            let ordered = std::mem::take(&mut state.ordered);
            let batch = Batch { end, origin: Origin::Sequenced, at };
            let dropped = state.append(start, batch, ordered.iter().map(|ordered| ordered.mark));
            while state.sendable.back().is_some_and(|last| last.end > start) {
                state.sendable.pop_back();
            }
            state.sendable.extend(ordered.iter().map(|ordered| ordered.mark));
            let excess = state.sendable.len().saturating_sub(SENDABLE_MAX);
            state.sendable.drain(..excess);
            (ordered, dropped)
        };
        self.instruments.marks_dropped.add(dropped);
        for Ordered { mark, queued, taken } in ordered {
            self.emit(Record::Ordered { mark, queued, taken, appended: at });
        }
    }

    fn received(&self, start: Lsn, end: Lsn, at: Instant) {
        let dropped = {
            let mut state = self.lock();
            let announced = std::mem::take(&mut state.announced);
            state.append(start, Batch { end, origin: Origin::Received, at }, announced.into_iter())
        };
        self.instruments.marks_dropped.add(dropped);
    }

    fn marked(&self, marks: &[Mark]) {
        if self.spans.is_some() {
            self.lock().announced = marks.iter().take(MARKS_PER_DATA_MAX).copied().collect();
        }
    }

    fn safe(&self, lsn: Lsn, at: Instant) {
        self.lock().safe.push(lsn, at);
    }

    fn applied(&self, from: Lsn, to: Lsn, began: Instant, ended: Instant) {
        let (took, marks) = {
            let mut state = self.lock();
            let mut took = Vec::new();
            while let Some(batch) = state.batches.front().copied().filter(|batch| batch.end <= to) {
                state.batches.pop_front();
                if batch.end > from {
                    took.push(Took { batch, flushed: state.flushed.at(batch.end), safe: state.safe.at(batch.end) });
                }
            }
            let mut marks = Vec::new();
            // Both are in the order of the log.
            let mut batches = took.iter().peekable();
            while let Some(mark) = state.marks.front().copied().filter(|mark| mark.end <= to) {
                state.marks.pop_front();
                while batches.next_if(|took| took.batch.end < mark.end).is_some() {}
                if let Some(Took { batch, flushed, .. }) = batches.peek() {
                    let (origin, appended) = (batch.origin, batch.at);
                    marks.push(Applied { mark, origin, appended, flushed: *flushed, began, ended });
                }
            }
            (took, marks)
        };
        took.iter().for_each(|took| self.record(took, ended));
        marks.into_iter().for_each(|applied| self.emit(Record::Applied(applied)));
    }

    fn finished(&self, finished: &Finished<'_>) {
        let &Finished { level, trace, began, ended, outcome } = finished;
        self.instruments.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.instruments.commits.with([level.as_str(), result(outcome)]).increment();
        let Some(Ok(committed)) = outcome else { return };
        self.instruments.commit.with([level.as_str()]).record(ended.saturating_duration_since(began));
        let Some(trace) = trace else { return };
        let mark = Mark { end: committed.position.lsn, trace };
        // What it waited for last, whatever its level.
        let known = {
            let state = self.lock();
            [state.flushed.at(mark.end), state.safe.at(mark.end)]
        };
        let last = known.into_iter().flatten().filter(|at| *at <= ended).max();
        if let Some(reached) = last {
            self.emit(Record::Acknowledged { mark, reached, ended });
        }
    }
}

fn result(outcome: Option<&Result<understudy_engine::Committed, CommitError>>) -> &'static str {
    match outcome {
        None => "abandoned",
        Some(Ok(committed)) if committed.already_done => "already_done",
        Some(Ok(_)) => "committed",
        Some(Err(CommitError::NotPrimary)) => "not_primary",
        Some(Err(CommitError::Invalid(_))) => "invalid",
        Some(Err(CommitError::PreconditionFailed { .. })) => "precondition_failed",
        Some(Err(CommitError::QueueFull { .. })) => "queue_full",
        Some(Err(CommitError::NotDecided { .. })) => "not_decided",
        Some(Err(CommitError::Unknown { .. })) => "unknown",
    }
}

#[cfg(test)]
#[path = "stages_tests.rs"]
mod tests;
