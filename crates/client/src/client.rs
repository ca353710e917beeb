//! The calls.

mod settings;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tonic::transport::Channel;
use tonic::{Request, Status};
use understudy_rpc::v1;
use understudy_rpc::v1::kv_client::KvClient;
use understudy_types::{Position, SessionToken};

use crate::classify::describe;
use crate::commit::{Commit, CommitOutcome, check_key, commit_error};
use crate::error::ClientError;
use crate::locate::{self, Locator};
use crate::nodes::Nodes;
use crate::options::Options;
use crate::read::{ReadOptions, ReadPreference, token_of};
use crate::route::{Failure, route};
use crate::scan::{Scan, ScanStream};
use crate::session::Session;
use crate::spread::Spread;

/// A handle on a cluster. Clones share connections and what is known about the primary.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    locator: Arc<Locator>,
    options: Options,
    spread: Arc<Spread>,
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
    /// Stands for that position: a later read that carries it sees no less. None from a node that sends none.
    pub token: Option<SessionToken>,
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
        Ok(Self { inner: Arc::new(Inner { locator, options, spread: Arc::default(), task }) })
    }

    /// A session: its reads see its own commits, and never less than they have seen before, whatever node answers.
    pub fn session(&self) -> Session {
        Session::new(self.clone())
    }

    /// Reads one key at the primary: sees every commit that was acknowledged at level `on` or
    /// `remote_apply` before this call.
    ///
    /// # Errors
    /// [`ClientError::Unavailable`] at the deadline, [`ClientError::Invalid`] for a key out of bounds.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Read, ClientError> {
        self.read(key, ReadOptions::linearizable()).await
    }

    /// Reads one key as one of the given endpoints has it, in turn: possibly late, never undone.
    ///
    /// Only the endpoints given to [`Client::connect`] are asked: with a single one, its state is what is read.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn get_eventual(&self, key: impl Into<Bytes>) -> Result<Read, ClientError> {
        self.read(key, ReadOptions::eventual().preference(ReadPreference::Endpoints)).await
    }

    /// Reads one key, as consistent, as fresh and by whom `options` says.
    ///
    /// # Errors
    /// As [`Client::get`]; [`ClientError::Abandoned`] when a failover lost what a token or a position stands for,
    /// [`ClientError::Invalid`] for a position that no history is kept of any more.
    pub async fn read(&self, key: impl Into<Bytes>, options: ReadOptions) -> Result<Read, ClientError> {
        let request = get_request(key.into(), &options)?;
        let send = move |kv: KvClient<Channel>, left: Duration| get_from(kv, request.clone(), left);
        match options.is_primarys() {
            true => self.at_primary(self.inner.options.deadline, send).await.map_err(read_error),
            false => self.anywhere(options.preference, send).await,
        }
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
        match scan.options.is_primarys() {
            true => self.at_primary(self.inner.options.deadline, send).await.map_err(read_error),
            false => self.anywhere(scan.options.preference, send).await,
        }
    }

    /// Sets `key` to `value`.
    ///
    /// # Errors
    /// As [`Client::commit`].
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<CommitOutcome, ClientError> {
        self.commit(Commit::new().put(key, value)).await
    }

    /// Deletes `key`, whether it is there or not.
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
        let request = commit.into_wire(self.inner.options.durability);
        let answer = self.at_primary(deadline, move |kv, left| commit_at(kv, request.clone(), left)).await;
        answer
            .map(|response| CommitOutcome::from_wire(response, request_id))
            .map_err(|failure| commit_error(failure, request_id))
    }

    /// What every known node says about the cluster: the given endpoints, and the members that they name. A member that has
    /// answered is not asked again at the address by which the others know it, which may not lead there from here.
    pub async fn status(&self) -> Vec<NodeAnswer<v1::StatusResponse>> {
        let mut answers: Vec<NodeAnswer<v1::StatusResponse>> = Vec::new();
        loop {
            let known = self.inner.locator.nodes.addresses();
            let new = known.into_iter().filter(|address| !is_answered(&answers, address));
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

    /// Gives the name of a member that lost its data directory to the empty node that came up at its address, or at
    /// `address`. Any node takes it: the given endpoints are asked one after the other, until one answers.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] when it cannot be done as things are; [`ClientError::Unavailable`] when nobody took it.
    pub async fn replace_member(
        &self,
        name: impl Into<String>,
        address: Option<String>,
    ) -> Result<v1::ReplaceMemberResponse, ClientError> {
        let request = v1::ReplaceMemberRequest { name: name.into(), address: address.unwrap_or_default() };
        let mut why = String::new();
        for endpoint in self.inner.locator.nodes.addresses() {
            let mut cluster = self.inner.locator.nodes.cluster(&endpoint)?;
            match timeout(self.inner.options.deadline, cluster.replace_member(request.clone())).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) if status.code() == tonic::Code::InvalidArgument => {
                    return Err(ClientError::Invalid { message: status.message().to_owned() });
                }
                Ok(Err(status)) => why = format!("{endpoint}: {}", describe(&status)),
                Err(_) => why = format!("{endpoint} has not answered"),
            }
        }
        Err(ClientError::Unavailable { why })
    }

    async fn bounded<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, String> {
        let limit = self.inner.options.attempt_timeout;
        match timeout(limit, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(describe(&status)),
            Err(_) => Err(format!("no answer within {} ms", limit.as_millis())),
        }
    }

    pub(crate) fn options(&self) -> &Options {
        &self.inner.options
    }

    pub(crate) fn nodes(&self) -> &Nodes {
        &self.inner.locator.nodes
    }

    pub(crate) async fn at_primary<T, F>(&self, deadline: Duration, send: F) -> Result<T, Failure>
    where
        F: Fn(KvClient<Channel>, Duration) -> BoxFuture<'static, Result<T, Status>>,
    {
        let Inner { locator, options, .. } = &*self.inner;
        route(locator, options.attempt_timeout, Instant::now() + deadline, send).await
    }

    /// A read that others than the primary may answer.
    async fn anywhere<T, F>(&self, preference: ReadPreference, send: F) -> Result<T, ClientError>
    where
        F: Fn(KvClient<Channel>, Duration) -> BoxFuture<'static, Result<T, Status>>,
    {
        let Inner { locator, options, spread, .. } = &*self.inner;
        spread.read(locator, options, preference, send).await
    }
}

/// Whether who stands at `address` is among those that answered.
fn is_answered(answers: &[NodeAnswer<v1::StatusResponse>], address: &str) -> bool {
    let said = || answers.iter().filter_map(|answer| answer.answer.as_ref().ok());
    let at = said().flat_map(|status| &status.members).find(|member| member.address == address);
    let has_answered = |member: &v1::MemberStatus| said().any(|status| status.answered_by == member.name);
    answers.iter().any(|answer| answer.address == address) || at.is_some_and(has_answered)
}

fn get_request(key: Bytes, options: &ReadOptions) -> Result<v1::GetRequest, ClientError> {
    check_key(&key).map_err(|error| ClientError::Invalid { message: error.message })?;
    Ok(v1::GetRequest {
        key,
        consistency: options.consistency_number(),
        token: options.token_bytes(),
        at: options.position(),
        max_staleness_ms: options.max_staleness_ms(),
    })
}

pub(crate) fn within<T>(message: T, left: Duration) -> Request<T> {
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
        let position = response.read_position.map(Position::from).unwrap_or_default();
        Ok(Read { found, position, token: token_of(&response.token) })
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
        Some(error) => ClientError::refused(error),
        None => ClientError::Unavailable { why: failure.why },
    }
}
