//! The disk's side of an attempt: chunks in, files out.
//!
//! Run by a blocking thread of its own. A file becomes an object when all its bytes are there, their digest fits and they
//! are synced; a file whose digest does not fit goes away.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use tokio_util::sync::CancellationToken;
use understudy_rpc::v1::SeedChunk;

use super::digest::{Hasher, hash_file};
use super::error::SeedError;
use super::manifest::Digest;
use super::objects::{Missing, Objects};

/// What became of something that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// It is here.
    Whole(u32),
    /// Its digest does not fit: it is gone again.
    Mismatch(u32),
}

/// A file that is coming.
#[derive(Debug)]
struct Coming {
    index: u32,
    file: File,
    /// The next byte.
    offset: u64,
    hasher: Hasher,
}

/// Of a file that was asked for.
#[derive(Debug, Clone)]
struct Wanted {
    /// None for the first segment of the log, which is checked record by record when it is laid out.
    digest: Option<Digest>,
    size: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Writer {
    address: String,
    objects: Objects,
    segment: PathBuf,
    wanted: BTreeMap<u32, Wanted>,
    coming: Option<Coming>,
}

impl Writer {
    /// For `missing`, and for the first `segment_bytes` bytes of a segment, as number `segment_index`, into the file `segment`.
    pub(crate) fn new(
        address: String,
        objects: Objects,
        missing: &[Missing],
        (segment_index, segment_bytes): (u32, u64),
        segment: PathBuf,
    ) -> Self {
        let file = |file: &Missing| (file.index, Wanted { digest: Some(file.digest), size: file.size });
        let mut wanted: BTreeMap<u32, Wanted> = missing.iter().map(file).collect();
        wanted.insert(segment_index, Wanted { digest: None, size: segment_bytes });
        Self { address, objects, segment, wanted, coming: None }
    }

    /// Takes a chunk in. Blocks on IO.
    pub(crate) fn write(&mut self, chunk: &SeedChunk) -> Result<Option<Written>, SeedError> {
        let Some(wanted) = self.wanted.get(&chunk.index).cloned() else {
            return Err(self.malformed(format!("a piece of file {}, which was not asked for", chunk.index)));
        };
        let path = self.path(&wanted);
        let mut coming = match self.coming.take() {
            Some(coming) if coming.index == chunk.index => coming,
            Some(coming) => {
                return Err(
                    self.malformed(format!("a piece of file {} in the middle of file {}", chunk.index, coming.index))
                );
            }
            None => self.begin(chunk.index, &wanted)?,
        };
        let left = wanted.size.saturating_sub(coming.offset);
        if chunk.offset != coming.offset || chunk.bytes.is_empty() || chunk.bytes.len() as u64 > left {
            return Err(self.malformed(format!(
                "{} bytes at {} of file {}, of which {left} from {} on are missing",
                chunk.bytes.len(),
                chunk.offset,
                chunk.index,
                coming.offset
            )));
        }
        coming.file.write_all_at(&chunk.bytes, coming.offset).map_err(SeedError::io("write", &path))?;
        coming.hasher.update(&chunk.bytes);
        coming.offset += chunk.bytes.len() as u64;
        if coming.offset < wanted.size {
            self.coming = Some(coming);
            return Ok(None);
        }
        coming.file.sync_all().map_err(SeedError::io("sync", &path))?;
        if let Some(digest) = wanted.digest {
            if coming.hasher.finish() != digest {
                fs::remove_file(&path).map_err(SeedError::io("remove", &path))?;
                return Ok(Some(Written::Mismatch(chunk.index)));
            }
            fs::rename(&path, self.objects.path(digest)).map_err(SeedError::io("rename", &path))?;
        }
        // A source that sends it again sends what nobody asked for.
        self.wanted.remove(&chunk.index);
        Ok(Some(Written::Whole(chunk.index)))
    }

    fn path(&self, wanted: &Wanted) -> PathBuf {
        wanted.digest.map_or_else(|| self.segment.clone(), |digest| self.objects.part(digest))
    }

    fn begin(&self, index: u32, wanted: &Wanted) -> Result<Coming, SeedError> {
        let path = self.path(wanted);
        let keep = wanted.digest.is_some();
        let opened = File::options().create(true).truncate(!keep).write(true).open(&path);
        let file = opened.map_err(SeedError::io("open", &path))?;
        let offset = file.metadata().map_err(SeedError::io("look at", &path))?.len();
        let hasher = match offset {
            0 => Hasher::default(),
            // Of one file, and never more than what an earlier attempt has brought of it.
            _ => hash_file(&path, &CancellationToken::new()).map_err(SeedError::io("read", &path))?,
        };
        Ok(Coming { index, file, offset, hasher })
    }

    fn malformed(&self, what: String) -> SeedError {
        SeedError::Malformed { address: self.address.clone(), what }
    }
}
