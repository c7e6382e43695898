//! Finding out that the log, or what is folded from it, is not what it should be, and mending it.
//!
//! State is a pure fold of signed logs, and the end of a log names all of it by a chain of hashes.
//! So there is one cure for every damage, and it depends on nobody's honesty:
//!
//! - **The log** is verified once a day, and when something looks wrong: signatures, and the chain up
//!   to the end that is folded. A segment that fails is fetched from any peer. It must have the id its
//!   successor names, so there is one right answer, and who gives it does not matter.
//! - **What is folded** is compared with a peer at equal log ends, [`SHARDS`] digests an hour and
//!   after a start. Where they differ either side may be wrong, so neither is believed: the log is
//!   verified, mended, and folded anew. If that changed the digest, this node was wrong and is not
//!   any more. If not, the peer is, and will find out in the same way.
//!
//! Rows are never taken from a peer, which would be shorter: nobody's signature covers a row, so a
//! peer could add a path to a cache, or bring a removed one back.
//!
//! **Bounds.** A difference leads to one verification and one fold at most once an hour, whoever
//! finds it and how often. A peer that still differs two hours after it was found to be wrong has
//! had the time to mend, and [misbehaves](Action::Misbehaved); one that agrees again where it differed
//! is believed as before.
//!
//! [`SHARDS`]: crate::directory::SHARDS

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::sync::{SESSIONS_MAX, Session, Step};
use super::{Action, Replica};
use crate::ids::NodeId;
use crate::log::Log;
use crate::reconcile::{Ask, Range};
use crate::segment::{Segment, SegmentId};
use crate::time::Millis;

mod compare;

/// What was found and mended since the replica was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repairs {
    /// Segments that are known to be damaged now.
    pub damaged: usize,
    /// Segments that were damaged and are whole again.
    pub mended: u64,
    /// Times the whole log was verified.
    pub verified: u64,
    /// Times everything was folded anew because of a difference.
    pub refolded: u64,
    /// Times that changed anything: what was folded had been wrong.
    pub healed: u64,
    /// Times it did not: the peer was wrong.
    pub contradicted: u64,
}

/// What is being looked at, and what was found.
#[derive(Debug, Default)]
pub(super) struct Repair {
    /// When shards are compared next; `None` before the first event.
    compare_at: Option<Millis>,
    /// The shard to go on with.
    shard: u8,
    /// When the log is verified next.
    verify_at: Option<Millis>,
    verification: Option<Verification>,
    /// Segments of the folded part of a log that are not what they were.
    damaged: BTreeSet<(NodeId, u64)>,
    /// Whether there were too many to know them all.
    more_damaged: bool,
    /// When a peer is asked for them next.
    mend_at: Millis,
    /// A difference that is being looked into.
    suspicion: Option<Suspicion>,
    /// Until then none is.
    rest_until: Millis,
    /// Peers that were wrong.
    wrong: BTreeMap<NodeId, Wrong>,
    /// Since when, and how many requests for digests were answered.
    answered: (Millis, u32),
    done: Repairs,
}

/// A peer's digest that is not this node's.
#[derive(Clone, Copy, Debug)]
struct Suspicion {
    peer: NodeId,
    shard: u8,
}

/// Since when a peer differs from what follows from the logs, and where.
#[derive(Clone, Copy, Debug)]
struct Wrong {
    since: Millis,
    shard: u8,
}

/// A walk through all logs.
#[derive(Debug)]
struct Verification {
    /// Logs to come.
    rest: Vec<NodeId>,
    at: Option<Position>,
    next_step: Millis,
}

#[derive(Debug)]
struct Position {
    node: NodeId,
    seq: u64,
    /// The segment before it, if it is what it should be.
    prev: Option<SegmentId>,
}

impl Repair {
    /// Takes note that a segment is not what it was. The last ones of a log are kept in mind first:
    /// each is mended by the one after it.
    pub(super) fn suspect(&mut self, node: NodeId, seq: u64) {
        self.damaged.insert((node, seq));
        if self.damaged.len() > DAMAGED_MAX {
            self.damaged.pop_first();
            self.more_damaged = true;
        }
    }

