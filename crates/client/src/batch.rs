//! Many commits in one call: each takes effect once or not at all, and has a result of its own.
//!
//! What a node did not take, or does not know the outcome of, is sent again with the same request ids, in a smaller
//! batch, until the deadline; what it took or refused for good is not. So a batch that is cut short by a failover ends
//! as its commits would have ended one by one.

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep};
use tonic::Status;
use tonic::transport::Channel;
use understudy_rpc::error::RpcError;
use understudy_rpc::v1;
use understudy_rpc::v1::kv_client::KvClient;
use understudy_types::limits::{BATCH_COMMITS_MAX, COMMIT_BYTES_MAX};
use understudy_types::{Position, RequestId};

use crate::classify::{Next, classify};
use crate::client::{Client, within};
use crate::commit::{Commit, CommitOutcome, commit_error};
use crate::error::ClientError;
use crate::route::Failure;

/// Before what was not settled is sent again, growing by half each time.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);

type Outcome = Result<CommitOutcome, ClientError>;

/// What a result comes to.
enum Settled {
    Done(usize, Outcome),
    /// It has to be sent again.
    Again(Open),
}

/// A commit without a result yet.
struct Open {
    index: usize,
    request_id: RequestId,
    request: v1::CommitRequest,
    /// An attempt may have taken effect, or may still.
    loose: bool,
    position: Option<Position>,
    why: String,
}

impl Open {
    fn give_up(self, rejected: Option<RpcError>) -> (usize, Outcome) {
        let Self { index, request_id, loose, position, why, .. } = self;
        (index, Err(commit_error(Failure { rejected, loose, why, position }, request_id)))
    }

    /// Takes over one result.
    fn settle(mut self, result: v1::CommitResult) -> Settled {
        let failure = match result.result {
            Some(v1::commit_result::Result::Committed(response)) if response.position.is_some() => {
                return Settled::Done(self.index, Ok(CommitOutcome::from_wire(response, self.request_id)));
            }
            Some(v1::commit_result::Result::Failed(failure)) => Status::from(failure),
            Some(v1::commit_result::Result::Committed(_)) | None => {
                Status::internal("the node left out what became of a commit of the batch")
            }
        };
        let failed = classify(&failure);
        self.loose |= failed.loose;
        self.position = failed.position.or(self.position);
        self.why = failed.why;
        match failed.next {
            Next::Reject(error) => {
                let (index, outcome) = self.give_up(Some(error));
                Settled::Done(index, outcome)
            }
            Next::Redirect { .. } | Next::Find | Next::Pause => Settled::Again(self),
        }
    }
}

impl Client {
    /// Makes up to 1,000 commits that are independent of one another, in one call, and tries until
    /// [`crate::Options::deadline`]; a deadline of a commit's own counts nothing here. They share appends and flushes on
    /// the primary. Each has its own result, in their order: see [`Client::commit`].
    ///
    /// ```no_run
    /// # use understudy_client::{Client, ClientError, Commit};
    /// # async fn example(client: Client) -> Result<(), ClientError> {
    /// let results = client.commit_batch(vec![Commit::new().put("a", "1"), Commit::new().put("b", "2")]).await?;
    /// assert_eq!(results.len(), 2);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ClientError::Invalid`] for a batch beyond its bounds: nothing was sent.
    pub async fn commit_batch(&self, commits: Vec<Commit>) -> Result<Vec<Outcome>, ClientError> {
        check(&commits).map_err(|error| ClientError::Invalid { message: error.message })?;
        let deadline = Instant::now() + self.options().deadline;
        let mut outcomes: Vec<Option<Outcome>> = commits.iter().map(|_| None).collect();
        let mut open = Vec::with_capacity(commits.len());
        for (index, commit) in commits.into_iter().enumerate() {
            if let Err(error) = commit.check() {
                outcomes[index] = Some(Err(error));
                continue;
            }
            let request_id = commit.id();
            let request = commit.into_wire(self.options().durability);
            open.push(Open { index, request_id, request, loose: false, position: None, why: String::new() });
        }
        let mut pause = PAUSE_MIN;
        while !open.is_empty() {
            let (settled, again) = self.attempt(open, deadline).await;
            for (index, outcome) in settled {
                outcomes[index] = Some(outcome);
            }
            open = again;
            if !open.is_empty() && Instant::now() + pause >= deadline {
                for (index, outcome) in open.drain(..).map(|commit| commit.give_up(None)) {
                    outcomes[index] = Some(outcome);
                }
            } else if !open.is_empty() {
                sleep(pause).await;
                pause = (pause * 3 / 2).min(PAUSE_MAX);
            }
        }
        Ok(outcomes.into_iter().flatten().collect())
    }

