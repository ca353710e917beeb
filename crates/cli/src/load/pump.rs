//! Commits in flight: as many as asked for, bounded in bytes, and never two with a key in common.
//!
//! The first trouble stops the intake: the input ends, a commit is refused or its outcome stays unknown, a signal
//! comes. What is in flight then is waited for; a signal while it is gives up on it, and what had no answer counts as
//! unknown.

use std::collections::HashSet;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use understudy_client::{Client, ClientError, Commit, CommitOutcome};
use understudy_types::DurabilityLevel;

use crate::load::LoadError;
use crate::load::account::Account;
use crate::load::acks::{Acks, unix_us};
use crate::load::progress::Progress;
use crate::load::source::Batch;

/// Keys and values in flight. A single commit may have more only if it is alone.
const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;

/// One commit and what came of it.
struct Answered {
    batch: Batch,
    result: Result<CommitOutcome, ClientError>,
    at_us: u64,
}

/// Drives a load.
pub struct Pump {
    client: Client,
    /// None: the cluster's default.
    level: Option<DurabilityLevel>,
    in_flight_max: usize,
    acks: Option<Acks>,
    progress: Progress,
    account: Account,
    in_flight: JoinSet<Answered>,
    keys: HashSet<Bytes>,
    bytes: usize,
    records: u64,
    problem: Option<LoadError>,
}

impl Pump {
    /// With at most `in_flight_max` commits at a time.
    pub fn new(
        client: Client,
        level: Option<DurabilityLevel>,
        in_flight_max: usize,
        acks: Option<Acks>,
        progress: Progress,
    ) -> Self {
        Self {
            client,
            level,
            in_flight_max,
            acks,
            progress,
            account: Account::default(),
            in_flight: JoinSet::new(),
            keys: HashSet::new(),
            bytes: 0,
            records: 0,
            problem: None,
        }
    }

    /// Commits what `input` gives until its end or the first trouble; what became of it, and the trouble.
    pub async fn run(
        mut self,
        mut input: mpsc::Receiver<Result<Batch, LoadError>>,
        mut signals: mpsc::Receiver<()>,
    ) -> (Account, Option<LoadError>) {
        let began = Instant::now();
        let mut waiting: Option<Batch> = None;
        let mut open = true;
        loop {
            if self.problem.is_some() && open {
                open = false;
                self.account.not_sent += waiting.take().map_or(0, |batch| batch.records.len() as u64);
            }
            if let Some(batch) = waiting.take_if(|batch| self.admits(batch)) {
                self.send(batch);
            }
            if self.in_flight.is_empty() && waiting.is_none() && !open {
                break;
            }
            tokio::select! {
                biased;
                Some(joined) = self.in_flight.join_next(), if !self.in_flight.is_empty() => {
                    self.settle(joined.expect("a commit neither panics nor is cancelled"));
                }
                Some(()) = signals.recv() => {
                    if self.problem.is_some() {
                        self.account.unknown += self.records;
                        break;
                    }
                    self.problem = Some(LoadError::Interrupted);
                }
                item = input.recv(), if open && waiting.is_none() => match item {
                    Some(Ok(batch)) => {
                        batch.records.iter().for_each(|record| self.account.note_key(&record.key));
                        waiting = Some(batch);
                    }
                    Some(Err(error)) => self.problem = Some(error),
                    None => open = false,
                },
            }
            self.progress.update(self.account.acknowledged, self.in_flight.len());
        }
        self.progress.finish();
        self.account.close(began.elapsed());
        (self.account, self.problem)
    }

    /// Whether `batch` may go now: it fits, and no earlier record with one of its keys is under way.
    fn admits(&self, batch: &Batch) -> bool {
        let fits = self.in_flight.is_empty() || self.bytes + batch.bytes <= IN_FLIGHT_BYTES_MAX;
        self.in_flight.len() < self.in_flight_max
            && fits
            && !batch.records.iter().any(|record| self.keys.contains(&record.key))
    }

    fn send(&mut self, batch: Batch) {
        self.bytes += batch.bytes;
        self.records += batch.records.len() as u64;
        self.keys.extend(batch.records.iter().map(|record| record.key.clone()));
        let empty = self.level.map_or_else(Commit::new, |level| Commit::new().level(level));
        let commit =
            batch.records.iter().fold(empty, |commit, record| commit.put(record.key.clone(), record.value.clone()));
        let client = self.client.clone();
        self.in_flight.spawn(async move {
            let result = client.commit(commit).await;
            Answered { batch, result, at_us: unix_us() }
        });
    }

    fn settle(&mut self, answered: Answered) {
        let Answered { batch, result, at_us } = answered;
        let records = batch.records.len() as u64;
        self.bytes -= batch.bytes;
        self.records -= records;
        for record in &batch.records {
            self.keys.remove(&record.key);
        }
        match result {
            Ok(outcome) => {
                self.account.acknowledged += records;
                self.account.already_done += if outcome.already_done { records } else { 0 };
                self.account.commits += 1;
                self.account.bytes += batch.bytes as u64;
                let noted = self.acks.as_mut().map_or(Ok(()), |acks| acks.note(&batch, &outcome, at_us));
                if let Err(error) = noted {
                    self.problem.get_or_insert(error);
                }
            }
            Err(error) => {
                match &error {
                    ClientError::Unknown { .. } => self.account.unknown += records,
                    ClientError::Aborted { .. }
                    | ClientError::Unavailable { .. }
                    | ClientError::Invalid { .. }
                    | ClientError::Abandoned { .. } => {
                        self.account.failed += records;
                    }
                }
                let file = batch.file.to_string();
                self.problem.get_or_insert(LoadError::NotAcknowledged { file, line: batch.line, source: error });
            }
        }
    }
}
