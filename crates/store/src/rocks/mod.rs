//! The store on disk, on RocksDB with its own WAL off: the node's WAL is the only one.
//!
//! The applied position stands in the same batch as the data, and all column families are flushed in one
//! step, on RocksDB's own initiative too. So after a crash the store is exactly what some earlier applied
//! position says, and replay from there leads to the same content (INV-REDO). Nothing here may write past
//! RocksDB's batch, or flush one column family alone: `clippy.toml` of this crate forbids the calls.
//!
//! ```text
//! data      encoded user key | complement of the LSN  ->  tag (1 put, 0 deletion) | timeline u32 LE | value
//! requests  request id       | complement of the LSN  ->  timeline u32 LE | commit time i64 LE, microseconds
//! meta      "applied"                                 ->  LSN u64 LE | timeline u32 LE
//!           "horizon"                                 ->  versions below u64 LE | requests below u64 LE
//!           "format"                                  ->  version u32 LE | system id u64 LE
//! ```

mod checkpoint;
mod collect;
mod options;
mod sweeper;

pub use checkpoint::checkpoint_files;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use rocksdb::{BoundColumnFamily, DB, DBRawIteratorWithThreadMode, FlushOptions, ReadOptions, ReadTier, WriteBatch};
use understudy_types::{Lsn, Position, RequestId, SystemId, TimelineId};
use understudy_wal::GcHorizon;
use understudy_wal::record::Op;

use self::collect::Collection;
use self::sweeper::Sweeper;
use crate::api::{
    AppliedCommit, KeyRange, PageLimit, ScanEntry, ScanPage, Store, StoreError, VersionedValue, check_order, raised,
};
use crate::key;

const FORMAT_VERSION: u32 = 1;
const META_APPLIED: &[u8] = b"applied";
const META_HORIZON: &[u8] = b"horizon";
const META_FORMAT: &[u8] = b"format";
const TAG_DELETION: u8 = 0;
const TAG_PUT: u8 = 1;
/// Older versions of a key that are stepped over one by one before the next key is sought.
const VERSIONS_STEPPED_OVER_MAX: usize = 8;
/// Keys that one page of a scan looks at: a run of deleted keys ends a page, and the caller asks again.
const PAGE_KEYS_MAX: usize = 4_096;

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct RocksConfig {
    /// The directory; made when it is not there.
    pub dir: PathBuf,
    /// Whose data it is: a store of another cluster is refused.
    pub system_id: SystemId,
    /// For data, index and filter blocks, in bytes.
    pub block_cache_bytes: usize,
    /// For memtables, in bytes.
    pub write_buffer_bytes: usize,
}

impl RocksConfig {
    /// A store in `dir` with the default memory: 128 MiB of block cache, 128 MiB of memtables.
    pub fn new(dir: impl Into<PathBuf>, system_id: SystemId) -> Self {
        Self { dir: dir.into(), system_id, block_cache_bytes: 128 << 20, write_buffer_bytes: 128 << 20 }
    }
}

/// A store on disk.
pub struct RocksStore {
    /// There as soon as the store is open.
    _sweeper: Option<Sweeper>,
    db: Arc<DB>,
    dir: PathBuf,
    collection: Arc<Collection>,
    /// Held while a batch is written: batches follow one another.
    applied: Mutex<Position>,
    /// Goes last of all, when the sweeper has ended and the files are closed.
    held: Arc<()>,
}

impl std::fmt::Debug for RocksStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RocksStore")
            .field("dir", &self.dir)
            .field("applied", &*self.applied_lock())
            .finish_non_exhaustive()
    }
}

type RawIterator<'a> = DBRawIteratorWithThreadMode<'a, DB>;

impl RocksStore {
    /// There for as long as any file of the store is open: longer than the last handle, whose end closes them.
    pub fn held(&self) -> Weak<()> {
        Arc::downgrade(&self.held)
    }