    pub(super) fn next_wake(&self, has_peers: bool) -> Option<Millis> {
        let step = self.verification.as_ref().map(|walk| walk.next_step);
        let verify = self.verify_at.filter(|_| self.verification.is_none());
        let mend = (has_peers && !self.damaged.is_empty()).then_some(self.mend_at);
        [step, verify, mend].into_iter().flatten().min()
    }

    /// Whether one more request for digests is answered.
    fn may_answer(&mut self, now: Millis) -> bool {
        let (since, count) = self.answered;
        if now >= since.plus(ANSWERS_PER) {
            self.answered = (now, 1);
            return true;
        }
        self.answered.1 = count.saturating_add(1);
        count < ANSWERS_MAX
    }

    fn contradict(&mut self, now: Millis, Suspicion { peer, shard }: Suspicion) {
        self.done.contradicted += 1;
        if self.wrong.len() >= WRONG_MAX {
            // Whoever is forgotten costs one more fold, not before an hour from now.
            self.wrong.pop_first();
        }
        let since = now;
        self.wrong.insert(peer, Wrong { since, shard });
    }
}

impl<L: Log> Replica<L> {
    /// What was found and mended since the replica was made.
    pub fn repairs(&self) -> Repairs {
        Repairs {
            damaged: self.repair.damaged.len(),
            ..self.repair.done
        }
    }

    /// Does what is due.
    pub(super) fn repair(&mut self, now: Millis, actions: &mut Vec<Action>) {
        let repair = &mut self.repair;
        repair.compare_at.get_or_insert(now.plus(COMPARE_FIRST));
        let verify_at = *repair.verify_at.get_or_insert(now.plus(VERIFY_EVERY));
        let is_idle = repair.verification.is_none() && repair.damaged.is_empty();
        let more = is_idle && repair.more_damaged;
        if verify_at <= now || more {
            repair.more_damaged &= !more;
            self.begin_verification(now);
        }
        self.verify_on(now);
        self.look_into_suspicion(now, actions);
    }

    fn begin_verification(&mut self, now: Millis) {
        self.repair.verify_at = Some(now.plus(VERIFY_EVERY));
        let tips = self.directory.tips();
        self.repair.verification.get_or_insert(Verification {
            rest: tips.iter().map(|tip| tip.node).collect(),
            at: None,
            next_step: now,
        });
    }

    /// Verifies a few segments, if it is time.
    fn verify_on(&mut self, now: Millis) {
        let due = |walk: &mut Verification| walk.next_step <= now;
        let Some(mut walk) = self.repair.verification.take_if(due) else {
            return;
        };
        for _ in 0..SEGMENTS_PER_STEP {
            let Some(mut at) = walk.next() else {
                self.repair.done.verified += 1;
                return;
            };
            self.verify_one(&mut at);
            let more = at.seq <= self.directory.seq(at.node);
            walk.at = more.then_some(at);
        }
        walk.next_step = now.plus(STEP_PAUSE);
        self.repair.verification = Some(walk);
    }

    fn verify_one(&mut self, at: &mut Position) {
        let first = self.directory.first_needed(at.node);
        if at.seq < first {
            // Before a checkpoint nothing counts.
            (at.seq, at.prev) = (first, None);
        }
        let tip = self.directory.tip(at.node);
        if at.seq <= tip.seq {
            let id = self.intact(at.node, at.seq, at.prev);
            let id = id.filter(|id| at.seq < tip.seq || *id == tip.id);
            if id.is_none() {
                self.repair.suspect(at.node, at.seq);
            }
            at.prev = id;
        }
        at.seq += 1;
    }

    /// The id of a segment, if its author signed it and it follows `prev`.
    fn intact(&self, node: NodeId, seq: u64, prev: Option<SegmentId>) -> Option<SegmentId> {
        let bytes = self.log.read(node, seq).ok()??;
        let segment = Segment::decode(bytes).ok()?;
        let head = segment.head();
        let fits = (head.node, head.seq) == (node, seq) && prev.is_none_or(|id| head.prev == id);
        (fits && segment.verify().is_ok()).then(|| segment.id())
    }

