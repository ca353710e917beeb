//! A whole cluster in one struct: Raft as one list of commands that every node applies at its own pace, messages that
//! are late, reordered and lost, processes that crash, disks that lose what was not flushed and sometimes more.
//!
//! Every node may believe to be the Raft leader at any time and propose on stale knowledge; commands arrive late too.
//! What is real here: `apply`, `plan`, `reconcile`, `Confirmation`. Everything else is as simple as it can be.

use std::collections::{BTreeMap, BTreeSet};

use understudy_core::command::{Command, Outcome, apply};
use understudy_core::confirm::confirms;
use understudy_core::lease::{Grants, counted_until_ms};
use understudy_core::observation::{FetchOrder, NodeReport, Observed};
use understudy_core::plan::plan;
use understudy_core::settings::LinearizableReads;
use understudy_core::state::{ClusterState, Member, Settings};
use understudy_types::{Incarnation, NodeId, SegmentSize, SyncMode, SystemId, TimelineId};

use crate::invariants::{self, Verdict};
use crate::node::{Ack, Byte, Node, Read, TIMEOUT_MS};
use crate::rng::Rng;

/// A rule that nodes break on purpose, to see that the invariants notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cheat {
    Nothing,
    /// A standby goes on receiving and acknowledging after its seal.
    AcknowledgesAfterSeal,
    /// A node that was damaged does not say so.
    HidesDamage,
    /// The primary goes by the new list as soon as it has proposed it.
    ForgetsTheOldRule,
    /// Whatever process of the promoted node runs opens.
    AnyProcessOpens,
    /// A seal is reported as complete, and what is written as flushed, before it is.
    SealsBeforeTheFlush,
    /// A voter confirms an older primary after it sealed.
    ConfirmsAfterSeal,
    /// The leader does not wait for leases.
    IgnoresLeases,
    /// A voter that restarts does not know that it may have granted.
    ForgetsGrants,
    /// The primary counts a lease from when the answer came.
    CountsFromTheAnswer,
}

#[derive(Debug, Clone, Copy)]
pub struct Config {
    pub seed: u64,
    pub mode: SyncMode,
    pub damage: bool,
    pub cheat: Cheat,
    /// Whether somebody changes the settings all the time; outside mode `async`, and never to it.
    pub operator: bool,
    /// Whether the primary reads by leases.
    pub lease: bool,
}

/// What a primary asks with a beat.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    pub round: u64,
    pub timeline: TimelineId,
    pub lease_ms: u64,
    /// By the primary's clock.
    pub sent_at_ms: u64,
}

pub enum Message {
    Beat { from: NodeId, to: NodeId, report: Box<NodeReport>, order: Option<FetchOrder>, asked: Option<Asked> },
    Confirm { from: NodeId, to: NodeId, to_incarnation: Incarnation, asked: Asked, confirmed: bool, granted_ms: u64 },
    Ack { from: NodeId, to: NodeId, to_incarnation: Incarnation, timeline: TimelineId, ack: Ack },
    Command { from: NodeId, command: Command },
}

pub struct World {
    pub config: Config,
    pub rng: Rng,
    pub now_ms: u64,
    pub nodes: BTreeMap<NodeId, Node>,
    /// The Raft state after each command; the first is the empty one.
    pub states: Vec<ClusterState>,
    pub messages: Vec<Message>,
    pub next_number: u64,
    /// The longest prefix of WAL that anybody acknowledged. Never leaves the world again, outside mode `async`.
    pub acknowledged: Vec<Byte>,
    /// Who opened what.
    pub opened: BTreeMap<TimelineId, (NodeId, Incarnation)>,
    /// Faults happen.
    pub faults: bool,
    /// Who is cut off from everybody else.
    pub isolated: BTreeSet<NodeId>,
    pub reads_answered: usize,
    pub leased_reads: usize,
}

fn member(id: NodeId, rng: &mut Rng, index: usize, of: usize) -> Member {
    // The first three of five are always whole, so that there is a cluster at all.
    let special = index >= 3 || (of == 3 && index == 2);
    let kind = if special { rng.below(6) } else { 9 };
    Member {
        name: format!("n{id}").parse().expect("a name"),
        address: String::new(),
        voter: kind != 0 || of < 5,
        witness: kind == 1,
        failover_priority: if kind == 2 { 0 } else { rng.between(1, 2) as u32 },
        no_sync: kind == 3,
    }
}

