//! What the nodes say about the cluster, and what follows from it.

use std::collections::BTreeMap;
use std::fmt;

use understudy_rpc::v1::{MemberStatus, StatusResponse};
use understudy_types::{Lsn, TimelineId};

/// The answers of the nodes that answered, by name.
#[derive(Debug, Clone, Default)]
pub struct View {
    answers: BTreeMap<String, StatusResponse>,
}

impl View {
    /// Of these answers.
    pub fn new(answers: BTreeMap<String, StatusResponse>) -> Self {
        Self { answers }
    }

    /// What a node said.
    pub fn answer(&self, name: &str) -> Option<&StatusResponse> {
        self.answers.get(name)
    }

    /// Everything that was said.
    pub fn answers(&self) -> impl Iterator<Item = (&String, &StatusResponse)> {
        self.answers.iter()
    }

    /// The answer that knows the latest timeline and state.
    pub fn latest(&self) -> Option<&StatusResponse> {
        self.answers.values().max_by_key(|answer| (answer.timeline, answer.generation))
    }

    /// The primary's own answer: that of the node that says that it is the primary, and of the latest timeline.
    pub fn primary(&self) -> Option<&StatusResponse> {
        let latest = self.latest()?;
        let own = |answer: &&StatusResponse| answer.primary == latest.primary && answer.timeline == latest.timeline;
        self.answer(&latest.primary).filter(own)
    }

    /// The name of the primary when it takes writes.
    pub fn writable_primary(&self) -> Option<String> {
        let primary = self.primary()?;
        primary.writable.then(|| primary.primary.clone())
    }

    /// The present timeline; zero when nobody knows one.
    pub fn timeline(&self) -> TimelineId {
        TimelineId::new(self.latest().map_or(0, |answer| answer.timeline))
    }

    /// The primary's name when the cluster of these nodes is settled: all answer and agree, every standby
    /// streams by its own word and the primary's, `listed` of them (none: all) are in the sync list, the primary takes
    /// writes, and the Raft leader is
    /// another node.
    pub fn settled(&self, names: &[String], listed: Option<usize>) -> Option<String> {
        let primary = self.primary()?;
        let agree = |name: &String| {
            self.answer(name).is_some_and(|answer| {
                answer.generation == primary.generation
                    && answer.timeline == primary.timeline
                    && answer.raft.as_ref().map(|raft| &raft.leader) == primary.raft.as_ref().map(|raft| &raft.leader)
            })
        };
        let leader = &primary.raft.as_ref()?.leader;
        let off_the_primary = !leader.is_empty() && *leader != primary.primary;
        let standbys: Vec<&String> = names.iter().filter(|name| **name != primary.primary).collect();
        let on_the_list = standbys.iter().filter(|name| is_listed(primary, name)).count();
        let settled = primary.writable
            && primary.election.is_none()
            && off_the_primary
            && names.iter().all(agree)
            && standbys.iter().all(|name| self.both_say_streaming(primary, name))
            && on_the_list >= listed.unwrap_or(standbys.len());
        settled.then(|| primary.primary.clone())
    }

    /// What the primary says alone may be of before the node was restarted.
    fn both_say_streaming(&self, primary: &StatusResponse, name: &str) -> bool {
        streams(primary, name) && self.answer(name).is_some_and(|answer| streams(answer, name))
    }

    /// Whether the primary says that this node streams and is in the sync list, and the node says the same of the stream and
    /// the timeline. While Raft has no leader, the list still has one that was killed.
    pub fn has_rejoined(&self, name: &str) -> bool {
        let Some(primary) = self.primary() else { return false };
        let same_timeline = self.answer(name).is_some_and(|answer| answer.timeline == primary.timeline);
        primary.writable && same_timeline && self.both_say_streaming(primary, name) && is_listed(primary, name)
    }

    /// Why nobody can be promoted, as the node that decides says it; none while nothing is known to be missing.
    pub fn blocked(&self) -> Option<String> {
        let elections = self.answers.values().filter_map(|answer| answer.election.as_ref());
        elections.map(|election| election.blocked.clone()).find(|blocked| !blocked.is_empty())
    }

    /// How far each node that answered has applied, by its own word.
    pub fn applied(&self) -> BTreeMap<String, Lsn> {
        let own = |(name, answer): (&String, &StatusResponse)| {
            Some((name.clone(), Lsn::new(member(answer, name)?.apply_lsn)))
        };
        self.answers.iter().filter_map(own).collect()
    }
}

/// A node in an answer.
pub fn member<'a>(answer: &'a StatusResponse, name: &str) -> Option<&'a MemberStatus> {
    answer.members.iter().find(|member| member.name == name)
}

fn streams(primary: &StatusResponse, name: &str) -> bool {
    member(primary, name).is_some_and(|member| member.state == "streaming" && !member.damaged)
}

