//! S4 with real Nix: a download that is cut goes on where it was.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use testnet::nix::NixClient;
use testnet::node::TestNode;
use testnet::program::is_root;
use testnet::proxy::{Exchange, Fault, FaultProxy, Head};
use testnet::seed::Seed;
use testnet::served::{hash_part, narinfo_fields};

/// Downloads a path of 24 MiB through a proxy that cuts the first `cuts` NAR answers. Gives the
/// NAR requests, and the length of the whole file.
fn download(test: &str, cuts: usize, after: u64) -> (Vec<Exchange>, u64) {
    let node = TestNode::start();
    let contents = Seed::new(4).bytes(24 << 20);
    let path = NixClient::host().add_file(test, &contents);
    node.push(&[&path]).succeeds();
    let done = AtomicUsize::new(0);
    let proxy = FaultProxy::new(node.address(), move |head| {
        let cut = is_nar(head) && done.fetch_add(1, Ordering::Relaxed) < cuts;
        if cut {
            Fault::CutAnswer(after)
        } else {
            Fault::None
        }
    });
    let nix = NixClient::fresh(&node, "main").substituter(&proxy.url("main"));
    nix.run("nix", &["copy", "--from", &proxy.url("main"), &path])
        .succeeds();
    assert!(nix.read(&path) == contents, "wrong bytes");
    nix.verify_store();
    let narinfo = node.get(&format!("/main/{}.narinfo", hash_part(&path)));
    let narinfo = narinfo.expect("an answer").text();
    let file_size = narinfo_fields(&narinfo)["FileSize"].parse();
    (nar_requests(&proxy), file_size.expect("a number"))
}

fn nar_requests(proxy: &FaultProxy) -> Vec<Exchange> {
    let log = proxy.log().into_iter();
    log.filter(|exchange| is_nar(&exchange.head)).collect()
}

fn is_nar(head: &Head) -> bool {
    head.target.contains("/nar/") && head.method == "GET"
}

fn check(test: &str, cuts: usize, after: u64) {
    if !is_root(test) {
        return;
    }
    let (requests, file_size) = download(test, cuts, after);
    assert_eq!(requests.len(), cuts + 1, "{requests:#?}");
    // Each request begins at the very byte that the one before it did not bring.
    let mut position = 0;
    for (number, request) in requests.iter().enumerate() {
        let range = (number > 0).then(|| format!("bytes={position}-"));
        assert_eq!(request.head.range, range, "{requests:#?}");
        let status = if number > 0 { 206 } else { 200 };
        assert_eq!(request.status, Some(status), "{requests:#?}");
        position += request.answer_bytes;
    }
    assert_eq!(position, file_size, "{requests:#?}");
}

#[test]
fn s4_a_download_cut_once_is_resumed() {
    check("s4-cut-once", 1, 10_000_001);
}

#[test]
fn s4_a_download_cut_three_times_is_resumed() {
    check("s4-cut-thrice", 3, 5_000_011);
}

/// A node that is killed in mid-download and started again serves the rest.
#[test]
fn s4_a_download_outlives_a_crash_of_the_node() {
    if !is_root("s4-crash") {
        return;
    }
    let mut node = TestNode::start();
    let contents = Seed::new(44).bytes(24 << 20);
    let path = NixClient::host().add_file("s4-crash", &contents);
    node.push(&[&path]).succeeds();
    // The proxy outlives the node, so that the client sees one address.
    let first = AtomicBool::new(true);
    let proxy = FaultProxy::new(node.address(), move |head| match is_nar(head) {
        false => Fault::None,
        true if first.swap(false, Ordering::Relaxed) => Fault::CutAnswer(5_000_000),
        true => Fault::Hold,
    });
    let nix = NixClient::fresh(&node, "main");
    let copy = nix.start("nix", &["copy", "--from", &proxy.url("main"), &path]);
    proxy.wait_for_held_request();
    node.kill();
    node.start_again();
    proxy.set_upstream(node.address());
    proxy.release();
    copy.wait().succeeds();
    assert!(nix.read(&path) == contents, "wrong bytes");
    let requests = nar_requests(&proxy);
    let [first, second] = requests.as_slice() else {
        panic!("two requests: {requests:#?}")
    };
    assert_eq!(first.answer_bytes, 5_000_000, "{requests:#?}");
    assert_eq!(second.head.range.as_deref(), Some("bytes=5000000-"));
    assert_eq!(second.status, Some(206), "{requests:#?}");
}
