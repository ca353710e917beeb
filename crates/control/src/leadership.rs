//! Who leads Raft, as this node sees it, and the tasks that watch over it.
//!
//! Derived from the library's metrics, which change with every message: [`Leadership`], which changes only when something
//! that matters does; the failure that ends the process; and since when this node leads, and is followed. Beside it
//! runs the watch of a node that stands aside.
//!
//! A leader that is followed keeps its place against who does not hear it ([`keeps_its_place`]). The library's voters
//! refuse other candidates for as long as they hear their leader, but its leader refuses nobody: with three voters, a node
//! that the others hear and that hears nobody (behind a firewall that swallows what comes in) would win with the leader's
//! own vote, and then decide by what it cannot hear. Who does hear the leader, and has stood, deposes it by its answer to
//! the next heartbeat: so a ballot is held back for as long as that takes, and a node that was frozen is elected as
//! before.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openraft::ServerState;
use openraft::error::Fatal;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use understudy_types::NodeId;

use crate::control::Core;
use crate::error::ControlError;
use crate::timing;
use crate::wire::{Ballot, BallotRequest, Metrics};

/// What a node is in Raft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RaftRole {
    /// It takes commands.
    Leader,
    /// It follows a leader, or waits for one.
    Follower,
    /// It stands for leadership.
    Candidate,
    /// It has no vote; also before it belongs to a cluster.
    #[default]
    Learner,
    /// Raft does not run any more.
    Stopped,
}

impl RaftRole {
    /// As it is shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Learner => "learner",
            Self::Stopped => "stopped",
        }
    }
}

impl std::fmt::Display for RaftRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// Raft as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leadership {
    /// Who won the last election that this node heard of; none while there is one. It may be dead by now.
    pub leader: Option<NodeId>,
    /// Of the last vote that this node knows.
    pub term: u64,
    /// Whether this node leads. It may have been deposed without knowing: only a committed command proves it.
    pub i_am_leader: bool,
    /// What this node is.
    pub role: RaftRole,
    /// The log index of the last applied entry; zero before the first.
    pub last_applied: u64,
    /// Who votes; of both halves while the membership is joint.
    pub voters: BTreeSet<NodeId>,
}

impl Leadership {
    pub(crate) fn of(metrics: &Metrics) -> Self {
        let role = match metrics.state {
            ServerState::Leader => RaftRole::Leader,
            ServerState::Follower => RaftRole::Follower,
            ServerState::Candidate => RaftRole::Candidate,
            ServerState::Learner => RaftRole::Learner,
            ServerState::Shutdown => RaftRole::Stopped,
        };
        let membership = &metrics.membership_config;
        Self {
            leader: metrics.current_leader.map(NodeId::new),
            term: metrics.current_term,
            i_am_leader: role == RaftRole::Leader && metrics.current_leader == Some(metrics.id),
            role,
            last_applied: metrics.last_applied.map_or(0, |log_id| log_id.index),
            voters: membership.membership().voter_ids().map(NodeId::new).collect(),
        }
    }
}

/// Where what is derived from the metrics goes.
pub(crate) struct Derived {
    pub(crate) leadership: watch::Sender<Leadership>,
    pub(crate) leading_since: watch::Sender<Option<Instant>>,
    pub(crate) followed: watch::Sender<Option<Instant>>,
    pub(crate) failure: watch::Sender<Option<Arc<ControlError>>>,
    /// Set by a stop that was asked for: its end is no failure.
    pub(crate) stopping: Arc<AtomicBool>,
}

impl Derived {
    fn publish(&self, metrics: &Metrics) {
        let next = Leadership::of(metrics);
        self.leading_since.send_if_modified(|since| {
            let changed = since.is_some() != next.i_am_leader;
            if changed {
                *since = next.i_am_leader.then(Instant::now);
            }
            changed
        });
        let unheard = metrics.millis_since_quorum_ack.filter(|_| next.i_am_leader).map(Duration::from_millis);
        self.followed.send_replace(unheard.and_then(|unheard| Instant::now().checked_sub(unheard)));
        self.leadership.send_if_modified(|present| {
            let changed = *present != next;
            if changed {
                *present = next;
            }
            changed
        });
    }

    fn fail(&self, why: String) {
        if self.stopping.load(Ordering::SeqCst) {
            return;
        }
        tracing::error!(why, "raft stopped by itself");
        self.failure.send_replace(Some(Arc::new(ControlError::Stopped { why })));
    }

    /// Runs until Raft ends.
    pub(crate) async fn run(self, mut metrics: watch::Receiver<Metrics>) {
        loop {
            let now = metrics.borrow_and_update().clone();
            self.publish(&now);
            if let Err(fatal) = &now.running_state {
                let why = match fatal {
                    Fatal::StorageError(error) => error.to_string(),
                    Fatal::Panicked => "its task panicked".to_owned(),
                    Fatal::Stopped => "its task ended".to_owned(),
                };
                return self.fail(why);
            }
            if metrics.changed().await.is_err() {
                return self.fail("its task is gone".to_owned());
            }
        }
    }
}

