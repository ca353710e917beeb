//! The levels of durability, batches, who waits for whom, and the state of replication, on real processes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster_tests::cluster::{Cluster, Options, PATIENCE};
use cluster_tests::node_client::{NodeClient, put_request, random_request_id, refusal};
use cluster_tests::view::View;
use futures::future::join_all;
use tonic::Code;
use understudy_client::{Client, ClientError, Commit};
use understudy_rpc::error::Reason;
use understudy_rpc::v1::{self, cancel_waiting_request::Which, commit_result::Result as Wire};
use understudy_types::DurabilityLevel;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
const LEVELS: [v1::Durability; 5] = [
    v1::Durability::Off,
    v1::Durability::Local,
    v1::Durability::RemoteWrite,
    v1::Durability::On,
    v1::Durability::RemoteApply,
];
/// For each level.
const COMMITS: usize = 40;
/// A level that waited for the standbys' status interval (1 s) instead of their acknowledgement would be far above.
const MEDIAN_MAX: Duration = Duration::from_millis(500);

fn put(key: &str, level: v1::Durability) -> v1::CommitRequest {
    v1::CommitRequest { durability: level.into(), ..put_request(random_request_id(), key.as_bytes(), b"v") }
}

/// A cluster in which every commit needs both standbys, and the names: the primary, then the standbys.
async fn strict() -> Result<(Cluster, String, Vec<String>)> {
    let cluster = Cluster::start(&Options::default().sync("ANY 2 (*)", "required")).await?;
    let primary = cluster.wait_settled().await?;
    let standbys = cluster.names().into_iter().filter(|name| *name != primary).collect();
    Ok((cluster, primary, standbys))
}

async fn has(client: &NodeClient, key: &str) -> Result<bool> {
    Ok(client.get(key.as_bytes(), v1::Consistency::Eventual).await?.value.is_some())
}

