use understudy_types::{SegmentNo, SystemId};

use super::*;
use crate::fakes::{Fault, SimFiles};
use crate::tests::{Log, SIZE, SYSTEM, commit, config, history, open, position, read_all, start};
use crate::{OfflineLog, Wal};

/// A log over four segments with a fork inside the second, and where each commit ends.
fn peer() -> (Log, TimelineHistory, Vec<Position>) {
    let mut log = Log::new();
    let mut ends = Vec::new();
    let mut switches = vec![(1, start())];
    for number in 0..30 {
        if number == 12 {
            switches.push((2, log.end().lsn));
            log.begin(&history(&switches)).expect("a fork at the end");
        }
        log.append(&commit(number, 100_000)).expect("open");
        ends.push(log.end());
    }
    log.wal.flush().expect("no fault");
    (log, history(&switches), ends)
}

fn offset(lsn: Lsn) -> usize {
    usize::try_from(lsn.saturating_since(start())).expect("small")
}

/// What a seeding does with the bytes of `content`, which is the peer's whole log.
fn seed(files: &SimFiles, history: &TimelineHistory, at: Position, content: &[u8]) -> Result<(), WalError> {
    let config = config(0);
    let begin = offset(segment_start(&config, at.lsn));
    prepare(Arc::new(files.clone()), &config, history, at, |place, buffer| {
        let from = begin + usize::try_from(place).expect("small");
        buffer.copy_from_slice(&content[from..from + buffer.len()]);
        Ok(())
    })
}

/// Appends what the peer has beyond `at`, switching timelines where it did, and compares the files.
fn follow(wal: &Wal, log: &Log, history: &TimelineHistory, at: Position) {
    let cut = history.switch_to(TimelineId::new(2)).expect("there").switch_lsn;
    let mut from = at.lsn;
    if from < cut {
        let piece = log.content[offset(from)..offset(cut)].to_vec();
        from = wal.append(from, piece.into()).expect("continues");
    }
    wal.begin_timeline(history).expect("the log ends there, or it was begun");
    wal.append(from, log.content[offset(from)..].to_vec().into()).expect("continues");
    wal.flush().expect("no fault");
    assert_eq!(wal.end(), log.end());
}

#[test]
fn a_prepared_log_opens_anywhere_and_goes_on_byte_for_byte() {
    // INV-BYTES, STR-4: in the first segment, before, at and behind a fork, at a boundary.
    let (log, history, ends) = peer();
    let mut places: Vec<Position> = [0, 9, 10, 11, 12, 15, 25, 29].iter().map(|index| ends[*index]).collect();
    places.push(position(0, start()));
    for at in places {
        let files = SimFiles::new();
        seed(&files, &history, at, &log.content).expect("laid out");
        let (wal, recovery) = open(&files, at.lsn).expect("a log");
        assert_eq!((recovery.end, recovery.truncated), (at, None));
        let first = segment_start(&config(0), at.lsn);
        assert_eq!((wal.first(), recovery.first), (first, first), "at {at}");
        follow(&wal, &log, &history, at);
        assert!(read_all(&wal, first, 100_000) == log.content[offset(first)..], "at {at}");
        wal.close().expect("no fault");
        drop(wal);
        let mut compared = 0;
        for path in files.paths().iter().filter(|path| path.file_name().is_some_and(|name| name.len() == 24)) {
            let theirs = log.files.content(path);
            let Some(theirs) = theirs else { panic!("the peer has no {}", path.display()) };
            assert!(files.content(path).expect("listed") == theirs, "{} differs at {at}", path.display());
            compared += 1;
        }
        assert!(compared >= 1);
        let (_, again) = open(&files, at.lsn).expect("a log still");
        assert_eq!((again.end, again.first), (log.end(), first));
    }
}

#[test]
fn a_log_can_be_prepared_at_a_segment_boundary() {
    let mut log = Log::new();
    let boundary = SIZE.start_of(SegmentNo::new(3));
    log.fill_to(boundary).expect("open");
    let at = log.end();
    let files = SimFiles::new();
    let history = log.wal.history();
    let nothing = prepare(Arc::new(files.clone()), &config(0), &history, at, |_, _| panic!("no byte is needed"));
    nothing.expect("laid out");
    let (wal, recovery) = open(&files, at.lsn).expect("a log");
    assert_eq!((recovery.end, recovery.first), (at, boundary));
    let mut ours = Log::over(files, wal);
    let end = ours.append(&commit(1, 100)).expect("open");
    let files = ours.close();
    let (_, again) = open(&files, at.lsn).expect("a log");
    assert_eq!((again.end, again.first), (position(1, end), boundary));
}

