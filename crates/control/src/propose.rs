//! Commands on their way into the log.
//!
//! The leader writes a command itself; every other node sends it to the leader it knows, once. Whether a command
//! that got no answer was carried out cannot be known here and is never guessed: the caller is told so, looks at
//! the state, and plans anew. A repeated command does no harm, because it carries its generation.

use openraft::error::{ClientWriteError, RaftError};
use tokio::time::timeout;
use tonic::{Code, Request, Status};
use understudy_core::command::{Command, Outcome};
use understudy_rpc::v1::ProposeRequest;
use understudy_types::NodeId;

use crate::control::Core;
use crate::error::ProposeError;
use crate::leadership::Leadership;
use crate::timing;
use crate::wire::{LEADER_KEY, decode, encode};

impl Core {
    /// Has the command carried out, here or by the leader.
    pub(crate) async fn propose(&self, command: Command) -> Result<Outcome, ProposeError> {
        let leader = Leadership::of(&self.raft.metrics().borrow()).leader.ok_or(ProposeError::NoLeader)?;
        if leader == self.me { self.write(command).await } else { self.forward(leader, &command).await }
    }

    /// Writes the command into the log of which this node is the leader.
    pub(crate) async fn write(&self, command: Command) -> Result<Outcome, ProposeError> {
        let Ok(_slot) = self.proposals.try_acquire() else {
            let why = "too many commands wait already; propose it again later".to_owned();
            return Err(ProposeError::Refused { leader: self.me, why });
        };
        // A handover under way would depose this node before the command is through.
        self.interrupts.send_modify(|count| *count += 1);
        let unknown = |why: String| ProposeError::Unknown { why };
        let written = timeout(timing::PROPOSE_TIMEOUT, self.raft.client_write(command)).await;
        let written = written.map_err(|_| {
            unknown(format!("it was not committed within {:?}; is a majority of voters up?", timing::PROPOSE_TIMEOUT))
        })?;
        match written {
            Ok(response) => Ok(response.data),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(ProposeError::NotLeader { leader: forward.leader_id.map(NodeId::new) })
            }
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => Err(unknown(error.to_string())),
            Err(RaftError::Fatal(fatal)) => Err(unknown(fatal.to_string())),
        }
    }

    async fn forward(&self, leader: NodeId, command: &Command) -> Result<Outcome, ProposeError> {
        let refused = |why: String| ProposeError::Refused { leader, why };
        let address = self.address_of(leader).ok_or(ProposeError::NoLeader)?;
        let mut client =
            self.network.client(leader, &address).map_err(|status| refused(status.message().to_owned()))?;
        let request = Request::new(ProposeRequest {
            source_node_id: self.me.get(),
            target_node_id: leader.get(),
            command: encode(command),
        });
        // The leader's own limit, and the way there and back.
        let limit = timing::PROPOSE_TIMEOUT + timing::CONNECT_TIMEOUT;
        let answer = timeout(limit, client.propose(request)).await;
        let answer = answer.map_err(|_| ProposeError::Unknown {
            why: format!("raft leader {leader} at {address} did not answer within {limit:?}"),
        })?;
        let response = answer.map_err(|status| failure_of(leader, &status))?.into_inner();
        decode(&response.outcome)
            .map_err(|error| ProposeError::Unknown { why: format!("the answer does not parse: {error}") })
    }
}

/// What the leader's status means. Only a refusal says that nothing was proposed.
fn failure_of(leader: NodeId, status: &Status) -> ProposeError {
    let says_who_leads = status.metadata().get(LEADER_KEY);
    if status.code() == Code::FailedPrecondition
        && let Some(known) = says_who_leads
    {
        return ProposeError::NotLeader { leader: known.to_str().ok().and_then(|text| text.parse().ok()) };
    }
    let definite = matches!(
        status.code(),
        Code::FailedPrecondition | Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented
    );
    if definite {
        return ProposeError::Refused { leader, why: status.message().to_owned() };
    }
    ProposeError::Unknown { why: format!("raft leader {leader}: {}: {}", status.code(), status.message()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_is_definite() {
        let leader = NodeId::new(7);
        let mut deposed = Status::failed_precondition("not me");
        deposed.metadata_mut().insert(LEADER_KEY, "0000000000000008".parse().expect("ascii"));
        assert!(matches!(
            failure_of(leader, &deposed),
            ProposeError::NotLeader { leader: Some(id) } if id == NodeId::new(8)
        ));
        let wrong_node = Status::failed_precondition("another node");
        assert!(matches!(failure_of(leader, &wrong_node), ProposeError::Refused { .. }));
        for status in
            [Status::unavailable(""), Status::unknown(""), Status::deadline_exceeded(""), Status::internal("")]
        {
            assert!(matches!(failure_of(leader, &status), ProposeError::Unknown { .. }), "{status}");
        }
    }
}
