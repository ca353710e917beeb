//! Runs the scenarios of `scenarios/*.txt`: one event a line, and under it what it changed.
//!
//! A line that begins with a space is the expected outcome, one that begins with `#` a comment. The nodes are a (the
//! primary), b, c and d. Every mismatch prints the scenario as it is.
//!
//! | event | |
//! |---|---|
//! | `setting TEXT`, `mode MODE` | before `open`: as the cluster begins; after: changed and applied |
//! | `configure NAME=TEXT` | Configure is committed, and applied here, if Raft carries it out |
//! | `list K of {b, c}`, `open F` | the promotion |
//! | `a flushes N` | the local flush |
//! | `b connects`, `b catches up`, `b streams`, `b acks N`, `b leaves` | b's newest connection |
//! | `b writes N`, `b flushes N`, `b applies N` | acknowledges that alone, the rest as before |
//! | `positions` | prints the three that are published |
//! | `waits LEVEL N` | prints for whom a commit waits |
//! | `old b acks N`, `old b leaves` | the connection before that |
//! | `b beats` | b's report: its process, its damage |
//! | `b restarts`, `b loses its WAL` | told to nobody yet; the second counts a damage epoch |
//! | `b is cleared` | ClearDamage is committed and applied here, if Raft carries it out |
//! | `b wants no_sync` | it is started so: its next beats say it |
//! | `b no_sync` | Retag is committed, and applied here, if Raft carries it out |
//! | `propose` | what the manager gives out is sent, and not lost |
//! | `raft commits` | carries out what was sent, unknown to a |
//! | `raft commits another` | carries out some other command before it, unknown to a |
//! | `learn` | a applies all that was committed |
//! | `election`, `promote c` | committed and applied here |
//! | `grace over` | |

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use understudy_types::{DurabilityLevel, Generation, Incarnation, Lsn, NodeId, SystemId, TimelineId, TimelineSwitch};

use super::{Ack, ConnectionId, Report, SyncManager, WalSenderState};
use crate::command::{Command, Outcome, apply};
use crate::state::{ClusterState, HistoryEntry, Member, SyncList};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn id(name: &str) -> NodeId {
    let at = NAMES.iter().position(|known| *known == name).unwrap_or_else(|| panic!("no node {name}"));
    NodeId::new(1 + at as u64)
}

fn name(node: NodeId) -> &'static str {
    NAMES[usize::try_from(node.get()).expect("small") - 1]
}

fn lsn(text: &str) -> Lsn {
    Lsn::new(text.parse().unwrap_or_else(|_| panic!("no LSN: {text}")))
}

fn shown(list: &SyncList) -> String {
    let members: Vec<&str> = list.members.iter().copied().map(name).collect();
    format!("{} of {{{}}} {}", list.acks, members.join(", "), list.mode)
}

#[derive(Default)]
struct Standby {
    acked: Ack,
    connections: Vec<ConnectionId>,
    incarnation: u64,
    damage_epoch: u64,
    damaged: bool,
    no_sync: bool,
}

#[derive(Default)]
struct Scene {
    raft: ClusterState,
    unlearnt: Vec<ClusterState>,
    sent: Option<Command>,
    standbys: BTreeMap<NodeId, Standby>,
    manager: Option<SyncManager>,
    connections: u64,
}

impl Scene {
    fn new() -> Self {
        let mut scene = Self::default();
        scene.raft.system_id = SystemId::new(1);
        scene.raft.generation = Generation::new(3);
        for name in NAMES {
            let member = Member {
                name: name.parse().expect("a name"),
                address: format!("{name}:1"),
                voter: true,
                witness: false,
                failover_priority: 1,
                no_sync: false,
            };
            scene.raft.members.insert(id(name), member);
        }
        scene
    }

    fn open(&mut self, f: Lsn) {
        let switch = TimelineSwitch { timeline: TimelineId::FIRST, parent: TimelineId::NONE, switch_lsn: f };
        let (incarnation, reason) = (Incarnation::new(1), String::new());
        self.raft.history = vec![HistoryEntry { switch, safe_lsn: f, node: id("a"), incarnation, reason, time_ms: 0 }];
        self.manager = Some(SyncManager::new(id("a"), TimelineId::FIRST, f, &self.raft));
    }

    fn manager(&mut self) -> &mut SyncManager {
        self.manager.as_mut().expect("the scenario has opened the timeline")
    }

    /// Another command than SetSync; learnt at once when the timeline is open.
    fn changes(&mut self, change: impl FnOnce(&mut ClusterState)) {
        change(&mut self.raft);
        self.raft.generation = self.raft.generation.next();
        self.unlearnt.push(self.raft.clone());
        if self.manager.is_some() {
            self.learn();
        }
    }

    fn learn(&mut self) {
        for state in std::mem::take(&mut self.unlearnt) {
            self.manager().handle_cluster_state(&state);
        }
    }

