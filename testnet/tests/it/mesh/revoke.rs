//! A node that was shut out.

use std::time::Instant;

use serde_json::Value;
use testnet::cluster::Cluster;
use testnet::program::{eventually, is_root};
use testnet::served::hash_part;

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
    cluster.join(3, &ticket).exits_with(1).says("withdrawn");
    assert_eq!(cluster[3].id(), id);
    assert_eq!(status(&cluster[3], &later), 404);
    cluster.wait_connected(&[0, 1, 2]);
}

/// What a node says of its own revocation, once that is proven and all of `tellers` refused it.
fn shut_out(cluster: &Cluster, node: usize, tellers: &[usize]) -> Value {
    let mut wanted: Vec<String> = tellers.iter().map(|node| cluster[*node].id()).collect();
    wanted.sort();
    eventually("the node to know that it is out", HEALED_MAX, || {
        let status = cluster[node].cli().json(&["status"]);
        let revoked = status["cluster"]["revoked"].clone();
        let said_by = revoked["said_by"].as_array()?;
        let said_by = said_by.iter().filter_map(|teller| teller["node"].as_str());
        let mut said_by: Vec<String> = said_by.map(str::to_owned).collect();
        said_by.sort();
        (revoked["proven_at"].is_u64() && said_by == wanted).then_some(revoked)
    })
}

/// A revoked node went on calling its certificate good, and could come back under no circumstances.
#[test]
fn a_revoked_node_says_so_and_a_new_ticket_lets_it_in_as_another() {
    if !is_root("revoked and back") {
        return;
    }
    let mut cluster = Cluster::joined(3);
    assert!(cluster[2].cli().json(&["status"])["cluster"]["revoked"].is_null());
    eventually("the others to be known by name", HEALED_MAX, || {
        let peers = cluster.peers(2);
        let known = peers.iter().all(|peer| peer.name.is_some());
        (peers.len() == 2 && known).then_some(())
    });
    let id = cluster[2].id();
    let revoke = ["revoke", &id, "--no-confirm"];
    let revoked = cluster[0].cli().run(&revoke).succeeds();
    revoked.says("1 ticket by which it came");
    let said = shut_out(&cluster, 2, &[0, 1]);
    assert!(said["said_by"][0]["name"].is_string(), "{said}");
    let tells_it = |cluster: &Cluster| {
        for line in [&["status"][..], &["cluster", "info"]] {
            let shown = cluster[2].cli().run(line).succeeds();
            shown
                .says("Certificate: revoked at")
                .says("the cluster's key signed it");
        }
        let info = cluster[2].cli().json(&["cluster", "info"]);
        assert_eq!(info["revoked"]["proven_at"], said["proven_at"]);
    };
    tells_it(&cluster);
    let peers = cluster[2].cli().run(&["peers"]).succeeds();
    peers.says("it says that this node is revoked");
    // The others do not say it of themselves.
    for node in [0, 1] {
        let info = cluster[node].cli().json(&["cluster", "info"]);
        assert!(info.get("revoked").is_none(), "{info}");
    }

    // It knows after a start, though nobody is there to tell it.
    eventually("the revocation to be in its log", HEALED_MAX, || {
        (cluster.view(2).members == 2).then_some(())
    });
    cluster[0].kill();
    cluster[1].kill();
    cluster[2].stop();
    cluster[2].start_again();
    shut_out(&cluster, 2, &[]);
    tells_it(&cluster);
    cluster[0].start_again();
    cluster[1].start_again();
    cluster.wait_connected(&[0, 1]);

    let ticket = cluster.invite(0, &["--write", "main"]);
    let leave = ["leave", "--no-confirm"];
    cluster
        .join(2, &ticket)
        .exits_with(1)
        .says("in this cluster already");
    cluster[2].cli().run(&leave).succeeds();
    let joined = cluster.join(2, &ticket).succeeds();
    joined.says("it has another id now");
    assert_ne!(cluster[2].id(), id);
    cluster.wait_connected(&[0, 1, 2]);
    cluster.wait_writable(2, "main");
    let after = path("revoked-and-back", 1 << 20);
    cluster[2].push(&[&after]).succeeds();
    all_answer(
        &cluster,
        &[0, 1],
        &after,
        200,
        (Instant::now(), VISIBLE_MAX),
    );

    // It stays who it is, and the other one stays out.
    let id = cluster[2].id();
    cluster[2].kill();
    cluster[2].start_again();
    assert_eq!(cluster[2].id(), id);
    cluster.wait_connected(&[0, 1, 2]);
    let status = cluster[2].cli().json(&["status"]);
    assert!(status["cluster"]["revoked"].is_null(), "{status}");
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

/// A cache that a revoked node made has keys that only this node could replace. Who holds the cluster's
/// key ends it, for all, and its name is free for another.
#[test]
fn a_cache_of_a_revoked_node_is_ended_by_who_holds_the_cluster_key() {
    if !is_root("orphaned") {
        return;
    }
    let mut cluster = Cluster::joined(4);
    cluster[3]
        .cli()
        .run(&["cache", "create", "tools"])
        .succeeds();
    let made = path("orphaned", 1000);
    cluster[3].cli().run(&["push", "tools", &made]).succeeds();
    let target = format!("/tools/{}.narinfo", hash_part(&made));
    let answer = |cluster: &Cluster, node: usize| {
        let answer = cluster[node].get(&target).expect("the node answers");
        answer.status
    };
    for node in [0, 1, 2] {
        eventually("the path to be there", HEALED_MAX, || {
            (answer(&cluster, node) == 200).then_some(())
        });
    }
    let destroy = ["cache", "destroy", "tools", "--no-confirm"];
    let refused = cluster[0].cli().run(&destroy).exits_with(1);
    refused.says("another node of the cluster owns this cache");
    // One member does not hear of what comes now until all of it is over.
    cluster.network().cut(2);
    let revoked = cluster[0]
        .cli()
        .run(&["revoke", &cluster[3].id(), "--no-confirm"]);
    let revoked = revoked.succeeds().says("it made the cache \"tools\"");
    revoked.says("attic-node cache destroy tools");
    let old = cluster[0].public_key("tools");
    let rotate = ["key", "rotate", "tools", "--no-confirm"];
    let refused = cluster[0].cli().run(&rotate).exits_with(1);
    refused.says("the node that made this cache is revoked");
    eventually("a member to hear of it", HEALED_MAX, || {
        let refused = cluster[1].cli().run(&destroy).exits_with(1);
        let said = "the node that made this cache is revoked";
        refused.stderr.contains(said).then_some(())
    });
    cluster[0].cli().run(&destroy).succeeds();
    cluster[0]
        .cli()
        .run(&["cache", "create", "tools"])
        .succeeds();
    let new = cluster[0].public_key("tools");
    assert_ne!(old, new);
    cluster.network().heal_all();
    cluster.wait_connected(&[0, 1, 2]);
    for node in [0, 1, 2] {
        let what = format!("node {node} to have the other cache");
        eventually(&what, HEALED_MAX, || {
            let shown = cluster[node].cli().run(&["key", "show", "tools"]);
            (shown.stdout.trim() == new).then_some(())
        });
        assert_eq!(answer(&cluster, node), 404, "node {node}");
    }
    cluster.wait_writable(1, "tools");
    cluster[1].cli().run(&["push", "tools", &made]).succeeds();
    for node in [0, 1, 2] {
        eventually("what was pushed again to be there", HEALED_MAX, || {
            (answer(&cluster, node) == 200).then_some(())
        });
    }
}
