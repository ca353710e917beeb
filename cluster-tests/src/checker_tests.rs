//! The checker against hand-made histories, one bad one per rule, and against good ones that were made bad.

use proptest::prelude::*;
use proptest::sample::Index;
use understudy_types::TimelineSwitch;

use super::*;
use crate::history::Acknowledgement;

fn timelines(switches: &[(u32, u64)]) -> TimelineHistory {
    let mut history = TimelineHistory::new();
    for &(timeline, lsn) in switches {
        let parent = history.latest();
        let switch = TimelineSwitch { timeline: TimelineId::new(timeline), parent, switch_lsn: Lsn::new(lsn) };
        history.push(switch).expect("a continuation");
    }
    history
}

fn at(timeline: u32, lsn: u64) -> Position {
    Position::new(TimelineId::new(timeline), Lsn::new(lsn))
}

fn write(times: (Nanos, Nanos), key: &str, value: &str, outcome: WriteOutcome) -> Write {
    let (invoked, returned) = times;
    let outcome = match outcome {
        WriteOutcome::Acknowledged(answer) => WriteOutcome::Acknowledged(Acknowledgement { sent: invoked, ..answer }),
        other @ (WriteOutcome::Refused | WriteOutcome::Unknown) => other,
    };
    Write { invoked, returned, key: key.to_owned(), value: value.to_owned(), expected: Expected::Anything, outcome }
}

fn acknowledged(node: &str, position: Position) -> WriteOutcome {
    WriteOutcome::Acknowledged(Acknowledgement {
        node: node.to_owned(),
        position,
        already_done: false,
        sent: Nanos::MAX,
    })
}

fn read(times: (Nanos, Nanos), key: &str, seen: Option<(&str, Position)>, read_position: Position) -> Read {
    let (invoked, returned) = times;
    Read {
        invoked,
        returned,
        key: key.to_owned(),
        consistency: Consistency::Linearizable,
        node: "a".to_owned(),
        seen: seen.map(|(value, position)| (value.to_owned(), position)),
        read_position,
    }
}

/// Timeline 1 from 100; `a` writes x1, x2 and y1; timeline 2 leaves it at 400; `b` writes x3.
fn good() -> History {
    History {
        writes: vec![
            write((10, 20), "x", "x1", acknowledged("a", at(1, 200))),
            write((30, 40), "x", "x2", acknowledged("a", at(1, 300))),
            write((30, 45), "y", "y1", acknowledged("a", at(1, 400))),
            write((46, 90), "y", "y?", WriteOutcome::Unknown),
            write((60, 70), "x", "x3", acknowledged("b", at(2, 500))),
        ],
        reads: vec![
            read((21, 25), "x", Some(("x1", at(1, 200))), at(1, 200)),
            read((41, 43), "x", Some(("x2", at(1, 300))), at(1, 400)),
            read((5, 8), "x", None, at(1, 150)),
        ],
        finals: vec![
            read((100, 101), "x", Some(("x3", at(2, 500))), at(2, 500)),
            read((100, 101), "y", Some(("y1", at(1, 400))), at(2, 500)),
        ],
        ledger: crate::ledger::Ledger::default(),
        timelines: timelines(&[(1, 100), (2, 400)]),
    }
}

/// Checks that the only kind of violation is the one that matches, and that there is one.
fn assert_only(history: &History, expected: fn(&Violation) -> bool) {
    let violations = check(history);
    assert!(!violations.is_empty(), "nothing was found");
    assert!(violations.iter().all(expected), "{violations:#?}");
}

fn assert_found(history: &History, expected: fn(&Violation) -> bool) {
    let violations = check(history);
    assert!(violations.iter().any(expected), "{violations:#?}");
}

#[test]
fn a_good_history_passes() {
    assert_eq!(check(&good()), []);
}

#[test]
fn an_unknown_write_may_be_there() {
    let mut history = good();
    history.finals[1] = read((100, 101), "y", Some(("y?", at(2, 480))), at(2, 500));
    assert_eq!(check(&history), []);
}

