//! Where a value comes from.

use std::fmt;
use std::path::PathBuf;

/// Where a value comes from, the weakest first: a later one goes before an earlier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// Raft holds it.
    Cluster,
    /// The file.
    File {
        /// Which.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// The environment variable of this name.
    Environment(String),
    /// The flag of the setting of this name.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Cluster => f.write_str("cluster"),
            Self::File { path, line } => write!(f, "file {}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {}", flag(name)),
        }
    }
}

/// `--wal-segment-size`
pub fn flag(setting: &str) -> String {
    format!("--{}", setting.replace('_', "-"))
}

/// `UNDERSTUDY_WAL_SEGMENT_SIZE`
pub fn variable(setting: &str) -> String {
    format!("UNDERSTUDY_{}", setting.to_ascii_uppercase())
}
