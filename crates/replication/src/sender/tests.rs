use super::*;
use crate::message::FetchRange;
use understudy_types::{Incarnation, SegmentSize, TimelineSwitch};

const MIB: u64 = 1 << 20;
const UPSTREAM: NodeId = NodeId::new(0xA);
const STANDBY: NodeId = NodeId::new(0xB);

fn tl(number: u32) -> TimelineId {
    TimelineId::new(number)
}

/// `bytes` beyond the begin of the log.
fn at(bytes: u64) -> Lsn {
    Lsn::new(MIB + bytes)
}

fn chain(switches: &[(u32, u64)]) -> TimelineHistory {
    let mut history = TimelineHistory::new();
    for &(timeline, bytes) in switches {
        let switch = TimelineSwitch { timeline: tl(timeline), parent: history.latest(), switch_lsn: at(bytes) };
        history.push(switch).expect("a continuation");
    }
    history
}

fn upstream(switches: &[(u32, u64)], end: u64) -> Upstream {
    Upstream {
        system_id: SystemId::new(7),
        format: WalFormat { version: 1, segment_size: SegmentSize::MIN },
        node: UPSTREAM,
        history: chain(switches),
        first: at(0),
        end: at(end),
        safe: at(0),
        sealed: TimelineId::NONE,
    }
}

fn start(timeline: u32, end: u64) -> Start {
    Start {
        system_id: SystemId::new(7),
        wal_format_version: 1,
        segment_size_bytes: MIB,
        node: STANDBY,
        incarnation: Incarnation::new(1),
        timeline: tl(timeline),
        start_lsn: at(end),
        damage_epoch: 0,
        fetch: None,
    }
}

fn ack(timeline: u32, bytes: u64) -> Ack {
    let position = AckPosition { write: at(bytes), flush: at(bytes), apply: at(0), reply_time_us: 0 };
    Ack { timeline: tl(timeline), position, reply_requested: false }
}

/// Takes everything that the sender wants to say, reading at most `room` bytes for each `Data`.
fn drain(sender: &mut WalSender, now_ms: u64, room: u64) -> Vec<String> {
    let rel = |lsn: Lsn| lsn.get() - MIB;
    let mut said = Vec::new();
    while sender.wants_to_transmit(now_ms) {
        let transmit = sender.poll_transmit(now_ms).expect("what it wants to say");
        said.push(match transmit {
            Transmit::Started(started) => format!("started on {} to {}", started.timeline, rel(started.end)),
            Transmit::Read { from, upto, .. } => {
                let count = usize::try_from((rel(upto) - rel(from)).min(room)).expect("small");
                let data = sender.data(from, Bytes::from(vec![0; count]), 0);
                let end = rel(data.start) + data.bytes.len() as u64;
                format!("data {}..{} of {}, safe {}", rel(data.start), end, rel(data.end), rel(data.safe))
            }
            Transmit::Keepalive(k) => {
                format!(
                    "keepalive {}, safe {}{}",
                    rel(k.end),
                    rel(k.safe),
                    if k.reply_requested { ", reply" } else { "" }
                )
            }
            Transmit::EndOfTimeline { next, switch_lsn } => format!("timeline {next} begins at {}", rel(switch_lsn)),
            Transmit::FetchDone => "fetch done".to_owned(),
            Transmit::Stopping { reason } => format!("stopping: {reason}"),
        });
    }
    assert_eq!(sender.poll_transmit(now_ms), None, "nothing more than it wants");
    said
}

fn accept(upstream: &Upstream, start: &Start) -> WalSender {
    WalSender::start(upstream, start, 10_000, 0).expect("a standby that is taken on")
}

fn refuse(upstream: &Upstream, start: &Start) -> String {
    WalSender::start(upstream, start, 10_000, 0).expect_err("a refusal").to_string()
}

