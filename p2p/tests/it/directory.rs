//! The fold: the same logs make the same state, and only what may count does.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use attic_p2p::collector::Life;
use attic_p2p::directory::{Change, Directory, Refused, told_apart};
use attic_p2p::ids::Dot;
use attic_p2p::log::{Log, MemoryLog};
use attic_p2p::membership::Role;
use attic_p2p::membership::genesis::ClusterKey;
use attic_p2p::membership::scopes::Scopes;
use attic_p2p::membership::time::UnixTime;
use attic_p2p::record::{Left, Record, Touch};
use attic_p2p::segment::Segment;
use attic_store::CacheName;
use proptest::prelude::*;

use crate::cluster::{Cluster, Writer, del, path_hash, tag};

/// A directory with its log, to which segments are offered in any order, again and again.
struct Fold {
    directory: Directory,
    log: MemoryLog,
}

impl Fold {
    fn new(cluster: &Cluster) -> Fold {
        Fold {
            directory: cluster.directory(),
            log: MemoryLog::default(),
        }
    }

    fn take(&mut self, segment: &Segment) -> Result<Vec<Change>, Refused> {
        let folded = self.directory.take(segment, &mut self.log)?;
        for (node, seq) in folded.needless_before {
            self.log.forget_before(node, seq).unwrap();
        }
        Ok(folded.changes)
    }

    /// Offers all segments until none is new; proofs of forks are folded.
    fn take_all<'a>(&mut self, segments: impl Iterator<Item = &'a Segment> + Clone) {
        let mut progress = true;
        let mut rounds = 0;
        while progress {
            progress = false;
            rounds += 1;
            assert!(rounds < 500, "it goes on for ever");
            for segment in segments.clone() {
                match self.take(segment) {
                    Ok(_) => progress = true,
                    Err(Refused::Fork(proof)) => {
                        self.directory.quarantine(*proof, &mut self.log).unwrap();
                        progress = true;
                    }
                    Err(_) => {}
                }
            }
        }
    }

    fn has(&self, cluster: &Cluster, number: u32) -> bool {
        let found = self
            .directory
            .path(&self.log, cluster.cache(), path_hash(number));
        found.unwrap().is_some()
    }
}

fn fold(cluster: &Cluster, writers: &[&Writer]) -> Fold {
    let mut fold = Fold::new(cluster);
    fold.take_all(writers.iter().flat_map(|writer| &writer.segments));
    fold
}

#[test]
fn a_signed_path_of_a_writer_is_found_by_path_and_by_nar() {
    let cluster = Cluster::new();
    let mut writer = cluster.writer(1);
    let path = cluster.path(7);
    writer.append(&[cluster.config(1), Record::Path(path.clone())]);
    writer.append(&[Record::Hold(vec![tag(7)])]);
    let fold = fold(&cluster, &[&writer]);
    let directory = &fold.directory;
    let found = directory.path(&fold.log, cluster.cache(), path_hash(7));
    assert_eq!(found.unwrap().map(|(_, path)| path), Some(path.clone()));
    let found = directory.nar(&fold.log, cluster.cache(), &path.info.nar_hash);
    assert_eq!(found.unwrap().map(|(_, path)| path), Some(path));
    assert_eq!(directory.holders(tag(7)), [writer.node()]);
    assert_eq!(directory.paths(cluster.cache(), None, 10), [path_hash(7)]);
    let name = "main".parse().unwrap();
    let id = directory.cache_by_name(&name).map(|view| view.id);
    assert_eq!(id, Some(cluster.cache()));
}

#[test]
fn a_path_without_a_good_signature_is_not_found() {
    let cluster = Cluster::new();
    let mut writer = cluster.writer(1);
    let mut forged = cluster.path(8);
    forged.info.nar_size += 1;
    let unsigned = Record::Path(cluster.unsigned_path(7));
    writer.append(&[cluster.config(1), unsigned, Record::Path(forged)]);
    let fold = fold(&cluster, &[&writer]);
    assert!(!fold.has(&cluster, 7));
    assert!(!fold.has(&cluster, 8));
}

#[test]
fn caches_of_one_name_are_told_apart_by_their_ids_whatever_else_is_called_so() {
    let cluster = Cluster::new();
    let named = |name: &str, nonce| cluster.other_cache(name, nonce);
    let mut same: Vec<_> = (1..4).map(|nonce| named("foo", nonce)).collect();
    same.sort_by_key(|(id, _)| *id);
    let by_id = |number: usize, digits: usize| {
        let (id, _) = &same[number];
        format!("foo-{}", &id.to_string()[..digits])
    };
    // Made to take the name that another has, with an id that comes first.
    let squatter = (1..=255).map(|nonce| named(&by_id(1, 8), nonce));
    let squatter = { squatter }.find(|(id, _)| *id < same[1].0);
    let squatter = squatter.expect("one of many ids is low");
    let mut writer = cluster.writer(1);
    let others = [same[2].clone(), squatter.clone(), same[0].clone()];
    let configs: Vec<Record> = others
        .iter()
        .chain(&same[1..2])
        .map(|c| c.1.clone())
        .collect();
    writer.append(&configs);
    let fold = fold(&cluster, &[&writer]);
    let found: BTreeMap<_, _> = { fold.directory.caches().into_iter() }
        .map(|view| (view.name.to_string(), view.id))
        .collect();
    let expected = BTreeMap::from([
        ("foo".to_owned(), same[0].0),
        (by_id(1, 8), squatter.0),
        (by_id(1, 16), same[1].0),
        (by_id(2, 8), same[2].0),
    ]);
    assert_eq!(found, expected);
    let long: CacheName = "x".repeat(CacheName::LEN_MAX).parse().unwrap();
    let names: Vec<_> = told_apart(&long, same[0].0).collect();
    let digits = same[0].0.to_string();
    let cut = |count: usize| format!("{}-{}", "x".repeat(49 - count), &digits[..count]);
    let expected: Vec<CacheName> = [8, 16, 32].map(|n| cut(n).parse().unwrap()).into();
    assert_eq!(names, expected);
}

