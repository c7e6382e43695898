//! What of a node's own log is still worth saying: the contents of its next checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::directory::Directory;
use crate::directory::author::Spot;
use crate::directory::fold::{Inside, Opened};
use crate::ids::{CacheId, Dot, NodeId};
use crate::log::{Log, LogError};
use crate::record::{Del, Frontier, Grant, NarTag, RawRecord, Record, Touch};
use crate::segment::Segment;

/// A record to be restated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveRecord {
    /// Number of the segment that said it first.
    pub seq: u64,
    /// Position in it.
    pub index: u16,
    /// The record in wire form.
    pub encoded: Vec<u8>,
}

/// What of one log is still valid.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// What is to be restated, by rising place.
    pub records: Vec<LiveRecord>,
    /// Bytes of the whole log, that which is not valid included.
    pub log_bytes: usize,
    /// Logs that must be known first: what is not restated any more was about these.
    after: BTreeMap<NodeId, u64>,
}

impl Live {
    fn require(&mut self, frontier: Frontier) {
        let seq = self.after.entry(frontier.node).or_default();
        *seq = frontier.seq.max(*seq);
    }

    /// Bytes of the records.
    pub fn record_bytes(&self) -> usize {
        self.records.iter().map(|live| live.encoded.len()).sum()
    }

    /// The logs that must be known before the checkpoint counts, as records of its own.
    pub fn context(&self) -> Vec<Record> {
        let frontier = |(node, seq): (&NodeId, &u64)| Frontier {
            node: *node,
            seq: *seq,
        };
        let after: Vec<Frontier> = self.after.iter().map(frontier).collect();
        let chunks = after.chunks(AFTER_PER_RECORD);
        chunks.map(|chunk| Record::After(chunk.to_vec())).collect()
    }
}

/// 36 to 42 bytes each.
const AFTER_PER_RECORD: usize = 256;

/// What is gathered while a log is walked through.
struct Walk {
    live: Live,
    /// NARs held in the open that were not restated yet.
    held: BTreeSet<NarTag>,
    sealed: BTreeMap<CacheId, SealedHolds>,
    newest_touch: u32,
}

/// What a log says of holding NARs of one private cache. A sealed record is restated as it is or not
/// at all.
#[derive(Default)]
struct SealedHolds {
    /// Held, and not restated yet.
    held: BTreeSet<NarTag>,
    /// What the restated records leave held.
    restated: BTreeSet<NarTag>,
}

impl Directory {
    /// What of the log of `node`, which should be this node's own, is still valid; without its
    /// certificate, which belongs in front of everything else.
    ///
    /// Reads the whole log.
    ///
    /// **Errors**: the log cannot be read, or a segment of it is damaged: a checkpoint without its
    /// records would take them back.
    pub fn live_records<L: Log>(&self, node: NodeId, log: &L) -> Result<Live, LogError> {
        let mut walk = Walk {
            live: Live::default(),
            held: self.held_by(node).into_iter().collect(),
            sealed: BTreeMap::new(),
            newest_touch: 0,
        };
        for cache in self.sealed_holders.keys() {
            let holds = walk.sealed.entry(*cache).or_default();
            holds.held.extend(self.held_by_under(*cache, node));
        }
        let Some(number) = self.nodes.number(&node) else {
            return Ok(walk.live);
        };
        for seq in self.first_needed(node)..=self.seq(node) {
            let bytes = log.read(node, seq)?;
            let Some(Ok(segment)) = bytes.map(Segment::decode) else {
                let source = io::ErrorKind::InvalidData.into();
                return Err(LogError { node, seq, source });
            };
            walk.live.log_bytes += segment.bytes().len();
            for entry in segment.entries() {
                let spot = u32::try_from(entry.seq).ok().map(|seq| Spot {
                    seq,
                    index: entry.index,
                });
                // Parts of a checkpoint that was never finished say nothing.
                let Some(spot) = spot.filter(|spot| self.is_in(number, *spot, seq)) else {
                    continue;
                };
                self.walk_record(number, spot, entry.record, log, &mut walk)?;
            }
        }
        let old = walk.newest_touch.saturating_sub(TOUCH_DAYS);
        walk.live.records.retain(|live| !is_touch_before(live, old));
        Ok(walk.live)
    }

