//! Rows through the front door: paths, small objects, pins, upload names, access times.

use std::collections::HashMap;
use std::sync::Mutex;

use bytes::Bytes;

use crate::cache_name::CacheName;
use crate::error::{ImportError, StoreError};
use crate::hash::NarHash;
use crate::index::NarRow;
use crate::record::{BlobRow, Change, PathRow, Pin, UploadName};
use crate::store::{Inner, Store, now};
use crate::store_path::StorePathHash;

/// Paths served since access times were last written, and when.
#[derive(Default)]
pub(super) struct Touches {
    pending: Mutex<HashMap<(CacheName, StorePathHash), u64>>,
}

/// The most paths whose access is remembered between two write-outs; more are not counted.
const TOUCHES_MAX: usize = 100_000;
/// Paths renamed per commit.
const RENAME_PAGE: usize = 512;
/// Access times are kept to this granularity, in seconds.
const TOUCH_GRAIN: u64 = 3600;

impl Store {
    /// Publishes paths: all are durable and visible when this returns.
    ///
    /// The lease that holds their NARs must live until then.
    ///
    /// # Errors
    /// [`StoreError::NarAbsent`] if a row's NAR is not here, or has another size; then no row is
    /// published. Otherwise any [`StoreError`], and a retry is safe.
    pub fn publish(&self, rows: Vec<PathRow>) -> Result<(), StoreError> {
        let _shared = self
            .inner
            .publishing
            .read()
            .expect("no panic under this lock");
        self.publish_shared(rows)
    }

    /// As [`Store::publish`], for paths that come after what they refer to and by themselves: unless one
    /// refers to a path that was evicted from its cache lately, and that is not back, and of which
    /// `is_elsewhere` does not say that it can be had all the same.
    ///
    /// What never was here may be missing on purpose, and is not looked for.
    ///
    /// # Errors
    /// [`StoreError::ReferenceEvicted`], and then no row is published; else as [`Store::publish`].
    pub fn publish_with_references(
        &self,
        rows: Vec<PathRow>,
        is_elsewhere: impl Fn(&StorePathHash) -> bool,
    ) -> Result<(), StoreError> {
        // Nothing is evicted between the look and the end.
        let _shared = self
            .inner
            .publishing
            .read()
            .expect("no panic under this lock");
        for row in &rows {
            self.inner.check_references(row, &is_elsewhere)?;
        }
        self.publish_shared(rows)
    }

    fn publish_shared(&self, rows: Vec<PathRow>) -> Result<(), StoreError> {
        for row in &rows {
            let nar = self.nar(&row.info.nar_hash)?;
            if nar.is_none_or(|nar| nar.nar_size != row.info.nar_size) {
                return Err(StoreError::NarAbsent(row.info.nar_hash));
            }
        }
        self.inner
            .commit(rows.iter().cloned().map(Change::Path).collect())?;
        for row in &rows {
            self.inner.evicted.forget(&row.cache, row.info.path.hash());
        }
        Ok(())
    }

    /// The path of a cache with this hash; `None` also while its NAR cannot be served.
    ///
    /// # Errors
    /// [`StoreError`] if the index cannot be read.
    pub fn path(
        &self,
        cache: &CacheName,
        hash: &StorePathHash,
    ) -> Result<Option<PathRow>, StoreError> {
        let row = self.inner.index.path(cache, hash)?;
        Ok(row.filter(|row| !self.inner.is_damaged(&row.info.nar_hash)))
    }

    /// Up to `limit` paths of a cache, by hash, after `after`.
    ///
    /// # Errors
    /// [`StoreError`] if the index cannot be read.
    pub fn paths(
        &self,
        cache: &CacheName,
        after: Option<StorePathHash>,
        limit: usize,
    ) -> Result<Vec<PathRow>, StoreError> {
        self.inner
            .index
            .paths(cache, after.as_ref())
            .take(limit)
            .collect()
    }

    /// Removes paths from a cache; returns how many were there. Their bytes go with the next
    /// collection, unless another path needs them.
    ///
    /// # Errors
    /// Any [`StoreError`]; a retry is safe.
    pub fn remove(&self, cache: &CacheName, hashes: &[StorePathHash]) -> Result<usize, StoreError> {
        let mut changes = Vec::new();
        for hash in hashes {
            if self.inner.index.path(cache, hash)?.is_some() {
                changes.push(Change::RemovePath(cache.clone(), *hash));
            }
        }
        self.inner
            .with_ballast(|| self.inner.commit(changes.clone()))?;
        Ok(changes.len())
    }

