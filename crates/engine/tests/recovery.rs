//! What a crash leaves, and what is refused at the start.

#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

mod common;

use std::sync::Arc;

use common::*;
use understudy_engine::{
    Commit, CommitError, Committed, Engine, EngineConfig, EngineFailure, OpenError, SystemClock, UnknownReason,
};
use understudy_store::{AppliedCommit, KeyRange, MemoryStore, PageLimit, RocksConfig, RocksStore, Store};
use understudy_types::{DurabilityLevel, Lsn, Position, TimelineHistory, TimelineId};
use understudy_wal::RealFiles;

fn once(number: u8) -> Commit {
    let key = format!("key-{number}");
    Commit { request_id: request(number), ..local(vec![put(&key, &key)]) }
}

/// Opens the next timeline at the end of the log, with everything that it holds safe.
fn promote(engine: &Engine) -> TimelineHistory {
    let end = engine.wal().end().lsn;
    let mut switches: Vec<_> =
        engine.wal().history().switches().iter().map(|switch| (switch.timeline.get(), switch.switch_lsn)).collect();
    switches.push((switches.len() as u32 + 1, end));
    let timelines = history(&switches);
    engine.open_primary(&timelines, end).unwrap();
    confirm(engine);
    timelines
}

/// INV-REDO, INV-DURABLE (the local part): whatever the power failure left of unsynced writes and unflushed
/// store, every commit acknowledged at level `local` is there once, and the store is the replay of the log.
#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_commit_survives_a_crash_once() {
    for seed in 0..30_u8 {
        let disk = Disk::new();
        let mut engine = disk.open_primary();
        let mut acknowledged: Vec<(u8, Position)> = Vec::new();
        for round in 0..3_u8 {
            for number in 0..5 {
                let number = round * 10 + number;
                acknowledged.push((number, commit(&engine, once(number)).await.unwrap().position));
                if number % 3 == seed % 3 {
                    make_all_safe(&engine).await;
                }
                if number % 5 == seed % 5 {
                    disk.store.flush().unwrap();
                }
            }
            // Appended and perhaps written, not acknowledged: may be there or not.
            disk.files.hold_syncs(true);
            let off = Commit { level: DurabilityLevel::Off, ..once(round * 10 + 9) };
            commit(&engine, off).await.unwrap();
            disk.crash(u64::from(seed) * 7 + u64::from(round));
            drop(engine);
            engine = disk.open();
            let applied = disk.store.applied();
            let visible = engine.visible().borrow().lsn;
            assert!(applied.lsn == visible || (applied == Position::default() && visible == SIZE.log_start()));
            promote(&engine);
            for (number, position) in &acknowledged {
                let done = Committed { position: *position, already_done: true };
                assert_eq!(commit(&engine, once(*number)).await, Ok(done), "seed {seed}, round {round}");
            }
        }
        make_all_safe(&engine).await;
        assert_replay(&engine, &disk.store);
    }
}

/// The store holds exactly what a replay of the log up to its applied position yields.
fn assert_replay(engine: &Engine, store: &MemoryStore) {
    let replayed = MemoryStore::new();
    let decoder = understudy_wal::Decoder::new(SYSTEM, SIZE, &engine.wal().history());
    let mut reader = engine.wal().reader(SIZE.log_start());
    let applied = store.applied();
    while let Some(chunk) = reader.read(applied.lsn, 1 << 20).unwrap() {
        for record in decoder.decode(chunk.start, &chunk.bytes) {
            let record = record.unwrap();
            let position = Position::new(record.timeline, record.end);
            if let understudy_wal::Record::GcHorizon(horizon) = record.record {
                replayed.raise_horizon(horizon, position).unwrap();
                continue;
            }
            let commits: Vec<_> = match record.record {
                understudy_wal::Record::Commit(commit) => vec![AppliedCommit {
                    start: record.start,
                    lsn: record.end,
                    timeline: record.timeline,
                    time_us: record.time_us,
                    request_id: commit.request_id,
                    ops: commit.ops,
                }],
                understudy_wal::Record::EndOfRecovery { .. }
                | understudy_wal::Record::Filler
                | understudy_wal::Record::Noop
                | understudy_wal::Record::GcHorizon(_) => Vec::new(),
            };
            replayed.apply(&commits, position).unwrap();
        }
    }
    assert!(store.same_content(&replayed));
}

