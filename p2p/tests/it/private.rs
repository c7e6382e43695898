//! C10: what is said of a private cache, by nodes with its keys, without, and with them later.

use std::sync::Arc;

use attic_p2p::directory::{Change, Directory, NoKeys};
use attic_p2p::ids::{CacheId, Dot, NodeId};
use attic_p2p::log::{Log, MemoryLog};
use attic_p2p::membership::scopes::Scopes;
use attic_p2p::membership::sealing::OpeningKey;
use attic_p2p::private::{EpochKey, Keyring, open_read_grant};
use attic_p2p::record::{NarTag, PathRecord, Pin, Record, Right};
use attic_p2p::segment::Segment;
use attic_store::StorePathHash;
use proptest::prelude::*;

use crate::cluster::{Cluster, Writer, del, path_hash, tag};

/// A directory with its log.
struct Node {
    directory: Directory,
    log: MemoryLog,
}

impl Node {
    fn new(cluster: &Cluster) -> Node {
        Node {
            directory: cluster.directory(),
            log: MemoryLog::default(),
        }
    }

    fn with_keys(cluster: &Cluster, epoch: u32) -> Node {
        let mut node = Node::new(cluster);
        node.get_keys(cluster.keyring(epoch));
        node
    }

    fn get_keys(&mut self, keyring: Keyring) -> Vec<Change> {
        let opened = self.directory.unseal_with(Arc::new(keyring), &mut self.log);
        opened.unwrap()
    }

    fn take(&mut self, segment: &Segment) {
        let folded = self.directory.take(segment, &mut self.log).unwrap();
        for (node, seq) in folded.needless_before {
            self.log.forget_before(node, seq).unwrap();
        }
    }

    fn take_all(mut self, writers: &[&Writer]) -> Node {
        for writer in writers {
            writer
                .segments
                .iter()
                .for_each(|segment| self.take(segment));
        }
        self
    }

    fn has(&self, cluster: &Cluster, number: u32) -> bool {
        let found = self
            .directory
            .path(&self.log, cluster.cache(), path_hash(number));
        found.unwrap().is_some()
    }
}

/// A log that says all there is to say of a private cache, with one path of two removed.
fn private_log(cluster: &Cluster) -> Writer {
    let mut writer = cluster.writer(1);
    let (keyring, cache) = (cluster.keyring(1), cluster.cache());
    let pin = Pin {
        cache,
        name: "app".into(),
        path: cluster.path(7).info.path,
        keep: 1,
    };
    writer.append_sealed(
        &keyring,
        cache,
        &[
            cluster.private_config(1),
            Record::Path(cluster.path(7)),
            Record::Path(cluster.path(8)),
            Record::Hold(vec![tag(7), tag(8)]),
            Record::Pin(pin),
        ],
    );
    let eighth = Dot {
        node: writer.node(),
        seq: 2,
        index: 2,
    };
    writer.append(&[del(vec![eighth])]);
    writer.append_sealed(&keyring, cache, &[Record::Release(vec![tag(8)])]);
    writer
}

fn check_reader(node: &Node, cluster: &Cluster, writer: &Writer) {
    let cache = cluster.cache();
    assert!(node.has(cluster, 7));
    assert!(!node.has(cluster, 8));
    assert_eq!(node.directory.holders(tag(7)), [writer.node()]);
    assert!(node.directory.holders(tag(8)).is_empty());
    assert_eq!(node.directory.pins(cache).len(), 1);
    let name = "main".parse().unwrap();
    let found = node.directory.cache_by_name(&name);
    assert!(found.is_some_and(|view| view.id == cache && !view.config.public));
    let held = node.directory.held_by_under(cache, writer.node());
    assert_eq!(held, [tag(7)]);
    assert!(node.directory.held_by(writer.node()).is_empty());
}

