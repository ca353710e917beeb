//! A cluster as a client sees it: fake nodes that speak real gRPC on loopback and share one history.
//!
//! Each node runs in a runtime of its own, so that a kill closes its connections as a killed process does, and a
//! freeze leaves them open and silent.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};
use understudy_rpc::convert;
use understudy_rpc::error::RpcError;
use understudy_rpc::v1::{self, cluster_server, kv_server, operation, precondition};
use understudy_types::{SessionToken, SystemId};

/// What a node does with the next commit, instead of what it would.
pub enum Step {
    /// Refuses it, and does nothing.
    Refuse(RpcError),
    /// Carries it out, and then fails as a broken connection does.
    DoThenLose,
    /// Carries it out, and says that the outcome is unknown.
    DoThenUnknown(RpcError),
    /// Never answers.
    Hang,
}

#[derive(Default)]
struct World {
    primary: Option<usize>,
    timeline: u32,
    lsn: u64,
    /// Key to value and version.
    data: BTreeMap<Bytes, (Bytes, v1::Position)>,
    /// Request id to where it was done.
    done: BTreeMap<Bytes, v1::Position>,
    nodes: Vec<NodeState>,
    names: Vec<(String, String)>,
}

#[derive(Default)]
struct NodeState {
    steps: VecDeque<Step>,
    frozen: bool,
    /// It still believes this: that it is the primary of this timeline.
    stale: Option<u32>,
    /// It sees none of the others.
    cut_off: bool,
    /// How long an answer of its status takes.
    status_takes: Duration,
    scan_breaks_after: Option<usize>,
    /// What it answers the next reads with, instead of what it would.
    read_refusals: VecDeque<RpcError>,
    /// It is not a standby that streams.
    lags: bool,
    /// Reads are answered as of this LSN: it is so far behind.
    shows: Option<u64>,
    /// Of another cluster than the others.
    foreign: bool,
    /// What everybody says its address is, instead of what it is.
    advertised: Option<String>,
    commits: Vec<Bytes>,
    /// How often it was asked for its status.
    asked: usize,
    gets: usize,
    /// The requests of the reads, in their order.
    reads: Vec<v1::GetRequest>,
}

pub struct Cluster {
    world: Arc<Mutex<World>>,
    runtimes: Vec<Option<Runtime>>,
    /// How many status calls the nodes have had.
    pub asked: watch::Receiver<u64>,
}

/// An address behind which another one answers: a load balancer, or a forwarded port. A connection stays with the address that
/// was behind it when it was made. Must be made, and is served, in the runtime of the test.
pub struct Forwarder {
    address: String,
    /// Where new connections go; none: they are closed at once.
    to: Arc<Mutex<Option<String>>>,
    /// Each connection is served until this changes.
    reset: watch::Sender<()>,
}

impl Forwarder {
    pub async fn start(to: Option<String>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let (to, reset) = (Arc::new(Mutex::new(to)), watch::Sender::new(()));
        let (target, resets) = (Arc::clone(&to), reset.subscribe());
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let Some(to) = target.lock().expect("the target").clone() else { continue };
                let mut reset = resets.clone();
                reset.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(mut server) = tokio::net::TcpStream::connect(to).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        _ = reset.changed() => {}
                    }
                });
            }
        });
        Self { address, to, reset }
    }

    pub fn address(&self) -> String {
        self.address.clone()
    }

    /// Breaks the connections, and makes new ones to `address`.
    pub fn turn_to(&self, address: String) {
        *self.to.lock().expect("the target") = Some(address);
        self.reset.send_replace(());
    }
}

struct Node {
    me: usize,
    world: Arc<Mutex<World>>,
    asked: watch::Sender<u64>,
}

