//! What this node knows of the others: kept by the agent alone, from mesh events.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use understudy_core::observation::{NodeReport, Observed};
use understudy_types::{Lsn, NodeId};

use crate::mesh::{Link, MeshEvent};
use crate::view::NodeSeen;

/// One other node.
#[derive(Debug)]
struct Peer {
    heard_at: Option<Instant>,
    report: Option<Arc<NodeReport>>,
    /// Its beat streams to us that stand. More than one while an old one is not known to be dead yet.
    streams_in: u32,
    /// Ours to it.
    link: Option<Link>,
    /// Ours to it stood once.
    was_up: bool,
    /// Since when we cannot have the connection to it that we once had: nobody listens there, or nobody answers.
    lost_since: Option<Instant>,
}

/// The other nodes by id.
#[derive(Debug, Default)]
pub struct Table {
    peers: BTreeMap<NodeId, Peer>,
}

/// What an event changed that somebody waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Nothing that cannot wait for the next beat.
    Routine,
    /// A node's seal, role, incarnation or health is not what it was, or a connection was lost or made.
    Urgent,
}

impl Peer {
    fn new() -> Self {
        Self { heard_at: None, report: None, streams_in: 0, link: None, was_up: false, lost_since: None }
    }

    /// Lost, and nobody listens there any more.
    fn is_refused(&self) -> bool {
        self.was_up && self.streams_in == 0 && self.link == Some(Link::Refused)
    }

    fn is_lost(&self, patience: Duration, now: Instant) -> bool {
        let lasts = |since: Instant| now.saturating_duration_since(since) >= patience;
        self.is_refused() || self.lost_since.is_some_and(lasts)
    }
}

/// Whether two reports of a node differ in what others wait for.
pub fn differ_urgently(old: &NodeReport, new: &NodeReport) -> bool {
    old.incarnation != new.incarnation
        || old.role != new.role
        || old.timeline != new.timeline
        || old.seal != new.seal
        || old.damaged != new.damaged
        || old.primary_refused != new.primary_refused
        || old.lost != new.lost
        || old.confirmed != new.confirmed
        || old.failed_to_open != new.failed_to_open
        || old.could_not_fetch != new.could_not_fetch
        || old.stays_out != new.stays_out
        || old.seeding_from != new.seeding_from
        || old.raft_leader != new.raft_leader
        || (old.lease_left_ms == 0) != (new.lease_left_ms == 0)
        || (new.seal.is_some_and(|seal| seal.complete) && old.wal_end != new.wal_end)
}

impl Table {
    /// Takes in what the mesh says. A fetch order is the agent's own business.
    pub fn handle(&mut self, event: &MeshEvent) -> Change {
        match event {
            MeshEvent::Report { from, report, at, .. } => {
                let peer = self.peers.entry(*from).or_insert_with(Peer::new);
                peer.heard_at = Some(*at);
                let urgent = peer.report.as_ref().is_none_or(|old| differ_urgently(old, report));
                peer.report = Some(Arc::new((**report).clone()));
                if urgent { Change::Urgent } else { Change::Routine }
            }
            MeshEvent::Opened { from } => {
                self.peers.entry(*from).or_insert_with(Peer::new).streams_in += 1;
                Change::Routine
            }
            MeshEvent::Closed { from } => {
                let peer = self.peers.entry(*from).or_insert_with(Peer::new);
                peer.streams_in = peer.streams_in.saturating_sub(1);
                Change::Urgent
            }
            MeshEvent::Link { to, link } => {
                let peer = self.peers.entry(*to).or_insert_with(Peer::new);
                peer.was_up |= *link == Link::Up;
                let lost = peer.was_up && *link != Link::Up;
                peer.lost_since = lost.then(|| peer.lost_since.unwrap_or_else(Instant::now));
                peer.link = Some(link.clone());
                Change::Urgent
            }
        }
    }

    /// How long ago `node` was heard; none for never.
    pub fn heard(&self, node: NodeId, now: Instant) -> Option<Duration> {
        self.peers.get(&node)?.heard_at.map(|at| now.saturating_duration_since(at))
    }

    /// The nodes that we had a connection to, lost it, and cannot have a new one: at once when its stream to us is gone, too.
    /// A node whose own stream still stands lives, but nobody can ask it for anything: something answers in its
    /// place, or swallows what is sent to it. That counts once it has lasted for `patience`, and so does silence.
    pub fn lost(&self, patience: Duration, now: Instant) -> BTreeSet<NodeId> {
        self.peers.iter().filter(|(_, peer)| peer.is_lost(patience, now)).map(|(id, _)| *id).collect()
    }

    /// Whom we heard within `timeout`.
    pub fn hears(&self, timeout: Duration, now: Instant) -> BTreeSet<NodeId> {
        let recent = |peer: &Peer| peer.heard_at.is_some_and(|at| now.saturating_duration_since(at) < timeout);
        self.peers.iter().filter(|(_, peer)| recent(peer)).map(|(id, _)| *id).collect()
    }

