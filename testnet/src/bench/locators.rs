//! The table of chunk locators at the size it is made for.
//!
//! Filling and reading happen in processes of their own, so that memory is that of the table alone.

use std::env;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use attic_store::LocatorProbe;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::program;
use crate::seed::Seed;

use super::{Bound, Row, say};

const CHUNKS: u64 = 10_000_000;
const CHUNKS_PER_PACK: u64 = 500;
const LOOKUPS: u64 = 1_000_000;

/// What a process that opens a full table and reads it finds.
#[derive(Debug, Serialize, Deserialize)]
struct Reading {
    open_seconds: f64,
    lookups_per_second: f64,
    rss_bytes: u64,
}

/// Fills a table and reads it.
pub(super) fn locators() -> Vec<Row> {
    let dir = TempDir::new().expect("make a directory");
    say("fill a locator table");
    child("fill", dir.path());
    say("read it");
    let printed = child("read", dir.path());
    let reading: Reading = serde_json::from_str(&printed).expect("a reading");
    let row = |what: &str, value: f64, unit: &'static str, wanted: Bound| {
        let what = format!("chunk locators at 10 M chunks, {what}");
        Row::alone(what, value, unit, Some(wanted))
    };
    let rss = reading.rss_bytes as f64 / f64::from(1 << 20);
    vec![
        row("memory", rss, "MiB", Bound::AtMost(100.0)),
        row(
            "lookups",
            reading.lookups_per_second,
            "/s",
            Bound::AtLeast(1e5),
        ),
        row("open", reading.open_seconds, "s", Bound::AtMost(2.0)),
    ]
}

fn child(step: &str, dir: &Path) -> String {
    let exe = env::current_exe().expect("a program knows where it is");
    let mut command = Command::new(exe);
    command.args(["locators", step]).arg(dir);
    program::run(&mut command).succeeds().stdout
}

/// Fills the table in `dir`: the first half of the measurement.
///
/// Panics when the disk fails.
pub fn fill(dir: &Path) {
    let table = LocatorProbe::open(dir).expect("open");
    for pack in 0..CHUNKS / CHUNKS_PER_PACK {
        let chunks = pack * CHUNKS_PER_PACK..(pack + 1) * CHUNKS_PER_PACK;
        let entries = chunks.enumerate().map(|(place, chunk)| {
            let offset = u32::try_from(place << 17).expect("a pack is short");
            (id(chunk), [offset, 1 << 17, 1 << 16])
        });
        let name = u128::from(pack).to_be_bytes();
        table.insert_pack(name, entries).expect("insert");
    }
    table.settle().expect("settle");
}

/// Reads the table in `dir` and gives its figures as JSON: the second half of the measurement.
///
/// Panics when the disk fails, or when a chunk is not found.
pub fn read(dir: &Path) -> String {
    let started = Instant::now();
    let table = LocatorProbe::open(dir).expect("open");
    let open_seconds = started.elapsed().as_secs_f64();
    let mut seed = Seed::new(7);
    let started = Instant::now();
    for _ in 0..LOOKUPS {
        let found = table.lookup(id(seed.below(CHUNKS))).expect("look up");
        assert!(found.is_some(), "a chunk is lost");
    }
    let lookups_per_second = LOOKUPS as f64 / started.elapsed().as_secs_f64();
    let rss_bytes = program::rss_peak(rustix::process::getpid()).expect("Linux");
    let reading = Reading {
        open_seconds,
        lookups_per_second,
        rss_bytes,
    };
    serde_json::to_string(&reading).expect("JSON")
}

/// Random, and the same each time.
fn id(chunk: u64) -> [u8; 32] {
    let bytes = Seed::new(chunk.wrapping_mul(0x9e37_79b9)).bytes(32);
    bytes.try_into().expect("32 bytes")
}
