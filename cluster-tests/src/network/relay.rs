//! Delay in userspace: not every kernel can delay packets.
//!
//! A relay stands in the namespace of the node that dials. Whatever the node sends to another server's port is
//! redirected to it; it connects onward and passes every byte on, in order, after the delay. Both directions are
//! delayed alike. One thread each, with a runtime of its own, because a namespace belongs to a thread.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytes::{Bytes, BytesMut};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::tools;

const CHUNK_BYTES: usize = 16 << 10;
/// On their way in one direction of one connection.
const CHUNKS_MAX: usize = 1_024;

/// What a link adds to every byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Delay {
    /// The least.
    pub each_way: Duration,
    /// At most so much more, at random. The order stays.
    pub jitter: Duration,
}

/// Ends with its owner, and its connections with it.
#[derive(Debug)]
pub struct Relay {
    delay: watch::Sender<Delay>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Listens at `port` in `namespace` and connects onward to `target`; without a delay at first.
    pub fn start(namespace: &str, port: u16, target: SocketAddr) -> Result<Relay> {
        let file = tools::namespace_file(namespace);
        let namespace = File::open(&file).with_context(|| format!("cannot open {}", file.display()))?;
        let (delay, changes) = watch::channel(Delay::default());
        let (stop, stopped) = oneshot::channel();
        let (ready, listening) = std::sync::mpsc::sync_channel(1);
        let body = move || {
            let serving = enter(&namespace, port).map(|(runtime, listener)| {
                // The other end waits for it; without it nothing was asked.
                if ready.send(Ok(())).is_ok() {
                    runtime.block_on(async {
                        tokio::select! {
                            () = serve(listener, target, changes) => {}
                            _ = stopped => {}
                        }
                    });
                }
            });
            if let Err(error) = serving
                && ready.send(Err(error)).is_err()
            {
                eprintln!("a relay could not start, and nobody asked for it");
            }
        };
        let thread = std::thread::Builder::new().name(format!("relay-{port}")).spawn(body);
        let thread = thread.context("cannot start the thread of a relay")?;
        listening.recv().map_err(|_| anyhow!("the relay at port {port} ended at once"))??;
        Ok(Relay { delay, stop: Some(stop), thread: Some(thread) })
    }

    /// From now on.
    pub fn set(&self, delay: Delay) {
        self.delay.send_replace(delay);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("a relay panicked");
        }
    }
}

fn enter(namespace: &File, port: u16) -> Result<(tokio::runtime::Runtime, TcpListener)> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .context("cannot enter a namespace")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)));
    let listener = listener.with_context(|| format!("cannot listen at port {port}"))?;
    Ok((runtime, listener))
}

async fn serve(listener: TcpListener, target: SocketAddr, delay: watch::Receiver<Delay>) {
    loop {
        let Ok((near, _)) = listener.accept().await else { return };
        let delay = delay.clone();
        tokio::spawn(async move {
            // Whom it cannot reach nobody can: the near side sees its connection end.
            if let Ok(far) = TcpStream::connect(target).await
                && near.set_nodelay(true).and(far.set_nodelay(true)).is_ok()
            {
                let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
                tokio::spawn(pass(near_read, far_write, delay.clone()));
                tokio::spawn(pass(far_read, near_write, delay));
            }
        });
    }
}

/// Passes on what comes, until one of the two sides ends.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: watch::Receiver<Delay>) {
    let (chunks, mut waiting) = mpsc::channel::<(Instant, Bytes)>(CHUNKS_MAX);
    let reading = async move {
        let mut last = Instant::now();
        loop {
            let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
            if !matches!(from.read_buf(&mut buffer).await, Ok(1..)) {
                return;
            }
            last = last.max(Instant::now() + drawn(*delay.borrow()));
            if chunks.send((last, buffer.freeze())).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((due, chunk)) = waiting.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reading, writing);
}

fn drawn(delay: Delay) -> Duration {
    let mut random = [0; 4];
    // Without random bytes there is no jitter.
    let share =
        getrandom::fill(&mut random).map_or(0.0, |()| f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX));
    delay.each_way + delay.jitter.mul_f64(share)
}
