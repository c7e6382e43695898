//! Rows C2 and C9: how nodes find each other, and whom they leave alone.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use attic_node_core::api::PeerState;
use testnet::cluster::{Cluster, Family, Network};
use testnet::program::{eventually, is_root};

use super::{HEALED_MAX, LASTING, VISIBLE_MAX, all_answer, all_keep_answering, path, status};

/// A cluster of three in which nodes 1 and 2 were told of node 0 only, and it is gone.
fn acquaintances(family: Option<Family>, config: &str) -> Cluster {
    let mut cluster = Cluster::with_config(3, config);
    if let Some(gone) = family {
        (0..3).for_each(|host| cluster.network().take_addresses(host, gone));
    }
    // Nodes look at their addresses when they start.
    for node in 0..3 {
        cluster[node].stop();
        cluster[node].start_again();
    }
    // Each is let in while the other is not there: nobody can tell them of each other.
    let ticket = cluster.invite(0, &["--write", "*", "--uses", "2"]);
    cluster[2].kill();
    cluster.join(1, &ticket).succeeds();
    cluster.wait_connected(&[0, 1]);
    cluster[1].kill();
    cluster[2].start_again();
    cluster.join(2, &ticket).succeeds();
    cluster.wait_connected(&[0, 2]);
    cluster[0].kill();
    cluster[1].start_again();
    cluster
}

/// Where a node is connected to another; empty if it is not.
fn address_of(cluster: &Cluster, node: usize, other: usize) -> String {
    let id = cluster[other].id();
    let peers = cluster.peers(node).into_iter();
    let connected = peers.filter(|peer| peer.state == PeerState::Connected);
    let other = { connected }.find(|peer| peer.node.to_string() == id);
    other.and_then(|peer| peer.address).unwrap_or_default()
}

/// Whether a host takes part in mDNS.
fn listens_to_mdns(cluster: &Cluster, node: usize) -> bool {
    let groups = || {
        let four = fs::read_to_string("/proc/thread-self/net/igmp").unwrap_or_default();
        four.contains("FB0000E0")
    };
    cluster[node].place().enter(groups)
}

#[test]
fn c2_nodes_find_each_other_by_mdns_over_ipv4() {
    if !is_root("c2 v4") {
        return;
    }
    let cluster = acquaintances(Some(Family::Six), "");
    cluster.wait_connected(&[1, 2]);
    assert!(listens_to_mdns(&cluster, 1));
    assert!(address_of(&cluster, 1, 2).starts_with("/ip4/10.77.0."));
}

#[test]
fn c2_nodes_find_each_other_by_mdns_over_ipv6() {
    if !is_root("c2 v6") {
        return;
    }
    let cluster = acquaintances(Some(Family::Four), "");
    cluster.wait_connected(&[1, 2]);
    assert!(address_of(&cluster, 1, 2).starts_with("/ip6/"));
}

/// What others are called is known of those that are away, too: from the last time they were there.
#[test]
fn c2_names_outlive_those_who_say_them_and_a_restart() {
    if !is_root("c2 names") {
        return;
    }
    let mut cluster = Cluster::with_config(2, "[mesh]\nname = \"desk 4\"\n").join_all();
    let id = cluster[1].id();
    let names_file = cluster[0].data_dir().join("cluster/names");
    eventually(
        "the name to be written down",
        Duration::from_secs(5),
        || {
            let names = fs::read_to_string(&names_file).unwrap_or_default();
            names.contains("desk 4").then_some(())
        },
    );
    cluster[1].kill();
    cluster[0].kill();
    cluster[0].start_again();
    let peer = eventually("the other to be listed", VISIBLE_MAX, || {
        let mut peers = cluster.peers(0).into_iter();
        peers.find(|peer| peer.node.to_string() == id)
    });
    assert_eq!(peer.state, PeerState::Away { reason: None });
    assert_eq!(peer.name.as_deref(), Some("desk 4"));
    let shown = cluster[0].cli().run(&["peers"]).succeeds();
    shown.says("desk 4");
}

