//! The Raft leader's part: proposes what the planner says, and nothing else.

use std::time::{Duration, Instant};

use understudy_core::command::{Command, Outcome};
use understudy_core::observation::FetchOrder;
use understudy_core::plan::plan;
use understudy_types::NodeId;

use super::Agent;
use super::act::Done;

/// Whatever failed is not tried again at once: a failure may come back faster than anything can change.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// While leadership is being handed over no heartbeats go out: between two attempts the followers must hear some.
const HANDOVER_INTERVAL: Duration = Duration::from_secs(3);

/// What the leader has under way. Empty on everybody else.
#[derive(Debug, Default)]
pub struct Leading {
    since: Option<Instant>,
    proposing: bool,
    handing_over: bool,
    /// A step towards the wanted members is under way.
    pub is_changing_members: bool,
    /// What the winner of the open election is told.
    pub order: Option<FetchOrder>,
    /// What keeps the open election from ending.
    pub blocked: Option<String>,
}

impl Leading {
    /// From when this node leads; none when it does not.
    pub fn since(since: Option<Instant>) -> Self {
        Self { since, ..Self::default() }
    }

    /// What was said of the phase before does not hold in the next.
    pub fn phase_changed(&mut self) {
        self.order = None;
        self.blocked = None;
    }

    /// A proposal has ended.
    pub fn proposed(&mut self) {
        self.proposing = false;
    }

    /// A handover has ended.
    pub fn handed_over(&mut self) {
        self.handing_over = false;
    }
}

impl Agent {
    /// Plans, if this node leads.
    pub(super) fn lead(&mut self) {
        let Some(since) = self.leading.since else { return };
        let observations = self.observations(since);
        self.lead_members(&observations);
        let planned = plan(&self.cluster, &observations, self.now_ms());
        self.leading.order = planned.fetch_order;
        self.fetch_order = planned.fetch_order;
        let blocked = planned.blocked.as_ref().map(ToString::to_string);
        if blocked != self.leading.blocked {
            if let Some(why) = &blocked {
                tracing::warn!(timeline = %self.cluster.fence(), %why, "nobody can be promoted yet");
            }
            self.leading.blocked = blocked;
        }
        if let Some(command) = planned.command
            && !self.leading.proposing
        {
            self.propose(command);
        }
        if let Some(to) = planned.hand_leadership_to {
            self.hand_over_once(to);
        }
    }

    /// Unless that is under way, or a command is.
    pub(super) fn hand_over_once(&mut self, to: NodeId) {
        if !self.leading.handing_over && !self.leading.proposing {
            self.hand_over(to);
        }
    }

    fn propose(&mut self, command: Command) {
        self.leading.proposing = true;
        let (control, done) = (self.control.clone(), self.done_tx.clone());
        tokio::spawn(async move {
            tracing::debug!(?command, "proposing");
            match control.propose(command).await {
                Ok(Outcome::Applied { generation }) => tracing::debug!(%generation, "carried out"),
                Ok(Outcome::Rejected { reason }) => {
                    tracing::info!(%reason, "a command was rejected");
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "a command could not be proposed");
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
            }
            if done.send(Done::Proposed).await.is_err() {
                tracing::debug!("the agent has ended");
            }
        });
    }

    fn hand_over(&mut self, to: NodeId) {
        self.leading.handing_over = true;
        let (control, done) = (self.control.clone(), self.done_tx.clone());
        tokio::spawn(async move {
            tracing::info!(%to, "handing raft leadership over");
            if let Err(error) = control.hand_leadership(to).await {
                tracing::warn!(%to, %error, "raft leadership was not handed over");
                tokio::time::sleep(HANDOVER_INTERVAL).await;
            }
            if done.send(Done::HandedOver).await.is_err() {
                tracing::debug!("the agent has ended");
            }
        });
    }
}
