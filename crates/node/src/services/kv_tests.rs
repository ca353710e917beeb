use super::*;

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
    let empty = commit(v1::CommitRequest::default()).expect_err("no operations");
    assert!(empty.to_string().contains("no operations"), "{empty}");
    let neither = v1::CommitRequest { operations: vec![v1::Operation::default()], ..Default::default() };
    assert!(commit(neither).expect_err("neither").to_string().contains("neither put nor delete"));
    let delete = || v1::Operation { operation: Some(v1::operation::Operation::Delete(v1::Delete { key: "k".into() })) };
    let level = v1::CommitRequest { operations: vec![delete()], durability: 99, ..Default::default() };
    assert!(commit(level).is_err());
    let short_id = v1::CommitRequest { operations: vec![delete()], request_id: "abc".into(), ..Default::default() };
    assert!(commit(short_id).is_err());
    let condition = v1::Precondition { key: "k".into(), condition: None };
    let unset = v1::CommitRequest { operations: vec![delete()], preconditions: vec![condition], ..Default::default() };
    assert!(commit(unset).expect_err("no condition").to_string().contains("no condition"));
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
