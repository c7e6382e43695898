//! Groups paths into units of transfer: pure.
//!
//! A path with a large NAR travels alone; small ones share the price of a round trip and of a commit.
//! Batches are in an order in which every reference of a path lies in its own or an earlier batch,
//! and each names the batches it follows, so that a cache never shows a path before what it needs.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use attic_store::narinfo::PathInfo;
use attic_store::store_path::StorePath;

/// Some paths that are read, sent and committed together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Positions in the list that was batched; never empty, references before referrers.
    pub paths: Vec<usize>,
    /// Positions of the earlier batches that hold references of these paths.
    pub after: BTreeSet<usize>,
}

/// Groups `infos`, each path once, into batches.
pub fn batches(infos: &[&PathInfo]) -> Vec<Batch> {
    let groups = group(infos, &references_first(infos));
    let mut batch_of = BTreeMap::new();
    for (number, group) in groups.iter().enumerate() {
        batch_of.extend(group.iter().map(|&at| (&infos[at].path, number)));
    }
    let batch = |(number, paths): (usize, Vec<usize>)| {
        let references = paths.iter().flat_map(|&at| &infos[at].references);
        let batches = references.filter_map(|path| batch_of.get(path).copied());
        let after = batches.filter(|&earlier| earlier < number).collect();
        Batch { paths, after }
    };
    groups.into_iter().enumerate().map(batch).collect()
}

/// Deals the paths out in `order`. A large one goes at once, before the small ones that are still
/// being bundled; unless it needs one of them.
fn group(infos: &[&PathInfo], order: &[usize]) -> Vec<Vec<usize>> {
    let mut groups = Vec::new();
    let mut bundle = Bundle::default();
    for &at in order {
        let info = infos[at];
        if info.nar_size > BUNDLED_NAR_LEN_MAX {
            if info
                .references
                .iter()
                .any(|reference| bundle.names.contains(reference))
            {
                groups.push(mem::take(&mut bundle).paths);
            }
            groups.push(vec![at]);
            continue;
        }
        if !bundle.has_room_for(info) {
            groups.push(mem::take(&mut bundle).paths);
        }
        bundle.add(at, info);
    }
    groups.push(bundle.paths);
    groups.retain(|group| !group.is_empty());
    groups
}

/// Small paths that will travel together.
#[derive(Default)]
struct Bundle<'a> {
    paths: Vec<usize>,
    names: BTreeSet<&'a StorePath>,
    nar_bytes: u64,
    references: usize,
}

impl<'a> Bundle<'a> {
    fn has_room_for(&self, info: &PathInfo) -> bool {
        self.paths.len() < BUNDLE_PATHS_MAX
            && self.nar_bytes + info.nar_size <= BUNDLE_NAR_LEN_MAX
            && self.references + info.references.len() <= BUNDLE_REFERENCES_MAX
    }

    fn add(&mut self, at: usize, info: &'a PathInfo) {
        self.paths.push(at);
        self.names.insert(&info.path);
        self.nar_bytes += info.nar_size;
        self.references += info.references.len();
    }
}

/// Positions of `infos`, references before referrers; otherwise in the given order. A cycle, which
/// no Nix store has, is broken somewhere.
fn references_first(infos: &[&PathInfo]) -> Vec<usize> {
    let position: BTreeMap<_, _> = infos
        .iter()
        .enumerate()
        .map(|(at, i)| (&i.path, at))
        .collect();
    let references = |at: usize| {
        infos[at]
            .references
            .iter()
            .filter_map(|path| position.get(path))
    };
    let mut seen = vec![false; infos.len()];
    let mut order = Vec::with_capacity(infos.len());
    for root in 0..infos.len() {
        if mem::replace(&mut seen[root], true) {
            continue;
        }
        let mut open = vec![(root, references(root))];
        while let Some((at, rest)) = open.last_mut() {
            match rest.next() {
                Some(&next) if !mem::replace(&mut seen[next], true) => {
                    open.push((next, references(next)));
                }
                Some(_) => {}
                None => {
                    order.push(*at);
                    open.pop();
                }
            }
        }
    }
    order
}

