//! How old the data of a standby may be, without comparing clocks (docs/reading.md, "Staleness").
//!
//! A standby's beat to the primary is answered with a claim: the primary's timeline, its safe LSN, and how long ago it
//! sent the newest round that a majority confirmed. At that moment nobody newer had acknowledged anything, so everything
//! that was acknowledged at level `on` before it lies below the safe LSN. Once the standby shows all of that, its data is
//! complete as of that moment at least:
//!
//! ```text
//! primary   ---- round sent ---------------- claim made: safe LSN 90, confirmed 70 ms ago ----
//! standby   ------------------ beat sent at 1000 ------------------------- claim received ----
//! as of 1000 - 70 = 930: the beat was sent before the claim was made, so the round was sent no earlier than that
//! ```
//!
//! Counting from when the *beat was sent* makes every delay on the way, a frozen process included, count as age: the
//! result is an upper bound, at most one round trip and one beat too large. Milliseconds are the standby's own, on a clock
//! that only goes forward; nothing depends on what time another node thinks it is.
//!
//! What it refuses to do: to guess. Without a claim of a confirmed primary whose safe LSN is shown, there is no age. And in
//! mode `async`, or for commits at the levels `off` and `local`, "acknowledged" is not "safe": it bounds the age of what is
//! safe.

use std::collections::VecDeque;

use understudy_types::{Lsn, Position, TimelineHistory, TimelineId};

use crate::reading::{Verdict, judge};

/// Claims that are remembered because they are not shown yet. When there are more, every second one is forgotten: a
/// standby that is far behind then counts as a little older than it is.
const CLAIMS_MAX: usize = 64;

/// What a primary said, in the standby's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The timeline that it opened.
    pub timeline: TimelineId,
    /// Its safe LSN when it said so.
    pub safe_lsn: Lsn,
    /// When what is safe was certainly complete up to there.
    pub as_of_ms: u64,
}

impl Claim {
    /// The answer to a beat that was sent at `beat_sent_ms`. None when the age goes back before the clock began: nothing
    /// can be said then.
    pub fn of_reply(timeline: TimelineId, safe_lsn: Lsn, beat_sent_ms: u64, confirmed_ms_ago: u64) -> Option<Self> {
        let as_of_ms = beat_sent_ms.checked_sub(confirmed_ms_ago)?;
        (timeline > TimelineId::NONE).then_some(Self { timeline, safe_lsn, as_of_ms })
    }
}

/// What a standby heard of how fresh it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Freshness {
    /// In the order of `as_of_ms`. At most [`CLAIMS_MAX`].
    claims: VecDeque<Claim>,
}

impl Freshness {
    /// A primary answered a beat. A claim that says nothing later than the last one is ignored.
    pub fn hear(&mut self, claim: Claim) {
        if self.claims.back().is_some_and(|last| last.as_of_ms >= claim.as_of_ms) {
            return;
        }
        if self.claims.len() >= CLAIMS_MAX {
            let mut index = 0_usize;
            self.claims.retain(|_| {
                index += 1;
                index % 2 == 1
            });
        }
        self.claims.push_back(claim);
    }

    /// As of when the data of a node that shows everything up to `visible` is complete; none when that cannot be told.
    /// Claims on a branch that was left, and those of a timeline that the node has not heard of, do not count.
    pub fn as_of_ms(&self, history: &TimelineHistory, visible: Position) -> Option<u64> {
        let shown =
            |claim: &&Claim| judge(history, visible, Position::new(claim.timeline, claim.safe_lsn)) == Verdict::Covered;
        self.claims.iter().rev().find(shown).map(|claim| claim.as_of_ms)
    }

    /// How old the data is at most, in milliseconds.
    pub fn staleness_ms(&self, history: &TimelineHistory, visible: Position, now_ms: u64) -> Option<u64> {
        self.as_of_ms(history, visible).map(|as_of_ms| now_ms.saturating_sub(as_of_ms))
    }
}

#[cfg(test)]
#[path = "staleness_tests.rs"]
mod tests;
