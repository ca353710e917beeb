//! The `Kv` service: the shell between the wire and the engine.
//!
//! A linearizable read notes what is visible, has a majority confirm that this node is still the primary, and only
//! then answers from what it noted (INV-LINEAR). A failed precondition rests on the same claim and takes the same
//! way: a deposed primary must not say what its data no longer decides (INV-VISIBLE).

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use understudy_engine::{
    Commit, CommitError, Condition, Engine, InvalidCommit, Precondition, TraceContext, UnknownReason,
};
use understudy_rpc::error::{RpcError, UnknownWhy};
use understudy_rpc::{convert, v1};
use understudy_store::{KeyRange, PageLimit};
use understudy_types::{Position, TimelineId, limits};
use understudy_wal::Op;

use crate::confirmer::{Confirmer, Unconfirmed};
use crate::telemetry::Telemetry;
use crate::view::NodeView;

/// A commit without a deadline of its own waits this long for the sync standbys.
const COMMIT_DEADLINE: Duration = Duration::from_secs(30);
/// A linearizable read without a deadline of its own waits this long for a majority.
const CONFIRM_DEADLINE: Duration = Duration::from_secs(10);
/// Pages of a scan that wait for a client that reads slowly.
const SCAN_PAGES_QUEUED_MAX: usize = 2;
/// Entries in one message of a scan.
const SCAN_PAGE_ENTRIES_MAX: usize = 1_000;
/// Keys and values in one message of a scan, in bytes; one entry may go beyond.
const SCAN_PAGE_BYTES_MAX: usize = 256 << 10;

/// The `Kv` service of one node.
pub struct KvService {
    view: watch::Receiver<NodeView>,
    confirmer: Confirmer,
    telemetry: Telemetry,
}

/// Where a read stands.
struct ReadPoint {
    engine: Engine,
    position: Position,
}

impl KvService {
    /// Over what the agent publishes.
    pub fn new(view: watch::Receiver<NodeView>, confirmer: Confirmer, telemetry: Telemetry) -> Self {
        Self { view, confirmer, telemetry }
    }

    fn engine(&self, asked: &str) -> Result<Engine, RpcError> {
        let view = self.view.borrow();
        match &view.engine {
            Some(engine) => Ok(engine.clone()),
            None => Err(RpcError::not_ready(asked, &view.no_primary_reason())),
        }
    }

    /// The engine, if this node is the primary, and the timeline that it opened.
    fn primary(&self, asked: &str) -> Result<(Engine, TimelineId), RpcError> {
        let engine = self.engine(asked)?;
        match engine.is_primary() {
            Some(timeline) => Ok((engine, timeline)),
            None => Err(self.refuse(asked)),
        }
    }

    fn refuse(&self, asked: &str) -> RpcError {
        let view = self.view.borrow();
        match view.primary() {
            Some((id, name, address)) if id != view.me => RpcError::not_primary(asked, name, address),
            Some(_) if view.primary_of.is_some() => RpcError::no_primary(asked, "this node is giving its timeline up"),
            Some(_) => RpcError::no_primary(asked, "this node was promoted and has not opened its timeline"),
            None => RpcError::no_primary(asked, &view.no_primary_reason()),
        }
    }

    async fn read_point(
        &self,
        asked: &str,
        consistency: v1::Consistency,
        deadline: Instant,
    ) -> Result<ReadPoint, RpcError> {
        match consistency {
            v1::Consistency::Eventual => {
                let engine = self.engine(asked)?;
                let position = *engine.visible().borrow();
                Ok(ReadPoint { engine, position })
            }
            v1::Consistency::Linearizable | v1::Consistency::Unspecified => {
                let (engine, timeline) = self.primary(asked)?;
                // Noted before the round begins: whatever was acknowledged before this read is in it.
                let position = *engine.visible().borrow();
                self.confirm(asked, timeline, deadline).await?;
                Ok(ReadPoint { engine, position })
            }
        }
    }

    async fn confirm(&self, asked: &str, timeline: TimelineId, deadline: Instant) -> Result<(), RpcError> {
        match tokio::time::timeout_at(deadline, self.confirmer.confirm(timeline)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Unconfirmed::NotPrimary(_))) => Err(self.refuse(asked)),
            Ok(Err(error @ Unconfirmed::TooManyWait)) => Err(RpcError::not_confirmed(asked, &error.to_string())),
            Err(_) => Err(RpcError::not_confirmed(asked, "too few voters answered before the deadline")),
        }
    }

    async fn commit_error(&self, error: CommitError, asked: &Asked, deadline: Instant) -> RpcError {
        match error {
            CommitError::NotPrimary => self.refuse("a commit"),
            CommitError::PreconditionFailed { index, key } => {
                match self.confirm("a commit", asked.timeline, deadline).await {
                    Ok(()) => {
                        let required = asked.required.get(index).map_or("what was asked", String::as_str);
                        RpcError::precondition_failed(&key, required, "something else")
                    }
                    Err(error) => error,
                }
            }
            CommitError::QueueFull { bytes_max, .. } => {
                RpcError::queue_full(usize::try_from(bytes_max).unwrap_or(usize::MAX))
            }
            CommitError::Invalid(error) => invalid(&error),
            error @ CommitError::NotDecided { .. } => RpcError::not_ready("a commit", &error.to_string()),
            CommitError::Unknown { position, why } => {
                let why = match why {
                    UnknownReason::Deadline => UnknownWhy::Deadline,
                    UnknownReason::StepDown => UnknownWhy::StepDown,
                    UnknownReason::Stopping | UnknownReason::Failed => UnknownWhy::Stopping,
                };
                RpcError::commit_outcome_unknown(position, why)
            }
        }
    }
}

