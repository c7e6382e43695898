//! Row S10: what an upstream has comes once into a cluster, however many of its nodes want it at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use attic_p2p::ids::NodeId;
use attic_p2p::placement::rank;
use attic_store::NarHash;
use testnet::cluster::Cluster;
use testnet::http::Request;
use testnet::nix::NixClient;
use testnet::program::is_root;
use testnet::proxy::{Fault, FaultProxy};
use testnet::static_cache::StaticCache;

use super::{asked, config, is_nar, nar_target, nix, path};

/// A proxy that lets the first request for a NAR wait until it is released.
fn holding_the_first(upstream: &StaticCache) -> FaultProxy {
    let is_first = AtomicBool::new(true);
    FaultProxy::new(upstream.address(), move |head| {
        match is_nar(head) && is_first.swap(false, Ordering::Relaxed) {
            true => Fault::Hold,
            false => Fault::None,
        }
    })
}

/// The nodes in the order in which they are to ask upstreams for the NAR of a path.
pub(crate) fn ranked(nodes: &[String], path: &str) -> Vec<usize> {
    let nar: NarHash = NixClient::host().nar_hashes(&[path])[0]
        .parse()
        .expect("a NAR hash");
    let ids: Vec<NodeId> = { nodes.iter() }
        .map(|id| id.parse().expect("a node id"))
        .collect();
    let ranked = rank(nar.as_bytes(), ids.iter().copied());
    let number = |node: &NodeId| ids.iter().position(|id| id == node).expect("one of them");
    ranked.iter().map(number).collect()
}

#[test]
fn s10_what_twenty_nodes_want_at_once_is_fetched_once() {
    if !is_root("s10 twenty nodes") {
        return;
    }
    let upstream = StaticCache::serve("upstream-1");
    let path = path("s10-twenty-nodes", 24 << 20);
    upstream.add(&[&path], "none");
    let proxy = holding_the_first(&upstream);
    let config = config(&[(&proxy, &*upstream.key.public)]);
    let cluster = Cluster::on_loopback(NODES, &config).join_all();
    let nodes: Vec<_> = (0..NODES).map(|node| &cluster[node]).collect();
    let targets: Vec<String> = { nodes.iter() }
        .map(|node| nar_target(node, &path))
        .collect();
    let nars: Vec<Vec<u8>> = thread::scope(|scope| {
        let clients: Vec<_> = { nodes.iter().zip(&targets) }
            .map(|(node, target)| scope.spawn(|| Request::get(target).send(node.address())))
            .collect();
        proxy.wait_for_held_request();
        proxy.release();
        let nar = |client: thread::ScopedJoinHandle<'_, _>| {
            let answer: std::io::Result<testnet::http::Response> = client.join().expect("no panic");
            let answer = answer.expect("an answer");
            assert!(answer.status == 200 && answer.complete);
            answer.body
        };
        clients.into_iter().map(nar).collect()
    });
    assert!(nars[0].len() > 24 << 20);
    assert!(nars.iter().all(|nar| *nar == nars[0]));
    assert_eq!(asked(&proxy, "/nar/").len(), 1, "{:#?}", proxy.log());
    // It is here as what is pushed is: the next one who asks gets it compressed, and it verifies.
    for node in [0, NODES - 1] {
        let nix = nix(&cluster[node], &[&upstream]);
        nix.run("nix-store", &["--realise", &path]).succeeds();
        nix.verify_store();
    }
    assert_eq!(asked(&proxy, "/nar/").len(), 1, "{:#?}", proxy.log());
}

/// Whoever fetches may die: whoever waits for it asks the upstream then, and no client sees it.
#[test]
fn s10_when_the_node_that_fetches_dies_another_one_does() {
    if !is_root("s10 death") {
        return;
    }
    let upstream = StaticCache::serve("upstream-1");
    let path = path("s10-death", 6 << 20);
    upstream.add(&[&path], "xz");
    let proxy = holding_the_first(&upstream);
    let config = config(&[(&proxy, &*upstream.key.public)]);
    let mut cluster = Cluster::on_loopback(2, &config).join_all();
    let order = ranked(&[cluster[0].id(), cluster[1].id()], &path);
    let [fetches, waits] = order[..] else {
        panic!("two nodes");
    };
    let nix = nix(&cluster[waits], &[&upstream]);
    thread::scope(|scope| {
        let client = scope.spawn(|| nix.run("nix-store", &["--realise", &path]));
        proxy.wait_for_held_request();
        cluster[fetches].kill();
        client.join().expect("no panic").succeeds();
    });
    nix.verify_store();
    assert_eq!(asked(&proxy, "/nar/").len(), 2, "{:#?}", proxy.log());
    proxy.release();
}

const NODES: usize = 20;
