//! Row G10 and G6: a NAR that is larger than memory and disk cache, in, out and collected.
//!
//! Its contents compress to about an eighth and repeat nothing, so that it has as many chunks as a NAR
//! of that size has, on an eighth of the disk.

use std::env;
use std::io::Result;

use attic_store::NarHash;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::http::{Connection, Request};
use crate::nar::string;
use crate::node::TestNode;
use crate::seed::Seed;
use crate::served::narinfo_fields;

use super::{Bound, Row, say};

/// How many GiB, unless `ATTIC_NODE_BENCH_GIB` says otherwise.
const GIB: u64 = 100;

/// Uploads the NAR as plain Nix would, downloads it, removes its path and collects.
pub(super) fn huge() -> Vec<Row> {
    let gib = env::var("ATTIC_NODE_BENCH_GIB").map_or(GIB, |text| {
        text.parse().expect("ATTIC_NODE_BENCH_GIB is a number")
    });
    let node = TestNode::start();
    say(&format!("upload a NAR of {gib} GiB"));
    let path = upload(&node, gib << 30).expect("an upload");
    let taken = node.rss_peak();
    let chunks = node.metric("attic_node_store_chunks");
    say("download it");
    let narinfo = node
        .get(&format!("/main/{HASH}.narinfo"))
        .expect("an answer");
    let url = narinfo_fields(&narinfo.text())["URL"].clone();
    let mut connection = Connection::open(node.address()).expect("connect");
    connection
        .download(&format!("/main/{url}"))
        .expect("a whole body");
    let served = node.rss_peak();
    say("remove and collect it");
    node.cli().run(&["rm", "main", &path]).succeeds();
    let gc = node.cli().run(&["gc", "--json"]).succeeds();
    let gc: Value = serde_json::from_str(&gc.stdout).expect("JSON");
    say(&format!("{chunks:?} chunks; {gc}"));
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let memory = Some(Bound::AtMost(256.0));
    let seconds = gc["millis"].as_f64().unwrap_or_default() / 1000.0;
    vec![
        Row::alone(
            format!("memory of the node taking a NAR of {gib} GiB"),
            mib(taken),
            "MiB",
            memory,
        ),
        Row::alone("serving it", mib(served), "MiB", memory),
        Row::alone("collecting it, memory", mib(node.rss_peak()), "MiB", None),
        Row::alone("collecting it, wall", seconds, "s", None),
    ]
}

/// Sends the NAR of one file of `len` bytes and its narinfo; the store path.
fn upload(node: &TestNode, len: u64) -> Result<String> {
    // Its name is its hash: it is made twice.
    let mut hasher = Sha256::new();
    let mut nar_size = 0;
    make(len, |bytes| {
        hasher.update(bytes);
        nar_size += bytes.len();
        Ok(())
    })?;
    let nar_hash = NarHash::from_bytes(hasher.finalize().into());
    let file = format!("nar/{}.nar", nar_hash.nix32());
    let mut connection = Connection::open(node.address())?;
    let (host, token) = (node.address(), node.token());
    connection.send_raw(
        format!(
            "PUT /main/{file} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\
             Content-Length: {nar_size}\r\n\r\n"
        )
        .as_bytes(),
    )?;
    make(len, |bytes| connection.send_raw(bytes))?;
    let answer = connection.read_response(false)?;
    assert!(answer.status < 300, "{} {}", answer.status, answer.text());
    let path = format!("/nix/store/{HASH}-huge");
    let narinfo = format!(
        "StorePath: {path}\nURL: {file}\nCompression: none\nNarHash: {nar_hash}\n\
         NarSize: {nar_size}\nReferences: \n"
    );
    let request = Request::put(&format!("/main/{HASH}.narinfo"), narinfo).token(&token);
    let answer = request.send(node.address())?;
    assert!(answer.status < 300, "{} {}", answer.status, answer.text());
    Ok(path)
}

/// Gives the NAR of one file of `len` bytes, the same each time, block by block.
fn make(len: u64, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let (head, tail) = around(len);
    take(&head)?;
    let mut seed = Seed::new(len);
    let mut block = vec![0; BLOCK];
    for _ in 0..len / BLOCK as u64 {
        fill(&mut block, &mut seed);
        take(&block)?;
    }
    take(&tail)
}

/// What a NAR of one file of `len` bytes, a multiple of 8, has before and after them.
fn around(len: u64) -> (Vec<u8>, Vec<u8>) {
    let mut head = Vec::new();
    for text in ["nix-archive-1", "(", "type", "regular", "contents"] {
        string(&mut head, text.as_bytes());
    }
    head.extend_from_slice(&len.to_le_bytes());
    let mut tail = Vec::new();
    string(&mut tail, b")");
    (head, tail)
}

/// A random bit in each byte.
fn fill(block: &mut [u8], seed: &mut Seed) {
    for eight in block.chunks_exact_mut(64) {
        let bits = seed.bits();
        for (number, word) in eight.chunks_exact_mut(8).enumerate() {
            let spread = (bits >> number) & 0x0101_0101_0101_0101;
            word.copy_from_slice(&spread.to_le_bytes());
        }
    }
}

const HASH: &str = "00000000000000000000000000000000";
const BLOCK: usize = 1 << 20;
