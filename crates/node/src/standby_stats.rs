//! What the primary remembers of its standbys' streams for people (MON-1): since when, what was sent, how long
//! acknowledgements take. Nothing is decided by it.

use std::collections::BTreeMap;

use understudy_core::sync::{Ack, ConnectionId, Lag, LagTracker};
use understudy_types::{Lsn, NodeId};

/// Of one timeline.
#[derive(Default)]
pub struct StandbyStats {
    /// The newest connection of each node. It stays when it is gone, until there is another: at most one a member.
    by_node: BTreeMap<NodeId, Stream>,
}

struct Stream {
    connection: ConnectionId,
    since_ms: i64,
    sent: Lsn,
    reply_time_ms: i64,
    lag: LagTracker,
}

/// What is shown of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamStats {
    /// When the connection began, Unix time in milliseconds.
    pub since_ms: i64,
    /// The end of what was sent.
    pub sent: Lsn,
    /// When the last acknowledgement came, Unix time in milliseconds; 0 when none did.
    pub reply_time_ms: i64,
    /// How long the acknowledgements take.
    pub lag: Lag,
}

impl StandbyStats {
    /// A standby's stream began.
    pub fn connected(&mut self, connection: ConnectionId, node: NodeId, since_ms: i64) {
        let (sent, reply_time_ms, lag) = (Lsn::INVALID, 0, LagTracker::default());
        self.by_node.insert(node, Stream { connection, since_ms, sent, reply_time_ms, lag });
    }

    fn stream(&mut self, connection: ConnectionId) -> Option<&mut Stream> {
        self.by_node.values_mut().find(|stream| stream.connection == connection)
    }

    /// Everything up to `sent` was sent, at `now_us` of the caller's monotonic clock.
    pub fn sent(&mut self, connection: ConnectionId, sent: Lsn, now_us: u64) {
        if let Some(stream) = self.stream(connection) {
            stream.sent = stream.sent.max(sent);
            stream.lag.sent(sent, now_us);
        }
    }

    /// The standby acknowledged, at `now_us` of the same clock and `unix_ms`.
    pub fn acked(&mut self, connection: ConnectionId, ack: Ack, now_us: u64, unix_ms: i64) {
        if let Some(stream) = self.stream(connection) {
            // What it had when it connected was not sent over this connection.
            stream.sent = stream.sent.max(ack.write);
            stream.reply_time_ms = unix_ms;
            stream.lag.acked(ack, now_us);
        }
    }

    /// Of the newest connection of `node`; none when it was never connected.
    pub fn of(&self, node: NodeId, now_us: u64) -> Option<StreamStats> {
        self.by_node.get(&node).map(|stream| StreamStats {
            since_ms: stream.since_ms,
            sent: stream.sent,
            reply_time_ms: stream.reply_time_ms,
            lag: stream.lag.lag(now_us),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_connection_counts() {
        let (node, ack) = (NodeId::new(2), Ack { write: Lsn::new(90), flush: Lsn::new(80), apply: Lsn::new(70) });
        let mut stats = StandbyStats::default();
        assert_eq!(stats.of(node, 0), None);
        stats.connected(ConnectionId::new(1), node, 1_000);
        stats.connected(ConnectionId::new(2), node, 2_000);
        stats.sent(ConnectionId::new(1), Lsn::new(500), 10);
        stats.sent(ConnectionId::new(2), Lsn::new(90), 10);
        stats.acked(ConnectionId::new(2), ack, 25, 2_015);
        let lag = Lag { write_us: Some(15), flush_us: Some(20), apply_us: Some(20) };
        let expected = StreamStats { since_ms: 2_000, sent: Lsn::new(90), reply_time_ms: 2_015, lag };
        assert_eq!(stats.of(node, 30), Some(expected));
    }
}
