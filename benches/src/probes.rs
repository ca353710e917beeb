//! The raw speed of the machine: what a flush and a call cost when nobody does anything with them.
//!
//! Measured before the servers start to work and again at the end, because the disk of a virtual machine is not the same
//! all day. An `fdatasync` is of 400 bytes, about a commit of 100, into a file that is zero-filled and synced already, as
//! WAL segments are: no size or extent changes with it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use understudy_rpc::v1::{Beat, IdentifyRequest};

use crate::figures::Figures;
use crate::load::closed_loop;
use crate::null_server::NullServer;
use crate::workloads::CONNECTIONS_MAX;

const WRITE_BYTES: usize = 400;
const FILE_BYTES: usize = 4 << 20;
/// Threads that flush at the same time, each its own file.
const SYNC_THREADS: [usize; 3] = [1, 2, 8];
const STREAM_WINDOW: usize = 1;

/// One probe.
#[derive(Debug, Clone, Serialize)]
pub struct Probe {
    /// What was done.
    pub name: String,
    /// How fast it was.
    #[serde(flatten)]
    pub figures: Figures,
}

/// All of them, at one time.
#[derive(Debug, Clone, Serialize)]
pub struct Probes {
    /// In the order of the table.
    pub all: Vec<Probe>,
}

fn sync_name(threads: usize) -> String {
    match threads {
        1 => "fdatasync, serial".to_owned(),
        _ => format!("fdatasync, {threads} threads"),
    }
}

fn unary_name(clients: usize) -> String {
    format!("null unary call, {clients} in flight")
}

impl Probes {
    /// Measures everything, `window` each; files are made in `dir`.
    ///
    /// # Errors
    /// When the machine does not do its part.
    pub async fn measure(dir: &Path, clients: &[usize], window: Duration) -> Result<Probes> {
        let mut all = Vec::new();
        let mut add = |name: String, figures: Figures| {
            eprintln!("bench: {name}: {:.3} ms", figures.p50_us / 1e3);
            all.push(Probe { name, figures });
        };
        for threads in SYNC_THREADS {
            let dir = dir.to_owned();
            let figures = tokio::task::spawn_blocking(move || fdatasync(&dir, threads, window)).await;
            add(sync_name(threads), figures.context("a probe's thread")??);
        }
        let server = NullServer::start().await?;
        for in_flight in clients {
            add(unary_name(*in_flight), unary(&server, *in_flight, window).await?);
        }
        add("null stream, round trip".to_owned(), stream(&server, window).await?);
        Ok(Probes { all })
    }

    fn named(&self, name: &str) -> Option<Figures> {
        self.all.iter().find(|probe| probe.name == name).map(|probe| probe.figures)
    }

    /// The median of one call, and of one flush too where that is waited for: what can hardly be gone below. Of the flush
    /// probes the fastest counts: a serial `fdatasync` on an idle virtual disk may take far longer than one beside others.
    pub fn floor_us(&self, flushed: bool) -> f64 {
        let of = |name: &str| self.named(name).map_or(f64::INFINITY, |figures| figures.p50_us);
        let flush = SYNC_THREADS.iter().map(|threads| of(&sync_name(*threads))).fold(f64::INFINITY, f64::min);
        of(&unary_name(1)) + if flushed { flush } else { 0.0 }
    }

    /// What null calls come to in a second with as many clients; none when that was not measured.
    pub fn calls_per_second(&self, clients: usize) -> Option<f64> {
        self.named(&unary_name(clients)).map(|figures| figures.per_second)
    }
}

/// Each thread writes and flushes a file of its own.
fn fdatasync(dir: &Path, threads: usize, window: Duration) -> Result<Figures> {
    let outcomes: Vec<Result<Vec<Duration>>> = std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..threads).map(|number| scope.spawn(move || fdatasync_of_one(dir, number, window))).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a probe panicked"))))
            .collect()
    });
    let mut durations = Vec::new();
    for outcome in outcomes {
        durations.extend(outcome?);
    }
    Ok(Figures::new(durations, window, 0))
}

fn fdatasync_of_one(dir: &Path, number: usize, window: Duration) -> Result<Vec<Duration>> {
    let path = dir.join(format!("probe-{number}"));
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    file.write_all_at(&vec![0; FILE_BYTES], 0).context("cannot zero-fill")?;
    file.sync_all().context("cannot sync")?;
    let (mut durations, mut offset) = (Vec::new(), 0);
    let end = Instant::now() + window;
    loop {
        let began = Instant::now();
        if began >= end {
            break;
        }
        file.write_all_at(&[0x5A; WRITE_BYTES], offset as u64).context("cannot write")?;
        file.sync_data().context("cannot sync")?;
        durations.push(began.elapsed());
        offset = (offset + WRITE_BYTES) % (FILE_BYTES - WRITE_BYTES);
    }
    std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    Ok(durations)
}

async fn unary(server: &NullServer, in_flight: usize, window: Duration) -> Result<Figures> {
    let clients: Vec<_> = (0..in_flight.min(CONNECTIONS_MAX)).map(|_| server.client()).collect::<Result<_>>()?;
    closed_loop(in_flight, window, move |client, _| {
        let mut mesh = clients[client % clients.len()].clone();
        async move {
            mesh.identify(IdentifyRequest {}).await?;
            Ok(())
        }
    })
    .await
}

/// One message there and one back, again and again.
async fn stream(server: &NullServer, window: Duration) -> Result<Figures> {
    let (beats, queued) = mpsc::channel(STREAM_WINDOW);
    let mut mesh = server.client()?;
    // The answer begins with the first message at the latest.
    let (opened, sent) =
        futures::future::join(mesh.beats(ReceiverStream::new(queued)), beats.send(Beat::default())).await;
    sent.context("the stream ended")?;
    let mut replies = opened?.into_inner();
    replies.message().await?;
    let (mut durations, end) = (Vec::new(), Instant::now() + window);
    loop {
        let began = Instant::now();
        if began >= end {
            return Ok(Figures::new(durations, window, 0));
        }
        beats.send(Beat::default()).await.context("the stream ended")?;
        replies.message().await?.context("the stream ended")?;
        durations.push(began.elapsed());
    }
}
