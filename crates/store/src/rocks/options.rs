//! How RocksDB is set up, and what that bounds.
//!
//! | what | bound |
//! |---|---|
//! | memtables of all column families together | `write_buffer_bytes` (128 MiB): beyond it the largest are flushed |
//! | data, index and filter blocks | `block_cache_bytes` (128 MiB) |
//! | open table files | 1,000 |
//! | RocksDB's own LOG | 4 files of 8 MiB |
//!
//! `atomic_flush` is on: with RocksDB's WAL off, a flush of one column family alone would persist data
//! without the applied position that goes with it.

use std::sync::Arc;

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompressionType, LogLevel, Options, ReadOptions, SliceTransform,
};

use super::RocksConfig;
use super::collect::{Collection, RequestFilters, VersionFilters};
use crate::key::VERSION_BYTES;

/// Versions of keys, by [`crate::key::encode`].
pub(super) const DATA: &str = "data";
/// Request ids, by [`crate::key::encode_request`].
pub(super) const REQUESTS: &str = "requests";
/// The format, the cluster and the applied position.
pub(super) const META: &str = "meta";

const OPEN_FILES_MAX: i32 = 1_000;
const LOG_FILE_BYTES_MAX: usize = 8 << 20;
const LOG_FILES_MAX: usize = 4;
const MANIFEST_BYTES_MAX: usize = 16 << 20;
const BACKGROUND_JOBS_MAX: i32 = 2;
/// Lets the kernel write table files out evenly instead of in one burst that an fsync of the WAL waits for.
const BYTES_PER_SYNC: u64 = 1 << 20;
/// A table file that no compaction has rewritten for so long is rewritten by itself: 6 hours. Bounds how long space that is
/// never written to again keeps versions below the horizon, at the price of rewriting a store in this time (100 GiB: 5
/// MiB/s, in the background).
const COLLECTED_AFTER_SECONDS: u64 = 6 * 3_600;
const BLOCK_BYTES: usize = 16 << 10;
const BLOOM_BITS_PER_KEY: f64 = 10.0;
/// Memtables of one column family: one that is written, the others being flushed.
const WRITE_BUFFERS_MAX: usize = 4;

pub(super) fn database(config: &RocksConfig) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_atomic_flush(true);
    options.set_db_write_buffer_size(config.write_buffer_bytes);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_max_background_jobs(BACKGROUND_JOBS_MAX);
    options.set_bytes_per_sync(BYTES_PER_SYNC);
    options.set_log_level(LogLevel::Info);
    options.set_max_log_file_size(LOG_FILE_BYTES_MAX);
    options.set_keep_log_file_num(LOG_FILES_MAX);
    options.set_max_manifest_file_size(MANIFEST_BYTES_MAX);
    options.set_stats_dump_period_sec(0);
    options
}

pub(super) fn column_families(config: &RocksConfig, collection: &Arc<Collection>) -> Vec<ColumnFamilyDescriptor> {
    let cache = Cache::new_lru_cache(config.block_cache_bytes);
    let family = |versioned| family_options(config, &cache, versioned);
    let (mut data, mut requests) = (family(true), family(true));
    data.set_compaction_filter_factory(VersionFilters(Arc::clone(collection)));
    requests.set_compaction_filter_factory(RequestFilters(Arc::clone(collection)));
    for collected in [&mut data, &mut requests] {
        collected.set_periodic_compaction_seconds(COLLECTED_AFTER_SECONDS);
    }
    vec![
        ColumnFamilyDescriptor::new(DATA, data),
        ColumnFamilyDescriptor::new(REQUESTS, requests),
        ColumnFamilyDescriptor::new(META, family(false)),
    ]
}

fn family_options(config: &RocksConfig, cache: &Cache, versioned: bool) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(BLOCK_BYTES);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_format_version(6);
    let mut options = Options::default();
    options.set_write_buffer_size(config.write_buffer_bytes / WRITE_BUFFERS_MAX);
    options.set_max_write_buffer_number(i32::try_from(WRITE_BUFFERS_MAX).expect("a small constant"));
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_bottommost_compression_type(DBCompressionType::Zstd);
    options.set_level_compaction_dynamic_level_bytes(true);
    if versioned {
        // The filter holds the key without its version: one question covers all versions, which no lookup
        // of a whole encoded key could.
        options.set_prefix_extractor(SliceTransform::create(
            "understudy.drop-version.1",
            drop_version,
            Some(has_version),
        ));
        options.set_memtable_prefix_bloom_ratio(0.05);
        table.set_bloom_filter(BLOOM_BITS_PER_KEY, false);
        table.set_whole_key_filtering(false);
    }
    options.set_block_based_table_factory(&table);
    options
}

fn drop_version(encoded: &[u8]) -> &[u8] {
    &encoded[..encoded.len() - VERSION_BYTES]
}

fn has_version(encoded: &[u8]) -> bool {
    encoded.len() >= VERSION_BYTES
}

/// Reads the versions of one key: the filters may answer.
pub(super) fn one_prefix() -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_prefix_same_as_start(true);
    options
}

/// Reads across keys, up to `end`: the filters must be left aside.
pub(super) fn across(end: Option<Vec<u8>>) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_total_order_seek(true);
    if let Some(end) = end {
        options.set_iterate_upper_bound(end);
    }
    options
}
