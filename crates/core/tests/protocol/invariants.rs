//! What must always hold, checked after every event. Each returns what it found wrong.

use understudy_core::command::Command;
use understudy_types::{Incarnation, NodeId, SyncMode, TimelineId};

use crate::node::{Byte, Node, Read, length};
use crate::world::World;

pub type Verdict = Result<(), String>;

fn ensure(holds: bool, wrong: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(wrong()) }
}

fn loses_nothing(world: &World) -> bool {
    world.config.mode != SyncMode::Async
}

/// After every event, about the node that it happened to.
pub fn after_event(world: &World, id: NodeId) -> Verdict {
    let node = &world.nodes[&id];
    invariant_fenced(node)?;
    invariant_writers(world, node)?;
    ensure(node.applied <= node.flushed && node.flushed <= node.wal.len(), || format!("{id} applied what it may lose"))
}

/// INV-FENCED: a node does not write, receive or acknowledge below the timeline that it sealed.
pub fn invariant_fenced(node: &Node) -> Verdict {
    let (id, sealed) = (node.id, node.sealed);
    let primary = node.primary.as_ref().map(|primary| primary.timeline);
    let upstream = node.following.map(|following| following.timeline);
    let fenced = primary.into_iter().chain(upstream).all(|timeline| timeline >= sealed);
    ensure(fenced, || format!("INV-FENCED: {id} sealed {sealed} and is primary of {primary:?}, follows {upstream:?}"))
}

/// INV-ONE-PRIMARY: nobody but the process that opened a timeline ever wrote on it.
pub fn invariant_writers(world: &World, node: &Node) -> Verdict {
    // Older bytes were looked at when they came.
    let recent = node.wal.iter().rev().take(16);
    recent.map(|byte| (byte, world.opened.get(&byte.timeline))).try_for_each(|(byte, opened)| {
        let by_opener = opened.is_some_and(|(_, incarnation)| *incarnation == byte.writer);
        ensure(by_opener, || format!("INV-ONE-PRIMARY: {byte:?} on {} was not written by {opened:?}", node.id))
    })
}

/// INV-BYTES: what two nodes have of the same history is the same.
pub fn invariant_bytes(one: &[Byte], other: &[Byte], what: &str) -> Verdict {
    let common = one.len().min(other.len());
    ensure(one[..common] == other[..common], || format!("INV-BYTES: {what} WAL differs"))
}

/// A timeline was opened.
pub fn after_open(world: &World, id: NodeId, timeline: TimelineId, before: Option<(NodeId, Incarnation)>) -> Verdict {
    ensure(before.is_none(), || format!("INV-ONE-PRIMARY: {timeline} was opened by {before:?} and again by {id}"))?;
    invariant_durable(world, &world.nodes[&id], timeline)
}

/// INV-DURABLE: whoever opens a timeline has everything that was ever acknowledged, byte for byte. One that opens when
/// the next is promoted already has what was acknowledged until then; it can acknowledge nothing more.
pub fn invariant_durable(world: &World, winner: &Node, timeline: TimelineId) -> Verdict {
    let is_late = world.latest().timeline() > timeline;
    let has_all = is_late || !loses_nothing(world) || winner.wal.starts_with(&world.acknowledged);
    ensure(has_all, || {
        let acknowledged = world.acknowledged.len();
        format!("INV-DURABLE: {} opened {timeline} without all of the {acknowledged} acknowledged bytes", winner.id)
    })
}

/// Something was acknowledged, up to and with `prefix`, by the primary of `timeline`.
pub fn after_acknowledge(world: &mut World, timeline: TimelineId, prefix: Vec<Byte>) -> Verdict {
    if loses_nothing(world) {
        invariant_bytes(&prefix, &world.acknowledged, "acknowledged")?;
        // An old primary may learn late that something was safe; but only what every later one kept.
        let later = world.latest().history.iter().filter(|entry| entry.switch.timeline > timeline);
        for entry in later {
            let (safe, by) = (length(entry.safe_lsn), entry.switch.timeline);
            ensure(prefix.len() <= safe, || {
                format!("INV-DURABLE: {timeline} acknowledged {} bytes, but {by} kept {safe}", prefix.len())
            })?;
        }
    }
    if prefix.len() > world.acknowledged.len() || !loses_nothing(world) {
        world.acknowledged = prefix;
    }
    Ok(())
}

/// The cluster state changed.
pub fn after_commit(world: &World, command: &Command) -> Verdict {
    if let Command::Promote { switch_lsn, safe_lsn, timeline, .. } = command {
        ensure(safe_lsn <= switch_lsn, || format!("F {safe_lsn} is beyond S {switch_lsn} of {timeline}"))?;
        let (safe, acknowledged) = (length(*safe_lsn), world.acknowledged.len());
        ensure(safe >= acknowledged || !loses_nothing(world), || {
            format!("INV-DURABLE: {acknowledged} bytes were acknowledged, but F of {timeline} is {safe}")
        })?;
    }
    invariant_list_is_true(world)
}

/// The sync list tells the truth: whichever members an election finds that satisfy it, one of them has everything that
/// was acknowledged. A member that says that it is damaged is not found.
pub fn invariant_list_is_true(world: &World) -> Verdict {
    let state = world.latest();
    let sync = &state.sync;
    let Some(primary) = state.primary().filter(|_| loses_nothing(world)) else { return Ok(()) };
    let has_all = |node: &Node| node.wal[..node.flushed].starts_with(&world.acknowledged) || node.damaged;
    let acks = sync.acks as usize;
    if acks == 0 || sync.members.is_empty() {
        // The primary alone counts. It may have been promoted without having opened yet, and it may be gone.
        return ensure(has_all(&world.nodes[&primary.node]), || {
            format!("INV-DURABLE: the primary {} alone counts, but lacks what was acknowledged", primary.node)
        });
    }
    let having = sync.members.iter().filter(|node| has_all(&world.nodes[node])).count();
    ensure(having >= acks.min(sync.members.len()), || {
        format!("INV-DURABLE: the sync list {sync:?} is not true: {having} have what was acknowledged")
    })
}

/// INV-LINEAR: a read that a quorum confirmed sees everything that was acknowledged before it began.
pub fn invariant_linear(world: &World, id: NodeId, read: Read) -> Verdict {
    ensure(read.visible >= read.acknowledged || !loses_nothing(world), || {
        let Read { visible, acknowledged, .. } = read;
        format!("INV-LINEAR: {id} answered a read at {visible}, though {acknowledged} bytes were acknowledged before")
    })
}

/// INV-VISIBLE: outside mode `async` nobody applied what a new timeline left.
pub fn invariant_visible(world: &World, id: NodeId) -> Verdict {
    let why = &world.nodes[&id].stays_out;
    ensure(!loses_nothing(world), || format!("INV-VISIBLE: {id} would have to undo: {why:?}"))
}
