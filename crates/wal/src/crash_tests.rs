//! A workload with group commits, segment switches, forks and truncations, stopped by a crash or a failed operation
//! at every point; then recovery, which must find everything that was reported and nothing that was not written, and
//! find the same again.

use understudy_types::{Lsn, SegmentNo};

use crate::WalError;
use crate::fakes::{Fault, SimFiles};
use crate::tests::{Log, SIZE, commit, history, open, read_all, start};

/// What may be found after the crash.
#[derive(Default)]
struct Expected {
    /// Every byte that was appended and not cut off: what is found is a prefix.
    content: Vec<u8>,
    /// What was reported as flushed: what is found is at least as long.
    flushed: usize,
    /// The timelines that may be in force: of a fork or truncation that was under way, both.
    timelines: Vec<u32>,
}

impl Expected {
    fn offset(lsn: Lsn) -> usize {
        usize::try_from(lsn.saturating_since(start())).expect("small")
    }

    fn flush(&mut self, log: &mut Log) -> Result<(), WalError> {
        self.content.clone_from(&log.content);
        self.flushed = Self::offset(log.wal.flush()?);
        assert_eq!(self.flushed, self.content.len());
        Ok(())
    }

    fn commits(&mut self, log: &mut Log, bodies: &[usize]) -> Result<(), WalError> {
        for (number, bytes) in bodies.iter().enumerate() {
            log.append(&commit(number as u64, *bytes))?;
            self.content.clone_from(&log.content);
        }
        self.flush(log)
    }

    fn begin(&mut self, log: &mut Log, switches: &[(u32, Lsn)]) -> Result<(), WalError> {
        let timeline = switches.last().expect("one").0;
        self.timelines.push(timeline);
        log.begin(&history(switches))?;
        self.timelines = vec![timeline];
        Ok(())
    }

    fn truncate(&mut self, log: &mut Log, to: Lsn, timeline: u32) -> Result<(), WalError> {
        self.flushed = self.flushed.min(Self::offset(to));
        self.timelines = (timeline..=self.timelines[0]).collect();
        log.truncate(to)?;
        self.content.clone_from(&log.content);
        self.timelines = vec![timeline];
        Ok(())
    }
}

fn workload(files: &SimFiles, expected: &mut Expected) -> Result<(), WalError> {
    expected.timelines = vec![0];
    let (wal, _) = open(files, Lsn::INVALID)?;
    let mut log = Log::over(files.clone(), wal);
    expected.begin(&mut log, &[(1, start())])?;
    expected.commits(&mut log, &[100, 2000])?;
    expected.commits(&mut log, &[300_000, 300, 300_000])?;
    expected.commits(&mut log, &[500_000, 600])?;
    let first = log.end().lsn;
    expected.begin(&mut log, &[(1, start()), (2, first)])?;
    expected.commits(&mut log, &[1000, 700_000, 50])?;
    let second = log.end().lsn;
    expected.begin(&mut log, &[(1, start()), (2, first), (3, second)])?;
    expected.commits(&mut log, &[1000, 2000])?;
    let back = log.end().lsn;
    expected.commits(&mut log, &[900_000])?;
    expected.truncate(&mut log, back, 3)?;
    expected.commits(&mut log, &[3000])?;
    expected.truncate(&mut log, first, 2)?;
    expected.begin(&mut log, &[(1, start()), (2, first), (3, second), (5, first)])?;
    let filled = log.fill_to(SIZE.start_of(SegmentNo::new(3)));
    expected.content.clone_from(&log.content);
    filled?;
    expected.flush(&mut log)?;
    let boundary = log.end().lsn;
    expected.begin(&mut log, &[(1, start()), (2, first), (3, second), (5, first), (6, boundary)])?;
    expected.commits(&mut log, &[100])?;
    expected.truncate(&mut log, Lsn::new(boundary.get()), 6)?;
    expected.commits(&mut log, &[200])?;
    log.wal.close()
}

