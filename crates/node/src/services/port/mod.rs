//! Accepts the connections of the gRPC port, as many as [`ServerConfig::max_connections`](crate::config::ServerConfig).
//!
//! Which connection gets a place, and how places are kept for the members of the cluster, for operators and for health probes, is
//! decided in [`places`]. Here a connection is given its place for as long as it is open, and closed
//!
//! - when it has to give way to another,
//! - when it has shown nothing of HTTP/2 within [`Times::preface`]: from then on HTTP/2's own pings, which the server
//!   sends every ten seconds, prove that somebody is there,
//! - when it is a newcomer and has not turned out to be a member or an operator within [`Times::newcomer`].
//!
//! A client's request over a connection without an ordinary place is answered with `NODE_BUSY` before anybody reads it, so that its
//! user is told what is so. Each connection that was not served is counted (`understudy_grpc_connections_refused_total`), and
//! logged at most every [`LOG_INTERVAL`].

pub mod places;

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::future::{Either, Ready, ready};
use futures::{FutureExt, Stream};
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Sleep;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::Status;
use tonic::transport::server::{Connected, TcpConnectInfo};
use tower::{Layer, Service};
use understudy_rpc::error::RpcError;

use crate::telemetry::Telemetry;
use places::{Asks, Place, Places};

/// Between two lines of the log about connections that were not served.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// After an accept that failed, for want of file descriptors perhaps.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// HTTP/2's first bytes, in number.
const PREFACE_BYTES: usize = 24;
/// The services that only members use.
const MEMBERS_SERVICES: [&str; 3] = ["/understudy.v1.Mesh/", "/understudy.v1.Raft/", "/understudy.v1.Replication/"];
/// The services of operators and their tools, and of the probes of orchestrators and load balancers.
const OPERATORS_SERVICES: [&str; 2] = ["/understudy.v1.Cluster/", "/grpc.health.v1.Health/"];
/// Files that are not connections of this port: of the store, of both logs, of the HTTP port, of our own connections.
const OTHER_FILES: u64 = 1024;

/// How long a connection may show nothing.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Until HTTP/2's preface is there.
    pub preface: Duration,
    /// Without an ordinary place, until it is known whether it is a member's or an operator's.
    pub newcomer: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self { preface: Duration::from_secs(10), newcomer: Duration::from_secs(2) }
    }
}

/// As many files as the system allows this process. Gives how many connections there is room for: `wanted`, or fewer, which is
/// logged.
pub fn room_for(wanted: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::warn!(%error, "the number of open files cannot be raised to its hard limit");
            limit.current
        }
    };
    let Some(files) = files else { return wanted };
    let room = usize::try_from(files.saturating_sub(OTHER_FILES).max(files / 4)).unwrap_or(usize::MAX);
    if room < wanted {
        tracing::warn!(
            files,
            max_connections = wanted,
            room,
            "the system allows this process fewer open files than connections \
            are allowed: the limit is lower; raise the hard limit of open files"
        );
    }
    room.min(wanted)
}

/// Why a connection was not served, or not any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// Another connection came, and this one had asked for nothing, or was the operator that had asked for nothing the longest.
    Displaced,
    /// A newcomer's time was over.
    NotAMember,
    /// No preface.
    Silent,
}

impl Why {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Displaced => "displaced",
            Self::NotAMember => "not_a_member",
            Self::Silent => "silent",
        }
    }
}

/// What every connection holds.
#[derive(Debug)]
struct Shared {
    places: Arc<Places>,
    instruments: Arc<crate::telemetry::instruments::Instruments>,
    times: Times,
    logged: Mutex<Logged>,
}

#[derive(Debug, Default)]
struct Logged {
    at: Option<Instant>,
    since: u64,
}

impl Shared {
    fn refused(&self, why: Why) {
        self.instruments.connections_refused.with([why.as_str()]).increment();
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        logged.since += 1;
        if logged.at.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            let [ordinary, newcomers, members, operators] = self.places.taken();
            tracing::warn!(
                why = why.as_str(),
                closed = logged.since,
                ordinary,
                newcomers,
                members,
                operators,
                max = self.places.max(),
                "connections to the grpc port were closed: max_connections limits them"
            );
            *logged = Logged { at: Some(Instant::now()), since: 0 };
        }
    }
}

