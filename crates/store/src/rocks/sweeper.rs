//! The sweeper: a thread of the store that takes out deletions which nothing lies beneath any more, and compacts a
//! small store once it pays. See [`super::collect`].
//!
//! It writes nothing that changes an answer: only versions at or below the durable horizon go, all of a key in one
//! batch, and a read at or above the horizon finds that there is no value before and after. It never touches the applied
//! position. An error ends it; what refuses a write the applier meets too. Damage is the answer to the next write as well: nobody
//! else may be reading what the sweeper could not, and a store that is damaged must not look sound.

use std::sync::Arc;
use std::thread::JoinHandle;

use rocksdb::{BottommostLevelCompaction, CompactOptions, DB, ErrorKind, WriteBatch};
use understudy_types::Lsn;

use super::collect::{Collection, Task};
use super::{TAG_DELETION, options};
use crate::key;

/// Keys whose versions are deleted in one batch.
const KEYS_PER_BATCH: usize = 256;
/// Versions of one key that are deleted at once. One with more is left until compactions have dropped those.
const VERSIONS_MAX: usize = 4_096;
/// A store of at most this size is compacted as a whole: it takes seconds.
const COMPACTED_WHOLE_BYTES_MAX: u64 = 1 << 30;
/// Log that must have passed below the horizon before a store is compacted as a whole, however small it is.
const COMPACTED_AFTER_BYTES_MIN: u64 = 64 << 20;
const LIVE_TABLE_BYTES: &str = "rocksdb.live-sst-files-size";

/// The thread; it ends when it is dropped.
#[derive(Debug)]
pub(super) struct Sweeper {
    collection: Arc<Collection>,
    db: Arc<DB>,
    thread: Option<JoinHandle<()>>,
}

