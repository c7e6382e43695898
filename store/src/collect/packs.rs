//! Choosing packs to rewrite, and rewriting them.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::collect::live::LiveSet;
use crate::collect::{CollectOptions, CollectReport, Pressure};
use crate::error::StoreError;
use crate::hash::{ChunkId, NarHash};
use crate::index::{ManifestAt, SeqRange};
use crate::locator::Location;
use crate::manifest::Manifest;
use crate::pack::{FooterEntry, PackFile, read_contents};
use crate::pack_id::PackId;
use crate::pack_set::sync_folders;
use crate::record::{ImportedManifest, RecordKind, Row};
use crate::store::{Appender, Inner, location};

/// A sealed pack and how much of it lives.
struct Judged {
    pack: PackId,
    len: u64,
    live_bytes: u64,
    /// Bytes of records that are dead.
    dead_bytes: u64,
}

impl Judged {
    /// A pack in which nothing was found.
    fn gone(pack: PackId, len: u64) -> Judged {
        Judged {
            pack,
            len,
            live_bytes: 0,
            dead_bytes: 0,
        }
    }

    /// Bytes that rewriting it frees.
    fn garbage(&self) -> u64 {
        self.len.saturating_sub(self.live_bytes)
    }
}

/// How closely a chunk record is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scrutiny {
    /// Live if its chunk is.
    Chunk,
    /// Live if its chunk is, and no other copy serves it.
    Copy,
}

impl Inner {
    /// Rewrites the packs worth it; under pressure, only as many as it takes.
    ///
    /// Returns the bytes of garbage in packs that are in use: these are not for us to free yet.
    pub(super) fn rewrite_packs(
        &self,
        options: &CollectOptions,
        dropped: &BTreeSet<NarHash>,
        pressure: Option<Pressure>,
        report: &mut CollectReport,
    ) -> Result<u64, StoreError> {
        // Listed before what lives: each of these chunks is held by then, or garbage.
        let being_written = self.packs.open_chunks();
        let live = self.live_chunks(dropped)?;
        let victims = self.choose(options, &live)?;
        let condemned = self.leases.condemn(victims.iter().map(|pack| pack.pack));
        let leased = victims
            .iter()
            .filter(|victim| !condemned.contains(&victim.pack));
        let dead = being_written.iter().filter(|(id, _)| !live.contains(id));
        let held_back = leased.clone().map(Judged::garbage).sum::<u64>()
            + dead.map(|(_, len)| len).sum::<u64>();
        report.leased_packs += leased.count() as u64;
        let outcome = self.rewrite_condemned(&victims, &condemned, pressure, report);
        self.leases.acquit(&condemned);
        self.nars.clear();
        outcome.map(|()| held_back)
    }

    /// Rewrites packs without what is damaged in them.
    pub(crate) fn rewrite_damaged(&self, packs: &BTreeSet<PackId>) -> Result<(), StoreError> {
        let sealed = self.packs.sealed();
        let victims: Vec<Judged> = packs
            .iter()
            .filter_map(|pack| Some(Judged::gone(*pack, *sealed.get(pack)?)))
            .collect();
        let condemned = self.leases.condemn(packs.iter().copied());
        let mut report = CollectReport::default();
        let outcome = self.rewrite_condemned(&victims, &condemned, None, &mut report);
        self.leases.acquit(&condemned);
        self.nars.clear();
        outcome
    }

    /// Whether a damaged chunk or manifest is referred to, and there is no other copy.
    pub(crate) fn is_needed(
        &self,
        pack: &PackFile,
        entry: &FooterEntry,
        live: &LiveSet,
    ) -> Result<bool, StoreError> {
        self.is_live(pack, entry, live, Scrutiny::Copy, 0)
    }

    /// Notes what [`Inner::rewrite_packs`] would do, were `dropped` dropped and all packs sealed, and
    /// returns what it would.
    pub(super) fn foresee_packs(
        &self,
        options: &CollectOptions,
        dropped: &BTreeSet<NarHash>,
        report: &mut CollectReport,
    ) -> Result<u64, StoreError> {
        let mut held_back = 0;
        for victim in self.choose(options, &self.live_chunks(dropped)?)? {
            if self.leases.pins(&victim.pack) {
                report.leased_packs += 1;
                held_back += victim.garbage();
                continue;
            }
            match victim.live_bytes {
                0 => report.deleted_packs += 1,
                _ => report.rewritten_packs += 1,
            }
            report.copied_bytes += victim.live_bytes;
            report.freed_bytes += victim.garbage();
        }
        Ok(held_back)
    }

