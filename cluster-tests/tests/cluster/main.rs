//! Real server processes under faults, with a checker over what clients saw.
//!
//! Needs the `understudy` binary: `cargo xtask test` builds it first and says where it is.

mod bad_input;
mod compose;
mod damage;
mod emptied;
mod freeze;
mod kill;
mod leases;
mod levels;
mod partitions;
mod readme;
mod reads;
mod restart;
mod seeding;
mod settings;
mod tracing;
