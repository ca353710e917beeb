//! Random events with an adversarial Raft: proposals are lost, repeated, carried out late or without the primary's
//! knowing; acknowledgements and reports come late; nodes lose their WAL. The invariants are checked after each event.

use std::collections::BTreeMap;

use proptest::prelude::*;
use understudy_types::{Generation, Incarnation, Lsn, NodeId, SyncMode, TimelineId, TimelineSwitch};

use super::{Ack, ConnectionId, Report, SyncManager, WalSenderState};
use crate::command::{Command, Outcome, apply};
use crate::state::{ClusterState, HistoryEntry, Member, Settings, SyncList};

const ME: NodeId = NodeId::new(1);
const TIMELINE: TimelineId = TimelineId::FIRST;
const F: Lsn = Lsn::new(10);
const SETTINGS: [&str; 8] =
    ["ANY 1 (*)", "ANY 2 (*)", "FIRST 1 (*)", "FIRST 2 (b, c, d)", "c, b", "", "ANY 3 (b, c)", "ANY 2 (b, c, d)"];
const MODES: [SyncMode; 3] = [SyncMode::Preferred, SyncMode::Required, SyncMode::Async];

#[derive(Debug, Clone, Copy)]
enum Event {
    LocalFlush(u64),
    StandbyWrite(usize, u64),
    StandbyFlush(usize, u64),
    StandbyApply(usize, u64),
    DeliverAck(usize),
    Connect(usize),
    State(usize, WalSenderState),
    Disconnect(usize),
    SendReport(usize),
    DeliverReport(usize),
    Damage(usize, u64),
    ClearDamage(usize),
    /// Damaged, cleared, known to be, connected and streaming again: all but the acknowledgement.
    ComeBackWithLess(usize, u64),
    Propose,
    Commit(usize),
    Lose(usize),
    Learn(usize),
    Setting(usize, usize),
    ToggleNoSync(usize),
    OtherCommand,
    BeginElection,
    GraceOver,
}

/// A standby as it really is.
#[derive(Debug, Clone, Default)]
struct Node {
    /// Survives the node's process, as its operating system has it.
    write: u64,
    flush: u64,
    apply: u64,
    damaged: bool,
    damage_epoch: u64,
    incarnation: u64,
    connection: Option<ConnectionId>,
}

#[derive(Debug)]
struct World {
    raft: ClusterState,
    /// What the primary's Raft replica has not applied yet.
    unlearnt: Vec<ClusterState>,
    /// Proposed, and not known to be lost.
    in_flight: Vec<Command>,
    nodes: BTreeMap<NodeId, Node>,
    acks: Vec<(ConnectionId, Ack)>,
    reports: Vec<(NodeId, Incarnation, bool, u64)>,
    connections: u64,
    local_flush: u64,
    published: [Lsn; 3],
    manager: SyncManager,
}

fn node(index: usize) -> NodeId {
    NodeId::new(2 + (index % 3) as u64)
}

fn member(name: &str) -> Member {
    Member {
        name: name.parse().expect("a name"),
        address: format!("{name}:1"),
        voter: true,
        witness: false,
        failover_priority: 1,
        no_sync: false,
    }
}

