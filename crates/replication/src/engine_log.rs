//! The engine as the log that is streamed, and as the log that is received into.
//!
//! A sealed engine receives for a fetch once it was told to ([`Engine::allow_fetch`]), and refuses everything else.

use bytes::Bytes;
use tokio::sync::watch;
use understudy_engine::{Engine, Mark};
use understudy_types::{Lsn, NodeId, Position, SystemId, TimelineHistory};
use understudy_wal::segment::FORMAT_VERSION;

use crate::hooks::Source;
use crate::log::{LogError, LogSink};
use crate::message::WalFormat;
use crate::receiver::OwnLog;

impl WalFormat {
    /// What this release writes into the log of `engine`.
    pub fn of(engine: &Engine) -> Self {
        Self { version: FORMAT_VERSION, segment_size: engine.wal().segment_size() }
    }
}

impl Source {
    /// The log of `engine`, on node `node`.
    pub fn of(engine: &Engine, node: NodeId) -> Self {
        let system_id: SystemId = engine.wal().system_id();
        Self { system_id, format: WalFormat::of(engine), node, wal: engine.wal().clone(), safe: engine.safe() }
    }
}

impl LogSink for Engine {
    fn own(&self) -> OwnLog {
        // In this order, so that each position is at least the one before.
        let applied = self.visible().borrow().lsn;
        let flushed = *self.wal().flushed().borrow();
        let written = *self.wal().written().borrow();
        OwnLog { timeline: self.wal().history().latest(), end: self.wal().end().lsn, written, flushed, applied }
    }

    fn receive(&self, start: Lsn, bytes: Bytes) -> Result<Lsn, LogError> {
        Engine::receive(self, start, bytes).map_err(LogError::new)
    }

    fn mark(&self, marks: &[Mark]) {
        Engine::mark(self, marks);
    }

    fn begin_timeline(&self, history: &TimelineHistory) -> Result<(), LogError> {
        Engine::begin_timeline(self, history).map_err(LogError::new)
    }

    fn flush(&self) -> Result<Lsn, LogError> {
        self.wal().flush().map_err(LogError::new)
    }

    fn advance_safe(&self, lsn: Lsn) {
        Engine::advance_safe(self, lsn);
    }

    fn written(&self) -> watch::Receiver<Lsn> {
        self.wal().written()
    }

    fn flushed(&self) -> watch::Receiver<Lsn> {
        self.wal().flushed()
    }

    fn visible(&self) -> watch::Receiver<Position> {
        Engine::visible(self)
    }
}
