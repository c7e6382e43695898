//! Comparing log ends with peers and fetching what is missing.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::{Action, Replica};
use crate::ids::NodeId;
use crate::log::Log;
use crate::reconcile::{ANSWER_LEN_MAX, Answer, Ask, RANGES_MAX, Range, Summary, TipHint, tips_in};
use crate::time::Millis;

/// Who is connected, who is being asked, and what for.
#[derive(Debug)]
pub(super) struct Sync {
    peers: BTreeSet<NodeId>,
    /// Peers to be asked soon, and whether they may ask back.
    due: BTreeMap<NodeId, bool>,
    /// When peers are asked again: their answer did not come, or this node has more to tell.
    retries: BTreeMap<NodeId, Millis>,
    /// Peers that are asked because gossip did not reach them, and until when that is enough.
    unsent: BTreeMap<NodeId, Millis>,
    pub(super) sessions: BTreeMap<NodeId, Session>,
    next_id: u64,
    /// When a random peer is asked; `None` before the first event.
    next_round: Option<Millis>,
    random: u64,
    has_asked: bool,
    /// Whether a comparison came to its end.
    has_caught_up: bool,
}

/// A conversation with one peer, from hello to the last segment.
#[derive(Debug)]
pub(super) struct Session {
    /// Of the request that is not answered yet.
    id: u64,
    deadline: Millis,
    pub(super) step: Step,
    /// What the peer has and this node has not: for each log the last segment.
    wants: Vec<Want>,
    learned: bool,
    /// Whether some of it was left to another session.
    left_over: bool,
}

