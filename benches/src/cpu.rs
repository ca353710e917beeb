//! The CPU time of a process and of its threads, as Linux counts it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// Linux tells CPU times in hundredths of a second, whatever its own clock does.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU seconds by the name of the thread, without the digits at its end; threads of one name are added up.
///
/// # Errors
/// When there is no such process.
pub fn by_thread(process: u32) -> Result<BTreeMap<String, f64>> {
    let tasks = format!("/proc/{process}/task");
    let entries = std::fs::read_dir(&tasks).with_context(|| format!("cannot list {tasks}"))?;
    let mut seconds = BTreeMap::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot list {tasks}"))?.path().join("stat");
        // A thread may end meanwhile.
        let Ok(text) = std::fs::read_to_string(path) else { continue };
        if let Some((name, ticks)) = parse(&text) {
            *seconds.entry(name).or_insert(0.0) += ticks as f64 / TICKS_PER_SECOND;
        }
    }
    Ok(seconds)
}

/// CPU seconds between two looks, the largest first; names that took nothing are left out.
pub fn between(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> Vec<(String, f64)> {
    let took = |(name, after): (&String, &f64)| (name.clone(), after - before.get(name).unwrap_or(&0.0));
    let mut all: Vec<(String, f64)> = after.iter().map(took).filter(|(_, seconds)| *seconds > 0.0).collect();
    all.sort_by(|one, other| other.1.total_cmp(&one.1));
    all
}

/// The name, and user and system time together, of a `stat` file: proc(5).
fn parse(stat: &str) -> Option<(String, u64)> {
    // The name is in parentheses and may hold some itself.
    let (head, rest) = stat.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // Fields 14 and 15; the third is the first behind the name.
    let ticks = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let name = name.trim_end_matches(|c: char| c.is_ascii_digit() || matches!(c, '-' | ':'));
    Some((name.to_owned(), ticks(14)? + ticks(15)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_file_is_read_behind_the_name() {
        let stat = "71 (tokio (rt)-12) S 1 71 71 0 -1 4194304 90 0 0 0 120 34 0 0 20 0 9 0 5 1 2";
        assert_eq!(parse(stat), Some(("tokio (rt)".to_owned(), 154)));
        assert_eq!(parse("71 (short) S 1"), None);
    }

    #[test]
    fn this_process_has_threads() {
        let threads = by_thread(std::process::id()).expect("listed");
        assert!(!threads.is_empty());
        assert_eq!(between(&threads, &threads), Vec::new());
    }
}
