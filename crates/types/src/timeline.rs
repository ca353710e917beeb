//! Timelines and how they descend from one another.
//!
//! Every promotion opens a new timeline that leaves the present one at a *switch LSN*. The history is a
//! list of such switches in the order of their timelines, and because each leaves the timeline that was
//! present then, it describes one chain of spans:
//!
//! | switch | spans of the chain afterwards |
//! |---|---|
//! | 1 at 0/01000000 | 1: [0/01000000, ...) |
//! | 2 at 0/05000000 | 1: [0/01000000, 0/05000000), 2: [0/05000000, ...) |
//! | 3 at 0/05000000 | 1: [0/01000000, 0/05000000), 3: [0/05000000, ...) |
//! | 4 at 0/03000000 | 1: [0/01000000, 0/03000000), 4: [0/03000000, ...) |
//!
//! A switch may lie before the begin of the timeline that it leaves: nobody who counted had what that
//! timeline wrote (row 4), or it never wrote anything (row 3). A span that was cut to nothing is gone
//! from the chain.
//!
//! A record belongs to the timeline that it was written on. A node whose last record is of timeline `t`
//! and ends at `e` agrees with the chain exactly up to `min(e, the smallest switch LSN of a timeline
//! later than t)`: every later switch may have cut the chain, and none put anything of `t` back.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Lsn, Position};

/// A branch of the log. Zero is none; the first timeline of a cluster is 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimelineId(u32);

impl TimelineId {
    /// No timeline: nothing was ever written.
    pub const NONE: TimelineId = TimelineId(0);
    /// A cluster's first.
    pub const FIRST: TimelineId = TimelineId(1);

    /// Timeline `number`.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The one after this.
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("a timeline stays within 32 bits"))
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is not a timeline.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a timeline: expected a number from 1 to 4294967295")]
pub struct ParseTimelineError {
    /// What was given.
    pub text: String,
}

impl FromStr for TimelineId {
    type Err = ParseTimelineError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits_only = text.bytes().all(|b| b.is_ascii_digit());
        match text.parse::<u32>() {
            Ok(number) if digits_only && number > 0 => Ok(Self(number)),
            Ok(_) | Err(_) => Err(ParseTimelineError { text: text.to_owned() }),
        }
    }
}

/// One promotion, as the log sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineSwitch {
    /// The timeline that was opened.
    pub timeline: TimelineId,
    /// The timeline that was present before; zero for a cluster's first.
    pub parent: TimelineId,
    /// Where the new one begins.
    pub switch_lsn: Lsn,
}

/// A piece of the chain: the records from `begin` to `end` were written on `timeline`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Who wrote it.
    pub timeline: TimelineId,
    /// The first byte.
    pub begin: Lsn,
    /// The byte after the last; none for the present timeline, which still grows.
    pub end: Option<Lsn>,
}

/// A switch does not continue the history.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimelineHistoryError {
    /// Timelines only grow.
    #[error("timeline {timeline} does not come after {latest}, the latest of this history")]
    NotLater {
        /// Of the refused switch.
        timeline: TimelineId,
        /// The latest in the history.
        latest: TimelineId,
    },
    /// A new timeline leaves the present one.
    #[error("timeline {timeline} leaves timeline {parent}, but the present one is {latest}")]
    WrongParent {
        /// Of the refused switch.
        timeline: TimelineId,
        /// What it says it leaves.
        parent: TimelineId,
        /// The latest in the history.
        latest: TimelineId,
    },
    /// A switch needs a position.
    #[error("timeline {timeline} begins at an invalid LSN")]
    InvalidLsn {
        /// Of the refused switch.
        timeline: TimelineId,
    },
}

/// How the present timeline came to be: see the module's table.
///
/// Invariants: timelines strictly ascend; each parent is the timeline before; switch LSNs are valid.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<TimelineSwitch>", into = "Vec<TimelineSwitch>")]
pub struct TimelineHistory {
    switches: Vec<TimelineSwitch>,
}

impl TimelineHistory {
    /// The history of a cluster that has not opened a timeline yet.
    pub const fn new() -> Self {
        Self { switches: Vec::new() }
    }

