//! Caches of one name, and nodes that come back.

use std::collections::BTreeMap;
use std::time::Instant;

use attic_node_core::api::CacheView;
use serde_json::Value;

use testnet::cluster::Cluster;
use testnet::program::{eventually, is_root};
use testnet::served::hash_part;

use super::{HEALED_MAX, JOINED_MAX, VISIBLE_MAX, all_answer, path};

/// The caches of a node that are called `name` in the cluster: public key to name on the node.
#[track_caller]
fn called(cluster: &Cluster, node: usize, name: &str) -> BTreeMap<String, String> {
    let caches = cluster.view(node).caches.into_iter();
    let called = caches.filter(|cache| {
        let founded = cache.founded_as.as_ref().unwrap_or(&cache.name);
        founded.as_str() == name
    });
    called
        .map(|cache| (cache.public_keys[0].clone(), cache.name.to_string()))
        .collect()
}

/// How a node answers for the narinfo of a path in a cache.
#[track_caller]
fn answer(cluster: &Cluster, node: usize, cache: &str, path: &str) -> u16 {
    let target = format!("/{cache}/{}.narinfo", hash_part(path));
    cluster[node].get(&target).expect("the node answers").status
}

#[track_caller]
fn push(cluster: &Cluster, node: usize, cache: &str, path: &str) {
    cluster[node].cli().run(&["push", cache, path]).succeeds();
}

/// Both halves of a partition make a cache `bar`: afterwards all nodes serve and write both.
#[test]
fn c9_caches_of_one_name_from_both_sides_of_a_partition_are_both_served() {
    if !is_root("c9 names") {
        return;
    }
    let mut cluster = Cluster::joined(3);
    cluster.network().partition(&[&[2]]);
    let paths = [path("c9-bar-0", 1000), path("c9-bar-2", 1000)];
    for (node, path) in [0, 2].into_iter().zip(&paths) {
        let create = ["cache", "create", "bar"];
        cluster[node].cli().run(&create).succeeds();
        push(&cluster, node, "bar", path);
    }
    let keys = [0, 2].map(|node| cluster[node].public_key("bar"));
    cluster.network().heal_all();
    cluster.wait_connected(&[0, 1, 2]);
    let both = |cluster: &Cluster| -> Vec<BTreeMap<String, String>> {
        let wanted: Vec<&String> = BTreeMap::from_iter(keys.iter().map(|key| (key, ())))
            .into_keys()
            .collect();
        let known = |node| {
            eventually("both caches to be served", HEALED_MAX, || {
                let found = called(cluster, node, "bar");
                found.keys().eq(wanted.iter().copied()).then_some(found)
            })
        };
        (0..3).map(known).collect()
    };
    let names = both(&cluster);
    assert_eq!(names[0][&keys[0]], "bar", "who made it has it as it was");
    assert_eq!(names[2][&keys[1]], "bar");
    for node in 0..3 {
        for (key, path) in keys.iter().zip(&paths) {
            let name = &names[node][key];
            eventually("the path to be known", HEALED_MAX, || {
                (answer(&cluster, node, name, path) == 200).then_some(())
            });
            let nix = cluster.nix(node, name);
            nix.run("nix-store", &["--realise", path]).succeeds();
            nix.verify_store();
            assert_eq!(cluster[node].public_key(name), *key);
        }
        let other = names[node].values().find(|name| *name != "bar");
        let other = other.expect("one of two");
        assert!(
            other.len() == "bar-".len() + 8 && other.starts_with("bar-"),
            "{other}"
        );
        let cli = cluster[node].cli();
        let tells = format!("{other} is the cluster's \"bar\"");
        cli.run(&["status"]).succeeds().says(&tells);
        cli.run(&["cache", "list"]).succeeds().says(&tells);
        let info = cli.run(&["cluster", "info"]).succeeds();
        info.says(&format!("{other} (public"))
            .says("the cluster's \"bar\"");
        let info = cli.run(&["cache", "info", other]).succeeds();
        info.says("Cluster: shared, as bar");
    }
    // Each is written where it has the other name, and where it is nobody's own.
    for (key, writer) in [(&keys[0], 2), (&keys[1], 0), (&keys[0], 1), (&keys[1], 1)] {
        let name = &names[writer][key];
        cluster.wait_writable(writer, name);
        let pushed = path(&format!("c9-bar-{writer}-{name}"), 1000);
        push(&cluster, writer, name, &pushed);
        for (node, names) in names.iter().enumerate() {
            for (other, name) in names {
                let wanted = if other == key { 200 } else { 404 };
                eventually("the path in its cache alone", VISIBLE_MAX, || {
                    (answer(&cluster, node, name, &pushed) == wanted).then_some(())
                });
            }
        }
    }
    for node in 0..3 {
        cluster[node].kill();
        cluster[node].start_again();
    }
    // A node answers before it is in its cluster again.
    cluster.wait_connected(&[0, 1, 2]);
    assert_eq!(both(&cluster), names, "for good");
}

