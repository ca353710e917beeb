//! Constant writers and readers, which record everything that they are told.
//!
//! | client | what it does, again and again |
//! |---|---|
//! | writer | puts a value that nobody ever put before into one of a few registers, at level `on` |
//! | incrementer | reads a counter, adds one under the condition that the version is still the one that was read |
//! | reader | a linearizable read of any key, at whoever is the primary |
//! | eventual reader | one per node: reads any key there |
//! | teller | moves money between two accounts ([`crate::transfers`]) |
//! | counter | scans all accounts: one at the primary, one at each node |
//! | clinging client | one of the above that asks one node only, whatever it says ([`Workload::cling_to`]) |
//!
//! A client asks the node that it takes for the primary, waits a bounded time, and asks again elsewhere: always with
//! the same request id, so that a commit takes effect once. It is deliberately simpler than the Rust client: what a
//! client is told, and when, is the evidence here, and the demo uses the Rust client.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::watch;
use tokio::task::JoinSet;
use understudy_rpc::error::{Reason, RpcError};
use understudy_rpc::v1;
use understudy_types::TimelineId;

use crate::cluster::Cluster;
use crate::history::{Consistency, Expected, History, Read, Write, WriteOutcome};
use crate::node_client::{NodeClient, put_request, random_request_id, refusal};
use crate::recorder::{Progress, Recorder, acknowledged};

/// How long one attempt may take. Shorter than any freeze in the tests, so that an answer which was under way when its
/// node froze is nobody's any more when the node goes on.
pub const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(1_200);
/// After this long a client gives up: the outcome is unknown.
pub(crate) const GIVE_UP: Duration = Duration::from_secs(10);
/// Between two operations of a client: it is the faults that are tested, not the throughput.
pub(crate) const PAUSE: Duration = Duration::from_millis(3);
/// A second put in every commit, of a key that nobody reads: the log is to have several segments.
const FILLER: [u8; 2_000] = [b'.'; 2_000];
/// Before the same thing is asked again.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// How many of what.
#[derive(Debug, Clone)]
pub struct Load {
    /// Clients that put.
    pub writers: usize,
    /// Clients that increment.
    pub incrementers: usize,
    /// Clients that read at the primary.
    pub readers: usize,
    /// Keys that are put.
    pub registers: usize,
    /// Keys that are incremented.
    pub counters: usize,
    /// Clients that move money.
    pub tellers: usize,
    /// Between which they move it; at least two.
    pub accounts: usize,
}

impl Default for Load {
    fn default() -> Self {
        Self { writers: 6, incrementers: 3, readers: 4, registers: 5, counters: 2, tellers: 2, accounts: 6 }
    }
}

impl Load {
    /// Every key that is used.
    pub fn keys(&self) -> Vec<String> {
        let registers = (0..self.registers).map(|number| format!("register/{number}"));
        registers.chain((0..self.counters).map(counter)).collect()
    }
}

fn counter(number: usize) -> String {
    format!("counter/{number}")
}

/// The clients at work.
#[derive(Debug)]
pub struct Workload {
    /// What they write down.
    pub recorder: Arc<Recorder>,
    /// How many of what they are.
    pub load: Load,
    progress: watch::Receiver<Progress>,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
    /// How many were set to work.
    sessions: usize,
}

impl Workload {
    /// Sets the clients to work.
    pub fn start(cluster: &Cluster, load: Load) -> Workload {
        let recorder = Arc::new(Recorder::new());
        recorder.with(|history| history.ledger.accounts = load.accounts);
        let progress = recorder.progress();
        let stop = watch::Sender::new(false);
        let mut workload = Workload { recorder, load, progress, stop, clients: JoinSet::new(), sessions: 0 };
        let (names, load) = (cluster.names(), workload.load.clone());
        for _ in 0..load.writers {
            let session = workload.session(cluster, &names);
            workload.clients.spawn(session.write_forever(load.clone()));
        }
        for _ in 0..load.incrementers {
            let session = workload.session(cluster, &names);
            workload.clients.spawn(session.increment_forever(load.clone()));
        }
        for _ in 0..load.readers {
            let session = workload.session(cluster, &names);
            workload.clients.spawn(session.read_forever(load.clone()));
        }
        for node in 0..names.len() {
            let (reader, counter) = (workload.session(cluster, &names), workload.session(cluster, &names));
            workload.clients.spawn(reader.read_eventually_forever(node, load.clone()));
            workload.clients.spawn(counter.count_forever(Some(node)));
        }
        for number in 0..load.tellers {
            let mut session = workload.session(cluster, &names);
            let accounts = load.accounts;
            workload.clients.spawn(async move {
                if number == 0 {
                    session.open_accounts(accounts).await;
                }
                session.transfer_forever(accounts).await;
            });
        }
        let session = workload.session(cluster, &names);
        workload.clients.spawn(session.count_forever(None));
        workload
    }

