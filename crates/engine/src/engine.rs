//! The handle of an engine: opening it, reading, committing, and what the rest of the node steers it by.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use understudy_store::{KeyRange, PageLimit, ScanPage, Store, VersionedValue};
use understudy_types::{DurabilityLevel, Lsn, Position, TimelineHistory, TimelineId};
use understudy_wal::{Files, Recovery, Wal, WalConfig};

use crate::applier::Applier;
use crate::clock::Clock;
use crate::commit::{Commit, CommitError, Committed, UnknownReason};
use crate::config::EngineConfig;
use crate::error::{
    BeginTimelineError, EngineFailure, OpenError, OpenPrimaryError, ReadError, ReceiveError, RejoinError, RoleError,
    SealError, StopError,
};
use crate::observe::{Mark, Observer, Watched};
use crate::queue::{Ordered, Queued, Refused};
use crate::roles::{self, Rejoined, Role};
use crate::session::Session;
use crate::shared::Shared;
use crate::threads;

/// The database of one node. Clones are the same engine; when the last one is dropped its threads end, and
/// nothing is flushed: as if it had been killed. See [`Engine::stop`].
#[derive(Clone)]
pub struct Engine {
    owner: Arc<Owner>,
}

/// Ends the threads with the last handle. The threads themselves hold [`Shared`] alone.
struct Owner {
    shared: Arc<Shared>,
    applier: Mutex<Option<JoinHandle<()>>>,
}

impl Owner {
    fn join_applier(&self) {
        self.shared.stopping.send_replace(true);
        threads::join(self.applier.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        drop(roles::fence(&self.shared, UnknownReason::Stopping));
        self.join_applier();
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("role", &self.role())
            .field("visible", &self.shared().visible_now())
            .field("wal", &self.shared().wal)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Recovers the log and opens the engine as a standby that follows nobody. Its safe LSN is where the store
    /// stands: nothing is applied before somebody says what is safe. Blocks on IO.
    ///
    /// # Errors
    /// When log or store cannot be read, or do not belong together.
    pub fn open(
        config: EngineConfig,
        files: Arc<dyn Files>,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
    ) -> Result<Engine, OpenError> {
        let wal_config = WalConfig {
            dir: config.wal_dir(),
            system_id: config.system_id,
            segment_size: config.segment_size,
            ring_bytes_max: config.ring_bytes_max,
        };
        let (wal, recovery) = Wal::open(files, wal_config, store.durable_applied()?.lsn)?;
        let visible = check_store(store.applied(), &recovery, config.segment_size.log_start())?;
        let shared = Arc::new(Shared::new(config, wal, store, clock, visible));
        let applier = Applier::new(Arc::clone(&shared))
            .map_err(|source| EngineFailure::Thread { name: "applier", source: Arc::new(source) })?;
        let thread = threads::spawn(&shared, "applier", move || applier.run())?;
        Ok(Engine { owner: Arc::new(Owner { shared, applier: Mutex::new(Some(thread)) }) })
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.owner.shared
    }

    /// The log, to read and to watch. Only the engine appends to it.
    pub fn wal(&self) -> &Wal {
        &self.shared().wal
    }

    /// The store, to read. Only the engine applies to it.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.shared().store
    }

    /// Up to where commits are visible: the applied position.
    pub fn visible(&self) -> watch::Receiver<Position> {
        self.shared().visible.subscribe()
    }

    /// Up to where no failover can take anything back. It goes down only with a change of role.
    pub fn safe(&self) -> watch::Receiver<Lsn> {
        self.shared().safe.subscribe()
    }

    /// The failure after which the process must exit; none while all is well.
    pub fn failure(&self) -> watch::Receiver<Option<Arc<EngineFailure>>> {
        self.shared().failure.subscribe()
    }

    /// Has `observer` told of the stages of commits from now on. The first one stays.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        self.shared().observe(observer);
    }

    /// What the upstream said of the WAL that is received next: these commits are traced.
    pub fn mark(&self, marks: &[Mark]) {
        if let Some(observer) = self.shared().observer() {
            observer.marked(marks);
        }
    }

    /// The role that the engine has. Waits while it changes.
    pub fn role(&self) -> Role {
        self.shared().role().role
    }

    /// The timeline that is open for writes here; none when this node is not the primary.
    pub fn is_primary(&self) -> Option<TimelineId> {
        self.shared().session().filter(|session| session.closed().is_none()).map(|session| session.timeline)
    }

    /// Moves the safe LSN up: on the primary what the sync rule yields, on a standby what its upstream says, which
    /// may lie beyond what has arrived here. A smaller one changes nothing, and on a sealed node nothing does.
    pub fn advance_safe(&self, lsn: Lsn) {
        self.shared().advance_safe(lsn);
    }

