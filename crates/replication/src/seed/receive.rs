//! One attempt to be seeded, from the connection to data that may take the place of the old.
//!
//! Everything that an attempt brings is kept: the next one, perhaps from another source, finds it by its digest. When
//! it has everything it lays the store and the log out in `seed/new` and returns; whether and when they take the place of
//! the old ones ([`super::swap`]) is decided by the caller.
//!
//! Memory is bounded: [`WANTS_MAX`] things are asked for at a time, [`CHUNKS_MAX`] chunks wait for the disk.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use understudy_rpc::v1;
use understudy_rpc::v1::{from_seeded, from_seeder};
use understudy_types::{Lsn, NodeId, Position, SystemId, TimelineHistory, TimelineId};
use understudy_wal::files::RealFiles;
use understudy_wal::{WalConfig, seeded};

use super::error::SeedError;
use super::manifest::{Listing, Manifest, history_from_wire};
use super::objects::{Objects, Plan, sync_dir};
use super::swap::SEED_DIR;
use super::writer::{Writer, Written};
use crate::link::describe;
use crate::message::WalFormat;
use crate::transport;

/// What is asked for at a time.
const WANTS_MAX: usize = 4;
/// Chunks that wait for the disk.
const CHUNKS_MAX: usize = 8;
/// Left free on the disk, for what RocksDB and the log write next, in bytes.
const RESERVE_BYTES: u64 = 32 << 20;
/// Between two lines about progress in the log.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// From whom, as whom.
#[derive(Debug, Clone)]
pub struct SeedConfig {
    /// `host:port` of the source.
    pub source_address: String,
    /// This node's cluster.
    pub system_id: SystemId,
    /// Of its WAL.
    pub format: WalFormat,
    /// This node.
    pub node: NodeId,
    /// The cluster's timelines as this node knows them.
    pub history: TimelineHistory,
    /// Where `store`, `wal` and `seed` lie.
    pub data_dir: PathBuf,
    /// Other stores of this node that may have files in common with the source's.
    pub own_stores: Vec<PathBuf>,
    /// How long a source may be silent while something is expected of it, in milliseconds.
    pub timeout_ms: u64,
}

/// How far an attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SeedingStatus {
    /// Up to where the new data goes; none before the source has said so. The WAL from here on is needed.
    pub at: Option<Position>,
    /// Of all distinct files, in bytes; zero before it is known.
    pub bytes_total: u64,
    /// Of these, what was here when the attempt began.
    pub bytes_reused: u64,
    /// What has come since.
    pub bytes_received: u64,
}

impl SeedingStatus {
    /// What is here.
    pub fn bytes_done(&self) -> u64 {
        (self.bytes_reused + self.bytes_received).min(self.bytes_total)
    }
}

/// The new data is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seeded {
    /// Up to where.
    pub at: Position,
    /// What it took.
    pub status: SeedingStatus,
}

/// Fetches a seed into `seed/` of the data directory and lays it out there.
///
/// # Errors
/// See [`SeedError`]; the old data is as it was.
pub async fn seed(
    config: SeedConfig,
    status: watch::Sender<SeedingStatus>,
    cancel: CancellationToken,
) -> Result<Seeded, SeedError> {
    let began = Instant::now();
    let seed_dir = config.data_dir.join(SEED_DIR);
    let resume = resume_lsn(&seed_dir, &config.source_address);
    let mut attempt = Attempt::open(config, resume, cancel, status).await?;
    let manifest = Arc::new(attempt.manifest().await?);
    remember_resume(&seed_dir, &attempt.config.source_address, manifest.at.lsn)?;
    let objects = {
        let (dir, listed) = (seed_dir.clone(), Arc::clone(&manifest));
        let (own, cancel) = (own_stores(&attempt.config), attempt.cancel.clone());
        let planned = blocking(move || {
            let objects = Objects::open(&dir)?;
            let plan = objects.plan(&listed, &own, &cancel)?;
            Ok((objects, plan))
        });
        let (objects, plan) = planned.await?;
        attempt.begin(&manifest, &plan)?;
        attempt.receive(&manifest, plan, objects.clone()).await?;
        objects
    };
    let (config, at) = (attempt.config.clone(), manifest.at);
    blocking(move || lay_out(&config, &manifest, &objects)).await?;
    let status = *attempt.status.borrow();
    let elapsed_ms = began.elapsed().as_millis();
    attempt.finish().await;
    let SeedingStatus { bytes_total, bytes_reused, bytes_received, .. } = status;
    tracing::info!(%at, bytes_total, bytes_reused, bytes_received, elapsed_ms,
        mib_per_s = rate(bytes_received, began.elapsed()), "the seed is complete");
    Ok(Seeded { at, status })
}

