//! `get`, `put`, `delete` and `scan`.

use std::io::{IsTerminal, Read as _, stdout};
use std::path::Path;

use anyhow::Context;
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value, json};
use understudy_client::{Client, ClientError, Commit, CommitOutcome, Entry, Scan};
use understudy_rpc::convert::escape;
use understudy_types::limits::VALUE_BYTES_MAX;

use crate::args::{CommitArgs, DeleteArgs, GetArgs, KeyArgs, Output, PutArgs, ScanArgs};
use crate::exit::{Exit, UsageError};
use crate::output::{Grid, JsonPosition, insert_bytes, print, print_bytes, print_json};

/// How much of a key and a value a table shows, in characters.
const KEY_CHARS_MAX: usize = 60;
const VALUE_CHARS_MAX: usize = 40;
/// Rows of a scan that are laid out together: a longer one is printed in pieces, in bounded memory.
const ROWS_MAX: usize = 500;

/// Prints the value as it is, or everything that is known as JSON.
pub async fn get(client: &Client, output: Output, args: GetArgs) -> anyhow::Result<Exit> {
    let key = key_of(args.key, args.keys)?;
    let read = client.read(key.clone(), args.read.options()).await?;
    match (output, &read.found) {
        (Output::Json, found) => {
            let mut object = Map::new();
            insert_bytes(&mut object, "key", &key);
            object.insert("found".to_owned(), found.is_some().into());
            if let Some(found) = found {
                insert_bytes(&mut object, "value", &found.value);
                object.insert("version".to_owned(), json!(JsonPosition::from(found.version)));
            }
            object.insert("read_position".to_owned(), json!(JsonPosition::from(read.position)));
            object.insert("token".to_owned(), json!(read.token.map(|token| token.to_string())));
            print_json(&object)?;
        }
        (Output::Table, Some(found)) => {
            print_bytes(&found.value)?;
            if stdout().is_terminal() && !found.value.ends_with(b"\n") {
                print("\n")?;
            }
        }
        (Output::Table, None) => {
            eprintln!("error: key \"{}\" does not exist, as of {}", escape(&key, KEY_CHARS_MAX), read.position);
        }
    }
    Ok(if read.found.is_some() { Exit::Done } else { Exit::NotSo })
}

/// The bytes of a key as it was given.
fn key_of(text: String, keys: KeyArgs) -> Result<Bytes, UsageError> {
    if !keys.hex_key {
        return Ok(Bytes::from(text));
    }
    let refused = || {
        let shown = escape(text.as_bytes(), KEY_CHARS_MAX);
        UsageError(format!(
            "\"{shown}\" is not a key in hexadecimal digits; give two for each byte, for example 6bff00"
        ))
    };
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let digits: Vec<u8> = text.as_bytes().iter().map(digit).collect::<Option<_>>().ok_or_else(refused)?;
    let pairs = digits.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return Err(refused());
    }
    Ok(pairs.map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// Sets a key.
pub async fn put(client: &Client, output: Output, args: PutArgs) -> anyhow::Result<Exit> {
    let value = match (args.value, args.file) {
        (Some(text), None) => Bytes::from(text),
        (None | Some(_), Some(path)) => read_value(&path)?,
        (None, None) => Bytes::new(),
    };
    let key = key_of(args.key, args.keys)?;
    let mut commit = Commit::new().put(key.clone(), value);
    if args.if_absent {
        commit = commit.if_absent(key.clone());
    }
    make(client, output, with(commit, key, &args.commit)).await
}

/// Deletes a key.
pub async fn delete(client: &Client, output: Output, args: DeleteArgs) -> anyhow::Result<Exit> {
    let key = key_of(args.key, args.keys)?;
    make(client, output, with(Commit::new().delete(key.clone()), key, &args.commit)).await
}

fn with(commit: Commit, key: Bytes, args: &CommitArgs) -> Commit {
    let mut commit = match args.durability {
        Some(level) => commit.level(level),
        None => commit,
    };
    if let Some(version) = args.if_version {
        commit = commit.if_version(key, version);
    }
    match args.request_id {
        Some(request_id) => commit.request_id(request_id),
        None => commit,
    }
}

async fn make(client: &Client, output: Output, commit: Commit) -> anyhow::Result<Exit> {
    let outcome = match client.commit(commit).await {
        Ok(outcome) => outcome,
        Err(error) => {
            if let (Output::Json, Some(told)) = (output, not_committed(&error)) {
                print_json(&told)?;
            }
            return Err(error.into());
        }
    };
    match output {
        Output::Table => print(&committed_text(&outcome))?,
        Output::Json => print_json(&JsonCommit {
            position: outcome.position.into(),
            already_done: outcome.already_done,
            node_id: outcome.node_id.to_string(),
            node_name: outcome.node_name,
            request_id: outcome.request_id.to_string(),
            token: outcome.token.map(|token| token.to_string()),
        })?,
    }
    Ok(Exit::Done)
}

/// What a program wants to know of a commit that was decided against, or whose outcome is unknown. The words for people
/// go to standard error as ever.
fn not_committed(error: &ClientError) -> Option<Value> {
    match error {
        ClientError::Aborted { key, precondition, found, .. } => {
            Some(json!({ "outcome": "aborted", "key": key, "required": precondition, "found": found }))
        }
        ClientError::Unknown { request_id, position, why } => Some(json!({
            "outcome": "unknown",
            "request_id": request_id.to_string(),
            "position": position.map(JsonPosition::from),
            "why": why,
        })),
        ClientError::Unavailable { .. } | ClientError::Invalid { .. } | ClientError::Abandoned { .. } => None,
    }
}

fn committed_text(outcome: &CommitOutcome) -> String {
    let already = if outcome.already_done { "; an earlier request with this id had done it" } else { "" };
    let by = match outcome.node_name.as_str() {
        "" => format!("node {}", outcome.node_id),
        name => name.to_owned(),
    };
    format!("committed at {}, acknowledged by {by}{already}\n", outcome.position)
}

#[derive(Serialize)]
struct JsonCommit {
    position: JsonPosition,
    already_done: bool,
    node_id: String,
    node_name: String,
    request_id: String,
    token: Option<String>,
}

/// Reads a value; never more than a value may have.
fn read_value(path: &Path) -> anyhow::Result<Bytes> {
    let limit = VALUE_BYTES_MAX as u64 + 1;
    let mut value = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_end(&mut value).context("cannot read standard input")?;
    } else {
        let shown = path.display();
        let file = std::fs::File::open(path).map_err(|error| anyhow::anyhow!("cannot open {shown}: {error}"))?;
        file.take(limit).read_to_end(&mut value).map_err(|error| anyhow::anyhow!("cannot read {shown}: {error}"))?;
    }
    if value.len() > VALUE_BYTES_MAX {
        let shown = path.display();
        anyhow::bail!(
            "{shown} has more than {VALUE_BYTES_MAX} bytes, the limit of a value; split it over several keys"
        );
    }
    Ok(value.into())
}