/// Waits until somebody waits on the primary who is what is looked for.
async fn wait_waiting(client: &NodeClient, found: impl Fn(&v1::WaitingCommit) -> bool) -> Result<v1::WaitingCommit> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let waiting = client.waiting().await.unwrap_or_default();
        if let Some(commit) = waiting.commits.iter().find(|commit| found(commit)) {
            return Ok(commit.clone());
        }
        ensure!(Instant::now() < deadline, "nobody waits as expected: {waiting:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// SYNC-1: each level is acknowledged, `remote_apply` only when every listed standby shows the commit.
#[tokio::test(flavor = "multi_thread")]
async fn each_level_is_acknowledged_and_remote_apply_is_seen_on_the_standbys() -> Result<()> {
    let (cluster, primary, standbys) = strict().await?;
    let client = cluster.client(&primary, ANSWER_TIMEOUT);
    let readers: Vec<NodeClient> = standbys.iter().map(|name| cluster.client(name, ANSWER_TIMEOUT)).collect();
    for level in LEVELS {
        let mut took = Vec::with_capacity(COMMITS);
        for number in 0..COMMITS {
            let key = format!("{}/{number}", level.as_str_name());
            let began = Instant::now();
            client.commit(put(&key, level)).await?;
            took.push(began.elapsed());
            if level == v1::Durability::RemoteApply {
                for reader in &readers {
                    ensure!(has(reader, &key).await?, "{key} is acknowledged and not visible on a sync standby");
                }
            }
        }
        took.sort();
        let median = took[COMMITS / 2];
        println!(
            "{}: median {} us, longest {} us",
            level.as_str_name(),
            median.as_micros(),
            took[COMMITS - 1].as_micros()
        );
        ensure!(median < MEDIAN_MAX, "{} takes {} ms", level.as_str_name(), median.as_millis());
    }
    // One that names no level has the cluster's default.
    client.commit(put("default", v1::Durability::Unspecified)).await?;
    cluster.finish().await
}

/// SYNC-7, SYNC-9, MON-1: with a standby frozen commits wait; it is named, and a wait that is ended is unknown.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_whom_is_told_and_a_cancelled_wait_is_unknown() -> Result<()> {
    let (mut cluster, primary, standbys) = strict().await?;
    let [frozen, well] = <[String; 2]>::try_from(standbys).expect("two standbys");
    let client = cluster.client(&primary, ANSWER_TIMEOUT);
    cluster.freeze(&frozen)?;
    let id = random_request_id();
    let waits = v1::CommitRequest { durability: v1::Durability::On.into(), ..put_request(id, b"a", b"1") };
    let waiting = tokio::spawn({
        let (client, waits) = (client.clone(), waits.clone());
        async move { client.commit(waits).await }
    });
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let told = wait_waiting(&client, |commit| commit.request_id == hex && commit.nodes == [frozen.clone()]).await?;
    ensure!(told.level == "on" && told.why.contains(&format!("{frozen} to flush it")), "{told:?}");
    let older = wait_waiting(&client, |commit| commit.request_id == hex && commit.waited_ms > told.waited_ms).await?;
    ensure!(older.lsn == told.lsn, "{older:?}");
    let status = client.status().await?;
    ensure!(status.waiting_commits == 1 && status.oldest_waiting_ms >= older.waited_ms, "{status:?}");
    ensure!(status.waiting_for.contains(&frozen), "{status:?}");

    let replication = client.replication().await?;
    let of =
        |name: &str| replication.standbys.iter().find(|standby| standby.name == name).cloned().context("a standby");
    let (behind, up) = (of(&frozen)?, of(&well)?);
    ensure!(up.state == "streaming" && up.sync_state == "quorum" && up.sync_priority == 1, "{up:?}");
    ensure!(up.flush_lsn >= told.lsn && up.sent_lsn >= up.write_lsn && up.write_lsn >= up.flush_lsn, "{up:?}");
    ensure!(up.since_ms > 0 && up.reply_time_ms >= up.since_ms && up.flush_lag_us.is_some(), "{up:?}");
    ensure!(behind.flush_lag_bytes > 0 && behind.flush_lag_us > up.flush_lag_us, "{behind:?} and {up:?}");

    // Nobody but the primary knows, and a standby says who does.
    let refused = cluster.client(&well, ANSWER_TIMEOUT).waiting().await.expect_err("not the primary");
    let refused = refusal(&refused).context("a refusal of our own")?;
    ensure!(refused.reason == Reason::NotPrimary, "{refused:?}");
    ensure!(refused.get("primary_address") == Some(cluster.address(&primary)), "{refused:?}");

    let which = |which| v1::CancelWaitingRequest { which: Some(which) };
    ensure!(client.cancel_waiting(which(Which::RequestId(vec![9; 16].into()))).await? == 0);
    ensure!(client.cancel_waiting(which(Which::RequestId(id.to_vec().into()))).await? == 1);
    let unknown = waiting.await?.expect_err("a cancelled wait is no success");
    let unknown = refusal(&unknown).context("a refusal of our own")?;
    ensure!(unknown.reason == Reason::CommitOutcomeUnknown && unknown.get("why") == Some("cancelled"), "{unknown:?}");

    // A deadline is unknown too. Later the request id tells what became of both.
    client.set_settings(&[("commit_deadline", "300ms")]).await?;
    let second = put("b", v1::Durability::RemoteApply);
    let began = Instant::now();
    let error = client.commit(second.clone()).await.expect_err("the standby is frozen");
    ensure!(
        began.elapsed() < ANSWER_TIMEOUT / 2,
        "commit_deadline was changed, and not gone by: {:?}",
        began.elapsed()
    );
    let unknown = refusal(&error).context("a refusal of our own")?;
    ensure!(unknown.reason == Reason::CommitOutcomeUnknown && unknown.get("why") == Some("deadline"), "{unknown:?}");
    ensure!(error.code() == Code::DeadlineExceeded, "{error:?}");
    client.set_settings(&[("commit_deadline", "30s")]).await?;
    cluster.thaw(&frozen)?;
    for request in [waits, second] {
        let done = client.commit(request).await?;
        ensure!(done.already_done, "{done:?}");
    }
    ensure!(client.waiting().await?.total == 0);
    cluster.finish().await
}

/// SYNC-9: a rule that nobody meets is said to be one.
#[tokio::test(flavor = "multi_thread")]
async fn a_rule_that_nobody_meets_is_said_to_be_one() -> Result<()> {
    let mut cluster = Cluster::prepare(&Options::default().sync("ANY 1 (nobody)", "required"))?;
    cluster.start_all()?;
    // It is not writable at level `on`, so it never counts as settled.
    let opened = |view: &View| {
        let primary = view.primary()?;
        (primary.answered_by == primary.primary && primary.election.is_none()).then(|| primary.primary.clone())
    };
    let primary = cluster.wait_for("a primary", PATIENCE, opened).await?;
    let client = cluster.client(&primary, ANSWER_TIMEOUT);
    let commit = tokio::spawn({
        let client = client.clone();
        async move {
            // Whoever was promoted opens its timeline first.
            loop {
                match client.commit(put("a", v1::Durability::On)).await {
                    Err(status) if refusal(&status).is_some_and(|it| it.reason == Reason::NoPrimary) => {}
                    outcome => return outcome,
                }
            }
        }
    });
    let told = wait_waiting(&client, |commit| commit.why.contains("nobody can acknowledge")).await?;
    ensure!(told.why.contains("ANY 1 (nobody)") && told.nodes.is_empty(), "{told:?}");
    ensure!(client.cancel_waiting(v1::CancelWaitingRequest { which: Some(Which::All(true)) }).await? == 1);
    ensure!(commit.await?.is_err());
    cluster.finish().await
}

