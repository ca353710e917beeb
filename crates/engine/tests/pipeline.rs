//! Commits on one primary: levels, visibility, preconditions, request ids, bounds.

#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use common::*;
use understudy_engine::{
    Clock, Commit, CommitError, Committed, Condition, EngineConfig, InvalidCommit, ReadError, SystemClock,
    UnknownReason,
};
use understudy_store::{KeyRange, PageLimit};
use understudy_types::{DurabilityLevel, Lsn, Position, TimelineId};
use understudy_wal::Op;

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_read_at_its_position_and_not_before() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let first = commit(&engine, local(vec![put("a", "1"), put("b", "1")])).await.unwrap();
    let second = commit(&engine, local(vec![put("a", "2"), delete("b"), put("c", "x"), delete("c")])).await.unwrap();
    assert!(first.position < second.position && !first.already_done);
    make_all_safe(&engine).await;
    let read =
        |key: &str, at: Position| engine.get(key.as_bytes(), at.lsn).unwrap().map(|found| (found.value, found.version));
    assert_eq!(read("a", first.position), Some(("1".into(), first.position)));
    assert_eq!(read("a", second.position), Some(("2".into(), second.position)));
    assert_eq!(read("b", second.position), None);
    assert_eq!(read("c", second.position), None);
    assert_eq!(engine.get(b"a", Lsn::new(first.position.lsn.get() - 1)).unwrap(), None);
    let limit = PageLimit { entries_max: 10, bytes_max: 100 };
    let page = engine.scan(&KeyRange::default(), first.position.lsn, limit).unwrap();
    assert_eq!(page.entries.len(), 2);
}

