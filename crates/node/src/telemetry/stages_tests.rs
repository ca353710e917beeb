use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use understudy_engine::Committed;
use understudy_types::{DurabilityLevel, Position, TimelineId};

use super::super::instruments::Histogram;
use super::*;

const MS: Duration = Duration::from_millis(1);

fn lsn(at: u64) -> Lsn {
    Lsn::new(at)
}

fn context(trace_id: u128) -> TraceContext {
    TraceContext { trace_id, span_id: 7, flags: 1 }
}

fn count(histogram: &Histogram) -> u64 {
    histogram.buckets().map(|(_, count)| count).sum()
}

/// A collector in this process.
#[derive(Debug, Clone, Default)]
struct Kept(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Kept {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

struct Traced {
    stages: Stages,
    kept: Kept,
    provider: SdkTracerProvider,
}

fn traced() -> Traced {
    let kept = Kept::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(kept.clone()).build();
    let instruments = Arc::<Instruments>::default();
    let spans = Spans::start(provider.tracer("test"), Arc::clone(&instruments));
    Traced { stages: Stages::new(instruments, Some(spans)), kept, provider }
}

impl Traced {
    /// All spans, once the task has made `wanted` of them.
    async fn spans(self, wanted: usize) -> Vec<SpanData> {
        let made = async {
            while self.kept.0.lock().unwrap().len() < wanted {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), made).await.expect("the spans are made");
        drop(self.provider);
        let mut spans = self.kept.0.lock().unwrap().clone();
        spans.sort_by_key(|span| span.start_time);
        spans
    }
}

fn committed(at: u64) -> Result<Committed, CommitError> {
    Ok(Committed { position: Position::new(TimelineId::new(1), lsn(at)), already_done: false })
}

/// One commit from 100 to 200 on a primary: 1 ms for each stage.
fn commit(stages: &Stages, trace: Option<TraceContext>) {
    let now = Instant::now();
    let t: Vec<Instant> = (0..8).map(|n| now + n * MS).collect();
    stages.begun();
    stages.sequenced(t[0], t[1], lsn(200), trace);
    stages.appended(t[1], lsn(100), lsn(200), t[2]);
    stages.flushed(Flush { end: lsn(200), began: t[2], ended: t[3] });
    stages.safe(lsn(200), t[4]);
    stages.applied(lsn(100), lsn(200), t[5], t[6]);
    let outcome = committed(200);
    let level = DurabilityLevel::On;
    stages.finished(&Finished { level, trace, began: t[0], ended: t[7], outcome: Some(&outcome) });
}

#[test]
fn every_stage_of_a_commit_is_recorded_once() {
    let instruments = Arc::<Instruments>::default();
    let stages = Stages::new(Arc::clone(&instruments), None);
    commit(&stages, None);
    for (name, histogram) in instruments.stages.all() {
        assert_eq!(count(histogram), u64::from(name != "remote_flush"), "{name}");
    }
    let sums =
        [&instruments.stages.queue, &instruments.stages.flush, &instruments.stages.safe].map(Histogram::sum_seconds);
    assert_eq!(sums, [0.001, 0.001, 0.002]);
    assert_eq!(instruments.commits.with(["on", "committed"]).get(), 1);
    assert_eq!(count(&instruments.commit.with(["on"])), 1);
    assert_eq!(instruments.in_flight.load(Ordering::Relaxed), 0);
}

#[test]
fn a_commit_that_failed_is_counted_and_not_timed() {
    let instruments = Arc::<Instruments>::default();
    let stages = Stages::new(Arc::clone(&instruments), None);
    let (level, now) = (DurabilityLevel::Local, Instant::now());
    for outcome in [None, Some(&Err(CommitError::NotPrimary))] {
        stages.begun();
        stages.finished(&Finished { level, trace: None, began: now, ended: now, outcome });
    }
    assert_eq!(instruments.commits.with(["local", "abandoned"]).get(), 1);
    assert_eq!(instruments.commits.with(["local", "not_primary"]).get(), 1);
    assert_eq!(count(&instruments.commit.with(["local"])), 0);
}

#[tokio::test]
async fn a_traced_commit_has_a_span_for_each_stage() {
    let traced = traced();
    commit(&traced.stages, Some(context(1)));
    let spans = traced.spans(5).await;
    let names: Vec<&str> = spans.iter().map(|span| span.name.as_ref()).collect();
    assert_eq!(names, ["queue", "append", "flush", "acknowledge", "apply"]);
    for span in &spans {
        assert_eq!(own_id(span), 1);
        assert_eq!(u64::from_be_bytes(span.parent_span_id.to_bytes()), 7);
        let took = span.end_time.duration_since(span.start_time).unwrap();
        let expected = if span.name == "acknowledge" { 3 * MS } else { MS };
        assert!(took.abs_diff(expected) < Duration::from_micros(1), "{}: {took:?}", span.name);
    }
}

fn own_id(span: &SpanData) -> u128 {
    u128::from_be_bytes(span.span_context.trace_id().to_bytes())
}

#[tokio::test]
async fn a_walsender_is_told_of_the_traced_commits_in_its_piece_alone() {
    let traced = traced();
    let (stages, standby, now) = (&traced.stages, NodeId::new(9), Instant::now());
    for n in 1..=3 {
        stages.sequenced(now, now, lsn(n * 100), Some(context(n.into())));
        stages.appended(now, lsn(n * 100 - 100), lsn(n * 100), now);
    }
    let marks = stages.sending(standby, lsn(100)..lsn(200), now);
    assert_eq!(marks.len(), 1);
    assert_eq!((marks[0].end, marks[0].trace.trace_id), (lsn(200), 2));
    // What the standby does hangs on the span of the sending, not on that of the commit.
    assert_ne!(marks[0].trace.span_id, 7);
    assert_eq!(stages.sent()[&standby], lsn(200));
    let sends = traced.kept.0.lock().unwrap().clone();
    let send = sends.iter().find(|span| span.name == "send").unwrap();
    assert_eq!(u64::from_be_bytes(send.span_context.span_id().to_bytes()), marks[0].trace.span_id);
}

#[tokio::test]
async fn a_standby_makes_spans_of_what_its_upstream_marked() {
    let traced = traced();
    let (stages, t) = (&traced.stages, Instant::now());
    let marks = [Mark { end: lsn(150), trace: context(1) }, Mark { end: lsn(900), trace: context(2) }];
    stages.marked(&marks);
    stages.received(lsn(100), lsn(200), t);
    stages.flushed(Flush { end: lsn(200), began: t, ended: t + MS });
    stages.safe(lsn(250), t + 2 * MS);
    stages.applied(lsn(100), lsn(200), t + 3 * MS, t + 4 * MS);
    assert_eq!(count(&stages.instruments.stages.remote_flush), 1);
    let spans = traced.spans(2).await;
    // A mark that does not lie in the piece is not believed.
    let found: Vec<(&str, u128)> = spans.iter().map(|span| (span.name.as_ref(), own_id(span))).collect();
    assert_eq!(found, [("remote flush", 1), ("apply", 1)]);
}

#[tokio::test]
async fn a_commit_that_was_cut_off_leaves_no_span_to_whatever_takes_its_place() {
    let traced = traced();
    let (stages, t) = (&traced.stages, Instant::now());
    stages.marked(&[Mark { end: lsn(200), trace: context(1) }]);
    stages.received(lsn(100), lsn(200), t);
    // The log is truncated to 100 and goes on otherwise.
    stages.received(lsn(100), lsn(200), t);
    stages.flushed(Flush { end: lsn(200), began: t, ended: t });
    stages.applied(lsn(100), lsn(200), t, t);
    assert_eq!(stages.lock().marks.len(), 0);
    assert_eq!(count(&stages.instruments.stages.remote_flush), 1);
    tokio::task::yield_now().await;
    assert!(traced.kept.0.lock().unwrap().is_empty());
}

#[tokio::test]
async fn whatever_piles_up_is_bounded_and_counted() {
    let traced = traced();
    let (stages, t) = (&traced.stages, Instant::now());
    let many = 3 * TIMES_MAX as u64;
    for n in 1..=many {
        stages.sequenced(t, t, lsn(n), Some(context(n.into())));
        stages.appended(t, lsn(n - 1), lsn(n), t);
        stages.flushed(Flush { end: lsn(n), began: t, ended: t });
        stages.safe(lsn(n), t);
    }
    {
        let state = stages.lock();
        assert_eq!(
            (state.batches.len(), state.marks.len(), state.sendable.len()),
            (TIMES_MAX, MARKS_MAX, SENDABLE_MAX)
        );
        assert_eq!((state.flushed.entries.len(), state.safe.entries.len()), (TIMES_MAX, TIMES_MAX));
        assert_eq!((state.flushed.at(lsn(1)), state.flushed.at(lsn(many))), (None, Some(t)));
    }
    assert_eq!(stages.instruments.marks_dropped.get(), many - MARKS_MAX as u64);
    // The task that makes spans had no chance to run: beyond its channel they were dropped.
    assert!(stages.instruments.spans_dropped.get() > 0);
    let marks = stages.sending(NodeId::new(9), lsn(many - 200)..lsn(many), t);
    assert_eq!(marks.len(), MARKS_PER_DATA_MAX);
}
