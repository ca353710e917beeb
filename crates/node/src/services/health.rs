//! `grpc.health.v1`: the services `""`, `kv.read`, `kv.write` and `replication`.

use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health as HealthTrait, HealthServer};
use tonic_health::server::HealthReporter;

/// The process answers at all.
const PROCESS: &str = "";
/// Eventual reads are answered here.
const KV_READ: &str = "kv.read";
/// Commits and linearizable reads are answered here: this node is the primary and a majority confirms it.
const KV_WRITE: &str = "kv.write";
/// Standbys can stream from here.
const REPLICATION: &str = "replication";

/// What load balancers are told.
#[derive(Clone)]
pub struct Health {
    reporter: HealthReporter,
}

impl Health {
    /// Everything but the process itself is not serving yet.
    pub async fn new() -> (Self, HealthServer<impl HealthTrait>) {
        let (reporter, service) = tonic_health::server::health_reporter();
        let health = Self { reporter };
        health.set(PROCESS, true).await;
        health.roles(false, false).await;
        (health, service)
    }

    async fn set(&self, service: &str, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.reporter.set_service_status(service, status).await;
    }

    /// `readable`: the engine is open. `writable`: this node is a confirmed primary.
    pub async fn roles(&self, readable: bool, writable: bool) {
        self.set(KV_READ, readable).await;
        self.set(KV_WRITE, writable).await;
        self.set(REPLICATION, writable).await;
    }

    /// The process is going away.
    pub async fn stopping(&self) {
        self.roles(false, false).await;
        self.set(PROCESS, false).await;
    }
}
