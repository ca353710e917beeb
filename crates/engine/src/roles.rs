//! Changes of role: who may append to this node's log.
//!
//! ```text
//!              unseal                    open_primary (a timeline, once)
//!   Standby <---------- Sealed --------------------------------> Primary
//!      |                ^    ^                                      |
//!      +----- seal -----+    +---------------- seal ----------------+
//! ```
//!
//! | role | appends | safe LSN |
//! |---|---|---|
//! | standby | what it receives | as the upstream says |
//! | sealed | nothing; the winner of an election what it lacks, up to a given LSN | stands still |
//! | primary | what its sequencer orders | as the acknowledgements say |
//!
//! All of these block, on IO or on the engine's threads: they are called from a blocking context. They exclude
//! one another. The node's agent has persisted what it must (the seal itself, `damaged`) before it calls.
//!
//! Invariants kept here: INV-FENCED (a seal closes the session before it returns, and nothing is acknowledged
//! through a closed one), INV-ONE-PRIMARY (a timeline that the log knows is never opened again), INV-VISIBLE (a
//! truncation puts the safe LSN back to what is visible, with the applier at rest).

use std::fmt;
use std::sync::{Arc, MutexGuard};
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use understudy_types::{Lsn, Position, TimelineHistory, TimelineId};
use understudy_wal::{Appender, Decoder, Record};

use crate::commit::UnknownReason;
use crate::error::{
    BeginTimelineError, EngineFailure, OpenPrimaryError, ReceiveError, RejoinError, RoleError, SealError,
};
use crate::pending::Pending;
use crate::sequencer::Sequencer;
use crate::session::Session;
use crate::shared::Shared;
use crate::threads;

/// Log that is read at once when the pending commits are rebuilt, in bytes.
const REBUILD_BYTES_MAX: usize = 1 << 20;

/// Who may append to the log. See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Whoever it follows.
    Standby,
    /// Nobody, but for what it fetches.
    Sealed {
        /// The winner of an election fetches up to here; none when it fetches nothing.
        fetch_until: Option<Lsn>,
    },
    /// This node.
    Primary {
        /// The timeline that it opened.
        timeline: TimelineId,
    },
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Standby => "standby",
            Role::Sealed { .. } => "sealed",
            Role::Primary { .. } => "primary",
        })
    }
}

/// What a rejoin did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejoined {
    /// Where the log ends now.
    pub end: Position,
    /// How much was cut off and set aside, in bytes.
    pub truncated_bytes: u64,
}

/// The role, and the thread that goes with it.
pub(crate) struct RoleState {
    pub role: Role,
    pub sequencer: Option<JoinHandle<()>>,
}

/// Ends the session, if there is one; when this returns nothing is appended or acknowledged any more.
pub(crate) fn fence(shared: &Shared, why: UnknownReason) -> MutexGuard<'_, RoleState> {
    let mut state = shared.role();
    shared.open_safe_gate(false);
    if let Some(session) = shared.set_session(None) {
        session.close(why);
    }
    threads::join(state.sequencer.take());
    state.role = Role::Sealed { fetch_until: None };
    state
}

/// Seals, or stops: see [`crate::Engine::seal`].
pub(crate) fn seal(shared: &Shared, why: UnknownReason) -> Result<Position, SealError> {
    let _state = fence(shared, why);
    shared.wal.flush()?;
    Ok(shared.wal.end())
}

/// See [`crate::Engine::unseal`].
pub(crate) fn unseal(shared: &Shared) {
    let mut state = shared.role();
    if let Role::Sealed { .. } = state.role {
        state.role = Role::Standby;
        // What an upstream on an earlier timeline called safe need not be true of what comes now: the next one says it anew.
        let reader = shared.reader();
        shared.safe.send_replace(shared.visible_now().lsn);
        drop(reader);
        shared.open_safe_gate(true);
    }
}

/// See [`crate::Engine::allow_fetch`].
pub(crate) fn allow_fetch(shared: &Shared, until: Lsn) -> Result<(), RoleError> {
    let mut state = shared.role();
    match state.role {
        Role::Sealed { .. } => state.role = Role::Sealed { fetch_until: Some(until) },
        role @ (Role::Standby | Role::Primary { .. }) => {
            return Err(RoleError { action: "fetch WAL for an election", role });
        }
    }
    Ok(())
}

