//! Judges a history: does what clients saw agree with what Understudy promises?
//!
//! Every acknowledgement and every read carries a position, and in the end there is one chain of timelines. So the
//! order in which commits took effect is not searched for, it is given: the order of their LSNs along the chain.
//! The checker replays the history in that order and compares it with real time.
//!
//! | rule | promise | violation |
//! |---|---|---|
//! | an acknowledged commit lies on the chain, and the final reads show it or what came after it | INV-DURABLE | [`Violation::Lost`], [`Violation::NotReadInTheEnd`] |
//! | one value stands at one position | exactly once | [`Violation::AppliedTwice`] |
//! | one position holds one commit | INV-ONE-PRIMARY | [`Violation::SamePosition`] |
//! | one node acknowledges on a timeline | INV-ONE-PRIMARY | [`Violation::TwoPrimaries`] |
//! | no acknowledgement on a timeline of what was sent after the first on a later one, or long after that | INV-FENCED | [`Violation::OldTimeline`] |
//! | a linearizable read is at or behind nothing acknowledged or read before it was asked | INV-LINEAR | [`Violation::Stale`] |
//! | a commit is ordered after everything answered before it was asked | strict serializability | [`Violation::OrderedBeforeItsPast`] |
//! | a read at a position gives what was written last at or below it | INV-ORDER | [`Violation::WrongAtPosition`] |
//! | nothing that was seen lies off the chain | INV-VISIBLE | [`Violation::Vanished`] |
//! | what is seen was asked for before, and was not refused | | [`Violation::NeverWritten`], [`Violation::FromTheFuture`], [`Violation::RefusedButSeen`] |
//! | a conditional commit directly follows the version that it asked for | | [`Violation::WrongPredecessor`] |
//!
//! A write with an unknown outcome may be there or not; once somebody has seen it, it counts as a commit at the
//! position that was seen.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Bound;

use understudy_types::{Lsn, Position, TimelineHistory, TimelineId};

use crate::history::{Consistency, Expected, History, Nanos, Read, Write, WriteOutcome};

/// How long after its arrival a client may notice an answer: its thread may have to wait for a processor.
pub const NOTICED_WITHIN: Nanos = 1_000_000_000;

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are what the message names")]
pub enum Violation {
    Lost {
        value: String,
        position: Position,
        found: Option<Position>,
    },
    NotReadInTheEnd {
        key: String,
    },
    AppliedTwice {
        value: String,
        positions: [Position; 2],
    },
    SamePosition {
        position: Position,
        values: [String; 2],
    },
    TwoPrimaries {
        timeline: TimelineId,
        nodes: [String; 2],
    },
    OldTimeline {
        value: String,
        timeline: TimelineId,
        later: TimelineId,
        after: Nanos,
    },
    Stale {
        key: String,
        node: String,
        read: Lsn,
        required: Lsn,
        invoked: Nanos,
    },
    OrderedBeforeItsPast {
        value: String,
        position: Position,
        past: Lsn,
    },
    WrongAtPosition {
        key: String,
        node: String,
        read_position: Position,
        found: Option<Position>,
        expected: Option<Position>,
    },
    Vanished {
        key: String,
        node: String,
        position: Position,
    },
    NeverWritten {
        key: String,
        value: String,
    },
    FromTheFuture {
        value: String,
        returned: Nanos,
        invoked: Nanos,
    },
    RefusedButSeen {
        value: String,
        position: Position,
    },
    WrongPredecessor {
        value: String,
        position: Position,
        expected: Expected,
        found: Option<Position>,
    },
}

/// Everything that is wrong with the history; empty when it keeps all promises.
pub fn check(history: &History) -> Vec<Violation> {
    let mut checker = Checker::new(history);
    checker.collect_acknowledged();
    checker.collect_seen();
    checker.check_timelines();
    checker.check_real_time();
    checker.check_reads_at_positions();
    checker.check_predecessors();
    checker.check_finals();
    checker.violations
}

