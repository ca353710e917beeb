//! Exit codes.

use std::process::ExitCode;

use understudy_client::ClientError;
use understudy_node::config::{ConfigError, ConfigErrors};
use understudy_node::server::ServerError;

/// An argument that only shows to be wrong beside others.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// What the process says when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// Failed.
    Failed,
    /// Wrong flags, arguments or settings; `clap` uses the same code.
    Usage,
    /// No such key, or a precondition that did not hold.
    NotSo,
    /// The commit may or may not take effect.
    Unknown,
}

impl Exit {
    /// What an error means.
    pub fn of(error: &anyhow::Error) -> Self {
        if let Some(error) = error.downcast_ref::<ClientError>() {
            return match error {
                ClientError::Aborted { .. } => Self::NotSo,
                ClientError::Unknown { .. } => Self::Unknown,
                ClientError::Unavailable { .. } | ClientError::Invalid { .. } | ClientError::Abandoned { .. } => {
                    Self::Failed
                }
            };
        }
        let wrong_setting = error.is::<ConfigError>()
            || error.is::<ConfigErrors>()
            || error.is::<UsageError>()
            || matches!(error.downcast_ref(), Some(ServerError::Config(_) | ServerError::Filter(_)));
        if wrong_setting { Self::Usage } else { Self::Failed }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0_u8,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::NotSo => 3,
            Exit::Unknown => 4,
        })
    }
}
