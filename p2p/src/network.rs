//! The mesh as the rest of the node sees it: a handle to ask with, and a queue of events.
//!
//! One task owns all connections. It decides quickly and never waits for the node: what the node is
//! too slow to take is dropped as [`NetworkEvent`] says for each kind, except that a peer came or
//! went, which is always told. Should the task panic, it is started anew; meanwhile requests fail.
//!
//! The handle is cheap to clone. All its methods may be dropped at any point: what was asked for
//! may then happen or not.

use std::fmt::{Display, Formatter, Result as FmtResult};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use libp2p::Multiaddr;
use libp2p::gossipsub::MessageId;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};

pub use crate::dialer::is_node_address;

use crate::bulk::{BulkStream, OpenError};
use crate::control::REQUEST_LEN_MAX;
use crate::gate::{Gate, Refusal};
use crate::identity::Identity;
use crate::ids::NodeId;
use crate::supervisor;

/// Longest gossip message, in bytes.
pub const GOSSIP_LEN_MAX: usize = 64 * 1024;

/// Topics of a node.
pub const TOPICS_MAX: usize = 16;

/// Events that wait for the node.
pub const EVENTS_MAX: usize = 1024;

/// Wishes that wait for the network's task. Whoever has one more waits.
const COMMANDS_MAX: usize = 256;

/// What a network is started with.
#[derive(Clone, Debug)]
pub struct NetworkOptions {
    /// Where to listen: `/ip4/0.0.0.0/tcp/0` and the like. Only TCP.
    pub listen: Vec<Multiaddr>,
    /// Whom to be connected to always: from configuration and tickets, with `/p2p/…` or without.
    /// Host names (`/dns/…`) are resolved by the system.
    pub peers: Vec<Multiaddr>,
    /// Addresses that [`NetworkEvent::Reached`] told in earlier runs, with `/p2p/…`.
    pub remembered: Vec<Multiaddr>,
    /// Whether to find nodes on the local network, and to be found.
    pub mdns: bool,
    /// Addresses of this node besides those it listens at, for others to be told.
    pub external: Vec<Multiaddr>,
    /// Whether to connect through relays where an address says so (`…/p2p/<relay>/p2p-circuit`).
    pub relay_client: bool,
    /// Relays to be reached through, with `/p2p/…`. Being connected to them always is part of it.
    pub relays: Vec<Multiaddr>,
    /// Whether to be a relay for other members, within limits that keep bulk streams out.
    pub relay_server: bool,
    /// Whether two nodes that met through a relay try to reach each other without it.
    pub hole_punching: bool,
    /// Whether to ask peers which of our addresses they can reach, and to find out for them.
    pub autonat: bool,
    /// What gossip is about. At most [`TOPICS_MAX`]; nothing else is forwarded.
    pub topics: Vec<Topic>,
    /// Name and version shown to peers.
    pub agent: String,
    /// Memory of the process beyond which new connections are denied, in bytes.
    pub memory_bytes_max: Option<usize>,
    /// Decides jitter; different for every node and start.
    pub seed: u64,
}

impl Default for NetworkOptions {
    /// Nobody to connect to, and no place to listen.
    fn default() -> NetworkOptions {
        NetworkOptions {
            listen: Vec::new(),
            peers: Vec::new(),
            remembered: Vec::new(),
            mdns: false,
            external: Vec::new(),
            relay_client: false,
            relays: Vec::new(),
            relay_server: false,
            hole_punching: false,
            autonat: false,
            topics: Vec::new(),
            agent: concat!("attic-node/", env!("CARGO_PKG_VERSION")).to_owned(),
            memory_bytes_max: None,
            seed: 0,
        }
    }
}

impl NetworkOptions {
    /// Whether circuits through relays can be made.
    pub(crate) fn uses_relays(&self) -> bool {
        self.relay_client || !self.relays.is_empty()
    }
}

/// What a gossip message is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(Arc<str>);

