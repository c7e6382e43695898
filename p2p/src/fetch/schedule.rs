//! Whom to ask for what next.

use std::time::Duration;

use super::chunks::ranges;
use super::requests::Request;
use super::sources::Source;
use super::{ACTIVE_MAX, Action, Fetch, Tier, WINDOW};
use crate::ids::NodeId;
use crate::peer_stats::{PeerTable, Standing};

/// A source that can take another request.
struct Open {
    node: NodeId,
    score: u64,
    block: u64,
}

/// What makes one segment beyond the window come before another; the least first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    /// Begun: once complete, others can have it.
    Started(u16, u64),
    /// Rarest first, ties by lot.
    Rare(u16, u64),
}

impl Fetch {
    /// Asks for as much as sources have room for.
    pub(super) fn schedule(
        &mut self,
        now: Duration,
        peers: &mut PeerTable,
        actions: &mut Vec<Action>,
    ) {
        self.judge_crowd(now);
        loop {
            let open = self.open_sources(now, peers);
            if open.is_empty() {
                return;
            }
            let Some(segment) = self.next_segment(now, &open) else {
                return;
            };
            let Some(chosen) = self.choose(now, segment, &open) else {
                return;
            };
            let chunks = self.chunks.block(segment, chosen.block);
            self.request(now, chosen.node, chunks, false, peers, actions);
        }
    }