impl World {
    fn new(listed: &[usize], acks: u32, mode: usize, names: usize) -> Self {
        let switch = TimelineSwitch { timeline: TIMELINE, parent: TimelineId::NONE, switch_lsn: F };
        let (incarnation, reason) = (Incarnation::new(1), "a cluster begins".to_owned());
        let members: std::collections::BTreeSet<NodeId> = listed.iter().map(|index| node(*index)).collect();
        let mode = MODES[mode % MODES.len()];
        let count = u32::try_from(members.len()).expect("small");
        let acks = if mode == SyncMode::Required { acks.max(1) } else { acks.clamp(count.min(1), count) };
        let raft = ClusterState {
            system_id: understudy_types::SystemId::new(1),
            generation: Generation::new(3),
            members: [(1, "a"), (2, "b"), (3, "c"), (4, "d")].map(|(id, name)| (NodeId::new(id), member(name))).into(),
            segment_size: None,
            history: vec![HistoryEntry { switch, safe_lsn: F, node: ME, incarnation, reason, time_ms: 0 }],
            sync: SyncList { mode, members: members.clone(), acks },
            settings: Settings {
                synchronous_standby_names: SETTINGS[names % SETTINGS.len()].to_owned(),
                sync_mode: mode,
                ..Settings::default()
            },
            ..ClusterState::default()
        };
        // The promotion listed nodes that have everything up to F.
        let nodes = (0..3).map(node).map(|id| {
            let flush = if members.contains(&id) { F.get() } else { 0 };
            (id, Node { write: flush, flush, incarnation: 100 * id.get(), ..Node::default() })
        });
        Self {
            manager: SyncManager::new(ME, TIMELINE, F, &raft),
            nodes: nodes.collect(),
            raft,
            unlearnt: Vec::new(),
            in_flight: Vec::new(),
            acks: Vec::new(),
            reports: Vec::new(),
            connections: 0,
            local_flush: F.get(),
            published: [F, F, Lsn::INVALID],
        }
    }

    fn raft_moves(&mut self, change: impl FnOnce(&mut ClusterState)) {
        change(&mut self.raft);
        self.raft.generation = self.raft.generation.next();
        self.unlearnt.push(self.raft.clone());
    }

    fn commit(&mut self, command: &Command) -> bool {
        let applied = matches!(apply(&mut self.raft, command), Outcome::Applied { .. });
        if applied {
            self.unlearnt.push(self.raft.clone());
        }
        applied
    }

    fn connect(&mut self, id: NodeId) {
        self.connections += 1;
        let connection = ConnectionId::new(self.connections);
        let known = self.nodes.get_mut(&id).expect("a node");
        known.connection = Some(connection);
        self.manager.handle_connected(connection, id, Incarnation::new(known.incarnation), known.damage_epoch);
        self.ack(id);
    }

    fn ack(&mut self, id: NodeId) {
        let known = &self.nodes[&id];
        let [write, flush, apply] = [known.write, known.flush, known.apply].map(Lsn::new);
        self.acks.extend(known.connection.map(|connection| (connection, Ack { write, flush, apply })));
    }

    fn report(&mut self, id: NodeId) {
        let known = &self.nodes[&id];
        self.reports.push((id, Incarnation::new(known.incarnation), known.damaged, known.damage_epoch));
    }

