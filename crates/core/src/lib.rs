//! The decisions of Understudy, pure: no IO, no async, no clock, no randomness.
//!
//! Everything that decides safety is a total function over plain data, with time as an argument, so that it
//! can be read, property-tested and simulated. Shells own the IO: event -> step -> persist -> send.
//!
//! | module | what it decides | who runs it |
//! |---|---|---|
//! | [`state`], [`command`] | what a committed Raft command makes of the cluster state | the Raft state machine, on every node |
//! | [`election`] | who may be promoted, who wins, F and S; from one set of seal reports | the Raft leader |
//! | [`plan`] | which command to propose next, or why none | the Raft leader |
//! | [`reconcile`] | what a node does to get from the role it has to the role it is assigned | every node |
//! | [`retention`] | which WAL must stay | every node's checkpointer |
//! | [`settings`] | what operators can set for the cluster, and what each setting takes | the Raft state machine, and whoever proposes |
//! | [`sync`] | the safe LSN, and how the sync-standby list changes | the primary |
//! | [`membership`] | how a member that was replaced comes to vote | the Raft leader |
//! | [`confirm`] | whether a majority confirms the primary | the primary |
//! | [`lease`] | what a voter is bound by that granted the primary a lease | every voter |
//! | [`reading`] | whether a node may answer a read that asks for a position | every node |
//! | [`staleness`] | how old a node's data may be | every standby |

pub mod command;
pub mod confirm;
pub mod election;
pub mod lease;
pub mod membership;
pub mod observation;
pub mod plan;
pub mod reading;
pub mod reconcile;
pub mod retention;
pub mod settings;
pub mod staleness;
pub mod state;
pub mod sync;