    /// Opens or makes a store.
    ///
    /// # Errors
    /// When the directory cannot be used, is in use, or holds another format or cluster.
    pub fn open(config: &RocksConfig) -> Result<Self, StoreError> {
        let dir = config.dir.clone();
        let collection = Arc::new(Collection::default());
        let families = options::column_families(config, &collection);
        let db = DB::open_cf_descriptors(&options::database(config), &dir, families)
            .map_err(|source| StoreError::Rocks { path: dir.clone(), action: "be opened", source })?;
        let db = Arc::new(db);
        let applied = Mutex::new(Position::default());
        let mut store = Self { _sweeper: None, db, dir, collection, applied, held: Arc::default() };
        store.check_format(config.system_id)?;
        store.collection.applied.raise(store.read_horizon(ReadTier::All)?);
        store.refresh_durable_horizon()?;
        let applied = store.read_applied(ReadTier::All)?;
        *store.applied_lock() = applied;
        let sweeper = Sweeper::start(&store.db, &store.collection)
            .map_err(|source| StoreError::Thread { path: store.dir.clone(), source })?;
        store._sweeper = Some(sweeper);
        Ok(store)
    }

    /// Refuses a foreign store, and marks a new one as this cluster's.
    fn check_format(&self, system_id: SystemId) -> Result<(), StoreError> {
        let stored =
            self.db.get_cf(&self.family(options::META), META_FORMAT).map_err(self.failed("read its format"))?;
        let Some(stored) = stored else {
            let mut batch = WriteBatch::default();
            let mut value = FORMAT_VERSION.to_le_bytes().to_vec();
            value.extend_from_slice(&system_id.get().to_le_bytes());
            batch.put_cf(&self.family(options::META), META_FORMAT, value);
            self.db.write_without_wal(batch).map_err(self.failed("write its format"))?;
            return self.flush().map(|_| ());
        };
        let (version, system) = stored.split_first_chunk::<4>().ok_or_else(|| self.corrupt("the format"))?;
        let found = u32::from_le_bytes(*version);
        if found != FORMAT_VERSION {
            return Err(StoreError::Format { path: self.dir.clone(), found, expected: FORMAT_VERSION });
        }
        let system: [u8; 8] = system.try_into().map_err(|_| self.corrupt("the format"))?;
        let found = SystemId::new(u64::from_le_bytes(system));
        if found != system_id {
            return Err(StoreError::Foreign { path: self.dir.clone(), found, expected: system_id });
        }
        Ok(())
    }

    fn read_applied(&self, tier: ReadTier) -> Result<Position, StoreError> {
        let mut options = ReadOptions::default();
        options.set_read_tier(tier);
        let stored = self
            .db
            .get_cf_opt(&self.family(options::META), META_APPLIED, &options)
            .map_err(self.failed("read its applied position"))?;
        let Some(stored) = stored else { return Ok(Position::default()) };
        decode_position(&stored).ok_or_else(|| self.corrupt("the applied position"))
    }

    fn read_horizon(&self, tier: ReadTier) -> Result<GcHorizon, StoreError> {
        let mut options = ReadOptions::default();
        options.set_read_tier(tier);
        let stored = self
            .db
            .get_cf_opt(&self.family(options::META), META_HORIZON, &options)
            .map_err(self.failed("read its horizon"))?;
        let Some(stored) = stored else { return Ok(GcHorizon::default()) };
        decode_horizon(&stored).ok_or_else(|| self.corrupt("the horizon"))
    }

    /// What is dropped from now on: RocksDB flushes by itself too, so this is read back rather than known.
    fn refresh_durable_horizon(&self) -> Result<(), StoreError> {
        self.collection.raise_durable(self.read_horizon(ReadTier::Persisted)?);
        Ok(())
    }

    /// Rewrites all table files, and gives back the space of what lies below the durable horizon. Blocks for as long as
    /// that takes; reads and commits go on.
    pub fn compact(&self) {
        sweeper::compact(&self.db);
    }

