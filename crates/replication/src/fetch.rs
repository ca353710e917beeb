//! Fetching what the winner of an election lacks (design, "Failover", 5).
//!
//! Both nodes have sealed for the election, so what is fetched cannot change, and the fetching node acknowledges
//! nothing: what it receives counts once it is flushed, by its next seal report. One attempt: whoever ordered the fetch
//! orders it again, perhaps from another node. It can be dropped or cancelled at any point and repeated.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use understudy_types::{Incarnation, Lsn, NodeId, SystemId, TimelineHistory, TimelineId};

use crate::error::Failure;
use crate::link::Link;
use crate::log::{LogError, LogSink};
use crate::message::{FetchRange, WalFormat};
use crate::receiver::{ReceiverConfig, ReceiverTiming, WalReceiver};

/// What to fetch from whom, as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchConfig {
    /// `host:port` of the source.
    pub source_address: String,
    /// This node's cluster.
    pub system_id: SystemId,
    /// Of its WAL.
    pub format: WalFormat,
    /// This node.
    pub node: NodeId,
    /// Its process start.
    pub incarnation: Incarnation,
    /// The timeline that is being decided: both have sealed for it.
    pub election: TimelineId,
    /// Up to here (S).
    pub until: Lsn,
    /// The pace.
    pub timing: ReceiverTiming,
}

/// A fetch came to nothing. Everything that did come is kept: the next attempt goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The source did not give it.
    #[error("fetching WAL up to {until} from {source_address}: {failure}")]
    Failed {
        /// What was wanted.
        until: Lsn,
        /// From whom.
        source_address: String,
        /// Why not.
        #[source]
        failure: Failure,
    },
    /// The own log did not become durable.
    #[error("flushing the WAL that was fetched up to {until}: {source}")]
    Flush {
        /// What was wanted.
        until: Lsn,
        /// The log's words.
        source: LogError,
    },
    /// It was told to stop.
    #[error("fetching WAL up to {until} from {source_address} was cancelled")]
    Cancelled {
        /// What was wanted.
        until: Lsn,
        /// From whom.
        source_address: String,
    },
}

/// Fetches up to `config.until` into `log`, which must take WAL though its node has sealed, and flushes it. `history` is
/// the cluster state's, which an election does not change. Returns the flushed end, `config.until`.
///
/// # Errors
/// When the source refuses or is lost, the log does not take or flush the WAL, or on `cancel`.
pub async fn fetch<L: LogSink>(
    log: Arc<L>,
    config: FetchConfig,
    history: TimelineHistory,
    cancel: CancellationToken,
) -> Result<Lsn, FetchError> {
    let FetchConfig { source_address, until, election, .. } = config.clone();
    let flusher = Arc::clone(&log);
    let own_end = log.own().end;
    if own_end < until {
        tracing::info!(source = %source_address, from = %own_end, %until, %election, "fetching missing wal");
        let mut link = Link::new(log, source_address.clone(), config.timing, |own| {
            WalReceiver::new(receiver_config(&config), own, history, 0)
        });
        let outcome = receive(&mut link, &source_address, until, &cancel).await;
        link.finish().await;
        outcome?;
    }
    let flushed = tokio::task::spawn_blocking(move || flusher.flush()).await;
    let end = flushed.map_err(LogError::new).flatten().map_err(|source| FetchError::Flush { until, source })?;
    tracing::info!(source = %source_address, %end, "the missing wal is here");
    Ok(end)
}

async fn receive<L: LogSink>(
    link: &mut Link<L>,
    source_address: &str,
    until: Lsn,
    cancel: &CancellationToken,
) -> Result<(), FetchError> {
    while !link.receiver.is_done() {
        tokio::select! {
            () = cancel.cancelled() => {
                return Err(FetchError::Cancelled { until, source_address: source_address.to_owned() });
            }
            () = link.step() => {}
        }
        if let Some(failure) = link.receiver.failure().cloned() {
            return Err(FetchError::Failed { until, source_address: source_address.to_owned(), failure });
        }
    }
    Ok(())
}

fn receiver_config(config: &FetchConfig) -> ReceiverConfig {
    ReceiverConfig {
        system_id: config.system_id,
        format: config.format,
        node: config.node,
        incarnation: config.incarnation,
        damage_epoch: 0,
        timeline: TimelineId::NONE,
        sealed: config.election,
        fetch: Some(FetchRange { election: config.election, until: config.until }),
        timing: config.timing,
    }
}
