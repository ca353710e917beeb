//! One call to the primary, from the first attempt to its deadline.
//!
//! A call sends one attempt to the primary that the locator knows. An attempt that fails is followed by the next one,
//! elsewhere or after a pause. An attempt that goes unanswered is never given up: after the attempt timeout the
//! locator looks whether another node is the primary by now, and if so a second attempt races the first. That is
//! sound because a commit carries its request id and reads change nothing; at most one attempt per node is under way.

use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep_until};
use tonic::Status;
use tonic::transport::Channel;
use understudy_rpc::error::RpcError;
use understudy_rpc::v1::kv_client::KvClient;
use understudy_types::Position;

use crate::classify::{Failed, Next, classify};
use crate::locate::{Locator, Primary, View};

/// After a refusal that named nobody else, growing by half each time.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// A pause after a node's refusal never exceeds this: a new primary is to be found within 50 ms.
const PAUSE_MAX: Duration = Duration::from_millis(40);
/// The longest pause for a full queue.
const QUEUE_PAUSE_MAX: Duration = Duration::from_millis(500);
/// How often another primary is looked for while an attempt goes unanswered.
const DOUBT_INTERVAL: Duration = Duration::from_millis(50);

/// A call that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The refusal; none at the deadline.
    pub(crate) rejected: Option<RpcError>,
    /// An attempt may have taken effect, or may still.
    pub(crate) loose: bool,
    /// For people: what the last attempts came to.
    pub(crate) why: String,
    /// Of the commit, if a node that does not vouch for it told.
    pub(crate) position: Option<Position>,
}

/// Who an attempt was sent to.
struct Target {
    epoch: u64,
    name: String,
    address: String,
}

/// What the attempts so far came to.
struct Progress {
    last: Option<String>,
    loose: bool,
    position: Option<Position>,
    redirects: u32,
    pause: Duration,
    not_before: Instant,
}

impl Progress {
    fn failure(
        self,
        rejected: Option<RpcError>,
        outstanding: Option<&str>,
        trouble: impl FnOnce() -> String,
    ) -> Failure {
        let why = match (outstanding, self.last) {
            (Some(address), Some(last)) => format!("{address} has not answered; before that: {last}"),
            (Some(address), None) => format!("{address} has not answered"),
            (None, Some(last)) => last,
            (None, None) => trouble(),
        };
        Failure { rejected, loose: self.loose || outstanding.is_some(), why, position: self.position }
    }

    /// Takes over a failed attempt. The next one waits a little, longer each time.
    fn note(&mut self, failed: &Failed, address: &str, pause_max: Duration) {
        self.loose |= failed.loose;
        self.position = failed.position.or(self.position);
        self.last = Some(format!("{address}: {}", failed.why));
        self.not_before = Instant::now() + self.pause;
        self.pause = (self.pause * 3 / 2).min(pause_max);
    }
}

/// Calls `send` with a connection to the primary and the time that is left, until an attempt succeeds, is refused for
/// good, or `deadline` has come.
pub(crate) async fn route<T, F>(
    locator: &Locator,
    attempt_timeout: Duration,
    deadline: Instant,
    send: F,
) -> Result<T, Failure>
where
    F: Fn(KvClient<Channel>, Duration) -> BoxFuture<'static, Result<T, Status>>,
{
    let mut views = locator.subscribe();
    let mut attempts = FuturesUnordered::new();
    let mut targets: Vec<String> = Vec::new();
    let now = Instant::now();
    let mut progress =
        Progress { last: None, loose: false, position: None, redirects: 0, pause: PAUSE_MIN, not_before: now };
    let mut doubt_at = now + attempt_timeout;
    loop {
        let View { epoch, primary } = views.borrow_and_update().clone();
        if let Some(conflict) = locator.conflict() {
            let outstanding = targets.first().map(String::as_str);
            let rejected = Some(RpcError::invalid_argument(conflict));
            return Err(progress.failure(rejected, outstanding, || locator.trouble()));
        }
        let paused = Instant::now() < progress.not_before;
        match primary {
            None => locator.lost(epoch),
            Some(Primary { name, address, .. }) if !paused && !targets.contains(&name) => {
                match locator.nodes.kv(&address) {
                    Ok(client) => {
                        targets.push(name.clone());
                        doubt_at = Instant::now() + attempt_timeout;
                        let answer = send(client, deadline.saturating_duration_since(Instant::now()));
                        attempts.push(async move { (Target { epoch, name, address }, answer.await) });
                    }
                    Err(_) => locator.lost(epoch),
                }
            }
            Some(_) => {}
        }
        tokio::select! {
            biased;
            Some((target, answer)) = attempts.next(), if !attempts.is_empty() => {
                targets.retain(|name| *name != target.name);
                let failed = match answer {
                    Ok(value) => return Ok(value),
                    Err(status) => classify(&status),
                };
                if let Some(rejected) = settle(locator, &mut progress, target, failed) {
                    let outstanding = targets.first().map(String::as_str);
                    return Err(progress.failure(Some(rejected), outstanding, || locator.trouble()));
                }
            }
            () = sleep_until(deadline) => {
                let outstanding = targets.first().map(String::as_str);
                return Err(progress.failure(None, outstanding, || locator.trouble()));
            }
            changed = views.changed() => changed.expect("the locator outlives the calls"),
            () = sleep_until(progress.not_before), if paused => {}
            () = sleep_until(doubt_at), if !attempts.is_empty() => {
                locator.doubt();
                doubt_at = Instant::now() + DOUBT_INTERVAL;
            }
        }
    }
}

/// Does what a failed attempt calls for; the refusal if that is to give up.
fn settle(locator: &Locator, progress: &mut Progress, target: Target, failed: Failed) -> Option<RpcError> {
    let Target { epoch, address, .. } = target;
    tracing::debug!(address, why = failed.why, loose = failed.loose, "an attempt failed");
    let pause_max = if failed.next == Next::Pause { QUEUE_PAUSE_MAX } else { PAUSE_MAX };
    progress.note(&failed, &address, pause_max);
    match failed.next {
        Next::Reject(error) => return Some(error),
        Next::Redirect { name, address: named } => {
            // The first redirect is followed at once; nodes that name one another in a circle are slowed down.
            if progress.redirects == 0 {
                progress.not_before = Instant::now();
            }
            progress.redirects += 1;
            locator.redirect(epoch, &address, name, &named);
        }
        Next::Find => locator.lost(epoch),
        Next::Pause => {}
    }
    None
}
