//! Row C11: what is signed where, and where the keys are.

use std::collections::BTreeSet;
use std::fs;
use std::time::Instant;

use attic_store::SecretKey;
use testnet::cluster::Cluster;
use testnet::knowledge::Secrets;
use testnet::nix::KeyPair;
use testnet::node::TestNode;
use testnet::program::{eventually, is_root};
use testnet::served::{hash_part, narinfo_fields};

use super::{HEALED_MAX, VISIBLE_MAX, all_answer, path, realise};

/// A node with the key of `main`, one that was given it, and one that may only read.
fn cluster() -> Cluster {
    let cluster = Cluster::new(3);
    let writer = cluster.invite(0, &["--write", "*"]);
    let reader = cluster.invite(0, &[]);
    cluster.join(1, &writer).succeeds();
    cluster.join(2, &reader).succeeds();
    cluster.wait_connected(&[0, 1, 2]);
    cluster.wait_writable(1, "main");
    cluster
}

/// Names of the keys whose signatures a node serves with a path, sorted.
fn signers(node: &TestNode, path: &str) -> Vec<String> {
    let target = format!("/main/{}.narinfo", hash_part(path));
    let narinfo = node.get(&target).expect("the node answers");
    if narinfo.status != 200 {
        return Vec::new();
    }
    let fields = narinfo_fields(&narinfo.text());
    let name = |signature: &str| signature.split(':').next().map(str::to_owned);
    let mut names: Vec<String> = fields["Sig"].split(' ').filter_map(name).collect();
    names.sort();
    names
}

fn key_name(public: &str) -> String {
    public.split(':').next().unwrap_or_default().to_owned()
}

/// Waits until every node serves a path with the signatures of exactly these keys.
fn wait_signers(cluster: &Cluster, path: &str, keys: &[&str]) {
    let mut wanted: Vec<String> = keys.iter().map(|key| key_name(key)).collect();
    wanted.sort();
    for node in 0..cluster.len() {
        let what = format!("node {node} to serve {path} signed by {wanted:?}");
        eventually(&what, HEALED_MAX, || {
            (signers(&cluster[node], path) == wanted).then_some(())
        });
    }
}

/// The secret key that a node signs `main` with, in every form it could lie somewhere.
fn secret_of(node: &TestNode) -> Secrets {
    let file = node.data_dir().join("keys/main.key");
    let text = fs::read_to_string(file).expect("a key");
    let digits = text.trim().split(':').nth(1).expect("name:secret");
    let key: SecretKey = text.trim().parse().expect("a secret key");
    let bytes = data_encoding::BASE64
        .decode(digits.as_bytes())
        .expect("base64");
    assert_eq!(key.to_text(), text.trim());
    // The secret is the first half; the second is the public key.
    let digits_of_secret = &digits.as_bytes()[..40];
    Secrets::new()
        .with("key", digits_of_secret)
        .with("key", &bytes[..32])
}

#[test]
fn c11_signers_sign_once_and_others_serve_what_they_signed() {
    if !is_root("c11") {
        return;
    }
    let cluster = cluster();
    let (by_founder, by_writer) = (path("c11-one", 100_000), path("c11-two", 100_000));
    cluster[0].push(&[&by_founder]).succeeds();
    cluster[1].push(&[&by_writer]).succeeds();
    let pushed = (Instant::now(), VISIBLE_MAX);
    let key = cluster[0].public_key("main");
    for path in [&by_founder, &by_writer] {
        all_answer(&cluster, &[0, 1, 2], path, 200, pushed);
        wait_signers(&cluster, path, &[&key]);
    }
    // The reader's Nix takes both, signed by a key that its node does not have.
    realise(&cluster, 2, &[&by_founder, &by_writer]);
    assert!(!cluster[2].data_dir().join("keys/main.key").exists());
    let own = path("c11-own", 1000);
    cluster[2].push(&[&own]).fails();

    let secret = secret_of(&cluster[0]);
    assert_eq!(secret.known_to(&cluster[2]), BTreeSet::new());
    for node in 0..3 {
        let said = secret.in_files(&cluster[node].data_dir().join("cluster/log"));
        assert_eq!(said, BTreeSet::new(), "in the logs on node {node}");
    }
    for signer in [0, 1] {
        let known = secret.in_files(cluster[signer].data_dir());
        assert_eq!(known, secret.names(), "what is looked for can be found");
    }
}

