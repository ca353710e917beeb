//! Every metric there is, once: name, kind, labels, help.
//!
//! `/metrics` prints nothing that is not here, and `docs/monitoring.md` lists exactly this (a test compares them). To add a
//! gauge, add a line here and a `set` in [`super::collect`].
//!
//! Rules: names begin with `understudy_`, units are base units and stand in the name, counters end with `_total`, and a
//! label has a bounded set of values: words of the program, methods of the services, members of the cluster.

/// What kind of figure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only ever grows, from zero at the start of the process.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations, in seconds.
    Histogram,
}

impl Kind {
    /// As Prometheus calls it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric.
#[derive(Debug)]
pub struct Metric {
    /// Unique.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The names of its labels, in the order in which values are given.
    pub labels: &'static [&'static str],
    /// For people.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($id:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $id: Metric =
                Metric { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };
        )*
        /// All of them, in the order in which they are printed.
        pub static TABLE: &[&Metric] = &[$(&$id),*];
    };
}

metrics! {
    INFO = Gauge "understudy_info" ["version", "node", "node_id"] "Always 1; the labels say who this is.";
    ROLE = Gauge "understudy_role" ["role"] "1 for the role that this node has (starting, standby, sealed or primary), 0 for the others.";
    TIMELINE = Gauge "understudy_timeline" [] "The present timeline, as this node knows it; 0 before the first promotion.";
    GENERATION = Gauge "understudy_generation" [] "The version of the cluster state that this node has applied.";
    ELECTION_OPEN = Gauge "understudy_election_open" [] "1 while it is being decided who opens the next timeline.";
    WRITABLE = Gauge "understudy_writable" [] "1 when a write to the primary would be taken now, as far as this node knows.";
    NOT_WRITABLE = Gauge "understudy_not_writable" ["reason"] "1 for the reason why a write would not be taken now, 0 for the others.";
    RAFT_LEADER = Gauge "understudy_raft_leader" [] "1 on the node that leads Raft.";
    RAFT_HAS_LEADER = Gauge "understudy_raft_has_leader" [] "1 when this node knows a Raft leader.";
    RAFT_TERM = Gauge "understudy_raft_term" [] "Raft's term, as this node knows it.";
    RAFT_APPLIED_INDEX = Gauge "understudy_raft_applied_index" [] "The last Raft entry that this node has applied.";
    SYNC_STANDBYS = Gauge "understudy_sync_standbys" [] "Nodes in the sync list.";
    SYNC_ACKS = Gauge "understudy_sync_acks" [] "How many of the sync list must have flushed a commit before it is acknowledged at level on.";
    READ_LEASE = Gauge "understudy_read_lease" [] "1 on the primary while a lease runs by which it answers linearizable reads alone; 0 when reads are by quorum.";
    WAL_POSITION = Gauge "understudy_wal_position_bytes" ["position"] "This node's LSNs: appended, written, flushed, safe, applied.";
    WAL_UNWRITTEN = Gauge "understudy_wal_unwritten_bytes" [] "WAL that is appended and not yet written to a file.";
    WAL_MEMORY = Gauge "understudy_wal_memory_bytes" [] "Memory that the end of the WAL takes.";
    WAL_SYNC_AGE = Gauge "understudy_wal_sync_age_seconds" [] "For how long the write and fsync under way has been running; 0 when none is.";
    WAL_OLDEST = Gauge "understudy_wal_oldest_bytes" [] "The first LSN of the WAL that is kept.";
    WAL_KEPT = Gauge "understudy_wal_kept_bytes" [] "WAL that is kept, up to the flushed end.";
    CHECKPOINT_POSITION = Gauge "understudy_checkpoint_position_bytes" [] "The LSN where redo would begin: the store is known to be on disk up to there.";
    CHECKPOINT_TIME = Gauge "understudy_checkpoint_time_seconds" [] "When the last checkpoint was, in Unix time; not there before the first of this process.";
    WAL_FSYNC = Histogram "understudy_wal_fsync_seconds" [] "Duration of fdatasync on the WAL.";
    MEMBER_POSITION = Gauge "understudy_member_position_bytes" ["member", "position"] "Each member's LSNs as this node last heard them: appended, flushed, safe, applied.";
    MEMBER_LAG = Gauge "understudy_member_lag_bytes" ["member"] "How far a member's applied LSN is behind the primary's end of WAL.";
    MEMBER_HEARD = Gauge "understudy_member_heard_age_seconds" ["member"] "How long ago this node last heard the member; 0 for itself.";
    MEMBER_STATE = Gauge "understudy_member_state" ["member", "state"] "1 for the state of each member as status shows it, 0 for the others.";
    MEMBER_SYNC_STATE = Gauge "understudy_member_sync_state" ["member", "sync_state"] "1 for the sync state of each standby (sync, quorum, potential or async), 0 for the others; the primary has none.";
    MEMBER_DAMAGED = Gauge "understudy_member_damaged" ["member"] "1 for a member that may lack what it once confirmed: it does not count for commits and elections.";
    MEMBER_SEED = Gauge "understudy_member_seed_bytes" ["member", "part"] "While a member is seeded: total, what is done, and what of it was reused; total is 0 before it is known.";
    STANDBY_CONNECTED = Gauge "understudy_standby_connected" ["member"] "On the primary: 1 for a standby that streams from it.";
    STANDBY_LAG_BYTES = Gauge "understudy_standby_lag_bytes" ["member", "position"] "On the primary: how far a standby is behind the end of WAL with write, flush and apply.";
    STANDBY_LAG_SECONDS = Gauge "understudy_standby_lag_seconds" ["member", "position"] "On the primary: how long ago the oldest byte was sent that a standby has not written, flushed, applied, or how long the last one took; not there when nothing was sent for a while.";
    STANDBY_SENT = Gauge "understudy_standby_sent_bytes" ["member"] "On the primary: the LSN up to which WAL was sent to a standby.";
    COMMITS = Counter "understudy_commits_total" ["level", "result"] "Commits that this node was asked for, by durability level and result.";
    COMMITS_IN_FLIGHT = Gauge "understudy_commits_in_flight" [] "Commits that were asked for and are not answered: queued, or waiting for their level.";
    COMMITS_WAITING = Gauge "understudy_commits_waiting" [] "On the primary: commits that are in the log and wait for their level.";
    COMMITS_OLDEST = Gauge "understudy_commits_waiting_oldest_seconds" [] "On the primary: how long the oldest of them has waited; 0 when none waits.";
    COMMIT_SECONDS = Histogram "understudy_commit_seconds" ["level"] "From a commit's arrival to its acknowledgement; those that were not acknowledged are left out.";
    COMMIT_STAGE = Histogram "understudy_commit_stage_seconds" ["stage"] "How long each stage took: queue for each commit, append, flush, remote_flush, safe and apply for each batch of them.";
    READ_SECONDS = Histogram "understudy_read_seconds" ["consistency"] "From a read's arrival to its answer; of a scan until its position is known and, if asked for, confirmed.";
    GRPC_REQUESTS = Counter "understudy_grpc_requests_total" ["method", "code"] "Answered gRPC requests, by method and status; of a stream, the status with which it began.";
    GRPC_CONNECTIONS = Gauge "understudy_grpc_connections" ["place"] "Open connections of the gRPC port, by place: ordinary, newcomer, member, operator; the last three are in places that clients cannot take.";
    GRPC_CONNECTIONS_MAX = Gauge "understudy_grpc_connections_max" [] "How many connections the gRPC port takes, those kept for members and operators among them.";
    GRPC_REFUSED = Counter "understudy_grpc_connections_refused_total" ["why"] "Connections to the gRPC port that were closed: displaced or not_a_member (all ordinary places were taken), silent.";
    HTTP_REFUSED = Counter "understudy_http_refused_total" [] "Connections to the HTTP port that were closed because too many were open.";
    TRACE_DROPPED = Counter "understudy_trace_dropped_total" ["what"] "Traced commits (mark) and spans (span) that were given up because too many waited.";
    TRACE_EXPORTS = Counter "understudy_trace_exports_total" ["result"] "Batches of spans that the collector took (ok) or did not (failed).";
    PROCESS_START = Gauge "understudy_process_start_time_seconds" [] "When the process started, in Unix time.";
    PROCESS_MEMORY = Gauge "understudy_process_resident_memory_bytes" [] "Memory of the process that is in RAM.";
    PROCESS_FDS = Gauge "understudy_process_open_fds" [] "Open file descriptors of the process.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_keep_the_rules() {
        let mut seen = BTreeSet::new();
        for metric in TABLE {
            let Metric { name, kind, labels, help } = metric;
            assert!(seen.insert(*name), "{name} stands twice");
            assert!(name.starts_with("understudy_"), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            assert!(*kind != Kind::Histogram || name.ends_with("_seconds"), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert!(help.ends_with('.') && !help.contains(['|', '\\', '\n']), "{name}: {help}");
            assert!(!labels.contains(&"le"), "{name}");
        }
    }

    #[test]
    fn the_documentation_lists_exactly_these() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/monitoring.md");
        let text = std::fs::read_to_string(path).expect("docs/monitoring.md");
        let listed: Vec<&str> = text.lines().filter(|line| line.starts_with("| `understudy_")).collect();
        let expected: Vec<String> = TABLE
            .iter()
            .map(|Metric { name, kind, labels, help }| {
                format!("| `{name}` | {} | {} | {help} |", kind.as_str(), labels.join(", "))
            })
            .collect();
        assert_eq!(listed, expected, "\ndocs/monitoring.md should have:\n{}\n", expected.join("\n"));
    }
}
