//! The types that the consensus library is used with, and how its messages stand in ours.

use std::io::Cursor;

use bytes::Bytes;
use openraft::BasicNode;
use openraft::error::{InstallSnapshotError, RaftError};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use understudy_core::command::{Command, Outcome};

openraft::declare_raft_types!(
    /// A command goes in, its outcome comes out.
    pub(crate) TypeConfig:
        D = Command,
        R = Outcome,
        NodeId = u64,
        Node = BasicNode,
);

pub(crate) type Raft = openraft::Raft<TypeConfig>;
pub(crate) type Entry = openraft::Entry<TypeConfig>;
pub(crate) type LogId = openraft::LogId<u64>;
pub(crate) type Vote = openraft::Vote<u64>;
pub(crate) type Metrics = openraft::RaftMetrics<u64, BasicNode>;
pub(crate) type StoredMembership = openraft::StoredMembership<u64, BasicNode>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<u64, BasicNode>;
pub(crate) type StorageError = openraft::StorageError<u64>;

pub(crate) type AppendRequest = AppendEntriesRequest<TypeConfig>;
pub(crate) type AppendReply = Result<AppendEntriesResponse<u64>, RaftError<u64>>;
pub(crate) type BallotRequest = VoteRequest<u64>;
pub(crate) type Ballot = VoteResponse<u64>;
pub(crate) type BallotReply = Result<Ballot, RaftError<u64>>;
pub(crate) type ChunkRequest = InstallSnapshotRequest<TypeConfig>;
pub(crate) type ChunkReply = Result<InstallSnapshotResponse<u64>, RaftError<u64, InstallSnapshotError>>;

/// In the metadata of a refused proposal: who leads, 16 hexadecimal digits.
pub(crate) const LEADER_KEY: &str = "understudy-raft-leader";
/// In the metadata of a refused proposal: the leader's address.
pub(crate) const LEADER_ADDRESS_KEY: &str = "understudy-raft-leader-address";

/// A message's payload.
pub(crate) fn encode<T: Serialize>(message: &T) -> Bytes {
    Bytes::from(serde_json::to_vec(message).expect("messages have no maps with keys that JSON cannot hold"))
}

/// The message in a payload.
///
/// # Errors
/// When it is not one.
pub(crate) fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(payload)
}
