//! The sync-list manager: how the primary changes the list without a moment at which Raft's is false.
//!
//! The primary runs one for each timeline that it opens. It has no IO and no clock: `handle_*` tell it what happened;
//! the published positions and [`SyncManager::poll_proposal`] are what comes out. It keeps INV-DURABLE on the
//! primary's side: whichever list an election may find in Raft, any `max(1, |members| - acks + 1)` undamaged members of
//! it have everything that was acknowledged among them.
//!
//! | position | the rules are asked about | never above | who waits for it |
//! |---|---|---|---|
//! | `remote_write_lsn` | what the standbys have written | the local flush | commits at `remote_write` |
//! | `safe_lsn` | what they have flushed | the local flush | the applier, and with it commits at `on` |
//! | `remote_apply_lsn` | what they have applied | the safe LSN | commits at `remote_apply` |
//!
//! With a rule of no acknowledgements (mode `async`, the primary alone) the first two are the local flush and the third
//! is the safe LSN: nobody else is asked at any level.
//!
//! **Why a commit acknowledged at `remote_write` survives.** Let L be the position that was published for it, k the
//! acknowledgements and M the members of the list that an election finds in Raft. The primary has flushed L, and k of M
//! have written it. A node that seals flushes what it has written before it reports a position, and one whose process
//! died finds what it wrote in its operating system and flushes it in its recovery: so those k report at least L,
//! unless one of their hosts crashed, which INV-DURABLE excepts. The members that an election needs are so many that one
//! of the k is among them: the new timeline begins at or above L. If u members are not counted, at least k - u of those
//! that are have L, so the (k - u)-th highest position is at least L, and the old primary's, if it counts, is too: F, the
//! highest LSN that may have been acknowledged, is at or above L. The winner starts with safe LSN F and lists only nodes
//! with position >= F: L is visible there before its first answer, a repeated request finds it, and the list is true.
//! F is also the `remote_write_lsn` that the new manager begins with; its `remote_apply_lsn` begins at nothing, for
//! nobody is known to have applied F.
//!
//! For this the list in Raft must be true at *write* level too, whenever it changes: a new one is proposed only when its
//! rule alone yields the highest `remote_write_lsn` ever published over what its members have written, beside the
//! highest safe LSN over what they have flushed. `remote_apply_lsn` asks nothing of the list: it never exceeds the safe
//! LSN, so a commit acknowledged there survives as one at `on` does.
//!
//! | step | list in Raft | rules in force | what ends it |
//! |---|---|---|---|
//! | settled | old | old | the wanted list is another one |
//! | prepared | old | old and new | the new rule alone yields the highest positions ever published |
//! | outstanding | old or new: unknown | old and new | the applied generation passes the one it was planned against |
//! | settled | what was applied | that one | |
//!
//! Why so (design, "Changing the sync list"):
//! - *Both rules from the moment a change is prepared*: what becomes safe meanwhile is also on the new list's members,
//!   so that they catch up with a target that no longer runs away.
//! - *The new rule alone yields the highest positions ever published, then it is proposed*: from the moment the command
//!   is sent it may be committed without our knowing, and an election would go by it. The rule is asked alone, for
//!   the old one's members are no part of that election.
//! - *Both rules while it is outstanding*: the list in Raft is one of the two, and we do not know which.
//! - *Until the applied generation has passed the planned one*: a command applies at exactly the generation it was
//!   planned against. Past it the applied list is the truth, and the command can never be carried out later.
//!   A lost answer, a timeout or a new Raft leader end nothing; the same command is proposed again.
//! - *One outstanding*: a second one would put a third list into the unknown.
//! - *What is published never decreases*: it was told to standbys and clients. A rule that yields less for a
//!   while just holds it where it is.
//!
//! A change that is only prepared was told to nobody and is replanned with every event, so a standby that comes back
//! before its removal was proposed stays listed without a word to Raft.
//!
//! **Who is wanted.** A standby gets on the list only while it streams and has acknowledged on this connection, is
//! undamaged, a data member, named, and not `no_sync`, neither by its tag nor by its own word: a node that was started anew
//! with `no_sync` is dropped by its word, and only then tagged (design, "Changing the sync list"). Once on it, it stays while it is connected, be it in catchup
//! after a reconnect, and is dropped when its connection is gone. A standby that the promotion listed has until
//! [`SyncManager::handle_grace_over`] to connect: without it every failover would begin with a list of nobody. See
//! `wanted` for the modes and `standbys` for which acknowledgements count.
//!
//! It refuses to decide about elections: while one is open it proposes nothing, and goes on acknowledging under the
//! rules in force, which the election's F covers. Sealing is the node's business. Once another timeline or another
//! primary is in the applied state nothing more becomes safe here.

