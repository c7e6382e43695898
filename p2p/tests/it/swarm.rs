//! Downloads from many, in virtual time.

use std::time::Duration;

use crate::swarm_world::{GIGABIT, Manner, Setting, World, draw, percentile};

const HOUR: Duration = Duration::from_secs(3_600);
const LAN: Duration = Duration::from_micros(200);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn world(seed: u64, bytes: u64) -> World {
    World::new(Setting {
        seed,
        bytes,
        latency: LAN,
        read_ahead: u64::MAX,
    })
}

/// One holder, `cold` nodes that all begin within a second.
fn flash_crowd(seed: u64, cold: usize, bytes: u64) -> (World, blake3::Hash) {
    let mut world = world(seed, bytes);
    world.add(true, GIGABIT, Manner::Honest);
    let mut random = seed;
    for _ in 0..cold {
        let node = world.add(false, GIGABIT, Manner::Honest);
        world.start(node, millis(draw(&mut random) % 1_000));
    }
    let trace = world.run(HOUR);
    (world, trace)
}

#[test]
fn a_flash_crowd_is_served_by_itself() {
    let (world, _) = flash_crowd(7, 32, 1_000_000_000);
    let mut took: Vec<_> = (1..=32)
        .map(|node| world.took(node).expect("finishes"))
        .collect();
    let ideal = world.ideal().as_secs_f64();
    let (p50, p99) = (percentile(&mut took, 500), percentile(&mut took, 990));
    let holder = world.nodes[0].sent as f64 / world.bytes() as f64;
    let (p50, p99) = (p50.as_secs_f64() / ideal, p99.as_secs_f64() / ideal);
    println!("=> flash crowd: p50 {p50:.2} p99 {p99:.2} of ideal, first holder sent {holder:.2}");
    assert!(p50 <= 1.3);
    assert!(p99 <= 2.0);
    assert!(holder <= 3.0);
}

#[test]
fn one_seed_gives_one_run() {
    let trace = |seed| flash_crowd(seed, 8, 32 << 20).1;
    assert_eq!(trace(1), trace(1));
    assert_ne!(trace(1), trace(2));
}

/// Four holders with an uplink of 250 Mbit/s each, and one that fetches.
fn four_to_one(seed: u64, bytes: u64, manners: [Manner; 4]) -> World {
    let mut world = world(seed, bytes);
    for manner in manners {
        world.add(true, GIGABIT / 4, manner);
    }
    let node = world.add(false, GIGABIT, Manner::Honest);
    world.start(node, Duration::ZERO);
    world
}

#[test]
fn four_uplinks_add_up() {
    let mut world = four_to_one(1, 64 << 20, [Manner::Honest; 4]);
    world.run(HOUR);
    let share = world.ideal().as_secs_f64() / world.took(4).expect("finishes").as_secs_f64();
    println!("=> 4 to 1: {share:.3} of the sum");
    assert!(share >= 0.9);
}

#[test]
fn a_stalled_source_costs_the_reader_little() {
    let mut added = Vec::new();
    let mut hedged = 0.0f64;
    for seed in 0..100 {
        // One source falls silent somewhere in the middle.
        let at = millis(500 + seed * 13);
        let run = |manner, gone: bool| {
            let manners = [manner, Manner::Honest, Manner::Honest, Manner::Honest];
            let mut world = four_to_one(seed, 256 << 20, manners);
            if gone {
                world.close(0, at);
            }
            world.run(HOUR);
            world
        };
        let told = run(Manner::Honest, true);
        let untold = run(Manner::SilentFrom(at), false);
        let waited = |world: &World| world.nodes[4].reader_wait_max;
        let late = untold
            .took(4)
            .expect("finishes")
            .saturating_sub(told.took(4).expect("finishes"));
        added.push(waited(&untold).saturating_sub(waited(&told)).max(late));
        hedged = hedged.max(untold.fetch_stats(4).hedged as f64 / untold.bytes() as f64);
    }
    let (p50, p99) = (percentile(&mut added, 500), percentile(&mut added, 990));
    println!("=> stall adds p50 {p50:?} p99 {p99:?}, hedged at most {hedged:.4}");
    assert!(p99 <= millis(300));
    assert!(hedged <= 0.03);
}

