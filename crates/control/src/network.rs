//! Messages of the consensus library to the other nodes.
//!
//! One gRPC connection per node, made when it is first needed and made again by itself: replication, votes,
//! snapshots, proposals and handovers all go over it. Raft's messages are small and rare, so they share it; WAL
//! has connections of its own.
//!
//! A message that was refused, or that did not get out, makes the library pause before the next (`Unreachable`);
//! one that was lost on the way is repeated with the next heartbeat (`Network`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::error::{NetworkError, PayloadTooLarge, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{Backoff, RPCOption};
use openraft::{BasicNode, RaftNetwork, RaftNetworkFactory};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use understudy_rpc::v1::RaftMessage;
use understudy_rpc::v1::raft_client::RaftClient;
use understudy_types::NodeId;

use crate::state_machine::Applied;
use crate::timing;
use crate::wire::{
    AppendReply, AppendRequest, BallotReply, BallotRequest, ChunkReply, ChunkRequest, TypeConfig, decode, encode,
};

type RpcError<E> = RPCError<u64, BasicNode, E>;

/// The connections of one node to all others.
#[derive(Clone)]
pub(crate) struct Network {
    shared: Arc<Shared>,
}

struct Shared {
    me: NodeId,
    applied: watch::Receiver<Arc<Applied>>,
    /// By target, with the address that it was made for.
    channels: Mutex<BTreeMap<NodeId, (String, Channel)>>,
    /// What a node said last when it refused a message: said once in the log, not with every heartbeat.
    refusals: Mutex<BTreeMap<NodeId, String>>,
}

/// A message did not bring an answer.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("\"{address}\" is not an address: {why}")]
    Address { address: String, why: String },
    #[error("{} bytes are more than a message may have ({})", .0, timing::MESSAGE_BYTES_MAX)]
    TooLarge(usize),
    #[error("{}: {}", .0.code(), .0.message())]
    Status(Box<Status>),
    #[error("node {0} answered in the place of the one that was asked")]
    Impostor(NodeId),
    #[error("the answer does not parse: {0}")]
    Malformed(serde_json::Error),
}

impl CallError {
    /// Whether to pause before the next message.
    fn is_lasting(&self) -> bool {
        match self {
            Self::Status(status) => !matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded | Code::Aborted),
            Self::Address { .. } | Self::TooLarge(_) | Self::Impostor(_) | Self::Malformed(_) => true,
        }
    }

    fn into_rpc<E: std::error::Error>(self) -> RpcError<E> {
        if self.is_lasting() { Unreachable::new(&self).into() } else { NetworkError::new(&self).into() }
    }
}

impl Network {
    pub(crate) fn new(me: NodeId, applied: watch::Receiver<Arc<Applied>>) -> Self {
        let (channels, refusals) = (Mutex::default(), Mutex::default());
        Self { shared: Arc::new(Shared { me, applied, channels, refusals }) }
    }

    /// A client on the connection to `target`, which is made now if there is none to this address.
    ///
    /// # Errors
    /// When the text is not an address.
    pub(crate) fn client(&self, target: NodeId, address: &str) -> Result<RaftClient<Channel>, Status> {
        let channel = self.channel(target, address).map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(client_on(channel))
    }

    fn channel(&self, target: NodeId, address: &str) -> Result<Channel, CallError> {
        let mut channels = self.shared.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made_for, channel)) = channels.get(&target)
            && made_for == address
        {
            return Ok(channel.clone());
        }
        let channel = endpoint(address)?.connect_lazy();
        channels.insert(target, (address.to_owned(), channel.clone()));
        Ok(channel)
    }

    fn note_refusal(&self, target: NodeId, address: &str, status: &Status) {
        let mut refusals = self.shared.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if status.code() != Code::FailedPrecondition {
            return;
        }
        if refusals.get(&target).is_none_or(|text| text != status.message()) {
            tracing::warn!(%target, address, why = status.message(), "raft message refused");
            refusals.insert(target, status.message().to_owned());
        }
    }

    fn note_answer(&self, target: NodeId) {
        self.shared.refusals.lock().unwrap_or_else(PoisonError::into_inner).remove(&target);
    }
}

