//! What the table keeps in memory besides its runs: recent entries, the standing of each pack, and
//! the copies that must not be served.
//!
//! Plain data without I/O; [`Locator`](super::Locator) holds it under one lock.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::mem::take;
use std::sync::Arc;

use crate::hash::ChunkId;
use crate::locator::Location;
use crate::locator::page::Entry;
use crate::locator::run::{Run, Span};
use crate::pack_id::PackId;

/// The state of a table.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Entries of packs that are being filled.
    filling: Entries,
    /// Entries of complete packs, to be written to a run.
    complete: Entries,
    /// Entries that are being written to a run.
    frozen: Option<Arc<Batch>>,
    /// Oldest first. Replaced as a whole, so that a reader can keep what it saw.
    runs: Arc<Vec<Arc<Run>>>,
    /// Every pack heard of since opening, 40 bytes each.
    packs: HashMap<PackId, Standing>,
    forgotten: HashSet<(ChunkId, PackId, u32)>,
    next_age: u32,
    /// Sequence number of the next flush.
    next_flush: u64,
    /// Counts changes that took entries or runs away.
    removals: u64,
}

/// Entries in memory: by id, then pack, oldest first.
type Entries = BTreeMap<Key, Location>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    id: ChunkId,
    /// Packs are numbered as they begin to fill.
    age: u32,
    offset: u32,
}

/// What is known of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Not all of its entries are here.
    Absent,
    /// Its entries are being inserted.
    Filling { age: u32 },
    /// All its entries are in memory: this many.
    Complete { entries: u32 },
    /// All its entries are in an undamaged run.
    Covered,
    /// It is deleted.
    Dead,
}

/// Complete packs on their way into a run.
#[derive(Debug)]
pub(super) struct Batch {
    entries: Entries,
    packs: BTreeSet<PackId>,
    pub(super) span: Span,
}

/// What to do about a chunk that is not in memory.
pub(super) struct Snapshot {
    pub(super) runs: Arc<Vec<Arc<Run>>>,
    /// As of the snapshot; see [`State::removals`].
    pub(super) removals: u64,
}

impl State {
    /// The state after opening these runs, oldest first.
    pub(super) fn new(runs: Vec<Arc<Run>>) -> State {
        let packs = runs.iter().flat_map(|run| &run.tail.packs);
        let packs = packs.map(|pack| (pack.id, Standing::Covered)).collect();
        let next_flush = runs
            .iter()
            .map(|run| run.tail.span.last + 1)
            .max()
            .unwrap_or(0);
        State {
            packs,
            next_flush,
            runs: Arc::new(runs),
            ..State::default()
        }
    }

    // Packs.

    pub(super) fn insert(&mut self, id: ChunkId, at: Location) {
        let age = match self.packs.entry(at.pack).or_insert(Standing::Absent) {
            Standing::Complete { .. } | Standing::Covered | Standing::Dead => return,
            Standing::Filling { age } => *age,
            absent @ Standing::Absent => {
                let age = self.next_age;
                self.next_age = age.saturating_add(1);
                *absent = Standing::Filling { age };
                age
            }
        };
        self.filling.insert(
            Key {
                id,
                age,
                offset: at.offset,
            },
            at,
        );
    }

    pub(super) fn complete_pack(&mut self, pack: PackId) {
        let standing = self.packs.entry(pack).or_insert(Standing::Absent);
        if matches!(standing, Standing::Absent | Standing::Filling { .. }) {
            let mut entries = 0;
            self.filling.retain(|key, at| {
                let keep = at.pack != pack;
                if !keep {
                    self.complete.insert(*key, *at);
                    entries += 1;
                }
                keep
            });
            *standing = Standing::Complete { entries };
            self.release_damaged_runs();
        }
    }

    pub(super) fn drop_pack(&mut self, pack: PackId) {
        self.packs.insert(pack, Standing::Dead);
        self.remove_dead();
    }

    pub(super) fn retain_packs(&mut self, live: &BTreeSet<PackId>) {
        for (pack, standing) in &mut self.packs {
            if !live.contains(pack) {
                *standing = Standing::Dead;
            }
        }
        self.remove_dead();
    }

