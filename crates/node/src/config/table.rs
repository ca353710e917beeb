//! Every setting of a server: one table for the file, the environment, the flags, `config show` and the documentation.
//!
//! The key in the file is the name; the flag and the environment variable follow from it ([`super::flag`],
//! [`super::variable`]). All of them are read when the server starts, and only then.

use std::path::PathBuf;

use understudy_core::settings::{Settings, parse_bytes, print_bytes};
use understudy_types::{NodeName, SegmentSize};

use super::{LogFormat, ServerConfig, check_address, parse_member};
use crate::telemetry::parse_filter;

/// What a setting takes, and what its key in the file may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerKind {
    /// A string.
    Text,
    /// `host:port`, a string.
    Address,
    /// A number.
    Number,
    /// A string with a unit, or a number of bytes.
    Size,
    /// True or false.
    Switch,
    /// `name=host:port`, comma separated; in the file also an array of those, or a table.
    Members,
}

impl ServerKind {
    /// As it is shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Address => "address",
            Self::Number => "number",
            Self::Size => "size",
            Self::Switch => "switch",
            Self::Members => "members",
        }
    }
}

/// A configuration in the making: what has no default may still be missing.
#[derive(Debug, Clone, Default)]
pub struct Draft {
    pub(super) name: Option<NodeName>,
    pub(super) data_dir: Option<PathBuf>,
    pub(super) listen: Option<std::net::SocketAddr>,
    pub(super) advertise: Option<String>,
    pub(super) http_listen: Option<std::net::SocketAddr>,
    pub(super) initial_cluster: Vec<(NodeName, String)>,
    pub(super) segment_size: Option<SegmentSize>,
    pub(super) failover_priority: u32,
    pub(super) no_sync: bool,
    pub(super) log_format: LogFormat,
    pub(super) log_level: String,
    pub(super) max_connections: usize,
    pub(super) settings: Settings,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct ServerSetting {
    /// The key in the file.
    pub name: &'static str,
    /// What it takes.
    pub kind: ServerKind,
    /// None: there is none, see the doc line.
    pub default: Option<&'static str>,
    /// What it takes, for people.
    pub bounds: &'static str,
    /// Another environment variable, looked at when its own is not set.
    pub also: Option<&'static str>,
    /// One sentence, for people.
    pub doc: &'static str,
    pub(super) set: fn(&mut Draft, &str) -> Result<(), String>,
    get: fn(&ServerConfig) -> String,
}

impl ServerSetting {
    /// The value that the server was started with, as text.
    pub fn get(&self, config: &ServerConfig) -> String {
        (self.get)(config)
    }
}

fn listen(text: &str) -> Result<std::net::SocketAddr, String> {
    text.parse().map_err(|_| "not ip:port; give for example 127.0.0.1:7400 or 0.0.0.0:7400".to_owned())
}

fn segment_size(text: &str) -> Result<SegmentSize, String> {
    let bytes = parse_bytes(text).ok_or("not a size; give for example 16MiB, or a number of bytes")?;
    SegmentSize::new(bytes).map_err(|error| error.to_string())
}

/// Fewer would leave no room for the members of a small cluster.
const CONNECTIONS_MIN: usize = 64;
const CONNECTIONS_MAX: usize = 100_000;

fn connections(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (CONNECTIONS_MIN..=CONNECTIONS_MAX).contains(number));
    number.ok_or_else(|| format!("not a number of {CONNECTIONS_MIN} to {CONNECTIONS_MAX}"))
}

fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err("neither true nor false".to_owned()),
    }
}

fn members(text: &str) -> Result<Vec<(NodeName, String)>, String> {
    let all = text.split(',').map(str::trim).filter(|member| !member.is_empty());
    all.map(|member| parse_member(member).map_err(|error| error.to_string())).collect()
}

