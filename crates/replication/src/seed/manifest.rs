//! What a seed consists of: a position, the timelines up to it, and files.
//!
//! A list comes from the network: names are plain file names, there are at most [`FILES_MAX`] of them, no two alike, and
//! their sizes add up to what was announced. Nothing is allocated for more than has come.

use std::collections::BTreeSet;
use std::fmt;

use understudy_rpc::v1;
use understudy_types::{Lsn, Position, TimelineHistory, TimelineId, TimelineSwitch};

/// Files of one seed: with table files of 64 MiB, 12 TiB.
pub const FILES_MAX: usize = 200_000;
/// Entries of the list in one message.
pub const FILES_PER_MESSAGE_MAX: usize = 512;
const NAME_BYTES_MAX: usize = 255;

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Plain: no path.
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// Of all of it.
    pub digest: Digest,
}

/// A whole checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Everything up to here is in the files.
    pub at: Position,
    /// The timelines up to that position.
    pub history: TimelineHistory,
    /// In the order in which they are named on the wire.
    pub files: Vec<FileEntry>,
}

impl Manifest {
    /// Of all files, in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// Whether `name` may be the name of a file in a store's directory.
pub fn is_plain(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.starts_with('.') && name.bytes().all(allowed)
}

/// The list as it comes, piece by piece.
#[derive(Debug)]
pub struct Listing {
    count: usize,
    bytes: u64,
    seen: u64,
    names: BTreeSet<String>,
    files: Vec<FileEntry>,
}

impl Listing {
    /// Of `count` files of `bytes` bytes in all, as announced.
    ///
    /// # Errors
    /// When that is more than a seed may have.
    pub fn announced(count: u32, bytes: u64) -> Result<Self, String> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if count > FILES_MAX {
            return Err(format!("a list of {count} files, at most {FILES_MAX} are taken"));
        }
        Ok(Self { count, bytes, seen: 0, names: BTreeSet::new(), files: Vec::new() })
    }

    /// Takes a piece in.
    ///
    /// # Errors
    /// When it is not one of an honest list; the text says why.
    pub fn add(&mut self, piece: Vec<v1::SeedFile>) -> Result<(), String> {
        for file in piece {
            let v1::SeedFile { name, size, sha256 } = file;
            if !is_plain(&name) {
                return Err(format!("the name {name:?}, which is not a plain file name"));
            }
            let digest =
                <[u8; 32]>::try_from(&sha256[..]).map_err(|_| format!("a digest of {} bytes", sha256.len()))?;
            if !self.names.insert(name.clone()) {
                return Err(format!("the name {name} twice"));
            }
            self.seen = self
                .seen
                .checked_add(size)
                .filter(|seen| *seen <= self.bytes)
                .ok_or_else(|| format!("files of more than the {} bytes that it announced", self.bytes))?;
            if self.files.len() == self.count {
                return Err(format!("more than the {} files that it announced", self.count));
            }
            self.files.push(FileEntry { name, size, digest: Digest(digest) });
        }
        Ok(())
    }

    /// All of it.
    ///
    /// # Errors
    /// When something that was announced is missing.
    pub fn finish(self) -> Result<Vec<FileEntry>, String> {
        if self.files.len() != self.count || self.seen != self.bytes {
            return Err(format!(
                "{} files of {} bytes, it had announced {} of {}",
                self.files.len(),
                self.seen,
                self.count,
                self.bytes
            ));
        }
        Ok(self.files)
    }
}

/// The timelines as they travel.
pub fn history_to_wire(history: &TimelineHistory) -> Vec<v1::SeedSwitch> {
    let switch = |switch: &TimelineSwitch| v1::SeedSwitch {
        timeline: switch.timeline.get(),
        parent: switch.parent.get(),
        switch_lsn: switch.switch_lsn.get(),
    };
    history.switches().iter().map(switch).collect()
}

/// The timelines as they came.
///
/// # Errors
/// When they make no history.
pub fn history_from_wire(switches: &[v1::SeedSwitch]) -> Result<TimelineHistory, String> {
    let mut history = TimelineHistory::new();
    for switch in switches {
        let switch = TimelineSwitch {
            timeline: TimelineId::new(switch.timeline),
            parent: TimelineId::new(switch.parent),
            switch_lsn: Lsn::new(switch.switch_lsn),
        };
        history.push(switch).map_err(|error| format!("timelines that are no history: {error}"))?;
    }
    Ok(history)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, size: u64) -> v1::SeedFile {
        v1::SeedFile { name: name.to_owned(), size, sha256: vec![7; 32].into() }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["CURRENT", "MANIFEST-000005", "000012.sst", "OPTIONS-000007"] {
            assert!(is_plain(name), "{name}");
        }
        let long = "x".repeat(256);
        for name in ["", ".", "..", "../x", "a/b", "/etc/passwd", "a\\b", "a\0b", ".hidden", "ä", long.as_str()] {
            assert!(!is_plain(name), "{name}");
            let refused = Listing::announced(1, 1).unwrap().add(vec![file(name, 1)]);
            assert!(refused.unwrap_err().contains("not a plain file name"));
        }
    }

    #[test]
    fn a_list_is_what_it_was_announced_as() {
        let list = |count, bytes, files: &[(&str, u64)]| {
            let mut listing = Listing::announced(count, bytes)?;
            listing.add(files.iter().map(|(name, size)| file(name, *size)).collect())?;
            listing.finish()
        };
        assert_eq!(list(2, 30, &[("a", 10), ("b", 20)]).unwrap().len(), 2);
        assert!(list(2, 30, &[("a", 10), ("a", 20)]).unwrap_err().contains("twice"));
        assert!(list(1, 30, &[("a", 10), ("b", 20)]).unwrap_err().contains("more than the 1 files"));
        assert!(list(3, 30, &[("a", 10), ("b", 20)]).unwrap_err().contains("had announced 3"));
        assert!(list(2, 29, &[("a", 10), ("b", 20)]).unwrap_err().contains("more than the 29 bytes"));
        assert!(list(2, 31, &[("a", 10), ("b", 20)]).unwrap_err().contains("of 31"));
        assert!(list(2, 31, &[("a", 10), ("b", u64::MAX)]).unwrap_err().contains("more than"));
        assert!(list(u32::MAX, 1, &[]).unwrap_err().contains("at most"));
        let short = v1::SeedFile { sha256: vec![7; 31].into(), ..file("a", 1) };
        assert!(Listing::announced(1, 1).unwrap().add(vec![short]).unwrap_err().contains("31 bytes"));
    }
}
