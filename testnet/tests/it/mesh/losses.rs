//! Holders that die, lie about what they have, fall silent or decay cost nobody an error.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use testnet::cluster::Cluster;
use testnet::program::{eventually, is_root};
use testnet::seed::Seed;

use super::{VISIBLE_MAX, all_answer, moved, path, read_whole, realise, status, wait_held};

/// S3: one of two holders is killed at a random byte of a response, again and again; the response
/// goes on with the other and is right.
#[test]
fn s3_a_holder_killed_in_the_middle_of_a_response_is_replaced() {
    if !is_root("s3 killed") {
        return;
    }
    let mut seed = Seed::for_test("s3_killed");
    let mut cluster = Cluster::joined_with_config(3, ONE_COPY);
    let paths: Vec<String> = (0..ROUNDS)
        .map(|round| path(&format!("s3-killed-{round}"), LEN as usize))
        .collect();
    cluster[0].push(&paths).succeeds();
    let pushed = (Instant::now(), VISIBLE_MAX);
    for path in &paths {
        all_answer(&cluster, &[1, 2], path, 200, pushed);
        read_whole(&cluster, 1, path);
    }
    wait_held(&cluster, 1, ROUNDS as u64 * LEN);
    (0..2).for_each(|host| cluster.network().limit(host, Some(UPLINK)));

    for (round, path) in paths.iter().enumerate() {
        let (victim, at) = (round % 2, seed.below(LEN));
        let start = moved(&cluster, 2).1;
        thread::scope(|scope| {
            let reading = scope.spawn(|| read_whole(&cluster, 2, path));
            eventually("the response to get there", PATIENCE, || {
                let got = moved(&cluster, 2).1 - start;
                (got >= at || reading.is_finished()).then_some(())
            });
            kill_process(cluster[victim].pid(), Signal::KILL).expect("kill the node");
            reading.join().expect("a whole response");
        });
        cluster[victim].kill();
        cluster[victim].start_again();
        cluster.wait_connected(&[0, 1, 2]);
    }
}

/// S3, G8: bytes that decayed on the disk of a node, be it in the middle of a response, come from a
/// peer; the client sees nothing of it, and from then on the node has them again.
#[test]
fn s3_what_decayed_here_comes_from_a_peer() {
    if !is_root("s3 decay") {
        return;
    }
    let mut cluster = Cluster::joined_with_config(2, ONE_COPY);
    let path = path("s3-decay", LEN as usize);
    cluster[0].push(&[&path]).succeeds();
    let pushed = (Instant::now(), VISIBLE_MAX);
    all_answer(&cluster, &[1], &path, 200, pushed);
    let whole = read_whole(&cluster, 1, &path);
    wait_held(&cluster, 1, LEN);
    let fetched = moved(&cluster, 1).1;

    // Not in the first block, which is looked at before the response begins.
    flip(&cluster, 1, 2 << 20, 3 << 20);
    assert!(read_whole(&cluster, 1, &path) == whole);
    let mended = moved(&cluster, 1).1 - fetched;
    assert!(0 < mended && mended < LEN / 2, "{mended} bytes came anew");
    let found = cluster[1].metric("attic_node_store_read_errors_total");
    assert!(found > Some(0.0), "no damage was met");

    // And in the first block.
    flip(&cluster, 1, 100_000, LEN);
    assert!(read_whole(&cluster, 1, &path) == whole);
    wait_held(&cluster, 1, LEN);
    cluster[0].kill();
    assert!(read_whole(&cluster, 1, &path) == whole);
}

