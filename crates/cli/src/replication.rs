//! `understudy replication`: every standby as the primary sees it, PostgreSQL's `pg_stat_replication`.

use serde::Serialize;
use understudy_client::Client;
use understudy_rpc::v1;

use crate::args::Output;
use crate::exit::Exit;
use crate::output::{Grid, bytes_text, lsn_text, or_dash, print, print_json, time_text};

/// Prints it.
pub async fn run(client: &Client, output: Output) -> anyhow::Result<Exit> {
    let replication = client.replication().await?;
    match output {
        Output::Table => print(&text(&replication))?,
        Output::Json => print_json(&JsonReplication::from(&replication))?,
    }
    Ok(Exit::Done)
}

fn text(replication: &v1::ReplicationResponse) -> String {
    let mut out = format!(
        "primary {}, timeline {}: end {}, flushed {}, safe {}\n",
        replication.primary,
        replication.timeline,
        lsn_text(replication.end_lsn),
        lsn_text(replication.flush_lsn),
        lsn_text(replication.safe_lsn)
    );
    if replication.standbys.is_empty() {
        out.push_str("no member but the primary holds data\n");
        return out;
    }
    let mut grid = Grid::new(&[
        "STANDBY",
        "ADDRESS",
        "STATE",
        "SENT",
        "WRITE",
        "FLUSH",
        "APPLY",
        ">WRITE LAG",
        ">FLUSH LAG",
        ">APPLY LAG",
        "SYNC",
        ">PRIORITY",
        "SINCE",
        "REPLY",
    ]);
    for standby in &replication.standbys {
        let lag = |bytes: u64, time_us: Option<u64>| match (known(standby), time_us) {
            (false, _) => "-".to_owned(),
            (true, None) => bytes_text(bytes),
            (true, Some(us)) => format!("{}, {}", bytes_text(bytes), time(us)),
        };
        grid.row(vec![
            standby.name.clone(),
            standby.address.clone(),
            if standby.connected { standby.state.clone() } else { "not connected".to_owned() },
            lsn_text(standby.sent_lsn),
            lsn_text(standby.write_lsn),
            lsn_text(standby.flush_lsn),
            lsn_text(standby.apply_lsn),
            lag(standby.write_lag_bytes, standby.write_lag_us),
            lag(standby.flush_lag_bytes, standby.flush_lag_us),
            lag(standby.apply_lag_bytes, standby.apply_lag_us),
            or_dash(&standby.sync_state),
            standby.sync_priority.to_string(),
            unix_text(standby.since_ms),
            unix_text(standby.reply_time_ms),
        ]);
    }
    out.push_str(&grid.render());
    for standby in replication.standbys.iter().filter(|standby| standby.damaged) {
        out.push_str(&format!("{}: its WAL does not count until it is on the sync list again\n", standby.name));
    }
    out
}

/// Whether it has said anything.
pub fn known(standby: &v1::StandbyStatus) -> bool {
    standby.write_lsn != 0
}

fn time(us: u64) -> String {
    match us {
        0..10_000 => format!("{}.{} ms", us / 1_000, us % 1_000 / 100),
        10_000..10_000_000 => format!("{} ms", us / 1_000),
        _ => format!("{} s", us / 1_000_000),
    }
}

fn unix_text(ms: i64) -> String {
    if ms == 0 { "-".to_owned() } else { time_text(ms) }
}

#[derive(Serialize)]
struct JsonReplication<'a> {
    primary: &'a str,
    timeline: u32,
    end_lsn: u64,
    flush_lsn: u64,
    safe_lsn: u64,
    remote_write_lsn: u64,
    remote_apply_lsn: u64,
    standbys: Vec<JsonStandby<'a>>,
}

#[derive(Serialize)]
struct JsonStandby<'a> {
    name: &'a str,
    node_id: &'a str,
    address: &'a str,
    connected: bool,
    since_ms: Option<i64>,
    state: Option<&'a str>,
    sent_lsn: u64,
    write_lsn: u64,
    flush_lsn: u64,
    apply_lsn: u64,
    write_lag_bytes: u64,
    flush_lag_bytes: u64,
    apply_lag_bytes: u64,
    write_lag_us: Option<u64>,
    flush_lag_us: Option<u64>,
    apply_lag_us: Option<u64>,
    sync_state: &'a str,
    sync_priority: u32,
    reply_time_ms: Option<i64>,
    damaged: bool,
}

