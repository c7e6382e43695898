//! Rows P2 to P4: nothing is sent twice, in one piece, or uncompressed.

use testnet::corpus::Closure;
use testnet::nix::NixClient;
use testnet::node::TestNode;
use testnet::odd_paths;
use testnet::program::is_root;
use testnet::proxy::{Exchange, FaultProxy};
use testnet::served::Served;

use super::directory;

/// Largest request body that hosting services let pass.
const PROXY_LIMIT: u64 = 32 << 20;

#[test]
fn p2_pushing_a_closure_again_is_one_plan_request() {
    if !is_root("p2 closure") {
        return;
    }
    let node = TestNode::start();
    let closure = Closure::load("S");
    let proxy = FaultProxy::clean(node.address());
    let cli = node.cli_through(&proxy);
    cli.push(&[&closure.root]).succeeds();

    proxy.clear_log();
    let again = cli.push(&[&closure.root]).succeeds();
    let log = proxy.log();
    assert_eq!(log.len(), 1, "{:?}", proxy.summary());
    assert_eq!(
        (log[0].head.method.as_str(), log[0].head.target.as_str()),
        ("POST", "/_node/v1/push")
    );
    assert!(
        log[0].request_bytes < 200 * closure.all().count() as u64,
        "{log:#?}"
    );
    let count = closure.all().count();
    again.says(&format!("{count} already cached"));
}

#[test]
fn p2_one_changed_file_sends_two_percent_at_most() {
    if !is_root("p2 changed file") {
        return;
    }
    // A file of 1 MiB in 128 MiB is 0.8 %; in 1 GiB, a tenth of that.
    let files = if odd_paths::large() { 1024 } else { 128 };
    let node = TestNode::start();
    let proxy = FaultProxy::clean(node.address());
    let cli = node.cli_through(&proxy);
    let (first, second) = (
        directory("p2-first", files, 1 << 20, false),
        directory("p2-second", files, 1 << 20, true),
    );
    cli.push(&[&first]).succeeds();
    let sent_first = proxy.request_bytes();
    assert!(
        sent_first > files << 20,
        "random bytes do not shrink: {sent_first}"
    );

    proxy.clear_log();
    cli.push(&[&second]).succeeds();
    let share = proxy.request_bytes() as f64 / (files << 20) as f64;
    assert!(
        share <= 0.02,
        "{share} of the bytes were sent: {:?}",
        proxy.summary()
    );
    assert!(matches!(node.read(&second), Served::Whole(_)));
}

#[test]
fn p3_no_request_is_longer_than_what_proxies_let_pass() {
    if !is_root("p3 limit") {
        return;
    }
    let path = directory("p3-limit", 48, 1 << 20, false);
    for (config, limit) in [
        ("", PROXY_LIMIT),
        ("[push]\nbody-max = \"4 MiB\"\n", 4 << 20),
    ] {
        let node = TestNode::with_config(config);
        let proxy = FaultProxy::limiting(node.address(), limit);
        node.cli_through(&proxy).push(&[&path]).succeeds();
        let longest = proxy
            .log()
            .iter()
            .map(|exchange| exchange.request_bytes)
            .max();
        assert!(
            longest.is_some_and(|longest| longest <= limit),
            "{longest:?}"
        );
        assert!(matches!(node.read(&path), Served::Whole(_)));
    }
}

#[test]
fn p3_a_killed_client_sends_at_most_one_request_twice() {
    if !is_root("p3 client") {
        return;
    }
    const LEN: u64 = 96 << 20;
    let path = directory("p3-client", 96, 1 << 20, false);
    let node = TestNode::start();
    let proxy = FaultProxy::clean(node.address());
    let cli = node.cli_through(&proxy);
    let push = cli.start(&["push", "main", &path]);
    proxy.wait_for_request_bytes(LEN / 2);
    push.kill();
    cli.push(&[&path]).succeeds();
    sent_at_most(&proxy.log(), LEN + PROXY_LIMIT);
    assert!(matches!(node.read(&path), Served::Whole(_)));
}

#[test]
fn p3_a_killed_server_costs_at_most_one_request_twice() {
    if !is_root("p3 server") {
        return;
    }
    const LEN: u64 = 96 << 20;
    let path = directory("p3-server", 96, 1 << 20, false);
    let mut node = TestNode::start();
    let proxy = FaultProxy::clean(node.address());
    let cli = node.cli_through(&proxy);
    let push = cli.start(&["push", "main", &path]);
    proxy.wait_for_request_bytes(LEN / 2);
    node.kill();
    node.start_again();
    proxy.set_upstream(node.address());
    // The client may have lived through it; when not, it is run again.
    if !push.wait().status.success() {
        cli.push(&[&path]).succeeds();
    }
    sent_at_most(&proxy.log(), LEN + PROXY_LIMIT);
    assert!(matches!(node.read(&path), Served::Whole(_)));
}

/// Chunk bytes that passed, including those of requests that were not finished.
#[track_caller]
fn sent_at_most(log: &[Exchange], limit: u64) {
    let chunks = log.iter().filter(|exchange| exchange.head.method == "PUT");
    let sent: u64 = chunks.map(|exchange| exchange.request_bytes).sum();
    assert!(
        sent <= limit,
        "{sent} bytes were sent, at most {limit} should"
    );
}

#[test]
fn p4_what_compresses_is_sent_compressed() {
    if !is_root("p4") {
        return;
    }
    let text: Vec<u8> = (0..2_000_000)
        .flat_map(|n: u32| format!("line {n}\n").into_bytes())
        .collect();
    let path = NixClient::host().add_file("p4-text", &text);
    let node = TestNode::start();
    let proxy = FaultProxy::clean(node.address());
    node.cli_through(&proxy).push(&[&path]).succeeds();
    let sent = proxy.request_bytes();
    assert!(
        sent < text.len() as u64 / 2,
        "{sent} of {} bytes were sent",
        text.len()
    );
    assert!(matches!(node.read(&path), Served::Whole(nar) if nar.len() > text.len()));
}
