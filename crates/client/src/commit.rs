//! A commit: what it does, what it requires, and what came of it.

use std::time::Duration;

use bytes::Bytes;
use understudy_rpc::error::{Reason, RpcError};
use understudy_rpc::v1::{self, operation, precondition};
use understudy_types::limits::{COMMIT_BYTES_MAX, COMMIT_OPERATIONS_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX};
use understudy_types::{DurabilityLevel, NodeId, Position, RequestId, SessionToken};

use crate::error::ClientError;
use crate::read::token_of;
use crate::route::Failure;

/// All of its operations or none, if every precondition holds.
///
/// ```
/// use understudy_client::Commit;
/// let commit = Commit::new().put("a", "1").delete("b").if_present("b");
/// assert_eq!(commit.len(), 2);
/// ```
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub struct Commit {
    operations: Vec<v1::Operation>,
    preconditions: Vec<v1::Precondition>,
    level: Option<DurabilityLevel>,
    request_id: RequestId,
    deadline: Option<Duration>,
}

impl Default for Commit {
    fn default() -> Self {
        Self::new()
    }
}

impl Commit {
    /// An empty commit, with a request id drawn at random.
    pub fn new() -> Self {
        Self {
            operations: Vec::new(),
            preconditions: Vec::new(),
            level: None,
            request_id: random_request_id(),
            deadline: None,
        }
    }

    /// Sets `key` to `value`. Operations are applied in their order.
    pub fn put(mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        let put = v1::Put { key: key.into(), value: value.into() };
        self.operations.push(v1::Operation { operation: Some(operation::Operation::Put(put)) });
        self
    }

    /// Deletes `key`, whether it is there or not.
    pub fn delete(mut self, key: impl Into<Bytes>) -> Self {
        let delete = v1::Delete { key: key.into() };
        self.operations.push(v1::Operation { operation: Some(operation::Operation::Delete(delete)) });
        self
    }

    /// Only if `key` has no value.
    pub fn if_absent(self, key: impl Into<Bytes>) -> Self {
        self.require(key, precondition::Condition::Absent(precondition::Absent {}))
    }

    /// Only if `key` has a value.
    pub fn if_present(self, key: impl Into<Bytes>) -> Self {
        self.require(key, precondition::Condition::Present(precondition::Present {}))
    }

    /// Only if the value of `key` is `value`.
    pub fn if_value(self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.require(key, precondition::Condition::ValueEquals(value.into()))
    }

    /// Only if the value of `key` was written by the commit at `version`.
    pub fn if_version(self, key: impl Into<Bytes>, version: Position) -> Self {
        self.require(key, precondition::Condition::VersionEquals(version.into()))
    }

    fn require(mut self, key: impl Into<Bytes>, condition: precondition::Condition) -> Self {
        self.preconditions.push(v1::Precondition { key: key.into(), condition: Some(condition) });
        self
    }

    /// When it is acknowledged. If not said: [`crate::Options::durability`], and without that the cluster's default.
    pub fn level(mut self, level: DurabilityLevel) -> Self {
        self.level = Some(level);
        self
    }

    /// Asks again about a commit whose outcome was unknown: the operations must be the same as then.
    pub fn request_id(mut self, request_id: RequestId) -> Self {
        self.request_id = request_id;
        self
    }

    /// How long it is tried, instead of [`crate::Options::deadline`].
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// What makes it take effect once.
    pub fn id(&self) -> RequestId {
        self.request_id
    }

    /// How many operations it has.
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Whether it does nothing: such a commit is refused.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    pub(crate) fn deadline_or(&self, default: Duration) -> Duration {
        self.deadline.unwrap_or(default)
    }

    /// Checks the limits here: the same answer as the server's, without the way there.
    pub(crate) fn check(&self) -> Result<(), ClientError> {
        self.check_limits().map_err(|error| ClientError::Invalid { message: error.message })
    }

    fn check_limits(&self) -> Result<(), RpcError> {
        if self.operations.is_empty() {
            return Err(RpcError::invalid_argument("a commit without operations was asked for; give at least one"));
        }
        let count = self.operations.len() + self.preconditions.len();
        if count > COMMIT_OPERATIONS_MAX {
            return Err(RpcError::limit_exceeded(
                "the commit",
                count,
                COMMIT_OPERATIONS_MAX,
                "operations and preconditions",
            ));
        }
        let mut bytes = 0;
        for operation in &self.operations {
            let (key, value): (&[u8], &[u8]) = match &operation.operation {
                Some(operation::Operation::Put(put)) => (&put.key, &put.value),
                Some(operation::Operation::Delete(delete)) => (&delete.key, &[]),
                None => (&[], &[]),
            };
            check_key(key)?;
            if value.len() > VALUE_BYTES_MAX {
                return Err(RpcError::limit_exceeded("a value of the commit", value.len(), VALUE_BYTES_MAX, "bytes"));
            }
            bytes += key.len() + value.len();
        }
        self.preconditions.iter().try_for_each(|precondition| check_key(&precondition.key))?;
        if bytes > COMMIT_BYTES_MAX {
            return Err(RpcError::limit_exceeded("the commit", bytes, COMMIT_BYTES_MAX, "bytes of keys and values"));
        }
        Ok(())
    }