#[test]
fn a_standby_catches_up_and_streams() {
    let mut sender = accept(&upstream(&[(1, 0)], 1_000), &start(1, 100));
    assert_eq!(sender.state(), StreamState::Startup);
    assert_eq!(
        drain(&mut sender, 0, 600),
        ["started on 1 to 1000", "data 100..700 of 1000, safe 0", "data 700..1000 of 1000, safe 0"]
    );
    assert_eq!(sender.state(), StreamState::Catchup);
    sender.handle_ack(&ack(1, 700), 1).expect("an acknowledgement of what was sent");
    assert_eq!(sender.state(), StreamState::Catchup);
    sender.handle_ack(&ack(1, 1_000), 2).expect("an acknowledgement of what was sent");
    assert_eq!(sender.state(), StreamState::Streaming);
    // The live tail goes out as it is appended, flushed or not.
    sender.set_end(at(1_010));
    assert_eq!(drain(&mut sender, 3, 600), ["data 1000..1010 of 1010, safe 0"]);
    assert_eq!(sender.state(), StreamState::Streaming);
}

#[test]
fn a_standby_that_has_everything_streams_with_its_first_acknowledgement() {
    let mut sender = accept(&upstream(&[(1, 0)], 50), &start(1, 50));
    assert_eq!(drain(&mut sender, 0, 600), ["started on 1 to 50"]);
    assert_eq!(sender.state(), StreamState::Catchup);
    sender.handle_ack(&ack(1, 50), 0).expect("an acknowledgement of what it came with");
    assert_eq!(sender.state(), StreamState::Streaming);
}

#[test]
fn under_load_a_standby_streams_though_the_end_always_runs_ahead() {
    let mut sender = accept(&upstream(&[(1, 0)], 1_000), &start(1, 0));
    drain(&mut sender, 0, 600);
    sender.set_end(at(2_000));
    sender.handle_ack(&ack(1, 600), 0).expect("in order");
    assert_eq!(sender.state(), StreamState::Catchup);
    sender.handle_ack(&ack(1, 1_000), 0).expect("in order");
    assert_eq!(sender.state(), StreamState::Streaming, "it has flushed all that there was when all was sent");
}

#[test]
fn a_standby_that_fell_behind_again_before_it_acknowledged_is_not_streaming() {
    let mut sender = accept(&upstream(&[(1, 0)], 1_000), &start(1, 0));
    drain(&mut sender, 0, 1_000);
    sender.set_end(at(1_000 + STREAMING_LAG_BYTES_MAX + 1));
    sender.handle_ack(&ack(1, 1_000), 0).expect("in order");
    assert_eq!(sender.state(), StreamState::Catchup);
    drain(&mut sender, 0, MIB);
    sender.handle_ack(&ack(1, 1_001 + STREAMING_LAG_BYTES_MAX), 0).expect("in order");
    assert_eq!(sender.state(), StreamState::Streaming);
}

#[test]
fn a_safe_lsn_that_moved_is_told_at_once() {
    let mut sender = accept(&upstream(&[(1, 0)], 50), &start(1, 50));
    drain(&mut sender, 0, 600);
    sender.set_safe(at(50));
    assert_eq!(drain(&mut sender, 1, 600), ["keepalive 50, safe 50"]);
    assert_eq!(drain(&mut sender, 1, 600), [""; 0]);
    // With data it travels on the data.
    sender.set_end(at(80));
    sender.set_safe(at(60));
    assert_eq!(drain(&mut sender, 2, 600), ["data 50..80 of 80, safe 60"]);
    sender.set_safe(at(40));
    assert_eq!(drain(&mut sender, 2, 600), [""; 0], "the safe LSN never goes down");
}

