//! What lies below the horizon goes, and nothing else does: not after any compaction, sweep, restart or crash.

#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::*;
use proptest::prelude::*;
use understudy_store::{AppliedCommit, KeyRange, MemoryStore, PageLimit, RocksStore, Store};
use understudy_types::{Lsn, Position, RequestId, TimelineId};
use understudy_wal::GcHorizon;
use understudy_wal::record::Op;

const LIMIT: PageLimit = PageLimit { entries_max: 3, bytes_max: 1 << 20 };
const PATIENCE: Duration = Duration::from_secs(120);

fn at(lsn: u64) -> Position {
    Position::new(TimelineId::FIRST, Lsn::new(lsn))
}

fn horizon(versions: u64, requests: u64) -> GcHorizon {
    GcHorizon { versions_below: Lsn::new(versions), requests_below: Lsn::new(requests) }
}

/// One record of the log.
#[derive(Debug, Clone)]
enum Entry {
    Commit(AppliedCommit),
    Horizon(GcHorizon, Position),
}

impl Entry {
    fn apply_to(&self, store: &dyn Store) {
        match self {
            Entry::Commit(commit) => apply(store, std::slice::from_ref(commit)),
            Entry::Horizon(horizon, applied) => store.raise_horizon(*horizon, *applied).unwrap(),
        }
    }

