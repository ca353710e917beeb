//! Scans: what is asked, and the stream of what is found.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use tokio::time::timeout;
use tonic::{Status, Streaming};
use understudy_rpc::v1;
use understudy_types::{Position, SessionToken};

use crate::classify::describe;
use crate::error::ClientError;
use crate::read::{ReadOptions, ReadPreference, token_of};

/// A scan whose node sends nothing for this long has ended.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// Which keys to read, in their byte order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use]
pub struct Scan {
    start: Bytes,
    end: Bytes,
    limit: u64,
    pub(crate) options: ReadOptions,
}

impl Scan {
    /// Every key.
    pub fn all() -> Self {
        Self::default()
    }

    /// The keys from `start` to the one before `end`; an empty `end` is no bound.
    pub fn range(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Self { start: start.into(), end: end.into(), ..Self::default() }
    }

    /// The keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let end = after_prefix(&start);
        Self { start, end, ..Self::default() }
    }

    /// At most this many; zero is no bound.
    pub fn limit(mut self, entries: u64) -> Self {
        self.limit = entries;
        self
    }

    /// What one of the given endpoints has applied, instead of a linearizable read at the primary.
    pub fn eventual(self) -> Self {
        self.read(ReadOptions::eventual().preference(ReadPreference::Endpoints))
    }

    /// How consistent it is, how fresh, and who answers.
    pub fn read(mut self, options: ReadOptions) -> Self {
        self.options = options;
        self
    }

    pub(crate) fn to_wire(&self) -> v1::ScanRequest {
        v1::ScanRequest {
            start: self.start.clone(),
            end: self.end.clone(),
            limit: self.limit,
            consistency: self.options.consistency_number(),
            token: self.options.token_bytes(),
            at: self.options.position(),
            max_staleness_ms: self.options.max_staleness_ms(),
        }
    }
}

/// The first key after all that begin with `prefix`; empty when there is no such key.
fn after_prefix(prefix: &[u8]) -> Bytes {
    let kept = prefix.iter().rposition(|byte| *byte != 0xff).map_or(0, |last| last + 1);
    let mut end = prefix[..kept].to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// The commit that wrote it.
    pub version: Position,
}

/// The entries of one scan, all read at one position.
///
/// An error ends it: what came before stands, the rest has to be asked for again, and is then read at a later
/// position.
pub struct ScanStream {
    stream: Streaming<v1::ScanResponse>,
    buffer: VecDeque<v1::Entry>,
    position: Position,
    token: Option<SessionToken>,
    ended: bool,
}

impl ScanStream {
    /// Waits for the first message, so that a refusal in it can be retried.
    pub(crate) async fn begin(mut stream: Streaming<v1::ScanResponse>) -> Result<Self, Status> {
        let first = timeout(IDLE_MAX, stream.message()).await.map_err(|_| idle())??;
        let ended = first.is_none();
        let first = first.unwrap_or_default();
        let position = first.read_position.map(Position::from).unwrap_or_default();
        let token = token_of(&first.token);
        Ok(Self { stream, buffer: first.entries.into(), position, token, ended })
    }

    /// Stands for the position that is read; none from a node that sends none.
    pub fn token(&self) -> Option<SessionToken> {
        self.token
    }

    /// The position that is read; zero when the node did not say.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The next entry; none after the last.
    ///
    /// # Errors
    /// [`ClientError::Unavailable`] when the node stopped sending before the end.
    pub async fn next(&mut self) -> Option<Result<Entry, ClientError>> {
        loop {
            if let Some(v1::Entry { key, value, version }) = self.buffer.pop_front() {
                let version = version.map(Position::from).unwrap_or_default();
                return Some(Ok(Entry { key, value, version }));
            }
            if self.ended {
                return None;
            }
            match timeout(IDLE_MAX, self.stream.message()).await.map_err(|_| idle()).flatten() {
                Ok(Some(message)) => self.buffer = message.entries.into(),
                Ok(None) => self.ended = true,
                Err(status) => {
                    self.ended = true;
                    let why = format!("the scan broke off before its end: {}", describe(&status));
                    return Some(Err(ClientError::Unavailable { why }));
                }
            }
        }
    }

    /// As a stream of [`futures`].
    pub fn into_stream(self) -> BoxStream<'static, Result<Entry, ClientError>> {
        futures::stream::unfold(self, |mut scan| async move { scan.next().await.map(|entry| (entry, scan)) }).boxed()
    }
}

fn idle() -> Status {
    Status::unavailable(format!("the node sent nothing for {} s", IDLE_MAX.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_where_the_next_begins() {
        assert_eq!(after_prefix(b"pkg/"), Bytes::from_static(b"pkg0"));
        assert_eq!(after_prefix(b"a\xff\xff"), Bytes::from_static(b"b"));
        assert_eq!(after_prefix(b"\xff"), Bytes::new());
        assert_eq!(after_prefix(b""), Bytes::new());
    }
}
