//! Row P5: a push finishes over a bad network, and says what it could not do. Row P11: what it
//! says is done can be read.

use std::fs;
use std::io::{Seek, Write};

use serde_json::{Value, json};
use testnet::corpus::Closure;
use testnet::nix::NixClient;
use testnet::node::TestNode;
use testnet::program::{self, is_root};
use testnet::proxy::{Fault, FaultProxy};
use testnet::seed::Seed;
use testnet::served::Served;

#[test]
fn p5_a_push_finishes_although_every_third_request_fails() {
    if !is_root("p5 faults") {
        return;
    }
    let node = TestNode::with_config("[push]\nbody-max = \"1 MiB\"\n");
    let closure = Closure::load("S");
    let proxy = FaultProxy::seeded(node.address(), Seed::for_test("p5"), 0.3);
    node.cli_through(&proxy).push(&[&closure.root]).succeeds();
    let log = proxy.log();
    let faults = log
        .iter()
        .filter(|exchange| exchange.fault != Fault::None)
        .count();
    assert!(
        faults * 5 > log.len(),
        "{faults} of {} requests failed",
        log.len()
    );
    for path in closure.all() {
        assert!(matches!(node.read(path), Served::Whole(_)), "{path}");
    }
}

/// Every request of a kind fails once, after the node did what was asked: doing it again is safe.
#[test]
fn p5_lost_answers_do_no_harm() {
    if !is_root("p5 lost answers") {
        return;
    }
    let node = TestNode::start();
    let proxy = FaultProxy::new(node.address(), |head| match head.number % 2 {
        0 => Fault::LoseAnswer,
        _ => Fault::None,
    });
    let contents = Seed::new(55).bytes(3 << 20);
    let path = NixClient::host().add_file("p5-lost-answers", &contents);
    node.cli_through(&proxy).push(&[&path]).succeeds();
    assert!(matches!(node.read(&path), Served::Whole(_)));
}

/// A node that is not there is said so, with a hint; nothing hangs.
#[test]
fn p5_a_push_to_nobody_fails_with_a_hint() {
    if !is_root("p5 nobody") {
        return;
    }
    let mut node = TestNode::start();
    let path = NixClient::host().add_file("p5-nobody", b"x");
    assert!(node.stop().success());
    node.push(&[&path]).fails().says("hint:");
}

#[test]
fn p5_exit_codes_say_all_some_or_misuse() {
    if !is_root("p5 exit codes") {
        return;
    }
    let node = TestNode::with_config("[store]\nnar-size-max = \"1 MiB\"\n");
    let host = NixClient::host();
    let small = host.add_file("p5-small", b"small");
    let large = host.add_file("p5-large", &Seed::new(5).bytes(2 << 20));
    node.push(&[&small]).exits_with(0);
    let large_name = large.trim_start_matches("/nix/store/");
    let reason = "NAR of 2.00 MiB; the node takes at most 1.00 MiB";
    let failed = node.push(&[&small, &large]).exits_with(1);
    let last: Vec<&str> = failed.stderr.lines().rev().take(2).collect();
    let listed = format!("not pushed: {large_name}: {reason}");
    assert_eq!(last, ["error: 1 of 1 path not pushed", &listed], "{failed}");
    let failed = node
        .cli()
        .run(&["push", "--json", "main", &small, &large])
        .exits_with(1);
    let events: Vec<Value> = failed
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let small_name = small.trim_start_matches("/nix/store/");
    let wanted = [
        json!({
            "event": "plan", "cache": "main", "send": 0, "cached": 1, "upstream": 0,
            "too_large": 1,
        }),
        json!({ "event": "path", "path": small_name, "status": "cached", "nar_size": 120 }),
        json!({ "event": "path", "path": large_name, "status": "failed", "reason": reason }),
        json!({ "event": "done", "pushed": 0, "failed": 1, "cached": 1, "upstream": 0 }),
    ];
    assert_eq!(events, wanted, "{failed}");
    assert!(matches!(node.read(&small), Served::Whole(_)));
    assert_eq!(node.read(&large), Served::Absent);
    let cli = node.cli();
    cli.run(&["push"]).exits_with(2);
    cli.run(&["push", "main", "--no-such-flag"]).exits_with(2);
    cli.run(&["push", "no such cache!", &small]).exits_with(2);
}

