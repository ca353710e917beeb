//! The standby's own log, as the walreceiver's shells need it.
//!
//! Two things stand behind it: the engine of a standby that follows its primary, and the engine of a sealed node that
//! fetches what it lacks for an election, which takes WAL only from the fetch.

use bytes::Bytes;
use tokio::sync::watch;
use understudy_engine::Mark;
use understudy_types::{Lsn, Position, TimelineHistory};

use crate::receiver::OwnLog;

/// The log did not do what it was asked to; the text is its own.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct LogError(Box<dyn std::error::Error + Send + Sync>);

impl LogError {
    /// What the log said.
    pub fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

/// A log that WAL is received into.
pub trait LogSink: Send + Sync + 'static {
    /// Where it stands.
    fn own(&self) -> OwnLog;

    /// Verifies whole records that begin at the own end, and queues them to be written; never blocks on IO.
    ///
    /// # Errors
    /// When they do not continue the log, are damaged, or the log takes nothing at present. Nothing was appended then.
    fn receive(&self, start: Lsn, bytes: Bytes) -> Result<Lsn, LogError>;

    /// What the upstream said of the records that [`LogSink::receive`] gets next: these commits are traced.
    /// A log that is not observed has no use for it.
    fn mark(&self, _marks: &[Mark]) {}

    /// Begins the latest timeline of `history` at the own end; blocks on IO.
    ///
    /// # Errors
    /// When the log does not end there, or on IO.
    fn begin_timeline(&self, history: &TimelineHistory) -> Result<(), LogError>;

    /// Flushes everything that was received and returns the end; blocks on IO.
    ///
    /// # Errors
    /// On IO.
    fn flush(&self) -> Result<Lsn, LogError>;

    /// Everything below is safe.
    fn advance_safe(&self, lsn: Lsn);

    /// The end of what is written to files.
    fn written(&self) -> watch::Receiver<Lsn>;

    /// The end of what is on disk.
    fn flushed(&self) -> watch::Receiver<Lsn>;

    /// The end of what is visible.
    fn visible(&self) -> watch::Receiver<Position>;
}
