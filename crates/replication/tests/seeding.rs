//! Seeding over real gRPC on loopback, with real stores: what the seeded node has is what the source has, however often
//! the way there was broken off, and only what it did not have was sent.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use support::*;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use understudy_engine::{Clock, Commit, Engine, EngineConfig, SystemClock};
use understudy_replication::seed::{
    SeedConfig, SeedError, SeedSource, Seeded, Seeder, SeederSettings, SeedingStatus, seed, swap,
};
use understudy_replication::{ServingTimeline, Source};
use understudy_store::{RocksConfig, RocksStore};
use understudy_types::{DurabilityLevel, Lsn, NodeId, SystemId, TimelineHistory, TimelineId, TimelineSwitch};
use understudy_wal::{Op, RealFiles};

const VALUE_BYTES: usize = 40_000;

fn open(dir: &Path) -> Engine {
    let store = RocksStore::open(&RocksConfig::new(dir.join("store"), SYSTEM)).expect("a store");
    let config = EngineConfig { segment_size: SIZE, ..EngineConfig::new(dir, SYSTEM) };
    Engine::open(config, Arc::new(RealFiles), Arc::new(store), Arc::new(SystemClock)).expect("an engine")
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

/// A primary that others are seeded from.
struct Primary {
    dir: TempDir,
    engine: Engine,
    history: TimelineHistory,
    hooks: Arc<TestUpstream>,
    seeder: Arc<Seeder>,
    server: Server,
    written: u64,
}

impl Primary {
    async fn start(settings: SeederSettings) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let engine = open(dir.path());
        let mut history = TimelineHistory::new();
        let switch_lsn = engine.wal().end().lsn;
        let first = TimelineSwitch { timeline: TimelineId::FIRST, parent: TimelineId::NONE, switch_lsn };
        history.push(first).expect("a first timeline");
        let (opened, opening) = (history.clone(), engine.clone());
        let opened = tokio::task::spawn_blocking(move || opening.open_primary(&opened, switch_lsn)).await;
        opened.expect("no panic").expect("a new timeline");
        engine.set_confirmed_until(Some(SystemClock.boot_time() + Duration::from_secs(600)));
        let serving = ServingTimeline { history: history.clone(), ended: CancellationToken::new() };
        let id = NodeId::new(1);
        let hooks = TestUpstream::new(Source::of(&engine, id), &history, Some(serving), TimelineId::NONE);
        hooks.set_seed_source(Some(SeedSource { engine: engine.clone(), node: id, wal_dir: dir.path().join("wal") }));
        let seeder = Arc::new(Seeder::new(dir.path(), settings));
        let server = Server::start_seeding(&hooks, &seeder).await;
        Self { dir, engine, history, hooks, seeder, server, written: 0 }
    }

    /// So many table files of about 2.5 MiB.
    async fn fill(&mut self, tables: u64) -> Lsn {
        let mut end = Lsn::INVALID;
        for _ in 0..tables {
            for _ in 0..64 {
                self.written += 1;
                let op = Op::Put { key: format!("key-{:08}", self.written).into(), value: noise(self.written).into() };
                let commit = Commit { ops: vec![op], level: DurabilityLevel::Local, ..Commit::default() };
                let committed = self.engine.commit(commit, tokio::time::Instant::now() + PATIENCE).await;
                end = committed.expect("a commit").position.lsn;
            }
            self.engine.advance_safe(end);
            until("visibility", &mut self.engine.visible(), |visible| visible.lsn >= end).await;
            let engine = self.engine.clone();
            let flushed = tokio::task::spawn_blocking(move || engine.store().flush()).await;
            flushed.expect("no panic").expect("a flush");
        }
        end
    }

    fn checkpoints(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir.path().join("seeds"));
        entries.map(|entries| entries.map(|entry| entry.expect("readable").path()).collect()).unwrap_or_default()
    }

    async fn nothing_is_left(&self) {
        let looking = async {
            while !self.checkpoints().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        within("the checkpoint to go", looking).await;
        until("nothing to be needed any more", &mut self.seeder.needed_from(), Option::is_none).await;
    }

    fn config(&self, dir: &Path, address: &str) -> SeedConfig {
        SeedConfig {
            source_address: address.to_owned(),
            system_id: SYSTEM,
            format: FORMAT,
            node: NodeId::new(2),
            history: self.history.clone(),
            data_dir: dir.to_owned(),
            own_stores: Vec::new(),
            timeout_ms: 10_000,
        }
    }

    async fn seed(&self, dir: &Path) -> Result<Seeded, SeedError> {
        let (status, _) = watch::channel(SeedingStatus::default());
        let config = self.config(dir, &self.server.address());
        within("a seed", seed(config, status, CancellationToken::new())).await
    }

    /// The seeded data takes the place of what was there, is opened, and holds everything.
    async fn assert_good(&self, dir: &Path, seeded: &Seeded) -> Engine {
        swap::mark_complete(dir, seeded.at).expect("a mark");
        swap::complete(dir).expect("a swap");
        assert!(!dir.join("seed").exists());
        let engine = open(dir);
        assert_eq!(engine.wal().end(), seeded.at);
        assert_eq!(*engine.visible().borrow(), seeded.at);
        for number in 1..=self.written {
            let found = engine.get(format!("key-{number:08}").as_bytes(), seeded.at.lsn).expect("readable");
            assert_eq!(found.expect("a value").value, noise(number), "key {number}");
        }
        engine
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seeded_node_has_everything_and_streams() {
    // INV-BYTES, BAK-5.
    let mut primary = Primary::start(SeederSettings::default()).await;
    let end = primary.fill(5).await;
    let dir = tempfile::tempdir().unwrap();
    let seeded = primary.seed(dir.path()).await.unwrap();
    assert_eq!(seeded.at.lsn, end);
    assert_eq!(seeded.status.bytes_received, seeded.status.bytes_total);
    assert_eq!(seeded.status.bytes_reused, 0);
    let engine = primary.assert_good(dir.path(), &seeded).await;
    // The checkpoint goes with the seed.
    primary.nothing_is_left().await;

    let log = Arc::new(engine);
    let mut following = Following::start(&log, NodeId::new(2), &primary.server.address(), &primary.history);
    following.streaming().await;
    let end = primary.fill(3).await;
    primary.hooks.acked(NodeId::new(2), end).await;
    until("visibility", &mut log.visible(), |visible| visible.lsn >= end).await;
    let value = log.get(format!("key-{:08}", primary.written).as_bytes(), end).unwrap().unwrap();
    assert_eq!(value.value, noise(primary.written));
    following.stop().await;
    // From the begin of the segment that the seed ends in.
    let compared = compare_segments(&primary.history, &primary.dir.path().join("wal"), &dir.path().join("wal"), end);
    assert!(compared >= 2, "{compared} segments compared");
    primary.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_that_is_broken_off_ten_times_ends_well_and_nothing_is_sent_twice() {
    let mut primary = Primary::start(SeederSettings::default()).await;
    primary.fill(24).await;
    let relay = Relay::start(primary.server.address).await;
    let dir = tempfile::tempdir().unwrap();
    let (mut received, mut breaks) = (0, 0);
    let seeded = loop {
        let (status, mut seen) = watch::channel(SeedingStatus::default());
        let attempt =
            tokio::spawn(seed(primary.config(dir.path(), &relay.address()), status, CancellationToken::new()));
        if breaks < 10 {
            // At another place each time, in the middle of a file more often than not.
            let stop_at = 1 + breaks * 131_071;
            let here = seen.wait_for(|status| status.bytes_received >= stop_at).await.map(|status| *status);
            if here.is_ok() {
                relay.cut();
            }
        }
        match within("an attempt", attempt).await.unwrap() {
            Ok(seeded) => break seeded,
            Err(error) => {
                assert!(matches!(error, SeedError::Broken { .. } | SeedError::Refused { .. }), "{error}");
                breaks += 1;
                received += seen.borrow().bytes_received;
            }
        }
    };
    assert_eq!(breaks, 10);
    received += seeded.status.bytes_received;
    assert_eq!(received, seeded.status.bytes_total, "every byte was sent once");
    assert!(seeded.status.bytes_reused > 0);
    primary.assert_good(dir.path(), &seeded).await;
    primary.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_seed_sends_only_the_files_that_differ() {
    let mut primary = Primary::start(SeederSettings::default()).await;
    // Fewer tables than a compaction begins with: it would make other files of them.
    primary.fill(2).await;
    let dir = tempfile::tempdir().unwrap();
    let first = primary.seed(dir.path()).await.unwrap();
    drop(primary.assert_good(dir.path(), &first).await);
    primary.fill(1).await;
    let second = primary.seed(dir.path()).await.unwrap();
    assert!(second.at > first.at);
    let SeedingStatus { bytes_total, bytes_reused, bytes_received, .. } = second.status;
    assert_eq!(bytes_received + bytes_reused, bytes_total);
    assert!(bytes_reused >= first.status.bytes_total * 3 / 4, "{:?} after {:?}", second.status, first.status);
    primary.assert_good(dir.path(), &second).await;
    primary.server.stop().await;
}

/// An attempt that is broken off once something has come.
async fn broken_off(primary: &Primary, dir: &Path) {
    let (status, mut seen) = watch::channel(SeedingStatus::default());
    let cancel = CancellationToken::new();
    let attempt = tokio::spawn(seed(primary.config(dir, &primary.server.address()), status, cancel.clone()));
    seen.wait_for(|status| status.bytes_received > 0).await.expect("an attempt under way");
    cancel.cancel();
    let outcome = within("the attempt to end", attempt).await.expect("no panic");
    assert!(matches!(outcome, Err(SeedError::Cancelled)), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_not_what_the_list_says_is_not_taken() {
    let mut primary = Primary::start(SeederSettings::default()).await;
    primary.fill(24).await;
    let dir = tempfile::tempdir().unwrap();
    broken_off(&primary, dir.path()).await;
    assert!(primary.seeder.needed_from().borrow().is_some(), "INV-RETAIN: it will come back");
    let [checkpoint] = &primary.checkpoints()[..] else { panic!("one checkpoint is held") };
    let mut tables: Vec<PathBuf> = std::fs::read_dir(checkpoint).unwrap().map(|entry| entry.unwrap().path()).collect();
    tables.retain(|path| path.extension().is_some_and(|extension| extension == "sst"));
    tables.sort();
    let last = tables.last().unwrap();
    let sound = std::fs::read(last).unwrap();
    let mut damaged = sound.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(last, damaged).unwrap();
    let error = primary.seed(dir.path()).await.unwrap_err();
    let name = last.file_name().unwrap().to_string_lossy().into_owned();
    let SeedError::Digest { name: said, .. } = &error else { panic!("{error}") };
    assert_eq!(*said, name);
    assert!(!swap::is_due(dir.path()));
    std::fs::write(last, sound).unwrap();
    let seeded = primary.seed(dir.path()).await.unwrap();
    primary.assert_good(dir.path(), &seeded).await;
    primary.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_goes_when_nobody_comes_back_for_it() {
    let mut primary = Primary::start(SeederSettings { grace: Duration::ZERO, ..SeederSettings::default() }).await;
    primary.fill(24).await;
    let dir = tempfile::tempdir().unwrap();
    broken_off(&primary, dir.path()).await;
    let mut needed = primary.seeder.needed_from();
    until("nothing to be needed any more", &mut needed, Option::is_none).await;
    // The next attempt gets another checkpoint.
    let seeded = primary.seed(dir.path()).await.unwrap();
    primary.assert_good(dir.path(), &seeded).await;
    primary.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_cannot_be_seeded_from_here_is_told_why() {
    let mut primary = Primary::start(SeederSettings { seeds_max: 0, ..SeederSettings::default() }).await;
    primary.fill(1).await;
    let dir = tempfile::tempdir().unwrap();
    let refused = |change: fn(&mut SeedConfig)| {
        let mut config = primary.config(dir.path(), &primary.server.address());
        change(&mut config);
        async move {
            let (status, _) = watch::channel(SeedingStatus::default());
            within("a refusal", seed(config, status, CancellationToken::new())).await.unwrap_err().to_string()
        }
    };
    let text = refused(|_| {}).await;
    assert!(text.contains("seeds 0 others already"), "{text}");
    let text = refused(|config| config.node = NodeId::new(99)).await;
    assert!(text.contains("not a member"), "{text}");
    let text = refused(|config| config.node = NodeId::new(1)).await;
    assert!(text.contains("asked itself"), "{text}");
    let text = refused(|config| config.system_id = SystemId::new(8)).await;
    assert!(text.contains("data directory of another cluster"), "{text}");
    let text = refused(|config| config.format.segment_size = understudy_types::SegmentSize::DEFAULT).await;
    assert!(text.contains("segment size is the cluster's"), "{text}");
    primary.hooks.set_seed_source(None);
    let text = refused(|_| {}).await;
    assert!(text.contains("has no data (yet)"), "{text}");
    assert!(primary.checkpoints().is_empty(), "none of them was worth a checkpoint");
    primary.server.stop().await;
}
