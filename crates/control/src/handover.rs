//! Raft leadership from this node to another.
//!
//! The library has no transfer of leadership; it is made of what there is. A voter refuses candidates for the
//! length of a leader's lease after each message of the leader, and a leader itself, once it has led for that long, grants
//! its vote to whom it has asked to stand. So the target wins at once where its own vote and the leader's are a majority
//! (three voters). With more voters the leader first falls silent until their leases are over.
//!
//! A target that stands and loses has a higher term all the same and deposes the leader: it is asked only when it
//! has the whole log. A command that is proposed meanwhile goes first (it may be what a failover waits for): the
//! handover is given up and heartbeats go on. However it ends, they go on.

use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tonic::Request;
use understudy_core::state::majority;
use understudy_rpc::v1::ElectRequest;
use understudy_types::NodeId;

use crate::control::Core;
use crate::error::HandoverError;
use crate::leadership::Leadership;
use crate::timing;
use crate::wire::{Metrics, Raft};

/// Heartbeats are off while this lives.
struct Silent<'a>(&'a Raft);

impl<'a> Silent<'a> {
    fn new(raft: &'a Raft) -> Self {
        raft.runtime_config().heartbeat(false);
        Self(raft)
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        self.0.runtime_config().heartbeat(true);
    }
}

fn has_whole_log(metrics: &Metrics, to: NodeId) -> bool {
    let matching = metrics.replication.as_ref().and_then(|targets| targets.get(&to.get()).copied().flatten());
    matching.map(|log_id| log_id.index) == metrics.last_log_index
}

impl Core {
    /// Hands leadership to `to`. Returns once `to` was elected.
    pub(crate) async fn hand_leadership(&self, to: NodeId) -> Result<(), HandoverError> {
        let Ok(_one_at_a_time) = self.handing_over.try_lock() else { return Err(HandoverError::Busy) };
        let mut interrupts = self.interrupts.subscribe();
        let mut metrics = self.raft.metrics();
        let leadership = Leadership::of(&metrics.borrow());
        if !leadership.i_am_leader {
            return Err(HandoverError::NotLeader);
        }
        if !leadership.voters.contains(&to) || to == self.me {
            return Err(HandoverError::NotVoter { to });
        }
        self.await_whole_log(&mut metrics, to).await?;

        let lease_over = |since: &Instant| since.elapsed() > timing::ELECTION_TIMEOUT_MAX;
        let grants_at_once = if self.leading_since.borrow().as_ref().is_some_and(lease_over) { 2 } else { 1 };
        let _silent = Silent::new(&self.raft);
        if grants_at_once < majority(leadership.voters.len()) {
            self.await_end_of_leases(&mut interrupts).await?;
        }
        self.ask_to_stand(to).await?;
        self.await_leader(&mut metrics, to).await
    }

    async fn await_whole_log(&self, metrics: &mut watch::Receiver<Metrics>, to: NodeId) -> Result<(), HandoverError> {
        let after = timing::HANDOVER_CATCH_UP_TIMEOUT;
        let behind = HandoverError::Behind { to, after };
        let caught_up = metrics.wait_for(|metrics| has_whole_log(metrics, to));
        match timeout(after, caught_up).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(behind),
        }
    }

    async fn await_end_of_leases(&self, interrupts: &mut watch::Receiver<u64>) -> Result<(), HandoverError> {
        // The last heartbeat may be on its way for as long as it is waited for.
        let pause = timing::ELECTION_TIMEOUT_MAX + timing::HEARTBEAT_INTERVAL;
        tokio::select! {
            changed = interrupts.changed() => {
                changed.map_err(|_| HandoverError::NotLeader)?;
                Err(HandoverError::Interrupted)
            }
            () = tokio::time::sleep(pause) => Ok(()),
        }
    }

    async fn ask_to_stand(&self, to: NodeId) -> Result<(), HandoverError> {
        let unwilling = |why: String| HandoverError::Unwilling { to, why };
        let address = self.address_of(to).ok_or(HandoverError::NotVoter { to })?;
        let mut client = self.network.client(to, &address).map_err(|status| unwilling(status.message().to_owned()))?;
        let request = Request::new(ElectRequest { source_node_id: self.me.get(), target_node_id: to.get() });
        let limit = timing::HANDOVER_ELECT_TIMEOUT;
        self.asked_to_stand.send_replace(Some((to, Instant::now())));
        match timeout(limit, client.elect(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(unwilling(status.message().to_owned())),
            Err(_) => Err(unwilling(format!("it did not answer within {limit:?}"))),
        }
    }

    async fn await_leader(&self, metrics: &mut watch::Receiver<Metrics>, to: NodeId) -> Result<(), HandoverError> {
        let after = timing::HANDOVER_ELECT_TIMEOUT;
        let elected = metrics.wait_for(|metrics| metrics.current_leader == Some(to.get()));
        match timeout(after, elected).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(HandoverError::NotElected { to, after }),
        }
    }
}