#[test]
fn c10_readers_see_a_private_cache_and_others_see_none() {
    let cluster = Cluster::new();
    let writer = private_log(&cluster);
    let reader = Node::with_keys(&cluster, 1).take_all(&[&writer]);
    check_reader(&reader, &cluster, &writer);
    let outsider = Node::new(&cluster).take_all(&[&writer]);
    assert!(!outsider.has(&cluster, 7));
    assert!(outsider.directory.caches().is_empty());
    let unopened = |node: &Node| node.directory.unopened_caches().into_iter().collect();
    let (shut, open): (Vec<_>, Vec<_>) = (unopened(&outsider), unopened(&reader));
    assert_eq!((shut, open), (vec![cluster.cache()], Vec::new()));
    assert!(outsider.directory.holders(tag(7)).is_empty());
    assert!(outsider.directory.pins(cluster.cache()).is_empty());
    // Which does not keep the two from agreeing on everything else.
    assert_eq!(outsider.directory.digest(), reader.directory.digest());
}

/// A path of a private cache is said again under the seal, and a removal of the record before does not
/// reach it; who has no key folds the same.
#[test]
fn c10_a_removal_spares_what_is_said_again_under_the_seal() {
    let cluster = Cluster::new();
    let (mut one, mut two) = (cluster.writer(1), cluster.writer(2));
    let (keyring, cache) = (cluster.keyring(1), cluster.cache());
    let old = one.next_dot();
    let path = Record::Path(cluster.path(7));
    one.append_sealed(&keyring, cache, &[path.clone(), cluster.private_config(1)]);
    two.append(&[del(vec![old])]);
    let removed = Node::with_keys(&cluster, 1).take_all(&[&one, &two]);
    assert!(!removed.has(&cluster, 7));
    let new = one.next_dot();
    one.append_sealed(&keyring, cache, &[path]);
    let reader = Node::with_keys(&cluster, 1).take_all(&[&one, &two]);
    assert!(reader.has(&cluster, 7));
    assert_eq!(reader.directory.dots(cache, path_hash(7)), [new]);
    let outsider = Node::new(&cluster).take_all(&[&one, &two]);
    assert_eq!(outsider.directory.digest(), reader.directory.digest());
    assert_eq!(
        outsider.directory.said_at(new.node, cache, path_hash(7)),
        None
    );
}

/// An author may name so many caches under a seal; that must not cost it, where these can be opened,
/// what it says in the open, or nodes with and without keys would take each other for liars.
#[test]
fn c10_many_private_caches_leave_what_is_open_alike_for_all() {
    let cluster = Cluster::new();
    let mut keyring = Keyring::new(cluster.genesis.cluster_id());
    let mut writer = cluster.writer(1);
    for number in 0..Keyring::CACHES_MAX as u128 {
        let cache = CacheId::from_bytes(number.to_be_bytes());
        assert!(keyring.insert(cache, EpochKey::derive(&[204; 32], 1).unwrap()));
        let path = PathRecord {
            cache,
            ..cluster.path(7)
        };
        writer.append_sealed(&keyring, cache, &[Record::Path(path)]);
    }
    writer.append(&[cluster.config(1), Record::Path(cluster.path(7))]);
    let mut reader = Node::new(&cluster);
    reader.get_keys(keyring);
    let reader = reader.take_all(&[&writer]);
    let outsider = Node::new(&cluster).take_all(&[&writer]);
    assert!(outsider.has(&cluster, 7));
    assert!(reader.has(&cluster, 7));
    assert_eq!(outsider.directory.digest(), reader.directory.digest());
}

