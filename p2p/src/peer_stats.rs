//! What was learnt about each peer: how fast, how far, how reliable.
//!
//! One table serves all downloads of a node. Times are durations since any fixed moment.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::NodeId;

/// The most peers remembered. Beyond it the one not used for longest is forgotten, unbanned first.
pub const PEERS_MAX: usize = 1024;
/// What may be under way at a peer whatever is known about it.
pub const IN_FLIGHT_MIN: u64 = 1 << 20;
/// What may be under way at any peer.
pub const IN_FLIGHT_MAX: u64 = 32 << 20;
/// How long a peer that made no progress is avoided.
pub const DEMOTED_FOR: Duration = Duration::from_secs(30);
/// How long a peer's first proven lie keeps it out.
pub const BANNED_FOR: Duration = Duration::from_secs(600);
/// How long any number of lies keeps it out: each doubles the time.
pub const BANNED_FOR_MAX: Duration = Duration::from_secs(6 * 3600);
/// A lie is forgiven after this long without another.
pub const STRIKE_DECAY: Duration = Duration::from_secs(3600);

/// Everything learnt, per peer, within [`PEERS_MAX`].
#[derive(Debug, Default)]
pub struct PeerTable {
    peers: BTreeMap<NodeId, Peer>,
    /// Who was used when, as numbers that only grow.
    uses: BTreeMap<u64, NodeId>,
    next_use: u64,
}

/// What is known of one peer; for people and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerSummary {
    /// The peer.
    pub node: NodeId,
    /// Bytes per second while it was asked for something; 0 when unknown.
    pub goodput: u64,
    /// The shortest time to a first answer.
    pub rtt: Option<Duration>,
    /// Bytes asked for and not arrived.
    pub outstanding: u64,
    /// Avoided until then.
    pub demoted_until: Option<Duration>,
    /// Kept out until then.
    pub banned_until: Option<Duration>,
}

/// How a peer stands at a moment, for whoever chooses whom to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Bytes asked of it and not arrived, over all downloads.
    pub outstanding: u64,
    /// How much may be under way: twice what fills the way to it and back.
    pub in_flight_max: u64,
    /// How good it is to ask it next; higher is better.
    pub score: u64,
    /// Bytes per second while asked; 0 when unknown.
    pub goodput: u64,
    /// Whether it is avoided.
    pub demoted: bool,
    /// Whether it is kept out.
    pub banned: bool,
}

#[derive(Debug, Default)]
struct Peer {
    last_use: u64,
    goodput: u64,
    rtt: Option<Duration>,
    outstanding: u64,
    window: Window,
    demoted_until: Option<Duration>,
    banned_until: Option<Duration>,
    strikes: u32,
    last_strike: Duration,
}

/// Arrivals since a moment, until they make a sample of goodput.
#[derive(Debug, Default)]
struct Window {
    start: Duration,
    bytes: u64,
}

impl PeerTable {
    /// A table of nobody.
    pub fn new() -> PeerTable {
        PeerTable::default()
    }

    /// `bytes` were asked for.
    pub fn requested(&mut self, now: Duration, node: NodeId, bytes: u64) {
        let peer = self.touch(node);
        if peer.outstanding == 0 {
            peer.window = Window {
                start: now,
                bytes: 0,
            };
        }
        peer.outstanding += bytes;
    }

    /// `bytes` that were asked for arrived.
    pub fn arrived(&mut self, now: Duration, node: NodeId, bytes: u64) {
        let peer = self.touch(node);
        peer.outstanding = peer.outstanding.saturating_sub(bytes);
        peer.window.bytes += bytes;
        peer.sample(now);
    }

    /// `bytes` that were asked for will not arrive, or no longer matter.
    pub fn abandoned(&mut self, node: NodeId, bytes: u64) {
        let peer = self.touch(node);
        peer.outstanding = peer.outstanding.saturating_sub(bytes);
    }

    /// The first answer after a quiet time took this long, or a ping did.
    pub fn observe_rtt(&mut self, node: NodeId, rtt: Duration) {
        let peer = self.touch(node);
        peer.rtt = Some(peer.rtt.map_or(rtt, |known| known.min(rtt)));
    }

