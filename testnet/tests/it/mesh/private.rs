//! Row C10: private caches among nodes of which some may read them and some may not.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use attic_store::{NarHash, PublicKey};
use testnet::cluster::Cluster;
use testnet::http::{Request, Response};
use testnet::knowledge::Secrets;
use testnet::nix::NixClient;
use testnet::node::TestNode;
use testnet::program::{eventually, is_root};
use testnet::served::hash_part;

use super::{HEALED_MAX, JOINED_MAX, path, status};

/// A cache by a name that nothing else on a machine has.
const CACHE: &str = "geheimfach-7q";

/// A founder, a node that may read and write everything, and one that may read `main`.
fn parted() -> Cluster {
    let cluster = Cluster::new(3);
    let all = cluster.invite(0, &["--write", "*"]);
    let main = cluster.invite(0, &["--read", "main"]);
    cluster.join(1, &all).succeeds();
    cluster.join(2, &main).succeeds();
    cluster.wait_connected(&[0, 1, 2]);
    cluster.wait_writable(1, "main");
    cluster
}

/// Makes the private cache on node 0, and waits until `others` may write it.
fn create(cluster: &Cluster, others: &[usize]) {
    let create = ["cache", "create", CACHE, "--private"];
    let created = cluster[0].cli().run(&create).succeeds();
    created.says("shared with members that may read it");
    for node in others {
        cluster.wait_writable(*node, CACHE);
    }
}

fn push(node: &TestNode, path: &str) {
    node.cli().run(&["push", CACHE, path]).succeeds();
}

/// How a node answers its own user for the narinfo of a path of the private cache.
fn own_status(node: &TestNode, path: &str) -> u16 {
    let target = format!("/{CACHE}/{}.narinfo", hash_part(path));
    let request = Request::get(&target).token(&node.token());
    node.send(request).expect("the node answers").status
}

fn wait_own_status(cluster: &Cluster, node: usize, path: &str, wanted: u16) {
    let what = format!("node {node} to answer {wanted} for {path}");
    eventually(&what, HEALED_MAX, || {
        (own_status(&cluster[node], path) == wanted).then_some(())
    });
}

/// Has the Nix of a node's user fetch a path of the private cache.
fn realise(cluster: &Cluster, node: usize, path: &str) {
    let nix = cluster.nix(node, CACHE).authorised(&cluster[node]);
    nix.run("nix-store", &["--realise", path]).succeeds();
    nix.verify_store();
    assert!(nix.has(path), "node {node}");
}

fn nar_hash(path: &str) -> NarHash {
    let hash = NixClient::host().nar_hashes(&[path]).remove(0);
    let digits = hash.strip_prefix("sha256:").expect("a sha256");
    NarHash::from_nix32(digits).expect("a hash")
}

/// Everything about a path of the private cache, and its contents.
fn secrets_of(path: &str) -> Secrets {
    let contents = fs::read(path).expect("a file");
    Secrets::new()
        .with_path(path, &nar_hash(path))
        .with("contents", &contents[5000..5016])
}

/// And about the cache itself.
fn all_secrets(cluster: &Cluster, path: &str) -> Secrets {
    let key: PublicKey = cluster[0].public_key(CACHE).parse().expect("a key");
    secrets_of(path)
        .with("name of the cache", CACHE.as_bytes())
        .with("public key", key.as_bytes())
}

/// What a node answers to whoever asks, without when it answered.
fn answer(node: &TestNode, request: Request) -> Response {
    let mut answer = node.send(request).expect("the node answers");
    answer.headers.retain(|(name, _)| name != "date");
    answer
}

