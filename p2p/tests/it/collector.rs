//! All that can become of writers and collectors that share a bucket, state by state.
//!
//! The machines are the real ones; what is modelled is the bucket, and who drives them: with plans and
//! choices as wrong as they can be. Requests take effect as late as they like, or when nobody waits for
//! them any more; deletions do it twice. Writers give up and collectors crash between any two steps.
//! Records die at any moment.
//!
//! A checker that finds nothing proves nothing unless it finds what is there to be found: each
//! [`Mutant`] breaks one rule, and must be caught.

use std::collections::{BTreeMap, BTreeSet};

use attic_p2p::collector::{Collector, Life, References, Writer, outdated};
use attic_p2p::identity::Identity;
use attic_p2p::ids::{Dot, NodeId};
use attic_p2p::journal::{Condemnations, Reference, condemnations_key, newest_condemnations};
use attic_store::PackId;
use stateright::{Checker, HasDiscoveries, Model, Property};

/// How much there is of everything.
#[derive(Clone, Copy)]
struct Size {
    writers: usize,
    collectors: usize,
    packs: u8,
    records: u8,
    references: u8,
    /// How often each collector condemns something.
    collections: u8,
    /// How often each crashes.
    crashes: u8,
}

/// A rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    /// A writer does not look for condemnations.
    NoList,
    /// It looks for packs before it does.
    SeekBeforeList,
    /// It does not look for packs.
    NoSeek,
    /// A collector looks for references before it condemns.
    LookBeforeCondemn,
    /// It does not care what it finds.
    IgnoreReferences,
    /// It forgets what is doomed before that is gone.
    ForgetBeforeGone,
    /// After a crash it looks once more whether what is doomed can be saved.
    Undoom,
    /// After a crash it does not say again what it condemns.
    NoRestatement,
    /// A version is written under the name of one whose answer was lost.
    ReuseVersion,
    /// A pack is written under the name of one that may be gone.
    ReusePackName,
    /// An upload is repeated under its name.
    RetryUpload,
    /// A pack is condemned that no listing has shown: its upload may be on its way.
    CondemnUnseen,
}

struct Bucket {
    size: Size,
    mutant: Option<Mutant>,
    collectors: Vec<NodeId>,
    keys: BTreeMap<Version, String>,
}

/// Small numbers as a set.
type Set = u8;
/// A version: whose, its number, and what is random of its name.
type Version = (u8, u64, u8);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    /// The packs that are there.
    packs: Set,
    /// Those that ever were.
    shown: Set,
    /// Names of packs that were used.
    names: u8,
    /// References in journals: a record, and the packs it needs.
    entries: BTreeSet<(u8, Set)>,
    /// How often somebody wrote one.
    references: u8,
    /// Records that there ever were.
    records: u8,
    /// Those that do not live any more.
    dead: Set,
    /// By what references which records were called durable.
    durable: BTreeSet<(u8, Set)>,
    versions: BTreeMap<Version, Condemnations>,
    /// Requests on their way.
    late: BTreeSet<Request>,
    writers: Vec<Option<Writing>>,
    collectors: Vec<Collecting>,
    /// Packs that were deleted, or are about to be.
    deleted: Set,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Request {
    PutPack(u8),
    PutEntry(u8, Set),
    PutVersion(Version, (Set, Set)),
    Delete(u8),
}

/// A writer at work, and what whoever drives it remembers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Writing {
    machine: Writer,
    entry: (u8, Set),
    asked: Set,
    there: Set,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Collecting {
    /// `None` after a crash.
    machine: Option<Collector>,
    /// The version on its way.
    sent: Option<Request>,
    /// What was referred to before anything was condemned, for who looks too early.
    early: Option<Set>,
    collections: u8,
    crashes: u8,
    attempts: u8,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    /// A writer writes a new pack; answered or not.
    Upload {
        name: u8,
        answered: bool,
    },
    /// It chooses packs for a record.
    Refer {
        writer: usize,
        record: u8,
        packs: Set,
    },
    Writer(usize),
    GiveUp(usize),
    /// A collector condemns these packs.
    Condemn(usize, Set),
    Collector(usize),
    Crash(usize),
    Start(usize),
    /// A record is removed or replaced.
    Die(u8),
    /// A request takes effect, and once more later.
    Land {
        request: Request,
        again: bool,
    },
}

