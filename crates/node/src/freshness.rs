//! How fresh this node's data is: the shell around [`understudy_core::staleness`].
//!
//! On the primary, the confirmer says when it sent the newest round that a majority confirmed ([`Confirmed`]), and every
//! answer to a beat tells the asking node of it. On the others, the dialers hand those answers over ([`Heard`]), and reads
//! with a bound on their age look there. Times are milliseconds of the boot-time clock, which goes on while the machine is
//! suspended.

use tokio::sync::watch;
use understudy_core::staleness::{Claim, Freshness};
use understudy_engine::{Clock, SystemClock};
use understudy_rpc::v1;
use understudy_types::{Lsn, TimelineId};

/// Milliseconds since the machine was started. Only goes forward.
pub fn boot_ms() -> u64 {
    u64::try_from(SystemClock.boot_time().as_millis()).unwrap_or(u64::MAX)
}

/// That a majority has confirmed this primary, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confirmed {
    /// The timeline that it opened.
    pub timeline: TimelineId,
    /// When the newest confirmed round was sent, by [`boot_ms`].
    pub at_ms: u64,
    /// Its safe LSN then or later: what was acknowledged at level `on` before the round lies below it.
    pub safe_lsn: Lsn,
}

impl Confirmed {
    /// How long ago, in milliseconds, rounded up.
    pub fn age_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.at_ms) + 1
    }

    /// For the answer to a beat.
    pub fn claim(&self) -> v1::FreshnessClaim {
        v1::FreshnessClaim {
            timeline: self.timeline.get(),
            safe_lsn: self.safe_lsn.get(),
            confirmed_ms_ago: self.age_ms(boot_ms()),
        }
    }
}

/// What primaries answered this node's beats.
#[derive(Debug)]
pub struct Heard {
    freshness: watch::Sender<Freshness>,
}

impl Default for Heard {
    fn default() -> Self {
        Self { freshness: watch::Sender::new(Freshness::default()) }
    }
}

impl Heard {
    /// A beat that was sent at `beat_sent_ms`, by [`boot_ms`], was answered with a claim.
    pub fn hear(&self, claim: &v1::FreshnessClaim, beat_sent_ms: u64) {
        let (timeline, safe_lsn) = (TimelineId::new(claim.timeline), Lsn::new(claim.safe_lsn));
        if let Some(claim) = Claim::of_reply(timeline, safe_lsn, beat_sent_ms, claim.confirmed_ms_ago) {
            self.freshness.send_modify(|freshness| freshness.hear(claim));
        }
    }

    /// What is known, and to be told when that changes.
    pub fn subscribe(&self) -> watch::Receiver<Freshness> {
        self.freshness.subscribe()
    }
}