    fn lsn(&self) -> Lsn {
        match self {
            Entry::Commit(commit) => commit.lsn,
            Entry::Horizon(_, applied) => applied.lsn,
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Apply(Vec<(Vec<Op>, Option<u8>)>),
    /// Parts of the way from the begin to what is applied, in 256ths.
    Horizon(u8, u8),
    Flush,
    Compact,
    Reopen,
    Crash,
}

const KEYS: [&[u8]; 5] = [b"a", b"a\0", b"b", b"c\xFF", b"d"];

fn key() -> impl Strategy<Value = Bytes> {
    proptest::sample::select(&KEYS[..]).prop_map(Bytes::from_static)
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (key(), any::<u8>()).prop_map(|(key, byte)| Op::Put { key, value: Bytes::from(vec![byte; 3]) }),
        2 => key().prop_map(|key| Op::Delete { key }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let commit = (proptest::collection::vec(op(), 0..4), proptest::option::of(0_u8..8));
    prop_oneof![
        8 => proptest::collection::vec(commit, 1..5).prop_map(Step::Apply),
        4 => (any::<u8>(), any::<u8>()).prop_map(|(versions, requests)| Step::Horizon(versions, requests)),
        3 => Just(Step::Flush),
        4 => Just(Step::Compact),
        1 => Just(Step::Reopen),
        3 => Just(Step::Crash),
    ]
}

/// A node: its store, the log that it is a replay of, and the same log without horizons.
struct Node {
    dir: tempfile::TempDir,
    store: Option<RocksStore>,
    log: Vec<Entry>,
    whole: MemoryStore,
    lsn: u64,
}

impl Node {
    fn store(&self) -> &RocksStore {
        self.store.as_ref().unwrap()
    }

    fn append(&mut self, entry: Entry) {
        entry.apply_to(self.store());
        match &entry {
            Entry::Commit(commit) => apply(&self.whole, std::slice::from_ref(commit)),
            Entry::Horizon(_, applied) => self.whole.apply(&[], *applied).unwrap(),
        }
        self.log.push(entry);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Apply(commits) => {
                for (ops, request) in commits {
                    self.lsn += 7;
                    let request_id = request.map(|byte| RequestId::new([byte; 16]));
                    self.append(Entry::Commit(AppliedCommit { request_id, ..commit(self.lsn, ops) }));
                }
            }
            Step::Horizon(versions, requests) => {
                let part = |part| 100 + (self.lsn - 100) * u64::from(part) / 256;
                let horizon = horizon(part(versions), part(requests));
                self.lsn += 7;
                self.append(Entry::Horizon(horizon, at(self.lsn)));
            }
            Step::Flush => drop(self.store().flush().unwrap()),
            Step::Compact => self.store().compact(),
            Step::Reopen => {
                drop(self.store.take());
                self.store = Some(open(self.dir.path()));
            }
            Step::Crash => {
                let copy = copy_of_files(self.dir.path());
                drop(self.store.take());
                self.dir = copy;
                self.store = Some(open(self.dir.path()));
                // What the crash went back to is right by itself, and replay leads on from there.
                self.check();
                let durable = self.store().applied().lsn;
                for entry in self.log.iter().filter(|entry| entry.lsn() > durable) {
                    entry.apply_to(self.store());
                }
            }
        }
    }

    /// The horizon that the log says, up to `lsn`.
    fn expected_horizon(&self, lsn: Lsn) -> GcHorizon {
        let horizons = self.log.iter().filter(|entry| entry.lsn() <= lsn);
        horizons.fold(GcHorizon::default(), |highest, entry| match entry {
            Entry::Horizon(horizon, _) => highest.max(*horizon),
            Entry::Commit(_) => highest,
        })
    }

    /// Every answer at or above the horizon is that of a store that never forgot anything.
    fn check(&self) {
        let (store, applied) = (self.store(), self.store().applied());
        assert_eq!(store.horizon(), self.expected_horizon(applied.lsn));
        let GcHorizon { versions_below, requests_below } = store.horizon();
        let first = versions_below.get().max(99);
        let mut probes: Vec<u64> = (first..=applied.lsn.get()).step_by(5).collect();
        probes.push(applied.lsn.get().max(first));
        for at in probes.into_iter().map(Lsn::new) {
            for key in KEYS {
                assert_eq!(store.get(key, at).unwrap(), self.whole.get(key, at).unwrap(), "{key:?} at {at}");
            }
            let everything = KeyRange::default();
            assert_eq!(scan_all(store, &everything, at, LIMIT), scan_all(&self.whole, &everything, at, LIMIT));
        }
        for byte in 0..8 {
            let id = RequestId::new([byte; 16]);
            let made = self.log.iter().rev().find_map(|entry| match entry {
                Entry::Commit(commit) if commit.request_id == Some(id) && commit.lsn <= applied.lsn => {
                    Some(commit.position())
                }
                Entry::Commit(_) | Entry::Horizon(..) => None,
            });
            assert_eq!(store.request(&id).unwrap(), made.filter(|made| made.lsn >= requests_below));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// INV-REDO and the horizon's promise, whatever happens in which order.
    #[test]
    fn every_read_at_or_above_the_horizon_is_right(steps in proptest::collection::vec(step(), 1..25)) {
        let dir = tempfile::tempdir().unwrap();
        let store = Some(open(dir.path()));
        let mut node = Node { dir, store, log: Vec::new(), whole: MemoryStore::new(), lsn: 100 };
        let model = MemoryStore::new();
        for step in steps {
            node.step(step);
            node.check();
        }
        // The model, which drops at once, agrees too.
        for entry in &node.log {
            entry.apply_to(&model);
        }
        prop_assert_eq!(model.horizon(), node.store().horizon());
        let first = model.horizon().versions_below.max(Lsn::new(99));
        for at in [first, Lsn::new((first.get() + node.lsn) / 2), Lsn::new(node.lsn)] {
            let everything = KeyRange::default();
            prop_assert_eq!(
                scan_all(&model, &everything, at, LIMIT),
                scan_all(&node.whole, &everything, at, LIMIT)
            );
        }
    }
}

/// What a crash after the compaction would go back to must still be whole.
#[test]
fn nothing_is_dropped_for_a_horizon_that_a_crash_can_take_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    apply(&store, &[commit(110, vec![put(b"a", b"1")]), commit(120, vec![put(b"a", b"2")])]);
    store.flush().unwrap();
    store.raise_horizon(horizon(120, 120), at(130)).unwrap();
    assert_eq!(store.horizon(), horizon(120, 120));
    store.compact();
    assert_eq!(store.durable_applied().unwrap(), at(120), "the horizon is in memory alone");
    let copy = copy_of_files(dir.path());
    let crashed = open(copy.path());
    assert_eq!((crashed.horizon(), crashed.applied()), (GcHorizon::default(), at(120)));
    assert_eq!(crashed.get(b"a", Lsn::new(110)).unwrap().unwrap().value, "1");
    // Once it is on disk the version goes, and a crash leaves the horizon.
    store.flush().unwrap();
    store.compact();
    assert_eq!(store.get(b"a", Lsn::new(110)).unwrap(), None);
    let copy = copy_of_files(dir.path());
    assert_eq!(open(copy.path()).horizon(), horizon(120, 120));
}

#[test]
fn a_horizon_never_goes_back_nor_beyond_what_is_applied() {
    let dir = tempfile::tempdir().unwrap();
    let (rocks, memory) = (open(dir.path()), MemoryStore::new());
    let stores: [&dyn Store; 2] = [&rocks, &memory];
    for store in stores {
        apply(store, &[commit(100, vec![put(b"a", b"1")])]);
        store.raise_horizon(horizon(90, 80), at(110)).unwrap();
        store.raise_horizon(horizon(70, 85), at(120)).unwrap();
        assert_eq!(store.horizon(), horizon(90, 85));
        assert!(store.raise_horizon(horizon(95, 95), at(110)).is_err(), "out of order");
        store.raise_horizon(horizon(900, 900), at(130)).unwrap();
        assert_eq!(store.horizon(), horizon(130, 130));
        assert_eq!(store.applied(), at(130));
        assert_eq!(store.get(b"a", Lsn::new(130)).unwrap().unwrap().value, "1");
    }
}

fn table_bytes(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let tables = files.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "sst"));
    // RocksDB may remove one meanwhile.
    tables.map(|entry| entry.metadata().map_or(0, |metadata| metadata.len())).sum()
}

/// A value that no compression makes smaller.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// Waits for what the store does by itself, in threads that tell nobody.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_key_that_is_overwritten_a_hundred_thousand_times_gives_its_space_back_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut lsn = 100;
    for _ in 0..1_000 {
        let commits: Vec<_> = (0..100)
            .map(|_| {
                // About what the record would take in the log.
                lsn += 900;
                commit(lsn, vec![put(b"hot", &noise(lsn, 800))])
            })
            .collect();
        apply(&store, &commits);
    }
    store.flush().unwrap();
    let before = table_bytes(dir.path());
    assert!(before > 60 << 20, "history is kept as long as there is no horizon: {before}");
    // The last ten are within the retention.
    let kept = lsn - 10 * 900;
    store.raise_horizon(horizon(kept, kept), at(lsn + 8)).unwrap();
    store.flush().unwrap();
    eventually("the space comes back", || table_bytes(dir.path()) < 1 << 20);
    for at in (kept..=lsn).step_by(900) {
        assert_eq!(store.get(b"hot", Lsn::new(at)).unwrap().unwrap().value, noise(at, 800));
    }
}

