//! The end of a seed, at its source: while the checkpoint is being read nothing of it outlives its stream, and nothing keeps the
//! store of an engine that was given up.

mod support;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use support::*;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use understudy_engine::{Engine, EngineConfig, SystemClock};
use understudy_replication::seed::{
    SeedConfig, SeedError, SeedSource, Seeded, Seeder, SeederSettings, SeedingStatus, seed,
};
use understudy_replication::{SenderSettings, ServingTimeline, Source};
use understudy_rpc::v1::replication_client::ReplicationClient;
use understudy_store::{AppliedCommit, KeyRange, MemoryStore, PageLimit, ScanPage, Store, StoreError, VersionedValue};
use understudy_types::{Lsn, NodeId, Position, RequestId, TimelineHistory, TimelineId, TimelineSwitch};
use understudy_wal::{GcHorizon, RealFiles};

/// Of a file with nothing in it: no test lives to see it read.
const GIANT_BYTES: u64 = 1 << 40;

/// A store whose checkpoints take hours to read.
struct GiantStore(MemoryStore);

impl Store for GiantStore {
    fn applied(&self) -> Position {
        self.0.applied()
    }

    fn durable_applied(&self) -> Result<Position, StoreError> {
        self.0.durable_applied()
    }

    fn apply(&self, commits: &[AppliedCommit], applied: Position) -> Result<(), StoreError> {
        self.0.apply(commits, applied)
    }

    fn raise_horizon(&self, horizon: GcHorizon, applied: Position) -> Result<(), StoreError> {
        self.0.raise_horizon(horizon, applied)
    }

    fn horizon(&self) -> GcHorizon {
        self.0.horizon()
    }

    fn get(&self, key: &[u8], at: Lsn) -> Result<Option<VersionedValue>, StoreError> {
        self.0.get(key, at)
    }

    fn scan(&self, range: &KeyRange, at: Lsn, limit: PageLimit) -> Result<ScanPage, StoreError> {
        self.0.scan(range, at, limit)
    }

    fn request(&self, id: &RequestId) -> Result<Option<Position>, StoreError> {
        self.0.request(id)
    }

    fn flush(&self) -> Result<Position, StoreError> {
        self.0.flush()
    }

    fn checkpoint(&self, dir: &Path) -> Result<Position, StoreError> {
        std::fs::create_dir(dir).expect("a new directory");
        let file = std::fs::File::create(dir.join("000001.sst")).expect("a file");
        file.set_len(GIANT_BYTES).expect("a sparse file");
        Ok(Position::new(TimelineId::FIRST, SIZE.log_start()))
    }
}

/// A node that others are seeded from.
struct Giant {
    dir: TempDir,
    engine: Engine,
    store: Weak<GiantStore>,
    hooks: Arc<TestUpstream>,
    seeder: Arc<Seeder>,
    server: Server,
    seeded: TempDir,
}

impl Giant {
    async fn start() -> Self {
        Self::start_with(SenderSettings::default()).await
    }

    async fn start_with(settings: SenderSettings) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Arc::new(GiantStore(MemoryStore::new()));
        let config = EngineConfig { segment_size: SIZE, ..EngineConfig::new(dir.path(), SYSTEM) };
        let held = Arc::downgrade(&store);
        let engine = Engine::open(config, Arc::new(RealFiles), store, Arc::new(SystemClock)).expect("an engine");
        let id = NodeId::new(1);
        let opening = engine.clone();
        let opened = tokio::task::spawn_blocking(move || opening.open_primary(&history(), SIZE.log_start())).await;
        opened.expect("no panic").expect("a new timeline");
        let serving = ServingTimeline { history: history(), ended: CancellationToken::new() };
        let hooks = TestUpstream::new(Source::of(&engine, id), &history(), Some(serving), TimelineId::NONE);
        hooks.set_seed_source(Some(SeedSource { engine: engine.clone(), node: id, wal_dir: dir.path().join("wal") }));
        let seeder = Arc::new(Seeder::new(dir.path(), SeederSettings::default()));
        let server = Server::start_seeding_with(&hooks, &seeder, settings).await;
        let seeded = tempfile::tempdir().expect("a directory");
        Self { dir, engine, store: held, hooks, seeder, server, seeded }
    }

    fn seed(&self, node: u64) -> (JoinHandle<Result<Seeded, SeedError>>, CancellationToken) {
        let config = SeedConfig {
            source_address: self.server.address(),
            system_id: SYSTEM,
            format: FORMAT,
            node: NodeId::new(node),
            history: history(),
            data_dir: self.seeded.path().to_owned(),
            own_stores: Vec::new(),
            timeout_ms: 10_000,
        };
        let (status, _) = watch::channel(SeedingStatus::default());
        let cancel = CancellationToken::new();
        (tokio::spawn(seed(config, status, cancel.clone())), cancel)
    }

    /// A seed of node 2, once its checkpoint is there and being read.
    async fn begun(&self) -> (JoinHandle<Result<Seeded, SeedError>>, CancellationToken) {
        let before = self.checkpoints();
        let (seeding, cancel) = self.seed(2);
        self.checkpoints_are("another checkpoint", |now| now.iter().any(|one| !before.contains(one))).await;
        (seeding, cancel)
    }

    fn checkpoints(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir.path().join("seeds"));
        entries.map(|entries| entries.map(|entry| entry.expect("readable").path()).collect()).unwrap_or_default()
    }

    async fn checkpoints_are(&self, what: &str, wanted: impl Fn(&[PathBuf]) -> bool) {
        let looking = async {
            while !wanted(&self.checkpoints()) {
                tokio::task::yield_now().await;
            }
        };
        within(what, looking).await;
    }

    async fn nothing_is_left(&self) {
        self.checkpoints_are("the checkpoint to go", <[PathBuf]>::is_empty).await;
        until("nothing to be needed any more", &mut self.seeder.needed_from(), Option::is_none).await;
    }
}

