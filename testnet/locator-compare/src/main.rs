//! Tables that could hold the chunk locators, compared at 10 M chunks.
//!
//! Run, here: `cargo run --release -- fill <engine> <directory> 10000000`, then `read` with the same
//! arguments; `crash` in between kills a writer. Engines: `sled`, `fjall`, `fjall-pinned` (filters
//! and index blocks held in memory), `redb`, `redb-large`, `runs` (the store's own). Keys are 32
//! uniform bytes, values 28, inserted 500 at a time; no durability is asked for. Each engine has
//! 16 MiB of cache, `redb-large` 64. Lookups are random, from one thread, with a warm page cache.
//!
//! Measured on two cores that did other work besides, the calmest run of each; the rate a CPU second
//! is that of a loaded machine and the fairest comparison.
//!
//! | 10 M chunks | wanted | sled 0.34.7 | fjall 3.1.13 | fjall-pinned | redb 4.6.0 | runs |
//! |---|---|---|---|---|---|---|
//! | inserts/s | | 16 k | 467 k | 312 k | 29 k | 312 k |
//! | s until settled | | – | 28 | 43 | 346 | 32 |
//! | peak MiB RSS, filling | ≤ 100 | 11,032 at 6 M | 120 | 145 | 24 | 35 |
//! | peak MiB RSS, reading | ≤ 100 | 97 at 1 M | 27 | 41 | 20 (large: 71) | 17 |
//! | hits/s | ≥ 100 k | 29 k at 1 M | 9 k | 139 k | 173 k | 397 k |
//! | hits/CPU s | | 60 k at 1 M | 3 k | 111 k | 217 k | 361 k |
//! | misses/s | ≥ 100 k | 30 k at 1 M | 34 k | 1,132 k | 180 k | 2,692 k |
//! | s to open | ≤ 2 | 0.84 at 1 M | 0.12 | 0.17 | 0.004 | 0.010 |
//! | s to open after a crash | ≤ 2 | – | – | 0.44 | 2.7 | 0.018 |
//! | MiB on disk | | 213 at 1 M | 654 | 652 | 1,038 | 472 |
//!
//! sled was stopped at 6 M keys for its memory. fjall hangs for ever with one worker thread once a
//! fast writer has filled the worker's queue. redb comes closest: it is over the limit only when it
//! opens after a crash, and a table lost is back after six minutes, not half a minute. None of them
//! knows packs: several copies of a chunk need keys of chunk and pack and a range query each, and a
//! deleted pack needs a deletion an entry.

mod engine;
mod keys;
mod process;

use std::env::args;
use std::error::Error;
use std::fmt::{Display, Formatter};
use std::fs::remove_dir_all;
use std::path::Path;
use std::process::abort;
use std::time::Instant;

use crate::engine::{Engine, Table};
use crate::keys::{ENTRIES_PER_PACK, Id, Value, id, pack_id, value};
use crate::process::{cpu_seconds, dir_len, peak_rss, rss, warm};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = args().skip(1).collect();
    let [verb, engine, dir, keys] = args.as_slice() else {
        return Err("usage: locator-compare fill|read|crash <engine> <directory> <keys>".into());
    };
    let (dir, keys, engine) = (Path::new(dir), keys.parse()?, engine.parse::<Engine>()?);
    match verb.as_str() {
        "fill" => fill(engine, dir, keys),
        "read" => read(engine, dir, keys),
        "crash" => crash(engine, dir, keys),
        other => Err(format!("unknown verb {other}").into()),
    }
}

