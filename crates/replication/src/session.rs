//! One stream's walsender as a task: events in, messages out.
//!
//! A message is decided when the channel has room for it and not before, so that at most a few frames per stream are in
//! memory, and a slow standby is fed from the segment files long after the ring in memory has moved on.
//!
//! **Reads.** The live tail is in memory and is read where the task runs. Files are read on the blocking pool, because a
//! page that is not cached takes milliseconds, in which this thread would serve nobody (`block_in_place` would do as
//! well but needs the multi-threaded runtime). Which it will be is told by the last read: a stream that reads memory goes
//! on reading memory, and if the ring has overtaken it meanwhile, that is found out by one small read of freshly written
//! and so cached pages.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use understudy_engine::Mark;
use understudy_rpc::error::RpcError;
use understudy_rpc::v1;
use understudy_types::{Lsn, NodeId};
use understudy_wal::{Chunk, Decoder, Wal, WalError, WalReader};

use crate::hooks::{ConnectionId, UpstreamHooks};
use crate::link::{moved, next_look, since_ms, until};
use crate::message::{AckPosition, FromStandby, FromUpstream, Keepalive, StreamState};
use crate::sender::{Transmit, WalSender};
use crate::serve::Admission;

/// How long the last message of a stream may wait for a standby that does not read; not at all for one that has
/// connected again, which waits for this stream to end.
const LAST_MESSAGE_TIMEOUT: Duration = Duration::from_millis(500);

/// Before a standby is told that the WAL which it needs is damaged.
const DAMAGE_PAUSE: Duration = Duration::from_secs(1);

type Outbound = mpsc::Sender<Result<v1::FromUpstream, Status>>;

/// A standby's connection at the node's hooks, until it is dropped.
pub(crate) struct Registration<H: UpstreamHooks> {
    hooks: Arc<H>,
    connection: ConnectionId,
    told: StreamState,
}

impl<H: UpstreamHooks> Registration<H> {
    pub(crate) fn new(hooks: Arc<H>, connection: ConnectionId) -> Self {
        Self { hooks, connection, told: StreamState::Startup }
    }

    fn tell(&mut self, state: StreamState) {
        if self.told != state {
            self.told = state;
            self.hooks.state(self.connection, state);
        }
    }

    fn sent(&self, sent: Lsn) {
        self.hooks.sent(self.connection, sent);
    }

    fn sending(&self, standby: NodeId, piece: Range<Lsn>, read_began: std::time::Instant) -> Vec<Mark> {
        self.hooks.sending(standby, piece, read_began)
    }

    fn acked(&self, position: AckPosition) {
        self.hooks.ack(self.connection, position);
    }
}

impl<H: UpstreamHooks> Drop for Registration<H> {
    fn drop(&mut self) {
        self.hooks.disconnected(self.connection);
    }
}

/// Everything that one stream needs.
pub(crate) struct Session<H: UpstreamHooks> {
    pub(crate) sender: WalSender,
    pub(crate) standby: NodeId,
    /// Absent only while a read is under way on the blocking pool.
    pub(crate) reader: Option<WalReader>,
    /// Checks that the standby's end is the end of a record here; none once it was found so.
    pub(crate) first_record: Option<Decoder>,
    /// None for a fetch, which is no standby, and for a standby that is still on an ancestor timeline.
    pub(crate) registration: Option<Registration<H>>,
    pub(crate) fetches: bool,
    pub(crate) hooks: Arc<H>,
    /// Where the reader reads.
    pub(crate) wal: Wal,
    pub(crate) appended: watch::Receiver<Lsn>,
    pub(crate) safe: watch::Receiver<Lsn>,
    pub(crate) admission: Admission,
    /// The timeline is no longer served.
    pub(crate) ended: CancellationToken,
    /// The node stops.
    pub(crate) stop: CancellationToken,
}