    fn rewrite_condemned(
        &self,
        victims: &[Judged],
        condemned: &BTreeSet<PackId>,
        pressure: Option<Pressure>,
        report: &mut CollectReport,
    ) -> Result<(), StoreError> {
        if condemned.is_empty() {
            return Ok(());
        }
        // The look that counts: nothing can come to rely on the condemned packs any more.
        let live = self.live_chunks(&BTreeSet::new())?;
        let mut out = Appender::new(self);
        for victim in victims
            .iter()
            .filter(|victim| condemned.contains(&victim.pack))
        {
            if let Some(pressure) = pressure {
                let total = self.size.total();
                if total <= pressure.target {
                    break;
                }
            }
            if !self.may_copy_from(victim) {
                continue;
            }
            let copied = self.rewrite(victim, &live, &mut out)?;
            self.size.measure(self);
            report.copied_bytes += copied;
            report.freed_bytes += victim.len.saturating_sub(copied);
            match copied {
                0 => report.deleted_packs += 1,
                _ => report.rewritten_packs += 1,
            }
        }
        Ok(())
    }

    /// Whether what lives in a pack may be copied now: there is room for it below the cap.
    ///
    /// A pack longer than packs are below this cap was written before the cap was set, and there may
    /// never be such room. It is rewritten all the same, past the cap for as long as that takes: else
    /// all that lives in it would have to be evicted for it to go.
    fn may_copy_from(&self, victim: &Judged) -> bool {
        let Some(pressure) = self.pressure().filter(|_| victim.live_bytes > 0) else {
            return true;
        };
        let is_older = victim.len > 2 * self.options.pack_len_target;
        self.size.total() + victim.live_bytes <= pressure.cap
            || is_older && self.check_free_space(victim.live_bytes).is_ok()
    }

    /// The sealed packs worth rewriting, those with the least to copy first.
    fn choose(&self, options: &CollectOptions, live: &LiveSet) -> Result<Vec<Judged>, StoreError> {
        let scrutiny = if options.full {
            Scrutiny::Copy
        } else {
            Scrutiny::Chunk
        };
        let mut judged = Vec::new();
        for (pack, len) in self.packs.sealed() {
            judged.push(match self.packs.file(pack)? {
                Some(file) => {
                    let entries = read_contents(&file)?.entries;
                    self.judge(&file, len, &entries, live, scrutiny)?
                }
                None => Judged::gone(pack, len),
            });
        }
        if options.dry_run {
            // A collection that is not dry seals these first.
            for (file, entries) in self.packs.idle() {
                judged.push(self.judge(&file, file.len()?, &entries, live, scrutiny)?);
            }
        }
        let small = judged.iter().filter(|pack| self.is_small(pack)).count();
        let worth = |pack: &Judged| {
            let share = pack.live_bytes as f64 / (pack.live_bytes + pack.dead_bytes).max(1) as f64;
            share < self.options.compact_below
                || (options.full && pack.dead_bytes > 0)
                || (small > SMALL_PACKS_MAX && self.is_small(pack))
        };
        judged.retain(worth);
        judged.sort_by_key(|pack| (pack.live_bytes, pack.pack));
        Ok(judged)
    }

    fn is_small(&self, pack: &Judged) -> bool {
        pack.len < self.options.pack_len_target / 8
    }

    fn judge(
        &self,
        file: &PackFile,
        len: u64,
        entries: &[FooterEntry],
        live: &LiveSet,
        scrutiny: Scrutiny,
    ) -> Result<Judged, StoreError> {
        let mut judged = Judged::gone(file.id, len);
        let oldest_elsewhere = self.oldest_seq_outside(file.id)?;
        for entry in entries {
            match self.is_live(file, entry, live, scrutiny, oldest_elsewhere)? {
                true => judged.live_bytes += entry.record_len(),
                false => judged.dead_bytes += entry.record_len(),
            }
        }
        Ok(judged)
    }

    fn is_live(
        &self,
        pack: &PackFile,
        entry: &FooterEntry,
        live: &LiveSet,
        scrutiny: Scrutiny,
        oldest_elsewhere: u64,
    ) -> Result<bool, StoreError> {
        match entry.kind {
            RecordKind::Chunk => {
                let id = ChunkId::from_bytes(entry.key);
                let here = location(pack.id, entry);
                Ok(live.contains(&id)
                    && (scrutiny == Scrutiny::Chunk || !self.has_other_copy(&id, &here)?))
            }
            RecordKind::Manifest => {
                let row = self.index.nar(&NarHash::from_bytes(entry.key))?;
                Ok(row.is_some_and(|row| row.pack == pack.id && row.offset == entry.offset))
            }
            RecordKind::Row => match pack.read_record(entry)? {
                Some((_, body)) => match Row::decode(&body) {
                    Some(row) => self.index.is_current(&row, oldest_elsewhere),
                    None => Ok(false),
                },
                None => Ok(false),
            },
            RecordKind::Footer => Ok(false),
        }
    }

