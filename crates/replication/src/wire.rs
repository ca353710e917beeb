//! The machines' messages as protobuf, and back.
//!
//! Used by the shells alone. What protobuf leaves open (a message without content) is refused here; whether a value
//! makes sense is for the machines to say.

use understudy_engine::{Mark, TraceContext};
use understudy_rpc::v1;
use understudy_rpc::v1::{from_standby, from_upstream};
use understudy_types::{Incarnation, Lsn, NodeId, SystemId, TimelineId};

use crate::message::{
    Ack, AckPosition, Data, FetchRange, FromStandby, FromUpstream, Keepalive, MARKS_PER_DATA_MAX, Start, Started,
};

/// A message says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the {from} sent a message without content, or of a kind that this release does not know")]
pub struct EmptyMessage {
    /// "standby" or "upstream".
    pub from: &'static str,
}

impl From<Start> for v1::Start {
    fn from(start: Start) -> Self {
        Self {
            system_id: start.system_id.get(),
            wal_format_version: start.wal_format_version,
            segment_size: start.segment_size_bytes,
            node_id: start.node.get(),
            incarnation: start.incarnation.get(),
            timeline: start.timeline.get(),
            start_lsn: start.start_lsn.get(),
            damage_epoch: start.damage_epoch,
            fetch: start
                .fetch
                .map(|range| v1::Fetch { election_timeline: range.election.get(), until_lsn: range.until.get() }),
        }
    }
}

impl From<v1::Start> for Start {
    fn from(start: v1::Start) -> Self {
        Self {
            system_id: SystemId::new(start.system_id),
            wal_format_version: start.wal_format_version,
            segment_size_bytes: start.segment_size,
            node: NodeId::new(start.node_id),
            incarnation: Incarnation::new(start.incarnation),
            timeline: TimelineId::new(start.timeline),
            start_lsn: Lsn::new(start.start_lsn),
            damage_epoch: start.damage_epoch,
            fetch: start.fetch.map(|range| FetchRange {
                election: TimelineId::new(range.election_timeline),
                until: Lsn::new(range.until_lsn),
            }),
        }
    }
}

fn mark_to_wire(mark: Mark) -> v1::TraceMark {
    let TraceContext { trace_id, span_id, flags } = mark.trace;
    let [high, low] = [trace_id >> 64, trace_id & u128::from(u64::MAX)];
    v1::TraceMark {
        end_lsn: mark.end.get(),
        trace_id_high: u64::try_from(high).expect("half of it"),
        trace_id_low: u64::try_from(low).expect("half of it"),
        span_id,
        flags: flags.into(),
    }
}

fn mark_from_wire(mark: v1::TraceMark) -> Mark {
    let trace_id = u128::from(mark.trace_id_high) << 64 | u128::from(mark.trace_id_low);
    // The upper bits are for versions to come.
    let [flags, ..] = mark.flags.to_le_bytes();
    Mark { end: Lsn::new(mark.end_lsn), trace: TraceContext { trace_id, span_id: mark.span_id, flags } }
}

