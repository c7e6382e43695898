//! Gossip as gossipsub does it, as far as the protocol above can tell.
//!
//! Each host has a few neighbours in a random mesh and passes on to them what its replica accepts,
//! and nothing else. Once a second it tells some others which messages it had lately, and they ask
//! for what they missed. Messages are lost, doubled and overtaken on the way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use attic_p2p::replica::{Event, Verdict};
use bytes::Bytes;

use crate::sim::host::Index;
use crate::sim::mutant::Mutant;
use crate::sim::world::{Happening, Message, World};

/// Names a message: the beginning of its BLAKE3.
pub(crate) type MessageId = [u8; 16];

/// A host's place in the mesh.
#[derive(Debug, Default)]
pub(crate) struct Gossip {
    pub(crate) mesh: BTreeSet<Index>,
    /// Messages that came, and when.
    seen: BTreeSet<MessageId>,
    seen_at: VecDeque<(Duration, MessageId)>,
    /// Messages to hand out to who missed them.
    recent: VecDeque<(Duration, MessageId, Bytes)>,
    round_planned: bool,
    /// Who sent how many messages that were rejected.
    rejected: BTreeMap<Index, u32>,
}

impl Gossip {
    /// Notes a message; false if it came before.
    fn is_new(&mut self, now: Duration, id: MessageId, forgets: bool) -> bool {
        while let Some((at, old)) = self.seen_at.front().copied()
            && forgets
            && at + SEEN_FOR < now
        {
            self.seen.remove(&old);
            self.seen_at.pop_front();
        }
        let is_new = self.seen.insert(id);
        if is_new {
            self.seen_at.push_back((now, id));
        }
        is_new
    }

    fn keep(&mut self, now: Duration, id: MessageId, bytes: Bytes) {
        while self
            .recent
            .front()
            .is_some_and(|kept| kept.0 + HISTORY < now)
        {
            self.recent.pop_front();
        }
        self.recent.push_back((now, id, bytes));
    }

    /// No round is planned any more.
    pub(crate) fn rest(&mut self) {
        self.round_planned = false;
    }

    /// Between the oldest and the newest message that is remembered.
    pub(crate) fn memory(&self) -> Duration {
        match (self.seen_at.front(), self.seen_at.back()) {
            (Some((oldest, _)), Some((newest, _))) => *newest - *oldest,
            (_, _) => Duration::ZERO,
        }
    }
}

impl World {
    /// The host says something new.
    pub(crate) fn publish(&mut self, at: Index, bytes: Bytes) {
        let id = message_id(&bytes);
        let (now, forgets) = (self.now(), !self.is(Mutant::RemembersAllGossip));
        self.hosts[at].gossip.is_new(now, id, forgets);
        self.pass_on(at, None, id, bytes);
    }

    /// A message came. It is passed on if the replica says so.
    pub(crate) fn gossip_arrived(&mut self, from: Index, at: Index, id: MessageId, bytes: Bytes) {
        let (now, forgets) = (self.now(), !self.is(Mutant::RemembersAllGossip));
        let gossip = &mut self.hosts[at].gossip;
        let is_silenced = (gossip.rejected.get(&from)).is_some_and(|count| *count >= REJECTED_MAX);
        if is_silenced || !gossip.is_new(now, id, forgets) {
            self.tally.duplicates += u64::from(!is_silenced);
            return;
        }
        self.tally.gossiped += 1;
        let node = self.hosts[from].node;
        let event = Event::Gossip {
            from: node,
            bytes: bytes.clone(),
        };
        match self.tell_replica(at, event) {
            Some(Verdict::Accept) => self.pass_on(at, Some(from), id, bytes),
            Some(Verdict::Reject) => {
                *self.hosts[at].gossip.rejected.entry(from).or_default() += 1;
            }
            Some(Verdict::Ignore) | None => {}
        }
    }

    fn pass_on(&mut self, at: Index, from: Option<Index>, id: MessageId, bytes: Bytes) {
        let now = self.now();
        let gossip = &mut self.hosts[at].gossip;
        gossip.keep(now, id, bytes.clone());
        let to: Vec<Index> = gossip.mesh.iter().copied().collect();
        if !std::mem::replace(&mut gossip.round_planned, true) {
            let life = self.hosts[at].life;
            self.agenda
                .after(ROUND, Happening::GossipRound { at, life });
        }
        for to in to.into_iter().filter(|to| Some(*to) != from) {
            let bytes = bytes.clone();
            self.send_gossip(at, to, Message::Gossip { id, bytes });
        }
    }

