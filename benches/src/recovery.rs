//! How fast a standby that was away comes back: by the WAL that it missed, or by a seed when that WAL is gone.
//!
//! What is written meanwhile does not compress, and a commit is large, so that bytes count and not commits. Nobody writes while
//! the standby comes back.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster_tests::cluster::{Cluster, PATIENCE};
use futures::future::try_join_all;
use serde::Serialize;
use understudy_client::Commit;
use understudy_rpc::v1::{self, StandbyStatus};

use crate::workloads::Clients;

const MIB: f64 = 1_048_576.0;
const FILL_VALUE_BYTES: usize = 10_000;
const FILL_BATCH: usize = 100;
/// Batches under way at a time.
const FILL_CLIENTS: usize = 4;
const POLL: Duration = Duration::from_millis(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Until WAL that nobody needs is removed, and until a standby is back.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(120);
/// The least that the cluster takes, so that WAL goes soon.
const FORGETFUL: [(&str, &str); 3] = [("wal_keep_size", "0"), ("max_wal_size", "2MiB"), ("checkpoint_timeout", "1s")];
/// Of the name of a segment, in hexadecimal digits.
const SEGMENT_NAME_LEN: usize = 24;

/// A standby that caught up.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct CatchUp {
    /// That it had missed.
    pub wal_mib: f64,
    /// From the start of its process to its first connection.
    pub until_connected_ms: f64,
    /// From there until everything that it had missed was flushed, and it streamed.
    pub until_streaming_ms: f64,
    /// From there until all of it was applied.
    pub until_applied_ms: f64,
    /// Of WAL, while it was connected.
    pub mib_per_second: f64,
}

/// A standby that was seeded.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Seeding {
    /// Of the seed.
    pub total_mib: f64,
    /// That had to be sent.
    pub received_mib: f64,
    /// Of the transfer, as the standby logged it.
    pub transfer_ms: f64,
    /// While it was transferred.
    pub mib_per_second: f64,
    /// From the start of its process until it streamed and was in the sync list.
    pub until_streaming_ms: f64,
}

/// Bytes that do not compress: xorshift64, by Marsaglia.
struct Noise(u64);

impl Noise {
    fn value(&mut self) -> Vec<u8> {
        let mut value = Vec::with_capacity(FILL_VALUE_BYTES + size_of::<u64>());
        while value.len() < FILL_VALUE_BYTES {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            value.extend_from_slice(&self.0.to_le_bytes());
        }
        value
    }
}

async fn fill(clients: &Clients, tag: &str, mib: u64) -> Result<()> {
    let batches = (mib << 20).div_ceil((FILL_VALUE_BYTES * FILL_BATCH) as u64);
    let one = async |client: usize| -> Result<()> {
        let mut noise = Noise(0x9E37_79B9_7F4A_7C15 ^ (client as u64 + 1));
        for batch in (client as u64..batches).step_by(FILL_CLIENTS) {
            let commit = |index| Commit::new().put(format!("{tag}/{batch:06}/{index:03}"), noise.value());
            let commits = (0..FILL_BATCH).map(commit).collect();
            for result in clients.of(client).commit_batch(commits).await? {
                result.context("filling")?;
            }
        }
        Ok(())
    };
    try_join_all((0..FILL_CLIENTS).map(one)).await.map(drop)
}

/// The first node that is not the primary.
async fn choose(cluster: &Cluster) -> Result<(String, String)> {
    let primary = cluster.wait_settled().await?;
    let standby = cluster.names().into_iter().find(|name| *name != primary).context("there is a standby")?;
    Ok((primary, standby))
}

async fn replication(cluster: &Cluster, primary: &str) -> Result<v1::ReplicationResponse> {
    cluster.client(primary, ANSWER_TIMEOUT).replication().await.context("the primary tells of its standbys")
}

/// Waits until the primary says of a standby what is waited for; gives when.
async fn wait_standby(
    cluster: &Cluster,
    primary: &str,
    name: &str,
    ready: impl Fn(&StandbyStatus) -> bool,
) -> Result<Instant> {
    let deadline = Instant::now() + RECOVERY_TIMEOUT;
    // One connection for all questions.
    let client = cluster.client(primary, ANSWER_TIMEOUT);
    loop {
        let answer = client.replication().await.context("the primary tells of its standbys")?;
        let standby = answer.standbys.iter().find(|standby| standby.name == name);
        if standby.is_some_and(&ready) {
            return Ok(Instant::now());
        }
        ensure!(Instant::now() < deadline, "{name} is not back: {standby:?}\n{}", cluster.log_ends());
        tokio::time::sleep(POLL).await;
    }
}

fn ms(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64() * 1e3
}

