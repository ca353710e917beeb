use super::*;
use crate::message::{FetchRange, Keepalive, WalFormat};
use bytes::Bytes;
use understudy_types::{Incarnation, NodeId, SegmentSize, SystemId, TimelineSwitch};

const MIB: u64 = 1 << 20;

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

fn config(timeline: u32) -> ReceiverConfig {
    ReceiverConfig {
        system_id: SystemId::new(7),
        format: WalFormat { version: 1, segment_size: SegmentSize::MIN },
        node: NodeId::new(0xB),
        incarnation: Incarnation::new(1),
        damage_epoch: 2,
        timeline: tl(timeline),
        sealed: TimelineId::NONE,
        fetch: None,
        timing: ReceiverTiming::default(),
    }
}

fn own(timeline: u32, bytes: u64) -> OwnLog {
    OwnLog { timeline: tl(timeline), end: at(bytes), written: at(bytes), flushed: at(bytes), applied: at(0) }
}

fn started(timeline: u32, end: u64) -> FromUpstream {
    let (system_id, node) = (SystemId::new(7), NodeId::new(0xA));
    FromUpstream::Started(Started { system_id, node, timeline: tl(timeline), end: at(end), safe: at(0) })
}

fn data(from: u64, count: u64, end: u64, safe: u64) -> FromUpstream {
    let bytes = Bytes::from(vec![0; usize::try_from(count).expect("small")]);
    FromUpstream::Data(Data {
        start: at(from),
        bytes,
        end: at(end),
        safe: at(safe),
        send_time_us: 77,
        marks: Vec::new(),
    })
}

fn keepalive(end: u64, safe: u64, reply_requested: bool) -> FromUpstream {
    FromUpstream::Keepalive(Keepalive { end: at(end), safe: at(safe), send_time_us: 99, reply_requested })
}

/// Does what the receiver asks for, as a log that takes everything, and says what it was.
fn drain(receiver: &mut WalReceiver, now_ms: u64) -> Vec<String> {
    let rel = |lsn: Lsn| lsn.get().saturating_sub(MIB);
    let mut done = Vec::new();
    while let Some(action) = receiver.poll_action(now_ms) {
        done.push(match action {
            Action::Connect(start) => format!("connect on {} from {}", start.timeline, rel(start.start_lsn)),
            Action::Disconnect => "disconnect".to_owned(),
            Action::Append { start, bytes } => {
                receiver.appended(start.advance(bytes.len() as u64));
                format!("append {} at {}", bytes.len(), rel(start))
            }
            Action::AdvanceSafe(lsn) => format!("safe {}", rel(lsn)),
            Action::SwitchTimeline(history) => {
                receiver.switched(now_ms);
                format!("switch to {}", history.latest())
            }
        });
    }
    while let Some(message) = receiver.poll_transmit(now_ms) {
        let FromStandby::Ack(Ack { timeline, position: p, reply_requested }) = message else { panic!("an ack") };
        let reply = if reply_requested { ", reply" } else { "" };
        done.push(format!("ack {timeline}: {} {} {}{reply}", rel(p.write), rel(p.flush), rel(p.apply)));
    }
    done
}

/// A receiver on timeline 1 at 100 that was told to follow the primary of timeline 1, up to and with `Started`.
fn open(end: u64) -> WalReceiver {
    let mut receiver = WalReceiver::new(config(1), own(1, 100), chain(&[(1, 0)]), 0);
    assert_eq!(drain(&mut receiver, 0), ["connect on 1 from 100"]);
    receiver.handle_connected(0);
    assert_eq!(receiver.state(), StreamState::Startup);
    receiver.handle_message(started(1, end), 0);
    assert_eq!(drain(&mut receiver, 0), ["safe 0", "ack 1: 100 100 0"]);
    receiver
}

fn failed(receiver: &WalReceiver) -> String {
    receiver.failure().expect("a failure").to_string()
}

