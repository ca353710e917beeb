//! What is given up of the past: never silently, the same on every node, never what is present.

#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::*;
use understudy_engine::{Commit, CommitError, Condition, Engine, ReadError};
use understudy_store::{KeyRange, PageLimit, Store};
use understudy_types::{Lsn, Position};
use understudy_wal::{Decoder, GcHorizon, Record};

const LIMIT: PageLimit = PageLimit { entries_max: 10, bytes_max: 1 << 20 };

async fn horizon(engine: &Engine, lsn: Lsn) -> Lsn {
    *engine.horizon().wait_for(|horizon| *horizon >= lsn).await.unwrap()
}

/// The horizons that stand in the log, each with the end of its record.
fn horizons(engine: &Engine) -> Vec<(GcHorizon, Position)> {
    let decoder = Decoder::new(SYSTEM, SIZE, &engine.wal().history());
    let mut reader = engine.wal().reader(SIZE.log_start());
    let mut found = Vec::new();
    while let Some(chunk) = reader.read(Lsn::MAX, 1 << 20).unwrap() {
        for record in decoder.decode(chunk.start, &chunk.bytes) {
            let record = record.unwrap();
            if let Record::GcHorizon(horizon) = record.record {
                found.push((horizon, Position::new(record.timeline, record.end)));
            }
        }
    }
    found
}

