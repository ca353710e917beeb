//! The flush watermark: up to where everything is known to have reached the disk.
//!
//! It tells a torn tail from corruption. A bad record above it may never have been synced; a bad record below it was.
//! It is written after the fsync that it tells of, so it never claims too much; it may claim up to a second too little.
//!
//! ```text
//! offset  bytes  what
//!      0      8  magic "USTDYWMK"
//!      8      4  format version
//!     12      4  zeros
//!     16      8  system identifier
//!     24      8  segment size
//!     32     28  zeros
//!     60      4  CRC32C of the 60 bytes before
//!   4096     24  slot 0: sequence 8, LSN 8, timeline 4, CRC32C of these 20 bytes
//!   8192     24  slot 1
//! ```
//!
//! The slots are written in turn, each in 4 KiB of its own, the largest that a device writes in one piece, so that a torn write leaves the other one whole; the
//! valid one with the higher sequence counts. Before a truncation both are lowered, so that no older,
//! higher claim can come back. The file's head guards the directory (WAL-3) even while there is no segment.

use std::path::PathBuf;
use std::sync::Arc;

use understudy_types::{Lsn, Position, TimelineId};

use crate::directory::Directory;
use crate::error::WalError;
use crate::files::{File, read_file, replace_file};
use crate::segment::{FORMAT_VERSION, u32_at, u64_at};

const MAGIC: [u8; 8] = *b"USTDYWMK";
const HEAD_BYTES: usize = 64;
/// Of the header and of each slot: the largest that a device writes in one piece, so that a torn write takes one of them.
const SECTOR_BYTES: usize = 4096;
const SLOT_BYTES: usize = 24;
const FILE_BYTES: usize = 3 * SECTOR_BYTES;

/// The open watermark file.
pub(crate) struct Watermark {
    file: Arc<dyn File>,
    path: PathBuf,
    sequence: u64,
    position: Position,
}

impl Watermark {
    /// Reads the watermark file; makes it, with the claim "nothing", when there is none.
    pub(crate) fn open(directory: &Directory) -> Result<Self, WalError> {
        let path = path_of(directory);
        let begin = Position::new(TimelineId::NONE, directory.segment_size.log_start());
        let bytes = read_file(&*directory.files, &path).map_err(WalError::io("read", &path))?;
        let (sequence, position) = match bytes {
            Some(bytes) => read(directory, &path, &bytes)?,
            None => {
                Self::create(directory, begin)?;
                (1, begin)
            }
        };
        let file = directory.files.open(&path).map_err(WalError::io("open", &path))?;
        Ok(Self { file, path, sequence, position })
    }

    /// Makes the watermark file of a log that was laid out up to `position`, in one step.
    pub(crate) fn create(directory: &Directory, position: Position) -> Result<(), WalError> {
        let path = path_of(directory);
        replace_file(&*directory.files, &path, &new_file(directory, position)).map_err(WalError::io("write", &path))
    }

    /// What is claimed: everything below is flushed.
    pub(crate) fn position(&self) -> Position {
        self.position
    }

    /// Claims that everything below `position` is flushed; durable when this returns.
    pub(crate) fn raise(&mut self, position: Position) -> Result<(), WalError> {
        assert!(position.lsn >= self.position.lsn, "the watermark {} is not lowered to {position}", self.position);
        if position == self.position { Ok(()) } else { self.write(position) }
    }

    /// Takes the claim back to `position` and forgets every higher one; durable when this returns.
    pub(crate) fn lower(&mut self, position: Position) -> Result<(), WalError> {
        self.write(position)?;
        self.write(position)
    }

    fn write(&mut self, position: Position) -> Result<(), WalError> {
        let sequence = self.sequence + 1;
        let offset = if sequence % 2 == 1 { SECTOR_BYTES } else { 2 * SECTOR_BYTES };
        self.file.write_all_at(offset as u64, &slot(sequence, position)).map_err(WalError::io("write", &self.path))?;
        self.file.sync_data().map_err(WalError::io("sync", &self.path))?;
        (self.sequence, self.position) = (sequence, position);
        Ok(())
    }
}

