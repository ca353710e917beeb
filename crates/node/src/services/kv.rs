//! The `Kv` service: the shell between the wire and the engine.
//!
//! Where a read stands is decided in `reads`, before anything is read. A failed precondition rests on this node being
//! the primary as a linearizable read does, and takes the same way: a deposed primary must not say what its data no
//! longer decides (INV-VISIBLE).

use std::time::Duration;

use tokio::time::Instant;
use tonic::{Request, Response, Status};
use understudy_engine::{
    Commit, CommitError, Committed, Condition, InvalidCommit, Precondition, ReadError, TraceContext, UnknownReason,
};
use understudy_rpc::error::{RpcError, UnknownWhy};
use understudy_rpc::{convert, v1};
use understudy_types::{DurabilityLevel, Position, SessionToken, TimelineId, limits};
use understudy_wal::Op;

use super::reads::{Reads, Wanted};
use super::scan::{self, Pages, Scans};
use crate::telemetry::Telemetry;
use crate::view::NodeView;

/// A read without a deadline of its own waits this long for a majority, a position or fresher data.
const READ_DEADLINE: Duration = Duration::from_secs(10);

/// The `Kv` service of one node.
pub struct KvService {
    reads: Reads,
    scans: Scans,
    telemetry: Telemetry,
}

impl KvService {
    /// Over what the agent publishes.
    pub fn new(reads: Reads, telemetry: Telemetry) -> Self {
        Self { reads, scans: Scans::default(), telemetry }
    }

    /// What a commit without a deadline of its own waits for the sync standbys.
    fn commit_deadline(&self) -> Duration {
        Duration::from_millis(self.reads.view().borrow().cluster.settings.commit_deadline_ms)
    }

    async fn commit_traced(
        &self,
        request: v1::CommitRequest,
        deadline: Instant,
        trace: Option<TraceContext>,
    ) -> Result<Response<v1::CommitResponse>, Status> {
        let default_level = self.reads.view().borrow().default_durability();
        let commit = Commit { trace, ..commit(request, default_level)? };
        let (engine, timeline) = self.reads.primary("a commit")?;
        let asked = Asked::new(timeline, &commit);
        match engine.commit(commit, deadline).await {
            Ok(done) => Ok(Response::new(committed(&self.reads.view().borrow(), done))),
            Err(error) => Err(self.commit_error(error, &asked, deadline).await.into()),
        }
    }

    async fn commit_error(&self, error: CommitError, asked: &Asked, deadline: Instant) -> RpcError {
        match error {
            // It rests on this node being the primary, as a read does.
            CommitError::PreconditionFailed { .. } => {
                match self.reads.confirm("a commit", asked.timeline, deadline).await {
                    Ok(()) => self.told(error, asked),
                    Err(error) => error,
                }
            }
            CommitError::NotPrimary
            | CommitError::QueueFull { .. }
            | CommitError::Invalid(_)
            | CommitError::NotDecided { .. }
            | CommitError::Unknown { .. } => self.told(error, asked),
        }
    }

