//! Leases: reading without asking, for those who trust clocks (design, "Beats, confirmation, reads"; the opt-in
//! `linearizable_reads = lease`).
//!
//! A voter that answers a beat of the primary may grant it a lease: for so long no newer primary is promoted with this
//! voter's help. While the grants of a majority run, the primary answers linearizable reads by itself.
//!
//! ```text
//! primary  sends the beat at 100 ........ counts on the grant until 100 + lease - margin
//! voter                 has it at 103 ... holds itself bound until 103 + lease
//! ```
//!
//! The primary counts from when it *sent*, the voter from when it *received*, each by its own boot-time clock (which goes on
//! while the machine is suspended); the margin covers clocks that run at different rates. So whoever still counts on a
//! grant is met by a voter that is still bound by it, whatever was frozen, delayed or restarted in between.
//!
//! What makes that safe (INV-LINEAR):
//!
//! - a promotion needs a majority of voters that have sealed *and* whose grants have run out ([`crate::election`]): it has a
//!   voter in common with any majority that granted. After its seal a voter grants nothing to an older timeline.
//! - a grant outlives the process that gave it: the longest length that a voter may grant is on its disk before it grants
//!   ([`Grants::to_promise`]), and a voter counts as having granted that much when its process starts. It also counts as
//!   having granted a full lease when it becomes a voter.
//! - the old primary's own seal ends its lease whoever granted it: it drops the lease before it seals.
//!
//! What it refuses to do: to look at the wall clock, or to compare two nodes' clocks.

/// What a voter may still be bound by. Times are milliseconds of its own boot-time clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Grants {
    /// No lease that was granted runs any longer than this.
    until_ms: u64,
    /// What the settings ask for; zero: no leases.
    wanted_ms: u64,
    /// On disk: a new process counts as having granted so much.
    promised_ms: u64,
    /// Until then a lease may run that is longer than what is wanted now.
    longer_until_ms: u64,
}

impl Grants {
    /// Of a process that starts at `now_ms` and finds `promised_ms` on its disk: the one before may have granted that much
    /// just now.
    pub fn at_start(promised_ms: u64, now_ms: u64) -> Self {
        let until_ms = if promised_ms == 0 { 0 } else { end_of(promised_ms, now_ms) };
        Self { until_ms, wanted_ms: 0, promised_ms, longer_until_ms: until_ms }
    }

    /// From now on grants of at most `wanted_ms` are asked for; zero for none.
    pub fn want(&mut self, wanted_ms: u64) {
        if wanted_ms < self.wanted_ms {
            self.longer_until_ms = self.longer_until_ms.max(self.until_ms);
        }
        self.wanted_ms = wanted_ms;
    }

    /// This node votes from now on: it counts as having granted a full lease.
    pub fn became_voter(&mut self, now_ms: u64) {
        if self.wanted_ms > 0 {
            self.until_ms = self.until_ms.max(end_of(self.wanted_ms, now_ms));
        }
    }

    /// What has to be written to the disk now, if that is another length than what stands there: a longer one before it is
    /// granted, a shorter one once nothing longer runs. While it is being written nothing is granted that either
    /// length would not cover.
    pub fn to_promise(&mut self, now_ms: u64) -> Option<u64> {
        let over = now_ms >= self.longer_until_ms;
        let changes = self.wanted_ms > self.promised_ms || (self.wanted_ms < self.promised_ms && over);
        changes.then(|| {
            self.promised_ms = self.promised_ms.min(self.wanted_ms);
            self.wanted_ms
        })
    }

    /// It is on disk.
    pub fn promised(&mut self, promised_ms: u64) {
        self.promised_ms = promised_ms;
    }

    /// Grants a lease to a primary that asks for `asked_ms` in a beat that has just come, and gives its length; zero for none. The
    /// caller has made sure that this node confirms that primary, and holds off its own seal meanwhile.
    pub fn grant(&mut self, asked_ms: u64, now_ms: u64) -> u64 {
        let granted_ms = asked_ms.min(self.wanted_ms).min(self.promised_ms);
        if granted_ms > 0 {
            self.until_ms = self.until_ms.max(end_of(granted_ms, now_ms));
        }
        granted_ms
    }

    /// For how long a lease may still run that this voter granted, in milliseconds; zero when none does.
    pub fn left_ms(&self, now_ms: u64) -> u64 {
        self.until_ms.saturating_sub(now_ms)
    }
}

/// When a lease ends that is granted now. One millisecond more, for the fraction that the clock does not show.
fn end_of(length_ms: u64, now_ms: u64) -> u64 {
    now_ms.saturating_add(length_ms).saturating_add(1)
}

/// Until when the primary counts on a grant of `granted_ms` that answers a beat which it sent at `sent_at_ms`. In
/// milliseconds of its own boot-time clock; `margin_percent` of the length is taken off, rounded up. None for no grant.
pub fn counted_until_ms(sent_at_ms: u64, granted_ms: u64, margin_percent: u64) -> Option<u64> {
    let margin_ms = granted_ms.saturating_mul(margin_percent.min(100)).div_ceil(100);
    let counted_ms = granted_ms - margin_ms.min(granted_ms);
    (counted_ms > 0).then(|| sent_at_ms.saturating_add(counted_ms))
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