#[test]
fn a_removed_path_is_known_to_be_one_until_it_is_said_again() {
    let cluster = Cluster::new();
    let (mut writer, mut other) = (cluster.writer(1), cluster.writer(2));
    writer.append(&[cluster.config(1)]);
    let dot = writer.next_dot();
    writer.append(&[Record::Path(cluster.path(7))]);
    let is_removed = |writers: &[&Writer], number| {
        let fold = fold(&cluster, writers);
        let directory = &fold.directory;
        directory.is_removed_path(cluster.cache(), path_hash(number))
    };
    assert!(!is_removed(&[&writer, &other], 7), "said");
    assert!(!is_removed(&[&writer, &other], 8), "never heard of");
    other.append(&[del(vec![dot])]);
    assert!(is_removed(&[&writer, &other], 7));
    assert!(!is_removed(&[&writer], 7), "not heard yet");
    other.append(&[Record::Path(cluster.path(7))]);
    assert!(!is_removed(&[&writer, &other], 7), "said again");
}

#[test]
fn who_may_not_write_adds_removes_and_founds_nothing() {
    let cluster = Cluster::new();
    let mut reader = cluster.newcomer(2);
    let certificate = cluster.certificate(2, Scopes::read_all());
    reader.append(&[Record::Member(certificate), cluster.config(1)]);
    reader.append(&[Record::Path(cluster.path(8))]);
    let alone = fold(&cluster, &[&reader]);
    assert!(alone.directory.caches().is_empty());

    let mut writer = cluster.writer(1);
    let dot = writer.next_dot();
    writer.append(&[Record::Path(cluster.path(7)), cluster.config(1)]);
    reader.append(&[del(vec![dot])]);
    let fold = fold(&cluster, &[&writer, &reader]);
    assert!(fold.has(&cluster, 7));
    assert!(!fold.has(&cluster, 8));
}

#[test]
fn a_removal_is_for_ever_but_spares_what_is_pushed_again() {
    let cluster = Cluster::new();
    let (mut one, mut two) = (cluster.writer(1), cluster.writer(2));
    let dot = one.next_dot();
    one.append(&[Record::Path(cluster.path(7)), cluster.config(1)]);
    two.append(&[del(vec![dot])]);
    let mut gone = fold(&cluster, &[&one, &two]);
    assert!(!gone.has(&cluster, 7));
    gone.take_all(one.segments.iter());
    assert!(!gone.has(&cluster, 7), "replayed");
    one.append(&[Record::Path(cluster.path(7))]);
    assert!(fold(&cluster, &[&one, &two]).has(&cluster, 7));
}

/// A path that is there is pushed again, by the node that said it or by another, while a node that has
/// not heard of that removes all records it knows. The path stays, in whatever order others hear of it.
#[test]
fn a_removal_that_crosses_what_is_said_again_spares_it() {
    let cluster = Cluster::new();
    for by_its_author in [true, false] {
        let [mut one, mut two, mut three] = [1, 2, 3].map(|number| cluster.writer(number));
        let old = one.next_dot();
        let first = one.append(&[Record::Path(cluster.path(7)), cluster.config(1)]);
        let removal = three.append(&[del(vec![old])]);
        let again_by = if by_its_author { &mut one } else { &mut two };
        let new = again_by.next_dot();
        let again = again_by.append(&[Record::Path(cluster.path(7))]);
        let orders = [[&first, &removal, &again], [&first, &again, &removal]];
        let [heard_first, said_first] = orders.map(|order| {
            let mut fold = Fold::new(&cluster);
            for writer in [&one, &two, &three] {
                fold.take(&writer.segments[0]).unwrap();
            }
            for segment in order {
                fold.take(segment).unwrap();
            }
            fold
        });
        assert_eq!(
            heard_first.directory.digest(),
            said_first.directory.digest()
        );
        for mut fold in [heard_first, said_first] {
            let cache = cluster.cache();
            assert!(fold.has(&cluster, 7));
            assert_eq!(fold.directory.dots(cache, path_hash(7)), [new]);
            let said_at = |fold: &Fold| fold.directory.said_at(new.node, cache, path_hash(7));
            assert_eq!(said_at(&fold), Some(new.seq));
            // Who has heard of it removes it.
            let mut knowing = three.clone();
            fold.take(&knowing.append(&[del(vec![new])])).unwrap();
            assert!(!fold.has(&cluster, 7));
            assert_eq!(said_at(&fold), Some(new.seq), "removed since or not");
        }
    }
}

