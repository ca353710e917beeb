//! Reads that need not be the primary's: which node answers, and what happens when it does not.
//!
//! Nodes take turns. Who streams is known from the status of any node, asked again in the background at most once in
//! [`ROSTER_AGE_MAX`] while such reads are made. A node that fails, refuses, or does not answer within the attempt timeout is
//! passed over for [`SKIP`], the read goes to the next one, until its deadline; when all are passed over they are asked all
//! the same.
//!
//! A member is asked where it answered its status, which need not be where it says that it is: the addresses that members
//! advertise may lead nowhere from here. After those that answered come the given endpoints at which nobody did, and last
//! the advertised addresses of members that never answered anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;
use tonic::transport::Channel;
use understudy_rpc::v1;
use understudy_rpc::v1::kv_client::KvClient;

use crate::classify::{Next, classify};
use crate::error::ClientError;
use crate::locate::Locator;
use crate::options::Options;
use crate::read::ReadPreference;

/// Between two rounds over the nodes of a read that none of them answered.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a node that failed is passed over.
const SKIP: Duration = Duration::from_secs(1);
/// How old the list of nodes may be before it is asked for again.
const ROSTER_AGE_MAX: Duration = Duration::from_secs(1);
/// A node that does not answer its status for this long does not know the list.
const STATUS_TIMEOUT: Duration = Duration::from_millis(500);
/// For how long an address that was learnt, and where nobody answered, is not asked for its status again: it may be a name
/// that does not resolve here. The given endpoints are always asked.
const QUIET: Duration = Duration::from_secs(5);

/// A node that answers reads.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reader {
    name: String,
    /// As it advertises it.
    advertised: String,
    is_primary: bool,
}

/// Who answers reads, as some node saw it.
#[derive(Debug, Clone, Default)]
struct Roster {
    /// None before any node was asked.
    asked_at: Option<Instant>,
    readers: Vec<Reader>,
    /// The addresses at which some node said who it is, when they were asked last.
    answered: BTreeSet<String>,
}

impl Roster {
    fn of(status: &v1::StatusResponse) -> Vec<Reader> {
        let streams = |member: &&v1::MemberStatus| match member.role.as_str() {
            "primary" => member.state == "running",
            "standby" => member.state == "streaming",
            _ => false,
        };
        let reader = |member: &v1::MemberStatus| Reader {
            name: member.name.clone(),
            advertised: member.address.clone(),
            is_primary: member.role == "primary",
        };
        status.members.iter().filter(streams).map(reader).collect()
    }
}

/// What a round of asking has come to so far.
#[derive(Debug, Default)]
struct Heard {
    asked: BTreeSet<String>,
    /// Where some node said who it is.
    answered: BTreeSet<String>,
    /// Where the question came to nothing.
    silent: BTreeSet<String>,
    /// Of those who answered, in lower case.
    names: BTreeSet<String>,
    /// The word that counts most.
    best: Option<v1::StatusResponse>,
}

impl Heard {
    fn note(&mut self, address: String, status: v1::StatusResponse) {
        self.answered.insert(address);
        self.names.insert(status.answered_by.to_ascii_lowercase());
        // Of several the primary's word counts most: it knows best who streams from it.
        let rank = |status: &v1::StatusResponse| (status.timeline, is_primarys(status));
        if self.best.as_ref().is_none_or(|best| rank(best) <= rank(&status)) {
            self.best = Some(status);
        }
    }

    /// Whether a later answer hardly changes who reads are sent to: a primary, of no earlier timeline than `timeline`, has
    /// said who streams, all of them have answered, and none of the given endpoints can still say otherwise.
    fn is_likely_to_stand(&self, seeds: &[String], timeline: u32) -> bool {
        let Some(best) = &self.best else { return false };
        let readers = Roster::of(best);
        let has_answered = |reader: &Reader| self.names.contains(&reader.name.to_ascii_lowercase());
        let is_settled = |seed: &String| self.answered.contains(seed) || self.silent.contains(seed);
        is_primarys(best)
            && best.timeline >= timeline
            && !readers.is_empty()
            && readers.iter().all(has_answered)
            && seeds.iter().all(is_settled)
    }
}

/// Whether the one who says this is the primary by its own word.
fn is_primarys(status: &v1::StatusResponse) -> bool {
    !status.primary.is_empty() && status.primary.eq_ignore_ascii_case(&status.answered_by)
}