/// INV-DURABLE for `remote_write`: the primary's process dies, and every commit that was acknowledged is there.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_at_remote_write_survives_a_kill_of_the_primary() -> Result<()> {
    let mut cluster = Cluster::start(&Options::default().sync("ANY 1 (*)", "preferred")).await?;
    let client = Client::connect(cluster.endpoints(), understudy_client::Options::default()).await?;
    for round in 0..3 {
        let primary = cluster.wait_settled().await?;
        let before = client.get("warm").await?.position.timeline;
        let writers = (0..8).map(|writer| {
            let client = client.clone();
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for number in 0.. {
                    let key = format!("{round}/{writer}/{number}");
                    let commit = Commit::new().put(key.clone(), "v").level(DurabilityLevel::RemoteWrite);
                    let timeline = match client.commit(commit).await {
                        Ok(outcome) => outcome.position.timeline,
                        Err(ClientError::Unknown { .. }) => continue,
                        Err(error) => return Err(error),
                    };
                    acknowledged.push(key);
                    if timeline > before && number > 50 {
                        break;
                    }
                }
                Ok(acknowledged)
            })
        });
        let writers: Vec<_> = writers.collect();
        tokio::time::sleep(Duration::from_millis(500)).await;
        cluster.kill9(&primary)?;
        let mut acknowledged = Vec::new();
        for keys in join_all(writers).await {
            acknowledged.extend(keys??);
        }
        ensure!(acknowledged.len() > 8, "hardly anything was acknowledged: {}", acknowledged.len());
        // What is acknowledged at remote_write is visible once it is safe: a commit at `on` behind all of it waits for that.
        client.commit(Commit::new().put("behind", "v").level(DurabilityLevel::On)).await?;
        for key in &acknowledged {
            ensure!(client.get(key.clone()).await?.found.is_some(), "{key} was acknowledged and is lost");
        }
        println!("round {round}: {} acknowledged at remote_write, none lost", acknowledged.len());
        cluster.start_node(&primary)?;
        cluster.wait_rejoined(&primary, PATIENCE).await?;
    }
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_has_a_result_for_each_commit() -> Result<()> {
    let (cluster, primary, standbys) = strict().await?;
    let client = cluster.client(&primary, ANSWER_TIMEOUT);
    let absent = || v1::Precondition {
        key: "1".into(),
        condition: Some(v1::precondition::Condition::Absent(v1::precondition::Absent {})),
    };
    let first = put("1", v1::Durability::RemoteApply);
    let refused = v1::CommitRequest { preconditions: vec![absent()], ..put("2", v1::Durability::On) };
    let malformed = v1::CommitRequest::default();
    let mut commits = vec![first.clone(), refused, malformed, put("3", v1::Durability::Unspecified), first];
    commits.extend((0..200).map(|number| put(&format!("many/{number}"), v1::Durability::On)));
    let results = client.commit_batch(commits).await?.results;
    ensure!(results.len() == 205);
    let committed = |at: usize| match &results[at].result {
        Some(Wire::Committed(committed)) => Ok(committed.clone()),
        other => Err(anyhow::anyhow!("{at} was not committed: {other:?}")),
    };
    let failed = |at: usize| match &results[at].result {
        Some(Wire::Failed(failure)) => Ok(failure.clone()),
        other => Err(anyhow::anyhow!("{at} did not fail: {other:?}")),
    };
    let version = committed(0)?.position.context("a position")?;
    let precondition = failed(1)?;
    ensure!(
        precondition.reason == "PRECONDITION_FAILED" && precondition.code == i32::from(Code::Aborted),
        "{precondition:?}"
    );
    let found = precondition.metadata.get("found").context("what was found")?;
    ensure!(found.contains(&format!("@{}", version.timeline)), "{precondition:?}");
    ensure!(failed(2)?.reason == "INVALID_ARGUMENT");
    ensure!(!committed(3)?.already_done);
    let again = committed(4)?;
    ensure!(again.already_done && again.position == Some(version), "{again:?}");
    for at in 5..205 {
        committed(at)?;
    }
    for standby in &standbys {
        ensure!(has(&cluster.client(standby, ANSWER_TIMEOUT), "1").await?, "the batch is not applied on {standby}");
    }
    // Beyond its bounds, and to the wrong node: refused as a whole.
    let error = client.commit_batch(vec![put("x", v1::Durability::On); 1_001]).await.expect_err("too many");
    ensure!(error.code() == Code::InvalidArgument && error.message().contains("1000"), "{error:?}");
    let error = cluster.client(&standbys[0], ANSWER_TIMEOUT).commit_batch(vec![put("x", v1::Durability::On)]).await;
    ensure!(refusal(&error.expect_err("a standby")).is_some_and(|error| error.reason == Reason::NotPrimary));
    // And by the client, which finds the primary.
    let client = Client::connect(cluster.endpoints(), understudy_client::Options::default()).await?;
    let batch = vec![Commit::new().put("c", "1"), Commit::new().put("d", "1").if_absent("c")];
    let results = client.commit_batch(batch).await?;
    ensure!(matches!(results.as_slice(), [Ok(_), Err(ClientError::Aborted { .. })]), "{results:?}");
    cluster.finish().await
}