    /// Of its keys and values.
    pub(crate) fn bytes(&self) -> usize {
        let operations = self.operations.iter().map(|operation| match &operation.operation {
            Some(operation::Operation::Put(put)) => put.key.len() + put.value.len(),
            Some(operation::Operation::Delete(delete)) => delete.key.len(),
            None => 0,
        });
        operations.sum()
    }

    pub(crate) fn into_wire(self, default_level: Option<DurabilityLevel>) -> v1::CommitRequest {
        v1::CommitRequest {
            request_id: Bytes::copy_from_slice(self.request_id.as_bytes()),
            operations: self.operations,
            preconditions: self.preconditions,
            durability: self.level.or(default_level).map_or(v1::Durability::Unspecified, v1::Durability::from).into(),
        }
    }
}

pub(crate) fn check_key(key: &[u8]) -> Result<(), RpcError> {
    if key.is_empty() {
        return Err(RpcError::invalid_argument("a key of 0 bytes was given; give 1 byte to 16 KiB"));
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(RpcError::limit_exceeded("a key", key.len(), KEY_BYTES_MAX, "bytes"));
    }
    Ok(())
}

fn random_request_id() -> RequestId {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    RequestId::new(bytes)
}

/// A commit that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitOutcome {
    /// Where it stands in the log; the version of the values that it wrote.
    pub position: Position,
    /// An earlier attempt with the same request id had made it already.
    pub already_done: bool,
    /// Who acknowledged it.
    pub node_id: NodeId,
    /// The name of that node; empty from a node that does not say it.
    pub node_name: String,
    /// Its request id.
    pub request_id: RequestId,
    /// A later read that carries it sees the commit; none from a node that sends none.
    pub token: Option<SessionToken>,
}

impl CommitOutcome {
    pub(crate) fn from_wire(response: v1::CommitResponse, request_id: RequestId) -> Self {
        Self {
            position: response.position.map(Position::from).unwrap_or_default(),
            already_done: response.already_done,
            node_id: response.node_id.parse().unwrap_or_default(),
            node_name: response.node_name,
            request_id,
            token: token_of(&response.token),
        }
    }
}

/// What a commit that did not succeed came to. A refusal counts only when no other attempt of the same commit may
/// have taken effect, or may still: otherwise the outcome is unknown.
pub(crate) fn commit_error(failure: Failure, request_id: RequestId) -> ClientError {
    let Failure { rejected, loose, why, position } = failure;
    if loose {
        return ClientError::Unknown { request_id, position, why };
    }
    match rejected {
        None => ClientError::Unavailable { why },
        Some(error) if error.reason == Reason::PreconditionFailed => ClientError::Aborted {
            key: error.get("key").unwrap_or_default().to_owned(),
            precondition: error.get("required").unwrap_or_default().to_owned(),
            found: error.get("found").unwrap_or_default().into(),
            message: error.message,
        },
        Some(error) => ClientError::refused(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(commit: &Commit) -> String {
        match commit.check() {
            Err(ClientError::Invalid { message }) => message,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn two_commits_never_share_a_request_id() {
        assert_ne!(Commit::new().id(), Commit::new().id());
    }

    #[test]
    fn a_level_is_the_commits_own_the_clients_or_the_clusters() {
        let level = |commit: Commit, default| commit.put("k", "v").into_wire(default).durability();
        let (on, apply) = (DurabilityLevel::On, DurabilityLevel::RemoteApply);
        assert_eq!(level(Commit::new(), None), v1::Durability::Unspecified);
        assert_eq!(level(Commit::new(), Some(apply)), v1::Durability::RemoteApply);
        assert_eq!(level(Commit::new().level(on), Some(apply)), v1::Durability::On);
    }

    #[test]
    fn limits_are_checked_before_anything_is_sent() {
        assert_eq!(Commit::new().put("k", "v").check(), Ok(()));
        assert!(refusal(&Commit::new()).contains("at least one"));
        assert!(refusal(&Commit::new().put("", "v")).contains("0 bytes"));
        assert!(refusal(&Commit::new().delete(vec![b'k'; KEY_BYTES_MAX + 1])).contains("16384"));
        assert!(refusal(&Commit::new().put("k", vec![0; VALUE_BYTES_MAX + 1])).contains("4194304"));
        assert!(refusal(&Commit::new().put("k", "v").if_absent("")).contains("0 bytes"));
        let many = (0..4).fold(Commit::new(), |commit, i| commit.put(format!("k{i}"), vec![0; VALUE_BYTES_MAX]));
        assert!(refusal(&many).contains("12582912"));
        let many = (0..=COMMIT_OPERATIONS_MAX).fold(Commit::new(), |commit, _| commit.delete("k"));
        assert!(refusal(&many).contains("100001"));
    }

    #[test]
    fn a_refusal_after_a_loose_attempt_is_unknown() {
        let rejected = Some(RpcError::precondition_failed(b"k", "no value", "a value"));
        let failure = |loose| Failure { rejected: rejected.clone(), loose, why: "it".to_owned(), position: None };
        let id = Commit::new().id();
        assert!(matches!(commit_error(failure(false), id), ClientError::Aborted { .. }));
        assert!(matches!(commit_error(failure(true), id), ClientError::Unknown { .. }));
    }
}
