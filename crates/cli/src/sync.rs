//! `understudy sync`: who confirms commits, who waits for them, and how waits are ended.

use serde::Serialize;
use serde_json::json;
use understudy_client::Client;
use understudy_rpc::v1;

use crate::args::{Output, SyncArgs, SyncCommand};
use crate::exit::Exit;
use crate::output::{Grid, lsn_text, or_dash, print, print_json};
use crate::replication::known;

/// Shows the list, or does what the subcommand says.
pub async fn run(client: &Client, output: Output, args: SyncArgs) -> anyhow::Result<Exit> {
    match args.command {
        None => list(client, output).await,
        Some(SyncCommand::Waiting { limit }) => waiting(client, output, limit).await,
        Some(SyncCommand::Cancel { request_id, .. }) => {
            let cancelled = client.cancel_waiting(request_id).await?;
            match output {
                Output::Table => print(&format!("{cancelled} waits were ended; their outcome is unknown\n"))?,
                Output::Json => print_json(&json!({ "cancelled": cancelled }))?,
            }
            // A commit that was named and does not wait: nothing was done.
            Ok(if cancelled == 0 && request_id.is_some() { Exit::NotSo } else { Exit::Done })
        }
    }
}

async fn list(client: &Client, output: Output) -> anyhow::Result<Exit> {
    let replication = client.replication().await?;
    match output {
        Output::Table => print(&list_text(&replication))?,
        Output::Json => print_json(&JsonSync::from(&replication))?,
    }
    Ok(Exit::Done)
}

fn list_text(replication: &v1::ReplicationResponse) -> String {
    let sync = replication.sync.clone().unwrap_or_default();
    let rule = match (sync.acks, sync.members.as_slice()) {
        (0, _) => format!("{} alone", replication.primary),
        (acks, members) => format!("{} and {acks} of {{{}}}", replication.primary, members.join(", ")),
    };
    let mut out = String::new();
    for (name, value) in [
        ("setting", format!("{}, mode {}", or_dash(&sync.synchronous_standby_names), sync.mode)),
        ("confirms", rule),
        ("written", lsn_text(replication.remote_write_lsn)),
        ("safe", lsn_text(replication.safe_lsn)),
        ("applied", lsn_text(replication.remote_apply_lsn)),
    ] {
        out.push_str(&format!("{name:<10}{value}\n"));
    }
    if !replication.standbys.is_empty() {
        let mut grid = Grid::new(&["STANDBY", "SYNC", ">PRIORITY", "STATE", "WRITE", "FLUSH", "APPLY"]);
        for standby in &replication.standbys {
            let at = |lsn: u64| if known(standby) { lsn_text(lsn) } else { "-".to_owned() };
            grid.row(vec![
                standby.name.clone(),
                standby.sync_state.clone(),
                standby.sync_priority.to_string(),
                if standby.connected { standby.state.clone() } else { "not connected".to_owned() },
                at(standby.write_lsn),
                at(standby.flush_lsn),
                at(standby.apply_lsn),
            ]);
        }
        out.push('\n');
        out.push_str(&grid.render());
    }
    if !replication.sync_waits.is_empty() {
        out.push('\n');
    }
    for wait in &replication.sync_waits {
        out.push_str(&format!("{wait}\n"));
    }
    out
}

async fn waiting(client: &Client, output: Output, limit: u32) -> anyhow::Result<Exit> {
    let waiting = client.waiting(limit).await?;
    match output {
        Output::Table => print(&waiting_text(&waiting))?,
        Output::Json => print_json(&JsonWaiting::from(&waiting))?,
    }
    Ok(Exit::Done)
}

fn waiting_text(waiting: &v1::WaitingResponse) -> String {
    if waiting.total == 0 {
        return format!("no commit waits on {}\n", waiting.answered_by);
    }
    let mut grid = Grid::new(&["POSITION", "LEVEL", ">WAITED", "REQUEST ID", "WAITS FOR"]);
    for commit in &waiting.commits {
        grid.row(vec![
            format!("{}@{}", lsn_text(commit.lsn), commit.timeline),
            commit.level.clone(),
            format!("{} ms", commit.waited_ms),
            or_dash(&commit.request_id),
            commit.why.clone(),
        ]);
    }
    let shown = waiting.commits.len() as u64;
    let more = if shown < waiting.total { format!(", {shown} are shown") } else { String::new() };
    format!(
        "{} wait on {}, the oldest for {} ms{more}\n\n{}",
        waiting.total,
        waiting.answered_by,
        waiting.oldest_ms,
        grid.render()
    )
}

#[derive(Serialize)]
struct JsonSync<'a> {
    primary: &'a str,
    mode: &'a str,
    synchronous_standby_names: &'a str,
    members: &'a [String],
    acks: u32,
    remote_write_lsn: u64,
    safe_lsn: u64,
    remote_apply_lsn: u64,
    standbys: Vec<JsonStandby<'a>>,
    waits: &'a [String],
}

#[derive(Serialize)]
struct JsonStandby<'a> {
    name: &'a str,
    sync_state: &'a str,
    sync_priority: u32,
    connected: bool,
    state: Option<&'a str>,
    write_lsn: u64,
    flush_lsn: u64,
    apply_lsn: u64,
}

