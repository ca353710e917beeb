//! The tables, in Markdown, as `docs/performance.md` has them.
//!
//! Beside each figure stands what it is of the raw speed: the median of commits and reads over the *floor*, which is a null
//! call, and an `fdatasync` where the level waits for one, the faster of the first and the last probes; and their rate over
//! that of null calls with as many clients, the mean of both.
//!
//! A report may be of a run that ended early: what was not measured is left out, and why stands at its end.

use std::fmt;

use serde::Serialize;

use crate::figures::Figures;
use crate::probes::Probes;
use crate::profile::{CLIENTS, Profile};
use crate::recovery::{CatchUp, Seeding};
use crate::workloads::{BATCH_COMMITS, Case, VALUE_BYTES};

/// Everything that was measured.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Of the machine.
    pub processors: usize,
    /// Each case.
    pub seconds: u64,
    /// Before the servers.
    pub first: Option<Probes>,
    /// After them.
    pub last: Option<Probes>,
    /// By level.
    pub puts: Vec<Case>,
    /// By kind.
    pub reads: Vec<Case>,
    /// Each call is a batch.
    pub batches: Vec<Case>,
    /// Of commits at level `on`.
    pub profile: Option<Profile>,
    /// Of a standby that was away.
    pub catch_up: Option<CatchUp>,
    /// Of a standby that was away for too long.
    pub seeding: Option<Seeding>,
    /// Why it ends here, if not as it should.
    pub error: Option<String>,
}

/// Behind the name of a case during which the primary changed.
const FAILOVER: &str = " (failover)";

fn ms(us: f64) -> String {
    format!("{:.2}", us / 1e3)
}

