//! Row P7: what others already serve is left out, when they really signed it.

use std::time::{SystemTime, UNIX_EPOCH};

use testnet::nix::{KeyPair, NixClient};
use testnet::node::TestNode;
use testnet::program::is_root;
use testnet::served::Served;

/// A path signed with `key`, new at each run: signatures stay in the store.
fn signed(name: &str, key: &KeyPair) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_nanos();
    let host = NixClient::host();
    let path = host
        .build(&format!("run \"{name}\" ''echo {now} > $out''"))
        .remove(0);
    host.run(
        "nix",
        &["store", "sign", "--key-file", &key.secret_file(), &path],
    )
    .succeeds();
    path
}

#[test]
fn p7_only_a_valid_signature_counts_as_upstream() {
    if !is_root("p7") {
        return;
    }
    let node = TestNode::start();
    let (upstream, impostor) = (
        KeyPair::generate("upstream-1"),
        KeyPair::generate("upstream-1"),
    );
    let cli = node.cli();
    cli.run(&[
        "cache",
        "configure",
        "main",
        "--skip-signed-by",
        &upstream.public,
    ])
    .succeeds();
    let (genuine, forged) = (
        signed("p7-genuine", &upstream),
        signed("p7-forged", &impostor),
    );

    let push = node.push(&[&genuine, &forged]).succeeds();
    push.says("1 in upstream");
    assert_eq!(node.read(&genuine), Served::Absent);
    assert!(
        matches!(node.read(&forged), Served::Whole(_)),
        "the key's name is not enough"
    );

    cli.run(&["cache", "configure", "main", "--cache-everything=true"])
        .succeeds();
    node.push(&[&genuine]).succeeds();
    assert!(
        matches!(node.read(&genuine), Served::Whole(_)),
        "the cache wants everything"
    );
}

#[test]
fn p7_a_dry_run_says_why_a_path_is_left_out() {
    if !is_root("p7 dry run") {
        return;
    }
    let node = TestNode::start();
    let upstream = KeyPair::generate("upstream-1");
    let configure = [
        "cache",
        "configure",
        "main",
        "--skip-signed-by",
        &upstream.public,
    ];
    node.cli().run(&configure).succeeds();
    let path = signed("p7-dry", &upstream);
    node.cli()
        .run(&["push", "--dry-run", "main", &path])
        .succeeds()
        .says("upstream-1");
}

/// The filter is the cache's, and one who pushes may overrule it.
#[test]
fn p7_the_filter_belongs_to_a_cache_and_can_be_ignored() {
    if !is_root("p7 ignored filter") {
        return;
    }
    let node = TestNode::start();
    let upstream = KeyPair::generate("upstream-1");
    let cli = node.cli();
    let skip = ["--skip-signed-by", &upstream.public];
    cli.run(&[&["cache", "configure", "main"], &skip[..]].concat())
        .succeeds();
    cli.run(&["cache", "create", "everything"]).succeeds();
    let path = signed("p7-ignored", &upstream);
    let paths = || {
        node.usage()
            .caches
            .into_iter()
            .map(|cache| (cache.name.to_string(), cache.paths))
    };
    let count = |name: &str| paths().find(|(cache, _)| cache == name).expect("a cache").1;

    cli.run(&["push", "main", &path])
        .succeeds()
        .says("1 in upstream");
    cli.run(&["push", "everything", &path])
        .succeeds()
        .says("0 in upstream");
    assert_eq!((count("main"), count("everything")), (0, 1));
    cli.run(&["push", "main", "--ignore-upstream-cache-filter", &path])
        .succeeds()
        .says("0 in upstream");
    assert_eq!(count("main"), 1);
}
