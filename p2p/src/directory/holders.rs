//! Who holds which NAR.
//!
//! Sets of holders repeat – what one office has, most of its nodes have – so each distinct set is
//! kept once. Even where every NAR has a set of its own, ten holders cost about 50 bytes.

use crate::directory::table::Table;
use crate::record::NarTag;

/// Holders of NARs, as numbers of nodes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Holders {
    rows: Table<HolderRow>,
    sets: Sets,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct HolderRow {
    tag: NarTag,
    /// In bytes, so that the row is 12 long.
    set: [u8; 4],
}

impl Holders {
    /// Number of NARs that somebody holds.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Who holds it, ascending.
    pub(crate) fn of(&self, tag: NarTag) -> &[u16] {
        self.row(tag).map_or(&[], |row| self.sets.members(row.id()))
    }

    /// All NARs with their holders, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (NarTag, &[u16])> {
        let pair = |row: &HolderRow| (row.tag, self.sets.members(row.id()));
        self.rows.iter().map(pair)
    }

    /// The NARs whose tags begin with this byte, with their holders, ascending.
    pub(crate) fn beginning_with(&self, byte: u8) -> impl Iterator<Item = (NarTag, &[u16])> {
        let tag = NarTag::from_bytes([byte, 0, 0, 0, 0, 0, 0, 0]);
        let set = [0; 4];
        let rows = self.rows.from(&HolderRow { tag, set });
        let rows = rows.take_while(move |row| row.tag.as_bytes()[0] == byte);
        rows.map(|row| (row.tag, self.sets.members(row.id())))
    }

    /// Says that `node` holds it; false if that was known.
    pub(crate) fn insert(&mut self, tag: NarTag, node: u16) -> bool {
        let mut members = self.of(tag).to_vec();
        let Err(at) = members.binary_search(&node) else {
            return false;
        };
        members.insert(at, node);
        self.replace(tag, &members);
        true
    }

    /// Says that `node` does not hold it; false if that was known.
    pub(crate) fn remove(&mut self, tag: NarTag, node: u16) -> bool {
        let mut members = self.of(tag).to_vec();
        let Ok(at) = members.binary_search(&node) else {
            return false;
        };
        members.remove(at);
        self.replace(tag, &members);
        true
    }

    /// Forgets `node` everywhere; the NARs it held.
    pub(crate) fn remove_node(&mut self, node: u16) -> Vec<NarTag> {
        let held = self.held_by(node);
        for tag in &held {
            self.remove(*tag, node);
        }
        held
    }

    /// The NARs that `node` holds, ascending.
    pub(crate) fn held_by(&self, node: u16) -> Vec<NarTag> {
        let holds = |(_, members): &(NarTag, &[u16])| members.binary_search(&node).is_ok();
        self.iter().filter(holds).map(|(tag, _)| tag).collect()
    }

    fn row(&self, tag: NarTag) -> Option<HolderRow> {
        let set = [0; 4];
        let found = self.rows.from(&HolderRow { tag, set }).next().copied();
        found.filter(|row| row.tag == tag)
    }

    fn replace(&mut self, tag: NarTag, members: &[u16]) {
        if let Some(row) = self.row(tag) {
            self.rows.remove(&row);
            self.sets.release(row.id());
        }
        if !members.is_empty() {
            let set = self.sets.intern(members).to_le_bytes();
            self.rows.insert(HolderRow { tag, set });
        }
    }
}

impl HolderRow {
    fn id(&self) -> u32 {
        u32::from_le_bytes(self.set)
    }
}

/// Each distinct set once, with the number of its users.
#[derive(Clone, Debug, Default)]
struct Sets {
    sets: Vec<Set>,
    /// Members of all sets, end to end; freed ones leave holes.
    arena: Vec<u16>,
    holes: usize,
    free: Vec<u32>,
    /// `(hash of the members, id)`.
    by_hash: Table<(u32, u32)>,
}

#[derive(Clone, Copy, Debug)]
struct Set {
    start: u32,
    len: u16,
    /// 0 when the id is free.
    users: u32,
}

impl Sets {
    fn members(&self, id: u32) -> &[u16] {
        let set = &self.sets[id as usize];
        &self.arena[set.start as usize..][..usize::from(set.len)]
    }

