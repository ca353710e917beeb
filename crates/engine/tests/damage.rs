//! Damage that is found while the engine runs ends it, whoever finds it, and is told from a disk that refuses.

#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::*;
use understudy_engine::{Engine, ReadError, SystemClock};
use understudy_store::{AppliedCommit, KeyRange, MemoryStore, PageLimit, ScanPage, Store, StoreError, VersionedValue};
use understudy_types::{Lsn, Position, RequestId};
use understudy_wal::GcHorizon;

/// A store that cannot be read.
struct Unreadable {
    inner: Arc<MemoryStore>,
    error: fn() -> StoreError,
}

fn damaged() -> StoreError {
    StoreError::Corrupt { path: PathBuf::from("/node/store"), what: "a key" }
}

fn refused() -> StoreError {
    let source = std::io::Error::from_raw_os_error(5);
    StoreError::List { path: PathBuf::from("/node/store"), source }
}

impl Store for Unreadable {
    fn applied(&self) -> Position {
        self.inner.applied()
    }

    fn durable_applied(&self) -> Result<Position, StoreError> {
        self.inner.durable_applied()
    }

    fn apply(&self, commits: &[AppliedCommit], applied: Position) -> Result<(), StoreError> {
        self.inner.apply(commits, applied)
    }

    fn raise_horizon(&self, horizon: GcHorizon, applied: Position) -> Result<(), StoreError> {
        self.inner.raise_horizon(horizon, applied)
    }

    fn horizon(&self) -> GcHorizon {
        self.inner.horizon()
    }

    fn get(&self, _key: &[u8], _at: Lsn) -> Result<Option<VersionedValue>, StoreError> {
        Err((self.error)())
    }

    fn scan(&self, _range: &KeyRange, _at: Lsn, _limit: PageLimit) -> Result<ScanPage, StoreError> {
        Err((self.error)())
    }

    fn request(&self, id: &RequestId) -> Result<Option<Position>, StoreError> {
        self.inner.request(id)
    }

    fn flush(&self) -> Result<Position, StoreError> {
        self.inner.flush()
    }

    fn checkpoint(&self, dir: &Path) -> Result<Position, StoreError> {
        self.inner.checkpoint(dir)
    }
}

fn open(disk: &Disk, error: fn() -> StoreError) -> Engine {
    let store = Unreadable { inner: Arc::clone(&disk.store), error };
    Engine::open(config(), Arc::new(disk.files.clone()), Arc::new(store), Arc::new(SystemClock)).unwrap()
}

fn read(engine: &Engine, how: usize) -> ReadError {
    let at = engine.visible().borrow().lsn;
    match how {
        0 => engine.get(b"a", at).unwrap_err(),
        _ => engine.scan(&KeyRange::default(), at, PageLimit { entries_max: 1, bytes_max: 1 }).unwrap_err(),
    }
}

#[test]
fn a_read_that_finds_damage_ends_the_engine() {
    for how in 0..2 {
        let engine = open(&Disk::new(), damaged);
        assert!(matches!(read(&engine, how), ReadError::Store(_)));
        let failure = engine.failure().borrow().clone().expect("latched");
        assert!(failure.is_damage(), "{failure}");
    }
}

#[test]
fn a_disk_that_refuses_a_read_is_asked_again_the_next_time() {
    for how in 0..2 {
        let engine = open(&Disk::new(), refused);
        assert!(matches!(read(&engine, how), ReadError::Store(_)));
        assert!(engine.failure().borrow().is_none());
    }
}

#[tokio::test]
async fn a_precondition_that_finds_damage_ends_the_engine() {
    let engine = open(&Disk::new(), damaged);
    let start = SIZE.log_start();
    let opening = engine.clone();
    let opened = tokio::task::spawn_blocking(move || opening.open_primary(&history(&[(1, start)]), start)).await;
    opened.unwrap().unwrap();
    confirm(&engine);
    let preconditions = when("a", understudy_engine::Condition::Absent);
    let asked = understudy_engine::Commit { preconditions, ..local(vec![put("a", "1")]) };
    assert!(commit(&engine, asked).await.is_err());
    let mut failure = engine.failure();
    let failure = failure.wait_for(Option::is_some).await.unwrap().clone().expect("latched");
    assert!(failure.is_damage(), "{failure}");
}
