//! Who makes a new cluster out of empty nodes.
//!
//! Every node of a new cluster is started with the same list of initial members. A cluster is made only when all
//! of them answer and all of them are empty, and by one of them: the one whose name is the smallest. A node that
//! finds any of the others in use never makes one. So a node that lost its directory cannot found a second
//! cluster beside the first, whichever of the others it reaches: those that it does not reach count as not empty.
//!
//! The node that makes the cluster may die in between. Once Raft's membership is in its log it is not pristine any
//! more, does not come here again, and goes on as a Raft voter.
//!
//! Pure: the node asks the others who they are (`Mesh.Identify`) and acts on the decision.

use std::collections::BTreeMap;

use understudy_types::limits::MEMBERS_MAX;
use understudy_types::{NodeId, NodeName, SystemId};

/// What a node says about itself when it is asked who stands at its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentifyAnswer {
    /// Its identity.
    pub node_id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// None when it belongs to no cluster: zero.
    pub system_id: SystemId,
    /// It has neither data nor a Raft log.
    pub empty: bool,
    /// The list that it was started with, as [`initial_cluster_text`] writes it.
    pub initial_cluster: String,
    /// Of its WAL, in bytes.
    pub segment_size: u64,
}

/// What a node does that may take part in making a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing now: ask again. Another node makes the cluster, or something has to change first.
    Wait {
        /// For the log and for people.
        why: String,
    },
    /// Make the cluster of these members, with their addresses.
    Initialize {
        /// All initial members.
        members: BTreeMap<NodeId, String>,
    },
    /// No waiting helps: the nodes were started with settings that do not fit together.
    Refuse {
        /// For people: what is so, and what to do.
        why: String,
    },
}

/// The list of initial members in one spelling: sorted by name, `name=address,name=address`.
pub fn initial_cluster_text(initial: &BTreeMap<NodeName, String>) -> String {
    let members: Vec<String> = initial.iter().map(|(name, address)| format!("{name}={address}")).collect();
    members.join(",")
}

/// What the node `me` does, started with the members `initial`, of which each gave an answer or none. Its own
/// answer is among them.
pub fn decide(
    me: &NodeName,
    initial: &BTreeMap<NodeName, String>,
    answers: &BTreeMap<NodeName, Option<IdentifyAnswer>>,
) -> Decision {
    if let Some(why) = refusal(me, initial, answers) {
        return Decision::Refuse { why };
    }
    if let Some(why) = in_use(me, initial, answers) {
        return Decision::Wait { why };
    }
    let mut members = BTreeMap::new();
    let mut silent = Vec::new();
    for (name, address) in initial {
        match answers.get(name) {
            Some(Some(answer)) => {
                members.insert(answer.node_id, address.clone());
            }
            Some(None) | None => silent.push(format!("{name} ({address})")),
        }
    }
    if !silent.is_empty() {
        let why =
            format!("no answer from {}; a new cluster is made when every initial member answers", silent.join(", "));
        return Decision::Wait { why };
    }
    match initial.keys().next() {
        Some(first) if first == me => Decision::Initialize { members },
        Some(first) => Decision::Wait { why: format!("{first} makes the new cluster") },
        None => Decision::Refuse { why: "there are no initial members".to_owned() },
    }
}

/// Settings that do not fit together, among those that answered.
fn refusal(
    me: &NodeName,
    initial: &BTreeMap<NodeName, String>,
    answers: &BTreeMap<NodeName, Option<IdentifyAnswer>>,
) -> Option<String> {
    if initial.len() > MEMBERS_MAX {
        return Some(format!("{} initial members are more than a cluster may have ({MEMBERS_MAX})", initial.len()));
    }
    let Some(own) = answers.get(me).and_then(Option::as_ref).filter(|_| initial.contains_key(me)) else {
        return Some(format!(
            "this node is {me}, which is not among the initial members {}; correct its name or the list",
            initial_cluster_text(initial)
        ));
    };
    let mut names: BTreeMap<NodeId, &NodeName> = BTreeMap::new();
    for (name, address) in initial {
        let Some(Some(answer)) = answers.get(name) else { continue };
        if answer.name != *name {
            return Some(format!("the node at {address} is {}, not {name}; correct the addresses", answer.name));
        }
        if let Some(other) = names.insert(answer.node_id, name) {
            return Some(format!("{other} and {name} are the same node {}; correct the addresses", answer.node_id));
        }
        // A member that is in use was started in another way than a new one, and rightly so.
        if !answer.empty {
            continue;
        }
        if !answer.initial_cluster.eq_ignore_ascii_case(&own.initial_cluster) {
            return Some(format!(
                "{name} was started with the initial members {}, {me} with {}; start both with the same ones",
                answer.initial_cluster, own.initial_cluster
            ));
        }
        if answer.segment_size != own.segment_size {
            return Some(format!(
                "{name} has WAL segments of {} bytes, {me} of {}; start both with the same size",
                answer.segment_size, own.segment_size
            ));
        }
    }
    None
}

/// A member that is not empty: no new cluster is made.
fn in_use(
    me: &NodeName,
    initial: &BTreeMap<NodeName, String>,
    answers: &BTreeMap<NodeName, Option<IdentifyAnswer>>,
) -> Option<String> {
    let used = initial.keys().filter_map(|name| answers.get(name).and_then(Option::as_ref)).find(|a| !a.empty)?;
    let name = &used.name;
    Some(if used.system_id == SystemId::default() {
        format!(
            "{name} is not empty, so no new cluster is made; if it is making one with this node, this node is called \
             soon; otherwise empty {name}'s data directory or take {name} off the list"
        )
    } else {
        format!(
            "{name} belongs to cluster {} already, so no new cluster is made; if this node belonged to it and lost its data \
             directory, restore the directory, or put this one in its place: run: understudy members replace {me} --endpoints {}; \
             this node then goes on by itself",
            used.system_id,
            initial.get(name).map_or("(any other node)", String::as_str)
        )
    })
}

#[cfg(test)]
#[path = "bootstrap_tests.rs"]
mod tests;
