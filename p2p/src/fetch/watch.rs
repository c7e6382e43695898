//! What to do about requests that do not come back.

use std::time::Duration;

use super::requests::Request;
use super::sources::Source;
use super::{Action, Fetch, HEDGE_AFTER_MIN, RequestId, STALLED_AFTER, Tier, WINDOW};
use crate::ids::NodeId;
use crate::peer_stats::PeerTable;

impl Fetch {
    /// Looks at everything under way.
    pub(super) fn watch(
        &mut self,
        now: Duration,
        peers: &mut PeerTable,
        actions: &mut Vec<Action>,
    ) {
        self.sources
            .refresh(|node| peers.standing(now, node).demoted);
        for node in self.stalled(now, peers) {
            self.stats.stalls += 1;
            peers.demote(now, node);
            self.withdraw(node, peers, actions);
        }
        for node in self.suspects(now, peers) {
            self.stats.stalls += 1;
            self.withdraw(node, peers, actions);
            match self.sources.erred(node) {
                1 => self.sources.avoid(node, now + SUSPECTED_FOR),
                _ => peers.demote(now, node),
            }
        }
        for (id, node) in self.expired(now) {
            actions.push(Action::Cancel { node, request: id });
            self.drop_request(node, id, peers);
            self.erred(now, node, peers);
        }
        self.sources
            .refresh(|node| peers.standing(now, node).demoted);
        for id in self.late(now) {
            self.hedge(now, id, peers, actions);
        }
    }

    /// Sources that owe something and send nothing, or hardly anything for a while.
    fn stalled(&mut self, now: Duration, peers: &PeerTable) -> Vec<NodeId> {
        let mut stalled = Vec::new();
        for node in self.sources.nodes() {
            let goodput = peers.standing(now, &node).goodput;
            let median = self.median_goodput(now, &node, peers);
            let Some(source) = self.sources.get_mut(&node).filter(|source| source.owed > 0) else {
                continue;
            };
            let slow = goodput > 0 && median.is_some_and(|median| goodput < median / SLOW_FRACTION);
            source.slow_since = slow.then(|| source.slow_since.unwrap_or(now));
            let slow = source
                .slow_since
                .is_some_and(|since| now >= since + SLOW_FOR);
            if slow || now >= source.heard + patience(goodput) {
                source.slow_since = None;
                stalled.push(node);
            }
        }
        stalled
    }

    /// Sources that are silent while there are better ones. What they owe is fetched elsewhere, without
    /// waiting until they count as stalled: several that fall silent at once owe more than may be
    /// asked for twice.
    fn suspects(&self, now: Duration, peers: &PeerTable) -> Vec<NodeId> {
        let lively = |(node, source): (&NodeId, &Source)| {
            let silent = source.owed > 0 && now >= source.heard + HEDGE_AFTER_MIN;
            !silent
                && !source.demoted
                && source.retry_at <= now
                && peers.standing(now, node).goodput > 0
        };
        if !self.sources.iter().any(lively) {
            return Vec::new();
        }
        let silent = |(node, source): &(&NodeId, &Source)| {
            let usual = self.requests.usual(source.tier) * LATE_THOUGH_BUSY;
            let chunk = chunk_time(peers.standing(now, node).goodput);
            source.owed > 0 && now >= source.heard + SUSPECTED_AFTER.max(usual).max(chunk)
        };
        let silent = self.sources.iter().filter(silent);
        silent.map(|(node, _)| *node).collect()
    }

    /// Median goodput of the other working sources of the same tier; `None` for fewer than two.
    fn median_goodput(&self, now: Duration, node: &NodeId, peers: &PeerTable) -> Option<u64> {
        let tier = self.sources.get(node)?.tier;
        let like = |(other, source): &(&NodeId, &Source)| {
            *other != node && source.tier == tier && source.owed > 0 && !source.demoted
        };
        let likes = self.sources.iter().filter(like);
        let mut goodputs: Vec<u64> = likes
            .map(|(other, _)| peers.standing(now, other).goodput)
            .filter(|goodput| *goodput > 0)
            .collect();
        goodputs.sort_unstable();
        (goodputs.len() >= 2).then(|| goodputs[goodputs.len() / 2])
    }

    fn expired(&self, now: Duration) -> Vec<(RequestId, NodeId)> {
        let expired = self
            .requests
            .iter()
            .filter(|(_, request)| request.expires <= now);
        expired.map(|(id, request)| (id, request.node)).collect()
    }

