//! The configuration file: TOML, every value as text with its line, whatever it is worth.
//!
//! The keys of a server stand at the top, those of a new cluster under `[cluster]`. What is no setting is refused with
//! the nearest name; so is a value whose TOML type the setting does not take. Everything that is wrong is said.

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml_edit::{Document, Item, Table, TableLike, Value};
use understudy_core::settings::{Kind, SETTINGS, Setting, nearest};

use super::origin::Origin;
use super::table::{SERVER_SETTINGS, ServerKind, ServerSetting};
use super::{ConfigError, parse_member};

/// Nobody's configuration is larger.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The table of a new cluster's settings.
const CLUSTER: &str = "cluster";

/// What somebody gave for a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    pub text: String,
    pub origin: Origin,
}

/// Reads the file; adds to `errors` what is wrong with it.
pub fn read(path: &Path, errors: &mut Vec<ConfigError>) -> BTreeMap<String, Given> {
    let failed = |why: String| ConfigError::File { path: path.to_owned(), why };
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text));
    if let Err(error) = read {
        errors.push(failed(error.to_string()));
        return BTreeMap::new();
    }
    if text.len() as u64 > FILE_BYTES_MAX {
        errors.push(failed(format!("it has more than {FILE_BYTES_MAX} bytes")));
        return BTreeMap::new();
    }
    parse(path, &text, errors)
}

/// The same of a text.
pub fn parse(path: &Path, text: &str, errors: &mut Vec<ConfigError>) -> BTreeMap<String, Given> {
    let mut reader = Reader { path, text, given: BTreeMap::new(), errors };
    match Document::parse(text) {
        Ok(document) => reader.top(document.as_table()),
        Err(error) => {
            let line = reader.line(error.span());
            let why = error.message().lines().collect::<Vec<_>>().join(", ");
            reader.errors.push(ConfigError::Syntax { path: path.to_owned(), line, why });
        }
    }
    reader.given
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    given: BTreeMap<String, Given>,
    errors: &'a mut Vec<ConfigError>,
}

impl Reader<'_> {
    /// From 1.
    fn line(&self, span: Option<Range<usize>>) -> usize {
        let at = span.map_or(0, |span| span.start).min(self.text.len());
        self.text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1
    }

    fn refuse(&mut self, line: usize, why: String) {
        let path: PathBuf = self.path.to_owned();
        self.errors.push(ConfigError::Key { path, line, why });
    }

    fn take(&mut self, name: &str, line: usize, text: Result<String, String>) {
        match text {
            Ok(text) => {
                let origin = Origin::File { path: self.path.to_owned(), line };
                self.given.insert(name.to_owned(), Given { text, origin });
            }
            Err(why) => self.refuse(line, why),
        }
    }

    fn line_of(&self, table: &dyn TableLike, key: &str) -> usize {
        let span = table.get_key_value(key).and_then(|(key, item)| key.span().or_else(|| item.span()));
        self.line(span)
    }

    fn top(&mut self, table: &Table) {
        for (key, item) in table {
            let line = self.line_of(table, key);
            let server = SERVER_SETTINGS.iter().find(|setting| setting.name == key);
            match (server, item.as_table_like()) {
                (Some(setting), _) => self.take(key, line, server_text(setting, item)),
                (None, Some(cluster)) if key == CLUSTER => self.cluster(cluster),
                (None, _) if Setting::find(key).is_ok() => {
                    self.refuse(line, format!("{key} is a setting of the cluster; put it under [cluster]"))
                }
                (None, _) => {
                    let known = SERVER_SETTINGS.iter().map(|setting| setting.name).chain([CLUSTER]);
                    let known = known.chain(SETTINGS.iter().map(|setting| setting.name));
                    self.refuse(line, unknown(key, nearest(key, known)));
                }
            }
        }
    }

    fn cluster(&mut self, table: &dyn TableLike) {
        for (key, item) in table.iter() {
            let line = self.line_of(table, key);
            match Setting::find(key) {
                Ok(setting) => self.take(key, line, cluster_text(setting, item)),
                Err(_) if SERVER_SETTINGS.iter().any(|setting| setting.name == key) => {
                    self.refuse(line, format!("{key} is a setting of the server; put it above [cluster]"))
                }
                Err(_) => {
                    let known = SETTINGS.iter().map(|setting| setting.name);
                    self.refuse(line, unknown(key, nearest(key, known)));
                }
            }
        }
    }
}

