//! No conversation with a malicious member makes a replica panic, loop, or believe what nobody
//! signed: whatever comes by gossip, as a question or as an answer.
//!
//! The input is cut into messages: a byte that says of what kind, two for the length, the bytes. Time
//! goes on between them, so that answers find a question.
//!
//! In `p2p/`: `cargo +nightly fuzz run replica`.

#![no_main]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use attic_p2p::directory::NoKeys;
use attic_p2p::identity::Identity;
use attic_p2p::ids::NodeId;
use attic_p2p::log::MemoryLog;
use attic_p2p::membership::Role;
use attic_p2p::membership::certificate::{Certificate, Holder, Issuer};
use attic_p2p::membership::genesis::ClusterKey;
use attic_p2p::membership::scopes::Scopes;
use attic_p2p::membership::sealing::OpeningKey;
use attic_p2p::membership::time::UnixTime;
use attic_p2p::record::{NarTag, Record};
use attic_p2p::replica::{Action, Event, Replica, Setup};
use attic_p2p::segment::{Place, Segment, SegmentId};
use attic_p2p::signed::Signed;
use attic_p2p::time::Millis;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut world = World::new();
    let mut rest = input;
    while let Some((kind, len, after)) = head(rest) {
        let (message, after) = after.split_at(len.min(after.len()));
        world.step(kind, Bytes::copy_from_slice(message));
        rest = after;
    }
    world.step(TICK, Bytes::new());
    // A cache takes a signature of its owner, and a second member one of the cluster.
    let directory = world.replica.directory();
    assert!(directory.caches().is_empty());
    assert!(directory.members().count() <= 2);
});

fn head(bytes: &[u8]) -> Option<(u8, usize, &[u8])> {
    let ([kind, high, low], rest) = bytes.split_first_chunk()?;
    Some((*kind, usize::from(u16::from_be_bytes([*high, *low])), rest))
}

/// A replica and the one member it knows, who is the fuzzer.
struct World {
    replica: Replica<MemoryLog>,
    now: Millis,
    villain: Identity,
    /// Of the villain's log: it can go on with it.
    tip: (u64, SegmentId),
    /// Questions that wait, by number.
    asked: BTreeMap<u64, NodeId>,
}

impl World {
    fn new() -> World {
        let key = ClusterKey::from_seed([2; 32]);
        let genesis = key.found("office".parse().expect("a name"), [3; 16]);
        let cluster = genesis.cluster_id();
        let certificate = |identity: &Identity| {
            let holder = Holder {
                node: identity.node_id(),
                sealing_key: OpeningKey::of(identity).sealing_key(),
                role: Role::Member,
                scopes: Scopes::all(),
            };
            let at = UnixTime(1_800_000_000);
            let certificate = Certificate::new(cluster, holder, Issuer::Cluster, at, [4; 16]);
            Signed::new(certificate, &key)
        };
        let (me, villain) = (Identity::from_seed([1; 32]), Identity::from_seed([9; 32]));
        let replica = Replica::new(Setup {
            certificate: certificate(&me),
            identity: me,
            genesis,
            unseal: Arc::new(NoKeys),
            log: MemoryLog::default(),
            log_len_max: LOG_LEN_MAX,
            seed: 1,
        });
        let mut world = World {
            replica: replica.expect("a log in memory is read"),
            now: Millis(1_800_000_000_000),
            tip: (0, SegmentId::before_first(&cluster)),
            asked: BTreeMap::new(),
            villain,
        };
        world.handle(Event::PeerUp(world.villain.node_id()));
        let introduction = Record::Member(certificate(&world.villain));
        world.say(&introduction.encode().expect("a certificate is short"));
        let tag = NarTag::from_bytes([7; 8]);
        world.handle(Event::Local(vec![Record::Hold(vec![tag])]));
        world
    }

    fn step(&mut self, kind: u8, bytes: Bytes) {
        let from = self.villain.node_id();
        match kind % 6 {
            0 => self.handle(Event::Gossip { from, bytes }),
            1 => self.handle(Event::Request { from, id: 1, bytes }),
            2 => {
                let id = self.asked.keys().next_back().copied().unwrap_or(0);
                let bytes = Some(bytes);
                self.handle(Event::Response { from, id, bytes });
            }
            3 => self.say(&bytes),
            4 => {
                self.handle(Event::PeerDown(from));
                self.handle(Event::PeerUp(from));
            }
            _ => {
                self.now = self.now.plus(Duration::from_secs(20));
                self.handle(Event::Tick);
            }
        }
    }

    /// Goes on with the villain's own log, properly signed, with this body.
    fn say(&mut self, body: &[u8]) {
        let place = Place {
            cluster: self.replica.directory().cluster(),
            seq: self.tip.0 + 1,
            prev: self.tip.1,
            hlc: self.now.0,
        };
        if let Ok(segment) = Segment::append(&self.villain, place, body) {
            self.tip = (place.seq, segment.id());
            let (from, bytes) = (self.villain.node_id(), segment.bytes().clone());
            self.handle(Event::Gossip { from, bytes });
        }
    }

    fn handle(&mut self, event: Event) {
        self.now = self.now.plus(Duration::from_millis(10));
        for action in self.replica.handle(self.now, event) {
            if let Action::Request { to, id, .. } = action {
                self.asked.insert(id, to);
            }
        }
    }
}

const TICK: u8 = 5;
/// Short, so that it is reached.
const LOG_LEN_MAX: u64 = 1 << 16;
