//! Messages of the other nodes to this one: the gRPC service `understudy.v1.Raft`.
//!
//! A message names the node that it is for. The directory at an address may have been emptied and made anew: then
//! another node lives there, which must not answer, vote or count for the one that is gone. It refuses, and says so.
//! So does a node of another cluster. Every call into the library has a time limit.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::raft::AppendEntriesResponse;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tonic::{Request, Response, Status};
use understudy_core::command::Command;
use understudy_rpc::v1::raft_server::{Raft, RaftServer};
use understudy_rpc::v1::{ElectRequest, ElectResponse, ProposeRequest, ProposeResponse, RaftMessage};
use understudy_types::{NodeId, SystemId};

use crate::control::Core;
use crate::error::ProposeError;
use crate::leadership::{Leadership, keeps_its_place};
use crate::timing;
use crate::wire::{
    AppendReply, AppendRequest, BallotReply, BallotRequest, ChunkRequest, LEADER_ADDRESS_KEY, LEADER_KEY, decode,
    encode,
};

/// The service of one node.
#[derive(Clone)]
pub struct RaftService {
    core: Arc<Core>,
}

impl RaftService {
    pub(crate) fn server(core: Arc<Core>) -> RaftServer<Self> {
        RaftServer::new(Self { core })
            .max_decoding_message_size(timing::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(timing::MESSAGE_BYTES_MAX)
    }

    fn check_target(&self, source: u64, target: u64) -> Result<(), Status> {
        let (me, source, target) = (self.core.me, NodeId::new(source), NodeId::new(target));
        if target == me {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "node {source} asked for node {target}, but {} is node {me} now; if node {target}'s data directory is \
             gone, run: understudy members replace NAME, with the name of node {me}",
            self.core.address,
        )))
    }

    /// A node that was replaced may still run somewhere: it must not disturb the others by standing for leadership.
    fn check_source(&self, source: u64) -> Result<(), Status> {
        let source = NodeId::new(source);
        match self.core.applied.borrow().state.former_members.get(&source) {
            None => Ok(()),
            Some(name) => Err(Status::failed_precondition(format!(
                "node {source} was {name} and has been replaced: stop it, and start it with an empty data directory to \
                 use it again"
            ))),
        }
    }

    fn check_envelope(&self, message: &RaftMessage) -> Result<(), Status> {
        self.check_target(message.source_node_id, message.target_node_id)?;
        self.check_source(message.source_node_id)?;
        let theirs = SystemId::new(message.system_id);
        let mine = self.core.system_id();
        let none = SystemId::default();
        if theirs == mine || theirs == none || mine == none {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "node {} belongs to cluster {theirs}, but node {} to cluster {mine}; correct the addresses",
            NodeId::new(message.source_node_id),
            self.core.me,
        )))
    }

    fn reply<T: Serialize>(&self, to: &RaftMessage, reply: &T) -> Response<RaftMessage> {
        Response::new(RaftMessage {
            system_id: self.core.system_id().get(),
            source_node_id: self.core.me.get(),
            target_node_id: to.source_node_id,
            payload: encode(reply),
        })
    }

    /// Checks and decodes a message, has it handled, and encodes the answer.
    async fn handle<Q, A, F>(
        &self,
        request: Request<RaftMessage>,
        limit: Duration,
        handler: impl FnOnce(Q) -> F + Send,
    ) -> Result<Response<RaftMessage>, Status>
    where
        Q: DeserializeOwned,
        A: Serialize,
        F: Future<Output = Result<A, Status>> + Send,
    {
        let message = request.into_inner();
        self.check_envelope(&message)?;
        let query = decode(&message.payload).map_err(|error| malformed(message.source_node_id, &error))?;
        let answer = timeout(limit, handler(query)).await;
        let answer = answer.map_err(|_| {
            Status::deadline_exceeded(format!("raft on node {} did not answer within {limit:?}", self.core.me))
        })??;
        Ok(self.reply(&message, &answer))
    }

    /// The status for a proposal that failed. Only a refusal says that nothing was proposed.
    fn refusal(&self, error: &ProposeError) -> Status {
        match error {
            ProposeError::NoLeader => not_leader(error, "none", ""),
            ProposeError::NotLeader { leader } => {
                let address = leader.and_then(|id| self.core.address_of(id)).unwrap_or_default();
                not_leader(error, &leader.map_or_else(|| "none".to_owned(), |id| id.to_string()), &address)
            }
            ProposeError::Refused { why, .. } => Status::invalid_argument(why.clone()),
            ProposeError::Unknown { .. } => Status::unknown(error.to_string()),
        }
    }
}

