//! The data of one node: every version of every key, request ids, and how far the log has been applied.
//!
//! | module | what |
//! |---|---|
//! | [`Store`] | what the engine needs of a store |
//! | [`rocks`] | the store on disk, on RocksDB: the only code that names rocksdb for data |
//! | [`memory`] | the model: the same behaviour on a sorted map, for tests and simulation |
//! | [`key`] | how a user key and a version become one sortable key |
//!
//! The store knows nothing of durability levels or visibility. The engine applies committed records in the
//! order of their LSNs and never beyond the safe LSN, so the store's content is always the replay of the
//! log up to [`Store::applied`] (INV-REDO).

mod api;
pub mod key;
pub mod memory;
pub mod rocks;

pub use api::{
    AppliedCommit, CheckpointFile, KeyRange, PageLimit, ScanEntry, ScanPage, Store, StoreError, VersionedValue,
    check_order,
};
pub use memory::MemoryStore;
pub use rocks::{RocksConfig, RocksStore, checkpoint_files};
