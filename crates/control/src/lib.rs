//! The control plane of one node: Raft, behind our own API.
//!
//! The consensus library (openraft 0.9.25) is named in this crate only, so that another release or another
//! library can replace it. What Raft agrees on is [`understudy_core::state::ClusterState`]; how a command changes
//! it is decided by `understudy_core::command::apply`, which runs here, inside the state machine, on every node.
//!
//! | module | what it holds | who runs it |
//! |---|---|---|
//! | `database` | the log's own RocksDB and its one writer thread | that thread |
//! | `log_store` | votes, entries, the committed index | the Raft core task |
//! | `state_machine` | the cluster state and its snapshots | Raft's state machine task |
//! | `network`, `wire` | messages to the other nodes over gRPC | Raft's replication tasks |
//! | [`RaftService`] | messages from the other nodes | the node's gRPC server |
//! | [`Control`] | the handle: propose, watch, hand leadership over | everybody |
//! | [`bootstrap`] | who makes a new cluster out of empty nodes | the node, at its start |
//!
//! Kept here: votes and entries are fsynced before anybody hears of them, and messages for another node, or for an
//! earlier life of a data directory, are refused. That is what "a majority" means in INV-ONE-PRIMARY and
//! INV-FENCED: a node that lost its disk has another id, and so it never votes or counts as the one it was.
//!
//! Refused here: deciding anything about timelines, primaries or sync lists.

pub mod bootstrap;
mod control;
mod database;
mod error;
mod handover;
mod leadership;
mod log_store;
mod members;
mod network;
mod propose;
mod service;
mod state_machine;
pub mod timing;
mod wire;

pub use control::{Control, ControlConfig};
pub use error::{ControlError, HandoverError, ProposeError};
pub use leadership::{Leadership, RaftRole};
pub use service::RaftService;
pub use state_machine::Applied;

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod cluster_tests;
#[cfg(test)]
#[path = "durability_tests.rs"]
mod durability_tests;
#[cfg(test)]
#[path = "suite_tests.rs"]
mod suite_tests;
#[cfg(test)]
#[path = "test_cluster.rs"]
mod test_cluster;
