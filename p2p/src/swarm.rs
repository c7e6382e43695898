//! The task that owns all connections: turns what libp2p reports into events, and wishes of the
//! node into calls.
//!
//! Nothing here waits for anybody: no disk, no hashing of more than a message, no full queue.

pub(crate) mod conduct;
mod dialing;
mod discovery;
pub(crate) mod durable;
mod peers;
mod relays;
mod resolve;

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use libp2p::Multiaddr;
use libp2p::core::ConnectedPoint;
use libp2p::gossipsub::{self, FailedMessages, IdentTopic, MessageAcceptance, MessageId};
use libp2p::request_response::{
    InboundFailure, Message, OutboundFailure, OutboundRequestId, ResponseChannel,
};
use libp2p::swarm::{ConnectionId, Swarm, SwarmEvent};
use libp2p::{identify, mdns, multiaddr::Protocol, ping};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout};

use crate::behaviour::{Behaviour, BehaviourEvent};
use crate::bulk;
use crate::control::{self, REQUEST_DEADLINE, REQUESTS_PER_PEER_MAX};
use crate::dialer::{Origin, is_circuit, is_dialable, split};
use crate::ids::NodeId;
use crate::network::{
    Command, Direction, GossipToken, NetworkEvent, PublishError, RequestError, Topic, Verdict,
};
use crate::swarm::conduct::{Act, Ruling};
use crate::swarm::dialing::Attempt;
use crate::swarm::durable::Durable;
use crate::swarm::peers::{Connection, Peers};
use crate::swarm::relays::Reservation;

/// Housekeeping.
const TICK: Duration = Duration::from_secs(1);

/// A difference between the two clocks that means the machine slept.
const SLEPT: Duration = Duration::from_secs(30);

/// Of the addresses a peer says it listens at, how many are looked at.
const LISTEN_ADDRESSES_MAX: usize = 16;

/// How a swarm came to its end.
pub(crate) enum End {
    /// Because it was asked to.
    Shutdown,
    /// It panicked, or can no longer do its work.
    Broken,
}

/// The network's task.
pub(crate) struct Task<'a> {
    swarm: Swarm<Behaviour>,
    durable: &'a mut Durable,
    peers: Peers,
    listen_addresses: Vec<Multiaddr>,
    /// What else others can reach.
    external_addresses: Vec<Multiaddr>,
    reservations: Vec<Reservation>,
    /// Attempts in progress.
    attempts: HashMap<ConnectionId, Attempt>,
    /// Attempts whose host names are being resolved.
    lookups: FuturesUnordered<BoxFuture<'static, (Attempt, Vec<Multiaddr>)>>,
    /// Our requests that wait for a response.
    requests: HashMap<OutboundRequestId, (NodeId, oneshot::Sender<RequestOutcome>)>,
    /// Peers' requests that wait for the node.
    replies: FuturesUnordered<BoxFuture<'static, (ResponseChannel<Bytes>, Option<Bytes>)>>,
    /// When the dialer has something to do.
    wake: Option<Instant>,
    /// Both clocks at the last tick.
    clocks: (Instant, SystemTime),
}

type RequestOutcome = Result<Bytes, RequestError>;

