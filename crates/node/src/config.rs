//! What a server is started with, checked before anything else happens.
//!
//! [`load`] puts it together out of a file, the environment and flags, the later before the earlier, by one table
//! ([`SERVER_SETTINGS`]; those of the cluster are the core's). [`ServerConfig::check`] is called there, and by the
//! server before it touches the data directory: a wrong setting is a clear error, never a half-started node.
//! The settings for the bootstrap count only when a new cluster is made; later the cluster state holds them.

mod file;
mod load;
mod origin;
mod table;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use understudy_core::settings::{self, SettingError, Settings};
use understudy_types::limits::MEMBERS_MAX;
use understudy_types::shown::shown;
use understudy_types::{NodeName, SegmentSize};

pub use load::{ConfigErrors, Sources, check_file, load, strange_variables};
pub use origin::{Origin, flag, variable};
pub use table::{SERVER_SETTINGS, ServerKind, ServerSetting};

/// One line per event, for people or for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Readable on a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Everything that `understudy server` is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// Of this node, unique in its cluster.
    pub name: NodeName,
    /// Where the node's WAL, store and Raft log lie. Made if it is not there.
    pub data_dir: PathBuf,
    /// Where the gRPC port listens.
    pub listen: SocketAddr,
    /// `host:port` under which the other nodes and the clients reach it.
    pub advertise: String,
    /// The members of a new cluster with their `host:port`, this node among them. Empty: this node waits to be
    /// found by a cluster that it belongs to already.
    pub initial_cluster: Vec<(NodeName, String)>,
    /// Of a new cluster's WAL.
    pub segment_size: SegmentSize,
    /// Larger is preferred in an election; zero is never promoted.
    pub failover_priority: u32,
    /// Never on the sync list.
    pub no_sync: bool,
    /// Of a new cluster.
    pub settings: Settings,
    /// How the log is written.
    pub log_format: LogFormat,
    /// What is logged: a level, or a filter in the syntax of `RUST_LOG`.
    pub log_level: String,
    /// Where the HTTP port listens; none for no such port.
    pub http_listen: Option<SocketAddr>,
    /// Connections of the gRPC port, part of them kept for the members of the cluster and for operators.
    pub max_connections: usize,
    /// Where each value comes from that somebody gave, by the name of the setting; those of the cluster too.
    pub origins: BTreeMap<String, Origin>,
    /// What it was put together from.
    pub sources: Sources,
}

/// A server cannot be started with these settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// An address has no host, no port, or port 0.
    #[error("{setting} is \"{text}\", which is not host:port; give for example 10.0.0.1:7400 or node-1:7400")]
    Address {
        /// Which one.
        setting: String,
        /// What was given, cut if it was long.
        text: String,
    },
    /// Others cannot connect to an address that means every interface.
    #[error(
        "the advertised address is {text}, which means every interface of this machine: others cannot connect to it; \
         give --advertise host:port"
    )]
    AdvertiseAny {
        /// What was given, or follows from the listen address.
        text: String,
    },
    /// `name=host:port` was expected.
    #[error(
        "\"{text}\" in the initial cluster is not name=host:port; give for example a=10.0.0.1:7400,b=10.0.0.2:7400"
    )]
    Member {
        /// What was given, cut if it was long.
        text: String,
    },
    /// Two members have the same name or address.
    #[error("the initial cluster has {what} {text} twice; each member needs its own")]
    Duplicate {
        /// `name` or `address`.
        what: &'static str,
        /// Which one.
        text: String,
    },
    /// This node is not a member.
    #[error(
        "the initial cluster {members} does not have this node, {name}; \
         add {name}={advertise}, or start it under a name that is there"
    )]
    NotAMember {
        /// The names that are there.
        members: String,
        /// This node's.
        name: NodeName,
        /// This node's.
        advertise: String,
    },
    /// This node is a member under another address.
    #[error(
        "the initial cluster has {name} at {listed}, and this node advertises {advertise}; \
         give the same address in both"
    )]
    OtherAddress {
        /// This node's.
        name: NodeName,
        /// In the initial cluster.
        listed: String,
        /// This node's.
        advertise: String,
    },
    /// More than a cluster can have.
    #[error("the initial cluster has {count} members, the limit is {MEMBERS_MAX}; start with fewer")]
    TooManyMembers {
        /// How many were given.
        count: usize,
    },
    /// Of a new cluster.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The file cannot be read.
    #[error("the configuration file {} cannot be read: {why}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The file is not TOML.
    #[error("{}:{line}: not TOML: {why}", .path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// As the parser says it.
        why: String,
    },
    /// A key of the file is not a setting, or stands in the wrong place.
    #[error("{}:{line}: {why}", .path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// What is wrong, and what would do.
        why: String,
    },
    /// A value is not what the setting takes.
    #[error("{name} ({origin}) is \"{text}\": {why}")]
    Value {
        /// Of the setting.
        name: String,
        /// Where it was given.
        origin: Origin,
        /// What was given, cut if it was long.
        text: String,
        /// What is wrong, and what would do.
        why: String,
    },
    /// A setting without a default was not given.
    #[error("{name} is missing; give {flag}, the environment variable {variable}, or {name} in the configuration file")]
    Missing {
        /// Of the setting.
        name: &'static str,
        /// Its flag.
        flag: String,
        /// Its environment variable.
        variable: String,
    },
}

