//! A walreceiver's sense of time: silence, pings, status, pauses.

use crate::error::TimedOut;

use super::config::ReceiverTiming;

/// Invariant: one ping for one silence.
#[derive(Debug)]
pub(super) struct Pace {
    timing: ReceiverTiming,
    heard_at_ms: u64,
    pinged: bool,
    acked_at_ms: u64,
    /// Consecutive, without `Started`.
    failed_attempts: u32,
}

impl Pace {
    pub(super) fn new(timing: ReceiverTiming, now_ms: u64) -> Self {
        Self { timing, heard_at_ms: now_ms, pinged: false, acked_at_ms: now_ms, failed_attempts: 0 }
    }

    /// From now on.
    pub(super) fn set_timing(&mut self, timing: ReceiverTiming) {
        self.timing = timing;
    }

    /// Something came from the upstream.
    pub(super) fn heard(&mut self, now_ms: u64) {
        self.heard_at_ms = now_ms;
        self.pinged = false;
    }

    /// The handshake is done.
    pub(super) fn started(&mut self, now_ms: u64) {
        self.failed_attempts = 0;
        self.acked_at_ms = now_ms;
        self.heard(now_ms);
    }

    /// Something is sent to the upstream.
    pub(super) fn acked(&mut self, now_ms: u64, with_ping: bool) {
        self.acked_at_ms = now_ms;
        self.pinged |= with_ping;
    }

    /// How long to pause after one more failed attempt, in milliseconds.
    pub(super) fn next_pause_ms(&mut self) -> u64 {
        let ReceiverTiming { pause_min_ms, pause_max_ms, .. } = self.timing;
        let pause_ms = pause_min_ms.saturating_mul(1 << self.failed_attempts.min(16)).min(pause_max_ms);
        self.failed_attempts = self.failed_attempts.saturating_add(1);
        pause_ms
    }

    pub(super) fn ping_is_due(&self, now_ms: u64) -> bool {
        let timeout_ms = self.timing.timeout_ms;
        timeout_ms > 0 && !self.pinged && now_ms.saturating_sub(self.heard_at_ms) >= timeout_ms / 2
    }

    pub(super) fn status_is_due(&self, now_ms: u64) -> bool {
        let interval_ms = self.timing.status_interval_ms;
        interval_ms > 0 && now_ms.saturating_sub(self.acked_at_ms) >= interval_ms
    }

    /// The silence that is too long; none while it is not.
    pub(super) fn silence(&self, now_ms: u64) -> Option<TimedOut> {
        let (timeout_ms, silent_ms) = (self.timing.timeout_ms, now_ms.saturating_sub(self.heard_at_ms));
        (timeout_ms > 0 && silent_ms >= timeout_ms).then_some(TimedOut { peer: "upstream", silent_ms, timeout_ms })
    }

    /// When the next of these is due. `open`: pings and status can be sent.
    pub(super) fn deadline_ms(&self, open: bool) -> Option<u64> {
        let ReceiverTiming { timeout_ms, status_interval_ms, .. } = self.timing;
        let wait_ms = if self.pinged || !open { timeout_ms } else { timeout_ms / 2 };
        let silence_ms = (timeout_ms > 0).then(|| self.heard_at_ms.saturating_add(wait_ms));
        let status_ms = (open && status_interval_ms > 0).then(|| self.acked_at_ms.saturating_add(status_interval_ms));
        silence_ms.into_iter().chain(status_ms).min()
    }
}
