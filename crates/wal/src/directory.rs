//! The directory of a log: which files there are, and how each is made durable.
//!
//! ```text
//! wal/000000020000000000000003   segments, zero-filled when made
//! wal/00000002.history           one per timeline that this node was on
//! wal/7.spare                    zeros, or what was a segment: see `spares`
//! wal/watermark                  up to where everything is known to be flushed
//! wal/diverged/...               what a truncation cut off, kept for people
//! ```

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use understudy_types::{Lsn, SegmentNo, SegmentSize, SystemId, TimelineId};

use crate::chain::Chain;
use crate::error::WalError;
use crate::files::{File, Files, is_temporary, temporary_of};
use crate::segment::{SegmentHeader, parse_segment_file_name, segment_file_name, segment_file_name_at};

/// How much is zeroed, copied or read at a time.
pub(crate) const COPY_BYTES: usize = 1 << 20;

/// Where a log's files are and what they must say about themselves.
#[derive(Clone)]
pub(crate) struct Directory {
    pub files: Arc<dyn Files>,
    pub path: PathBuf,
    pub system_id: SystemId,
    pub segment_size: SegmentSize,
}

/// Of a segment file: enough to find it and to know its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SegmentFile {
    pub timeline: TimelineId,
    pub segment: SegmentNo,
}

impl Directory {
    pub(crate) fn segment_path(&self, file: SegmentFile) -> PathBuf {
        self.path.join(self.segment_name(file))
    }

    pub(crate) fn segment_name(&self, file: SegmentFile) -> String {
        segment_file_name(file.timeline, file.segment, self.segment_size)
    }

    pub(crate) fn header_of(&self, file: SegmentFile) -> SegmentHeader {
        SegmentHeader {
            system_id: self.system_id,
            timeline: file.timeline,
            segment: file.segment,
            segment_size: self.segment_size,
        }
    }

    pub(crate) fn diverged(&self) -> PathBuf {
        self.path.join("diverged")
    }

    fn names(&self) -> Result<Vec<String>, WalError> {
        self.files.list(&self.path).map_err(WalError::io("list", &self.path))
    }

    /// Every segment file, in the order of timelines and numbers.
    pub(crate) fn segments(&self) -> Result<Vec<SegmentFile>, WalError> {
        let parse = |name: &String| parse_segment_file_name(name, self.segment_size);
        let found = self
            .names()?
            .iter()
            .filter_map(parse)
            .map(|(timeline, segment)| SegmentFile { timeline, segment })
            .collect();
        Ok(found)
    }

    /// The numbers of the files whose names are a number and `suffix`.
    pub(crate) fn numbered(&self, suffix: &str) -> Result<Vec<u64>, WalError> {
        Ok(self.names()?.iter().filter_map(|name| name.strip_suffix(suffix)?.parse().ok()).collect())
    }

    /// Where the log that ends at `end` begins: WAL below was removed, or never was here. Known by the files: from
    /// the end downwards, as far as there is one of every segment.
    pub(crate) fn first_kept(&self, chain: &Chain, end: Lsn) -> Result<Lsn, WalError> {
        let files: BTreeSet<SegmentFile> = self.segments()?.into_iter().collect();
        let size = self.segment_size;
        let mut first = end;
        while first > size.log_start() {
            let segment = size.segment_of(Lsn::new(first.get() - 1));
            let file = SegmentFile { timeline: chain.timeline_of_file(segment, size), segment };
            if !files.contains(&file) {
                break;
            }
            first = size.start_of(segment);
        }
        Ok(first)
    }

    /// The error for a position below what is kept.
    pub(crate) fn removed(&self, chain: &Chain, asked: Lsn, first: Lsn) -> WalError {
        let segment = segment_file_name_at(chain.history(), asked, self.segment_size);
        WalError::Removed { asked, first, segment }
    }

    /// The timelines with a `.history` file, ascending.
    pub(crate) fn histories(&self) -> Result<Vec<TimelineId>, WalError> {
        let parse = |name: &String| {
            let digits = name.strip_suffix(".history").filter(|digits| digits.len() == 8)?;
            u32::from_str_radix(digits, 16).ok().map(TimelineId::new)
        };
        Ok(self.names()?.iter().filter_map(parse).collect())
    }