impl Topic {
    /// The topic of this name, the same for all who use it.
    pub fn new(name: impl Into<Arc<str>>) -> Topic {
        Topic(name.into())
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Display for Topic {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str(&self.0)
    }
}

/// What the network tells the node. At most [`EVENTS_MAX`] wait; the drops are counted in
/// [`Counters`].
#[derive(Debug)]
pub enum NetworkEvent {
    /// An admitted node is connected, the first time since it was not. Never dropped.
    PeerUp {
        /// Who.
        node: NodeId,
        /// Where it is: for an inbound connection, not where it listens.
        address: Multiaddr,
        /// Who dialed.
        direction: Direction,
    },
    /// The last connection to a node is gone. Never dropped, but an up and a down that were both
    /// not taken yet may cancel each other.
    PeerDown {
        /// Who.
        node: NodeId,
    },
    /// Somebody was reached by dialing this address, which may be kept for
    /// [`NetworkOptions::remembered`]. Dropped when the queue is full: it comes again.
    Reached {
        /// Who.
        node: NodeId,
        /// Where, without `/p2p/…`.
        address: Multiaddr,
    },
    /// A gossip message, sent on to others only after [`Network::report`] accepts it. Dropped
    /// when the queue is full or its sender sends too many: anti-entropy brings it.
    Gossip {
        /// Who gave it to us; not who wrote it.
        from: NodeId,
        /// What about.
        topic: Topic,
        /// At most [`GOSSIP_LEN_MAX`].
        bytes: Bytes,
        /// To be handed to [`Network::report`].
        token: GossipToken,
    },
    /// Gossip for this peer was dropped because it did not take it in time. Told at most once a second
    /// for each peer. Dropped when the queue is full: anti-entropy brings the peer what it lacks, later.
    GossipUnsent {
        /// Who lacks it.
        node: NodeId,
    },
    /// A control request. Dropping `reply` tells the peer that it failed. Dropped when the queue
    /// is full, with the same effect.
    Request {
        /// Who asks.
        from: NodeId,
        /// At most [`REQUEST_LEN_MAX`].
        bytes: Bytes,
        /// Takes at most [`RESPONSE_LEN_MAX`](crate::control::RESPONSE_LEN_MAX), within [`REQUEST_DEADLINE`](crate::control::REQUEST_DEADLINE).
        reply: oneshot::Sender<Bytes>,
    },
    /// A peer opened a bulk stream. Reset when the queue is full: the peer tries again.
    Bulk {
        /// Who.
        from: NodeId,
        /// The stream.
        stream: BulkStream,
    },
    /// A peer does so much by itself that it is no honest one. What becomes of it is the node's to
    /// decide, see [`Network::ban`]. Told again after as much again.
    Misbehaved {
        /// Who.
        node: NodeId,
        /// What it does.
        what: Misbehaviour,
    },
    /// We listen at this address. Never dropped.
    Listening(Multiaddr),
}

/// What no honest peer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Misbehaviour {
    /// Sends gossip without measure.
    #[error("floods with gossip")]
    GossipFlood,
    /// Asks without measure.
    #[error("floods with requests")]
    RequestFlood,
    /// Opens streams without measure.
    #[error("floods with streams")]
    StreamFlood,
    /// Connects without measure.
    #[error("connects without end")]
    ConnectionFlood,
}

/// Who opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The peer.
    Inbound,
    /// We.
    Outbound,
}

/// Names a gossip message that waits for a verdict.
#[derive(Debug)]
pub struct GossipToken {
    pub(crate) id: MessageId,
    pub(crate) from: NodeId,
}

/// What becomes of a gossip message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Good: sent on to others.
    Accept,
    /// Not to be sent on, and nobody's fault.
    Ignore,
    /// Bad: whoever gave it to us is scored for it, and shunned after a few.
    Reject,
}

/// How the network stands.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Who is connected, ordered by node.
    pub peers: Vec<PeerInfo>,
    /// Where we listen, through relays too, and what else others can reach.
    pub listen_addresses: Vec<Multiaddr>,
    /// Who is kept out, ordered by node.
    pub bans: Vec<BanInfo>,
    /// What happened since the start.
    pub counters: Counters,
}

/// A connected node.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// Who.
    pub node: NodeId,
    /// Where: of the connection first, then where it says it listens.
    pub addresses: Vec<Multiaddr>,
    /// Who dialed.
    pub direction: Direction,
    /// Since when there is a connection.
    pub since: Instant,
    /// The last round trip that was measured; `None` in the first moments.
    pub rtt: Option<Duration>,
    /// Name and version it gives itself; empty until it has. At most 128 characters.
    pub agent: String,
    /// Connections to it: one, and for moments another.
    pub connections: usize,
    /// Whether a relay carries all of them: then there are no bulk streams.
    pub relayed: bool,
}

/// A node that is kept out.
#[derive(Clone, Debug)]
pub struct BanInfo {
    /// Who.
    pub node: NodeId,
    /// Until when.
    pub until: Instant,
    /// What for.
    pub why: String,
}

