//! Real Nix, signature checking on, against a node that was filled in each of the possible ways.

use std::collections::BTreeSet;
use std::thread;

use testnet::corpus::Closure;
use testnet::http::Request;
use testnet::nix::{KeyPair, NixClient};
use testnet::node::TestNode;
use testnet::odd_paths;
use testnet::program::{Outcome, is_root};
use testnet::served::hash_part;

/// How paths get into the node.
#[derive(Clone, Copy, Debug)]
enum Fill {
    /// `attic-node push`.
    Push,
    /// `nix copy --to http://…?compression=` this.
    Copy(&'static str),
}

/// A node that holds `roots` with their closures.
fn filled(fill: Fill, roots: &[&str]) -> TestNode {
    let node = TestNode::start();
    match fill {
        Fill::Push => drop(node.push(roots).succeeds()),
        Fill::Copy(compression) => {
            let nix = NixClient::host().authorised(&node);
            let url = format!("{}?compression={compression}", node.url("main"));
            let args: Vec<&str> = ["copy", "--to", &url]
                .into_iter()
                .chain(roots.iter().copied())
                .collect();
            nix.run("nix", &args).succeeds();
        }
    }
    node
}

/// Fills a node, copies everything from it into an empty store, and compares every hash.
fn check(fill: Fill) {
    if !is_root(&format!("substitute {fill:?}")) {
        return;
    }
    let host = NixClient::host();
    let closure = Closure::load("S");
    let odd = odd_paths::add(&host);
    let roots: Vec<&str> = odd
        .iter()
        .map(String::as_str)
        .chain([closure.root.as_str()])
        .collect();
    let node = filled(fill, &roots);

    let nix = NixClient::fresh(&node, "main");
    let url = node.url("main");
    look_into(&nix, &url, &roots);
    let args: Vec<&str> = ["copy", "--from", &url]
        .into_iter()
        .chain(roots.iter().copied())
        .collect();
    nix.run("nix", &args).succeeds();
    let all: Vec<&str> = closure
        .all()
        .chain(odd.iter().map(String::as_str))
        .collect();
    assert_eq!(nix.nar_hashes(&all), host.nar_hashes(&all));
    nix.verify_store();
}

/// `nix path-info --store` knows every path of the closure, and Nix finds each NAR to be what its
/// narinfo says.
#[track_caller]
fn look_into(nix: &NixClient, url: &str, roots: &[&str]) {
    let lines = |outcome: Outcome| {
        let lines = outcome.succeeds();
        lines.lines().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let args = ["path-info", "--recursive", "--store", url];
    let listed = lines(nix.run("nix", &[&args, roots].concat()));
    let args = ["--query", "--requisites"];
    let known = lines(NixClient::host().run("nix-store", &[&args, roots].concat()));
    assert_eq!(listed, known);
    let args = ["store", "verify", "--recursive", "--store", url];
    nix.run("nix", &[&args, roots].concat()).succeeds();
}

#[test]
fn pushed_paths_are_copied_from_the_node() {
    check(Fill::Push);
}

#[test]
fn s15_paths_uploaded_as_zstd_are_copied_from_the_node() {
    check(Fill::Copy("zstd"));
}

#[test]
fn s15_paths_uploaded_as_xz_are_copied_from_the_node() {
    check(Fill::Copy("xz"));
}

#[test]
fn s15_paths_uploaded_as_bzip2_are_copied_from_the_node() {
    check(Fill::Copy("bzip2"));
}

#[test]
fn s15_paths_uploaded_as_gzip_are_copied_from_the_node() {
    check(Fill::Copy("gzip"));
}

#[test]
fn s15_paths_uploaded_uncompressed_are_copied_from_the_node() {
    check(Fill::Copy("none"));
}

#[test]
fn nix_store_realises_from_a_pushed_node() {
    if is_root("realise after push") {
        realise(Fill::Push);
    }
}

#[test]
fn nix_store_realises_from_an_uploaded_node() {
    if is_root("realise after upload") {
        realise(Fill::Copy("zstd"));
    }
}

/// The node as a substituter, as a build sees it.
fn realise(fill: Fill) {
    let closure = Closure::load("S");
    let odd = odd_paths::add(&NixClient::host());
    let roots: Vec<&str> = odd
        .iter()
        .map(String::as_str)
        .chain([closure.root.as_str()])
        .collect();
    let node = filled(fill, &roots);
    let nix = NixClient::fresh(&node, "main");
    let args: Vec<&str> = ["--realise"].into_iter().chain(roots).collect();
    nix.run("nix-store", &args).succeeds();
    nix.verify_store();
    assert!(closure.all().all(|path| nix.physical(path).exists()));
}

/// What `nix path-info`, `nix store verify`, `ls` and `cat` say with the node as their store (S12).
#[test]
fn s12_nix_looks_into_the_node_without_downloading_all_of_it() {
    if !is_root("s12") {
        return;
    }
    let closure = Closure::load("S");
    let node = filled(Fill::Push, &[&closure.root]);
    let nix = NixClient::fresh(&node, "main");
    let url = node.url("main");

    let listed = nix.run(
        "nix",
        &["path-info", "--recursive", "--store", &url, &closure.root],
    );
    let listed = listed.succeeds();
    assert_eq!(listed.lines().count(), closure.all().count());
    let absent = "/nix/store/00000000000000000000000000000000-absent";
    nix.run("nix", &["path-info", "--store", &url, absent])
        .fails()
        .says("is not valid");

    nix.run(
        "nix",
        &[
            "store",
            "verify",
            "--recursive",
            "--store",
            &url,
            &closure.root,
        ],
    )
    .succeeds();

    let manifest = format!("{}/manifest", closure.root);
    let listing = nix.run(
        "nix",
        &[
            "store",
            "ls",
            "--json",
            "--recursive",
            "--store",
            &url,
            &closure.root,
        ],
    );
    let listing: serde_json::Value =
        serde_json::from_str(&listing.succeeds().stdout).expect("a listing");
    assert_eq!(listing["entries"]["manifest"]["type"], "regular");
    let shown = nix
        .run("nix", &["store", "cat", "--store", &url, &manifest])
        .succeeds();
    assert_eq!(shown.stdout.as_bytes(), NixClient::host().read(&manifest));
}

/// S12: build logs, listings and debug information travel with `nix copy` and come back.
#[test]
fn s12_logs_listings_and_debug_info_come_back() {
    if !is_root("s12 logs") {
        return;
    }
    let node = TestNode::start();
    let host = NixClient::host().authorised(&node);
    let url = node.url("main");
    let drv = host.instantiate("run \"s12-logged\" ''echo the log says so; echo x > $out''");
    host.run("nix-store", &["--realise", &drv]).succeeds();
    host.run("nix", &["store", "copy-log", "--to", &url, &drv])
        .succeeds();
    // Nix shows a log only of a derivation that the store has.
    host.run("nix", &["copy", "--derivation", "--to", &url, &drv])
        .succeeds();
    let nix = NixClient::fresh(&node, "main");
    nix.run("nix", &["log", "--store", &url, &drv])
        .succeeds()
        .says("the log says so");

    let id = "0123456789abcdef0123456789abcdef01234567";
    let script = format!(
        "mkdir -p $out/lib/debug/.build-id/{}; echo symbols > $out/lib/debug/.build-id/{}/{}.debug",
        &id[..2],
        &id[..2],
        &id[2..]
    );
    let path = host
        .build(&format!("run \"s12-debug\" ''{script}''"))
        .remove(0);
    let to = format!("{url}?compression=zstd&write-nar-listing=1&index-debug-info=1");
    host.run("nix", &["copy", "--to", &to, &path]).succeeds();
    let get = |target: String| {
        let response = Request::get(&target)
            .send(node.address())
            .expect("an answer");
        assert_eq!(response.status, 200, "{target}: {}", response.text());
        serde_json::from_slice::<serde_json::Value>(&response.body).expect("JSON")
    };
    let debug = get(format!("/main/debuginfo/{id}.debug"));
    let archive = debug["archive"]
        .as_str()
        .expect("an archive")
        .trim_start_matches("../");
    assert_eq!(
        node.get(&format!("/main/{archive}"))
            .expect("an answer")
            .status,
        200
    );
    let listing = get(format!("/main/{}.ls", hash_part(&path)));
    assert_eq!(listing["root"]["entries"]["lib"]["type"], "directory");
}

/// The listing that the node makes is the one that Nix would have made, byte for byte.
#[test]
fn s12_a_listing_is_what_nix_writes() {
    if !is_root("s12 listings") {
        return;
    }
    let node = TestNode::start();
    let host = NixClient::host();
    let closure = Closure::load("S");
    node.push(&[&closure.root]).succeeds();
    let dir = tempfile::TempDir::new().expect("make a directory");
    let to = format!(
        "file://{}?compression=none&write-nar-listing=1",
        dir.path().display()
    );
    host.run("nix", &["copy", "--to", &to, &closure.root])
        .succeeds();
    for path in closure.all() {
        let name = format!("{}.ls", hash_part(path));
        let by_nix = std::fs::read_to_string(dir.path().join(&name)).expect("Nix wrote a listing");
        let by_node = node
            .get(&format!("/main/{name}"))
            .expect("an answer")
            .text();
        assert_eq!(by_node, by_nix, "{path}");
    }
}

/// Signatures that paths bring along are kept beside the node's own (S6).
#[test]
fn s6_upstream_signatures_are_kept() {
    if !is_root("s6 signatures") {
        return;
    }
    let node = TestNode::start();
    let upstream = KeyPair::generate("upstream-1");
    let host = NixClient::host();
    let path = host.build("run \"s6-signed\" ''echo x > $out''").remove(0);
    host.run(
        "nix",
        &[
            "store",
            "sign",
            "--key-file",
            &upstream.secret_file(),
            &path,
        ],
    )
    .succeeds();
    node.push(&[&path]).succeeds();
    for key in [upstream.public, node.public_key("main")] {
        let nix = NixClient::fresh(&node, "main").trusting(&key);
        nix.run("nix-store", &["--realise", &path]).succeeds();
        assert!(nix.has(&path), "with {key}");
    }
}

/// Without a key that it trusts, Nix takes nothing from the node.
#[test]
fn a_client_that_trusts_another_key_takes_nothing() {
    if !is_root("wrong key") {
        return;
    }
    let path = NixClient::host()
        .build("run \"untrusted\" ''echo x > $out''")
        .remove(0);
    let node = filled(Fill::Push, &[&path]);
    let other = KeyPair::generate("main-1");
    for nix in [
        NixClient::fresh(&node, "main").trusting(""),
        NixClient::fresh(&node, "main").trusting(&other.public),
    ] {
        nix.run("nix", &["copy", "--from", &node.url("main"), &path])
            .fails()
            .says("lacks a valid signature");
        nix.run("nix-store", &["--realise", &path]).fails();
        assert!(!nix.has(&path));
    }
}

/// Content-addressed paths keep saying so, and need no key.
#[test]
fn content_addressed_paths_need_no_key() {
    if !is_root("content-addressed") {
        return;
    }
    let path = NixClient::host().add_file("content-addressed", b"x");
    for fill in [Fill::Push, Fill::Copy("xz")] {
        let node = filled(fill, &[&path]);
        let nix = NixClient::fresh(&node, "main").trusting("");
        nix.run("nix-store", &["--realise", &path]).succeeds();
        assert!(nix.has(&path), "{fill:?}");
    }
}

/// S1: a build goes on with the next substituter, without `--fallback`, when the node has nothing
/// or lost what it had.
#[test]
fn s1_a_build_goes_on_with_the_next_substituter() {
    if !is_root("s1") {
        return;
    }
    let host = NixClient::host();
    let path = host.build("run \"s1-next\" ''echo x > $out''").remove(0);
    let next = KeyPair::generate("next-1");
    let dir = tempfile::TempDir::new().expect("make a directory");
    let second = format!("file://{}", dir.path().display());
    let signing = format!("{second}?secret-key={}", next.secret_file());
    host.run("nix", &["copy", "--to", &signing, &path])
        .succeeds();

    // Nix asks a folder first unless it is told otherwise.
    let last = format!("{second}?priority=100");
    let asked = |node: &TestNode| {
        let status = node.status();
        status.narinfo_hits + status.narinfo_misses
    };
    let mut node = TestNode::start();
    let realise = |node: &TestNode, what: &str| {
        let asked_before = asked(node);
        let keys = format!("{} {}", node.public_key("main"), next.public);
        let nix = NixClient::fresh(node, "main").trusting(&keys);
        let nix = nix.substituter(&format!("{} {last}", node.url("main")));
        nix.run("nix-store", &["--realise", &path]).succeeds();
        assert!(nix.has(&path), "{what}");
        assert!(asked(node) > asked_before, "the node was not asked: {what}");
    };
    realise(&node, "the node has nothing");
    node.push(&[&path]).succeeds();
    for pack in node.packs() {
        std::fs::remove_file(pack).expect("remove a pack");
    }
    realise(&node, "the node's packs are gone while it runs");
    node.kill();
    node.start_again();
    realise(&node, "the node's packs are gone when it starts");
}

/// Sixteen builds at once, four of them into one store.
#[test]
fn many_clients_substitute_at_once() {
    if !is_root("many clients") {
        return;
    }
    let host = NixClient::host();
    let paths = host.build(
        "builtins.genList (n: run \"many-${toString n}\" ''head -c 300000 /dev/urandom > $out'') 8",
    );
    let roots: Vec<&str> = paths.iter().map(String::as_str).collect();
    let node = filled(Fill::Push, &roots);
    let shared = NixClient::fresh(&node, "main");
    // Each with a memory of narinfos of its own, which Nix 2.8 cannot share from the first moment.
    let realise = |nix: NixClient| {
        let args: Vec<&str> = ["--realise"]
            .into_iter()
            .chain(roots.iter().copied())
            .collect();
        nix.run("nix-store", &args).succeeds()
    };
    thread::scope(|scope| {
        for number in 0..16 {
            let nix = NixClient::fresh(&node, "main");
            let nix = if number < 4 {
                nix.sharing_store_of(&shared)
            } else {
                nix
            };
            scope.spawn(|| realise(nix));
        }
    });
    shared.verify_store();
}

/// Reading a closure changes nothing: only GET and HEAD are ever sent, and no retries are needed.
#[test]
fn reading_uses_only_get_and_head() {
    if !is_root("methods of a reader") {
        return;
    }
    let closure = Closure::load("S");
    let node = filled(Fill::Push, &[&closure.root]);
    let proxy = testnet::proxy::FaultProxy::clean(node.address());
    let nix = NixClient::fresh(&node, "main").substituter(&proxy.url("main"));
    nix.run(
        "nix",
        &["copy", "--from", &proxy.url("main"), &closure.root],
    )
    .succeeds();
    let log = proxy.log();
    assert!(
        log.iter()
            .all(|exchange| matches!(exchange.head.method.as_str(), "GET" | "HEAD"))
    );
    assert!(
        log.iter().all(|exchange| exchange.status == Some(200)),
        "{:?}",
        proxy.summary()
    );
    let nars = log
        .iter()
        .filter(|exchange| exchange.head.target.contains("/nar/"))
        .count();
    assert_eq!(nars, closure.all().count());
}
