use bytes::BytesMut;
use proptest::prelude::*;
use understudy_types::TimelineHistory;

use super::*;
use crate::GcHorizon;
use crate::appender::Appender;
use crate::max_commit_bytes;
use crate::tests::{SYSTEM, TIME_US, commit, history, request_commit};

const MIB: u64 = 1 << 20;

fn first(size: SegmentSize) -> TimelineHistory {
    history(&[(1, size.log_start())])
}

/// Lays out `bodies`, beginning at `start`.
fn lay_out(size: SegmentSize, start: Lsn, bodies: &[usize]) -> (Bytes, Vec<Lsn>) {
    let mut appender = Appender::new(SYSTEM, size, TimelineId::FIRST, start);
    let mut out = BytesMut::new();
    let append =
        |(number, bytes): (u64, &usize)| appender.append(&mut out, &commit(number, *bytes), TIME_US).expect("fits");
    let ends = (0..).zip(bodies).map(append).collect();
    (out.freeze(), ends)
}

fn decode(
    size: SegmentSize,
    history: &TimelineHistory,
    start: Lsn,
    bytes: &Bytes,
) -> Result<Vec<DecodedRecord>, DecodeError> {
    Decoder::new(SYSTEM, size, history).decode(start, bytes).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// At every size of a segment, from any distance to its end, with every amount of room that a record can leave.
    #[test]
    fn what_is_laid_out_decodes(
        shift in 20_u32..=30,
        before_end in 0_u64..60,
        bodies in proptest::collection::vec(18_usize..300, 1..40),
    ) {
        let size = SegmentSize::new(1 << shift).expect("a power of two");
        let room = before_end * 8;
        let begin = size.start_of(understudy_types::SegmentNo::new(2));
        let start = if (1..24).contains(&room) { begin } else { Lsn::new(begin.get() - room) };
        let (bytes, ends) = lay_out(size, start, &bodies);
        let records = decode(size, &first(size), start, &bytes).expect("good records");
        let commits: Vec<&DecodedRecord> = records.iter().filter(|r| r.record != Record::Filler).collect();
        prop_assert_eq!(commits.iter().map(|record| record.end).collect::<Vec<_>>(), ends);
        for (number, (record, bytes)) in (0..).zip(commits.iter().zip(&bodies)) {
            prop_assert_eq!(&record.record, &commit(number, *bytes));
            prop_assert_eq!((record.time_us, record.timeline), (TIME_US, TimelineId::FIRST));
            let last_byte = Lsn::new(record.end.get() - 1);
            prop_assert_eq!(size.segment_of(record.start), size.segment_of(last_byte), "a record spans segments");
            let left = (size.get() - size.offset_of(record.end)) % size.get();
            prop_assert!(left == 0 || left >= RECORD_HEADER_BYTES, "{} bytes are left, too few for a filler", left);
        }
    }

    #[test]
    fn every_flipped_bit_is_seen(bit in 0_usize..3000, bodies in proptest::collection::vec(18_usize..60, 3..6)) {
        let size = SegmentSize::MIN;
        let (bytes, _) = lay_out(size, size.log_start(), &bodies);
        let bit = bit % (bytes.len() * 8);
        let mut bytes = bytes.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(decode(size, &first(size), size.log_start(), &Bytes::from(bytes)).is_err());
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), offset in 3_u64..100) {
        let size = SegmentSize::MIN;
        let start = size.log_start().advance(64 + offset * 8);
        prop_assert!(bytes.is_empty() || decode(size, &first(size), start, &Bytes::from(bytes)).is_err());
    }

    #[test]
    fn a_cut_frame_is_incomplete(cut in 1_usize..400, bodies in proptest::collection::vec(100_usize..200, 3)) {
        let size = SegmentSize::MIN;
        let (bytes, _) = lay_out(size, size.log_start(), &bodies);
        let cut = bytes.slice(..bytes.len() - cut);
        let decoder = Decoder::new(SYSTEM, size, &first(size));
        let mut records = decoder.decode(size.log_start(), &cut);
        let last = records.by_ref().last().expect("at least an error");
        let at_a_record = cut.len() as u64 == records.position().saturating_since(size.log_start());
        prop_assert!(at_a_record || matches!(last, Err(DecodeError::Incomplete { .. })), "{last:?}");
    }
}