    /// The switches in the order of their timelines.
    pub fn switches(&self) -> &[TimelineSwitch] {
        &self.switches
    }

    /// The present timeline; zero before the first.
    pub fn latest(&self) -> TimelineId {
        self.switches.last().map_or(TimelineId::NONE, |switch| switch.timeline)
    }

    /// Adds a promotion.
    ///
    /// # Errors
    /// When it does not leave the present timeline for a later one at a valid LSN.
    pub fn push(&mut self, switch: TimelineSwitch) -> Result<(), TimelineHistoryError> {
        let latest = self.latest();
        let TimelineSwitch { timeline, parent, switch_lsn } = switch;
        if timeline <= latest {
            return Err(TimelineHistoryError::NotLater { timeline, latest });
        }
        if parent != latest {
            return Err(TimelineHistoryError::WrongParent { timeline, parent, latest });
        }
        if !switch_lsn.is_valid() {
            return Err(TimelineHistoryError::InvalidLsn { timeline });
        }
        self.switches.push(switch);
        Ok(())
    }

    /// The switch that opened `timeline`.
    pub fn switch_to(&self, timeline: TimelineId) -> Option<&TimelineSwitch> {
        self.switches.iter().find(|switch| switch.timeline == timeline)
    }

    /// The history as it was when `timeline` was the present one: its ancestors and itself.
    pub fn up_to(&self, timeline: TimelineId) -> TimelineHistory {
        TimelineHistory { switches: self.switches.iter().filter(|s| s.timeline <= timeline).copied().collect() }
    }

    /// The pieces of the chain in the order of their LSNs, none of them empty but perhaps the last.
    pub fn spans(&self) -> Vec<Span> {
        let mut spans: Vec<Span> = Vec::with_capacity(self.switches.len());
        for switch in &self.switches {
            spans.retain(|span| span.begin < switch.switch_lsn);
            if let Some(last) = spans.last_mut() {
                last.end = Some(last.end.map_or(switch.switch_lsn, |end| end.min(switch.switch_lsn)));
            }
            spans.push(Span { timeline: switch.timeline, begin: switch.switch_lsn, end: None });
        }
        spans
    }

    /// The timeline of the record that begins at `lsn` on the chain; none before the begin of the log.
    pub fn timeline_at(&self, lsn: Lsn) -> Option<TimelineId> {
        self.spans().iter().rev().find(|span| span.begin <= lsn).map(|span| span.timeline)
    }

    /// Up to where what `timeline` wrote, and what it had inherited, lies on the chain: the smallest switch
    /// LSN of a later timeline. None for the present timeline, which has no such end, and for later ones.
    pub fn end_of(&self, timeline: TimelineId) -> Option<Lsn> {
        self.switches.iter().filter(|switch| switch.timeline > timeline).map(|switch| switch.switch_lsn).min()
    }

    /// A node's position (design, "Positions"): the end of the longest prefix of its WAL that lies on the
    /// chain, for a WAL that ends at `end.lsn` with a record of `end.timeline`.
    pub fn position(&self, end: Position) -> Lsn {
        self.end_of(end.timeline).map_or(end.lsn, |cut| cut.min(end.lsn))
    }

    /// The switch that follows `timeline` on the chain when a reader of `timeline` has reached `lsn`: the
    /// first later switch at the place where `timeline` ends.
    pub fn next_after(&self, timeline: TimelineId) -> Option<&TimelineSwitch> {
        let cut = self.end_of(timeline)?;
        self.switches.iter().rev().find(|switch| switch.timeline > timeline && switch.switch_lsn == cut)
    }
}

impl TryFrom<Vec<TimelineSwitch>> for TimelineHistory {
    type Error = TimelineHistoryError;

    fn try_from(switches: Vec<TimelineSwitch>) -> Result<Self, Self::Error> {
        let mut history = Self::new();
        switches.into_iter().try_for_each(|switch| history.push(switch))?;
        Ok(history)
    }
}

impl From<TimelineHistory> for Vec<TimelineSwitch> {
    fn from(history: TimelineHistory) -> Self {
        history.switches
    }
}

#[cfg(test)]
#[path = "timeline_tests.rs"]
mod tests;