fn unknown(key: &str, nearest: Option<&str>) -> String {
    let key: String = key.chars().take(80).collect();
    match nearest {
        Some(name) => format!("there is no setting \"{key}\"; did you mean {name}?"),
        None => format!("there is no setting \"{key}\"; docs/configuration.md lists all there are"),
    }
}

fn of_type(name: &str, item: &Item, expected: &str) -> String {
    format!("{name} is {}; give {expected}", article(item.type_name()))
}

fn article(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {kind}")
}

fn server_text(setting: &ServerSetting, item: &Item) -> Result<String, String> {
    let wrong = |expected: &str| Err(of_type(setting.name, item, expected));
    match setting.kind {
        ServerKind::Text | ServerKind::Address => match item.as_str() {
            Some(text) => Ok(text.to_owned()),
            None => wrong(&format!("a string: {}", setting.bounds)),
        },
        ServerKind::Number => match item.as_integer() {
            Some(number) => Ok(number.to_string()),
            None => wrong(&format!("a number: {}", setting.bounds)),
        },
        ServerKind::Switch => match item.as_bool() {
            Some(switch) => Ok(switch.to_string()),
            None => wrong("true or false, without quotes"),
        },
        ServerKind::Size => match (item.as_str(), item.as_integer()) {
            (Some(text), _) => Ok(text.to_owned()),
            (None, Some(bytes)) => Ok(bytes.to_string()),
            (None, None) => wrong("a string with a unit, like \"16MiB\", or a number of bytes"),
        },
        ServerKind::Members => members_text(item)
            .ok_or_else(|| of_type(setting.name, item, "an array of strings like \"a=10.0.0.1:7400\", or a table")),
    }
}

/// All forms of a list of members, as the one that flags have.
fn members_text(item: &Item) -> Option<String> {
    if let Some(text) = item.as_str() {
        return Some(text.to_owned());
    }
    if let Some(array) = item.as_array() {
        return array.iter().map(Value::as_str).collect::<Option<Vec<_>>>().map(|members| members.join(","));
    }
    let members = item.as_table_like()?.iter().map(|(name, address)| {
        let member = format!("{name}={}", address.as_str()?);
        // A comma in a name would be read as two members.
        parse_member(&member).is_ok().then_some(member)
    });
    members.collect::<Option<Vec<_>>>().map(|members| members.join(","))
}

fn cluster_text(setting: &Setting, item: &Item) -> Result<String, String> {
    let number = match setting.kind {
        Kind::Size(_) | Kind::Count(_) => item.as_integer(),
        // Zero alone needs no unit.
        Kind::Time(_) => item.as_integer().filter(|number| *number == 0),
        Kind::StandbyNames | Kind::Choice { .. } => None,
    };
    match (item.as_str(), number) {
        (Some(text), _) => Ok(text.to_owned()),
        (None, Some(number)) => Ok(number.to_string()),
        (None, None) => {
            let expected = match setting.kind {
                Kind::Count(_) => format!("a number: {}", setting.bounds()),
                Kind::Size(_) | Kind::Time(_) => {
                    format!("a string with a unit, like \"{}\": {}", setting.default(), setting.bounds())
                }
                Kind::StandbyNames | Kind::Choice { .. } => {
                    format!("a string, like \"{}\": {}", setting.default(), setting.bounds())
                }
            };
            Err(of_type(setting.name, item, &expected))
        }
    }
}