/// What is remembered of a commit for the answer.
struct Asked {
    timeline: TimelineId,
    /// The conditions, for people, in the order of the preconditions.
    required: Vec<String>,
}

fn describe(condition: &Condition) -> String {
    match condition {
        Condition::Absent => "no value".to_owned(),
        Condition::Present => "a value".to_owned(),
        Condition::ValueEquals(value) => format!("a certain value of {} bytes", value.len()),
        Condition::VersionEquals(version) => format!("version {version}"),
    }
}

/// Limits of the engine, in the words of the wire.
fn invalid(error: &InvalidCommit) -> RpcError {
    let small = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    match error {
        InvalidCommit::EmptyKey => RpcError::invalid_argument("a key is empty; a key has 1 byte to 16 KiB"),
        InvalidCommit::KeyTooLong { bytes } => {
            RpcError::limit_exceeded("a key", *bytes, limits::KEY_BYTES_MAX, "bytes")
        }
        InvalidCommit::ValueTooLong { bytes } => {
            RpcError::limit_exceeded("a value", *bytes, limits::VALUE_BYTES_MAX, "bytes")
        }
        InvalidCommit::TooManyOperations { count } => RpcError::limit_exceeded(
            "the commit",
            *count,
            limits::COMMIT_OPERATIONS_MAX,
            "operations and preconditions",
        ),
        InvalidCommit::TooLarge { bytes, bytes_max } => {
            RpcError::limit_exceeded("the commit", small(*bytes), small(*bytes_max), "bytes of keys and values")
        }
    }
}

/// What is left of a caller's time for the answer to reach it: the transport cuts the call off at its deadline, and
/// "the outcome is unknown, here is the position" should come before that.
const ANSWER_MARGIN: Duration = Duration::from_millis(20);

/// When to stop waiting, from the caller's `grpc-timeout`; `default` where it gives none or a later one.
fn deadline<T>(request: &Request<T>, default: Duration) -> Instant {
    let given = request.metadata().get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(parse_timeout);
    Instant::now() + given.map_or(default, |given| given.saturating_sub(ANSWER_MARGIN.min(given / 10)).min(default))
}

/// gRPC's `grpc-timeout`: at most 8 digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let fits = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    let number: u64 = digits.parse().ok().filter(|_| fits)?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

fn check_key(key: &[u8]) -> Result<(), RpcError> {
    if key.is_empty() {
        return Err(RpcError::invalid_argument("the key is empty; a key has 1 byte to 16 KiB"));
    }
    if key.len() > limits::KEY_BYTES_MAX {
        return Err(RpcError::limit_exceeded("the key", key.len(), limits::KEY_BYTES_MAX, "bytes"));
    }
    Ok(())
}

fn operation(operation: v1::Operation) -> Result<Op, RpcError> {
    match operation.operation {
        Some(v1::operation::Operation::Put(v1::Put { key, value })) => Ok(Op::Put { key, value }),
        Some(v1::operation::Operation::Delete(v1::Delete { key })) => Ok(Op::Delete { key }),
        None => {
            Err(RpcError::invalid_argument("an operation of the commit is neither put nor delete; set one of them"))
        }
    }
}

fn precondition(precondition: v1::Precondition) -> Result<Precondition, RpcError> {
    use v1::precondition::Condition as Wire;
    let condition = match precondition.condition {
        Some(Wire::Absent(_)) => Condition::Absent,
        Some(Wire::Present(_)) => Condition::Present,
        Some(Wire::ValueEquals(value)) => Condition::ValueEquals(value),
        Some(Wire::VersionEquals(version)) => Condition::VersionEquals(version.into()),
        None => {
            return Err(RpcError::invalid_argument(
                "a precondition of the commit has no condition; set absent, present, value_equals or version_equals",
            ));
        }
    };
    Ok(Precondition { key: precondition.key, condition })
}

/// The commit that a request means. Sizes are the engine's to check.
fn commit(request: v1::CommitRequest) -> Result<Commit, RpcError> {
    if request.operations.is_empty() {
        return Err(RpcError::invalid_argument("the commit has no operations; to check a key, read it"));
    }
    Ok(Commit {
        request_id: convert::request_id(&request.request_id)?,
        level: convert::durability(request.durability)?,
        ops: request.operations.into_iter().map(operation).collect::<Result<_, _>>()?,
        preconditions: request.preconditions.into_iter().map(precondition).collect::<Result<_, _>>()?,
        trace: None,
    })
}