/// Switched off, a node neither asks nor answers, and finds only whom it is told of.
#[test]
fn c2_mdns_can_be_switched_off() {
    if !is_root("c2 off") {
        return;
    }
    let cluster = acquaintances(None, "[mesh]\nmdns = false");
    let alone = |node: usize| cluster.connected(node).is_empty();
    eventually("both to notice that node 0 is gone", NOTICED_MAX, || {
        (alone(1) && alone(2)).then_some(())
    });
    let start = Instant::now();
    while start.elapsed() < LASTING {
        assert!(alone(1) && alone(2));
    }
    for node in [1, 2] {
        assert!(!listens_to_mdns(&cluster, node), "node {node}");
    }
}

/// Addresses in the configuration are enough; and an address that worked is remembered without it.
#[test]
fn c2_static_peers_are_connected_and_remembered() {
    if !is_root("c2 static") {
        return;
    }
    let mut cluster = acquaintances(None, "[mesh]\nmdns = false");
    let other = cluster.network().address(2);
    let known = format!("[mesh]\nmdns = false\nbootstrap = [\"/ip4/{other}/tcp/7746\"]");
    cluster[1].configure(&known);
    cluster[1].stop();
    cluster[1].start_again();
    cluster.wait_connected(&[1, 2]);
    let file = cluster[1].data_dir().join("cluster/peers");
    eventually("the address to be remembered", REMEMBERED_MAX, || {
        let text = fs::read_to_string(&file).ok()?;
        text.contains(&other.to_string()).then_some(())
    });
    cluster[1].configure("[mesh]\nmdns = false");
    cluster[1].kill();
    cluster[1].start_again();
    cluster.wait_connected(&[1, 2]);
}

/// Without mDNS, nodes that were told of one node find each other through it, and need it no more.
#[test]
fn c2_members_tell_each_other_where_members_are() {
    let mut cluster = Cluster::with_config(4, "[mesh]\nmdns = false\n");
    let ticket = cluster.invite(0, &["--write", "*", "--uses", "3"]);
    for node in [1, 2, 3] {
        cluster.join(node, &ticket).succeeds();
    }
    cluster.wait_connected(&[0, 1, 2, 3]);
    cluster.wait_writable(1, "main");
    cluster[0].kill();
    cluster.wait_connected(&[1, 2, 3]);
    let pushed = path("c2-told", 20_000);
    cluster[1].push(&[&pushed]).succeeds();
    let start = Instant::now();
    all_answer(&cluster, &[2, 3], &pushed, 200, (start, HEALED_MAX));
}

/// Without mDNS a ticket leads to the cluster, also when the first of its addresses leads nowhere; from
/// then on the way is remembered.
#[test]
fn c2_the_addresses_in_a_ticket_are_enough() {
    if !is_root("c2 tickets") {
        return;
    }
    let nowhere = "announce = [\"/ip4/10.77.0.250/tcp/7746\"]";
    let mut cluster = Cluster::with_config(2, &format!("[mesh]\nmdns = false\n{nowhere}\n"));
    let ticket = cluster.invite(0, &["--write", "*"]);
    cluster.join(1, &ticket).succeeds();
    cluster.wait_connected(&[0, 1]);
    cluster[1].kill();
    cluster[1].start_again();
    cluster.wait_connected(&[0, 1]);
}

