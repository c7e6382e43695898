//! Two sites behind routers that translate addresses, and a relay between them.

use std::fs;
use std::time::{Duration, Instant};

use data_encoding::BASE32_NOPAD;
use testnet::cluster::Cluster;
use testnet::program::{eventually, is_root};

use super::{JOINED_MAX, path, realise, status};

/// An office box in the open, and a node in each of two sites that reach nobody but it. Each node is
/// reached through the box, and holds what is pushed to it alone.
fn sites(more: &str) -> Cluster {
    let settings = |rest: &str| format!("[mesh]\nreplicas = 1\nmdns = false\n{rest}\n{more}\n");
    let mut cluster = Cluster::in_sites(3, &settings(""));
    let relay = format!("/ip4/10.88.0.1/tcp/7746/p2p/{}", cluster[0].id());
    for node in 0..3 {
        cluster[node].configure(&match node {
            0 => settings("relay-server = true\nrelay-client = true"),
            _ => settings(&format!("relays = [\"{relay}\"]")),
        });
        cluster[node].stop();
        cluster[node].start_again();
    }
    let ticket = cluster.invite(0, &["--write", "*"]);
    cluster.join(1, &ticket).succeeds();
    // A ticket that any member honours names the others, and how they are reached.
    let ticket = eventually(
        "a ticket to say how the first site is reached",
        CONNECTED_MAX,
        || {
            let ticket = cluster.invite(0, &["--open", "--write", "*"]);
            says(&ticket, "/p2p-circuit").then_some(ticket)
        },
    );
    cluster.join(2, &ticket).succeeds();
    cluster.wait_connected(&[0, 1, 2]);
    for node in 0..3 {
        cluster.wait_writable(node, "main");
    }
    cluster
}

/// Whether a ticket has some text in it.
fn says(ticket: &str, text: &str) -> bool {
    let digits = ticket
        .strip_prefix("attic1")
        .expect("a ticket has a prefix");
    let bytes = BASE32_NOPAD.decode(digits.to_ascii_uppercase().as_bytes());
    let bytes = bytes.expect("a ticket is in base 32");
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

/// Whether the second site reaches the first through the relay only.
fn is_relayed(cluster: &Cluster) -> bool {
    let first = cluster[1].id();
    let peers = cluster.peers(2);
    let peer = peers.iter().find(|peer| peer.node.to_string() == first);
    let address = peer.and_then(|peer| peer.address.as_ref());
    address.is_none_or(|address| address.contains("p2p-circuit"))
}

#[test]
fn nat_two_sites_meet_through_a_relay_and_bytes_take_the_way_round() {
    if !is_root("nat relay") {
        return;
    }
    let cluster = sites("");
    assert!(is_relayed(&cluster), "{:?}", cluster.peers(2));
    eventually("the box to count what it carries", CONNECTED_MAX, || {
        let carried = cluster[0].metric("attic_node_mesh_circuits_carried");
        (carried >= Some(1.0)).then_some(())
    });
    let pushed = path("nat-relay", 8 << 20);
    cluster[1].push(&[&pushed]).succeeds();
    eventually("the other site to know the path", JOINED_MAX, || {
        (status(&cluster[2], &pushed) == 200).then_some(())
    });
    // The circuit carries no bulk: nothing of the path can have come through it.
    let other = || cluster[2].metric("attic_node_mesh_bulk_received_bytes");
    assert_eq!(other(), Some(0.0));
    // Who reaches both sites can hand it on.
    realise(&cluster, 0, &[&pushed]);
    realise(&cluster, 2, &[&pushed]);
    assert!(other() >= Some(1.0));
    let relayed = is_relayed(&cluster);
    assert!(relayed, "nobody was told to punch holes");
}

/// Whether a hole can be punched depends on the routers. These keep ports where they can, as most do;
/// the outcome is printed.
#[test]
fn nat_sites_that_may_punch_holes_exchange_what_they_have() {
    if !is_root("nat punch") {
        return;
    }
    let cluster = sites("hole-punching = true");
    let pushed = path("nat-punch", 8 << 20);
    cluster[1].push(&[&pushed]).succeeds();
    let start = Instant::now();
    eventually("the other site to know the path", JOINED_MAX, || {
        (status(&cluster[2], &pushed) == 200).then_some(())
    });
    while is_relayed(&cluster) && start.elapsed() < PUNCH_MAX {
        std::thread::sleep(Duration::from_millis(100));
    }
    let punched = !is_relayed(&cluster);
    eprintln!("hole punched: {punched}");
    if punched {
        let counted = |node: usize| cluster[node].metric("attic_node_mesh_holes_punched");
        eventually("a node to count the hole", CONNECTED_MAX, || {
            (counted(1) >= Some(1.0) || counted(2) >= Some(1.0)).then_some(())
        });
    } else {
        realise(&cluster, 0, &[&pushed]);
    }
    realise(&cluster, 2, &[&pushed]);
    assert!(cluster[2].metric("attic_node_mesh_bulk_received_bytes") >= Some(1.0));
}

/// A router may let a port in. That it does, and under which address, a node learns from others; the
/// node in the other site learns that its router does not.
#[test]
fn nat_a_forwarded_port_is_found_by_asking_others() {
    if !is_root("nat autonat") {
        return;
    }
    let cluster = Cluster::in_sites(3, "[mesh]\nmdns = false\nautonat = true\n");
    cluster.sites().forward(1);
    let ticket = cluster.invite(0, &["--write", "*", "--uses", "2"]);
    for node in [1, 2] {
        cluster.join(node, &ticket).succeeds();
        cluster.wait_among(&[0, node]);
    }
    let confirmed = |node: usize| cluster[node].metric("attic_node_mesh_addresses_confirmed");
    eventually("the address to be tried", CONFIRMED_MAX, || {
        (confirmed(1) >= Some(1.0)).then_some(())
    });
    // Whoever tried it knows from then on where to find the node.
    let outer = format!("/ip4/{}/tcp/7746", cluster.sites().outer_address(1));
    let file = cluster[0].data_dir().join("cluster/peers");
    eventually("the address to be remembered", REMEMBERED_MAX, || {
        let text = fs::read_to_string(&file).ok()?;
        text.contains(&outer).then_some(())
    });
    assert_eq!(confirmed(2), Some(0.0));
    cluster.wait_among(&[0, 1]);
    cluster.wait_among(&[0, 2]);
}

/// Three tries, and what they take on a busy machine.
const PUNCH_MAX: Duration = Duration::from_secs(30);
const CONNECTED_MAX: Duration = Duration::from_secs(30);
/// An address is tried every five seconds, and the first may be another.
const CONFIRMED_MAX: Duration = Duration::from_secs(60);
/// A node writes down whom it reached every 15 seconds.
const REMEMBERED_MAX: Duration = Duration::from_secs(60);
