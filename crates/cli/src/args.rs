//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use understudy_client::{ReadOptions, ReadPreference};
use understudy_types::{DurabilityLevel, Lsn, Position, RequestId, SessionToken, TimelineId};

use crate::server::ServerArgs;

/// A replicated, transactional key-value database that fails over by itself.
#[derive(Debug, Parser)]
#[command(name = "understudy", version, propagate_version = true, max_term_width = 110, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 the key does not exist or a precondition did not hold,
4 the outcome of a commit is unknown.

Examples:
  understudy server --name a --data-dir ./a --initial-cluster a=127.0.0.1:7400
  understudy status
  understudy put greeting hello && understudy get greeting
  understudy load --prefix dpkg/ /var/lib/dpkg/status";

/// For every command that talks to a cluster.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Nodes of the cluster, host:port, comma separated; one is enough to find the others
    #[arg(
        long,
        global = true,
        env = "UNDERSTUDY_ENDPOINTS",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        default_value = "127.0.0.1:7400"
    )]
    pub endpoints: Vec<String>,
    /// For people or for programs; in JSON an LSN is a number of bytes
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// How long to try, over failovers too
    #[arg(long, global = true, value_name = "DURATION", default_value = "30s")]
    pub timeout: Span,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node
    Server(Box<ServerArgs>),
    /// Show the cluster: who is primary, how far each node is, whether it takes writes, and why not
    Status,
    /// Show every timeline: who opened it, where, when and why
    History,
    /// Change who belongs to the cluster
    #[command(subcommand)]
    Members(MembersCommand),
    /// Show every standby as the primary sees it: what was sent, written, flushed and applied, and how far behind it is
    Replication,
    /// Show who confirms commits, and what keeps the list from being the wanted one
    Sync(SyncArgs),
    /// Show, change or check settings
    Config(ConfigArgs),
    /// Print the value of a key
    Get(GetArgs),
    /// Set a key
    Put(PutArgs),
    /// Delete a key
    Delete(DeleteArgs),
    /// List keys in their order, read at one position
    Scan(ScanArgs),
    /// Load JSON lines or Debian control files, with many commits in flight
    Load(LoadArgs),
}

#[derive(Debug, Subcommand)]
pub enum MembersCommand {
    /// Put a node that lost its data directory back into service: first start its server with an empty one
    Replace(ReplaceArgs),
}

#[derive(Debug, Args)]
pub struct ReplaceArgs {
    /// Of the member
    pub name: String,
    /// Where the new node is reached, host:port; as before if not given
    #[arg(long, value_name = "HOST:PORT")]
    pub address: Option<String>,
}

#[derive(Debug, Args)]
pub struct SyncArgs {
    #[command(subcommand)]
    pub command: Option<SyncCommand>,
}

