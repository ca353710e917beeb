//! No two borrows of `tokio::sync::watch` in one statement.
//!
//! A borrow is a read lock that lives until the end of its statement: in a struct or an array literal, until the whole of it
//! is built. Whoever holds one and takes another of the same watch waits for ever once a writer waits in between, because
//! the lock lets no new reader pass a writer. Of two watches it takes two statements that take them in different orders, and a
//! writer of each. So a value is copied out in a statement of its own.
//!
//! It goes by the text: a statement ends at `;`, and at a brace that is not of a struct literal; the operands of `&&` and
//! `||` are let go one by one, as are the arms of a `match`.

use super::{Findings, Source};

/// Written in halves, so that this file has none itself.
const BORROWS: [&str; 2] = [concat!(".borrow", "()"), concat!(".borrow_and_update", "()")];

/// Checks the code; tests may do as they like.
pub fn check(sources: &[Source], findings: &mut Findings) {
    for source in sources.iter().filter(|source| source.is_rust() && !source.is_test()) {
        let (code, _) = source.code_and_tests();
        for line in found(code) {
            findings.error(format!(
                "{}:{line}: a second borrow in one statement while the first is held; copy the value out before",
                source.path
            ));
        }
    }
}

/// The lines of second borrows.
fn found(code: &str) -> Vec<usize> {
    let mut lines = Vec::new();
    let mut held = 0;
    // Of each open brace: whether it is of a literal.
    let mut braces: Vec<bool> = Vec::new();
    for (index, line) in code.lines().enumerate() {
        let text = without_comment(line);
        for (at, c) in text.char_indices() {
            let rest = &text[at..];
            match c {
                ';' => held = 0,
                '{' => {
                    let literal = is_literal(&text[..at]);
                    braces.push(literal);
                    held = if literal { held } else { 0 };
                }
                '}' => held = if braces.pop() == Some(true) { held } else { 0 },
                _ if ["&&", "||", "=>"].iter().any(|end| rest.starts_with(end)) => held = 0,
                '.' if BORROWS.iter().any(|borrow| rest.starts_with(borrow)) => {
                    held += 1;
                    if held > 1 {
                        lines.push(index + 1);
                    }
                }
                _ => {}
            }
        }
    }
    lines
}

fn without_comment(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

/// Whether a brace after this begins a struct literal: after a path to a type.
fn is_literal(before: &str) -> bool {
    let before = before.trim_end();
    let path = before.rsplit(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).next().unwrap_or_default();
    let outside = before[..before.len() - path.len()].trim_end();
    let item = ["impl", "for", "struct", "enum", "trait", "union", "mod", "->", "where", "match", "if"];
    let last = path.rsplit("::").next().unwrap_or_default();
    last.starts_with(char::is_uppercase) && !item.iter().any(|word| outside.ends_with(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_borrow_in_a_literal_is_found() {
        let literal = "fn report(&self) -> Report {\n    Report {\n        flush: *self.wal.flushed().borrow(),\n        name: \"x\",\n        apply: self.visible().borrow().lsn,\n    }\n}\n";
        assert_eq!(found(literal), [5]);
        assert_eq!(found("let all = [\n    *a.borrow(),\n    *b.borrow(),\n];\n"), [3]);
        assert_eq!(found("answer(&view.borrow(), view.borrow_and_update().me);\n"), [1]);
    }

    #[test]
    fn borrows_that_are_let_go_are_none() {
        for text in [
            "let a = *x.borrow();\nlet b = *x.borrow();\n",
            "while !*a.borrow_and_update() && b.borrow().is_none() {\n    let c = *a.borrow();\n}\n",
            "if a.borrow().is_some() {\n    b.borrow().clone()\n}\n",
            "match n {\n    1 => *a.borrow(),\n    _ => *a.borrow(),\n}\n",
            "let a = *x.borrow(); // not y.borrow()\n",
            "impl Watch for Thing {\n    fn a(&self) -> u64 {\n        *self.a.borrow()\n    }\n    fn b(&self) -> u64 {\n        *self.a.borrow()\n    }\n}\n",
        ] {
            assert_eq!(found(text), [] as [usize; 0], "{text}");
        }
    }

    #[test]
    fn tests_are_left_alone() {
        let text = "let all = [*a.borrow(), *b.borrow()];\n".to_owned();
        let source = |path: &str| Source { path: path.to_owned(), text: text.clone() };
        let mut findings = Findings::default();
        check(&[source("crates/node/src/x_tests.rs"), source("crates/node/src/x.rs")], &mut findings);
        assert_eq!(findings.errors.len(), 1);
        assert!(findings.errors[0].starts_with("crates/node/src/x.rs:1: "), "{:?}", findings.errors);
    }
}
