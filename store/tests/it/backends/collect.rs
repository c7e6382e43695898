//! Collection: garbage goes, nothing else does.

use std::collections::BTreeMap;

use attic_store::frame::FrameEncoder;
use attic_store::record::Pin;
use attic_store::{Assembled, ChunkId, CollectOptions, ImportError, StoreError};
use proptest::prelude::*;

use super::*;

const FULL: CollectOptions = CollectOptions {
    dry_run: false,
    full: true,
};

#[test]
fn removing_a_path_frees_only_what_it_did_not_share() {
    let fixture = Fixture::new();
    let shared = noise(50, 1_500_000);
    let first = nar_of(&[&shared[..], &noise(51, 1_500_000)].concat());
    let second = nar_of(&[&shared[..], &noise(52, 1_500_000)].concat());
    fixture.publish(1, &first, &[]);
    fixture.publish(2, &second, &[]);
    fixture
        .store()
        .remove(&cache(), &[*path(1).hash()])
        .expect("removes");
    let before = pack_bytes(&fixture);
    let plan = fixture
        .store()
        .collect(&CollectOptions {
            dry_run: true,
            full: true,
        })
        .expect("plans");
    assert_eq!(pack_bytes(&fixture), before, "a dry run changes nothing");
    assert!(
        plan.dropped_nars == 1 && plan.freed_bytes > 800_000,
        "{plan:?}"
    );
    let report = fixture.store().collect(&FULL).expect("collects");
    let freed = before - pack_bytes(&fixture);
    assert!((1_000_000..1_900_000).contains(&freed), "{report:?}");
    assert!(fixture.read(&hash_of(&first)).is_none());
    fixture.assert_reads_back(&second);
    fixture.verify_is_clean();
}

#[test]
fn nothing_is_left_when_everything_is_removed() {
    let fixture = Fixture::new();
    for index in 0..5 {
        fixture.publish(index, &nar_of(&noise(60 + u64::from(index), 400_000)), &[]);
    }
    fixture.store().purge_cache(&cache()).expect("purges");
    fixture.store().collect(&FULL).expect("collects");
    assert!(
        pack_bytes(&fixture) < 4_096,
        "{} bytes left",
        pack_bytes(&fixture)
    );
}

/// Packs that hold old rows and removals of others' used to keep each other's removals.
#[test]
fn one_full_collection_takes_removal_records_along() {
    let mut fixture = Fixture::with(Options {
        pack_len_target: 64 << 10,
        ..Options::default()
    });
    for index in 0..60 {
        fixture.publish(index, &nar_of(&noise(900 + u64::from(index), 20_000)), &[]);
        if index % 2 == 1 {
            let gone = [*path(index - 1).hash()];
            fixture.store().remove(&cache(), &gone).expect("removes");
        }
    }
    let rest: Vec<_> = (0..60).map(|index| *path(index).hash()).collect();
    fixture.store().remove(&cache(), &rest).expect("removes");
    fixture.store().collect(&FULL).expect("collects");
    let usage = fixture.store().usage();
    assert_eq!((usage.pack_bytes, usage.packs, usage.chunks), (0, 0, 0));
    fixture.reopen();
    for index in 0..60 {
        let row = fixture.store().path(&cache(), path(index).hash());
        assert!(row.expect("reads").is_none(), "{index} is back");
    }
}

#[test]
fn a_lease_keeps_chunks_that_no_path_needs() {
    let fixture = Fixture::with(Options {
        pack_len_target: 64 << 10,
        upload_grace: std::time::Duration::ZERO,
        ..Options::default()
    });
    let nar = nar_of(&noise(53, 500_000));
    let row = fixture.publish(1, &nar, &[]);
    fixture
        .store()
        .remove(&cache(), &[*path(1).hash()])
        .expect("removes");
    let lease = fixture.store().lease();
    // The re-push finds its chunks and sends nothing; then the collector runs.
    let again = fixture.import(&lease, &nar);
    assert_eq!(again.new_bytes, 0);
    let report = fixture.store().collect(&FULL).expect("collects");
    assert!(report.freed_bytes < 4_096, "{report:?}");
    fixture
        .store()
        .publish(vec![path_row(1, &again, &[], 0)])
        .expect("publishes");
    drop(lease);
    fixture.store().collect(&FULL).expect("collects");
    fixture.assert_reads_back(&nar);
    assert_eq!(row.info.nar_hash, again.nar_hash);
}

