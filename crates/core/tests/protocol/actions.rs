//! What nodes do when `reconcile` says so, and what a primary does by itself. The shells of the real nodes, as simple as
//! can be.

use std::collections::{BTreeMap, BTreeSet};

use understudy_core::command::Command;
use understudy_core::confirm::Confirmation;
use understudy_core::reconcile::{NodeAction, reconcile};
use understudy_core::state::SyncList;
use understudy_types::{Lsn, NodeId, SyncMode, TimelineHistory, TimelineId};

use crate::invariants::{self, Verdict};
use crate::node::{Byte, Primary, length};
use crate::world::{Cheat, Message, World};

impl World {
    pub fn reconcile(&mut self, id: NodeId) -> Verdict {
        let now_ms = self.now_ms;
        self.node(id).promise_lease(now_ms);
        let node = &self.nodes[&id];
        let mut as_it_is = node.as_it_is();
        if self.config.cheat == Cheat::AnyProcessOpens {
            let promoted = node.state.primary().filter(|promoted| promoted.node == id);
            as_it_is.incarnation = promoted.map_or(as_it_is.incarnation, |promoted| promoted.incarnation);
        }
        let state = node.state.clone();
        reconcile(&as_it_is, &state).into_iter().try_for_each(|action| self.act(id, action))
    }

    fn act(&mut self, id: NodeId, action: NodeAction) -> Verdict {
        let cheat = self.config.cheat;
        let fails_to_open = self.faults && self.rng.one_in(10);
        let node = self.node(id);
        match action {
            NodeAction::Seal { timeline } => {
                let (following, upstream, flushed) = (node.following, node.upstream, node.flushed);
                node.seal(timeline);
                if cheat == Cheat::AcknowledgesAfterSeal {
                    (node.following, node.upstream) = (following, upstream);
                }
                if cheat == Cheat::SealsBeforeTheFlush {
                    (node.flushed, node.says_all_is_flushed) = (flushed, true);
                }
            }
            NodeAction::Fetch { election, source, until } => return self.fetch(id, election, source, until),
            NodeAction::Rejoin { history } => {
                let position = length(history.position(node.end()));
                node.wal.truncate(position);
                node.flushed = node.flushed.min(position);
            }
            NodeAction::Open { history, .. } if fails_to_open => node.failed_to_open = Some(history.latest()),
            NodeAction::Open { history, safe_lsn } => return self.open(id, &history, safe_lsn),
            NodeAction::Follow { following, .. } => {
                (node.following, node.upstream) = (Some(following), None);
            }
            NodeAction::StopFollowing => (node.following, node.upstream) = (None, None),
            // What another node would send is not part of this model: the node stays out from here on.
            NodeAction::Seed { why } => {
                node.stays_out = Some(why);
                return invariants::invariant_visible(self, id);
            }
            NodeAction::ProposeClearDamage { generation, damage_epoch } => {
                let command = Command::ClearDamage { generation, node: id, damage_epoch };
                self.send(Message::Command { from: id, command });
            }
            NodeAction::ClearDamage { damage_epoch } => {
                if node.damage_epoch == damage_epoch {
                    node.damaged = false;
                }
            }
        }
        Ok(())
    }

    /// Some of what the winner lacks, from a node that sealed for the same election and has not moved on since: one that
    /// follows or opened the new timeline may have other bytes below S of an order that is older than the promotion.
    fn fetch(&mut self, id: NodeId, election: TimelineId, source: NodeId, until: Lsn) -> Verdict {
        let from = &self.nodes[&source];
        let in_election =
            from.sealed == election && from.seal_complete && from.following.is_none() && from.primary.is_none();
        let answers = from.up && self.connected(id, source) && in_election && from.flushed >= length(until);
        if !answers {
            return Ok(());
        }
        let bytes = from.wal[..length(until)].to_vec();
        let begin = self.nodes[&id].wal.len();
        let end = self.rng.between(begin + 1, bytes.len());
        let node = self.node(id);
        node.wal.extend_from_slice(&bytes[begin..end]);
        if end == bytes.len() {
            node.flushed = end;
        }
        invariants::invariant_bytes(&self.nodes[&id].wal, &bytes, "fetched")
    }