#[test]
fn c10_an_outsiders_log_has_no_name_and_no_hash() {
    let cluster = Cluster::new();
    let writer = private_log(&cluster);
    let path = cluster.path(7);
    let (hash, tag) = (path_hash(7), tag(7));
    let secrets: [&[u8]; 7] = [
        b"main",
        path.info.path.name().as_bytes(),
        hash.as_bytes(),
        tag.as_bytes(),
        path.manifest.as_bytes(),
        path.file_hash.as_bytes(),
        b"cache-1",
    ];
    let said = writer
        .segments
        .iter()
        .map(|segment| segment.bytes().clone());
    let said: Vec<u8> = said.collect::<Vec<_>>().concat();
    let mut open = cluster.writer(2);
    open.append(&[
        cluster.private_config(1),
        Record::Path(path.clone()),
        Record::Hold(vec![tag]),
    ]);
    let open = open.segments[1].bytes();
    for secret in secrets {
        let is_in = |bytes: &[u8]| bytes.windows(secret.len()).any(|window| window == secret);
        assert!(is_in(open), "{secret:?} is not looked for in the right way");
        assert!(!is_in(&said), "{secret:?}");
    }
}

#[test]
fn c10_what_came_before_the_key_is_opened_when_the_key_comes() {
    let cluster = Cluster::new();
    let writer = private_log(&cluster);
    let mut late = Node::new(&cluster).take_all(&[&writer]);
    let digest = late.directory.digest();
    assert!(!late.get_keys(cluster.keyring(1)).is_empty());
    check_reader(&late, &cluster, &writer);
    assert_eq!(late.directory.digest(), digest);
    assert!(
        late.get_keys(cluster.keyring(1)).is_empty(),
        "nothing is left"
    );
    // And after a restart with the key.
    let keyring = Arc::new(cluster.keyring(1));
    late.directory = Directory::load(cluster.genesis.clone(), keyring, &mut late.log).unwrap();
    check_reader(&late, &cluster, &writer);
}

#[test]
fn c10_a_later_epoch_opens_what_was_said_under_earlier_ones() {
    let cluster = Cluster::new();
    let mut writer = private_log(&cluster);
    let (second, cache) = (cluster.keyring(2), cluster.cache());
    let records = [Record::Path(cluster.path(9)), Record::Hold(vec![tag(9)])];
    writer.append_sealed(&second, cache, &records);
    let current = Node::with_keys(&cluster, 2).take_all(&[&writer]);
    assert!(current.has(&cluster, 7) && current.has(&cluster, 9));
    assert!(!current.has(&cluster, 8));
    let mut former = Node::with_keys(&cluster, 1).take_all(&[&writer]);
    assert!(former.has(&cluster, 7), "what it could read before");
    assert!(!former.has(&cluster, 9), "what was said after");
    assert!(former.directory.holders(tag(9)).is_empty());
    former.get_keys(cluster.keyring(2));
    assert!(former.has(&cluster, 9), "as a reader again");
}

#[test]
fn c10_a_seal_of_one_node_is_worth_nothing_in_the_log_of_another() {
    let cluster = Cluster::new();
    let writer = private_log(&cluster);
    let entries: Vec<Record> = writer.segments[1]
        .entries()
        .map(|entry| entry.record.read())
        .collect();
    let mut thief = cluster.newcomer(3);
    let certificate = cluster.certificate(3, Scopes::all());
    thief.append(&[Record::Member(certificate)]);
    thief.append(&entries);
    let reader = Node::with_keys(&cluster, 1).take_all(&[&thief]);
    assert!(!reader.has(&cluster, 7));
    assert!(reader.directory.caches().is_empty());
}

#[test]
fn c10_under_a_seal_only_the_cache_it_is_of_is_spoken_of() {
    let cluster = Cluster::new();
    let mut writer = cluster.writer(1);
    let open = cluster.config(1);
    let records = [
        open,
        cluster.read_grant(2, 1, cluster.owner()),
        del(Vec::new()),
    ];
    writer.append_sealed(&cluster.keyring(1), cluster.cache(), &records);
    let reader = Node::with_keys(&cluster, 1).take_all(&[&writer]);
    assert!(reader.directory.caches().is_empty(), "a public one");
    let node = Cluster::identity(2).node_id();
    assert_eq!(reader.directory.read_grants(node).count(), 0);
    assert_eq!(reader.directory.stats().ignored, 3);
}

