//! File sizes: a reader finds each thing where its name says, so files stay short.

use super::{Findings, Source};

const WARN_LINES: usize = 400;
const LINES_MAX: usize = 600;

/// Checks every Rust file without its tests.
pub fn check(sources: &[Source], findings: &mut Findings) {
    for source in sources.iter().filter(|source| source.is_rust()) {
        let (code, _) = source.code_and_tests();
        let lines = code.lines().count();
        if lines > LINES_MAX {
            findings.error(format!("{} has {lines} lines without tests, more than {LINES_MAX}: split it", source.path));
        } else if lines > WARN_LINES {
            findings.warning(format!("{} has {lines} lines without tests, more than {WARN_LINES}", source.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(code_lines: usize, test_lines: usize) -> (usize, usize) {
        let text = format!("{}#[cfg(test)]\nmod tests {{\n{}}}\n", "x\n".repeat(code_lines), "y\n".repeat(test_lines));
        let mut findings = Findings::default();
        check(&[Source { path: "crates/wal/src/a.rs".to_owned(), text }], &mut findings);
        (findings.errors.len(), findings.warnings.len())
    }

    #[test]
    fn only_lines_of_code_count() {
        assert_eq!(findings(400, 900), (0, 0));
        assert_eq!(findings(401, 0), (0, 1));
        assert_eq!(findings(601, 0), (1, 0));
    }
}
