//! The data directory: whose it is, and that one process at a time uses it.
//!
//! A node's id is drawn at random with its directory (design, "Identity"), so a directory that comes back empty
//! is another node: it never votes, seals or counts under the old id. The directory is locked while a server
//! lives; its `identity` file says which node, cluster and format it is of.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use understudy_types::{NodeId, NodeName, SegmentSize, SystemId};
use understudy_wal::files::{Files, read_file, replace_file};

/// The layout of the data directory that this program writes. A directory of another version is refused.
pub const FORMAT_VERSION: u32 = 1;

/// What the `identity` file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// [`FORMAT_VERSION`] of the program that made the directory.
    pub format_version: u32,
    /// Drawn with the directory.
    pub node_id: NodeId,
    /// What the operator called the node then.
    pub name: NodeName,
    /// Zero until the node belongs to a cluster.
    pub system_id: SystemId,
    /// Of its WAL.
    pub segment_size: SegmentSize,
    /// `x86_64/little` and the like: records and store are not moved between architectures of other byte order.
    pub architecture: String,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Not writable, full, ...
    #[error(
        "cannot {action} {path}: {source}; check that the directory exists, is writable by this user and has free space"
    )]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another server lives in it.
    #[error(
        "data directory {path} is in use by another server process; stop that one first, or give this one a --data-dir of its own"
    )]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error(
        "{path} is not an identity file of understudy: {source}; if the directory was never a data directory, choose an empty one"
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What serde says.
        source: serde_json::Error,
    },
    /// Files, but no identity.
    #[error(
        "data directory {path} is not empty and has no identity file: it is not a data directory of understudy; choose an empty one"
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// Made by another version.
    #[error(
        "data directory {path} has format version {found}, this program reads and writes version {expected}; start it with the program that made it"
    )]
    FormatVersion {
        /// The directory.
        path: PathBuf,
        /// In the file.
        found: u32,
        /// [`FORMAT_VERSION`].
        expected: u32,
    },
    /// Of another node.
    #[error(
        "data directory {path} belongs to node \"{found}\", but this server was started as \"{asked}\"; check --name and --data-dir"
    )]
    OtherNode {
        /// The directory.
        path: PathBuf,
        /// In the file.
        found: NodeName,
        /// `--name`.
        asked: NodeName,
    },
    /// Of another machine type.
    #[error(
        "data directory {path} was made on {found}, this machine is {here}; restore from a peer instead of copying files"
    )]
    Architecture {
        /// The directory.
        path: PathBuf,
        /// In the file.
        found: String,
        /// This machine.
        here: String,
    },
    /// Of another cluster.
    #[error(
        "data directory {path} belongs to cluster {found}, but the nodes that it reached are cluster {expected}; check --data-dir and the addresses of --initial-cluster"
    )]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// In the file.
        found: SystemId,
        /// What Raft says.
        expected: SystemId,
    },
    /// The promises cannot be read.
    #[error(
        "{path} cannot be read: {source}; this node does not know what it has promised and must not run: restore the file, or \
        start with an empty data directory"
    )]
    MalformedPromises {
        /// The file.
        path: PathBuf,
        /// What serde says.
        source: serde_json::Error,
    },
    /// The promises are gone.
    #[error(
        "data directory {path} belongs to a cluster, but its file promises is gone: this node may have promised never to confirm an \
        older primary again, and must not run without knowing; restore the file, or start with an empty data directory"
    )]
    PromisesLost {
        /// The directory.
        path: PathBuf,
    },
    /// No random number could be had.
    #[error("the system gives no random numbers: {0}")]
    Random(getrandom::Error),
}

/// A locked data directory.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    identity: Identity,
    /// Locked as long as this is open.
    _lock: File,
}

/// A random 64-bit number that is not zero.
///
/// # Errors
/// When the system gives none.
pub fn random_u64() -> Result<u64, DataDirError> {
    loop {
        let mut bytes = [0_u8; 8];
        getrandom::fill(&mut bytes).map_err(DataDirError::Random)?;
        let number = u64::from_le_bytes(bytes);
        if number != 0 {
            return Ok(number);
        }
    }
}

fn architecture() -> String {
    let order = if cfg!(target_endian = "little") { "little" } else { "big" };
    format!("{}/{order}", std::env::consts::ARCH)
}