use std::collections::{BTreeMap, BTreeSet};

use understudy_types::{DurabilityLevel, Generation, Incarnation, Lsn, NodeId, TimelineId};

use super::applied::{Applied, Standing};
use super::rule::{SyncRule, holds, safe_lsn};
use super::standbys::{Ack, AckEffect, Believed, ConnectionId, Report, Standby, Standbys, WalSenderState};
use super::status::{StandbySync, SyncChange, SyncState, SyncStatus, SyncWait};
use super::waiting::{WaitsFor, waits_for};
use super::wanted::{Nominee, wanted_list};
use crate::command::Command;
use crate::state::{ClusterState, SyncList};

/// The sync-standby list of one timeline's primary: see the module.
///
/// Invariants: `remote_apply_lsn <= safe_lsn <= remote_write_lsn`; none of them ever decreases nor, above the F that it
/// began with, exceeds the local flush; at most one
/// of `prepared` and `outstanding` is set; only a generation above its own ends `outstanding`; `rules` are those of
/// the applied list and of whichever of the two is set.
#[derive(Debug, Clone)]
pub struct SyncManager {
    /// The highest that was ever published, as of the two below.
    safe_lsn: Lsn,
    remote_write_lsn: Lsn,
    remote_apply_lsn: Lsn,
    local_flush: Lsn,
    applied: Applied,
    standbys: Standbys,
    /// From then on a standby that the promotion listed and that never connected counts as gone.
    is_grace_over: bool,
    /// The wanted list, where it is not the applied one and nothing is outstanding.
    prepared: Option<SyncList>,
    outstanding: Option<Proposal>,
    /// In force: an LSN is safe when all of them say so.
    rules: Vec<SyncRule>,
}

/// A SetSync that Raft may have carried out, or may yet.
#[derive(Debug, Clone)]
struct Proposal {
    generation: Generation,
    list: SyncList,
    damage_epochs: BTreeMap<NodeId, u64>,
}

impl SyncManager {
    /// The manager of `timeline`, which `me` has just opened with the safe LSN F.
    ///
    /// # Panics
    /// When the applied `state` does not know the timeline yet: nobody opens one before its Promote is applied.
    pub fn new(me: NodeId, timeline: TimelineId, safe_lsn: Lsn, state: &ClusterState) -> Self {
        assert!(state.timeline() >= timeline, "timeline {timeline} is opened, but not in the applied cluster state");
        let mut manager = Self {
            safe_lsn,
            remote_write_lsn: safe_lsn,
            remote_apply_lsn: Lsn::INVALID,
            local_flush: Lsn::INVALID,
            applied: Applied::read(me, timeline, state),
            standbys: Standbys::default(),
            is_grace_over: false,
            prepared: None,
            outstanding: None,
            rules: Vec::new(),
        };
        manager.learn_applied();
        manager
    }

    /// The primary flushed its own WAL up to `lsn`. A smaller one than before says nothing.
    pub fn handle_local_flush(&mut self, lsn: Lsn) {
        self.local_flush = self.local_flush.max(lsn);
        self.publish();
    }

