//! How far a standby is behind in time: PostgreSQL's `LagTracker` (`walsender.c`), over what was sent when.
//!
//! | sent | at | acknowledged | at | lag |
//! |---|---|---|---|---|
//! | 100 | 10 us | | 15 us | 5 us and growing: 100 is under way |
//! | 100 | 10 us | 100 | 18 us | 8 us: what the last one took |
//! | 100 | 10 us | 50 | 18 us | 8 us and growing: 100 is still under way |
//! | nothing for [`LagTracker::IDLE_US`] | | everything | | none |
//!
//! A sample is the end of what was sent and when. There are at most [`SAMPLES_MAX`]: when they are full every second
//! one goes, so that a standby far behind costs no more memory, only precision. A standby that has stopped
//! acknowledging shows a lag that grows (PostgreSQL shows the last one that was measured).

use std::collections::VecDeque;

use understudy_types::Lsn;

use super::standbys::Ack;

/// Samples of one standby; each is 16 bytes.
const SAMPLES_MAX: usize = 1_024;

#[derive(Debug, Clone, Copy)]
struct Sample {
    end: Lsn,
    sent_us: u64,
}

/// One of write, flush and apply.
#[derive(Debug, Clone, Copy, Default)]
struct Head {
    acked: Lsn,
    /// What the last acknowledged sample took, and when it was acknowledged.
    last: Option<(u64, u64)>,
}

/// What was sent to one standby over one connection, and how long its acknowledgements take. Times are microseconds of
/// the caller's monotonic clock.
#[derive(Debug, Clone, Default)]
pub struct LagTracker {
    /// In the order of both members. Those that all three have passed are gone.
    samples: VecDeque<Sample>,
    write: Head,
    flush: Head,
    apply: Head,
}

/// In microseconds; none when nothing is under way and nothing was for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lag {
    /// Until written there.
    pub write_us: Option<u64>,
    /// Until flushed there.
    pub flush_us: Option<u64>,
    /// Until visible there.
    pub apply_us: Option<u64>,
}

impl LagTracker {
    /// What was measured longer ago than this says nothing about now, in microseconds.
    pub const IDLE_US: u64 = 10_000_000;

    /// Everything up to `end` was sent at `now_us`.
    pub fn sent(&mut self, end: Lsn, now_us: u64) {
        if self.samples.back().is_some_and(|last| last.end >= end) {
            return;
        }
        if self.samples.len() >= SAMPLES_MAX {
            let mut odd = false;
            self.samples.retain(|_| {
                odd = !odd;
                odd
            });
        }
        self.samples.push_back(Sample { end, sent_us: now_us });
    }

    /// The standby acknowledged at `now_us`.
    pub fn acked(&mut self, ack: Ack, now_us: u64) {
        let Self { samples, write, flush, apply } = self;
        for (head, lsn) in [(write, ack.write), (flush, ack.flush), (apply, ack.apply)] {
            if lsn <= head.acked {
                continue;
            }
            head.acked = lsn;
            let upto = samples.partition_point(|sample| sample.end <= lsn);
            if let Some(sample) = upto.checked_sub(1).and_then(|at| samples.get(at)) {
                head.last = Some((now_us.saturating_sub(sample.sent_us), now_us));
            }
        }
        let all = self.write.acked.min(self.flush.acked).min(self.apply.acked);
        let passed = self.samples.partition_point(|sample| sample.end <= all);
        self.samples.drain(..passed);
    }

    /// As of `now_us`.
    pub fn lag(&self, now_us: u64) -> Lag {
        Lag {
            write_us: self.lag_of(&self.write, now_us),
            flush_us: self.lag_of(&self.flush, now_us),
            apply_us: self.lag_of(&self.apply, now_us),
        }
    }

    fn lag_of(&self, head: &Head, now_us: u64) -> Option<u64> {
        let under_way = self.samples.get(self.samples.partition_point(|sample| sample.end <= head.acked));
        let waits_us = under_way.map(|sample| now_us.saturating_sub(sample.sent_us));
        let took_us =
            head.last.filter(|(_, at_us)| now_us.saturating_sub(*at_us) < Self::IDLE_US).map(|(took, _)| took);
        match (waits_us, took_us) {
            (Some(waits_us), Some(took_us)) => Some(waits_us.max(took_us)),
            (waits_us, took_us) => waits_us.or(took_us),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(write: u64, flush: u64, apply: u64) -> Ack {
        Ack { write: Lsn::new(write), flush: Lsn::new(flush), apply: Lsn::new(apply) }
    }

    #[test]
    fn the_table_of_the_module() {
        let mut tracker = LagTracker::default();
        assert_eq!(tracker.lag(5), Lag::default());
        tracker.sent(Lsn::new(100), 10);
        assert_eq!(tracker.lag(15).write_us, Some(5));
        tracker.acked(ack(100, 50, 0), 18);
        assert_eq!(tracker.lag(30), Lag { write_us: Some(8), flush_us: Some(20), apply_us: Some(20) });
        tracker.acked(ack(100, 100, 100), 40);
        assert_eq!(tracker.lag(50), Lag { write_us: Some(8), flush_us: Some(30), apply_us: Some(30) });
        assert_eq!(tracker.lag(40 + LagTracker::IDLE_US), Lag::default());
    }

    #[test]
    fn what_is_under_way_counts_when_it_is_longer() {
        let mut tracker = LagTracker::default();
        tracker.sent(Lsn::new(100), 0);
        tracker.acked(ack(100, 100, 100), 7);
        tracker.sent(Lsn::new(200), 100);
        assert_eq!(tracker.lag(103).flush_us, Some(7));
        assert_eq!(tracker.lag(150).flush_us, Some(50));
    }

    #[test]
    fn a_standby_far_behind_costs_no_more_memory() {
        let mut tracker = LagTracker::default();
        for number in 1..100_000_u64 {
            tracker.sent(Lsn::new(number), number);
        }
        assert!(tracker.samples.len() <= SAMPLES_MAX);
        assert_eq!(tracker.lag(100_000).apply_us, Some(99_999), "the oldest is kept");
        tracker.acked(ack(99_999, 99_999, 99_999), 100_001);
        assert!(tracker.samples.is_empty());
    }
}
