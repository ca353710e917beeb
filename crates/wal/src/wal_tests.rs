use std::io::ErrorKind;

use understudy_types::SegmentNo;

use super::*;
use crate::fakes::Fault;
use crate::tests::{Log, SIZE, SYSTEM, commit, config, history, open, path_of, position, read_all, start};

fn wait_until(watch: &mut watch::Receiver<Lsn>, at_least: Lsn) {
    while *watch.borrow_and_update() < at_least {
        std::thread::yield_now();
    }
}

#[test]
fn appended_bytes_are_readable_before_they_are_flushed() {
    let mut log = Log::new();
    log.append(&commit(0, 100)).expect("open");
    let flushed = log.wal.flush().expect("no fault");
    log.files.hold_syncs(true);
    let end = log.append(&commit(1, 100)).expect("open");
    wait_until(&mut log.wal.written(), end);
    let later = log.append(&commit(2, 100)).expect("open");
    assert_eq!(log.end(), position(1, later));
    let mut reader = log.wal.reader(flushed);
    let chunk = reader.read(Lsn::MAX, 1 << 20).expect("readable").expect("two records");
    assert!(chunk.end == later && reader.from_memory());
    assert_eq!((*log.wal.written().borrow(), *log.wal.flushed().borrow()), (end, flushed));
    assert!(log.wal.oldest_sync_age().is_some());
    assert_eq!(log.wal.unwritten_bytes(), later.saturating_since(end));
    log.files.hold_syncs(false);
    assert_eq!(log.wal.flush().expect("no fault"), later);
    log.wal.close().expect("no fault");
    assert_eq!((log.wal.oldest_sync_age(), log.wal.unwritten_bytes()), (None, 0));
}

#[test]
fn a_group_is_what_queued_during_the_sync_before() {
    let mut log = Log::new();
    log.append(&commit(0, 100)).expect("open");
    log.wal.flush().expect("no fault");
    log.files.hold_syncs(true);
    let first = log.append(&commit(1, 100)).expect("open");
    wait_until(&mut log.wal.written(), first);
    for number in 0..50 {
        log.append(&commit(number, 100)).expect("open");
    }
    let before = log.files.operations();
    log.files.hold_syncs(false);
    log.wal.flush().expect("no fault");
    // The sync that was held, one write and one sync for the fifty, and perhaps the watermark's two.
    let operations = log.files.operations() - before;
    assert!((3..=5).contains(&operations), "{operations} operations");
}

#[test]
fn what_does_not_continue_the_log_is_refused() {
    let mut log = Log::new();
    let end = log.append(&commit(0, 100)).expect("open");
    let bytes = Bytes::from(log.content.clone());
    assert!(matches!(log.wal.append(start(), bytes.clone()), Err(WalError::NotAtEnd { end: e, .. }) if e == end));
    assert!(matches!(log.wal.append(end, bytes.slice(64..100)), Err(WalError::NotWholeRecords { .. })));
    assert!(matches!(log.wal.append(end, Bytes::from(vec![0; 24])), Err(WalError::NotWholeRecords { .. })));
    assert_eq!(log.wal.append(end, Bytes::new()).expect("nothing"), end);
    let empty = Log::empty();
    assert!(matches!(empty.wal.append(start(), bytes), Err(WalError::NoTimeline)));
    log.wal.close().expect("no fault");
    log.wal.close().expect("twice is fine");
    assert!(matches!(log.append(&commit(1, 100)), Err(WalError::Closed)));
    assert!(matches!(log.wal.truncate(start()), Err(WalError::Closed)));
}

