//! The walsender: what an upstream says to one standby, decided without IO.
//!
//! | event | what follows |
//! |---|---|
//! | `start`: a standby on timeline 1 ends at 0/01000100; the chain is 1, then 2 from 0/01000500 | `Started`, catchup |
//! | room in the channel | `Read` 0/01000100 up to 0/01000500; the shell reads, `Data` goes out |
//! | everything of timeline 1 was sent | `EndOfTimeline` 2 at 0/01000500; the stream ends |
//! | `start`: the same standby on timeline 2 | `Started`, then `Read` up to the appended end |
//! | acknowledgement of everything that there was | streaming |
//! | the safe LSN moves and there is nothing to send | `Keepalive` at once |
//! | nothing was heard for half the timeout | `Keepalive` that asks for an answer |
//! | nothing was heard for the timeout | the peer is dropped |
//!
//! One task per stream owns a `WalSender` ([`crate::serve`]); time comes in as milliseconds of that task's monotonic
//! clock. Messages are decided when there is room for them (`poll_transmit`), never queued: a slow standby costs the
//! upstream nothing, and what it is told last is what holds then.
//!
//! Bytes are sent as soon as they are appended, before the local flush, so that the remote flush overlaps the local
//! one (`XLogSendPhysical` of PostgreSQL's `walsender.c` waits for the flush). That is sound because whoever loses its
//! unflushed tail in a crash comes back through an election, which takes the highest position there is.
//!
//! What it refuses to do: stream to a standby whose WAL left the upstream's chain (INV-BYTES: it must rejoin first), to
//! one of another cluster or format (WAL-3), and believe an acknowledgement of what it has not sent.
//!
//! Streaming is reached when the standby has flushed everything that had been appended at a moment when the sender had
//! sent all of it. Without writes that is "acknowledged end = appended end". Under load the two are never equal, because
//! a flush takes time in which others append, and a standby must be able to join the sync list then too; but one that
//! has fallen behind again by the time of the acknowledgement must run dry again first.

use bytes::Bytes;
use understudy_types::{Lsn, NodeId, SystemId, TimelineHistory, TimelineId};
use understudy_wal::segment::segment_file_name_at;

use crate::error::{AckError, Refusal, TimedOut};
use crate::message::{Ack, AckPosition, Data, Keepalive, Start, Started, StreamState, WalFormat};

/// The largest piece that is read at once, in bytes; a larger record goes alone.
pub const DATA_BYTES_MAX: usize = 256 << 10;

/// A standby that is further behind than this when it acknowledges is not streaming yet, in bytes.
const STREAMING_LAG_BYTES_MAX: u64 = 16 << 20;

/// The upstream at the moment of a [`Start`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Its cluster.
    pub system_id: SystemId,
    /// Its WAL's.
    pub format: WalFormat,
    /// Itself.
    pub node: NodeId,
    /// The chain that it serves: the present timeline is the latest.
    pub history: TimelineHistory,
    /// The first position of its WAL that is kept.
    pub first: Lsn,
    /// The end of its WAL, appended; for a fetch: of what lies on `history`.
    pub end: Lsn,
    /// Its safe LSN.
    pub safe: Lsn,
    /// What it has sealed for; zero for nothing.
    pub sealed: TimelineId,
}

/// What the shell shall send next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transmit {
    /// The answer to `Start`.
    Started(Started),
    /// Read whole records from here on, then give them to [`WalSender::data`] and send what it returns.
    Read {
        /// The first byte.
        from: Lsn,
        /// Not beyond.
        upto: Lsn,
        /// Not more, unless a single record is larger.
        bytes_max: usize,
    },
    /// To be stamped with the send time by the shell.
    Keepalive(Keepalive),
    /// The last message.
    EndOfTimeline {
        /// What follows.
        next: TimelineId,
        /// Where.
        switch_lsn: Lsn,
    },
    /// The last message.
    FetchDone,
    /// The last message.
    Stopping {
        /// For people.
        reason: String,
    },
}

