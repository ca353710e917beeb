//! Identities: of a cluster, a node, a process, a version of the cluster state, a request.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text is not an identity of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a {kind}: expected {digits} hexadecimal digits, not all zero")]
pub struct ParseIdError {
    /// What was given.
    pub text: String,
    /// What was expected.
    pub kind: &'static str,
    /// How many digits it has.
    pub digits: usize,
}

fn parse_hex(text: &str, kind: &'static str, digits: usize) -> Result<u128, ParseIdError> {
    let well_formed = text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
    match u128::from_str_radix(text, 16) {
        Ok(value) if well_formed && value != 0 => Ok(value),
        Ok(_) | Err(_) => Err(ParseIdError { text: text.to_owned(), kind, digits }),
    }
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The identity with this number; zero stands for none.
            pub const fn new(number: u64) -> Self {
                Self(number)
            }

            /// The number.
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let value = parse_hex(text, $kind, 16)?;
                Ok(Self(u64::try_from(value).expect("16 hexadecimal digits fit into 64 bits")))
            }
        }
    };
}

random_id!(
    /// A data directory's identity, made at random with it. A directory that comes back empty has another one.
    NodeId,
    "node id"
);
random_id!(
    /// One process start: a random number that no two runs of a node share.
    Incarnation,
    "incarnation"
);
random_id!(
    /// A cluster's identity, made at random when it is bootstrapped. No two clusters exchange WAL.
    SystemId,
    "system identifier"
);

/// The version of the cluster state: every command that changes it makes it one larger.
///
/// It is the fencing token of the control plane: a command carries the generation that it was planned
/// against and is rejected when the state has moved on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(u64);

impl Generation {
    /// The generation with this number; zero is the empty state.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The one after this.
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("a generation stays within 64 bits"))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What makes a commit take effect exactly once: 16 bytes that the client draws at random and repeats
/// with every retry of the same commit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId([u8; 16]);

impl RequestId {
    /// The request id with these bytes.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RequestId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(parse_hex(text, "request id", 32)?.to_be_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_parse_what_they_print() {
        let id = NodeId::new(0x00ab_cdef_0123_4567);
        assert_eq!(id.to_string(), "00abcdef01234567");
        assert_eq!(id.to_string().parse(), Ok(id));
        let request = RequestId::new(*b"0123456789abcdef");
        assert_eq!(request.to_string().parse(), Ok(request));
    }

    #[test]
    fn a_malformed_identity_is_named() {
        for text in ["", "0000000000000000", "+0abcdef01234567", "00abcdef0123456", "00abcdef0123456g"] {
            let error = text.parse::<NodeId>().expect_err(text);
            assert!(error.to_string().contains("node id"), "{error}");
        }
    }
}
