//! The name that was probably meant.

/// A longer word is nobody's misspelling, and would cost time.
const CHARS_MAX: usize = 64;

/// The one of `known` that is nearest to `word`, if one is near: at most a third of its letters are wrong. Case does not
/// count, and `-` is as good as `_`.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let folded = |text: &str| text.to_ascii_lowercase().replace('-', "_").chars().collect::<Vec<char>>();
    let word = folded(word);
    if word.len() > CHARS_MAX {
        return None;
    }
    let measured = known.into_iter().map(|name| {
        let other = folded(name);
        (distance(&word, &other), other.len(), name)
    });
    let near = measured.filter(|(far, length, _)| *far <= (length / 3).max(1));
    near.min_by_key(|(far, _, _)| *far).map(|(_, _, name)| name)
}

/// Levenshtein's distance.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 4] = ["sync_mode", "primary_timeout", "wal_keep_size", "listen"];

    #[test]
    fn a_misspelling_has_a_nearest_name() {
        for (word, meant) in [
            ("sync_mod", "sync_mode"),
            ("Sync-Mode", "sync_mode"),
            ("primary_timout", "primary_timeout"),
            ("listne", "listen"),
        ] {
            assert_eq!(nearest(word, KNOWN), Some(meant), "{word}");
        }
    }

    #[test]
    fn nonsense_has_none() {
        for word in ["", "frobnicate", "x", &"sync_mode".repeat(100_000)] {
            assert_eq!(nearest(word, KNOWN), None);
        }
    }
}
