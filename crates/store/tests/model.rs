//! The store on disk answers as the model does, whatever is applied, flushed or reopened (INV-REDO).

#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

mod common;

use bytes::Bytes;
use common::*;
use proptest::prelude::*;
use understudy_store::{
    AppliedCommit, KeyRange, MemoryStore, PageLimit, RocksConfig, RocksStore, ScanEntry, Store, StoreError,
};
use understudy_types::{Lsn, Position, RequestId, SystemId, TimelineId};
use understudy_wal::record::Op;

fn keys(entries: &[ScanEntry]) -> Vec<&[u8]> {
    entries.iter().map(|entry| &entry.key[..]).collect()
}

#[derive(Debug, Clone)]
enum Step {
    Apply(Vec<(Vec<Op>, Option<u8>)>),
    Flush,
    Reopen,
}

fn user_key() -> impl Strategy<Value = Bytes> {
    let byte = prop_oneof![Just(0_u8), Just(1), Just(b'a'), Just(0xFE), Just(0xFF)];
    proptest::collection::vec(byte, 1..4).prop_map(Bytes::from)
}

fn op() -> impl Strategy<Value = Op> {
    let value = proptest::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from);
    prop_oneof![
        3 => (user_key(), value).prop_map(|(key, value)| Op::Put { key, value }),
        1 => user_key().prop_map(|key| Op::Delete { key }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let commit = (proptest::collection::vec(op(), 0..6), proptest::option::of(0_u8..20));
    prop_oneof![
        6 => proptest::collection::vec(commit, 0..5).prop_map(Step::Apply),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
    ]
}

fn commits_of(batch: Vec<(Vec<Op>, Option<u8>)>, lsn: &mut u64) -> Vec<AppliedCommit> {
    let next = |(ops, request): (Vec<Op>, Option<u8>)| {
        *lsn += 7;
        let request_id = request.map(|byte| RequestId::new([byte; 16]));
        let timeline = TimelineId::new(1 + u32::try_from(*lsn / 70).unwrap());
        AppliedCommit { request_id, timeline, ..commit(*lsn, ops) }
    };
    batch.into_iter().map(next).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn answers_as_the_model_does(
        steps in proptest::collection::vec(step(), 1..20),
        probes in proptest::collection::vec((user_key(), proptest::option::of(user_key()), 0_u64..400), 1..20),
        limit in (1_usize..5, 1_usize..60),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let model = MemoryStore::new();
        let mut store = Some(open(dir.path()));
        let mut lsn = 100;
        for step in steps {
            let rocks = store.as_ref().unwrap();
            match step {
                Step::Apply(batch) => {
                    let commits = commits_of(batch, &mut lsn);
                    apply(rocks, &commits);
                    apply(&model, &commits);
                }
                Step::Flush => prop_assert_eq!(rocks.flush().unwrap(), model.flush().unwrap()),
                Step::Reopen => {
                    drop(store.take());
                    store = Some(open(dir.path()));
                }
            }
            prop_assert_eq!(store.as_ref().unwrap().applied(), model.applied());
        }
        let rocks = store.as_ref().unwrap();
        let limit = PageLimit { entries_max: limit.0, bytes_max: limit.1 };
        for (start, end, at) in probes {
            let at = Lsn::new(90 + at);
            prop_assert_eq!(rocks.get(&start, at).unwrap(), model.get(&start, at).unwrap());
            let range = KeyRange { start, end };
            prop_assert_eq!(scan_all(rocks, &range, at, limit), scan_all(&model, &range, at, limit));
        }
        for byte in 0..20 {
            let id = RequestId::new([byte; 16]);
            prop_assert_eq!(rocks.request(&id).unwrap(), model.request(&id).unwrap());
        }
    }

    #[test]
    fn a_crash_goes_back_to_an_applied_position_and_replay_leads_on(
        batches in proptest::collection::vec(proptest::collection::vec(
            (proptest::collection::vec(op(), 0..6), proptest::option::of(0_u8..20)), 1..4), 1..10),
        flushed_after in 0_usize..10,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let mut lsn = 100;
        let batches: Vec<_> = batches.into_iter().map(|batch| commits_of(batch, &mut lsn)).collect();
        for (count, batch) in batches.iter().enumerate() {
            apply(&store, batch);
            if count == flushed_after {
                store.flush().unwrap();
            }
        }
        let (end, durable) = (store.applied(), store.durable_applied().unwrap());
        let copy = copy_of_files(dir.path());
        let crashed = open(copy.path());
        prop_assert_eq!(crashed.applied(), durable);
        let model = MemoryStore::new();
        let all: Vec<_> = batches.into_iter().flatten().collect();
        let (before, after): (Vec<_>, Vec<_>) = all.iter().cloned().partition(|commit| commit.lsn <= durable.lsn);
        apply(&model, &before);
        let everything = KeyRange::default();
        let limit = PageLimit { entries_max: 100, bytes_max: 10_000 };
        prop_assert_eq!(scan_all(&crashed, &everything, Lsn::MAX, limit), scan_all(&model, &everything, Lsn::MAX, limit));
        apply(&crashed, &after);
        prop_assert_eq!(crashed.applied(), end);
        prop_assert_eq!(scan_all(&crashed, &everything, Lsn::MAX, limit), scan_all(&store, &everything, Lsn::MAX, limit));
    }
}

#[test]
fn keys_that_are_prefixes_of_one_another_stay_apart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let all: [&[u8]; 8] = [b"\0", b"\0\0", b"\0\x01", b"\0\xFF", b"a", b"a\0", b"a\0\xFF", b"\xFF\xFF"];
    let ops = all.iter().map(|key| put(key, key)).collect();
    apply(&store, &[commit(10, ops)]);
    let entries = scan_all(&store, &KeyRange::default(), Lsn::new(10), PageLimit { entries_max: 2, bytes_max: 100 });
    assert_eq!(keys(&entries), all);
    for key in all {
        assert_eq!(store.get(key, Lsn::new(10)).unwrap().unwrap().value, key);
    }
    let range = KeyRange { start: Bytes::from_static(b"a"), end: Some(Bytes::from_static(b"a\0\xFF")) };
    let entries = scan_all(&store, &range, Lsn::new(10), PageLimit { entries_max: 9, bytes_max: 100 });
    assert_eq!(keys(&entries), [&b"a"[..], b"a\0"]);
    let backwards = KeyRange { start: Bytes::from_static(b"b"), end: Some(Bytes::from_static(b"a")) };
    assert!(store.scan(&backwards, Lsn::MAX, PageLimit { entries_max: 9, bytes_max: 9 }).unwrap().entries.is_empty());
}

