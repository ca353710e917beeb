//! Votes and log entries on disk, as the consensus library wants them.
//!
//! The library's core task calls this, one call at a time, and waits for each. A vote is on disk before
//! `save_vote` returns, an entry before its callback is called; the kill -9 test beside this holds it to that.
//! The committed index is saved without a sync: it says how far to replay at the next start, and a smaller one
//! only means that the rest is learnt from the leader.

use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};

use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader, StorageIOError};

use crate::database::{COMMITTED_KEY, Change, Database, DatabaseError, PURGED_KEY, VOTE_KEY, entries_end, entry_key};
use crate::wire::{Entry, LogId, StorageError, TypeConfig, Vote};

/// The log of one node. Its clones read the same log.
#[derive(Clone)]
pub(crate) struct LogStore {
    database: Database,
}

impl LogStore {
    pub(crate) fn new(database: Database) -> Self {
        Self { database }
    }

    /// Whether nothing was ever voted, appended or installed.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn is_pristine(&self) -> Result<bool, DatabaseError> {
        let voted = self.database.read::<Vote>(VOTE_KEY)?.is_some();
        let purged = self.database.read::<LogId>(PURGED_KEY)?.is_some();
        let logged = self.database.last_entry::<Entry>()?.is_some();
        Ok(!voted && !purged && !logged)
    }
}

pub(crate) fn any(error: &DatabaseError) -> openraft::AnyError {
    openraft::AnyError::new(error)
}

fn reading(error: DatabaseError) -> StorageError {
    StorageIOError::read_logs(any(&error)).into()
}

fn writing(error: DatabaseError) -> StorageError {
    StorageIOError::write_logs(any(&error)).into()
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let start = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(index) => index.checked_add(1),
            Bound::Excluded(index) => Some(*index),
            Bound::Unbounded => None,
        };
        let end_key = end.map_or_else(entries_end, entry_key);
        let entries: Vec<Entry> = self.database.read_range(&entry_key(start), &end_key, usize::MAX).map_err(reading)?;
        let consecutive = entries.windows(2).all(|pair| pair[0].log_id.index + 1 == pair[1].log_id.index);
        if !consecutive {
            return Err(reading(DatabaseError(format!("entries are missing among those of {range:?}"))));
        }
        Ok(entries)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let last_purged_log_id: Option<LogId> = self.database.read(PURGED_KEY).map_err(reading)?;
        let last_entry: Option<Entry> = self.database.last_entry().map_err(reading)?;
        let last_log_id = last_entry.map(|entry| entry.log_id).or(last_purged_log_id);
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let written = self.database.write(vec![Change::put(VOTE_KEY, vote)], true).await;
        written.map_err(|error| StorageIOError::write_vote(any(&error)).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        self.database.read(VOTE_KEY).map_err(|error| StorageIOError::read_vote(any(&error)).into())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.database.write(vec![Change::put(COMMITTED_KEY, &committed)], false).await.map_err(writing)
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        let committed: Option<Option<LogId>> = self.database.read(COMMITTED_KEY).map_err(reading)?;
        Ok(committed.flatten())
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let changes = entries.into_iter().map(|entry| Change::put(entry_key(entry.log_id.index), &entry)).collect();
        let written = self.database.write(changes, true).await;
        callback.log_io_completed(written.clone().map_err(std::io::Error::other));
        written.map_err(writing)
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let tail = Change::DeleteRange(entry_key(log_id.index), entries_end());
        self.database.write(vec![tail], true).await.map_err(writing)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let purged = Change::put(PURGED_KEY, &log_id);
        let head = Change::DeleteRange(entry_key(0), entry_key(log_id.index.saturating_add(1)));
        self.database.write(vec![purged, head], true).await.map_err(writing)
    }
}
