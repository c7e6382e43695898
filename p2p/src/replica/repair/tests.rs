use std::collections::VecDeque;
use std::sync::Arc;

use super::*;
use crate::directory::{Directory, NoKeys, SHARDS};
use crate::identity::Identity;
use crate::log::MemoryLog;
use crate::membership::Role;
use crate::membership::certificate::{Certificate, Holder, Issuer};
use crate::membership::genesis::{ClusterKey, Genesis};
use crate::membership::scopes::Scopes;
use crate::membership::sealing::OpeningKey;
use crate::membership::time::UnixTime;
use crate::reconcile::{Answer, SHARDS_PER_ASK, Summary};
use crate::record::{NarTag, Record};
use crate::replica::{Event, Setup};
use crate::signed::Signed;

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;

fn tag(number: u32) -> NarTag {
    NarTag::from_bytes([number as u8, (number >> 8) as u8, 0, 0, 0, 0, 0, 0])
}

fn node(number: u8) -> NodeId {
    Identity::from_seed([number; 32]).node_id()
}

fn genesis() -> Genesis {
    ClusterKey::from_seed([200; 32]).found("test".parse().unwrap(), [1; 16])
}

fn replica(number: u8, log: MemoryLog) -> Replica<MemoryLog> {
    let (key, genesis) = (ClusterKey::from_seed([200; 32]), genesis());
    let identity = Identity::from_seed([number; 32]);
    let holder = Holder {
        node: identity.node_id(),
        sealing_key: OpeningKey::of(&identity).sealing_key(),
        role: Role::Member,
        scopes: Scopes::all(),
    };
    let now = UnixTime(1_800_000_000);
    let cluster = genesis.cluster_id();
    let certificate = Certificate::new(cluster, holder, Issuer::Cluster, now, [number; 16]);
    let setup = Setup {
        identity,
        genesis,
        certificate: Signed::new(certificate, &key),
        unseal: Arc::new(NoKeys),
        log,
        seed: u64::from(number),
    };
    Replica::new(setup).unwrap()
}

/// Replicas that hear each other at once, in virtual time.
struct World {
    now: Millis,
    nodes: Vec<Replica<MemoryLog>>,
    wakes: Vec<Option<Millis>>,
    misbehaved: Vec<NodeId>,
    /// A node that answers requests for digests with wrong ones.
    liar: Option<usize>,
    asked_digests: usize,
}

impl World {
    fn new(count: u8) -> World {
        let mut world = World {
            now: Millis(1_800_000_000_000),
            nodes: (1..=count)
                .map(|number| replica(number, MemoryLog::default()))
                .collect(),
            wakes: vec![None; usize::from(count)],
            misbehaved: Vec::new(),
            liar: None,
            asked_digests: 0,
        };
        (0..world.nodes.len()).for_each(|index| world.connect(index));
        world.run(5_000);
        world
    }

    /// Every node holds NARs of every shard, in segments of its own.
    fn filled(count: u8) -> World {
        let mut world = World::new(count);
        for index in 0..world.nodes.len() {
            for part in 0..8 {
                let tags = (0..64).map(|n| tag(part * 64 + n)).collect();
                world.event(index, Event::Local(vec![Record::Hold(tags)]));
                world.run(1_000);
            }
        }
        world.run(2 * MINUTE);
        world.assert_equal();
        world
    }

    fn name(&self, index: usize) -> NodeId {
        node(index as u8 + 1)
    }

    fn connect(&mut self, index: usize) {
        for other in (0..self.nodes.len()).filter(|other| *other != index) {
            self.event(index, Event::PeerUp(self.name(other)));
            self.event(other, Event::PeerUp(self.name(index)));
        }
        self.event(index, Event::Tick);
    }

    /// Stops a node, does something to its log, and starts it again.
    fn restart(&mut self, index: usize, damage: impl FnOnce(&mut MemoryLog)) {
        for other in (0..self.nodes.len()).filter(|other| *other != index) {
            self.event(other, Event::PeerDown(self.name(index)));
        }
        let number = index as u8 + 1;
        let fresh = replica(number, MemoryLog::default());
        let mut log = std::mem::replace(&mut self.nodes[index], fresh).into_log();
        damage(&mut log);
        self.nodes[index] = replica(number, log);
        self.connect(index);
    }

    fn event(&mut self, index: usize, event: Event) {
        let mut events = VecDeque::from([(index, event)]);
        while let Some((index, event)) = events.pop_front() {
            for action in self.nodes[index].handle(self.now, event) {
                self.act(index, action, &mut events);
            }
        }
    }

