//! What the services see of the node: published by the agent, read by everybody, written by nobody else.

use std::collections::BTreeMap;
use std::sync::Arc;

use understudy_control::Leadership;
use understudy_core::observation::NodeReport;
use understudy_core::state::ClusterState;
use understudy_engine::Engine;
use understudy_rpc::error::RpcError;
use understudy_types::{DurabilityLevel, NodeId, TimelineId};

/// The node and the cluster as this node knows it.
#[derive(Clone)]
pub struct NodeView {
    /// This node.
    pub me: NodeId,
    /// What Raft agreed on, as far as this node has applied it.
    pub cluster: Arc<ClusterState>,
    /// Raft, as this node sees it.
    pub leadership: Leadership,
    /// None before the node belongs to a cluster, and on a node that could not open its data.
    pub engine: Option<Engine>,
    /// The timeline that this node opened and is the primary of.
    pub primary_of: Option<TimelineId>,
    /// Itself included.
    pub nodes: BTreeMap<NodeId, NodeSeen>,
    /// As the Raft leader: what keeps the open election from ending.
    pub blocked: Option<String>,
    /// Why the node does not take part yet, before it belongs to a cluster.
    pub waiting_for: Option<String>,
}

/// A node as it was last heard.
#[derive(Clone)]
pub struct NodeSeen {
    /// In milliseconds.
    pub heard_ms_ago: u64,
    /// Its own word.
    pub report: Arc<NodeReport>,
    /// It was connected, and now nobody listens at its address: it is dead, however lately it was heard.
    pub refused: bool,
    /// Why our stream to it does not stand; none when it does.
    pub problem: Option<String>,
}

impl NodeView {
    /// Name and address of whom Raft names as the primary of the present timeline, unless it is being decided.
    pub fn primary(&self) -> Option<(NodeId, &str, &str)> {
        if self.cluster.election.is_some() {
            return None;
        }
        let id = self.cluster.primary()?.node;
        let member = self.cluster.members.get(&id)?;
        Some((id, member.name.as_str(), member.address.as_str()))
    }

    /// The level of a commit that names none.
    pub fn default_durability(&self) -> DurabilityLevel {
        self.cluster.settings.default_durability
    }

    /// What is asked of this node needs the primary, and this node is not it.
    pub fn refusal(&self, asked: &str) -> RpcError {
        match self.primary() {
            Some((id, name, address)) if id != self.me => RpcError::not_primary(asked, name, address),
            Some(_) if self.primary_of.is_some() => RpcError::no_primary(asked, "this node is giving its timeline up"),
            Some(_) => RpcError::no_primary(asked, "this node was promoted and has not opened its timeline"),
            None => RpcError::no_primary(asked, &self.no_primary_reason()),
        }
    }

    /// Why nobody can be written to now, for people.
    pub fn no_primary_reason(&self) -> String {
        if let Some(waiting_for) = &self.waiting_for {
            return waiting_for.clone();
        }
        match &self.cluster.election {
            Some(election) => {
                let blocked = self.blocked.as_ref().map(|text| format!("; {text}")).unwrap_or_default();
                format!("timeline {} is being decided ({}){blocked}", election.timeline, election.reason)
            }
            None => "no primary was promoted yet".to_owned(),
        }
    }
}
