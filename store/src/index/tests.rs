use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::narinfo::PathInfo;

fn cache() -> CacheName {
    "main".parse().expect("cache name")
}

fn path_row(index: u8, published_at: u64) -> Change {
    let path = format!("{}-p", StorePathHash::from_bytes([index; 20]));
    Change::Path(PathRow {
        cache: cache(),
        info: PathInfo {
            path: path.parse().expect("store path"),
            nar_hash: NarHash::from_bytes([(published_at % 3) as u8; 32]),
            nar_size: 1,
            references: BTreeSet::new(),
            deriver: None,
            ca: None,
            signatures: Vec::new(),
        },
        published_at,
    })
}

fn state(rows: &[Row]) -> Vec<PathRow> {
    let dir = tempfile::tempdir().expect("temporary folder");
    let index = Index::open(dir.path(), 0).expect("opens");
    rows.iter()
        .for_each(|row| index.apply(row).expect("applies"));
    let paths: Vec<PathRow> = index
        .paths(&cache(), None)
        .collect::<Result<_, _>>()
        .expect("lists");
    for nar in (0..3).map(|byte| NarHash::from_bytes([byte; 32])) {
        assert_eq!(
            index.shows_nar(&cache(), &nar).expect("reads"),
            paths.iter().any(|row| row.info.nar_hash == nar),
            "a NAR is shown while a path has it: {rows:?}"
        );
    }
    paths
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (0u8..3, 0u64..100).prop_map(|(index, at)| path_row(index, at)),
        2 => (0u8..3).prop_map(|index| {
            Change::RemovePath(cache(), StorePathHash::from_bytes([index; 20]))
        }),
        1 => Just(Change::PurgeCache(cache())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// A rebuild reads packs in any order, and a restart applies some rows twice.
    #[test]
    fn the_order_of_rows_does_not_matter(
        changes in proptest::collection::vec(change(), 1..10),
        shuffled in Just((0..10usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let rows: Vec<Row> = changes
            .into_iter()
            .enumerate()
            .map(|(seq, change)| Row { seq: seq as u64 + 1, change })
            .collect();
        let mut twice: Vec<Row> =
            shuffled.iter().filter_map(|index| rows.get(*index)).cloned().collect();
        twice.extend(rows.iter().step_by(2).cloned());
        prop_assert_eq!(state(&rows), state(&twice));
    }
}

/// An index made before it knew which NARs a cache shows learns it from its paths.
#[test]
fn an_older_index_learns_which_nars_its_caches_show() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let index = Index::open(dir.path(), 0).expect("opens");
    let change = path_row(1, 2);
    index.apply(&Row { seq: 1, change }).expect("applies");
    index.nar_of.clear().expect("clears");
    drop(index);
    let index = Index::open(dir.path(), 0).expect("opens");
    let shows = |byte| index.shows_nar(&cache(), &NarHash::from_bytes([byte; 32]));
    assert!(shows(2).expect("reads") && !shows(1).expect("reads"));
}

/// Nor is it deleted as a damaged one would be.
#[test]
fn an_index_in_use_is_opened_when_it_is_free() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let index = Index::open(dir.path(), 0).expect("opens");
    let second = sled::Config::new().path(dir.path()).open();
    assert!(is_in_use(&second.expect_err("it is in use")));
    thread::scope(|scope| {
        let opened = scope.spawn(|| Index::open(dir.path(), 0));
        drop(index);
        assert!(opened.join().expect("no panic").is_ok());
    });
}

#[test]
fn caches_do_not_see_each_other() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let index = Index::open(dir.path(), 0).expect("opens");
    index
        .apply(&Row {
            seq: 1,
            change: path_row(1, 5),
        })
        .expect("applies");
    let longer: CacheName = "main2".parse().expect("cache name");
    assert_eq!(index.paths(&cache(), None).count(), 1);
    assert_eq!(index.paths(&longer, None).count(), 0);
    index
        .apply(&Row {
            seq: 2,
            change: Change::PurgeCache(longer),
        })
        .expect("applies");
    assert_eq!(index.paths(&cache(), None).count(), 1);
}
