use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Response as Answer};
use understudy_rpc::error::Reason;
use understudy_rpc::v1;
use understudy_rpc::v1::kv_client::KvClient;
use understudy_rpc::v1::kv_server::{Kv, KvServer};

use super::*;
use crate::services::scan::Pages;
use crate::telemetry::collect::resident_bytes;

const MESSAGE_BYTES_MAX: usize = 16 << 20;
const MIB: usize = 1 << 20;

/// Takes everything.
struct Sink;

#[tonic::async_trait]
impl Kv for Sink {
    type ScanStream = Pages;

    async fn get(&self, _: tonic::Request<v1::GetRequest>) -> Result<Answer<v1::GetResponse>, Status> {
        Ok(Answer::new(v1::GetResponse::default()))
    }

    async fn scan(&self, _: tonic::Request<v1::ScanRequest>) -> Result<Answer<Pages>, Status> {
        Err(Status::unimplemented("no scans"))
    }

    async fn commit(&self, _: tonic::Request<v1::CommitRequest>) -> Result<Answer<v1::CommitResponse>, Status> {
        Ok(Answer::new(v1::CommitResponse::default()))
    }

    async fn commit_batch(
        &self,
        _: tonic::Request<v1::CommitBatchRequest>,
    ) -> Result<Answer<v1::CommitBatchResponse>, Status> {
        Err(Status::unimplemented("no batches"))
    }
}

/// A server in this process, with the windows that the port has.
async fn served(limits: Limits) -> (Arc<Budget>, String) {
    let budget = Budget::new(limits);
    let service = KvServer::new(Sink).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let service = Budgeted::new(service, &budget, MESSAGE_BYTES_MAX);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let router = Server::builder()
        .initial_stream_window_size(super::super::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(super::super::CONNECTION_WINDOW_BYTES)
        .add_service(service);
    tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    (budget, address)
}

async fn connect(address: &str) -> Channel {
    Endpoint::from_shared(address.to_owned()).expect("an address").connect().await.expect("a connection")
}

/// Announces a message, sends the beginning of it, and then nothing more.
struct Incomplete {
    header: Option<Bytes>,
    chunk: Bytes,
    left: usize,
}

impl Incomplete {
    fn new(announced: usize, chunk: &Bytes, chunks: usize) -> Self {
        let length = u32::try_from(announced).expect("a length").to_be_bytes();
        Self { header: Some([&[0], &length[..]].concat().into()), chunk: chunk.clone(), left: chunks }
    }
}

impl HttpBody for Incomplete {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(header) = self.header.take() {
            return Poll::Ready(Some(Ok(Frame::data(header))));
        }
        if self.left == 0 {
            return Poll::Pending;
        }
        self.left -= 1;
        Poll::Ready(Some(Ok(Frame::data(self.chunk.clone()))))
    }
}

async fn send(mut channel: Channel, body: Incomplete) -> Option<Status> {
    let request = Request::post("/understudy.v1.Kv/Commit")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(body))
        .expect("a request");
    std::future::poll_fn(|context| channel.poll_ready(context)).await.expect("ready");
    let answer = channel.call(request).await.expect("an answer");
    Status::from_header_map(answer.headers())
}

