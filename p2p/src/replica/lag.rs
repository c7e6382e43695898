//! How far apart this node and its peers are, as far as it knows.

use std::collections::BTreeMap;

use super::Replica;
use crate::directory::Directory;
use crate::ids::NodeId;
use crate::log::Log;
use crate::reconcile::{TipHint, tips_in};

/// How far apart this node and a peer are, in segments of anybody's log.
///
/// A log that was compacted counts as if it were whole, so the numbers are no measure of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// What the peer has and this node lacks, by what the peer said last.
    pub behind: u64,
    /// What this node had and the peer lacked when they last compared, less what the peer has
    /// fetched here since.
    pub lacks: u64,
}

/// What is known of each connected peer.
#[derive(Debug, Default)]
pub(super) struct Lags {
    peers: BTreeMap<NodeId, Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Ends of logs that were beyond this node's; at most [`ENDS_MAX`].
    ends: BTreeMap<NodeId, u64>,
    lacks: u64,
}

impl Lags {
    pub(super) fn peer_down(&mut self, peer: NodeId) {
        self.peers.remove(&peer);
    }

    /// A comparison with a peer begins to find differences, or found none.
    pub(super) fn compared(&mut self, peer: NodeId) {
        self.peers.insert(peer, Known::default());
    }

    /// A peer has this segment, or one after it.
    pub(super) fn has(&mut self, peer: NodeId, author: NodeId, seq: u64) {
        let Some(known) = self.peers.get_mut(&peer) else {
            return;
        };
        if known.ends.len() < ENDS_MAX || known.ends.contains_key(&author) {
            let end = known.ends.entry(author).or_default();
            *end = seq.max(*end);
        }
    }

    /// A peer lacks so many segments more.
    fn lacks(&mut self, peer: NodeId, segments: u64) {
        if let Some(known) = self.peers.get_mut(&peer) {
            known.lacks = known.lacks.saturating_add(segments);
        }
    }

    /// A peer fetched so many segments.
    pub(super) fn fetched(&mut self, peer: NodeId, segments: u64) {
        if let Some(known) = self.peers.get_mut(&peer) {
            known.lacks = known.lacks.saturating_sub(segments);
        }
    }

    fn of(&self, peer: NodeId, directory: &Directory) -> Option<Lag> {
        let known = self.peers.get(&peer)?;
        let ends = known.ends.iter();
        let behind = ends.map(|(author, seq)| seq.saturating_sub(directory.seq(*author)));
        Some(Lag {
            behind: behind.fold(0, u64::saturating_add),
            lacks: known.lacks,
        })
    }
}

impl<L: Log> Replica<L> {
    /// How far apart this node and a connected peer are; `None` as long as they have not compared.
    pub fn lag(&self, peer: NodeId) -> Option<Lag> {
        self.lags.of(peer, &self.directory)
    }

    /// Whether this node has all that one of the peers connected now had when they compared.
    pub fn has_all_of_a_peer(&self) -> bool {
        let mut peers = self.lags.peers.keys();
        peers.any(|peer| {
            let behind = self.lags.of(*peer, &self.directory).map(|lag| lag.behind);
            behind == Some(0) && !self.sync.is_asking(peer)
        })
    }

    /// Notes the ends of a peer's logs, all of those in these buckets.
    pub(super) fn note_tips(&mut self, peer: NodeId, theirs: &[TipHint], buckets: u64) {
        let theirs: BTreeMap<NodeId, u64> = theirs.iter().map(|tip| (tip.node, tip.seq)).collect();
        let (mine, _) = tips_in(&self.directory.tips(), buckets);
        let lacks = mine.iter().map(|tip| {
            let end = theirs.get(&tip.node).copied().unwrap_or(0);
            tip.seq.saturating_sub(end)
        });
        self.lags.lacks(peer, lacks.fold(0, u64::saturating_add));
        for (author, seq) in theirs {
            if seq > self.directory.seq(author) {
                self.lags.has(peer, author, seq);
            }
        }
    }
}

/// Logs of one peer whose ends are remembered: 40 KiB.
const ENDS_MAX: usize = 1024;