#[test]
fn c10_a_reader_knows_its_grant_from_those_of_impostors() {
    let cluster = Cluster::new();
    let mut owner = private_log(&cluster);
    owner.append(&[cluster.read_grant(2, 1, cluster.owner())]);
    let mut liar = cluster.writer(3);
    let other = Cluster::identity(99);
    liar.append(&[cluster.read_grant(2, 4000, &other)]);
    let mut node = Node::new(&cluster).take_all(&[&owner, &liar]);
    let identity = Cluster::identity(2);
    let opening = OpeningKey::of(&identity);
    let id = cluster.genesis.cluster_id();
    let grants = node.directory.read_grants(identity.node_id());
    let opened: Vec<_> = grants
        .filter_map(|grant| open_read_grant(grant, &opening, id))
        .collect();
    let [(genesis, key)] = &opened[..] else {
        panic!("{} grants", opened.len());
    };
    assert_eq!(genesis.cache_id(), cluster.cache());
    let mut keyring = Keyring::new(id);
    keyring.insert(cluster.cache(), key.clone());
    node.get_keys(keyring);
    check_reader(&node, &cluster, &owner);
    // Once the cache is known the directory tells them apart as well.
    let granted = node.directory.granted(cluster.cache(), Right::Read);
    assert_eq!(granted.len(), 1);
    assert_eq!(granted[0].value().epoch, 1);
    // And a checkpoint of the owner's log keeps the good one.
    let live = node
        .directory
        .live_records(owner.node(), &node.log)
        .unwrap();
    let kept = live
        .records
        .iter()
        .filter(|live| matches!(Record::decode(&live.encoded), Ok(Record::Grant(_))));
    assert_eq!(kept.count(), 1);
}

#[test]
fn c10_who_cannot_read_may_restate_its_removals_of_what_others_sealed() {
    let cluster = Cluster::new();
    let writer = private_log(&cluster);
    let mut remover = cluster.writer(2);
    let seventh = Dot {
        node: writer.node(),
        seq: 2,
        index: 1,
    };
    remover.append(&[del(vec![seventh])]);
    let blind = Node::new(&cluster).take_all(&[&writer, &remover]);
    let live = blind.directory.live_records(remover.node(), &blind.log);
    let live = live.unwrap();
    let restated = live
        .records
        .iter()
        .map(|live| Record::decode(&live.encoded));
    let dels = restated.filter(|record| matches!(record, Ok(Record::Del(_))));
    assert_eq!(dels.count(), 1, "or the path would come back");
}

#[derive(Clone, Debug)]
enum Deed {
    Path(u32),
    Hold(Vec<u32>),
    Release(Vec<u32>),
    Remove(u32),
    OpenHold(u32),
    OpenRelease(u32),
    Epoch,
    Checkpoint,
}

fn deed() -> impl Strategy<Value = Deed> {
    let numbers = || proptest::collection::vec(0u32..6, 1..3);
    prop_oneof![
        4 => (0u32..6).prop_map(Deed::Path),
        3 => numbers().prop_map(Deed::Hold),
        3 => numbers().prop_map(Deed::Release),
        2 => (0u32..6).prop_map(Deed::Remove),
        1 => (0u32..6).prop_map(Deed::OpenHold),
        1 => (0u32..6).prop_map(Deed::OpenRelease),
        1 => Just(Deed::Epoch),
        1 => Just(Deed::Checkpoint),
    ]
}

/// Paths, holders of each NAR, and what the writer holds in the open and under the seal.
type Known = (
    Vec<StorePathHash>,
    Vec<Vec<NodeId>>,
    Vec<NarTag>,
    Vec<NarTag>,
);

