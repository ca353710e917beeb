//! One node of the simulation: what its disk holds, what its process knows, and what it does when `reconcile` says so.

use std::collections::{BTreeMap, BTreeSet};

use understudy_core::confirm::Confirmation;
use understudy_core::lease::Grants;
use understudy_core::observation::{FetchOrder, NodeReport, NodeRole, Observations, Observed, Seal, StreamState};
use understudy_core::reconcile::{Following, NodeState};
use understudy_core::state::{ClusterState, SyncList};
use understudy_types::{Generation, Incarnation, Lsn, NodeId, Position, TimelineId};

/// Where the log begins.
const BASE: u64 = 1 << 20;
/// A node counts as heard for so long, in milliseconds.
pub const TIMEOUT_MS: u64 = 1000;

pub fn lsn(length: usize) -> Lsn {
    Lsn::new(BASE + length as u64)
}

pub fn length(lsn: Lsn) -> usize {
    usize::try_from(lsn.get() - BASE).expect("within the log")
}

/// A byte of WAL that tells who wrote it, so that no two writes look alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Byte {
    pub timeline: TimelineId,
    pub writer: Incarnation,
    pub serial: u64,
}

/// What a standby told its primary.
#[derive(Debug, Clone, Copy)]
pub struct Ack {
    pub flushed: usize,
    pub epoch: u64,
    pub incarnation: Incarnation,
}

/// A linearizable read that waits for its round.
#[derive(Debug, Clone, Copy)]
pub struct Read {
    pub round: u64,
    /// What the primary would answer by.
    pub visible: usize,
    /// How much was acknowledged, by anybody, when it began.
    pub acknowledged: usize,
}

/// An open primary.
pub struct Primary {
    pub timeline: TimelineId,
    /// The safe LSN as it was published; everything below is acknowledged.
    pub published: usize,
    /// The list that Raft has, as far as this node knows.
    pub rule: SyncList,
    /// The list that it wants, and what its proposal was planned against once it was made.
    pub wanted: Option<(SyncList, Option<Generation>)>,
    /// By standby, over its present connection.
    pub acks: BTreeMap<NodeId, Ack>,
    pub confirmation: Confirmation,
    pub round: u64,
    pub reads: Vec<Read>,
}

pub struct Node {
    pub id: NodeId,
    pub witness: bool,
    pub up: bool,
    pub incarnation: Incarnation,
    // On disk.
    /// Written; what lies beyond `flushed` may be lost in a crash.
    pub wal: Vec<Byte>,
    pub flushed: usize,
    pub applied: usize,
    pub sealed: TimelineId,
    pub damaged: bool,
    pub damage_epoch: u64,
    pub promised_lease_ms: u64,
    /// Of its boot-time clock, for leases: how fast it runs, in thousandths of the world's.
    pub clock_permille: u64,
    // In the process.
    pub grants: Grants,
    /// How much of the Raft log it has applied.
    pub raft_applied: usize,
    pub state: ClusterState,
    pub seal_complete: bool,
    /// It cheats.
    pub says_all_is_flushed: bool,
    pub opened: Option<TimelineId>,
    pub primary: Option<Primary>,
    pub following: Option<Following>,
    /// The process of the primary that its stream is connected to.
    pub upstream: Option<Incarnation>,
    pub fetch_order: Option<FetchOrder>,
    pub failed_to_open: Option<TimelineId>,
    pub stays_out: Option<String>,
    pub safe: usize,
    pub heard: BTreeMap<NodeId, Observed>,
    pub primary_heard_at_ms: u64,
    pub phase_since_ms: u64,
}