#[test]
fn an_ancestor_timeline_is_streamed_up_to_its_end_on_the_chain() {
    let mut sender = accept(&upstream(&[(1, 0), (2, 500), (3, 900)], 2_000), &start(1, 100));
    assert_eq!(
        drain(&mut sender, 0, 600),
        ["started on 3 to 2000", "data 100..500 of 2000, safe 0", "timeline 2 begins at 500"]
    );
    assert!(sender.is_ended());
    let mut sender = accept(&upstream(&[(1, 0), (2, 500), (3, 900)], 2_000), &start(2, 500));
    assert_eq!(
        drain(&mut sender, 0, 600),
        ["started on 3 to 2000", "data 500..900 of 2000, safe 0", "timeline 3 begins at 900"]
    );
}

#[test]
fn an_ancestor_timeline_is_never_streaming() {
    let mut sender = accept(&upstream(&[(1, 0), (2, 500)], 500), &start(1, 400));
    assert_eq!(sender.poll_transmit(0).map(|t| matches!(t, Transmit::Started(_))), Some(true));
    let Some(Transmit::Read { from, upto, .. }) = sender.poll_transmit(0) else { panic!("a read") };
    assert_eq!((from, upto), (at(400), at(500)));
    sender.data(from, Bytes::from_static(&[0; 100]), 0);
    sender.handle_ack(&ack(2, 500), 0).expect("for the upstream's timeline");
    assert_eq!(sender.state(), StreamState::Catchup);
}

#[test]
fn timelines_that_wrote_nothing_are_skipped() {
    let mut sender = accept(&upstream(&[(1, 0), (2, 500), (3, 500)], 700), &start(1, 500));
    assert_eq!(drain(&mut sender, 0, 600), ["started on 3 to 700", "timeline 3 begins at 500"]);
    // A standby that had begun timeline 2 where it ended without a record goes on to 3 as well.
    let mut sender = accept(&upstream(&[(1, 0), (2, 500), (3, 500)], 700), &start(2, 500));
    assert_eq!(drain(&mut sender, 0, 600), ["started on 3 to 700", "timeline 3 begins at 500"]);
}

#[test]
fn an_empty_standby_begins_with_the_first_timeline() {
    let mut sender = accept(&upstream(&[(1, 0)], 700), &start(0, 0));
    assert_eq!(drain(&mut sender, 0, 600), ["started on 1 to 700", "timeline 1 begins at 0"]);
}

#[test]
fn another_cluster_format_or_segment_size_is_refused_with_both_values() {
    let upstream = upstream(&[(1, 0)], 700);
    let text = refuse(&upstream, &Start { system_id: SystemId::new(8), ..start(1, 0) });
    assert!(text.contains("0000000000000008") && text.contains("0000000000000007"), "{text}");
    let text = refuse(&upstream, &Start { wal_format_version: 9, ..start(1, 0) });
    assert!(text.contains("version 9") && text.contains("version 1"), "{text}");
    let text = refuse(&upstream, &Start { segment_size_bytes: 12_345, ..start(1, 0) });
    assert!(text.contains("12345") && text.contains("1048576"), "{text}");
    let text = refuse(&upstream, &Start { node: UPSTREAM, ..start(1, 0) });
    assert!(text.contains("asked itself"), "{text}");
}

#[test]
fn a_position_that_is_not_on_the_chain_is_refused() {
    let upstream = upstream(&[(1, 0), (2, 500), (3, 300)], 2_000);
    // On timeline 1 beyond the fork of 3, though before the fork of 2.
    let text = refuse(&upstream, &start(1, 301));
    assert!(text.contains("must rejoin") && text.contains(&at(301).to_string()) && text.contains(&at(300).to_string()));
    assert!(WalSender::start(&upstream, &start(1, 300), 0, 0).is_ok());
    assert!(refuse(&upstream, &start(2, 501)).contains("must rejoin"));
    assert!(refuse(&upstream, &start(4, 2_000)).contains("timeline 4, which is not in this node's history"));
    assert!(refuse(&upstream, &start(3, 2_001)).contains("beyond the end of this node's WAL"));
    assert!(WalSender::start(&upstream, &start(3, 2_000), 0, 0).is_ok());
    assert!(refuse(&upstream, &start(0, 1)).contains("must rejoin"), "an empty WAL has nothing");
    let before = Start { start_lsn: Lsn::new(5), ..start(1, 0) };
    assert!(refuse(&upstream, &before).contains("the log begins at"));
}