struct Checker<'a> {
    history: &'a History,
    by_value: HashMap<&'a str, &'a Write>,
    /// Where each value stands, as acknowledged or seen.
    positions: HashMap<&'a str, Position>,
    /// Per key, every known commit on the chain, in LSN order.
    commits: HashMap<&'a str, BTreeMap<Lsn, Position>>,
    violations: Vec<Violation>,
}

impl<'a> Checker<'a> {
    fn new(history: &'a History) -> Self {
        let by_value = history.writes.iter().map(|write| (write.value.as_str(), write)).collect();
        Self { history, by_value, positions: HashMap::new(), commits: HashMap::new(), violations: Vec::new() }
    }

    fn all_reads(&self) -> impl Iterator<Item = &'a Read> + use<'a> {
        self.history.reads.iter().chain(&self.history.finals)
    }

    fn collect_acknowledged(&mut self) {
        let mut taken: HashMap<Position, &str> = HashMap::new();
        for write in &self.history.writes {
            let Some(acknowledgement) = write.acknowledgement() else { continue };
            let position = acknowledgement.position;
            if let Some(other) = taken.insert(position, &write.value) {
                let values = [other.to_owned(), write.value.clone()];
                self.violations.push(Violation::SamePosition { position, values });
            }
            self.positions.insert(&write.value, position);
            if on_chain(&self.history.timelines, position) {
                self.commits.entry(&write.key).or_default().insert(position.lsn, position);
            } else {
                self.violations.push(Violation::Lost { value: write.value.clone(), position, found: None });
            }
        }
    }

    fn collect_seen(&mut self) {
        for read in self.all_reads() {
            let timelines = &self.history.timelines;
            if timelines.position(read.read_position) != read.read_position.lsn {
                self.vanished(read, read.read_position);
            }
            let Some((value, position)) = &read.seen else { continue };
            let Some(write) = self.by_value.get(value.as_str()).copied().filter(|write| write.key == read.key) else {
                self.violations.push(Violation::NeverWritten { key: read.key.clone(), value: value.clone() });
                continue;
            };
            if write.outcome == WriteOutcome::Refused {
                self.violations.push(Violation::RefusedButSeen { value: value.clone(), position: *position });
            }
            if write.invoked >= read.returned {
                let (returned, invoked) = (read.returned, write.invoked);
                self.violations.push(Violation::FromTheFuture { value: value.clone(), returned, invoked });
            }
            let known = *self.positions.entry(&write.value).or_insert(*position);
            if known != *position {
                self.violations.push(Violation::AppliedTwice { value: value.clone(), positions: [known, *position] });
            }
            if on_chain(timelines, *position) {
                self.commits.entry(&write.key).or_default().insert(position.lsn, *position);
            } else {
                self.vanished(read, *position);
            }
        }
    }

    fn vanished(&mut self, read: &Read, position: Position) {
        self.violations.push(Violation::Vanished { key: read.key.clone(), node: read.node.clone(), position });
    }

    /// One node a timeline, and no acknowledgement on one after the first on a later one. A repeated outcome names
    /// the timeline of its first run and says nothing about the timeline of the node that repeats it. Two clients' clocks say when each
    /// noticed its answer, not when it was given: so the answer to what was sent after the first one on the later timeline counts, and
    /// any that was noticed more than [`NOTICED_WITHIN`] after it.
    fn check_timelines(&mut self) {
        let mut fresh: Vec<_> =
            self.history.writes.iter().filter_map(|write| Some((write, write.acknowledgement()?))).collect();
        fresh.retain(|(_, acknowledgement)| !acknowledgement.already_done);
        fresh.sort_by_key(|(write, _)| write.returned);
        let mut nodes: BTreeMap<TimelineId, &str> = BTreeMap::new();
        let mut latest = (TimelineId::NONE, 0);
        for (write, acknowledgement) in fresh {
            let timeline = acknowledgement.position.timeline;
            let node = *nodes.entry(timeline).or_insert(&acknowledgement.node);
            if node != acknowledgement.node {
                let nodes = [node.to_owned(), acknowledgement.node.clone()];
                self.violations.push(Violation::TwoPrimaries { timeline, nodes });
            }
            let (later, since) = latest;
            if timeline > later {
                latest = (timeline, write.returned);
            } else if timeline < later && (acknowledgement.sent >= since || write.returned - since > NOTICED_WITHIN) {
                let after = write.returned - since;
                self.violations.push(Violation::OldTimeline { value: write.value.clone(), timeline, later, after });
            }
        }
    }