impl Node {
    pub fn new(id: NodeId, witness: bool) -> Self {
        Self {
            id,
            witness,
            up: true,
            incarnation: Incarnation::default(),
            wal: Vec::new(),
            flushed: 0,
            applied: 0,
            sealed: TimelineId::NONE,
            damaged: false,
            damage_epoch: 0,
            promised_lease_ms: 0,
            clock_permille: 1_000,
            grants: Grants::default(),
            raft_applied: 0,
            state: ClusterState::default(),
            seal_complete: false,
            says_all_is_flushed: false,
            opened: None,
            primary: None,
            following: None,
            upstream: None,
            fetch_order: None,
            failed_to_open: None,
            stays_out: None,
            safe: 0,
            heard: BTreeMap::new(),
            primary_heard_at_ms: 0,
            phase_since_ms: 0,
        }
    }

    /// What only the process knew is gone.
    pub fn crash(&mut self) {
        let disk = Node::new(self.id, self.witness);
        let disk = Node {
            up: false,
            incarnation: self.incarnation,
            wal: std::mem::take(&mut self.wal),
            flushed: self.flushed,
            applied: self.applied,
            sealed: self.sealed,
            damaged: self.damaged,
            damage_epoch: self.damage_epoch,
            promised_lease_ms: self.promised_lease_ms,
            clock_permille: self.clock_permille,
            raft_applied: self.raft_applied,
            ..disk
        };
        *self = disk;
    }

    pub fn end(&self) -> Position {
        let timeline = self.wal.last().map_or(TimelineId::NONE, |byte| byte.timeline);
        Position::new(timeline, lsn(self.wal.len()))
    }

    pub fn role(&self) -> NodeRole {
        match &self.primary {
            Some(_) => NodeRole::Primary,
            None if self.witness => NodeRole::Witness,
            None => NodeRole::Standby,
        }
    }

    /// For `reconcile`.
    pub fn as_it_is(&self) -> NodeState {
        NodeState {
            me: self.id,
            incarnation: self.incarnation,
            role: self.role(),
            opened: self.opened,
            sealed: self.sealed,
            seal_complete: self.seal_complete,
            wal_end: self.end(),
            applied: lsn(self.applied),
            following: self.following,
            damaged: self.damaged,
            damage_epoch: self.damage_epoch,
            fetch_order: self.fetch_order,
            failed_to_open: self.failed_to_open,
            wal_gone: false,
            stays_out: self.stays_out.clone(),
        }
    }

    /// For its beats.
    pub fn report(&self, now_ms: u64) -> NodeReport {
        let timeline = match (&self.primary, self.following) {
            (Some(primary), _) => primary.timeline,
            (None, following) => following.map_or(TimelineId::NONE, |following| following.timeline),
        };
        let hears = |(node, seen): (&NodeId, &Observed)| (now_ms - seen.heard_at_ms <= TIMEOUT_MS).then_some(*node);
        let sealed = self.sealed > TimelineId::NONE;
        let confirmed = self.primary.as_ref().is_none_or(|p| p.confirmation.is_confirmed(now_ms, TIMEOUT_MS));
        NodeReport {
            incarnation: self.incarnation,
            role: self.role(),
            timeline,
            wal_end: if self.witness { Position::default() } else { self.end() },
            flush_lsn: lsn(if self.says_all_is_flushed { self.wal.len() } else { self.flushed }),
            apply_lsn: lsn(self.applied),
            safe_lsn: lsn(self.safe),
            seal: sealed.then_some(Seal { timeline: self.sealed, complete: self.seal_complete }),
            damaged: self.damaged,
            damage_epoch: self.damage_epoch,
            primary_heard_ms_ago: if self.primary.is_some() { 0 } else { now_ms - self.primary_heard_at_ms },
            primary_refused: false,
            confirmed,
            raft_leader: None,
            could_not_fetch: None,
            failed_to_open: self.failed_to_open,
            stays_out: self.stays_out.clone(),
            stream_state: StreamState::Streaming,
            seeding_from: None,
            seed: None,
            generation: self.state.generation,
            hears: self.heard.iter().filter_map(hears).collect(),
            lost: BTreeSet::new(),
            lease_left_ms: self.grants.left_ms(self.clock_ms(now_ms)),
            no_sync: false,
        }
    }

    /// What its boot-time clock shows: it began at another moment than the others', and runs at another rate.
    pub fn clock_ms(&self, now_ms: u64) -> u64 {
        self.id.get() * 1_000_000 + now_ms * self.clock_permille / 1_000
    }