#[test]
fn durable_a_commit_on_a_branch_that_was_left_is_lost() {
    // INV-DURABLE.
    let mut history = good();
    history.writes.push(write((48, 55), "z", "z1", acknowledged("a", at(1, 450))));
    history.finals.push(read((100, 101), "z", None, at(2, 500)));
    assert_only(&history, |violation| matches!(violation, Violation::Lost { .. }));
}

#[test]
fn durable_a_final_read_without_the_last_commit_is_a_loss() {
    // INV-DURABLE. Its own position is consistent, but behind: caught as loss, and as stale where linearizable.
    let mut history = good();
    history.finals[0] = read((100, 101), "x", Some(("x2", at(1, 300))), at(1, 400));
    history.finals[0].consistency = Consistency::Eventual;
    assert_only(&history, |violation| matches!(violation, Violation::Lost { .. }));
}

#[test]
fn a_key_that_nobody_read_in_the_end_proves_nothing() {
    let mut history = good();
    history.finals.remove(1);
    assert_only(&history, |violation| matches!(violation, Violation::NotReadInTheEnd { .. }));
}

#[test]
fn a_retried_commit_that_was_made_twice_is_found() {
    let mut history = good();
    history.finals[0] = read((100, 101), "x", Some(("x2", at(2, 600))), at(2, 600));
    assert_found(&history, |violation| matches!(violation, Violation::AppliedTwice { .. }));
}

#[test]
fn one_primary_two_commits_never_share_a_position() {
    // INV-ONE-PRIMARY.
    let mut history = good();
    history.writes[2].outcome = acknowledged("a", at(1, 300));
    assert_found(&history, |violation| matches!(violation, Violation::SamePosition { .. }));
}

#[test]
fn one_primary_two_nodes_never_acknowledge_on_one_timeline() {
    // INV-ONE-PRIMARY.
    let mut history = good();
    history.writes[1].outcome = acknowledged("c", at(1, 300));
    assert_only(&history, |violation| matches!(violation, Violation::TwoPrimaries { .. }));
}

#[test]
fn fenced_the_old_timeline_is_silent_after_the_first_acknowledgement_on_the_new() {
    // INV-FENCED.
    let old = |sent: Nanos, returned: Nanos| {
        let mut history = good();
        let mut answer = history.writes[2].acknowledgement().expect("acknowledged").clone();
        answer.sent = sent;
        (history.writes[2].returned, history.writes[2].outcome) = (returned, WriteOutcome::Acknowledged(answer));
        history
    };
    let is_old = |violation: &Violation| matches!(violation, Violation::OldTimeline { .. });
    // Sent after the first on the new timeline was there, or answered long after it.
    assert_only(&old(72, 75), is_old);
    assert_only(&old(30, 70 + NOTICED_WITHIN + 1), is_old);
    // Answered before perhaps, and noticed by the client a moment later.
    assert_eq!(check(&old(30, 75)), vec![]);
}

#[test]
fn a_repeated_outcome_may_name_the_old_timeline() {
    let mut history = good();
    history.writes[2].returned = 75;
    let WriteOutcome::Acknowledged(acknowledgement) = &mut history.writes[2].outcome else { panic!("acknowledged") };
    (acknowledgement.already_done, acknowledgement.node) = (true, "b".to_owned());
    assert_eq!(check(&history), []);
}

#[test]
fn linear_a_read_that_misses_an_acknowledged_commit_is_stale() {
    // INV-LINEAR: x2 was acknowledged at 40.
    let mut history = good();
    history.reads[1] = read((41, 43), "x", Some(("x1", at(1, 200))), at(1, 200));
    assert_only(&history, |violation| matches!(violation, Violation::Stale { .. }));
}

