//! Puts a configuration together: default, file, environment, flags, each before the one named earlier.
//!
//! Everything that is wrong is collected, and said at once. The environment is given as it was: nothing here looks at
//! the process.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use understudy_core::settings::{self, SETTINGS, nearest};
use understudy_types::SegmentSize;
use understudy_types::shown::cut;

use super::file::{self, Given};
use super::origin::{Origin, flag, variable};
use super::table::{Draft, SERVER_SETTINGS};
use super::{ConfigError, ServerConfig};

/// Names the file, where no flag does.
const FILE_VARIABLE: &str = "UNDERSTUDY_CONFIG";
/// Begins every variable of ours.
const PREFIX: &str = "UNDERSTUDY_";
/// Those that are not settings.
const OTHER_VARIABLES: [&str; 2] = [FILE_VARIABLE, "UNDERSTUDY_ENDPOINTS"];

/// What a configuration is put together from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// Of the process; only what begins with `UNDERSTUDY_`, and `RUST_LOG`, is looked at.
    pub environment: BTreeMap<String, String>,
    /// By the name of the setting.
    pub flags: BTreeMap<String, String>,
}

/// Everything that is wrong; at least one error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&all.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

/// The checked configuration.
///
/// # Errors
/// Everything that is wrong, not only the first.
pub fn load(sources: Sources) -> Result<ServerConfig, ConfigErrors> {
    let mut errors = Vec::new();
    let given = layers(&sources, &mut errors);
    let draft = draft(&given, &mut errors);
    match assemble(draft, given, sources, &mut errors) {
        Some(config) if errors.is_empty() => Ok(config),
        Some(_) | None => Err(ConfigErrors(errors)),
    }
}

/// What is wrong with a file by itself: what it does not say may come from elsewhere.
pub fn check_file(path: &Path) -> Vec<ConfigError> {
    let sources = Sources { file: Some(path.to_owned()), ..Sources::default() };
    let mut errors = Vec::new();
    let given = layers(&sources, &mut errors);
    let mut draft = draft(&given, &mut errors);
    // Whose cluster it is shows only when the file says who this node is.
    if draft.name.is_none() {
        draft.name = draft.initial_cluster.first().map(|(name, _)| name.clone());
        draft.advertise = draft.initial_cluster.first().map(|(_, address)| address.clone());
    }
    assemble(draft, given, sources, &mut errors);
    errors.retain(|error| !matches!(error, ConfigError::Missing { .. }));
    errors
}

/// Variables that look like a misspelt setting of ours: name, and what was probably meant. Others may well begin the same
/// way, so this is for a warning.
pub fn strange_variables(environment: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let known: Vec<String> = all_names().map(variable).chain(OTHER_VARIABLES.map(str::to_owned)).collect();
    let ours = environment.keys().filter(|name| name.starts_with(PREFIX) && !known.contains(*name));
    let meant = |name: &String| {
        let bare = name.strip_prefix(PREFIX)?;
        let near = nearest(bare, known.iter().filter_map(|known| known.strip_prefix(PREFIX)))?;
        Some((name.clone(), format!("{PREFIX}{near}")))
    };
    ours.filter_map(meant).collect()
}

fn all_names() -> impl Iterator<Item = &'static str> {
    SERVER_SETTINGS.iter().map(|setting| setting.name).chain(SETTINGS.iter().map(|setting| setting.name))
}

/// The variable that gives this setting, and its text. An empty one is as good as none, but for the rule that may be empty.
fn variable_of(sources: &Sources, name: &str) -> Option<(String, String)> {
    let also = SERVER_SETTINGS.iter().find(|setting| setting.name == name).and_then(|setting| setting.also);
    let may_be_empty = name == "synchronous_standby_names";
    [Some(variable(name)), also.map(str::to_owned)].into_iter().flatten().find_map(|key| {
        let text = sources.environment.get(&key).filter(|text| may_be_empty || !text.is_empty())?;
        Some((key, text.clone()))
    })
}

fn layers(sources: &Sources, errors: &mut Vec<ConfigError>) -> BTreeMap<String, Given> {
    let named = sources.environment.get(FILE_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
    let path = sources.file.clone().or(named);
    let mut given = path.map(|path| file::read(&path, errors)).unwrap_or_default();
    for name in all_names() {
        if let Some((key, text)) = variable_of(sources, name) {
            given.insert(name.to_owned(), Given { text, origin: Origin::Environment(key) });
        }
        if let Some(text) = sources.flags.get(name) {
            given.insert(name.to_owned(), Given { text: text.clone(), origin: Origin::Flag(name) });
        }
    }
    given
}

/// The values that parse.
fn draft(given: &BTreeMap<String, Given>, errors: &mut Vec<ConfigError>) -> Draft {
    let mut draft = Draft::default();
    for setting in &SERVER_SETTINGS {
        if let Some(Err(why)) = setting.default.map(|text| (setting.set)(&mut draft, text)) {
            errors.push(value_error(setting.name, &Origin::Default, setting.default.unwrap_or_default(), why));
        }
        let Some(Given { text, origin }) = given.get(setting.name) else { continue };
        if let Err(why) = (setting.set)(&mut draft, text) {
            errors.push(value_error(setting.name, origin, text, why));
        }
    }
    for setting in &SETTINGS {
        let Some(Given { text, origin }) = given.get(setting.name) else { continue };
        if let Err(error) = setting.set(&mut draft.settings, text) {
            errors.push(value_error(setting.name, origin, text, error.to_string()));
        }
    }
    errors.extend(settings::check(&draft.settings).into_iter().map(ConfigError::from));
    draft
}

fn value_error(name: &str, origin: &Origin, text: &str, why: String) -> ConfigError {
    ConfigError::Value { name: name.to_owned(), origin: origin.clone(), text: cut(text, 200), why }
}

/// None when something is missing. What holds between settings is checked only once each is right by itself.
fn assemble(
    draft: Draft,
    given: BTreeMap<String, Given>,
    sources: Sources,
    errors: &mut Vec<ConfigError>,
) -> Option<ServerConfig> {
    let missing = |name| ConfigError::Missing { name, flag: flag(name), variable: variable(name) };
    let gone = [("name", draft.name.is_none()), ("data_dir", draft.data_dir.is_none())];
    let is_right = errors.is_empty();
    // One that was given and does not parse has been told of.
    errors
        .extend(gone.iter().filter(|(name, gone)| *gone && !given.contains_key(*name)).map(|(name, _)| missing(*name)));
    let listen = draft.listen?;
    let config = ServerConfig {
        name: draft.name?,
        data_dir: draft.data_dir.unwrap_or_default(),
        listen,
        advertise: draft.advertise.unwrap_or_else(|| listen.to_string()),
        initial_cluster: draft.initial_cluster,
        segment_size: draft.segment_size.unwrap_or(SegmentSize::DEFAULT),
        failover_priority: draft.failover_priority,
        no_sync: draft.no_sync,
        settings: draft.settings,
        log_format: draft.log_format,
        log_level: draft.log_level,
        http_listen: draft.http_listen,
        max_connections: draft.max_connections,
        origins: given.into_iter().map(|(name, given)| (name, given.origin)).collect(),
        sources,
    };
    if is_right && let Err(error) = config.check() {
        errors.push(error);
    }
    Some(config)
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
