//! Every setting of the cluster.

use super::{Kind, LinearizableReads, Number, Setting, Settings, Takes};

const SECOND_MS: u64 = 1_000;
const HOUR_MS: u64 = 3_600 * SECOND_MS;
const DAY_MS: u64 = 24 * HOUR_MS;
const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;
/// The shortest `primary_timeout`, in milliseconds: five beats.
const FIVE_BEATS_MS: u64 = 500;

const LEVELS: &[&str] = &["off", "local", "remote_write", "on", "remote_apply"];

/// A [`Number`] over one field of [`Settings`].
macro_rules! number {
    ($field:ident, $min:expr, $max:expr) => {
        number!($field, $min, $max, None)
    };
    ($field:ident, $min:expr, $max:expr, $zero:expr) => {
        Number {
            get: |settings: &Settings| settings.$field,
            set: |settings: &mut Settings, value: u64| settings.$field = value,
            min: $min,
            max: $max,
            zero: $zero,
        }
    };
}

const fn row(name: &'static str, kind: Kind, takes: Takes, doc: &'static str) -> Setting {
    Setting { name, kind, takes, doc }
}

/// The table, in the order in which it is shown.
pub const SETTINGS: [Setting; 18] = [
    row(
        "synchronous_standby_names",
        Kind::StandbyNames,
        Takes::AtOnce,
        "Who confirms a commit before it is acknowledged, in PostgreSQL's grammar; empty: nobody is waited for",
    ),
    row(
        "sync_mode",
        Kind::Choice {
            words: &["async", "preferred", "required"],
            get: |settings| settings.sync_mode.as_str(),
            set: |settings, word| word.parse().map(|mode| settings.sync_mode = mode).is_ok(),
        },
        Takes::AtOnce,
        "When too few are there to confirm: preferred goes on alone once that is recorded, required waits; async never \
         waits for anybody",
    ),
    row(
        "default_durability",
        Kind::Choice {
            words: LEVELS,
            get: |settings| settings.default_durability.as_str(),
            set: |settings, word| word.parse().map(|level| settings.default_durability = level).is_ok(),
        },
        Takes::AtOnce,
        "When a commit that does not say is acknowledged",
    ),
    row(
        "commit_deadline",
        Kind::Time(number!(commit_deadline_ms, 10, HOUR_MS)),
        Takes::AtOnce,
        "How long a commit without a deadline of its own waits for confirmation before its outcome is unknown",
    ),
    row(
        "primary_timeout",
        Kind::Time(number!(primary_timeout_ms, FIVE_BEATS_MS, HOUR_MS)),
        Takes::AtOnce,
        "How long the primary may be unheard before it counts as gone, and unconfirmed before it stops acknowledging",
    ),
    row(
        "linearizable_reads",
        Kind::Choice {
            words: &["quorum", "lease"],
            get: |settings| settings.linearizable_reads.as_str(),
            set: |settings, word| {
                let all = [LinearizableReads::Quorum, LinearizableReads::Lease];
                let found = all.into_iter().find(|choice| choice.as_str() == word);
                found.map(|found| settings.linearizable_reads = found).is_some()
            },
        },
        Takes::AtOnce,
        "How the primary knows, for a linearizable read, that nobody else was promoted: quorum asks a majority; lease \
         answers at once while a majority's grants run, and trusts the rate of clocks",
    ),
    row(
        "primary_lease",
        Kind::Time(number!(primary_lease_ms, 100, HOUR_MS)),
        Takes::AtOnce,
        "With linearizable_reads = lease: for how long a voter grants; at most primary_timeout, and a failover may wait so long",
    ),
    row(
        "lease_drift_margin_percent",
        Kind::Count(number!(lease_drift_margin_percent, 1, 50)),
        Takes::AtOnce,
        "With linearizable_reads = lease: by so much two nodes' clocks may differ in rate; the primary counts its lease that much shorter",
    ),
    row(
        "max_lag_on_failover",
        Kind::Size(number!(max_lag_on_failover_bytes, 0, TIB)),
        Takes::AtOnce,
        "In mode async: how far a standby may be behind and still be promoted",
    ),
    row(
        "wal_sender_timeout",
        Kind::Time(number!(wal_sender_timeout_ms, 100, DAY_MS, Some("never"))),
        Takes::NextConnection,
        "A standby from which nothing came for so long is dropped",
    ),
    row(
        "wal_receiver_timeout",
        Kind::Time(number!(wal_receiver_timeout_ms, 100, DAY_MS, Some("never"))),
        Takes::NextConnection,
        "An upstream from which nothing came for so long is left",
    ),
    row(
        "wal_receiver_status_interval",
        Kind::Time(number!(wal_receiver_status_interval_ms, 10, HOUR_MS, Some("only when something moved"))),
        Takes::NextConnection,
        "A standby acknowledges at least so often",
    ),
    row(
        "max_wal_senders",
        Kind::Count(number!(max_wal_senders, 1, 1_000)),
        Takes::NextConnection,
        "Streams to standbys, and seeds, that a node serves at a time",
    ),
    row(
        "wal_keep_size",
        Kind::Size(number!(wal_keep_size_bytes, 0, TIB)),
        Takes::AtOnce,
        "WAL that is kept even if nobody is known to need it",
    ),
    row(
        "max_wal_size",
        Kind::Size(number!(max_wal_size_bytes, 2 * MIB, TIB)),
        Takes::AtOnce,
        "So much WAL since the last checkpoint brings the next one",
    ),
    row(
        "checkpoint_timeout",
        Kind::Time(number!(checkpoint_timeout_ms, SECOND_MS, DAY_MS)),
        Takes::AtOnce,
        "So much time since the last checkpoint brings the next one",
    ),
    row(
        "history_retention",
        Kind::Time(number!(history_retention_ms, SECOND_MS, 30 * DAY_MS)),
        Takes::AtOnce,
        "How long old versions of a key can be read",
    ),
    row(
        "request_id_retention",
        Kind::Time(number!(request_id_retention_ms, SECOND_MS, 30 * DAY_MS)),
        Takes::AtOnce,
        "How long the outcome of a commit can be asked for by its request id; at least commit_deadline",
    ),
];
