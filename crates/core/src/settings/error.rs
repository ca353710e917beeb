//! Why a setting was refused.

use serde::{Deserialize, Serialize};

/// Why a setting was refused. Names what was asked, what is so, and what would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum SettingError {
    /// There is none of this name.
    #[error("there is no setting \"{name}\"{}", meant(.nearest.as_deref()))]
    Unknown {
        /// As it was given, cut if it was long.
        name: String,
        /// The one that was probably meant.
        nearest: Option<String>,
    },
    /// It is not of this type, or out of bounds.
    #[error("{name} is \"{text}\"; it takes {expected}")]
    Refused {
        /// Of the setting.
        name: String,
        /// As it was given, cut if it was long.
        text: String,
        /// What would do.
        expected: String,
    },
    /// Each may be right, together they are not.
    #[error("{first} is {first_value} and {second} is {second_value}; {rule}")]
    Conflict {
        /// One setting.
        first: String,
        /// What it would be.
        first_value: String,
        /// The other.
        second: String,
        /// What it would be.
        second_value: String,
        /// What must hold.
        rule: String,
    },
}

fn meant(nearest: Option<&str>) -> String {
    nearest.map_or_else(
        || "; \"understudy config show\" lists all there are".to_owned(),
        |name| format!("; did you mean {name}?"),
    )
}
