//! How a user key and a version become one key that sorts as both do.
//!
//! ```text
//! user key, each 00 written as 00 FF | 00 01 | bitwise complement of the commit's end LSN, big-endian
//! ```
//!
//! * User keys keep their byte order: the terminator `00 01` is smaller than an escaped zero `00 FF` and
//!   than any other byte, so a key sorts before the keys that it is a prefix of.
//! * No encoded key is a prefix of another one, so the last 8 bytes can be dropped to name all versions of
//!   one key: that is the prefix that Bloom filters are made of.
//! * The complement puts the newest version first: a read at LSN `L` seeks to `(key, L)` and stands at the
//!   newest version at or below `L`.
//!
//! A request id is 16 bytes, so it needs no escape: `id | complement of the LSN`.

use understudy_types::{Lsn, RequestId};

/// Bytes of a version at the end of an encoded key.
pub const VERSION_BYTES: usize = 8;

const ESCAPED_ZERO: [u8; 2] = [0x00, 0xFF];
const TERMINATOR: [u8; 2] = [0x00, 0x01];
/// Sorts after every version of the key and before every other key.
const AFTER_TERMINATOR: u8 = 0x02;

/// All that the versions of `user_key` have in common.
pub fn encode_prefix(user_key: &[u8]) -> Vec<u8> {
    let zeros = user_key.iter().filter(|byte| **byte == 0).count();
    let mut out = Vec::with_capacity(user_key.len() + zeros + TERMINATOR.len() + VERSION_BYTES);
    for byte in user_key {
        match byte {
            0 => out.extend_from_slice(&ESCAPED_ZERO),
            other => out.push(*other),
        }
    }
    out.extend_from_slice(&TERMINATOR);
    out
}

/// The version of `user_key` that the commit which ends at `lsn` wrote.
pub fn encode(user_key: &[u8], lsn: Lsn) -> Vec<u8> {
    with_version(encode_prefix(user_key), lsn)
}

/// `prefix`, then the version.
pub fn with_version(mut prefix: Vec<u8>, lsn: Lsn) -> Vec<u8> {
    prefix.extend_from_slice(&(!lsn.get()).to_be_bytes());
    prefix
}

/// The request that the commit which ends at `lsn` was made under.
pub fn encode_request(id: &RequestId, lsn: Lsn) -> Vec<u8> {
    with_version(id.as_bytes().to_vec(), lsn)
}

/// Prefix and version; none when it is too short for a version.
pub fn split_version(encoded: &[u8]) -> Option<(&[u8], Lsn)> {
    let (prefix, version) = encoded.split_last_chunk::<VERSION_BYTES>()?;
    Some((prefix, Lsn::new(!u64::from_be_bytes(*version))))
}

/// The user key of a prefix; none when it is malformed.
pub fn decode_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let body = prefix.strip_suffix(&TERMINATOR)?;
    let mut out = Vec::with_capacity(body.len());
    let mut bytes = body.iter();
    while let Some(byte) = bytes.next() {
        if *byte == 0 && bytes.next() != Some(&0xFF) {
            return None;
        }
        out.push(*byte);
    }
    Some(out)
}

/// The smallest sequence of bytes that sorts after every version of the key with this prefix, and not
/// after the first version of any larger key.
pub fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut out = prefix.to_vec();
    if let Some(last) = out.last_mut() {
        *last = AFTER_TERMINATOR;
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Keys that share prefixes and are rich in the bytes that matter.
    fn user_key() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(2), Just(0xFE), Just(0xFF), any::<u8>()], 0..6)
    }

    #[test]
    fn the_format_is_as_drawn() {
        let encoded = encode(b"a\0b", Lsn::new(1));
        assert_eq!(encoded, [b'a', 0, 0xFF, b'b', 0, 1, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFE]);
        assert_eq!(encode_prefix(b""), [0, 1]);
    }

    #[test]
    fn malformed_prefixes_are_refused() {
        for prefix in [&b""[..], b"\0", b"a", b"a\0", b"\x01", b"a\0\x02\0\x01", b"\0\0\x01"] {
            assert_eq!(decode_prefix(prefix), None, "{prefix:?}");
        }
        assert_eq!(split_version(b"1234567"), None);
    }

    proptest! {
        #[test]
        fn order_is_that_of_the_key_then_newest_first(
            a in user_key(), b in user_key(), at in any::<u64>(), bt in any::<u64>()
        ) {
            let by_meaning = a.cmp(&b).then(bt.cmp(&at));
            prop_assert_eq!(encode(&a, Lsn::new(at)).cmp(&encode(&b, Lsn::new(bt))), by_meaning);
        }

        #[test]
        fn what_was_encoded_is_decoded(key in user_key(), lsn in any::<u64>()) {
            let encoded = encode(&key, Lsn::new(lsn));
            let (prefix, version) = split_version(&encoded).unwrap();
            prop_assert_eq!(version, Lsn::new(lsn));
            prop_assert_eq!(decode_prefix(prefix), Some(key));
        }

        #[test]
        fn no_prefix_begins_another(a in user_key(), b in user_key()) {
            prop_assume!(a != b);
            prop_assert!(!encode_prefix(&b).starts_with(&encode_prefix(&a)));
        }

        #[test]
        fn after_a_key_come_the_larger_ones(a in user_key(), b in user_key(), lsn in any::<u64>()) {
            let after = after_prefix(&encode_prefix(&a));
            prop_assert!(encode(&a, Lsn::new(lsn)) < after);
            prop_assert_eq!(encode(&b, Lsn::new(lsn)) >= after, b > a);
        }
    }
}
