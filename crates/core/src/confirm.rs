//! Quorum confirmation: does a majority of voters still stand behind this primary? (design, "Beats, confirmation,
//! reads")
//!
//! The primary runs one [`Confirmation`] for each timeline that it opens. A round is a beat to every voter; each
//! answers whether it has sealed a newer timeline. A promotion needs a majority that sealed, so as long as a
//! majority has not, nobody newer can have acknowledged anything (INV-LINEAR, INV-FENCED). No clock is compared
//! with another node's, and a paused process cannot go wrong: an answer belongs to its round.
//!
//! ```text
//! round        4 sent at 100   5 sent at 200   6 sent at 250 for a read that came at 250
//! this voter   confirms        confirms        confirms
//! b            5 confirmed  -> confirms 4 too: it was said after 4 was sent
//! c            silent
//! confirmed_round() = 5; the read waits for 6; commits may be acknowledged until 200 + primary_timeout
//! ```
//!
//! With `linearizable_reads = lease` an answer may carry a grant ([`crate::lease`]); what is counted on is the same for both: a
//! majority of the present voters, this node among them until it seals.
//!
//! What it refuses to do: to count an answer for a round that was started after the beat that it answers, and to take a later refusal as a
//! reason to take back what was confirmed before: it was true when it was said.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use understudy_types::{NodeId, TimelineId};

use crate::state::majority;

/// Rounds whose send time is remembered. When there are more, every second one is forgotten: the send time of an
/// older round then stands for a newer one, which only makes the primary more careful.
const ROUNDS_MAX: usize = 256;

/// The answers to one primary's beats on one timeline.
#[derive(Debug, Clone)]
pub struct Confirmation {
    me: NodeId,
    timeline: TimelineId,
    voters: BTreeSet<NodeId>,
    /// This node sealed a newer timeline: its own voice is gone.
    sealed: bool,
    /// The newest round that was started; none before the first.
    newest: Option<u64>,
    /// When the first round was sent; none before it.
    first_at_ms: Option<u64>,
    /// By voter, the newest round that it confirmed, this node included.
    confirmed: BTreeMap<NodeId, u64>,
    /// By other voter, until when its grant is counted on.
    granted_until_ms: BTreeMap<NodeId, u64>,
    /// Started rounds and when they were sent, in order. At most [`ROUNDS_MAX`]; the first one may be confirmed.
    sent: VecDeque<(u64, u64)>,
}

/// Whether a node that sealed `sealed` confirms a primary that opened `timeline`. The seal is on disk before the
/// first answer that follows it (INV-FENCED).
pub fn confirms(sealed: TimelineId, timeline: TimelineId) -> bool {
    timeline > TimelineId::NONE && sealed <= timeline
}

impl Confirmation {
    /// Nothing is confirmed yet. `me` opened `timeline`; it counts by itself if it is among `voters`.
    pub fn new(me: NodeId, timeline: TimelineId, voters: BTreeSet<NodeId>) -> Self {
        Self {
            me,
            timeline,
            voters,
            sealed: false,
            newest: None,
            first_at_ms: None,
            confirmed: BTreeMap::new(),
            granted_until_ms: BTreeMap::new(),
            sent: VecDeque::with_capacity(ROUNDS_MAX),
        }
    }

    /// The timeline that is confirmed.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// Round `round` is sent now. Rounds grow, not necessarily by one; one that does not is ignored.
    pub fn start_round(&mut self, round: u64, now_ms: u64) {
        if self.newest.is_some_and(|newest| round <= newest) {
            return;
        }
        self.newest = Some(round);
        self.first_at_ms.get_or_insert(now_ms);
        if self.sent.len() >= ROUNDS_MAX {
            let mut index = 0_usize;
            self.sent.retain(|_| {
                index += 1;
                index % 2 == 1
            });
        }
        self.sent.push_back((round, now_ms));
        if self.voters.contains(&self.me) && !self.sealed {
            self.confirmed.insert(self.me, round);
        }
        self.forget();
    }

