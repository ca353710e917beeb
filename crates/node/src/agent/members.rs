//! Changes of who votes: what this node goes by, and the Raft leader's steps towards it.

use understudy_core::membership::{MembershipStep, next_step};
use understudy_core::observation::Observations;

use super::Agent;
use super::act::Done;
use super::lead::RETRY_INTERVAL;
use crate::freshness::boot_ms;

impl Agent {
    /// The voters of the applied state are others. Ends only when the confirmer goes by them too: from then on the reports
    /// say so, and the Raft leader lets the next change come (INV-LINEAR).
    pub(super) async fn learn_voters(&self, was_voter: bool) {
        tracing::info!(voters = ?self.cluster.voters(), "the voters changed");
        self.publish_standing();
        if !was_voter {
            self.count_as_having_granted();
        }
        self.confirmer.set_voters(self.cluster.voters()).await;
    }

    /// INV-LINEAR: a full lease, if this node votes.
    pub(super) fn count_as_having_granted(&self) {
        if self.cluster.voters().contains(&self.me.node_id) {
            self.standing.send_modify(|standing| standing.grants.became_voter(boot_ms()));
        }
    }

    /// On the Raft leader: one step at a time.
    pub(super) fn lead_members(&mut self, observations: &Observations) {
        if self.leading.is_changing_members {
            return;
        }
        let Some(step) = next_step(&self.cluster, &self.control.members(), observations) else { return };
        self.leading.is_changing_members = true;
        let (control, done) = (self.control.clone(), self.done_tx.clone());
        tokio::spawn(async move {
            tracing::info!(?step, "changing the members");
            let outcome = match step {
                MembershipStep::AddLearner { node, address } => {
                    control.add_learner(node, address).await.map_err(|error| error.to_string())
                }
                MembershipStep::SetVoters(voters) => {
                    control.set_voters(voters).await.map_err(|error| error.to_string())
                }
                MembershipStep::Forget(nodes) => control.forget(nodes).await.map_err(|error| error.to_string()),
                MembershipStep::Propose(command) => {
                    control.propose(command).await.map(drop).map_err(|error| error.to_string())
                }
            };
            if let Err(why) = outcome {
                tracing::warn!(%why, "the members were not changed: trying again");
            }
            // The state that says how it went may come a moment later.
            tokio::time::sleep(RETRY_INTERVAL).await;
            if done.send(Done::MembersChanged).await.is_err() {
                tracing::debug!("the agent has ended");
            }
        });
    }
}