    fn commit(&mut self, command: &Command) -> String {
        match apply(&mut self.raft, command) {
            Outcome::Applied { .. } => {
                self.unlearnt.push(self.raft.clone());
                String::new()
            }
            Outcome::Rejected { .. } => "  rejected\n".to_owned(),
        }
    }

    /// Returns what is worth a line beside the manager's status.
    fn run(&mut self, event: &str) -> String {
        let words: Vec<&str> = event.split_whitespace().collect();
        match words.as_slice() {
            ["setting", ..] => {
                let text = event.trim_start_matches("setting").trim().to_owned();
                self.changes(|raft| raft.settings.synchronous_standby_names = text);
            }
            ["mode", mode] => {
                let mode = mode.parse().expect("a mode");
                self.changes(|raft| raft.settings.sync_mode = mode);
            }
            ["configure", ..] => {
                let (name, text) = event.trim_start_matches("configure ").split_once('=').expect("NAME=TEXT");
                let changes = BTreeMap::from([(name.to_owned(), text.to_owned())]);
                let outcome = self.commit(&Command::Configure { generation: self.raft.generation, changes });
                self.learn();
                return outcome;
            }
            ["list", acks, "of", members @ ..] => {
                let members = members.iter().map(|word| word.trim_matches(['{', '}', ',']));
                let members = members.filter(|word| !word.is_empty()).map(id).collect();
                let mode = self.raft.settings.sync_mode;
                self.raft.sync = SyncList { mode, members, acks: acks.parse().expect("a number") };
            }
            ["open", f] => self.open(lsn(f)),
            ["grace", "over"] => self.manager().handle_grace_over(),
            ["learn"] => self.learn(),
            ["election"] => {
                let generation = self.raft.generation;
                let command =
                    Command::BeginElection { generation, timeline: TimelineId::new(2), reason: String::new() };
                let outcome = self.commit(&command);
                self.learn();
                return outcome;
            }
            ["promote", winner] => return self.promote(id(winner)),
            ["propose"] => return self.propose(),
            ["raft", "commits"] => {
                return self
                    .sent
                    .clone()
                    .map_or("  nothing was proposed\n".to_owned(), |command| self.commit(&command));
            }
            ["raft", "commits", "another"] => {
                self.raft.generation = self.raft.generation.next();
                self.unlearnt.push(self.raft.clone());
            }
            ["positions"] => {
                let manager = self.manager();
                let (written, applied) = (manager.remote_write_lsn(), manager.remote_apply_lsn());
                let safe = manager.safe_lsn();
                return format!("  written {}, safe {}, applied {}\n", written.get(), safe.get(), applied.get());
            }
            ["waits", level, at] => return self.waits(level.parse().expect("a level"), lsn(at)),
            ["a", "flushes", at] => self.manager().handle_local_flush(lsn(at)),
            ["old", who, rest @ ..] => self.of_standby(id(who), rest, 1),
            [who, "is", "cleared"] => return self.clear(id(who)),
            [who, "no_sync"] => return self.tag_no_sync(id(who)),
            [who, rest @ ..] => self.of_standby(id(who), rest, 0),
            [] => unreachable!("empty lines are not events"),
        }
        String::new()
    }

    fn of_standby(&mut self, node: NodeId, what: &[&str], back: usize) {
        let standby = self.standbys.entry(node).or_insert_with(|| Standby { incarnation: 1, ..Standby::default() });
        let newest = standby.connections.iter().rev().nth(back).copied();
        let incarnation = Incarnation::new(standby.incarnation);
        let (damaged, damage_epoch, no_sync) = (standby.damaged, standby.damage_epoch, standby.no_sync);
        let connection = || newest.expect("a connection");
        let manager = self.manager.as_mut().expect("the scenario has opened the timeline");
        match what {
            ["connects"] => {
                self.connections += 1;
                let connection = ConnectionId::new(self.connections);
                standby.connections.push(connection);
                manager.handle_connected(connection, node, incarnation, damage_epoch);
            }
            ["catches", "up"] => manager.handle_state(connection(), WalSenderState::Catchup),
            ["streams"] => manager.handle_state(connection(), WalSenderState::Streaming),
            [what @ ("acks" | "writes" | "flushes" | "applies"), at] => {
                for (positions, moved) in [
                    (&mut standby.acked.write, ["acks", "writes"]),
                    (&mut standby.acked.flush, ["acks", "flushes"]),
                    (&mut standby.acked.apply, ["acks", "applies"]),
                ] {
                    *positions = if moved.contains(what) { lsn(at) } else { *positions };
                }
                manager.handle_ack(connection(), standby.acked);
            }
            ["leaves"] => manager.handle_disconnected(connection()),
            ["beats"] => manager.handle_report(node, Report { incarnation, damaged, damage_epoch, no_sync }),
            ["wants", "no_sync"] => standby.no_sync = true,
            ["restarts"] => standby.incarnation += 1,
            ["loses", "its", "WAL"] => {
                standby.damaged = true;
                standby.damage_epoch += 1;
                standby.incarnation += 1;
            }
            other => panic!("no event {other:?}"),
        }
    }

