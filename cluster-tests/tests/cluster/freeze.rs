//! SIGSTOP of the primary for longer than `primary_timeout`, then SIGCONT: it does not know that time has passed.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cluster_tests::cluster::{Cluster, Options, PATIENCE};
use cluster_tests::history::Consistency;
use cluster_tests::node_client::NodeClient;
use cluster_tests::recorder::Recorder;
use cluster_tests::scenario::{SOME, Scenario};
use cluster_tests::view::View;
use futures::future::join_all;
use understudy_types::{Position, TimelineId};

/// Longer than `primary_timeout` (1 s), and than any attempt of a client: what was under way is nobody's any more.
const FREEZE: Duration = Duration::from_secs(4);
/// Before it goes on, requests are sent that its sockets hold for it: it finds them when it wakes up.
const AWAIT_IT: Duration = Duration::from_millis(300);
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
const PROBES_EARLY: usize = 8;

/// What is asked for is less; the assertions leave room for a machine that does other things too.
const OUTAGE_MAX: Duration = Duration::from_secs(6);
/// As clients see it: each may hang at the frozen node more than once.
const FIRST_ACKNOWLEDGEMENT_MAX: Duration = Duration::from_secs(15);
const STREAMS_AGAIN_MAX: Duration = Duration::from_secs(20);

/// Asks the old primary, and nobody else, for a linearizable read and a commit. Both must be refused, unless it was
/// promoted again to a timeline after `timeline`: the answer's position tells.
async fn probe(
    recorder: &Recorder,
    node: &str,
    client: &NodeClient,
    timeline: TimelineId,
    number: usize,
) -> Result<()> {
    let key = format!("register/{}", number % 3);
    let read = recorder.read_at(node, client, &key, Consistency::Linearizable).await;
    if let Ok(read) = read {
        ensure!(read.read_position.timeline > timeline, "the old primary answered a linearizable read: {read:?}");
    }
    let commit = recorder.put_at(client, &key, &format!("probe-{number}")).await;
    if let Ok(done) = commit {
        let position = done.position.map(Position::from).unwrap_or_default();
        ensure!(position.timeline > timeline, "the old primary acknowledged a commit: {done:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_primary_is_frozen_and_continued() -> Result<()> {
    // INV-FENCED, INV-LINEAR.
    freeze_the_primary(&Options::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_reads_by_lease_is_frozen_and_continued() -> Result<()> {
    // INV-LINEAR: it held a lease when it stopped, and must look at the clock when it goes on.
    freeze_the_primary(&Options::default().lease("1s")).await
}

/// For how long no commit could be acknowledged before `timeline`, once that is written down.
async fn outage(cluster: &Cluster, timeline: TimelineId) -> Result<Duration> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let primary = cluster.wait_for("a primary", PATIENCE, |view| view.writable_primary()).await?;
        let history = cluster.client(&primary, PROBE_TIMEOUT).history().await;
        let entries = history.map_or_else(|_| Vec::new(), |history| history.entries);
        let known = entries.iter().find(|entry| entry.timeline == timeline.get()).and_then(|entry| entry.outage_ms);
        if let Some(outage_ms) = known {
            return Ok(Duration::from_millis(outage_ms));
        }
        ensure!(Instant::now() < deadline, "the outage before timeline {timeline} is not told: {entries:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn freeze_the_primary(options: &Options) -> Result<()> {
    let mut scenario = Scenario::begin_with(options).await?;
    let primary = scenario.cluster.wait_settled().await?;
    let old = scenario.workload.progress().timeline();
    let recorder = scenario.workload.recorder.clone();
    let client = scenario.cluster.client(&primary, PROBE_TIMEOUT);

    let frozen = (Instant::now(), recorder.now());
    scenario.cluster.freeze(&primary)?;
    let timeline = scenario.workload.wait_timeline_after(old, PATIENCE).await?;
    let first = scenario.workload.progress().acknowledged[&timeline].first;
    let gap = Duration::from_nanos(first.saturating_sub(frozen.1));
    println!("the new primary acknowledged {} ms after the freeze (asked for: within 2500 ms)", gap.as_millis());
    ensure!(gap <= FIRST_ACKNOWLEDGEMENT_MAX, "the new primary acknowledged after {} ms", gap.as_millis());
    // Clients need some time of their own to find it, and hang at the frozen one meanwhile: the cluster's is shorter.
    let outage = outage(&scenario.cluster, timeline).await?;
    println!("by its own word, no commit could be acknowledged for {} ms", outage.as_millis());
    ensure!(outage <= OUTAGE_MAX, "no commit could be acknowledged for {} ms", outage.as_millis());
    scenario.workload.wait_more(SOME, SOME, PATIENCE).await?;

    tokio::time::sleep((FREEZE - AWAIT_IT).saturating_sub(frozen.0.elapsed())).await;
    let early = join_all((0..PROBES_EARLY).map(|number| probe(&recorder, &primary, &client, timeline, number)));
    let thaw = async {
        tokio::time::sleep(AWAIT_IT).await;
        scenario.cluster.thaw(&primary)?;
        let thawed = Instant::now();
        scenario.cluster.wait_rejoined(&primary, PATIENCE).await?;
        anyhow::Ok(thawed.elapsed())
    };
    let late = async {
        let mut number = PROBES_EARLY;
        loop {
            if let Err(error) = probe(&recorder, &primary, &client, timeline, number).await {
                return (number, error);
            }
            number += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (early, took) = tokio::select! {
        (number, error) = late => return Err(error.context(format!("probe {number}"))),
        both = futures::future::join(early, thaw) => both,
    };
    early.into_iter().collect::<Result<Vec<()>>>()?;
    let took = took?;
    println!("the old primary streamed {} ms after SIGCONT (asked for: within 10000 ms)", took.as_millis());
    ensure!(took <= STREAMS_AGAIN_MAX, "the old primary streams again after {} ms", took.as_millis());
    scenario.verdict().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_frozen_and_continued() -> Result<()> {
    // The other standby acknowledges meanwhile: nobody is promoted.
    let mut scenario = Scenario::begin().await?;
    let names = scenario.cluster.names();
    let settled = |view: &View| {
        let primary = view.settled(&names, None)?;
        let leader = &view.primary()?.raft.as_ref()?.leader;
        let standby = names.iter().find(|name| **name != primary && *name != leader)?;
        Some((standby.clone(), view.timeline()))
    };
    let (standby, timeline) = scenario.cluster.wait_for("a settled cluster", PATIENCE, settled).await?;
    scenario.cluster.freeze(&standby)?;
    let frozen = Instant::now();
    scenario.workload.wait_more(SOME, SOME, PATIENCE).await?;
    tokio::time::sleep(FREEZE.saturating_sub(frozen.elapsed())).await;
    scenario.cluster.thaw(&standby)?;
    scenario.cluster.wait_rejoined(&standby, PATIENCE).await?;
    let verdict = scenario.verdict().await?;
    ensure!(verdict.history.timelines.latest() == timeline, "somebody was promoted");
    Ok(())
}