impl Cluster {
    /// `count` nodes; `primary` has opened timeline 1.
    pub fn start(count: usize, primary: Option<usize>) -> Self {
        let world = Arc::new(Mutex::new(World { primary, timeline: 1, lsn: 1 << 24, ..World::default() }));
        let (asked, asked_receiver) = watch::channel(0);
        let mut runtimes = Vec::new();
        for me in 0..count {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
            listener.set_nonblocking(true).expect("a socket");
            let address = listener.local_addr().expect("an address").to_string();
            {
                let mut world = world.lock().expect("the world");
                world.nodes.push(NodeState::default());
                world.names.push((format!("n{me}"), address));
            }
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
            let node = || Node { me, world: Arc::clone(&world), asked: asked.clone() };
            let server = tonic::transport::Server::builder()
                .add_service(kv_server::KvServer::new(node()))
                .add_service(cluster_server::ClusterServer::new(node()));
            runtime.spawn(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                server.serve_with_incoming(TcpListenerStream::new(listener)).await.expect("a server");
            });
            runtimes.push(Some(runtime));
        }
        Self { world, runtimes, asked: asked_receiver }
    }

    pub fn address(&self, node: usize) -> String {
        self.lock().names[node].1.clone()
    }

    pub fn addresses(&self) -> Vec<String> {
        self.lock().names.iter().map(|(_, address)| address.clone()).collect()
    }

    pub fn script(&self, node: usize, steps: impl IntoIterator<Item = Step>) {
        self.lock().nodes[node].steps.extend(steps);
    }

    /// `node` opens the next timeline.
    pub fn promote(&self, node: usize) {
        let mut world = self.lock();
        world.primary = Some(node);
        world.timeline += 1;
    }

    /// `node` goes on to say that it is the primary of the present timeline, whoever is promoted.
    pub fn misses_everything(&self, node: usize) {
        let mut world = self.lock();
        world.nodes[node].stale = Some(world.timeline);
    }

    /// `node` misses everything, and says that it sees none of the others. They say that it does not stream.
    pub fn cut_off(&self, node: usize) {
        self.misses_everything(node);
        self.lags(node);
        self.lock().nodes[node].cut_off = true;
    }

    /// An answer of the status of `node` takes so long.
    pub fn status_takes(&self, node: usize, time: Duration) {
        self.lock().nodes[node].status_takes = time;
    }

    pub fn freeze(&self, node: usize) {
        self.lock().nodes[node].frozen = true;
    }

    pub fn thaw(&self, node: usize) {
        self.lock().nodes[node].frozen = false;
    }

    pub fn kill(&mut self, node: usize) {
        if let Some(runtime) = self.runtimes[node].take() {
            runtime.shutdown_background();
        }
    }

    pub fn break_scans_after(&self, node: usize, messages: usize) {
        self.lock().nodes[node].scan_breaks_after = Some(messages);
    }

    /// The request ids of the commits that reached `node`, in their order.
    pub fn commits_at(&self, node: usize) -> Vec<Bytes> {
        self.lock().nodes[node].commits.clone()
    }

    /// How many status calls `node` has had.
    pub fn asked_at(&self, node: usize) -> usize {
        self.lock().nodes[node].asked
    }

    pub fn gets_at(&self, node: usize) -> usize {
        self.lock().nodes[node].gets
    }

    /// The reads that reached `node`.
    pub fn reads_at(&self, node: usize) -> Vec<v1::GetRequest> {
        self.lock().nodes[node].reads.clone()
    }

    /// `node` answers its next reads with these.
    pub fn refuse_reads(&self, node: usize, errors: impl IntoIterator<Item = RpcError>) {
        self.lock().nodes[node].read_refusals.extend(errors);
    }

    /// Everybody says that `node` does not stream.
    pub fn lags(&self, node: usize) {
        self.lock().nodes[node].lags = true;
    }

    /// `node` shows no more than what there is now.
    pub fn stands_still(&self, node: usize) {
        let mut world = self.lock();
        world.nodes[node].shows = Some(world.lsn);
    }

    /// `node` belongs to another cluster.
    pub fn is_foreign(&self, node: usize) {
        self.lock().nodes[node].foreign = true;
    }

    /// Everybody says that `node` is at `address`, as in a network of containers.
    pub fn advertises(&self, node: usize, address: &str) {
        self.lock().nodes[node].advertised = Some(address.to_owned());
    }

    /// How many commits took effect.
    pub fn done(&self) -> usize {
        self.lock().done.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, World> {
        self.world.lock().expect("the world")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for runtime in self.runtimes.drain(..).flatten() {
            runtime.shutdown_background();
        }
    }
}

