//! What the requests of clients may take of this node's memory, all connections together: looked at before anything is decoded.
//!
//! A request announces its length in the five bytes before its message, and the decoder reserves that much at once; so that is what
//! is counted, before the decoder sees it, until the request is answered.
//!
//! | what | of commits ([`COMMIT_PATHS`]) | of all else: reads, scans | over it |
//! |---|---|---|---|
//! | requests in progress | [`Limits::commits`] | [`Limits::others`] | refused |
//! | announced bytes of messages of at most [`SMALL_BYTES_MAX`] | [`Limits::commits`] | [`Limits::others`] | refused |
//! | announced bytes of larger ones | [`Limits::large_bytes`] | the same, together | refused |
//! | time for a message to arrive | [`Limits::arrival`], and its bytes at [`ARRIVAL_BYTES_PER_SECOND`] | the same | given up |
//!
//! Refused is `NODE_BUSY`: nothing was done, and a moment later there is room. Small messages have a share of their own, so that reads
//! and everyday commits go on while large ones fill theirs; and who announces much and sends nothing loses his share in time.
//! What is committed is counted again by the sequencer, whose queue has a limit of its own.
//!
//! Commits have shares of their own, in number and in bytes, because they may wait long: with the standby gone each of them waits
//! until it is released or `commit_deadline` is over, so that a moderate rate of them fills any share. A read takes none of theirs,
//! and what can be answered at once is answered. The reads that may wait for a position are fewer than the share they are in
//! ([`limits::WAITING_READS_MAX`]). What remains common is a connection: commits that wait on it count among its requests
//! ([`limits::CONNECTION_REQUESTS_MAX`]), and the client keeps the rest back.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures::FutureExt;
use futures::future::{BoxFuture, Either, Ready, ready};
use http::{Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;
use understudy_rpc::error::RpcError;
use understudy_types::limits;

/// A message of at most this many bytes is a small one: the largest key with all that a read needs.
pub const SMALL_BYTES_MAX: usize = limits::SMALL_REQUEST_BYTES_MAX;
/// A large message may take as long to arrive as a slow line needs: 1 Mbit/s.
const ARRIVAL_BYTES_PER_SECOND: usize = 128 << 10;
/// Before a message: whether it is compressed, and its length.
const HEADER_BYTES: usize = 5;

/// The requests that may wait for a standby. Their shares are not those of the others.
const COMMIT_PATHS: [&str; 2] = ["/understudy.v1.Kv/Commit", "/understudy.v1.Kv/CommitBatch"];

/// What requests of one kind may take at a time.
#[derive(Debug, Clone, Copy)]
pub struct Portion {
    /// In number. Each costs about 16 KiB, whatever it asks.
    pub requests: usize,
    /// For small messages.
    pub small_bytes: usize,
}

/// How much is taken at a time.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// By commits, alone and in batches.
    pub commits: Portion,
    /// By everything else.
    pub others: Portion,
    /// For large messages of both.
    pub large_bytes: usize,
    /// How long every message may take to arrive, in addition to what its length needs.
    pub arrival: Duration,
}

impl Limits {
    /// For what people and their tools ask: no commits.
    pub fn for_operators() -> Self {
        Self {
            commits: Portion { requests: 0, small_bytes: 0 },
            others: Portion { requests: 512, small_bytes: 8 << 20 },
            large_bytes: 32 << 20,
            ..Self::default()
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            commits: Portion {
                requests: limits::COMMIT_REQUESTS_MAX,
                small_bytes: limits::SMALL_COMMIT_REQUESTS_BYTES_MAX,
            },
            others: Portion {
                requests: limits::OTHER_REQUESTS_MAX,
                small_bytes: limits::SMALL_OTHER_REQUESTS_BYTES_MAX,
            },
            large_bytes: limits::LARGE_REQUESTS_BYTES_MAX,
            arrival: Duration::from_secs(10),
        }
    }
}

/// What is taken, of what there is.
#[derive(Debug)]
struct Share {
    max: usize,
    taken: AtomicUsize,
    /// "requests are in progress"
    doing: &'static str,
}

impl Share {
    fn new(max: usize, doing: &'static str) -> Self {
        Self { max, taken: AtomicUsize::new(0), doing }
    }
}

/// Which shares a request takes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Commit,
    Other,
}

impl Kind {
    fn of(path: &str) -> Self {
        if COMMIT_PATHS.contains(&path) { Self::Commit } else { Self::Other }
    }

    fn requests(self) -> fn(&Budget) -> &Share {
        match self {
            Self::Commit => |budget| &budget.commits,
            Self::Other => |budget| &budget.others,
        }
    }

    fn small(self) -> fn(&Budget) -> &Share {
        match self {
            Self::Commit => |budget| &budget.small_commits,
            Self::Other => |budget| &budget.small_others,
        }
    }
}

/// A part of a share, given back when it is dropped.
#[derive(Debug)]
struct Taken {
    budget: Arc<Budget>,
    share: fn(&Budget) -> &Share,
    amount: usize,
}

impl Drop for Taken {
    fn drop(&mut self) {
        (self.share)(&self.budget).taken.fetch_sub(self.amount, Ordering::AcqRel);
    }
}

/// One for the clients of the whole process, one for its operators.
#[derive(Debug)]
pub struct Budget {
    commits: Share,
    others: Share,
    small_commits: Share,
    small_others: Share,
    large: Share,
    arrival: Duration,
}

