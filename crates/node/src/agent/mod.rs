//! The failover agent: the one task that gives the node its role.
//!
//! Everything that can change the role comes in as an event: the applied cluster state, Raft leadership, what the mesh
//! heard, the end of an action, a tick. After each, the agent asks the pure core what to do ([`reconcile`]; on the
//! Raft leader also [`plan`]) and carries it out. It decides nothing itself. An action that blocks runs beside the
//! task, one at a time, and its end is an event: while a disk is stuck in a seal, beats, confirmations and the
//! planner go on.
//!
//! Kept here: a seal is on disk before it is answered by ([`Standing`]) and before it is reported (INV-FENCED);
//! a timeline is opened at most once by this process (INV-ONE-PRIMARY).

mod act;
mod lead;
mod members;
mod observe;
mod outage;
pub mod seeding;
mod settings;
mod table;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use understudy_control::{Applied, Control, Leadership};
use understudy_core::observation::{FetchOrder, NodeReport};
use understudy_core::reconcile::{Following, reconcile};
use understudy_core::settings::Settings;
use understudy_core::state::ClusterState;
use understudy_engine::Engine;
use understudy_replication::seed::{SeedSource, Seeder};
use understudy_replication::{ReceiverStatus, ReceiverTiming, Source};
use understudy_types::{Incarnation, Lsn, NodeId, TimelineId};
use understudy_wal::files::Files;

use crate::confirmer::Confirmer;
use crate::identity::DataDirError;
use crate::mesh::{Me, MeshEvent, MeshHandles, Outgoing, Standing, spawn_dialer};
use crate::promises::{PromiseFile, Promises};
use crate::services::Health;
use crate::sync_list::SyncListTask;
use crate::upstream::Upstream;
use crate::view::NodeView;

use act::Done;
use lead::Leading;
use outage::Outage;
use seeding::{Carried, Seeding};
use table::Change;
pub use table::Table;

/// How often the agent looks without being told: timeouts are noticed this late at most.
const TICK: Duration = Duration::from_millis(50);
/// Ends of actions that wait for the agent.
const DONE_MAX: usize = 16;

/// Why the agent ended. The process must exit: recovery starts over from the disk.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A promise could not be made durable.
    #[error("a promise to the other nodes cannot be made durable: {0}")]
    Promise(#[from] DataDirError),
    /// The log or the store failed in the middle of an action.
    #[error("{action} failed for good: {why}")]
    Action {
        /// What was done.
        action: &'static str,
        /// Why it failed.
        why: String,
    },
    /// Raft is gone.
    #[error("raft ended")]
    Raft,
}

/// How an agent ended.
pub enum AgentEnd {
    /// The node stops.
    Stopped,
    /// The new data of a seed is complete: it takes the place of the old, and another agent goes on.
    Seeded(Box<Carried>),
}

/// What the agent works with.
pub struct AgentParts {
    /// Who this process is.
    pub me: Me,
    /// The disk.
    pub files: Arc<dyn Files>,
    /// Where the data lies.
    pub data_dir: PathBuf,
    /// What was promised, and what an agent before this one leaves.
    pub carried: Carried,
    /// Raft.
    pub control: Control,
    /// The data.
    pub engine: Engine,
    /// Rounds of confirmation.
    pub confirmer: Confirmer,
    /// What standbys stream from.
    pub upstream: Arc<Upstream>,
    /// What other nodes are seeded by.
    pub seeder: Arc<Seeder>,
    /// What services see.
    pub view: watch::Sender<NodeView>,
    /// What beats carry.
    pub outgoing: watch::Sender<Outgoing>,
    /// What beats are answered by.
    pub standing: watch::Sender<Standing>,
    /// For dialers.
    pub mesh: MeshHandles,
    /// What load balancers see.
    pub health: Health,
    /// As the server was started: nobody is to wait for its confirmations.
    pub no_sync: bool,
    /// The node stops.
    pub stop: CancellationToken,
}

/// A walreceiver at work.
struct Follower {
    following: Following,
    stop: CancellationToken,
    status: watch::Receiver<ReceiverStatus>,
    task: JoinHandle<()>,
}