/// That the bucket has a path is for a keeper to say, of one record of it, and is known of that one
/// wherever and in whatever order it was heard.
#[test]
fn a_record_is_durable_when_a_keeper_says_so() {
    let cluster = Cluster::new();
    let (mut one, mut two) = (cluster.writer(1), cluster.writer(2));
    let mut keeper = cluster.newcomer(3);
    let certificate = cluster.certificate_as(Role::Keeper, 3, Scopes::all());
    keeper.append(&[Record::Member(certificate.clone())]);
    one.append(&[cluster.config(1)]);
    let first = one.next_dot();
    one.append(&[Record::Path(cluster.path(7)), Record::Path(cluster.path(8))]);
    let second = Dot { index: 1, ..first };
    two.append(&[Record::Durable(vec![first, second])]);
    let mut fold = fold(&cluster, &[&one, &two, &keeper]);
    let lacking = |fold: &Fold| fold.directory.not_durable(cluster.cache(), None, 10);
    assert_eq!(lacking(&fold).len(), 2, "a member's word is none");

    let word = Record::Durable(vec![first]);
    let changes = fold
        .take(&keeper.append(std::slice::from_ref(&word)))
        .unwrap();
    assert_eq!(changes, [Change::Durable(keeper.node())]);
    let durable = |fold: &Fold| [first, second].map(|dot| fold.directory.is_durable(dot));
    assert_eq!(durable(&fold), [true, false]);
    assert_eq!(lacking(&fold), [(path_hash(8), vec![second])]);
    assert_eq!(
        fold.directory
            .not_durable(cluster.cache(), Some(path_hash(8)), 10),
        []
    );

    // What is said of a path again is another record.
    let again = one.next_dot();
    fold.take(&one.append(&[Record::Path(cluster.path(7))]))
        .unwrap();
    assert_eq!(durable(&fold), [true, false]);
    let of = |hash| {
        lacking(&fold)
            .into_iter()
            .find(|(lacking, _)| *lacking == hash)
    };
    assert_eq!(of(path_hash(7)), Some((path_hash(7), vec![again])));
    fold.take(&two.append(&[del(vec![second])])).unwrap();
    assert_eq!(lacking(&fold), [(path_hash(7), vec![again])], "removed");

    let live = fold
        .directory
        .live_records(keeper.node(), &fold.log)
        .unwrap();
    assert_eq!(live.records.len(), 1, "{live:?}");
    assert_eq!(Record::decode(&live.records[0].encoded), Ok(word.clone()));
    let spot = (live.records[0].seq, live.records[0].index, word);
    let before = keeper.segments.len();
    keeper.checkpoint(&[(0, 0, Record::Member(certificate)), spot]);
    for segment in &keeper.segments[before..] {
        fold.take(segment).unwrap();
    }
    assert_eq!(durable(&fold), [true, false]);
    let late = crate::directory::fold(&cluster, &[&keeper, &two, &one]);
    assert_eq!(late.directory.digest(), fold.directory.digest());
    assert_eq!(durable(&late), [true, false]);
    fold.take(&two.append(&[cluster.revocation(keeper.node(), 1)]))
        .unwrap();
    assert_eq!(durable(&fold), [false, false], "taken out");
}

/// Row G5: a record is dead when that is certain, and not when it was not heard, or cannot be read.
#[test]
fn g5_a_record_is_dead_only_when_that_is_certain() {
    let cluster = Cluster::new();
    let (mut one, mut two) = (cluster.writer(1), cluster.writer(2));
    one.append(&[cluster.config(1)]);
    let first = one.next_dot();
    one.append(&[Record::Path(cluster.path(7)), Record::Path(cluster.path(8))]);
    let second = Dot { index: 1, ..first };
    let unheard = one.next_dot();
    let mut fold = fold(&cluster, &[&one, &two]);
    let life = |fold: &Fold, dot| fold.directory.life(&fold.log, dot).unwrap();
    assert_eq!(life(&fold, first), Life::Live);
    assert_eq!(life(&fold, second), Life::Live);
    assert_eq!(life(&fold, unheard), Life::Unknown);
    let stranger = Dot {
        node: cluster.newcomer(9).node(),
        ..first
    };
    assert_eq!(life(&fold, stranger), Life::Unknown);
    fold.take(&two.append(&[del(vec![second])])).unwrap();
    assert_eq!(life(&fold, first), Life::Live);
    assert_eq!(life(&fold, second), Life::Dead);
    let mut living = Vec::new();
    fold.directory
        .each_living(|dot, is_durable| living.push((dot, is_durable)));
    assert_eq!(living, [(first, false)]);
    // Its log has lost what it says: that is no sign of death.
    let damaged = MemoryLog::default();
    assert_eq!(fold.directory.life(&damaged, first).unwrap(), Life::Unknown);
}

/// What a checkpoint does not say any more is dead for who heard of it before and for who did not.
#[test]
fn g5_what_a_checkpoint_has_dropped_is_dead() {
    let cluster = Cluster::new();
    let writer = checkpointed(&cluster);
    let late = fold(&cluster, &[&writer]);
    let mut early = Fold::new(&cluster);
    for segment in &writer.segments {
        early.take(segment).unwrap();
    }
    for fold in [&early, &late] {
        let life = |seq| {
            let dot = Dot {
                node: writer.node(),
                seq,
                index: 0,
            };
            fold.directory.life(&fold.log, dot).unwrap()
        };
        let lives = [3, 4, 5, 6].map(life);
        assert_eq!(lives, [Life::Dead, Life::Live, Life::Dead, Life::Dead]);
    }
}

#[test]
fn a_removal_waits_for_what_it_removes() {
    let cluster = Cluster::new();
    let (mut one, mut two) = (cluster.writer(1), cluster.writer(2));
    let dot = one.next_dot();
    one.append(&[Record::Path(cluster.path(7))]);
    let removal = two.append(&[del(vec![dot])]);
    let mut early = fold(&cluster, &[]);
    early.take(&two.segments[0]).unwrap();
    let outcome = early.take(&removal);
    assert!(matches!(outcome, Err(Refused::Waiting(f)) if f.node == one.node() && f.seq == 2));
    early.take_all(one.segments.iter());
    assert!(early.take(&removal).is_ok());
}