#[test]
fn acknowledgements_that_cannot_be_end_the_connection() {
    let mut sender = accept(&upstream(&[(1, 0), (2, 500)], 1_000), &start(2, 600));
    drain(&mut sender, 0, 600);
    let error = sender.handle_ack(&ack(1, 600), 0).expect_err("another timeline");
    assert_eq!(error, AckError::Timeline { acknowledged: tl(1), streamed: tl(2) });
    sender.set_end(at(1_200));
    let error = sender.handle_ack(&ack(2, 1_001), 0).expect_err("never sent");
    assert_eq!(error, AckError::NeverSent { acknowledged: at(1_001), sent: at(1_000) });
    sender.handle_ack(&ack(2, 900), 0).expect("sent");
    let error = sender.handle_ack(&ack(2, 899), 0).expect_err("backwards");
    assert_eq!(error, AckError::Backwards { before: at(900), after: at(899) });
    let mut flushed_before_written = ack(2, 900);
    flushed_before_written.position.flush = at(950);
    let error = sender.handle_ack(&flushed_before_written, 0).expect_err("out of order");
    assert!(matches!(error, AckError::OutOfOrder { .. }));
    assert_eq!(sender.acked().flush, at(900), "what was refused counts nothing");
}

#[test]
fn a_silent_standby_is_pinged_then_dropped() {
    let mut sender = accept(&upstream(&[(1, 0)], 50), &start(1, 50));
    drain(&mut sender, 0, 600);
    assert_eq!(sender.deadline_ms(), Some(5_000));
    assert_eq!(sender.handle_tick(4_999), Ok(()));
    assert_eq!(drain(&mut sender, 4_999, 600), [""; 0]);
    assert_eq!(drain(&mut sender, 5_000, 600), ["keepalive 50, safe 0, reply"]);
    assert_eq!(drain(&mut sender, 5_001, 600), [""; 0], "one ping for one silence");
    assert_eq!(sender.deadline_ms(), Some(10_000));
    sender.handle_ack(&ack(1, 50), 6_000).expect("the answer");
    assert_eq!(sender.deadline_ms(), Some(11_000));
    assert_eq!(drain(&mut sender, 11_000, 600), ["keepalive 50, safe 0, reply"]);
    assert_eq!(sender.handle_tick(15_999), Ok(()));
    let error = sender.handle_tick(16_000).expect_err("silence");
    assert_eq!(error.to_string(), "nothing came from the standby for 10000 ms (timeout 10000 ms)");
}

#[test]
fn a_timeout_of_zero_is_none() {
    let mut sender = WalSender::start(&upstream(&[(1, 0)], 50), &start(1, 50), 0, 0).expect("taken on");
    drain(&mut sender, 0, 600);
    assert_eq!(sender.deadline_ms(), None);
    assert_eq!(sender.handle_tick(u64::MAX), Ok(()));
    assert_eq!(drain(&mut sender, u64::MAX, 600), [""; 0]);
}

#[test]
fn a_standby_that_asks_is_answered() {
    let mut sender = accept(&upstream(&[(1, 0)], 50), &start(1, 50));
    drain(&mut sender, 0, 600);
    sender.handle_ack(&Ack { reply_requested: true, ..ack(1, 50) }, 1).expect("a question");
    assert_eq!(drain(&mut sender, 1, 600), ["keepalive 50, safe 0"]);
    assert_eq!(drain(&mut sender, 1, 600), [""; 0]);
}

