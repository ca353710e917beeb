//! What the walsenders' shell needs of the node that runs it.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Instant;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
pub use understudy_core::sync::ConnectionId;
use understudy_engine::Mark;
use understudy_types::{Incarnation, Lsn, NodeId, SystemId, TimelineHistory, TimelineId};
use understudy_wal::Wal;

use crate::message::{AckPosition, StreamState, WalFormat};
use crate::seed::SeedSource;

/// The log that is streamed.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its cluster.
    pub system_id: SystemId,
    /// Its format.
    pub format: WalFormat,
    /// Whose it is.
    pub node: NodeId,
    /// Itself.
    pub wal: Wal,
    /// Its safe LSN.
    pub safe: watch::Receiver<Lsn>,
}

/// The timeline that a primary has opened.
#[derive(Debug, Clone)]
pub struct ServingTimeline {
    /// Of the cluster state, up to this timeline.
    pub history: TimelineHistory,
    /// Cancelled when the node no longer serves it: all its streams end with `Stopping`.
    pub ended: CancellationToken,
}

/// A standby that was taken on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandbyInfo {
    /// Who.
    pub node: NodeId,
    /// Its process start.
    pub incarnation: Incarnation,
    /// How often its WAL was marked damaged.
    pub damage_epoch: u64,
    /// The timeline that it streams, which was served when it came: its acknowledgements count for no other.
    pub timeline: TimelineId,
    /// Where its connection comes from; none when the transport does not say.
    pub address: Option<SocketAddr>,
}

/// Implemented by the node. Nothing here may block: streams call it from async threads.
pub trait UpstreamHooks: Send + Sync + 'static {
    /// The own log; none while the node has none (it belongs to no cluster yet, or holds no data).
    fn source(&self) -> Option<Source>;

    /// The timeline that it serves; none when this node is not an open primary.
    fn serving(&self) -> Option<ServingTimeline>;

    /// What this node has sealed for, completely: its WAL stands. Zero for nothing.
    fn sealed_for(&self) -> TimelineId;

    /// The history of the cluster state.
    fn history(&self) -> TimelineHistory;

    /// What other nodes may be seeded from; none while that is not to be had (it is being seeded itself, for example).
    fn seed_source(&self) -> Option<SeedSource> {
        None
    }

    /// Whether `node` is a member that may have this node's log.
    fn is_member(&self, node: NodeId) -> bool;

    /// This node's log is damaged at `at`, where `standby` needs it. Whether it is to be seeded past that: what the log
    /// said stands in the store, and nobody counts on what the standby has. Otherwise it asks again, until people have
    /// looked at it.
    fn seeds_past_damage(&self, standby: NodeId, at: Lsn) -> bool;

    /// A standby was taken on; none to refuse it (its timeline is not served any more). It begins in state startup.
    fn connected(&self, standby: StandbyInfo) -> Option<ConnectionId>;

    /// A standby's stream changed its state.
    fn state(&self, connection: ConnectionId, state: StreamState);

    /// Everything up to `sent` is on its way to a standby. Of no use to one who keeps no account of it.
    fn sent(&self, _connection: ConnectionId, _sent: Lsn) {}

    /// A piece of the log, read from `read_began` on, goes to `standby` now: the traced commits in it, in their order and
    /// at most [`crate::message::MARKS_PER_DATA_MAX`].
    fn sending(&self, _standby: NodeId, _piece: Range<Lsn>, _read_began: Instant) -> Vec<Mark> {
        Vec::new()
    }

    /// A standby acknowledged.
    fn ack(&self, connection: ConnectionId, position: AckPosition);

    /// Its stream is over: the last word on this connection.
    fn disconnected(&self, connection: ConnectionId);
}