/// Up to where WAL may be received.
fn receives_until(role: Role) -> Result<Lsn, RoleError> {
    match role {
        Role::Standby => Ok(Lsn::MAX),
        Role::Sealed { fetch_until: Some(until) } => Ok(until),
        Role::Sealed { fetch_until: None } | Role::Primary { .. } => Err(RoleError { action: "receive WAL", role }),
    }
}

/// See [`crate::Engine::receive`].
pub(crate) fn receive(shared: &Shared, start: Lsn, bytes: Bytes) -> Result<Lsn, ReceiveError> {
    let state = shared.role();
    let until = receives_until(state.role)?;
    let end = shared.wal.end().lsn;
    if start != end {
        return Err(ReceiveError::NotAtEnd { start, end });
    }
    let config = &shared.config;
    let decoder = Decoder::new(config.system_id, config.segment_size, &shared.wal.history());
    let mut end = start;
    for record in decoder.decode(start, &bytes) {
        end = record?.end;
    }
    if end > until {
        return Err(ReceiveError::BeyondFetch { end, until });
    }
    let Some(observer) = shared.observer() else { return Ok(shared.wal.append(start, bytes)?) };
    // Before it is appended: the applier may be through with it before this thread goes on.
    observer.received(start, end, Instant::now());
    Ok(shared.wal.append(start, bytes)?)
}

/// See [`crate::Engine::begin_timeline`].
pub(crate) fn begin_timeline(shared: &Shared, history: &TimelineHistory) -> Result<(), BeginTimelineError> {
    let state = shared.role();
    receives_until(state.role)?;
    Ok(shared.wal.begin_timeline(history)?)
}

/// See [`crate::Engine::rejoin`].
pub(crate) fn rejoin(shared: &Shared, history: &TimelineHistory) -> Result<Rejoined, RejoinError> {
    let state = shared.role();
    match state.role {
        Role::Standby | Role::Sealed { .. } => {}
        role @ Role::Primary { .. } => return Err(RoleError { action: "rejoin", role }.into()),
    }
    let end = shared.wal.end();
    let position = history.position(end);
    let mut reader = shared.reader();
    let applied = shared.visible_now();
    if applied.lsn > position {
        return Err(RejoinError::NeedsUndo { applied, position });
    }
    if position == end.lsn {
        // An upstream on a branch that was left may have said more than is true of this one.
        shared.safe.send_if_modified(|safe| {
            let moves = *safe > position;
            *safe = position.min(*safe);
            moves
        });
        return Ok(Rejoined { end, truncated_bytes: 0 });
    }
    shared.safe.send_replace(applied.lsn);
    shared.wal.truncate(position)?;
    *reader = shared.wal.reader(applied.lsn);
    let truncated_bytes = end.lsn.saturating_since(position);
    tracing::info!(%end, %position, truncated_bytes, "WAL truncated to what lies on the cluster's history");
    Ok(Rejoined { end: shared.wal.end(), truncated_bytes })
}

/// See [`crate::Engine::open_primary`].
pub(crate) fn open_primary(
    shared: &Arc<Shared>,
    history: &TimelineHistory,
    safe_lsn: Lsn,
) -> Result<(), OpenPrimaryError> {
    let mut state = shared.role();
    let before = check_switch(shared, state.role, history, safe_lsn)?;
    // Nobody may move the safe LSN between the roles: what the old one knew does not count for the new one.
    shared.open_safe_gate(false);
    let opened = open_timeline(shared, history, before, safe_lsn);
    let (session, sequencer) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            shared.open_safe_gate(state.role == Role::Standby);
            if let OpenPrimaryError::Failed(failure) = &error
                && failure.is_damage()
            {
                // Whoever tried need not know that this node has no future.
                shared.fail(failure.clone());
            }
            return Err(error);
        }
    };
    let timeline = session.timeline;
    state.sequencer = Some(threads::spawn(shared, "sequencer", move || sequencer.run())?);
    state.role = Role::Primary { timeline };
    shared.set_session(Some(Arc::clone(&session)));
    if shared.failure.borrow().is_some() {
        // It failed before it could see the session.
        session.close(UnknownReason::Failed);
    }
    // What was reached before the applier could see the session.
    session.visible.release(shared.visible_now().lsn);
    // Copied out: releasing takes locks, and who holds those may want to borrow it.
    let flushed = *shared.wal.flushed().borrow();
    session.flushed.release(flushed);
    shared.open_safe_gate(true);
    tracing::info!(%timeline, begin = %before.lsn, safe = %safe_lsn, "opened a timeline");
    Ok(())
}