#[test]
fn linear_a_read_never_goes_back() {
    // INV-LINEAR: the first read saw 1/300 before the second, which is at 1/250, was asked; nothing was acknowledged.
    let mut history = good();
    history.writes[1].returned = 59;
    history.writes[2].returned = 59;
    history.reads = vec![
        read((31, 33), "x", Some(("x2", at(1, 300))), at(1, 300)),
        read((34, 36), "x", Some(("x1", at(1, 200))), at(1, 250)),
    ];
    assert_only(&history, |violation| matches!(violation, Violation::Stale { .. }));
    history.reads[1].consistency = Consistency::Eventual;
    assert_eq!(check(&history), []);
}

#[test]
fn a_commit_is_ordered_after_everything_before_it() {
    let mut history = good();
    history.writes[1].outcome = acknowledged("a", at(1, 150));
    history.reads.clear();
    assert_found(&history, |violation| matches!(violation, Violation::OrderedBeforeItsPast { .. }));
}

#[test]
fn order_a_read_gives_what_its_position_says() {
    // INV-ORDER: at 1/400 the latest x is x2, wherever it is read.
    let mut history = good();
    history.reads[1].seen = Some(("x1".to_owned(), at(1, 200)));
    history.reads[1].consistency = Consistency::Eventual;
    assert_only(&history, |violation| matches!(violation, Violation::WrongAtPosition { .. }));
    history.reads[1].seen = None;
    assert_only(&history, |violation| matches!(violation, Violation::WrongAtPosition { .. }));
}

#[test]
fn visible_nothing_that_was_seen_disappears() {
    // INV-VISIBLE: y? was read at 1/450, and timeline 2 leaves timeline 1 at 400.
    let mut history = good();
    let mut seen = read((50, 52), "y", Some(("y?", at(1, 450))), at(1, 450));
    seen.consistency = Consistency::Eventual;
    history.reads.push(seen);
    assert_found(&history, |violation| matches!(violation, Violation::Vanished { .. }));
}

#[test]
fn a_value_that_nobody_wrote_is_made_up() {
    let mut history = good();
    history.reads[1].seen = Some(("x9".to_owned(), at(1, 300)));
    assert_found(&history, |violation| matches!(violation, Violation::NeverWritten { .. }));
}

#[test]
fn a_value_is_not_read_before_it_is_asked_for() {
    let mut history = good();
    history.writes[4].invoked = 102;
    history.writes[4].returned = 103;
    history.reads.clear();
    assert_found(&history, |violation| matches!(violation, Violation::FromTheFuture { .. }));
}

#[test]
fn a_refused_commit_is_never_seen() {
    let mut history = good();
    history.writes[3].outcome = WriteOutcome::Refused;
    assert_eq!(check(&history), []);
    history.finals[1] = read((100, 101), "y", Some(("y?", at(2, 480))), at(2, 500));
    assert_only(&history, |violation| matches!(violation, Violation::RefusedButSeen { .. }));
}

#[test]
fn a_conditional_commit_follows_the_version_that_it_asked_for() {
    let mut history = good();
    history.writes[4].expected = Expected::Version(at(1, 300));
    history.writes[0].expected = Expected::Absent;
    assert_eq!(check(&history), []);
    history.writes[4].expected = Expected::Version(at(1, 200));
    assert_only(&history, |violation| matches!(violation, Violation::WrongPredecessor { .. }));
    history.writes[4].expected = Expected::Absent;
    assert_only(&history, |violation| matches!(violation, Violation::WrongPredecessor { .. }));
}

const KEYS: [&str; 3] = ["x", "y", "z"];

/// One step of a made-up run: what happens, to which key, and how long before and after its instant it was asked and
/// answered.
#[derive(Debug, Clone)]
struct Step {
    kind: u8,
    key: usize,
    early: Nanos,
    late: Nanos,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0..12_u8, 0..KEYS.len(), 1..250_u64, 1..250_u64);
    prop::collection::vec(step.prop_map(|(kind, key, early, late)| Step { kind, key, early, late }), 20..120)
}

/// A history that keeps every promise: one log, each operation takes effect at one instant of its interval.
struct Model {
    history: History,
    /// Key, value and position of every commit in the order of the log.
    log: Vec<(usize, String, Position)>,
    switches: Vec<(u32, u64)>,
    end: u64,
    now: Nanos,
}

