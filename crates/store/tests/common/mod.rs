//! Short ways to fill a store and to read it.

// Each test binary uses its own part of this.
#![allow(dead_code, reason = "shared by several test binaries")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use bytes::Bytes;
use understudy_store::{AppliedCommit, KeyRange, PageLimit, RocksConfig, RocksStore, ScanEntry, Store};
use understudy_types::{Lsn, SystemId, TimelineId};
use understudy_wal::record::Op;

pub const SYSTEM: SystemId = SystemId::new(7);

pub fn open(dir: &Path) -> RocksStore {
    let config =
        RocksConfig { block_cache_bytes: 1 << 20, write_buffer_bytes: 4 << 20, ..RocksConfig::new(dir, SYSTEM) };
    RocksStore::open(&config).unwrap()
}

pub fn put(key: &[u8], value: &[u8]) -> Op {
    Op::Put { key: Bytes::copy_from_slice(key), value: Bytes::copy_from_slice(value) }
}

pub fn delete(key: &[u8]) -> Op {
    Op::Delete { key: Bytes::copy_from_slice(key) }
}

pub fn commit(lsn: u64, ops: Vec<Op>) -> AppliedCommit {
    let (start, lsn) = (Lsn::new(lsn - 1), Lsn::new(lsn));
    AppliedCommit { start, lsn, timeline: TimelineId::FIRST, time_us: 5, request_id: None, ops }
}

pub fn apply(store: &dyn Store, commits: &[AppliedCommit]) {
    let applied = commits.last().map_or(store.applied(), AppliedCommit::position);
    store.apply(commits, applied).unwrap();
}

/// The whole of a scan, page by page.
pub fn scan_all(store: &dyn Store, range: &KeyRange, at: Lsn, limit: PageLimit) -> Vec<ScanEntry> {
    let (mut range, mut entries) = (range.clone(), Vec::new());
    loop {
        let page = store.scan(&range, at, limit).unwrap();
        assert!(page.entries.len() <= limit.entries_max.max(1));
        let bytes: usize = page.entries.iter().map(|entry| entry.key.len() + entry.value.len()).sum();
        assert!(bytes <= limit.bytes_max || page.entries.len() == 1);
        entries.extend(page.entries);
        match page.next {
            Some(next) => range.start = next,
            None => return entries,
        }
    }
}

/// What a kill -9 leaves: RocksDB would flush when it is closed in order.
pub fn copy_of_files(dir: &Path) -> tempfile::TempDir {
    loop {
        let copy = tempfile::tempdir().unwrap();
        let before = files(dir);
        let copied = before.keys().all(|name| std::fs::copy(dir.join(name), copy.path().join(name)).is_ok());
        // A kill is one moment: a copy beside a compaction must not be of two.
        if copied && files(dir) == before {
            return copy;
        }
    }
}

/// Names and sizes of what a store needs.
fn files(dir: &Path) -> BTreeMap<OsString, u64> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let size = |entry: std::fs::DirEntry| Some((entry.file_name(), entry.metadata().ok()?.len()));
    entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with("LOG")).filter_map(size).collect()
}
