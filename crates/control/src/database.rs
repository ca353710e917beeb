//! The Raft log's own RocksDB, and the one thread that writes into it.
//!
//! It is apart from the database that holds the data: that one runs without a WAL of its own, this one lives by
//! it. One writer thread takes the writes in their order, puts those that queued during the last fsync into one
//! batch, and answers each only once the batch is synced: votes and entries survive the loss of power before
//! anybody hears of them. A failed write is never retried (the retry of an fsync may report success falsely): the
//! writer refuses everything after it, Raft stops, and the process exits.
//!
//! ```text
//! key                          value
//! m/format                     "1"
//! m/node                       the node id, 16 hexadecimal digits
//! m/vote                       JSON
//! m/committed                  JSON: a log id; may lag
//! m/purged                     JSON: the last log id that was removed
//! m/snapshot                   JSON: metadata of the snapshot
//! m/snapshot-data              JSON: the cluster state
//! l <index, big-endian u64>    JSON: a log entry
//! ```

use std::path::Path;
use std::sync::Arc;
use std::thread;

use rocksdb::{DB, DBRecoveryMode, ErrorKind, IteratorMode, LogLevel, Options, WriteBatch, WriteOptions};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot, watch};
use understudy_types::NodeId;

use crate::error::ControlError;

const FORMAT: &str = "1";
const FORMAT_KEY: &[u8] = b"m/format";
const NODE_KEY: &[u8] = b"m/node";
pub(crate) const VOTE_KEY: &[u8] = b"m/vote";
pub(crate) const COMMITTED_KEY: &[u8] = b"m/committed";
pub(crate) const PURGED_KEY: &[u8] = b"m/purged";
pub(crate) const SNAPSHOT_KEY: &[u8] = b"m/snapshot";
pub(crate) const SNAPSHOT_DATA_KEY: &[u8] = b"m/snapshot-data";
const ENTRY_PREFIX: u8 = b'l';

/// Writes that wait for the writer thread. The library awaits each of its own, so there are a few at most.
const QUEUED_MAX: usize = 64;
/// The whole log is a few megabytes.
const MEMTABLE_BYTES: usize = 4 << 20;
const OPEN_FILES_MAX: i32 = 64;
const INFO_LOGS_KEPT: usize = 2;

/// A read or write failed, or found what cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("raft log: {0}")]
pub(crate) struct DatabaseError(pub(crate) String);

/// One change, as part of a [`Database::write`].
#[derive(Debug)]
pub(crate) enum Change {
    Put(Vec<u8>, Vec<u8>),
    /// From the first key to before the second.
    DeleteRange(Vec<u8>, Vec<u8>),
}

impl Change {
    pub(crate) fn put<T: Serialize>(key: impl Into<Vec<u8>>, value: &T) -> Self {
        Self::Put(key.into(), crate::wire::encode(value).to_vec())
    }
}

struct Write {
    changes: Vec<Change>,
    sync: bool,
    done: oneshot::Sender<Result<(), DatabaseError>>,
}

/// The open files. `open` goes after `files`: whoever watches it learns when they are closed.
struct Inner {
    files: DB,
    _open: watch::Sender<()>,
}

/// A handle. The files are closed when the last one is gone.
#[derive(Clone)]
pub(crate) struct Database {
    inner: Arc<Inner>,
    writes: mpsc::Sender<Write>,
}

/// The key of the entry at `index`.
pub(crate) fn entry_key(index: u64) -> Vec<u8> {
    let mut key = vec![ENTRY_PREFIX];
    key.extend_from_slice(&index.to_be_bytes());
    key
}

/// The key after that of every entry.
pub(crate) fn entries_end() -> Vec<u8> {
    vec![ENTRY_PREFIX + 1]
}