/// The refusal of `ballot` by a leader that a majority has followed within the length of a lease, and that its messages to
/// the candidate do not depose; not of whom it asked to stand. None when the ballot is the library's to decide.
pub(crate) async fn keeps_its_place(core: &Core, ballot: &BallotRequest) -> Option<Ballot> {
    let candidate = ballot.vote.leader_id().voted_for().map(NodeId::new);
    let within = |since: &Instant, limit: Duration| since.elapsed() <= limit;
    let is_followed = core.followed.borrow().is_some_and(|until| within(&until, timing::ELECTION_TIMEOUT_MAX));
    let asked = *core.asked_to_stand.borrow();
    let was_asked = asked.is_some_and(|(target, since)| candidate == Some(target) && within(&since, timing::MAY_STAND));
    if !is_followed || was_asked {
        return None;
    }
    let deposed = core.followed.clone();
    if timeout(timing::BALLOT_HELD_BACK, is_deposed(deposed)).await.is_ok() {
        return None;
    }
    tracing::info!(
        ?candidate,
        term = ballot.vote.leader_id().get_term(),
        "refused a candidate for raft leadership: this node leads, a majority follows it, and the candidate does not hear it"
    );
    let metrics = core.raft.metrics();
    let vote = metrics.borrow().vote;
    let last_log = core.raft.data_metrics().borrow().last_log;
    Some(Ballot::new(vote, last_log, false))
}

/// Returns once this node does not lead any more.
async fn is_deposed(mut followed: watch::Receiver<Option<Instant>>) {
    if followed.wait_for(Option::is_none).await.is_err() {
        tracing::debug!("raft has ended");
    }
}

/// How long nobody was heard to lead, counted in looks at the clock: while this process was frozen the others were
/// not silent, so a long pause between two looks counts as a short one.
#[derive(Debug, Default)]
struct Silence {
    heard_before: u64,
    lasted: Duration,
}

impl Silence {
    /// A look: `heard` messages of a leader came until now, `since_last_look` went by.
    fn look(&mut self, heard: u64, since_last_look: Duration) -> Duration {
        if heard == self.heard_before {
            self.lasted += since_last_look.min(2 * timing::WATCH_INTERVAL);
        } else {
            self.heard_before = heard;
            self.lasted = Duration::ZERO;
        }
        self.lasted
    }
}

/// Nodes that stand aside wait for so many different times, by their ids.
const TURNS: u64 = 8;

/// Keeps a node that stands aside from standing for leadership, unless nobody else does. Runs until Raft ends.
pub(crate) async fn stand_aside(core: Arc<Core>, mut aside: watch::Receiver<bool>) {
    let mut metrics = core.raft.metrics();
    let mut silence = Silence::default();
    let mut last_look = Instant::now();
    // Two nodes that both stand aside do not stand at the same moment, again and again.
    let turn = u32::try_from(core.me.get() % TURNS).expect("a small number");
    let patience = timing::STAND_ASIDE_MAX + timing::WATCH_INTERVAL * turn;
    let again = timing::STAND_AGAIN + timing::WATCH_INTERVAL * (turn % 4);
    loop {
        let leadership = Leadership::of(&metrics.borrow_and_update());
        // Nobody else could lead where there is one voter.
        let stands_aside = *aside.borrow_and_update() && leadership.voters.len() > 1;
        core.raft.runtime_config().elect(!stands_aside);

        let lasted = silence.look(core.heard.load(Ordering::Relaxed), last_look.elapsed());
        last_look = Instant::now();
        if leadership.i_am_leader || !stands_aside || !leadership.voters.contains(&core.me) {
            silence = Silence::default();
        } else if lasted > patience {
            // Another one that stands for itself, and lacks what this node has, cannot win but has a higher term. Whoever refuses
            // says so: the next attempt goes beyond it, if it comes before that one has stood again.
            silence.lasted = patience.saturating_sub(again);
            tracing::info!(?lasted, "nobody leads raft: standing for leadership although this node stands aside");
            if core.raft.trigger().elect().await.is_err() {
                return;
            }
        }
        tokio::select! {
            changed = aside.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(timing::WATCH_INTERVAL) => if metrics.has_changed().is_err() { return },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_ends_with_a_message_and_a_freeze_is_no_silence() {
        let mut silence = Silence::default();
        let look = timing::WATCH_INTERVAL;
        assert_eq!(silence.look(0, look), look);
        assert_eq!(silence.look(0, look), 2 * look);
        assert_eq!(silence.look(1, look), Duration::ZERO);
        assert_eq!(silence.look(1, Duration::from_secs(60)), 2 * look);
    }
}
