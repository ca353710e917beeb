//! The files that the checks look at, and which of their lines are tests.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A text file of the repository.
#[derive(Debug, Clone)]
pub struct Source {
    /// Relative to the root of the workspace, with `/`.
    pub path: String,
    /// Its content.
    pub text: String,
}

impl Source {
    /// Whether it is Rust.
    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Whether it is documentation.
    pub fn is_markdown(&self) -> bool {
        self.path.ends_with(".md")
    }

    /// Whether it holds test functions and nothing else.
    pub fn is_test_file(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or(&self.path);
        name == "tests.rs" || name.ends_with("_tests.rs") || self.path.contains("/tests/")
    }

    /// Whether all of it is there for tests: the harness and the checker too.
    pub fn is_test(&self) -> bool {
        self.is_test_file() || self.path.starts_with("cluster-tests/") || self.path.starts_with("crates/sim/")
    }

    /// The code and the tests in it: what stands from the first inline test module on is a test.
    pub fn code_and_tests(&self) -> (&str, &str) {
        if self.is_test_file() {
            return ("", &self.text);
        }
        let mut offset = 0;
        let mut attribute = None;
        for line in self.text.split_inclusive('\n') {
            let trimmed = line.trim();
            match (trimmed.starts_with("#[cfg(test)]"), attribute) {
                (true, _) => attribute = Some(offset),
                // An attribute between the two is part of the module; a module without a body stands elsewhere.
                (false, Some(begin)) if trimmed.starts_with("mod ") && trimmed.ends_with('{') => {
                    return self.text.split_at(begin);
                }
                (false, Some(_)) if trimmed.starts_with("#[") => {}
                (false, _) => attribute = None,
            }
            offset += line.len();
        }
        (&self.text, "")
    }
}

const EXTENSIONS: [&str; 6] = ["rs", "md", "proto", "toml", "yml", "yaml"];

/// Reads every text file below `root` that is ours.
///
/// # Errors
/// When one cannot be read.
pub fn read(root: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
        for entry in entries {
            let path = entry.with_context(|| format!("cannot list {}", folder.display()))?.path();
            if path.is_dir() {
                if is_ours(&path) {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| EXTENSIONS.iter().any(|known| extension == *known)) {
                let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
                sources.push(Source { path: relative(root, &path), text });
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sources)
}

fn is_ours(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    name != "target" && (!name.starts_with('.') || name == ".config" || name == ".ci")
}

fn relative(root: &Path, path: &Path) -> String {
    let relative: PathBuf = path.strip_prefix(root).unwrap_or(path).components().collect();
    relative.to_string_lossy().replace('\\', "/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn an_inline_test_module_ends_the_code() {
        let text = "fn a() {}\n\n#[cfg(test)]\n#[allow(x, reason = \"y\")]\nmod tests {\n    fn b() {}\n}\n";
        let (code, tests) = source("crates/wal/src/x.rs", text).split();
        assert_eq!(code, "fn a() {}\n\n");
        assert!(tests.starts_with("#[cfg(test)]"), "{tests}");
    }

    #[test]
    fn a_test_module_in_a_file_of_its_own_ends_nothing() {
        let text = "fn a() {}\n#[cfg(test)]\n#[path = \"x_tests.rs\"]\nmod tests;\nfn b() {}\n";
        let (code, tests) = source("crates/wal/src/x.rs", text).split();
        assert_eq!((code.len(), tests.as_str()), (text.len(), ""));
    }

    #[test]
    fn test_files_are_known_by_their_place() {
        for path in [
            "crates/wal/src/x_tests.rs",
            "crates/wal/tests/crash.rs",
            "cluster-tests/src/checker.rs",
            "crates/core/src/tests.rs",
        ] {
            assert!(source(path, "").is_test(), "{path}");
        }
        assert!(!source("crates/wal/src/latest.rs", "").is_test());
    }

    impl Source {
        fn split(&self) -> (String, String) {
            let (code, tests) = self.code_and_tests();
            (code.to_owned(), tests.to_owned())
        }
    }
}
