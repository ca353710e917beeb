//! The checkpointer: one thread that bounds what a crash has to replay, and takes away the WAL that nobody needs.
//!
//! | when | what |
//! |---|---|
//! | half of `max_wal_size` was applied since the last checkpoint; looked at when a segment is begun | a checkpoint |
//! | `checkpoint_timeout` after the last checkpoint, if anything was applied since | a checkpoint |
//! | a setting or what others need has changed | a removal |
//!
//! A checkpoint flushes the store, so that redo begins where it was applied then; a removal follows it. On a standby it is
//! PostgreSQL's restartpoint, and the same: the log is physical, so nothing is written into it. Half of `max_wal_size`,
//! because the WAL of the checkpoint before is still there while the next one fills up (PostgreSQL divides by
//! `1 + checkpoint_completion_target`). It is no hard bound: what somebody needs stays, however much it is.
//!
//! Removed files are kept to be used again, as many as the larger of the last two checkpoints' distances needs; PostgreSQL estimates
//! from these distances too. The WAL zeroes them in the background (see `understudy_wal`).
//!
//! INV-RETAIN: the floor is `core`'s ([`retention_floor`]), over what the store has durably applied, never what it has applied. The
//! applier reads at or above what is applied, so it never misses what goes here. Walsenders may be behind: they are told.
//!
//! What it refuses to do: hold a lock that a commit needs. It flushes and removes beside everything else. A failure is latched
//! like any other of the engine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use understudy_core::retention::{RetentionNeeds, retention_floor};
use understudy_types::{Lsn, SegmentNo, SegmentSize};

use crate::error::EngineFailure;
use crate::shared::Shared;

/// How soon to look again when much was written that is not applied yet.
const BEHIND_INTERVAL: Duration = Duration::from_secs(1);

/// When to checkpoint, and how much WAL to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionSettings {
    /// `wal_keep_size`, in bytes: at least so much of the end of the WAL stays.
    pub wal_keep_size_bytes: u64,
    /// `max_wal_size`, in bytes: half of it since the last checkpoint starts one.
    pub max_wal_size_bytes: u64,
    /// `checkpoint_timeout`: no later than this after the last checkpoint there is one, if anything was written.
    pub checkpoint_timeout: Duration,
}

impl Default for RetentionSettings {
    /// 256 MiB, 1 GiB, 5 minutes (design, section 9).
    fn default() -> Self {
        Self {
            wal_keep_size_bytes: 256 << 20,
            max_wal_size_bytes: 1 << 30,
            checkpoint_timeout: Duration::from_secs(300),
        }
    }
}

/// What the checkpointer has done, for status and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// Redo begins here: what the store has applied as far as it is known to be on disk; invalid for nothing.
    pub checkpoint_lsn: Lsn,
    /// When the last checkpoint was, in microseconds since 1970; none before the first of this process.
    pub checkpoint_at_us: Option<i64>,
    /// How long it took.
    pub checkpoint_took: Duration,
    /// Checkpoints of this process.
    pub checkpoints: u64,
    /// Segment files that were removed or are used again, by this process.
    pub segments_removed: u64,
    /// The first LSN that is kept.
    pub oldest: Lsn,
    /// From there to the flushed end, in bytes.
    pub wal_bytes: u64,
}

/// See the module.
pub(crate) struct Checkpointer {
    shared: Arc<Shared>,
    settings: watch::Receiver<RetentionSettings>,
    needed_from: watch::Receiver<Option<Lsn>>,
    stopping: watch::Receiver<bool>,
    segment: watch::Receiver<SegmentNo>,
    last: Lsn,
    last_at: Instant,
    /// How far the last two checkpoints were apart from those before them, in bytes.
    distances: [u64; 2],
    runtime: tokio::runtime::Runtime,
}

impl Checkpointer {
    pub(crate) fn new(shared: Arc<Shared>, durable: Lsn) -> std::io::Result<Self> {
        let wal = &shared.wal;
        let known = Retention { checkpoint_lsn: durable, oldest: wal.first(), ..Retention::default() };
        shared.retention.send_replace(known);
        Ok(Self {
            settings: shared.retention_settings.subscribe(),
            needed_from: shared.needed_from.subscribe(),
            stopping: shared.stopping.subscribe(),
            segment: wal.segment(),
            last: durable.max(shared.config.segment_size.log_start()),
            last_at: Instant::now(),
            distances: [0; 2],
            runtime: tokio::runtime::Builder::new_current_thread().enable_time().build()?,
            shared,
        })
    }

    /// Runs until the engine stops or fails.
    pub(crate) fn run(mut self) {
        while !*self.stopping.borrow_and_update() && self.shared.failure.borrow().is_none() {
            if let Err(failure) = self.turn() {
                self.shared.fail(failure);
                return;
            }
        }
    }

