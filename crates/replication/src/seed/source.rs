//! The source of a seed: makes checkpoints and sends them.
//!
//! A checkpoint lies in `seeds/` of the data directory and consists of hard links: it costs space only for what the store
//! drops meanwhile. It outlives its stream by a grace time, so that a node whose connection broke goes on where it was; a
//! start of the process removes them all.
//!
//! A stream ends at once, and what is made for it is left off, when its node is gone or has connected again, when this node stops, and
//! when the engine is given up ([`Engine::given_up`]): nothing of a seed keeps a store from being replaced.
//!
//! Bounds: [`SeederSettings::seeds_max`] streams at a time, each of which takes one of the `max_wal_senders` places as well; one checkpoint per node that is seeded; a few chunks per stream in memory. A node
//! that comes again replaces its own older stream.
//!
//! INV-RETAIN: [`Seeder::needed_from`] names the WAL that must stay for as long as a checkpoint is held, and it does so
//! before the checkpoint is made.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Status, Streaming};
use understudy_engine::Engine;
use understudy_rpc::v1;
use understudy_rpc::v1::{from_seeded, from_seeder};
use understudy_types::{Lsn, NodeId, Position};
use understudy_wal::segment::{FORMAT_VERSION, segment_file_name_at};

use super::CHUNK_BYTES;
use super::digest::{DigestCache, Touched};
use super::manifest::{FILES_PER_MESSAGE_MAX, FileEntry, Manifest, history_to_wire, is_plain};
use crate::places::{Place, Places};

/// Messages that wait for the connection, per stream.
pub(crate) const OUTBOUND_MESSAGES_MAX: usize = 2;
/// How often a node that waits for the list of files hears something.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// How long a message may wait for a node that does not read. Its disk may be slow.
const SEND_TIMEOUT: Duration = Duration::from_secs(120);

/// What may be seeded from.
#[derive(Debug, Clone)]
pub struct SeedSource {
    /// The data.
    pub engine: Engine,
    /// Whose it is.
    pub node: NodeId,
    /// Where its log lies.
    pub wal_dir: PathBuf,
}

/// The bounds of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeederSettings {
    /// Nodes that are seeded from here at a time.
    pub seeds_max: usize,
    /// For how long a checkpoint is kept after its stream has broken.
    pub grace: Duration,
}

impl Default for SeederSettings {
    fn default() -> Self {
        Self { seeds_max: 2, grace: Duration::from_secs(60) }
    }
}

/// A checkpoint with its list of files; removed when it is dropped.
#[derive(Debug)]
struct Held {
    dir: PathBuf,
    manifest: Manifest,
    needed_from: Lsn,
}

impl Drop for Held {
    fn drop(&mut self) {
        remove(&self.dir);
    }
}

fn remove(dir: &Path) {
    if let Err(error) = std::fs::remove_dir_all(dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %dir.display(), %error, "a checkpoint for a seed cannot be removed; the next start tries again");
    }
}

/// What there is for one node.
#[derive(Debug)]
struct Entry {
    replaced: CancellationToken,
    over: CancellationToken,
    held: Option<Arc<Held>>,
    /// Before there is a checkpoint: where it will be at least.
    making_from: Option<Lsn>,
}

/// Everything that this node sends to nodes that are seeded.
#[derive(Debug)]
pub struct Seeder {
    dir: PathBuf,
    settings: SeederSettings,
    slots: Arc<Semaphore>,
    entries: Mutex<BTreeMap<NodeId, Entry>>,
    needed: watch::Sender<Option<Lsn>>,
    digests: DigestCache,
    made: AtomicU64,
}

/// What a stream holds while it runs.
struct Admission {
    replaced: CancellationToken,
    _slot: OwnedSemaphorePermit,
    _place: Place,
    _over: DropGuard,
}

type Outbound = mpsc::Sender<Result<v1::FromSeeder, Status>>;

impl Seeder {
    /// With its checkpoints in `seeds` below `data_dir`; those of an earlier process are removed. Blocks on IO.
    pub fn new(data_dir: &Path, settings: SeederSettings) -> Self {
        let dir = data_dir.join("seeds");
        remove(&dir);
        Self {
            dir,
            settings,
            slots: Arc::new(Semaphore::new(settings.seeds_max)),
            entries: Mutex::default(),
            needed: watch::Sender::new(None),
            digests: DigestCache::default(),
            made: AtomicU64::new(0),
        }
    }

