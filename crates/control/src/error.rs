//! What can go wrong, by the family of operations, and what to do about it.

use std::path::PathBuf;
use std::time::Duration;

use understudy_types::NodeId;

/// The control plane cannot start, or cannot go on. The process must exit.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ControlError {
    /// The log's database does not open.
    #[error(
        "cannot open the raft log in {path}: {why}; make sure that no other server uses it and that the disk works"
    )]
    Open {
        /// The directory.
        path: PathBuf,
        /// As the database says it.
        why: String,
    },
    /// The directory was written by another version.
    #[error(
        "the raft log in {path} has format {found}, this server reads format {expected}; start the version that wrote it"
    )]
    Format {
        /// The directory.
        path: PathBuf,
        /// As it stands there.
        found: String,
        /// As this version writes it.
        expected: &'static str,
    },
    /// The directory belongs to another node.
    #[error(
        "the raft log in {path} belongs to node {found}, but this is node {expected}; give each node its own data directory"
    )]
    WrongNode {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Who was to use it.
        expected: NodeId,
    },
    /// What was read back cannot be what was written.
    #[error("the raft log in {path} is damaged: {what}; empty the data directory: the node then joins as a new one")]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A thread could not be made.
    #[error("cannot start the writer thread of the raft log: {why}")]
    Thread {
        /// As the operating system says it.
        why: String,
    },
    /// Raft stopped by itself.
    #[error("raft stopped: {why}; the process must exit and recover from its disk")]
    Stopped {
        /// As the library says it.
        why: String,
    },
    /// Raft's membership was not changed, or is not known to be.
    #[error("cannot change raft's members: {why}")]
    Membership {
        /// As the library says it.
        why: String,
    },
    /// The members of a new cluster were refused.
    #[error("cannot initialize the cluster: {why}")]
    Initialize {
        /// As the library says it.
        why: String,
    },
    /// No answer.
    #[error("no answer from raft within {after:?} when asked to {asked}; the process must exit if this repeats")]
    TimedOut {
        /// What it was asked.
        asked: &'static str,
        /// How long was waited.
        after: Duration,
    },
}

/// A command was not, or not known to be, carried out.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// Nobody leads. Nothing was proposed: retry later.
    #[error("no raft leader is known; it is elected as soon as a majority of voters is up")]
    NoLeader,
    /// Another node leads. Nothing was proposed: retry.
    #[error("the asked node does not lead raft; {}", leader_text(*.leader))]
    NotLeader {
        /// Who does, if the asked node knew.
        leader: Option<NodeId>,
    },
    /// The leader did not take it. Nothing was proposed: do not repeat it unchanged.
    #[error("raft leader {leader} refused the command: {why}")]
    Refused {
        /// Who was asked.
        leader: NodeId,
        /// As it says.
        why: String,
    },
    /// It may have been carried out, or still may be. Look at the cluster state; a command carries the generation
    /// it was planned against, so that proposing it again is safe.
    #[error("the outcome of the command is unknown: {why}")]
    Unknown {
        /// What happened.
        why: String,
    },
}

fn leader_text(leader: Option<NodeId>) -> String {
    leader.map_or_else(|| "it knows no leader".to_owned(), |id| format!("node {id} does"))
}

/// Leadership was not handed over. This node goes on leading unless somebody else was elected.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HandoverError {
    /// This node does not lead.
    #[error("this node does not lead raft, so it has no leadership to hand over")]
    NotLeader,
    /// Another handover is under way.
    #[error("leadership is being handed over already")]
    Busy,
    /// It has no vote.
    #[error("node {to} does not vote in raft, so it cannot lead")]
    NotVoter {
        /// To whom.
        to: NodeId,
    },
    /// It lacks entries of the log.
    #[error("node {to} did not catch up with the raft log within {after:?}")]
    Behind {
        /// To whom.
        to: NodeId,
        /// How long was waited.
        after: Duration,
    },
    /// A command came: it goes first.
    #[error("a command was proposed meanwhile; this node goes on leading")]
    Interrupted,
    /// It could not be asked to stand, or did not want to.
    #[error("node {to} was not willing to stand for leadership: {why}")]
    Unwilling {
        /// To whom.
        to: NodeId,
        /// As it says.
        why: String,
    },
    /// It stood, and did not win in time.
    #[error("node {to} did not become leader within {after:?}")]
    NotElected {
        /// To whom.
        to: NodeId,
        /// How long was waited.
        after: Duration,
    },
}
