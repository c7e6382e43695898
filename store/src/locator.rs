//! Where each chunk lies: the table `ChunkId → (pack, offset, lengths)`.
//!
//! There are 10⁷ chunks and more, too many for one key each in a general database, and the table
//! needs little of what a database offers: ids are uniform, entries are never changed, they die a
//! whole pack at a time, and all of them can be read again from the packs' footers. So it is a small
//! log-structured merge tree:
//!
//! - Recent entries are in memory ([`state`]), those of a pack still being filled in any case.
//! - [`Locator::maintain`] writes complete packs to a *run* ([`run`]): sorted [pages](page), with a
//!   [filter] and a fence of first ids in memory. A lookup reads one page of the run that has the
//!   chunk, and a page of one in a hundred of the others.
//! - Runs are merged so that they stay few ([`mod@merge`]).
//! - A deleted pack's entries are skipped at once and left out of the next merge; there are no
//!   tombstones. Copies of a chunk in several packs are all kept, so a live one is always found.
//!
//! Four numbers at 10⁷ chunks: 480 MiB on disk, 14 MiB for filters and fences, at most 15 MiB for
//! recent entries, one 4 KiB read a hit.
//!
//! Nothing here is durable by need. A run that is torn, damaged or unknown is deleted, at open or
//! when a lookup or a merge meets the damage; [`Locator::covered`] then lacks its packs and the
//! caller inserts their entries again, at once or after the next open. Never a wrong answer: a page
//! that fails its checksum is an error, not a miss.

mod filter;
mod merge;
mod page;
mod probe;
mod run;
mod run_writer;
mod state;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use thiserror::Error;

use crate::hash::ChunkId;
use crate::locator::merge::{MergeError, Merged, RunLen, merge, plan};
use crate::locator::run::Run;
use crate::locator::run_writer::{RunWriter, TEMPORARY_EXTENSION};
use crate::locator::state::{Batch, State};
use crate::pack_id::PackId;

pub use crate::locator::probe::LocatorProbe;

/// Where a copy of a chunk lies.
///
/// **Units** `offset` and lengths in bytes; `raw_len` is that of the plain chunk, `frame_len` that
/// of its compressed frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Location {
    pub(crate) pack: PackId,
    pub(crate) offset: u32,
    pub(crate) raw_len: u32,
    pub(crate) frame_len: u32,
}

/// How a table is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocatorOptions {
    /// Entries of complete packs from which on [`Locator::maintain`] writes a run; about 110 bytes
    /// of memory each, twice that while it writes.
    pub(crate) memory_entries: usize,
}

impl Default for LocatorOptions {
    fn default() -> LocatorOptions {
        LocatorOptions {
            memory_entries: 1 << 16,
        }
    }
}

