//! Row C1: how nodes come and go.

use std::time::{Duration, Instant};

use attic_node_core::api::PeerState;
use rustix::process::{Signal, kill_process};

use testnet::cluster::Cluster;
use testnet::program::{eventually, is_root};

use super::{HEALED_MAX, JOINED_MAX, VISIBLE_MAX, all_answer, path, realise, status};

#[test]
fn c1_a_late_node_serves_what_the_cluster_has() {
    if !is_root("c1 late") {
        return;
    }
    let mut cluster = Cluster::joined(3);
    let paths: Vec<String> = (0..20)
        .map(|number| path(&format!("c1-late-{number}"), 200_000))
        .collect();
    cluster[0].push(&paths).succeeds();
    // Not the node that was given them lets it in, and that one is gone by then.
    let ticket = cluster.invite(0, &["--open"]);
    let pushed = (Instant::now(), VISIBLE_MAX);
    all_answer(&cluster, &[1, 2], &paths[19], 200, pushed);
    let all: Vec<&str> = paths.iter().map(String::as_str).collect();
    realise(&cluster, 1, &all);
    cluster[0].kill();
    let late = cluster.add();
    let joined = cluster.join(late, &ticket).succeeds();
    assert!(joined.stdout.contains("extra-substituters ="), "{joined}");
    let since = (Instant::now(), JOINED_MAX);
    for path in &paths {
        all_answer(&cluster, &[late], path, 200, since);
    }
    realise(&cluster, late, &all);
    cluster.wait_connected(&[1, 2, late]);

    // It is a member from now on, without the ticket.
    cluster[late].kill();
    cluster[late].start_again();
    cluster.wait_connected(&[1, 2, late]);
    // It may read, and was not invited to write.
    let own = path("c1-late-own", 1000);
    cluster[late].push(&[&own]).fails();
    assert_eq!(status(&cluster[1], &own), 404);
}

/// Where no node runs, `join` becomes one; it stays if it was let in, and only then.
#[test]
fn c1_join_starts_a_node_where_none_runs() {
    if !is_root("c1 start") {
        return;
    }
    let mut cluster = Cluster::new(2);
    let ticket = cluster.invite(0, &[]);
    let brief = cluster.invite(0, &["--expires", "1s"]);
    let made = Instant::now();
    cluster[1].kill();
    // Its old address would pass for the one of the node that is to start.
    let _ = std::fs::remove_file(cluster[1].data_dir().join("address"));
    eventually("the ticket to expire", JOINED_MAX, || {
        (made.elapsed() > Duration::from_secs(2)).then_some(())
    });
    let late = cluster[1].cli().run(&["join", &brief]).exits_with(1);
    late.says("Serving on").says("hint: ask for a new ticket");
    let address = cluster[1].data_dir().join("address");
    assert!(!address.exists(), "the node stopped");
    let join = cluster[1].cli().start(&["join", &ticket]);
    join.wait_until_it_says("Joined cluster", JOINED_MAX);
    eventually("the other node to be connected", JOINED_MAX, || {
        (cluster.connected(0).len() == 1).then_some(())
    });
    kill_process(join.pid(), Signal::TERM).expect("signal the node");
    let ended = join.wait().succeeds();
    ended.says("Joined cluster").says("Stopping");
    cluster[1].start_again();
    cluster.wait_connected(&[0, 1]);
}

/// A cache of the cluster takes the place of an empty one of its name, and leaves one that is in use
/// alone under another name.
#[test]
fn c1_joining_keeps_the_paths_that_a_node_has() {
    if !is_root("c1 names") {
        return;
    }
    let cluster = Cluster::new(3);
    let own = path("c1-own", 1000);
    cluster[2].push(&[&own]).succeeds();
    let (key, own_key) = (cluster[0].public_key("main"), cluster[2].public_key("main"));
    let ticket = cluster.invite(0, &["--uses", "2"]);
    cluster.join(1, &ticket).succeeds().says("had no paths");
    let renamed = cluster.join(2, &ticket).succeeds();
    renamed.says("your cache \"main\" is \"main-local\" now");
    for node in 0..3 {
        assert_eq!(cluster[node].public_key("main"), key);
    }
    assert_eq!(cluster[2].public_key("main-local"), own_key);
    let target = format!("/main-local/{}.narinfo", testnet::served::hash_part(&own));
    let local = cluster[2].get(&target).expect("the node answers");
    assert_eq!(local.status, 200);
    assert_eq!(
        status(&cluster[2], &own),
        404,
        "it was in no cache of the cluster"
    );
    let nix = cluster.nix(2, "main-local");
    nix.run("nix-store", &["--realise", &own]).succeeds();
}