/// A larger NAR fills requests by itself.
const BUNDLED_NAR_LEN_MAX: u64 = 2 << 20;
/// Bytes of NAR in one bundle: what a worker reads again when something goes wrong.
const BUNDLE_NAR_LEN_MAX: u64 = 8 << 20;
const BUNDLE_PATHS_MAX: usize = 64;
/// References are names of up to 244 bytes in the head of a commit, whose body may be as short as a
/// MiB.
const BUNDLE_REFERENCES_MAX: usize = 2048;

#[cfg(test)]
mod tests {
    use attic_store::hash::NarHash;
    use attic_store::store_path::StorePathHash;

    use super::*;

    fn path(number: u8) -> StorePath {
        StorePath::new(StorePathHash::from_bytes([number; 20]), "x").unwrap()
    }

    fn info(number: u8, nar_size: u64, references: &[u8]) -> PathInfo {
        PathInfo {
            path: path(number),
            nar_hash: NarHash::from_bytes([number; 32]),
            nar_size,
            references: references.iter().copied().map(path).collect(),
            deriver: None,
            ca: None,
            signatures: Vec::new(),
        }
    }

    /// Rows are (number, NAR size, references); batches are shown as numbers and `after`.
    fn check(rows: &[(u8, u64, &[u8])], wanted: &[(&[usize], &[usize])]) {
        let infos: Vec<_> = rows
            .iter()
            .map(|(n, size, refs)| info(*n, *size, refs))
            .collect();
        let batches = batches(&infos.iter().collect::<Vec<_>>());
        let found: Vec<_> = batches
            .into_iter()
            .map(|b| (b.paths, Vec::from_iter(b.after)))
            .collect();
        let wanted: Vec<_> = wanted
            .iter()
            .map(|(p, a)| (p.to_vec(), a.to_vec()))
            .collect();
        assert_eq!(found, wanted);
    }

    const LARGE: u64 = BUNDLED_NAR_LEN_MAX + 1;

    #[test]
    fn small_paths_share_a_batch_and_references_come_first() {
        check(&[], &[]);
        check(&[(0, 1, &[0])], &[(&[0], &[])]);
        check(
            &[(0, 1, &[2]), (1, 1, &[]), (2, 1, &[1])],
            &[(&[1, 2, 0], &[])],
        );
    }

    #[test]
    fn a_large_path_goes_alone_and_before_a_bundle_it_does_not_need() {
        check(
            &[(0, 1, &[]), (1, LARGE, &[]), (2, 1, &[1])],
            &[(&[1], &[]), (&[0, 2], &[0])],
        );
        check(
            &[(0, 1, &[]), (1, LARGE, &[0]), (2, 1, &[1])],
            &[(&[0], &[]), (&[1], &[0]), (&[2], &[1])],
        );
    }

    #[test]
    fn bundles_are_bounded_in_paths_and_bytes() {
        let many: Vec<_> = (0..130).map(|n| (n, 1, &[] as &[u8])).collect();
        let infos: Vec<_> = many
            .iter()
            .map(|(n, size, refs)| info(*n, *size, refs))
            .collect();
        let lens = |infos: &[PathInfo]| {
            let batches = batches(&infos.iter().collect::<Vec<_>>());
            batches
                .iter()
                .map(|batch| batch.paths.len())
                .collect::<Vec<_>>()
        };
        assert_eq!(lens(&infos), [64, 64, 2]);
        let heavy: Vec<_> = (0..10).map(|n| info(n, BUNDLED_NAR_LEN_MAX, &[])).collect();
        assert_eq!(lens(&heavy), [4, 4, 2]);
    }

    #[test]
    fn a_cycle_loses_no_path_and_never_waits_forward() {
        let rows: Vec<_> = [(0, LARGE, &[1u8]), (1, LARGE, &[2]), (2, LARGE, &[0])].to_vec();
        let infos: Vec<_> = rows
            .iter()
            .map(|(n, size, refs)| info(*n, *size, *refs))
            .collect();
        let batches = batches(&infos.iter().collect::<Vec<_>>());
        assert_eq!(batches.len(), 3);
        for (number, batch) in batches.iter().enumerate() {
            assert!(batch.after.iter().all(|earlier| *earlier < number));
        }
    }
}
