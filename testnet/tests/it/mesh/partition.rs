//! Nodes that do not hear each other for a while.

use std::time::{Duration, Instant};

use testnet::cluster::Cluster;
use testnet::program::{eventually, is_root};

use super::{HEALED_MAX, VISIBLE_MAX, all_answer, path, realise, status};

/// Row C9: both sides of a partition read and write; afterwards both have everything.
#[test]
fn c9_both_sides_of_a_partition_go_on_and_agree_afterwards() {
    if !is_root("c9") {
        return;
    }
    let mut cluster = Cluster::joined(4);
    let before = path("c9-before", 1 << 20);
    cluster[0].push(&[&before]).succeeds();
    let pushed = (Instant::now(), VISIBLE_MAX);
    all_answer(&cluster, &[0, 1, 2, 3], &before, 200, pushed);
    realise(&cluster, 3, &[&before]);

    cluster.network().partition(&[&[2, 3]]);
    let (left, right) = (path("c9-left", 1 << 20), path("c9-right", 1 << 20));
    cluster[0].push(&[&left]).succeeds();
    cluster[2].push(&[&right]).succeeds();
    let pushed = (Instant::now(), VISIBLE_MAX);
    all_answer(&cluster, &[0, 1], &left, 200, pushed);
    all_answer(&cluster, &[2, 3], &right, 200, pushed);
    for (node, absent) in [(0, &right), (1, &right), (2, &left), (3, &left)] {
        let asked = Instant::now();
        assert_eq!(status(&cluster[node], absent), 404, "node {node}");
        assert!(
            asked.elapsed() < MISS_MAX,
            "a miss took {:?}",
            asked.elapsed()
        );
    }
    realise(&cluster, 1, &[&left]);
    realise(&cluster, 2, &[&before, &right]);

    cluster.network().heal_all();
    cluster.wait_connected(&[0, 1, 2, 3]);
    let healed = (Instant::now(), HEALED_MAX);
    for path in [&before, &left, &right] {
        all_answer(&cluster, &[0, 1, 2, 3], path, 200, healed);
    }
    realise(&cluster, 0, &[&right]);
    realise(&cluster, 3, &[&before, &left, &right]);
    eventually(
        "all nodes to know the same paths and segments",
        HEALED_MAX,
        || {
            let known = |node| {
                let view = cluster.view(node);
                (view.paths, view.log.segments, view.members)
            };
            (1..4).all(|node| known(node) == known(0)).then_some(())
        },
    );
}

/// A laptop whose cable is out works as if it had no peers, and finds them again.
#[test]
fn a_node_without_a_link_serves_what_it_has_and_comes_back() {
    if !is_root("no link") {
        return;
    }
    let mut cluster = Cluster::joined(3);
    let (had, lacked) = (path("link-had", 1 << 20), path("link-lacked", 1 << 20));
    cluster[0].push(&[&had]).succeeds();
    let pushed = (Instant::now(), VISIBLE_MAX);
    all_answer(&cluster, &[2], &had, 200, pushed);
    realise(&cluster, 2, &[&had]);
    cluster.network().cut(2);
    cluster[0].push(&[&lacked]).succeeds();
    realise(&cluster, 2, &[&had]);
    let asked = Instant::now();
    assert_eq!(status(&cluster[2], &lacked), 404);
    assert!(
        asked.elapsed() < MISS_MAX,
        "a miss took {:?}",
        asked.elapsed()
    );
    // Restarted meanwhile, it has to find the others by what it remembers.
    cluster[2].kill();
    cluster[2].start_again();
    cluster.network().heal(2);
    cluster.wait_connected(&[0, 1, 2]);
    all_answer(&cluster, &[2], &lacked, 200, (Instant::now(), HEALED_MAX));
    realise(&cluster, 2, &[&lacked]);
}

/// Longest that a miss may take: the deadline (250 ms) and what a busy machine adds.
const MISS_MAX: Duration = Duration::from_secs(1);