/// The crash comes in the middle of a truncation or of opening a timeline: the next start goes on from it.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_operation_of_a_rejoin_can_be_repeated() {
    let prepare = || async {
        let disk = Disk::new();
        let engine = disk.open_primary();
        let kept = commit(&engine, once(1)).await.unwrap().position;
        make_all_safe(&engine).await;
        disk.store.flush().unwrap();
        for number in 2..6 {
            commit(&engine, once(number)).await.unwrap();
        }
        engine.seal().unwrap();
        (disk, engine, kept)
    };
    let rejoin = |engine: &Engine, timelines: &TimelineHistory| engine.rejoin(timelines).map(|rejoined| rejoined.end);
    let (disk, engine, kept) = prepare().await;
    let timelines = history(&[(1, SIZE.log_start()), (2, kept.lsn)]);
    let first = disk.files.operations();
    assert_eq!(rejoin(&engine, &timelines).unwrap(), kept);
    let operations = disk.files.operations() - first;
    assert!(operations > 0);
    for operation in 0..operations {
        let (disk, engine, kept) = prepare().await;
        let begin = disk.files.operations();
        disk.files.plan(begin + operation, understudy_wal::fakes::Fault::Crash);
        // The crash may hit the call or what the writer does behind it.
        let outcome = rejoin(&engine, &timelines);
        assert!(outcome.is_err() || outcome.is_ok_and(|end| end == kept), "operation {operation}");
        disk.crash(operation);
        drop(engine);
        let engine = disk.open();
        assert_eq!(rejoin(&engine, &timelines).unwrap(), kept, "operation {operation}");
        engine.begin_timeline(&timelines).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_fsync_is_latched_and_nothing_is_acknowledged() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    commit(&engine, once(1)).await.unwrap();
    disk.files.fail_syncs(true);
    let error = commit(&engine, once(2)).await.unwrap_err();
    assert!(matches!(error, CommitError::Unknown { why: UnknownReason::Failed, .. }), "{error}");
    let failure = engine.failure().wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert!(matches!(*failure, EngineFailure::Wal(_)), "{failure}");
    disk.files.fail_syncs(false);
    let error = commit(&engine, once(3)).await.unwrap_err();
    assert!(matches!(error, CommitError::NotPrimary), "{error}");
    assert!(engine.seal().is_err() && engine.stop().is_err());
    assert_eq!(engine.is_primary(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_a_failure_and_loses_nothing() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    commit(&engine, once(1)).await.unwrap();
    disk.files.set_capacity(Some(SIZE.get() * 3 / 2));
    let big = "x".repeat(200_000);
    let mut outcome = Ok(());
    for _ in 0..20 {
        outcome = commit(&engine, local(vec![put("big", &big)])).await.map(|_| ());
        if outcome.is_err() {
            break;
        }
    }
    assert!(outcome.is_err());
    engine.failure().wait_for(Option::is_some).await.unwrap();
    disk.files.set_capacity(None);
    disk.crash(1);
    drop(engine);
    let engine = disk.open();
    promote(&engine);
    assert!(commit(&engine, once(1)).await.unwrap().already_done);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_does_not_belong_to_the_log_is_refused() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let end = commit(&engine, once(1)).await.unwrap().position;
    engine.stop().unwrap();
    drop(engine);
    disk.store.apply(&[], Position::new(TimelineId::new(2), end.lsn)).unwrap();
    let error = disk.try_open(config()).unwrap_err();
    assert!(matches!(error, OpenError::StoreDiverged { .. }), "{error}");
    disk.store.apply(&[], Position::new(TimelineId::FIRST, end.lsn.advance(8))).unwrap();
    let error = disk.try_open(config()).unwrap_err();
    assert!(matches!(error, OpenError::StoreAhead { .. }), "{error}");
    assert!(error.to_string().contains(&end.lsn.to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn real_files_and_rocksdb_survive_a_stop_and_a_failover() {
    let dir = tempfile::tempdir().unwrap();
    let config = EngineConfig { segment_size: SIZE, ..EngineConfig::new(dir.path(), SYSTEM) };
    let open = || {
        let store = RocksStore::open(&RocksConfig::new(dir.path().join("store"), SYSTEM)).unwrap();
        Engine::open(config.clone(), Arc::new(RealFiles), Arc::new(store), Arc::new(SystemClock)).unwrap()
    };
    let engine = open();
    engine.open_primary(&history(&[(1, SIZE.log_start())]), SIZE.log_start()).unwrap();
    confirm(&engine);
    let safe = follow_flush(&engine);
    let value = "x".repeat(50_000);
    for number in 0..50_u8 {
        let ops = vec![put(&format!("key-{number:02}"), &value)];
        let on = Commit { request_id: request(number), ..at(DurabilityLevel::On, ops) };
        commit(&engine, on).await.unwrap();
    }
    safe.abort();
    assert!(safe.await.unwrap_err().is_cancelled());
    let end = engine.wal().end();
    engine.stop().unwrap();
    assert_eq!(engine.store().durable_applied().unwrap(), *engine.visible().borrow());
    drop(engine);
    let engine = open();
    assert_eq!((engine.wal().end(), *engine.visible().borrow()), (end, end));
    promote(&engine);
    for number in 0..50_u8 {
        let again = Commit { request_id: request(number), ..local(vec![put("other", "")]) };
        assert!(commit(&engine, again).await.unwrap().already_done);
    }
    let limit = PageLimit { entries_max: 1_000, bytes_max: 1 << 30 };
    let page = engine.scan(&KeyRange::default(), end.lsn, limit).unwrap();
    assert_eq!(page.entries.len(), 50);
    assert!(page.entries.iter().all(|entry| entry.value == value && entry.version.lsn <= end.lsn));
    assert_eq!(engine.get(b"key-00", Lsn::new(SIZE.get())).unwrap(), None);
}
