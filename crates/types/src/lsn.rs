//! Log sequence numbers: byte positions in the write-ahead log.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::TimelineId;

/// A byte position in the log, end-exclusive, printed `X/XXXXXXXX` as PostgreSQL does (`pg_lsn`).
///
/// Zero is invalid: the log begins at segment 1, so no record ever stands there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lsn(u64);

impl Lsn {
    /// No position. Smaller than every valid one.
    pub const INVALID: Lsn = Lsn(0);
    /// Larger than every position that a log can reach.
    pub const MAX: Lsn = Lsn(u64::MAX);

    /// The position `bytes` from the notional begin of the log.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Bytes from the notional begin of the log.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Whether this is a position at all.
    pub const fn is_valid(self) -> bool {
        self.0 != 0
    }

    /// `self + bytes`, or none beyond the end of the 64-bit space.
    pub fn checked_add(self, bytes: u64) -> Option<Lsn> {
        self.0.checked_add(bytes).map(Lsn)
    }

    /// `self + bytes`.
    ///
    /// # Panics
    /// Beyond the 64-bit space: at 1 GB/s that takes 584 years.
    pub fn advance(self, bytes: u64) -> Lsn {
        self.checked_add(bytes).expect("an LSN stays within 64 bits")
    }

    /// How many bytes `self` lies beyond `earlier`; zero when it does not.
    pub fn saturating_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// How many bytes `self` lies beyond `earlier`; none when it lies before it.
    pub fn checked_since(self, earlier: Lsn) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:08X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is not an LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not an LSN: expected two hexadecimal numbers of at most 8 digits as in 16/B374D848")]
pub struct ParseLsnError {
    /// What was given.
    pub text: String,
}

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let half = |part: &str| -> Option<u64> {
            let fits = (1..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit());
            fits.then(|| u64::from_str_radix(part, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| ParseLsnError { text: text.to_owned() })
    }
}

/// A place on one branch of the log: the version of a value, a read position, the end of a node's WAL.
///
/// The LSN alone does not say which record is meant: after a fork the same LSN may be used again on the
/// new timeline. `timeline` is the timeline of the record that ends at `lsn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Position {
    /// The timeline of the record that ends at `lsn`; zero where nothing was ever written.
    pub timeline: TimelineId,
    /// End-exclusive.
    pub lsn: Lsn,
}

impl Position {
    /// The place `lsn` on `timeline`.
    pub const fn new(timeline: TimelineId, lsn: Lsn) -> Self {
        Self { timeline, lsn }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.lsn, self.timeline)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn prints_as_postgresql_does() {
        assert_eq!(Lsn::new(0x16_B374_D848).to_string(), "16/B374D848");
        assert_eq!(Lsn::new(0x0100_0000).to_string(), "0/01000000");
        assert_eq!(Lsn::INVALID.to_string(), "0/00000000");
    }

    #[test]
    fn refuses_what_is_not_an_lsn() {
        for text in ["", "/", "1", "1/", "/1", "1/2/3", "g/0", "123456789/0", "0/123456789", "+1/0", "-1/0", " 1/0"] {
            assert_eq!(text.parse::<Lsn>(), Err(ParseLsnError { text: text.to_owned() }), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn parses_what_it_prints(bytes: u64) {
            let lsn = Lsn::new(bytes);
            prop_assert_eq!(lsn.to_string().parse::<Lsn>(), Ok(lsn));
        }
    }
}
