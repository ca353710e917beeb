//! The other side: beats that come in, and who stands here.

use std::pin::Pin;
use std::time::{Duration, Instant};

use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use understudy_core::confirm::confirms;
use understudy_rpc::v1::mesh_server::Mesh;
use understudy_rpc::v1::{Beat, BeatReply, IdentifyRequest, IdentifyResponse};
use understudy_types::{NodeId, TimelineId};

use super::{MeshEvent, MeshHandles, Standing};
use crate::convert;
use crate::freshness::{Confirmed, boot_ms};

/// Replies that wait for a connection.
const REPLIES_QUEUED_MAX: usize = 16;
/// How long a peer may be silent before it has said who it is.
const FIRST_BEAT_TIMEOUT: Duration = Duration::from_secs(10);

/// What [`Mesh::identify`] answers.
pub trait Greeting: Send + Sync + 'static {
    /// As things stand now.
    fn identify(&self) -> IdentifyResponse;
}

/// The `Mesh` service.
pub struct MeshService<G> {
    handles: MeshHandles,
    greeting: G,
    stop: CancellationToken,
}

impl<G> MeshService<G> {
    /// Serves until `stop`.
    pub fn new(handles: MeshHandles, greeting: G, stop: CancellationToken) -> Self {
        Self { handles, greeting, stop }
    }
}

fn check(standing: Standing, (me, name): (NodeId, &str), beat: &Beat) -> Result<(), Status> {
    if beat.target_node_id != me.get() {
        return Err(Status::failed_precondition(format!(
            "the beat is for node {:016x}, but node {me} stands at this address: the other one's data directory is gone or \
             moved; if it is gone, run: understudy members replace {name}",
            beat.target_node_id
        )));
    }
    let system_id = standing.system_id.get();
    if beat.system_id != 0 && system_id != 0 && beat.system_id != system_id {
        return Err(Status::failed_precondition(format!(
            "the beat is of cluster {:016x}, but this node belongs to cluster {system_id:016x}",
            beat.system_id
        )));
    }
    Ok(())
}

/// The answer to a beat: whether this node would still confirm its sender, and for how long it binds itself.
///
/// What it says and what it is bound by are one step: a seal comes before it, and then nothing is granted, or after it, and
/// then what is reported with the seal has the grant (INV-LINEAR).
fn answer(handles: &MeshHandles, beat: &Beat) -> BeatReply {
    let asked = TimelineId::new(beat.confirm_timeline);
    let (mut confirmed, mut lease_ms) = (false, 0);
    let mut standing = Standing::default();
    handles.standing.send_if_modified(|present| {
        confirmed = confirms(present.sealed, asked) && present.voters_version == Some(beat.voters_version);
        if confirmed {
            lease_ms = present.grants.grant(beat.lease_ms, boot_ms());
        }
        standing = *present;
        // Nobody waits for grants.
        false
    });
    let freshness = handles.confirmed.borrow().as_ref().map(Confirmed::claim);
    BeatReply {
        node_id: handles.me.node_id.get(),
        incarnation: handles.me.incarnation.get(),
        round: beat.round,
        confirmed,
        sealed_timeline: standing.sealed.get(),
        freshness,
        lease_ms,
    }
}

async fn first(beats: &mut Streaming<Beat>) -> Result<Option<Beat>, Status> {
    let late = |_| Status::deadline_exceeded(format!("no beat came within {} ms", FIRST_BEAT_TIMEOUT.as_millis()));
    tokio::time::timeout(FIRST_BEAT_TIMEOUT, beats.message()).await.map_err(late)?
}

async fn serve(
    handles: MeshHandles,
    name: String,
    mut beats: Streaming<Beat>,
    replies: mpsc::Sender<Result<BeatReply, Status>>,
) {
    let mut from: Option<NodeId> = None;
    let end = loop {
        let next = match from {
            Some(_) => beats.message().await,
            None => first(&mut beats).await,
        };
        let beat = match next {
            Ok(Some(beat)) => beat,
            Ok(None) => break None,
            Err(status) => break Some(status),
        };
        let standing = *handles.standing.borrow();
        if let Err(status) = check(standing, (handles.me.node_id, &name), &beat) {
            break Some(status);
        }
        let sender = NodeId::new(beat.node_id);
        if from.is_none() {
            from = Some(sender);
            if handles.events.send(MeshEvent::Opened { from: sender }).await.is_err() {
                return;
            }
        }
        if replies.send(Ok(answer(&handles, &beat))).await.is_err() {
            break None;
        }
        let Some(report) = &beat.report else { continue };
        let fetch_order = beat.fetch_order.as_ref().map(convert::fetch_order_from_wire);
        match convert::report_from_wire(&beat, report) {
            Ok(report) => {
                let event =
                    MeshEvent::Report { from: sender, report: Box::new(report), fetch_order, at: Instant::now() };
                if handles.events.send(event).await.is_err() {
                    return;
                }
            }
            Err(error) => break Some(Status::invalid_argument(error.to_string())),
        }
    };
    if let Some(from) = from
        && handles.events.send(MeshEvent::Closed { from }).await.is_err()
    {
        return;
    }
    if let Some(status) = end
        && replies.send(Err(status)).await.is_err()
    {
        tracing::debug!("the sender of the beats is gone");
    }
}

