//! Near the size cap: what is pushed finds room, and no more is evicted than that takes.

use attic_store::record::Pin;
use attic_store::{CollectOptions, ImportError, StoreError};

use super::*;

/// Pushes a closure under one lease as the node does: what is there is held, the rest is imported.
fn push(fixture: &Fixture, closure: &[(u8, &[u8], &[u8])], time: u64) -> Result<(), ImportError> {
    let store = fixture.store();
    let lease = store.lease();
    store.hold(&lease, closure.iter().map(|(_, nar, _)| hash_of(nar)));
    let is_there = |index: u8| store.path(&cache(), path(index).hash());
    for (index, _, _) in closure {
        if is_there(*index)?.is_some() {
            store.touch(&cache(), path(*index).hash(), time);
        }
    }
    for (index, nar, references) in closure {
        if is_there(*index)?.is_none() {
            let imported = store.import(&lease, &mut &nar[..])?;
            store.publish(vec![path_row(*index, &imported, references, time)])?;
        }
    }
    Ok(())
}

fn assert_below_cap(fixture: &Fixture) {
    let usage = fixture.store().usage();
    let size = usage.pack_bytes + usage.derived_bytes;
    let cap = usage.size_cap.expect("a cap");
    assert!(size <= cap + cap / 100, "{size} of {cap} bytes");
}

/// G7: two closures that fit one at a time, pushed in turn. The second used to share a pack with what
/// was evicted for it, which freed nothing: so all else was evicted, and it was refused.
#[test]
fn g7_closures_that_fit_in_turn_are_pushed_in_turn() {
    for pack_len_target in [256 << 10, 1 << 20, 64 << 20] {
        let fixture = Fixture::with(Options {
            pack_len_target,
            size_cap: Some((12 << 20) + derived_allowance()),
            ..Options::default()
        });
        let large = nar_of(&noise(400, 8 << 20));
        let (leaf, root) = (nar_of(&noise(401, 3 << 20)), nar_of(&noise(402, 5 << 20)));
        let first: &[(u8, &[u8], &[u8])] = &[(0, &large, &[])];
        let second: &[(u8, &[u8], &[u8])] = &[(1, &leaf, &[]), (2, &root, &[1])];
        // For the large one only the root has to go.
        for (turn, closure) in [first, second, first, second].into_iter().enumerate() {
            push(&fixture, closure, 10_000 * (1 + turn as u64)).expect("it fits");
            for (_, nar, _) in closure {
                fixture.assert_reads_back(nar);
            }
            let evicted = fixture.store().evicted_paths();
            assert_eq!(evicted, turn as u64, "packs of {pack_len_target} bytes");
            assert_below_cap(&fixture);
        }
        fixture.verify_is_clean();
    }
}

/// G7: many small closures that share packs, in turn and under one lease each.
#[test]
fn g7_small_closures_push_out_no_more_than_they_need() {
    let fixture = Fixture::with(Options {
        pack_len_target: 64 << 20,
        size_cap: Some((8 << 20) + derived_allowance()),
        ..Options::default()
    });
    let nars: Vec<Vec<u8>> = (0..120).map(|n| nar_of(&noise(500 + n, 200_000))).collect();
    for (turn, nar) in nars.iter().enumerate() {
        let index = turn as u8;
        push(&fixture, &[(index, nar, &[])], 10_000 * (1 + turn as u64)).expect("it fits");
        assert_below_cap(&fixture);
        let left = turn + 1 - fixture.store().evicted_paths() as usize;
        assert!(left > turn.min(30), "{left} are left after {turn}");
    }
}

/// A store near its cap whose oldest path is the largest.
fn nearly_full() -> (Fixture, Vec<u8>) {
    let fixture = Fixture::with(Options {
        pack_len_target: 1 << 20,
        size_cap: Some((8 << 20) + derived_allowance()),
        ..Options::default()
    });
    let oldest = nar_of(&noise(800, 3 << 20));
    push(&fixture, &[(0, &oldest, &[])], 1_000).expect("fits");
    (fixture, oldest)
}

/// Pushes path after path of 100 kB until `is_enough`.
fn fill(fixture: &Fixture, indices: &mut std::ops::Range<u8>, is_enough: impl Fn(u64) -> bool) {
    while !is_enough(fixture.store().evicted_paths()) {
        let index = indices.next().expect("enough before this many");
        let nar = nar_of(&noise(800 + u64::from(index), 100_000));
        push(fixture, &[(index, &nar, &[])], 10_000 + u64::from(index)).expect("fits");
        assert_below_cap(fixture);
    }
}

/// G7: what was evicted while somebody reads it goes when that ends; nothing goes in its place.
#[test]
fn g7_what_a_reader_holds_back_is_not_evicted_twice() {
    let (fixture, oldest) = nearly_full();
    let reader = fixture.store().open_nar(&hash_of(&oldest)).expect("opens");
    let indices = &mut (1..250);
    fill(&fixture, indices, |evicted| evicted > 0);
    let before = pack_bytes(&fixture);
    for _ in 0..3 {
        let index = indices.next().expect("an index");
        let nar = nar_of(&noise(3_000 + u64::from(index), 90_000));
        push(&fixture, &[(index, &nar, &[])], 20_000).expect("fits");
    }
    assert!(pack_bytes(&fixture) > before, "the reader holds it back");
    assert_eq!(fixture.store().evicted_paths(), 1);
    drop(reader);
    for _ in 0..10 {
        let index = indices.next().expect("an index");
        let nar = nar_of(&noise(4_000 + u64::from(index), 100_000));
        push(&fixture, &[(index, &nar, &[])], 30_000).expect("fits");
    }
    assert!(pack_bytes(&fixture) < before, "it is gone");
    assert_eq!(fixture.store().evicted_paths(), 1);
}

