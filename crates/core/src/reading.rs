//! Whether a node may answer a read that asks for a position (design, "Transactions": a read position and a token are
//! always a timeline and an LSN).
//!
//! Every node that answers reads asks this, at first and again whenever its visible position or its knowledge of the
//! timelines moves. With the history "1 from 16 MiB, 2 from 80 MiB" and 90 MiB visible on timeline 2:
//!
//! | asked | verdict |
//! |---|---|
//! | 1 at 70 MiB | covered: it lies on the chain |
//! | 1 at 85 MiB | abandoned: timeline 1 ended at 80 MiB, nobody acknowledged what lay beyond at a safe level |
//! | 2 at 95 MiB | wait |
//! | 3 at 90 MiB | wait: the node has not heard of timeline 3 |
//! | anything, visible is 1 at 85 MiB | not consistent: this node shows what the cluster left behind |
//!
//! Invariants kept here: INV-VISIBLE (nothing is answered from a branch that was left), INV-ORDER (a position that is
//! covered means the same on every node).
//!
//! What it refuses to do: to take an LSN alone for a position. The same LSN may be used again after a fork.

use understudy_types::{Lsn, Position, TimelineHistory, TimelineId};

/// What becomes of a read at, or not before, a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The node shows it.
    Covered,
    /// It may come: it lies on the chain beyond what the node shows, or on a timeline that the node has not heard of.
    Wait(Waiting),
    /// It never comes: it lies beyond the end of its timeline.
    Abandoned {
        /// Where the timeline ended; none for a timeline that was never opened.
        end: Option<Lsn>,
        /// The present timeline, as the node knows it.
        present: TimelineId,
    },
    /// What the node shows is not on the cluster's history: it must not answer any read.
    NotConsistent {
        /// Up to where the two agree.
        agrees_to: Lsn,
    },
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// The node has to apply more.
    Apply,
    /// The node has to hear of the timeline first. It is later than `present`.
    Timeline {
        /// The latest that the node knows.
        present: TimelineId,
    },
}

/// Judges a read of what a node shows at all: whether it lies on the history of the cluster (design, "Positions").
pub fn is_consistent(history: &TimelineHistory, visible: Position) -> bool {
    history.position(visible) == visible.lsn
}

/// Judges a read that needs `asked` on a node that knows `history` and shows everything up to `visible`. Timeline zero
/// asks for nothing: it is the position of a cluster that has written nothing.
pub fn judge(history: &TimelineHistory, visible: Position, asked: Position) -> Verdict {
    let present = history.latest();
    let agrees_to = history.position(visible);
    if agrees_to != visible.lsn {
        return Verdict::NotConsistent { agrees_to };
    }
    if asked.timeline == TimelineId::NONE {
        return Verdict::Covered;
    }
    if asked.timeline > present {
        return Verdict::Wait(Waiting::Timeline { present });
    }
    if history.switch_to(asked.timeline).is_none() {
        return Verdict::Abandoned { end: None, present };
    }
    match history.end_of(asked.timeline) {
        Some(end) if asked.lsn > end => Verdict::Abandoned { end: Some(end), present },
        Some(_) | None if visible.lsn >= asked.lsn => Verdict::Covered,
        Some(_) | None => Verdict::Wait(Waiting::Apply),
    }
}

#[cfg(test)]
#[path = "reading_tests.rs"]
mod tests;
