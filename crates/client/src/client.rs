//! The calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Request, Status};
use understudy_rpc::v1;
use understudy_rpc::v1::kv_client::KvClient;
use understudy_types::Position;

use crate::classify::{Next, classify, describe};
use crate::commit::{Commit, CommitOutcome, check_key, commit_error};
use crate::error::ClientError;
use crate::locate::{self, Locator};
use crate::nodes::Nodes;
use crate::options::Options;
use crate::route::{Failure, route};
use crate::scan::{Scan, ScanStream};

/// Between two rounds over the endpoints of an eventual read that none of them answered.
const EVENTUAL_PAUSE: Duration = Duration::from_millis(50);

/// A handle on a cluster. Clones share connections and what is known about the primary.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    locator: Arc<Locator>,
    options: Options,
    /// Where the next eventual read goes.
    turn: AtomicUsize,
    task: JoinHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A value and the commit that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The value.
    pub value: Bytes,
    /// What [`Commit::if_version`] takes.
    pub version: Position,
}

/// What a read found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// None when there is no such key.
    pub found: Option<Versioned>,
    /// The position that was read.
    pub position: Position,
}

/// What one node answered.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeAnswer<T> {
    /// Who was asked.
    pub address: String,
    /// Its answer, or why there is none.
    pub answer: Result<T, String>,
}

impl Client {
    /// A client of the cluster that the nodes at `endpoints` (`host:port`) belong to. One is enough to find the others;
    /// more survive the loss of one. Returns at once: connections are made when they are needed, and a cluster that is
    /// down shows with the first call.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] for a malformed endpoint, or none.
    ///
    /// ```no_run
    /// # use understudy_client::{Client, ClientError, Options};
    /// # async fn example() -> Result<(), ClientError> {
    /// let client = Client::connect(["127.0.0.1:7400"], Options::default()).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect<E>(endpoints: E, options: Options) -> Result<Self, ClientError>
    where
        E: IntoIterator,
        E::Item: Into<String>,
    {
        let endpoints: Vec<String> = endpoints.into_iter().map(Into::into).collect();
        let locator = Arc::new(Locator::new(Nodes::new(&endpoints, &options)?));
        let task = tokio::spawn(locate::run(Arc::clone(&locator)));
        Ok(Self { inner: Arc::new(Inner { locator, options, turn: AtomicUsize::new(0), task }) })
    }

