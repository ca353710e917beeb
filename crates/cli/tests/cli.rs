//! The binary against fake nodes: what it prints, and how it ends.

#[path = "../../client/tests/fake/mod.rs"]
#[allow(dead_code, reason = "shared with the tests of the client, which use all of it")]
mod fake;

use std::io::Write;
use std::process::{Command, Output, Stdio};

use fake::{Cluster, Step};
use serde_json::Value;
use understudy_rpc::error::RpcError;

struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn command(endpoints: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_understudy"));
    command.env("UNDERSTUDY_ENDPOINTS", endpoints).args(args);
    command
}

fn ran(output: &Output) -> Ran {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    Ran { code: output.status.code().expect("an exit code"), out: text(&output.stdout), err: text(&output.stderr) }
}

fn run(endpoints: &str, args: &[&str]) -> Ran {
    ran(&command(endpoints, args).output().expect("the binary runs"))
}

fn run_with_input(endpoints: &str, args: &[&str], input: &str) -> Ran {
    let mut command = command(endpoints, args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    // A child that refuses its arguments may be gone before it reads.
    if let Err(error) = stdin.write_all(input.as_bytes()) {
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    }
    drop(stdin);
    ran(&child.wait_with_output().expect("the binary ends"))
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn keys_are_put_read_and_deleted() {
    let cluster = Cluster::start(2, Some(1));
    let endpoints = cluster.address(0);
    let put = run(&endpoints, &["put", "greeting", "hello"]);
    assert_eq!((put.code, put.err.as_str()), (0, ""));
    assert!(put.out.starts_with("committed at 0/01000064@1, acknowledged by n1\n"), "{}", put.out);
    let get = run(&endpoints, &["get", "greeting"]);
    assert_eq!((get.code, get.out.as_str()), (0, "hello"));
    let get = json(&run(&endpoints, &["get", "greeting", "-o", "json"]).out);
    assert_eq!((&get["value"], &get["version"]["lsn"]), (&Value::from("hello"), &Value::from(0x0100_0064)));
    assert_eq!(run(&endpoints, &["delete", "greeting"]).code, 0);
    let gone = run(&endpoints, &["get", "greeting"]);
    assert_eq!((gone.code, gone.out.as_str()), (3, ""));
    assert!(gone.err.starts_with("error: key \"greeting\" does not exist"), "{}", gone.err);
    assert_eq!(json(&run(&endpoints, &["get", "greeting", "-o", "json"]).out)["found"], false);
}

#[test]
fn a_token_of_a_commit_is_what_a_later_read_takes() {
    let cluster = Cluster::start(2, Some(0));
    let endpoints = cluster.address(0);
    cluster.stands_still(1);
    let put = json(&run(&endpoints, &["put", "k", "v", "-o", "json"]).out);
    let token = put["token"].as_str().expect("a token").to_owned();
    for _ in 0..2 {
        let get = run(&endpoints, &["get", "k", "--token", &token, "-o", "json"]);
        assert_eq!(get.code, 0, "{}", get.err);
        assert_eq!(json(&get.out)["token"].as_str(), Some(token.as_str()), "not from the node that stands still");
    }
    let mangled = format!("{}{}", &token[..49], if token.ends_with('0') { '1' } else { '0' });
    let refused = run(&endpoints, &["get", "k", "--token", &mangled]);
    assert_eq!(refused.code, 2);
    assert!(refused.err.contains("mangled"), "{}", refused.err);
}

#[test]
fn a_key_that_is_no_text_is_given_in_hexadecimal_digits() {
    let cluster = Cluster::start(1, Some(0));
    let endpoints = cluster.address(0);
    assert_eq!(run(&endpoints, &["put", "--hex-key", "6bff00", "v"]).code, 0);
    assert_eq!(run(&endpoints, &["get", "--hex-key", "6BFF00"]).out, "v");
    let scan = json(&run(&endpoints, &["scan", "--hex-key", "--prefix", "6bff", "-o", "json"]).out);
    assert_eq!(scan["key_base64"], "a/8A");
    assert_eq!(run(&endpoints, &["get", "--hex-key", "6"]).code, 2);
    assert_eq!(run(&endpoints, &["delete", "--hex-key", "6bff00"]).code, 0);
    assert_eq!(run(&endpoints, &["get", "--hex-key", "6bff00"]).code, 3);
}

#[test]
fn a_value_may_come_from_standard_input() {
    let cluster = Cluster::start(1, Some(0));
    let endpoints = cluster.address(0);
    assert_eq!(run_with_input(&endpoints, &["put", "k", "--file", "-"], "from a pipe\n").code, 0);
    assert_eq!(run(&endpoints, &["get", "k"]).out, "from a pipe\n");
    let missing = run(&endpoints, &["put", "k", "--file", "there/is/no/such/file"]);
    assert_eq!(missing.code, 1);
    assert!(missing.err.starts_with("error: cannot open there/is/no/such/file"), "{}", missing.err);
}

#[test]
fn a_failed_precondition_ends_with_three() {
    let cluster = Cluster::start(1, Some(0));
    let endpoints = cluster.address(0);
    assert_eq!(run(&endpoints, &["put", "k", "1", "--if-absent"]).code, 0);
    let again = run(&endpoints, &["put", "k", "2", "--if-absent"]);
    assert_eq!((again.code, again.out.as_str()), (3, ""));
    assert!(again.err.contains("requires of key \"k\": no value"), "{}", again.err);
}

#[test]
fn a_program_is_told_what_was_found_instead() {
    let cluster = Cluster::start(1, Some(0));
    let endpoints = cluster.addresses().join(",");
    assert_eq!(run(&endpoints, &["put", "k", "1"]).code, 0);
    let refused = run(&endpoints, &["-o", "json", "put", "k", "2", "--if-absent"]);
    assert_eq!(refused.code, 3);
    let told = json(&refused.out);
    assert_eq!((&told["outcome"], &told["key"], &told["found"]), (&"aborted".into(), &"k".into(), &"a value".into()));
}

#[test]
fn operators_see_replication_and_end_waits() {
    let cluster = Cluster::start(3, Some(1));
    let endpoints = cluster.address(0);
    assert!(run(&endpoints, &["replication"]).out.starts_with("primary n1, timeline 0"));
    assert_eq!(json(&run(&endpoints, &["-o", "json", "sync"]).out)["primary"], "n1");
    assert_eq!(json(&run(&endpoints, &["-o", "json", "sync", "waiting", "--limit", "5"]).out)["total"], 5);
    assert!(run(&endpoints, &["sync", "cancel", "--all"]).out.starts_with("7 waits"));
    assert_eq!(run(&endpoints, &["sync", "cancel"]).code, 2);
}

#[test]
fn an_unknown_outcome_ends_with_four_and_can_be_asked_for() {
    let cluster = Cluster::start(1, Some(0));
    let endpoints = cluster.address(0);
    cluster.script(0, [Step::Hang]);
    // Long enough to connect and to find the primary: what was not sent would not be unknown.
    let unknown = run(&endpoints, &["put", "k", "v", "--timeout", "5s"]);
    assert_eq!(unknown.code, 4, "{}", unknown.err);
    let id = unknown.err.split_whitespace().find(|word| word.trim_end_matches(':').len() == 32).expect("a request id");
    let told = run(&endpoints, &["put", "k", "v", "--request-id", id]);
    assert_eq!(told.code, 0, "{}", told.err);
}

#[test]
fn nobody_there_is_an_error_that_says_what_to_do() {
    let mut cluster = Cluster::start(1, Some(0));
    let endpoints = cluster.address(0);
    cluster.kill(0);
    let status = run(&endpoints, &["status"]);
    assert_eq!((status.code, status.out.as_str()), (1, ""));
    assert!(status.err.contains(&endpoints) && status.err.contains("--endpoints"), "{}", status.err);
    let put = run(&endpoints, &["put", "k", "v", "--timeout", "200ms"]);
    assert_eq!(put.code, 1);
    assert!(put.err.starts_with("error: nobody took the request"), "{}", put.err);
    assert_eq!(run("nonsense", &["status"]).code, 1);
}

#[test]
fn status_is_a_table_or_json() {
    let cluster = Cluster::start(3, Some(1));
    let table = run(&cluster.address(0), &["status"]);
    assert_eq!((table.code, table.err.as_str()), (0, ""));
    assert!(table.out.contains("primary   n1 at ") && table.out.contains("MEMBER"), "{}", table.out);
    let status = json(&run(&cluster.address(0), &["status", "-o", "json"]).out);
    assert_eq!(status["primary"], "n1");
    assert_eq!(status["answered_by"], "n1", "the primary was asked too");
    assert_eq!(status["members"].as_array().map(Vec::len), Some(3));
}

#[test]
fn a_scan_lists_keys_in_their_order() {
    let cluster = Cluster::start(1, Some(0));
    let endpoints = cluster.address(0);
    for key in ["b", "a/2", "a/1"] {
        assert_eq!(run(&endpoints, &["put", key, "v"]).code, 0);
    }
    let scan = run(&endpoints, &["scan", "--prefix", "a/", "-o", "json"]);
    let keys: Vec<Value> = scan.out.lines().map(|line| json(line)["key"].clone()).collect();
    assert_eq!(keys, ["a/1", "a/2"]);
    let table = run(&endpoints, &["scan", "--limit", "1"]);
    assert_eq!(table.out.lines().count(), 2, "{}", table.out);
}

#[test]
fn a_load_accounts_for_every_record() {
    let cluster = Cluster::start(2, Some(0));
    let dir = tempfile::tempdir().expect("a directory");
    let input = dir.path().join("status");
    let stanza = |i: usize| format!("Package: p{i}\nVersion: 1.{i}\nArchitecture: all\n\n");
    std::fs::write(&input, (0..300).map(stanza).collect::<String>()).expect("a file");
    let acks = dir.path().join("acks");
    cluster.script(0, [Step::DoThenLose, Step::Refuse(RpcError::queue_full(1))]);
    let input = input.to_str().expect("text");
    let args =
        ["load", "--prefix", "x/", "--batch", "3", "-o", "json", "--acks", acks.to_str().expect("text"), input, input];
    let load = run(&cluster.address(0), &args);
    assert_eq!((load.code, load.err.as_str()), (0, ""));
    let account = json(&load.out);
    let number = |name: &str| account[name].as_u64().unwrap_or_else(|| panic!("{name} in {account}"));
    assert_eq!((number("records_read"), number("acknowledged"), number("commits")), (600, 600, 200));
    assert_eq!((number("already_done"), number("duplicates")), (3, 300));
    assert_eq!((number("unknown"), number("failed"), number("not_sent")), (0, 0, 0));
    assert_eq!(cluster.done(), 200, "each commit took effect once");

    let acks = std::fs::read_to_string(acks).expect("the acknowledgements");
    let acks: Vec<Value> = acks.lines().map(json).collect();
    assert_eq!(acks.len(), 600);
    let first = acks.iter().find(|ack| ack["key"] == "x/pkg/p7/1.7/all").expect("an acknowledgement");
    assert_eq!(first["timeline"], 1);
    assert!(first["lsn"].as_u64().is_some_and(|lsn| lsn > 1 << 24));
    assert_eq!(first["request_id"].as_str().map(str::len), Some(32));
    assert!(first["t_ms"].as_f64().is_some_and(|ms| ms > 1.7e12));
    let value = run(&cluster.address(0), &["get", "x/pkg/p7/1.7/all"]).out;
    assert_eq!(value, "Package: p7\nVersion: 1.7\nArchitecture: all");
    assert_eq!(first["value_crc32c"], crc32c::crc32c(value.as_bytes()));
}

#[test]
fn a_malformed_record_ends_the_load_and_what_came_before_stands() {
    let cluster = Cluster::start(1, Some(0));
    let input =
        "{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":\"b\",\"value\":\"2\"}\noops\n{\"key\":\"c\",\"value\":\"3\"}\n";
    let load = run_with_input(&cluster.address(0), &["load", "-"], input);
    assert_eq!(load.code, 1);
    assert!(load.err.starts_with("error: standard input, line 3: "), "{}", load.err);
    assert!(load.out.lines().any(|line| line.split_whitespace().eq(["acknowledged", "2"])), "{}", load.out);
    assert_eq!(run(&cluster.address(0), &["get", "b"]).out, "2");
    assert_eq!(run(&cluster.address(0), &["get", "c"]).code, 3);
}

#[test]
fn a_refused_commit_is_failed_and_names_its_record() {
    let cluster = Cluster::start(1, Some(0));
    cluster.script(0, [Step::Refuse(RpcError::invalid_argument("no such thing"))]);
    let input = "{\"key\":\"a\",\"value\":\"1\"}\n";
    let load = run_with_input(&cluster.address(0), &["load", "-", "-o", "json"], input);
    assert_eq!(load.code, 1);
    assert!(
        load.err.contains("standard input, line 1: the record was not acknowledged: no such thing"),
        "{}",
        load.err
    );
    let account = json(&load.out);
    assert_eq!((&account["failed"], &account["acknowledged"]), (&Value::from(1), &Value::from(0)));
    assert!(account["error"].is_string());
}

#[test]
fn a_load_goes_on_over_a_failover() {
    let mut cluster = Cluster::start(3, Some(0));
    let dir = tempfile::tempdir().expect("a directory");
    let input = dir.path().join("records.jsonl");
    let record = |i: usize| format!("{{\"key\":\"k{i}\",\"value\":\"v\"}}\n");
    std::fs::write(&input, (0..2_000).map(record).collect::<String>()).expect("a file");
    let mut load = command(&cluster.address(0), &["load", "-o", "json", input.to_str().expect("text")]);
    let load = load.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    while cluster.done() < 200 {
        std::thread::yield_now();
    }
    cluster.kill(0);
    cluster.promote(2);
    let load = ran(&load.wait_with_output().expect("it ends"));
    assert_eq!(load.code, 0, "{}", load.err);
    assert_eq!(json(&load.out)["acknowledged"], 2_000);
    assert_eq!(cluster.done(), 2_000);
}

#[test]
fn a_signal_ends_a_load_with_exact_accounting() {
    let cluster = Cluster::start(1, Some(0));
    let dir = tempfile::tempdir().expect("a directory");
    let input = dir.path().join("records.jsonl");
    std::fs::write(&input, "{\"key\":\"k\",\"value\":\"v\"}\n".repeat(10)).expect("a file");
    let args = ["load", "-o", "json", "--passes", "0", "--prefix", "{pass}/", input.to_str().expect("text")];
    let mut load = command(&cluster.address(0), &args);
    let load = load.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    while cluster.done() < 100 {
        std::thread::yield_now();
    }
    let killed = Command::new("kill").args(["-TERM", &load.id().to_string()]).status().expect("kill runs");
    assert!(killed.success());
    let load = ran(&load.wait_with_output().expect("it ends"));
    assert_eq!(load.code, 1);
    assert!(load.err.starts_with("error: stopped by a signal"), "{}", load.err);
    let account = json(&load.out);
    assert_eq!(account["acknowledged"], cluster.done());
    assert_eq!((&account["unknown"], &account["failed"]), (&Value::from(0), &Value::from(0)));
}

#[test]
fn a_file_of_acknowledgements_that_cannot_be_written_is_no_surprise_at_the_end() {
    let cluster = Cluster::start(1, Some(0));
    let input = "{\"key\":\"a\",\"value\":\"1\"}\n";
    let load = run_with_input(&cluster.address(0), &["load", "-", "--acks", "there/is/no/such/directory"], input);
    assert_eq!((load.code, load.out.as_str()), (1, ""));
    assert!(load.err.starts_with("error: cannot write there/is/no/such/directory: "), "{}", load.err);
    assert_eq!(cluster.done(), 0);
}

#[test]
fn settings_are_changed_or_refused() {
    let cluster = Cluster::start(2, Some(0));
    let endpoints = cluster.address(1);
    let set = json(&run(&endpoints, &["config", "set", "sync_mode=required", "-o", "json"]).out);
    assert_eq!((&set["generation"], &set["changes"][0]["after"]), (&Value::from(2), &Value::from("required")));
    let empty = json(&run(&endpoints, &["config", "set", "synchronous_standby_names=", "-o", "json"]).out);
    assert_eq!(empty["changes"][0]["after"], "");
    let refused = run(&endpoints, &["config", "set", "nonsense=1"]);
    assert_eq!((refused.code, refused.out.as_str()), (1, ""));
    assert!(refused.err.contains("there is no setting \"nonsense\""), "{}", refused.err);
    let twice = run(&endpoints, &["config", "set", "sync_mode=async", "sync_mode=required"]);
    assert!(twice.code == 1 && twice.err.contains("given twice"), "{}", twice.err);
    let show = run(&endpoints, &["config", "show", "sync_mode"]);
    assert!(show.code == 0 && show.out.contains("as it is"), "{}", show.out);
}

#[test]
fn a_file_is_checked_without_a_server() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.to_str().expect("text").to_owned()
    };
    let good = write("good.toml", "name = \"a\"\n[cluster]\nsync_mode = \"required\"\n");
    let good = run("127.0.0.1:1", &["config", "check", &good]);
    assert_eq!((good.code, good.err.as_str()), (0, ""));
    let bad = write("bad.toml", "naem = \"a\"\n[cluster]\nsync_mode = \"maybe\"\n");
    let checked = run("127.0.0.1:1", &["config", "check", &bad]);
    assert_eq!((checked.code, checked.err.lines().count()), (1, 2), "{}", checked.err);
    assert!(checked.err.contains("did you mean name?") && checked.err.contains("bad.toml:3"), "{}", checked.err);
    let server = run("127.0.0.1:1", &["server", "--config", &bad, "--data-dir", "never-made"]);
    assert_eq!(server.code, 2);
    assert!(server.err.contains("did you mean name?") && server.err.contains("name is missing"), "{}", server.err);
}

#[test]
fn wrong_usage_ends_with_two() {
    for args in [&["frobnicate"][..], &["status", "--frobnicate"], &["put", "k"], &["load"], &["server"]] {
        assert_eq!(run("127.0.0.1:1", args).code, 2, "{args:?}");
    }
    let server = ["server", "--name", "a", "--data-dir", "never-made", "--initial-cluster", "b=127.0.0.1:7401"];
    let server = run("127.0.0.1:1", &server);
    assert_eq!(server.code, 2);
    assert!(server.err.contains("does not have this node, a"), "{}", server.err);
    assert!(!std::path::Path::new("never-made").exists());
}
