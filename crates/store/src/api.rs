//! What the engine needs of a store.
//!
//! One thread applies (the engine's applier); any thread reads. A read names the LSN that it reads at and
//! sees the versions whose commit ends at or below it: as long as the caller stays at or below an applied
//! position that it was told of, the answer never changes, so reads need no snapshot and no lock.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use understudy_types::{Lsn, Position, RequestId, SystemId, TimelineId};
use understudy_wal::GcHorizon;
use understudy_wal::record::Op;

/// A commit record of the log, ready to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedCommit {
    /// Where its record begins.
    pub start: Lsn,
    /// Where its record ends: the version of everything that it writes.
    pub lsn: Lsn,
    /// The timeline that its record was written on.
    pub timeline: TimelineId,
    /// When the primary made it, in microseconds since 1970.
    pub time_us: i64,
    /// None for a commit that is never retried.
    pub request_id: Option<RequestId>,
    /// In this order: of several on one key the last counts.
    pub ops: Vec<Op>,
}

impl AppliedCommit {
    /// The version of everything that it writes.
    pub const fn position(&self) -> Position {
        Position::new(self.timeline, self.lsn)
    }
}

/// A value and the commit that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionedValue {
    /// What was put.
    pub value: Bytes,
    /// The commit: its timeline and the end of its record.
    pub version: Position,
}

/// A range of user keys in byte order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyRange {
    /// The first key; empty for the first of all.
    pub start: Bytes,
    /// The key after the last; none for no bound.
    pub end: Option<Bytes>,
}

/// How much one page of a scan may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageLimit {
    /// At most this many entries; at least one is taken.
    pub entries_max: usize,
    /// At most this many bytes of keys and values, unless the first entry alone is larger.
    pub bytes_max: usize,
}

/// A key that has a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanEntry {
    /// The user key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// The commit that wrote it.
    pub version: Position,
}

/// A piece of a scan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScanPage {
    /// In key order. May be empty although `next` is set: the work of a page is bounded too, and deleted
    /// keys are work.
    pub entries: Vec<ScanEntry>,
    /// Where the next page begins; none when the range has been read to its end.
    pub next: Option<Bytes>,
}

/// A file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointFile {
    /// Within the checkpoint's directory.
    pub name: String,
    /// Its length.
    pub size_bytes: u64,
    /// Whether a file of this name and size has the same content in every checkpoint of the same store: a
    /// checksum of it may be kept. Two stores give the same names to different content.
    pub immutable: bool,
}

/// A store failed, or was asked for what it cannot do.
///
/// What to do: [`StoreError::Rocks`] and [`StoreError::Corrupt`] crash the node (recovery starts over from
/// the disk); the others refuse to start or name a mistake of the caller.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// RocksDB reported an error.
    #[error("store {path}: cannot {action}")]
    Rocks {
        /// Where the store lies.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// RocksDB's answer.
        #[source]
        source: rocksdb::Error,
    },
    /// An entry of the store does not have the form that was written.
    #[error("store {path}: {what} is malformed: the store is damaged and must be fetched again from a peer")]
    Corrupt {
        /// Where the store lies.
        path: PathBuf,
        /// Which entry.
        what: &'static str,
    },
    /// The directory holds a store of another format.
    #[error(
        "store {path}: format version {found}, this program reads version {expected}: start the program that made it"
    )]
    Format {
        /// Where the store lies.
        path: PathBuf,
        /// What stands there.
        found: u32,
        /// What this program writes.
        expected: u32,
    },
    /// The directory holds a store of another cluster.
    #[error("store {path}: belongs to cluster {found}, not to {expected}: start the node with its own data directory")]
    Foreign {
        /// Where the store lies.
        path: PathBuf,
        /// Whose it is.
        found: SystemId,
        /// Who asks.
        expected: SystemId,
    },
    /// A checkpoint is made in a directory of its own.
    #[error("cannot make a checkpoint in {path}: it is there already; remove it, or name another directory")]
    CheckpointExists {
        /// What is there.
        path: PathBuf,
    },
    /// The store lies in memory.
    #[error("cannot make a checkpoint: this store has no files")]
    NoFiles,
    /// A checkpoint's directory cannot be read.
    #[error("cannot list the files of the checkpoint {path}")]
    List {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The store's own thread could not be started.
    #[error("store {path}: cannot start its thread")]
    Thread {
        /// Where the store lies.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// Commits were handed over that do not continue the applied position in the order of their LSNs.
    #[error("cannot apply a commit that ends at {lsn} and move to {to}: the store has applied up to {applied}")]
    OutOfOrder {
        /// Of the commit, or of the new position where no commit is wrong.
        lsn: Lsn,
        /// The position asked for.
        to: Position,
        /// The position that the store is at.
        applied: Position,
    },
}

impl StoreError {
    /// Whether what is on disk is damaged: opening it again does not help.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Rocks { source, .. } => source.kind() == rocksdb::ErrorKind::Corruption,
            Self::Corrupt { .. } => true,
            Self::NoFiles
            | Self::Thread { .. }
            | Self::Format { .. }
            | Self::Foreign { .. }
            | Self::CheckpointExists { .. }
            | Self::List { .. }
            | Self::OutOfOrder { .. } => false,
        }
    }
}

