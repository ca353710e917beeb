//! How a cluster of server processes is made.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::network::Network;

/// How a cluster is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// Of the nodes, in the order of their ports.
    pub names: Vec<String>,
    /// Of the WAL, in bytes; none for the server's default.
    pub segment_size: Option<u64>,
    /// How many standbys must be in the sync list for the cluster to count as settled; none for all.
    pub listed: Option<usize>,
    /// For every node.
    pub arguments: Vec<String>,
    /// For single nodes, by name.
    pub node_arguments: BTreeMap<String, Vec<String>>,
    /// The server; none to look for it.
    pub binary: Option<PathBuf>,
    /// Where the nodes' directories are made; none for a temporary directory that goes with the cluster.
    pub dir: Option<PathBuf>,
    /// Whether the processes survive this one; see [`Cluster::detach`].
    pub detached: bool,
    /// Where the servers stand; none for loopback, a port each.
    pub network: Option<Arc<Network>>,
}

impl Default for Options {
    /// Three nodes, and small segments, so that a short test has several.
    fn default() -> Self {
        Self {
            names: ["n1", "n2", "n3"].map(str::to_owned).to_vec(),
            segment_size: Some(1 << 20),
            listed: None,
            arguments: Vec::new(),
            node_arguments: BTreeMap::new(),
            binary: None,
            dir: None,
            detached: false,
            network: None,
        }
    }
}

impl Options {
    /// With `--synchronous-standby-names` and `--sync-mode`.
    pub fn sync(mut self, names: &str, mode: &str) -> Self {
        let setting = ["--synchronous-standby-names", names, "--sync-mode", mode];
        self.arguments.extend(setting.map(str::to_owned));
        self
    }

    /// With linearizable reads by leases of this length.
    pub fn lease(mut self, length: &str) -> Self {
        let setting = ["--linearizable-reads", "lease", "--primary-lease", length];
        self.arguments.extend(setting.map(str::to_owned));
        self
    }

    /// With every server in its namespace of this network.
    pub fn network(mut self, network: &Arc<Network>) -> Self {
        self.network = Some(Arc::clone(network));
        self
    }

    /// With arguments for one node.
    pub fn node(mut self, name: &str, arguments: &[&str]) -> Self {
        let own = self.node_arguments.entry(name.to_owned()).or_default();
        own.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }
}
