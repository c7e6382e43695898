//! Row P5: a push that meets a full disk or the size cap keeps what had arrived by then.

use std::collections::BTreeSet;

use serde_json::Value;
use testnet::mount::Tmpfs;
use testnet::nix::NixClient;
use testnet::node::TestNode;
use testnet::program::is_root;
use testnet::seed::Seed;
use testnet::served::{Served, hash_part};

/// Paths of one MiB each that share nothing, the same each time.
fn paths() -> Vec<String> {
    let files: Vec<(String, Vec<u8>)> = (0..120)
        .map(|n| (format!("p5-full-{n}"), Seed::new(5000 + n).bytes(1 << 20)))
        .collect();
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, contents)| (name.as_str(), contents.as_slice()))
        .collect();
    NixClient::host().add_files(&files)
}

/// Pushes more than fits: every path is either pushed, or listed with `reason` and absent. Gives how
/// many were pushed, and how many of them are still there.
fn push_too_much(node: &TestNode, reason: &str) -> (usize, usize) {
    let paths = paths();
    let mut command = node.cli().push_command(&paths);
    let outcome = testnet::program::run(command.arg("--json")).exits_with(1);
    let events: Vec<Value> = outcome
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let of_status = |status: &str| -> BTreeSet<&str> {
        let events = events.iter().filter(|event| event["status"] == status);
        events.filter_map(|event| event["path"].as_str()).collect()
    };
    let (pushed, failed) = (of_status("pushed"), of_status("failed"));
    assert_eq!(pushed.len() + failed.len(), paths.len(), "{outcome}");
    let mut kept = 0;
    for path in &paths {
        match node.read(path) {
            Served::Whole(_) => kept += 1,
            other => assert_eq!(other, Served::Absent, "{path}"),
        }
    }
    let is_there = |name: &&&str| node.read(&format!("/nix/store/{name}")) != Served::Absent;
    assert_eq!(failed.iter().filter(is_there).count(), 0, "{outcome}");
    let listed: Vec<&str> = outcome
        .stderr
        .lines()
        .filter(|line| line.starts_with("not pushed: "))
        .collect();
    assert_eq!(listed.len(), failed.len(), "{outcome}");
    assert!(listed.iter().all(|line| line.contains(reason)), "{outcome}");
    assert_eq!(node.metric("attic_node_push_sessions"), Some(0.0));
    (pushed.len(), kept)
}

#[test]
fn p5_a_push_that_meets_the_size_cap_keeps_what_arrived() {
    if !is_root("p5 size cap") {
        return;
    }
    let node = TestNode::with_config("[store]\nsize-cap = \"64 MiB\"\npack-size = \"4 MiB\"\n");
    // What was pushed can be evicted from then on, like anything that is not pinned.
    let (_, kept) = push_too_much(&node, "size cap of 67108864 bytes");
    assert!(kept >= 24, "{kept}");
    let more = NixClient::host().add_file("p5-full-more", &Seed::new(5999).bytes(16 << 20));
    node.push(&[&more]).succeeds();
    assert!(matches!(node.read(&more), Served::Whole(_)));
}

#[test]
fn p5_a_push_that_meets_a_full_disk_keeps_what_arrived() {
    if !is_root("p5 full disk") {
        return;
    }
    let disk = Tmpfs::new(96 << 20);
    let config = "[store]\npack-size = \"8 MiB\"\n";
    let node = TestNode::at(&disk.path().join("data"), config);
    let (pushed, kept) = push_too_much(&node, "the node has no space left");
    assert!(pushed >= 40 && kept == pushed, "{kept} of {pushed}");
}

/// What a push found there is not evicted for what it brings, and what is evicted instead is gone from
/// every answer at once.
#[test]
fn g7_a_push_does_not_evict_what_it_found_there() {
    if !is_root("g7 found there") {
        return;
    }
    let node = TestNode::with_config("[store]\nsize-cap = \"40 MiB\"\npack-size = \"4 MiB\"\n");
    let random = |name: &str, mib: u64| {
        format!(
            "run \"g7-{name}\" ''head -c {} /dev/urandom > $out''",
            mib << 20
        )
    };
    let host = NixClient::host();
    let found = host.build(&random("found", 10)).remove(0);
    let other = host.build(&random("other", 20)).remove(0);
    let refers = format!(
        "run \"g7-refers\" ''echo ${{builtins.storePath {found}}} > $out; \
         head -c {} /dev/urandom >> $out''",
        12 << 20
    );
    let refers = host.build(&refers).remove(0);
    for path in [&found, &other] {
        node.push(&[path]).succeeds();
        // The answers are ready to be sent from now on.
        assert!(matches!(node.read(path), Served::Whole(_)), "{path}");
    }
    let pushed = node.push(&[&refers]).succeeds();
    pushed.says("1 already cached");
    for path in [&found, &refers] {
        assert!(matches!(node.read(path), Served::Whole(_)), "{path}");
    }
    let narinfo = format!("/main/{}.narinfo", hash_part(&other));
    assert_eq!(node.get(&narinfo).expect("an answer").status, 404);
    let evicted = node.metric("attic_node_gc_evicted_paths_total");
    assert_eq!(evicted, Some(1.0));
}

