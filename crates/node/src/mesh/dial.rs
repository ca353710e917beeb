//! Our beat stream to one other node.

use std::io;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use understudy_rpc::v1::mesh_client::MeshClient;
use understudy_rpc::v1::{Beat, BeatReply};
use understudy_types::{NodeId, TimelineId};

use super::{Answer, Link, MeshEvent, MeshHandles, Outgoing};
use crate::convert;
use crate::freshness::boot_ms;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// A refused or failed attempt is made again after this, so that a node that is back is seen at once.
const RETRY_DELAY: Duration = Duration::from_millis(50);
/// Beats that wait for the connection. More would be stale by the time they are sent.
const BEATS_QUEUED_MAX: usize = 4;

/// Keeps a beat stream to `peer` at `address` until `stop`.
pub fn spawn_dialer(handles: MeshHandles, peer: NodeId, address: String, stop: CancellationToken) {
    tokio::spawn(async move {
        let mut dialer = Dialer { handles, peer, address, last: None, answered: false };
        tokio::select! {
            () = stop.cancelled() => {}
            () = dialer.run() => {}
        }
    });
}

struct Dialer {
    handles: MeshHandles,
    peer: NodeId,
    address: String,
    last: Option<Link>,
    /// A beat was answered on the present stream.
    answered: bool,
}

impl Dialer {
    async fn run(&mut self) {
        loop {
            self.answered = false;
            let link = match self.connect().await {
                Ok(channel) => match self.carry(channel).await {
                    Ok(()) => Link::Down { why: "the stream ended".to_owned() },
                    Err(status) => Link::Down { why: status.message().to_owned() },
                },
                Err(link) => link,
            };
            if !self.tell(link).await {
                return;
            }
            // A stream that just broke is dialled again at once: whether that is refused is what the planner
            // wants to know of a primary. A node that takes connections and answers no beat has its reasons.
            if !self.answered {
                tokio::time::sleep(RETRY_DELAY).await;
            }
        }
    }

    /// False when the agent is gone.
    async fn tell(&mut self, link: Link) -> bool {
        if self.last.as_ref() == Some(&link) {
            return true;
        }
        self.last = Some(link.clone());
        self.handles.events.send(MeshEvent::Link { to: self.peer, link }).await.is_ok()
    }

    async fn connect(&self) -> Result<Channel, Link> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address))
            .map_err(|error| Link::Down { why: format!("\"{}\" is not an address: {error}", self.address) })?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(1))
            .keep_alive_timeout(Duration::from_secs(3))
            .keep_alive_while_idle(true);
        endpoint.connect().await.map_err(|error| {
            if is_refused(&error) {
                Link::Refused
            } else {
                Link::Down { why: format!("cannot connect to {}: {error}", self.address) }
            }
        })
    }

    /// Sends and receives until the stream breaks.
    async fn carry(&mut self, channel: Channel) -> Result<(), tonic::Status> {
        let (beats, queued) = mpsc::channel(BEATS_QUEUED_MAX);
        let mut outgoing = self.handles.outgoing.clone();
        outgoing.mark_changed();
        let mut sender = Sender { reported: 0, handles: self.handles.clone(), peer: self.peer, sent: Vec::new() };
        let mut client = MeshClient::new(channel);
        // The first beat goes with the request: the other side answers once it has seen it.
        sender.send_changed(&mut outgoing, &beats).await?;
        let mut replies = client.beats(ReceiverStream::new(queued)).await?.into_inner();
        loop {
            tokio::select! {
                changed = outgoing.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    sender.send_changed(&mut outgoing, &beats).await?;
                }
                reply = replies.message() => match reply? {
                    Some(reply) => {
                        self.answered = true;
                        // Up is who answers: one that refuses our beats says so instead.
                        if !self.tell(Link::Up).await {
                            return Ok(());
                        }
                        sender.receive(&reply);
                    }
                    None => return Ok(()),
                },
            }
        }
    }
}

/// A beat that is not answered yet.
struct Sent {
    round: u64,
    /// What it asked to be confirmed for.
    timeline: TimelineId,
    /// When it was made, by the boot-time clock.
    at_ms: u64,
}

