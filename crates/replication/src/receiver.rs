//! The walreceiver: what a standby does with its upstream's stream, decided without IO.
//!
//! | event | what follows |
//! |---|---|
//! | it begins: the own WAL ends at 0/01000100 on timeline 1; the primary to follow is that of timeline 2 | `Connect` with `Start` |
//! | `Started` by the primary of timeline 2 | `AdvanceSafe`, a first acknowledgement, catchup |
//! | `Data` from 0/01000100 on | `Append`, `AdvanceSafe` |
//! | what is written, flushed or applied here moves | an acknowledgement at once: one for all that moved since |
//! | `EndOfTimeline` 2 at 0/01000500 | `SwitchTimeline` with the history up to 2, as soon as the cluster state has it; then `Connect` |
//! | the stream ends otherwise, breaks, or is silent for the timeout | `Disconnect`; `Connect` after a short pause |
//!
//! One task per followed upstream owns a `WalReceiver` ([`crate::follow()`]; [`crate::fetch()`] for the winner of an election);
//! time comes in as milliseconds of that task's monotonic clock. What is to be done comes out of `poll_action`, in order
//! and to be done in order; what is to be sent comes out of `poll_transmit` when there is room for a message, so that
//! acknowledgements never pile up.
//!
//! INV-FENCED: nothing is appended, and nothing acknowledged, before `Started` named exactly the timeline of the primary
//! that this node was told to follow, and that is not below what this node has sealed. When the node seals, it ends the
//! task and waits for its end: no acknowledgement leaves afterwards.
//!
//! What it refuses to do: take bytes that do not continue its WAL, begin a timeline that the cluster state does not
//! know, and read on when its own disk cannot keep up (`wants_input`: memory is bounded by [`AHEAD_BYTES_MAX`]).

use std::collections::VecDeque;

use understudy_types::{Lsn, TimelineHistory, TimelineId};

use crate::error::Failure;
use crate::message::{Ack, AckPosition, Data, FromStandby, FromUpstream, Start, Started, StreamState};

use self::pace::Pace;
use self::phase::Phase;

pub use self::config::{Action, OwnLog, ReceiverConfig, ReceiverTiming};

mod config;
mod pace;
mod phase;

/// Received and not yet written, in bytes: beyond it nothing more is read from the stream.
pub const AHEAD_BYTES_MAX: u64 = 32 << 20;

/// One followed upstream's state machine.
///
/// Invariants: an acknowledgement never exceeds the own log's positions; appended bytes are a prefix of the upstream's.
#[derive(Debug)]
pub struct WalReceiver {
    config: ReceiverConfig,
    history: TimelineHistory,
    own: OwnLog,
    phase: Phase,
    actions: VecDeque<Action>,
    pace: Pace,
    failure: Option<Failure>,
    upstream_end: Lsn,
    upstream_safe: Lsn,
    caught_up: bool,
    ack_due: bool,
    acked: AckPosition,
    reply_time_us: i64,
}

impl WalReceiver {
    /// A receiver that connects at once.
    pub fn new(config: ReceiverConfig, own: OwnLog, history: TimelineHistory, now_ms: u64) -> Self {
        Self {
            pace: Pace::new(config.timing, now_ms),
            config,
            history,
            own,
            phase: Phase::Pause { until_ms: now_ms },
            actions: VecDeque::new(),
            failure: None,
            upstream_end: Lsn::INVALID,
            upstream_safe: Lsn::INVALID,
            caught_up: false,
            ack_due: false,
            acked: AckPosition::default(),
            reply_time_us: 0,
        }
    }

    /// The pace from now on.
    pub fn set_timing(&mut self, timing: ReceiverTiming) {
        self.config.timing = timing;
        self.pace.set_timing(timing);
    }

    /// Startup while not connected, streaming once the own end has reached the upstream's.
    pub fn state(&self) -> StreamState {
        match self.phase {
            Phase::Open { .. } if self.caught_up => StreamState::Streaming,
            Phase::Open { .. } => StreamState::Catchup,
            Phase::Pause { .. } | Phase::Connecting | Phase::Handshake => StreamState::Startup,
            Phase::AwaitHistory { .. } | Phase::Switching { .. } | Phase::Done => StreamState::Startup,
        }
    }

    /// Why the last attempt came to nothing; none since `Started`.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// The upstream's end of WAL as it was said last.
    pub fn upstream_end(&self) -> Lsn {
        self.upstream_end
    }

    /// The upstream's safe LSN as it was said last.
    pub fn upstream_safe(&self) -> Lsn {
        self.upstream_safe
    }