    fn waits(&mut self, level: DurabilityLevel, at: Lsn) -> String {
        let waits = self.manager().waits_for(level, at);
        let mut parts: Vec<String> = waits.nodes.iter().map(|node| name(*node).to_owned()).collect();
        if waits.own_flush {
            parts.push("the own disk".to_owned());
        }
        if parts.is_empty() {
            parts.push("nobody".to_owned());
        }
        let too_few = waits.too_few.map(|few| format!("; {} must, {} can", few.acks, few.connected));
        format!("  waits for {}{}\n", parts.join(", "), too_few.unwrap_or_default())
    }

    fn clear(&mut self, node: NodeId) -> String {
        let damage_epoch = self.standbys[&node].damage_epoch;
        let outcome = self.commit(&Command::ClearDamage { generation: self.raft.generation, node, damage_epoch });
        if outcome.is_empty() {
            self.standbys.get_mut(&node).expect("known").damaged = false;
        }
        self.learn();
        outcome
    }

    fn tag_no_sync(&mut self, node: NodeId) -> String {
        let generation = self.raft.generation;
        let outcome = self.commit(&Command::Retag { generation, node, failover_priority: 1, no_sync: true });
        self.learn();
        outcome
    }

    fn promote(&mut self, node: NodeId) -> String {
        let generation = self.raft.generation;
        let outcome = self.commit(&Command::Promote {
            generation,
            timeline: TimelineId::new(2),
            node,
            incarnation: Incarnation::new(1),
            switch_lsn: Lsn::new(1_000),
            safe_lsn: Lsn::new(1_000),
            sync: SyncList::default(),
            time_ms: 0,
        });
        self.learn();
        outcome
    }

    fn propose(&mut self) -> String {
        let Some(command) = self.manager().poll_proposal() else {
            return "  nothing to propose\n".to_owned();
        };
        let Command::SetSync { generation, sync, damage_epochs, .. } = &command else {
            panic!("not a SetSync: {command:?}")
        };
        let damaged = damage_epochs.iter().filter(|(_, epoch)| **epoch > 0);
        let epochs: String =
            damaged.map(|(node, epoch)| format!(", {} at damage epoch {epoch}", name(*node))).collect();
        let again = if self.sent.as_ref() == Some(&command) { "again " } else { "" };
        let said = format!("  proposes {again}against {generation}: {}{epochs}\n", shown(sync));
        self.sent = Some(command);
        said
    }

    fn describe(&self) -> Option<String> {
        let status = self.manager.as_ref()?.status();
        let mut text = String::new();
        let list = shown(&status.list);
        let also = status.change.as_ref().map_or(String::new(), |change| {
            let stage = if change.proposed.is_some() { "outstanding" } else { "prepared" };
            format!(", {stage} {}", shown(&change.list))
        });
        let states: Vec<String> = status
            .standbys
            .iter()
            .filter(|(_, standby)| standby.connection.is_some() || standby.state.as_str() != "async")
            .map(|(node, standby)| {
                format!("{} {}{}", name(*node), standby.state, if standby.damaged { " damaged" } else { "" })
            })
            .collect();
        writeln!(text, "  safe {}; {list}{also}; {}", status.safe_lsn.get(), states.join(", ")).expect("a string");
        for wait in status.waits {
            let mut wait = wait.to_string();
            for name in NAMES {
                wait = wait.replace(&id(name).to_string(), name);
            }
            writeln!(text, "  - {wait}").expect("a string");
        }
        Some(text)
    }
}

/// The scenario with the outcomes as they are.
fn play(scenario: &str) -> String {
    let mut scene = Scene::new();
    let mut before = None;
    let mut played = String::new();
    for line in scenario.lines().filter(|line| !line.starts_with(' ')) {
        writeln!(played, "{line}").expect("a string");
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        played.push_str(&scene.run(line));
        let now = scene.describe();
        if now != before {
            played.push_str(now.as_deref().unwrap_or_default());
            before = now;
        }
    }
    played
}

#[test]
#[allow(clippy::disallowed_methods, reason = "a test is told by cargo where its files are; the core is not")]
fn the_scenarios_go_as_they_are_told() {
    // At run time: clones that share a target directory may share this program.
    let folder = Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs tests")).join("src/sync/scenarios");
    let mut wrong = String::new();
    let mut count = 0;
    for entry in std::fs::read_dir(folder).expect("the folder of the scenarios") {
        let path = entry.expect("an entry").path();
        let scenario = std::fs::read_to_string(&path).expect("a scenario");
        let played = play(&scenario);
        count += 1;
        if played != scenario {
            writeln!(wrong, "==> {}\n{played}", path.display()).expect("a string");
        }
    }
    assert!(wrong.is_empty(), "these went otherwise:\n{wrong}");
    assert!(count > 15, "only {count} scenarios were found");
}

#[test]
#[should_panic(expected = "is opened, but not in the applied cluster state")]
fn nobody_opens_a_timeline_that_is_not_applied() {
    SyncManager::new(id("a"), TimelineId::FIRST, Lsn::new(100), &Scene::new().raft);
}