    fn turn(&mut self) -> Result<(), EngineFailure> {
        let settings = *self.settings.borrow_and_update();
        let needed_from = *self.needed_from.borrow_and_update();
        self.segment.borrow_and_update();
        if self.is_due(&settings) {
            self.checkpoint()?;
        }
        self.remove(&settings, needed_from)?;
        let wait = self.until_next(&settings);
        let Self { settings, needed_from, stopping, segment, runtime, .. } = self;
        runtime.block_on(async {
            tokio::select! {
                _ = settings.changed() => {}
                _ = needed_from.changed() => {}
                _ = stopping.changed() => {}
                _ = segment.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
        });
        Ok(())
    }

    fn applied_since(&self) -> u64 {
        self.shared.visible_now().lsn.saturating_since(self.last)
    }

    fn is_due(&self, settings: &RetentionSettings) -> bool {
        let applied = self.applied_since();
        let late = self.last_at.elapsed() >= settings.checkpoint_timeout;
        applied > 0 && (late || applied >= trigger_bytes(settings))
    }

    /// How long nothing is due by itself.
    fn until_next(&self, settings: &RetentionSettings) -> Duration {
        let timeout = settings.checkpoint_timeout.saturating_sub(self.last_at.elapsed());
        let written = self.shared.wal.flushed().borrow().saturating_since(self.last);
        if timeout.is_zero() {
            // Nothing was applied in all that time: a while longer does no harm.
            settings.checkpoint_timeout.max(BEHIND_INTERVAL)
        } else if written >= trigger_bytes(settings) {
            timeout.min(BEHIND_INTERVAL)
        } else {
            timeout
        }
    }

    fn checkpoint(&mut self) -> Result<(), EngineFailure> {
        let began = Instant::now();
        let durable = self.shared.store.flush()?;
        let took = began.elapsed();
        self.distances = [self.distances[1], durable.lsn.saturating_since(self.last)];
        self.last = durable.lsn;
        self.last_at = Instant::now();
        let at_us = self.shared.clock.now_us();
        self.shared.retention.send_modify(|retention| {
            retention.checkpoint_lsn = durable.lsn;
            retention.checkpoint_at_us = Some(at_us);
            retention.checkpoint_took = took;
            retention.checkpoints += 1;
        });
        tracing::info!(redo = %durable, took_ms = took.as_millis(), distance_bytes = self.distances[1], "checkpoint");
        Ok(())
    }

    fn remove(&self, settings: &RetentionSettings, others: Option<Lsn>) -> Result<(), EngineFailure> {
        let Shared { wal, config, .. } = &*self.shared;
        let size = config.segment_size;
        let redo = self.shared.retention.borrow().checkpoint_lsn;
        let wal_end = *wal.flushed().borrow();
        let needs = RetentionNeeds { redo, wal_end, wal_keep_size_bytes: settings.wal_keep_size_bytes, others };
        let floor = retention_floor(&needs);
        if size.segment_of(floor) <= size.segment_of(wal.first()) {
            self.publish();
            return Ok(());
        }
        let removal = wal.remove_before(floor, spares_max(size, settings, self.distances))?;
        let count = removal.removed + removal.recycled;
        self.shared.retention.send_modify(|retention| retention.segments_removed += count as u64);
        self.publish();
        Ok(())
    }

    fn publish(&self) {
        let wal = &self.shared.wal;
        let (oldest, end) = (wal.first(), *wal.flushed().borrow());
        self.shared.retention.send_if_modified(|retention| {
            let moved = retention.oldest != oldest;
            retention.oldest = oldest;
            retention.wal_bytes = end.saturating_since(oldest);
            moved
        });
    }
}

fn trigger_bytes(settings: &RetentionSettings) -> u64 {
    (settings.max_wal_size_bytes / 2).max(1)
}

/// How many files are worth keeping: what will be written until the next checkpoint, and never more than the setting allows.
fn spares_max(size: SegmentSize, settings: &RetentionSettings, distances: [u64; 2]) -> usize {
    let bytes = distances[0].max(distances[1]).min(trigger_bytes(settings));
    usize::try_from(bytes.div_ceil(size.get())).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_files_are_kept_as_the_larger_distance_needs() {
        let settings = RetentionSettings { max_wal_size_bytes: 8 << 20, ..RetentionSettings::default() };
        let size = SegmentSize::MIN;
        assert_eq!(spares_max(size, &settings, [0, 0]), 0);
        assert_eq!(spares_max(size, &settings, [3 << 20, 1]), 3);
        assert_eq!(spares_max(size, &settings, [1, (1 << 20) + 1]), 2);
        assert_eq!(spares_max(size, &settings, [100 << 20, 0]), 4, "no more than half of max_wal_size");
    }
}
