//! One kill: the primary of a settled cluster in mid-load, who takes over, and the dead node's way back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use understudy_rpc::v1::TimelineEntry;
use understudy_types::{Lsn, TimelineId};

use super::load::Loader;
use super::report::Talk;
use crate::cluster::{Cluster, PATIENCE};

/// Acknowledged on the settled cluster before its primary is killed: the load is under way.
const RECORDS_BEFORE: u64 = 500;
/// Acknowledged after the kill before the dead node is restarted.
const RECORDS_AFTER: u64 = 1_000;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What a kill came to.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Kill {
    /// Who was killed.
    pub primary: String,
    /// Who was promoted in its place.
    pub promoted: String,
    /// What it opened.
    pub timeline: u32,
    /// Where.
    pub switch_lsn: String,
    /// Why there was an election.
    pub reason: String,
    /// Last acknowledgement on the old timeline to the first on the new, in milliseconds.
    pub write_gap_ms: u64,
    /// Whether the killed node streams and is in the sync list again.
    pub rejoined: bool,
    /// From its restart, in milliseconds; how long was waited, if it did not rejoin.
    pub rejoin_ms: u64,
}

/// Kills the primary once the cluster is settled.
///
/// # Errors
/// When nobody takes over, or the load stands still.
pub async fn round(cluster: &mut Cluster, loader: &Loader, number: u32, of: u32, talk: &Talk) -> Result<Kill> {
    loader.wait_more(RECORDS_BEFORE, PATIENCE).await?;
    let primary = cluster.wait_settled().await?;
    let before = loader.progress();
    let old = before.timeline();
    cluster.kill9(&primary)?;
    talk.killed(number, of, &primary, old, before.acknowledged);

    let after = loader
        .wait_for("the first acknowledgement after the kill", PATIENCE, |progress| progress.timeline() > old)
        .await?;
    let timeline = after.timeline();
    let gap = after.gap_before(timeline).context("the old timeline had acknowledgements")?;
    let entry = history_entry(cluster, timeline).await?;
    talk.promoted(&entry, gap, old);

    loader.wait_more(RECORDS_AFTER, PATIENCE).await?;
    let restarted = Instant::now();
    cluster.start_node(&primary)?;
    super::place::remember(cluster)?;
    let waited = cluster.wait_rejoined(&primary, PATIENCE).await;
    let rejoin = restarted.elapsed();
    talk.rejoined(&primary, &waited, rejoin);
    Ok(Kill {
        primary,
        promoted: entry.node,
        timeline: timeline.get(),
        switch_lsn: Lsn::new(entry.switch_lsn).to_string(),
        reason: entry.reason,
        write_gap_ms: millis(gap),
        rejoined: waited.is_ok(),
        rejoin_ms: millis(rejoin),
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("a demo is shorter than 584 million years")
}

/// What the cluster itself says about a timeline: the first node that knows it.
async fn history_entry(cluster: &Cluster, timeline: TimelineId) -> Result<TimelineEntry> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        for name in cluster.names() {
            let answer = cluster.client(&name, ANSWER_TIMEOUT).history().await;
            let entries = answer.map(|answer| answer.entries).unwrap_or_default();
            if let Some(entry) = entries.into_iter().find(|entry| entry.timeline == timeline.get()) {
                return Ok(entry);
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("no node has timeline {timeline} in its history")
}
