//! From the role that a node has to the role that it is assigned.
//!
//! Every node runs it whenever its copy of the cluster state or its own condition has changed, carries the actions
//! out, and runs it again. An action is done at most once more than needed: each is idempotent, and each names the
//! timeline that fences it. There is one step at a time where the next depends on how this one ends.
//!
//! | in the state | the node | does |
//! |---|---|---|
//! | an election is open | has not completely sealed for it | Seal |
//! | an election is open | was told to fetch, its WAL ends off the history | Rejoin |
//! | an election is open | was told to fetch | Fetch |
//! | promoted: this node, this process | WAL ends beyond S | Rejoin |
//! | promoted: this node, this process | WAL ends at S | Open |
//! | promoted: this node, another process | | nothing: the Raft leader sees it and begins a new election |
//! | promoted: another node | sealed less than the present timeline | Seal |
//! | promoted: another node | the WAL that it lacks is gone upstream | Seed |
//! | promoted: another node | WAL ends off the history | Rejoin |
//! | promoted: another node | | Follow |
//! | no election is open | applied what is off the history | Seed |
//! | whatever | is being seeded, or stays out | seals, and nothing else |
//!
//! The seal comes first, always: a node that follows timeline T has promised on disk never to acknowledge anything
//! below T again (INV-FENCED), and a primary that learns of an election stops before it does anything else. Only the
//! named process opens, only once, and only a WAL that ends at S (INV-ONE-PRIMARY).
//!
//! A node that has to be seeded begins with it only while no election is open: what it reported when it sealed stays
//! true until the election is over. While it is being seeded it goes on sealing (INV-FENCED), and it does not ask to
//! count again (INV-DURABLE): the data that it reports of is about to be replaced.
//!
//! What it refuses to do: to act on a state that is older than what this node itself has promised. After a restart
//! the Raft state machine catches up from behind; until it is where the seal says it was, nothing happens.

use understudy_types::{Generation, Incarnation, Lsn, NodeId, Position, TimelineHistory, TimelineId};

use crate::observation::{FetchOrder, NodeRole};
use crate::state::{ClusterState, HistoryEntry};

/// A node as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeState {
    /// Itself.
    pub me: NodeId,
    /// This process start.
    pub incarnation: Incarnation,
    /// What it is now. A witness has no data and no use for the fields about WAL.
    pub role: NodeRole,
    /// The timeline that this process opened last, whether or not it is still the primary; none if it opened none.
    pub opened: Option<TimelineId>,
    /// Persisted: nothing below it is acknowledged, granted or confirmed. Zero: no promise yet.
    pub sealed: TimelineId,
    /// This process has flushed everything written before that seal, and receives and writes nothing since.
    pub seal_complete: bool,
    /// End of its WAL and the timeline of the last record.
    pub wal_end: Position,
    /// Up to here its store has applied.
    pub applied: Lsn,
    /// Whom it streams from, or tries to; none when its walreceiver is stopped.
    pub following: Option<Following>,
    /// Its WAL may lack what it acknowledged.
    pub damaged: bool,
    /// How often it was marked damaged.
    pub damage_epoch: u64,
    /// The last order of the Raft leader that it heard.
    pub fetch_order: Option<FetchOrder>,
    /// The timeline that it was promoted to last and failed to open.
    pub failed_to_open: Option<TimelineId>,
    /// The upstream that it followed last on the present timeline has removed the WAL that continues its own, or finds it damaged.
    pub wal_gone: bool,
    /// Why it takes no part: it is being seeded, or waits for help; none when it does.
    pub stays_out: Option<String>,
}

/// An upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Following {
    /// Who.
    pub primary: NodeId,
    /// The timeline that it is followed on: acknowledgements belong to it.
    pub timeline: TimelineId,
}

/// What a node is to do. Carried out in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeAction {
    /// Persist "nothing below `timeline`", stop receiving, acknowledging and confirming, flush what is written; only
    /// then report the seal as complete.
    Seal {
        /// What will be opened, or was opened by somebody else.
        timeline: TimelineId,
    },
    /// The winner of an election gets the WAL that it lacks. Nothing to do when that is under way.
    ///
    /// The source gives only while it is completely sealed for this very election and neither follows nor opened the
    /// timeline yet: afterwards what it has below `until` may be the new timeline's, and the order an old one.
    Fetch {
        /// The election. Void when another timeline is sealed.
        election: TimelineId,
        /// From whom.
        source: NodeId,
        /// Up to here (S).
        until: Lsn,
    },
    /// Cut the WAL back to its position on `history`.
    Rejoin {
        /// Up to the present timeline.
        history: TimelineHistory,
    },
    /// Become the primary of `history.latest()`.
    Open {
        /// Up to the timeline to open. Void when a later one is sealed.
        history: TimelineHistory,
        /// F: safe from the first moment.
        safe_lsn: Lsn,
    },
    /// Stream from `following`, and from nobody else.
    Follow {
        /// The primary. Void when a later timeline is sealed.
        following: Following,
        /// For the positions: up to its timeline.
        history: TimelineHistory,
    },
    /// Stop the walreceiver.
    StopFollowing,
    /// Persist that the node is damaged, then replace its data by that of another node. It takes no part meanwhile, but
    /// goes on voting, sealing and confirming.
    Seed {
        /// For people.
        why: String,
    },
    /// Ask Raft, by [`crate::command::Command::ClearDamage`], to record that nobody counts on this node.
    ProposeClearDamage {
        /// Planned against.
        generation: Generation,
        /// Of this node.
        damage_epoch: u64,
    },
    /// Raft has recorded it: persist that the node is undamaged, unless it was damaged again since.
    ClearDamage {
        /// The damage that is over.
        damage_epoch: u64,
    },
}