#[test]
fn it_appends_and_acknowledges_what_is_flushed_once() {
    let mut receiver = open(500);
    assert_eq!(receiver.state(), StreamState::Catchup);
    receiver.handle_message(data(100, 50, 500, 20), 1);
    assert_eq!(drain(&mut receiver, 1), ["append 50 at 100", "safe 20"]);
    receiver.handle_message(data(150, 350, 500, 30), 1);
    assert_eq!(drain(&mut receiver, 1), ["append 350 at 150", "safe 30"], "nothing is flushed yet");
    assert_eq!(receiver.state(), StreamState::Streaming);
    receiver.set_positions(at(500), at(150), at(0));
    receiver.set_positions(at(500), at(500), at(30));
    assert_eq!(drain(&mut receiver, 2), ["ack 1: 500 500 30"], "one acknowledgement for two flushes");
    assert_eq!(drain(&mut receiver, 3), [""; 0]);
    assert_eq!((receiver.upstream_end(), receiver.upstream_safe()), (at(500), at(30)));
}

/// Commits at `remote_write` and `remote_apply` wait for it, and the status interval is long.
#[test]
fn what_is_written_and_what_is_applied_is_acknowledged_at_once_too() {
    let mut receiver = open(200);
    receiver.handle_message(data(100, 100, 200, 0), 1);
    drain(&mut receiver, 1);
    receiver.set_positions(at(200), at(100), at(0));
    assert_eq!(drain(&mut receiver, 1), ["ack 1: 200 100 0"]);
    receiver.set_positions(at(200), at(200), at(0));
    assert_eq!(drain(&mut receiver, 1), ["ack 1: 200 200 0"]);
    receiver.set_positions(at(200), at(200), at(200));
    assert_eq!(drain(&mut receiver, 1), ["ack 1: 200 200 200"]);
    assert_eq!(drain(&mut receiver, 2), [""; 0]);
}

#[test]
fn it_streams_for_good_once_it_has_had_everything() {
    let mut receiver = open(100);
    assert_eq!(receiver.state(), StreamState::Streaming);
    receiver.handle_message(data(100, 10, 900, 0), 0);
    drain(&mut receiver, 0);
    assert_eq!(receiver.state(), StreamState::Streaming);
    receiver.handle_closed(None, 0);
    assert_eq!(receiver.state(), StreamState::Startup);
}

#[test]
fn positions_are_acknowledged_in_their_order_whatever_order_they_were_read_in() {
    let mut receiver = open(200);
    receiver.handle_message(data(100, 100, 200, 0), 0);
    drain(&mut receiver, 0);
    receiver.set_positions(at(150), at(200), at(190));
    assert_eq!(drain(&mut receiver, 0), ["ack 1: 150 150 150"]);
    receiver.set_positions(at(999), at(999), at(999));
    assert_eq!(drain(&mut receiver, 0), ["ack 1: 200 200 200"]);
}

#[test]
fn status_is_sent_at_intervals_and_when_asked_for() {
    let mut receiver = open(100);
    assert_eq!(receiver.deadline_ms(), Some(1_000));
    assert_eq!(drain(&mut receiver, 999), [""; 0]);
    assert_eq!(drain(&mut receiver, 1_000), ["ack 1: 100 100 0"]);
    receiver.handle_message(keepalive(100, 60, true), 1_500);
    assert_eq!(drain(&mut receiver, 1_500), ["safe 60", "ack 1: 100 100 0"]);
    receiver.handle_message(keepalive(100, 60, false), 1_600);
    assert_eq!(drain(&mut receiver, 1_600), ["safe 60"]);
}

#[test]
fn the_send_time_of_the_last_message_travels_back() {
    let mut receiver = open(100);
    receiver.handle_message(keepalive(100, 0, true), 1);
    while receiver.poll_action(1).is_some() {}
    let Some(FromStandby::Ack(ack)) = receiver.poll_transmit(1) else { panic!("an ack") };
    assert_eq!(ack.position.reply_time_us, 99);
}

#[test]
fn a_silent_upstream_is_pinged_then_left() {
    let mut receiver = open(100);
    for now_ms in [1_000, 2_000, 3_000, 4_000] {
        assert_eq!(drain(&mut receiver, now_ms), ["ack 1: 100 100 0"]);
    }
    assert_eq!(drain(&mut receiver, 5_000), ["ack 1: 100 100 0, reply"]);
    receiver.handle_message(keepalive(100, 0, false), 5_500);
    drain(&mut receiver, 5_500);
    receiver.handle_tick(15_499);
    assert_eq!(receiver.failure(), None);
    receiver.handle_tick(15_500);
    assert_eq!(failed(&receiver), "nothing came from the upstream for 10000 ms (timeout 10000 ms)");
    assert_eq!(drain(&mut receiver, 15_500), ["disconnect"]);
    assert_eq!(drain(&mut receiver, 15_520), ["connect on 1 from 100"]);
}

