//! What outlives a swarm.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::Multiaddr;
use libp2p::core::transport::ListenerId;
use libp2p::multiaddr::Protocol;
use tokio::sync::{mpsc, watch};

use crate::dialer::{Dialer, Origin, is_circuit, split};
use crate::ids::NodeId;
use crate::network::{BanInfo, Command, Counters, NetworkEvent, NetworkOptions, PeerInfo, Status};
use crate::swarm::conduct::{Act, Conduct, Ruling};

/// Bans kept. Beyond, the one that ends first is lifted.
const BANS_MAX: usize = 1024;

/// State of the network that does not belong to a swarm.
pub(crate) struct Durable {
    /// With the ports that the system chose, once it has: a new swarm listens where the old did.
    pub(crate) options: NetworkOptions,
    /// Which of the options a listener of this swarm is for.
    pub(crate) listeners: HashMap<ListenerId, usize>,
    pub(crate) me: NodeId,
    pub(crate) dialer: Dialer,
    pub(crate) bans: BTreeMap<NodeId, Ban>,
    pub(crate) counters: Counters,
    conduct: Conduct,
    pub(crate) outbox: Outbox,
    status: watch::Sender<Arc<Status>>,
}

/// A node that is kept out.
pub(crate) struct Ban {
    pub(crate) until: Instant,
    why: String,
}

impl Durable {
    pub(crate) fn new(
        options: NetworkOptions,
        me: NodeId,
        events: mpsc::Sender<NetworkEvent>,
        status: watch::Sender<Arc<Status>>,
    ) -> Durable {
        let now = Instant::now();
        let mut dialer = Dialer::new(me, options.seed);
        for address in options.peers.iter().chain(&options.relays) {
            dialer.learn(now, address, Origin::Configured);
        }
        for address in &options.remembered {
            dialer.learn(now, address, Origin::Remembered);
        }
        Durable {
            options,
            listeners: HashMap::new(),
            me,
            dialer,
            bans: BTreeMap::new(),
            counters: Counters::default(),
            conduct: Conduct::default(),
            outbox: Outbox {
                events,
                backlog: VecDeque::new(),
            },
            status,
        }
    }

    /// The swarm is gone, with all connections.
    pub(crate) fn on_restart(&mut self) {
        tracing::error!("the network's task panicked or lost its listener, and starts anew");
        self.counters.restarts += 1;
        let gone = Arc::clone(&self.status.borrow());
        for peer in &gone.peers {
            self.outbox.tell(NetworkEvent::PeerDown { node: peer.node });
        }
        // What it knew of connections and attempts is void; the addresses are not.
        let now = Instant::now();
        let mut dialer = Dialer::new(self.me, self.options.seed);
        for (address, origin) in self.dialer.known() {
            dialer.learn(now, &address, origin);
        }
        self.dialer = dialer;
        self.show(Vec::new(), Vec::new());
    }

    /// Whether `node` is one that this one is to be reached through.
    pub(crate) fn is_relay(&self, node: NodeId) -> bool {
        let mut relays = self.options.relays.iter();
        relays.any(|relay| split(relay).is_some_and(|(who, _)| who == Some(node)))
    }

    /// What is asked while there is no swarm: kept in mind where that is possible, else refused.
    pub(crate) fn keep(&mut self, command: Command) {
        match command {
            Command::Learn { addresses } => self.learn(&addresses),
            Command::Suggest { addresses } => self.suggest(&addresses),
            Command::Ban { node, time, why } => {
                self.ban(node, time, why);
            }
            // Dropping their replies refuses them.
            _ => {}
        }
    }

    pub(crate) fn learn(&mut self, addresses: &[Multiaddr]) {
        let now = Instant::now();
        for address in addresses {
            self.dialer.learn(now, address, Origin::Configured);
        }
    }

    pub(crate) fn suggest(&mut self, addresses: &[Multiaddr]) {
        let now = Instant::now();
        let uses_relays = self.options.uses_relays();
        for address in addresses {
            let is_named = split(address).is_some_and(|(node, _)| node.is_some());
            if is_named && (uses_relays || !is_circuit(address)) {
                self.dialer.learn(now, address, Origin::Told);
            }
        }
    }

    /// Notes a ban; whoever had to be let off to make room for it.
    pub(crate) fn ban(&mut self, node: NodeId, time: Duration, why: String) -> Option<NodeId> {
        let until = Instant::now() + time;
        if self.bans.get(&node).is_some_and(|ban| ban.until >= until) {
            return None;
        }
        self.bans.insert(node, Ban { until, why });
        if self.bans.len() <= BANS_MAX {
            return None;
        }
        let first = self.bans.iter().min_by_key(|(_, ban)| ban.until);
        let first = first.map(|(node, _)| *node)?;
        self.bans.remove(&first);
        Some(first)
    }

    /// The bans that have ended; they are forgotten.
    pub(crate) fn ended_bans(&mut self) -> Vec<NodeId> {
        let now = Instant::now();
        let ended = self.bans.iter().filter(|(_, ban)| ban.until <= now);
        let ended: Vec<_> = ended.map(|(node, _)| *node).collect();
        for node in &ended {
            self.bans.remove(node);
        }
        ended
    }

