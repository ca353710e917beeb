//! Dependency edges: which of our crates may name which, and which libraries stay inside a fence.
//!
//! A new crate needs a line here, and with it a reason: a compile-time fence or a set of dependencies of its own.

use anyhow::{Context, Result};
use serde::Deserialize;

use super::Findings;

/// Per crate, everything of ours that it may depend on, in tests too.
const ALLOWED: [(&str, &[&str]); 14] = [
    ("understudy-types", &[]),
    ("understudy-core", &["understudy-types"]),
    ("understudy-wal", &["understudy-types"]),
    ("understudy-store", &["understudy-types", "understudy-wal"]),
    ("understudy-engine", &["understudy-types", "understudy-wal", "understudy-store", "understudy-core"]),
    ("understudy-rpc", &["understudy-types"]),
    ("understudy-control", &["understudy-types", "understudy-core", "understudy-rpc"]),
    (
        "understudy-replication",
        &[
            "understudy-types",
            "understudy-wal",
            "understudy-store",
            "understudy-core",
            "understudy-engine",
            "understudy-rpc",
        ],
    ),
    (
        "understudy-node",
        &[
            "understudy-types",
            "understudy-wal",
            "understudy-store",
            "understudy-core",
            "understudy-engine",
            "understudy-rpc",
            "understudy-control",
            "understudy-replication",
        ],
    ),
    ("understudy-client", &["understudy-types", "understudy-rpc"]),
    ("understudy", &["understudy-types", "understudy-rpc", "understudy-client", "understudy-node"]),
    ("xtask", &[]),
    ("cluster-tests", &["understudy-types", "understudy-wal", "understudy-rpc", "understudy-client"]),
    (
        "benches",
        &[
            "understudy-types",
            "understudy-wal",
            "understudy-store",
            "understudy-core",
            "understudy-engine",
            "understudy-rpc",
            "understudy-client",
            "cluster-tests",
        ],
    ),
];

/// Libraries that only the named crates may depend on.
const FENCED: [(&str, &[&str]); 6] = [
    ("openraft", &["understudy-control"]),
    // Data in the store, the Raft log in control; nobody else.
    ("rocksdb", &["understudy-store", "understudy-control"]),
    ("prost", &["understudy-rpc"]),
    ("anyhow", &["understudy", "xtask", "cluster-tests", "benches"]),
    ("etcd-client", &["benches"]),
    ("tokio-postgres", &["benches"]),
];

/// All that the pure core may name besides our own: nothing that reads a clock, draws a number or does IO.
const CORE_LIBRARIES: [&str; 5] = ["serde", "thiserror", "proptest", "insta", "serde_json"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    path: Option<String>,
}

/// Checks what `cargo metadata --no-deps` says.
pub fn check(metadata: &str, findings: &mut Findings) -> Result<()> {
    let metadata: Metadata = serde_json::from_str(metadata).context("cannot read what cargo metadata printed")?;
    for package in &metadata.packages {
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == package.name) else {
            findings.error(format!(
                "crate {} is not in the table of allowed dependencies (crates/xtask/src/tidy/edges.rs)",
                package.name
            ));
            continue;
        };
        for dependency in &package.dependencies {
            check_one(&package.name, allowed, dependency, findings);
        }
    }
    Ok(())
}

fn check_one(package: &str, allowed: &[&str], dependency: &Dependency, findings: &mut Findings) {
    let name = dependency.name.as_str();
    if dependency.path.is_some() && !allowed.contains(&name) {
        findings.error(format!("crate {package} must not depend on {name}: the dependency direction forbids it"));
    }
    if let Some((_, inside)) = FENCED.iter().find(|(library, _)| *library == name)
        && !inside.contains(&package)
    {
        findings.error(format!("crate {package} must not depend on {name}: only {} may", inside.join(", ")));
    }
    if package == "understudy-core" && dependency.path.is_none() && !CORE_LIBRARIES.contains(&name) {
        findings.error(format!("crate {package} must not depend on {name}: the core is pure"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(package: &str, dependency: &str, ours: bool) -> Vec<String> {
        let path = if ours { "\"/somewhere\"" } else { "null" };
        let metadata = format!(
            r#"{{"packages":[{{"name":"{package}","dependencies":[{{"name":"{dependency}","path":{path},"kind":null}}]}}]}}"#
        );
        let mut findings = Findings::default();
        check(&metadata, &mut findings).expect("well-formed metadata");
        findings.errors
    }

    #[test]
    fn the_drawn_edges_pass() {
        assert_eq!(errors("understudy-engine", "understudy-store", true), Vec::<String>::new());
        assert_eq!(errors("understudy-control", "openraft", false), Vec::<String>::new());
        assert_eq!(errors("understudy-core", "serde", false), Vec::<String>::new());
    }

    #[test]
    fn an_edge_against_the_direction_is_an_error() {
        assert_eq!(errors("understudy-core", "understudy-wal", true).len(), 1);
        assert_eq!(errors("understudy-engine", "understudy-rpc", true).len(), 1);
        assert_eq!(errors("understudy-replication", "understudy-control", true).len(), 1);
    }

    #[test]
    fn a_fenced_library_stays_inside() {
        assert_eq!(errors("understudy-node", "openraft", false).len(), 1);
        assert_eq!(errors("understudy-engine", "rocksdb", false).len(), 1);
        assert_eq!(errors("understudy-core", "tokio", false).len(), 1);
        assert_eq!(errors("understudy-wal", "anyhow", false).len(), 1);
    }

    #[test]
    fn a_crate_without_a_line_is_an_error() {
        assert_eq!(errors("understudy-surprise", "serde", false).len(), 1);
    }
}