impl World {
    pub fn new(config: Config) -> Self {
        let mut rng = Rng::new(config.seed);
        let count = [3, 3, 5][rng.below(3)];
        let ids: Vec<NodeId> = (1..=count as u64).map(NodeId::new).collect();
        let members: BTreeMap<NodeId, Member> =
            ids.iter().enumerate().map(|(index, id)| (*id, member(*id, &mut rng, index, count))).collect();
        let nodes = ids.iter().map(|id| (*id, Node::new(*id, members[id].witness))).collect();
        let settings = Settings {
            synchronous_standby_names: if count == 5 && rng.one_in(2) { "ANY 2 (*)" } else { "ANY 1 (*)" }.to_owned(),
            sync_mode: config.mode,
            primary_timeout_ms: TIMEOUT_MS,
            linearizable_reads: if config.lease { LinearizableReads::Lease } else { LinearizableReads::Quorum },
            ..Settings::default()
        };
        let mut state = ClusterState::default();
        let (system_id, segment_size) = (SystemId::new(7), SegmentSize::MIN);
        let outcome = apply(&mut state, &Command::Bootstrap { system_id, members, segment_size, settings });
        assert!(matches!(outcome, Outcome::Applied { .. }), "{outcome:?}");
        let mut world = Self {
            config,
            rng,
            now_ms: 10_000,
            nodes,
            states: vec![ClusterState::default(), state],
            messages: Vec::new(),
            next_number: 1,
            acknowledged: Vec::new(),
            opened: BTreeMap::new(),
            faults: true,
            isolated: BTreeSet::new(),
            reads_answered: 0,
            leased_reads: 0,
        };
        for id in ids.iter().filter(|_| config.lease) {
            // Two clocks differ by less than the margin of a tenth.
            let clock_permille = world.rng.between(951, 1_049) as u64;
            world.node(*id).clock_permille = clock_permille;
        }
        ids.into_iter().for_each(|id| world.start(id));
        world
    }

    pub fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    pub fn latest(&self) -> &ClusterState {
        self.states.last().expect("never empty")
    }

    pub fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    pub fn node(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("a node")
    }

    /// A new process. Recovery finds what was flushed, some of what was not, or less than it should.
    pub fn start(&mut self, id: NodeId) {
        let incarnation = Incarnation::new(self.number());
        let now_ms = self.now_ms;
        let may_be_damaged = self.config.damage && self.faults;
        let (known, keeps) = {
            let node = &self.nodes[&id];
            let (flushed, written, applied) = (node.flushed, node.wal.len(), node.applied);
            let (known, damaged) = (node.raft_applied, may_be_damaged && self.rng.one_in(6));
            let keeps = if damaged { self.rng.between(applied, flushed) } else { self.rng.between(flushed, written) };
            (self.rng.between(known / 2, known).max(1), keeps)
        };
        let state = self.states[known].clone();
        let cheat = self.config.cheat;
        let node = self.node(id);
        node.up = true;
        node.incarnation = incarnation;
        if keeps < node.flushed {
            node.damage_epoch += 1;
            node.damaged = cheat != Cheat::HidesDamage;
        }
        node.wal.truncate(keeps);
        node.flushed = keeps;
        node.safe = node.applied;
        node.primary_heard_at_ms = now_ms;
        let known_ms = if cheat == Cheat::ForgetsGrants { 0 } else { node.promised_lease_ms };
        node.grants = Grants::at_start(known_ms, node.clock_ms(now_ms));
        node.learn(known, &state, now_ms);
    }

    pub fn commit(&mut self, command: &Command) -> Verdict {
        let mut state = self.latest().clone();
        if let Outcome::Applied { .. } = apply(&mut state, command) {
            self.states.push(state);
            invariants::after_commit(self, command)?;
        }
        Ok(())
    }

    pub fn connected(&self, one: NodeId, other: NodeId) -> bool {
        !self.isolated.contains(&one) && !self.isolated.contains(&other)
    }

    /// Sends, unless the network loses it. What was sent may arrive at any later time.
    pub fn send(&mut self, message: Message) {
        let arrives = match &message {
            Message::Beat { from, to, .. } | Message::Confirm { from, to, .. } | Message::Ack { from, to, .. } => {
                self.connected(*from, *to)
            }
            Message::Command { from, .. } => self.connected(*from, *from),
        };
        if arrives && !(self.faults && self.rng.one_in(8)) {
            self.messages.push(message);
        }
    }

    pub fn deliver(&mut self, index: usize) -> Verdict {
        match self.messages.swap_remove(index) {
            Message::Beat { from, to, report, order, asked } => {
                self.receive_beat(from, to, *report, order, asked);
                Ok(())
            }
            Message::Confirm { from, to, to_incarnation, asked, confirmed, granted_ms } => {
                let (now_ms, cheat) = (self.now_ms, self.config.cheat);
                let node = self.node(to);
                let clock_ms = node.clock_ms(now_ms);
                let leases = node.state.settings.wanted_lease_ms() > 0;
                let Some(primary) = &mut node.primary else { return Ok(()) };
                if node.up && node.incarnation == to_incarnation && primary.timeline == asked.timeline {
                    primary.confirmation.on_reply(from, asked.round, confirmed);
                    let since_ms = if cheat == Cheat::CountsFromTheAnswer { clock_ms } else { asked.sent_at_ms };
                    if let Some(until_ms) = counted_until_ms(since_ms, granted_ms, 10).filter(|_| leases) {
                        primary.confirmation.on_grant(from, until_ms);
                    }
                }
                self.answer_reads(to)
            }
            Message::Ack { from, to, to_incarnation, timeline, ack } => {
                let node = self.node(to);
                let Some(primary) = &mut node.primary else { return Ok(()) };
                let connected = primary.acks.get(&from).is_some_and(|known| known.incarnation == ack.incarnation);
                if node.up && node.incarnation == to_incarnation && primary.timeline == timeline && connected {
                    primary.acks.insert(from, ack);
                }
                Ok(())
            }
            Message::Command { command, .. } => self.commit(&command),
        }
    }