#[test]
fn half_of_the_peers_black_holed_costs_less_than_twice() {
    let mut ratios = Vec::new();
    for seed in 0..50 {
        let run = |manner| {
            let mut world = world(seed, 64 << 20);
            for index in 0..8 {
                let manner = if index % 2 == 0 {
                    manner
                } else {
                    Manner::Honest
                };
                world.add(true, GIGABIT / 4, manner);
            }
            let node = world.add(false, GIGABIT, Manner::Honest);
            world.start(node, Duration::ZERO);
            world.run(HOUR);
            world.took(8).expect("finishes").as_secs_f64()
        };
        // They answered what they hold, and then nothing ever again.
        ratios.push(run(Manner::SilentFrom(millis(1))) / run(Manner::Honest));
    }
    ratios.sort_by(f64::total_cmp);
    let p99 = ratios[49];
    println!(
        "=> half black-holed: p50 {:.2} p99 {p99:.2} of healthy",
        ratios[25]
    );
    assert!(p99 <= 2.0);
}

#[test]
fn a_liar_is_banned_and_the_rest_delivers() {
    let mut world = four_to_one(
        5,
        64 << 20,
        [
            Manner::Lying,
            Manner::Honest,
            Manner::Boasting,
            Manner::Honest,
        ],
    );
    world.run(HOUR);
    assert!(world.took(4).is_some());
    assert_eq!(world.nodes[4].banned, [world.id(0)]);
}

#[test]
fn liars_alone_deliver_nothing_and_fail_the_download() {
    let mut world = four_to_one(
        5,
        8 << 20,
        [
            Manner::Lying,
            Manner::Lying,
            Manner::Boasting,
            Manner::Boasting,
        ],
    );
    world.run(HOUR);
    assert!(world.nodes[4].failed);
    assert_eq!(world.fetch_stats(4).arrived, 0);
    assert_eq!(world.nodes[4].banned.len(), 2);
}

#[test]
fn a_lone_slow_source_is_kept() {
    let mut world = world(3, 4 << 20);
    world.add(true, GIGABIT / 500, Manner::Honest);
    let node = world.add(false, GIGABIT, Manner::Honest);
    world.start(node, Duration::ZERO);
    world.run(HOUR);
    let ideal = world.ideal() * 500;
    assert!(
        world.took(node).expect("finishes") < ideal * 5 / 4,
        "{:?}",
        world.took(node)
    );
}

#[test]
fn fifty_milliseconds_away_one_source_fills_the_line() {
    let mut world = World::new(Setting {
        seed: 1,
        bytes: 1 << 30,
        latency: millis(25),
        read_ahead: u64::MAX,
    });
    world.add(true, GIGABIT, Manner::Honest);
    let node = world.add(false, GIGABIT, Manner::Honest);
    world.start(node, Duration::ZERO);
    world.run(HOUR);
    let share = world.ideal().as_secs_f64() / world.took(node).expect("finishes").as_secs_f64();
    println!("=> 1 to 1 over 50 ms: {share:.3} of the line");
    assert!(share >= 0.67);
}

#[test]
fn a_small_read_ahead_still_streams() {
    let mut world = World::new(Setting {
        seed: 1,
        bytes: 256 << 20,
        latency: LAN,
        read_ahead: 16 << 20,
    });
    for _ in 0..4 {
        world.add(true, GIGABIT / 4, Manner::Honest);
    }
    let node = world.add(false, GIGABIT, Manner::Honest);
    world.start(node, Duration::ZERO);
    world.run(HOUR);
    let share = world.ideal().as_secs_f64() / world.took(node).expect("finishes").as_secs_f64();
    println!("=> 4 to 1 within 16 MiB: {share:.3} of the sum");
    assert!(share >= 0.9);
}
