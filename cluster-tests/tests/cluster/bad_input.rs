//! What a server refuses, as an operator or a client sees it: a clear error, nothing lost, nothing panics.

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster_tests::cluster::{Cluster, Options, PATIENCE};
use cluster_tests::node_client::{put_request, random_request_id, refusal};
use cluster_tests::process::{Server, tail};
use cluster_tests::view::View;
use tonic::Code;
use understudy_rpc::error::Reason;
use understudy_rpc::v1;
use understudy_types::limits::{COMMIT_OPERATIONS_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// To open the store and the logs, and to find something wrong.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(15);
const WATERMARK_INTERVAL: Duration = Duration::from_secs(1);

/// Starts a node's server with other arguments and waits until it ends: it must, with an error and without a panic.
async fn refused(cluster: &Cluster, name: &str, change: impl FnOnce(&mut Vec<String>)) -> Result<String> {
    let mut launch = cluster.launch(name).clone();
    change(&mut launch.arguments);
    launch.log = cluster.dir().join("refused.log");
    std::fs::write(&launch.log, "")?;
    let ended = Server::start(&launch)?.wait(REFUSAL_TIMEOUT).await;
    let text = tail(&launch.log, usize::MAX);
    let status = ended.with_context(|| format!("{:?} was not refused:\n{text}", launch.arguments))?;
    ensure!(!status.success(), "the server took it: {text}");
    ensure!(!text.contains("panicked"), "{text}");
    Ok(text)
}

fn set(arguments: &mut [String], flag: &str, value: &str) {
    let at = arguments.iter().position(|argument| argument == flag).expect("the flag is there");
    value.clone_into(&mut arguments[at + 1]);
}

fn assert_says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "\"{word}\" is not in: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_refuses_what_it_cannot_be_started_with() -> Result<()> {
    let cluster = Cluster::prepare(&Options::default())?;
    let text = refused(&cluster, "n1", |arguments| arguments.push("--no-such-flag".to_owned())).await?;
    assert_says(&text, &["--no-such-flag"]);

    for names in ["ANY 0 (*)", "FIRST 1 (", "ANY x (a)", "1 ()"] {
        let other = ["--synchronous-standby-names", names].map(str::to_owned);
        let text = refused(&cluster, "n1", |arguments| arguments.extend(other)).await?;
        assert_says(&text, &["synchronous-standby-names"]);
    }

    let other = ["--sync-mode", "sometimes"].map(str::to_owned);
    assert_says(&refused(&cluster, "n1", |arguments| arguments.extend(other)).await?, &["sometimes"]);
    assert_says(
        &refused(&cluster, "n1", |arguments| set(arguments, "--wal-segment-size", "3000000")).await?,
        &["3000000"],
    );
    assert_says(&refused(&cluster, "n1", |arguments| set(arguments, "--name", "stranger")).await?, &["stranger"]);

    let listener = TcpListener::bind(cluster.address("n1"))?;
    let text = refused(&cluster, "n1", |_| {}).await?;
    assert_says(&text, &["cannot listen on", cluster.address("n1")]);
    drop(listener);

    let file = cluster.dir().join("a-file");
    std::fs::write(&file, "no directory")?;
    let beneath = file.join("data").display().to_string();
    let text = refused(&cluster, "n1", |arguments| set(arguments, "--data-dir", &beneath)).await?;
    assert_says(&text, &[&beneath]);

    let foreign = cluster.dir().join("foreign");
    std::fs::create_dir(&foreign)?;
    std::fs::write(foreign.join("somebody"), "else's")?;
    let foreign = foreign.display().to_string();
    let text = refused(&cluster, "n1", |arguments| set(arguments, "--data-dir", &foreign)).await?;
    assert_says(&text, &[&foreign, "not empty"]);
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_belongs_to_one_node_one_process_and_one_format() -> Result<()> {
    let mut cluster = Cluster::start(&Options::default()).await?;
    // The directory is in use; the port must be another one for that to show.
    let text = refused(&cluster, "n1", |_| {}).await?;
    assert_says(&text, &["in use"]);

    cluster.stop_node("n2").await?;
    let of_another = cluster.data_dir("n2").display().to_string();
    cluster.stop_node("n1").await?;
    let text = refused(&cluster, "n1", |arguments| set(arguments, "--data-dir", &of_another)).await?;
    assert_says(&text, &["n1", "n2", "belongs to node"]);

    let identity = cluster.data_dir("n1").join("identity");
    let known = std::fs::read_to_string(&identity)?;
    let later = known.replacen("\"format_version\":1", "\"format_version\":99", 1).replacen(
        "\"format_version\": 1",
        "\"format_version\": 99",
        1,
    );
    ensure!(known != later, "the identity file has another form than this test expects: {known}");
    std::fs::write(&identity, later)?;
    assert_says(&refused(&cluster, "n1", |_| {}).await?, &["format version 99"]);
    std::fs::write(&identity, known)?;

    cluster.start_all()?;
    cluster.wait_settled().await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_of_another_cluster_counts_for_nothing() -> Result<()> {
    let mut other = Cluster::start(&Options::default()).await?;
    let client = other.client("n1", ANSWER_TIMEOUT);
    let other_id = client.status().await?.system_id;
    other.stop_node("n1").await?;
    let mut cluster = Cluster::start(&Options::default()).await?;
    let system_id = cluster.client("n2", ANSWER_TIMEOUT).status().await?.system_id;
    ensure!(system_id != other_id, "two clusters have the same system identifier");

    cluster.stop_node("n1").await?;
    std::fs::remove_dir_all(cluster.data_dir("n1"))?;
    copy(other.data_dir("n1"), cluster.data_dir("n1"))?;
    let before = cluster.log("n1").len();
    cluster.start_node("n1")?;
    cluster.give_up("n1");
    cluster.wait_settled().await?;
    let [theirs, ours] = [&other, &cluster].map(|of| of.address("n1").to_owned());
    let says = |cluster: &Cluster| {
        let log = cluster.log("n1");
        log[before..].lines().any(|line| line.contains(&theirs) && line.contains(&ours))
    };
    cluster.wait_for("n1 to say that its data is another node's", PATIENCE, |_| says(&cluster).then_some(())).await?;
    let unlisted = |view: &View| {
        let listed = view.answer("n2")?.sync.clone()?.members;
        (!listed.contains(&"n1".to_owned())).then_some(())
    };
    cluster.wait_for("n1 to be off the sync list", PATIENCE, unlisted).await?;
    if cluster.is_running("n1") {
        cluster.kill9("n1")?;
    }
    other.finish().await?;
    cluster.finish().await
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupted_segment_below_the_watermark_is_set_aside_and_fetched_again() -> Result<()> {
    let mut cluster = Cluster::start(&Options::default()).await?;
    let primary = cluster.wait_settled().await?;
    let standby = cluster.names().into_iter().find(|name| *name != primary).expect("one of three");
    let client = cluster.client(&primary, ANSWER_TIMEOUT);
    for number in 0..20 {
        let key = format!("k{number}");
        client.commit(put_request(random_request_id(), key.as_bytes(), &[b'v'; 10_000])).await?;
    }
    // While there are writes the watermark is persisted every second, and so comes to lie beyond all of these.
    let begin = Instant::now();
    while begin.elapsed() < WATERMARK_INTERVAL * 3 {
        client.commit(put_request(random_request_id(), b"later", b"v")).await?;
    }
    cluster.kill9(&standby)?;
    let wal = cluster.data_dir(&standby).join("wal");
    let mut segments: Vec<_> =
        std::fs::read_dir(&wal)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    segments.retain(|path| path.file_name().is_some_and(|name| name.len() == 24));
    segments.sort();
    let segment = segments.first().context("a segment")?;
    let sound = std::fs::read(segment)?;
    let mut damaged = sound.clone();
    damaged[100_000..100_100].fill(0xFF);
    std::fs::write(segment, &damaged)?;
    cluster.start_node(&standby)?;
    cluster.wait_settled().await?;
    let name = segment.file_name().unwrap_or_default().to_string_lossy().into_owned();
    assert_says(&cluster.log(&standby), &[&name, "corrupt", "expected", "found", "set aside"]);
    let kept = cluster.data_dir(&standby).join("damaged").join("wal").join(&name);
    ensure!(std::fs::read(kept)? == damaged, "a corrupted segment was changed");
    ensure!(
        std::fs::read(segment)?[..200_000] == sound[..200_000],
        "INV-BYTES: the segment that was fetched again differs"
    );
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_what_is_wrong_with_its_request() -> Result<()> {
    let cluster = Cluster::start(&Options::default()).await?;
    let primary = cluster.wait_settled().await?;
    let standby = cluster.names().into_iter().find(|name| *name != primary).expect("one of three");
    let (at_primary, at_standby) = (cluster.client(&primary, ANSWER_TIMEOUT), cluster.client(&standby, ANSWER_TIMEOUT));
    let put = |key: &[u8], value: &[u8]| put_request(random_request_id(), key, value);

    let status = at_standby.commit(put(b"k", b"v")).await.expect_err("a standby takes no commit");
    let error = refusal(&status).context("the refusal has details")?;
    assert_eq!(error.reason, Reason::NotPrimary);
    assert_eq!(error.get("primary_address"), Some(cluster.address(&primary)));
    assert_says(status.message(), &[cluster.address(&primary)]);
    let status =
        at_standby.get(b"k", v1::Consistency::Linearizable).await.expect_err("a standby answers no linearizable read");
    assert_eq!(refusal(&status).map(|error| error.reason), Some(Reason::NotPrimary));
    ensure!(at_standby.get(b"k", v1::Consistency::Eventual).await?.value.is_none(), "nothing was written");

    let (key, value) = (vec![b'k'; KEY_BYTES_MAX], vec![b'v'; VALUE_BYTES_MAX]);
    let too_many = v1::CommitRequest {
        operations: vec![put(b"k", b"").operations[0].clone(); COMMIT_OPERATIONS_MAX + 1],
        ..put(b"k", b"")
    };
    let mut crooked = put(b"k", b"v");
    crooked.request_id = vec![1; 15].into();
    for (request, word) in [
        (put(&[&key[..], b"k"].concat(), b"v"), "16384"),
        (put(b"k", &[&value[..], b"v"].concat()), "4194304"),
        (put(b"", b"v"), "key"),
        (too_many, "100000"),
        (crooked, "request id"),
        (v1::CommitRequest { operations: Vec::new(), ..put(b"k", b"v") }, "operation"),
    ] {
        let status = at_primary.commit(request).await.expect_err("over a limit");
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert_says(status.message(), &[word]);
    }
    // At the limit; in segments of 1 MiB a commit must be smaller than one.
    at_primary.commit(put(&key, b"v")).await?;
    let status = at_primary.commit(put(b"large", &value)).await.expect_err("larger than a segment");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    at_primary.commit(put(b"k", b"still well")).await?;
    cluster.finish().await
}

/// Many times as many as the server takes, and fewer than this process may have files.
const FLOOD: usize = 500;

/// Memory of a process that is in RAM, in MiB.
fn resident_mib(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a process with memory")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? / 1024)
}

/// Opens connections that say nothing, for ever, and keeps the last [`FLOOD`] of them open.
async fn flood(address: String) {
    let mut open = std::collections::VecDeque::new();
    loop {
        match tokio::net::TcpStream::connect(&address).await {
            Ok(stream) => open.push_back(stream),
            Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
        }
        if open.len() > FLOOD {
            open.pop_front();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_without_end_keep_no_member_out() -> Result<()> {
    let options = Options { arguments: ["--max-connections", "64"].map(str::to_owned).to_vec(), ..Options::default() };
    let mut cluster = Cluster::start(&options).await?;
    let primary = cluster.wait_settled().await?;
    let standby = cluster.names().into_iter().find(|name| *name != primary).expect("one of three");
    let client = cluster.client(&primary, ANSWER_TIMEOUT);
    client.commit(put_request(random_request_id(), b"k", b"before")).await?;
    let process = cluster.process_ids()[&primary];
    let before = resident_mib(process)?;
    let flood = tokio::spawn(flood(cluster.address(&primary).to_owned()));

    // Who comes now is told, unless an idle one has just been closed for its silence.
    let refused = async {
        loop {
            let client = cluster.client(&primary, ANSWER_TIMEOUT);
            if let Err(status) = client.get(b"k", v1::Consistency::Eventual).await
                && let Some(error) = refusal(&status)
            {
                return (status.code(), error);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (code, error) = tokio::time::timeout(PATIENCE, refused).await.context("nobody was refused")?;
    assert_eq!((code, error.reason), (Code::ResourceExhausted, Reason::NodeBusy));
    assert_says(&error.message, &["64 connections are open", "try again"]);

    // An operator is let in, unless so many came at once that he had no time to ask.
    let operator = async { while cluster.client(&primary, ANSWER_TIMEOUT).status().await.is_err() {} };
    tokio::time::timeout(PATIENCE, operator).await.context("no operator is let in")?;

    // A member that comes back reaches the primary all the same, and who was there before is served.
    let streams_since = |standbys: &[v1::StandbyStatus]| {
        let streams = |one: &&v1::StandbyStatus| one.name == standby && one.connected && one.state == "streaming";
        standbys.iter().find(streams).map(|one| one.since_ms)
    };
    let killed = streams_since(&client.replication().await?.standbys).context("the standby streams")?;
    cluster.kill9(&standby)?;
    cluster.start_node(&standby)?;
    let streams = async {
        loop {
            let standbys = client.replication().await?.standbys;
            if streams_since(&standbys).is_some_and(|since_ms| since_ms > killed) {
                return Ok::<_, tonic::Status>(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let begin = Instant::now();
    tokio::time::timeout(PATIENCE, streams).await.context("the standby does not stream")??;
    client.commit(put_request(random_request_id(), b"k", b"meanwhile")).await?;
    let (streams_ms, after) = (begin.elapsed().as_millis(), resident_mib(process)?);
    println!("flooded: streams_again_ms={streams_ms} resident_before_mib={before} resident_after_mib={after}");
    ensure!(after < before + 100, "{before} MiB before, {after} MiB after");
    flood.abort();
    cluster.wait_settled().await?;
    assert_says(&cluster.log(&primary), &["max_connections limits them"]);
    cluster.finish().await
}
