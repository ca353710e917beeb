//! What of the past is dropped, and when.
//!
//! The horizon comes with the log, the same on every node. It is applied at once to what is answered: request ids
//! below it are not found, and the engine refuses reads below it. What is dropped follows later, by compaction, and by
//! the **durable** horizon alone, the one that a crash cannot take back: otherwise a crash after a compaction would
//! bring back an older horizon, and reads that it allows would find holes.
//!
//! ```text
//! a key's versions, newest first       put 90   deletion 70   put 40   put 20        horizon 80
//! compaction filter, any compaction    keep     keep          drop     drop
//! sweeper                                       drop, with whatever is left of 40 and 20
//! ```
//!
//! * **Versions**: of those at or below the horizon the newest is kept, the others are shadowed by it for
//!   every read that is allowed. A compaction sees only some of a key's versions, but whatever it sees, a version is
//!   dropped only because of a newer one at or below the horizon that it also sees: so the rule is right in every
//!   compaction.
//! * **Deletions**: a deletion whose older versions are gone says nothing. But a compaction cannot know that they are gone:
//!   each version is a key of its own to RocksDB, so even at the bottom level an older one may lie in the neighbouring
//!   file, or above. So the filter only reports it, and the sweeper, a thread of the store, looks at all versions of
//!   that key and deletes the deletion and what is older in one batch, as RocksDB's own deletions, which RocksDB knows how to
//!   get rid of. They are durable no sooner than the horizon that they rest on, as they are written after it.
//! * **Request ids** of commits below the horizon are dropped by themselves.
//!
//! Space is given back by compactions that take place anyway, as whatever is written is merged with what it
//! overwrites; by a compaction of every file that has not been looked at for some hours; and in a small store by a compaction of
//! everything, by the sweeper's thread, once as much log as the store is large has passed below the horizon: what that
//! rewrites is never more than what was written.

use std::ffi::CStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use rocksdb::CompactionDecision;
use rocksdb::compaction_filter::CompactionFilter;
use rocksdb::compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory};
use understudy_types::Lsn;
use understudy_wal::GcHorizon;

use super::TAG_DELETION;
use crate::key;

/// Deletions that were reported and not looked at yet, in bytes of their keys. One that finds no room is reported again by
/// the next compaction that sees it.
const REPORTED_BYTES_MAX: usize = 8 << 20;
/// What a reported deletion costs beside its key.
const REPORTED_OVERHEAD_BYTES: usize = 32;

/// What the store, the compaction filters and the sweeper share.
#[derive(Debug, Default)]
pub(super) struct Collection {
    /// What answers go by.
    pub applied: AtomicHorizon,
    /// What is dropped goes by. Never above `applied`.
    pub durable: AtomicHorizon,
    work: Mutex<Work>,
    arrived: Condvar,
    /// The damage that ended the sweeper; none where there is none.
    failure: OnceLock<rocksdb::Error>,
}

/// Both parts rise on their own, so they need not be read as one.
#[derive(Debug, Default)]
pub(super) struct AtomicHorizon {
    versions_below: AtomicU64,
    requests_below: AtomicU64,
}

impl AtomicHorizon {
    pub(super) fn get(&self) -> GcHorizon {
        GcHorizon {
            versions_below: Lsn::new(self.versions_below.load(Ordering::Acquire)),
            requests_below: Lsn::new(self.requests_below.load(Ordering::Acquire)),
        }
    }

    pub(super) fn raise(&self, to: GcHorizon) {
        self.versions_below.fetch_max(to.versions_below.get(), Ordering::AcqRel);
        self.requests_below.fetch_max(to.requests_below.get(), Ordering::AcqRel);
    }
}

#[derive(Debug, Default)]
struct Work {
    /// Keys without version whose newest version at or below the horizon may be a deletion.
    deletions: Vec<Vec<u8>>,
    bytes: usize,
    /// The durable horizon has moved since the sweeper looked.
    raised: bool,
    stopping: bool,
}

/// What the sweeper is woken for.
#[derive(Debug)]
pub(super) enum Task {
    /// These keys may have nothing left but a deletion. May be empty.
    Look(Vec<Vec<u8>>),
    /// The store is being closed.
    Stop,
}