/// Fills an empty table pack by pack and prints its rate, memory and size.
fn fill(engine: Engine, dir: &Path, keys: u64) -> Result<(), Box<dyn Error>> {
    if dir.exists() {
        remove_dir_all(dir)?;
    }
    let mut table = engine.open(dir)?;
    let started = Instant::now();
    let mut entries = Vec::with_capacity(ENTRIES_PER_PACK as usize);
    for pack in 0..keys.div_ceil(ENTRIES_PER_PACK) {
        let first = pack * ENTRIES_PER_PACK;
        entries.clear();
        entries.extend((first..keys.min(first + ENTRIES_PER_PACK)).map(|n| (id(n), value(n))));
        table.insert_pack(pack_id(pack), &entries)?;
        let done = first + entries.len() as u64;
        if done % 1_000_000 < ENTRIES_PER_PACK {
            eprintln!(
                "{done} keys {:.1} s rss {} MiB",
                started.elapsed().as_secs_f64(),
                rss()? >> 20
            );
        }
    }
    let inserted = started.elapsed().as_secs_f64();
    table.settle()?;
    let settled = started.elapsed().as_secs_f64();
    println!(
        "{engine} insert {:.0}/s settled {settled:.1} s",
        keys as f64 / inserted
    );
    println!(
        "{engine} rss {} MiB peak {} MiB",
        rss()? >> 20,
        peak_rss()? >> 20
    );
    drop(table);
    println!("{engine} disk {} MiB", dir_len(dir)? >> 20);
    Ok(())
}

/// Opens a filled table in a fresh process and prints open time, lookup rates and memory.
fn read(engine: Engine, dir: &Path, keys: u64) -> Result<(), Box<dyn Error>> {
    warm(dir)?;
    let idle = rss()?;
    let started = Instant::now();
    let table = engine.open(dir)?;
    // A first lookup is part of opening: some engines load lazily.
    check_hit(&*table, 0)?;
    println!(
        "{engine} open {:.3} s rss {} MiB",
        started.elapsed().as_secs_f64(),
        (rss()? - idle) >> 20
    );
    for round in 0..2 {
        let hits = rate(|n| check_hit(&*table, keys::shuffled(n + round * LOOKUPS, keys)))?;
        let misses = rate(|n| check_miss(&*table, id(keys + n + round * LOOKUPS)))?;
        println!(
            "{engine} hits {hits} misses {misses} rss {} MiB",
            rss()? >> 20
        );
    }
    println!("{engine} peak {} MiB", peak_rss()? >> 20);
    Ok(())
}

/// Adds packs beyond `keys` and dies, to see how the next `read` opens that.
fn crash(engine: Engine, dir: &Path, keys: u64) -> Result<(), Box<dyn Error>> {
    let mut table = engine.open(dir)?;
    for pack in 0..CRASH_PACKS {
        insert_pack(
            &mut *table,
            (2 * keys + LOOKUPS * 2) / ENTRIES_PER_PACK + pack,
        )?;
    }
    abort()
}

fn insert_pack(table: &mut dyn Table, pack: u64) -> Result<(), Box<dyn Error>> {
    let numbers = pack * ENTRIES_PER_PACK..(pack + 1) * ENTRIES_PER_PACK;
    let entries: Vec<(Id, Value)> = numbers.map(|n| (id(n), value(n))).collect();
    table.insert_pack(pack_id(pack), &entries)
}

/// Lookups in a second, by the clock and by the CPU time they took.
fn rate(mut lookup: impl FnMut(u64) -> Result<(), Box<dyn Error>>) -> Result<Rate, Box<dyn Error>> {
    let (started, cpu) = (Instant::now(), cpu_seconds()?);
    for n in 0..LOOKUPS {
        lookup(n)?;
    }
    let cpu = cpu_seconds()? - cpu;
    Ok(Rate(
        LOOKUPS as f64 / started.elapsed().as_secs_f64(),
        LOOKUPS as f64 / cpu,
    ))
}

struct Rate(f64, f64);

impl Display for Rate {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.0}/s ({:.0} a CPU second)", self.0, self.1)
    }
}

fn check_hit(table: &dyn Table, n: u64) -> Result<(), Box<dyn Error>> {
    match table.get(&id(n))? {
        Some((pack, found)) if pack == pack_id(n / ENTRIES_PER_PACK) && found == value(n) => Ok(()),
        other => Err(format!("key {n}: found {other:?}").into()),
    }
}

fn check_miss(table: &dyn Table, id: Id) -> Result<(), Box<dyn Error>> {
    match table.get(&id)? {
        None => Ok(()),
        Some(found) => Err(format!("absent key found: {found:?}").into()),
    }
}

const LOOKUPS: u64 = 1_000_000;
const CRASH_PACKS: u64 = 250;