#[test]
fn a_failed_write_or_sync_is_latched_and_never_retried() {
    for failing in 0..2 {
        let mut log = Log::new();
        log.append(&commit(0, 100)).expect("open");
        let flushed = log.wal.flush().expect("no fault");
        log.files.plan(log.files.operations() + failing, Fault::Error);
        log.append(&commit(1, 100)).expect("open");
        let error = log.wal.flush().expect_err("a planned failure");
        assert!(error.to_string().contains("planned failure"), "{error}");
        let operations = log.files.operations();
        assert!(matches!(log.append(&commit(2, 100)), Err(WalError::Failed { .. })));
        assert!(matches!(log.wal.flush(), Err(WalError::Failed { .. })));
        assert!(matches!(log.wal.truncate(flushed), Err(WalError::Failed { .. })));
        assert!(matches!(log.wal.close(), Err(WalError::Failed { .. })));
        assert!(log.wal.failure().borrow().is_some());
        assert_eq!(
            (*log.wal.flushed().borrow(), log.files.operations()),
            (flushed, operations),
            "nothing was tried again"
        );
    }
}

#[test]
fn a_full_disk_is_named() {
    let mut log = Log::new();
    log.append(&commit(0, 100)).expect("open");
    log.wal.flush().expect("no fault");
    log.files.set_capacity(Some(1 << 20));
    while log.append(&commit(1, 50_000)).is_ok() && log.wal.flush().is_ok() {}
    let failure = log.wal.failure().borrow().clone().expect("latched");
    let WalError::Io { source, path, .. } = &*failure else { panic!("{failure}") };
    assert_eq!(source.kind(), ErrorKind::StorageFull);
    assert!(path.to_string_lossy().contains("000000010000000000000002"), "{failure}");
}

#[test]
fn a_begun_timeline_is_in_the_history_and_the_end_is_still_the_last_records() {
    let mut log = Log::new();
    let fork = log.append(&commit(0, 100)).expect("open");
    let two = history(&[(1, start()), (2, fork)]);
    log.begin(&two).expect("a fork at the end");
    log.begin(&two).expect("nothing happens the second time");
    assert_eq!((log.wal.history(), log.end()), (two.clone(), position(1, fork)));
    let end = log.append(&commit(1, 100)).expect("open");
    assert_eq!(log.end(), position(2, end));
    let content = log.content.clone();
    let files = log.close();
    let old = files.content(&path_of(1, 1)).expect("stays");
    let new = files.content(&path_of(2, 1)).expect("made");
    let at = |lsn: Lsn| usize::try_from(SIZE.offset_of(lsn)).expect("small");
    assert_eq!(old[64..at(fork)], new[64..at(fork)]);
    assert_ne!(old[..64], new[..64], "each header names the timeline of its file");
    assert!(old[at(fork)..].iter().all(|byte| *byte == 0));
    let (wal, recovery) = open(&files, Lsn::INVALID).expect("clean");
    assert_eq!((recovery.end, recovery.history), (position(2, end), two));
    assert_eq!(read_all(&wal, start(), 100), content, "on the wire the header is that of the first record's timeline");
}

#[test]
fn a_fork_at_a_segment_boundary_makes_no_file_until_a_record_comes() {
    let mut log = Log::new();
    let boundary = SIZE.start_of(SegmentNo::new(2));
    log.fill_to(boundary).expect("open");
    log.begin(&history(&[(1, start()), (2, boundary)])).expect("a fork at the end");
    assert_eq!(log.files.content(&path_of(2, 1)), None);
    assert_eq!(log.files.content(&path_of(1, 2)), None, "what was prepared for the old timeline is gone");
    let end = log.append(&commit(0, 100)).expect("open");
    let content = log.content.clone();
    let files = log.close();
    let (wal, recovery) = open(&files, Lsn::INVALID).expect("clean");
    assert_eq!(recovery.end, position(2, end));
    assert_eq!(read_all(&wal, start(), 1 << 20), content);
}

#[test]
fn a_timeline_that_does_not_continue_this_log_is_refused() {
    let mut log = Log::new();
    let first = log.append(&commit(0, 100)).expect("open");
    let end = log.append(&commit(1, 100)).expect("open");
    let mut refuse = |switches: &[(u32, Lsn)], part: &str| {
        let error = log.begin(&history(switches)).expect_err(part);
        assert!(matches!(error, WalError::BadHistory { .. }) && error.to_string().contains(part), "{error}");
    };
    refuse(&[], "no timeline");
    refuse(&[(1, first)], "already on timeline 1");
    refuse(&[(1, start()), (2, first)], "it begins at");
    refuse(&[(1, start()), (2, end.advance(8))], "it begins at");
    refuse(&[(1, first), (2, end)], "does not contain");
    refuse(&[(1, start()), (2, first), (3, end)], "left its history");
    let skipped = history(&[(1, start()), (2, end), (4, end)]);
    log.begin(&skipped).expect("a timeline that wrote nothing is passed over");
    assert_eq!(log.wal.history(), skipped);
}