/// The connections that get a place, as they come; it does not end.
pub fn accept(
    listener: TcpListener,
    places: Arc<Places>,
    telemetry: &Telemetry,
    times: Times,
) -> impl Stream<Item = io::Result<Connection>> + use<> {
    let instruments = Arc::clone(telemetry.instruments());
    let shared = Arc::new(Shared { places, instruments, times, logged: Mutex::default() });
    futures::stream::unfold((listener, shared), |(listener, shared)| async move {
        let connection = next(&listener, &shared).await;
        Some((Ok(connection), (listener, shared)))
    })
}

async fn next(listener: &TcpListener, shared: &Arc<Shared>) -> Connection {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the grpc port cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Interactive traffic must not wait for more to send (Nagle).
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection was gone at once");
            continue;
        }
        return Connection::new(stream, shared.places.admit(), Arc::clone(shared));
    }
}

/// A connection that has a place.
pub struct Connection {
    stream: TcpStream,
    place: Arc<Place>,
    shared: Arc<Shared>,
    displaced: Pin<Box<WaitForCancellationFutureOwned>>,
    /// When it is looked at, if it has still to show something.
    until: Option<Pin<Box<Sleep>>>,
    /// Of the preface, to be read.
    missing: usize,
}

impl Connection {
    fn new(stream: TcpStream, place: Arc<Place>, shared: Arc<Shared>) -> Self {
        let displaced = Box::pin(place.displaced().clone().cancelled_owned());
        let time = if place.is_newcomer() { shared.times.newcomer } else { shared.times.preface };
        let until = Some(Box::pin(tokio::time::sleep(time)));
        Self { stream, place, shared, displaced, until, missing: PREFACE_BYTES }
    }

    /// Whether it has to be closed now.
    fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<Why> {
        if self.displaced.poll_unpin(context).is_ready() {
            return Poll::Ready(Why::Displaced);
        }
        let Some(until) = &mut self.until else { return Poll::Pending };
        if until.poll_unpin(context).is_pending() {
            return Poll::Pending;
        }
        self.until = None;
        match (self.place.is_newcomer(), self.missing) {
            (true, _) => Poll::Ready(Why::NotAMember),
            (false, 0) => Poll::Pending,
            (false, _) => Poll::Ready(Why::Silent),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.places.release(&self.place);
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Poll::Ready(why) = this.poll_close(context) {
            this.shared.refused(why);
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        if this.missing > 0 {
            this.missing = this.missing.saturating_sub(buffer.filled().len() - before);
            if this.missing == 0 && !this.place.is_newcomer() {
                this.until = None;
            }
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// What every request of a connection carries.
#[derive(Clone)]
pub struct Over {
    place: Arc<Place>,
    shared: Arc<Shared>,
    tcp: TcpConnectInfo,
}

impl Connected for Connection {
    type ConnectInfo = Over;

    fn connect_info(&self) -> Over {
        Over { place: Arc::clone(&self.place), shared: Arc::clone(&self.shared), tcp: self.stream.connect_info() }
    }
}

/// Asks for each request whether its connection may make it; see the module.
#[derive(Clone, Copy)]
pub struct PlacedLayer;

impl<S> Layer<S> for PlacedLayer {
    type Service = Placed<S>;

    fn layer(&self, inner: S) -> Placed<S> {
        Placed { inner }
    }
}

fn asks(path: &str) -> Asks {
    let among = |services: &[&str]| services.iter().any(|service| path.starts_with(service));
    if among(&MEMBERS_SERVICES) {
        Asks::Member
    } else if among(&OPERATORS_SERVICES) {
        Asks::Operator
    } else {
        Asks::Client
    }
}

/// A service whose connections have places.
#[derive(Clone)]
pub struct Placed<S> {
    inner: S,
}

impl<S, B, R> Service<Request<B>> for Placed<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if let Some(over) = request.extensions().get::<Over>() {
            if !over.shared.places.ask(&over.place, asks(request.uri().path())) {
                let refusal = RpcError::node_busy("the request", over.shared.places.max(), "connections are open");
                return Either::Right(ready(Ok(Status::from(refusal).into_http())));
            }
            // For the services that want to know who asks.
            let tcp = over.tcp.clone();
            request.extensions_mut().insert(tcp);
        }
        Either::Left(self.inner.call(request))
    }
}

#[cfg(test)]
mod tests;