#[test]
fn c10_an_outsider_learns_nothing_of_a_private_cache() {
    if !is_root("c10") {
        return;
    }
    let cluster = parted();
    create(&cluster, &[1]);
    let (path, absent) = (path("c10-geheim", 300_000), path("c10-nowhere", 1000));
    push(&cluster[0], &path);
    wait_own_status(&cluster, 1, &path, 200);
    let secrets = all_secrets(&cluster, &path);
    let learnt = || secrets.known_to(&cluster[2]);
    let nothing = BTreeSet::new();
    assert_eq!(learnt(), nothing, "from news of the push");

    realise(&cluster, 1, &path);
    // Nix asks all caches for all paths: a public one does not ask around for what is private.
    assert_eq!(status(&cluster[1], &path), 404);
    assert_eq!(learnt(), nothing, "from another node's look-ups");
    let reader = secrets.known_to(&cluster[1]);
    assert_eq!(reader, secrets.names(), "what is looked for can be found");

    outsider_sees_none(&cluster[2]);
    let view = cluster.view(0);
    let cache = view
        .caches
        .iter()
        .find(|cache| cache.name.as_str() == CACHE);
    let cache = cache.expect("the founder sees its cache");
    assert_eq!((cache.public, cache.readers), (false, 2));
    let shown = cluster[0].cli().run(&["cluster", "info"]).succeeds();
    shown.says(&format!("{CACHE} (private, read and write, 2 readers)"));
    key_is_kept_from_others(&cluster[1]);

    let removed = cluster[1].cli().run(&["rm", CACHE, &path]);
    removed.succeeds().says("1 path removed");
    wait_own_status(&cluster, 0, &path, 404);
    assert_eq!(learnt(), nothing, "from news of the removal");

    // And after it was told the path, it has no more to say of it than of any other.
    same_answers(&cluster[2], &path, &absent);
}

/// What an outsider's own user is shown of the cluster.
fn outsider_sees_none(node: &TestNode) {
    for args in [
        &["cluster", "info"][..],
        &["cache", "list"],
        &["peers"],
        &["du"],
    ] {
        let shown = node.cli().run(args).succeeds();
        assert!(!shown.stdout.contains(CACHE), "{shown}");
    }
    let metrics = node.get("/metrics").expect("the node answers").text();
    assert!(!metrics.contains(CACHE), "{metrics}");
}

fn key_is_kept_from_others(reader: &TestNode) {
    let dir = reader.data_dir().join("cluster/readers");
    let keys: Vec<_> = fs::read_dir(dir).expect("keys").flatten().collect();
    assert_eq!(keys.len(), 1);
    for key in keys {
        let mode = key.metadata().expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

/// Requests for something present elsewhere and for something absent are answered alike, byte for
/// byte, with the node's token and without.
fn same_answers(outsider: &TestNode, present: &str, absent: &str) {
    let objects = |path: &str| {
        let (hash, nar) = (hash_part(path), nar_hash(path).nix32());
        let of = |cache: &str| {
            [
                format!("/{cache}/{hash}.narinfo"),
                format!("/{cache}/{hash}.ls"),
                format!("/{cache}/nar/{nar}.nar.zst"),
                format!("/{cache}/nar/{nar}.nar"),
            ]
        };
        [of(CACHE), of("main"), of("no-such-cache")].concat()
    };
    for (present, absent) in objects(present).iter().zip(&objects(absent)) {
        for method in ["GET", "HEAD"] {
            let ask = |target: &str| Request::new(method, target);
            let anonymous = answer(outsider, ask(present));
            assert_eq!(anonymous.status, 404, "{method} {present}");
            assert_eq!(anonymous, answer(outsider, ask(absent)), "{present}");
            let token = outsider.token();
            let own = answer(outsider, ask(present).token(&token));
            assert_eq!(
                own,
                answer(outsider, ask(absent).token(&token)),
                "{present}"
            );
            assert_eq!(own, anonymous, "{present}");
        }
    }
    let info = answer(outsider, Request::get(&format!("/{CACHE}/nix-cache-info")));
    let none = answer(outsider, Request::get("/no-such-cache/nix-cache-info"));
    assert_eq!(info, none);
}

/// A reader that is shut out does not open what is said afterwards, even when somebody hands it the
/// logs.
#[test]
fn c10_a_former_reader_opens_nothing_that_is_said_later() {
    if !is_root("c10 revoked") {
        return;
    }
    let mut cluster = Cluster::new(3);
    let ticket = cluster.invite(0, &["--write", "*", "--uses", "2"]);
    cluster.join(1, &ticket).succeeds();
    cluster.join(2, &ticket).succeeds();
    cluster.wait_connected(&[0, 1, 2]);
    create(&cluster, &[1, 2]);
    let (before, after) = (path("c10-before", 200_000), path("c10-after", 200_000));
    push(&cluster[0], &before);
    wait_own_status(&cluster, 2, &before, 200);

    let id = cluster[2].id();
    let revoke = ["revoke", &id, "--no-confirm"];
    cluster[0].cli().run(&revoke).succeeds();
    push(&cluster[0], &after);
    wait_own_status(&cluster, 1, &after, 200);
    realise(&cluster, 1, &after);

    cluster[2].kill();
    let log = |node: &TestNode| node.data_dir().join("cluster/log");
    fs::remove_dir_all(log(&cluster[2])).expect("remove a log");
    copy(&log(&cluster[0]), &log(&cluster[2]));
    cluster[2].start_again();
    // It serves a moment before it is back in its cluster.
    eventually("the node to be in its cluster", HEALED_MAX, || {
        (cluster[2].api("cluster", None).status == 200).then_some(())
    });
    let known = cluster.view(0).paths;
    eventually("the former reader to fold the logs", HEALED_MAX, || {
        (cluster.view(2).paths + 1 == known).then_some(())
    });
    let (old, new) = (secrets_of(&before), secrets_of(&after));
    let kept = old.known_to(&cluster[2]);
    assert!(
        kept.iter().any(|secret| secret.starts_with("name of ")),
        "{kept:?}"
    );
    assert_eq!(new.known_to(&cluster[2]), BTreeSet::new());
    assert_eq!(new.known_to(&cluster[1]), new.names());
    assert_eq!(own_status(&cluster[2], &after), 404);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("make a directory");
    for entry in fs::read_dir(from).expect("list files").flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(&from, &to).expect("copy a file");
        }
    }
}