/// One stream's state machine.
///
/// Invariants: `acked.apply <= acked.flush <= acked.write <= sent <= min(end, limit)`; nothing comes after a last message.
#[derive(Debug)]
pub struct WalSender {
    timeline: TimelineId,
    started: Option<Started>,
    /// Where the streamed timeline ends on the chain, and what follows; none for the present timeline.
    limit: Option<(Lsn, TimelineId)>,
    /// A fetch ends here.
    until: Option<Lsn>,
    state: StreamState,
    sent: Lsn,
    end: Lsn,
    safe: Lsn,
    told_safe: Lsn,
    acked: AckPosition,
    /// The end of the WAL at the first moment when all of it was sent; see the module's words on streaming.
    dry_at: Option<Lsn>,
    timeout_ms: u64,
    heard_at_ms: u64,
    pinged: bool,
    reply_due: bool,
    stopping: Option<String>,
    ended: bool,
}

impl WalSender {
    /// The handshake guard: takes a standby on, or says why not.
    ///
    /// `timeout_ms`: a peer from which nothing came for so long is dropped; zero for never.
    ///
    /// # Errors
    /// The refusal, which names what was asked, what is so, and what to do.
    pub fn start(upstream: &Upstream, start: &Start, timeout_ms: u64, now_ms: u64) -> Result<Self, Refusal> {
        check_identity(upstream, start)?;
        check_position(upstream, start)?;
        if let Some(range) = start.fetch {
            check_fetch(upstream, start.start_lsn, range.election, range.until)?;
        }
        let limit = upstream.history.next_after(start.timeline).map(|next| (next.switch_lsn, next.timeline));
        let started = Started {
            system_id: upstream.system_id,
            node: upstream.node,
            timeline: upstream.history.latest(),
            end: upstream.end,
            safe: upstream.safe,
        };
        let mut sender = Self {
            timeline: upstream.history.latest(),
            started: Some(started),
            limit,
            until: start.fetch.map(|range| range.until),
            state: StreamState::Startup,
            sent: start.start_lsn,
            end: upstream.end,
            safe: upstream.safe,
            told_safe: upstream.safe,
            acked: AckPosition::default(),
            dry_at: None,
            timeout_ms,
            heard_at_ms: now_ms,
            pinged: false,
            reply_due: false,
            stopping: None,
            ended: false,
        };
        sender.note_dry();
        Ok(sender)
    }

    /// The state, as `pg_stat_replication` shows it.
    pub fn state(&self) -> StreamState {
        self.state
    }

    /// The end of what was sent.
    pub fn sent(&self) -> Lsn {
        self.sent
    }

    /// The last acknowledgement.
    pub fn acked(&self) -> AckPosition {
        self.acked
    }

    /// Whether the last message was given out: the stream ends behind it.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// The upstream's WAL was appended to.
    pub fn set_end(&mut self, end: Lsn) {
        // A fetch is served from a sealed WAL: what it offered at the start is what it has.
        if self.until.is_none() {
            self.end = self.end.max(end);
        }
    }

    /// The safe LSN moved.
    pub fn set_safe(&mut self, safe: Lsn) {
        self.safe = self.safe.max(safe);
    }

    /// The upstream ends this stream: it steps down or stops.
    pub fn stop(&mut self, reason: &str) {
        if self.stopping.is_none() {
            self.stopping = Some(reason.to_owned());
            self.state = StreamState::Stopping;
        }
    }

