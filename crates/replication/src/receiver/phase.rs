//! How far a walreceiver's attempt has come.

use understudy_types::{Lsn, TimelineId};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not connected until then.
    Pause { until_ms: u64 },
    /// `Connect` was given out.
    Connecting,
    /// The stream is open; `Started` has not come.
    Handshake,
    /// Data may come.
    Open { upstream: TimelineId },
    /// The streamed timeline ended; the cluster state does not know the next one yet.
    AwaitHistory { next: TimelineId, switch_lsn: Lsn },
    /// `SwitchTimeline` was given out.
    Switching { next: TimelineId },
    /// A fetch has everything.
    Done,
}
