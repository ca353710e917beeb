use bytes::Bytes;

use super::*;

const LEVEL: DurabilityLevel = DurabilityLevel::On;

fn delete(key: &'static [u8]) -> v1::Operation {
    let delete = v1::Delete { key: key.into() };
    v1::Operation { operation: Some(v1::operation::Operation::Delete(delete)) }
}

#[test]
fn a_commit_without_a_level_has_the_clusters_default() {
    let request = v1::CommitRequest { operations: vec![delete(b"k")], ..Default::default() };
    for default in DurabilityLevel::ALL {
        assert_eq!(commit(request.clone(), default).expect("valid").level, default);
        let named = v1::CommitRequest { durability: v1::Durability::RemoteWrite.into(), ..request.clone() };
        assert_eq!(commit(named, default).expect("valid").level, DurabilityLevel::RemoteWrite);
    }
}

#[test]
fn a_batch_is_bounded_as_a_whole() {
    let small = v1::CommitRequest { operations: vec![delete(b"k")], ..Default::default() };
    assert!(check_batch(&[]).is_err_and(|error| error.message.contains("no commits")));
    assert!(check_batch(&vec![small.clone(); limits::BATCH_COMMITS_MAX]).is_ok());
    let error = check_batch(&vec![small; limits::BATCH_COMMITS_MAX + 1]).expect_err("too many");
    assert!(error.message.contains("1001") && error.message.contains("1000"), "{error}");
    let value = Bytes::from(vec![0; limits::VALUE_BYTES_MAX]);
    let put = v1::operation::Operation::Put(v1::Put { key: "k".into(), value });
    let large = v1::CommitRequest { operations: vec![v1::Operation { operation: Some(put) }], ..Default::default() };
    assert!(check_batch(&vec![large.clone(); 2]).is_ok());
    assert!(check_batch(&vec![large; 3]).is_err_and(|error| error.message.contains("12582912")));
}

#[test]
fn what_was_found_is_said() {
    assert_eq!(describe_found(None), "no value");
    assert_eq!(
        describe_found(Some(Position::new(TimelineId::new(2), understudy_types::Lsn::new(0xA0)))),
        "version 0/000000A0@2"
    );
}

#[test]
fn reads_the_timeouts_of_grpc() {
    assert_eq!(parse_timeout("100m"), Some(Duration::from_millis(100)));
    assert_eq!(parse_timeout("5S"), Some(Duration::from_secs(5)));
    assert_eq!(parse_timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
    for text in ["", "S", "5", "5x", "123456789S", "-1S", "ä", "1ä"] {
        assert_eq!(parse_timeout(text), None, "{text:?}");
    }
}

#[test]
fn keys_and_values_have_bounds() {
    assert!(check_key(b"").is_err());
    assert!(check_key(&vec![b'k'; limits::KEY_BYTES_MAX]).is_ok());
    let error = check_key(&vec![b'k'; limits::KEY_BYTES_MAX + 1]).expect_err("too long");
    assert!(error.to_string().contains("16385") && error.to_string().contains("16384"), "{error}");
}

#[test]
fn a_commit_says_what_is_wrong_with_it() {
    let empty = commit(v1::CommitRequest::default(), LEVEL).expect_err("no operations");
    assert!(empty.to_string().contains("no operations"), "{empty}");
    let neither = v1::CommitRequest { operations: vec![v1::Operation::default()], ..Default::default() };
    assert!(commit(neither, LEVEL).expect_err("neither").to_string().contains("neither put nor delete"));
    let delete = || v1::Operation { operation: Some(v1::operation::Operation::Delete(v1::Delete { key: "k".into() })) };
    let level = v1::CommitRequest { operations: vec![delete()], durability: 99, ..Default::default() };
    assert!(commit(level, LEVEL).is_err());
    let short_id = v1::CommitRequest { operations: vec![delete()], request_id: "abc".into(), ..Default::default() };
    assert!(commit(short_id, LEVEL).is_err());
    let condition = v1::Precondition { key: "k".into(), condition: None };
    let unset = v1::CommitRequest { operations: vec![delete()], preconditions: vec![condition], ..Default::default() };
    assert!(commit(unset, LEVEL).expect_err("no condition").to_string().contains("no condition"));
}

#[test]
fn the_engines_limits_are_said_with_both_numbers() {
    for (error, found, limit) in [
        (InvalidCommit::KeyTooLong { bytes: 16_385 }, "16385", "16384"),
        (InvalidCommit::ValueTooLong { bytes: 4_194_305 }, "4194305", "4194304"),
        (InvalidCommit::TooManyOperations { count: 100_001 }, "100001", "100000"),
        (InvalidCommit::TooLarge { bytes: 13, bytes_max: 12 }, "13", "12"),
    ] {
        let text = invalid(&error).to_string();
        assert!(text.contains(found) && text.contains(limit), "{text}");
    }
}

#[test]
fn what_the_engine_refuses_to_read_is_said_with_the_position() {
    let position = Position::new(TimelineId::new(2), understudy_types::Lsn::new(0x0100_00A0));
    let horizon = understudy_types::Lsn::new(0x0200_0000);
    let error = read_error("the read", position, &ReadError::BelowHorizon { at: position.lsn, horizon });
    assert_eq!(error.reason, understudy_rpc::error::Reason::PositionTooOld);
    for word in ["0/010000A0@2", "0/02000000", "history_retention"] {
        assert!(error.message.contains(word), "{word}: {}", error.message);
    }
    let replaced = ReadError::NotVisible { at: position.lsn, visible: position };
    let error = read_error("the read", position, &replaced);
    assert_eq!(error.reason, understudy_rpc::error::Reason::PositionNotReached);
}

#[tokio::test]
async fn an_acknowledgement_carries_the_node_and_a_token() {
    let node = super::super::reads::tests::Node::standby();
    // While the view is held: an answer that looked at it once more would wait for whoever waits to publish.
    let view = node.reads.view().borrow();
    let position = Position::new(TimelineId::new(2), understudy_types::Lsn::new(0x0100_00A0));
    let answer = committed(&view, Committed { position, already_done: true });
    assert_eq!((answer.node_id, answer.already_done), (view.me.to_string(), true));
    assert_eq!(answer.node_name, view.cluster.name_of(view.me));
    let token = convert::token(&answer.token).expect("well-formed").expect("a token");
    assert_eq!((token.system_id, token.position), (view.cluster.system_id, position));
}