impl World {
    fn is_primary(&self, node: usize) -> bool {
        self.primary == Some(node) || self.nodes[node].stale.is_some()
    }

    /// As everybody says it.
    fn advertised(&self, node: usize) -> String {
        self.nodes[node].advertised.clone().unwrap_or_else(|| self.names[node].1.clone())
    }

    fn refusal(&self, asked: &str) -> RpcError {
        match self.primary {
            Some(primary) => RpcError::not_primary(asked, &self.names[primary].0, &self.advertised(primary)),
            None => RpcError::no_primary(asked, "timeline 2 is being decided"),
        }
    }

    fn commit(&mut self, request: &v1::CommitRequest) -> Result<(v1::Position, bool), RpcError> {
        if let Some(position) = self.done.get(&request.request_id) {
            return Ok((*position, true));
        }
        for precondition in &request.preconditions {
            let found = self.data.contains_key(&precondition.key);
            let absent = matches!(precondition.condition, Some(precondition::Condition::Absent(_)));
            if absent == found {
                return Err(RpcError::precondition_failed(&precondition.key, "no value", "a value"));
            }
        }
        self.lsn += 100;
        let position = v1::Position { timeline: self.timeline, lsn: self.lsn };
        for operation in &request.operations {
            match operation.operation.clone().expect("an operation") {
                operation::Operation::Put(put) => drop(self.data.insert(put.key, (put.value, position))),
                operation::Operation::Delete(delete) => drop(self.data.remove(&delete.key)),
            }
        }
        self.done.insert(request.request_id.clone(), position);
        Ok((position, false))
    }
}

fn token_bytes(position: v1::Position) -> Bytes {
    convert::token_bytes(SessionToken::new(SystemId::new(0xaa), position.into()))
}

impl Node {
    /// The world, once this node is not frozen.
    async fn world(&self) -> std::sync::MutexGuard<'_, World> {
        if self.world.lock().expect("the world").nodes[self.me].frozen {
            std::future::pending::<()>().await;
        }
        self.world.lock().expect("the world")
    }
}

