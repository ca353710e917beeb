//! `understudy history`: every timeline of the cluster.

use serde::Serialize;
use understudy_client::{Client, NodeAnswer};
use understudy_rpc::v1;

use crate::args::Output;
use crate::exit::Exit;
use crate::output::{Grid, lsn_text, print, print_json, time_text};

/// Prints the longest history that any endpoint knows.
pub async fn run(client: &Client, output: Output) -> anyhow::Result<Exit> {
    let answers = client.history().await;
    let longest =
        answers.iter().filter_map(|node| node.answer.as_ref().ok()).max_by_key(|history| history.entries.len());
    let Some(history) = longest else { anyhow::bail!(nobody_answers(&answers)) };
    match output {
        Output::Table => print(&table(history))?,
        Output::Json => print_json(&history.entries.iter().map(JsonTimeline::from).collect::<Vec<_>>())?,
    }
    Ok(Exit::Done)
}

/// What to say when no node answered.
pub fn nobody_answers<T>(answers: &[NodeAnswer<T>]) -> String {
    let each: Vec<String> = answers
        .iter()
        .filter_map(|node| node.answer.as_ref().err().map(|why| format!("{}: {why}", node.address)))
        .collect();
    let each = each.join("; ");
    format!(
        "no node answers ({each}); check that the servers run, and give their addresses with --endpoints or \
         UNDERSTUDY_ENDPOINTS"
    )
}

fn table(history: &v1::HistoryResponse) -> String {
    if history.entries.is_empty() {
        return "no timeline has been opened yet\n".to_owned();
    }
    let mut grid = Grid::new(&[">TIMELINE", ">FROM", "SWITCH LSN", "SAFE LSN", "PRIMARY", "TIME", ">OUTAGE", "REASON"]);
    for entry in &history.entries {
        grid.row(vec![
            entry.timeline.to_string(),
            if entry.parent == 0 { "-".to_owned() } else { entry.parent.to_string() },
            lsn_text(entry.switch_lsn),
            lsn_text(entry.safe_lsn),
            entry.node.clone(),
            time_text(entry.time_ms),
            entry.outage_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms")),
            entry.reason.clone(),
        ]);
    }
    grid.render()
}

#[derive(Serialize)]
struct JsonTimeline<'a> {
    timeline: u32,
    parent: u32,
    switch_lsn: u64,
    safe_lsn: u64,
    node: &'a str,
    node_id: &'a str,
    reason: &'a str,
    time_ms: i64,
    /// Null where nobody knows.
    outage_ms: Option<u64>,
}

impl<'a> From<&'a v1::TimelineEntry> for JsonTimeline<'a> {
    fn from(entry: &'a v1::TimelineEntry) -> Self {
        Self {
            timeline: entry.timeline,
            parent: entry.parent,
            switch_lsn: entry.switch_lsn,
            safe_lsn: entry.safe_lsn,
            node: &entry.node,
            node_id: &entry.node_id,
            reason: &entry.reason,
            time_ms: entry.time_ms,
            outage_ms: entry.outage_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(timeline: u32, parent: u32, node: &str, reason: &str) -> v1::TimelineEntry {
        v1::TimelineEntry {
            timeline,
            parent,
            switch_lsn: 0x0100_0000 * u64::from(timeline),
            safe_lsn: 0x0100_0000 * u64::from(parent),
            node: node.to_owned(),
            node_id: "00000000000000aa".to_owned(),
            reason: reason.to_owned(),
            time_ms: 951_827_696_789,
            outage_ms: (parent > 0).then_some(412),
        }
    }

    #[test]
    fn a_history_is_a_table() {
        let history =
            v1::HistoryResponse { entries: vec![entry(1, 0, "a", "first start"), entry(2, 1, "b", "a is gone")] };
        assert_eq!(
            table(&history),
            "TIMELINE  FROM  SWITCH LSN  SAFE LSN    PRIMARY  TIME                      OUTAGE  REASON\n       \
             1     -  0/01000000  -           a        2000-02-29T12:34:56.789Z       -  first start\n       \
             2     1  0/02000000  0/01000000  b        2000-02-29T12:34:56.789Z  412 ms  a is gone\n"
        );
        assert!(table(&v1::HistoryResponse::default()).contains("no timeline"));
    }

    #[test]
    fn silence_names_everybody_who_was_asked() {
        let silent =
            |address: &str| NodeAnswer::<()> { address: address.to_owned(), answer: Err("refused".to_owned()) };
        let text = nobody_answers(&[silent("a:1"), silent("b:2")]);
        assert!(text.contains("a:1: refused; b:2: refused") && text.contains("--endpoints"), "{text}");
    }
}
