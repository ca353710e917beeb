//! The `Cluster` service: what this node knows of the cluster, and every timeline there was.

use tokio::sync::watch;
use tonic::{Request, Response, Status};
use understudy_core::observation::{NodeRole, StreamState};
use understudy_core::state::{ClusterState, Member};
use understudy_core::sync::{StandbyNames, SyncMethod};
use understudy_rpc::v1;
use understudy_types::{Lsn, NodeId};

use crate::confirmer::Confirmer;
use crate::view::{NodeSeen, NodeView};

/// A node that was not heard for this long is shown as unreachable, in milliseconds.
const UNREACHABLE_MS: u64 = 1_000;

/// The `Cluster` service of one node.
pub struct ClusterService {
    view: watch::Receiver<NodeView>,
    confirmer: Confirmer,
}

impl ClusterService {
    /// Over what the agent publishes.
    pub fn new(view: watch::Receiver<NodeView>, confirmer: Confirmer) -> Self {
        Self { view, confirmer }
    }
}

fn name_of(cluster: &ClusterState, id: NodeId) -> String {
    cluster.members.get(&id).map_or_else(|| id.to_string(), |member| member.name.to_string())
}

fn role(view: &NodeView, id: NodeId, member: &Member, seen: Option<&NodeSeen>) -> &'static str {
    if member.witness {
        return "witness";
    }
    let opened = seen.is_some_and(|seen| seen.report.role == NodeRole::Primary);
    let named = view.cluster.primary().is_some_and(|entry| entry.node == id);
    if opened && named { "primary" } else { "standby" }
}

fn state(seen: Option<&NodeSeen>) -> &'static str {
    let Some(seen) = seen else { return "unreachable" };
    if seen.refused || seen.heard_ms_ago > UNREACHABLE_MS {
        return "unreachable";
    }
    let report = &seen.report;
    if report.stays_out.is_some() {
        return "stays_out";
    }
    match report.role {
        NodeRole::Primary | NodeRole::Witness => "running",
        NodeRole::Standby => match report.stream_state {
            StreamState::Streaming => "streaming",
            StreamState::Catchup => "catchup",
            StreamState::Startup if report.seal.is_some_and(|seal| seal.complete) => "sealed",
            StreamState::Startup => "startup",
        },
    }
}

fn sync_state(cluster: &ClusterState, id: NodeId, member: &Member, is_primary: bool) -> &'static str {
    if is_primary || member.witness {
        return "";
    }
    let names = StandbyNames::parse(&cluster.settings.synchronous_standby_names).ok();
    if cluster.sync.members.contains(&id) {
        return match names.map(|names| names.method()) {
            Some(SyncMethod::Any) => "quorum",
            Some(SyncMethod::First) | None => "sync",
        };
    }
    let named = names.is_some_and(|names| names.priority_of(&member.name).is_some());
    if named && !member.no_sync { "potential" } else { "async" }
}

fn member_status(view: &NodeView, id: NodeId, member: &Member, primary_end: Lsn) -> v1::MemberStatus {
    let seen = view.nodes.get(&id);
    let role = role(view, id, member, seen);
    let leader = view.leadership.leader == Some(id);
    let mut status = v1::MemberStatus {
        node_id: id.to_string(),
        name: member.name.to_string(),
        address: member.address.clone(),
        role: role.to_owned(),
        state: state(seen).to_owned(),
        sync_state: sync_state(&view.cluster, id, member, role == "primary").to_owned(),
        voter: member.voter,
        raft_role: match (leader, member.voter) {
            (true, _) => "leader",
            (false, true) => "follower",
            (false, false) => "learner",
        }
        .to_owned(),
        failover_priority: member.failover_priority,
        no_sync: member.no_sync,
        problem: seen.map_or_else(|| "never heard".to_owned(), |seen| seen.problem.clone().unwrap_or_default()),
        ..v1::MemberStatus::default()
    };
    if let Some(seen) = seen {
        let report = &seen.report;
        status.timeline = report.wal_end.timeline.get();
        status.write_lsn = report.wal_end.lsn.get();
        status.flush_lsn = report.flush_lsn.get();
        status.apply_lsn = report.apply_lsn.get();
        status.safe_lsn = report.safe_lsn.get();
        status.lag_bytes = primary_end.saturating_since(report.apply_lsn);
        status.damaged = report.damaged;
        status.heard_ms_ago = seen.heard_ms_ago;
        status.incarnation = report.incarnation.to_string();
        if let Some(why) = &report.stays_out {
            status.problem.clone_from(why);
        }
    }
    status
}

