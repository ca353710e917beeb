//! Histograms out of a server's `/metrics`.
//!
//! Two looks are subtracted, so that only what happened between them counts. Buckets are coarse: a median is interpolated
//! within its bucket, as Prometheus does it, and the mean, which is exact, stands beside it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Fetches `/metrics`.
///
/// # Errors
/// When the server does not answer with them.
pub async fn metrics(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.context("cannot ask for metrics")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.context("cannot read metrics")?;
    if !answer.starts_with("HTTP/1.1 200") {
        bail!("{address} answers {}", answer.lines().next().unwrap_or_default());
    }
    Ok(answer)
}

/// One series.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram {
    /// How many are not above each bound, in nanoseconds, in their order; the last bound is the largest number.
    below: BTreeMap<u64, u64>,
    sum_seconds: f64,
    count: u64,
}

/// What a histogram says.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Stage {
    /// How many were recorded.
    pub count: u64,
    /// Interpolated.
    pub p50_us: f64,
    /// Interpolated.
    pub p99_us: f64,
    /// Exact.
    pub mean_us: f64,
}

/// The part of `text` that is `name`, with `label` (`name="value"`; empty for no label).
pub fn histogram(text: &str, name: &str, label: &str) -> Histogram {
    let mut found = Histogram::default();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(name).and_then(|rest| rest.strip_prefix('_')) else { continue };
        let Some((series, value)) = rest.rsplit_once(' ').filter(|(series, _)| series.contains(label)) else {
            continue;
        };
        let number = value.parse::<f64>().unwrap_or_default();
        if series.starts_with("bucket") {
            let bound = series.split_once("le=\"").and_then(|(_, rest)| rest.split('"').next());
            found.below.insert(bound_ns(bound.unwrap_or_default()), number as u64);
        } else if series.starts_with("sum") {
            found.sum_seconds = number;
        } else if series.starts_with("count") {
            found.count = number as u64;
        }
    }
    found
}

fn bound_ns(text: &str) -> u64 {
    text.parse::<f64>()
        .ok()
        .filter(|seconds| seconds.is_finite())
        .map_or(u64::MAX, |seconds| (seconds * 1e9).round() as u64)
}

impl Histogram {
    /// What came since `before`.
    pub fn since(&self, before: &Histogram) -> Histogram {
        let less = |(bound, count): (&u64, &u64)| (*bound, count - before.below.get(bound).unwrap_or(&0));
        Histogram {
            below: self.below.iter().map(less).collect(),
            sum_seconds: self.sum_seconds - before.sum_seconds,
            count: self.count - before.count,
        }
    }

    /// None when nothing was recorded.
    pub fn stage(&self) -> Option<Stage> {
        let (p50_us, p99_us) = (self.quantile_us(0.5)?, self.quantile_us(0.99)?);
        Some(Stage { count: self.count, p50_us, p99_us, mean_us: self.sum_seconds * 1e6 / self.count as f64 })
    }

    fn quantile_us(&self, share: f64) -> Option<f64> {
        let rank = self.count as f64 * share;
        let (mut lower_ns, mut lower_count) = (0, 0);
        for (bound_ns, count) in &self.below {
            if *count > lower_count && *count as f64 >= rank {
                let within = (rank - lower_count as f64) / (count - lower_count) as f64;
                // Beyond the last finite bound nothing is known.
                let upper_ns = if *bound_ns == u64::MAX { lower_ns } else { *bound_ns };
                return Some((lower_ns as f64 + (upper_ns - lower_ns) as f64 * within) / 1e3);
            }
            (lower_ns, lower_count) = (*bound_ns, *count);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# TYPE x_seconds histogram\n\
        x_seconds_bucket{stage=\"a\",le=\"0.0001\"} 10\nx_seconds_bucket{stage=\"a\",le=\"0.0002\"} 30\n\
        x_seconds_bucket{stage=\"a\",le=\"+Inf\"} 30\nx_seconds_sum{stage=\"a\"} 0.003\nx_seconds_count{stage=\"a\"} 30\n\
        x_seconds_bucket{stage=\"b\",le=\"+Inf\"} 7\nx_seconds_count{stage=\"b\"} 7\n";

    #[test]
    fn a_series_is_found_by_its_label_and_interpolated() {
        let stage = histogram(TEXT, "x_seconds", "stage=\"a\"").stage().expect("recorded");
        assert_eq!((stage.count, stage.p50_us.round(), stage.mean_us.round()), (30, 125.0, 100.0));
        assert!(histogram(TEXT, "y_seconds", "").stage().is_none());
    }

    #[test]
    fn only_what_came_since_counts() {
        let all = histogram(TEXT, "x_seconds", "stage=\"a\"");
        assert!(all.since(&all).stage().is_none());
        assert_eq!(all.since(&Histogram::default()), all);
    }
}