/// Lists keys: a table, or one JSON object a line.
pub async fn scan(client: &Client, output: Output, args: ScanArgs) -> anyhow::Result<Exit> {
    let key = |text: Option<String>| key_of(text.unwrap_or_default(), args.keys);
    let range = match args.prefix {
        Some(prefix) => Scan::prefix(key(Some(prefix))?),
        None => Scan::range(key(args.start)?, key(args.end)?),
    };
    let mut scan = client.scan(range.limit(args.limit).read(args.read.options())).await?;
    let mut rows: Vec<Entry> = Vec::new();
    let mut first = true;
    loop {
        let entry = scan.next().await;
        let ended = !matches!(entry, Some(Ok(_)));
        if ended || rows.len() == ROWS_MAX {
            print(&rows_text(output, &rows, first)?)?;
            first = false;
            rows.clear();
        }
        match entry {
            Some(entry) => rows.push(entry?),
            None => return Ok(Exit::Done),
        }
    }
}

fn rows_text(output: Output, rows: &[Entry], first: bool) -> anyhow::Result<String> {
    match output {
        Output::Table if rows.is_empty() => Ok(String::new()),
        Output::Table => {
            let mut grid = Grid::new(&["KEY", "VERSION", ">BYTES", "VALUE"]);
            for entry in rows {
                grid.row(vec![
                    escape(&entry.key, KEY_CHARS_MAX),
                    entry.version.to_string(),
                    entry.value.len().to_string(),
                    escape(&entry.value, VALUE_CHARS_MAX),
                ]);
            }
            let text = grid.render();
            let body = text.split_once('\n').map_or("", |(_, body)| body);
            Ok(if first { text } else { body.to_owned() })
        }
        Output::Json => {
            let mut text = String::new();
            for entry in rows {
                let mut object = Map::new();
                insert_bytes(&mut object, "key", &entry.key);
                insert_bytes(&mut object, "value", &entry.value);
                object.insert("version".to_owned(), json!(JsonPosition::from(entry.version)));
                text.push_str(&serde_json::to_string(&Value::Object(object))?);
                text.push('\n');
            }
            Ok(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use understudy_types::{Lsn, Position, TimelineId};

    use super::*;

    fn entry(key: &'static [u8], value: &'static [u8]) -> Entry {
        let version = Position::new(TimelineId::new(2), Lsn::new(0x0100_00A0));
        Entry { key: Bytes::from_static(key), value: Bytes::from_static(value), version }
    }

    #[test]
    fn a_scan_is_a_table_that_shows_binary_safely() {
        let rows = [entry(b"a", b"one\ntwo"), entry(b"b\xff", &[b'x'; 50])];
        let text = rows_text(Output::Table, &rows, true).expect("a table");
        assert_eq!(
            text,
            "KEY    VERSION       BYTES  VALUE\n\
             a      0/010000A0@2      7  one\\ntwo\n\
             b\\xff  0/010000A0@2     50  xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…\n"
        );
        let more = rows_text(Output::Table, &rows, false).expect("a table");
        assert!(!more.contains("VERSION"), "{more}");
        assert_eq!(rows_text(Output::Table, &[], true).expect("nothing"), "");
    }

    #[test]
    fn a_key_in_hexadecimal_digits_may_be_any_bytes() {
        let key = |text: &str, hex_key| key_of(text.to_owned(), KeyArgs { hex_key });
        assert_eq!(key("6bff00", true).expect("a key"), Bytes::from_static(b"k\xff\x00"));
        assert_eq!(key("6bff00", false).expect("a key"), "6bff00");
        for text in ["6", "6bf", "xy", "6b ff", "0x6b", "ä1"] {
            assert!(key(text, true).expect_err(text).to_string().contains("two for each byte"), "{text}");
        }
    }

    #[test]
    fn a_scan_in_json_is_one_object_a_line() {
        let text = rows_text(Output::Json, &[entry(b"a", b"1"), entry(b"\xff", b"")], true).expect("json");
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
        assert_eq!(lines[0], json!({"key": "a", "value": "1", "version": {"timeline": 2, "lsn": 0x0100_00A0}}));
        assert_eq!(lines[1]["key_base64"], "/w==");
    }
}
