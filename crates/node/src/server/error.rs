//! What can keep a server from starting, or end it.

use std::net::SocketAddr;
use std::path::PathBuf;

use understudy_control::ControlError;
use understudy_engine::OpenError;
use understudy_replication::seed::SeedError;
use understudy_store::StoreError;

use crate::config::ConfigError;
use crate::identity::DataDirError;
use crate::telemetry::FilterError;
use crate::telemetry::otlp::ExportError;

/// Why a server did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The log filter is wrong.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// Somebody else listens there, or nobody may.
    #[error("cannot listen on {address}: {source}; choose another --listen address, or stop what uses this one")]
    Listen {
        /// `--listen`.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The same for the HTTP port.
    #[error(
        "cannot listen for http on {address}: {source}; choose another --http-listen address, or stop what uses this one"
    )]
    ListenHttp {
        /// `--http-listen`.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The environment asks for traces that cannot be exported.
    #[error(transparent)]
    Traces(#[from] ExportError),
    /// The Raft log cannot be used.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The votes of this node are gone.
    #[error(
        "data directory {path} belongs to a cluster, but its raft log is gone: this node may have voted and must not vote again \
         under the same identity; restore the directory raft, or start with an empty data directory"
    )]
    RaftLogLost {
        /// The data directory.
        path: PathBuf,
    },
    /// The store cannot be opened.
    #[error("cannot open the store in {path}: {source}")]
    Store {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: StoreError,
    },
    /// The new data of a seed cannot take the place of the old.
    #[error("the data of this node was fetched anew but cannot be put in its place: {0}; the next start tries again")]
    Swap(#[from] SeedError),
    /// The WAL or the store does not open.
    #[error("{}", with_causes(.0))]
    Engine(#[from] OpenError),
    /// The data was found damaged, while an earlier process ran or now, and nobody else has it.
    #[error(
        "the data in {path} was found damaged: {found}; where no other node has it, nothing of it is touched: \
         restore it from a backup"
    )]
    Damaged {
        /// The data directory.
        path: PathBuf,
        /// What was found.
        found: String,
    },
    /// The cluster knows this node elsewhere.
    #[error(
        "the cluster knows node \"{name}\" at {known}, but this server advertises {given}: start it with --advertise {known}; if this \
         data directory is a copy, do not start it: two nodes with one identity could both vote and confirm"
    )]
    OtherAddress {
        /// `--name`.
        name: String,
        /// In the cluster state.
        known: String,
        /// `--advertise`.
        given: String,
    },
    /// The server ended by itself.
    #[error("the server stops: {0}")]
    Failed(String),
}

/// An error with its causes, each said once.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}
