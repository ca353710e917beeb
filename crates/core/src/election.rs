//! Elections: who may be promoted, where the new timeline begins, who wins, and who has what.
//!
//! Run by the Raft leader while an election is open, on one set of reports: whatever is decided is decided from
//! the same set, so that S, F, the winner and the new sync list fit together (design, "Failover", 4 to 6).
//!
//! | word | what it is |
//! |---|---|
//! | sealed | reported a complete seal for the timeline that is being decided, not for an earlier or later one |
//! | counted | sealed, with data, undamaged, and not staying out: what it has is believed |
//! | position | the end of the longest prefix of a node's WAL that lies on Raft's history; nothing else is compared |
//! | S | the highest position among the counted: the new timeline begins there |
//! | F | the highest LSN that may have been acknowledged: the new timeline is safe up to there from its first moment |
//!
//! A majority of voters sealed, so no older primary is confirmed any more (INV-LINEAR); enough of the sync list
//! sealed, so at least one of the counted has everything that was acknowledged, and nothing more is (INV-DURABLE,
//! INV-FENCED).
//!
//! A damaged node's seal fences like any other and counts towards the majority. Its data counts for nothing: not
//! for the sync list's share, not for S, not as a winner or a source, not for the new list. It may lack what it
//! acknowledged, and a log that was found corrupt once is not what a new timeline should be built on. Nothing is
//! lost by leaving it out: the qualifying set has everything acknowledged without it.
//!
//! What it refuses to do: to look at LSNs that are not positions, and to decide on the word of a node that was
//! not heard lately.

mod blocked;
mod qualify;
mod rank;

use std::collections::{BTreeMap, BTreeSet};

use understudy_types::{Incarnation, Lsn, NodeId, SyncMode};

pub use self::blocked::{Blocked, Unmet};
pub use self::qualify::{Basis, Qualified, highest_acknowledged, may_promote};
pub use self::rank::{Criterion, NotWinner, Ranking, rank};
use crate::observation::{FetchOrder, NodeReport};
use crate::state::{ClusterState, SyncList};
use crate::sync::StandbyNames;

/// What the members said that were heard lately, the observer included.
pub type Reports<'a> = BTreeMap<NodeId, &'a NodeReport>;

/// How an election goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Propose it.
    Promote(Promotion),
    /// The winner lacks WAL: tell it where to get it, and decide again when it says that it has it.
    Fetch {
        /// For the winner.
        order: FetchOrder,
        /// Who it is and why.
        ranking: Ranking,
    },
}

/// The outcome of an election.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promotion {
    /// Who opens the timeline.
    pub node: NodeId,
    /// This process start and no other.
    pub incarnation: Incarnation,
    /// S.
    pub switch_lsn: Lsn,
    /// F.
    pub safe_lsn: Lsn,
    /// Who else has everything up to F.
    pub sync: SyncList,
    /// Why this node.
    pub ranking: Ranking,
}

/// Decides the open election of `state` from `reports`, or says what is missing.
///
/// `primary_end` is the last known position of the old primary, dead or alive; it matters in mode `async` only.
/// `leader` is the Raft leader, who decides.
///
/// # Errors
/// [`Blocked`] when nobody may be promoted by these reports.
pub fn decide(
    state: &ClusterState,
    reports: &Reports<'_>,
    primary_end: Option<Lsn>,
    leader: NodeId,
) -> Result<Decision, Blocked> {
    let qualified = may_promote(state, reports, primary_end)?;
    let ranking = rank(state, reports, &qualified, leader)?;
    let winner = ranking.winner;
    if let Some(source) = ranking.source {
        let order = FetchOrder { election: state.fence(), winner, source, until: qualified.switch_lsn };
        return Ok(Decision::Fetch { order, ranking });
    }
    Ok(Decision::Promote(Promotion {
        node: winner,
        incarnation: ranking.incarnation,
        switch_lsn: qualified.switch_lsn,
        safe_lsn: qualified.safe_lsn,
        sync: new_sync_list(state, &qualified, winner),
        ranking,
    }))
}

