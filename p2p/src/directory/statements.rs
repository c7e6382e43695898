//! Signed statements that logs carry: who said them first does not matter, who repeats them may.

use std::collections::{BTreeMap, BTreeSet};

/// Statements by subject, in versions of rising rank.
///
/// A statement is there as long as one log carries it.
#[derive(Clone, Debug)]
pub(crate) struct Versions<K, T> {
    subjects: BTreeMap<K, BTreeMap<Rank, Carried<T>>>,
}

/// Its version, then its hash, so that no two statements are of equal rank.
pub(crate) type Rank = (u64, [u8; 32]);

/// A statement and the logs that carry it.
#[derive(Clone, Debug)]
pub(crate) struct Carried<T> {
    pub(crate) value: T,
    /// Numbers of the logs' authors.
    pub(crate) carriers: BTreeSet<u16>,
}

impl<K, T> Default for Versions<K, T> {
    fn default() -> Versions<K, T> {
        Versions {
            subjects: BTreeMap::new(),
        }
    }
}

impl<K: Copy + Ord, T> Versions<K, T> {
    pub(crate) fn insert(&mut self, subject: K, rank: Rank, value: T, carrier: u16) {
        let versions = self.subjects.entry(subject).or_default();
        let carried = versions.entry(rank).or_insert_with(|| Carried {
            value,
            carriers: BTreeSet::new(),
        });
        carried.carriers.insert(carrier);
    }

    /// Forgets what only `carrier` carries; the subjects it spoke of.
    pub(crate) fn remove_carrier(&mut self, carrier: u16) -> Vec<K> {
        let mut touched = Vec::new();
        self.subjects.retain(|subject, versions| {
            let mut spoke = false;
            versions.retain(|_, carried| {
                spoke |= carried.carriers.remove(&carrier);
                !carried.carriers.is_empty()
            });
            if spoke {
                touched.push(*subject);
            }
            !versions.is_empty()
        });
        touched
    }

    /// What is said of `subject`, highest rank first.
    pub(crate) fn of(
        &self,
        subject: &K,
    ) -> impl Iterator<Item = (&Rank, &Carried<T>)> + use<'_, K, T> {
        self.subjects.get(subject).into_iter().flatten().rev()
    }

    /// Everything, by subject and rising rank.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &Rank, &Carried<T>)> {
        self.subjects.iter().flat_map(|(subject, versions)| {
            versions
                .iter()
                .map(move |(rank, carried)| (subject, rank, carried))
        })
    }

    /// All subjects, ascending.
    pub(crate) fn subjects(&self) -> impl Iterator<Item = &K> {
        self.subjects.keys()
    }
}

/// Statements that stay once they were heard, because to forget them would be dangerous.
#[derive(Clone, Debug)]
pub(crate) struct Sticky<K, T> {
    entries: BTreeMap<K, Carried<T>>,
}

impl<K, T> Default for Sticky<K, T> {
    fn default() -> Sticky<K, T> {
        Sticky {
            entries: BTreeMap::new(),
        }
    }
}

impl<K: Copy + Ord, T> Sticky<K, T> {
    /// Adds what `carrier` says, or what was found here; true if it is new.
    pub(crate) fn insert(&mut self, key: K, value: T, carrier: Option<u16>) -> bool {
        let is_new = !self.entries.contains_key(&key);
        let carried = self.entries.entry(key).or_insert_with(|| Carried {
            value,
            carriers: BTreeSet::new(),
        });
        carried.carriers.extend(carrier);
        is_new
    }

    pub(crate) fn remove_carrier(&mut self, carrier: u16) {
        for carried in self.entries.values_mut() {
            carried.carriers.remove(&carrier);
        }
    }

    pub(crate) fn contains(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &T)> {
        self.entries
            .iter()
            .map(|(key, carried)| (key, &carried.value))
    }

    /// Those whose key is `start` or above, ascending.
    pub(crate) fn from(&self, start: K) -> impl Iterator<Item = (&K, &T)> {
        let entries = self.entries.range(start..);
        entries.map(|(key, carried)| (key, &carried.value))
    }

    /// What no log carries any more: whoever knows it must say it again.
    pub(crate) fn uncarried(&self) -> impl Iterator<Item = &T> {
        let lost = self
            .entries
            .values()
            .filter(|carried| carried.carriers.is_empty());
        lost.map(|carried| &carried.value)
    }
}