/// What a node knows of the private cache.
fn known(node: &Node, cluster: &Cluster, writer: &Writer) -> Known {
    let directory = &node.directory;
    let holders: Vec<_> = (0..6).map(|n| directory.holders(tag(n))).collect();
    (
        directory.paths(cluster.cache(), None, 100),
        holders,
        directory.held_by(writer.node()),
        directory.held_by_under(cluster.cache(), writer.node()),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A checkpoint changes nothing, for readers and for others; and when a key comes does not matter.
    #[test]
    fn c10_checkpoints_and_late_keys_change_nothing(
        deeds in proptest::collection::vec(deed(), 1..40),
    ) {
        let cluster = Cluster::new();
        let (mut writer, cache) = (cluster.writer(1), cluster.cache());
        let mut epoch = 1;
        let mut author = Node::with_keys(&cluster, epoch);
        author.take(&writer.segments[0]);
        let mut outsider = Node::new(&cluster);
        outsider.take(&writer.segments[0]);
        let mut deeds = deeds.into_iter();
        let mut next = Some(None);
        while let Some(deed) = next {
            let keyring = cluster.keyring(epoch);
            let tags = |numbers: Vec<u32>| numbers.into_iter().map(tag).collect();
            let first_new = writer.segments.len();
            let before = known(&author, &cluster, &writer);
            let mut is_checkpoint = false;
            let sealed = match deed {
                None => Some(cluster.private_config(1)),
                Some(Deed::Path(number)) => Some(Record::Path(cluster.path(number))),
                Some(Deed::Hold(numbers)) => Some(Record::Hold(tags(numbers))),
                Some(Deed::Release(numbers)) => Some(Record::Release(tags(numbers))),
                Some(Deed::Remove(number)) => {
                    let dots = author.directory.dots(cache, path_hash(number));
                    drop(writer.append(&[del(dots)]));
                    None
                }
                Some(Deed::OpenHold(number)) => {
                    drop(writer.append(&[Record::Hold(vec![tag(number)])]));
                    None
                }
                Some(Deed::OpenRelease(number)) => {
                    drop(writer.append(&[Record::Release(vec![tag(number)])]));
                    None
                }
                Some(Deed::Epoch) => {
                    epoch += 1;
                    author.get_keys(cluster.keyring(epoch));
                    None
                }
                Some(Deed::Checkpoint) => {
                    is_checkpoint = true;
                    let node = writer.node();
                    let live = author.directory.live_records(node, &author.log).unwrap();
                    let certificate = Record::Member(cluster.certificate(1, Scopes::all()));
                    let mut entries = vec![(0, 0, certificate)];
                    let context = (1..).zip(live.context());
                    entries.extend(context.map(|(index, record)| (0, index, record)));
                    entries.extend(live.records.iter().map(|live| {
                        (live.seq, live.index, Record::decode(&live.encoded).unwrap())
                    }));
                    writer.checkpoint(&entries);
                    None
                }
            };
            if let Some(record) = sealed {
                writer.append_sealed(&keyring, cache, &[record]);
            }
            for segment in &writer.segments[first_new..] {
                author.take(segment);
                outsider.take(segment);
            }
            if is_checkpoint {
                prop_assert_eq!(known(&author, &cluster, &writer), before);
            }
            prop_assert_eq!(outsider.directory.digest(), author.directory.digest());
            prop_assert!(outsider.directory.paths(cache, None, 1).is_empty());
            next = deeds.next().map(Some);
        }
        outsider.get_keys(cluster.keyring(epoch));
        let late = known(&outsider, &cluster, &writer);
        prop_assert_eq!(&late, &known(&author, &cluster, &writer));
        let mut reader = Node::with_keys(&cluster, epoch);
        let needed = author.directory.first_needed(writer.node());
        let needed = writer.segments.iter().filter(|segment| segment.head().seq >= needed);
        needed.for_each(|segment| reader.take(segment));
        prop_assert_eq!(&late, &known(&reader, &cluster, &writer));
        let unkeyed = reader.directory.unseal_with(Arc::new(NoKeys), &mut reader.log);
        prop_assert!(unkeyed.unwrap().is_empty(), "nothing was shut, so nothing is looked at");
    }
}