#[test]
fn what_lies_below_is_refused_with_the_name_of_its_segment() {
    let (log, history, ends) = peer();
    let files = SimFiles::new();
    seed(&files, &history, ends[25], &log.content).expect("laid out");
    let (wal, _) = open(&files, ends[25].lsn).expect("a log");
    let error = wal.reader(ends[3].lsn).read(Lsn::MAX, 4096).expect_err("not here");
    let text = error.to_string();
    assert!(text.starts_with("requested WAL segment 000000010000000000000001 has already been removed"), "{text}");
    assert!(matches!(error, WalError::Removed { asked, first, .. } if asked == ends[3].lsn && first == wal.first()));
    let error = wal.reader(ends[13].lsn).read(Lsn::MAX, 4096).expect_err("not here").to_string();
    assert!(error.contains("segment 000000020000000000000002 "), "{error}");
    assert!(matches!(wal.truncate(ends[13].lsn), Err(WalError::OutOfRange { begin, .. }) if begin == wal.first()));
    wal.close().expect("no fault");
    let offline = OfflineLog::open(Arc::new(files.clone()), config(0).dir, SYSTEM, SIZE).expect("a log");
    assert_eq!(offline.first(), segment_start(&config(0), ends[25].lsn));
    assert_eq!(offline.visit(offline.first(), drop).expect("whole"), ends[25].lsn);
    assert!(matches!(offline.visit(ends[3].lsn, drop), Err(WalError::Removed { .. })));
}

#[test]
fn a_store_that_needs_more_than_the_log_has_is_refused() {
    // INV-RETAIN: what redo needs is here, or the log does not open.
    let (log, history, ends) = peer();
    let files = SimFiles::new();
    seed(&files, &history, ends[25], &log.content).expect("laid out");
    for applied in [Lsn::INVALID, ends[3].lsn] {
        assert!(matches!(open(&files, applied), Err(WalError::Corrupt { .. })), "{applied}");
    }
    open(&files, ends[25].lsn).expect("with what was copied");
}

#[test]
fn bytes_that_do_not_belong_there_are_refused() {
    let (log, history, ends) = peer();
    let mut wrong = log.content.clone();
    wrong[offset(ends[25].lsn) - 50] ^= 1;
    let files = SimFiles::new();
    let error = seed(&files, &history, ends[25], &wrong).expect_err("a flipped bit");
    assert!(matches!(error, WalError::Corrupt { .. }), "{error}");
    let inside = Position::new(ends[25].timeline, Lsn::new(ends[25].lsn.get() - 8));
    assert!(seed(&files, &history, inside, &log.content).is_err(), "not the end of a record");
    let elsewhere = Position::new(TimelineId::new(1), ends[25].lsn);
    assert!(matches!(seed(&files, &history, elsewhere, &log.content), Err(WalError::BadHistory { .. })));
    let broken = prepare(Arc::new(files.clone()), &config(0), &history, ends[25], |_, _| {
        Err(io::Error::other("the connection broke"))
    });
    assert!(broken.expect_err("no bytes").to_string().contains("the connection broke"));
    seed(&files, &history, ends[25], &log.content).expect("all of that left nothing behind that is in the way");
    assert!(matches!(seed(&files, &history, ends[25], &log.content), Err(WalError::NotFresh { .. })));
    let another = WalConfig { system_id: SystemId::new(1), ..config(0) };
    let refused = prepare(Arc::new(files), &another, &history, ends[25], |_, _| Ok(()));
    assert!(matches!(refused, Err(WalError::Mismatch { .. })));
}

#[test]
fn a_crash_at_any_operation_leaves_a_whole_log_or_none() {
    let (log, history, ends) = peer();
    let at = ends[14];
    let clean = SimFiles::new();
    seed(&clean, &history, at, &log.content).expect("no fault is planned");
    for operation in 0..clean.operations() {
        let files = SimFiles::new();
        files.plan(operation, Fault::Crash);
        let outcome = seed(&files, &history, at, &log.content);
        for seed_number in 0..6 {
            let disk = files.fork();
            disk.crash(operation * 10 + seed_number);
            match seed(&disk, &history, at, &log.content) {
                Ok(()) => assert!(outcome.is_err(), "it had succeeded, and is gone"),
                Err(error) => assert!(matches!(error, WalError::NotFresh { .. }), "{error}"),
            }
            let (wal, recovery) = open(&disk, at.lsn).expect("a log, from the first attempt or the second");
            assert_eq!(recovery.end, at);
            assert!(read_all(&wal, recovery.first, 4096) == log.content[offset(recovery.first)..offset(at.lsn)]);
        }
    }
}
