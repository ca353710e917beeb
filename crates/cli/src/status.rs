//! `understudy status`: the cluster in one table.
//!
//! Every known node is asked. The facts are those of one node, so that they fit together: the one that knows the
//! latest cluster state, of these the primary, which has the acknowledgements at first hand. Nodes that do not answer
//! are named beneath, and so are those that answer and belong to no cluster, with what they wait for.

use serde::Serialize;
use understudy_client::{Client, NodeAnswer};
use understudy_rpc::v1;

use crate::args::Output;
use crate::exit::Exit;
use crate::history::nobody_answers;
use crate::output::{Grid, bytes_text, lsn_text, or_dash, print, print_json};

/// Prints it.
pub async fn run(client: &Client, output: Output) -> anyhow::Result<Exit> {
    let answers = client.status().await;
    let Some(status) = best(&answers) else { anyhow::bail!(nobody_answers(&answers)) };
    let (silent, outside) = (silent(&answers), outside(&answers, status));
    match output {
        Output::Table => print(&text(status, &silent, &outside))?,
        Output::Json => print_json(&JsonStatus::new(status, &silent, &outside))?,
    }
    Ok(Exit::Done)
}

/// A node that does not answer, with why.
#[derive(Debug, Serialize)]
struct Silent<'a> {
    address: &'a str,
    why: &'a str,
}

/// A node that answers and belongs to no cluster, or to one whose member it is not: a lost disk, most of the time.
#[derive(Debug, Serialize)]
struct Outside<'a> {
    address: &'a str,
    name: &'a str,
    why: &'a str,
}

fn best(answers: &[NodeAnswer<v1::StatusResponse>]) -> Option<&v1::StatusResponse> {
    let is_primary = |status: &v1::StatusResponse| !status.primary.is_empty() && status.primary == status.answered_by;
    let is_leader =
        |status: &v1::StatusResponse| status.raft.as_ref().is_some_and(|raft| raft.leader == status.answered_by);
    answers
        .iter()
        .filter_map(|node| node.answer.as_ref().ok())
        .max_by_key(|status| (status.generation, is_primary(status), is_leader(status)))
}

fn silent(answers: &[NodeAnswer<v1::StatusResponse>]) -> Vec<Silent<'_>> {
    answers
        .iter()
        .filter_map(|node| node.answer.as_ref().err().map(|why| Silent { address: &node.address, why }))
        .collect()
}

/// Those that wait to become a member, but for the one whose answer is `shown`: its header says it.
fn outside<'a>(answers: &'a [NodeAnswer<v1::StatusResponse>], shown: &v1::StatusResponse) -> Vec<Outside<'a>> {
    let is_outside = |status: &v1::StatusResponse| {
        let is_member = status.members.iter().any(|member| member.name == status.answered_by);
        !is_member && !std::ptr::eq(status, shown) && !status.not_writable_reason.is_empty()
    };
    let answered = answers.iter().filter_map(|node| Some((node.address.as_str(), node.answer.as_ref().ok()?)));
    let outside = answered.filter(|(_, status)| is_outside(status));
    outside
        .map(|(address, status)| Outside { address, name: &status.answered_by, why: &status.not_writable_reason })
        .collect()
}

fn text(status: &v1::StatusResponse, silent: &[Silent<'_>], outside: &[Outside<'_>]) -> String {
    let mut out = header(status);
    if !status.members.is_empty() {
        out.push('\n');
        out.push_str(&members(status));
    }
    let problems = status.members.iter().filter(|member| !member.problem.is_empty() || member.damaged);
    let mut notes: Vec<String> = problems.map(problem).collect();
    notes.extend(outside.iter().map(|node| format!("{} at {}: {}", node.name, node.address, node.why)));
    notes.extend(silent.iter().map(|silent| format!("{} does not answer: {}", silent.address, silent.why)));
    if !notes.is_empty() {
        out.push('\n');
    }
    for note in notes {
        out.push_str(&format!("{note}\n"));
    }
    out
}

fn problem(member: &v1::MemberStatus) -> String {
    let damaged = if member.damaged { "its WAL does not count until it is on the sync list again" } else { "" };
    let seed = seed_line(member);
    let parts: Vec<&str> =
        [damaged, member.problem.as_str(), seed.as_str()].into_iter().filter(|part| !part.is_empty()).collect();
    format!("{}: {}", member.name, parts.join("; "))
}