fn own_stores(config: &SeedConfig) -> Vec<PathBuf> {
    std::iter::once(config.data_dir.join("store")).chain(config.own_stores.iter().cloned()).collect()
}

/// At which checkpoint of this source an earlier attempt was broken off; invalid for none.
fn resume_lsn(seed_dir: &Path, source: &str) -> Lsn {
    let text = fs::read_to_string(seed_dir.join("source")).unwrap_or_default();
    match text.trim_end().split_once(' ') {
        Some((lsn, of)) if of == source => lsn.parse().unwrap_or(Lsn::INVALID),
        Some(_) | None => Lsn::INVALID,
    }
}

fn remember_resume(seed_dir: &Path, source: &str, lsn: Lsn) -> Result<(), SeedError> {
    fs::create_dir_all(seed_dir).map_err(SeedError::io("make", seed_dir))?;
    // A hint and no more: it need not survive a crash.
    let path = seed_dir.join("source");
    fs::write(&path, format!("{lsn} {source}\n")).map_err(SeedError::io("write", &path))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SeedError> + Send + 'static,
) -> Result<T, SeedError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(SeedError::Broken { address: "this node".to_owned(), reason: error.to_string() }),
    }
}

fn rate(bytes: u64, elapsed: Duration) -> u64 {
    let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    (bytes.saturating_mul(1000) / ms) >> 20
}

/// Store and log from what is here, in `seed/new`. Blocks on IO.
fn lay_out(config: &SeedConfig, manifest: &Manifest, objects: &Objects) -> Result<(), SeedError> {
    let seed_dir = config.data_dir.join(SEED_DIR);
    let new = seed_dir.join("new");
    if new.exists() {
        fs::remove_dir_all(&new).map_err(SeedError::io("remove", &new))?;
    }
    objects.assemble(manifest, &new.join("store"))?;
    let segment = segment_path(&seed_dir);
    let wal = WalConfig::new(new.join("wal"), config.system_id, config.format.segment_size);
    let mut file: Option<File> = None;
    seeded::prepare(Arc::new(RealFiles), &wal, &manifest.history, manifest.at, |offset, buffer| {
        if file.is_none() {
            file = Some(File::open(&segment)?);
        }
        file.as_ref().map_or(Ok(()), |file| file.read_exact_at(buffer, offset))
    })?;
    sync_dir(&new)?;
    sync_dir(&seed_dir)?;
    sync_dir(&config.data_dir)
}

fn segment_path(seed_dir: &Path) -> PathBuf {
    seed_dir.join("segment")
}

/// A stream under way.
struct Attempt {
    config: SeedConfig,
    cancel: CancellationToken,
    status: watch::Sender<SeedingStatus>,
    outbound: mpsc::Sender<v1::FromSeeded>,
    inbound: Streaming<v1::FromSeeder>,
}

/// The writing thread.
struct Disk {
    chunks: mpsc::Sender<v1::SeedChunk>,
    written: mpsc::Receiver<Written>,
    task: JoinHandle<Result<(), SeedError>>,
}

impl Disk {
    fn start(mut writer: Writer) -> Self {
        let (chunks, mut coming) = mpsc::channel::<v1::SeedChunk>(CHUNKS_MAX);
        // Each thing that was asked for ends once: there is always room.
        let (ended, written) = mpsc::channel(WANTS_MAX + 1);
        let task = tokio::task::spawn_blocking(move || {
            while let Some(chunk) = coming.blocking_recv() {
                let Some(end) = writer.write(&chunk)? else { continue };
                if ended.blocking_send(end).is_err() {
                    tracing::trace!("the attempt has ended; what has come is written all the same");
                }
            }
            Ok(())
        });
        Self { chunks, written, task }
    }

