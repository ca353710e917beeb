//! What can go wrong with a log, and what to do about each.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use understudy_types::{Lsn, TimelineHistory, TimelineId};

/// An operation on the log did not succeed.
///
/// | error | what to do |
/// |---|---|
/// | `Io`, `Failed` | exit: nothing is flushed any more, and recovery starts over from the disk |
/// | `Corrupt`, `CorruptFile` | refuse to start; the node counts as damaged and is fetched again from a peer |
/// | `Mismatch` | refuse: the directory belongs to another cluster, format or configuration |
/// | `OutOfRange`, `NotARecordEnd`, `NotAtEnd`, `NotWholeRecords` | reject: the caller asked for what cannot be |
/// | `BadHistory`, `NoTimeline` | reject, as above |
/// | `Truncated` | make a new reader |
/// | `Removed` | fetch the node's data anew (seeding): what it asks for is gone here |
/// | `NotFresh` | use another directory |
/// | `Busy` | retry once the fork or the truncation is through |
/// | `Closed` | stop |
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The system refused an operation on a file.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// As a verb.
        operation: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// An earlier write or fsync failed, and the log is closed for good.
    #[error("the WAL failed and takes nothing more until the server has been restarted: {source}")]
    Failed {
        /// The first failure.
        source: Arc<WalError>,
    },
    /// The thread that writes the log has ended by a panic.
    #[error("the WAL writer ended unexpectedly: restart the server")]
    WriterGone,
    /// A bad record where a good one was once flushed: this is not a torn tail, and is never truncated.
    #[error(
        "WAL segment {segment} is corrupt at {lsn}: expected {expected}, found {found}; \
         the log is known to be good up to there, so it is not cut: fetch this node's data again from a peer"
    )]
    Corrupt {
        /// The name of its file.
        segment: String,
        /// Where.
        lsn: Lsn,
        /// What should stand there.
        expected: String,
        /// What does.
        found: String,
    },
    /// A small state file cannot be read.
    #[error("{} is corrupt: expected {expected}, found {found}; fetch it from a peer", path.display())]
    CorruptFile {
        /// Which.
        path: PathBuf,
        /// What should stand there.
        expected: String,
        /// What does.
        found: String,
    },
    /// The files belong to another cluster, format or configuration (WAL-3).
    #[error("{} is not of this log: the {what} is {found}, expected {expected}", path.display())]
    Mismatch {
        /// Which file says so.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// Ours.
        expected: String,
        /// The file's.
        found: String,
    },
    /// A position that the log does not have.
    #[error("{lsn} is not in the WAL, which reaches from {begin} to {end}")]
    OutOfRange {
        /// What was asked for.
        lsn: Lsn,
        /// Where the log begins.
        begin: Lsn,
        /// Where it ends.
        end: Lsn,
    },
    /// A position inside a record.
    #[error("no record ends at {lsn}, so the WAL cannot be cut there")]
    NotARecordEnd {
        /// What was asked for.
        lsn: Lsn,
    },
    /// Bytes that do not continue the log.
    #[error("bytes at {start} do not continue the WAL, which ends at {end}")]
    NotAtEnd {
        /// Where they begin.
        start: Lsn,
        /// Where the log ends.
        end: Lsn,
    },
    /// Bytes that do not end with a record.
    #[error("the bytes from {start} do not end at the end of a record")]
    NotWholeRecords {
        /// Where they begin.
        start: Lsn,
    },
    /// Records without a timeline to belong to.
    #[error("the WAL is on no timeline yet, so nothing can be appended: a promotion has to open one")]
    NoTimeline,
    /// A timeline that does not continue this log.
    #[error("timeline {timeline} cannot begin here: {reason} (the WAL ends at {end} on timeline {own})")]
    BadHistory {
        /// What was to begin.
        timeline: TimelineId,
        /// Why not.
        reason: String,
        /// Where the log ends.
        end: Lsn,
        /// On which timeline.
        own: TimelineId,
    },
    /// The log was cut below the reader's position.
    #[error("the WAL was truncated to {to}, below this reader's position {position}: read again from there")]
    Truncated {
        /// Of the reader.
        position: Lsn,
        /// Where the log was cut.
        to: Lsn,
    },
    /// WAL that was removed because nobody needed it any more; the first words are PostgreSQL's.
    #[error(
        "requested WAL segment {segment} has already been removed: {asked} was asked for, \
         and the WAL is kept from {first} on"
    )]
    Removed {
        /// What was asked for.
        asked: Lsn,
        /// The first position that is kept.
        first: Lsn,
        /// The name of the file that `asked` stood in.
        segment: String,
    },
    /// A log is to be made where there is one.
    #[error("{} holds a log already: a new one is made in a directory of its own", path.display())]
    NotFresh {
        /// The directory.
        path: PathBuf,
    },
    /// A fork or a truncation is under way.
    #[error("the WAL is being forked or truncated: try again when it is through")]
    Busy,
    /// The log was closed.
    #[error("the WAL is closed")]
    Closed,
}

impl WalError {
    /// Names the file with what the system said.
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WalError {
        let path = path.to_owned();
        move |source| WalError::Io { operation, path, source }
    }

    pub(crate) fn history(history: &TimelineHistory, end: Lsn, own: TimelineId, reason: impl Into<String>) -> WalError {
        WalError::BadHistory { timeline: history.latest(), reason: reason.into(), end, own }
    }

    /// Whether what is on disk is damaged: opening it again does not help. What the system refused to do is not.
    pub fn is_damage(&self) -> bool {
        match self {
            WalError::Corrupt { .. } | WalError::CorruptFile { .. } => true,
            WalError::Failed { source } => source.is_damage(),
            WalError::Io { .. }
            | WalError::WriterGone
            | WalError::Mismatch { .. }
            | WalError::OutOfRange { .. }
            | WalError::NotARecordEnd { .. }
            | WalError::NotAtEnd { .. }
            | WalError::NotWholeRecords { .. }
            | WalError::NoTimeline
            | WalError::BadHistory { .. }
            | WalError::Truncated { .. }
            | WalError::Removed { .. }
            | WalError::NotFresh { .. }
            | WalError::Busy
            | WalError::Closed => false,
        }
    }

    /// Whether the state on disk is unknown now, so that the log must not go on.
    pub(crate) fn is_fatal(&self) -> bool {
        match self {
            WalError::Io { .. }
            | WalError::Failed { .. }
            | WalError::WriterGone
            | WalError::Corrupt { .. }
            | WalError::CorruptFile { .. }
            | WalError::Mismatch { .. } => true,
            WalError::OutOfRange { .. }
            | WalError::NotARecordEnd { .. }
            | WalError::NotAtEnd { .. }
            | WalError::NotWholeRecords { .. }
            | WalError::NoTimeline
            | WalError::BadHistory { .. }
            | WalError::Truncated { .. }
            | WalError::Removed { .. }
            | WalError::NotFresh { .. }
            | WalError::Busy
            | WalError::Closed => false,
        }
    }
}
