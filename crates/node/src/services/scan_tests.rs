use futures::StreamExt;
use tokio::time::Instant;

use super::super::reads::Wanted;
use super::super::reads::tests::Node;
use super::*;

/// A node with more than a client that does not read is sent.
async fn node_with_much() -> Node {
    with_much(Node::primary()).await
}

async fn with_much(node: Node) -> Node {
    for index in 0..20 {
        node.put(&format!("k{index:02}"), vec![b'v'; 100 << 10]).await;
    }
    node.safe().await;
    node
}

async fn begin(node: &Node, scans: &Scans, idle_max: Duration) -> Pages {
    let eventual = Wanted::of(v1::Consistency::Eventual.into(), b"", None, None).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let point = node.reads.point("the scan", &eventual, deadline).await.unwrap();
    start(point, v1::ScanRequest::default(), scans.place("the scan").unwrap(), idle_max)
}

#[tokio::test]
async fn a_scan_is_complete_and_every_page_carries_the_token() {
    let (node, scans) = (node_with_much().await, Scans::default());
    let pages: Vec<v1::ScanResponse> = begin(&node, &scans, IDLE_MAX).await.map(Result::unwrap).collect().await;
    assert!(pages.len() > PAGES_QUEUED_MAX + 1, "{}", pages.len());
    assert_eq!(pages.iter().map(|page| page.entries.len()).sum::<usize>(), 20);
    let token = convert::token_bytes(node.reads.token(*node.engine.visible().borrow()));
    assert!(pages.iter().all(|page| page.token == token));
    assert_eq!(scans.places.available_permits(), SCANS_MAX);
}

#[tokio::test]
async fn a_client_that_never_reads_holds_two_pages_and_only_for_a_while() {
    let (node, scans) = (node_with_much().await, Scans::default());
    let idle_max = Duration::from_millis(300);
    let began = Instant::now();
    let mut pages = begin(&node, &scans, idle_max).await;
    let mut most = 0;
    while scans.places.available_permits() < SCANS_MAX {
        most = most.max(pages.queued.lock().unwrap().len());
        tokio::task::yield_now().await;
    }
    assert!(began.elapsed() >= idle_max, "{:?}", began.elapsed());
    assert_eq!(most, PAGES_QUEUED_MAX);
    assert_eq!(pages.queued.lock().unwrap().len(), 1, "only the error is left");
    let last = pages.next().await.expect("not a clean end").expect_err("not a page");
    assert_eq!(last.code(), tonic::Code::Aborted);
    assert!(last.message().contains("300 ms"), "{}", last.message());
    assert!(pages.next().await.is_none());
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_place() {
    let (node, scans) = (node_with_much().await, Scans::default());
    drop(begin(&node, &scans, IDLE_MAX).await);
    while scans.places.available_permits() < SCANS_MAX {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn so_many_scans_and_no_more() {
    let scans = Scans::default();
    let places: Vec<_> = (0..SCANS_MAX).map(|_| scans.place("the scan").unwrap()).collect();
    let error = scans.place("the scan").expect_err("no place");
    assert!(error.message.contains("256 scans are under way"), "{}", error.message);
    drop(places);
    assert!(scans.place("the scan").is_ok());
}

#[tokio::test]
async fn a_scan_lets_go_of_an_engine_that_is_given_up_though_its_client_does_not_read() {
    let store = Arc::new(understudy_store::MemoryStore::new());
    let held = Arc::downgrade(&store);
    let (node, scans) = (with_much(Node::primary_with(store)).await, Scans::default());
    let mut pages = begin(&node, &scans, IDLE_MAX).await;
    pages.next().await.expect("a page").expect("a page");
    node.give_up().await;
    let gone = async {
        while held.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("nobody holds the store");
    // What came before is right; the end is an error that says what to do, never a clean one.
    let rest: Vec<Page> = pages.collect().await;
    let (last, before) = rest.split_last().expect("not a clean end");
    assert!(before.len() <= PAGES_QUEUED_MAX && before.iter().all(Result::is_ok), "{before:?}");
    let error = RpcError::from_status(last.as_ref().expect_err("not a page")).expect("a reason");
    assert_eq!(error.reason, understudy_rpc::error::Reason::NotReady);
    assert!(error.message.contains("go on from the last key that came"), "{}", error.message);
}
