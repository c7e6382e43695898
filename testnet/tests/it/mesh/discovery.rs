//! Row C2: nodes find each other in the local network, unless that is off, and whoever is no member
//! gets a handshake and nothing else.

use std::time::Instant;

use testnet::cluster::Cluster;
use testnet::program::{eventually, is_root};

use super::{HEALED_MAX, LASTING, VISIBLE_MAX, all_answer, all_keep_answering, path, status};

/// Nobody tells members of each other's addresses: those whom one node let in meet by multicast, or
/// because somebody wrote the address down.
#[test]
fn c2_members_meet_by_multicast_or_by_written_addresses_and_not_otherwise() {
    if !is_root("c2 discovery") {
        return;
    }
    // `join_all` waits until all are connected.
    drop(Cluster::joined(3));

    let off = "[mesh]\nmdns = false\n";
    let mut cluster = Cluster::with_config(3, off);
    let ticket = cluster.invite(0, &["--write", "*", "--uses", "2"]);
    for node in [1, 2] {
        cluster.join(node, &ticket).succeeds();
    }
    let known = [cluster[0].id()];
    for node in [1, 2] {
        eventually("the way to node 0", HEALED_MAX, || {
            (cluster.connected(node) == known).then_some(())
        });
    }
    let start = Instant::now();
    while start.elapsed() < LASTING {
        assert_eq!(cluster.connected(1), known);
        assert_eq!(cluster.connected(2), known);
    }

    let address = cluster.network().address(1);
    let written = format!("{off}bootstrap = [\"/ip4/{address}/tcp/7746\"]\n");
    cluster[2].stop();
    cluster[2].configure(&written);
    cluster[2].start_again();
    cluster.wait_connected(&[0, 1, 2]);
}

/// A node of another cluster on the same network, which even dials: it is refused, and gets nothing.
#[test]
fn c2_a_stranger_is_refused_and_given_nothing() {
    if !is_root("c2 stranger") {
        return;
    }
    let mut cluster = Cluster::joined(2);
    let pushed = path("c2-stranger", 1 << 20);
    cluster[0].push(&[&pushed]).succeeds();
    all_answer(
        &cluster,
        &[0, 1],
        &pushed,
        200,
        (Instant::now(), VISIBLE_MAX),
    );

    let stranger = cluster.add();
    let init = ["cluster", "init", "--name", "elsewhere"];
    cluster[stranger].cli().run(&init).succeeds();
    let address = cluster.network().address(0);
    cluster[stranger].stop();
    cluster[stranger].configure(&format!(
        "[mesh]\nbootstrap = [\"/ip4/{address}/tcp/7746\"]\n"
    ));
    cluster[stranger].start_again();
    eventually("the stranger to be refused", HEALED_MAX, || {
        let refused = cluster[0].metric("attic_node_mesh_inbound_failed");
        refused.filter(|refused| *refused > 0.0)
    });
    all_keep_answering(&cluster, &[stranger], &pushed, 404);
    assert!(cluster.connected(stranger).is_empty());
    cluster.wait_connected(&[0, 1]);
    assert_eq!(status(&cluster[1], &pushed), 200);
}
