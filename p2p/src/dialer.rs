//! Whom to dial, where and when: a value without clock, sockets or randomness.
//!
//! A node learns addresses from its configuration, from tickets, from the peers themselves, from what
//! they say of others and from mDNS. The dialer keeps them, and asks for a connection to everybody it knows and has none to:
//! at once, then at growing intervals, again at once when the network changes or somebody who was lost
//! is back. Who was connected lately is tried every few seconds. Time is an argument and jitter follows
//! from a seed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

use crate::ids::NodeId;

/// Whom it knows at most. Beyond, whoever was hardest to reach is forgotten, if not configured.
pub const TARGETS_MAX: usize = 512;

/// Addresses kept for one node. Beyond, the one that has been there longest goes.
pub const ADDRESSES_MAX: usize = 8;

/// Longest address, in bytes of its binary form.
pub const ADDRESS_LEN_MAX: usize = 128;

/// Attempts in progress at a time.
const DIALS_MAX: usize = 16;

/// The pause after a first failure; doubled by every further one.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// The longest pause for somebody who does not answer, by how long ago the last connection went: what
/// parts a network mostly heals, and nothing but an attempt tells. For others it is the last one.
const PAUSES_MAX: [(Duration, Duration); 2] = [
    (Duration::from_secs(3600), PAUSE_LOST_MAX),
    (Duration::from_secs(24 * 3600), Duration::from_secs(60)),
];
/// The longest pause for somebody we were connected to within the last hour. With many who do not answer
/// it is longer, so that attempts at others find room.
pub const PAUSE_LOST_MAX: Duration = Duration::from_secs(6);
/// The longest pause for each of those that were lost: attempts at them must leave room for others.
const LOST_PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(5 * 60);
/// The pause after a refusal: only people can change its cause.
const PAUSE_REFUSED: Duration = Duration::from_secs(60);
/// Failures after which somebody who is there again is a sign that others are, too.
const FAILURES_LOST: u32 = 3;
/// How late the first attempts after a change are at most, so that not all nodes dial at once.
const SPREAD: Duration = Duration::from_millis(250);
/// How much later the one of two nodes dials that should leave it to the other.
const COURTESY: Duration = Duration::from_millis(500);

/// Nodes known by hearsay that are dialed as they come, and the pause between those beyond.
const STRANGERS_AT_ONCE: u32 = 32;
const STRANGER_PAUSE: Duration = Duration::from_millis(100);

/// How an address became known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Somebody wrote it down: configuration or ticket. Never forgotten.
    Configured,
    /// It worked before, or the peer said so itself.
    Remembered,
    /// mDNS: both sides find each other at the same moment, and strangers are among them.
    Discovered,
    /// A peer says so of somebody else. Pushes out nothing.
    Told,
}

impl Origin {
    /// Whether somebody else may have made it up.
    fn is_hearsay(self) -> bool {
        matches!(self, Origin::Discovered | Origin::Told)
    }
}

/// Somebody to be connected to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A node by its name.
    Node(NodeId),
    /// Whoever answers at this address.
    Address(Multiaddr),
}

/// An attempt to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dial {
    /// Whom it is for.
    pub target: Target,
    /// Where, without a trailing `/p2p`. Never empty.
    pub addresses: Vec<Multiaddr>,
}

/// Keeps addresses and decides about attempts.
#[derive(Debug)]
pub struct Dialer {
    me: NodeId,
    seed: u64,
    targets: BTreeMap<Target, Entry>,
    /// Up to when attempts at nodes known by hearsay are given away.
    strangers_until: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    /// Oldest first.
    addresses: Vec<Multiaddr>,
    configured: bool,
    state: State,
    /// Attempts in a row that failed.
    failures: u32,
    /// Whether the last one was refused.
    refused: bool,
    /// When the last connection went.
    lost: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not connected; to be dialed then.
    Waiting(Instant),
    Dialing,
    /// Connected to this node: for an address, whoever answered.
    Connected(NodeId),
}

impl Dialer {
    /// One that knows nobody. `seed` differs between nodes and decides their jitter.
    pub fn new(me: NodeId, seed: u64) -> Dialer {
        Dialer {
            me,
            seed,
            targets: BTreeMap::new(),
            strangers_until: None,
        }
    }

