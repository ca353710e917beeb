//! The HTTP port: metrics and probes, for machines.
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | Prometheus' text format |
//! | `/liveness` | 200 as long as the process answers |
//! | `/readiness` | 200 when reads of some kind are answered here, 503 otherwise; the body says why |
//!
//! It is a port of its own, so that it can be kept from clients. Whoever connects costs little and not for long: as many
//! connections as [`CONNECTIONS_MAX`], one request on each, headers of [`HEADER_BYTES_MAX`], and everything, the last byte
//! of the answer included, within [`CONNECTION_TIMEOUT`]. Nothing is read but headers, and nothing is changed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::telemetry::collect::Collector;
use crate::telemetry::exposition;

/// Connections at a time; more are closed at once.
pub const CONNECTIONS_MAX: usize = 64;
/// Headers of a request, in bytes: what a connection's buffer takes.
pub const HEADER_BYTES_MAX: usize = 16 << 10;
/// Headers of a request, in number.
const HEADERS_MAX: usize = 64;
/// A request's headers must be there within this.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection is over within this, answered or not.
pub const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);
/// After an accept that failed, for want of file descriptors perhaps.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A port that is bound and not yet served, so that a port in use is an error of the start.
#[derive(Debug)]
pub struct HttpPort {
    listener: TcpListener,
}

impl HttpPort {
    /// Binds.
    ///
    /// # Errors
    /// When somebody else listens there, or nobody may.
    pub async fn bind(address: SocketAddr) -> std::io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await? })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`.
    pub fn serve(self, collector: Collector, stop: CancellationToken) {
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/liveness", get(liveness))
            .route("/readiness", get(readiness))
            .with_state(collector.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = accept(self.listener, &router, &collector, &stop) => {}
            }
        });
    }
}

async fn accept(listener: TcpListener, router: &Router, collector: &Collector, stop: &CancellationToken) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match Arc::clone(&room).try_acquire_owned() {
                Ok(place) => {
                    tokio::spawn(answer(stream, router.clone(), place, stop.clone()));
                }
                Err(_) => collector.instruments().http_refused.increment(),
            },
            Err(error) => {
                tracing::warn!(%error, "the http port cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One request, one answer.
async fn answer(stream: TcpStream, router: Router, place: OwnedSemaphorePermit, stop: CancellationToken) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEADER_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::select! {
        () = stop.cancelled() => {}
        ended = tokio::time::timeout(CONNECTION_TIMEOUT, connection) => match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a connection to the http port ended badly"),
            Err(_) => tracing::debug!("a connection to the http port took too long"),
        },
    }
    drop(place);
}

async fn metrics(State(collector): State<Collector>) -> Response {
    // It reads files of /proc.
    match tokio::task::spawn_blocking(move || collector.metrics()).await {
        Ok(text) => ([(header::CONTENT_TYPE, exposition::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn liveness() -> Response {
    json(StatusCode::OK, &serde_json::json!({ "alive": true }))
}

async fn readiness(State(collector): State<Collector>) -> Response {
    let found = match tokio::task::spawn_blocking(move || collector.readiness()).await {
        Ok(found) => found,
        Err(error) => return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    };
    let status = if found.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::json!({
        "ready": found.ready,
        "role": found.role,
        "timeline": found.timeline,
        "writable": found.writable,
        "reason": found.reason,
    });
    json(status, &body)
}

fn json(status: StatusCode, body: &serde_json::Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
