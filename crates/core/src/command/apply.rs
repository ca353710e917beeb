//! What a committed command makes of the cluster state. Run by the Raft state machine on every node.

use std::collections::BTreeMap;

use understudy_types::{Generation, NodeId, SegmentSize, SyncMode, SystemId, TimelineId, TimelineSwitch, limits};

use super::members::{add_voter, finish_join, record_outage, replace_member, retag};
use super::rejection::{StillCounted, SyncListBar};
use super::{Command, Outcome, Rejection};
use crate::settings;
use crate::state::{ClusterState, Election, HistoryEntry, Member, Settings, SyncList};

/// Carries out `command`, or says why not. A rejected command changes nothing; one that is carried out makes the
/// generation one larger. The same on every node: it looks at nothing but its arguments.
pub fn apply(state: &mut ClusterState, command: &Command) -> Outcome {
    match next_state(state, command) {
        Ok(mut next) => {
            next.generation = state.generation.next();
            *state = next;
            Outcome::Applied { generation: state.generation }
        }
        Err(reason) => Outcome::Rejected { reason },
    }
}

/// The state after `command`, its generation still to be raised. Made beside the present one, so that nothing is
/// half done when a later check fails.
fn next_state(state: &ClusterState, command: &Command) -> Result<ClusterState, Rejection> {
    match command {
        Command::Bootstrap { system_id, members, segment_size, settings } => {
            bootstrap(state, *system_id, members, *segment_size, settings)
        }
        Command::BeginElection { generation, timeline, reason } => {
            check_generation(state, *generation)?;
            check_no_election(state)?;
            let present = state.timeline();
            if *timeline != present.next() {
                return Err(Rejection::NotTheNextTimeline { asked: *timeline, present, next: present.next() });
            }
            let election = Some(Election { timeline: *timeline, reason: reason.clone() });
            Ok(ClusterState { election, ..state.clone() })
        }
        Command::Promote { generation, timeline, node, incarnation, switch_lsn, safe_lsn, sync, time_ms } => {
            check_generation(state, *generation)?;
            let switch = TimelineSwitch { timeline: *timeline, parent: state.timeline(), switch_lsn: *switch_lsn };
            let (safe_lsn, node, incarnation, time_ms) = (*safe_lsn, *node, *incarnation, *time_ms);
            let reason = state.election.as_ref().map_or_else(String::new, |election| election.reason.clone());
            promote(state, HistoryEntry { switch, safe_lsn, node, incarnation, reason, time_ms }, sync)
        }
        Command::SetSync { generation, timeline, sync, damage_epochs } => {
            check_generation(state, *generation)?;
            set_sync(state, *timeline, sync, damage_epochs)
        }
        Command::ClearDamage { generation, node, damage_epoch } => {
            check_generation(state, *generation)?;
            clear_damage(state, *node, *damage_epoch)
        }
        Command::ReplaceMember { generation, old, new, address, failover_priority, no_sync } => {
            check_generation(state, *generation)?;
            let tags = (*failover_priority, *no_sync);
            replace_member(state, *old, *new, address, tags)
        }
        Command::Retag { generation, node, failover_priority, no_sync } => {
            check_generation(state, *generation)?;
            retag(state, *node, (*failover_priority, *no_sync))
        }
        Command::AddVoter { generation, node } => {
            check_generation(state, *generation)?;
            add_voter(state, *node)
        }
        Command::FinishJoin { generation, node } => {
            check_generation(state, *generation)?;
            finish_join(state, *node)
        }
        Command::RecordOutage { timeline, outage_ms } => record_outage(state, *timeline, *outage_ms),
        Command::Configure { generation, changes } => {
            check_generation(state, *generation)?;
            configure(state, changes)
        }
    }
}

fn check_generation(state: &ClusterState, planned: Generation) -> Result<(), Rejection> {
    if !state.is_bootstrapped() {
        return Err(Rejection::NotBootstrapped);
    }
    let present = state.generation;
    (planned == present).then_some(()).ok_or(Rejection::Stale { planned, present })
}

pub(super) fn check_no_election(state: &ClusterState) -> Result<(), Rejection> {
    state.election.as_ref().map_or(Ok(()), |open| Err(Rejection::ElectionOpen { election: open.timeline }))
}

pub(super) fn member(state: &ClusterState, node: NodeId) -> Result<&Member, Rejection> {
    state.members.get(&node).ok_or(Rejection::NotAMember { node })
}

fn bootstrap(
    state: &ClusterState,
    system_id: SystemId,
    members: &BTreeMap<NodeId, Member>,
    segment_size: SegmentSize,
    settings: &Settings,
) -> Result<ClusterState, Rejection> {
    if state.is_bootstrapped() {
        return Err(Rejection::AlreadyBootstrapped { system_id: state.system_id });
    }
    let bad = |why: String| Rejection::BadBootstrap { why };
    if system_id == SystemId::default() {
        return Err(bad("the system identifier is zero".to_owned()));
    }
    if members.len() > limits::MEMBERS_MAX {
        return Err(Rejection::too_many_members(members.len()));
    }
    if members.contains_key(&NodeId::default()) {
        return Err(bad("a node id is zero".to_owned()));
    }
    if !members.values().any(|member| member.voter) {
        return Err(bad("no member votes".to_owned()));
    }
    if !members.values().any(Member::is_eligible) {
        return Err(bad("no member could ever be promoted: all are witnesses or of failover_priority 0".to_owned()));
    }
    if let Some(error) = settings::check(settings).first() {
        return Err(bad(error.to_string()));
    }
    let mut names: Vec<_> = members.values().map(|member| &member.name).collect();
    names.sort();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(bad(format!("two members are named {}", pair[0])));
    }
    Ok(ClusterState {
        system_id,
        generation: state.generation,
        members: members.clone(),
        segment_size: Some(segment_size),
        settings: settings.clone(),
        ..ClusterState::default()
    })
}