    fn clear_damage(&mut self, id: NodeId) {
        let Node { damaged, damage_epoch, .. } = self.nodes[&id];
        let generation = self.raft.generation;
        if damaged && self.commit(&Command::ClearDamage { generation, node: id, damage_epoch }) {
            self.nodes.get_mut(&id).expect("a node").damaged = false;
        }
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::LocalFlush(bytes) => {
                self.local_flush += bytes;
                self.manager.handle_local_flush(Lsn::new(self.local_flush));
            }
            Event::StandbyWrite(index, bytes) => {
                // The primary sends before it has flushed: a standby may be ahead of it.
                let known = self.nodes.get_mut(&node(index)).expect("a node");
                known.write = (known.write + bytes).min(self.local_flush + 5).max(known.write);
                self.ack(node(index));
            }
            Event::StandbyFlush(index, bytes) => {
                let known = self.nodes.get_mut(&node(index)).expect("a node");
                known.flush = (known.flush + bytes).min(known.write);
                self.ack(node(index));
            }
            Event::StandbyApply(index, bytes) => {
                let safe = self.manager.safe_lsn().get();
                let known = self.nodes.get_mut(&node(index)).expect("a node");
                known.apply = (known.apply + bytes).min(known.flush).min(safe).max(known.apply);
                self.ack(node(index));
            }
            Event::DeliverAck(at) if !self.acks.is_empty() => {
                let (connection, ack) = self.acks.remove(at % self.acks.len());
                self.manager.handle_ack(connection, ack);
            }
            Event::Connect(index) => self.connect(node(index)),
            Event::State(index, state) => {
                if let Some(connection) = self.nodes[&node(index)].connection {
                    self.manager.handle_state(connection, state);
                }
            }
            Event::Disconnect(index) => {
                if let Some(connection) = self.nodes.get_mut(&node(index)).expect("a node").connection.take() {
                    self.manager.handle_disconnected(connection);
                }
            }
            Event::SendReport(index) => self.report(node(index)),
            Event::DeliverReport(at) if !self.reports.is_empty() => {
                let (id, incarnation, damaged, epoch) = self.reports.remove(at % self.reports.len());
                let report = Report { incarnation, damaged, damage_epoch: epoch, no_sync: false };
                self.manager.handle_report(id, report);
            }
            Event::Damage(index, bytes) => {
                // The node says it first, then loses. The primary may believe in the connection for long.
                let known = self.nodes.get_mut(&node(index)).expect("a node");
                known.damaged = true;
                known.damage_epoch += 1;
                known.incarnation += 1;
                known.write = known.write.saturating_sub(bytes);
                known.flush = known.flush.min(known.write);
                known.apply = known.apply.min(known.write);
            }
            Event::ClearDamage(index) => self.clear_damage(node(index)),
            Event::ComeBackWithLess(index, bytes) => {
                self.step(Event::Damage(index, bytes));
                self.step(Event::ClearDamage(index));
                self.step(Event::Learn(usize::MAX));
                self.step(Event::Connect(index));
                self.step(Event::State(index, WalSenderState::Streaming));
            }
            Event::Propose => self.in_flight.extend(self.manager.poll_proposal()),
            Event::Commit(at) if !self.in_flight.is_empty() => {
                let command = self.in_flight[at % self.in_flight.len()].clone();
                self.commit(&command);
            }
            Event::Lose(at) if !self.in_flight.is_empty() => {
                self.in_flight.remove(at % self.in_flight.len());
            }
            Event::Learn(count) => {
                // Of several the manager may see the last one only.
                if let Some(state) = self.unlearnt.drain(..count.min(self.unlearnt.len())).next_back() {
                    self.manager.handle_cluster_state(&state);
                }
            }
            Event::Setting(names, mode) => self.raft_moves(|raft| {
                raft.settings.synchronous_standby_names = SETTINGS[names % SETTINGS.len()].to_owned();
                raft.settings.sync_mode = MODES[mode % MODES.len()];
            }),
            // Re-tagging a listed node is refused.
            Event::ToggleNoSync(index) if !self.raft.sync.members.contains(&node(index)) => {
                self.raft_moves(|raft| raft.members.get_mut(&node(index)).expect("a member").no_sync ^= true);
            }
            Event::OtherCommand => self.raft_moves(|_| ()),
            Event::BeginElection => {
                let generation = self.raft.generation;
                self.commit(&Command::BeginElection { generation, timeline: TIMELINE.next(), reason: String::new() });
            }
            Event::GraceOver => self.manager.handle_grace_over(),
            Event::DeliverAck(_)
            | Event::DeliverReport(_)
            | Event::Commit(_)
            | Event::Lose(_)
            | Event::ToggleNoSync(_) => {}
        }
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        self.invariant_list_is_true()?;
        self.invariant_published_monotonic()?;
        self.invariant_published_in_order()?;
        self.invariant_one_outstanding()
    }

    /// The list in Raft, and each that a command in flight may put there at once.
    fn lists(&self) -> Vec<SyncList> {
        let possible = self.in_flight.iter().filter_map(|command| {
            let mut raft = self.raft.clone();
            matches!(apply(&mut raft, command), Outcome::Applied { .. }).then_some(raft.sync)
        });
        std::iter::once(self.raft.sync.clone()).chain(possible).collect()
    }

    /// INV-DURABLE: whichever undamaged members are enough for an election, one of them has what was published.
    fn invariant_list_is_true(&self) -> Result<(), TestCaseError> {
        self.invariant_lists_have("flush", self.manager.safe_lsn(), |known| known.flush)?;
        // A seal flushes what was written, so what an election finds is what the members have written.
        self.invariant_lists_have("write", self.manager.remote_write_lsn(), |known| known.write)
    }

    fn invariant_lists_have(&self, what: &str, published: Lsn, has: fn(&Node) -> u64) -> Result<(), TestCaseError> {
        for list in self.lists() {
            if list.members.is_empty() || list.acks == 0 {
                // The old primary alone is eligible; in mode async nothing is promised.
                continue;
            }
            let needed = (list.members.len() + 1).saturating_sub(list.acks as usize).max(1);
            let undamaged: Vec<&Node> = list.members.iter().map(|id| &self.nodes[id]).filter(|n| !n.damaged).collect();
            for set in (0_u32..1 << undamaged.len()).filter(|set| set.count_ones() as usize == needed) {
                let mut found = undamaged.iter().enumerate().filter(|(at, _)| set & (1 << at) != 0);
                let has_all = found.any(|(_, known)| Lsn::new(has(known)) >= published);
                let nodes = &self.nodes;
                prop_assert!(has_all, "{published} is published ({what}), but {list:?} may be in Raft: {nodes:?}");
            }
        }
        Ok(())
    }

    fn invariant_published_monotonic(&mut self) -> Result<(), TestCaseError> {
        let manager = &self.manager;
        let published = [manager.remote_write_lsn(), manager.safe_lsn(), manager.remote_apply_lsn()];
        let grew = published.iter().zip(&self.published).all(|(now, before)| now >= before);
        prop_assert!(grew, "{published:?} after {:?}", self.published);
        self.published = published;
        Ok(())
    }

    fn invariant_published_in_order(&self) -> Result<(), TestCaseError> {
        let [written, safe, applied] = self.published;
        prop_assert!(applied <= safe && safe <= written, "{:?}", self.published);
        prop_assert!(written <= F.max(Lsn::new(self.local_flush)));
        Ok(())
    }

    fn invariant_one_outstanding(&self) -> Result<(), TestCaseError> {
        let present = |command: &&Command| matches!(command, Command::SetSync { generation, .. } if *generation == self.raft.generation);
        let mut open = self.in_flight.iter().filter(present);
        if let Some(first) = open.next() {
            prop_assert!(open.all(|other| other == first), "two lists proposed against one generation");
        }
        Ok(())
    }

    /// From now on everybody is well and Raft works: everything proposed is carried out and learnt.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        self.in_flight.clear();
        self.acks.clear();
        self.reports.clear();
        self.step(Event::LocalFlush(1));
        self.step(Event::GraceOver);
        for index in 0..3 {
            let known = self.nodes.get_mut(&node(index)).expect("a node");
            known.write = known.write.max(self.local_flush);
            known.flush = known.write;
            self.connect(node(index));
            self.step(Event::State(index, WalSenderState::Streaming));
        }
        for _ in 0..8 {
            for index in 0..3 {
                self.clear_damage(node(index));
                self.report(node(index));
                self.step(Event::StandbyApply(index, u64::MAX / 2));
            }
            while !self.acks.is_empty() || !self.reports.is_empty() {
                self.step(Event::DeliverAck(0));
                self.step(Event::DeliverReport(0));
            }
            self.step(Event::Learn(usize::MAX));
            self.check()?;
            self.step(Event::Propose);
            self.step(Event::Commit(0));
            self.in_flight.clear();
            self.step(Event::Learn(usize::MAX));
            self.check()?;
        }
        Ok(())
    }
}

