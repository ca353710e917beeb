//! What the threads of an engine share.
//!
//! Lock order: `role`, then `reader`, then `safe_gate`, then `session`. The applier takes `reader` and
//! `session` only, the sequencer takes `session` only, so a change of role may wait for both.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use tokio::sync::watch;
use understudy_store::Store;
use understudy_types::{Lsn, Position};
use understudy_wal::observe::FlushObserver;
use understudy_wal::{Wal, WalReader};

use crate::checkpointer::{Retention, RetentionSettings};
use crate::clock::Clock;
use crate::commit::UnknownReason;
use crate::config::EngineConfig;
use crate::error::{EngineFailure, ReadError};
use crate::gc;
use crate::observe::Observer;
use crate::roles::{Role, RoleState};
use crate::session::Session;

pub(crate) struct Shared {
    pub config: EngineConfig,
    pub wal: Wal,
    pub store: Arc<dyn Store>,
    pub clock: Arc<dyn Clock>,
    /// The role and the thread that goes with it. Held for a whole change of role.
    role: Mutex<RoleState>,
    /// Where the applier reads. Held while it applies: whoever holds it sees the store at rest.
    reader: Mutex<WalReader>,
    /// The session of the timeline that is open; none on a standby.
    session: RwLock<Option<Arc<Session>>>,
    /// Up to where what the applier did is published; changed by it alone.
    pub visible: watch::Sender<Position>,
    /// Below it nothing is read; changed by the applier alone.
    pub horizon: watch::Sender<Lsn>,
    /// What the horizon is to be, on the primary.
    pub history_retention: gc::Retention,
    /// Up to where a failover cannot take anything back.
    pub safe: watch::Sender<Lsn>,
    /// Whether the safe LSN may move: not on a sealed node.
    safe_gate: Mutex<bool>,
    /// Until when a majority confirms the primary; none for never.
    pub confirmed_until: watch::Sender<Option<std::time::Duration>>,
    pub failure: watch::Sender<Option<Arc<EngineFailure>>>,
    pub retention_settings: watch::Sender<RetentionSettings>,
    /// From where on others need WAL; none when nobody does.
    pub needed_from: watch::Sender<Option<Lsn>>,
    /// What the checkpointer has done; changed by it alone.
    pub retention: watch::Sender<Retention>,
    /// Tells those who hold the engine for long to let go of it.
    pub given_up: watch::Sender<bool>,
    /// Tells the applier and the checkpointer to end.
    pub stopping: watch::Sender<bool>,
    /// Told of the stages of commits; none when nobody wants to know.
    observer: OnceLock<Arc<dyn Observer>>,
    /// For threads that wait for the visible LSN: async code uses the watch.
    progress: Mutex<()>,
    progressed: Condvar,
}

impl Shared {
    pub(crate) fn new(
        config: EngineConfig,
        wal: Wal,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        visible: Position,
    ) -> Self {
        let reader = wal.reader(visible.lsn);
        let horizon = store.horizon().versions_below;
        Self {
            config,
            wal,
            store,
            clock,
            role: Mutex::new(RoleState { role: Role::Standby, sequencer: None }),
            reader: Mutex::new(reader),
            session: RwLock::new(None),
            visible: watch::Sender::new(visible),
            horizon: watch::Sender::new(horizon),
            history_retention: gc::Retention::default(),
            safe: watch::Sender::new(visible.lsn),
            safe_gate: Mutex::new(true),
            confirmed_until: watch::Sender::new(None),
            failure: watch::Sender::new(None),
            retention_settings: watch::Sender::new(RetentionSettings::default()),
            needed_from: watch::Sender::new(None),
            retention: watch::Sender::new(Retention::default()),
            given_up: watch::Sender::new(false),
            stopping: watch::Sender::new(false),
            observer: OnceLock::new(),
            progress: Mutex::new(()),
            progressed: Condvar::new(),
        }
    }

    /// Has `observer` told of everything from now on. The first one stays.
    pub(crate) fn observe(&self, observer: Arc<dyn Observer>) {
        let observer = self.observer.get_or_init(|| observer);
        self.wal.observe(Arc::clone(observer) as Arc<dyn FlushObserver>);
    }

    pub(crate) fn observer(&self) -> Option<&dyn Observer> {
        self.observer.get().map(|observer| &**observer)
    }

    /// Keeps every other change of role out for as long as the guard lives.
    pub(crate) fn role(&self) -> MutexGuard<'_, RoleState> {
        self.role.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the applier for as long as the guard lives.
    pub(crate) fn reader(&self) -> MutexGuard<'_, WalReader> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        self.session.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_session(&self, session: Option<Arc<Session>>) -> Option<Arc<Session>> {
        std::mem::replace(&mut *self.session.write().unwrap_or_else(PoisonError::into_inner), session)
    }

    /// Where the store stands, which is what everybody may see.
    pub(crate) fn visible_now(&self) -> Position {
        *self.visible.borrow()
    }

    /// Shows what was applied, and wakes who waits for it.
    pub(crate) fn publish_visible(&self, visible: Position) {
        self.visible.send_replace(visible);
        self.wake_threads();
        if let Some(session) = self.session() {
            session.visible.release(visible.lsn);
        }
    }

    /// Refuses a read below the horizon. To be asked after the read too: the store may have dropped versions meanwhile, and
    /// has raised its horizon before it did.
    pub(crate) fn check_kept(&self, at: Lsn) -> Result<(), ReadError> {
        let horizon = self.store.horizon().versions_below;
        if at < horizon { Err(ReadError::BelowHorizon { at, horizon }) } else { Ok(()) }
    }

    fn wake_threads(&self) {
        drop(self.progress.lock().unwrap_or_else(PoisonError::into_inner));
        self.progressed.notify_all();
    }

    /// Blocks until `lsn` is visible.
    pub(crate) fn wait_visible(&self, lsn: Lsn) -> Result<(), EngineFailure> {
        let mut guard = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(failure) = &*self.failure.borrow() {
                return Err(EngineFailure::clone(failure));
            }
            if self.visible_now().lsn >= lsn {
                return Ok(());
            }
            guard = self.progressed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Moves the safe LSN up to `lsn`, unless the node is sealed.
    pub(crate) fn advance_safe(&self, lsn: Lsn) {
        let gate = self.safe_gate.lock().unwrap_or_else(PoisonError::into_inner);
        if *gate {
            self.safe.send_if_modified(|safe| {
                let moves = lsn > *safe;
                if moves && let Some(observer) = self.observer() {
                    observer.safe(lsn, Instant::now());
                }
                *safe = lsn.max(*safe);
                moves
            });
        }
    }

    /// From now on the safe LSN stays where it is, or may move again.
    pub(crate) fn open_safe_gate(&self, open: bool) {
        *self.safe_gate.lock().unwrap_or_else(PoisonError::into_inner) = open;
    }

    /// Latches a failure: nothing is acknowledged any more, and the process is to exit.
    pub(crate) fn fail(&self, failure: EngineFailure) {
        let first = self.failure.send_if_modified(|present| {
            let first = present.is_none();
            present.get_or_insert_with(|| Arc::new(failure.clone()));
            first
        });
        if first {
            tracing::error!(error = &failure as &dyn std::error::Error, "the engine failed");
        }
        if let Some(session) = self.session() {
            session.close(UnknownReason::Failed);
        }
        self.wake_threads();
    }

    /// Appended bytes that are not visible yet.
    pub(crate) fn unconfirmed_bytes(&self) -> u64 {
        self.wal.end().lsn.saturating_since(self.visible_now().lsn)
    }
}
