//! Files in memory with the faults of real ones, for tests.
//!
//! A [`SimFiles`] is a disk behind a page cache. What is written is seen at once by whoever reads, and is durable
//! when its file was synced; names are durable when their directory was. [`SimFiles::crash`] takes the power away: of
//! what was not synced, every 512-byte sector keeps an old or a new content and every name its old or new file, by
//! the seed, in no order.
//!
//! Every operation that changes something has a number, from zero; faults are planned by it. A failed sync
//! behaves as Linux: the bytes stay readable, and a later sync reports success without having written them.

mod disk;

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use self::disk::{Disk, Inode, NameChange, Random, apply_name};
use crate::files::{File, Files};

/// What a planned fault does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The operation and all that follow fail, until [`SimFiles::crash`]: the process is gone. A write may have been
    /// done in part.
    Crash,
    /// The operation fails, once.
    Error,
}

/// See the module.
#[derive(Clone, Default)]
pub struct SimFiles {
    disk: Arc<(Mutex<Disk>, Condvar)>,
}

struct SimFile {
    files: SimFiles,
    inode: u64,
    epoch: u64,
}

impl SimFiles {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.disk.0.lock().expect("the simulated disk does not panic")
    }

    /// A copy of the disk as it is, cache and plans included.
    pub fn fork(&self) -> Self {
        Self { disk: Arc::new((Mutex::new(self.lock().clone()), Condvar::new())) }
    }

    /// How many changing operations there were.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Plans a fault for the changing operation with this number.
    pub fn plan(&self, operation: u64, fault: Fault) {
        self.lock().faults.insert(operation, fault);
    }

    /// From now on, or no longer, every sync fails.
    pub fn fail_syncs(&self, failing: bool) {
        self.lock().failing_syncs = failing;
    }

    /// From now on, or no longer, every removal of a file fails.
    pub fn fail_removals(&self, failing: bool) {
        self.lock().failing_removals = failing;
    }

    /// Bounds the bytes of all files together; more is refused as by a full disk. None for no bound.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity_bytes = bytes;
    }

    /// From now on every sync of a file waits; `false` lets all go on.
    pub fn hold_syncs(&self, held: bool) {
        self.lock().syncs_held = held;
        self.disk.1.notify_all();
    }

    /// Turns a bit of a file around, on the disk and in the cache.
    ///
    /// # Panics
    /// When there is no such file or byte.
    pub fn flip_bit(&self, path: &Path, offset: usize, bit: u8) {
        let mut disk = self.lock();
        let inode = disk.names[path];
        let inode = disk.inodes.get_mut(&inode).expect("a name has a file");
        inode.live[offset] ^= 1 << bit;
        if let Some(byte) = inode.durable.get_mut(offset) {
            *byte ^= 1 << bit;
        }
    }

    /// The content of a file as a reader sees it; none when there is no such file.
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let disk = self.lock();
        disk.names.get(path).map(|inode| disk.inodes[inode].live.clone())
    }

    /// Every file's path, sorted.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.lock().names.keys().cloned().collect()
    }

    /// Takes the power away and gives it back: what was not synced is lost, torn or kept, by the seed. Planned faults
    /// and held syncs are forgotten; files that are open fail from now on.
    pub fn crash(&self, seed: u64) {
        let mut random = Random(seed);
        let mut disk = self.lock();
        for inode in disk.inodes.values_mut() {
            inode.tear(&mut random);
        }
        let mut names = disk.durable_names.clone();
        let changes = std::mem::take(&mut disk.pending_names);
        let all_lost = random.one_in(4);
        for change in changes.into_iter().filter(|_| !all_lost && random.one_in(2)) {
            apply_name(&mut names, change);
        }
        let kept: BTreeSet<u64> = names.values().copied().collect();
        disk.inodes.retain(|inode, _| kept.contains(inode));
        disk.durable_names = names.clone();
        disk.names = names;
        disk.reset_faults();
        disk.epoch += 1;
        drop(disk);
        self.disk.1.notify_all();
    }

    /// Ends the process alone (kill -9): the cache survives, open files and planned faults do not.
    pub fn kill(&self) {
        let mut disk = self.lock();
        disk.reset_faults();
        disk.epoch += 1;
        drop(disk);
        self.disk.1.notify_all();
    }

    fn open_inode(&self, disk: &Disk, inode: u64) -> Arc<dyn File> {
        Arc::new(SimFile { files: self.clone(), inode, epoch: disk.epoch })
    }
}