/// A timeline that this process opened and has not given up.
struct Primary {
    timeline: TimelineId,
    sync: SyncListTask,
    opened_at: Instant,
    /// Since when every look found that no majority confirms it; none while one does.
    unconfirmed_since: Option<Instant>,
}

impl Primary {
    /// How long confirmation may be missing before the node says so. A process that was paused finds its last
    /// confirmation expired: the rounds that it sends at once are answered sooner than this.
    const PATIENCE: Duration = Duration::from_millis(300);

    fn look(&mut self, is_confirmed: bool, now: Instant) {
        let since = self.unconfirmed_since.unwrap_or(now);
        self.unconfirmed_since = (!is_confirmed).then_some(since);
    }

    /// Its own word to the others. A primary that has just opened has the same `primary_timeout` to be confirmed for the
    /// first time that it has later.
    fn is_confirmed(&self, primary_timeout: Duration, now: Instant) -> bool {
        let is_new = now.saturating_duration_since(self.opened_at) < primary_timeout;
        is_new || self.unconfirmed_since.is_none_or(|since| now.saturating_duration_since(since) < Self::PATIENCE)
    }
}

/// See the module.
pub struct Agent {
    me: Me,
    control: Control,
    engine: Engine,
    confirmer: Confirmer,
    upstream: Arc<Upstream>,
    seeder: Arc<Seeder>,
    data_dir: PathBuf,
    view: watch::Sender<NodeView>,
    outgoing: watch::Sender<Outgoing>,
    standing: watch::Sender<Standing>,
    mesh: MeshHandles,
    health: Health,
    no_sync: bool,
    stop: CancellationToken,

    cluster: Arc<ClusterState>,
    /// Those that were applied last; none before the first.
    settings: Option<Settings>,
    receiver_timing: watch::Sender<ReceiverTiming>,
    leadership: Leadership,
    table: Table,
    dialers: BTreeMap<NodeId, (String, CancellationToken)>,

    /// None while a blocking action holds it.
    promise_file: Option<PromiseFile>,
    /// As they were last on disk.
    promises: Promises,
    seal_complete: bool,
    opened: Option<TimelineId>,
    failed_to_open: Option<TimelineId>,
    could_not_fetch: Option<TimelineId>,
    stays_out: Option<String>,
    /// By the upstream that was followed last on the present timeline.
    wal_gone: bool,
    seeding: Option<Seeding>,
    /// Was seeded and does not stream yet: the WAL from here on is needed.
    seeded_from: Option<Lsn>,
    /// What the engine was told to keep for nodes that are seeded.
    needed_from: Option<Lsn>,
    follower: Option<Follower>,
    primary: Option<Primary>,
    fetch_order: Option<FetchOrder>,

    /// The action that is under way, and how to break it off if it can be.
    busy: Option<Busy>,
    clearing_damage: bool,
    done: mpsc::Receiver<Done>,
    done_tx: mpsc::Sender<Done>,
    leading: Leading,
    outage: Outage,

    /// Zero of the milliseconds that the core counts in.
    began: Instant,
    /// When the present (timeline, election) was first seen.
    phase_since: Instant,
    /// The report that went out last.
    said: Option<Arc<NodeReport>>,
    said_at: Instant,
    was_writable: Option<(bool, bool)>,
}

/// An action under way.
struct Busy {
    /// For a fetch.
    order: Option<FetchOrder>,
    cancel: CancellationToken,
}