    /// Avoids the peer for [`DEMOTED_FOR`]; it is asked only for what nobody else has.
    pub fn demote(&mut self, now: Duration, node: NodeId) {
        let peer = self.touch(node);
        peer.demoted_until = Some(now + DEMOTED_FOR);
        peer.goodput /= 2;
    }

    /// Keeps the peer out; returns for how long. Repeated lies keep it out longer.
    pub fn ban(&mut self, now: Duration, node: NodeId) -> Duration {
        let peer = self.touch(node);
        peer.strikes = peer.unforgiven(now).saturating_add(1);
        peer.last_strike = now;
        let doubled = 1 << (peer.strikes - 1).min(10);
        let time = (BANNED_FOR * doubled).min(BANNED_FOR_MAX);
        peer.banned_until = Some(now + time);
        time
    }

    /// Lies of the peer that are not forgiven yet.
    pub fn strikes(&self, now: Duration, node: &NodeId) -> u32 {
        self.peers.get(node).map_or(0, |peer| peer.unforgiven(now))
    }

    /// Until when the peer is kept out, if it is.
    pub fn banned_until(&self, now: Duration, node: &NodeId) -> Option<Duration> {
        let peer = self.peers.get(node)?;
        peer.banned_until.filter(|until| *until > now)
    }

    /// How the peer stands. Unknown peers are taken for decent ones, so that they are tried.
    pub fn standing(&self, now: Duration, node: &NodeId) -> Standing {
        let unknown = Peer::default();
        let peer = self.peers.get(node).unwrap_or(&unknown);
        let filled = peer.bandwidth_delay();
        Standing {
            outstanding: peer.outstanding,
            in_flight_max: (2 * filled).clamp(IN_FLIGHT_MIN, IN_FLIGHT_MAX),
            score: peer.score(),
            goodput: peer.goodput,
            demoted: peer.demoted_until.is_some_and(|until| until > now),
            banned: peer.banned_until.is_some_and(|until| until > now),
        }
    }

    /// All peers, by id.
    pub fn summaries(&self, now: Duration) -> impl Iterator<Item = PeerSummary> + '_ {
        self.peers.iter().map(move |(node, peer)| PeerSummary {
            node: *node,
            goodput: peer.goodput,
            rtt: peer.rtt,
            outstanding: peer.outstanding,
            demoted_until: peer.demoted_until.filter(|until| *until > now),
            banned_until: peer.banned_until.filter(|until| *until > now),
        })
    }

    fn touch(&mut self, node: NodeId) -> &mut Peer {
        if self.peers.len() >= PEERS_MAX && !self.peers.contains_key(&node) {
            self.forget_one();
        }
        self.next_use += 1;
        let peer = self.peers.entry(node).or_default();
        self.uses.remove(&peer.last_use);
        peer.last_use = self.next_use;
        self.uses.insert(self.next_use, node);
        peer
    }

    /// Forgets the unbanned peer not used for longest, or the banned one if there are no others.
    fn forget_one(&mut self) {
        let unbanned = |node: &&NodeId| {
            let peer = self.peers.get(*node);
            peer.is_some_and(|peer| peer.banned_until.is_none())
        };
        let forgotten = self.uses.values().find(unbanned);
        if let Some(node) = forgotten.or_else(|| self.uses.values().next()).copied()
            && let Some(peer) = self.peers.remove(&node)
        {
            self.uses.remove(&peer.last_use);
        }
    }
}

impl Peer {
    fn unforgiven(&self, now: Duration) -> u32 {
        let forgiven = now.saturating_sub(self.last_strike).as_secs() / STRIKE_DECAY.as_secs();
        let forgiven = u32::try_from(forgiven).unwrap_or(u32::MAX);
        self.strikes.saturating_sub(forgiven)
    }

    /// Goodput over what it owes already, in integers: owing less than a block hardly matters.
    fn score(&self) -> u64 {
        let goodput = match self.goodput {
            0 => GOODPUT_UNKNOWN,
            known => known,
        };
        goodput.saturating_mul(SCORE_SCALE) / (SCORE_SCALE + self.outstanding)
    }