    /// Whether a fetch has everything that it wanted.
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// Waits for the cluster state to name this timeline; none when it does not wait.
    pub fn awaited_timeline(&self) -> Option<TimelineId> {
        match self.phase {
            Phase::AwaitHistory { next, .. } => Some(next),
            Phase::Pause { .. } | Phase::Connecting | Phase::Handshake => None,
            Phase::Open { .. } | Phase::Switching { .. } | Phase::Done => None,
        }
    }

    /// Whether the stream may be read from: not while too much of what came is still to be written.
    pub fn wants_input(&self) -> bool {
        self.own.end.saturating_since(self.own.written) < AHEAD_BYTES_MAX
    }

    /// What to do next.
    pub fn poll_action(&mut self, now_ms: u64) -> Option<Action> {
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        match self.phase {
            Phase::Pause { until_ms } if until_ms <= now_ms => {
                self.phase = Phase::Connecting;
                Some(Action::Connect(self.start_message()))
            }
            Phase::Pause { .. } | Phase::Connecting | Phase::Handshake => None,
            Phase::Open { .. } | Phase::AwaitHistory { .. } | Phase::Switching { .. } | Phase::Done => None,
        }
    }

    /// Whether [`Self::poll_transmit`] has something.
    pub fn wants_to_transmit(&self, now_ms: u64) -> bool {
        let Phase::Open { .. } = self.phase else { return false };
        let moved = self.config.fetch.is_none() && self.has_moved();
        self.ack_due || moved || self.pace.status_is_due(now_ms) || self.pace.ping_is_due(now_ms)
    }

    /// Whether a commit may be waiting for what is to be told: at level `remote_write` for what is written, at `on` for
    /// what is flushed, at `remote_apply` for what is applied.
    fn has_moved(&self) -> bool {
        let AckPosition { write, flush, apply, .. } = self.acked;
        self.own.written > write || self.own.flushed > flush || self.own.applied > apply
    }

    /// The acknowledgement to send now; none when there is no need. Asked whenever there is room for a message.
    pub fn poll_transmit(&mut self, now_ms: u64) -> Option<FromStandby> {
        if !self.wants_to_transmit(now_ms) {
            return None;
        }
        let Phase::Open { upstream } = self.phase else { return None };
        let reply_requested = self.pace.ping_is_due(now_ms);
        self.pace.acked(now_ms, reply_requested);
        self.ack_due = false;
        let OwnLog { written, flushed, applied, .. } = self.own;
        self.acked = match self.config.fetch {
            None => AckPosition { write: written, flush: flushed, apply: applied, reply_time_us: self.reply_time_us },
            // Whoever fetches has sealed: a sign of life, and no position (INV-FENCED).
            Some(_) => AckPosition { reply_time_us: self.reply_time_us, ..AckPosition::default() },
        };
        Some(FromStandby::Ack(Ack { timeline: upstream, position: self.acked, reply_requested }))
    }

    /// When [`Self::handle_tick`], [`Self::poll_action`] and [`Self::poll_transmit`] are to be asked again, if nothing
    /// happens before.
    pub fn deadline_ms(&self) -> Option<u64> {
        match self.phase {
            Phase::Pause { until_ms } => Some(until_ms),
            Phase::Handshake => self.pace.deadline_ms(false),
            Phase::Open { .. } => self.pace.deadline_ms(true),
            Phase::Connecting | Phase::AwaitHistory { .. } | Phase::Switching { .. } | Phase::Done => None,
        }
    }

    /// Time passed.
    pub fn handle_tick(&mut self, now_ms: u64) {
        match self.phase {
            Phase::Handshake | Phase::Open { .. } => {}
            Phase::Pause { .. } | Phase::Connecting | Phase::AwaitHistory { .. } => return,
            Phase::Switching { .. } | Phase::Done => return,
        }
        if !self.wants_input() {
            // The silence is our own: nothing is read while the disk is behind.
            self.pace.heard(now_ms);
        } else if let Some(silence) = self.pace.silence(now_ms) {
            self.fail(silence.into(), now_ms);
        }
    }

    /// The stream is open, `Start` is on its way.
    pub fn handle_connected(&mut self, now_ms: u64) {
        if self.phase == Phase::Connecting {
            self.phase = Phase::Handshake;
            self.pace.heard(now_ms);
        }
    }

    /// There was no stream to be had.
    pub fn handle_connect_failed(&mut self, reason: String, now_ms: u64) {
        if self.phase == Phase::Connecting {
            self.fail(Failure::Connect { reason }, now_ms);
        }
    }