/// Refuses what does not continue `applied` in LSN order up to `to`.
///
/// # Errors
/// [`StoreError::OutOfOrder`].
pub fn check_order(applied: Position, commits: &[AppliedCommit], to: Position) -> Result<(), StoreError> {
    let mut last = applied.lsn;
    for commit in commits {
        if commit.lsn <= last {
            return Err(StoreError::OutOfOrder { lsn: commit.lsn, to, applied });
        }
        last = commit.lsn;
    }
    if last > to.lsn {
        return Err(StoreError::OutOfOrder { lsn: last, to, applied });
    }
    Ok(())
}

/// A horizon that was applied at `applied`, on top of the `present` one.
pub(crate) fn raised(present: GcHorizon, to: GcHorizon, applied: Position) -> GcHorizon {
    // No primary gives up what nobody has seen. If one did, the present state would still be read.
    let bounded = GcHorizon {
        versions_below: to.versions_below.min(applied.lsn),
        requests_below: to.requests_below.min(applied.lsn),
    };
    present.max(bounded)
}

/// Versions of keys, request ids and the applied position.
pub trait Store: Send + Sync + 'static {
    /// Up to where the log has been applied; the default position when nothing was. What lies above
    /// [`Store::durable_applied`] is gone after a crash.
    fn applied(&self) -> Position;

    /// Up to where the log has been applied as far as it is on disk.
    ///
    /// # Errors
    /// When it cannot be read.
    fn durable_applied(&self) -> Result<Position, StoreError>;

    /// Applies commits, in LSN order, and moves the applied position to `applied`: all of it or nothing,
    /// also after a crash. `applied` may lie beyond the last commit: other records moved it.
    ///
    /// # Errors
    /// [`StoreError::OutOfOrder`]; or the store failed, and must not be used any more.
    fn apply(&self, commits: &[AppliedCommit], applied: Position) -> Result<(), StoreError>;

    /// Applies a horizon record, which ends at `applied`: gives up what lies below it, durable in one with the applied
    /// position. The horizon never goes back, and never beyond `applied`.
    ///
    /// # Errors
    /// As of [`Store::apply`].
    fn raise_horizon(&self, horizon: GcHorizon, applied: Position) -> Result<(), StoreError>;

    /// What has been given up. A read below `versions_below` may miss versions at any moment: whoever reads compares after
    /// the read. At or above it reads are whole.
    fn horizon(&self) -> GcHorizon;

    /// The value of `key` as of `at`; none when it had none.
    ///
    /// # Errors
    /// When it cannot be read.
    fn get(&self, key: &[u8], at: Lsn) -> Result<Option<VersionedValue>, StoreError>;

    /// The first keys of `range` that had a value as of `at`, in key order. The work is bounded by the
    /// limit and by a constant for keys that have none.
    ///
    /// # Errors
    /// When it cannot be read.
    fn scan(&self, range: &KeyRange, at: Lsn, limit: PageLimit) -> Result<ScanPage, StoreError>;

    /// The commit that was made under a request id; none when none was applied, or the last one ends below the
    /// horizon.
    ///
    /// # Errors
    /// When it cannot be read.
    fn request(&self, id: &RequestId) -> Result<Option<Position>, StoreError>;

    /// Makes everything applied durable and returns [`Store::durable_applied`].
    ///
    /// # Errors
    /// When it cannot be written.
    fn flush(&self) -> Result<Position, StoreError>;

    /// Makes a copy of the store in `dir`, which must not be there, while commits go on; hard links, so that it costs
    /// little and pins space until it is removed. Returns the applied position that the copy holds: opened as a
    /// store it is the replay up to there. When it fails it leaves nothing.
    ///
    /// # Errors
    /// When `dir` is there, the store has no files, or they cannot be written.
    fn checkpoint(&self, dir: &Path) -> Result<Position, StoreError>;
}
