//! The vocabulary that every other crate shares: positions in the log, timelines, identities, names
//! and limits, with their parsing and printing.
//!
//! Nothing here does IO, reads a clock or draws a random number. Each type is a newtype with checked
//! arithmetic: a byte position cannot be mistaken for a Raft index, nor a timeline for a term.

mod id;
mod level;
pub mod limits;
mod lsn;
mod name;
mod segment;
pub mod shown;
mod timeline;
mod token;

pub use id::{Generation, Incarnation, NodeId, ParseIdError, RequestId, SystemId};
pub use level::{DurabilityLevel, ParseLevelError, ParseModeError, SyncMode};
pub use lsn::{Lsn, ParseLsnError, Position};
pub use name::{NameError, NodeName};
pub use segment::{SegmentNo, SegmentSize, SegmentSizeError};
pub use timeline::{ParseTimelineError, Span, TimelineHistory, TimelineHistoryError, TimelineId, TimelineSwitch};
pub use token::{SessionToken, TokenError};
