//! What the handle, the readers and the writer thread of a log share.
//!
//! One mutex guards what belongs together; it is held for moments, never over IO. Positions are published on watches,
//! under the mutex, so that they are seen in the order in which they were reached.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, mpsc};
use std::time::Instant;

use tokio::sync::watch;
use understudy_types::{Lsn, Position, SegmentNo, TimelineHistory};

use crate::chain::Chain;
use crate::directory::Directory;
use crate::error::WalError;
use crate::observe::FlushObserver;
use crate::ring::Ring;
use crate::spares::Spares;

/// Whether the writer goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Open,
    /// It writes what is queued, then ends.
    Closing,
    /// Nobody holds the log any more: it ends at once, as if it had been killed.
    Abandoned,
}

/// What changes the log other than by appending; carried out by the writer when all that is queued is flushed.
#[derive(Debug)]
pub(crate) enum Change {
    Begin(TimelineHistory),
    Truncate(Lsn),
}

#[derive(Debug)]
pub(crate) struct Request {
    pub change: Change,
    pub reply: mpsc::SyncSender<Result<(), WalError>>,
}

pub(crate) struct State {
    pub chain: Arc<Chain>,
    pub end: Position,
    pub written: Lsn,
    pub flushed: Lsn,
    /// What the watermark file says, or less: recovery reads from there.
    pub watermark: Lsn,
    /// Where the files begin. Raised before a file below is touched: whoever has read one looks at it afterwards.
    pub first: Lsn,
    pub ring: Ring,
    pub phase: Phase,
    pub request: Option<Request>,
    /// A request waits or is being carried out: nothing is appended meanwhile.
    pub changing: bool,
    pub failure: Option<Arc<WalError>>,
    /// When the writer began the write and fsync that it is in; none while it waits.
    pub io_started: Option<Instant>,
    pub cuts: Cuts,
}

impl State {
    pub(crate) fn check_usable(&self) -> Result<(), WalError> {
        match (&self.failure, self.phase) {
            (Some(source), _) => Err(WalError::Failed { source: Arc::clone(source) }),
            (None, Phase::Open) => Ok(()),
            (None, Phase::Closing | Phase::Abandoned) => Err(WalError::Closed),
        }
    }
}

pub(crate) struct Shared {
    pub directory: Directory,
    pub spares: Spares,
    /// Held while segments are removed, and while the log is truncated.
    pub removal: Mutex<()>,
    state: Mutex<State>,
    /// The writer has something to do.
    pub work: Condvar,
    /// The writer has done something.
    pub progress: Condvar,
    pub appended: watch::Sender<Lsn>,
    pub written: watch::Sender<Lsn>,
    pub flushed: watch::Sender<Lsn>,
    /// The one that is written to.
    pub segment: watch::Sender<SegmentNo>,
    pub failure: watch::Sender<Option<Arc<WalError>>>,
    /// Told of every sync; none when nobody wants to know.
    pub observer: OnceLock<Arc<dyn FlushObserver>>,
}

/// Between which positions a log lies when it is opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    pub first: Lsn,
    pub end: Position,
}

impl Shared {
    /// Of a recovered log: everything up to its end is flushed, and the watermark says so.
    pub(crate) fn new(spares: Spares, directory: Directory, chain: Chain, ends: Ends, ring_bytes_max: usize) -> Self {
        let Ends { first, end } = ends;
        let state = State {
            chain: Arc::new(chain),
            end,
            written: end.lsn,
            flushed: end.lsn,
            watermark: end.lsn,
            first,
            ring: Ring::new(ring_bytes_max),
            phase: Phase::Open,
            request: None,
            changing: false,
            failure: None,
            io_started: None,
            cuts: Cuts::default(),
        };
        Self {
            segment: watch::Sender::new(directory.segment_size.segment_of(end.lsn)),
            directory,
            spares,
            removal: Mutex::new(()),
            state: Mutex::new(state),
            work: Condvar::new(),
            progress: Condvar::new(),
            appended: watch::Sender::new(end.lsn),
            written: watch::Sender::new(end.lsn),
            flushed: watch::Sender::new(end.lsn),
            failure: watch::Sender::new(None),
            observer: OnceLock::new(),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding the state of the log")
    }

    /// Latches the first failure: from now on nothing is flushed, and everybody is told.
    pub(crate) fn fail(&self, error: WalError) -> Arc<WalError> {
        let mut state = self.lock();
        let first = state.failure.is_none();
        let error = Arc::clone(state.failure.get_or_insert_with(|| Arc::new(error)));
        state.request = None;
        state.changing = false;
        if first {
            tracing::error!(error = %error, flushed = %state.flushed, "the WAL failed: nothing is flushed any more");
            self.failure.send_replace(Some(Arc::clone(&error)));
        }
        drop(state);
        self.work.notify_all();
        self.progress.notify_all();
        error
    }
}

/// Which truncations took place, so that a reader can tell whether what it read is still in the log.
///
/// | truncated to | kept afterwards (epoch, to) |
/// |---|---|
/// | 500 | (1, 500) |
/// | 800 | (1, 500), (2, 800) |
/// | 600 | (1, 500), (3, 600) |
///
/// A reader that last looked at epoch 1 learns of 600; one of epoch 0 learns of 500. Entries ascend in both columns:
/// the first one after a reader's epoch is the lowest.
#[derive(Debug, Default)]
pub(crate) struct Cuts {
    epoch: u64,
    kept: Vec<(u64, Lsn)>,
}

impl Cuts {
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn push(&mut self, to: Lsn) {
        self.epoch += 1;
        while self.kept.last().is_some_and(|(_, kept)| *kept >= to) {
            self.kept.pop();
        }
        self.kept.push((self.epoch, to));
    }

    /// The lowest place that the log was cut to after `epoch`.
    pub(crate) fn lowest_since(&self, epoch: u64) -> Option<Lsn> {
        self.kept.iter().find(|(at, _)| *at > epoch).map(|(_, to)| *to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_learns_of_the_lowest_cut_since_it_looked() {
        let mut cuts = Cuts::default();
        for to in [500, 800, 600] {
            cuts.push(Lsn::new(to));
        }
        assert_eq!(cuts.lowest_since(0), Some(Lsn::new(500)));
        assert_eq!(cuts.lowest_since(1), Some(Lsn::new(600)));
        assert_eq!(cuts.lowest_since(2), Some(Lsn::new(600)));
        assert_eq!(cuts.lowest_since(3), None);
    }
}
