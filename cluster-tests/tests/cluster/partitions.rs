//! Networks that fail: servers in namespaces of their own, and clients that reach all of them all the time.
//!
//! Every test has the same frame: a settled cluster under load, with clients that cling to the primary whatever it
//! says; a fault for some seconds; the fault healed; all nodes back without anybody's help; judgement. Each prints one
//! line, `partition=NAME availability=... longest_gap_ms=...`. No time is asserted but for what is waited for:
//! that the side which must go on goes on.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::availability::Availability;
use cluster_tests::cluster::{Options, PATIENCE};
use cluster_tests::history::Nanos;
use cluster_tests::network::{Delay, Fault, Network};
use cluster_tests::scenario::{SOME, Scenario, Verdict};
use cluster_tests::view::View;
use understudy_types::TimelineId;

const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// How long a fault lasts, at least.
const LASTS: Duration = Duration::from_secs(7);
/// Where several faults follow one another.
const SHORT: Duration = Duration::from_secs(4);
/// Commits that come through a bad network, too.
const FEW: u64 = 20;
/// Within this long commits must be acknowledged again.
const GOES_ON_WITHIN: Duration = Duration::from_secs(30);

/// Who was what when all was well.
struct Roles {
    primary: String,
    /// The standby that leads Raft.
    leader: String,
    /// The other standby.
    follower: String,
}

impl Roles {
    fn standbys(&self) -> [&str; 2] {
        [&self.leader, &self.follower]
    }
}

/// A test of one fault, or of several in turn.
struct Case {
    name: &'static str,
    network: Arc<Network>,
    scenario: Scenario,
    roles: Roles,
    /// What was present when all was well.
    timeline: TimelineId,
    /// When the first fault began.
    from: Option<Nanos>,
    /// When the last one was healed.
    to: Nanos,
}

impl Case {
    async fn begin(name: &'static str) -> Result<Option<Case>> {
        Self::begin_with(name, Options::default()).await
    }

    async fn begin_with(name: &'static str, options: Options) -> Result<Option<Case>> {
        Self::begin_on(name, options, |_| Ok(())).await
    }

    async fn begin_on(
        name: &'static str,
        options: Options,
        prepare: impl FnOnce(&Network) -> Result<()>,
    ) -> Result<Option<Case>> {
        let Some(network) = Network::for_test(&NODES)? else { return Ok(None) };
        prepare(&network)?;
        let mut scenario = Scenario::begin_with(&options.network(&network)).await?;
        let names = scenario.cluster.names();
        let roles = |view: &View| {
            let primary = view.settled(&names, None)?;
            Some((primary, view.primary()?.raft.as_ref()?.leader.clone(), view.timeline()))
        };
        let (primary, leader, timeline) = scenario.cluster.wait_for("a settled cluster", PATIENCE, roles).await?;
        let follower = NODES.iter().find(|name| **name != primary && **name != leader).context("one of three")?;
        let roles = Roles { follower: (*follower).to_owned(), primary, leader };
        scenario.workload.cling_to(&scenario.cluster, &roles.primary);
        Ok(Some(Case { name, network, scenario, roles, timeline, from: None, to: 0 }))
    }

    fn apply(&mut self, fault: &Fault) -> Result<()> {
        self.from.get_or_insert(self.scenario.workload.recorder.now());
        self.network.apply(fault)
    }

    async fn heal(&mut self, fault: &Fault) -> Result<()> {
        self.network.heal(fault)?;
        self.to = self.scenario.workload.recorder.now();
        self.scenario.cluster.wait_settled().await.map(drop)
    }

    fn timeline(&self) -> TimelineId {
        self.scenario.workload.progress().timeline()
    }

    /// A fault during which another node must become primary.
    async fn fails_over(&mut self, fault: &Fault) -> Result<()> {
        let old = self.timeline();
        self.apply(fault)?;
        let lasts = tokio::time::sleep(LASTS);
        self.scenario.workload.wait_timeline_after(old, GOES_ON_WITHIN).await?;
        self.scenario.workload.wait_more(SOME, SOME, GOES_ON_WITHIN).await?;
        lasts.await;
        self.heal(fault).await
    }

