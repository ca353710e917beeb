//! A gRPC server that does nothing, as a process of its own: what a call costs before anybody has done anything.
//!
//! It speaks the Mesh service, with empty answers: the stub and the transport are those of the real servers, and the way
//! over loopback from one process to another is theirs too.

use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::{Stream, StreamExt};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};
use understudy_rpc::v1::mesh_client::MeshClient;
use understudy_rpc::v1::mesh_server::{Mesh, MeshServer};
use understudy_rpc::v1::{Beat, BeatReply, IdentifyRequest, IdentifyResponse};

/// The option that makes this program the null server.
pub const OPTION: &str = "--null-server";
const START_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

struct Null;

#[tonic::async_trait]
impl Mesh for Null {
    type BeatsStream = Pin<Box<dyn Stream<Item = Result<BeatReply, Status>> + Send>>;

    async fn beats(&self, request: Request<Streaming<Beat>>) -> Result<Response<Self::BeatsStream>, Status> {
        let replies = request.into_inner().map(|beat| Ok(BeatReply { round: beat?.round, ..BeatReply::default() }));
        Ok(Response::new(Box::pin(replies)))
    }

    async fn identify(&self, _request: Request<IdentifyRequest>) -> Result<Response<IdentifyResponse>, Status> {
        Ok(Response::new(IdentifyResponse::default()))
    }
}

/// Serves until the process is ended.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(address: std::net::SocketAddr) -> Result<()> {
    let server = Server::builder().tcp_nodelay(true).add_service(MeshServer::new(Null));
    server.serve(address).await.with_context(|| format!("cannot serve at {address}"))
}

/// The process; ended with its owner.
#[derive(Debug)]
pub struct NullServer {
    child: Child,
    address: String,
}

impl Drop for NullServer {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("bench: cannot end process {}: {error}", self.child.id());
        }
    }
}

impl NullServer {
    /// Starts it and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn start() -> Result<NullServer> {
        let port = cluster_tests::ports::free(1)?.first().copied().context("one port was asked for")?;
        let address = format!("127.0.0.1:{port}");
        let program = std::env::current_exe().context("this program does not know its own path")?;
        let child = Command::new(program).arg(OPTION).arg(&address).stdin(Stdio::null()).spawn();
        let server = NullServer { child: child.context("cannot start the null server")?, address };
        let deadline = Instant::now() + START_TIMEOUT;
        while server.client()?.identify(IdentifyRequest {}).await.is_err() {
            if Instant::now() >= deadline {
                bail!("the null server has not answered within {} s", START_TIMEOUT.as_secs());
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(server)
    }

    /// With a connection of its own.
    ///
    /// # Errors
    /// Never: the address is our own.
    pub fn client(&self) -> Result<MeshClient<Channel>> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).context("our own address")?;
        Ok(MeshClient::new(endpoint.tcp_nodelay(true).connect_lazy()))
    }
}