    /// The WAL from here on must stay: a node that has a checkpoint from here will ask for it. None when nobody will.
    pub fn needed_from(&self) -> watch::Receiver<Option<Lsn>> {
        self.needed.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Entry>> {
        // Every change under the lock is one assignment: a panic leaves nothing half done.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish_needed(&self, entries: &BTreeMap<NodeId, Entry>) {
        let needed = |entry: &Entry| entry.held.as_ref().map(|held| held.needed_from).or(entry.making_from);
        let least = entries.values().filter_map(needed).min();
        self.needed.send_if_modified(|known| std::mem::replace(known, least) != least);
    }

    /// A stream for `node`, in place of the one that it may still have.
    async fn admit(&self, node: NodeId, places: &Places) -> Result<Admission, Status> {
        let (replaced, over) = (CancellationToken::new(), CancellationToken::new());
        let guard = over.clone().drop_guard();
        let older = {
            let mut entries = self.lock();
            let entry = entries.entry(node).or_insert_with(|| {
                let ended = CancellationToken::new();
                ended.cancel();
                Entry { replaced: ended.clone(), over: ended, held: None, making_from: None }
            });
            let older = (entry.replaced.clone(), entry.over.clone());
            (entry.replaced, entry.over) = (replaced.clone(), over);
            older
        };
        older.0.cancel();
        older.1.cancelled().await;
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "this node seeds {} others already, which is as many as it does at a time: try again later, or another node",
                self.settings.seeds_max
            ))
        })?;
        Ok(Admission { replaced, _slot: slot, _place: places.take()?, _over: guard })
    }

    /// One stream from the first to the last message.
    pub(crate) async fn run(
        self: Arc<Self>,
        source: SeedSource,
        start: v1::SeedStart,
        inbound: Streaming<v1::FromSeeded>,
        outbound: Outbound,
        places: Places,
        stop: CancellationToken,
    ) {
        let node = NodeId::new(start.node_id);
        let outcome = match self.admit(node, &places).await {
            Ok(admission) => {
                let mut given_up = source.engine.given_up();
                // The engine goes with what is dropped here.
                let outcome = tokio::select! {
                    outcome = self.stream(source, &start, inbound, &outbound) => outcome,
                    () = stop.cancelled() => Err(Status::unavailable("this node stops")),
                    () = admission.replaced.cancelled() => Err(Status::aborted("the node has connected again")),
                    _ = given_up.wait_for(|given_up| *given_up) => Err(Status::unavailable(
                        "this node stops, or replaces the data that it seeds from: ask another node, or this one again later",
                    )),
                };
                // What lies in a checkpoint of data that was given up need not be what this node has next.
                self.leave(node, matches!(outcome, Ok(true)) || *given_up.borrow());
                outcome
            }
            Err(status) => Err(status),
        };
        match outcome {
            Ok(finished) => tracing::info!(seeded = %node, finished, "a seed has ended"),
            Err(status) => {
                tracing::warn!(seeded = %node, reason = status.message(), "a seed has ended");
                if tokio::time::timeout(SIGN_OF_LIFE, outbound.send(Err(status))).await.is_err() {
                    tracing::debug!(seeded = %node, "the node did not read why its seed ended");
                }
            }
        }
    }

    /// The stream is over: its checkpoint goes now, if nobody will come back for it, or after the grace time.
    fn leave(self: &Arc<Self>, node: NodeId, at_once: bool) {
        if at_once {
            self.let_go(node, None);
            return;
        }
        let held = {
            let mut entries = self.lock();
            let Some(entry) = entries.get_mut(&node) else { return };
            entry.making_from = None;
            let held = entry.held.as_ref().map(Arc::downgrade);
            self.publish_needed(&entries);
            held
        };
        let (seeder, grace) = (Arc::downgrade(self), self.settings.grace);
        let Some(held) = held else { return };
        tokio::spawn(async move {
            tokio::time::sleep(grace).await;
            if let (Some(seeder), Some(held)) = (seeder.upgrade(), held.upgrade()) {
                seeder.let_go(node, Some(&held));
            }
        });
    }

    /// Removes what is held for `node`; with `held`, only if it is that one and nobody uses it.
    fn let_go(&self, node: NodeId, held: Option<&Arc<Held>>) {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(&node) else { return };
        let unused =
            |of: &Arc<Held>| entry.held.as_ref().is_some_and(|own| Arc::ptr_eq(own, of)) && entry.over.is_cancelled();
        if held.is_some_and(|held| !unused(held)) {
            return;
        }
        entry.making_from = None;
        let old = entry.held.take();
        if entry.over.is_cancelled() {
            entries.remove(&node);
        }
        self.publish_needed(&entries);
        drop(entries);
        discard(old);
    }

    /// True when the node has said that it has everything.
    async fn stream(
        self: &Arc<Self>,
        source: SeedSource,
        start: &v1::SeedStart,
        mut inbound: Streaming<v1::FromSeeded>,
        outbound: &Outbound,
    ) -> Result<bool, Status> {
        let node = NodeId::new(start.node_id);
        let source = &source;
        let held = self.checkpoint(source, node, Lsn::new(start.resume_lsn), outbound).await?;
        send(outbound, from_seeder::Message::Begun(begun(source, &held.manifest))).await?;
        for piece in held.manifest.files.chunks(FILES_PER_MESSAGE_MAX) {
            let files = piece.iter().map(file_to_wire).collect();
            send(outbound, from_seeder::Message::Files(v1::SeedFiles { files, last: false })).await?;
        }
        send(outbound, from_seeder::Message::Files(v1::SeedFiles { files: Vec::new(), last: true })).await?;
        tracing::info!(seeded = %node, at = %held.manifest.at, files = held.manifest.files.len(), bytes = held.manifest.bytes(), "seeding");
        loop {
            // A node that is gone shows as a clean end, or as a broken connection.
            let Ok(Some(message)) = inbound.message().await else { return Ok(false) };
            match message.message {
                Some(from_seeded::Message::Want(want)) => self.give(source, &held, want, outbound).await?,
                Some(from_seeded::Message::Finished(_)) => return Ok(true),
                Some(from_seeded::Message::Start(_)) | None => {
                    return Err(Status::invalid_argument("expected SeedWant or SeedFinished"));
                }
            }
        }
    }

    /// The one that `node` was broken off at, or a new one.
    async fn checkpoint(
        self: &Arc<Self>,
        source: &SeedSource,
        node: NodeId,
        resume: Lsn,
        outbound: &Outbound,
    ) -> Result<Arc<Held>, Status> {
        let old = self.lock().get(&node).and_then(|entry| entry.held.clone());
        if let Some(held) = old.filter(|held| held.manifest.at.lsn == resume && resume.is_valid()) {
            tracing::info!(seeded = %node, at = %held.manifest.at, "a seed is taken up again");
            return Ok(held);
        }
        // Nothing is applied below what is visible now, so a checkpoint lies at or above it.
        let visible = source.engine.visible().borrow().lsn;
        {
            let mut entries = self.lock();
            let Some(entry) = entries.get_mut(&node) else { return Err(Status::aborted("the seed was given up")) };
            let replaced = entry.held.take();
            entry.making_from = Some(segment_start_of(source, visible));
            self.publish_needed(&entries);
            drop(entries);
            discard(replaced);
        }
        let (seeder, source) = (Arc::clone(self), source.clone());
        // However this stream ends, nobody goes on to read gigabytes for it.
        let cancel = CancellationToken::new();
        let _given_up_with_the_stream = cancel.clone().drop_guard();
        let making = tokio::task::spawn_blocking(move || seeder.make(&source, node, &cancel));
        let held = signs_of_life(making, outbound).await?.map_err(|why| {
            tracing::error!(seeded = %node, why, "no checkpoint can be made for a seed");
            Status::unavailable(why)
        })?;
        let held = Arc::new(held);
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(&node) else { return Err(Status::aborted("the seed was given up")) };
        entry.held = Some(Arc::clone(&held));
        entry.making_from = None;
        self.publish_needed(&entries);
        Ok(held)
    }

    /// Makes a checkpoint and reads all of it, until `cancel` at most. Blocks on IO.
    fn make(&self, source: &SeedSource, node: NodeId, cancel: &CancellationToken) -> Result<Held, String> {
        let began = Instant::now();
        std::fs::create_dir_all(&self.dir).map_err(|error| format!("cannot make {}: {error}", self.dir.display()))?;
        let dir = self.dir.join(format!("{node}-{}", self.made.fetch_add(1, Ordering::Relaxed)));
        let at = source.engine.store().checkpoint(&dir).map_err(|error| with_causes(&error))?;
        // From here on it is removed with this.
        let mut held = Held {
            needed_from: segment_start_of(source, at.lsn),
            manifest: Manifest { at, history: source.engine.wal().history().up_to(at.timeline), files: Vec::new() },
            dir,
        };
        if at == Position::default() {
            return Err("this node has no data yet that another one could be seeded with".to_owned());
        }
        held.manifest.files =
            self.list(&held.dir, cancel).map_err(|error| format!("cannot read {}: {error}", held.dir.display()))?;
        tracing::info!(%at, files = held.manifest.files.len(), bytes = held.manifest.bytes(),
            elapsed_ms = began.elapsed().as_millis(), "made a checkpoint for a seed");
        Ok(held)
    }

    fn list(&self, dir: &Path, cancel: &CancellationToken) -> io::Result<Vec<FileEntry>> {
        let mut touched = Touched::default();
        let mut files = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !is_plain(&name) {
                return Err(io::Error::other(format!("{name:?} is not the name of a file of a store")));
            }
            let digest = self.digests.digest(&entry.path(), &mut touched, cancel)?;
            files.push(FileEntry { name, size: entry.metadata()?.len(), digest });
        }
        self.digests.retain(&touched);
        files.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(files)
    }

    async fn give(
        &self,
        source: &SeedSource,
        held: &Arc<Held>,
        want: v1::SeedWant,
        outbound: &Outbound,
    ) -> Result<(), Status> {
        let index = usize::try_from(want.index).unwrap_or(usize::MAX);
        let files = &held.manifest.files;
        let (path, size) = match files.get(index) {
            Some(file) => (held.dir.join(&file.name), file.size),
            None if index == files.len() => first_segment(source, &held.manifest),
            None => return Err(Status::invalid_argument(format!("there is no file {index}"))),
        };
        if want.offset >= size {
            return Err(Status::invalid_argument(format!(
                "file {index} has {size} bytes, {} was asked for",
                want.offset
            )));
        }
        let failed = |error: io::Error| Status::internal(format!("cannot read {}: {error}", path.display()));
        let opened = {
            let path = path.clone();
            tokio::task::spawn_blocking(move || File::open(path).map(Arc::new)).await
        };
        let file = opened.map_err(io::Error::other).flatten().map_err(failed)?;
        let mut offset = want.offset;
        while offset < size {
            let count = CHUNK_BYTES.min(usize::try_from(size - offset).unwrap_or(CHUNK_BYTES));
            let file = Arc::clone(&file);
            let read = tokio::task::spawn_blocking(move || {
                let mut bytes = vec![0; count];
                file.read_exact_at(&mut bytes, offset).map(|()| Bytes::from(bytes))
            });
            let bytes = read.await.map_err(io::Error::other).flatten().map_err(failed)?;
            send(outbound, from_seeder::Message::Chunk(v1::SeedChunk { index: want.index, offset, bytes })).await?;
            offset += count as u64;
        }
        Ok(())
    }
}

