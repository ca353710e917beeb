//! A real process, killed without warning, over and over: what it acknowledged is there after every restart.

#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::*;
use understudy_engine::{Commit, Engine, EngineConfig, SystemClock};
use understudy_store::{RocksConfig, RocksStore};
use understudy_types::{Lsn, Position, RequestId, TimelineId};
use understudy_wal::RealFiles;

const DIR: &str = "UNDERSTUDY_KILL_TEST_DIR";
const RUN: &str = "UNDERSTUDY_KILL_TEST_RUN";
const RUNS: u32 = 12;

fn open(dir: &Path) -> Engine {
    let config = EngineConfig { segment_size: SIZE, ..EngineConfig::new(dir, SYSTEM) };
    // Small memtables: RocksDB flushes some of the data, at moments of its own.
    let store = RocksConfig { write_buffer_bytes: 1 << 20, ..RocksConfig::new(dir.join("store"), SYSTEM) };
    let store = RocksStore::open(&store).unwrap();
    let engine = Engine::open(config, Arc::new(RealFiles), Arc::new(store), Arc::new(SystemClock)).unwrap();
    let switches: Vec<_> =
        engine.wal().history().switches().iter().map(|switch| (switch.timeline.get(), switch.switch_lsn)).collect();
    let next = switches.last().map_or(1, |(timeline, _)| timeline + 1);
    let end = engine.wal().end().lsn;
    engine.open_primary(&history(&[switches, vec![(next, end)]].concat()), end).unwrap();
    confirm(&engine);
    // Horizons all the time: the kills hit those too.
    engine.set_history_retention(Duration::from_millis(50));
    engine
}

fn id(run: u32, number: u32) -> RequestId {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&run.to_be_bytes());
    bytes[4..8].copy_from_slice(&number.to_be_bytes());
    RequestId::new(bytes)
}

fn numbered(run: u32, number: u32) -> Commit {
    let key = format!("{run:04}/{number:08}");
    let value = format!("{key} {}", "x".repeat(number as usize % 3_000));
    Commit { request_id: Some(id(run, number)), ..local(vec![put(&key, &value), put("last", &key)]) }
}

/// Not a test of its own: the process that is killed. It does nothing unless the test below started it.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let (Ok(dir), Ok(run)) = (std::env::var(DIR), std::env::var(RUN)) else { return };
    let run: u32 = run.parse().unwrap();
    let engine = open(Path::new(&dir));
    let _safe = follow_flush(&engine);
    let mut in_flight = std::collections::VecDeque::new();
    for number in 0.. {
        in_flight.push_back((number, start(&engine, numbered(run, number))));
        if in_flight.len() > 16 {
            let (number, made) = in_flight.pop_front().unwrap();
            let position = made.await.unwrap().unwrap().position;
            println!("\nacknowledged {number} {} {}", position.timeline.get(), position.lsn.get());
        }
    }
}

/// Starts the child, reads `lines` acknowledgements, kills it, reads what it had still said.
fn run_and_kill(dir: &Path, run: u32, lines: usize) -> Vec<(u32, Position)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(DIR, dir)
        .env(RUN, run.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut acknowledged = Vec::new();
    let mut line = String::new();
    while output.read_line(&mut line).unwrap() > 0 {
        // A line that the kill cut in half has no end and was not told.
        let whole = line.ends_with('\n');
        let words: Vec<&str> = line.split_whitespace().collect();
        if let (true, ["acknowledged", number, timeline, lsn]) = (whole, &words[..]) {
            let timeline = TimelineId::new(timeline.parse().unwrap());
            acknowledged.push((number.parse().unwrap(), Position::new(timeline, Lsn::new(lsn.parse().unwrap()))));
            if acknowledged.len() == lines {
                child.kill().unwrap();
            }
        }
        line.clear();
    }
    assert!(!child.wait().unwrap().success(), "the child ends by being killed alone");
    acknowledged
}

/// INV-DURABLE (the local part) and INV-REDO, by kill -9 at moments that nobody chose.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged: BTreeMap<(u32, u32), Position> = BTreeMap::new();
    for run in 0..RUNS {
        let lines = [1, 400, 37, 150, 3, 900][run as usize % 6];
        let told = run_and_kill(dir.path(), run, lines);
        assert!(told.len() >= lines);
        acknowledged.extend(told.into_iter().map(|(number, position)| ((run, number), position)));
        if run % 4 == 3 {
            check(&open(dir.path()), &acknowledged).await;
        }
    }
}

async fn check(engine: &Engine, acknowledged: &BTreeMap<(u32, u32), Position>) {
    let end = make_all_safe(engine).await;
    for ((run, number), position) in acknowledged {
        let Commit { ops, .. } = numbered(*run, *number);
        let found = engine.get(ops[0].key(), end.lsn).unwrap().unwrap();
        assert_eq!(found.version, *position, "{run}/{number}");
        // Exactly once: its request id is known, at the position that was told.
        assert_eq!(engine.store().request(&id(*run, *number)).unwrap(), Some(*position));
    }
    let (last, _) = acknowledged.last_key_value().unwrap();
    let made = commit(engine, numbered(last.0, last.1)).await.unwrap();
    assert!(made.already_done);
}
