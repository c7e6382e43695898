//! Re-hashing everything.
//!
//! The packs are read record by record: headers, checks, and for every chunk its BLAKE3. Then every
//! NAR is read through the front door and its SHA-256 compared. Damage found is reported and taken
//! out of use, as by a read that fails, so that a re-push heals it. With [`VerifyOptions::repair`]
//! the damaged records go as well.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::error::StoreError;
use crate::frame::FrameDecoder;
use crate::hash::{ChunkId, NarHash};
use crate::index::NarRow;
use crate::manifest::Manifest;
use crate::pack::{FooterEntry, PackFile, read_contents};
use crate::record::{ImportedManifest, PathRow, RecordKind, Row};
use crate::store::{Inner, Store, footer_entry, location};

/// How to verify.
#[derive(Clone, Copy, Debug, Default)]
pub struct VerifyOptions {
    /// Drop damaged records, and clear the marks of NARs that are whole again.
    pub repair: bool,
}

/// How far a verification is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Packs and NARs checked.
    pub done: u64,
    /// Packs and NARs to check.
    pub total: u64,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Packs read.
    pub packs: u64,
    /// Records read.
    pub records: u64,
    /// Bytes read from packs.
    pub bytes: u64,
    /// NARs hashed.
    pub nars: u64,
    /// Records that are damaged and needed: nothing else in the store holds the same.
    pub damaged_records: u64,
    /// Records that are damaged and that nothing needs any more.
    pub spare_records: u64,
    /// NARs that cannot be served whole, with what needs them.
    pub damaged_nars: Vec<DamagedNar>,
    /// NARs whose damage was healed since it was found.
    pub healed_nars: u64,
}

/// A NAR that cannot be served whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedNar {
    /// The NAR.
    pub nar_hash: NarHash,
    /// Paths that need it, as `cache/path`; push them again to heal it.
    pub paths: Vec<String>,
}

impl VerifyReport {
    /// Whether everything is as it should be.
    pub fn is_clean(&self) -> bool {
        self.damaged_records == 0 && self.damaged_nars.is_empty()
    }
}