/// Closures that fit one at a time are pushed in turn, and each evicts the other and no more. What is
/// evicted used to stay, as the push held the packs that both were in: so all went, and for nothing.
#[test]
fn g7_closures_that_fit_in_turn_are_pushed_in_turn() {
    if !is_root("g7 in turn") {
        return;
    }
    let node = TestNode::with_config("[store]\nsize-cap = \"50 MiB\"\n");
    let host = NixClient::host();
    let large = host.add_file("g7-turn-large", &Seed::new(6000).bytes(25 << 20));
    let leaf = host.add_file("g7-turn-leaf", &Seed::new(6001).bytes(10 << 20));
    let root = format!(
        "run \"g7-turn-root\" ''echo ${{builtins.storePath {leaf}}} > $out; \
         head -c {} /dev/urandom >> $out''",
        15 << 20
    );
    let root = host.build(&root).remove(0);
    let closures: [&[&String]; 2] = [&[&large], &[&root, &leaf]];
    for turn in 0..4 {
        let closure = closures[turn % 2];
        node.push(&[closure[0]]).succeeds();
        for path in closure {
            assert!(matches!(node.read(path), Served::Whole(_)), "{path}");
        }
        // For the large one only the root goes.
        let evicted = node.metric("attic_node_gc_evicted_paths_total");
        assert_eq!(evicted, Some(turn as f64), "turn {turn}");
    }
}

/// Many small paths in packs that they share, below a cap that is smaller than a pack would be.
#[test]
fn g7_small_paths_are_pushed_in_turn_below_a_small_cap() {
    if !is_root("g7 small cap") {
        return;
    }
    const CAP: u64 = 16 << 20;
    let node = TestNode::with_config("[store]\nsize-cap = \"16 MiB\"\n");
    let host = NixClient::host();
    let sets = [0, 1, 2].map(|set| {
        let files: Vec<(String, Vec<u8>)> = (0..24)
            .map(|n| {
                let contents = Seed::new(6100 + 100 * set + n).bytes(250_000);
                (format!("g7-small-{set}-{n}"), contents)
            })
            .collect();
        let files: Vec<(&str, &[u8])> = files
            .iter()
            .map(|(name, contents)| (name.as_str(), contents.as_slice()))
            .collect();
        host.add_files(&files)
    });
    for turn in 0..9 {
        let set = &sets[turn % 3];
        let paths: Vec<&String> = set.iter().collect();
        node.push(&paths).succeeds();
        for path in set {
            assert!(
                matches!(node.read(path), Served::Whole(_)),
                "{path} in {turn}"
            );
        }
        let bytes = node.disk_bytes();
        assert!(bytes <= CAP + CAP / 100, "{bytes} bytes in turn {turn}");
        assert!(turn < 2 || bytes > CAP / 2, "{bytes} bytes in turn {turn}");
    }
}

/// One path that can never fit costs the others nothing.
#[test]
fn p5_a_path_larger_than_the_cap_fails_alone() {
    if !is_root("p5 larger than the cap") {
        return;
    }
    let node = TestNode::with_config("[store]\nsize-cap = \"40 MiB\"\n");
    let host = NixClient::host();
    let small = host.add_file("p5-cap-small", b"small");
    let large = host.add_file("p5-cap-large", &Seed::new(5998).bytes(48 << 20));
    let pushed = node.push(&[&small, &large]).exits_with(1);
    pushed
        .says("-p5-cap-large: NAR of 48.00 MiB; at most ")
        .says(" fit below the size cap of the node (store.size-cap)")
        .says("error: 1 of 2 paths not pushed");
    assert!(matches!(node.read(&small), Served::Whole(_)));
    assert_eq!(node.read(&large), Served::Absent);
    node.push(&[&large]).exits_with(1).says("size cap");
}