impl<'a> From<&'a v1::ReplicationResponse> for JsonSync<'a> {
    fn from(replication: &'a v1::ReplicationResponse) -> Self {
        let sync = replication.sync.as_ref();
        let standbys = replication.standbys.iter().map(|standby| JsonStandby {
            name: &standby.name,
            sync_state: &standby.sync_state,
            sync_priority: standby.sync_priority,
            connected: standby.connected,
            state: (!standby.state.is_empty()).then_some(standby.state.as_str()),
            write_lsn: standby.write_lsn,
            flush_lsn: standby.flush_lsn,
            apply_lsn: standby.apply_lsn,
        });
        Self {
            primary: &replication.primary,
            mode: sync.map_or("", |sync| &sync.mode),
            synchronous_standby_names: sync.map_or("", |sync| &sync.synchronous_standby_names),
            members: sync.map_or(&[], |sync| &sync.members),
            acks: sync.map_or(0, |sync| sync.acks),
            remote_write_lsn: replication.remote_write_lsn,
            safe_lsn: replication.safe_lsn,
            remote_apply_lsn: replication.remote_apply_lsn,
            standbys: standbys.collect(),
            waits: &replication.sync_waits,
        }
    }
}

#[derive(Serialize)]
struct JsonWaiting<'a> {
    answered_by: &'a str,
    total: u64,
    oldest_ms: u64,
    commits: Vec<JsonCommit<'a>>,
}

#[derive(Serialize)]
struct JsonCommit<'a> {
    timeline: u32,
    lsn: u64,
    level: &'a str,
    request_id: Option<&'a str>,
    waited_ms: u64,
    nodes: &'a [String],
    why: &'a str,
}

impl<'a> From<&'a v1::WaitingResponse> for JsonWaiting<'a> {
    fn from(waiting: &'a v1::WaitingResponse) -> Self {
        let commits = waiting.commits.iter().map(|commit| JsonCommit {
            timeline: commit.timeline,
            lsn: commit.lsn,
            level: &commit.level,
            request_id: (!commit.request_id.is_empty()).then_some(commit.request_id.as_str()),
            waited_ms: commit.waited_ms,
            nodes: &commit.nodes,
            why: &commit.why,
        });
        Self {
            answered_by: &waiting.answered_by,
            total: waiting.total,
            oldest_ms: waiting.oldest_ms,
            commits: commits.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_shown_with_what_it_waits_for() {
        let standby = v1::StandbyStatus {
            name: "b".to_owned(),
            connected: true,
            state: "streaming".to_owned(),
            write_lsn: 0x0200_00A0,
            flush_lsn: 0x0200_0080,
            apply_lsn: 0x0200_0000,
            sync_state: "sync".to_owned(),
            sync_priority: 1,
            ..v1::StandbyStatus::default()
        };
        let replication = v1::ReplicationResponse {
            primary: "a".to_owned(),
            remote_write_lsn: 0x0200_00A0,
            safe_lsn: 0x0200_0080,
            sync: Some(v1::SyncStatus {
                mode: "preferred".to_owned(),
                synchronous_standby_names: "FIRST 1 (b, c)".to_owned(),
                members: vec!["b".to_owned()],
                acks: 1,
            }),
            sync_waits: vec!["the new sync list waits".to_owned()],
            standbys: vec![standby],
            ..v1::ReplicationResponse::default()
        };
        let expected = "\
setting   FIRST 1 (b, c), mode preferred
confirms  a and 1 of {b}
written   0/020000A0
safe      0/02000080
applied   -

STANDBY  SYNC  PRIORITY  STATE      WRITE       FLUSH       APPLY
b        sync         1  streaming  0/020000A0  0/02000080  0/02000000

the new sync list waits
";
        assert_eq!(list_text(&replication), expected);
        let json = serde_json::to_value(JsonSync::from(&replication)).expect("json");
        assert_eq!((json["acks"].as_u64(), json["standbys"][0]["state"].as_str()), (Some(1), Some("streaming")));
    }

    #[test]
    fn who_waits_for_whom_is_one_line_each() {
        let commit = v1::WaitingCommit {
            timeline: 2,
            lsn: 0x0200_00A0,
            level: "on".to_owned(),
            waited_ms: 1_234,
            nodes: vec!["b".to_owned()],
            why: "b to flush it".to_owned(),
            ..v1::WaitingCommit::default()
        };
        let waiting =
            v1::WaitingResponse { total: 7, oldest_ms: 1_234, commits: vec![commit], answered_by: "a".to_owned() };
        let expected = "\
7 wait on a, the oldest for 1234 ms, 1 are shown

POSITION      LEVEL   WAITED  REQUEST ID  WAITS FOR
0/020000A0@2  on     1234 ms  -           b to flush it
";
        assert_eq!(waiting_text(&waiting), expected);
        let nobody = v1::WaitingResponse { answered_by: "a".to_owned(), ..v1::WaitingResponse::default() };
        assert_eq!(waiting_text(&nobody), "no commit waits on a\n");
    }
}