    /// Writes down how long a lease it may grant, if that has changed.
    pub fn promise_lease(&mut self, now_ms: u64) {
        if let Some(lease_ms) = self.grants.to_promise(self.clock_ms(now_ms)) {
            self.promised_lease_ms = lease_ms;
            self.grants.promised(lease_ms);
        }
    }

    /// For `plan`.
    pub fn observations(&self, now_ms: u64) -> Observations {
        let mut nodes = self.heard.clone();
        let myself = Observed { heard_at_ms: now_ms, connected: true, refused: false, report: self.report(now_ms) };
        nodes.insert(self.id, myself);
        let (leader_since_ms, phase_since_ms) = (0, self.phase_since_ms);
        Observations { me: self.id, leader_since_ms, phase_since_ms, unix_time_ms: 0, nodes }
    }

    /// Takes over a later state, as the Raft state machine does.
    pub fn learn(&mut self, raft_applied: usize, state: &ClusterState, now_ms: u64) {
        let phase = |state: &ClusterState| (state.timeline(), state.fence());
        if phase(&self.state) != phase(state) {
            self.phase_since_ms = now_ms;
        }
        if self.state.timeline() != state.timeline() {
            self.primary_heard_at_ms = now_ms;
        }
        self.raft_applied = raft_applied;
        self.state = state.clone();
        self.grants.want(state.settings.wanted_lease_ms());
        let Some(primary) = &mut self.primary else { return };
        if state.settings.wanted_lease_ms() == 0 {
            primary.confirmation.forget_grants();
        }
        // What became of the proposal is known once the generation has passed the one that it was planned against.
        let decided = |planned: &Option<Generation>| planned.is_some_and(|planned| planned < state.generation);
        if primary.timeline == state.timeline() && primary.wanted.as_ref().is_none_or(|(_, planned)| decided(planned)) {
            primary.rule = state.sync.clone();
            primary.wanted = None;
        }
    }

    /// The seal: nothing is received, written or confirmed any more, and everything written is flushed.
    pub fn seal(&mut self, timeline: TimelineId) {
        self.sealed = timeline.max(self.sealed);
        self.following = None;
        self.upstream = None;
        self.primary = None;
        self.flushed = self.wal.len();
        self.seal_complete = true;
    }

    pub fn apply_safe(&mut self) {
        self.applied = self.applied.max(self.safe.min(self.flushed));
    }
}

impl Primary {
    /// How far `list` alone lets it acknowledge, given what this node itself has flushed.
    fn yields(&self, list: &SyncList, flushed: usize) -> usize {
        if list.acks == 0 {
            return flushed;
        }
        let acked = |node: &NodeId| self.acks.get(node).map_or(0, |ack| ack.flushed);
        let mut acks: Vec<usize> = list.members.iter().map(acked).collect();
        acks.sort_unstable_by(|a, b| b.cmp(a));
        acks.get(list.acks as usize - 1).copied().unwrap_or(0).min(flushed)
    }

    /// Publishes what both rules allow.
    pub fn publish(&mut self, flushed: usize, forgets_the_old_rule: bool) {
        let mut allowed = self.yields(&self.rule, flushed);
        if let Some((wanted, planned)) = &self.wanted {
            let by_wanted = self.yields(wanted, flushed);
            allowed = if forgets_the_old_rule && planned.is_some() { by_wanted } else { allowed.min(by_wanted) };
        }
        self.published = self.published.max(allowed);
    }

    /// Whether the wanted list would be true by itself. One that is shorter than its acknowledgements needs everybody.
    pub fn wanted_holds(&self, flushed: usize) -> bool {
        self.wanted.as_ref().is_some_and(|(wanted, _)| {
            let acks = wanted.acks.min(u32::try_from(wanted.members.len()).expect("few"));
            self.yields(&SyncList { acks, ..wanted.clone() }, flushed) >= self.published
        })
    }
}
