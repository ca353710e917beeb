//! Bounds that hold on every node and are not settings.

use crate::NodeName;

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
/// Commits on a primary that are queued, or appended but not visible, in bytes.
pub const QUEUE_BYTES_MAX: u64 = 64 << 20;
/// Commits in that queue, whatever their size.
pub const QUEUE_COMMITS_MAX: usize = 65_536;
/// Scans under way on one node.
pub const SCANS_MAX: usize = 256;
/// Reads on one node that wait for a position.
pub const WAITING_READS_MAX: usize = 4_096;
/// Clients' commits in progress on one node, requests with one and requests with a batch. They may wait for a standby.
pub const COMMIT_REQUESTS_MAX: usize = 4_096;
/// Clients' other requests in progress on one node. More than the reads that may wait for a position.
pub const OTHER_REQUESTS_MAX: usize = 6_144;
/// A request of at most so many bytes is a small one: the largest key with all that a read needs.
pub const SMALL_REQUEST_BYTES_MAX: usize = 64 << 10;
/// Small requests to commit that one node holds, in bytes.
pub const SMALL_COMMIT_REQUESTS_BYTES_MAX: usize = 64 << 20;
/// Other small requests that one node holds, in bytes.
pub const SMALL_OTHER_REQUESTS_BYTES_MAX: usize = 32 << 20;
/// Larger requests that one node holds, in bytes.
pub const LARGE_REQUESTS_BYTES_MAX: usize = 256 << 20;
/// Requests in progress on one connection.
pub const CONNECTION_REQUESTS_MAX: u32 = 256;

// Reads that wait leave room for those that need not.
const _: () = assert!(OTHER_REQUESTS_MAX > WAITING_READS_MAX + SCANS_MAX);

/// How a bound is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// In bytes.
    Bytes(u64),
    /// In pieces.
    Count(u64),
}

/// A row of the documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// What is bounded.
    pub what: &'static str,
    /// The most that is allowed.
    pub most: Bound,
    /// What else is to be known, and what happens beyond it.
    pub doc: &'static str,
}

/// What of this users meet, for the documentation.
pub const LIMITS: [Limit; 17] = [
    Limit {
        what: "a key",
        most: Bound::Bytes(KEY_BYTES_MAX as u64),
        doc: "At least one byte; beyond it `INVALID_ARGUMENT`",
    },
    Limit { what: "a value", most: Bound::Bytes(VALUE_BYTES_MAX as u64), doc: "May be empty" },
    Limit {
        what: "a commit's keys and values",
        most: Bound::Bytes(COMMIT_BYTES_MAX as u64),
        doc: "And with its framing no more than one WAL segment (`wal_segment_size`)",
    },
    Limit {
        what: "a commit's puts, deletes and preconditions",
        most: Bound::Count(COMMIT_OPERATIONS_MAX as u64),
        doc: "Together",
    },
    Limit {
        what: "a batch's commits",
        most: Bound::Count(BATCH_COMMITS_MAX as u64),
        doc: "Their keys and values together as those of one commit",
    },
    Limit {
        what: "a primary's unconfirmed commits, their bytes",
        most: Bound::Bytes(QUEUE_BYTES_MAX),
        doc: "Queued, or appended and not visible; beyond it `RESOURCE_EXHAUSTED`, to be tried again",
    },
    Limit {
        what: "a primary's queue, its commits",
        most: Bound::Count(QUEUE_COMMITS_MAX as u64),
        doc: "Whatever their size; as above",
    },
    Limit {
        what: "commits in progress on a node",
        most: Bound::Count(COMMIT_REQUESTS_MAX as u64),
        doc: "A batch is one; those that wait for a standby too. Beyond it `NODE_BUSY`, to be tried again",
    },
    Limit {
        what: "other requests of clients in progress on a node",
        most: Bound::Count(OTHER_REQUESTS_MAX as u64),
        doc: "Reads and scans, which commits that wait do not hold up; operators have a share of their own. As above",
    },
    Limit {
        what: "bytes of commits of up to 64KiB that a node holds",
        most: Bound::Bytes(SMALL_COMMIT_REQUESTS_BYTES_MAX as u64),
        doc: "Until they are answered; as above",
    },
    Limit {
        what: "bytes of other requests of up to 64KiB that a node holds",
        most: Bound::Bytes(SMALL_OTHER_REQUESTS_BYTES_MAX as u64),
        doc: "As above",
    },
    Limit {
        what: "bytes of larger requests that a node holds",
        most: Bound::Bytes(LARGE_REQUESTS_BYTES_MAX as u64),
        doc: "As above",
    },
    Limit {
        what: "requests in progress on a connection",
        most: Bound::Count(CONNECTION_REQUESTS_MAX as u64),
        doc: "More wait in the client",
    },
    Limit {
        what: "scans under way on a node",
        most: Bound::Count(SCANS_MAX as u64),
        doc: "Beyond it `RESOURCE_EXHAUSTED`, to be tried again",
    },
    Limit {
        what: "reads that wait on a node for a position",
        most: Bound::Count(WAITING_READS_MAX as u64),
        doc: "As above",
    },
    Limit { what: "members of a cluster", most: Bound::Count(MEMBERS_MAX as u64), doc: "Refused when it is made" },
    Limit {
        what: "a member's name",
        most: Bound::Bytes(NodeName::BYTES_MAX as u64),
        doc: "Letters, digits, `_`, `-` and `.`; unique without regard to case",
    },
];
