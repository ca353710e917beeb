//! The connection that the log travels on.
//!
//! It is one of its own, so that bulk and beats do not stand in each other's way, with settings for bulk: 1 MiB frames
//! and large windows double the throughput of 64 KiB messages over tonic's defaults. The server's side of the settings
//! belongs to the node's one port.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use understudy_rpc::v1::replication_client::ReplicationClient;

/// The largest message in either direction: a commit at its limit is one record and goes alone.
pub const MESSAGE_BYTES_MAX: usize = 24 << 20;
/// HTTP/2 frames, on both ends.
pub const FRAME_BYTES_MAX: u32 = 1 << 20;
/// What a stream may send before it is read, on both ends: also what a standby that does not read costs at most.
pub const STREAM_WINDOW_BYTES: u32 = 16 << 20;
/// What a connection may send before it is read, on both ends.
pub const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;

/// How often HTTP/2 asks whether the peer still lives, when no timeout says otherwise.
const KEEPALIVE_INTERVAL_DEFAULT: Duration = Duration::from_secs(5);

/// Where the log comes from.
///
/// `timeout_ms` is `wal_receiver_timeout`: HTTP/2's own pings find a dead connection within it, zero for the default.
///
/// # Errors
/// When `address` is not `host:port`.
pub(crate) fn endpoint(
    address: &str,
    connect_timeout_ms: u64,
    timeout_ms: u64,
) -> Result<Endpoint, tonic::transport::Error> {
    let half = match timeout_ms {
        0 => KEEPALIVE_INTERVAL_DEFAULT,
        _ => Duration::from_millis((timeout_ms / 2).max(1)),
    };
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(Duration::from_millis(connect_timeout_ms))
        .tcp_nodelay(true)
        .tcp_keepalive(Some(KEEPALIVE_INTERVAL_DEFAULT))
        .http2_keep_alive_interval(half)
        .keep_alive_timeout(half)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX);
    Ok(endpoint)
}

pub(crate) fn client(channel: Channel) -> ReplicationClient<Channel> {
    ReplicationClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}