/// Readers that come late, and readers that were away, are given the key and see everything.
#[test]
fn c10_late_readers_see_what_was_there_before() {
    if !is_root("c10 late") {
        return;
    }
    let mut cluster = Cluster::new(2);
    let ticket = cluster.invite(0, &["--read", "*", "--uses", "2"]);
    create(&cluster, &[]);
    let path = path("c10-late", 200_000);
    push(&cluster[0], &path);
    cluster.join(1, &ticket).succeeds();
    wait_own_status(&cluster, 1, &path, 200);
    realise(&cluster, 1, &path);
    // What it has it serves after a restart, and in turn to the next.
    cluster[1].kill();
    cluster[1].start_again();
    wait_own_status(&cluster, 1, &path, 200);
    let late = cluster.add();
    cluster.join(late, &ticket).succeeds();
    wait_own_status(&cluster, late, &path, 200);
    cluster[0].kill();
    realise(&cluster, late, &path);
    // It may read, and was not invited to write.
    let own = super::path("c10-late-own", 1000);
    cluster[late].cli().run(&["push", CACHE, &own]).fails();
}

/// Nothing private is shared by the way: not by making a cluster, not by joining one.
#[test]
fn c10_private_caches_stay_on_their_node_until_they_are_shared() {
    if !is_root("c10 share") {
        return;
    }
    let cluster = Cluster::new(2);
    for (node, name) in [(0, CACHE), (1, "vorratskammer")] {
        let create = ["cache", "create", name, "--private"];
        let created = cluster[node].cli().run(&create).succeeds();
        created.says("no, on this node alone");
    }
    let path = path("c10-share", 100_000);
    push(&cluster[0], &path);
    let ticket = cluster.invite(0, &["--write", "*"]);
    cluster.join(1, &ticket).succeeds();
    cluster.wait_connected(&[0, 1]);
    cluster.wait_writable(1, "main");
    let secrets = all_secrets(&cluster, &path);
    assert_eq!(secrets.known_to(&cluster[1]), BTreeSet::new());
    assert_eq!(own_status(&cluster[1], &path), 404);

    let share = ["cache", "configure", CACHE, "--share"];
    let shared = cluster[0].cli().run(&share).succeeds();
    shared.says("shared with members that may read it");
    cluster.wait_writable(1, CACHE);
    wait_own_status(&cluster, 1, &path, 200);
    realise(&cluster, 1, &path);

    // What the cluster was told is not taken back, and what it was not told stays so.
    for (cache, change, hint) in [
        (CACHE, "--public", "create a public cache and push to that"),
        (
            "main",
            "--private",
            "create a private cache and push to that",
        ),
    ] {
        let configure = ["cache", "configure", cache, change];
        let refused = cluster[0].cli().run(&configure).exits_with(1);
        refused.says(hint);
    }
    let other = ["cache", "configure", CACHE, "--priority", "12"];
    cluster[1]
        .cli()
        .run(&other)
        .exits_with(1)
        .says("another node");
    cluster[0].cli().run(&other).succeeds();
    eventually("the change to arrive", JOINED_MAX, || {
        let info = cluster[1].cli().json(&["cache", "info", CACHE]);
        (info["priority"] == 12).then_some(())
    });
    let local = ["cache", "create", "werkbank", "--private", "--local"];
    let local = cluster[0].cli().run(&local).succeeds();
    local.says("no, on this node alone");
}