impl Sweeper {
    /// Starts it for a store whose durable horizon is known.
    pub(super) fn start(db: &Arc<DB>, collection: &Arc<Collection>) -> std::io::Result<Self> {
        let (own_db, own) = (Arc::clone(db), Arc::clone(collection));
        let thread = std::thread::Builder::new().name("store-sweeper".to_owned()).spawn(move || run(&own_db, &own))?;
        Ok(Self { collection: Arc::clone(collection), db: Arc::clone(db), thread: Some(thread) })
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.collection.stop();
        // Ends a compaction that it may be waiting for.
        self.db.cancel_all_background_work(false);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn run(db: &DB, collection: &Collection) {
    let mut compacted = collection.durable.get().versions_below;
    while let Task::Look(prefixes) = collection.next_task() {
        for prefixes in prefixes.chunks(KEYS_PER_BATCH) {
            if collection.stopping() {
                return;
            }
            if let Err(error) = sweep(db, prefixes, collection.durable.get().versions_below) {
                tracing::warn!(error = &error as &dyn std::error::Error, "the store's sweeper ended");
                if error.kind() == ErrorKind::Corruption {
                    collection.fail(error);
                }
                return;
            }
        }
        let horizon = collection.durable.get().versions_below;
        if compaction_pays(horizon.saturating_since(compacted), live_table_bytes(db)) {
            compact(db);
            compacted = horizon;
        }
    }
}

/// Whether to rewrite a store of `table_bytes`, when this much log has passed below the horizon since it was last done.
fn compaction_pays(log_bytes: u64, table_bytes: u64) -> bool {
    table_bytes <= COMPACTED_WHOLE_BYTES_MAX && log_bytes >= COMPACTED_AFTER_BYTES_MIN.max(table_bytes)
}

fn live_table_bytes(db: &DB) -> u64 {
    let family = db.cf_handle(options::DATA).expect("every column family is opened with the store");
    db.property_int_value_cf(&family, LIVE_TABLE_BYTES).ok().flatten().unwrap_or(u64::MAX)
}

/// Compacts everything that is versioned. Blocks until it is done, or the store is closed.
pub(super) fn compact(db: &DB) {
    let mut how = CompactOptions::default();
    how.set_exclusive_manual_compaction(false);
    how.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
    for name in [options::DATA, options::REQUESTS] {
        let family = db.cf_handle(name).expect("every column family is opened with the store");
        db.compact_range_cf_opt(&family, None::<&[u8]>, None::<&[u8]>, &how);
    }
}

/// Deletes all versions at or below `horizon` of those keys whose newest one is a deletion.
fn sweep(db: &DB, prefixes: &[Vec<u8>], horizon: Lsn) -> Result<(), rocksdb::Error> {
    let family = db.cf_handle(options::DATA).expect("every column family is opened with the store");
    let mut batch = WriteBatch::default();
    for prefix in prefixes {
        let mut versions = Vec::new();
        let mut iterator = db.raw_iterator_cf_opt(&family, options::one_prefix());
        iterator.seek(key::with_version(prefix.clone(), horizon));
        while let Some((encoded, stored)) = iterator.item() {
            let same_key = key::split_version(encoded).is_some_and(|(found, _)| found == &prefix[..]);
            let kept = versions.is_empty() && stored.first() != Some(&TAG_DELETION);
            if !same_key || kept || versions.len() > VERSIONS_MAX {
                break;
            }
            versions.push(encoded.to_vec());
            iterator.next();
        }
        iterator.status()?;
        if versions.len() <= VERSIONS_MAX {
            versions.iter().for_each(|encoded| batch.delete_cf(&family, encoded));
        }
    }
    if batch.is_empty() { Ok(()) } else { db.write_without_wal(batch) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::time::{Duration, Instant};

    use understudy_types::{Position, SystemId, TimelineId};
    use understudy_wal::GcHorizon;
    use understudy_wal::record::Op;

    use super::super::{RocksConfig, RocksStore};
    use super::*;
    use crate::api::{AppliedCommit, Store};

    #[test]
    fn a_sweep_that_meets_a_bad_block_makes_the_next_write_say_damage() {
        let dir = tempfile::tempdir().unwrap();
        let store = RocksStore::open(&RocksConfig::new(dir.path(), SystemId::new(7))).unwrap();
        let at = |lsn| Position::new(TimelineId::FIRST, Lsn::new(lsn));
        let key = |number: u64| number.to_be_bytes().repeat(50);
        for number in 1..=2_000 {
            let op = Op::Put { key: key(number).into(), value: bytes::Bytes::new() };
            let (start, lsn, timeline) = (Lsn::new(number), at(number + 1).lsn, TimelineId::FIRST);
            let commit = AppliedCommit { start, lsn, timeline, time_us: 0, request_id: None, ops: vec![op] };
            store.apply(&[commit], at(number + 1)).unwrap();
        }
        let horizon = GcHorizon { versions_below: Lsn::new(2_001), requests_below: Lsn::new(2_001) };
        store.raise_horizon(horizon, at(2_002)).unwrap();
        store.flush().unwrap();
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            let size = path.metadata().unwrap().len();
            if path.extension().is_some_and(|extension| extension == "sst") && size > 30_000 {
                std::fs::File::options().write(true).open(&path).unwrap().write_all_at(&[0xA5; 64], size / 2).unwrap();
            }
        }
        // What a compaction would have reported.
        (1..=2_000).for_each(|number| store.collection.report_deletion(&key::encode_prefix(&key(number))));
        let deadline = Instant::now() + Duration::from_secs(20);
        let error = loop {
            if let Err(error) = store.flush() {
                break error;
            }
            assert!(Instant::now() < deadline, "the damage is not said");
            std::thread::yield_now();
        };
        assert!(error.is_damage() && error.to_string().contains("be swept"), "{error}");
    }

    #[test]
    fn a_compaction_never_rewrites_more_than_was_written() {
        const MIB: u64 = 1 << 20;
        assert!(!compaction_pays(64 * MIB - 1, MIB));
        assert!(compaction_pays(64 * MIB, 64 * MIB));
        assert!(!compaction_pays(64 * MIB, 65 * MIB));
        assert!(compaction_pays(1 << 30, 1 << 30));
        assert!(!compaction_pays(1 << 40, (1 << 30) + 1), "left to the compactions that take place anyway");
        assert!(!compaction_pays(0, 0));
    }
}
