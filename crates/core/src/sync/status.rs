//! The state of synchronous replication, for people: who is sync, which list is wanted, and what it waits for.

use std::collections::BTreeMap;
use std::fmt;

use understudy_types::{Generation, Lsn, NodeId, SyncMode};

use super::standbys::{Ack, WalSenderState};
use crate::state::SyncList;

/// What [`super::SyncManager::status`] says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncStatus {
    /// The highest LSN that was ever published as safe.
    pub safe_lsn: Lsn,
    /// As commits at level `remote_write` wait for it.
    pub remote_write_lsn: Lsn,
    /// As commits at level `remote_apply` wait for it.
    pub remote_apply_lsn: Lsn,
    /// The rule in force: the list in Raft, as of this generation.
    pub list: SyncList,
    /// Of the applied cluster state.
    pub generation: Generation,
    /// The list that the setting, the mode and the present standbys ask for. Equal to `list` when all is settled.
    pub wanted: SyncList,
    /// A second rule that is in force while the list changes.
    pub change: Option<SyncChange>,
    /// Why the list is not the wanted one, or why commits wait. Empty when all is well.
    pub waits: Vec<SyncWait>,
    /// Every data member but the primary.
    pub standbys: BTreeMap<NodeId, StandbySync>,
}

impl SyncStatus {
    /// Whether what a standby has may be one of the copies that an acknowledgement counted, or will be: it is on the list, or on
    /// the one that the list is changed to.
    pub fn counts_on(&self, standby: NodeId) -> bool {
        let changed = self.change.as_ref().map(|change| &change.list);
        [Some(&self.list), changed].into_iter().flatten().any(|list| list.members.contains(&standby))
    }
}

/// A change of the list that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncChange {
    /// What the list shall be.
    pub list: SyncList,
    /// The generation that it was proposed against; none while its members still lack something.
    pub proposed: Option<Generation>,
}

/// One standby.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandbySync {
    /// As in `pg_stat_replication`.
    pub state: SyncState,
    /// As in `pg_stat_replication`: 1 is best, 0 is never sync.
    pub priority: u32,
    /// Of its connection; none when it is not connected.
    pub connection: Option<WalSenderState>,
    /// What it acknowledged last.
    pub ack: Ack,
    /// Whether it does not count because it is, or was since it was listed, damaged.
    pub damaged: bool,
}

/// PostgreSQL's `pg_stat_replication.sync_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SyncState {
    /// On the list; `FIRST`: each of the listed is waited for.
    Sync,
    /// On the list; `ANY`: as many of the listed as are asked for.
    Quorum,
    /// Named, and not on the list.
    Potential,
    /// Never waited for.
    Async,
}

impl SyncState {
    /// As it is shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Quorum => "quorum",
            Self::Potential => "potential",
            Self::Async => "async",
        }
    }
}

impl fmt::Display for SyncState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What the sync list, or the commits, wait for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SyncWait {
    /// Somebody else was promoted.
    #[error("this node is no longer the primary: nothing more becomes safe here")]
    Deposed,
    /// The list does not change meanwhile.
    #[error("an election is open: the sync list does not change until it has ended")]
    Election,
    /// The list stays as it is.
    #[error("{error}: the sync list stays as it is until the setting is corrected")]
    NamesRefused {
        /// What is wrong.
        error: super::names::StandbyNamesError,
    },
    /// On the way into the list.
    #[error("the new sync list waits for node {node}, which has flushed {flush}, to flush {needs}")]
    CatchUp {
        /// Who.
        node: NodeId,
        /// What it acknowledged.
        flush: Lsn,
        /// The highest LSN that was published as safe.
        needs: Lsn,
    },
    /// On the way into the list: a commit was acknowledged at level `remote_write` that it has not written.
    #[error("the new sync list waits for node {node}, which has written {write}, to write {needs}")]
    CatchUpWrite {
        /// Who.
        node: NodeId,
        /// What it acknowledged.
        write: Lsn,
        /// The highest LSN that was acknowledged at level `remote_write`.
        needs: Lsn,
    },
    /// The new list has been proposed.
    #[error("the new sync list was proposed against generation {generation} and is not known to be recorded by Raft")]
    Raft {
        /// That it was planned against.
        generation: Generation,
    },
    /// The new list holds, and is proposed next.
    #[error("the new sync list is ready to be proposed to Raft")]
    Proposal,
    /// Listed by the promotion.
    #[error("node {node} is on the sync list since the promotion and has not connected yet")]
    Connection {
        /// Who.
        node: NodeId,
    },
    /// In mode `required`; in the others only until the list has changed.
    #[error("too few sync standbys are connected, {present} of {wanted} (mode {mode}): commits wait")]
    TooFew {
        /// As many as are asked for.
        wanted: u32,
        /// As many as are connected.
        present: u32,
        /// Of the wanted list.
        mode: SyncMode,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_counts_on_either_list_while_it_changes() {
        let [listed, coming, other] = [1, 2, 3].map(NodeId::new);
        let list = |node| SyncList { mode: SyncMode::Preferred, members: [node].into(), acks: 1 };
        let mut status = SyncStatus {
            safe_lsn: Lsn::INVALID,
            remote_write_lsn: Lsn::INVALID,
            remote_apply_lsn: Lsn::INVALID,
            list: list(listed),
            generation: Generation::new(1),
            wanted: list(other),
            change: None,
            waits: Vec::new(),
            standbys: BTreeMap::new(),
        };
        assert_eq!([listed, coming, other].map(|node| status.counts_on(node)), [true, false, false]);
        status.change = Some(SyncChange { list: list(coming), proposed: None });
        assert_eq!([listed, coming, other].map(|node| status.counts_on(node)), [true, true, false]);
    }
}
