//! Memory stays bounded, whatever passes through.

use std::thread;

use testnet::http::Connection;
use testnet::nix::NixClient;
use testnet::node::TestNode;
use testnet::program::is_root;
use testnet::seed::Seed;
use testnet::served::{Served, hash_part, narinfo_fields};
use testnet::upload::Upload;

/// G10: client and server, pushing a NAR several times larger than what they may use.
#[test]
fn g10_pushing_a_large_nar_needs_little_memory() {
    if !is_root("g10") {
        return;
    }
    let node = TestNode::start();
    // The same bytes for every run, so that a store holds them once.
    let contents = Seed::new(10).bytes(512 << 20);
    let path = NixClient::host().add_file("g10-large", &contents);
    drop(contents);
    let (push, client_peak) = node
        .cli()
        .start(&["push", "main", &path])
        .wait_measuring_memory();
    push.succeeds();
    assert!(
        client_peak < 256 << 20,
        "the client needed {client_peak} bytes"
    );
    assert!(
        node.rss_peak() < 256 << 20,
        "the node needed {} bytes",
        node.rss_peak()
    );
    let narinfo = node
        .get(&format!("/main/{}.narinfo", hash_part(&path)))
        .expect("an answer");
    assert_eq!(narinfo.status, 200);
    assert!(
        narinfo_fields(&narinfo.text())["NarSize"]
            .parse::<u64>()
            .expect("a size")
            > 512 << 20
    );
}

/// G10: 200 clients at once, each reading slowly.
#[test]
fn g10_two_hundred_downloads_need_little_memory() {
    let node = &TestNode::start();
    let mut seed = Seed::for_test("g10_downloads");
    let upload = Upload::random(&mut seed, "download", 32 << 20);
    upload.publish(node.address(), "main", &node.token());
    // Every connection has begun to receive before the first one reads on.
    let connections = begin_downloads(node, &upload, 200);
    thread::scope(|scope| {
        for (mut connection, length) in connections {
            let read = move || assert!(connection.skip_body(length).is_ok(), "a body was cut");
            let thread = thread::Builder::new().stack_size(512 << 10);
            thread.spawn_scoped(scope, read).expect("a thread");
        }
    });
    assert!(
        node.rss_peak() < 512 << 20,
        "{} bytes of memory",
        node.rss_peak()
    );
}

/// Clients that ask for a NAR and do not read it hold little, however many they are.
#[test]
fn g10_a_thousand_clients_that_stall_need_little_memory() {
    let node = &TestNode::start();
    let mut seed = Seed::for_test("g10_stalled");
    let upload = Upload::random(&mut seed, "stalled", 32 << 20);
    upload.publish(node.address(), "main", &node.token());
    let connections = begin_downloads(node, &upload, 1000);
    let peak = node.rss_peak();
    assert!(peak < 512 << 20, "{peak} bytes of memory");
    // Others are served meanwhile.
    assert!(matches!(node.read(&upload.path()), Served::Whole(_)));
    drop(connections);
}

/// Connections that have read the head of the NAR's answer and nothing else, and the length of its
/// body.
fn begin_downloads(node: &TestNode, upload: &Upload, count: usize) -> Vec<(Connection, usize)> {
    let target = format!("/main/nar/{}.nar.zst", upload.nar_hash().nix32());
    let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let begin = |_| {
        let mut connection = Connection::open(node.address()).expect("connect");
        connection.send_raw(request.as_bytes()).expect("send");
        let head = connection.read_head().expect("a head");
        let length = head.header("content-length").expect("a length");
        (connection, length.parse().expect("a number"))
    };
    (0..count).map(begin).collect()
}