/// The locator table failed; packs are not touched by it.
#[derive(Debug, Error)]
pub enum LocatorError {
    /// A run is damaged: the packs that are no longer covered are to be inserted again.
    #[error("locator run {path} is damaged in page {page}")]
    Damaged {
        /// The file of the run.
        path: PathBuf,
        /// The number of the page, each 4096 bytes, from 0.
        page: usize,
    },
    /// A run cannot be read: as if it were damaged.
    #[error("read locator run {path}")]
    Read {
        /// The file of the run.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file could not be written or listed; nothing is lost and it can be tried again.
    #[error("write locator table {path}")]
    Write {
        /// The directory of the table.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The table. All methods may be called from any thread at once.
///
/// One process opens a directory at a time; the caller sees to that.
#[derive(Debug)]
pub(crate) struct Locator {
    dir: PathBuf,
    options: LocatorOptions,
    /// Held for moments, never across I/O.
    state: RwLock<State>,
    /// Held by whoever writes runs.
    maintenance: Mutex<()>,
    /// Callers of [`Locator::flush`] that wait for a merge to give way.
    flushing: AtomicUsize,
}

impl Locator {
    /// Opens the table in `dir`, creating it if it is absent.
    ///
    /// Reads the filters and fences of all runs, not their pages. Unfinished and bad runs are
    /// deleted, as are those that a merge replaced before a crash. All packs of the runs count as
    /// live until [`retain_packs`](Self::retain_packs) says otherwise.
    ///
    /// # Errors
    /// [`LocatorError::Write`] if the directory cannot be listed or changed, [`LocatorError::Read`]
    /// if a run cannot be opened.
    pub(crate) fn open(dir: &Path, options: LocatorOptions) -> Result<Locator, LocatorError> {
        let runs = open_runs(dir)?;
        Ok(Locator {
            dir: dir.to_owned(),
            options,
            state: RwLock::new(State::new(runs)),
            maintenance: Mutex::new(()),
            flushing: AtomicUsize::new(0),
        })
    }

    /// The packs all of whose entries are here. Those of all other live packs are to be inserted.
    ///
    /// After opening these are the packs in runs; what was in memory at the last crash is not among
    /// them.
    pub(crate) fn covered(&self) -> BTreeSet<PackId> {
        self.read().whole_packs()
    }

    /// Declares every pack heard of so far and not in `live` deleted, as
    /// [`drop_pack`](Self::drop_pack) does.
    pub(crate) fn retain_packs(&self, live: &BTreeSet<PackId>) {
        self.write().retain_packs(live);
    }

    /// Inserts a copy of a chunk. Copies in packs that began to fill later are found first; that
    /// order is not kept across a crash.
    ///
    /// Does nothing if the pack is complete or dropped: complete packs do not change and names are
    /// not used again. Never blocks on I/O; it is [`maintain`](Self::maintain) that bounds memory.
    pub(crate) fn insert(&self, id: ChunkId, at: Location) {
        self.write().insert(id, at);
    }

    /// Declares that all entries of a pack, perhaps none, were inserted.
    ///
    /// Until then they stay in memory and are not covered.
    pub(crate) fn pack_complete(&self, pack: PackId) {
        self.write().complete_pack(pack);
    }

    /// A live copy of a chunk; `None` if there is none.
    ///
    /// # Errors
    /// [`LocatorError::Damaged`] or [`LocatorError::Read`] if it may be in a page that cannot be
    /// read. [`covered`](Self::covered) lacks the packs of that run from then on; once they were
    /// inserted again, lookups succeed.
    pub(crate) fn lookup(&self, id: &ChunkId) -> Result<Option<Location>, LocatorError> {
        loop {
            let snapshot = match self.read().find(id) {
                Ok(at) => return Ok(Some(at)),
                Err(snapshot) => snapshot,
            };
            let mut outdated = false;
            let found = self.find_in_runs(&snapshot.runs, id, &mut outdated)?;
            // A copy may have been inserted after the snapshot and before the one in it was dropped.
            if found.is_some() || !outdated || self.read().removals() == snapshot.removals {
                return Ok(found);
            }
        }
    }

    /// Looks up several chunks; the answers are in the order of `ids`.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup), the first of them.
    pub(crate) fn lookup_many(
        &self,
        ids: &[ChunkId],
    ) -> Result<Vec<Option<Location>>, LocatorError> {
        ids.iter().map(|id| self.lookup(id)).collect()
    }

    /// Declares a pack deleted: none of its entries is found again.
    pub(crate) fn drop_pack(&self, pack: PackId) {
        self.write().drop_pack(pack);
    }

    /// Declares a copy bad: it is not found again until the table is opened anew.
    ///
    /// Other copies of the chunk are. The copy need not be known (yet).
    pub(crate) fn forget(&self, id: &ChunkId, at: &Location) {
        self.write().forget(*id, at);
    }

    /// One step of upkeep: writes a run, or deletes dead runs and merges some. `true` if there is
    /// more to do at once.
    ///
    /// A merge of 10⁷ entries takes seconds; lookups and inserts go on meanwhile. To bound memory it
    /// is called at least once for every pack completed, or regularly. Steps exclude each other. A
    /// damaged run is left out; the lookups that need it report it.
    ///
    /// # Errors
    /// [`LocatorError::Write`]; the table is as before.
    pub(crate) fn maintain(&self) -> Result<bool, LocatorError> {
        let _maintenance = self
            .maintenance
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if self.is_memory_full() {
            self.write_memory()?;
            return Ok(true);
        }
        self.delete_dead_runs();
        self.merge_runs()?;
        Ok(self.is_memory_full() || self.planned().is_some())
    }

    /// Writes the entries of all complete packs to a run, so that the next open finds them. A merge
    /// that is running gives way.
    ///
    /// # Errors
    /// [`LocatorError::Write`]; the entries stay in memory.
    pub(crate) fn flush(&self) -> Result<(), LocatorError> {
        self.flushing.fetch_add(1, Ordering::Relaxed);
        let maintenance = self
            .maintenance
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.flushing.fetch_sub(1, Ordering::Relaxed);
        let written = self.write_memory();
        drop(maintenance);
        written
    }

    /// Number of entries of live packs; several copies of a chunk count each.
    pub(crate) fn len_estimate(&self) -> u64 {
        self.read().len()
    }
}

// Lookup.

impl Locator {
    /// Youngest run first. A run that cannot be read is an error only if no other has the chunk.
    /// Sets `outdated` if a copy or a run was met that is out of use.
    fn find_in_runs(
        &self,
        runs: &[Arc<Run>],
        id: &ChunkId,
        outdated: &mut bool,
    ) -> Result<Option<Location>, LocatorError> {
        let mut failure = None;
        for run in runs.iter().rev() {
            let found = run.find(id, |at| {
                let serves = self.read().serves(id, at);
                *outdated |= !serves;
                serves
            });
            match found {
                Ok(Some(at)) => return Ok(Some(at)),
                Ok(None) => {}
                Err(error) if self.set_aside(run) => failure = Some(error),
                Err(_) => *outdated = true,
            }
        }
        failure.map_or(Ok(None), Err)
    }

    /// Notes that a run is damaged and deletes it, so that the next open misses its packs. What can
    /// be read of it serves on. `false` if nothing is lost, because its packs are elsewhere or dead.
    fn set_aside(&self, run: &Run) -> bool {
        let lost = self.write().set_damaged(run);
        delete(&run.path);
        lost
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

// Upkeep, under the maintenance lock.

impl Locator {
    fn is_memory_full(&self) -> bool {
        self.read().complete_len() >= self.options.memory_entries
    }

    fn write_memory(&self) -> Result<(), LocatorError> {
        let Some(batch) = self.write().freeze() else {
            return Ok(());
        };
        match write_run(&self.dir, &batch) {
            Ok(run) => {
                self.write().thaw_into(&batch, run);
                Ok(())
            }
            Err(error) => {
                self.write().thaw(&batch);
                Err(self.write_error(error))
            }
        }
    }

    fn delete_dead_runs(&self) {
        let dead = self.read().dead_runs();
        if !dead.is_empty() {
            self.write().replace_runs(&dead, None);
        }
        dead.iter().for_each(|run| delete(&run.path));
    }

    fn merge_runs(&self) -> Result<(), LocatorError> {
        let Some(runs) = self.planned() else {
            return Ok(());
        };
        let live = |pack| self.read().is_live(pack);
        let stop = || self.flushing.load(Ordering::Relaxed) > 0;
        let merged = match merge(&self.dir, &runs, live, stop) {
            Ok(Merged::Stopped) => return Ok(()),
            Ok(Merged::Nothing) => None,
            Ok(Merged::Run(run)) => Some(run),
            Err(MergeError::Source(run, error)) => {
                tracing::warn!(%error, "locator run set aside");
                self.set_aside(&run);
                return Ok(());
            }
            Err(MergeError::Target(error)) => return Err(self.write_error(error)),
        };
        let kept = merged.as_ref().map(|run| run.path.clone());
        self.write().replace_runs(&runs, merged);
        // A run written anew alone has the name of the one it replaced.
        runs.iter()
            .filter(|run| Some(&run.path) != kept.as_ref())
            .for_each(|run| delete(&run.path));
        Ok(())
    }

    /// The runs to merge now. Damaged ones wait until their packs were inserted again.
    fn planned(&self) -> Option<Vec<Arc<Run>>> {
        let state = self.read();
        let sound: Vec<&Arc<Run>> = state
            .runs()
            .iter()
            .filter(|run| !run.is_damaged())
            .collect();
        let lens: Vec<RunLen> = sound
            .iter()
            .map(|run| RunLen {
                entries: run.tail.entries,
                live: state.live_entries(run),
            })
            .collect();
        plan(&lens).map(|range| sound[range].iter().map(|run| Arc::clone(run)).collect())
    }

    fn write_error(&self, source: io::Error) -> LocatorError {
        LocatorError::Write {
            path: self.dir.clone(),
            source,
        }
    }
}

fn write_run(dir: &Path, batch: &Batch) -> io::Result<Run> {
    let (packs, entries_max) = batch.packs();
    let mut writer = RunWriter::create(dir, batch.span, packs.iter().copied(), entries_max)?;
    for entry in batch.entries(&packs) {
        writer.push(entry)?;
    }
    writer.finish()
}

/// Opens all good runs, oldest first, and deletes the rest.
fn open_runs(dir: &Path) -> Result<Vec<Arc<Run>>, LocatorError> {
    let listed = fs::create_dir_all(dir).and_then(|()| list(dir));
    let paths = listed.map_err(|source| LocatorError::Write {
        path: dir.to_owned(),
        source,
    })?;
    let mut runs: Vec<Run> = Vec::new();
    for path in paths {
        match Run::open(&path) {
            Ok(Some(run)) => runs.push(run),
            Ok(None) => delete(&path),
            Err(source) => return Err(LocatorError::Read { path, source }),
        }
    }
    // Longest span first, so that a merged run precedes those it replaced.
    runs.sort_by_key(|run| (run.tail.span.first, u64::MAX - run.tail.span.last));
    let mut current: Vec<Arc<Run>> = Vec::new();
    for run in runs {
        match current.last() {
            Some(last) if last.tail.span.contains(run.tail.span) => delete(&run.path),
            _ => current.push(Arc::new(run)),
        }
    }
    Ok(current)
}

/// The runs in `dir`; unfinished ones are deleted, other files left alone.
fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("run") => paths.push(path),
            Some(TEMPORARY_EXTENSION) => delete(&path),
            Some(_) | None => {}
        }
    }
    Ok(paths)
}

/// Deletes a file that is of no more use. If that does not succeed, the next open tries again.
fn delete(path: &Path) {
    let _ = fs::remove_file(path);
}
