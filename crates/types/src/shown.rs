//! How much of what somebody gave stands in what he is told.
//!
//! A request may hold megabytes of nonsense where a name is expected. An error travels in HTTP/2 headers, stands in logs and is
//! read by people: what it repeats is cut, here and nowhere else.

/// Of one thing that was given, in characters.
pub const SHOWN_CHARS_MAX: usize = 80;

/// As much of a text as goes into a message: all of a name or an address, the beginning of anything longer.
pub fn shown(text: &str) -> String {
    cut(text, SHOWN_CHARS_MAX)
}

/// The first `chars_max` characters of a text, and three dots if there are more.
pub fn cut(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(shown("node-1:7400"), "node-1:7400");
        let exact = "é".repeat(SHOWN_CHARS_MAX);
        assert_eq!(shown(&exact), exact);
        assert_eq!(shown(&"é".repeat(4 << 20)), format!("{exact}..."));
    }
}