    fn act(&mut self, index: usize, action: Action, events: &mut VecDeque<(usize, Event)>) {
        let from = self.name(index);
        match action {
            Action::Publish(bytes) => {
                for other in (0..self.nodes.len()).filter(|other| *other != index) {
                    let bytes = bytes.clone();
                    events.push_back((other, Event::Gossip { from, bytes }));
                }
            }
            Action::Request { to, id, bytes } => {
                let other = (0..self.nodes.len()).find(|other| self.name(*other) == to);
                let is_shards = matches!(Ask::decode(&bytes), Ok(Ask::Shards { .. }));
                self.asked_digests += usize::from(is_shards);
                let id = id << 8 | index as u64;
                events.push_back((other.unwrap(), Event::Request { from, id, bytes }));
            }
            Action::Respond { id, mut bytes } => {
                if self.liar == Some(index)
                    && let Ok(Answer::Shards(Some(digests))) = Answer::decode(&bytes)
                {
                    let wrong = digests.iter().map(|digest| digest ^ 1).collect();
                    bytes = Answer::Shards(Some(wrong)).encode();
                }
                let (asker, id) = ((id & 0xff) as usize, id >> 8);
                let bytes = Some(bytes);
                events.push_back((asker, Event::Response { from, id, bytes }));
            }
            Action::Wake(at) => self.wakes[index] = Some(at),
            Action::Misbehaved { node, .. } => self.misbehaved.push(node),
            Action::Rejected(_) => panic!("rejected"),
            Action::LogFailed(error) => panic!("{error}"),
            Action::Judge(_) | Action::Changed(_) => {}
        }
    }