    /// A standby's stream on this timeline was accepted. A newer connection of a node supersedes its older one:
    /// whatever is said of that from now on is ignored.
    pub fn handle_connected(&mut self, id: ConnectionId, node: NodeId, incarnation: Incarnation, damage_epoch: u64) {
        self.standbys.connected(id, node, incarnation, damage_epoch);
        self.replan();
    }

    /// A standby acknowledged, on this timeline.
    pub fn handle_ack(&mut self, id: ConnectionId, ack: Ack) {
        match self.standbys.acked(id, ack) {
            AckEffect::Nothing => {}
            AckEffect::FirstOfConnection => self.replan(),
            AckEffect::Further => self.publish(),
        }
    }

    /// A walsender got on, or fell back.
    pub fn handle_state(&mut self, id: ConnectionId, state: WalSenderState) {
        if self.standbys.changed_state(id, state) {
            self.replan();
        }
    }

    /// A connection is gone, for whatever reason.
    pub fn handle_disconnected(&mut self, id: ConnectionId) {
        if self.standbys.disconnected(id) {
            self.replan();
        }
    }

    /// A node's beat.
    pub fn handle_report(&mut self, node: NodeId, report: Report) {
        if self.standbys.reported(node, report) {
            self.replan();
        }
    }

    /// The standbys that the promotion listed have had time to connect: who never did counts as gone from now on.
    ///
    /// The shell calls it once, a `primary_timeout` after the timeline was opened. Before that, a listed standby that
    /// did not connect yet is waited for.
    pub fn handle_grace_over(&mut self) {
        self.is_grace_over = true;
        self.replan();
    }

    /// The applied cluster state moved on. One with a generation that is known already says nothing.
    pub fn handle_cluster_state(&mut self, state: &ClusterState) {
        if state.generation <= self.applied.generation {
            return;
        }
        self.applied = Applied::read(self.applied.me, self.applied.timeline, state);
        self.learn_applied();
    }

    /// The published safe LSN. Never decreases.
    pub fn safe_lsn(&self) -> Lsn {
        self.safe_lsn
    }

    /// What the rules yield for write. Never decreases, never below the safe LSN.
    pub fn remote_write_lsn(&self) -> Lsn {
        self.remote_write_lsn
    }

    /// What the rules yield for apply. Never decreases, never above the safe LSN.
    pub fn remote_apply_lsn(&self) -> Lsn {
        self.remote_apply_lsn
    }

    /// For whom a commit at `level` that ends at `lsn` waits.
    pub fn waits_for(&self, level: DurabilityLevel, lsn: Lsn) -> WaitsFor {
        let connected = |node| self.standbys.get(node).is_some_and(|standby| standby.connection.is_some());
        waits_for(level, lsn, self.local_flush, &self.rules, self.standbys.believed(), connected)
    }

    /// The command to propose to Raft, if the list can be changed now.
    ///
    /// From the first time it is given out it is outstanding, and it is given out again, the same, until the applied
    /// generation has passed the one that it was planned against. The shell has one attempt under way at a time, and
    /// asks again when that ended in an error or an unknown outcome, and when the applied state moved. After a
    /// rejection it waits for the applied state: that is behind.
    pub fn poll_proposal(&mut self) -> Option<Command> {
        if self.applied.standing != Standing::Primary {
            return None;
        }
        let (safe_lsn, remote_write_lsn) = (self.safe_lsn, self.remote_write_lsn);
        let Believed { writes, flushes, .. } = self.standbys.believed();
        let is_true = |list: &mut SyncList| {
            let rule = SyncRule::from(&*list);
            holds(&rule, safe_lsn, flushes) && holds(&rule, remote_write_lsn, writes)
        };
        if let Some(list) = self.prepared.take_if(is_true) {
            let epoch = |node: &NodeId| self.standbys.get(*node).map_or(0, |standby| standby.damage_epoch);
            let damage_epochs = list.members.iter().map(|node| (*node, epoch(node))).collect();
            self.outstanding = Some(Proposal { generation: self.applied.generation, list, damage_epochs });
        }
        self.outstanding.as_ref().map(|proposal| Command::SetSync {
            generation: proposal.generation,
            timeline: self.applied.timeline,
            sync: proposal.list.clone(),
            damage_epochs: proposal.damage_epochs.clone(),
        })
    }

