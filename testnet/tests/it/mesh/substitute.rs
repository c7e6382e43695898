//! What one node was given, Nix fetches beside all others.

use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use testnet::cluster::Cluster;
use testnet::corpus::Closure;
use testnet::program::{eventually, is_root};

use super::{HEALED_MAX, VISIBLE_MAX, all_answer, path, realise, status};

/// A closure is pushed on A; beside B, C and D real Nix fetches it through their own nodes, with A
/// up, and with A dead what only B had fetched.
#[test]
fn s2_peers_substitute_what_one_was_given_while_it_lives_and_after() {
    if !is_root("s2 peers") {
        return;
    }
    let mut cluster = Cluster::joined(4);
    let closure = Closure::load("S");
    let known_to_b = path("s2-known-to-b", 3 << 20);
    cluster[0].push(&[&closure.root, &known_to_b]).succeeds();
    let pushed = (Instant::now(), VISIBLE_MAX);
    all_answer(&cluster, &[0, 1, 2, 3], &closure.root, 200, pushed);

    for node in [1, 2, 3] {
        realise(&cluster, node, &[&closure.root]);
        let received: u64 = cluster.peers(node).iter().map(|p| p.received_bytes).sum();
        assert!(received > 0, "node {node} fetched from nobody");
    }
    realise(&cluster, 1, &[&known_to_b]);
    cluster[0].kill();
    for node in [1, 2, 3] {
        realise(&cluster, node, &[&closure.root, &known_to_b]);
    }
}

/// Row S2: who does not answer costs the deadline and no more, and a retry finds what came after it.
#[test]
fn s2_who_does_not_answer_costs_the_deadline_and_a_retry_hits() {
    if !is_root("s2 deadline") {
        return;
    }
    let config = "[mesh]\nreplicas = 1\ndeadline = \"500ms\"\n";
    let mut cluster = Cluster::joined_with_config(2, config);
    let late = path("s2-late", 1 << 20);
    // The other does not hear of it, and then nobody answers who knows of it.
    cluster.network().partition(&[&[1]]);
    cluster[0].push(&[&late]).succeeds();
    cluster[0].freeze();
    cluster.network().heal_all();
    let asked = Instant::now();
    assert_eq!(status(&cluster[1], &late), 404);
    let took = asked.elapsed();
    assert!(
        took >= Duration::from_millis(500),
        "nobody was waited for: {took:?}"
    );
    assert!(took < Duration::from_secs(2), "a miss took {took:?}");
    cluster[0].thaw();
    // What was lost on the wire meanwhile is sent again when TCP sees fit.
    let thawed = (Instant::now(), HEALED_MAX);
    all_answer(&cluster, &[1], &late, 200, thawed);
    realise(&cluster, 1, &[&late]);
}

/// What was pushed has a second holder soon, although nobody asked for it.
#[test]
fn what_was_pushed_outlives_its_node() {
    if !is_root("replicas") {
        return;
    }
    let mut cluster = Cluster::joined(4);
    let path = path("outlives-its-node", 5 << 20);
    cluster[0].push(&[&path]).succeeds();
    let holds = |node: usize| {
        let usage = cluster[node].usage();
        usage.caches.iter().any(|cache| cache.file_bytes >= 5 << 20)
    };
    eventually("another node to hold the path", HEALED_MAX, || {
        (1..4).any(holds).then_some(())
    });
    cluster[0].kill();
    for node in 1..4 {
        realise(&cluster, node, &[&path]);
    }
}

/// C5: a node that stops answering, its connections open, fails nobody's build.
#[test]
fn c5_a_frozen_peer_fails_no_build() {
    if !is_root("c5 frozen") {
        return;
    }
    let cluster = Cluster::joined(4);
    let path = path("c5-frozen", 20 << 20);
    cluster[0].push(&[&path]).succeeds();
    let pushed = (Instant::now(), VISIBLE_MAX);
    all_answer(&cluster, &[1, 2, 3], &path, 200, pushed);
    realise(&cluster, 1, &[&path]);
    cluster[0].freeze();
    realise(&cluster, 2, &[&path]);
    cluster[0].thaw();
    cluster[1].freeze();
    realise(&cluster, 3, &[&path]);
    cluster[1].thaw();
}

/// S3: a source that is killed in the middle of a transfer is replaced before the client notices.
#[test]
fn s3_a_source_killed_in_mid_transfer_is_replaced() {
    if !is_root("s3 killed") {
        return;
    }
    let mut cluster = Cluster::joined_with_config(3, "[mesh]\nreplicas = 1\n");
    let path = path("s3-killed", 24 << 20);
    cluster[0].push(&[&path]).succeeds();
    let pushed = (Instant::now(), VISIBLE_MAX);
    all_answer(&cluster, &[1, 2], &path, 200, pushed);
    realise(&cluster, 1, &[&path]);
    for source in [0, 1] {
        cluster.network().limit(source, Some(4 << 20));
    }
    let victim = cluster[0].pid();
    let reading = &cluster;
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| realise(reading, 2, &[&path]));
        eventually("the transfer to be under way", HEALED_MAX, || {
            let peers = reading.peers(2);
            let received: u64 = peers.iter().map(|peer| peer.received_bytes).sum();
            (received > 2 << 20 || reader.is_finished()).then_some(())
        });
        assert!(
            !reader.is_finished(),
            "it was over before anybody was killed"
        );
        kill_process(victim, Signal::KILL).expect("kill a source");
        reader.join().expect("the client noticed nothing");
    });
}

/// C6: the nodes trust each other's bytes no more than strangers': what a peer's disk damaged is
/// not served, by it or by those who fetch from it.
#[test]
fn c6_damaged_bytes_of_a_peer_reach_nobody() {
    if !is_root("c6 damage") {
        return;
    }
    let mut cluster = Cluster::joined_with_config(2, "[mesh]\nreplicas = 1\n");
    let path = path("c6-damaged", 4 << 20);
    cluster[0].push(&[&path]).succeeds();
    let pushed = (Instant::now(), VISIBLE_MAX);
    all_answer(&cluster, &[1], &path, 200, pushed);
    cluster[0].kill();
    for pack in cluster[0].packs() {
        let mut bytes = std::fs::read(&pack).expect("read a pack");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&pack, bytes).expect("write a pack");
    }
    cluster[0].start_again();
    cluster.wait_connected(&[0, 1]);
    let nix = cluster.nix(1, "main");
    nix.run("nix-store", &["--realise", &path]).fails();
    assert!(!nix.has(&path));
    // What the node says of itself is still a right NAR or nothing: wrong bytes end the test.
    let _ = cluster[1].read(&path);
}
