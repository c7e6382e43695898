//! Row P11: what was pushed is there, everywhere.

use std::time::Instant;

use testnet::cluster::Cluster;
use testnet::program::is_root;

use super::{VISIBLE_MAX, all_answer, path, status};

#[test]
fn p11_a_push_is_visible_here_at_once_and_on_every_connected_node_soon() {
    if !is_root("p11 mesh") {
        return;
    }
    let cluster = Cluster::joined(5);
    for round in 0..10 {
        let node = round % cluster.len();
        let path = path(&format!("p11-{round}"), 100_000);
        cluster[node].push(&[&path]).succeeds();
        let pushed = (Instant::now(), VISIBLE_MAX);
        assert_eq!(status(&cluster[node], &path), 200, "on node {node} itself");
        all_answer(&cluster, &[0, 1, 2, 3, 4], &path, 200, pushed);
    }
}
