//! What the demo says: to people as it happens, and as one line of JSON.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use understudy_rpc::v1::TimelineEntry;
use understudy_types::{Lsn, TimelineId};

use super::Options;
use super::kill::Kill;
use super::load::Ledger;
use super::source::Source;
use super::verify::Verified;
use crate::cluster::Cluster;

/// The result.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Records whose commit was acknowledged at level `on`.
    pub acknowledged: u64,
    /// Of them, those that are not readable with their value on every node.
    pub lost: u64,
    /// Request ids with two commit records in the WAL.
    pub duplicated: u64,
    /// At least one segment was compared on all nodes, and all bytes below the safe LSN agree.
    pub identical_segments: bool,
    /// `host:port` of every node.
    pub endpoints: Vec<String>,
    /// Where the nodes' directories and logs lie.
    pub data_dir: PathBuf,
    /// In their order.
    pub kills: Vec<Kill>,
    #[serde(skip)]
    verified: Verified,
    #[serde(skip)]
    failures: Vec<String>,
}

impl Report {
    /// Of everything that was measured.
    pub fn new(cluster: &Cluster, ledger: &Ledger, verified: Verified, kills: Vec<Kill>) -> Report {
        Report {
            acknowledged: ledger.entries.len() as u64,
            lost: verified.lost,
            duplicated: verified.wal.duplicated.len() as u64,
            identical_segments: verified.wal.identical(),
            endpoints: cluster.endpoints(),
            data_dir: cluster.dir().to_owned(),
            kills,
            verified,
            failures: ledger.failures.clone(),
        }
    }

    /// Nothing lost, nothing duplicated, the same bytes everywhere, all rejoined.
    pub fn is_good(&self) -> bool {
        self.lost == 0 && self.duplicated == 0 && self.identical_segments && self.kills.iter().all(|kill| kill.rejoined)
    }
}

/// Where the text for people goes.
#[derive(Debug, Clone, Copy)]
pub struct Talk {
    /// Standard output belongs to the line of JSON.
    json: bool,
}

impl Talk {
    /// To standard output, or to standard error when the result is printed as JSON.
    pub fn new(json: bool) -> Talk {
        Talk { json }
    }

    fn say(self, line: &str) {
        if self.json {
            eprintln!("{line}");
        } else {
            println!("{line}");
        }
    }

    fn item(self, name: &str, text: &str) {
        self.say(&format!("  {name:<12}  {text}"));
    }

    /// Before the servers start.
    pub fn begin(self, options: &Options, cluster: &Cluster, sources: &[Source]) {
        self.say(&format!(
            "{} servers on loopback, {} commits in flight at level on",
            cluster.names().len(),
            options.in_flight
        ));
        self.item("data, logs", &cluster.dir().display().to_string());
        self.item("endpoints", &cluster.endpoints().join(","));
        for source in sources {
            self.item("records", &format!("{} in {}", grouped(source.records.len() as u64), source.name));
        }
        let pace = match options.rate {
            0 => "as fast as it goes".to_owned(),
            rate => format!("at most {} records a second", grouped(rate.into())),
        };
        self.item("pace", &pace);
    }

    /// Once the cluster is up.
    pub fn settled(self, primary: &str) {
        self.item("primary", &format!("{primary}; both standbys stream and are in the sync list"));
    }

    /// A primary was killed.
    pub fn killed(self, number: u32, of: u32, primary: &str, timeline: TimelineId, acknowledged: u64) {
        let acknowledged = grouped(acknowledged);
        self.say("");
        self.say(&format!("kill {number} of {of}: kill -9 of {primary}, primary of timeline {timeline}; {acknowledged} records acknowledged"));
    }

    /// Somebody took over.
    pub fn promoted(self, entry: &TimelineEntry, gap: Duration, old: TimelineId) {
        let (node, timeline, at) = (&entry.node, entry.timeline, Lsn::new(entry.switch_lsn));
        self.item("promoted", &format!("{node} on timeline {timeline} at {at}"));
        self.item("reason", &entry.reason);
        let gap = grouped_ms(gap);
        self.item("write gap", &format!("{gap}, last acknowledgement on timeline {old} to first on {timeline}"));
    }

    /// The dead node came back, or did not.
    pub fn rejoined(self, primary: &str, waited: &Result<()>, took: Duration) {
        let took = grouped_ms(took);
        match waited {
            Ok(()) => self.item(
                "rejoined",
                &format!("{primary} streams and is in the sync list again, {took} after its restart"),
            ),
            Err(error) => self.item("NOT REJOINED", &format!("{primary} after {took}: {error:#}")),
        }
    }

