//! What of a seed is here already, by digest: `seed/objects/DIGEST` is whole and verified, `DIGEST.part` is not yet.
//!
//! That is all that an interrupted seed leaves, and all that the next one needs to know: it does not matter which attempt
//! brought a file, from which source, or under which name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::digest::{hash_file, is_table_file};
use super::error::SeedError;
use super::manifest::{Digest, Manifest};

/// The directory of verified and partial files.
#[derive(Debug, Clone)]
pub(crate) struct Objects {
    dir: PathBuf,
}

/// A file that has to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Missing {
    /// In the list.
    pub index: u32,
    pub digest: Digest,
    pub size: u64,
    /// So much of it is here.
    pub offset: u64,
}

/// What is here and what is not.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub missing: Vec<Missing>,
    /// Of all distinct files.
    pub bytes_total: u64,
    pub bytes_reused: u64,
}

impl Plan {
    pub(crate) fn bytes_missing(&self) -> u64 {
        self.missing.iter().map(|file| file.size - file.offset).sum()
    }
}

impl Objects {
    pub(crate) fn open(seed_dir: &Path) -> Result<Self, SeedError> {
        let dir = seed_dir.join("objects");
        fs::create_dir_all(&dir).map_err(SeedError::io("make", &dir))?;
        Ok(Self { dir })
    }

    pub(crate) fn path(&self, digest: Digest) -> PathBuf {
        self.dir.join(digest.to_string())
    }

    pub(crate) fn part(&self, digest: Digest) -> PathBuf {
        self.dir.join(format!("{digest}.part"))
    }

    /// Finds what is here: left by an interrupted seed, or in one of the stores in `own`. Removes what `manifest` has not.
    /// Blocks on IO.
    pub(crate) fn plan(
        &self,
        manifest: &Manifest,
        own: &[PathBuf],
        cancel: &CancellationToken,
    ) -> Result<Plan, SeedError> {
        let mut wanted: BTreeMap<Digest, (u32, u64)> = BTreeMap::new();
        for (index, file) in (0..).zip(&manifest.files) {
            wanted.entry(file.digest).or_insert((index, file.size));
        }
        self.prune(&wanted.keys().copied().collect())?;
        for dir in own {
            self.link_own(dir, &wanted, cancel)?;
        }
        let mut plan = Plan::default();
        for (digest, (index, size)) in wanted {
            plan.bytes_total += size;
            let offset = self.here(digest, size, cancel)?;
            plan.bytes_reused += offset;
            if !self.path(digest).exists() {
                plan.missing.push(Missing { index, digest, size, offset });
            }
        }
        // In the order of the list, which is that of the names.
        plan.missing.sort_by_key(|file| file.index);
        Ok(plan)
    }

    fn prune(&self, wanted: &BTreeSet<Digest>) -> Result<(), SeedError> {
        let keep: BTreeSet<String> = wanted.iter().map(ToString::to_string).collect();
        let list = SeedError::io("list", &self.dir);
        let names: io::Result<Vec<_>> = fs::read_dir(&self.dir).and_then(|entries| entries.collect());
        for entry in names.map_err(list)? {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !keep.contains(name.strip_suffix(".part").unwrap_or(&name)) {
                fs::remove_file(entry.path()).map_err(SeedError::io("remove", &entry.path()))?;
            }
        }
        Ok(())
    }

    /// Links the table files of a store of this node that the seed has as well. Its store may be open: it never changes them.
    fn link_own(
        &self,
        dir: &Path,
        wanted: &BTreeMap<Digest, (u32, u64)>,
        cancel: &CancellationToken,
    ) -> Result<(), SeedError> {
        let lacks = |digest: &Digest| !self.path(*digest).exists();
        let sizes: BTreeSet<u64> =
            wanted.iter().filter(|(digest, _)| lacks(digest)).map(|(_, (_, size))| *size).collect();
        let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
        for entry in entries.flatten() {
            if cancel.is_cancelled() {
                return Err(SeedError::Cancelled);
            }
            let path = entry.path();
            let fits = is_table_file(&path) && entry.metadata().is_ok_and(|metadata| sizes.contains(&metadata.len()));
            if !fits {
                continue;
            }
            // A compaction may take it away at any time, and a damaged one is not what is looked for.
            let Ok(hasher) = hash_file(&path, cancel) else { continue };
            let digest = hasher.finish();
            let target = self.path(digest);
            if wanted.contains_key(&digest) && !target.exists() {
                match fs::hard_link(&path, &target) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(source) => return Err(SeedError::io("link", &target)(source)),
                }
            }
        }
        Ok(())
    }

    /// How much of a file is here. One that has all its bytes and was not verified yet is verified now.
    fn here(&self, digest: Digest, size: u64, cancel: &CancellationToken) -> Result<u64, SeedError> {
        let (whole, part) = (self.path(digest), self.part(digest));
        if whole.exists() {
            return Ok(size);
        }
        if size == 0 {
            return self.make_empty(&part, &whole);
        }
        let have = match fs::metadata(&part) {
            Ok(metadata) => metadata.len(),
            Err(_) => return Ok(0),
        };
        if have < size {
            return Ok(have);
        }
        let fits = have == size && {
            let hasher = hash_file(&part, cancel);
            if cancel.is_cancelled() {
                return Err(SeedError::Cancelled);
            }
            hasher.map_err(SeedError::io("read", &part))?.finish() == digest
        };
        if !fits {
            fs::remove_file(&part).map_err(SeedError::io("remove", &part))?;
            return Ok(0);
        }
        sync_file(&part)?;
        fs::rename(&part, &whole).map_err(SeedError::io("rename", &part))?;
        Ok(size)
    }

    fn make_empty(&self, part: &Path, whole: &Path) -> Result<u64, SeedError> {
        File::create(part).map_err(SeedError::io("make", part))?;
        fs::rename(part, whole).map_err(SeedError::io("rename", part))?;
        Ok(0)
    }

    /// Lays the files of `manifest` out in `dir`, durably: table files as links, what RocksDB may write to as copies. Blocks
    /// on IO.
    pub(crate) fn assemble(&self, manifest: &Manifest, dir: &Path) -> Result<(), SeedError> {
        fs::create_dir_all(dir).map_err(SeedError::io("make", dir))?;
        for file in &manifest.files {
            let (object, target) = (self.path(file.digest), dir.join(&file.name));
            if is_table_file(&target) {
                fs::hard_link(&object, &target).map_err(SeedError::io("link", &target))?;
            } else {
                fs::copy(&object, &target).map_err(SeedError::io("write", &target))?;
            }
            sync_file(&target)?;
        }
        sync_dir(dir)
    }
}

pub(crate) fn sync_file(path: &Path) -> Result<(), SeedError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(SeedError::io("sync", path))
}

pub(crate) fn sync_dir(path: &Path) -> Result<(), SeedError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(SeedError::io("sync", path))
}

#[cfg(test)]
#[path = "objects_tests.rs"]
mod tests;