/// Shared by all reads of a client.
pub(crate) struct Spread {
    turn: AtomicUsize,
    roster: watch::Sender<Roster>,
    refreshing: AtomicBool,
    /// Who is passed over, and until when.
    skipped: Mutex<BTreeMap<String, Instant>>,
    /// Which learnt addresses are not asked for their status, and until when.
    quiet: Mutex<BTreeMap<String, Instant>>,
}

impl Default for Spread {
    fn default() -> Self {
        Self {
            turn: AtomicUsize::new(0),
            roster: watch::Sender::new(Roster::default()),
            refreshing: AtomicBool::new(false),
            skipped: Mutex::default(),
            quiet: Mutex::default(),
        }
    }
}

impl Spread {
    /// Calls `send` with one node after the other, until one answers, one refuses for good, or `deadline` has come.
    pub(crate) async fn read<T, F>(
        self: &Arc<Self>,
        locator: &Arc<Locator>,
        options: &Options,
        preference: ReadPreference,
        send: F,
    ) -> Result<T, ClientError>
    where
        F: Fn(KvClient<Channel>, Duration) -> BoxFuture<'static, Result<T, Status>>,
    {
        let deadline = Instant::now() + options.deadline;
        // The last word of a node: it says more than that the next one was silent.
        let mut last = None;
        loop {
            let mut why = last.clone().unwrap_or_else(|| "no node is known that answers reads".to_owned());
            for address in self.candidates(locator, options, preference).await {
                if let Some(conflict) = locator.conflict() {
                    return Err(ClientError::Invalid { message: conflict });
                }
                let left = deadline.saturating_duration_since(Instant::now()).min(options.attempt_timeout);
                let client = locator.nodes.kv(&address)?;
                why = match timeout(left, send(client, left)).await {
                    Ok(Ok(value)) => return Ok(value),
                    Ok(Err(status)) => {
                        let failed = classify(&status);
                        if let Next::Reject(error) = failed.next {
                            return Err(ClientError::refused(error));
                        }
                        last.insert(format!("{address}: {}", failed.why)).clone()
                    }
                    Err(_) => match &last {
                        Some(last) => format!("{address} has not answered; before that: {last}"),
                        None => format!("{address} has not answered"),
                    },
                };
                tracing::debug!(address, why, "a read goes to the next node");
                self.skip(address);
                if Instant::now() >= deadline {
                    return Err(ClientError::Unavailable { why });
                }
            }
            if Instant::now() + PAUSE >= deadline {
                return Err(ClientError::Unavailable { why });
            }
            sleep(PAUSE).await;
        }
    }

    fn skip(&self, address: String) {
        let now = Instant::now();
        let mut skipped = self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        skipped.retain(|_, until| *until > now);
        skipped.insert(address, now + SKIP);
    }

