//! The replication service: takes standbys on, one walsender task per stream.
//!
//! Part of the node's one gRPC port. `Stream` reads the standby's `Start`, asks the hooks what this node serves, has
//! [`WalSender::start`] guard the handshake, and leaves the rest to a task (`session.rs`).
//!
//! Bounds: `senders_max` streams and seeds at a time (`max_wal_senders`, see `places.rs`); a standby that connects again replaces its
//! own older stream, which may be one whose end nobody has noticed yet. Before a peer has said who it is, it has
//! [`START_TIMEOUT`], whatever the settings say.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming};
use understudy_rpc::error::RpcError;
use understudy_rpc::v1;
use understudy_rpc::v1::replication_server::ReplicationServer;
use understudy_types::{Lsn, NodeId, SystemId, TimelineHistory};
use understudy_wal::Decoder;
use understudy_wal::segment::FORMAT_VERSION;

use crate::error::Refusal;
use crate::hooks::{Source, StandbyInfo, UpstreamHooks};
use crate::message::{FromStandby, Start};
use crate::places::{Place, Places};
use crate::seed::{self, SeedSource, Seeder};
use crate::sender::{Upstream, WalSender};
use crate::session::{Registration, Session};
use crate::transport::MESSAGE_BYTES_MAX;

/// Messages that wait for the connection, per stream: with HTTP/2's own buffers all that a slow standby costs.
const OUTBOUND_MESSAGES_MAX: usize = 4;
/// How long a peer may be silent before it has said who it is. Not `wal_sender_timeout`, which may be a day, or never: whoever has
/// said nothing has not been looked at.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// The walsenders' settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenderSettings {
    /// `wal_sender_timeout`, in milliseconds: a standby from which nothing came for so long is dropped. Zero for never.
    pub timeout_ms: u64,
    /// `max_wal_senders`.
    pub senders_max: usize,
}

impl Default for SenderSettings {
    fn default() -> Self {
        Self { timeout_ms: 10_000, senders_max: 10 }
    }
}

/// `understudy.v1.Replication`.
#[derive(Debug)]
pub struct ReplicationService<H> {
    hooks: Arc<H>,
    /// Read for every stream that begins: a change lets the ones that there are go on.
    settings: watch::Receiver<SenderSettings>,
    places: Places,
    /// The stream that each standby has now.
    streams: Mutex<BTreeMap<NodeId, StreamHandle>>,
    /// None where nobody is seeded from.
    seeder: Option<Arc<Seeder>>,
    stop: CancellationToken,
}

/// How to end a stream from outside, and to know that it has ended.
#[derive(Debug, Clone)]
struct StreamHandle {
    replaced: CancellationToken,
    over: CancellationToken,
}

/// What a stream's task holds for as long as it runs.
#[derive(Debug)]
pub(crate) struct Admission {
    /// Cancelled when the same standby has connected again.
    pub(crate) replaced: CancellationToken,
    _place: Place,
    _over: DropGuard,
}

impl<H: UpstreamHooks> ReplicationService<H> {
    /// A service that ends all its streams on `stop`.
    pub fn new(hooks: Arc<H>, stop: CancellationToken) -> Self {
        Self::with_settings(hooks, stop, SenderSettings::default())
    }

    /// The same with other than the default settings.
    pub fn with_settings(hooks: Arc<H>, stop: CancellationToken, settings: SenderSettings) -> Self {
        Self::under(hooks, stop, watch::channel(settings).1)
    }

    /// The same with settings that may change; each stream has those of its beginning.
    pub fn under(hooks: Arc<H>, stop: CancellationToken, settings: watch::Receiver<SenderSettings>) -> Self {
        let places = Places::new(settings.clone());
        Self { hooks, settings, places, streams: Mutex::default(), seeder: None, stop }
    }

    /// The same, and other nodes may be seeded from this one.
    pub fn seeding(self, seeder: Arc<Seeder>) -> Self {
        Self { seeder: Some(seeder), ..self }
    }

    fn settings(&self) -> SenderSettings {
        *self.settings.borrow()
    }