impl Model {
    fn run(steps: &[Step]) -> History {
        let begin = 100;
        let history = History::default();
        let mut model = Self { history, log: Vec::new(), switches: vec![(1, begin)], end: begin, now: 1_000 };
        for (index, step) in steps.iter().enumerate() {
            model.step(index, step);
        }
        model.finish()
    }

    fn timeline(&self) -> u32 {
        self.switches.last().expect("a timeline").0
    }

    fn end(&self) -> Position {
        self.log.last().map_or(at(1, self.end), |(_, _, position)| *position)
    }

    fn latest(&self, key: usize, upto: Position) -> Option<(String, Position)> {
        let mut below = self.log.iter().rev().filter(|(other, _, position)| *other == key && position.lsn <= upto.lsn);
        below.next().map(|(_, value, position)| (value.clone(), *position))
    }

    fn step(&mut self, index: usize, step: &Step) {
        self.now += 100;
        let times = (self.now - step.early, self.now + step.late);
        match step.kind {
            // A failover: nobody who asked the old primary is answered by it afterwards.
            0 => {
                self.now += 1_000;
                let fork = (self.timeline() + 1, self.end);
                self.switches.push(fork);
            }
            1..=6 => self.commit(index, step, times),
            7 => {
                let outcome = if step.early.is_multiple_of(2) { WriteOutcome::Refused } else { WriteOutcome::Unknown };
                self.history.writes.push(write(times, KEYS[step.key], &format!("n{index}"), outcome));
            }
            8 => {
                // Any earlier end of the log will do.
                let upto = self.log.get(index % self.log.len().max(1)).map_or(self.end(), |(_, _, position)| *position);
                self.read(step.key, times, upto, Consistency::Eventual);
            }
            _ => self.read(step.key, times, self.end(), Consistency::Linearizable),
        }
    }

    fn commit(&mut self, index: usize, step: &Step, times: (Nanos, Nanos)) {
        let previous = self.latest(step.key, self.end());
        self.end += 10 + step.early;
        let position = at(self.timeline(), self.end);
        let value = format!("v{index}");
        let node = format!("n{}", self.timeline());
        let unknown = step.kind == 6;
        let outcome = if unknown { WriteOutcome::Unknown } else { acknowledged(&node, position) };
        let mut write = write(times, KEYS[step.key], &value, outcome);
        if step.kind == 5 {
            write.expected = previous.map_or(Expected::Absent, |(_, position)| Expected::Version(position));
        }
        self.history.writes.push(write);
        self.log.push((step.key, value, position));
        if unknown {
            // Seen by somebody at once: otherwise nobody could tell where it stands.
            self.read(step.key, (self.now + 1, self.now + 2), position, Consistency::Eventual);
        }
    }

    fn read(&mut self, key: usize, times: (Nanos, Nanos), upto: Position, consistency: Consistency) {
        let seen = self.latest(key, upto);
        let seen = seen.as_ref().map(|(value, position)| (value.as_str(), *position));
        let mut read = read(times, KEYS[key], seen, upto);
        read.consistency = consistency;
        self.history.reads.push(read);
    }

    fn finish(mut self) -> History {
        self.now += 10_000;
        for key in 0..KEYS.len() {
            self.read(key, (self.now, self.now + 1), self.end(), Consistency::Linearizable);
        }
        let finals = self.history.reads.split_off(self.history.reads.len() - KEYS.len());
        self.history.finals = finals;
        self.history.timelines = timelines(&self.switches);
        self.history
    }
}