    fn bandwidth_delay(&self) -> u64 {
        let micros = self.rtt.map_or(0, |rtt| rtt.as_micros());
        let bytes = u128::from(self.goodput) * micros / 1_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX).min(IN_FLIGHT_MAX)
    }

    /// Turns arrivals into a sample once they span enough time not to be one burst, or once nothing
    /// more is to come.
    fn sample(&mut self, now: Duration) {
        let span = now.saturating_sub(self.window.start);
        let enough = span >= SAMPLE_SPAN.max(2 * self.rtt.unwrap_or_default());
        if span.is_zero() || !(enough || self.outstanding == 0) {
            return;
        }
        let rate = u128::from(self.window.bytes) * 1_000_000_000 / span.as_nanos();
        let rate = u64::try_from(rate).unwrap_or(u64::MAX).max(1);
        // Quick to believe in more, so that long fat ways fill within seconds; slow to give up.
        self.goodput = match self.goodput {
            0 => rate,
            known if rate > known => known + (rate - known).div_ceil(2),
            known => known - (known - rate) / 8,
        };
        self.window = Window {
            start: now,
            bytes: 0,
        };
    }
}

/// Arrivals are averaged over at least this long.
const SAMPLE_SPAN: Duration = Duration::from_millis(20);
/// Bytes per second: a slow office link, so that a peer known to be good is preferred.
const GOODPUT_UNKNOWN: u64 = 12_500_000;
const SCORE_SCALE: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u64) -> NodeId {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        NodeId::from_bytes(bytes)
    }

    fn score(table: &PeerTable, number: u64) -> u64 {
        table.standing(at(50), &node(number)).score
    }

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_long_fat_way_is_filled_within_two_seconds() {
        // 1 Gbit/s, 50 ms there and back: 6.25 MB fill it.
        let (rate, rtt, peer) = (125_000_000u64, at(50), node(1));
        let mut table = PeerTable::new();
        table.observe_rtt(peer, rtt);
        let mut now = at(0);
        while now < at(2_000) {
            let asked = table.standing(now, &peer).in_flight_max;
            table.requested(now, peer, asked);
            now += rtt.max(Duration::from_micros(asked * 1_000_000 / rate));
            table.arrived(now, peer, asked);
        }
        assert!(
            table.standing(now, &peer).in_flight_max >= 10 << 20,
            "{:?}",
            table.standing(now, &peer).in_flight_max
        );
    }

    #[test]
    fn bans_grow_and_decay() {
        let mut table = PeerTable::new();
        let (liar, mut now) = (node(1), at(1));
        assert_eq!(table.ban(now, liar), BANNED_FOR);
        assert!(table.banned_until(now, &liar).is_some());
        now += BANNED_FOR;
        assert!(table.banned_until(now, &liar).is_none());
        assert_eq!(table.ban(now, liar), BANNED_FOR * 2);
        assert_eq!(table.strikes(now, &liar), 2);
        now += STRIKE_DECAY;
        assert_eq!(table.strikes(now, &liar), 1);
        now += STRIKE_DECAY;
        assert_eq!(table.strikes(now, &liar), 0);
        assert_eq!(table.ban(now, liar), BANNED_FOR);
        for _ in 0..100 {
            table.ban(now, liar);
        }
        assert_eq!(table.ban(now, liar), BANNED_FOR_MAX);
    }

    #[test]
    fn the_table_is_bounded_and_keeps_bans() {
        let mut table = PeerTable::new();
        table.ban(at(0), node(0));
        for number in 1..3 * PEERS_MAX as u64 {
            table.requested(at(0), node(number), 1);
        }
        assert_eq!(table.summaries(at(0)).count(), PEERS_MAX);
        assert_eq!(table.uses.len(), PEERS_MAX);
        assert!(table.banned_until(at(1), &node(0)).is_some());
    }

    #[test]
    fn whoever_owes_less_or_sends_faster_is_better() {
        let mut table = PeerTable::new();
        table.requested(at(0), node(1), 8 << 20);
        assert!(score(&table, 2) > score(&table, 1));
        table.arrived(at(50), node(1), 8 << 20);
        assert!(score(&table, 1) > score(&table, 2));
        table.abandoned(node(1), 1);
        assert_eq!(table.standing(at(50), &node(1)).outstanding, 0);
    }
}
