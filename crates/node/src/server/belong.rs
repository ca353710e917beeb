//! How this node comes to belong to a cluster.

use std::sync::Arc;

use understudy_core::state::ClusterState;
use understudy_types::SystemId;

use super::{Server, ServerError};
use crate::bootstrap;
use crate::config::strange_variables;
use crate::identity::random_u64;
use crate::tags::{self, Tags};

impl Server {
    /// Waits until the cluster has its system id and binds the data directory to it.
    pub(super) async fn belong(&mut self) -> Result<Arc<ClusterState>, ServerError> {
        let (control, config) = (self.control.clone(), self.config.clone());
        let view = self.view.clone();
        let say = move |why: &str| view.send_modify(|view| view.waiting_for = Some(why.to_owned()));
        say("no cluster has been made yet, or none has been reached");
        let system_id = SystemId::new(random_u64()?);
        let mut states = self.control.state();
        let initial: bootstrap::InitialCluster = config.initial_cluster.iter().cloned().collect();
        let joining = async {
            bootstrap::join_or_initialise(&control, &config.name, &initial, say).await;
            bootstrap::write_first_command(&control, &initial, &config.settings, system_id).await;
        };
        let known = async {
            match states.wait_for(|applied| applied.state.system_id != SystemId::default()).await {
                Ok(applied) => Ok(Arc::new(applied.state.clone())),
                Err(_) => Err(ServerError::Failed("raft ended".to_owned())),
            }
        };
        tokio::pin!(joining, known);
        let cluster = tokio::select! {
            cluster = &mut known => cluster,
            () = &mut joining => known.await,
        }?;
        self.data_dir.join_cluster(&*self.files, cluster.system_id)?;
        let cluster = self.be_a_member(cluster).await?;
        let Some(member) = cluster.members.get(&self.me.node_id) else {
            return Err(ServerError::Failed("this node is not a member any more".to_owned()));
        };
        if member.address != self.config.advertise {
            return Err(ServerError::OtherAddress {
                name: self.config.name.to_string(),
                known: member.address.clone(),
                given: self.config.advertise.clone(),
            });
        }
        self.warn_of_other_settings(&cluster);
        tokio::spawn(tags::keep(self.control.clone(), self.me.node_id, self.tags(), self.stop_serving.clone()));
        self.standing.send_modify(|standing| standing.system_id = cluster.system_id);
        self.view.send_modify(|view| view.waiting_for = None);
        Ok(cluster)
    }

    fn tags(&self) -> Tags {
        Tags { failover_priority: self.config.failover_priority, no_sync: self.config.no_sync }
    }

    /// A directory that was replaced is another node: it waits until somebody makes it a member.
    async fn be_a_member(&self, cluster: Arc<ClusterState>) -> Result<Arc<ClusterState>, ServerError> {
        let me = self.me.node_id;
        if cluster.members.contains_key(&me) {
            return Ok(cluster);
        }
        let why = bootstrap::not_a_member(&self.config.name, me, cluster.system_id);
        tracing::warn!(%why, "waiting to become a member");
        self.view.send_modify(|view| view.waiting_for = Some(why));
        let mut states = self.control.state();
        let joined = states.wait_for(|applied| applied.state.members.contains_key(&me)).await;
        match joined {
            Ok(applied) => Ok(Arc::new(applied.state.clone())),
            Err(_) => Err(ServerError::Failed("raft ended".to_owned())),
        }
    }

    /// What this server was given for a new cluster, and the cluster has otherwise: somebody may think that it counts.
    fn warn_of_other_settings(&self, cluster: &ClusterState) {
        for (name, given, present) in self.config.differs_from(&cluster.settings) {
            let origin = self.config.origin_of(name);
            tracing::warn!(name, given, %origin, present, "the cluster has another value, and that counts: what a server is \
                given is for a new cluster; change it with \"understudy config set {name}=...\"");
        }
        for (variable, meant) in strange_variables(&self.config.sources.environment) {
            tracing::warn!(
                variable,
                meant,
                "an environment variable is not looked at, and looks like a misspelt setting"
            );
        }
    }
}
