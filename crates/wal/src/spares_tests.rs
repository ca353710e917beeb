use std::sync::Arc;

use super::*;
use crate::fakes::{Fault, SimFiles};
use crate::files::Files as _;
use crate::tests::{Log, SIZE, commit, config, directory, history, path_of, start};
use crate::{Wal, WalConfig};
use understudy_types::{Lsn, SegmentNo};

fn made() -> (SimFiles, Directory) {
    let files = SimFiles::new();
    let directory = directory(&files);
    files.create_dir_all(&directory.path).expect("no fault is planned");
    (files, directory)
}

fn zeros() -> Vec<u8> {
    vec![0; usize::try_from(SIZE.get()).expect("small")]
}

fn with_spares(files: &SimFiles, spare_segments: usize) -> Wal {
    let config = WalConfig { spare_segments, ..config(0) };
    Wal::open(Arc::new(files.clone()), config, Lsn::INVALID).expect("a log").0
}

#[test]
fn what_a_spare_held_is_gone_before_it_is_ready() {
    let (files, directory) = made();
    let old = directory.path.join("9.spare");
    files.create(&old).expect("no fault").write_all_at(0, &[7; 5000]).expect("no fault");
    let spares = Spares::open(directory, 2).expect("readable");
    assert_eq!((spares.count(), spares.take()), (1, None), "nothing is trusted that another process left");
    spares.fill().expect("no fault");
    let taken: Vec<PathBuf> = std::iter::from_fn(|| spares.take()).collect();
    assert_eq!(taken.len(), 2);
    assert!(taken.contains(&old));
    for path in &taken {
        assert!(files.content(path).expect("there") == zeros());
    }
    // Durable as to the content before it is used.
    let (made_anew, used_again) = (taken.iter().find(|path| **path != old).expect("one"), &old);
    files.sync_dir(&config(0).dir).expect("no fault");
    files.crash(1);
    assert!(files.content(made_anew).expect("there") == zeros());
    assert!(files.content(used_again).expect("there") == zeros());
}

#[test]
fn a_spare_that_cannot_be_made_is_given_up_until_the_next_segment() {
    let (files, directory) = made();
    let spares = Spares::open(directory, 1).expect("readable");
    files.plan(files.operations() + 1, Fault::Error);
    spares.fill().expect_err("planned");
    assert_eq!((spares.count(), spares.is_short(), files.paths().len()), (0, false, 0), "nothing half made is left");
    spares.retry();
    spares.fill().expect("no fault");
    assert_eq!((spares.count(), spares.is_short()), (1, false));
    spares.shrink_to(0).expect("no fault");
    assert_eq!(spares.count(), 1, "what is ready stays");
}

#[test]
fn a_stopped_log_does_not_wait_for_zeros() {
    let (_files, directory) = made();
    let spares = Spares::open(directory, 1).expect("readable");
    spares.stop();
    assert!(!spares.is_short());
    spares.fill().expect("nothing to do");
    assert_eq!(spares.take(), None);
}

/// A log whose spare is ready.
fn ready() -> Log {
    let files = SimFiles::new();
    let wal = with_spares(&files, 1);
    let mut log = Log::over(files.clone(), wal);
    log.begin(&history(&[(1, start())])).expect("the first timeline");
    log.append(&commit(0, 100)).expect("open");
    log.wal.flush().expect("no fault");
    let spare = config(0).dir.join("0.spare");
    while files.content(&spare).is_none_or(|content| content.len() < zeros().len()) {
        std::thread::yield_now();
    }
    // A group's end looks whether one is being made: when that thread has gone, it is ready.
    while log.wal.spares_ready() < 1 {
        std::thread::yield_now();
    }
    log
}

#[test]
fn a_fork_and_the_next_segment_take_what_is_ready() {
    // INV-BYTES: the same files as without spares.
    let mut log = ready();
    let mut plain = Log::new();
    plain.append(&commit(0, 100)).expect("open");
    let fork = log.end().lsn;
    for log in [&mut log, &mut plain] {
        log.begin(&history(&[(1, start()), (2, fork)])).expect("a fork at the end");
        log.fill_to(SIZE.start_of(SegmentNo::new(3))).expect("open");
        log.append(&commit(1, 100)).expect("open");
        log.wal.flush().expect("no fault");
    }
    assert_eq!(log.content, plain.content);
    let (files, plain) = (log.close(), plain.close());
    assert_eq!(files.content(&config(0).dir.join("0.spare")), None, "it became a segment");
    for path in plain.paths().iter().filter(|path| path.file_name().is_some_and(|name| name.len() == 24)) {
        assert!(files.content(path) == plain.content(path), "{}", path.display());
    }
    assert!(files.content(&path_of(2, 1)).is_some());
}

#[test]
fn a_spare_that_somebody_removed_is_made_up_for() {
    let mut log = ready();
    log.files.remove(&config(0).dir.join("0.spare")).expect("there");
    let fork = log.end().lsn;
    log.begin(&history(&[(1, start()), (2, fork)])).expect("a fork at the end");
    log.append(&commit(1, 100)).expect("open");
    log.close();
}
