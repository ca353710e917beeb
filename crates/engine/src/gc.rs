//! How much of the past is kept: the primary decides by its clock, the log tells everybody.
//!
//! The sequencer notes from time to time which LSN is visible. A note that is as old as the retention says: whatever has been
//! superseded up to this LSN was superseded at least so long ago. That LSN becomes the horizon, by a record in the log, and each node
//! gives up what lies below it when it applies the record, so all of them refuse the same reads.
//!
//! A note is of what is visible, hence safe: no failover takes it back, and the horizon lies below its own record. A new
//! primary begins without notes, so after a promotion history is kept longer, never shorter. A primary that nothing is
//! written to appends no horizon once the last one covers the last commit.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use understudy_types::Lsn;
use understudy_wal::GcHorizon;

/// How long history is kept, unless the cluster says otherwise (design, section 9).
const HISTORY_RETENTION: Duration = Duration::from_secs(5 * 60);
/// How long request ids are kept, unless the cluster says otherwise.
const REQUEST_ID_RETENTION: Duration = Duration::from_secs(60 * 60);
/// Notes in one retention: history is kept by up to a twentieth longer than asked for.
const NOTES_PER_RETENTION: u32 = 20;
/// Between notes, and between horizons, however short the retention.
const SPACING_MIN: Duration = Duration::from_millis(100);

/// What the cluster wants to be kept; may change at any time.
#[derive(Debug)]
pub(crate) struct Retention {
    history_ms: AtomicU64,
    request_ids_ms: AtomicU64,
}

impl Default for Retention {
    fn default() -> Self {
        let retention = Self { history_ms: AtomicU64::new(0), request_ids_ms: AtomicU64::new(0) };
        retention.set_history(HISTORY_RETENTION);
        retention.set_request_ids(REQUEST_ID_RETENTION);
        retention
    }
}

impl Retention {
    pub(crate) fn set_history(&self, retention: Duration) {
        self.history_ms.store(milliseconds(retention), Ordering::Relaxed);
    }

    pub(crate) fn set_request_ids(&self, retention: Duration) {
        self.request_ids_ms.store(milliseconds(retention), Ordering::Relaxed);
    }

    pub(crate) fn history(&self) -> Duration {
        Duration::from_millis(self.history_ms.load(Ordering::Relaxed))
    }

    pub(crate) fn request_ids(&self) -> Duration {
        Duration::from_millis(self.request_ids_ms.load(Ordering::Relaxed))
    }
}

fn milliseconds(retention: Duration) -> u64 {
    u64::try_from(retention.as_millis()).unwrap_or(u64::MAX)
}

fn spacing(retention: Duration) -> Duration {
    (retention / NOTES_PER_RETENTION).max(SPACING_MIN)
}

/// Which LSN was visible when, oldest first: one that is older than the retention, and about
/// [`NOTES_PER_RETENTION`] younger ones.
#[derive(Debug, Default)]
struct Notes(VecDeque<(Instant, Lsn)>);

impl Notes {
    fn take(&mut self, now: Instant, visible: Lsn, retention: Duration) {
        let is_new = self
            .0
            .back()
            .is_none_or(|(taken, lsn)| visible > *lsn && now.saturating_duration_since(*taken) >= spacing(retention));
        if is_new {
            self.0.push_back((now, visible));
        }
    }

    /// The newest LSN that was visible for so long; invalid when none was.
    fn below(&mut self, now: Instant, retention: Duration) -> Lsn {
        let is_old = |(taken, _): &(Instant, Lsn)| now.saturating_duration_since(*taken) >= retention;
        while self.0.get(1).is_some_and(is_old) {
            self.0.pop_front();
        }
        self.0.front().filter(|note| is_old(note)).map_or(Lsn::INVALID, |(_, lsn)| *lsn)
    }
}

/// Decides when the primary of one timeline appends a horizon, and which.
#[derive(Debug)]
pub(crate) struct Horizons {
    visible_for_history: Notes,
    visible_for_requests: Notes,
    /// The last one that is known to stand in the log.
    told: GcHorizon,
    told_at: Option<Instant>,
    /// What was written after it can be superseded by nothing; no horizon needs to pass it.
    last_commit: Lsn,
}

impl Horizons {
    /// For a timeline that begins with everything up to `last_commit` in the log, and `told` applied.
    pub(crate) fn new(told: GcHorizon, last_commit: Lsn) -> Self {
        Self {
            visible_for_history: Notes::default(),
            visible_for_requests: Notes::default(),
            told,
            told_at: None,
            last_commit,
        }
    }

    /// A commit was appended, and ends here.
    pub(crate) fn note_commit(&mut self, lsn: Lsn) {
        self.last_commit = lsn;
    }

