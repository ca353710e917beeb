//! Checkpoints, and the WAL that they let go (INV-RETAIN, WAL-2).

#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

mod common;

use std::time::Duration;

use common::*;
use understudy_engine::{Engine, EngineFailure, Retention, RetentionSettings};
use understudy_store::Store;
use understudy_types::{Lsn, SegmentNo};
use understudy_wal::WalError;

const MIB: u64 = 1 << 20;

fn settings() -> RetentionSettings {
    RetentionSettings { wal_keep_size_bytes: MIB, max_wal_size_bytes: 6 * MIB, checkpoint_timeout: NEVER }
}

/// Writes about `bytes`, and waits until they are visible.
async fn fill(engine: &Engine, bytes: u64) -> Lsn {
    let value = "v".repeat(50_000);
    for number in 0..bytes.div_ceil(50_000) {
        commit(engine, local(vec![put(&format!("key-{}", number % 7), &value)])).await.unwrap();
    }
    make_all_safe(engine).await.lsn
}

async fn until(engine: &Engine, what: &str, wanted: impl FnMut(&Retention) -> bool) -> Retention {
    let mut watched = engine.watch_retention();
    let reached = tokio::time::timeout(NEVER, watched.wait_for(wanted)).await;
    *reached.unwrap_or_else(|_| panic!("waited in vain for {what}: {:?}", engine.retention())).unwrap()
}

fn boundary(segment: u64) -> Lsn {
    SIZE.start_of(SegmentNo::new(segment))
}

#[tokio::test(flavor = "multi_thread")]
async fn half_of_max_wal_size_starts_a_checkpoint_and_what_nobody_needs_goes() {
    // WAL-2, INV-RETAIN.
    let disk = Disk::new();
    let engine = disk.open_primary();
    engine.set_retention(settings());
    assert_eq!((engine.retention().oldest, engine.retention().checkpoints), (SIZE.log_start(), 0));
    fill(&engine, 5 * MIB).await;
    until(&engine, "a checkpoint", |retention| retention.checkpoints >= 1).await;
    let end = fill(&engine, 5 * MIB).await;
    let kept = until(&engine, "the next", |retention| retention.checkpoints >= 2).await;
    assert!(kept.checkpoint_at_us.is_some());
    assert!(kept.checkpoint_lsn.saturating_since(SIZE.log_start()) >= 6 * MIB, "{kept:?}");
    let kept = until(&engine, "a removal", |retention| retention.oldest >= boundary(6)).await;
    assert!(kept.segments_removed >= 5, "{kept:?}");
    // wal_keep_size is a minimum, and redo's begin is kept.
    assert!(end.saturating_since(engine.retention().oldest) >= MIB);
    assert!(engine.retention().oldest <= disk.store.durable_applied().unwrap().lsn);
    assert_eq!(engine.retention().wal_bytes, end.saturating_since(engine.retention().oldest));
    // And it opens after a crash.
    disk.crash(1);
    drop(engine);
    let engine = disk.open();
    assert!(engine.wal().first() > SIZE.log_start());
    assert!(matches!(engine.wal().reader(SIZE.log_start()).read(Lsn::MAX, 10), Err(WalError::Removed { .. })));
    assert_eq!(engine.wal().end().lsn, end);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_timeout_starts_a_checkpoint_if_anything_was_written() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let end = fill(&engine, 1).await;
    engine.set_retention(RetentionSettings { checkpoint_timeout: Duration::from_millis(20), ..settings() });
    until(&engine, "a checkpoint", |retention| retention.checkpoint_lsn == end).await;
    let before = engine.retention().checkpoints;
    let more = fill(&engine, 1).await;
    until(&engine, "the next", |retention| retention.checkpoint_lsn == more).await;
    assert_eq!(engine.retention().checkpoints, before + 1, "none in between: nothing was written");
    assert_eq!(disk.store.durable_applied().unwrap().lsn, more);
}

#[tokio::test(flavor = "multi_thread")]
async fn retained_what_others_need_until_they_need_it_no_more() {
    // INV-RETAIN: a node that is being seeded holds WAL back.
    let disk = Disk::new();
    let engine = disk.open_primary();
    engine.set_needed_from(Some(boundary(2).advance(100)));
    engine.set_retention(settings());
    fill(&engine, 8 * MIB).await;
    until(&engine, "a checkpoint", |retention| retention.checkpoints >= 1).await;
    let kept = until(&engine, "segment 1 gone", |retention| retention.oldest > SIZE.log_start()).await;
    assert_eq!(kept.oldest, boundary(2));
    engine.set_needed_from(None);
    until(&engine, "the rest gone", |retention| retention.oldest >= boundary(6)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retained_what_is_flushed_but_not_applied() {
    // INV-RETAIN: nothing is safe, so nothing is applied, and redo needs all of it.
    let disk = Disk::new();
    let engine = disk.open_primary();
    engine.set_retention(RetentionSettings { checkpoint_timeout: Duration::from_millis(10), ..settings() });
    let safe = fill(&engine, 1).await;
    until(&engine, "a checkpoint", |retention| retention.checkpoint_lsn == safe).await;
    for _ in 0..120 {
        commit(&engine, local(vec![put("key", &"v".repeat(50_000))])).await.unwrap();
    }
    let end = engine.wal().flush().unwrap();
    assert_eq!(engine.retention().oldest, SIZE.log_start());
    disk.crash(3);
    drop(engine);
    let engine = disk.open();
    assert_eq!(engine.wal().end().lsn, end);
    engine.advance_safe(end);
    visible(&engine, end).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_removal_is_latched() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    fill(&engine, 8 * MIB).await;
    disk.files.fail_removals(true);
    engine.set_retention(settings());
    let mut failure = engine.failure();
    let latched = tokio::time::timeout(NEVER, failure.wait_for(Option::is_some)).await.unwrap().unwrap().clone();
    assert!(matches!(latched.as_deref(), Some(EngineFailure::Wal(_))), "{latched:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_checkpoints_and_removes_too() {
    // WAL-2: a restartpoint.
    let (upstream, disk) = (Disk::new(), Disk::new());
    let primary = upstream.open_primary();
    let end = fill(&primary, 8 * MIB).await;
    let standby = disk.open();
    standby.set_retention(settings());
    standby.begin_timeline(&primary.wal().history()).unwrap();
    let mut reader = primary.wal().reader(SIZE.log_start());
    while let Some(chunk) = reader.read(Lsn::MAX, 1 << 20).unwrap() {
        standby.receive(chunk.start, chunk.bytes).unwrap();
        standby.advance_safe(chunk.end);
        visible(&standby, chunk.end).await;
    }
    until(&standby, "a removal", |retention| retention.oldest > SIZE.log_start()).await;
    assert!(standby.retention().oldest <= disk.store.durable_applied().unwrap().lsn);
    assert_eq!(standby.wal().end().lsn, end);
}
