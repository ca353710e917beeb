//! Real servers under faults, and the demo.
//!
//! | module | what it is |
//! |---|---|
//! | [`cluster`], [`options`], [`process`], [`ports`] | the harness: starts, kills, freezes and restarts server processes |
//! | [`network`] | a network of its own for a test, and what can be wrong with it |
//! | [`compose`] | the containers of `docker/compose.yaml` |
//! | [`requires`] | what a test needs of the machine, and when it may be skipped |
//! | [`view`] | what their status says, and what follows from it |
//! | [`node_client`] | asks one node, and no other |
//! | [`workload`], [`recorder`] | constant writers and readers, and what they write down |
//! | [`history`], [`checker`] | what clients saw, and whether it keeps the promises |
//! | [`transfers`], [`ledger`] | transfers between accounts, and whether money was made or lost |
//! | [`availability`] | how much of the time commits were acknowledged |
//! | [`scenario`] | a cluster under a workload, from the start to the verdict |
//! | [`audit`] | reads the WAL files themselves: commits made twice, segments that differ |
//! | [`demo`] | `cargo xtask demo` |
//!
//! Nothing here reaches into a server: processes are started as an operator would, and asked over gRPC.

pub mod audit;
pub mod availability;
pub mod checker;
pub mod cluster;
pub mod compose;
pub mod demo;
pub mod history;
pub mod ledger;
pub mod lines;
pub mod network;
pub mod node_client;
pub mod options;
pub mod ports;
pub mod process;
pub mod recorder;
pub mod requires;
pub mod scenario;
pub mod transfers;
pub mod view;
pub mod workload;