    fn family(&self, name: &'static str) -> Arc<BoundColumnFamily<'_>> {
        self.db.cf_handle(name).expect("every column family is opened with the store")
    }

    fn failed(&self, action: &'static str) -> impl Fn(rocksdb::Error) -> StoreError + '_ {
        move |source| StoreError::Rocks { path: self.dir.clone(), action, source }
    }

    /// Damage that a thread of the store has met.
    fn check_sweeper(&self) -> Result<(), StoreError> {
        let failure = self.collection.failure().cloned();
        failure.map_or(Ok(()), |error| Err(self.failed("be swept")(error)))
    }

    fn corrupt(&self, what: &'static str) -> StoreError {
        StoreError::Corrupt { path: self.dir.clone(), what }
    }

    fn applied_lock(&self) -> MutexGuard<'_, Position> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The version under the iterator, when it is one of `prefix`; none when there is none any more.
    fn version_at(&self, iterator: &RawIterator<'_>, prefix: &[u8]) -> Result<Option<VersionedValue>, StoreError> {
        let Some((encoded, stored)) = iterator.item() else {
            iterator.status().map_err(self.failed("be read"))?;
            return Ok(None);
        };
        let (found, lsn) = key::split_version(encoded).ok_or_else(|| self.corrupt("a key"))?;
        if found != prefix {
            return Ok(None);
        }
        let (tag, rest) = stored.split_first().ok_or_else(|| self.corrupt("a value"))?;
        let (timeline, value) = rest.split_first_chunk::<4>().ok_or_else(|| self.corrupt("a value"))?;
        match *tag {
            TAG_DELETION => Ok(None),
            TAG_PUT => {
                let version = Position::new(TimelineId::new(u32::from_le_bytes(*timeline)), lsn);
                Ok(Some(VersionedValue { value: Bytes::copy_from_slice(value), version }))
            }
            _ => Err(self.corrupt("a value")),
        }
    }

    /// Moves from any version of `prefix` to the next key.
    fn leave_key(iterator: &mut RawIterator<'_>, prefix: &[u8]) {
        for _ in 0..VERSIONS_STEPPED_OVER_MAX {
            if !stands_at(iterator, prefix) {
                return;
            }
            iterator.next();
        }
        if stands_at(iterator, prefix) {
            iterator.seek(key::after_prefix(prefix));
        }
    }
}

fn stands_at(iterator: &RawIterator<'_>, prefix: &[u8]) -> bool {
    iterator.key().and_then(key::split_version).is_some_and(|(found, _)| found == prefix)
}

fn encode_position(position: Position) -> Vec<u8> {
    let mut out = position.lsn.get().to_le_bytes().to_vec();
    out.extend_from_slice(&position.timeline.get().to_le_bytes());
    out
}

fn decode_position(stored: &[u8]) -> Option<Position> {
    let (lsn, timeline) = stored.split_first_chunk::<8>()?;
    let timeline: [u8; 4] = timeline.try_into().ok()?;
    Some(Position::new(TimelineId::new(u32::from_le_bytes(timeline)), Lsn::new(u64::from_le_bytes(*lsn))))
}

fn encode_horizon(horizon: GcHorizon) -> Vec<u8> {
    [horizon.versions_below.get().to_le_bytes(), horizon.requests_below.get().to_le_bytes()].concat()
}

fn decode_horizon(stored: &[u8]) -> Option<GcHorizon> {
    let (versions, requests) = stored.split_first_chunk::<8>()?;
    let requests: [u8; 8] = requests.try_into().ok()?;
    let lsn = |bytes| Lsn::new(u64::from_le_bytes(bytes));
    Some(GcHorizon { versions_below: lsn(*versions), requests_below: lsn(requests) })
}

fn encode_value(tag: u8, timeline: TimelineId, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(5 + value.len());
    out.push(tag);
    out.extend_from_slice(&timeline.get().to_le_bytes());
    out.extend_from_slice(value);
    out
}

impl Store for RocksStore {
    fn applied(&self) -> Position {
        *self.applied_lock()
    }

    fn durable_applied(&self) -> Result<Position, StoreError> {
        self.read_applied(ReadTier::Persisted)
    }

    fn apply(&self, commits: &[AppliedCommit], applied: Position) -> Result<(), StoreError> {
        let mut present = self.applied_lock();
        check_order(*present, commits, applied)?;
        self.check_sweeper()?;
        let (data, requests) = (self.family(options::DATA), self.family(options::REQUESTS));
        let mut batch = WriteBatch::default();
        for commit in commits {
            for op in &commit.ops {
                let (user_key, stored) = match op {
                    Op::Put { key, value } => (key, encode_value(TAG_PUT, commit.timeline, value)),
                    Op::Delete { key } => (key, encode_value(TAG_DELETION, commit.timeline, &[])),
                };
                // Two operations of one commit on one key meet in one entry: the later one stays.
                batch.put_cf(&data, key::encode(user_key, commit.lsn), stored);
            }
            if let Some(id) = &commit.request_id {
                let mut made = commit.timeline.get().to_le_bytes().to_vec();
                made.extend_from_slice(&commit.time_us.to_le_bytes());
                batch.put_cf(&requests, key::encode_request(id, commit.lsn), made);
            }
        }
        batch.put_cf(&self.family(options::META), META_APPLIED, encode_position(applied));
        self.db.write_without_wal(batch).map_err(self.failed("apply commits"))?;
        *present = applied;
        Ok(())
    }

    fn raise_horizon(&self, horizon: GcHorizon, applied: Position) -> Result<(), StoreError> {
        let mut present = self.applied_lock();
        check_order(*present, &[], applied)?;
        let horizon = raised(self.horizon(), horizon, applied);
        let meta = self.family(options::META);
        let mut batch = WriteBatch::default();
        batch.put_cf(&meta, META_HORIZON, encode_horizon(horizon));
        batch.put_cf(&meta, META_APPLIED, encode_position(applied));
        self.db.write_without_wal(batch).map_err(self.failed("apply a horizon"))?;
        *present = applied;
        self.collection.applied.raise(horizon);
        drop(present);
        self.refresh_durable_horizon()
    }

    fn horizon(&self) -> GcHorizon {
        self.collection.applied.get()
    }

    fn get(&self, user_key: &[u8], at: Lsn) -> Result<Option<VersionedValue>, StoreError> {
        let prefix = key::encode_prefix(user_key);
        let mut iterator = self.db.raw_iterator_cf_opt(&self.family(options::DATA), options::one_prefix());
        iterator.seek(key::with_version(prefix.clone(), at));
        self.version_at(&iterator, &prefix)
    }

    fn scan(&self, range: &KeyRange, at: Lsn, limit: PageLimit) -> Result<ScanPage, StoreError> {
        let mut page = ScanPage::default();
        if range.end.as_ref().is_some_and(|end| *end <= range.start) {
            return Ok(page);
        }
        let end = range.end.as_ref().map(|end| key::encode_prefix(end));
        let mut iterator = self.db.raw_iterator_cf_opt(&self.family(options::DATA), options::across(end));
        iterator.seek(key::encode_prefix(&range.start));
        let (mut bytes, mut looked_at) = (0, 0);
        // Each turn begins at the newest version of a key.
        while let Some(encoded) = iterator.key() {
            let (prefix, newest) = key::split_version(encoded).ok_or_else(|| self.corrupt("a key"))?;
            let prefix = prefix.to_vec();
            let user_key = Bytes::from(key::decode_prefix(&prefix).ok_or_else(|| self.corrupt("a key"))?);
            looked_at += 1;
            if looked_at > PAGE_KEYS_MAX {
                page.next = Some(user_key);
                return Ok(page);
            }
            if newest > at {
                iterator.seek(key::with_version(prefix.clone(), at));
            }
            if let Some(VersionedValue { value, version }) = self.version_at(&iterator, &prefix)? {
                bytes += user_key.len() + value.len();
                let full = page.entries.len() >= limit.entries_max || bytes > limit.bytes_max;
                if full && !page.entries.is_empty() {
                    page.next = Some(user_key);
                    return Ok(page);
                }
                page.entries.push(ScanEntry { key: user_key, value, version });
            }
            Self::leave_key(&mut iterator, &prefix);
        }
        iterator.status().map_err(self.failed("be read"))?;
        Ok(page)
    }

    fn request(&self, id: &RequestId) -> Result<Option<Position>, StoreError> {
        let mut iterator = self.db.raw_iterator_cf_opt(&self.family(options::REQUESTS), options::one_prefix());
        iterator.seek(key::encode_request(id, Lsn::MAX));
        let Some((encoded, stored)) = iterator.item() else {
            return iterator.status().map(|()| None).map_err(self.failed("read a request id"));
        };
        let (prefix, lsn) = key::split_version(encoded).ok_or_else(|| self.corrupt("a request id"))?;
        if prefix != id.as_bytes() || lsn < self.horizon().requests_below {
            return Ok(None);
        }
        let (timeline, _) = stored.split_first_chunk::<4>().ok_or_else(|| self.corrupt("a request id"))?;
        Ok(Some(Position::new(TimelineId::new(u32::from_le_bytes(*timeline)), lsn)))
    }

    fn flush(&self) -> Result<Position, StoreError> {
        self.check_sweeper()?;
        let mut options = FlushOptions::default();
        options.set_wait(true);
        let families = [options::DATA, options::REQUESTS, options::META].map(|name| self.family(name));
        let families: Vec<_> = families.iter().collect();
        self.db.flush_cfs_opt(&families, &options).map_err(self.failed("be flushed"))?;
        self.refresh_durable_horizon()?;
        self.durable_applied()
    }

    fn checkpoint(&self, dir: &Path) -> Result<Position, StoreError> {
        self.make_checkpoint(dir)
    }
}
