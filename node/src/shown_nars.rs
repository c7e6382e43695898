//! Which NARs a cache may show.
//!
//! NARs are stored once for all caches, and their URLs hold nothing but their hash. So that the
//! hash of a private cache's NAR does not open it through the URL of a public one, a cache shows a
//! NAR only if one of its own paths has it. While every cache is public there is nothing to keep,
//! and nothing is looked up.

use std::collections::HashSet;
use std::sync::Mutex;

use attic_store::{NarHash, Store, StoreError};

use crate::caches::{Cache, Caches};

/// Remembers what caches have shown, so that the look at all their paths is rare.
#[derive(Default)]
pub(crate) struct ShownNars {
    /// By [`Cache::id`]. What a cache showed once it may show again: its readers had it.
    known: Mutex<HashSet<(u32, NarHash)>>,
}

impl ShownNars {
    /// Whether `cache` may show a NAR. Blocks; may look at every path of the cache.
    pub(crate) fn may_show(
        &self,
        store: &Store,
        caches: &Caches,
        cache: &Cache,
        nar: &NarHash,
    ) -> Result<bool, StoreError> {
        if caches
            .snapshot()
            .values()
            .all(|cache| cache.settings.public)
        {
            return Ok(true);
        }
        if self
            .known
            .lock()
            .expect("no panic under this lock")
            .contains(&(cache.id, *nar))
        {
            return Ok(true);
        }
        let found = has_path_with(store, cache, nar)?;
        if found {
            self.note(cache, nar);
        }
        Ok(found)
    }

    /// Notes that a path of `cache` has this NAR.
    pub(crate) fn note(&self, cache: &Cache, nar: &NarHash) {
        let mut known = self.known.lock().expect("no panic under this lock");
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert((cache.id, *nar));
    }
}

fn has_path_with(store: &Store, cache: &Cache, nar: &NarHash) -> Result<bool, StoreError> {
    let mut after = None;
    loop {
        let rows = store.paths(&cache.name, after, PAGE)?;
        if rows.iter().any(|row| row.info.nar_hash == *nar) {
            return Ok(true);
        }
        let Some(last) = rows.last() else {
            return Ok(false);
        };
        after = Some(*last.info.path.hash());
    }
}

/// About 5 MB.
const KNOWN_MAX: usize = 100_000;
const PAGE: usize = 1024;
