//! Laying out a log that begins in the middle of the cluster's log, for a node whose store was copied from a peer.
//!
//! ```text
//! wal/00000001.history, 00000002.history   the chain up to P
//! wal/000000020000000000000007             own header, the peer's bytes up to P, zeros
//! wal/watermark                            P: everything below is flushed
//! ```
//!
//! Whoever seeds a node calls [`prepare`] once the store holds everything up to P durably, in a directory of its own, and puts
//! that in its place afterwards. Where P is a segment boundary there is no segment file: the next record brings its header.
//!
//! The watermark file is made last. Until it is there the directory is no log: opening it is refused, because what the
//! store has applied is not in it, and a second [`prepare`] begins anew. Once it is there, `prepare` refuses: it never
//! takes a log away.
//!
//! INV-BYTES: the bytes are those of the cluster's log. They are decoded along the chain before the watermark vouches for
//! them, so a peer's mistake, or a torn copy, is found here and not when the first standby asks.

use std::io;
use std::sync::Arc;

use understudy_types::{Lsn, Position, TimelineHistory, TimelineId};

use crate::chain::Chain;
use crate::cut::is_record_end;
use crate::directory::{COPY_BYTES, Directory, SegmentFile, pieces};
use crate::error::WalError;
use crate::files::Files;
use crate::history;
use crate::recovery::guard;
use crate::segment::SEGMENT_HEADER_BYTES;
use crate::wal::WalConfig;
use crate::watermark::{Watermark, peek};

/// Where the segment that a seeded log begins with starts: the bytes from here to the log's position are needed.
pub fn segment_start(config: &WalConfig, lsn: Lsn) -> Lsn {
    let size = config.segment_size;
    size.start_of(size.segment_of(lsn))
}

/// Makes `config.dir` a log that ends at `at`, durably, and that [`crate::Wal::open`] opens with `at.lsn` as the applied
/// position. Blocks on IO; may be repeated until it has succeeded.
///
/// `history` is the cluster's or the peer's: of it the part up to `at` is put in force, the rest comes with the stream.
///
/// `read(offset, buffer)` fills `buffer` with the peer's bytes of `at`'s segment from `offset` on, as they stand in the peer's file or
/// on the wire: all of 64 up to `at`, in ascending order. It is not called where `at` is a segment boundary.
///
/// # Errors
/// [`WalError::NotFresh`] when there is a log already; [`WalError::OutOfRange`] and [`WalError::BadHistory`] when `at` does not
/// lie on `history`; [`WalError::Corrupt`] and [`WalError::NotARecordEnd`] when the bytes are not the records that belong
/// there; [`WalError::Io`], of `read` too.
pub fn prepare(
    files: Arc<dyn Files>,
    config: &WalConfig,
    history: &TimelineHistory,
    at: Position,
    read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> Result<(), WalError> {
    let directory =
        Directory { files, path: config.dir.clone(), system_id: config.system_id, segment_size: config.segment_size };
    let chain = chain_at(&directory, history, at)?;
    clear(&directory)?;
    write_segment(&directory, &chain, at.lsn, read)?;
    for switch in chain.history().switches() {
        history::store(&directory, &Chain::new(chain.history().up_to(switch.timeline)))?;
    }
    let chain = Arc::new(chain);
    if !is_record_end(&directory, &chain, at.lsn)? {
        return Err(WalError::NotARecordEnd { lsn: at.lsn });
    }
    Watermark::create(&directory, at)
}

/// The part of `history` that a log which ends at `at` is on.
fn chain_at(directory: &Directory, history: &TimelineHistory, at: Position) -> Result<Chain, WalError> {
    let begin = directory.segment_size.log_start();
    if at.lsn < begin {
        return Err(WalError::OutOfRange { lsn: at.lsn, begin, end: Lsn::MAX });
    }
    let chain = Chain::new(history.clone()).cut(at.lsn);
    let written_on = chain.timeline_ending_at(at.lsn);
    if written_on != at.timeline || chain.latest() == TimelineId::NONE {
        let reason = format!("a log that ends at {at} does not lie on it: timeline {written_on} ends there");
        return Err(WalError::history(history, at.lsn, at.timeline, reason));
    }
    Ok(chain)
}

/// Takes away what an earlier attempt left. A watermark file ends every attempt, so where there is none there is no log.
fn clear(directory: &Directory) -> Result<(), WalError> {
    directory.files.create_dir_all(&directory.path).map_err(WalError::io("create", &directory.path))?;
    guard(directory)?;
    if peek(directory)?.is_some() {
        return Err(WalError::NotFresh { path: directory.path.clone() });
    }
    directory.remove_temporaries()?;
    history::remove_all(directory)?;
    for file in directory.segments()? {
        directory.remove(&directory.segment_path(file))?;
    }
    directory.sync()
}

fn write_segment(
    directory: &Directory,
    chain: &Chain,
    to: Lsn,
    mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> Result<(), WalError> {
    let size = directory.segment_size;
    let offset = size.offset_of(to);
    if offset == 0 {
        return Ok(());
    }
    let segment = size.segment_of(to);
    let file = SegmentFile { timeline: chain.timeline_of_file(segment, size), segment };
    directory.create(file, None, |made, path| {
        made.write_all_at(0, &directory.header_of(file).encode()).map_err(WalError::io("write", path))?;
        let mut buffer = vec![0; COPY_BYTES];
        for (place, count) in pieces(SEGMENT_HEADER_BYTES, offset) {
            read(place, &mut buffer[..count]).map_err(WalError::io("read the peer's bytes for", path))?;
            made.write_all_at(place, &buffer[..count]).map_err(WalError::io("write", path))?;
        }
        Ok(offset)
    })?;
    Ok(())
}

#[cfg(test)]
#[path = "seeded_tests.rs"]
mod tests;
