//! Seeding: how a node that cannot go on from its own data gets that of another one.
//!
//! ```text
//! node that is seeded                         source: a standby that streams, else the primary
//!   SeedStart ------------------------------>   a checkpoint of the store (hard links) in seeds/
//!   <---------------- SeedBegun, SeedFiles      up to which position; names, sizes, SHA-256
//!   what it has already is linked
//!   SeedWant, one thing after another ------>
//!   <------------------------- SeedChunk ...    the WAL that begins the position's segment, then the files
//!   verified, synced, laid out in seed/new
//!   SeedFinished --------------------------->   the checkpoint goes
//! ```
//!
//! | module | what it is | who runs it |
//! |---|---|---|
//! | [`manifest`] | what a seed consists of, and what is believed of it | both |
//! | [`digest`] | SHA-256 of files, remembered for those that never change | both |
//! | [`source`] | checkpoints and their transfer | the source |
//! | [`receive`] | one attempt | the node that is seeded |
//! | [`writer`] | what comes goes to the disk, and is believed once its digest fits | a blocking thread of the attempt |
//! | [`objects`] | what is here already: by digest, so that a second attempt or another source finds it | the same |
//! | [`swap`] | the new data takes the place of the old, whatever is killed when | the node, its engine closed |
//!
//! The node keeps its old data until the new is complete and synced (INV-REDO), and it has persisted that it is damaged
//! before the first attempt: that is its owner's part, as is the choice of the source. The first segment holds the
//! cluster's bytes from its begin on (INV-BYTES), and the WAL from the checkpoint on is kept by whoever hears that it is
//! needed (INV-RETAIN): [`source::Seeder::needed_from`] here, the beats elsewhere.
//!
//! What it refuses to do: write outside its own directory (names are plain), take more than the list says, begin
//! without enough free space, and let anything into the new store whose digest does not fit.

pub mod digest;
mod error;
pub mod manifest;
mod objects;
pub mod receive;
pub mod source;
pub mod swap;
mod writer;

pub use error::SeedError;
pub use manifest::{FileEntry, Manifest};
pub use receive::{SeedConfig, Seeded, SeedingStatus, seed};
pub use source::{SeedSource, Seeder, SeederSettings};

/// What one message carries of a file, in bytes.
pub const CHUNK_BYTES: usize = 512 << 10;