    /// What was answered before an operation was asked must lie below it.
    fn check_real_time(&mut self) {
        let linearizable = |read: &&Read| read.consistency == Consistency::Linearizable;
        let acknowledged =
            self.history.writes.iter().filter_map(|w| Some((w.returned, w.acknowledgement()?.position.lsn)));
        let written = Floor::new(acknowledged.clone());
        let confirmed = self.all_reads().filter(linearizable).map(|read| (read.returned, read.read_position.lsn));
        let required_of_reads = Floor::new(acknowledged.chain(confirmed));
        let read = Floor::new(self.all_reads().map(|read| (read.returned, read.read_position.lsn)));
        for read in self.all_reads().filter(linearizable) {
            let required = required_of_reads.before(read.invoked);
            if read.read_position.lsn < required {
                let (key, node) = (read.key.clone(), read.node.clone());
                let (read, invoked) = (read.read_position.lsn, read.invoked);
                self.violations.push(Violation::Stale { key, node, read, required, invoked });
            }
        }
        for write in &self.history.writes {
            let past = written.before(write.invoked).max(read.before(write.invoked));
            match self.positions.get(write.value.as_str()) {
                Some(&position) if position.lsn <= past => {
                    self.violations.push(Violation::OrderedBeforeItsPast {
                        value: write.value.clone(),
                        position,
                        past,
                    });
                }
                Some(_) | None => {}
            }
        }
    }

    fn latest_before(&self, key: &str, bound: Bound<Lsn>) -> Option<Position> {
        let commits = self.commits.get(key)?;
        commits.range((Bound::Unbounded, bound)).next_back().map(|(_, position)| *position)
    }

    fn check_reads_at_positions(&mut self) {
        for read in self.all_reads() {
            let expected = self.latest_before(&read.key, Bound::Included(read.read_position.lsn));
            let found = read.seen.as_ref().map(|(_, position)| *position);
            if found != expected {
                let (key, node, read_position) = (read.key.clone(), read.node.clone(), read.read_position);
                self.violations.push(Violation::WrongAtPosition { key, node, read_position, found, expected });
            }
        }
    }

    fn check_predecessors(&mut self) {
        for write in &self.history.writes {
            let wanted = match write.expected {
                Expected::Anything => continue,
                Expected::Absent => None,
                Expected::Version(position) => Some(position),
            };
            let Some(&position) = self.positions.get(write.value.as_str()) else { continue };
            let found = self.latest_before(&write.key, Bound::Excluded(position.lsn));
            if found != wanted {
                let (value, expected) = (write.value.clone(), write.expected);
                self.violations.push(Violation::WrongPredecessor { value, position, expected, found });
            }
        }
    }

    fn check_finals(&mut self) {
        let mut finals: HashMap<&str, Vec<&Read>> = HashMap::new();
        for read in &self.history.finals {
            finals.entry(&read.key).or_default().push(read);
        }
        for write in &self.history.writes {
            let Some(acknowledgement) = write.acknowledgement() else { continue };
            let position = acknowledgement.position;
            let Some(reads) = finals.get(write.key.as_str()) else {
                self.violations.push(Violation::NotReadInTheEnd { key: write.key.clone() });
                continue;
            };
            for read in reads {
                let found = read.seen.as_ref().map(|(_, position)| *position);
                if found.is_none_or(|found| found.lsn < position.lsn) {
                    self.violations.push(Violation::Lost { value: write.value.clone(), position, found });
                }
            }
        }
    }
}

