//! Being seeded: the agent's part.
//!
//! ```text
//! reconcile says Seed -> damaged is on disk -> attempts, one source after another, until one is complete
//!   -> the new store is opened once, to see that it is one -> the mark -> no election is open -> the agent ends
//!   -> the server closes the engine, swaps, opens it again, and a new agent goes on
//! ```
//!
//! All the while the node votes, seals, confirms and beats as it is; its old engine answers reads. It takes no part
//! otherwise: what it reports (INV-DURABLE: damaged, and that it stays out) keeps everybody from counting on its data.
//! The old data is given up for the new in an instant between two elections, so that what a node reported when it
//! sealed is true until the election is over.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use understudy_core::observation::{NodeReport, NodeRole, SeedProgress, StreamState};
use understudy_core::state::Member;
use understudy_replication::WalFormat;
use understudy_replication::seed::{SeedConfig, Seeded, SeedingStatus, seed, swap};
use understudy_store::{RocksConfig, RocksStore, Store};
use understudy_types::{Lsn, NodeId, SystemId, TimelineId};

use super::act::Done;
use super::table::Table;
use super::{Agent, AgentError};
use crate::damage::damaged_dir;
use crate::promises::PromiseFile;

/// How long a source may be silent, in milliseconds.
const SOURCE_TIMEOUT_MS: u64 = 10_000;
/// Between two attempts, at first; doubled with each that brought nothing.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// Attempts in a row that a source gets when its stream breaks: what it has sent of its files is of no use to another.
const ATTEMPTS_PER_SOURCE: u32 = 3;
/// For how long a standby is waited for that may only just have started, before the primary is asked instead.
const STANDBY_GRACE: Duration = Duration::from_secs(1);
/// For how long what a node said it needs is kept for it after it was heard last.
const NEEDED_FOR: Duration = Duration::from_secs(10);

/// A seed from the decision to the swap.
pub struct Seeding {
    why: String,
    /// Whom the attempt that is under way asks.
    source: Option<NodeId>,
    status: Option<watch::Receiver<SeedingStatus>>,
    cancel: CancellationToken,
    /// Attempts that brought nothing, by source.
    failures: BTreeMap<NodeId, u32>,
    failures_in_a_row: u32,
    retry_at: Instant,
    /// The primary is left alone until then if a standby may yet be heard.
    standbys_until: Instant,
    /// The new data is marked: it only has to be swapped in.
    complete: Option<Seeded>,
    /// The WAL from here on was needed by the last attempt; none before one knew.
    needed_from: Option<Lsn>,
    /// Said once: there is nobody to ask.
    said_alone: bool,
}

impl Seeding {
    fn new(why: String, cancel: CancellationToken) -> Self {
        Self {
            why,
            source: None,
            status: None,
            cancel,
            failures: BTreeMap::new(),
            failures_in_a_row: 0,
            retry_at: Instant::now(),
            standbys_until: Instant::now() + STANDBY_GRACE,
            complete: None,
            needed_from: None,
            said_alone: false,
        }
    }

    fn status(&self) -> SeedingStatus {
        let under_way = self.status.as_ref().map(|status| *status.borrow());
        self.complete.map(|complete| complete.status).or(under_way).unwrap_or_default()
    }

    /// For beats and people.
    pub fn progress(&self) -> SeedProgress {
        let status = self.status();
        SeedProgress {
            source: self.source,
            bytes_total: status.bytes_total,
            bytes_done: status.bytes_done(),
            bytes_reused: status.bytes_reused,
        }
    }

    /// The WAL from here on is needed.
    pub fn needs_from(&self) -> Option<Lsn> {
        self.status().at.map(|at| at.lsn).or(self.needed_from)
    }
}

/// How an attempt ended.
pub struct Attempted {
    source: NodeId,
    outcome: Result<Seeded, String>,
    /// It brought something before it failed.
    received: bool,
}

/// What the next agent of this process goes on with.
pub struct Carried {
    /// What was promised.
    pub promises: PromiseFile,
    /// Opened, or tried, by this process: never again (INV-ONE-PRIMARY).
    pub(super) opened: Option<TimelineId>,
    pub(super) failed_to_open: Option<TimelineId>,
    /// What is known of the others: heard on while there is no agent.
    pub(crate) table: Table,
    pub(super) dialers: BTreeMap<NodeId, (String, CancellationToken)>,
    /// The WAL from here on is needed until the node streams.
    pub(super) seeded_from: Option<Lsn>,
}

