//! Opening the data of this node, and noticing that it must not be trusted.

use std::sync::{Arc, Weak};
use std::time::Instant;

use tokio::sync::watch;
use understudy_control::Applied;
use understudy_core::state::ClusterState;
use understudy_engine::{Engine, EngineConfig, SystemClock};
use understudy_store::{RocksConfig, RocksStore};

use super::error::with_causes;
use super::{Server, ServerError};
use crate::damage;
use crate::mesh::Standing;
use crate::promises::PromiseFile;

/// The data of this node.
pub(super) struct Opened {
    pub engine: Engine,
    /// There while any file of its store is open.
    pub held: Weak<()>,
}

impl Server {
    /// Whatever else ended the node: if its data was found damaged meanwhile, the next start must not trust it (INV-DURABLE: it does
    /// not count then, before it says anything to anybody).
    pub(super) fn record_damage(&self, engine: &Engine) {
        let failure = engine.failure().borrow().clone();
        let wal_failure = engine.wal().failure().borrow().clone();
        let found = match (failure, wal_failure) {
            (Some(failure), _) if failure.is_damage() => with_causes(&*failure),
            (_, Some(failure)) if failure.is_damage() => with_causes(&*failure),
            (Some(_) | None, Some(_) | None) => return,
        };
        tracing::error!(%found, "the data of this node is damaged: the next start fetches it again from another node");
        if let Err(error) = damage::record(&*self.files, self.data_dir.path(), &found) {
            tracing::error!(%error, "it cannot be written down that the data is damaged: the next start may go on with it");
        }
    }

    /// A log that was there once and is not any more: the node starts anew, and does not count as what it was.
    fn notice_lost_log(&self, promises: &mut PromiseFile) -> Result<(), ServerError> {
        let watermark = self.data_dir.path().join("wal").join("watermark");
        if promises.get().has_log && !watermark.exists() {
            tracing::error!(path = %watermark.display(), "the wal of this node is gone: it counts as damaged until the cluster knows");
            promises.mark_damaged()?;
        }
        Ok(())
    }

    pub(super) async fn open_engine(
        &self,
        cluster: &ClusterState,
        promises: &mut PromiseFile,
    ) -> Result<Opened, ServerError> {
        self.notice_lost_log(promises)?;
        let data_dir = self.data_dir.path();
        let mut opened = match damage::found(&*self.files, data_dir)? {
            Some(found) => Err(ServerError::Damaged { path: data_dir.to_owned(), found }),
            None => self.try_open(cluster).await,
        };
        let damage = match &opened {
            Err(ServerError::Engine(error)) => error.is_damage(),
            Err(ServerError::Store { source, .. }) => source.is_damage(),
            Err(ServerError::Damaged { .. }) => true,
            Err(_) | Ok(_) => false,
        };
        if let (true, Err(error)) = (damage, &opened) {
            // Before anybody repairs it: what this node confirmed once does not count until the cluster knows.
            let promised = promises.get();
            let before = promised.damaged.then_some(promised.damage_epoch);
            promises.mark_damaged()?;
            let epoch = promises.get().damage_epoch;
            let has_others = cluster.members.iter().any(|(id, member)| *id != self.me.node_id && !member.witness);
            if has_others {
                let data_dir = data_dir.to_owned();
                self.wait_while_needed(&with_causes(error)).await?;
                tracing::error!(%error, kept_in = %damage::damaged_dir(&data_dir).display(),
                    "the data of this node is damaged: it is set aside, and fetched again from another node");
                let moved = tokio::task::spawn_blocking(move || damage::set_aside(&data_dir, before, epoch)).await;
                moved.map_err(|error| ServerError::Failed(error.to_string()))??;
                opened = self.try_open(cluster).await;
            }
        }
        let opened = opened?;
        promises.log_made()?;
        Ok(opened)
    }

    /// The primary of a cluster that counts on nobody else has commits that nobody else has: its damaged data stays where it is,
    /// for people, until somebody else leads (INV-DURABLE). What stands in the log of Raft may be newer than what is applied yet, so
    /// a leader has to be heard first. This node goes on voting meanwhile.
    async fn wait_while_needed(&self, found: &str) -> Result<(), ServerError> {
        let (mut states, mut leadership) = (self.control.state(), self.control.leadership());
        let me = self.me.node_id;
        let mut said = false;
        loop {
            let alone = states.borrow_and_update().state.counts_on_alone(me);
            let led = leadership.borrow_and_update().leader.is_some();
            if led && !alone {
                self.view.send_modify(|view| view.waiting_for = None);
                return Ok(());
            }
            if alone && !said {
                let path = self.data_dir.path().to_owned();
                let why = ServerError::Damaged { path, found: found.to_owned() }.to_string();
                tracing::error!(%why, "this node alone has everything that was acknowledged, and its data is damaged");
                self.view.send_modify(|view| view.waiting_for = Some(why));
                said = true;
            }
            let changed = tokio::select! {
                changed = states.changed() => changed,
                changed = leadership.changed() => changed,
            };
            changed.map_err(|_| ServerError::Failed("raft ended".to_owned()))?;
        }
    }

    async fn try_open(&self, cluster: &ClusterState) -> Result<Opened, ServerError> {
        let began = Instant::now();
        let path = self.data_dir.path().join("store");
        let mut config = EngineConfig::new(self.data_dir.path(), cluster.system_id);
        config.segment_size = self.data_dir.identity().segment_size;
        let (files, system_id) = (Arc::clone(&self.files), cluster.system_id);
        let opened = tokio::task::spawn_blocking(move || {
            let store = RocksStore::open(&RocksConfig::new(&path, system_id))
                .map_err(|source| ServerError::Store { path, source })?;
            let held = store.held();
            let engine = Engine::open(config, files, Arc::new(store), Arc::new(SystemClock))?;
            Ok::<_, ServerError>(Opened { engine, held })
        })
        .await;
        let opened =
            opened.unwrap_or_else(|error| Err(ServerError::Failed(format!("the engine did not open: {error}"))))?;
        let engine = &opened.engine;
        let applied = *engine.visible().borrow();
        tracing::info!(wal_end = %engine.wal().end(), %applied, elapsed_ms = began.elapsed().as_millis(),
            "recovered");
        Ok(opened)
    }
}

/// Keeps what beats are answered by up to date while there is no agent: recovery may take long, and a voter that is at it
/// confirms a primary that goes by the present voters. Ends with Raft.
pub(super) async fn learn_voters(mut states: watch::Receiver<Arc<Applied>>, standing: &watch::Sender<Standing>) {
    loop {
        let voters_version = states.borrow_and_update().state.voters_generation.get();
        standing.send_modify(|standing| standing.voters_version = Some(voters_version));
        if states.changed().await.is_err() {
            return;
        }
    }
}
