//! Which paths of a cache belong together: pure questions over their references.

use std::collections::{BTreeMap, BTreeSet};

use crate::narinfo::PathInfo;
use crate::store_path::StorePathHash;

/// What refers to what in a cache.
#[derive(Clone, Debug, Default)]
pub struct References {
    of: BTreeMap<StorePathHash, Box<[StorePathHash]>>,
}

impl References {
    /// Takes one path in.
    pub fn insert(&mut self, info: &PathInfo) {
        let own = info.path.hash();
        let others = info
            .references
            .iter()
            .map(|path| *path.hash())
            .filter(|hash| hash != own);
        self.of.insert(*own, others.collect());
    }

    /// Whether the path is in the cache.
    pub fn contains(&self, path: &StorePathHash) -> bool {
        self.of.contains_key(path)
    }

    /// `roots` and all they refer to, as far as it is in the cache.
    pub fn closure(&self, roots: &BTreeSet<StorePathHash>) -> BTreeSet<StorePathHash> {
        let mut open: Vec<_> = roots
            .iter()
            .filter(|root| self.contains(root))
            .copied()
            .collect();
        let mut closure = BTreeSet::new();
        while let Some(path) = open.pop() {
            if closure.insert(path) {
                let references = self.of.get(&path).into_iter().flatten();
                open.extend(references.filter(|reference| self.contains(reference)));
            }
        }
        closure
    }

    /// `roots` and what they refer to, without the paths that some other path still needs.
    ///
    /// The roots themselves are always in it, whoever needs them.
    pub fn removable(&self, roots: &BTreeSet<StorePathHash>) -> BTreeSet<StorePathHash> {
        let closure = self.closure(roots);
        let others = self
            .of
            .keys()
            .filter(|path| !closure.contains(path))
            .copied();
        let needed = self.closure(&others.collect());
        closure
            .iter()
            .filter(|path| roots.contains(path) || !needed.contains(path))
            .copied()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::hash::NarHash;
    use crate::store_path::StorePath;

    use super::*;

    fn hash(number: u8) -> StorePathHash {
        StorePathHash::from_bytes([number; 20])
    }

    fn references(rows: &[(u8, &[u8])]) -> References {
        let path = |number| StorePath::new(hash(number), "x").unwrap();
        let mut references = References::default();
        for (number, others) in rows {
            references.insert(&PathInfo {
                path: path(*number),
                nar_hash: NarHash::from_bytes([0; 32]),
                nar_size: 1,
                references: others.iter().copied().map(path).collect(),
                deriver: None,
                ca: None,
                signatures: Vec::new(),
            });
        }
        references
    }

    fn set(numbers: &[u8]) -> BTreeSet<StorePathHash> {
        numbers.iter().copied().map(hash).collect()
    }

    /// 1 → 2 → 3 → 2, 4 → 3; 9 is not in the cache.
    const GRAPH: &[(u8, &[u8])] = &[(1, &[1, 2, 9]), (2, &[3]), (3, &[2]), (4, &[3]), (5, &[])];

    #[test]
    fn closures_end_at_the_edge_of_the_cache() {
        let check = |roots: &[u8], wanted: &[u8]| {
            assert_eq!(
                references(GRAPH).closure(&set(roots)),
                set(wanted),
                "{roots:?}"
            );
        };
        check(&[], &[]);
        check(&[1], &[1, 2, 3]);
        check(&[4, 5, 9], &[2, 3, 4, 5]);
    }

    /// P15: removing a closure leaves no other closure with a hole.
    #[test]
    fn p15_what_others_need_is_not_removable() {
        let check = |roots: &[u8], wanted: &[u8]| {
            assert_eq!(
                references(GRAPH).removable(&set(roots)),
                set(wanted),
                "{roots:?}"
            );
        };
        check(&[1], &[1]);
        check(&[1, 4], &[1, 2, 3, 4]);
        check(&[2], &[2]);
        check(&[5], &[5]);
    }
}