    /// For the node's port, with the limits that the log needs.
    pub fn into_server(self) -> ReplicationServer<Self> {
        ReplicationServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// None when the peer ended the stream instead.
    async fn first_message<T>(&self, inbound: &mut Streaming<T>, name: &str) -> Result<Option<T>, Status> {
        let first = tokio::select! {
            first = tokio::time::timeout(START_TIMEOUT, inbound.message()) => first,
            () = self.stop.cancelled() => return Err(Status::unavailable("this node stops")),
        };
        let late = |_| Status::deadline_exceeded(format!("no {name} came within {} ms", START_TIMEOUT.as_millis()));
        first.map_err(late)?
    }

    async fn read_start(&self, inbound: &mut Streaming<v1::FromStandby>) -> Result<Start, Status> {
        let Some(first) = self.first_message(inbound, "Start").await? else {
            return Err(Status::invalid_argument("the standby ended the stream before it sent Start"));
        };
        match FromStandby::try_from(first) {
            Ok(FromStandby::Start(start)) => Ok(start),
            Ok(FromStandby::Ack(_)) => Err(Status::invalid_argument("the standby sent Ack before Start")),
            Err(error) => Err(Status::invalid_argument(error.to_string())),
        }
    }

    /// A walsender for `node`: in place of the one that it has, else out of the bounded number.
    async fn admit(&self, node: NodeId) -> Result<Admission, Status> {
        let (replaced, over) = (CancellationToken::new(), CancellationToken::new());
        let handle = StreamHandle { replaced: replaced.clone(), over: over.clone() };
        let over = over.drop_guard();
        let older = self.lock_streams().insert(node, handle);
        if let Some(older) = older {
            older.replaced.cancel();
            older.over.cancelled().await;
        }
        Ok(Admission { replaced, _place: self.places.take()?, _over: over })
    }

    fn lock_streams(&self) -> MutexGuard<'_, BTreeMap<NodeId, StreamHandle>> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.retain(|_, handle| !handle.over.is_cancelled());
        streams
    }

    fn now_serving(&self, start: &Start) -> Result<(Source, TimelineHistory, CancellationToken), Status> {
        let source = self.hooks.source().ok_or_else(|| Status::unavailable("this node has no wal (yet)"))?;
        if start.fetch.is_some() {
            return Ok((source, self.hooks.history(), CancellationToken::new()));
        }
        let serving = self
            .hooks
            .serving()
            .ok_or_else(|| Status::unavailable("this node is not an open primary: follow the present primary"))?;
        Ok((source, serving.history, serving.ended))
    }
}

#[tonic::async_trait]
impl<H: UpstreamHooks> v1::replication_server::Replication for ReplicationService<H> {
    type StreamStream = ReceiverStream<Result<v1::FromUpstream, Status>>;
    type SeedStream = ReceiverStream<Result<v1::FromSeeder, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::FromStandby>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let address = request.remote_addr();
        let mut inbound = request.into_inner();
        let start = self.read_start(&mut inbound).await?;
        if !self.hooks.is_member(start.node) {
            return Err(Status::failed_precondition(format!(
                "node {} is not a member that this node streams to: add it to the cluster first",
                start.node
            )));
        }
        let (source, history, ended) = self.now_serving(&start)?;
        let served = history.latest();