    /// Sends them once to whoever takes them; returns what is settled, and what is to be sent again.
    async fn attempt(&self, open: Vec<Open>, deadline: Instant) -> (Vec<(usize, Outcome)>, Vec<Open>) {
        let request = v1::CommitBatchRequest { commits: open.iter().map(|commit| commit.request.clone()).collect() };
        let left = deadline.saturating_duration_since(Instant::now());
        let mut settled = Vec::new();
        let mut again = Vec::new();
        match self.at_primary(left, move |kv, left| batch_at(kv, request.clone(), left)).await {
            Ok(response) => {
                let mut results = response.results.into_iter();
                for commit in open {
                    match commit.settle(results.next().unwrap_or_default()) {
                        Settled::Done(index, outcome) => settled.push((index, outcome)),
                        Settled::Again(commit) => again.push(commit),
                    }
                }
            }
            Err(failure) => {
                for mut commit in open {
                    commit.loose |= failure.loose;
                    commit.why.clone_from(&failure.why);
                    settled.push(commit.give_up(failure.rejected.clone()));
                }
            }
        }
        (settled, again)
    }
}

fn check(commits: &[Commit]) -> Result<(), RpcError> {
    if commits.is_empty() {
        return Err(RpcError::invalid_argument("a batch without commits was asked for; give at least one"));
    }
    if commits.len() > BATCH_COMMITS_MAX {
        return Err(RpcError::limit_exceeded("the batch", commits.len(), BATCH_COMMITS_MAX, "commits"));
    }
    let bytes: usize = commits.iter().map(Commit::bytes).sum();
    if bytes > COMMIT_BYTES_MAX {
        return Err(RpcError::limit_exceeded("the batch", bytes, COMMIT_BYTES_MAX, "bytes of keys and values"));
    }
    Ok(())
}

fn batch_at(
    mut kv: KvClient<Channel>,
    request: v1::CommitBatchRequest,
    left: Duration,
) -> BoxFuture<'static, Result<v1::CommitBatchResponse, Status>> {
    async move { Ok(kv.commit_batch(within(request, left)).await?.into_inner()) }.boxed()
}

#[cfg(test)]
mod tests {
    use understudy_rpc::error::UnknownWhy;

    use super::*;

    fn open() -> Open {
        let commit = Commit::new().put("k", "v");
        let (request_id, request) = (commit.id(), commit.into_wire(None));
        Open { index: 3, request_id, request, loose: false, position: None, why: String::new() }
    }

    fn failed(error: RpcError) -> v1::CommitResult {
        v1::CommitResult { result: Some(v1::commit_result::Result::Failed(error.into())) }
    }

    #[test]
    fn each_result_is_settled_by_its_own_reason() {
        let refused = failed(RpcError::precondition_failed(b"k", "no value", "version 0/000000A0@1"));
        let Settled::Done(3, Err(ClientError::Aborted { found, .. })) = open().settle(refused.clone()) else {
            panic!("a failed precondition is final")
        };
        assert_eq!(&*found, "version 0/000000A0@1");
        let unknown = failed(RpcError::commit_outcome_unknown(None, UnknownWhy::StepDown));
        let Settled::Again(loose) = open().settle(unknown) else { panic!("an unknown outcome is asked again") };
        // Refused the second time, by what the first attempt may have written itself.
        assert!(matches!(loose.settle(refused), Settled::Done(3, Err(ClientError::Unknown { .. }))));
        let Settled::Again(full) = open().settle(failed(RpcError::queue_full(1))) else {
            panic!("a full queue is retried")
        };
        assert!(matches!(full.give_up(None), (3, Err(ClientError::Unavailable { .. }))));
        // A result that is missing says nothing.
        let Settled::Again(missing) = open().settle(v1::CommitResult::default()) else {
            panic!("nothing is known of it")
        };
        assert!(matches!(missing.give_up(None), (3, Err(ClientError::Unknown { .. }))));
    }

    #[test]
    fn a_batch_is_bounded_as_a_whole() {
        let small = || Commit::new().put("k", "v");
        assert!(check(&[]).is_err());
        assert!(check(&(0..BATCH_COMMITS_MAX).map(|_| small()).collect::<Vec<_>>()).is_ok());
        assert!(check(&(0..=BATCH_COMMITS_MAX).map(|_| small()).collect::<Vec<_>>()).is_err());
        let large = || Commit::new().put("k", vec![0; 4 << 20]);
        assert!(check(&[large(), large()]).is_ok() && check(&[large(), large(), large()]).is_err());
    }
}