#[tonic::async_trait]
impl<G: Greeting> Mesh for MeshService<G> {
    type BeatsStream = Pin<Box<dyn Stream<Item = Result<BeatReply, Status>> + Send>>;

    async fn beats(&self, request: Request<Streaming<Beat>>) -> Result<Response<Self::BeatsStream>, Status> {
        let (replies, queued) = mpsc::channel(REPLIES_QUEUED_MAX);
        let (handles, stop, beats) = (self.handles.clone(), self.stop.clone(), request.into_inner());
        let name = self.greeting.identify().name;
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = serve(handles, name, beats, replies) => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(queued))))
    }

    async fn identify(&self, _request: Request<IdentifyRequest>) -> Result<Response<IdentifyResponse>, Status> {
        Ok(Response::new(self.greeting.identify()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;
    use understudy_core::lease::Grants;
    use understudy_types::{Incarnation, SystemId};

    use super::super::Me;
    use super::*;

    fn handles(standing: Standing) -> MeshHandles {
        MeshHandles {
            me: Me { node_id: NodeId::new(1), incarnation: Incarnation::new(9) },
            outgoing: watch::channel(super::super::Outgoing::default()).1,
            standing: watch::Sender::new(standing),
            events: mpsc::channel(1).0,
            answers: mpsc::channel(1).0,
            confirmed: watch::channel(None).1,
            heard: std::sync::Arc::default(),
        }
    }

    fn standing(sealed: u32) -> Standing {
        let mut grants = Grants::default();
        grants.want(1_000);
        grants.promised(1_000);
        Standing { system_id: SystemId::new(5), sealed: TimelineId::new(sealed), voters_version: Some(4), grants }
    }

    fn beat(confirm_timeline: u32, voters_version: u64) -> Beat {
        Beat {
            system_id: 5,
            node_id: 2,
            target_node_id: 1,
            round: 3,
            voters_version,
            confirm_timeline,
            ..Beat::default()
        }
    }

    #[test]
    fn a_voter_that_sealed_a_newer_timeline_does_not_confirm() {
        for (sealed, asked, expected) in [(0, 2, true), (2, 2, true), (3, 2, false), (2, 0, false)] {
            let handles = handles(standing(sealed));
            let reply = answer(&handles, &Beat { lease_ms: 700, ..beat(asked, 4) });
            // INV-LINEAR: what is not confirmed grants nothing, and what was granted binds from now on.
            assert_eq!(reply.lease_ms, if expected { 700 } else { 0 });
            let left_ms = handles.standing.borrow().grants.left_ms(boot_ms());
            assert_eq!(left_ms > 0, expected, "sealed {sealed}, asked {asked}: {left_ms} ms");
            assert_eq!(reply.confirmed, expected, "sealed {sealed}, asked {asked}");
            assert_eq!(reply.round, 3);
        }
    }

    #[test]
    fn a_voter_confirms_only_a_primary_that_goes_by_the_present_voters() {
        assert!(!answer(&handles(standing(2)), &beat(2, 3)).confirmed);
    }

    struct Nobody;

    impl Greeting for Nobody {
        fn identify(&self) -> IdentifyResponse {
            IdentifyResponse::default()
        }
    }

    #[tokio::test]
    async fn whoever_sends_no_beat_at_first_is_not_waited_for() {
        let service = MeshService::new(handles(standing(2)), Nobody, CancellationToken::new());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder()
            .add_service(understudy_rpc::v1::mesh_server::MeshServer::new(service))
            .serve_with_incoming(incoming);
        let asking = async {
            let mut client =
                understudy_rpc::v1::mesh_client::MeshClient::connect(format!("http://{address}")).await.unwrap();
            let (silent, beats) = mpsc::channel(1);
            let mut replies = client.beats(ReceiverStream::new(beats)).await.unwrap().into_inner();
            let status = replies.message().await.expect_err("no reply");
            drop(silent);
            status
        };
        let status = tokio::select! {
            served = server => panic!("{served:?}"),
            status = tokio::time::timeout(FIRST_BEAT_TIMEOUT * 2, asking) => status.expect("the stream ended"),
        };
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{status}");
    }

    #[test]
    fn a_process_that_has_just_started_confirms_nobody() {
        // INV-LINEAR: it may have sealed, and the voters may be others than the primary's.
        let handles = handles(Standing { voters_version: None, ..standing(0) });
        let reply = answer(&handles, &Beat { lease_ms: 700, ..beat(2, 0) });
        assert_eq!((reply.confirmed, reply.lease_ms), (false, 0));
    }

    #[test]
    fn a_beat_for_another_node_or_cluster_is_refused() {
        let standing = standing(2);
        let me = (NodeId::new(1), "c");
        assert!(check(standing, me, &beat(2, 4)).is_ok());
        let moved = Beat { target_node_id: 7, ..beat(2, 4) };
        let refusal = check(standing, me, &moved).expect_err("refused");
        assert!(refusal.message().contains("0000000000000007"), "{refusal}");
        assert!(refusal.message().ends_with("understudy members replace c"), "what to run is said: {refusal}");
        let foreign = Beat { system_id: 6, ..beat(2, 4) };
        assert!(check(standing, me, &foreign).is_err());
        let unbound = Beat { system_id: 0, ..beat(2, 4) };
        assert!(check(standing, me, &unbound).is_ok(), "before the bootstrap nobody has a cluster");
    }
}