    fn learn_applied(&mut self) {
        for (node, damage_epoch) in &self.applied.damage_epochs {
            self.standbys.learn_damage_epoch(*node, *damage_epoch);
        }
        self.standbys.retain(|node| self.applied.candidates.contains_key(&node));
        let generation = self.applied.generation;
        self.outstanding.take_if(|proposal| proposal.generation < generation);
        self.replan();
    }

    /// What was only prepared is planned anew; what is outstanding stays.
    fn replan(&mut self) {
        self.prepared = None;
        if self.outstanding.is_none() {
            self.prepared = Some(self.wanted()).filter(|wanted| *wanted != self.applied.list);
        }
        let second = self.prepared.as_ref().or(self.outstanding.as_ref().map(|proposal| &proposal.list));
        self.rules = std::iter::once(&self.applied.list).chain(second).map(SyncRule::from).collect();
        self.publish();
    }

    fn publish(&mut self) {
        if self.applied.standing == Standing::Deposed {
            return;
        }
        let under_all = |positions: &BTreeMap<NodeId, Lsn>| {
            let yields = self.rules.iter().map(|rule| safe_lsn(rule, self.local_flush, positions));
            yields.min().unwrap_or(Lsn::INVALID)
        };
        let Believed { writes, flushes, applies } = self.standbys.believed();
        let (written, flushed, applied) = (under_all(writes), under_all(flushes), under_all(applies));
        self.safe_lsn = self.safe_lsn.max(flushed);
        // What is safe is written too, and nothing was applied that is not safe: whoever says otherwise is not believed.
        self.remote_write_lsn = self.remote_write_lsn.max(written).max(self.safe_lsn);
        self.remote_apply_lsn = self.remote_apply_lsn.max(applied.min(self.safe_lsn));
    }

    fn wanted(&self) -> SyncList {
        if self.applied.standing == Standing::Deposed {
            return self.applied.list.clone();
        }
        match &self.applied.names {
            Ok(names) => wanted_list(self.applied.mode, names, self.nominees()),
            // The setting is checked before it is stored. Should one slip through, the list is better left alone.
            Err(_) => self.applied.list.clone(),
        }
    }

    fn nominees(&self) -> Vec<Nominee> {
        let named = self.applied.candidates.iter().filter(|(_, priority)| **priority > 0);
        named.filter_map(|(node, priority)| self.nominee(*node, *priority)).collect()
    }

    fn nominee(&self, node: NodeId, priority: u32) -> Option<Nominee> {
        let listed = self.applied.list.members.contains(&node);
        let standby = self.standbys.get(node);
        if self.is_damaged(node) || standby.is_some_and(Standby::wants_no_sync) {
            return None;
        }
        let is_streaming = standby.is_some_and(Standby::is_streaming);
        let is_connected = standby.is_some_and(|standby| standby.connection.is_some());
        let present = is_streaming || (listed && (is_connected || self.is_awaited(node)));
        (present || listed).then_some(Nominee { node, priority, listed, present })
    }

    /// Whether a listed standby may still be on its way to this primary.
    fn is_awaited(&self, node: NodeId) -> bool {
        !self.is_grace_over && !self.standbys.get(node).is_some_and(|standby| standby.was_connected)
    }

    fn is_damaged(&self, node: NodeId) -> bool {
        let recorded_epoch = self.applied.damage_epochs.get(&node).copied().unwrap_or(0);
        self.standbys.get(node).is_some_and(|standby| standby.is_damaged(recorded_epoch))
    }