#[test]
fn an_upstream_that_never_starts_is_left() {
    let mut receiver = WalReceiver::new(config(1), own(1, 100), chain(&[(1, 0)]), 0);
    drain(&mut receiver, 0);
    receiver.handle_connected(0);
    assert_eq!(receiver.deadline_ms(), Some(10_000));
    receiver.handle_tick(10_000);
    assert!(failed(&receiver).contains("nothing came from the upstream"));
}

#[test]
fn nothing_is_read_while_the_disk_is_behind() {
    let mut receiver = open(u64::from(u32::MAX));
    assert!(receiver.wants_input());
    let (mut from, now_ms) = (100, 0);
    while from < AHEAD_BYTES_MAX {
        receiver.handle_message(data(from, 4 * MIB, u64::from(u32::MAX), 0), now_ms);
        drain(&mut receiver, now_ms);
        from += 4 * MIB;
    }
    assert!(!receiver.wants_input());
    receiver.handle_tick(60_000);
    assert_eq!(receiver.failure(), None, "the silence is its own");
    receiver.set_positions(at(from), at(100), at(0));
    assert!(receiver.wants_input());
}

#[test]
fn the_pause_between_attempts_grows_and_is_bounded() {
    let mut receiver = WalReceiver::new(config(1), own(1, 100), chain(&[(1, 0)]), 0);
    let mut now_ms = 0;
    let mut pauses = Vec::new();
    for _ in 0..8 {
        drain(&mut receiver, now_ms);
        receiver.handle_connect_failed("connection refused".to_owned(), now_ms);
        let until_ms = receiver.deadline_ms().expect("a pause");
        pauses.push(until_ms - now_ms);
        now_ms = until_ms;
    }
    assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1_000, 1_000]);
    assert!(failed(&receiver).contains("connection refused"));
    drain(&mut receiver, now_ms);
    receiver.handle_connected(now_ms);
    receiver.handle_message(started(1, 100), now_ms);
    assert_eq!(receiver.failure(), None);
    receiver.handle_closed(Some("reset".to_owned()), now_ms);
    assert_eq!(receiver.deadline_ms(), Some(now_ms + 20));
}

#[test]
fn a_timeline_switch_starts_anew_on_the_next_timeline() {
    let mut receiver = WalReceiver::new(config(2), own(1, 100), chain(&[(1, 0), (2, 150)]), 0);
    drain(&mut receiver, 0);
    receiver.handle_connected(0);
    receiver.handle_message(started(2, 500), 0);
    receiver.handle_message(data(100, 50, 500, 0), 0);
    assert_eq!(drain(&mut receiver, 0), ["safe 0", "append 50 at 100", "safe 0", "ack 2: 100 100 0"]);
    receiver.handle_message(FromUpstream::EndOfTimeline { next: tl(2), switch_lsn: at(150) }, 0);
    receiver.handle_closed(None, 0);
    assert_eq!(drain(&mut receiver, 0), ["switch to 2", "connect on 2 from 150"]);
    assert_eq!(receiver.failure(), None);
}

#[test]
fn a_switch_waits_until_the_cluster_state_knows_the_timeline() {
    let mut receiver = WalReceiver::new(config(2), own(1, 100), chain(&[(1, 0)]), 0);
    drain(&mut receiver, 0);
    receiver.handle_connected(0);
    receiver.handle_message(started(2, 500), 0);
    receiver.handle_message(FromUpstream::EndOfTimeline { next: tl(2), switch_lsn: at(100) }, 0);
    receiver.handle_closed(None, 0);
    assert_eq!(drain(&mut receiver, 60_000), ["safe 0"]);
    assert_eq!(receiver.awaited_timeline(), Some(tl(2)));
    receiver.handle_history(chain(&[(1, 0), (2, 100), (3, 100)]), 60_000);
    assert_eq!(drain(&mut receiver, 60_000), ["switch to 2", "connect on 2 from 100"]);
}