    /// Nothing is written any more when this returns.
    async fn end(self) -> Result<(), SeedError> {
        drop((self.chunks, self.written));
        match self.task.await {
            Ok(outcome) => outcome,
            Err(error) => Err(SeedError::Broken { address: "this node".to_owned(), reason: error.to_string() }),
        }
    }
}

impl Attempt {
    async fn open(
        config: SeedConfig,
        resume: Lsn,
        cancel: CancellationToken,
        status: watch::Sender<SeedingStatus>,
    ) -> Result<Self, SeedError> {
        let within = Duration::from_millis(config.timeout_ms);
        let opening = Self::connect(&config, resume);
        let opened = tokio::select! {
            () = cancel.cancelled() => return Err(SeedError::Cancelled),
            opened = tokio::time::timeout(within, opening) => opened,
        };
        let address = config.source_address.clone();
        match opened {
            Ok(Ok((outbound, inbound))) => Ok(Self { config, cancel, status, outbound, inbound }),
            Ok(Err(reason)) => Err(SeedError::Refused { address, reason }),
            Err(_) => Err(SeedError::Silent { address, silent_ms: config.timeout_ms }),
        }
    }

    async fn connect(
        config: &SeedConfig,
        resume: Lsn,
    ) -> Result<(mpsc::Sender<v1::FromSeeded>, Streaming<v1::FromSeeder>), String> {
        let endpoint = transport::endpoint(&config.source_address, config.timeout_ms, config.timeout_ms);
        let endpoint = endpoint.map_err(|error| format!("not an address: {error}"))?;
        let channel = endpoint.connect().await.map_err(|error| format!("no connection: {error}"))?;
        let (outbound, messages) = mpsc::channel(WANTS_MAX + 2);
        let start = from_seeded::Message::Start(v1::SeedStart {
            system_id: config.system_id.get(),
            wal_format_version: config.format.version,
            segment_size: config.format.segment_size.get(),
            node_id: config.node.get(),
            resume_lsn: resume.get(),
        });
        outbound.send(v1::FromSeeded { message: Some(start) }).await.map_err(|error| error.to_string())?;
        let answer = transport::client(channel).seed(ReceiverStream::new(messages)).await;
        Ok((outbound, answer.map_err(|status| describe(&status))?.into_inner()))
    }

    fn address(&self) -> String {
        self.config.source_address.clone()
    }

    fn malformed(&self, what: impl Into<String>) -> SeedError {
        SeedError::Malformed { address: self.address(), what: what.into() }
    }

    /// The next message that says something.
    async fn next(&mut self) -> Result<from_seeder::Message, SeedError> {
        loop {
            let timeout = Duration::from_millis(self.config.timeout_ms);
            let message = tokio::select! {
                () = self.cancel.cancelled() => return Err(SeedError::Cancelled),
                message = tokio::time::timeout(timeout, self.inbound.message()) => message,
            };
            let broken = |reason: String| SeedError::Broken { address: self.config.source_address.clone(), reason };
            let message = match message {
                Err(_) => return Err(SeedError::Silent { address: self.address(), silent_ms: self.config.timeout_ms }),
                Ok(Err(status)) => return Err(broken(describe(&status))),
                Ok(Ok(None)) => return Err(broken("the source ended the stream".to_owned())),
                Ok(Ok(Some(message))) => message.message,
            };
            match message {
                Some(from_seeder::Message::Preparing(_)) => {}
                Some(message) => return Ok(message),
                None => return Err(self.malformed("a message of a kind that this release does not know")),
            }
        }
    }

