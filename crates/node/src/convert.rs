//! Domain types to protobuf and back, for what only nodes exchange.

use understudy_core::observation::{FetchOrder, NodeReport, NodeRole, Seal, SeedProgress, StreamState};
use understudy_rpc::v1;
use understudy_types::{Generation, Incarnation, Lsn, NodeId, Position, TimelineId};

/// A beat that no node of this version would send.
#[derive(Debug, thiserror::Error)]
pub enum BeatError {
    /// The role is not one.
    #[error("the beat of node {node} has role {role}, which this version does not know")]
    Role {
        /// Who sent it.
        node: NodeId,
        /// What it says.
        role: i32,
    },
}

/// As it goes into a beat.
pub fn report_to_wire(report: &NodeReport) -> v1::NodeReport {
    let role = match report.role {
        NodeRole::Primary => v1::NodeRole::Primary,
        NodeRole::Standby => v1::NodeRole::Standby,
        NodeRole::Witness => v1::NodeRole::Witness,
    };
    v1::NodeReport {
        role: role.into(),
        timeline: report.timeline.get(),
        wal_timeline: report.wal_end.timeline.get(),
        write_lsn: report.wal_end.lsn.get(),
        flush_lsn: report.flush_lsn.get(),
        apply_lsn: report.apply_lsn.get(),
        safe_lsn: report.safe_lsn.get(),
        sealed_timeline: report.seal.map_or(0, |seal| seal.timeline.get()),
        seal_complete: report.seal.is_some_and(|seal| seal.complete),
        damaged: report.damaged,
        damage_epoch: report.damage_epoch,
        primary_heard_ms_ago: report.primary_heard_ms_ago,
        primary_refused: report.primary_refused,
        confirmed: report.confirmed,
        stream_state: stream_state_to_wire(report.stream_state).into(),
        problem: report.stays_out.clone().unwrap_or_default(),
        failed_to_open: report.failed_to_open.map_or(0, TimelineId::get),
        could_not_fetch: report.could_not_fetch.map_or(0, TimelineId::get),
        stays_out: report.stays_out.is_some(),
        raft_leader: report.raft_leader.map_or(0, NodeId::get),
        generation: report.generation.get(),
        hears: report.hears.iter().map(|node| node.get()).collect(),
        lost_node_ids: report.lost.iter().map(|node| node.get()).collect(),
        lease_left_ms: report.lease_left_ms,
        no_sync: report.no_sync,
        seeding_from_lsn: report.seeding_from.map_or(0, Lsn::get),
        seed: report.seed.map(|seed| v1::SeedProgress {
            source_node_id: seed.source.map_or(0, NodeId::get),
            bytes_total: seed.bytes_total,
            bytes_done: seed.bytes_done,
            bytes_reused: seed.bytes_reused,
        }),
    }
}

fn stream_state_to_wire(state: StreamState) -> v1::StreamState {
    match state {
        StreamState::Startup => v1::StreamState::Startup,
        StreamState::Catchup => v1::StreamState::Catchup,
        StreamState::Streaming => v1::StreamState::Streaming,
    }
}

/// As it came with `beat`.
///
/// # Errors
/// When it holds a word that this version does not know.
pub fn report_from_wire(beat: &v1::Beat, report: &v1::NodeReport) -> Result<NodeReport, BeatError> {
    let node = NodeId::new(beat.node_id);
    let role = match report.role() {
        v1::NodeRole::Primary => NodeRole::Primary,
        v1::NodeRole::Standby => NodeRole::Standby,
        v1::NodeRole::Witness => NodeRole::Witness,
        v1::NodeRole::Unspecified => return Err(BeatError::Role { node, role: report.role }),
    };
    let stream_state = match report.stream_state() {
        v1::StreamState::Streaming => StreamState::Streaming,
        v1::StreamState::Catchup => StreamState::Catchup,
        v1::StreamState::Startup | v1::StreamState::Unspecified => StreamState::Startup,
    };
    let timeline = |number: u32| (number != 0).then(|| TimelineId::new(number));
    Ok(NodeReport {
        incarnation: Incarnation::new(beat.incarnation),
        role,
        timeline: TimelineId::new(report.timeline),
        wal_end: Position::new(TimelineId::new(report.wal_timeline), Lsn::new(report.write_lsn)),
        flush_lsn: Lsn::new(report.flush_lsn),
        apply_lsn: Lsn::new(report.apply_lsn),
        safe_lsn: Lsn::new(report.safe_lsn),
        seal: timeline(report.sealed_timeline).map(|timeline| Seal { timeline, complete: report.seal_complete }),
        damaged: report.damaged,
        damage_epoch: report.damage_epoch,
        primary_heard_ms_ago: report.primary_heard_ms_ago,
        primary_refused: report.primary_refused,
        confirmed: report.confirmed,
        stream_state,
        raft_leader: (report.raft_leader != 0).then(|| NodeId::new(report.raft_leader)),
        failed_to_open: timeline(report.failed_to_open),
        could_not_fetch: timeline(report.could_not_fetch),
        stays_out: report.stays_out.then(|| report.problem.clone()),
        seeding_from: (report.seeding_from_lsn != 0).then(|| Lsn::new(report.seeding_from_lsn)),
        seed: report.seed.as_ref().map(|seed| SeedProgress {
            source: (seed.source_node_id != 0).then(|| NodeId::new(seed.source_node_id)),
            bytes_total: seed.bytes_total,
            bytes_done: seed.bytes_done,
            bytes_reused: seed.bytes_reused,
        }),
        generation: Generation::new(report.generation),
        hears: report.hears.iter().map(|node| NodeId::new(*node)).collect(),
        lost: report.lost_node_ids.iter().map(|node| NodeId::new(*node)).collect(),
        lease_left_ms: report.lease_left_ms,
        no_sync: report.no_sync,
    })
}

/// As it goes into a beat.
pub fn fetch_order_to_wire(order: &FetchOrder) -> v1::FetchOrder {
    v1::FetchOrder {
        election_timeline: order.election.get(),
        winner_node_id: order.winner.get(),
        source_node_id: order.source.get(),
        until_lsn: order.until.get(),
    }
}

/// As it came with a beat.
pub fn fetch_order_from_wire(order: &v1::FetchOrder) -> FetchOrder {
    FetchOrder {
        election: TimelineId::new(order.election_timeline),
        winner: NodeId::new(order.winner_node_id),
        source: NodeId::new(order.source_node_id),
        until: Lsn::new(order.until_lsn),
    }
}