        let (mut appended, mut safe) = (source.wal.appended(), source.safe.clone());
        // Copied out: a borrow in the literal would be held over the other one, and over what looks at the log.
        let appended_now = *appended.borrow_and_update();
        let safe_now = *safe.borrow_and_update();
        let upstream = Upstream {
            system_id: source.system_id,
            format: source.format,
            node: source.node,
            first: source.wal.first(),
            end: end_on(&source, &history, &start, appended_now),
            safe: safe_now,
            sealed: self.hooks.sealed_for(),
            history,
        };
        let sender = WalSender::start(&upstream, &start, self.settings().timeout_ms, 0).map_err(|refusal| {
            tracing::warn!(standby = %start.node, ?address, %refusal, "a standby was refused");
            status_of(&refusal)
        })?;
        let admission = self.admit(start.node).await?;
        // What is acknowledged counts on the timeline that is served. A standby that is still on an ancestor gets the
        // rest of that one, and counts once it has come back on this one.
        let registration = match start.fetch {
            None if start.timeline == served => Some(self.register(&start, address)?),
            None | Some(_) => None,
        };
        let (outbound, messages) = mpsc::channel(OUTBOUND_MESSAGES_MAX);
        let session = Session {
            sender,
            standby: start.node,
            reader: Some(source.wal.reader(start.start_lsn)),
            first_record: Some(Decoder::new(source.system_id, source.format.segment_size, &source.wal.history())),
            registration,
            fetches: start.fetch.is_some(),
            hooks: Arc::clone(&self.hooks),
            wal: source.wal.clone(),
            appended,
            safe,
            admission,
            ended,
            stop: self.stop.clone(),
        };
        tokio::spawn(session.run(inbound, outbound));
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn seed(&self, request: Request<Streaming<v1::FromSeeded>>) -> Result<Response<Self::SeedStream>, Status> {
        let mut inbound = request.into_inner();
        let start = self.read_seed_start(&mut inbound).await?;
        let node = NodeId::new(start.node_id);
        if !self.hooks.is_member(node) {
            return Err(Status::failed_precondition(format!(
                "node {node} is not a member that this node seeds: add it to the cluster first"
            )));
        }
        let (Some(seeder), Some(source)) = (self.seeder.clone(), self.hooks.seed_source()) else {
            return Err(Status::unavailable("this node has no data (yet) that another one could be seeded with"));
        };
        check_seeded(&source, &start)?;
        let (outbound, messages) = mpsc::channel(seed::source::OUTBOUND_MESSAGES_MAX);
        tokio::spawn(seeder.run(source, start, inbound, outbound, self.places.clone(), self.stop.clone()));
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

/// Refuses who could do nothing with this node's data, before a checkpoint is made.
fn check_seeded(source: &SeedSource, start: &v1::SeedStart) -> Result<(), Status> {
    let wal = source.engine.wal();
    let (theirs, ours) = (SystemId::new(start.system_id), wal.system_id());
    if theirs != ours {
        return Err(Status::failed_precondition(format!(
            "the node belongs to cluster {theirs}, this one to cluster {ours}: it has the data directory of another cluster"
        )));
    }
    let (theirs, ours) = (start.wal_format_version, FORMAT_VERSION);
    if theirs != ours {
        return Err(Status::failed_precondition(format!(
            "the node's WAL format is version {theirs}, this one's is version {ours}: run the same release on both"
        )));
    }
    let (theirs, ours) = (start.segment_size, wal.segment_size().get());
    if theirs != ours {
        return Err(Status::failed_precondition(format!(
            "the node's WAL segments have {theirs} bytes, this one's have {ours}: the segment size is the cluster's"
        )));
    }
    if start.node_id == source.node.get() {
        return Err(Status::failed_precondition(format!("node {} asked itself for a seed", source.node)));
    }
    Ok(())
}

impl<H: UpstreamHooks> ReplicationService<H> {
    async fn read_seed_start(&self, inbound: &mut Streaming<v1::FromSeeded>) -> Result<v1::SeedStart, Status> {
        let first = self.first_message(inbound, "SeedStart").await?;
        match first.and_then(|first| first.message) {
            Some(v1::from_seeded::Message::Start(start)) => Ok(start),
            Some(v1::from_seeded::Message::Want(_) | v1::from_seeded::Message::Finished(_)) | None => {
                Err(Status::invalid_argument("expected SeedStart"))
            }
        }
    }

    fn register(&self, start: &Start, address: Option<std::net::SocketAddr>) -> Result<Registration<H>, Status> {
        let &Start { node, incarnation, damage_epoch, timeline, .. } = start;
        let info = StandbyInfo { node, incarnation, damage_epoch, timeline, address };
        let connection = self.hooks.connected(info).ok_or_else(|| {
            Status::failed_precondition(format!(
                "timeline {timeline} has just ended here for node {node}: follow the present primary"
            ))
        })?;
        Ok(Registration::new(Arc::clone(&self.hooks), connection))
    }
}

/// What a standby is answered that is not taken on. Removed WAL has a reason that its program understands.
fn status_of(refusal: &Refusal) -> Status {
    match refusal {
        Refusal::Removed { start_lsn, first, segment } => {
            RpcError::wal_removed(refusal.to_string(), segment, *start_lsn, *first).into()
        }
        Refusal::SystemId { .. }
        | Refusal::FormatVersion { .. }
        | Refusal::SegmentSize { .. }
        | Refusal::Itself { .. }
        | Refusal::UnknownTimeline { .. }
        | Refusal::PastFork { .. }
        | Refusal::PastEnd { .. }
        | Refusal::BeforeLog { .. }
        | Refusal::NotSealed { .. }
        | Refusal::FetchBackwards { .. }
        | Refusal::FetchPastEnd { .. } => Status::failed_precondition(refusal.to_string()),
    }
}

/// Where the log ends for this stream: a sealed node offers what lies on the cluster's history, an open primary all of it.
fn end_on(source: &Source, history: &TimelineHistory, start: &Start, appended: Lsn) -> Lsn {
    match start.fetch {
        Some(_) => history.position(source.wal.end()),
        None => appended,
    }
}