impl Database {
    /// Opens or makes the database of `node` in the directory `path`. Also returns what tells when it is closed:
    /// the receiver's sender is dropped then. Blocks.
    ///
    /// # Errors
    /// When it does not open, has another format, or belongs to another node.
    pub(crate) fn open(path: &Path, node: NodeId) -> Result<(Self, watch::Receiver<()>), ControlError> {
        let refuse = |why: String| ControlError::Open { path: path.to_owned(), why };
        std::fs::create_dir_all(path).map_err(|error| refuse(error.to_string()))?;
        let files = DB::open(&options(), path).map_err(|error| {
            if error.kind() == ErrorKind::Corruption {
                ControlError::Damaged { path: path.to_owned(), what: error.into_string() }
            } else {
                refuse(error.into_string())
            }
        })?;
        let (open, closed) = watch::channel(());
        let inner = Arc::new(Inner { files, _open: open });
        claim(&inner, path, node)?;

        let (writes, queue) = mpsc::channel(QUEUED_MAX);
        let for_writer = Arc::clone(&inner);
        thread::Builder::new()
            .name("raft-log".to_owned())
            .spawn(move || run_writer(&for_writer, queue))
            .map_err(|error| ControlError::Thread { why: error.to_string() })?;
        Ok((Self { inner, writes }, closed))
    }

    /// Makes the changes, all or none, after those of every earlier call. With `sync` they are on the disk when
    /// this returns; otherwise they are readable, and get there with the next synced write at the latest.
    ///
    /// # Errors
    /// When the disk fails, now or before.
    pub(crate) async fn write(&self, changes: Vec<Change>, sync: bool) -> Result<(), DatabaseError> {
        let gone = || DatabaseError("the writer thread is gone".to_owned());
        let (done, result) = oneshot::channel();
        self.writes.send(Write { changes, sync, done }).await.map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }

    /// The value of a key, none when it has none.
    ///
    /// # Errors
    /// When the disk fails, or the value is not what was written.
    pub(crate) fn read<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, DatabaseError> {
        let Some(bytes) = self.read_bytes(key)? else { return Ok(None) };
        decode(key, &bytes).map(Some)
    }

    /// As [`Self::read`], undecoded.
    pub(crate) fn read_bytes(&self, key: &[u8]) -> Result<Option<Vec<u8>>, DatabaseError> {
        self.inner.files.get(key).map_err(|error| DatabaseError(error.into_string()))
    }

    /// The values of at most `count_max` keys from `start` to before `end`.
    ///
    /// # Errors
    /// As of [`Self::read`].
    pub(crate) fn read_range<T: DeserializeOwned>(
        &self,
        start: &[u8],
        end: &[u8],
        count_max: usize,
    ) -> Result<Vec<T>, DatabaseError> {
        let mut found = Vec::new();
        for item in self.inner.files.iterator(IteratorMode::From(start, rocksdb::Direction::Forward)).take(count_max) {
            let (key, value) = item.map_err(|error| DatabaseError(error.into_string()))?;
            if &*key >= end {
                break;
            }
            found.push(decode(&key, &value)?);
        }
        Ok(found)
    }

    /// The last entry of the log.
    ///
    /// # Errors
    /// As of [`Self::read`].
    pub(crate) fn last_entry<T: DeserializeOwned>(&self) -> Result<Option<T>, DatabaseError> {
        let end = entry_key(u64::MAX);
        let mut backward = self.inner.files.iterator(IteratorMode::From(&end, rocksdb::Direction::Reverse));
        let Some(item) = backward.next() else { return Ok(None) };
        let (key, value) = item.map_err(|error| DatabaseError(error.into_string()))?;
        if key.first() == Some(&ENTRY_PREFIX) { decode(&key, &value).map(Some) } else { Ok(None) }
    }
}

fn decode<T: DeserializeOwned>(key: &[u8], bytes: &[u8]) -> Result<T, DatabaseError> {
    let name = || key.escape_ascii().to_string();
    crate::wire::decode(bytes)
        .map_err(|error| DatabaseError(format!("the value of {} does not parse: {error}", name())))
}

fn options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_write_buffer_size(MEMTABLE_BYTES);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(INFO_LOGS_KEPT);
    options.set_log_level(LogLevel::Warn);
    // An incomplete record at the very end was never acknowledged. Any other bad record is an error: the mode
    // that RocksDB has by default would drop it, and every synced vote behind it, without a word.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options
}