    fn is_in(&self, author: u16, spot: Spot, seq: u64) -> bool {
        let author = self.authors.get(&author);
        author.and_then(|author| author.segment_of(spot)) == Some(seq)
    }

    fn walk_record<L: Log>(
        &self,
        author: u16,
        spot: Spot,
        raw: RawRecord<'_>,
        log: &L,
        walk: &mut Walk,
    ) -> Result<(), LogError> {
        let keep = match raw.read() {
            Record::After(frontiers) => {
                // Inherited: who starts with this checkpoint has not seen the one before.
                frontiers
                    .into_iter()
                    .for_each(|frontier| walk.live.require(frontier));
                None
            }
            Record::Del(del) => {
                let dots = self.needed_removals(del.dots, log, walk)?;
                let reason = del.reason;
                let kept = Record::Del(Del {
                    dots: dots.clone(),
                    reason,
                });
                (!dots.is_empty()).then_some(kept).and_then(encoded)
            }
            Record::Unpin(dots) => {
                let dots = self.needed_removals(dots, log, walk)?;
                let kept = Record::Unpin(dots.clone());
                (!dots.is_empty()).then_some(kept).and_then(encoded)
            }
            Record::Durable(dots) => {
                // Of records that their authors say no more nobody asks.
                let mut said = Vec::new();
                for dot in dots {
                    if self.is_said_by_its_author(log, dot)? {
                        said.push(dot);
                    }
                }
                let kept = (!said.is_empty()).then_some(Record::Durable(said));
                kept.and_then(encoded)
            }
            Record::Hold(tags) => {
                let tags: Vec<NarTag> = tags
                    .into_iter()
                    .filter(|tag| walk.held.remove(tag))
                    .collect();
                let kept = (!tags.is_empty()).then_some(Record::Hold(tags));
                kept.and_then(encoded)
            }
            // What is released was not restated.
            Record::Release(_) => None,
            Record::Sealed(_) => self.walk_sealed(author, spot, raw, walk),
            record => self
                .is_worth_keeping(author, spot, &record, walk)
                .then(|| raw.encode()),
        };
        if let Some(encoded) = keep {
            walk.live.records.push(LiveRecord {
                seq: u64::from(spot.seq),
                index: spot.index,
                encoded,
            });
        }
        Ok(())
    }

    /// What is sealed is restated as it is, unless what is inside is known to be obsolete.
    fn walk_sealed(
        &self,
        author: u16,
        spot: Spot,
        raw: RawRecord<'_>,
        walk: &mut Walk,
    ) -> Option<Vec<u8>> {
        let keep = match self.open(author, &raw) {
            Opened::Sealed(cache, Inside::Record(Record::Hold(tags))) => {
                let holds = walk.sealed.entry(cache).or_default();
                let is_needed = tags.iter().any(|tag| holds.held.contains(tag));
                if is_needed {
                    holds.held.retain(|tag| !tags.contains(tag));
                    holds.restated.extend(tags);
                }
                is_needed
            }
            Opened::Sealed(cache, Inside::Record(Record::Release(tags))) => {
                let holds = walk.sealed.entry(cache).or_default();
                let is_needed = tags.iter().any(|tag| holds.restated.contains(tag));
                if is_needed {
                    holds.restated.retain(|tag| !tags.contains(tag));
                    // What is held again since must be said again after it.
                    let is_held = |tag: &NarTag| self.is_held_under(cache, *tag, author);
                    holds.held.extend(tags.into_iter().filter(is_held));
                }
                is_needed
            }
            Opened::Sealed(_, Inside::Record(record)) => {
                self.is_worth_keeping(author, spot, &record, walk)
            }
            // Void may be of a newer version.
            Opened::Sealed(_, Inside::Shut | Inside::Void) => true,
            Opened::Open(_) | Opened::Unknown => true,
        };
        keep.then(|| raw.encode())
    }

