//! `understudy server`: from flags to a checked [`ServerConfig`].

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use understudy_node::config::{LogFormat, ServerConfig, parse_member};
use understudy_types::{NodeName, SegmentSize, SyncMode};

use crate::args::Span;
use crate::exit::Exit;

/// Names with a `UNDERSTUDY_` variable may be set there too.
#[derive(Debug, Args)]
#[command(after_help = SERVER_HELP)]
pub struct ServerArgs {
    /// This node's name, unique in its cluster
    #[arg(long, env = "UNDERSTUDY_NAME")]
    name: NodeName,
    /// Where its data lies; made if it is not there
    #[arg(long, env = "UNDERSTUDY_DATA_DIR", value_name = "PATH")]
    data_dir: PathBuf,
    /// Where its gRPC port listens
    #[arg(long, env = "UNDERSTUDY_LISTEN", value_name = "IP:PORT", default_value = "127.0.0.1:7400")]
    listen: SocketAddr,
    /// Where its HTTP port listens, with /metrics, /liveness and /readiness [default: no HTTP port]
    #[arg(long, env = "UNDERSTUDY_HTTP_LISTEN", value_name = "IP:PORT")]
    http_listen: Option<SocketAddr>,
    /// Under which address the other nodes and the clients reach it [default: the listen address]
    #[arg(long, env = "UNDERSTUDY_ADVERTISE", value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// The members of a new cluster, this node among them; the same on every node, and without effect once there is one
    #[arg(
        long,
        env = "UNDERSTUDY_INITIAL_CLUSTER",
        value_name = "NAME=HOST:PORT,...",
        value_delimiter = ',',
        value_parser = parse_member
    )]
    initial_cluster: Vec<(NodeName, String)>,
    /// Larger is preferred in an election; 0 is never promoted
    #[arg(long, env = "UNDERSTUDY_FAILOVER_PRIORITY", value_name = "N", default_value_t = 1)]
    failover_priority: u32,
    /// Never wait for this node's confirmation of a commit
    #[arg(long, env = "UNDERSTUDY_NO_SYNC")]
    no_sync: bool,
    /// New cluster: size of a WAL segment
    #[arg(
        long,
        env = "UNDERSTUDY_WAL_SEGMENT_SIZE",
        value_name = "SIZE",
        default_value = "16MiB",
        value_parser = parse_segment_size
    )]
    wal_segment_size: SegmentSize,
    /// New cluster: who confirms a commit, in PostgreSQL's grammar; empty for nobody
    #[arg(long, env = "UNDERSTUDY_SYNCHRONOUS_STANDBY_NAMES", value_name = "RULE", default_value = "ANY 1 (*)")]
    synchronous_standby_names: String,
    /// New cluster: what to do when too few are there to confirm: preferred (go on alone, once that is recorded),
    /// required (wait), or async (never wait for anybody)
    #[arg(long, env = "UNDERSTUDY_SYNC_MODE", value_name = "MODE", default_value_t = SyncMode::Preferred)]
    sync_mode: SyncMode,
    /// New cluster: how long the primary may be unheard before it counts as gone
    #[arg(long, env = "UNDERSTUDY_PRIMARY_TIMEOUT", value_name = "DURATION", default_value = "1s")]
    primary_timeout: Span,
    /// How the log is written to standard error
    #[arg(long, env = "UNDERSTUDY_LOG_FORMAT", value_enum, default_value_t = LogFormatArg::Text)]
    log_format: LogFormatArg,
    /// What is logged: error, warn, info, debug, trace, or a filter like understudy_wal=debug,info
    #[arg(long, env = "RUST_LOG", value_name = "FILTER", default_value = "info")]
    log_level: String,
}

const SERVER_HELP: &str = r"Three nodes on one machine:
  understudy server --name a --data-dir ./a --listen 127.0.0.1:7401 \
    --initial-cluster a=127.0.0.1:7401,b=127.0.0.1:7402,c=127.0.0.1:7403