/// Where the log ends, if the latest timeline of `history` may be opened there.
fn check_switch(
    shared: &Shared,
    role: Role,
    history: &TimelineHistory,
    safe: Lsn,
) -> Result<Position, OpenPrimaryError> {
    match role {
        Role::Standby | Role::Sealed { .. } => {}
        Role::Primary { .. } => return Err(RoleError { action: "open a timeline", role }.into()),
    }
    let timeline = history.latest();
    let switch = history.switch_to(timeline).ok_or(OpenPrimaryError::NoTimeline)?.switch_lsn;
    let (present, end) = (shared.wal.history().latest(), shared.wal.end());
    if present >= timeline {
        return Err(OpenPrimaryError::NotNew { timeline, present });
    }
    if end.lsn != switch || history.position(end) != switch {
        return Err(OpenPrimaryError::NotAtSwitch { timeline, switch, end });
    }
    if safe > switch {
        return Err(OpenPrimaryError::SafeBeyondSwitch { timeline, safe, switch });
    }
    Ok(end)
}

fn open_timeline(
    shared: &Arc<Shared>,
    history: &TimelineHistory,
    before: Position,
    safe_lsn: Lsn,
) -> Result<(Arc<Session>, Sequencer), OpenPrimaryError> {
    let (config, timeline) = (&shared.config, history.latest());
    let safe_lsn = {
        let _at_rest = shared.reader();
        let safe_lsn = safe_lsn.max(shared.visible_now().lsn);
        shared.safe.send_replace(safe_lsn);
        safe_lsn
    };
    shared.wal.begin_timeline(history)?;
    let mut appender = Appender::new(config.system_id, config.segment_size, timeline, before.lsn);
    let mut bytes = BytesMut::new();
    let record = Record::EndOfRecovery { previous: before.timeline };
    appender.append(&mut bytes, &record, shared.clock.now_us()).expect("an end-of-recovery record fits into a segment");
    shared.wal.append(before.lsn, bytes.freeze())?;
    shared.wal.flush()?;
    // Whatever may have been acknowledged must be readable before the first read is answered.
    shared.wait_visible(safe_lsn)?;
    let pending = rebuild_pending(shared)?;
    let session = Arc::new(Session::new(timeline, config.queue_bytes_max));
    let sequencer = Sequencer::new(Arc::clone(shared), Arc::clone(&session), appender, pending);
    Ok((session, sequencer))
}

/// The commits of the log that are not visible: earlier primaries appended them, and they may yet become safe.
fn rebuild_pending(shared: &Shared) -> Result<Pending, EngineFailure> {
    let (config, visible) = (&shared.config, shared.visible_now().lsn);
    let decoder = Decoder::new(config.system_id, config.segment_size, &shared.wal.history());
    let mut reader = shared.wal.reader(visible);
    let mut pending = Pending::default();
    while let Some(chunk) = reader.read(Lsn::MAX, REBUILD_BYTES_MAX)? {
        for decoded in decoder.decode(chunk.start, &chunk.bytes) {
            let decoded =
                decoded.map_err(|source| EngineFailure::Damaged { lsn: chunk.start, source: Arc::new(source) })?;
            match &decoded.record {
                Record::Commit(commit) => pending.add(Position::new(decoded.timeline, decoded.end), commit),
                Record::EndOfRecovery { .. } | Record::Filler | Record::Noop | Record::GcHorizon(_) => {}
            }
        }
    }
    Ok(pending)
}
