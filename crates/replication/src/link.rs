//! The walreceiver's hands: one task that does what a [`WalReceiver`] asks for, and tells it what happened.
//!
//! Run by [`crate::follow`] and [`crate::fetch`]. Every future that is waited for lives in the link itself, so that a
//! step can be dropped at any point (the caller's cancellation) and nothing is lost. Acknowledgements come before input:
//! under a flood of data the primary's commits wait for them.

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;
use understudy_rpc::error::{Reason, RpcError};
use understudy_rpc::v1;
use understudy_types::{Lsn, Position, TimelineHistory};

use crate::log::{LogError, LogSink};
use crate::message::{FromStandby, FromUpstream, Start};
use crate::receiver::{Action, ReceiverTiming, WalReceiver};
use crate::transport;

/// Messages of the standby that wait for the connection. Acknowledgements are decided only when there is room.
const OUTBOUND_MESSAGES_MAX: usize = 4;

/// How soon to look again at what is overdue, in milliseconds.
const OVERDUE_LOOK_MS: u64 = 10;

type Opening = Pin<Box<dyn Future<Output = Result<Box<Opened>, NotOpened>> + Send>>;

enum Event {
    LogMoved,
    Switched(Result<(), String>),
    Opened(Result<Box<Opened>, NotOpened>),
    Room,
    Incoming(Result<Option<v1::FromUpstream>, tonic::Status>),
    Tick,
}

/// Why there is no stream.
enum NotOpened {
    Refused(Box<tonic::Status>),
    Unreachable(String),
}

impl From<String> for NotOpened {
    fn from(reason: String) -> Self {
        Self::Unreachable(reason)
    }
}

struct Opened {
    channel: Channel,
    outbound: mpsc::Sender<v1::FromStandby>,
    inbound: Streaming<v1::FromUpstream>,
}

/// A receiver with its log and its connection.
pub(crate) struct Link<L> {
    pub(crate) receiver: WalReceiver,
    /// When the last piece of the log came.
    pub(crate) data_at: Option<std::time::Instant>,
    log: Arc<L>,
    address: String,
    timing: ReceiverTiming,
    began: Instant,
    written: watch::Receiver<Lsn>,
    flushed: watch::Receiver<Lsn>,
    visible: watch::Receiver<Position>,
    /// Kept over the end of a timeline: the next stream goes over the same connection.
    channel: Option<Channel>,
    opening: Option<Opening>,
    outbound: Option<mpsc::Sender<v1::FromStandby>>,
    inbound: Option<Streaming<v1::FromUpstream>>,
    switching: Option<JoinHandle<Result<(), LogError>>>,
}

impl<L: LogSink> Link<L> {
    /// `make` gets the present state of `log`, and zero as the time: the link's clock begins now.
    pub(crate) fn new(
        log: Arc<L>,
        address: String,
        timing: ReceiverTiming,
        make: impl FnOnce(crate::receiver::OwnLog) -> WalReceiver,
    ) -> Self {
        // Subscribed before the state is read: what moves in between is seen as a change.
        let (written, flushed, visible) = (log.written(), log.flushed(), log.visible());
        let receiver = make(log.own());
        Self {
            receiver,
            data_at: None,
            log,
            address,
            timing,
            began: Instant::now(),
            written,
            flushed,
            visible,
            channel: None,
            opening: None,
            outbound: None,
            inbound: None,
            switching: None,
        }
    }

    /// The pace from now on; what the connection itself watches over, from the next one on.
    pub(crate) fn set_timing(&mut self, timing: ReceiverTiming) {
        self.timing = timing;
        self.receiver.set_timing(timing);
    }

    /// Does what is due, then waits for one thing to happen. May be dropped while it waits.
    pub(crate) async fn step(&mut self) {
        self.act();
        let now_ms = self.now_ms();
        let deadline = next_look(self.began, self.receiver.deadline_ms(), now_ms);
        let (transmits, reads) = (self.receiver.wants_to_transmit(now_ms), self.receiver.wants_input());
        let event = tokio::select! {
            biased;
            () = moved(&mut self.flushed) => Event::LogMoved,
            () = moved(&mut self.written) => Event::LogMoved,
            () = moved(&mut self.visible) => Event::LogMoved,
            switched = joined(&mut self.switching) => Event::Switched(switched),
            opened = opened(&mut self.opening) => Event::Opened(opened),
            () = room(&mut self.outbound), if transmits => Event::Room,
            message = incoming(&mut self.inbound), if reads => Event::Incoming(message),
            () = until(deadline) => Event::Tick,
        };
        let now_ms = self.now_ms();
        match event {
            Event::LogMoved => self.read_positions(),
            Event::Switched(switched) => self.on_switched(switched, now_ms),
            Event::Opened(opened) => self.on_opened(opened, now_ms),
            Event::Room => self.transmit(now_ms),
            Event::Incoming(message) => self.on_incoming(message, now_ms),
            Event::Tick => self.receiver.handle_tick(now_ms),
        }
        self.act();
    }

