//! Scans: pages of a range, read at one position, one after the other as the client takes them.
//!
//! A client that stops reading holds a few pages, and only for a minute: then what is queued is dropped, the scan ends
//! with an error, and its place is free for another one. It never ends as if it were complete. A scan survives the promotion
//! of the standby that it began on: what is visible stays visible. It does not survive that the node gives its data up, to replace
//! it or to stop: it lets go of the engine at once, however slowly its client reads, and says so behind the pages that came.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::Status;
use understudy_rpc::error::RpcError;
use understudy_rpc::{convert, v1};
use understudy_store::{KeyRange, PageLimit};
use understudy_types::limits::SCANS_MAX;

use super::kv::blocking;
use super::reads::ReadPoint;

/// Pages of a scan that wait for a client that reads slowly.
const PAGES_QUEUED_MAX: usize = 2;
/// Entries in one message of a scan.
const PAGE_ENTRIES_MAX: usize = 1_000;
/// Keys and values in one message of a scan, in bytes; one entry may go beyond.
const PAGE_BYTES_MAX: usize = 256 << 10;
/// A client that takes no page for this long has lost its scan.
pub const IDLE_MAX: Duration = Duration::from_secs(60);

type Page = Result<v1::ScanResponse, Status>;

/// The scans of one node.
pub struct Scans {
    places: Arc<Semaphore>,
}

impl Default for Scans {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(SCANS_MAX)) }
    }
}

impl Scans {
    /// A place for one scan.
    ///
    /// # Errors
    /// When all are taken.
    pub fn place(&self, asked: &str) -> Result<OwnedSemaphorePermit, RpcError> {
        let full = |_| RpcError::too_many_reads(asked, SCANS_MAX, "scans are under way");
        Arc::clone(&self.places).try_acquire_owned().map_err(full)
    }
}

/// The pages of one scan.
pub struct Pages {
    queued: Arc<Mutex<mpsc::Receiver<Page>>>,
}

impl Stream for Pages {
    type Item = Page;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Page>> {
        self.queued.lock().unwrap_or_else(PoisonError::into_inner).poll_recv(context)
    }
}

/// Begins a scan at `point`; `place` is given back at its end. A client that takes no page for `idle_max` loses it.
pub fn start(point: ReadPoint, request: v1::ScanRequest, place: OwnedSemaphorePermit, idle_max: Duration) -> Pages {
    let (pages, queued) = mpsc::channel(PAGES_QUEUED_MAX);
    let queued = Arc::new(Mutex::new(queued));
    let out = Out { pages, queued: Arc::downgrade(&queued), idle_max };
    tokio::spawn(async move {
        run_until_given_up(point, request, out).await;
        drop(place);
    });
    Pages { queued }
}

/// Towards the client.
struct Out {
    pages: mpsc::Sender<Page>,
    queued: Weak<Mutex<mpsc::Receiver<Page>>>,
    idle_max: Duration,
}

impl Out {
    /// Whether the scan goes on: not when the client has gone, nor when it has not taken a page for long.
    async fn send(&self, page: Page) -> bool {
        match self.pages.send_timeout(page, self.idle_max).await {
            Ok(()) => true,
            Err(mpsc::error::SendTimeoutError::Closed(_)) => false,
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                self.give_up();
                false
            }
        }
    }

    /// Drops what is queued: only the error is left for the client to find.
    fn give_up(&self) {
        let Some(queued) = self.queued.upgrade() else { return };
        let mut queued = queued.lock().unwrap_or_else(PoisonError::into_inner);
        while queued.try_recv().is_ok() {}
        let why = format!(
            "the scan was ended: the client took none of its entries for {} ms; go on from the last key that came, with \
             consistency at and the position of the scan",
            self.idle_max.as_millis()
        );
        if self.pages.try_send(Err(Status::aborted(why))).is_err() {
            tracing::debug!("the client of an idle scan is gone");
        }
    }
}

/// The scan, for as long as there is the engine that it reads.
async fn run_until_given_up(point: ReadPoint, request: v1::ScanRequest, out: Out) {
    let mut given_up = point.engine.given_up();
    // The engine goes with what is dropped here, before the client is waited for.
    let over = tokio::select! {
        () = run(point, request, &out) => false,
        _ = given_up.wait_for(|given_up| *given_up) => true,
    };
    if over {
        let why = "it stops, or replaces the data that is read; go on from the last key that came";
        out.send(Err(RpcError::not_ready("the rest of the scan", why).into())).await;
    }
}

/// Reads page after page until the range, the limit or the client ends.
async fn run(point: ReadPoint, request: v1::ScanRequest, out: &Out) {
    let mut next = request.start.clone();
    let end: Option<Bytes> = (!request.end.is_empty()).then(|| request.end.clone());
    let mut left = if request.limit == 0 { u64::MAX } else { request.limit };
    let read_position = Some(point.position.into());
    let token = convert::token_bytes(point.token);
    let mut first = true;
    while left > 0 {
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(PAGE_ENTRIES_MAX);
        let (engine, at) = (point.engine.clone(), point.position.lsn);
        let range = KeyRange { start: next.clone(), end: end.clone() };
        let limit = PageLimit { entries_max: count, bytes_max: PAGE_BYTES_MAX };
        let page = match blocking("the scan", point.position, move || engine.scan(&range, at, limit)).await {
            Ok(page) => page,
            Err(error) => {
                out.send(Err(error.into())).await;
                return;
            }
        };
        left -= page.entries.len() as u64;
        let entries: Vec<v1::Entry> = page
            .entries
            .into_iter()
            .map(|entry| v1::Entry { key: entry.key, value: entry.value, version: Some(entry.version.into()) })
            .collect();
        // An empty range still says at which position it is empty; a page without entries in between says nothing.
        let say = first || !entries.is_empty();
        first = false;
        if say && !out.send(Ok(v1::ScanResponse { entries, read_position, token: token.clone() })).await {
            return;
        }
        match page.next {
            Some(key) => next = key,
            None => return,
        }
    }
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
