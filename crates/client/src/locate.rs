//! Who the primary is: one task per client finds out, all calls share what it found.
//!
//! The task sleeps until a call reports that the primary is lost (an attempt failed) or in doubt (an attempt goes
//! unanswered). Then it asks every known node for its status, each in a loop of its own with a pause of 10 to 50 ms,
//! so that a dead or frozen node holds up nobody, until a node says of itself that it is the primary and writable.
//! What others say about the primary is not enough: after a crash they name the dead one for a while. A node whose
//! timeline is below one that was heard of is not believed.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use understudy_rpc::v1;

use crate::nodes::Nodes;
use crate::reached::Reached;

/// Between two questions to the same node while the primary is looked for.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// A node that does not answer its status for this long is asked again.
const STATUS_TIMEOUT: Duration = Duration::from_millis(500);
/// A primary that says it is not writable is taken after all when no better one turned up for this long: it may
/// take the commit at a lower level, and says precisely why not otherwise.
const PATIENCE: Duration = Duration::from_secs(1);
/// Answers under way to the task.
const ANSWERS_MAX: usize = 64;

/// Where requests for the primary go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Primary {
    pub(crate) name: String,
    pub(crate) address: String,
    /// Zero when only a redirect told of it.
    pub(crate) timeline: u32,
}

/// What is known now. The epoch grows whenever a primary is found, so that a late report about an earlier one
/// does not spoil it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct View {
    pub(crate) epoch: u64,
    pub(crate) primary: Option<Primary>,
}

pub(crate) struct Locator {
    pub(crate) nodes: Nodes,
    view: watch::Sender<View>,
    hunt: Notify,
    /// Why there is no primary, for the error of a call that finds none.
    trouble: Mutex<String>,
    cluster: Mutex<Cluster>,
    reached: Mutex<Reached>,
}

/// Which cluster the nodes belong to. A client serves one: a commit sent to another would be lost to its readers.
#[derive(Debug, Default)]
struct Cluster {
    /// Of the first node that said, and its address.
    first: Option<(String, String)>,
    /// Set once a node said otherwise: for good.
    conflict: Option<String>,
}

impl Locator {
    pub(crate) fn new(nodes: Nodes) -> Self {
        let trouble = Mutex::new("no node has answered yet".to_owned());
        Self {
            nodes,
            view: watch::Sender::new(View::default()),
            hunt: Notify::new(),
            trouble,
            cluster: Mutex::default(),
            reached: Mutex::default(),
        }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// The primary of `epoch` does not serve: it is looked for, unless that is done already.
    pub(crate) fn lost(&self, epoch: u64) {
        self.view.send_if_modified(|view| view.epoch == epoch && view.primary.take().is_some());
        self.hunt.notify_one();
    }

    /// The primary does not answer; perhaps there is another one by now. The view stays until one is found.
    pub(crate) fn doubt(&self) {
        self.hunt.notify_one();
    }

    /// The primary of `epoch`, asked at `from`, named another one and its address.
    pub(crate) fn redirect(&self, epoch: u64, from: &str, name: String, address: &str) {
        let Ok(advertised) = self.nodes.learn_one(address) else { return self.lost(epoch) };
        let address = self.lock_reached().redirected(from, &name, &advertised).to_owned();
        self.view.send_if_modified(|view| {
            if view.epoch != epoch {
                return false;
            }
            *view = View { epoch: epoch + 1, primary: Some(Primary { name, address, timeline: 0 }) };
            true
        });
    }

    /// What no call can succeed after: the nodes belong to two clusters.
    pub(crate) fn conflict(&self) -> Option<String> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner).conflict.clone()
    }

    /// Takes over which cluster the node at `address` belongs to, and its members. False when it is another one than before.
    pub(crate) fn learn(&self, address: &str, status: &v1::StatusResponse) -> bool {
        let mut cluster = self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
        if status.system_id.is_empty() {
            return cluster.conflict.is_none();
        }
        let (first, other) =
            cluster.first.get_or_insert_with(|| (status.system_id.clone(), address.to_owned())).clone();
        if first != status.system_id {
            let message = format!(
                "the endpoints belong to different clusters: {other} to the one with system id {first}, {address} to \
                 {}; give endpoints of one cluster",
                status.system_id
            );
            cluster.conflict.get_or_insert(message);
            // Wakes the calls that wait for a primary, and none is found any more.
            self.view.send_modify(|view| *view = View { epoch: view.epoch + 1, primary: None });
        }
        if cluster.conflict.is_some() {
            return false;
        }
        self.nodes.learn(status.generation, status.members.iter().map(|member| member.address.as_str()));
        self.note_reached(address, status);
        true
    }

    /// Of the primary that is known; zero when none is, or when only a redirect told of it.
    pub(crate) fn timeline(&self) -> u32 {
        self.view.borrow().primary.as_ref().map_or(0, |primary| primary.timeline)
    }

    /// Where the member `name` is reached; none when it never answered.
    pub(crate) fn reached(&self, name: &str) -> Option<String> {
        self.lock_reached().address(name).map(str::to_owned)
    }

    /// The node at `address` said who it is.
    fn note_reached(&self, address: &str, status: &v1::StatusResponse) {
        let named = |name: &str| status.members.iter().find(|member| member.name.eq_ignore_ascii_case(name));
        let Some(member) = named(&status.answered_by) else { return };
        let addresses = self.nodes.addresses();
        let mut reached = self.lock_reached();
        reached.keep(|name| named(name).is_some(), &addresses);
        reached.note(&member.name, &member.address, address, Instant::now());
    }

    fn lock_reached(&self) -> MutexGuard<'_, Reached> {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why no primary was found last.
    pub(crate) fn trouble(&self) -> String {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_trouble(&self, text: String) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    fn found(&self, primary: Primary) {
        tracing::debug!(name = primary.name, address = primary.address, timeline = primary.timeline, "primary found");
        self.view.send_modify(|view| *view = View { epoch: view.epoch + 1, primary: Some(primary) });
    }
}