/// What Nix does not know, or what is no store path at all, is named with the reason and costs the
/// others nothing.
#[test]
fn p5_arguments_that_mean_nothing_do_not_keep_the_others_from_being_pushed() {
    if !is_root("p5 arguments") {
        return;
    }
    let node = TestNode::start();
    let root = root_and_leaf("p5-known").0;
    let absent = "00000000000000000000000000000000-p5-absent";
    let absent_path = format!("/nix/store/{absent}");
    let arguments = [root.as_str(), &absent_path, "/dev/null"];
    let unusable = [
        ("/dev/null", "/dev/null is not in /nix/store"),
        (absent, "not valid in the local store"),
    ];
    let push = |options: &[&str]| {
        let words = ["push", "main"].iter().chain(options).chain(&arguments);
        let words: Vec<&str> = words.copied().collect();
        node.cli().run(&words).exits_with(1)
    };

    let dry = push(&["--dry-run"]).says("2 paths to push, 0 to skip; nothing was pushed");
    let listed: Vec<&str> = dry.lines().take(2).collect();
    let wanted = unusable.map(|(name, reason)| format!("fail {name}: {reason}"));
    assert_eq!(listed, wanted, "{dry}");
    dry.says("error: 2 paths cannot be pushed");
    let none = node.push(&arguments[1..]).exits_with(1);
    none.says("error: 2 of 2 paths not pushed")
        .says("hint: build or fetch it first");
    assert_eq!(node.usage().caches[0].paths, 0);

    let mut listing = tempfile::tempfile().expect("make a file");
    listing
        .write_all(arguments.join("\n").as_bytes())
        .and_then(|()| listing.rewind())
        .expect("write a list");
    let mut command = node.cli().command(&["push", "--stdin", "main"]);
    let pushed = program::start_reading(&mut command, listing.into()).wait();
    let pushed = pushed.exits_with(1).says("error: 2 of 4 paths not pushed");
    for (name, reason) in unusable {
        let listed = format!("not pushed: {name}: {reason}\n");
        assert!(pushed.stderr.contains(&listed), "{pushed}");
    }
    assert!(matches!(node.read(&root), Served::Whole(_)));
    assert_eq!(node.usage().caches[0].paths, 2);

    let again = push(&["--json"]);
    let events: Vec<Value> = again
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let failed = unusable.map(|(name, reason)| {
        json!({ "event": "path", "path": name, "status": "failed", "reason": reason })
    });
    assert_eq!(events[1..3], failed, "{again}");
    let cached = events[3..5].iter().all(|event| event["status"] == "cached");
    assert!(cached, "{again}");
    let done = json!({ "event": "done", "pushed": 0, "failed": 2, "cached": 2, "upstream": 0 });
    assert_eq!(events[5..], [done], "{again}");
}

/// A path whose files are gone, though Nix believes in it, costs what refers to it and nothing else.
#[test]
fn p5_a_closure_with_a_hole_costs_only_its_root() {
    if !is_root("p5 hole") {
        return;
    }
    let node = TestNode::start();
    let host = NixClient::host();
    let (root, leaf) = root_and_leaf("p5-hole");
    let other = host.add_file("p5-hole-other", b"other");
    let holed = NixClient::empty();
    let store = holed.physical("/").display().to_string();
    let to = format!("local?root={store}");
    host.run(
        "nix",
        &["copy", "--no-check-sigs", "--to", &to, &root, &other],
    )
    .succeeds();
    fs::remove_file(holed.physical(&leaf)).expect("remove a path's file");
    let pushed = node
        .cli()
        .run(&["push", "main", "--store", &store, &root, &other])
        .exits_with(1);
    let [root_name, leaf_name] = [&root, &leaf].map(|path| path.trim_start_matches("/nix/store/"));
    pushed
        .says(&format!("not pushed: {leaf_name}: read "))
        .says(&format!(
            "not pushed: {root_name}: it refers to {leaf_name}, which was not pushed"
        ))
        .says("error: 2 of 3 paths not pushed");
    assert!(matches!(node.read(&other), Served::Whole(_)));
    assert_eq!(node.usage().caches[0].paths, 1);
}

/// A path in the machine's store, and the only one that it refers to.
fn root_and_leaf(name: &str) -> (String, String) {
    let host = NixClient::host();
    let expression = format!(
        "let leaf = run \"{name}-leaf\" ''echo x > $out''; in \
         run \"{name}-root\" ''echo ${{leaf}} > $out''"
    );
    let root = host.build(&expression).remove(0);
    let references = host.run("nix-store", &["--query", "--references", &root]);
    let leaf = references.succeeds().stdout.trim().to_owned();
    (root, leaf)
}

/// One path that cannot be pushed does not keep the others from being pushed.
#[test]
fn p5_the_other_paths_of_a_push_become_visible() {
    if !is_root("p5 partial") {
        return;
    }
    let node = TestNode::with_config("[store]\nnar-size-max = \"1 MiB\"\n");
    let host = NixClient::host();
    let files: Vec<(String, Vec<u8>)> = (0..20)
        .map(|n| {
            (
                format!("p5-partial-{n}"),
                Seed::new(n).bytes(if n == 7 { 2 << 20 } else { 9000 }),
            )
        })
        .collect();
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, contents)| (name.as_str(), contents.as_slice()))
        .collect();
    let paths = host.add_files(&files);
    let failed = node.push(&paths).exits_with(1);
    let listed = |line: &&str| line.starts_with("not pushed: ");
    let listed: Vec<&str> = failed.stderr.lines().filter(listed).collect();
    assert_eq!(listed.len(), 1, "{failed}");
    assert!(
        listed[0].contains("-p5-partial-7: NAR of 2.00 MiB; "),
        "{failed}"
    );
    failed.says("error: 1 of 20 paths not pushed");
    for path in &paths {
        let whole = matches!(node.read(path), Served::Whole(_));
        assert_eq!(whole, !path.ends_with("p5-partial-7"), "{path}");
    }
}

#[test]
fn p11_a_pushed_path_can_be_read_at_once() {
    if !is_root("p11") {
        return;
    }
    let node = TestNode::start();
    let host = NixClient::host();
    let nix = NixClient::fresh(&node, "main").set("narinfo-cache-negative-ttl", "0");
    for number in 0..10 {
        let path = host
            .build(&format!("run \"p11-{number}\" ''echo {number} > $out''"))
            .remove(0);
        // Somebody asks too early: the node must not remember that it had nothing.
        nix.run("nix-store", &["--realise", &path]).fails();
        node.push(&[&path]).succeeds();
        assert!(matches!(node.read(&path), Served::Whole(_)), "{path}");
        nix.run("nix-store", &["--realise", &path]).succeeds();
    }
}