/// How far a node that is being seeded is; empty for others.
fn seed_line(member: &v1::MemberStatus) -> String {
    if member.state != "seeding" {
        return String::new();
    }
    let source = if member.seed_source.is_empty() { "no source at present" } else { &member.seed_source };
    let [total, done, reused] =
        [member.seed_bytes_total, member.seed_bytes_done, member.seed_bytes_reused].map(bytes_text);
    format!("seeding from {source}: {done} of {total} are here, {reused} of them were before")
}

fn header(status: &v1::StatusResponse) -> String {
    let cluster = match status.system_id.is_empty() {
        true => format!("not made yet; {} answers", status.answered_by),
        false => format!("{}, generation {}, as {} knows it", status.system_id, status.generation, status.answered_by),
    };
    let primary = match status.primary.is_empty() {
        true => "none yet".to_owned(),
        false => format!("{} at {}, timeline {}", status.primary, status.primary_address, status.timeline),
    };
    let writable =
        if status.writable { "yes".to_owned() } else { format!("no: {}", or_dash(&status.not_writable_reason)) };
    let mut lines = vec![("cluster", cluster), ("primary", primary), ("writable", writable)];
    if let Some(election) = &status.election {
        lines.push(("election", format!("timeline {} is being decided: {}", election.timeline, election.reason)));
        if !election.blocked.is_empty() {
            lines.push(("blocked", election.blocked.clone()));
        }
    }
    if let Some(sync) = &status.sync {
        lines.push(("sync", sync_line(sync)));
    }
    if status.waiting_commits > 0 {
        let (count, ms) = (status.waiting_commits, status.oldest_waiting_ms);
        let noun = if count == 1 { "commit waits" } else { "commits wait" };
        lines.push(("waiting", format!("{count} {noun}, the oldest for {ms} ms: {}", or_dash(&status.waiting_for))));
    }
    if !status.sync_problem.is_empty() {
        lines.push(("", status.sync_problem.clone()));
    }
    if let Some(raft) = &status.raft {
        let leader = if raft.leader.is_empty() { "no leader".to_owned() } else { format!("leader {}", raft.leader) };
        lines.push(("raft", format!("{leader}, term {}, applied index {}", raft.term, raft.last_applied_index)));
    }
    lines.into_iter().map(|(name, value)| format!("{name:<10}{value}\n")).collect()
}

fn sync_line(sync: &v1::SyncStatus) -> String {
    let rule = if sync.synchronous_standby_names.is_empty() { "nobody" } else { &sync.synchronous_standby_names };
    let list = match (sync.acks, sync.members.as_slice()) {
        (0, _) | (_, []) => "no standby confirms commits".to_owned(),
        (acks, members) => format!("{acks} of {{{}}} confirms each commit", members.join(", ")),
    };
    format!("{rule}, mode {}; {list}", sync.mode)
}

fn members(status: &v1::StatusResponse) -> String {
    let header =
        ["MEMBER", "ADDRESS", "ROLE", "STATE", ">TL", "WRITE", "FLUSH", "APPLY", ">LAG", "SYNC", "RAFT", ">HEARD"];
    let mut grid = Grid::new(&header);
    let mut members: Vec<&v1::MemberStatus> = status.members.iter().collect();
    members.sort_by_key(|member| &member.name);
    for member in members {
        let known = member.state != "unreachable" || member.write_lsn != 0;
        grid.row(vec![
            member.name.clone(),
            member.address.clone(),
            member.role.clone(),
            member.state.clone(),
            if member.timeline == 0 { "-".to_owned() } else { member.timeline.to_string() },
            lsn_text(member.write_lsn),
            lsn_text(member.flush_lsn),
            lsn_text(member.apply_lsn),
            if known { bytes_text(member.lag_bytes) } else { "-".to_owned() },
            or_dash(&member.sync_state),
            or_dash(&member.raft_role),
            if member.name == status.answered_by { "-".to_owned() } else { heard(member.heard_ms_ago) },
        ]);
    }
    grid.render()
}

fn heard(ms: u64) -> String {
    match ms {
        0..10_000 => format!("{ms} ms"),
        10_000..10_000_000 => format!("{} s", ms / 1_000),
        _ => "-".to_owned(),
    }
}

#[derive(Serialize)]
struct JsonStatus<'a> {
    system_id: &'a str,
    generation: u64,
    timeline: u32,
    primary: Option<&'a str>,
    primary_address: Option<&'a str>,
    writable: bool,
    not_writable_reason: Option<&'a str>,
    election: Option<JsonElection<'a>>,
    sync: Option<JsonSync<'a>>,
    sync_problem: Option<&'a str>,
    raft: Option<JsonRaft<'a>>,
    /// Null where the node that answers is not the primary.
    waiting: Option<JsonWaiting<'a>>,
    members: Vec<JsonMember<'a>>,
    answered_by: &'a str,
    silent: &'a [Silent<'a>],
    outside: &'a [Outside<'a>],
}