/// A node that leaves takes what it has with it, and the others do without.
#[test]
fn c1_a_node_that_leaves_keeps_what_it_has() {
    if !is_root("c1 leave") {
        return;
    }
    let cluster = Cluster::joined(3);
    let (had, only_here) = (path("c1-had", 1 << 20), path("c1-only-here", 1 << 20));
    cluster[0].push(&[&had]).succeeds();
    cluster[2].push(&[&only_here]).succeeds();
    let pushed = (Instant::now(), VISIBLE_MAX);
    all_answer(&cluster, &[2], &had, 200, pushed);
    realise(&cluster, 2, &[&had]);
    // What was pushed just now is handed over as well.
    let just_now = path("c1-just-now", 1 << 20);
    cluster[2].push(&[&just_now]).succeeds();
    let reply = cluster[2].cli().json(&["leave", "--no-confirm"]);
    assert_eq!(reply["only_here"], 0, "{reply}");
    cluster.wait_connected(&[0, 1]);
    let left = cluster[2].cli().run(&["cluster", "info"]);
    left.exits_with(1).says("hint: make one with");
    realise(&cluster, 2, &[&had]);
    // What only it held was handed over before.
    realise(&cluster, 1, &[&only_here, &just_now]);
    let after = path("c1-after", 1 << 20);
    cluster[0].push(&[&after]).succeeds();
    let pushed = (Instant::now(), VISIBLE_MAX);
    all_answer(&cluster, &[1], &after, 200, pushed);
    assert_eq!(status(&cluster[2], &after), 404);
    // The key of the cluster's cache stayed behind.
    let pushed = cluster[2].push(&[&path("c1-without-key", 1000)]);
    let wanted = "this node does not have the key of cache main";
    pushed.exits_with(1).says(wanted);
}

/// Who leaves says so: it is no member any more, is listed as one that left until its certificate ends,
/// and is a member again when it comes back.
#[test]
fn c1_who_left_is_listed_as_that_and_not_counted() {
    if !is_root("c1 left") {
        return;
    }
    let mut cluster = Cluster::joined(3);
    let id = cluster[2].id();
    let seen = |cluster: &Cluster, node: usize| {
        let peers = cluster.peers(node).into_iter();
        { peers }.find(|peer| peer.node.to_string() == id)
    };
    let is_left = |cluster: &Cluster, node: usize| {
        eventually("the node to be listed as left", VISIBLE_MAX, || {
            let peer = seen(cluster, node)?;
            matches!(peer.state, PeerState::Left { .. }).then_some(())
        });
        assert_eq!(cluster.view(node).members, 2);
        let status = cluster[node].cli().json(&["status"]);
        assert_eq!(status["cluster"]["members"], 2, "{status}");
        let shown = cluster[node].cli().json(&["peers"]);
        let mut shown = shown.as_array().expect("a list").iter();
        let shown = shown.find(|peer| peer["node"] == *id).expect("listed");
        assert_eq!(shown["state"], "left");
        cluster[node].cli().run(&["peers"]).succeeds().says("left");
    };
    cluster[2].cli().run(&["leave", "--no-confirm"]).succeeds();
    for node in [0, 1] {
        is_left(&cluster, node);
    }
    // The one that stays a member and is not there is away.
    cluster[1].kill();
    eventually("the other to be away", HEALED_MAX, || {
        let peers = cluster.peers(0);
        let mut states = peers.iter().map(|peer| &peer.state);
        states
            .any(|state| matches!(state, PeerState::Away { .. }))
            .then_some(())
    });
    assert_eq!(cluster.view(0).members, 2);
    cluster[1].start_again();
    cluster.wait_connected(&[0, 1]);
    is_left(&cluster, 1);

    let ticket = cluster.invite(0, &["--write", "*"]);
    cluster.join(2, &ticket).succeeds();
    assert_eq!(cluster[2].id(), id, "it is who it was");
    cluster.wait_connected(&[0, 1, 2]);
    for node in 0..3 {
        eventually("three members", JOINED_MAX, || {
            (cluster.view(node).members == 3).then_some(())
        });
    }
    cluster[2].kill();
    eventually("the one that came back to be away", HEALED_MAX, || {
        let peer = seen(&cluster, 0)?;
        matches!(peer.state, PeerState::Away { .. }).then_some(())
    });
}

/// Nobody leaves with the cluster's only key by accident, and what nobody takes over is said.
#[test]
fn c1_who_holds_the_cluster_key_leaves_on_purpose_only() {
    if !is_root("c1 leave with the key") {
        return;
    }
    let cluster = Cluster::joined(2);
    let alone = path("c1-alone", 1 << 20);
    let founder = cluster[0].cli();
    let refused = founder.run(&["leave", "--no-confirm"]);
    refused.exits_with(1).says("--delete-cluster-key");
    founder.run(&["cluster", "info"]).succeeds();
    cluster[1].cli().run(&["leave", "--no-confirm"]).succeeds();
    cluster[0].push(&[&alone]).succeeds();
    let left = founder.run(&["leave", "--no-confirm", "--delete-cluster-key"]);
    left.succeeds().says("1 NAR on no other node");
    realise(&cluster, 0, &[&alone]);
}