#[test]
fn an_upstream_that_stops_says_so_and_sends_nothing_more() {
    let mut sender = accept(&upstream(&[(1, 0)], 1_000), &start(1, 0));
    sender.stop("timeline 1 is no longer served");
    sender.stop("a second reason");
    assert_eq!(sender.state(), StreamState::Stopping);
    assert_eq!(drain(&mut sender, 0, 600), ["started on 1 to 1000", "stopping: timeline 1 is no longer served"]);
    assert!(sender.is_ended());
    assert_eq!(sender.state(), StreamState::Stopping);
    assert!(!sender.wants_to_transmit(u64::MAX));
}

fn fetch(timeline: u32, from: u64, election: u32, until: u64) -> Start {
    Start { fetch: Some(FetchRange { election: tl(election), until: at(until) }), ..start(timeline, from) }
}

#[test]
fn a_fetch_ends_where_it_was_asked_to_whatever_is_safe() {
    let source = Upstream { sealed: tl(3), ..upstream(&[(1, 0), (2, 500)], 1_000) };
    let mut sender = accept(&source, &fetch(2, 600, 3, 900));
    assert_eq!(drain(&mut sender, 0, 600), ["started on 2 to 1000", "data 600..900 of 1000, safe 0", "fetch done"]);
    assert!(sender.is_ended());
    assert_ne!(sender.state(), StreamState::Streaming);
    // Over a fork; the end of what is asked for comes before the end of the timeline.
    let mut sender = accept(&source, &fetch(1, 400, 3, 900));
    assert_eq!(
        drain(&mut sender, 0, 600),
        ["started on 2 to 1000", "data 400..500 of 1000, safe 0", "timeline 2 begins at 500"]
    );
    let mut sender = accept(&source, &fetch(1, 500, 3, 500));
    assert_eq!(drain(&mut sender, 0, 600), ["started on 2 to 1000", "fetch done"]);
}

#[test]
fn a_fetch_is_refused_by_a_node_that_did_not_seal_for_this_election() {
    for sealed in [0, 2, 4] {
        let source = Upstream { sealed: tl(sealed), ..upstream(&[(1, 0), (2, 500)], 1_000) };
        let text = refuse(&source, &fetch(2, 600, 3, 900));
        assert!(text.contains("election of timeline 3") && text.contains(&format!("sealed for timeline {sealed}")));
    }
}

#[test]
fn a_fetch_of_what_is_not_there_is_refused() {
    let source = Upstream { sealed: tl(3), ..upstream(&[(1, 0), (2, 500)], 1_000) };
    assert!(refuse(&source, &fetch(2, 600, 3, 1_001)).contains("ask another node"));
    assert!(refuse(&source, &fetch(2, 600, 3, 599)).contains("must rejoin"));
    assert!(refuse(&source, &fetch(1, 600, 3, 900)).contains("must rejoin"));
}

#[test]
#[should_panic(expected = "begins where the last one ended")]
fn bytes_with_a_gap_are_never_sent() {
    let mut sender = accept(&upstream(&[(1, 0)], 1_000), &start(1, 0));
    sender.data(at(10), Bytes::from_static(b"x"), 0);
}

#[test]
fn what_was_removed_is_refused_in_postgresqls_words() {
    // STR-4.
    let source = Upstream { first: Lsn::new(3 << 20), ..upstream(&[(1, 0), (2, 500), (3, 1 << 20)], 4 << 20) };
    let text = refuse(&source, &start(1, 100));
    assert!(text.starts_with("requested WAL segment 000000020000000000000001 has already been removed"), "{text}");
    let text = refuse(&source, &start(3, (2 << 20) - 8));
    assert!(text.starts_with("requested WAL segment 000000030000000000000002 has already been removed"), "{text}");
    accept(&source, &start(3, 2 << 20));
    // Where it left the chain is told first: seeding is what helps in the end, but not because of removed WAL.
    assert!(refuse(&source, &start(1, 600)).contains("must rejoin"));
}
