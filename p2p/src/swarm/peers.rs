//! Who is connected, and over which connections.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use libp2p::ping::Failure;
use libp2p::swarm::ConnectionId;

use crate::behaviour::SURPLUS_AFTER;
use crate::dialer::is_circuit;
use crate::ids::NodeId;
use crate::network::{Direction, PeerInfo};

/// Pings in a row that must fail for a connection to count as dead.
const PINGS_MISSED_MAX: u32 = 2;

/// Characters of an agent's name that are kept.
const AGENT_LEN_MAX: usize = 128;

/// One connection.
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) direction: Direction,
    pub(super) address: Multiaddr,
    since: Instant,
    /// Whether a relay carries it.
    relayed: bool,
    rtt: Option<Duration>,
    pings_missed: u32,
}

impl Connection {
    pub(super) fn new(id: ConnectionId, direction: Direction, address: Multiaddr) -> Connection {
        Connection {
            id,
            direction,
            relayed: is_circuit(&address),
            address,
            since: Instant::now(),
            rtt: None,
            pings_missed: 0,
        }
    }
}

/// The connected nodes. As many as the connection limits allow.
#[derive(Default)]
pub(super) struct Peers {
    peers: BTreeMap<NodeId, Peer>,
}

struct Peer {
    /// In the order in which they were made; never empty.
    connections: Vec<Connection>,
    since: Instant,
    agent: String,
    listening: Vec<Multiaddr>,
    /// Our requests that wait for it.
    requests: usize,
}

impl Peers {
    pub(super) fn len(&self) -> usize {
        self.peers.len()
    }

    pub(super) fn contains(&self, node: NodeId) -> bool {
        self.peers.contains_key(&node)
    }

    /// Notes a connection; whether it is the only one to its peer.
    pub(super) fn opened(&mut self, node: NodeId, connection: Connection) -> bool {
        let now = connection.since;
        let peer = self.peers.entry(node).or_insert_with(|| Peer {
            connections: Vec::new(),
            since: now,
            agent: String::new(),
            listening: Vec::new(),
            requests: 0,
        });
        peer.connections.push(connection);
        peer.connections.len() == 1
    }

    /// Forgets a connection; whether it was the last one to its peer.
    pub(super) fn closed(&mut self, node: NodeId, id: ConnectionId) -> bool {
        let Some(peer) = self.peers.get_mut(&node) else {
            return false;
        };
        peer.connections.retain(|connection| connection.id != id);
        peer.connections.is_empty() && self.peers.remove(&node).is_some()
    }

    /// Notes a ping; whether the connection is dead.
    pub(super) fn pinged(
        &mut self,
        node: NodeId,
        id: ConnectionId,
        result: &Result<Duration, Failure>,
    ) -> bool {
        let peer = self.peers.get_mut(&node);
        let connection = peer.and_then(|peer| {
            let mut connections = peer.connections.iter_mut();
            connections.find(|connection| connection.id == id)
        });
        let Some(connection) = connection else {
            return false;
        };
        match result {
            Ok(rtt) => {
                connection.rtt = Some(*rtt);
                connection.pings_missed = 0;
            }
            Err(Failure::Unsupported) => {}
            Err(Failure::Timeout | Failure::Other { .. }) => connection.pings_missed += 1,
        }
        connection.pings_missed >= PINGS_MISSED_MAX
    }

    pub(super) fn identified(&mut self, node: NodeId, agent: &str, listening: Vec<Multiaddr>) {
        if let Some(peer) = self.peers.get_mut(&node) {
            let agent = agent.chars().filter(|c| !c.is_control());
            peer.agent = agent.take(AGENT_LEN_MAX).collect();
            peer.listening = listening;
        }
    }

    /// Whether a peer is connected without a relay.
    pub(super) fn is_direct(&self, node: NodeId) -> bool {
        let peer = self.peers.get(&node);
        peer.is_some_and(|peer| {
            peer.connections
                .iter()
                .any(|connection| !connection.relayed)
        })
    }

    /// Whether a peer is on this machine; `None` if it is not connected.
    pub(super) fn is_on_this_host(&self, node: NodeId) -> Option<bool> {
        let peer = self.peers.get(&node)?;
        let mut connections = peer.connections.iter();
        Some(connections.any(|connection| !connection.relayed && is_loopback(&connection.address)))
    }

    /// The number of requests that wait for a peer; `None` if it is not connected.
    pub(super) fn requests(&mut self, node: NodeId) -> Option<&mut usize> {
        self.peers.get_mut(&node).map(|peer| &mut peer.requests)
    }

    /// The connections to a peer that a better one replaces: a newer one, or one without a relay.
    pub(super) fn all_but_best(&self, node: NodeId) -> Vec<ConnectionId> {
        let peer = self.peers.get(&node);
        let connections = peer.map_or(&[][..], |peer| &peer.connections);
        let best = best(connections).map(|connection| connection.id);
        let ids = connections.iter().map(|connection| connection.id);
        ids.filter(|id| Some(*id) != best).collect()
    }

    /// Whether all connections to a peer were made just now.
    pub(super) fn is_fresh(&self, node: NodeId, now: Instant) -> bool {
        let peer = self.peers.get(&node);
        let oldest = peer.and_then(|peer| peer.connections.first());
        oldest.is_some_and(|oldest| now.duration_since(oldest.since) <= SURPLUS_AFTER)
    }

    /// The peers that have had a second connection for so long that it is an oversight.
    pub(super) fn with_old_surplus(&self, now: Instant) -> Vec<NodeId> {
        let surplus = self.peers.iter().filter(|(_, peer)| {
            peer.connections.len() > 1
                && (peer.connections.last())
                    .is_some_and(|newest| now.duration_since(newest.since) > SURPLUS_AFTER)
        });
        surplus.map(|(node, _)| *node).collect()
    }

    /// What can be shown of each peer, ordered by node.
    pub(super) fn infos(&self) -> Vec<PeerInfo> {
        let infos = self.peers.iter().filter_map(|(node, peer)| {
            let best = best(&peer.connections)?;
            let mut addresses = vec![best.address.clone()];
            let others = peer.listening.iter();
            addresses.extend(others.filter(|other| **other != best.address).cloned());
            Some(PeerInfo {
                node: *node,
                addresses,
                direction: best.direction,
                since: peer.since,
                rtt: best.rtt,
                agent: peer.agent.clone(),
                connections: peer.connections.len(),
                relayed: best.relayed,
            })
        });
        infos.collect()
    }
}

/// The newest without a relay, or else the newest.
fn best(connections: &[Connection]) -> Option<&Connection> {
    let direct = connections.iter().rfind(|connection| !connection.relayed);
    direct.or(connections.last())
}

/// Whether an address is one of this machine only.
pub(super) fn is_loopback(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_loopback(),
        Some(Protocol::Ip6(ip)) => ip.is_loopback(),
        _ => false,
    }
}
