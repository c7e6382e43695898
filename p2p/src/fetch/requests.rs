//! What is under way, and how long such things take.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::{RequestId, Tier};
use crate::ids::NodeId;

/// One request whose answer is not complete.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) node: NodeId,
    pub(super) segment: u32,
    /// Chunks that have not come, ascending.
    pub(super) chunks: Vec<u32>,
    pub(super) issued: Duration,
    pub(super) expires: Duration,
    /// Another request asks for the same.
    pub(super) hedged: bool,
    /// Nothing else was under way at the source when it was made, and nothing has come yet.
    pub(super) times_way: bool,
}

/// All requests of one download, by number.
#[derive(Debug, Default)]
pub(super) struct Requests {
    live: BTreeMap<RequestId, Request>,
    next: u32,
    times: [Times; 4],
}

impl Requests {
    pub(super) fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    pub(super) fn insert(&mut self, request: Request) -> RequestId {
        let id = RequestId(self.next);
        self.next = self.next.wrapping_add(1);
        self.live.insert(id, request);
        id
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (RequestId, &Request)> {
        self.live.iter().map(|(id, request)| (*id, request))
    }

    pub(super) fn get_mut(&mut self, id: RequestId) -> Option<&mut Request> {
        self.live.get_mut(&id)
    }

    /// Time to the first answer of a request that found its source idle.
    pub(super) fn first_answer(
        &mut self,
        now: Duration,
        id: RequestId,
        node: NodeId,
    ) -> Option<Duration> {
        let request = self
            .live
            .get_mut(&id)
            .filter(|request| request.node == node)?;
        let first = std::mem::take(&mut request.times_way);
        first.then(|| now.saturating_sub(request.issued))
    }

    /// A chunk came; whether the request was waiting for it.
    pub(super) fn answered(
        &mut self,
        now: Duration,
        id: RequestId,
        node: NodeId,
        chunk: u32,
        tier: Option<Tier>,
    ) -> bool {
        let known = self.refuse(id, node, chunk);
        if let (Some(Some(issued)), Some(tier)) = (known, tier) {
            self.times[tier as usize].push(now.saturating_sub(issued));
        }
        known.is_some()
    }

    /// A chunk will not come; whether the request was waiting for it.
    pub(super) fn refused(&mut self, id: RequestId, node: NodeId, chunk: u32) -> bool {
        self.refuse(id, node, chunk).is_some()
    }

    /// Strikes a chunk off; `Some(Some(issued))` if the request is over with it.
    fn refuse(&mut self, id: RequestId, node: NodeId, chunk: u32) -> Option<Option<Duration>> {
        let request = self
            .live
            .get_mut(&id)
            .filter(|request| request.node == node)?;
        let at = request.chunks.binary_search(&chunk).ok()?;
        request.chunks.remove(at);
        let over = request.chunks.is_empty().then_some(request.issued);
        if over.is_some() {
            self.live.remove(&id);
        }
        Some(over)
    }

    /// Strikes a chunk off all requests; returns whose they were and whether they are over.
    pub(super) fn unask(&mut self, chunk: u32) -> Vec<(NodeId, RequestId, bool)> {
        let asking = self.live.iter().filter(|(_, request)| {
            let chunks = &request.chunks;
            chunks.binary_search(&chunk).is_ok()
        });
        let asking: Vec<_> = asking.map(|(id, request)| (*id, request.node)).collect();
        let strike = |(id, node)| {
            let over = self.refuse(id, node, chunk).flatten().is_some();
            (node, id, over)
        };
        asking.into_iter().map(strike).collect()
    }

    /// Removes a request; returns what it was waiting for.
    pub(super) fn take(&mut self, id: RequestId, node: NodeId) -> Option<Vec<u32>> {
        self.live.get(&id).filter(|request| request.node == node)?;
        self.live.remove(&id).map(|request| request.chunks)
    }

    /// Removes all requests to a node.
    pub(super) fn of(&mut self, node: NodeId) -> Vec<(RequestId, Vec<u32>)> {
        let of = self.live.iter().filter(|(_, request)| request.node == node);
        let ids: Vec<_> = of.map(|(id, _)| *id).collect();
        let take = |id| Some((id, self.live.remove(&id)?.chunks));
        ids.into_iter().filter_map(take).collect()
    }

    /// The time within which nine of ten requests to a tier are answered.
    pub(super) fn usual(&self, tier: Tier) -> Duration {
        self.times[tier as usize].percentile_90
    }
}

/// How long the last requests took.
#[derive(Debug, Default)]
struct Times {
    last: VecDeque<Duration>,
    percentile_90: Duration,
}

impl Times {
    fn push(&mut self, time: Duration) {
        if self.last.len() == TIMES_KEPT {
            self.last.pop_front();
        }
        self.last.push_back(time);
        let mut sorted: Vec<_> = self.last.iter().copied().collect();
        sorted.sort_unstable();
        self.percentile_90 = sorted[(sorted.len() * 9 / 10).min(sorted.len() - 1)];
    }
}

const TIMES_KEPT: usize = 32;
