//! What keepers write into the cluster's bucket beside packs: journals, and what they condemn.
//!
//! All keys are written once, and each below a prefix of its one writer:
//!
//! | key | writer | content |
//! |---|---|---|
//! | `pack/<2 hex>/<pack>` | any keeper | chunks and manifests |
//! | `log/<keeper>/<number>-<random>` | that keeper | [`Entry`]: references, and segments of all logs |
//! | `gc/<keeper>/<version>-<random>` | that keeper | [`Condemnations`]; the highest version counts |
//!
//! A reference says that a record of a path needs packs. It is there before its writer looks whether
//! somebody condemned one of them, and who collects condemns before it looks for references: one of
//! the two sees the other. So only after the entry was written, the condemnations read, and then every
//! pack seen to be there, a path is durable ([`Record::Durable`](crate::record::Record::Durable)); and
//! a reference without that may name a pack that is gone.
//!
//! Journals carry the logs themselves, so that the cluster's directory can be folded from the bucket
//! alone ([`Restore`]).

use std::collections::{BTreeMap, BTreeSet};

use attic_store::PackId;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{ClusterId, Dot, NodeId};
use crate::log::{Log, LogError};
use crate::segment::{Segment, SegmentKind};
use crate::signed::{Signed, Statement};

/// Where the keys of all journals begin.
pub const JOURNALS: &str = "log/";
/// Where the keys of all condemnations begin.
pub const CONDEMNATIONS: &str = "gc/";

/// One object of a keeper's journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Of which cluster.
    pub cluster: ClusterId,
    /// Whose journal.
    pub keeper: NodeId,
    /// What needs which packs.
    pub references: Vec<Reference>,
    /// Segments of anybody's log that the journal did not have.
    pub segments: Vec<Vec<u8>>,
}

/// That a record of a path needs packs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Reference {
    /// The record.
    pub dot: Dot,
    /// The packs, with the bytes of each that it needs.
    pub packs: Vec<(PackId, u32)>,
}

impl Statement for Entry {
    const DOMAIN: &'static str = "attic-node journal 1";
    const LEN_MAX: usize = ENTRY_LEN_MAX;
}

/// Longest entry, in bytes, without its signature.
pub const ENTRY_LEN_MAX: usize = 16 << 20;

/// What a keeper is about to delete.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Condemnations {
    /// What it deletes unless it finds a reference.
    pub condemned: BTreeSet<PackId>,
    /// What it deletes. Nothing saves these any more.
    pub doomed: BTreeSet<PackId>,
}

impl Condemnations {
    /// Whether nothing may rely on a pack.
    pub fn names(&self, pack: &PackId) -> bool {
        self.condemned.contains(pack) || self.doomed.contains(pack)
    }
}

impl Statement for Condemnations {
    const DOMAIN: &'static str = "attic-node condemnations 1";
    const LEN_MAX: usize = 64 << 20;
}

/// The prefix of a keeper's journal.
pub fn journal_prefix(keeper: &NodeId) -> String {
    format!("{JOURNALS}{keeper}/")
}

/// The key of an entry. `random` must differ each time: a number may have been used by an upload whose
/// answer was lost.
pub fn entry_key(keeper: &NodeId, number: u64, random: u32) -> String {
    format!("{JOURNALS}{keeper}/{number:016x}-{random:08x}")
}

/// Whose journal an object belongs to, and its number there; `None` if it is no entry.
pub fn read_entry_key(key: &str) -> Option<(NodeId, u64)> {
    read_key(key.strip_prefix(JOURNALS)?)
}

/// The key of a version of a keeper's condemnations. `random` must differ each time: a keeper that starts
/// again does not know which versions it has tried, and one that arrives late must not replace another.
pub fn condemnations_key(keeper: &NodeId, version: u64, random: u32) -> String {
    format!("{CONDEMNATIONS}{keeper}/{version:016x}-{random:08x}")
}