/// Nobody removes what was not written yet, be it by a checkpoint.
#[test]
fn a_checkpoint_waits_for_what_it_removes() {
    let cluster = Cluster::new();
    let (mut one, mut two) = (cluster.writer(1), cluster.writer(2));
    one.append(&[cluster.config(1)]);
    let dot = one.next_dot();
    one.append(&[Record::Path(cluster.path(7))]);
    two.append(&[Record::Hold(vec![tag(7)])]);
    let certificate = Record::Member(cluster.certificate(2, Scopes::all()));
    two.checkpoint(&[(0, 0, certificate), (2, 0, del(vec![dot]))]);
    let mut early = fold(&cluster, &[]);
    early.take_all(two.segments.iter());
    early.take_all(one.segments.iter().take(2));
    assert_eq!(
        early.directory.holders(tag(7)),
        [two.node()],
        "not in force"
    );
    assert_eq!(early.directory.seq(two.node()), 3);
    early.take_all(one.segments.iter());
    assert!(early.directory.holders(tag(7)).is_empty());
    assert_eq!(early.directory.seq(two.node()), 4);
    assert!(!early.has(&cluster, 7));
}

#[test]
fn strangers_and_other_clusters_are_refused() {
    let cluster = Cluster::new();
    let mut stranger = cluster.newcomer(9);
    let segment = stranger.append(&[Record::Hold(vec![tag(1)])]);
    let mut fold = Fold::new(&cluster);
    assert!(matches!(fold.take(&segment), Err(Refused::NotMember)));
    // A certificate counts in its node's own log only.
    let mut thief = cluster.newcomer(9);
    let segment = thief.append(&[Record::Member(cluster.certificate(1, Scopes::all()))]);
    assert!(matches!(fold.take(&segment), Err(Refused::NotMember)));
    let mut foreign = cluster.newcomer(1);
    foreign.place.cluster = attic_p2p::ids::ClusterId::from_bytes([9; 16]);
    let segment = foreign.append(&[Record::Member(cluster.certificate(1, Scopes::all()))]);
    assert!(matches!(fold.take(&segment), Err(Refused::Cluster)));
}

#[test]
fn gaps_are_refused_and_named() {
    let cluster = Cluster::new();
    let mut writer = cluster.writer(1);
    writer.append(&[]);
    let third = writer.append(&[]);
    let mut fold = Fold::new(&cluster);
    fold.take(&writer.segments[0]).unwrap();
    assert!(matches!(fold.take(&third), Err(Refused::Gap { next: 2 })));
    assert!(matches!(
        fold.take(&writer.segments[0]),
        Err(Refused::Known)
    ));
}

#[test]
fn a_fork_takes_the_whole_log_out_whichever_branch_came_first() {
    let cluster = Cluster::new();
    let mut honest = cluster.writer(1);
    honest.append(&[cluster.config(1), Record::Path(cluster.path(1))]);
    let mut left = cluster.writer(2);
    left.append(&[Record::Path(cluster.path(7))]);
    let mut right = left.clone();
    left.append(&[Record::Path(cluster.path(8))]);
    left.append(&[Record::Hold(vec![tag(8)])]);
    right.append(&[Record::Path(cluster.path(9))]);
    let one = fold(&cluster, &[&honest, &left, &right]);
    let two = fold(&cluster, &[&right, &left, &honest]);
    assert!(one.directory.is_quarantined(left.node()));
    assert!(one.has(&cluster, 1));
    assert!(!one.has(&cluster, 7));
    assert_eq!(one.directory.digest(), two.directory.digest());
    assert_eq!(one.directory.uncarried().len(), 1, "somebody must say it");
    // Told by another's log it is the same.
    let proof = one.directory.uncarried().remove(0);
    let mut told = Fold::new(&cluster);
    let mut teller = cluster.writer(3);
    teller.append(&[proof]);
    told.take_all(left.segments.iter().chain(&teller.segments));
    assert!(told.directory.is_quarantined(left.node()));
    assert!(told.directory.uncarried().is_empty());
    let outcome = told.take(&right.segments[0]);
    assert!(matches!(outcome, Err(Refused::Quarantined)));
}

#[test]
fn a_revocation_cuts_the_log_on_every_node_alike() {
    let cluster = Cluster::new();
    let mut bad = cluster.writer(2);
    bad.append(&[cluster.config(1), Record::Path(cluster.path(7))]);
    bad.append(&[Record::Path(cluster.path(8)), Record::Hold(vec![tag(8)])]);
    let mut admin = cluster.writer(1);
    admin.append(&[cluster.revocation(bad.node(), 2), cluster.config(1)]);
    let late = fold(&cluster, &[&bad, &admin]);
    let early = fold(&cluster, &[&admin, &bad]);
    assert_eq!(late.directory.digest(), early.directory.digest());
    assert_eq!(late.directory.seq(bad.node()), 2);
    assert!(late.has(&cluster, 7));
    assert!(!late.has(&cluster, 8));
    assert!(late.directory.is_revoked(bad.node()));
    assert!(late.directory.holders(tag(8)).is_empty());
}

