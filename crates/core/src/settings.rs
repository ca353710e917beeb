//! The cluster's settings: one table, from which validation, `config show` and the documentation are made.
//!
//! Raft stores [`Settings`]; operators change them as texts, `name=value`, through
//! [`crate::command::Command::Configure`]. Everything that is known about a setting stands in [`SETTINGS`], and nowhere
//! else: its name, what it takes, its bounds, when a change takes effect, and its doc line. [`configured`] is run
//! before a command is proposed and again when it is applied, on every node: it looks at nothing but its arguments.
//!
//! It refuses to judge whom `synchronous_standby_names` names: a rule that nobody matches is accepted, because the
//! member may be on its way. [`crate::sync::nobody_can_acknowledge`] says what that comes to.

mod error;
mod nearest;
mod table;
mod units;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use understudy_types::shown::shown;
use understudy_types::{DurabilityLevel, SyncMode};

pub use self::error::SettingError;
pub use self::nearest::nearest;
pub use self::table::SETTINGS;
pub use self::units::{parse_bytes, parse_ms, print_bytes, print_ms};
use crate::sync::{StandbyNames, StandbyNamesError};

/// What operators can set for the whole cluster. Each field is described in [`SETTINGS`].
///
/// A field that an older log or snapshot does not have takes its default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// PostgreSQL's grammar; see [`crate::sync::StandbyNames`]. Empty: nobody is waited for.
    pub synchronous_standby_names: String,
    /// What happens when too few are there.
    pub sync_mode: SyncMode,
    /// Of a commit that does not say.
    pub default_durability: DurabilityLevel,
    /// What a commit waits for that has no deadline of its own.
    pub commit_deadline_ms: u64,
    /// How long the primary may be unheard before it counts as gone, and how long it may be unconfirmed before
    /// it stops acknowledging. In milliseconds.
    pub primary_timeout_ms: u64,
    /// How the primary knows, for a linearizable read, that nobody else has been promoted.
    pub linearizable_reads: LinearizableReads,
    /// With [`LinearizableReads::Lease`]: for how long a voter grants, in milliseconds.
    pub primary_lease_ms: u64,
    /// With [`LinearizableReads::Lease`]: what the primary takes off a lease for clocks that run at different rates, in percent.
    pub lease_drift_margin_percent: u64,
    /// In mode `async`: how far a standby may be behind the last known end of the primary's WAL and still be promoted, in bytes.
    pub max_lag_on_failover_bytes: u64,
    /// Zero: never.
    pub wal_sender_timeout_ms: u64,
    /// Zero: never.
    pub wal_receiver_timeout_ms: u64,
    /// Zero: only when something moved.
    pub wal_receiver_status_interval_ms: u64,
    /// Streams to standbys at a time, per node.
    pub max_wal_senders: u64,
    /// WAL that is kept whoever needs it.
    pub wal_keep_size_bytes: u64,
    /// WAL since the last checkpoint that brings the next one.
    pub max_wal_size_bytes: u64,
    /// Time since the last checkpoint that brings the next one.
    pub checkpoint_timeout_ms: u64,
    /// How long old versions can be read.
    pub history_retention_ms: u64,
    /// How long the outcome of a request id can be asked for.
    pub request_id_retention_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            synchronous_standby_names: "ANY 1 (*)".to_owned(),
            sync_mode: SyncMode::Preferred,
            default_durability: DurabilityLevel::On,
            commit_deadline_ms: 30_000,
            primary_timeout_ms: 1_000,
            linearizable_reads: LinearizableReads::Quorum,
            primary_lease_ms: 1_000,
            lease_drift_margin_percent: 10,
            max_lag_on_failover_bytes: 1 << 20,
            wal_sender_timeout_ms: 10_000,
            wal_receiver_timeout_ms: 10_000,
            wal_receiver_status_interval_ms: 1_000,
            max_wal_senders: 10,
            wal_keep_size_bytes: 256 << 20,
            max_wal_size_bytes: 1 << 30,
            checkpoint_timeout_ms: 300_000,
            history_retention_ms: 300_000,
            request_id_retention_ms: 3_600_000,
        }
    }
}

/// What a linearizable read of the primary rests on (design, "Beats, confirmation, reads").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinearizableReads {
    /// A majority's word, asked for after the read came. No clock is involved.
    Quorum,
    /// A majority's grants that still run, by clocks that must not drift apart by more than the margin. See [`crate::lease`].
    Lease,
}

