//! Session tokens: what a client carries from one call to the next so that no later read shows it less.
//!
//! A token names a position of one cluster. It is opaque: who holds it hands it back as it came. It is not a secret and
//! proves nothing; the checksum tells a mangled one from a good one, and the system id one of another cluster.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | format version, 1 |
//! | 8 | system id, little-endian |
//! | 4 | timeline, little-endian |
//! | 8 | LSN, little-endian |
//! | 4 | CRC32C of all that stands before, little-endian |

use std::fmt;
use std::str::FromStr;

use crate::{Lsn, Position, SystemId, TimelineId};

/// Of the one format that there is.
const FORMAT_VERSION: u8 = 1;
const BODY_BYTES: usize = 21;

/// A position in the history of one cluster, as clients carry it. See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionToken {
    /// Whose log.
    pub system_id: SystemId,
    /// Where. Timeline zero: nothing was written yet.
    pub position: Position,
}

/// Bytes or a text are not a session token of this cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Too short or too long.
    #[error(
        "a session token of {bytes} bytes was given, one has {}: hand it back whole, as it came",
        SessionToken::BYTES
    )]
    Length {
        /// What was given.
        bytes: usize,
    },
    /// Of a later program, or no token at all.
    #[error(
        "the session token has format version {version}, this program reads version {FORMAT_VERSION}: start a new session"
    )]
    Version {
        /// What was given.
        version: u8,
    },
    /// Bytes were changed.
    #[error("the session token is mangled: its checksum is {found:08x}, not {expected:08x}; hand it back as it came")]
    Checksum {
        /// What stands in it.
        found: u32,
        /// What would belong there.
        expected: u32,
    },
    /// Not hexadecimal digits.
    #[error(
        "\"{shown}\" is not a session token: expected {} hexadecimal digits, as they were printed",
        SessionToken::BYTES * 2
    )]
    Hex {
        /// What was given, cut.
        shown: String,
    },
}

/// How much of a text that is no token is shown, in characters.
const SHOWN_CHARS_MAX: usize = 64;

impl SessionToken {
    /// How long every token is.
    pub const BYTES: usize = BODY_BYTES + 4;

    /// The token of `position` in the cluster `system_id`.
    pub const fn new(system_id: SystemId, position: Position) -> Self {
        Self { system_id, position }
    }

    /// As it travels.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0] = FORMAT_VERSION;
        bytes[1..9].copy_from_slice(&self.system_id.get().to_le_bytes());
        bytes[9..13].copy_from_slice(&self.position.timeline.get().to_le_bytes());
        bytes[13..BODY_BYTES].copy_from_slice(&self.position.lsn.get().to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..BODY_BYTES]);
        bytes[BODY_BYTES..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads back what [`SessionToken::to_bytes`] made.
    ///
    /// # Errors
    /// [`TokenError`], in this order: another version, another length, another checksum.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TokenError> {
        match bytes.first() {
            Some(&version) if version != FORMAT_VERSION => return Err(TokenError::Version { version }),
            Some(_) | None => {}
        }
        let wrong_length = || TokenError::Length { bytes: bytes.len() };
        let bytes: &[u8; Self::BYTES] = bytes.try_into().map_err(|_| wrong_length())?;
        let (body, crc) = bytes.split_at(BODY_BYTES);
        let number = |range: std::ops::Range<usize>| {
            body[range].iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let expected = crc32c::crc32c(body);
        let found = crc.iter().rev().fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
        if found != expected {
            return Err(TokenError::Checksum { found, expected });
        }
        let timeline = u32::try_from(number(9..13)).expect("four bytes");
        let position = Position::new(TimelineId::new(timeline), Lsn::new(number(13..BODY_BYTES)));
        Ok(Self { system_id: SystemId::new(number(1..9)), position })
    }
}

/// Lower-case hexadecimal digits.
impl fmt::Display for SessionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for SessionToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let digits: Option<Vec<u8>> = text.as_bytes().iter().take(Self::BYTES * 2 + 1).map(digit).collect();
        match digits {
            Some(digits) if digits.len() == Self::BYTES * 2 => {
                let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
                Self::from_bytes(&bytes)
            }
            Some(_) | None => Err(TokenError::Hex { shown: text.chars().take(SHOWN_CHARS_MAX).collect() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> SessionToken {
        SessionToken::new(SystemId::new(0xABCD), Position::new(TimelineId::new(3), Lsn::new(0x0100_00A0)))
    }

    #[test]
    fn the_format_is_fixed() {
        let text = token().to_string();
        assert_eq!(&text[..42], "01cdab00000000000003000000a000000100000000");
        assert_eq!(text.len(), 50);
    }

    #[test]
    fn each_way_to_be_wrong_is_said() {
        let bytes = token().to_bytes();
        assert_eq!(SessionToken::from_bytes(&bytes[..24]), Err(TokenError::Length { bytes: 24 }));
        assert_eq!(SessionToken::from_bytes(&[]), Err(TokenError::Length { bytes: 0 }));
        let mut later = bytes;
        later[0] = 9;
        assert_eq!(SessionToken::from_bytes(&later), Err(TokenError::Version { version: 9 }));
        let mut forged = bytes;
        forged[13] ^= 1;
        assert!(matches!(SessionToken::from_bytes(&forged), Err(TokenError::Checksum { .. })));
        for text in ["", "zz", "0x01", &"0".repeat(10_000), &token().to_string()[1..], "ä"] {
            let error = text.parse::<SessionToken>().expect_err(text);
            assert!(matches!(error, TokenError::Hex { .. }) && error.to_string().len() < 200, "{error}");
        }
        assert!(token().to_string().to_uppercase().parse::<SessionToken>().is_ok());
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(system: u64, timeline: u32, lsn: u64) {
            let token = SessionToken::new(SystemId::new(system), Position::new(TimelineId::new(timeline), Lsn::new(lsn)));
            prop_assert_eq!(SessionToken::from_bytes(&token.to_bytes()), Ok(token));
            prop_assert_eq!(token.to_string().parse(), Ok(token));
        }

        #[test]
        fn any_bytes_are_a_token_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(token) = SessionToken::from_bytes(&bytes) {
                prop_assert_eq!(token.to_bytes().to_vec(), bytes);
            }
        }

        #[test]
        fn one_changed_bit_is_noticed(bit in 0..SessionToken::BYTES * 8) {
            let mut bytes = token().to_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(SessionToken::from_bytes(&bytes).is_err());
        }
    }
}
