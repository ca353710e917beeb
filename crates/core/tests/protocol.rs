//! Whole elections, many of them in a row, under seeds: the pure decisions of the core, driven by a cluster that is
//! made of nothing but faults (`protocol/world.rs`), and the invariants after every event (`protocol/invariants.rs`).
//!
//! A failing seed is printed; put it into `REGRESSIONS`. The last test lets nodes break one rule at a time and expects
//! the invariants to notice: a check that cannot fail proves nothing.

#[path = "protocol/actions.rs"]
mod actions;
#[path = "protocol/invariants.rs"]
mod invariants;
#[path = "protocol/node.rs"]
mod node;
#[path = "protocol/rng.rs"]
mod rng;
#[path = "protocol/world.rs"]
mod world;

use std::collections::BTreeMap;

use invariants::Verdict;
use node::{Ack, Byte};
use understudy_core::command::Command;
use understudy_types::{NodeId, SyncMode};
use world::{Cheat, Config, Message, World};

/// Events in which everything goes wrong.
const EVENTS: usize = 3000;
/// Rounds of everybody doing everything, after the faults, within which the cluster must be well.
const HEALING_ROUNDS: usize = 80;

impl World {
    /// One thing happens to one node.
    fn event(&mut self) -> Verdict {
        self.now_ms += self.rng.below(20) as u64;
        let ids = self.ids();
        let id = *self.rng.pick(&ids).expect("nodes");
        let choice = self.rng.below(100);
        if !self.nodes[&id].up {
            if choice < 10 {
                self.start(id);
            }
            return Ok(());
        }
        if self.config.operator && self.rng.one_in(30) {
            self.configure(id);
        }
        if self.config.lease {
            self.read_by_lease(id)?;
        }
        match choice {
            0..8 => self.write(id),
            8..20 => self.receive(id)?,
            20..26 => self.flush(id),
            26..34 => self.acknowledge(id),
            34..46 => self.publish(id)?,
            46..50 => self.change_sync_list(id, false),
            50..60 => self.apply_raft(id),
            60..76 => self.reconcile(id)?,
            76..86 => self.beat(id, None)?,
            86..94 => self.lead(id)?,
            94 if self.rng.one_in(3) => self.suspect_wrongly(id),
            95 if self.rng.one_in(2) => self.node(id).crash(),
            96 if self.rng.one_in(40) => ids.iter().for_each(|id| self.node(*id).crash()),
            97 if self.rng.one_in(4) => drop(self.isolated.insert(id)),
            98 => drop(self.isolated.remove(&id)),
            _ => {}
        }
        for _ in 0..self.rng.below(6).min(self.messages.len()) {
            let index = self.rng.below(self.messages.len());
            self.deliver(index)?;
        }
        if self.messages.len() > 60 {
            let index = self.rng.below(self.messages.len());
            drop(self.messages.swap_remove(index));
        }
        self.ids().into_iter().try_for_each(|id| invariants::after_event(self, id))
    }

    fn write(&mut self, id: NodeId) {
        let serial = self.number();
        let node = self.node(id);
        if let Some(primary) = &node.primary {
            let byte = Byte { timeline: primary.timeline, writer: node.incarnation, serial };
            node.wal.push(byte);
        }
    }

    fn flush(&mut self, id: NodeId) {
        let (flushed, written) = (self.nodes[&id].flushed, self.nodes[&id].wal.len());
        self.node(id).flushed = self.rng.between(flushed, written);
        self.node(id).apply_safe();
    }

    /// A standby gets some of what its primary has written, flushed or not, and the safe LSN.
    fn receive(&mut self, id: NodeId) -> Verdict {
        let node = &self.nodes[&id];
        let Some(following) = node.following else { return Ok(()) };
        let upstream = &self.nodes[&following.primary];
        let Some(primary) = upstream.primary.as_ref().filter(|primary| primary.timeline == following.timeline) else {
            return Ok(());
        };
        let (incarnation, published) = (upstream.incarnation, primary.published);
        let available = upstream.wal.clone();
        if !self.connected(id, following.primary) {
            return Ok(());
        }
        let (ack, begin) =
            (Ack { flushed: 0, epoch: node.damage_epoch, incarnation: node.incarnation }, node.wal.len());
        invariants::invariant_bytes(&node.wal, &available, "streamed")?;
        if node.upstream != Some(incarnation) {
            // A new connection: what was acknowledged over an earlier one counts for nothing.
            self.node(following.primary).primary.as_mut().expect("just seen").acks.insert(id, ack);
            self.node(id).upstream = Some(incarnation);
        }
        let end = self.rng.between(begin.min(available.len()), available.len()).min(begin + 8);
        let node = self.node(id);
        if end > begin {
            node.wal.extend_from_slice(&available[begin..end]);
        }
        node.safe = node.safe.max(published);
        node.apply_safe();
        Ok(())
    }