impl Carried {
    /// A node that has just started.
    pub fn new(promises: PromiseFile) -> Self {
        Self {
            promises,
            opened: None,
            failed_to_open: None,
            table: Table::default(),
            dialers: BTreeMap::new(),
            seeded_from: None,
        }
    }
}

/// Who may be asked for a seed: the standbys that stream, then the primary; of these, whoever failed least.
fn sources<'a>(
    reports: impl Iterator<Item = (NodeId, &'a NodeReport)>,
    timeline: TimelineId,
    failures: &BTreeMap<NodeId, u32>,
) -> Vec<NodeId> {
    let rank = |report: &NodeReport| match report.role {
        NodeRole::Standby if report.stream_state == StreamState::Streaming && !report.damaged => Some(0),
        NodeRole::Primary => Some(1),
        NodeRole::Standby | NodeRole::Witness => None,
    };
    let mut found: Vec<(u32, u32, NodeId)> = reports
        .filter(|(_, report)| report.timeline == timeline && report.stays_out.is_none())
        .filter_map(|(node, report)| {
            let failed = failures.get(&node).copied().unwrap_or(0) / ATTEMPTS_PER_SOURCE;
            Some((failed, rank(report)?, node))
        })
        .collect();
    found.sort_unstable();
    found.into_iter().map(|(_, _, node)| node).collect()
}

/// Whether there is a standby that could take the load from the primary once it is heard and streams.
fn a_standby_may_come(
    members: &BTreeMap<NodeId, Member>,
    me: NodeId,
    primary: NodeId,
    failures: &BTreeMap<NodeId, u32>,
) -> bool {
    let failed = |node: &NodeId| failures.get(node).is_some_and(|count| *count >= ATTEMPTS_PER_SOURCE);
    members.iter().any(|(node, member)| *node != me && *node != primary && !member.witness && !failed(node))
}

/// Opens the new store, to see that it is one, and marks the new data as that which counts. Blocks on IO.
fn accept(data_dir: &Path, system_id: SystemId, seeded: &Seeded) -> Result<(), String> {
    let path = swap::new_store(data_dir);
    let store = RocksStore::open(&RocksConfig::new(&path, system_id)).map_err(|error| error.to_string())?;
    let applied = store.durable_applied().map_err(|error| error.to_string())?;
    drop(store);
    if applied != seeded.at {
        return Err(format!("the new store has applied up to {applied}, the source said {}", seeded.at));
    }
    swap::mark_complete(data_dir, seeded.at).map_err(|error| error.to_string())
}

impl Agent {
    /// The first step: everything else only once it is on disk that this node does not count.
    pub(super) fn begin_seed(&mut self, why: String) {
        let Some(mut file) = self.promise_file.take() else { return };
        self.begin(None);
        tracing::warn!(%why, "this node has to be seeded");
        self.beside(move || {
            let outcome = file.mark_damaged().map_err(AgentError::from);
            Done::DamageMarked { file: Box::new(file), outcome, why }
        });
    }

    pub(super) fn seed_may_begin(&mut self, why: String) {
        self.stays_out = Some(format!("it is being seeded: {why}"));
        // Nobody shall be seeded with what is about to go.
        self.upstream.set_seed_source(None);
        self.seeding = Some(Seeding::new(why, self.stop.child_token()));
    }

