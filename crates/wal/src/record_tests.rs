use proptest::prelude::*;

use super::*;
use crate::appender::Appender;
use crate::segment::SegmentHeader;
use understudy_types::{SegmentNo, SegmentSize, SystemId};

fn fixture(hex: &str) -> Vec<u8> {
    let digits: Vec<char> = hex.chars().filter(|c| !c.is_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).expect("hex")).collect()
}

/// The fixtures were made by another program: a change of the format must not pass unseen.
#[test]
fn the_bytes_are_those_of_the_fixtures() {
    let system_id = SystemId::new(0x0123_4567_89ab_cdef);
    let size = SegmentSize::DEFAULT;
    let timeline = TimelineId::new(3);
    let mut appender = Appender::new(system_id, size, timeline, size.log_start());
    let commit = CommitRecord {
        request_id: Some(RequestId::new(*b"0123456789abcdef")),
        ops: vec![
            Op::Put { key: Bytes::from_static(b"key"), value: Bytes::from_static(b"value") },
            Op::Delete { key: Bytes::from_static(b"gone") },
        ],
    };
    let mut out = BytesMut::new();
    let end = appender.append(&mut out, &Record::Commit(commit), 1_700_000_000_000_001).expect("fits");
    assert_eq!(out[64..], fixture(include_str!("../fixtures/commit-v1.hex")));
    assert_eq!(end, size.log_start().advance(out.len() as u64));

    let mut appender = Appender::new(system_id, size, timeline, Lsn::new((32 << 20) - 40));
    let mut out = BytesMut::new();
    appender
        .append(&mut out, &Record::Commit(CommitRecord { request_id: None, ops: vec![delete(40)] }), 5)
        .expect("fits");
    assert_eq!(out[..40], fixture(include_str!("../fixtures/filler-v1.hex")));

    let mut appender = Appender::new(system_id, size, timeline, size.log_start());
    let mut out = BytesMut::new();
    appender.append(&mut out, &Record::GcHorizon(horizon()), 1_700_000_000_000_002).expect("fits");
    assert_eq!(out[64..], fixture(include_str!("../fixtures/gc-horizon-v1.hex")));

    let header = SegmentHeader { system_id, timeline, segment: SegmentNo::new(7), segment_size: size };
    assert_eq!(header.encode().to_vec(), fixture(include_str!("../fixtures/segment-header-v1.hex")));
}

fn horizon() -> GcHorizon {
    GcHorizon { versions_below: Lsn::new(0x0123_4567_89ab_cde8), requests_below: Lsn::new(0x100_0040) }
}

#[test]
fn a_horizon_decodes_to_itself_and_at_its_length_alone() {
    let mut body = BytesMut::new();
    Record::GcHorizon(horizon()).encode_body(&mut body);
    let body = body.freeze();
    assert_eq!(Record::decode(Kind::GcHorizon, body.clone()), Ok(Record::GcHorizon(horizon())));
    assert!(Record::decode(Kind::GcHorizon, body.slice(..15)).is_err());
    assert!(Record::decode(Kind::GcHorizon, [&body[..], b"0"].concat().into()).is_err());
}

#[test]
fn a_horizon_never_goes_back_in_either_part() {
    let at = |versions, requests| GcHorizon { versions_below: Lsn::new(versions), requests_below: Lsn::new(requests) };
    assert_eq!(at(8, 1).max(at(5, 3)), at(8, 3));
    assert_eq!(at(5, 3).max(at(8, 1)), at(8, 3));
}

fn delete(bytes: usize) -> Op {
    Op::Delete { key: Bytes::from(vec![1; bytes]) }
}

fn op() -> impl Strategy<Value = Op> {
    let bytes = |max| proptest::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from);
    prop_oneof![
        (bytes(20), bytes(100)).prop_map(|(key, value)| Op::Put { key, value }),
        bytes(20).prop_map(|key| Op::Delete { key }),
    ]
}

fn commit() -> impl Strategy<Value = CommitRecord> {
    (proptest::option::of(any::<[u8; 16]>()), proptest::collection::vec(op(), 0..8))
        .prop_map(|(id, ops)| CommitRecord { request_id: id.map(RequestId::new), ops })
}

proptest! {
    #[test]
    fn a_commit_decodes_to_itself(commit in commit()) {
        let record = Record::Commit(commit.clone());
        let mut body = BytesMut::new();
        record.encode_body(&mut body);
        prop_assert_eq!(body.len() as u64, commit.encoded_bytes());
        prop_assert_eq!(Record::decode(Kind::Commit, body.freeze()), Ok(record));
    }

    #[test]
    fn a_commit_that_is_cut_or_longer_is_refused(commit in commit(), cut in 1_usize..40, more: bool) {
        let mut body = BytesMut::new();
        Record::Commit(commit).encode_body(&mut body);
        let length = if more { body.len() + cut } else { body.len().saturating_sub(cut) };
        body.resize(length, 0);
        prop_assert!(Record::decode(Kind::Commit, body.freeze()).is_err());
    }

    #[test]
    fn no_bytes_make_the_decoder_panic_or_take_memory(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        for kind in Kind::ALL {
            if let Ok(Record::Commit(commit)) = Record::decode(kind, Bytes::from(bytes.clone())) {
                prop_assert!(commit.ops.capacity() <= bytes.len());
            }
        }
    }
}

#[test]
fn a_count_that_lies_takes_no_memory() {
    let mut body = BytesMut::new();
    body.put_u32_le(u32::MAX);
    body.put_u32_le(0);
    assert!(Record::decode(Kind::Commit, body.freeze()).is_err());
}
