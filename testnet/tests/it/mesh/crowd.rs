//! Many want the same at once.

use std::thread;
use std::time::Instant;

use testnet::cluster::Cluster;
use testnet::http::{Connection, Request};
use testnet::program::is_root;
use testnet::served::{hash_part, narinfo_fields};

use super::{VISIBLE_MAX, all_answer, moved, path, read_whole, realise};

/// S10: five nodes are asked for a path that one node holds, all at once, one of them by real Nix.
/// They find each other at the holder and trade: it sends three times what was asked for at most, not five
/// times.
#[test]
fn s10_what_five_nodes_want_at_once_is_traded_among_them() {
    if !is_root("s10 crowd") {
        return;
    }
    let mut cluster = Cluster::joined(6);
    let path = path("s10-crowd", LEN as usize);
    // Slow enough for the network, not this machine, to be what they share.
    (0..6).for_each(|host| cluster.network().limit(host, Some(UPLINK)));
    cluster[0].push(&[&path]).succeeds();
    let pushed = (Instant::now(), VISIBLE_MAX);
    all_answer(&cluster, &[0, 1, 2, 3, 4, 5], &path, 200, pushed);

    let (cluster, path) = (&cluster, &*path);
    thread::scope(|scope| {
        for node in 1..5 {
            scope.spawn(move || read_whole(cluster, node, path));
        }
        scope.spawn(|| realise(cluster, 5, &[path]));
    });
    let sent: Vec<u64> = (0..6).map(|node| moved(cluster, node).0).collect();
    let received: Vec<u64> = (1..6).map(|node| moved(cluster, node).1).collect();
    eprintln!("{LEN} bytes, sent {sent:?}, received {received:?}");
    assert!(sent[0] <= 3 * LEN, "the holder sent {}", sent[0]);
    let traded: u64 = sent[1..].iter().sum();
    assert!(traded >= 2 * LEN, "the others sent {traded}");
}

/// S9: clients of one node share one download, and whoever leaves takes nothing from the others.
#[test]
fn s9_clients_of_a_node_share_one_download() {
    if !is_root("s9 clients") {
        return;
    }
    let mut cluster = Cluster::joined_with_config(2, ONE_COPY);
    let path = path("s9-clients", LEN as usize / 2);
    cluster.network().limit(0, Some(UPLINK));
    cluster[0].push(&[&path]).succeeds();
    let pushed = (Instant::now(), VISIBLE_MAX);
    all_answer(&cluster, &[1], &path, 200, pushed);

    let (cluster, path) = (&cluster, &*path);
    let narinfo = format!("/main/{}.narinfo", hash_part(path));
    let fields = narinfo_fields(&cluster[1].get(&narinfo).expect("an answer").text());
    let nar = format!("/main/{}", fields["URL"]);
    let leave = || {
        let mut client = Connection::open(cluster[1].address()).expect("connect");
        let request = format!("GET {nar} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        client.send_raw(request.as_bytes()).expect("ask");
        client.read_head().expect("a head");
        client.skip_body(1 << 20).expect("some of the body");
    };
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| read_whole(cluster, 1, path));
        }
        scope.spawn(|| cluster[1].place().enter(leave));
    });
    let size: u64 = fields["FileSize"].parse().expect("a size");
    let (_, received) = moved(cluster, 1);
    assert!(received < size + size / 10, "{received} of {size}");
    let landed = cluster[1].metric("attic_node_mesh_flights_landed");
    assert_eq!(landed, Some(1.0));
}

/// What nobody holds any more but those who fetched it is had from them, and a part of it as well.
#[test]
fn s9_a_range_of_what_is_on_its_way_is_the_same_bytes() {
    if !is_root("s9 ranges") {
        return;
    }
    let mut cluster = Cluster::joined_with_config(2, ONE_COPY);
    let path = path("s9-ranges", LEN as usize / 4);
    cluster.network().limit(0, Some(UPLINK));
    cluster[0].push(&[&path]).succeeds();
    let pushed = (Instant::now(), VISIBLE_MAX);
    all_answer(&cluster, &[1], &path, 200, pushed);
    let narinfo = format!("/main/{}.narinfo", hash_part(&path));
    let fields = narinfo_fields(&cluster[1].get(&narinfo).expect("an answer").text());
    let nar = format!("/main/{}", fields["URL"]);
    let whole = cluster[0].get(&nar).expect("an answer").body;
    let middle = whole.len() / 2;
    let range = format!("bytes={middle}-{}", middle + 100_000);
    let request = Request::get(&nar).header("Range", &range);
    let address = cluster[1].address();
    let part = cluster[1].place().enter(|| request.send(address));
    let part = part.expect("an answer");
    assert_eq!(part.status, 206);
    assert!(part.body == whole[middle..=middle + 100_000]);
}

const LEN: u64 = 64 << 20;
/// Bytes a second that a host sends, and receives.
const UPLINK: u64 = 30_000_000;
/// Nothing moves but what is asked for.
const ONE_COPY: &str = "[mesh]\nreplicas = 1\n";
