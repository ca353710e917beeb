//! Why an attempt to be seeded came to nothing.

use std::io;
use std::path::{Path, PathBuf};

use understudy_types::{Position, SystemId};
use understudy_wal::WalError;

/// All of them are tried again after a pause, and from another source where there is one. What has come is kept.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// No connection, or the source refused; the text is its own.
    #[error("no seed from {address}: {reason}")]
    Refused {
        /// The source's.
        address: String,
        /// Its or the network's words.
        reason: String,
    },
    /// The stream broke or ended too early.
    #[error("the seed from {address} broke off: {reason}")]
    Broken {
        /// The source's.
        address: String,
        /// Its or the network's words.
        reason: String,
    },
    /// Nothing came for too long.
    #[error("the seed from {address} broke off: nothing came for {silent_ms} ms")]
    Silent {
        /// The source's.
        address: String,
        /// For so long.
        silent_ms: u64,
    },
    /// Another cluster answered.
    #[error("the source at {address} belongs to cluster {source_system}, this node to cluster {own}")]
    SystemId {
        /// The source's.
        address: String,
        /// The source's.
        source_system: SystemId,
        /// This node's.
        own: SystemId,
    },
    /// Another release or segment size.
    #[error("the source at {address} has {what} {source_value}, this node {own}: run the same release on both")]
    Format {
        /// The source's.
        address: String,
        /// Which property.
        what: &'static str,
        /// The source's.
        source_value: u64,
        /// This node's.
        own: u64,
    },
    /// What the source holds is not the cluster's, as far as this node knows.
    #[error("the source at {address} offers {at}, which does not lie on the cluster's history as this node knows it")]
    OffHistory {
        /// The source's.
        address: String,
        /// What its checkpoint holds.
        at: Position,
    },
    /// The list of files, or a message, is not one that an honest source sends.
    #[error("the source at {address} sent {what}")]
    Malformed {
        /// The source's.
        address: String,
        /// What is wrong.
        what: String,
    },
    /// Twice in a row.
    #[error(
        "the source at {address} sent file {name} twice with a SHA-256 other than the one in its list: its disk may be damaged"
    )]
    Digest {
        /// The source's.
        address: String,
        /// Of the file.
        name: String,
    },
    /// It would not fit.
    #[error("the seed needs {needed_bytes} bytes in {}, but only {free_bytes} are free: make room, and it goes on by itself", path.display())]
    Space {
        /// The data directory.
        path: PathBuf,
        /// What is still missing, with a reserve.
        needed_bytes: u64,
        /// What there is.
        free_bytes: u64,
    },
    /// The own disk.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The WAL that came is not what belongs there.
    #[error("the log cannot be laid out: {0}")]
    Wal(#[from] WalError),
    /// It was told to stop.
    #[error("the seed was cancelled")]
    Cancelled,
}

impl SeedError {
    /// For `map_err`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SeedError {
        let path = path.to_owned();
        move |source| SeedError::Io { action, path, source }
    }
}
