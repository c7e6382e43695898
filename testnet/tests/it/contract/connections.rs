//! Connections that no proper client would make, and more of them than there should be.

use std::io::ErrorKind;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use testnet::http::{Connection, Request};
use testnet::node::TestNode;
use testnet::seed::Seed;
use testnet::upload::Upload;

/// Sends `bytes`, and gives the status of the answer, or `None` when the connection is closed
/// without one.
#[track_caller]
fn status_of(node: &TestNode, bytes: &[u8]) -> Option<u16> {
    let mut connection = Connection::open(node.address()).expect("connect");
    // The node may close while we are still sending; then its answer is what counts.
    let _ = connection.send_raw(bytes);
    connection.finish_sending();
    connection
        .read_response(false)
        .ok()
        .map(|response| response.status)
}

#[track_caller]
fn still_serves(node: &TestNode, after: &str) {
    let response = node.get("/main/nix-cache-info").expect("an answer");
    assert_eq!(response.status, 200, "after {after}");
}

#[test]
fn garbage_is_refused_or_closed() {
    let node = &TestNode::start();
    let mut seed = Seed::for_test("garbage");
    let get = "GET /main/nix-cache-info HTTP/1.1\r\nHost: localhost\r\n";
    let header = |name: &str, len: usize| format!("{get}{name}: {}\r\n\r\n", "x".repeat(len));
    let rows = [
        ("random bytes", seed.bytes(4000)),
        ("nothing", Vec::new()),
        (
            "a TLS hello",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        ),
        (
            "the HTTP/2 preface",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        ),
        ("HTTP/9", b"GET / HTTP/9.9\r\nHost: x\r\n\r\n".to_vec()),
        ("HTTP/0.9", b"GET /\r\n\r\n".to_vec()),
        ("a method of 1 MiB", vec![b'G'; 1 << 20]),
        ("a header of 1 MiB", header("X", 1 << 20).into_bytes()),
        (
            "a header name of 1 MiB",
            header(&"x".repeat(1 << 20), 1).into_bytes(),
        ),
        (
            "10,000 headers",
            format!("{get}{}\r\n", "X: y\r\n".repeat(10_000)).into_bytes(),
        ),
        (
            "a header without a colon",
            format!("{get}garbage\r\n\r\n").into_bytes(),
        ),
        (
            "a folded header",
            format!("{get}X: a\r\n b\r\n\r\n").into_bytes(),
        ),
        (
            "a NUL in a header",
            format!("{get}X: a\0b\r\n\r\n").into_bytes(),
        ),
        (
            "a space before a colon",
            format!("{get}X : a\r\n\r\n").into_bytes(),
        ),
        (
            "a NUL in the target",
            b"GET /main/\0 HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        ),
        (
            "a target of *",
            b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        ),
        (
            "CONNECT",
            b"CONNECT example.org:80 HTTP/1.1\r\nHost: example.org\r\n\r\n".to_vec(),
        ),
    ];
    for (what, bytes) in rows {
        let status = status_of(node, &bytes);
        assert!(
            status.is_none_or(|s| (400..=505).contains(&s) && s != 500),
            "{what}: {status:?}"
        );
        still_serves(node, what);
    }
}

#[test]
fn long_targets_are_refused() {
    let node = &TestNode::start();
    for len in [4 << 10, 16 << 10, 64 << 10, 200 << 10] {
        for target in [
            format!("/main/{}.narinfo", "0".repeat(len)),
            format!("/{}", "a/".repeat(len / 2)),
        ] {
            let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            let status = status_of(node, request.as_bytes());
            assert!(
                status.is_none_or(|s| (400..500).contains(&s)),
                "{len} bytes: {status:?}"
            );
        }
    }
    still_serves(node, "long targets");
}

#[test]
fn other_methods_are_refused_and_change_nothing() {
    let node = &TestNode::start();
    let upload = Upload::file(&mut Seed::for_test("methods"), "methods", b"x".as_slice());
    upload.publish(node.address(), "main", &node.token());
    let narinfo = upload.narinfo_target("main");
    let before = node.get(&narinfo).expect("an answer");
    for method in [
        "DELETE", "POST", "PATCH", "TRACE", "OPTIONS", "MOVE", "PROPFIND", "get",
    ] {
        for target in [narinfo.as_str(), "/main/nix-cache-info", "/main", "/"] {
            let request = Request::new(method, target).token(&node.token());
            let response = request.send(node.address()).expect("an answer");
            assert!(
                (400..=501).contains(&response.status),
                "{method} {target}: {}",
                response.status
            );
            assert_eq!(
                response.header("access-control-allow-origin"),
                None,
                "{method} {target}"
            );
        }
    }
    assert_eq!(before, node.get(&narinfo).expect("an answer"));
}

/// A web page must not reach the node through a name that it controls.
#[test]
fn foreign_hosts_are_refused() {
    let node = &TestNode::with_config("[http]\nallowed-hosts = [\"cache.lan\"]\n");
    let port = node.address().port();
    let rows = [
        (format!("127.0.0.1:{port}"), 200),
        ("127.0.0.1".to_owned(), 200),
        (format!("localhost:{port}"), 200),
        ("LOCALHOST".to_owned(), 200),
        (format!("[::1]:{port}"), 200),
        ("192.168.7.7:7745".to_owned(), 200),
        (format!("cache.lan:{port}"), 200),
        ("evil.example".to_owned(), 421),
        (format!("evil.example:{port}"), 421),
        ("localhost.evil.example".to_owned(), 421),
        ("127.0.0.1.evil.example".to_owned(), 421),
        ("cache.lan.evil.example".to_owned(), 421),
    ];
    for (host, status) in rows {
        for target in ["/main/nix-cache-info", "/metrics", "/_node/v1/status"] {
            let request = Request::get(target)
                .header("Host", &host)
                .token(&node.token());
            let response = request.send(node.address()).expect("an answer");
            assert_eq!(response.status, status, "Host: {host}, {target}");
        }
    }
    let requests = [
        "GET /main/nix-cache-info HTTP/1.1\r\n\r\n",
        "GET /main/nix-cache-info HTTP/1.1\r\nHost: a\r\nHost: localhost\r\n\r\n",
    ];
    for request in requests {
        let status = status_of(node, request.as_bytes());
        assert!(
            status.is_none_or(|s| (400..500).contains(&s)),
            "{request:?}: {status:?}"
        );
    }
}

/// Nothing outside a cache can be named, however it is spelt.
#[test]
fn traversal_finds_nothing() {
    let node = &TestNode::start();
    let (token, key) = (node.token(), node.data_dir().join("keys/main.key"));
    let key = std::fs::read_to_string(key).expect("the key is where the manual says");
    let data_dir = node.data_dir().display().to_string();
    let targets = [
        "/../admin-token",
        "/main/../../admin-token",
        "/main/../keys/main.key",
        "/main/..%2fadmin-token",
        "/main/%2e%2e/%2e%2e/admin-token",
        "/main/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/main/..%252f..%252fetc/passwd",
        "/main/....//....//etc/passwd",
        "/main/..\\..\\admin-token",
        "/main/nar/../../../etc/passwd",
        "/main/nar/..%2f..%2f..%2fetc%2fpasswd",
        "/main/nar/%2fetc%2fpasswd",
        "/main/nar//etc/passwd",
        "/main/log/../../etc/passwd",
        "/main/log/..%2f..%2fadmin-token",
        "/main/debuginfo/../../admin-token",
        "/main/realisations/../../admin-token",
        "/main/.git/config",
        "/.env",
        "/main/.",
        "/main/..",
        "//etc/passwd",
        "/%00",
        "/main/%00.narinfo",
        "/_node/v1/../../admin-token",
        "/_node/v1/caches/..%2f..%2fadmin-token",
        "http://localhost/../admin-token",
        "http://localhost/main/../../admin-token",
        "file:///etc/passwd",
    ];
    for target in targets {
        for method in ["GET", "HEAD", "PUT"] {
            let mut request = Request::new(method, target);
            if method == "PUT" {
                request = Request::put(target, b"x".as_slice()).token(&token);
            }
            // What is no target at all may also be answered by closing the connection.
            let Ok(response) = request.send(node.address()) else {
                continue;
            };
            assert!(
                (400..500).contains(&response.status),
                "{method} {target}: {}",
                response.status
            );
            let text = response.text();
            for secret in [&token, key.trim(), &data_dir, "root:"] {
                assert!(
                    !text.contains(secret),
                    "{method} {target} tells {secret}: {text}"
                );
            }
        }
    }
}

/// A client that trickles its request holds up nobody and is let go.
#[test]
fn slow_clients_are_let_go() {
    let node = &TestNode::with_config(
        "[http]\nheader-timeout = \"1s\"\nbody-idle-timeout = \"1s\"\nidle-timeout = \"2s\"\n",
    );
    let head = "GET /main/nix-cache-info HTTP/1.1\r\nHost: localhost\r\n";
    let put = format!(
        "PUT /main/nar/{}.nar HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\
         Content-Length: 1000000\r\n\r\nabc",
        "0".repeat(52),
        node.token()
    );
    let rows = [
        ("half a head", &head[..20]),
        ("a head that does not end", head),
        ("a body that stops", &put),
    ];
    for (what, bytes) in rows {
        let mut connections: Vec<Connection> = (0..50)
            .map(|_| {
                let mut connection = Connection::open(node.address()).expect("connect");
                connection.send_raw(bytes.as_bytes()).expect("send");
                connection
            })
            .collect();
        still_serves(node, what);
        let started = Instant::now();
        for connection in &mut connections {
            if let Ok(response) = connection.read_response(false) {
                assert!(
                    (400..500).contains(&response.status),
                    "{what}: {}",
                    response.status
                );
            }
        }
        assert!(
            started.elapsed() < Duration::from_secs(15),
            "{what}: {:?}",
            started.elapsed()
        );
    }
}

/// A header may not trickle for ever either, one byte at a time.
#[test]
fn a_trickling_header_is_cut_off() {
    let node = &TestNode::with_config("[http]\nheader-timeout = \"1s\"\n");
    let mut connection = Connection::open(node.address()).expect("connect");
    let started = Instant::now();
    let head = b"GET /main/nix-cache-info HTTP/1.1\r\nHost: localhost\r\nX: ";
    let mut sent = connection.send_raw(head);
    while sent.is_ok() {
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "the node listens for ever"
        );
        // The pace of the attack, not a wait for something to happen.
        thread::sleep(Duration::from_millis(50));
        sent = connection.send_raw(b"x");
    }
}