    /// The load has ended.
    pub fn verifying(self, ledger: &Ledger) {
        self.say("");
        self.say(&format!(
            "load ended with {} records acknowledged; reading all of them back on every node",
            grouped(ledger.entries.len() as u64)
        ));
    }

    /// The result.
    pub fn end(self, options: &Options, cluster: &Cluster, report: &Report) {
        let wal = &report.verified.wal;
        self.item("acknowledged", &grouped(report.acknowledged));
        self.item("lost", &format!("{} (missing or different on any node)", grouped(report.lost)));
        let commits = grouped(wal.commits);
        self.item(
            "duplicated",
            &format!("{} (request ids with two commits, {commits} commit records read)", grouped(report.duplicated)),
        );
        let verdict = if wal.identical() { "byte-identical on all nodes" } else { "NOT IDENTICAL" };
        self.item("WAL segments", &format!("{verdict}, {} compared", wal.segments));
        for line in report.verified.examples.iter().chain(&wal.differences).chain(&report.failures).take(20) {
            self.item("", line);
        }
        if report.kills.len() > 1 {
            let gaps: Vec<u64> = report.kills.iter().map(|kill| kill.write_gap_ms).collect();
            self.item("write gaps", &summary(gaps));
        }
        self.how_to_talk(options, cluster);
    }

    fn how_to_talk(self, options: &Options, cluster: &Cluster) {
        self.say("");
        if !options.keep {
            self.say(&format!(
                "The servers are stopped; with --keep they go on. Data and logs stay until the next demo: {}",
                cluster.dir().display()
            ));
            return;
        }
        let endpoints = cluster.endpoints().join(",");
        let binary =
            cluster.names().first().map(|name| cluster.launch(name).binary.display().to_string()).unwrap_or_default();
        self.say("The servers go on. Talk to them:");
        self.say(&format!("  export UNDERSTUDY_ENDPOINTS={endpoints}"));
        for command in ["status", "history", "scan --prefix pass/1/ --limit 10"] {
            self.say(&format!("  {binary} {command}"));
        }
        let processes: Vec<String> = cluster.process_ids().values().map(ToString::to_string).collect();
        self.say(&format!("Stop them:\n  kill {}", processes.join(" ")));
    }

    /// The line for programs, if it was asked for.
    ///
    /// # Errors
    /// Never in practice: the report is plain data.
    pub fn json(self, report: &Report) -> Result<()> {
        if self.json {
            println!("{}", serde_json::to_string(report).context("the report as JSON")?);
        }
        Ok(())
    }
}

fn grouped_ms(duration: Duration) -> String {
    format!("{} ms", grouped(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
}

/// With a comma between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn summary(mut gaps: Vec<u64>) -> String {
    gaps.sort_unstable();
    let (Some(least), Some(most)) = (gaps.first(), gaps.last()) else { return String::new() };
    let middle = gaps.len() / 2;
    let median = if gaps.len().is_multiple_of(2) { gaps[middle - 1].midpoint(gaps[middle]) } else { gaps[middle] };
    format!("{least} to {most} ms, median {median} ms, {} kills", gaps.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn gaps_are_summed_up() {
        assert_eq!(summary(vec![300, 100, 200]), "100 to 300 ms, median 200 ms, 3 kills");
        assert_eq!(summary(vec![300, 100]), "100 to 300 ms, median 200 ms, 2 kills");
    }

    #[test]
    fn the_json_has_the_promised_fields_and_no_others() {
        let kill = Kill {
            primary: "n1".to_owned(),
            promoted: "n2".to_owned(),
            timeline: 2,
            switch_lsn: "0/01000000".to_owned(),
            reason: "gone".to_owned(),
            write_gap_ms: 200,
            rejoined: true,
            rejoin_ms: 900,
        };
        let report = Report {
            acknowledged: 5,
            lost: 0,
            duplicated: 0,
            identical_segments: true,
            endpoints: vec!["127.0.0.1:1".to_owned()],
            data_dir: "/data".into(),
            kills: vec![kill],
            verified: Verified::default(),
            failures: Vec::new(),
        };
        assert!(report.is_good());
        let expected = concat!(
            r#"{"acknowledged":5,"lost":0,"duplicated":0,"identical_segments":true,"endpoints":["127.0.0.1:1"],"data_dir":"/data","#,
            r#""kills":[{"primary":"n1","promoted":"n2","timeline":2,"switch_lsn":"0/01000000","reason":"gone","#,
            r#""write_gap_ms":200,"rejoined":true,"rejoin_ms":900}]}"#
        );
        assert_eq!(serde_json::to_string(&report).expect("plain data"), expected);
        let mut bad = report.clone();
        bad.kills[0].rejoined = false;
        assert!(!bad.is_good() && !Report { lost: 1, ..report }.is_good());
    }
}
