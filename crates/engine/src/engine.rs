//! The handle of an engine: opening it, reading, and what the rest of the node steers it by. For commits see `submit`.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use understudy_store::{KeyRange, PageLimit, ScanPage, Store, StoreError, VersionedValue};
use understudy_types::{Lsn, Position, TimelineHistory, TimelineId};
use understudy_wal::{Files, Recovery, Wal, WalConfig};

use crate::applier::Applier;
use crate::checkpointer::{Checkpointer, Retention, RetentionSettings};
use crate::clock::Clock;
use crate::commit::UnknownReason;
use crate::config::EngineConfig;
use crate::error::{
    BeginTimelineError, EngineFailure, OpenError, OpenPrimaryError, ReadError, ReceiveError, RejoinError, RoleError,
    SealError, StopError,
};
use crate::observe::{Mark, Observer};
use crate::roles::{self, Rejoined, Role};
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
    checkpointer: Mutex<Option<JoinHandle<()>>>,
}

impl Owner {
    fn join_threads(&self) {
        self.shared.stopping.send_replace(true);
        for thread in [&self.applier, &self.checkpointer] {
            threads::join(thread.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        drop(roles::fence(&self.shared, UnknownReason::Stopping));
        self.join_threads();
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
            ring_bytes_max: config.ring_bytes_max,
            ..WalConfig::new(config.wal_dir(), config.system_id, config.segment_size)
        };
        let durable = store.durable_applied()?.lsn;
        let (wal, recovery) = Wal::open(files, wal_config, durable)?;
        let visible = check_store(store.applied(), &recovery, config.segment_size.log_start())?;
        let shared = Arc::new(Shared::new(config, wal, store, clock, visible));
        let applier = Applier::new(Arc::clone(&shared))
            .map_err(|source| EngineFailure::Thread { name: "applier", source: Arc::new(source) })?;
        let thread = threads::spawn(&shared, "applier", move || applier.run())?;
        let owner = Owner { shared, applier: Mutex::new(Some(thread)), checkpointer: Mutex::new(None) };
        // From here on a failure ends what was started.
        let engine = Engine { owner: Arc::new(owner) };
        engine.start_checkpointer(durable)?;
        Ok(engine)
    }

    fn start_checkpointer(&self, durable: Lsn) -> Result<(), EngineFailure> {
        let shared = self.shared();
        let checkpointer = Checkpointer::new(Arc::clone(shared), durable)
            .map_err(|source| EngineFailure::Thread { name: "checkpointer", source: Arc::new(source) })?;
        let thread = threads::spawn(shared, "checkpointer", move || checkpointer.run())?;
        *self.owner.checkpointer.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
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

    /// The oldest LSN that can be read at, on this node.
    pub fn horizon(&self) -> watch::Receiver<Lsn> {
        self.shared().horizon.subscribe()
    }

    /// How long the past can be read, from now on: as the primary this node gives up what is older (default 5 minutes). A
    /// read that takes longer fails, so let it be longer than those.
    pub fn set_history_retention(&self, retention: Duration) {
        self.shared().history_retention.set_history(retention);
    }

    /// How long a commit can be sent again and is done once, from now on (default 1 hour).
    pub fn set_request_id_retention(&self, retention: Duration) {
        self.shared().history_retention.set_request_ids(retention);
    }

    /// The failure after which the process must exit; none while all is well.
    pub fn failure(&self) -> watch::Receiver<Option<Arc<EngineFailure>>> {
        self.shared().failure.subscribe()
    }

    /// From now on checkpoints and keeps WAL by these.
    pub fn set_retention(&self, settings: RetentionSettings) {
        self.shared().retention_settings.send_replace(settings);
    }

    /// From where on others need this node's WAL (nodes that are being seeded, later slots); none when nobody does. What was
    /// removed before does not come back: see [`Retention::oldest`].
    pub fn set_needed_from(&self, lsn: Option<Lsn>) {
        self.shared().needed_from.send_if_modified(|present| std::mem::replace(present, lsn) != lsn);
    }

    /// The last checkpoint and the WAL that is kept, for status and metrics.
    pub fn retention(&self) -> Retention {
        let (wal, known) = (&self.shared().wal, *self.shared().retention.borrow());
        let oldest = wal.first();
        Retention { oldest, wal_bytes: wal.flushed().borrow().saturating_since(oldest), ..known }
    }

    /// The same as it changes: with checkpoints and removals.
    pub fn watch_retention(&self) -> watch::Receiver<Retention> {
        self.shared().retention.subscribe()
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

    /// Until when a majority of voters confirms this primary, on the clock's boot time; none for not at all,
    /// as it is at first. Later than that nothing is acknowledged at any level until it is renewed.
    pub fn set_confirmed_until(&self, until: Option<Duration>) {
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

    /// True from the moment on that the engine is stopped. Whoever holds it for longer than a request takes looks here, and lets go
    /// of it then: its store may be waiting to be replaced.
    pub fn given_up(&self) -> watch::Receiver<bool> {
        self.shared().given_up.subscribe()
    }

    /// Stops in order: has those let go that hold the engine for long ([`Engine::given_up`]), seals, ends the threads, flushes log
    /// and store. Blocks on IO.
    ///
    /// # Errors
    /// When something could not be flushed: the next start recovers it.
    pub fn stop(&self) -> Result<(), StopError> {
        let shared = self.shared();
        shared.given_up.send_replace(true);
        let sealed = roles::seal(shared, UnknownReason::Stopping);
        self.owner.join_threads();
        if let Err(SealError::Wal(error)) = sealed {
            return Err(error.into());
        }
        shared.store.flush()?;
        shared.wal.close()?;
        Ok(())
    }

    /// The value of `key` as of `at`, which must be visible and not below the horizon. Blocks on reads of the store.
    ///
    /// # Errors
    /// When it is not visible yet or not kept any more, or the store failed.
    pub fn get(&self, key: &[u8], at: Lsn) -> Result<Option<VersionedValue>, ReadError> {
        self.check_visible(at)?;
        self.shared().check_kept(at)?;
        let found = self.readable(self.shared().store.get(key, at))?;
        self.shared().check_kept(at)?;
        Ok(found)
    }

    /// A page of the keys of `range` as of `at`, which must be visible and not below the horizon. Blocks on reads of the
    /// store. Each page is checked: a scan that takes longer than history is kept fails, it misses nothing.
    ///
    /// # Errors
    /// When it is not visible yet or not kept any more, or the store failed.
    pub fn scan(&self, range: &KeyRange, at: Lsn, limit: PageLimit) -> Result<ScanPage, ReadError> {
        self.check_visible(at)?;
        self.shared().check_kept(at)?;
        let page = self.readable(self.shared().store.scan(range, at, limit))?;
        self.shared().check_kept(at)?;
        Ok(page)
    }

    /// A read that finds damage ends the engine, as an apply does: what it cannot read here another node can. A disk that
    /// refuses a read is not damage; it may give it the next time.
    fn readable<T>(&self, read: Result<T, StoreError>) -> Result<T, ReadError> {
        read.map_err(|source| {
            let source = Arc::new(source);
            if source.is_damage() {
                self.shared().fail(EngineFailure::Store(Arc::clone(&source)));
            }
            ReadError::Store(source)
        })
    }

    fn check_visible(&self, at: Lsn) -> Result<(), ReadError> {
        let visible = self.shared().visible_now();
        if at > visible.lsn { Err(ReadError::NotVisible { at, visible }) } else { Ok(()) }
    }
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