/// The cluster key ends a cache, whoever made it, on every node alike and for good: not who made it
/// brings it back, nor who repeats the record and has another key.
#[test]
fn the_cluster_key_ends_a_cache_for_good() {
    let cluster = Cluster::new();
    let mut owner = cluster.writer(2);
    owner.append(&[cluster.config(1), Record::Path(cluster.path(7))]);
    let foreign = ClusterKey::from_seed([99; 32]);
    let mut admin = cluster.writer(1);
    admin.append(&[cluster.end_of_cache(&foreign)]);
    let before = fold(&cluster, &[&owner, &admin]);
    assert!(before.has(&cluster, 7));
    assert!(!before.directory.is_ended(cluster.cache()));
    let makers = before.directory.makers(cluster.cache());
    assert!(makers.into_iter().eq([owner.node()]));

    admin.append(&[cluster.end_of_cache(&cluster.key)]);
    owner.append(&[cluster.config(9), Record::Path(cluster.path(8))]);
    let late = fold(&cluster, &[&owner, &admin]);
    let early = fold(&cluster, &[&admin, &owner]);
    assert_eq!(late.directory.digest(), early.directory.digest());
    for folded in [&late, &early] {
        assert!(folded.directory.is_ended(cluster.cache()));
        assert!(!folded.has(&cluster, 7) && !folded.has(&cluster, 8));
        assert!(folded.directory.caches().is_empty());
        assert!(folded.directory.paths(cluster.cache(), None, 9).is_empty());
    }
}

/// A log in which much is obsolete, and its checkpoint.
/// Who left is no holder any more, and is a member again with the next certificate in its log, be it
/// the one it had. Of another nobody can say it.
#[test]
fn who_says_to_leave_has_left_until_it_shows_a_certificate_again() {
    let cluster = Cluster::new();
    let (mut goes, mut stays) = (cluster.writer(1), cluster.writer(2));
    let left = Record::Left(Left { at: UnixTime(7) });
    goes.append(&[Record::Hold(vec![tag(1)])]);
    stays.append(&[Record::Hold(vec![tag(1)])]);
    let before = fold(&cluster, &[&goes, &stays]);
    assert_eq!(before.directory.holders(tag(1)).len(), 2);

    goes.append(std::slice::from_ref(&left));
    let mut gone = fold(&cluster, &[&goes, &stays]);
    let node = goes.node();
    assert_eq!(gone.directory.left_at(node), Some(UnixTime(7)));
    assert_eq!(gone.directory.left_at(stays.node()), None);
    assert_eq!(gone.directory.holders(tag(1)), [stays.node()]);
    let restarted = cluster.load(&mut gone.log);
    assert_eq!(restarted.left_at(node), Some(UnixTime(7)));
    let live = restarted.live_records(node, &gone.log).unwrap().records;
    assert!(
        live.iter()
            .any(|live| live.encoded == left.encode().unwrap())
    );

    let certificate = Record::Member(cluster.certificate(1, Scopes::all()));
    let back = goes.append(std::slice::from_ref(&certificate));
    let changes = gone.take(&back).unwrap();
    assert!(changes.contains(&Change::Member(node)));
    assert_eq!(gone.directory.left_at(node), None);
    assert_eq!(gone.directory.holders(tag(1)).len(), 2);
    let live = gone
        .directory
        .live_records(node, &gone.log)
        .unwrap()
        .records;
    assert!(
        !live
            .iter()
            .any(|live| live.encoded == left.encode().unwrap())
    );

    // A restatement that has it still says the same.
    let mut other = cluster.writer(3);
    let dot = other.next_dot();
    other.append(std::slice::from_ref(&left));
    let own = Record::Member(cluster.certificate(3, Scopes::all()));
    other.checkpoint(&[(0, 0, own), (dot.seq, dot.index, left)]);
    let fold = fold(&cluster, &[&other]);
    assert_eq!(fold.directory.left_at(other.node()), Some(UnixTime(7)));
}

fn checkpointed(cluster: &Cluster) -> Writer {
    let mut writer = cluster.writer(1);
    writer.append(&[cluster.config(1)]);
    let first = writer.next_dot();
    for number in 0..4 {
        writer.append(&[Record::Path(cluster.path(number))]);
    }
    let kept = Dot {
        seq: first.seq + 1,
        ..first
    };
    let removed = [0, 2, 3].map(|offset| Dot {
        seq: first.seq + offset,
        ..first
    });
    writer.append(&[del(removed.to_vec())]);
    let certificate = cluster.certificate(1, Scopes::all());
    writer.checkpoint(&[
        (0, 0, Record::Member(certificate)),
        (2, 0, cluster.config(1)),
        (kept.seq, kept.index, Record::Path(cluster.path(1))),
    ]);
    writer.append(&[Record::Hold(vec![tag(1)])]);
    writer
}

#[test]
fn a_late_joiner_needs_the_checkpoint_only() {
    let cluster = Cluster::new();
    let writer = checkpointed(&cluster);
    let all = fold(&cluster, &[&writer]);
    let mut late = Fold::new(&cluster);
    let from = all.directory.first_needed(writer.node()) as usize - 1;
    late.take_all(writer.segments[from..].iter());
    assert_eq!(late.directory.digest(), all.directory.digest());
    assert!(late.has(&cluster, 1));
    assert!(!late.has(&cluster, 0));
    assert_eq!(all.log.range(writer.node()).unwrap().0, from as u64 + 1);
    let dot = late.directory.dots(cluster.cache(), path_hash(1));
    assert_eq!(dot[0].seq, 4, "the dot is the first one");
    // And a restart folds the same.
    let digest = late.directory.digest();
    assert_eq!(cluster.load(&mut late.log).digest(), digest);
}

