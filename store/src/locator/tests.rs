//! Claims about the table as a whole, among them one against a model.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use proptest::prelude::{Strategy, any, prop_oneof};
use proptest::test_runner::{Config, TestCaseError};
use proptest::{prop_assert, prop_assert_eq, proptest};
use tempfile::TempDir;

use crate::hash::ChunkId;
use crate::locator::{Location, Locator, LocatorError, LocatorOptions, list, merge};
use crate::pack_id::PackId;

/// Ids that begin alike, so that fences do not tell them apart.
fn id(n: u8) -> ChunkId {
    let mut bytes = [n % 3; 32];
    bytes[8..].copy_from_slice(&ChunkId::of(&[n]).as_bytes()[8..]);
    ChunkId::from_bytes(bytes)
}

fn pack(n: u32) -> PackId {
    let mut bytes = [0x70; 16];
    bytes[..4].copy_from_slice(&n.reverse_bits().to_be_bytes());
    PackId::from_bytes(bytes)
}

fn at(pack_number: u32, offset: u32) -> Location {
    Location {
        pack: pack(pack_number),
        offset,
        raw_len: offset + 7,
        frame_len: offset / 2,
    }
}

fn open(dir: &Path) -> Locator {
    Locator::open(
        dir,
        LocatorOptions {
            memory_entries: 100,
        },
    )
    .expect("opens")
}

fn fill(locator: &Locator, number: u32, ids: impl IntoIterator<Item = u8>) {
    ids.into_iter()
        .for_each(|n| locator.insert(id(n), at(number, u32::from(n))));
    locator.pack_complete(pack(number));
}

fn fill_run(locator: &Locator, number: u32, ids: impl IntoIterator<Item = u8>) {
    fill(locator, number, ids);
    locator.flush().expect("flushes");
}

fn found(locator: &Locator, n: u8) -> Option<Location> {
    locator.lookup(&id(n)).expect("looks up")
}

fn settle(locator: &Locator) {
    while locator.maintain().expect("maintains") {}
}

fn runs(dir: &Path) -> Vec<PathBuf> {
    let mut runs = list(dir).expect("lists");
    runs.sort();
    runs
}

fn packs(numbers: impl IntoIterator<Item = u32>) -> BTreeSet<PackId> {
    numbers.into_iter().map(pack).collect()
}

#[test]
fn complete_packs_are_found_and_covered_after_reopening() {
    let dir = TempDir::new().expect("directory");
    let locator = open(dir.path());
    fill(&locator, 1, 0..200);
    fill(&locator, 2, 150..=255);
    locator.flush().expect("flushes");
    let locator = open(dir.path());
    assert_eq!(locator.covered(), packs([1, 2]));
    assert_eq!(locator.len_estimate(), 306);
    for n in 0..150 {
        assert_eq!(found(&locator, n), Some(at(1, n.into())));
    }
    for n in 150..=255 {
        assert_eq!(
            found(&locator, n),
            Some(at(2, n.into())),
            "the younger copy"
        );
    }
}

#[test]
fn pack_being_filled_is_found_but_not_covered_and_not_written() {
    let dir = TempDir::new().expect("directory");
    let locator = open(dir.path());
    locator.insert(id(1), at(1, 1));
    locator.flush().expect("flushes");
    assert_eq!(found(&locator, 1), Some(at(1, 1)));
    assert_eq!(locator.covered(), packs([]));
    assert_eq!(found(&open(dir.path()), 1), None);
    assert_eq!(runs(dir.path()).len(), 0);
}

#[test]
fn pack_without_chunks_is_covered() {
    let dir = TempDir::new().expect("directory");
    let locator = open(dir.path());
    for number in 0..6 {
        fill_run(&locator, number, []);
    }
    settle(&locator);
    assert_eq!(runs(dir.path()).len(), 1);
    assert_eq!(open(dir.path()).covered(), packs(0..6));
}

#[test]
fn many_are_looked_up_in_the_order_asked() {
    let dir = TempDir::new().expect("directory");
    let locator = open(dir.path());
    fill_run(&locator, 1, [4]);
    fill(&locator, 2, [2]);
    let found = locator
        .lookup_many(&[id(2), id(3), id(4)])
        .expect("looks up");
    assert_eq!(found, [Some(at(2, 2)), None, Some(at(1, 4))]);
}

