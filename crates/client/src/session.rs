//! A session: reads that never go back behind what the session has read and written.
//!
//! Every answer carries a token, the session keeps the highest and sends it with the next read, and whatever node answers
//! waits until it shows that much. Tokens of different timelines are kept apart until a read has shown that the older one
//! lies on the newer timeline: a commit at level `off` that a failover lost is not forgotten over the next commit, the read
//! after it says so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use understudy_types::{SessionToken, TimelineId};

use crate::client::{Client, Read};
use crate::commit::{Commit, CommitOutcome};
use crate::error::ClientError;
use crate::read::{ReadOptions, ReadPreference};
use crate::scan::{Scan, ScanStream};

/// Timelines that tokens are kept of. A session that only writes over more failovers than this forgets the oldest.
const TIMELINES_MAX: usize = 64;

/// See the module. Clones are the same session.
///
/// ```no_run
/// # use understudy_client::{Client, ClientError};
/// # async fn example(client: Client) -> Result<(), ClientError> {
/// let session = client.session();
/// session.put("greeting", "hello").await?;
/// // Perhaps answered by a standby, and it sees the commit.
/// assert_eq!(session.get("greeting").await?.found.expect("just written").value, "hello");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Session {
    client: Client,
    preference: ReadPreference,
    tokens: Arc<Mutex<Tokens>>,
}

/// The highest token of each timeline.
#[derive(Debug, Default)]
struct Tokens {
    by_timeline: BTreeMap<TimelineId, SessionToken>,
}

impl Tokens {
    fn add(&mut self, token: SessionToken) {
        let kept = self.by_timeline.entry(token.position.timeline).or_insert(token);
        if kept.position < token.position {
            *kept = token;
        }
        if self.by_timeline.len() > TIMELINES_MAX {
            self.by_timeline.pop_first();
        }
    }

    /// A read that was asked for with `asked` was answered with `answer`: a node has shown that it covers it.
    fn answered(&mut self, asked: Option<SessionToken>, answer: Option<SessionToken>) {
        let Some(answer) = answer else { return };
        if let Some(asked) = asked {
            let timeline = asked.position.timeline;
            if self.by_timeline.get(&timeline).is_some_and(|kept| kept.position <= asked.position) {
                self.by_timeline.remove(&timeline);
            }
        }
        self.add(answer);
    }

    fn oldest(&self) -> Option<SessionToken> {
        self.by_timeline.values().next().copied()
    }
}

impl Session {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, preference: ReadPreference::default(), tokens: Arc::default() }
    }

    /// Goes on with a session of which only the token is left.
    #[must_use]
    pub fn resume(self, token: SessionToken) -> Self {
        self.lock().add(token);
        self
    }

    /// Who answers the reads.
    #[must_use]
    pub fn preference(mut self, preference: ReadPreference) -> Self {
        self.preference = preference;
        self
    }

    /// What the session has seen and written; none before its first call. With a commit on a timeline that no read has
    /// followed yet it is that of the commit.
    pub fn token(&self) -> Option<SessionToken> {
        self.lock().by_timeline.values().next_back().copied()
    }

    /// Forgets what the session has seen and written: for after [`ClientError::Abandoned`].
    pub fn reset(&self) {
        self.lock().by_timeline.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Tokens> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads one key, as of what the session has seen and written, or later.
    ///
    /// # Errors
    /// As [`Client::get`]; [`ClientError::Abandoned`] when a failover lost what the session has written.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Read, ClientError> {
        let (key, goal) = (key.into(), self.token());
        loop {
            let asked = self.lock().oldest();
            let read = self.client.read(key.clone(), ReadOptions::session(asked).preference(self.preference)).await?;
            self.lock().answered(asked, read.token);
            if covers(asked, read.token, goal) {
                return Ok(read);
            }
        }
    }

    /// Reads a range of keys, as of what the session has seen and written, or later.
    ///
    /// # Errors
    /// As [`Session::get`].
    pub async fn scan(&self, scan: Scan) -> Result<ScanStream, ClientError> {
        let goal = self.token();
        loop {
            let asked = self.lock().oldest();
            let options = ReadOptions::session(asked).preference(self.preference);
            let stream = self.client.scan(scan.clone().read(options)).await?;
            self.lock().answered(asked, stream.token());
            if covers(asked, stream.token(), goal) {
                return Ok(stream);
            }
        }
    }

    /// As [`Client::commit`]; later reads of the session see it, whatever its level.
    ///
    /// # Errors
    /// As [`Client::commit`].
    pub async fn commit(&self, commit: Commit) -> Result<CommitOutcome, ClientError> {
        let outcome = self.client.commit(commit).await?;
        if let Some(token) = outcome.token {
            self.lock().add(token);
        }
        Ok(outcome)
    }

    /// As [`Client::put`].
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<CommitOutcome, ClientError> {
        self.commit(Commit::new().put(key, value)).await
    }

    /// As [`Client::delete`].
    ///
    /// # Errors
    /// As [`Client::delete`].
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<CommitOutcome, ClientError> {
        self.commit(Commit::new().delete(key)).await
    }
}

