//! `understudy members`: who belongs to the cluster.

use serde::Serialize;
use understudy_client::Client;

use crate::args::{Output, ReplaceArgs};
use crate::exit::Exit;
use crate::output::{print, print_json};

#[derive(Serialize)]
struct Replaced<'a> {
    name: &'a str,
    old_node_id: &'a str,
    new_node_id: &'a str,
    generation: u64,
}

/// Gives a member's name to the empty node that stands at its address.
pub async fn replace(client: &Client, output: Output, args: ReplaceArgs) -> anyhow::Result<Exit> {
    let done = client.replace_member(args.name.as_str(), args.address).await?;
    let (old, new) = (done.old_node_id.as_str(), done.new_node_id.as_str());
    match output {
        Output::Table => print(&format!(
            "{} is node {new} now, in the place of {old}; it gets its data and its vote by itself: see understudy status\n",
            args.name
        ))?,
        Output::Json => {
            let name = args.name.as_str();
            print_json(&Replaced { name, old_node_id: old, new_node_id: new, generation: done.generation })?;
        }
    }
    Ok(Exit::Done)
}
