//! What hosts do that are not as they should be. Underneath, each runs an honest replica.

use std::time::Duration;

use attic_p2p::ids::Dot;
use attic_p2p::log::Log;
use attic_p2p::record::{Del, DelReason, NarTag, Record};
use attic_p2p::replica::Event;
use attic_p2p::segment::{Place, Segment, SegmentId};
use attic_p2p::wire::{Frame, Object};
use bytes::Bytes;

use crate::sim::content::Truth;
use crate::sim::gossip::message_id;
use crate::sim::host::Index;
use crate::sim::scenario::Manner;
use crate::sim::world::{Happening, Message, World};

impl World {
    /// Does what the host's manner is, and plans to do it again.
    pub(crate) fn mischief(&mut self, at: Index) {
        let again = match self.hosts[at].manner {
            Manner::Honest => return,
            Manner::Lies | Manner::Boasts => {
                self.claim_everything(at);
                Duration::from_secs(1)
            }
            Manner::Forges => {
                self.forge(at);
                Duration::from_millis(100)
            }
            Manner::Equivocates => match self.equivocate(at) {
                true => return,
                false => Duration::from_secs(1),
            },
            Manner::Floods => {
                self.flood(at);
                Duration::from_millis(100)
            }
        };
        let life = self.hosts[at].life;
        self.agenda.after(again, Happening::Mischief { at, life });
    }

    /// Says that it holds all there is. A liar has bytes to send for it.
    fn claim_everything(&mut self, at: Index) {
        let claimed = self.hosts[at].directory().map(|directory| {
            let said = directory.held_by(self.hosts[at].node);
            let all = (0..self.content.len()).map(|thing| self.content.thing(thing).tag());
            all.filter(|tag| said.binary_search(tag).is_err()).collect()
        });
        let claimed: Vec<NarTag> = claimed.unwrap_or_default();
        if self.hosts[at].manner == Manner::Lies {
            self.hosts[at].store.held.extend(0..self.content.len());
        }
        if !claimed.is_empty() {
            let records = claimed.chunks(512).map(|tags| Record::Hold(tags.to_vec()));
            self.tell_replica(at, Event::Local(records.collect()));
        }
    }

    fn forge(&mut self, at: Index) {
        let number = self.random.below(1_000) as usize;
        match self.random.below(10) {
            // A path that the cache never had, in a log that may not speak for the cache.
            0..=2 => {
                let path = Record::Path(self.charter.forged_path(number));
                self.tell_replica(at, Event::Local(vec![path]));
            }
            // A removal by who may not remove.
            3..=4 => {
                let dots = self.some_dots(at);
                let reason = DelReason::Quarantine;
                if !dots.is_empty() {
                    let del = Record::Del(Del { dots, reason });
                    self.tell_replica(at, Event::Local(vec![del]));
                }
            }
            5..=6 => {
                let segment = self.some_segment(at);
                self.whisper(at, segment);
            }
            7 => {
                let mut altered = self.some_segment(at).to_vec();
                if !altered.is_empty() {
                    let place = self.random.below(altered.len() as u64) as usize;
                    altered[place] ^= 1 << self.random.below(8);
                }
                self.whisper(at, altered.into());
            }
            8 => {
                let len = self.random.below(20_000) as usize;
                let garbage = self.random.bytes(len);
                self.whisper(at, garbage.into());
            }
            _ => {
                let garbage = self.random.bytes(64);
                if let Some(to) = self.some_peer(at) {
                    let (id, bytes) = (1 << 40, garbage.into());
                    self.send(at, to, Message::Ask { id, bytes });
                }
            }
        }
    }

    /// Two segments of one number, to two peers. Whether it could.
    fn equivocate(&mut self, at: Index) -> bool {
        let Some(directory) = self.hosts[at].directory() else {
            return false;
        };
        let tip = directory.tip(self.hosts[at].node);
        let mut peers = self.hosts[at].links.keys().copied();
        let (Some(one), Some(other)) = (peers.next(), peers.next_back()) else {
            return false;
        };
        if tip.seq == 0 {
            return false;
        }
        for (to, tag) in [(one, 1), (other, 2)] {
            let segment = self.segment(at, (tip.seq + 1, tip.id), tag);
            let bytes = segment.bytes().clone();
            let id = message_id(&bytes);
            self.send_gossip(at, to, Message::Gossip { id, bytes });
        }
        true
    }