    /// In the words of the wire.
    fn told(&self, error: CommitError, asked: &Asked) -> RpcError {
        match error {
            CommitError::NotPrimary => self.reads.refuse("a commit"),
            CommitError::PreconditionFailed { index, key, found } => {
                let required = asked.required.get(index).map_or("what was asked", String::as_str);
                RpcError::precondition_failed(&key, required, &describe_found(found))
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
                    UnknownReason::Cancelled => UnknownWhy::Cancelled,
                };
                RpcError::commit_outcome_unknown(position, why)
            }
        }
    }

    /// Each commit of a batch with its own result. What is malformed in one of them is that one's alone.
    async fn batch(&self, requests: Vec<v1::CommitRequest>, deadline: Instant) -> Result<Vec<BatchResult>, RpcError> {
        check_batch(&requests)?;
        let (engine, timeline) = self.reads.primary("a commit")?;
        let default_level = self.reads.view().borrow().default_durability();
        let mut commits = Vec::with_capacity(requests.len());
        let asked: Vec<Result<Asked, RpcError>> = requests
            .into_iter()
            .map(|request| {
                let commit = commit(request, default_level)?;
                let asked = Asked::new(timeline, &commit);
                commits.push(commit);
                Ok(asked)
            })
            .collect();
        let mut outcomes = engine.commit_batch(commits, deadline).await.into_iter();
        let mut confirmed: Option<Result<(), RpcError>> = None;
        let mut results = Vec::with_capacity(asked.len());
        for asked in asked {
            let asked = match asked {
                Ok(asked) => asked,
                // It was not handed to the engine: the next outcome is the next commit's.
                Err(error) => {
                    results.push(Err(error));
                    continue;
                }
            };
            let outcome = outcomes.next().unwrap_or(Err(CommitError::NotPrimary));
            let needs_round = matches!(outcome, Err(CommitError::PreconditionFailed { .. }));
            if needs_round && confirmed.is_none() {
                // One round for all of them: they were decided before it began.
                confirmed = Some(self.reads.confirm("a commit", timeline, deadline).await);
            }
            results.push(match (outcome, &confirmed) {
                (Ok(committed), _) => Ok(committed),
                (Err(_), Some(Err(unconfirmed))) if needs_round => Err(unconfirmed.clone()),
                (Err(error), _) => Err(self.told(error, &asked)),
            });
        }
        Ok(results)
    }
}

/// The answer to a commit that was acknowledged. The view is an argument, so that it is looked at once: whoever holds it and looks
/// again waits for ever for an agent that waits to publish the next one.
fn committed(view: &NodeView, committed: Committed) -> v1::CommitResponse {
    let token = SessionToken::new(view.cluster.system_id, committed.position);
    v1::CommitResponse {
        position: Some(committed.position.into()),
        already_done: committed.already_done,
        node_id: view.me.to_string(),
        token: convert::token_bytes(token),
        node_name: view.cluster.name_of(view.me),
    }
}

type BatchResult = Result<Committed, RpcError>;

/// What is remembered of a commit for the answer.
struct Asked {
    timeline: TimelineId,
    /// The conditions, for people, in the order of the preconditions.
    required: Vec<String>,
}

impl Asked {
    fn new(timeline: TimelineId, commit: &Commit) -> Self {
        let required = commit.preconditions.iter().map(|precondition| describe(&precondition.condition)).collect();
        Self { timeline, required }
    }
}

/// What stood in the way of a precondition: the version of the value, or that there is none.
fn describe_found(found: Option<Position>) -> String {
    found.map_or_else(|| "no value".to_owned(), |version| format!("version {version}"))
}

/// The bounds of a whole batch; those of each commit are looked at one by one.
fn check_batch(requests: &[v1::CommitRequest]) -> Result<(), RpcError> {
    if requests.is_empty() {
        return Err(RpcError::invalid_argument("the batch has no commits; give at least one"));
    }
    if requests.len() > limits::BATCH_COMMITS_MAX {
        return Err(RpcError::limit_exceeded("the batch", requests.len(), limits::BATCH_COMMITS_MAX, "commits"));
    }
    let bytes: usize = requests.iter().map(batch_bytes).sum();
    if bytes > limits::COMMIT_BYTES_MAX {
        return Err(RpcError::limit_exceeded("the batch", bytes, limits::COMMIT_BYTES_MAX, "bytes of keys and values"));
    }
    Ok(())
}

