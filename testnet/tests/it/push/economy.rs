//! Rows P2 to P4: nothing is sent twice, in one piece, or uncompressed.

use std::time::Duration;

use attic_node_cli::push::{BATCH_UNANSWERED_LEN_MAX, UNANSWERED_LEN_MAX};
use testnet::corpus::Closure;
use testnet::nix::NixClient;
use testnet::node::TestNode;
use testnet::odd_paths;
use testnet::program::{self, eventually, is_root};
use testnet::proxy::{Exchange, Fault, FaultProxy, Head};
use testnet::seed::Seed;
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

/// How a push dies.
#[derive(Clone, Copy, Debug)]
enum Death {
    /// The client is killed, and run again.
    Client,
    /// The server is killed, and started again.
    Server,
}

/// Pushes `paths` with a death at a random moment in each round. Nothing that was answered is sent
/// again: what is sent beyond what one undisturbed push sends is at most `unanswered` bytes.
fn dies(test: &str, death: Death, paths: &[String], unanswered: usize) {
    let mut seed = Seed::for_test(test);
    let undisturbed = TestNode::start();
    let proxy = FaultProxy::clean(undisturbed.address());
    undisturbed.cli_through(&proxy).push(paths).succeeds();
    let once = chunk_bytes(&proxy.log());
    // Records have heads, and what does not compress grows a little.
    let limit = once + unanswered as u64 * 101 / 100;
    drop(undisturbed);

    for round in 0..4 {
        let mut node = TestNode::start();
        let proxy = FaultProxy::clean(node.address());
        let cli = node.cli_through(&proxy);
        let running = program::start(&mut cli.push_command(paths));
        let moment = seed.below(once);
        proxy.wait_for_request_bytes(moment);
        match death {
            Death::Client => drop(running.kill()),
            Death::Server => {
                node.kill();
                node.start_again();
                proxy.set_upstream(node.address());
                // The client may live through it; when not, it is run again.
                drop(running.wait());
            }
        }
        cli.push(paths).succeeds();
        let sent = chunk_bytes(&proxy.log());
        println!("{test} round {round}: died after {moment} of {once} bytes, {sent} were sent");
        assert!(
            sent <= limit,
            "{sent} bytes were sent, at most {limit} should: {:#?}",
            proxy.log()
        );
        for path in paths {
            assert!(matches!(node.read(path), Served::Whole(_)), "{path}");
        }
    }
}

/// Bytes of chunk requests that passed, including those that were not finished.
fn chunk_bytes(log: &[Exchange]) -> u64 {
    let chunks = log.iter().filter(|exchange| is_chunks(exchange));
    chunks.map(|exchange| exchange.request_bytes).sum()
}

fn is_chunks(exchange: &Exchange) -> bool {
    exchange.head.method == "PUT" && exchange.head.target.contains("/push/")
}

fn large_paths(name: &str, count: u64) -> Vec<String> {
    let host = NixClient::host();
    let path = |n| host.add_file(&format!("{name}-{n}"), &Seed::new(n).bytes(8 << 20));
    (0..count).map(path).collect()
}

/// One path: one batch.
#[test]
fn p3_a_killed_client_sends_a_batch_of_requests_twice_at_most() {
    if is_root("p3 client") {
        let path = directory("p3-client", 48, 1 << 20, false);
        dies(
            "p3_client",
            Death::Client,
            &[path],
            BATCH_UNANSWERED_LEN_MAX,
        );
    }
}

#[test]
fn p3_a_killed_server_costs_a_batch_of_requests_at_most() {
    if is_root("p3 server") {
        let path = directory("p3-server", 48, 1 << 20, false);
        dies(
            "p3_server",
            Death::Server,
            &[path],
            BATCH_UNANSWERED_LEN_MAX,
        );
    }
}

/// Many paths: as many batches at once as there are jobs, in the memory that all of them share.
#[test]
fn p3_a_killed_client_with_many_paths_sends_little_twice() {
    if is_root("p3 client, many") {
        let paths = large_paths("p3-client-many", 8);
        dies("p3_client_many", Death::Client, &paths, UNANSWERED_LEN_MAX);
    }
}

#[test]
fn p3_a_killed_server_with_many_paths_costs_little() {
    if is_root("p3 server, many") {
        let paths = large_paths("p3-server-many", 8);
        dies("p3_server_many", Death::Server, &paths, UNANSWERED_LEN_MAX);
    }
}

/// `--jobs` paths travel at once: with one, each is committed before the next begins.
#[test]
fn as_many_paths_travel_at_once_as_there_are_jobs() {
    if !is_root("jobs") {
        return;
    }
    let paths = large_paths("jobs", 4);
    let is_commit = |head: &Head| head.target.ends_with("/commit");
    let push = |node: &TestNode, proxy: &FaultProxy, jobs: &str| {
        let mut push = node.cli_through(proxy).push_command(&paths);
        program::start(push.args(["--jobs", jobs]))
    };

    let node = TestNode::start();
    let proxy = FaultProxy::clean(node.address());
    push(&node, &proxy, "1").wait().succeeds();
    let log = proxy.log();
    let windows: Vec<usize> = log
        .split(|exchange| is_commit(&exchange.head))
        .map(|exchanges| exchanges.iter().filter(|e| is_chunks(e)).count())
        .collect();
    assert_eq!(windows.len(), 5, "four commits: {log:#?}");
    // 8 MiB and a little are three windows of 4 MiB.
    assert!(
        windows[..4].iter().all(|&n| (2..=3).contains(&n)),
        "{windows:?}"
    );

    let node = TestNode::start();
    let proxy = FaultProxy::new(node.address(), move |head| match is_commit(head) {
        true => Fault::Hold,
        false => Fault::None,
    });
    let running = push(&node, &proxy, "4");
    let held = || {
        proxy
            .log()
            .iter()
            .filter(|e| e.fault == Fault::Hold)
            .count()
    };
    eventually("four commits at once", Duration::from_secs(60), || {
        (held() == 4).then_some(())
    });
    proxy.release();
    running.wait().succeeds();
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