/// The table, in the order in which it is shown.
pub const SERVER_SETTINGS: [ServerSetting; 12] = [
    ServerSetting {
        name: "name",
        kind: ServerKind::Text,
        default: None,
        bounds: "1 to 63 letters, digits, '_', '-' or '.'",
        also: None,
        doc: "This node's name, unique in its cluster; must be given",
        set: |draft, text| {
            text.parse()
                .map(|name| draft.name = Some(name))
                .map_err(|error: understudy_types::NameError| error.to_string())
        },
        get: |config| config.name.to_string(),
    },
    ServerSetting {
        name: "data_dir",
        kind: ServerKind::Text,
        default: None,
        bounds: "a directory",
        also: None,
        doc: "Where its data lies, made if it is not there; must be given",
        set: |draft, text| match text {
            "" => Err("empty; give a directory".to_owned()),
            text => {
                draft.data_dir = Some(PathBuf::from(text));
                Ok(())
            }
        },
        get: |config| config.data_dir.display().to_string(),
    },
    ServerSetting {
        name: "listen",
        kind: ServerKind::Address,
        default: Some("127.0.0.1:7400"),
        bounds: "ip:port",
        also: None,
        doc: "Where its gRPC port listens",
        set: |draft, text| listen(text).map(|address| draft.listen = Some(address)),
        get: |config| config.listen.to_string(),
    },
    ServerSetting {
        name: "advertise",
        kind: ServerKind::Address,
        default: None,
        bounds: "host:port",
        also: None,
        doc: "Under which address the other nodes and the clients reach it; the listen address unless given",
        set: |draft, text| {
            check_address("it", text)
                .map_err(|_| "not host:port; give for example 10.0.0.1:7400 or node-1:7400".to_owned())?;
            draft.advertise = Some(text.to_owned());
            Ok(())
        },
        get: |config| config.advertise.clone(),
    },
    ServerSetting {
        name: "http_listen",
        kind: ServerKind::Address,
        default: None,
        bounds: "ip:port",
        also: None,
        doc: "Where its HTTP port listens; there is none unless given",
        set: |draft, text| listen(text).map(|address| draft.http_listen = Some(address)),
        get: |config| config.http_listen.map_or_else(String::new, |address| address.to_string()),
    },
    ServerSetting {
        name: "max_connections",
        kind: ServerKind::Number,
        default: Some("2000"),
        bounds: "64 to 100000",
        also: None,
        doc: "Connections to its gRPC port; a quarter of them, at most 256, are kept for the members of the cluster, and 8 for operators and health probes",
        set: |draft, text| connections(text).map(|number| draft.max_connections = number),
        get: |config| config.max_connections.to_string(),
    },
    ServerSetting {
        name: "initial_cluster",
        kind: ServerKind::Members,
        default: Some(""),
        bounds: "name=host:port, comma separated",
        also: None,
        doc: "The members of a new cluster, this node among them; the same on every node, and without effect once there is one",
        set: |draft, text| members(text).map(|members| draft.initial_cluster = members),
        get: |config| {
            let members = config.initial_cluster.iter().map(|(name, address)| format!("{name}={address}"));
            members.collect::<Vec<_>>().join(",")
        },
    },
    ServerSetting {
        name: "wal_segment_size",
        kind: ServerKind::Size,
        default: Some("16MiB"),
        bounds: "1MiB to 1GiB, a power of two",
        also: None,
        doc: "New cluster: size of a WAL segment",
        set: |draft, text| segment_size(text).map(|size| draft.segment_size = Some(size)),
        get: |config| print_bytes(config.segment_size.get()),
    },
    ServerSetting {
        name: "failover_priority",
        kind: ServerKind::Number,
        default: Some("1"),
        bounds: "0 to 4294967295",
        also: None,
        doc: "Larger is preferred in an election; 0 is never promoted",
        set: |draft, text| {
            draft.failover_priority = text.parse().map_err(|_| "not a number of 0 to 4294967295".to_owned())?;
            Ok(())
        },
        get: |config| config.failover_priority.to_string(),
    },
    ServerSetting {
        name: "no_sync",
        kind: ServerKind::Switch,
        default: Some("false"),
        bounds: "true or false",
        also: None,
        doc: "Never wait for this node's confirmation of a commit",
        set: |draft, text| switch(text).map(|no_sync| draft.no_sync = no_sync),
        get: |config| config.no_sync.to_string(),
    },
    ServerSetting {
        name: "log_format",
        kind: ServerKind::Text,
        default: Some("text"),
        bounds: "text or json",
        also: None,
        doc: "How the log is written to standard error",
        set: |draft, text| {
            draft.log_format = match text {
                "text" => LogFormat::Text,
                "json" => LogFormat::Json,
                _ => return Err("neither text nor json".to_owned()),
            };
            Ok(())
        },
        get: |config| match config.log_format {
            LogFormat::Text => "text".to_owned(),
            LogFormat::Json => "json".to_owned(),
        },
    },
    ServerSetting {
        name: "log_level",
        kind: ServerKind::Text,
        default: Some("info"),
        bounds: "error, warn, info, debug, trace, off, or a filter",
        also: Some("RUST_LOG"),
        doc: "What is logged: a level, or a filter like understudy_wal=debug,info",
        set: |draft, text| {
            parse_filter(text).map_err(|error| error.why)?;
            draft.log_level = text.to_owned();
            Ok(())
        },
        get: |config| config.log_level.clone(),
    },
];
