//! Reading a log without opening it: for tools, while its server is down. Nothing is changed.
//!
//! The end is the last good record; whether what follows is a torn tail or corruption is for [`crate::Wal::open`] to
//! say.

use std::path::PathBuf;
use std::sync::Arc;

use understudy_types::{Lsn, SegmentSize, SystemId, TimelineHistory};

use crate::chain::Chain;
use crate::decoder::{DecodedRecord, Decoder};
use crate::directory::{COPY_BYTES, Directory};
use crate::error::WalError;
use crate::files::Files;
use crate::history;
use crate::recovery::guard;
use crate::scan::{Scan, ScanError};
use crate::watermark::peek;

/// A log that nobody writes to.
pub struct OfflineLog {
    directory: Directory,
    chain: Arc<Chain>,
    watermark: Lsn,
    first: Lsn,
}

impl OfflineLog {
    /// Looks at the log in `dir`.
    ///
    /// # Errors
    /// [`WalError::Mismatch`] for another log's files, [`WalError::CorruptFile`], [`WalError::Io`].
    pub fn open(
        files: Arc<dyn Files>,
        dir: PathBuf,
        system_id: SystemId,
        segment_size: SegmentSize,
    ) -> Result<Self, WalError> {
        let directory = Directory { files, path: dir, system_id, segment_size };
        guard(&directory)?;
        let chain = Arc::new(history::load(&directory)?);
        let watermark = peek(&directory)?.map_or(segment_size.log_start(), |position| position.lsn);
        let first = directory.first_kept(&chain, watermark)?;
        Ok(Self { directory, chain, watermark, first })
    }

    /// The chain that the log is on.
    pub fn history(&self) -> &TimelineHistory {
        self.chain.history()
    }

    /// What the last server knew to be flushed.
    pub fn watermark(&self) -> Lsn {
        self.watermark
    }

    /// The first position that is kept: WAL below was removed, or the log was seeded.
    pub fn first(&self) -> Lsn {
        self.first
    }

    /// Gives every record from `from`, where a record ends, to `visit`; returns the end of the last one.
    ///
    /// # Errors
    /// [`WalError::Removed`] below [`OfflineLog::first`], [`WalError::Corrupt`] for a bad record below the watermark,
    /// [`WalError::Io`].
    pub fn visit(&self, from: Lsn, mut visit: impl FnMut(DecodedRecord)) -> Result<Lsn, WalError> {
        if from < self.first {
            return Err(self.directory.removed(&self.chain, from, self.first));
        }
        let Directory { system_id, segment_size, .. } = self.directory;
        let decoder = Decoder::of_chain(system_id, segment_size, Arc::clone(&self.chain));
        let mut scan = Scan::new(self.directory.clone());
        let mut at = from;
        loop {
            let scanned = match scan.read(&self.chain, at, Lsn::MAX, COPY_BYTES) {
                Ok(Some(scanned)) => scanned,
                Ok(None) => return Ok(at),
                Err(ScanError::Bad(bad)) if bad.lsn >= self.watermark => return Ok(at),
                Err(error) => return Err(error.into_wal_error()),
            };
            for record in decoder.decode(at, &scanned.bytes) {
                visit(record.map_err(|error| WalError::CorruptFile {
                    path: self.directory.path.clone(),
                    expected: "records of this format".to_owned(),
                    found: error.to_string(),
                })?);
            }
            at = scanned.end;
        }
    }
}