#[derive(Debug, Subcommand)]
pub enum SyncCommand {
    /// List the commits that wait to be acknowledged, the oldest first, and for whom
    Waiting {
        /// At most this many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// End waits: the outcome of these commits is then unknown to their clients, who learn it by the request id
    #[command(group(clap::ArgGroup::new("which").required(true)))]
    Cancel {
        /// Of the commit with this request id
        #[arg(long, value_name = "ID", group = "which")]
        request_id: Option<RequestId>,
        /// Of every commit that waits now
        #[arg(long, group = "which")]
        all: bool,
    },
}

#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Show the settings of the cluster, and those of the asked server: value, and where it comes from
    Show {
        /// Only this one, with everything that is known about it
        name: Option<String>,
    },
    /// Change settings of the cluster while it runs, all of them or none
    Set {
        /// For example sync_mode=required primary_timeout=2s; NAME= for an empty value
        #[arg(required = true, value_name = "NAME=VALUE", value_parser = parse_assignment)]
        assignments: Vec<(String, String)>,
    },
    /// Give settings of the cluster their defaults again
    Reset {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Check a configuration file without a server; ends with 1 and says everything that is wrong
    Check {
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct GetArgs {
    pub key: String,
    #[command(flatten)]
    pub keys: KeyArgs,
    #[command(flatten)]
    pub read: ReadArgs,
}

/// How keys are given.
#[derive(Debug, Clone, Copy, Args)]
pub struct KeyArgs {
    /// Keys are given in hexadecimal digits, two a byte: for those that are not text
    #[arg(long)]
    pub hex_key: bool,
}

/// How a read is done.
#[derive(Debug, Clone, Args)]
pub struct ReadArgs {
    /// What the read must see; session with --token and eventual with --max-staleness if not said, else linearizable
    #[arg(long, value_enum, value_name = "LEVEL")]
    pub consistency: Option<ReadLevel>,
    /// No less than what this token stands for, as put and get print it with -o json
    #[arg(long, value_name = "HEX")]
    pub token: Option<SessionToken>,
    /// Exactly as of this position: LSN@TIMELINE, as it is printed elsewhere
    #[arg(long, value_name = "POSITION", value_parser = parse_position, conflicts_with_all = ["consistency", "token", "max_staleness"])]
    pub at: Option<Position>,
    /// Only data that is not older than this
    #[arg(long, value_name = "DURATION")]
    pub max_staleness: Option<Span>,
    /// Who answers a read that is not linearizable
    #[arg(long, value_enum, value_name = "WHO", default_value_t = ReadFrom::Any)]
    pub read_from: ReadFrom,
    /// As --consistency eventual --read-from endpoints: what the given endpoint has applied
    #[arg(long, conflicts_with_all = ["consistency", "token", "at", "read_from"])]
    pub eventual: bool,
}

/// What a read must see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReadLevel {
    /// Every commit acknowledged at level on or remote_apply before; the primary answers
    Linearizable,
    /// No less than the token
    Session,
    /// What the answering node has
    Eventual,
}

/// Who answers a read that is not linearizable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReadFrom {
    /// Every node that streams, and the primary
    Any,
    /// The primary
    Primary,
    /// Standbys that stream; the primary when none answers
    PreferStandby,
    /// The given endpoints, whatever they are
    Endpoints,
}

impl ReadArgs {
    /// In the words of the client.
    pub fn options(&self) -> ReadOptions {
        let level = self.consistency.unwrap_or(match (self.eventual, self.token, self.max_staleness) {
            (false, Some(_), _) => ReadLevel::Session,
            (true, _, _) | (false, None, Some(_)) => ReadLevel::Eventual,
            (false, None, None) => ReadLevel::Linearizable,
        });
        let mut options = match (self.at, level) {
            (Some(position), _) => ReadOptions::at(position),
            (None, ReadLevel::Linearizable) => ReadOptions::linearizable(),
            (None, ReadLevel::Session) => ReadOptions::session(None),
            (None, ReadLevel::Eventual) => ReadOptions::eventual(),
        };
        if let Some(token) = self.token {
            options = options.token(token);
        }
        if let Some(Span(age)) = self.max_staleness {
            options = options.max_staleness(age);
        }
        options.preference(match (self.eventual, self.read_from) {
            (true, _) | (false, ReadFrom::Endpoints) => ReadPreference::Endpoints,
            (false, ReadFrom::Any) => ReadPreference::Any,
            (false, ReadFrom::Primary) => ReadPreference::Primary,
            (false, ReadFrom::PreferStandby) => ReadPreference::PreferStandby,
        })
    }
}

#[derive(Debug, Args)]
pub struct PutArgs {
    pub key: String,
    /// The value; or give --file
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    pub value: Option<String>,
    /// Read the value from a file; - is standard input
    #[arg(long, value_name = "PATH")]
    pub file: Option<PathBuf>,
    /// Only if the key has no value
    #[arg(long, conflicts_with = "if_version")]
    pub if_absent: bool,
    #[command(flatten)]
    pub keys: KeyArgs,
    #[command(flatten)]
    pub commit: CommitArgs,
}

#[derive(Debug, Args)]
pub struct DeleteArgs {
    pub key: String,
    #[command(flatten)]
    pub keys: KeyArgs,
    #[command(flatten)]
    pub commit: CommitArgs,
}

#[derive(Debug, Args)]
pub struct CommitArgs {
    /// Only if the value was written by this commit, as get and put print it: LSN@TIMELINE
    #[arg(long, value_name = "VERSION", value_parser = parse_position)]
    pub if_version: Option<Position>,
    /// When it is acknowledged: off, local, remote_write, on or remote_apply; the cluster's default if not given
    #[arg(long, value_name = "LEVEL")]
    pub durability: Option<DurabilityLevel>,
    /// Ask again about a commit whose outcome was unknown; everything else must be as it was then
    #[arg(long, value_name = "ID")]
    pub request_id: Option<RequestId>,
}

#[derive(Debug, Args)]
pub struct ScanArgs {
    /// Keys that begin with this
    #[arg(long, conflicts_with_all = ["start", "end"])]
    pub prefix: Option<String>,
    /// The first key
    #[arg(long)]
    pub start: Option<String>,
    /// The key after the last
    #[arg(long)]
    pub end: Option<String>,
    /// At most this many; 0 for no bound
    #[arg(long, default_value_t = 0)]
    pub limit: u64,
    #[command(flatten)]
    pub keys: KeyArgs,
    #[command(flatten)]
    pub read: ReadArgs,
}

#[derive(Debug, Args)]
#[command(after_help = LOAD_HELP)]
pub struct LoadArgs {
    /// What to load; - is standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// auto goes by the first character of each file
    #[arg(long, value_enum, default_value_t = Format::Auto)]
    pub format: Format,
    /// Put before every key; {pass} becomes the number of the pass, {file} the name of the file
    #[arg(long, default_value = "")]
    pub prefix: String,
    /// Commits under way at the same time
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub in_flight: u16,
    /// Records in one commit
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub batch: u32,
    /// Load the files this many times over; 0 until a signal comes
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub passes: u64,
    /// Write one JSON line per acknowledged record to this file, as it is acknowledged
    #[arg(long, value_name = "PATH")]
    pub acks: Option<PathBuf>,
    /// When a commit is acknowledged: off, local, remote_write, on or remote_apply; the cluster's default if not given
    #[arg(long, value_name = "LEVEL")]
    pub durability: Option<DurabilityLevel>,
}

const LOAD_HELP: &str = "\
Formats:
  jsonl   one {\"key\": \"...\", \"value\": \"...\"} a line
  deb822  Debian control files: each stanza becomes pkg/<Package>/<Version>/<Architecture>, with - for a field
          that it lacks; the value is the stanza without comments

The first record that cannot be read or is refused ends the load. What was acknowledged before stands, and the
accounting at the end says exactly how many. SIGINT and SIGTERM end it in the same way.

A line of --acks has key, value_crc32c, request_id, node_id, timeline, lsn, already_done and t_ms (Unix time). With
already_done, the position is that of the first attempt: it may lie on an earlier timeline than the node that
acknowledges.";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Auto,
    Jsonl,
    Deb822,
}

/// A length of time: `250ms`, `30s`, `5min`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || format!("\"{text}\" is not a duration; give for example 250ms, 30s or 5min");
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| refused())?;
        let unit_ms = match unit {
            "ms" => 1,
            "s" => 1_000,
            "min" => 60_000,
            _ => return Err(refused()),
        };
        // A year is as good as for ever, and far from the bounds of the clock.
        let ms = number.checked_mul(unit_ms).filter(|ms| (1..=31_536_000_000).contains(ms)).ok_or_else(refused)?;
        Ok(Self(Duration::from_millis(ms)))
    }
}

