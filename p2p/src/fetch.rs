//! Which chunk of a NAR to ask of whom, and when to stop waiting.
//!
//! A [`Fetch`] schedules the download of one NAR from any number of sources. It is a value: events
//! go in, actions come out, time is an argument, randomness is a seed. The caller moves the bytes
//! and verifies every chunk before it reports it.
//!
//! - A client reads in order, so the [`WINDOW`] of segments at the reader comes first and in order.
//!   Everything behind it, up to the read-ahead the caller allows, comes rarest first with ties
//!   broken by the seed: so that nodes fetching the same NAR hold different pieces and can trade.
//! - Requests are for blocks of one segment. How much is under way at a peer is bounded by what fills
//!   the way to it ([`PeerTable`]), at how many peers by [`ACTIVE_MAX`]. Of two sources drawn by
//!   lot the better one is asked: the same news at many nodes must not send all to the same peer.
//! - A request that is late while the reader needs it is asked of a second source, within
//!   [`HEDGE_PERCENT`] of the NAR's bytes. A source that makes no progress loses its requests and is
//!   avoided for a while; one that lied is banned.
//! - In a crowd, when at least as many peers are fetching as hold everything, each segment nobody is
//!   known to have but the holders is fetched from them by one node, chosen by rendezvous; the
//!   others wait for it to appear, and take its place if nothing moves.
//!
//! Times are durations since any fixed moment. All state is bounded by the number of chunks,
//! [`SOURCES_MAX`] and the bytes that may be under way.

mod chunks;
mod crowd;
mod event;
mod random;
mod requests;
mod schedule;
mod sources;
mod watch;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use attic_store::NarHash;

use crate::ids::NodeId;
use crate::peer_stats::PeerTable;
use crate::wire::{Have, Layout, SegmentSet};

use chunks::{ChunkMap, Held};
use crowd::Crowd;
use random::Random;
use requests::Requests;
use sources::Sources;

pub use event::{Action, BanReason, Event, FetchError, FetchStats, RequestId, Tier};

/// Segments at the reader that are fetched strictly in order.
pub const WINDOW: u32 = 4;
/// The most sources of one NAR that are kept; further ones are ignored until some are gone.
pub const SOURCES_MAX: usize = 64;
/// The most sources that are asked at a time for one NAR.
pub const ACTIVE_MAX: usize = 6;
/// How much of a NAR may be asked for twice.
pub const HEDGE_PERCENT: u64 = 3;
/// No request is asked for twice before this long.
pub const HEDGE_AFTER_MIN: Duration = Duration::from_millis(50);
/// A source that sends nothing for this long while it owes something has stalled.
pub const STALLED_AFTER: Duration = Duration::from_secs(1);
/// Without any source for something that is needed for so long, the download fails.
pub const NO_SOURCE_AFTER: Duration = Duration::from_secs(5);
/// Without a single chunk for so long while sources claim to have them, the download fails.
pub const NO_PROGRESS_AFTER: Duration = Duration::from_secs(30);

/// What to fetch, and for whom.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// This node.
    pub me: NodeId,
    /// The NAR.
    pub nar: NarHash,
    /// How it is cut.
    pub layout: Arc<Layout>,
    /// Bytes of frames that may be fetched beyond the reader's chunk; `u64::MAX` when every chunk
    /// goes to disk. The reader's own segment is always fetched.
    pub read_ahead: u64,
    /// Breaks ties; different at every node, or all fetch in the same order.
    pub seed: u64,
}

/// The download of one NAR.
#[derive(Debug)]
pub struct Fetch {
    me: NodeId,
    read_ahead: u64,
    layout: Arc<Layout>,
    chunks: ChunkMap,
    sources: Sources,
    requests: Requests,
    crowd: Crowd,
    random: Random,
    reader: u32,
    hedge_left: u64,
    stats: FetchStats,
    watched: Option<Duration>,
    progressed: Duration,
    starved_since: Option<Duration>,
    searched: Option<Duration>,
    over: bool,
}