    fn is_held_under(&self, cache: CacheId, tag: NarTag, author: u16) -> bool {
        let holders = self.sealed_holders.get(&cache);
        holders.is_some_and(|holders| holders.of(tag).binary_search(&author).is_ok())
    }

    fn is_worth_keeping(&self, author: u16, spot: Spot, record: &Record, walk: &mut Walk) -> bool {
        match record {
            Record::Path(path) => self.is_current(author, spot, path),
            Record::Cache(signed) => {
                let cache = signed.value().genesis.cache_id();
                let newest = self.caches.of(&cache).next();
                newest.is_some_and(|(_, carried)| carried.value == *signed)
            }
            Record::Grant(signed) => {
                let Grant {
                    cache, node, right, ..
                } = *signed.value();
                // Whose word counts is known of known caches only; anybody can say more.
                let newest = self.grants(cache, node, right).into_iter().next();
                newest.is_none_or(|newest| newest == signed)
            }
            Record::Pin(pin) => {
                let config = self.cache(pin.cache);
                !config.is_some_and(|config| self.is_removed(author, spot, &config.genesis.name))
            }
            Record::Touch(Touch { day, .. }) => {
                walk.newest_touch = walk.newest_touch.max(*day);
                true
            }
            Record::Left(_) => self
                .authors
                .get(&author)
                .is_some_and(|author| author.left.is_some()),
            Record::Revoke(_) | Record::Fork(_) | Record::Unknown { .. } => true,
            Record::Member(_)
            | Record::Hold(_)
            | Record::Release(_)
            | Record::Unpin(_)
            | Record::Del(_)
            | Record::Durable(_)
            | Record::Sealed(_)
            | Record::After(_) => false,
        }
    }

    /// Whether it is its author's newest of the path, and not removed.
    fn is_current(&self, author: u16, spot: Spot, path: &crate::record::PathRecord) -> bool {
        let Some(cache) = self.cache_numbers.number(&path.cache) else {
            return true;
        };
        let mut rows = self.rows_of(cache, *path.info.path.hash());
        let newest = rows.any(|row| row.author == author && row.spot == spot);
        let removed = match self.cache(path.cache) {
            Some(config) => self.is_removed(author, spot, &config.genesis.name),
            None => false,
        };
        newest && !removed
    }

    /// Whether the log that `dot` is of still has it, be it under a seal that cannot be opened.
    fn is_said_by_its_author<L: Log>(&self, log: &L, dot: Dot) -> Result<bool, LogError> {
        match (self.nodes.number(&dot.node), Spot::of(&dot)) {
            (Some(author), Some(spot)) => Ok(self.open_spot(author, spot, log)?.is_some()),
            (_, _) => Ok(false),
        }
    }

    /// The dots that others still say. The rest their authors have dropped, in checkpoints that
    /// whoever does not hear of the removal must know.
    fn needed_removals<L: Log>(
        &self,
        dots: Vec<Dot>,
        log: &L,
        walk: &mut Walk,
    ) -> Result<Vec<Dot>, LogError> {
        let mut needed = Vec::new();
        for dot in dots {
            if self.forks.contains(&dot.node) {
                continue;
            }
            if self.seq(dot.node) < dot.seq || self.is_said_by_its_author(log, dot)? {
                needed.push(dot);
                continue;
            }
            let author = self.author(dot.node);
            if let Some(base) = author.and_then(|author| author.base()) {
                walk.live.require(Frontier {
                    node: dot.node,
                    seq: base.end(),
                });
            }
        }
        Ok(needed)
    }
}

fn encoded(record: Record) -> Option<Vec<u8>> {
    record.encode().ok()
}

fn is_touch_before(live: &LiveRecord, day: u32) -> bool {
    match Record::decode(&live.encoded) {
        Ok(Record::Touch(touch)) => touch.day < day,
        Ok(_) | Err(_) => false,
    }
}

/// For how long accesses are worth telling.
const TOUCH_DAYS: u32 = 400;
