//! A whole cluster in one thread, in virtual time: the machines of `attic-p2p` under any weather.
//!
//! A [`Scenario`] says who is there, what lies between them and what happens; [`run`] lets it happen
//! and says in an [`Outcome`] what was measured and what was wrong. One seed gives one run, to the
//! last message: [`Outcome::trace`] is the same wherever and however often it is run.
//!
//! What runs here is what a node runs: replica, directory and log comparison, membership and its
//! gate, downloads and answering, with real keys, certificates and signatures. What is modelled is
//! what a node has around them: connections, gossipsub, disks, clocks, the local store, and chunks,
//! of which only the length and the truth about them travel.
//!
//! - `agenda` is virtual time, `link` what lies between hosts, `disk` what they keep;
//! - `host` holds what the drivers of a node would; `connect`, `gossip`, `logs`, `exchange`,
//!   `sources` and `serving` are these drivers;
//! - `script` acts out a scenario, `byzantine` misbehaves, `mutant` says how nodes can be
//!   broken on purpose;
//! - `oracle` looks whether all that must hold holds; `tally` measures;
//! - `batch` runs many seeds, `report` shows what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use attic_p2p::log::{Log, MemoryLog};
use attic_p2p::record::Record;
use attic_p2p::segment::{Place, Segment, SegmentId};

pub use crate::sim::batch::{run_seeds, threads};
pub use crate::sim::mutant::Mutant;
pub use crate::sim::oracle::Violation;
pub use crate::sim::outcome::{Options, Outcome, Samples};
pub use crate::sim::scenario::{Scale, Scenario};

use crate::seed::Seed;
use crate::sim::agenda::{Agenda, Trace};
use crate::sim::charter::{Charter, EPOCH};
use crate::sim::content::{Content, Ledger};
use crate::sim::host::{Host, HostSetup, Index};
use crate::sim::link::Links;
use crate::sim::oracle::Oracle;
use crate::sim::scenario::Manner;
use crate::sim::script::{Script, weather};
use crate::sim::tally::{Sums, Tally};
use crate::sim::world::World;

mod agenda;
mod batch;
mod byzantine;
mod charter;
mod connect;
mod content;
mod disk;
mod door;
mod exchange;
mod gossip;
mod host;
mod link;
mod logs;
mod mutant;
mod oracle;
mod outcome;
pub mod report;
pub mod scenario;
mod script;
mod serving;
mod sources;
mod tally;
mod world;

/// Lets a scenario happen.
pub fn run(scenario: &Scenario, options: &Options) -> Outcome {
    let mut world = found(scenario, options);
    world.plan(scenario);
    world.run();
    conclude(scenario, options, world)
}

/// The world before the first step: everybody who is there has just started, and knows who else is.
fn found(scenario: &Scenario, options: &Options) -> World {
    let count = options
        .nodes
        .unwrap_or_else(|| scenario.nodes(options.scale));
    let mut random = Seed::new(options.seed ^ SALT);
    let charter = Charter::new(options.seed);
    let absent = scenario.cluster.absent.among(count, &mut random);
    let mut manners = vec![Manner::Honest; count];
    for (hosts, manner) in &scenario.cluster.manners {
        for at in hosts.among(count, &mut random) {
            manners[at] = *manner;
        }
    }
    let log = first_words(&charter, count, &absent, &manners);
    let up = scenario.cluster.up.0;
    let down = scenario.cluster.down.map_or(up, |rate| rate.0);
    let hosts = manners.iter().enumerate().map(|(at, manner)| {
        let log = match absent.contains(&at) {
            true => MemoryLog::default(),
            false => log.clone(),
        };
        let setup = HostSetup {
            manner: *manner,
            log,
            up,
            down,
        };
        Host::new(&charter, at, setup)
    });
    let hosts: Vec<Host> = hosts.collect();
    let by_node = hosts.iter().enumerate().map(|(at, host)| (host.node, at));
    let by_node: BTreeMap<_, _> = by_node.collect();
    let script = Script {
        scale: options.scale,
        last_act: Duration::ZERO,
        patience: scenario.expect.settled.at(options.scale).0,
        linger: scenario.expect.linger.0,
        pushed: Vec::new(),
    };
    let read_ahead = scenario.cluster.read_ahead;
    let mut world = World {
        agenda: Agenda::default(),
        random,
        links: Links::new(count, weather(&scenario.network)),
        hosts,
        by_node,
        content: Content::default(),
        ledger: Ledger::default(),
        script,
        oracle: Oracle::default(),
        tally: Tally::new(count),
        trace: Trace::default(),
        mutant: options.mutant,
        seeking: BTreeSet::new(),
        next_session: 0,
        parted_until: Duration::ZERO,
        jobs: scenario.cluster.jobs,
        read_ahead: read_ahead.map_or(u64::MAX, |size| size.0),
        copies: scenario.cluster.copies,
        charter,
    };
    for at in (0..count).filter(|at| !absent.contains(at)) {
        world.start(at);
    }
    world
}

