//! The applier: one thread that turns safe log into visible data.
//!
//! It follows the node's own log up to `min(safe, flush)`, in every role: on the primary the safe LSN comes
//! from acknowledgements, on a standby from its upstream. It writes the store in batches of whole records, in
//! the order of the log (INV-ORDER), each with the position it leads to (INV-REDO), and only then publishes the
//! position and releases the commits that waited for it (INV-VISIBLE). It also releases those that wait for the
//! local flush, as it wakes up at every flush anyway; its batches are bounded, so that they do not wait long.
//!
//! It never retries: an error of log or store is latched, and the process exits.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use understudy_store::AppliedCommit;
use understudy_types::{Lsn, Position};
use understudy_wal::{Chunk, DecodedRecord, Decoder, Record, WalError};

use crate::error::EngineFailure;
use crate::shared::Shared;

/// Log that is applied in one batch, in bytes, unless one record is larger.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// What a turn came to.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// There may be more to apply.
    Applied,
    /// Everything safe is applied.
    Idle,
}

/// See the module.
pub(crate) struct Applier {
    shared: Arc<Shared>,
    flushed: watch::Receiver<Lsn>,
    safe: watch::Receiver<Lsn>,
    stopping: watch::Receiver<bool>,
    wal_failure: watch::Receiver<Option<Arc<WalError>>>,
    /// Waits on the watches above; it drives nothing else.
    runtime: tokio::runtime::Runtime,
}

impl Applier {
    pub(crate) fn new(shared: Arc<Shared>) -> std::io::Result<Self> {
        Ok(Self {
            flushed: shared.wal.flushed(),
            safe: shared.safe.subscribe(),
            stopping: shared.stopping.subscribe(),
            wal_failure: shared.wal.failure(),
            runtime: tokio::runtime::Builder::new_current_thread().build()?,
            shared,
        })
    }

    /// Runs until the engine stops or fails.
    pub(crate) fn run(mut self) {
        while !*self.stopping.borrow() {
            let failed = self.wal_failure.borrow_and_update().clone();
            if let Some(source) = failed {
                self.shared.fail(EngineFailure::Wal(source));
                return;
            }
            match self.turn() {
                Ok(Turn::Applied) => {}
                Ok(Turn::Idle) => self.wait(),
                Err(failure) => {
                    self.shared.fail(failure);
                    return;
                }
            }
        }
    }

    fn turn(&mut self) -> Result<Turn, EngineFailure> {
        let mut reader = self.shared.reader();
        let session = self.shared.session();
        // Read under the lock: a truncation sets both back before it lets go of it. And after the session was looked up: what
        // was flushed before a truncation says nothing to those who wait in the session that came after it.
        let flushed = *self.flushed.borrow_and_update();
        let safe = *self.safe.borrow_and_update();
        if let Some(session) = session {
            session.flushed.release(flushed);
        }
        let Some(chunk) = reader.read(safe.min(flushed), BATCH_BYTES_MAX)? else { return Ok(Turn::Idle) };
        let observed = self.shared.observer().map(|observer| (observer, Instant::now()));
        let visible = apply(&self.shared, &chunk)?;
        if let Some((observer, began)) = observed {
            observer.applied(chunk.start, visible.lsn, began, Instant::now());
        }
        self.shared.publish_visible(visible);
        drop(reader);
        Ok(Turn::Applied)
    }

    fn wait(&mut self) {
        let Self { flushed, safe, stopping, wal_failure, runtime, .. } = self;
        // Whichever moves: the next turn looks at all of them. None of the senders goes before this thread.
        runtime.block_on(async {
            tokio::select! {
                _ = flushed.changed() => {}
                _ = safe.changed() => {}
                _ = stopping.changed() => {}
                _ = wal_failure.changed() => {}
            }
        });
    }
}

fn apply(shared: &Shared, chunk: &Chunk) -> Result<Position, EngineFailure> {
    let config = &shared.config;
    let decoder = Decoder::new(config.system_id, config.segment_size, &shared.wal.history());
    let mut applied = shared.visible_now();
    let mut commits = Vec::new();
    for decoded in decoder.decode(chunk.start, &chunk.bytes) {
        let DecodedRecord { start, end, timeline, time_us, record } =
            decoded.map_err(|source| EngineFailure::Damaged { lsn: applied.lsn, source: Arc::new(source) })?;
        let before = std::mem::replace(&mut applied, Position::new(timeline, end));
        match record {
            Record::Commit(commit) => {
                let (request_id, ops) = (commit.request_id, commit.ops);
                commits.push(AppliedCommit { start, lsn: end, timeline, time_us, request_id, ops });
            }
            Record::GcHorizon(horizon) => {
                shared.store.apply(&commits, before)?;
                commits.clear();
                shared.store.raise_horizon(horizon, applied)?;
                shared.horizon.send_replace(shared.store.horizon().versions_below);
            }
            Record::EndOfRecovery { .. } | Record::Filler | Record::Noop => {}
        }
    }
    shared.store.apply(&commits, applied)?;
    Ok(applied)
}