#[test]
fn keys_that_were_deleted_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let name = |number: u64| format!("key-{number:08}").repeat(8).into_bytes();
    let puts = (0..20_000).map(|number| put(&name(number), &noise(number, 100))).collect();
    apply(&store, &[commit(110, puts)]);
    // In table files of their own, so that no compaction sees all there is before the sweeper acts.
    store.flush().unwrap();
    apply(&store, &[commit(120, (0..20_000).map(|number| delete(&name(number))).collect())]);
    apply(&store, &[commit(130, vec![put(&name(7), b"again")])]);
    store.flush().unwrap();
    store.raise_horizon(horizon(125, 0), at(140)).unwrap();
    store.flush().unwrap();
    eventually("the deletions go", || {
        store.compact();
        store.flush().unwrap();
        table_bytes(dir.path()) < 64 << 10
    });
    let entries = scan_all(&store, &KeyRange::default(), Lsn::new(140), LIMIT);
    assert_eq!(entries.len(), 1);
    assert_eq!((&entries[0].key[..], &entries[0].value[..]), (&name(7)[..], &b"again"[..]));
    assert!(scan_all(&store, &KeyRange::default(), Lsn::new(125), LIMIT).is_empty());
    let copy = copy_of_files(dir.path());
    assert_eq!(scan_all(&open(copy.path()), &KeyRange::default(), Lsn::new(140), LIMIT), entries);
}

/// Two keys' worth of the same key lie in different levels: the deletion must not go before what it hides.
#[test]
fn a_deletion_hides_what_lies_in_other_files_until_all_of_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    apply(&store, &[commit(110, vec![put(b"a", b"1"), put(b"b", b"1")])]);
    store.flush().unwrap();
    store.compact();
    apply(&store, &[commit(120, vec![delete(b"a")])]);
    store.flush().unwrap();
    for round in 0..10_u64 {
        let lsn = 200 + round * 100;
        store.raise_horizon(horizon(lsn, lsn), at(lsn)).unwrap();
        store.flush().unwrap();
        apply(&store, &[commit(lsn + 10, vec![put(b"b", b"2")])]);
        store.flush().unwrap();
        store.compact();
        assert_eq!(store.get(b"a", Lsn::new(lsn + 10)).unwrap(), None, "round {round}");
        assert_eq!(store.get(b"b", Lsn::new(lsn + 10)).unwrap().unwrap().value, "2");
    }
    // A key that was swept begins anew.
    apply(&store, &[commit(2_000, vec![put(b"a", b"3")])]);
    store.flush().unwrap();
    store.compact();
    assert_eq!(store.get(b"a", Lsn::new(1_999)).unwrap(), None);
    assert_eq!(store.get(b"a", Lsn::new(2_000)).unwrap().unwrap().value, "3");
}