#[tonic::async_trait]
impl kv_server::Kv for Node {
    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let mut world = self.world().await;
        let request = request.into_inner();
        world.nodes[self.me].gets += 1;
        world.nodes[self.me].reads.push(request.clone());
        if let Some(error) = world.nodes[self.me].read_refusals.pop_front() {
            return Err(error.into());
        }
        let needs_primary = request.consistency < v1::Consistency::Eventual as i32;
        if needs_primary && !world.is_primary(self.me) {
            return Err(world.refusal("a linearizable read").into());
        }
        let position = v1::Position { timeline: world.timeline, lsn: world.nodes[self.me].shows.unwrap_or(world.lsn) };
        if let Some(token) = convert::token(&request.token)?
            && token.position > position.into()
        {
            let error = RpcError::position_not_reached("the read", token.position, position.into(), "it is behind");
            return Err(error.into());
        }
        let found = world.data.get(&request.key).filter(|(_, version)| version.lsn <= position.lsn).cloned();
        Ok(Response::new(v1::GetResponse {
            value: found.as_ref().map(|(value, _)| value.clone()),
            version: found.map(|(_, version)| version),
            read_position: Some(position),
            token: token_bytes(position),
        }))
    }

    type ScanStream = Pin<Box<dyn Stream<Item = Result<v1::ScanResponse, Status>> + Send>>;

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let world = self.world().await;
        let request = request.into_inner();
        if !world.is_primary(self.me) {
            return Err(world.refusal("a linearizable scan").into());
        }
        let position = v1::Position { timeline: world.timeline, lsn: world.lsn };
        let within = |key: &Bytes| *key >= request.start && (request.end.is_empty() || *key < request.end);
        let limit = if request.limit == 0 { usize::MAX } else { usize::try_from(request.limit).expect("small") };
        let mut messages: Vec<Result<v1::ScanResponse, Status>> = world
            .data
            .iter()
            .filter(|(key, _)| within(key))
            .take(limit)
            .map(|(key, (value, version))| v1::Entry {
                key: key.clone(),
                value: value.clone(),
                version: Some(*version),
            })
            .map(|entry| {
                Ok(v1::ScanResponse {
                    entries: vec![entry],
                    read_position: Some(position),
                    token: token_bytes(position),
                })
            })
            .collect();
        if let Some(count) = world.nodes[self.me].scan_breaks_after {
            messages.truncate(count);
            messages.push(Err(Status::unavailable("broken")));
        }
        Ok(Response::new(futures::stream::iter(messages).boxed()))
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Result<Response<v1::CommitResponse>, Status> {
        let step = {
            let mut world = self.world().await;
            let node = &mut world.nodes[self.me];
            node.commits.push(request.get_ref().request_id.clone());
            node.steps.pop_front()
        };
        let request = request.into_inner();
        match &step {
            Some(Step::Hang) => return std::future::pending().await,
            Some(Step::Refuse(error)) => return Err(error.clone().into()),
            Some(Step::DoThenLose | Step::DoThenUnknown(_)) | None => {}
        }
        let mut world = self.world().await;
        if !world.is_primary(self.me) {
            return Err(world.refusal("a commit").into());
        }
        let (position, already_done) = world.commit(&request)?;
        match step {
            Some(Step::DoThenLose) => Err(Status::unavailable("broken pipe")),
            Some(Step::DoThenUnknown(error)) => Err(error.into()),
            Some(Step::Hang | Step::Refuse(_)) | None => Ok(Response::new(v1::CommitResponse {
                position: Some(position),
                already_done,
                node_id: format!("{:016x}", self.me + 1),
                node_name: world.names[self.me].0.clone(),
                token: token_bytes(position),
            })),
        }
    }

    /// Each as it would be alone, but that a node that is not the primary refuses all of them together.
    async fn commit_batch(
        &self,
        request: Request<v1::CommitBatchRequest>,
    ) -> Result<Response<v1::CommitBatchResponse>, Status> {
        {
            let world = self.world().await;
            if !world.is_primary(self.me) {
                return Err(world.refusal("a commit").into());
            }
        }
        let mut results = Vec::new();
        for commit in request.into_inner().commits {
            let result = match self.commit(Request::new(commit)).await {
                Ok(committed) => v1::commit_result::Result::Committed(committed.into_inner()),
                Err(status) => match RpcError::from_status(&status) {
                    Some(error) => v1::commit_result::Result::Failed(error.into()),
                    None => return Err(status),
                },
            };
            results.push(v1::CommitResult { result: Some(result) });
        }
        Ok(Response::new(v1::CommitBatchResponse { results }))
    }
}

#[tonic::async_trait]
impl cluster_server::Cluster for Node {
    async fn replication(
        &self,
        _: Request<v1::ReplicationRequest>,
    ) -> Result<Response<v1::ReplicationResponse>, Status> {
        let world = self.world().await;
        if world.primary != Some(self.me) {
            return Err(world.refusal("the state of replication").into());
        }
        let primary = world.names[self.me].0.clone();
        Ok(Response::new(v1::ReplicationResponse { primary, ..v1::ReplicationResponse::default() }))
    }

    async fn waiting(&self, request: Request<v1::WaitingRequest>) -> Result<Response<v1::WaitingResponse>, Status> {
        let total = u64::from(request.into_inner().limit);
        Ok(Response::new(v1::WaitingResponse { total, ..v1::WaitingResponse::default() }))
    }

