//! The cluster state: committed commands go in, and everybody on the node watches what comes out.
//!
//! The state lives in memory. It is made anew at every start from the last snapshot and the committed entries
//! behind it. A snapshot is cut from one immutable version of the state together with the log id and the
//! membership that belong to it, so its metadata are never older or newer than its data; it is synced before it
//! counts, and an older one never replaces a newer one.
//!
//! `understudy_core::command::apply` is total. Should it panic nevertheless, that is caught here and reported as a
//! failed state machine, which stops Raft and with it the process: a dead task would leave callers waiting.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use openraft::storage::{RaftStateMachine, Snapshot};
use openraft::{AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder, StorageIOError};
use tokio::sync::{Mutex, watch};
use understudy_core::command::{self, Outcome};
use understudy_core::state::ClusterState;

use crate::database::{Change, Database, DatabaseError, SNAPSHOT_DATA_KEY, SNAPSHOT_KEY};
use crate::log_store::any;
use crate::wire::{Entry, LogId, SnapshotMeta, StorageError, StoredMembership, TypeConfig};

/// The cluster state as this node has applied it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// The state itself.
    pub state: ClusterState,
    /// The log index of the last entry in it; zero before the first.
    pub index: u64,
}

/// One version of the state with what belongs to it.
#[derive(Clone, Default)]
struct Version {
    applied: Arc<Applied>,
    last_applied: Option<LogId>,
    membership: StoredMembership,
}

/// The state machine of one node. The library's own task runs it.
pub(crate) struct StateMachine {
    database: Database,
    version: Version,
    published: watch::Sender<Arc<Applied>>,
    snapshots: Snapshots,
}

/// The one stored snapshot. The lock holds what it covers: builders run beside installations.
#[derive(Clone)]
struct Snapshots {
    database: Database,
    covered: Arc<Mutex<Option<LogId>>>,
}

impl StateMachine {
    /// The state of the last snapshot, and where versions are published.
    ///
    /// # Errors
    /// When the disk fails or the snapshot does not parse.
    pub(crate) fn open(database: Database) -> Result<(Self, watch::Receiver<Arc<Applied>>), DatabaseError> {
        let mut version = Version::default();
        if let Some((meta, data)) = read_snapshot(&database)? {
            version = restore(&meta, &data)?;
        }
        let covered = Arc::new(Mutex::new(version.last_applied));
        let (published, watched) = watch::channel(Arc::clone(&version.applied));
        let snapshots = Snapshots { database: database.clone(), covered };
        Ok((Self { database, version, published, snapshots }, watched))
    }
}

fn read_snapshot(database: &Database) -> Result<Option<(SnapshotMeta, Vec<u8>)>, DatabaseError> {
    let Some(meta) = database.read(SNAPSHOT_KEY)? else { return Ok(None) };
    let data = database.read_bytes(SNAPSHOT_DATA_KEY)?;
    let data = data.ok_or_else(|| DatabaseError("the snapshot's data are missing".to_owned()))?;
    Ok(Some((meta, data)))
}

fn restore(meta: &SnapshotMeta, data: &[u8]) -> Result<Version, DatabaseError> {
    let state: ClusterState = crate::wire::decode(data)
        .map_err(|error| DatabaseError(format!("snapshot {} does not parse: {error}", meta.snapshot_id)))?;
    let index = meta.last_log_id.map_or(0, |log_id| log_id.index);
    let applied = Arc::new(Applied { state, index });
    Ok(Version { applied, last_applied: meta.last_log_id, membership: meta.last_membership.clone() })
}

impl Snapshots {
    /// Stores a snapshot unless a newer one is there.
    async fn store(&self, meta: &SnapshotMeta, data: Vec<u8>) -> Result<(), DatabaseError> {
        let mut covered = self.covered.lock().await;
        if *covered > meta.last_log_id {
            return Ok(());
        }
        let changes = vec![Change::put(SNAPSHOT_KEY, meta), Change::Put(SNAPSHOT_DATA_KEY.to_vec(), data)];
        self.database.write(changes, true).await?;
        *covered = meta.last_log_id;
        Ok(())
    }
}

/// Carries out one entry on `applied`.
fn apply_entry(applied: &mut Applied, membership: &mut StoredMembership, entry: Entry) -> Outcome {
    applied.index = entry.log_id.index;
    let unchanged = Outcome::Applied { generation: applied.state.generation };
    match entry.payload {
        EntryPayload::Blank => unchanged,
        EntryPayload::Normal(command) => {
            let outcome = command::apply(&mut applied.state, &command);
            tracing::info!(index = entry.log_id.index, ?command, ?outcome, "command applied");
            outcome
        }
        EntryPayload::Membership(members) => {
            *membership = StoredMembership::new(Some(entry.log_id), members);
            unchanged
        }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.version.last_applied, self.version.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut next = self.version.clone();
        let mut applied = (*next.applied).clone();
        let mut outcomes = Vec::new();
        for entry in entries {
            let log_id = entry.log_id;
            let carry_out = || apply_entry(&mut applied, &mut next.membership, entry);
            let outcome = catch_unwind(AssertUnwindSafe(carry_out)).map_err(|_| {
                let panicked = DatabaseError(format!("applying the entry at index {} panicked", log_id.index));
                StorageError::from(StorageIOError::apply(log_id, any(&panicked)))
            })?;
            outcomes.push(outcome);
            next.last_applied = Some(log_id);
        }
        next.applied = Arc::new(applied);
        self.version = next;
        self.published.send_replace(Arc::clone(&self.version.applied));
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder { version: self.version.clone(), snapshots: self.snapshots.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::new(Cursor::new(Vec::new())))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let failed = |error: DatabaseError| StorageIOError::write_snapshot(Some(meta.signature()), any(&error));
        let data = snapshot.into_inner();
        let version = restore(meta, &data).map_err(failed)?;
        self.snapshots.store(meta, data).await.map_err(failed)?;
        self.version = version;
        self.published.send_replace(Arc::clone(&self.version.applied));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let stored = read_snapshot(&self.database)
            .map_err(|error| StorageError::from(StorageIOError::read_snapshot(None, any(&error))))?;
        Ok(stored.map(|(meta, data)| Snapshot { meta, snapshot: Box::new(Cursor::new(data)) }))
    }
}

/// Makes a snapshot of one version.
pub(crate) struct SnapshotBuilder {
    version: Version,
    snapshots: Snapshots,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let data = crate::wire::encode(&self.version.applied.state).to_vec();
        let snapshot_id = self.version.last_applied.map_or_else(|| "empty".to_owned(), |log_id| log_id.to_string());
        let meta = SnapshotMeta {
            last_log_id: self.version.last_applied,
            last_membership: self.version.membership.clone(),
            snapshot_id,
        };
        let stored = self.snapshots.store(&meta, data.clone()).await;
        stored.map_err(|error| {
            StorageError::from(StorageIOError::write_snapshot(Some(meta.signature()), AnyError::new(&error)))
        })?;
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(data)) })
    }
}
