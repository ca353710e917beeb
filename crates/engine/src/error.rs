//! What can go wrong with an engine, one enum per family of operations, and what to do about it.

use std::sync::Arc;

use understudy_store::StoreError;
use understudy_types::{Lsn, Position, TimelineId};
use understudy_wal::{DecodeError, WalError};

use crate::roles::Role;

/// The engine cannot go on: the process must exit, and recovery starts over from the disk.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineFailure {
    /// The log failed.
    #[error("the WAL failed: the node must be restarted")]
    Wal(#[source] Arc<WalError>),
    /// The store failed.
    #[error("the store failed: the node must be restarted")]
    Store(#[source] Arc<StoreError>),
    /// The log holds what cannot be read, below its flush LSN.
    #[error("the WAL is damaged at {lsn}: fetch this node's data again from a peer")]
    Damaged {
        /// Where reading stopped.
        lsn: Lsn,
        /// What was found.
        #[source]
        source: Arc<DecodeError>,
    },
    /// A thread of the engine could not be started.
    #[error("cannot start the {name} thread: the node must be restarted")]
    Thread {
        /// Which.
        name: &'static str,
        /// What the system says.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// A thread of the engine has ended by a panic.
    #[error("the {name} thread ended unexpectedly: the node must be restarted")]
    ThreadGone {
        /// Which.
        name: &'static str,
    },
}

impl EngineFailure {
    /// Whether what is on disk is damaged: recovery from it would meet the same, and the data must come from a peer.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Wal(source) => source.is_damage(),
            Self::Store(source) => source.is_damage(),
            Self::Damaged { .. } => true,
            Self::Thread { .. } | Self::ThreadGone { .. } => false,
        }
    }
}

impl From<WalError> for EngineFailure {
    fn from(source: WalError) -> Self {
        Self::Wal(Arc::new(source))
    }
}

impl From<StoreError> for EngineFailure {
    fn from(source: StoreError) -> Self {
        Self::Store(Arc::new(source))
    }
}

/// An engine cannot be opened: the node refuses to start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The log cannot be recovered.
    #[error("cannot recover the WAL")]
    Wal(#[from] WalError),
    /// The store cannot be read.
    #[error("cannot read the store")]
    Store(#[from] StoreError),
    /// The store has applied what the log does not have.
    #[error(
        "the store has applied up to {applied}, but the WAL ends at {end}: they do not belong together, \
         or the WAL has lost its end; fetch this node's data again from a peer"
    )]
    StoreAhead {
        /// Of the store.
        applied: Position,
        /// Of the log.
        end: Position,
    },
    /// The store has applied a branch that the log is not on.
    #[error(
        "the store has applied up to {applied}, which does not lie on the timelines of the WAL (it ends at {end}): \
         they do not belong together; fetch this node's data again from a peer"
    )]
    StoreDiverged {
        /// Of the store.
        applied: Position,
        /// Of the log.
        end: Position,
    },
    /// The applier could not be started.
    #[error("cannot start the engine")]
    Failed(#[from] EngineFailure),
}

impl OpenError {
    /// Whether the node found that it may lack what it once confirmed, or that its store is not to be read.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Wal(source) => source.is_damage(),
            Self::Store(source) => source.is_damage(),
            Self::StoreAhead { .. } | Self::StoreDiverged { .. } => true,
            Self::Failed(source) => source.is_damage(),
        }
    }
}

/// A read cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Asked for a position that is not visible here yet.
    #[error("cannot read at {at}: this node shows what lies up to {visible}; wait for it, or ask another node")]
    NotVisible {
        /// The position asked for.
        at: Lsn,
        /// Up to where it is visible.
        visible: Position,
    },
    /// Asked for a position whose history is given up: it will not come back.
    #[error(
        "cannot read at {at}: history is kept for history_retention, and the oldest position that can be read is {horizon}; \
         read at a later one"
    )]
    BelowHorizon {
        /// The position asked for.
        at: Lsn,
        /// The oldest one that can be read.
        horizon: Lsn,
    },
    /// The store failed. If it is damaged, so has the engine: see [`EngineFailure::is_damage`].
    #[error("cannot read the store")]
    Store(#[source] Arc<StoreError>),
}