impl Agent {
    /// Takes over the node. It has no role until the first step.
    pub fn new(parts: AgentParts) -> Self {
        let (done_tx, done) = mpsc::channel(DONE_MAX);
        let now = Instant::now();
        let leadership = parts.control.leadership().borrow().clone();
        let carried = parts.carried;
        let promises = carried.promises.get();
        let cluster = Arc::new(parts.control.state().borrow().state.clone());
        parts.upstream.set_source(Source::of(&parts.engine, parts.me.node_id));
        parts.upstream.set_seed_source(Some(SeedSource {
            engine: parts.engine.clone(),
            node: parts.me.node_id,
            wal_dir: parts.data_dir.join("wal"),
        }));
        Self {
            me: parts.me,
            cluster,
            settings: None,
            receiver_timing: watch::Sender::new(ReceiverTiming::default()),
            leading: Leading::since(leadership.i_am_leader.then_some(now)),
            outage: Outage::default(),
            leadership,
            control: parts.control,
            engine: parts.engine,
            confirmer: parts.confirmer,
            upstream: parts.upstream,
            seeder: parts.seeder,
            data_dir: parts.data_dir,
            view: parts.view,
            outgoing: parts.outgoing,
            standing: parts.standing,
            mesh: parts.mesh,
            health: parts.health,
            no_sync: parts.no_sync,
            stop: parts.stop,
            table: carried.table,
            dialers: carried.dialers,
            promise_file: Some(carried.promises),
            promises,
            seal_complete: false,
            opened: carried.opened,
            failed_to_open: carried.failed_to_open,
            could_not_fetch: None,
            stays_out: None,
            wal_gone: false,
            seeding: None,
            seeded_from: carried.seeded_from,
            needed_from: None,
            follower: None,
            primary: None,
            fetch_order: None,
            busy: None,
            clearing_damage: false,
            done,
            done_tx,
            began: now,
            phase_since: now,
            said: None,
            said_at: now,
            was_writable: None,
        }
    }

    /// Runs until the node stops, or its data is to be replaced.
    ///
    /// # Errors
    /// When the node must not go on.
    pub async fn run(mut self, events: &mut mpsc::Receiver<MeshEvent>) -> Result<AgentEnd, AgentError> {
        let mut states = self.control.state();
        let mut leadership = self.control.leadership();
        let stop = self.stop.clone();
        self.control.stand_aside(false);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.publish_standing();
        let applied = states.borrow_and_update().clone();
        self.learn_state(&applied).await;
        loop {
            let step = tokio::select! {
                () = stop.cancelled() => break,
                event = events.recv() => match event {
                    Some(event) => self.hear(&event),
                    None => break,
                },
                changed = states.changed() => {
                    changed.map_err(|_| AgentError::Raft)?;
                    let applied = states.borrow_and_update().clone();
                    self.learn_state(&applied).await;
                    true
                }
                changed = leadership.changed() => {
                    changed.map_err(|_| AgentError::Raft)?;
                    let now = leadership.borrow_and_update().clone();
                    self.learn_leadership(now);
                    true
                }
                done = self.done.recv() => match done {
                    Some(done) => { self.finish(done).await?; true }
                    None => true,
                },
                _ = tick.tick() => true,
            };
            if step {
                self.step().await?;
            }
            if let Some(carried) = self.ends_for_swap() {
                return Ok(AgentEnd::Seeded(Box::new(carried)));
            }
        }
        self.step_down("the server stops").await;
        if let Some(task) = self.stop_following()
            && let Err(error) = task.await
        {
            tracing::warn!(%error, "the walreceiver did not end well");
        }
        Ok(AgentEnd::Stopped)
    }

    /// Whether what was heard asks for a step at once.
    fn hear(&mut self, event: &MeshEvent) -> bool {
        if !self.cluster.members.contains_key(&event.node()) {
            return false;
        }
        let change = self.table.handle(event);
        let mut ordered = false;
        if let MeshEvent::Report { from, report, fetch_order, .. } = event {
            if let Some(primary) = &self.primary {
                primary.sync.heard(*from, report);
            }
            // Only the leader that this node follows gives orders.
            if self.leadership.leader == Some(*from) && *fetch_order != self.fetch_order {
                self.fetch_order = *fetch_order;
                ordered = true;
            }
        }
        ordered || change == Change::Urgent
    }

