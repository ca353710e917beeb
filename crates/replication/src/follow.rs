//! Following an upstream: the walreceiver of a standby as a task.
//!
//! The node starts [`follow`] when the cluster state says whom to follow, and ends it by the token when that changes or
//! when it seals. It returns only when nothing of it touches the log any more: after that no acknowledgement leaves
//! (INV-FENCED), and what a seal reports is all that was ever acknowledged.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use understudy_types::{Incarnation, Lsn, NodeId, SystemId, TimelineHistory, TimelineId};

use crate::link::{Link, moved};
use crate::log::LogSink;
use crate::message::{StreamState, WalFormat};
use crate::receiver::{ReceiverConfig, ReceiverTiming, WalReceiver};

/// Whom to follow, as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FollowConfig {
    /// `host:port` of the upstream.
    pub upstream_address: String,
    /// This node's cluster.
    pub system_id: SystemId,
    /// Of its WAL.
    pub format: WalFormat,
    /// This node.
    pub node: NodeId,
    /// Its process start.
    pub incarnation: Incarnation,
    /// How often its WAL was marked damaged.
    pub damage_epoch: u64,
    /// The timeline that the upstream was promoted to.
    pub timeline: TimelineId,
    /// What this node has sealed; zero for nothing.
    pub sealed: TimelineId,
}

/// What a walreceiver knows, for beats, status and people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiverStatus {
    /// Startup while there is no stream.
    pub state: StreamState,
    /// The upstream's end of WAL as it was said last; invalid before.
    pub upstream_end: Lsn,
    /// The upstream's safe LSN as it was said last; invalid before.
    pub safe: Lsn,
    /// When the last piece of the log came: that the WAL still advances overrules missed beats. Keepalives do not count.
    pub last_received: Option<Instant>,
    /// Why there is no stream; none while there is one, or before the first attempt ended.
    pub problem: Option<String>,
    /// The segment that this node needs and its upstream has removed, or finds damaged: it must be seeded. None while streaming may help.
    pub wal_gone: Option<String>,
}

impl Default for ReceiverStatus {
    fn default() -> Self {
        Self {
            state: StreamState::Startup,
            upstream_end: Lsn::INVALID,
            safe: Lsn::INVALID,
            last_received: None,
            problem: None,
            wal_gone: None,
        }
    }
}

/// Follows until `cancel`. `history` is the cluster state's; it and the pace are read again whenever they change.
///
/// Failures end an attempt, never the following: they stand in `status`, and the next attempt comes after a pause.
pub async fn follow<L: LogSink>(
    log: Arc<L>,
    config: FollowConfig,
    mut pace: watch::Receiver<ReceiverTiming>,
    mut history: watch::Receiver<TimelineHistory>,
    cancel: CancellationToken,
    status: watch::Sender<ReceiverStatus>,
) {
    let timing = *pace.borrow_and_update();
    let FollowConfig { upstream_address, timeline, .. } = config.clone();
    let known = history.borrow_and_update().clone();
    let mut link = Link::new(log, upstream_address.clone(), timing, |own| {
        WalReceiver::new(receiver_config(&config, timing), own, known, 0)
    });
    tracing::info!(upstream = %upstream_address, %timeline, "following");
    loop {
        let changed = tokio::select! {
            () = cancel.cancelled() => break,
            () = moved(&mut history) => true,
            () = moved(&mut pace) => {
                link.set_timing(*pace.borrow_and_update());
                false
            }
            () = link.step() => false,
        };
        if changed {
            let known = history.borrow_and_update().clone();
            link.set_history(known);
        }
        publish(&status, status_of(&link), &upstream_address);
    }
    link.finish().await;
    status.send_modify(|status| status.state = StreamState::Startup);
    tracing::info!(upstream = %upstream_address, %timeline, "no longer following");
}

fn receiver_config(config: &FollowConfig, timing: ReceiverTiming) -> ReceiverConfig {
    ReceiverConfig {
        system_id: config.system_id,
        format: config.format,
        node: config.node,
        incarnation: config.incarnation,
        damage_epoch: config.damage_epoch,
        timeline: config.timeline,
        sealed: config.sealed,
        fetch: None,
        timing,
    }
}

fn status_of<L: LogSink>(link: &Link<L>) -> ReceiverStatus {
    let awaited = link.receiver.awaited_timeline();
    let waits = awaited.map(|next| format!("waiting for the cluster state to say where timeline {next} begins"));
    ReceiverStatus {
        state: link.receiver.state(),
        upstream_end: link.receiver.upstream_end(),
        safe: link.receiver.upstream_safe(),
        last_received: link.data_at,
        problem: link.receiver.failure().map(ToString::to_string).or(waits),
        wal_gone: link.receiver.wal_gone().map(str::to_owned),
    }
}

/// Publishes what is new; what people want to know of goes to the log once.
fn publish(status: &watch::Sender<ReceiverStatus>, new: ReceiverStatus, upstream: &str) {
    status.send_if_modified(|old| {
        if *old == new {
            return false;
        }
        if old.state != new.state {
            tracing::info!(%upstream, state = %new.state, end = %new.upstream_end, "replication state");
        }
        if old.problem != new.problem
            && let Some(problem) = &new.problem
        {
            tracing::warn!(%upstream, %problem, "no stream from the upstream; trying again");
        }
        *old = new;
        true
    });
}
