//! Row P6: what a push says, to people and to programs.

use std::fs::File;
use std::process::Stdio;

use serde_json::Value;
use testnet::nix::NixClient;
use testnet::node::TestNode;
use testnet::program::{self, is_root};
use testnet::seed::Seed;
use testnet::served::Served;

fn two_paths(name: &str) -> Vec<String> {
    let contents = Seed::new(66).bytes(200_000);
    let (one, two) = (format!("{name}-one"), format!("{name}-two"));
    NixClient::host().add_files(&[(&one, &contents), (&two, b"two")])
}

fn base_name(path: &str) -> &str {
    path.trim_start_matches("/nix/store/")
}

#[test]
fn p6_without_a_terminal_the_words_are_plain_and_those_of_attic() {
    if !is_root("p6 words") {
        return;
    }
    let node = TestNode::start();
    let paths = two_paths("p6-words");
    let first = node.push(&paths).succeeds();
    assert!(
        !first.stderr.contains('\x1b') && !first.stderr.contains('\r'),
        "{first}"
    );
    assert_eq!(first.stdout, "", "stdout is for data");
    let first = first
        .says("Pushing 2 paths to \"main\"")
        .says("0 already cached, 0 in upstream");
    paths
        .iter()
        .for_each(|path| assert!(first.stderr.contains(base_name(path)), "{path}: {first}"));
    node.push(&paths)
        .succeeds()
        .says("2 already cached, 0 in upstream");
}

#[test]
fn p6_json_events_name_every_path() {
    if !is_root("p6 json") {
        return;
    }
    let node = TestNode::start();
    let paths = two_paths("p6-json");
    let outcome = node
        .cli()
        .run(&["push", "--json", "main", &paths[0], &paths[1]])
        .succeeds();
    let events: Vec<Value> = outcome
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    for path in &paths {
        let named = events
            .iter()
            .filter(|event| event.to_string().contains(base_name(path)))
            .count();
        assert!(named >= 1, "{path}: {outcome}");
    }
}

#[test]
fn p6_a_dry_run_sends_nothing() {
    if !is_root("p6 dry run") {
        return;
    }
    let node = TestNode::start();
    let paths = two_paths("p6-dry");
    let dry = node
        .cli()
        .run(&["push", "--dry-run", "main", &paths[0], &paths[1]])
        .succeeds();
    paths
        .iter()
        .for_each(|path| assert!(dry.stdout.contains(base_name(path)), "{path}: {dry}"));
    assert_eq!(node.read(&paths[0]), Served::Absent);
    assert_eq!(node.usage().store.chunks, 0);
}

#[test]
fn p6_paths_may_come_on_standard_input() {
    if !is_root("p6 stdin") {
        return;
    }
    let node = TestNode::start();
    let paths = two_paths("p6-stdin");
    let dir = tempfile::TempDir::new().expect("make a directory");
    let list = dir.path().join("list");
    std::fs::write(&list, paths.join("\n")).expect("write a list");
    let mut command = node.cli().command(&["push", "--stdin", "main"]);
    let list = Stdio::from(File::open(list).expect("open the list"));
    program::start_reading(&mut command, list).wait().succeeds();
    paths
        .iter()
        .for_each(|path| assert!(matches!(node.read(path), Served::Whole(_)), "{path}"));
}

#[test]
fn p6_without_closure_only_what_is_named_is_pushed() {
    if !is_root("p6 no closure") {
        return;
    }
    let node = TestNode::start();
    let expression = "let leaf = run \"p6-leaf\" ''echo x > $out''; in \
                      run \"p6-root\" ''echo ${leaf} > $out''";
    let root = NixClient::host().build(expression).remove(0);
    node.cli()
        .run(&["push", "--no-closure", "main", &root])
        .succeeds();
    assert_eq!(node.usage().caches[0].paths, 1);
    node.push(&[&root]).succeeds();
    assert_eq!(node.usage().caches[0].paths, 2);
}
