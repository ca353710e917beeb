use proptest::prelude::*;

use super::*;

fn named(text: &str) -> NodeName {
    text.parse().expect("a node name")
}

/// Each of them was given to PostgreSQL too (`ALTER SYSTEM SET synchronous_standby_names`).
#[test]
fn accepts_what_postgresql_accepts() {
    for (text, printed) in [
        ("", ""),
        ("a", "FIRST 1 (a)"),
        ("a, b", "FIRST 1 (a, b)"),
        ("a\t,\n b", "FIRST 1 (a, b)"),
        ("*", "FIRST 1 (*)"),
        ("\"*\"", "FIRST 1 (*)"),
        ("a,*", "FIRST 1 (a, *)"),
        ("1", "FIRST 1 (1)"),
        ("1, 2", "FIRST 1 (1, 2)"),
        ("0", "FIRST 1 (0)"),
        ("1 (a)", "FIRST 1 (a)"),
        ("01 (a)", "FIRST 1 (a)"),
        ("first 2 (a,b,c)", "FIRST 2 (a, b, c)"),
        ("ANY 5 (a)", "ANY 5 (a)"),
        ("aNy 1(*)", "ANY 1 (*)"),
        ("ANY 1 (1, 2)", "ANY 1 (1, 2)"),
        ("a, a", "FIRST 1 (a, a)"),
        ("anyx", "FIRST 1 (anyx)"),
        ("\"any\"", "FIRST 1 (\"any\")"),
        ("\"a-b\"", "FIRST 1 (\"a-b\")"),
        ("\"a\"\"b\"", "FIRST 1 (\"a\"\"b\")"),
        ("\"plain\"", "FIRST 1 (plain)"),
        ("\"\"", "FIRST 1 (\"\")"),
        ("a$1", "FIRST 1 (a$1)"),
        ("_x", "FIRST 1 (_x)"),
        ("ä", "FIRST 1 (ä)"),
    ] {
        let names = StandbyNames::parse(text).expect(text);
        assert_eq!(names.to_string(), printed, "{text:?}");
    }
}

/// Each of them was refused by PostgreSQL, at the same place.
#[test]
fn refuses_what_postgresql_refuses() {
    for (text, message) in [
        (" ", "found the end at column 2"),
        ("any", "found the end at column 4, expected the number of standbys"),
        ("(a)", "found \"(\" at column 1, expected a standby name"),
        ("FIRST 1 a", "found \"a\" at column 9, expected ( and the list"),
        ("FIRST (a)", "found \"(\" at column 7, expected the number"),
        ("FIRST 1 (any)", "found \"any\" at column 10, expected a standby name (FIRST and ANY"),
        ("ANY \"1\" (a)", "found \"\\\"1\\\"\" at column 5, expected the number"),
        ("ANY 1 ()", "found \")\" at column 8"),
        ("-1 (a)", "found \"-\" at column 1"),
        (
            "a-b",
            "found \"-\" at column 2, expected a comma or the end (names with other characters need double quotes)",
        ),
        ("a.b", "found \".\" at column 2"),
        ("a,", "found the end at column 3"),
        (",a", "found \",\" at column 1"),
        ("a b", "found \"b\" at column 3"),
        ("ä b", "found \"b\" at column 3"),
        ("1a", "found \"a\" at column 2"),
        ("$a", "found \"$\" at column 1"),
        ("'a'", "found \"'\" at column 1"),
        ("2 (a", "found the end at column 5, expected a comma or )"),
        ("2 (a))", "found \")\" at column 6, expected nothing after the list"),
        ("* (a)", "found \"(\" at column 3"),
        ("1.5 (a)", "found \".\" at column 2"),
        ("a, \"b", "the quoted name at column 4 has no closing quote"),
        ("0 (a)", "the number of standbys at column 1 is 0, expected 1 to 2147483647"),
        ("ANY 00 (a)", "the number of standbys at column 5 is 00"),
        ("ANY 2147483648 (a)", "the number of standbys at column 5 is 2147483648"),
        ("ANY 99999999999 (a)", "the number of standbys at column 5 is 99999999999"),
    ] {
        let error = StandbyNames::parse(text).expect_err(text).to_string();
        assert!(error.contains(message), "{text:?}: {error}");
        assert!(error.contains(&format!("{text:?}")), "what was given stands in it: {error}");
    }
}