#[test]
fn a_switch_that_does_not_fit_is_refused() {
    let attempt = |history: &[(u32, u64)], next, lsn| {
        let mut receiver = WalReceiver::new(config(3), own(1, 100), chain(history), 0);
        drain(&mut receiver, 0);
        receiver.handle_connected(0);
        receiver.handle_message(started(3, 500), 0);
        receiver.handle_message(FromUpstream::EndOfTimeline { next: tl(next), switch_lsn: at(lsn) }, 0);
        assert!(drain(&mut receiver, 0).contains(&"disconnect".to_owned()));
        failed(&receiver)
    };
    let known = [(1, 0), (2, 100), (3, 200)];
    assert!(attempt(&known, 2, 101).contains("this node's WAL ends at"));
    assert!(attempt(&known, 1, 100).contains("stands on timeline 1 already"));
    assert!(attempt(&known, 4, 100).contains("follows the primary of timeline 3"));
    assert!(attempt(&[(1, 0), (2, 90), (3, 200)], 2, 100).contains("the cluster's history says"));
    assert!(attempt(&[(1, 0), (3, 200)], 2, 100).contains("does not have it"));
}

/// INV-FENCED.
#[test]
fn an_upstream_below_the_seal_gets_no_acknowledgement() {
    let config = ReceiverConfig { sealed: tl(2), ..config(1) };
    let mut receiver = WalReceiver::new(config, own(1, 100), chain(&[(1, 0)]), 0);
    drain(&mut receiver, 0);
    receiver.handle_connected(0);
    receiver.handle_message(started(1, 500), 0);
    receiver.handle_message(data(100, 50, 500, 0), 0);
    receiver.set_positions(at(100), at(100), at(100));
    assert_eq!(drain(&mut receiver, 0), ["disconnect"]);
    assert!(failed(&receiver).contains("sealed for timeline 2"));
}

#[test]
fn an_upstream_that_is_not_the_primary_to_follow_is_left() {
    for timeline in [1, 3] {
        let mut receiver = WalReceiver::new(config(2), own(1, 100), chain(&[(1, 0)]), 0);
        drain(&mut receiver, 0);
        receiver.handle_connected(0);
        receiver.handle_message(started(timeline, 500), 0);
        assert_eq!(drain(&mut receiver, 0), ["disconnect"]);
        assert!(failed(&receiver).contains("follows the primary of timeline 2"));
    }
    let mut receiver = WalReceiver::new(config(1), own(1, 100), chain(&[(1, 0)]), 0);
    drain(&mut receiver, 0);
    receiver.handle_connected(0);
    let FromUpstream::Started(mut other) = started(1, 500) else { panic!("started") };
    other.system_id = SystemId::new(8);
    receiver.handle_message(FromUpstream::Started(other), 0);
    assert!(failed(&receiver).contains("0000000000000008"));
}

#[test]
fn bytes_that_do_not_continue_the_log_are_refused() {
    for (from, count) in [(99, 10), (101, 10), (100, 0)] {
        let mut receiver = open(500);
        receiver.handle_message(data(from, count, 500, 0), 0);
        assert_eq!(drain(&mut receiver, 0), ["disconnect"], "{from} {count}");
        assert!(failed(&receiver).contains("this node's WAL ends at"));
    }
}

#[test]
fn messages_at_the_wrong_time_are_refused() {
    let mut receiver = WalReceiver::new(config(1), own(1, 100), chain(&[(1, 0)]), 0);
    drain(&mut receiver, 0);
    receiver.handle_connected(0);
    receiver.handle_message(data(100, 1, 500, 0), 0);
    assert_eq!(failed(&receiver), "the upstream sent Data before Started");
    let mut receiver = open(100);
    receiver.handle_message(started(1, 100), 0);
    assert_eq!(failed(&receiver), "the upstream sent Started a second time");
    let mut receiver = open(100);
    receiver.handle_message(FromUpstream::FetchDone, 0);
    assert_eq!(failed(&receiver), "the upstream sent FetchDone though nothing was fetched");
}

#[test]
fn an_end_without_an_end_message_is_a_failure() {
    let mut receiver = open(100);
    receiver.handle_closed(None, 5);
    assert_eq!(failed(&receiver), "the upstream's stream ended without an end message");
    assert_eq!(drain(&mut receiver, 5), ["disconnect"]);
    // What was still in the pipe of the dead stream counts nothing.
    receiver.handle_message(data(100, 50, 150, 0), 6);
    assert_eq!(drain(&mut receiver, 6), [""; 0]);
    assert_eq!(drain(&mut receiver, 25), ["connect on 1 from 100"]);
}