/// What one stream has sent.
struct Sender {
    handles: MeshHandles,
    peer: NodeId,
    /// The newest report that went out.
    reported: u64,
    /// Beats that are not answered yet.
    sent: Vec<Sent>,
}

impl Sender {
    /// Rounds whose answers are still awaited. An older one cannot be the newest that a majority confirms.
    const UNANSWERED_MAX: usize = 64;

    async fn send_changed(
        &mut self,
        outgoing: &mut watch::Receiver<Outgoing>,
        beats: &mpsc::Sender<Beat>,
    ) -> Result<(), tonic::Status> {
        let at_ms = boot_ms();
        let now = outgoing.borrow_and_update().clone();
        let system_id = self.handles.standing.borrow().system_id;
        let with_report = now.report_seq > self.reported;
        let beat = Beat {
            system_id: system_id.get(),
            node_id: self.handles.me.node_id.get(),
            incarnation: self.handles.me.incarnation.get(),
            target_node_id: self.peer.get(),
            round: now.round,
            voters_version: now.voters_version,
            confirm_timeline: now.confirm_timeline.get(),
            lease_ms: now.lease_ms,
            report: now.report.as_deref().filter(|_| with_report).map(convert::report_to_wire),
            fetch_order: now.fetch_order.as_ref().map(convert::fetch_order_to_wire),
        };
        self.reported = now.report_seq;
        remember(
            &mut self.sent,
            Sent { round: now.round, timeline: now.confirm_timeline, at_ms },
            Self::UNANSWERED_MAX,
        );
        beats.send(beat).await.map_err(|_| tonic::Status::unavailable("the stream broke"))
    }

    fn receive(&mut self, reply: &BeatReply) {
        // Of several with one number the oldest: that is careful.
        let Some(at) = self.sent.iter().position(|sent| sent.round == reply.round) else { return };
        let Sent { round, timeline, at_ms } = self.sent[at];
        self.sent.drain(..=at);
        if let Some(claim) = &reply.freshness {
            self.handles.heard.hear(claim, at_ms);
        }
        // A full queue means that the confirmer has newer answers to work on: one that is dropped costs a round.
        if self
            .handles
            .answers
            .try_send(Answer {
                from: self.peer,
                round,
                timeline,
                confirmed: reply.confirmed,
                sent_at_ms: at_ms,
                lease_ms: reply.lease_ms,
            })
            .is_err()
        {
            tracing::debug!(peer = %self.peer, round, "an answer was dropped");
        }
    }
}

/// Adds a beat to those that are not answered yet, at most `max`. A round may go out more than once, and an answer counts from
/// the first time: if that is forgotten, so is the whole round (INV-LINEAR: a lease would be counted from too late).
fn remember(sent: &mut Vec<Sent>, beat: Sent, max: usize) {
    if sent.len() < max {
        sent.push(beat);
        return;
    }
    let forgotten = sent[0].round;
    sent.retain(|beat| beat.round != forgotten);
    if beat.round != forgotten {
        sent.push(beat);
    }
}

/// Whether somebody said that nobody listens: at once, as opposed to a time-out.
fn is_refused(error: &tonic::transport::Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return matches!(io.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset);
        }
        source = cause.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_whose_first_beat_is_forgotten_is_forgotten_whole() {
        // INV-LINEAR: its answer would be taken for one to the later beat.
        let mut sent = Vec::new();
        let rounds = |sent: &[Sent]| sent.iter().map(|beat| (beat.round, beat.at_ms)).collect::<Vec<_>>();
        for (round, at_ms) in [(1, 0), (1, 99), (2, 100), (3, 120)] {
            remember(&mut sent, Sent { round, timeline: TimelineId::FIRST, at_ms }, 3);
        }
        assert_eq!(rounds(&sent), [(2, 100), (3, 120)]);
        for at_ms in [130, 140] {
            remember(&mut sent, Sent { round: 3, timeline: TimelineId::FIRST, at_ms }, 3);
        }
        assert_eq!(rounds(&sent), [(3, 120), (3, 130), (3, 140)], "the first one of a round is still the first");
        remember(&mut sent, Sent { round: 3, timeline: TimelineId::FIRST, at_ms: 150 }, 3);
        assert_eq!(rounds(&sent), [], "none of it counts, not even the newest");
    }
}