    /// A fault during which so many commits must be acknowledged, by whomever.
    async fn goes_on(&mut self, fault: &Fault, commits: u64, lasts: Duration) -> Result<()> {
        self.apply(fault)?;
        let lasts = tokio::time::sleep(lasts);
        self.scenario.workload.wait_more(commits, 1, GOES_ON_WITHIN).await?;
        lasts.await;
        self.scenario.workload.wait_more(commits, 1, GOES_ON_WITHIN).await?;
        self.heal(fault).await
    }

    /// Judges, and gives how often another timeline was begun since all was well.
    async fn end(self) -> Result<usize> {
        let Case { name, network, scenario, timeline, from, to, .. } = self;
        let verdict: Verdict = scenario.judged().await?;
        let begun = verdict.history.timelines.switches().iter().filter(|switch| switch.timeline > timeline);
        let elections = begun.count();
        println!(
            "partition={name} {} elections={elections} lost={} duplicated={} violations={}",
            Availability::during(&verdict.history, from.unwrap_or_default(), to),
            verdict.lost,
            verdict.duplicated,
            verdict.violations.len()
        );
        verdict.ensure_kept()?;
        drop(network);
        Ok(elections)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_primary_is_cut_off_from_both_others() -> Result<()> {
    // INV-FENCED, INV-LINEAR: its clients still reach it, and it must neither acknowledge nor answer.
    let Some(mut case) = Case::begin("primary-cut-off").await? else { return Ok(()) };
    case.fails_over(&Fault::isolated(&case.roles.primary, &case.roles.standbys())).await?;
    let elections = case.end().await?;
    ensure!(elections == 1, "one cut made {elections} elections");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_reads_by_lease_is_cut_off_from_both_others() -> Result<()> {
    // INV-LINEAR: it may answer until its lease has run out, and nobody else is promoted before that.
    let options = Options::default().lease("1s");
    let Some(mut case) = Case::begin_with("primary-cut-off-lease", options).await? else { return Ok(()) };
    case.fails_over(&Fault::isolated(&case.roles.primary, &case.roles.standbys())).await?;
    let elections = case.end().await?;
    ensure!(elections == 1, "one cut made {elections} elections");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_primary_sends_but_hears_nobody() -> Result<()> {
    let Some(mut case) = Case::begin("primary-deaf").await? else { return Ok(()) };
    case.fails_over(&Fault::deaf(&case.roles.primary, &case.roles.standbys())).await?;
    let elections = case.end().await?;
    ensure!(elections == 1, "one cut made {elections} elections");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_primary_hears_but_nobody_hears_it() -> Result<()> {
    let Some(mut case) = Case::begin("primary-mute").await? else { return Ok(()) };
    case.fails_over(&Fault::mute(&case.roles.primary, &case.roles.standbys())).await?;
    let elections = case.end().await?;
    ensure!(elections == 1, "one cut made {elections} elections");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_way_cuts_between_two_nodes_stop_nobody() -> Result<()> {
    // The third node hears and is heard by all: commits go on, whoever of the two is deaf or mute to the other.
    let Some(mut case) = Case::begin("one-way").await? else { return Ok(()) };
    let (primary, leader, follower) =
        (case.roles.primary.clone(), case.roles.leader.clone(), case.roles.follower.clone());
    for (from, to) in [(&primary, &follower), (&follower, &primary), (&leader, &follower), (&follower, &leader)] {
        case.goes_on(&Fault::one_way(from, to), SOME, SHORT).await.with_context(|| format!("{from} to {to}"))?;
    }
    let elections = case.end().await?;
    ensure!(elections <= 4, "four cuts made {elections} elections");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_one_way_cut_between_the_primary_and_the_raft_leader() -> Result<()> {
    // Either the leader hands its leadership to the third node, or another primary is promoted.
    let Some(mut case) = Case::begin("one-way-leader").await? else { return Ok(()) };
    let (primary, leader) = (case.roles.primary.clone(), case.roles.leader.clone());
    for (from, to) in [(&primary, &leader), (&leader, &primary)] {
        case.goes_on(&Fault::one_way(from, to), SOME, SHORT).await.with_context(|| format!("{from} to {to}"))?;
    }
    let elections = case.end().await?;
    ensure!(elections <= 2, "two cuts made {elections} elections");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_between_the_primary_and_the_raft_leader() -> Result<()> {
    // A majority hears the primary: leadership moves to the bridge, and nobody is promoted again and again.
    let Some(mut case) = Case::begin("bridge-follower").await? else { return Ok(()) };
    let cut = Fault::both_ways(&case.roles.primary, &case.roles.leader);
    case.goes_on(&cut, SOME, LASTS).await?;
    let elections = case.end().await?;
    ensure!(elections <= 1, "one cut made {elections} elections");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_raft_leader_or_the_primary_is_the_bridge() -> Result<()> {
    let Some(mut case) = Case::begin("bridge-other").await? else { return Ok(()) };
    let (primary, leader, follower) =
        (case.roles.primary.clone(), case.roles.leader.clone(), case.roles.follower.clone());
    case.goes_on(&Fault::both_ways(&primary, &follower), SOME, SHORT).await.context("the leader is the bridge")?;
    case.goes_on(&Fault::both_ways(&leader, &follower), SOME, SHORT).await.context("the primary is the bridge")?;
    let elections = case.end().await?;
    ensure!(elections <= 2, "two cuts made {elections} elections");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_raft_leader_is_cut_off() -> Result<()> {
    // The primary and the other standby are a majority: writes go on, and nobody is promoted.
    let Some(mut case) = Case::begin("leader-cut-off").await? else { return Ok(()) };
    let cut = Fault::isolated(&case.roles.leader, &[&case.roles.primary, &case.roles.follower]);
    case.goes_on(&cut, SOME, LASTS).await?;
    let elections = case.end().await?;
    ensure!(elections <= 1, "one cut made {elections} elections");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_packet_in_ten_is_lost() -> Result<()> {
    let Some(mut case) = Case::begin("loss-10-percent").await? else { return Ok(()) };
    case.goes_on(&Fault::loss(&NODES, 10), FEW, LASTS).await?;
    case.end().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn three_packets_in_ten_are_lost() -> Result<()> {
    // Beats go missing for longer than the primary's timeout at times: what must hold is that nothing is lost.
    let Some(mut case) = Case::begin("loss-30-percent").await? else { return Ok(()) };
    let loss = Fault::loss(&NODES, 30);
    case.apply(&loss)?;
    tokio::time::sleep(LASTS).await;
    case.heal(&loss).await?;
    case.end().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_firewall_answers_for_the_primary() -> Result<()> {
    // It looks dead from outside: connections break and new ones are refused. An unneeded failover is allowed.
    let Some(mut case) = Case::begin("tcp-reset").await? else { return Ok(()) };
    let reset = Fault::reset_in_front_of(&case.roles.primary);
    case.goes_on(&reset, SOME, LASTS).await?;
    let elections = case.end().await?;
    ensure!(elections <= 1, "one firewall made {elections} elections");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_firewall_swallows_what_is_sent_to_the_primary() -> Result<()> {
    // Its own beats come through, so it is heard, but no standby has its acknowledgements heard and no client gets in.
    let Some(mut case) = Case::begin("silent-firewall").await? else { return Ok(()) };
    case.fails_over(&Fault::swallow_in_front_of(&case.roles.primary)).await?;
    let elections = case.end().await?;
    ensure!(elections == 1, "one firewall made {elections} elections");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_link_is_slow_and_unsteady() -> Result<()> {
    let Some(mut case) = Case::begin_on("delay", Options::default(), Network::lay_relays).await? else { return Ok(()) };
    let each_way = Duration::from_millis(50);
    for jitter in [Duration::ZERO, Duration::from_millis(50)] {
        case.network.set_delay(Delay { each_way, jitter });
        case.goes_on(&Fault::none(), FEW, SHORT).await.with_context(|| format!("with a jitter of {jitter:?}"))?;
    }
    case.network.set_delay(Delay::default());
    case.end().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_sends_one_megabit_a_second() -> Result<()> {
    let Some(mut case) = Case::begin("narrow-1-mbit").await? else { return Ok(()) };
    case.goes_on(&Fault::narrow(&NODES, 1_000), FEW, LASTS).await?;
    case.end().await.map(drop)
}