enum Event<'a> {
    Stop(&'static str),
    Incoming(Result<Option<v1::FromStandby>, Status>),
    Room(mpsc::Permit<'a, Result<v1::FromUpstream, Status>>),
    Appended,
    Safe,
    Tick,
}

/// Why there is no chunk.
enum Unreadable {
    Wal(Box<WalError>),
    /// The read itself came to nothing.
    Task(String),
}

enum Next {
    Go,
    /// The standby is gone.
    Gone,
}

impl<H: UpstreamHooks> Session<H> {
    pub(crate) async fn run(mut self, mut inbound: Streaming<v1::FromStandby>, outbound: Outbound) {
        let standby = self.standby;
        tracing::info!(%standby, from = %self.sender.sent(), "walsender started");
        let outcome = self.stream(&mut inbound, &outbound).await;
        // Before the last word is waited for: the connection counts no more.
        self.registration = None;
        let sent = self.sender.sent();
        match outcome {
            Ok(()) => tracing::info!(%standby, %sent, "walsender ended"),
            Err(status) => {
                tracing::warn!(%standby, %sent, reason = status.message(), "walsender ended");
                if tokio::time::timeout(LAST_MESSAGE_TIMEOUT, outbound.send(Err(status))).await.is_err() {
                    tracing::debug!(%standby, "the standby did not read why its stream ended");
                }
            }
        }
    }

    async fn stream(&mut self, inbound: &mut Streaming<v1::FromStandby>, outbound: &Outbound) -> Result<(), Status> {
        let began = Instant::now();
        let mut give_up: Option<Instant> = None;
        while !self.sender.is_ended() {
            let now_ms = since_ms(began);
            let transmits = self.sender.wants_to_transmit(now_ms);
            let look = next_look(began, self.sender.deadline_ms(), now_ms);
            let may_stop = give_up.is_none();
            let event = tokio::select! {
                biased;
                reason = told_to_stop(&self.stop, &self.ended, &self.admission), if may_stop => Event::Stop(reason),
                message = inbound.message() => Event::Incoming(message),
                room = outbound.reserve(), if transmits => match room {
                    Ok(permit) => Event::Room(permit),
                    Err(_) => return Ok(()),
                },
                () = moved(&mut self.appended) => Event::Appended,
                () = moved(&mut self.safe) => Event::Safe,
                () = until(look) => Event::Tick,
                () = until(give_up) => return Ok(()),
            };
            let now_ms = since_ms(began);
            match event {
                Event::Stop(reason) => {
                    self.sender.stop(reason);
                    let patience =
                        if self.admission.replaced.is_cancelled() { Duration::ZERO } else { LAST_MESSAGE_TIMEOUT };
                    give_up = Some(Instant::now() + patience);
                }
                Event::Incoming(message) => {
                    if let Next::Gone = self.on_message(message, now_ms)? {
                        return Ok(());
                    }
                }
                Event::Room(permit) => {
                    if let Some(message) = self.next_message(now_ms).await? {
                        permit.send(Ok(message.into()));
                    }
                }
                Event::Appended => self.sender.set_end(*self.appended.borrow_and_update()),
                Event::Safe => self.sender.set_safe(*self.safe.borrow_and_update()),
                Event::Tick => {
                    self.sender.handle_tick(now_ms).map_err(|error| Status::deadline_exceeded(error.to_string()))?;
                }
            }
            let state = self.sender.state();
            if let Some(registration) = &mut self.registration {
                registration.tell(state);
            }
        }
        Ok(())
    }

    fn on_message(&mut self, message: Result<Option<v1::FromStandby>, Status>, now_ms: u64) -> Result<Next, Status> {
        // A standby that is gone shows as a clean end, or as a broken connection; there is nobody to answer.
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(Next::Gone),
            Err(status) if is_of_the_connection(&status) => return Ok(Next::Gone),
            Err(status) => return Err(Status::invalid_argument(status.message())),
        };
        let ack = match FromStandby::try_from(message) {
            Ok(FromStandby::Ack(ack)) => ack,
            Ok(FromStandby::Start(_)) => return Err(Status::invalid_argument("the standby sent Start a second time")),
            Err(error) => return Err(Status::invalid_argument(error.to_string())),
        };
        let acked =
            self.sender.handle_ack(&ack, now_ms).map_err(|error| Status::invalid_argument(error.to_string()))?;
        if let Some(registration) = &self.registration {
            registration.acked(acked);
        }
        Ok(Next::Go)
    }

    async fn next_message(&mut self, now_ms: u64) -> Result<Option<FromUpstream>, Status> {
        let Some(transmit) = self.sender.poll_transmit(now_ms) else { return Ok(None) };
        let message = match transmit {
            Transmit::Started(started) => FromUpstream::Started(started),
            Transmit::Keepalive(keepalive) => {
                FromUpstream::Keepalive(Keepalive { send_time_us: unix_us(), ..keepalive })
            }
            Transmit::EndOfTimeline { next, switch_lsn } => FromUpstream::EndOfTimeline { next, switch_lsn },
            Transmit::FetchDone => FromUpstream::FetchDone,
            Transmit::Stopping { reason } => FromUpstream::Stopping { reason },
            Transmit::Read { from, upto, bytes_max } => {
                let read_began = std::time::Instant::now();
                let chunk = self.read_surely(from, upto, bytes_max).await?;
                let Some(chunk) = chunk else {
                    return Err(Status::internal(format!("there is no whole record from {from} to {upto}")));
                };
                self.check_first_record(&chunk)?;
                let piece = chunk.start..chunk.end;
                let mut data = self.sender.data(chunk.start, chunk.bytes, unix_us());
                if let Some(registration) = &self.registration {
                    data.marks = registration.sending(self.standby, piece, read_began);
                    registration.sent(self.sender.sent());
                }
                FromUpstream::Data(data)
            }
        };
        Ok(Some(message))
    }

    fn check_first_record(&mut self, chunk: &Chunk) -> Result<(), Status> {
        let Some(decoder) = self.first_record.take() else { return Ok(()) };
        match decoder.decode(chunk.start, &chunk.bytes).next() {
            Some(Ok(_)) => Ok(()),
            Some(Err(error)) => Err(not_a_prefix(chunk.start, &error)),
            None => Err(Status::internal(format!("there is no record at {}", chunk.start))),
        }
    }

    /// What is found damaged is read once more, from files that are opened anew, before anything follows from it.
    async fn read_surely(&mut self, from: Lsn, upto: Lsn, bytes_max: usize) -> Result<Option<Chunk>, Status> {
        let mut read = self.read(upto, bytes_max).await;
        if matches!(&read, Err(Unreadable::Wal(found)) if is_corrupt(found)) {
            self.reader = Some(self.wal.reader(from));
            read = self.read(upto, bytes_max).await;
        }
        match read {
            Ok(chunk) => Ok(chunk),
            Err(Unreadable::Wal(found)) if is_corrupt(&found) && !self.fetches => Err(self.damaged(from, *found).await),
            Err(error) => Err(self.unreadable(from, upto, error)),
        }
    }

    /// What a standby is told that needs WAL which is damaged here.
    async fn damaged(&self, from: Lsn, found: WalError) -> Status {
        let standby = self.standby;
        let WalError::Corrupt { segment, lsn: at, expected, found: there } = &found else {
            return Status::internal(found.to_string());
        };
        let why = format!("expected {expected}, found {there}");
        // It asks again at once, and each time this is found out anew.
        tokio::select! {
            () = tokio::time::sleep(DAMAGE_PAUSE) => {}
            reason = told_to_stop(&self.stop, &self.ended, &self.admission) => return Status::unavailable(reason),
        }
        if self.first_record.is_some() {
            // Where no record begins nothing good is found either.
            let wal = self.wal.clone();
            match tokio::task::spawn_blocking(move || wal.is_record_end(from)).await {
                Ok(Ok(true)) => {}
                Ok(Err(error)) if is_corrupt(&error) => {}
                Ok(Ok(false)) => return not_a_prefix(from, &"a record stands across it"),
                Ok(Err(error)) => return Status::internal(error.to_string()),
                Err(error) => return Status::internal(error.to_string()),
            }
        }
        let seeds = self.hooks.seeds_past_damage(standby, *at);
        tracing::error!(%standby, %segment, %at, why, seeds, "the WAL of this node is damaged where a standby needs it");
        if seeds {
            let message = format!(
                "requested WAL segment {segment} is damaged on this node at {at}: {why}; the standby must be seeded"
            );
            return RpcError::wal_damaged(message, segment, from).into();
        }
        Status::internal(format!(
            "WAL segment {segment} is damaged on this node at {at}: {why}; stop this node to have another one take over, or take the standby off the sync list to have it seeded"
        ))
    }

    /// What the standby is told when its WAL cannot be read: removed WAL in a way that its program understands.
    fn unreadable(&self, from: Lsn, upto: Lsn, error: Unreadable) -> Status {
        let standby = self.standby;
        let why = match error {
            Unreadable::Wal(error) => {
                if let WalError::Removed { asked, first, segment } = &*error {
                    return RpcError::wal_removed(error.to_string(), segment, *asked, *first).into();
                }
                error.to_string()
            }
            Unreadable::Task(why) => why,
        };
        tracing::error!(%standby, %from, %upto, %why, "the wal could not be read");
        Status::internal(format!("the wal from {from} to {upto} could not be read: {why}"))
    }

    async fn read(&mut self, upto: Lsn, bytes_max: usize) -> Result<Option<Chunk>, Unreadable> {
        let task = |why: String| Unreadable::Task(why);
        let mut reader = self.reader.take().ok_or_else(|| task("the last read did not end".to_owned()))?;
        let (reader, chunk) = if reader.from_memory() {
            let chunk = reader.read(upto, bytes_max);
            (reader, chunk)
        } else {
            let read = move || {
                let chunk = reader.read(upto, bytes_max);
                (reader, chunk)
            };
            tokio::task::spawn_blocking(read).await.map_err(|error| task(error.to_string()))?
        };
        self.reader = Some(reader);
        chunk.map_err(|error| Unreadable::Wal(Box::new(error)))
    }
}

fn is_corrupt(error: &WalError) -> bool {
    matches!(error, WalError::Corrupt { .. })
}

fn not_a_prefix(end: Lsn, why: &dyn std::fmt::Display) -> Status {
    Status::failed_precondition(format!(
        "the standby's WAL ends at {end}, where no record ends in this node's ({why}): it is not a prefix of this node's"
    ))
}

async fn told_to_stop(stop: &CancellationToken, ended: &CancellationToken, admission: &Admission) -> &'static str {
    tokio::select! {
        () = stop.cancelled() => "this node stops",
        () = ended.cancelled() => "this node no longer serves its timeline",
        () = admission.replaced.cancelled() => "the standby has connected again",
    }
}

/// Whether a standby's message is missing because its connection is, rather than because it cannot be understood.
fn is_of_the_connection(status: &Status) -> bool {
    use tonic::Code;
    matches!(status.code(), Code::Unknown | Code::Cancelled | Code::Unavailable)
}

fn unix_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
