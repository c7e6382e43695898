//! Being reached through relays, carrying others, and getting rid of relays where that is possible.

use std::time::{Duration, Instant};

use libp2p::core::transport::ListenerId;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, dcutr, relay};

use super::peers::is_loopback;
use super::{Task, bare};
use crate::dialer::{is_circuit, split};
use crate::ids::NodeId;
use crate::network::NetworkEvent;

/// A relay that this node is to be reached through.
#[derive(Debug)]
pub(super) struct Reservation {
    relay: NodeId,
    /// Of the relay, with its name.
    address: Multiaddr,
    state: State,
    failures: u32,
}

#[derive(Debug)]
enum State {
    /// To be asked for then, if the relay is connected.
    Resting(Option<Instant>),
    /// Asked for, or there.
    Held(ListenerId),
}

impl Reservation {
    /// One for each relay; an address without a name is nobody's, and left out.
    pub(super) fn of_all(relays: &[Multiaddr]) -> Vec<Reservation> {
        let named = relays.iter().filter_map(|address| {
            let (relay, _) = split(address)?;
            Some(Reservation {
                relay: relay?,
                address: address.clone(),
                state: State::Resting(None),
                failures: 0,
            })
        });
        named.collect()
    }

    fn rest(&mut self, now: Instant) {
        let pause = PAUSE_FIRST.saturating_mul(1 << self.failures.min(6));
        self.failures = self.failures.saturating_add(1);
        self.state = State::Resting(Some(now + pause.min(PAUSE_MAX)));
    }
}

impl Task<'_> {
    /// Asks connected relays for what is due.
    ///
    /// Others are left to the dialer, which knows how to find them.
    pub(super) fn reserve_due(&mut self, now: Instant) {
        for reservation in &mut self.reservations {
            let due = match reservation.state {
                State::Resting(at) => at.is_none_or(|at| at <= now),
                State::Held(_) => false,
            };
            if !due || !self.peers.is_direct(reservation.relay) {
                continue;
            }
            let circuit = reservation.address.clone().with(Protocol::P2pCircuit);
            match self.swarm.listen_on(circuit) {
                Ok(listener) => reservation.state = State::Held(listener),
                Err(error) => {
                    tracing::warn!(relay = %reservation.address, %error, "no reservation");
                    reservation.rest(now);
                }
            }
        }
    }

    /// Tells those that reserve where this relay is: nobody reserves with one that does not know.
    pub(super) fn tell_as_relay(&mut self, address: &Multiaddr) {
        let options = &self.durable.options;
        let only_here = options.listen.iter().all(is_loopback);
        let of_use = match address.iter().next() {
            Some(Protocol::Ip6(ip)) if ip.is_unicast_link_local() => false,
            _ => only_here || !is_loopback(address),
        };
        if options.relay_server && of_use {
            self.swarm.add_external_address(address.clone());
        }
    }

    /// Takes back what [`Task::tell_as_relay`] told.
    pub(super) fn tell_not_as_relay(&mut self, address: &Multiaddr) {
        let options = &self.durable.options;
        if options.relay_server && !options.external.contains(address) {
            self.swarm.remove_external_address(address);
        }
    }

    /// A relay lets us be reached through it. It says where it listens; of that only the address at
    /// which it was configured is known to lead there.
    pub(super) fn on_reserved(&mut self, listener: ListenerId, address: Multiaddr) {
        let address = bare(address);
        let mut held = self.reservations.iter_mut();
        let held = held.find(|other| matches!(other.state, State::Held(id) if id == listener));
        let Some(reservation) = held else {
            return;
        };
        reservation.failures = 0;
        let configured = reservation.address.clone().with(Protocol::P2pCircuit);
        if self.listen_addresses.contains(&configured) {
            return;
        }
        tracing::info!(address = %configured, told = %address, "reachable through a relay");
        let address = configured;
        self.listen_addresses.push(address.clone());
        self.durable.outbox.tell(NetworkEvent::Listening(address));
        self.show();
    }

    /// A listener is gone; whether it was a reservation, which is asked for again.
    pub(super) fn on_unreserved(&mut self, listener: ListenerId) -> bool {
        let now = Instant::now();
        let lost = (self.reservations.iter_mut())
            .find(|other| matches!(other.state, State::Held(id) if id == listener));
        let Some(reservation) = lost else {
            return false;
        };
        tracing::info!(relay = %reservation.address, "not reachable through a relay any more");
        reservation.rest(now);
        let relay = reservation.relay.peer_id();
        self.listen_addresses.retain(|address| {
            let mut parts = address.iter();
            !is_circuit(address)
                || !parts.any(|part| matches!(part, Protocol::P2p(peer) if Some(peer) == relay))
        });
        self.show();
        true
    }

    /// A peer found that this address of ours can be reached.
    pub(super) fn on_reachable(&mut self, address: Multiaddr) {
        let address = bare(address);
        // Of circuits, the reservation tells.
        if is_circuit(&address) {
            return;
        }
        self.durable.counters.confirmed += 1;
        if !self.external_addresses.contains(&address)
            && self.external_addresses.len() < EXTERNAL_MAX
        {
            tracing::info!(%address, "reachable");
            self.external_addresses.push(address);
            self.show();
        }
    }

    pub(super) fn on_relay(&mut self, event: relay::Event) {
        match event {
            relay::Event::CircuitReqAccepted {
                src_peer_id,
                dst_peer_id,
            } => {
                tracing::info!(from = %src_peer_id, to = %dst_peer_id, "carrying a connection");
                self.durable.counters.circuits_carried += 1;
            }
            event => tracing::debug!(?event, "relay"),
        }
    }

    pub(super) fn on_punch(&mut self, event: dcutr::Event) {
        let node = event.remote_peer_id;
        match event.result {
            Ok(_) => {
                tracing::info!(%node, "connected without the relay");
                self.durable.counters.punched += 1;
            }
            Err(error) => {
                tracing::info!(%node, %error, "no way but the relay");
                self.durable.counters.punches_failed += 1;
            }
        }
    }
}

/// Until a relay is asked again; doubled by every further failure.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Addresses of ours that peers found to be reachable.
const EXTERNAL_MAX: usize = 16;
