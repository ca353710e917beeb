//! For how long no commit could be acknowledged before a timeline was opened: for the history (FAIL-12).
//!
//! Measured by whoever opens the timeline, on its own clock: from the last beat or WAL of the primary before, as it stood when
//! the election began, to the first moment at which the new one is confirmed. A process that was not there when the
//! election began knows no begin, and records nothing.

use std::time::Instant;

use understudy_core::command::{Command, Outcome};
use understudy_core::state::ClusterState;
use understudy_types::TimelineId;

use super::Agent;

/// See the module.
#[derive(Debug, Default)]
pub struct Outage {
    /// When the primary before the open or the last election was last heard; none where it never was.
    began: Option<Instant>,
    recorded: TimelineId,
}

impl Outage {
    /// The timeline or the election is another one. `heard_at`: when the primary was last heard.
    pub fn phase_changed(&mut self, new: &ClusterState, heard_at: Option<Instant>) {
        if new.election.is_some() {
            self.began = heard_at;
        }
    }
}

impl Agent {
    /// When the present primary was last heard; none if this process never heard it.
    pub(super) fn primary_heard_at(&self) -> Option<Instant> {
        let entry = self.cluster.primary()?;
        let now = Instant::now();
        if entry.node == self.me.node_id {
            return self.primary.is_some().then_some(now);
        }
        self.table.heard(entry.node, now).and_then(|ago| now.checked_sub(ago))
    }

    /// Once for each timeline that this process opened, when a majority has confirmed it.
    pub(super) fn record_outage(&mut self) {
        let Some(timeline) = self.primary.as_ref().map(|primary| primary.timeline) else { return };
        if self.outage.recorded >= timeline || !self.confirmer.is_confirmed() {
            return;
        }
        self.outage.recorded = timeline;
        let Some(began) = self.outage.began.take() else { return };
        let outage_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(%timeline, outage_ms, "writes are possible again");
        let control = self.control.clone();
        tokio::spawn(async move {
            match control.propose(Command::RecordOutage { timeline, outage_ms }).await {
                Ok(Outcome::Applied { .. }) => {}
                Ok(Outcome::Rejected { reason }) => tracing::info!(%reason, "the outage was not recorded"),
                Err(error) => tracing::info!(%error, "the outage was not recorded"),
            }
        });
    }
}
