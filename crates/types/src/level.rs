//! Durability levels and sync modes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// When a commit is acknowledged (PostgreSQL's `synchronous_commit`).
///
/// | level | acknowledged when |
/// |---|---|
/// | `off` | appended |
/// | `local` | flushed here |
/// | `remote_write` | flushed here, and the sync standbys have written it |
/// | `on` | flushed here, and by the sync standbys |
/// | `remote_apply` | as `on`, and the sync standbys have applied it: a read there sees it |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DurabilityLevel {
    /// Appended to the primary's log in memory.
    Off,
    /// Flushed to the primary's disk.
    Local,
    /// Flushed to the primary's disk, and written by the sync standbys to their operating systems.
    RemoteWrite,
    /// Flushed to the primary's disk and to those of the sync standbys.
    #[default]
    On,
    /// As [`Self::On`], and visible on the sync standbys.
    RemoteApply,
}

impl DurabilityLevel {
    /// Every level, each asking for no less than the one before it.
    pub const ALL: [Self; 5] = [Self::Off, Self::Local, Self::RemoteWrite, Self::On, Self::RemoteApply];

    /// As it is written in settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Local => "local",
            Self::RemoteWrite => "remote_write",
            Self::On => "on",
            Self::RemoteApply => "remote_apply",
        }
    }
}

impl fmt::Display for DurabilityLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text is not a durability level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a durability level: expected off, local, remote_write, on or remote_apply")]
pub struct ParseLevelError {
    /// What was given.
    pub text: String,
}

impl FromStr for DurabilityLevel {
    type Err = ParseLevelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|level| level.as_str() == text)
            .ok_or_else(|| ParseLevelError { text: text.to_owned() })
    }
}

/// What the primary does when fewer sync standbys are there than are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncMode {
    /// Nobody is waited for; a failover may lose what the standbys had not received.
    Async,
    /// Commits go on alone once Raft has recorded that the primary alone is eligible.
    #[default]
    Preferred,
    /// Commits wait, and end as "unknown" at their deadline.
    Required,
}

impl SyncMode {
    /// As it is written in settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Async => "async",
            Self::Preferred => "preferred",
            Self::Required => "required",
        }
    }
}

impl fmt::Display for SyncMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text is not a sync mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a sync mode: expected async, preferred or required")]
pub struct ParseModeError {
    /// What was given.
    pub text: String,
}

impl FromStr for SyncMode {
    type Err = ParseModeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Async, Self::Preferred, Self::Required]
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or_else(|| ParseModeError { text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_modes_parse_what_they_print() {
        for level in DurabilityLevel::ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        for mode in [SyncMode::Async, SyncMode::Preferred, SyncMode::Required] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert_eq!("remote_apply".parse(), Ok(DurabilityLevel::RemoteApply));
        assert!("ON".parse::<DurabilityLevel>().is_err());
        assert!("".parse::<SyncMode>().is_err());
    }
}
