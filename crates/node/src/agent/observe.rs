//! What the agent knows, in the words of the core, of the beats and of the services.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use understudy_core::observation::{NodeReport, NodeRole, Observations, Observed, Seal, StreamState};
use understudy_core::reconcile::NodeState;
use understudy_types::TimelineId;

use super::Agent;
use super::seeding::Seeding;
use super::table::differ_urgently;
use crate::freshness::boot_ms;
use crate::mesh::BEAT_INTERVAL;
use crate::view::{NodeSeen, NodeView};

impl Agent {
    /// For [`understudy_core::reconcile`].
    pub(super) fn node_state(&self) -> NodeState {
        NodeState {
            me: self.me.node_id,
            incarnation: self.incarnation(),
            role: self.role(),
            opened: self.opened,
            sealed: self.promises.sealed,
            seal_complete: self.seal_complete,
            wal_end: self.engine.wal().end(),
            applied: self.engine.visible().borrow().lsn,
            following: self.follower.as_ref().map(|follower| follower.following),
            damaged: self.promises.damaged,
            damage_epoch: self.promises.damage_epoch,
            fetch_order: self.fetch_order,
            failed_to_open: self.failed_to_open,
            wal_gone: self.wal_gone,
            stays_out: self.stays_out.clone(),
        }
    }

    fn role(&self) -> NodeRole {
        if self.primary.is_some() { NodeRole::Primary } else { NodeRole::Standby }
    }

    pub(super) fn primary_timeout(&self) -> Duration {
        Duration::from_millis(self.cluster.settings.primary_timeout_ms)
    }

    /// A beat or WAL from the present primary; since the promotion or the process start if there was none.
    fn primary_heard_ago(&self, now: Instant) -> Duration {
        let since_phase = now.saturating_duration_since(self.phase_since);
        let Some(entry) = self.cluster.primary() else { return since_phase };
        if entry.node == self.me.node_id {
            return if self.primary.is_some() { Duration::ZERO } else { since_phase };
        }
        let beat = self.table.heard(entry.node, now);
        let wal = self
            .follower
            .as_ref()
            .filter(|follower| follower.following.primary == entry.node)
            .and_then(|follower| follower.status.borrow().last_received)
            .map(|at| now.saturating_duration_since(at));
        [beat, wal].into_iter().flatten().fold(since_phase, Duration::min)
    }

    pub(super) fn stream_state(&self) -> StreamState {
        self.follower.as_ref().map_or(StreamState::Startup, |follower| match follower.status.borrow().state {
            understudy_replication::StreamState::Startup | understudy_replication::StreamState::Stopping => {
                StreamState::Startup
            }
            understudy_replication::StreamState::Catchup => StreamState::Catchup,
            understudy_replication::StreamState::Streaming => StreamState::Streaming,
        })
    }

    /// What this node says of itself.
    pub(super) fn report(&self, now: Instant) -> NodeReport {
        let primary_node = self.cluster.primary().map(|entry| entry.node);
        let timeline = match (&self.primary, &self.follower) {
            (Some(primary), _) => primary.timeline,
            (None, Some(follower)) => follower.following.timeline,
            (None, None) => TimelineId::NONE,
        };
        let sealed = self.promises.sealed;
        let lost = self.table.lost(self.primary_timeout(), now);
        NodeReport {
            incarnation: self.incarnation(),
            role: self.role(),
            timeline,
            wal_end: self.engine.wal().end(),
            flush_lsn: *self.engine.wal().flushed().borrow(),
            apply_lsn: self.engine.visible().borrow().lsn,
            safe_lsn: *self.engine.safe().borrow(),
            seal: (sealed > TimelineId::NONE).then_some(Seal { timeline: sealed, complete: self.seal_complete }),
            damaged: self.promises.damaged,
            damage_epoch: self.promises.damage_epoch,
            primary_heard_ms_ago: u64::try_from(self.primary_heard_ago(now).as_millis()).unwrap_or(u64::MAX),
            primary_refused: primary_node.is_some_and(|node| lost.contains(&node)),
            confirmed: self.primary.as_ref().is_none_or(|primary| primary.is_confirmed(self.primary_timeout(), now)),
            raft_leader: self.leadership.leader,
            failed_to_open: self.failed_to_open,
            could_not_fetch: self.could_not_fetch,
            stays_out: self.stays_out.clone(),
            stream_state: self.stream_state(),
            seeding_from: self.seeding_from(),
            seed: self.seeding.as_ref().map(Seeding::progress),
            generation: self.cluster.generation,
            hears: self.table.hears(self.primary_timeout(), now),
            lost,
            lease_left_ms: self.standing.borrow().grants.left_ms(boot_ms()),
            no_sync: self.no_sync,
        }
    }

    /// For [`understudy_core::plan`].
    pub(super) fn observations(&self, leader_since: Instant) -> Observations {
        let now = Instant::now();
        let mut nodes = self.table.observed(|at| self.ms_of(at));
        let own = Observed { heard_at_ms: self.ms_of(now), connected: true, refused: false, report: self.report(now) };
        nodes.insert(self.me.node_id, own);
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Observations {
            me: self.me.node_id,
            leader_since_ms: self.ms_of(leader_since),
            phase_since_ms: self.ms_of(self.phase_since),
            unix_time_ms: i64::try_from(unix.as_millis()).unwrap_or(i64::MAX),
            nodes,
        }
    }

    /// Tells the other nodes and the services how things stand: with every beat, and at once when others wait for it.
    pub(super) async fn say(&mut self) {
        let now = Instant::now();
        let report = self.report(now);
        let urgent = self.said.as_ref().is_none_or(|said| differ_urgently(said, &report));
        if !urgent && now.saturating_duration_since(self.said_at) < BEAT_INTERVAL {
            return;
        }
        let report = Arc::new(report);
        let fetch_order = self.leading.order;
        self.outgoing.send_modify(|outgoing| {
            outgoing.report = Some(Arc::clone(&report));
            outgoing.report_seq += 1;
            outgoing.fetch_order = fetch_order;
            // What others wait for does not wait for the next round.
            if urgent {
                outgoing.round += 1;
            }
        });
        self.said = Some(Arc::clone(&report));
        self.said_at = now;
        self.publish_view(now, report);
        let health = (true, self.primary.is_some() && self.confirmer.is_confirmed());
        if self.was_writable != Some(health) {
            self.was_writable = Some(health);
            self.health.roles(health.0, health.1).await;
        }
    }

    fn publish_view(&self, now: Instant, report: Arc<NodeReport>) {
        let mut nodes = self.table.seen(now);
        nodes.insert(self.me.node_id, NodeSeen { heard_ms_ago: 0, refused: false, report, problem: None });
        self.view.send_replace(NodeView {
            me: self.me.node_id,
            cluster: Arc::clone(&self.cluster),
            leadership: self.leadership.clone(),
            engine: Some(self.engine.clone()),
            primary_of: self.primary.as_ref().map(|primary| primary.timeline),
            nodes,
            blocked: self.leading.blocked.clone(),
            waiting_for: None,
        });
    }
}
