//! The two machines over a link that loses whatever is on it when it is cut: they converge, and nothing that is
//! acknowledged is ever missing on the standby.

use std::collections::VecDeque;

use bytes::Bytes;
use proptest::prelude::*;
use understudy_replication::message::{FromStandby, FromUpstream, Keepalive};
use understudy_replication::receiver::{Action, OwnLog, ReceiverConfig, ReceiverTiming, WalReceiver};
use understudy_replication::sender::{Transmit, Upstream, WalSender};
use understudy_replication::{StreamState, WalFormat};
use understudy_types::{Incarnation, Lsn, NodeId, SegmentSize, SystemId, TimelineHistory, TimelineId, TimelineSwitch};

const SYSTEM: SystemId = SystemId::new(7);
const FORMAT: WalFormat = WalFormat { version: 1, segment_size: SegmentSize::MIN };
const LOG_START: u64 = SegmentSize::MIN.get();
const LINK_MESSAGES_MAX: usize = 4;
const TIMEOUT_MS: u64 = 10_000;

#[derive(Debug, Clone)]
enum Op {
    Append(usize),
    AdvanceSafe,
    SenderSends,
    ReceiverSends,
    ToReceiver,
    ToSender,
    StandbyFlushes(usize),
    StandbyApplies,
    Cut,
    /// One message, without anybody noticing.
    LoseDown,
    LoseUp,
    StandbyCrashes,
    Time(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (1_usize..300).prop_map(Op::Append),
        2 => Just(Op::AdvanceSafe),
        6 => Just(Op::SenderSends),
        4 => Just(Op::ReceiverSends),
        8 => Just(Op::ToReceiver),
        6 => Just(Op::ToSender),
        3 => (1_usize..400).prop_map(Op::StandbyFlushes),
        2 => Just(Op::StandbyApplies),
        1 => Just(Op::Cut),
        1 => Just(Op::LoseDown),
        1 => Just(Op::LoseUp),
        1 => Just(Op::StandbyCrashes),
        1 => (1_u64..6_000).prop_map(Op::Time),
    ]
}

/// A primary whose log has a byte at every position after `LOG_START`, its standby, and what is between them.
struct World {
    now_ms: u64,
    history: TimelineHistory,
    primary: Vec<u8>,
    safe: u64,
    sender: Option<WalSender>,
    down: VecDeque<FromUpstream>,
    up: VecDeque<FromStandby>,
    receiver: WalReceiver,
    standby: Vec<u8>,
    timeline: TimelineId,
    flushed: usize,
    applied: usize,
    standby_safe: Lsn,
}

fn lsn(offset: usize) -> Lsn {
    Lsn::new(LOG_START + offset as u64)
}

fn offset(lsn: Lsn) -> usize {
    usize::try_from(lsn.get() - LOG_START).expect("small")
}

fn config(timeline: TimelineId) -> ReceiverConfig {
    ReceiverConfig {
        system_id: SYSTEM,
        format: FORMAT,
        node: NodeId::new(2),
        incarnation: Incarnation::new(1),
        damage_epoch: 0,
        timeline,
        sealed: TimelineId::NONE,
        fetch: None,
        timing: ReceiverTiming { timeout_ms: TIMEOUT_MS, ..ReceiverTiming::default() },
    }
}

impl World {
    /// `forks` are the lengths of what each earlier timeline wrote; the standby has the first `had` bytes of that.
    fn new(forks: &[usize], had: usize) -> Self {
        let mut history = TimelineHistory::new();
        let (mut primary, mut standby_timeline) = (Vec::new(), TimelineId::NONE);
        let total: usize = forks.iter().sum();
        let had = had.min(total);
        for (number, length) in (1..).zip(forks.iter().copied().chain([0])) {
            let timeline = TimelineId::new(number);
            let switch = TimelineSwitch { timeline, parent: history.latest(), switch_lsn: lsn(primary.len()) };
            history.push(switch).expect("a continuation");
            if primary.len() < had {
                standby_timeline = timeline;
            }
            primary.extend(
                (0..length)
                    .map(|at| u8::try_from((at * 7 + usize::try_from(number).expect("small")) % 251).expect("a byte")),
            );
        }
        let standby = primary[..had].to_vec();
        let own = own_log(standby_timeline, &standby, had, 0);
        let receiver = WalReceiver::new(config(history.latest()), own, history.clone(), 0);
        Self {
            now_ms: 0,
            history,
            primary,
            safe: LOG_START,
            sender: None,
            down: VecDeque::new(),
            up: VecDeque::new(),
            receiver,
            standby,
            timeline: standby_timeline,
            flushed: had,
            applied: 0,
            standby_safe: Lsn::INVALID,
        }
    }