    fn intern(&mut self, members: &[u16]) -> u32 {
        let hash = hash(members);
        let same_hash = self.by_hash.from(&(hash, 0));
        let found = same_hash
            .take_while(|(other, _)| *other == hash)
            .map(|(_, id)| *id)
            .find(|id| self.members(*id) == members);
        let id = found.unwrap_or_else(|| self.add(members, hash));
        self.sets[id as usize].users += 1;
        id
    }

    fn add(&mut self, members: &[u16], hash: u32) -> u32 {
        grow_gently(&mut self.arena, members.len());
        let set = Set {
            // 2^32 members would be 8 GiB of memory; that bound is hit long before.
            start: self.arena.len() as u32,
            len: members.len() as u16,
            users: 0,
        };
        self.arena.extend_from_slice(members);
        let id = match self.free.pop() {
            Some(id) => {
                self.sets[id as usize] = set;
                id
            }
            None => {
                grow_gently(&mut self.sets, 1);
                self.sets.push(set);
                (self.sets.len() - 1) as u32
            }
        };
        self.by_hash.insert((hash, id));
        id
    }

    fn release(&mut self, id: u32) {
        let hash = hash(self.members(id));
        let set = &mut self.sets[id as usize];
        set.users -= 1;
        if set.users > 0 {
            return;
        }
        self.holes += usize::from(set.len);
        set.len = 0;
        self.by_hash.remove(&(hash, id));
        self.free.push(id);
        if self.holes > ARENA_HOLES_MIN && self.holes > self.arena.len() / 8 {
            self.compact();
        }
    }

    /// Closes the holes, which were an eighth at least: paid for by what made them.
    fn compact(&mut self) {
        let mut arena = Vec::with_capacity(self.arena.len() - self.holes);
        for set in &mut self.sets {
            let members = &self.arena[set.start as usize..][..usize::from(set.len)];
            set.start = arena.len() as u32;
            arena.extend_from_slice(members);
        }
        self.arena = arena;
        self.holes = 0;
    }
}

/// Room for `more`, by a sixteenth and not by doubling.
fn grow_gently<T>(vec: &mut Vec<T>, more: usize) {
    if vec.capacity() - vec.len() < more {
        vec.reserve_exact(more.max(vec.len() / 16).max(64));
    }
}

/// FNV-1a: sets are told apart by their members, the hash only finds candidates.
fn hash(members: &[u16]) -> u32 {
    let step = |hash: u32, member: &u16| (hash ^ u32::from(*member)).wrapping_mul(0x0100_0193);
    members.iter().fold(0x811c_9dc5, step)
}

/// Holes, in members, that are not worth closing.
const ARENA_HOLES_MIN: usize = 4096;

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn tag(number: u8) -> NarTag {
        NarTag::from_bytes([number; 8])
    }

    proptest! {
        #[test]
        fn it_is_a_map_of_sets(steps in proptest::collection::vec((any::<bool>(), 0u8..20, 0u16..8), 0..600)) {
            let mut holders = Holders::default();
            let mut twin = BTreeMap::<NarTag, BTreeSet<u16>>::new();
            for (add, number, node) in steps {
                let set = twin.entry(tag(number)).or_default();
                if add {
                    prop_assert_eq!(holders.insert(tag(number), node), set.insert(node));
                } else {
                    prop_assert_eq!(holders.remove(tag(number), node), set.remove(&node));
                }
            }
            holders.remove_node(3);
            twin.values_mut().for_each(|set| { set.remove(&3); });
            for number in 0..20 {
                let expected: Vec<u16> = twin.get(&tag(number)).into_iter().flatten().copied().collect();
                prop_assert_eq!(holders.of(tag(number)), &expected[..]);
            }
            let users: u32 = holders.sets.sets.iter().map(|set| set.users).sum();
            prop_assert_eq!(users as usize, holders.len());
        }
    }

    #[test]
    fn holes_are_closed() {
        let mut holders = Holders::default();
        for round in 0..10u16 {
            for number in 0..5000u64 {
                let tag = NarTag::from_bytes((number * 7919).to_be_bytes());
                holders.insert(tag, (number % 500) as u16 * 10 + round);
            }
        }
        let sets = &holders.sets;
        let live: usize = sets.sets.iter().map(|set| usize::from(set.len)).sum();
        assert!(sets.arena.len() <= live + live / 4 + 2 * ARENA_HOLES_MIN);
    }
}