    /// What the source has, with everything checked that can be before the first byte of a file.
    async fn manifest(&mut self) -> Result<Manifest, SeedError> {
        let begun = match self.next().await? {
            from_seeder::Message::Begun(begun) => begun,
            from_seeder::Message::Preparing(_) | from_seeder::Message::Files(_) | from_seeder::Message::Chunk(_) => {
                return Err(self.malformed("something else before SeedBegun"));
            }
        };
        let (at, history) = self.check(&begun)?;
        self.status.send_modify(|status| status.at = Some(at));
        let mut listing =
            Listing::announced(begun.file_count, begun.bytes_total).map_err(|what| self.malformed(what))?;
        loop {
            let piece = match self.next().await? {
                from_seeder::Message::Files(piece) => piece,
                from_seeder::Message::Preparing(_)
                | from_seeder::Message::Begun(_)
                | from_seeder::Message::Chunk(_) => {
                    return Err(self.malformed("something else in the middle of its list"));
                }
            };
            let last = piece.last;
            listing.add(piece.files).map_err(|what| self.malformed(what))?;
            if last {
                let files = listing.finish().map_err(|what| self.malformed(what))?;
                return Ok(Manifest { at, history, files });
            }
        }
    }

    fn check(&self, begun: &v1::SeedBegun) -> Result<(Position, TimelineHistory), SeedError> {
        let (address, own) = (self.address(), &self.config);
        let source_system = SystemId::new(begun.system_id);
        if source_system != own.system_id {
            return Err(SeedError::SystemId { address, source_system, own: own.system_id });
        }
        let formats = [
            ("WAL format version", u64::from(begun.wal_format_version), u64::from(own.format.version)),
            ("a segment size of", begun.segment_size, own.format.segment_size.get()),
        ];
        if let Some((what, source_value, own)) = formats.into_iter().find(|(_, theirs, ours)| theirs != ours) {
            return Err(SeedError::Format { address, what, source_value, own });
        }
        let at = Position::new(TimelineId::new(begun.timeline), Lsn::new(begun.lsn));
        let history = history_from_wire(&begun.history).map_err(|what| self.malformed(what))?;
        let known = own.history.up_to(at.timeline);
        let lies_on = own.history.position(at) == at.lsn && known == history && history.latest() == at.timeline;
        if !lies_on {
            return Err(SeedError::OffHistory { address, at });
        }
        Ok((at, history))
    }

    /// Says what will come, if there is room for it.
    fn begin(&mut self, manifest: &Manifest, plan: &Plan) -> Result<(), SeedError> {
        let path = &self.config.data_dir;
        let stat = rustix::fs::statvfs(path).map_err(|error| SeedError::io("look at", path)(error.into()))?;
        let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
        let needed_bytes = plan.bytes_missing() + self.config.format.segment_size.get() + RESERVE_BYTES;
        if needed_bytes > free_bytes {
            return Err(SeedError::Space { path: path.clone(), needed_bytes, free_bytes });
        }
        self.status.send_modify(|status| {
            (status.bytes_total, status.bytes_reused) = (plan.bytes_total, plan.bytes_reused);
        });
        tracing::info!(source = %self.config.source_address, at = %manifest.at, files = manifest.files.len(),
            missing = plan.missing.len(), bytes_total = plan.bytes_total, bytes_reused = plan.bytes_reused, "being seeded");
        Ok(())
    }

    /// Gets everything that is missing, and the WAL that begins the segment of the position.
    async fn receive(&mut self, manifest: &Manifest, plan: Plan, objects: Objects) -> Result<(), SeedError> {
        let segment_index = u32::try_from(manifest.files.len()).unwrap_or(u32::MAX);
        let segment_bytes = self.config.format.segment_size.offset_of(manifest.at.lsn);
        let segment = segment_path(&self.config.data_dir.join(SEED_DIR));
        let (address, of_segment) = (self.address(), (segment_index, segment_bytes));
        let mut queue: VecDeque<v1::SeedWant> =
            plan.missing.iter().map(|file| v1::SeedWant { index: file.index, offset: file.offset }).collect();
        // First, while it is sure to be there. A position at a segment's begin needs none of it.
        if segment_bytes > 0 {
            queue.push_front(v1::SeedWant { index: segment_index, offset: 0 });
        }
        let mut disk = Disk::start(Writer::new(address, objects, &plan.missing, of_segment, segment));
        let outcome = self.transfer(manifest, &mut queue, &mut disk).await;
        // A failure of the disk is the reason why the transfer ended, when there is one.
        disk.end().await?;
        outcome
    }

