//! What a scrape is answered with: the figures of `status`, read at that moment, and what the instruments have seen.
//!
//! Nothing is kept between scrapes, so a member that was removed is gone from the next one. To add a gauge: a line in
//! [`super::table`], and a `set` here, in the function that has what it shows.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use tokio::sync::watch;
use understudy_engine::{Engine, Role};
use understudy_rpc::v1;
use understudy_types::{Lsn, NodeId};

use super::Telemetry;
use super::exposition::Exposition;
use super::instruments::Instruments;
use super::table;
use crate::confirmer::Confirmer;
use crate::services::{MEMBER_STATES, NOT_WRITABLE, Places, SYNC_STATES, member_words, not_writable, replication_of};
use crate::upstream::Upstream;
use crate::view::NodeView;

const ROLES: [&str; 4] = ["starting", "standby", "sealed", "primary"];

/// Reads everything that a scrape shows.
#[derive(Clone)]
pub struct Collector {
    name: String,
    view: watch::Receiver<NodeView>,
    confirmer: Confirmer,
    telemetry: Telemetry,
    places: Arc<Places>,
    upstream: Arc<Upstream>,
}

/// What a scrape looks at.
pub struct CollectorParts {
    /// Published by the agent.
    pub view: watch::Receiver<NodeView>,
    /// Who knows whether a majority stands behind this node.
    pub confirmer: Confirmer,
    /// What is counted.
    pub telemetry: Telemetry,
    /// Connections of the gRPC port.
    pub places: Arc<Places>,
    /// What standbys stream from.
    pub upstream: Arc<Upstream>,
}

/// Whether the node answers requests, for a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Reads of some kind are answered here.
    pub ready: bool,
    /// One of the words of `understudy_role`.
    pub role: &'static str,
    /// The present timeline.
    pub timeline: u32,
    /// Whether a write to the primary would be taken now, as far as this node knows.
    pub writable: bool,
    /// Why it is not ready, or why nobody takes writes; empty when all is well.
    pub reason: String,
}

impl Collector {
    /// Of the node with this name.
    pub fn new(name: String, parts: CollectorParts) -> Self {
        let CollectorParts { view, confirmer, telemetry, places, upstream } = parts;
        Self { name, view, confirmer, telemetry, places, upstream }
    }

    /// The counters of the HTTP port are kept there.
    pub fn instruments(&self) -> &Instruments {
        self.telemetry.instruments()
    }

    /// For a probe.
    pub fn readiness(&self) -> Readiness {
        let view = self.view.borrow().clone();
        let stays_out = view.nodes.get(&view.me).and_then(|me| me.report.stays_out.clone());
        let unready = match (&view.engine, stays_out) {
            (None, _) => Some(view.waiting_for.clone().unwrap_or_else(|| "the node is starting".to_owned())),
            (Some(_), stays_out) => stays_out,
        };
        let unwritable = not_writable(&view, self.confirmer.is_confirmed()).map(|(_, text)| text);
        Readiness {
            ready: unready.is_none(),
            role: role(&view),
            timeline: view.cluster.timeline().get(),
            writable: unwritable.is_none(),
            reason: unready.or(unwritable).unwrap_or_default(),
        }
    }

    /// The text of a scrape. Reads files of `/proc`.
    pub fn metrics(&self) -> String {
        let view = self.view.borrow().clone();
        let mut out = Exposition::default();
        let id = view.me.to_string();
        out.count(&table::INFO, &[env!("CARGO_PKG_VERSION"), &self.name, &id], 1);
        cluster(&mut out, &view, self.confirmer.is_confirmed());
        members(&mut out, &view);
        let lease = view.primary_of.is_some_and(|timeline| self.confirmer.holds_lease(timeline));
        out.count(&table::READ_LEASE, &[], lease.into());
        if let Some(replication) = replication_of(&view, &self.upstream) {
            standbys(&mut out, &replication.standbys);
        }
        if let Some(engine) = &view.engine {
            wal(&mut out, engine);
        }
        if let Some(stages) = self.telemetry.stages() {
            for (node, lsn) in stages.sent() {
                if let Some(name) = member_name(&view, node).filter(|_| view.primary_of.is_some()) {
                    out.count(&table::STANDBY_SENT, &[name], lsn.get());
                }
            }
        }
        measured(&mut out, self.telemetry.instruments());
        connections(&mut out, &self.places);
        process(&mut out, &self.telemetry);
        out.render()
    }
}

