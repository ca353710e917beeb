//! What became of every record.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use serde::Serialize;

use crate::load::LoadError;

/// Distinct keys that are remembered to find duplicates. Beyond it the count of duplicates is a lower bound.
const KEYS_MAX: usize = 4_000_000;

/// Every record that was read is exactly one of acknowledged, unknown, failed and not sent.
#[derive(Debug, Default)]
pub struct Account {
    /// Records read.
    pub read: u64,
    /// Records in commits that stand.
    pub acknowledged: u64,
    /// Records in commits that may or may not take effect.
    pub unknown: u64,
    /// Records in commits that were refused, or that nobody took.
    pub failed: u64,
    /// Records that were read and never sent, because the load stopped.
    pub not_sent: u64,
    /// Of the acknowledged: an earlier attempt had made the commit already.
    pub already_done: u64,
    /// Records whose key was in the input before.
    pub duplicates: u64,
    /// Commits acknowledged.
    pub commits: u64,
    /// Keys and values acknowledged, in bytes.
    pub bytes: u64,
    /// From the first read to the last answer.
    pub elapsed: Duration,
    keys: Keys,
}

/// The keys seen so far, by 128 bits of keyed hash: two of 2^22 keys are taken for one with a chance below 2^-84.
#[derive(Debug, Default)]
struct Keys {
    seen: HashSet<(u64, u64)>,
    hashers: (RandomState, RandomState),
}

impl Account {
    /// One more record was read.
    pub fn note_key(&mut self, key: &[u8]) {
        self.read += 1;
        let hash = (self.keys.hashers.0.hash_one(key), self.keys.hashers.1.hash_one(key));
        if self.keys.seen.contains(&hash) {
            self.duplicates += 1;
        } else if !self.is_lower_bound() {
            self.keys.seen.insert(hash);
        }
    }

    /// Whether there may be more duplicates than were counted.
    fn is_lower_bound(&self) -> bool {
        self.keys.seen.len() >= KEYS_MAX
    }

    /// # Panics
    /// When a record is in no class or in two: the accounting would be wrong.
    pub fn close(&mut self, elapsed: Duration) {
        self.elapsed = elapsed;
        assert_eq!(
            self.read,
            self.acknowledged + self.unknown + self.failed + self.not_sent,
            "every record is in one class"
        );
    }

    fn rate(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        // A count of records is far below 2^52.
        if seconds > 0.0 { self.acknowledged as f64 / seconds } else { 0.0 }
    }

    /// For people.
    pub fn table(&self) -> String {
        let at_least = if self.is_lower_bound() { "at least " } else { "" };
        let rows = [
            ("records read", self.read.to_string()),
            ("acknowledged", self.acknowledged.to_string()),
            ("  of these already done", self.already_done.to_string()),
            ("unknown", self.unknown.to_string()),
            ("failed", self.failed.to_string()),
            ("not sent", self.not_sent.to_string()),
            ("duplicate keys in the input", format!("{at_least}{}", self.duplicates)),
            ("commits", self.commits.to_string()),
            ("seconds", format!("{:.3}", self.elapsed.as_secs_f64())),
            ("records per second", format!("{:.0}", self.rate())),
        ];
        let width = rows.iter().map(|(_, value)| value.len()).max().unwrap_or(0);
        rows.iter().map(|(name, value)| format!("{name:<28}{value:>width$}\n")).collect()
    }

    /// For programs.
    pub fn json(&self, problem: Option<&LoadError>) -> impl Serialize + use<> {
        JsonAccount {
            records_read: self.read,
            acknowledged: self.acknowledged,
            already_done: self.already_done,
            unknown: self.unknown,
            failed: self.failed,
            not_sent: self.not_sent,
            duplicates: self.duplicates,
            duplicates_is_lower_bound: self.is_lower_bound(),
            commits: self.commits,
            bytes: self.bytes,
            seconds: self.elapsed.as_secs_f64(),
            error: problem.map(ToString::to_string),
        }
    }
}

#[derive(Serialize)]
struct JsonAccount {
    records_read: u64,
    acknowledged: u64,
    already_done: u64,
    unknown: u64,
    failed: u64,
    not_sent: u64,
    duplicates: u64,
    duplicates_is_lower_bound: bool,
    commits: u64,
    bytes: u64,
    seconds: f64,
    error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_a_table_and_json() {
        let mut account = Account::default();
        for key in ["a", "b", "a", "c"] {
            account.note_key(key.as_bytes());
        }
        (account.acknowledged, account.already_done, account.commits) = (2, 1, 2);
        (account.unknown, account.failed) = (1, 1);
        account.close(Duration::from_millis(500));
        let expected = "\
records read                    4
acknowledged                    2
  of these already done         1
unknown                         1
failed                          1
not sent                        0
duplicate keys in the input     1
commits                         2
seconds                     0.500
records per second              4
";
        assert_eq!(account.table(), expected);
        let json = serde_json::to_value(account.json(Some(&LoadError::Interrupted))).expect("json");
        assert_eq!(json["records_read"], 4);
        assert_eq!(json["duplicates"], 1);
        assert!(json["error"].as_str().is_some_and(|text| text.contains("signal")));
    }

    #[test]
    #[should_panic(expected = "every record is in one class")]
    fn a_lost_record_is_noticed() {
        let mut account = Account::default();
        account.note_key(b"a");
        account.close(Duration::ZERO);
    }
}
