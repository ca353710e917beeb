use clap::Parser;

use super::*;
use crate::args::{Cli, Command};

fn args(flags: &[&str]) -> LoadArgs {
    let Command::Load(args) = Cli::parse_from(["understudy", "load"].iter().chain(flags)).command else {
        panic!("not a load");
    };
    args
}

fn file(dir: &tempfile::TempDir, name: &str, text: &str) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, text).expect("a file");
    path.to_str().expect("text").to_owned()
}

/// Every batch's keys, and the error that ended it.
fn read(flags: &[&str]) -> (Vec<Vec<String>>, Option<String>) {
    let source = Source::new(&args(flags)).expect("a source");
    let mut receiver = batches(source, Arc::default());
    let mut all = Vec::new();
    while let Some(item) = receiver.blocking_recv() {
        match item {
            Ok(batch) => {
                let key = |record: &Record| String::from_utf8(record.key.to_vec()).expect("text");
                all.push(batch.records.iter().map(key).collect());
            }
            Err(error) => return (all, Some(error.to_string())),
        }
    }
    (all, None)
}

const JSON: &str =
    "{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":\"b\",\"value\":\"2\"}\n{\"key\":\"c\",\"value\":\"3\"}\n";
const DEBIAN: &str = "Package: x\nVersion: 1\nArchitecture: all\n";

#[test]
fn formats_are_told_apart_by_their_content() {
    let dir = tempfile::tempdir().expect("a directory");
    let (json, debian, empty) = (file(&dir, "j", JSON), file(&dir, "d", DEBIAN), file(&dir, "e", "\n\n"));
    let (batches, error) = read(&[&json, &empty, &debian]);
    assert_eq!(batches, [["a"], ["b"], ["c"], ["pkg/x/1/all"]]);
    assert_eq!(error, None);
    let (_, error) = read(&[&json, "--format", "deb822"]);
    assert!(error.expect("a refusal").contains("line 1"));
}

#[test]
fn passes_prefixes_and_batches() {
    let dir = tempfile::tempdir().expect("a directory");
    let json = file(&dir, "j", JSON);
    let (batches, _) = read(&[&json, "--prefix", "pass/{pass}/{file}/", "--passes", "2", "--batch", "4"]);
    assert_eq!(
        batches,
        [vec!["pass/1/j/a", "pass/1/j/b", "pass/1/j/c", "pass/2/j/a"], vec!["pass/2/j/b", "pass/2/j/c"]]
    );
}

#[test]
fn what_was_read_before_the_trouble_comes_before_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let bad = file(&dir, "bad.jsonl", &format!("{JSON}oops\n{JSON}"));
    let (batches, error) = read(&[&bad, "--batch", "2"]);
    assert_eq!(batches, [vec!["a", "b"], vec!["c"]]);
    let error = error.expect("a refusal");
    assert!(error.contains("bad.jsonl, line 4: "), "{error}");
}

#[test]
fn records_beyond_the_limits_are_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let empty = file(&dir, "empty", "{\"key\":\"\",\"value\":\"\"}");
    assert!(read(&[&empty]).1.expect("a refusal").contains("line 1: the key is empty"));
    assert_eq!(read(&[&empty, "--prefix", "p"]), (vec![vec!["p".to_owned()]], None));
    let long = file(&dir, "long", &format!("{{\"key\":\"{}\",\"value\":\"\"}}", "k".repeat(KEY_BYTES_MAX + 1)));
    assert!(read(&[&long]).1.expect("a refusal").contains("16385 bytes, the limit is 16384"));
    let large = file(&dir, "large", &format!("{{\"key\":\"k\",\"value\":\"{}\"}}", "v".repeat(VALUE_BYTES_MAX + 1)));
    assert!(read(&[&large]).1.expect("a refusal").contains("4194305 bytes, the limit is 4194304"));
}

#[test]
fn files_are_looked_at_before_anything_is_loaded() {
    let dir = tempfile::tempdir().expect("a directory");
    let json = file(&dir, "j", JSON);
    let missing = dir.path().join("missing");
    let refusal = |flags: &[&str]| Source::new(&args(flags)).err().expect("a refusal").to_string();
    assert!(refusal(&[&json, missing.to_str().expect("text")]).starts_with("cannot open"));
    assert!(refusal(&[dir.path().to_str().expect("text")]).contains("is a directory"));
    assert!(refusal(&["-", "--passes", "2"]).contains("once only"));
}

#[test]
fn the_size_is_known_for_files_only() {
    let dir = tempfile::tempdir().expect("a directory");
    let json = file(&dir, "j", JSON);
    let total = |flags: &[&str]| Source::new(&args(flags)).expect("a source").bytes_total();
    assert_eq!(total(&[&json, "--passes", "3"]), Some(3 * JSON.len() as u64));
    assert_eq!(total(&[&json, "--passes", "0"]), None);
    assert_eq!(total(&["-"]), None);
}

#[test]
fn large_records_make_small_batches() {
    let dir = tempfile::tempdir().expect("a directory");
    let line = format!("{{\"key\":\"k\",\"value\":\"{}\"}}\n", "v".repeat(VALUE_BYTES_MAX));
    let large = file(&dir, "large", &line.repeat(3));
    let (batches, _) = read(&[&large, "--batch", "100"]);
    assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1]);
}
