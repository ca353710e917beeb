//! Invariants: what `docs/invariants.md` promises must be named where it is kept and where it is tested.

use std::collections::BTreeSet;

use super::{Findings, Source};

const DOCUMENT: &str = "docs/invariants.md";
const PREFIX: &str = "INV-";

/// Checks that each id of the document stands in the code and in a test, and that nobody names another one.
pub fn check(sources: &[Source], findings: &mut Findings) {
    let Some(document) = sources.iter().find(|source| source.path == DOCUMENT) else {
        findings.error(format!("{DOCUMENT} is missing"));
        return;
    };
    let promised = ids(&document.text);
    if promised.is_empty() {
        findings.error(format!("{DOCUMENT} names no invariant"));
    }
    let mut in_code = BTreeSet::new();
    let mut in_tests = BTreeSet::new();
    // This very crate only checks names: it keeps no invariant.
    let rust = sources.iter().filter(|source| source.is_rust() && !source.path.starts_with("crates/xtask/"));
    for source in rust {
        let (code, tests) = if source.is_test() { ("", source.text.as_str()) } else { source.code_and_tests() };
        in_code.extend(ids(code));
        in_tests.extend(ids(tests));
        for unknown in ids(&source.text).difference(&promised) {
            findings.error(format!("{} names {unknown}, which {DOCUMENT} does not", source.path));
        }
    }
    for id in &promised {
        if !in_code.contains(id) {
            findings.error(format!("{id} is promised in {DOCUMENT}, but no code says that it keeps it"));
        }
        if !in_tests.contains(id) {
            findings.error(format!("{id} is promised in {DOCUMENT}, but no test names it"));
        }
    }
}

/// The ids in a text: the prefix, then capitals and hyphens.
fn ids(text: &str) -> BTreeSet<&str> {
    let begins = text.match_indices(PREFIX).map(|(at, _)| at);
    begins.filter_map(|at| id_at(&text[at..])).collect()
}

fn id_at(text: &str) -> Option<&str> {
    let length = text.find(|c: char| !c.is_ascii_uppercase() && c != '-').unwrap_or(text.len());
    let id = text[..length].trim_end_matches('-');
    (id.len() > PREFIX.len()).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(document: &str, code: &str, test: &str) -> Vec<String> {
        let source = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
        let sources = [
            source(DOCUMENT, document),
            source("crates/wal/src/a.rs", code),
            source("crates/wal/src/a_tests.rs", test),
        ];
        let mut findings = Findings::default();
        check(&sources, &mut findings);
        findings.errors
    }

    #[test]
    fn an_invariant_stands_in_code_and_test() {
        assert_eq!(errors("| INV-ORDER |", "// keeps INV-ORDER.", "// INV-ORDER:"), Vec::<String>::new());
        assert_eq!(errors("| INV-ORDER |", "// keeps INV-ORDER.", "").len(), 1);
        assert_eq!(errors("| INV-ORDER |", "", "").len(), 2);
    }

    #[test]
    fn an_invariant_that_nobody_promised_is_an_error() {
        let found = errors("| INV-ORDER |", "// INV-ORDER INV-ODER", "// INV-ORDER");
        assert_eq!(found, ["crates/wal/src/a.rs names INV-ODER, which docs/invariants.md does not"]);
    }

    #[test]
    fn ids_end_where_the_capitals_end() {
        assert_eq!(
            ids("(INV-ONE-PRIMARY), INV-BYTES- and INV-...").into_iter().collect::<Vec<_>>(),
            ["INV-BYTES", "INV-ONE-PRIMARY"]
        );
    }
}
