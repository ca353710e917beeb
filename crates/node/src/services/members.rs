//! `Cluster.ReplaceMember`: a node whose data directory is gone gets its place back.
//!
//! The empty node that came up in its place has an identity of its own. What is checked here is what only the present can
//! tell: who stands at the address, and that nobody runs under the old identity. What keeps the cluster safe is checked
//! again where the command is carried out ([`understudy_core::command`]).

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use understudy_control::Control;
use understudy_core::command::{Command, Outcome, Rejection, StillCounted};
use understudy_core::state::{ClusterState, Member};
use understudy_rpc::error::RpcError;
use understudy_rpc::v1;
use understudy_types::shown::shown;
use understudy_types::{NameError, NodeId, NodeName};

use crate::bootstrap::identify;
use crate::config::check_address;
use crate::view::NodeView;

const ASKED: &str = "the replacement of a member";
/// For so long it is tried again: the state may move on between the plan and the command, Raft may need another leader, and the
/// primary may have to take the node off the sync list first.
const PATIENCE: Duration = Duration::from_secs(10);

/// Replaces the member, and returns once Raft has it. It votes a moment later, and gets its data by itself.
///
/// # Errors
/// When there is no such member, when it is alive or counted on, or when no empty node answers at the address.
pub async fn replace(
    view: &watch::Receiver<NodeView>,
    control: &Control,
    request: v1::ReplaceMemberRequest,
) -> Result<v1::ReplaceMemberResponse, RpcError> {
    let until = Instant::now() + PATIENCE;
    loop {
        let Replacement { old, new, command } = plan(view, &request).await?;
        match control.propose(command).await {
            Ok(Outcome::Applied { generation }) => {
                tracing::info!(name = %request.name, %old, %new, "a member was replaced");
                let (old_node_id, new_node_id) = (old.to_string(), new.to_string());
                return Ok(v1::ReplaceMemberResponse { old_node_id, new_node_id, generation: generation.get() });
            }
            Ok(Outcome::Rejected { reason }) if passes(&reason) && Instant::now() < until => {
                tracing::debug!(%reason, "trying again");
                wait_for_another_state(view).await;
            }
            Ok(Outcome::Rejected { reason }) => return Err(RpcError::not_ready(ASKED, &reason.to_string())),
            // The node may have led Raft. Proposing again does no harm: the command carries its generation.
            Err(error) if Instant::now() < until => {
                tracing::debug!(%error, "trying again");
                wait_for_another_state(view).await;
            }
            Err(error) => return Err(RpcError::not_ready(ASKED, &error.to_string())),
        }
    }
}

/// Who takes whose place.
struct Replacement {
    old: NodeId,
    new: NodeId,
    command: Command,
}

/// Whether it may be carried out a moment later.
fn passes(reason: &Rejection) -> bool {
    let on_the_list = matches!(reason, Rejection::StillNeeded { why: StillCounted::OnTheSyncList, .. });
    on_the_list
        || matches!(reason, Rejection::Stale { .. } | Rejection::Joining { .. } | Rejection::ElectionOpen { .. })
}

/// Until this node has applied more, or for a moment: the leader may be ahead of it.
async fn wait_for_another_state(view: &watch::Receiver<NodeView>) {
    let mut view = view.clone();
    let generation = view.borrow_and_update().cluster.generation;
    let moved = view.wait_for(|view| view.cluster.generation != generation);
    if tokio::time::timeout(Duration::from_secs(1), moved).await.is_err() {
        tracing::debug!("the cluster state has not moved");
    }
}

fn invalid(message: String) -> RpcError {
    RpcError::invalid_argument(message)
}