fn is_listed(primary: &StatusResponse, name: &str) -> bool {
    primary.sync.as_ref().is_some_and(|sync| sync.members.iter().any(|listed| listed == name))
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.answers.is_empty() {
            return writeln!(f, "nobody answers");
        }
        for (name, answer) in &self.answers {
            let raft = answer.raft.as_ref().map_or("", |raft| raft.leader.as_str());
            let sync = answer
                .sync
                .as_ref()
                .map_or_else(String::new, |sync| format!("{} of {}", sync.acks, sync.members.join(" ")));
            let election = answer.election.as_ref().map_or_else(String::new, |election| {
                format!(", election of timeline {} ({}) {}", election.timeline, election.reason, election.blocked)
            });
            writeln!(
                f,
                "{name}: timeline {}, generation {}, primary \"{}\", raft leader \"{raft}\", sync {sync}{election}, writable {} {}",
                answer.timeline, answer.generation, answer.primary, answer.writable, answer.not_writable_reason
            )?;
            for member in &answer.members {
                let lsns = [member.write_lsn, member.flush_lsn, member.apply_lsn].map(|lsn| Lsn::new(lsn).to_string());
                let (name, role, state, problem) = (&member.name, &member.role, &member.state, &member.problem);
                writeln!(f, "    {name}: {role} {state}, timeline {}, {} {problem}", member.timeline, lsns.join(" "))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use understudy_rpc::v1::{RaftStatus, SyncStatus};

    use super::*;

    fn answer() -> StatusResponse {
        let member = |name: &str, state: &str| MemberStatus {
            name: name.to_owned(),
            state: state.to_owned(),
            ..MemberStatus::default()
        };
        StatusResponse {
            generation: 5,
            timeline: 2,
            primary: "a".to_owned(),
            writable: true,
            sync: Some(SyncStatus { members: vec!["b".to_owned(), "c".to_owned()], acks: 1, ..SyncStatus::default() }),
            raft: Some(RaftStatus { leader: "b".to_owned(), ..RaftStatus::default() }),
            members: vec![member("a", "running"), member("b", "streaming"), member("c", "streaming")],
            ..StatusResponse::default()
        }
    }

    fn settled(change: impl Fn(&mut StatusResponse)) -> Option<String> {
        let names = ["a", "b", "c"].map(str::to_owned);
        let mut answer = answer();
        change(&mut answer);
        View::new(names.iter().map(|name| (name.clone(), answer.clone())).collect()).settled(&names, None)
    }

    #[test]
    fn settled_is_when_all_stream_are_listed_and_raft_leads_elsewhere() {
        assert_eq!(settled(|_| {}).as_deref(), Some("a"));
        assert_eq!(settled(|answer| answer.writable = false), None);
        assert_eq!(settled(|answer| answer.members[2].state = "catchup".to_owned()), None);
        assert_eq!(settled(|answer| answer.sync = Some(SyncStatus::default())), None);
        let names = ["a", "b", "c"].map(str::to_owned);
        let mut alone = answer();
        alone.sync = Some(SyncStatus { members: vec!["b".to_owned()], acks: 1, ..SyncStatus::default() });
        let view = View::new(names.iter().map(|name| (name.clone(), alone.clone())).collect());
        assert_eq!(view.settled(&names, Some(1)).as_deref(), Some("a"));
        assert_eq!(view.settled(&names, Some(2)), None);
        assert_eq!(
            settled(|answer| answer.raft = Some(RaftStatus { leader: "a".to_owned(), ..RaftStatus::default() })),
            None
        );
        assert_eq!(settled(|answer| answer.election = Some(understudy_rpc::v1::ElectionStatus::default())), None);
    }

    #[test]
    fn a_node_that_is_behind_or_silent_settles_nothing() {
        let names = ["a", "b", "c"].map(str::to_owned);
        let mut answers: BTreeMap<String, StatusResponse> = names.iter().map(|name| (name.clone(), answer())).collect();
        answers.get_mut("c").expect("there").generation = 4;
        assert_eq!(View::new(answers.clone()).settled(&names, None), None);
        let mut restarted = answer();
        restarted.members[2].state = "startup".to_owned();
        answers.insert("c".to_owned(), restarted);
        assert_eq!(View::new(answers.clone()).settled(&names, None), None, "the others do not know yet");
        answers.remove("c");
        assert_eq!(View::new(answers.clone()).settled(&names, None), None);
        assert!(View::new(answers.clone()).has_rejoined("b"));
        // It has just been restarted; the primary still goes by what it said before.
        answers.get_mut("b").expect("there").members[1].state = "startup".to_owned();
        assert!(!View::new(answers).has_rejoined("b"));
    }
}
