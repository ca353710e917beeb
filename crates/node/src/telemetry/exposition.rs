//! Prometheus' text format.
//!
//! Samples may be set in any order: they are printed by metric, in the order of the table, each under its help and type.
//! A metric that has no sample is not printed.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::instruments::Histogram;
use super::table::{Metric, TABLE};

/// Answered with the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One answer to a scrape.
#[derive(Debug, Default)]
pub struct Exposition {
    /// Lines, by the metric's name.
    samples: BTreeMap<&'static str, String>,
}

impl Exposition {
    /// Sets a gauge or a counter. `labels` are the values, in the order of the metric's labels.
    ///
    /// # Panics
    /// When there are more or fewer values than labels: the table and the caller disagree.
    pub fn set(&mut self, metric: &'static Metric, labels: &[&str], value: f64) {
        let labels = labels_text(metric, labels, None);
        let lines = self.samples.entry(metric.name).or_default();
        // Writing to a string does not fail.
        writeln!(lines, "{}{labels} {value}", metric.name).ok();
    }

    /// The same for a number of bytes, of events, and the like.
    pub fn count(&mut self, metric: &'static Metric, labels: &[&str], value: u64) {
        let labels = labels_text(metric, labels, None);
        let lines = self.samples.entry(metric.name).or_default();
        writeln!(lines, "{}{labels} {value}", metric.name).ok();
    }

    /// 1 for `present` among `all`, 0 for the others.
    pub fn one_of(&mut self, metric: &'static Metric, all: &[&str], present: Option<&str>) {
        for value in all {
            self.count(metric, &[value], u64::from(present == Some(*value)));
        }
    }

    /// All buckets of a histogram.
    pub fn histogram(&mut self, metric: &'static Metric, labels: &[&str], histogram: &Histogram) {
        let name = metric.name;
        let mut text = String::new();
        let mut total = 0;
        for (bound, count) in histogram.buckets() {
            total += count;
            let bound = bound.map_or_else(|| "+Inf".to_owned(), |seconds| seconds.to_string());
            let labels = labels_text(metric, labels, Some(&bound));
            writeln!(text, "{name}_bucket{labels} {total}").ok();
        }
        let labels = labels_text(metric, labels, None);
        writeln!(text, "{name}_sum{labels} {}", histogram.sum_seconds()).ok();
        writeln!(text, "{name}_count{labels} {total}").ok();
        self.samples.entry(name).or_default().push_str(&text);
    }

    /// The text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for metric in TABLE {
            if let Some(lines) = self.samples.get(metric.name) {
                writeln!(text, "# HELP {} {}", metric.name, metric.help).ok();
                writeln!(text, "# TYPE {} {}", metric.name, metric.kind.as_str()).ok();
                text.push_str(lines);
            }
        }
        text
    }
}

fn labels_text(metric: &Metric, values: &[&str], bound: Option<&str>) -> String {
    assert_eq!(metric.labels.len(), values.len(), "{} has the labels {:?}", metric.name, metric.labels);
    let pairs = metric.labels.iter().copied().zip(values.iter().copied()).chain(bound.map(|bound| ("le", bound)));
    let pairs: Vec<String> = pairs.map(|(label, value)| format!("{label}=\"{}\"", escape(value))).collect();
    if pairs.is_empty() { String::new() } else { format!("{{{}}}", pairs.join(",")) }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::table;

    #[test]
    fn samples_stand_under_their_metric_in_the_order_of_the_table() {
        let mut out = Exposition::default();
        out.count(&table::PROCESS_FDS, &[], 7);
        out.one_of(&table::ROLE, &["standby", "primary"], Some("primary"));
        out.set(&table::MEMBER_LAG, &["a\"b"], 1.5);
        let text = out.render();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("# HELP")).collect();
        assert_eq!(
            lines,
            [
                "# TYPE understudy_role gauge",
                "understudy_role{role=\"standby\"} 0",
                "understudy_role{role=\"primary\"} 1",
                "# TYPE understudy_member_lag_bytes gauge",
                "understudy_member_lag_bytes{member=\"a\\\"b\"} 1.5",
                "# TYPE understudy_process_open_fds gauge",
                "understudy_process_open_fds 7",
            ]
        );
    }

    #[test]
    fn buckets_are_cumulative() {
        let histogram = Histogram::default();
        for ms in [0, 1, 3, 60_000] {
            histogram.record(Duration::from_millis(ms));
        }
        let mut out = Exposition::default();
        out.histogram(&table::COMMIT_SECONDS, &["on"], &histogram);
        let text = out.render();
        for line in [
            "understudy_commit_seconds_bucket{level=\"on\",le=\"0.001\"} 2",
            "understudy_commit_seconds_bucket{level=\"on\",le=\"0.005\"} 3",
            "understudy_commit_seconds_bucket{level=\"on\",le=\"30\"} 3",
            "understudy_commit_seconds_bucket{level=\"on\",le=\"+Inf\"} 4",
            "understudy_commit_seconds_sum{level=\"on\"} 60.004",
            "understudy_commit_seconds_count{level=\"on\"} 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
