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

/// Levenshtein's distance, with two letters that changed places as one mistake.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, to) in b.iter().enumerate() {
            let replaced = row[j] + usize::from(from != to);
            let swapped = i > 0 && j > 0 && a[i - 1] == *to && b[j - 1] == *from;
            let swapped = if swapped { before[j - 1] + 1 } else { usize::MAX };
            next.push(replaced.min(row[j + 1] + 1).min(next[j] + 1).min(swapped));
        }
        before = std::mem::replace(&mut row, next);
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
            ("lisetn", "listen"),
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
