//! Leases: what keeps chunks alive before anything refers to them.
//!
//! A chunk that an upload found in the store, or has just written, belongs to no path yet. While
//! the upload's [`Lease`] lives, the packs of all chunks seen or written under it are pinned, and
//! collection leaves pinned packs alone.
//!
//! Collection and uploads meet in one table under one lock. An upload pins a pack *and then* uses
//! its chunk; collection condemns a pack, is refused if it is pinned, *and then* reads what is
//! referenced. So one of the two always sees the other: a pack pinned first is not condemned, and
//! a chunk in a condemned pack counts as absent, so the upload sends it again.
//!
//! A NAR imported under a lease is held by it as well, until a path is published with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::hash::NarHash;
use crate::pack_id::PackId;

/// Holds the chunks of an upload in flight; releases them when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Lease {
    holder: Arc<Holder>,
}

#[derive(Debug)]
struct Holder {
    table: Arc<LeaseTable>,
    pinned: Mutex<BTreeSet<PackId>>,
    nars: Mutex<BTreeSet<NarHash>>,
}

/// All pins and condemnations of a store.
#[derive(Debug, Default)]
pub(crate) struct LeaseTable {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// How many leases pin a pack; never zero.
    pins: BTreeMap<PackId, usize>,
    /// How many leases hold a NAR; never zero.
    nars: BTreeMap<NarHash, usize>,
    condemned: BTreeSet<PackId>,
}

impl Lease {
    pub(crate) fn new(table: &Arc<LeaseTable>) -> Lease {
        let (table, pinned, nars) = (Arc::clone(table), Mutex::default(), Mutex::default());
        Lease {
            holder: Arc::new(Holder {
                table,
                pinned,
                nars,
            }),
        }
    }

    /// Holds a NAR: paths with it, and what they refer to, are not evicted.
    pub fn hold(&self, nar: NarHash) {
        let mut nars = self.holder.nars.lock().expect("no panic under this lock");
        if nars.insert(nar) {
            *self.holder.table.state().nars.entry(nar).or_insert(0) += 1;
        }
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
