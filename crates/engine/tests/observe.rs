//! What an observer is told of, and when.

#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Instant;

use common::*;
use understudy_engine::{Commit, Finished, Mark, Observer, TraceContext};
use understudy_types::{DurabilityLevel, Lsn};
use understudy_wal::observe::{Flush, FlushObserver};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Begun,
    Sequenced(Lsn, Option<TraceContext>),
    Appended(Lsn, Lsn),
    Received(Lsn, Lsn),
    Marked(Vec<Mark>),
    Flushed(Lsn),
    Safe(Lsn),
    Applied(Lsn, Lsn),
    Finished(Option<Lsn>),
}

/// Writes down what it is told, and whether the times make sense.
#[derive(Default)]
struct Recorder {
    told: Mutex<Vec<Told>>,
}

impl Recorder {
    fn note(&self, told: Told, times: &[Instant]) {
        assert!(times.is_sorted(), "{told:?}: {times:?}");
        self.told.lock().unwrap().push(told);
    }

    fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }

    fn place(&self, told: &Told) -> usize {
        let all = self.told();
        all.iter().position(|one| one == told).unwrap_or_else(|| panic!("{told:?} is not in {all:#?}"))
    }
}

impl FlushObserver for Recorder {
    fn flushed(&self, flush: Flush) {
        self.note(Told::Flushed(flush.end), &[flush.began, flush.ended]);
    }
}

impl Observer for Recorder {
    fn begun(&self) {
        self.note(Told::Begun, &[]);
    }

    fn sequenced(&self, queued: Instant, taken: Instant, end: Lsn, trace: Option<TraceContext>) {
        self.note(Told::Sequenced(end, trace), &[queued, taken]);
    }

    fn appended(&self, taken: Instant, start: Lsn, end: Lsn, at: Instant) {
        self.note(Told::Appended(start, end), &[taken, at]);
    }

    fn received(&self, start: Lsn, end: Lsn, _at: Instant) {
        self.note(Told::Received(start, end), &[]);
    }

    fn marked(&self, marks: &[Mark]) {
        self.note(Told::Marked(marks.to_vec()), &[]);
    }

    fn safe(&self, lsn: Lsn, _at: Instant) {
        self.note(Told::Safe(lsn), &[]);
    }

    fn applied(&self, from: Lsn, to: Lsn, began: Instant, ended: Instant) {
        self.note(Told::Applied(from, to), &[began, ended]);
    }

    fn finished(&self, finished: &Finished<'_>) {
        let position =
            finished.outcome.and_then(|outcome| outcome.as_ref().ok()).map(|committed| committed.position.lsn);
        self.note(Told::Finished(position), &[finished.began, finished.ended]);
    }
}

const TRACE: TraceContext = TraceContext { trace_id: 1, span_id: 2, flags: 1 };

#[tokio::test(flavor = "multi_thread")]
async fn the_stages_of_a_commit_are_told_in_their_order() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let recorder = Arc::new(Recorder::default());
    engine.observe(Arc::clone(&recorder) as Arc<dyn Observer>);
    let before = engine.wal().end();
    let made = Commit { trace: Some(TRACE), ..at(DurabilityLevel::On, vec![put("a", "1")]) };
    let waiting = start(&engine, made);
    grown(&engine, before, 1).await;
    let end = make_all_safe(&engine).await.lsn;
    waiting.await.unwrap().unwrap();
    let told = recorder.told();
    let commit_end = told.iter().find_map(|told| {
        let Told::Sequenced(end, Some(TRACE)) = told else { return None };
        Some(*end)
    });
    let commit_end = commit_end.unwrap_or_else(|| panic!("the traced commit is not in {told:#?}"));
    assert!(commit_end > before.lsn && commit_end == end);
    let appended = told.iter().position(|told| matches!(told, Told::Appended(_, end) if *end >= commit_end)).unwrap();
    let flushed = told.iter().position(|told| matches!(told, Told::Flushed(end) if *end >= commit_end)).unwrap();
    let applied = told.iter().position(|told| matches!(told, Told::Applied(_, end) if *end >= commit_end)).unwrap();
    let order = [
        recorder.place(&Told::Begun),
        recorder.place(&Told::Sequenced(commit_end, Some(TRACE))),
        appended,
        flushed,
        recorder.place(&Told::Safe(end)),
        applied,
        recorder.place(&Told::Finished(Some(commit_end))),
    ];
    assert!(order.is_sorted(), "{order:?} in {told:#?}");
    // A safe LSN that does not move is not told of.
    engine.advance_safe(end);
    assert_eq!(recorder.told().iter().filter(|told| **told == Told::Safe(end)).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_caller_goes_away_is_told_of_as_well() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let recorder = Arc::new(Recorder::default());
    engine.observe(Arc::clone(&recorder) as Arc<dyn Observer>);
    let before = engine.wal().end();
    let waiting = start(&engine, at(DurabilityLevel::On, vec![put("a", "1")]));
    grown(&engine, before, 1).await;
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    recorder.place(&Told::Finished(None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_tells_what_it_received_and_how_it_was_marked() {
    let (upstream, disk) = (Disk::new(), Disk::new());
    let primary = upstream.open_primary();
    let made = commit(&primary, local(vec![put("a", "1")])).await.unwrap();
    let standby = disk.open();
    let recorder = Arc::new(Recorder::default());
    standby.observe(Arc::clone(&recorder) as Arc<dyn Observer>);
    standby.begin_timeline(&primary.wal().history()).unwrap();
    let mark = Mark { end: made.position.lsn, trace: TRACE };
    standby.mark(&[mark]);
    ship(&primary, &standby);
    standby.advance_safe(made.position.lsn);
    visible(&standby, made.position.lsn).await;
    let told = recorder.told();
    let received = told.iter().position(|told| matches!(told, Told::Received(_, end) if *end >= mark.end)).unwrap();
    let applied = told.iter().position(|told| matches!(told, Told::Applied(_, end) if *end >= mark.end)).unwrap();
    let order = [recorder.place(&Told::Marked(vec![mark])), received, applied];
    assert!(order.is_sorted(), "{order:?} in {told:#?}");
}