fn events() -> impl Strategy<Value = Event> {
    let state = prop_oneof![
        4 => Just(WalSenderState::Streaming),
        1 => Just(WalSenderState::Catchup),
        1 => Just(WalSenderState::Startup),
    ];
    prop_oneof![
        4 => (0_u64..6).prop_map(Event::LocalFlush),
        8 => (0_usize..3, 0_u64..9).prop_map(|(index, bytes)| Event::StandbyWrite(index, bytes)),
        8 => (0_usize..3, 0_u64..12).prop_map(|(index, bytes)| Event::StandbyFlush(index, bytes)),
        3 => (0_usize..3, 0_u64..12).prop_map(|(index, bytes)| Event::StandbyApply(index, bytes)),
        14 => (0_usize..9).prop_map(Event::DeliverAck),
        5 => (0_usize..3).prop_map(Event::Connect),
        8 => (0_usize..3, state).prop_map(|(index, state)| Event::State(index, state)),
        3 => (0_usize..3).prop_map(Event::Disconnect),
        3 => (0_usize..3).prop_map(Event::SendReport),
        3 => (0_usize..9).prop_map(Event::DeliverReport),
        3 => (0_usize..3, 0_u64..20).prop_map(|(index, bytes)| Event::Damage(index, bytes)),
        6 => (0_usize..3).prop_map(Event::ClearDamage),
        3 => (0_usize..3, 1_u64..20).prop_map(|(index, bytes)| Event::ComeBackWithLess(index, bytes)),
        8 => Just(Event::Propose),
        8 => (0_usize..5).prop_map(Event::Commit),
        2 => (0_usize..5).prop_map(Event::Lose),
        8 => (0_usize..3).prop_map(Event::Learn),
        1 => (0_usize..8, 0_usize..6).prop_map(|(names, mode)| Event::Setting(names, mode.saturating_sub(3))),
        1 => (0_usize..3).prop_map(Event::ToggleNoSync),
        1 => Just(Event::OtherCommand),
        1 => Just(Event::GraceOver),
    ]
}

