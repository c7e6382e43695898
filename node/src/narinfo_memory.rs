//! Narinfo answers ready to send, for the paths that are asked for most.
//!
//! A bounded map from (cache, path) to bytes. Every change of a path forgets its entry, and an
//! answer computed from what was read before the change is not kept: [`NarinfoMemory::keep`] takes
//! the [`Epoch`] from before the reading.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use attic_store::StorePathHash;
use bytes::Bytes;
use hyper::header::HeaderValue;

/// The answer to a narinfo request.
pub(crate) struct Rendered {
    pub(crate) body: Bytes,
    /// Quoted strong entity tag.
    pub(crate) etag: HeaderValue,
    /// When the store was last told that the path is in use, in Unix seconds.
    touched_at: AtomicU64,
    used: AtomicBool,
}

impl Rendered {
    pub(crate) fn new(body: String) -> Rendered {
        let digest = blake3::hash(body.as_bytes()).to_hex();
        Rendered {
            etag: HeaderValue::try_from(format!("\"{}\"", &digest[..32]))
                .expect("hexadecimal digits make a header value"),
            body: body.into(),
            touched_at: AtomicU64::new(0),
            used: AtomicBool::new(false),
        }
    }

    /// Whether the store should be told of this use: once per [`TOUCH_INTERVAL_SECS`].
    pub(crate) fn due_for_touch(&self, now: u64) -> bool {
        let last = self.touched_at.load(Ordering::Relaxed);
        if now < last.saturating_add(TOUCH_INTERVAL_SECS) {
            return false;
        }
        self.touched_at
            .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }

    fn weight(&self) -> u64 {
        (self.body.len() + ENTRY_OVERHEAD) as u64
    }
}

/// The store keeps access times to the hour.
const TOUCH_INTERVAL_SECS: u64 = 1800;
/// What an entry takes besides its body: map slot, queue slot, allocation headers.
const ENTRY_OVERHEAD: usize = 256;

/// Identifies a path in a cache: [`Cache::id`](crate::caches::Cache::id) and hash part.
pub(crate) type Key = (u32, StorePathHash);

/// A moment in the history of a path's part of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Epoch(u64);

/// The memory. Its size is bounded; what was used least recently goes first, roughly.
pub(crate) struct NarinfoMemory {
    shards: [RwLock<Shard>; SHARDS],
    /// How many paths the store had evicted when that was last looked at.
    evicted: AtomicU64,
}

#[derive(Default)]
struct Shard {
    entries: HashMap<Key, Arc<Rendered>>,
    /// Keys in the order they came, some of them forgotten since.
    queue: VecDeque<Key>,
    weight: u64,
    weight_max: u64,
    epoch: u64,
}

impl NarinfoMemory {
    /// A memory of about `bytes_max` bytes; 0 keeps nothing.
    pub(crate) fn new(bytes_max: u64) -> NarinfoMemory {
        let weight_max = bytes_max / SHARDS as u64;
        let shard = |_| {
            RwLock::new(Shard {
                weight_max,
                ..Shard::default()
            })
        };
        NarinfoMemory {
            shards: std::array::from_fn(shard),
            evicted: AtomicU64::new(0),
        }
    }

    /// Forgets everything if the store has evicted paths since this was last called; `evicted` is how
    /// many it has in all. A write evicts as well, and tells nobody which.
    pub(crate) fn follow(&self, evicted: u64) {
        if self.evicted.load(Ordering::Relaxed) != evicted {
            self.clear();
            self.evicted.store(evicted, Ordering::Relaxed);
        }
    }

    /// The answer for `key`, if it is known.
    pub(crate) fn find(&self, key: &Key) -> Option<Arc<Rendered>> {
        let shard = self.shard(key).read().expect("no panic under this lock");
        let entry = shard.entries.get(key)?;
        if !entry.used.load(Ordering::Relaxed) {
            entry.used.store(true, Ordering::Relaxed);
        }
        Some(Arc::clone(entry))
    }

    /// To be taken before the store is read for `key`.
    pub(crate) fn epoch(&self, key: &Key) -> Epoch {
        Epoch(
            self.shard(key)
                .read()
                .expect("no panic under this lock")
                .epoch,
        )
    }

    /// Keeps an answer, unless something was forgotten since `epoch`.
    pub(crate) fn keep(&self, key: Key, rendered: Arc<Rendered>, epoch: Epoch) {
        let mut shard = self.shard(&key).write().expect("no panic under this lock");
        if shard.epoch == epoch.0 && rendered.weight() <= shard.weight_max {
            shard.insert(key, rendered);
        }
    }