    /// A writer, a reader and a teller that ask this node and no other from now on: a client that is on the side of a
    /// primary that was cut off, and does not know.
    pub fn cling_to(&mut self, cluster: &Cluster, name: &str) {
        let (only, load) = ([name.to_owned()], self.load.clone());
        let session = self.session(cluster, &only);
        self.clients.spawn(session.write_forever(load.clone()));
        let session = self.session(cluster, &only);
        self.clients.spawn(session.read_forever(load.clone()));
        let session = self.session(cluster, &only);
        self.clients.spawn(session.transfer_forever(load.accounts));
    }

    fn session(&mut self, cluster: &Cluster, names: &[String]) -> Session {
        let with_client = |name: &String| (name.clone(), cluster.client(name, ATTEMPT_TIMEOUT));
        let number = self.sessions;
        self.sessions += 1;
        Session {
            number,
            recorder: Arc::clone(&self.recorder),
            nodes: names.iter().map(with_client).collect(),
            addresses: names.iter().map(|name| cluster.address(name).to_owned()).collect(),
            believed: number % names.len(),
            sequence: 0,
            stopped: self.stop.subscribe(),
        }
    }

    /// How far it has come.
    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Waits until the clients have come as far as that.
    ///
    /// # Errors
    /// When they have not in time.
    pub async fn wait_for(
        &self,
        what: &str,
        timeout: Duration,
        ready: impl FnMut(&Progress) -> bool,
    ) -> Result<Progress> {
        let mut progress = self.progress.clone();
        let waited = tokio::time::timeout(timeout, progress.wait_for(ready)).await;
        let reached =
            waited.with_context(|| format!("waited {} s for {what}: {:?}", timeout.as_secs(), self.progress()))?;
        Ok(reached.context("the clients are gone")?.clone())
    }

    /// Waits until so many more commits were acknowledged and reads were answered.
    ///
    /// # Errors
    /// As [`Workload::wait_for`].
    pub async fn wait_more(&self, commits: u64, reads: u64, timeout: Duration) -> Result<Progress> {
        let now = self.progress();
        let what = format!("{commits} more commits and {reads} more reads");
        self.wait_for(&what, timeout, |then| {
            then.commits() >= now.commits() + commits && then.reads >= now.reads + reads
        })
        .await
    }

    /// Waits for the first acknowledgement on a timeline after `old`. Gives the timeline.
    ///
    /// # Errors
    /// As [`Workload::wait_for`].
    pub async fn wait_timeline_after(&self, old: TimelineId, timeout: Duration) -> Result<TimelineId> {
        let what = format!("an acknowledgement on a timeline after {old}");
        Ok(self.wait_for(&what, timeout, |progress| progress.timeline() > old).await?.timeline())
    }

    /// Lets every client end its last operation, and gives what they wrote down.
    ///
    /// # Errors
    /// When a client panicked.
    pub async fn stop(mut self) -> Result<History> {
        self.stop.send_replace(true);
        while let Some(ended) = self.clients.join_next().await {
            ended.context("a client of the workload failed")?;
        }
        Ok(self.recorder.with(std::mem::take))
    }
}

/// One client.
pub(crate) struct Session {
    pub(crate) number: usize,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) nodes: Vec<(String, NodeClient)>,
    addresses: Vec<String>,
    /// Whom it takes for the primary.
    pub(crate) believed: usize,
    pub(crate) sequence: u64,
    stopped: watch::Receiver<bool>,
}

impl Session {
    pub(crate) fn goes_on(&self) -> bool {
        !*self.stopped.borrow()
    }

    /// A value that nobody else writes.
    pub(crate) fn value(&mut self) -> String {
        self.sequence += 1;
        format!("{}-{}", self.number, self.sequence)
    }

