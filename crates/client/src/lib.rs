//! The Rust client of Understudy: finds the primary, follows it over a failover, and retries by request id.
//!
//! ```no_run
//! use understudy_client::{Client, Commit, Options};
//!
//! # async fn example() -> Result<(), understudy_client::ClientError> {
//! let client = Client::connect(["10.0.0.1:7400", "10.0.0.2:7400"], Options::default()).await?;
//! client.put("greeting", "hello").await?;
//! let read = client.get("greeting").await?;
//! assert_eq!(read.found.expect("just written").value, "hello");
//!
//! // All or nothing, and only if nobody was faster.
//! let commit = Commit::new().put("owner", "me").delete("greeting").if_absent("owner");
//! let done = client.commit(commit).await?;
//! println!("committed at {} by node {}", done.position, done.node_id);
//! # Ok(())
//! # }
//! ```
//!
//! What a commit comes to: `Ok` says that it stands, once, whatever failed meanwhile. [`ClientError::Aborted`] and
//! [`ClientError::Invalid`] say that it was refused, [`ClientError::Unavailable`] that it was never accepted, and
//! [`ClientError::Unknown`] that it may or may not take effect. The last is never folded into one of the others: send
//! the same commit again with [`Commit::request_id`] to learn the outcome.
//!
//! | module | what it does |
//! |---|---|
//! | `client` | the calls |
//! | `commit`, `scan`, `read` | what is asked, and what comes back |
//! | `batch` | many commits in one call |
//! | `session` | reads that never go back |
//! | `admin` | what the primary tells operators |
//! | `nodes` | one multiplexed connection per node |
//! | `locate` | one task that finds the primary |
//! | `route` | one call: attempts, races, backoff, until the deadline |
//! | `spread` | reads that others than the primary may answer |
//! | `trace` | the caller's trace goes with the call |
//! | `classify` | what a gRPC status means for the next attempt |

mod admin;
mod batch;
mod classify;
mod client;
mod commit;
mod error;
mod locate;
mod nodes;
mod options;
mod reached;
mod read;
mod route;
mod scan;
mod session;
mod spread;
mod trace;

pub use client::{Client, NodeAnswer, Read, Versioned};
pub use commit::{Commit, CommitOutcome};
pub use error::ClientError;
pub use options::{EndpointError, Options, parse_endpoint};
pub use read::{Consistency, ReadOptions, ReadPreference};
pub use scan::{Entry, Scan, ScanStream};
pub use session::Session;