/// Who leaves and comes back finds the same caches under the same names, time and again, with what was
/// and what came meanwhile.
#[test]
fn c1_who_comes_back_has_the_same_caches() {
    if !is_root("c1 back") {
        return;
    }
    let mut cluster = Cluster::joined(3);
    let view = cluster[0].cli().json(&["cluster", "info"]);
    assert_eq!(view["members"], 3, "{view}");
    for (node, name) in [(0, "foo"), (1, "mine")] {
        let create = ["cache", "create", name];
        cluster[node].cli().run(&create).succeeds();
    }
    cluster.wait_writable(1, "foo");
    cluster.wait_writable(0, "mine");
    let names = |cluster: &Cluster| -> Vec<(String, String)> {
        let caches: Vec<CacheView> = cluster[1].ask("caches");
        let named = caches.into_iter();
        named
            .map(|cache| (cache.name.to_string(), cache.public_key))
            .collect()
    };
    let before = names(&cluster);
    assert_eq!(before.len(), 3, "{before:?}");
    let had = path("c1-back-had", 1000);
    for cache in ["foo", "main", "mine"] {
        push(&cluster, 1, cache, &had);
    }
    all_answer(&cluster, &[0, 2], &had, 200, (Instant::now(), VISIBLE_MAX));
    for round in 0..3 {
        let leave = cluster[1].cli().json(&["leave", "--no-confirm"]);
        assert_eq!(leave["only_here"], 0, "{leave}");
        let (own, theirs) = (format!("c1-back-own-{round}"), format!("c1-back-{round}"));
        let (own, theirs) = (path(&own, 1000), path(&theirs, 1000));
        push(&cluster, 1, "mine", &own);
        for cache in ["foo", "main"] {
            push(&cluster, 0, cache, &theirs);
        }
        let ticket = cluster.invite(0, &["--write", "*"]);
        let joined = cluster[1].cli().json(&["join", &ticket]);
        let none = Value::Array(Vec::new());
        assert_eq!((&joined["renamed"], &joined["dropped"]), (&none, &none));
        let told = joined["caches"].as_array().expect("a list");
        assert_eq!(told.len(), 3, "{joined}");
        assert_eq!(names(&cluster), before);
        if round == 1 {
            cluster[1].kill();
            cluster[1].start_again();
        }
        cluster.wait_connected(&[0, 1, 2]);
        for (cache, new) in [("foo", &theirs), ("main", &theirs), ("mine", &own)] {
            for path in [&had, new] {
                for node in [0, 1, 2] {
                    eventually("old and new paths", JOINED_MAX, || {
                        (answer(&cluster, node, cache, path) == 200).then_some(())
                    });
                }
                let nix = cluster.nix(2, cache);
                nix.run("nix-store", &["--realise", path]).succeeds();
            }
            cluster.wait_writable(1, cache);
        }
        assert_eq!(cluster.view(0).caches.len(), 3);
        assert_eq!(names(&cluster), before);
    }
}

/// A node that has just made its cluster is the member of it.
#[test]
fn c1_who_makes_a_cluster_is_counted_at_once() {
    let cluster = Cluster::new(1);
    cluster[0].cli().run(&["cluster", "init"]).succeeds();
    assert_eq!(cluster.view(0).members, 1);
    let status = cluster[0].cli().json(&["status"]);
    assert_eq!(status["cluster"]["members"], 1, "{status}");
}
