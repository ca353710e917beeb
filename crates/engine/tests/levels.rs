//! The levels of durability, the ends of a wait, the list of who waits, and batches.

#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

mod common;

use std::time::Duration;

use common::*;
use understudy_engine::{
    CancelWaiting, Commit, CommitError, Committed, Condition, Engine, UnknownReason, WAITING_COMMITS_MAX, WaitStage,
    Waiting,
};
use understudy_types::{DurabilityLevel, Lsn};

type Started = tokio::task::JoinHandle<Result<Committed, CommitError>>;

/// Levels whose commits wait as long as nobody says anything.
const REMOTE: [DurabilityLevel; 3] = [DurabilityLevel::RemoteWrite, DurabilityLevel::On, DurabilityLevel::RemoteApply];

/// Starts one commit at each of these levels and waits until each of them waits.
async fn start_each(engine: &Engine, levels: &[DurabilityLevel]) -> Vec<Started> {
    let number = |at: usize| u8::try_from(at + 1).unwrap();
    let started = levels.iter().enumerate().map(|(at, level)| {
        let commit = Commit { request_id: request(number(at)), ..common::at(*level, vec![put("a", "1")]) };
        start(engine, commit)
    });
    let started: Vec<Started> = started.collect();
    waits(engine, levels.len() as u64).await;
    started
}