fn pack(n: u8) -> PackId {
    PackId::from_bytes([n; 16])
}

fn ids(set: Set) -> BTreeSet<PackId> {
    members(set).map(pack).collect()
}

fn set<'a>(packs: impl IntoIterator<Item = &'a PackId>) -> Set {
    packs
        .into_iter()
        .fold(0, |set, pack| set | 1 << pack.as_bytes()[0])
}

fn members(set: Set) -> impl Iterator<Item = u8> {
    (0..8).filter(move |n| set >> n & 1 == 1)
}

fn dot(record: u8) -> Dot {
    Dot {
        node: NodeId::from_bytes([7; 32]),
        seq: u64::from(record) + 1,
        index: 0,
    }
}

fn reference((record, packs): (u8, Set)) -> Reference {
    Reference {
        dot: dot(record),
        packs: members(packs).map(|n| (pack(n), 1)).collect(),
    }
}

impl State {
    fn is_dead(&self, record: u8) -> bool {
        self.dead >> record & 1 == 1
    }

    /// The packs among these that journals say somebody needs.
    fn referred(&self, packs: &BTreeSet<PackId>) -> BTreeSet<PackId> {
        let mut references = References::default();
        for entry in &self.entries {
            references.add(&reference(*entry)).unwrap();
        }
        references.referred(packs, |dot| match self.is_dead(dot.seq as u8 - 1) {
            true => Life::Dead,
            false => Life::Live,
        })
    }

    fn land(&mut self, request: &Request) {
        match request {
            Request::PutPack(name) => {
                self.packs |= 1 << name;
                self.shown |= 1 << name;
            }
            Request::PutEntry(record, packs) => {
                self.entries.insert((*record, *packs));
            }
            Request::PutVersion(key, (condemned, doomed)) => {
                let sets = Condemnations {
                    condemned: ids(*condemned),
                    doomed: ids(*doomed),
                };
                self.versions.insert(*key, sets);
            }
            Request::Delete(name) => self.packs &= !(1 << name),
        }
    }
}

impl Bucket {
    fn new(size: Size, mutant: Option<Mutant>) -> Bucket {
        let collectors = (0..size.collectors as u8).map(|n| Identity::from_seed([n + 1; 32]));
        let collectors: Vec<NodeId> = collectors.map(|identity| identity.node_id()).collect();
        let mut keys = BTreeMap::new();
        for (number, keeper) in collectors.iter().enumerate() {
            for (version, random) in (0..32).flat_map(|n| (0..32).map(move |random| (n, random))) {
                let key = condemnations_key(keeper, version, u32::from(random));
                keys.insert((number as u8, version, random), key);
            }
        }
        Bucket {
            size,
            mutant,
            collectors,
            keys,
        }
    }

    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// The keys of all versions, by what they are called here.
    fn keys(&self, state: &State) -> BTreeMap<&str, Version> {
        let keys = state.versions.keys();
        keys.map(|version| (self.keys[version].as_str(), *version))
            .collect()
    }