and the same for b and c.";

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormatArg {
    Text,
    Json,
}

impl From<Box<ServerArgs>> for ServerConfig {
    fn from(args: Box<ServerArgs>) -> Self {
        Self {
            name: args.name,
            data_dir: args.data_dir,
            listen: args.listen,
            http_listen: args.http_listen,
            advertise: args.advertise.unwrap_or_else(|| args.listen.to_string()),
            initial_cluster: args.initial_cluster,
            segment_size: args.wal_segment_size,
            failover_priority: args.failover_priority,
            no_sync: args.no_sync,
            synchronous_standby_names: args.synchronous_standby_names,
            sync_mode: args.sync_mode,
            primary_timeout_ms: u64::try_from(args.primary_timeout.0.as_millis()).unwrap_or(u64::MAX),
            log_format: match args.log_format {
                LogFormatArg::Text => LogFormat::Text,
                LogFormatArg::Json => LogFormat::Json,
            },
            log_level: args.log_level,
        }
    }
}

/// Runs a node until it is told to stop.
pub async fn run(args: Box<ServerArgs>) -> anyhow::Result<Exit> {
    let config = ServerConfig::from(args);
    config.check()?;
    understudy_node::server::run(config).await?;
    Ok(Exit::Done)
}

fn parse_segment_size(text: &str) -> Result<SegmentSize, String> {
    let refused = || format!("\"{text}\" is not a size; give for example 16MiB, or a number of bytes");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| refused())?;
    let unit_bytes = match unit {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(refused()),
    };
    let bytes = number.checked_mul(unit_bytes).ok_or_else(refused)?;
    SegmentSize::new(bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn config(flags: &[&str]) -> Result<ServerConfig, clap::Error> {
        let base = ["understudy", "server", "--name", "a", "--data-dir", "d"];
        let Command::Server(args) = Cli::try_parse_from(base.iter().chain(flags))?.command else {
            panic!("not a server");
        };
        Ok(args.into())
    }

    #[test]
    fn defaults_are_those_of_the_design() {
        let config = config(&[]).expect("a configuration");
        assert_eq!(config.check(), Ok(()));
        assert_eq!(config.advertise, "127.0.0.1:7400");
        assert_eq!(config.segment_size, SegmentSize::DEFAULT);
        assert_eq!(config.synchronous_standby_names, "ANY 1 (*)");
        assert_eq!((config.sync_mode, config.primary_timeout_ms), (SyncMode::Preferred, 1_000));
        assert_eq!((config.failover_priority, config.no_sync), (1, false));
    }

    #[test]
    fn an_initial_cluster_is_a_list() {
        let flags = ["--listen", "127.0.0.1:7401", "--initial-cluster", "a=127.0.0.1:7401,b=127.0.0.1:7402"];
        let config = config(&flags).expect("a configuration");
        assert_eq!(config.initial_cluster.len(), 2);
        assert_eq!(config.check(), Ok(()));
    }

    #[test]
    fn sizes_have_units_and_bounds() {
        assert_eq!(parse_segment_size("1MiB"), Ok(SegmentSize::MIN));
        assert_eq!(parse_segment_size("16777216"), Ok(SegmentSize::DEFAULT));
        for bad in ["", "MiB", "16MB", "3MiB", "2GiB", "-1", "99999999999999999999GiB"] {
            assert!(parse_segment_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn wrong_settings_are_refused_with_what_would_do() {
        for (flags, hint) in [
            (["--initial-cluster", "a"], "name=host:port"),
            (["--wal-segment-size", "3MiB"], "power of two"),
            (["--sync-mode", "maybe"], "preferred"),
            (["--listen", "localhost"], "--listen"),
            (["--name", "-a"], "--name"),
        ] {
            let error = config(&flags).expect_err(flags[1]);
            assert!(error.to_string().contains(hint), "{flags:?}: {error}");
        }
    }
}
