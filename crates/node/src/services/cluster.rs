//! The `Cluster` service: what this node knows of the cluster, and every timeline there was. What the primary alone can
//! tell, of its standbys and of who waits for them, stands in `replication` and `waiting`.

use std::sync::Arc;

use tokio::sync::watch;
use tonic::{Request, Response, Status};
use understudy_control::Control;
use understudy_core::observation::{NodeRole, StreamState};
use understudy_core::state::{ClusterState, Member};
use understudy_core::sync::{StandbyNames, SyncMethod, nobody_can_acknowledge};
use understudy_engine::Engine;
use understudy_rpc::error::RpcError;
use understudy_rpc::v1;
use understudy_types::{Lsn, NodeId};

use super::settings::SettingsShell;
use super::{members, replication, waiting};
use crate::confirmer::Confirmer;
use crate::sync_list::SyncListTask;
use crate::upstream::Upstream;
use crate::view::{NodeSeen, NodeView};

/// A node that was not heard for this long is shown as unreachable, in milliseconds.
const UNREACHABLE_MS: u64 = 1_000;

/// The `Cluster` service of one node.
pub struct ClusterService {
    view: watch::Receiver<NodeView>,
    confirmer: Confirmer,
    upstream: Arc<Upstream>,
    changes: Changes,
}

/// What changes go through.
pub struct Changes {
    /// To Raft.
    pub control: Control,
    /// Of settings.
    pub settings: SettingsShell,
}

impl ClusterService {
    /// Over what the agent publishes.
    pub fn new(
        view: watch::Receiver<NodeView>,
        confirmer: Confirmer,
        upstream: Arc<Upstream>,
        changes: Changes,
    ) -> Self {
        Self { view, confirmer, upstream, changes }
    }

    /// This node as the primary, with the sync list of its timeline, or why it is not to be asked.
    fn primary(&self, asked: &str) -> Result<Primary, RpcError> {
        let view = self.view.borrow().clone();
        Primary::of(&view, &self.upstream).ok_or_else(|| view.refusal(asked))
    }
}

/// The primary, at the moment of a question.
pub(super) struct Primary {
    pub view: NodeView,
    pub engine: Engine,
    pub sync: SyncListTask,
}

impl Primary {
    /// None when this node is not the primary.
    pub fn of(view: &NodeView, upstream: &Upstream) -> Option<Primary> {
        let engine = view.engine.clone().filter(|engine| engine.is_primary().is_some())?;
        Some(Primary { view: view.clone(), engine, sync: upstream.sync()? })
    }

    pub fn name_of(&self, id: NodeId) -> String {
        name_of(&self.view.cluster, id)
    }
}

pub(super) fn sync_status(cluster: &ClusterState) -> v1::SyncStatus {
    v1::SyncStatus {
        mode: cluster.settings.sync_mode.to_string(),
        synchronous_standby_names: cluster.settings.synchronous_standby_names.clone(),
        members: cluster.sync.members.iter().map(|id| name_of(cluster, *id)).collect(),
        acks: cluster.sync.acks,
    }
}

pub(super) fn name_of(cluster: &ClusterState, id: NodeId) -> String {
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
    if report.seed.is_some() {
        return "seeding";
    }
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

/// All that [`MemberWords::state`] may be.
pub const MEMBER_STATES: [&str; 8] =
    ["running", "streaming", "catchup", "startup", "sealed", "seeding", "stays_out", "unreachable"];
/// All that [`MemberWords::sync_state`] may be, but for the primary's.
pub const SYNC_STATES: [&str; 4] = ["sync", "quorum", "potential", "async"];

/// A member in words, as `status` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberWords {
    /// primary, standby or witness.
    pub role: &'static str,
    /// One of [`MEMBER_STATES`].
    pub state: &'static str,
    /// One of [`SYNC_STATES`]; empty for the primary and for a witness.
    pub sync_state: &'static str,
}

/// How this node sees a member.
pub fn member_words(view: &NodeView, id: NodeId, member: &Member) -> MemberWords {
    let seen = view.nodes.get(&id);
    let role = role(view, id, member, seen);
    MemberWords { role, state: state(seen), sync_state: sync_state(&view.cluster, id, member, role == "primary") }
}

