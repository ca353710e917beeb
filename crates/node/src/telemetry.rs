//! What a node tells about itself, beside its services: the log (here), metrics and traces.
//!
//! | module | what |
//! |---|---|
//! | [`table`] | every metric, once |
//! | [`instruments`] | what is counted and timed while the node works |
//! | [`stages`] | joins what the engine's threads tell of a commit |
//! | [`spans`], [`otlp`] | makes spans of it and exports them |
//! | [`collect`], [`exposition`] | what a scrape is answered with |
//! | [`handle`] | what the rest of the node holds |
//!
//! Events go to standard error by `tracing`, readable on a terminal, JSON on request. They are not exported: spans are made
//! of recorded times, from one place. Nothing here may make a commit wait.

pub mod collect;
pub mod exposition;
pub mod handle;
pub mod instruments;
pub mod otlp;
pub mod spans;
pub mod stages;
pub mod table;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config::LogFormat;

pub use handle::Telemetry;

const LEVELS: &str = "error, warn, info, debug, trace or off";

/// The filter is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{filter}\" is not a log filter: {why}")]
pub struct FilterError {
    filter: String,
    /// What is wrong, and what would do.
    pub why: String,
}

/// What is logged under `filter`: levels and `target=level`, comma separated, as in `RUST_LOG`. A word alone must be a
/// level: as a target it would let nothing else through, and whoever writes `verbose` means a level.
///
/// # Errors
/// When it is not one.
pub fn parse_filter(filter: &str) -> Result<EnvFilter, FilterError> {
    let refused = |why: String| FilterError { filter: filter.to_owned(), why };
    let directives = || filter.split(',').map(str::trim).filter(|directive| !directive.is_empty());
    let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
    let is_word = |directive: &&str| !directive.contains(['=', '[']);
    if let Some(word) = directives().filter(is_word).find(|word| !is_level(word)) {
        return Err(refused(format!("{word} is no level; give {LEVELS}, or a filter like {word}=debug,info")));
    }
    if directives().next().is_none() {
        return Err(refused(format!("it is empty; give {LEVELS}")));
    }
    // The consensus library logs an error for every message to a node that is down. What matters of it we log ourselves.
    EnvFilter::try_new(format!("openraft=off,{filter}"))
        .map_err(|error| refused(format!("{error}; give {LEVELS}, or a filter like understudy_node=debug,info")))
}

/// Sends events to standard error from here on. Does nothing when a subscriber stands already.
///
/// # Errors
/// When `filter` cannot be parsed.
pub fn init(format: LogFormat, filter: &str) -> Result<(), FilterError> {
    let parsed = parse_filter(filter)?;
    let builder = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(std::io::stderr);
    let installed = match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    if installed.is_err() {
        tracing::debug!("a subscriber was installed before");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_filters_are_taken() {
        for filter in ["info", "WARN", "off", "understudy_wal=debug,info", "understudy_node::agent=trace, warn"] {
            assert!(parse_filter(filter).is_ok(), "{filter}");
        }
    }

    #[test]
    fn a_word_that_is_no_level_is_refused_with_the_levels() {
        for filter in ["verbose", "warning", "info,understudy_wal", "understudy_wal=loud", "", " , "] {
            let error = parse_filter(filter).expect_err(filter);
            assert!(error.why.contains("error, warn, info, debug, trace"), "{error}");
        }
        let error = parse_filter("info,warning").expect_err("no level");
        assert!(error.why.starts_with("warning is no level"), "{error}");
    }
}