impl From<FromStandby> for v1::FromStandby {
    fn from(message: FromStandby) -> Self {
        let message = match message {
            FromStandby::Start(start) => from_standby::Message::Start(start.into()),
            FromStandby::Ack(ack) => from_standby::Message::Ack(v1::Ack {
                timeline: ack.timeline.get(),
                write_lsn: ack.position.write.get(),
                flush_lsn: ack.position.flush.get(),
                apply_lsn: ack.position.apply.get(),
                reply_time_us: ack.position.reply_time_us,
                reply_requested: ack.reply_requested,
            }),
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<v1::FromStandby> for FromStandby {
    type Error = EmptyMessage;

    fn try_from(message: v1::FromStandby) -> Result<Self, EmptyMessage> {
        Ok(match message.message.ok_or(EmptyMessage { from: "standby" })? {
            from_standby::Message::Start(start) => Self::Start(start.into()),
            from_standby::Message::Ack(ack) => Self::Ack(Ack {
                timeline: TimelineId::new(ack.timeline),
                position: AckPosition {
                    write: Lsn::new(ack.write_lsn),
                    flush: Lsn::new(ack.flush_lsn),
                    apply: Lsn::new(ack.apply_lsn),
                    reply_time_us: ack.reply_time_us,
                },
                reply_requested: ack.reply_requested,
            }),
        })
    }
}

impl From<FromUpstream> for v1::FromUpstream {
    fn from(message: FromUpstream) -> Self {
        let message = match message {
            FromUpstream::Started(started) => from_upstream::Message::Started(v1::Started {
                system_id: started.system_id.get(),
                node_id: started.node.get(),
                timeline: started.timeline.get(),
                end_lsn: started.end.get(),
                safe_lsn: started.safe.get(),
            }),
            FromUpstream::Data(data) => from_upstream::Message::Data(v1::Data {
                start_lsn: data.start.get(),
                bytes: data.bytes,
                end_lsn: data.end.get(),
                safe_lsn: data.safe.get(),
                send_time_us: data.send_time_us,
                marks: data.marks.into_iter().map(mark_to_wire).collect(),
            }),
            FromUpstream::Keepalive(keepalive) => from_upstream::Message::Keepalive(v1::Keepalive {
                end_lsn: keepalive.end.get(),
                safe_lsn: keepalive.safe.get(),
                send_time_us: keepalive.send_time_us,
                reply_requested: keepalive.reply_requested,
            }),
            FromUpstream::EndOfTimeline { next, switch_lsn } => {
                from_upstream::Message::EndOfTimeline(v1::EndOfTimeline {
                    next_timeline: next.get(),
                    switch_lsn: switch_lsn.get(),
                })
            }
            FromUpstream::FetchDone => from_upstream::Message::FetchDone(v1::FetchDone {}),
            FromUpstream::Stopping { reason } => from_upstream::Message::Stopping(v1::Stopping { reason }),
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<v1::FromUpstream> for FromUpstream {
    type Error = EmptyMessage;

    fn try_from(message: v1::FromUpstream) -> Result<Self, EmptyMessage> {
        Ok(match message.message.ok_or(EmptyMessage { from: "upstream" })? {
            from_upstream::Message::Started(started) => Self::Started(Started {
                system_id: SystemId::new(started.system_id),
                node: NodeId::new(started.node_id),
                timeline: TimelineId::new(started.timeline),
                end: Lsn::new(started.end_lsn),
                safe: Lsn::new(started.safe_lsn),
            }),
            from_upstream::Message::Data(data) => Self::Data(Data {
                start: Lsn::new(data.start_lsn),
                bytes: data.bytes,
                end: Lsn::new(data.end_lsn),
                safe: Lsn::new(data.safe_lsn),
                send_time_us: data.send_time_us,
                marks: data.marks.into_iter().take(MARKS_PER_DATA_MAX).map(mark_from_wire).collect(),
            }),
            from_upstream::Message::Keepalive(keepalive) => Self::Keepalive(Keepalive {
                end: Lsn::new(keepalive.end_lsn),
                safe: Lsn::new(keepalive.safe_lsn),
                send_time_us: keepalive.send_time_us,
                reply_requested: keepalive.reply_requested,
            }),
            from_upstream::Message::EndOfTimeline(end) => {
                Self::EndOfTimeline { next: TimelineId::new(end.next_timeline), switch_lsn: Lsn::new(end.switch_lsn) }
            }
            from_upstream::Message::FetchDone(v1::FetchDone {}) => Self::FetchDone,
            from_upstream::Message::Stopping(stopping) => Self::Stopping { reason: stopping.reason },
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn messages_survive_the_wire() {
        let fetch = Some(FetchRange { election: TimelineId::new(9), until: Lsn::new(10) });
        let start = Start {
            system_id: SystemId::new(1),
            wal_format_version: 2,
            segment_size_bytes: 3,
            node: NodeId::new(4),
            incarnation: Incarnation::new(5),
            timeline: TimelineId::new(6),
            start_lsn: Lsn::new(7),
            damage_epoch: 8,
            fetch,
        };
        let (write, flush, apply) = (Lsn::new(3), Lsn::new(2), Lsn::new(1));
        let position = AckPosition { write, flush, apply, reply_time_us: -4 };
        let ack = Ack { timeline: TimelineId::new(5), position, reply_requested: true };
        for message in [FromStandby::Start(start), FromStandby::Ack(ack)] {
            assert_eq!(FromStandby::try_from(v1::FromStandby::from(message.clone())), Ok(message));
        }
        let (end, safe, send_time_us) = (Lsn::new(20), Lsn::new(19), 77);
        let (system_id, node, timeline) = (SystemId::new(1), NodeId::new(2), TimelineId::new(3));
        for message in [
            FromUpstream::Started(Started { system_id, node, timeline, end, safe }),
            FromUpstream::Data(Data {
                start: Lsn::new(18),
                bytes: Bytes::from_static(b"ab"),
                end,
                safe,
                send_time_us,
                marks: vec![mark(20)],
            }),
            FromUpstream::Keepalive(Keepalive { end, safe, send_time_us, reply_requested: true }),
            FromUpstream::EndOfTimeline { next: timeline, switch_lsn: end },
            FromUpstream::FetchDone,
            FromUpstream::Stopping { reason: "so".to_owned() },
        ] {
            assert_eq!(FromUpstream::try_from(v1::FromUpstream::from(message.clone())), Ok(message));
        }
    }

    fn mark(end: u64) -> Mark {
        let trace_id = 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210;
        Mark { end: Lsn::new(end), trace: TraceContext { trace_id, span_id: 7, flags: 1 } }
    }

    #[test]
    fn marks_are_bounded_on_the_way_in() {
        let marks = (0..1_000).map(|lsn| mark_to_wire(mark(lsn))).collect();
        let data = v1::Data { marks, ..v1::Data::default() };
        let message = v1::FromUpstream { message: Some(from_upstream::Message::Data(data)) };
        let Ok(FromUpstream::Data(data)) = FromUpstream::try_from(message) else { panic!("a piece of the log") };
        assert_eq!(data.marks.len(), MARKS_PER_DATA_MAX);
    }

    #[test]
    fn an_empty_message_is_refused() {
        assert!(FromStandby::try_from(v1::FromStandby { message: None }).is_err());
        assert!(FromUpstream::try_from(v1::FromUpstream { message: None }).is_err());
    }
}