fn promote(state: &ClusterState, entry: HistoryEntry, sync: &SyncList) -> Result<ClusterState, Rejection> {
    let TimelineSwitch { timeline, switch_lsn, .. } = entry.switch;
    let open = state.election.as_ref().map(|election| election.timeline);
    if open != Some(timeline) {
        return Err(Rejection::NoSuchElection { asked: timeline, open });
    }
    let winner = member(state, entry.node)?;
    if !winner.is_eligible() {
        return Err(Rejection::NotEligible { name: winner.name.clone(), witness: winner.witness });
    }
    if entry.safe_lsn > switch_lsn {
        return Err(Rejection::SafeBeyondSwitch { safe_lsn: entry.safe_lsn, switch_lsn });
    }
    check_sync_list(state, sync, entry.node)?;
    state.timeline_history().push(entry.switch)?;
    let mut next = state.clone();
    next.history.push(entry);
    next.election = None;
    next.sync = sync.clone();
    Ok(next)
}

fn set_sync(
    state: &ClusterState,
    timeline: TimelineId,
    sync: &SyncList,
    damage_epochs: &BTreeMap<NodeId, u64>,
) -> Result<ClusterState, Rejection> {
    check_no_election(state)?;
    let Some(primary) = state.primary().filter(|primary| primary.switch.timeline == timeline) else {
        return Err(Rejection::NotThePresentTimeline { asked: timeline, present: state.timeline() });
    };
    check_sync_list(state, sync, primary.node)?;
    for node in sync.members.difference(&state.sync.members) {
        let recorded = state.damage_epochs.get(node).copied().unwrap_or(0);
        let acknowledged = damage_epochs.get(node).copied().unwrap_or(0);
        if acknowledged < recorded {
            let name = member(state, *node)?.name.clone();
            return Err(Rejection::AcknowledgedBeforeDamage { name, acknowledged, recorded });
        }
    }
    Ok(ClusterState { sync: sync.clone(), ..state.clone() })
}

/// A list that could be true beside `primary`.
fn check_sync_list(state: &ClusterState, sync: &SyncList, primary: NodeId) -> Result<(), Rejection> {
    for node in &sync.members {
        let listed = member(state, *node)?;
        let why = match () {
            () if *node == primary => SyncListBar::ThePrimary,
            () if listed.witness => SyncListBar::Witness,
            () if listed.no_sync => SyncListBar::NoSync,
            () => continue,
        };
        return Err(Rejection::NotForTheSyncList { name: listed.name.clone(), why });
    }
    // In mode `required` a list that is too short is the point: commits wait.
    let members = sync.members.len();
    let enough = sync.mode == SyncMode::Required || usize::try_from(sync.acks).is_ok_and(|acks| acks <= members);
    enough.then_some(()).ok_or(Rejection::TooManyAcks { acks: sync.acks, members })
}

/// A node that is not counted on may count again, from what it acknowledges after this damage.
///
/// The primary is never on the list, yet its seal alone allows a promotion: a primary that restarts damaged and
/// cleared itself before its restart is noticed would be promoted again without what it lost (INV-DURABLE). So it
/// stays damaged until somebody else is the primary.
fn clear_damage(state: &ClusterState, node: NodeId, damage_epoch: u64) -> Result<ClusterState, Rejection> {
    check_no_election(state)?;
    let name = &member(state, node)?.name;
    if let Some(why) = still_counted(state, node) {
        return Err(Rejection::StillCounted { name: name.clone(), why });
    }
    let mut next = state.clone();
    let recorded = next.damage_epochs.entry(node).or_insert(0);
    *recorded = damage_epoch.max(*recorded);
    Ok(next)
}

/// Whether somebody counts on what `node` has.
pub(super) fn still_counted(state: &ClusterState, node: NodeId) -> Option<StillCounted> {
    match () {
        () if state.sync.members.contains(&node) => Some(StillCounted::OnTheSyncList),
        () if state.primary().is_some_and(|primary| primary.node == node) => Some(StillCounted::AsThePrimary),
        () => None,
    }
}

/// The settings after these changes: all of them or none.
///
/// They may change while an election is open. Who may be promoted and what is kept rests on the sync list, with the mode
/// that it was made under, and on what nodes have sealed: neither is a setting. The list that the promotion makes is true
/// under every mode and every rule, and a promotion that was planned before the change is stale.
fn configure(state: &ClusterState, changes: &BTreeMap<String, String>) -> Result<ClusterState, Rejection> {
    let settings =
        settings::configured(&state.settings, changes).map_err(|errors| Rejection::BadSettings { errors })?;
    Ok(ClusterState { settings, ..state.clone() })
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
