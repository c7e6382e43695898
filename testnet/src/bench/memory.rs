//! How much memory a NAR needs that is larger than memory should be.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::thread;

use tempfile::TempDir;

use crate::http::Connection;
use crate::nix::NixClient;
use crate::node::TestNode;
use crate::seed::Seed;
use crate::served::{hash_part, narinfo_fields};

use super::{Bound, Row, say};

const CLIENTS: usize = 16;

/// Pushes 4 GiB of random bytes and serves them to 16 clients at once.
pub(super) fn memory() -> Vec<Row> {
    say("make a path of 4 GiB");
    let path = large_path();
    let node = TestNode::start();
    say("push it");
    let (push, client_peak) = node
        .cli()
        .start(&["push", "main", &path])
        .wait_measuring_memory();
    push.succeeds();
    let pushed_peak = node.rss_peak();

    say("serve it to 16 clients");
    let narinfo = node
        .get(&format!("/main/{}.narinfo", hash_part(&path)))
        .expect("an answer");
    let target = format!("/main/{}", narinfo_fields(&narinfo.text())["URL"]);
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut connection = Connection::open(node.address()).expect("connect");
                connection.download(&target).expect("a whole body")
            });
        }
    });
    let row = |what: &str, bytes: u64| {
        let mib = bytes as f64 / f64::from(1 << 20);
        Row::alone(what, mib, "MiB", Some(Bound::AtMost(256.0)))
    };
    vec![
        row("memory of the client pushing a NAR of 4 GiB", client_peak),
        row("memory of the node taking it", pushed_peak),
        row(
            "memory of the node after serving it to 16 clients",
            node.rss_peak(),
        ),
    ]
}

/// The same path each time, so that a store holds it once.
fn large_path() -> String {
    let dir = TempDir::new().expect("make a directory");
    let file = dir.path().join("bench-4-gib");
    let mut out = BufWriter::new(File::create(&file).expect("make a file"));
    let mut seed = Seed::new(4 << 30);
    for _ in 0..4096 {
        out.write_all(&seed.bytes(1 << 20)).expect("write a file");
    }
    out.flush().expect("write a file");
    NixClient::host().add(&[file]).remove(0)
}