impl DataDir {
    /// Locks `path`, making it if need be, and reads or makes its identity.
    ///
    /// `segment_size` counts for a new directory only: a cluster keeps the one that it was made with.
    ///
    /// # Errors
    /// When it is in use, cannot be written, or is not this node's.
    pub fn open(
        files: &dyn Files,
        path: &Path,
        name: &NodeName,
        segment_size: SegmentSize,
    ) -> Result<Self, DataDirError> {
        let io = |action: &'static str, at: &Path| {
            let at = at.to_owned();
            move |source| DataDirError::Io { action, path: at, source }
        };
        fs::create_dir_all(path).map_err(io("make the data directory", path))?;
        let lock_path = path.join("lock");
        let identity_path = path.join("identity");
        // Before the lock file is made: a foreign directory is left as it is.
        if !identity_path.exists() {
            Self::refuse_foreign(path)?;
        }
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(io("open", &lock_path))?;
        if let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            return Err(match error {
                rustix::io::Errno::WOULDBLOCK => DataDirError::Locked { path: path.to_owned() },
                other => DataDirError::Io { action: "lock", path: lock_path, source: other.into() },
            });
        }
        // Read under the lock: whoever held it before may have written it.
        let identity = match read_file(files, &identity_path).map_err(io("read", &identity_path))? {
            Some(bytes) => Self::check(path, &identity_path, &bytes, name)?,
            None => Self::make(files, &identity_path, name, segment_size)?,
        };
        Ok(Self { path: path.to_owned(), identity, _lock: lock })
    }

    /// Whether anything was ever opened in it: from then on the node may have promised something.
    pub fn has_data(&self) -> bool {
        ["store", "wal/watermark", "seed", "damaged", "damaged.new"].iter().any(|part| self.path.join(part).exists())
    }

    fn refuse_foreign(path: &Path) -> Result<(), DataDirError> {
        let entries =
            fs::read_dir(path).map_err(|source| DataDirError::Io { action: "list", path: path.to_owned(), source })?;
        for entry in entries {
            let entry = entry.map_err(|source| DataDirError::Io { action: "list", path: path.to_owned(), source })?;
            let name = entry.file_name();
            // What mkfs leaves, and what a start that was killed before its identity stood leaves.
            let harmless = name == "lost+found" || name == "lock" || name.to_string_lossy().ends_with(".tmp");
            if !harmless {
                return Err(DataDirError::Foreign { path: path.to_owned() });
            }
        }
        Ok(())
    }

    fn make(
        files: &dyn Files,
        at: &Path,
        name: &NodeName,
        segment_size: SegmentSize,
    ) -> Result<Identity, DataDirError> {
        let identity = Identity {
            format_version: FORMAT_VERSION,
            node_id: NodeId::new(random_u64()?),
            name: name.clone(),
            system_id: SystemId::default(),
            segment_size,
            architecture: architecture(),
        };
        Self::write(files, at, &identity)?;
        Ok(identity)
    }

    fn write(files: &dyn Files, at: &Path, identity: &Identity) -> Result<(), DataDirError> {
        let text = serde_json::to_vec_pretty(identity).expect("an identity is plain data");
        replace_file(files, at, &text).map_err(|source| DataDirError::Io {
            action: "write",
            path: at.to_owned(),
            source,
        })
    }

    fn check(path: &Path, at: &Path, bytes: &[u8], name: &NodeName) -> Result<Identity, DataDirError> {
        let path = path.to_owned();
        // The version first: the rest of a later format need not parse.
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        let malformed = |source| DataDirError::Malformed { path: at.to_owned(), source };
        let version: Version = serde_json::from_slice(bytes).map_err(malformed)?;
        if version.format_version != FORMAT_VERSION {
            return Err(DataDirError::FormatVersion { path, found: version.format_version, expected: FORMAT_VERSION });
        }
        let identity: Identity = serde_json::from_slice(bytes).map_err(malformed)?;
        if identity.name != *name {
            return Err(DataDirError::OtherNode { path, found: identity.name, asked: name.clone() });
        }
        if identity.architecture != architecture() {
            return Err(DataDirError::Architecture { path, found: identity.architecture, here: architecture() });
        }
        Ok(identity)
    }

    /// Whose it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Binds the directory to a cluster, once.
    ///
    /// # Errors
    /// When it is another cluster's, or cannot be written.
    pub fn join_cluster(&mut self, files: &dyn Files, system_id: SystemId) -> Result<(), DataDirError> {
        if self.identity.system_id == system_id {
            return Ok(());
        }
        if self.identity.system_id != SystemId::default() {
            return Err(DataDirError::OtherCluster {
                path: self.path.clone(),
                found: self.identity.system_id,
                expected: system_id,
            });
        }
        let joined = Identity { system_id, ..self.identity.clone() };
        Self::write(files, &self.path.join("identity"), &joined)?;
        self.identity = joined;
        Ok(())
    }
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
