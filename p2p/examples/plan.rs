//! Measures a plan of what a bucket's collector does:
//! `cargo run --release -p attic-p2p --example plan -- [records] [packs per record] [packs]`.

use std::time::Instant;
use std::{env, fs};

use attic_p2p::collector::{Clocks, Life, Limits, Listed, Plan, PlanInput, References};
use attic_p2p::ids::{Dot, NodeId};
use attic_p2p::journal::Reference;
use attic_p2p::membership::time::UnixTime;
use attic_store::PackId;

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let number = |index: usize, default: u64| -> u64 {
        let given = args.get(index).map(|text| text.parse().expect("a number"));
        given.unwrap_or(default)
    };
    let (records, each, packs) = (number(0, 1_000_000), number(1, 20), number(2, 80_000));

    let began = Instant::now();
    let mut references = References::default();
    for record in 0..records {
        let packs = (0..each).map(|nth| (pack(mixed(record * each + nth) % packs), 65_536));
        let reference = Reference {
            dot: dot(record),
            packs: packs.collect(),
        };
        references.add(&reference).expect("there is room");
    }
    let taken_in = began.elapsed();

    let listed: Vec<Listed> = (0..packs)
        .map(|n| Listed {
            pack: pack(n),
            len: 16 << 20,
            modified: UnixTime(0),
        })
        .collect();
    let now = UnixTime(1_000_000);
    let began = Instant::now();
    let input = PlanInput {
        listed: &listed,
        references: &references,
        damaged: &[],
        others: &[],
        now: Clocks {
            server: now,
            own: now,
        },
        limits: Limits::default(),
    };
    // One record of a hundred lives.
    let plan = Plan::new(input, |dot| match dot.seq % 100 {
        1 => Life::Durable,
        _ => Life::Dead,
    });
    let planned = began.elapsed();
    let began = Instant::now();
    let going = plan.would_go().collect();
    let referred = references.referred(&going, |_| Life::Dead);
    println!(
        "{} references of {records} records: taken in {taken_in:.2?}, planned {planned:.2?}, looked \
         again {:.2?}; {} of {packs} packs go, {} saved; at most {}",
        records * each,
        began.elapsed(),
        going.len(),
        referred.len(),
        most_memory(),
    );
}

fn pack(n: u64) -> PackId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&mixed(n).to_le_bytes());
    PackId::from_bytes(bytes)
}

fn dot(record: u64) -> Dot {
    Dot {
        node: NodeId::from_bytes([(record % 200) as u8; 32]),
        seq: record / 200 + 1,
        index: 0,
    }
}

/// SplitMix64.
fn mixed(n: u64) -> u64 {
    let z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The most memory that was resident, as the kernel words it.
fn most_memory() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.unwrap_or("?").trim().to_owned()
}