    /// `voter` answered the beat numbered `round`. Beats are numbered in the order in which they are sent, and not
    /// every one starts a round: an answer to a later beat counts for every round before it. An answer of somebody
    /// who does not vote is ignored.
    pub fn on_reply(&mut self, voter: NodeId, round: u64, confirmed: bool) {
        let Some(newest) = self.newest else { return };
        if !confirmed || voter == self.me || !self.voters.contains(&voter) {
            return;
        }
        let round = round.min(newest);
        let highest = self.confirmed.entry(voter).or_insert(round);
        *highest = round.max(*highest);
        self.forget();
    }

    /// `voter` granted a lease that is counted on until `until_ms` ([`crate::lease::counted_until_ms`]). A later answer that grants
    /// less takes nothing back. A grant of somebody who does not vote is ignored.
    pub fn on_grant(&mut self, voter: NodeId, until_ms: u64) {
        if voter != self.me && self.voters.contains(&voter) {
            let latest = self.granted_until_ms.entry(voter).or_insert(until_ms);
            *latest = until_ms.max(*latest);
        }
    }

    /// No lease is read by any more: what was granted is forgotten.
    pub fn forget_grants(&mut self) {
        self.granted_until_ms.clear();
    }

    /// Until when the grants of a majority of voters are counted on; none without. A cluster of one voter needs nobody
    /// else's.
    pub fn leased_until_ms(&self) -> Option<u64> {
        let own = (self.voters.contains(&self.me) && !self.sealed).then_some(u64::MAX);
        let mut until: Vec<u64> = self.granted_until_ms.values().copied().chain(own).collect();
        until.sort_unstable_by(|a, b| b.cmp(a));
        until.get(majority(self.voters.len()) - 1).copied()
    }

    /// The voters changed. What was confirmed by those that still vote stands: majorities of two voter sets in a row have
    /// a node in common (see [`crate::membership`]).
    pub fn set_voters(&mut self, voters: BTreeSet<NodeId>) {
        self.confirmed.retain(|node, _| voters.contains(node));
        self.granted_until_ms.retain(|node, _| voters.contains(node));
        self.voters = voters;
        self.forget();
    }

    /// This node sealed a newer timeline: from now on it does not confirm itself any more.
    pub fn seal(&mut self) {
        self.sealed = true;
    }

    /// The newest round that a majority of voters confirmed: at some moment after it was sent each of them had not
    /// sealed a newer timeline. A read that came before the round was started may be answered.
    pub fn confirmed_round(&self) -> Option<u64> {
        let mut rounds: Vec<u64> = self.confirmed.values().copied().collect();
        rounds.sort_unstable_by(|a, b| b.cmp(a));
        rounds.get(majority(self.voters.len()) - 1).copied()
    }

    /// When the newest confirmed round was sent, or one a little before it.
    pub fn confirmed_at_ms(&self) -> Option<u64> {
        let confirmed = self.confirmed_round()?;
        self.sent.iter().rev().find(|(round, _)| *round <= confirmed).map(|(_, at_ms)| *at_ms)
    }

    /// Until when the primary may acknowledge commits: `primary_timeout_ms` after the newest confirmed round was
    /// *sent*. None when nothing was confirmed yet.
    pub fn confirmed_until_ms(&self, primary_timeout_ms: u64) -> Option<u64> {
        self.confirmed_at_ms().map(|at_ms| at_ms.saturating_add(primary_timeout_ms))
    }

    /// What the primary says of itself in its beats ([`crate::observation::NodeReport::confirmed`]): false once no
    /// majority has confirmed it for `primary_timeout_ms`, counted from its first round at the earliest. A primary
    /// that has just opened is not called unconfirmed before anybody could have answered.
    pub fn is_confirmed(&self, now_ms: u64, primary_timeout_ms: u64) -> bool {
        let since_ms = self.confirmed_at_ms().or(self.first_at_ms);
        since_ms.is_none_or(|since_ms| now_ms < since_ms.saturating_add(primary_timeout_ms))
    }

    /// Drops the send times that are older than the newest confirmed one.
    fn forget(&mut self) {
        let Some(confirmed) = self.confirmed_round() else { return };
        while self.sent.get(1).is_some_and(|(round, _)| *round <= confirmed) {
            self.sent.pop_front();
        }
    }
}

#[cfg(test)]
#[path = "confirm_tests.rs"]
mod tests;