/// C4: a node that is said to hold what it lost is no error, to whom another one has it.
#[test]
fn c4_a_holder_that_lost_what_it_held_fails_nobody() {
    if !is_root("c4 lost") {
        return;
    }
    let mut cluster = Cluster::joined_with_config(3, ONE_COPY);
    let path = path("c4-lost", LEN as usize);
    cluster[0].push(&[&path]).succeeds();
    let pushed = (Instant::now(), VISIBLE_MAX);
    all_answer(&cluster, &[1, 2], &path, 200, pushed);
    read_whole(&cluster, 1, &path);
    wait_held(&cluster, 1, LEN);
    cluster[1].kill();
    for pack in cluster[1].packs() {
        std::fs::remove_file(pack).expect("remove a pack");
    }
    cluster[1].start_again();
    cluster.wait_connected(&[0, 1, 2]);
    read_whole(&cluster, 2, &path);
    assert_eq!(moved(&cluster, 1).0, 0, "it has nothing to send");
}

/// C5: half of the holders are behind a dead switch, their connections open.
#[test]
fn c5_holders_behind_a_dead_switch_fail_nobody() {
    if !is_root("c5 black holes") {
        return;
    }
    let mut cluster = Cluster::joined_with_config(5, ONE_COPY);
    let path = path("c5-black-holes", LEN as usize);
    cluster[0].push(&[&path]).succeeds();
    let pushed = (Instant::now(), VISIBLE_MAX);
    all_answer(&cluster, &[1, 2, 3, 4], &path, 200, pushed);
    for node in 1..4 {
        read_whole(&cluster, node, &path);
        wait_held(&cluster, node, LEN);
    }
    cluster.network().partition(&[&[1], &[3]]);
    read_whole(&cluster, 4, &path);
}

/// Row S3: what a node has no room for is not here, from the first question on; what it has room for
/// comes from the others as ever.
#[test]
fn s3_what_there_is_no_room_for_is_not_here() {
    if !is_root("s3 room") {
        return;
    }
    let mut cluster = Cluster::joined_with_config(2, ONE_COPY);
    cluster[1].configure(&format!("{ONE_COPY}[store]\nsize-cap = \"24 MiB\"\n"));
    cluster[1].stop();
    cluster[1].start_again();
    cluster.wait_connected(&[0, 1]);
    let large = path("s3-no-room", 40 << 20);
    let fitting: Vec<String> = (0..4)
        .map(|number| path(&format!("s3-room-{number}"), 8 << 20))
        .collect();
    let paths: Vec<&str> = fitting.iter().chain([&large]).map(String::as_str).collect();
    cluster[0].push(&paths).succeeds();
    // More than fits together: what was used longest ago makes way.
    for fits in &fitting {
        let pushed = (Instant::now(), VISIBLE_MAX);
        all_answer(&cluster, &[1], fits, 200, pushed);
        realise(&cluster, 1, &[fits]);
        assert_eq!(status(&cluster[1], &large), 404);
    }
    let nix = cluster.nix(1, "main");
    nix.run("nix-store", &["--realise", &large]).fails();
    let usage = cluster[1].usage().store;
    assert!(usage.disk_bytes <= 25 << 20, "{usage:?}");
}

/// Flips a byte of a node's largest pack every `step` bytes from `from` on.
fn flip(cluster: &Cluster, node: usize, from: u64, step: u64) {
    let packs = cluster[node].packs().into_iter();
    let len = |pack: &std::path::PathBuf| pack.metadata().map_or(0, |meta| meta.len());
    let pack = packs.max_by_key(len).expect("a pack");
    let file = File::options()
        .read(true)
        .write(true)
        .open(&pack)
        .expect("open a pack");
    let len = len(&pack);
    let mut at = from;
    while at < len {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read a pack");
        file.write_all_at(&[!byte[0]], at).expect("write a pack");
        at += step;
    }
}

const LEN: u64 = 12 << 20;
const ROUNDS: usize = 6;
/// Bytes a second that a holder sends.
const UPLINK: u64 = 12_000_000;
const PATIENCE: Duration = Duration::from_secs(60);
/// Nothing moves but what is asked for.
const ONE_COPY: &str = "[mesh]\nreplicas = 1\n";
