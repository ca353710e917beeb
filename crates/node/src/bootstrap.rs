//! How a new cluster comes to be: the shell around [`understudy_control::bootstrap::decide`].
//!
//! Every initial member asks all others who they are. Only when all of them answer, all are empty and all were
//! started with the same list does the first of them by name initialise Raft; the Raft leader then writes the
//! first command, which gives the cluster its system id. A node whose directory was emptied finds that the others
//! are not empty and never makes a second cluster: it says what to do and waits.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use tonic::transport::Endpoint;
use understudy_control::bootstrap::{Decision, IdentifyAnswer, decide, initial_cluster_text};
use understudy_control::{Control, ProposeError};
use understudy_core::command::Command;
use understudy_core::state::{Member, Settings};
use understudy_rpc::v1::mesh_client::MeshClient;
use understudy_rpc::v1::{IdentifyRequest, IdentifyResponse};
use understudy_types::{NodeId, NodeName, SegmentSize, SystemId};

const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
const ATTEMPT_INTERVAL: Duration = Duration::from_millis(200);

/// Who stands at `address`; none when nobody answers in time.
pub async fn identify(address: &str) -> Option<IdentifyResponse> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .ok()?
        .connect_timeout(ATTEMPT_TIMEOUT)
        .timeout(ATTEMPT_TIMEOUT);
    let ask = async {
        let mut client = MeshClient::new(endpoint.connect().await.ok()?);
        Some(client.identify(IdentifyRequest {}).await.ok()?.into_inner())
    };
    tokio::time::timeout(ATTEMPT_TIMEOUT, ask).await.ok().flatten()
}

/// What the decision looks at, and what the first command says of the member.
struct Answer {
    identity: IdentifyAnswer,
    segment_size: SegmentSize,
    witness: bool,
    failover_priority: u32,
    no_sync: bool,
}

/// An answer that holds what it must; none when it is not one of this version.
fn understood(answer: IdentifyResponse) -> Option<Answer> {
    let identity = IdentifyAnswer {
        node_id: NodeId::new(answer.node_id),
        name: answer.name.parse().ok()?,
        system_id: SystemId::new(answer.system_id),
        empty: answer.empty,
        initial_cluster: answer.initial_cluster,
        segment_size: answer.segment_size,
    };
    Some(Answer {
        identity,
        segment_size: SegmentSize::new(answer.segment_size).ok()?,
        witness: answer.witness,
        failover_priority: answer.failover_priority,
        no_sync: answer.no_sync,
    })
}

/// The members that a new cluster is to have, with their addresses.
pub type InitialCluster = BTreeMap<NodeName, String>;

async fn ask_all(initial_cluster: &InitialCluster) -> BTreeMap<NodeName, Option<Answer>> {
    let asked = initial_cluster.iter().map(|(name, address)| async move {
        let answer = identify(address).await.and_then(understood).filter(|answer| answer.identity.name == *name);
        (name.clone(), answer)
    });
    join_all(asked).await.into_iter().collect()
}

/// Runs on a pristine node until it belongs to a cluster: initialises Raft if that is this node's part. `say` is
/// told what it waits for whenever that changes.
pub async fn join_or_initialise(
    control: &Control,
    me: &NodeName,
    initial_cluster: &InitialCluster,
    say: impl Fn(&str),
) {
    if initial_cluster.is_empty() {
        let why = "this node is empty and was started without --initial-cluster: it makes no cluster, and waits to be found by one";
        tracing::warn!(reason = why, "waiting to join a cluster");
        say(why);
    }
    let mut said = String::new();
    let mut states = control.state();
    loop {
        if states.borrow_and_update().state.system_id != SystemId::default() || !control.is_pristine() {
            return;
        }
        if initial_cluster.is_empty() {
            if states.changed().await.is_err() {
                return;
            }
            continue;
        }
        let answers = ask_all(initial_cluster).await.into_iter();
        let identities = answers.map(|(name, answer)| (name, answer.map(|answer| answer.identity))).collect();
        let why = match decide(me, initial_cluster, &identities) {
            Decision::Initialize { members } => match control.initialize(members).await {
                Ok(()) => {
                    tracing::info!("initialised raft for a new cluster");
                    return;
                }
                Err(error) => error.to_string(),
            },
            Decision::Wait { why } | Decision::Refuse { why } => why,
        };
        if why != said {
            tracing::info!(reason = %why, "waiting to join a cluster");
            say(&why);
            said = why;
        }
        tokio::select! {
            () = tokio::time::sleep(ATTEMPT_INTERVAL) => {}
            changed = states.changed() => if changed.is_err() { return },
        }
    }
}

/// Runs on every node until the cluster has its system id: the Raft leader writes the first command, once all
/// initial members have said who they are.
pub async fn write_first_command(
    control: &Control,
    initial_cluster: &InitialCluster,
    settings: &Settings,
    system_id: SystemId,
) {
    let mut states = control.state();
    let mut leadership = control.leadership();
    loop {
        if states.borrow_and_update().state.system_id != SystemId::default() {
            return;
        }
        if leadership.borrow_and_update().i_am_leader
            && let Some(command) = first_command(control, initial_cluster, settings, system_id).await
        {
            match control.propose(command).await {
                Ok(outcome) => tracing::info!(?outcome, %system_id, "wrote the first command"),
                Err(error) => report(&error),
            }
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            changed = leadership.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(ATTEMPT_INTERVAL) => {}
        }
    }
}

fn report(error: &ProposeError) {
    tracing::warn!(%error, "cannot write the first command yet");
}

/// None until every initial member has answered, and is who Raft was made of: a directory that was emptied in between is
/// another node, which would never be a voter.
async fn first_command(
    control: &Control,
    initial_cluster: &InitialCluster,
    settings: &Settings,
    system_id: SystemId,
) -> Option<Command> {
    let answers = ask_all(initial_cluster).await;
    let mut members = BTreeMap::new();
    let mut segment_size = None;
    for (name, address) in initial_cluster {
        let answer = answers.get(name)?.as_ref()?;
        segment_size = Some(answer.segment_size);
        let member = Member {
            name: name.clone(),
            address: address.clone(),
            voter: true,
            witness: answer.witness,
            failover_priority: answer.failover_priority,
            no_sync: answer.no_sync,
        };
        members.insert(answer.identity.node_id, member);
    }
    let voters = control.leadership().borrow().voters.clone();
    if !members.keys().eq(voters.iter()) {
        let found: Vec<String> = members.keys().map(ToString::to_string).collect();
        tracing::error!(
            ?voters,
            ?found,
            "the nodes at the initial addresses are not those that raft was made of: a data \
            directory was replaced in between; empty all of them and start again"
        );
        return None;
    }
    Some(Command::Bootstrap { system_id, members, segment_size: segment_size?, settings: settings.clone() })
}

/// What a node is told that the cluster does not know: why, and what to run.
pub fn not_a_member(name: &NodeName, node_id: NodeId, system_id: SystemId) -> String {
    format!(
        "node \"{name}\" ({node_id}) is not a member of cluster {system_id}: its data directory was replaced after the cluster \
         was made, or it was removed; a directory that lost its data cannot vote or count under the old identity; to put this one \
         in its place, run: understudy members replace {name} --endpoints (any other node); this node then goes on by itself"
    )
}

/// The list as it is given to others: equal lists give equal texts.
pub fn canonical(initial_cluster: &InitialCluster) -> String {
    initial_cluster_text(initial_cluster)
}