fn member_status(view: &NodeView, id: NodeId, member: &Member, primary_end: Lsn) -> v1::MemberStatus {
    let seen = view.nodes.get(&id);
    let words = member_words(view, id, member);
    let leader = view.leadership.leader == Some(id);
    let mut status = v1::MemberStatus {
        node_id: id.to_string(),
        name: member.name.to_string(),
        address: member.address.clone(),
        role: words.role.to_owned(),
        state: words.state.to_owned(),
        sync_state: words.sync_state.to_owned(),
        voter: member.voter,
        raft_role: match (leader, member.voter) {
            (true, _) => "leader",
            (false, true) => "follower",
            (false, false) => "learner",
        }
        .to_owned(),
        failover_priority: member.failover_priority,
        no_sync: member.no_sync,
        joining: view.cluster.joining == Some(id),
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
        if let Some(seed) = &report.seed {
            status.seed_source = seed.source.map_or_else(String::new, |source| name_of(&view.cluster, source));
            status.seed_bytes_total = seed.bytes_total;
            status.seed_bytes_done = seed.bytes_done;
            status.seed_bytes_reused = seed.bytes_reused;
            status.seed_reason = report.stays_out.clone().unwrap_or_default();
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
        sync: Some(sync_status(cluster)),
        raft: Some(v1::RaftStatus {
            leader: view.leadership.leader.map_or_else(String::new, |id| name_of(cluster, id)),
            term: view.leadership.term,
            last_applied_index: view.leadership.last_applied,
        }),
        members: cluster.members.iter().map(|(id, member)| member_status(view, *id, member, primary_end)).collect(),
        answered_by: name_of(cluster, view.me),
        // The primary alone knows.
        waiting_commits: 0,
        oldest_waiting_ms: 0,
        waiting_for: String::new(),
        sync_problem: nobody_can_acknowledge(cluster).map_or_else(String::new, |unsatisfied| unsatisfied.to_string()),
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
            node: cluster.name_of(entry.node),
            node_id: entry.node.to_string(),
            reason: entry.reason.clone(),
            time_ms: entry.time_ms,
            outage_ms: cluster.outages_ms.get(&entry.switch.timeline).copied(),
        })
        .collect();
    v1::HistoryResponse { entries }
}

#[tonic::async_trait]
impl v1::cluster_server::Cluster for ClusterService {
    async fn status(&self, _request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        let confirmed_here = self.confirmer.is_confirmed();
        let mut status = status(&self.view.borrow(), confirmed_here);
        if let Ok(primary) = self.primary("who waits") {
            let waiting = waiting::waiting(&primary, 1);
            status.waiting_commits = waiting.total;
            status.oldest_waiting_ms = waiting.oldest_ms;
            status.waiting_for = waiting.commits.into_iter().next().map_or_else(String::new, |commit| commit.why);
        }
        Ok(Response::new(status))
    }

    async fn history(&self, _request: Request<v1::HistoryRequest>) -> Result<Response<v1::HistoryResponse>, Status> {
        Ok(Response::new(history(&self.view.borrow().cluster)))
    }

    async fn replace_member(
        &self,
        request: Request<v1::ReplaceMemberRequest>,
    ) -> Result<Response<v1::ReplaceMemberResponse>, Status> {
        let answer = members::replace(&self.view, &self.changes.control, request.into_inner()).await?;
        Ok(Response::new(answer))
    }

    async fn replication(
        &self,
        _request: Request<v1::ReplicationRequest>,
    ) -> Result<Response<v1::ReplicationResponse>, Status> {
        Ok(Response::new(replication::replication(&self.primary("the state of replication")?)))
    }

    async fn waiting(&self, request: Request<v1::WaitingRequest>) -> Result<Response<v1::WaitingResponse>, Status> {
        let limit = usize::try_from(request.into_inner().limit).ok().filter(|limit| *limit > 0);
        let primary = self.primary("the list of waiting commits")?;
        Ok(Response::new(waiting::waiting(&primary, limit.unwrap_or(usize::MAX))))
    }

    async fn cancel_waiting(
        &self,
        request: Request<v1::CancelWaitingRequest>,
    ) -> Result<Response<v1::CancelWaitingResponse>, Status> {
        let which = waiting::which(&request.into_inner())?;
        let primary = self.primary("ending the waits of commits")?;
        let cancelled = primary.engine.cancel_waiting(which);
        tracing::info!(?which, cancelled, "an administrator ended waits: these commits are unknown to their clients");
        Ok(Response::new(v1::CancelWaitingResponse { cancelled }))
    }

    async fn show_settings(
        &self,
        request: Request<v1::ShowSettingsRequest>,
    ) -> Result<Response<v1::ShowSettingsResponse>, Status> {
        Ok(Response::new(self.changes.settings.show(&request.into_inner().name).await?))
    }

    async fn set_settings(
        &self,
        request: Request<v1::SetSettingsRequest>,
    ) -> Result<Response<v1::SetSettingsResponse>, Status> {
        Ok(Response::new(self.changes.settings.set(request.into_inner()).await?))
    }
}
