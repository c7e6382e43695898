//! Clients that are slow, greedy or broken.

use std::time::Duration;

use hyper::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::{Sample, TestNode, store_path};

/// Completes when the node closes the connection; panics when it does not.
async fn closed(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
    // A reset is as good as an end.
    let _ = read.expect("the node closes the connection");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_slow_head_is_cut_off_however_it_drips() {
    let node = TestNode::with(&[("http.header-timeout", "200ms")]).await;
    let mut silent = TcpStream::connect(node.address()).await.unwrap();
    let mut dripping = TcpStream::connect(node.address()).await.unwrap();
    let drip = async {
        for byte in b"GET /main/nix-cache-info HTTP/1.1\r\nHost: localhost\r\nX: "
            .iter()
            .cycle()
        {
            if dripping.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(20), drip)
        .await
        .expect("the node closes the connection");
    assert_eq!(closed(&mut silent).await, "");
    assert_eq!(node.get("/main/nix-cache-info").await.status, 200);
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_a_kept_one_is_not() {
    let node = TestNode::with(&[("http.idle-timeout", "300ms")]).await;
    let mut stream = TcpStream::connect(node.address()).await.unwrap();
    let request = b"GET /main/nix-cache-info HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for _ in 0..3 {
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"Priority: 30\n") {
            stream.read_buf(&mut answer).await.unwrap();
        }
    }
    closed(&mut stream).await;
}

#[tokio::test]
async fn a_stalled_body_is_answered_408() {
    let node = TestNode::with(&[("http.body-idle-timeout", "200ms")]).await;
    let sample = Sample::noise("sample", 1_000_000);
    let head = format!(
        "PUT /main/{} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\nContent-Length: {}\r\n\r\n",
        sample.url(),
        node.bearer(),
        sample.nar.len()
    );
    let mut stream = TcpStream::connect(node.address()).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&sample.nar[..1000]).await.unwrap();
    assert!(closed(&mut stream).await.starts_with("HTTP/1.1 408 "));
    assert_eq!(
        node.head(&format!("/main/{}", sample.url())).await.status,
        404
    );
}

/// A client that stops reading is dropped, and what it was sent is released.
#[tokio::test]
async fn a_client_that_takes_no_bytes_is_dropped() {
    let node = TestNode::with(&[("http.send-idle-timeout", "300ms")]).await;
    let sample = Sample::noise("sample", 40_000_000);
    node.publish("main", &sample).await;
    let target = format!("/main/nar/{}.nar.zst", sample.nar_hash().nix32());
    let mut stream = TcpStream::connect(node.address()).await.unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let rest = timeout(Duration::from_secs(20), stream.read_to_end(&mut Vec::new())).await;
    let received = rest.expect("the node closes the connection");
    assert!(received.is_err() || received.unwrap() < 40_000_000);
}

/// Parked connections make way for a client with something to ask.
#[tokio::test]
async fn at_the_limit_the_longest_idle_connection_makes_way() {
    let node = TestNode::with(&[("http.connections-max", "4")]).await;
    let park = async || {
        let mut stream = TcpStream::connect(node.address()).await.unwrap();
        let request = b"GET /main/nix-cache-info HTTP/1.1\r\nHost: localhost\r\n\r\n";
        stream.write_all(request).await.unwrap();
        stream.read_exact(&mut [0; 12]).await.unwrap();
        stream
    };
    let mut parked = [park().await, park().await, park().await, park().await];
    for _ in 0..8 {
        assert_eq!(node.get("/main/nix-cache-info").await.status, 200);
    }
    assert_eq!(
        node.metric("attic_node_connections_refused_total").await,
        0.0
    );
    let [first, second, third, fourth] = &mut parked;
    tokio::select! {
        _ = closed(first) => {}
        _ = closed(second) => {}
        _ = closed(third) => {}
        _ = closed(fourth) => {}
    }
}