    /// What a writer does next. `None` if its request was not answered yet.
    ///
    /// What it reads changes nothing, and what was written does not change; so it reads all condemnations
    /// in the moment in which it lists them.
    fn step_writer(&self, state: &mut State, number: usize) -> Option<()> {
        let mut writing = state.writers[number].take()?;
        let (record, packs) = writing.entry;
        let mut machine = match writing.machine {
            Writer::Refer(_) if state.late.contains(&Request::PutEntry(record, packs)) => {
                return None;
            }
            Writer::Refer(refer) => refer.written(),
            Writer::List(list) => {
                let left = packs & !writing.asked;
                let keys = self.keys(state);
                if self.is(Mutant::SeekBeforeList) && left != 0 {
                    ask(state, &mut writing.asked, &mut writing.there, left);
                    Writer::List(list)
                } else if self.is(Mutant::NoList) {
                    list.listed([]).unwrap()
                } else {
                    list.listed(keys.keys().copied()).unwrap()
                }
            }
            Writer::Seek(seek) => {
                let left = set(seek.packs()) & !writing.asked;
                ask(state, &mut writing.asked, &mut writing.there, left);
                Writer::Seek(seek)
            }
            Writer::Read(_) | Writer::Done(_) => unreachable!("it does not stay there"),
        };
        while let Writer::Read(read) = machine {
            let key = self.keys(state)[read.next().1];
            machine = read.read(&state.versions[&key]);
        }
        if let Writer::Seek(seek) = machine {
            let sought = match self.is(Mutant::NoSeek) {
                true => seek.packs().clone(),
                false => ids(writing.there),
            };
            let is_sought = sought == *seek.packs() || set(seek.packs()) & !writing.asked == 0;
            machine = match is_sought {
                true => seek.sought(&sought),
                false => Writer::Seek(seek),
            };
        }
        if let Writer::Done(done) = machine {
            if !done.durable.is_empty() && !state.is_dead(record) {
                state.durable.insert(writing.entry);
            }
            return Some(());
        }
        state.writers[number] = Some(Writing { machine, ..writing });
        Some(())
    }

    /// What a collector does next. `None` if its request was not answered yet, or it has nothing to do.
    fn step_collector(&self, state: &mut State, number: usize) -> Option<()> {
        let machine = match state.collectors[number].machine.take()? {
            Collector::Idle(_) => return None,
            Collector::Write(write) => {
                if state.late.contains(state.collectors[number].sent.as_ref()?) {
                    return None;
                }
                self.clear_away(state, number);
                write.written()
            }
            Collector::Look(look) => {
                let referred = match state.collectors[number].early.take() {
                    _ if self.is(Mutant::IgnoreReferences) => BTreeSet::new(),
                    Some(early) => ids(early),
                    None => state.referred(look.condemned()),
                };
                look.looked(&referred)
            }
            Collector::Delete(delete) => {
                let there = match self.is(Mutant::ForgetBeforeGone) {
                    true => BTreeSet::new(),
                    false => ids(state.packs),
                };
                delete.looked(|pack| there.contains(pack))
            }
        };
        self.send(state, number, machine);
        Some(())
    }

    /// Has a collector do what is to be done, as far as that is to write or to delete something: it takes
    /// effect later.
    fn send(&self, state: &mut State, number: usize, machine: Collector) {
        let collecting = &mut state.collectors[number];
        collecting.sent = None;
        match &machine {
            Collector::Write(write) => {
                let random = match self.is(Mutant::ReuseVersion) {
                    true => 0,
                    false => collecting.attempts,
                };
                collecting.attempts += 1;
                let key = (number as u8, write.version(), random);
                let sets = write.condemnations();
                let sets = (set(&sets.condemned), set(&sets.doomed));
                let request = Request::PutVersion(key, sets);
                state.late.insert(request.clone());
                collecting.sent = Some(request);
            }
            Collector::Delete(delete) => {
                let left = set(delete.left());
                state.late.extend(members(left).map(Request::Delete));
                state.deleted |= left;
            }
            Collector::Idle(_) | Collector::Look(_) => {}
        }
        collecting.machine = Some(machine);
    }

    /// Deletes versions that nobody looks at any more.
    fn clear_away(&self, state: &mut State, number: usize) {
        let keys = self.keys(state);
        let all: Vec<&str> = keys.keys().copied().collect();
        for key in outdated(&self.collectors[number], &all) {
            state.versions.remove(&keys[key]);
        }
    }

    /// Begins again with what the bucket has.
    fn start(&self, state: &State, number: usize) -> Collector {
        let keys = self.keys(state);
        let newest = newest_condemnations(keys.keys().copied());
        let newest = newest.get(&self.collectors[number]);
        let version = newest.map_or(0, |newest| newest.version);
        let found = newest.into_iter().flat_map(|newest| &newest.keys);
        let mut found: Vec<Condemnations> = found
            .map(|key| state.versions[&keys[key]].clone())
            .collect();
        if self.is(Mutant::Undoom) {
            for sets in &mut found {
                sets.condemned.append(&mut sets.doomed);
            }
        }
        match Collector::resume(version, &found) {
            Collector::Write(write) if self.is(Mutant::NoRestatement) => match write.written() {
                Collector::Write(write) => write.written(),
                other => other,
            },
            collector => collector,
        }
    }
}