#[test]
fn an_upload_is_collected_after_its_grace() {
    let keep = Fixture::with(Options {
        pack_len_target: 1 << 20,
        ..Options::default()
    });
    let nar = nar_of(&noise(54, 100_000));
    let imported = keep.import(&keep.store().lease(), &nar);
    keep.store().collect(&FULL).expect("collects");
    assert!(keep.read(&imported.nar_hash).is_some(), "within its grace");
}

#[test]
fn a_reader_finishes_although_its_path_is_collected() {
    let fixture = Fixture::new();
    let nar = nar_of(&noise(55, 3_000_000));
    let row = fixture.publish(1, &nar, &[]);
    let reader = fixture
        .store()
        .open_nar(&row.info.nar_hash)
        .expect("opens")
        .expect("here");
    let mut blocks = reader.plain(0..u64::MAX);
    let mut plain = blocks
        .next_block()
        .expect("reads")
        .expect("a block")
        .to_vec();
    fixture
        .store()
        .remove(&cache(), &[*path(1).hash()])
        .expect("removes");
    fixture.store().collect(&FULL).expect("collects");
    while let Some(block) = blocks.next_block().expect("reads") {
        plain.extend_from_slice(&block);
    }
    assert!(plain == nar);
}

/// G6, G7 (cap): least recently used closures go first, pins stay, the cap holds.
#[test]
fn the_size_cap_evicts_the_least_recently_used() {
    let cap = 6 << 20;
    let fixture = Fixture::with(Options {
        pack_len_target: 256 << 10,
        size_cap: Some(cap + derived_allowance()),
        ..Options::default()
    });
    let pin = Pin {
        cache: cache(),
        name: "keep".into(),
        path: path(1),
        keep: 1,
        created_at: 0,
    };
    fixture.publish(0, &nar_of(&noise(70, 300_000)), &[]);
    fixture.publish(1, &nar_of(&noise(71, 300_000)), &[0]);
    fixture.store().pin(pin).expect("pins");
    for index in 2..40u8 {
        fixture.publish(index, &nar_of(&noise(70 + u64::from(index), 300_000)), &[]);
        let usage = fixture.store().usage();
        let size = usage.pack_bytes + usage.derived_bytes;
        let cap = usage.size_cap.expect("a cap");
        assert!(size <= cap + cap / 100, "{size} of {cap} bytes");
    }
    let left: Vec<u8> = fixture
        .store()
        .paths(&cache(), None, 100)
        .expect("lists")
        .iter()
        .map(|row| row.info.path.hash().as_bytes()[0])
        .collect();
    assert!(
        left.starts_with(&[0, 1]),
        "the pinned closure stays: {left:?}"
    );
    assert!(
        left.contains(&39) && !left.contains(&2),
        "the oldest went: {left:?}"
    );
    let youngest: Vec<u8> = (40 - (left.len() as u8 - 2)..40).collect();
    assert_eq!(left[2..], youngest, "in order of use");
    fixture.verify_is_clean();
}

/// G7: times of use count in seconds, and a second may see more published than the cap holds. Of those,
/// paths went by their hash: one could go before who published it had read it.
#[test]
fn g7_within_a_second_what_was_published_first_goes_first() {
    for hash_of_turn in [|turn: u8| turn, |turn: u8| 39 - turn] {
        let fixture = Fixture::with(Options {
            pack_len_target: 256 << 10,
            size_cap: Some((6 << 20) + derived_allowance()),
            ..Options::default()
        });
        let store = fixture.store();
        for turn in 0..40u8 {
            let lease = store.lease();
            let nar = nar_of(&noise(600 + u64::from(turn), 300_000));
            let imported = fixture.import(&lease, &nar);
            let row = path_row(hash_of_turn(turn), &imported, &[], 1_000);
            store.publish(vec![row]).expect("publishes");
        }
        let is_there = |turn: &u8| {
            let row = store.path(&cache(), path(hash_of_turn(*turn)).hash());
            row.expect("reads").is_some()
        };
        let left: Vec<u8> = (0..40).filter(is_there).collect();
        assert!((3..38).contains(&left.len()), "{left:?}");
        let youngest: Vec<u8> = (40 - left.len() as u8..40).collect();
        assert_eq!(left, youngest, "in the order of publishing");
    }
}

