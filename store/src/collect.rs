//! Local garbage collection: what nothing refers to goes, and the disk stays below its cap.
//!
//! 1. **Evict** (only near the size cap): least recently used paths leave their caches, referrers
//!    before their references, never a pinned closure ([`crate::liveness`]), nor for bytes that are
//!    garbage already.
//! 2. **Drop** NARs that no path refers to: at once if they were published, else after the grace
//!    that an upload has to be published.
//! 3. **Condemn** packs with enough dead bytes, unless a lease pins them; *then* read again what
//!    lives and what leases hold, so that nothing found or published meanwhile is missed
//!    ([`crate::lease`]).
//! 4. **Rewrite**: copy what lives into a new pack, make it durable, delete the old pack.
//!
//! A crash at any point leaves copies, never a gap: the next collection removes them. Any read
//! error ends the run before something is deleted.

mod live;
mod packs;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::Ordering;

use crate::cache_name::CacheName;
use crate::error::StoreError;
use crate::hash::NarHash;
use crate::index::NarRow;
use crate::liveness::{Candidate, Candidates, LastUse, eviction_order};
use crate::record::Change;
use crate::store::{Inner, Store, now};
use crate::store_path::StorePathHash;

pub(crate) use live::LiveSet;

/// What a collection is to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct CollectOptions {
    /// Change nothing, only say what would be done.
    pub dry_run: bool,
    /// Rewrite every pack with anything dead in it, not only those worth it.
    pub full: bool,
}

/// What a collection did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CollectReport {
    /// Paths evicted to get below the size cap.
    pub evicted_paths: u64,
    /// NARs dropped because no path refers to them.
    pub dropped_nars: u64,
    /// Packs deleted without copying anything.
    pub deleted_packs: u64,
    /// Packs rewritten.
    pub rewritten_packs: u64,
    /// Packs left alone because a download, or a very large upload, uses them.
    pub leased_packs: u64,
    /// Bytes copied from rewritten packs.
    pub copied_bytes: u64,
    /// Bytes of disk freed, copies subtracted.
    pub freed_bytes: u64,
    /// Bytes of packs before.
    pub bytes_before: u64,
    /// Bytes of packs after.
    pub bytes_after: u64,
}

/// How far a collection has to bring the store down.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pressure {
    /// Nothing is taken above this.
    pub(crate) cap: u64,
    /// Above this, collection begins: below it there is room to copy what lives in a pack.
    pub(crate) start: u64,
    /// Up to here garbage that cannot be freed yet is waited for: above it, there might soon be no
    /// room to copy what lives in a pack, and then nothing could be freed but whole packs.
    brink: u64,
    /// Below this, it ends.
    target: u64,
}

impl Pressure {
    /// The pressure of a store that must stay below `cap` bytes, with packs of this length: two fit
    /// between start and cap, since a pack may be longer by one record.
    pub(crate) fn below(cap: u64, pack_len: u64) -> Pressure {
        let start = cap - (2 * pack_len).min(cap / 8);
        Pressure {
            cap,
            start,
            brink: start + (cap - start) / 4,
            target: start - start / 10,
        }
    }

    /// Bytes to be evicted from a store of `total` bytes that `len` more are to come to.
    ///
    /// Of the total, `held_back` bytes are garbage in packs that somebody uses just now. They go when
    /// the use ends, so nothing is evicted in their place below the brink.
    fn wanted(&self, total: u64, len: u64, held_back: u64) -> u64 {
        let excess = total.saturating_sub(self.target);
        let beyond = match total + len > self.brink {
            true => total + len - self.start,
            false => 0,
        };
        excess.saturating_sub(held_back).max(beyond)
    }
}

impl Store {
    /// Collects garbage. Uploads, publishes and downloads go on meanwhile.
    ///
    /// # Errors
    /// [`StoreError`]; what was done until then is complete in itself.
    pub fn collect(&self, options: &CollectOptions) -> Result<CollectReport, StoreError> {
        let _turn = self
            .inner
            .housekeeping
            .lock()
            .expect("no panic under this lock");
        if options.dry_run {
            return self.inner.foresee(options);
        }
        self.inner.with_ballast(|| self.inner.collect(options))
    }
}

impl Inner {
    /// Brings the store below the pressure's target, as far as pins and leases allow, so that `len`
    /// bytes fit.
    pub(crate) fn relieve(&self, pressure: Pressure, len: u64) -> Result<(), StoreError> {
        let _turn = self.housekeeping.lock().expect("no panic under this lock");
        self.size.measure(self);
        if self.size.total() <= pressure.target {
            return Ok(());
        }
        let mut report = CollectReport::default();
        let outcome = self.make_way(pressure, len, &mut report);
        self.count_freed(&report);
        if report.evicted_paths > 0 {
            tracing::info!(
                paths = report.evicted_paths,
                freed_bytes = report.freed_bytes,
                "evicted to stay below the size cap"
            );
        }
        outcome
    }

