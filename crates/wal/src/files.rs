//! All file IO of the data directory goes through two traits, so that a test can lose, tear and reorder what
//! was not synced, and fail what it likes, without a line of production code knowing.
//!
//! The model is POSIX at its least: a write is durable once `sync_data` of its file returned; a new, renamed or
//! removed name is durable once `sync_dir` of its directory returned; nothing else is, in no order.
//! Writing is positional (`pwrite`) and never through a memory map, which would lose IO errors.

use std::io;
use std::path::Path;
use std::sync::Arc;

pub use crate::real::RealFiles;

/// A file system, or the part of it that a node uses.
pub trait Files: Send + Sync + 'static {
    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// `NotFound`, and what the system says.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Makes an empty file, in the place of one that may be there.
    ///
    /// # Errors
    /// What the system says.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Renames a file over one that may be there, atomically.
    ///
    /// # Errors
    /// What the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// `NotFound`, and what the system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// The names of the files in a directory, sorted; names that are not UTF-8 are left out, for none of ours is.
    ///
    /// # Errors
    /// What the system says.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Makes a directory and its parents, durably; fine when it is there.
    ///
    /// # Errors
    /// What the system says.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// What the system says.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// An open file.
pub trait File: Send + Sync {
    /// Reads at most `buffer.len()` bytes at `offset`; zero at the end of the file.
    ///
    /// # Errors
    /// What the system says.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes all of `bytes` at `offset`, beyond the end too.
    ///
    /// # Errors
    /// What the system says; part of the bytes may have been written then.
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes the file's bytes and its size durable (`fdatasync`).
    ///
    /// # Errors
    /// What the system says. What was written since the last success must be taken for lost: a second try may
    /// report success without having written anything.
    fn sync_data(&self) -> io::Result<()>;

    /// In bytes.
    ///
    /// # Errors
    /// What the system says.
    fn size(&self) -> io::Result<u64>;
}

/// Reads until `buffer` is full or the file ends; says how many bytes.
///
/// # Errors
/// What the system says.
pub fn read_full_at(file: &dyn File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(offset + done as u64, &mut buffer[done..]) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// The whole content of a small file; none when there is no such file.
///
/// # Errors
/// What the system says.
pub fn read_file(files: &dyn Files, path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match files.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let size = usize::try_from(file.size()?).map_err(io::Error::other)?;
    let mut bytes = vec![0; size];
    let count = read_full_at(&*file, 0, &mut bytes)?;
    bytes.truncate(count);
    Ok(Some(bytes))
}

/// Puts `bytes` into a small file in one step: after a crash it holds the old content or the new.
///
/// A temporary file beside it is written, synced and renamed, and the directory is synced.
///
/// # Errors
/// What the system says; the old content is still there, or the new one may be.
pub fn replace_file(files: &dyn Files, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary_of(path);
    let file = files.create(&temporary)?;
    file.write_all_at(0, bytes)?;
    file.sync_data()?;
    drop(file);
    files.rename(&temporary, path)?;
    files.sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// What a file is called while it is being made.
pub(crate) fn temporary_of(path: &Path) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

/// Whether a file of this name was being made when its writer died.
pub(crate) fn is_temporary(name: &str) -> bool {
    name.ends_with(".tmp")
}