    /// Takes note of an address; with a trailing `/p2p` it is that node's.
    ///
    /// Ignored: our own, too long ones, and any that leads to nobody in particular (no TCP port,
    /// the unspecified address).
    pub fn learn(&mut self, now: Instant, address: &Multiaddr, origin: Origin) {
        let Some((node, address)) = split(address) else {
            return;
        };
        if node == Some(self.me) || !is_dialable(&address) {
            return;
        }
        // A relay must be told whom to connect to.
        if node.is_none() && is_circuit(&address) {
            return;
        }
        let target = match node {
            Some(node) => Target::Node(node),
            None => Target::Address(address.clone()),
        };
        if let Some(entry) = self.targets.get_mut(&target) {
            if entry.addresses.contains(&address) {
                entry.configured |= origin == Origin::Configured;
                if origin == Origin::Discovered {
                    self.try_again(now, &target);
                }
                return;
            }
            if origin == Origin::Told && entry.addresses.len() == ADDRESSES_MAX {
                return;
            }
        }
        if !self.targets.contains_key(&target) && !self.make_room(origin) {
            return;
        }
        let mut first = now + self.delay_first(&target, origin);
        if origin.is_hearsay() {
            first = first.max(self.turn_of_stranger(now));
        }
        let entry = self.targets.entry(target).or_insert_with(|| Entry {
            addresses: Vec::new(),
            configured: false,
            state: State::Waiting(first),
            failures: 0,
            refused: false,
            lost: None,
        });
        entry.configured |= origin == Origin::Configured;
        if entry.addresses.len() == ADDRESSES_MAX {
            entry.addresses.remove(0);
        }
        entry.addresses.push(address);
        // A new address is a reason to try again, unless we were refused, which it does not change.
        entry.bring_forward(first);
    }

    /// A connection to `node` exists. `target` is what was dialed, if we were the ones.
    ///
    /// If it did not answer for a while, whoever does not answer either is tried again at once: what parted
    /// them may have healed.
    pub fn connected(&mut self, now: Instant, node: NodeId, target: Option<&Target>) {
        let mut was_lost = false;
        for target in [Some(&Target::Node(node)), target].into_iter().flatten() {
            if let Some(entry) = self.targets.get_mut(target) {
                was_lost |= entry.failures >= FAILURES_LOST && !entry.refused;
                entry.state = State::Connected(node);
                (entry.failures, entry.refused) = (0, false);
            }
        }
        if was_lost {
            let seed = self.seed;
            for (target, entry) in &mut self.targets {
                entry.bring_forward(now + jitter(seed, target, 0, SPREAD));
            }
        }
    }

    /// Somebody whose address is known says that it is there.
    fn try_again(&mut self, now: Instant, target: &Target) {
        let first = now + self.delay_first(target, Origin::Discovered);
        let first = first.max(self.turn_of_stranger(now));
        if let Some(entry) = self.targets.get_mut(target) {
            entry.bring_forward(first);
        }
    }

    /// The last connection to `node` is gone.
    pub fn disconnected(&mut self, now: Instant, node: NodeId) {
        let delay = PAUSE_FIRST.mul_f64(0.5) + self.jitter(&Target::Node(node), 0, SPREAD);
        for entry in self.targets.values_mut() {
            if entry.state == State::Connected(node) {
                entry.state = State::Waiting(now + delay);
                entry.lost = Some(now);
            }
        }
    }

    /// The attempt for `target` did not reach anybody.
    pub fn failed(&mut self, now: Instant, target: &Target) {
        self.postpone(now, target, false);
    }

    /// Whoever answered for `target` does not want us, or is nobody we want.
    pub fn refused(&mut self, now: Instant, target: &Target) {
        self.postpone(now, target, true);
    }

    /// The machine woke up, or has new addresses: everybody may be reachable now.
    pub fn network_changed(&mut self, now: Instant) {
        let seed = self.seed;
        for (target, entry) in &mut self.targets {
            if let State::Waiting(at) = &mut entry.state {
                *at = (now + jitter(seed, target, 0, SPREAD)).min(*at);
                (entry.failures, entry.refused) = (0, false);
            }
        }
    }

