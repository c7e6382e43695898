//! What the node promises to Nix, kept to clients newer than the machine's.
//!
//! `testnet/scripts/newer-nix.sh` puts such clients into a cache folder; where there is none, each
//! test says that it is left out. A newer Nix adds tables to the database of every store that it
//! opens, so none is ever given the machine's: each works on a copy, or on a store of its own.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use testnet::corpus::Closure;
use testnet::nix::NixClient;
use testnet::node::TestNode;
use testnet::odd_paths;
use testnet::program::{self, Outcome, is_root};
use testnet::proxy::FaultProxy;
use testnet::static_cache::StaticCache;

use crate::upstream::config;

/// A Nix that `newer-nix.sh` unpacked.
#[derive(Debug)]
struct Newer {
    version: String,
    bin: PathBuf,
}

impl Newer {
    /// All there are, in the order of their names; says so when `what` is left out.
    fn all(what: &str) -> Vec<Newer> {
        if !is_root(what) {
            return Vec::new();
        }
        let folder = folder();
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        let mut found: Vec<Newer> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(|first: char| first.is_ascii_digit()))
            .map(|version| Newer {
                bin: folder.join(&version).join("bin"),
                version,
            })
            .filter(|newer| newer.bin.join("nix").is_file())
            .collect();
        found.sort_by(|a, b| a.version.cmp(&b.version));
        if found.is_empty() {
            eprintln!(
                "SKIPPED {what}: no newer Nix in {} (testnet/scripts/newer-nix.sh gets it)",
                folder.display()
            );
        }
        found
    }

    /// Runs one of its programs with the configuration, the caches and the store of `nix`.
    #[track_caller]
    fn run(&self, nix: &NixClient, program: &str, args: &[&str]) -> Outcome {
        let of_machine = nix.physical("/") == Path::new("/");
        assert!(!of_machine, "a newer Nix would change the machine's store");
        let program = self.bin.join(program);
        nix.run(program.to_str().expect("a folder named in UTF-8"), args)
    }

    /// Runs `attic-node push main --store …` as a user whose `nix` is this one.
    #[track_caller]
    fn push(&self, node: &TestNode, source: &NixClient, roots: &[&str]) -> Outcome {
        let mut command = node.cli().command(&["push", "main", "--store"]);
        command
            .arg(source.physical("/"))
            .args(roots)
            .env("PATH", self.search_path())
            .env("NIX_CONFIG", "build-users-group =");
        program::run(&mut command)
    }

    fn search_path(&self) -> OsString {
        let inherited = env::var_os("PATH").unwrap_or_default();
        let dirs = [self.bin.clone()]
            .into_iter()
            .chain(env::split_paths(&inherited));
        env::join_paths(dirs).expect("a folder without a colon")
    }

    /// NAR hashes that the store of `nix` records for `paths`, in their order.
    #[track_caller]
    fn nar_hashes(&self, nix: &NixClient, paths: &[&str]) -> Vec<String> {
        let queried = self.run(nix, "nix-store", &with(&["--query", "--hash"], paths));
        queried.succeeds().lines().map(str::to_owned).collect()
    }

    /// Reads every byte of the store of `nix` again and compares with the recorded hashes.
    #[track_caller]
    fn verify_store(&self, nix: &NixClient) {
        self.run(nix, "nix-store", &["--verify", "--check-contents"])
            .succeeds();
    }
}

