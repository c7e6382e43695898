use std::collections::BTreeSet;

use attic_store::PackId;

use super::*;
use crate::identity::Identity;
use crate::ids::Dot;
use crate::journal::{Reference, condemnations_key};

fn pack(n: u8) -> PackId {
    PackId::from_bytes([n; 16])
}

fn packs<const N: usize>(numbers: [u8; N]) -> BTreeSet<PackId> {
    numbers.map(pack).into()
}

fn sets<const N: usize, const M: usize>(condemned: [u8; N], doomed: [u8; M]) -> Condemnations {
    Condemnations {
        condemned: packs(condemned),
        doomed: packs(doomed),
    }
}

fn keeper(seed: u8) -> NodeId {
    Identity::from_seed([seed; 32]).node_id()
}

/// What is to be written next, and what follows once it is.
#[track_caller]
fn written(collector: Collector) -> (u64, Condemnations, Collector) {
    let Collector::Write(write) = collector else {
        panic!("nothing is to be written: {collector:?}");
    };
    let sets = write.condemnations().clone();
    (write.version(), sets, write.written())
}

#[test]
fn a_collection_condemns_looks_dooms_deletes_and_forgets() {
    let Collector::Idle(idle) = Collector::resume(6, []) else {
        panic!("there is something to go on with");
    };
    let (version, said, collector) = written(idle.condemn(packs([1, 2, 3])));
    assert_eq!((version, said), (7, sets([1, 2, 3], [])));
    let Collector::Look(look) = collector else {
        panic!("{collector:?}");
    };
    assert_eq!(look.condemned(), &packs([1, 2, 3]));
    let (version, said, collector) = written(look.looked(&packs([2, 9])));
    assert_eq!((version, said), (8, sets([], [1, 3])));
    let Collector::Delete(delete) = collector else {
        panic!("{collector:?}");
    };
    assert_eq!(delete.left(), &packs([1, 3]));
    let Collector::Delete(delete) = delete.looked(|left| *left == pack(3)) else {
        panic!("one is still there");
    };
    assert_eq!(
        (delete.left(), delete.doomed()),
        (&packs([3]), &packs([1, 3]))
    );
    let (version, said, collector) = written(delete.looked(|_| false));
    assert_eq!((version, said), (9, sets([], [])));
    assert!(matches!(collector, Collector::Idle(_)));
}

#[test]
fn what_is_all_referred_to_is_named_no_more() {
    let (_, _, collector) = written(Collector::resume(1, [&sets([1], [])]));
    let Collector::Look(look) = collector else {
        panic!("{collector:?}");
    };
    let (version, said, collector) = written(look.looked(&packs([1])));
    assert_eq!((version, said), (3, sets([], [])));
    assert!(matches!(collector, Collector::Idle(_)));
}

#[test]
fn a_start_goes_on_with_what_the_highest_version_says() {
    let condemned = sets([1], []);
    let doomed = sets([], [1, 2]);
    let nothing = sets([], []);
    for (found, expected) in [
        (vec![], None),
        (vec![&nothing], None),
        (vec![&condemned], Some(sets([1], []))),
        (vec![&doomed], Some(sets([], [1, 2]))),
        (vec![&doomed, &nothing], Some(sets([], [1, 2]))),
        // One of them came late, so neither was acted upon.
        (vec![&doomed, &condemned], Some(sets([1], [2]))),
    ] {
        let collector = Collector::resume(4, found.clone());
        let Some(expected) = expected else {
            assert!(matches!(collector, Collector::Idle(_)), "{found:?}");
            continue;
        };
        let (version, said, _) = written(collector);
        assert_eq!((version, said), (5, expected), "{found:?}");
    }
}

#[test]
fn what_is_doomed_is_said_twice_before_it_is_deleted() {
    let (one, first, collector) = written(Collector::resume(4, [&sets([], [1])]));
    let (two, second, collector) = written(collector);
    assert_eq!((one, first), (5, sets([], [1])));
    assert_eq!((two, second), (6, sets([], [1])));
    assert!(matches!(collector, Collector::Delete(_)));
}