impl LinearizableReads {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::Lease => "lease",
        }
    }
}

impl Settings {
    /// For how long voters are to grant the primary a lease, in milliseconds; zero when it reads by quorum.
    pub fn wanted_lease_ms(&self) -> u64 {
        match self.linearizable_reads {
            LinearizableReads::Quorum => 0,
            LinearizableReads::Lease => self.primary_lease_ms,
        }
    }
}

/// When a change takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// As soon as a node has applied it.
    AtOnce,
    /// For connections that are made from then on.
    NextConnection,
    /// When the server is started again.
    Restart,
}

impl Takes {
    /// As it is shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AtOnce => "at once",
            Self::NextConnection => "next connection",
            Self::Restart => "restart",
        }
    }
}

/// A number of [`Settings`].
#[derive(Debug, Clone, Copy)]
pub struct Number {
    pub(self) get: fn(&Settings) -> u64,
    pub(self) set: fn(&mut Settings, u64),
    /// The least, beside zero where that is allowed.
    pub min: u64,
    /// The most.
    pub max: u64,
    /// What zero means, where that is below `min` and allowed all the same.
    pub zero: Option<&'static str>,
}

/// What a setting takes.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// `synchronous_standby_names`.
    StandbyNames,
    /// One of these words.
    Choice {
        /// All there are.
        words: &'static [&'static str],
        /// The present one.
        get: fn(&Settings) -> &'static str,
        /// False for a word that is none of them.
        set: fn(&mut Settings, &str) -> bool,
    },
    /// Milliseconds.
    Time(Number),
    /// Bytes.
    Size(Number),
    /// How many.
    Count(Number),
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// As operators write it.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// When a change takes effect.
    pub takes: Takes,
    /// One sentence, for people.
    pub doc: &'static str,
}

impl Setting {
    /// The setting of this name.
    ///
    /// # Errors
    /// When there is none: the nearest one.
    pub fn find(name: &str) -> Result<&'static Setting, SettingError> {
        SETTINGS.iter().find(|setting| setting.name == name).ok_or_else(|| SettingError::Unknown {
            name: shown(name),
            nearest: nearest(name, SETTINGS.iter().map(|setting| setting.name)).map(str::to_owned),
        })
    }

    /// The value, as [`Setting::set`] takes it.
    pub fn get(&self, settings: &Settings) -> String {
        match self.kind {
            Kind::StandbyNames => settings.synchronous_standby_names.clone(),
            Kind::Choice { get, .. } => get(settings).to_owned(),
            Kind::Time(number) => print_ms((number.get)(settings)),
            Kind::Size(number) => print_bytes((number.get)(settings)),
            Kind::Count(number) => (number.get)(settings).to_string(),
        }
    }

    /// The default, as [`Setting::set`] takes it.
    pub fn default(&self) -> String {
        self.get(&Settings::default())
    }

    /// Changes the one value. What it must not be beside others is [`check`]'s to say.
    ///
    /// # Errors
    /// When the text is not of the type or out of bounds; nothing is changed then.
    pub fn set(&self, settings: &mut Settings, text: &str) -> Result<(), SettingError> {
        let refused =
            || SettingError::Refused { name: self.name.to_owned(), text: shown(text), expected: self.expected() };
        let mut number = |number: Number, given: Option<u64>| {
            let given = given.filter(|given| number.holds(*given)).ok_or_else(refused)?;
            (number.set)(settings, given);
            Ok(())
        };
        match self.kind {
            Kind::StandbyNames => {
                StandbyNames::parse(text).map_err(|error| SettingError::Refused {
                    name: self.name.to_owned(),
                    text: shown(text),
                    expected: format!("{}; {}", self.expected(), problem(&error)),
                })?;
                settings.synchronous_standby_names = text.to_owned();
                Ok(())
            }
            Kind::Choice { set, .. } => set(settings, text.trim()).then_some(()).ok_or_else(refused),
            Kind::Time(of) => number(of, parse_ms(text)),
            Kind::Size(of) => number(of, parse_bytes(text)),
            Kind::Count(of) => number(of, text.trim().parse().ok()),
        }
    }

    /// What kind of text it takes, in a word.
    pub fn unit(&self) -> &'static str {
        match self.kind {
            Kind::StandbyNames => "rule",
            Kind::Choice { .. } => "word",
            Kind::Time(_) => "time",
            Kind::Size(_) => "size",
            Kind::Count(_) => "number",
        }
    }

    /// The bounds, for people: `500ms to 1h`.
    pub fn bounds(&self) -> String {
        match self.kind {
            Kind::StandbyNames => "at most 8KiB".to_owned(),
            Kind::Choice { words, .. } => words.join(", "),
            Kind::Time(number) => number.bounds(print_ms),
            Kind::Size(number) => number.bounds(print_bytes),
            Kind::Count(number) => number.bounds(|count| count.to_string()),
        }
    }

    /// What would do, for people.
    fn expected(&self) -> String {
        match self.kind {
            Kind::StandbyNames => "nothing, or a rule like ANY 1 (*) or FIRST 2 (a, b, c)".to_owned(),
            Kind::Choice { .. } => format!("one of {}", self.bounds()),
            Kind::Time(_) => format!("a time of {}, like 250ms, 30s or 5min", self.bounds()),
            Kind::Size(_) => format!("a size of {}, like 64KiB, 16MiB or 1GiB", self.bounds()),
            Kind::Count(_) => format!("a number of {}", self.bounds()),
        }
    }
}