#[test]
fn the_place_in_the_list_is_the_priority() {
    let names = StandbyNames::parse("FIRST 2 (c, \"node-1\", A, c)").expect("a setting");
    assert_eq!(names.priority_of(&named("C")), Some(1));
    assert_eq!(names.priority_of(&named("NODE-1")), Some(2));
    assert_eq!(names.priority_of(&named("a")), Some(3));
    assert_eq!(names.priority_of(&named("d")), None);
    assert_eq!((names.method(), names.wanted_acks()), (SyncMethod::First, 2));
}

#[test]
fn a_star_stands_for_the_rest() {
    let names = StandbyNames::parse("c, *").expect("a setting");
    assert_eq!(names.priority_of(&named("c")), Some(1));
    assert_eq!(names.priority_of(&named("x")), Some(2));
}

#[test]
fn with_any_all_are_equal() {
    let names = StandbyNames::parse("ANY 2 (a, b)").expect("a setting");
    assert_eq!(names.priority_of(&named("a")), Some(1));
    assert_eq!(names.priority_of(&named("b")), Some(1));
    assert_eq!(names.priority_of(&named("c")), None);
    assert_eq!((names.method(), names.wanted_acks()), (SyncMethod::Any, 2));
}

#[test]
fn the_empty_setting_waits_for_nobody() {
    let names = StandbyNames::parse("").expect("a setting");
    assert!(names.is_nobody());
    assert_eq!(names, StandbyNames::nobody());
    assert_eq!((names.wanted_acks(), names.priority_of(&named("a"))), (0, None));
}

#[test]
fn the_length_is_bounded_as_given_and_as_printed() {
    let long = "a".repeat(StandbyNames::BYTES_MAX + 1);
    assert_eq!(StandbyNames::parse(&long), Err(StandbyNamesError::TooLong { bytes: long.len() }));
    let dense = vec!["a"; StandbyNames::BYTES_MAX / 2].join(",");
    assert!(matches!(StandbyNames::parse(&dense), Err(StandbyNamesError::TooLong { bytes }) if bytes > dense.len()));
    let fits = "a".repeat(StandbyNames::BYTES_MAX - "FIRST 1 ()".len());
    assert!(StandbyNames::parse(&fits).is_ok());
}

/// Texts that are often in the grammar and often just beside it.
fn almost() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("FIRST "),
        Just("any "),
        Just("1"),
        Just("2 "),
        Just("0"),
        Just("("),
        Just(")"),
        Just(","),
        Just(" "),
        Just("a"),
        Just("b1"),
        Just("*"),
        Just("\"x-y\""),
        Just("\"\"\"\""),
        Just("\""),
        Just("-"),
        Just("é"),
    ];
    proptest::collection::vec(piece, 0..9).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn parses_what_it_prints(names in proptest::collection::vec("[a-zA-Z0-9*\" $é-]{0,6}", 1..6), acks in 1_u32..9, any: bool) {
        let quoted: Vec<String> = names.iter().map(|name| format!("\"{}\"", name.replace('"', "\"\""))).collect();
        let text = format!("{} {acks} ({})", if any { "any" } else { "first" }, quoted.join(" ,"));
        let parsed = StandbyNames::parse(&text).expect("in the grammar");
        prop_assert_eq!(StandbyNames::parse(&parsed.to_string()), Ok(parsed));
    }

    #[test]
    fn is_total(text in almost()) {
        match StandbyNames::parse(&text) {
            Ok(parsed) => {
                prop_assert_eq!(parsed.wanted_acks() == 0, text.is_empty());
                prop_assert_eq!(StandbyNames::parse(&parsed.to_string()), Ok(parsed));
            }
            Err(error) => prop_assert!(error.to_string().contains("synchronous_standby_names")),
        }
    }

    #[test]
    fn is_total_on_anything(text: String) {
        prop_assert!(StandbyNames::parse(&text).map_or(true, |parsed| parsed.to_string().parse() == Ok(parsed)));
    }
}