    /// The attempts to make now, at most `room` of them; they count as begun.
    pub fn due(&mut self, now: Instant, room: usize) -> Vec<Dial> {
        let busy = (self.targets.values())
            .filter(|entry| entry.state == State::Dialing)
            .count();
        let room = room.min(DIALS_MAX.saturating_sub(busy));
        let mut due: Vec<_> = (self.targets.iter_mut())
            .filter_map(|(target, entry)| match entry.state {
                State::Waiting(at) if at <= now => Some((at, target, entry)),
                _ => None,
            })
            .collect();
        due.sort_by_key(|(at, ..)| *at);
        (due.into_iter().take(room))
            .map(|(_, target, entry)| {
                entry.state = State::Dialing;
                Dial {
                    target: target.clone(),
                    addresses: entry.addresses.clone(),
                }
            })
            .collect()
    }

    /// When [`Dialer::due`] has something to say, if nothing else happens.
    pub fn next_wake(&self) -> Option<Instant> {
        let waiting = self.targets.values().filter_map(|entry| match entry.state {
            State::Waiting(at) => Some(at),
            State::Dialing | State::Connected(_) => None,
        });
        waiting.min()
    }

    /// The addresses known for `node`.
    pub fn addresses(&self, node: NodeId) -> &[Multiaddr] {
        let entry = self.targets.get(&Target::Node(node));
        entry.map_or(&[], |entry| &entry.addresses)
    }

    /// Everything it knows, as it would have to be told to [`Dialer::learn`].
    pub fn known(&self) -> impl Iterator<Item = (Multiaddr, Origin)> {
        self.targets.iter().flat_map(|(target, entry)| {
            let origin = match entry.configured {
                true => Origin::Configured,
                false => Origin::Remembered,
            };
            (entry.addresses.iter()).map(move |address| (whole(target, address), origin))
        })
    }

    fn postpone(&mut self, now: Instant, target: &Target, refused: bool) {
        let seed = self.seed;
        let is_lost =
            |entry: &&Entry| entry.lost.is_some() && !matches!(entry.state, State::Connected(_));
        let lost_count = self.targets.values().filter(is_lost).count() as u32;
        let Some(entry) = self.targets.get_mut(target) else {
            return;
        };
        if entry.state != State::Dialing {
            return;
        }
        if refused != entry.refused {
            (entry.failures, entry.refused) = (0, refused);
        }
        entry.failures = entry.failures.saturating_add(1);
        let crowd = LOST_PAUSE * lost_count;
        let ago = entry.lost.map(|lost| now.saturating_duration_since(lost));
        let of_lost = |ago| PAUSES_MAX.iter().find(|(lately, _)| ago < *lately);
        let (first, max) = match refused {
            true => (PAUSE_REFUSED, PAUSE_MAX),
            false => {
                let max = ago.and_then(of_lost).map(|(_, max)| crowd.max(*max));
                (PAUSE_FIRST, max.unwrap_or(PAUSE_MAX).min(PAUSE_MAX))
            }
        };
        let doublings = (entry.failures - 1).min(DOUBLINGS_MAX);
        let pause = first.saturating_mul(1 << doublings).min(max);
        // Between half of the pause and one and a half.
        let pause = pause / 2 + jitter(seed, target, entry.failures, pause);
        entry.state = State::Waiting(now + pause);
    }

    /// Makes room for one more target; `false` if there is none for this origin.
    fn make_room(&mut self, origin: Origin) -> bool {
        if self.targets.len() < TARGETS_MAX {
            return true;
        }
        let worst = (self.targets.iter())
            .filter(|(_, entry)| !entry.configured && matches!(entry.state, State::Waiting(_)))
            // Hearsay does not push out who has not failed yet.
            .filter(|(_, entry)| !origin.is_hearsay() || entry.failures > 0)
            .max_by_key(|(_, entry)| (entry.refused, entry.failures))
            .map(|(target, _)| target.clone());
        worst.is_some_and(|target| self.targets.remove(&target).is_some())
    }

