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

use crate::config::LogFormat;

pub use handle::Telemetry;

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
