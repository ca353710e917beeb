//! Unfinished business: what is to be done stands in an issue, not in a comment.

use super::{Findings, Source};

/// Written in halves, so that this file does not name them itself.
const FORBIDDEN: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];

/// Checks everything that is built or run.
pub fn check(sources: &[Source], findings: &mut Findings) {
    for source in sources {
        for (index, line) in source.text.lines().enumerate() {
            if let Some(word) = FORBIDDEN.iter().find(|word| line.contains(**word)) {
                findings.error(format!("{}:{}: {word} is left here", source.path, index + 1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_left_over_is_found_with_its_line() {
        let text = format!("fn a() {{}}\n// {}: later\n", FORBIDDEN[0]);
        let mut findings = Findings::default();
        check(&[Source { path: "a.rs".to_owned(), text }], &mut findings);
        assert_eq!(findings.errors, [format!("a.rs:2: {} is left here", FORBIDDEN[0])]);
    }
}
