use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use understudy_types::{SegmentNo, TimelineHistory};

use super::*;
use crate::fakes::{Fault, SimFiles};
use crate::files::Files as _;
use crate::tests::{Log, SIZE, commit, config, history, open, path_of, read_all, start};
use crate::{Wal, WalConfig};

fn boundary(segment: u64) -> Lsn {
    SIZE.start_of(SegmentNo::new(segment))
}

fn offset(lsn: Lsn) -> usize {
    usize::try_from(lsn.saturating_since(start())).expect("small")
}

/// A log that ends inside segment `segments`, with its memory bounded to `ring_bytes_max`.
fn long(segments: u64, ring_bytes_max: usize) -> Log {
    let files = SimFiles::new();
    let (wal, _) = Wal::open(Arc::new(files.clone()), config(ring_bytes_max), Lsn::INVALID).expect("new");
    let mut log = Log::over(files, wal);
    log.begin(&history(&[(1, start())])).expect("the first timeline");
    log.fill_to(boundary(segments)).expect("open");
    log.append(&commit(1, 100)).expect("open");
    log.wal.flush().expect("no fault");
    log
}

fn segment_files(files: &SimFiles) -> Vec<String> {
    let names = files.list(&config(0).dir).expect("there");
    names.into_iter().filter(|name| name.len() == 24).collect()
}

#[test]
fn whole_segments_below_the_floor_go_and_nothing_above() {
    // INV-RETAIN.
    let log = long(6, 0);
    assert_eq!(log.wal.remove_before(boundary(2).advance(5), 0).expect("no fault").removed, 1);
    assert_eq!(log.wal.first(), boundary(2));
    assert_eq!(log.wal.remove_before(boundary(4), 0).expect("no fault"), Removal { removed: 2, recycled: 0 });
    assert_eq!(log.wal.remove_before(boundary(3), 0).expect("no fault"), Removal::default(), "the floor went back");
    assert_eq!(log.wal.first(), boundary(4));
    assert_eq!(
        segment_files(&log.files),
        ["000000010000000000000004", "000000010000000000000005", "000000010000000000000006"]
    );
    assert!(read_all(&log.wal, boundary(4), 50_000) == log.content[offset(boundary(4))..]);
    let error = log.wal.reader(boundary(3)).read(Lsn::MAX, 4096).expect_err("gone");
    assert!(error.to_string().starts_with("requested WAL segment 000000010000000000000003 has already been removed"));
    let content = log.content.clone();
    let files = log.close();
    let (wal, recovery) = open(&files, boundary(4)).expect("the floor is what redo needs");
    assert_eq!((recovery.first, recovery.truncated), (boundary(4), None));
    assert!(read_all(&wal, boundary(4), 50_000) == content[offset(boundary(4))..]);
}

#[test]
fn the_segment_that_the_log_ends_in_always_stays() {
    // INV-RETAIN: whatever floor is asked for.
    let log = long(3, 0);
    log.wal.remove_before(Lsn::MAX, 0).expect("no fault");
    assert_eq!((log.wal.first(), segment_files(&log.files).len()), (boundary(3), 1));
    let end = log.end();
    let files = log.close();
    assert_eq!(open(&files, end.lsn).expect("a log").1.end, end);
    // At a boundary the last one is the one below.
    let mut log = Log::new();
    log.fill_to(boundary(3)).expect("open");
    log.wal.flush().expect("no fault");
    log.wal.remove_before(Lsn::MAX, 0).expect("no fault");
    assert!(log.wal.first() <= boundary(2), "{}", log.wal.first());
    assert!(segment_files(&log.files).contains(&"000000010000000000000002".to_owned()));
}

#[test]
fn the_files_of_branches_go_with_their_segments() {
    let mut log = Log::new();
    log.fill_to(boundary(2)).expect("open");
    let fork = log.append(&commit(0, 100)).expect("open");
    let two = [(1, start()), (2, fork)];
    log.begin(&history(&two)).expect("a fork inside segment 2");
    log.fill_to(boundary(4)).expect("open");
    log.append(&commit(1, 100)).expect("open");
    log.wal.flush().expect("no fault");
    let end = log.end().lsn;
    log.wal.remove_before(fork, 0).expect("no fault");
    let names = segment_files(&log.files);
    assert!(names.contains(&"000000010000000000000002".to_owned()), "both files of the fork's segment stay: {names:?}");
    assert!(names.contains(&"000000020000000000000002".to_owned()), "{names:?}");
    assert!(!names.contains(&"000000010000000000000001".to_owned()), "{names:?}");
    log.wal.remove_before(boundary(3), 0).expect("no fault");
    assert!(segment_files(&log.files).iter().all(|name| !name.ends_with('2')));
    let files = log.close();
    let (_, recovery) = open(&files, boundary(3)).expect("a log");
    assert_eq!((recovery.first, recovery.end.lsn, recovery.history), (boundary(3), end, history(&two)));
}