    /// Waits until nothing of this link touches the log any more, and drops the connection.
    pub(crate) async fn finish(mut self) {
        self.disconnect();
        if let Some(switching) = self.switching.take()
            && let Err(error) = switching.await
        {
            tracing::warn!(%error, "beginning a timeline was cut short");
        }
    }

    pub(crate) fn set_history(&mut self, history: TimelineHistory) {
        let now_ms = self.now_ms();
        self.receiver.handle_history(history, now_ms);
        self.act();
    }

    fn now_ms(&self) -> u64 {
        since_ms(self.began)
    }

    fn act(&mut self) {
        while let Some(action) = self.receiver.poll_action(self.now_ms()) {
            match action {
                Action::Connect(start) => self.opening = Some(self.open(start)),
                Action::Disconnect => self.disconnect(),
                Action::Append { start, bytes } => match self.log.receive(start, bytes) {
                    Ok(end) => {
                        self.data_at = Some(std::time::Instant::now());
                        self.receiver.appended(end);
                    }
                    Err(error) => {
                        let now_ms = self.now_ms();
                        self.receiver.log_failed(error.to_string(), now_ms);
                    }
                },
                Action::AdvanceSafe(lsn) => self.log.advance_safe(lsn),
                Action::SwitchTimeline(history) => {
                    let log = Arc::clone(&self.log);
                    // It makes and syncs files: not on a thread that serves others.
                    self.switching = Some(tokio::task::spawn_blocking(move || log.begin_timeline(&history)));
                }
            }
        }
    }

    fn open(&mut self, start: Start) -> Opening {
        self.outbound = None;
        self.inbound = None;
        let within = Duration::from_millis(self.timing.connect_timeout_ms);
        let opening = open(self.channel.clone(), self.address.clone(), self.timing, start);
        let address = self.address.clone();
        Box::pin(async move {
            match tokio::time::timeout(within, opening).await {
                Ok(outcome) => outcome,
                Err(_) => Err(format!("{address} did not answer within {} ms", within.as_millis()).into()),
            }
        })
    }

    fn disconnect(&mut self) {
        self.channel = None;
        self.opening = None;
        self.outbound = None;
        self.inbound = None;
    }

    fn transmit(&mut self, now_ms: u64) {
        let Some(outbound) = &self.outbound else { return };
        // This task alone sends, so the room that was found is still there; a closed stream shows in its inbound half.
        if let Some(message) = self.receiver.poll_transmit(now_ms)
            && let Err(error) = outbound.try_send(message.into())
        {
            tracing::debug!(%error, "an acknowledgement was not sent");
        }
    }

    fn on_opened(&mut self, opened: Result<Box<Opened>, NotOpened>, now_ms: u64) {
        self.opening = None;
        match opened {
            Ok(opened) => {
                let Opened { channel, outbound, inbound } = *opened;
                self.channel = Some(channel);
                self.outbound = Some(outbound);
                self.inbound = Some(inbound);
                self.receiver.handle_connected(now_ms);
            }
            Err(NotOpened::Unreachable(reason)) => self.receiver.handle_connect_failed(reason, now_ms),
            Err(NotOpened::Refused(status)) => match gone_segment(&status) {
                Some(segment) => {
                    self.receiver.handle_wal_gone(segment, status.message().to_owned(), now_ms);
                }
                None => self.receiver.handle_connect_failed(describe(&status), now_ms),
            },
        }
    }

    fn on_incoming(&mut self, message: Result<Option<v1::FromUpstream>, tonic::Status>, now_ms: u64) {
        let closed = match message {
            Ok(Some(message)) => match FromUpstream::try_from(message) {
                Ok(message) => {
                    if let FromUpstream::Data(data) = &message
                        && !data.marks.is_empty()
                    {
                        self.log.mark(&data.marks);
                    }
                    return self.receiver.handle_message(message, now_ms);
                }
                Err(error) => Some(error.to_string()),
            },
            Ok(None) => None,
            Err(status) => {
                if let Some(segment) = gone_segment(&status) {
                    self.inbound = None;
                    return self.receiver.handle_wal_gone(segment, status.message().to_owned(), now_ms);
                }
                Some(describe(&status))
            }
        };
        self.inbound = None;
        self.receiver.handle_closed(closed, now_ms);
    }

