//! The commits that are appended but not visible: what the sequencer must know beyond the store.
//!
//! A commit is here from the moment that it is appended until the sequencer has seen a visible LSN at or
//! above its end; the store has it before that LSN is published. So the latest state of a key is here, or
//! it is in the store at the visible LSN that was seen, and nowhere between: no commit can be missed while
//! it moves from the one to the other.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use understudy_types::{Lsn, Position, RequestId};
use understudy_wal::{CommitRecord, Op};

/// What the latest pending commit made of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PendingKey {
    /// The commit.
    pub version: Position,
    /// None for a deletion.
    pub value: Option<Bytes>,
}

#[derive(Debug)]
struct PendingCommit {
    lsn: Lsn,
    keys: Vec<Bytes>,
    request_id: Option<RequestId>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// In LSN order.
    commits: VecDeque<PendingCommit>,
    keys: HashMap<Bytes, PendingKey>,
    requests: HashMap<RequestId, Position>,
    /// Of all commits together, each counted once more for itself.
    operations: usize,
}

impl Pending {
    /// Adds a commit behind all others.
    pub(crate) fn add(&mut self, version: Position, commit: &CommitRecord) {
        assert!(self.commits.back().is_none_or(|last| last.lsn < version.lsn), "commits are appended in LSN order");
        for op in &commit.ops {
            let value = match op {
                Op::Put { value, .. } => Some(value.clone()),
                Op::Delete { .. } => None,
            };
            self.keys.insert(op.key().clone(), PendingKey { version, value });
        }
        if let Some(id) = commit.request_id {
            self.requests.insert(id, version);
        }
        self.operations += 1 + commit.ops.len();
        let keys = commit.ops.iter().map(|op| op.key().clone()).collect();
        self.commits.push_back(PendingCommit { lsn: version.lsn, keys, request_id: commit.request_id });
    }

    /// Forgets what is visible.
    pub(crate) fn prune(&mut self, visible: Lsn) {
        while self.commits.front().is_some_and(|first| first.lsn <= visible) {
            let Some(commit) = self.commits.pop_front() else { return };
            self.operations -= 1 + commit.keys.len();
            for key in commit.keys {
                // A later commit may have written the key again.
                if self.keys.get(&key).is_some_and(|pending| pending.version.lsn <= visible) {
                    self.keys.remove(&key);
                }
            }
            if let Some(id) = commit.request_id {
                self.requests.remove(&id);
            }
        }
    }

    /// What the latest pending commit made of `key`; none when no pending commit wrote it.
    pub(crate) fn key(&self, key: &Bytes) -> Option<&PendingKey> {
        self.keys.get(key)
    }

    /// The pending commit that was made under this request id.
    pub(crate) fn request(&self, id: &RequestId) -> Option<Position> {
        self.requests.get(id).copied()
    }

    /// How many operations are pending, a commit counting as one more.
    pub(crate) fn operations(&self) -> usize {
        self.operations
    }
}

#[cfg(test)]
mod tests {
    use understudy_types::TimelineId;

    use super::*;

    fn at(lsn: u64) -> Position {
        Position::new(TimelineId::FIRST, Lsn::new(lsn))
    }

    fn put(key: &'static str, value: &'static str) -> Op {
        Op::Put { key: key.into(), value: value.into() }
    }

    fn value_of(pending: &Pending, key: &'static str) -> Option<Option<Bytes>> {
        pending.key(&key.into()).map(|pending| pending.value.clone())
    }

    #[test]
    fn the_latest_commit_counts_until_it_is_visible() {
        let id = RequestId::new([1; 16]);
        let mut pending = Pending::default();
        pending.add(at(10), &CommitRecord { request_id: Some(id), ops: vec![put("a", "1"), put("b", "1")] });
        let ops = vec![put("a", "2"), Op::Delete { key: "a".into() }];
        pending.add(at(20), &CommitRecord { request_id: None, ops });
        assert_eq!(value_of(&pending, "a"), Some(None));
        assert_eq!(value_of(&pending, "b"), Some(Some("1".into())));
        assert_eq!(pending.request(&id), Some(at(10)));
        pending.prune(Lsn::new(9));
        assert_eq!((pending.commits.len(), pending.operations()), (2, 6));
        pending.prune(Lsn::new(10));
        assert_eq!(value_of(&pending, "a"), Some(None), "written again by the commit at 20");
        assert_eq!(value_of(&pending, "b"), None);
        assert_eq!(pending.request(&id), None);
        pending.prune(Lsn::new(20));
        assert_eq!((pending.operations(), pending.keys.len(), pending.requests.len()), (0, 0, 0));
    }
}