fn role(view: &NodeView) -> &'static str {
    match view.engine.as_ref().map(Engine::role) {
        None => "starting",
        Some(Role::Standby) => "standby",
        Some(Role::Sealed { .. }) => "sealed",
        Some(Role::Primary { .. }) => "primary",
    }
}

fn member_name(view: &NodeView, node: NodeId) -> Option<&str> {
    view.cluster.members.get(&node).map(|member| member.name.as_str())
}

fn cluster(out: &mut Exposition, view: &NodeView, confirmed_here: bool) {
    let cluster = &view.cluster;
    out.one_of(&table::ROLE, &ROLES, Some(role(view)));
    out.count(&table::TIMELINE, &[], cluster.timeline().get().into());
    out.count(&table::GENERATION, &[], cluster.generation.get());
    out.count(&table::ELECTION_OPEN, &[], cluster.election.is_some().into());
    let reason = not_writable(view, confirmed_here).map(|(word, _)| word);
    out.count(&table::WRITABLE, &[], reason.is_none().into());
    out.one_of(&table::NOT_WRITABLE, &NOT_WRITABLE, reason);
    out.count(&table::RAFT_LEADER, &[], view.leadership.i_am_leader.into());
    out.count(&table::RAFT_HAS_LEADER, &[], view.leadership.leader.is_some().into());
    out.count(&table::RAFT_TERM, &[], view.leadership.term);
    out.count(&table::RAFT_APPLIED_INDEX, &[], view.leadership.last_applied);
    out.count(&table::SYNC_STANDBYS, &[], cluster.sync.members.len() as u64);
    out.count(&table::SYNC_ACKS, &[], cluster.sync.acks.into());
}

fn members(out: &mut Exposition, view: &NodeView) {
    let primary = view.primary().and_then(|(id, _, _)| view.nodes.get(&id));
    let primary_end = primary.map_or(Lsn::INVALID, |seen| seen.report.wal_end.lsn);
    for (id, member) in &view.cluster.members {
        let (name, words) = (member.name.as_str(), member_words(view, *id, member));
        for state in MEMBER_STATES {
            out.count(&table::MEMBER_STATE, &[name, state], u64::from(words.state == state));
        }
        for state in SYNC_STATES {
            out.count(&table::MEMBER_SYNC_STATE, &[name, state], u64::from(words.sync_state == state));
        }
    }
    for (id, seen) in &view.nodes {
        let Some(name) = member_name(view, *id) else { continue };
        let report = &seen.report;
        out.count(&table::MEMBER_DAMAGED, &[name], report.damaged.into());
        if let Some(seed) = &report.seed {
            for (part, bytes) in [("total", seed.bytes_total), ("done", seed.bytes_done), ("reused", seed.bytes_reused)]
            {
                out.count(&table::MEMBER_SEED, &[name, part], bytes);
            }
        }
        let positions = [
            ("appended", report.wal_end.lsn),
            ("flushed", report.flush_lsn),
            ("safe", report.safe_lsn),
            ("applied", report.apply_lsn),
        ];
        for (position, lsn) in positions {
            out.count(&table::MEMBER_POSITION, &[name, position], lsn.get());
        }
        out.count(&table::MEMBER_LAG, &[name], primary_end.saturating_since(report.apply_lsn));
        out.set(&table::MEMBER_HEARD, &[name], Duration::from_millis(seen.heard_ms_ago).as_secs_f64());
    }
}

/// On the primary: of each standby, what `understudy replication` shows.
fn standbys(out: &mut Exposition, standbys: &[v1::StandbyStatus]) {
    for standby in standbys {
        let name = standby.name.as_str();
        let lags = [
            ("write", standby.write_lag_bytes, standby.write_lag_us),
            ("flush", standby.flush_lag_bytes, standby.flush_lag_us),
            ("apply", standby.apply_lag_bytes, standby.apply_lag_us),
        ];
        for (position, bytes, us) in lags {
            out.count(&table::STANDBY_LAG_BYTES, &[name, position], bytes);
            if let Some(us) = us {
                out.set(&table::STANDBY_LAG_SECONDS, &[name, position], us as f64 / 1e6);
            }
        }
        out.count(&table::STANDBY_CONNECTED, &[name], standby.connected.into());
    }
}