#[test]
fn a_checkpoint_counts_when_it_is_complete() {
    let cluster = Cluster::new();
    let writer = checkpointed(&cluster);
    let last_part = writer.segments.len() - 2;
    let mut partial = Fold::new(&cluster);
    partial.take_all(writer.segments[..last_part].iter());
    let node = writer.node();
    assert_eq!(partial.directory.seq(node), last_part as u64);
    assert_eq!(partial.directory.first_needed(node), 1);
    assert!(partial.has(&cluster, 1));

    let mut late = Fold::new(&cluster);
    let parts = &writer.segments[last_part - 2..last_part];
    late.take_all(parts.iter());
    assert_eq!(late.directory.seq(node), 0);
    assert_eq!(late.directory.next_wanted(node), last_part as u64 + 1);
    // An interrupted one survives a restart.
    let reloaded = cluster.load(&mut late.log);
    assert_eq!(reloaded.next_wanted(node), last_part as u64 + 1);
    late.take_all(writer.segments[last_part..].iter());
    assert!(late.has(&cluster, 1));
}

#[test]
fn an_abandoned_checkpoint_means_nothing() {
    let cluster = Cluster::new();
    let mut writer = checkpointed(&cluster);
    let certificate = Record::Member(cluster.certificate(1, Scopes::all()));
    let before = fold(&cluster, &[&writer]).directory.stats();
    let (segments, place) = (writer.segments.len(), writer.place);
    writer.checkpoint(&[(0, 0, certificate.clone()), (0, 1, certificate)]);
    writer.segments.truncate(segments + 1);
    writer.place = place;
    writer.place.seq += 1;
    writer.place.prev = writer.segments[segments].id();
    writer.append(&[Record::Hold(vec![tag(3)])]);
    let after = fold(&cluster, &[&writer]);
    assert!(after.has(&cluster, 1));
    assert_eq!(after.directory.stats().paths, before.paths);
    assert_eq!(after.directory.holders(tag(3)), [writer.node()]);
}

#[test]
fn a_damaged_log_is_folded_up_to_the_damage_and_on_when_that_came_again() {
    let cluster = Cluster::new();
    let mut writer = cluster.writer(1);
    for number in 0..5 {
        writer.append(&[Record::Hold(vec![tag(number)])]);
    }
    let mut log = MemoryLog::default();
    for (seq, segment) in (1..).zip(&writer.segments) {
        let bytes = match seq {
            4 => vec![0; 100].into(),
            _ => segment.bytes().clone(),
        };
        log.append(writer.node(), seq, bytes).unwrap();
    }
    let mut directory = cluster.load(&mut log);
    assert_eq!(directory.seq(writer.node()), 3);
    assert_eq!(log.range(writer.node()), Some((1, 6)), "what follows stays");
    directory.take(&writer.segments[3], &mut log).unwrap();
    assert_eq!(directory.seq(writer.node()), 6);
    let whole = cluster.load(&mut log);
    assert_eq!(directory.digest(), whole.digest());
}

/// An author chooses the number of a checkpoint; looking for what lies below must not take for ever.
#[test]
fn a_log_with_a_gap_of_billions_is_loaded_at_once() {
    let cluster = Cluster::new();
    let mut writer = cluster.writer(1);
    writer.append(&[Record::Hold(vec![tag(1)])]);
    writer.place.seq = u64::from(u32::MAX);
    let certificate = Record::Member(cluster.certificate(1, Scopes::all()));
    writer.checkpoint(&[(0, 0, certificate)]);
    let mut log = MemoryLog::default();
    let mut directory = cluster.directory();
    for segment in &writer.segments {
        directory.take(segment, &mut log).unwrap();
    }
    let range = log.range(writer.node());
    assert_eq!(range, Some((1, u64::from(u32::MAX))));
    let start = Instant::now();
    let loaded = cluster.load(&mut log);
    assert_eq!(loaded.digest(), directory.digest());
    assert!(start.elapsed() < Duration::from_secs(10));
}

/// What a generated node does next.
#[derive(Clone, Debug)]
enum Deed {
    Path(u32),
    Hold(u32),
    Release(u32),
    Remove { of: usize, number: u32 },
    Touch,
    Config(u64),
    Checkpoint,
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        4 => (0u32..8).prop_map(Deed::Path),
        3 => (0u32..8).prop_map(Deed::Hold),
        2 => (0u32..8).prop_map(Deed::Release),
        3 => (0usize..3, 0u32..8).prop_map(|(of, number)| Deed::Remove { of, number }),
        1 => Just(Deed::Touch),
        1 => (1u64..4).prop_map(Deed::Config),
        1 => Just(Deed::Checkpoint),
    ]
}