impl<'a> Task<'a> {
    pub(crate) fn new(mut swarm: Swarm<Behaviour>, durable: &'a mut Durable) -> Task<'a> {
        for node in durable.bans.keys() {
            if let Some(peer) = node.peer_id() {
                swarm.behaviour_mut().blocked.block_peer(peer);
            }
        }
        Task {
            swarm,
            reservations: Reservation::of_all(&durable.options.relays),
            external_addresses: durable.options.external.clone(),
            durable,
            peers: Peers::default(),
            listen_addresses: Vec::new(),
            attempts: HashMap::new(),
            lookups: FuturesUnordered::new(),
            requests: HashMap::new(),
            replies: FuturesUnordered::new(),
            wake: None,
            clocks: (Instant::now(), SystemTime::now()),
        }
    }

    pub(crate) async fn run(mut self, inbox: &mut mpsc::Receiver<Command>) -> End {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        self.dial_due();
        loop {
            let wake = self.wake.unwrap_or_else(|| Instant::now() + TICK);
            tokio::select! {
                event = self.swarm.select_next_some() => {
                    if let Some(end) = self.on_swarm_event(event) {
                        return end;
                    }
                }
                command = inbox.recv() => match command {
                    None | Some(Command::Shutdown) => return End::Shutdown,
                    Some(command) => self.on_command(command),
                },
                Some((channel, body)) = self.replies.next() => {
                    if let Some(body) = body {
                        let control = &mut self.swarm.behaviour_mut().control;
                        // The peer may be gone; then so is its interest.
                        let _ = control.send_response(channel, body);
                    }
                }
                Some((attempt, addresses)) = self.lookups.next() => self.dial(attempt, addresses),
                () = self.durable.outbox.flush() => {}
                () = sleep_until(wake.into()) => self.dial_due(),
                _ = tick.tick() => self.on_tick(),
            }
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Publish {
                topic,
                bytes,
                reply,
            } => {
                let _ = reply.send(self.publish(&topic, bytes));
            }
            Command::Report { token, verdict } => self.report(&token, verdict),
            Command::Request { node, bytes, reply } => self.request(node, bytes, reply),
            Command::OpenBulk { node, reply } => self.swarm.behaviour_mut().bulk.open(node, reply),
            Command::Dial { address, reply } => self.dial_for(&address, reply),
            Command::Learn { addresses } => {
                self.durable.learn(&addresses);
                self.dial_due();
            }
            Command::Suggest { addresses } => {
                self.durable.suggest(&addresses);
                self.dial_due();
            }
            Command::Retry => self.on_network_change(),
            Command::Ban { node, time, why } => self.ban(node, time, why),
            Command::Disconnect { node } => {
                if let Some(peer) = node.peer_id() {
                    // Whether it was connected makes no difference.
                    let _ = self.swarm.disconnect_peer_id(peer);
                }
            }
            // The loop ends before it gets here.
            Command::Shutdown => {}
            #[cfg(test)]
            Command::Panic => panic!("asked to"),
        }
    }

    fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) -> Option<End> {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour_event(event),
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } => {
                let node = NodeId::from_peer_id(&peer_id)?;
                let direction = match endpoint.is_dialer() {
                    true => Direction::Outbound,
                    false => Direction::Inbound,
                };
                let address = match &endpoint {
                    // Of who came through a relay only the relay's address is known.
                    ConnectedPoint::Listener { local_addr, .. } if endpoint.is_relayed() => {
                        local_addr
                    }
                    _ => endpoint.get_remote_address(),
                };
                let address = address.clone();
                let connection = Connection::new(connection_id, direction, bare(address));
                self.on_connected(node, connection);
            }
            SwarmEvent::ConnectionClosed {
                peer_id,
                connection_id,
                cause,
                ..
            } => {
                let node = NodeId::from_peer_id(&peer_id)?;
                tracing::debug!(%node, ?cause, "connection closed");
                self.on_closed(node, connection_id);
            }
            SwarmEvent::OutgoingConnectionError {
                connection_id,
                error,
                ..
            } => {
                let attempt = self.attempts.remove(&connection_id)?;
                self.on_dial_failed(attempt, &error);
            }
            SwarmEvent::IncomingConnectionError {
                send_back_addr,
                error,
                ..
            } => {
                self.durable.counters.inbound_failed += 1;
                tracing::debug!(from = %send_back_addr, %error, "inbound connection");
            }
            SwarmEvent::NewListenAddr {
                listener_id,
                address,
            } if is_circuit(&address) => self.on_reserved(listener_id, address),
            SwarmEvent::NewListenAddr {
                listener_id,
                address,
            } => {
                tracing::info!(%address, "listening");
                self.tell_as_relay(&address);
                self.durable.keep_port(listener_id, &address);
                self.listen_addresses.push(address.clone());
                self.durable.outbox.tell(NetworkEvent::Listening(address));
                self.on_network_change();
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.tell_not_as_relay(&address);
                self.listen_addresses.retain(|other| *other != address);
                self.on_network_change();
            }
            SwarmEvent::ListenerClosed { listener_id, .. } if self.on_unreserved(listener_id) => {}
            SwarmEvent::ExternalAddrConfirmed { address } => self.on_reachable(address),
            SwarmEvent::ExternalAddrExpired { address } => {
                let address = bare(address);
                self.external_addresses.retain(|other| *other != address);
            }
            SwarmEvent::ListenerClosed {
                reason, addresses, ..
            } => {
                tracing::error!(?addresses, ?reason, "listener closed");
                return Some(End::Broken);
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "listener"),
            // Attempts under way, and addresses that may be ours.
            _ => {}
        }
        None
    }

    fn on_behaviour_event(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Gossip(gossipsub::Event::Message {
                propagation_source,
                message_id,
                message,
            }) => {
                if let Some(from) = NodeId::from_peer_id(&propagation_source) {
                    self.on_gossip(from, message_id, message);
                }
            }
            BehaviourEvent::Gossip(gossipsub::Event::SlowPeer {
                peer_id,
                failed_messages,
            }) => {
                if let Some(node) = NodeId::from_peer_id(&peer_id) {
                    self.on_gossip_unsent(node, &failed_messages);
                }
            }
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                if let Some(node) = NodeId::from_peer_id(&peer_id) {
                    self.on_identified(node, &info);
                }
            }
            BehaviourEvent::Ping(ping::Event {
                peer,
                connection,
                result,
            }) => {
                if let Some(node) = NodeId::from_peer_id(&peer)
                    && self.peers.pinged(node, connection, &result)
                {
                    tracing::info!(%node, "peer does not answer any more");
                    self.swarm.close_connection(connection);
                }
            }
            BehaviourEvent::Control(event) => self.on_control(event),
            BehaviourEvent::Bulk(bulk::Event::Opened(stream)) => {
                let from = stream.node();
                if !(self.durable.outbox).offer(NetworkEvent::Bulk { from, stream }) {
                    self.durable.counters.bulk_dropped += 1;
                }
            }
            BehaviourEvent::Bulk(bulk::Event::Surplus(node)) => {
                tracing::debug!(%node, "surplus bulk stream reset");
                self.durable.counters.bulk_dropped += 1;
                self.durable.may(node, Act::Surplus);
            }
            BehaviourEvent::Mdns4(mdns::Event::Discovered(found))
            | BehaviourEvent::Mdns6(mdns::Event::Discovered(found)) => {
                let now = Instant::now();
                for (peer, address) in found {
                    let address = bare(address).with(Protocol::P2p(peer));
                    self.durable.dialer.learn(now, &address, Origin::Discovered);
                }
                self.dial_due();
            }
            BehaviourEvent::Relay(event) => self.on_relay(event),
            BehaviourEvent::Punch(event) => self.on_punch(event),
            // Subscriptions, sent identifications, and what expired: nothing follows from them.
            _ => {}
        }
    }

    fn on_connected(&mut self, node: NodeId, connection: Connection) {
        let (id, direction) = (connection.id, connection.direction);
        let address = connection.address.clone();
        tracing::debug!(%node, %address, ?direction, "connected");
        let now = Instant::now();
        let attempt = self.attempts.remove(&id);
        let target = attempt.as_ref().and_then(|attempt| attempt.target.as_ref());
        if direction == Direction::Outbound
            && let Some(peer) = node.peer_id()
        {
            let whole = address.clone().with(Protocol::P2p(peer));
            (self.durable.dialer).learn(Instant::now(), &whole, Origin::Remembered);
        }
        self.durable.dialer.connected(now, node, target);
        if direction == Direction::Inbound {
            self.durable.may(node, Act::Connection);
        }
        if self.peers.opened(node, connection) {
            tracing::info!(%node, %address, "peer up");
            self.durable.outbox.tell(NetworkEvent::PeerUp {
                node,
                address: address.clone(),
                direction,
            });
            self.show();
        }
        if direction == Direction::Outbound {
            let reached = NetworkEvent::Reached { node, address };
            self.durable.outbox.offer(reached);
        }
        if let Some(reply) = attempt.and_then(|attempt| attempt.reply) {
            let _ = reply.send(Ok(node));
        }
        // Of two nodes that dialed each other at once, one decides which connection stays. To one that
        // has been there for a while another is made on purpose, to see whether that can be done: it
        // may need the old one to tell.
        if self.durable.me < node && self.peers.is_fresh(node, now) {
            self.close_all_but_best(node);
        }
    }

    fn on_closed(&mut self, node: NodeId, id: ConnectionId) {
        if self.peers.closed(node, id) {
            tracing::info!(%node, "peer down");
            self.durable.outbox.tell(NetworkEvent::PeerDown { node });
            self.durable.dialer.disconnected(Instant::now(), node);
            self.show();
            self.dial_due();
        }
    }

    fn on_identified(&mut self, node: NodeId, info: &identify::Info) {
        let Some(near) = self.peers.is_on_this_host(node) else {
            return;
        };
        let uses_relays = self.durable.options.uses_relays();
        let listening = (info.listen_addrs.iter())
            .take(LISTEN_ADDRESSES_MAX)
            .filter_map(|address| match split(address)? {
                (Some(other), _) if other != node => None,
                (_, address) => Some(address),
            })
            // Its loopback address is not ours, unless it is on this machine.
            .filter(|address| is_dialable(address) && (near || !peers::is_loopback(address)))
            .filter(|address| uses_relays || !is_circuit(address));
        let listening: Vec<_> = listening.collect();
        if let Some(peer) = node.peer_id() {
            for address in &listening {
                let whole = address.clone().with(Protocol::P2p(peer));
                (self.durable.dialer).learn(Instant::now(), &whole, Origin::Remembered);
            }
        }
        self.peers.identified(node, &info.agent_version, listening);
    }

    fn on_gossip(&mut self, from: NodeId, id: MessageId, message: gossipsub::Message) {
        let may = self.durable.may(from, Act::Gossip);
        let topics = &self.durable.options.topics;
        // Topic names are their own hashes.
        let topic = (topics.iter()).find(|topic| topic.as_str() == message.topic.as_str());
        let token = || GossipToken {
            id: id.clone(),
            from,
        };
        let taken = match topic {
            Some(topic) if self.peers.contains(from) && may == Ruling::Fine => {
                let taken = self.durable.outbox.offer(NetworkEvent::Gossip {
                    from,
                    topic: topic.clone(),
                    bytes: message.data.into(),
                    token: token(),
                });
                self.durable.counters.gossip_dropped += u64::from(!taken);
                taken
            }
            Some(_) => {
                self.durable.counters.gossip_limited += 1;
                false
            }
            // The subscription filter lets none of these in.
            None => false,
        };
        if !taken {
            self.report(&token(), Verdict::Ignore);
        }
    }

    /// What could not be sent since the last heartbeat.
    fn on_gossip_unsent(&mut self, node: NodeId, failed: &FailedMessages) {
        let messages = failed.priority + failed.non_priority;
        tracing::info!(%node, messages, "gossip dropped: the peer takes it too slowly");
        self.durable.counters.gossip_unsent += messages as u64;
        self.durable
            .outbox
            .offer(NetworkEvent::GossipUnsent { node });
    }

    fn on_control(&mut self, event: control::Event) {
        match event {
            control::Event::Message {
                peer,
                message:
                    Message::Request {
                        request, channel, ..
                    },
                ..
            } => {
                let Some(from) = NodeId::from_peer_id(&peer) else {
                    return;
                };
                if self.durable.may(from, Act::Request) != Ruling::Fine {
                    self.durable.counters.requests_limited += 1;
                    return;
                }
                let (reply, answer) = oneshot::channel();
                let event = NetworkEvent::Request {
                    from,
                    bytes: request,
                    reply,
                };
                if self.durable.outbox.offer(event) {
                    self.replies.push(Box::pin(async move {
                        let answer = timeout(REQUEST_DEADLINE, answer).await;
                        (channel, answer.ok().and_then(Result::ok))
                    }));
                } else {
                    self.durable.counters.requests_dropped += 1;
                }
            }
            control::Event::Message {
                message:
                    Message::Response {
                        request_id,
                        response,
                    },
                ..
            } => self.answer(request_id, Ok(response)),
            control::Event::OutboundFailure {
                request_id, error, ..
            } => {
                let error = match error {
                    OutboundFailure::Timeout => RequestError::Deadline,
                    OutboundFailure::DialFailure => RequestError::NotConnected,
                    OutboundFailure::ConnectionClosed
                    | OutboundFailure::UnsupportedProtocols
                    | OutboundFailure::Io(_) => RequestError::Failed,
                };
                self.answer(request_id, Err(error));
            }
            control::Event::InboundFailure { peer, error, .. } => match error {
                // The node chose not to answer.
                InboundFailure::ResponseOmission => {}
                error => tracing::debug!(%peer, %error, "request of a peer"),
            },
            control::Event::ResponseSent { .. } => {}
        }
    }

    fn on_tick(&mut self) {
        let now = (Instant::now(), SystemTime::now());
        let ran = now.0.duration_since(self.clocks.0);
        let passed = now.1.duration_since(self.clocks.1).unwrap_or(ran);
        self.clocks = now;
        if passed.saturating_sub(ran) > SLEPT {
            tracing::info!("the machine slept");
            self.on_network_change();
        }
        for node in self.durable.ended_bans() {
            self.lift_ban(node);
        }
        for node in self.peers.with_old_surplus(now.0) {
            self.close_all_but_best(node);
        }
        self.reserve_due(now.0);
        self.cap_discovery();
        self.show();
    }

    fn on_network_change(&mut self) {
        self.durable.dialer.network_changed(Instant::now());
        self.dial_due();
        self.show();
    }

    fn publish(&mut self, topic: &Topic, bytes: Bytes) -> Result<(), PublishError> {
        let topic = IdentTopic::new(topic.as_str());
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        let published = gossip.publish(topic, bytes);
        published.map(drop).map_err(|error| match error {
            gossipsub::PublishError::Duplicate => PublishError::Duplicate,
            gossipsub::PublishError::NoPeersSubscribedToTopic => PublishError::NoPeers,
            gossipsub::PublishError::AllQueuesFull(_) => PublishError::Congested,
            gossipsub::PublishError::MessageTooLarge
            | gossipsub::PublishError::SigningError(_)
            | gossipsub::PublishError::TransformFailed(_) => PublishError::Unavailable,
        })
    }

    fn report(&mut self, token: &GossipToken, verdict: Verdict) {
        let acceptance = match verdict {
            Verdict::Accept => MessageAcceptance::Accept,
            Verdict::Ignore => MessageAcceptance::Ignore,
            Verdict::Reject => MessageAcceptance::Reject,
        };
        if let Some(peer) = token.from.peer_id() {
            let gossip = &mut self.swarm.behaviour_mut().gossip;
            // `false` for a message that is no longer remembered.
            gossip.report_message_validation_result(&token.id, &peer, acceptance);
        }
    }

    fn request(&mut self, node: NodeId, bytes: Bytes, reply: oneshot::Sender<RequestOutcome>) {
        let Some(waiting) = self.peers.requests(node) else {
            let _ = reply.send(Err(RequestError::NotConnected));
            return;
        };
        let Some(peer) = node.peer_id().filter(|_| *waiting < REQUESTS_PER_PEER_MAX) else {
            let _ = reply.send(Err(RequestError::TooMany));
            return;
        };
        *waiting += 1;
        let control = &mut self.swarm.behaviour_mut().control;
        let id = control.send_request(&peer, bytes);
        self.requests.insert(id, (node, reply));
    }

    fn answer(&mut self, id: OutboundRequestId, outcome: RequestOutcome) {
        if let Some((node, reply)) = self.requests.remove(&id) {
            if let Some(waiting) = self.peers.requests(node) {
                *waiting = waiting.saturating_sub(1);
            }
            let _ = reply.send(outcome);
        }
    }

    fn ban(&mut self, node: NodeId, time: Duration, why: String) {
        tracing::warn!(%node, ?time, why, "peer banned");
        if let Some(peer) = node.peer_id() {
            self.swarm.behaviour_mut().blocked.block_peer(peer);
        }
        if let Some(other) = self.durable.ban(node, time, why) {
            self.lift_ban(other);
        }
    }

    fn lift_ban(&mut self, node: NodeId) {
        if let Some(peer) = node.peer_id() {
            self.swarm.behaviour_mut().blocked.unblock_peer(peer);
        }
    }

    fn close_all_but_best(&mut self, node: NodeId) {
        for id in self.peers.all_but_best(node) {
            self.swarm.close_connection(id);
        }
    }

    fn show(&mut self) {
        let peers = self.peers.infos();
        let mut addresses = self.listen_addresses.clone();
        let others = self.external_addresses.iter();
        addresses.extend(
            others
                .filter(|other| !self.listen_addresses.contains(other))
                .cloned(),
        );
        self.durable.show(peers, addresses);
    }
}

/// An address without the name of whoever is there.
fn bare(address: Multiaddr) -> Multiaddr {
    split(&address).map_or(address, |(_, bare)| bare)
}