    /// Tells some who are no neighbours what they may have missed.
    pub(crate) fn gossip_round(&mut self, at: Index) {
        let now = self.now();
        let gossip = &mut self.hosts[at].gossip;
        gossip.round_planned = false;
        let lately = gossip
            .recent
            .iter()
            .filter(|(at, ..)| *at + ADVERTISED_FOR > now);
        let ids: Vec<MessageId> = lately.map(|(_, id, _)| *id).collect();
        if ids.is_empty() {
            return;
        }
        gossip.round_planned = true;
        let host = &self.hosts[at];
        let others = host.links.keys().copied();
        let others = others.filter(|other| !host.gossip.mesh.contains(other));
        let mut others: Vec<Index> = others.collect();
        let life = host.life;
        for _ in 0..LAZY.min(others.len()) {
            let chosen = self.random.below(others.len() as u64) as usize;
            let to = others.swap_remove(chosen);
            self.send_gossip(at, to, Message::IHave(ids.clone()));
        }
        self.agenda
            .after(ROUND, Happening::GossipRound { at, life });
    }

    pub(crate) fn offered(&mut self, from: Index, at: Index, ids: Vec<MessageId>) {
        let seen = &self.hosts[at].gossip.seen;
        let missed: Vec<MessageId> = ids.into_iter().filter(|id| !seen.contains(id)).collect();
        if !missed.is_empty() {
            self.send_gossip(at, from, Message::IWant(missed));
        }
    }

    pub(crate) fn wanted(&mut self, from: Index, at: Index, ids: &[MessageId]) {
        let recent = &self.hosts[at].gossip.recent;
        let wanted = recent.iter().filter(|(_, id, _)| ids.contains(id));
        let wanted: Vec<_> = wanted.map(|(_, id, bytes)| (*id, bytes.clone())).collect();
        for (id, bytes) in wanted {
            self.send_gossip(at, from, Message::Gossip { id, bytes });
        }
    }

    /// Puts gossip on its way, if it is not lost.
    pub(crate) fn send_gossip(&mut self, from: Index, to: Index, message: Message) {
        let Some(session) = self.hosts[from].links.get(&to).copied() else {
            return;
        };
        let len = match &message {
            Message::Gossip { bytes, .. } => bytes.len() + ENVELOPE,
            Message::IHave(ids) | Message::IWant(ids) => ids.len() * size_of::<MessageId>() + 40,
            _ => unreachable!("only these are gossip"),
        };
        self.hosts[from].traffic.gossip += len as u64;
        if !self.links.reaches(from, to) {
            return;
        }
        for after in self.links.gossip(&mut self.random) {
            let message = message.clone();
            self.arrive(self.now() + after, (from, to), session, message);
        }
    }

    /// Two hosts have a connection now: neighbours, if one of them lacks some.
    pub(crate) fn mesh_gained(&mut self, one: Index, other: Index) {
        let lacks = |at: Index| self.hosts[at].gossip.mesh.len() < MESH_LOW;
        if lacks(one) || lacks(other) {
            self.graft(one, other);
        }
    }

    /// A connection is gone; the host looks for other neighbours if it has few left.
    pub(crate) fn mesh_lost(&mut self, at: Index, other: Index) {
        self.hosts[at].gossip.mesh.remove(&other);
        self.hosts[other].gossip.mesh.remove(&at);
        if self.hosts[at].gossip.mesh.len() >= MESH_LOW {
            return;
        }
        let host = &self.hosts[at];
        let candidates = host.links.keys().copied();
        let candidates = candidates.filter(|other| !host.gossip.mesh.contains(other));
        let mut candidates: Vec<Index> = candidates.collect();
        while self.hosts[at].gossip.mesh.len() < MESH && !candidates.is_empty() {
            let chosen = self.random.below(candidates.len() as u64) as usize;
            let other = candidates.swap_remove(chosen);
            self.graft(at, other);
        }
    }

    fn graft(&mut self, one: Index, other: Index) {
        let linked = |at: Index, to: Index| self.hosts[at].links.contains_key(&to);
        let full = |at: Index| self.hosts[at].gossip.mesh.len() >= MESH_HIGH;
        if linked(one, other) && linked(other, one) && !full(one) && !full(other) {
            self.hosts[one].gossip.mesh.insert(other);
            self.hosts[other].gossip.mesh.insert(one);
        }
    }
}

pub(crate) fn message_id(bytes: &[u8]) -> MessageId {
    let hash = blake3::hash(bytes);
    *hash.as_bytes().first_chunk().expect("16 of 32 bytes")
}

/// As a node configures gossipsub.
const MESH: usize = 4;
const MESH_LOW: usize = 3;
const MESH_HIGH: usize = 8;
const LAZY: usize = 3;
const ROUND: Duration = Duration::from_secs(1);
const ADVERTISED_FOR: Duration = Duration::from_secs(5);
const HISTORY: Duration = Duration::from_secs(10);
pub(crate) const SEEN_FOR: Duration = Duration::from_secs(120);
/// Rejected messages that silence a peer.
const REJECTED_MAX: u32 = 4;
/// What gossipsub puts around a message: author, number, topic, signature.
pub(crate) const ENVELOPE: usize = 200;