/// Checks format and owner, or writes them into a new database.
fn claim(inner: &Inner, path: &Path, node: NodeId) -> Result<(), ControlError> {
    let damaged = |what: String| ControlError::Damaged { path: path.to_owned(), what };
    let read = |key: &[u8]| -> Result<Option<String>, ControlError> {
        let bytes = inner.files.get(key).map_err(|error| damaged(error.into_string()))?;
        bytes.map(|bytes| String::from_utf8(bytes).map_err(|error| damaged(error.to_string()))).transpose()
    };
    match (read(FORMAT_KEY)?, read(NODE_KEY)?) {
        (None, None) => {
            let mut batch = WriteBatch::default();
            batch.put(FORMAT_KEY, FORMAT);
            batch.put(NODE_KEY, node.to_string());
            inner.files.write_opt(batch, &write_options(true)).map_err(|error| damaged(error.into_string()))
        }
        (Some(format), _) if format != FORMAT => {
            Err(ControlError::Format { path: path.to_owned(), found: format, expected: FORMAT })
        }
        (Some(_), Some(owner)) => {
            let found: NodeId = owner.parse().map_err(|error| damaged(format!("its owner: {error}")))?;
            if found == node {
                Ok(())
            } else {
                Err(ControlError::WrongNode { path: path.to_owned(), found, expected: node })
            }
        }
        (Some(_), None) | (None, Some(_)) => Err(damaged("its format or its owner is missing".to_owned())),
    }
}

fn write_options(sync: bool) -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(sync);
    options
}

/// The writer thread: ends when every [`Database`] handle is gone.
fn run_writer(inner: &Inner, mut queue: mpsc::Receiver<Write>) {
    let mut failed: Option<DatabaseError> = None;
    while let Some(first) = queue.blocking_recv() {
        let mut group = vec![first];
        while group.len() < QUEUED_MAX
            && let Ok(next) = queue.try_recv()
        {
            group.push(next);
        }
        let result = match &failed {
            Some(error) => Err(error.clone()),
            None => write_group(inner, &group),
        };
        if let Err(error) = &result
            && failed.is_none()
        {
            tracing::error!(%error, "a write into the raft log failed; nothing is written any more");
            failed = Some(error.clone());
        }
        for write in group {
            // Whoever asked may have given up waiting.
            drop(write.done.send(result.clone()));
        }
    }
}

fn write_group(inner: &Inner, group: &[Write]) -> Result<(), DatabaseError> {
    let mut batch = WriteBatch::default();
    for change in group.iter().flat_map(|write| &write.changes) {
        match change {
            Change::Put(key, value) => batch.put(key, value),
            Change::DeleteRange(start, end) => batch.delete_range(start, end),
        }
    }
    let sync = group.iter().any(|write| write.sync);
    inner.files.write_opt(batch, &write_options(sync)).map_err(|error| DatabaseError(error.into_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_belongs_to_one_node() {
        let dir = tempfile::tempdir().expect("a directory");
        let (database, mut closed) = Database::open(dir.path(), NodeId::new(1)).expect("opens");
        let busy = Database::open(dir.path(), NodeId::new(1)).err().expect("in use");
        assert!(busy.to_string().contains("no other server"), "{busy}");
        drop(database);
        closed.changed().await.expect_err("closed");

        let error = Database::open(dir.path(), NodeId::new(2)).err().expect("another node's");
        let text = error.to_string();
        assert!(text.contains("0000000000000001") && text.contains("0000000000000002"), "{text}");
    }

    #[tokio::test]
    async fn another_format_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let (database, mut closed) = Database::open(dir.path(), NodeId::new(1)).expect("opens");
        database.write(vec![Change::Put(FORMAT_KEY.to_vec(), b"2".to_vec())], true).await.expect("written");
        drop(database);
        closed.changed().await.expect_err("closed");
        let error = Database::open(dir.path(), NodeId::new(1)).err().expect("another format");
        assert!(matches!(error, ControlError::Format { ref found, .. } if found == "2"), "{error}");
    }

    #[tokio::test]
    async fn a_bad_byte_in_the_middle_of_the_log_is_not_passed_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let (database, mut closed) = Database::open(dir.path(), NodeId::new(1)).expect("opens");
        for index in 0..20_u64 {
            database.write(vec![Change::put(entry_key(index), &"x".repeat(500))], true).await.expect("written");
        }
        drop(database);
        closed.changed().await.expect_err("closed");

        let log = std::fs::read_dir(dir.path())
            .expect("a directory")
            .map(|entry| entry.expect("an entry").path())
            .find(|path| path.extension().is_some_and(|extension| extension == "log"))
            .expect("a log file");
        let mut bytes = std::fs::read(&log).expect("read");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&log, bytes).expect("written");
        let error = Database::open(dir.path(), NodeId::new(1)).err().expect("damaged");
        assert!(matches!(error, ControlError::Damaged { .. }), "{error}");
    }
}