fn client_on(channel: Channel) -> RaftClient<Channel> {
    RaftClient::new(channel)
        .max_decoding_message_size(timing::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(timing::MESSAGE_BYTES_MAX)
}

fn endpoint(address: &str) -> Result<Endpoint, CallError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| CallError::Address { address: address.to_owned(), why: error.to_string() })?;
    Ok(endpoint
        .connect_timeout(timing::CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(timing::KEEPALIVE_INTERVAL)
        .keep_alive_timeout(timing::KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        Peer { network: self.clone(), target: NodeId::new(target), address: node.addr.clone() }
    }
}

/// One other node.
pub(crate) struct Peer {
    network: Network,
    target: NodeId,
    address: String,
}

/// Which of the service's methods.
#[derive(Clone, Copy)]
enum Method {
    AppendEntries,
    Vote,
    InstallSnapshot,
}

impl Peer {
    async fn call<A: DeserializeOwned>(
        &self,
        method: Method,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<A, CallError> {
        if payload.len() > timing::MESSAGE_BYTES_MAX {
            return Err(CallError::TooLarge(payload.len()));
        }
        let shared = &self.network.shared;
        let mut request = Request::new(RaftMessage {
            system_id: shared.applied.borrow().state.system_id.get(),
            source_node_id: shared.me.get(),
            target_node_id: self.target.get(),
            payload,
        });
        request.set_timeout(timeout);
        let answer = self.send(method, request).await.inspect_err(|error| {
            if let CallError::Status(status) = error {
                self.network.note_refusal(self.target, &self.address, status);
            }
        })?;
        let message = answer.into_inner();
        if message.source_node_id != self.target.get() {
            return Err(CallError::Impostor(NodeId::new(message.source_node_id)));
        }
        self.network.note_answer(self.target);
        decode(&message.payload).map_err(CallError::Malformed)
    }

    async fn send(&self, method: Method, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, CallError> {
        let mut client = client_on(self.network.channel(self.target, &self.address)?);
        let answer = match method {
            Method::AppendEntries => client.append_entries(request).await,
            Method::Vote => client.vote(request).await,
            Method::InstallSnapshot => client.install_snapshot(request).await,
        };
        answer.map_err(|status| CallError::Status(Box::new(status)))
    }

    fn remote<E: std::error::Error>(&self, error: E) -> RpcError<E> {
        RemoteError::new(self.target.get(), error).into()
    }
}

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendRequest,
        option: RPCOption,
    ) -> Result<openraft::raft::AppendEntriesResponse<u64>, RpcError<RaftError<u64>>> {
        let payload = encode(&request);
        if payload.len() > timing::MESSAGE_BYTES_MAX && request.entries.len() > 1 {
            let half = u64::try_from(request.entries.len() / 2).expect("a length fits into 64 bits");
            return Err(PayloadTooLarge::new_entries_hint(half).into());
        }
        let reply: Result<AppendReply, CallError> = self.call(Method::AppendEntries, payload, option.hard_ttl()).await;
        reply.map_err(CallError::into_rpc)?.map_err(|error| self.remote(error))
    }

    async fn vote(
        &mut self,
        request: BallotRequest,
        option: RPCOption,
    ) -> Result<openraft::raft::VoteResponse<u64>, RpcError<RaftError<u64>>> {
        let reply: Result<BallotReply, CallError> = self.call(Method::Vote, encode(&request), option.hard_ttl()).await;
        reply.map_err(CallError::into_rpc)?.map_err(|error| self.remote(error))
    }

    async fn install_snapshot(
        &mut self,
        request: ChunkRequest,
        option: RPCOption,
    ) -> Result<
        openraft::raft::InstallSnapshotResponse<u64>,
        RpcError<RaftError<u64, openraft::error::InstallSnapshotError>>,
    > {
        let reply: Result<ChunkReply, CallError> =
            self.call(Method::InstallSnapshot, encode(&request), option.hard_ttl()).await;
        reply.map_err(CallError::into_rpc)?.map_err(|error| self.remote(error))
    }

    fn backoff(&self) -> Backoff {
        let doubled = |pause: &Duration| Some((*pause * 2).min(timing::BACKOFF_MAX));
        Backoff::new(std::iter::successors(Some(timing::BACKOFF_FIRST), doubled))
    }
}