/// Stops a standby, writes `mib`, and starts it again.
///
/// # Errors
/// When it does not come back.
pub async fn catch_up(cluster: &mut Cluster, clients: &Clients, mib: u64) -> Result<CatchUp> {
    eprintln!("bench: catching up by {mib} MiB");
    let (primary, standby) = choose(cluster).await?;
    let before = replication(cluster, &primary).await?.end_lsn;
    cluster.stop_node(&standby).await?;
    fill(clients, "catch-up", mib).await?;
    let end = replication(cluster, &primary).await?.end_lsn;
    let began = Instant::now();
    cluster.start_node(&standby)?;
    let connected = wait_standby(cluster, &primary, &standby, |standby| standby.connected).await?;
    let streams = |standby: &StandbyStatus| standby.state == "streaming" && standby.flush_lsn >= end;
    let streaming = wait_standby(cluster, &primary, &standby, streams).await?;
    let applied = wait_standby(cluster, &primary, &standby, |standby| standby.apply_lsn >= end).await?;
    let wal_mib = (end - before) as f64 / MIB;
    let until_streaming_ms = ms(connected, streaming);
    cluster.wait_rejoined(&standby, PATIENCE).await?;
    Ok(CatchUp {
        wal_mib,
        until_connected_ms: ms(began, connected),
        until_streaming_ms,
        until_applied_ms: ms(streaming, applied),
        mib_per_second: wal_mib / (until_streaming_ms / 1e3).max(1e-3),
    })
}

fn segments(data_dir: &Path) -> Result<BTreeSet<String>> {
    let wal = data_dir.join("wal");
    let entries = std::fs::read_dir(&wal).with_context(|| format!("cannot list {}", wal.display()))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names: BTreeSet<String> = names.collect::<std::io::Result<_>>().context("cannot list segments")?;
    Ok(names.into_iter().filter(|name| name.len() == SEGMENT_NAME_LEN).collect())
}

/// Writes until no running node has a segment that the standby had.
async fn outlive(cluster: &Cluster, clients: &Clients, standby: &str) -> Result<()> {
    let had = segments(cluster.data_dir(standby))?;
    let deadline = Instant::now() + RECOVERY_TIMEOUT;
    for number in 0.. {
        let mut left = Vec::new();
        for name in cluster.names().iter().filter(|name| *name != standby) {
            left.extend(
                segments(cluster.data_dir(name))?.intersection(&had).map(|segment| format!("{name} {segment}")),
            );
        }
        if left.is_empty() {
            break;
        }
        ensure!(Instant::now() < deadline, "WAL that nobody needs is not removed: {}", left.join(", "));
        // A checkpoint goes by what is written.
        clients.of(0).put(format!("outlive/{number}"), vec![0; FILL_VALUE_BYTES]).await?;
        tokio::time::sleep(POLL * 20).await;
    }
    Ok(())
}

/// Stops a standby, writes `mib`, lets the others forget the WAL that it would need, and starts it again.
///
/// # Errors
/// When the WAL stays, or the standby does not come back.
pub async fn seeding(cluster: &mut Cluster, clients: &Clients, mib: u64) -> Result<Seeding> {
    eprintln!("bench: seeding after {mib} MiB");
    let (primary, standby) = choose(cluster).await?;
    cluster.client(&primary, ANSWER_TIMEOUT).set_settings(&FORGETFUL).await.context("changing settings")?;
    cluster.stop_node(&standby).await?;
    fill(clients, "seeding", mib).await?;
    outlive(cluster, clients, &standby).await?;
    let began = Instant::now();
    cluster.start_node(&standby)?;
    cluster.wait_rejoined(&standby, RECOVERY_TIMEOUT).await?;
    let until_streaming_ms = ms(began, Instant::now());
    let log = cluster.log(&standby);
    let line = log.lines().rfind(|line| line.contains("the seed is complete")).context("no seed was completed")?;
    let (total_mib, received_mib) = (figure(line, "bytes_total")? / MIB, figure(line, "bytes_received")? / MIB);
    let transfer_ms = figure(line, "elapsed_ms")?;
    let mib_per_second = received_mib / (transfer_ms / 1e3).max(1e-3);
    Ok(Seeding { total_mib, received_mib, transfer_ms, mib_per_second, until_streaming_ms })
}

/// A number of a log line: `name=12`.
fn figure(line: &str, name: &str) -> Result<f64> {
    let (_, rest) = line.split_once(&format!("{name}=")).with_context(|| format!("no {name} in {line}"))?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().with_context(|| format!("{name} is no number in {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_read_from_a_log_line() {
        let line = "INFO bytes_total=1048576 bytes_received=12 elapsed_ms=34 the seed is complete";
        assert_eq!(figure(line, "bytes_total").expect("there"), MIB);
        assert_eq!(figure(line, "elapsed_ms").expect("there"), 34.0);
        assert!(figure(line, "bytes_reused").is_err());
    }

    #[test]
    fn values_are_large_enough_and_different() {
        let mut noise = Noise(1);
        let (one, other) = (noise.value(), noise.value());
        assert!(one.len() >= FILL_VALUE_BYTES && one != other);
    }
}
