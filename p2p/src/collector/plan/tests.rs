use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::journal::Reference;

const DAY: u64 = 24 * 60 * 60;
const NOW: UnixTime = UnixTime(1_000 * DAY);

fn pack(n: u8) -> PackId {
    PackId::from_bytes([n; 16])
}

fn node(n: u8) -> NodeId {
    NodeId::from_bytes([n; 32])
}

fn dot(n: u64) -> Dot {
    Dot {
        node: node(n as u8 % 3),
        seq: n,
        index: 0,
    }
}

fn listed(n: u8, len: u64, age: u64) -> Listed {
    Listed {
        pack: pack(n),
        len,
        modified: UnixTime(NOW.0 - age),
    }
}

fn references(said: &[(u64, &[(u8, u32)])]) -> References {
    let mut references = References::default();
    for (record, packs) in said {
        let reference = Reference {
            dot: dot(*record),
            packs: packs.iter().map(|(n, len)| (pack(*n), *len)).collect(),
        };
        references.add(&reference).unwrap();
    }
    references
}

fn input<'a>(listed: &'a [Listed], references: &'a References) -> PlanInput<'a> {
    PlanInput {
        listed,
        references,
        damaged: &[],
        others: &[],
        now: Clocks {
            server: NOW,
            own: NOW,
        },
        limits: Limits {
            share_max_percent: 100,
            ..Limits::default()
        },
    }
}

/// Records 1 to 9 are durable, 11 to 19 live, 21 to 29 linger, 31 to 39 are not known, others are dead.
fn life(dot: &Dot) -> Life {
    match dot.seq {
        1..=9 => Life::Durable,
        11..=19 => Life::Live,
        21..=29 => Life::Lingering,
        31..=39 => Life::Unknown,
        _ => Life::Dead,
    }
}

const MIB: u64 = 1 << 20;

#[test]
fn each_pack_stays_or_goes_for_a_reason() {
    let said = references(&[
        (1, &[(1, 100), (2, 7)]),
        (1, &[(1, 120)]),
        (11, &[(1, 50)]),
        (21, &[(2, 9), (3, 9)]),
        (31, &[(3, 9), (4, 9)]),
        (21, &[(5, 9)]),
        (41, &[(5, 9), (6, 9), (7, 9)]),
        (u64::MAX, &[(10, 9)]),
    ]);
    let ages = [
        (1, 0),
        (2, 0),
        (3, 0),
        (4, 0),
        (5, 0),
        (6, 0),
        (7, 0),
        (8, 2 * DAY - 1),
        (9, 2 * DAY),
        (10, 0),
    ];
    let packs = ages.map(|(n, age)| listed(n, 16 * MIB, age));
    let others = [(
        node(9),
        Condemnations {
            condemned: BTreeSet::from([pack(7), pack(1)]),
            doomed: BTreeSet::new(),
        },
    )];
    let plan = Plan::new(
        PlanInput {
            others: &others,
            ..input(&packs, &said)
        },
        life,
    );
    let fates: Vec<Fate> = plan.packs.iter().map(|(_, fate)| *fate).collect();
    let live = |len_max, mixed| Fate::Stays(Blocked::Live { len_max, mixed });
    assert_eq!(
        fates,
        [
            live(170, false),
            live(7, true),
            Fate::Stays(Blocked::Unknown),
            Fate::Stays(Blocked::Unknown),
            Fate::Stays(Blocked::Lingering),
            Fate::Dead,
            Fate::Stays(Blocked::Condemned(node(9))),
            Fate::Stays(Blocked::Young),
            Fate::Unnamed,
            Fate::Dead,
        ]
    );
    let going: Vec<PackId> = plan.going().unwrap().collect();
    assert_eq!(going, [pack(6), pack(9), pack(10)]);
    let expected = Totals {
        packs: 10,
        bytes: 160 * MIB,
        going: 3,
        freed: 48 * MIB,
    };
    assert_eq!(plan.totals, expected);
    assert_eq!(
        plan.repack().collect::<Vec<_>>(),
        [(pack(1), Repack::Sparse)]
    );
}

#[test]
fn what_is_sparse_or_small_is_written_anew() {
    let said = references(&[(
        1,
        &[(1, 8 << 20), (2, (8 << 20) - 1), (3, 3 << 20), (4, 4 << 20)],
    )]);
    let packs = [
        listed(1, 16 * MIB, 0),
        listed(2, 16 * MIB, 0),
        listed(3, 4 * MIB - 1, 0),
        listed(4, 4 * MIB, 0),
    ];
    let plan = Plan::new(input(&packs, &said), life);
    let anew: Vec<_> = plan.repack().collect();
    assert_eq!(anew, [(pack(2), Repack::Sparse), (pack(3), Repack::Small)]);
}