#[test]
fn a_keeper_condemns_a_bounded_number_at_once() {
    let Collector::Idle(idle) = Collector::resume(0, []) else {
        panic!("there is something to go on with");
    };
    let many = (0..CONDEMNED_MAX as u128 + 5).map(|n| PackId::from_bytes(n.to_le_bytes()));
    let mut many = many.collect::<Vec<_>>().into_iter();
    let (_, said, _) = written(idle.clone().condemn(many.by_ref()));
    assert_eq!(said.condemned.len(), CONDEMNED_MAX);
    assert_eq!(many.len(), 5, "what is left is for the next time");
    assert_eq!(idle.clone().condemn([]), Collector::Idle(idle));
}

#[test]
fn the_highest_version_and_the_one_before_are_not_outdated() {
    let (one, two) = (keeper(1), keeper(2));
    let key = |keeper, version, random| condemnations_key(keeper, version, random);
    let keys = [
        key(&one, 3, 1),
        key(&one, 5, 2),
        key(&one, 9, 3),
        key(&one, 9, 4),
        key(&two, 1, 5),
        "gc/".to_owned(),
    ];
    let all: Vec<&str> = keys.iter().map(String::as_str).collect();
    assert_eq!(outdated(&one, &all), [keys[0].as_str()]);
    assert_eq!(outdated(&one, &all[1..]), Vec::<&str>::new());
    assert_eq!(outdated(&two, &all), Vec::<&str>::new());
}

fn dot(seq: u64) -> Dot {
    Dot {
        node: keeper(3),
        seq,
        index: 0,
    }
}

fn reference<const N: usize>(seq: u64, packs: [u8; N]) -> Reference {
    Reference {
        dot: dot(seq),
        packs: packs.map(|n| (pack(n), 10)).into(),
    }
}

#[test]
fn a_record_is_durable_whose_packs_nobody_condemned_and_that_are_there() {
    let references = vec![
        reference(1, [1, 2]),
        reference(2, [2, 3]),
        reference(3, [4]),
        reference(4, [1, 5]),
    ];
    let Writer::Refer(refer) = Writer::new(references.clone()) else {
        panic!("references come first");
    };
    assert_eq!(refer.references(), references);
    let Writer::List(list) = refer.written() else {
        panic!("then condemnations are listed");
    };
    let (one, two) = (keeper(1), keeper(2));
    let keys = [
        condemnations_key(&one, 1, 7),
        condemnations_key(&one, 2, 7),
        condemnations_key(&one, 2, 8),
        condemnations_key(&two, 9, 7),
        "gc/".to_owned(),
    ];
    let mut writer = list.listed(keys.iter().map(String::as_str)).unwrap();
    let mut asked = Vec::new();
    let seek = loop {
        writer = match writer {
            Writer::Read(read) => {
                let (keeper, key) = read.next();
                asked.push((*keeper, key.to_owned()));
                let sets = match key == keys[3] {
                    true => sets([], [3]),
                    false => sets([9], []),
                };
                read.read(&sets)
            }
            Writer::Seek(seek) => break seek,
            other => panic!("{other:?}"),
        };
    };
    let mut newest = vec![
        (one, keys[1].clone()),
        (one, keys[2].clone()),
        (two, keys[3].clone()),
    ];
    newest.sort();
    asked.sort();
    assert_eq!(asked, newest, "all of the highest number");
    assert_eq!(seek.packs(), &packs([1, 2, 4, 5]), "3 is doomed");
    let Writer::Done(done) = seek.sought(&packs([1, 2, 4])) else {
        panic!("nothing is left to do");
    };
    assert_eq!(done.durable, [dot(1), dot(3)]);
    assert_eq!(done.unreliable, packs([3, 5]));
}

#[test]
fn nothing_is_durable_beside_what_cannot_be_understood() {
    for odd in ["gc/other", "gc/v2/x-1", "gc/v2/0000000000000001-00000001"] {
        let Writer::Refer(refer) = Writer::new(vec![reference(1, [1])]) else {
            panic!("references come first");
        };
        let Writer::List(list) = refer.written() else {
            panic!("then condemnations are listed");
        };
        assert_eq!(list.listed([odd]), Err(Unreadable(odd.to_owned())));
    }
}
