//! What lives: which paths of a cache may go, and in which order.
//!
//! Pure rules over plain data; the store gathers the data and acts on the answer.
//!
//! - A path lives while a pin reaches it through references.
//! - Access flows from referrer to reference: a library is as fresh as the freshest program that
//!   needs it, so evicting the least recently used paths in order never leaves a path behind whose
//!   references are gone.

use std::collections::{BTreeMap, BTreeSet};

use crate::store_path::StorePathHash;

/// A path of one cache, as liveness sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The paths it refers to, itself excluded or not.
    pub references: Vec<StorePathHash>,
    /// When it was last published or served.
    pub last_use: LastUse,
}

/// A moment of use, earlier ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LastUse {
    /// In seconds since 1970.
    pub at: u64,
    /// The sequence number of the path's row. A second is long: among paths of one, what was published
    /// last goes last. Else a path could go before who published it has read it.
    pub seq: u64,
}

/// All paths of one cache.
pub type Candidates = BTreeMap<StorePathHash, Candidate>;

/// The paths that `roots` reach through references, the roots included.
///
/// Unknown paths are skipped: a cache need not hold all that its paths refer to.
pub fn closure(
    candidates: &Candidates,
    roots: impl IntoIterator<Item = StorePathHash>,
) -> BTreeSet<StorePathHash> {
    let mut reached = BTreeSet::new();
    let mut todo: Vec<StorePathHash> = roots.into_iter().collect();
    while let Some(hash) = todo.pop() {
        if let Some(candidate) = candidates.get(&hash)
            && reached.insert(hash)
        {
            todo.extend(&candidate.references);
        }
    }
    reached
}

/// Every path that is not in the closure of `pinned`, least recently used first, referrers before
/// their references.
///
/// The pair's second half is the effective last use, a referrer's being one of its references too. A
/// path whose last use is its referrer's comes after it; in a cycle, which Nix does not make, the order
/// is arbitrary but stable.
pub fn eviction_order(
    candidates: &Candidates,
    pinned: impl IntoIterator<Item = StorePathHash>,
) -> Vec<(StorePathHash, LastUse)> {
    let kept = closure(candidates, pinned);
    let order = referrers_first(candidates);
    let mut last_uses: BTreeMap<StorePathHash, LastUse> = candidates
        .iter()
        .map(|(hash, candidate)| (*hash, candidate.last_use))
        .collect();
    for hash in &order {
        let own = last_uses[hash];
        for reference in &candidates[hash].references {
            if let Some(last_use) = last_uses.get_mut(reference) {
                *last_use = own.max(*last_use);
            }
        }
    }
    let mut evictable: Vec<(StorePathHash, LastUse)> = order
        .into_iter()
        .filter(|hash| !kept.contains(hash))
        .map(|hash| (hash, last_uses[&hash]))
        .collect();
    // Stable: among equals the topological order stays.
    evictable.sort_by_key(|(_, last_use)| *last_use);
    evictable
}

