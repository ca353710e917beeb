//! Reading whole, checked records from the segment files along a chain: for recovery, readers and tools.
//!
//! A segment that a fork lies in has two files; the newer one on the chain holds all of it, so it alone is read. Its
//! header names the newer timeline, and is turned into that of the first record's timeline, as it is on the wire.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use understudy_types::{Lsn, SegmentNo};

use crate::chain::Chain;
use crate::decoder::{DecodeError, Decoder};
use crate::directory::{Directory, SegmentFile};
use crate::error::WalError;
use crate::files::{File, read_full_at};
use crate::segment::{HeaderError, SEGMENT_HEADER_BYTES};

/// A file does not hold the record that should follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BadRecord {
    pub segment: String,
    pub lsn: Lsn,
    pub expected: String,
    pub found: String,
}

impl BadRecord {
    pub(crate) fn into_corrupt(self) -> WalError {
        let BadRecord { segment, lsn, expected, found } = self;
        WalError::Corrupt { segment, lsn, expected, found }
    }
}

/// What is read next is not to be had.
#[derive(Debug)]
pub(crate) enum ScanError {
    /// There is no good record at this place; whether that is the end of the log the caller knows.
    Bad(BadRecord),
    /// Something that no end of a log explains.
    Wal(WalError),
}

impl From<WalError> for ScanError {
    fn from(error: WalError) -> Self {
        ScanError::Wal(error)
    }
}

impl ScanError {
    pub(crate) fn into_wal_error(self) -> WalError {
        match self {
            ScanError::Bad(bad) => bad.into_corrupt(),
            ScanError::Wal(error) => error,
        }
    }
}

/// Whole records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scanned {
    pub bytes: Bytes,
    pub end: Lsn,
}

/// Reads segment files; keeps the last one open.
pub(crate) struct Scan {
    directory: Directory,
    open: Option<(SegmentFile, Arc<dyn File>)>,
}

impl Scan {
    pub(crate) fn new(directory: Directory) -> Self {
        Self { directory, open: None }
    }

    /// The whole records from `at` that end at or below `limit` and in `at`'s segment: as many as fit into
    /// `bytes_max`, but at least one. None when the next one ends beyond `limit`.
    pub(crate) fn read(
        &mut self,
        chain: &Arc<Chain>,
        at: Lsn,
        limit: Lsn,
        bytes_max: usize,
    ) -> Result<Option<Scanned>, ScanError> {
        if at >= limit {
            return Ok(None);
        }
        let segment = self.directory.segment_size.segment_of(at);
        let (file, name) = self.file_of(chain, segment)?;
        let segment_end = self.directory.segment_size.start_of(segment.next());
        let to_limit = limit.min(segment_end).saturating_since(at);
        let decoder = Decoder::of_chain(self.directory.system_id, self.directory.segment_size, Arc::clone(chain));
        let bad = |error| ScanError::Bad(bad_record(&name, error));
        let mut want = to_limit.min(bytes_max as u64);
        loop {
            let bytes = self.window(&*file, &decoder, at, want, &name)?;
            let mut end = at;
            let problem = loop {
                let done = usize::try_from(end.saturating_since(at)).expect("within a buffer");
                if done == bytes.len() {
                    break None;
                }
                match decoder.check(end, &bytes[done..]) {
                    Ok(unit) => end = unit.end,
                    Err(error) => break Some(error),
                }
            };
            match problem {
                _ if end > at => {
                    let count = usize::try_from(end.saturating_since(at)).expect("within a buffer");
                    return Ok(Some(Scanned { bytes: bytes.slice(..count), end }));
                }
                Some(DecodeError::Incomplete { needed, .. }) if needed > to_limit && limit < segment_end => {
                    return Ok(None);
                }
                Some(DecodeError::Incomplete { needed, .. }) if needed > want && needed <= to_limit => want = needed,
                Some(error) => return Err(bad(error)),
                None => return Ok(None),
            }
        }
    }

    /// `count` bytes of the file from `at`, as on the wire.
    fn window(&self, file: &dyn File, decoder: &Decoder, at: Lsn, count: u64, name: &str) -> Result<Bytes, ScanError> {
        let offset = self.directory.segment_size.offset_of(at);
        let mut buffer = BytesMut::zeroed(usize::try_from(count).expect("at most a segment"));
        let path = self.directory.path.join(name);
        let read = read_full_at(file, offset, &mut buffer).map_err(WalError::io("read", &path))?;
        buffer.truncate(read);
        if read == 0 {
            return Err(ScanError::Bad(BadRecord {
                segment: name.to_owned(),
                lsn: at,
                expected: format!("a file of {} bytes", self.directory.segment_size.get()),
                found: format!("one that ends at offset {}", offset + read as u64),
            }));
        }
        let head = buffer.len().min(SEGMENT_HEADER_BYTES as usize);
        if offset == 0 {
            // The file's own header was checked when it was opened.
            buffer[..head].copy_from_slice(&decoder.header_at(at).encode()[..head]);
        }
        Ok(buffer.freeze())
    }

    /// The file that holds all of `segment` on the chain, its header checked.
    fn file_of(&mut self, chain: &Chain, segment: SegmentNo) -> Result<(Arc<dyn File>, String), ScanError> {
        let timeline = chain.timeline_of_file(segment, self.directory.segment_size);
        let wanted = SegmentFile { timeline, segment };
        let name = self.directory.segment_name(wanted);
        if let Some((_, file)) = self.open.as_ref().filter(|(open, _)| *open == wanted) {
            return Ok((Arc::clone(file), name));
        }
        self.open = None;
        let lsn = self.directory.segment_size.start_of(segment);
        let bad = |expected: String, found: String| BadRecord { segment: name.clone(), lsn, expected, found };
        let Some(file) = self.directory.open(wanted)? else {
            return Err(ScanError::Bad(bad("the segment's file".to_owned(), "no such file".to_owned())));
        };
        let path = self.directory.segment_path(wanted);
        let mut header = [0; SEGMENT_HEADER_BYTES as usize];
        let count = read_full_at(&*file, 0, &mut header).map_err(WalError::io("read", &path))?;
        match self.directory.header_of(wanted).check(&header[..count]) {
            Ok(()) => {}
            Err(HeaderError::Invalid { expected, found }) => return Err(ScanError::Bad(bad(expected, found))),
            Err(HeaderError::Mismatch { what, expected, found }) => {
                return Err(ScanError::Wal(WalError::Mismatch { path, what, expected, found }));
            }
        }
        self.open = Some((wanted, Arc::clone(&file)));
        Ok((file, name))
    }
}

fn bad_record(segment: &str, error: DecodeError) -> BadRecord {
    let segment = segment.to_owned();
    match error {
        DecodeError::Incomplete { lsn, needed, available } => BadRecord {
            segment,
            lsn,
            expected: format!("a record of at least {needed} bytes"),
            found: format!("{available} bytes"),
        },
        DecodeError::SegmentHeader { lsn, source } => {
            BadRecord { segment, lsn, expected: "the segment's header".to_owned(), found: source.to_string() }
        }
        DecodeError::Bad { lsn, expected, found } => BadRecord { segment, lsn, expected, found },
    }
}