/// What is to be proposed, once everything that can be seen from here fits.
async fn plan(view: &watch::Receiver<NodeView>, request: &v1::ReplaceMemberRequest) -> Result<Replacement, RpcError> {
    let name: NodeName = request.name.parse().map_err(|error: NameError| invalid(error.to_string()))?;
    let (cluster, old, member) = {
        let view = view.borrow();
        let (old, member) = find(&view.cluster, &name)?;
        if old == view.me {
            return Err(still_there(&name, old));
        }
        (view.cluster.clone(), old, member)
    };
    let address = if request.address.is_empty() { member.address.clone() } else { request.address.clone() };
    check_address("the address of the new node", &address).map_err(|error| invalid(error.to_string()))?;
    if address != member.address
        && identify(&member.address).await.is_some_and(|answer| NodeId::new(answer.node_id) == old)
    {
        return Err(still_there(&name, old));
    }
    let Some(answer) = identify(&address).await else {
        return Err(invalid(format!(
            "nobody answers at {address}: start the server of {name} there first, with an empty data directory"
        )));
    };
    check_answer(&cluster, &name, old, &member, &address, &answer)?;
    let new = NodeId::new(answer.node_id);
    let command = Command::ReplaceMember {
        generation: cluster.generation,
        old,
        new,
        address,
        failover_priority: answer.failover_priority,
        no_sync: answer.no_sync,
    };
    Ok(Replacement { old, new, command })
}

fn still_there(name: &NodeName, old: NodeId) -> RpcError {
    invalid(format!(
        "{name} runs as node {old}: only a member whose data directory is gone is replaced; stop it, empty its data directory, \
         start it again, and ask another node"
    ))
}

fn find(cluster: &ClusterState, name: &NodeName) -> Result<(NodeId, Member), RpcError> {
    let found = cluster.members.iter().find(|(_, member)| member.name == *name);
    found.map(|(id, member)| (*id, member.clone())).ok_or_else(|| {
        let mut names: Vec<String> = cluster.members.values().map(|member| member.name.to_string()).collect();
        names.sort();
        invalid(format!("{name} is not a member of the cluster; its members are {}", names.join(", ")))
    })
}

/// Whether who answered can take the place.
fn check_answer(
    cluster: &ClusterState,
    name: &NodeName,
    old: NodeId,
    member: &Member,
    address: &str,
    answer: &v1::IdentifyResponse,
) -> Result<(), RpcError> {
    if NodeId::new(answer.node_id) == old {
        return Err(still_there(name, old));
    }
    let is_named = answer.name.parse::<NodeName>().is_ok_and(|given| given == *name);
    let why = match () {
        () if !is_named => format!("it is named {}: start it with --name {name}", shown(&answer.name)),
        () if answer.system_id != 0 || !answer.empty => {
            "its data directory is not empty: empty it, and start it again".to_owned()
        }
        () if answer.witness != member.witness => "one of the two is a witness and the other is not".to_owned(),
        () if cluster.segment_size.is_some_and(|size| size.get() != answer.segment_size) => format!(
            "its WAL segments have {} bytes, the cluster's have {}: start it with the cluster's --wal-segment-size",
            answer.segment_size,
            cluster.segment_size.map_or(0, |size| size.get())
        ),
        () if answer.address != address => {
            format!(
                "it advertises {}: start it with --advertise {address}, or give that address",
                shown(&answer.address)
            )
        }
        () => return Ok(()),
    };
    Err(invalid(format!("the node at {address} cannot take the place of {name}: {why}")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use understudy_control::Leadership;
    use understudy_rpc::error::Reason;

    use super::*;

    #[tokio::test]
    async fn what_makes_no_sense_is_not_repeated_at_length() {
        let member = Member {
            name: "b".parse().expect("a name"),
            address: "127.0.0.1:1".to_owned(),
            voter: true,
            witness: false,
            failover_priority: 1,
            no_sync: false,
        };
        let cluster = ClusterState { members: BTreeMap::from([(NodeId::new(2), member)]), ..ClusterState::default() };
        let (_view, view) = watch::channel(NodeView {
            me: NodeId::new(1),
            cluster: Arc::new(cluster),
            leadership: Leadership::default(),
            engine: None,
            primary_of: None,
            nodes: BTreeMap::new(),
            blocked: None,
            waiting_for: None,
        });
        let endless = "x".repeat(4 << 20);
        for (name, address) in [(endless.as_str(), ""), ("b", endless.as_str()), ("b", &format!("{endless}:7400"))] {
            let request = v1::ReplaceMemberRequest { name: name.to_owned(), address: address.to_owned() };
            let Err(error) = plan(&view, &request).await else { panic!("it was taken") };
            assert_eq!(error.reason, Reason::InvalidArgument);
            assert!(error.message.len() < 400, "{} bytes", error.message.len());
            assert!(error.message.contains(&"x".repeat(80)), "{}", error.message);
        }
    }
}
