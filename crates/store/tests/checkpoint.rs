//! A checkpoint is the store at one applied position, whatever was applied meanwhile (INV-REDO).

#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::*;
use understudy_store::{KeyRange, MemoryStore, PageLimit, Store, StoreError, checkpoint_files};
use understudy_types::{Lsn, RequestId};

const LIMIT: PageLimit = PageLimit { entries_max: 1_000, bytes_max: 1 << 20 };

#[test]
fn a_checkpoint_beside_an_applier_is_a_replay_up_to_its_position() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store"));
    let made = |number: u64| {
        let id = Some(RequestId::new([u8::try_from(number % 200).unwrap(); 16]));
        let key = format!("key-{:04}", number % 500).into_bytes();
        let op = if number % 7 == 0 { delete(&key) } else { put(&key, number.to_string().repeat(40).as_bytes()) };
        understudy_store::AppliedCommit { request_id: id, ..commit(100 + number * 10, vec![op, put(b"last", &key)]) }
    };
    let done = AtomicBool::new(false);
    let checkpoints = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0;
            while !done.load(Ordering::Relaxed) {
                apply(&store, &[made(number)]);
                number += 1;
            }
        });
        let checkpoints: Vec<_> = (0..5)
            .map(|number| {
                let begun = store.applied();
                let target = dir.path().join(format!("checkpoint-{number}"));
                let position = store.checkpoint(&target).unwrap();
                assert!(begun.lsn <= position.lsn && position.lsn <= store.applied().lsn);
                (target, position)
            })
            .collect();
        done.store(true, Ordering::Relaxed);
        checkpoints
    });
    assert!(store.applied().lsn > checkpoints[0].1.lsn, "commits went on");
    for (target, position) in checkpoints {
        let copy = open(&target);
        assert_eq!((copy.applied(), copy.durable_applied().unwrap()), (position, position));
        let model = MemoryStore::new();
        let commits = (0..).map(made).take_while(|commit| commit.lsn <= position.lsn);
        apply(&model, &commits.collect::<Vec<_>>());
        for at in [position.lsn, Lsn::new(position.lsn.get() / 2)] {
            let everything = KeyRange::default();
            assert_eq!(scan_all(&copy, &everything, at, LIMIT), scan_all(&model, &everything, at, LIMIT));
        }
        for byte in 0..200 {
            let id = RequestId::new([byte; 16]);
            assert_eq!(copy.request(&id).unwrap(), model.request(&id).unwrap());
        }
    }
}

#[test]
fn its_files_are_listed_and_table_files_stay_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store"));
    let target = |number: u8| dir.path().join(number.to_string());
    apply(&store, &[commit(10, vec![put(b"a", b"1")])]);
    store.checkpoint(&target(1)).unwrap();
    apply(&store, &[commit(20, vec![put(b"b", b"2")])]);
    store.checkpoint(&target(2)).unwrap();
    let (first, second) = (checkpoint_files(&target(1)).unwrap(), checkpoint_files(&target(2)).unwrap());
    assert!(first.iter().any(|file| file.name == "CURRENT" && !file.immutable));
    assert!(first.iter().any(|file| file.immutable && file.size_bytes > 0));
    for file in first.iter().filter(|file| file.immutable) {
        assert!(second.contains(file), "{file:?}");
        let content = |number| std::fs::read(target(number).join(&file.name)).unwrap();
        assert_eq!(content(1), content(2));
    }
    assert!(second.iter().filter(|file| file.immutable).count() > first.iter().filter(|file| file.immutable).count());
    let error = checkpoint_files(&target(3)).unwrap_err();
    assert!(matches!(error, StoreError::List { .. }), "{error}");
}

#[test]
fn a_checkpoint_that_fails_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store"));
    apply(&store, &[commit(10, vec![put(b"a", b"1")])]);
    let taken = dir.path().join("taken");
    std::fs::create_dir(&taken).unwrap();
    std::fs::write(taken.join("file"), b"mine").unwrap();
    let error = store.checkpoint(&taken).unwrap_err();
    assert!(matches!(&error, StoreError::CheckpointExists { path } if *path == taken), "{error}");
    assert_eq!(std::fs::read(taken.join("file")).unwrap(), b"mine");
    let error = store.checkpoint(&dir.path().join("not-there").join("checkpoint")).unwrap_err();
    assert!(matches!(error, StoreError::Rocks { .. }), "{error}");
    let mut names: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["store", "taken"]);
    assert!(matches!(MemoryStore::new().checkpoint(&taken), Err(StoreError::NoFiles)));
}
