//! Links in the documentation: a relative one must lead to a file, an anchor to a heading.

use std::path::{Component, Path, PathBuf};

use super::{Findings, Source};

/// Checks every markdown file.
pub fn check(root: &Path, sources: &[Source], findings: &mut Findings) {
    for source in sources.iter().filter(|source| source.is_markdown()) {
        for target in targets(&source.text) {
            if let Some(problem) = problem(root, sources, source, target) {
                findings.error(format!("{}: link to {target}: {problem}", source.path));
            }
        }
    }
}

fn problem(root: &Path, sources: &[Source], source: &Source, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = target.split_once('#').map_or((target, None), |(file, anchor)| (file, Some(anchor)));
    let folder = Path::new(&source.path).parent().unwrap_or(Path::new(""));
    let path = if file.is_empty() { PathBuf::from(&source.path) } else { normal(&folder.join(file))? };
    if !root.join(&path).exists() {
        return Some(format!("there is no {}", path.display()));
    }
    let anchor = anchor?;
    let text = sources.iter().find(|other| Path::new(&other.path) == path).map(|other| other.text.as_str())?;
    let found = headings(text).any(|heading| slug(heading) == anchor);
    (!found).then(|| format!("{} has no heading #{anchor}", path.display()))
}

/// The path without `..`; none when it leaves the repository, which is a broken link of its own kind.
fn normal(path: &Path) -> Option<PathBuf> {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => normal.push(part),
            Component::ParentDir => {
                if !normal.pop() {
                    return Some(path.to_path_buf());
                }
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Some(normal)
}

/// What the links of a text lead to; code blocks and code spans hold no links.
fn targets(text: &str) -> Vec<&str> {
    let mut targets = Vec::new();
    for line in prose(text) {
        let mut code = false;
        let mut rest = line;
        while let Some(at) = rest.find(['`', ']']) {
            let (mark, after) = rest[at..].split_at(1);
            rest = after;
            if mark == "`" {
                code = !code;
            } else if let Some(link) = after.strip_prefix('(')
                && !code
                && let Some(end) = link.find(')')
            {
                targets.push(link[..end].split_whitespace().next().unwrap_or(""));
                rest = &link[end..];
            }
        }
    }
    targets
}

fn headings(text: &str) -> impl Iterator<Item = &str> {
    prose(text).filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim())
}

fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// A heading's anchor as GitHub makes it.
fn slug(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_found_outside_of_code() {
        let text = "See [a](a.md) and [b](b.md#c \"title\"); `[not](x.md)`.\n```\n[nor](y.md)\n```\n![p](p.png)\n";
        assert_eq!(targets(text), ["a.md", "b.md#c", "p.png"]);
    }

    #[test]
    fn anchors_are_made_as_github_makes_them() {
        assert_eq!(slug("What `it` is, and why"), "what-it-is-and-why");
    }

    #[test]
    fn a_link_must_lead_somewhere() {
        let root = crate::cargo::workspace_root();
        let source = |text: &str| Source { path: "docs/x.md".to_owned(), text: text.to_owned() };
        let errors = |text: &str| {
            let mut findings = Findings::default();
            let readme = Source { path: "Cargo.toml".to_owned(), text: "# Here\n".to_owned() };
            check(&root, &[source(text), readme], &mut findings);
            findings.errors.len()
        };
        assert_eq!(errors("[a](../Cargo.toml) [b](https://example.org/x) [c](../Cargo.toml#here)"), 0);
        assert_eq!(errors("[a](missing.md)"), 1);
        assert_eq!(errors("[a](../Cargo.toml#there)"), 1);
        assert_eq!(errors("[a](../../../../../../../../nowhere.md)"), 1);
    }
}