    /// Reads one key at the primary: sees every commit that was acknowledged at level `on` before this call.
    ///
    /// # Errors
    /// [`ClientError::Unavailable`] at the deadline, [`ClientError::Invalid`] for a key out of bounds.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Read, ClientError> {
        let request = get_request(key.into(), v1::Consistency::Linearizable)?;
        let answer = self.at_primary(self.inner.options.deadline, move |kv, left| get_from(kv, request.clone(), left));
        answer.await.map_err(read_error)
    }

    /// Reads one key as one of the given endpoints has it, in turn: possibly late, never undone.
    ///
    /// Only the endpoints given to [`Client::connect`] are asked: with a single one, its state is what is read.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn get_eventual(&self, key: impl Into<Bytes>) -> Result<Read, ClientError> {
        let request = get_request(key.into(), v1::Consistency::Eventual)?;
        self.anywhere(move |kv, left| get_from(kv, request.clone(), left)).await
    }

    /// Reads a range of keys in their order, at one position.
    ///
    /// ```no_run
    /// # use understudy_client::{Client, ClientError, Scan};
    /// # async fn example(client: Client) -> Result<(), ClientError> {
    /// let mut scan = client.scan(Scan::prefix("pkg/").limit(10)).await?;
    /// while let Some(entry) = scan.next().await {
    ///     println!("{:?}", entry?.key);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Client::get`], until the first entries have come; then [`ScanStream::next`] has them.
    pub async fn scan(&self, scan: Scan) -> Result<ScanStream, ClientError> {
        let request = scan.to_wire();
        let send = move |kv: KvClient<Channel>, left: Duration| scan_from(kv, request.clone(), left);
        match scan.eventual {
            true => self.anywhere(send).await,
            false => self.at_primary(self.inner.options.deadline, send).await.map_err(read_error),
        }
    }

    /// Sets `key` to `value` at level `on`.
    ///
    /// # Errors
    /// As [`Client::commit`].
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<CommitOutcome, ClientError> {
        self.commit(Commit::new().put(key, value)).await
    }

    /// Deletes `key` at level `on`, whether it is there or not.
    ///
    /// # Errors
    /// As [`Client::commit`].
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<CommitOutcome, ClientError> {
        self.commit(Commit::new().delete(key)).await
    }

    /// Makes a commit, and tries until its deadline: through lost connections, failovers and full queues, always with
    /// the same request id, so that it takes effect once.
    ///
    /// # Errors
    /// See [`ClientError`]. After [`ClientError::Unknown`], the same commit with the same request id tells the outcome.
    pub async fn commit(&self, commit: Commit) -> Result<CommitOutcome, ClientError> {
        commit.check()?;
        let request_id = commit.id();
        let deadline = commit.deadline_or(self.inner.options.deadline);
        let request = commit.into_wire();
        let answer = self.at_primary(deadline, move |kv, left| commit_at(kv, request.clone(), left)).await;
        answer
            .map(|response| CommitOutcome::from_wire(response, request_id))
            .map_err(|failure| commit_error(failure, request_id))
    }

    /// What every known node says about the cluster: the given endpoints, and the members that they name.
    pub async fn status(&self) -> Vec<NodeAnswer<v1::StatusResponse>> {
        let mut answers: Vec<NodeAnswer<v1::StatusResponse>> = Vec::new();
        loop {
            let known = self.inner.locator.nodes.addresses();
            let new = known.into_iter().filter(|address| !answers.iter().any(|answer| answer.address == *address));
            let round = join_all(new.map(|address| self.status_of(address))).await;
            if round.is_empty() {
                return answers;
            }
            answers.extend(round);
        }
    }

    async fn status_of(&self, address: String) -> NodeAnswer<v1::StatusResponse> {
        let nodes = &self.inner.locator.nodes;
        let answer = match nodes.cluster(&address) {
            Ok(mut client) => self.bounded(client.status(v1::StatusRequest {})).await,
            Err(error) => Err(error.to_string()),
        };
        if let Ok(status) = &answer {
            nodes.learn(status.generation, status.members.iter().map(|member| member.address.as_str()));
        }
        NodeAnswer { address, answer }
    }

    /// Every timeline of the cluster, as each given endpoint knows it.
    pub async fn history(&self) -> Vec<NodeAnswer<v1::HistoryResponse>> {
        let seeds = self.inner.locator.nodes.seeds().iter().cloned();
        join_all(seeds.map(|address| async move {
            let answer = match self.inner.locator.nodes.cluster(&address) {
                Ok(mut client) => self.bounded(client.history(v1::HistoryRequest {})).await,
                Err(error) => Err(error.to_string()),
            };
            NodeAnswer { address, answer }
        }))
        .await
    }

    async fn bounded<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, String> {
        let limit = self.inner.options.attempt_timeout;
        match timeout(limit, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(describe(&status)),
            Err(_) => Err(format!("no answer within {} ms", limit.as_millis())),
        }
    }

    async fn at_primary<T, F>(&self, deadline: Duration, send: F) -> Result<T, Failure>
    where
        F: Fn(KvClient<Channel>, Duration) -> BoxFuture<'static, Result<T, Status>>,
    {
        let Inner { locator, options, .. } = &*self.inner;
        route(locator, options.attempt_timeout, Instant::now() + deadline, send).await
    }

    /// A read that any of the given endpoints may answer: one after the other, until the deadline.
    async fn anywhere<T, F>(&self, send: F) -> Result<T, ClientError>
    where
        F: Fn(KvClient<Channel>, Duration) -> BoxFuture<'static, Result<T, Status>>,
    {
        let Inner { locator, options, turn, .. } = &*self.inner;
        let seeds = locator.nodes.seeds();
        let deadline = Instant::now() + options.deadline;
        loop {
            let mut why = String::new();
            for _ in seeds {
                let address = &seeds[turn.fetch_add(1, Ordering::Relaxed) % seeds.len()];
                let left = deadline.saturating_duration_since(Instant::now()).min(options.attempt_timeout);
                let answer = match locator.nodes.kv(address) {
                    Ok(client) => timeout(left, send(client, left)).await,
                    Err(error) => return Err(error.into()),
                };
                why = match answer {
                    Ok(Ok(value)) => return Ok(value),
                    Ok(Err(status)) => {
                        let failed = classify(&status);
                        if let Next::Reject(error) = failed.next {
                            return Err(ClientError::Invalid { message: error.message });
                        }
                        format!("{address}: {}", failed.why)
                    }
                    Err(_) => format!("{address} has not answered"),
                };
            }
            if Instant::now() + EVENTUAL_PAUSE >= deadline {
                return Err(ClientError::Unavailable { why });
            }
            sleep(EVENTUAL_PAUSE).await;
        }
    }
}

fn get_request(key: Bytes, consistency: v1::Consistency) -> Result<v1::GetRequest, ClientError> {
    check_key(&key).map_err(|error| ClientError::Invalid { message: error.message })?;
    Ok(v1::GetRequest { key, consistency: consistency.into() })
}

fn within<T>(message: T, left: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(left);
    crate::trace::inject(request.metadata_mut());
    request
}

fn get_from(
    mut kv: KvClient<Channel>,
    request: v1::GetRequest,
    left: Duration,
) -> BoxFuture<'static, Result<Read, Status>> {
    async move {
        let response = kv.get(within(request, left)).await?.into_inner();
        let version = response.version.map(Position::from).unwrap_or_default();
        let found = response.value.map(|value| Versioned { value, version });
        Ok(Read { found, position: response.read_position.map(Position::from).unwrap_or_default() })
    }
    .boxed()
}

fn scan_from(
    mut kv: KvClient<Channel>,
    request: v1::ScanRequest,
    left: Duration,
) -> BoxFuture<'static, Result<ScanStream, Status>> {
    async move { ScanStream::begin(kv.scan(within(request, left)).await?.into_inner()).await }.boxed()
}

fn commit_at(
    mut kv: KvClient<Channel>,
    request: v1::CommitRequest,
    left: Duration,
) -> BoxFuture<'static, Result<v1::CommitResponse, Status>> {
    async move {
        let response = kv.commit(within(request, left)).await?.into_inner();
        match response.position {
            Some(_) => Ok(response),
            None => Err(Status::internal("the node acknowledged the commit without its position")),
        }
    }
    .boxed()
}

fn read_error(failure: Failure) -> ClientError {
    match failure.rejected {
        Some(error) => ClientError::Invalid { message: error.message },
        None => ClientError::Unavailable { why: failure.why },
    }
}
