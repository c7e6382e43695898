//! How far one node's log has been folded.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{CacheId, ClusterId, Dot, NodeId};
use crate::membership::time::UnixTime;
use crate::record::{Frontier, Record, kind};
use crate::segment::{Segment, SegmentId, SegmentKind};

/// The end of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tip {
    /// 0 for a log without segments.
    pub(crate) seq: u64,
    pub(crate) id: SegmentId,
}

impl Tip {
    pub(crate) fn before_first(cluster: &ClusterId) -> Tip {
        Tip {
            seq: 0,
            id: SegmentId::before_first(cluster),
        }
    }

    pub(crate) fn of(segment: &Segment) -> Tip {
        Tip {
            seq: segment.head().seq,
            id: segment.id(),
        }
    }
}

/// Place of a record in its author's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Spot {
    /// 0 for what a checkpoint itself says.
    pub(crate) seq: u32,
    pub(crate) index: u16,
}

impl Spot {
    /// `None` if no segment has this number.
    pub(crate) fn of(dot: &Dot) -> Option<Spot> {
        let seq = u32::try_from(dot.seq).ok()?;
        let index = dot.index;
        Some(Spot { seq, index })
    }
}

/// How far another log must be known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Need {
    /// Its author must have said so much: records of it are named.
    pub(crate) said: u64,
    /// So much must count: what is not restated was about what that dropped.
    pub(crate) counts: u64,
}

impl Need {
    /// What must be said, and what must count, of the log of `node`.
    pub(crate) fn of(self, node: NodeId) -> (Frontier, Frontier) {
        let frontier = |seq| Frontier { node, seq };
        (frontier(self.said), frontier(self.counts))
    }
}

/// The parts of a checkpoint, some or all of them.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// Number of the first part.
    pub(crate) start: u64,
    parts: u32,
    /// The first place in each part that is there. Places rise through all parts.
    firsts: Vec<Spot>,
    last: Option<Spot>,
    /// The newest part.
    tip: Option<Tip>,
    /// Whether segments before the first part were never seen here.
    jumped: bool,
    /// The other logs it names.
    needs: BTreeMap<NodeId, Need>,
}

impl Run {
    fn begin(start: u64, parts: u32, jumped: bool) -> Run {
        Run {
            start,
            parts,
            firsts: Vec::new(),
            last: None,
            tip: None,
            jumped,
            needs: BTreeMap::new(),
        }
    }

    /// Adds the next part; false, and the run is void, if it cannot be one.
    fn add(&mut self, segment: &Segment, part: u32, parts: u32) -> bool {
        let Some(fit) = self.fit(segment, part, parts) else {
            return false;
        };
        self.firsts.push(fit.first);
        self.last = Some(fit.last);
        self.tip = Some(Tip::of(segment));
        for (node, needed) in fit.needs {
            let need = self.needs.entry(node).or_default();
            need.said = need.said.max(needed.said);
            need.counts = need.counts.max(needed.counts);
        }
        true
    }

    /// What `segment` adds, if it can be the next part.
    fn fit(&self, segment: &Segment, part: u32, parts: u32) -> Option<Fit> {
        if part as usize != self.firsts.len() || parts != self.parts {
            return None;
        }
        let (mut first, mut last) = (None, self.last);
        for entry in segment.entries() {
            let spot = Spot {
                seq: u32::try_from(entry.seq).ok()?,
                index: entry.index,
            };
            if last >= Some(spot) || entry.seq >= self.start {
                return None;
            }
            first = first.or(Some(spot));
            last = Some(spot);
        }
        let (first, last) = first.zip(last)?;
        let needs = needs(segment);
        let is_new = |node: &&NodeId| !self.needs.contains_key(*node);
        let count = self.needs.len() + needs.keys().filter(is_new).count();
        (count <= NEEDS_MAX).then_some(Fit { first, last, needs })
    }

