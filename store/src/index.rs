//! The index: where rows and manifests lie, kept in sled and rebuilt from packs after any loss.
//!
//! This module is the only one that knows sled. Every row carries the sequence number it was
//! written with, and a removal leaves its number behind, so applying rows again, or in another
//! order, ends in the same state.
//!
//! sled keeps a prefix of its history over a crash. Rows are applied before their pack is marked
//! as [applied](Index::mark_applied), so a marked pack never needs to be read again.

mod keys;
mod reserve;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sled::{Db, IVec, Tree};

use crate::cache_name::CacheName;
use crate::error::StoreError;
use crate::hash::{ChunkId, FileHash, NarHash};
use crate::locator::Location;
use crate::manifest::Manifest;
use crate::pack_id::PackId;
use crate::record::{BlobRow, Change, PathRow, Pin, Row, UploadName};
use crate::store_path::StorePathHash;

use reserve::Reserve;

/// A NAR the store holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NarRow {
    /// Bytes of the NAR.
    pub nar_size: u64,
    /// SHA-256 of its `.nar.zst`.
    pub file_hash: FileHash,
    /// Bytes of its `.nar.zst`.
    pub file_size: u64,
    /// Chunks it consists of.
    pub chunks: u32,
    /// When it was imported, in seconds since 1970.
    pub imported_at: u64,
    /// Whether a path was published with it since.
    pub published: bool,
    pub(crate) seq: u64,
    pub(crate) pack: PackId,
    pub(crate) offset: u32,
    pub(crate) body_len: u32,
}

/// Where a manifest record lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ManifestAt {
    pub(crate) seq: u64,
    pub(crate) imported_at: u64,
    pub(crate) pack: PackId,
    pub(crate) offset: u32,
    pub(crate) body_len: u32,
}

/// The sequence numbers in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SeqRange {
    pub(crate) min: u64,
    pub(crate) max: u64,
}

impl SeqRange {
    /// The range of a pack without rows.
    pub(crate) const EMPTY: SeqRange = SeqRange {
        min: u64::MAX,
        max: 0,
    };