#[test]
fn truncation_keeps_what_it_cuts_off_and_the_log_goes_on() {
    let mut log = Log::new();
    let ends: Vec<Lsn> = (0..4).map(|number| log.append(&commit(number, 100)).expect("open")).collect();
    log.fill_to(SIZE.start_of(SegmentNo::new(3))).expect("open");
    let old_end = log.append(&commit(9, 100)).expect("open");
    let cut_off = log.content[usize::try_from(ends[1].saturating_since(start())).expect("small")..].to_vec();
    log.truncate(ends[1]).expect("a record ends there");
    log.truncate(ends[1]).expect("twice is fine");
    assert_eq!(log.end(), position(1, ends[1]));
    for watch in [log.wal.appended(), log.wal.written(), log.wal.flushed()] {
        assert_eq!(*watch.borrow(), ends[1]);
    }
    let name = format!("diverged/00000001-{:016X}-{:016X}.wal", ends[1].get(), old_end.get());
    assert_eq!(log.files.content(&config(0).dir.join(name)), Some(cut_off));
    assert_eq!((log.files.content(&path_of(1, 2)), log.files.content(&path_of(1, 3))), (None, None));
    assert!(
        log.content(&path_of(1, 1))[usize::try_from(SIZE.offset_of(ends[1])).expect("small")..].iter().all(|b| *b == 0)
    );
    let end = log.append(&commit(5, 300)).expect("open");
    let content = log.content.clone();
    assert_eq!(read_all(&log.wal, start(), 4096), content);
    let files = log.close();
    let (wal, recovery) = open(&files, Lsn::INVALID).expect("clean");
    assert_eq!((recovery.end, recovery.truncated), (position(1, end), None));
    assert_eq!(read_all(&wal, start(), 4096), content);
}

#[test]
fn truncation_below_a_switch_goes_back_to_the_older_timeline() {
    let mut log = Log::new();
    let first = log.append(&commit(0, 100)).expect("open");
    let fork = log.append(&commit(1, 100)).expect("open");
    log.begin(&history(&[(1, start()), (2, fork), (3, fork)])).expect("a fork");
    log.append(&commit(2, 100)).expect("open");
    let fork_again = log.append(&commit(3, 100)).expect("open");
    log.begin(&history(&[(1, start()), (2, fork), (3, fork), (4, fork_again)])).expect("a fork");
    log.append(&commit(4, 100)).expect("open");

    log.truncate(fork_again).expect("at a switch");
    assert_eq!(
        (log.end(), log.wal.history().latest().get()),
        (position(3, fork_again), 4),
        "a begun timeline stays begun"
    );
    log.truncate(first).expect("below all");
    assert_eq!((log.end(), log.wal.history()), (position(1, first), history(&[(1, start())])));
    for timeline in 2..5 {
        assert_eq!(log.files.content(&path_of(timeline, 1)), None);
    }
    log.begin(&history(&[(1, start()), (2, fork), (3, fork), (4, fork_again), (5, first)]))
        .expect("the cluster's fork");
    let end = log.append(&commit(5, 100)).expect("open");
    let content = log.content.clone();
    let files = log.close();
    let (wal, recovery) = open(&files, first).expect("clean");
    assert_eq!(recovery.end, position(5, end));
    assert_eq!(read_all(&wal, start(), 4096), content);
}

