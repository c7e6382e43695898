//! A node's start, its end, and what runs in between.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use attic_node_core::data_dir::FileError;
use attic_node_core::node::{Node, StartError};
use attic_node_core::offline::Offline;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::harness::{Sample, TestNode, send_over};

/// P13: a first start makes everything a user needs.
#[tokio::test]
async fn p13_a_first_start_makes_everything_once() {
    let mut node = TestNode::start().await;
    let first = node.node.as_ref().unwrap().first_start().cloned().unwrap();
    assert_eq!(first.cache.as_str(), "main");
    assert!(
        first.public_key.starts_with("main-"),
        "{}",
        first.public_key
    );
    let data = node.data_dir();
    for (file, mode) in [
        ("", 0o700),
        ("admin-token", 0o600),
        ("identity.key", 0o600),
        ("keys/main.key", 0o600),
    ] {
        let metadata = fs::metadata(data.join(file)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{file}");
    }
    let address = fs::read_to_string(data.join("address")).unwrap();
    assert_eq!(address, format!("{}\n", node.address()));
    let (token, identity) = (
        fs::read(data.join("admin-token")).unwrap(),
        fs::read(data.join("identity.key")).unwrap(),
    );
    node.stop().await;
    assert!(!data.join("address").exists() && !data.join("node.sock").exists());
    node.boot().await;
    assert!(node.node.as_ref().unwrap().first_start().is_none());
    assert_eq!(fs::read(data.join("admin-token")).unwrap(), token);
    assert_eq!(fs::read(data.join("identity.key")).unwrap(), identity);
}

#[tokio::test]
async fn a_second_node_in_the_same_directory_is_refused() {
    let node = TestNode::start().await;
    let second = Node::start(node.config()).await;
    let Err(StartError::File(error @ FileError::Locked(_))) = second else {
        panic!("it starts")
    };
    assert!(
        error.to_string().ends_with("is in use by another process"),
        "{error}"
    );
    assert!(matches!(
        Offline::open(&node.config()),
        Err(StartError::File(FileError::Locked(_)))
    ));
    assert_eq!(node.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let node = TestNode::start().await;
    let address = node.address().to_string();
    let other = TestNode::start().await;
    let mut config = other.config();
    config.http.listen = node.address();
    drop(other);
    let error = Node::start(config).await.err().unwrap();
    assert_eq!(error.to_string(), format!("listen on {address}"));
}

/// P13: the first start is the first that serves: one that found its port taken had made the cache,
/// and no later one told of it.
#[tokio::test]
async fn p13_a_start_that_never_served_is_not_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = TestNode::start().await.config();
    config.data_dir = dir.path().join("data");
    config.http.listen = taken.local_addr().unwrap();
    let failed = Node::start(config.clone()).await.err().unwrap();
    assert!(matches!(failed, StartError::Listen { .. }), "{failed}");
    drop(taken);
    for is_first in [true, false] {
        let node = Node::start(config.clone()).await.unwrap();
        let told = node.first_start().map(|first| first.cache.as_str());
        assert_eq!(told, is_first.then_some("main"));
        node.shutdown().await.unwrap();
    }
}

/// Nothing that was accepted is cut off by a stop.
#[tokio::test]
async fn a_shutdown_finishes_downloads_and_closes_idle_connections() {
    let mut node = TestNode::start().await;
    let sample = Sample::noise("sample", 30_000_000);
    node.publish("main", &sample).await;
    let target = format!("/main/nar/{}.nar", sample.nar_hash().nix32());
    let mut idle = TcpStream::connect(node.address()).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await
        .unwrap();
    idle.read_exact(&mut [0; 12]).await.unwrap();
    let mut download = TcpStream::connect(node.address()).await.unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    download.write_all(request.as_bytes()).await.unwrap();
    let mut start = [0; 12];
    download.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    let address = node.address();
    let stopping = tokio::spawn(async move { node.stop().await });
    let mut rest = Vec::new();
    download.read_to_end(&mut rest).await.unwrap();
    assert!(rest.ends_with(&sample.nar), "the download is whole");
    stopping.await.unwrap();
    let _ = idle.read_to_end(&mut Vec::new()).await;
    assert!(
        TcpStream::connect(address).await.is_err(),
        "nothing listens any more"
    );
}

/// An upload that was under way at the stop is taken in, and there after the next start.
#[tokio::test]
async fn a_shutdown_finishes_an_upload() {
    let mut node = TestNode::start().await;
    let sample = Sample::noise("sample", 3_000_000);
    let target = format!("/main/{}", sample.url());
    let mut upload = half_sent(&node, "PUT", &target, &sample.nar).await;
    let stopping = stopping(node).await;
    upload
        .write_all(&sample.nar[sample.nar.len() / 2..])
        .await
        .unwrap();
    let mut answer = String::new();
    upload.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    node = stopping.await.unwrap();
    node.boot().await;
    assert_eq!(node.head(&target).await.status, 200);
    let narinfo = format!("/main/{}", sample.narinfo_name());
    assert_eq!(node.put(&narinfo, sample.narinfo()).await.status, 201);
}

/// So is a commit, whose chunks came before.
#[tokio::test]
async fn a_shutdown_finishes_a_commit() {
    let mut node = TestNode::start().await;
    let sample = Sample::noise("sample", 3_000_000);
    let (target, body) = crate::push::ready_to_commit(&node, &sample).await;
    let mut commit = half_sent(&node, "POST", &target, &body).await;
    let stopping = stopping(node).await;
    commit.write_all(&body[body.len() / 2..]).await.unwrap();
    let mut answer = String::new();
    commit.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("\"status\":\"ok\""), "{answer}");
    node = stopping.await.unwrap();
    node.boot().await;
    let url = node.narinfo("main", &sample).await.url;
    let nar = node.get(&format!("/main/{url}")).await;
    assert_eq!(zstd::decode_all(&nar.body[..]).unwrap(), sample.nar);
}