    /// Until when a majority of voters confirms this primary, on the clock's monotonic time; none for not at all,
    /// as it is at first. Later than that nothing is acknowledged at any level until it is renewed.
    pub fn set_confirmed_until(&self, until: Option<Instant>) {
        self.shared().confirmed_until.send_replace(until);
    }

    /// Appends WAL that an upstream sent, once every record of it has been checked. On a standby, or on a sealed node
    /// that fetches. Returns where the log ends then; costs no IO.
    ///
    /// # Errors
    /// See [`ReceiveError`]: nothing was appended.
    pub fn receive(&self, start: Lsn, bytes: Bytes) -> Result<Lsn, ReceiveError> {
        roles::receive(self.shared(), start, bytes)
    }

    /// Goes on to the latest timeline of `history`, which begins where the log ends. On a standby, or on a sealed
    /// node that fetches. Blocks on IO; may be repeated.
    ///
    /// # Errors
    /// When it does not begin there.
    pub fn begin_timeline(&self, history: &TimelineHistory) -> Result<(), BeginTimelineError> {
        roles::begin_timeline(self.shared(), history)
    }

    /// Lets a sealed node receive WAL up to `until`: the winner of an election fetches what it lacks. The next
    /// seal ends it.
    ///
    /// # Errors
    /// When the node is not sealed.
    pub fn allow_fetch(&self, until: Lsn) -> Result<(), RoleError> {
        roles::allow_fetch(self.shared(), until)
    }

    /// Opens the latest timeline of `history` at the end of the log, and takes commits. `safe_lsn` is the highest
    /// position that may have been acknowledged (the design's F): everything up to it is visible when this returns;
    /// what lies between it and the timeline's begin stays pending. Blocks on IO.
    ///
    /// # Errors
    /// See [`OpenPrimaryError`]. The timeline may have been begun: it cannot be opened again then.
    pub fn open_primary(&self, history: &TimelineHistory, safe_lsn: Lsn) -> Result<(), OpenPrimaryError> {
        roles::open_primary(self.shared(), history, safe_lsn)
    }

    /// Ends sequencing and acknowledging, in any role and for good: queued commits end as not written, waiting ones as
    /// unknown, the safe LSN stands still, nothing is received. Then flushes the log and returns its end. May be
    /// repeated. Blocks on IO.
    ///
    /// # Errors
    /// When the log failed: the process must exit.
    pub fn seal(&self) -> Result<Position, SealError> {
        roles::seal(self.shared(), UnknownReason::StepDown)
    }

    /// Makes a sealed node a standby that receives again. Changes nothing in another role.
    pub fn unseal(&self) {
        roles::unseal(self.shared());
    }

    /// Cuts off what does not lie on `history`, which is kept aside. On a standby or a sealed node, at rest as to
    /// receiving. Blocks on IO; may be repeated.
    ///
    /// # Errors
    /// [`RejoinError::NeedsUndo`] when the store has applied what must go: nothing was changed.
    pub fn rejoin(&self, history: &TimelineHistory) -> Result<Rejoined, RejoinError> {
        roles::rejoin(self.shared(), history)
    }

    /// Stops in order: seals, ends the threads, flushes log and store. Blocks on IO.
    ///
    /// # Errors
    /// When something could not be flushed: the next start recovers it.
    pub fn stop(&self) -> Result<(), StopError> {
        let shared = self.shared();
        let sealed = roles::seal(shared, UnknownReason::Stopping);
        self.owner.join_applier();
        if let Err(SealError::Wal(error)) = sealed {
            return Err(error.into());
        }
        shared.store.flush()?;
        shared.wal.close()?;
        Ok(())
    }

    /// The value of `key` as of `at`, which must be visible. Blocks on reads of the store.
    ///
    /// # Errors
    /// When it is not visible yet, or the store failed.
    pub fn get(&self, key: &[u8], at: Lsn) -> Result<Option<VersionedValue>, ReadError> {
        self.check_visible(at)?;
        Ok(self.shared().store.get(key, at)?)
    }

    /// A page of the keys of `range` as of `at`, which must be visible. Blocks on reads of the store.
    ///
    /// # Errors
    /// When it is not visible yet, or the store failed.
    pub fn scan(&self, range: &KeyRange, at: Lsn, limit: PageLimit) -> Result<ScanPage, ReadError> {
        self.check_visible(at)?;
        Ok(self.shared().store.scan(range, at, limit)?)
    }

    fn check_visible(&self, at: Lsn) -> Result<(), ReadError> {
        let visible = self.shared().visible_now();
        if at > visible.lsn { Err(ReadError::NotVisible { at, visible }) } else { Ok(()) }
    }

