use understudy_types::{Lsn, TimelineId};

use super::*;

fn samples() -> Vec<RpcError> {
    let position = Position::new(TimelineId::new(3), Lsn::new(0x0100_00A0));
    vec![
        RpcError::not_primary("a commit", "b", "10.0.0.2:7400"),
        RpcError::no_primary("a commit", "timeline 2 is being decided"),
        RpcError::not_ready("a read", "it is starting"),
        RpcError::not_confirmed("a linearizable read", "1 of 3 voters answered within 1000 ms"),
        RpcError::precondition_failed(b"k\xff\n", "no value", "a value"),
        RpcError::commit_outcome_unknown(Some(position), UnknownWhy::Deadline),
        RpcError::commit_outcome_unknown(None, UnknownWhy::StepDown),
        RpcError::commit_outcome_unknown(Some(position), UnknownWhy::Stopping),
        RpcError::commit_outcome_unknown(Some(position), UnknownWhy::Cancelled),
        RpcError::queue_full(64 << 20),
        RpcError::limit_exceeded("the key", 20_000, 16_384, "bytes"),
        RpcError::invalid_argument("a commit without operations; give at least one"),
        RpcError::wrong_cluster("00000000000000aa", "00000000000000bb"),
        RpcError::wrong_node("00000000000000aa", "00000000000000bb"),
        RpcError::position_abandoned("a read", position, Some(Lsn::new(7)), TimelineId::new(4)),
        RpcError::position_abandoned("a read", position, None, TimelineId::new(4)),
        RpcError::position_not_reached("a read", position, position, "it is behind"),
        RpcError::position_too_old("a read", position, Lsn::new(9)),
        RpcError::too_stale("a read", 500, Some(900), Some(("b", "10.0.0.2:7400"))),
        RpcError::too_stale("a read", 500, None, None),
        RpcError::too_many_reads("a read", 4096, "reads wait"),
        RpcError::node_busy("the request", 2000, "connections are open"),
        RpcError::not_leader("a proposal", Some(("c", "10.0.0.3:7400"))),
        RpcError::not_leader("a proposal", None),
        RpcError::wal_removed(
            "requested WAL segment 000000010000000000000001 has already been removed",
            "000000010000000000000001",
            Lsn::new(1 << 24),
            Lsn::new(1 << 25),
        ),
        RpcError::wal_damaged(
            "requested WAL segment 000000010000000000000001 is damaged on this node",
            "000000010000000000000001",
            Lsn::new(1 << 24),
        ),
        RpcError::internal("the store failed; see the log of this node"),
    ]
}

#[test]
fn what_is_answered_is_read_back() {
    for error in samples() {
        let status = Status::from(error.clone());
        assert_eq!(status.code(), error.code());
        assert_eq!(RpcError::from_status(&status), Some(error));
    }
}

#[test]
fn a_failure_in_a_batch_says_what_the_status_of_a_single_commit_says() {
    for error in samples() {
        let failure = v1::CommitFailure::from(error.clone());
        let status = Status::from(failure);
        assert_eq!(status.code(), error.code());
        assert_eq!(RpcError::from_status(&status), Some(error));
    }
}

#[test]
fn every_reason_has_a_sample_and_a_stable_name() {
    for reason in Reason::ALL {
        assert!(samples().iter().any(|error| error.reason == reason), "{reason}");
        assert_eq!(Reason::from_name(reason.as_str()), Some(reason));
    }
    assert_eq!(Reason::from_name("not_primary"), None);
}

#[test]
fn codes_are_those_of_the_table() {
    let code = |reason: Reason| samples().into_iter().find(|e| e.reason == reason).map(|e| e.code());
    assert_eq!(code(Reason::NotPrimary), Some(Code::FailedPrecondition));
    assert_eq!(code(Reason::NoPrimary), Some(Code::Unavailable));
    assert_eq!(code(Reason::NotConfirmed), Some(Code::Unavailable));
    assert_eq!(code(Reason::PreconditionFailed), Some(Code::Aborted));
    assert_eq!(code(Reason::QueueFull), Some(Code::ResourceExhausted));
    assert_eq!(code(Reason::LimitExceeded), Some(Code::InvalidArgument));
    assert_eq!(code(Reason::PositionAbandoned), Some(Code::FailedPrecondition));
    assert_eq!(code(Reason::PositionNotReached), Some(Code::Unavailable));
    assert_eq!(code(Reason::PositionTooOld), Some(Code::OutOfRange));
    assert_eq!(code(Reason::TooStale), Some(Code::Unavailable));
    assert_eq!(code(Reason::TooManyReads), Some(Code::ResourceExhausted));
    assert_eq!(code(Reason::NodeBusy), Some(Code::ResourceExhausted));
    assert_eq!(RpcError::commit_outcome_unknown(None, UnknownWhy::Deadline).code(), Code::DeadlineExceeded);
    assert_eq!(RpcError::commit_outcome_unknown(None, UnknownWhy::StepDown).code(), Code::Unavailable);
    assert_eq!(RpcError::commit_outcome_unknown(None, UnknownWhy::Stopping).code(), Code::Unavailable);
}

#[test]
fn a_redirect_names_the_primary() {
    let error = RpcError::not_primary("a commit", "b", "10.0.0.2:7400");
    assert_eq!(error.get("primary"), Some("b"));
    assert_eq!(error.get("primary_address"), Some("10.0.0.2:7400"));
    assert!(error.message.contains("b at 10.0.0.2:7400"), "{}", error.message);
}

#[test]
fn a_long_binary_key_stays_small_enough_for_a_header() {
    let error = RpcError::precondition_failed(&[0xff; 16 << 10], "no value", "a value");
    assert!(error.get("key").is_some_and(|key| key.len() <= 5 * KEY_CHARS_MAX), "{error:?}");
    assert_eq!(RpcError::precondition_failed(b"k\xff\n", "x", "y").get("key"), Some("k\\xff\\n"));
}

#[test]
fn what_others_answer_is_not_mistaken_for_ours() {
    assert_eq!(RpcError::from_status(&Status::unavailable("connection refused")), None);
    let foreign = ErrorDetails::with_error_info("NOT_PRIMARY", "example.org", HashMap::new());
    assert_eq!(RpcError::from_status(&Status::with_error_details(Code::FailedPrecondition, "x", foreign)), None);
    let later = ErrorDetails::with_error_info("SOMETHING_NEW", DOMAIN, HashMap::new());
    assert_eq!(RpcError::from_status(&Status::with_error_details(Code::Aborted, "x", later)), None);
}

#[test]
fn what_was_overlooked_is_cut_before_it_becomes_a_header() {
    let error = RpcError::invalid_argument("x".repeat(4 << 20)).with("limit", "y".repeat(4 << 20));
    let status = Status::from(error);
    assert_eq!(status.message().len(), MESSAGE_CHARS_MAX + 3);
    assert!(
        status.details().len() < MESSAGE_CHARS_MAX + 2 * FACT_CHARS_MAX,
        "{} bytes of details",
        status.details().len()
    );
}
