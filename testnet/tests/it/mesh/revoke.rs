//! A node that was shut out.

use std::time::Instant;

use testnet::cluster::Cluster;
use testnet::program::is_root;

use super::{HEALED_MAX, VISIBLE_MAX, all_answer, all_keep_answering, path, realise, status};

/// A revoked node gets nothing: no connection, no news, no bytes, and what it says is not heard.
#[test]
fn a_revoked_node_gets_nothing_and_is_not_heard() {
    if !is_root("revoked") {
        return;
    }
    let mut cluster = Cluster::new(4);
    let ticket = cluster.invite(0, &["--write", "*", "--uses", "10"]);
    for node in [1, 2, 3] {
        cluster.join(node, &ticket).succeeds();
        cluster.wait_writable(node, "main");
    }
    cluster.wait_connected(&[0, 1, 2, 3]);
    let (had, known) = (path("revoked-had", 1 << 20), path("revoked-known", 1 << 20));
    cluster[0].push(&[&had, &known]).succeeds();
    let pushed = (Instant::now(), VISIBLE_MAX);
    all_answer(&cluster, &[1, 2, 3], &had, 200, pushed);
    realise(&cluster, 3, &[&had]);

    let id = cluster[3].id();
    let revoke = ["revoke", &id, "--no-confirm"];
    cluster[0].cli().run(&revoke).succeeds().says(&id);
    cluster.wait_connected(&[0, 1, 2]);
    cluster.wait_connected(&[3]);
    assert!(
        cluster
            .peers(0)
            .iter()
            .all(|peer| peer.node.to_string() != id)
    );

    let later = path("revoked-later", 1 << 20);
    cluster[1].push(&[&later]).succeeds();
    let pushed = (Instant::now(), VISIBLE_MAX);
    all_answer(&cluster, &[0, 1, 2], &later, 200, pushed);
    all_keep_answering(&cluster, &[3], &later, 404);
    let nix = cluster.nix(3, "main");
    nix.run("nix-store", &["--realise", &known]).fails();
    assert!(!nix.has(&known), "it knew of the path, and must not get it");

    // It had the key of the cache, and may have kept it: nobody takes what it signs now.
    let forged = path("revoked-forged", 1 << 20);
    cluster[3].push(&[&forged]);
    all_keep_answering(&cluster, &[0, 1, 2], &forged, 404);

    // A new start or the old ticket do not help it; what it has it keeps.
    cluster[3].kill();
    cluster[3].start_again();
    all_answer(&cluster, &[3], &had, 200, (Instant::now(), HEALED_MAX));
    cluster[3].cli().run(&["leave", "--no-confirm"]).succeeds();
    let joined = cluster.join(3, &ticket).exits_with(1).says("revoked");
    assert!(!joined.stderr.contains("hint: ask for"), "{joined}");
    assert_eq!(status(&cluster[3], &later), 404);
    cluster.wait_connected(&[0, 1, 2]);
}

/// Who made the cluster does not take itself out of it by mistake: nobody could let anybody in again.
#[test]
fn a_node_cannot_revoke_itself() {
    if !is_root("revoke itself") {
        return;
    }
    let cluster = Cluster::joined(2);
    let revoke = ["revoke", &cluster[0].id(), "--no-confirm"];
    let revoked = cluster[0].cli().run(&revoke);
    revoked.exits_with(1).says("this is the node itself");
    cluster.wait_connected(&[0, 1]);
}

/// Only the node that made the cluster can revoke.
#[test]
fn a_member_cannot_revoke() {
    if !is_root("revoke by a member") {
        return;
    }
    let cluster = Cluster::joined(3);
    let revoke = ["revoke", &cluster[2].id(), "--no-confirm"];
    let revoked = cluster[1].cli().run(&revoke);
    revoked
        .exits_with(1)
        .says("hint: only the node that made the cluster can");
    cluster.wait_connected(&[0, 1, 2]);
}
