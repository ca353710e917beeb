use super::*;
use crate::fakes::SimFiles;
use crate::tests::{Log, commit, config, history, open, path_of, position, read_all, start};
use crate::{Wal, WalConfig};
use understudy_types::{SegmentSize, SystemId};

/// Three flushed commits and a clean stop: the watermark is at the end of the third.
fn three() -> (SimFiles, Vec<Lsn>) {
    let mut log = Log::new();
    let ends: Vec<Lsn> = (0..3).map(|number| log.append(&commit(number, 100)).expect("open")).collect();
    (log.close(), ends)
}

/// As [`three`], then two more that were written by a process that was killed before its next watermark.
fn five() -> (SimFiles, Vec<Lsn>) {
    let (files, mut ends) = three();
    let (wal, _) = open(&files, Lsn::INVALID).expect("clean");
    let mut log = Log::over(files, wal);
    ends.extend((3..5).map(|number| log.append(&commit(number, 100)).expect("open")));
    log.wal.flush().expect("no fault");
    (log.kill(), ends)
}

fn offset(lsn: Lsn) -> usize {
    usize::try_from(lsn.saturating_since(start())).expect("small")
}

#[test]
fn an_empty_directory_becomes_an_empty_log() {
    let log = Log::empty();
    assert_eq!(log.end(), position(0, start()));
    assert!(matches!(log.wal.append(start(), bytes::Bytes::from(vec![0; 88])), Err(WalError::NotWholeRecords { .. })));
    let files = log.close();
    let (_, recovery) = open(&files, Lsn::INVALID).expect("clean");
    assert_eq!((recovery.end, recovery.truncated), (position(0, start()), None));
}

#[test]
fn a_clean_stop_leaves_nothing_to_do() {
    let (files, ends) = three();
    let (wal, recovery) = open(&files, ends[1]).expect("clean");
    assert_eq!(recovery.end, position(1, ends[2]));
    assert_eq!((recovery.scanned_from, recovery.watermark, recovery.rewritten_bytes), (ends[1], ends[2], 0));
    assert_eq!(recovery.truncated, None);
    assert_eq!(
        (*wal.flushed().borrow(), *wal.written().borrow(), *wal.appended().borrow()),
        (ends[2], ends[2], ends[2])
    );
    assert_eq!(wal.history(), history(&[(1, start())]));
}

#[test]
fn a_torn_record_above_the_watermark_is_cut_off() {
    let (files, ends) = five();
    files.flip_bit(&path_of(1, 1), offset(ends[3]) + 50, 0);
    let (wal, recovery) = open(&files, ends[1]).expect("a torn tail");
    assert_eq!((recovery.end, recovery.watermark), (position(1, ends[3]), ends[2]));
    let cut = recovery.truncated.expect("a torn tail");
    assert!(cut.from == ends[3] && cut.bytes > 100 && cut.expected.contains("checksum"), "{cut:?}");
    let content = files.content(&path_of(1, 1)).expect("there");
    assert!(content[offset(ends[3])..].iter().all(|byte| *byte == 0), "the tail is zero-filled");
    drop(wal);
    let (_, again) = open(&files, ends[1]).expect("clean");
    assert_eq!((again.end, again.truncated), (recovery.end, None));
}

#[test]
fn a_hole_above_the_watermark_ends_the_log_although_good_records_follow() {
    let (files, ends) = five();
    files.flip_bit(&path_of(1, 1), offset(ends[2]) + 30, 7);
    let (_, recovery) = open(&files, Lsn::INVALID).expect("a torn tail");
    assert_eq!(recovery.end, position(1, ends[2]));
}

#[test]
fn a_bad_record_below_the_watermark_is_corruption_and_nothing_is_cut() {
    let (files, ends) = five();
    files.flip_bit(&path_of(1, 1), offset(ends[1]) + 30, 7);
    let before = files.content(&path_of(1, 1));
    for applied in [Lsn::INVALID, ends[0], ends[1]] {
        let error = open(&files, applied).expect_err("corrupt");
        let WalError::Corrupt { segment, lsn, expected, found } = &error else { panic!("{error}") };
        assert_eq!((segment.as_str(), *lsn), ("000000010000000000000001", ends[1]));
        assert!(expected.contains("checksum") && !found.is_empty(), "{error}");
    }
    assert_eq!(files.content(&path_of(1, 1)), before);
}

#[test]
fn a_bad_record_below_what_the_store_applied_is_corruption_too() {
    let (files, ends) = five();
    files.flip_bit(&path_of(1, 1), offset(ends[3]) + 30, 7);
    assert!(matches!(open(&files, ends[4]), Err(WalError::Corrupt { lsn, .. }) if lsn == ends[3]));
    assert!(open(&files, ends[3]).is_ok());
}

#[test]
fn an_applied_position_that_the_log_does_not_have_is_corruption() {
    let (files, ends) = three();
    for applied in [ends[2].advance(8), ends[1].advance(8)] {
        assert!(matches!(open(&files, applied), Err(WalError::Corrupt { .. })), "{applied}");
    }
    assert!(matches!(open(&files, Lsn::new(8)), Err(WalError::OutOfRange { .. })));
}