#[test]
fn an_upstream_that_stops_is_tried_again_later() {
    let mut receiver = open(100);
    receiver.handle_message(FromUpstream::Stopping { reason: "timeline 1 is no longer served".to_owned() }, 0);
    assert_eq!(failed(&receiver), "the upstream ended the stream: timeline 1 is no longer served");
    assert_eq!(drain(&mut receiver, 0), ["disconnect"]);
    assert_eq!(drain(&mut receiver, 20), ["connect on 1 from 100"]);
}

#[test]
fn a_log_that_does_not_take_the_bytes_ends_the_attempt() {
    let mut receiver = open(500);
    receiver.handle_message(data(100, 50, 500, 0), 0);
    assert!(matches!(receiver.poll_action(0), Some(Action::Append { .. })));
    receiver.log_failed("the record at 0/00100064 has a wrong checksum".to_owned(), 0);
    assert!(failed(&receiver).contains("wrong checksum"));
    drain(&mut receiver, 0);
    assert_eq!(drain(&mut receiver, 20), ["connect on 1 from 100"], "the same bytes are asked for again");
}

#[test]
fn a_fetch_takes_everything_and_leaves_the_safe_lsn_alone() {
    let fetch = FetchRange { election: tl(3), until: at(200) };
    let config = ReceiverConfig { fetch: Some(fetch), sealed: tl(3), ..config(0) };
    let mut receiver = WalReceiver::new(config, own(1, 100), chain(&[(1, 0), (2, 150)]), 0);
    let Some(Action::Connect(start)) = receiver.poll_action(0) else { panic!("connect") };
    assert_eq!(start.fetch, Some(fetch));
    receiver.handle_connected(0);
    receiver.handle_message(started(2, 300), 0);
    receiver.handle_message(data(100, 50, 300, 300), 0);
    receiver.set_positions(at(100), at(100), at(100));
    assert_eq!(drain(&mut receiver, 0), ["append 50 at 100", "ack 2: 0 0 0"], "a sealed node acknowledges nothing");
    receiver.handle_message(FromUpstream::EndOfTimeline { next: tl(2), switch_lsn: at(150) }, 0);
    assert_eq!(drain(&mut receiver, 0), ["switch to 2", "connect on 2 from 150"]);
    receiver.handle_connected(0);
    receiver.handle_message(started(2, 300), 0);
    receiver.handle_message(data(150, 50, 300, 300), 0);
    drain(&mut receiver, 0);
    receiver.handle_message(FromUpstream::FetchDone, 0);
    assert!(receiver.is_done());
    receiver.handle_closed(None, 0);
    assert_eq!(receiver.failure(), None);
}

#[test]
fn a_fetch_that_ends_early_is_not_done() {
    let fetch = FetchRange { election: tl(2), until: at(200) };
    let mut receiver =
        WalReceiver::new(ReceiverConfig { fetch: Some(fetch), ..config(0) }, own(1, 100), chain(&[(1, 0)]), 0);
    drain(&mut receiver, 0);
    receiver.handle_connected(0);
    receiver.handle_message(started(1, 300), 0);
    receiver.handle_message(FromUpstream::FetchDone, 0);
    assert!(!receiver.is_done());
    assert_eq!(failed(&receiver), "the upstream sent FetchDone before everything was there");
}

#[test]
fn removed_wal_is_told_apart_until_a_stream_opens() {
    let segment = "000000010000000000000001".to_owned();
    let reason = format!("requested WAL segment {segment} has already been removed");
    let mut receiver = WalReceiver::new(config(1), own(1, 100), chain(&[(1, 0)]), 0);
    assert_eq!(receiver.wal_gone(), None);
    drain(&mut receiver, 0);
    receiver.handle_wal_gone(segment.clone(), reason.clone(), 5);
    assert_eq!(receiver.wal_gone(), Some(segment.as_str()));
    assert_eq!(receiver.failure().map(ToString::to_string), Some(reason.clone()));
    // It asks again after its pause: another upstream's answer may be another.
    let at_ms = receiver.deadline_ms().expect("a pause");
    assert_eq!(drain(&mut receiver, at_ms), ["disconnect", "connect on 1 from 100"]);
    assert_eq!(receiver.wal_gone(), Some(segment.as_str()), "as long as nobody streams");
    receiver.handle_connected(at_ms);
    receiver.handle_message(started(1, 200), at_ms);
    assert_eq!(receiver.wal_gone(), None);
    // In the middle of a stream.
    receiver.handle_wal_gone(segment.clone(), reason, at_ms);
    assert_eq!(receiver.wal_gone(), Some(segment.as_str()));
}