    /// The other logs it names, and how far.
    pub(crate) fn needs(&self) -> &BTreeMap<NodeId, Need> {
        &self.needs
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.firsts.len() == self.parts as usize
    }

    /// Numbers of its segments.
    pub(crate) fn seqs(&self) -> impl Iterator<Item = u64> + use<> {
        self.start..self.start + u64::from(self.parts)
    }

    /// Number of its last segment.
    pub(crate) fn end(&self) -> u64 {
        self.start + u64::from(self.parts) - 1
    }

    /// The segment that restates `spot` if any does.
    fn segment_of(&self, spot: Spot) -> Option<u64> {
        let part = self.firsts.partition_point(|first| *first <= spot);
        Some(self.start + part.checked_sub(1)? as u64)
    }
}

/// What a segment adds to the parts before it.
struct Fit {
    first: Spot,
    last: Spot,
    needs: BTreeMap<NodeId, Need>,
}

/// How far one node's log has been folded, and where its records are.
#[derive(Clone, Debug)]
pub(crate) struct Author {
    head: Tip,
    /// The checkpoint in force.
    base: Option<Run>,
    /// One that is not complete, or waits for other logs.
    run: Option<Run>,
    /// The last segment received, if it is beyond the head: a part of a checkpoint that jumped, or
    /// what follows one that waits.
    beyond: Option<Tip>,
    pub(crate) hlc: u64,
    /// Records that are kept in memory.
    pub(crate) statements: u32,
    /// Sealed records that are kept in memory.
    pub(crate) sealed_statements: u32,
    /// Caches it has named in the open, and under no seal before.
    pub(crate) caches: BTreeSet<u16>,
    /// Caches it has said something of under a seal, opened or not.
    pub(crate) sealed_caches: BTreeSet<CacheId>,
    /// Whether some of that cannot be opened.
    pub(crate) has_shut: bool,
    /// When it left, unless it showed a certificate since.
    pub(crate) left: Option<UnixTime>,
}

/// What a segment does to the state.
#[derive(Debug)]
pub(crate) enum Step {
    /// Its records count.
    Append,
    /// It waits, or is void.
    Nothing,
    /// A checkpoint is complete: it comes into force with the logs it names.
    Complete,
}

impl Author {
    pub(crate) fn new(cluster: &ClusterId) -> Author {
        Author {
            head: Tip::before_first(cluster),
            base: None,
            run: None,
            beyond: None,
            hlc: 0,
            statements: 0,
            sealed_statements: 0,
            caches: BTreeSet::new(),
            sealed_caches: BTreeSet::new(),
            has_shut: false,
            left: None,
        }
    }

    /// Forgets what was counted of its records.
    pub(crate) fn clear(&mut self) {
        self.statements = 0;
        self.sealed_statements = 0;
        self.caches.clear();
        self.sealed_caches.clear();
        self.has_shut = false;
        self.left = None;
    }

    /// The end of what is folded.
    pub(crate) fn head(&self) -> Tip {
        self.head
    }

    /// The end of what was received: beyond the head while a checkpoint arrives whose
    /// predecessors are not here, and while one waits for other logs.
    pub(crate) fn received(&self) -> Tip {
        self.beyond.unwrap_or(self.head)
    }

    /// Whether only the next part of a checkpoint may follow.
    pub(crate) fn is_jumping(&self) -> bool {
        self.beyond.is_some() && self.pending().is_none()
    }

    /// The checkpoint that is complete and not in force.
    pub(crate) fn pending(&self) -> Option<&Run> {
        self.run.as_ref().filter(|run| run.is_complete())
    }

    /// Puts the pending checkpoint in force. What was received after it is to be folded anew.
    pub(crate) fn enact(&mut self) {
        let run = self.run.take_if(|run| run.is_complete());
        if let Some((mut run, tip)) = run.and_then(|run| run.tip.map(|tip| (run, tip))) {
            // Met for good.
            run.needs.clear();
            self.head = tip;
            self.base = Some(run);
            self.beyond = None;
        }
    }

