//! Clients that each have one call under way, for a while.
//!
//! The loop is closed: a client asks again when it has its answer. So the rate is what so many clients get, and the latency
//! is what they wait. What is answered while things warm up is not counted; what is answered after the end is not either.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::join_all;

use crate::figures::Figures;

/// Not counted at the beginning of each case: connections are made, and caches filled.
const WARM_UP: Duration = Duration::from_millis(300);

/// What one client has seen.
#[derive(Default)]
struct Seen {
    durations: Vec<Duration>,
    failed: u64,
    why: Option<String>,
}

/// Lets `clients` clients call `call(client, number)` again and again, and measures for `window`.
///
/// # Errors
/// When every call fails, with what the last one said.
pub async fn closed_loop<F, Fut>(clients: usize, window: Duration, call: F) -> Result<Figures>
where
    F: Fn(usize, u64) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    let begin = Instant::now() + WARM_UP;
    let tasks: Vec<_> =
        (0..clients).map(|client| tokio::spawn(one_client(client, begin, begin + window, call.clone()))).collect();
    let mut all = Seen::default();
    for seen in join_all(tasks).await {
        let seen = seen.context("a client's task")?;
        all.durations.extend(seen.durations);
        all.failed += seen.failed;
        all.why = seen.why.or(all.why);
    }
    let why = all.why.unwrap_or_default();
    ensure!(!all.durations.is_empty(), "nothing was answered in {} ms: {why}", window.as_millis());
    if all.failed > 0 {
        eprintln!("bench: {} calls failed, the last one: {why}", all.failed);
    }
    Ok(Figures::new(all.durations, window, all.failed))
}

async fn one_client<F, Fut>(client: usize, begin: Instant, end: Instant, call: F) -> Seen
where
    F: Fn(usize, u64) -> Fut,
    Fut: Future<Output = Result<()>>,
{
    let mut seen = Seen::default();
    let mut number = 0;
    loop {
        let asked = Instant::now();
        if asked >= end {
            return seen;
        }
        let answer = call(client, number).await;
        let answered = Instant::now();
        number += 1;
        match answer {
            Ok(()) if answered >= begin && answered <= end => seen.durations.push(answered - asked),
            Ok(()) => {}
            Err(error) => {
                seen.failed += 1;
                seen.why = Some(format!("{error:#}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refused(_client: usize, _number: u64) -> Result<()> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        anyhow::bail!("no such thing")
    }

    #[tokio::test]
    async fn a_call_that_always_fails_is_told() {
        let error = closed_loop(2, Duration::from_millis(10), refused).await;
        assert!(error.expect_err("refused").to_string().contains("no such thing"));
    }
}