/// Whether a read that was asked for with `asked` and answered with `answer` shows all that `goal` stands for. A later
/// timeline alone does not: whether the goal lies on it only a node can tell.
fn covers(asked: Option<SessionToken>, answer: Option<SessionToken>, goal: Option<SessionToken>) -> bool {
    let (Some(goal), Some(answer)) = (goal, answer) else { return true };
    let reaches = |token: SessionToken| {
        token.position.timeline == goal.position.timeline && token.position.lsn >= goal.position.lsn
    };
    asked.is_none_or(|asked| reaches(asked) || asked.position.timeline > goal.position.timeline) || reaches(answer)
}

#[cfg(test)]
mod tests {
    use understudy_types::{Lsn, Position, SystemId};

    use super::*;

    fn token(timeline: u32, lsn: u64) -> SessionToken {
        SessionToken::new(SystemId::new(5), Position::new(TimelineId::new(timeline), Lsn::new(lsn)))
    }

    #[test]
    fn the_highest_of_a_timeline_is_kept() {
        let mut tokens = Tokens::default();
        for lsn in [5, 9, 7] {
            tokens.add(token(1, lsn));
        }
        assert_eq!(tokens.oldest(), Some(token(1, 9)));
        tokens.answered(Some(token(1, 9)), Some(token(1, 12)));
        assert_eq!(tokens.oldest(), Some(token(1, 12)));
    }

    #[test]
    fn a_commit_on_a_new_timeline_does_not_hide_one_that_may_be_lost() {
        let mut tokens = Tokens::default();
        tokens.add(token(1, 9));
        tokens.add(token(2, 7));
        assert_eq!(tokens.oldest(), Some(token(1, 9)), "a read asks for this one first");
        tokens.answered(Some(token(1, 9)), Some(token(2, 6)));
        assert_eq!(tokens.oldest(), Some(token(2, 7)));
        assert_eq!(tokens.by_timeline.len(), 1);
    }

    #[test]
    fn a_later_timeline_alone_covers_nothing() {
        let covers = |asked, answer, goal| covers(Some(asked), Some(answer), Some(goal));
        assert!(covers(token(1, 9), token(2, 6), token(1, 9)), "it was asked for");
        assert!(!covers(token(1, 9), token(2, 6), token(2, 7)));
        assert!(covers(token(1, 9), token(2, 7), token(2, 7)));
        assert!(!covers(token(1, 9), token(3, 5), token(2, 7)), "timeline 3 may have left timeline 2 before 7");
    }

    #[test]
    fn what_another_call_wrote_meanwhile_is_kept() {
        let mut tokens = Tokens::default();
        tokens.add(token(1, 9));
        let asked = tokens.oldest();
        tokens.add(token(1, 20));
        tokens.answered(asked, Some(token(1, 12)));
        assert_eq!(tokens.oldest(), Some(token(1, 20)));
    }

    #[test]
    fn memory_is_bounded() {
        let mut tokens = Tokens::default();
        for timeline in 1..=10_000 {
            tokens.add(token(timeline, 9));
            assert!(tokens.by_timeline.len() <= TIMELINES_MAX);
        }
    }
}
