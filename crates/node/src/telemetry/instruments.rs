//! What is counted and timed while the node works: atomics, of a size that does not grow with what they have seen.
//!
//! A histogram here is an array of counters: recording is two additions, reading it for a scrape takes nothing away and
//! stops nobody. Series by label live in a short list that is bounded, because their labels are words of the program.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// Upper bounds of the buckets, in microseconds.
const BOUNDS_US: [u64; 18] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000,
];
/// Combinations of labels of one family; more than the program has words for.
const SERIES_MAX: usize = 64;
/// gRPC methods that are told apart.
const METHODS_MAX: usize = 256;
/// gRPC's status codes, 0 to 16.
const CODES: usize = 17;

/// Durations, in buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    counts: [AtomicU64; BOUNDS_US.len() + 1],
    sum_ns: AtomicU64,
}

impl Histogram {
    /// Adds one.
    pub fn record(&self, duration: Duration) {
        let bucket = BOUNDS_US.partition_point(|bound_us| Duration::from_micros(*bound_us) < duration);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Each bucket's upper bound in seconds, none for the last, and what is in it alone.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<f64>, u64)> {
        let bounds = BOUNDS_US.iter().map(|bound_us| Some(Duration::from_micros(*bound_us).as_secs_f64()));
        bounds.chain([None]).zip(&self.counts).map(|(bound, count)| (bound, count.load(Ordering::Relaxed)))
    }

    /// Of all that was recorded.
    pub fn sum_seconds(&self) -> f64 {
        Duration::from_nanos(self.sum_ns.load(Ordering::Relaxed)).as_secs_f64()
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Adds `count`.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// As it is now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The same figure for each combination of `N` words.
#[derive(Debug, Default)]
pub struct Family<T, const N: usize> {
    series: RwLock<Vec<([&'static str; N], Arc<T>)>>,
}

impl<T: Default, const N: usize> Family<T, N> {
    /// The one with these labels; a combination beyond the bound is given a series that nobody sees.
    pub fn with(&self, labels: [&'static str; N]) -> Arc<T> {
        let found = |series: &[([&'static str; N], Arc<T>)]| {
            series.iter().find(|(known, _)| *known == labels).map(|(_, one)| Arc::clone(one))
        };
        if let Some(one) = found(&self.series.read().unwrap_or_else(PoisonError::into_inner)) {
            return one;
        }
        let mut series = self.series.write().unwrap_or_else(PoisonError::into_inner);
        found(&series).unwrap_or_else(|| {
            let one = Arc::new(T::default());
            if series.len() < SERIES_MAX {
                series.push((labels, Arc::clone(&one)));
            }
            one
        })
    }

    /// All of them.
    pub fn each(&self, mut visit: impl FnMut(&[&'static str; N], &T)) {
        for (labels, one) in &*self.series.read().unwrap_or_else(PoisonError::into_inner) {
            visit(labels, one);
        }
    }
}

/// gRPC requests by method and code.
#[derive(Debug, Default)]
pub struct Requests {
    methods: RwLock<BTreeMap<Box<str>, [AtomicU64; CODES]>>,
}

impl Requests {
    /// Counts one. `method` must be one that exists, or a word for those that do not.
    pub fn record(&self, method: &str, code: i32) {
        // What is not a code of gRPC is unknown, 2.
        let code = usize::try_from(code).ok().filter(|code| *code < CODES).unwrap_or(2);
        if let Some(codes) = self.methods.read().unwrap_or_else(PoisonError::into_inner).get(method) {
            codes[code].fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut methods = self.methods.write().unwrap_or_else(PoisonError::into_inner);
        if methods.len() < METHODS_MAX {
            methods.entry(method.into()).or_default()[code].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All that were seen, with how often.
    pub fn each(&self, mut visit: impl FnMut(&str, i32, u64)) {
        for (method, codes) in &*self.methods.read().unwrap_or_else(PoisonError::into_inner) {
            for (code, count) in (0..).zip(codes) {
                match count.load(Ordering::Relaxed) {
                    0 => {}
                    count => visit(method, code, count),
                }
            }
        }
    }
}

/// The stages of a commit that are timed.
#[derive(Debug, Default)]
pub struct StageTimes {
    /// In the queue of the sequencer.
    pub queue: Histogram,
    /// Validated and laid out in the log.
    pub append: Histogram,
    /// From the append to the local disk.
    pub flush: Histogram,
    /// On a standby: from its arrival to its disk.
    pub remote_flush: Histogram,
    /// On the primary: from the append until it is safe.
    pub safe: Histogram,
    /// From when it may be applied until it is visible.
    pub apply: Histogram,
}

impl StageTimes {
    /// With the names that the label has.
    pub fn all(&self) -> [(&'static str, &Histogram); 6] {
        [
            ("queue", &self.queue),
            ("append", &self.append),
            ("flush", &self.flush),
            ("remote_flush", &self.remote_flush),
            ("safe", &self.safe),
            ("apply", &self.apply),
        ]
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Instruments {
    /// By stage.
    pub stages: StageTimes,
    /// Of acknowledged commits, by level.
    pub commit: Family<Histogram, 1>,
    /// By level and result.
    pub commits: Family<Counter, 2>,
    /// Asked for and not answered.
    pub in_flight: AtomicU64,
    /// By consistency.
    pub read: Family<Histogram, 1>,
    /// Of the WAL.
    pub fsync: Histogram,
    /// By method and code.
    pub requests: Requests,
    /// Of the gRPC port, by why they were not served.
    pub connections_refused: Family<Counter, 1>,
    /// At the HTTP port.
    pub http_refused: Counter,
    /// Traced commits that were given up.
    pub marks_dropped: Counter,
    /// Spans that were given up.
    pub spans_dropped: Counter,
    /// Batches of spans that were taken.
    pub exports_ok: Counter,
    /// Batches of spans that were not.
    pub exports_failed: Counter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_micros(50));
        histogram.record(Duration::from_nanos(50_001));
        let counts: Vec<u64> = histogram.buckets().map(|(_, count)| count).collect();
        assert_eq!(counts[..3], [1, 1, 0]);
    }

    #[test]
    fn series_and_methods_are_bounded() {
        let family: Family<Counter, 1> = Family::default();
        let words: Vec<&'static str> = (0..1_000).map(|n| &*Box::leak(n.to_string().into_boxed_str())).collect();
        words.iter().for_each(|word| family.with([word]).increment());
        family.with([words[0]]).increment();
        let mut seen = Vec::new();
        family.each(|[word], counter| seen.push((*word, counter.get())));
        assert_eq!((seen.len(), seen[0], seen[1]), (SERIES_MAX, ("0", 2), ("1", 1)));

        let requests = Requests::default();
        words.iter().for_each(|word| requests.record(word, 0));
        requests.record("0", 99);
        let mut seen = Vec::new();
        requests.each(|method, code, count| seen.push((method.to_owned(), code, count)));
        assert_eq!(seen.len(), METHODS_MAX + 1);
        assert!(seen.contains(&("0".to_owned(), 2, 1)), "{seen:?}");
    }
}