    fn count_freed(&self, report: &CollectReport) {
        let freed = &self.size.freed_bytes;
        freed.fetch_add(report.freed_bytes, Ordering::Relaxed);
    }

    /// What [`Inner::collect`] would do. Estimates evictions as the first round of them does.
    fn foresee(&self, options: &CollectOptions) -> Result<CollectReport, StoreError> {
        let bytes_before = self.packs.size_bytes();
        let new_report = |dropped: &BTreeSet<NarHash>| CollectReport {
            bytes_before,
            dropped_nars: dropped.len() as u64,
            ..CollectReport::default()
        };
        let dropped = self.unreferenced_nars(&HashSet::new())?;
        let mut report = new_report(&dropped);
        let held_back = self.foresee_packs(options, &dropped, &mut report)?;
        if let Some(pressure) = self.pressure() {
            let left = self.size.total().saturating_sub(report.freed_bytes);
            let wanted = pressure.wanted(left, 0, held_back);
            if left > pressure.start && wanted > 0 {
                let doomed = self.eviction_plan(wanted)?;
                let dropped = self.unreferenced_nars(&doomed)?;
                report = new_report(&dropped);
                report.evicted_paths = doomed.len() as u64;
                let full = CollectOptions {
                    full: true,
                    ..*options
                };
                self.foresee_packs(&full, &dropped, &mut report)?;
            }
        }
        report.bytes_after = bytes_before.saturating_sub(report.freed_bytes);
        Ok(report)
    }

    /// The pressure of the size cap, if there is one.
    ///
    /// A little below the cap: the index grows between two measurements, packs get footers.
    pub(crate) fn pressure(&self) -> Option<Pressure> {
        let pack_len = self.options.pack_len_target;
        let cap = self.options.size_cap?;
        let cap = cap - UNMEASURED_MAX.min(cap / 64);
        Some(Pressure::below(cap, pack_len))
    }

    fn collect(&self, options: &CollectOptions) -> Result<CollectReport, StoreError> {
        self.flush_touches()?;
        self.size.measure(self);
        let bytes_before = self.packs.size_bytes();
        let mut report = CollectReport {
            bytes_before,
            ..CollectReport::default()
        };
        let dropped = self.drop_nars()?;
        report.dropped_nars = dropped.len() as u64;
        self.collect_packs(options, &dropped, &mut report)?;
        if let Some(pressure) = self.pressure()
            && self.size.total() > pressure.start
        {
            self.make_way(pressure, 0, &mut report)?;
        }
        self.size.measure(self);
        self.count_freed(&report);
        report.bytes_after = self.packs.size_bytes();
        Ok(report)
    }

    /// Rewrites the packs worth it. A full collection looks again for as long as that frees
    /// something: a removal record is dead once no other pack holds a row as old as what it removes,
    /// and packs with both keep each other's records until those lie in one pack.
    fn collect_packs(
        &self,
        options: &CollectOptions,
        dropped: &BTreeSet<NarHash>,
        report: &mut CollectReport,
    ) -> Result<(), StoreError> {
        let rounds = if options.full { FULL_ROUNDS_MAX } else { 1 };
        for _ in 0..rounds {
            self.seal_for_collection()?;
            let freed_before = report.freed_bytes;
            // Those that were in use then are met again.
            report.leased_packs = 0;
            self.rewrite_packs(options, dropped, None, report)?;
            if report.freed_bytes == freed_before {
                break;
            }
        }
        Ok(())
    }

