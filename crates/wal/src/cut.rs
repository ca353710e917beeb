//! Making the log end where it is told to: recovery cuts a torn tail, [`crate::Wal::truncate`] a branch that was left.
//!
//! Every step leaves a log that recovery reads as a prefix of the old one that still has everything below `to`, so a
//! crash between any two needs no undoing: the cut is made again. The caller has seen to it that the
//! watermark claims nothing beyond `to`.
//!
//! 1. The `.history` files of timelines that begin beyond `to` go first: without them the chain is read from the older
//!    timelines' files, which hold everything below the switch. Were their segments to go first, a chain that is still
//!    in force would miss a file.
//! 2. The segments beyond `to`, and those of timelines that are gone.
//! 3. The rest of the segment that `to` lies in is zero-filled and synced, also where it reads as zeros: what is
//!    read may be in the page cache only.

use std::path::Path;
use std::sync::Arc;

use understudy_types::{Lsn, TimelineId};

use crate::chain::Chain;
use crate::directory::{COPY_BYTES, Directory, SegmentFile, pieces};
use crate::error::WalError;
use crate::files::{File, read_full_at, temporary_of};
use crate::history;

/// Makes the log end at `to`. Returns the chain that is left and how many bytes were dropped: from `to` to the last
/// that was not zero.
pub(crate) fn cut(directory: &Directory, chain: &Chain, to: Lsn) -> Result<(Chain, u64), WalError> {
    let size = directory.segment_size;
    let kept = chain.cut(to);
    history::cut(directory, &kept)?;
    let mut dropped = 0;
    let mut removed = false;
    for file in directory.segments()? {
        let start = size.start_of(file.segment);
        if start < to && file.timeline <= kept.latest() {
            continue;
        }
        let on_chain = chain.timeline_of_file(file.segment, size) == file.timeline;
        if on_chain && size.start_of(file.segment.next()) > to {
            match used_bytes(directory, file, 0)? {
                // It was only made ahead.
                0 => {}
                used => dropped = dropped.max(start.advance(used).saturating_since(to)),
            }
        }
        directory.remove(&directory.segment_path(file))?;
        removed = true;
    }
    if removed {
        directory.sync()?;
    }
    let offset = size.offset_of(to);
    if offset > 0 {
        let segment = size.segment_of(to);
        let file = SegmentFile { timeline: kept.timeline_of_file(segment, size), segment };
        dropped = dropped.max(used_bytes(directory, file, offset)?.saturating_sub(offset));
        zero_tail(directory, file, offset)?;
    }
    Ok((kept, dropped))
}

fn zero_tail(directory: &Directory, file: SegmentFile, offset: u64) -> Result<(), WalError> {
    let path = directory.segment_path(file);
    let opened = directory.open(file)?.ok_or_else(|| missing(&path))?;
    directory.zero(&*opened, &path, offset)?;
    opened.sync_data().map_err(WalError::io("sync", &path))
}

/// The offset behind the last byte of a segment's file, from `offset` on, that is not zero; `offset` when there is
/// none.
fn used_bytes(directory: &Directory, file: SegmentFile, offset: u64) -> Result<u64, WalError> {
    let path = directory.segment_path(file);
    let Some(opened) = directory.open(file)? else {
        return Ok(offset);
    };
    let mut used = offset;
    let mut buffer = vec![0; COPY_BYTES];
    for (at, count) in pieces(offset, directory.segment_size.get()) {
        let count = read_full_at(&*opened, at, &mut buffer[..count]).map_err(WalError::io("read", &path))?;
        if let Some(last) = buffer[..count].iter().rposition(|byte| *byte != 0) {
            used = at + last as u64 + 1;
        }
    }
    Ok(used)
}

/// Whether a record ends at `to`: known by reading the segment from its begin, where one always does.
pub(crate) fn is_record_end(directory: &Directory, chain: &Arc<Chain>, to: Lsn) -> Result<bool, WalError> {
    let segment = directory.segment_size.segment_of(to);
    let mut scan = crate::scan::Scan::new(directory.clone());
    let mut at = directory.segment_size.start_of(segment);
    while at < to {
        match scan.read(chain, at, to, COPY_BYTES) {
            Ok(Some(scanned)) => at = scanned.end,
            Ok(None) => return Ok(false),
            Err(error) => return Err(error.into_wal_error()),
        }
    }
    Ok(true)
}

/// Copies the bytes of `from..to` on the chain to `diverged/<timeline>-<from>-<to>.wal`, durably. A file that already
/// has these bytes is left as it is; one that has others is never replaced: the new one gets a number behind its
/// name.
pub(crate) fn keep_aside(
    directory: &Directory,
    chain: &Chain,
    timeline: TimelineId,
    from: Lsn,
    to: Lsn,
) -> Result<(), WalError> {
    let dir = directory.diverged();
    directory.files.create_dir_all(&dir).map_err(WalError::io("create", &dir))?;
    let stem = format!("{:08X}-{:016X}-{:016X}", timeline.get(), from.get(), to.get());
    let temporary = temporary_of(&dir.join(&stem));
    let made = directory.files.create(&temporary).map_err(WalError::io("create", &temporary))?;
    copy_range(directory, chain, from, to, &*made, &temporary)?;
    made.sync_data().map_err(WalError::io("sync", &temporary))?;
    for number in 0_u32.. {
        let name = if number == 0 { format!("{stem}.wal") } else { format!("{stem}.{number}.wal") };
        let path = dir.join(name);
        match directory.files.open(&path) {
            Ok(other) if same_content(&*made, &*other).map_err(WalError::io("read", &path))? => {
                directory.remove(&temporary)?;
                break;
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                directory.files.rename(&temporary, &path).map_err(WalError::io("rename", &temporary))?;
                break;
            }
            Err(error) => return Err(WalError::io("open", &path)(error)),
        }
    }
    directory.files.sync_dir(&dir).map_err(WalError::io("sync", &dir))
}

fn copy_range(
    directory: &Directory,
    chain: &Chain,
    from: Lsn,
    to: Lsn,
    target: &dyn File,
    path: &Path,
) -> Result<(), WalError> {
    let size = directory.segment_size;
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = from;
    while at < to {
        let segment = size.segment_of(at);
        let file = SegmentFile { timeline: chain.timeline_of_file(segment, size), segment };
        let source_path = directory.segment_path(file);
        let source = directory.open(file)?.ok_or_else(|| missing(&source_path))?;
        let end = to.min(size.start_of(segment.next()));
        let begin = size.offset_of(at);
        for (offset, count) in pieces(begin, begin + end.saturating_since(at)) {
            let count =
                read_full_at(&*source, offset, &mut buffer[..count]).map_err(WalError::io("read", &source_path))?;
            let place = at.saturating_since(from) + (offset - begin);
            target.write_all_at(place, &buffer[..count]).map_err(WalError::io("write", path))?;
        }
        at = end;
    }
    Ok(())
}

fn same_content(one: &dyn File, other: &dyn File) -> std::io::Result<bool> {
    let size = one.size()?;
    if size != other.size()? {
        return Ok(false);
    }
    let (mut ours, mut theirs) = (vec![0; COPY_BYTES], vec![0; COPY_BYTES]);
    for (offset, count) in pieces(0, size) {
        read_full_at(one, offset, &mut ours[..count])?;
        read_full_at(other, offset, &mut theirs[..count])?;
        if ours[..count] != theirs[..count] {
            return Ok(false);
        }
    }
    Ok(true)
}

fn missing(path: &Path) -> WalError {
    WalError::io("open", path)(std::io::Error::from(std::io::ErrorKind::NotFound))
}