    /// Whether a peer may do this by itself now. If it is no honest one, the node is told.
    pub(crate) fn may(&mut self, node: NodeId, act: Act) -> Ruling {
        let now = Instant::now();
        let ruling = self.conduct.judge(now, node, act);
        if let Ruling::Misbehaves(what) = ruling
            && self.outbox.offer(NetworkEvent::Misbehaved { node, what })
        {
            self.conduct.told(now, node, act);
        }
        ruling
    }

    /// A listener got this address: its port is kept for the next swarm.
    pub(crate) fn keep_port(&mut self, listener: ListenerId, address: &Multiaddr) {
        let port = |address: &Multiaddr| {
            address.iter().find_map(|part| match part {
                Protocol::Tcp(port) => Some(port),
                _ => None,
            })
        };
        let wanted = self.listeners.get(&listener);
        let wanted = wanted.and_then(|index| self.options.listen.get_mut(*index));
        if let (Some(wanted), Some(got)) = (wanted, port(address))
            && port(wanted) == Some(0)
        {
            *wanted = (wanted.iter())
                .map(|part| match part {
                    Protocol::Tcp(_) => Protocol::Tcp(got),
                    other => other,
                })
                .collect();
        }
    }

    /// Shows how the network stands.
    pub(crate) fn show(&mut self, peers: Vec<PeerInfo>, listen_addresses: Vec<Multiaddr>) {
        let bans = self.bans.iter().map(|(node, ban)| BanInfo {
            node: *node,
            until: ban.until,
            why: ban.why.clone(),
        });
        self.status.send_replace(Arc::new(Status {
            peers,
            listen_addresses,
            bans: bans.collect(),
            counters: self.counters,
        }));
    }
}

/// Events on their way to the node.
pub(crate) struct Outbox {
    events: mpsc::Sender<NetworkEvent>,
    /// Those that must not be dropped and found the queue full: at most an up and a down for each
    /// node, and each of our addresses.
    backlog: VecDeque<NetworkEvent>,
}

impl Outbox {
    /// Tells the node, now or as soon as it has room.
    pub(crate) fn tell(&mut self, event: NetworkEvent) {
        match &event {
            NetworkEvent::PeerDown { node: gone } => {
                let untold = self.backlog.iter().rposition(
                    |event| matches!(event, NetworkEvent::PeerUp { node, .. } if node == gone),
                );
                if let Some(index) = untold {
                    self.backlog.remove(index);
                    return;
                }
            }
            NetworkEvent::Listening(address) => {
                let told = |event: &NetworkEvent| matches!(event, NetworkEvent::Listening(other) if other == address);
                if self.backlog.iter().any(told) {
                    return;
                }
            }
            _ => {}
        }
        if !self.backlog.is_empty() {
            self.backlog.push_back(event);
        } else if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
            self.backlog.push_back(event);
        }
    }

    /// Tells the node if it has room now; `false` if the event was dropped.
    pub(crate) fn offer(&mut self, event: NetworkEvent) -> bool {
        // Not before what waits: the node must know a peer before it hears from it.
        self.backlog.is_empty() && self.events.try_send(event).is_ok()
    }

    /// Waits until one event of the backlog is told; for ever if there is none. May be dropped.
    pub(crate) async fn flush(&mut self) {
        if self.backlog.is_empty() {
            return std::future::pending().await;
        }
        match self.events.reserve().await {
            Ok(room) => {
                if let Some(event) = self.backlog.pop_front() {
                    room.send(event);
                }
            }
            // Nobody listens any more.
            Err(_) => self.backlog.clear(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Direction;

    fn outbox(room: usize) -> (Outbox, mpsc::Receiver<NetworkEvent>) {
        let (events, queue) = mpsc::channel(room);
        let backlog = VecDeque::new();
        (Outbox { events, backlog }, queue)
    }

    fn up(n: u8) -> NetworkEvent {
        NetworkEvent::PeerUp {
            node: NodeId::from_bytes([n; 32]),
            address: Multiaddr::empty(),
            direction: Direction::Inbound,
        }
    }

    fn down(n: u8) -> NetworkEvent {
        NetworkEvent::PeerDown {
            node: NodeId::from_bytes([n; 32]),
        }
    }

    #[tokio::test]
    async fn ups_and_downs_survive_a_full_queue_in_order() {
        let (mut outbox, mut queue) = outbox(1);
        for event in [up(1), down(1), up(2), up(3), down(2), up(1)] {
            outbox.tell(event);
        }
        assert!(!outbox.offer(down(9)));
        let mut told = Vec::new();
        while let Ok(event) = queue.try_recv() {
            told.push(format!("{event:?}"));
            if !outbox.backlog.is_empty() {
                outbox.flush().await;
            }
        }
        let wanted = [up(1), down(1), up(3), up(1)];
        assert_eq!(told, wanted.map(|event| format!("{event:?}")));
    }

    #[test]
    fn a_peer_that_flaps_does_not_fill_the_backlog() {
        let (mut outbox, _queue) = outbox(1);
        outbox.tell(up(9));
        for _ in 0..1000 {
            outbox.tell(up(1));
            outbox.tell(down(1));
        }
        assert!(outbox.backlog.len() <= 2, "{}", outbox.backlog.len());
    }
}