    /// From where on WAL must be kept for nodes that are seeded, of those that were heard within `timeout`.
    pub fn needed_from(&self, timeout: Duration, now: Instant) -> Option<Lsn> {
        let recent = |peer: &&Peer| peer.heard_at.is_some_and(|at| now.saturating_duration_since(at) < timeout);
        self.peers.values().filter(recent).filter_map(|peer| peer.report.as_ref()?.seeding_from).min()
    }

    /// Every node that was ever heard, with its report.
    pub fn reports(&self) -> impl Iterator<Item = (NodeId, &Arc<NodeReport>)> {
        self.peers.iter().filter_map(|(id, peer)| Some((*id, peer.report.as_ref()?)))
    }

    /// For the planner. `to_ms` turns an instant into the milliseconds that it counts in.
    pub fn observed(&self, to_ms: impl Fn(Instant) -> u64) -> BTreeMap<NodeId, Observed> {
        let observed = |peer: &Peer| {
            Some(Observed {
                heard_at_ms: to_ms(peer.heard_at?),
                connected: peer.link == Some(Link::Up),
                refused: peer.is_refused(),
                report: (**peer.report.as_ref()?).clone(),
            })
        };
        self.peers.iter().filter_map(|(id, peer)| Some((*id, observed(peer)?))).collect()
    }

    /// For people.
    pub fn seen(&self, now: Instant) -> BTreeMap<NodeId, NodeSeen> {
        let seen = |peer: &Peer| {
            let heard_ms_ago =
                u64::try_from(now.saturating_duration_since(peer.heard_at?).as_millis()).unwrap_or(u64::MAX);
            let problem = match &peer.link {
                Some(Link::Up) | None => None,
                Some(Link::Refused) => Some("connection refused: nobody listens at its address".to_owned()),
                Some(Link::Down { why }) => Some(why.clone()),
            };
            Some(NodeSeen {
                heard_ms_ago,
                refused: peer.is_refused(),
                report: Arc::clone(peer.report.as_ref()?),
                problem,
            })
        };
        self.peers.iter().filter_map(|(id, peer)| Some((*id, seen(peer)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId::new(2);

    fn table(events: &[MeshEvent]) -> Table {
        let mut table = Table::default();
        for event in events {
            table.handle(event);
        }
        table
    }

    fn link(link: Link) -> MeshEvent {
        MeshEvent::Link { to: PEER, link }
    }

    /// At once, as far as a test can tell.
    fn is_refused(table: &Table) -> bool {
        !table.lost(Duration::from_secs(3_600), Instant::now()).is_empty()
    }

    #[test]
    fn a_node_counts_as_refused_only_after_it_was_connected_and_both_ways_are_gone() {
        assert!(!is_refused(&table(&[link(Link::Refused)])), "it may just not have started yet");
        let lost = [link(Link::Up), MeshEvent::Opened { from: PEER }, link(Link::Refused)];
        assert!(!is_refused(&table(&lost)), "its own stream to us still stands");
        let dead =
            [link(Link::Up), MeshEvent::Opened { from: PEER }, MeshEvent::Closed { from: PEER }, link(Link::Refused)];
        assert!(is_refused(&table(&dead)));
        let silent = [link(Link::Up), link(Link::Down { why: "timed out".to_owned() })];
        assert!(!is_refused(&table(&silent)), "silence is no refusal");
        let back = [link(Link::Up), link(Link::Refused), link(Link::Up)];
        assert!(!is_refused(&table(&back)));
    }

    #[test]
    fn a_node_that_is_heard_counts_as_refused_once_that_has_lasted() {
        let patience = Duration::from_secs(1);
        let later = |table: &Table| !table.lost(patience, Instant::now() + patience).is_empty();
        let opened = || MeshEvent::Opened { from: PEER };
        let firewalled = table(&[link(Link::Up), opened(), link(Link::Refused)]);
        assert!(firewalled.lost(patience, Instant::now()).is_empty());
        assert!(later(&firewalled));
        assert!(!later(&table(&[opened(), link(Link::Refused)])), "it was never connected");
        assert!(!later(&table(&[link(Link::Up), opened(), link(Link::Refused), link(Link::Up)])));
        let timed_out = || link(Link::Down { why: "timed out".to_owned() });
        assert!(later(&table(&[link(Link::Up), opened(), timed_out()])), "its beats come, and nothing gets to it");
        assert!(later(&table(&[link(Link::Up), opened(), link(Link::Refused), timed_out()])));
        assert!(!later(&table(&[opened(), timed_out()])), "it was never connected");
        assert!(!later(&table(&[link(Link::Up), opened(), timed_out(), link(Link::Up)])));
    }
}
