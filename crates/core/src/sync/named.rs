//! Whether the members could ever satisfy the rule, whoever is up: a setting that names nobody is accepted, and shown.

use std::fmt;

use understudy_types::SyncMode;

use super::names::StandbyNames;
use crate::state::{ClusterState, Member};

/// The members cannot satisfy the rule, even if all of them are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsatisfied {
    /// What happens in these circumstances.
    pub mode: SyncMode,
    /// Acknowledgements that the rule asks for.
    pub asked: u32,
    /// Members that could give one.
    pub able: u32,
}

impl fmt::Display for Unsatisfied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.able {
            0 => f.write_str("nobody can acknowledge: no member but the primary matches the rule")?,
            able => write!(f, "only {able} of {} can acknowledge: no other member matches the rule", self.asked)?,
        }
        match self.mode {
            SyncMode::Required => f.write_str("; commits wait until the rule or the members change"),
            SyncMode::Preferred | SyncMode::Async => {
                f.write_str("; commits are acknowledged with fewer than asked for")
            }
        }
    }
}

/// Why the rule cannot be satisfied by the members, were all of them there; none when it can be, or nobody is asked for.
/// A cluster of one member is none of these: there is nobody who could be named.
///
/// Before the first promotion, and while an election is open, any eligible member may be the primary: the one is taken
/// that leaves most.
pub fn nobody_can_acknowledge(state: &ClusterState) -> Option<Unsatisfied> {
    let names = StandbyNames::parse(&state.settings.synchronous_standby_names).ok()?;
    let (mode, asked) = (state.settings.sync_mode, names.wanted_acks());
    let waits = match mode {
        SyncMode::Preferred => state.members.len() > 1,
        SyncMode::Required => true,
        SyncMode::Async => false,
    };
    if !waits || asked == 0 {
        return None;
    }
    let could = |member: &Member| !member.witness && !member.no_sync && names.priority_of(&member.name).is_some();
    let able = state.members.values().filter(|member| could(member)).count();
    let primary = state.primary().filter(|_| state.election.is_none());
    let taken = match primary.and_then(|entry| state.members.get(&entry.node)) {
        Some(primary) => could(primary),
        None => !state.members.values().any(|member| member.is_eligible() && !could(member)) && able > 0,
    };
    let able = u32::try_from(able).unwrap_or(u32::MAX) - u32::from(taken);
    (able < asked).then_some(Unsatisfied { mode, asked, able })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::election::fixture::Scenario;

    fn said(rule: &str, mode: SyncMode) -> Option<String> {
        let scenario = Scenario::new(3).mode(mode).names(rule);
        nobody_can_acknowledge(&scenario.state).map(|unsatisfied| unsatisfied.to_string())
    }

    #[test]
    fn a_rule_that_the_members_satisfy_is_well() {
        for rule in ["ANY 1 (*)", "ANY 2 (*)", ""] {
            assert_eq!(said(rule, SyncMode::Required), None, "{rule}");
        }
        assert_eq!(said("nobody", SyncMode::Async), None);
    }

    #[test]
    fn a_rule_that_nobody_matches_is_told_of() {
        let text = said("nobody", SyncMode::Required).expect("a problem");
        assert!(text.starts_with("nobody can acknowledge") && text.contains("commits wait"), "{text}");
        let text = said("ANY 3 (*)", SyncMode::Preferred).expect("a problem");
        assert!(text.starts_with("only 2 of 3") && text.contains("fewer"), "{text}");
    }
}