#[test]
fn the_log_cannot_be_cut_below_what_is_kept() {
    let mut log = long(4, 0);
    log.wal.remove_before(boundary(3), 0).expect("no fault");
    assert!(
        matches!(log.truncate(boundary(2)), Err(crate::WalError::OutOfRange { begin, .. }) if begin == boundary(3))
    );
    log.truncate(boundary(3)).expect("there");
    log.append(&commit(3, 100)).expect("goes on");
    let end = log.end();
    let files = log.close();
    let (_, recovery) = open(&files, boundary(3)).expect("a log");
    assert_eq!((recovery.first, recovery.end), (boundary(3), end));
}

#[test]
fn removed_files_are_used_again_up_to_a_bound() {
    // INV-BYTES: what was in them does not show.
    let mut log = long(6, 0);
    let removal = log.wal.remove_before(boundary(6), 2).expect("no fault");
    assert_eq!(removal, Removal { removed: 3, recycled: 2 });
    let spares = |files: &SimFiles| files.list(&config(0).dir).expect("there").join(" ").matches(".spare").count();
    assert_eq!(spares(&log.files), 2);
    log.wal.remove_before(boundary(6), 1).expect("no fault");
    assert_eq!(spares(&log.files), 1, "the bound may go down");
    let files = log.files.clone();
    let content = std::mem::take(&mut log.content);
    log.close();
    let config = WalConfig { spare_segments: 1, ..config(0) };
    let (wal, _) = Wal::open(Arc::new(files.clone()), config, boundary(6)).expect("a log");
    let mut log = Log::over(files, wal);
    log.content = content;
    while log.wal.spares_ready() < 1 {
        std::thread::yield_now();
    }
    log.fill_to(boundary(7)).expect("open");
    log.append(&commit(1, 100)).expect("open");
    log.wal.flush().expect("no fault");
    let end = log.end().lsn;
    let new = log.content(&path_of(1, 7));
    assert!(new[..offset(end) % (1 << 20)] == log.content[offset(boundary(7))..]);
    assert!(new[offset(end) % (1 << 20)..].iter().all(|byte| *byte == 0), "nothing of the old content is left");
}

#[test]
fn what_an_interrupted_removal_left_goes_with_the_next() {
    let log = long(6, 0);
    let files = log.close();
    files.remove(&path_of(1, 2)).expect("there");
    let (wal, recovery) = open(&files, boundary(5)).expect("redo begins in segment 5");
    assert_eq!(recovery.first, boundary(3), "behind the hole");
    assert!(matches!(wal.reader(boundary(1)).read(Lsn::MAX, 10), Err(crate::WalError::Removed { .. })));
    assert_eq!(wal.remove_before(boundary(4), 0).expect("no fault").removed, 2);
    assert_eq!(segment_files(&files).len(), 3);
}

#[test]
fn a_reader_in_a_file_that_is_used_again_is_told_so() {
    // The reader holds the file of segment 1 open; it becomes a spare, is zeroed, and then another segment.
    let files = SimFiles::new();
    let config = WalConfig { spare_segments: 1, ..config(0) };
    let (wal, _) = Wal::open(Arc::new(files.clone()), config, Lsn::INVALID).expect("new");
    let mut log = Log::over(files, wal);
    log.begin(&history(&[(1, start())])).expect("the first timeline");
    log.fill_to(boundary(4)).expect("open");
    log.append(&commit(1, 100)).expect("open");
    log.wal.flush().expect("no fault");
    let mut reader = log.wal.reader(start());
    let chunk = reader.read(Lsn::MAX, 70_000).expect("readable").expect("a record");
    assert!(!reader.from_memory());
    log.wal.remove_before(boundary(4), 8).expect("no fault");
    log.fill_to(boundary(7)).expect("open");
    log.wal.flush().expect("no fault");
    let error = reader.read(Lsn::MAX, 70_000).expect_err("gone");
    assert!(matches!(error, crate::WalError::Removed { asked, .. } if asked == chunk.end), "{error}");
}

