//! Scenarios for the tests: a small cluster in the middle of an election, and the decision as one line of text.

use std::collections::{BTreeMap, BTreeSet};

use understudy_types::{
    Generation, Incarnation, Lsn, NodeId, Position, SegmentSize, SyncMode, SystemId, TimelineId, TimelineSwitch,
};

use super::{Decision, NotWinner, Reports, decide};
use crate::observation::{NodeReport, NodeRole, Seal, StreamState};
use crate::state::{ClusterState, Election, HistoryEntry, Member, Settings, SyncList};

/// Where the tests' first timeline begins.
pub const BEGIN: u64 = 100;

pub fn id(number: u64) -> NodeId {
    NodeId::new(number)
}

pub fn ids(numbers: &[u64]) -> BTreeSet<NodeId> {
    numbers.iter().copied().map(NodeId::new).collect()
}

pub fn member(number: u64) -> Member {
    Member {
        name: format!("n{number}").parse().expect("a name"),
        address: format!("10.0.0.{number}:7000"),
        voter: true,
        witness: false,
        failover_priority: 100,
        no_sync: false,
    }
}

pub fn entry(timeline: u32, node: u64, switch_lsn: u64) -> HistoryEntry {
    let parent = TimelineId::new(timeline - 1);
    HistoryEntry {
        switch: TimelineSwitch { timeline: TimelineId::new(timeline), parent, switch_lsn: Lsn::new(switch_lsn) },
        safe_lsn: Lsn::new(switch_lsn),
        node: id(node),
        incarnation: Incarnation::new(node * 10),
        reason: "a test".to_owned(),
        time_ms: 0,
    }
}

/// A bootstrapped cluster of n1 to n`nodes`, without a timeline.
pub fn new_cluster(nodes: u64) -> ClusterState {
    ClusterState {
        system_id: SystemId::new(7),
        generation: Generation::new(1),
        members: (1..=nodes).map(|number| (id(number), member(number))).collect(),
        segment_size: Some(SegmentSize::DEFAULT),
        settings: Settings::default(),
        ..ClusterState::default()
    }
}

/// A standby without faults, not sealed, whose WAL ends at `lsn` on `timeline`.
pub fn report(number: u64, timeline: u32, lsn: u64) -> NodeReport {
    NodeReport {
        incarnation: Incarnation::new(number * 10),
        role: NodeRole::Standby,
        timeline: TimelineId::NONE,
        wal_end: Position::new(TimelineId::new(timeline), Lsn::new(lsn)),
        flush_lsn: Lsn::new(lsn),
        apply_lsn: Lsn::new(BEGIN),
        safe_lsn: Lsn::new(BEGIN),
        seal: None,
        damaged: false,
        damage_epoch: 0,
        primary_heard_ms_ago: 0,
        primary_refused: false,
        confirmed: true,
        raft_leader: None,
        failed_to_open: None,
        could_not_fetch: None,
        stays_out: None,
        seeding_from: None,
        seed: None,
        stream_state: StreamState::Streaming,
        generation: Generation::new(1),
        hears: (1..=9).filter(|other| *other != number).map(id).collect(),
        lost: BTreeSet::new(),
        lease_left_ms: 0,
        no_sync: false,
    }
}

/// An election and what was heard in it.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub state: ClusterState,
    pub reports: BTreeMap<NodeId, NodeReport>,
    pub primary_end: Option<Lsn>,
    pub leader: NodeId,
}

impl Scenario {
    /// n1 to n`nodes`. n1 was the primary of timeline 1, which began at 100; timeline 2 is being decided. All others
    /// are on the sync list with one acknowledgement; n`nodes` is the Raft leader. Nobody was heard yet.
    pub fn new(nodes: u64) -> Self {
        let mut state = new_cluster(nodes);
        state.history.push(entry(1, 1, BEGIN));
        state.election = Some(Election { timeline: TimelineId::new(2), reason: "a test".to_owned() });
        let others: Vec<u64> = (2..=nodes).collect();
        state.sync = SyncList { mode: SyncMode::Preferred, members: ids(&others), acks: 1 };
        Self { state, reports: BTreeMap::new(), primary_end: None, leader: id(nodes) }
    }

    pub fn list(mut self, members: &[u64], acks: u32) -> Self {
        self.state.sync = SyncList { members: ids(members), acks, ..self.state.sync };
        self
    }

    pub fn mode(mut self, mode: SyncMode) -> Self {
        self.state.sync.mode = mode;
        self.state.settings.sync_mode = mode;
        self
    }

    pub fn names(mut self, setting: &str) -> Self {
        self.state.settings.synchronous_standby_names = setting.to_owned();
        self
    }

    pub fn member(mut self, number: u64, change: impl FnOnce(&mut Member)) -> Self {
        change(self.state.members.get_mut(&id(number)).expect("a member"));
        self
    }

    /// The node sealed for the election; its WAL ends at `lsn` on timeline 1.
    pub fn sealed(self, number: u64, lsn: u64) -> Self {
        self.sealed_on(number, 1, lsn)
    }

    pub fn sealed_on(mut self, number: u64, timeline: u32, lsn: u64) -> Self {
        let seal = Some(Seal { timeline: self.state.fence(), complete: true });
        self.reports.insert(id(number), NodeReport { seal, ..report(number, timeline, lsn) });
        self
    }

    /// Of a node that was heard already.
    pub fn report(mut self, number: u64, change: impl FnOnce(&mut NodeReport)) -> Self {
        change(self.reports.get_mut(&id(number)).expect("heard"));
        self
    }

    pub fn leader(mut self, number: u64) -> Self {
        self.leader = id(number);
        self
    }

    pub fn reports(&self) -> Reports<'_> {
        self.reports.iter().map(|(node, report)| (*node, report)).collect()
    }

    /// `n2 opens 2 at 500, safe 400, sync 1 of n3`, `n2 fetches from n3 up to 500`, or what is missing.
    pub fn decide(&self) -> String {
        match decide(&self.state, &self.reports(), self.primary_end, self.leader) {
            Ok(Decision::Promote(p)) => {
                let name = self.state.name_of(p.node);
                let (at, safe) = (p.switch_lsn.get(), p.safe_lsn.get());
                let members: Vec<String> = p.sync.members.iter().map(|node| self.state.name_of(*node)).collect();
                let list = format!("sync {} of {}", p.sync.acks, members.join(" "));
                format!("{name} opens {} at {at}, safe {safe}, {}", self.state.fence(), list.trim_end())
            }
            Ok(Decision::Fetch { order, .. }) => {
                let (winner, source) = (self.state.name_of(order.winner), self.state.name_of(order.source));
                format!("{winner} fetches from {source} up to {}", order.until.get())
            }
            Err(blocked) => blocked.to_string(),
        }
    }

    /// Why the node is not the winner.
    pub fn rejected(&self, number: u64) -> Option<NotWinner> {
        let ranking = match decide(&self.state, &self.reports(), self.primary_end, self.leader).ok()? {
            Decision::Promote(promotion) => promotion.ranking,
            Decision::Fetch { ranking, .. } => ranking,
        };
        ranking.rejected.into_iter().find(|(node, _)| *node == id(number)).map(|(_, why)| why)
    }
}
