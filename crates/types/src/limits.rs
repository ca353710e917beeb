//! Bounds that hold on every node and are not settings.

/// A key, in bytes. At least one byte.
pub const KEY_BYTES_MAX: usize = 16 << 10;
/// A value, in bytes. May be empty.
pub const VALUE_BYTES_MAX: usize = 4 << 20;
/// The keys and values of one commit together, in bytes.
pub const COMMIT_BYTES_MAX: usize = 12 << 20;
/// Puts, deletes and preconditions in one commit.
pub const COMMIT_OPERATIONS_MAX: usize = 100_000;
/// Commits in one batch; their keys and values together are bounded as those of one commit.
pub const BATCH_COMMITS_MAX: usize = 1_000;
/// Nodes in one cluster.
pub const MEMBERS_MAX: usize = 64;
