use serde_json::{Value, json};

use super::*;

fn member(name: &str, role: &str, state: &str, sync_state: &str, raft_role: &str, apply: u64) -> v1::MemberStatus {
    v1::MemberStatus {
        node_id: "00000000000000aa".to_owned(),
        name: name.to_owned(),
        address: format!("127.0.0.1:740{}", name.len()),
        role: role.to_owned(),
        state: state.to_owned(),
        timeline: 3,
        write_lsn: 0x0200_00A0,
        flush_lsn: 0x0200_00A0,
        apply_lsn: apply,
        lag_bytes: 0x0200_00A0 - apply,
        sync_state: sync_state.to_owned(),
        voter: true,
        raft_role: raft_role.to_owned(),
        heard_ms_ago: 42,
        failover_priority: 1,
        ..v1::MemberStatus::default()
    }
}

fn status() -> v1::StatusResponse {
    v1::StatusResponse {
        system_id: "0123456789abcdef".to_owned(),
        generation: 12,
        timeline: 3,
        primary: "a".to_owned(),
        primary_address: "127.0.0.1:7401".to_owned(),
        writable: true,
        sync: Some(v1::SyncStatus {
            mode: "preferred".to_owned(),
            synchronous_standby_names: "ANY 1 (*)".to_owned(),
            members: vec!["bb".to_owned(), "ccc".to_owned()],
            acks: 1,
        }),
        raft: Some(v1::RaftStatus { leader: "bb".to_owned(), term: 4, last_applied_index: 33 }),
        members: vec![
            member("a", "primary", "running", "", "follower", 0x0200_00A0),
            member("bb", "standby", "streaming", "quorum", "leader", 0x0200_0000),
            member("ccc", "standby", "catchup", "async", "follower", 0x0100_0000),
        ],
        answered_by: "a".to_owned(),
        ..v1::StatusResponse::default()
    }
}

#[test]
fn a_healthy_cluster_is_one_readable_table() {
    let expected = "\
cluster   0123456789abcdef, generation 12, as a knows it
primary   a at 127.0.0.1:7401, timeline 3
writable  yes
sync      ANY 1 (*), mode preferred; 1 of {bb, ccc} confirms each commit
raft      leader bb, term 4, applied index 33

MEMBER  ADDRESS         ROLE     STATE      TL  WRITE       FLUSH       APPLY          LAG  SYNC    RAFT      HEARD
a       127.0.0.1:7401  primary  running     3  0/020000A0  0/020000A0  0/020000A0     0 B  -       follower      -
bb      127.0.0.1:7402  standby  streaming   3  0/020000A0  0/020000A0  0/02000000   160 B  quorum  leader    42 ms
ccc     127.0.0.1:7403  standby  catchup     3  0/020000A0  0/020000A0  0/01000000  16 MiB  async   follower  42 ms
";
    assert_eq!(text(&status(), &[], &[]), expected);
}

#[test]
fn trouble_is_said_in_full() {
    let mut status = status();
    status.writable = false;
    status.not_writable_reason = "timeline 4 is being decided".to_owned();
    status.election = Some(v1::ElectionStatus {
        timeline: 4,
        reason: "a is gone".to_owned(),
        blocked: "1 of 3 voters sealed, 2 are needed".to_owned(),
    });
    status.members[2].problem = "its store has applied too much".to_owned();
    status.members[2].damaged = true;
    let silent = [Silent { address: "127.0.0.1:7401", why: "connection refused" }];
    let text = text(&status, &silent, &[]);
    for line in [
        "writable  no: timeline 4 is being decided",
        "election  timeline 4 is being decided: a is gone",
        "blocked   1 of 3 voters sealed, 2 are needed",
        "ccc: its WAL does not count until it is on the sync list again; its store has applied too much",
        "127.0.0.1:7401 does not answer: connection refused",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
    }
}

#[test]
fn a_node_before_its_cluster_says_so() {
    let status = v1::StatusResponse { answered_by: "a".to_owned(), ..v1::StatusResponse::default() };
    let text = text(&status, &[], &[]);
    assert!(text.contains("not made yet; a answers") && text.contains("primary   none yet"), "{text}");
}

