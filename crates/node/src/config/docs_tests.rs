//! docs/configuration.md says what the tables say, those of the settings and that of the limits. With `UPDATE_DOCS=1` it is written anew.

use std::fmt::Write as _;
use std::path::Path;

use understudy_core::settings::{SETTINGS, print_bytes};
use understudy_types::limits::{Bound, LIMITS};

use super::{SERVER_SETTINGS, flag, variable};

fn code(text: &str) -> String {
    if text.is_empty() { "(empty)".to_owned() } else { format!("`{text}`") }
}

fn server_table() -> String {
    let mut text = String::from("| key | flag, variable | default | takes | |\n|---|---|---|---|---|\n");
    for setting in &SERVER_SETTINGS {
        let also = setting.also.map_or_else(String::new, |also| format!(", `{also}`"));
        let default = setting.default.map_or_else(String::new, code);
        writeln!(
            text,
            "| `{}` | `{}`, `{}`{also} | {default} | {} | {} |",
            setting.name,
            flag(setting.name),
            variable(setting.name),
            setting.bounds,
            setting.doc
        )
        .expect("a string");
    }
    text
}

fn cluster_table() -> String {
    let mut text = String::from("| setting | default | takes | a change takes effect | |\n|---|---|---|---|---|\n");
    for setting in &SETTINGS {
        writeln!(
            text,
            "| `{}` | {} | {} | {} | {} |",
            setting.name,
            code(&setting.default()),
            setting.bounds(),
            setting.takes.as_str(),
            setting.doc
        )
        .expect("a string");
    }
    text
}

fn limits_table() -> String {
    let mut text = String::from("| what | at most | |\n|---|---|---|\n");
    for limit in &LIMITS {
        let most = match limit.most {
            Bound::Bytes(bytes) => print_bytes(bytes),
            Bound::Count(count) => grouped(count),
        };
        writeln!(text, "| {} | {most} | {} |", limit.what, limit.doc).expect("a string");
    }
    text
}

/// With a comma before every third digit.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let grouped = digits.char_indices().flat_map(|(at, digit)| {
        let is_third = at > 0 && (digits.len() - at).is_multiple_of(3);
        is_third.then_some(',').into_iter().chain([digit])
    });
    grouped.collect()
}

/// The text with what stands between `<!-- begin NAME -->` and `<!-- end NAME -->` replaced.
fn replaced(text: &str, name: &str, table: &str) -> String {
    let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->"));
    let (before, rest) = text.split_once(&begin).expect("the beginning of the table");
    let (_, after) = rest.split_once(&end).expect("the end of the table");
    format!("{before}{begin}{table}{end}{after}")
}

#[test]
fn the_documentation_says_what_the_tables_say() {
    let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs tests");
    let path = Path::new(&folder).join("../../docs/configuration.md");
    let text = std::fs::read_to_string(&path).expect("docs/configuration.md");
    let tables = [("server", server_table()), ("cluster", cluster_table()), ("limits", limits_table())];
    let expected = tables.iter().fold(text, |text, (name, table)| replaced(&text, name, table));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &expected).expect("written");
    }
    let now = std::fs::read_to_string(&path).expect("docs/configuration.md");
    assert!(
        now == expected,
        "docs/configuration.md is not what the tables say; run this test with UPDATE_DOCS=1, or put in:\n{tables:#?}"
    );
}

#[test]
fn the_examples_are_right() {
    let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs tests");
    let text = std::fs::read_to_string(Path::new(&folder).join("../../docs/configuration.md")).expect("the file");
    let examples: Vec<&str> = text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(examples.len() >= 2, "{} examples", examples.len());
    for example in examples {
        let mut errors = Vec::new();
        super::file::parse(Path::new("example"), example, &mut errors);
        assert_eq!(errors, [], "{example}");
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), example).expect("written");
        assert_eq!(super::check_file(file.path()), [], "{example}");
    }
}