    fn cut(&mut self) {
        self.sender = None;
        self.down.clear();
        self.up.clear();
    }

    fn act(&mut self) {
        while let Some(action) = self.receiver.poll_action(self.now_ms) {
            match action {
                Action::Connect(start) => {
                    self.cut();
                    let upstream = Upstream {
                        system_id: SYSTEM,
                        format: FORMAT,
                        node: NodeId::new(1),
                        history: self.history.clone(),
                        first: SegmentSize::MIN.log_start(),
                        end: lsn(self.primary.len()),
                        safe: Lsn::new(self.safe),
                        sealed: TimelineId::NONE,
                    };
                    let sender = WalSender::start(&upstream, &start, TIMEOUT_MS, self.now_ms);
                    self.sender = Some(sender.expect("a standby on the chain is taken on"));
                    self.receiver.handle_connected(self.now_ms);
                }
                Action::Disconnect => self.cut(),
                Action::Append { start, bytes } => {
                    assert_eq!(offset(start), self.standby.len(), "no gap and no overlap");
                    self.standby.extend_from_slice(&bytes);
                    self.receiver.appended(lsn(self.standby.len()));
                }
                Action::AdvanceSafe(safe) => self.standby_safe = self.standby_safe.max(safe),
                Action::SwitchTimeline(history) => {
                    let switch = history.switch_to(history.latest()).expect("the latest");
                    assert_eq!(offset(switch.switch_lsn), self.standby.len(), "it switches at its end");
                    self.timeline = history.latest();
                    self.receiver.switched(self.now_ms);
                }
            }
        }
    }

    fn sender_sends(&mut self) {
        if self.down.len() >= LINK_MESSAGES_MAX {
            return;
        }
        let Some(sender) = &mut self.sender else { return };
        let message = match sender.poll_transmit(self.now_ms) {
            None => return,
            Some(Transmit::Started(started)) => FromUpstream::Started(started),
            Some(Transmit::Read { from, upto, bytes_max }) => {
                // Pieces of at most 100 bytes, so that the log takes several.
                let end = offset(upto).min(offset(from) + bytes_max.min(100));
                let bytes = Bytes::copy_from_slice(&self.primary[offset(from)..end]);
                FromUpstream::Data(sender.data(from, bytes, 1))
            }
            Some(Transmit::Keepalive(keepalive)) => FromUpstream::Keepalive(Keepalive { send_time_us: 1, ..keepalive }),
            Some(Transmit::EndOfTimeline { next, switch_lsn }) => FromUpstream::EndOfTimeline { next, switch_lsn },
            Some(Transmit::FetchDone) => FromUpstream::FetchDone,
            Some(Transmit::Stopping { reason }) => FromUpstream::Stopping { reason },
        };
        self.down.push_back(message);
    }

    fn receiver_sends(&mut self) {
        if self.up.len() < LINK_MESSAGES_MAX
            && let Some(message) = self.receiver.poll_transmit(self.now_ms)
        {
            self.up.push_back(message);
        }
    }

    fn deliver_to_sender(&mut self) {
        match self.up.pop_front() {
            Some(FromStandby::Ack(ack)) => {
                if let Some(sender) = &mut self.sender {
                    sender.handle_ack(&ack, self.now_ms).expect("an honest acknowledgement");
                }
            }
            Some(FromStandby::Start(_)) => panic!("Start goes with Connect"),
            None => {}
        }
    }

    fn deliver_to_receiver(&mut self) {
        match self.down.pop_front() {
            Some(message) => self.receiver.handle_message(message, self.now_ms),
            None if self.sender.as_ref().is_none_or(WalSender::is_ended) => {
                self.receiver.handle_closed(None, self.now_ms)
            }
            None => {}
        }
        self.act();
    }