    fn acknowledge(&mut self, id: NodeId) {
        let node = &self.nodes[&id];
        let (Some(following), Some(to_incarnation)) = (node.following, node.upstream) else { return };
        let ack = Ack { flushed: node.flushed, epoch: node.damage_epoch, incarnation: node.incarnation };
        let (to, timeline) = (following.primary, following.timeline);
        self.send(Message::Ack { from: id, to, to_incarnation, timeline, ack });
    }

    fn apply_raft(&mut self, id: NodeId) {
        if self.isolated.contains(&id) {
            return;
        }
        let known = self.nodes[&id].raft_applied;
        let next = self.rng.between(known, self.states.len() - 1);
        let (state, now_ms) = (self.states[next].clone(), self.now_ms);
        self.node(id).learn(next, &state, now_ms);
    }

    /// A suspicion out of the blue, by whoever, on whatever it knows.
    fn suspect_wrongly(&mut self, id: NodeId) {
        let state = &self.nodes[&id].state;
        let (generation, timeline) = (state.generation, state.timeline().next());
        let command = Command::BeginElection { generation, timeline, reason: "a whim".to_owned() };
        self.send(Message::Command { from: id, command });
    }

    /// An operator at this node changes his mind about who confirms, on what it knows; in an election too.
    fn configure(&mut self, id: NodeId) {
        let mode = *self.rng.pick(&["preferred", "required"]).expect("modes");
        let rule = *self.rng.pick(&["ANY 1 (*)", "ANY 2 (*)"]).expect("rules");
        let mut changes: BTreeMap<String, String> = [("sync_mode", mode), ("synchronous_standby_names", rule)]
            .map(|(name, text)| (name.to_owned(), text.to_owned()))
            .into();
        if self.config.lease {
            let reads = *self.rng.pick(&["lease", "lease", "quorum"]).expect("ways");
            let lease = *self.rng.pick(&["1s", "600ms", "100ms"]).expect("lengths");
            changes.insert("linearizable_reads".to_owned(), reads.to_owned());
            changes.insert("primary_lease".to_owned(), lease.to_owned());
        }
        let generation = self.nodes[&id].state.generation;
        self.send(Message::Command { from: id, command: Command::Configure { generation, changes } });
    }

    /// Everybody is up, nothing is lost, everything happens in turn.
    fn heal(&mut self) -> Verdict {
        self.faults = false;
        if self.config.operator {
            // What a cluster with a witness or a node that is never sync can satisfy.
            let changes = [("sync_mode", "preferred"), ("synchronous_standby_names", "ANY 1 (*)")];
            let changes = changes.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
            self.commit(&Command::Configure { generation: self.latest().generation, changes })?;
        }
        self.isolated.clear();
        for id in self.ids().into_iter().filter(|id| !self.nodes[id].up).collect::<Vec<_>>() {
            self.start(id);
        }
        for _ in 0..HEALING_ROUNDS {
            self.now_ms += 100;
            for id in self.ids() {
                let (state, latest) = (self.latest().clone(), self.states.len() - 1);
                let now_ms = self.now_ms;
                self.node(id).learn(latest, &state, now_ms);
                for _ in 0..4 {
                    self.reconcile(id)?;
                }
                self.write(id);
                (0..4).try_for_each(|_| self.receive(id))?;
                let written = self.nodes[&id].wal.len();
                self.node(id).flushed = written;
                self.acknowledge(id);
                self.publish(id)?;
                self.change_sync_list(id, true);
                self.beat(id, None)?;
            }
            let leader = self.ids()[0];
            self.lead(leader)?;
            while !self.messages.is_empty() {
                self.deliver(0)?;
            }
            self.ids().into_iter().try_for_each(|id| invariants::after_event(self, id))?;
        }
        self.is_well()
    }