/// Where the segment file is that the position lies in, and how much of it the position needs.
fn first_segment(source: &SeedSource, manifest: &Manifest) -> (PathBuf, u64) {
    let (size, lsn) = (source.engine.wal().segment_size(), manifest.at.lsn);
    let name = segment_file_name_at(&source.engine.wal().history(), lsn, size);
    (source.wal_dir.join(name), size.offset_of(lsn))
}

fn segment_start_of(source: &SeedSource, lsn: Lsn) -> Lsn {
    let size = source.engine.wal().segment_size();
    size.start_of(size.segment_of(lsn)).max(size.log_start())
}

fn begun(source: &SeedSource, manifest: &Manifest) -> v1::SeedBegun {
    v1::SeedBegun {
        system_id: source.engine.wal().system_id().get(),
        node_id: source.node.get(),
        timeline: manifest.at.timeline.get(),
        lsn: manifest.at.lsn.get(),
        history: history_to_wire(&manifest.history),
        wal_format_version: FORMAT_VERSION,
        segment_size: source.engine.wal().segment_size().get(),
        file_count: u32::try_from(manifest.files.len()).unwrap_or(u32::MAX),
        bytes_total: manifest.bytes(),
    }
}

fn file_to_wire(file: &FileEntry) -> v1::SeedFile {
    v1::SeedFile { name: file.name.clone(), size: file.size, sha256: Bytes::copy_from_slice(&file.digest.0) }
}

async fn send(outbound: &Outbound, message: from_seeder::Message) -> Result<(), Status> {
    let sending = outbound.send(Ok(v1::FromSeeder { message: Some(message) }));
    match tokio::time::timeout(SEND_TIMEOUT, sending).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Status::cancelled("the node has gone")),
        Err(_) => Err(Status::deadline_exceeded(format!("the node read nothing for {} s", SEND_TIMEOUT.as_secs()))),
    }
}

async fn signs_of_life<T>(mut work: tokio::task::JoinHandle<T>, outbound: &Outbound) -> Result<T, Status> {
    loop {
        tokio::select! {
            done = &mut work => return done.map_err(|error| Status::internal(error.to_string())),
            () = outbound.closed() => return Err(Status::cancelled("the node has gone")),
            () = tokio::time::sleep(SIGN_OF_LIFE) => {
                send(outbound, from_seeder::Message::Preparing(v1::SeedPreparing {})).await?;
            }
        }
    }
}

/// The removal of files waits for the disk: not on a thread that serves others.
fn discard(held: Option<Arc<Held>>) {
    if held.is_some() {
        tokio::task::spawn_blocking(move || drop(held));
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