    async fn write_forever(mut self, load: Load) {
        while self.goes_on() {
            let value = self.value();
            let key = format!("register/{}", (self.number + self.sequence as usize) % load.registers);
            self.commit(&key, value, Expected::Anything).await;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn increment_forever(mut self, load: Load) {
        while self.goes_on() {
            let unique = self.value();
            let key = counter((self.number + self.sequence as usize) % load.counters);
            if let Some(read) = self.read(&key).await {
                let (count, expected) = match &read.seen {
                    Some((value, version)) => (count_of(value), Expected::Version(*version)),
                    None => (0, Expected::Absent),
                };
                self.commit(&key, format!("{}:{unique}", count + 1), expected).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn read_forever(mut self, load: Load) {
        let keys = load.keys();
        while self.goes_on() {
            self.sequence += 1;
            let key = &keys[(self.number + self.sequence as usize) % keys.len()];
            self.read(key).await;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn read_eventually_forever(mut self, node: usize, load: Load) {
        let keys = load.keys();
        let (name, client) = self.nodes[node].clone();
        while self.goes_on() {
            self.sequence += 1;
            let key = &keys[self.sequence as usize % keys.len()];
            let answered = self.recorder.read_at(&name, &client, key, Consistency::Eventual).await.is_ok();
            tokio::time::sleep(if answered { PAUSE } else { RETRY_PAUSE }).await;
        }
    }

    /// A linearizable read, at whoever answers; none when nobody did for a long time.
    async fn read(&mut self, key: &str) -> Option<Read> {
        let deadline = Instant::now() + GIVE_UP;
        while Instant::now() < deadline && self.goes_on() {
            let (name, client) = &self.nodes[self.believed];
            match self.recorder.read_at(name, client, key, Consistency::Linearizable).await {
                Ok(read) => return Some(read),
                Err(status) => self.look_elsewhere(refusal(&status).as_ref()).await,
            }
        }
        None
    }

    async fn commit(&mut self, key: &str, value: String, expected: Expected) {
        let mut request = put_request(random_request_id(), key.as_bytes(), value.as_bytes());
        request.preconditions.extend(precondition(key, expected));
        let filler = put_request([0; 16], format!("filler/{}", self.number).as_bytes(), &FILLER);
        request.operations.extend(filler.operations);
        let invoked = self.recorder.now();
        let outcome = self.outcome_of(request).await;
        let returned = self.recorder.now();
        self.recorder.write(Write { invoked, returned, key: key.to_owned(), value, expected, outcome });
    }

    pub(crate) async fn outcome_of(&mut self, request: v1::CommitRequest) -> WriteOutcome {
        let deadline = Instant::now() + GIVE_UP;
        // Whether an attempt may have taken effect, or may still: then a refusal of a later one says nothing.
        let mut loose = false;
        loop {
            let sent = self.recorder.now();
            let status = match self.nodes[self.believed].1.commit(request.clone()).await {
                Ok(response) => return acknowledged(&response, sent),
                Err(status) => status,
            };
            let refusal = refusal(&status);
            loose |= refusal.as_ref().is_none_or(|error| error.reason.may_have_taken_effect());
            let final_word = refusal.as_ref().is_some_and(|error| !error.reason.is_retryable());
            if final_word || Instant::now() >= deadline || !self.goes_on() {
                return if loose { WriteOutcome::Unknown } else { WriteOutcome::Refused };
            }
            self.look_elsewhere(refusal.as_ref()).await;
        }
    }

    pub(crate) async fn look_elsewhere(&mut self, refusal: Option<&RpcError>) {
        let named =
            refusal.filter(|error| error.reason == Reason::NotPrimary).and_then(|error| error.get("primary_address"));
        let named = named.and_then(|address| self.addresses.iter().position(|known| known == address));
        self.believed = named.unwrap_or((self.believed + 1) % self.nodes.len());
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

fn count_of(value: &str) -> u64 {
    value.split(':').next().and_then(|count| count.parse().ok()).unwrap_or(0)
}

pub(crate) fn precondition(key: &str, expected: Expected) -> Option<v1::Precondition> {
    let condition = match expected {
        Expected::Anything => return None,
        Expected::Absent => v1::precondition::Condition::Absent(v1::precondition::Absent {}),
        Expected::Version(position) => v1::precondition::Condition::VersionEquals(position.into()),
    };
    Some(v1::Precondition { key: key.as_bytes().to_vec().into(), condition: Some(condition) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_read_back_from_its_value() {
        assert_eq!(count_of("17:3-99"), 17);
        assert_eq!(count_of("x"), 0);
    }
}