/// What happened since the start, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Remotes that were not admitted, or failed on the way.
    pub inbound_failed: u64,
    /// Attempts of ours that reached nobody.
    pub dials_failed: u64,
    /// Attempts of ours that were refused, or that we ended ourselves.
    pub dials_refused: u64,
    /// Gossip messages dropped because the node did not take them in time.
    pub gossip_dropped: u64,
    /// Gossip messages dropped because their sender sent too many.
    pub gossip_limited: u64,
    /// Gossip messages for a peer dropped because it did not take them in time; for each peer one.
    pub gossip_unsent: u64,
    /// Requests dropped because the node did not take them in time.
    pub requests_dropped: u64,
    /// Requests dropped because their sender sent too many.
    pub requests_limited: u64,
    /// Bulk streams reset because the node did not take them, or the peer had too many.
    pub bulk_dropped: u64,
    /// Starts of the network's task after a panic.
    pub restarts: u64,
    /// Times a peer found that it can reach an address of ours.
    pub confirmed: u64,
    /// Circuits carried for others.
    pub circuits_carried: u64,
    /// Direct connections made with somebody who was reached through a relay before.
    pub punched: u64,
    /// Times that did not succeed.
    pub punches_failed: u64,
}

/// A handle to the running network. The network ends when the last one is dropped, and when
/// [`Network::shutdown`] is called.
#[derive(Clone, Debug)]
pub struct Network {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) status: watch::Receiver<Arc<Status>>,
}

impl Network {
    /// Starts the network, in the tokio runtime this is called in.
    ///
    /// **Errors**: [`StartError`]: nothing runs then.
    pub fn start(
        options: NetworkOptions,
        gate: Arc<dyn Gate>,
        identity: Identity,
    ) -> Result<(Network, mpsc::Receiver<NetworkEvent>), StartError> {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (events, outbox) = mpsc::channel(EVENTS_MAX);
        let (status, watched) = watch::channel(Arc::default());
        supervisor::start(options, gate, identity, inbox, events, status)?;
        let network = Network {
            commands,
            status: watched,
        };
        Ok((network, outbox))
    }

    /// Sends a message to all who follow the topic, through whoever is near.
    ///
    /// **Errors**: [`PublishError`]; the message is not sent.
    pub async fn publish(&self, topic: &Topic, bytes: Bytes) -> Result<(), PublishError> {
        if bytes.len() > GOSSIP_LEN_MAX {
            return Err(PublishError::Length(bytes.len()));
        }
        let topic = topic.clone();
        let published = self.ask(|reply| Command::Publish {
            topic,
            bytes,
            reply,
        });
        published.await.unwrap_or(Err(PublishError::Unavailable))
    }

    /// Says what becomes of a gossip message. Later than about ten seconds after it came, and for
    /// a message from before a restart, this has no effect.
    pub async fn report(&self, token: GossipToken, verdict: Verdict) {
        let _ = self.commands.send(Command::Report { token, verdict }).await;
    }

    /// Sends a control request and waits for the response, at most [`REQUEST_DEADLINE`](crate::control::REQUEST_DEADLINE).
    ///
    /// **Errors**: [`RequestError`]; the peer may have seen the request.
    pub async fn request(&self, node: NodeId, bytes: Bytes) -> Result<Bytes, RequestError> {
        if bytes.len() > REQUEST_LEN_MAX {
            return Err(RequestError::Length(bytes.len()));
        }
        let asked = self.ask(|reply| Command::Request { node, bytes, reply });
        asked.await.unwrap_or(Err(RequestError::Unavailable))
    }

    /// Opens a bulk stream to a node that is connected without a relay.
    ///
    /// **Errors**: [`OpenError`].
    pub async fn open_bulk(&self, node: NodeId) -> Result<BulkStream, OpenError> {
        let opened = self.ask(|reply| Command::OpenBulk { node, reply });
        opened.await.unwrap_or(Err(OpenError::Unavailable))
    }

    /// Connects to whoever is at `address`, now, and says who that is.
    ///
    /// One attempt, within about ten seconds; see [`Network::learn`] for more. With a trailing
    /// `/p2p/…` nobody else will do, and an existing connection does.
    ///
    /// **Errors**: [`DialError`], with the reason of a peer that refuses us.
    pub async fn dial(&self, address: Multiaddr) -> Result<NodeId, DialError> {
        let dialed = self.ask(|reply| Command::Dial { address, reply });
        dialed.await.unwrap_or(Err(DialError::Unavailable))
    }

    /// Stays connected to whoever is at these addresses from now on, as [`NetworkOptions::peers`].
    pub async fn learn(&self, addresses: Vec<Multiaddr>) {
        let _ = self.commands.send(Command::Learn { addresses }).await;
    }

    /// Tries to connect to whom a peer says to be at these addresses, each with `/p2p/…`; others are
    /// ignored. They push out no other addresses, and are forgotten before others are.
    pub async fn suggest(&self, addresses: Vec<Multiaddr>) {
        let _ = self.commands.send(Command::Suggest { addresses }).await;
    }

    /// Tries everybody it knows and is not connected to, at once, as after a change of the network:
    /// whoever refused this node may take it now.
    pub async fn retry(&self) {
        let _ = self.commands.send(Command::Retry).await;
    }