    fn remove_dead(&mut self) {
        let State {
            packs,
            filling,
            forgotten,
            ..
        } = self;
        let live = |pack: &PackId| packs.get(pack) != Some(&Standing::Dead);
        filling.retain(|_, at| live(&at.pack));
        forgotten.retain(|(_, pack, _)| live(pack));
        self.removals += 1;
        self.release_damaged_runs();
    }

    pub(super) fn forget(&mut self, id: ChunkId, at: &Location) {
        self.forgotten.insert((id, at.pack, at.offset));
        self.removals += 1;
    }

    pub(super) fn is_live(&self, pack: PackId) -> bool {
        self.packs
            .get(&pack)
            .is_some_and(|standing| *standing != Standing::Dead)
    }

    /// The packs all of whose entries are here.
    pub(super) fn whole_packs(&self) -> BTreeSet<PackId> {
        let whole =
            |standing: &Standing| matches!(standing, Standing::Complete { .. } | Standing::Covered);
        let packs = self.packs.iter().filter(|(_, standing)| whole(standing));
        packs.map(|(pack, _)| *pack).collect()
    }

    // Lookup.

    /// Whether this copy may be given out.
    pub(super) fn serves(&self, id: &ChunkId, at: &Location) -> bool {
        let forgotten = || self.forgotten.contains(&(*id, at.pack, at.offset));
        self.is_live(at.pack) && (self.forgotten.is_empty() || !forgotten())
    }

    /// A copy in memory, or where else to look.
    pub(super) fn find(&self, id: &ChunkId) -> Result<Location, Snapshot> {
        let frozen = self.frozen.as_ref().map(|batch| &batch.entries);
        let maps = [Some(&self.filling), Some(&self.complete), frozen];
        let mut copies = maps
            .into_iter()
            .flatten()
            .flat_map(|entries| copies(entries, *id));
        copies
            .find(|at| self.serves(id, at))
            .ok_or_else(|| Snapshot {
                runs: Arc::clone(&self.runs),
                removals: self.removals,
            })
    }

    pub(super) fn removals(&self) -> u64 {
        self.removals
    }

    /// Entries of live packs, copies of one chunk counted each.
    pub(super) fn len(&self) -> u64 {
        // Dead packs leave their entries in memory until the next flush: the packs are counted.
        let complete = self.packs.values().map(|standing| match standing {
            Standing::Complete { entries } => u64::from(*entries),
            _ => 0,
        });
        let in_runs = self.runs.iter().map(|run| self.live_entries(run));
        self.filling.len() as u64 + complete.sum::<u64>() + in_runs.sum::<u64>()
    }

    // Runs.

    pub(super) fn runs(&self) -> &Arc<Vec<Arc<Run>>> {
        &self.runs
    }

    pub(super) fn live_entries(&self, run: &Run) -> u64 {
        let live = run.tail.packs.iter().filter(|pack| self.is_live(pack.id));
        live.map(|pack| u64::from(pack.entries)).sum()
    }

    /// Entries that the next flush would write.
    pub(super) fn complete_len(&self) -> usize {
        self.complete.len()
    }

    /// Takes the complete packs out for a flush; `None` if there are none.
    pub(super) fn freeze(&mut self) -> Option<Arc<Batch>> {
        let complete = self
            .packs
            .iter()
            .filter(|(_, standing)| matches!(standing, Standing::Complete { .. }));
        let packs: BTreeSet<PackId> = complete.map(|(pack, _)| *pack).collect();
        let entries = take(&mut self.complete);
        if packs.is_empty() {
            return None;
        }
        let span = Span {
            first: self.next_flush,
            last: self.next_flush,
        };
        let batch = Arc::new(Batch {
            entries,
            packs,
            span,
        });
        self.frozen = Some(Arc::clone(&batch));
        Some(batch)
    }

    /// Ends a flush: its entries are in `run` now.
    pub(super) fn thaw_into(&mut self, batch: &Batch, run: Run) {
        self.frozen = None;
        self.next_flush = batch.span.last + 1;
        Arc::make_mut(&mut self.runs).push(Arc::new(run));
        for pack in &batch.packs {
            if let Some(standing @ Standing::Complete { .. }) = self.packs.get_mut(pack) {
                *standing = Standing::Covered;
            }
        }
    }