#[test]
fn bytes_of_another_place_or_timeline_do_not_pass() {
    let size = SegmentSize::MIN;
    let start = size.log_start().advance(1000);
    let (bytes, _) = lay_out(size, start, &[50, 50]);
    assert!(decode(size, &first(size), start, &bytes).is_ok());
    assert!(decode(size, &first(size), start.advance(8), &bytes).is_err());
    assert!(decode(size, &first(size), start.advance(MIB), &bytes).is_err());
    assert!(decode(size, &history(&[(2, size.log_start())]), start, &bytes).is_err());
}

#[test]
fn a_record_that_crosses_a_switch_is_not_on_the_chain() {
    let size = SegmentSize::MIN;
    let start = size.log_start();
    let (bytes, ends) = lay_out(size, start, &[50, 50]);
    let cut = history(&[(1, start), (2, ends[0])]);
    let error = decode(size, &cut, start, &bytes).expect_err("the second record is of timeline 1");
    assert!(matches!(error, DecodeError::Bad { lsn, .. } if lsn == ends[0]), "{error}");
    let inside = history(&[(1, start), (2, ends[0].advance(8))]);
    let error = decode(size, &inside, start, &bytes).expect_err("the second record crosses");
    assert!(error.to_string().contains("ends at or before the switch"), "{error}");
}

#[test]
fn a_foreign_segment_header_names_both_values() {
    let size = SegmentSize::MIN;
    let (bytes, _) = lay_out(size, size.log_start(), &[50]);
    let other = Decoder::new(SystemId::new(7), size, &first(size));
    let error = other.decode(size.log_start(), &bytes).next().expect("one").expect_err("another cluster").to_string();
    assert!(error.contains("0000000000005157") && error.contains("0000000000000007"), "{error}");
}

#[test]
fn a_filler_is_zeros_to_the_end_of_its_segment() {
    let size = SegmentSize::MIN;
    let start = Lsn::new(2 * MIB - 100 * 8);
    let (bytes, _) = lay_out(size, start, &[1000]);
    let records = decode(size, &first(size), start, &bytes).expect("good");
    assert_eq!((&records[0].record, records[0].end), (&Record::Filler, Lsn::new(2 * MIB)));
    assert_eq!(records[1].start, Lsn::new(2 * MIB + 64));
    let mut dirty = bytes.to_vec();
    dirty[500] = 1;
    assert!(decode(size, &first(size), start, &Bytes::from(dirty)).is_err());
}

#[test]
fn the_largest_commit_fills_a_segment_and_one_byte_more_is_refused() {
    let size = SegmentSize::MIN;
    let max = usize::try_from(max_commit_bytes(size)).expect("small");
    let (bytes, ends) = lay_out(size, size.log_start(), &[max]);
    assert_eq!((bytes.len() as u64, ends[0]), (MIB, Lsn::new(2 * MIB)));
    let mut appender = Appender::new(SYSTEM, size, TimelineId::FIRST, size.log_start());
    let mut out = BytesMut::new();
    let error = appender.append(&mut out, &commit(1, max + 1), TIME_US).expect_err("too large");
    assert_eq!((error.bytes, error.bytes_max), (max as u64 + 1, max as u64));
    assert!(out.is_empty() && appender.next() == size.log_start());
}

#[test]
fn every_kind_decodes() {
    let size = SegmentSize::MIN;
    let horizon = GcHorizon { versions_below: Lsn::new(8), requests_below: Lsn::new(16) };
    let end_of_recovery = Record::EndOfRecovery { previous: TimelineId::new(6) };
    let records = [end_of_recovery, Record::Noop, request_commit(9), Record::GcHorizon(horizon)];
    let mut appender = Appender::new(SYSTEM, size, TimelineId::FIRST, size.log_start());
    let mut out = BytesMut::new();
    for record in &records {
        appender.append(&mut out, record, -1).expect("fits");
    }
    let decoded = decode(size, &first(size), size.log_start(), &out.freeze()).expect("good");
    assert!(decoded.iter().map(|record| &record.record).eq(&records));
    assert!(decoded.iter().all(|record| record.time_us == -1));
}