/// Breaks a promise in a good history; none when the history has nothing that this can be done to.
fn mutate(history: &mut History, kind: u8, pick: &Index) -> Option<()> {
    let acks: Vec<usize> =
        (0..history.writes.len()).filter(|i| history.writes[*i].acknowledgement().is_some()).collect();
    let chosen = *(!acks.is_empty()).then(|| pick.get(&acks))?;
    let position = history.writes[chosen].acknowledgement()?.position;
    match kind {
        // The last acknowledged commit of a key is missing in the end.
        0 => {
            let key = history.writes[chosen].key.clone();
            let last = history.finals.iter_mut().find(|read| read.key == key)?;
            last.seen = None;
        }
        // A commit is acknowledged where another one stands.
        1 => {
            let other = *acks.iter().find(|other| **other != chosen)?;
            let node = history.writes[other].acknowledgement()?.node.clone();
            history.writes[other].outcome = acknowledged(&node, position);
        }
        // Another node acknowledges on the same timeline.
        2 => {
            let same = |other: &&usize| {
                let there = history.writes[**other].acknowledgement();
                **other != chosen && there.is_some_and(|there| there.position.timeline == position.timeline)
            };
            acks.iter().find(same)?;
            history.writes[chosen].outcome = acknowledged("intruder", position);
        }
        // What was sent after the first acknowledgement on a later timeline is acknowledged.
        3 => {
            let later = |other: &&usize| {
                let there = history.writes[**other].acknowledgement();
                there.is_some_and(|there| there.position.timeline > position.timeline)
            };
            let first = acks.iter().filter(later).map(|other| history.writes[*other].returned).min()?;
            history.writes[chosen].returned = first + 1;
            let node = history.writes[chosen].acknowledgement()?.node.clone();
            history.writes[chosen].outcome = acknowledged(&node, position);
        }
        // A linearizable read is behind what was acknowledged before it.
        4 => {
            let returned = history.writes[chosen].returned;
            let read = history.finals.iter_mut().find(|read| read.invoked > returned)?;
            read.read_position = at(1, 100);
            read.seen = None;
        }
        // A value shows up again.
        5 => {
            let read = history.finals.iter_mut().find(|read| read.key == history.writes[chosen].key)?;
            let again = Position::new(read.read_position.timeline, read.read_position.lsn.advance(50));
            read.seen = Some((history.writes[chosen].value.clone(), again));
            read.read_position = again;
        }
        // Two commits, one after the other, stand the other way round.
        6 => {
            let before = |other: &&usize| history.writes[**other].returned < history.writes[chosen].invoked;
            let other = *acks.iter().find(before)?;
            let swapped = history.writes[other].outcome.clone();
            history.writes[other].outcome = std::mem::replace(&mut history.writes[chosen].outcome, swapped);
        }
        // Something that nobody wrote.
        7 => history.finals[0].seen = Some(("nobody".to_owned(), position)),
        // A commit on a branch that was left.
        _ => {
            let fork = *history.timelines.switches().last().filter(|switch| switch.timeline > TimelineId::FIRST)?;
            let node = history.writes[chosen].acknowledgement()?.node.clone();
            let left = Position::new(fork.parent, fork.switch_lsn.advance(1));
            history.writes[chosen].outcome = acknowledged(&node, left);
        }
    }
    Some(())
}

#[test]
fn every_kind_of_broken_promise_is_tried() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let strategy = (steps(), any::<Index>());
    let mut tried = [0; 9];
    for _ in 0..100 {
        let (steps, pick) = strategy.new_tree(&mut runner).expect("a run").current();
        for (kind, count) in (0_u8..).zip(&mut tried) {
            *count += usize::from(mutate(&mut Model::run(&steps), kind, &pick).is_some());
        }
    }
    assert!(tried.iter().all(|count| *count >= 20), "{tried:?}");
}

proptest! {
    #[test]
    fn good_histories_pass(steps in steps()) {
        let history = Model::run(&steps);
        prop_assert_eq!(check(&history), vec![]);
    }

    #[test]
    fn a_broken_promise_is_found(steps in steps(), kind in 0..9_u8, pick: Index) {
        let mut history = Model::run(&steps);
        if mutate(&mut history, kind, &pick).is_some() {
            prop_assert!(!check(&history).is_empty(), "mutation {} was not found", kind);
        }
    }
}
