//! The sync-standby list: who must have a commit before it is acknowledged, and how that changes.
//!
//! | file | what it decides |
//! |---|---|
//! | `named` | whether any member could ever satisfy the setting |
//! | `names` | what `synchronous_standby_names` says (PostgreSQL's grammar) |
//! | `rule` | the safe LSN that a list and the acknowledgements give |
//! | `wanted` | the list that the setting, the mode and the present standbys ask for |
//! | `applied` | what the applied cluster state says of it |
//! | `standbys` | what each standby acknowledged, over which connection, and whether that can be believed |
//! | `manager` | the way from the list that Raft has to the wanted one, without a moment at which Raft's is false |
//! | `waiting` | for whom a commit waits |
//! | `lag` | how long ago what a standby acknowledges was sent to it |
//! | `status` | all of it for people |
//!
//! The primary runs it, one [`SyncManager`] for each timeline that it opens. No IO, no clock: events go in by
//! `handle_*`, three positions (what is written, flushed and applied under the rules) and at most one proposal to Raft come out.

mod applied;
mod lag;
mod manager;
mod named;
mod names;
mod rule;
mod standbys;
mod status;
mod waiting;
mod wanted;

pub use lag::{Lag, LagTracker};
pub use manager::SyncManager;
pub use named::{Unsatisfied, nobody_can_acknowledge};
pub use names::{StandbyNames, StandbyNamesError, SyncMethod};
pub use rule::{SyncRule, holds, safe_lsn};
pub use standbys::{Ack, ConnectionId, Report, WalSenderState};
pub use status::{StandbySync, SyncState, SyncStatus, SyncWait};
pub use waiting::{TooFewConnected, WaitsFor};

#[cfg(test)]
#[path = "manager_tests.rs"]
mod manager_tests;
#[cfg(test)]
#[path = "random_tests.rs"]
mod random_tests;
