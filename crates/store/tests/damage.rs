//! Damage to a store that runs: whoever comes across it says that it is damage, and the next write does when it was a thread of
//! RocksDB's. What the system refuses is not damage. The sweeper's share of this stands with it.

#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

mod common;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use common::*;
use understudy_store::{AppliedCommit, RocksStore, Store, StoreError};
use understudy_types::Lsn;

const VALUE_BYTES: usize = 100;
/// Enough for several blocks.
const KEYS: u64 = 2_000;

fn key(number: u64) -> Vec<u8> {
    format!("key-{number:08}").into_bytes()
}

/// Bytes that do not compress.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(VALUE_BYTES).collect()
}

/// A store with one table file of some size.
fn filled(dir: &Path) -> RocksStore {
    let store = open(dir);
    let commits: Vec<AppliedCommit> =
        (1..=KEYS).map(|number| commit(number * 10, vec![put(&key(number), &noise(number))])).collect();
    apply(&store, &commits);
    store.flush().unwrap();
    store
}

/// Flips a byte in the middle of every table file that has several blocks, beneath the store that has it open.
fn damage(dir: &Path) {
    let mut damaged = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let size = path.metadata().unwrap().len();
        if path.extension().is_some_and(|extension| extension == "sst") && size > KEYS * VALUE_BYTES as u64 / 2 {
            let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, size / 2).unwrap();
            file.write_all_at(&[byte[0] ^ 1], size / 2).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 0, "a table file was damaged");
}

/// Writes until that fails.
fn next_failure(store: &RocksStore) -> StoreError {
    let deadline = Instant::now() + Duration::from_secs(20);
    for number in 1.. {
        let next = commit(KEYS * 10 + number, vec![put(b"more", b"")]);
        if let Err(error) = store.apply(std::slice::from_ref(&next), next.position()) {
            return error;
        }
        assert!(Instant::now() < deadline, "the damage is not said");
        std::thread::yield_now();
    }
    unreachable!("the range has no end")
}

#[test]
fn a_read_that_meets_a_bad_block_says_damage() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path());
    damage(dir.path());
    let errors: Vec<StoreError> =
        (1..=KEYS).filter_map(|number| store.get(&key(number), Lsn::new(KEYS * 10)).err()).collect();
    assert!(!errors.is_empty() && errors.iter().all(StoreError::is_damage), "{errors:?}");
}

#[test]
fn a_compaction_that_meets_a_bad_block_makes_the_next_write_say_damage() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path());
    damage(dir.path());
    store.compact();
    let error = next_failure(&store);
    assert!(error.is_damage(), "{error:?}");
    assert!(store.flush().is_err_and(|error| error.is_damage()));
}

#[test]
fn what_the_system_refuses_is_not_damage() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path());
    let nowhere = dir.path().join("no/such/directory/checkpoint");
    let error = store.checkpoint(&nowhere).unwrap_err();
    assert!(!error.is_damage(), "{error:?}");
}