/// Looks for one pack.
fn ask(state: &State, asked: &mut Set, there: &mut Set, left: Set) {
    let one = left & left.wrapping_neg();
    *asked |= one;
    *there |= state.packs & one;
}

impl Model for Bucket {
    type State = State;
    type Action = Action;

    /// A durable record whose pack is there, and nobody at work.
    fn init_states(&self) -> Vec<State> {
        let collecting = Collecting {
            machine: Some(Collector::resume(0, [])),
            sent: None,
            early: None,
            collections: 0,
            crashes: 0,
            attempts: 0,
        };
        vec![State {
            packs: 1,
            shown: 1,
            names: 1,
            entries: BTreeSet::from([(0, 1)]),
            references: 1,
            records: 1,
            dead: 0,
            durable: BTreeSet::from([(0, 1)]),
            versions: BTreeMap::new(),
            late: BTreeSet::new(),
            writers: vec![None; self.size.writers],
            collectors: vec![collecting; self.size.collectors],
            deleted: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.references < self.size.references {
            let again = if self.is(Mutant::ReusePackName) {
                0
            } else {
                state.names
            };
            for name in again..=state.names {
                if name < self.size.packs {
                    actions.push(Action::Upload {
                        name,
                        answered: true,
                    });
                    actions.push(Action::Upload {
                        name,
                        answered: false,
                    });
                }
            }
        }
        for (number, writing) in state.writers.iter().enumerate() {
            match writing {
                Some(writing) => {
                    actions.push(Action::Writer(number));
                    // Later that comes to the same: it only reads from then on.
                    if matches!(writing.machine, Writer::Refer(_)) {
                        actions.push(Action::GiveUp(number));
                    }
                }
                None if state.references < self.size.references => {
                    // However stale what it knows of packs.
                    for packs in (1..1 << state.names).filter(|set: &Set| set.count_ones() <= 2) {
                        for record in 0..(state.records + 1).min(self.size.records) {
                            if !state.is_dead(record) {
                                actions.push(Action::Refer {
                                    writer: number,
                                    record,
                                    packs,
                                });
                            }
                        }
                    }
                    // Those that do nothing are all alike.
                    break;
                }
                None => {}
            }
        }
        for (number, collecting) in state.collectors.iter().enumerate() {
            match &collecting.machine {
                None => actions.push(Action::Start(number)),
                Some(Collector::Idle(_)) => {
                    // It begins with a listing: what came late is seen by then.
                    if collecting.machine.as_ref() != Some(&self.start(state, number)) {
                        actions.push(Action::Start(number));
                    }
                    if collecting.collections < self.size.collections {
                        let shown = match self.is(Mutant::CondemnUnseen) {
                            true => Set::MAX,
                            false => state.shown,
                        };
                        let all = (1..1 << state.names).filter(|packs| packs & !shown == 0);
                        actions.extend(all.map(|packs| Action::Condemn(number, packs)));
                    }
                }
                Some(machine) => {
                    actions.push(Action::Collector(number));
                    // Before a look it comes to the same as before the answer that led there.
                    if !matches!(machine, Collector::Look(_))
                        && collecting.crashes < self.size.crashes
                    {
                        actions.push(Action::Crash(number));
                    }
                }
            }
        }
        let living = (0..state.records).filter(|record| !state.is_dead(*record));
        actions.extend(living.map(Action::Die));
        for request in &state.late {
            let request = request.clone();
            if matches!(request, Request::Delete(name) if state.packs >> name & 1 == 1) {
                actions.push(Action::Land {
                    request: request.clone(),
                    again: true,
                });
            }
            actions.push(Action::Land {
                request,
                again: false,
            });
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Upload { name, answered } => {
                state.names = state.names.max(name + 1);
                if answered {
                    state.land(&Request::PutPack(name));
                }
                if !answered || self.is(Mutant::RetryUpload) {
                    state.late.insert(Request::PutPack(name));
                }
            }
            Action::Refer {
                writer,
                record,
                packs,
            } => {
                state.references += 1;
                state.records = state.records.max(record + 1);
                let entry = (record, packs);
                state.late.insert(Request::PutEntry(record, packs));
                state.writers[writer] = Some(Writing {
                    machine: Writer::new(vec![reference(entry)]),
                    entry,
                    asked: 0,
                    there: 0,
                });
            }
            Action::Writer(number) => self.step_writer(&mut state, number)?,
            Action::GiveUp(number) => state.writers[number] = None,
            Action::Condemn(number, packs) => {
                if self.is(Mutant::LookBeforeCondemn) {
                    let early = state.referred(&ids(packs));
                    state.collectors[number].early = Some(set(&early));
                }
                state.collectors[number].collections += 1;
                let Some(Collector::Idle(idle)) = state.collectors[number].machine.take() else {
                    return None;
                };
                self.send(&mut state, number, idle.condemn(ids(packs)));
            }
            Action::Collector(number) => self.step_collector(&mut state, number)?,
            Action::Crash(number) => {
                let collecting = &mut state.collectors[number];
                collecting.machine = None;
                collecting.sent = None;
                collecting.early = None;
                collecting.crashes += 1;
            }
            Action::Start(number) => {
                let machine = self.start(&state, number);
                self.send(&mut state, number, machine);
            }
            Action::Die(record) => {
                state.dead |= 1 << record;
                state.durable.retain(|(durable, _)| *durable != record);
            }
            Action::Land { request, again } => {
                state.land(&request);
                if !again {
                    state.late.remove(&request);
                }
            }
        }
        // Writers are alike.
        state
            .writers
            .sort_by_key(|writing| writing.as_ref().map(key));
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(SAFE, |_, state: &State| {
                let mut durable = state.durable.iter();
                durable.all(|(_, packs)| packs & !state.packs == 0)
            }),
            Property::always(CLEAN, |model: &Bucket, state: &State| {
                !model.is_over(state) || model.is_clean(state)
            }),
            Property::sometimes(RECLAIMED, |_, state: &State| {
                state.deleted & !state.packs != 0
            }),
            Property::sometimes(SAVED, |_, state: &State| {
                let machines = state.collectors.iter().flat_map(|one| &one.machine);
                machines.into_iter().any(|machine| match machine {
                    Collector::Look(look) => !state.referred(look.condemned()).is_empty(),
                    _ => false,
                })
            }),
            Property::sometimes(REFUSED, |_, state: &State| {
                let mut writers = state.writers.iter().flatten();
                writers.any(|writing| match &writing.machine {
                    Writer::Seek(seek) => set(seek.packs()) != writing.entry.1,
                    _ => false,
                })
            }),
        ]
    }
}

impl Bucket {
    /// Whether nothing can happen any more, but that records die.
    fn is_over(&self, state: &State) -> bool {
        let mut actions = Vec::new();
        if state.late.is_empty() && state.writers.iter().all(Option::is_none) {
            self.actions(state, &mut actions);
            return actions
                .iter()
                .all(|action| matches!(action, Action::Die(_)));
        }
        false
    }

