//! One node: what puts the planes together.
//!
//! | module | what |
//! |---|---|
//! | [`server`] | starts and stops the process's parts in order |
//! | [`config`] | what a server is started with |
//! | [`identity`], [`promises`] | whose data directory it is, and what the node has promised for good |
//! | [`bootstrap`] | how a new cluster comes to be |
//! | [`mesh`] | beats between the nodes |
//! | [`confirmer`] | quorum confirmation of the primary |
//! | [`agent`] | gives the node its role: the pure core's decisions, carried out |
//! | [`sync_list`], [`upstream`] | the WAL plane's ends, joined with the control plane |
//! | [`standby_stats`] | what the primary remembers of its standbys' streams, for people |
//! | [`services`], [`view`] | the gRPC port, and what it sees of the node |
//! | [`telemetry`], [`http`] | log, metrics and traces; the HTTP port |
//!
//! `control` and `replication` never see each other: they meet here.

pub mod agent;
pub mod bootstrap;
pub mod config;
pub mod confirmer;
pub mod convert;
mod damage;
pub mod freshness;
pub mod http;
pub mod identity;
pub mod mesh;
pub mod promises;
pub mod server;
pub mod services;
pub mod standby_stats;
pub mod sync_list;
pub mod tags;
pub mod telemetry;
pub mod upstream;
pub mod view;

/// The settings of the cluster, for those who build on the node and not on the core.
pub use understudy_core::settings;
