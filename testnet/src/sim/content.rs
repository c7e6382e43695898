//! What the cluster is about: paths with their NARs.

use std::collections::BTreeMap;
use std::sync::Arc;

use attic_p2p::ids::Dot;
use attic_p2p::record::{NarTag, PathRecord};
use attic_p2p::wire::{Layout, Object};
use attic_store::StorePathHash;

use crate::seed::Seed;
use crate::sim::charter::Charter;

/// A thing's place in [`Content`].
pub(crate) type ThingIndex = usize;

/// A path and how its NAR is cut.
#[derive(Clone, Debug)]
pub(crate) struct Thing {
    pub(crate) path: PathRecord,
    pub(crate) object: Object,
    pub(crate) layout: Arc<Layout>,
}

impl Thing {
    pub(crate) fn hash(&self) -> StorePathHash {
        *self.path.info.path.hash()
    }

    pub(crate) fn tag(&self) -> NarTag {
        NarTag::of(&self.object.nar)
    }
}

/// Every path that anybody ever pushed, known to nobody but the world itself.
#[derive(Debug, Default)]
pub(crate) struct Content {
    things: Vec<Thing>,
    by_hash: BTreeMap<StorePathHash, ThingIndex>,
    by_tag: BTreeMap<NarTag, ThingIndex>,
}

impl Content {
    /// Makes one more path, with a NAR of `len` bytes as it travels.
    pub(crate) fn make(&mut self, charter: &Charter, random: &mut Seed, len: u64) -> ThingIndex {
        let index = self.things.len();
        let path = charter.path(index, len);
        let layout = Layout::new(chunk_lens(random, len)).expect("chunks are not empty");
        let object = Object {
            nar: path.info.nar_hash,
            manifest: path.manifest,
        };
        let thing = Thing {
            path,
            object,
            layout: Arc::new(layout),
        };
        self.by_hash.insert(thing.hash(), index);
        self.by_tag.insert(thing.tag(), index);
        self.things.push(thing);
        index
    }

    pub(crate) fn thing(&self, index: ThingIndex) -> &Thing {
        &self.things[index]
    }

    pub(crate) fn len(&self) -> usize {
        self.things.len()
    }

    pub(crate) fn by_hash(&self, hash: &StorePathHash) -> Option<ThingIndex> {
        self.by_hash.get(hash).copied()
    }

    pub(crate) fn by_tag(&self, tag: &NarTag) -> Option<ThingIndex> {
        self.by_tag.get(tag).copied()
    }

    pub(crate) fn by_object(&self, object: &Object) -> Option<ThingIndex> {
        let index = self.by_tag(&NarTag::of(&object.nar))?;
        (self.things[index].object == *object).then_some(index)
    }
}

/// As chunks of 32 to 512 KiB are, compressed: about 80 KiB.
fn chunk_lens(random: &mut Seed, len: u64) -> Vec<u32> {
    let mut lens = Vec::new();
    let mut left = len.max(1);
    while left > 0 {
        let chunk = left.min(24_000 + random.below(120_000));
        lens.push(chunk as u32);
        left -= chunk;
    }
    lens
}

/// What bytes on the wire or on a disk really are, however they are labelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Truth {
    /// The chunk of this number of this thing.
    Chunk(ThingIndex, u32),
    /// Nothing anybody asked for.
    Junk,
}

/// What was said in logs of honest nodes, collected as it was said.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Of each path, the records that say it.
    pub(crate) said: BTreeMap<StorePathHash, Vec<Dot>>,
    /// Of each removed record, the segments that remove it.
    pub(crate) removed: BTreeMap<Dot, Vec<Dot>>,
}
