//! The loader: commits in flight through the Rust client, and a ledger of every acknowledgement.
//!
//! Each record is one commit at level `on` with a request id of its own. What a failover leaves unknown is asked again
//! under the same id until it is known, so the ledger is exact: what stands in it was promised.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use understudy_client::{Client, ClientError, Commit, CommitOutcome};
use understudy_types::{Lsn, Position, TimelineId};

use super::source::Source;

/// After an outage the pace is not made up for longer than this.
const CATCH_UP: Duration = Duration::from_millis(100);

/// The records of all sources, pass after pass, at a bounded pace.
#[derive(Debug)]
pub struct Feed {
    sources: Vec<Source>,
    pass: u64,
    source: usize,
    record: usize,
    due: Instant,
    /// Between two records; zero for none.
    every: Duration,
}

impl Feed {
    /// Of `rate` records a second at most; 0 for no bound.
    pub fn new(sources: Vec<Source>, rate: u32) -> Feed {
        let every = Duration::from_secs(1).checked_div(rate).unwrap_or_default();
        Feed { sources, pass: 1, source: 0, record: 0, due: Instant::now(), every }
    }

    async fn next(&mut self) -> (String, Bytes) {
        tokio::time::sleep_until(self.due).await;
        self.due = next_due(self.due, Instant::now(), self.every);
        self.take()
    }

    fn take(&mut self) -> (String, Bytes) {
        while self.record >= self.sources[self.source].records.len() {
            self.record = 0;
            self.source += 1;
            if self.source == self.sources.len() {
                self.source = 0;
                self.pass += 1;
            }
        }
        let source = &self.sources[self.source];
        let record = &source.records[self.record];
        self.record += 1;
        (format!("pass/{}/{}/{}", self.pass, source.name, record.key), record.value.clone())
    }
}

/// When the record after the one that was due at `due` is due, if that one went out at `now`.
fn next_due(due: Instant, now: Instant, every: Duration) -> Instant {
    let earliest = now.checked_sub(CATCH_UP).unwrap_or(due);
    due.max(earliest) + every
}

/// An acknowledged record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What was promised to be there.
    pub value: Bytes,
    /// What was said about it.
    pub outcome: CommitOutcome,
}

/// Every record that was acknowledged, and what was refused.
#[derive(Debug, Default)]
pub struct Ledger {
    /// By key.
    pub entries: HashMap<String, Entry>,
    /// Why records were refused, or stayed unknown to the end.
    pub failures: Vec<String>,
}

impl Ledger {
    /// The highest LSN that was acknowledged.
    pub fn highest(&self) -> Lsn {
        self.entries.values().map(|entry| entry.outcome.position.lsn).max().unwrap_or(Lsn::INVALID)
    }
}

/// The acknowledgements of one timeline.
#[derive(Debug, Clone, Copy)]
pub struct OnTimeline {
    /// When the first came.
    pub first: Instant,
    /// When the last came, so far.
    pub last: Instant,
}

/// How far the load has come.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Records.
    pub acknowledged: u64,
    /// By timeline, but for commits that an earlier attempt had made.
    pub timelines: BTreeMap<TimelineId, OnTimeline>,
}

impl Progress {
    /// The latest timeline that something was acknowledged on.
    pub fn timeline(&self) -> TimelineId {
        self.timelines.keys().next_back().copied().unwrap_or_default()
    }

    /// Last acknowledgement on the timeline before to the first on this.
    pub fn gap_before(&self, timeline: TimelineId) -> Option<Duration> {
        let (_, before) = self.timelines.range(..timeline).next_back()?;
        Some(self.timelines.get(&timeline)?.first.saturating_duration_since(before.last))
    }

    fn acknowledge(&mut self, position: Position, already_done: bool, now: Instant) {
        self.acknowledged += 1;
        if !already_done {
            self.timelines.entry(position.timeline).or_insert(OnTimeline { first: now, last: now }).last = now;
        }
    }
}

struct Shared {
    feed: tokio::sync::Mutex<Feed>,
    ledger: Mutex<Ledger>,
    progress: watch::Sender<Progress>,
    stop: watch::Sender<bool>,
}

/// Commits in flight.
pub struct Loader {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

impl Loader {
    /// Begins to load, with so many commits in flight.
    pub fn start(client: &Client, feed: Feed, in_flight: u32) -> Loader {
        let (feed, ledger) = (tokio::sync::Mutex::new(feed), Mutex::default());
        let shared =
            Arc::new(Shared { feed, ledger, progress: watch::Sender::default(), stop: watch::Sender::new(false) });
        let mut tasks = JoinSet::new();
        for _ in 0..in_flight {
            tasks.spawn(load(client.clone(), Arc::clone(&shared)));
        }
        Loader { shared, tasks }
    }