/// Whose condemnations an object is, and which version; `None` if it is none. There are less than 2^63
/// versions, so that there is always a next one.
pub fn read_condemnations_key(key: &str) -> Option<(NodeId, u64)> {
    let read = read_key(key.strip_prefix(CONDEMNATIONS)?);
    read.filter(|(_, version)| version >> 63 == 0)
}

/// The keeper and the number of `<keeper>/<number>-<random>`.
fn read_key(rest: &str) -> Option<(NodeId, u64)> {
    let (keeper, name) = rest.split_once('/')?;
    let (number, random) = name.split_once('-')?;
    let is_hex = |text: &str, len| {
        text.len() == len
            && text
                .bytes()
                .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    };
    if !is_hex(number, 16) || !is_hex(random, 8) {
        return None;
    }
    Some((keeper.parse().ok()?, u64::from_str_radix(number, 16).ok()?))
}

/// A keeper's highest version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newest<'a> {
    /// Which.
    pub version: u64,
    /// Its keys. There are several where an answer was lost; then what any of them names is named.
    pub keys: Vec<&'a str>,
}

/// Each keeper's highest version among the keys of a listing. What is no version is passed over.
pub fn newest_condemnations<'a>(
    keys: impl IntoIterator<Item = &'a str>,
) -> BTreeMap<NodeId, Newest<'a>> {
    let mut newest: BTreeMap<NodeId, Newest<'_>> = BTreeMap::new();
    for key in keys {
        let Some((keeper, version)) = read_condemnations_key(key) else {
            continue;
        };
        let keys = Vec::new();
        let known = newest.entry(keeper).or_insert(Newest { version, keys });
        if known.version < version {
            *known = Newest {
                version,
                keys: Vec::new(),
            };
        }
        if known.version == version {
            known.keys.push(key);
        }
    }
    newest
}

/// Why an object of the bucket is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum JournalError {
    /// It cannot be read.
    #[error("it is damaged")]
    Damaged,
    /// It is of another cluster, or of another writer than its key says.
    #[error("it is of another writer")]
    Foreign,
}

impl Signed<Entry> {
    /// The entry, if the keeper whose journal it is in wrote it.
    ///
    /// **Errors**: any [`JournalError`].
    pub fn check(&self, cluster: &ClusterId, keeper: &NodeId) -> Result<&Entry, JournalError> {
        let entry = self.verify(keeper).map_err(|_| JournalError::Damaged)?;
        match entry.cluster == *cluster && entry.keeper == *keeper {
            true => Ok(entry),
            false => Err(JournalError::Foreign),
        }
    }
}

/// What came of [`Restore`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Logs of which something was kept.
    pub logs: usize,
    /// Segments that were kept.
    pub segments: usize,
    /// Segments that are damaged, of strangers, or contradict others.
    pub refused: usize,
    /// Segments that come after others that are missing.
    pub left_out: usize,
}

/// Collects segments of a cluster from wherever they come, in any order and any number of times.
#[derive(Debug)]
pub struct Restore {
    cluster: ClusterId,
    logs: BTreeMap<NodeId, BTreeMap<u64, Segment>>,
    refused: usize,
}

impl Restore {
    /// Nothing yet.
    pub fn new(cluster: ClusterId) -> Restore {
        Restore {
            cluster,
            logs: BTreeMap::new(),
            refused: 0,
        }
    }

    /// Takes one segment. Its signature is verified; of two that contradict each other the one that
    /// came first is kept.
    pub fn add(&mut self, bytes: Bytes) {
        let segment = Segment::decode(bytes).ok();
        let segment = segment
            .filter(|segment| segment.head().cluster == self.cluster && segment.verify().is_ok());
        let Some(segment) = segment else {
            self.refused += 1;
            return;
        };
        let log = self.logs.entry(segment.head().node).or_default();
        let kept = log
            .entry(segment.head().seq)
            .or_insert_with(|| segment.clone());
        if kept.bytes() != segment.bytes() {
            self.refused += 1;
        }
    }