#[test]
fn the_last_operation_of_a_commit_on_a_key_counts() {
    let dir = tempfile::tempdir().unwrap();
    let (rocks, memory) = (open(dir.path()), MemoryStore::new());
    let stores: [&dyn Store; 2] = [&rocks, &memory];
    for store in stores {
        let ops = vec![put(b"a", b"1"), delete(b"a"), put(b"b", b"1"), put(b"b", b"2"), put(b"c", b"1"), delete(b"c")];
        apply(store, &[commit(10, ops), commit(20, vec![delete(b"b")])]);
        assert_eq!(store.get(b"a", Lsn::new(10)).unwrap(), None);
        assert_eq!(store.get(b"b", Lsn::new(10)).unwrap().unwrap().value, "2");
        assert_eq!(store.get(b"b", Lsn::new(20)).unwrap(), None);
        assert_eq!(store.get(b"c", Lsn::new(10)).unwrap(), None);
    }
}

#[test]
fn a_run_of_deleted_keys_ends_a_page_before_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let name = |number: u32| format!("key-{number:06}").into_bytes();
    let puts = (0..10_000).map(|number| put(&name(number), b"x")).collect();
    let deletes = (0..9_999).map(|number| delete(&name(number))).collect();
    apply(&store, &[commit(10, puts), commit(20, deletes)]);
    let limit = PageLimit { entries_max: 10, bytes_max: 1_000 };
    let first = store.scan(&KeyRange::default(), Lsn::new(20), limit).unwrap();
    assert!(first.entries.is_empty() && first.next.is_some());
    assert_eq!(keys(&scan_all(&store, &KeyRange::default(), Lsn::new(20), limit)), [name(9_999)]);
    assert_eq!(scan_all(&store, &KeyRange::default(), Lsn::new(10), limit).len(), 10_000);
}

