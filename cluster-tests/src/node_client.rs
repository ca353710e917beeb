//! Asks one node, and no other: no routing, no retry.
//!
//! The Rust client would go to whoever is the primary; a test of a deposed primary must talk to that very node.

use std::time::Duration;

use anyhow::{Context, Result};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use understudy_rpc::error::RpcError;
use understudy_rpc::v1;
use understudy_rpc::v1::cluster_client::ClusterClient;
use understudy_rpc::v1::kv_client::KvClient;
use understudy_types::Position;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// A page of a scan holds values of up to 4 MiB.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// A connection to one node, made when it is needed and again after the node was restarted.
#[derive(Debug, Clone)]
pub struct NodeClient {
    kv: KvClient<Channel>,
    cluster: ClusterClient<Channel>,
    timeout: Duration,
}

impl NodeClient {
    /// A client of the node at `address` (`host:port`) that waits at most `timeout` for each answer.
    ///
    /// # Errors
    /// For a malformed address.
    pub fn new(address: &str, timeout: Duration) -> Result<NodeClient> {
        let endpoint =
            Endpoint::from_shared(format!("http://{address}")).with_context(|| format!("{address} is no address"))?;
        let channel = endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true).connect_lazy();
        let kv = KvClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Ok(NodeClient { kv, cluster: ClusterClient::new(channel), timeout })
    }

    /// The cluster as this node knows it.
    ///
    /// # Errors
    /// The node's refusal, or `DEADLINE_EXCEEDED`.
    pub async fn status(&self) -> Result<v1::StatusResponse, Status> {
        let mut cluster = self.cluster.clone();
        self.bounded(v1::StatusRequest {}, async |request| cluster.status(request).await).await
    }

    /// The timelines as this node knows them.
    ///
    /// # Errors
    /// As [`NodeClient::status`].
    pub async fn history(&self) -> Result<v1::HistoryResponse, Status> {
        let mut cluster = self.cluster.clone();
        self.bounded(v1::HistoryRequest {}, async |request| cluster.history(request).await).await
    }

    /// The settings of the cluster and of this server.
    ///
    /// # Errors
    /// As [`NodeClient::status`].
    pub async fn show_settings(&self) -> Result<v1::ShowSettingsResponse, Status> {
        let mut cluster = self.cluster.clone();
        let request = v1::ShowSettingsRequest::default();
        self.bounded(request, async |request| cluster.show_settings(request).await).await
    }

    /// Changes settings of the cluster.
    ///
    /// # Errors
    /// As [`NodeClient::status`].
    pub async fn set_settings(&self, settings: &[(&str, &str)]) -> Result<v1::SetSettingsResponse, Status> {
        let mut cluster = self.cluster.clone();
        let settings = settings.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        let request = v1::SetSettingsRequest { settings, reset: Vec::new() };
        self.bounded(request, async |request| cluster.set_settings(request).await).await
    }

    /// Reads one key.
    ///
    /// # Errors
    /// As [`NodeClient::status`].
    pub async fn get(&self, key: &[u8], consistency: v1::Consistency) -> Result<v1::GetResponse, Status> {
        let key = key.to_vec().into();
        self.read(v1::GetRequest { key, consistency: consistency.into(), ..v1::GetRequest::default() }).await
    }

    /// Reads one key as the request says.
    ///
    /// # Errors
    /// As [`NodeClient::status`].
    pub async fn read(&self, request: v1::GetRequest) -> Result<v1::GetResponse, Status> {
        let mut kv = self.kv.clone();
        self.bounded(request, async |request| kv.get(request).await).await
    }

    /// Commits.
    ///
    /// # Errors
    /// As [`NodeClient::status`].
    pub async fn commit(&self, request: v1::CommitRequest) -> Result<v1::CommitResponse, Status> {
        let mut kv = self.kv.clone();
        self.bounded(request, async |request| kv.commit(request).await).await
    }

    /// Commits many.
    ///
    /// # Errors
    /// As [`NodeClient::status`].
    pub async fn commit_batch(&self, commits: Vec<v1::CommitRequest>) -> Result<v1::CommitBatchResponse, Status> {
        let mut kv = self.kv.clone();
        self.bounded(v1::CommitBatchRequest { commits }, async |request| kv.commit_batch(request).await).await
    }

    /// Its standbys, if it is the primary.
    ///
    /// # Errors
    /// As [`NodeClient::status`].
    pub async fn replication(&self) -> Result<v1::ReplicationResponse, Status> {
        let mut cluster = self.cluster.clone();
        self.bounded(v1::ReplicationRequest {}, async |request| cluster.replication(request).await).await
    }

    /// Who waits, if it is the primary.
    ///
    /// # Errors
    /// As [`NodeClient::status`].
    pub async fn waiting(&self) -> Result<v1::WaitingResponse, Status> {
        let mut cluster = self.cluster.clone();
        self.bounded(v1::WaitingRequest { limit: 0 }, async |request| cluster.waiting(request).await).await
    }

    /// Ends waits.
    ///
    /// # Errors
    /// As [`NodeClient::status`].
    pub async fn cancel_waiting(&self, request: v1::CancelWaitingRequest) -> Result<u64, Status> {
        let mut cluster = self.cluster.clone();
        let answer = self.bounded(request, async |request| cluster.cancel_waiting(request).await).await;
        answer.map(|answer| answer.cancelled)
    }

    /// All entries from `start` on, below `end`, and the position that they were read at.
    ///
    /// # Errors
    /// As [`NodeClient::scan`].
    pub async fn scan_at(
        &self,
        start: &[u8],
        end: &[u8],
        consistency: v1::Consistency,
    ) -> Result<(Vec<v1::Entry>, Position), Status> {
        let mut kv = self.kv.clone();
        let (start, end) = (start.to_vec().into(), end.to_vec().into());
        let request = v1::ScanRequest { start, end, consistency: consistency.into(), ..v1::ScanRequest::default() };
        let all = async {
            let mut stream = kv.scan(request).await?.into_inner();
            let (mut entries, mut position) = (Vec::new(), Position::default());
            while let Some(message) = stream.message().await? {
                entries.extend(message.entries);
                position = message.read_position.map(Position::from).unwrap_or_default();
            }
            Ok((entries, position))
        };
        tokio::time::timeout(self.timeout, all).await.unwrap_or_else(|_| Err(self.late()))
    }

    /// One page of at most `limit` entries from `start` on, below `end`.
    ///
    /// # Errors
    /// As [`NodeClient::status`]; for a stream that broke, too.
    pub async fn scan(&self, start: &[u8], end: &[u8], limit: u64) -> Result<Vec<v1::Entry>, Status> {
        let mut kv = self.kv.clone();
        let (start, end) = (start.to_vec().into(), end.to_vec().into());
        let consistency = v1::Consistency::Eventual.into();
        let request = v1::ScanRequest { start, end, limit, consistency, ..v1::ScanRequest::default() };
        let page = async {
            let mut stream = kv.scan(request).await?.into_inner();
            let mut entries = Vec::new();
            while let Some(message) = stream.message().await? {
                entries.extend(message.entries);
            }
            Ok(entries)
        };
        tokio::time::timeout(self.timeout, page).await.unwrap_or_else(|_| Err(self.late()))
    }

    async fn bounded<Q, A>(
        &self,
        message: Q,
        call: impl AsyncFnOnce(Request<Q>) -> Result<tonic::Response<A>, Status>,
    ) -> Result<A, Status> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        match tokio::time::timeout(self.timeout, call(request)).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(self.late()),
        }
    }

    fn late(&self) -> Status {
        Status::new(Code::DeadlineExceeded, format!("no answer within {} ms", self.timeout.as_millis()))
    }
}

/// A put of one key at level `on`, with a request id.
pub fn put_request(request_id: [u8; 16], key: &[u8], value: &[u8]) -> v1::CommitRequest {
    let put = v1::Put { key: key.to_vec().into(), value: value.to_vec().into() };
    v1::CommitRequest {
        request_id: request_id.to_vec().into(),
        operations: vec![v1::Operation { operation: Some(v1::operation::Operation::Put(put)) }],
        preconditions: Vec::new(),
        durability: v1::Durability::On.into(),
    }
}

/// A request id that nobody else draws.
///
/// # Panics
/// When the operating system gives no random bytes.
pub fn random_request_id() -> [u8; 16] {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// What Understudy itself said in a refusal; none for one that the transport made.
pub fn refusal(status: &Status) -> Option<RpcError> {
    RpcError::from_status(status)
}