/// What the logs of a cluster say before a scenario begins: a certificate in each, the cache in the
/// first.
fn first_words(charter: &Charter, count: usize, absent: &[Index], manners: &[Manner]) -> MemoryLog {
    let mut log = MemoryLog::default();
    let cluster = charter.genesis.cluster_id();
    for at in (0..count).filter(|at| !absent.contains(at)) {
        let identity = charter.identity(at);
        let certificate = charter.certificate(&identity, manners[at].scopes());
        let mut records = vec![Record::Member(certificate)];
        if at == 0 {
            records.push(charter.config());
        }
        let encoded = records
            .iter()
            .map(|record| record.encode().expect("short records"));
        let body: Vec<u8> = encoded.collect::<Vec<_>>().concat();
        let place = Place {
            cluster,
            seq: 1,
            prev: SegmentId::before_first(&cluster),
            hlc: EPOCH * 1_000,
        };
        let segment = Segment::append(&identity, place, &body).expect("a short body");
        let appended = log.append(identity.node_id(), 1, segment.bytes().clone());
        appended.expect("memory does not fail");
    }
    log
}

fn conclude(scenario: &Scenario, options: &Options, mut world: World) -> Outcome {
    let traffic: Vec<_> = world.hosts.iter().map(|host| host.traffic).collect();
    let links: Vec<usize> = world.hosts.iter().map(|host| host.links.len()).collect();
    let lens = (0..world.content.len()).map(|thing| world.content.thing(thing).layout.bytes());
    let lens: Vec<u64> = lens.collect();
    let down = scenario.cluster.down.unwrap_or(scenario.cluster.up);
    let sums = Sums {
        now: world.now(),
        traffic: &traffic,
        links: &links,
        lens: &lens,
        rate: down.0,
    };
    let figures = world.tally.figures(&sums);
    let samples = Samples {
        completion: world.tally.completions(&sums),
        visible_ms: thinned(world.tally.visible_millis()),
        sent: traffic
            .iter()
            .map(|traffic| [traffic.gossip, traffic.sync, traffic.bulk])
            .collect(),
    };
    for (name, value, bound, is_most) in bounds(scenario, options.scale, &figures) {
        let (holds, what) = match is_most {
            true => (value <= bound, "more"),
            false => (value >= bound, "less"),
        };
        if !holds {
            world.violated(
                "figure",
                None,
                format!("{name} is {value:.3}, {what} than {bound}"),
            );
        }
    }
    Outcome {
        scenario: scenario.name.clone(),
        seed: options.seed,
        scale: options.scale,
        nodes: world.hosts.len(),
        mutant: options.mutant,
        trace: world.trace.hash(),
        events: world.trace.notes(),
        seconds: world.now().as_secs_f64(),
        figures,
        violations: std::mem::take(&mut world.oracle.violations),
        samples,
    }
}

/// The figures that have a bound; one that was not measured breaks any bound.
fn bounds<'a>(
    scenario: &'a Scenario,
    scale: Scale,
    figures: &'a BTreeMap<String, f64>,
) -> impl Iterator<Item = (&'a str, f64, f64, bool)> {
    let expect = &scenario.expect;
    let most = expect
        .at_most
        .iter()
        .map(|(name, bound)| (name, bound, true));
    let least = expect
        .at_least
        .iter()
        .map(|(name, bound)| (name, bound, false));
    most.chain(least).map(move |(name, bound, is_most)| {
        let missing = if is_most {
            f64::INFINITY
        } else {
            f64::NEG_INFINITY
        };
        let value = figures.get(name).copied().unwrap_or(missing);
        (name.as_str(), value, bound.at(scale), is_most)
    })
}

/// At most a thousand of them, evenly.
fn thinned(samples: Vec<f64>) -> Vec<f64> {
    let step = samples.len().div_ceil(1_000).max(1);
    samples.into_iter().step_by(step).collect()
}

/// Makes the world's choices differ from the keys'.
const SALT: u64 = 0x5eed_0f17_4e11_a3c5;
