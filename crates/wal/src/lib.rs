//! The write-ahead log of one node: what a commit is before it is anything else.
//!
//! | module | what |
//! |---|---|
//! | [`record`], [`segment`] | the formats: see `docs/wal-format.md`, which draws them byte by byte |
//! | [`appender`], [`decoder`] | laying records out, and reading them back; pure |
//! | [`wal`] | the handle: append, flush, fork, truncate, remove, close |
//! | [`reader`] | whole records from memory or from the segment files |
//! | [`offline`] | reading a log whose server is down |
//! | [`seeded`] | laying out a log that begins in the middle, for a node that is seeded |
//! | [`files`] | the trait that all file IO goes through |
//!
//! The log is physical: every node of a cluster holds the same bytes at the same LSN (INV-BYTES). Positions
//! keep one order, `append >= write >= flush`, and each is the end of a record.
//!
//! What this crate refuses to do: it never retries a failed write or fsync, never truncates below what it once
//! reported as flushed unless it is told to by [`Wal::truncate`], and removes no segment of the chain unless it is told
//! by [`Wal::remove_before`] that nobody needs it (INV-RETAIN).

pub mod appender;
mod chain;
mod cut;
pub mod decoder;
mod directory;
pub mod error;
#[cfg(any(test, feature = "fakes"))]
pub mod fakes;
pub mod files;
mod fork;
mod history;
pub mod observe;
pub mod offline;
pub mod reader;
mod real;
pub mod record;
mod recovery;
mod removal;
mod ring;
mod scan;
pub mod seeded;
pub mod segment;
mod shared;
mod spares;
pub mod wal;
mod watermark;
mod writer;

pub use appender::{Appender, RecordTooLarge, max_commit_bytes};
pub use decoder::{DecodeError, DecodedRecord, Decoder, Records};
pub use error::WalError;
pub use files::{File, Files, RealFiles, read_file, replace_file};
pub use offline::OfflineLog;
pub use reader::{Chunk, WalReader};
pub use record::{CommitRecord, GcHorizon, Op, Record};
pub use recovery::{Recovery, Truncated};
pub use removal::Removal;
pub use wal::{Wal, WalConfig};

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod real_tests;
#[cfg(test)]
mod tests;
