//! A standby that does not keep to the protocol, message by message and byte by byte: each gets a clear error, and the
//! upstream goes on.

mod support;

use bytes::{Buf, BufMut, Bytes};
use support::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use understudy_rpc::v1;
use understudy_rpc::v1::from_standby::Message as Up;
use understudy_rpc::v1::from_upstream::Message as Down;
use understudy_rpc::v1::replication_client::ReplicationClient;
use understudy_types::{Lsn, TimelineHistory, TimelineId};

/// A standby that says what it is told to say.
struct Puppet {
    outbound: mpsc::Sender<v1::FromStandby>,
    inbound: Streaming<v1::FromUpstream>,
}

impl Puppet {
    async fn connect(server: &Server, first: Option<Up>) -> Result<Self, Status> {
        let mut client = ReplicationClient::connect(format!("http://{}", server.address)).await.expect("a connection");
        let (outbound, messages) = mpsc::channel(4);
        match first {
            Some(first) => outbound.try_send(v1::FromStandby { message: Some(first) }).expect("room"),
            None => outbound.try_send(v1::FromStandby { message: None }).expect("room"),
        }
        let answer = within("an answer", client.stream(ReceiverStream::new(messages))).await?;
        Ok(Self { outbound, inbound: answer.into_inner() })
    }

    async fn say(&self, message: Up) {
        self.outbound.send(v1::FromStandby { message: Some(message) }).await.expect("a stream that stands");
    }

    async fn next(&mut self) -> Result<Option<Down>, Status> {
        within("a message", self.inbound.message()).await.map(|message| message.and_then(|message| message.message))
    }

    async fn error(&mut self) -> Status {
        loop {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without an error"),
                Err(status) => return status,
            }
        }
    }
}

fn start(timeline: u32, start_lsn: Lsn) -> v1::Start {
    v1::Start {
        system_id: SYSTEM.get(),
        wal_format_version: FORMAT.version,
        segment_size: SIZE.get(),
        node_id: 2,
        incarnation: 1,
        timeline,
        start_lsn: start_lsn.get(),
        damage_epoch: 0,
        fetch: None,
    }
}

fn ack(timeline: u32, lsn: Lsn) -> Up {
    let lsn = lsn.get();
    let (write_lsn, flush_lsn, apply_lsn) = (lsn, lsn, 0);
    Up::Ack(v1::Ack { timeline, write_lsn, flush_lsn, apply_lsn, reply_time_us: 0, reply_requested: false })
}

async fn primary() -> (std::sync::Arc<TestNode>, std::sync::Arc<TestUpstream>, Server, TimelineHistory) {
    let node = TestNode::new(1);
    let history = node.promote(&TimelineHistory::new());
    node.put("a", "1");
    let hooks = TestUpstream::primary(&node, &history);
    let server = Server::start(&hooks).await;
    (node, hooks, server, history)
}