impl Files for SimFiles {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let disk = self.lock();
        let inode = *disk.names.get(path).ok_or(ErrorKind::NotFound)?;
        Ok(self.open_inode(&disk, inode))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut disk = self.lock();
        let fault = disk.begin();
        disk.change(fault)?;
        let parent = path.parent().unwrap_or(Path::new(""));
        if !disk.directories.contains(parent) {
            return Err(ErrorKind::NotFound.into());
        }
        disk.inodes_made += 1;
        let inode = disk.inodes_made;
        disk.inodes.insert(inode, Inode::default());
        disk.names.insert(path.to_owned(), inode);
        disk.pending_names.push(NameChange::Link(path.to_owned(), inode));
        Ok(self.open_inode(&disk, inode))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.lock();
        let fault = disk.begin();
        disk.change(fault)?;
        let inode = *disk.names.get(from).ok_or(ErrorKind::NotFound)?;
        let change = NameChange::Rename(from.to_owned(), to.to_owned(), inode);
        apply_name(&mut disk.names, change.clone());
        disk.pending_names.push(change);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.lock();
        let fault = if disk.failing_removals { Some(Fault::Error) } else { None };
        let fault = disk.begin().or(fault);
        disk.change(fault)?;
        disk.names.remove(path).ok_or(ErrorKind::NotFound)?;
        disk.pending_names.push(NameChange::Unlink(path.to_owned()));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let disk = self.lock();
        if !disk.directories.contains(dir) {
            return Err(ErrorKind::NotFound.into());
        }
        let inside = disk.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect())
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.lock().directories.extend(dir.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.lock();
        let fault = disk.begin();
        disk.change(fault)?;
        let of_dir = |path: &PathBuf| path.parent() == Some(dir);
        let (synced, pending) = std::mem::take(&mut disk.pending_names).into_iter().partition(|change| match change {
            NameChange::Link(path, _) | NameChange::Unlink(path) | NameChange::Rename(_, path, _) => of_dir(path),
        });
        disk.pending_names = pending;
        let synced: Vec<NameChange> = synced;
        synced.into_iter().for_each(|change| apply_name(&mut disk.durable_names, change));
        Ok(())
    }
}

impl SimFile {
    fn check_epoch(&self, disk: &Disk) -> io::Result<()> {
        if disk.epoch == self.epoch { Ok(()) } else { Err(io::Error::other("the file was open before the crash")) }
    }
}

impl File for SimFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let disk = self.files.lock();
        self.check_epoch(&disk)?;
        let live = &disk.inodes[&self.inode].live;
        let rest = usize::try_from(offset).ok().and_then(|offset| live.get(offset..)).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.files.lock();
        self.check_epoch(&disk)?;
        let was_crashed = disk.crashed;
        let fault = disk.begin();
        if was_crashed || fault == Some(Fault::Error) {
            return disk.change(fault);
        }
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let end = offset + bytes.len();
        let mut inode = disk.inodes.remove(&self.inode).expect("an open file");
        let room = disk.check_room(&inode, end);
        if room.is_ok() {
            if inode.live.len() < end {
                inode.live.resize(end, 0);
            }
            inode.live[offset..end].copy_from_slice(bytes);
            inode.pending.push((offset, bytes.to_vec()));
        }
        disk.inodes.insert(self.inode, inode);
        room.and_then(|()| disk.change(fault))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.files.lock();
        while disk.syncs_held && disk.epoch == self.epoch {
            disk = self.files.disk.1.wait(disk).expect("the simulated disk does not panic");
        }
        self.check_epoch(&disk)?;
        let fault = if disk.failing_syncs { Some(Fault::Error) } else { None };
        let fault = disk.begin().or(fault);
        let inode = disk.inodes.get_mut(&self.inode).expect("an open file");
        match fault {
            Some(Fault::Crash) => {}
            Some(Fault::Error) => inode.pending.clear(),
            None => inode.sync(),
        }
        disk.change(fault)
    }

    fn size(&self) -> io::Result<u64> {
        let disk = self.files.lock();
        self.check_epoch(&disk)?;
        Ok(disk.inodes[&self.inode].live.len() as u64)
    }
}

#[cfg(test)]
#[path = "fakes_tests.rs"]
mod tests;