/// With separators of thousands.
fn count(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Empty when there is nothing to compare with.
fn ratio(figure: f64, raw: Option<f64>) -> String {
    raw.filter(|raw| *raw > 0.0).map_or_else(String::new, |raw| format!("{:.2}", figure / raw))
}

fn row(f: &mut fmt::Formatter<'_>, cells: &[String]) -> fmt::Result {
    writeln!(f, "| {} |", cells.join(" | "))
}

fn head(f: &mut fmt::Formatter<'_>, title: &str, columns: &[&str]) -> fmt::Result {
    writeln!(f, "\n### {title}\n")?;
    row(f, &columns.iter().map(|column| (*column).to_owned()).collect::<Vec<_>>())?;
    writeln!(f, "|{}", "---|".repeat(columns.len()))
}

impl Report {
    fn probes_taken(&self) -> impl Iterator<Item = &Probes> {
        self.first.iter().chain(&self.last)
    }

    /// None before anything was measured.
    fn floor_us(&self, flushed: bool) -> Option<f64> {
        self.probes_taken().map(|probes| probes.floor_us(flushed)).reduce(f64::min)
    }

    fn calls_per_second(&self, clients: usize) -> Option<f64> {
        let rates: Vec<f64> = self.probes_taken().filter_map(|probes| probes.calls_per_second(clients)).collect();
        (!rates.is_empty()).then(|| rates.iter().sum::<f64>() / rates.len() as f64)
    }

    fn failovers(&self) -> usize {
        let cases = self.puts.iter().chain(&self.reads).chain(&self.batches);
        let profile = self.profile.iter().filter(|profile| profile.had_failover);
        cases.filter(|case| case.had_failover()).count() + profile.count()
    }

    /// Of cases whose calls each are `per_call` of what is counted.
    fn cases(
        &self,
        f: &mut fmt::Formatter<'_>,
        cases: &[Case],
        per_call: usize,
        flushed: fn(&str) -> bool,
    ) -> fmt::Result {
        for case in cases {
            let Case { name, clients, figures: Figures { per_second, p50_us, p99_us, .. }, .. } = case;
            let mark = if case.had_failover() { FAILOVER } else { "" };
            let rate = per_second * per_call as f64;
            row(
                f,
                &[
                    format!("{name}{mark}"),
                    clients.to_string(),
                    count(rate),
                    ms(*p50_us),
                    ms(*p99_us),
                    ratio(*p50_us, self.floor_us(flushed(name))),
                    ratio(rate, self.calls_per_second(*clients)),
                ],
            )?;
        }
        Ok(())
    }

    fn probes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = [
            "probe",
            "first p50, ms",
            "first p99, ms",
            "first, a second",
            "last p50, ms",
            "last p99, ms",
            "last, a second",
        ];
        let Some(first) = &self.first else { return Ok(()) };
        head(f, "Raw probes", &columns)?;
        for (index, first) in first.all.iter().enumerate() {
            let of = |figures: &Figures| [ms(figures.p50_us), ms(figures.p99_us), count(figures.per_second)];
            let last = self.last.as_ref().and_then(|last| last.all.get(index));
            let last = last.map_or_else(|| [const { String::new() }; 3], |last| of(&last.figures));
            row(f, &[vec![first.name.clone()], of(&first.figures).to_vec(), last.to_vec()].concat())?;
        }
        writeln!(
            f,
            "\nFloor: {} ms, a null call; where a flush is waited for {} ms, with the fastest fdatasync.",
            self.floor_us(false).map_or_else(String::new, ms),
            self.floor_us(true).map_or_else(String::new, ms)
        )
    }

    fn workloads(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = |name, rate| [name, "clients", rate, "p50, ms", "p99, ms", "p50 / floor", "rate / null calls"];
        if !self.puts.is_empty() {
            head(f, &format!("Puts of {VALUE_BYTES} bytes"), &columns("level", "commits a second"))?;
            self.cases(f, &self.puts, 1, |level| level != "off")?;
        }
        if !self.batches.is_empty() {
            let title = format!("CommitBatch of {BATCH_COMMITS} puts; the latency is that of the whole batch");
            head(f, &title, &columns("level", "commits a second"))?;
            self.cases(f, &self.batches, BATCH_COMMITS, |_| true)?;
        }
        if !self.reads.is_empty() {
            head(f, "Reads of one key", &columns("kind", "reads a second"))?;
            self.cases(f, &self.reads, 1, |_| false)?;
        }
        Ok(())
    }

    fn profile(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Profile { seen, had_failover, commits, stages, cpu }) = &self.profile else { return Ok(()) };
        let (commits, mark) = (count(*commits as f64), if *had_failover { FAILOVER } else { "" });
        let title = format!("Where the time of a commit goes: level on, {CLIENTS} clients, {commits} commits{mark}");
        head(f, &title, &["node", "stage", "p50, ms", "p99, ms", "mean, ms", "recorded"])?;
        for line in stages {
            let (node, time) = (format!("{} {}", line.role, line.node), line.time);
            let times = [time.p50_us, time.p99_us, time.mean_us].map(ms);
            row(f, &[vec![node, line.stage.to_owned()], times.to_vec(), vec![count(time.count as f64)]].concat())?;
        }
        let seen_times = [ms(seen.p50_us), ms(seen.p99_us), String::new(), count(seen.count as f64)];
        row(f, &[vec!["client".to_owned(), "total, as the client sees it".to_owned()], seen_times.to_vec()].concat())?;
        head(f, "Where its CPU goes: seconds for 1,000 commits", &["node", "threads", "CPU, s"])?;
        for line in cpu {
            let node = format!("{} {}", line.role, line.node);
            row(f, &[node, line.threads.clone(), format!("{:.3}", line.seconds_per_1000)])?;
        }
        Ok(())
    }

    fn recovery(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.catch_up.is_none() && self.seeding.is_none() {
            return Ok(());
        }
        let columns =
            ["how", "MiB", "sent, MiB", "MiB a second", "until connected, ms", "transfer, ms", "afterwards, ms"];
        head(f, "A standby that comes back", &columns)?;
        if let Some(CatchUp { wal_mib, until_connected_ms, until_streaming_ms, until_applied_ms, mib_per_second }) =
            self.catch_up
        {
            let caught = [wal_mib, wal_mib, mib_per_second, until_connected_ms, until_streaming_ms, until_applied_ms];
            let caught = caught.map(|it| format!("{it:.0}"));
            row(f, &std::iter::once("catch-up".to_owned()).chain(caught).collect::<Vec<_>>())?;
        }
        if let Some(seeding) = self.seeding {
            let cells = [seeding.total_mib, seeding.received_mib, seeding.mib_per_second].map(|it| format!("{it:.0}"));
            let transfer = format!("{:.0}", seeding.transfer_ms);
            let whole = format!("{:.0} from start to streaming", seeding.until_streaming_ms);
            row(f, &[vec!["seeding".to_owned()], cells.to_vec(), vec![String::new(), transfer, whole]].concat())?;
        }
        writeln!(
            f,
            "\nAfterwards: until all of it was applied; of a seed the whole time, with start, swap and catching up."
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { processors, seconds, .. } = self;
        writeln!(f, "Three servers and the load on one machine with {processors} processors; {seconds} s a case.")?;
        match self.failovers() {
            0 => {}
            n => writeln!(f, "\nIn {n} cases the primary changed: they are marked{FAILOVER}, and do not count.")?,
        }
        self.probes(f)?;
        self.workloads(f)?;
        self.profile(f)?;
        self.recovery(f)?;
        match &self.error {
            Some(error) => writeln!(f, "\nThe run ended here, with an error: {error}."),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_ratios_need_something_to_compare_with() {
        assert_eq!((count(7.4), count(999.6), count(1_234_567.0)), ("7".into(), "1,000".into(), "1,234,567".into()));
        assert_eq!(
            (ratio(3.0, Some(2.0)), ratio(3.0, None), ratio(3.0, Some(0.0))),
            ("1.50".into(), "".into(), "".into())
        );
    }

    fn case(name: &str, timelines: (u32, u32)) -> Case {
        let figures = Figures { count: 2, per_second: 1_000.0, p50_us: 500.0, p99_us: 900.0, failed: 0 };
        Case { name: name.to_owned(), clients: 1, figures, timelines }
    }

    #[test]
    fn a_case_with_a_failover_is_marked_and_said() {
        let mut report = Report { puts: vec![case("on", (3, 3))], ..Report::default() };
        assert!(!report.to_string().contains("failover"), "{report}");
        report.puts.push(case("local", (3, 4)));
        let text = report.to_string();
        assert!(text.contains("In 1 cases the primary changed"), "{text}");
        assert!(text.contains("| local (failover) | 1 | 1,000 |") && text.contains("| on | 1 | 1,000 |"), "{text}");
    }

    #[test]
    fn what_was_measured_before_an_error_is_told_with_it() {
        let reads = vec![case("eventual, standbys", (1, 1))];
        let report = Report { reads, error: Some("no node answers".to_owned()), ..Report::default() };
        let text = report.to_string();
        assert!(text.contains("| eventual, standbys | 1 | 1,000 |"), "{text}");
        assert!(text.ends_with("The run ended here, with an error: no node answers.\n"), "{text}");
        assert!(!text.contains("A standby that comes back") && !text.contains("Puts of"), "{text}");
    }
}
