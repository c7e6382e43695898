//! Row G6: five million chunks that nothing needs any more go in one collection.
//!
//! They are small, so that they are made in minutes; what a collection does to each does not depend on
//! its length.

use std::env;

use serde_json::Value;

use crate::native;
use crate::node::TestNode;
use crate::seed::Seed;
use crate::served::Served;
use crate::upload::Upload;

use super::{Bound, Row, say};

/// How many thousand chunks, unless `ATTIC_NODE_BENCH_CHUNKS` says otherwise.
const THOUSANDS: usize = 5_000;

/// Pushes NARs of a hundred thousand chunks each, removes all but one, and collects.
pub(super) fn dead() -> Vec<Row> {
    let thousands = env::var("ATTIC_NODE_BENCH_CHUNKS").map_or(THOUSANDS, |text| {
        text.parse().expect("ATTIC_NODE_BENCH_CHUNKS is a number")
    });
    let node = TestNode::start();
    let (address, token) = (node.address(), node.token());
    let mut seed = Seed::new(6);
    let mut push = |name: &str| {
        let upload = Upload::random(&mut seed, name, THOUSANDS_OF_ONE * 1000 * CHUNK_LEN);
        native::push_in_pieces(address, &token, &upload, CHUNK_LEN).expect("a push");
        upload
    };
    let live = push("live");
    let count = thousands.div_ceil(THOUSANDS_OF_ONE);
    let mut dead = Vec::new();
    for number in 0..count {
        say(&format!(
            "push {THOUSANDS_OF_ONE},000 chunks, {number} of {count}"
        ));
        dead.push(push("dead").path());
    }
    let chunks = node.metric("attic_node_store_chunks").unwrap_or_default();
    let mut remove = vec!["rm", "main"];
    remove.extend(dead.iter().map(String::as_str));
    node.cli().run(&remove).succeeds();
    say("collect them");
    let gc = node.cli().run(&["gc", "--json"]).succeeds();
    let gc: Value = serde_json::from_str(&gc.stdout).expect("JSON");
    say(&format!("{chunks} chunks; {gc}"));
    let left = node.metric("attic_node_store_chunks").unwrap_or_default();
    assert_eq!(node.read(&live.path()), Served::Whole(live.nar));
    let seconds = gc["millis"].as_f64().unwrap_or_default() / 1000.0;
    let memory = node.rss_peak() as f64 / f64::from(1 << 20);
    vec![
        Row::alone(
            format!(
                "collect {} million dead chunks in one run",
                thousands / 1000
            ),
            seconds,
            "s",
            None,
        ),
        Row::alone("memory meanwhile", memory, "MiB", None),
        Row::alone(
            "chunks left, of those that are needed",
            left / (THOUSANDS_OF_ONE * 1000) as f64,
            "",
            Some(Bound::AtMost(1.01)),
        ),
    ]
}

const THOUSANDS_OF_ONE: usize = 100;
const CHUNK_LEN: usize = 96;