/// A request whose body has been sent to its half, and which the node has begun to read.
async fn half_sent(node: &TestNode, method: &str, target: &str, body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(node.address()).await.unwrap();
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\n\
         Expect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        node.bearer(),
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // Sent when the body is first asked for.
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(&body[..body.len() / 2]).await.unwrap();
    stream
}

/// Stops the node meanwhile; returns once it takes no connections any more.
async fn stopping(mut node: TestNode) -> tokio::task::JoinHandle<TestNode> {
    let address = node.address();
    let stopping = tokio::spawn(async move {
        node.stop().await;
        node
    });
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    stopping
}

/// A client that never finishes cannot keep the node from stopping.
#[tokio::test]
async fn a_shutdown_is_bounded() {
    let mut node = TestNode::with(&[("http.shutdown-timeout", "200ms")]).await;
    let sample = Sample::noise("sample", 30_000_000);
    node.publish("main", &sample).await;
    let target = format!("/main/nar/{}.nar", sample.nar_hash().nix32());
    let mut stalled = TcpStream::connect(node.address()).await.unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stalled.write_all(request.as_bytes()).await.unwrap();
    stalled.read_exact(&mut [0; 12]).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), node.stop())
        .await
        .unwrap();
}

#[tokio::test]
async fn the_unix_socket_serves_without_a_host() {
    let node = TestNode::start().await;
    let sample = Sample::file("sample", b"contents");
    node.publish("main", &sample).await;
    let stream = UnixStream::connect(node.data_dir().join("node.sock"))
        .await
        .unwrap();
    let request =
        Request::get(format!("/main/{}", sample.narinfo_name())).header("host", "anything");
    let reply = send_over(stream, request.body(Full::<Bytes>::default()).unwrap()).await;
    assert_eq!(reply.status, 200);
}

/// What is left over by a node that was killed does not keep the next one from starting.
#[tokio::test]
async fn a_stale_socket_is_replaced() {
    let mut node = TestNode::start().await;
    node.stop().await;
    let path = node.data_dir().join("node.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    node.boot().await;
    UnixStream::connect(path).await.unwrap();
}

#[tokio::test]
async fn the_store_can_be_worked_on_while_no_node_runs() {
    let mut node = TestNode::start().await;
    let sample = Sample::noise("sample", 300_000);
    node.publish("main", &sample).await;
    node.stop().await;
    let config = node.config();
    let report = tokio::task::spawn_blocking(move || {
        let offline = Offline::rebuild_index(&config).unwrap();
        offline.gc(true, true).unwrap();
        let report = offline.verify(false, &mut |_| {}).unwrap();
        offline.close().unwrap();
        report
    });
    assert_eq!(report.await.unwrap().damaged_records, 0);
    node.boot().await;
    node.narinfo("main", &sample).await;
}