impl Collection {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The horizon is on disk.
    pub(super) fn raise_durable(&self, to: GcHorizon) {
        if self.durable.get().max(to) != self.durable.get() {
            self.durable.raise(to);
            self.lock().raised = true;
            self.arrived.notify_one();
        }
    }

    pub(super) fn report_deletion(&self, prefix: &[u8]) {
        let mut work = self.lock();
        let bytes = prefix.len() + REPORTED_OVERHEAD_BYTES;
        if work.bytes + bytes <= REPORTED_BYTES_MAX && work.deletions.last().is_none_or(|last| last != prefix) {
            work.bytes += bytes;
            work.deletions.push(prefix.to_vec());
            self.arrived.notify_one();
        }
    }

    /// The sweeper has found damage.
    pub(super) fn fail(&self, error: rocksdb::Error) {
        self.failure.get_or_init(|| error);
    }

    /// The damage that it found.
    pub(super) fn failure(&self) -> Option<&rocksdb::Error> {
        self.failure.get()
    }

    /// Waits for something to do.
    pub(super) fn next_task(&self) -> Task {
        let mut work = self.lock();
        while work.deletions.is_empty() && !work.raised && !work.stopping {
            work = self.arrived.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
        if work.stopping {
            return Task::Stop;
        }
        work.raised = false;
        work.bytes = 0;
        Task::Look(std::mem::take(&mut work.deletions))
    }

    pub(super) fn stop(&self) {
        self.lock().stopping = true;
        self.arrived.notify_all();
    }

    pub(super) fn stopping(&self) -> bool {
        self.lock().stopping
    }
}

/// Makes a filter for each compaction of the versions.
pub(super) struct VersionFilters(pub Arc<Collection>);

impl CompactionFilterFactory for VersionFilters {
    type Filter = VersionFilter;

    fn create(&mut self, _context: CompactionFilterContext) -> VersionFilter {
        let horizon = self.0.durable.get().versions_below;
        VersionFilter { collection: Arc::clone(&self.0), horizon, prefix: Vec::new(), shadowed: false }
    }

    fn name(&self) -> &CStr {
        c"understudy.versions"
    }
}

/// Is shown the versions of a compaction in order: each key's newest first.
pub(super) struct VersionFilter {
    collection: Arc<Collection>,
    horizon: Lsn,
    /// The key that it stands at, without version.
    prefix: Vec<u8>,
    /// Whether a version of this key at or below the horizon was seen: what comes is older.
    shadowed: bool,
}

impl CompactionFilter for VersionFilter {
    fn filter(&mut self, _level: u32, encoded: &[u8], stored: &[u8]) -> CompactionDecision {
        // What is malformed is for a reader to find.
        let Some((prefix, lsn)) = key::split_version(encoded) else { return CompactionDecision::Keep };
        if self.prefix != prefix {
            self.prefix.clear();
            self.prefix.extend_from_slice(prefix);
            self.shadowed = false;
        }
        if lsn > self.horizon {
            return CompactionDecision::Keep;
        }
        if self.shadowed {
            return CompactionDecision::Remove;
        }
        self.shadowed = true;
        if stored.first() == Some(&TAG_DELETION) {
            self.collection.report_deletion(prefix);
        }
        CompactionDecision::Keep
    }

    fn name(&self) -> &CStr {
        c"understudy.versions"
    }
}

/// Makes a filter for each compaction of the request ids.
pub(super) struct RequestFilters(pub Arc<Collection>);

impl CompactionFilterFactory for RequestFilters {
    type Filter = RequestFilter;

    fn create(&mut self, _context: CompactionFilterContext) -> RequestFilter {
        RequestFilter { horizon: self.0.durable.get().requests_below }
    }

    fn name(&self) -> &CStr {
        c"understudy.requests"
    }
}

/// Drops what lies below the horizon.
pub(super) struct RequestFilter {
    horizon: Lsn,
}

impl CompactionFilter for RequestFilter {
    fn filter(&mut self, _level: u32, encoded: &[u8], _stored: &[u8]) -> CompactionDecision {
        match key::split_version(encoded) {
            Some((_, lsn)) if lsn < self.horizon => CompactionDecision::Remove,
            Some(_) | None => CompactionDecision::Keep,
        }
    }