    /// Writes what was collected into a log that has nothing of these nodes. What comes after a gap is
    /// kept if it begins with a checkpoint.
    ///
    /// **Errors**: the log's; a part is kept then.
    pub fn write<L: Log>(self, log: &mut L) -> Result<Restored, LogError> {
        let mut restored = Restored {
            refused: self.refused,
            ..Restored::default()
        };
        for (node, segments) in self.logs {
            let run = newest_run(&segments);
            restored.logs += usize::from(!run.is_empty());
            let end = run.last().map_or(0, |last| last.head().seq);
            restored.left_out += segments.keys().filter(|seq| **seq > end).count();
            for segment in run {
                log.append(node, segment.head().seq, segment.bytes().clone())?;
                restored.segments += 1;
            }
        }
        Ok(restored)
    }
}

/// The segments without a gap that say most: from the first one or the newest whole checkpoint on, up
/// to the end of what follows it.
fn newest_run(segments: &BTreeMap<u64, Segment>) -> Vec<&Segment> {
    let mut best: Vec<&Segment> = Vec::new();
    let mut run: Vec<&Segment> = Vec::new();
    for segment in segments.values() {
        let head = segment.head();
        let follows = run
            .last()
            .is_some_and(|last| last.head().seq + 1 == head.seq && last.id() == head.prev);
        let begins = head.seq == 1 || matches!(head.kind, SegmentKind::Checkpoint { part: 0, .. });
        if !follows {
            run.clear();
            if !begins {
                continue;
            }
        }
        run.push(segment);
        // A later run stands for an earlier one only once its checkpoint is whole.
        if says_enough(&run) {
            best.clone_from(&run);
        }
    }
    best
}

