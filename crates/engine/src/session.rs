//! What one node is while it is the primary of one timeline. A new one is made with every timeline opened,
//! and closed for good by the seal: nothing is acknowledged through a closed one (INV-FENCED).

use tokio::sync::watch;
use understudy_types::TimelineId;

use crate::commit::UnknownReason;
use crate::queue::CommitQueue;
use crate::waiters::LsnWaiters;

#[derive(Debug)]
pub(crate) struct Session {
    pub timeline: TimelineId,
    /// Commits on their way to the sequencer.
    pub queue: CommitQueue,
    /// Commits that wait for the local flush.
    pub flushed: LsnWaiters,
    /// Commits that wait until the sync standbys have written them.
    pub remote_write: LsnWaiters,
    /// Commits that wait for the safe LSN, and with it for the applier.
    pub visible: LsnWaiters,
    /// Commits that wait until the sync standbys have applied them.
    pub remote_apply: LsnWaiters,
    /// Commits that have what their level asks for, while no majority confirms this primary. Never released: each looks
    /// out for the confirmation itself.
    pub unconfirmed: LsnWaiters,
    closed: watch::Sender<Option<UnknownReason>>,
}

impl Session {
    pub(crate) fn new(timeline: TimelineId, queue_bytes_max: u64) -> Self {
        Self {
            timeline,
            queue: CommitQueue::new(queue_bytes_max),
            flushed: LsnWaiters::default(),
            remote_write: LsnWaiters::default(),
            visible: LsnWaiters::default(),
            remote_apply: LsnWaiters::default(),
            unconfirmed: LsnWaiters::default(),
            closed: watch::Sender::new(None),
        }
    }

    /// Why it was closed; none while it is open.
    pub(crate) fn closed(&self) -> Option<UnknownReason> {
        *self.closed.borrow()
    }

    /// Ends it: queued commits are told that nothing was written, waiting ones that the outcome is unknown.
    /// The first reason stays.
    pub(crate) fn close(&self, why: UnknownReason) {
        self.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            closed.get_or_insert(why);
            first
        });
        self.queue.close();
        for waiters in [&self.flushed, &self.remote_write, &self.visible, &self.remote_apply, &self.unconfirmed] {
            waiters.close(why);
        }
    }
}