    /// How far it has come.
    pub fn progress(&self) -> Progress {
        self.shared.progress.borrow().clone()
    }

    /// Waits until it has come as far as that.
    ///
    /// # Errors
    /// When it has not in time.
    pub async fn wait_for(
        &self,
        what: &str,
        timeout: Duration,
        ready: impl FnMut(&Progress) -> bool,
    ) -> Result<Progress> {
        let mut progress = self.shared.progress.subscribe();
        let waited = tokio::time::timeout(timeout, progress.wait_for(ready)).await;
        let reached = waited.with_context(|| {
            format!(
                "waited {} s for {what}; {} records are acknowledged",
                timeout.as_secs(),
                self.progress().acknowledged
            )
        })?;
        Ok(reached.context("the loader is gone")?.clone())
    }

    /// Waits until so many more records are acknowledged.
    ///
    /// # Errors
    /// As [`Loader::wait_for`].
    pub async fn wait_more(&self, records: u64, timeout: Duration) -> Result<Progress> {
        let until = self.progress().acknowledged + records;
        self.wait_for(&format!("{records} more records"), timeout, |progress| progress.acknowledged >= until).await
    }

    /// Lets every commit under way come to its end, and gives the ledger.
    ///
    /// # Errors
    /// When a task panicked.
    pub async fn stop(mut self) -> Result<Ledger> {
        self.shared.stop.send_replace(true);
        while let Some(ended) = self.tasks.join_next().await {
            ended.context("the loader failed")?;
        }
        Ok(std::mem::take(&mut *self.shared.ledger.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

async fn load(client: Client, shared: Arc<Shared>) {
    let stopped = || *shared.stop.borrow();
    while !stopped() {
        let (key, value) = shared.feed.lock().await.next().await;
        let commit = Commit::new().put(key.clone(), value.clone());
        let request_id = commit.id();
        let mut answer = client.commit(commit).await;
        while matches!(answer, Err(ClientError::Unknown { .. } | ClientError::Unavailable { .. })) && !stopped() {
            let again = Commit::new().put(key.clone(), value.clone()).request_id(request_id);
            answer = client.commit(again).await;
        }
        let mut ledger = shared.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(outcome) => {
                shared.progress.send_modify(|progress| {
                    progress.acknowledge(outcome.position, outcome.already_done, Instant::now());
                });
                ledger.entries.insert(key, Entry { value, outcome });
            }
            Err(error) => ledger.failures.push(format!("{key}: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::source::Record;
    use super::*;

    fn source(name: &str, keys: &[&str]) -> Source {
        let record = |key: &&str| Record { key: (*key).to_owned(), value: Bytes::from_static(b"v") };
        Source { name: name.to_owned(), records: keys.iter().map(record).collect(), skipped: 0 }
    }

    #[test]
    fn the_feed_passes_over_the_sources_again_and_again() {
        let mut feed = Feed::new(vec![source("one", &["a", "b"]), source("none", &[]), source("two", &["c"])], 0);
        let keys: Vec<String> = (0..5).map(|_| feed.take().0).collect();
        assert_eq!(keys, ["pass/1/one/a", "pass/1/one/b", "pass/1/two/c", "pass/2/one/a", "pass/2/one/b"]);
    }

    #[test]
    fn the_feed_keeps_its_pace_and_does_not_make_up_for_an_outage() {
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let every = Duration::from_millis(10);
        assert_eq!(next_due(at(1_000), at(1_003), every), at(1_010));
        assert_eq!(next_due(at(1_000), at(61_000), every), at(60_910));
    }

    #[test]
    fn the_gap_is_from_the_last_on_the_old_timeline_to_the_first_on_the_new() {
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let position = |timeline: u32| Position::new(TimelineId::new(timeline), Lsn::new(1));
        let mut progress = Progress::default();
        progress.acknowledge(position(1), false, at(0));
        progress.acknowledge(position(1), false, at(40));
        progress.acknowledge(position(1), true, at(240));
        progress.acknowledge(position(2), false, at(250));
        progress.acknowledge(position(2), false, at(260));
        assert_eq!(progress.gap_before(TimelineId::new(2)), Some(Duration::from_millis(210)));
        assert_eq!((progress.gap_before(TimelineId::FIRST), progress.acknowledged), (None, 5));
    }
}
