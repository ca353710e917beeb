//! Between the domain's types and protobuf's, and how bytes are shown to people.
//!
//! The way out never fails; the way in answers an [`RpcError`] that says what was given and what would do.

use std::fmt::Write;

use bytes::Bytes;
use understudy_types::{DurabilityLevel, Lsn, Position, RequestId, SessionToken, TimelineId};

use crate::error::RpcError;
use crate::v1;

impl From<Position> for v1::Position {
    fn from(position: Position) -> Self {
        Self { timeline: position.timeline.get(), lsn: position.lsn.get() }
    }
}

impl From<v1::Position> for Position {
    fn from(position: v1::Position) -> Self {
        Self::new(TimelineId::new(position.timeline), Lsn::new(position.lsn))
    }
}

impl From<DurabilityLevel> for v1::Durability {
    fn from(level: DurabilityLevel) -> Self {
        match level {
            DurabilityLevel::Off => Self::Off,
            DurabilityLevel::Local => Self::Local,
            DurabilityLevel::RemoteWrite => Self::RemoteWrite,
            DurabilityLevel::On => Self::On,
            DurabilityLevel::RemoteApply => Self::RemoteApply,
        }
    }
}

/// The level that the number in a request means; none for the cluster's default.
///
/// # Errors
/// For a number that is not a level of this version.
pub fn durability(number: i32) -> Result<Option<DurabilityLevel>, RpcError> {
    match v1::Durability::try_from(number) {
        Ok(v1::Durability::Unspecified) => Ok(None),
        Ok(v1::Durability::Off) => Ok(Some(DurabilityLevel::Off)),
        Ok(v1::Durability::Local) => Ok(Some(DurabilityLevel::Local)),
        Ok(v1::Durability::RemoteWrite) => Ok(Some(DurabilityLevel::RemoteWrite)),
        Ok(v1::Durability::On) => Ok(Some(DurabilityLevel::On)),
        Ok(v1::Durability::RemoteApply) => Ok(Some(DurabilityLevel::RemoteApply)),
        Err(_) => Err(RpcError::invalid_argument(format!(
            "durability {number} is not known; give 1 (off), 2 (local), 3 (remote_write), 4 (on), 5 (remote_apply), \
             or 0 for the cluster's default"
        ))),
    }
}

/// What the number in a request asks of a read: linearizable where it says nothing.
///
/// # Errors
/// For a number that is not a consistency of this version.
pub fn consistency(number: i32) -> Result<v1::Consistency, RpcError> {
    match v1::Consistency::try_from(number) {
        Ok(v1::Consistency::Unspecified | v1::Consistency::Linearizable) => Ok(v1::Consistency::Linearizable),
        Ok(known @ (v1::Consistency::Eventual | v1::Consistency::Session | v1::Consistency::At)) => Ok(known),
        Err(_) => Err(RpcError::invalid_argument(format!(
            "consistency {number} is not known; give 1 (linearizable), 2 (eventual), 3 (session) or 4 (at a position)"
        ))),
    }
}

/// The session token in a request; none where there is none. Whether it is of this cluster is for the node to check.
///
/// # Errors
/// When it is truncated, mangled, or of another format.
pub fn token(bytes: &[u8]) -> Result<Option<SessionToken>, RpcError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    SessionToken::from_bytes(bytes).map(Some).map_err(|error| RpcError::invalid_argument(error.to_string()))
}

/// A token as it travels.
pub fn token_bytes(token: SessionToken) -> Bytes {
    Bytes::copy_from_slice(&token.to_bytes())
}

/// The request id in a commit; none for a commit that is not retried.
///
/// # Errors
/// When it is neither empty nor 16 bytes that are not all zero.
pub fn request_id(bytes: &[u8]) -> Result<Option<RequestId>, RpcError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let id: Option<[u8; 16]> = bytes.try_into().ok().filter(|id| *id != [0; 16]);
    id.map(|id| Some(RequestId::new(id))).ok_or_else(|| {
        RpcError::invalid_argument(format!(
            "a request id of {} bytes cannot be used; give 16 bytes drawn at random, or none",
            bytes.len()
        ))
    })
}

/// Bytes for people: text as it is, the rest as `\n`, `\t`, `\\`, `\"` or `\xNN`. Cut after `chars_max`
/// characters of the input, with an ellipsis. Not meant to be read back.
pub fn escape(bytes: &[u8], chars_max: usize) -> String {
    let mut out = String::new();
    let mut chars = 0;
    for chunk in bytes.utf8_chunks() {
        let valid = chunk.valid().chars().map(Ok);
        let invalid = chunk.invalid().iter().map(|byte| Err(*byte));
        for piece in valid.chain(invalid) {
            if chars == chars_max {
                out.push('…');
                return out;
            }
            chars += 1;
            match piece {
                Ok(c @ ('\\' | '"' | '\n' | '\r' | '\t')) => out.extend(c.escape_default()),
                Ok(c) if c.is_control() => write_hex(&mut out, u32::from(c)),
                Ok(c) => out.push(c),
                Err(byte) => write_hex(&mut out, u32::from(byte)),
            }
        }
    }
    out
}

fn write_hex(out: &mut String, number: u32) {
    write!(out, "\\x{number:02x}").expect("a string takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_and_levels_go_there_and_back() {
        let position = Position::new(TimelineId::new(7), Lsn::new(42));
        assert_eq!(Position::from(v1::Position::from(position)), position);
        for level in DurabilityLevel::ALL {
            assert_eq!(durability(v1::Durability::from(level).into()), Ok(Some(level)));
        }
        assert_eq!(durability(0), Ok(None), "the cluster's default");
        assert!(durability(6).is_err());
    }

    #[test]
    fn a_read_is_linearizable_unless_it_says_otherwise() {
        assert_eq!(consistency(0), Ok(v1::Consistency::Linearizable));
        assert_eq!(consistency(2), Ok(v1::Consistency::Eventual));
        assert_eq!(consistency(3), Ok(v1::Consistency::Session));
        assert_eq!(consistency(4), Ok(v1::Consistency::At));
        assert!(consistency(9).is_err() && consistency(-1).is_err());
    }

    #[test]
    fn a_token_is_none_or_well_formed() {
        let good = SessionToken::new(understudy_types::SystemId::new(5), Position::new(TimelineId::FIRST, Lsn::new(9)));
        assert_eq!(token(b""), Ok(None));
        assert_eq!(token(&token_bytes(good)), Ok(Some(good)));
        for bytes in [&token_bytes(good)[..7], b"x", &[0; 25], &[1; 25], &[0xff; 4096]] {
            assert!(token(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_request_id_is_none_or_sixteen_bytes() {
        assert_eq!(request_id(b""), Ok(None));
        assert_eq!(request_id(b"0123456789abcdef"), Ok(Some(RequestId::new(*b"0123456789abcdef"))));
        assert!(request_id(b"short").is_err());
        assert!(request_id(&[0; 16]).is_err());
    }

    #[test]
    fn bytes_are_shown_readably_and_bounded() {
        assert_eq!(escape(b"pkg/bash/5.2", 99), "pkg/bash/5.2");
        assert_eq!(escape("grün\n\"\\".as_bytes(), 99), "grün\\n\\\"\\\\");
        assert_eq!(escape(b"a\xff\x00b", 99), "a\\xff\\x00b");
        assert_eq!(escape(b"abcdef", 3), "abc…");
        assert_eq!(escape(b"abc", 3), "abc");
    }
}