    /// Commits, and returns when it is acknowledged at its level. Needs a Tokio runtime with time.
    ///
    /// Dropping the future is a cancel: the commit may or may not take effect.
    ///
    /// # Errors
    /// See [`CommitError`]; only [`CommitError::Unknown`] may have taken effect.
    pub async fn commit(&self, commit: Commit, deadline: tokio::time::Instant) -> Result<Committed, CommitError> {
        let Some(observer) = self.shared().observer() else { return self.make(commit, deadline).await };
        let watched = Watched::begin(observer, commit.level, commit.trace);
        let outcome = self.make(commit, deadline).await;
        watched.end(&outcome);
        outcome
    }

    async fn make(&self, commit: Commit, deadline: tokio::time::Instant) -> Result<Committed, CommitError> {
        let session = self.shared().session().ok_or(CommitError::NotPrimary)?;
        let level = commit.level;
        let answer = self.enqueue(&session, commit)?;
        let ordered = match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(ordered)) => ordered?,
            // The sequencer went without an answer.
            Ok(Err(_)) => return Err(CommitError::Unknown { position: None, why: UnknownReason::Failed }),
            Err(_) => return Err(CommitError::Unknown { position: None, why: UnknownReason::Deadline }),
        };
        match ordered {
            Ordered::PreconditionFailed { error, basis } => match until(deadline, session.visible.wait(basis)).await {
                Ok(()) => Err(error),
                Err(why) => Err(CommitError::NotDecided { why }),
            },
            Ordered::Appended(position) => self.acknowledge(&session, position, false, level, deadline).await,
            // Whatever the level: that it was done may be told only when it cannot be undone.
            Ordered::AlreadyDone(position) => {
                self.acknowledge(&session, position, true, DurabilityLevel::On, deadline).await
            }
        }
    }

    fn enqueue(
        &self,
        session: &Session,
        commit: Commit,
    ) -> Result<oneshot::Receiver<Result<Ordered, CommitError>>, CommitError> {
        let config = &self.shared().config;
        let (bytes, trace) = (commit.bytes(), commit.trace);
        let (record, preconditions) = commit.into_checked(config.segment_size)?;
        let (reply, answer) = oneshot::channel();
        let queued = self.shared().observer().map(|_| Instant::now());
        let queued = Queued { record, preconditions, bytes, reply, queued, trace };
        match session.queue.push(queued, self.shared().unconfirmed_bytes()) {
            Ok(()) => Ok(answer),
            Err(Refused::Closed) => Err(CommitError::NotPrimary),
            Err(Refused::Full { bytes }) => Err(CommitError::QueueFull { bytes, bytes_max: config.queue_bytes_max }),
        }
    }

    async fn acknowledge(
        &self,
        session: &Session,
        position: Position,
        already_done: bool,
        level: DurabilityLevel,
        deadline: tokio::time::Instant,
    ) -> Result<Committed, CommitError> {
        let reached = async {
            match level {
                DurabilityLevel::Off => {}
                DurabilityLevel::Local => session.flushed.wait(position.lsn).await?,
                DurabilityLevel::On => session.visible.wait(position.lsn).await?,
            }
            self.confirmed(session).await
        };
        match until(deadline, reached).await {
            Ok(()) => Ok(Committed { position, already_done }),
            Err(why) => Err(CommitError::Unknown { position: Some(position), why }),
        }
    }

    /// Waits until a majority confirms this primary, at this very moment. The last thing before an
    /// acknowledgement: the session is still open when it returns.
    async fn confirmed(&self, session: &Session) -> Result<(), UnknownReason> {
        let shared = self.shared();
        let now = || shared.clock.monotonic();
        if !shared.confirmed_until.borrow().is_some_and(|until| now() < until) {
            let mut confirmed_until = shared.confirmed_until.subscribe();
            tokio::select! {
                // The sender lives as long as the engine.
                _ = confirmed_until.wait_for(|until| until.is_some_and(|until| now() < until)) => {}
                why = session.wait_closed() => return Err(why),
            }
        }
        session.closed().map_or(Ok(()), Err)
    }
}

async fn until(
    deadline: tokio::time::Instant,
    wait: impl Future<Output = Result<(), UnknownReason>>,
) -> Result<(), UnknownReason> {
    tokio::time::timeout_at(deadline, wait).await.unwrap_or(Err(UnknownReason::Deadline))
}

/// The store must be a replay of this log: up to a position that the log has, on a timeline that it is on.
fn check_store(applied: Position, recovery: &Recovery, log_start: Lsn) -> Result<Position, OpenError> {
    let end = recovery.end;
    if !applied.lsn.is_valid() {
        return Ok(Position::new(TimelineId::NONE, log_start));
    }
    if applied.lsn > end.lsn {
        return Err(OpenError::StoreAhead { applied, end });
    }
    let last_byte = Lsn::new(applied.lsn.get() - 1);
    let written_on = recovery.history.timeline_at(last_byte).unwrap_or(TimelineId::NONE);
    if applied.lsn > log_start && written_on != applied.timeline {
        return Err(OpenError::StoreDiverged { applied, end });
    }
    Ok(applied)
}