    /// Asks a peer for what is damaged, if it is time and there is room.
    pub(super) fn start_mending(&mut self, now: Millis, actions: &mut Vec<Action>) {
        let directory = &self.directory;
        // What is beyond the fold is fetched like anything missing.
        self.repair.damaged.retain(|(node, seq)| {
            (directory.first_needed(*node)..=directory.seq(*node)).contains(seq)
        });
        if self.repair.damaged.is_empty() || self.repair.mend_at > now {
            return;
        }
        let has_room = self.sync.sessions.len() < SESSIONS_MAX;
        let peer = has_room.then(|| self.sync.free_peer()).flatten();
        let Some(peer) = peer else {
            self.repair.mend_at = now.plus(BUSY_PAUSE);
            return;
        };
        self.repair.mend_at = now.plus(MEND_PAUSE);
        // From the end: each one is known by the one after it.
        let ranges = self.repair.damaged.iter().rev();
        let ranges = ranges.map(|(node, seq)| Range {
            node: *node,
            from: *seq,
            to: *seq,
        });
        let ranges = ranges.collect();
        let session = Session::begin(Step::Mend);
        self.ask(now, peer, session, Ask::Pull { ranges }, actions);
    }

    /// Puts what a peer sent in the place of what is damaged.
    pub(super) fn learn_mended(
        &mut self,
        from: NodeId,
        segments: Vec<Bytes>,
        actions: &mut Vec<Action>,
    ) {
        for bytes in segments {
            let segment = Segment::decode(bytes);
            let segment = segment.and_then(|segment| segment.verify().map(|()| segment));
            let segment = match segment {
                Ok(segment) => segment,
                Err(error) => {
                    let why = format!("segment to mend with: {error}");
                    actions.push(Action::Misbehaved { node: from, why });
                    return;
                }
            };
            let place = (segment.head().node, segment.head().seq);
            let wanted = self.repair.damaged.contains(&place);
            if !wanted || self.id_at(place) != Some(segment.id()) {
                continue;
            }
            match self.log.mend(place.0, place.1, segment.bytes().clone()) {
                Ok(()) => {
                    self.repair.damaged.remove(&place);
                    self.repair.done.mended += 1;
                    // There may be more of it.
                    self.repair.mend_at = Millis(0);
                }
                Err(error) => actions.push(Action::LogFailed(error)),
            }
        }
    }

    /// The id that the segment at this place must have; `None` while that cannot be known.
    fn id_at(&self, (node, seq): (NodeId, u64)) -> Option<SegmentId> {
        let tip = self.directory.tip(node);
        if seq == tip.seq {
            return Some(tip.id);
        }
        let next = self.log.read(node, seq + 1).ok()??;
        let next = Segment::decode(next).ok()?;
        next.verify().ok()?;
        Some(next.head().prev)
    }
}

impl Verification {
    /// Takes out where to go on, if anything is left.
    fn next(&mut self) -> Option<Position> {
        let first_of = |node| Position {
            node,
            seq: 0,
            prev: None,
        };
        let Verification { at, rest, .. } = self;
        at.take().or_else(|| rest.pop().map(first_of))
    }
}

/// From the start to the first comparison: by then a node has caught up.
const COMPARE_FIRST: Duration = Duration::from_secs(60);

/// From one comparison of all shards to the next, and from one refold because of a difference.
const COMPARE_EVERY: Duration = Duration::from_secs(3600);

/// How long a peer that is wrong may take to find out: its own comparisons are hourly too.
const PATIENCE: Duration = Duration::from_secs(2 * 3600);

const VERIFY_EVERY: Duration = Duration::from_secs(24 * 3600);

/// Segments verified at a time, some milliseconds, and the pause for everything else.
const SEGMENTS_PER_STEP: usize = 64;
const STEP_PAUSE: Duration = Duration::from_millis(20);

/// Until another peer is asked for what is damaged.
const MEND_PAUSE: Duration = Duration::from_secs(10);

/// Until that is tried again when no peer is free to be asked.
const BUSY_PAUSE: Duration = Duration::from_secs(1);

/// Most segments that are known to be damaged: as many as one request asks for. Once they are mended
/// another walk finds the others.
const DAMAGED_MAX: usize = crate::reconcile::RANGES_MAX;

/// Most peers that are remembered to be wrong.
const WRONG_MAX: usize = 256;

/// Requests for digests that are answered within this time: four nodes that compare everything. Each
/// looks at a thirty-second of the state.
const ANSWERS_MAX: u32 = 128;
const ANSWERS_PER: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
