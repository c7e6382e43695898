//! Row P15: what was removed is gone, everywhere and for good.

use std::time::Instant;

use testnet::cluster::Cluster;
use testnet::nix::NixClient;
use testnet::program::{eventually, is_root};

use super::{
    HEALED_MAX, REMOVED_MAX, VISIBLE_MAX, all_answer, all_keep_answering, path, realise, status,
    wait_held,
};

const ALL: [usize; 4] = [0, 1, 2, 3];

/// Four nodes that all hold the path themselves.
fn holding(path: &str) -> Cluster {
    let cluster = Cluster::joined(4);
    cluster[0].push(&[path]).succeeds();
    let pushed = (Instant::now(), VISIBLE_MAX);
    all_answer(&cluster, &ALL, path, 200, pushed);
    for node in ALL {
        realise(&cluster, node, &[path]);
    }
    all_know_of_one_path(&cluster);
    cluster
}

/// Waits until the directory of each node has the one path that was pushed: who answers because it
/// asked around need not know it by itself yet, and removes nothing then.
#[track_caller]
fn all_know_of_one_path(cluster: &Cluster) {
    eventually("all nodes to know of the path", HEALED_MAX, || {
        let knows = |node: &usize| cluster.view(*node).paths == 1;
        ALL.iter().all(knows).then_some(())
    });
}

fn remove(cluster: &Cluster, node: usize, path: &str) -> Instant {
    let removed = cluster[node].cli().run(&["rm", "main", path]);
    removed.succeeds().says("1 path removed");
    Instant::now()
}

#[test]
fn p15_a_removed_path_is_gone_on_all_nodes() {
    if !is_root("p15 mesh") {
        return;
    }
    let path = path("p15-all", 1 << 20);
    let cluster = holding(&path);
    // Not by the node that was given it: whoever may write may remove.
    let removed = remove(&cluster, 2, &path);
    assert_eq!(status(&cluster[2], &path), 404);
    all_answer(&cluster, &ALL, &path, 404, (removed, REMOVED_MAX));
    all_keep_answering(&cluster, &ALL, &path, 404);
}

