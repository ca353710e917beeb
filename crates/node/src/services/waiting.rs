//! Who waits for whom (SYNC-9): the engine says which commits wait and for what, the sync list says for whom.

use understudy_core::sync::WaitsFor;
use understudy_engine::{CancelWaiting, WaitStage, WaitingCommit};
use understudy_rpc::error::RpcError;
use understudy_rpc::{convert, v1};
use understudy_types::{DurabilityLevel, Lsn};

use super::cluster::Primary;

/// At most `limit` of the oldest.
pub(super) fn waiting(primary: &Primary, limit: usize) -> v1::WaitingResponse {
    let waiting = primary.engine.waiting();
    let oldest_ms = millis(waiting.oldest());
    let commits: Vec<WaitingCommit> = waiting.commits.into_iter().take(limit).collect();
    let waits_for = primary.sync.waits_for(commits.iter().map(asks_for));
    let commits = commits.iter().zip(waits_for).map(|(commit, waits)| v1::WaitingCommit {
        timeline: commit.position.timeline.get(),
        lsn: commit.position.lsn.get(),
        level: commit.level.to_string(),
        request_id: commit.request_id.map_or_else(String::new, |id| id.to_string()),
        waited_ms: millis(commit.waited),
        nodes: match commit.stage {
            WaitStage::Confirmation => Vec::new(),
            WaitStage::Flush | WaitStage::RemoteWrite | WaitStage::Visible | WaitStage::RemoteApply => {
                waits.nodes.iter().map(|node| primary.name_of(*node)).collect()
            }
        },
        why: why(primary, commit.stage, &waits),
    });
    v1::WaitingResponse {
        total: waiting.total,
        oldest_ms,
        commits: commits.collect(),
        answered_by: primary.name_of(primary.view.me),
    }
}

/// Whose waits a request means to end.
pub(super) fn which(request: &v1::CancelWaitingRequest) -> Result<CancelWaiting, RpcError> {
    use v1::cancel_waiting_request::Which;
    let neither = "nothing says whose wait is to end; give a request id, or all";
    match &request.which {
        Some(Which::RequestId(bytes)) => match convert::request_id(bytes)? {
            Some(id) => Ok(CancelWaiting::Request(id)),
            None => Err(RpcError::invalid_argument(neither)),
        },
        Some(Which::All(true)) => Ok(CancelWaiting::All),
        Some(Which::All(false)) | None => Err(RpcError::invalid_argument(neither)),
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The level whose rule stands between this commit and its answer, which need not be the commit's: a repeated request
/// waits for the safe LSN whatever its level.
fn asks_for(commit: &WaitingCommit) -> (DurabilityLevel, Lsn) {
    let level = match commit.stage {
        WaitStage::Flush | WaitStage::Confirmation => DurabilityLevel::Local,
        WaitStage::RemoteWrite => DurabilityLevel::RemoteWrite,
        WaitStage::Visible => DurabilityLevel::On,
        WaitStage::RemoteApply => DurabilityLevel::RemoteApply,
    };
    (level, commit.position.lsn)
}

fn why(primary: &Primary, stage: WaitStage, waits: &WaitsFor) -> String {
    let verb = match stage {
        WaitStage::Confirmation => {
            return "a majority of the voters does not confirm that this node is still the primary".to_owned();
        }
        WaitStage::Flush | WaitStage::Visible => "flush",
        WaitStage::RemoteWrite => "write",
        WaitStage::RemoteApply => "apply",
    };
    if let Some(few) = waits.too_few {
        let names = &primary.view.cluster.settings.synchronous_standby_names;
        return format!(
            "nobody can acknowledge: the sync list asks for {} standbys, and {} that it names are connected \
             (synchronous_standby_names is \"{names}\")",
            few.acks, few.connected
        );
    }
    let mut parts = Vec::new();
    if waits.own_flush {
        parts.push(format!("{} to flush it", primary.name_of(primary.view.me)));
    }
    if !waits.nodes.is_empty() {
        let nodes: Vec<String> = waits.nodes.iter().map(|node| primary.name_of(*node)).collect();
        parts.push(format!("{} to {verb} it", nodes.join(", ")));
    }
    if parts.is_empty() { "nobody: its answer is on the way".to_owned() } else { parts.join("; ") }
}

#[cfg(test)]
mod tests {
    use understudy_types::RequestId;

    use super::*;

    #[test]
    fn a_cancel_says_whose_wait_it_means() {
        use v1::cancel_waiting_request::Which;
        let of = |it| which(&v1::CancelWaitingRequest { which: it });
        assert_eq!(of(Some(Which::All(true))), Ok(CancelWaiting::All));
        let id = RequestId::new([7; 16]);
        assert_eq!(of(Some(Which::RequestId(vec![7; 16].into()))), Ok(CancelWaiting::Request(id)));
        for nothing in [None, Some(Which::All(false)), Some(Which::RequestId(Vec::new().into()))] {
            assert!(of(nothing).is_err_and(|error| error.message.contains("or all")));
        }
        assert!(of(Some(Which::RequestId(vec![7; 3].into()))).is_err());
    }
}