    fn positions(&mut self) {
        self.receiver.set_positions(lsn(self.standby.len()), lsn(self.flushed), lsn(self.applied));
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Append(count) => {
                let from = self.primary.len();
                self.primary.extend((from..from + count).map(|at| u8::try_from(at % 253).expect("a byte")));
                let end = lsn(self.primary.len());
                self.sender.iter_mut().for_each(|sender| sender.set_end(end));
            }
            Op::AdvanceSafe => {
                let acked = self.sender.as_ref().map_or(Lsn::INVALID, |sender| sender.acked().flush);
                self.safe = self.safe.max(acked.get());
                let safe = Lsn::new(self.safe);
                self.sender.iter_mut().for_each(|sender| sender.set_safe(safe));
            }
            Op::SenderSends => self.sender_sends(),
            Op::ReceiverSends => self.receiver_sends(),
            Op::ToReceiver => self.deliver_to_receiver(),
            Op::ToSender => self.deliver_to_sender(),
            Op::StandbyFlushes(count) => {
                self.flushed = self.standby.len().min(self.flushed + count);
                self.positions();
            }
            Op::StandbyApplies => {
                let safe = usize::try_from(self.standby_safe.get().saturating_sub(LOG_START)).expect("small");
                self.applied = self.applied.max(safe.min(self.flushed));
                self.positions();
            }
            Op::Cut => self.cut(),
            Op::LoseDown => drop(self.down.pop_front()),
            Op::LoseUp => drop(self.up.pop_front()),
            Op::StandbyCrashes => self.crash(),
            Op::Time(ms) => self.pass(ms),
        }
        self.act();
        self.check();
    }

    fn crash(&mut self) {
        self.cut();
        self.standby.truncate(self.flushed);
        self.standby_safe = Lsn::INVALID;
        // The chain is cut to what begins at or below the end.
        let end = lsn(self.standby.len());
        let begun = self
            .history
            .switches()
            .iter()
            .filter(|switch| switch.switch_lsn <= end && switch.timeline <= self.timeline);
        self.timeline = begun.map(|switch| switch.timeline).max().unwrap_or(TimelineId::NONE);
        let own = own_log(self.timeline, &self.standby, self.flushed, self.applied);
        self.receiver = WalReceiver::new(config(self.history.latest()), own, self.history.clone(), self.now_ms);
    }

    fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        self.receiver.handle_tick(self.now_ms);
        if self.sender.as_mut().is_some_and(|sender| sender.handle_tick(self.now_ms).is_err()) {
            self.cut();
        }
    }

    fn check(&self) {
        assert!(self.primary.starts_with(&self.standby), "INV-BYTES: the standby's log is a prefix of the primary's");
        if let Some(sender) = &self.sender {
            let acked = sender.acked();
            assert!(acked.flush <= lsn(self.flushed), "INV-DURABLE: acknowledged is flushed");
            assert!(acked.apply <= acked.flush && acked.flush <= acked.write && acked.write <= sender.sent());
        }
        assert!(self.standby_safe.get() <= self.safe, "nothing is taken for safe that is not");
        assert!(self.applied <= self.flushed);
        let end = lsn(self.standby.len());
        assert_eq!(self.history.position(understudy_types::Position::new(self.timeline, end)), end, "on the chain");
    }

    /// After a last cut nothing is lost any more.
    fn settle(&mut self) {
        self.cut();
        for _ in 0..10_000 {
            for op in [
                Op::SenderSends,
                Op::ToReceiver,
                Op::StandbyFlushes(usize::MAX / 2),
                Op::ReceiverSends,
                Op::ToSender,
                Op::AdvanceSafe,
                Op::StandbyApplies,
                Op::Time(20),
            ] {
                self.step(&op);
            }
            if self.is_settled() {
                return;
            }
        }
        panic!("it does not converge: {:?} {:?}", self.sender, self.receiver);
    }

    fn is_settled(&self) -> bool {
        let end = lsn(self.primary.len());
        self.standby == self.primary
            && self.applied == self.primary.len()
            && self.receiver.state() == StreamState::Streaming
            && self.sender.as_ref().is_some_and(|s| s.state() == StreamState::Streaming && s.acked().flush == end)
    }
}

fn own_log(timeline: TimelineId, standby: &[u8], flushed: usize, applied: usize) -> OwnLog {
    OwnLog {
        timeline,
        end: lsn(standby.len()),
        written: lsn(standby.len()),
        flushed: lsn(flushed),
        applied: lsn(applied),
    }
}

proptest! {
    #[test]
    fn they_converge_and_never_acknowledge_what_is_not_there(
        forks in proptest::collection::vec(0_usize..400, 0..4),
        had in 0_usize..1_200,
        ops in proptest::collection::vec(op(), 0..200),
    ) {
        let mut world = World::new(&forks, had);
        for op in &ops {
            world.step(op);
        }
        world.settle();
    }
}