#[tokio::test]
async fn a_thousand_open_connections_do_no_harm() {
    let node = TestNode::start().await;
    let mut open = Vec::new();
    for index in 0..1000 {
        let mut stream = TcpStream::connect(node.address()).await.unwrap();
        if index % 2 == 0 {
            stream
                .write_all(b"GET /main/nix-cache-info HTTP/1.1\r\nHo")
                .await
                .unwrap();
        }
        open.push(stream);
    }
    assert_eq!(node.get("/main/nix-cache-info").await.status, 200);
    drop(open);
}

#[tokio::test]
async fn heads_and_paths_are_bounded() {
    let node = TestNode::start().await;
    for len in [4 << 10, 40 << 10, 200 << 10] {
        let request = format!(
            "GET /main/{} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            "a".repeat(len)
        );
        let answer = node.raw(request.as_bytes()).await;
        let status = answer.split(' ').nth(1).unwrap_or("closed");
        assert!(
            matches!(status, "404" | "414" | "431" | "closed"),
            "{len}: {status}"
        );
    }
    let header = format!(
        "GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n",
        "a".repeat(1 << 20)
    );
    let answer = node.raw(header.as_bytes()).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    let many = format!(
        "GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n",
        "X: y\r\n".repeat(1000)
    );
    let answer = node.raw(many.as_bytes()).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
}

#[tokio::test]
async fn ambiguous_requests_are_refused() {
    let node = TestNode::start().await;
    let rows = [
        "GET /main/nix-cache-info HTTP/1.1\r\n\r\n",
        "GET /main/nix-cache-info HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        "PUT /main/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "PUT /main/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, identity\r\n\r\nhello",
        "PUT /main/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        "nonsense\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}\u{0}",
    ];
    for request in rows {
        let mut stream = TcpStream::connect(node.address()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let answer = closed(&mut stream).await;
        let first = answer.lines().next().unwrap_or("closed");
        assert!(
            first == "closed" || first.contains(" 400 "),
            "{request:?}: {first}"
        );
    }
}

/// Where two framings compete, nothing after the request is taken for another one.
#[tokio::test]
async fn a_smuggled_request_is_not_answered() {
    let node = TestNode::start().await;
    let request = format!(
        "PUT /main/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\nContent-Length: 5\r\n\
         Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        node.bearer()
    );
    let answers = node.raw(request.as_bytes()).await;
    // None at all when the closing of the connection overtakes the one answer.
    assert!(answers.matches("HTTP/1.1").count() <= 1, "{answers}");
    assert!(
        answers.is_empty() || answers.contains("connection: close"),
        "{answers}"
    );
}

#[tokio::test]
async fn old_and_pipelining_clients_are_served() {
    let node = TestNode::start().await;
    let old = node.raw(b"GET /main/nix-cache-info HTTP/1.0\r\n\r\n").await;
    assert!(
        old.starts_with("HTTP/1.0 200 ") && old.contains("Priority: 30"),
        "{old}"
    );
    let absent = format!("/main/{}.narinfo", store_path("absent").hash());
    let one = |method: &str, target: &str, close: &str| {
        format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{close}\r\n")
    };
    let batch = one("GET", "/main/nix-cache-info", "")
        + &one("HEAD", &absent, "")
        + &one("GET", &absent, "")
        + &one("GET", "/main/nix-cache-info", "Connection: close\r\n");
    let answers = node.raw(batch.as_bytes()).await;
    let statuses: Vec<_> = answers
        .split("HTTP/1.1 ")
        .skip(1)
        .map(|answer| &answer[..3])
        .collect();
    assert_eq!(statuses, ["200", "404", "404", "200"], "{answers}");
}

#[tokio::test]
async fn admin_bodies_are_bounded() {
    let node = TestNode::start().await;
    let reply = node
        .api(Method::POST, "caches")
        .body(vec![b' '; 2 << 20])
        .send()
        .await;
    assert_eq!(reply.status, 413);
    let reply = node
        .api(Method::POST, "caches")
        .body("{\"name\":\"x\",\"colour\":1}")
        .send()
        .await;
    assert_eq!(reply.status, 400);
    assert!(
        reply.text().contains("unknown field `colour`"),
        "{}",
        reply.text()
    );
}
