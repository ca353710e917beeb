//! Beginning a timeline at the end of the log.
//!
//! Where the switch lies inside a segment, the new timeline's file of that segment is made first: a new header, a
//! copy of the bytes below the switch, zeros. It is durable under its name before the `.history` file is made, which
//! puts the new chain in force. A crash in between leaves a segment file of a timeline that has not begun; recovery
//! removes it. The old timeline's file stays as it is: the same bytes on every node that had them (INV-BYTES).

use understudy_types::{Lsn, Position, TimelineHistory};

use crate::chain::Chain;
use crate::directory::{COPY_BYTES, Directory, SegmentFile, pieces};
use crate::error::WalError;
use crate::files::read_full_at;
use crate::history;
use crate::segment::SEGMENT_HEADER_BYTES;
use crate::spares::Spares;

/// The chain that `history` makes of one that ends at `end`; none when it is in force already.
pub(crate) fn next_chain(chain: &Chain, end: Position, history: &TimelineHistory) -> Result<Option<Chain>, WalError> {
    if history == chain.history() {
        return Ok(None);
    }
    let refuse = |reason: String| Err(WalError::history(history, end.lsn, chain.latest(), reason));
    let Some(switch) = history.switches().last() else {
        return refuse("the history has no timeline".to_owned());
    };
    if switch.timeline <= chain.latest() {
        return refuse(format!("this log is already on timeline {}", chain.latest()));
    }
    if history.up_to(chain.latest()) != *chain.history() {
        return refuse("its history does not contain this log's own history".to_owned());
    }
    if switch.switch_lsn != end.lsn {
        return refuse(format!("it begins at {}", switch.switch_lsn));
    }
    let position = history.position(end);
    if position != end.lsn {
        return refuse(format!("this log left its history at {position}"));
    }
    Ok(Some(Chain::new(history.clone())))
}

/// Puts `next` in force for a log on `chain` that is flushed up to `switch`. The file that it may need is a spare of
/// `spares`: a failover does not wait for zeros.
pub(crate) fn begin(
    directory: &Directory,
    spares: &Spares,
    chain: &Chain,
    next: &Chain,
    switch: Lsn,
) -> Result<(), WalError> {
    let size = directory.segment_size;
    for prepared in directory.segments()?.into_iter().filter(|file| size.start_of(file.segment) >= switch) {
        directory.remove(&directory.segment_path(prepared))?;
    }
    let offset = size.offset_of(switch);
    if offset > 0 {
        let segment = size.segment_of(switch);
        let old = SegmentFile { timeline: chain.timeline_of_file(segment, size), segment };
        let old_path = directory.segment_path(old);
        let source = directory
            .open(old)?
            .ok_or_else(|| WalError::io("open", &old_path)(std::io::Error::from(std::io::ErrorKind::NotFound)))?;
        let new = SegmentFile { timeline: next.latest(), segment };
        directory.create(new, spares.take(), |made, path| {
            made.write_all_at(0, &directory.header_of(new).encode()).map_err(WalError::io("write", path))?;
            let mut buffer = vec![0; COPY_BYTES];
            for (at, count) in pieces(SEGMENT_HEADER_BYTES, offset) {
                read_full_at(&*source, at, &mut buffer[..count]).map_err(WalError::io("read", &old_path))?;
                made.write_all_at(at, &buffer[..count]).map_err(WalError::io("write", path))?;
            }
            Ok(offset)
        })?;
    }
    history::store(directory, next)
}
