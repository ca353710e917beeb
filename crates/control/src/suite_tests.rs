//! The consensus library's own tests of a log store and a state machine.

use openraft::testing::{StoreBuilder, Suite};
use tempfile::TempDir;
use tokio::sync::watch;
use understudy_types::NodeId;

use crate::database::Database;
use crate::log_store::LogStore;
use crate::state_machine::StateMachine;
use crate::wire::{StorageError, TypeConfig};

struct Builder;

/// Goes after the store, and waits until its files are closed.
struct Guard {
    _dir: TempDir,
    closed: watch::Receiver<()>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut closed = self.closed.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let waiting = std::thread::spawn(move || runtime.block_on(closed.changed()).expect_err("closed"));
        waiting.join().expect("no panic");
    }
}

impl StoreBuilder<TypeConfig, LogStore, StateMachine, Guard> for Builder {
    async fn build(&self) -> Result<(Guard, LogStore, StateMachine), StorageError> {
        let dir = tempfile::tempdir().expect("a directory");
        let (database, closed) = Database::open(dir.path(), NodeId::new(1)).expect("opens");
        let (state_machine, _applied) = StateMachine::open(database.clone()).expect("opens");
        Ok((Guard { _dir: dir, closed }, LogStore::new(database), state_machine))
    }
}

#[test]
fn the_store_passes_the_suite_of_the_consensus_library() {
    Suite::test_all(Builder).expect("passes");
}