    /// Whether a chunk is served, undamaged, from another place than `here`.
    fn has_other_copy(&self, id: &ChunkId, here: &Location) -> Result<bool, StoreError> {
        let mut last = None;
        while let Some(served) = self.lookup(id)?.filter(|served| served != here) {
            // Reading a damaged copy quarantines it: then it is not found again.
            if self.read_frame(id, &served)?.is_some() {
                return Ok(true);
            }
            if last.replace(served) == Some(served) {
                break;
            }
        }
        Ok(false)
    }

    /// Copies what lives in a pack, makes the copies durable, deletes the pack. Returns the bytes
    /// copied.
    fn rewrite(
        &self,
        victim: &Judged,
        live: &LiveSet,
        out: &mut Appender<'_>,
    ) -> Result<u64, StoreError> {
        let Some(file) = self.packs.file(victim.pack)? else {
            return Ok(0);
        };
        let oldest_elsewhere = self.oldest_seq_outside(victim.pack)?;
        let mut copied = 0;
        let mut moved = Vec::new();
        for entry in read_contents(&file)?.entries {
            if !self.is_live(&file, &entry, live, Scrutiny::Copy, oldest_elsewhere)? {
                self.leave_behind(&file, &entry)?;
            } else if self.copy(&file, &entry, out, &mut moved)? {
                copied += entry.record_len();
            }
        }
        // First the copies are durable, then the index points to them, then that is durable, and
        // only then the originals go: a crash in between finds the originals.
        self.sync()?;
        self.index
            .make_room_to_remove(moved.len() as u64 * MANIFEST_MOVED_LEN)?;
        moved
            .iter()
            .try_for_each(|(manifest, at)| self.index.put_nar(manifest, at))?;
        self.index.flush()?;
        out.seal_if_full()?;
        self.locator.drop_pack(victim.pack);
        self.packs.delete(victim.pack)?;
        sync_folders(self.packs.root(), &[victim.pack])?;
        self.index.remove_pack(victim.pack)?;
        Ok(copied)
    }

    /// Forgets what the index keeps of a row that is not copied.
    fn leave_behind(&self, pack: &PackFile, entry: &FooterEntry) -> Result<(), StoreError> {
        if entry.kind == RecordKind::Row
            && let Some((_, body)) = pack.read_record(entry)?
            && let Some(row) = Row::decode(&body)
        {
            self.index.forget(&row)?;
        }
        Ok(())
    }

    /// Copies a record; `false` if it turns out to be damaged.
    fn copy(
        &self,
        pack: &Arc<PackFile>,
        entry: &FooterEntry,
        out: &mut Appender<'_>,
        moved: &mut Vec<(Manifest, ManifestAt)>,
    ) -> Result<bool, StoreError> {
        let Some((header, body)) = pack.read_record(entry)? else {
            if entry.kind == RecordKind::Chunk {
                self.quarantine(&ChunkId::from_bytes(entry.key), &location(pack.id, entry))?;
            }
            return Ok(false);
        };
        match entry.kind {
            RecordKind::Chunk => {
                let id = ChunkId::from_bytes(entry.key);
                out.chunk_copy(None, id, header.raw_len, &body)
                    .map(|_| true)
            }
            RecordKind::Manifest => {
                let Some(imported) = ImportedManifest::decode(&body) else {
                    return Ok(false);
                };
                let Ok(manifest) = Manifest::decode(imported.manifest) else {
                    return Ok(false);
                };
                let ImportedManifest {
                    seq, imported_at, ..
                } = imported;
                let at = out.manifest_copy(&manifest, seq, imported_at, &body)?;
                moved.push((manifest, at));
                Ok(true)
            }
            RecordKind::Row => {
                let Some(row) = Row::decode(&body) else {
                    return Ok(false);
                };
                out.row(&row).map(|()| true)
            }
            RecordKind::Footer => Ok(false),
        }
    }

    /// The lowest sequence number in any other pack; 0 if one is not known.
    fn oldest_seq_outside(&self, pack: PackId) -> Result<u64, StoreError> {
        let mut known = self.packs.open_seqs();
        known.extend(self.index.applied()?);
        let others = self.packs.ids().into_iter().filter(|id| *id != pack);
        let oldest = |id| known.get(&id).map_or(0, |range: &SeqRange| range.min);
        Ok(others.map(oldest).min().unwrap_or(u64::MAX))
    }
}

/// Bytes that the index writes to note a manifest's new place.
const MANIFEST_MOVED_LEN: u64 = 128;
/// Small packs beyond this number are merged.
const SMALL_PACKS_MAX: usize = 8;
