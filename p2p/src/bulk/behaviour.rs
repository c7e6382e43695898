//! Opens and accepts bulk streams on the connections of the swarm.
//!
//! An inbound stream travels to the node as an event like any other, so none is lost on the way
//! there; one beyond its peer's share is reset where it arrives.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{Debug, Formatter, Result as FmtResult};
use std::sync::Arc;
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::ReadyUpgrade;
use libp2p::swarm::handler::{
    ConnectionEvent, ConnectionHandler, ConnectionHandlerEvent, FullyNegotiatedInbound,
    FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, SubstreamProtocol,
    THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use tokio::sync::{Semaphore, oneshot};

use super::{BulkStream, OpenError, STREAMS_IN_MAX, STREAMS_OUT_MAX};
use crate::dialer::is_circuit;
use crate::ids::NodeId;

const PROTOCOL: StreamProtocol = StreamProtocol::new("/attic-node/bulk/1");

/// Who waits for a stream to be open.
type Opener = oneshot::Sender<Result<BulkStream, OpenError>>;

/// What happened to bulk streams.
#[derive(Debug)]
pub(crate) enum Event {
    /// A peer opened one.
    Opened(BulkStream),
    /// A peer wanted more of them than it may have; this one was reset.
    Surplus(NodeId),
}

/// The part of the swarm that knows bulk streams.
#[derive(Default)]
pub(crate) struct Behaviour {
    /// Open connections that no relay carries, in the order in which they were made.
    connections: BTreeMap<NodeId, Vec<ConnectionId>>,
    events: VecDeque<ToSwarm<Event, Open>>,
}

impl Behaviour {
    /// Opens a stream to `node`, on the newest direct connection to it, and tells `opener`.
    pub(crate) fn open(&mut self, node: NodeId, opener: Opener) {
        let newest = self.connections.get(&node).and_then(|ids| ids.last());
        let (Some(id), Some(peer_id)) = (newest, node.peer_id()) else {
            let _ = opener.send(Err(OpenError::NotConnected));
            return;
        };
        self.events.push_back(ToSwarm::NotifyHandler {
            peer_id,
            handler: NotifyHandler::One(*id),
            event: Open(opener),
        });
    }
}

/// For a connection to `peer`. Where a relay carries it no stream is let in: its few bytes are for
/// other things.
fn handler(peer: PeerId, address: &Multiaddr) -> Result<Handler, ConnectionDenied> {
    let node = NodeId::from_peer_id(&peer).ok_or_else(|| ConnectionDenied::new(NoNode))?;
    let inbound = match is_circuit(address) {
        true => 0,
        false => STREAMS_IN_MAX,
    };
    Ok(Handler::new(node, inbound))
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        handler(peer, local)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        handler(peer, remote)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(made) if made.endpoint.is_relayed() => {}
            FromSwarm::ConnectionEstablished(made) => {
                if let Some(node) = NodeId::from_peer_id(&made.peer_id) {
                    let ids = self.connections.entry(node).or_default();
                    ids.push(made.connection_id);
                }
            }
            FromSwarm::ConnectionClosed(closed) => {
                if let Some(node) = NodeId::from_peer_id(&closed.peer_id)
                    && let Some(ids) = self.connections.get_mut(&node)
                {
                    ids.retain(|id| *id != closed.connection_id);
                    if ids.is_empty() {
                        self.connections.remove(&node);
                    }
                }
            }
            // Addresses and failed attempts make no difference here.
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        self.events.push_back(ToSwarm::GenerateEvent(event));
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        match self.events.pop_front() {
            Some(event) => Poll::Ready(event),
            None => Poll::Pending,
        }
    }
}

/// A peer whose key is not a node's. The transport lets none through.
#[derive(Debug, thiserror::Error)]
#[error("the peer's key is not a node's")]
struct NoNode;

/// Asks a connection for a stream.
pub(crate) struct Open(Opener);

impl Debug for Open {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str("Open")
    }
}

/// The bulk streams of one connection. Keeps the connection open: only members get one.
pub(crate) struct Handler {
    node: NodeId,
    outbound: Arc<Semaphore>,
    inbound: Arc<Semaphore>,
    /// At most one event for each stream that the muxer has let in, or that we asked for.
    events: VecDeque<ConnectionHandlerEvent<ReadyUpgrade<StreamProtocol>, Pending, Event>>,
}

/// A stream that is being negotiated, with the slot it takes.
pub(crate) struct Pending {
    opener: Opener,
    slot: tokio::sync::OwnedSemaphorePermit,
}

impl Handler {
    fn new(node: NodeId, inbound: usize) -> Handler {
        Handler {
            node,
            outbound: Arc::new(Semaphore::new(STREAMS_OUT_MAX)),
            inbound: Arc::new(Semaphore::new(inbound)),
            events: VecDeque::new(),
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Open;
    type ToBehaviour = Event;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Pending;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ())
    }

    fn connection_keep_alive(&self) -> bool {
        true
    }

    fn on_behaviour_event(&mut self, Open(opener): Open) {
        match Arc::clone(&self.outbound).try_acquire_owned() {
            Ok(slot) => {
                let protocol =
                    SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), Pending { opener, slot });
                self.events
                    .push_back(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
            }
            Err(_) => {
                let _ = opener.send(Err(OpenError::TooMany));
            }
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol, (), Pending>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol, ..
            }) => {
                let event = match Arc::clone(&self.inbound).try_acquire_owned() {
                    Ok(slot) => Event::Opened(BulkStream::new(self.node, protocol, slot)),
                    Err(_) => Event::Surplus(self.node),
                };
                self.events
                    .push_back(ConnectionHandlerEvent::NotifyBehaviour(event));
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol,
                info: Pending { opener, slot },
            }) => {
                let _ = opener.send(Ok(BulkStream::new(self.node, protocol, slot)));
            }
            ConnectionEvent::DialUpgradeError(error) => {
                let _ = error.info.opener.send(Err(OpenError::Unsupported));
            }
            // Addresses and protocols of the peer make no difference here.
            _ => {}
        }
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Pending, Event>> {
        match self.events.pop_front() {
            Some(event) => Poll::Ready(event),
            None => Poll::Pending,
        }
    }
}
