//! Opening a log that may have been torn: where does it end, and is what lies below all there?
//!
//! The end is found by reading records from a place where one is known to end: the watermark or what the store has
//! applied, whichever is lower. A bad record at or above both is the end of the log: pages of an unsynced group reach
//! the disk in any order. It is cut off. A bad record below one of them was once good: that is corruption, and
//! nothing is cut, for whoever cuts there forgets what it acknowledged (INV-DURABLE).
//!
//! Before the end is reported as flushed, everything above the watermark is written again and synced: a process that
//! was killed between a write and its fsync left bytes that may be in the page cache only, and after a failed fsync
//! the cache may even call them clean.

use std::sync::Arc;

use understudy_types::{Lsn, Position, TimelineHistory};

use crate::chain::Chain;
use crate::cut::cut;
use crate::directory::{COPY_BYTES, Directory, SegmentFile, pieces};
use crate::error::WalError;
use crate::files::read_full_at;
use crate::history;
use crate::scan::{BadRecord, Scan, ScanError};
use crate::segment::HeaderError;
use crate::watermark::{Watermark, peek};

/// What was found when a log was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// Where the log ends; everything below is flushed.
    pub end: Position,
    /// The chain that it is on.
    pub history: TimelineHistory,
    /// What was cut off; none when there was nothing behind the last good record.
    pub truncated: Option<Truncated>,
    /// Where the check began.
    pub scanned_from: Lsn,
    /// What the last process knew to be flushed.
    pub watermark: Lsn,
    /// The first position that is kept: WAL below was removed, or the log was seeded.
    pub first: Lsn,
    /// How much lay above the watermark and was written again, in bytes.
    pub rewritten_bytes: u64,
}

/// A torn tail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truncated {
    /// The end of the log.
    pub from: Lsn,
    /// From there to the last byte that was not zero.
    pub bytes: u64,
    /// What should have stood at `from`.
    pub expected: String,
    /// What stood there.
    pub found: String,
}

pub(crate) struct Recovered {
    pub recovery: Recovery,
    pub chain: Chain,
    pub watermark: Watermark,
}

/// Opens the log in `directory`, or makes it. `applied` is what the store has durably; invalid for nothing.
pub(crate) fn recover(directory: &Directory, applied: Lsn) -> Result<Recovered, WalError> {
    directory.files.create_dir_all(&directory.path).map_err(WalError::io("create", &directory.path))?;
    guard(directory)?;
    directory.remove_temporaries()?;
    let chain = Arc::new(history::load(directory)?);
    let mut watermark = Watermark::open(directory)?;
    check_watermark(directory, &chain, &watermark)?;
    let claimed = watermark.position().lsn;
    let begin = directory.segment_size.log_start();
    let from = if applied.is_valid() { applied.min(claimed) } else { begin };
    if from < begin {
        return Err(WalError::OutOfRange { lsn: from, begin, end: claimed });
    }
    let (end, bad) = find_end(directory, &chain, from, [claimed.min(applied), claimed.max(applied)])?;
    let (chain, dropped) = cut(directory, &chain, end)?;
    rewrite(directory, &chain, claimed, end)?;
    directory.sync()?;
    let end = Position::new(chain.timeline_ending_at(end), end);
    watermark.raise(end)?;
    let first = directory.first_kept(&chain, end.lsn)?;
    let BadRecord { expected, found, .. } = bad;
    let truncated = (dropped > 0).then_some(Truncated { from: end.lsn, bytes: dropped, expected, found });
    let recovery = Recovery {
        end,
        history: chain.history().clone(),
        truncated,
        scanned_from: from,
        watermark: claimed,
        first,
        rewritten_bytes: end.lsn.saturating_since(claimed),
    };
    Ok(Recovered { recovery, chain, watermark })
}

/// Refuses a directory of another cluster, format or segment size before anything in it is touched (WAL-3).
pub(crate) fn guard(directory: &Directory) -> Result<(), WalError> {
    peek(directory)?;
    let segments = directory.segments()?;
    for file in segments.first().into_iter().chain(segments.last()) {
        let path = directory.segment_path(*file);
        let mut header = [0; crate::segment::SEGMENT_HEADER_BYTES as usize];
        let Some(opened) = directory.open(*file)? else { continue };
        let count = read_full_at(&*opened, 0, &mut header).map_err(WalError::io("read", &path))?;
        if let Err(HeaderError::Mismatch { what, expected, found }) = directory.header_of(*file).check(&header[..count])
        {
            return Err(WalError::Mismatch { path, what, expected, found });
        }
    }
    Ok(())
}

fn check_watermark(directory: &Directory, chain: &Chain, watermark: &Watermark) -> Result<(), WalError> {
    let claimed = watermark.position();
    let timeline = chain.timeline_ending_at(claimed.lsn);
    if claimed.lsn == directory.segment_size.log_start() || timeline == claimed.timeline {
        return Ok(());
    }
    Err(WalError::CorruptFile {
        path: directory.path.join("watermark"),
        expected: format!("a position on timeline {timeline}, as the history files say"),
        found: claimed.to_string(),
    })
}

/// Reads from `from`, where a record ends, to the end of the log. Every one of `bounds` that lies beyond must be
/// reached, and be the end of a record. Returns the end and what stands there instead of a record.
fn find_end(
    directory: &Directory,
    chain: &Arc<Chain>,
    from: Lsn,
    bounds: [Lsn; 2],
) -> Result<(Lsn, BadRecord), WalError> {
    let mut scan = Scan::new(directory.clone());
    let mut at = from;
    for bound in bounds {
        while at < bound {
            at = match scan.read(chain, at, bound, COPY_BYTES) {
                Ok(Some(scanned)) => scanned.end,
                Ok(None) => {
                    let segment = directory.segment_size.segment_of(at);
                    let timeline = chain.timeline_of_file(segment, directory.segment_size);
                    let segment = directory.segment_name(SegmentFile { timeline, segment });
                    let (expected, found) =
                        (format!("a record that ends at {bound}"), "one that ends beyond".to_owned());
                    return Err(WalError::Corrupt { segment, lsn: at, expected, found });
                }
                Err(error) => return Err(error.into_wal_error()),
            };
        }
    }
    let known_good = at;
    loop {
        match scan.read(chain, at, Lsn::MAX, COPY_BYTES) {
            Ok(Some(scanned)) => at = scanned.end,
            Ok(None) => unreachable!("no record ends beyond the largest LSN"),
            Err(ScanError::Bad(bad)) if bad.lsn >= known_good => return Ok((at, bad)),
            Err(error) => return Err(error.into_wal_error()),
        }
    }
}

/// Writes the bytes of `from..to` again, as they are, and syncs them.
fn rewrite(directory: &Directory, chain: &Chain, from: Lsn, to: Lsn) -> Result<(), WalError> {
    let size = directory.segment_size;
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = from;
    while at < to {
        let segment = size.segment_of(at);
        let file = SegmentFile { timeline: chain.timeline_of_file(segment, size), segment };
        let path = directory.segment_path(file);
        let end = to.min(size.start_of(segment.next()));
        let opened = directory.files.open(&path).map_err(WalError::io("open", &path))?;
        let begin = size.offset_of(at);
        for (offset, count) in pieces(begin, begin + end.saturating_since(at)) {
            let count = read_full_at(&*opened, offset, &mut buffer[..count]).map_err(WalError::io("read", &path))?;
            opened.write_all_at(offset, &buffer[..count]).map_err(WalError::io("write", &path))?;
        }
        opened.sync_data().map_err(WalError::io("sync", &path))?;
        at = end;
    }
    Ok(())
}

#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;