/// Carries out deeds, each node seeing all that was done before; all segments in one causal order.
fn history(cluster: &Cluster, deeds: &[(usize, Deed)]) -> (Vec<Writer>, Fold) {
    let mut writers: Vec<Writer> = (1..=3).map(|number| cluster.writer(number)).collect();
    let mut fold = fold(cluster, &writers.iter().collect::<Vec<_>>());
    for (who, deed) in deeds {
        let record =
            match deed {
                Deed::Path(number) => Record::Path(cluster.path(*number)),
                Deed::Hold(number) => Record::Hold(vec![tag(*number)]),
                Deed::Release(number) => Record::Release(vec![tag(*number)]),
                Deed::Remove { of, number } => {
                    let node = writers[*of].node();
                    let dots = fold.directory.dots(cluster.cache(), path_hash(*number));
                    del(dots.into_iter().filter(|dot| dot.node == node).collect())
                }
                Deed::Touch => Record::Touch(Touch {
                    day: 20_000,
                    prefixes: vec![1],
                }),
                Deed::Config(version) => cluster.config(*version),
                Deed::Checkpoint => {
                    let node = writers[*who].node();
                    let live = fold.directory.live_records(node, &fold.log).unwrap();
                    let certificate = cluster.certificate(*who as u8 + 1, Scopes::all());
                    let mut entries = vec![(0, 0, Record::Member(certificate))];
                    entries.extend(
                        (1..)
                            .zip(live.context())
                            .map(|(index, record)| (0, index, record)),
                    );
                    entries.extend(live.records.iter().map(|live| {
                        (live.seq, live.index, Record::decode(&live.encoded).unwrap())
                    }));
                    let before = writers[*who].segments.len();
                    writers[*who].checkpoint(&entries);
                    let paths = |fold: &Fold| fold.directory.paths(cluster.cache(), None, 100);
                    let holders = |fold: &Fold| {
                        (0..8)
                            .map(|n| fold.directory.holders(tag(n)))
                            .collect::<Vec<_>>()
                    };
                    let (paths_before, holders_before) = (paths(&fold), holders(&fold));
                    for segment in &writers[*who].segments[before..] {
                        fold.take(segment).unwrap();
                    }
                    assert_eq!(paths(&fold), paths_before, "a checkpoint changes nothing");
                    assert_eq!(
                        holders(&fold),
                        holders_before,
                        "a checkpoint changes nothing"
                    );
                    continue;
                }
            };
        let segment = writers[*who].append(&[record]);
        fold.take(&segment).unwrap();
    }
    (writers, fold)
}

/// Of each the other removed something, and dropped it when it restated what it says; what came before
/// nobody has any more.
#[test]
fn checkpoints_that_name_each_other_come_into_force_together() {
    let cluster = Cluster::new();
    let deeds = [
        (1, Deed::Path(6)),
        (0, Deed::Path(0)),
        (0, Deed::Config(1)),
        (1, Deed::Remove { of: 0, number: 0 }),
        (0, Deed::Path(0)),
        (0, Deed::Path(0)),
        (0, Deed::Remove { of: 1, number: 6 }),
        (0, Deed::Checkpoint),
        (0, Deed::Path(3)),
        (1, Deed::Remove { of: 0, number: 3 }),
        (1, Deed::Checkpoint),
        (0, Deed::Path(4)),
    ];
    let (writers, whole) = history(&cluster, &deeds);
    let is_needed = |segment: &&Segment| {
        segment.head().seq >= whole.directory.first_needed(segment.head().node)
    };
    let needed = |writer: &Writer| -> Vec<Segment> {
        let segments = writer.segments.iter().filter(is_needed);
        segments.cloned().collect()
    };
    let logs: Vec<Vec<Segment>> = writers.iter().map(needed).collect();
    // In one order, in the other, and by a node that knows how it began.
    for order in [[0, 1, 2], [2, 1, 0]] {
        for begun in [0, 1, 2] {
            let mut late = Fold::new(&cluster);
            for writer in &writers {
                late.take_all(writer.segments.iter().take(begun));
            }
            let segments = order.iter().flat_map(|writer| &logs[*writer]);
            late.take_all(segments);
            assert_eq!(late.directory.digest(), whole.directory.digest());
            assert!(late.has(&cluster, 0) && late.has(&cluster, 4));
            assert!(!late.has(&cluster, 3) && !late.has(&cluster, 6));
            assert_eq!(late.log.range(writers[0].node()), {
                let last = writers[0].segments.len() as u64;
                Some((whole.directory.first_needed(writers[0].node()), last))
            });
            let reloaded = cluster.load(&mut late.log);
            assert_eq!(reloaded.digest(), whole.directory.digest());
        }
    }
}

/// What was removed does not come back for a while: a checkpoint that does not restate a removal waits
/// for the log that dropped what was removed.
#[test]
fn a_checkpoint_waits_for_what_it_relies_on() {
    let cluster = Cluster::new();
    let deeds = [
        (0, Deed::Config(1)),
        (0, Deed::Path(0)),
        (1, Deed::Remove { of: 0, number: 0 }),
        (0, Deed::Checkpoint),
        (1, Deed::Checkpoint),
        (1, Deed::Path(1)),
    ];
    let (writers, whole) = history(&cluster, &deeds);
    let mut behind = Fold::new(&cluster);
    // All that the first said before it restated it.
    behind.take_all(writers[0].segments.iter().take(3));
    assert!(behind.has(&cluster, 0));
    behind.take_all(writers[1].segments.iter().take(2));
    assert!(!behind.has(&cluster, 0));
    behind.take_all(writers[1].segments.iter());
    assert!(!behind.has(&cluster, 0), "it waits");
    assert!(!behind.has(&cluster, 1), "and what follows it");
    let mut restarted = Fold {
        directory: cluster.load(&mut behind.log),
        log: behind.log,
    };
    assert!(!restarted.has(&cluster, 0), "and after a restart");
    restarted.take_all(writers[0].segments.iter());
    restarted.take_all(writers[2].segments.iter());
    assert!(!restarted.has(&cluster, 0) && restarted.has(&cluster, 1));
    assert_eq!(restarted.directory.digest(), whole.directory.digest());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_order_and_repetition_of_the_same_logs_is_the_same_state(
        deeds in proptest::collection::vec((0usize..3, deed()), 1..40),
        order in proptest::collection::vec(any::<prop::sample::Index>(), 60),
    ) {
        let cluster = Cluster::new();
        let (writers, causal) = history(&cluster, &deeds);
        let all: Vec<&Segment> = writers.iter().flat_map(|writer| &writer.segments).collect();
        let mut shuffled = Fold::new(&cluster);
        for index in &order {
            let _ = shuffled.take(all[index.index(all.len())]);
        }
        shuffled.take_all(all.iter().rev().copied());
        prop_assert_eq!(shuffled.directory.digest(), causal.directory.digest());
        // A late joiner sees the newest checkpoints and what follows.
        let mut late = Fold::new(&cluster);
        let needed = all.iter().filter(|segment| {
            segment.head().seq >= causal.directory.first_needed(segment.head().node)
        });
        late.take_all(needed.copied());
        prop_assert_eq!(late.directory.digest(), causal.directory.digest());
        let reloaded = cluster.load(&mut late.log);
        prop_assert_eq!(reloaded.digest(), causal.directory.digest());
        for number in 0..8 {
            prop_assert_eq!(late.has(&cluster, number), causal.has(&cluster, number));
        }
    }
}