    /// Copies everything a cache has to another name, then drops it from the first.
    ///
    /// # Errors
    /// Any [`StoreError`]; both names may have it then, and a retry is safe.
    pub fn rename_cache(&self, from: &CacheName, to: &CacheName) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let page = self.paths(from, after, RENAME_PAGE)?;
            let Some(last) = page.last() else {
                break;
            };
            after = Some(*last.info.path.hash());
            let renamed = page.into_iter().map(|row| PathRow {
                cache: to.clone(),
                ..row
            });
            self.inner.commit(renamed.map(Change::Path).collect())?;
        }
        for blob in self.inner.index.all_blobs() {
            let blob = blob?;
            if blob.cache == *from {
                let cache = to.clone();
                self.inner
                    .commit(vec![Change::Blob(BlobRow { cache, ..blob })])?;
            }
        }
        // The oldest generation first: their order is kept.
        for pin in self.pins(from)?.into_iter().rev() {
            let cache = to.clone();
            self.pin(Pin { cache, ..pin })?;
        }
        self.purge_cache(from)
    }

    /// Drops everything a cache has.
    ///
    /// # Errors
    /// Any [`StoreError`]; a retry is safe.
    pub fn purge_cache(&self, cache: &CacheName) -> Result<(), StoreError> {
        self.inner
            .with_ballast(|| self.inner.commit(vec![Change::PurgeCache(cache.clone())]))?;
        self.inner.evicted.forget_cache(cache);
        Ok(())
    }

    /// The NAR with this hash, if it is here and can be served as far as known.
    ///
    /// # Errors
    /// [`StoreError`] if the index cannot be read.
    pub fn nar(&self, hash: &NarHash) -> Result<Option<NarRow>, StoreError> {
        if self.inner.is_damaged(hash) {
            return Ok(None);
        }
        self.inner.index.nar(hash)
    }

    /// Whether a NAR was here, and was found not to be whole since.
    pub fn is_damaged(&self, hash: &NarHash) -> bool {
        self.inner.is_damaged(hash)
    }

    /// The `.ls` listing of a NAR, as Nix prints it; `None` if it is not here or has none.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be read.
    pub fn listing(&self, hash: &NarHash) -> Result<Option<Bytes>, StoreError> {
        let Some(manifest) = self.inner.manifest(hash)? else {
            return Ok(None);
        };
        if manifest.listing().is_empty() {
            return Ok(None);
        }
        let ids = manifest.listing().iter().map(|entry| entry.id);
        Ok(self.inner.read_small(ids)?.map(Bytes::from))
    }

    /// Notes under which file name a NAR was uploaded to a cache.
    ///
    /// # Errors
    /// Any [`StoreError`]; a retry is safe.
    pub fn set_upload_name(&self, upload: UploadName) -> Result<(), StoreError> {
        self.inner.commit(vec![Change::UploadName(upload)])
    }

    /// What was uploaded to a cache under this file name, if its NAR is still here.
    ///
    /// # Errors
    /// [`StoreError`] if the index cannot be read.
    pub fn upload_name(
        &self,
        cache: &CacheName,
        file: &str,
    ) -> Result<Option<UploadName>, StoreError> {
        let Some(upload) = self.inner.index.upload(cache, file)? else {
            return Ok(None);
        };
        Ok(self.nar(&upload.nar_hash)?.map(|_| upload))
    }

    /// Whether a NAR may be read through a cache: one of its paths has it. Does not say whether the
    /// NAR is here.
    ///
    /// # Errors
    /// [`StoreError`] if the index cannot be read.
    pub fn shows_nar(&self, cache: &CacheName, nar: &NarHash) -> Result<bool, StoreError> {
        self.inner.index.shows_nar(cache, nar)
    }

    /// What was uploaded to a cache under this file name and may be read through it: a path of the
    /// cache has its NAR, or the narinfo that publishes it is still to come.
    ///
    /// # Errors
    /// [`StoreError`] if the index cannot be read.
    pub fn shown_upload(
        &self,
        cache: &CacheName,
        file: &str,
    ) -> Result<Option<UploadName>, StoreError> {
        let Some(upload) = self.inner.index.upload(cache, file)? else {
            return Ok(None);
        };
        let Some(nar) = self.nar(&upload.nar_hash)? else {
            return Ok(None);
        };
        // An upload's name is noted after its NAR. A NAR that was imported later, or published
        // since, came some other way, or has left this cache again.
        let noted = self.inner.index.upload_seq(cache, file)?;
        let under_way = !nar.published && noted > Some(nar.seq);
        let shown = under_way || self.shows_nar(cache, &upload.nar_hash)?;
        Ok(shown.then_some(upload))
    }

    /// Stores a small object of a cache: a log, a build trace. Durable when this returns.
    ///
    /// # Errors
    /// Any [`ImportError`] of the store; a retry is safe.
    pub fn put_blob(&self, cache: &CacheName, key: &str, bytes: &[u8]) -> Result<(), ImportError> {
        let lease = self.lease();
        let entries = self.inner.store_small(&lease, bytes)?;
        let row = BlobRow {
            cache: cache.clone(),
            key: key.to_owned(),
            len: bytes.len() as u64,
            chunks: entries.iter().map(|entry| entry.id).collect(),
        };
        Ok(self.inner.commit(vec![Change::Blob(row)])?)
    }

    /// A small object of a cache; `None` if it is not here or damaged.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be read.
    pub fn blob(&self, cache: &CacheName, key: &str) -> Result<Option<Bytes>, StoreError> {
        let Some(row) = self.inner.index.blob(cache, key)? else {
            return Ok(None);
        };
        Ok(self
            .inner
            .read_small(row.chunks.into_iter())?
            .map(Bytes::from))
    }

    /// Sets a pin, and drops the generations of its name beyond those it keeps.
    ///
    /// # Errors
    /// Any [`StoreError`]; a retry is safe.
    pub fn pin(&self, pin: Pin) -> Result<(), StoreError> {
        let _shared = self
            .inner
            .publishing
            .read()
            .expect("no panic under this lock");
        let older = self.inner.index.pins(&pin.cache)?;
        let older = older
            .into_iter()
            .filter(|old| old.name == pin.name && old.path != pin.path);
        let surplus = older.skip((pin.keep.max(1) - 1) as usize);
        let mut changes: Vec<Change> = surplus
            .map(|old| Change::Unpin(old.cache, old.name, old.path))
            .collect();
        changes.insert(0, Change::Pin(pin));
        self.inner.commit(changes)
    }

    /// Removes a pin with all its generations; returns how many there were.
    ///
    /// # Errors
    /// Any [`StoreError`]; a retry is safe.
    pub fn unpin(&self, cache: &CacheName, name: &str) -> Result<usize, StoreError> {
        let pins = self.inner.index.pins(cache)?;
        let pins = pins.into_iter().filter(|pin| pin.name == name);
        let changes: Vec<Change> = pins
            .map(|pin| Change::Unpin(pin.cache, pin.name, pin.path))
            .collect();
        let count = changes.len();
        self.inner.commit(changes)?;
        Ok(count)
    }

    /// The pins of a cache, by name, the newest generation first.
    ///
    /// # Errors
    /// [`StoreError`] if the index cannot be read.
    pub fn pins(&self, cache: &CacheName) -> Result<Vec<Pin>, StoreError> {
        self.inner.index.pins(cache)
    }

    /// Notes that a path was served. Cheap; written out by [`Store::maintain`].
    pub fn touch(&self, cache: &CacheName, hash: &StorePathHash, at: u64) {
        let mut pending = self
            .inner
            .touches
            .pending
            .lock()
            .expect("no panic under this lock");
        if pending.len() < TOUCHES_MAX {
            pending.insert((cache.clone(), *hash), at);
        }
    }

    /// When a path was last served or published, in seconds since 1970.
    ///
    /// # Errors
    /// [`StoreError`] if the index cannot be read.
    pub fn accessed_at(&self, row: &PathRow) -> Result<u64, StoreError> {
        self.inner.accessed_at(row)
    }
}

