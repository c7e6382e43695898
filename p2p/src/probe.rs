//! autonat's client, with a bound on what it is told.
//!
//! Every peer says at which address it sees us. libp2p's client tries each such address once and
//! keeps all of them for ever; a member that says another one each time would fill our memory.

use std::collections::BTreeSet;
use std::task::{Context, Poll};

use libp2p::autonat::v2::client;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NewExternalAddrCandidate,
    THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};

use crate::dialer::{is_circuit, is_dialable};

/// Asks peers which of our addresses they can reach.
#[derive(Default)]
pub(crate) struct Probe {
    client: client::Behaviour,
    /// What it was told of.
    candidates: BTreeSet<Multiaddr>,
}

impl Probe {
    /// Whether an address is worth trying and there is room for it.
    fn admits(&mut self, address: &Multiaddr) -> bool {
        if !is_dialable(address) || is_circuit(address) {
            return false;
        }
        let has_room = self.candidates.len() < CANDIDATES_MAX;
        self.candidates.contains(address) || (has_room && self.candidates.insert(address.clone()))
    }
}

impl NetworkBehaviour for Probe {
    type ConnectionHandler = THandler<client::Behaviour>;
    type ToSwarm = client::Event;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        (self.client).handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        (self.client).handle_established_outbound_connection(id, peer, remote, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if let FromSwarm::NewExternalAddrCandidate(NewExternalAddrCandidate { addr }) = event
            && !self.admits(addr)
        {
            return;
        }
        self.client.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        (self.client).on_connection_handler_event(peer, id, event);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.client.poll(cx)
    }
}

/// Addresses that are tried from one start of the network to the next: an honest node has a few each
/// time it moves.
const CANDIDATES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_peers_say_is_bounded() {
        let mut probe = Probe::default();
        let mut tell = |text: String| {
            let addr: Multiaddr = text.parse().unwrap();
            let event = NewExternalAddrCandidate { addr: &addr };
            probe.on_swarm_event(FromSwarm::NewExternalAddrCandidate(event));
        };
        tell("/ip4/192.0.2.1/udp/1".to_owned());
        (1..10_000).for_each(|port| tell(format!("/ip4/192.0.2.1/tcp/{port}")));
        assert_eq!(probe.candidates.len(), CANDIDATES_MAX);
        let [first, later] = [1, 9_999].map(|port| format!("/ip4/192.0.2.1/tcp/{port}"));
        assert!(probe.admits(&first.parse().unwrap()), "known before");
        assert!(!probe.admits(&later.parse().unwrap()));
    }
}
