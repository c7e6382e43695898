//! Keeping what strangers say by mDNS within bounds.

use libp2p::core::transport::ListenerId;
use libp2p::mdns;
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::swarm::behaviour::{FromSwarm, NewListenAddr, NewListener};

use super::Task;
use crate::behaviour::discovery;
use crate::dialer::is_circuit;

impl Task<'_> {
    /// Forgets all that mDNS found when it is more than there can be honest nodes: libp2p keeps and
    /// looks through every record until it expires. Honest ones come again with the next query.
    pub(super) fn cap_discovery(&mut self) {
        let Some(me) = self.durable.me.peer_id() else {
            return;
        };
        let listening: Vec<_> = self.listen_addresses.clone();
        let options = &self.durable.options;
        let behaviour = self.swarm.behaviour_mut();
        for (mdns, v6) in [(&mut behaviour.mdns4, false), (&mut behaviour.mdns6, true)] {
            let records = mdns
                .as_ref()
                .map_or(0, |mdns| mdns.discovered_nodes().len());
            if records <= RECORDS_MAX {
                continue;
            }
            tracing::warn!(records, "too many nodes found by mDNS; forgotten");
            let mut fresh = discovery(me, options, v6);
            for address in listening.iter().filter(|address| !is_circuit(address)) {
                tell(&mut fresh, address);
            }
            *mdns = fresh;
        }
    }
}

/// Tells a new behaviour where we have been listening.
fn tell(mdns: &mut Toggle<mdns::tokio::Behaviour>, addr: &libp2p::Multiaddr) {
    let listener_id = ListenerId::next();
    mdns.on_swarm_event(FromSwarm::NewListener(NewListener { listener_id }));
    mdns.on_swarm_event(FromSwarm::NewListenAddr(NewListenAddr {
        listener_id,
        addr,
    }));
}

/// Addresses of others that are kept for each family.
const RECORDS_MAX: usize = 256;
