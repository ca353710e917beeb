//! What the rest of the node holds: one handle, which does nothing when neither metrics nor traces are asked for.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Span, SpanBuilder, SpanKind, Status, Tracer};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::Span as SdkSpan;
use tonic::metadata::{KeyRef, MetadataMap};
use understudy_engine::{Engine, TraceContext};
use understudy_rpc::v1;
use understudy_types::NodeId;

use super::instruments::{Histogram, Instruments};
use super::otlp::{Export, ExportError, Exporting};
use super::spans::{Spans, own};
use super::stages::Stages;

/// Metrics and traces of one node. Clones are the same.
#[derive(Clone)]
pub struct Telemetry {
    instruments: Arc<Instruments>,
    /// None when nobody looks.
    stages: Option<Arc<Stages>>,
    spans: Option<Spans>,
    export: Option<Export>,
    started: SystemTime,
}

impl Telemetry {
    /// Nothing is measured.
    pub fn off() -> Self {
        Self { instruments: Arc::default(), stages: None, spans: None, export: None, started: SystemTime::now() }
    }

    /// Metrics if `metrics`, traces if the environment asks for them.
    ///
    /// # Errors
    /// When it asks for what cannot be done.
    pub fn start(name: &str, id: NodeId, metrics: bool) -> Result<Self, ExportError> {
        let instruments = Arc::<Instruments>::default();
        let export = Export::from_environment(Exporting::Node { name, id }, &instruments)?;
        let spans = export.as_ref().map(|export| Spans::start(export.tracer().clone(), Arc::clone(&instruments)));
        let stages =
            (metrics || spans.is_some()).then(|| Arc::new(Stages::new(Arc::clone(&instruments), spans.clone())));
        Ok(Self { instruments, stages, spans, export, started: SystemTime::now() })
    }

    /// The engine is open: its stages are told from now on.
    pub fn watch(&self, engine: &Engine) {
        if let Some(stages) = &self.stages {
            engine.observe(Arc::clone(stages) as Arc<dyn understudy_engine::Observer>);
        }
    }

    /// What is counted.
    pub fn instruments(&self) -> &Arc<Instruments> {
        &self.instruments
    }

    /// Whether anybody looks.
    pub fn is_on(&self) -> bool {
        self.stages.is_some()
    }

    /// For the walsenders; none when nobody looks.
    pub fn stages(&self) -> Option<&Arc<Stages>> {
        self.stages.as_ref()
    }

    /// When the process started, nearly.
    pub fn started(&self) -> SystemTime {
        self.started
    }

    /// The span of a commit that came with this metadata: hangs on the caller's if there is one and it is sampled.
    pub fn commit_span(&self, metadata: &MetadataMap) -> CommitSpan {
        let Some(spans) = &self.spans else { return CommitSpan(None) };
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Metadata(metadata));
        let builder = SpanBuilder::from_name("commit").with_kind(SpanKind::Server);
        let span = spans.tracer().build_with_context(builder, &parent);
        CommitSpan(span.span_context().is_sampled().then_some(Box::new(span)))
    }

    /// Times a read until it is dropped.
    pub fn read(&self, consistency: v1::Consistency) -> ReadTimer {
        let timing = self.is_on().then(|| {
            let name = match consistency.as_str_name() {
                "CONSISTENCY_EVENTUAL" => "eventual",
                "CONSISTENCY_SESSION" => "session",
                "CONSISTENCY_AT" => "at",
                _ => "linearizable",
            };
            (self.instruments.read.with([name]), Instant::now())
        });
        ReadTimer(timing)
    }

    /// Sends the last spans.
    pub async fn stop(self) {
        if let Some(export) = self.export {
            export.stop().await;
        }
    }
}

/// A traced commit's span at the primary, or nothing. Ends when it is dropped.
#[derive(Debug)]
pub struct CommitSpan(Option<Box<SdkSpan>>);

impl CommitSpan {
    /// What the stages' spans hang on.
    pub fn trace(&self) -> Option<TraceContext> {
        self.0.as_ref().map(|span| own(span.span_context()))
    }

    /// How it ended.
    pub fn end<T>(mut self, outcome: &Result<T, tonic::Status>) {
        let Some(span) = &mut self.0 else { return };
        span.set_attribute(KeyValue::new("rpc.system", "grpc"));
        if let Err(status) = outcome {
            span.set_attribute(KeyValue::new("rpc.grpc.status_code", i64::from(i32::from(status.code()))));
            span.set_status(Status::error(status.message().to_owned()));
        }
        span.end();
    }
}

/// See [`Telemetry::read`].
#[derive(Debug)]
pub struct ReadTimer(Option<(Arc<Histogram>, Instant)>);

impl Drop for ReadTimer {
    fn drop(&mut self) {
        if let Some((histogram, began)) = &self.0 {
            histogram.record(began.elapsed());
        }
    }
}

struct Metadata<'a>(&'a MetadataMap);

impl Extractor for Metadata<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        let name = |key| match key {
            KeyRef::Ascii(key) => Some(key.as_str()),
            KeyRef::Binary(_) => None,
        };
        self.0.keys().filter_map(name).collect()
    }
}

/// Runs a command of the command line under a root span of its own, if the environment asks for traces, and sends the
/// span before it returns.
///
/// # Errors
/// When the environment asks for what cannot be done; the command does not run then.
pub async fn traced<T>(name: &'static str, command: impl Future<Output = T>) -> Result<T, ExportError> {
    use opentelemetry::trace::{FutureExt, TraceContextExt};
    let Some(export) = Export::from_environment(Exporting::Command, &Arc::default())? else {
        return Ok(command.await);
    };
    let builder = SpanBuilder::from_name(name).with_kind(SpanKind::Client);
    let context = Context::new().with_span(export.tracer().build_with_context(builder, &Context::new()));
    let outcome = command.with_context(context.clone()).await;
    context.span().end();
    export.stop().await;
    Ok(outcome)
}