    /// The horizon that is to be appended now; none when none is due. Called at least every second or so.
    pub(crate) fn next(&mut self, now: Instant, visible: Lsn, retention: &Retention) -> Option<GcHorizon> {
        let (history, request_ids) = (retention.history(), retention.request_ids());
        self.visible_for_history.take(now, visible, history);
        self.visible_for_requests.take(now, visible, request_ids);
        let pause = spacing(history.min(request_ids));
        if self.told_at.is_some_and(|told_at| now.saturating_duration_since(told_at) < pause) {
            return None;
        }
        let horizon = self.told.max(GcHorizon {
            versions_below: self.visible_for_history.below(now, history),
            requests_below: self.visible_for_requests.below(now, request_ids),
        });
        let helps = |told: Lsn, next: Lsn| next > told && told < self.last_commit;
        if !helps(self.told.versions_below, horizon.versions_below)
            && !helps(self.told.requests_below, horizon.requests_below)
        {
            return None;
        }
        (self.told, self.told_at) = (horizon, Some(now));
        Some(horizon)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lsn(lsn: u64) -> Lsn {
        Lsn::new(lsn)
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn retention(history: u64, request_ids: u64) -> Retention {
        let retention = Retention::default();
        retention.set_history(seconds(history));
        retention.set_request_ids(seconds(request_ids));
        retention
    }

    #[test]
    fn the_defaults_are_those_of_the_design() {
        assert_eq!(
            (Retention::default().history(), Retention::default().request_ids()),
            (seconds(300), seconds(3_600))
        );
    }

    /// A commit of 10 bytes each second, at once visible: told horizons never take what is younger than the retention,
    /// and lag by no more than the spacing of notes and of horizons.
    #[test]
    fn history_is_kept_as_long_as_asked_and_not_much_longer() {
        let (start, retention) = (Instant::now(), retention(100, 1_000));
        let mut horizons = Horizons::new(GcHorizon::default(), lsn(1_000));
        let mut told = Vec::new();
        for second in 0..2_000_u64 {
            let visible = lsn(1_000 + 10 * second);
            horizons.note_commit(visible);
            let Some(horizon) = horizons.next(start + seconds(second), visible, &retention) else { continue };
            let age = |below: Lsn| second - below.get().saturating_sub(1_000) / 10;
            assert!((100..=111).contains(&age(horizon.versions_below)), "at {second}: {horizon:?}");
            let requests_below = horizon.requests_below;
            assert!(
                !requests_below.is_valid() || (1_000..=1_061).contains(&age(requests_below)),
                "at {second}: {horizon:?}"
            );
            told.push((second, horizon));
        }
        assert_eq!(told[0].0, 100);
        assert!(told.windows(2).all(|pair| pair[1].0 - pair[0].0 >= 5), "at most every twentieth of the retention");
        assert!(told.len() > 300, "{}", told.len());
        assert!(horizons.visible_for_history.0.len() <= 22 && horizons.visible_for_requests.0.len() <= 22);
    }

    #[test]
    fn an_idle_primary_tells_no_more_once_all_is_covered() {
        let (start, retention) = (Instant::now(), retention(100, 1_000));
        let mut horizons = Horizons::new(GcHorizon::default(), lsn(1_000));
        horizons.note_commit(lsn(2_000));
        // Each horizon makes the log longer and becomes visible itself.
        let mut visible = lsn(2_000);
        let mut told = Vec::new();
        for second in 0..10_000 {
            if let Some(horizon) = horizons.next(start + seconds(second), visible, &retention) {
                visible = visible.advance(40);
                told.push((second, horizon));
            }
        }
        let expected = [
            (100, GcHorizon { versions_below: lsn(2_000), requests_below: Lsn::INVALID }),
            (1_000, GcHorizon { versions_below: lsn(2_040), requests_below: lsn(2_000) }),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn what_is_not_visible_is_not_given_up() {
        let (start, retention) = (Instant::now(), retention(1, 1));
        let mut horizons = Horizons::new(GcHorizon::default(), lsn(1_000));
        for second in 0..100 {
            horizons.note_commit(lsn(2_000 + second));
            let told = horizons.next(start + seconds(second), lsn(1_500), &retention);
            assert!(told.is_none_or(|told| told.versions_below == lsn(1_500)), "{told:?}");
        }
    }

    #[test]
    fn a_new_primary_begins_without_notes_and_never_goes_back() {
        let (start, retention) = (Instant::now(), retention(10, 10));
        let told = GcHorizon { versions_below: lsn(5_000), requests_below: lsn(1_000) };
        let mut horizons = Horizons::new(told, lsn(6_000));
        for second in 0..10 {
            assert_eq!(horizons.next(start + seconds(second), lsn(4_000), &retention), None);
        }
        let next = horizons.next(start + seconds(10), lsn(4_000), &retention);
        assert_eq!(next, Some(GcHorizon { versions_below: lsn(5_000), requests_below: lsn(4_000) }));
    }

    #[test]
    fn a_longer_retention_holds_the_horizon_where_it_is() {
        let (start, retention) = (Instant::now(), retention(10, 10));
        let mut horizons = Horizons::new(GcHorizon::default(), lsn(1));
        let mut next = |second: u64| {
            horizons.note_commit(lsn(100 + second));
            horizons.next(start + seconds(second), lsn(100 + second), &retention)
        };
        let told: Vec<_> = (0..20).filter_map(&mut next).collect();
        assert_eq!(told.last().map(|told| told.versions_below), Some(lsn(109)));
        retention.set_history(seconds(100));
        retention.set_request_ids(seconds(100));
        assert!((20..109).filter_map(&mut next).next().is_none());
        assert!((109..130).filter_map(&mut next).next().is_some());
    }
}
