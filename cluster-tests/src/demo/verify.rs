//! Reads everything back: each acknowledged record on each node, and the WAL files themselves.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use understudy_rpc::v1::Entry as Found;
use understudy_types::{Lsn, SystemId};

use super::load::Ledger;
use crate::audit::{self, Findings, Log};
use crate::cluster::{Cluster, PATIENCE};
use crate::node_client::NodeClient;

const PREFIX: &[u8] = b"pass/";
/// The first key behind all that begin with the prefix: `0` follows `/`.
const PREFIX_END: &[u8] = b"pass0";
const PAGE: u64 = 1_000;
const PAGE_TIMEOUT: Duration = Duration::from_secs(60);

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Verified {
    /// Acknowledged keys that are missing or have another value on at least one node.
    pub lost: u64,
    /// Some of them, for people.
    pub examples: Vec<String>,
    /// In the WAL files.
    pub wal: Findings,
}

/// How many lost records are named.
const EXAMPLES: usize = 10;

/// Waits until every node has applied all that was acknowledged, and reads it back everywhere.
///
/// # Errors
/// When a node does not catch up, does not answer, or its WAL cannot be read.
pub async fn verify(cluster: &Cluster, ledger: &Ledger) -> Result<Verified> {
    let highest = ledger.highest();
    let primary = cluster.wait_settled().await?;
    let names = cluster.names();
    let upto = cluster
        .wait_for(&format!("all nodes to apply up to {highest}"), PATIENCE, |view| {
            let applied = view.applied();
            let least = names.iter().map(|name| applied.get(name).copied()).min().flatten()?;
            (least >= highest).then_some(least)
        })
        .await?;
    let mut verified = Verified::default();
    let mut lost = HashSet::new();
    for name in &names {
        let missing = missing_at(&cluster.client(name, PAGE_TIMEOUT), ledger)
            .await
            .with_context(|| format!("reading back at {name}"))?;
        let room = EXAMPLES.saturating_sub(verified.examples.len());
        verified.examples.extend(missing.iter().take(room).map(|key| format!("{key} at {name}")));
        lost.extend(missing);
    }
    verified.lost = lost.len() as u64;
    verified.wal = audit_wal(cluster, &primary, upto).await?;
    Ok(verified)
}

/// The acknowledged keys that a node does not have with their value.
async fn missing_at<'a>(client: &NodeClient, ledger: &'a Ledger) -> Result<Vec<&'a str>> {
    let mut good: HashSet<&str> = HashSet::with_capacity(ledger.entries.len());
    let mut start = PREFIX.to_vec();
    loop {
        let page = client.scan(&start, PREFIX_END, PAGE).await?;
        let Some(last) = page.last() else { break };
        start = [&last.key[..], &[0]].concat();
        good.extend(page.iter().filter_map(|found| agreed(ledger, found)));
    }
    Ok(ledger.entries.keys().map(String::as_str).filter(|key| !good.contains(key)).collect())
}

/// The key, if the ledger has it with the value that was found.
fn agreed<'a>(ledger: &'a Ledger, found: &Found) -> Option<&'a str> {
    let key = std::str::from_utf8(&found.key).ok()?;
    let (key, entry) = ledger.entries.get_key_value(key)?;
    (entry.value == found.value).then_some(key.as_str())
}

async fn audit_wal(cluster: &Cluster, primary: &str, upto: Lsn) -> Result<Findings> {
    let client = cluster.client(primary, PAGE_TIMEOUT);
    let status = client.status().await.context("the primary's status")?;
    let system_id: SystemId = status.system_id.parse().context("the primary's status")?;
    let timelines = audit::timelines(&client.history().await.context("the primary's history")?)?;
    let folder = |name: &str| -> PathBuf { cluster.data_dir(name).join("wal") };
    let segment_size = audit::segment_size(&folder(primary))?;
    let log = Log { system_id, segment_size, timelines, upto };
    let folders: Vec<(String, PathBuf)> =
        cluster.names().into_iter().map(|name| (name.clone(), folder(&name))).collect();
    tokio::task::spawn_blocking(move || log.audit(&folders)).await.context("reading the WAL failed")?
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use understudy_client::CommitOutcome;
    use understudy_types::{NodeId, Position, RequestId};

    use super::super::load::Entry;
    use super::*;

    #[test]
    fn only_the_acknowledged_value_counts_as_found() {
        let outcome = CommitOutcome {
            position: Position::default(),
            already_done: false,
            node_id: NodeId::default(),
            node_name: "a".to_owned(),
            request_id: RequestId::new([1; 16]),
            token: None,
        };
        let mut ledger = Ledger::default();
        ledger.entries.insert("pass/1/a".to_owned(), Entry { value: Bytes::from_static(b"v"), outcome });
        let found = |key: &str, value: &str| Found {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            version: None,
        };
        assert_eq!(agreed(&ledger, &found("pass/1/a", "v")), Some("pass/1/a"));
        assert_eq!(agreed(&ledger, &found("pass/1/a", "w")), None);
        assert_eq!(agreed(&ledger, &found("pass/1/b", "v")), None);
    }
}
