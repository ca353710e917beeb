//! `understudy server`: from file, environment and flags to a checked [`ServerConfig`].
//!
//! The flags are made from the tables of settings, so that each setting has one, with its doc line, its variable and its
//! default. They are handed on as texts: what they are worth, and what goes before what, is
//! [`understudy_node::config::load`]'s to say.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use understudy_node::config::{SERVER_SETTINGS, ServerConfig, ServerKind, ServerSetting, Sources, load, variable};
use understudy_node::settings::{SETTINGS, Setting};

use crate::exit::Exit;

const CONFIG: &str = "config";

/// The flags that were given, by the name of the setting.
#[derive(Debug, Default)]
pub struct ServerArgs {
    file: Option<PathBuf>,
    flags: BTreeMap<String, String>,
}

const SERVER_HELP: &str = r"Flags go before environment variables, those before the configuration file.

Three nodes on one machine:
  understudy server --name a --data-dir ./a --listen 127.0.0.1:7401 \
    --initial-cluster a=127.0.0.1:7401,b=127.0.0.1:7402,c=127.0.0.1:7403
and the same for b and c.";

/// The names of the flags, by the names of the settings. `clap` wants them to live as long as the program.
static FLAGS: LazyLock<BTreeMap<&'static str, String>> =
    LazyLock::new(|| names().map(|name| (name, name.replace('_', "-"))).collect());

fn names() -> impl Iterator<Item = &'static str> {
    SERVER_SETTINGS.iter().map(|setting| setting.name).chain(SETTINGS.iter().map(|setting| setting.name))
}