    async fn learn_state(&mut self, applied: &Applied) {
        let new = &applied.state;
        let moved = new.timeline() != self.cluster.timeline() || new.election != self.cluster.election;
        if moved {
            self.phase_since = Instant::now();
            self.fetch_order = None;
            // The next primary may have what the last one has removed.
            self.wal_gone = false;
            self.leading.phase_changed();
            self.log_phase(new);
            self.outage.phase_changed(new, self.primary_heard_at());
        }
        let was_voter = self.cluster.voters().contains(&self.me.node_id);
        let voters_moved = new.voters_generation != self.cluster.voters_generation;
        self.cluster = Arc::new(new.clone());
        // In this order: a new voter counts as having granted what the settings allow, and so does one that an agent has just
        // taken over: it may have become one while there was none.
        let is_first = self.settings.is_none();
        self.learn_settings();
        if is_first {
            self.count_as_having_granted();
        }
        if voters_moved {
            self.learn_voters(was_voter).await;
        }
        self.upstream.learn(new.timeline_history(), new.members.keys().copied().collect());
        if let Some(primary) = &self.primary {
            primary.sync.learn_state(&self.cluster);
        }
        self.dial_members();
    }

    fn log_phase(&self, new: &ClusterState) {
        let name = |id: NodeId| new.members.get(&id).map_or_else(|| id.to_string(), |member| member.name.to_string());
        match (&new.election, new.primary()) {
            (Some(election), _) => {
                tracing::info!(timeline = %election.timeline, reason = %election.reason, "an election has begun");
            }
            (None, Some(entry)) => tracing::info!(
                timeline = %entry.switch.timeline, primary = %name(entry.node), switch_lsn = %entry.switch.switch_lsn,
                safe_lsn = %entry.safe_lsn, reason = %entry.reason, "a primary was promoted"
            ),
            (None, None) => {}
        }
    }

    fn learn_leadership(&mut self, now: Leadership) {
        if now.i_am_leader != self.leadership.i_am_leader {
            self.leading = Leading::since(now.i_am_leader.then(Instant::now));
            self.outgoing.send_modify(|outgoing| outgoing.fetch_order = None);
        }
        if now.leader != self.leadership.leader {
            self.fetch_order = None;
        }
        self.leadership = now;
    }

    /// One beat stream to every other member.
    fn dial_members(&mut self) {
        let wanted: BTreeMap<NodeId, String> = self
            .cluster
            .members
            .iter()
            .filter(|(id, _)| **id != self.me.node_id)
            .map(|(id, member)| (*id, member.address.clone()))
            .collect();
        self.dialers.retain(|id, (address, stop)| {
            let stays = wanted.get(id) == Some(address);
            if !stays {
                stop.cancel();
            }
            stays
        });
        for (id, address) in wanted {
            self.dialers.entry(id).or_insert_with(|| {
                let stop = self.stop.child_token();
                spawn_dialer(self.mesh.clone(), id, address.clone(), stop.clone());
                (address, stop)
            });
        }
    }

    /// What this node answers beats by, from the promises on disk.
    fn publish_standing(&self) {
        let sealed = self.promises.sealed;
        let voters_version = self.cluster.voters_generation.get();
        self.standing.send_modify(|standing| {
            // The seal that is being persisted may be there already.
            standing.sealed = standing.sealed.max(sealed);
            standing.voters_version = Some(voters_version);
        });
        self.outgoing.send_modify(|outgoing| outgoing.voters_version = voters_version);
    }

    async fn step(&mut self) -> Result<(), AgentError> {
        if let Some(primary) = &mut self.primary {
            primary.look(self.confirmer.is_confirmed(), Instant::now());
        }
        self.break_off_stale_fetch();
        self.notice_dead_follower();
        self.notice_gone_wal();
        self.keep_what_seeds_need();
        self.drive_seed();
        self.promise_lease();
        let state = self.node_state();
        if self.busy.is_none() {
            for action in reconcile(&state, &self.cluster) {
                self.act(action).await;
            }
        }
        self.lead();
        self.record_outage();
        self.say().await;
        Ok(())
    }

    fn incarnation(&self) -> Incarnation {
        self.me.incarnation
    }

    fn now_ms(&self) -> u64 {
        self.ms_of(Instant::now())
    }

    fn ms_of(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.began);
        u64::try_from(since.as_millis()).expect("a process lives less than 584 million years")
    }
}
