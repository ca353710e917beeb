//! What a gRPC status means for the next attempt.
//!
//! The question that matters is whether the attempt may have taken effect: an attempt that a node refused by a
//! reason of [`Reason::may_have_taken_effect`] `false`, and one that never left this process, did not. Everything
//! else is *loose*: it may have, or may still.

use std::error::Error;

use tonic::{Code, Status};
use understudy_rpc::error::{Reason, RpcError};
use understudy_types::{Lsn, Position, TimelineId};

/// What to do after an attempt that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// Give up: trying again would not help.
    Reject(RpcError),
    /// The node named another primary.
    Redirect { name: String, address: String },
    /// This node is not, or no longer, where the primary is to be had: find it anew.
    Find,
    /// The same node, after a pause.
    Pause,
}

/// An attempt that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) next: Next,
    /// It may have taken effect, or may still.
    pub(crate) loose: bool,
    /// For people.
    pub(crate) why: String,
    /// Where the commit stands in that node's log, if it said so.
    pub(crate) position: Option<Position>,
}

pub(crate) fn classify(status: &Status) -> Failed {
    match RpcError::from_status(status) {
        Some(error) => of_node(error),
        None => of_transport(status),
    }
}

fn of_node(error: RpcError) -> Failed {
    let next = match error.reason {
        Reason::NotPrimary => match (error.get("primary"), error.get("primary_address")) {
            (Some(name), Some(address)) => Next::Redirect { name: name.to_owned(), address: address.to_owned() },
            (Some(_) | None, None) | (None, Some(_)) => Next::Find,
        },
        Reason::NoPrimary | Reason::NotReady | Reason::NotConfirmed | Reason::NotLeader | Reason::Internal => {
            Next::Find
        }
        Reason::CommitOutcomeUnknown if error.get("why") == Some("deadline") => Next::Pause,
        // Somebody wants the wait to end: whoever waits is told, and asks again if he wants to.
        Reason::CommitOutcomeUnknown if error.get("why") == Some("cancelled") => Next::Reject(error.clone()),
        Reason::CommitOutcomeUnknown => Next::Find,
        Reason::QueueFull | Reason::PositionNotReached | Reason::TooStale | Reason::TooManyReads | Reason::NodeBusy => {
            Next::Pause
        }
        Reason::PreconditionFailed
        | Reason::LimitExceeded
        | Reason::InvalidArgument
        | Reason::PositionAbandoned
        | Reason::PositionTooOld
        | Reason::WrongCluster
        | Reason::WalRemoved
        | Reason::WalDamaged
        | Reason::WrongNode => Next::Reject(error.clone()),
    };
    let position = position_of(&error);
    Failed { next, loose: error.reason.may_have_taken_effect(), why: error.message, position }
}

fn position_of(error: &RpcError) -> Option<Position> {
    let timeline = TimelineId::new(error.get("timeline")?.parse().ok()?);
    let lsn = Lsn::new(error.get("lsn")?.parse().ok()?);
    Some(Position::new(timeline, lsn))
}

fn of_transport(status: &Status) -> Failed {
    let why = describe(status);
    let failed = |next, loose| Failed { next, loose, why: why.clone(), position: None };
    if never_sent(status) {
        return failed(Next::Find, false);
    }
    match status.code() {
        Code::InvalidArgument
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition => failed(Next::Reject(RpcError::invalid_argument(why.clone())), false),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => failed(Next::Find, true),
    }
}

/// Whether no connection could be made: the request did not leave this process.
fn never_sent(status: &Status) -> bool {
    causes(status).any(|cause| cause.is::<tonic::ConnectError>())
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(status.source(), |&cause| cause.source())
}

/// The status with its innermost cause: "transport error" alone helps nobody.
pub(crate) fn describe(status: &Status) -> String {
    match causes(status).last() {
        Some(cause) if !status.message().contains(&cause.to_string()) => format!("{}: {cause}", status.message()),
        Some(_) | None => status.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use understudy_rpc::error::UnknownWhy;

    use super::*;

    fn of(error: RpcError) -> Failed {
        classify(&Status::from(error))
    }

    #[test]
    fn a_redirect_is_followed_and_nothing_was_done() {
        let failed = of(RpcError::not_primary("a commit", "b", "h:1"));
        assert_eq!(failed.next, Next::Redirect { name: "b".to_owned(), address: "h:1".to_owned() });
        assert!(!failed.loose);
        assert_eq!(of(RpcError::not_primary("a commit", "", "")).next, Next::Find);
    }

    #[test]
    fn an_unknown_outcome_stays_loose_and_keeps_its_position() {
        let position = Position::new(TimelineId::new(2), Lsn::new(99));
        let failed = of(RpcError::commit_outcome_unknown(Some(position), UnknownWhy::Deadline));
        assert_eq!((failed.next, failed.loose, failed.position), (Next::Pause, true, Some(position)));
        let failed = of(RpcError::commit_outcome_unknown(None, UnknownWhy::StepDown));
        assert_eq!((failed.next, failed.loose), (Next::Find, true));
        // A cancelled wait is not begun again, and stays unknown.
        let error = RpcError::commit_outcome_unknown(Some(position), UnknownWhy::Cancelled);
        let failed = of(error.clone());
        assert_eq!((failed.next, failed.loose, failed.position), (Next::Reject(error), true, Some(position)));
    }

    #[test]
    fn what_cannot_succeed_is_not_tried_again() {
        for error in [
            RpcError::precondition_failed(b"k", "no value", "a value"),
            RpcError::invalid_argument("no"),
            RpcError::limit_exceeded("the key", 2, 1, "bytes"),
        ] {
            let failed = of(error.clone());
            assert_eq!((failed.next, failed.loose), (Next::Reject(error), false));
        }
    }

    #[test]
    fn a_broken_connection_is_loose() {
        for code in [Code::Unavailable, Code::Unknown, Code::Cancelled, Code::Internal, Code::DeadlineExceeded] {
            let failed = classify(&Status::new(code, "broken"));
            assert_eq!((failed.next, failed.loose), (Next::Find, true), "{code:?}");
        }
    }
}
