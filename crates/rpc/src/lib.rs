//! The wire: code generated from `proto/understudy/v1`, and the one place that maps errors to gRPC status.
//!
//! Protobuf types stop here, in the client and in the service shells of the node.

pub mod convert;
pub mod error;

/// `understudy.v1`, as generated.
#[allow(
    clippy::all,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("understudy.v1");

    /// The compiled descriptors of every service, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/understudy.v1.bin"));
}
