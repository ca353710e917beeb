//! What the primary knows of its standbys: connections, acknowledgements, and whether they can be believed.
//!
//! **An acknowledgement outlives its connection.** A standby that acknowledged a flush has it on its disk, whether the
//! connection still stands or not, and loses it in two ways only: its disk fails it, or it truncates. Before it does
//! either it persists `damaged` and counts one damage epoch more (design, "Changing the sync list"). So the last
//! acknowledged flush of a listed standby keeps counting under the list's rule after a disconnect: while the damage
//! epoch stays it is simply true, and once the standby is damaged no election counts it, so that any
//! `|members| - acks + 1` *undamaged* members still hold one of the others that acknowledged.
//!
//! The same holds for what it has written and not flushed yet, but for a crash of its host: a process that dies leaves
//! what it wrote to its operating system, and its recovery flushes that before it says where it stands. That is the one
//! exception that INV-DURABLE makes for `remote_write`.
//!
//! What does not outlive it:
//! - a newer connection of the node supersedes the older: whatever the older still says is ignored;
//! - the first acknowledgement of a connection replaces what earlier ones had told: what was said last is believed;
//! - a damage epoch larger than the one of the acknowledgements voids them, and a connection that was made under a
//!   smaller epoch than is known by now is not listened to. [`crate::command::Command::SetSync`] carries the epochs.

use std::collections::BTreeMap;

use understudy_types::{Incarnation, Lsn, NodeId};

/// A walsender's connection: numbered by the shell, never twice in one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(u64);

impl ConnectionId {
    /// The connection with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// How far a standby got on the primary's timeline. `write >= flush >= apply`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ack {
    /// Written to its operating system.
    pub write: Lsn,
    /// On its disk.
    pub flush: Lsn,
    /// Visible on it.
    pub apply: Lsn,
}

/// What a walsender does for its standby (PostgreSQL's `WalSndState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum WalSenderState {
    /// Connected; nothing was sent yet.
    #[default]
    Startup,
    /// Its lag was never zero yet.
    Catchup,
    /// Its lag was zero at least once on this connection.
    Streaming,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Standbys {
    by_node: BTreeMap<NodeId, Standby>,
    believed: Believed,
}

/// What counts: the acknowledged positions of each node that has acknowledged and is believed.
///
/// Invariant: the same nodes in all three; of one node, write >= flush >= apply.
#[derive(Debug, Clone, Default)]
pub(super) struct Believed {
    pub writes: BTreeMap<NodeId, Lsn>,
    pub flushes: BTreeMap<NodeId, Lsn>,
    pub applies: BTreeMap<NodeId, Lsn>,
}

impl Believed {
    fn insert(&mut self, node: NodeId, ack: Ack) {
        self.writes.insert(node, ack.write);
        self.flushes.insert(node, ack.flush);
        self.applies.insert(node, ack.apply);
    }

    fn retain(&mut self, keep: impl Fn(NodeId) -> bool) {
        for positions in [&mut self.writes, &mut self.flushes, &mut self.applies] {
            positions.retain(|node, _| keep(*node));
        }
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct Standby {
    /// None: it is not connected.
    pub connection: Option<Connection>,
    /// Whether it was ever connected to this primary on this timeline.
    pub was_connected: bool,
    /// The largest damage epoch that is known of it.
    pub damage_epoch: u64,
    /// What it said of itself last.
    pub report: Option<Report>,
    /// For people; where it counts it is in [`Believed`].
    pub ack: Ack,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Connection {
    pub id: ConnectionId,
    pub incarnation: Incarnation,
    pub damage_epoch: u64,
    pub state: WalSenderState,
    has_acked: bool,
}

/// What an acknowledgement changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AckEffect {
    /// The connection is superseded, gone, or from before a damage.
    Nothing,
    /// From now on the standby may be listed.
    FirstOfConnection,
    Further,
}

/// What a beat says that matters to the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// The node's process.
    pub incarnation: Incarnation,
    /// Whether it counts as damaged.
    pub damaged: bool,
    /// How often it was.
    pub damage_epoch: u64,
    /// Whether it was started with `no_sync`, whatever its tag is.
    pub no_sync: bool,
}

impl Standby {
    /// Whether its WAL may lack what it once acknowledged, as far as is known. `recorded_epoch` is the one in the
    /// cluster state: with a larger one and no report under it, it has been damaged since.
    pub fn is_damaged(&self, recorded_epoch: u64) -> bool {
        match self.report {
            Some(report) if report.damage_epoch == self.damage_epoch => report.damaged,
            Some(_) | None => self.damage_epoch > recorded_epoch,
        }
    }