    /// Everything about it, for people.
    pub fn status(&self) -> SyncStatus {
        let outstanding = self.outstanding.as_ref().map(|proposal| (&proposal.list, Some(proposal.generation)));
        let change = outstanding.or(self.prepared.as_ref().map(|list| (list, None)));
        let standbys = self.applied.candidates.iter();
        SyncStatus {
            safe_lsn: self.safe_lsn,
            remote_write_lsn: self.remote_write_lsn,
            remote_apply_lsn: self.remote_apply_lsn,
            list: self.applied.list.clone(),
            generation: self.applied.generation,
            wanted: self.wanted(),
            change: change.map(|(list, proposed)| SyncChange { list: list.clone(), proposed }),
            waits: self.waits(),
            standbys: standbys.map(|(node, priority)| (*node, self.standby_sync(*node, *priority))).collect(),
        }
    }

    fn standby_sync(&self, node: NodeId, priority: u32) -> StandbySync {
        let standby = self.standbys.get(node);
        StandbySync {
            state: if self.applied.list.members.contains(&node) {
                self.applied.listed_state()
            } else if priority > 0 && self.applied.waits_for_standbys() {
                SyncState::Potential
            } else {
                SyncState::Async
            },
            priority,
            connection: standby.and_then(|standby| standby.connection.map(|connection| connection.state)),
            ack: standby.map(|standby| standby.ack).unwrap_or_default(),
            damaged: self.is_damaged(node),
        }
    }

    fn waits(&self) -> Vec<SyncWait> {
        let mut waits = Vec::new();
        match self.applied.standing {
            Standing::Deposed => return vec![SyncWait::Deposed],
            Standing::ElectionOpen => waits.push(SyncWait::Election),
            Standing::Primary => {}
        }
        if let Err(error) = &self.applied.names {
            waits.push(SyncWait::NamesRefused { error: error.clone() });
        }
        if let Some(proposal) = &self.outstanding {
            waits.push(SyncWait::Raft { generation: proposal.generation });
        }
        if let Some(list) = self.prepared.as_ref().filter(|_| self.applied.standing == Standing::Primary) {
            waits.extend(self.waits_of(list));
        }
        let awaited = self.applied.list.members.iter().filter(|node| self.is_awaited(**node));
        waits.extend(awaited.map(|node| SyncWait::Connection { node: *node }));
        let wanted = self.wanted();
        let present = self.connected_of(&wanted.members);
        if present < wanted.acks {
            waits.push(SyncWait::TooFew { wanted: wanted.acks, present, mode: wanted.mode });
        }
        waits
    }

    /// What stands between a prepared list and its proposal.
    fn waits_of(&self, list: &SyncList) -> Vec<SyncWait> {
        let rule = SyncRule::from(list);
        let Believed { writes, flushes, .. } = self.standbys.believed();
        let has =
            |positions: &BTreeMap<NodeId, Lsn>, node: NodeId| positions.get(&node).copied().unwrap_or(Lsn::INVALID);
        let lacks = |positions, needs| {
            let behind = list.members.iter().map(move |node| (*node, has(positions, *node)));
            behind.filter(move |(_, at)| *at < needs)
        };
        let mut waits: Vec<SyncWait> = Vec::new();
        if !holds(&rule, self.safe_lsn, flushes) {
            let needs = self.safe_lsn;
            waits.extend(lacks(flushes, needs).map(|(node, flush)| SyncWait::CatchUp { node, flush, needs }));
        } else if !holds(&rule, self.remote_write_lsn, writes) {
            let needs = self.remote_write_lsn;
            waits.extend(lacks(writes, needs).map(|(node, write)| SyncWait::CatchUpWrite { node, write, needs }));
        }
        if waits.is_empty() { vec![SyncWait::Proposal] } else { waits }
    }

    fn connected_of(&self, members: &BTreeSet<NodeId>) -> u32 {
        let connected = |node: &&NodeId| self.standbys.get(**node).is_some_and(|standby| standby.connection.is_some());
        u32::try_from(members.iter().filter(connected).count()).unwrap_or(u32::MAX)
    }
}