/// Two clusters on one switch, with mDNS: neither's nodes connect to, or learn anything from, the
/// other's. Somebody who speaks no protocol of ours gets no more than the names of some.
#[test]
fn c2_strangers_on_the_same_lan_get_a_handshake_and_nothing_else() {
    if !is_root("c2 strangers") {
        return;
    }
    // Hosts 0 and 1 make one cluster, 2 and 3 the other.
    let mut cluster = Cluster::on_network(Network::new(), 4, "");
    for (founder, member) in [(0, 1), (2, 3)] {
        let ticket = cluster.invite(founder, &["--write", "*"]);
        cluster.join(member, &ticket).succeeds();
    }
    cluster.wait_connected(&[0, 1]);
    cluster.wait_connected(&[2, 3]);
    let secret = path("c2-secret", 20_000);
    cluster[0].push(&[&secret]).succeeds();
    all_answer(&cluster, &[1], &secret, 200, (Instant::now(), VISIBLE_MAX));
    let start = Instant::now();
    while start.elapsed() < LASTING {
        for (node, other) in [(0, 1), (1, 0), (2, 3), (3, 2)] {
            assert_eq!(
                cluster.connected(node),
                [cluster[other].id()],
                "node {node}"
            );
        }
        assert_eq!(status(&cluster[2], &secret), 404);
        assert_eq!(status(&cluster[3], &secret), 404);
    }
    let address = (cluster.network().address(0), 7746).into();
    for words in [
        &b"\x13/multistream/1.0.0\n"[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"",
    ] {
        let heard = cluster[2].place().enter(|| {
            let mut stream = TcpStream::connect_timeout(&address, HEALED_MAX).expect("connect");
            stream.set_read_timeout(Some(HEALED_MAX)).expect("set");
            stream.write_all(words).expect("write");
            let mut heard = Vec::new();
            // The node hangs up.
            let _ = stream.read_to_end(&mut heard);
            heard
        });
        assert!(
            heard.len() <= HANDSHAKE_MAX,
            "{} bytes: {heard:?}",
            heard.len()
        );
    }
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

/// A node that gets other addresses is found there.
#[test]
fn c2_a_node_is_found_at_its_new_address() {
    if !is_root("c2 moved") {
        return;
    }
    let mut cluster = Cluster::joined(3);
    cluster.network().move_host(1);
    eventually("the others to see the new address", NOTICED_MAX, || {
        let moved = [0, 2].into_iter().all(|node| {
            let address = address_of(&cluster, node, 1);
            !address.is_empty() && !address.contains("10.77.0.2/") && !address.contains("fd77::2/")
        });
        moved.then_some(())
    });
    cluster.wait_connected(&[0, 1, 2]);
    let pushed = path("c2-moved", 20_000);
    cluster[1].push(&[&pushed]).succeeds();
    all_answer(
        &cluster,
        &[0, 2],
        &pushed,
        200,
        (Instant::now(), HEALED_MAX),
    );
}

/// A laptop that closes: the others give it up, and have it back when it opens.
#[test]
fn c9_a_node_that_slept_for_long_comes_back_by_itself() {
    if !is_root("c9 sleep") {
        return;
    }
    let cluster = Cluster::joined(3);
    cluster[2].freeze();
    eventually(
        "the others to give up a node that sleeps",
        NOTICED_MAX,
        || {
            let (a, b) = (cluster.connected(0), cluster.connected(1));
            (a.len() == 1 && b.len() == 1).then_some(())
        },
    );
    let missed = path("c9-missed", 20_000);
    cluster[0].push(&[&missed]).succeeds();
    cluster[2].thaw();
    cluster.wait_connected(&[0, 1, 2]);
    all_answer(&cluster, &[2], &missed, 200, (Instant::now(), HEALED_MAX));
}

/// A node that is gone is tried ever less often, and there again when it comes back.
#[test]
fn c9_a_node_that_is_gone_is_tried_ever_less_often() {
    if !is_root("c9 backoff") {
        return;
    }
    let mut cluster = Cluster::joined(2);
    cluster[1].kill();
    let alone = || cluster.connected(0).is_empty();
    eventually("node 0 to notice", NOTICED_MAX, || alone().then_some(()));
    let failed = || cluster[0].metric("attic_node_mesh_dials_failed");
    let before = failed().expect("a number");
    let start = Instant::now();
    eventually("six attempts to fail", NOTICED_MAX, || {
        (failed() >= Some(before + 6.0)).then_some(())
    });
    let took = start.elapsed();
    assert!(took > SIX_ATTEMPTS_MIN, "six attempts in {took:?}");
    cluster[1].start_again();
    cluster.wait_connected(&[0, 1]);
}

/// The pauses between them, of 1 to 16 seconds, at their shortest, less the first.
const SIX_ATTEMPTS_MIN: Duration = Duration::from_secs(14);
/// A node writes down whom it reached every 15 seconds.
const REMEMBERED_MAX: Duration = Duration::from_secs(60);
/// Two pings that are not answered, 20 seconds apart, and a try or two to connect.
const NOTICED_MAX: Duration = Duration::from_secs(180);
/// A few names of protocols and an error.
const HANDSHAKE_MAX: usize = 256;
