//! Bit rot in the logs of the cluster that a node keeps.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use testnet::cluster::Cluster;
use testnet::node::TestNode;
use testnet::program::{eventually, is_root};
use testnet::served::Served;

use super::{HEALED_MAX, VISIBLE_MAX, all_answer, path};

/// The log files of a node, by name: one for each node of the cluster.
fn logs(node: &TestNode) -> Vec<(String, PathBuf)> {
    let dir = fs::read_dir(node.data_dir().join("cluster/log")).expect("read the logs");
    let files = dir.map(|entry| entry.expect("an entry"));
    let mut files: Vec<_> = files
        .map(|entry| {
            (
                entry.file_name().to_string_lossy().into_owned(),
                entry.path(),
            )
        })
        .collect();
    files.sort();
    files
}

/// Flips a bit in every part of a file.
fn rot(file: &PathBuf) {
    let mut bytes = fs::read(file).expect("read a log");
    let len = bytes.len();
    (1..8).for_each(|part| bytes[len * part / 8] ^= 0x10);
    fs::write(file, bytes).expect("write a log");
}

/// A node whose disk bent bits in the logs, those of the others and its own, is whole again once it
/// has met one other node, and says what it has to say without being taken for a forger.
#[test]
fn bit_rot_in_the_logs_of_a_stopped_node_is_healed_by_its_peers() {
    if !is_root("bit rot") {
        return;
    }
    let mut cluster = Cluster::joined(3);
    let mut paths = Vec::new();
    for round in 0..6 {
        let pushed = path(&format!("rot-{round}"), 20_000);
        cluster[round % 3].push(&[&pushed]).succeeds();
        all_answer(
            &cluster,
            &[0, 1, 2],
            &pushed,
            200,
            (Instant::now(), VISIBLE_MAX),
        );
        paths.push(pushed);
    }
    cluster[1].stop();
    let files = logs(&cluster[1]);
    assert_eq!(files.len(), 3);
    files.iter().for_each(|(_, file)| rot(file));
    cluster[1].start_again();
    cluster.wait_connected(&[0, 1, 2]);
    let since = (Instant::now(), HEALED_MAX);
    for path in &paths {
        all_answer(&cluster, &[1], path, 200, since);
    }
    // It writes again, and everybody believes it.
    let own = path("rot-own", 20_000);
    cluster[1].push(&[&own]).succeeds();
    all_answer(
        &cluster,
        &[0, 1, 2],
        &own,
        200,
        (Instant::now(), HEALED_MAX),
    );
    // Bytes for bytes what the others have.
    let others = logs(&cluster[0]);
    eventually("the logs to be equal", EQUAL_MAX, || {
        let same = logs(&cluster[1]).into_iter().zip(&others);
        let same = { same }.all(|((_, mine), (_, theirs))| {
            fs::read(mine).expect("read") == fs::read(theirs).expect("read")
        });
        same.then_some(())
    });
    for node in 0..3 {
        assert_eq!(
            cluster[node].metric("attic_node_mesh_log_damaged"),
            Some(0.0)
        );
        let log = cluster[node].log();
        assert!(
            !log.contains("misbehaves") && !log.contains("quarantine"),
            "{log}"
        );
    }
}

/// Bytes flipped under a running node are not served, and the next start finds them.
#[test]
fn bit_rot_that_is_older_than_the_last_start_costs_no_path() {
    if !is_root("old bit rot") {
        return;
    }
    let mut cluster = Cluster::joined(2);
    let pushed = path("rot-first", 20_000);
    cluster[0].push(&[&pushed]).succeeds();
    all_answer(&cluster, &[1], &pushed, 200, (Instant::now(), VISIBLE_MAX));
    // Alone with a damaged log of its own it keeps silent, however often it starts.
    cluster[1].kill();
    cluster.network().cut(1);
    let files = logs(&cluster[1]);
    files.iter().for_each(|(_, file)| rot(file));
    for _ in 0..2 {
        cluster[1].start_again();
        let own = path("rot-alone", 1000);
        cluster[1].push(&[&own]).succeeds();
        cluster[1].kill();
    }
    cluster.network().heal(1);
    cluster[1].start_again();
    cluster.wait_connected(&[0, 1]);
    let since = (Instant::now(), HEALED_MAX);
    all_answer(&cluster, &[1], &pushed, 200, since);
    let after = path("rot-after", 20_000);
    cluster[1].push(&[&after]).succeeds();
    all_answer(&cluster, &[0], &after, 200, (Instant::now(), HEALED_MAX));
}

/// Until gossip and comparisons have brought everything to everybody.
const EQUAL_MAX: Duration = Duration::from_secs(180);

/// G8: what a verification finds damaged comes again from the cluster, and only then is the node clean.
#[test]
fn g8_verify_repair_fetches_what_is_damaged_from_peers() {
    if !is_root("g8 repair") {
        return;
    }
    let cluster = Cluster::joined(2);
    let (kept, lost) = (path("g8-repair", 6 << 20), path("g8-repair-lost", 6 << 20));
    cluster[0].push(&[&kept]).succeeds();
    all_answer(&cluster, &[1], &kept, 200, (Instant::now(), VISIBLE_MAX));
    super::realise(&cluster, 1, &[&kept]);
    // In a cache of the node alone: nobody else has it.
    cluster[1]
        .cli()
        .run(&["cache", "create", "alone", "--private"])
        .succeeds();
    cluster[1].cli().run(&["push", "alone", &lost]).succeeds();
    for pack in cluster[1].packs() {
        rot(&pack);
    }
    let verify = |args: &[&str]| {
        cluster[1]
            .cli()
            .run(&[&["verify", "--json"], args].concat())
    };
    let found: Value = serde_json::from_str(&verify(&[]).exits_with(1).stdout).expect("JSON");
    assert_eq!(found["damaged_nars"], 2, "{found}");
    let left: Value =
        serde_json::from_str(&verify(&["--repair"]).exits_with(1).stdout).expect("JSON");
    assert_eq!(
        (&left["damaged_nars"], &left["healed_nars"]),
        (&1.into(), &1.into()),
        "{left}"
    );
    // By itself, with nobody to ask.
    assert!(matches!(cluster[1].read(&kept), Served::Whole(_)));
    cluster[1].cli().run(&["rm", "alone", &lost]).succeeds();
    cluster[1].cli().run(&["gc", "--full"]).succeeds();
    verify(&[]).succeeds();
}
