//! Row S12: build logs, and where debug information is, go along with a push.

use std::fs;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use testnet::nix::NixClient;
use testnet::node::TestNode;
use testnet::program::{self, is_root};

/// A path that the machine's Nix builds now, and its derivation. Its build says `line`.
fn built(name: &str, line: &str, compress_log: &str) -> (String, String) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.expect("after 1970").as_nanos();
    let host = NixClient::host().set("compress-build-log", compress_log);
    let script = format!("run \"{name}\" ''echo {line}; echo {now} > $out''");
    let derivation = host.instantiate(&script);
    (host.build(&script).remove(0), derivation)
}

/// `GET` of the log of a derivation: status and text.
fn log(node: &TestNode, derivation: &str) -> (u16, String) {
    let name = derivation.trim_start_matches("/nix/store/");
    let answer = node.get(&format!("/main/log/{name}")).expect("an answer");
    (answer.status, answer.text())
}

#[test]
fn s12_nix_log_shows_the_log_of_a_pushed_path() {
    if !is_root("s12 logs") {
        return;
    }
    for (name, compress) in [("s12-bzip2", "true"), ("s12-plain", "false")] {
        let (path, derivation) = built(name, "the log says so", compress);
        let node = TestNode::start();
        node.push(&[&path]).succeeds();
        let nix = NixClient::fresh(&node, "main");
        nix.run("nix", &["log", "--store", &node.url("main"), &path])
            .succeeds()
            .says("the log says so");
        assert_eq!(log(&node, &derivation), (200, "the log says so\n".into()));
    }
}

#[test]
fn s12_logs_stay_at_home_when_told_or_when_they_are_elsewhere() {
    if !is_root("s12 no logs") {
        return;
    }
    let (path, derivation) = built("s12-quiet", "a secret", "true");
    let elsewhere = tempfile::TempDir::new().expect("make a directory");
    let check = |change: &dyn Fn(&mut Command)| {
        let node = TestNode::start();
        let mut push = node.cli().push_command(&[&path]);
        change(&mut push);
        program::run(&mut push).succeeds().says("All done!");
        assert_eq!(log(&node, &derivation).0, 404);
    };
    check(&|push| {
        push.arg("--no-logs");
    });
    check(&|push| {
        push.env("NIX_LOG_DIR", elsewhere.path());
    });
}

/// A log that cannot be read is said, and the path is pushed all the same.
#[test]
fn s12_an_unreadable_log_costs_no_path() {
    if !is_root("s12 unreadable log") {
        return;
    }
    let (path, derivation) = built("s12-unreadable", "lost", "true");
    let base = derivation.trim_start_matches("/nix/store/");
    let dir = tempfile::TempDir::new().expect("make a directory");
    let folder = dir.path().join("drvs").join(&base[..2]);
    fs::create_dir_all(&folder).expect("make a directory");
    fs::write(folder.join(format!("{}.bz2", &base[2..])), "no bzip2").expect("write a log");
    let node = TestNode::start();
    let mut push = node.cli().push_command(&[&path]);
    push.env("NIX_LOG_DIR", dir.path());
    program::run(&mut push)
        .succeeds()
        .says(&format!("warning: not pushed: log/{base}: read "))
        .says("All done!");
    assert_eq!(log(&node, &derivation).0, 404);
}

/// The logs of a chroot store are its own.
#[test]
fn s12_a_push_from_a_chroot_store_takes_its_paths_and_its_logs() {
    if !is_root("s12 chroot") {
        return;
    }
    let (path, derivation) = built("s12-chroot", "said outside", "true");
    let nix = NixClient::empty();
    let root = nix.physical("/");
    let root = root.to_str().expect("UTF-8").trim_end_matches('/');
    let to = format!("local?root={root}");
    NixClient::host()
        .run("nix", &["copy", "--no-check-sigs", "--to", &to, &path])
        .succeeds();
    let base = derivation.trim_start_matches("/nix/store/");
    let folder = format!("{root}/nix/var/log/nix/drvs/{}", &base[..2]);
    fs::create_dir_all(&folder).expect("make a directory");
    fs::write(format!("{folder}/{}", &base[2..]), "said inside\n").expect("write a log");
    let only_there = nix.add_file("s12-only-there", b"only there");

    let node = TestNode::start();
    node.cli()
        .run(&["push", "main", "--store", root, &path, &only_there])
        .succeeds();
    let fresh = NixClient::fresh(&node, "main");
    for path in [&path, &only_there] {
        fresh.run("nix-store", &["--realise", path]).succeeds();
    }
    assert_eq!(fresh.read(&only_there), b"only there");
    assert_eq!(log(&node, &derivation), (200, "said inside\n".into()));
}

/// What dwarffs asks: which file of which NAR holds the debug information of a build id.
#[test]
fn s12_debug_information_of_a_pushed_path_is_found_by_its_build_id() {
    if !is_root("s12 debug information") {
        return;
    }
    let id = "89abcdef0123456789abcdef0123456789abcdef";
    let member = format!("lib/debug/.build-id/{}/{}.debug", &id[..2], &id[2..]);
    let folder = format!("$out/lib/debug/.build-id/{}", &id[..2]);
    let script = format!("mkdir -p {folder}; echo symbols > $out/{member}");
    let path = NixClient::host()
        .build(&format!("run \"s12-separate-debug\" ''{script}''"))
        .remove(0);
    let node = TestNode::start();
    node.push(&[&path]).succeeds();
    for ending in ["", ".debug"] {
        let found = node
            .get(&format!("/main/debuginfo/{id}{ending}"))
            .expect("an answer");
        assert_eq!(found.status, 200, "{}", found.text());
        let found: serde_json::Value = serde_json::from_slice(&found.body).expect("JSON");
        assert_eq!(found["member"], member);
        let archive = found["archive"].as_str().expect("an archive");
        let narinfo = node.get(&format!("/main/{}.narinfo", &path[11..43]));
        let url = format!("URL: {}\n", archive.trim_start_matches("../"));
        let narinfo = narinfo.expect("an answer").text();
        assert!(narinfo.contains(&url), "{url}{narinfo}");
    }
}