#[test]
fn c11_an_imported_key_signs_on_all_signers_what_there_is_and_what_comes() {
    if !is_root("c11 import") {
        return;
    }
    let cluster = cluster();
    let (old_one, old_two) = (path("c11-old-one", 1000), path("c11-old-two", 1000));
    cluster[0].push(&[&old_one]).succeeds();
    cluster[1].push(&[&old_two]).succeeds();
    let pushed = (Instant::now(), VISIBLE_MAX);
    all_answer(&cluster, &[0, 1, 2], &old_two, 200, pushed);
    // One of them is on the reader's own disk.
    realise(&cluster, 2, &[&old_one]);
    let before = cluster[0].public_key("main");
    let imported = KeyPair::generate("office.example.org-1");
    let import = ["key", "import", "main", &imported.secret_file()];
    let refused = cluster[1].cli().run(&import).exits_with(1);
    refused.says("another node of the cluster owns this cache");
    cluster[0].cli().run(&import).succeeds();

    for path in [&old_one, &old_two] {
        wait_signers(&cluster, path, &[&before, &imported.public]);
    }
    eventually("the writer to have the key", HEALED_MAX, || {
        let secret = fs::read_to_string(cluster[1].data_dir().join("keys/main.key")).ok()?;
        (secret.trim() == imported.secret()).then_some(())
    });
    let new = path("c11-new", 1000);
    cluster[1].push(&[&new]).succeeds();
    wait_signers(&cluster, &new, &[&imported.public]);
    // Who trusts either key is served, by the node that has neither.
    for key in [&before, &imported.public] {
        let nix = cluster.nix(2, "main").trusting(key);
        nix.run("nix-store", &["--realise", &old_one, &old_two])
            .succeeds();
    }
    let secret = secret_of(&cluster[0]);
    assert_eq!(secret.known_to(&cluster[2]), BTreeSet::new());
}

#[test]
fn c11_a_rotation_keeps_old_signatures_as_long_as_it_was_told() {
    if !is_root("c11 rotation") {
        return;
    }
    let cluster = cluster();
    let paths = [path("c11-rotate-one", 1000), path("c11-rotate-two", 1000)];
    cluster[0].push(&[&paths[0]]).succeeds();
    cluster[1].push(&[&paths[1]]).succeeds();
    let pushed = (Instant::now(), VISIBLE_MAX);
    all_answer(&cluster, &[0, 1, 2], &paths[1], 200, pushed);
    realise(&cluster, 2, &[&paths[0]]);
    let first = cluster[0].public_key("main");
    let rotate = ["key", "rotate", "main", "--no-confirm"];
    cluster[0].cli().run(&rotate).succeeds();
    let second = cluster[0].public_key("main");
    assert_ne!(first, second);
    for path in &paths {
        wait_signers(&cluster, path, &[&first, &second]);
    }
    let briefly = [&rotate[..], &["--keep-old", "1s"]].concat();
    let rotated = cluster[0].cli().run(&briefly).succeeds();
    rotated.says("stays good until");
    let third = cluster[0].public_key("main");
    for path in &paths {
        wait_signers(&cluster, path, &[&first, &third]);
    }
    for node in 0..3 {
        let what = format!("node {node} to know two keys");
        eventually(&what, HEALED_MAX, || {
            let shown = cluster[node].cli().run(&["key", "show", "main"]).succeeds();
            (shown.lines().eq([&*third, &*first])).then_some(())
        });
        let nix = cluster.nix(node, "main");
        nix.run("nix-store", &["--realise", &paths[0], &paths[1]])
            .succeeds();
    }
    // Members get each further key, whatever became of those before.
    cluster[0].cli().run(&rotate).succeeds();
    let fourth = key_name(&cluster[0].public_key("main"));
    let third_path = path("c11-rotate-three", 1000);
    cluster[1].push(&[&third_path]).succeeds();
    for node in 0..3 {
        let what = format!("node {node} to serve what a member signed with the fourth key");
        eventually(&what, HEALED_MAX, || {
            signers(&cluster[node], &third_path)
                .contains(&fourth)
                .then_some(())
        });
    }
}