    async fn transfer(
        &mut self,
        manifest: &Manifest,
        queue: &mut VecDeque<v1::SeedWant>,
        disk: &mut Disk,
    ) -> Result<(), SeedError> {
        let (mut outstanding, mut repeated) = (0, BTreeSet::new());
        let (mut reported_at, mut reported_bytes) = (Instant::now(), 0);
        loop {
            while outstanding < WANTS_MAX
                && let Some(want) = queue.pop_front()
            {
                self.say(from_seeded::Message::Want(want)).await?;
                outstanding += 1;
            }
            if outstanding == 0 {
                return Ok(());
            }
            let cancel = self.cancel.clone();
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(SeedError::Cancelled),
                written = disk.written.recv() => match written {
                    Some(Written::Whole(_)) => outstanding -= 1,
                    Some(Written::Mismatch(index)) => {
                        outstanding -= 1;
                        let (name, size) = name_of(manifest, index);
                        if !repeated.insert(index) {
                            return Err(SeedError::Digest { address: self.address(), name });
                        }
                        tracing::warn!(file = %name, "a file of the seed has another SHA-256 than in the list; asking for it once more");
                        self.status.send_modify(|status| status.bytes_received = status.bytes_received.saturating_sub(size));
                        queue.push_front(v1::SeedWant { index, offset: 0 });
                    }
                    // Its reason comes with its end.
                    None => return Err(self.malformed("what cannot be written")),
                },
                message = self.next() => {
                    let from_seeder::Message::Chunk(chunk) = message? else {
                        return Err(self.malformed("something else than what it was asked for"));
                    };
                    let count = chunk.bytes.len() as u64;
                    let is_file = name_of(manifest, chunk.index).1 > 0;
                    tokio::select! {
                        () = cancel.cancelled() => return Err(SeedError::Cancelled),
                        sent = disk.chunks.send(chunk) => if sent.is_err() {
                            return Err(self.malformed("what cannot be written"));
                        },
                    }
                    if is_file {
                        self.status.send_modify(|status| status.bytes_received += count);
                    }
                }
            }
            if reported_at.elapsed() >= REPORT_INTERVAL {
                let status = *self.status.borrow();
                let mib_per_s = rate(status.bytes_received.saturating_sub(reported_bytes), reported_at.elapsed());
                tracing::info!(source = %self.config.source_address, bytes_done = status.bytes_done(),
                    bytes_total = status.bytes_total, bytes_reused = status.bytes_reused, mib_per_s, "being seeded");
                (reported_at, reported_bytes) = (Instant::now(), status.bytes_received);
            }
        }
    }

    async fn say(&mut self, message: from_seeded::Message) -> Result<(), SeedError> {
        let sending = self.outbound.send(v1::FromSeeded { message: Some(message) });
        tokio::select! {
            () = self.cancel.cancelled() => Err(SeedError::Cancelled),
            // A closed stream shows in its inbound half.
            _ = sending => Ok(()),
        }
    }

    /// The source may let go. That it is told so matters little: it would do so after a while.
    async fn finish(mut self) {
        let told = async {
            self.say(from_seeded::Message::Finished(v1::SeedFinished {})).await?;
            self.inbound.message().await.map_err(|_| SeedError::Cancelled)
        };
        if tokio::time::timeout(Duration::from_secs(1), told).await.is_err() {
            tracing::debug!("the source did not notice that the seed is complete");
        }
    }
}

/// Of a file of the list; nothing for the segment.
fn name_of(manifest: &Manifest, index: u32) -> (String, u64) {
    let file = usize::try_from(index).ok().and_then(|index| manifest.files.get(index));
    file.map_or_else(|| ("the first segment".to_owned(), 0), |file| (file.name.clone(), file.size))
}