async fn refused(server: &Server, first: Option<Up>) -> Status {
    match Puppet::connect(server, first).await {
        Ok(_) => panic!("it was taken on"),
        Err(status) => status,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_does_not_fit_is_refused_with_what_is_so() {
    let (node, hooks, server, _) = primary().await;
    let begin = SIZE.log_start();
    let wrong_cluster = refused(&server, Some(Up::Start(v1::Start { system_id: 0xBAD, ..start(1, begin) }))).await;
    assert_eq!(wrong_cluster.code(), Code::FailedPrecondition);
    assert!(wrong_cluster.message().contains("0000000000000bad"), "{wrong_cluster}");
    assert!(wrong_cluster.message().contains(&SYSTEM.to_string()), "{wrong_cluster}");

    let version = refused(&server, Some(Up::Start(v1::Start { wal_format_version: 77, ..start(1, begin) }))).await;
    assert!(version.message().contains("version 77"), "{version}");
    let size = refused(&server, Some(Up::Start(v1::Start { segment_size: 4_096, ..start(1, begin) }))).await;
    assert!(size.message().contains("4096") && size.message().contains("1048576"), "{size}");
    let end = node.wal.end().lsn;
    let beyond = refused(&server, Some(Up::Start(start(1, end.advance(8))))).await;
    assert!(beyond.message().contains(&end.to_string()), "{beyond}");
    let unknown = refused(&server, Some(Up::Start(start(9, begin)))).await;
    assert!(unknown.message().contains("timeline 9"), "{unknown}");
    assert!(hooks.until("connections", |_| true).await.is_empty(), "nobody was taken on");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_past_the_fork_is_refused() {
    let (node, _, server, history) = primary().await;
    server.stop().await;
    let fork = node.wal.end().lsn;
    let history = node.promote(&history);
    node.put("b", "2");
    let server = Server::start(&TestUpstream::primary(&node, &history)).await;
    let status = refused(&server, Some(Up::Start(start(1, fork.advance(8))))).await;
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains(&format!("truncate its WAL to {fork}")), "{status}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_within_a_record_is_an_error_and_not_a_stream() {
    let (node, _, server, _) = primary().await;
    let within_a_record = SIZE.log_start().advance(72);
    assert!(within_a_record < node.wal.end().lsn);
    node.wal.flush().unwrap();
    let mut puppet = Puppet::connect(&server, Some(Up::Start(start(1, within_a_record)))).await.expect("on the chain");
    let status = puppet.error().await;
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(status.message().contains("where no record ends"), "{status}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_begins_with_start() {
    let (_node, _, server, _) = primary().await;
    let status = refused(&server, Some(ack(1, SIZE.log_start()))).await;
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "the standby sent Ack before Start"));
    let status = refused(&server, None).await;
    assert!(status.message().contains("a message without content"), "{status}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledgements_that_cannot_be_end_the_stream() {
    let (node, hooks, server, _) = primary().await;
    let end = node.wal.end().lsn;
    for (wrong, part) in [
        (ack(1, end.advance(800)), "only what lies below"),
        (ack(2, SIZE.log_start()), "acknowledged for timeline 2 on a stream of timeline 1"),
        (Up::Start(start(1, end)), "sent Start a second time"),
    ] {
        let mut puppet = Puppet::connect(&server, Some(Up::Start(start(1, SIZE.log_start())))).await.expect("taken on");
        assert!(matches!(puppet.next().await, Ok(Some(Down::Started(_)))));
        puppet.say(wrong).await;
        let status = puppet.error().await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(part), "{status}");
    }
    let mut puppet = Puppet::connect(&server, Some(Up::Start(start(1, SIZE.log_start())))).await.expect("taken on");
    while !matches!(puppet.next().await, Ok(Some(Down::Data(data))) if data.start_lsn + data.bytes.len() as u64 == end.get())
    {
    }
    puppet.say(ack(1, end)).await;
    puppet.say(ack(1, SIZE.log_start())).await;
    assert!(puppet.error().await.message().contains("after it had acknowledged"));
    let connections = hooks.until("the ends", |c| c.values().all(|c| !c.connected)).await;
    assert!(connections.values().all(|c| c.acked.flush <= end), "{connections:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_ended_on_purpose_ends_with_a_message() {
    let (_node, hooks, server, _) = primary().await;
    let mut puppet = Puppet::connect(&server, Some(Up::Start(start(1, SIZE.log_start())))).await.expect("taken on");
    assert!(matches!(puppet.next().await, Ok(Some(Down::Started(_)))));
    assert!(matches!(puppet.next().await, Ok(Some(Down::Data(_)))));
    hooks.step_down();
    let Ok(Some(Down::Stopping(stopping))) = puppet.next().await else { panic!("Stopping") };
    assert_eq!(stopping.reason, "this node no longer serves its timeline");
    assert!(matches!(puppet.next().await, Ok(None)), "a clean end");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_timeline_is_a_message_and_a_clean_end() {
    let (node, _, server, history) = primary().await;
    server.stop().await;
    let fork = node.wal.end().lsn;
    let history = node.promote(&history);
    let server = Server::start(&TestUpstream::primary(&node, &history)).await;
    let mut puppet = Puppet::connect(&server, Some(Up::Start(start(1, fork)))).await.expect("taken on");
    assert!(matches!(puppet.next().await, Ok(Some(Down::Started(started))) if started.timeline == 2));
    let Ok(Some(Down::EndOfTimeline(end))) = puppet.next().await else { panic!("EndOfTimeline") };
    assert_eq!((end.next_timeline, end.switch_lsn), (2, fork.get()));
    assert!(matches!(puppet.next().await, Ok(None)));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_from_a_node_that_did_not_seal_is_refused() {
    let (node, _, server, _) = primary().await;
    let fetch = v1::Fetch { election_timeline: 2, until_lsn: node.wal.end().lsn.get() };
    let first = v1::Start { fetch: Some(fetch), ..start(1, SIZE.log_start()) };
    let status = refused(&server, Some(Up::Start(first))).await;
    assert!(status.message().contains("sealed for timeline 0"), "{status}");
    server.stop().await;
    let server = Server::start(&TestUpstream::sealed(&node, &node.wal.history(), TimelineId::new(2))).await;
    let status = refused(&server, Some(Up::Start(start(1, SIZE.log_start())))).await;
    assert!(status.message().contains("not an open primary"), "{status}");
    server.stop().await;
}

/// Messages as bytes, whatever they say.
#[derive(Debug, Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

async fn raw(server: &Server, messages: Vec<Bytes>) -> Result<Streaming<Bytes>, Status> {
    let endpoint = Channel::from_shared(format!("http://{}", server.address)).expect("an address");
    let channel = endpoint.connect().await.expect("a connection");
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.expect("a connection");
    let (outbound, queued) = mpsc::channel(messages.len() + 1);
    for message in messages {
        outbound.try_send(message).expect("room");
    }
    // The stream stays open: what ends it is the garbage.
    tokio::spawn(async move { outbound.closed().await });
    let path = "/understudy.v1.Replication/Stream".parse().expect("a path");
    let answer = grpc.streaming(Request::new(ReceiverStream::new(queued)), path, Raw);
    within("an answer", answer).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_refused_and_the_server_goes_on() {
    let (node, hooks, server, history) = primary().await;
    let garbage = Bytes::from_static(b"\xff\xff\xff\xff garbage");
    let status = raw(&server, vec![garbage.clone()]).await.expect_err("garbage for Start");
    assert!(status.message().contains("decode"), "{status}");

    // `start = 1`, length-delimited, then garbage where an acknowledgement should be.
    let begun = v1::FromStandby { message: Some(Up::Start(start(1, SIZE.log_start()))) };
    let mut stream = raw(&server, vec![encode(&begun), garbage]).await.expect("taken on");
    let status = loop {
        match within("an end", stream.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a clean end"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains("decode"), "{status}");

    let standby = TestNode::new(3);
    let following = Following::start(&standby, standby.id, &server.address(), &history);
    hooks.acked(standby.id, node.wal.end().lsn).await;
    following.stop().await;
    server.stop().await;
}

/// A message through the codec that the generated client uses.
fn encode(message: &v1::FromStandby) -> Bytes {
    let Some(Up::Start(start)) = &message.message else { panic!("a Start") };
    let mut body = Vec::new();
    let mut field = |number: u8, wire: u8, bytes: &[u8]| {
        body.push(number << 3 | wire);
        body.extend_from_slice(bytes);
    };
    field(1, 1, &start.system_id.to_le_bytes());
    field(2, 0, &varint(u64::from(start.wal_format_version)));
    field(3, 0, &varint(start.segment_size));
    field(4, 1, &start.node_id.to_le_bytes());
    field(5, 1, &start.incarnation.to_le_bytes());
    field(6, 0, &varint(u64::from(start.timeline)));
    field(7, 0, &varint(start.start_lsn));
    let mut whole = vec![1 << 3 | 2];
    whole.extend(varint(body.len() as u64));
    whole.extend(body);
    Bytes::from(whole)
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(number & 0x7F).expect("seven bits");
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}
