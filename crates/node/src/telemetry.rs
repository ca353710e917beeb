//! Logging: `tracing`, readable on a terminal, JSON on request.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// The filter is not one.
#[derive(Debug, thiserror::Error)]
#[error("\"{filter}\" is not a log filter: {source}; examples: info, debug, understudy_node=debug,info")]
pub struct FilterError {
    filter: String,
    source: tracing_subscriber::filter::ParseError,
}

/// Sends events to standard error from here on. Does nothing when a subscriber stands already.
///
/// # Errors
/// When `filter` cannot be parsed.
pub fn init(format: LogFormat, filter: &str) -> Result<(), FilterError> {
    // The consensus library logs an error for every message to a node that is down. What matters of it we log ourselves.
    let parsed = EnvFilter::try_new(format!("openraft=off,{filter}"))
        .map_err(|source| FilterError { filter: filter.to_owned(), source })?;
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
