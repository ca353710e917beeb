use std::sync::Arc;

use proptest::prelude::*;
use understudy_types::{SegmentNo, TimelineId};

use super::*;
use crate::tests::{Log, SIZE, commit, config, history, path_of, read_all, start};
use crate::{Decoder, Wal};

/// The files of `log` under a handle whose memory is empty.
fn from_files(log: Log, ring_bytes_max: usize) -> Wal {
    let files = log.close();
    let (wal, _) = Wal::open(Arc::new(files), config(ring_bytes_max), Lsn::INVALID).expect("clean");
    wal
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Memory and files give the same bytes, in whole records, at every bound and across forks.
    #[test]
    fn memory_and_files_agree(
        bodies in proptest::collection::vec(18_usize..200_000, 1..25),
        fork_at in 0_usize..25,
        bytes_max in prop_oneof![Just(1_usize), 64_usize..300_000],
    ) {
        let mut log = Log::new();
        for (number, bytes) in bodies.iter().enumerate() {
            if number == fork_at {
                let switches = [(1, start()), (2, log.end().lsn)];
                log.begin(&history(&switches)).expect("a fork at the end");
            }
            log.append(&commit(number as u64, *bytes)).expect("open");
        }
        let content = log.content.clone();
        prop_assert_eq!(&read_all(&log.wal, start(), bytes_max), &content);
        let mut reader = log.wal.reader(start());
        reader.read(Lsn::MAX, 1).expect("readable");
        prop_assert!(reader.from_memory());
        let wal = from_files(log, 1 << 20);
        prop_assert_eq!(&read_all(&wal, start(), bytes_max), &content);
        let mut reader = wal.reader(start());
        let decoder = Decoder::new(crate::tests::SYSTEM, SIZE, &wal.history());
        while let Some(chunk) = reader.read(Lsn::MAX, bytes_max).expect("readable") {
            prop_assert!(!reader.from_memory());
            let records: Result<Vec<_>, _> = decoder.decode(chunk.start, &chunk.bytes).collect();
            let records = records.expect("good records");
            prop_assert!(chunk.bytes.len() <= bytes_max || records.len() == 1, "{} records", records.len());
            prop_assert_eq!(records.last().map(|record| record.end), Some(chunk.end));
        }
    }
}

#[test]
fn nothing_above_upto_is_returned() {
    let mut log = Log::new();
    let ends: Vec<Lsn> = (0..4).map(|number| log.append(&commit(number, 100)).expect("open")).collect();
    let check = |wal: &Wal| {
        let mut reader = wal.reader(start());
        assert_eq!(reader.read(start(), 4096).expect("readable"), None);
        assert_eq!(reader.read(ends[0].advance(8), 4096).expect("readable").map(|chunk| chunk.end), Some(ends[0]));
        assert_eq!(reader.read(ends[1].advance(16), 4096).expect("readable").map(|chunk| chunk.end), Some(ends[1]));
        assert_eq!(reader.read(ends[1].advance(16), 4096).expect("readable"), None);
        assert_eq!(reader.read(ends[3], 4096).expect("readable").map(|chunk| chunk.end), Some(ends[3]));
        assert_eq!(reader.read(Lsn::MAX, 4096).expect("readable"), None);
    };
    check(&log.wal);
    check(&from_files(log, 0));
}

#[test]
fn the_memory_is_bounded_whatever_a_reader_does() {
    let ring_bytes_max = 300_000;
    let files = crate::fakes::SimFiles::new();
    let (wal, _) = Wal::open(Arc::new(files.clone()), config(ring_bytes_max), Lsn::INVALID).expect("new");
    let mut log = Log::over(files, wal);
    log.begin(&history(&[(1, start())])).expect("the first timeline");
    let mut slow = log.wal.reader(start());
    for number in 0..100 {
        log.append(&commit(number, 50_000)).expect("open");
        log.wal.flush().expect("no fault");
        assert!(log.wal.memory_bytes() <= ring_bytes_max, "{} bytes", log.wal.memory_bytes());
    }
    let mut all = Vec::new();
    let mut sources = Vec::new();
    while let Some(chunk) = slow.read(Lsn::MAX, 64 << 10).expect("readable") {
        all.extend_from_slice(&chunk.bytes);
        sources.push(slow.from_memory());
    }
    assert!(all == log.content);
    assert!(!sources[0] && sources.last() == Some(&true), "it began in the files and ended in memory");
}

#[test]
fn a_reader_beyond_a_cut_is_told_and_one_below_goes_on() {
    let mut log = Log::new();
    let ends: Vec<Lsn> = (0..3).map(|number| log.append(&commit(number, 100)).expect("open")).collect();
    let (mut below, mut at, mut beyond) = (log.wal.reader(ends[0]), log.wal.reader(ends[1]), log.wal.reader(ends[2]));
    log.truncate(ends[1]).expect("a record ends there");
    let end = log.append(&commit(7, 200)).expect("open");
    assert_eq!(below.read(ends[1], 4096).expect("readable").map(|chunk| chunk.end), Some(ends[1]), "from the file");
    assert_eq!(below.read(Lsn::MAX, 4096).expect("readable").map(|chunk| chunk.end), Some(end), "from memory");
    assert_eq!(at.read(Lsn::MAX, 4096).expect("readable").map(|chunk| chunk.end), Some(end));
    let error = beyond.read(Lsn::MAX, 4096).expect_err("its position is gone");
    assert!(matches!(error, WalError::Truncated { position, to } if (position, to) == (ends[2], ends[1])), "{error}");
}

#[test]
fn a_corrupt_file_is_named_and_not_sent() {
    let mut log = Log::new();
    let first = log.append(&commit(0, 100)).expect("open");
    log.append(&commit(1, 100)).expect("open");
    let files = log.close();
    let (wal, _) = Wal::open(Arc::new(files.clone()), config(0), Lsn::INVALID).expect("clean");
    files.flip_bit(&path_of(1, 1), usize::try_from(SIZE.offset_of(first)).expect("small") + 40, 2);
    let mut reader = wal.reader(start());
    assert_eq!(reader.read(Lsn::MAX, 4096).expect("good so far").map(|chunk| chunk.end), Some(first));
    let error = reader.read(Lsn::MAX, 4096).expect_err("corrupt");
    assert!(matches!(error, WalError::Corrupt { lsn, .. } if lsn == first), "{error}");
}

#[test]
fn the_header_on_the_wire_is_that_of_the_first_record() {
    let mut log = Log::new();
    log.fill_to(SIZE.start_of(SegmentNo::new(2))).expect("open");
    let fork = log.append(&commit(0, 100)).expect("open");
    log.begin(&history(&[(1, start()), (2, fork)])).expect("a fork");
    log.append(&commit(1, 100)).expect("open");
    let boundary = SIZE.start_of(SegmentNo::new(2));
    let wal = from_files(log, 0);
    let chunk = wal.reader(boundary).read(fork, 4096).expect("readable").expect("a record");
    let old = Decoder::new(crate::tests::SYSTEM, SIZE, &history(&[(1, start())]));
    let record = old.decode(boundary, &chunk.bytes).next().expect("one").expect("as timeline 1 wrote it");
    assert_eq!((record.timeline, record.end), (TimelineId::new(1), fork));
}