fn path_of(directory: &Directory) -> PathBuf {
    directory.path.join("watermark")
}

fn new_file(directory: &Directory, position: Position) -> Vec<u8> {
    let mut bytes = vec![0; FILE_BYTES];
    bytes[..HEAD_BYTES].copy_from_slice(&head(directory));
    bytes[SECTOR_BYTES..SECTOR_BYTES + SLOT_BYTES].copy_from_slice(&slot(1, position));
    bytes
}

/// What the directory's watermark file says, without changing anything; none when there is no file.
pub(crate) fn peek(directory: &Directory) -> Result<Option<Position>, WalError> {
    let path = path_of(directory);
    let bytes = read_file(&*directory.files, &path).map_err(WalError::io("read", &path))?;
    bytes.map(|bytes| read(directory, &path, &bytes).map(|(_, position)| position)).transpose()
}

fn read(directory: &Directory, path: &std::path::Path, bytes: &[u8]) -> Result<(u64, Position), WalError> {
    let corrupt = |expected: &str, found: String| WalError::CorruptFile {
        path: path.to_owned(),
        expected: expected.to_owned(),
        found,
    };
    if bytes.len() != FILE_BYTES {
        return Err(corrupt(&format!("{FILE_BYTES} bytes"), bytes.len().to_string()));
    }
    let crc = crc32c::crc32c(&bytes[..60]);
    if bytes[..8] != MAGIC || u32_at(bytes, 60) != crc {
        return Err(corrupt("a head with magic and checksum", format!("{:02x?}", &bytes[..8])));
    }
    let ours = directory.system_id.to_string();
    let theirs = format!("{:016x}", u64_at(bytes, 16));
    let fields = [
        ("format version", FORMAT_VERSION.to_string(), u32_at(bytes, 8).to_string()),
        ("system identifier", ours, theirs),
        ("segment size", directory.segment_size.get().to_string(), u64_at(bytes, 24).to_string()),
    ];
    if let Some((what, expected, found)) = fields.into_iter().find(|(_, expected, found)| expected != found) {
        return Err(WalError::Mismatch { path: path.to_owned(), what, expected, found });
    }
    let slots = [&bytes[SECTOR_BYTES..], &bytes[2 * SECTOR_BYTES..]];
    let newest = slots.into_iter().filter_map(read_slot).max_by_key(|(sequence, _)| *sequence);
    newest.ok_or_else(|| corrupt("at least one slot with a checksum", "none".to_owned()))
}

fn head(directory: &Directory) -> [u8; HEAD_BYTES] {
    let mut bytes = [0; HEAD_BYTES];
    bytes[0..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[16..24].copy_from_slice(&directory.system_id.get().to_le_bytes());
    bytes[24..32].copy_from_slice(&directory.segment_size.get().to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn slot(sequence: u64, position: Position) -> [u8; SLOT_BYTES] {
    let mut bytes = [0; SLOT_BYTES];
    bytes[0..8].copy_from_slice(&sequence.to_le_bytes());
    bytes[8..16].copy_from_slice(&position.lsn.get().to_le_bytes());
    bytes[16..20].copy_from_slice(&position.timeline.get().to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..20]);
    bytes[20..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn read_slot(bytes: &[u8]) -> Option<(u64, Position)> {
    let whole = u32_at(bytes, 20) == crc32c::crc32c(&bytes[..20]) && u64_at(bytes, 0) != 0;
    let position = Position::new(TimelineId::new(u32_at(bytes, 16)), Lsn::new(u64_at(bytes, 8)));
    whole.then(|| (u64_at(bytes, 0), position))
}

#[cfg(test)]
#[path = "watermark_tests.rs"]
mod tests;