    fn on_switched(&mut self, switched: Result<(), String>, now_ms: u64) {
        self.switching = None;
        match switched {
            Ok(()) => self.receiver.switched(now_ms),
            Err(reason) => self.receiver.log_failed(reason, now_ms),
        }
    }

    fn read_positions(&mut self) {
        // In this order, so that each is at least the next.
        let applied = self.visible.borrow_and_update().lsn;
        let flushed = *self.flushed.borrow_and_update();
        let written = *self.written.borrow_and_update();
        self.receiver.set_positions(written, flushed, applied);
    }
}

async fn open(
    channel: Option<Channel>,
    address: String,
    timing: ReceiverTiming,
    start: Start,
) -> Result<Box<Opened>, NotOpened> {
    let channel = match channel {
        Some(channel) => channel,
        None => {
            let endpoint = transport::endpoint(&address, timing.connect_timeout_ms, timing.timeout_ms)
                .map_err(|error| format!("{address} is not an address: {}", chain(&error)))?;
            endpoint.connect().await.map_err(|error| format!("no connection to {address}: {}", chain(&error)))?
        }
    };
    let (outbound, messages) = mpsc::channel(OUTBOUND_MESSAGES_MAX);
    outbound.try_send(FromStandby::Start(start).into()).map_err(|error| error.to_string())?;
    let answer = transport::client(channel.clone()).stream(ReceiverStream::new(messages)).await;
    let inbound = answer.map_err(|status| NotOpened::Refused(Box::new(status)))?.into_inner();
    Ok(Box::new(Opened { channel, outbound, inbound }))
}

/// The segment that the upstream says it has removed, or finds damaged; none when it says something else.
fn gone_segment(status: &tonic::Status) -> Option<String> {
    let gone = |error: &RpcError| matches!(error.reason, Reason::WalRemoved | Reason::WalDamaged);
    let error = RpcError::from_status(status).filter(gone)?;
    Some(error.get("segment").unwrap_or_default().to_owned())
}

/// A status in the words that help: the peer's own, or the network's.
pub(crate) fn describe(status: &tonic::Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => format!("{}: {}", status.message(), chain(source)),
        None if status.message().is_empty() => format!("{:?}", status.code()),
        None => status.message().to_owned(),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// The next change; never when the other side is gone, which the owner of the log notices by other means.
pub(crate) async fn moved<T>(watched: &mut watch::Receiver<T>) {
    if watched.changed().await.is_err() {
        pending().await
    }
}

/// When to look again at a machine that names `deadline_ms`. What is due already and not done waits for room in the
/// connection: it is looked at again after a moment, not in a spin.
pub(crate) fn next_look(began: Instant, deadline_ms: Option<u64>, now_ms: u64) -> Option<Instant> {
    let at_ms = deadline_ms.map(|at_ms| if at_ms <= now_ms { now_ms + OVERDUE_LOOK_MS } else { at_ms })?;
    Some(began + Duration::from_millis(at_ms))
}

/// Milliseconds of `began`'s clock.
pub(crate) fn since_ms(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

pub(crate) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => pending().await,
    }
}

async fn joined(switching: &mut Option<JoinHandle<Result<(), LogError>>>) -> Result<(), String> {
    match switching {
        Some(handle) => match handle.await {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        },
        None => pending().await,
    }
}

async fn opened(opening: &mut Option<Opening>) -> Result<Box<Opened>, NotOpened> {
    match opening {
        Some(opening) => opening.await,
        None => pending().await,
    }
}

/// Room for a message. A connection that does not take any more shows in its inbound half.
async fn room(outbound: &mut Option<mpsc::Sender<v1::FromStandby>>) {
    match outbound {
        Some(sender) => match sender.reserve().await {
            Ok(permit) => drop(permit),
            Err(_) => pending().await,
        },
        None => pending().await,
    }
}

async fn incoming(
    inbound: &mut Option<Streaming<v1::FromUpstream>>,
) -> Result<Option<v1::FromUpstream>, tonic::Status> {
    match inbound {
        Some(stream) => stream.message().await,
        None => pending().await,
    }
}