/// INV-VISIBLE: what is not safe is read by nobody, at any level.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_safe_is_not_visible() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let made = commit(&engine, local(vec![put("a", "1")])).await.unwrap();
    assert!(engine.visible().borrow().lsn < made.position.lsn);
    assert_eq!(value(&engine, "a"), None);
    let error = engine.get(b"a", made.position.lsn).unwrap_err();
    assert!(matches!(error, ReadError::NotVisible { at, .. } if at == made.position.lsn), "{error}");
    let limit = PageLimit { entries_max: 1, bytes_max: 1 };
    assert!(matches!(engine.scan(&KeyRange::default(), made.position.lsn, limit), Err(ReadError::NotVisible { .. })));
    // A safe LSN within the record is not enough, and it never goes back.
    engine.advance_safe(Lsn::new(made.position.lsn.get() - 8));
    engine.advance_safe(made.position.lsn);
    engine.advance_safe(Lsn::INVALID);
    assert_eq!(visible(&engine, made.position.lsn).await, made.position);
    assert_eq!(*engine.safe().borrow(), made.position.lsn);
    assert_eq!(value(&engine, "a"), Some("1".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_level_waits_for_its_own_position() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    disk.files.hold_syncs(true);
    let appended = commit(&engine, at(DurabilityLevel::Off, vec![put("a", "off")])).await.unwrap();
    let local = start(&engine, local(vec![put("a", "local")]));
    let on = start(&engine, at(DurabilityLevel::On, vec![put("a", "on")]));
    let more = commit(&engine, at(DurabilityLevel::Off, vec![put("a", "more")])).await.unwrap();
    assert!(appended.position < more.position);
    assert!(*engine.wal().flushed().borrow() < appended.position.lsn);
    assert!(!local.is_finished() && !on.is_finished());
    // Safe beyond the own flush: the applier does not go there.
    engine.advance_safe(Lsn::MAX);
    assert!(engine.visible().borrow().lsn < appended.position.lsn);
    disk.files.hold_syncs(false);
    let local = local.await.unwrap().unwrap();
    assert!(*engine.wal().flushed().borrow() >= local.position.lsn);
    let on = on.await.unwrap().unwrap();
    assert!(engine.visible().borrow().lsn >= on.position.lsn);
}

/// The store is never ahead of the log's own flush, whatever is safe elsewhere: a crash would leave it with what the
/// log has lost.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_applied_before_it_is_flushed_here() {
    let disk = Disk::new();
    let flushed: Arc<OnceLock<tokio::sync::watch::Receiver<Lsn>>> = Arc::default();
    let ahead = Arc::new(AtomicBool::new(false));
    let engine = {
        let (flushed, ahead) = (Arc::clone(&flushed), Arc::clone(&ahead));
        disk.open_watched(move |applied| {
            let flushed = *flushed.get().unwrap().borrow();
            ahead.fetch_or(applied.lsn > flushed, Ordering::SeqCst);
        })
    };
    flushed.set(engine.wal().flushed()).unwrap();
    engine.open_primary(&history(&[(1, SIZE.log_start())]), SIZE.log_start()).unwrap();
    confirm(&engine);
    engine.advance_safe(Lsn::MAX);
    let mut last = Lsn::INVALID;
    for _ in 0..500 {
        last = commit(&engine, at(DurabilityLevel::Off, vec![put("a", "1")])).await.unwrap().position.lsn;
    }
    visible(&engine, last).await;
    assert!(!ahead.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread")]
async fn level_on_waits_for_the_safe_lsn() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let before = engine.wal().end();
    let first = start(&engine, at(DurabilityLevel::On, vec![put("a", "1")]));
    grown(&engine, before, 1).await;
    let second = barrier(&engine).await;
    assert!(!first.is_finished());
    engine.advance_safe(second.lsn);
    assert!(first.await.unwrap().unwrap().position < second);
    assert_eq!(value(&engine, "a"), Some("1".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn preconditions_see_pending_commits() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let made = commit(&engine, local(vec![put("a", "1")])).await.unwrap().position;
    let with = |condition, value| Commit { preconditions: when("a", condition), ..local(vec![put("a", value)]) };
    // All of them on pending state: nothing is safe yet.
    let made = commit(&engine, with(Condition::VersionEquals(made), "2")).await.unwrap().position;
    commit(&engine, with(equals("2"), "3")).await.unwrap();
    commit(&engine, with(Condition::Present, "4")).await.unwrap();
    let stale = start(&engine, with(Condition::VersionEquals(made), "5"));
    let gone = commit(&engine, local(vec![delete("a")])).await.unwrap();
    assert!(!stale.is_finished());
    commit(&engine, with(Condition::Absent, "6")).await.unwrap();
    assert!(gone.position > made);
    make_all_safe(&engine).await;
    // Ordered before the deletion, after it or after the next put, as it came: what it found is never what it asked for.
    let error = stale.await.unwrap().unwrap_err();
    let CommitError::PreconditionFailed { index: 0, found, .. } = error else { panic!("{error}") };
    assert_ne!(found, Some(made));
    assert_eq!(value(&engine, "a"), Some("6".into()));
    // And on what is visible: answered at once.
    for condition in [Condition::Absent, equals("5"), Condition::VersionEquals(made)] {
        let error = commit(&engine, with(condition, "7")).await.unwrap_err();
        let found = engine.get(b"a", engine.visible().borrow().lsn).unwrap().map(|found| found.version);
        assert!(matches!(error, CommitError::PreconditionFailed { found: said, .. } if said == found), "{error}");
    }
    let other_timeline = engine.get(b"a", engine.visible().borrow().lsn).unwrap().unwrap().version;
    let other_timeline = Position::new(TimelineId::new(9), other_timeline.lsn);
    assert!(commit(&engine, with(Condition::VersionEquals(other_timeline), "7")).await.is_err());
    assert_eq!(value(&engine, "a"), Some("6".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_preconditions_must_hold_and_the_first_that_does_not_is_named() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let mut preconditions = when("a", Condition::Absent);
    preconditions.extend(when("b", Condition::Present));
    preconditions.extend(when("c", Condition::Present));
    let error = commit(&engine, Commit { preconditions, ..local(vec![put("a", "1")]) }).await.unwrap_err();
    assert_eq!(error, CommitError::PreconditionFailed { index: 1, key: "b".into(), found: None });
    make_all_safe(&engine).await;
    assert_eq!(value(&engine, "a"), None);
}

/// INV-VISIBLE: a failed precondition tells of the commit that it rests on, so it waits for it to be safe.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_precondition_is_told_when_what_it_rests_on_is_safe() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let basis = commit(&engine, local(vec![put("a", "1")])).await.unwrap().position;
    let attempt = Commit { preconditions: when("a", Condition::Absent), ..local(vec![put("a", "2")]) };
    let failing = start(&engine, attempt.clone());
    barrier(&engine).await;
    assert!(!failing.is_finished());
    let error = deadline_passes(&engine, || attempt.clone()).await;
    assert_eq!(error, CommitError::NotDecided { why: UnknownReason::Deadline });
    engine.advance_safe(basis.lsn);
    assert!(matches!(failing.await.unwrap(), Err(CommitError::PreconditionFailed { .. })));
    make_all_safe(&engine).await;
    assert_eq!(value(&engine, "a"), Some("1".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_takes_effect_once() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let once =
        Commit { request_id: request(1), preconditions: when("a", Condition::Absent), ..local(vec![put("a", "1")]) };
    let first = commit(&engine, once.clone()).await.unwrap();
    // Pending: that it was done is told when it is safe, whatever the level.
    let again = start(&engine, once.clone());
    barrier(&engine).await;
    assert!(!again.is_finished());
    engine.advance_safe(first.position.lsn);
    let done = Committed { position: first.position, already_done: true };
    assert_eq!(again.await.unwrap(), Ok(done));
    make_all_safe(&engine).await;
    // Applied: at once, and its preconditions are not looked at.
    assert_eq!(commit(&engine, once.clone()).await, Ok(done));
    let on = Commit { level: DurabilityLevel::On, ..once };
    assert_eq!(commit(&engine, on).await, Ok(done));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_of_one_request_id_at_once_take_effect_once() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let once = Commit { request_id: request(1), ..at(DurabilityLevel::On, vec![put("a", "1")]) };
    let before = engine.wal().end();
    let all: Vec<_> = (0..20).map(|_| start(&engine, once.clone())).collect();
    grown(&engine, before, 1).await;
    make_all_safe(&engine).await;
    let mut outcomes = Vec::new();
    for one in all {
        outcomes.push(one.await.unwrap().unwrap());
    }
    assert_eq!(outcomes.iter().filter(|made| !made.already_done).count(), 1);
    assert!(outcomes.iter().all(|made| made.position == outcomes[0].position));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_as_unknown_and_the_commit_goes_on() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let error = deadline_passes(&engine, || at(DurabilityLevel::On, vec![put("a", "1")])).await;
    let CommitError::Unknown { position: Some(position), why: UnknownReason::Deadline } = error else {
        panic!("{error}")
    };
    make_all_safe(&engine).await;
    assert_eq!(engine.get(b"a", position.lsn).unwrap().unwrap().version, position);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_commit_takes_nothing_with_it() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let before = engine.wal().end();
    let cancelled = start(&engine, at(DurabilityLevel::On, vec![put("a", "1")]));
    let kept = start(&engine, at(DurabilityLevel::On, vec![put("b", "1")]));
    grown(&engine, before, 2).await;
    cancelled.abort();
    assert!(cancelled.await.unwrap_err().is_cancelled());
    make_all_safe(&engine).await;
    assert!(kept.await.unwrap().is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_acknowledged_at_any_level_unless_confirmed() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let levels = [DurabilityLevel::Off, DurabilityLevel::Local, DurabilityLevel::On];
    for until in [None, Some(SystemClock.boot_time())] {
        engine.set_confirmed_until(until);
        let before = engine.wal().end();
        let held = levels.map(|level| start(&engine, at(level, vec![put("a", "1")])));
        // All three are in the log, flushed, safe and applied.
        grown(&engine, before, 3).await;
        make_all_safe(&engine).await;
        let error = deadline_passes(&engine, || local(vec![put("b", "1")])).await;
        assert!(matches!(error, CommitError::Unknown { position: Some(_), why: UnknownReason::Deadline }), "{error}");
        assert!(held.iter().all(|held| !held.is_finished()));
        confirm(&engine);
        for held in held {
            held.await.unwrap().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unconfirmed_commits_are_bounded_by_bytes() {
    let disk = Disk::new();
    let engine = disk.try_open(EngineConfig { queue_bytes_max: 100_000, ..config() }).unwrap();
    engine.open_primary(&history(&[(1, SIZE.log_start())]), SIZE.log_start()).unwrap();
    confirm(&engine);
    make_all_safe(&engine).await;
    let big = local(vec![put("a", &"x".repeat(40_000))]);
    commit(&engine, big.clone()).await.unwrap();
    commit(&engine, big.clone()).await.unwrap();
    let error = commit(&engine, big.clone()).await.unwrap_err();
    assert!(matches!(error, CommitError::QueueFull { bytes, bytes_max: 100_000 } if bytes > 100_000), "{error}");
    make_all_safe(&engine).await;
    commit(&engine, big).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_refused_before_anything_is_written() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let before = engine.wal().end();
    let error = commit(&engine, local(vec![put("", "1")])).await.unwrap_err();
    assert_eq!(error, CommitError::Invalid(InvalidCommit::EmptyKey));
    let error = commit(&engine, local(vec![put("a", &"x".repeat(2 << 20))])).await.unwrap_err();
    assert!(matches!(error, CommitError::Invalid(InvalidCommit::TooLarge { .. })), "{error}");
    assert_eq!(engine.wal().end(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_increments_lose_nothing() {
    const WRITERS: u64 = 8;
    const EACH: u64 = 25;
    let disk = Disk::new();
    let engine = disk.open_primary();
    let safe = follow_flush(&engine);
    commit(&engine, at(DurabilityLevel::On, vec![put("n", "0")])).await.unwrap();
    let writer = |engine: understudy_engine::Engine| async move {
        let mut done = 0;
        while done < EACH {
            let visible = engine.visible().borrow().lsn;
            let found = engine.get(b"n", visible).unwrap().unwrap();
            let number: u64 = std::str::from_utf8(&found.value).unwrap().parse().unwrap();
            let next = Op::Put { key: "n".into(), value: (number + 1).to_string().into() };
            let preconditions = when("n", Condition::VersionEquals(found.version));
            match commit(&engine, Commit { preconditions, ..at(DurabilityLevel::On, vec![next]) }).await {
                Ok(_) => done += 1,
                Err(CommitError::PreconditionFailed { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
    };
    let writers: Vec<_> = (0..WRITERS).map(|_| tokio::spawn(writer(engine.clone()))).collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(value(&engine, "n"), Some((WRITERS * EACH).to_string()));
    safe.abort();
}