    /// The stream ended; `broken` says how, none for a clean end.
    pub fn handle_closed(&mut self, broken: Option<String>, now_ms: u64) {
        match self.phase {
            Phase::Handshake | Phase::Open { .. } => {
                let failure = broken.map_or(Failure::Ended, |reason| Failure::Broken { reason });
                self.fail(failure, now_ms);
            }
            // It ended with an end message, or is not there.
            Phase::AwaitHistory { .. } | Phase::Switching { .. } | Phase::Done => {}
            Phase::Pause { .. } | Phase::Connecting => {}
        }
    }

    /// The upstream refuses, or ends the stream, because it does not have (any more) what comes next.
    pub fn handle_wal_gone(&mut self, segment: String, reason: String, now_ms: u64) {
        match self.phase {
            Phase::Connecting | Phase::Handshake | Phase::Open { .. } => {
                self.fail(Failure::WalGone { segment, reason }, now_ms);
            }
            Phase::Pause { .. } | Phase::AwaitHistory { .. } | Phase::Switching { .. } | Phase::Done => {}
        }
    }

    /// The name of the segment that this node needs and the upstream has removed, or finds damaged; none as long as
    /// streaming may help.
    pub fn wal_gone(&self) -> Option<&str> {
        match &self.failure {
            Some(Failure::WalGone { segment, .. }) => Some(segment),
            Some(_) | None => None,
        }
    }

    /// A message came.
    pub fn handle_message(&mut self, message: FromUpstream, now_ms: u64) {
        let outcome = match (self.phase, message) {
            (Phase::Handshake, FromUpstream::Started(started)) => self.on_started(started, now_ms),
            (Phase::Handshake, FromUpstream::Stopping { reason }) => Err(Failure::Stopping { reason }),
            (Phase::Handshake, other) => Err(unexpected(&other, "before Started")),
            (Phase::Open { .. }, message) => self.on_message(message, now_ms),
            // The stream is given up or has ended: what is still in the pipe counts nothing.
            (Phase::Pause { .. } | Phase::Connecting | Phase::AwaitHistory { .. }, _) => Ok(()),
            (Phase::Switching { .. } | Phase::Done, _) => Ok(()),
        };
        if let Err(failure) = outcome {
            self.fail(failure, now_ms);
        }
    }

    /// The own log was appended to and ends here.
    pub fn appended(&mut self, end: Lsn) {
        self.own.end = end;
        self.note_caught_up();
    }

    /// The own log did not take what it was given.
    pub fn log_failed(&mut self, reason: String, now_ms: u64) {
        self.fail(Failure::Log { reason }, now_ms);
    }

    /// The own log moved on. Each position is brought into its order: a flush that was read after the write is not
    /// beyond it.
    pub fn set_positions(&mut self, written: Lsn, flushed: Lsn, applied: Lsn) {
        self.own.written = written.min(self.own.end);
        self.own.flushed = flushed.min(self.own.written);
        self.own.applied = applied.min(self.own.flushed);
    }

    /// The cluster state's history, whenever it grew.
    pub fn handle_history(&mut self, history: TimelineHistory, now_ms: u64) {
        self.history = history;
        if let Phase::AwaitHistory { next, switch_lsn } = self.phase
            && let Err(failure) = self.try_switch(next, switch_lsn)
        {
            self.fail(failure, now_ms);
        }
    }

    /// The timeline was begun.
    pub fn switched(&mut self, now_ms: u64) {
        if let Phase::Switching { next } = self.phase {
            self.own.timeline = next;
            self.phase = Phase::Pause { until_ms: now_ms };
        }
    }

    fn start_message(&self) -> Start {
        Start {
            system_id: self.config.system_id,
            wal_format_version: self.config.format.version,
            segment_size_bytes: self.config.format.segment_size.get(),
            node: self.config.node,
            incarnation: self.config.incarnation,
            timeline: self.own.timeline,
            start_lsn: self.own.end,
            damage_epoch: self.config.damage_epoch,
            fetch: self.config.fetch,
        }
    }