/// What `join` and `use` print is what Nix must trust: all keys in force and no other, the newest
/// first, however shortly before they changed.
#[test]
fn c11_join_prints_the_keys_in_force() {
    if !is_root("c11 join") {
        return;
    }
    let mut cluster = Cluster::new(1);
    let ticket = cluster.invite(0, &["--write", "*", "--uses", "9"]);
    // Who has just made a cluster says nothing for a moment.
    eventually("the cluster to know of the cache", HEALED_MAX, || {
        (cluster.view(0).caches.len() == 1).then_some(())
    });
    let rotate = ["key", "rotate", "main", "--no-confirm"];
    let mut in_force = vec![cluster[0].public_key("main")];
    for _ in 0..3 {
        for _ in 0..3 {
            cluster[0].cli().run(&rotate).succeeds();
            in_force.insert(0, cluster[0].public_key("main"));
        }
        let late = cluster.add();
        let joined = cluster.join(late, &ticket).succeeds();
        assert_eq!(trusted(&joined.stdout), in_force, "{joined}");
        let used = ["use", "main", "--print"];
        let used = cluster[late].cli().run(&used).succeeds();
        assert_eq!(trusted(&used.stdout), in_force, "{used}");
    }
    // One that is given up soon after is not printed once the node that made the cache said so.
    let briefly = [&rotate[..], &["--keep-old", "1s"]].concat();
    cluster[0].cli().run(&briefly).succeeds();
    in_force[0] = cluster[0].public_key("main");
    eventually("the key to be given up", HEALED_MAX, || {
        let caches = cluster.view(0).caches;
        (caches[0].public_keys.len() == in_force.len()).then_some(())
    });
    let late = cluster.add();
    let joined = cluster.join(late, &ticket).succeeds();
    assert_eq!(trusted(&joined.stdout), in_force, "{joined}");
    for node in 0..cluster.len() {
        let what = format!("node {node} to know the keys in force");
        eventually(&what, HEALED_MAX, || {
            let used = cluster[node].cli().run(&["use", "main", "--print"]);
            (trusted(&used.succeeds().stdout) == in_force).then_some(())
        });
    }
}

/// The keys in lines for a `nix.conf`.
fn trusted(lines: &str) -> Vec<String> {
    let keys = |line: &str| {
        let keys = line.strip_prefix("extra-trusted-public-keys = ")?;
        Some(keys.split(' ').map(str::to_owned).collect())
    };
    lines.lines().find_map(keys).expect("a line of keys")
}

/// What a member pushed while it heard of nobody, with a key that was given up meanwhile, it signs anew
/// by itself.
#[test]
fn c11_what_was_pushed_behind_a_partition_outlasts_the_key() {
    if !is_root("c11 partition") {
        return;
    }
    let mut cluster = Cluster::joined(3);
    let first = cluster[0].public_key("main");
    let before = path("c11-before-partition", 1000);
    cluster[1].push(&[&before]).succeeds();
    all_answer(
        &cluster,
        &[0, 1, 2],
        &before,
        200,
        (Instant::now(), VISIBLE_MAX),
    );
    cluster.network().cut(1);
    let behind = path("c11-behind-partition", 1000);
    cluster[1].push(&[&behind]).succeeds();
    let briefly = ["key", "rotate", "main", "--no-confirm", "--keep-old", "1s"];
    cluster[0].cli().run(&briefly).succeeds();
    let second = cluster[0].public_key("main");
    eventually("the first key to be given up", HEALED_MAX, || {
        let caches = cluster.view(0).caches;
        (caches[0].public_keys == [second.as_str()]).then_some(())
    });
    assert_eq!(signers(&cluster[1], &behind), [key_name(&first)]);
    cluster[1].kill();
    cluster[1].start_again();
    cluster.network().heal_all();
    cluster.wait_connected(&[0, 1, 2]);
    for path in [&before, &behind] {
        wait_signers(&cluster, path, &[&second]);
    }
    realise(&cluster, 2, &[&before, &behind]);
}
