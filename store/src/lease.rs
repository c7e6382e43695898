//! Leases: what keeps chunks alive before anything refers to them.
//!
//! A chunk that an upload found in the store, or has just written, belongs to no path yet. While
//! the upload's [`Lease`] lives it is held, and lives like one that a NAR needs: its pack may be
//! rewritten and what is dead in it freed, but the chunk goes along.
//!
//! Collection and uploads meet in one table under one lock. An upload holds a chunk *and then* uses
//! it; collection condemns a pack *and then* reads what is referred to and held. So one of the two
//! always sees the other: a chunk held first is copied out of its condemned pack, and a chunk in a
//! condemned pack that is not held yet counts as absent, so the upload sends it again.
//!
//! A reader, which knows places and not chunks, pins whole packs: these are not condemned. So does
//! an upload whose chunks are too many to be counted one by one ([`CHUNKS_MAX`]).
//!
//! A NAR imported under a lease is held by it as well, until a path is published with it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::hash::{ChunkId, NarHash};
use crate::pack_id::PackId;

/// Holds the chunks of an upload in flight; releases them when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Lease {
    holder: Arc<Holder>,
}

#[derive(Debug)]
struct Holder {
    table: Arc<LeaseTable>,
    /// Its place in the table.
    number: u64,
    pinned: Mutex<BTreeSet<PackId>>,
    nars: Mutex<BTreeSet<NarHash>>,
}

/// All that leases hold in a store, and its condemned packs.
#[derive(Debug, Default)]
pub(crate) struct LeaseTable {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the next lease.
    next: u64,
    /// The chunks that each lease holds; leases that hold none are not listed.
    chunks: BTreeMap<u64, HashSet<ChunkId>>,
    /// Chunks in all of these.
    chunks_len: usize,
    /// How many leases pin a pack; never zero.
    pins: BTreeMap<PackId, usize>,
    /// How many leases hold a NAR; never zero.
    nars: BTreeMap<NarHash, usize>,
    condemned: BTreeSet<PackId>,
}

impl Lease {
    pub(crate) fn new(table: &Arc<LeaseTable>) -> Lease {
        let (pinned, nars) = (Mutex::default(), Mutex::default());
        let mut state = table.state();
        let number = state.next;
        state.next += 1;
        Lease {
            holder: Arc::new(Holder {
                table: Arc::clone(table),
                number,
                pinned,
                nars,
            }),
        }
    }

    /// Holds a NAR: paths with it, and what they refer to, are not evicted.
    pub(crate) fn hold(&self, nar: NarHash) {
        let mut nars = self.holder.nars.lock().expect("no panic under this lock");
        if nars.insert(nar) {
            *self.holder.table.state().nars.entry(nar).or_insert(0) += 1;
        }
    }

    /// Holds a chunk of which a copy lies in `pack`. `false` if that pack is condemned, or gone by
    /// `is_there`: then this copy must not be relied on.
    ///
    /// Asked under the table's lock, so that a pack that is there cannot go before the chunk is held.
    /// A chunk that the lease holds already lives wherever its copies are.
    pub(crate) fn hold_chunk(
        &self,
        id: &ChunkId,
        pack: PackId,
        is_there: impl FnOnce() -> bool,
    ) -> bool {
        let mut pinned = self.holder.pinned.lock().expect("no panic under this lock");
        let number = self.holder.number;
        let mut state = self.holder.table.state();
        let mine = state.chunks.get(&number);
        if mine.is_some_and(|mine| mine.contains(id)) {
            return true;
        }
        if state.condemned.contains(&pack) || !is_there() {
            return false;
        }
        if state.chunks_len < CHUNKS_MAX {
            state.chunks.entry(number).or_default().insert(*id);
            state.chunks_len += 1;
        } else if pinned.insert(pack) {
            *state.pins.entry(pack).or_insert(0) += 1;
        }
        true
    }

    /// Pins a pack. `false` if it is condemned: its chunks must then not be relied on.
    pub(crate) fn pin(&self, pack: PackId) -> bool {
        let mut pinned = self.holder.pinned.lock().expect("no panic under this lock");
        if pinned.contains(&pack) {
            return true;
        }
        let mut state = self.holder.table.state();
        if state.condemned.contains(&pack) {
            return false;
        }
        *state.pins.entry(pack).or_insert(0) += 1;
        pinned.insert(pack);
        true
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let lock = "no panic under this lock";
        let pinned = std::mem::take(self.pinned.get_mut().expect(lock));
        let nars = std::mem::take(self.nars.get_mut().expect(lock));
        let mut state = self.table.state();
        if let Some(chunks) = state.chunks.remove(&self.number) {
            state.chunks_len -= chunks.len();
        }
        pinned
            .iter()
            .for_each(|pack| release(&mut state.pins, pack));
        nars.iter().for_each(|nar| release(&mut state.nars, nar));
    }
}

