//! Replicas in a small world of virtual time: they converge, whatever the network does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use attic_p2p::directory::NoKeys;
use attic_p2p::ids::{Dot, NodeId};
use attic_p2p::log::{Log, MemoryLog};
use attic_p2p::membership::scopes::Scopes;
use attic_p2p::reconcile::Ask;
use attic_p2p::record::Record;
use attic_p2p::replica::{Action, Event, Lag, Replica, Setup, Verdict};
use attic_p2p::time::Millis;
use bytes::Bytes;

use crate::cluster::{Cluster, del, path_hash, tag};

/// Nodes 1 to N, all connected unless cut, with messages in flight.
struct World {
    cluster: Cluster,
    now: Millis,
    nodes: BTreeMap<u8, Replica<MemoryLog>>,
    names: BTreeMap<NodeId, u8>,
    /// By time and order of sending: to whom, what.
    flying: BTreeMap<(Millis, u64), (u8, Event)>,
    wakes: BTreeMap<u8, Millis>,
    sent: u64,
    /// Links that are cut.
    cut: BTreeSet<(u8, u8)>,
    /// Percent of gossiped messages that are lost.
    gossip_loss: u64,
    /// So many of the next requests fail.
    failing: u32,
    random: u64,
    /// Of the nodes that are booted from now on.
    log_len_max: u64,
    bytes_on_wire: usize,
    hellos: u32,
    misbehaved: Vec<String>,
    rejected: usize,
}

impl World {
    fn new(count: u8, gossip_loss: u64, seed: u64) -> World {
        let cluster = Cluster::new();
        let mut world = World {
            cluster,
            now: Millis(1_800_000_000_000),
            nodes: BTreeMap::new(),
            names: BTreeMap::new(),
            flying: BTreeMap::new(),
            wakes: BTreeMap::new(),
            sent: 0,
            cut: BTreeSet::new(),
            gossip_loss,
            failing: 0,
            random: seed | 1,
            log_len_max: u64::MAX,
            bytes_on_wire: 0,
            hellos: 0,
            misbehaved: Vec::new(),
            rejected: 0,
        };
        for number in 1..=count {
            world.boot(number, MemoryLog::default());
        }
        world
    }

    fn boot(&mut self, number: u8, log: MemoryLog) {
        let identity = Cluster::identity(number);
        let node = identity.node_id();
        let replica = Replica::new(Setup {
            identity,
            genesis: self.cluster.genesis.clone(),
            certificate: self.cluster.certificate(number, Scopes::all()),
            unseal: Arc::new(NoKeys),
            log,
            log_len_max: self.log_len_max,
            seed: u64::from(number),
        });
        self.names.insert(node, number);
        self.nodes.insert(number, replica.unwrap());
        for other in self.others(number) {
            self.connect(number, other);
        }
        self.event(number, Event::Tick);
    }

    fn others(&self, number: u8) -> Vec<u8> {
        let open = |other: &u8| *other != number && !self.cut.contains(&(number, *other));
        self.nodes.keys().copied().filter(open).collect()
    }

    fn connect(&mut self, one: u8, other: u8) {
        let (a, b) = (
            Cluster::identity(one).node_id(),
            Cluster::identity(other).node_id(),
        );
        self.cut.remove(&(one, other));
        self.cut.remove(&(other, one));
        self.event(one, Event::PeerUp(b));
        self.event(other, Event::PeerUp(a));
    }

    fn disconnect(&mut self, one: u8, other: u8) {
        let (a, b) = (
            Cluster::identity(one).node_id(),
            Cluster::identity(other).node_id(),
        );
        self.cut.extend([(one, other), (other, one)]);
        self.event(one, Event::PeerDown(b));
        self.event(other, Event::PeerDown(a));
    }