impl Store {
    /// Re-hashes every pack and every NAR. Serving goes on meanwhile; collection waits.
    ///
    /// # Errors
    /// [`StoreError`] if something cannot be read at all; damage is no error but a finding.
    pub fn verify(
        &self,
        options: &VerifyOptions,
        progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<VerifyReport, StoreError> {
        let store = &self.inner;
        let _turn = store.housekeeping.lock().expect("no panic under this lock");
        store.seal_idle()?;
        let packs = store.packs.sealed();
        let nars: Vec<(NarHash, NarRow)> = store.index.nars().collect::<Result<_, _>>()?;
        let mut at = VerifyProgress {
            done: 0,
            total: (packs.len() + nars.len()) as u64,
        };
        let mut report = VerifyReport::default();
        let mut found = Found::default();
        for pack in packs.keys() {
            if let Some(file) = store.packs.file(*pack)? {
                store.verify_pack(&file, &mut found, &mut report)?;
            }
            at.done += 1;
            progress(at);
        }
        let mut bad = BTreeSet::new();
        for (hash, row) in &nars {
            if !self.verify_nar(hash, row, options, &mut report)? {
                bad.insert(*hash);
            }
            at.done += 1;
            progress(at);
        }
        report.damaged_nars = store.name_damage(&bad)?;
        store.judge_damage(&found, &mut report)?;
        if options.repair {
            store.drop_damage(&found)?;
        }
        Ok(report)
    }

    /// Whether a NAR is here and reads back with its hash. One that does not is hidden until it is
    /// pushed again.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be read at all.
    pub fn recheck(&self, hash: &NarHash) -> Result<bool, StoreError> {
        // A collection may move it while it is read: then it is looked for again.
        while let Some(row) = self.nar(hash)? {
            if self.inner.reads_back(hash, &row)? {
                return Ok(true);
            }
            if self.inner.index.nar(hash)?.as_ref() == Some(&row) {
                self.inner.set_damaged(hash, true)?;
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// Whether a NAR reads back with its hash.
    fn verify_nar(
        &self,
        hash: &NarHash,
        row: &NarRow,
        options: &VerifyOptions,
        report: &mut VerifyReport,
    ) -> Result<bool, StoreError> {
        report.nars += 1;
        let was_damaged = self.inner.is_damaged(hash);
        let whole = self.inner.reads_back(hash, row)?;
        let unchanged = || Ok::<_, StoreError>(self.inner.index.nar(hash)?.as_ref() == Some(row));
        if was_damaged == whole && (options.repair || !whole) && unchanged()? {
            self.inner.set_damaged(hash, !whole)?;
            report.healed_nars += u64::from(whole);
        }
        Ok(whole)
    }
}

impl Inner {
    fn verify_pack(
        &self,
        pack: &Arc<PackFile>,
        found: &mut Found,
        report: &mut VerifyReport,
    ) -> Result<(), StoreError> {
        let mut decoder = FrameDecoder::new();
        let contents = read_contents(pack)?;
        report.packs += 1;
        report.bytes += contents.len;
        for entry in &contents.entries {
            report.records += 1;
            if record_holds(pack, entry, &mut decoder)? {
                if let Some(seq) = row_seq(pack, entry)? {
                    found.rows.insert(seq);
                }
                continue;
            }
            tracing::error!(pack = %pack.id, offset = entry.offset, kind = ?entry.kind, "damaged record");
            if entry.kind == RecordKind::Chunk {
                self.quarantine(&ChunkId::from_bytes(entry.key), &location(pack.id, entry))?;
            }
            found.damaged.push((Arc::clone(pack), *entry));
        }
        Ok(())
    }

    /// Counts damaged records by whether something needs them.
    ///
    /// A damaged row does not say which it was: such rows are needed while the index has one that
    /// no pack holds any more.
    fn judge_damage(&self, found: &Found, report: &mut VerifyReport) -> Result<(), StoreError> {
        if found.damaged.is_empty() {
            return Ok(());
        }
        let live = self.live_chunks(&BTreeSet::new())?;
        let row_lost = self.index.is_row_outside(&found.rows)?;
        for (pack, entry) in &found.damaged {
            let needed = match entry.kind {
                RecordKind::Row => row_lost,
                RecordKind::Chunk | RecordKind::Manifest | RecordKind::Footer => {
                    self.is_needed(pack, entry, &live)?
                }
            };
            report.damaged_records += u64::from(needed);
            report.spare_records += u64::from(!needed);
        }
        Ok(())
    }

    /// Writes rows again that only the index has, and rewrites the packs with damaged records
    /// without these. Packs that a lease pins stay as they are.
    fn drop_damage(&self, found: &Found) -> Result<(), StoreError> {
        if found.damaged.is_empty() {
            return Ok(());
        }
        let is_row = |(_, entry): &(_, FooterEntry)| entry.kind == RecordKind::Row;
        if found.damaged.iter().any(is_row) {
            self.commit(self.index.rows_outside(&found.rows)?)?;
        }
        let packs = found.damaged.iter().map(|(pack, _)| pack.id).collect();
        self.rewrite_damaged(&packs)
    }

    /// Whether all chunks of a NAR can be read and make up the NAR; marks nothing.
    fn reads_back(&self, hash: &NarHash, row: &NarRow) -> Result<bool, StoreError> {
        let Some(manifest) = self.manifest_at(hash, row)? else {
            return Ok(false);
        };
        let lease = self.lease();
        let mut decoder = FrameDecoder::new();
        let mut digest = Sha256::new();
        let mut chunk = Vec::new();
        for entry in manifest.chunks() {
            let Some(at) = self.lookup(&entry.id)? else {
                return Ok(false);
            };
            lease.pin(at.pack);
            let Some(pack) = self.packs.file(at.pack)? else {
                return Ok(false);
            };
            let Some((header, frame)) = pack.read_record(&footer_entry(&entry.id, &at))? else {
                return Ok(false);
            };
            chunk.clear();
            let decoded = decoder.decode_into(&frame, entry.raw_len as usize, &mut chunk);
            if header.body_check != entry.frame_check || decoded.is_err() {
                return Ok(false);
            }
            digest.update(&chunk);
        }
        Ok(NarHash::from_bytes(digest.finalize().into()) == *hash)
    }

    fn name_damage(&self, bad: &BTreeSet<NarHash>) -> Result<Vec<DamagedNar>, StoreError> {
        let mut damage: Vec<DamagedNar> = bad
            .iter()
            .map(|hash| DamagedNar {
                nar_hash: *hash,
                paths: Vec::new(),
            })
            .collect();
        if damage.is_empty() {
            return Ok(damage);
        }
        for row in self.index.all_paths() {
            let PathRow { cache, info, .. } = row?;
            if let Ok(at) = damage.binary_search_by_key(&info.nar_hash, |nar| nar.nar_hash) {
                damage[at].paths.push(format!("{cache}/{}", info.path));
            }
        }
        Ok(damage)
    }
}

/// What a verification learns from the packs.
#[derive(Default)]
struct Found {
    /// Records that do not hold.
    damaged: Vec<(Arc<PackFile>, FooterEntry)>,
    /// Numbers of the rows that do.
    rows: HashSet<u64>,
}

/// The number of a row that holds; `None` for another record.
fn row_seq(pack: &PackFile, entry: &FooterEntry) -> Result<Option<u64>, StoreError> {
    if entry.kind != RecordKind::Row {
        return Ok(None);
    }
    let record = pack.read_record(entry)?;
    Ok(record.and_then(|(_, body)| Some(Row::decode(&body)?.seq)))
}

/// Whether a record is undamaged and holds what its key says.
fn record_holds(
    pack: &PackFile,
    entry: &FooterEntry,
    decoder: &mut FrameDecoder,
) -> Result<bool, StoreError> {
    let Some((_, body)) = pack.read_record(entry)? else {
        return Ok(false);
    };
    Ok(match entry.kind {
        RecordKind::Chunk => decoder
            .decode(&body, entry.raw_len as usize)
            .is_ok_and(|chunk| ChunkId::of(&chunk).as_bytes() == &entry.key),
        RecordKind::Manifest => ImportedManifest::decode(&body)
            .and_then(|imported| Manifest::decode(imported.manifest).ok())
            .is_some_and(|manifest| manifest.nar_hash().as_bytes() == &entry.key),
        RecordKind::Row => Row::decode(&body).is_some(),
        RecordKind::Footer => false,
    })
}