fn put(bytes: usize) -> v1::CommitRequest {
    let put = v1::Put { key: Bytes::from_static(b"k"), value: vec![b'v'; bytes].into() };
    let operation = v1::Operation { operation: Some(v1::operation::Operation::Put(put)) };
    v1::CommitRequest { operations: vec![operation], ..v1::CommitRequest::default() }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.expect(what);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_incomplete_commits_take_bounded_memory() {
    // Few connections: all of their windows may be full at once. As many commits on each as HTTP/2 remembers resets of.
    const CONNECTIONS: usize = 4;
    const COMMITS: usize = 200;
    let limits = Limits { large_bytes: 64 * MIB, ..Limits::default() };
    let (budget, address) = served(limits).await;
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS {
        channels.push(connect(&address).await);
    }
    // One chunk for all: the client's side takes next to nothing.
    let chunk = Bytes::from(vec![1; MIB]);
    let before = resident_bytes().expect("the memory of this process");
    let (told, mut refused) = tokio::sync::mpsc::unbounded_channel();
    let tasks: Vec<_> = (0..COMMITS)
        .map(|n| {
            let (channel, told) = (channels[n % CONNECTIONS].clone(), told.clone());
            let body = Incomplete::new(12 * MIB, &chunk, 11);
            tokio::spawn(async move {
                let status = send(channel, body).await;
                told.send(status).expect("the test listens");
            })
        })
        .collect();
    let (mut refusals, mut most) = (0, 0);
    while refusals < COMMITS - 5 {
        let status = tokio::time::timeout(Duration::from_secs(60), refused.recv()).await.expect("in time");
        let status = status.flatten().expect("a refusal");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        let error = RpcError::from_status(&status).expect("ours");
        assert!(error.reason == Reason::NodeBusy && error.reason.is_retryable());
        assert!(error.message.contains("nothing was done; try again"), "{error}");
        most = most.max(resident_bytes().expect("the memory of this process"));
        refusals += 1;
    }
    // 5 times 12 MiB fit into 64 MiB. Their bytes arrive; reads and small commits go on.
    assert_eq!(budget.held_bytes(), 60 * MIB);
    let mut client = KvClient::new(channels[0].clone());
    client.commit(put(1_000)).await.expect("a small commit");
    client.get(v1::GetRequest::default()).await.expect("a read");
    let status = client.commit(put(8 * MIB)).await.expect_err("no room for a large one");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    most = most.max(resident_bytes().expect("the memory of this process"));
    let grown = most.saturating_sub(before) / MIB as u64;
    println!(
        "commits={COMMITS} announced_mib={} sent_mib={} held_mib={} resident_before_mib={} resident_most_mib={} grown_mib={grown}",
        COMMITS * 12,
        COMMITS * 11,
        budget.held_bytes() / MIB,
        before / MIB as u64,
        most / MIB as u64
    );
    // What is held, and what is on its way in the windows of the connections: 60 MiB and 4 times 32 MiB at most, and
    // what it costs besides.
    assert!(grown < 350, "{grown} MiB for {COMMITS} commits");
    // Whoever gives up gives back.
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    until("all is given back", || budget.held_bytes() == 0).await;
    client.commit(put(8 * MIB)).await.expect("there is room again");
}

#[tokio::test]
async fn who_announces_and_does_not_send_loses_his_share() {
    let limits = Limits { arrival: Duration::from_millis(300), ..Limits::default() };
    let (budget, address) = served(limits).await;
    let channel = connect(&address).await;
    let status = send(channel.clone(), Incomplete::new(100 << 10, &Bytes::from_static(b"x"), 3)).await;
    assert_eq!(status.expect("a status").code(), Code::DeadlineExceeded);
    // So does one that does not even announce.
    let nothing = Incomplete { header: Some(Bytes::from_static(b"\0\0")), chunk: Bytes::new(), left: 0 };
    assert_eq!(send(channel, nothing).await.expect("a status").code(), Code::DeadlineExceeded);
    assert_eq!(budget.held_bytes(), 0);
    assert_eq!(budget.commits.taken.load(Ordering::Acquire), 0);
}

fn reason(status: &Status) -> Option<Reason> {
    RpcError::from_status(status).map(|error| error.reason)
}

#[tokio::test]
async fn commits_that_wait_keep_no_read_waiting() {
    let limits = Limits { commits: Portion { requests: 2, small_bytes: 1_000 }, ..Limits::default() };
    let (budget, address) = served(limits).await;
    let channel = connect(&address).await;
    let chunk = Bytes::from_static(b"x");
    let waiting: Vec<_> =
        (0..2).map(|_| tokio::spawn(send(channel.clone(), Incomplete::new(500, &chunk, 1)))).collect();
    // All that commits may hold is held, in number and in bytes.
    until("the commits are there", || budget.held_bytes() == 1_000).await;
    let mut client = KvClient::new(channel);
    let status = client.commit(put(1)).await.expect_err("no place for a commit");
    assert_eq!(reason(&status), Some(Reason::NodeBusy), "{status:?}");
    assert!(status.message().contains("2 commits are in progress"), "{status:?}");
    let status = client.commit_batch(v1::CommitBatchRequest::default()).await.expect_err("a batch is one too");
    assert_eq!(reason(&status), Some(Reason::NodeBusy), "{status:?}");
    let read = v1::GetRequest { key: Bytes::from_static(b"k"), ..v1::GetRequest::default() };
    client.get(read).await.expect("a read");
    let status = client.scan(v1::ScanRequest::default()).await.expect_err("this server has no scans");
    assert_eq!(status.code(), Code::Unimplemented, "a scan is let in");
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    until("all is given back", || budget.held_bytes() == 0).await;
    client.commit(put(1)).await.expect("there is room again");
}

#[tokio::test]
async fn other_requests_are_bounded_and_keep_no_commit_waiting() {
    let limits = Limits { others: Portion { requests: 0, small_bytes: 0 }, ..Limits::default() };
    let (_budget, address) = served(limits).await;
    let mut client = KvClient::new(connect(&address).await);
    let status = client.get(v1::GetRequest::default()).await.expect_err("no place for a read");
    assert_eq!(reason(&status), Some(Reason::NodeBusy), "{status:?}");
    client.commit(put(1)).await.expect("a commit");
}

fn counted(budget: &Arc<Budget>) -> Counted {
    Counted {
        budget: Arc::clone(budget),
        kind: Kind::Commit,
        held: Arc::default(),
        message_bytes_max: MESSAGE_BYTES_MAX,
        progress: Progress::Header { seen: 0, length: 0 },
        until: Instant::now(),
        waiting: None,
    }
}

#[test]
fn a_header_counts_however_it_is_split() {
    let budget = Budget::new(Limits::default());
    let mut body = counted(&budget);
    // 0x01_02_03 bytes.
    for byte in [0, 0, 1, 2] {
        body.look(&[byte]).expect("a header");
        assert_eq!(budget.held_bytes(), 0);
    }
    body.look(&[3, 9, 9]).expect("the end of the header and two bytes");
    assert_eq!((budget.held_bytes(), body.progress), (0x010203, Progress::Message { missing: 0x010203 - 2 }));
    drop(body);
    assert_eq!(budget.held_bytes(), 0);
}

#[test]
fn a_second_message_and_one_that_is_too_long_take_nothing() {
    let budget = Budget::new(Limits::default());
    let mut body = counted(&budget);
    body.look(&[0, 0, 0, 0, 1, 7]).expect("a message");
    assert_eq!(body.look(&[0]).expect_err("another").code(), Code::InvalidArgument);
    // The decoder refuses it by its length.
    let mut body = counted(&budget);
    body.look(&[0, 0xff, 0xff, 0xff, 0xff]).expect("a header");
    assert_eq!(budget.held_bytes(), 1);
}
