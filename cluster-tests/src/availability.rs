//! How much of the time commits were acknowledged, while something was wrong.

use std::fmt;
use std::time::Duration;

use crate::history::{History, Nanos, WriteOutcome};

/// A window counts when at least one commit was acknowledged in it.
const WINDOW: Nanos = 100_000_000;

/// What clients had of a cluster from a time on.
#[derive(Debug, Clone, PartialEq)]
pub struct Availability {
    /// The share of windows of 100 ms, while the fault lasted, with an acknowledged commit.
    pub share: f64,
    /// The longest time without an acknowledged commit, from the begin of the fault to the end of the history.
    pub longest_gap: Duration,
    /// Commits acknowledged from the begin of the fault on.
    pub acknowledged: usize,
    /// Commits from then on of which nobody said what became of them.
    pub unknown: usize,
}

impl Availability {
    /// Of a fault that lasted `from` one time `to` another.
    pub fn during(history: &History, from: Nanos, to: Nanos) -> Availability {
        let registers = history.writes.iter().map(|write| (write.invoked, write.returned, &write.outcome));
        let transfers = &history.ledger.transfers;
        let transfers = transfers.iter().map(|transfer| (transfer.invoked, transfer.returned, &transfer.outcome));
        let all: Vec<_> = registers.chain(transfers).filter(|(_, returned, _)| *returned >= from).collect();
        let is_done = |outcome: &WriteOutcome| matches!(outcome, WriteOutcome::Acknowledged(_));
        let mut done: Vec<Nanos> =
            all.iter().filter(|(_, _, outcome)| is_done(outcome)).map(|(_, returned, _)| *returned).collect();
        done.sort_unstable();
        let windows = ((to - from) / WINDOW).max(1);
        let mut filled: Vec<Nanos> = done.iter().map(|at| (at - from) / WINDOW).filter(|at| *at < windows).collect();
        filled.dedup();
        let before = std::iter::once(from).chain(done.iter().copied());
        let longest = before.zip(&done).map(|(before, after)| after - before).max().unwrap_or(to - from);
        let unknown = all.iter().filter(|(_, _, outcome)| **outcome == WriteOutcome::Unknown).count();
        let share = ratio(filled.len(), usize::try_from(windows).unwrap_or(usize::MAX));
        Availability { share, longest_gap: Duration::from_nanos(longest), acknowledged: done.len(), unknown }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a test has few windows")]
fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}

impl fmt::Display for Availability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Availability { share, longest_gap, acknowledged, unknown } = self;
        let gap = longest_gap.as_millis();
        write!(f, "availability={share:.2} longest_gap_ms={gap} acknowledged={acknowledged} unknown={unknown}")
    }
}

#[cfg(test)]
mod tests {
    use understudy_types::{Lsn, Position, TimelineId};

    use super::*;
    use crate::history::{Acknowledgement, Expected, Write};

    fn write(returned_ms: u64, done: bool) -> Write {
        let position = Position::new(TimelineId::FIRST, Lsn::new(returned_ms));
        let acknowledgement = Acknowledgement { node: "n".to_owned(), position, already_done: false, sent: 0 };
        Write {
            invoked: 0,
            returned: returned_ms * 1_000_000,
            key: "k".to_owned(),
            value: returned_ms.to_string(),
            expected: Expected::Anything,
            outcome: if done { WriteOutcome::Acknowledged(acknowledgement) } else { WriteOutcome::Unknown },
        }
    }

    #[test]
    fn windows_and_gaps_are_counted_from_the_fault_on() {
        let done = [100, 1_010, 1_020, 1_350, 1_990, 2_600].map(|at| write(at, true));
        let history = History { writes: done.into_iter().chain([write(1_500, false)]).collect(), ..History::default() };
        let during = Availability::during(&history, 1_000_000_000, 2_000_000_000);
        assert_eq!(
            during.to_string(),
            "availability=0.30 longest_gap_ms=640 acknowledged=5 unknown=1",
            "three of ten windows; the gap from 1350 to 1990 is longer than that to 2600"
        );
    }

    #[test]
    fn without_any_answer_the_whole_fault_is_a_gap() {
        let during = Availability::during(&History::default(), 0, 3_000_000_000);
        assert_eq!((during.share, during.longest_gap), (0.0, Duration::from_secs(3)));
    }
}