    fn open(&mut self, id: NodeId, history: &TimelineHistory, safe_lsn: Lsn) -> Verdict {
        let timeline = history.latest();
        let serial = self.number();
        let node = self.node(id);
        let end_of_recovery = Byte { timeline, writer: node.incarnation, serial };
        node.wal.push(end_of_recovery);
        node.opened = Some(timeline);
        node.safe = node.safe.max(length(safe_lsn));
        node.primary = Some(Primary {
            timeline,
            published: length(safe_lsn),
            rule: node.state.sync.clone(),
            wanted: None,
            acks: BTreeMap::new(),
            confirmation: Confirmation::new(id, timeline, node.state.voters()),
            round: 0,
            reads: Vec::new(),
        });
        let incarnation = node.incarnation;
        let before = self.opened.insert(timeline, (id, incarnation));
        invariants::after_open(self, id, timeline, before)
    }

    /// The primary shows and acknowledges what its rules allow.
    pub fn publish(&mut self, id: NodeId) -> Verdict {
        let forgets = self.config.cheat == Cheat::ForgetsTheOldRule;
        let node = self.node(id);
        let Some(primary) = &mut node.primary else { return Ok(()) };
        primary.publish(node.flushed, forgets);
        let (published, timeline) = (primary.published, primary.timeline);
        node.safe = node.safe.max(published);
        node.apply_safe();
        let prefix = node.wal[..published].to_vec();
        invariants::after_acknowledge(self, timeline, prefix)
    }

    /// The primary wants another sync list, or proposes the one that it wants.
    pub fn change_sync_list(&mut self, id: NodeId, all: bool) {
        let damaged: BTreeSet<NodeId> =
            self.nodes[&id].heard.iter().filter(|(_, s)| s.report.damaged).map(|(n, _)| *n).collect();
        let coin = self.rng.next();
        let node = self.node(id);
        let Some(primary) = &mut node.primary else { return };
        if primary.timeline != node.state.timeline() {
            return;
        }
        let (mode, state) = (node.state.settings.sync_mode, &node.state);
        match &mut primary.wanted {
            None => {
                let streams = |node: &NodeId| primary.acks.contains_key(node) && !damaged.contains(node);
                let listable = state.members.iter().filter(|(n, m)| !m.no_sync && !m.witness && streams(n));
                let chosen =
                    listable.enumerate().filter(|(index, _)| all || coin >> index & 1 == 0).map(|(_, (n, _))| *n);
                let members: BTreeSet<NodeId> = chosen.collect();
                let asked = if state.settings.synchronous_standby_names.contains('2') { 2 } else { 1 };
                let acks = if mode == SyncMode::Required { asked } else { asked.min(members.len() as u32) };
                let list = match mode {
                    SyncMode::Async => SyncList { mode, members: BTreeSet::new(), acks: 0 },
                    SyncMode::Preferred | SyncMode::Required => SyncList { mode, members, acks },
                };
                if list != primary.rule {
                    primary.wanted = Some((list, None));
                }
            }
            Some((sync, Some(generation))) => {
                // The proposal may have been lost: make the same one again. At most one of them is carried out.
                let (generation, sync, timeline) = (*generation, sync.clone(), primary.timeline);
                let damage_epochs = primary.acks.iter().map(|(node, ack)| (*node, ack.epoch)).collect();
                let command = Command::SetSync { generation, timeline, sync, damage_epochs };
                self.send(Message::Command { from: id, command });
            }
            Some((sync, None)) => {
                let (generation, sync) = (node.state.generation, sync.clone());
                if !primary.wanted_holds(node.flushed) {
                    // It cannot be had now.
                    primary.wanted = if coin.is_multiple_of(4) { None } else { primary.wanted.take() };
                    return;
                }
                let damage_epochs = primary.acks.iter().map(|(node, ack)| (*node, ack.epoch)).collect();
                primary.wanted = Some((sync.clone(), Some(generation)));
                let timeline = primary.timeline;
                let command = Command::SetSync { generation, timeline, sync, damage_epochs };
                self.send(Message::Command { from: id, command });
            }
        }
    }
}