fn kebab(name: &'static str) -> &'static str {
    FLAGS.get(name).map_or(name, String::as_str)
}

fn server_flag(setting: &ServerSetting) -> Arg {
    let also = setting.also.map_or_else(String::new, |also| format!(", {also}"));
    let default = setting.default.filter(|text| !text.is_empty());
    let default = default.map_or_else(String::new, |text| format!(" [default: {text}]"));
    let help = format!("{} [env: {}{also}]{default}", setting.doc, variable(setting.name));
    let flag = Arg::new(setting.name).long(kebab(setting.name)).help(help).value_name(setting.kind.as_str());
    match setting.kind {
        ServerKind::Switch => flag.num_args(0..=1).require_equals(true).default_missing_value("true"),
        ServerKind::Members => flag.action(ArgAction::Append),
        ServerKind::Text | ServerKind::Address | ServerKind::Number | ServerKind::Size => flag,
    }
}

fn cluster_flag(setting: &Setting) -> Arg {
    let help = format!("{} [env: {}] [default: {}]", setting.doc, variable(setting.name), setting.default());
    Arg::new(setting.name).long(kebab(setting.name)).help(help).value_name(setting.unit()).help_heading("New cluster")
}

impl Args for ServerArgs {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new(CONFIG)
            .long(CONFIG)
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("The configuration file, TOML; see docs/configuration.md [env: UNDERSTUDY_CONFIG]");
        let command = command.arg(file).after_help(SERVER_HELP);
        let command = SERVER_SETTINGS.iter().fold(command, |command, setting| command.arg(server_flag(setting)));
        SETTINGS.iter().fold(command, |command, setting| command.arg(cluster_flag(setting)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ServerArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut args = Self::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.file = matches.get_one::<PathBuf>(CONFIG).cloned();
        for name in names() {
            if let Some(given) = matches.get_many::<String>(name) {
                let all: Vec<&str> = given.map(String::as_str).collect();
                self.flags.insert(name.to_owned(), all.join(","));
            }
        }
        Ok(())
    }
}

impl ServerArgs {
    fn sources(self, environment: BTreeMap<String, String>) -> Sources {
        Sources { file: self.file, environment, flags: self.flags }
    }
}

/// Of this process, as far as it can be a setting.
fn environment() -> BTreeMap<String, String> {
    let ours = std::env::vars_os().filter_map(|(name, text)| {
        let name = name.into_string().ok()?;
        let looked_at = name.starts_with("UNDERSTUDY_") || name == "RUST_LOG";
        looked_at.then(|| (name, text.to_string_lossy().into_owned()))
    });
    ours.collect()
}

/// Runs a node until it is told to stop.
pub async fn run(args: Box<ServerArgs>) -> anyhow::Result<Exit> {
    let config: ServerConfig = load(args.sources(environment()))?;
    understudy_node::server::run(config).await?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use understudy_types::{SegmentSize, SyncMode};

    use super::*;
    use crate::args::{Cli, Command};

    fn config_of(flags: &[&str], environment: &[(&str, &str)]) -> Result<ServerConfig, String> {
        let base = ["understudy", "server", "--name", "a", "--data-dir", "d"];
        let cli = Cli::try_parse_from(base.iter().chain(flags)).map_err(|error| error.to_string())?;
        let Command::Server(args) = cli.command else { panic!("not a server") };
        let environment = environment.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        load(args.sources(environment)).map_err(|errors| errors.to_string())
    }

    fn config(flags: &[&str]) -> Result<ServerConfig, String> {
        config_of(flags, &[])
    }

    #[test]
    fn defaults_are_those_of_the_design() {
        let config = config(&[]).expect("a configuration");
        assert_eq!(config.check(), Ok(()));
        assert_eq!(config.advertise, "127.0.0.1:7400");
        assert_eq!(config.segment_size, SegmentSize::DEFAULT);
        assert_eq!(config.settings, Default::default());
        assert_eq!((config.failover_priority, config.no_sync), (1, false));
    }

    #[test]
    fn an_initial_cluster_is_a_list() {
        for flags in [
            &["--listen", "127.0.0.1:7401", "--initial-cluster", "a=127.0.0.1:7401,b=127.0.0.1:7402"][..],
            &[
                "--listen=127.0.0.1:7401",
                "--initial-cluster",
                "a=127.0.0.1:7401",
                "--initial-cluster",
                "b=127.0.0.1:7402",
            ],
        ] {
            let config = config(flags).expect("a configuration");
            assert_eq!(config.initial_cluster.len(), 2);
            assert_eq!(config.check(), Ok(()));
        }
    }

    #[test]
    fn every_flag_of_before_is_taken() {
        let flags = [
            "--advertise",
            "h:1",
            "--failover-priority",
            "7",
            "--no-sync",
            "--wal-segment-size",
            "1048576",
            "--synchronous-standby-names",
            "",
            "--sync-mode",
            "required",
            "--primary-timeout",
            "2s",
            "--log-format",
            "json",
            "--log-level",
            "debug",
        ];
        let config = config(&flags).expect("a configuration");
        assert_eq!((config.advertise.as_str(), config.failover_priority, config.no_sync), ("h:1", 7, true));
        assert_eq!(config.segment_size, SegmentSize::MIN);
        let settings = &config.settings;
        assert_eq!((settings.synchronous_standby_names.as_str(), settings.sync_mode), ("", SyncMode::Required));
        assert_eq!((settings.primary_timeout_ms, config.log_level.as_str()), (2_000, "debug"));
        assert_eq!(config.origin_of("sync_mode").to_string(), "flag --sync-mode");
    }

    #[test]
    fn flags_go_before_the_environment() {
        let environment = [("UNDERSTUDY_NAME", "z"), ("UNDERSTUDY_SYNC_MODE", "async"), ("RUST_LOG", "warn")];
        let config = config_of(&["--sync-mode", "required"], &environment).expect("a configuration");
        assert_eq!((config.name.as_str(), config.settings.sync_mode), ("a", SyncMode::Required));
        assert_eq!(config.log_level, "warn");
        assert_eq!(config.origin_of("log_level").to_string(), "environment RUST_LOG");
    }

    #[test]
    fn wrong_settings_are_refused_with_what_would_do() {
        for (flags, hint) in [
            (["--initial-cluster", "a"], "name=host:port"),
            (["--wal-segment-size", "3MiB"], "power of two"),
            (["--sync-mode", "maybe"], "preferred"),
            (["--listen", "localhost"], "flag --listen"),
            (["--no-sync=perhaps", "--no-sync"], "cannot be used multiple times"),
            (["--no-sync=perhaps", "--log-level=info"], "neither true nor false"),
            (["--synchronous-standby-names", "ANY 0 (*)"], "flag --synchronous-standby-names"),
        ] {
            let error = config(&flags).expect_err(flags[1]);
            assert!(error.contains(hint), "{flags:?}: {error}");
        }
    }
}
