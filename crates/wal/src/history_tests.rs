use proptest::prelude::*;

use super::*;
use crate::tests::history;

#[test]
fn the_text_is_postgresqls_columns() {
    let text = print(&history(&[(1, Lsn::new(16 << 20)), (2, Lsn::new(0x0523_A8F0)), (4, Lsn::new(0x0600_0000))]));
    let lines: Vec<&str> = text.lines().skip(1).collect();
    assert_eq!(
        lines,
        [
            "0\t0/01000000\ttimeline 1 begins",
            "1\t0/0523A8F0\ttimeline 2 begins",
            "2\t0/06000000\ttimeline 4 begins",
            "4\t-\tpresent"
        ]
    );
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    let cases = [
        ("", 1, "ends before"),
        ("0\t0/01000000\treason\n", 2, "ends before"),
        ("0\t0/01000000\treason\n1\t-\tpresent\n2\t-\tpresent\n", 3, "behind"),
        ("nonsense\n", 1, "no tab"),
        ("x\t0/01000000\treason\n", 1, "not a timeline"),
        ("0\tx\treason\n", 1, "not an LSN"),
        ("0\t0/01000000\treason\n2\t0/02000000\treason\n1\t-\tpresent\n", 3, "does not come after"),
        ("0\t0/00000000\treason\n1\t-\tpresent\n", 2, "invalid LSN"),
        ("0\t-\tpresent\n", 2, "ends before"),
    ];
    for (text, line, part) in cases {
        let (number, reason) = parse(text).expect_err(text);
        assert!(number == line && reason.contains(part), "{text:?}: line {number}: {reason}");
    }
}

proptest! {
    #[test]
    fn parses_what_it_prints(steps in proptest::collection::vec((1_u32..5, 1_u64..1 << 40), 1..8)) {
        let mut timeline = 0;
        let mut next = |step: u32| { timeline += step; timeline };
        let switches: Vec<(u32, Lsn)> = steps.iter().map(|(step, lsn)| (next(*step), Lsn::new(*lsn))).collect();
        let history = history(&switches);
        prop_assert_eq!(parse(&print(&history)), Ok(history));
    }

    #[test]
    fn no_text_makes_it_panic(text in "[0-9\t/A-F\n-]{0,60}") {
        if let Ok(history) = parse(&text) {
            prop_assert_eq!(parse(&print(&history)), Ok(history));
        }
    }
}
