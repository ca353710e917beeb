use std::io::Write as _;

use proptest::prelude::*;
use understudy_types::SyncMode;

use super::*;

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(text.as_bytes()).expect("written");
    file
}

fn map(of: &[(&str, &str)]) -> BTreeMap<String, String> {
    of.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

fn sources(file: &tempfile::NamedTempFile, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Sources {
    Sources { file: Some(file.path().to_owned()), environment: map(environment), flags: map(flags) }
}

const FULL: &str = r#"
name = "a"
data_dir = "/var/lib/understudy"
listen = "0.0.0.0:7400"
advertise = "10.0.0.1:7400"
http_listen = "0.0.0.0:7480"
initial_cluster = ["a=10.0.0.1:7400", "b=10.0.0.2:7400"]
wal_segment_size = "64MiB"
failover_priority = 5
no_sync = true
log_format = "json"
log_level = "debug"

[cluster]
synchronous_standby_names = "FIRST 1 (b)"
sync_mode = "required"
primary_timeout = "2s"
max_wal_senders = 20
wal_keep_size = 1048576
wal_sender_timeout = 0
"#;

fn wrong(text: &str) -> Vec<String> {
    let file = file(text);
    let path = file.path().display().to_string();
    check_file(file.path()).iter().map(|error| error.to_string().replace(&path, "FILE")).collect()
}

#[test]
fn a_file_gives_every_setting() {
    let file = file(FULL);
    let config = load(sources(&file, &[], &[])).expect("a configuration");
    assert_eq!((config.name.as_str(), config.failover_priority, config.no_sync), ("a", 5, true));
    assert_eq!((config.segment_size.get(), config.initial_cluster.len()), (64 << 20, 2));
    assert_eq!(config.http_listen.map(|address| address.port()), Some(7480));
    let settings = &config.settings;
    assert_eq!((settings.sync_mode, settings.primary_timeout_ms), (SyncMode::Required, 2_000));
    assert_eq!(
        (settings.max_wal_senders, settings.wal_keep_size_bytes, settings.wal_sender_timeout_ms),
        (20, 1 << 20, 0)
    );
    let origin = config.origin_of("primary_timeout").to_string();
    assert_eq!(origin, format!("file {}:17", file.path().display()));
    assert_eq!(config.origin_of("commit_deadline"), &Origin::Default);
    assert_eq!(check_file(file.path()), []);
}

#[test]
fn what_is_shown_can_be_given_again() {
    let file = file(FULL);
    let config = load(sources(&file, &[], &[])).expect("a configuration");
    let server = SERVER_SETTINGS.iter().map(|setting| (setting.name.to_owned(), setting.get(&config)));
    let cluster = SETTINGS.iter().map(|setting| (setting.name.to_owned(), setting.get(&config.settings)));
    let again =
        load(Sources { flags: server.chain(cluster).collect(), ..Sources::default() }).expect("a configuration");
    for setting in &SERVER_SETTINGS {
        assert_eq!(setting.get(&again), setting.get(&config), "{}", setting.name);
    }
    assert_eq!(again.settings, config.settings);
}

#[test]
fn each_layer_goes_before_the_one_below() {
    let file = file(FULL);
    let environment = [
        ("UNDERSTUDY_LOG_LEVEL", "warn"),
        ("UNDERSTUDY_NAME", "b"),
        ("RUST_LOG", "error"),
        ("UNDERSTUDY_ADVERTISE", ""),
    ];
    let flags = [("name", "a"), ("sync_mode", "async")];
    let config = load(sources(&file, &environment, &flags)).expect("a configuration");
    assert_eq!((config.name.as_str(), config.log_level.as_str()), ("a", "warn"));
    assert_eq!(config.settings.sync_mode, SyncMode::Async);
    assert_eq!(config.advertise, "10.0.0.1:7400", "an empty variable is none");
    let origins = ["name", "log_level", "sync_mode"].map(|name| config.origin_of(name).to_string());
    assert_eq!(origins, ["flag --name", "environment UNDERSTUDY_LOG_LEVEL", "flag --sync-mode"]);
    // The one setting for which empty means something.
    let environment = [("UNDERSTUDY_SYNCHRONOUS_STANDBY_NAMES", "")];
    let config = load(sources(&file, &environment, &[])).expect("a configuration");
    assert_eq!(config.settings.synchronous_standby_names, "");
}

#[test]
fn the_file_may_be_named_in_the_environment() {
    let file = file(FULL);
    let environment = map(&[("UNDERSTUDY_CONFIG", &file.path().display().to_string())]);
    let config = load(Sources { environment, ..Sources::default() }).expect("a configuration");
    assert_eq!(config.name.as_str(), "a");
}

#[test]
fn unknown_keys_have_a_nearest_one_and_a_line() {
    assert_eq!(wrong("naem = \"a\"\n"), ["FILE:1: there is no setting \"naem\"; did you mean name?"]);
    assert_eq!(
        wrong("\n[cluster]\n\nprimary_timout = \"1s\"\n"),
        ["FILE:4: there is no setting \"primary_timout\"; did you mean primary_timeout?"]
    );
    assert_eq!(
        wrong("sync_mode = \"async\"\n"),
        ["FILE:1: sync_mode is a setting of the cluster; put it under [cluster]"]
    );
    assert_eq!(
        wrong("[cluster]\nlisten = \"h:1\"\n"),
        ["FILE:2: listen is a setting of the server; put it above [cluster]"]
    );
    assert_eq!(wrong("[clusters]\nx = 1\n"), ["FILE:1: there is no setting \"clusters\"; did you mean cluster?"]);
}

#[test]
fn wrong_types_name_the_key_and_what_would_do() {
    for (text, said) in [
        ("failover_priority = \"3\"", "failover_priority is a string; give a number: 0 to 4294967295"),
        ("no_sync = \"yes\"", "no_sync is a string; give true or false, without quotes"),
        ("listen = 7400", "listen is an integer; give a string: ip:port"),
        ("initial_cluster = 1", "initial_cluster is an integer; give an array"),
        ("initial_cluster = [1]", "initial_cluster is an array; give an array of strings"),
        ("[cluster]\nprimary_timeout = 1000", "primary_timeout is an integer; give a string with a unit, like \"1s\""),
        ("[cluster]\nsync_mode = true", "sync_mode is a boolean; give a string, like \"preferred\""),
        ("cluster = 1", "there is no setting \"cluster\""),
    ] {
        let errors = wrong(text);
        assert!(errors.len() == 1 && errors[0].contains(said), "{text}: {errors:?}");
    }
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let errors = wrong(
        "naem = \"a\"\nlisten = \"nowhere\"\nwal_segment_size = \"3MiB\"\n[cluster]\nprimary_timeout = \"1ms\"\nsync_mode = 1\n",
    );
    assert_eq!(errors.len(), 5, "{errors:?}");
    for (error, hint) in errors.iter().zip(["FILE:1", "FILE:6", "file FILE:2", "power of two", "500ms to 1h"]) {
        assert!(error.contains(hint), "{error}");
    }
}

#[test]
fn a_file_that_is_not_one_is_told_of() {
    let errors = wrong("name = \"a\nlisten = 1\n");
    assert!(errors.len() == 1 && errors[0].starts_with("FILE:1: not TOML: "), "{errors:?}");
    let errors = wrong("name = \"a\"\nname = \"b\"\n");
    assert!(errors.len() == 1 && errors[0].starts_with("FILE:2: not TOML: "), "{errors:?}");
    let errors = check_file(Path::new("no/such/file.toml"));
    assert!(errors[0].to_string().contains("no/such/file.toml cannot be read"), "{errors:?}");
    let errors = wrong(&"#".repeat(2 << 20));
    assert!(errors[0].contains("more than 1048576 bytes"), "{errors:?}");
}

#[test]
fn what_has_no_default_must_be_given() {
    let errors = load(Sources::default()).expect_err("a refusal").to_string();
    assert!(errors.contains("name is missing; give --name, the environment variable UNDERSTUDY_NAME"), "{errors}");
    assert!(errors.contains("data_dir is missing; give --data-dir"), "{errors}");
    // A file alone may leave it to flags.
    assert_eq!(wrong("log_level = \"info\"\n"), [] as [&str; 0]);
}

#[test]
fn members_may_be_a_table() {
    let of = |members: &str| {
        let file = file(&format!("initial_cluster = {members}\n"));
        let flags = [("name", "a"), ("data_dir", "d"), ("advertise", "10.0.0.1:1")];
        load(sources(&file, &[], &flags)).map(|config| config.initial_cluster)
    };
    let table = of("{ a = \"10.0.0.1:1\", b = \"10.0.0.2:1\" }").expect("members");
    assert_eq!(table, of("\"a=10.0.0.1:1,b=10.0.0.2:1\"").expect("members"));
    assert_eq!(table, of("[\"a=10.0.0.1:1\", \"b=10.0.0.2:1\"]").expect("members"));
    assert!(of("{ a = \"10.0.0.1:1,b=x:1\" }").is_err());
}

#[test]
fn misspelt_variables_are_noticed_and_others_left_alone() {
    let environment = map(&[
        ("UNDERSTUDY_DATADIR", "x"),
        ("UNDERSTUDY_ENDPOINTS", "x"),
        ("UNDERSTUDY_PORT_7400_TCP_ADDR", "x"),
        ("UNDERSTUDY_SYNC_MODE", "async"),
        ("PATH", "x"),
    ]);
    let strange = strange_variables(&environment);
    assert_eq!(strange, [("UNDERSTUDY_DATADIR".to_owned(), "UNDERSTUDY_DATA_DIR".to_owned())]);
}

#[test]
fn a_restart_would_take_what_the_file_says_now() {
    let mut file = file(FULL);
    let config = load(sources(&file, &[], &[])).expect("a configuration");
    assert_eq!(config.read_again().as_ref(), Ok(&config));
    file.as_file_mut().set_len(0).expect("emptied");
    std::fs::write(file.path(), FULL.replace("log_level = \"debug\"", "log_level = \"warn\"")).expect("written");
    let again = config.read_again().expect("a configuration");
    let differ = SERVER_SETTINGS.iter().filter(|setting| setting.get(&again) != setting.get(&config));
    assert_eq!(differ.map(|setting| setting.name).collect::<Vec<_>>(), ["log_level"]);
}

#[test]
fn what_a_cluster_has_otherwise_is_named() {
    let file = file(FULL);
    let config = load(sources(&file, &[], &[])).expect("a configuration");
    assert_eq!(config.differs_from(&config.settings), []);
    let present =
        settings::Settings { sync_mode: SyncMode::Async, commit_deadline_ms: 5_000, ..config.settings.clone() };
    // The deadline was not given, so nobody expects anything of it.
    assert_eq!(config.differs_from(&present), [("sync_mode", "required".to_owned(), "async".to_owned())]);
}

#[test]
fn every_name_is_there_once_and_every_default_is_right() {
    let names: Vec<&str> = all_names().collect();
    for (index, name) in names.iter().enumerate() {
        assert!(!names[..index].contains(name), "{name}");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
    }
    let mut errors = Vec::new();
    draft(&BTreeMap::new(), &mut errors);
    assert_eq!(errors, []);
}

proptest! {
    #[test]
    fn no_text_panics(text in ".*") {
        let mut errors = Vec::new();
        file::parse(Path::new("x"), &text, &mut errors);
    }

    #[test]
    fn no_value_panics(index in 0..SERVER_SETTINGS.len() + SETTINGS.len(), text in ".*", quoted: bool) {
        let name = all_names().nth(index).expect("a name");
        let from_flag = Sources { flags: map(&[(name, &text)]), ..Sources::default() };
        prop_assert!(load(from_flag).is_err(), "name or data_dir is missing");
        let value = if quoted { format!("{text:?}") } else { text };
        let head = if index < SERVER_SETTINGS.len() { "" } else { "[cluster]\n" };
        let mut errors = Vec::new();
        file::parse(Path::new("x"), &format!("{head}{name} = {value}\n"), &mut errors);
    }
}
