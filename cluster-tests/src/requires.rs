//! What some tests need of the machine, and what happens where it is not there.
//!
//! Where continuous integration runs (`CI=true`) a missing capability fails the test: nothing is skipped there.
//! Elsewhere the test says loudly that it was skipped and adds a line to the file that `UNDERSTUDY_SKIPPED` names;
//! `cargo xtask test` counts those lines in its last line.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

/// Where skipped tests are counted.
pub const SKIPPED_FILE: &str = "UNDERSTUDY_SKIPPED";

/// Whether the test can go on: `probed` says whether the machine has `what`.
///
/// # Errors
/// When it has not, and nothing may be skipped.
pub fn require(what: &str, probed: Result<()>) -> Result<bool> {
    let nothing_is_skipped = std::env::var("CI").is_ok_and(|set| set == "true");
    let counted_in = std::env::var_os(SKIPPED_FILE);
    decide(what, probed, nothing_is_skipped, counted_in.as_deref().map(Path::new))
}

fn decide(what: &str, probed: Result<()>, nothing_is_skipped: bool, counted_in: Option<&Path>) -> Result<bool> {
    let Err(error) = probed else { return Ok(true) };
    if nothing_is_skipped {
        return Err(error.context(format!("this test needs {what}, and with CI=true nothing is skipped")));
    }
    eprintln!("SKIPPED: this test needs {what}: {error:#}");
    if let Some(path) = counted_in {
        let mut file = File::options().create(true).append(true).open(path);
        let written = file.as_mut().map_err(|error| std::io::Error::new(error.kind(), error.to_string()));
        let written = written.and_then(|file| writeln!(file, "{what}"));
        written.with_context(|| format!("cannot count a skipped test in {}", path.display()))?;
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn what_is_missing_fails_or_is_counted() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("skipped");
        let missing = || Err(anyhow!("you are not root"));
        assert!(decide("x", Ok(()), true, Some(&file)).expect("goes on"));
        assert!(!file.exists());
        let refused = decide("x", missing(), true, Some(&file)).expect_err("fails");
        assert!(format!("{refused:#}").contains("you are not root"), "{refused:#}");
        assert!(!decide("network namespaces", missing(), false, Some(&file)).expect("skipped"));
        assert!(!decide("docker", missing(), false, Some(&file)).expect("skipped"));
        assert!(!decide("docker", missing(), false, None).expect("skipped"));
        assert_eq!(std::fs::read_to_string(&file).expect("there"), "network namespaces\ndocker\n");
    }
}
