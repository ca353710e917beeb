//! What the applied cluster state says, as far as it matters to the sync list.

use std::collections::BTreeMap;

use understudy_types::{Generation, NodeId, SyncMode, TimelineId};

use super::names::{StandbyNames, StandbyNamesError, SyncMethod};
use super::status::SyncState;
use crate::state::{ClusterState, Member, SyncList};

#[derive(Debug, Clone)]
pub(super) struct Applied {
    /// The primary that asks.
    pub me: NodeId,
    /// The one that it opened.
    pub timeline: TimelineId,
    pub generation: Generation,
    pub standing: Standing,
    pub list: SyncList,
    pub mode: SyncMode,
    pub names: Result<StandbyNames, StandbyNamesError>,
    /// Every data member but the primary: its priority. Zero: not named, or `no_sync`.
    pub candidates: BTreeMap<NodeId, u32>,
    pub damage_epochs: BTreeMap<NodeId, u64>,
}

/// Of the asking primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Primary,
    /// It is being decided who opens the next timeline. Until then this is the primary.
    ElectionOpen,
    Deposed,
}

impl Applied {
    pub fn read(me: NodeId, timeline: TimelineId, state: &ClusterState) -> Self {
        let names = StandbyNames::parse(&state.settings.synchronous_standby_names);
        let priority = |member: &Member| match &names {
            Ok(names) if !member.no_sync => names.priority_of(&member.name).unwrap_or(0),
            Ok(_) | Err(_) => 0,
        };
        let data_members = state.members.iter().filter(|(node, member)| **node != me && !member.witness);
        let is_primary = state.primary().is_some_and(|entry| entry.node == me && entry.switch.timeline == timeline);
        Self {
            me,
            timeline,
            generation: state.generation,
            standing: match (is_primary, &state.election) {
                (false, _) => Standing::Deposed,
                (true, Some(_)) => Standing::ElectionOpen,
                (true, None) => Standing::Primary,
            },
            list: state.sync.clone(),
            mode: state.settings.sync_mode,
            candidates: data_members.map(|(node, member)| (*node, priority(member))).collect(),
            names,
            damage_epochs: state.damage_epochs.clone(),
        }
    }

    /// What a listed standby is, by the method of the setting.
    pub fn listed_state(&self) -> SyncState {
        match self.names.as_ref().map_or(SyncMethod::First, StandbyNames::method) {
            SyncMethod::First => SyncState::Sync,
            SyncMethod::Any => SyncState::Quorum,
        }
    }

    pub fn waits_for_standbys(&self) -> bool {
        match self.mode {
            SyncMode::Preferred | SyncMode::Required => true,
            SyncMode::Async => false,
        }
    }
}