#[test]
fn a_missing_segment_below_the_watermark_is_corruption() {
    let mut log = Log::new();
    let first = log.append(&commit(0, 100)).expect("open");
    log.fill_to(Lsn::new(3 << 20)).expect("open");
    let end = log.append(&commit(1, 100)).expect("open");
    let files = log.close();
    use crate::files::Files as _;
    files.remove(&path_of(1, 2)).expect("there");
    let error = open(&files, first).expect_err("a segment is gone");
    assert!(error.to_string().contains("no such file"), "{error}");
    let (_, recovery) = open(&files, end).expect("what is applied is not read again");
    assert_eq!(recovery.end.lsn, end);
}

#[test]
fn a_segment_file_that_was_cut_short_is_corruption() {
    let (files, ends) = three();
    use crate::files::Files as _;
    let content = files.content(&path_of(1, 1)).expect("there");
    let file = files.create(&path_of(1, 1)).expect("no fault");
    file.write_all_at(0, &content[..offset(ends[1]) + 40]).expect("no fault");
    assert!(matches!(open(&files, ends[0]), Err(WalError::Corrupt { lsn, .. }) if lsn == ends[1]));
}

#[test]
fn another_logs_files_are_refused_before_anything_is_changed() {
    let (files, _) = three();
    let before = files.operations();
    let open_as = |config| {
        Wal::open(Arc::new(files.clone()), config, Lsn::INVALID).map(|_| ()).expect_err("mismatch").to_string()
    };
    let text = open_as(WalConfig { system_id: SystemId::new(1), ..config(0) });
    assert!(text.contains("system identifier") && text.contains("0000000000000001"), "{text}");
    let text = open_as(WalConfig { segment_size: SegmentSize::DEFAULT, ..config(0) });
    assert!(text.contains("the segment size is 1048576, expected 16777216"), "{text}");
    assert_eq!(files.operations(), before);
    // Without the watermark file the segments themselves guard the directory.
    use crate::files::Files as _;
    files.remove(&config(0).dir.join("watermark")).expect("there");
    let text = open_as(WalConfig { system_id: SystemId::new(1), ..config(0) });
    assert!(text.contains("system identifier"), "{text}");
}

#[test]
fn what_a_killed_process_left_in_the_cache_is_durable_when_it_is_reported() {
    let (files, wal) = {
        let log = Log::new();
        (log.files.clone(), log)
    };
    let mut log = wal;
    log.append(&commit(0, 100)).expect("open");
    log.wal.flush().expect("no fault");
    files.hold_syncs(true);
    let end = log.append(&commit(1, 100)).expect("open");
    let mut written = log.wal.written();
    while *written.borrow_and_update() < end {
        std::thread::yield_now();
    }
    assert!(*log.wal.flushed().borrow() < end, "the sync is held");
    let files = log.kill();
    let (wal, recovery) = open(&files, Lsn::INVALID).expect("recovered");
    assert_eq!(recovery.end.lsn, end);
    drop(wal);
    for seed in 0..20 {
        let disk = files.fork();
        disk.crash(seed);
        let (_, again) = open(&disk, Lsn::INVALID).expect("recovered");
        assert_eq!((again.end, again.truncated), (recovery.end, None), "seed {seed}");
    }
}

#[test]
fn after_a_failed_sync_the_bytes_of_the_cache_are_not_trusted() {
    let mut log = Log::new();
    log.append(&commit(0, 100)).expect("open");
    let flushed = log.wal.flush().expect("no fault");
    log.files.fail_syncs(true);
    let end = log.append(&commit(1, 100)).expect("open");
    assert!(matches!(log.wal.flush(), Err(WalError::Failed { .. })));
    assert_eq!(*log.wal.flushed().borrow(), flushed);
    let files = log.kill();
    // The cache shows the record, and calls it clean: only writing it again makes it durable.
    let (wal, recovery) = open(&files, Lsn::INVALID).expect("recovered");
    assert_eq!(recovery.end.lsn, end);
    drop(wal);
    for seed in 0..20 {
        let disk = files.fork();
        disk.crash(seed);
        assert_eq!(open(&disk, Lsn::INVALID).expect("recovered").1.end, recovery.end, "seed {seed}");
    }
}

#[test]
fn a_fork_that_was_not_put_in_force_is_removed() {
    let (files, ends) = three();
    let directory = crate::tests::directory(&files);
    let orphan =
        SegmentFile { timeline: understudy_types::TimelineId::new(2), segment: crate::tests::SIZE.segment_of(ends[2]) };
    directory.create_empty(orphan, None).expect("no fault");
    let (wal, recovery) = open(&files, Lsn::INVALID).expect("clean");
    assert_eq!((recovery.end, recovery.truncated), (position(1, ends[2]), None));
    assert_eq!(files.content(&path_of(2, 1)), None);
    assert_eq!(read_all(&wal, start(), 1000).len(), offset(ends[2]));
}