    fn on_started(&mut self, started: Started, now_ms: u64) -> Result<(), Failure> {
        let (standby, upstream) = (self.config.system_id, started.system_id);
        if standby != upstream {
            return Err(Failure::SystemId { standby, upstream });
        }
        if self.config.fetch.is_none() {
            let (sealed, expected, upstream) = (self.config.sealed, self.config.timeline, started.timeline);
            if upstream < sealed {
                return Err(Failure::Fenced { upstream, sealed });
            }
            if upstream != expected {
                return Err(Failure::Timeline { upstream, expected });
            }
        }
        self.phase = Phase::Open { upstream: started.timeline };
        self.failure = None;
        self.caught_up = false;
        self.acked = AckPosition::default();
        self.ack_due = true;
        self.pace.started(now_ms);
        self.on_news(started.end, started.safe);
        self.note_caught_up();
        Ok(())
    }

    fn on_message(&mut self, message: FromUpstream, now_ms: u64) -> Result<(), Failure> {
        self.pace.heard(now_ms);
        match message {
            FromUpstream::Data(data) => self.on_data(data),
            FromUpstream::Keepalive(keepalive) => {
                self.reply_time_us = keepalive.send_time_us;
                self.ack_due |= keepalive.reply_requested;
                self.on_news(keepalive.end, keepalive.safe);
                self.note_caught_up();
                Ok(())
            }
            FromUpstream::EndOfTimeline { next, switch_lsn } => self.try_switch(next, switch_lsn),
            FromUpstream::FetchDone => self.on_fetch_done(),
            FromUpstream::Stopping { reason } => Err(Failure::Stopping { reason }),
            FromUpstream::Started(_) => Err(unexpected(&message, "a second time")),
        }
    }

    fn on_data(&mut self, data: Data) -> Result<(), Failure> {
        // Everything that was given out as `Append` was done before the next message was handled.
        if data.start != self.own.end || data.bytes.is_empty() {
            return Err(Failure::Gap { start: data.start, end: self.own.end });
        }
        self.reply_time_us = data.send_time_us;
        self.actions.push_back(Action::Append { start: data.start, bytes: data.bytes });
        self.on_news(data.end, data.safe);
        Ok(())
    }

    fn on_news(&mut self, end: Lsn, safe: Lsn) {
        self.upstream_end = end;
        self.upstream_safe = safe;
        // A sealed source's safe LSN is only what it had heard: the promotion says what is safe (F).
        if self.config.fetch.is_none() {
            self.actions.push_back(Action::AdvanceSafe(safe));
        }
    }

    fn on_fetch_done(&mut self) -> Result<(), Failure> {
        match self.config.fetch {
            Some(range) if self.own.end >= range.until => {
                self.phase = Phase::Done;
                Ok(())
            }
            Some(_) => Err(unexpected(&FromUpstream::FetchDone, "before everything was there")),
            None => Err(unexpected(&FromUpstream::FetchDone, "though nothing was fetched")),
        }
    }

    /// `EndOfTimeline`, now or as soon as the cluster state knows the next timeline.
    fn try_switch(&mut self, next: TimelineId, switch_lsn: Lsn) -> Result<(), Failure> {
        let refuse = |why: String| Err(Failure::Switch { next, switch_lsn, why });
        if switch_lsn != self.own.end {
            return refuse(format!("this node's WAL ends at {}", self.own.end));
        }
        if next <= self.own.timeline {
            return refuse(format!("this node's WAL stands on timeline {} already", self.own.timeline));
        }
        if self.config.fetch.is_none() && next > self.config.timeline {
            return refuse(format!("this node follows the primary of timeline {}", self.config.timeline));
        }
        match self.history.switch_to(next) {
            Some(known) if known.switch_lsn != switch_lsn => {
                refuse(format!("the cluster's history says that it begins at {}", known.switch_lsn))
            }
            Some(_) => {
                self.phase = Phase::Switching { next };
                self.actions.push_back(Action::SwitchTimeline(self.history.up_to(next)));
                Ok(())
            }
            None if self.history.latest() > next => refuse("the cluster's history does not have it".to_owned()),
            None => {
                self.phase = Phase::AwaitHistory { next, switch_lsn };
                Ok(())
            }
        }
    }

    fn note_caught_up(&mut self) {
        if let Phase::Open { upstream } = self.phase
            && self.own.timeline == upstream
            && self.own.end >= self.upstream_end
        {
            self.caught_up = true;
        }
    }

    fn fail(&mut self, failure: Failure, now_ms: u64) {
        self.failure = Some(failure);
        self.phase = Phase::Pause { until_ms: now_ms.saturating_add(self.pace.next_pause_ms()) };
        self.actions.push_back(Action::Disconnect);
    }
}

fn unexpected(message: &FromUpstream, when: &'static str) -> Failure {
    Failure::Unexpected { message: message.name(), when }
}

#[cfg(test)]
mod tests;