/// The store's reads may touch the disk: they run beside the async threads' work, not in it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, understudy_engine::ReadError> + Send + 'static,
) -> Result<T, RpcError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(RpcError::internal(format!("the store of this node cannot be read: {error}"))),
        Err(_) => Err(RpcError::internal("the read was broken off: the node stops")),
    }
}

/// Reads page after page until the range, the limit or the client ends.
async fn pages(point: ReadPoint, request: v1::ScanRequest, out: mpsc::Sender<Result<v1::ScanResponse, Status>>) {
    let mut next = request.start.clone();
    let end: Option<Bytes> = (!request.end.is_empty()).then(|| request.end.clone());
    let mut left = if request.limit == 0 { u64::MAX } else { request.limit };
    let read_position = Some(point.position.into());
    let mut first = true;
    while left > 0 {
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(SCAN_PAGE_ENTRIES_MAX);
        let (engine, at) = (point.engine.clone(), point.position.lsn);
        let range = KeyRange { start: next.clone(), end: end.clone() };
        let limit = PageLimit { entries_max: count, bytes_max: SCAN_PAGE_BYTES_MAX };
        let page = match blocking(move || engine.scan(&range, at, limit)).await {
            Ok(page) => page,
            Err(error) => {
                if out.send(Err(error.into())).await.is_err() {
                    tracing::debug!("the client of a failed scan is gone");
                }
                return;
            }
        };
        left -= page.entries.len() as u64;
        let entries: Vec<v1::Entry> = page
            .entries
            .into_iter()
            .map(|entry| v1::Entry { key: entry.key, value: entry.value, version: Some(entry.version.into()) })
            .collect();
        // An empty range still says at which position it is empty; a page without entries in between says nothing.
        let say = first || !entries.is_empty();
        first = false;
        if say && out.send(Ok(v1::ScanResponse { entries, read_position })).await.is_err() {
            return;
        }
        match page.next {
            Some(key) => next = key,
            None => return,
        }
    }
}

#[tonic::async_trait]
impl v1::kv_server::Kv for KvService {
    type ScanStream = Pin<Box<dyn Stream<Item = Result<v1::ScanResponse, Status>> + Send>>;

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let deadline = deadline(&request, CONFIRM_DEADLINE);
        let request = request.into_inner();
        check_key(&request.key)?;
        let consistency = convert::consistency(request.consistency)?;
        let _timed = self.telemetry.read(consistency);
        let point = self.read_point("the read", consistency, deadline).await?;
        let (engine, key, at) = (point.engine, request.key, point.position.lsn);
        let found = blocking(move || engine.get(&key, at)).await?;
        let read_position = Some(point.position.into());
        let response = match found {
            Some(found) => {
                v1::GetResponse { value: Some(found.value), version: Some(found.version.into()), read_position }
            }
            None => v1::GetResponse { value: None, version: None, read_position },
        };
        Ok(Response::new(response))
    }

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let deadline = deadline(&request, CONFIRM_DEADLINE);
        let request = request.into_inner();
        for key in [&request.start, &request.end] {
            if !key.is_empty() {
                check_key(key)?;
            }
        }
        let consistency = convert::consistency(request.consistency)?;
        let _timed = self.telemetry.read(consistency);
        let point = self.read_point("the scan", consistency, deadline).await?;
        let (out, queued) = mpsc::channel(SCAN_PAGES_QUEUED_MAX);
        tokio::spawn(pages(point, request, out));
        Ok(Response::new(Box::pin(ReceiverStream::new(queued))))
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Result<Response<v1::CommitResponse>, Status> {
        let span = self.telemetry.commit_span(request.metadata());
        let deadline = deadline(&request, COMMIT_DEADLINE);
        let outcome = self.commit_traced(request.into_inner(), deadline, span.trace()).await;
        span.end(&outcome);
        outcome
    }
}

impl KvService {
    async fn commit_traced(
        &self,
        request: v1::CommitRequest,
        deadline: Instant,
        trace: Option<TraceContext>,
    ) -> Result<Response<v1::CommitResponse>, Status> {
        let commit = Commit { trace, ..commit(request)? };
        let (engine, timeline) = self.primary("a commit")?;
        let required = commit.preconditions.iter().map(|precondition| describe(&precondition.condition)).collect();
        let asked = Asked { timeline, required };
        match engine.commit(commit, deadline).await {
            Ok(committed) => Ok(Response::new(v1::CommitResponse {
                position: Some(committed.position.into()),
                already_done: committed.already_done,
                node_id: self.view.borrow().me.to_string(),
            })),
            Err(error) => Err(self.commit_error(error, &asked, deadline).await.into()),
        }
    }
}

#[cfg(test)]
#[path = "kv_tests.rs"]
mod tests;
