//! Clusters of real nodes, each on a host of its own, and real Nix beside them.

mod crowd;
mod damage;
mod discovery;
mod join;
mod keys;
mod losses;
mod names;
mod partition;
mod private;
mod remove;
mod renewal;
mod revoke;
mod sites;
mod substitute;
mod tickets;
mod villain;
mod visible;

use std::time::{Duration, Instant};

use testnet::cluster::Cluster;
use testnet::nix::NixClient;
use testnet::node::TestNode;
use testnet::program::eventually;
use testnet::served::{Served, hash_part};

/// A store path of the machine that holds `len` bytes which do not compress. It is built, so that
/// nobody takes it without a signature.
#[track_caller]
fn path(name: &str, len: usize) -> String {
    let built = format!("run \"{name}\" ''head -c {len} /dev/urandom > $out''");
    NixClient::host().build(&built).remove(0)
}

/// How a node answers for the narinfo of a path.
#[track_caller]
fn status(node: &TestNode, path: &str) -> u16 {
    let target = format!("/main/{}.narinfo", hash_part(path));
    node.get(&target).expect("the node answers").status
}

/// Waits until each of `nodes` answers `wanted` for a path, within `max` from `start` on.
#[track_caller]
fn all_answer(
    cluster: &Cluster,
    nodes: &[usize],
    path: &str,
    wanted: u16,
    (start, max): (Instant, Duration),
) {
    for node in nodes {
        let what = format!("node {node} to answer {wanted} for {path}");
        eventually(&what, max.saturating_sub(start.elapsed()), || {
            (status(&cluster[*node], path) == wanted).then_some(())
        });
    }
}

/// Watches that each of `nodes` answers `wanted` for a path, time and again for `LASTING`.
#[track_caller]
fn all_keep_answering(cluster: &Cluster, nodes: &[usize], path: &str, wanted: u16) {
    let start = Instant::now();
    while start.elapsed() < LASTING {
        for node in nodes {
            assert_eq!(status(&cluster[*node], path), wanted, "node {node}, {path}");
        }
    }
}

/// Has a Nix with an empty store beside a node fetch paths from the node, and checks every byte.
#[track_caller]
fn realise(cluster: &Cluster, node: usize, paths: &[&str]) {
    let nix = cluster.nix(node, "main");
    let args = [&["--realise"], paths].concat();
    nix.run("nix-store", &args).succeeds();
    nix.verify_store();
    assert!(paths.iter().all(|path| nix.has(path)), "node {node}");
}

/// Reads a path from a node and makes sure that it came whole.
#[track_caller]
fn read_whole(cluster: &Cluster, node: usize, path: &str) -> Vec<u8> {
    match cluster[node].read(path) {
        Served::Whole(nar) => nar,
        other => panic!("node {node}: {other:?} for {path}"),
    }
}

/// Waits until a node holds so many bytes of NARs.
#[track_caller]
fn wait_held(cluster: &Cluster, node: usize, bytes: u64) {
    let what = format!("node {node} to hold {bytes} bytes");
    eventually(&what, HEALED_MAX, || {
        let caches = cluster[node].usage().caches;
        let held: u64 = caches.iter().map(|cache| cache.file_bytes).sum();
        (held >= bytes).then_some(())
    });
}

/// Bytes of chunks that a node sent to others, and got from them.
#[track_caller]
fn moved(cluster: &Cluster, node: usize) -> (u64, u64) {
    let number = |name| cluster[node].metric(name).expect("a number") as u64;
    let sent = number("attic_node_mesh_bulk_sent_bytes");
    (sent, number("attic_node_mesh_bulk_received_bytes"))
}

/// Row P11: how long after a push every connected node may lack it.
const VISIBLE_MAX: Duration = Duration::from_secs(2);
/// Row P15: how long after its removal a path may be served anywhere.
const REMOVED_MAX: Duration = Duration::from_secs(5);
/// Row C1: how long after joining a node may lack what the cluster has.
const JOINED_MAX: Duration = Duration::from_secs(10);
/// How long after a partition ended its sides may differ.
const HEALED_MAX: Duration = Duration::from_secs(30);
/// Long enough for several rounds of gossip to undo what they should not.
const LASTING: Duration = Duration::from_secs(3);