    /// Starts the next attempt when one is due.
    pub(super) fn drive_seed(&mut self) {
        let now = Instant::now();
        let Some(seeding) = &mut self.seeding else { return };
        if seeding.source.is_some() || seeding.complete.is_some() || now < seeding.retry_at {
            return;
        }
        let members = &self.cluster.members;
        let hears = self.table.hears(Duration::from_millis(self.cluster.settings.primary_timeout_ms), now);
        let heard =
            self.table.reports().filter(|(node, _)| hears.contains(node)).map(|(node, report)| (node, &**report));
        let Some(source) = sources(heard, self.cluster.timeline(), &seeding.failures).into_iter().next() else {
            if !std::mem::replace(&mut seeding.said_alone, true) {
                tracing::warn!("no other node has data to be seeded from at present; waiting for one");
            }
            return;
        };
        let Some(member) = members.get(&source) else { return };
        let primary = self.cluster.primary().map(|entry| entry.node);
        if primary == Some(source)
            && now < seeding.standbys_until
            && a_standby_may_come(members, self.me.node_id, source, &seeding.failures)
        {
            return;
        }
        seeding.said_alone = false;
        let (status_tx, status) = watch::channel(SeedingStatus::default());
        (seeding.source, seeding.status) = (Some(source), Some(status.clone()));
        tracing::info!(source = %member.name, why = %seeding.why, "asking for a seed");
        let config = SeedConfig {
            source_address: member.address.clone(),
            system_id: self.cluster.system_id,
            format: WalFormat::of(&self.engine),
            node: self.me.node_id,
            history: self.cluster.timeline_history(),
            data_dir: self.data_dir.clone(),
            own_stores: vec![damaged_dir(&self.data_dir).join("store")],
            timeout_ms: SOURCE_TIMEOUT_MS,
        };
        let (data_dir, system_id) = (self.data_dir.clone(), self.cluster.system_id);
        let (cancel, done) = (seeding.cancel.clone(), self.done_tx.clone());
        tokio::spawn(async move {
            let outcome = match seed(config, status_tx, cancel).await {
                Ok(seeded) => {
                    let accepted = tokio::task::spawn_blocking(move || accept(&data_dir, system_id, &seeded)).await;
                    accepted.unwrap_or_else(|error| Err(error.to_string())).map(|()| seeded)
                }
                Err(error) => Err(error.to_string()),
            };
            let received = status.borrow().bytes_received > 0;
            if done.send(Done::Attempted(Attempted { source, outcome, received })).await.is_err() {
                tracing::debug!("the agent has ended");
            }
        });
    }

    pub(super) fn attempted(&mut self, attempted: Attempted) {
        let Attempted { source, outcome, received } = attempted;
        let name = self.cluster.name_of(source);
        let Some(seeding) = &mut self.seeding else { return };
        match outcome {
            Ok(seeded) => {
                tracing::info!(source = %name, at = %seeded.at, "the new data is here; it takes the place of the old");
                seeding.complete = Some(seeded);
            }
            Err(why) => {
                // The next attempt may go on with the same checkpoint.
                seeding.needed_from = seeding.needs_from();
                (seeding.source, seeding.status) = (None, None);
                let failures = seeding.failures.entry(source).or_default();
                *failures = failures.saturating_add(1);
                seeding.failures_in_a_row = if received { 0 } else { seeding.failures_in_a_row.saturating_add(1) };
                let pause = PAUSE_MAX.min(PAUSE * 2_u32.saturating_pow(seeding.failures_in_a_row.min(10)));
                seeding.retry_at = Instant::now() + pause;
                tracing::warn!(source = %name, %why, retry_in_ms = pause.as_millis(), "the seed did not come to its end; what has come is kept");
            }
        }
    }

    /// The upstream's word that it does not have (any more) what comes next. It stands until another primary is promoted.
    pub(super) fn notice_gone_wal(&mut self) {
        let Some(follower) = &self.follower else { return };
        let present = follower.following.timeline == self.cluster.timeline();
        if present && !self.wal_gone && follower.status.borrow().wal_gone.is_some() {
            self.wal_gone = true;
        }
    }

    /// What the next agent goes on with, once the new data may take the place of the old: between two elections, and with
    /// nothing under way.
    pub(super) fn ends_for_swap(&mut self) -> Option<Carried> {
        let complete = self.seeding.as_ref()?.complete?;
        let at_rest = self.busy.is_none() && self.follower.is_none() && self.primary.is_none();
        if !at_rest || self.cluster.election.is_some() || self.promises.sealed > self.cluster.fence() {
            return None;
        }
        if self.leadership.i_am_leader && self.gives_leadership_away() {
            return None;
        }
        // Nobody plans on this node until the next agent runs.
        self.control.stand_aside(true);
        Some(Carried {
            promises: self.promise_file.take()?,
            opened: self.opened,
            failed_to_open: self.failed_to_open,
            table: std::mem::take(&mut self.table),
            dialers: std::mem::take(&mut self.dialers),
            seeded_from: Some(complete.at.lsn),
        })
    }