/// How paths get into the node.
#[derive(Clone, Copy, Debug)]
enum Fill {
    /// `attic-node push`, which asks `nix path-info --json`.
    Push,
    /// `nix copy --to http://…?compression=` this.
    Copy(&'static str),
}

/// A node that holds `roots` with their closures, all of it by the doing of `newer`.
#[track_caller]
fn filled(newer: &Newer, fill: Fill, roots: &[&str]) -> TestNode {
    let node = TestNode::start();
    let source = copied_from_the_machine(roots);
    match fill {
        Fill::Push => drop(newer.push(&node, &source, roots).succeeds()),
        Fill::Copy(compression) => {
            let source = source.authorised(&node);
            let url = format!("{}?compression={compression}", node.url("main"));
            newer
                .run(&source, "nix", &with(&["copy", "--to", &url], roots))
                .succeeds();
        }
    }
    node
}

/// A store with `roots` and their closures, made by the machine's Nix.
#[track_caller]
fn copied_from_the_machine(roots: &[&str]) -> NixClient {
    let nix = NixClient::empty();
    let to = format!("local?root={}", nix.physical("/").display());
    NixClient::host()
        .run(
            "nix",
            &with(&["copy", "--no-check-sigs", "--to", &to], roots),
        )
        .succeeds();
    nix
}

/// Fills a node with closure S and the odd paths. Then copies everything from it into an empty
/// store, and substitutes everything into another; compares every hash and every byte.
fn check(fill: Fill) {
    for newer in Newer::all(&format!("newer Nix {fill:?}")) {
        eprintln!("Nix {}", newer.version);
        let host = NixClient::host();
        let closure = Closure::load("S");
        let odd = odd_paths::add(&host);
        let odd: Vec<&str> = odd.iter().map(String::as_str).collect();
        let roots = with(&odd, &[&closure.root]);
        let all: Vec<&str> = closure.all().chain(odd.iter().copied()).collect();
        let node = filled(&newer, fill, &roots);
        let wanted = host.nar_hashes(&all);

        let copied = NixClient::fresh(&node, "main");
        let url = node.url("main");
        newer
            .run(&copied, "nix", &with(&["copy", "--from", &url], &roots))
            .succeeds();
        assert_eq!(newer.nar_hashes(&copied, &all), wanted);
        newer.verify_store(&copied);

        let realised = NixClient::fresh(&node, "main");
        newer
            .run(&realised, "nix-store", &with(&["--realise"], &roots))
            .succeeds();
        assert_eq!(newer.nar_hashes(&realised, &all), wanted);
        newer.verify_store(&realised);
    }
}

#[test]
fn newer_nix_reads_what_is_pushed_from_its_store() {
    check(Fill::Push);
}

#[test]
fn newer_nix_reads_what_it_uploads_as_zstd() {
    check(Fill::Copy("zstd"));
}

#[test]
fn newer_nix_reads_what_it_uploads_uncompressed() {
    check(Fill::Copy("none"));
}

/// The slow compressions, on paths that are small.
#[test]
fn newer_nix_reads_what_it_uploads_in_older_compressions() {
    for newer in Newer::all("newer Nix, older compressions") {
        let host = NixClient::host();
        let odd = odd_paths::add(&host);
        let odd: Vec<&str> = odd.iter().map(String::as_str).collect();
        for compression in ["xz", "bzip2", "gzip"] {
            eprintln!("Nix {} {compression}", newer.version);
            let node = filled(&newer, Fill::Copy(compression), &odd);
            let nix = NixClient::fresh(&node, "main");
            newer
                .run(&nix, "nix-store", &with(&["--realise"], &odd))
                .succeeds();
            assert_eq!(newer.nar_hashes(&nix, &odd), host.nar_hashes(&odd));
            newer.verify_store(&nix);
        }
    }
}

/// A second push and a second upload find everything there.
#[test]
fn newer_nix_publishes_twice_without_complaint() {
    for newer in Newer::all("newer Nix twice") {
        eprintln!("Nix {}", newer.version);
        let closure = Closure::load("S");
        let roots = [closure.root.as_str()];
        let node = filled(&newer, Fill::Push, &roots);
        let stored = node.pack_bytes();
        let source = copied_from_the_machine(&roots).authorised(&node);
        newer.push(&node, &source, &roots).succeeds();
        let url = format!("{}?compression=zstd", node.url("main"));
        newer
            .run(&source, "nix", &with(&["copy", "--to", &url], &roots))
            .succeeds();
        assert_eq!(node.pack_bytes(), stored, "something was stored twice");
    }
}

/// `nix path-info`, `nix store verify`, `ls` and `cat` with the node as their store (S12).
#[test]
fn s12_newer_nix_looks_into_the_node_without_downloading_all_of_it() {
    for newer in Newer::all("newer Nix s12") {
        eprintln!("Nix {}", newer.version);
        let closure = Closure::load("S");
        let root = closure.root.as_str();
        let node = filled(&newer, Fill::Push, &[root]);
        let nix = NixClient::fresh(&node, "main");
        let url = node.url("main");
        let ask = |words: &[&str], path: &str| {
            newer.run(&nix, "nix", &with(words, &["--store", &url, path]))
        };

        let listed = ask(&["path-info", "--recursive"], root).succeeds();
        assert_eq!(listed.lines().count(), closure.all().count());
        let absent = "/nix/store/00000000000000000000000000000000-absent";
        ask(&["path-info"], absent).fails().says("is not valid");
        ask(&["store", "verify", "--recursive"], root).succeeds();

        let listing = ask(&["store", "ls", "--json", "--recursive"], root).succeeds();
        let listing: serde_json::Value = serde_json::from_str(&listing.stdout).expect("a listing");
        assert_eq!(listing["entries"]["manifest"]["type"], "regular");
        let manifest = format!("{root}/manifest");
        let shown = ask(&["store", "cat"], &manifest).succeeds();
        assert_eq!(shown.stdout.as_bytes(), NixClient::host().read(&manifest));
    }
}

/// The NAR of a path that an upstream has is found again by the URL that a newer Nix remembers, also
/// after the node has started again and forgotten.
#[test]
fn s7_newer_nix_comes_back_for_a_nar_after_a_restart() {
    for newer in Newer::all("newer Nix s7") {
        eprintln!("Nix {}", newer.version);
        let upstream = StaticCache::serve("upstream-1");
        let built =
            NixClient::host().build("run \"s7-newer\" ''head -c 1000000 /dev/urandom > $out''");
        let path = built[0].as_str();
        upstream.add(&[path], "xz");
        let proxy = FaultProxy::clean(upstream.address());
        let mut node = TestNode::with_config(&config(&[(&proxy, &*upstream.key.public)]));
        // The node comes back on another port, and Nix remembers by address.
        let front = FaultProxy::clean(node.address());
        let url = front.url("main");
        let nix = || {
            NixClient::empty()
                .substituter(&url)
                .trusting(&upstream.key.public)
        };
        let (copied, realised) = (nix(), nix());
        for nix in [&copied, &realised] {
            newer
                .run(nix, "nix", &["path-info", "--store", &url, path])
                .succeeds();
        }
        assert!(node.stop().success());
        node.start_again();
        front.set_upstream(node.address());
        front.clear_log();
        newer
            .run(&copied, "nix", &["copy", "--from", &url, path])
            .succeeds();
        newer
            .run(&realised, "nix-store", &["--realise", path])
            .succeeds();
        for nix in [&copied, &realised] {
            newer.verify_store(nix);
        }
        // It did not ask for the narinfo again.
        let asked = front.log();
        let asked = asked
            .iter()
            .filter(|asked| asked.head.target.contains(".narinfo"));
        assert_eq!(asked.count(), 0, "{:#?}", front.log());
    }
}

/// Without a key that it trusts, a newer Nix takes nothing from the node either.
#[test]
fn newer_nix_that_trusts_no_key_takes_nothing() {
    for newer in Newer::all("newer Nix, no key") {
        eprintln!("Nix {}", newer.version);
        let path = NixClient::host()
            .build("run \"untrusted\" ''echo x > $out''")
            .remove(0);
        let node = filled(&newer, Fill::Push, &[&path]);
        let nix = NixClient::fresh(&node, "main").trusting("");
        let url = node.url("main");
        newer
            .run(&nix, "nix", &["copy", "--from", &url, &path])
            .fails()
            .says("lacks a signature by a trusted key");
        newer.run(&nix, "nix-store", &["--realise", &path]).fails();
        newer
            .run(&nix, "nix-store", &["--check-validity", &path])
            .fails();
    }
}

fn with<'a>(words: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    words.iter().chain(more).copied().collect()
}

/// Where `newer-nix.sh` puts what it unpacks.
fn folder() -> PathBuf {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")));
    cache.expect("HOME is set").join("attic-node-nix")
}
