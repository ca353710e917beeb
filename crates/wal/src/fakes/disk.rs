//! What a simulated disk holds: what is seen, what is durable, and what lies between.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::PathBuf;

use super::Fault;

const SECTOR_BYTES: usize = 512;

#[derive(Debug, Clone, Default)]
pub(super) struct Inode {
    pub live: Vec<u8>,
    pub durable: Vec<u8>,
    /// Writes since the last sync: where, and what.
    pub pending: Vec<(usize, Vec<u8>)>,
}

#[derive(Debug, Clone)]
pub(super) enum NameChange {
    Link(PathBuf, u64),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, u64),
}

#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    pub inodes: BTreeMap<u64, Inode>,
    pub names: BTreeMap<PathBuf, u64>,
    pub durable_names: BTreeMap<PathBuf, u64>,
    pub pending_names: Vec<NameChange>,
    pub directories: BTreeSet<PathBuf>,
    pub inodes_made: u64,
    /// Changing operations so far.
    pub operations: u64,
    pub faults: BTreeMap<u64, Fault>,
    pub crashed: bool,
    /// Files opened before the last crash are gone.
    pub epoch: u64,
    pub capacity_bytes: Option<u64>,
    pub syncs_held: bool,
    pub failing_syncs: bool,
    pub failing_removals: bool,
}

pub(super) fn apply_name(names: &mut BTreeMap<PathBuf, u64>, change: NameChange) {
    match change {
        NameChange::Link(path, inode) => {
            names.insert(path, inode);
        }
        NameChange::Unlink(path) => {
            names.remove(&path);
        }
        NameChange::Rename(from, to, inode) => {
            names.remove(&from);
            names.insert(to, inode);
        }
    }
}

impl Inode {
    /// What a failed sync gave up is not written by a later one.
    pub(super) fn sync(&mut self) {
        for (offset, bytes) in std::mem::take(&mut self.pending) {
            let end = offset + bytes.len();
            if self.durable.len() < end {
                self.durable.resize(end, 0);
            }
            self.durable[offset..end].copy_from_slice(&bytes);
        }
    }

    /// Every sector takes one of the contents that it had since the last sync; of one file in four all are old.
    pub(super) fn tear(&mut self, random: &mut Random) {
        let mut content = std::mem::take(&mut self.durable);
        let all_lost = random.one_in(4);
        for (offset, bytes) in std::mem::take(&mut self.pending) {
            let mut at = offset;
            while at < offset + bytes.len() {
                let end = (at / SECTOR_BYTES * SECTOR_BYTES + SECTOR_BYTES).min(offset + bytes.len());
                if !all_lost && random.one_in(2) {
                    if content.len() < end {
                        content.resize(end, 0);
                    }
                    content[at..end].copy_from_slice(&bytes[at - offset..end - offset]);
                }
                at = end;
            }
        }
        self.live = content.clone();
        self.durable = content;
    }
}

impl Disk {
    pub(super) fn reset_faults(&mut self) {
        self.faults.clear();
        (self.crashed, self.syncs_held) = (false, false);
        (self.failing_syncs, self.failing_removals) = (false, false);
    }

    /// Counts a changing operation; what is planned for it.
    pub(super) fn begin(&mut self) -> Option<Fault> {
        let number = self.operations;
        self.operations += 1;
        if self.crashed {
            return Some(Fault::Crash);
        }
        let fault = self.faults.get(&number).copied();
        self.crashed = fault == Some(Fault::Crash);
        fault
    }

    pub(super) fn change(&self, fault: Option<Fault>) -> io::Result<()> {
        match fault {
            Some(Fault::Crash) => Err(io::Error::other("the process is gone")),
            Some(Fault::Error) => Err(io::Error::other("planned failure")),
            None => Ok(()),
        }
    }

    pub(super) fn check_room(&self, inode: &Inode, end: usize) -> io::Result<()> {
        let used: usize = self.names.values().filter_map(|id| self.inodes.get(id)).map(|inode| inode.live.len()).sum();
        let used = used + inode.live.len();
        let more = end.saturating_sub(inode.live.len());
        match self.capacity_bytes {
            Some(capacity) if more > 0 && (used + more) as u64 > capacity => {
                Err(io::Error::from(ErrorKind::StorageFull))
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// SplitMix64: the same numbers for the same seed.
pub(super) struct Random(pub u64);

impl Random {
    pub(super) fn one_in(&mut self, count: u64) -> bool {
        self.next().is_multiple_of(count)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}