    async fn cancel_waiting(
        &self,
        request: Request<v1::CancelWaitingRequest>,
    ) -> Result<Response<v1::CancelWaitingResponse>, Status> {
        let all = matches!(request.into_inner().which, Some(v1::cancel_waiting_request::Which::All(true)));
        Ok(Response::new(v1::CancelWaitingResponse { cancelled: if all { 7 } else { 1 } }))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        let takes = self.world().await.nodes[self.me].status_takes;
        tokio::time::sleep(takes).await;
        let mut world = self.world().await;
        world.nodes[self.me].asked += 1;
        self.asked.send_modify(|count| *count += 1);
        let (primary, timeline) = match world.nodes[self.me].stale {
            Some(timeline) => (Some(self.me), timeline),
            None => (world.primary, world.timeline),
        };
        let name = primary.map(|primary| world.names[primary].0.clone()).unwrap_or_default();
        let address = primary.map(|primary| world.advertised(primary)).unwrap_or_default();
        let member = |(index, (name, _)): (usize, &(String, String))| v1::MemberStatus {
            name: name.clone(),
            address: world.advertised(index),
            role: if primary == Some(index) { "primary" } else { "standby" }.to_owned(),
            state: match (primary == Some(index), world.nodes[self.me].cut_off, world.nodes[index].lags) {
                (true, _, _) => "running",
                (false, true, _) => "unreachable",
                (false, false, true) => "catchup",
                (false, false, false) => "streaming",
            }
            .to_owned(),
            ..v1::MemberStatus::default()
        };
        let foreign = world.nodes[self.me].foreign;
        Ok(Response::new(v1::StatusResponse {
            system_id: if foreign { "00000000000000bb" } else { "00000000000000aa" }.to_owned(),
            generation: u64::from(timeline),
            timeline,
            primary: name,
            primary_address: address,
            writable: primary.is_some(),
            members: world
                .names
                .iter()
                .enumerate()
                .filter(|(index, _)| world.nodes[*index].foreign == foreign)
                .map(member)
                .collect(),
            answered_by: world.names[self.me].0.clone(),
            ..v1::StatusResponse::default()
        }))
    }

    async fn history(&self, _: Request<v1::HistoryRequest>) -> Result<Response<v1::HistoryResponse>, Status> {
        Ok(Response::new(v1::HistoryResponse::default()))
    }

    async fn replace_member(
        &self,
        request: Request<v1::ReplaceMemberRequest>,
    ) -> Result<Response<v1::ReplaceMemberResponse>, Status> {
        let name = request.into_inner().name;
        if name != "c" {
            return Err(RpcError::invalid_argument(format!("{name} is not a member of the cluster")).into());
        }
        let (old_node_id, new_node_id) = ("00000000000000c1".to_owned(), "00000000000000c2".to_owned());
        Ok(Response::new(v1::ReplaceMemberResponse { old_node_id, new_node_id, generation: 9 }))
    }

    async fn show_settings(
        &self,
        request: Request<v1::ShowSettingsRequest>,
    ) -> Result<Response<v1::ShowSettingsResponse>, Status> {
        let name = request.into_inner().name;
        let setting = v1::Setting { name, value: "as it is".to_owned(), ..v1::Setting::default() };
        Ok(Response::new(v1::ShowSettingsResponse { settings: vec![setting], ..v1::ShowSettingsResponse::default() }))
    }

    async fn set_settings(
        &self,
        request: Request<v1::SetSettingsRequest>,
    ) -> Result<Response<v1::SetSettingsResponse>, Status> {
        let settings = request.into_inner().settings;
        if settings.contains_key("nonsense") {
            return Err(RpcError::invalid_argument("there is no setting \"nonsense\"").into());
        }
        let change = |(name, after)| v1::SettingChange { name, after, ..v1::SettingChange::default() };
        let changes = settings.into_iter().map(change).collect();
        Ok(Response::new(v1::SetSettingsResponse { generation: 2, changes, warning: String::new() }))
    }
}