/// A node with a narrow invitation shares what it may write, and reads nothing else that is private.
#[test]
fn c10_scopes_decide_who_reads() {
    if !is_root("c10 scopes") {
        return;
    }
    let cluster = Cluster::new(3);
    let team = ["--read", "team-*", "--write", "team-*"];
    let other = ["--read", "other-*", "--write", "other-*"];
    for (node, scopes) in [(1, team), (2, other)] {
        let ticket = cluster.invite(0, &scopes);
        cluster.join(node, &ticket).succeeds();
    }
    cluster.wait_connected(&[0, 1, 2]);
    let create = |node: usize, name: &str| {
        cluster[node]
            .cli()
            .run(&["cache", "create", name, "--private"])
            .succeeds()
    };
    create(1, "team-x").says("shared with members that may read it");
    create(2, "other-y").says("shared with members that may read it");
    // Not a name that it may write: it stays its own.
    let why = "the cache is on this node only, because this node may not write a cache called";
    let alone = create(1, "abstellraum").says("no, on this node alone");
    alone.says(&format!("{why} abstellraum in its cluster"));
    let json = ["cache", "create", "keller", "--private"];
    let made = cluster[1].cli().json(&json);
    assert!(made["unshared_because"].is_string(), "{made}");
    assert_eq!(made["shared"], false);
    // Where nothing stands in the way, or where it was asked for, nothing is explained.
    let asked = ["cache", "create", "schrank", "--private", "--local"];
    let asked = cluster[1].cli().json(&asked);
    assert!(asked.get("unshared_because").is_none(), "{asked}");
    let shared = ["cache", "create", "team-y", "--private"];
    let shared = cluster[1].cli().json(&shared);
    assert!(shared.get("unshared_because").is_none(), "{shared}");
    let refused = ["cache", "configure", "abstellraum", "--share"];
    let refused = cluster[1].cli().run(&refused).exits_with(1);
    refused.says("may not write a cache called abstellraum");

    let names = |node: usize| -> Vec<String> {
        let view = cluster.view(node);
        view.caches
            .iter()
            .map(|cache| cache.name.to_string())
            .collect()
    };
    // The founder may read everything.
    eventually("the founder to see both", JOINED_MAX, || {
        (names(0) == ["main", "other-y", "team-x", "team-y"]).then_some(())
    });
    assert_eq!(names(1), ["team-x", "team-y"]);
    assert_eq!(names(2), ["other-y"]);
    let path = path("c10-team", 100_000);
    cluster.wait_writable(0, "team-x");
    cluster[0].cli().run(&["push", "team-x", &path]).succeeds();
    let target = format!("/team-x/{}.narinfo", hash_part(&path));
    let ask = |node: usize| {
        let request = Request::get(&target).token(&cluster[node].token());
        cluster[node].send(request).expect("an answer").status
    };
    eventually("the team to see the path", Duration::from_secs(10), || {
        (ask(1) == 200).then_some(())
    });
    assert_eq!(secrets_of(&path).known_to(&cluster[2]), BTreeSet::new());
    assert_eq!(ask(2), 404);
}
