//! What clients do: puts at every level, batches, reads of every kind.
//!
//! A client is a task with one call under way. Up to [`CONNECTIONS_MAX`] of them have connections of their own; more share
//! those, as the tasks of a few programs would.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use cluster_tests::cluster::Cluster;
use serde::Serialize;
use understudy_client::{Client, Commit, Options, ReadOptions, ReadPreference};
use understudy_types::{DurabilityLevel, SessionToken};

use crate::figures::Figures;
use crate::load::closed_loop;

/// Connections of all clients together to one node.
pub const CONNECTIONS_MAX: usize = 16;
/// Of a value.
pub const VALUE_BYTES: usize = 100;
/// Of a batch.
pub const BATCH_COMMITS: usize = 100;
/// Of keys that are read.
const KEYS: u64 = 10_000;
/// Commits of a batch that writes the keys.
const KEYS_PER_BATCH: u64 = 500;
/// Spreads the numbers of calls over the keys; a prime that is not near a power of two.
const STRIDE: u64 = 7_919;

/// One case of a table.
#[derive(Debug, Clone, Serialize)]
pub struct Case {
    /// The level, or the kind of read.
    pub name: String,
    /// With one call under way each.
    pub clients: usize,
    /// How fast it was: calls, of which each may be many commits.
    #[serde(flatten)]
    pub figures: Figures,
    /// The timelines of the cluster before and after. When they differ there was a failover, and the figures are of that.
    pub timelines: (u32, u32),
}

impl Case {
    /// Whether the primary changed while it was measured.
    pub fn had_failover(&self) -> bool {
        self.timelines.0 != self.timelines.1
    }
}

/// How a case is announced, on standard error.
fn announce(what: &str, clients: usize) {
    eprintln!("bench: {what}, {clients} clients");
}

/// Connections to the cluster.
#[derive(Clone)]
pub struct Clients {
    handles: Vec<Client>,
}

impl Clients {
    /// As many as `clients` need.
    ///
    /// # Errors
    /// Never: the addresses are the harness's own.
    pub async fn connect(cluster: &Cluster, clients: usize) -> Result<Clients> {
        let mut handles = Vec::new();
        for _ in 0..clients.clamp(1, CONNECTIONS_MAX) {
            handles.push(Client::connect(cluster.endpoints(), Options::default()).await.context("the endpoints")?);
        }
        Ok(Clients { handles })
    }

    /// The one that this client uses.
    pub fn of(&self, client: usize) -> &Client {
        &self.handles[client % self.handles.len()]
    }
}

/// Each put another key of the client's own.
///
/// # Errors
/// When none succeeds.
pub async fn puts(clients: &Clients, level: DurabilityLevel, count: usize, window: Duration) -> Result<Figures> {
    announce(&format!("puts at level {level}"), count);
    let (clients, value) = (clients.clone(), Bytes::from(vec![b'v'; VALUE_BYTES]));
    closed_loop(count, window, move |client, number| {
        let (handle, value) = (clients.of(client).clone(), value.clone());
        async move {
            let key = format!("put/{client:03}/{:08}", number % KEYS);
            handle.commit(Commit::new().put(key, value).level(level)).await?;
            Ok(())
        }
    })
    .await
}

/// Batches of independent puts at level `on`.
///
/// # Errors
/// When none succeeds.
pub async fn batches(clients: &Clients, count: usize, window: Duration) -> Result<Figures> {
    announce(&format!("batches of {BATCH_COMMITS}"), count);
    let (clients, value) = (clients.clone(), Bytes::from(vec![b'v'; VALUE_BYTES]));
    closed_loop(count, window, move |client, number| {
        let (handle, value) = (clients.of(client).clone(), value.clone());
        async move {
            let commit = |index: usize| {
                let key = format!("batch/{client:03}/{:04}/{index:03}", number % 1_000);
                Commit::new().put(key, value.clone()).level(DurabilityLevel::On)
            };
            let results = handle.commit_batch((0..BATCH_COMMITS).map(commit).collect()).await?;
            results.into_iter().try_for_each(|result| result.map(drop))?;
            Ok(())
        }
    })
    .await
}

/// How a key is read.
#[derive(Debug, Clone, Copy)]
pub enum ReadKind {
    /// At the primary, confirmed by a majority.
    Linearizable,
    /// At the primary, which holds a lease; the cluster is set to it meanwhile.
    Leased,
    /// On standbys, not before a commit that was made before the reads.
    Session(SessionToken),
    /// On standbys, whatever they have.
    Eventual,
}

impl ReadKind {
    /// For the table.
    pub fn name(self) -> &'static str {
        match self {
            ReadKind::Linearizable => "linearizable by quorum, primary",
            ReadKind::Leased => "linearizable by lease, primary",
            ReadKind::Session(_) => "session, standbys",
            ReadKind::Eventual => "eventual, standbys",
        }
    }

    fn options(self) -> ReadOptions {
        match self {
            ReadKind::Linearizable | ReadKind::Leased => ReadOptions::linearizable(),
            ReadKind::Session(token) => ReadOptions::session(Some(token)).preference(ReadPreference::PreferStandby),
            ReadKind::Eventual => ReadOptions::eventual().preference(ReadPreference::PreferStandby),
        }
    }
}

fn read_key(number: u64) -> String {
    format!("read/{:06}", number % KEYS)
}

/// Writes the keys that are read; gives the token of the last commit.
///
/// # Errors
/// When one is refused.
pub async fn write_keys(clients: &Clients) -> Result<SessionToken> {
    let value = Bytes::from(vec![b'r'; VALUE_BYTES]);
    let mut token = None;
    for begin in (0..KEYS).step_by(KEYS_PER_BATCH as usize) {
        let keys = begin..begin + KEYS_PER_BATCH;
        let commits = keys.map(|number| Commit::new().put(read_key(number), value.clone())).collect();
        for result in clients.of(0).commit_batch(commits).await? {
            token = result?.token.or(token);
        }
    }
    token.context("a commit has no token")
}

/// Reads of keys that are there.
///
/// # Errors
/// When none succeeds.
pub async fn reads(clients: &Clients, kind: ReadKind, count: usize, window: Duration) -> Result<Figures> {
    announce(&format!("reads, {}", kind.name()), count);
    let clients = clients.clone();
    closed_loop(count, window, move |client, number| {
        let handle = clients.of(client).clone();
        async move {
            let key = read_key((number + client as u64).wrapping_mul(STRIDE));
            let read = handle.read(key, kind.options()).await?;
            read.found.context("a key that was written is not there")?;
            Ok(())
        }
    })
    .await
}