/// Waits until so many wait.
async fn waits(engine: &Engine, count: u64) -> Waiting {
    loop {
        let waiting = engine.waiting();
        if waiting.total == count {
            return waiting;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_level_waits_for_its_own_position() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let started = start_each(&engine, &REMOTE).await;
    let end = engine.wal().flush().unwrap();
    let [write, on, apply] = <[Started; 3]>::try_from(started).unwrap();

    // Written there: one of them has what it asked for.
    engine.advance_remote_write(end);
    assert!(write.await.unwrap().is_ok());
    assert!(!on.is_finished() && !apply.is_finished());
    assert_eq!(value(&engine, "a"), None, "it is not safe, so it is not visible");

    engine.advance_safe(end);
    assert!(on.await.unwrap().is_ok());
    assert!(!apply.is_finished());

    engine.advance_remote_apply(end);
    assert!(apply.await.unwrap().is_ok());
    assert_eq!(engine.waiting(), Waiting::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn remote_apply_waits_for_this_node_too() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let started = start_each(&engine, &[DurabilityLevel::RemoteApply]).await;
    let end = engine.wal().flush().unwrap();
    engine.advance_remote_apply(end);
    let waiting = waits(&engine, 1).await;
    assert!(!started[0].is_finished() && waiting.commits[0].level == DurabilityLevel::RemoteApply);
    engine.advance_safe(end);
    for commit in started {
        let made = commit.await.unwrap().unwrap();
        assert!(engine.visible().borrow().lsn >= made.position.lsn);
    }
}

/// INV-DURABLE: what was written elsewhere and not flushed here is not acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn remote_write_never_goes_beyond_the_local_flush() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let flushed = engine.wal().flush().unwrap();
    engine.advance_remote_write(Lsn::MAX);
    let started = start_each(&engine, &[DurabilityLevel::RemoteWrite]).await;
    assert!(engine.wal().end().lsn > flushed && !started[0].is_finished());
    engine.advance_remote_write(engine.wal().flush().unwrap());
    for commit in started {
        assert!(commit.await.unwrap().is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_is_unknown_at_every_level_and_the_request_id_tells_later() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let mut ids = (1..).map(request);
    for level in REMOTE {
        let mut commit = Commit::default();
        // Another id each time: a known one is waited for at level `on` at least.
        let error = deadline_passes(&engine, || {
            commit = Commit { request_id: ids.next().flatten(), ..at(level, vec![put("a", "1")]) };
            commit.clone()
        })
        .await;
        let CommitError::Unknown { position: Some(position), why: UnknownReason::Deadline } = error else {
            panic!("{error}")
        };
        assert_eq!(engine.waiting().total, 0, "nobody waits any more");
        // Asked again: no answer before it is safe, whatever the level was.
        let again = start(&engine, commit.clone());
        waits(&engine, 1).await;
        engine.advance_remote_write(engine.wal().flush().unwrap());
        assert!(!again.is_finished());
        engine.advance_remote_apply(engine.wal().flush().unwrap());
        let all = make_all_safe(&engine).await;
        assert!(position.lsn <= all.lsn);
        assert_eq!(again.await.unwrap(), Ok(Committed { position, already_done: true }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_down_and_a_stop_are_unknown_at_every_level() {
    for why in [UnknownReason::StepDown, UnknownReason::Stopping] {
        let disk = Disk::new();
        let engine = disk.open_primary();
        let started = start_each(&engine, &REMOTE).await;
        match why {
            UnknownReason::StepDown => drop(engine.seal().unwrap()),
            UnknownReason::Deadline | UnknownReason::Stopping | UnknownReason::Failed | UnknownReason::Cancelled => {
                engine.stop().unwrap();
            }
        }
        // What comes too late releases nobody (INV-FENCED).
        engine.advance_remote_write(Lsn::MAX);
        engine.advance_remote_apply(Lsn::MAX);
        for commit in started {
            let error = commit.await.unwrap().unwrap_err();
            assert!(matches!(error, CommitError::Unknown { position: Some(_), why: said } if said == why), "{error}");
        }
        assert_eq!(engine.waiting(), Waiting::default());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_wait_is_unknown_and_the_commit_stands() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let mut started = start_each(&engine, &REMOTE).await;
    assert_eq!(engine.cancel_waiting(CancelWaiting::Request(request(9).unwrap())), 0);
    assert_eq!(engine.cancel_waiting(CancelWaiting::Request(request(2).unwrap())), 1);
    let error = started.remove(1).await.unwrap().unwrap_err();
    let CommitError::Unknown { position: Some(position), why: UnknownReason::Cancelled } = error else {
        panic!("{error}")
    };
    assert_eq!(engine.cancel_waiting(CancelWaiting::All), 2);
    for commit in started {
        let error = commit.await.unwrap().unwrap_err();
        assert!(matches!(error, CommitError::Unknown { why: UnknownReason::Cancelled, .. }), "{error}");
    }
    // Nothing was taken back, and later commits wait as ever.
    make_all_safe(&engine).await;
    assert_eq!(engine.get(b"a", position.lsn).unwrap().unwrap().version, position);
    let on = start(&engine, at(DurabilityLevel::On, vec![put("b", "1")]));
    waits(&engine, 1).await;
    make_all_safe(&engine).await;
    assert!(on.await.unwrap().is_ok());
}

/// A wait for what a failed precondition rests on can be ended too: nothing was written then.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_failed_precondition_is_not_decided() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    commit(&engine, local(vec![put("a", "1")])).await.unwrap();
    let failing = start(&engine, Commit { preconditions: when("a", Condition::Absent), ..local(vec![put("a", "2")]) });
    assert_eq!(waits(&engine, 1).await.commits[0].stage, WaitStage::Visible);
    assert_eq!(engine.cancel_waiting(CancelWaiting::All), 1);
    assert_eq!(failing.await.unwrap(), Err(CommitError::NotDecided { why: UnknownReason::Cancelled }));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_says_who_waits_and_for_what() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    assert_eq!(engine.waiting(), Waiting::default());
    let _started = start_each(&engine, &REMOTE).await;
    let first = engine.waiting();
    let mut told: Vec<_> = first.commits.iter().map(|it| (it.request_id, it.level, it.stage)).collect();
    told.sort_by_key(|(id, ..)| id.map(|id| *id.as_bytes()));
    assert_eq!(
        told,
        [
            (request(1), DurabilityLevel::RemoteWrite, WaitStage::RemoteWrite),
            (request(2), DurabilityLevel::On, WaitStage::Visible),
            (request(3), DurabilityLevel::RemoteApply, WaitStage::RemoteApply),
        ]
    );
    assert!(first.commits.is_sorted_by_key(|it| it.position.lsn));
    assert!(engine.waiting().oldest() > first.oldest() || first.oldest() > Duration::ZERO);
    // Unconfirmed: whoever has all that the level asks for waits for the majority.
    engine.set_confirmed_until(None);
    let local = start(&engine, Commit { request_id: request(4), ..local(vec![put("b", "1")]) });
    let of_local = |waiting: Waiting| waiting.commits.into_iter().find(|it| it.request_id == request(4));
    while of_local(engine.waiting()).is_none_or(|it| it.stage != WaitStage::Confirmation) {
        tokio::task::yield_now().await;
    }
    assert_eq!(engine.cancel_waiting(CancelWaiting::Request(request(4).unwrap())), 1);
    assert!(matches!(local.await.unwrap(), Err(CommitError::Unknown { why: UnknownReason::Cancelled, .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_is_bounded_and_the_count_is_not() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let count = WAITING_COMMITS_MAX + 50;
    let commits = (0..count).map(|_| at(DurabilityLevel::On, vec![put("a", "1")])).collect();
    let batch = {
        let engine = engine.clone();
        tokio::spawn(async move { engine.commit_batch(commits, deadline()).await })
    };
    let waiting = waits(&engine, count as u64).await;
    assert_eq!(waiting.commits.len(), WAITING_COMMITS_MAX);
    make_all_safe(&engine).await;
    assert!(batch.await.unwrap().iter().all(Result::is_ok));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_has_a_result_for_each_in_order() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    make_all_safe(&engine).await;
    let before = engine.wal().end();
    let once = Commit { request_id: request(1), ..local(vec![put("a", "1")]) };
    let commits = vec![
        once.clone(),
        local(vec![put("", "1")]),
        Commit { preconditions: when("b", Condition::Present), ..local(vec![put("b", "1")]) },
        local(vec![put("c", "1")]),
        once,
    ];
    let follow = follow_flush(&engine);
    let results = engine.commit_batch(commits, deadline()).await;
    follow.abort();
    let [first, empty, absent, third, again] = <[_; 5]>::try_from(results).unwrap();
    let (first, third) = (first.unwrap(), third.unwrap());
    assert!(before.lsn < first.position.lsn && first.position < third.position);
    assert!(matches!(empty, Err(CommitError::Invalid(_))));
    assert!(matches!(absent, Err(CommitError::PreconditionFailed { found: None, .. })));
    assert_eq!(again, Ok(Committed { position: first.position, already_done: true }));
    engine.seal().unwrap();
    let refused = engine.commit_batch(vec![local(vec![put("a", "2")])], deadline()).await;
    assert_eq!(refused, [Err(CommitError::NotPrimary)]);
}

/// A batch is not torn: nobody else's commit comes between its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_stands_together_in_the_log() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let others: Vec<_> = (0..4)
        .map(|_| {
            let engine = engine.clone();
            tokio::spawn(async move {
                for _ in 0..200 {
                    commit(&engine, at(DurabilityLevel::Off, vec![put("x", "1")])).await.unwrap();
                }
            })
        })
        .collect();
    for _ in 0..20 {
        let commits = (0..20).map(|_| at(DurabilityLevel::Off, vec![put("a", "1")])).collect();
        let results = engine.commit_batch(commits, deadline()).await;
        let ends: Vec<u64> = results.into_iter().map(|made| made.unwrap().position.lsn.get()).collect();
        let record = ends[1] - ends[0];
        assert!(ends.windows(2).all(|pair| pair[1] - pair[0] == record), "{ends:?}");
    }
    for other in others {
        other.await.unwrap();
    }
}
