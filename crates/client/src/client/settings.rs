//! Settings: asked of one node, changed through any.

use tonic::Status;
use understudy_rpc::error::{Reason, RpcError};
use understudy_rpc::v1;

use super::Client;
use crate::classify::describe;
use crate::error::ClientError;

impl Client {
    /// The cluster's settings, and those of the server that answers: the first of the given endpoints that does. Only the
    /// setting of this name, or all of them when it is empty.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] when there is no such setting, [`ClientError::Unavailable`] when no endpoint answers.
    pub async fn show_settings(&self, name: &str) -> Result<v1::ShowSettingsResponse, ClientError> {
        let ask = async |mut node: ClusterClient| {
            node.show_settings(v1::ShowSettingsRequest { name: name.to_owned() }).await.map(tonic::Response::into_inner)
        };
        self.first_answer(ask).await
    }

    /// Changes settings of the cluster, all of them or none. Setting the same again is harmless, so this is tried at one
    /// endpoint after the other.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] when a setting or a value is not one: nothing was changed then.
    /// [`ClientError::Unavailable`] when no endpoint had it done; look whether it is.
    pub async fn set_settings(&self, request: v1::SetSettingsRequest) -> Result<v1::SetSettingsResponse, ClientError> {
        let ask =
            async |mut node: ClusterClient| node.set_settings(request.clone()).await.map(tonic::Response::into_inner);
        self.first_answer(ask).await
    }

    async fn first_answer<T>(&self, ask: impl AsyncFn(ClusterClient) -> Result<T, Status>) -> Result<T, ClientError> {
        let nodes = &self.inner.locator.nodes;
        let deadline = self.inner.options.deadline;
        let rounds = async {
            let mut whys = Vec::new();
            for address in nodes.seeds() {
                let node = nodes.cluster(address)?;
                match ask(node).await {
                    Ok(answer) => return Ok(answer),
                    Err(status) if is_refused(&status) => {
                        return Err(ClientError::Invalid { message: status.message().to_owned() });
                    }
                    Err(status) => whys.push(format!("{address}: {}", describe(&status))),
                }
            }
            Err(ClientError::Unavailable { why: whys.join("; ") })
        };
        let late = || ClientError::Unavailable { why: format!("no answer within {} ms", deadline.as_millis()) };
        tokio::time::timeout(deadline, rounds).await.unwrap_or_else(|_| Err(late()))
    }
}

type ClusterClient = v1::cluster_client::ClusterClient<tonic::transport::Channel>;

/// Another node would say the same.
fn is_refused(status: &Status) -> bool {
    RpcError::from_status(status)
        .is_some_and(|error| matches!(error.reason, Reason::InvalidArgument | Reason::LimitExceeded))
}