/// The task. Ends when it is aborted with the last handle of the client.
pub(crate) async fn run(locator: Arc<Locator>) {
    let mut heard = Heard::default();
    loop {
        locator.hunt.notified().await;
        hunt(&locator, &mut heard).await;
    }
}

/// What the nodes have told so far.
#[derive(Debug, Default)]
struct Heard {
    /// The latest timeline that any of them knows.
    timeline: u32,
    /// The given endpoints that belong to the cluster: they said so, or a node named them among its members. Those that
    /// cannot be reached are in here too. No primary is taken before all are: one of them may belong to another cluster.
    seeds: BTreeSet<String>,
}

struct Answer {
    address: String,
    status: Result<v1::StatusResponse, String>,
}

/// Asks everybody until there is a primary; when there is one already, asks everybody once for a later one.
async fn hunt(locator: &Locator, heard: &mut Heard) {
    let (answers, mut inbox) = mpsc::channel(ANSWERS_MAX);
    let mut probes = JoinSet::new();
    let mut probed = BTreeSet::new();
    let mut answered = BTreeSet::new();
    let began = Instant::now();
    loop {
        for address in locator.nodes.addresses() {
            if probed.insert(address.clone()) {
                match locator.nodes.cluster(&address) {
                    Ok(client) => drop(probes.spawn(probe(client, address, answers.clone()))),
                    Err(error) => {
                        tracing::debug!(%error, "a known address cannot be used");
                        answered.insert(address);
                    }
                }
            }
        }
        let Some(Answer { address, status }) = inbox.recv().await else { return };
        match status {
            Ok(status) => consider(locator, heard, &address, &status, began.elapsed() >= PATIENCE),
            Err(why) => {
                heard.seeds.insert(address.clone());
                if heard.timeline == 0 {
                    locator.set_trouble(format!("{address}: {why}"));
                }
            }
        }
        answered.insert(address);
        let found = locator.view.borrow().primary.is_some();
        if (found && answered.is_superset(&probed)) || locator.conflict().is_some() {
            return;
        }
    }
}

/// Takes over what one node says.
fn consider(locator: &Locator, heard: &mut Heard, address: &str, status: &v1::StatusResponse, impatient: bool) {
    if !locator.learn(address, status) {
        return;
    }
    heard.seeds.insert(address.to_owned());
    heard.seeds.extend(status.members.iter().map(|member| member.address.clone()));
    heard.timeline = heard.timeline.max(status.timeline);
    let is_itself = !status.primary.is_empty() && status.primary.eq_ignore_ascii_case(&status.answered_by);
    if !is_itself || status.timeline < heard.timeline || status.election.is_some() {
        locator.set_trouble(trouble(status));
        return;
    }
    let all_seeds = locator.nodes.seeds().iter().all(|seed| heard.seeds.contains(seed));
    let present = locator.view.borrow().primary.clone();
    let wanted = match present {
        None => (status.writable && all_seeds) || impatient,
        Some(primary) => status.timeline > primary.timeline,
    };
    if wanted {
        let name = status.primary.clone();
        locator.found(Primary { name, address: address.to_owned(), timeline: status.timeline });
    } else if !status.writable {
        locator.set_trouble(trouble(status));
    }
}

fn trouble(status: &v1::StatusResponse) -> String {
    let by = &status.answered_by;
    match &status.election {
        Some(election) if election.blocked.is_empty() => {
            format!("{by} says that timeline {} is being decided ({})", election.timeline, election.reason)
        }
        Some(election) => {
            format!("{by} says that the election for timeline {} is blocked: {}", election.timeline, election.blocked)
        }
        None if status.primary.is_empty() => format!("{by} says that the cluster has no primary yet"),
        None if status.not_writable_reason.is_empty() => {
            format!("{by} says that {} is the primary, which does not answer", status.primary)
        }
        None => {
            format!("{by} says that {} is the primary, not writable: {}", status.primary, status.not_writable_reason)
        }
    }
}

async fn probe(
    mut client: v1::cluster_client::ClusterClient<tonic::transport::Channel>,
    address: String,
    answers: mpsc::Sender<Answer>,
) {
    let mut pause = PAUSE_MIN;
    loop {
        let status = match timeout(STATUS_TIMEOUT, client.status(v1::StatusRequest {})).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(crate::classify::describe(&status)),
            Err(_) => Err(format!("no answer within {} ms", STATUS_TIMEOUT.as_millis())),
        };
        if answers.send(Answer { address: address.clone(), status }).await.is_err() {
            return;
        }
        sleep(pause).await;
        pause = (pause * 3 / 2).min(PAUSE_MAX);
    }
}
