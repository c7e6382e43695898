//! What of a node's own log is still worth saying: the contents of its next checkpoint.

use std::collections::{BTreeMap, BTreeSet};

use crate::directory::Directory;
use crate::directory::author::Spot;
use crate::ids::{Dot, NodeId};
use crate::log::{Log, LogError};
use crate::record::{Del, Frontier, NarTag, RawRecord, Record, Touch};
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
    /// Held NARs that were not restated yet.
    held: BTreeSet<NarTag>,
    newest_touch: u32,
    /// Whether there may be holds that cannot be looked into.
    has_sealed: bool,
}

impl Directory {
    /// What of the log of `node`, which should be this node's own, is still valid; without its
    /// certificate, which belongs in front of everything else.
    ///
    /// Reads the whole log.
    ///
    /// **Errors**: the log cannot be read.
    pub fn live_records<L: Log>(&self, node: NodeId, log: &L) -> Result<Live, LogError> {
        let mut walk = Walk {
            live: Live::default(),
            held: self.held_by(node).into_iter().collect(),
            newest_touch: 0,
            has_sealed: false,
        };
        let Some(number) = self.nodes.number(&node) else {
            return Ok(walk.live);
        };
        for seq in self.first_needed(node)..=self.seq(node) {
            let bytes = log.read(node, seq)?;
            let Some(Ok(segment)) = bytes.map(Segment::decode) else {
                continue;
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
            Record::Hold(tags) => {
                let tags: Vec<NarTag> = tags
                    .into_iter()
                    .filter(|tag| walk.held.remove(tag))
                    .collect();
                let kept = (!tags.is_empty()).then_some(Record::Hold(tags));
                kept.and_then(encoded)
            }
            Record::Release(tags) => walk.has_sealed.then(|| {
                // It may be about a sealed hold, which is restated as it is; what is held again
                // since must be said again after it.
                let number = |tag: &NarTag| self.holders.of(*tag).binary_search(&author).is_ok();
                walk.held.extend(tags.into_iter().filter(number));
                raw.encode()
            }),
            Record::Sealed(_) => {
                walk.has_sealed = true;
                self.walk_sealed(author, spot, raw)
            }
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
    fn walk_sealed(&self, author: u16, spot: Spot, raw: RawRecord<'_>) -> Option<Vec<u8>> {
        let keep = match self.open(author, &raw) {
            Some(Record::Path(path)) => self.is_current(author, spot, &path),
            Some(_) | None => true,
        };
        keep.then(|| raw.encode())
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
                let subject = (signed.value().cache, signed.value().node);
                let newest = self.grants.of(&subject).next();
                newest.is_some_and(|(_, carried)| carried.value == *signed)
            }
            Record::Pin(pin) => {
                let config = self.cache(pin.cache);
                !config.is_some_and(|config| self.is_removed(author, spot, &config.genesis.name))
            }
            Record::Touch(Touch { day, .. }) => {
                walk.newest_touch = walk.newest_touch.max(*day);
                true
            }
            Record::Revoke(_) | Record::Fork(_) | Record::Unknown { .. } => true,
            Record::Member(_)
            | Record::Hold(_)
            | Record::Release(_)
            | Record::Unpin(_)
            | Record::Del(_)
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
            if self.seq(dot.node) < dot.seq || self.record(log, dot)?.is_some() {
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