    /// Forgets the answer for `key`: the path changed.
    pub(crate) fn forget(&self, key: &Key) {
        let mut shard = self.shard(key).write().expect("no panic under this lock");
        shard.epoch += 1;
        if let Some(old) = shard.entries.remove(key) {
            shard.weight -= old.weight();
        }
    }

    /// Forgets everything: any path may have changed.
    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.write().expect("no panic under this lock");
            let (epoch, weight_max) = (shard.epoch + 1, shard.weight_max);
            *shard = Shard {
                epoch,
                weight_max,
                ..Shard::default()
            };
        }
    }

    fn shard(&self, key: &Key) -> &RwLock<Shard> {
        &self.shards[usize::from(key.1.as_bytes()[0]) % SHARDS]
    }
}

impl Shard {
    fn insert(&mut self, key: Key, rendered: Arc<Rendered>) {
        self.weight += rendered.weight();
        match self.entries.insert(key, rendered) {
            Some(old) => self.weight -= old.weight(),
            None => self.queue.push_back(key),
        }
        while self.weight > self.weight_max || self.queue.len() > 2 * self.entries.len() + 1 {
            self.make_room();
        }
    }

    /// Second chance: the oldest key goes to the back if it was used since it last came to the
    /// front, and out otherwise.
    fn make_room(&mut self) {
        let Some(key) = self.queue.pop_front() else {
            return;
        };
        match self.entries.get(&key) {
            Some(entry) if entry.used.swap(false, Ordering::Relaxed) => self.queue.push_back(key),
            Some(_) => {
                let old = self.entries.remove(&key);
                self.weight -= old.map_or(0, |old| old.weight());
            }
            None => {}
        }
    }
}

const SHARDS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: u8) -> Key {
        // All in one shard.
        (
            0,
            StorePathHash::from_bytes([[0].as_slice(), &[index; 19]].concat().try_into().unwrap()),
        )
    }

    fn rendered(len: usize) -> Arc<Rendered> {
        Arc::new(Rendered::new("x".repeat(len)))
    }

    #[test]
    fn an_answer_read_before_a_change_is_not_kept() {
        let memory = NarinfoMemory::new(1 << 20);
        let before = memory.epoch(&key(1));
        memory.forget(&key(1));
        memory.keep(key(1), rendered(10), before);
        assert!(memory.find(&key(1)).is_none());
        memory.keep(key(1), rendered(10), memory.epoch(&key(1)));
        assert!(memory.find(&key(1)).is_some());
        let before = memory.epoch(&key(1));
        memory.clear();
        memory.keep(key(1), rendered(10), before);
        assert!(memory.find(&key(1)).is_none());
    }

    #[test]
    fn the_memory_is_bounded_and_keeps_what_is_used() {
        let memory = NarinfoMemory::new(16 * 10 * (ENTRY_OVERHEAD as u64 + 1000));
        for index in 0..200 {
            memory.keep(key(index), rendered(1000), memory.epoch(&key(index)));
            memory.find(&key(0));
            let shard = memory.shard(&key(0)).read().unwrap();
            let sum: u64 = shard.entries.values().map(|entry| entry.weight()).sum();
            assert_eq!(shard.weight, sum);
            assert!(shard.weight <= shard.weight_max);
            assert!(shard.queue.len() <= 25, "{}", shard.queue.len());
        }
        assert!(memory.find(&key(0)).is_some(), "in constant use");
        assert!(memory.find(&key(1)).is_none());
    }

    #[test]
    fn forgotten_keys_do_not_pile_up() {
        let memory = NarinfoMemory::new(1 << 20);
        for _ in 0..1000 {
            memory.keep(key(1), rendered(10), memory.epoch(&key(1)));
            memory.forget(&key(1));
        }
        assert!(memory.shard(&key(1)).read().unwrap().queue.len() <= 3);
    }

    #[test]
    fn a_memory_of_nothing_and_an_answer_too_large_are_fine() {
        let memory = NarinfoMemory::new(0);
        memory.keep(key(1), rendered(10), memory.epoch(&key(1)));
        assert!(memory.find(&key(1)).is_none());
        let memory = NarinfoMemory::new(1 << 20);
        memory.keep(key(1), rendered(1 << 20), memory.epoch(&key(1)));
        assert!(memory.find(&key(1)).is_none());
    }

    #[test]
    fn the_store_is_touched_once_per_interval() {
        let rendered = rendered(1);
        assert!(rendered.due_for_touch(10_000));
        assert!(!rendered.due_for_touch(10_001));
        assert!(rendered.due_for_touch(10_000 + TOUCH_INTERVAL_SECS));
    }
}
