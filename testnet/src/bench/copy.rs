//! What a person waits for: `nix copy --from` into an empty store.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::corpus::{self, Closure};
use crate::nginx::Nginx;
use crate::nix::{KeyPair, NixClient};
use crate::node::TestNode;
use crate::program;

use super::{Against, Bound, Figure, Row, median, say};

/// L1 from the node, and from nginx in each compression that people use.
pub(super) fn copy(repeat: u32) -> Vec<Row> {
    let closure = Closure::load("L1");
    let statics: Vec<StaticCache> = ["none", "zstd", "xz"]
        .into_iter()
        .map(|c| StaticCache::of(&closure, c))
        .collect();
    say("push L1");
    let node = TestNode::start();
    node.push(&[&closure.root]).succeeds();
    let key = node.public_key("main");

    let mut ours = Vec::new();
    let mut theirs = vec![Vec::new(); statics.len()];
    for round in 1..=repeat {
        say(&format!("copy L1 from each in turn, {round} of {repeat}"));
        ours.push(time_copy(&node.url("main"), &key, &closure));
        for (cache, times) in statics.iter().zip(&mut theirs) {
            times.push(time_copy(&cache.nginx.url(), &cache.key, &closure));
        }
    }
    let theirs = theirs.into_iter().map(median).zip(&statics);
    let (best, cache) = theirs
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .expect("three caches");
    vec![Row {
        what: "`nix copy --from` of L1 into an empty store, wall clock".into(),
        ours: Figure {
            value: median(ours),
            unit: "s",
        },
        against: Some(Against {
            name: format!("nginx, {}", cache.compression),
            figure: Figure {
                value: best,
                unit: "s",
            },
        }),
        wanted: Some(Bound::AtMost(1.05)),
    }]
}

/// A binary cache in files, made by Nix, and kept: xz takes minutes.
pub(super) struct StaticCache {
    compression: &'static str,
    pub(super) nginx: Nginx,
    pub(super) key: String,
}

impl StaticCache {
    pub(super) fn of(closure: &Closure, compression: &'static str) -> StaticCache {
        let dir = corpus::directory().join(format!("static-L1-{compression}"));
        let key = fs::read_to_string(dir.join("public-key")).unwrap_or_else(|_| {
            say(&format!("make a static cache, {compression}"));
            fill(&dir, closure, compression)
        });
        StaticCache {
            compression,
            nginx: Nginx::serve(&dir),
            key,
        }
    }
}

/// Fills a static cache and gives the key that signed it, which marks it as complete.
fn fill(dir: &Path, closure: &Closure, compression: &str) -> String {
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir).expect("make a directory");
    let key = KeyPair::generate("static-1");
    let url = format!(
        "file://{}?compression={compression}&parallel-compression=true&secret-key={}",
        dir.display(),
        key.secret_file()
    );
    let nix = NixClient::host();
    // Takes longer than any program of a test may run.
    let status = nix
        .command("nix", &["copy", "--to", &url, &closure.root])
        .stderr(Stdio::null())
        .status();
    let status = status.expect("run nix");
    assert!(status.success(), "nix copy --to {url}");
    fs::write(dir.join("public-key"), &key.public).expect("write the key");
    key.public
}

/// Seconds until the closure is in an empty store, in a directory that was never used before.
pub(super) fn time_copy(url: &str, key: &str, closure: &Closure) -> f64 {
    let nix = NixClient::empty().substituter(url).trusting(key);
    flush(Path::new("/"));
    let started = Instant::now();
    nix.run("nix", &["copy", "--from", url, &closure.root])
        .succeeds();
    started.elapsed().as_secs_f64()
}

/// Lets what was written before reach the disk, so that one copy does not pay for another.
fn flush(file_system: &Path) {
    program::run(Command::new("sync").arg("--file-system").arg(file_system)).succeeds();
}