/// The sync list of the new timeline: the other eligible counted nodes that have everything up to F. It is the truth
/// from the first moment (INV-DURABLE); the new primary changes it afterwards if the setting wants another.
///
/// The mode is that of the settings, whatever it was before: a list whose members all have everything up to F is
/// true under every mode.
pub fn new_sync_list(state: &ClusterState, qualified: &Qualified, winner: NodeId) -> SyncList {
    // A setting that does not parse was refused when it was made; should one be there, commits wait for somebody.
    let wanted = StandbyNames::parse(&state.settings.synchronous_standby_names).map_or(1, |names| names.wanted_acks());
    let has_all = |node: NodeId| qualified.positions.get(&node).is_some_and(|at| *at >= qualified.safe_lsn);
    let members = state
        .members
        .iter()
        .filter(|(node, member)| **node != winner && member.is_eligible() && !member.no_sync && has_all(**node))
        .map(|(node, _)| *node)
        .collect();
    sync_list(state.settings.sync_mode, wanted, members)
}

/// A list of `members` who all have everything, when `wanted` acknowledgements are asked for.
///
/// | mode | asked for | members | acks |
/// |---|---|---|---|
/// | `async`, or nobody is asked for | | {} | 0 |
/// | `preferred` | 2 | {b} | 1 |
/// | `preferred` | 1 | {} | 0: the primary alone is eligible |
/// | `required` | 2 | {b} | 2: commits wait |
pub fn sync_list(mode: SyncMode, wanted: u32, members: BTreeSet<NodeId>) -> SyncList {
    let there = u32::try_from(members.len()).unwrap_or(u32::MAX);
    match mode {
        SyncMode::Async => SyncList { mode, members: BTreeSet::new(), acks: 0 },
        SyncMode::Preferred | SyncMode::Required if wanted == 0 => SyncList { mode, members: BTreeSet::new(), acks: 0 },
        SyncMode::Preferred => SyncList { mode, acks: wanted.min(there), members },
        SyncMode::Required => SyncList { mode, acks: wanted, members },
    }
}

/// Whether `report` is a complete seal for the timeline that `state` decides.
///
/// An incomplete seal counts for nothing, not even towards the majority of voters: the node may still have
/// written bytes on their way to the disk, so its position does not stand yet.
///
/// A node that follows or opened the very timeline that is being decided knows more than this state: the election is
/// over. Its promise stands, but its WAL grows again, and by the old history that would look like a position: a
/// leader that has not heard of the promotion would have somebody fetch the new timeline as if it were the old.
pub fn is_sealed(state: &ClusterState, report: &NodeReport) -> bool {
    let deciding = state.fence();
    let moved_on = report.timeline >= deciding || report.wal_end.timeline >= deciding;
    !moved_on && report.seal.is_some_and(|seal| seal.complete && seal.timeline == deciding)
}

/// The positions of the counted nodes.
fn counted_positions(state: &ClusterState, reports: &Reports<'_>) -> BTreeMap<NodeId, Lsn> {
    let history = state.timeline_history();
    let believed = |node: &NodeId, report: &NodeReport| {
        state.members.get(node).is_some_and(|member| !member.witness)
            && is_sealed(state, report)
            && !report.damaged
            && report.stays_out.is_none()
    };
    reports
        .iter()
        .filter(|(node, report)| believed(node, report))
        .map(|(node, report)| {
            // Only what is on disk. After a complete seal that is everything, and after a fetch too.
            let end = understudy_types::Position { lsn: report.wal_end.lsn.min(report.flush_lsn), ..report.wal_end };
            (*node, history.position(end))
        })
        .collect()
}

#[cfg(test)]
#[path = "election/fixture.rs"]
pub(crate) mod fixture;
#[cfg(test)]
#[path = "election/oracle_tests.rs"]
mod oracle_tests;
#[cfg(test)]
#[path = "election/tests.rs"]
mod tests;
