//! The state of replication as the primary sees it (MON-1): PostgreSQL's `pg_stat_replication`, and the sync list.

use understudy_core::sync::{StandbySync, WalSenderState};
use understudy_rpc::v1;
use understudy_types::{Lsn, NodeId};

use super::cluster::{Primary, sync_status};

/// All of it.
pub(super) fn replication(primary: &Primary) -> v1::ReplicationResponse {
    let cluster = &primary.view.cluster;
    let sync = primary.sync.status();
    let end = primary.engine.wal().end();
    let standbys = sync.standbys.iter().map(|(node, standby)| standby_status(primary, *node, standby, end.lsn));
    v1::ReplicationResponse {
        primary: primary.name_of(primary.view.me),
        timeline: end.timeline.get(),
        end_lsn: end.lsn.get(),
        flush_lsn: primary.engine.wal().flushed().borrow().get(),
        safe_lsn: sync.safe_lsn.get(),
        remote_write_lsn: sync.remote_write_lsn.get(),
        remote_apply_lsn: sync.remote_apply_lsn.get(),
        sync: Some(sync_status(cluster)),
        sync_waits: sync.waits.iter().map(|wait| named(primary, wait.to_string())).collect(),
        standbys: standbys.collect(),
    }
}

/// The core speaks of nodes by their ids, people by their names.
fn named(primary: &Primary, mut text: String) -> String {
    for (id, member) in &primary.view.cluster.members {
        text = text.replace(&format!("node {id}"), &format!("node {}", member.name));
    }
    text
}

fn standby_status(primary: &Primary, node: NodeId, standby: &StandbySync, end: Lsn) -> v1::StandbyStatus {
    let stream = primary.sync.stream(node);
    let lag = stream.map(|stream| stream.lag).unwrap_or_default();
    let member = primary.view.cluster.members.get(&node);
    let behind = |lsn: Lsn| end.saturating_since(lsn);
    let connected = standby.connection.is_some();
    v1::StandbyStatus {
        name: primary.name_of(node),
        node_id: node.to_string(),
        address: member.map_or_else(String::new, |member| member.address.clone()),
        connected,
        since_ms: stream.map_or(0, |stream| stream.since_ms),
        state: standby.connection.map_or("", state).to_owned(),
        sent_lsn: stream.map_or(0, |stream| stream.sent.get()),
        write_lsn: standby.ack.write.get(),
        flush_lsn: standby.ack.flush.get(),
        apply_lsn: standby.ack.apply.get(),
        write_lag_bytes: behind(standby.ack.write),
        flush_lag_bytes: behind(standby.ack.flush),
        apply_lag_bytes: behind(standby.ack.apply),
        write_lag_us: lag.write_us,
        flush_lag_us: lag.flush_us,
        apply_lag_us: lag.apply_us,
        sync_state: standby.state.to_string(),
        sync_priority: standby.priority,
        reply_time_ms: stream.map_or(0, |stream| stream.reply_time_ms),
        damaged: standby.damaged,
    }
}

fn state(state: WalSenderState) -> &'static str {
    match state {
        WalSenderState::Startup => "startup",
        WalSenderState::Catchup => "catchup",
        WalSenderState::Streaming => "streaming",
    }
}
