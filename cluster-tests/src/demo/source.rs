//! What is loaded: this machine's own package database, or a file.
//!
//! A Debian control file (deb822) is stanzas of `Field: value` lines between empty lines; each stanza becomes a record
//! with the key `pkg/<Package>/<Version>/<Architecture>` and the stanza as its value. A file of JSON lines has
//! `{"key": .., "value": ..}` on each.

use std::collections::HashSet;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use serde::Deserialize;

const DPKG_STATUS: &str = "/var/lib/dpkg/status";
const APT_LISTS: &str = "/var/lib/apt/lists";
/// Unpacks whatever apt has packed its lists with.
const APT_HELPER: &str = "/usr/lib/apt/apt-helper";

/// One key and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Within its source.
    pub key: String,
    /// Shares the memory of the source's text.
    pub value: Bytes,
}

/// Records that come from one place.
#[derive(Debug, Clone)]
pub struct Source {
    /// Goes into the keys.
    pub name: String,
    /// With different keys.
    pub records: Vec<Record>,
    /// Stanzas without a package, version or architecture, and repeated keys.
    pub skipped: usize,
}

/// The records of `dpkg` and of the apt lists, where there are any.
///
/// # Errors
/// When this is not a Debian machine.
pub fn of_this_machine() -> Result<Vec<Source>> {
    let Ok(status) = std::fs::read(DPKG_STATUS) else {
        bail!(
            "there is no {DPKG_STATUS}: this is no Debian machine; give --input FILE with JSON lines or Debian control stanzas"
        );
    };
    let mut sources = vec![of_stanzas("dpkg-status", status.into())];
    let mut lists: Vec<_> =
        std::fs::read_dir(APT_LISTS).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    lists.sort();
    for list in lists {
        let name = list.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some((name, _)) = name.split_once("_Packages") else { continue };
        match unpacked(&list) {
            Ok(text) => sources.push(of_stanzas(name, text.into())),
            Err(error) => eprintln!("demo: left out {}: {error:#}", list.display()),
        }
    }
    sources.retain(|source| !source.records.is_empty());
    ensure!(!sources.is_empty(), "{DPKG_STATUS} holds no package; give --input FILE");
    Ok(sources)
}

/// The records of a file.
///
/// # Errors
/// When it cannot be read, holds nothing, or a line of it is no record: the line's number is named.
pub fn of_file(path: &Path) -> Result<Source> {
    let text: Bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?.into();
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let first = text.iter().find(|byte| !byte.is_ascii_whitespace());
    let source = match first {
        Some(b'{') => of_json_lines(&name, &text).with_context(|| path.display().to_string())?,
        Some(_) | None => of_stanzas(&name, text),
    };
    ensure!(
        !source.records.is_empty(),
        "{} holds no record: expected JSON lines or Debian control stanzas",
        path.display()
    );
    Ok(source)
}

fn unpacked(list: &Path) -> Result<Vec<u8>> {
    if !Path::new(APT_HELPER).exists() {
        return std::fs::read(list).context("cannot read it");
    }
    let mut command = Command::new(APT_HELPER);
    let output = command.arg("cat-file").arg(list).stderr(Stdio::null()).output().context("cannot run apt-helper")?;
    ensure!(output.status.success(), "apt-helper cannot unpack it: {}", output.status);
    Ok(output.stdout)
}

#[derive(Deserialize)]
struct Line {
    key: String,
    value: serde_json::Value,
}

fn of_json_lines(name: &str, text: &Bytes) -> Result<Source> {
    let mut source = Source { name: name.to_owned(), records: Vec::new(), skipped: 0 };
    let mut keys = HashSet::new();
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let Line { key, value } = serde_json::from_slice(line).with_context(|| format!("line {}", index + 1))?;
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        source.add(&mut keys, Some(key), value.into());
    }
    Ok(source)
}

fn of_stanzas(name: &str, text: Bytes) -> Source {
    let mut source = Source { name: name.to_owned(), records: Vec::new(), skipped: 0 };
    let mut keys = HashSet::new();
    let mut begin = 0;
    let mut at = 0;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        if line.trim_ascii().is_empty() {
            source.add_stanza(&mut keys, text.slice(begin..at));
            begin = at + line.len();
        }
        at += line.len();
    }
    source.add_stanza(&mut keys, text.slice(begin..at));
    source
}

impl Source {
    fn add_stanza(&mut self, keys: &mut HashSet<String>, stanza: Bytes) {
        if !stanza.trim_ascii().is_empty() {
            let key = key_of(&stanza);
            self.add(keys, key, stanza);
        }
    }

    fn add(&mut self, keys: &mut HashSet<String>, key: Option<String>, value: Bytes) {
        match key {
            Some(key) if !key.is_empty() && keys.insert(key.clone()) => self.records.push(Record { key, value }),
            Some(_) | None => self.skipped += 1,
        }
    }
}

fn key_of(stanza: &[u8]) -> Option<String> {
    let field = |name: &str| {
        let mut lines = stanza.split(|byte| *byte == b'\n');
        let value = lines.find_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b":"))?;
        Some(String::from_utf8_lossy(value.trim_ascii()).into_owned()).filter(|value| !value.is_empty())
    };
    Some(format!("pkg/{}/{}/{}", field("Package")?, field("Version")?, field("Architecture")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANZAS: &str = "Package: adduser\nVersion: 3.134\nArchitecture: all\nDescription: add\n Version: not a field\n\n\
                           Package: broken\nArchitecture: all\n\n\n\
                           Package: apt\nArchitecture: amd64\nVersion: 2.6.1\n\
                           \n\
                           Package: apt\nArchitecture: amd64\nVersion: 2.6.1\n";

    #[test]
    fn stanzas_become_records_under_package_version_and_architecture() {
        let source = of_stanzas("dpkg-status", Bytes::from_static(STANZAS.as_bytes()));
        let keys: Vec<&str> = source.records.iter().map(|record| record.key.as_str()).collect();
        assert_eq!(keys, ["pkg/adduser/3.134/all", "pkg/apt/2.6.1/amd64"]);
        assert_eq!(source.skipped, 2);
        assert!(source.records[0].value.ends_with(b" Version: not a field\n"));
    }

    #[test]
    fn json_lines_become_records() {
        let text =
            Bytes::from_static(b"{\"key\": \"a\", \"value\": \"x\"}\n\n{\"key\": \"b\", \"value\": {\"n\": 1}}\n");
        let source = of_json_lines("f", &text).expect("well formed");
        assert_eq!(source.records[1], Record { key: "b".to_owned(), value: Bytes::from_static(b"{\"n\":1}") });
    }

    #[test]
    fn a_malformed_line_is_named_by_its_number() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("input.jsonl");
        std::fs::write(&path, "{\"key\": \"a\", \"value\": \"x\"}\n{\"key\": 1}\n").expect("written");
        let error = format!("{:#}", of_file(&path).expect_err("malformed"));
        assert!(error.contains("input.jsonl") && error.contains("line 2"), "{error}");
    }

    #[test]
    fn an_empty_file_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("empty");
        std::fs::write(&path, "\n \n").expect("written");
        assert!(of_file(&path).is_err());
    }
}