impl Session {
    /// One that has not asked anything yet.
    pub(super) fn begin(step: Step) -> Session {
        Session {
            id: 0,
            deadline: Millis(0),
            step,
            wants: Vec::new(),
            learned: false,
            left_over: false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Hello,
    Tips {
        /// The buckets that were asked for.
        buckets: u64,
    },
    Pull {
        /// The number that must rise for the session to go on with its first want.
        first_next: u64,
    },
    /// Digests of these shards, at this summary of log ends.
    Shards {
        summary: u64,
        first: u8,
    },
    /// Segments that are damaged here.
    Mend,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Want {
    node: NodeId,
    to: u64,
    /// Whether the peer has another segment of this number: to be fetched as proof.
    contradicts: bool,
}

impl Sync {
    pub(super) fn new(seed: u64) -> Sync {
        Sync {
            peers: BTreeSet::new(),
            due: BTreeMap::new(),
            retries: BTreeMap::new(),
            unsent: BTreeMap::new(),
            sessions: BTreeMap::new(),
            next_id: 0,
            next_round: None,
            random: seed,
            has_asked: false,
            has_caught_up: false,
        }
    }

    pub(super) fn peer_up(&mut self, node: NodeId) {
        if self.peers.insert(node) {
            self.due.insert(node, true);
        }
    }

    pub(super) fn peer_down(&mut self, node: NodeId) {
        self.peers.remove(&node);
        self.due.remove(&node);
        self.retries.remove(&node);
        self.unsent.remove(&node);
        self.sessions.remove(&node);
    }

    /// A request to `node` failed. It may have been lost with one of two connections to a peer that
    /// is there: waiting for the next round would leave this node behind for a minute.
    fn failed(&mut self, now: Millis, node: NodeId) {
        if self.peers.contains(&node) {
            self.retries.insert(node, now.plus(RETRY_AFTER));
        }
    }

    /// Compares with all peers soon: this node has begun to say something, and those it said it to
    /// may not have begun to listen to its gossip.
    pub(super) fn ask_all(&mut self, now: Millis) {
        let soon = now.plus(RETRY_AFTER);
        let peers = self.peers.iter().map(|peer| (*peer, soon));
        self.retries.extend(peers);
    }

    /// Asks `node` as soon as there is room.
    pub(super) fn ask_soon(&mut self, node: NodeId) {
        if self.peers.contains(&node) {
            self.due.entry(node).or_insert(true);
        }
    }

    /// Compares with a peer that lacks what was gossiped, so that it asks back: at once, and while that
    /// goes on every [`RETRY_AFTER`].
    pub(super) fn unsent(&mut self, now: Millis, node: NodeId) {
        if !self.peers.contains(&node) {
            return;
        }
        let at = self.unsent.get(&node).map_or(now, |until| now.max(*until));
        if let Entry::Vacant(retry) = self.retries.entry(node) {
            retry.insert(at);
            self.unsent.insert(node, at.plus(RETRY_AFTER));
        }
    }

    /// Asks back who asked.
    fn ask_back(&mut self, node: NodeId) {
        if self.peers.contains(&node) && !self.sessions.contains_key(&node) {
            self.due.entry(node).or_insert(false);
        }
    }

    pub(super) fn has_peers(&self) -> bool {
        !self.peers.is_empty()
    }

    /// Whether a peer has said how far it knows the own log.
    pub(super) fn has_asked(&self) -> bool {
        self.has_asked
    }

    /// Whether a comparison came to its end.
    pub(super) fn has_caught_up(&self) -> bool {
        self.has_caught_up
    }

    /// How many conversations it leads.
    pub(super) fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Whether what a peer has is being asked for.
    pub(super) fn is_asking(&self, peer: &NodeId) -> bool {
        self.sessions.contains_key(peer)
    }

    /// A peer that no session is held with.
    pub(super) fn free_peer(&mut self) -> Option<NodeId> {
        let free = self.peers.iter();
        let free = free.filter(|peer| !self.sessions.contains_key(peer));
        let free: Vec<NodeId> = free.copied().collect();
        let number = self.random().checked_rem(free.len() as u64)?;
        free.get(number as usize).copied()
    }

    pub(super) fn next_wake(&self) -> Option<Millis> {
        let deadlines = self.sessions.values().map(|session| session.deadline);
        let retries = self.retries.values().copied();
        deadlines.chain(retries).chain(self.next_round).min()
    }

    /// Whether another session than that with `peer` fetches the log of `node`.
    fn is_claimed(&self, node: NodeId, peer: NodeId) -> bool {
        let others = self.sessions.iter().filter(|(other, _)| **other != peer);
        others
            .flat_map(|(_, session)| &session.wants)
            .any(|want| want.node == node)
    }

    /// Drops sessions without an answer and chooses a peer when it is time.
    fn tick(&mut self, now: Millis) {
        let led = self.sessions.len();
        self.sessions.retain(|_, session| session.deadline > now);
        if self.sessions.len() < led {
            self.ask_another(now);
        }
        let due = &mut self.due;
        self.retries.retain(|peer, at| {
            let waits = *at > now;
            if !waits {
                due.entry(*peer).or_insert(true);
            }
            waits
        });
        let due = self.next_round.is_some_and(|at| at <= now);
        if due && let Some(peer) = self.random_peer() {
            self.due.entry(peer).or_insert(true);
        }
        if due || self.next_round.is_none() {
            let half = ROUND.as_millis() as u64 / 2;
            let wait = half + self.random() % (2 * half + 1);
            self.next_round = Some(now.plus(Duration::from_millis(wait)));
        }
    }

    /// A conversation failed. What it was about is soon asked of anybody: not of the same peer, which
    /// may be silent, and not first of the one with the lowest name.
    fn ask_another(&mut self, now: Millis) {
        let soon = now.plus(AFTER_FAILURE);
        self.next_round = self.next_round.map(|at| at.min(soon));
    }

    fn random_peer(&mut self) -> Option<NodeId> {
        let count = self.peers.len() as u64;
        let number = self.random().checked_rem(count)?;
        self.peers.iter().nth(number as usize).copied()
    }

    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.random;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
}

impl<L: Log> Replica<L> {
    /// Starts conversations that are due, as many as there may be at a time.
    pub(super) fn start_sessions(&mut self, now: Millis, actions: &mut Vec<Action>) {
        self.sync.tick(now);
        self.start_mending(now, actions);
        while self.sync.sessions.len() < SESSIONS_MAX {
            let sessions = &self.sync.sessions;
            let free = self
                .sync
                .due
                .keys()
                .find(|peer| !sessions.contains_key(peer));
            let Some(peer) = free.copied() else {
                return;
            };
            let ask_back = self.sync.due.remove(&peer).unwrap_or(false);
            let summary = Summary::of(&self.directory.tips()).all;
            let session = Session::begin(Step::Hello);
            let ask = Ask::Hello { summary, ask_back };
            self.ask(now, peer, session, ask, actions);
        }
    }

    pub(super) fn ask(
        &mut self,
        now: Millis,
        to: NodeId,
        mut session: Session,
        ask: Ask,
        actions: &mut Vec<Action>,
    ) {
        self.sync.next_id += 1;
        let id = self.sync.next_id;
        session.id = id;
        session.deadline = now.plus(ANSWER_TIMEOUT);
        self.sync.sessions.insert(to, session);
        let bytes = ask.encode();
        actions.push(Action::Request { to, id, bytes });
    }

    /// Answers a peer.
    pub(super) fn answer(
        &mut self,
        now: Millis,
        from: NodeId,
        id: u64,
        bytes: &[u8],
        actions: &mut Vec<Action>,
    ) {
        let answer = match Ask::decode(bytes) {
            Ok(Ask::Hello { summary, ask_back }) => self.answer_hello(from, summary, ask_back),
            Ok(Ask::Tips { buckets }) => {
                let (tips, left) = tips_in(&self.directory.tips(), buckets);
                Answer::Tips { tips, left }
            }
            Ok(Ask::Pull { ranges }) => {
                let answer = self.answer_pull(&ranges, actions);
                if let Answer::Segments(segments) = &answer {
                    self.lags.fetched(from, segments.len() as u64);
                }
                answer
            }
            Ok(Ask::Shards {
                summary,
                terms,
                first,
            }) => self.answer_shards(now, (summary, terms), first),
            Err(error) => {
                let why = format!("request: {error}");
                actions.push(Action::Misbehaved { node: from, why });
                let bytes = Bytes::new();
                actions.push(Action::Respond { id, bytes });
                return;
            }
        };
        let bytes = answer.encode();
        actions.push(Action::Respond { id, bytes });
    }

    fn answer_hello(&mut self, from: NodeId, summary: u64, ask_back: bool) -> Answer {
        let mine = Summary::of(&self.directory.tips());
        let differs = mine.all != summary;
        if differs && ask_back {
            self.sync.ask_back(from);
        }
        if !differs {
            self.lags.compared(from);
            self.sync.has_caught_up = true;
        }
        Answer::Hello {
            yours: self.directory.seq(from),
            buckets: differs.then(|| mine.buckets.to_vec()),
        }
    }

    fn answer_pull(&mut self, ranges: &[Range], actions: &mut Vec<Action>) -> Answer {
        let mut segments = Vec::new();
        let mut room = ANSWER_LEN_MAX - ANSWER_HEAD_MAX;
        for range in ranges {
            let from = range.from.max(self.directory.first_needed(range.node));
            let to = range.to.min(self.directory.seq(range.node));
            for seq in from..=to {
                let bytes = match self.log.read(range.node, seq) {
                    Ok(Some(bytes)) => bytes,
                    Ok(None) => {
                        self.repair.suspect(range.node, seq);
                        break;
                    }
                    Err(error) => {
                        self.repair.suspect(range.node, seq);
                        actions.push(Action::LogFailed(error));
                        break;
                    }
                };
                let Some(left) = room.checked_sub(bytes.len() + SEGMENT_HEAD_MAX) else {
                    return Answer::Segments(segments);
                };
                room = left;
                segments.push(bytes);
            }
        }
        Answer::Segments(segments)
    }

    /// Takes a peer's answer and asks on, if there is more to ask.
    pub(super) fn learn(
        &mut self,
        now: Millis,
        from: NodeId,
        id: u64,
        bytes: Option<Bytes>,
        actions: &mut Vec<Action>,
    ) {
        let known = self.sync.sessions.get(&from);
        if known.is_none_or(|session| session.id != id) {
            return;
        }
        let Some(session) = self.sync.sessions.remove(&from) else {
            return;
        };
        let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) else {
            self.sync.failed(now, from);
            self.sync.ask_another(now);
            return;
        };
        match (session.step, Answer::decode(&bytes)) {
            (Step::Hello, Ok(Answer::Hello { yours, buckets })) => {
                self.learn_hello(now, from, session, (yours, buckets), actions);
            }
            (Step::Tips { buckets }, Ok(Answer::Tips { tips, left })) => {
                // One that leaves over what was not asked for has said nothing about the rest.
                self.note_tips(from, &tips, buckets & !left);
                self.learn_tips(now, from, session, (tips, left), actions);
            }
            (Step::Pull { first_next }, Ok(Answer::Segments(segments))) => {
                self.learn_segments(now, from, session, (first_next, segments), actions);
            }
            (Step::Shards { summary, first }, Ok(Answer::Shards(theirs))) => {
                let step = (summary, first);
                self.learn_shards(now, from, session, step, theirs, actions);
            }
            (Step::Mend, Ok(Answer::Segments(segments))) => {
                self.learn_mended(from, segments, actions);
            }
            (_, Ok(_)) => {
                let why = "answer to another question".to_owned();
                actions.push(Action::Misbehaved { node: from, why });
            }
            (_, Err(error)) => {
                let why = format!("answer: {error}");
                actions.push(Action::Misbehaved { node: from, why });
            }
        }
    }

    fn learn_hello(
        &mut self,
        now: Millis,
        from: NodeId,
        session: Session,
        (yours, buckets): (u64, Option<Vec<u64>>),
        actions: &mut Vec<Action>,
    ) {
        self.hear_of_own_log(now, yours);
        self.sync.has_asked = true;
        self.lags.compared(from);
        let Some(theirs) = buckets else {
            self.sync.has_caught_up = true;
            self.compare_on(now, from, session, actions);
            return;
        };
        let mine = Summary::of(&self.directory.tips());
        let buckets = mine.differing(&theirs);
        if buckets != 0 {
            let session = Session {
                step: Step::Tips { buckets },
                ..session
            };
            self.ask(now, from, session, Ask::Tips { buckets }, actions);
        }
    }

    fn learn_tips(
        &mut self,
        now: Millis,
        from: NodeId,
        mut session: Session,
        (tips, left): (Vec<TipHint>, u64),
        actions: &mut Vec<Action>,
    ) {
        let wants = tips.iter().filter_map(|tip| self.want(now, tip));
        session.wants.extend(wants);
        if left != 0 && session.wants.len() < WANTS_MAX {
            session.step = Step::Tips { buckets: left };
            self.ask(now, from, session, Ask::Tips { buckets: left }, actions);
        } else {
            self.pull(now, from, session, actions);
        }
    }

    /// What to fetch of a log that ends so for a peer.
    fn want(&self, now: Millis, theirs: &TipHint) -> Option<Want> {
        let node = theirs.node;
        let is_refused = self.too_long.get(&node).is_some_and(|until| now < *until);
        if is_refused || self.directory.is_quarantined(node) {
            return None;
        }
        let mine = TipHint::from(&self.directory.tip(node));
        let contradicts = theirs.seq == mine.seq && theirs.id != mine.id;
        (theirs.seq > mine.seq || contradicts).then_some(Want {
            node,
            to: theirs.seq,
            contradicts,
        })
    }

    /// Asks for the next segments, or ends the session.
    fn pull(&mut self, now: Millis, from: NodeId, mut session: Session, actions: &mut Vec<Action>) {
        let directory = &self.directory;
        session
            .wants
            .retain(|want| want.contradicts || directory.next_wanted(want.node) <= want.to);
        // What another session fetches is looked at again in the next one.
        let sync = &self.sync;
        let wanted = session.wants.len();
        session
            .wants
            .retain(|want| !sync.is_claimed(want.node, from));
        session.left_over |= session.wants.len() < wanted;
        let Some(first) = session.wants.first() else {
            self.sync.has_caught_up |= !session.left_over;
            if session.learned {
                self.sync.ask_back(from);
            }
            return;
        };
        let first_next = self.directory.next_wanted(first.node);
        let ranges = session.wants.iter().take(RANGES_MAX);
        let ranges = ranges.map(|want| self.range(want)).collect();
        session.step = Step::Pull { first_next };
        self.ask(now, from, session, Ask::Pull { ranges }, actions);
    }

    fn range(&self, want: &Want) -> Range {
        let next = self.directory.next_wanted(want.node);
        Range {
            node: want.node,
            from: if want.contradicts { want.to } else { next },
            to: want.to,
        }
    }

    fn learn_segments(
        &mut self,
        now: Millis,
        from: NodeId,
        mut session: Session,
        (first_next, segments): (u64, Vec<Bytes>),
        actions: &mut Vec<Action>,
    ) {
        for bytes in segments {
            let outcome = self.receive(now, from, bytes, actions);
            session.learned |= outcome.is_ok();
            if outcome.is_err_and(|refused| refused.is_misbehaviour()) {
                return;
            }
        }
        // What contradicts is asked for once.
        session.wants.retain(|want| !want.contradicts);
        let first = session.wants.first();
        let stuck = first.is_some_and(|want| self.directory.next_wanted(want.node) == first_next);
        if stuck {
            session.wants.remove(0);
        }
        self.pull(now, from, session, actions);
    }
}

/// How often a random peer is asked, give or take a half.
const ROUND: Duration = Duration::from_secs(20);

/// Until a peer that is connected is asked again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// When a random peer is asked instead of one that did not answer.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// Most conversations this node leads at a time.
pub(super) const SESSIONS_MAX: usize = 2;

/// Until a peer is taken not to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Most logs that one conversation is about.
const WANTS_MAX: usize = 1 << 16;

/// Bytes in an answer beside its segments, and beside each of them.
const ANSWER_HEAD_MAX: usize = 16;
const SEGMENT_HEAD_MAX: usize = 3;