    /// Whether everything that was deleted is gone, and nothing is named any more.
    fn is_clean(&self, state: &State) -> bool {
        let keys = self.keys(state);
        let newest = newest_condemnations(keys.keys().copied());
        let mut named = newest.values().flat_map(|newest| &newest.keys);
        state.deleted & state.packs == 0
            && named.all(|key| state.versions[&keys[key]] == Condemnations::default())
    }
}

/// Tells writers apart.
fn key(writing: &Writing) -> (u8, Set, u8, Set, Set) {
    let step = match &writing.machine {
        Writer::Refer(_) => 0,
        Writer::List(_) => 1,
        Writer::Read(_) => 2,
        Writer::Seek(_) => 3,
        Writer::Done(_) => 4,
    };
    let (record, packs) = writing.entry;
    (record, packs, step, writing.asked, writing.there)
}

const SAFE: &str = "what a durable record needs is there";
const CLEAN: &str = "in the end what was doomed is gone, and nothing is named";
const RECLAIMED: &str = "a pack is reclaimed";
const SAVED: &str = "a pack is saved by a reference";
const REFUSED: &str = "a writer is refused";

/// One writer, one collector that crashes once: 83,821 states.
const SMALL: Size = Size {
    writers: 1,
    collectors: 1,
    packs: 2,
    records: 2,
    references: 2,
    collections: 1,
    crashes: 1,
};

/// A collector that crashes twice: 791,407 states.
const DEEP: Size = Size {
    crashes: 2,
    ..SMALL
};

/// A collector that collects twice: 644,256 states.
const LONG: Size = Size {
    collections: 2,
    ..SMALL
};

/// Two collectors: 370,363 states.
const MANY_COLLECTORS: Size = Size {
    collectors: 2,
    crashes: 0,
    ..SMALL
};

/// Two writers: 194,259 states.
const MANY_WRITERS: Size = Size {
    writers: 2,
    references: 3,
    crashes: 0,
    ..SMALL
};

/// Explores everything; returns the number of states.
#[track_caller]
fn explore(size: Size) -> usize {
    // Depth first takes less memory.
    let checker = Bucket::new(size, None)
        .checker()
        .threads(2)
        .spawn_dfs()
        .join();
    checker.assert_properties();
    checker.unique_state_count()
}

#[test]
fn nothing_durable_is_lost_and_nothing_doomed_stays() {
    let states = explore(SMALL);
    println!("{states} states");
}

/// `cargo test -p attic-p2p --test it -- --ignored --nocapture collector::` explores more.
macro_rules! larger {
    ($($name:ident: $size:expr;)*) => {
        $(#[test]
        #[ignore = "takes minutes"]
        fn $name() {
            println!("{} states", explore($size));
        })*
    };
}

larger! {
    nothing_is_lost_when_a_collector_crashes_twice: DEEP;
    nothing_is_lost_when_a_collector_collects_twice: LONG;
    nothing_is_lost_with_two_collectors: MANY_COLLECTORS;
    nothing_is_lost_with_two_writers: MANY_WRITERS;
    nothing_is_lost_with_two_of_each: Size { collectors: 2, ..MANY_WRITERS };
}

/// Each broken rule is found out, and how.
#[track_caller]
fn is_caught(mutant: Mutant, size: Size) {
    let finish = HasDiscoveries::AnyOf([SAFE].into());
    let checker = Bucket::new(size, Some(mutant)).checker();
    let checker = checker.threads(2).finish_when(finish).spawn_bfs().join();
    let Some(path) = checker.discovery(SAFE) else {
        panic!(
            "{mutant:?} is not found among {} states",
            checker.unique_state_count()
        );
    };
    let actions = path.into_actions();
    println!(
        "{mutant:?}, {} states: {actions:#?}",
        checker.unique_state_count()
    );
}

macro_rules! mutants {
    ($($name:ident: $mutant:ident, $size:expr;)*) => {
        $(#[test]
        fn $name() {
            is_caught(Mutant::$mutant, $size);
        })*
    };
}

mutants! {
    a_writer_must_look_for_condemnations: NoList, SMALL;
    a_writer_must_look_for_packs_last: SeekBeforeList, SMALL;
    a_writer_must_look_for_packs: NoSeek, SMALL;
    a_collector_must_condemn_before_it_looks: LookBeforeCondemn, SMALL;
    a_collector_must_save_what_is_referred_to: IgnoreReferences, SMALL;
    a_collector_must_see_packs_gone: ForgetBeforeGone, SMALL;
    what_is_doomed_must_stay_so: Undoom, SMALL;
    a_collector_must_say_again_what_it_condemned: NoRestatement, Size { crashes: 2, ..SMALL };
    names_of_versions_must_differ: ReuseVersion, Size { collections: 2, ..SMALL };
    names_of_packs_must_differ: ReusePackName, SMALL;
    uploads_must_not_be_repeated: RetryUpload, SMALL;
    what_is_condemned_must_have_been_seen: CondemnUnseen, SMALL;
}