#[test]
fn json_has_the_same_facts() {
    let status = status();
    let silent = [Silent { address: "x:1", why: "refused" }];
    let value: Value = serde_json::to_value(JsonStatus::new(&status, &silent, &[])).expect("json");
    assert_eq!(value["primary"], "a");
    assert_eq!(value["writable"], true);
    assert_eq!(value["not_writable_reason"], Value::Null);
    assert_eq!(value["election"], Value::Null);
    assert_eq!(value["sync"]["members"], json!(["bb", "ccc"]));
    assert_eq!(value["raft"]["leader"], "bb");
    assert_eq!(value["members"][1]["sync_state"], "quorum");
    assert_eq!(value["members"][1]["apply_lsn"], 0x0200_0000);
    assert_eq!(value["silent"], json!([{"address": "x:1", "why": "refused"}]));
}

#[test]
fn the_latest_cluster_state_is_shown_and_the_primarys_word_counts() {
    let answer = |name: &str, generation: u64| {
        let status = v1::StatusResponse { answered_by: name.to_owned(), generation, ..status() };
        NodeAnswer { address: format!("{name}:1"), answer: Ok(status) }
    };
    let down = NodeAnswer { address: "d:1".to_owned(), answer: Err("refused".to_owned()) };
    let answers = [answer("ccc", 12), answer("a", 12), answer("bb", 12), down];
    assert_eq!(best(&answers).map(|status| status.answered_by.as_str()), Some("a"));
    assert_eq!(silent(&answers).len(), 1);
    let answers = [answer("a", 12), answer("ccc", 13)];
    assert_eq!(best(&answers).map(|status| status.answered_by.as_str()), Some("ccc"));
}

#[test]
fn a_node_that_is_being_seeded_shows_how_far_it_is() {
    let mut status = status();
    let seeded = &mut status.members[2];
    seeded.state = "seeding".to_owned();
    seeded.problem = "it is being seeded: the WAL was removed upstream".to_owned();
    (seeded.seed_source, seeded.seed_reason) = ("bb".to_owned(), "the WAL was removed upstream".to_owned());
    (seeded.seed_bytes_total, seeded.seed_bytes_done, seeded.seed_bytes_reused) = (4 << 20, 2 << 20, 1 << 20);
    let text = text(&status, &[], &[]);
    assert!(
        text.contains(
            "ccc: it is being seeded: the WAL was removed upstream; seeding from bb: 2048 KiB of 4096 KiB are here, \
             1024 KiB of them were before"
        ),
        "{text}"
    );
    let value: Value = serde_json::to_value(JsonStatus::new(&status, &[], &[])).expect("json");
    assert_eq!(value["members"][2]["seed"]["bytes_done"], json!(2 << 20));
    assert_eq!(value["members"][1]["seed"], Value::Null);
}

#[test]
fn a_node_that_lost_its_disk_says_what_to_run() {
    let why = "the others are not empty; to put this one in its place, run: understudy members replace ccc";
    let empty = v1::StatusResponse {
        answered_by: "ccc".to_owned(),
        not_writable_reason: why.to_owned(),
        ..v1::StatusResponse::default()
    };
    // It may know the cluster by now, and be no member of it.
    let mut learning = v1::StatusResponse { answered_by: "ddd".to_owned(), generation: 11, ..status() };
    learning.not_writable_reason = "it waits".to_owned();
    let answer = |address: &str, status| NodeAnswer { address: address.to_owned(), answer: Ok(status) };
    let answers = [answer("a:1", status()), answer("c:1", empty.clone()), answer("d:1", learning)];
    let shown = best(&answers).expect("a status");
    let outside = outside(&answers, shown);
    let text = text(shown, &[], &outside);
    assert!(text.ends_with(&format!("\nccc at c:1: {why}\nddd at d:1: it waits\n")), "{text}");
    let value: Value = serde_json::to_value(JsonStatus::new(shown, &[], &outside)).expect("json");
    assert_eq!(value["outside"][0], json!({"address": "c:1", "name": "ccc", "why": why}));
    // Alone it is what is shown.
    let alone = [answer("c:1", empty)];
    assert!(super::outside(&alone, best(&alone).expect("a status")).is_empty());
}