    /// There is a primary, it acknowledges what it writes, and everybody has it.
    fn is_well(&self) -> Verdict {
        let state = self.latest();
        let primary = state.primary().map(|entry| &self.nodes[&entry.node]);
        let open = primary.and_then(|node| node.primary.as_ref().map(|primary| (node, primary)));
        let Some((node, primary)) = open.filter(|_| state.election.is_none()) else {
            return Err(format!("no primary after {HEALING_ROUNDS} rounds without faults: {state:?}"));
        };
        let behind = node.wal.len() - primary.published;
        if behind > 8 {
            return Err(format!("the primary does not acknowledge: {behind} bytes wait; {state:?}"));
        }
        let lags = |other: &&node::Node| !other.witness && other.wal.len() + 40 < node.wal.len();
        match self.nodes.values().find(lags) {
            Some(other) => Err(format!("{} does not follow: {:?}", other.id, other.as_it_is())),
            None => Ok(()),
        }
    }
}

/// What a run did, so that it is known that something happened.
#[derive(Debug, Default)]
struct Tally {
    promotions: usize,
    opened: usize,
    acknowledged: usize,
    list_changes: usize,
    damages: u64,
    reads: usize,
    settings: usize,
    leased_reads: usize,
}

fn run(config: Config) -> Result<Tally, String> {
    let mut world = World::new(config);
    (0..EVENTS).try_for_each(|_| world.event())?;
    // A node that is damaged, or that would have to undo, waits for help that is not part of this.
    let all_well = world.nodes.values().all(|node| node.damage_epoch == 0 && node.stays_out.is_none());
    if all_well && config.mode != SyncMode::Async {
        world.heal()?;
    }
    let lists =
        world.states.windows(2).filter(|pair| pair[0].sync != pair[1].sync && pair[0].timeline() == pair[1].timeline());
    let settings = world.states.windows(2).filter(|pair| pair[0].settings != pair[1].settings).count();
    Ok(Tally {
        promotions: world.latest().history.len(),
        opened: world.opened.len(),
        acknowledged: world.acknowledged.len(),
        list_changes: lists.count(),
        damages: world.nodes.values().map(|node| node.damage_epoch).sum(),
        reads: world.reads_answered,
        settings,
        leased_reads: world.leased_reads,
    })
}

fn run_seeds(seeds: std::ops::Range<u64>, mode: SyncMode, damage: bool) -> Tally {
    run_all(seeds.map(|seed| Config { seed, mode, damage, cheat: Cheat::Nothing, operator: false, lease: false }))
}

fn run_all(configs: impl Iterator<Item = Config>) -> Tally {
    let mut sum = Tally::default();
    for config in configs {
        let tally = run(config).unwrap_or_else(|wrong| panic!("{config:?}: {wrong}"));
        sum.promotions += tally.promotions;
        sum.opened += tally.opened;
        sum.acknowledged += tally.acknowledged;
        sum.list_changes += tally.list_changes;
        sum.damages += tally.damages;
        sum.reads += tally.reads;
        sum.settings += tally.settings;
        sum.leased_reads += tally.leased_reads;
    }
    println!("{sum:?}");
    sum
}

#[test]
fn elections_in_mode_preferred_lose_nothing() {
    let sum = run_seeds(0..200, SyncMode::Preferred, false);
    assert!(sum.promotions > 1000 && sum.acknowledged > 2000 && sum.list_changes > 200 && sum.reads > 1000, "{sum:?}");
}

#[test]
fn elections_in_mode_required_lose_nothing() {
    let sum = run_seeds(1000..1200, SyncMode::Required, false);
    assert!(sum.promotions > 1000 && sum.acknowledged > 2000 && sum.list_changes > 200, "{sum:?}");
}

#[test]
fn damaged_nodes_do_not_count_for_what_they_lost() {
    let sum = run_seeds(2000..2200, SyncMode::Preferred, true);
    assert!(sum.promotions > 500 && sum.damages > 200 && sum.list_changes > 100, "{sum:?}");
}

#[test]
fn in_mode_async_there_is_still_only_one_primary() {
    let sum = run_seeds(3000..3100, SyncMode::Async, true);
    assert!(sum.promotions > 300, "{sum:?}");
}

