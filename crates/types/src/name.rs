//! Names of nodes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What an operator calls a node: 1 to 63 of `a-z A-Z 0-9 _ - .`, beginning with a letter or a digit.
///
/// Compared without regard to ASCII case, as PostgreSQL compares `application_name` with
/// `synchronous_standby_names`; printed as it was given.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

impl NodeName {
    /// A name, in bytes.
    pub const BYTES_MAX: usize = 63;

    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `text` names this node.
    pub fn matches(&self, text: &str) -> bool {
        self.0.eq_ignore_ascii_case(text)
    }

    fn folded(&self) -> String {
        self.0.to_ascii_lowercase()
    }
}

impl PartialEq for NodeName {
    fn eq(&self, other: &Self) -> bool {
        self.matches(&other.0)
    }
}

impl Eq for NodeName {}

impl PartialOrd for NodeName {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for NodeName {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.folded().cmp(&other.folded())
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A text cannot name a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{text}\" is not a node name: expected 1 to 63 letters, digits, '_', '-' or '.', beginning with a letter or a digit"
)]
pub struct NameError {
    /// What was given, cut if it was long.
    pub text: String,
}

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let begins_well = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        let fits = text.len() <= Self::BYTES_MAX && begins_well && text.bytes().all(allowed);
        fits.then(|| Self(text.to_owned())).ok_or_else(|| NameError { text: crate::shown::shown(text) })
    }
}

impl TryFrom<String> for NodeName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> String {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_without_case() {
        let one: NodeName = "Node-1".parse().expect("a name");
        let other: NodeName = "node-1".parse().expect("a name");
        assert_eq!(one, other);
        assert_eq!(one.cmp(&other), std::cmp::Ordering::Equal);
        assert_eq!(one.to_string(), "Node-1");
    }

    #[test]
    fn refuses_what_cannot_be_a_name() {
        let long = "a".repeat(64);
        for text in ["", "-a", ".a", "a b", "a,b", "ä", "*", long.as_str()] {
            assert!(text.parse::<NodeName>().is_err(), "{text:?}");
        }
    }
}