/// What `node` is to do to get where `state` wants it. Empty when it is there, or has to wait.
pub fn reconcile(node: &NodeState, state: &ClusterState) -> Vec<NodeAction> {
    let mut actions = Vec::new();
    if !state.is_bootstrapped() || !state.members.contains_key(&node.me) || node.sealed > state.fence() {
        actions.extend(node.following.map(|_| NodeAction::StopFollowing));
        return actions;
    }
    actions.extend(clear_damage(node, state));
    actions.extend(next_step(node, state));
    actions
}

fn next_step(node: &NodeState, state: &ClusterState) -> Option<NodeAction> {
    let fence = state.fence();
    if node.sealed < fence || (state.election.is_some() && !node.seal_complete) {
        return Some(NodeAction::Seal { timeline: fence });
    }
    if node.role == NodeRole::Witness {
        return None;
    }
    if node.stays_out.is_some() {
        return stop_following(node);
    }
    if let Some(why) = needs_undo(node, state) {
        let may_begin = state.election.is_none();
        return stop_following(node).or_else(|| may_begin.then_some(NodeAction::Seed { why }));
    }
    if state.election.is_some() {
        return fetch(node, state);
    }
    let promoted = state.primary()?;
    if promoted.node == node.me { open(node, state, promoted) } else { follow(node, state, promoted) }
}

fn stop_following(node: &NodeState) -> Option<NodeAction> {
    node.following.map(|_| NodeAction::StopFollowing)
}

/// Where the node's WAL leaves the history; its end when it does not.
fn position(node: &NodeState, state: &ClusterState) -> Lsn {
    state.timeline_history().position(node.wal_end)
}

/// The store can only go forward here: a node whose store holds what the history left cannot follow it.
fn needs_undo(node: &NodeState, state: &ClusterState) -> Option<String> {
    let position = position(node, state);
    (node.applied > position).then(|| {
        format!(
            "its store has applied up to {}, but of its WAL only what is before {position} lies on the history of \
             timeline {}",
            node.applied,
            state.timeline()
        )
    })
}

fn rejoin(node: &NodeState, state: &ClusterState) -> Option<NodeAction> {
    let beyond = node.wal_end.lsn > position(node, state);
    beyond.then(|| NodeAction::Rejoin { history: state.timeline_history() })
}

/// While the election is open: sealed, so nothing moves but what the winner lacks.
fn fetch(node: &NodeState, state: &ClusterState) -> Option<NodeAction> {
    let order = node.fetch_order?;
    let mine = order.winner == node.me && order.election == state.fence();
    if !mine || position(node, state) >= order.until {
        return None;
    }
    rejoin(node, state).or(Some(NodeAction::Fetch {
        election: order.election,
        source: order.source,
        until: order.until,
    }))
}

/// This node was promoted.
fn open(node: &NodeState, state: &ClusterState, promoted: &HistoryEntry) -> Option<NodeAction> {
    let timeline = promoted.switch.timeline;
    if let Some(stop) = stop_following(node) {
        return Some(stop);
    }
    let done = node.opened == Some(timeline) || node.failed_to_open == Some(timeline);
    if node.incarnation != promoted.incarnation || done {
        return None;
    }
    if !node.seal_complete {
        return Some(NodeAction::Seal { timeline });
    }
    let history = state.timeline_history();
    // A WAL that ends before S has lost what the node reported. It does not open, and the Raft leader's patience ends.
    rejoin(node, state).or_else(|| {
        let ends_at_switch = node.wal_end.lsn == promoted.switch.switch_lsn;
        ends_at_switch.then_some(NodeAction::Open { history, safe_lsn: promoted.safe_lsn })
    })
}

/// Another node was promoted.
fn follow(node: &NodeState, state: &ClusterState, promoted: &HistoryEntry) -> Option<NodeAction> {
    let following = Following { primary: promoted.node, timeline: promoted.switch.timeline };
    if node.following == Some(following) && !node.wal_gone {
        return None;
    }
    if node.following.is_some() {
        return stop_following(node);
    }
    if node.wal_gone {
        let why = format!(
            "the WAL that follows its own, which ends at {}, was removed upstream, or is damaged there",
            node.wal_end.lsn
        );
        return Some(NodeAction::Seed { why });
    }
    rejoin(node, state).or_else(|| Some(NodeAction::Follow { following, history: state.timeline_history() }))
}

/// A damaged node asks to count again once nobody counts on it. Not while its data is being replaced; and not while it is the primary that was promoted last:
/// its seal alone would allow the next promotion.
fn clear_damage(node: &NodeState, state: &ClusterState) -> Option<NodeAction> {
    let to_be_replaced = node.stays_out.is_some() || node.wal_gone || node.applied > position(node, state);
    if !node.damaged || to_be_replaced {
        return None;
    }
    let damage_epoch = node.damage_epoch;
    if state.damage_epochs.get(&node.me) == Some(&damage_epoch) {
        return Some(NodeAction::ClearDamage { damage_epoch });
    }
    let is_primary = state.primary().is_some_and(|primary| primary.node == node.me);
    let counted_on = is_primary || state.sync.members.contains(&node.me);
    let may_ask = state.election.is_none() && !counted_on;
    may_ask.then_some(NodeAction::ProposeClearDamage { generation: state.generation, damage_epoch })
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