/// Recovers, and checks what is found; returns where the log ends.
fn check(files: &SimFiles, expected: &Expected, context: &str) -> Lsn {
    let applied =
        if expected.flushed.is_multiple_of(16) { start().advance(expected.flushed as u64) } else { Lsn::INVALID };
    let (wal, recovery) = open(files, applied).unwrap_or_else(|error| panic!("{context}: {error}"));
    let end = Expected::offset(recovery.end.lsn);
    assert!(end >= expected.flushed, "{context}: {end} bytes are left of {} that were flushed", expected.flushed);
    assert!(end <= expected.content.len(), "{context}: more than was written");
    assert!(read_all(&wal, start(), 100_000) == expected.content[..end], "{context}: other bytes than were written");
    let timeline = recovery.history.latest().get();
    assert!(expected.timelines.contains(&timeline), "{context}: on timeline {timeline}, not {:?}", expected.timelines);
    assert!(recovery.end.timeline <= recovery.history.latest());
    recovery.end.lsn
}

fn stop_everywhere(fault: Fault, seeds: std::ops::Range<u64>) {
    let clean = SimFiles::new();
    workload(&clean, &mut Expected::default()).expect("no fault is planned");
    let operations = clean.operations();
    assert!(operations > 100, "the workload is too small: {operations} operations");
    for operation in 0..operations {
        let files = SimFiles::new();
        files.plan(operation, fault);
        let mut expected = Expected::default();
        if workload(&files, &mut expected).is_ok() {
            // A helper's failure that cost nothing, or fewer operations this time.
            continue;
        }
        for round in seeds.clone() {
            let disk = files.fork();
            // Another fate of the same files at every operation, not the same one again.
            let seed = operation * 100 + round;
            let context = format!("operation {operation}, seed {seed}");
            // The process dies alone in one case of three: the cache is what recovery sees.
            if round % 3 == 2 {
                disk.kill()
            } else {
                disk.crash(seed)
            }
            let end = check(&disk, &expected, &context);
            // What was reported must be on the disk, not in the cache: the power goes again.
            disk.crash(seed + 1);
            assert_eq!(check(&disk, &expected, &context), end, "{context}: found something else the second time");
        }
    }
}

#[test]
fn a_crash_at_any_operation_loses_nothing_that_was_flushed() {
    stop_everywhere(Fault::Crash, 0..6);
}

#[test]
fn a_failure_of_any_operation_loses_nothing_that_was_flushed() {
    stop_everywhere(Fault::Error, 0..3);
}

/// Recovery itself is stopped at every operation, and started again.
#[test]
fn a_crash_during_recovery_is_recovered_from() {
    let files = SimFiles::new();
    let mut log = Log::over(files.clone(), open(&files, Lsn::INVALID).expect("new").0);
    let mut expected = Expected::default();
    expected.begin(&mut log, &[(1, start())]).expect("no fault");
    expected.commits(&mut log, &[1000, 400_000]).expect("no fault");
    let fork = log.end().lsn;
    expected.begin(&mut log, &[(1, start()), (2, fork)]).expect("no fault");
    expected.commits(&mut log, &[5000]).expect("no fault");
    files.hold_syncs(true);
    let end = log.append(&commit(1, 9000)).expect("open");
    expected.content.clone_from(&log.content);
    let mut written = log.wal.written();
    while *written.borrow_and_update() < end {
        std::thread::yield_now();
    }
    for seed in 0..4 {
        let torn = files.fork();
        torn.crash(seed);
        let probe = torn.fork();
        let before = probe.operations();
        check(&probe, &expected, "without a second crash");
        for operation in before..probe.operations() {
            let disk = torn.fork();
            disk.plan(operation, Fault::Crash);
            drop(open(&disk, Lsn::INVALID));
            disk.crash(seed + operation);
            check(&disk, &expected, &format!("seed {seed}, operation {operation} of the recovery"));
        }
    }
    files.hold_syncs(false);
}