/// G6: a dry run foresees what the cap would evict, too.
#[test]
fn g6_a_dry_run_foresees_evictions() {
    let mut fixture = Fixture::new();
    for index in 0..20u8 {
        fixture.publish(index, &nar_of(&noise(170 + u64::from(index), 300_000)), &[]);
    }
    fixture.options.size_cap = Some((4 << 20) + derived_allowance());
    fixture.reopen();
    let dry = CollectOptions {
        dry_run: true,
        full: true,
    };
    let before = pack_bytes(&fixture);
    let foreseen = fixture.store().collect(&dry).expect("plans");
    assert_eq!(pack_bytes(&fixture), before, "a dry run changes nothing");
    assert_eq!(fixture.store().collect(&dry).expect("plans"), foreseen);
    let done = fixture.store().collect(&FULL).expect("collects");
    assert!(done.evicted_paths > 3, "{done:?}");
    let near = |foreseen: u64, done: u64| foreseen.abs_diff(done) <= 1 + done / 5;
    assert!(
        near(foreseen.evicted_paths, done.evicted_paths)
            && near(foreseen.dropped_nars, done.dropped_nars)
            && near(foreseen.freed_bytes, done.freed_bytes),
        "{foreseen:?} and {done:?}"
    );
}

/// G7: what was used lately stays, with all it refers to, however long ago it was published.
#[test]
fn g7_a_path_in_use_outlives_younger_ones() {
    let mut fixture = Fixture::with(Options {
        pack_len_target: 256 << 10,
        ..Options::default()
    });
    for index in 0..20u8 {
        // Path 2 refers to path 1.
        let references: &[u8] = if index == 2 { &[1] } else { &[] };
        let nar = nar_of(&noise(190 + u64::from(index), 300_000));
        fixture.publish(index, &nar, references);
    }
    fixture.store().touch(&cache(), path(2).hash(), 9_000);
    fixture.store().close().expect("closes");
    fixture.options.size_cap = Some((4 << 20) + derived_allowance());
    fixture.reopen();
    fixture.store().collect(&FULL).expect("collects");
    let here = |index| {
        let row = fixture.store().path(&cache(), path(index).hash());
        row.expect("reads").is_some()
    };
    assert!(here(1) && here(2), "it and what it refers to are in use");
    assert!(!here(0) && !here(3) && here(19), "the others go by age");
}

/// G7: with everything pinned the cap refuses instead of evicting.
#[test]
fn a_full_store_refuses_and_goes_on_serving() {
    let fixture = Fixture::with(Options {
        pack_len_target: 256 << 10,
        size_cap: Some((1 << 20) + derived_allowance()),
        ..Options::default()
    });
    let nar = nar_of(&noise(80, 900_000));
    fixture.publish(1, &nar, &[]);
    let pin = Pin {
        cache: cache(),
        name: "keep".into(),
        path: path(1),
        keep: 1,
        created_at: 0,
    };
    fixture.store().pin(pin).expect("pins");
    let lease = fixture.store().lease();
    let outcome = fixture
        .store()
        .import(&lease, &mut &nar_of(&noise(81, 6_000_000))[..]);
    let refused = matches!(outcome, Err(ImportError::Store(StoreError::NoSpace { .. })));
    assert!(refused, "{outcome:?}");
    drop(lease);
    fixture.assert_reads_back(&nar);
}