    /// Whether `segment` can begin a jump, or continue the one there is.
    pub(crate) fn can_jump(&self, segment: &Segment) -> bool {
        match segment.head().kind {
            SegmentKind::Append => false,
            SegmentKind::Checkpoint { part: 0, parts } => {
                let run = Run::begin(segment.head().seq, parts, true);
                run.fit(segment, 0, parts).is_some()
            }
            SegmentKind::Checkpoint { part, parts } => {
                let run = self.run.as_ref();
                run.is_some_and(|run| run.fit(segment, part, parts).is_some())
            }
        }
    }

    /// The checkpoint in force.
    pub(crate) fn base(&self) -> Option<&Run> {
        self.base.as_ref()
    }

    /// The segment in which the record of `spot` is to be found, if it counts at all.
    pub(crate) fn segment_of(&self, spot: Spot) -> Option<u64> {
        let seq = u64::from(spot.seq);
        match &self.base {
            Some(base) if seq < base.start => base.segment_of(spot),
            Some(base) if seq <= base.end() => None,
            Some(_) | None => (seq > 0 && seq <= self.head.seq).then_some(seq),
        }
    }

    /// Goes on to `segment`, which fits where it is put.
    pub(crate) fn advance(&mut self, segment: &Segment) -> Step {
        let head = segment.head();
        self.hlc = self.hlc.max(head.hlc);
        match head.kind {
            SegmentKind::Append if self.pending().is_some() => {
                self.beyond = Some(Tip::of(segment));
                Step::Nothing
            }
            SegmentKind::Append => {
                self.run = None;
                self.beyond = None;
                self.head = Tip::of(segment);
                Step::Append
            }
            SegmentKind::Checkpoint { part, parts } => self.advance_run(segment, part, parts),
        }
    }

    fn advance_run(&mut self, segment: &Segment, part: u32, parts: u32) -> Step {
        let seq = segment.head().seq;
        if part == 0 {
            let jumped = seq != self.head.seq + 1;
            self.run = Some(Run::begin(seq, parts, jumped));
        }
        let mut run = self.run.take();
        let jumped = run.as_ref().is_some_and(|run| run.jumped);
        let add = |run: &mut Run| run.add(segment, part, parts);
        self.run = run.take_if(add);
        let complete = self.pending().is_some();
        if !jumped && !complete {
            self.head = Tip::of(segment);
        }
        let is_beyond = complete || jumped && self.run.is_some();
        self.beyond = is_beyond.then(|| Tip::of(segment));
        match complete {
            true => Step::Complete,
            false => Step::Nothing,
        }
    }
}

/// The logs of others that `segment` names, and how far.
pub(crate) fn needs(segment: &Segment) -> BTreeMap<NodeId, Need> {
    let mut needs: BTreeMap<NodeId, Need> = BTreeMap::new();
    let mut says = |dot: Dot| {
        let need = needs.entry(dot.node).or_default();
        need.said = need.said.max(dot.seq);
    };
    let mut logs = Vec::new();
    for entry in segment.entries() {
        // Others, which are nearly all, are not decoded.
        if !matches!(entry.record.kind, kind::DEL | kind::UNPIN | kind::AFTER) {
            continue;
        }
        match entry.record.read() {
            Record::Del(del) => del.dots.into_iter().for_each(&mut says),
            Record::Unpin(dots) => dots.into_iter().for_each(&mut says),
            Record::After(after) => logs.extend(after),
            _ => {}
        }
    }
    for log in logs {
        let need = needs.entry(log.node).or_default();
        need.counts = need.counts.max(log.seq);
    }
    needs.remove(&segment.head().node);
    needs
}

/// Most logs that a checkpoint may name: as many as there can be.
const NEEDS_MAX: usize = u16::MAX as usize;