#[test]
fn truncation_to_what_is_not_there_is_refused() {
    let mut log = Log::new();
    let first = log.append(&commit(0, 100)).expect("open");
    let end = log.append(&commit(1, 100)).expect("open");
    assert!(matches!(log.truncate(first.advance(8)), Err(WalError::NotARecordEnd { .. })));
    assert!(matches!(log.truncate(end.advance(8)), Err(WalError::OutOfRange { .. })));
    assert!(matches!(log.truncate(Lsn::new(8)), Err(WalError::OutOfRange { .. })));
    assert_eq!(log.end(), position(1, end), "nothing happened");
    log.truncate(start()).expect("to the begin");
    assert_eq!(log.end(), position(0, start()));
    log.append(&commit(2, 100)).expect("timeline 1 is still begun");
}

#[test]
fn a_missing_lower_history_file_is_made_when_the_chain_is_cut() {
    let mut log = Log::new();
    let first = log.append(&commit(0, 100)).expect("open");
    let fork = log.append(&commit(1, 100)).expect("open");
    log.begin(&history(&[(1, start()), (2, fork)])).expect("a fork");
    log.append(&commit(2, 100)).expect("open");
    log.files.remove(&config(0).dir.join("00000001.history")).expect("there");
    log.truncate(first).expect("below the switch");
    let files = log.close();
    let (_, recovery) = open(&files, Lsn::INVALID).expect("clean");
    assert_eq!((recovery.end, recovery.history.latest().get()), (position(1, first), 1));
}

#[test]
fn the_watermark_is_raised_at_a_segment_switch_at_a_fork_and_on_a_clean_stop() {
    let mut log = Log::new();
    log.fill_to(SIZE.start_of(SegmentNo::new(2))).expect("open");
    log.append(&commit(0, 100)).expect("open");
    log.wal.flush().expect("no fault");
    let watermark = |files: &crate::fakes::SimFiles| {
        crate::watermark::peek(&crate::tests::directory(files)).expect("readable").expect("there")
    };
    assert_eq!(watermark(&log.files), position(1, SIZE.start_of(SegmentNo::new(2))));
    let fork = log.end();
    log.begin(&history(&[(1, start()), (2, fork.lsn)])).expect("a fork");
    assert_eq!(watermark(&log.files), fork);
    log.append(&commit(1, 100)).expect("open");
    let end = log.end();
    let files = log.close();
    assert_eq!(watermark(&files), end);
}

#[test]
fn an_offline_log_is_read_without_touching_it() {
    let mut log = Log::new();
    log.fill_to(SIZE.start_of(SegmentNo::new(2))).expect("open");
    let end = log.append(&commit(0, 100)).expect("open");
    let files = log.close();
    let before = files.operations();
    let offline = crate::OfflineLog::open(Arc::new(files.clone()), config(0).dir, SYSTEM, SIZE).expect("a good log");
    let mut ends = Vec::new();
    let reached = offline.visit(start(), |record| ends.push(record.end)).expect("a good log");
    assert_eq!((reached, ends.last().copied(), offline.watermark()), (end, Some(end), end));
    assert_eq!(files.operations(), before);
    files.flip_bit(&path_of(1, 1), 200, 1);
    assert!(matches!(offline.visit(start(), drop), Err(WalError::Corrupt { .. })));
}

#[test]
fn a_cut_that_meets_damage_latches_it() {
    // Whoever asked gives up; that the data is damaged is known from the latch.
    let mut log = Log::new();
    let ends: Vec<Lsn> = (0..5).map(|number| log.append(&commit(number, 100)).expect("open")).collect();
    log.wal.flush().expect("open");
    assert!(log.wal.is_record_end(ends[3]).expect("readable"));
    assert!(!log.wal.is_record_end(ends[2].advance(8)).expect("readable"), "within a record");
    log.files.flip_bit(&path_of(1, 1), 200, 1);
    assert!(log.wal.is_record_end(ends[3]).expect_err("corrupt").is_damage());
    assert!(log.wal.failure().borrow().is_none(), "who only looks ends nothing");
    let error = log.truncate(ends[3]).expect_err("corrupt");
    assert!(error.is_damage(), "{error}");
    let failure = log.wal.failure().borrow().clone().expect("latched");
    assert!(failure.is_damage(), "{failure}");
}