impl ServerConfig {
    /// Checks what the types do not.
    ///
    /// # Errors
    /// The first setting that is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_address("the advertised address", &self.advertise)?;
        let host = self.advertise.rsplit_once(':').map_or("", |(host, _)| host);
        if matches!(host, "0.0.0.0" | "[::]") {
            return Err(ConfigError::AdvertiseAny { text: self.advertise.clone() });
        }
        if let Some(error) = settings::check(&self.settings).into_iter().next() {
            return Err(error.into());
        }
        self.check_initial_cluster()
    }

    /// Where the setting of this name comes from.
    pub fn origin_of(&self, name: &str) -> &Origin {
        self.origins.get(name).unwrap_or(&Origin::Default)
    }

    /// What a server would have that is started again now: from the file as it is today.
    ///
    /// # Errors
    /// When it would not start.
    pub fn read_again(&self) -> Result<ServerConfig, ConfigErrors> {
        load(self.sources.clone())
    }

    /// What was given for a new cluster and is not what the cluster has: name, given, present.
    pub fn differs_from(&self, present: &Settings) -> Vec<(&'static str, String, String)> {
        let given = settings::SETTINGS.iter().filter(|setting| self.origins.contains_key(setting.name));
        let compared = given.map(|setting| (setting.name, setting.get(&self.settings), setting.get(present)));
        compared.filter(|(_, given, present)| given != present).collect()
    }

    fn check_initial_cluster(&self) -> Result<(), ConfigError> {
        let members = &self.initial_cluster;
        if members.is_empty() {
            return Ok(());
        }
        if members.len() > MEMBERS_MAX {
            return Err(ConfigError::TooManyMembers { count: members.len() });
        }
        for (index, (name, address)) in members.iter().enumerate() {
            check_address(&format!("the address of {name} in the initial cluster"), address)?;
            let before = &members[..index];
            if before.iter().any(|(other, _)| other == name) {
                return Err(ConfigError::Duplicate { what: "name", text: name.to_string() });
            }
            if before.iter().any(|(_, other)| other == address) {
                return Err(ConfigError::Duplicate { what: "address", text: address.clone() });
            }
        }
        match members.iter().find(|(name, _)| *name == self.name) {
            None => Err(ConfigError::NotAMember {
                members: members.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", "),
                name: self.name.clone(),
                advertise: self.advertise.clone(),
            }),
            Some((_, listed)) if *listed != self.advertise => Err(ConfigError::OtherAddress {
                name: self.name.clone(),
                listed: listed.clone(),
                advertise: self.advertise.clone(),
            }),
            Some(_) => Ok(()),
        }
    }
}

/// Of a name in DNS, in bytes.
const HOST_BYTES_MAX: usize = 253;

/// Checks that `text` is `host:port` with a port that can be connected to. A numeric IPv6 host stands in brackets.
///
/// # Errors
/// When it is not; `setting` names it in the message.
pub fn check_address(setting: &str, text: &str) -> Result<(), ConfigError> {
    let well_formed = text.rsplit_once(':').is_some_and(|(host, port)| {
        let port_ok = port.len() <= 5
            && port.bytes().all(|b| b.is_ascii_digit())
            && port.parse::<u16>().is_ok_and(|port| port != 0);
        let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let host_ok = match bracketed {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                (1..=HOST_BYTES_MAX).contains(&host.len())
                    && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            }
        };
        port_ok && host_ok
    });
    well_formed.then_some(()).ok_or_else(|| ConfigError::Address { setting: setting.to_owned(), text: shown(text) })
}

/// Parses one member of `--initial-cluster`: `name=host:port`.
///
/// # Errors
/// When it is not of that form, the name is not a node's, or the address is not one.
pub fn parse_member(text: &str) -> Result<(NodeName, String), ConfigError> {
    let member = || ConfigError::Member { text: shown(text) };
    let (name, address) = text.trim().split_once('=').ok_or_else(member)?;
    let name: NodeName = name.parse().map_err(|_| member())?;
    check_address(&format!("the address of {name} in the initial cluster"), address)?;
    Ok((name, address.to_owned()))
}

#[cfg(test)]
mod docs_tests;
#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
