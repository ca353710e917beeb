//! What only the primary can tell, and do, beside reading and writing: for operators.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;
use tonic::transport::Channel;
use understudy_rpc::v1;
use understudy_rpc::v1::cancel_waiting_request::Which;
use understudy_rpc::v1::cluster_client::ClusterClient;
use understudy_types::RequestId;

use crate::classify::{Next, classify};
use crate::client::Client;
use crate::error::ClientError;

/// Between two rounds in which no node was the primary.
const PAUSE: Duration = Duration::from_millis(100);

impl Client {
    /// Every standby as the primary sees it, and the sync list.
    ///
    /// # Errors
    /// [`ClientError::Unavailable`] when no primary answers before the deadline.
    pub async fn replication(&self) -> Result<v1::ReplicationResponse, ClientError> {
        self.ask_primary(|mut cluster| {
            async move { Ok(cluster.replication(v1::ReplicationRequest {}).await?.into_inner()) }.boxed()
        })
        .await
    }

    /// The commits that wait to be acknowledged, at most `limit` of the oldest (0: as many as the primary gives out),
    /// and for whom.
    ///
    /// # Errors
    /// As [`Client::replication`].
    pub async fn waiting(&self, limit: u32) -> Result<v1::WaitingResponse, ClientError> {
        self.ask_primary(move |mut cluster| {
            async move { Ok(cluster.waiting(v1::WaitingRequest { limit }).await?.into_inner()) }.boxed()
        })
        .await
    }

    /// Ends the waits of the commits with this request id, or of all: their outcome is then unknown to their clients.
    /// Returns how many waits were ended.
    ///
    /// # Errors
    /// As [`Client::replication`].
    pub async fn cancel_waiting(&self, request_id: Option<RequestId>) -> Result<u64, ClientError> {
        let which = match request_id {
            Some(id) => Which::RequestId(Bytes::copy_from_slice(id.as_bytes())),
            None => Which::All(true),
        };
        let request = v1::CancelWaitingRequest { which: Some(which) };
        self.ask_primary(move |mut cluster| {
            let request = request.clone();
            async move { Ok(cluster.cancel_waiting(request).await?.into_inner().cancelled) }.boxed()
        })
        .await
    }

    async fn ask_primary<T, F>(&self, call: F) -> Result<T, ClientError>
    where
        F: Fn(ClusterClient<Channel>) -> BoxFuture<'static, Result<T, Status>>,
    {
        let deadline = Instant::now() + self.options().deadline;
        loop {
            let mut why = "no node knows of a primary".to_owned();
            let mut answers: Vec<v1::StatusResponse> =
                self.status().await.into_iter().filter_map(|node| node.answer.ok()).collect();
            if answers.is_empty() {
                "no node answers".clone_into(&mut why);
            }
            // Who says of itself that it is the primary, of the latest timeline first; then whom others name.
            answers.sort_by_key(|status| std::cmp::Reverse((status.primary == status.answered_by, status.timeline)));
            for address in answers.iter().map(|status| &status.primary_address).filter(|address| !address.is_empty()) {
                let cluster = self.nodes().cluster(address)?;
                match timeout(self.options().attempt_timeout, call(cluster)).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(status)) => {
                        let failed = classify(&status);
                        if let Next::Reject(error) = failed.next {
                            return Err(ClientError::Invalid { message: error.message });
                        }
                        why = format!("{address}: {}", failed.why);
                    }
                    Err(_) => why = format!("{address} has not answered"),
                }
            }
            if Instant::now() + PAUSE >= deadline {
                return Err(ClientError::Unavailable { why });
            }
            sleep(PAUSE).await;
        }
    }
}
