//! The database of one node: the commit pipeline, visibility, reads, recovery, and the changes of role.
//!
//! ```text
//! commit() -> queue -> sequencer thread: validate, assign the LSN, append
//!                          -> WAL writer thread: write, fdatasync  -> flush LSN
//!                          -> walsenders -> acknowledgements       -> safe LSN   (somebody else's work)
//! applier thread: own WAL up to min(safe, flush) -> store -> visible -> waiters, in LSN order
//! ```
//!
//! | module | what | who runs it |
//! |---|---|---|
//! | [`Engine`] | the handle; opening, reads, commits | everybody |
//! | `roles` | primary, standby, sealed: who may append | the node's agent, one at a time |
//! | `queue`, `sequencer`, `pending` | ordering commits | the sequencer thread of one timeline |
//! | `applier` | what is safe becomes visible | the applier thread |
//! | `checkpointer` | flushing the store, removing WAL | the checkpointer thread |
//! | `gc` | how much of the past is kept | the sequencer thread |
//! | `submit` | a commit from its call to its answer | whoever asked for it |
//! | `waiters` | commits that wait for a position | the applier, or whoever moves the position, releases them |
//! | `waiting` | who waits, for people; cancelling | the node's services |
//!
//! On every node, in every role, the applier is the only one that writes the store, and it never goes beyond
//! the safe LSN or the node's own flush LSN: what a failover may still take back is in the WAL alone
//! (INV-VISIBLE), and every node applies the same records in the same order (INV-ORDER).
//!
//! The engine decides nothing about the cluster. It is told the safe LSN, until when a majority confirms the
//! primary, and which role to take; it refuses what does not fit the role that it has (INV-FENCED).

mod applier;
mod checkpointer;
mod clock;
mod commit;
mod config;
mod engine;
mod error;
mod gc;
mod observe;
mod pending;
mod queue;
mod roles;
mod sequencer;
mod session;
mod shared;
mod submit;
mod threads;
mod waiters;
mod waiting;

pub use checkpointer::{Retention, RetentionSettings};
pub use clock::{Clock, SystemClock};
pub use commit::{Commit, CommitError, Committed, Condition, InvalidCommit, Precondition, UnknownReason};
pub use config::EngineConfig;
pub use engine::Engine;
pub use error::{
    BeginTimelineError, EngineFailure, OpenError, OpenPrimaryError, ReadError, ReceiveError, RejoinError, RoleError,
    SealError, StopError,
};
pub use observe::{Finished, Mark, Observer, TraceContext};
pub use roles::{Rejoined, Role};
pub use waiting::{CancelWaiting, WAITING_COMMITS_MAX, WaitStage, Waiting, WaitingCommit};
