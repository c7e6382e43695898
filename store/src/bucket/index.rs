//! What a bucket holds, and where: known on this disk, and learnt again from the bucket when it is lost.

use std::collections::BTreeSet;
use std::path::Path;

use crate::bucket::pack::{PackContents, Place, places};
use crate::hash::ChunkId;
use crate::locator::{Location, Locator, LocatorError, LocatorOptions};
use crate::pack_id::PackId;
use crate::record::HEADER_LEN;

/// Where chunks and manifests lie in a bucket, by their keys. Methods may block on the disk.
///
/// It says what was there. What is read may be gone, and must be checked.
#[derive(Debug)]
pub struct BucketIndex {
    locator: Locator,
}

impl BucketIndex {
    /// Opens the index in `dir`, creating it if it is absent. One process opens it at a time; the
    /// caller sees to that.
    ///
    /// # Errors
    /// [`LocatorError`]; the directory may be removed then, and filled again.
    pub fn open(dir: &Path) -> Result<BucketIndex, LocatorError> {
        std::fs::create_dir_all(dir).map_err(|source| LocatorError::Write {
            path: dir.to_owned(),
            source,
        })?;
        let locator = Locator::open(dir, LocatorOptions::default())?;
        Ok(BucketIndex { locator })
    }

    /// The packs that it knows.
    pub fn packs(&self) -> BTreeSet<PackId> {
        self.locator.covered()
    }

    /// Adds a pack that is in the bucket.
    pub fn add(&self, pack: PackId, contents: &PackContents) {
        for (key, place) in places(pack, contents) {
            self.locator
                .insert(ChunkId::from_bytes(key), location(&place));
        }
        self.locator.pack_complete(pack);
    }

    /// Forgets a pack that is not in the bucket any more.
    pub fn forget(&self, pack: PackId) {
        self.locator.drop_pack(pack);
    }

    /// Forgets all packs but these.
    pub fn retain(&self, packs: &BTreeSet<PackId>) {
        self.locator.retain_packs(packs);
    }

    /// Where something lies; `None` if it is not known to be in the bucket.
    ///
    /// # Errors
    /// [`LocatorError`]: what [`packs`](Self::packs) lacks from then on is to be added again.
    pub fn find(&self, key: &[u8; 32]) -> Result<Option<Place>, LocatorError> {
        let found = self.locator.lookup(&ChunkId::from_bytes(*key))?;
        Ok(found.map(|at| place(&at)))
    }

    /// Number of chunks and manifests.
    pub fn len(&self) -> u64 {
        self.locator.len_estimate()
    }

    /// Whether it knows of nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One step of upkeep; `true` if there is more to do at once.
    ///
    /// # Errors
    /// [`LocatorError`]; it can be tried again.
    pub fn maintain(&self) -> Result<bool, LocatorError> {
        self.locator.maintain()
    }

    /// Writes what was added, so that the next open knows it.
    ///
    /// # Errors
    /// [`LocatorError`]; it can be tried again.
    pub fn flush(&self) -> Result<(), LocatorError> {
        self.locator.flush()
    }
}

fn location(place: &Place) -> Location {
    Location {
        pack: place.pack,
        offset: place.offset - HEADER_LEN as u32,
        raw_len: place.raw_len,
        frame_len: place.len,
    }
}

fn place(at: &Location) -> Place {
    Place {
        pack: at.pack,
        offset: at.offset + HEADER_LEN as u32,
        len: at.frame_len,
        raw_len: at.raw_len,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::pack::PackBuilder;

    #[test]
    fn what_was_added_is_found_after_the_next_open() {
        let dir = tempfile::tempdir().unwrap();
        let mut builder = PackBuilder::new([1; 24]);
        builder.add_manifest(b"one");
        let pack = builder.finish();
        let key = *blake3::hash(b"one").as_bytes();
        let index = BucketIndex::open(&dir.path().join("index")).unwrap();
        assert_eq!(index.find(&key).unwrap(), None);
        index.add(pack.id, &pack.contents);
        index.flush().unwrap();
        drop(index);
        let index = BucketIndex::open(&dir.path().join("index")).unwrap();
        assert_eq!(index.packs(), BTreeSet::from([pack.id]));
        let place = index.find(&key).unwrap().unwrap();
        let range = place.range();
        assert_eq!(
            &pack.bytes[range.start as usize..range.end as usize],
            b"one"
        );
        index.forget(pack.id);
        assert_eq!(index.find(&key).unwrap(), None);
        assert!(index.packs().is_empty());
    }
}
