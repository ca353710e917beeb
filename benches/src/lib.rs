//! What a cluster costs, measured: `cargo xtask bench`.
//!
//! | module | what it is |
//! |---|---|
//! | [`run`] | the order of things: servers, probes, workloads, recovery, probes again |
//! | [`probes`], [`null_server`] | the raw speed of disk and loopback, which every other figure is held against |
//! | [`workloads`] | puts at every level, batches, reads |
//! | [`load`] | clients that each have one call under way, for a while |
//! | [`profile`] | where the time and the CPU of a commit go |
//! | [`recovery`] | a standby that catches up, and one that is seeded |
//! | [`scrape`], [`cpu`] | what `/metrics` and `/proc` say |
//! | [`figures`] | percentiles |
//! | [`report`] | the tables |
//!
//! Servers are started as an operator would start them and asked as a client asks. All of them, and the load, share one
//! machine: the figures are for comparing versions with each other and with the raw probes of the same run.
//!
//! The micro benchmark of the WAL alone is `benches/wal.rs`.

pub mod cpu;
pub mod figures;
pub mod load;
pub mod null_server;
pub mod probes;
pub mod profile;
pub mod recovery;
pub mod report;
pub mod run;
pub mod scrape;
pub mod workloads;