#[test]
fn older_copy_is_found_when_the_younger_ones_pack_is_dropped() {
    let dir = TempDir::new().expect("directory");
    let locator = open(dir.path());
    fill_run(&locator, 1, [5]);
    fill_run(&locator, 2, [5]);
    fill(&locator, 3, [5]);
    locator.insert(id(5), at(4, 5));
    for newest in (1..=4).rev() {
        assert_eq!(found(&locator, 5), Some(at(newest, 5)));
        locator.drop_pack(pack(newest));
    }
    assert_eq!(found(&locator, 5), None);
}

#[test]
fn older_copy_is_found_in_a_merged_run() {
    let dir = TempDir::new().expect("directory");
    let locator = open(dir.path());
    (1..=4).for_each(|number| fill_run(&locator, number, [5]));
    settle(&locator);
    assert_eq!(runs(dir.path()).len(), 1);
    for newest in (1..=4).rev() {
        assert_eq!(found(&locator, 5), Some(at(newest, 5)));
        locator.drop_pack(pack(newest));
    }
    assert_eq!(found(&locator, 5), None);
}

#[test]
fn complete_or_dropped_pack_takes_no_more_entries() {
    let dir = TempDir::new().expect("directory");
    let locator = open(dir.path());
    fill(&locator, 1, [1]);
    fill_run(&locator, 2, [2]);
    locator.drop_pack(pack(3));
    (1..=3).for_each(|number| fill(&locator, number, [9]));
    assert_eq!(found(&locator, 9), None);
    assert_eq!(locator.covered(), packs([1, 2]));
}

#[test]
fn packs_not_retained_are_gone() {
    let dir = TempDir::new().expect("directory");
    let locator = open(dir.path());
    fill_run(&locator, 1, [1]);
    fill_run(&locator, 2, [2]);
    let locator = open(dir.path());
    locator.retain_packs(&packs([2, 3]));
    assert_eq!(
        (found(&locator, 1), found(&locator, 2)),
        (None, Some(at(2, 2)))
    );
    assert_eq!(locator.covered(), packs([2]));
    settle(&locator);
    assert_eq!(
        runs(dir.path()).len(),
        1,
        "the run of nothing but dead packs is deleted"
    );
}

#[test]
fn forgotten_copy_is_not_found_but_others_are() {
    let dir = TempDir::new().expect("directory");
    let locator = open(dir.path());
    locator.forget(&id(1), &at(2, 1));
    fill_run(&locator, 1, [1]);
    fill(&locator, 2, [1]);
    assert_eq!(found(&locator, 1), Some(at(1, 1)));
    // A good copy may follow the bad one in the same pack.
    locator.insert(id(1), at(3, 1));
    locator.insert(id(1), at(3, 50));
    locator.forget(&id(1), &at(3, 50));
    assert_eq!(found(&locator, 1), Some(at(3, 1)));
    locator.forget(&id(1), &at(3, 1));
    locator.forget(&id(1), &at(1, 1));
    assert_eq!(found(&locator, 1), None);
    assert_eq!(
        found(&open(dir.path()), 1),
        Some(at(1, 1)),
        "only this process forgets"
    );
}

#[test]
fn merge_keeps_live_packs_only() {
    let dir = TempDir::new().expect("directory");
    let locator = open(dir.path());
    (0..8).for_each(|number| fill_run(&locator, number, 0..100));
    (0..7).for_each(|number| locator.drop_pack(pack(number)));
    settle(&locator);
    let left: u64 = runs(dir.path())
        .iter()
        .map(|run| fs::metadata(run).expect("stat").len())
        .sum();
    assert!(left < 2 * 4096 + 4096, "{left} bytes for 100 live entries");
    assert_eq!(locator.len_estimate(), 100);
    let locator = open(dir.path());
    assert_eq!(locator.covered(), packs([7]));
    assert!((0..100).all(|n| found(&locator, n) == Some(at(7, n.into()))));
}

#[test]
fn half_dead_run_is_written_anew_under_its_name() {
    let dir = TempDir::new().expect("directory");
    let locator = open(dir.path());
    fill(&locator, 1, 0..200);
    fill_run(&locator, 2, [201, 202]);
    let before = runs(dir.path());
    locator.drop_pack(pack(1));
    settle(&locator);
    assert_eq!(runs(dir.path()), before);
    let locator = open(dir.path());
    assert_eq!(locator.covered(), packs([2]));
    assert_eq!(found(&locator, 201), Some(at(2, 201)));
}

