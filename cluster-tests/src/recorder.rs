//! Where clients of the workload write down what they are told, and how far they have come.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::watch;
use understudy_rpc::v1;
use understudy_types::{Position, TimelineId};

use crate::history::{Acknowledgement, Consistency, Expected, History, Nanos, Read, Write, WriteOutcome};
use crate::node_client::{NodeClient, put_request, random_request_id, refusal};

/// What is known of the acknowledgements on one timeline, but for repeated ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledged {
    /// When the first came.
    pub first: Nanos,
    /// When the last came, so far.
    pub last: Nanos,
    /// How many.
    pub count: u64,
}

/// How far the workload has come.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// By timeline.
    pub acknowledged: BTreeMap<TimelineId, Acknowledged>,
    /// Answered linearizable reads.
    pub reads: u64,
    /// Answered eventual reads.
    pub eventual_reads: u64,
}

impl Progress {
    /// Acknowledged commits on all timelines.
    pub fn commits(&self) -> u64 {
        self.acknowledged.values().map(|on_timeline| on_timeline.count).sum()
    }

    /// The latest timeline that something was acknowledged on.
    pub fn timeline(&self) -> TimelineId {
        self.acknowledged.keys().next_back().copied().unwrap_or_default()
    }
}

/// Where clients write down what they are told.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    history: Mutex<History>,
    progress: watch::Sender<Progress>,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), history: Mutex::default(), progress: watch::Sender::default() }
    }

    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Nanoseconds since the recording began.
    pub fn now(&self) -> Nanos {
        u64::try_from(self.began.elapsed().as_nanos()).expect("a test is shorter than 584 years")
    }

    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut History) -> T) -> T {
        change(&mut self.history.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn write(&self, write: Write) {
        if let Some(acknowledgement) = write.acknowledgement() {
            let (position, returned) = (acknowledgement.position, write.returned);
            self.progress.send_modify(|progress| {
                if !acknowledgement.already_done {
                    let first = Acknowledged { first: returned, last: returned, count: 0 };
                    let seen = progress.acknowledged.entry(position.timeline).or_insert(first);
                    seen.last = seen.last.max(returned);
                    seen.first = seen.first.min(returned);
                    seen.count += 1;
                }
            });
        }
        self.with(|history| history.writes.push(write));
    }

    fn read(&self, read: Read) {
        self.progress.send_modify(|progress| match read.consistency {
            Consistency::Linearizable => progress.reads += 1,
            Consistency::Eventual => progress.eventual_reads += 1,
        });
        self.with(|history| history.reads.push(read));
    }

    /// Reads one key at one node, and writes the answer down. None when there was no answer.
    pub async fn read_at(
        &self,
        node: &str,
        client: &NodeClient,
        key: &str,
        consistency: Consistency,
    ) -> Result<Read, tonic::Status> {
        let read = read(self, node, client, key, consistency).await?;
        self.read(read.clone());
        Ok(read)
    }

    /// Commits once at one node, and writes the answer down.
    pub async fn put_at(
        &self,
        client: &NodeClient,
        key: &str,
        value: &str,
    ) -> Result<v1::CommitResponse, tonic::Status> {
        let invoked = self.now();
        let answer = client.commit(put_request(random_request_id(), key.as_bytes(), value.as_bytes())).await;
        let outcome = match &answer {
            Ok(response) => acknowledged(response, invoked),
            Err(status) if refusal(status).is_some_and(|error| !error.reason.may_have_taken_effect()) => {
                WriteOutcome::Refused
            }
            Err(_) => WriteOutcome::Unknown,
        };
        let (key, value) = (key.to_owned(), value.to_owned());
        self.write(Write { invoked, returned: self.now(), key, value, expected: Expected::Anything, outcome });
        answer
    }
}

pub(crate) fn acknowledged(response: &v1::CommitResponse, sent: Nanos) -> WriteOutcome {
    let position = response.position.map(Position::from).unwrap_or_default();
    WriteOutcome::Acknowledged(Acknowledgement {
        node: response.node_id.clone(),
        position,
        already_done: response.already_done,
        sent,
    })
}

pub(crate) fn wire_consistency(consistency: Consistency) -> v1::Consistency {
    match consistency {
        Consistency::Linearizable => v1::Consistency::Linearizable,
        Consistency::Eventual => v1::Consistency::Eventual,
    }
}

/// Reads one key at one node without writing it down.
///
/// # Errors
/// The node's refusal.
pub async fn read(
    recorder: &Recorder,
    node: &str,
    client: &NodeClient,
    key: &str,
    consistency: Consistency,
) -> Result<Read, tonic::Status> {
    let asked = wire_consistency(consistency);
    let invoked = recorder.now();
    let answer = client.get(key.as_bytes(), asked).await?;
    let returned = recorder.now();
    let version = answer.version.map(Position::from).unwrap_or_default();
    let seen = answer.value.map(|value| (String::from_utf8_lossy(&value).into_owned(), version));
    let read_position = answer.read_position.map(Position::from).unwrap_or_default();
    Ok(Read { invoked, returned, key: key.to_owned(), consistency, node: node.to_owned(), seen, read_position })
}

#[cfg(test)]
mod tests {
    use understudy_types::Lsn;

    use super::*;

    #[test]
    fn progress_counts_each_timeline_and_no_repeated_outcome() {
        let recorder = Recorder::new();
        let write = |timeline: u32, lsn: u64, returned: Nanos, already_done: bool| {
            let position = Position::new(TimelineId::new(timeline), Lsn::new(lsn));
            let acknowledgement = Acknowledgement { node: "a".to_owned(), position, already_done, sent: 0 };
            let outcome = WriteOutcome::Acknowledged(acknowledgement);
            Write {
                invoked: 0,
                returned,
                key: "k".to_owned(),
                value: lsn.to_string(),
                expected: Expected::Anything,
                outcome,
            }
        };
        recorder.write(write(1, 10, 5, false));
        recorder.write(write(1, 20, 9, false));
        recorder.write(write(2, 30, 12, false));
        recorder.write(write(1, 15, 14, true));
        let progress = recorder.progress.borrow().clone();
        assert_eq!((progress.commits(), progress.timeline()), (3, TimelineId::new(2)));
        assert_eq!(progress.acknowledged[&TimelineId::FIRST], Acknowledged { first: 5, last: 9, count: 2 });
    }
}
