//! Why a command changed nothing.

use serde::{Deserialize, Serialize};
use understudy_types::{Generation, Lsn, NodeId, NodeName, SystemId, TimelineHistoryError, TimelineId, limits};

use crate::settings::SettingError;

/// Why a command changed nothing. Names what was asked and what is so.
///
/// To a proposer all of them mean the same: look at the present state and plan again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    /// There is a state already.
    #[error("the cluster is bootstrapped already, as system {system_id}")]
    AlreadyBootstrapped {
        /// Of the cluster that is there.
        system_id: SystemId,
    },
    /// Nothing but Bootstrap fits an empty state.
    #[error("the cluster is not bootstrapped yet")]
    NotBootstrapped,
    /// The cluster to be made could not work.
    #[error("cannot bootstrap: {why}")]
    BadBootstrap {
        /// For people.
        why: String,
    },
    /// The state has moved on since the command was planned.
    #[error("planned against generation {planned}, but the cluster state is at {present}; plan again")]
    Stale {
        /// By the command.
        planned: Generation,
        /// Of the state.
        present: Generation,
    },
    /// Only the timeline after the present one can be decided.
    #[error("cannot begin the election of timeline {asked}: the present timeline is {present}, so {next} is next")]
    NotTheNextTimeline {
        /// By the command.
        asked: TimelineId,
        /// Of the state.
        present: TimelineId,
        /// What would fit.
        next: TimelineId,
    },
    /// An election is never abandoned, and the sync list stands still while it lasts.
    #[error("timeline {election} is being decided; wait for the promotion")]
    ElectionOpen {
        /// What is being decided.
        election: TimelineId,
    },
    /// A promotion ends an election.
    #[error("cannot promote to timeline {asked}: {}", match .open { Some(t) => format!("the open election is of timeline {t}"), None => "no election is open".to_owned() })]
    NoSuchElection {
        /// By the command.
        asked: TimelineId,
        /// What is being decided, if anything is.
        open: Option<TimelineId>,
    },
    /// No such node.
    #[error("node {node} is not a member of the cluster")]
    NotAMember {
        /// By the command.
        node: NodeId,
    },
    /// A witness, or failover_priority 0.
    #[error("{name} cannot be promoted: it is {}", if *.witness { "a witness" } else { "of failover_priority 0" })]
    NotEligible {
        /// Of the node.
        name: NodeName,
        /// Else its priority is zero.
        witness: bool,
    },
    /// F is at most S.
    #[error(
        "cannot promote: up to {safe_lsn} may have been acknowledged, but the timeline would begin at {switch_lsn}"
    )]
    SafeBeyondSwitch {
        /// F.
        safe_lsn: Lsn,
        /// S.
        switch_lsn: Lsn,
    },
    /// The switch does not continue the history.
    #[error("cannot promote: {0}")]
    BadSwitch(String),
    /// Only the primary of the present timeline changes the list.
    #[error("the sync list was proposed on timeline {asked}, but the present one is {present}")]
    NotThePresentTimeline {
        /// By the command.
        asked: TimelineId,
        /// Of the state.
        present: TimelineId,
    },
    /// A node cannot stand on the sync list.
    #[error("{name} cannot be on the sync list: it is {why}")]
    NotForTheSyncList {
        /// Of the node.
        name: NodeName,
        /// For people.
        why: SyncListBar,
    },
    /// Outside mode `required` the list must be able to acknowledge.
    #[error("{acks} acknowledgements cannot come from a sync list of {members}")]
    TooManyAcks {
        /// By the command.
        acks: u32,
        /// How many there are.
        members: usize,
    },
    /// What a node acknowledged before it was damaged proves nothing.
    #[error(
        "{name} cannot join the sync list: it acknowledged under damage epoch {acknowledged}, but its WAL was damaged \
         since (epoch {recorded})"
    )]
    AcknowledgedBeforeDamage {
        /// Of the node.
        name: NodeName,
        /// By the command.
        acknowledged: u64,
        /// In the state.
        recorded: u64,
    },
    /// Nothing was changed, whatever else was right.
    #[error("no setting was changed: {}", joined(.errors))]
    BadSettings {
        /// Everything that is wrong.
        errors: Vec<SettingError>,
    },
    /// The list still counts on the node.
    #[error("{name} stays damaged while it is {why}")]
    StillCounted {
        /// Of the node.
        name: NodeName,
        /// For people.
        why: StillCounted,
    },
    /// A node that somebody counts on cannot be replaced.
    #[error("{name} cannot be replaced while it is {why}")]
    StillNeeded {
        /// Of the node.
        name: NodeName,
        /// For people.
        why: StillCounted,
    },
    /// SetSync has to drop it first.
    #[error("{name} cannot be tagged no_sync while it is on the sync list")]
    StillListed {
        /// Of the node.
        name: NodeName,
    },
    /// Somebody must be.
    #[error("{name} cannot have failover_priority 0: no other member could ever be promoted")]
    NobodyEligible {
        /// Of the node.
        name: NodeName,
    },
    /// Voters change one at a time.
    #[error("{name} is joining; wait until it votes")]
    Joining {
        /// Of the node that joins.
        name: NodeName,
    },
    /// An identity is used once.
    #[error("node {node} is or was a member of the cluster already: start it with an empty data directory")]
    NotANewNode {
        /// By the command.
        node: NodeId,
    },
    /// Only a joining node becomes a voter.
    #[error("node {node} is not joining")]
    NotJoining {
        /// By the command.
        node: NodeId,
    },
    /// An outage is recorded once, for a timeline of the history.
    #[error("the outage before timeline {timeline} is recorded already, or there is no such timeline")]
    NoOutageToRecord {
        /// By the command.
        timeline: TimelineId,
    },
}

fn joined(errors: &[SettingError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// What keeps a node off the sync list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncListBar {
    /// It holds no data.
    Witness,
    /// Its tag says so.
    NoSync,
    /// It counts by itself.
    ThePrimary,
}

impl std::fmt::Display for SyncListBar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Witness => "a witness",
            Self::NoSync => "tagged no_sync",
            Self::ThePrimary => "the primary",
        })
    }
}

/// Where a damaged node is still counted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StillCounted {
    /// SetSync has to drop it first.
    OnTheSyncList,
    /// Its seal alone would allow the next promotion.
    AsThePrimary,
}

impl std::fmt::Display for StillCounted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::OnTheSyncList => "on the sync list",
            Self::AsThePrimary => "the primary of the present timeline",
        })
    }
}

impl Rejection {
    /// The members that a Bootstrap names cannot be more than these.
    pub(super) fn too_many_members(count: usize) -> Self {
        Self::BadBootstrap { why: format!("{count} members, at most {} are allowed", limits::MEMBERS_MAX) }
    }
}

impl From<TimelineHistoryError> for Rejection {
    fn from(error: TimelineHistoryError) -> Self {
        Self::BadSwitch(error.to_string())
    }
}