/// What the rest of the closure is needed for may be on other nodes: the one that removes it holds but a
/// part of the cache.
#[test]
fn p15_a_closure_is_removed_as_far_as_no_node_needs_it() {
    if !is_root("p15 closure") {
        return;
    }
    let built = "let dep = run \"p15-dep\" ''head -c 1000 /dev/urandom > $out'';
        own = run \"p15-own\" ''head -c 1000 /dev/urandom > $out'';
        in [ dep own (run \"p15-a\" ''echo ${dep} ${own} > $out'') (run \"p15-b\" ''echo ${dep} > $out'') ]";
    let [dep, own, a, b]: [String; 4] = { NixClient::host().build(built) }
        .try_into()
        .expect("four paths");
    let cluster = Cluster::joined_with_config(3, "[mesh]\nreplicas = 1\n");
    cluster[0].push(&[&a, &b]).succeeds();
    let pushed = (Instant::now(), VISIBLE_MAX);
    for path in [&dep, &own, &a, &b] {
        all_answer(&cluster, &[0, 1, 2], path, 200, pushed);
    }
    eventually("all nodes to know of the paths", HEALED_MAX, || {
        let knows = |node: &usize| cluster.view(*node).paths == 4;
        [1, 2].iter().all(knows).then_some(())
    });
    // It holds one of the two that need `dep`; the other holds none of them.
    realise(&cluster, 1, &[&a]);
    for (node, root, count, gone) in [(1, &a, 2, vec![&a, &own]), (2, &b, 2, vec![&b, &dep])] {
        let removed = cluster[node].cli().run(&["rm", "main", "--closure", root]);
        removed.succeeds().says(&format!("{count} paths removed"));
        let removed = (Instant::now(), REMOVED_MAX);
        for path in gone {
            all_answer(&cluster, &[0, 1, 2], path, 404, removed);
        }
        if node == 1 {
            all_answer(&cluster, &[0, 1, 2], &dep, 200, removed);
            realise(&cluster, 0, &[&b]);
        }
    }
}

#[test]
fn p15_a_node_that_was_cut_off_does_not_bring_a_removed_path_back() {
    if !is_root("p15 partition") {
        return;
    }
    let path = path("p15-cut-off", 1 << 20);
    let mut cluster = holding(&path);
    cluster.network().partition(&[&[3]]);
    let removed = remove(&cluster, 0, &path);
    all_answer(&cluster, &[0, 1, 2], &path, 404, (removed, REMOVED_MAX));
    assert_eq!(status(&cluster[3], &path), 200, "nobody told it");
    cluster.network().heal_all();
    cluster.wait_connected(&ALL);
    let returned = (Instant::now(), REMOVED_MAX);
    all_answer(&cluster, &ALL, &path, 404, returned);
    all_keep_answering(&cluster, &ALL, &path, 404);
}

#[test]
fn p15_a_node_that_was_down_does_not_bring_a_removed_path_back() {
    if !is_root("p15 down") {
        return;
    }
    let path = path("p15-down", 1 << 20);
    let mut cluster = holding(&path);
    cluster[3].kill();
    let removed = remove(&cluster, 1, &path);
    all_answer(&cluster, &[0, 1, 2], &path, 404, (removed, REMOVED_MAX));
    // Nor does the last witness of the removal have to be up all the time.
    cluster[1].kill();
    cluster[3].start_again();
    cluster.wait_connected(&[0, 2, 3]);
    let returned = (Instant::now(), REMOVED_MAX);
    all_answer(&cluster, &[0, 2, 3], &path, 404, returned);
    cluster[1].start_again();
    cluster.wait_connected(&ALL);
    all_keep_answering(&cluster, &ALL, &path, 404);
}

/// A removal by who may not write counts nowhere, so it is refused where it is asked for.
#[test]
fn p15_who_may_not_write_removes_nothing() {
    if !is_root("p15 reader") {
        return;
    }
    let path = path("p15-reader", 1 << 20);
    let cluster = Cluster::new(2);
    let ticket = cluster.invite(0, &[]);
    cluster.join(1, &ticket).succeeds();
    cluster.wait_connected(&[0, 1]);
    cluster[0].push(&[&path]).succeeds();
    let pushed = (Instant::now(), VISIBLE_MAX);
    all_answer(&cluster, &[1], &path, 200, pushed);
    let removed = cluster[1].cli().run(&["rm", "main", &path]);
    removed.exits_with(1).says("may not write main");
    all_keep_answering(&cluster, &[0, 1], &path, 200);
}

#[track_caller]
fn both_know_the_same(cluster: &Cluster) {
    eventually("both to know the same", HEALED_MAX, || {
        let known = |node| {
            let view = cluster.view(node);
            (view.paths, view.log.segments)
        };
        (known(0) == known(1)).then_some(())
    });
}

/// A push of what is there is a push, also of a path that the node itself has said: a removal that does
/// not know of it, on the other side of a partition, does not take the path away.
#[test]
fn p15_a_path_that_was_pushed_again_survives_a_removal_that_crosses_it() {
    if !is_root("p15 crossing") {
        return;
    }
    let path = path("p15-crossing", 1 << 20);
    let mut cluster = Cluster::joined(2);
    cluster[0].push(&[&path]).succeeds();
    let pushed = (Instant::now(), VISIBLE_MAX);
    all_answer(&cluster, &[0, 1], &path, 200, pushed);
    realise(&cluster, 1, &[&path]);
    wait_held(&cluster, 1, 1 << 20);
    // Where it was pushed first, and where it was not.
    for pusher in [0, 1] {
        let remover = 1 - pusher;
        both_know_the_same(&cluster);
        cluster.network().partition(&[&[1]]);
        remove(&cluster, remover, &path);
        assert_eq!(status(&cluster[remover], &path), 404);
        let again = cluster[pusher].push(&[&path]);
        again.succeeds().says("1 already cached");
        // What is answered is kept, whatever becomes of the node until it has told others.
        cluster[pusher].kill();
        cluster[pusher].start_again();
        cluster.network().heal_all();
        cluster.wait_connected(&[0, 1]);
        let healed = (Instant::now(), HEALED_MAX);
        all_answer(&cluster, &[0, 1], &path, 200, healed);
        all_keep_answering(&cluster, &[0, 1], &path, 200);
        realise(&cluster, remover, &[&path]);
        wait_held(&cluster, remover, 1 << 20);
    }
    // And a removal that knows of the pushes is one.
    both_know_the_same(&cluster);
    let removed = remove(&cluster, 1, &path);
    all_answer(&cluster, &[0, 1], &path, 404, (removed, REMOVED_MAX));
    all_keep_answering(&cluster, &[0, 1], &path, 404);
}

/// Removing is no curse: the same path can be pushed again, also by a node that did not yet know.
#[test]
fn p15_a_removed_path_can_be_pushed_again() {
    if !is_root("p15 again") {
        return;
    }
    let path = path("p15-again", 1 << 20);
    let mut cluster = holding(&path);
    let removed = remove(&cluster, 0, &path);
    all_answer(&cluster, &ALL, &path, 404, (removed, REMOVED_MAX));
    cluster[2].push(&[&path]).succeeds();
    let pushed = (Instant::now(), VISIBLE_MAX);
    all_answer(&cluster, &ALL, &path, 200, pushed);

    all_know_of_one_path(&cluster);

    // A push at the same time as the removal, on sides that do not hear each other, survives it.
    cluster.network().partition(&[&[2, 3]]);
    remove(&cluster, 0, &path);
    cluster[3].cli().run(&["rm", "main", &path]).succeeds();
    cluster[3].push(&[&path]).succeeds();
    cluster.network().heal_all();
    cluster.wait_connected(&ALL);
    all_answer(&cluster, &ALL, &path, 200, (Instant::now(), HEALED_MAX));
    all_keep_answering(&cluster, &ALL, &path, 200);
}