    /// Whether it said that it is not to be listed.
    pub fn wants_no_sync(&self) -> bool {
        self.report.is_some_and(|report| report.no_sync)
    }

    /// Whether its connection may put it on the list: it streams, has acknowledged, and is of the process and the
    /// damage epoch that the node has by its reports.
    pub fn is_streaming(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| {
            connection.state == WalSenderState::Streaming
                && connection.has_acked
                && connection.damage_epoch == self.damage_epoch
                && self.report.is_none_or(|report| report.incarnation == connection.incarnation)
        })
    }
}

impl Standbys {
    pub fn get(&self, node: NodeId) -> Option<&Standby> {
        self.by_node.get(&node)
    }

    /// What counts.
    pub fn believed(&self) -> &Believed {
        &self.believed
    }

    pub fn connected(&mut self, id: ConnectionId, node: NodeId, incarnation: Incarnation, damage_epoch: u64) {
        self.learn_damage_epoch(node, damage_epoch);
        let standby = self.by_node.entry(node).or_default();
        let state = WalSenderState::Startup;
        standby.connection = Some(Connection { id, incarnation, damage_epoch, state, has_acked: false });
        standby.was_connected = true;
    }

    pub fn acked(&mut self, id: ConnectionId, ack: Ack) -> AckEffect {
        let Some((node, standby)) = find(&mut self.by_node, id) else { return AckEffect::Nothing };
        let Some(connection) = &mut standby.connection else { return AckEffect::Nothing };
        if connection.damage_epoch != standby.damage_epoch {
            return AckEffect::Nothing;
        }
        let is_first = !std::mem::replace(&mut connection.has_acked, true);
        let before = if is_first { Ack::default() } else { standby.ack };
        standby.ack = Ack {
            write: ack.write.max(before.write),
            flush: ack.flush.max(before.flush),
            apply: ack.apply.max(before.apply),
        };
        let ack = standby.ack;
        self.believed.insert(node, ack);
        if is_first { AckEffect::FirstOfConnection } else { AckEffect::Further }
    }

    /// Returns whether the connection is a present one.
    pub fn changed_state(&mut self, id: ConnectionId, state: WalSenderState) -> bool {
        let Some((_, standby)) = find(&mut self.by_node, id) else { return false };
        if let Some(connection) = &mut standby.connection {
            connection.state = state;
        }
        true
    }

    /// Returns whether the connection was a present one.
    pub fn disconnected(&mut self, id: ConnectionId) -> bool {
        let Some((_, standby)) = find(&mut self.by_node, id) else { return false };
        standby.connection = None;
        true
    }

    /// Returns whether it says anything new. A report of a smaller damage epoch is an old one.
    pub fn reported(&mut self, node: NodeId, report: Report) -> bool {
        self.learn_damage_epoch(node, report.damage_epoch);
        let standby = self.by_node.entry(node).or_default();
        if report.damage_epoch < standby.damage_epoch || standby.report == Some(report) {
            return false;
        }
        standby.report = Some(report);
        true
    }

    pub fn learn_damage_epoch(&mut self, node: NodeId, damage_epoch: u64) {
        let standby = self.by_node.entry(node).or_default();
        if damage_epoch > standby.damage_epoch {
            standby.damage_epoch = damage_epoch;
            standby.ack = Ack::default();
            self.believed.retain(|other| other != node);
        }
    }

    /// Forgets everybody who is neither connected nor to be kept.
    pub fn retain(&mut self, keep: impl Fn(NodeId) -> bool) {
        self.by_node.retain(|node, standby| standby.connection.is_some() || keep(*node));
        let by_node = &self.by_node;
        self.believed.retain(|node| by_node.contains_key(&node));
    }
}

fn find(by_node: &mut BTreeMap<NodeId, Standby>, id: ConnectionId) -> Option<(NodeId, &mut Standby)> {
    by_node
        .iter_mut()
        .find(|(_, standby)| standby.connection.as_ref().is_some_and(|connection| connection.id == id))
        .map(|(node, standby)| (*node, standby))
}
