//! What is remembered for a while, within bounds. Pure: time is an argument.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// A map whose entries expire, and of which the oldest go when it is full.
pub(crate) struct Recent<K, V> {
    entries: HashMap<K, Entry<V>>,
    /// Keys in the order they came, some of them gone or renewed since.
    queue: VecDeque<(K, u64)>,
    bounds: Bounds,
    weight: usize,
    next: u64,
}

/// What a [`Recent`] may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// How long an entry counts.
    pub(crate) ttl: Duration,
    pub(crate) len_max: usize,
    /// Sum of all weights.
    pub(crate) weight_max: usize,
}

struct Entry<V> {
    value: V,
    weight: usize,
    at: Instant,
    number: u64,
}

impl<K: Clone + Eq + Hash, V> Recent<K, V> {
    pub(crate) fn new(bounds: Bounds) -> Recent<K, V> {
        Recent {
            entries: HashMap::new(),
            queue: VecDeque::new(),
            bounds,
            weight: 0,
            next: 0,
        }
    }

    /// The value of a key, unless it has expired.
    pub(crate) fn find(&self, key: &K, now: Instant) -> Option<&V> {
        let entry = self.entries.get(key)?;
        let age = now.saturating_duration_since(entry.at);
        (age < self.bounds.ttl).then_some(&entry.value)
    }

    /// Keeps a value in place of any other. One that is too heavy for the whole map is not kept.
    pub(crate) fn keep(&mut self, key: K, value: V, weight: usize, now: Instant) {
        self.forget(&key);
        if weight > self.bounds.weight_max || self.bounds.len_max == 0 {
            return;
        }
        while self.entries.len() >= self.bounds.len_max
            || self.weight + weight > self.bounds.weight_max
        {
            self.drop_oldest();
        }
        let number = self.next;
        self.next += 1;
        self.weight += weight;
        self.queue.push_back((key.clone(), number));
        let entry = Entry {
            value,
            weight,
            at: now,
            number,
        };
        self.entries.insert(key, entry);
        while self.queue.len() > 2 * self.bounds.len_max {
            self.drop_oldest();
        }
    }

    pub(crate) fn forget(&mut self, key: &K) {
        if let Some(entry) = self.entries.remove(key) {
            self.weight -= entry.weight;
        }
    }

    /// Drops what came first, or a place in the queue whose entry is gone.
    fn drop_oldest(&mut self) {
        let Some((key, number)) = self.queue.pop_front() else {
            return;
        };
        let is_it = |entry: &Entry<V>| entry.number == number;
        if self.entries.get(&key).is_some_and(is_it) {
            self.forget(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(60);

    fn recent(len_max: usize, weight_max: usize) -> Recent<u32, u32> {
        Recent::new(Bounds {
            ttl: TTL,
            len_max,
            weight_max,
        })
    }

    #[test]
    fn an_entry_expires_and_can_be_renewed_and_forgotten() {
        let (mut recent, start) = (recent(10, 10), Instant::now());
        recent.keep(1, 10, 1, start);
        assert_eq!(recent.find(&1, start + TTL / 2), Some(&10));
        assert_eq!(recent.find(&1, start + TTL), None);
        recent.keep(1, 11, 1, start + TTL);
        assert_eq!(recent.find(&1, start + TTL), Some(&11));
        recent.forget(&1);
        assert_eq!(recent.find(&1, start + TTL), None);
    }

    #[test]
    fn it_is_bounded_in_length_and_weight_and_the_oldest_go() {
        let (mut recent, now) = (recent(10, 100), Instant::now());
        for key in 0..1000 {
            recent.keep(key, key, 5, now);
        }
        assert_eq!(recent.find(&989, now), None);
        assert!((990..1000).all(|key| recent.find(&key, now) == Some(&key)));
        recent.keep(1, 1, 90, now);
        assert_eq!((recent.entries.len(), recent.weight), (3, 100));
        recent.keep(2, 2, 101, now);
        assert_eq!(recent.find(&2, now), None);
    }

    #[test]
    fn renewing_and_forgetting_leaves_no_growing_queue() {
        let (mut recent, now) = (recent(10, 100), Instant::now());
        for round in 0..1000 {
            recent.keep(1, round, 1, now);
            recent.keep(2, round, 1, now);
            recent.forget(&2);
        }
        assert!(recent.queue.len() <= 20, "{}", recent.queue.len());
        assert_eq!(recent.find(&1, now), Some(&999));
        assert_eq!(recent.weight, 1);
    }

    #[test]
    fn no_time_and_no_room_keep_nothing() {
        let now = Instant::now();
        let mut none = recent(0, 100);
        none.keep(1, 1, 1, now);
        assert_eq!(none.find(&1, now), None);
        let bounds = Bounds {
            ttl: Duration::ZERO,
            len_max: 10,
            weight_max: 10,
        };
        let mut none = Recent::new(bounds);
        none.keep(1, 1, 1, now);
        assert_eq!(none.find(&1, now), None);
    }
}