/// What was asked does not fit the role that the node has.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} as a {role} node")]
pub struct RoleError {
    /// What was asked.
    pub action: &'static str,
    /// What the node is.
    pub role: Role,
}

/// Bytes of the log were not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The node does not follow anybody now: end the stream.
    #[error(transparent)]
    Role(#[from] RoleError),
    /// A sealed node fetches up to a position and not beyond: end the stream.
    #[error("received WAL up to {end}, but this sealed node fetches up to {until} only")]
    BeyondFetch {
        /// Where the bytes end.
        end: Lsn,
        /// What was allowed.
        until: Lsn,
    },
    /// The bytes do not begin where the log ends: end the stream and start again from the end.
    #[error("received WAL from {start}, but this node's WAL ends at {end}")]
    NotAtEnd {
        /// Where the bytes begin.
        start: Lsn,
        /// Where the log ends.
        end: Lsn,
    },
    /// The bytes are not the records that belong there: end the stream and start again.
    #[error("received WAL is not what belongs there: nothing of it was written")]
    Corrupt(#[from] DecodeError),
    /// The log failed.
    #[error("cannot write received WAL")]
    Wal(#[from] WalError),
}

/// A standby could not go on to the next timeline.
#[derive(Debug, thiserror::Error)]
pub enum BeginTimelineError {
    /// The node does not follow anybody now.
    #[error(transparent)]
    Role(#[from] RoleError),
    /// The timeline does not begin where the log ends, or the log failed.
    #[error("cannot begin a timeline")]
    Wal(#[from] WalError),
}

/// A node could not be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The log failed: the process must exit.
    #[error("cannot flush the WAL")]
    Wal(#[from] WalError),
}

/// A timeline could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenPrimaryError {
    /// It is the primary already.
    #[error(transparent)]
    Role(#[from] RoleError),
    /// There is no timeline to open.
    #[error("cannot open a timeline: the history has none")]
    NoTimeline,
    /// The log does not end where the timeline begins.
    #[error(
        "cannot open timeline {timeline}: it begins at {switch}, and this node's WAL ends at {end}; fetch or rejoin first"
    )]
    NotAtSwitch {
        /// The timeline.
        timeline: TimelineId,
        /// Where it begins.
        switch: Lsn,
        /// Where the log ends.
        end: Position,
    },
    /// The timeline was begun here before: it is opened once (INV-ONE-PRIMARY).
    #[error(
        "cannot open timeline {timeline}: this node's WAL is on timeline {present} already; a new election is needed"
    )]
    NotNew {
        /// The timeline.
        timeline: TimelineId,
        /// The latest that the log knows.
        present: TimelineId,
    },
    /// What may have been acknowledged is not all here.
    #[error("cannot open timeline {timeline} with safe LSN {safe}: it begins at {switch}, below it")]
    SafeBeyondSwitch {
        /// The timeline.
        timeline: TimelineId,
        /// The safe LSN that it should begin with.
        safe: Lsn,
        /// Where it begins.
        switch: Lsn,
    },
    /// The log or the store failed: the process must exit.
    #[error("cannot open a timeline")]
    Failed(#[from] EngineFailure),
}

impl From<WalError> for OpenPrimaryError {
    fn from(source: WalError) -> Self {
        Self::Failed(source.into())
    }
}

/// A node could not rejoin.
#[derive(Debug, thiserror::Error)]
pub enum RejoinError {
    /// It is the primary: it is sealed first.
    #[error(transparent)]
    Role(#[from] RoleError),
    /// The store has applied more than lies on the history: truncating the log is not enough.
    #[error(
        "cannot rejoin: the store has applied up to {applied}, but this node agrees with the cluster only up to {position}; \
         its data must be fetched again from a peer"
    )]
    NeedsUndo {
        /// Of the store.
        applied: Position,
        /// The end of what agrees.
        position: Lsn,
    },
    /// The log failed: the process must exit.
    #[error("cannot truncate the WAL")]
    Wal(#[from] WalError),
}

/// A stop was not clean; the next start recovers. Nothing that was acknowledged is lost.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The log could not be flushed.
    #[error("cannot flush the WAL")]
    Wal(#[from] WalError),
    /// The store could not be flushed.
    #[error("cannot flush the store")]
    Store(#[from] StoreError),
}