    /// Whom to ask, in this order.
    async fn candidates(
        self: &Arc<Self>,
        locator: &Arc<Locator>,
        options: &Options,
        preference: ReadPreference,
    ) -> Vec<String> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        if preference == ReadPreference::Endpoints {
            return rotated(locator.nodes.seeds().to_vec(), turn);
        }
        let Roster { readers, answered, .. } = self.roster(locator, options).await;
        if readers.is_empty() {
            return rotated(locator.nodes.addresses().into_iter().collect(), turn);
        }
        let (first, last): (Vec<Reader>, Vec<Reader>) = readers.into_iter().partition(|reader| match preference {
            ReadPreference::PreferStandby => !reader.is_primary,
            ReadPreference::Primary => reader.is_primary,
            ReadPreference::Any | ReadPreference::Endpoints => true,
        });
        let (mut order, mut nowhere) = (Vec::new(), Vec::new());
        for reader in rotated(first, turn).into_iter().chain(rotated(last, turn)) {
            match locator.reached(&reader.name) {
                Some(address) => order.push(address),
                None => nowhere.push(reader.advertised),
            }
        }
        let seeds = locator.nodes.seeds().iter().filter(|seed| !answered.contains(*seed));
        order.extend(seeds.cloned().chain(nowhere));
        let mut seen = BTreeSet::new();
        order.retain(|address| seen.insert(address.clone()));
        let now = Instant::now();
        let skipped = self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        // Stable: who is passed over keeps its order behind the others.
        order.sort_by_key(|address| skipped.get(address).is_some_and(|until| *until > now));
        order
    }

    async fn roster(self: &Arc<Self>, locator: &Arc<Locator>, options: &Options) -> Roster {
        let mut roster = self.roster.subscribe();
        let asked_at = roster.borrow().asked_at;
        if asked_at.is_none_or(|at| at.elapsed() >= ROSTER_AGE_MAX) && !self.refreshing.swap(true, Ordering::AcqRel) {
            let (spread, locator) = (Arc::clone(self), Arc::clone(locator));
            tokio::spawn(async move { spread.refresh(&locator).await });
        }
        if asked_at.is_none() {
            // The first read waits for it, and does without it when nobody knows.
            let known = timeout(options.attempt_timeout, roster.wait_for(|roster| roster.asked_at.is_some())).await;
            tracing::trace!(known = known.is_ok(), "who answers reads was asked for");
        }
        roster.borrow().clone()
    }

    /// Asks the nodes who streams, those too that are learnt from the answers, and takes the word of those with the latest
    /// timeline. Nobody is left out for being slow, or else a primary that was cut off and replaced, and answers first, would
    /// be believed for good: it sees only itself. While there is no list at all, reads wait for this, so a word that is
    /// likely to stand is given out before the round is over.
    async fn refresh(&self, locator: &Locator) {
        let mut round = FuturesUnordered::new();
        let mut heard = Heard::default();
        loop {
            for address in locator.nodes.addresses() {
                if !self.is_quiet(locator, &address) && heard.asked.insert(address.clone()) {
                    round.push(ask(locator, address));
                }
            }
            let Some((address, answer)) = round.next().await else { break };
            match answer {
                Some(status) => {
                    locator.learn(&address, &status);
                    heard.note(address, status);
                }
                None => drop(heard.silent.insert(address)),
            }
            let has_none = self.roster.borrow().asked_at.is_none();
            if has_none && heard.is_likely_to_stand(locator.nodes.seeds(), locator.timeline()) {
                self.publish(&heard);
            }
        }
        self.keep_quiet(heard.silent.iter().filter(|address| !locator.nodes.seeds().contains(address)));
        self.publish(&heard);
        self.refreshing.store(false, Ordering::Release);
    }

    fn publish(&self, heard: &Heard) {
        self.roster.send_modify(|roster| {
            roster.asked_at = Some(Instant::now());
            roster.answered.clone_from(&heard.answered);
            if let Some(status) = &heard.best {
                roster.readers = Roster::of(status);
            }
        });
    }

    fn is_quiet(&self, locator: &Locator, address: &String) -> bool {
        let quiet = self.quiet.lock().unwrap_or_else(PoisonError::into_inner);
        let is_given = locator.nodes.seeds().contains(address);
        !is_given && quiet.get(address).is_some_and(|until| *until > Instant::now())
    }

    fn keep_quiet<'a>(&self, addresses: impl Iterator<Item = &'a String>) {
        let now = Instant::now();
        let mut quiet = self.quiet.lock().unwrap_or_else(PoisonError::into_inner);
        quiet.retain(|_, until| *until > now);
        quiet.extend(addresses.map(|address| (address.clone(), now + QUIET)));
    }
}

async fn ask(locator: &Locator, address: String) -> (String, Option<v1::StatusResponse>) {
    let answer = async {
        let mut client = locator.nodes.cluster(&address).ok()?;
        Some(timeout(STATUS_TIMEOUT, client.status(v1::StatusRequest {})).await.ok()?.ok()?.into_inner())
    };
    let answer = answer.await;
    (address, answer)
}

fn rotated<T>(mut items: Vec<T>, turn: usize) -> Vec<T> {
    if !items.is_empty() {
        let middle = turn % items.len();
        items.rotate_left(middle);
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nodes_that_stream_or_are_the_primary_answer_reads() {
        let member = |address: &str, role: &str, state: &str| v1::MemberStatus {
            address: address.to_owned(),
            role: role.to_owned(),
            state: state.to_owned(),
            ..v1::MemberStatus::default()
        };
        let status = v1::StatusResponse {
            members: vec![
                member("a:1", "primary", "running"),
                member("b:1", "standby", "streaming"),
                member("c:1", "standby", "catchup"),
                member("d:1", "standby", "unreachable"),
                member("e:1", "witness", "running"),
                member("f:1", "standby", "stays_out"),
            ],
            ..v1::StatusResponse::default()
        };
        let readers: Vec<String> = Roster::of(&status).into_iter().map(|reader| reader.advertised).collect();
        assert_eq!(readers, ["a:1", "b:1"]);
    }

    #[test]
    fn turns_go_round() {
        assert_eq!(rotated(vec![1, 2, 3], 4), [2, 3, 1]);
        assert_eq!(rotated(Vec::<u8>::new(), 4), Vec::<u8>::new());
    }
}