/// G7: at the cap itself a reader does not keep others from writing: then more is evicted.
#[test]
fn g7_at_the_cap_a_reader_keeps_nobody_out() {
    let (fixture, oldest) = nearly_full();
    let reader = fixture.store().open_nar(&hash_of(&oldest)).expect("opens");
    fill(&fixture, &mut (1..250), |evicted| evicted > 10);
    drop(reader);
}

/// G7: a cap that is set below what is stored evicts for the bytes that are too many, not for the packs
/// they lie in, which were written when there was no cap.
#[test]
fn g7_a_cap_below_what_is_stored_evicts_no_more_than_it_must() {
    let mut fixture = Fixture::with(Options {
        pack_len_target: 64 << 20,
        ..Options::default()
    });
    let nars: Vec<Vec<u8>> = (0..20).map(|n| nar_of(&noise(700 + n, 1 << 20))).collect();
    for (index, nar) in (0..).zip(&nars) {
        let references = (index % 10 > 0).then(|| index - 1);
        let references: Vec<u8> = references.into_iter().collect();
        push(
            &fixture,
            &[(index, nar, &references)],
            10_000 * (1 + u64::from(index)),
        )
        .expect("no cap");
    }
    fixture.options.size_cap = Some((14 << 20) + derived_allowance());
    fixture.reopen();
    let options = CollectOptions::default();
    let foreseen = fixture
        .store()
        .collect(&CollectOptions {
            dry_run: true,
            ..options
        })
        .unwrap();
    let report = fixture.store().collect(&options).unwrap();
    assert_eq!(report.evicted_paths, 10, "{report:?}");
    assert_eq!(foreseen.evicted_paths, 10, "{foreseen:?}");
    assert_below_cap(&fixture);
    nars[10..]
        .iter()
        .for_each(|nar| fixture.assert_reads_back(nar));
    fixture.verify_is_clean();
}

/// G6: with a pin as well.
#[test]
fn g7_a_cap_below_what_is_stored_is_reached_around_a_pin() {
    let mut fixture = Fixture::with(Options {
        pack_len_target: 64 << 20,
        ..Options::default()
    });
    let (kept, other) = (nar_of(&noise(800, 8 << 20)), nar_of(&noise(801, 8 << 20)));
    push(&fixture, &[(0, &kept, &[]), (1, &other, &[])], 10_000).expect("no cap");
    let pin = Pin {
        cache: cache(),
        name: "kept".to_owned(),
        path: path(0),
        keep: 1,
        created_at: 10_000,
    };
    fixture.store().pin(pin).unwrap();
    fixture.options.size_cap = Some((10 << 20) + derived_allowance());
    fixture.reopen();
    fixture.store().collect(&CollectOptions::default()).unwrap();
    assert_below_cap(&fixture);
    fixture.assert_reads_back(&kept);
    let small = nar_of(&noise(802, 100_000));
    push(&fixture, &[(2, &small, &[])], 20_000).expect("it fits");
}

/// G7: a path is not published by itself after what it refers to was evicted, also not by a store that
/// was closed in between, or killed; what comes back, and what can be had elsewhere, is no hindrance.
#[test]
fn g7_what_was_evicted_is_missed_by_what_refers_to_it() {
    for is_killed in [false, true] {
        let (mut fixture, oldest) = nearly_full();
        fill(&fixture, &mut (1..250), |evicted| evicted > 0);
        match is_killed {
            true => fixture.crash(),
            false => {
                fixture.store().close().unwrap();
                fixture.reopen();
            }
        }
        assert_missed_until_it_is_back(&fixture, &oldest);
    }
}

/// Path 0 was evicted; `oldest` is its NAR.
fn assert_missed_until_it_is_back(fixture: &Fixture, oldest: &[u8]) {
    let publish = |fixture: &Fixture, references: &[u8], elsewhere: &[u8]| {
        let store = fixture.store();
        let lease = store.lease();
        let imported = fixture.import(&lease, &nar_of(b"refers"));
        let row = path_row(251, &imported, references, 50_000);
        let elsewhere: Vec<_> = elsewhere.iter().map(|index| *path(*index).hash()).collect();
        store.publish_with_references(vec![row], |hash| elsewhere.contains(hash))
    };
    match publish(fixture, &[0, 251, 252], &[]) {
        Err(StoreError::ReferenceEvicted { reference, .. }) => assert_eq!(reference, path(0)),
        other => panic!("{other:?}"),
    }
    let found = fixture.store().path(&cache(), path(251).hash()).unwrap();
    assert!(found.is_none(), "nothing was changed");
    publish(fixture, &[251, 252], &[]).expect("252 never was there");
    publish(fixture, &[0, 252], &[0]).expect("it is elsewhere");
    push(fixture, &[(0, oldest, &[])], 60_000).expect("fits");
    publish(fixture, &[0, 252], &[]).expect("it is back");
    let hash = *path(0).hash();
    fixture.store().remove(&cache(), &[hash]).unwrap();
    publish(fixture, &[0, 251], &[]).expect("it was removed, not evicted");
}