    /// The standby acknowledged.
    ///
    /// # Errors
    /// When it acknowledges for another timeline, more than was sent, less than before, or out of order: such a peer
    /// is not to be believed, and the connection ends.
    pub fn handle_ack(&mut self, ack: &Ack, now_ms: u64) -> Result<AckPosition, AckError> {
        if ack.timeline != self.timeline {
            return Err(AckError::Timeline { acknowledged: ack.timeline, streamed: self.timeline });
        }
        let AckPosition { write, flush, apply, .. } = ack.position;
        if write > self.sent {
            return Err(AckError::NeverSent { acknowledged: write, sent: self.sent });
        }
        if flush > write || apply > flush {
            return Err(AckError::OutOfOrder { write, flush, apply });
        }
        for (before, after) in [(self.acked.write, write), (self.acked.flush, flush), (self.acked.apply, apply)] {
            if after < before {
                return Err(AckError::Backwards { before, after });
            }
        }
        self.acked = ack.position;
        self.heard_at_ms = now_ms;
        self.pinged = false;
        self.reply_due |= ack.reply_requested;
        self.note_caught_up();
        Ok(self.acked)
    }

    /// When [`Self::handle_tick`] and [`Self::poll_transmit`] are to be asked again, if nothing happens before.
    pub fn deadline_ms(&self) -> Option<u64> {
        let wait = if self.pinged { self.timeout_ms } else { self.timeout_ms / 2 };
        (self.timeout_ms > 0 && !self.ended).then(|| self.heard_at_ms.saturating_add(wait))
    }

    /// Time passed.
    ///
    /// # Errors
    /// When nothing came from the standby for the whole timeout.
    pub fn handle_tick(&mut self, now_ms: u64) -> Result<(), TimedOut> {
        let silent_ms = now_ms.saturating_sub(self.heard_at_ms);
        if self.timeout_ms > 0 && silent_ms >= self.timeout_ms {
            return Err(TimedOut { peer: "standby", silent_ms, timeout_ms: self.timeout_ms });
        }
        Ok(())
    }

    /// Whether [`Self::poll_transmit`] has something.
    pub fn wants_to_transmit(&self, now_ms: u64) -> bool {
        !self.ended
            && (self.started.is_some()
                || self.stopping.is_some()
                || self.ping_is_due(now_ms)
                || self.last_message().is_some()
                || self.sent < self.readable()
                || self.news_is_due())
    }

    /// What to send next; none when there is nothing. Asked whenever there is room for a message.
    pub fn poll_transmit(&mut self, now_ms: u64) -> Option<Transmit> {
        if self.ended {
            return None;
        }
        if let Some(started) = self.started.take() {
            self.state = self.state.max(StreamState::Catchup);
            return Some(Transmit::Started(started));
        }
        if let Some(reason) = self.stopping.clone() {
            self.ended = true;
            return Some(Transmit::Stopping { reason });
        }
        if self.ping_is_due(now_ms) {
            self.pinged = true;
            return Some(self.keepalive(true));
        }
        if let Some(last) = self.last_message() {
            self.ended = true;
            return Some(last);
        }
        let upto = self.readable();
        if self.sent < upto {
            return Some(Transmit::Read { from: self.sent, upto, bytes_max: DATA_BYTES_MAX });
        }
        self.news_is_due().then(|| self.keepalive(false))
    }

    /// The message for `bytes`, which were read as [`Transmit::Read`] asked.
    ///
    /// # Panics
    /// When they do not begin where the last ones ended, or go beyond what was asked for: streaming them would
    /// break INV-BYTES.
    pub fn data(&mut self, start: Lsn, bytes: Bytes, send_time_us: i64) -> Data {
        assert_eq!(start, self.sent, "a piece of the log begins where the last one ended");
        let end = start.advance(bytes.len() as u64);
        assert!(end > start && end <= self.readable(), "a piece of the log ends within what was asked for");
        self.sent = end;
        self.told_safe = self.safe;
        self.note_dry();
        Data { start, bytes, end: self.end, safe: self.safe, send_time_us, marks: Vec::new() }
    }

    /// Not beyond the appended end, the fork, or what a fetch asked for.
    fn readable(&self) -> Lsn {
        let fork = self.limit.map_or(Lsn::MAX, |(lsn, _)| lsn);
        self.end.min(fork).min(self.until.unwrap_or(Lsn::MAX))
    }