/// Counts one holder less.
fn release<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl LeaseTable {
    /// Condemns the packs that no lease pins, and returns them.
    pub(crate) fn condemn(&self, packs: impl IntoIterator<Item = PackId>) -> BTreeSet<PackId> {
        let mut state = self.state();
        let free: BTreeSet<PackId> = packs
            .into_iter()
            .filter(|pack| !state.pins.contains_key(pack))
            .collect();
        state.condemned.extend(&free);
        free
    }

    /// Whether a lease pins the pack.
    pub(crate) fn pins(&self, pack: &PackId) -> bool {
        self.state().pins.contains_key(pack)
    }

    /// Does `each` with every chunk that a lease holds. The table waits: must not block.
    pub(crate) fn for_each_chunk(&self, each: impl FnMut(&ChunkId)) {
        self.state().chunks.values().flatten().for_each(each);
    }

    /// Ends the condemnation of packs that are gone or stay after all.
    pub(crate) fn acquit<'a>(&self, packs: impl IntoIterator<Item = &'a PackId>) {
        let mut state = self.state();
        for pack in packs {
            state.condemned.remove(pack);
        }
    }

    /// Whether a lease holds the NAR.
    pub(crate) fn holds(&self, nar: &NarHash) -> bool {
        self.state().nars.contains_key(nar)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }
}

/// Chunks held one by one, by all leases together: about 50 MB of memory for 64 GB of NARs under way.
const CHUNKS_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(index: u8) -> PackId {
        PackId::from_bytes([index; 16])
    }

    #[test]
    fn a_pinned_pack_is_not_condemned_until_the_last_clone_is_dropped() {
        let table = Arc::default();
        let lease = Lease::new(&table);
        let clone = lease.clone();
        assert!(lease.pin(pack(1)));
        drop(lease);
        assert!(table.condemn([pack(1), pack(2)]).contains(&pack(2)));
        assert!(table.condemn([pack(1)]).is_empty());
        drop(clone);
        assert_eq!(table.condemn([pack(1)]), [pack(1)].into());
        assert!(table.state().pins.is_empty());
    }

    #[test]
    fn a_condemned_pack_is_not_pinned_until_it_is_acquitted() {
        let table = Arc::default();
        let lease = Lease::new(&table);
        table.condemn([pack(1)]);
        assert!(!lease.pin(pack(1)));
        table.acquit(&[pack(1)]);
        assert!(lease.pin(pack(1)));
    }

    fn held(table: &LeaseTable) -> Vec<ChunkId> {
        let mut held = Vec::new();
        table.for_each_chunk(|id| held.push(*id));
        held
    }

    #[test]
    fn a_chunk_is_held_unless_its_pack_is_condemned_or_gone() {
        let table = Arc::default();
        let lease = Lease::new(&table);
        let (first, second) = (ChunkId::of(b"first"), ChunkId::of(b"second"));
        assert!(lease.hold_chunk(&first, pack(1), || true));
        // Its pack may be condemned all the same, and whoever looks then sees the chunk.
        assert_eq!(table.condemn([pack(1)]), [pack(1)].into());
        assert_eq!(held(&table), [first]);
        assert!(lease.hold_chunk(&first, pack(1), || true), "it is copied");
        assert!(!lease.hold_chunk(&second, pack(1), || true));
        assert!(!Lease::new(&table).hold_chunk(&first, pack(1), || true));
        assert!(!lease.hold_chunk(&second, pack(2), || false));
        assert_eq!(held(&table), [first]);
        drop(lease);
        assert!(held(&table).is_empty());
        assert_eq!(table.state().chunks_len, 0);
    }

    #[test]
    fn two_leases_pin_independently() {
        let table = Arc::default();
        let (first, second) = (Lease::new(&table), Lease::new(&table));
        assert!(first.pin(pack(1)) && second.pin(pack(1)) && first.pin(pack(1)));
        drop(first);
        assert!(table.condemn([pack(1)]).is_empty());
        drop(second);
        assert_eq!(table.condemn([pack(1)]), [pack(1)].into());
    }
}
