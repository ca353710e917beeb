//! SHA-256 of files.
//!
//! RocksDB never changes a table file that it has written, so its digest is worth remembering: by inode, size and time of
//! change, not by name, so that a hard link is known and another file of the same name is not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::manifest::Digest;

const READ_BYTES: usize = 1 << 20;

/// The digest of bytes that come one after another.
#[derive(Debug, Clone, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Of all of them.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// Reads `path` to its end, or until `cancel`. Blocks on IO.
///
/// # Errors
/// What the system says, or that it was cancelled.
pub fn hash_file(path: &Path, cancel: &CancellationToken) -> io::Result<Hasher> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        if cancel.is_cancelled() {
            return Err(io::Error::other("nobody wants its digest any more"));
        }
        match file.read(&mut buffer)? {
            0 => return Ok(hasher),
            count => hasher.update(&buffer[..count]),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    device: u64,
    inode: u64,
    size: u64,
    changed_s: i64,
    changed_ns: i64,
}

/// Digests of table files that were computed before. Bounded by the files of the store: see [`DigestCache::retain`].
#[derive(Debug, Default)]
pub struct DigestCache {
    known: Mutex<BTreeMap<Key, Digest>>,
}

/// Which files one use has touched.
#[derive(Debug, Default)]
pub struct Touched(BTreeSet<Key>);

impl DigestCache {
    /// The digest of `path`, remembered when it is a table file. Blocks on IO, until `cancel` at most.
    ///
    /// # Errors
    /// What the system says, or that it was cancelled.
    pub fn digest(&self, path: &Path, touched: &mut Touched, cancel: &CancellationToken) -> io::Result<Digest> {
        if !is_table_file(path) {
            return Ok(hash_file(path, cancel)?.finish());
        }
        let metadata = path.metadata()?;
        let key = Key {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed_s: metadata.mtime(),
            changed_ns: metadata.mtime_nsec(),
        };
        touched.0.insert(key);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        if let Some(digest) = known {
            return Ok(digest);
        }
        let digest = hash_file(path, cancel)?.finish();
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(key, digest);
        Ok(digest)
    }

    /// Forgets what was not touched.
    pub fn retain(&self, touched: &Touched) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| touched.0.contains(key));
    }
}

/// Whether RocksDB never changes this file once it is written.
pub fn is_table_file(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "sst")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_file_is_read_once_and_known_by_another_name() {
        let dir = tempfile::tempdir().unwrap();
        let (first, link, other) = (dir.path().join("1.sst"), dir.path().join("2.sst"), dir.path().join("3.sst"));
        std::fs::write(&first, b"abc").unwrap();
        std::fs::hard_link(&first, &link).unwrap();
        std::fs::write(&other, b"abd").unwrap();
        let (cache, mut touched) = (DigestCache::default(), Touched::default());
        let cancel = CancellationToken::new();
        let digest = cache.digest(&first, &mut touched, &cancel).unwrap();
        // The test vector of FIPS 180-2.
        assert_eq!(digest.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(cache.digest(&link, &mut touched, &cancel).unwrap(), digest);
        assert_ne!(cache.digest(&other, &mut touched, &cancel).unwrap(), digest);
        assert_eq!(cache.known.lock().unwrap().len(), 2);
        cache.retain(&Touched::default());
        assert_eq!(cache.known.lock().unwrap().len(), 0);
    }
}