    fn last_message(&self) -> Option<Transmit> {
        if self.until.is_some_and(|until| self.sent >= until) {
            return Some(Transmit::FetchDone);
        }
        let (switch_lsn, next) = self.limit?;
        (self.sent >= switch_lsn).then_some(Transmit::EndOfTimeline { next, switch_lsn })
    }

    fn ping_is_due(&self, now_ms: u64) -> bool {
        self.timeout_ms > 0 && !self.pinged && now_ms.saturating_sub(self.heard_at_ms) >= self.timeout_ms / 2
    }

    fn news_is_due(&self) -> bool {
        self.reply_due || self.safe > self.told_safe
    }

    fn keepalive(&mut self, reply_requested: bool) -> Transmit {
        self.told_safe = self.safe;
        self.reply_due = false;
        Transmit::Keepalive(Keepalive { end: self.end, safe: self.safe, send_time_us: 0, reply_requested })
    }

    fn note_dry(&mut self) {
        if self.limit.is_none() && self.until.is_none() && self.sent >= self.end {
            self.dry_at.get_or_insert(self.sent);
        }
    }

    fn note_caught_up(&mut self) {
        if self.state != StreamState::Catchup || self.dry_at.is_none_or(|dry_at| self.acked.flush < dry_at) {
            return;
        }
        if self.end.saturating_since(self.acked.flush) > STREAMING_LAG_BYTES_MAX {
            self.dry_at = None;
            self.note_dry();
        } else {
            self.state = StreamState::Streaming;
        }
    }
}

fn check_identity(upstream: &Upstream, start: &Start) -> Result<(), Refusal> {
    if start.system_id != upstream.system_id {
        return Err(Refusal::SystemId { standby: start.system_id, upstream: upstream.system_id });
    }
    if start.wal_format_version != upstream.format.version {
        return Err(Refusal::FormatVersion { standby: start.wal_format_version, upstream: upstream.format.version });
    }
    let (standby_bytes, upstream_bytes) = (start.segment_size_bytes, upstream.format.segment_size.get());
    if standby_bytes != upstream_bytes {
        return Err(Refusal::SegmentSize { standby_bytes, upstream_bytes });
    }
    if start.node == upstream.node {
        return Err(Refusal::Itself { node: start.node });
    }
    Ok(())
}

/// Whether the standby's WAL is a prefix of the chain.
fn check_position(upstream: &Upstream, start: &Start) -> Result<(), Refusal> {
    let (timeline, start_lsn, latest) = (start.timeline, start.start_lsn, upstream.history.latest());
    if timeline != TimelineId::NONE && upstream.history.switch_to(timeline).is_none() {
        return Err(Refusal::UnknownTimeline { timeline, latest });
    }
    let log_start = upstream.format.segment_size.log_start();
    if start_lsn < log_start {
        return Err(Refusal::BeforeLog { start_lsn, log_start });
    }
    match upstream.history.end_of(timeline) {
        Some(fork_lsn) if fork_lsn < start_lsn => Err(Refusal::PastFork { timeline, start_lsn, fork_lsn, latest }),
        Some(_) | None if start_lsn > upstream.end => {
            Err(Refusal::PastEnd { timeline, start_lsn, end_lsn: upstream.end })
        }
        Some(_) | None if start_lsn < upstream.first => {
            let segment = segment_file_name_at(&upstream.history, start_lsn, upstream.format.segment_size);
            Err(Refusal::Removed { start_lsn, first: upstream.first, segment })
        }
        Some(_) | None => Ok(()),
    }
}

fn check_fetch(upstream: &Upstream, start_lsn: Lsn, election: TimelineId, until: Lsn) -> Result<(), Refusal> {
    if upstream.sealed != election {
        return Err(Refusal::NotSealed { election, sealed: upstream.sealed });
    }
    if start_lsn > until {
        return Err(Refusal::FetchBackwards { start_lsn, until });
    }
    if until > upstream.end {
        return Err(Refusal::FetchPastEnd { until, end_lsn: upstream.end });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