/// All paths, each before those it refers to (depth first, so that recursion needs no stack).
fn referrers_first(candidates: &Candidates) -> Vec<StorePathHash> {
    enum Step {
        Enter(StorePathHash),
        Leave(StorePathHash),
    }
    let mut seen = BTreeSet::new();
    let mut references_first = Vec::with_capacity(candidates.len());
    for root in candidates.keys() {
        let mut todo = vec![Step::Enter(*root)];
        while let Some(step) = todo.pop() {
            match step {
                Step::Enter(hash) if candidates.contains_key(&hash) && seen.insert(hash) => {
                    todo.push(Step::Leave(hash));
                    todo.extend(
                        candidates[&hash]
                            .references
                            .iter()
                            .copied()
                            .map(Step::Enter),
                    );
                }
                Step::Enter(_) => {}
                Step::Leave(hash) => references_first.push(hash),
            }
        }
    }
    references_first.reverse();
    references_first
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hash(index: u8) -> StorePathHash {
        StorePathHash::from_bytes([index; 20])
    }

    fn at(at: u64) -> LastUse {
        LastUse { at, seq: 0 }
    }

    fn graph(rows: &[(u8, &[u8], u64)]) -> Candidates {
        rows.iter()
            .map(|(index, references, accessed_at)| {
                let references = references.iter().copied().map(hash).collect();
                (
                    hash(*index),
                    Candidate {
                        references,
                        last_use: at(*accessed_at),
                    },
                )
            })
            .collect()
    }

    fn order(candidates: &Candidates, pinned: &[u8]) -> Vec<(u8, u64)> {
        eviction_order(candidates, pinned.iter().copied().map(hash))
            .into_iter()
            .map(|(hash, last_use)| (hash.as_bytes()[0], last_use.at))
            .collect()
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let candidates = graph(&[(1, &[], 30), (2, &[], 10), (3, &[], 20)]);
        assert_eq!(order(&candidates, &[]), [(2, 10), (3, 20), (1, 30)]);
    }

    #[test]
    fn a_reference_is_as_fresh_as_its_freshest_referrer() {
        let candidates = graph(&[
            (1, &[9], 50),
            (2, &[9, 2], 10),
            (3, &[], 20),
            (9, &[8], 1),
            (8, &[], 1),
        ]);
        assert_eq!(
            order(&candidates, &[]),
            [(2, 10), (3, 20), (1, 50), (9, 50), (8, 50)]
        );
    }

    #[test]
    fn within_a_second_what_was_published_first_goes_first() {
        // Path 4 refers to path 1, which goes after it.
        let rows = [
            ([1, 2, 3, 4], [2, 3, 4, 1]),
            ([4, 3, 2, 1], [4, 3, 2, 1]),
            ([2, 4, 1, 3], [3, 4, 1, 2]),
        ];
        for (numbers, expected) in rows {
            let mut candidates = graph(&[(1, &[], 7), (2, &[], 7), (3, &[], 7), (4, &[1], 7)]);
            for (candidate, seq) in candidates.values_mut().zip(numbers) {
                candidate.last_use.seq = seq;
            }
            let order = order(&candidates, &[]);
            assert_eq!(order, expected.map(|index| (index, 7)), "{numbers:?}");
        }
    }

    #[test]
    fn a_pin_keeps_its_closure() {
        let candidates = graph(&[(1, &[2, 77], 1), (2, &[3], 1), (3, &[], 1), (4, &[3], 9)]);
        assert_eq!(order(&candidates, &[1, 66]), [(4, 9)]);
    }

    #[test]
    fn cycles_end() {
        let candidates = graph(&[(1, &[2], 1), (2, &[1], 5)]);
        assert_eq!(order(&candidates, &[]).len(), 2);
        assert!(order(&candidates, &[2]).is_empty());
    }

    proptest! {
        /// G6, G7: however many paths go, no path that stays has lost a reference.
        #[test]
        fn no_prefix_of_the_order_breaks_a_closure(
            edges in proptest::collection::vec((0u8..20, 0u8..20), 0..60),
            times in proptest::collection::vec(0u64..5, 20),
            numbers in proptest::collection::vec(0u64..5, 20),
            pinned in proptest::collection::vec(0u8..20, 0..3),
        ) {
            let mut candidates = graph(&[]);
            for (index, time) in times.iter().enumerate() {
                let references = edges
                    .iter()
                    .filter(|(from, to)| usize::from(*from) == index && to > from)
                    .map(|(_, to)| hash(*to))
                    .collect();
                let last_use = LastUse { at: *time, seq: numbers[index] };
                candidates.insert(hash(index as u8), Candidate { references, last_use });
            }
            let mut left = candidates.clone();
            for (gone, _) in eviction_order(&candidates, pinned.iter().copied().map(hash)) {
                left.remove(&gone);
                for candidate in left.values() {
                    prop_assert!(candidate.references.iter().all(|to| left.contains_key(to)));
                }
            }
        }
    }
}
