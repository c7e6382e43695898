//! A sorted set of small values that wastes next to no memory.

/// A sorted set in chunks of bounded length, each grown by a few values at a time.
///
/// Against a B-tree of the standard library it keeps a value in its own size and about 3 %, where
/// that one needs half as much again. Look-ups are two binary searches; an insertion moves half a
/// chunk.
#[derive(Clone, Debug)]
pub(crate) struct Table<T> {
    /// None is empty; every value of one is below every value of the next.
    chunks: Vec<Vec<T>>,
    len: usize,
}

impl<T> Default for Table<T> {
    fn default() -> Table<T> {
        Table {
            chunks: Vec::new(),
            len: 0,
        }
    }
}

impl<T: Copy + Ord> Table<T> {
    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds `value`; false if it was there.
    pub(crate) fn insert(&mut self, value: T) -> bool {
        let at = self.chunk_of(&value);
        let Some(chunk) = self.chunks.get_mut(at) else {
            self.chunks.push(vec![value]);
            self.len = 1;
            return true;
        };
        let Err(position) = chunk.binary_search(&value) else {
            return false;
        };
        if chunk.len() == chunk.capacity() {
            chunk.reserve_exact(GROWTH);
        }
        chunk.insert(position, value);
        self.len += 1;
        if chunk.len() >= CHUNK_MAX {
            let mut upper = chunk.split_off(CHUNK_MAX / 2);
            upper.shrink_to_fit();
            chunk.shrink_to_fit();
            self.chunks.insert(at + 1, upper);
        }
        true
    }

    /// Removes `value`; false if it was not there.
    pub(crate) fn remove(&mut self, value: &T) -> bool {
        let at = self.chunk_of(value);
        let Some(chunk) = self.chunks.get_mut(at) else {
            return false;
        };
        let Ok(position) = chunk.binary_search(value) else {
            return false;
        };
        chunk.remove(position);
        self.len -= 1;
        if chunk.is_empty() {
            self.chunks.remove(at);
        }
        true
    }

    /// Keeps the values that `keep` says yes to.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        for chunk in &mut self.chunks {
            let before = chunk.len();
            chunk.retain(&mut keep);
            if chunk.len() < before {
                chunk.shrink_to_fit();
            }
        }
        self.chunks.retain(|chunk| !chunk.is_empty());
        self.len = self.chunks.iter().map(Vec::len).sum();
    }

    /// All values from `start` on, ascending.
    pub(crate) fn from(&self, start: &T) -> impl Iterator<Item = &T> + use<'_, T> {
        let at = self.chunk_of(start);
        let (first, rest) = match self.chunks.get(at) {
            Some(chunk) => {
                let position = chunk.partition_point(|value| value < start);
                (&chunk[position..], &self.chunks[at + 1..])
            }
            None => (&[][..], &[][..]),
        };
        first.iter().chain(rest.iter().flatten())
    }

    /// All values, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flatten()
    }

    /// The chunk that has `value` if any has: the last that does not begin above it.
    fn chunk_of(&self, value: &T) -> usize {
        let below = self.chunks.partition_point(|chunk| chunk[0] <= *value);
        below.saturating_sub(1)
    }
}

/// A chunk is split when it has so many values.
const CHUNK_MAX: usize = 512;

/// How many values a full chunk gets room for.
const GROWTH: usize = 8;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_sorted_set(steps in proptest::collection::vec((any::<bool>(), 0u16..3000), 0..4000)) {
            let (mut table, mut twin) = (Table::default(), BTreeSet::new());
            for (add, value) in steps {
                if add {
                    prop_assert_eq!(table.insert(value), twin.insert(value));
                } else {
                    prop_assert_eq!(table.remove(&value), twin.remove(&value));
                }
            }
            prop_assert_eq!(table.len(), twin.len());
            prop_assert!(table.iter().eq(twin.iter()));
            for start in [0, 1, 500, 2999, 3000] {
                prop_assert!(table.from(&start).eq(twin.range(start..)));
            }
            table.retain(|value| value % 3 == 0);
            twin.retain(|value| value % 3 == 0);
            prop_assert_eq!(table.len(), twin.len());
            prop_assert!(table.iter().eq(twin.iter()));
        }
    }

    #[test]
    fn long_runs_split() {
        let mut table = Table::default();
        for value in (0..10_000u32).rev() {
            assert!(table.insert(value));
        }
        assert!(table.iter().copied().eq(0..10_000));
        let room: usize = table.chunks.iter().map(Vec::capacity).sum();
        assert!(room < 10_000 + 10_000 / 16, "room for {room}");
    }
}
