//! Segments that nobody should believe.

use attic_p2p::identity::Identity;
use attic_p2p::ids::{ClusterId, ManifestId};
use attic_p2p::log::{Log, MemoryLog};
use attic_p2p::record::{NarTag, PathRecord, Record};
use attic_p2p::replica::Replica;
use attic_p2p::segment::{Place, Segment, SegmentHead, SegmentId};
use attic_p2p::signed::Signed;
use attic_store::NarHash;
use bytes::Bytes;

use super::Mode;

/// Makes them, each a little different from the last.
pub(super) struct Forger {
    identity: Identity,
    cluster: ClusterId,
    made: u64,
}

impl Forger {
    pub(super) fn new(identity: Identity, cluster: ClusterId) -> Forger {
        Forger {
            identity,
            cluster,
            made: 0,
        }
    }

    /// A segment as the mode wants it, if it is about segments.
    pub(super) fn segment(&mut self, mode: Mode, replica: &Replica<MemoryLog>) -> Option<Bytes> {
        self.made += 1;
        match mode {
            Mode::GarbageGossip => Some(self.made.to_be_bytes().repeat(40).into()),
            Mode::ForgedGossip => self.in_the_name_of_another(replica),
            Mode::StrangerGossip => self.of_a_stranger(),
            Mode::Rollback => self.second_log(),
            _ => None,
        }
    }

    /// Segments of its own that come too early, all well signed.
    pub(super) fn flood(&mut self, count: usize) -> Vec<Bytes> {
        let segment = |_| {
            self.made += 1;
            let segment = self.append(&self.identity, 1_000_000 + self.made);
            segment.map(|segment| segment.bytes().clone())
        };
        (0..count).filter_map(segment).collect()
    }

    /// That it holds NARs it never said to hold before.
    pub(super) fn holding(&mut self) -> Record {
        let tag = |number: u64| NarTag::of(&NarHash::of(&number.to_be_bytes()));
        let from = self.made;
        self.made += HELD;
        Record::Hold((from..self.made).map(tag).collect())
    }

    /// A path that the cluster has, with other contents that nobody signed.
    pub(super) fn path(&mut self, replica: &Replica<MemoryLog>) -> Option<Record> {
        self.made += 1;
        let directory = replica.directory();
        let cache = directory.caches().into_iter().next()?.id;
        let hash = *directory.paths(cache, None, 1).first()?;
        let known = directory.path(replica.log(), cache, hash).ok()?;
        let mut record: PathRecord = known?.1;
        record.info.nar_hash = NarHash::from_bytes([self.made as u8; 32]);
        record.manifest = ManifestId::of(&self.made.to_be_bytes());
        Some(Record::Path(record))
    }

    fn in_the_name_of_another(&self, replica: &Replica<MemoryLog>) -> Option<Bytes> {
        let me = self.identity.node_id();
        let victim = replica.log().nodes().into_iter().find(|node| *node != me)?;
        let tip = replica.directory().tip(victim);
        let honest = self.append(&self.identity, tip.seq + 1)?;
        let head = SegmentHead {
            node: victim,
            prev: tip.id,
            ..honest.head().clone()
        };
        let signed = Signed::new(head, &self.identity).encode();
        let body = self.body();
        let len = u16::try_from(signed.len()).ok()?;
        Some([&len.to_be_bytes()[..], &signed, &body].concat().into())
    }

    fn of_a_stranger(&self) -> Option<Bytes> {
        let [low, high, ..] = self.made.to_le_bytes();
        let mut seed = [0x5a; 32];
        seed[..2].copy_from_slice(&[low, high]);
        let stranger = Identity::from_seed(seed);
        let segment = self.append(&stranger, 1)?;
        Some(segment.bytes().clone())
    }

    fn second_log(&self) -> Option<Bytes> {
        let segment = self.append(&self.identity, 1)?;
        Some(segment.bytes().clone())
    }

    fn append(&self, signer: &Identity, seq: u64) -> Option<Segment> {
        let place = self.place(seq, SegmentId::before_first(&self.cluster));
        Segment::append(signer, place, &self.body()).ok()
    }

    fn place(&self, seq: u64, prev: SegmentId) -> Place {
        Place {
            cluster: self.cluster,
            seq,
            prev,
            hlc: self.made,
        }
    }

    fn body(&self) -> Vec<u8> {
        let tag = NarTag::from_bytes(self.made.to_be_bytes());
        Record::Hold(vec![tag]).encode().expect("a short record")
    }
}

/// NARs that one record says to hold: 4 KiB.
const HELD: u64 = 512;