/// Whether a record that ends at `position` is part of the chain.
fn on_chain(timelines: &TimelineHistory, position: Position) -> bool {
    let spans = timelines.spans();
    let span = spans.iter().find(|span| span.timeline == position.timeline);
    span.is_some_and(|span| span.begin < position.lsn && span.end.is_none_or(|end| position.lsn <= end))
}

/// The highest LSN that was answered before a time.
pub(crate) struct Floor {
    /// Times ascending, LSNs never descending.
    steps: Vec<(Nanos, Lsn)>,
}

impl Floor {
    pub(crate) fn new(answers: impl Iterator<Item = (Nanos, Lsn)>) -> Self {
        let mut steps: Vec<(Nanos, Lsn)> = answers.collect();
        steps.sort_unstable();
        let mut highest = Lsn::INVALID;
        for (_, lsn) in &mut steps {
            highest = highest.max(*lsn);
            *lsn = highest;
        }
        Self { steps }
    }

    pub(crate) fn before(&self, time: Nanos) -> Lsn {
        let count = self.steps.partition_point(|(returned, _)| *returned < time);
        count.checked_sub(1).map_or(Lsn::INVALID, |last| self.steps[last].1)
    }
}

fn shown(position: Option<Position>) -> String {
    position.map_or_else(|| "nothing".to_owned(), |position| position.to_string())
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { value, position, found } => {
                write!(f, "lost: {value} was acknowledged at {position}, found in the end: {}", shown(*found))
            }
            Self::NotReadInTheEnd { key } => write!(f, "not checked: nobody read {key} in the end"),
            Self::AppliedTwice { value, positions: [one, other] } => {
                write!(f, "applied twice: {value} stands at {one} and at {other}")
            }
            Self::SamePosition { position, values: [one, other] } => {
                write!(f, "one position, two commits: {one} and {other} were both acknowledged at {position}")
            }
            Self::TwoPrimaries { timeline, nodes: [one, other] } => {
                write!(f, "two primaries: {one} and {other} both acknowledged on timeline {timeline}")
            }
            Self::OldTimeline { value, timeline, later, after } => {
                let ms = after / 1_000_000;
                write!(
                    f,
                    "not fenced: {value} was acknowledged on timeline {timeline}, {ms} ms after the first on {later}"
                )
            }
            Self::Stale { key, node, read, required, invoked } => {
                let ms = invoked / 1_000_000;
                write!(
                    f,
                    "stale: the linearizable read of {key} at {node}, asked at {ms} ms, is at {read}, before {required}"
                )
            }
            Self::OrderedBeforeItsPast { value, position, past } => {
                write!(f, "order: {value} stands at {position}, but {past} had been answered before it was asked")
            }
            Self::WrongAtPosition { key, node, read_position, found, expected } => write!(
                f,
                "wrong answer: {key} at {node}, read at {read_position}: found the commit at {}, the latest is that at {}",
                shown(*found),
                shown(*expected)
            ),
            Self::Vanished { key, node, position } => {
                write!(f, "vanished: {node} answered a read of {key} with {position}, which is not on the chain")
            }
            Self::NeverWritten { key, value } => write!(f, "made up: {key} had {value}, which nobody wrote there"),
            Self::FromTheFuture { value, returned, invoked } => {
                write!(f, "from the future: {value} was read by {returned} ns and asked for at {invoked} ns")
            }
            Self::RefusedButSeen { value, position } => write!(f, "refused, yet {value} stands at {position}"),
            Self::WrongPredecessor { value, position, expected, found } => {
                write!(f, "condition: {value} at {position} asked for {expected:?}, but follows {}", shown(*found))
            }
        }
    }
}

#[cfg(test)]
#[path = "checker_tests.rs"]
mod tests;