#[derive(Serialize)]
struct JsonWaiting<'a> {
    commits: u64,
    oldest_ms: u64,
    waits_for: Option<&'a str>,
}

#[derive(Serialize)]
struct JsonElection<'a> {
    timeline: u32,
    reason: &'a str,
    blocked: Option<&'a str>,
}

#[derive(Serialize)]
struct JsonSync<'a> {
    mode: &'a str,
    synchronous_standby_names: &'a str,
    members: &'a [String],
    acks: u32,
}

#[derive(Serialize)]
struct JsonRaft<'a> {
    leader: Option<&'a str>,
    term: u64,
    last_applied_index: u64,
}

#[derive(Serialize)]
struct JsonMember<'a> {
    node_id: &'a str,
    name: &'a str,
    address: &'a str,
    role: &'a str,
    state: &'a str,
    timeline: u32,
    write_lsn: u64,
    flush_lsn: u64,
    apply_lsn: u64,
    safe_lsn: u64,
    lag_bytes: u64,
    sync_state: Option<&'a str>,
    voter: bool,
    raft_role: Option<&'a str>,
    damaged: bool,
    heard_ms_ago: u64,
    problem: Option<&'a str>,
    failover_priority: u32,
    no_sync: bool,
    incarnation: &'a str,
    seed: Option<JsonSeed<'a>>,
}

/// Of a node that is being seeded.
#[derive(Serialize)]
struct JsonSeed<'a> {
    source: Option<&'a str>,
    bytes_total: u64,
    bytes_done: u64,
    bytes_reused: u64,
    reason: &'a str,
}

fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

impl<'a> JsonStatus<'a> {
    fn new(status: &'a v1::StatusResponse, silent: &'a [Silent<'a>], outside: &'a [Outside<'a>]) -> Self {
        let election = status.election.as_ref().map(|election| JsonElection {
            timeline: election.timeline,
            reason: &election.reason,
            blocked: some(&election.blocked),
        });
        let sync = status.sync.as_ref().map(|sync| JsonSync {
            mode: &sync.mode,
            synchronous_standby_names: &sync.synchronous_standby_names,
            members: &sync.members,
            acks: sync.acks,
        });
        let raft = status.raft.as_ref().map(|raft| JsonRaft {
            leader: some(&raft.leader),
            term: raft.term,
            last_applied_index: raft.last_applied_index,
        });
        Self {
            system_id: &status.system_id,
            generation: status.generation,
            timeline: status.timeline,
            primary: some(&status.primary),
            primary_address: some(&status.primary_address),
            writable: status.writable,
            not_writable_reason: some(&status.not_writable_reason),
            election,
            sync,
            sync_problem: some(&status.sync_problem),
            raft,
            waiting: (status.primary == status.answered_by).then(|| JsonWaiting {
                commits: status.waiting_commits,
                oldest_ms: status.oldest_waiting_ms,
                waits_for: some(&status.waiting_for),
            }),
            members: status.members.iter().map(JsonMember::from).collect(),
            answered_by: &status.answered_by,
            silent,
            outside,
        }
    }
}

impl<'a> From<&'a v1::MemberStatus> for JsonMember<'a> {
    fn from(member: &'a v1::MemberStatus) -> Self {
        Self {
            node_id: &member.node_id,
            name: &member.name,
            address: &member.address,
            role: &member.role,
            state: &member.state,
            timeline: member.timeline,
            write_lsn: member.write_lsn,
            flush_lsn: member.flush_lsn,
            apply_lsn: member.apply_lsn,
            safe_lsn: member.safe_lsn,
            lag_bytes: member.lag_bytes,
            sync_state: some(&member.sync_state),
            voter: member.voter,
            raft_role: some(&member.raft_role),
            damaged: member.damaged,
            heard_ms_ago: member.heard_ms_ago,
            problem: some(&member.problem),
            failover_priority: member.failover_priority,
            no_sync: member.no_sync,
            incarnation: &member.incarnation,
            seed: (member.state == "seeding").then(|| JsonSeed {
                source: some(&member.seed_source),
                bytes_total: member.seed_bytes_total,
                bytes_done: member.seed_bytes_done,
                bytes_reused: member.seed_bytes_reused,
                reason: &member.seed_reason,
            }),
        }
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
