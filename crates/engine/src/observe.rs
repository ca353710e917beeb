//! When a commit passed which stage: told to whoever wants to know, by the threads that it happens on.
//!
//! ```text
//! begun -> sequenced (one per commit) -> appended (one per batch) -> flushed -> safe -> applied -> finished
//! received (on a standby, one per piece) --^
//! ```
//!
//! The engine tells positions and times and nothing else: what is made of them (histograms, traces) is not its
//! concern. Without an observer it reads no clock for this: one branch per commit. An observer must not block.
//!
//! Each is told before what it speaks of is published: whoever sees an LSN flushed, safe or visible finds its time.

use std::time::Instant;

use understudy_types::{DurabilityLevel, Lsn};
use understudy_wal::observe::FlushObserver;

use crate::commit::{CommitError, Committed};

/// A sampled trace that a commit belongs to, by W3C's numbers. It travels beside the log, never in it (INV-BYTES).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// Of the whole trace; not zero.
    pub trace_id: u128,
    /// What the next span hangs on; not zero.
    pub span_id: u64,
    /// W3C's trace flags.
    pub flags: u8,
}

/// A commit of the log that is traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The end of its record.
    pub end: Lsn,
    /// Its trace.
    pub trace: TraceContext,
}

/// How a commit ended. The position, when there is one, stands in the outcome.
#[derive(Debug, Clone, Copy)]
pub struct Finished<'a> {
    /// That was asked for.
    pub level: DurabilityLevel,
    /// None for one that is not traced.
    pub trace: Option<TraceContext>,
    /// When it was asked.
    pub began: Instant,
    /// When it was answered.
    pub ended: Instant,
    /// None when whoever asked went away.
    pub outcome: Option<&'a Result<Committed, CommitError>>,
}

/// Told of the stages; see the module.
pub trait Observer: FlushObserver {
    /// A commit was asked for; every one ends with [`Observer::finished`].
    fn begun(&self);

    /// The sequencer has laid out a commit: it had waited since `queued` when the batch was taken. Comes before its
    /// bytes are in the log.
    fn sequenced(&self, queued: Instant, taken: Instant, end: Lsn, trace: Option<TraceContext>);

    /// A batch of commits, taken from the queue at `taken`, goes into the log.
    fn appended(&self, taken: Instant, start: Lsn, end: Lsn, at: Instant);

    /// What an upstream sent goes into the log.
    fn received(&self, start: Lsn, end: Lsn, at: Instant);

    /// What was said of the pieces that were received: these commits are traced. Comes before [`Observer::received`].
    fn marked(&self, marks: &[Mark]);

    /// The safe LSN moved.
    fn safe(&self, lsn: Lsn, at: Instant);

    /// The store has what lies between `from` and `to`.
    fn applied(&self, from: Lsn, to: Lsn, began: Instant, ended: Instant);

    /// A commit was answered.
    fn finished(&self, finished: &Finished<'_>);
}

/// A commit under way, for the observer: it hears of its end even when the call is dropped.
pub(crate) struct Watched<'a> {
    observer: &'a dyn Observer,
    level: DurabilityLevel,
    trace: Option<TraceContext>,
    began: Instant,
    told: bool,
}

impl<'a> Watched<'a> {
    pub(crate) fn begin(observer: &'a dyn Observer, level: DurabilityLevel, trace: Option<TraceContext>) -> Self {
        observer.begun();
        Self { observer, level, trace, began: Instant::now(), told: false }
    }

    pub(crate) fn end(mut self, outcome: &Result<Committed, CommitError>) {
        self.told = true;
        self.tell(Some(outcome));
    }

    fn tell(&self, outcome: Option<&Result<Committed, CommitError>>) {
        let &Self { level, trace, began, .. } = self;
        self.observer.finished(&Finished { level, trace, began, ended: Instant::now(), outcome });
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        if !self.told {
            self.tell(None);
        }
    }
}