    fn name(&self) -> &CStr {
        c"understudy.requests"
    }
}

#[cfg(test)]
mod tests {
    use understudy_types::{Position, SystemId, TimelineId};

    use super::*;
    use crate::{RocksConfig, RocksStore, Store};

    fn horizon(lsn: u64) -> GcHorizon {
        GcHorizon { versions_below: Lsn::new(lsn), requests_below: Lsn::new(lsn) }
    }

    fn filter(collection: &Arc<Collection>) -> VersionFilter {
        let context = CompactionFilterContext { is_full_compaction: false, is_manual_compaction: false };
        VersionFilters(Arc::clone(collection)).create(context)
    }

    fn kept(filter: &mut VersionFilter, key: &[u8], lsn: u64, tag: u8) -> bool {
        matches!(filter.filter(3, &key::encode(key, Lsn::new(lsn)), &[tag, 0, 0, 0, 0]), CompactionDecision::Keep)
    }

    #[test]
    fn a_version_goes_only_when_a_newer_one_below_the_horizon_was_seen() {
        let collection = Arc::new(Collection::default());
        collection.applied.raise(horizon(1_000));
        collection.raise_durable(horizon(80));
        let mut filter = filter(&collection);
        for (key, lsn, expected) in [
            (b"a", 90, true),
            (b"a", 81, true),
            (b"a", 80, true),
            (b"a", 79, false),
            (b"a", 1, false),
            (b"b", 20, true),
            (b"b", 10, false),
            (b"c", 80, true),
        ] {
            assert_eq!(kept(&mut filter, key, lsn, 1), expected, "{key:?} {lsn}");
        }
    }

    /// INV-REDO: what a crash goes back to must not have been compacted by a horizon that the crash takes back.
    #[test]
    fn filters_go_by_what_is_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let store = RocksStore::open(&RocksConfig::new(dir.path(), SystemId::new(7))).unwrap();
        let at = |lsn| Position::new(TimelineId::FIRST, Lsn::new(lsn));
        store.flush().unwrap();
        store.raise_horizon(horizon(80), at(90)).unwrap();
        store.raise_horizon(horizon(85), at(100)).unwrap();
        assert_eq!(store.horizon(), horizon(85));
        assert_eq!(store.collection.durable.get(), GcHorizon::default());
        let mut present = filter(&store.collection);
        assert!(kept(&mut present, b"a", 70, 1) && kept(&mut present, b"a", 60, 1));
        store.flush().unwrap();
        assert_eq!(store.collection.durable.get(), horizon(85));
        let mut next = filter(&store.collection);
        assert!(kept(&mut next, b"a", 70, 1) && !kept(&mut next, b"a", 60, 1));
        drop(store);
        let reopened = RocksStore::open(&RocksConfig::new(dir.path(), SystemId::new(7))).unwrap();
        assert_eq!((reopened.horizon(), reopened.collection.durable.get()), (horizon(85), horizon(85)));
    }

    #[test]
    fn a_deletion_is_kept_and_reported() {
        let collection = Arc::new(Collection::default());
        collection.raise_durable(horizon(80));
        let mut filter = filter(&collection);
        assert!(kept(&mut filter, b"a", 90, TAG_DELETION), "above the horizon");
        assert!(kept(&mut filter, b"b", 70, TAG_DELETION));
        assert!(!kept(&mut filter, b"b", 60, TAG_DELETION), "shadowed by another");
        let Task::Look(keys) = collection.next_task() else { panic!("not stopping") };
        assert_eq!(keys, [key::encode_prefix(b"b")]);
        collection.stop();
        assert!(matches!(collection.next_task(), Task::Stop));
    }

    #[test]
    fn reports_are_bounded() {
        let collection = Collection::default();
        let key = vec![b'k'; 16 << 10];
        for number in 0..10_000_u32 {
            collection.report_deletion(&[&key[..], &number.to_be_bytes()].concat());
        }
        let Task::Look(keys) = collection.next_task() else { panic!("not stopping") };
        assert!(keys.len() * key.len() <= REPORTED_BYTES_MAX && keys.len() > 400, "{}", keys.len());
        collection.report_deletion(b"there is room again");
        assert!(matches!(collection.next_task(), Task::Look(keys) if keys.len() == 1));
    }
}
