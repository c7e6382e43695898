//! autonat's client, with a bound on what it is told, and patience.
//!
//! Every peer says at which address it sees us. libp2p's client tries each such address once and
//! keeps all of them for ever; a member that says another one each time would fill our memory.
//!
//! A connection that closes while a peer is asked over it takes the question with it, and the address
//! is never tried again. The peer answers by a second connection, and of two that are young one is
//! closed ([`SURPLUS_AFTER`]): so nobody is asked over a young one.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use libp2p::autonat::v2::client;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NewExternalAddrCandidate,
    THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};

use tokio::time::{Instant, Sleep, sleep_until};

use crate::behaviour::SURPLUS_AFTER;
use crate::dialer::{is_circuit, is_dialable};

/// Asks peers which of our addresses they can reach.
#[derive(Default)]
pub(crate) struct Probe {
    client: client::Behaviour,
    /// What it was told of.
    candidates: BTreeSet<Multiaddr>,
    /// Connections we made over which nothing was heard yet, and until when they are young. What is
    /// heard first is that the peer can be asked.
    young: BTreeMap<ConnectionId, Instant>,
    /// What was heard first over a young connection.
    held: BTreeMap<(Instant, ConnectionId), (PeerId, THandlerOutEvent<client::Behaviour>)>,
    timer: Option<Pin<Box<Sleep>>>,
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

    /// Tells the client what was held long enough.
    fn release(&mut self, cx: &mut Context<'_>) {
        while let Some(next) = self.held.first_entry() {
            let (until, id) = *next.key();
            if until > Instant::now() {
                let timer = self
                    .timer
                    .get_or_insert_with(|| Box::pin(sleep_until(until)));
                timer.as_mut().reset(until);
                if timer.poll_unpin(cx).is_pending() {
                    return;
                }
            }
            let (peer, event) = next.remove();
            self.client.on_connection_handler_event(peer, id, event);
        }
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
        match event {
            FromSwarm::ConnectionEstablished(made) if made.endpoint.is_dialer() => {
                let until = Instant::now() + SURPLUS_AFTER + SLACK;
                self.young.insert(made.connection_id, until);
            }
            FromSwarm::ConnectionClosed(closed) => {
                self.young.remove(&closed.connection_id);
                self.held.retain(|(_, id), _| *id != closed.connection_id);
            }
            _ => {}
        }
        self.client.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        if let Some(until) = self.young.remove(&id) {
            self.held.insert((until, id), (peer, event));
            return;
        }
        (self.client).on_connection_handler_event(peer, id, event);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.release(cx);
        self.client.poll(cx)
    }
}

/// For clocks and wires: the peer, too, must find the connection old.
const SLACK: Duration = Duration::from_secs(1);

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