impl Fetch {
    /// A download that holds nothing and knows no source.
    pub fn new(now: Duration, options: FetchOptions) -> Fetch {
        let layout = options.layout;
        let whole = layout.bytes();
        let hedge_left = (whole * HEDGE_PERCENT / 100).max(whole.min(HEDGE_LEFT_MIN));
        Fetch {
            me: options.me,
            read_ahead: options.read_ahead,
            chunks: ChunkMap::new(layout.clone()),
            sources: Sources::new(options.nar, layout.segments()),
            requests: Requests::default(),
            crowd: Crowd::new(now),
            random: Random::new(options.seed),
            layout,
            reader: 0,
            hedge_left,
            stats: FetchStats::default(),
            watched: None,
            progressed: now,
            starved_since: None,
            searched: None,
            over: false,
        }
    }

    /// Marks chunks as held before anything is asked for. Segments that become complete are in
    /// [`Fetch::held`], without an action.
    pub fn hold(&mut self, chunks: impl IntoIterator<Item = u32>) {
        for chunk in chunks {
            self.chunks.hold(chunk);
        }
    }

    /// Takes in what happened; returns what to do, in order.
    ///
    /// After [`Action::Done`] or [`Action::Failed`] nothing is ever done.
    pub fn handle(&mut self, now: Duration, event: Event, peers: &mut PeerTable) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.over {
            return actions;
        }
        let may_ask = self.apply(now, event, peers, &mut actions);
        let watch = self
            .watched
            .is_none_or(|watched| now >= watched + WATCH_EVERY);
        if watch {
            self.watched = Some(now);
            self.watch(now, peers, &mut actions);
        }
        if may_ask || watch {
            self.schedule(now, peers, &mut actions);
        }
        self.conclude(now, peers, &mut actions);
        actions
    }

    /// When to send [`Event::Tick`] if nothing else happens before; `None` once it is over.
    pub fn next_wake(&self) -> Option<Duration> {
        let watched = self.watched.unwrap_or_default();
        (!self.over).then(|| match self.requests.is_empty() {
            true => watched + IDLE_WATCH_EVERY,
            false => watched + WATCH_EVERY,
        })
    }

    /// Gives up: withdraws all requests.
    pub fn stop(&mut self, peers: &mut PeerTable) -> Vec<Action> {
        let mut actions = Vec::new();
        self.withdraw_all(peers, &mut actions);
        self.over = true;
        actions
    }

    /// The segments of which every chunk is held.
    pub fn held(&self) -> &SegmentSet {
        self.chunks.held()
    }

    /// What it cost so far.
    pub fn stats(&self) -> FetchStats {
        self.stats
    }

    /// Takes in one event; returns whether there may be something new to ask for.
    fn apply(
        &mut self,
        now: Duration,
        event: Event,
        peers: &mut PeerTable,
        actions: &mut Vec<Action>,
    ) -> bool {
        match event {
            Event::Source { node, tier, have } => {
                self.source(now, node, tier, have, peers, actions)
            }
            Event::Gained { node, segments } => self.gained(now, node, &segments),
            Event::Gone { node } => self.lose(node, peers),
            Event::Arrived {
                node,
                request,
                chunk,
            } => {
                return self.arrived(now, node, request, chunk, peers, actions);
            }
            Event::Present { chunk } => self.obtained(now, chunk, peers, actions),
            Event::Bad { node } => {
                // What it sent before it knew is the same lie.
                if peers.banned_until(now, &node).is_none() {
                    let (time, why) = (peers.ban(now, node), BanReason::WrongBytes);
                    actions.push(Action::Ban { node, time, why });
                }
                self.lose(node, peers);
            }
            Event::Busy {
                node,
                request,
                retry,
            } => {
                if self.drop_request(node, request, peers) {
                    let retry = retry.clamp(RETRY_MIN, RETRY_MAX);
                    self.sources.avoid(node, now + retry);
                }
            }
            Event::NotFound {
                node,
                request,
                chunk,
            } => self.not_found(node, request, chunk, peers),
            Event::Error { node, request } => {
                if self.drop_request(node, request, peers) {
                    self.erred(now, node, peers);
                }
            }
            Event::Reader { chunk } => self.reader = chunk.min(self.layout.chunks()),
            Event::Tick => return false,
        }
        true
    }

    fn source(
        &mut self,
        now: Duration,
        node: NodeId,
        tier: Tier,
        have: Have,
        peers: &mut PeerTable,
        actions: &mut Vec<Action>,
    ) {
        if node == self.me || peers.standing(now, &node).banned {
            return;
        }
        let all = self.layout.segments();
        let (have, complete) = match have {
            Have::Complete => (SegmentSet::full(all), true),
            Have::Partial(have) if have.len() == all => {
                let complete = have.is_full();
                (have, complete)
            }
            Have::Partial(_) | Have::Nothing => {
                self.withdraw(node, peers, actions);
                self.sources.remove(node);
                return;
            }
        };
        self.sources.set(node, tier, have, complete);
        self.crowd.moved(now);
    }

    fn gained(&mut self, now: Duration, node: NodeId, segments: &[u32]) {
        for &segment in segments {
            let was_scarce = self.sources.is_scarce(segment);
            self.sources.gain(node, segment);
            if was_scarce && !self.sources.is_scarce(segment) && !self.held().contains(segment) {
                self.crowd.moved(now);
            }
        }
    }

    /// A chunk from a source; returns whether the source has room again.
    fn arrived(
        &mut self,
        now: Duration,
        node: NodeId,
        request: RequestId,
        chunk: u32,
        peers: &mut PeerTable,
        actions: &mut Vec<Action>,
    ) -> bool {
        if chunk >= self.layout.chunks() {
            return false;
        }
        let len = self.layout.chunk_len(chunk);
        if let Some(first_after) = self.requests.first_answer(now, request, node) {
            peers.observe_rtt(node, first_after);
        }
        peers.arrived(now, node, len);
        let tier = self.sources.heard(now, node);
        if self.requests.answered(now, request, node, chunk, tier) {
            self.sources.owes_less(node, len);
            self.chunks.release(chunk);
        }
        if self.chunks.is_held(chunk) {
            self.stats.wasted += len;
        } else {
            self.stats.arrived += len;
            self.obtained(now, chunk, peers, actions);
        }
        let standing = peers.standing(now, &node);
        schedule::has_room(&standing)
    }

    /// A chunk is held now: whoever else was asked for it need not send it.
    fn obtained(
        &mut self,
        now: Duration,
        chunk: u32,
        peers: &mut PeerTable,
        actions: &mut Vec<Action>,
    ) {
        if chunk >= self.layout.chunks() {
            return;
        }
        let twice = self.chunks.is_asked(chunk);
        match self.chunks.hold(chunk) {
            Held::Before => return,
            Held::Now => {}
            Held::Segment(segment) => actions.push(Action::Complete { segment }),
        }
        self.progressed = now;
        if twice {
            let len = self.layout.chunk_len(chunk);
            for (node, request, over) in self.requests.unask(chunk) {
                peers.abandoned(node, len);
                self.sources.owes_less(node, len);
                if over {
                    actions.push(Action::Cancel { node, request });
                }
            }
        }
    }

    fn not_found(
        &mut self,
        node: NodeId,
        request: RequestId,
        chunk: Option<u32>,
        peers: &mut PeerTable,
    ) {
        match chunk.filter(|chunk| *chunk < self.layout.chunks()) {
            Some(chunk) => {
                self.sources.lose(node, self.layout.segment_of(chunk));
                if self.requests.refused(request, node, chunk) {
                    self.released(node, &[chunk], peers);
                }
            }
            None => self.lose(node, peers),
        }
    }

    /// A source is gone, with everything asked of it.
    fn lose(&mut self, node: NodeId, peers: &mut PeerTable) {
        for (_, chunks) in self.requests.of(node) {
            self.released(node, &chunks, peers);
        }
        self.sources.remove(node);
    }

    /// Repeated errors make a source wait longer, then none.
    fn erred(&mut self, now: Duration, node: NodeId, peers: &mut PeerTable) {
        match self.sources.erred(node) {
            errors if errors >= ERRORS_MAX => self.lose(node, peers),
            errors => self.sources.avoid(node, now + RETRY_AFTER_ERROR * errors),
        }
    }

    /// Forgets a request that its source ended; whether it was one.
    fn drop_request(&mut self, node: NodeId, request: RequestId, peers: &mut PeerTable) -> bool {
        let dropped = self.requests.take(request, node);
        let known = dropped.is_some();
        self.released(node, &dropped.unwrap_or_default(), peers);
        known
    }

    /// Takes back everything asked of a source.
    fn withdraw(&mut self, node: NodeId, peers: &mut PeerTable, actions: &mut Vec<Action>) {
        for (request, chunks) in self.requests.of(node) {
            actions.push(Action::Cancel { node, request });
            self.released(node, &chunks, peers);
        }
    }

    fn withdraw_all(&mut self, peers: &mut PeerTable, actions: &mut Vec<Action>) {
        for node in self.sources.nodes() {
            self.withdraw(node, peers, actions);
        }
    }

    /// Chunks that were asked of `node` will not come from it.
    fn released(&mut self, node: NodeId, chunks: &[u32], peers: &mut PeerTable) {
        for &chunk in chunks {
            let len = self.layout.chunk_len(chunk);
            self.chunks.release(chunk);
            self.sources.owes_less(node, len);
            peers.abandoned(node, len);
        }
    }

    /// Ends the download if there is nothing left to do, or to hope for.
    fn conclude(&mut self, now: Duration, peers: &mut PeerTable, actions: &mut Vec<Action>) {
        if self.chunks.all_held() {
            self.over = true;
            actions.push(Action::Done);
            return;
        }
        let failed = self.starved(now, actions);
        if let Some(error) = failed {
            self.withdraw_all(peers, actions);
            self.over = true;
            actions.push(Action::Failed(error));
        }
    }

    /// Notes when nobody has what is needed, asks for more sources, says when to give up.
    fn starved(&mut self, now: Duration, actions: &mut Vec<Action>) -> Option<FetchError> {
        if !self.requests.is_empty() {
            self.starved_since = None;
            let waited = now.saturating_sub(self.progressed);
            return (waited >= NO_PROGRESS_AFTER).then_some(FetchError::NoProgress);
        }
        if self.watched != Some(now) {
            return None;
        }
        if self.needed().next().is_none() {
            // The reader rests.
            (self.starved_since, self.progressed) = (None, now);
            return None;
        }
        let hopeless = self
            .needed()
            .all(|segment| self.sources.holders(segment) == 0);
        let since = *self.starved_since.get_or_insert(now);
        let searched = self
            .searched
            .is_none_or(|searched| now >= searched + SEARCH_EVERY);
        if searched && (hopeless || now >= since + SEARCH_AFTER) {
            self.searched = Some(now);
            actions.push(Action::FindSources);
        }
        if !hopeless {
            let waited = now.saturating_sub(self.progressed);
            return (waited >= NO_PROGRESS_AFTER).then_some(FetchError::NoProgress);
        }
        (now >= since + NO_SOURCE_AFTER).then_some(FetchError::NoSource)
    }
}

/// How often requests are looked at while some are under way.
const WATCH_EVERY: Duration = Duration::from_millis(20);
/// How often, when none is.
const IDLE_WATCH_EVERY: Duration = Duration::from_millis(100);
/// What may be asked for twice of any NAR: a small one is worth a second request.
const HEDGE_LEFT_MIN: u64 = 512 << 10;
/// Bounds of what a busy peer may tell us to wait.
const RETRY_MIN: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_secs(5);
const RETRY_AFTER_ERROR: Duration = Duration::from_millis(500);
/// Errors in a row that end a source.
const ERRORS_MAX: u32 = 3;
/// More sources are looked for at most this often,
const SEARCH_EVERY: Duration = Duration::from_secs(1);
/// and when all that are known let us wait for so long.
const SEARCH_AFTER: Duration = Duration::from_millis(500);
