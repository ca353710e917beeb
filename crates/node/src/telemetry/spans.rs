//! Spans of traced commits, made afterwards from recorded times.
//!
//! ```text
//! put (client)
//! └─ commit (primary)
//!    ├─ queue          asked -> taken by the sequencer
//!    ├─ append         taken -> in the log
//!    ├─ flush          in the log -> on the local disk
//!    ├─ send           read by the walsender -> handed to the connection; one for each standby
//!    │  ├─ remote flush   arrived -> on the standby's disk
//!    │  └─ apply          written to the standby's store
//!    ├─ apply          written to the primary's store
//!    └─ acknowledge    safe (or as far as its level asks) -> answered
//! ```
//!
//! The engine's threads leave times in a bounded channel; one task makes spans of them. Only `send` is built where it
//! happens, on the walsender's task, because its number goes to the standby with the piece of the log.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use opentelemetry::trace::{Span, SpanBuilder, SpanContext, SpanKind, TraceContextExt, TraceFlags, TraceState, Tracer};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::SdkTracer;
use tokio::sync::mpsc;
use understudy_engine::{Mark, TraceContext};
use understudy_types::NodeId;

use super::instruments::Instruments;

/// Records that wait to be made into spans.
const RECORDS_MAX: usize = 8_192;

/// How a piece got into this node's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// This node is the primary.
    Sequenced,
    /// From an upstream.
    Received,
}

/// A traced commit that this node has applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Which.
    pub mark: Mark,
    /// How it came.
    pub origin: Origin,
    /// When it was in the log.
    pub appended: Instant,
    /// When it was on disk; none when that was forgotten.
    pub flushed: Option<Instant>,
    /// When the applier took its batch.
    pub began: Instant,
    /// When the store had it.
    pub ended: Instant,
}

/// Times of which spans are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// It is in the primary's log.
    Ordered {
        /// Which.
        mark: Mark,
        /// When it was asked for.
        queued: Instant,
        /// When the sequencer took it.
        taken: Instant,
        /// When it was appended.
        appended: Instant,
    },
    /// It is applied.
    Applied(Applied),
    /// It is answered.
    Acknowledged {
        /// Which.
        mark: Mark,
        /// When it had reached what its level asks for.
        reached: Instant,
        /// When the answer went out.
        ended: Instant,
    },
}

/// Where times are left; clones leave them in the same place.
#[derive(Clone)]
pub struct Spans {
    tracer: SdkTracer,
    records: mpsc::Sender<Record>,
    instruments: Arc<Instruments>,
}

impl Spans {
    /// Starts the task; it ends with the last clone.
    pub fn start(tracer: SdkTracer, instruments: Arc<Instruments>) -> Self {
        let (records, mut waiting) = mpsc::channel(RECORDS_MAX);
        let maker = tracer.clone();
        tokio::spawn(async move {
            while let Some(record) = waiting.recv().await {
                make(&maker, record, Wall::now());
            }
        });
        Self { tracer, records, instruments }
    }

    /// Leaves a record; drops and counts it when too many wait.
    pub fn emit(&self, record: Record) {
        if self.records.try_send(record).is_err() {
            self.instruments.spans_dropped.increment();
        }
    }

    /// The span of a commit that goes to `standby`, which ends now. What the standby does hangs on it.
    pub fn send(&self, mark: &Mark, standby: NodeId, began: Instant) -> TraceContext {
        let wall = Wall::now();
        let builder = SpanBuilder::from_name("send")
            .with_kind(SpanKind::Producer)
            .with_start_time(wall.at(began))
            .with_attributes([lsn(mark), KeyValue::new("understudy.standby", standby.to_string())]);
        let mut span = self.tracer.build_with_context(builder, &parent(mark.trace));
        let context = span.span_context().clone();
        span.end_with_timestamp(wall.at(Instant::now()));
        if context.is_sampled() { own(&context) } else { mark.trace }
    }

    /// For spans that are made by whoever they are about.
    pub fn tracer(&self) -> &SdkTracer {
        &self.tracer
    }
}

/// Both clocks at one moment: times are taken on the one and shown on the other.
struct Wall {
    instant: Instant,
    time: SystemTime,
}

impl Wall {
    fn now() -> Self {
        Self { instant: Instant::now(), time: SystemTime::now() }
    }

    fn at(&self, instant: Instant) -> SystemTime {
        let moved = match self.instant.checked_duration_since(instant) {
            Some(ago) => self.time.checked_sub(ago),
            None => self.time.checked_add(instant.saturating_duration_since(self.instant)),
        };
        moved.unwrap_or(self.time)
    }
}

/// In the engine's terms.
pub fn own(context: &SpanContext) -> TraceContext {
    TraceContext {
        trace_id: u128::from_be_bytes(context.trace_id().to_bytes()),
        span_id: u64::from_be_bytes(context.span_id().to_bytes()),
        flags: context.trace_flags().to_u8(),
    }
}

fn parent(trace: TraceContext) -> Context {
    let TraceContext { trace_id, span_id, flags } = trace;
    let context =
        SpanContext::new(trace_id.into(), span_id.into(), TraceFlags::new(flags), true, TraceState::default());
    Context::new().with_remote_span_context(context)
}

fn lsn(mark: &Mark) -> KeyValue {
    KeyValue::new("understudy.lsn", mark.end.to_string())
}

fn make(tracer: &SdkTracer, record: Record, wall: Wall) {
    let span = |name: &'static str, kind: SpanKind, mark: &Mark, began: Instant, ended: Instant| {
        let builder =
            SpanBuilder::from_name(name).with_kind(kind).with_start_time(wall.at(began)).with_attributes([lsn(mark)]);
        tracer.build_with_context(builder, &parent(mark.trace)).end_with_timestamp(wall.at(ended));
    };
    match record {
        Record::Ordered { mark, queued, taken, appended } => {
            span("queue", SpanKind::Internal, &mark, queued, taken);
            span("append", SpanKind::Internal, &mark, taken, appended);
        }
        Record::Applied(Applied { mark, origin, appended, flushed, began, ended }) => {
            if let Some(flushed) = flushed {
                match origin {
                    Origin::Sequenced => span("flush", SpanKind::Internal, &mark, appended, flushed),
                    Origin::Received => span("remote flush", SpanKind::Consumer, &mark, appended, flushed),
                }
            }
            span("apply", SpanKind::Internal, &mark, began, ended);
        }
        Record::Acknowledged { mark, reached, ended } => {
            span("acknowledge", SpanKind::Internal, &mark, reached, ended);
        }
    }
}