impl Number {
    fn holds(&self, given: u64) -> bool {
        (self.min..=self.max).contains(&given) || (given == 0 && self.zero.is_some())
    }

    fn bounds(&self, print: impl Fn(u64) -> String) -> String {
        let zero = self.zero.map_or_else(String::new, |means| format!(", or 0 ({means})"));
        format!("{} to {}{zero}", print(self.min), print(self.max))
    }
}

/// The settings after `changes`, all of them or none.
///
/// # Errors
/// Everything that is wrong, not only the first; at least one.
pub fn configured(settings: &Settings, changes: &BTreeMap<String, String>) -> Result<Settings, Vec<SettingError>> {
    let mut next = settings.clone();
    let mut errors = Vec::new();
    for (name, text) in changes {
        if let Err(error) = Setting::find(name).and_then(|setting| setting.set(&mut next, text)) {
            errors.push(error);
        }
        if errors.len() >= ERRORS_MAX {
            return Err(errors);
        }
    }
    if errors.is_empty() {
        errors = check(&next);
    }
    if errors.is_empty() { Ok(next) } else { Err(errors) }
}

/// What is wrong with a rule, without the rule itself: it may be long.
fn problem(error: &StandbyNamesError) -> String {
    match error {
        StandbyNamesError::Unexpected { column, found, expected, .. } => {
            format!("found {} at column {column}, expected {expected}", shown(found))
        }
        StandbyNamesError::Unterminated { column, .. } => {
            format!("the quoted name at column {column} has no closing quote")
        }
        StandbyNamesError::Number { column, number, .. } => {
            format!("the number of standbys at column {column} is {}, expected 1 to 2147483647", shown(number))
        }
        StandbyNamesError::TooLong { bytes } => {
            format!("it has {bytes} bytes, at most {} are allowed", StandbyNames::BYTES_MAX)
        }
    }
}

/// After so many the rest is not looked at.
const ERRORS_MAX: usize = 32;

/// Everything that is wrong with `settings`, each by itself and beside the others.
pub fn check(settings: &Settings) -> Vec<SettingError> {
    let itself = |setting: &Setting| setting.set(&mut settings.clone(), &setting.get(settings)).err();
    let mut errors: Vec<SettingError> = SETTINGS.iter().filter_map(itself).collect();
    let mut ordered = |first: (&str, u64), second: (&str, u64), rule: &str| {
        if first.1 > second.1 {
            errors.push(SettingError::Conflict {
                first: first.0.to_owned(),
                first_value: print_ms(first.1),
                second: second.0.to_owned(),
                second_value: print_ms(second.1),
                rule: rule.to_owned(),
            });
        }
    };
    ordered(
        ("commit_deadline", settings.commit_deadline_ms),
        ("request_id_retention", settings.request_id_retention_ms),
        "request ids must be kept at least as long as a commit may take, or nobody could ask what became of it",
    );
    // Without leases their length says nothing, and a short primary_timeout is nobody's mistake.
    ordered(
        ("primary_lease", settings.wanted_lease_ms()),
        ("primary_timeout", settings.primary_timeout_ms),
        "with linearizable_reads = lease a failover waits for leases to run out, and must not wait longer for them than \
         for the primary",
    );
    errors
}

#[cfg(test)]
#[path = "settings/tests.rs"]
mod tests;