fn history() -> TimelineHistory {
    let mut history = TimelineHistory::new();
    let switch_lsn = SIZE.log_start();
    let first = TimelineSwitch { timeline: TimelineId::FIRST, parent: TimelineId::NONE, switch_lsn };
    history.push(first).expect("a first timeline");
    history
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_is_not_read_on_for_a_node_that_is_gone() {
    let giant = Giant::start().await;
    let (seeding, cancel) = giant.begun().await;
    cancel.cancel();
    assert!(matches!(within("the attempt to end", seeding).await.unwrap(), Err(SeedError::Cancelled)));
    giant.nothing_is_left().await;
    giant.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_connects_again_has_one_checkpoint_read_and_not_two() {
    let giant = Giant::start().await;
    let (older, _) = giant.begun().await;
    let (newer, cancel) = giant.begun().await;
    let error = within("the older attempt to end", older).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("has connected again"), "{error}");
    giant.checkpoints_are("the older checkpoint to go", |now| now.len() == 1).await;
    cancel.cancel();
    assert!(within("the newer attempt to end", newer).await.unwrap().is_err());
    giant.nothing_is_left().await;
    giant.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_is_not_read_on_when_the_node_stops() {
    let giant = Giant::start().await;
    let (seeding, _) = giant.begun().await;
    let Giant { dir, server, .. } = giant;
    server.stop().await;
    assert!(within("the attempt to end", seeding).await.unwrap().is_err());
    let looking = async {
        while std::fs::read_dir(dir.path().join("seeds")).is_ok_and(|mut entries| entries.next().is_some()) {
            tokio::task::yield_now().await;
        }
    };
    within("the checkpoint to go", looking).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_lets_go_of_an_engine_that_is_given_up_and_says_so() {
    let giant = Giant::start().await;
    let (seeding, _) = giant.begun().await;
    giant.hooks.set_seed_source(None);
    giant.hooks.forget_source();
    let stopping = giant.engine.clone();
    tokio::task::spawn_blocking(move || stopping.stop()).await.expect("no panic").expect("stopped");
    let error = within("the attempt to end", seeding).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("ask another node, or this one again later"), "{error}");
    giant.nothing_is_left().await;
    let Giant { engine, store, server, .. } = giant;
    drop(engine);
    let gone = async {
        while store.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    };
    within("the store to be let go of", gone).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_takes_the_place_of_a_walsender() {
    // STR-2.
    let giant = Giant::start_with(SenderSettings { senders_max: 1, ..SenderSettings::default() }).await;
    let (seeding, cancel) = giant.begun().await;
    let standby = TestNode::new(3);
    let mut follows = Following::start(&standby, standby.id, &giant.server.address(), &history());
    follows.problem("all 1 walsenders (max_wal_senders)").await;
    let refused = within("a refusal", giant.seed(3).0).await.unwrap().unwrap_err().to_string();
    assert!(refused.contains("all 1 walsenders (max_wal_senders)"), "{refused}");
    assert!(refused.contains("ask another node"), "{refused}");
    assert_eq!(giant.checkpoints().len(), 1, "a refusal costs no checkpoint");
    // The same node again keeps the place that it has.
    let (again, cancel_again) = giant.begun().await;
    assert!(within("the older attempt to end", seeding).await.unwrap().is_err());
    drop(cancel);
    cancel_again.cancel();
    assert!(within("the attempt to end", again).await.unwrap().is_err());
    follows.streaming().await;
    // And the other way round.
    let refused = within("a refusal", giant.seed(2).0).await.unwrap().unwrap_err().to_string();
    assert!(refused.contains("all 1 walsenders (max_wal_senders)"), "{refused}");
    follows.stop().await;
    giant.server.stop().await;
}

async fn assert_silence_is_refused(timeout_ms: u64) {
    let giant = Giant::start_with(SenderSettings { timeout_ms, ..SenderSettings::default() }).await;
    let mut client =
        ReplicationClient::connect(format!("http://{}", giant.server.address())).await.expect("a connection");
    let (silent, messages) = tokio::sync::mpsc::channel(1);
    let asked = client.stream(tokio_stream::wrappers::ReceiverStream::new(messages));
    let status = within("the stream to be refused", asked).await.expect_err("no stream");
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{status}");
    assert!(status.message().contains("no Start came within 10000 ms"), "{}", status.message());
    drop(silent);
    giant.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_says_nothing_at_first_is_not_waited_for_as_long_as_a_standby() {
    // Never, a day and a moment, at once: each takes its time.
    tokio::join!(assert_silence_is_refused(0), assert_silence_is_refused(86_400_000), assert_silence_is_refused(100));
}