fn batch_bytes(request: &v1::CommitRequest) -> usize {
    let operations = request.operations.iter().map(|operation| match &operation.operation {
        Some(v1::operation::Operation::Put(put)) => put.key.len() + put.value.len(),
        Some(v1::operation::Operation::Delete(delete)) => delete.key.len(),
        None => 0,
    });
    let preconditions = request.preconditions.iter().map(|precondition| match &precondition.condition {
        Some(v1::precondition::Condition::ValueEquals(value)) => precondition.key.len() + value.len(),
        Some(_) | None => precondition.key.len(),
    });
    operations.chain(preconditions).sum()
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
fn commit(request: v1::CommitRequest, default_level: DurabilityLevel) -> Result<Commit, RpcError> {
    if request.operations.is_empty() {
        return Err(RpcError::invalid_argument("the commit has no operations; to check a key, read it"));
    }
    Ok(Commit {
        request_id: convert::request_id(&request.request_id)?,
        level: convert::durability(request.durability)?.unwrap_or(default_level),
        ops: request.operations.into_iter().map(operation).collect::<Result<_, _>>()?,
        preconditions: request.preconditions.into_iter().map(precondition).collect::<Result<_, _>>()?,
        trace: None,
    })
}

/// The store's reads may touch the disk: they run beside the async threads' work, not in it.
pub(super) async fn blocking<T: Send + 'static>(
    asked: &str,
    position: Position,
    work: impl FnOnce() -> Result<T, ReadError> + Send + 'static,
) -> Result<T, RpcError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(read_error(asked, position, &error)),
        Err(_) => Err(RpcError::internal("the read was broken off: the node stops")),
    }
}

/// Why the engine did not answer, in the words of the wire.
fn read_error(asked: &str, position: Position, error: &ReadError) -> RpcError {
    match error {
        ReadError::NotVisible { visible, .. } => {
            RpcError::position_not_reached(asked, position, *visible, "its data was replaced meanwhile")
        }
        ReadError::BelowHorizon { horizon, .. } => RpcError::position_too_old(asked, position, *horizon),
        ReadError::Store(source) => {
            RpcError::internal(format!("the store of this node cannot be read: {error}: {source}"))
        }
    }
}

#[tonic::async_trait]
impl v1::kv_server::Kv for KvService {
    type ScanStream = Pages;

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let deadline = deadline(&request, READ_DEADLINE);
        let request = request.into_inner();
        check_key(&request.key)?;
        let wanted = Wanted::of(request.consistency, &request.token, request.at, request.max_staleness_ms)?;
        let _timed = self.telemetry.read(convert::consistency(request.consistency)?);
        let point = self.reads.point("the read", &wanted, deadline).await?;
        let (engine, key, at) = (point.engine, request.key, point.position.lsn);
        let found = blocking("the read", point.position, move || engine.get(&key, at)).await?;
        let (value, version) = match found {
            Some(found) => (Some(found.value), Some(found.version.into())),
            None => (None, None),
        };
        let token = convert::token_bytes(point.token);
        Ok(Response::new(v1::GetResponse { value, version, read_position: Some(point.position.into()), token }))
    }

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let deadline = deadline(&request, READ_DEADLINE);
        let request = request.into_inner();
        for key in [&request.start, &request.end] {
            if !key.is_empty() {
                check_key(key)?;
            }
        }
        let wanted = Wanted::of(request.consistency, &request.token, request.at, request.max_staleness_ms)?;
        let _timed = self.telemetry.read(convert::consistency(request.consistency)?);
        let place = self.scans.place("the scan")?;
        let point = self.reads.point("the scan", &wanted, deadline).await?;
        Ok(Response::new(scan::start(point, request, place, scan::IDLE_MAX)))
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Result<Response<v1::CommitResponse>, Status> {
        let span = self.telemetry.commit_span(request.metadata());
        let deadline = deadline(&request, self.commit_deadline());
        let outcome = self.commit_traced(request.into_inner(), deadline, span.trace()).await;
        span.end(&outcome);
        outcome
    }

    async fn commit_batch(
        &self,
        request: Request<v1::CommitBatchRequest>,
    ) -> Result<Response<v1::CommitBatchResponse>, Status> {
        let deadline = deadline(&request, self.commit_deadline());
        let results = self.batch(request.into_inner().commits, deadline).await?;
        let view = self.reads.view().borrow().clone();
        let results = results.into_iter().map(|result| {
            let result = match result {
                Ok(done) => v1::commit_result::Result::Committed(committed(&view, done)),
                Err(error) => v1::commit_result::Result::Failed(error.into()),
            };
            v1::CommitResult { result: Some(result) }
        });
        Ok(Response::new(v1::CommitBatchResponse { results: results.collect() }))
    }
}

#[cfg(test)]
#[path = "kv_tests.rs"]
mod tests;