#[test]
fn a_key_with_many_versions_is_left_in_one_step() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let commits: Vec<_> =
        (1..200).map(|number| commit(number * 10, vec![put(b"hot", number.to_string().as_bytes())])).collect();
    apply(&store, &commits);
    apply(&store, &[commit(5_000, vec![put(b"hou", b"next")])]);
    let limit = PageLimit { entries_max: 10, bytes_max: 1_000 };
    for at in [10, 500, 1_990] {
        let entries = scan_all(&store, &KeyRange::default(), Lsn::new(at), limit);
        assert_eq!(keys(&entries), [b"hot"]);
        assert_eq!(entries[0].value, (at / 10).to_string());
    }
    assert_eq!(keys(&scan_all(&store, &KeyRange::default(), Lsn::MAX, limit)), [b"hot", b"hou"]);
    assert!(scan_all(&store, &KeyRange::default(), Lsn::new(9), limit).is_empty());
}

#[test]
fn an_automatic_flush_persists_data_and_position_together() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let value = vec![0x5A; 64 << 10];
    let mut lsn = 100;
    // Small memtables: RocksDB flushes by itself sooner or later.
    while store.durable_applied().unwrap() == Position::default() {
        lsn += 10;
        let incompressible: Vec<u8> =
            value.iter().zip(0_u64..).map(|(byte, at)| byte ^ (at * lsn).to_le_bytes()[1]).collect();
        apply(&store, &[commit(lsn, vec![put(lsn.to_string().as_bytes(), &incompressible)])]);
        assert!(lsn < 100_000, "never flushed");
    }
    let copy = copy_of_files(dir.path());
    let crashed = open(copy.path());
    let durable = crashed.applied();
    assert!(durable.lsn.is_valid() && durable.lsn <= Lsn::new(lsn));
    let entries =
        scan_all(&crashed, &KeyRange::default(), Lsn::MAX, PageLimit { entries_max: 100, bytes_max: 1 << 30 });
    assert_eq!(entries.len() as u64, (durable.lsn.get() - 100) / 10);
}

#[test]
fn what_does_not_continue_the_applied_position_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (rocks, memory) = (open(dir.path()), MemoryStore::new());
    let stores: [&dyn Store; 2] = [&rocks, &memory];
    for store in stores {
        apply(store, &[commit(10, vec![put(b"a", b"1")])]);
        let to = |lsn| Position::new(TimelineId::FIRST, Lsn::new(lsn));
        for (commits, to) in [
            (vec![commit(10, vec![])], to(20)),
            (vec![commit(20, vec![]), commit(15, vec![])], to(20)),
            (vec![commit(20, vec![])], to(19)),
            (vec![], to(9)),
        ] {
            assert!(matches!(store.apply(&commits, to), Err(StoreError::OutOfOrder { .. })), "{commits:?} {to}");
        }
        assert_eq!(store.applied(), to(10));
        store.apply(&[], to(30)).unwrap();
        assert_eq!(store.applied(), to(30));
    }
}

#[test]
fn a_foreign_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let config = RocksConfig::new(dir.path(), SystemId::new(8));
    let error = RocksStore::open(&config).unwrap_err();
    assert!(matches!(error, StoreError::Foreign { found: SYSTEM, .. }), "{error}");
    assert!(error.to_string().contains("0000000000000007"), "{error}");
}

#[test]
fn a_store_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _open = open(dir.path());
    let error = RocksStore::open(&RocksConfig::new(dir.path(), SYSTEM)).unwrap_err();
    assert!(matches!(error, StoreError::Rocks { .. }), "{error}");
}