fn assert_refused(engine: &Engine, at: Lsn, expected: Lsn) {
    let is_refused = |error: ReadError| {
        assert!(error.to_string().contains(&expected.to_string()), "{error}");
        matches!(error, ReadError::BelowHorizon { at: asked, horizon } if asked == at && horizon == expected)
    };
    assert!(is_refused(engine.get(b"a", at).unwrap_err()));
    assert!(is_refused(engine.scan(&KeyRange::default(), at, LIMIT).unwrap_err()));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_refuses_what_is_older_than_the_retention() {
    let (first, second) = (Disk::new(), Disk::new());
    let (primary, standby) = (first.open_primary(), second.open());
    let safe = follow_flush(&primary);
    let old = commit(&primary, local(vec![put("a", "1")])).await.unwrap().position;
    let new = commit(&primary, local(vec![put("a", "2"), put("b", "1")])).await.unwrap().position;
    visible(&primary, new.lsn).await;
    assert_eq!(primary.get(b"a", old.lsn).unwrap().unwrap().value, "1");
    assert_eq!(horizons(&primary), [], "nothing is old yet");
    primary.set_history_retention(Duration::ZERO);
    let given_up = horizon(&primary, new.lsn).await;
    safe.abort();
    assert_refused(&primary, old.lsn, given_up);
    assert_eq!(primary.get(b"a", given_up).unwrap().unwrap().version, new);
    standby.begin_timeline(&primary.wal().history()).unwrap();
    ship(&primary, &standby);
    standby.wal().flush().unwrap();
    standby.advance_safe(new.lsn);
    visible(&standby, new.lsn).await;
    assert_eq!(standby.get(b"a", old.lsn).unwrap().unwrap().value, "1", "it has not heard of the horizon");
    standby.advance_safe(primary.visible().borrow().lsn);
    assert_eq!(horizon(&standby, given_up).await, given_up);
    assert_refused(&standby, old.lsn, given_up);
    assert_eq!(standby.scan(&KeyRange::default(), given_up, LIMIT).unwrap().entries.len(), 2);
    for (horizon, end) in horizons(&primary) {
        assert!(horizon.versions_below < end.lsn && !horizon.requests_below.is_valid(), "{horizon:?}");
    }
    // It stays given up after a restart.
    standby.stop().unwrap();
    drop(standby);
    assert_refused(&second.open(), old.lsn, given_up);
}

/// The horizon passes the read while the store is being read: what was read may have holes.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_the_horizon_overtakes_fails() {
    let disk = Disk::new();
    let overtakes = Arc::new(AtomicBool::new(false));
    let (store, overtakes_now) = (Arc::clone(&disk.store), Arc::clone(&overtakes));
    let engine = disk.open_read_watched(move || {
        if overtakes_now.swap(false, Ordering::SeqCst) {
            let applied = store.applied();
            let horizon = GcHorizon { versions_below: applied.lsn, requests_below: Lsn::INVALID };
            store.raise_horizon(horizon, applied).unwrap();
        }
    });
    let start = SIZE.log_start();
    engine.open_primary(&history(&[(1, start)]), start).unwrap();
    confirm(&engine);
    for (key, scans) in [("a", false), ("b", true)] {
        let old = commit(&engine, local(vec![put(key, "1")])).await.unwrap().position;
        commit(&engine, local(vec![put(key, "2")])).await.unwrap();
        let end = make_all_safe(&engine).await;
        assert_eq!(engine.get(key.as_bytes(), old.lsn).unwrap().unwrap().value, "1");
        overtakes.store(true, Ordering::SeqCst);
        let error = match scans {
            true => engine.scan(&KeyRange::default(), old.lsn, LIMIT).unwrap_err(),
            false => engine.get(key.as_bytes(), old.lsn).unwrap_err(),
        };
        assert!(matches!(error, ReadError::BelowHorizon { horizon, .. } if horizon == end.lsn), "{error}");
        assert!(!overtakes.load(Ordering::SeqCst), "it was overtaken");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_on_the_present_hold_whatever_is_given_up() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let _safe = follow_flush(&engine);
    let kept = commit(&engine, local(vec![put("kept", "1"), put("gone", "1")])).await.unwrap().position;
    let deleted = commit(&engine, local(vec![delete("gone")])).await.unwrap().position;
    engine.set_history_retention(Duration::ZERO);
    horizon(&engine, deleted.lsn).await;
    let check = async |key, condition| {
        let preconditions = when(key, condition);
        commit(&engine, Commit { preconditions, ..local(vec![put("other", "")]) }).await.map(|_| ())
    };
    assert_eq!(check("kept", Condition::VersionEquals(kept)).await, Ok(()));
    assert_eq!(check("kept", equals("1")).await, Ok(()));
    assert_eq!(check("gone", Condition::Absent).await, Ok(()));
    let error = check("gone", Condition::VersionEquals(kept)).await.unwrap_err();
    assert!(matches!(error, CommitError::PreconditionFailed { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_is_known_for_as_long_as_it_is_kept() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let _safe = follow_flush(&engine);
    let once = || Commit { request_id: request(1), ..local(vec![put("a", "1")]) };
    let made = commit(&engine, once()).await.unwrap().position;
    visible(&engine, made.lsn).await;
    engine.set_history_retention(Duration::ZERO);
    horizon(&engine, made.lsn).await;
    let again = commit(&engine, once()).await.unwrap();
    assert!(again.already_done && again.position == made, "history is given up, request ids are not");
    engine.set_request_id_retention(Duration::ZERO);
    // The horizon of requests goes with a record that moves that of versions as well.
    while engine.store().horizon().requests_below <= made.lsn {
        let end = commit(&engine, local(vec![put("b", "1")])).await.unwrap().position;
        horizon(&engine, end.lsn).await;
    }
    let anew = commit(&engine, once()).await.unwrap();
    assert!(!anew.already_done && anew.position.lsn > made.lsn);
}

/// INV-REDO with horizons in the log: a crash goes back to an older one, and replay leads to the same again.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_and_replay_lead_to_the_same_horizon() {
    for seed in 0..2 {
        let disk = Disk::new();
        let engine = disk.open_primary();
        let safe = follow_flush(&engine);
        engine.set_history_retention(Duration::ZERO);
        engine.set_request_id_retention(Duration::ZERO);
        for number in 0..20_u8 {
            let ops = vec![put("a", &number.to_string()), put(&format!("key-{}", number % 3), "x"), delete("key-1")];
            let made = commit(&engine, Commit { request_id: request(number), ..local(ops) }).await.unwrap().position;
            if number % 7 == seed {
                horizon(&engine, made.lsn).await;
                disk.store.flush().unwrap();
            }
        }
        safe.abort();
        assert!(safe.await.unwrap_err().is_cancelled());
        // The safe LSN stands still from here on, so that both lives see the same log.
        engine.seal().unwrap();
        let safe = *engine.safe().borrow();
        let end = visible(&engine, safe).await;
        drop(engine);
        let before = disk.store.horizon();
        disk.crash(u64::from(seed));
        let engine = disk.open();
        assert!(disk.store.horizon().versions_below <= before.versions_below);
        engine.advance_safe(end.lsn);
        visible(&engine, end.lsn).await;
        assert_eq!(disk.store.horizon(), before, "seed {seed}");
        let expected = horizons(&engine)
            .into_iter()
            .filter(|(_, position)| position.lsn <= end.lsn)
            .fold(GcHorizon::default(), |highest, (horizon, _)| highest.max(horizon));
        assert_eq!(before, expected);
    }
}