#[test]
fn torn_run_is_deleted_and_its_packs_are_not_covered() {
    let dir = TempDir::new().expect("directory");
    let locator = open(dir.path());
    fill_run(&locator, 1, 0..100);
    fill_run(&locator, 2, 100..110);
    let torn = runs(dir.path()).remove(0);
    let whole = fs::read(&torn).expect("reads");
    for len in (0..whole.len()).step_by(61).chain([whole.len() - 1]) {
        fs::write(&torn, &whole[..len]).expect("writes");
        let locator = open(dir.path());
        assert!(!torn.exists(), "{len} bytes of {}", whole.len());
        assert_eq!(locator.covered(), packs([2]));
        assert_eq!(
            (found(&locator, 5), found(&locator, 105)),
            (None, Some(at(2, 105)))
        );
    }
}

#[test]
fn run_with_any_byte_behind_its_pages_changed_is_deleted() {
    let dir = TempDir::new().expect("directory");
    fill_run(&open(dir.path()), 1, 0..100);
    let run = runs(dir.path()).remove(0);
    let whole = fs::read(&run).expect("reads");
    for changed in 2 * 4096..whole.len() {
        let mut bytes = whole.clone();
        bytes[changed] ^= 1;
        fs::write(&run, bytes).expect("writes");
        assert_eq!(
            open(dir.path()).covered(),
            packs([]),
            "byte {changed} of {}",
            whole.len()
        );
    }
}

#[test]
fn damaged_page_is_an_error_until_its_packs_are_inserted_again() {
    let dir = TempDir::new().expect("directory");
    let locator = open(dir.path());
    fill_run(&locator, 1, 0..100);
    fill_run(&locator, 2, 90..110);
    let run = runs(dir.path()).remove(0);
    let mut bytes = fs::read(&run).expect("reads");
    bytes[..8192].fill(0x55);
    fs::write(&run, bytes).expect("writes");
    let locator = open(dir.path());
    assert_eq!(
        locator.covered(),
        packs([1, 2]),
        "pages are not read at open"
    );
    assert_eq!(
        found(&locator, 95),
        Some(at(2, 95)),
        "a sound copy elsewhere is found"
    );
    for _ in 0..2 {
        let error = locator.lookup(&id(5)).expect_err("damaged");
        assert!(matches!(error, LocatorError::Damaged { .. }), "{error}");
        assert_eq!(locator.covered(), packs([2]));
    }
    fill(&locator, 1, 0..100);
    assert!((0..90).all(|n| found(&locator, n) == Some(at(1, n.into()))));
    settle(&locator);
    assert!(
        !run.exists(),
        "a damaged run goes once its packs are elsewhere"
    );
    assert_eq!(open(dir.path()).covered(), packs([1, 2]));
}

#[test]
fn merge_sets_a_damaged_run_aside_and_goes_on() {
    let dir = TempDir::new().expect("directory");
    let locator = open(dir.path());
    (1..=4).for_each(|number| fill_run(&locator, number, [number as u8]));
    let before = runs(dir.path());
    let mut bytes = fs::read(&before[1]).expect("reads");
    bytes[3] ^= 1;
    fs::write(&before[1], bytes).expect("writes");
    settle(&locator);
    assert_eq!(locator.covered(), packs([1, 3, 4]));
    assert_eq!(found(&locator, 1), Some(at(1, 1)));
    let error = locator.lookup(&id(2)).expect_err("damaged");
    assert!(matches!(error, LocatorError::Damaged { .. }), "{error}");
    fill_run(&locator, 5, [5]);
    settle(&locator);
    assert_eq!(runs(dir.path()).len(), 1, "the other four are merged");
    assert_eq!(open(dir.path()).covered(), packs([1, 3, 4, 5]));
}

#[test]
fn leftovers_of_a_crash_are_deleted_and_other_files_are_not() {
    let dir = TempDir::new().expect("directory");
    let locator = open(dir.path());
    (1..=4).for_each(|number| fill_run(&locator, number, [number as u8]));
    let replaced: Vec<(PathBuf, Vec<u8>)> = runs(dir.path())
        .into_iter()
        .map(|run| (run.clone(), fs::read(run).expect("reads")))
        .collect();
    settle(&locator);
    let merged = runs(dir.path());
    for (path, bytes) in &replaced {
        fs::write(path, bytes).expect("writes");
    }
    fs::write(dir.path().join("x.tmp"), "half").expect("writes");
    fs::write(dir.path().join("README"), "hello").expect("writes");
    let locator = open(dir.path());
    assert_eq!(runs(dir.path()), merged);
    assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 2);
    assert!((1..=4).all(|n| found(&locator, n) == Some(at(n.into(), n.into()))));
}