#[test]
fn records_without_a_whole_reference_are_told() {
    let said = references(&[
        (1, &[(1, 1), (9, 1)]),
        (1, &[(1, 1)]),
        (2, &[(9, 1)]),
        (11, &[(8, 1)]),
        (21, &[(8, 1)]),
        (41, &[(8, 1)]),
    ]);
    let packs = [listed(1, MIB, 0)];
    let plan = Plan::new(input(&packs, &said), life);
    assert_eq!(plan.broken, {
        let mut broken = vec![dot(2), dot(11)];
        broken.sort();
        broken
    });
    assert_eq!(plan.stops, [Stop::Lost { records: 1 }], "one is durable");
}

#[test]
fn doubt_stops_it() {
    let said = References::default();
    let packs: Vec<Listed> = (0..10).map(|n| listed(n, MIB, 3 * DAY)).collect();
    let few = input(&packs, &said);
    let check = |input: PlanInput<'_>, expected: Option<Stop>| {
        let plan = Plan::new(input, |_| Life::Dead);
        assert_eq!(plan.stops.first(), expected.as_ref());
        assert_eq!(plan.going().is_err(), expected.is_some());
        assert_eq!(plan.would_go().count(), 10, "a dry run shows them");
    };
    check(few, None);
    let too_many = Stop::TooMany {
        going: 10,
        packs: 10,
        max_percent: 20,
    };
    check(
        PlanInput {
            limits: Limits::default(),
            ..few
        },
        Some(too_many),
    );
    let key = "log/x".to_owned();
    check(
        PlanInput {
            damaged: std::slice::from_ref(&key),
            ..few
        },
        Some(Stop::Damaged { key: key.clone() }),
    );
    let hour = 60 * 60;
    for (own, is_wrong) in [
        (NOW.0 - hour, false),
        (NOW.0 - hour - 1, true),
        (NOW.0 + hour + 1, true),
    ] {
        let now = Clocks {
            server: NOW,
            own: UnixTime(own),
        };
        let apart = Duration::from_secs(hour + 1);
        check(
            PlanInput { now, ..few },
            is_wrong.then_some(Stop::Clocks { apart }),
        );
    }
    let fifth = |going: u8| {
        let packs: Vec<Listed> = (0..10)
            .map(|n| listed(n, MIB, if n < going { 3 * DAY } else { 0 }))
            .collect();
        let input = PlanInput {
            limits: Limits::default(),
            ..input(&packs, &said)
        };
        Plan::new(input, |_| Life::Dead).stops.len()
    };
    assert_eq!((fifth(2), fifth(3)), (0, 1), "a fifth may go");
}

fn any_life() -> impl Strategy<Value = Life> {
    prop_oneof![
        Just(Life::Durable),
        Just(Life::Live),
        Just(Life::Lingering),
        Just(Life::Unknown),
        Just(Life::Dead),
        Just(Life::Dead),
    ]
}

type Said = Vec<(u64, Vec<(u8, u32)>)>;

fn any_said() -> impl Strategy<Value = Said> {
    let needs = prop::collection::vec((0..24_u8, any::<u32>()), 0..5);
    prop::collection::vec((0..12_u64, needs), 0..40)
}

proptest! {
    #[test]
    fn no_pack_goes_that_a_record_may_need(
        said in any_said(),
        lives in prop::collection::vec(any_life(), 12),
        ages in prop::collection::vec((0..24_u8, 0..5 * DAY), 0..30),
        others in prop::collection::btree_set((0..24_u8).prop_map(pack), 0..6),
    ) {
        let borrowed: Vec<(u64, &[(u8, u32)])> =
            said.iter().map(|(record, needs)| (*record, &needs[..])).collect();
        let said_all = references(&borrowed);
        let packs: Vec<Listed> = ages.iter().map(|(n, age)| listed(*n, 5 * MIB, *age)).collect();
        let others = [(node(7), Condemnations { condemned: others, doomed: BTreeSet::new() })];
        let life = |dot: &Dot| lives[dot.seq as usize];
        let plan = Plan::new(PlanInput { others: &others, ..input(&packs, &said_all) }, life);

        let mut needed: BTreeMap<PackId, bool> = BTreeMap::new();
        for (record, needs) in &said {
            for (n, _) in needs {
                *needed.entry(pack(*n)).or_default() |= !life(&dot(*record)).is_over();
            }
        }
        for (listed, fate) in &plan.packs {
            let others = others[0].1.names(&listed.pack);
            let expected = match needed.get(&listed.pack) {
                Some(true) => false,
                Some(false) => !others,
                None => NOW.since(listed.modified) >= Limits::default().unnamed_age && !others,
            };
            prop_assert_eq!(fate.goes(), expected, "{:?} {:?}", listed, fate);
        }
        // The look before they are doomed comes to the same.
        let all: BTreeSet<PackId> = (0..24).map(pack).collect();
        let referred = said_all.referred(&all, life);
        let is_needed = |pack: &PackId| needed.get(pack) == Some(&true);
        let expected: BTreeSet<PackId> = all.iter().filter(|pack| is_needed(pack)).copied().collect();
        prop_assert_eq!(referred, expected);
    }
}
