//! `linearizable_reads = lease`: what a primary may answer by itself, and until when nobody else is promoted.
//!
//! That no read is stale under it is also shown by `freeze` and `partitions`, with clients and the checker.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster_tests::cluster::{Cluster, Options, PATIENCE};
use cluster_tests::node_client::{NodeClient, refusal};
use cluster_tests::scenario::{SOME, Scenario};
use understudy_rpc::error::Reason;
use understudy_rpc::v1;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
const KEY: &[u8] = b"register/0";

async fn read(client: &NodeClient) -> Result<v1::GetResponse, tonic::Status> {
    client.get(KEY, v1::Consistency::Linearizable).await
}

fn standbys(cluster: &Cluster, primary: &str) -> Vec<String> {
    cluster.names().into_iter().filter(|name| name != primary).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_answers_by_itself_while_its_lease_runs_and_no_longer() -> Result<()> {
    const LEASE: Duration = Duration::from_secs(6);
    let options = Options { arguments: vec!["--primary-timeout".to_owned(), "10s".to_owned()], ..Options::default() };
    let mut cluster = Cluster::start(&options.lease("6s")).await?;
    let primary = cluster.wait_settled().await?;
    let client = cluster.client(&primary, ANSWER_TIMEOUT);
    let hurried = cluster.client(&primary, Duration::from_millis(500));
    read(&client).await.context("all is well")?;
    for standby in standbys(&cluster, &primary) {
        cluster.freeze(&standby)?;
    }
    let frozen = Instant::now();
    // A majority is silent from here on: by quorum none of these could be answered.
    let mut reads = 0;
    while frozen.elapsed() < LEASE / 3 {
        read(&client).await.with_context(|| format!("read {reads} under the lease"))?;
        reads += 1;
    }
    ensure!(reads > 0, "nothing was read under the lease");
    let refused = loop {
        match read(&hurried).await {
            Ok(_) => ensure!(frozen.elapsed() < LEASE, "it answers {:?} after the last grant", frozen.elapsed()),
            Err(status) if refusal(&status).is_some() => break status,
            // Its own clock may end a request before the node's word is here.
            Err(status) => ensure!(frozen.elapsed() < PATIENCE, "the primary does not say why: {status:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    println!("no answer any more {} ms after the standbys were frozen", frozen.elapsed().as_millis());
    let reason = refusal(&refused).map(|refusal| refusal.reason);
    ensure!(reason == Some(Reason::NotConfirmed), "{refused:?}");
    for standby in standbys(&cluster, &primary) {
        cluster.thaw(&standby)?;
    }
    cluster.wait_settled().await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_restarts_is_still_bound_by_what_it_granted() -> Result<()> {
    // INV-LINEAR: both who could promote are restarted after the primary's death. Neither remembers a grant, and both wait.
    const LEASE: Duration = Duration::from_secs(4);
    let options = Options { arguments: vec!["--primary-timeout".to_owned(), "4s".to_owned()], ..Options::default() };
    let mut scenario = Scenario::begin_with(&options.lease("4s")).await?;
    let primary = scenario.cluster.wait_settled().await?;
    let old = scenario.workload.progress().timeline();
    let others = standbys(&scenario.cluster, &primary);
    scenario.cluster.kill9_all()?;
    let killed = scenario.workload.recorder.now();
    for standby in &others {
        scenario.cluster.start_node(standby)?;
    }
    let timeline = scenario.workload.wait_timeline_after(old, PATIENCE).await?;
    let first = scenario.workload.progress().acknowledged[&timeline].first;
    let waited = Duration::from_nanos(first.saturating_sub(killed));
    println!("the new primary acknowledged {} ms after the death of all", waited.as_millis());
    ensure!(waited >= LEASE, "the dead primary's lease of 4 s may still have run: {} ms", waited.as_millis());
    scenario.workload.wait_more(SOME, SOME, PATIENCE).await?;
    scenario.cluster.start_node(&primary)?;
    scenario.cluster.wait_rejoined(&primary, PATIENCE).await?;
    scenario.verdict().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_come_and_go_while_clients_read() -> Result<()> {
    let mut scenario = Scenario::begin().await?;
    let primary = scenario.cluster.wait_settled().await?;
    let client = scenario.cluster.client(&primary, ANSWER_TIMEOUT);
    for settings in [
        [("linearizable_reads", "lease"), ("primary_lease", "1s")],
        [("linearizable_reads", "lease"), ("primary_lease", "200ms")],
        [("linearizable_reads", "quorum"), ("primary_lease", "1s")],
        [("linearizable_reads", "lease"), ("primary_lease", "1s")],
    ] {
        client.set_settings(&settings).await.with_context(|| format!("{settings:?}"))?;
        scenario.workload.wait_more(SOME, SOME, PATIENCE).await?;
    }
    let refused = client.set_settings(&[("primary_lease", "5s")]).await.expect_err("longer than primary_timeout");
    ensure!(refused.message().contains("primary_timeout is 1s"), "{refused:?}");
    let primary = scenario.cluster.wait_settled().await?;
    let old = scenario.workload.progress().timeline();
    scenario.cluster.kill9(&primary)?;
    scenario.workload.wait_timeline_after(old, PATIENCE).await?;
    scenario.cluster.start_node(&primary)?;
    scenario.cluster.wait_rejoined(&primary, PATIENCE).await?;
    scenario.verdict().await?;
    Ok(())
}