impl Budget {
    /// Of these limits.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            commits: Share::new(limits.commits.requests, "commits are in progress"),
            others: Share::new(limits.others.requests, "requests are in progress"),
            small_commits: Share::new(limits.commits.small_bytes, "bytes of small commits are held"),
            small_others: Share::new(limits.others.small_bytes, "bytes of small requests are held"),
            large: Share::new(limits.large_bytes, "bytes of large requests are held"),
            arrival: limits.arrival,
        })
    }

    /// Bytes of requests that are held, of all kinds and sizes.
    #[cfg(test)]
    fn held_bytes(&self) -> usize {
        let shares = [&self.small_commits, &self.small_others, &self.large];
        shares.iter().map(|share| share.taken.load(Ordering::Acquire)).sum()
    }

    fn take(self: &Arc<Self>, share: fn(&Budget) -> &Share, amount: usize) -> Result<Taken, RpcError> {
        let Share { max, taken, doing } = share(self);
        let more = |now: usize| now.checked_add(amount).filter(|then| then <= max);
        match taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, more) {
            Ok(_) => Ok(Taken { budget: Arc::clone(self), share, amount }),
            Err(_) => Err(RpcError::node_busy("the request", *max, doing)),
        }
    }

    fn take_bytes(self: &Arc<Self>, kind: Kind, bytes: usize) -> Result<Taken, RpcError> {
        if bytes <= SMALL_BYTES_MAX { self.take(kind.small(), bytes) } else { self.take(|budget| &budget.large, bytes) }
    }
}

/// What a request holds: filled by its body, given back with its answer.
type Held = Arc<Mutex<Vec<Taken>>>;

/// A service with unary requests that are counted.
#[derive(Clone)]
pub struct Budgeted<S> {
    inner: S,
    budget: Arc<Budget>,
    /// A message that is longer is the decoder's to refuse: it reserves nothing.
    message_bytes_max: usize,
}

impl<S> Budgeted<S> {
    /// Over `inner`, which decodes messages of at most `message_bytes_max`.
    pub fn new(inner: S, budget: &Arc<Budget>, message_bytes_max: usize) -> Self {
        Self { inner, budget: Arc::clone(budget), message_bytes_max }
    }
}

impl<S: NamedService> NamedService for Budgeted<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Budgeted<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<BoxFuture<'static, Result<S::Response, S::Error>>, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let kind = Kind::of(request.uri().path());
        let place = match self.budget.take(kind.requests(), 1) {
            Ok(place) => place,
            Err(refusal) => return Either::Right(ready(Ok(Status::from(refusal).into_http()))),
        };
        let held: Held = Arc::new(Mutex::new(vec![place]));
        let counted = Counted {
            budget: Arc::clone(&self.budget),
            kind,
            held: Arc::clone(&held),
            message_bytes_max: self.message_bytes_max,
            progress: Progress::Header { seen: 0, length: 0 },
            until: Instant::now() + self.budget.arrival,
            waiting: None,
        };
        let answer = self.inner.call(request.map(|body| Body::new(CountedBody { inner: body, counted })));
        let answered = async move {
            let answer = answer.await;
            drop(std::mem::take(&mut *held.lock().unwrap_or_else(PoisonError::into_inner)));
            answer
        };
        Either::Left(answered.boxed())
    }
}

/// Where in the request its body stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// In the bytes before the message.
    Header { seen: usize, length: usize },
    /// In the message.
    Message { missing: usize },
    /// There is nothing more that may come.
    Done,
}

#[derive(Debug)]
struct Counted {
    budget: Arc<Budget>,
    kind: Kind,
    held: Held,
    message_bytes_max: usize,
    progress: Progress,
    /// When it must be there.
    until: Instant,
    /// Only once it is waited for: nearly every body is there at once.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Counted {
    /// Looks at the next bytes of the body, before the decoder does.
    fn look(&mut self, mut bytes: &[u8]) -> Result<(), Status> {
        while !bytes.is_empty() {
            match &mut self.progress {
                Progress::Header { seen, length } => {
                    let byte = usize::from(bytes[0]);
                    bytes.advance(1);
                    // The first byte is not of the length.
                    *length = if *seen == 0 { 0 } else { (*length << 8) | byte };
                    *seen += 1;
                    if *seen == HEADER_BYTES {
                        let length = *length;
                        self.announced(length)?;
                    }
                }
                Progress::Message { missing } => {
                    let here = bytes.len().min(*missing);
                    bytes.advance(here);
                    *missing -= here;
                    if *missing == 0 {
                        self.progress = Progress::Done;
                    }
                }
                Progress::Done => {
                    return Err(RpcError::invalid_argument("the request has more than one message; send one").into());
                }
            }
        }
        Ok(())
    }

    fn announced(&mut self, length: usize) -> Result<(), Status> {
        if length <= self.message_bytes_max {
            let taken = self.budget.take_bytes(self.kind, length)?;
            self.held.lock().unwrap_or_else(PoisonError::into_inner).push(taken);
            let slow = Duration::from_secs((length / ARRIVAL_BYTES_PER_SECOND) as u64);
            self.until += slow;
            self.waiting = None;
        }
        self.progress = if length == 0 { Progress::Done } else { Progress::Message { missing: length } };
        Ok(())
    }
}

struct CountedBody {
    inner: Body,
    counted: Counted,
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let frame = match Pin::new(&mut this.inner).poll_frame(context) {
            Poll::Pending => {
                let until = this.counted.until;
                let waiting = this.counted.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
                ready!(waiting.poll_unpin(context));
                let late = "the request did not arrive in time; nothing was done";
                return Poll::Ready(Some(Err(Status::deadline_exceeded(late))));
            }
            Poll::Ready(frame) => frame,
        };
        Poll::Ready(match frame {
            Some(Ok(frame)) => match frame.data_ref().map_or(Ok(()), |data| this.counted.look(data)) {
                Ok(()) => Some(Ok(frame)),
                Err(refusal) => Some(Err(refusal)),
            },
            other => other,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