    fn receive_beat(
        &mut self,
        from: NodeId,
        to: NodeId,
        report: NodeReport,
        order: Option<FetchOrder>,
        asked: Option<Asked>,
    ) {
        let now_ms = self.now_ms;
        let cheats = self.config.cheat == Cheat::ConfirmsAfterSeal;
        let node = self.node(to);
        if !node.up {
            return;
        }
        let is_primary = node.state.primary().is_some_and(|primary| primary.node == from);
        if is_primary && report.timeline == node.state.timeline() {
            node.primary_heard_at_ms = now_ms;
        }
        node.fetch_order = order.or(node.fetch_order);
        let to_incarnation = report.incarnation;
        node.heard.insert(from, Observed { heard_at_ms: now_ms, connected: true, refused: false, report });
        if let Some(asked) = asked {
            let confirmed = cheats || confirms(node.sealed, asked.timeline);
            let clock_ms = node.clock_ms(now_ms);
            let granted_ms = if confirmed { node.grants.grant(asked.lease_ms, clock_ms) } else { 0 };
            self.send(Message::Confirm { from: to, to: from, to_incarnation, asked, confirmed, granted_ms });
        }
    }

    pub fn beat(&mut self, from: NodeId, order: Option<FetchOrder>) -> Verdict {
        let now_ms = self.now_ms;
        let acknowledged = self.acknowledged.len();
        let reads = self.rng.one_in(2);
        let node = self.node(from);
        let (lease_ms, sent_at_ms) = (node.state.settings.wanted_lease_ms(), node.clock_ms(now_ms));
        let mut asked = None;
        if let Some(primary) = &mut node.primary {
            if reads && primary.reads.len() < 4 {
                let (round, visible) = (primary.round + 1, primary.published);
                primary.reads.push(Read { round, visible, acknowledged });
            }
            primary.round += 1;
            primary.confirmation.start_round(primary.round, now_ms);
            asked = Some(Asked { round: primary.round, timeline: primary.timeline, lease_ms, sent_at_ms });
        }
        let mut report = node.report(now_ms);
        if self.config.cheat == Cheat::IgnoresLeases {
            report.lease_left_ms = 0;
        }
        for to in self.ids().into_iter().filter(|to| *to != from) {
            self.send(Message::Beat { from, to, report: Box::new(report.clone()), order, asked });
        }
        self.answer_reads(from)
    }

    fn answer_reads(&mut self, id: NodeId) -> Verdict {
        let Some(primary) = &mut self.node(id).primary else { return Ok(()) };
        let Some(confirmed) = primary.confirmation.confirmed_round() else { return Ok(()) };
        let (answered, waiting): (Vec<Read>, Vec<Read>) =
            primary.reads.iter().partition(|read| read.round <= confirmed);
        primary.reads = waiting;
        self.reads_answered += answered.len();
        answered.into_iter().try_for_each(|read| invariants::invariant_linear(self, id, read))
    }

    /// A primary that holds a lease answers a read by itself.
    pub fn read_by_lease(&mut self, id: NodeId) -> Verdict {
        let acknowledged = self.acknowledged.len();
        let node = &self.nodes[&id];
        let Some(primary) = &node.primary else { return Ok(()) };
        let until_ms = primary.confirmation.leased_until_ms();
        if until_ms.is_none_or(|until_ms| node.clock_ms(self.now_ms) >= until_ms) {
            return Ok(());
        }
        let read = Read { round: 0, visible: primary.published, acknowledged };
        self.leased_reads += 1;
        invariants::invariant_linear(self, id, read)
    }

    /// As the Raft leader, if only in its own eyes.
    pub fn lead(&mut self, id: NodeId) -> Verdict {
        let node = &self.nodes[&id];
        let planned = plan(&node.state, &node.observations(self.now_ms), self.now_ms);
        if let Some(command) = planned.command {
            self.send(Message::Command { from: id, command });
        }
        if planned.fetch_order.is_some_and(|order| order.winner == id) {
            self.node(id).fetch_order = planned.fetch_order;
        }
        planned.fetch_order.map_or(Ok(()), |order| self.beat(id, Some(order)))
    }
}