/// Ten thousand idle clients: others are still served, memory stays bounded.
#[test]
fn ten_thousand_keep_alive_connections_do_not_stop_the_node() {
    raise_open_files();
    let node = &TestNode::start();
    let mut connections = Vec::with_capacity(10_000);
    for number in 0..10_000 {
        let mut connection = Connection::open(node.address())
            .unwrap_or_else(|error| panic!("connection {number}: {error}"));
        let response = connection.send(&Request::get("/main/nix-cache-info"));
        let response = response.unwrap_or_else(|error| panic!("connection {number}: {error}"));
        assert_eq!(response.status, 200, "connection {number}");
        connections.push(connection);
    }
    let started = Instant::now();
    still_serves(node, "10,000 connections");
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
    // The newest ones are still good: it is the idle ones that go first.
    for connection in connections.iter_mut().rev().take(100) {
        let response = connection.send(&Request::get("/main/nix-cache-info"));
        assert_eq!(response.expect("an answer").status, 200);
    }
    assert!(
        node.rss_peak() < 256 << 20,
        "{} bytes of memory",
        node.rss_peak()
    );
}

/// Requests that come before the last answer was read are answered in order.
#[test]
fn pipelined_requests_are_answered_in_order() {
    let node = &TestNode::start();
    let mut connection = Connection::open(node.address()).expect("connect");
    let absent = format!("/main/{}.narinfo", "0".repeat(32));
    let targets = [
        "/main/nix-cache-info",
        &absent,
        "/healthz",
        "/main/nix-cache-info",
    ];
    let bytes: String = targets
        .iter()
        .map(|target| format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        .collect();
    connection.send_raw(bytes.as_bytes()).expect("send");
    let statuses: Vec<u16> = (0..targets.len())
        .map(|_| connection.read_response(false).expect("an answer").status)
        .collect();
    assert_eq!(statuses, [200, 404, 200, 200]);
}

#[test]
fn http_1_0_is_understood() {
    let node = &TestNode::start();
    let request = b"GET /main/nix-cache-info HTTP/1.0\r\nHost: localhost\r\n\r\n";
    assert_eq!(status_of(node, request), Some(200));
}

/// What is under way when the node is told to stop is finished first.
#[test]
fn a_graceful_stop_finishes_what_it_accepted() {
    let mut node = TestNode::start();
    let mut seed = Seed::for_test("graceful");
    let upload = Upload::random(&mut seed, "graceful", 8_000_000);
    upload.publish(node.address(), "main", &node.token());
    let address = node.address();
    let target = format!("/main/nar/{}.nar.zst", upload.nar_hash().nix32());
    let mut connection = Connection::open(address).expect("connect");
    let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    connection.send_raw(request.as_bytes()).expect("send");
    let head = connection.read_head().expect("a head");
    let length: usize = head
        .header("content-length")
        .expect("a length")
        .parse()
        .expect("a number");
    let body = thread::spawn(move || connection.read_body(length));
    assert!(node.stop().success(), "{}", node.log());
    assert_eq!(
        body.join()
            .expect("a reader")
            .expect("the whole body")
            .len(),
        length
    );
    let refused = Connection::open(address).expect_err("nobody listens any more");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

/// The test holds ten thousand sockets itself.
fn raise_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: maximum.map(|max| max.min(1 << 20)),
        maximum,
    };
    setrlimit(Resource::Nofile, wanted).expect("raise the limit of open files");
    let enough = wanted.current.is_none_or(|current| current > 10_100);
    assert!(
        enough,
        "this machine allows only {:?} open files",
        wanted.current
    );
}