    fn run(&mut self, millis: u64) {
        let end = Millis(self.now.0 + millis);
        loop {
            let wakes = (0..self.nodes.len()).filter_map(|index| Some((self.wakes[index]?, index)));
            let Some((at, index)) = wakes.min().filter(|(at, _)| *at <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(at);
            self.wakes[index] = None;
            self.event(index, Event::Tick);
        }
    }

    fn assert_equal(&self) {
        let digest = self.nodes[0].directory().digest();
        for node in &self.nodes {
            assert_eq!(node.directory().digest(), digest);
        }
        assert_eq!(self.misbehaved, []);
    }

    /// What is in the logs, of every author.
    fn logs(&self) -> Vec<Vec<Option<Bytes>>> {
        let all = |replica: &Replica<MemoryLog>| {
            let nodes = replica.log.nodes().into_iter();
            let seqs = nodes.flat_map(|node| {
                let (first, last) = replica.log.range(node).unwrap();
                (first..=last).map(move |seq| (node, seq))
            });
            seqs.map(|(node, seq)| replica.log.read(node, seq).unwrap())
                .collect()
        };
        self.nodes.iter().map(all).collect()
    }
}

/// Whatever number of shards memory damages, one fold puts all of them right.
#[test]
fn a_table_that_is_damaged_in_many_shards_converges_again() {
    for damaged in [1, 7, SHARDS as u32] {
        let mut world = World::filled(3);
        let tags: Vec<NarTag> = (0..damaged).map(tag).collect();
        tags.iter()
            .for_each(|tag| world.nodes[1].directory.bend(*tag, node(3)));
        world.run(3 * HOUR);
        world.assert_equal();
        assert_eq!(world.nodes[1].repairs().healed, 1, "{damaged} shards");
        // The others may have found the difference first, and were not shaken by it.
        for index in [0, 2] {
            let repairs = world.nodes[index].repairs();
            assert_eq!(repairs.healed, 0, "{repairs:?}");
            assert!(repairs.refolded <= 1, "{repairs:?}");
        }
    }
}

#[test]
fn equal_nodes_compare_for_few_bytes_and_fold_nothing_anew() {
    let mut world = World::filled(2);
    world.asked_digests = 0;
    world.run(10 * HOUR);
    let rounds = world.asked_digests / (SHARDS / usize::from(SHARDS_PER_ASK));
    assert!((18..=22).contains(&rounds), "{rounds} rounds of two nodes");
    for node in &world.nodes {
        assert_eq!(node.repairs(), Repairs::default());
    }
    let ask = Ask::Shards {
        summary: u64::MAX,
        terms: u64::MAX,
        first: 248,
    };
    let answer = Answer::Shards(Some(vec![u64::MAX; SHARDS_PER_ASK.into()]));
    let bytes = (ask.encode().len() + answer.encode().len()) * SHARDS / usize::from(SHARDS_PER_ASK);
    assert!(bytes <= 4096, "{bytes} bytes an hour");
}

/// Segments that decay while a node runs are found within a day, and fetched from whoever has them.
#[test]
fn a_log_that_decays_under_a_running_node_is_mended() {
    let mut world = World::filled(3);
    let sound = world.logs();
    let rotten = |seq: u64, bytes: &Bytes| {
        let mut bytes = bytes.to_vec();
        let at = seq as usize * 7 % bytes.len();
        bytes[at] ^= 1;
        Bytes::from(bytes)
    };
    // The own log among them; neighbours, the last segment, all of one log.
    let places = [(2, vec![1, 2, 3, 7, 8]), (1, (1..=8).collect())];
    for (author, seqs) in places {
        for seq in seqs {
            let log = &mut world.nodes[1].log;
            let bytes = log.read(node(author), seq).unwrap().unwrap();
            log.bend(node(author), seq, rotten(seq, &bytes));
        }
    }
    world.run(25 * HOUR);
    assert_eq!(world.logs(), sound);
    let repairs = world.nodes[1].repairs();
    assert_eq!((repairs.damaged, repairs.mended), (0, 13), "{repairs:?}");
    world.assert_equal();
    assert!(world.nodes.iter().all(|node| node.repairs().refolded == 0));
}

/// Bytes that no key signed are never put into a log, even where any bytes would be better.
#[test]
fn a_segment_is_mended_with_nothing_but_itself() {
    let mut world = World::filled(2);
    let place = (node(1), 4);
    let other = world.nodes[0].log.read(node(1), 5).unwrap().unwrap();
    let rotten = Bytes::from_static(b"rotten");
    world.nodes[1].log.bend(place.0, place.1, rotten.clone());
    world.nodes[1].repair.suspect(place.0, place.1);
    let mut actions = Vec::new();
    for bytes in [other, rotten.clone()] {
        world.nodes[1].learn_mended(node(1), vec![bytes], &mut actions);
        let there = world.nodes[1].log.read(place.0, place.1).unwrap();
        assert_eq!(there, Some(rotten.clone()));
    }
    assert!(matches!(actions[..], [Action::Misbehaved { .. }]));
}

/// What a stopped node's disk loses comes back, its own words among it, before it says anything new.
#[test]
fn a_log_that_decayed_while_a_node_was_stopped_is_whole_again() {
    for (author, lost) in [
        (2, vec![4]),
        (1, vec![1, 2]),
        (2, vec![1, 5, 8]),
        (3, vec![8]),
    ] {
        let mut world = World::filled(3);
        let sound = world.logs();
        world.restart(1, |log| {
            lost.iter()
                .for_each(|seq| log.bend(node(author), *seq, Bytes::from_static(b"rotten")));
        });
        world.run(2 * MINUTE);
        assert_eq!(world.logs(), sound, "{lost:?} of {author}");
        world.event(1, Event::Local(vec![Record::Hold(vec![tag(9_999)])]));
        world.run(2 * MINUTE);
        world.assert_equal();
        assert_eq!(world.nodes[0].directory().stats().quarantined, 0);
        assert_eq!(world.nodes[0].directory().holders(tag(9_999)), [node(2)]);
    }
}

/// Alone, a node whose own log is damaged keeps silent: what it would write has been written.
#[test]
fn a_node_with_a_damaged_log_of_its_own_says_nothing_until_it_was_mended() {
    let mut world = World::filled(2);
    let log = std::mem::replace(&mut world.nodes[1], replica(2, MemoryLog::default())).into_log();
    for lost in [1, 5, 8] {
        let mut log = log.clone();
        log.bend(node(2), lost, Bytes::from_static(b"rotten"));
        let mut alone = replica(2, log);
        let say = Event::Local(vec![Record::Hold(vec![tag(9_999)])]);
        let mut now = Millis(world.now.0);
        for event in [Event::Tick, say, Event::Tick] {
            let actions = alone.handle(now, event);
            let spoke = actions
                .iter()
                .any(|action| matches!(action, Action::Publish(_)));
            assert!(!spoke && alone.is_starting(), "segment {lost} lost");
            now = Millis(now.0 + 100 * HOUR);
        }
    }
}

#[test]
fn a_peer_that_lies_about_its_state_costs_one_fold_and_is_scored() {
    let mut world = World::filled(3);
    world.liar = Some(2);
    world.run(24 * HOUR);
    for index in [0, 1] {
        let repairs = world.nodes[index].repairs();
        assert_eq!((repairs.refolded, repairs.healed), (1, 0), "{repairs:?}");
        assert!(repairs.verified <= 2, "{repairs:?}");
    }
    let digest = world.nodes[0].directory().digest();
    assert_eq!(world.nodes[1].directory().digest(), digest);
    assert!(world.misbehaved.len() >= 2, "{:?}", world.misbehaved);
    assert!(world.misbehaved.iter().all(|who| *who == node(3)));
}

/// To have been wrong once is no reason to be wrong for ever, nor for others to be right.
#[test]
fn a_peer_that_agrees_again_is_believed_again() {
    let mut world = World::filled(2);
    world.liar = Some(1);
    world.run(HOUR + 10 * MINUTE);
    assert_eq!(world.nodes[0].repairs().contradicted, 1);
    world.liar = None;
    world.run(90 * MINUTE);
    world.nodes[0].directory.bend(tag(1), node(2));
    world.run(3 * HOUR);
    world.assert_equal();
    assert_eq!(world.nodes[0].repairs().healed, 1);
}

/// More may be damaged than one request can ask for, and be the neighbour of what is damaged too.
#[test]
fn a_long_log_that_decayed_from_end_to_end_is_mended() {
    let mut world = World::new(2);
    for number in 0..DAMAGED_MAX as u32 + 100 {
        world.event(0, Event::Local(vec![Record::Hold(vec![tag(number)])]));
        world.run(300);
    }
    let sound = world.logs();
    let (first, last) = world.nodes[1].log.range(node(1)).unwrap();
    assert!(last - first > DAMAGED_MAX as u64);
    for seq in first..=last {
        let rotten = Bytes::from_static(b"rotten");
        world.nodes[1].log.bend(node(1), seq, rotten);
    }
    world.run(25 * HOUR);
    assert!(world.logs() == sound);
    assert_eq!(world.nodes[1].repairs().damaged, 0);
}

/// Whoever waits for an answer that does not come waits, and does not spin.
#[test]
fn mending_waits_for_a_peer_that_is_silent() {
    let mut world = World::filled(2);
    let replica = &mut world.nodes[1];
    replica.repair.suspect(node(1), 4);
    let (mut now, mut wakes) = (world.now, 0);
    let end = now.plus(Duration::from_secs(60));
    while now < end {
        let actions = replica.handle(now, Event::Tick);
        let wake = actions.iter().find_map(|action| match action {
            Action::Wake(at) => Some(*at),
            _ => None,
        });
        now = wake.expect("there is more to do").max(now);
        wakes += 1;
        assert!(wakes < 200, "{wakes} wakes");
    }
}

/// What was folded stays as it is while the log it came from is not whole; and no number of the own
/// log is used twice, whatever became of it.
#[test]
fn a_log_that_decays_before_it_is_folded_anew_takes_nothing_back() {
    let mut world = World::filled(2);
    let rotten = Bytes::from_static(b"rotten");
    let replica = &mut world.nodes[1];
    let digest = replica.directory.digest();
    replica.log.bend(node(2), 3, rotten);
    assert!(!replica.directory.refold(&mut replica.log).unwrap());
    assert_eq!(replica.directory.digest(), digest);

    let keys = Arc::new(NoKeys);
    replica.directory = Directory::load(genesis(), keys, &mut replica.log).unwrap();
    let say = Event::Local(vec![Record::Hold(vec![tag(9_999)])]);
    let actions = replica.handle(world.now, say);
    assert!(replica.is_starting());
    let speaks = |action: &Action| matches!(action, Action::Publish(_));
    assert!(!actions.iter().any(speaks));
    world.run(3 * MINUTE);
    world.assert_equal();
    assert!(!world.nodes[1].is_starting());
    let holders = world.nodes[0].directory().holders(tag(9_999));
    assert_eq!(holders, [node(2)]);
    assert_eq!(world.nodes[0].directory().stats().quarantined, 0);
}

#[test]
fn a_peer_that_asks_for_digests_without_end_gets_a_few() {
    let mut world = World::filled(2);
    let directory = world.nodes[0].directory();
    let summary = Summary::of(&directory.tips()).all;
    let terms = directory.terms().0;
    let now = world.now;
    let mut answered = |now: Millis| {
        let replica = &mut world.nodes[0];
        let asks = (0..10_000).map(|_| replica.answer_shards(now, (summary, terms), 0));
        asks.filter(|answer| matches!(answer, Answer::Shards(Some(_))))
            .count()
    };
    assert_eq!(answered(now), ANSWERS_MAX as usize);
    assert_eq!(answered(now.plus(ANSWERS_PER)), ANSWERS_MAX as usize);
}