/// Few paths, so that it is quick. The bound itself is measured by
/// `MESH_MEMORY_PATHS=1000000 cargo test --release -p attic-p2p memory_for -- --nocapture`, and once
/// more with `MESH_MEMORY_SCATTERED=1`.
#[test]
fn memory_for_a_path_is_bounded() {
    let count: u32 = match std::env::var("MESH_MEMORY_PATHS") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => 2_000,
    };
    let cluster = Cluster::new();
    let mut directory = cluster.directory();
    // Bodies are not what is measured: the log forgets them.
    let mut log = Forgetful;
    let writers: Vec<Writer> = (1..=20).map(|number| cluster.writer(number)).collect();
    let mut writers: Vec<Writer> = writers;
    for writer in &mut writers {
        directory.take(&writer.segments[0], &mut log).unwrap();
    }
    let before = resident_bytes();
    let template = cluster.unsigned_path(0);
    for start in (0..count).step_by(25) {
        let writer = &mut writers[start as usize / 25 % 20];
        let paths = start..(start + 25).min(count);
        let record = |number: u32| {
            let mut path = template.clone();
            let name = template.info.path.name();
            path.info.path = attic_store::StorePath::new(path_hash(number), name).unwrap();
            path.info.nar_hash = attic_store::NarHash::of(&number.to_le_bytes());
            path.info.references.clear();
            path.info.deriver = None;
            Record::Path(path)
        };
        let segment = writer.append(&paths.map(record).collect::<Vec<_>>());
        writer.segments.clear();
        directory.take(&segment, &mut log).unwrap();
    }
    // Runs of paths have the same holders, or nearly each path holders of its own.
    let scattered = std::env::var("MESH_MEMORY_SCATTERED").is_ok();
    for start in (0..count).step_by(1000) {
        let run = start..(start + 1000).min(count);
        for number in 0..20u32 {
            let holds = |path: &u32| match scattered {
                true => {
                    u64::from(*path).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (40 + number) & 1 == 1
                }
                false => (start / 1000 + number) % 20 < 10,
            };
            let tags: Vec<_> = run.clone().filter(holds).map(tag).collect();
            let writer = &mut writers[number as usize];
            let segment = writer.append(&[Record::Hold(tags)]);
            writer.segments.clear();
            directory.take(&segment, &mut log).unwrap();
        }
    }
    let used = resident_bytes().saturating_sub(before);
    let stats = directory.stats();
    assert_eq!(stats.paths, count as usize);
    assert!(stats.held_nars > count as usize * 9 / 10);
    println!(
        "{count} paths with 10 holders: {used} bytes, {} each",
        used / u64::from(count)
    );
    if count >= 1_000_000 {
        assert!(used / u64::from(count) <= 125, "120 MiB per million");
    }
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// A log that keeps nothing.
struct Forgetful;

impl Log for Forgetful {
    fn append(
        &mut self,
        _: attic_p2p::ids::NodeId,
        _: u64,
        _: bytes::Bytes,
    ) -> Result<(), attic_p2p::log::LogError> {
        Ok(())
    }

    fn read(
        &self,
        _: attic_p2p::ids::NodeId,
        _: u64,
    ) -> Result<Option<bytes::Bytes>, attic_p2p::log::LogError> {
        Ok(None)
    }

    fn mend(
        &mut self,
        _: attic_p2p::ids::NodeId,
        _: u64,
        _: bytes::Bytes,
    ) -> Result<(), attic_p2p::log::LogError> {
        Ok(())
    }

    fn forget_before(
        &mut self,
        _: attic_p2p::ids::NodeId,
        _: u64,
    ) -> Result<(), attic_p2p::log::LogError> {
        Ok(())
    }

    fn forget_after(
        &mut self,
        _: attic_p2p::ids::NodeId,
        _: u64,
    ) -> Result<(), attic_p2p::log::LogError> {
        Ok(())
    }

    fn nodes(&self) -> Vec<attic_p2p::ids::NodeId> {
        Vec::new()
    }

    fn range(&self, _: attic_p2p::ids::NodeId) -> Option<(u64, u64)> {
        None
    }

    fn len_bytes(&self, _: attic_p2p::ids::NodeId) -> u64 {
        0
    }

    fn first_from(&self, _: attic_p2p::ids::NodeId, _: u64) -> Option<u64> {
        None
    }
}
