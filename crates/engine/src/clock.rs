//! Time, behind a trait: tests and simulations bring their own.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    /// Microseconds since 1970: written into records for people to read. Nothing is decided by it.
    fn now_us(&self) -> i64;

    /// A clock that never goes back: tells how long somebody has waited, and how long history is kept.
    fn monotonic(&self) -> Instant;

    /// Since the machine was started, the time that it was suspended included: decides whether the primary is still
    /// confirmed. A machine that was suspended finds its confirmation expired.
    fn boot_time(&self) -> Duration;
}

/// The machine's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_us(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    }

    fn monotonic(&self) -> Instant {
        Instant::now()
    }

    fn boot_time(&self) -> Duration {
        let now = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
        Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or_default())
    }
}