    fn segment(&self, at: Index, (seq, prev): (u64, SegmentId), tag: u8) -> Segment {
        let place = Place {
            cluster: self.charter.genesis.cluster_id(),
            seq,
            prev,
            hlc: self.hosts[at].clock.millis(self.now()).0,
        };
        let hold = Record::Hold(vec![NarTag::from_bytes([tag; 8])]);
        let body = hold.encode().expect("a short record");
        Segment::append(&self.hosts[at].identity, place, &body).expect("a short body")
    }

    /// A node that does not know what it has forgotten writes to its log on its disk.
    pub(crate) fn write_too_early(&mut self, at: Index) {
        let node = self.hosts[at].node;
        let last = self.hosts[at].last_seq(node);
        let Some(disk) = self.hosts[at].disk_mut() else {
            return;
        };
        let bytes = disk.read(node, last).ok().flatten();
        let Some(Ok(segment)) = bytes.map(Segment::decode) else {
            return;
        };
        let next = self.segment(at, (last + 1, segment.id()), 9);
        if let Some(disk) = self.hosts[at].disk_mut() {
            let appended = disk.append(node, last + 1, next.bytes().clone());
            appended.expect("memory does not fail");
        }
    }

    fn flood(&mut self, at: Index) {
        for to in self.hosts[at].links.keys().copied().collect::<Vec<_>>() {
            for _ in 0..FLOOD {
                let old = self.some_segment(at);
                let id = message_id(&self.random.bytes(16));
                self.send_gossip(at, to, Message::Gossip { id, bytes: old });
                let object = Object {
                    nar: attic_store::NarHash::of(&self.random.bytes(8)),
                    manifest: attic_p2p::ids::ManifestId::of(&[]),
                };
                let req = self.random.bits() as u32;
                self.send_frame(at, to, Frame::HaveQuery { req, object }, Truth::Junk);
                let bytes = attic_p2p::reconcile::Ask::Tips { buckets: u64::MAX }.encode();
                self.send(at, to, Message::Ask { id: 1 << 41, bytes });
            }
        }
    }

    fn whisper(&mut self, at: Index, bytes: Bytes) {
        if let Some(to) = self.some_peer(at) {
            let id = message_id(&bytes);
            self.send_gossip(at, to, Message::Gossip { id, bytes });
        }
    }

    fn some_peer(&mut self, at: Index) -> Option<Index> {
        let peers = self.hosts[at].links.len() as u64;
        let chosen = self.random.bits().checked_rem(peers)?;
        self.hosts[at].links.keys().nth(chosen as usize).copied()
    }

    /// Any segment of anybody that the host has.
    fn some_segment(&mut self, at: Index) -> Bytes {
        let author = self.random.below(self.hosts.len() as u64) as usize;
        let node = self.hosts[author].node;
        let Some(replica) = &self.hosts[at].replica else {
            return Bytes::new();
        };
        let (first, last) = replica.log().range(node).unwrap_or((0, 0));
        let seq = first + self.random.bits() % (last - first + 1);
        let read = replica.log().read(node, seq);
        read.ok().flatten().unwrap_or_default()
    }

    /// Records of some path that somebody pushed.
    fn some_dots(&mut self, at: Index) -> Vec<Dot> {
        if self.content.len() == 0 {
            return Vec::new();
        }
        let thing = self.random.below(self.content.len() as u64) as usize;
        let (cache, hash) = (self.charter.cache(), self.content.thing(thing).hash());
        let directory = self.hosts[at].directory();
        directory.map_or(Vec::new(), |directory| directory.dots(cache, hash))
    }
}

/// Messages of each kind to each peer, ten times a second.
const FLOOD: usize = 8;
