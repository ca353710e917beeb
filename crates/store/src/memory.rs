//! The model of a store: the same behaviour on sorted maps.
//!
//! It is a deliberately dumb second implementation that [`RocksStore`](crate::RocksStore) is compared
//! with, and what the engine's tests and simulations run on. It keeps two copies of its content, what was
//! applied and what was flushed; [`MemoryStore::crash`] goes back to the second, as a killed process does.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use understudy_types::{Lsn, Position, RequestId, TimelineId};
use understudy_wal::GcHorizon;
use understudy_wal::record::Op;

use crate::api::{
    AppliedCommit, KeyRange, PageLimit, ScanEntry, ScanPage, Store, StoreError, VersionedValue, check_order, raised,
};

/// A version: none for a deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Version {
    timeline: TimelineId,
    value: Option<Bytes>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Content {
    applied: Position,
    horizon: GcHorizon,
    versions: BTreeMap<Bytes, BTreeMap<Lsn, Version>>,
    requests: BTreeMap<RequestId, BTreeMap<Lsn, TimelineId>>,
}

#[derive(Debug, Default)]
struct Both {
    live: Content,
    durable: Content,
}

/// A store in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    both: Mutex<Both>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets everything that was not flushed.
    pub fn crash(&self) {
        let mut both = self.lock();
        both.live = both.durable.clone();
    }

    /// Whether both hold the same versions, request ids and applied position.
    pub fn same_content(&self, other: &MemoryStore) -> bool {
        let own = self.lock().live.clone();
        own == other.lock().live
    }

    fn lock(&self) -> MutexGuard<'_, Both> {
        // Every change is made to the end once it is begun: a panic elsewhere leaves nothing half done.
        self.both.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Content {
    fn get(&self, key: &[u8], at: Lsn) -> Option<VersionedValue> {
        let (lsn, version) = self.versions.get(key)?.range(..=at).next_back()?;
        let value = version.value.clone()?;
        Some(VersionedValue { value, version: Position::new(version.timeline, *lsn) })
    }

    fn apply(&mut self, commit: &AppliedCommit) {
        for op in &commit.ops {
            let (key, value) = match op {
                Op::Put { key, value } => (key, Some(value.clone())),
                Op::Delete { key } => (key, None),
            };
            let version = Version { timeline: commit.timeline, value };
            self.versions.entry(key.clone()).or_default().insert(commit.lsn, version);
        }
        if let Some(id) = commit.request_id {
            self.requests.entry(id).or_default().insert(commit.lsn, commit.timeline);
        }
    }

    /// Drops at once what RocksDB drops sooner or later.
    fn collect(&mut self) {
        let GcHorizon { versions_below, requests_below } = self.horizon;
        self.versions.retain(|_, versions| {
            let kept =
                versions.range(..=versions_below).next_back().map(|(lsn, version)| (*lsn, version.value.is_some()));
            if let Some((newest, is_put)) = kept {
                versions.retain(|lsn, _| *lsn > newest || (*lsn == newest && is_put));
            }
            !versions.is_empty()
        });
        self.requests.retain(|_, made| {
            made.retain(|lsn, _| *lsn >= requests_below);
            !made.is_empty()
        });
    }
}

impl Store for MemoryStore {
    fn applied(&self) -> Position {
        self.lock().live.applied
    }

    fn durable_applied(&self) -> Result<Position, StoreError> {
        Ok(self.lock().durable.applied)
    }

    fn apply(&self, commits: &[AppliedCommit], applied: Position) -> Result<(), StoreError> {
        let mut both = self.lock();
        check_order(both.live.applied, commits, applied)?;
        for commit in commits {
            both.live.apply(commit);
        }
        both.live.applied = applied;
        Ok(())
    }

    fn raise_horizon(&self, horizon: GcHorizon, applied: Position) -> Result<(), StoreError> {
        let mut both = self.lock();
        check_order(both.live.applied, &[], applied)?;
        both.live.horizon = raised(both.live.horizon, horizon, applied);
        both.live.collect();
        both.live.applied = applied;
        Ok(())
    }

    fn horizon(&self) -> GcHorizon {
        self.lock().live.horizon
    }

    fn get(&self, key: &[u8], at: Lsn) -> Result<Option<VersionedValue>, StoreError> {
        Ok(self.lock().live.get(key, at))
    }

    fn scan(&self, range: &KeyRange, at: Lsn, limit: PageLimit) -> Result<ScanPage, StoreError> {
        let both = self.lock();
        let mut page = ScanPage::default();
        if range.end.as_ref().is_some_and(|end| *end <= range.start) {
            return Ok(page);
        }
        let bounds =
            (Bound::Included(range.start.clone()), range.end.clone().map_or(Bound::Unbounded, Bound::Excluded));
        let mut bytes = 0;
        for key in both.live.versions.range(bounds).map(|(key, _)| key) {
            let Some(VersionedValue { value, version }) = both.live.get(key, at) else { continue };
            bytes += key.len() + value.len();
            let full = page.entries.len() >= limit.entries_max || bytes > limit.bytes_max;
            if full && !page.entries.is_empty() {
                page.next = Some(key.clone());
                break;
            }
            page.entries.push(ScanEntry { key: key.clone(), value, version });
        }
        Ok(page)
    }

    fn request(&self, id: &RequestId) -> Result<Option<Position>, StoreError> {
        let both = self.lock();
        let newest = both.live.requests.get(id).and_then(|made| made.last_key_value());
        Ok(newest.map(|(lsn, timeline)| Position::new(*timeline, *lsn)))
    }

    fn flush(&self) -> Result<Position, StoreError> {
        let mut both = self.lock();
        both.durable = both.live.clone();
        Ok(both.durable.applied)
    }

    fn checkpoint(&self, _dir: &Path) -> Result<Position, StoreError> {
        Err(StoreError::NoFiles)
    }
}