    /// Segments of which something is missing, as far as the reader lets us go.
    pub(super) fn needed(&self) -> impl Iterator<Item = u32> + '_ {
        let missing = (0..self.layout.segments()).filter(|s| !self.held().contains(*s));
        missing.filter(|segment| self.within_reach(*segment))
    }

    /// Sends one request for open or, as a hedge, asked chunks of one segment.
    pub(super) fn request(
        &mut self,
        now: Duration,
        node: NodeId,
        chunks: Vec<u32>,
        hedge: bool,
        peers: &mut PeerTable,
        actions: &mut Vec<Action>,
    ) {
        let Some(&first) = chunks.first() else {
            return;
        };
        let bytes = chunks
            .iter()
            .map(|chunk| self.layout.chunk_len(*chunk))
            .sum();
        chunks.iter().for_each(|chunk| self.chunks.ask(*chunk));
        let times_way = peers.standing(now, &node).outstanding == 0;
        peers.requested(now, node, bytes);
        self.sources.owes_more(now, node, bytes);
        let ranges = ranges(&chunks);
        let request = self.requests.insert(Request {
            node,
            segment: self.layout.segment_of(first),
            chunks,
            issued: now,
            expires: now + DEADLINE,
            hedged: hedge,
            times_way,
        });
        actions.push(Action::Request {
            node,
            request,
            ranges,
            deadline: DEADLINE,
        });
    }

    /// The segment at which the reader is, or would be if it did not rest at the end.
    pub(super) fn reader_segment(&self) -> u32 {
        let last = self.layout.chunks() - 1;
        self.layout.segment_of(self.reader.min(last))
    }

    fn within_reach(&self, segment: u32) -> bool {
        let begin = self.layout.offset(self.layout.chunks_of(segment).start);
        let limit = self
            .layout
            .offset(self.reader)
            .saturating_add(self.read_ahead);
        begin < limit || segment == self.reader_segment()
    }

    /// Sources with room. When enough are at work, only those; silent ones take no place. While a crowd counts on this node to
    /// take something from a complete source, there is a place for one.
    fn open_sources(&self, now: Duration, peers: &PeerTable) -> Vec<Open> {
        let reserved = usize::from(self.crowd.counts_on_us());
        let at_work = |source: &&Source| source.owed > 0 && now < source.heard + SILENT_AFTER;
        let active = |complete: bool| {
            let sources = self.sources.iter().map(|(_, source)| source);
            let of_kind = sources.filter(|source| source.complete == complete);
            of_kind.filter(at_work).count()
        };
        let (complete, fetching) = (active(true), active(false));
        let candidates = self.sources.iter().filter(|(_, source)| {
            let place = source.complete && complete < reserved
                || complete.max(reserved) + fetching < ACTIVE_MAX;
            source.retry_at <= now && (source.owed > 0 || place)
        });
        let standings = candidates.map(|(node, _)| (*node, peers.standing(now, node)));
        let open = standings.filter(|(_, standing)| !standing.banned && has_room(standing));
        open.map(|(node, standing)| Open {
            node,
            score: standing.score,
            block: block(&standing),
        })
        .collect()
    }

    /// The most urgent segment with something open that one of the sources may be asked for.
    fn next_segment(&self, now: Duration, open: &[Open]) -> Option<u32> {
        let head = self.reader_segment();
        let window = head..head.saturating_add(WINDOW);
        let askable = |segment: &u32| {
            self.chunks.open_in(*segment) > 0
                && self.within_reach(*segment)
                && open
                    .iter()
                    .any(|open| self.may_ask(now, &open.node, *segment))
        };
        let in_window = window.start..window.end.min(self.layout.segments());
        if let Some(segment) = in_window.clone().find(askable) {
            return Some(segment);
        }
        let others = (0..self.layout.segments()).filter(|segment| !in_window.contains(segment));
        others
            .filter(askable)
            .min_by_key(|segment| self.urgency(*segment))
    }

    fn urgency(&self, segment: u32) -> Urgency {
        let holders = self.sources.usable_holders(segment);
        let tie = self.random.tie(segment);
        match self.chunks.is_started(segment) {
            true => Urgency::Started(holders, tie),
            false => Urgency::Rare(holders, tie),
        }
    }

    /// The better of two sources drawn by lot.
    fn choose<'a>(&mut self, now: Duration, segment: u32, open: &'a [Open]) -> Option<&'a Open> {
        let mut fit: Vec<&Open> = open
            .iter()
            .filter(|open| self.may_ask(now, &open.node, segment))
            .collect();
        let one = (!fit.is_empty()).then(|| fit.swap_remove(self.random.below(fit.len())))?;
        let other = (!fit.is_empty()).then(|| fit.swap_remove(self.random.below(fit.len())));
        match other {
            Some(other) if other.score > one.score => Some(other),
            _ => Some(one),
        }
    }

    /// Whether a source holds a segment and is the kind of source to ask for it.
    pub(super) fn may_ask(&self, now: Duration, node: &NodeId, segment: u32) -> bool {
        let Some(source) = self.sources.get(node) else {
            return false;
        };
        let usable = !source.demoted || self.sources.usable_holders(segment) == 0;
        usable
            && source.have.contains(segment)
            && self.crowd_allows(source, segment)
            && self.is_nearest(now, source, segment)
    }

    /// Whether no nearer source could be asked for the segment, now or once it has room.
    fn is_nearest(&self, now: Duration, source: &Source, segment: u32) -> bool {
        if source.tier == Tier::Lan {
            return true;
        }
        let nearer = |other: &Source| {
            other.tier < source.tier
                && !other.demoted
                && other.retry_at <= now
                && other.have.contains(segment)
        };
        !self.sources.iter().any(|(_, other)| nearer(other))
    }
}

/// Whether another request may be sent to a peer. One that has yet to show that it answers gets one
/// at a time, so that what black holes swallow stays within what may be asked for twice.
pub(super) fn has_room(standing: &Standing) -> bool {
    let owes = standing.outstanding;
    owes == 0 || standing.goodput > 0 && owes + block(standing) <= standing.in_flight_max
}

/// Bytes of one request: two of them keep the way filled.
fn block(standing: &Standing) -> u64 {
    match standing.goodput {
        0 => BLOCK_MIN,
        _ => (standing.in_flight_max / 2).min(BLOCK_MAX),
    }
}

const BLOCK_MIN: u64 = 128 << 10;
const BLOCK_MAX: u64 = 4 << 20;
/// A source that owes something and sent nothing for so long is not at work.
const SILENT_AFTER: Duration = Duration::from_millis(100);
/// How long an answer is of use: far beyond when its source counts as stalled.
const DEADLINE: Duration = Duration::from_secs(15);