    /// Whether somebody else can lead Raft instead, and is asked to: a primary may die while this node cannot plan.
    fn gives_leadership_away(&mut self) -> bool {
        let primary = self.cluster.primary().map(|entry| entry.node);
        let hears = self.table.hears(self.primary_timeout(), Instant::now());
        let others = self.cluster.voters().into_iter().filter(|node| hears.contains(node));
        // Rather not the primary: its death would be that of the leader.
        let Some(to) = others.min_by_key(|node| primary == Some(*node)) else { return false };
        self.hand_over_once(to);
        true
    }

    /// From where on other nodes must keep WAL for this one.
    pub(super) fn seeding_from(&self) -> Option<Lsn> {
        self.seeding.as_ref().map_or(self.seeded_from, Seeding::needs_from)
    }

    /// INV-RETAIN: what nodes that are seeded said they need, and what this one's own checkpoints need, stays here.
    pub(super) fn keep_what_seeds_need(&mut self) {
        if self.stream_state() == StreamState::Streaming {
            self.seeded_from = None;
        }
        let others = self.table.needed_from(NEEDED_FOR, Instant::now());
        let own = *self.seeder.needed_from().borrow();
        let needed = others.into_iter().chain(own).min();
        if self.needed_from != needed {
            self.needed_from = needed;
            self.engine.set_needed_from(needed);
        }
    }
}

#[cfg(test)]
mod tests {
    use understudy_core::observation::NodeReport;
    use understudy_rpc::v1;

    use super::*;
    use crate::convert::report_from_wire;

    fn report(change: impl FnOnce(&mut v1::NodeReport)) -> NodeReport {
        let mut report = v1::NodeReport {
            role: v1::NodeRole::Standby.into(),
            stream_state: v1::StreamState::Streaming.into(),
            timeline: 2,
            ..v1::NodeReport::default()
        };
        change(&mut report);
        report_from_wire(&v1::Beat::default(), &report).expect("a role")
    }

    #[test]
    fn the_primary_is_spared_while_a_standby_may_come() {
        let member = |name: &str, witness| Member {
            name: name.parse().expect("a name"),
            address: "127.0.0.1:1".to_owned(),
            voter: true,
            witness,
            failover_priority: 100,
            no_sync: false,
        };
        let [me, primary, third] = [1, 2, 3].map(NodeId::new);
        let may_come = |third_is_witness, failures: u32| {
            let members =
                [(me, member("n1", false)), (primary, member("n2", false)), (third, member("n3", third_is_witness))];
            a_standby_may_come(&BTreeMap::from(members), me, primary, &BTreeMap::from([(third, failures)]))
        };
        assert!(may_come(false, 0) && may_come(false, ATTEMPTS_PER_SOURCE - 1));
        assert!(!may_come(false, ATTEMPTS_PER_SOURCE), "it was asked, and failed");
        assert!(!may_come(true, 0), "a witness has no data");
        let two = BTreeMap::from([(me, member("n1", false)), (primary, member("n2", false))]);
        assert!(!a_standby_may_come(&two, me, primary, &BTreeMap::new()));
    }

    #[test]
    fn a_standby_that_streams_is_asked_first_and_one_that_fails_last() {
        let nodes = [
            (1, report(|report| report.role = v1::NodeRole::Primary.into())),
            (2, report(|_| {})),
            (3, report(|report| report.stream_state = v1::StreamState::Catchup.into())),
            (4, report(|report| report.stays_out = true)),
            (5, report(|report| report.timeline = 1)),
            (6, report(|report| report.damaged = true)),
            (7, report(|_| {})),
            (8, report(|report| report.role = v1::NodeRole::Witness.into())),
        ];
        let asked = |failures: &[(u64, u32)]| {
            let failures = failures.iter().map(|(node, count)| (NodeId::new(*node), *count)).collect();
            let reports = nodes.iter().map(|(node, report)| (NodeId::new(*node), report));
            sources(reports, TimelineId::new(2), &failures).into_iter().map(NodeId::get).collect::<Vec<_>>()
        };
        assert_eq!(asked(&[]), [2, 7, 1]);
        assert_eq!(
            asked(&[(2, ATTEMPTS_PER_SOURCE - 1)]),
            [2, 7, 1],
            "its stream broke: what it sent is worth something"
        );
        assert_eq!(asked(&[(2, ATTEMPTS_PER_SOURCE)]), [7, 1, 2]);
        assert_eq!(asked(&[(2, 3), (7, 3), (1, 3)]), [2, 7, 1], "everybody failed: from the begin");
    }
}
