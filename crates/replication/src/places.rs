//! The walsenders of a node, by number: streams to standbys and seeds share `max_wal_senders` places.
//!
//! A seed counts as PostgreSQL's base backup does, and is bounded further by
//! [`SeederSettings::seeds_max`](crate::seed::SeederSettings::seeds_max).

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::Status;

use crate::serve::SenderSettings;

/// Whatever `max_wal_senders` says, there are never more.
const PLACES_MAX: usize = 1_000;

/// The places of one node.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// Of [`PLACES_MAX`], those that are not taken.
    free: Arc<Semaphore>,
    /// Read for everyone who asks: a change lets those go on that have one.
    settings: watch::Receiver<SenderSettings>,
}

/// Given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Places {
    pub(crate) fn new(settings: watch::Receiver<SenderSettings>) -> Self {
        Self { free: Arc::new(Semaphore::new(PLACES_MAX)), settings }
    }

    /// A place for one stream.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` when all are taken: try again, or another node.
    pub(crate) fn take(&self) -> Result<Place, Status> {
        let senders_max = self.settings.borrow().senders_max;
        let refused = || {
            Status::resource_exhausted(format!(
                "all {senders_max} walsenders (max_wal_senders) of this node are in use, seeds included: try again when a standby \
                 has left, or ask another node"
            ))
        };
        let permit = Arc::clone(&self.free).try_acquire_owned().map_err(|_| refused())?;
        // Taken first and counted then: two that come together may both be refused, never both be let in.
        if PLACES_MAX - self.free.available_permits() > senders_max {
            return Err(refused());
        }
        Ok(Place { _permit: permit })
    }
}
