//! Row S1 with real Nix: what rots inside a large NAR is found when it is read, after the status
//! line has gone. The build goes on all the same.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use testnet::nix::{KeyPair, NixClient};
use testnet::node::TestNode;
use testnet::program::is_root;
use testnet::proxy::{Exchange, FaultProxy};
use testnet::seed::Seed;

/// A running node with a path of 24 MiB, in whose middle a bit has flipped. (When it starts it looks
/// through packs that were still open, and would find it then.)
fn rotten(path: &str) -> TestNode {
    let node = TestNode::start();
    node.push(&[path]).succeeds();
    // Requests at the same time may fill two packs; the middle of the larger one is far from the
    // beginning of the NAR.
    let len = |pack: &PathBuf| fs::metadata(pack).expect("a pack").len();
    let pack = node.packs().into_iter().max_by_key(len).expect("a pack");
    let file = File::options().read(true).write(true).open(&pack);
    let file = file.expect("open a pack");
    let (at, mut byte) = (len(&pack) / 2, [0]);
    file.read_exact_at(&mut byte, at).expect("read a byte");
    file.write_all_at(&[byte[0] ^ 16], at)
        .expect("write a byte");
    node
}

/// The NAR requests that passed.
fn nars(proxy: &FaultProxy) -> Vec<Exchange> {
    let is_nar = |exchange: &Exchange| exchange.head.target.contains("/nar/");
    proxy.log().into_iter().filter(is_nar).collect()
}

#[test]
fn s1_a_build_goes_on_when_a_download_breaks_at_a_flipped_bit() {
    if !is_root("s1 flipped bit") {
        return;
    }
    let host = NixClient::host();
    let path = host.add_file("s1-flipped", &Seed::new(1).bytes(24 << 20));
    let next = KeyPair::generate("next-1");
    let dir = tempfile::TempDir::new().expect("make a directory");
    let second = format!("file://{}", dir.path().display());
    // Nix asks a folder first unless it is told otherwise.
    let behind = format!("{second}?priority=100");
    let signing = format!(
        "{second}?compression=none&secret-key={}",
        next.secret_file()
    );
    host.run("nix", &["copy", "--to", &signing, &path])
        .succeeds();

    let node = rotten(&path);
    let proxy = FaultProxy::clean(node.address());
    let nix = NixClient::fresh(&node, "main")
        .trusting(&format!("{} {}", node.public_key("main"), next.public))
        .substituter(&format!("{} {behind}", proxy.url("main")));
    nix.run("nix-store", &["--realise", &path]).succeeds();
    nix.verify_store();
    let requests = nars(&proxy);
    let (first, last) = (requests.first(), requests.last());
    assert_eq!(first.and_then(|e| e.status), Some(200), "{requests:#?}");
    assert!(
        first.is_some_and(|e| e.answer_bytes < 24 << 20),
        "{requests:#?}"
    );
    assert_eq!(last.and_then(|e| e.status), Some(404), "{requests:#?}");

    // Whoever comes now is told at once, and is not sent a byte.
    proxy.clear_log();
    let nix =
        NixClient::fresh(&node, "main").substituter(&format!("{} {behind}", proxy.url("main")));
    let nix = nix.trusting(&format!("{} {}", node.public_key("main"), next.public));
    nix.run("nix-store", &["--realise", &path]).succeeds();
    assert_eq!(nars(&proxy), []);
}

/// With nobody else to ask, it fails soon and clearly, and takes no wrong byte.
#[test]
fn s1_a_flipped_bit_fails_cleanly_when_there_is_no_other_substituter() {
    if !is_root("s1 alone") {
        return;
    }
    let path = NixClient::host().add_file("s1-alone", &Seed::new(2).bytes(24 << 20));
    let node = rotten(&path);
    let nix = NixClient::fresh(&node, "main");
    let begun = Instant::now();
    nix.run("nix-store", &["--realise", &path]).fails();
    assert!(
        begun.elapsed() < Duration::from_secs(60),
        "{:?}",
        begun.elapsed()
    );
    assert!(!nix.has(&path));
    node.push(&[&path]).succeeds();
    let nix = NixClient::fresh(&node, "main");
    nix.run("nix-store", &["--realise", &path]).succeeds();
    nix.verify_store();
}
