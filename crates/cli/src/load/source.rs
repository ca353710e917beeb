//! Where records come from: files, in passes, read by a thread of its own and handed over in batches.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;
use understudy_types::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

use crate::args::{Format, LoadArgs};
use crate::load::lines::Lines;
use crate::load::{LoadError, deb822, jsonl};

/// A batch is closed when it has this much, in bytes: well below the limit of a commit.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// Batches read ahead.
const BATCHES_MAX: usize = 8;
/// One read of a file, in bytes.
const READ_BYTES: usize = 256 << 10;

/// A record as a format gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    pub key: Vec<u8>,
    pub value: Bytes,
    pub line: u64,
}

/// A record on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub key: Bytes,
    pub value: Bytes,
}

/// Records of one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub records: Vec<Record>,
    /// Keys and values together.
    pub bytes: usize,
    /// Where its first record stands.
    pub file: Arc<str>,
    pub line: u64,
}

/// What is to be read.
pub struct Source {
    files: Vec<PathBuf>,
    format: Format,
    prefix: String,
    passes: u64,
    batch: usize,
}

impl Source {
    /// # Errors
    /// When standard input is to be read more than once, or a file cannot be opened.
    pub fn new(args: &LoadArgs) -> Result<Self, LoadError> {
        let stdins = args.files.iter().filter(|path| is_stdin(path)).count();
        if stdins > 1 || (stdins == 1 && args.passes != 1) {
            return Err(LoadError::Arguments(
                "standard input can be read once only; give files for several passes".to_owned(),
            ));
        }
        // Before anything is loaded: a misspelt second file is no reason to load the first.
        for path in args.files.iter().filter(|path| !is_stdin(path)) {
            let opened = File::open(path).and_then(|file| file.metadata());
            let source = match opened {
                Ok(metadata) if metadata.is_dir() => io::Error::from(io::ErrorKind::IsADirectory),
                Ok(_) => continue,
                Err(source) => source,
            };
            return Err(LoadError::Io { what: "open", file: shown(path), source });
        }
        Ok(Self {
            files: args.files.clone(),
            format: args.format,
            prefix: args.prefix.clone(),
            passes: if args.passes == 0 { u64::MAX } else { args.passes },
            batch: usize::try_from(args.batch).unwrap_or(usize::MAX),
        })
    }

    /// How much there is to read in all passes; none when that is not known.
    pub fn bytes_total(&self) -> Option<u64> {
        let sizes = self.files.iter().map(|path| std::fs::metadata(path).ok().filter(|m| m.is_file()).map(|m| m.len()));
        sizes.sum::<Option<u64>>().and_then(|size| size.checked_mul(self.passes))
    }

    fn read(&self, bytes_read: &Arc<AtomicU64>, out: &mut Batcher) -> Result<(), LoadError> {
        for pass in 1..=self.passes {
            for path in &self.files {
                self.read_file(pass, path, bytes_read, out)?;
                if out.closed {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn read_file(
        &self,
        pass: u64,
        path: &Path,
        bytes_read: &Arc<AtomicU64>,
        out: &mut Batcher,
    ) -> Result<(), LoadError> {
        let name: Arc<str> = shown(path).into();
        let inner: Box<dyn Read> = match is_stdin(path) {
            true => Box::new(io::stdin()),
            false => Box::new(File::open(path).map_err(|source| LoadError::Io {
                what: "open",
                file: name.to_string(),
                source,
            })?),
        };
        let counted = Counted { inner, bytes_read: Arc::clone(bytes_read) };
        let mut lines = Lines::new(Box::new(BufReader::with_capacity(READ_BYTES, counted)), Arc::clone(&name));
        let parse = match (self.format, lines.peek_byte()?) {
            (_, None) => return Ok(()),
            (Format::Jsonl, Some(_)) | (Format::Auto, Some(b'{')) => jsonl::next,
            (Format::Deb822 | Format::Auto, Some(_)) => deb822::next,
        };
        let file_name = path.file_name().map_or_else(|| name.to_string(), |file| file.to_string_lossy().into_owned());
        let prefix = self.prefix.replace("{pass}", &pass.to_string()).replace("{file}", &file_name);
        while let Some(parsed) = parse(&mut lines)? {
            let key = [prefix.as_bytes(), &parsed.key].concat();
            check(&lines, parsed.line, &key, &parsed.value)?;
            out.push(Record { key: key.into(), value: parsed.value }, &name, parsed.line);
            if out.closed {
                break;
            }
        }
        Ok(())
    }
}

fn check(lines: &Lines, line: u64, key: &[u8], value: &[u8]) -> Result<(), LoadError> {
    let what = match (key.len(), value.len()) {
        (0, _) => "the key is empty; give at least one byte".to_owned(),
        (bytes, _) if bytes > KEY_BYTES_MAX => format!("the key has {bytes} bytes, the limit is {KEY_BYTES_MAX}"),
        (_, bytes) if bytes > VALUE_BYTES_MAX => format!("the value has {bytes} bytes, the limit is {VALUE_BYTES_MAX}"),
        (_, _) => return Ok(()),
    };
    Err(lines.malformed(line, what))
}

fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

fn shown(path: &Path) -> String {
    if is_stdin(path) { "standard input".to_owned() } else { path.display().to_string() }
}

struct Counted {
    inner: Box<dyn Read>,
    bytes_read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bytes_read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Gathers records and hands them over.
struct Batcher {
    sender: mpsc::Sender<Result<Batch, LoadError>>,
    records_max: usize,
    open: Option<Batch>,
    /// Nobody wants any more.
    closed: bool,
}

impl Batcher {
    fn push(&mut self, record: Record, file: &Arc<str>, line: u64) {
        let bytes = record.key.len() + record.value.len();
        if self.open.as_ref().is_some_and(|open| open.bytes + bytes > BATCH_BYTES_MAX) {
            self.flush();
        }
        let open =
            self.open.get_or_insert_with(|| Batch { records: Vec::new(), bytes: 0, file: Arc::clone(file), line });
        open.records.push(record);
        open.bytes += bytes;
        if open.records.len() >= self.records_max {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if let Some(batch) = self.open.take() {
            self.send(Ok(batch));
        }
    }

    fn send(&mut self, item: Result<Batch, LoadError>) {
        self.closed |= self.sender.blocking_send(item).is_err();
    }
}

/// Starts the reader. The last item is an error if something could not be read; what was read before comes before.
pub fn batches(source: Source, bytes_read: Arc<AtomicU64>) -> mpsc::Receiver<Result<Batch, LoadError>> {
    let (sender, receiver) = mpsc::channel(BATCHES_MAX);
    std::thread::spawn(move || {
        let mut out = Batcher { sender, records_max: source.batch, open: None, closed: false };
        let result = source.read(&bytes_read, &mut out);
        out.flush();
        if let Err(error) = result {
            out.send(Err(error));
        }
    });
    receiver
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