fn worlds() -> impl Strategy<Value = (Vec<usize>, u32, usize, usize)> {
    let listed = proptest::sample::subsequence(vec![0_usize, 1, 2], 0..=3);
    (listed, 0_u32..3, 0_usize..5, 0_usize..8)
        .prop_map(|(listed, acks, mode, names)| (listed, acks, mode.saturating_sub(2), names))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn every_list_that_raft_may_have_is_true(
        (listed, acks, mode, names) in worlds(),
        events in proptest::collection::vec(events(), 0..120),
    ) {
        let mut world = World::new(&listed, acks, mode, names);
        world.check()?;
        for event in events {
            world.step(event);
            world.check()?;
        }
        world.settle()?;
        let status = world.manager.status();
        prop_assert_eq!(&status.list, &status.wanted, "settled: {:?}", status.waits);
        prop_assert_eq!(&status.list, &world.raft.sync);
        prop_assert!(status.change.is_none());
        prop_assert_eq!(world.manager.poll_proposal(), None);
        let enough = status.wanted.acks as usize <= status.wanted.members.len();
        prop_assert!(world.nodes.values().all(|known| !known.damaged), "a damaged node was not let off the list");
        let all = [world.manager.remote_write_lsn(), world.manager.safe_lsn(), world.manager.remote_apply_lsn()];
        prop_assert!(!enough || all == [Lsn::new(world.local_flush); 3], "commits wait: {:?}", status);
    }

    #[test]
    fn nothing_is_proposed_while_an_election_is_open(
        (listed, acks, mode, names) in worlds(),
        before in proptest::collection::vec(events(), 0..60),
        after in proptest::collection::vec(events(), 0..60),
    ) {
        let mut world = World::new(&listed, acks, mode, names);
        before.into_iter().for_each(|event| world.step(event));
        world.step(Event::BeginElection);
        let list = world.raft.sync.clone();
        for event in after {
            world.step(event);
            world.check()?;
            prop_assert_eq!(&world.raft.sync, &list);
        }
        world.step(Event::Learn(usize::MAX));
        prop_assert_eq!(world.manager.poll_proposal(), None);
    }
}
