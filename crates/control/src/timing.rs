//! Intervals and bounds of the control plane, and why they are as they are.
//!
//! Raft here decides failovers of the primary, so its own calm matters more than how fast it replaces its own
//! leader: leadership is kept off the primary, and the death of the Raft leader touches no client. The core task
//! of the consensus library waits for each fsync of its log and does nothing else meanwhile, so every interval
//! must stand a slow fsync on a busy machine.

use std::time::Duration;

use openraft::{Config, SnapshotPolicy};

/// How often a leader shows itself, and how long it waits for the answer to one append.
///
/// The answer includes the follower's fsync, which takes tens of milliseconds on a busy disk; a longer one costs a
/// repeated message, nothing else. The library looks at its clock every one and a half intervals.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(200);

/// The shortest time after the end of a leader's lease until a follower stands for leadership.
pub const ELECTION_TIMEOUT_MIN: Duration = Duration::from_millis(750);

/// The longest such time, and the length of a leader's lease: for so long after a message from it, voters refuse
/// other candidates. Five looks at the clock fit into it, so a lost heartbeat or two, or one fsync of a second,
/// changes nothing. A dead leader is replaced within 2.25 to 3 seconds.
pub const ELECTION_TIMEOUT_MAX: Duration = Duration::from_millis(1_500);

/// A node that stands aside stands for leadership only after this much silence: the others had their two rounds.
pub const STAND_ASIDE_MAX: Duration = Duration::from_millis(3 * 1_500);

/// After an attempt that nobody granted it stands again: long enough for the answers to come, and before others do, whose
/// timeouts follow a lease.
pub const STAND_AGAIN: Duration = Duration::from_millis(750);

/// How often a node that stands aside looks whether anybody leads.
pub(crate) const WATCH_INTERVAL: Duration = Duration::from_millis(200);

/// For a command to be committed and applied on the leader. Every call into the library has a bound: a part of it
/// that died may leave its callers waiting.
pub const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// For a message of the library to be handled here, and for the other calls into it.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// For a snapshot chunk to be sent, received, installed and fsynced.
pub(crate) const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(10);

/// For a TCP connection to another node to be made.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// A connection that is silent for so long is asked for a sign of life,
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// and given up after this: a partition that healed is not left to TCP's doubling retransmission pauses.
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Pauses before an unreachable node is tried again: the first, and the bound to which they double. A node that
/// came back hears from the leader well before its election timeout ends.
pub(crate) const BACKOFF_FIRST: Duration = Duration::from_millis(50);
/// See [`BACKOFF_FIRST`].
pub(crate) const BACKOFF_MAX: Duration = Duration::from_millis(400);

/// For the target of a handover to have everything that the leader has.
pub(crate) const HANDOVER_CATCH_UP_TIMEOUT: Duration = Duration::from_secs(1);
/// For the target to win once it was asked to stand.
pub(crate) const HANDOVER_ELECT_TIMEOUT: Duration = Duration::from_millis(750);

/// For how long a leader holds back the ballot of a candidate that should hear it: a heartbeat and its answer, and the pause
/// before a node that could not be reached is tried again. Less than a candidate waits.
pub(crate) const BALLOT_HELD_BACK: Duration = Duration::from_millis(500);

/// For so long after it was asked to stand, the leader grants the target its vote: it may come to it late.
pub(crate) const MAY_STAND: Duration = Duration::from_secs(3);

/// For the log's database to be closed after a stop.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// A message between nodes, encoded. Entries are a few hundred bytes and snapshots a few kilobytes.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// A snapshot as it is received from another node.
pub(crate) const SNAPSHOT_BYTES_MAX: u64 = 64 << 20;
/// A piece of a snapshot. As JSON a byte takes up to four.
const SNAPSHOT_CHUNK_BYTES: u64 = 1 << 20;
/// Entries in one message.
const APPEND_ENTRIES_MAX: u64 = 256;
/// Entries between two snapshots: commands are rare, and a restart replays at most this many and those kept.
const SNAPSHOT_ENTRIES: u64 = 512;
/// Entries kept below a snapshot, so that a node that was away for a moment needs none.
const KEPT_ENTRIES: u64 = 512;

/// The library's settings.
pub(crate) fn raft_config() -> Config {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).expect("a constant of a few seconds");
    Config {
        cluster_name: "understudy".to_owned(),
        heartbeat_interval: millis(HEARTBEAT_INTERVAL),
        election_timeout_min: millis(ELECTION_TIMEOUT_MIN),
        election_timeout_max: millis(ELECTION_TIMEOUT_MAX),
        install_snapshot_timeout: millis(SNAPSHOT_TIMEOUT),
        max_payload_entries: APPEND_ENTRIES_MAX,
        snapshot_max_chunk_size: SNAPSHOT_CHUNK_BYTES,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_ENTRIES),
        max_in_snapshot_log_to_keep: KEPT_ENTRIES,
        replication_lag_threshold: SNAPSHOT_ENTRIES + KEPT_ENTRIES,
        ..Config::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_are_consistent() {
        let config = raft_config().validate().expect("valid");
        assert!(config.election_timeout_max >= 5 * config.heartbeat_interval * 3 / 2);
        assert!(STAND_ASIDE_MAX >= 3 * ELECTION_TIMEOUT_MAX);
        assert!(BACKOFF_MAX < ELECTION_TIMEOUT_MIN);
        assert!(BACKOFF_MAX < BALLOT_HELD_BACK && BALLOT_HELD_BACK < ELECTION_TIMEOUT_MIN);
    }
}
