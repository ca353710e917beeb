//! What was answered survives `kill -9`: the library's suite does not check that.
//!
//! The test runs itself as a child process that appends entries and saves votes, and prints each once it was
//! answered. The parent kills it at some moment, opens the log, and looks for everything that was printed.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use openraft::{CommittedLeaderId, EntryPayload, RaftLogReader};
use understudy_types::NodeId;

use crate::database::Database;
use crate::log_store::LogStore;
use crate::wire::{Entry, LogId, Vote};

const CHILD_DIRECTORY: &str = "UNDERSTUDY_TEST_RAFT_LOG";
const CHILD_TEST: &str = "durability_tests::child_writes_until_it_is_killed";
const ROUNDS: u64 = 8;

fn blank(term: u64, index: u64) -> Entry {
    Entry { log_id: LogId::new(CommittedLeaderId::new(term, 1), index), payload: EntryPayload::Blank }
}

/// Not a test of its own: what the child process runs.
#[tokio::test]
async fn child_writes_until_it_is_killed() {
    let Ok(directory) = std::env::var(CHILD_DIRECTORY) else { return };
    let (database, _closed) = Database::open(Path::new(&directory), NodeId::new(1)).expect("opens");
    let mut log = LogStore::new(database);
    let state = log.get_log_state().await.expect("read");
    let vote = log.read_vote().await.expect("read");
    let mut next = state.last_log_id.map_or(0, |log_id| log_id.index + 1);
    let mut term = vote.map_or(1, |vote| vote.leader_id().get_term() + 1);
    let mut out = std::io::stdout();
    loop {
        log.save_vote(&Vote::new(term, 1)).await.expect("saved");
        writeln!(out, "\nvote {term}").expect("printed");
        for _ in 0..5 {
            log.blocking_append([blank(term, next), blank(term, next + 1)]).await.expect("appended");
            writeln!(out, "\nentry {}", next + 1).expect("printed");
            next += 2;
        }
        // A conflict: the last entry is replaced.
        log.truncate(blank(term, next - 1).log_id).await.expect("truncated");
        log.blocking_append([blank(term + 1, next - 1)]).await.expect("appended");
        writeln!(out, "\nreplaced {} {}", next - 1, term + 1).expect("printed");
        term += 2;
    }
}

fn spawn_child(directory: &Path) -> Child {
    Command::new(std::env::current_exe().expect("a test binary"))
        .args(["--exact", CHILD_TEST, "--nocapture", "--test-threads=1"])
        .env(CHILD_DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a child")
}

#[derive(Default, Debug)]
struct Answered {
    term: u64,
    index: Option<u64>,
    replaced: Vec<(u64, u64)>,
}

impl Answered {
    fn note(&mut self, line: &str) {
        let mut words = line.split(' ');
        let what = words.next().unwrap_or_default();
        let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
        match (what, numbers.as_slice()) {
            ("vote", [term]) => self.term = *term,
            ("entry", [index]) => self.index = Some(*index),
            ("replaced", [index, term]) => self.replaced.push((*index, *term)),
            _ => {}
        }
    }
}

/// Lets the child write until it has said `lines_min` things and `pause` went by, and kills it.
fn run_and_kill(directory: &Path, lines_min: u64, pause: Duration) -> Answered {
    let mut child = spawn_child(directory);
    let mut output = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut answered = Answered::default();
    let mut kill_at = None;
    let mut said = 0;
    while kill_at.is_none_or(|at| Instant::now() < at) {
        let line = output.next().expect("the child writes until it is killed").expect("a line");
        answered.note(&line);
        said += u64::from(line.contains(' '));
        if said == lines_min && kill_at.is_none() {
            kill_at = Some(Instant::now() + pause);
        }
    }
    child.kill().expect("killed");
    child.wait().expect("reaped");
    // What it had printed before it died was answered, too; its last line may be cut.
    let rest: Vec<String> = output.map_while(Result::ok).collect();
    for line in rest.iter().take(rest.len().saturating_sub(1)) {
        answered.note(line);
    }
    answered
}

#[tokio::test]
async fn what_was_answered_survives_kill_9() {
    let dir = tempfile::tempdir().expect("a directory");
    for round in 0..ROUNDS {
        let pause = Duration::from_micros(1_700 * round);
        let answered = run_and_kill(dir.path(), 4 + 3 * round, pause);
        assert!(answered.term > 0, "the child said too little: {answered:?}");

        let (database, mut closed) = Database::open(dir.path(), NodeId::new(1)).expect("opens");
        let mut log = LogStore::new(database);
        let vote = log.read_vote().await.expect("read").expect("voted");
        assert!(vote.leader_id().get_term() >= answered.term, "{vote} is older than {answered:?}");
        let entries = log.try_get_log_entries(..).await.expect("read");
        let last = entries.last().map(|entry| entry.log_id.index);
        assert!(answered.index.is_none_or(|index| last >= Some(index.saturating_sub(1))), "{last:?}: {answered:?}");
        for (index, term) in &answered.replaced {
            let entry = entries.iter().find(|entry| entry.log_id.index == *index).expect("it was answered");
            assert_eq!(entry.log_id.leader_id.get_term(), *term);
        }
        drop(log);
        closed.changed().await.expect_err("closed");
    }
}