    /// Ends a flush that failed: its entries stay in memory.
    pub(super) fn thaw(&mut self, batch: &Batch) {
        self.frozen = None;
        self.complete
            .extend(batch.entries.iter().map(|(key, at)| (*key, *at)));
    }

    /// Puts `new` in the place of runs that lie side by side.
    pub(super) fn replace_runs(&mut self, old: &[Arc<Run>], new: Option<Run>) {
        self.removals += 1;
        let is_old = |run: &Arc<Run>| old.iter().any(|old| Arc::ptr_eq(old, run));
        let runs = Arc::make_mut(&mut self.runs);
        let at = runs.iter().position(is_old).unwrap_or(runs.len());
        runs.retain(|run| !is_old(run));
        if let Some(run) = new {
            runs.insert(at, Arc::new(run));
        }
    }

    /// Notes that a run lost entries: the packs that are only there are whole no more. `false` if
    /// there are none, so that nothing is lost.
    ///
    /// Its other entries are still found, until all its packs were inserted again.
    pub(super) fn set_damaged(&mut self, run: &Run) -> bool {
        if !run.is_damaged() {
            run.set_damaged();
            let sound = self.runs.iter().filter(|run| !run.is_damaged());
            let sound: HashSet<PackId> = sound
                .flat_map(|run| &run.tail.packs)
                .map(|pack| pack.id)
                .collect();
            for pack in &run.tail.packs {
                if let Some(standing @ Standing::Covered) = self.packs.get_mut(&pack.id)
                    && !sound.contains(&pack.id)
                {
                    *standing = Standing::Absent;
                }
            }
            self.release_damaged_runs();
        }
        self.needs(run)
    }

    /// Whether there are packs whose entries may be in this damaged run only.
    fn needs(&self, run: &Run) -> bool {
        run.tail.packs.iter().any(|pack| {
            let standing = self.packs.get(&pack.id);
            matches!(standing, Some(Standing::Absent | Standing::Filling { .. }))
        })
    }

    /// Takes damaged runs out of use that are needed no more.
    fn release_damaged_runs(&mut self) {
        let spent = |run: &&Arc<Run>| run.is_damaged() && !self.needs(run);
        let spent: Vec<Arc<Run>> = self.runs.iter().filter(spent).cloned().collect();
        if !spent.is_empty() {
            self.replace_runs(&spent, None);
        }
    }

    /// The runs without a live pack.
    pub(super) fn dead_runs(&self) -> Vec<Arc<Run>> {
        let dead = |run: &&Arc<Run>| !run.tail.packs.iter().any(|pack| self.is_live(pack.id));
        self.runs.iter().filter(dead).cloned().collect()
    }
}

impl Batch {
    /// The packs, oldest first, and the most entries they can have.
    pub(super) fn packs(&self) -> (Vec<PackId>, u64) {
        let ages: BTreeMap<u32, PackId> = self
            .entries
            .iter()
            .map(|(key, at)| (key.age, at.pack))
            .collect();
        let mut packs: Vec<PackId> = ages
            .into_values()
            .filter(|pack| self.packs.contains(pack))
            .collect();
        let filled: HashSet<PackId> = packs.iter().copied().collect();
        packs.extend(self.packs.iter().filter(|pack| !filled.contains(pack)));
        (packs, self.entries.len() as u64)
    }

    /// The entries by id, their packs numbered by place in `packs`.
    pub(super) fn entries(&self, packs: &[PackId]) -> impl Iterator<Item = Entry> {
        let numbers: HashMap<PackId, u32> = packs.iter().copied().zip(0..).collect();
        self.entries.iter().filter_map(move |(key, at)| {
            let Location {
                pack,
                offset,
                raw_len,
                frame_len,
            } = *at;
            let pack = *numbers.get(&pack)?;
            Some(Entry {
                id: key.id,
                pack,
                offset,
                raw_len,
                frame_len,
            })
        })
    }
}

/// The copies of a chunk, youngest pack first.
fn copies(entries: &Entries, id: ChunkId) -> impl Iterator<Item = Location> {
    let first = Key {
        id,
        age: 0,
        offset: 0,
    };
    let last = Key {
        id,
        age: u32::MAX,
        offset: u32::MAX,
    };
    entries.range(first..=last).rev().map(|(_, at)| *at)
}