    /// Seals what is idle. What cannot be sealed for want of space is not collected this time.
    fn seal_for_collection(&self) -> Result<(), StoreError> {
        match self.seal_idle() {
            Err(StoreError::NoSpace { what, .. }) => {
                tracing::warn!(what, "no space to seal a pack");
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Frees what is garbage, then evicts for as long as the target is not reached, that helps, and
    /// there is something to evict.
    ///
    /// Garbage in packs that somebody uses (one being written, one being read) counts as freed: until
    /// the use ends the store may stay above the target by so much. It counts so only up to a quarter
    /// of the way from where collection begins to the cap, and on disk never passes the cap.
    fn make_way(
        &self,
        pressure: Pressure,
        len: u64,
        report: &mut CollectReport,
    ) -> Result<(), StoreError> {
        let mut cleared = self.clear_away(pressure, report)?;
        for _ in 0..EVICTION_ROUNDS_MAX {
            let wanted = pressure.wanted(self.size.total(), len, cleared.held_back);
            if wanted == 0 {
                return Ok(());
            }
            report.evicted_paths += self.evict(wanted)?;
            cleared = self.clear_away(pressure, report)?;
            // Evicting more would free nothing either.
            if cleared.freed == 0 {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Drops and rewrites until the target is reached or no garbage is left that can be freed now.
    fn clear_away(
        &self,
        pressure: Pressure,
        report: &mut CollectReport,
    ) -> Result<Cleared, StoreError> {
        let dropped = self.drop_nars()?;
        report.dropped_nars += dropped.len() as u64;
        self.seal_for_collection()?;
        let before = self.size.total();
        let options = CollectOptions {
            dry_run: false,
            full: true,
        };
        let held_back = self.rewrite_packs(&options, &dropped, Some(pressure), report)?;
        self.size.measure(self);
        Ok(Cleared {
            held_back,
            freed: before.saturating_sub(self.size.total()),
        })
    }

    /// Removes the least recently used paths whose files add up to `excess` bytes.
    fn evict(&self, excess: u64) -> Result<u64, StoreError> {
        // What is published or pinned meanwhile waits, and is not evicted by an older plan.
        let _alone = self.publishing.write().expect("no panic under this lock");
        let mut gone: BTreeMap<CacheName, Vec<StorePathHash>> = BTreeMap::new();
        for (cache, hash) in self.eviction_plan(excess)? {
            gone.entry(cache).or_default().push(hash);
        }
        if gone.is_empty() {
            return Ok(0);
        }
        let now = now();
        for (cache, hashes) in &gone {
            self.evicted.note(cache, hashes.iter().copied(), now);
        }
        self.evicted.save(&self.dir);
        let mut count = 0;
        for (cache, hashes) in gone {
            count += hashes.len() as u64;
            let evicted = hashes.len() as u64;
            let remove = |hash| Change::RemovePath(cache.clone(), hash);
            self.commit(hashes.into_iter().map(remove).collect())?;
            let counter = &self.size.evicted_paths;
            counter.fetch_add(evicted, Ordering::Release);
        }
        Ok(count)
    }

    /// The least recently used paths whose files add up to `excess` bytes. Those whose NAR a lease
    /// holds stay: a push under way has just published them, and nothing would be freed.
    fn eviction_plan(&self, excess: u64) -> Result<Doomed, StoreError> {
        let mut sum = 0;
        let mut doomed = HashSet::new();
        let mut counted = HashSet::new();
        for (cache, hash, nar) in self.eviction_order(|nar| self.leases.holds(nar))? {
            if sum >= excess {
                break;
            }
            if counted.insert(nar) {
                sum += self.index.nar(&nar)?.map_or(0, |row| row.file_size);
            }
            doomed.insert((cache, hash));
        }
        Ok(doomed)
    }

    /// All evictable paths of all caches, least recently used first. A path whose NAR is `held` stays
    /// like a pinned one, with all it refers to.
    fn eviction_order(
        &self,
        held: impl Fn(&NarHash) -> bool,
    ) -> Result<Vec<(CacheName, StorePathHash, NarHash)>, StoreError> {
        let mut caches: BTreeMap<CacheName, Candidates> = BTreeMap::new();
        let mut nars = BTreeMap::new();
        let mut held_paths: BTreeMap<CacheName, Vec<StorePathHash>> = BTreeMap::new();
        for row in self.index.numbered_paths() {
            let (row, seq) = row?;
            let candidate = Candidate {
                references: row
                    .info
                    .references
                    .iter()
                    .map(|path| *path.hash())
                    .collect(),
                last_use: LastUse {
                    at: self.accessed_at(&row)?,
                    seq,
                },
            };
            let hash = *row.info.path.hash();
            nars.insert((row.cache.clone(), hash), row.info.nar_hash);
            if held(&row.info.nar_hash) {
                held_paths.entry(row.cache.clone()).or_default().push(hash);
            }
            caches.entry(row.cache).or_default().insert(hash, candidate);
        }
        let mut all = Vec::new();
        for (cache, candidates) in &caches {
            let pinned = self
                .index
                .pins(cache)?
                .into_iter()
                .map(|pin| *pin.path.hash());
            let held = held_paths.get(cache).into_iter().flatten().copied();
            for (hash, last_use) in eviction_order(candidates, pinned.chain(held)) {
                all.push((last_use, cache.clone(), hash));
            }
        }
        // Stable: within a cache the order stays, which keeps closures whole.
        all.sort_by_key(|(last_use, _, _)| *last_use);
        let nar = |(_, cache, hash): (LastUse, CacheName, StorePathHash)| {
            let nar = nars.get(&(cache.clone(), hash)).copied();
            nar.map(|nar| (cache, hash, nar))
        };
        Ok(all.into_iter().filter_map(nar).collect())
    }

    /// Bytes of the NARs that pins keep from eviction.
    pub(crate) fn pinned_bytes(&self) -> Result<u64, StoreError> {
        let evictable = self.eviction_order(|_| false)?.into_iter();
        let evictable: Doomed = evictable.map(|(cache, hash, _)| (cache, hash)).collect();
        let mut pinned = BTreeSet::new();
        for row in self.index.all_paths() {
            let row = row?;
            if !evictable.contains(&(row.cache, *row.info.path.hash())) {
                pinned.insert(row.info.nar_hash);
            }
        }
        pinned.iter().try_fold(0, |sum, nar| {
            Ok(sum + self.index.nar(nar)?.map_or(0, |row| row.file_size))
        })
    }

    /// NARs that no path refers to but the `doomed` ones, no lease holds, and whose grace is over.
    fn unreferenced_nars(&self, doomed: &Doomed) -> Result<BTreeSet<NarHash>, StoreError> {
        let mut referenced = HashSet::new();
        for row in self.index.all_paths() {
            let row = row?;
            if !doomed.contains(&(row.cache, *row.info.path.hash())) {
                referenced.insert(row.info.nar_hash);
            }
        }
        let now = now();
        let grace = self.options.upload_grace.as_secs();
        let over = |row: &NarRow| row.published || row.imported_at.saturating_add(grace) <= now;
        let mut unreferenced = BTreeSet::new();
        for nar in self.index.nars() {
            let (hash, row) = nar?;
            if over(&row) && !referenced.contains(&hash) && !self.leases.holds(&hash) {
                unreferenced.insert(hash);
            }
        }
        Ok(unreferenced)
    }

    /// Drops them. Publishing waits while the final look is taken.
    fn drop_nars(&self) -> Result<BTreeSet<NarHash>, StoreError> {
        if self.unreferenced_nars(&HashSet::new())?.is_empty() {
            return Ok(BTreeSet::new());
        }
        let _alone = self.publishing.write().expect("no panic under this lock");
        let unreferenced = self.unreferenced_nars(&HashSet::new())?;
        for (number, hash) in unreferenced.iter().enumerate() {
            if number % DROPPED_AT_ONCE == 0 {
                self.index.make_room_to_remove(DROPPED_LEN)?;
            }
            self.index.remove_nar(hash)?;
            self.nars.forget(hash);
            self.damaged
                .write()
                .expect("no panic under this lock")
                .remove(hash);
        }
        Ok(unreferenced)
    }

    /// Every chunk that a lease holds or a NAR or a small object needs, except for the NARs in
    /// `without`.
    pub(crate) fn live_chunks(&self, without: &BTreeSet<NarHash>) -> Result<LiveSet, StoreError> {
        let mut live = LiveSet::default();
        // Leases first: one that ends meanwhile has left a NAR or an object, which is found below.
        self.leases.for_each_chunk(|id| live.insert(id));
        for nar in self.index.nars() {
            let (hash, row) = nar?;
            if without.contains(&hash) {
                continue;
            }
            match self.manifest_at(&hash, &row)? {
                Some(manifest) => manifest
                    .all_chunks()
                    .for_each(|entry| live.insert(&entry.id)),
                // Without its manifest a NAR keeps nothing alive; a re-push brings both back.
                None => self.set_damaged(&hash, true)?,
            }
        }
        for blob in self.index.all_blobs() {
            blob?.chunks.iter().for_each(|id| live.insert(id));
        }
        Ok(live.seal())
    }
}

/// What became of garbage.
struct Cleared {
    /// Bytes of it that stay while somebody uses their packs.
    held_back: u64,
    /// Bytes that the store is smaller by.
    freed: u64,
}

/// Paths to be evicted.
type Doomed = HashSet<(CacheName, StorePathHash)>;

/// NARs dropped between two looks at the space of the index, and what they may take of it.
const DROPPED_AT_ONCE: usize = 256;
const DROPPED_LEN: u64 = 16 << 10;
/// Bytes that the store may grow by unnoticed, for a moment; less under a small cap.
const UNMEASURED_MAX: u64 = 1 << 20;
/// A first look frees nearly everything, a second what the first brought together.
const FULL_ROUNDS_MAX: usize = 4;
/// Evictions estimate what a path frees; a few rounds make up for what it shared.
const EVICTION_ROUNDS_MAX: usize = 16;