fn parse_assignment(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| format!("\"{text}\" is not NAME=VALUE; give for example sync_mode=required"))?;
    Ok((name.trim().to_owned(), value.to_owned()))
}

fn parse_position(text: &str) -> Result<Position, String> {
    let refused =
        || format!("\"{text}\" is not a position; give LSN@TIMELINE as it was printed, for example 0/010000A0@1");
    let (lsn, timeline) = text.split_once('@').ok_or_else(refused)?;
    let lsn: Lsn = lsn.parse().map_err(|_| refused())?;
    let timeline: TimelineId = timeline.parse().map_err(|_| refused())?;
    Ok(Position::new(timeline, lsn))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_may_stand_after_the_command() {
        let cli = parse("understudy status --endpoints a:1,b:2 -o json --timeout 250ms").expect("a command line");
        assert_eq!(cli.global.endpoints, ["a:1", "b:2"]);
        assert_eq!(cli.global.output, Output::Json);
        assert_eq!(cli.global.timeout.0, Duration::from_millis(250));
    }

    #[test]
    fn a_value_comes_from_one_place() {
        assert!(parse("understudy put k v").is_ok());
        assert!(parse("understudy put k --file -").is_ok());
        assert!(parse("understudy put k").is_err());
        assert!(parse("understudy put k v --file x").is_err());
        assert!(parse("understudy put k v --if-absent --if-version 0/1@1").is_err());
    }

    #[test]
    fn wrong_values_are_refused_with_what_would_do() {
        for (line, hint) in [
            ("understudy status --timeout 5", "30s"),
            ("understudy status --timeout 0s", "30s"),
            ("understudy status -o xml", "json"),
            ("understudy put k v --durability max", "off, local, remote_write, on or remote_apply"),
            ("understudy sync cancel", "--all"),
            ("understudy sync cancel --all --request-id 00000000000000000000000000000001", "cannot be used"),
            ("understudy put k v --if-version 17", "LSN@TIMELINE"),
            ("understudy get k --token 0123", "50 hexadecimal digits"),
            ("understudy get k --at 0/1@0", "LSN@TIMELINE"),
            ("understudy get k --at 0/1@1 --token 00", "50 hexadecimal digits"),
            ("understudy get k --max-staleness 0ms", "250ms"),
            ("understudy get k --consistency strong", "linearizable"),
            ("understudy load x --in-flight 0", "1..=4096"),
            ("understudy config set sync_mode", "NAME=VALUE"),
            ("understudy config set", "NAME=VALUE"),
            ("understudy load", "FILE"),
            ("understudy scan --prefix a --start b", "cannot be used"),
            ("understudy frobnicate", "unrecognized"),
            ("understudy status --frobnicate", "unexpected"),
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(hint), "{line}: {error}");
        }
    }

    #[test]
    fn a_read_is_as_the_flags_say() {
        let options = |flags: &str| {
            let command = parse(&format!("understudy get k {flags}")).expect(flags).command;
            let Command::Get(args) = command else { panic!("{command:?}") };
            args.read.options()
        };
        let position = Position::new(TimelineId::new(2), Lsn::new(0x0100_00A0));
        let token = SessionToken::new(understudy_types::SystemId::new(5), position);
        let any = ReadPreference::Any;
        assert_eq!(options(""), ReadOptions::linearizable().preference(any));
        assert_eq!(options(&format!("--token {token}")), ReadOptions::session(Some(token)).preference(any));
        assert_eq!(options("--at 0/010000A0@2"), ReadOptions::at(position).preference(any));
        let half = Duration::from_millis(500);
        assert_eq!(options("--max-staleness 500ms"), ReadOptions::eventual().max_staleness(half).preference(any));
        assert_eq!(options("--eventual"), ReadOptions::eventual().preference(ReadPreference::Endpoints));
        assert_eq!(
            options("--consistency session --read-from prefer-standby"),
            ReadOptions::session(None).preference(ReadPreference::PreferStandby)
        );
        assert_eq!(
            options(&format!("--consistency linearizable --token {token}")),
            ReadOptions::linearizable().token(token).preference(any)
        );
    }

    #[test]
    fn a_version_is_read_as_it_is_printed() {
        let position = Position::new(TimelineId::new(3), Lsn::new(0x1_0000_00A0));
        assert_eq!(parse_position(&position.to_string()), Ok(position));
    }
}