    /// Requests the reader will need soon and that take longer than usual, at quiet sources.
    fn late(&self, now: Duration) -> Vec<RequestId> {
        let head = self.reader_segment();
        let end_game = !self
            .needed()
            .any(|segment| self.chunks.open_in(segment) > 0);
        let late = |request: &Request| {
            let soon = (head..head.saturating_add(WINDOW)).contains(&request.segment);
            (soon || end_game) && !request.hedged && self.is_late(now, request)
        };
        let late = self.requests.iter().filter(|(_, request)| late(request));
        late.map(|(id, _)| id).collect()
    }

    fn is_late(&self, now: Duration, request: &Request) -> bool {
        let Some(source) = self.sources.get(&request.node) else {
            return false;
        };
        let usual = self.requests.usual(source.tier).max(HEDGE_AFTER_MIN);
        let age = now.saturating_sub(request.issued);
        let quiet = now.saturating_sub(source.heard) >= HEDGE_AFTER_MIN;
        age > usual * if quiet { 1 } else { LATE_THOUGH_BUSY }
    }

    /// Asks a second source for what a request has not brought, as far as the budget goes.
    fn hedge(
        &mut self,
        now: Duration,
        id: RequestId,
        peers: &mut PeerTable,
        actions: &mut Vec<Action>,
    ) {
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        let (segment, first_asked) = (request.segment, request.node);
        let mut bytes = 0;
        let affordable = |chunk: &u32| {
            bytes += self.layout.chunk_len(*chunk);
            bytes <= self.hedge_left
        };
        let single = request
            .chunks
            .iter()
            .copied()
            .filter(|chunk| self.chunks.asks(*chunk) == 1);
        let chunks: Vec<u32> = single.take_while(affordable).collect();
        let Some(second) = self.second_source(now, segment, first_asked, peers) else {
            return;
        };
        if chunks.is_empty() {
            return;
        }
        if let Some(request) = self.requests.get_mut(id) {
            request.hedged = true;
        }
        let bytes: u64 = chunks
            .iter()
            .map(|chunk| self.layout.chunk_len(*chunk))
            .sum();
        self.hedge_left -= bytes;
        self.stats.hedged += bytes;
        self.request(now, second, chunks, true, peers, actions);
    }

    /// The best other source that is not quiet itself, rather one that has shown that it answers.
    fn second_source(
        &self,
        now: Duration,
        segment: u32,
        first: NodeId,
        peers: &PeerTable,
    ) -> Option<NodeId> {
        let fit = |(node, source): &(&NodeId, &Source)| {
            let quiet = source.owed > 0 && now >= source.heard + HEDGE_AFTER_MIN;
            **node != first
                && !quiet
                && !source.demoted
                && source.retry_at <= now
                && source.have.contains(segment)
        };
        let fit = self.sources.iter().filter(fit);
        let standings = fit.map(|(node, source)| (source.tier, peers.standing(now, node), *node));
        let standings = standings.filter(|(_, standing, _)| !standing.banned);
        let best = standings
            .max_by_key(|(tier, standing, _)| (rank(*tier), standing.goodput > 0, standing.score));
        best.map(|(_, _, node)| node)
    }
}

/// Nearer is higher.
fn rank(tier: Tier) -> u8 {
    u8::MAX - tier as u8
}

/// How long a source may be silent: one known to be slow gets the time its chunks take.
fn patience(goodput: u64) -> Duration {
    chunk_time(goodput).clamp(STALLED_AFTER, STALLED_AFTER_MAX)
}

/// How long a large chunk takes from a source of known goodput; nothing for others.
fn chunk_time(goodput: u64) -> Duration {
    match goodput {
        0 => Duration::ZERO,
        _ => Duration::from_micros((LARGE_CHUNK_LEN * 1_000_000).div_ceil(goodput)),
    }
}

/// Less than this part of its like's goodput is slow,
const SLOW_FRACTION: u64 = 10;
/// and for so long it counts as stalled.
const SLOW_FOR: Duration = Duration::from_secs(2);
/// A request at a source that does send is late only after this many times the usual time.
const LATE_THOUGH_BUSY: u32 = 4;
/// A source that is silent for so long while there are better ones is relieved of what it owes,
const SUSPECTED_AFTER: Duration = Duration::from_millis(250);
/// and not asked for so long; the second time in a row it is demoted.
const SUSPECTED_FOR: Duration = Duration::from_secs(1);
/// Two chunks of the greatest length: silence shorter than this takes is no stall.
const LARGE_CHUNK_LEN: u64 = 1 << 20;
const STALLED_AFTER_MAX: Duration = Duration::from_secs(10);