/// The words for why a write would not be taken: see [`not_writable`].
pub const NOT_WRITABLE: [&str; 5] = ["no_primary", "primary_unheard", "opening", "unconfirmed", "too_few_standbys"];

/// Why the primary would not take a write now, as far as this node knows, in one of the words of [`NOT_WRITABLE`] and for
/// people; none when it would.
pub fn not_writable(view: &NodeView, confirmed_here: bool) -> Option<(&'static str, String)> {
    let Some((id, name, _)) = view.primary() else { return Some(("no_primary", view.no_primary_reason())) };
    let Some(seen) = view.nodes.get(&id) else {
        return Some(("primary_unheard", format!("primary {name} was never heard by this node")));
    };
    if seen.heard_ms_ago > UNREACHABLE_MS {
        let ms = seen.heard_ms_ago;
        return Some(("primary_unheard", format!("primary {name} was last heard {ms} ms ago by this node")));
    }
    if seen.report.role != NodeRole::Primary || seen.report.timeline != view.cluster.timeline() {
        let timeline = view.cluster.timeline();
        return Some(("opening", format!("{name} was promoted and is opening timeline {timeline}")));
    }
    let confirmed = if id == view.me { confirmed_here } else { seen.report.confirmed };
    if !confirmed {
        return Some(("unconfirmed", format!("no majority of the voters confirms primary {name}")));
    }
    let sync = &view.cluster.sync;
    if sync.members.len() < usize::try_from(sync.acks).unwrap_or(usize::MAX) {
        let text = format!("{} sync standbys are required, {} are there", sync.acks, sync.members.len());
        return Some(("too_few_standbys", text));
    }
    None
}

fn status(view: &NodeView, confirmed_here: bool) -> v1::StatusResponse {
    let cluster = &view.cluster;
    let bootstrapped = cluster.generation.get() > 0;
    let primary = view.primary();
    let primary_end =
        primary.and_then(|(id, _, _)| view.nodes.get(&id)).map_or(Lsn::INVALID, |seen| seen.report.wal_end.lsn);
    let reason = not_writable(view, confirmed_here).map_or_else(String::new, |(_, text)| text);
    v1::StatusResponse {
        system_id: if bootstrapped { cluster.system_id.to_string() } else { String::new() },
        generation: cluster.generation.get(),
        timeline: cluster.timeline().get(),
        primary: primary.map_or_else(String::new, |(_, name, _)| name.to_owned()),
        primary_address: primary.map_or_else(String::new, |(_, _, address)| address.to_owned()),
        writable: reason.is_empty(),
        not_writable_reason: reason,
        election: cluster.election.as_ref().map(|election| v1::ElectionStatus {
            timeline: election.timeline.get(),
            reason: election.reason.clone(),
            blocked: view.blocked.clone().unwrap_or_default(),
        }),
        sync: Some(v1::SyncStatus {
            mode: cluster.settings.sync_mode.to_string(),
            synchronous_standby_names: cluster.settings.synchronous_standby_names.clone(),
            members: cluster.sync.members.iter().map(|id| name_of(cluster, *id)).collect(),
            acks: cluster.sync.acks,
        }),
        raft: Some(v1::RaftStatus {
            leader: view.leadership.leader.map_or_else(String::new, |id| name_of(cluster, id)),
            term: view.leadership.term,
            last_applied_index: view.leadership.last_applied,
        }),
        members: cluster.members.iter().map(|(id, member)| member_status(view, *id, member, primary_end)).collect(),
        answered_by: name_of(cluster, view.me),
    }
}

fn history(cluster: &ClusterState) -> v1::HistoryResponse {
    let entries = cluster
        .history
        .iter()
        .map(|entry| v1::TimelineEntry {
            timeline: entry.switch.timeline.get(),
            parent: entry.switch.parent.get(),
            switch_lsn: entry.switch.switch_lsn.get(),
            safe_lsn: entry.safe_lsn.get(),
            node: name_of(cluster, entry.node),
            node_id: entry.node.to_string(),
            reason: entry.reason.clone(),
            time_ms: entry.time_ms,
        })
        .collect();
    v1::HistoryResponse { entries }
}

#[tonic::async_trait]
impl v1::cluster_server::Cluster for ClusterService {
    async fn status(&self, _request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        let confirmed_here = self.confirmer.is_confirmed();
        Ok(Response::new(status(&self.view.borrow(), confirmed_here)))
    }

    async fn history(&self, _request: Request<v1::HistoryRequest>) -> Result<Response<v1::HistoryResponse>, Status> {
        Ok(Response::new(history(&self.view.borrow().cluster)))
    }
}