/// Whether a run stands by itself: from the first segment on, or with all parts of its checkpoint.
fn says_enough(run: &[&Segment]) -> bool {
    let Some(first) = run.first() else {
        return false;
    };
    match first.head().kind {
        SegmentKind::Append => true,
        SegmentKind::Checkpoint { parts, .. } => run.len() as u64 >= u64::from(parts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::log::MemoryLog;
    use crate::record::{NarTag, Record};
    use crate::segment::{Place, SegmentId};

    const CLUSTER: ClusterId = ClusterId::from_bytes([3; 16]);

    fn segments(count: u64, checkpoint_at: Option<u64>) -> Vec<Segment> {
        let author = Identity::from_seed([1; 32]);
        let mut prev = SegmentId::before_first(&CLUSTER);
        let mut made = Vec::new();
        for seq in 1..=count {
            let body = Record::Hold(vec![NarTag::from_bytes([seq as u8; 8])]);
            let body = body.encode().unwrap();
            let place = Place {
                cluster: CLUSTER,
                seq,
                prev,
                hlc: seq,
            };
            let segment = match checkpoint_at {
                Some(at) if seq == at || seq == at + 1 => {
                    let part = (seq - at) as u32;
                    Segment::checkpoint(&author, place, (part, 2), &[]).unwrap()
                }
                _ => Segment::append(&author, place, &body).unwrap(),
            };
            prev = segment.id();
            made.push(segment);
        }
        made
    }

    fn restored(given: &[Segment]) -> (Option<(u64, u64)>, Restored) {
        let mut restore = Restore::new(CLUSTER);
        for segment in given.iter().rev().chain(given) {
            restore.add(segment.bytes().clone());
        }
        let mut log = MemoryLog::default();
        let restored = restore.write(&mut log).unwrap();
        (log.range(Identity::from_seed([1; 32]).node_id()), restored)
    }

    #[test]
    fn segments_in_any_order_make_a_log() {
        let all = segments(5, None);
        let (range, restored_all) = restored(&all);
        assert_eq!(range, Some((1, 5)));
        assert_eq!(
            restored_all,
            Restored {
                logs: 1,
                segments: 5,
                refused: 0,
                left_out: 0
            }
        );
        assert_eq!(restored(&all[1..]).0, None, "what began it is missing");
        let gap = [&all[..2], &all[3..]].concat();
        let (range, cut) = restored(&gap);
        assert_eq!((range, cut.left_out), (Some((1, 2)), 2));
    }

    #[test]
    fn a_whole_checkpoint_is_a_beginning() {
        let all = segments(7, Some(4));
        assert_eq!(restored(&all[3..]).0, Some((4, 7)));
        assert_eq!(restored(&all[4..]).0, None, "its first part is missing");
        let cut = [&all[..2], &all[3..4]].concat();
        assert_eq!(restored(&cut).0, Some((1, 2)), "its second part is missing");
    }

    #[test]
    fn what_is_damaged_or_foreign_is_refused() {
        let all = segments(3, None);
        let mut restore = Restore::new(ClusterId::from_bytes([4; 16]));
        restore.add(all[0].bytes().clone());
        restore.add(Bytes::from_static(b"nothing"));
        assert_eq!(restore.refused, 2);
        let mut bad = all[0].bytes().to_vec();
        *bad.last_mut().unwrap() ^= 1;
        let mut restore = Restore::new(CLUSTER);
        restore.add(bad.into());
        assert_eq!((restore.refused, restore.logs.len()), (1, 0));
    }

    #[test]
    fn keys_are_read_as_they_were_made() {
        let keeper = Identity::from_seed([1; 32]).node_id();
        let key = entry_key(&keeper, 77, 5);
        assert_eq!(read_entry_key(&key), Some((keeper, 77)));
        assert!(key.starts_with(&journal_prefix(&keeper)));
        assert!(
            entry_key(&keeper, 9, 0) < entry_key(&keeper, 16, 0),
            "numbers order keys"
        );
        for bad in [
            "log/x/1-2",
            "log/",
            &key[..key.len() - 1],
            &key.replace('-', "+"),
        ] {
            assert_eq!(read_entry_key(bad), None, "{bad}");
        }
        let old = condemnations_key(&keeper, 9, 9);
        let new = condemnations_key(&keeper, 10, 1);
        let late = condemnations_key(&keeper, 10, 2);
        assert_eq!(read_condemnations_key(&old), Some((keeper, 9)));
        assert_eq!(read_condemnations_key(&old.to_uppercase()), None);
        let last = condemnations_key(&keeper, u64::MAX, 0);
        assert_eq!(read_condemnations_key(&last), None);
        assert_eq!(read_condemnations_key(&old[..old.len() - 9]), None);
        let newest = newest_condemnations([new.as_str(), old.as_str(), "gc/other", &late]);
        let keys = vec![new.as_str(), late.as_str()];
        let expected = Newest { version: 10, keys };
        assert_eq!(newest, BTreeMap::from([(keeper, expected)]));
    }

    #[test]
    fn an_entry_is_its_keepers_and_its_clusters() {
        let keeper = Identity::from_seed([1; 32]);
        let pack = PackId::from_bytes([7; 16]);
        let dot = Dot {
            node: keeper.node_id(),
            seq: 3,
            index: 0,
        };
        let entry = Entry {
            cluster: CLUSTER,
            keeper: keeper.node_id(),
            references: vec![Reference {
                dot,
                packs: vec![(pack, 5)],
            }],
            segments: vec![vec![1, 2, 3]],
        };
        let bytes = Signed::new(entry.clone(), &keeper).encode();
        let read = Signed::<Entry>::decode(&bytes).unwrap();
        assert_eq!(read.check(&CLUSTER, &keeper.node_id()), Ok(&entry));
        let other = Identity::from_seed([2; 32]).node_id();
        assert_eq!(read.check(&CLUSTER, &other), Err(JournalError::Damaged));
        let elsewhere = ClusterId::from_bytes([4; 16]);
        let foreign = read.check(&elsewhere, &keeper.node_id());
        assert_eq!(foreign, Err(JournalError::Foreign));
    }
}