#[test]
fn settings_that_change_all_the_time_lose_nothing() {
    // SYNC-8, INV-DURABLE: whoever confirms, and whatever is being decided.
    let config = |seed: u64| Config {
        seed,
        mode: if seed.is_multiple_of(2) { SyncMode::Preferred } else { SyncMode::Required },
        damage: seed.is_multiple_of(3),
        cheat: Cheat::Nothing,
        operator: true,
        lease: false,
    };
    let sum = run_all((4000..4200).map(config));
    assert!(sum.promotions > 500 && sum.settings > 2000 && sum.list_changes > 200, "{sum:?}");
}

#[test]
fn reads_by_lease_see_everything_acknowledged() {
    // INV-LINEAR, with clocks that differ, restarts, and lengths that change all the time.
    let config = |seed: u64| Config {
        seed,
        mode: if seed.is_multiple_of(2) { SyncMode::Preferred } else { SyncMode::Required },
        damage: seed.is_multiple_of(5),
        cheat: Cheat::Nothing,
        operator: seed.is_multiple_of(3),
        lease: true,
    };
    let sum = run_all((5000..5300).map(config));
    assert!(sum.promotions > 300 && sum.leased_reads > 3000 && sum.acknowledged > 2000, "{sum:?}");
}

/// Seeds that find something when a rule is taken away that they were once missing.
///
/// - A primary that restarted damaged had its damage cleared before its restart was noticed, and was promoted again
///   without what it had lost.
/// - One member of the sync list fewer than needed was enough.
const REGRESSIONS: &[(u64, SyncMode, bool)] =
    &[(101_089, SyncMode::Preferred, true), (100_184, SyncMode::Preferred, true)];

#[test]
fn seeds_that_need_every_rule_stay_quiet() {
    for (seed, mode, damage) in REGRESSIONS {
        run_seeds(*seed..seed + 1, *mode, *damage);
    }
}

/// Whoever changes a rule searches longer: `UNDERSTUDY_SEEDS=10000 cargo test -p understudy-core --test protocol` takes
/// minutes.
#[test]
#[allow(clippy::disallowed_methods, reason = "a test is started from outside; the core is not")]
fn other_seeds_stay_quiet() {
    let seeds = std::env::var("UNDERSTUDY_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(20_u64);
    for mode in [SyncMode::Preferred, SyncMode::Required, SyncMode::Async] {
        run_seeds(100_000..100_000 + seeds, mode, false);
        run_seeds(100_000..100_000 + seeds, mode, true);
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let config = Config {
        seed: 42,
        mode: SyncMode::Preferred,
        damage: true,
        cheat: Cheat::Nothing,
        operator: true,
        lease: true,
    };
    assert_eq!(format!("{:?}", run(config)), format!("{:?}", run(config)));
}

#[test]
fn a_broken_rule_is_noticed() {
    let expected = [
        (Cheat::AcknowledgesAfterSeal, "INV-FENCED"),
        (Cheat::HidesDamage, "INV-DURABLE"),
        (Cheat::ForgetsTheOldRule, "INV-DURABLE"),
        (Cheat::AnyProcessOpens, "INV-ONE-PRIMARY"),
        (Cheat::SealsBeforeTheFlush, "INV-DURABLE"),
        (Cheat::ConfirmsAfterSeal, "INV-LINEAR"),
        (Cheat::IgnoresLeases, "INV-LINEAR"),
        (Cheat::ForgetsGrants, "INV-LINEAR"),
        (Cheat::CountsFromTheAnswer, "INV-LINEAR"),
    ];
    for (cheat, invariant) in expected {
        let damage = cheat == Cheat::HidesDamage;
        let lease = matches!(cheat, Cheat::IgnoresLeases | Cheat::ForgetsGrants | Cheat::CountsFromTheAnswer);
        let config = |seed| Config { seed, mode: SyncMode::Preferred, damage, cheat, operator: false, lease };
        let found = (0..300).find_map(|seed| run(config(seed)).err());
        let found = found.unwrap_or_else(|| panic!("{cheat:?} was not noticed"));
        println!("{cheat:?}: {found}");
        assert!(found.contains(invariant), "{cheat:?} should violate {invariant}: {found}");
    }
}
