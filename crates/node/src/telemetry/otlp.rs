//! Export of spans over OTLP (gRPC, without TLS), by the standard `OTEL_*` environment variables.
//!
//! Nothing is set up unless an endpoint is given. Spans wait in the SDK's bounded queue and go out in batches from a thread
//! of its own; a collector that is away costs the spans and nothing else, and is told of in the log once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, SpanData};
use understudy_types::NodeId;

use super::instruments::Instruments;

/// What the service is called when nobody says otherwise.
const SERVICE_NAME: &str = "understudy";
/// How long spans may take to go out when the process ends.
const LAST_EXPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Spans cannot be exported as the environment asks.
#[derive(Debug, thiserror::Error)]
#[error(
    "traces cannot be exported to {endpoint}: {source}; set OTEL_EXPORTER_OTLP_ENDPOINT to http://host:port of an OTLP \
     collector's gRPC port, or unset it"
)]
pub struct ExportError {
    endpoint: String,
    source: ExporterBuildError,
}

/// Who exports.
#[derive(Debug, Clone, Copy)]
pub enum Exporting<'a> {
    /// A server.
    Node {
        /// Its name.
        name: &'a str,
        /// Its identity.
        id: NodeId,
    },
    /// A command of the command line.
    Command,
}

/// The SDK, running.
#[derive(Debug, Clone)]
pub struct Export {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.trim().is_empty())
}

/// Where spans go; none when they are not asked for.
fn endpoint() -> Option<String> {
    let disabled = variable("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"));
    let none = variable("OTEL_TRACES_EXPORTER").is_some_and(|text| text == "none");
    let endpoint = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT"));
    endpoint.filter(|_| !disabled && !none)
}

impl Export {
    /// Starts if the environment gives an endpoint. Needs a Tokio runtime; connects later.
    ///
    /// # Errors
    /// When the endpoint, or another variable of the exporter, makes no sense.
    pub fn from_environment(who: Exporting<'_>, instruments: &Arc<Instruments>) -> Result<Option<Self>, ExportError> {
        let Some(endpoint) = endpoint() else { return Ok(None) };
        let exporter = SpanExporter::builder().with_tonic().build();
        let exporter = exporter.map_err(|source| ExportError { endpoint: endpoint.clone(), source })?;
        let exporter = Counted { exporter, instruments: Arc::clone(instruments), failing: AtomicBool::new(false) };
        // The sampler and the limits are the SDK's, from the environment.
        let provider = SdkTracerProvider::builder().with_resource(resource(who)).with_batch_exporter(exporter).build();
        let tracer = provider.tracer(SERVICE_NAME);
        tracing::info!(%endpoint, "traces are exported");
        Ok(Some(Self { provider, tracer }))
    }

    /// To make spans with.
    pub fn tracer(&self) -> &SdkTracer {
        &self.tracer
    }

    /// Sends what waits, for a moment, and ends.
    pub async fn stop(self) {
        // It waits for the exporter's thread.
        let stopped =
            tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(LAST_EXPORT_TIMEOUT)).await;
        if !matches!(stopped, Ok(Ok(()))) {
            tracing::debug!(?stopped, "the last spans were not exported");
        }
    }
}

fn resource(who: Exporting<'_>) -> Resource {
    let named = variable("OTEL_SERVICE_NAME").is_some()
        || variable("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|text| text.contains("service.name="));
    let builder = Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    let builder = if named { builder } else { builder.with_service_name(SERVICE_NAME) };
    match who {
        Exporting::Node { name, id } => builder.with_attributes([
            KeyValue::new("service.instance.id", id.to_string()),
            KeyValue::new("understudy.node.name", name.to_owned()),
            KeyValue::new("understudy.node.id", id.to_string()),
        ]),
        Exporting::Command => builder,
    }
    .build()
}

/// Counts what the collector takes, and says in the log when that changes.
#[derive(Debug)]
struct Counted {
    exporter: SpanExporter,
    instruments: Arc<Instruments>,
    failing: AtomicBool,
}

impl opentelemetry_sdk::trace::SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let outcome = self.exporter.export(batch).await;
        let failed = outcome.is_err();
        match &outcome {
            Ok(()) => self.instruments.exports_ok.increment(),
            Err(_) => {
                self.instruments.exports_failed.increment();
                self.instruments.spans_dropped.add(spans);
            }
        }
        match (&outcome, self.failing.swap(failed, Ordering::Relaxed)) {
            (Err(error), false) => tracing::warn!(%error, "the collector does not take traces; they are dropped"),
            (Ok(()), true) => tracing::info!("the collector takes traces again"),
            (Err(_), true) | (Ok(()), false) => {}
        }
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