fn malformed(source: u64, error: &serde_json::Error) -> Status {
    Status::invalid_argument(format!("the message of node {} does not parse: {error}", NodeId::new(source)))
}

fn not_leader(error: &ProposeError, leader: &str, address: &str) -> Status {
    let mut status = Status::failed_precondition(error.to_string());
    for (key, value) in [(LEADER_KEY, leader), (LEADER_ADDRESS_KEY, address)] {
        if let Ok(value) = value.parse() {
            status.metadata_mut().insert(key, value);
        }
    }
    status
}

/// Whether the answer to an append says that its sender leads.
fn accepted(reply: &AppendReply) -> bool {
    match reply {
        Ok(
            AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_) | AppendEntriesResponse::Conflict,
        ) => true,
        Ok(AppendEntriesResponse::HigherVote(_)) | Err(_) => false,
    }
}

#[tonic::async_trait]
impl Raft for RaftService {
    async fn append_entries(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let handler = |query: AppendRequest| async move {
            let reply = self.core.raft.append_entries(query).await;
            if accepted(&reply) {
                self.core.heard.fetch_add(1, Ordering::Relaxed);
            }
            Ok(reply)
        };
        self.handle(request, timing::CALL_TIMEOUT, handler).await
    }

    async fn vote(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let handler = |query: BallotRequest| async move {
            match keeps_its_place(&self.core, &query).await {
                Some(refusal) => Ok::<BallotReply, Status>(Ok(refusal)),
                None => Ok(self.core.raft.vote(query).await),
            }
        };
        self.handle(request, timing::CALL_TIMEOUT, handler).await
    }

    async fn install_snapshot(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let handler = |query: ChunkRequest| async move {
            let bytes = u64::try_from(query.data.len()).expect("a length fits into 64 bits");
            if query.offset.saturating_add(bytes) > timing::SNAPSHOT_BYTES_MAX {
                return Err(Status::invalid_argument(format!(
                    "a snapshot has more than {} bytes",
                    timing::SNAPSHOT_BYTES_MAX
                )));
            }
            let reply = self.core.raft.install_snapshot(query).await;
            if reply.is_ok() {
                self.core.heard.fetch_add(1, Ordering::Relaxed);
            }
            Ok(reply)
        };
        self.handle(request, timing::SNAPSHOT_TIMEOUT, handler).await
    }

    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeResponse>, Status> {
        let message = request.into_inner();
        self.check_target(message.source_node_id, message.target_node_id)?;
        let command: Command = decode(&message.command).map_err(|error| malformed(message.source_node_id, &error))?;
        let outcome = self.core.write(command).await.map_err(|error| self.refusal(&error))?;
        Ok(Response::new(ProposeResponse { outcome: encode(&outcome) }))
    }

    async fn elect(&self, request: Request<ElectRequest>) -> Result<Response<ElectResponse>, Status> {
        let message = request.into_inner();
        self.check_target(message.source_node_id, message.target_node_id)?;
        let source = NodeId::new(message.source_node_id);
        let leadership = Leadership::of(&self.core.raft.metrics().borrow());
        if leadership.leader != Some(source) {
            return Err(Status::failed_precondition(format!(
                "node {source} asked node {} to stand for raft leadership, but does not lead",
                self.core.me
            )));
        }
        let asked = timeout(timing::CALL_TIMEOUT, self.core.raft.trigger().elect()).await;
        match asked {
            Ok(Ok(())) => Ok(Response::new(ElectResponse {})),
            Ok(Err(fatal)) => Err(Status::unavailable(format!("raft on node {} stopped: {fatal}", self.core.me))),
            Err(_) => Err(Status::deadline_exceeded(format!("raft on node {} did not answer", self.core.me))),
        }
    }
}
