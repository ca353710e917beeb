//! The file of acknowledgements: one JSON line per record, written as it is acknowledged.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, json};
use understudy_client::CommitOutcome;

use crate::load::LoadError;
use crate::load::source::Batch;
use crate::output::insert_bytes;

/// Written through at once: whoever reads along sees what was acknowledged.
pub struct Acks {
    file: File,
    shown: String,
}

/// Microseconds since 1970, for people and for measuring gaps.
pub fn unix_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

impl Acks {
    /// Makes the file, or empties it.
    pub fn create(path: &Path) -> Result<Self, LoadError> {
        let shown = path.display().to_string();
        match File::create(path) {
            Ok(file) => Ok(Self { file, shown }),
            Err(source) => Err(LoadError::Io { what: "write", file: shown, source }),
        }
    }

    /// Notes the records of a commit that was acknowledged at `at_us`.
    pub fn note(&mut self, batch: &Batch, outcome: &CommitOutcome, at_us: u64) -> Result<(), LoadError> {
        let mut text = Vec::new();
        for record in &batch.records {
            let mut line = Map::new();
            insert_bytes(&mut line, "key", &record.key);
            line.insert("request_id".to_owned(), outcome.request_id.to_string().into());
            line.insert("node_id".to_owned(), outcome.node_id.to_string().into());
            line.insert("timeline".to_owned(), outcome.position.timeline.get().into());
            line.insert("lsn".to_owned(), outcome.position.lsn.get().into());
            line.insert("already_done".to_owned(), outcome.already_done.into());
            line.insert("value_crc32c".to_owned(), crc32c::crc32c(&record.value).into());
            // Exact to the microsecond: 2^53 us are 285 years.
            line.insert("t_ms".to_owned(), json!(at_us as f64 / 1_000.0));
            text.extend_from_slice(serde_json::Value::Object(line).to_string().as_bytes());
            text.push(b'\n');
        }
        let written = self.file.write_all(&text);
        written.map_err(|source| LoadError::Io { what: "write", file: self.shown.clone(), source })
    }
}