    fn stop(&mut self, number: u8) -> MemoryLog {
        for other in self.others(number) {
            let node = Cluster::identity(number).node_id();
            self.event(other, Event::PeerDown(node));
        }
        self.flying.retain(|_, (to, _)| *to != number);
        self.wakes.remove(&number);
        self.nodes.remove(&number).unwrap().into_log()
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    fn say(&mut self, number: u8, records: Vec<Record>) {
        self.event(number, Event::Local(records));
    }

    fn event(&mut self, number: u8, event: Event) {
        let Some(replica) = self.nodes.get_mut(&number) else {
            return;
        };
        let actions = replica.handle(self.now, event);
        for action in actions {
            self.act(number, action);
        }
    }

    fn act(&mut self, number: u8, action: Action) {
        let me = Cluster::identity(number).node_id();
        match action {
            Action::Publish(bytes) => {
                for other in self.others(number) {
                    // Now and then a message comes twice.
                    for _ in 0..1 + usize::from(self.random(10) == 0) {
                        if self.random(100) >= self.gossip_loss {
                            let bytes = bytes.clone();
                            self.send(other, bytes.len(), Event::Gossip { from: me, bytes });
                        }
                    }
                }
            }
            Action::Request { to, id, bytes } => {
                let is_hello = matches!(Ask::decode(&bytes), Ok(Ask::Hello { .. }));
                self.hellos += u32::from(is_hello);
                let other = self.names[&to];
                let fails = self.failing > 0;
                self.failing -= u32::from(fails);
                if fails || self.cut.contains(&(number, other)) || !self.nodes.contains_key(&other)
                {
                    let (from, bytes) = (to, None);
                    self.send(number, 0, Event::Response { from, id, bytes });
                    return;
                }
                // The caller chooses ids; here they carry who asked.
                let id = id << 8 | u64::from(number);
                self.send(
                    other,
                    bytes.len(),
                    Event::Request {
                        from: me,
                        id,
                        bytes,
                    },
                );
            }
            Action::Respond { id, bytes } => {
                let (asker, id) = ((id & 0xff) as u8, id >> 8);
                if !self.cut.contains(&(number, asker)) {
                    let (from, len, bytes) = (me, bytes.len(), Some(bytes));
                    self.send(asker, len, Event::Response { from, id, bytes });
                }
            }
            Action::Wake(at) => {
                self.wakes.insert(number, at);
            }
            Action::Misbehaved { node, why } => self.misbehaved.push(format!("{node}: {why}")),
            Action::Rejected(records) => self.rejected += records.len(),
            Action::LogFailed(error) => panic!("{error}"),
            Action::Judge(verdict) => assert_ne!(verdict, Verdict::Reject),
            Action::Changed(_) => {}
        }
    }

    fn send(&mut self, to: u8, len: usize, event: Event) {
        self.bytes_on_wire += len;
        self.sent += 1;
        let at = Millis(self.now.0 + 1 + self.random(40));
        self.flying.insert((at, self.sent), (to, event));
    }

    fn run(&mut self, millis: u64) {
        let end = Millis(self.now.0 + millis);
        loop {
            let message = self.flying.keys().next().map(|(at, _)| *at);
            let wake = self.wakes.iter().map(|(number, at)| (*at, *number)).min();
            let next = [message, wake.map(|(at, _)| at)]
                .into_iter()
                .flatten()
                .min();
            let Some(at) = next.filter(|at| *at <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(at);
            if message == Some(at) {
                let (_, (to, event)) = self.flying.pop_first().unwrap();
                self.event(to, event);
            } else if let Some((_, number)) = wake {
                self.wakes.remove(&number);
                self.event(number, Event::Tick);
            }
        }
    }

    fn digests(&self) -> BTreeSet<[u8; 32]> {
        self.nodes
            .values()
            .map(|node| node.directory().digest())
            .collect()
    }

    fn assert_converged(&self) {
        assert_eq!(self.digests().len(), 1, "nodes differ");
        assert_eq!(self.misbehaved, Vec::<String>::new());
        assert_eq!(self.rejected, 0);
    }

    fn knows(&self, number: u8, path: u32) -> bool {
        let node = &self.nodes[&number];
        let cache = self.cluster.cache();
        let found = node.directory().path(node.log(), cache, path_hash(path));
        found.unwrap().is_some()
    }

    fn path(&self, number: u32) -> Record {
        Record::Path(self.cluster.path(number))
    }
}

#[test]
fn a_path_is_known_everywhere_within_a_second() {
    let mut world = World::new(8, 0, 1);
    world.run(5_000);
    world.say(1, vec![world.cluster.config(1), world.path(7)]);
    world.run(1_000);
    for number in 1..=8 {
        assert!(world.knows(number, 7), "node {number}");
    }
    world.assert_converged();
}

#[test]
fn it_converges_when_gossip_delivers_nothing() {
    let mut world = World::new(6, 100, 2);
    world.run(5_000);
    for number in 1..=6 {
        let path = world.path(u32::from(number));
        let hold = Record::Hold(vec![tag(u32::from(number))]);
        world.say(number, vec![world.cluster.config(1), path, hold]);
    }
    world.run(10 * 60_000);
    world.assert_converged();
    assert!(world.knows(1, 6));
}

/// Two nodes dial each other at once, one of the connections is closed, and with it goes the request
/// that was to tell a newcomer what there is. It heard of nothing for up to a minute and a half.
#[test]
fn a_comparison_that_failed_is_repeated_soon() {
    let mut world = World::new(2, 100, 7);
    world.run(5_000);
    world.disconnect(1, 2);
    let path = world.path(1);
    world.say(1, vec![world.cluster.config(1), path]);
    world.failing = 4;
    world.connect(1, 2);
    world.run(5_000);
    assert!(world.knows(2, 1));
}

/// A push was dropped for a node that took gossip too slowly, and missing there until a round of
/// anti-entropy came to it: five to twenty seconds.
#[test]
fn whoever_missed_gossip_is_compared_with_at_once() {
    let mut world = World::new(8, 100, 8);
    world.run(60_000);
    let slow = Cluster::identity(2).node_id();
    world.say(1, vec![world.cluster.config(1)]);
    for path in 1..=50 {
        world.say(1, vec![world.path(path)]);
        world.run(300);
        world.event(1, Event::Unsent(slow));
        world.run(1_000);
        assert!(world.knows(2, path), "path {path}");
    }
}

#[test]
fn whoever_misses_all_gossip_is_compared_with_once_a_second() {
    let mut world = World::new(2, 100, 9);
    world.run(60_000);
    let slow = Cluster::identity(2).node_id();
    let before = world.hellos;
    for _ in 0..1000 {
        world.event(1, Event::Unsent(slow));
        world.run(10);
    }
    let asked = world.hellos - before;
    // Eleven, and what the two ask each other by themselves.
    assert!((10..=14).contains(&asked), "{asked}");
}

#[test]
fn it_converges_through_loss_partition_and_restarts() {
    for seed in 0..12 {
        let mut world = World::new(5, 30, seed);
        world.say(1, vec![world.cluster.config(1)]);
        let mut path = 0;
        for round in 0..30 {
            for _ in 0..world.random(4) {
                path += 1;
                let number = 1 + world.random(5) as u8;
                let records = vec![world.path(path % 40), Record::Hold(vec![tag(path)])];
                world.say(number, records);
            }
            match world.random(6) {
                0 => {
                    let number = 1 + world.random(5) as u8;
                    let log = world.stop(number);
                    world.run(500);
                    world.boot(number, log);
                }
                1 => {
                    let (one, other) = (1 + world.random(5) as u8, 1 + world.random(5) as u8);
                    if one != other {
                        world.disconnect(one, other);
                    }
                }
                2 => {
                    let number = 1 + world.random(5) as u8;
                    let gone = world.random(40) as u32;
                    let directory = world.nodes[&number].directory();
                    let dots: Vec<Dot> = directory.dots(world.cluster.cache(), path_hash(gone));
                    world.say(number, vec![del(dots)]);
                }
                _ => {}
            }
            world.run(200 + 100 * round);
        }
        for (one, other) in world.cut.clone() {
            world.connect(one, other);
        }
        world.run(10 * 60_000);
        assert_eq!(world.digests().len(), 1, "seed {seed}");
        world.assert_converged();
        assert_eq!(
            world.nodes[&1].directory().stats().quarantined,
            0,
            "seed {seed}"
        );
    }
}

#[test]
fn ten_thousand_differing_records_heal_in_ten_seconds_for_little_more_than_their_bytes() {
    let mut world = World::new(2, 0, 3);
    world.say(1, vec![world.cluster.config(1)]);
    world.run(5_000);
    world.disconnect(1, 2);
    world.run(1_000);
    let before: usize = log_bytes(&world, 1) + log_bytes(&world, 2);
    for number in 0..5_000 {
        let (left, right) = (world.path(number), world.path(5_000 + number));
        world.say(1, vec![left]);
        world.say(2, vec![right]);
        if number % 50 == 0 {
            world.run(100);
        }
    }
    world.run(60_000);
    let difference = log_bytes(&world, 1) + log_bytes(&world, 2) - before;
    world.bytes_on_wire = 0;
    world.connect(1, 2);
    world.run(10_000);
    world.assert_converged();
    let used = world.bytes_on_wire;
    println!(
        "{difference} bytes differ, {} a record; {used} on the wire",
        difference / 10_000
    );
    assert!(used <= 2 * difference + (64 << 10));
    assert!(world.knows(1, 9_999) && world.knows(2, 0));
}

fn log_bytes(world: &World, number: u8) -> usize {
    world.nodes[&number].log().total_len_bytes() as usize
}

#[test]
fn a_disk_that_was_set_back_is_no_fork() {
    let mut world = World::new(3, 0, 4);
    world.say(1, vec![world.cluster.config(1), world.path(1)]);
    world.run(5_000);
    let old = world.nodes[&1].log().clone();
    world.say(1, vec![world.path(2)]);
    world.run(5_000);
    world.stop(1);
    world.boot(1, old);
    world.say(1, vec![world.path(3)]);
    world.run(60_000);
    world.assert_converged();
    assert_eq!(world.nodes[&2].directory().stats().quarantined, 0);
    assert!(world.knows(3, 2) && world.knows(3, 3));
    assert!(!world.nodes[&1].is_retired());
}

#[test]
fn a_cloned_node_is_quarantined_by_all_and_knows_it() {
    let mut world = World::new(3, 0, 5);
    world.say(1, vec![world.cluster.config(1), world.path(1)]);
    world.run(5_000);
    let log = world.nodes[&1].log().clone();
    // The clone lives alone for a while, then its words reach the others.
    let mut clone = World::new(0, 0, 6);
    clone.boot(1, log);
    clone.run(5_000);
    clone.say(1, vec![clone.path(50)]);
    world.say(1, vec![world.path(60)]);
    clone.run(5_000);
    world.run(5_000);
    let forged = clone.stop(1);
    let node = Cluster::identity(1).node_id();
    let (_, last) = forged.range(node).unwrap();
    let bytes: Bytes = forged.read(node, last).unwrap().unwrap();
    let from = Cluster::identity(3).node_id();
    world.event(2, Event::Gossip { from, bytes });
    world.run(5 * 60_000);
    world.assert_converged();
    for (number, replica) in &world.nodes {
        assert!(replica.directory().is_quarantined(node), "node {number}");
    }
    assert!(world.nodes[&1].is_retired());
    assert!(!world.nodes[&2].is_retired());
}

#[test]
fn an_own_log_that_is_mostly_obsolete_is_compacted_and_late_joiners_fetch_little() {
    let mut world = World::new(2, 0, 7);
    world.say(1, vec![world.cluster.config(1)]);
    world.run(5_000);
    // The same few paths again and again: the newest of each counts.
    for number in 0..6_000 {
        world.say(1, vec![world.path(number % 100)]);
        if number % 50 == 0 {
            world.run(400);
        }
    }
    world.run(60_000);
    let node = Cluster::identity(1).node_id();
    assert!(
        world.nodes[&1].directory().first_needed(node) > 1,
        "no checkpoint"
    );
    let len = log_bytes(&world, 1);
    assert!(len < 2_000_000, "{len} bytes are left of 2.9 MB");
    world.bytes_on_wire = 0;
    world.boot(3, MemoryLog::default());
    world.run(60_000);
    world.assert_converged();
    assert!(world.knows(3, 99));
    assert!(world.bytes_on_wire < 2 * len + 64_000);
}

/// What is said again takes the place of what was said before. Of a log that is alive for more than a
/// half there would be no place left in the end, were it not restated for less than half of its length.
#[test]
fn a_log_has_room_for_what_is_said_again() {
    const MAX: u64 = 4_000_000;
    let mut world = World::new(0, 0, 11);
    world.log_len_max = MAX;
    for number in 1..=2 {
        world.boot(number, MemoryLog::default());
    }
    world.say(1, vec![world.cluster.config(1)]);
    let node = Cluster::identity(1).node_id();
    let mut paths = 0;
    while world.nodes[&1].log().len_bytes(node) < MAX / 20 * 11 {
        assert!(paths < 20_000, "the log does not grow");
        for _ in 0..50 {
            world.say(1, vec![world.path(paths)]);
            paths += 1;
        }
        world.run(400);
    }
    for number in 0..paths {
        world.say(1, vec![world.path(number)]);
        if number % 50 == 0 {
            world.run(400);
        }
    }
    world.run(120_000);
    assert_eq!(world.rejected, 0);
    assert!(world.nodes[&1].directory().first_needed(node) > 1);
    assert_eq!(world.nodes[&2].too_long(), 0);
    world.assert_converged();
    assert!(
        [0, paths / 2, paths - 1]
            .iter()
            .all(|path| world.knows(2, *path))
    );
}

/// One that says more than the others keep harms itself only, and is back once it says less.
#[test]
fn a_log_that_is_too_long_is_not_taken_until_it_is_shorter() {
    const MAX: u64 = 2_000_000;
    const PATHS: u32 = 8_000;
    let mut world = World::new(1, 0, 9);
    world.log_len_max = MAX;
    for number in 2..=3 {
        world.boot(number, MemoryLog::default());
    }
    world.say(1, vec![world.cluster.config(1)]);
    for number in 0..PATHS {
        world.say(1, vec![world.path(number)]);
        if number % 50 == 0 {
            world.run(400);
        }
    }
    world.run(120_000);
    let flooder = Cluster::identity(1).node_id();
    for number in 2..=3 {
        let replica = &world.nodes[&number];
        let len = replica.log().len_bytes(flooder);
        assert!((MAX - 20_000..=MAX).contains(&len), "{len}");
        assert!(replica.is_too_long(flooder) && replica.too_long() == 1);
        assert!(world.knows(number, 1_000) && !world.knows(number, PATHS - 1));
    }
    // What the others say is heard, and what is refused does not cost much to be refused.
    world.bytes_on_wire = 0;
    world.say(2, vec![world.path(PATHS)]);
    world.run(600_000);
    assert!(world.knows(3, PATHS));
    let used = world.bytes_on_wire;
    assert!(used < 8 << 20, "{used} bytes in ten minutes");

    let cache = world.cluster.cache();
    let dots: Vec<Dot> = (1..PATHS)
        .flat_map(|number| world.nodes[&1].directory().dots(cache, path_hash(number)))
        .collect();
    for dots in dots.chunks(64) {
        world.say(1, vec![del(dots.to_vec())]);
        world.run(100);
    }
    // Its log is looked through when it has grown enough.
    let mut said = 0;
    while world.nodes[&1].directory().first_needed(flooder) == 1 {
        assert!(said < 10_000, "no checkpoint");
        for _ in 0..50 {
            world.say(1, vec![world.path(0)]);
        }
        world.run(400);
        said += 50;
    }
    world.run(600_000);
    for number in 2..=3 {
        assert_eq!(world.nodes[&number].too_long(), 0);
        assert!(world.knows(number, 0) && !world.knows(number, 1_000));
    }
    world.assert_converged();
}

#[test]
fn an_honest_node_stops_before_its_log_is_too_long() {
    const MAX: u64 = 500_000;
    let mut world = World::new(0, 0, 10);
    world.log_len_max = MAX;
    for number in 1..=2 {
        world.boot(number, MemoryLog::default());
    }
    world.say(1, vec![world.cluster.config(1)]);
    for number in 0..2_000 {
        world.say(1, vec![world.path(number)]);
        if number % 50 == 0 {
            world.run(400);
        }
    }
    world.run(60_000);
    assert!(world.rejected > 100, "{} are rejected", world.rejected);
    world.rejected = 0;
    // There is room for what is to go.
    let cache = world.cluster.cache();
    let dots = world.nodes[&1].directory().dots(cache, path_hash(3));
    world.say(1, vec![del(dots)]);
    world.run(60_000);
    assert!(world.knows(2, 2) && !world.knows(2, 3));
    assert_eq!(world.nodes[&2].too_long(), 0);
    world.assert_converged();
}

#[test]
fn garbage_and_forgeries_are_blamed_on_who_sends_them() {
    let mut world = World::new(2, 0, 8);
    world.run(5_000);
    let from = Cluster::identity(2).node_id();
    let replica = world.nodes.get_mut(&1).unwrap();
    let mut segment = world.cluster.writer(2).segments[0].bytes().to_vec();
    *segment.last_mut().unwrap() ^= 1;
    for bytes in [
        Bytes::from_static(b"garbage"),
        segment.into(),
        vec![0; 20_000].into(),
    ] {
        let actions = replica.handle(world.now, Event::Gossip { from, bytes });
        let rejects = |action: &Action| matches!(action, Action::Judge(Verdict::Reject));
        let blames =
            |action: &Action| matches!(action, Action::Misbehaved { node, .. } if *node == from);
        assert!(actions.iter().any(rejects) && actions.iter().any(blames));
    }
    let bytes = Bytes::from_static(b"garbage");
    let actions = replica.handle(world.now, Event::Request { from, id: 1, bytes });
    assert!(
        actions
            .iter()
            .any(|action| matches!(action, Action::Misbehaved { .. }))
    );
}

/// Who comes back from a partition is behind, sees by how much, and is not any more.
#[test]
fn a_lag_is_seen_and_goes_away() {
    let mut world = World::new(2, 0, 10);
    world.run(5_000);
    let [one, two] = [1, 2].map(|number| Cluster::identity(number).node_id());
    assert_eq!(world.nodes[&1].lag(two), Some(Lag::default()));
    world.disconnect(1, 2);
    assert_eq!(world.nodes[&1].lag(two), None);
    world.say(1, vec![world.cluster.config(1)]);
    for number in 0..20 {
        world.say(1, vec![world.path(number)]);
        world.run(300);
    }
    world.connect(1, 2);
    assert!(!world.nodes[&2].has_all_of_a_peer());
    let (mut behind, mut lacks) = (0, 0);
    for _ in 0..5_000 {
        world.run(1);
        if world.nodes[&2].has_all_of_a_peer() {
            let seq = |node: u8| world.nodes[&node].directory().seq(one);
            assert_eq!(seq(2), seq(1), "it has all that was said before");
        }
        let lag = world.nodes[&2].lag(one).unwrap_or_default();
        behind = lag.behind.max(behind);
        let lag = world.nodes[&1].lag(two).unwrap_or_default();
        lacks = lag.lacks.max(lacks);
    }
    let segments = world.nodes[&1].directory().seq(one);
    assert!(segments > 10, "{segments}");
    assert!(behind > 10 && behind <= segments, "{behind} of {segments}");
    assert!(lacks <= segments, "{lacks} of {segments}");
    world.run(120_000);
    world.assert_converged();
    assert_eq!(world.nodes[&1].lag(two), Some(Lag::default()));
    assert_eq!(world.nodes[&2].lag(one), Some(Lag::default()));
    assert!(world.nodes[&2].has_all_of_a_peer());
}

#[test]
fn the_same_seed_makes_the_same_history() {
    let run = || {
        let mut world = World::new(4, 20, 9);
        world.say(1, vec![world.cluster.config(1)]);
        for number in 0..20 {
            world.say(1 + number as u8 % 4, vec![world.path(number)]);
            world.run(300);
        }
        world.run(120_000);
        (world.sent, world.bytes_on_wire, world.digests())
    };
    assert_eq!(run(), run());
}