/// G7: what a push under way has published stays while its lease holds the bytes: evicting it would
/// free nothing.
#[test]
fn g7_what_a_push_under_way_has_published_is_not_evicted() {
    let fixture = Fixture::with(Options {
        pack_len_target: 256 << 10,
        size_cap: Some((6 << 20) + derived_allowance()),
        ..Options::default()
    });
    let lease = fixture.store().lease();
    let mut published = Vec::new();
    for index in 0..40u8 {
        let nar = nar_of(&noise(300 + u64::from(index), 300_000));
        match fixture.store().import(&lease, &mut &nar[..]) {
            Ok(imported) => {
                let row = path_row(index, &imported, &[], 0);
                fixture.store().publish(vec![row]).expect("publishes");
                published.push(index);
            }
            Err(ImportError::Store(StoreError::NoSpace { .. })) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!((15..40).contains(&published.len()), "{published:?}");
    for index in published {
        let row = fixture.store().path(&cache(), path(index).hash());
        assert!(row.expect("reads").is_some(), "{index} was evicted");
    }
    drop(lease);
    fixture.publish(50, &nar_of(&noise(350, 300_000)), &[]);
}

/// Stores the chunks of NARs in turn, so that they lie in the same packs; the NARs then.
fn import_mixed(fixture: &Fixture, lease: &Lease, nars: [&[u8]; 2]) -> [Imported; 2] {
    let mut encoder = FrameEncoder::new();
    let chunks = nars.map(chunks_of);
    for turn in 0..chunks[0].len().max(chunks[1].len()) {
        for chunk in chunks.iter().filter_map(|chunks| chunks.get(turn)) {
            let frame = encoder.encode(chunk).expect("encodes");
            fixture
                .store()
                .put_frame(lease, ChunkId::of(chunk), chunk.len() as u32, &frame)
                .expect("stores");
        }
    }
    nars.map(|nar| fixture.import(lease, nar))
}

/// G7: what a push found is held chunk by chunk: garbage between these chunks is freed, and they are
/// still there.
#[test]
fn g7_garbage_beside_what_a_push_found_is_freed() {
    let fixture = Fixture::new();
    let (gone, wanted) = (nar_of(&noise(700, 2 << 20)), nar_of(&noise(701, 2 << 20)));
    import_mixed(&fixture, &fixture.store().lease(), [&gone, &wanted]);
    let ids: Vec<ChunkId> = chunks_of(&wanted).iter().map(|c| ChunkId::of(c)).collect();
    let lease = fixture.store().lease();
    let missing = fixture.store().missing(&lease, &ids).expect("looks");
    assert!(!missing.contains(&true));
    // No path refers to either: both NARs are dropped.
    let report = fixture.store().collect(&FULL).expect("collects");
    assert_eq!((report.dropped_nars, report.leased_packs), (2, 0));
    assert!(
        (2 << 20..5 << 19).contains(&pack_bytes(&fixture)),
        "{report:?}"
    );
    let assembled = fixture.store().assemble(&lease, &ids, &mut |_, _| {});
    let Assembled::Done(imported) = assembled.expect("assembles") else {
        panic!("chunks are gone");
    };
    let row = path_row(1, &imported, &[], 0);
    fixture.store().publish(vec![row]).expect("publishes");
    drop(lease);
    fixture.assert_reads_back(&wanted);
    fixture.verify_is_clean();
}

#[derive(Clone, Debug)]
enum Step {
    Publish(u8, u8),
    Remove(u8),
    Collect(bool),
    /// Begins an upload of this content, in place of the one under way.
    Find(u8),
    /// Ends the upload under way: it becomes this path.
    Finish(u8),
    Crash,
    Forget,
}

/// An upload that has asked for its chunks.
struct Upload {
    lease: Lease,
    content: u8,
    found: Vec<ChunkId>,
}

impl Upload {
    fn new(fixture: &Fixture, content: u8) -> Upload {
        let lease = fixture.store().lease();
        let chunks = chunks_of(&nar_of(&contents(content)));
        let ids: Vec<ChunkId> = chunks.iter().map(|chunk| ChunkId::of(chunk)).collect();
        let missing = fixture.store().missing(&lease, &ids).expect("looks");
        let found = ids.into_iter().zip(missing).filter(|(_, missing)| !missing);
        let found = found.map(|(id, _)| id).collect();
        Upload {
            lease,
            content,
            found,
        }
    }

    /// Sends what was missing and publishes; what was found must be there.
    fn finish(self, fixture: &Fixture, index: u8) {
        let chunks = chunks_of(&nar_of(&contents(self.content)));
        let mut encoder = FrameEncoder::new();
        for chunk in &chunks {
            let (id, raw_len) = (ChunkId::of(chunk), chunk.len() as u32);
            if !self.found.contains(&id) {
                let frame = encoder.encode(chunk).expect("encodes");
                let stored = fixture.store().put_frame(&self.lease, id, raw_len, &frame);
                stored.expect("stores");
            }
        }
        let ids: Vec<ChunkId> = chunks.iter().map(|chunk| ChunkId::of(chunk)).collect();
        let assembled = fixture.store().assemble(&self.lease, &ids, &mut |_, _| {});
        let Assembled::Done(imported) = assembled.expect("assembles") else {
            panic!("what was found is gone");
        };
        let row = path_row(index, &imported, &[], 1_000);
        fixture.store().publish(vec![row]).expect("publishes");
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0u8..6, 0u8..8).prop_map(|(path, content)| Step::Publish(path, content)),
        3 => (0u8..6).prop_map(Step::Remove),
        3 => any::<bool>().prop_map(Step::Collect),
        3 => (0u8..8).prop_map(Step::Find),
        3 => (0u8..6).prop_map(Step::Finish),
        1 => Just(Step::Crash),
        1 => Just(Step::Forget),
    ]
}

/// Contents that overlap, so that paths share chunks in many ways.
fn contents(index: u8) -> Vec<u8> {
    let part = |seed: u8| noise(900 + u64::from(seed), 150_000);
    [part(index % 3), part(index % 4), part(index)].concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// G6 (local): after any history, every path reads back whole, what an upload found is there when
    /// it ends, and once everything is removed nothing is left.
    #[test]
    fn any_history_keeps_what_lives_and_leaks_nothing(steps in proptest::collection::vec(step(), 1..25)) {
        let mut fixture = Fixture::new();
        let mut model: BTreeMap<u8, u8> = BTreeMap::new();
        let mut upload = None;
        for step in steps {
            match step {
                Step::Publish(index, content) => {
                    fixture.publish(index, &nar_of(&contents(content)), &[]);
                    model.insert(index, content);
                }
                Step::Remove(index) => {
                    let count = fixture.store().remove(&cache(), &[*path(index).hash()]).expect("removes");
                    prop_assert_eq!(count, usize::from(model.remove(&index).is_some()));
                }
                Step::Collect(full) => {
                    let options = CollectOptions { dry_run: false, full };
                    fixture.store().collect(&options).expect("collects");
                }
                Step::Find(content) => upload = Some(Upload::new(&fixture, content)),
                Step::Finish(index) => {
                    if let Some(upload) = upload.take() {
                        model.insert(index, upload.content);
                        upload.finish(&fixture, index);
                    }
                }
                Step::Crash => {
                    upload = None;
                    fixture.crash();
                }
                Step::Forget => {
                    upload = None;
                    fixture.store = None;
                    Store::forget_index(fixture.dir.path()).expect("forgets");
                    fixture.reopen();
                }
            }
            let rows = fixture.store().paths(&cache(), None, 100).expect("lists");
            let listed: Vec<u8> = rows.iter().map(|row| row.info.path.hash().as_bytes()[0]).collect();
            prop_assert_eq!(listed, model.keys().copied().collect::<Vec<_>>());
            for content in model.values() {
                fixture.assert_reads_back(&nar_of(&contents(*content)));
            }
        }
        drop(upload);
        fixture.verify_is_clean();
        fixture.store().purge_cache(&cache()).expect("purges");
        fixture.store().collect(&FULL).expect("collects");
        fixture.store().collect(&FULL).expect("collects");
        prop_assert!(pack_bytes(&fixture) < 4_096, "{} bytes left", pack_bytes(&fixture));
    }
}