    /// Removes what was being made when a process died.
    pub(crate) fn remove_temporaries(&self) -> Result<(), WalError> {
        for dir in [self.path.clone(), self.diverged()] {
            let names = match self.files.list(&dir) {
                Ok(names) => names,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(WalError::io("list", &dir)(error)),
            };
            for name in names.iter().filter(|name| is_temporary(name)) {
                self.remove(&dir.join(name))?;
            }
        }
        Ok(())
    }

    /// Removes a file; fine when it is not there.
    pub(crate) fn remove(&self, path: &Path) -> Result<(), WalError> {
        match self.files.remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(WalError::io("remove", path)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    pub(crate) fn sync(&self) -> Result<(), WalError> {
        self.files.sync_dir(&self.path).map_err(WalError::io("sync", &self.path))
    }

    /// Opens a segment's file; none when there is no such file.
    pub(crate) fn open(&self, file: SegmentFile) -> Result<Option<Arc<dyn File>>, WalError> {
        let path = self.segment_path(file);
        match self.files.open(&path) {
            Ok(opened) => Ok(Some(opened)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(WalError::io("open", &path)(error)),
        }
    }

    /// Makes a segment's file, durable with its name when this returns: from then on a write changes neither its
    /// size nor its blocks, and one `fdatasync` is enough. `fill` writes the begin of the file and says how many
    /// bytes that was; zeros follow. A `spare`, which holds zeros, is used if it is there, and costs a name only.
    pub(crate) fn create(
        &self,
        file: SegmentFile,
        spare: Option<PathBuf>,
        fill: impl FnOnce(&dyn File, &Path) -> Result<u64, WalError>,
    ) -> Result<Arc<dyn File>, WalError> {
        let path = self.segment_path(file);
        if let Some(spare) = spare {
            match self.files.open(&spare) {
                Ok(made) => return self.create_from(made, &spare, &path, fill),
                // Somebody took it away: no reason to fail.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(WalError::io("open", &spare)(error)),
            }
        }
        let temporary = temporary_of(&path);
        let made = self.files.create(&temporary).map_err(WalError::io("create", &temporary))?;
        let filled = fill(&*made, &temporary)?;
        self.zero(&*made, &temporary, filled)?;
        made.sync_data().map_err(WalError::io("sync", &temporary))?;
        self.files.rename(&temporary, &path).map_err(WalError::io("rename", &temporary))?;
        self.sync()?;
        Ok(made)
    }

    /// Filled under the spare's name, whose content nobody relies on after a crash; then renamed, once.
    fn create_from(
        &self,
        made: Arc<dyn File>,
        spare: &Path,
        path: &Path,
        fill: impl FnOnce(&dyn File, &Path) -> Result<u64, WalError>,
    ) -> Result<Arc<dyn File>, WalError> {
        if fill(&*made, spare)? > 0 {
            made.sync_data().map_err(WalError::io("sync", spare))?;
        }
        self.files.rename(spare, path).map_err(WalError::io("rename", spare))?;
        self.sync()?;
        Ok(made)
    }

    /// Makes a segment's file of zeros.
    pub(crate) fn create_empty(&self, file: SegmentFile, spare: Option<PathBuf>) -> Result<Arc<dyn File>, WalError> {
        self.create(file, spare, |_, _| Ok(0))
    }

    /// Writes zeros from `offset` to the end of a segment.
    pub(crate) fn zero(&self, file: &dyn File, path: &Path, offset: u64) -> Result<(), WalError> {
        let zeros = vec![0; COPY_BYTES];
        for (at, count) in pieces(offset, self.segment_size.get()) {
            file.write_all_at(at, &zeros[..count]).map_err(WalError::io("write", path))?;
        }
        Ok(())
    }
}

/// The pieces of at most [`COPY_BYTES`] that `begin..end` is copied in: offset and length.
pub(crate) fn pieces(begin: u64, end: u64) -> impl Iterator<Item = (u64, usize)> {
    let mut at = begin;
    std::iter::from_fn(move || {
        let left = end.checked_sub(at).filter(|left| *left > 0)?;
        let count = usize::try_from(left).unwrap_or(COPY_BYTES).min(COPY_BYTES);
        let piece = (at, count);
        at += count as u64;
        Some(piece)
    })
}
