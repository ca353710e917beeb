//! Why nobody can be promoted now: the log line, the `why` of an operator, the page's message.

use std::collections::BTreeSet;
use std::fmt;

use understudy_types::{NodeId, TimelineId};

use super::rank::NotWinner;
use crate::settings::print_bytes;

/// An election that waits. It ends by itself as soon as what is missing is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// The timeline that is being decided.
    pub timeline: TimelineId,
    /// What is needed and not there. Never empty.
    pub unmet: Vec<Unmet>,
    /// Members whose seal would help. Not all of them are needed: the texts of `unmet` say which.
    pub missing_nodes: BTreeSet<NodeId>,
    /// Fencing is complete and only data is missing, so that an operator could accept its loss. Never true while a
    /// majority of voters is missing: that cannot be overridden by anybody.
    pub safe_override: bool,
}

/// One thing that is needed and not there. Nodes stand by name, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unmet {
    /// (a): without a majority of them an older primary may still be confirmed.
    Voters {
        /// How many sealed.
        sealed: usize,
        /// How many there are.
        voters: usize,
        /// How many must seal.
        needed: usize,
        /// Those that did not.
        missing: Vec<String>,
    },
    /// (b): until they have run out, the old primary may answer reads by leases. That ends by itself.
    Leases {
        /// The voters whose leases may still run.
        bound: Vec<String>,
    },
    /// (c): those who sealed may all lack something that was acknowledged.
    SyncList {
        /// How many of the list count.
        counted: usize,
        /// How many there are.
        members: usize,
        /// How many must count.
        needed: usize,
        /// Those that do not, with the reason where it is not just silence.
        missing: Vec<String>,
        /// Would do instead.
        old_primary: String,
    },
    /// (c), when the primary alone was eligible.
    OldPrimary {
        /// It, with the reason where it is not just silence.
        old_primary: String,
    },
    /// (c), in mode `async`: a promotion would lose more than the setting allows.
    TooFarBehind {
        /// How far the best of those who sealed is behind the old primary's last known end, in bytes.
        lag_bytes: u64,
        /// The setting, in bytes.
        lag_bytes_max: u64,
        /// Would do in any case.
        old_primary: String,
    },
    /// Nobody who holds data sealed undamaged.
    Data {
        /// Those who could.
        missing: Vec<String>,
    },
    /// There is enough data, but nobody to open the timeline.
    Candidate {
        /// Everybody, with the reason.
        rejected: Vec<(String, NotWinner)>,
    },
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nobody can be promoted to timeline {} yet: ", self.timeline)?;
        for (index, unmet) in self.unmet.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{unmet}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Voters { sealed, voters, needed, missing } => {
                let more = needed.saturating_sub(*sealed);
                write!(f, "{sealed} of {voters} voters sealed, {needed} are needed: ")?;
                write!(f, "bring back {more} of {}", missing.join(", "))
            }
            Self::Leases { bound } => {
                write!(f, "leases that {} granted to the old primary may still run: ", bound.join(", "))?;
                f.write_str("they run out by themselves within primary_lease")
            }
            Self::SyncList { counted, members, needed, missing, old_primary } => {
                let more = needed.saturating_sub(*counted);
                write!(f, "{counted} of {members} sync standbys sealed undamaged, {needed} are needed, ")?;
                write!(f, "because any of the others may alone have what was acknowledged: ")?;
                write!(f, "bring back {more} of {}, or the old primary {old_primary}", missing.join(", "))
            }
            Self::OldPrimary { old_primary } => {
                write!(f, "only the old primary has everything that was acknowledged: bring back {old_primary}")
            }
            Self::TooFarBehind { lag_bytes, lag_bytes_max, old_primary } => {
                write!(f, "the best standby is {lag_bytes} bytes behind the old primary's last known end of WAL, ")?;
                let limit = print_bytes(*lag_bytes_max);
                write!(f, "max_lag_on_failover is {limit}: bring back the old primary {old_primary}, ")?;
                f.write_str("or a standby that has more")
            }
            Self::Data { missing } => {
                write!(f, "no node with data sealed undamaged: bring back one of {}", missing.join(", "))
            }
            Self::Candidate { rejected } => {
                f.write_str("no node that could be promoted is there: ")?;
                for (index, (name, why)) in rejected.iter().enumerate() {
                    let separator = if index == 0 { "" } else { ", " };
                    write!(f, "{separator}{name} ({why})")?;
                }
                Ok(())
            }
        }
    }
}