    /// The range with `seq` in it.
    pub(crate) fn with(self, seq: u64) -> SeqRange {
        SeqRange {
            min: self.min.min(seq),
            max: self.max.max(seq),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Numbered<T> {
    seq: u64,
    row: T,
}

/// The index of one store.
pub(crate) struct Index {
    db: Db,
    paths: Tree,
    /// Keys of `paths`, by cache and NAR: which NARs a cache shows.
    nar_of: Tree,
    nars: Tree,
    blobs: Tree,
    pins: Tree,
    uploads: Tree,
    /// Keys of removed rows and the sequence numbers of their removal.
    removed: Tree,
    /// Sealed packs whose rows are all applied.
    packs: Tree,
    accessed: Tree,
    damaged: Tree,
    bad_copies: Tree,
    /// Held to read and replace a row of `nars`.
    replacing_nar: Mutex<()>,
    reserve: Reserve,
}

impl Index {
    /// Opens the index in `dir`, creating it if it is absent, to hold `reserve` bytes of disk for
    /// what it writes.
    ///
    /// # Errors
    /// [`StoreError::Index`]; unless it [is in use](is_in_use), the caller may delete `dir` and
    /// rebuild.
    pub(crate) fn open(dir: &Path, reserve: u64) -> Result<Index, StoreError> {
        let db = open_when_free(dir)?;
        let tree = |name: &str| db.open_tree(name);
        let index = Index {
            paths: tree("paths")?,
            nar_of: tree("nar_of")?,
            nars: tree("nars")?,
            blobs: tree("blobs")?,
            pins: tree("pins")?,
            uploads: tree("uploads")?,
            removed: tree("removed")?,
            packs: tree("packs")?,
            accessed: tree("accessed")?,
            damaged: tree("damaged")?,
            bad_copies: tree("bad_copies")?,
            db,
            replacing_nar: Mutex::default(),
            reserve: Reserve::open(dir.join("db"), reserve)?,
        };
        index.complete_nar_of()?;
        Ok(index)
    }

    /// Makes `nar_of` from `paths`, unless it was made before: an index may be older than it.
    fn complete_nar_of(&self) -> Result<(), StoreError> {
        if self.nar_of.contains_key(COMPLETE)? {
            return Ok(());
        }
        for row in self.all_paths() {
            self.nar_of.insert(keys::nar_of(&row?), &[])?;
        }
        self.nar_of.insert(COMPLETE, &[])?;
        Ok(())
    }

    /// Makes sure that rows of `len` bytes can be written: to be asked before they are.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`]; the index itself must never meet a full disk.
    pub(crate) fn make_room(&self, len: u64) -> Result<(), StoreError> {
        self.reserve.ensure(len * LOG_FACTOR)
    }

    /// As [`Index::make_room`], for what removes rows or makes others smaller.
    ///
    /// # Errors
    /// As [`Index::make_room`].
    pub(crate) fn make_room_to_remove(&self, len: u64) -> Result<(), StoreError> {
        self.reserve.ensure_for_removal(len * LOG_FACTOR)
    }

    /// Makes everything applied so far durable.
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        self.db.flush()?;
        Ok(())
    }

    // Rows.

    /// Applies a row, unless a later one for its key was applied before.
    pub(crate) fn apply(&self, row: &Row) -> Result<(), StoreError> {
        let seq = row.seq;
        match &row.change {
            Change::Path(path) => self.put_path(path, seq),
            Change::RemovePath(cache, hash) => self.remove_path(cache, hash, seq),
            Change::Blob(blob) => {
                let key = keys::named(&blob.cache, &blob.key);
                self.put(&self.blobs, BLOBS, &blob.cache, key, seq, blob)
            }
            Change::Pin(pin) => {
                let key = keys::pin(&pin.cache, &pin.name, &pin.path);
                self.put(&self.pins, PINS, &pin.cache, key, seq, pin)
            }
            Change::Unpin(cache, name, path) => {
                self.remove(&self.pins, PINS, keys::pin(cache, name, path), seq)
            }
            Change::UploadName(upload) => {
                let key = keys::named(&upload.cache, &upload.file);
                self.put(&self.uploads, UPLOADS, &upload.cache, key, seq, upload)
            }
            Change::PurgeCache(cache) => self.purge(cache, seq),
        }
    }

    /// `nar_of` changes before `paths`: a crash in between leaves an entry too few, which applying
    /// the row again makes good, and none too many.
    fn put_path(&self, path: &PathRow, seq: u64) -> Result<(), StoreError> {
        let hash = path.info.path.hash();
        let key = keys::path(&path.cache, hash);
        if !self.is_newest(&self.paths, PATHS, &path.cache, &key, seq)? {
            return Ok(());
        }
        let old = self.path(&path.cache, hash)?;
        if let Some(old) = old.filter(|old| old.info.nar_hash != path.info.nar_hash) {
            self.nar_of.remove(keys::nar_of(&old))?;
        }
        self.paths
            .insert(key, encode(&Numbered { seq, row: path }))?;
        self.nar_of.insert(keys::nar_of(path), &[])?;
        self.mark_published(&path.info.nar_hash)
    }

    fn remove_path(
        &self,
        cache: &CacheName,
        hash: &StorePathHash,
        seq: u64,
    ) -> Result<(), StoreError> {
        let key = keys::path(cache, hash);
        if let Some(row) = self.path(cache, hash)? {
            self.mark_published(&row.info.nar_hash)?;
            if seq_of(self.paths.get(&key)?.as_deref()) <= Some(seq) {
                self.nar_of.remove(keys::nar_of(&row))?;
            }
        }
        self.remove(&self.paths, PATHS, key.clone(), seq)?;
        self.accessed.remove(key)?;
        Ok(())
    }

    /// Whether the index would change if the row were missing from the packs.
    ///
    /// `oldest_elsewhere` is the lowest sequence number of any row outside of the row's own pack: a
    /// removal older than that has nothing left to suppress.
    pub(crate) fn is_current(&self, row: &Row, oldest_elsewhere: u64) -> Result<bool, StoreError> {
        if let Some((kind, key)) = removal_key(&row.change) {
            let seq = self.removal(kind, &key)?;
            return Ok(seq == Some(row.seq) && oldest_elsewhere < row.seq);
        }
        let live = |tree: &Tree, key: Vec<u8>| -> Result<bool, StoreError> {
            Ok(seq_of(tree.get(key)?.as_deref()) == Some(row.seq))
        };
        match &row.change {
            Change::Path(path) => live(&self.paths, keys::path(&path.cache, path.info.path.hash())),
            Change::Blob(blob) => live(&self.blobs, keys::named(&blob.cache, &blob.key)),
            Change::Pin(pin) => live(&self.pins, keys::pin(&pin.cache, &pin.name, &pin.path)),
            Change::UploadName(upload) => {
                let nar_here = self.nars.contains_key(upload.nar_hash.as_bytes())?;
                Ok(nar_here && live(&self.uploads, keys::named(&upload.cache, &upload.file))?)
            }
            Change::RemovePath(..) | Change::Unpin(..) | Change::PurgeCache(..) => Ok(false),
        }
    }

    /// Forgets what is kept of a row that leaves the packs, since it is no longer
    /// [current](Index::is_current): a removal with nothing left to suppress, the upload name of a
    /// NAR that is gone.
    pub(crate) fn forget(&self, row: &Row) -> Result<(), StoreError> {
        if let Some((kind, key)) = removal_key(&row.change)
            && self.removal(kind, &key)? == Some(row.seq)
        {
            self.removed.remove(keys::removal(kind, &key))?;
        }
        if let Change::UploadName(upload) = &row.change {
            let key = keys::named(&upload.cache, &upload.file);
            if seq_of(self.uploads.get(&key)?.as_deref()) == Some(row.seq) {
                self.uploads.remove(key)?;
            }
        }
        Ok(())
    }

    fn put<T: Serialize>(
        &self,
        tree: &Tree,
        prefix: u8,
        cache: &CacheName,
        key: Vec<u8>,
        seq: u64,
        row: &T,
    ) -> Result<(), StoreError> {
        if self.is_newest(tree, prefix, cache, &key, seq)? {
            tree.insert(key, encode(&Numbered { seq, row }))?;
        }
        Ok(())
    }

    /// Whether nothing later than `seq` is known of a key.
    fn is_newest(
        &self,
        tree: &Tree,
        prefix: u8,
        cache: &CacheName,
        key: &[u8],
        seq: u64,
    ) -> Result<bool, StoreError> {
        let newest = seq_of(tree.get(key)?.as_deref())
            .max(self.removal(prefix, key)?)
            .max(self.removal(CACHES, &keys::cache(cache))?);
        Ok(newest.is_none_or(|newest| newest <= seq))
    }

    fn remove(&self, tree: &Tree, prefix: u8, key: Vec<u8>, seq: u64) -> Result<(), StoreError> {
        if seq_of(tree.get(&key)?.as_deref()).is_some_and(|live| live > seq) {
            return Ok(());
        }
        if self
            .removal(prefix, &key)?
            .is_none_or(|removed| removed < seq)
        {
            self.removed
                .insert(keys::removal(prefix, &key), &seq.to_be_bytes())?;
        }
        tree.remove(key)?;
        Ok(())
    }

    fn purge(&self, cache: &CacheName, seq: u64) -> Result<(), StoreError> {
        let key = keys::cache(cache);
        if self
            .removal(CACHES, &key)?
            .is_some_and(|removed| removed >= seq)
        {
            return Ok(());
        }
        for row in self.paths(cache, None) {
            let row = row?;
            self.mark_published(&row.info.nar_hash)?;
            let live = self.paths.get(keys::path(cache, row.info.path.hash()))?;
            if seq_of(live.as_deref()) < Some(seq) {
                self.nar_of.remove(keys::nar_of(&row))?;
            }
        }
        for tree in [&self.paths, &self.blobs, &self.pins, &self.uploads] {
            for row in tree.scan_prefix(&key) {
                let (key, value) = row?;
                if seq_of(Some(&value)) < Some(seq) {
                    tree.remove(key)?;
                }
            }
        }
        for key in self.accessed.scan_prefix(&key).keys() {
            self.accessed.remove(key?)?;
        }
        // Last: after a crash in between, applying the row again does the rest.
        self.removed
            .insert(keys::removal(CACHES, &key), &seq.to_be_bytes())?;
        Ok(())
    }

    fn removal(&self, prefix: u8, key: &[u8]) -> Result<Option<u64>, StoreError> {
        Ok(self
            .removed
            .get(keys::removal(prefix, key))?
            .as_deref()
            .and_then(be_u64))
    }

    /// The path of a cache with this hash.
    pub(crate) fn path(
        &self,
        cache: &CacheName,
        hash: &StorePathHash,
    ) -> Result<Option<PathRow>, StoreError> {
        self.paths
            .get(keys::path(cache, hash))?
            .map(|bytes| decode(&bytes, "path"))
            .transpose()
    }

    /// The paths of a cache, by hash, after `after`.
    pub(crate) fn paths(
        &self,
        cache: &CacheName,
        after: Option<&StorePathHash>,
    ) -> impl Iterator<Item = Result<PathRow, StoreError>> {
        let prefix = keys::cache(cache);
        let rows = match after {
            Some(hash) => {
                let from = std::ops::Bound::Excluded(keys::path(cache, hash));
                self.paths.range((from, std::ops::Bound::Unbounded))
            }
            None => self.paths.range(prefix.clone()..),
        };
        rows.take_while(move |row| {
            row.as_ref()
                .map_or(true, |(key, _)| key.starts_with(&prefix))
        })
        .map(|row| decode(&row?.1, "path"))
    }

    /// Whether a path of the cache has this NAR.
    pub(crate) fn shows_nar(&self, cache: &CacheName, nar: &NarHash) -> Result<bool, StoreError> {
        let first = self.nar_of.scan_prefix(keys::nar(cache, nar)).next();
        Ok(first.transpose()?.is_some())
    }

    /// The paths of all caches, by cache and hash.
    pub(crate) fn all_paths(&self) -> impl Iterator<Item = Result<PathRow, StoreError>> {
        self.paths.iter().map(|row| decode(&row?.1, "path"))
    }

    /// As [`Index::all_paths`], with the sequence numbers of their rows.
    pub(crate) fn numbered_paths(
        &self,
    ) -> impl Iterator<Item = Result<(PathRow, u64), StoreError>> {
        self.paths.iter().map(|row| {
            let numbered = from_postcard::<Numbered<PathRow>>(&row?.1);
            let Numbered { seq, row } = numbered.ok_or(StoreError::IndexRow("path"))?;
            Ok((row, seq))
        })
    }

    /// The small object of a cache under this name.
    pub(crate) fn blob(
        &self,
        cache: &CacheName,
        name: &str,
    ) -> Result<Option<BlobRow>, StoreError> {
        self.blobs
            .get(keys::named(cache, name))?
            .map(|bytes| decode(&bytes, "blob"))
            .transpose()
    }

    /// All small objects.
    pub(crate) fn all_blobs(&self) -> impl Iterator<Item = Result<BlobRow, StoreError>> {
        self.blobs.iter().map(|row| decode(&row?.1, "blob"))
    }

    /// Whether the index has a row whose number is not in `known`.
    pub(crate) fn is_row_outside(&self, known: &HashSet<u64>) -> Result<bool, StoreError> {
        for tree in [&self.paths, &self.blobs, &self.pins, &self.uploads] {
            for value in tree.iter().values() {
                if seq_of(Some(&value?)).is_none_or(|seq| !known.contains(&seq)) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// The rows whose numbers are not in `known`, to be written again.
    pub(crate) fn rows_outside(&self, known: &HashSet<u64>) -> Result<Vec<Change>, StoreError> {
        let outside = |value: &IVec| seq_of(Some(value)).is_none_or(|seq| !known.contains(&seq));
        let mut changes = Vec::new();
        for value in self.paths.iter().values() {
            let value = value?;
            if outside(&value) {
                changes.push(Change::Path(decode(&value, "path")?));
            }
        }
        for value in self.blobs.iter().values() {
            let value = value?;
            if outside(&value) {
                changes.push(Change::Blob(decode(&value, "blob")?));
            }
        }
        for value in self.pins.iter().values() {
            let value = value?;
            if outside(&value) {
                changes.push(Change::Pin(decode(&value, "pin")?));
            }
        }
        for value in self.uploads.iter().values() {
            let value = value?;
            if outside(&value) {
                changes.push(Change::UploadName(decode(&value, "upload")?));
            }
        }
        Ok(changes)
    }

    /// The pins of a cache, by name, the newest generation first.
    pub(crate) fn pins(&self, cache: &CacheName) -> Result<Vec<Pin>, StoreError> {
        let rows = self.pins.scan_prefix(keys::cache(cache));
        let numbered = rows
            .map(|row| from_postcard::<Numbered<Pin>>(&row?.1).ok_or(StoreError::IndexRow("pin")));
        let mut pins: Vec<Numbered<Pin>> = numbered.collect::<Result<_, StoreError>>()?;
        pins.sort_by(|a, b| (&a.row.name, b.seq).cmp(&(&b.row.name, a.seq)));
        Ok(pins.into_iter().map(|numbered| numbered.row).collect())
    }

    /// What was uploaded to a cache under this file name.
    pub(crate) fn upload(
        &self,
        cache: &CacheName,
        file: &str,
    ) -> Result<Option<UploadName>, StoreError> {
        self.uploads
            .get(keys::named(cache, file))?
            .map(|bytes| decode(&bytes, "upload"))
            .transpose()
    }

    /// The number of the row that [`Index::upload`] finds.
    pub(crate) fn upload_seq(
        &self,
        cache: &CacheName,
        file: &str,
    ) -> Result<Option<u64>, StoreError> {
        let row = self.uploads.get(keys::named(cache, file))?;
        Ok(seq_of(row.as_deref()))
    }

    // NARs.

    /// Notes an imported manifest, unless a later import of the NAR was noted before.
    pub(crate) fn put_nar(&self, manifest: &Manifest, at: &ManifestAt) -> Result<(), StoreError> {
        let _alone = self.replacing_nar.lock().expect("no panic under this lock");
        let key = manifest.nar_hash().as_bytes();
        let known = self.nar(manifest.nar_hash())?;
        if known.as_ref().is_some_and(|known| known.seq > at.seq) {
            return Ok(());
        }
        let row = NarRow {
            nar_size: manifest.nar_size(),
            file_hash: *manifest.file_hash(),
            file_size: manifest.file_size(),
            chunks: manifest.chunks().len() as u32,
            imported_at: at.imported_at,
            published: known.is_some_and(|known| known.seq == at.seq && known.published),
            seq: at.seq,
            pack: at.pack,
            offset: at.offset,
            body_len: at.body_len,
        };
        self.nars.insert(key, encode(&row))?;
        Ok(())
    }

    /// The NAR with this hash.
    pub(crate) fn nar(&self, hash: &NarHash) -> Result<Option<NarRow>, StoreError> {
        self.nars
            .get(hash.as_bytes())?
            .map(|bytes| decode(&bytes, "nar"))
            .transpose()
    }

    /// All NARs, by hash.
    pub(crate) fn nars(&self) -> impl Iterator<Item = Result<(NarHash, NarRow), StoreError>> {
        self.nars.iter().map(|row| {
            let (key, value) = row?;
            let key: [u8; 32] = key
                .as_ref()
                .try_into()
                .map_err(|_| StoreError::IndexRow("nar"))?;
            Ok((NarHash::from_bytes(key), decode(&value, "nar")?))
        })
    }

    /// Forgets where a NAR lies, until its manifest is noted again.
    pub(crate) fn forget_nar(&self, hash: &NarHash) -> Result<(), StoreError> {
        let _alone = self.replacing_nar.lock().expect("no panic under this lock");
        self.nars.remove(hash.as_bytes())?;
        Ok(())
    }

    /// Drops a NAR.
    pub(crate) fn remove_nar(&self, hash: &NarHash) -> Result<(), StoreError> {
        let _alone = self.replacing_nar.lock().expect("no panic under this lock");
        self.nars.remove(hash.as_bytes())?;
        self.damaged.remove(hash.as_bytes())?;
        Ok(())
    }

    fn mark_published(&self, hash: &NarHash) -> Result<(), StoreError> {
        let _alone = self.replacing_nar.lock().expect("no panic under this lock");
        if let Some(row) = self.nar(hash)?.filter(|row| !row.published) {
            self.nars.insert(
                hash.as_bytes(),
                encode(&NarRow {
                    published: true,
                    ..row
                }),
            )?;
        }
        Ok(())
    }

    // Packs.

    /// Marks a sealed pack all of whose rows are applied.
    pub(crate) fn mark_applied(&self, pack: PackId, range: SeqRange) -> Result<(), StoreError> {
        self.packs.insert(pack.as_bytes(), encode(&range))?;
        Ok(())
    }

    /// The packs marked as applied.
    pub(crate) fn applied(&self) -> Result<Vec<(PackId, SeqRange)>, StoreError> {
        let row = |row: sled::Result<(sled::IVec, sled::IVec)>| {
            let (key, value) = row?;
            let key: [u8; 16] = key
                .as_ref()
                .try_into()
                .map_err(|_| StoreError::IndexRow("pack"))?;
            Ok((PackId::from_bytes(key), decode(&value, "pack")?))
        };
        self.packs.iter().map(row).collect()
    }

    /// Forgets a pack that is gone.
    pub(crate) fn remove_pack(&self, pack: PackId) -> Result<(), StoreError> {
        self.packs.remove(pack.as_bytes())?;
        for row in self.bad_copies.scan_prefix(pack.as_bytes()) {
            self.bad_copies.remove(row?.0)?;
        }
        Ok(())
    }

    // Damage.

    /// Marks or clears a NAR as not servable.
    pub(crate) fn set_damaged(&self, hash: &NarHash, damaged: bool) -> Result<(), StoreError> {
        match damaged {
            true => self.damaged.insert(hash.as_bytes(), &[])?,
            false => self.damaged.remove(hash.as_bytes())?,
        };
        Ok(())
    }

    /// All NARs marked as damaged.
    pub(crate) fn damaged(&self) -> Result<Vec<NarHash>, StoreError> {
        let row = |key: sled::Result<sled::IVec>| {
            let key: Option<[u8; 32]> = key?.as_ref().try_into().ok();
            key.map(NarHash::from_bytes)
                .ok_or(StoreError::IndexRow("damaged"))
        };
        self.damaged.iter().keys().map(row).collect()
    }

    /// Quarantines one copy of a chunk.
    pub(crate) fn add_bad_copy(&self, id: &ChunkId, at: &Location) -> Result<(), StoreError> {
        let value = encode(&(*id, at.raw_len, at.frame_len));
        self.bad_copies
            .insert(keys::copy(at.pack, at.offset), value)?;
        Ok(())
    }

    /// All quarantined copies.
    pub(crate) fn bad_copies(&self) -> Result<Vec<(ChunkId, Location)>, StoreError> {
        let row = |row: sled::Result<(sled::IVec, sled::IVec)>| {
            let (key, value) = row?;
            let (pack, offset) = keys::parse_copy(&key).ok_or(StoreError::IndexRow("copy"))?;
            let (id, raw_len, frame_len) = decode(&value, "copy")?;
            Ok((
                id,
                Location {
                    pack,
                    offset,
                    raw_len,
                    frame_len,
                },
            ))
        };
        self.bad_copies.iter().map(row).collect()
    }

    // Access times.

    /// Notes when a path was last served, in seconds since 1970.
    pub(crate) fn set_accessed(
        &self,
        cache: &CacheName,
        hash: &StorePathHash,
        at: u64,
    ) -> Result<(), StoreError> {
        self.accessed
            .insert(keys::path(cache, hash), &at.to_be_bytes())?;
        Ok(())
    }

    /// When a path was last served.
    pub(crate) fn accessed(
        &self,
        cache: &CacheName,
        hash: &StorePathHash,
    ) -> Result<Option<u64>, StoreError> {
        Ok(self
            .accessed
            .get(keys::path(cache, hash))?
            .as_deref()
            .and_then(be_u64))
    }
}

/// The kind and key of what a change removes, if it removes something.
fn removal_key(change: &Change) -> Option<(u8, Vec<u8>)> {
    match change {
        Change::RemovePath(cache, hash) => Some((PATHS, keys::path(cache, hash))),
        Change::Unpin(cache, name, path) => Some((PINS, keys::pin(cache, name, path))),
        Change::PurgeCache(cache) => Some((CACHES, keys::cache(cache))),
        Change::Path(_) | Change::Blob(_) | Change::Pin(_) | Change::UploadName(_) => None,
    }
}

fn encode<T: Serialize>(row: &T) -> Vec<u8> {
    postcard::to_stdvec(row).expect("a row is made of plain data, which always encodes")
}

fn decode<T: Decode>(bytes: &[u8], what: &'static str) -> Result<T, StoreError> {
    T::from_index(bytes).ok_or(StoreError::IndexRow(what))
}

/// Rows that decode from the index: the numbered ones without their number.
trait Decode: Sized {
    fn from_index(bytes: &[u8]) -> Option<Self>;
}

macro_rules! decode_numbered {
    ($($row:ty),*) => {$(
        impl Decode for $row {
            fn from_index(bytes: &[u8]) -> Option<Self> {
                from_postcard::<Numbered<$row>>(bytes).map(|numbered| numbered.row)
            }
        }
    )*};
}

macro_rules! decode_plain {
    ($($row:ty),*) => {$(
        impl Decode for $row {
            fn from_index(bytes: &[u8]) -> Option<Self> {
                from_postcard(bytes)
            }
        }
    )*};
}

decode_numbered!(PathRow, BlobRow, UploadName, Pin);
decode_plain!(NarRow, SeqRange, (ChunkId, u32, u32));

fn from_postcard<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    postcard::from_bytes(bytes).ok()
}

/// The number of a numbered row: its first field.
fn seq_of(bytes: Option<&[u8]>) -> Option<u64> {
    postcard::take_from_bytes::<u64>(bytes?)
        .ok()
        .map(|(seq, _)| seq)
}

fn be_u64(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// Opens the database. Whoever closed it a moment ago may not be quite gone: a thread of sled, or a
/// child that was being started and has the file as well.
fn open_when_free(dir: &Path) -> sled::Result<Db> {
    let config = sled::Config::new()
        .path(dir)
        .cache_capacity(CACHE_BYTES)
        .flush_every_ms(Some(FLUSH_EVERY_MS));
    let until = Instant::now() + IN_USE_PATIENCE;
    loop {
        match config.open() {
            Err(error) if is_in_use(&error) && Instant::now() < until => {
                thread::sleep(IN_USE_PAUSE);
            }
            opened => return opened,
        }
    }
}

/// Whether an index could not be opened because somebody else has it open. sled says that in words
/// only.
pub(crate) fn is_in_use(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().starts_with("could not acquire lock"))
}

/// How long to wait for an index that is in use.
const IN_USE_PATIENCE: Duration = Duration::from_secs(5);
const IN_USE_PAUSE: Duration = Duration::from_millis(10);
/// sled's page cache; what it keeps per key comes on top.
const CACHE_BYTES: u64 = 32 << 20;
const FLUSH_EVERY_MS: u64 = 500;
/// Bytes of log that a byte of rows may cost: several trees, and pages written anew.
const LOG_FACTOR: u64 = 4;

/// The key in `nar_of` that says it has every path; no cache's key is like it.
const COMPLETE: [u8; 1] = [0];

const PATHS: u8 = b'p';
const BLOBS: u8 = b'b';
const PINS: u8 = b'i';
const UPLOADS: u8 = b'u';
const CACHES: u8 = b'c';

#[cfg(test)]
mod tests;
