//! Commands: how the cluster state changes.
//!
//! [`apply`] runs inside the Raft state machine on every node. It is total: a command that does not fit is
//! rejected with the reason and changes nothing. Every command but Bootstrap carries the generation that it was
//! planned against, so a stale or repeated one is rejected.
//!
//! Proposers check far more than [`apply`] can: who sealed and who has what is not in the state. What stands
//! here is what keeps two proposers who both mean well from contradicting each other, and the state from being
//! nonsense.
//!
//! | command | carried out only |
//! |---|---|
//! | Bootstrap | once |
//! | BeginElection | for the timeline after the present one, while no election is open |
//! | Promote | for the timeline of the open election, of an eligible member, with F <= S |
//! | SetSync | by the present timeline's primary, while no election is open (INV-DURABLE) |
//! | Configure | when every change is known and in bounds, and the settings fit together |
//! | ClearDamage | while no election is open, of a node that is neither on the sync list nor the primary |
//! | ReplaceMember | while no election is open and nobody is joining, of a node as for ClearDamage, by one that never was a member |
//! | Retag | while no election is open; as `no_sync` only a node that is not on the sync list; while somebody can be promoted after it |
//! | AddVoter | while no election is open, of the node that is joining and does not vote yet |
//! | FinishJoin | while no election is open, of the node that is joining and votes |
//! | RecordOutage | once for a timeline |

mod apply;
mod members;
mod rejection;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use understudy_types::{Generation, Incarnation, Lsn, NodeId, SegmentSize, SystemId, TimelineId};

pub use self::apply::apply;
pub use self::rejection::{Rejection, StillCounted};
use crate::state::{Member, Settings, SyncList};

/// What is written into the Raft log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first command of a cluster. Rejected when there is a state already.
    Bootstrap {
        /// Drawn by the proposer.
        system_id: SystemId,
        /// The initial members.
        members: BTreeMap<NodeId, Member>,
        /// Of every node's WAL.
        segment_size: SegmentSize,
        /// The initial settings.
        settings: Settings,
    },
    /// The next timeline is now being decided. Never abandoned: it ends with a Promote.
    BeginElection {
        /// Planned against.
        generation: Generation,
        /// The one after the present timeline.
        timeline: TimelineId,
        /// For people.
        reason: String,
    },
    /// Ends the election.
    Promote {
        /// Planned against.
        generation: Generation,
        /// That of the election.
        timeline: TimelineId,
        /// Who opens it.
        node: NodeId,
        /// This process start and no other.
        incarnation: Incarnation,
        /// S: where the new timeline begins.
        switch_lsn: Lsn,
        /// F: the highest LSN that may have been acknowledged.
        safe_lsn: Lsn,
        /// Who else has everything up to F.
        sync: SyncList,
        /// Unix time in milliseconds, for people.
        time_ms: i64,
    },
    /// The primary changes the sync-standby list. Rejected while an election is open.
    SetSync {
        /// Planned against.
        generation: Generation,
        /// The timeline that the proposer opened.
        timeline: TimelineId,
        /// The new list.
        sync: SyncList,
        /// The damage epoch under which each member of the list acknowledged.
        damage_epochs: BTreeMap<NodeId, u64>,
    },
    /// A damaged node asks to count again. Carried out only while it is off the sync list, and not the primary:
    /// the primary counts by itself, whatever the list says.
    ClearDamage {
        /// Planned against.
        generation: Generation,
        /// The node.
        node: NodeId,
        /// How often it was marked damaged.
        damage_epoch: u64,
    },
    /// The name of a node that lost its data directory goes to the node that came up in its place. The old one stops
    /// voting with this; the new one votes from its AddVoter on.
    ReplaceMember {
        /// Planned against.
        generation: Generation,
        /// Whose data is gone.
        old: NodeId,
        /// Who came in its place.
        new: NodeId,
        /// Where it is reached.
        address: String,
        /// Its tag.
        failover_priority: u32,
        /// Its tag.
        no_sync: bool,
    },
    /// A member was started with other tags than the state has. Proposed by that member alone.
    Retag {
        /// Planned against.
        generation: Generation,
        /// Which.
        node: NodeId,
        /// As it is to be.
        failover_priority: u32,
        /// As it is to be. A listed node drops off the sync list first, by what its beats say.
        no_sync: bool,
    },
    /// The node that is joining votes from now on. Proposed by the Raft leader alone: see [`crate::membership`].
    AddVoter {
        /// Planned against.
        generation: Generation,
        /// Which.
        node: NodeId,
    },
    /// The primary goes by the voters with the node that joined: the next change may come. Proposed by the Raft leader
    /// alone: see [`crate::membership`].
    FinishJoin {
        /// Planned against.
        generation: Generation,
        /// Which.
        node: NodeId,
    },
    /// How long writes were away before a timeline was opened. For people.
    RecordOutage {
        /// The timeline that was opened.
        timeline: TimelineId,
        /// From the last moment at which the primary before was known to be well to the first acknowledgement after.
        outage_ms: u64,
    },
    /// An operator changes settings: all of these, or none. The sync list follows by itself, through SetSync.
    Configure {
        /// Planned against.
        generation: Generation,
        /// By name; the texts are what [`crate::settings::Setting::set`] takes.
        changes: BTreeMap<String, String>,
    },
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Carried out; the state has this generation now.
    Applied {
        /// Of the state.
        generation: Generation,
    },
    /// Changed nothing.
    Rejected {
        /// For the log and for people.
        reason: Rejection,
    },
}
