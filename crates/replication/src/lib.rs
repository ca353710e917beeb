//! The WAL plane between nodes: how the log reaches a standby.
//!
//! | module | what it is | who runs it |
//! |---|---|---|
//! | [`message`] | what the two ends say | |
//! | [`sender`] | the walsender's decisions, without IO | the upstream, one per stream |
//! | [`receiver`] | the walreceiver's decisions, without IO | the standby, one per upstream |
//! | [`seed`] | a node that cannot go on from its own data gets another one's | both ends |
//! | [`serve`] | the gRPC service around the senders | the node's one port |
//! | [`follow()`] | the receiver as a task | a standby |
//! | [`fetch()`] | the receiver once more, for what the winner of an election lacks | the winner |
//! | [`hooks`], [`log`] | what the shells need of the node | implemented by the node |
//! | [`error`] | what goes wrong, and what to do | |
//!
//! What this crate refuses to do: decide whom to follow, who is primary and what is safe. It moves bytes between logs
//! that agree, and says where each stands.

mod engine_log;
pub mod error;
pub mod fetch;
pub mod follow;
pub mod hooks;
mod link;
pub mod log;
pub mod message;
mod places;
pub mod receiver;
pub mod seed;
pub mod sender;
pub mod serve;
mod session;
pub mod transport;
mod wire;

pub use fetch::{FetchConfig, FetchError, fetch};
pub use follow::{FollowConfig, ReceiverStatus, follow};
pub use hooks::{ConnectionId, ServingTimeline, Source, StandbyInfo, UpstreamHooks};
pub use log::{LogError, LogSink};
pub use message::{AckPosition, StreamState, WalFormat};
pub use receiver::{OwnLog, ReceiverTiming};
pub use serve::{ReplicationService, SenderSettings};