impl Inner {
    fn check_references(
        &self,
        row: &PathRow,
        is_elsewhere: &impl Fn(&StorePathHash) -> bool,
    ) -> Result<(), StoreError> {
        let Some(cap) = self.options.size_cap else {
            return Ok(());
        };
        let own = row.info.path.hash();
        for reference in &row.info.references {
            let hash = reference.hash();
            if hash != own
                && self.evicted.contains(&row.cache, hash, now())
                && self.index.path(&row.cache, hash)?.is_none()
                && !is_elsewhere(hash)
            {
                return Err(StoreError::ReferenceEvicted {
                    path: row.info.path.clone(),
                    reference: reference.clone(),
                    cap,
                });
            }
        }
        Ok(())
    }

    pub(crate) fn flush_touches(&self) -> Result<(), StoreError> {
        // Access times are not worth the last space; they wait.
        if self.index.make_room(0).is_err() {
            return Ok(());
        }
        let pending = std::mem::take(
            &mut *self
                .touches
                .pending
                .lock()
                .expect("no panic under this lock"),
        );
        for ((cache, hash), at) in pending {
            let known = self.index.accessed(&cache, &hash)?;
            if self.index.path(&cache, &hash)?.is_none() {
                continue;
            }
            if known.is_none_or(|known| known + TOUCH_GRAIN <= at) {
                self.index.set_accessed(&cache, &hash, at)?;
            }
        }
        Ok(())
    }

    pub(crate) fn accessed_at(&self, row: &PathRow) -> Result<u64, StoreError> {
        let hash = row.info.path.hash();
        let touched = {
            let pending = self
                .touches
                .pending
                .lock()
                .expect("no panic under this lock");
            pending.get(&(row.cache.clone(), *hash)).copied()
        };
        let known = self.index.accessed(&row.cache, hash)?;
        // A clock that ran ahead must not make a path immortal.
        Ok(touched
            .max(known)
            .unwrap_or(0)
            .max(row.published_at)
            .min(now()))
    }
}