#[test]
fn a_reader_beside_removals_gets_the_logs_bytes_or_the_error() {
    let files = SimFiles::new();
    let config = WalConfig { spare_segments: 1, ..config(0) };
    let (wal, _) = Wal::open(Arc::new(files.clone()), config, Lsn::INVALID).expect("new");
    let mut log = Log::over(files, wal.clone());
    log.begin(&history(&[(1, start())])).expect("the first timeline");
    let over = AtomicBool::new(false);
    let (mut pieces, mut removed) = (Vec::new(), 0);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let (mut pieces, mut removed) = (Vec::new(), 0);
            let mut reader = wal.reader(start());
            while !over.load(Ordering::Relaxed) {
                match reader.read(Lsn::MAX, 30_000) {
                    Ok(Some(chunk)) if !reader.from_memory() => {
                        pieces.push((chunk.start, crc32c::crc32c(&chunk.bytes)))
                    }
                    Ok(Some(_) | None) => {}
                    Err(crate::WalError::Removed { first, .. }) => {
                        removed += 1;
                        reader = wal.reader(first);
                    }
                    Err(error) => panic!("neither the bytes nor that they are gone: {error}"),
                }
            }
            (pieces, removed)
        });
        for number in 0..400 {
            log.append(&commit(number, 60_000)).expect("open");
            log.wal.flush().expect("no fault");
            log.wal.remove_before(log.end().lsn, 3).expect("no fault");
        }
        over.store(true, Ordering::Relaxed);
        (pieces, removed) = reading.join().expect("no panic");
    });
    let decoder = crate::Decoder::new(crate::tests::SYSTEM, SIZE, &log.wal.history());
    for (at, checksum) in &pieces {
        let rest = bytes::Bytes::copy_from_slice(&log.content[offset(*at)..]);
        // A piece is whole records: its checksum is that of the log up to the end of one of them.
        let mut ends = decoder.decode(*at, &rest).map(|record| record.expect("whole").end);
        assert!(ends.any(|end| crc32c::crc32c(&rest[..offset(end) - offset(*at)]) == *checksum), "at {at}");
    }
    assert!(!pieces.is_empty() || removed > 0, "the reader was at work");
}

/// What the crash tests know: everything from `floor` on must be found.
#[derive(Default)]
struct Expected {
    content: Vec<u8>,
    flushed: usize,
    floor: Lsn,
    histories: Vec<TimelineHistory>,
}

fn workload(files: &SimFiles, expected: &mut Expected) -> Result<(), crate::WalError> {
    let config = WalConfig { spare_segments: 1, ..config(WalConfig::RING_BYTES_MAX) };
    let one = history(&[(1, start())]);
    expected.histories = vec![TimelineHistory::new(), one.clone()];
    let (wal, _) = Wal::open(Arc::new(files.clone()), config, Lsn::INVALID)?;
    let mut log = Log::over(files.clone(), wal);
    log.begin(&one)?;
    expected.histories = vec![one.clone()];
    let write = |log: &mut Log, expected: &mut Expected, count: u64| {
        for number in 0..count {
            let appended = log.append(&commit(number, 300_000));
            expected.content.clone_from(&log.content);
            appended?;
        }
        expected.flushed = offset(log.wal.flush()?);
        Ok::<(), crate::WalError>(())
    };
    let remove = |log: &Log, expected: &mut Expected, floor: Lsn, spares_max| {
        expected.floor = expected.floor.max(floor);
        log.wal.remove_before(floor, spares_max)
    };
    write(&mut log, expected, 5)?;
    let applied = log.end().lsn;
    write(&mut log, expected, 4)?;
    remove(&log, expected, applied, 2)?;
    write(&mut log, expected, 5)?;
    let fork = log.end().lsn;
    let two = history(&[(1, start()), (2, fork)]);
    expected.histories.push(two.clone());
    log.begin(&two)?;
    expected.histories = vec![two];
    write(&mut log, expected, 6)?;
    remove(&log, expected, fork, 1)?;
    write(&mut log, expected, 6)?;
    let end = log.end().lsn;
    remove(&log, expected, end, 2)?;
    write(&mut log, expected, 4)?;
    log.wal.close()
}

#[test]
fn retained_whatever_is_needed_after_a_crash_at_any_operation() {
    // INV-RETAIN: the log opens at the floor, and holds everything from there on.
    let clean = SimFiles::new();
    workload(&clean, &mut Expected::default()).expect("no fault is planned");
    let operations = clean.operations();
    for (fault, seeds) in [(Fault::Crash, 3), (Fault::Error, 1)] {
        for operation in 0..operations {
            let files = SimFiles::new();
            files.plan(operation, fault);
            let mut expected = Expected::default();
            if workload(&files, &mut expected).is_ok() {
                // A spare was not made, or there were fewer operations this time.
                continue;
            }
            for seed in 0..seeds {
                let context = format!("{fault:?} at operation {operation}, seed {seed}");
                let disk = files.fork();
                disk.crash(operation * 10 + seed);
                let first_end = check(&disk, &expected, &context);
                disk.crash(operation * 10 + seed + 1);
                assert_eq!(check(&disk, &expected, &context), first_end, "{context}: something else the second time");
            }
        }
    }
}

fn check(files: &SimFiles, expected: &Expected, context: &str) -> Lsn {
    let config = WalConfig { spare_segments: 1, ..config(0) };
    let opened = Wal::open(Arc::new(files.clone()), config, expected.floor);
    let (wal, recovery) = opened.unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(recovery.first <= expected.floor.max(start()), "{context}: {} is above the floor", recovery.first);
    let end = offset(recovery.end.lsn);
    assert!(end >= expected.flushed, "{context}: {end} bytes are left of {} that were flushed", expected.flushed);
    let bytes = read_all(&wal, recovery.first, 100_000);
    assert!(bytes == expected.content[offset(recovery.first)..end], "{context}: other bytes than were written");
    assert!(expected.histories.contains(&recovery.history), "{context}: {:?}", recovery.history);
    recovery.end.lsn
}