    /// When one more node known by hearsay may be dialed: [`STRANGERS_AT_ONCE`] now, then one
    /// each [`STRANGER_PAUSE`]. Anybody on the network can make up nodes.
    fn turn_of_stranger(&mut self, now: Instant) -> Instant {
        let earliest = now.checked_sub(STRANGER_PAUSE * STRANGERS_AT_ONCE);
        let until = self.strangers_until.max(earliest).unwrap_or(now);
        // No more than that wait, however many there were.
        let latest = now + STRANGER_PAUSE * TARGETS_MAX as u32;
        let turn = latest.min(until + STRANGER_PAUSE);
        self.strangers_until = Some(turn);
        turn
    }

    fn delay_first(&self, target: &Target, origin: Origin) -> Duration {
        match (origin, target) {
            (Origin::Configured, _) => Duration::ZERO,
            (Origin::Discovered | Origin::Told, Target::Node(node)) if *node < self.me => {
                COURTESY + self.jitter(target, 0, SPREAD)
            }
            _ => self.jitter(target, 0, SPREAD),
        }
    }

    fn jitter(&self, target: &Target, round: u32, below: Duration) -> Duration {
        jitter(self.seed, target, round, below)
    }
}

impl Entry {
    /// Has it dialed then, if not before; unless it was refused, which only people can change.
    fn bring_forward(&mut self, to: Instant) {
        if let State::Waiting(at) = &mut self.state
            && !self.refused
        {
            *at = to.min(*at);
        }
    }
}

/// Times a pause is doubled: the longest is reached before.
const DOUBLINGS_MAX: u32 = 16;

/// A part of `below` that is the same for the same arguments.
fn jitter(seed: u64, target: &Target, round: u32, below: Duration) -> Duration {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(&round.to_le_bytes());
    match target {
        Target::Node(node) => hasher.update(node.as_bytes()),
        Target::Address(address) => hasher.update(address.as_ref()),
    };
    let bytes = hasher.finalize();
    let share = u32::from(u16::from_le_bytes([
        bytes.as_bytes()[0],
        bytes.as_bytes()[1],
    ]));
    below * share / (1 << 16)
}

/// The node an address ends in and the address without it; `None` if that is no node's name.
pub(crate) fn split(address: &Multiaddr) -> Option<(Option<NodeId>, Multiaddr)> {
    let mut rest = address.clone();
    match rest.iter().last() {
        Some(Protocol::P2p(peer)) => {
            rest.pop();
            Some((Some(NodeId::from_peer_id(&peer)?), rest))
        }
        _ => Some((None, rest)),
    }
}

/// The address with its target's name, if that has one.
fn whole(target: &Target, address: &Multiaddr) -> Multiaddr {
    match target {
        Target::Node(node) => match node.peer_id() {
            Some(peer) => address.clone().with(Protocol::P2p(peer)),
            None => address.clone(),
        },
        Target::Address(address) => address.clone(),
    }
}

/// Whether an address leads through a relay.
pub(crate) fn is_circuit(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

/// Whether an address is a host and a TCP port, or a circuit through the node that is there, and
/// nothing else.
pub(crate) fn is_dialable(address: &Multiaddr) -> bool {
    let mut parts = address.iter();
    let host = match parts.next() {
        Some(Protocol::Ip4(ip)) => !ip.is_unspecified() && !ip.is_multicast(),
        Some(Protocol::Ip6(ip)) => !ip.is_unspecified() && !ip.is_multicast(),
        Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_)) => true,
        _ => false,
    };
    let port = matches!(parts.next(), Some(Protocol::Tcp(port)) if port != 0);
    let rest = matches!(
        (parts.next(), parts.next(), parts.next()),
        (None, ..) | (Some(Protocol::P2p(_)), Some(Protocol::P2pCircuit), None)
    );
    host && port && rest && address.len() <= ADDRESS_LEN_MAX
}

/// Whether a node can be reached at an address of this form, which may name it: over TCP, as a host
/// and a port, or through a relay that is there.
pub fn is_node_address(address: &Multiaddr) -> bool {
    let mut place = address.clone();
    if let Some(Protocol::P2p(_)) = place.iter().last() {
        place.pop();
    }
    is_dialable(&place)
}

#[cfg(test)]
mod tests;