impl<'a> From<&'a v1::ReplicationResponse> for JsonReplication<'a> {
    fn from(replication: &'a v1::ReplicationResponse) -> Self {
        Self {
            primary: &replication.primary,
            timeline: replication.timeline,
            end_lsn: replication.end_lsn,
            flush_lsn: replication.flush_lsn,
            safe_lsn: replication.safe_lsn,
            remote_write_lsn: replication.remote_write_lsn,
            remote_apply_lsn: replication.remote_apply_lsn,
            standbys: replication.standbys.iter().map(JsonStandby::from).collect(),
        }
    }
}

impl<'a> From<&'a v1::StandbyStatus> for JsonStandby<'a> {
    fn from(standby: &'a v1::StandbyStatus) -> Self {
        Self {
            name: &standby.name,
            node_id: &standby.node_id,
            address: &standby.address,
            connected: standby.connected,
            since_ms: (standby.since_ms != 0).then_some(standby.since_ms),
            state: (!standby.state.is_empty()).then_some(standby.state.as_str()),
            sent_lsn: standby.sent_lsn,
            write_lsn: standby.write_lsn,
            flush_lsn: standby.flush_lsn,
            apply_lsn: standby.apply_lsn,
            write_lag_bytes: standby.write_lag_bytes,
            flush_lag_bytes: standby.flush_lag_bytes,
            apply_lag_bytes: standby.apply_lag_bytes,
            write_lag_us: standby.write_lag_us,
            flush_lag_us: standby.flush_lag_us,
            apply_lag_us: standby.apply_lag_us,
            sync_state: &standby.sync_state,
            sync_priority: standby.sync_priority,
            reply_time_ms: (standby.reply_time_ms != 0).then_some(standby.reply_time_ms),
            damaged: standby.damaged,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replication() -> v1::ReplicationResponse {
        let streaming = v1::StandbyStatus {
            name: "b".to_owned(),
            address: "127.0.0.1:7401".to_owned(),
            connected: true,
            since_ms: 951_827_696_789,
            state: "streaming".to_owned(),
            sent_lsn: 0x0200_00A0,
            write_lsn: 0x0200_00A0,
            flush_lsn: 0x0200_00A0,
            apply_lsn: 0x0200_0000,
            apply_lag_bytes: 160,
            write_lag_us: Some(350),
            flush_lag_us: Some(1_250),
            apply_lag_us: Some(12_000),
            sync_state: "quorum".to_owned(),
            sync_priority: 1,
            reply_time_ms: 951_827_696_800,
            ..v1::StandbyStatus::default()
        };
        let gone = v1::StandbyStatus {
            name: "c".to_owned(),
            address: "127.0.0.1:7402".to_owned(),
            sync_state: "potential".to_owned(),
            sync_priority: 1,
            damaged: true,
            ..v1::StandbyStatus::default()
        };
        v1::ReplicationResponse {
            primary: "a".to_owned(),
            timeline: 3,
            end_lsn: 0x0200_00A0,
            flush_lsn: 0x0200_00A0,
            safe_lsn: 0x0200_00A0,
            standbys: vec![streaming, gone],
            ..v1::ReplicationResponse::default()
        }
    }

    #[test]
    fn each_standby_is_a_row() {
        let text = text(&replication());
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0].join(" "), "primary a, timeline 3: end 0/020000A0, flushed 0/020000A0, safe 0/020000A0");
        let expected = "b 127.0.0.1:7401 streaming 0/020000A0 0/020000A0 0/020000A0 0/02000000 0 B, 0.3 ms 0 B, 1.2 ms \
                        160 B, 12 ms quorum 1 2000-02-29T12:34:56.789Z 2000-02-29T12:34:56.800Z";
        assert_eq!(rows[2].join(" "), expected);
        assert_eq!(rows[3].join(" "), "c 127.0.0.1:7402 not connected - - - - - - - potential 1 - -");
        assert!(rows[4].join(" ").starts_with("c: its WAL does not count"));
    }

    #[test]
    fn in_json_none_is_null() {
        let json = serde_json::to_value(JsonReplication::from(&replication())).expect("json");
        assert_eq!(json["standbys"][0]["flush_lag_us"], 1_250);
        assert!(json["standbys"][1]["flush_lag_us"].is_null() && json["standbys"][1]["since_ms"].is_null());
    }
}
