//! What was evicted lately, for those who fill a cache path by path.
//!
//! Plain `nix copy --to` sends a path's references first and the path after them, each by requests
//! of its own. Of a closure larger than the size cap, what came first is evicted for what comes
//! later, and whoever sent it still takes it to be here: so does Nix for days, in its own memory of
//! caches. A path that refers to one of these is not taken
//! ([`Store::publish_with_references`](crate::Store::publish_with_references)). As eviction takes
//! referrers before their references, no path that was taken is left without them either.
//!
//! Remembered for a day and for the latest [`EVICTED_MAX`] paths; a file keeps it, which is written
//! before what is evicted goes, and when the store is closed. The disk is not waited for: a crash of the
//! machine may lose the last of it. What is forgotten counts as never having been here;
//! what is back counts as evicted again if it is removed after a crash.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use crate::cache_name::CacheName;
use crate::store_path::StorePathHash;

/// The paths that were evicted lately.
#[derive(Debug, Default)]
pub(crate) struct Evicted {
    state: Mutex<State>,
}

type Key = (CacheName, StorePathHash);

#[derive(Debug, Default)]
struct State {
    /// When each was evicted, in seconds since 1970.
    at: BTreeMap<Key, u64>,
    /// All evictions, the oldest first; those of paths that came back since are not in `at`.
    order: VecDeque<(u64, Key)>,
}

impl Evicted {
    /// What [`Evicted::save`] wrote into the store's folder, if that can be read.
    pub(crate) fn load(dir: &Path) -> Evicted {
        let saved = fs::read(dir.join(FILE)).ok();
        let rows = saved.and_then(|saved| postcard::from_bytes::<Vec<(u64, Key)>>(&saved).ok());
        let evicted = Evicted::default();
        for (at, (cache, hash)) in rows.unwrap_or_default() {
            evicted.note(&cache, [hash], at);
        }
        evicted
    }

    /// Writes all of it into the store's folder, in the place of what was written before, as far as there
    /// is space: it is not worth an error. Two at once must not write.
    pub(crate) fn save(&self, dir: &Path) {
        let state = self.state();
        let is_current = |(at, key): &&(u64, Key)| state.at.get(key) == Some(at);
        let rows: Vec<_> = state.order.iter().filter(is_current).collect();
        let bytes = postcard::to_stdvec(&rows).expect("plain data always encodes");
        drop(state);
        let (draft, file) = (dir.join(DRAFT), dir.join(FILE));
        let written = fs::write(&draft, bytes).and_then(|()| fs::rename(&draft, &file));
        if let Err(error) = written {
            tracing::warn!(%error, file = %file.display(), "what was evicted is not written down");
            let _ = fs::remove_file(&draft);
        }
    }

    /// Notes paths that are evicted now.
    pub(crate) fn note(
        &self,
        cache: &CacheName,
        hashes: impl IntoIterator<Item = StorePathHash>,
        now: u64,
    ) {
        let mut state = self.state();
        for hash in hashes {
            let key = (cache.clone(), hash);
            if state.at.insert(key.clone(), now) != Some(now) {
                state.order.push_back((now, key));
                state.trim(now);
            }
        }
    }

    /// Whether a path was evicted lately.
    pub(crate) fn contains(&self, cache: &CacheName, hash: &StorePathHash, now: u64) -> bool {
        let at = self.state().at.get(&(cache.clone(), *hash)).copied();
        at.is_some_and(|at| is_late(at, now))
    }

    /// Forgets a path that is back.
    pub(crate) fn forget(&self, cache: &CacheName, hash: &StorePathHash) {
        self.state().at.remove(&(cache.clone(), *hash));
    }

    /// Forgets a cache that is gone.
    pub(crate) fn forget_cache(&self, cache: &CacheName) {
        let mut state = self.state();
        state.at.retain(|(name, _), _| name != cache);
        state.order.retain(|(_, (name, _))| name != cache);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }
}

impl State {
    /// Forgets what is too old or too much.
    fn trim(&mut self, now: u64) {
        while let Some((at, key)) = self.order.front()
            && (self.order.len() > EVICTED_MAX || !is_late(*at, now))
        {
            if self.at.get(key) == Some(at) {
                self.at.remove(key);
            }
            self.order.pop_front();
        }
    }
}

fn is_late(at: u64, now: u64) -> bool {
    now.saturating_sub(at) < KEPT_FOR
}

/// The file in the store's folder, and what becomes it.
const FILE: &str = "evicted";
const DRAFT: &str = "evicted.draft";
/// Paths remembered, in about 10 MB of memory; beyond, the oldest are forgotten.
const EVICTED_MAX: usize = 1 << 16;
/// Seconds for which a path is remembered: longer than the copy of a closure takes, with another try.
const KEPT_FOR: u64 = 24 * 3600;

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(name: &str) -> CacheName {
        name.parse().expect("a cache's name")
    }

    fn hash(index: u32) -> StorePathHash {
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&index.to_be_bytes());
        StorePathHash::from_bytes(bytes)
    }

    #[test]
    fn a_path_is_remembered_in_its_cache_until_it_is_back_or_a_day_has_passed() {
        let (main, other) = (&cache("main"), &cache("other"));
        let evicted = Evicted::default();
        evicted.note(main, [hash(1), hash(2)], 1000);
        evicted.note(other, [hash(3)], 1000);
        evicted.forget(main, &hash(2));
        evicted.forget_cache(other);
        let rows = [
            (main, 1, 1000, true),
            (main, 1, 1000 + KEPT_FOR - 1, true),
            (main, 1, 1000 + KEPT_FOR, false),
            (main, 2, 1000, false),
            (other, 1, 1000, false),
            (other, 3, 1000, false),
        ];
        for (cache, index, now, expected) in rows {
            let found = evicted.contains(cache, &hash(index), now);
            assert_eq!(found, expected, "{index} of {cache} at {now}");
        }
    }

    #[test]
    fn the_latest_are_kept_when_there_are_too_many() {
        let evicted = Evicted::default();
        let main = &cache("main");
        let many = EVICTED_MAX as u32;
        evicted.note(main, [hash(0)], 1000);
        evicted.note(main, (0..many).map(hash), 1000);
        assert!(evicted.contains(main, &hash(1), 1000));
        evicted.note(main, [hash(many), hash(many + 1)], 1000);
        assert!(!evicted.contains(main, &hash(1), 1000));
        assert!(evicted.contains(main, &hash(2), 1000));
        let state = evicted.state();
        assert_eq!(
            (state.at.len(), state.order.len()),
            (EVICTED_MAX, EVICTED_MAX)
        );
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let dir = tempfile::tempdir().expect("a folder");
        let main = &cache("main");
        let evicted = Evicted::default();
        evicted.note(main, [hash(1), hash(2)], 1000);
        evicted.forget(main, &hash(1));
        evicted.save(dir.path());
        let loaded = Evicted::load(dir.path());
        let found = [1, 2].map(|index| loaded.contains(main, &hash(index), 1000));
        assert_eq!(found, [false, true]);
    }

    #[test]
    fn a_damaged_file_is_none() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join(FILE), [0xff; 40]).expect("write");
        assert!(Evicted::load(dir.path()).state().at.is_empty());
    }
}
