//! What a call can come to besides success.

use understudy_rpc::error::{Reason, RpcError};
use understudy_types::{Position, RequestId};

/// Why a call did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// A precondition did not hold: nothing was written, and nothing will be.
    #[error("{message}")]
    Aborted {
        /// Whose key it was, escaped for printing.
        key: String,
        /// What the commit required of it.
        precondition: String,
        /// What was found instead: the version of the value, or that there is none.
        found: Box<str>,
        /// The whole story.
        message: String,
    },
    /// The commit may have taken effect, or may still. Sending it again with the same request id tells.
    #[error("the outcome of commit {request_id} is unknown: {why}; send it again with this request id to learn it")]
    Unknown {
        /// Of the commit.
        request_id: RequestId,
        /// Where it stands in the log of the primary that had it last, if that said so.
        position: Option<Position>,
        /// What happened.
        why: String,
    },
    /// Nobody took the request before its deadline. A commit did not take effect, and will not.
    #[error(
        "nobody took the request before its deadline: {why}; check the cluster with `understudy status`, and try again"
    )]
    Unavailable {
        /// What the last attempts came to.
        why: String,
    },
    /// The request cannot be carried out, ever: a limit, a malformed argument, another cluster.
    #[error("{message}")]
    Invalid {
        /// What was asked, what is so, what to do.
        message: String,
    },
    /// What a token or a position stands for was lost in a failover: it was acknowledged at no safe level. A session goes on
    /// after [`crate::Session::reset`].
    #[error("{message}")]
    Abandoned {
        /// What was asked, where the timeline ended, what to do.
        message: String,
    },
}

impl ClientError {
    /// What a refusal that no other attempt can change means.
    pub(crate) fn refused(error: RpcError) -> Self {
        let message = error.message;
        if error.reason == Reason::PositionAbandoned { Self::Abandoned { message } } else { Self::Invalid { message } }
    }
}

impl From<crate::EndpointError> for ClientError {
    fn from(error: crate::EndpointError) -> Self {
        Self::Invalid { message: error.to_string() }
    }
}