    /// Closes all connections to `node` and makes none for a while; a longer ban stands. At most
    /// 1,024 bans are kept: beyond, the one that ends first is lifted.
    pub async fn ban(&self, node: NodeId, time: Duration, why: impl Into<String> + Send) {
        let why = why.into();
        let _ = self.commands.send(Command::Ban { node, time, why }).await;
    }

    /// Closes all connections to `node`. It may come back, and we may dial it again.
    pub async fn disconnect(&self, node: NodeId) {
        let _ = self.commands.send(Command::Disconnect { node }).await;
    }

    /// How the network stands, at most a second ago.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status.borrow())
    }

    /// Who is connected, ordered by node.
    pub fn peers(&self) -> Vec<PeerInfo> {
        self.status.borrow().peers.clone()
    }

    /// Where we listen.
    pub fn listen_addresses(&self) -> Vec<Multiaddr> {
        self.status.borrow().listen_addresses.clone()
    }

    /// Ends the network and waits until its task has ended. All handles are of no use after it.
    pub async fn shutdown(&self) {
        let _ = self.commands.send(Command::Shutdown).await;
        self.commands.closed().await;
    }

    /// Sends a command with a reply; `None` if the network ended or restarted.
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    }
}

/// A wish of the node. Dropping one unanswered tells its sender that the network is not available.
#[derive(Debug)]
pub(crate) enum Command {
    Publish {
        topic: Topic,
        bytes: Bytes,
        reply: oneshot::Sender<Result<(), PublishError>>,
    },
    Report {
        token: GossipToken,
        verdict: Verdict,
    },
    Request {
        node: NodeId,
        bytes: Bytes,
        reply: oneshot::Sender<Result<Bytes, RequestError>>,
    },
    OpenBulk {
        node: NodeId,
        reply: oneshot::Sender<Result<BulkStream, OpenError>>,
    },
    Dial {
        address: Multiaddr,
        reply: oneshot::Sender<Result<NodeId, DialError>>,
    },
    Learn {
        addresses: Vec<Multiaddr>,
    },
    Suggest {
        addresses: Vec<Multiaddr>,
    },
    Retry,
    Ban {
        node: NodeId,
        time: Duration,
        why: String,
    },
    Disconnect {
        node: NodeId,
    },
    Shutdown,
    #[cfg(test)]
    Panic,
}

/// Why a network does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// Nothing can listen there.
    #[error("listen at {address}")]
    Listen {
        /// Where.
        address: Multiaddr,
        /// What the system said.
        source: io::Error,
    },
    /// The identity cannot sign handshakes.
    #[error("prepare handshakes")]
    Identity(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The settings of gossip contradict each other.
    #[error("set up gossip: {0}")]
    Gossip(String),
}

/// Why a message was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PublishError {
    /// Longer than [`GOSSIP_LEN_MAX`].
    #[error("a gossip message of {0} bytes")]
    Length(usize),
    /// Nobody is there to take it.
    #[error("no peer follows this topic")]
    NoPeers,
    /// The same bytes were sent within two minutes.
    #[error("published already")]
    Duplicate,
    /// All who are there are too slow.
    #[error("the peers are too slow")]
    Congested,
    /// The network is not running.
    #[error("the network is not available")]
    Unavailable,
}

/// Why there is no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// Longer than [`REQUEST_LEN_MAX`].
    #[error("a request of {0} bytes")]
    Length(usize),
    /// There is no connection to the peer.
    #[error("not connected")]
    NotConnected,
    /// [`REQUESTS_PER_PEER_MAX`](crate::control::REQUESTS_PER_PEER_MAX) wait for this peer already.
    #[error("too many requests wait for this peer")]
    TooMany,
    /// No response within [`REQUEST_DEADLINE`](crate::control::REQUEST_DEADLINE).
    #[error("no response in time")]
    Deadline,
    /// The peer or the connection went away, or the peer did not answer this request. Also when two
    /// nodes dialed each other at once and one of the connections is closed; ask again.
    #[error("the peer did not answer")]
    Failed,
    /// The network is not running.
    #[error("the network is not available")]
    Unavailable,
}

/// Why nobody was reached.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DialError {
    /// Whoever is there does not want us, or we do not want it.
    #[error("{0}")]
    Refused(Refusal),
    /// Nobody answers there, or nobody of this kind.
    #[error("{0}")]
    Unreachable(String),
    /// The address is of a kind that cannot be dialed.
    #[error("{0} is not an address of a node")]
    Address(Multiaddr),
    /// It is our own.
    #[error("this is the address of this node")]
    Myself,
    /// Somebody else answers there.
    #[error("another node answers there: {0}")]
    Other(NodeId),
    /// As many attempts as may be are being made, or the peer is banned.
    #[error("no connection may be made now")]
    Denied,
    /// The network is not running.
    #[error("the network is not available")]
    Unavailable,
}

#[cfg(test)]
mod tests;