fn wal(out: &mut Exposition, engine: &Engine) {
    let wal = engine.wal();
    // One borrow at a time: in the array all of them would be held until it is complete.
    let written = *wal.written().borrow();
    let flushed = *wal.flushed().borrow();
    let safe = *engine.safe().borrow();
    let applied = engine.visible().borrow().lsn;
    let positions =
        [("appended", wal.end().lsn), ("written", written), ("flushed", flushed), ("safe", safe), ("applied", applied)];
    for (position, lsn) in positions {
        out.count(&table::WAL_POSITION, &[position], lsn.get());
    }
    out.count(&table::WAL_UNWRITTEN, &[], wal.unwritten_bytes());
    out.count(&table::WAL_MEMORY, &[], wal.memory_bytes() as u64);
    out.set(&table::WAL_SYNC_AGE, &[], wal.oldest_sync_age().unwrap_or_default().as_secs_f64());
    let kept = engine.retention();
    out.count(&table::WAL_OLDEST, &[], kept.oldest.get());
    out.count(&table::WAL_KEPT, &[], kept.wal_bytes);
    out.count(&table::CHECKPOINT_POSITION, &[], kept.checkpoint_lsn.get());
    if let Some(at_us) = kept.checkpoint_at_us {
        out.set(&table::CHECKPOINT_TIME, &[], at_us as f64 / 1e6);
    }
    let waiting = engine.waiting();
    out.count(&table::COMMITS_WAITING, &[], waiting.total);
    out.set(&table::COMMITS_OLDEST, &[], waiting.oldest().as_secs_f64());
}

fn measured(out: &mut Exposition, instruments: &Instruments) {
    out.histogram(&table::WAL_FSYNC, &[], &instruments.fsync);
    for (stage, histogram) in instruments.stages.all() {
        out.histogram(&table::COMMIT_STAGE, &[stage], histogram);
    }
    instruments.commit.each(|labels, histogram| out.histogram(&table::COMMIT_SECONDS, labels, histogram));
    instruments.commits.each(|labels, counter| out.count(&table::COMMITS, labels, counter.get()));
    instruments.read.each(|labels, histogram| out.histogram(&table::READ_SECONDS, labels, histogram));
    let in_flight = instruments.in_flight.load(std::sync::atomic::Ordering::Relaxed);
    out.count(&table::COMMITS_IN_FLIGHT, &[], in_flight);
    instruments.requests.each(|method, code, count| {
        out.count(&table::GRPC_REQUESTS, &[method, &code.to_string()], count);
    });
    instruments.connections_refused.each(|labels, counter| out.count(&table::GRPC_REFUSED, labels, counter.get()));
    out.count(&table::HTTP_REFUSED, &[], instruments.http_refused.get());
    out.count(&table::TRACE_DROPPED, &["mark"], instruments.marks_dropped.get());
    out.count(&table::TRACE_DROPPED, &["span"], instruments.spans_dropped.get());
    out.count(&table::TRACE_EXPORTS, &["ok"], instruments.exports_ok.get());
    out.count(&table::TRACE_EXPORTS, &["failed"], instruments.exports_failed.get());
}

fn connections(out: &mut Exposition, places: &Places) {
    for (place, count) in ["ordinary", "newcomer", "member", "operator"].into_iter().zip(places.taken()) {
        out.count(&table::GRPC_CONNECTIONS, &[place], count as u64);
    }
    out.count(&table::GRPC_CONNECTIONS_MAX, &[], places.max() as u64);
}

fn process(out: &mut Exposition, telemetry: &Telemetry) {
    let started = telemetry.started().duration_since(UNIX_EPOCH).unwrap_or_default();
    out.set(&table::PROCESS_START, &[], started.as_secs_f64());
    if let Some(bytes) = resident_bytes() {
        out.count(&table::PROCESS_MEMORY, &[], bytes);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        // One of them is the folder that is being read.
        out.count(&table::PROCESS_FDS, &[], open.count().saturating_sub(1) as u64);
    }
}

/// Memory of this process that is in RAM.
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_measured() {
        let mut out = Exposition::default();
        process(&mut out, &Telemetry::off());
        assert!(resident_bytes().is_some_and(|bytes| bytes > 1 << 20), "{:?}", resident_bytes());
        let text = out.render();
        for name in [table::PROCESS_START.name, table::PROCESS_MEMORY.name, table::PROCESS_FDS.name] {
            assert!(text.contains(&format!("\n{name} ")), "{name} is not in\n{text}");
        }
    }
}