#[test]
fn flush_that_fails_keeps_the_entries() {
    let dir = TempDir::new().expect("directory");
    let table = dir.path().join("table");
    let locator = open(&table);
    fill(&locator, 1, [1]);
    fs::remove_dir(&table).expect("removes");
    let error = locator.flush().expect_err("no directory");
    assert!(matches!(error, LocatorError::Write { .. }), "{error}");
    assert_eq!(found(&locator, 1), Some(at(1, 1)));
    fs::create_dir(&table).expect("creates");
    locator.flush().expect("flushes");
    assert_eq!(open(&table).covered(), packs([1]));
}

#[test]
fn merge_told_to_stop_leaves_nothing_behind() {
    let dir = TempDir::new().expect("directory");
    let locator = open(dir.path());
    (1..=4).for_each(|number| fill_run(&locator, number, [number as u8]));
    let before = runs(dir.path());
    let sources = locator.planned().expect("a merge is due");
    let merged = merge::merge(dir.path(), &sources, |_| true, || true);
    assert!(matches!(merged, Ok(merge::Merged::Stopped)));
    assert_eq!(
        fs::read_dir(dir.path()).expect("lists").count(),
        before.len()
    );
}

#[test]
fn chunk_that_moves_from_pack_to_pack_is_never_missed() {
    let dir = TempDir::new().expect("directory");
    let locator = Locator::open(dir.path(), LocatorOptions { memory_entries: 1 }).expect("opens");
    fill_run(&locator, 0, 0..10);
    let moving = AtomicBool::new(true);
    thread::scope(|scope| {
        for reader in 0..2 {
            let (locator, moving) = (&locator, &moving);
            scope.spawn(move || {
                while moving.load(Ordering::Relaxed) {
                    (0..10).for_each(|n| assert!(found(locator, n).is_some(), "reader {reader}"));
                }
            });
        }
        for number in 1..200 {
            fill(&locator, number, 0..10);
            locator.drop_pack(pack(number - 1));
            locator.maintain().expect("maintains");
        }
        moving.store(false, Ordering::Relaxed);
    });
}

/// What the caller of a table does, and what can happen to it.
#[derive(Clone, Debug)]
enum Step {
    /// Copies of a few chunks go to the pack being filled.
    Insert {
        writer: usize,
        ids: Vec<u8>,
    },
    Complete {
        writer: usize,
    },
    Drop {
        pack: usize,
    },
    Forget {
        copy: usize,
    },
    Maintain,
    Flush,
    /// The process dies and starts again; a run may have been hurt meanwhile.
    Crash {
        hurt: Option<(usize, usize, bool)>,
    },
    /// A byte of a run changes below a running process.
    Rot {
        run: usize,
        byte: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let ids = proptest::collection::vec(0..IDS, 1..40);
    let hurt = proptest::option::of((any::<usize>(), any::<usize>(), any::<bool>()));
    prop_oneof![
        8 => (0..WRITERS, ids).prop_map(|(writer, ids)| Step::Insert { writer, ids }),
        4 => (0..WRITERS).prop_map(|writer| Step::Complete { writer }),
        2 => any::<usize>().prop_map(|pack| Step::Drop { pack }),
        1 => any::<usize>().prop_map(|copy| Step::Forget { copy }),
        4 => proptest::strategy::Just(Step::Maintain),
        2 => proptest::strategy::Just(Step::Flush),
        1 => hurt.prop_map(|hurt| Step::Crash { hurt }),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(run, byte)| Step::Rot { run, byte }),
    ]
}

/// A table and the packs it is derived from.
struct World {
    dir: TempDir,
    locator: Locator,
    packs: BTreeMap<PackId, Vec<(ChunkId, Location)>>,
    writers: [u32; WRITERS],
    next_pack: u32,
    bad: BTreeSet<(ChunkId, Location)>,
}

impl World {
    fn new() -> World {
        let dir = TempDir::new().expect("directory");
        let locator = World::open(dir.path());
        let (packs, bad) = (BTreeMap::new(), BTreeSet::new());
        World {
            dir,
            locator,
            packs,
            writers: [0, 1, 2],
            next_pack: 3,
            bad,
        }
    }

    fn open(dir: &Path) -> Locator {
        Locator::open(dir, LocatorOptions { memory_entries: 20 }).expect("opens")
    }

    fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Insert { writer, ids } => ids.into_iter().for_each(|n| self.insert(writer, n)),
            Step::Complete { writer } => self.complete(writer),
            Step::Drop { pack } => {
                if let Some(pack) = nth(self.packs.keys().copied(), pack) {
                    self.packs.remove(&pack);
                    self.locator.drop_pack(pack);
                    self.replace_writers(pack);
                }
            }
            Step::Forget { copy } => {
                if let Some((id, at)) = nth(self.packs.values().flatten().copied(), copy) {
                    self.bad.insert((id, at));
                    self.locator.forget(&id, &at);
                }
            }
            Step::Maintain => self.with_repair(|locator| locator.maintain().map(drop))?,
            Step::Flush => self.with_repair(Locator::flush)?,
            Step::Crash { hurt } => self.crash(hurt),
            Step::Rot { run, byte } => {
                if let Some(run) = nth(runs(self.dir.path()).into_iter(), run) {
                    change(&run, byte, false);
                }
            }
        }
        self.check()
    }

    fn insert(&mut self, writer: usize, n: u8) {
        let number = self.writers[writer];
        let entries = self.packs.entry(pack(number)).or_default();
        let at = at(number, entries.len() as u32 * 10);
        entries.push((id(n), at));
        self.locator.insert(id(n), at);
    }

    fn complete(&mut self, writer: usize) {
        let pack = pack(self.writers[writer]);
        self.packs.entry(pack).or_default();
        self.locator.pack_complete(pack);
        self.replace_writers(pack);
    }

    /// Whoever writes this pack goes on with a new one.
    fn replace_writers(&mut self, done: PackId) {
        for number in self
            .writers
            .iter_mut()
            .filter(|number| pack(**number) == done)
        {
            *number = self.next_pack;
            self.next_pack += 1;
        }
    }

    fn crash(&mut self, hurt: Option<(usize, usize, bool)>) {
        if let Some((run, byte, cut)) = hurt
            && let Some(run) = nth(runs(self.dir.path()).into_iter(), run)
        {
            change(&run, byte, cut);
        }
        self.locator = World::open(self.dir.path());
        self.locator
            .retain_packs(&self.packs.keys().copied().collect());
        self.writers = [self.next_pack, self.next_pack + 1, self.next_pack + 2];
        self.next_pack += 3;
        self.replay();
        self.bad
            .iter()
            .for_each(|(id, at)| self.locator.forget(id, at));
    }

    /// Inserts what the table says it lacks.
    fn replay(&self) {
        let (covered, writing) = (self.locator.covered(), self.writers.map(pack));
        for (pack, entries) in &self.packs {
            if !covered.contains(pack) && !writing.contains(pack) {
                entries
                    .iter()
                    .for_each(|(id, at)| self.locator.insert(*id, *at));
                self.locator.pack_complete(*pack);
            }
        }
    }

    /// Does something that may meet damage, repairing after each.
    fn with_repair<T>(
        &self,
        action: impl Fn(&Locator) -> Result<T, LocatorError>,
    ) -> Result<T, TestCaseError> {
        for _ in 0..20 {
            match action(&self.locator) {
                Ok(done) => return Ok(done),
                Err(LocatorError::Damaged { .. }) => self.replay(),
                Err(error) => return Err(TestCaseError::fail(format!("{error:?}"))),
            }
        }
        Err(TestCaseError::fail("still damaged after 20 repairs"))
    }

    fn check(&self) -> Result<(), TestCaseError> {
        for id in (0..IDS + 2).map(id) {
            let copies = self.packs.values().flatten().filter(|copy| copy.0 == id);
            let good: BTreeSet<Location> = copies
                .filter(|copy| !self.bad.contains(copy))
                .map(|copy| copy.1)
                .collect();
            match self.with_repair(|locator| locator.lookup(&id))? {
                Some(at) => prop_assert!(good.contains(&at), "{at:?} is not among {good:?}"),
                None => prop_assert_eq!(good, BTreeSet::new()),
            }
        }
        Ok(())
    }
}

/// Changes a byte of a file or cuts it there.
fn change(path: &Path, byte: usize, cut: bool) {
    let mut bytes = fs::read(path).expect("reads");
    let at = byte % bytes.len();
    if cut {
        bytes.truncate(at);
    } else {
        bytes[at] ^= 0x20;
    }
    fs::write(path, bytes).expect("writes");
}

fn nth<T>(items: impl Iterator<Item = T>, n: usize) -> Option<T> {
    let mut items: Vec<T> = items.collect();
    let len = items.len();
    (len > 0).then(|| items.swap_remove(n % len))
}

const IDS: u8 = 12;
const WRITERS: usize = 3;

proptest! {
    #![proptest_config(Config { cases: 64, failure_persistence: None, ..Config::default() })]

    /// Whatever happens to the table, it finds a chunk exactly if a live pack has a good copy.
    #[test]
    fn lookup_finds_a_live_copy_exactly_if_there_is_one(
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let mut world = World::new();
        for step in steps {
            world.take(step)?;
        }
    }
}
