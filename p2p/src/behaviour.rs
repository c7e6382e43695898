//! The protocols of the mesh and their settings.

use std::time::Duration;

use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::gossipsub::{
    self, ConfigBuilder, IdentTopic, IdentityTransform, MaxCountSubscriptionFilter,
    MessageAuthenticity, MessageId, PeerScoreParams, PeerScoreThresholds, TopicScoreParams,
    ValidationMode, WhitelistSubscriptionFilter,
};
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{
    PeerId, allow_block_list, autonat, dcutr, identify, mdns, memory_connection_limits, ping, relay,
};

use crate::identity::Identity;
use crate::network::{GOSSIP_LEN_MAX, NetworkOptions, StartError, TOPICS_MAX};
use crate::probe::Probe;
use crate::{bulk, control};

/// What nodes of one protocol generation call themselves.
pub(crate) const PROTOCOL_VERSION: &str = "/attic/1";

/// Connections that peers opened.
const INBOUND_MAX: u32 = 256;

/// Connections that we opened.
pub(crate) const OUTBOUND_MAX: u32 = 128;

/// Attempts in progress, of each direction.
pub(crate) const PENDING_MAX: u32 = 32;

/// Connections to one peer: one is kept, and both sides may be opening another.
const PER_PEER_MAX: u32 = 4;

/// Of a gossip message beyond its payload: source, number, topic, signature and key.
const GOSSIP_ENVELOPE_MAX: usize = 1024;

/// The longest gossip message with its envelope.
const GOSSIP_MESSAGE_MAX: usize = GOSSIP_LEN_MAX + GOSSIP_ENVELOPE_MAX;

/// What a gossip stream is read by (`asynchronous-codec`).
const GOSSIP_READ_LEN: usize = 8 * 1024;

/// What may have been read of a gossip stream and not been taken out yet: all but a byte of a
/// message, and then whatever one read brings.
///
/// `libp2p-gossipsub` 0.50 compares this, not the length of one message, with its `max_transmit_size`
/// (`validate_rpc_limits`), and gives up the stream when it is more. Whoever writes to that stream is
/// not told, and is not heard any more as long as the connection lasts.
const GOSSIP_BUFFER_MAX: usize = GOSSIP_MESSAGE_MAX + GOSSIP_READ_LEN;

/// Messages named in one `IHAVE`, and asked for of one peer in a second. At 18 bytes each they fit,
/// with the topic, into the 16 KiB of `max_control_message_size`; for more the stream is given up.
const GOSSIP_IDS_MAX: usize = 800;

/// Gossip waiting for one slow peer, in messages. What is beyond is dropped.
const GOSSIP_QUEUE_MAX: usize = 256;

/// Nodes that can be reached through this one.
const RESERVATIONS_MAX: usize = 256;

/// Connections this node carries, together and for one node that made them.
const CIRCUITS_MAX: usize = 64;
const CIRCUITS_PER_PEER_MAX: usize = 16;

/// How long, and for how many bytes in each direction, it carries one.
const CIRCUIT_TIME_MAX: Duration = Duration::from_secs(3600);
const CIRCUIT_BYTES_MAX: u64 = 4 << 20;

/// For so long a connection is young, and of two young ones to a peer one is closed. After it, a
/// second one is closed by whichever side notices.
pub(crate) const SURPLUS_AFTER: Duration = Duration::from_secs(5);

/// How often a connection is probed, and how long the answer may take.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

type Gossipsub = gossipsub::Behaviour<
    IdentityTransform,
    MaxCountSubscriptionFilter<WhitelistSubscriptionFilter>,
>;

/// All protocols of a connection. Limits come first: what they deny costs nothing further.
#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    limits: connection_limits::Behaviour,
    memory: Toggle<memory_connection_limits::Behaviour>,
    pub(crate) blocked: allow_block_list::Behaviour<allow_block_list::BlockedPeers>,
    pub(crate) gossip: Gossipsub,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    pub(crate) control: control::Behaviour,
    pub(crate) bulk: bulk::Behaviour,
    pub(crate) mdns4: Toggle<mdns::tokio::Behaviour>,
    pub(crate) mdns6: Toggle<mdns::tokio::Behaviour>,
    circuits: Toggle<relay::client::Behaviour>,
    relay: Toggle<relay::Behaviour>,
    punch: Toggle<dcutr::Behaviour>,
    probe: Toggle<Probe>,
    probed: Toggle<autonat::v2::server::Behaviour>,
}

impl Behaviour {
    /// The protocols as `options` want them.
    ///
    /// **Errors**: [`StartError::Gossip`]. mDNS that cannot start is left out, with a warning.
    pub(crate) fn new(
        identity: &Identity,
        options: &NetworkOptions,
        circuits: Option<relay::client::Behaviour>,
    ) -> Result<Behaviour, StartError> {
        let peer_id = identity.peer_id();
        let relay = (options.relay_server).then(|| relay_server(peer_id));
        // Without circuits there is nobody to meet.
        let punch = options.hole_punching && circuits.is_some();
        let punch = punch.then(|| dcutr::Behaviour::new(peer_id));
        let limits = ConnectionLimits::default()
            .with_max_pending_incoming(Some(PENDING_MAX))
            .with_max_pending_outgoing(Some(PENDING_MAX))
            .with_max_established_incoming(Some(INBOUND_MAX))
            .with_max_established_outgoing(Some(OUTBOUND_MAX))
            .with_max_established_per_peer(Some(PER_PEER_MAX));
        let memory = options
            .memory_bytes_max
            .map(memory_connection_limits::Behaviour::with_max_bytes);
        let identify =
            identify::Config::new(PROTOCOL_VERSION.to_owned(), identity.keypair().public())
                .with_agent_version(options.agent.clone())
                .with_push_listen_addr_updates(true)
                .with_cache_size(0);
        let ping = ping::Config::new()
            .with_interval(PING_INTERVAL)
            .with_timeout(PING_TIMEOUT);
        Ok(Behaviour {
            limits: connection_limits::Behaviour::new(limits),
            memory: memory.into(),
            blocked: allow_block_list::Behaviour::default(),
            gossip: gossip(identity, options)?,
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::new(ping),
            control: control::behaviour(),
            bulk: bulk::Behaviour::default(),
            mdns4: discovery(peer_id, options, false),
            mdns6: discovery(peer_id, options, true),
            circuits: circuits.into(),
            relay: relay.into(),
            punch: punch.into(),
            probe: options.autonat.then(Default::default).into(),
            probed: options.autonat.then(Default::default).into(),
        })
    }
}

/// Carries connections between members that cannot reach each other. Enough for what they say, too
/// little for what they store: that would cost this node all of its bandwidth.
fn relay_server(me: PeerId) -> relay::Behaviour {
    let config = relay::Config {
        max_reservations: RESERVATIONS_MAX,
        max_circuits: CIRCUITS_MAX,
        max_circuits_per_peer: CIRCUITS_PER_PEER_MAX,
        max_circuit_duration: CIRCUIT_TIME_MAX,
        max_circuit_bytes: CIRCUIT_BYTES_MAX,
        ..relay::Config::default()
    };
    let mut relay = relay::Behaviour::new(me, config);
    // Whether others can reach it is for whoever configured it to know.
    relay.set_status(Some(relay::Status::Enable));
    relay
}

/// mDNS over IPv4 or IPv6, unless it is off or cannot be had.
pub(crate) fn discovery(
    me: PeerId,
    options: &NetworkOptions,
    enable_ipv6: bool,
) -> Toggle<mdns::tokio::Behaviour> {
    if !options.mdns {
        return None.into();
    }
    let config = mdns::Config {
        ttl: Duration::from_secs(120),
        query_interval: Duration::from_secs(30),
        enable_ipv6,
    };
    let behaviour = mdns::tokio::Behaviour::new(config, me);
    behaviour
        .inspect_err(|error| tracing::warn!(%error, enable_ipv6, "no mDNS"))
        .ok()
        .into()
}

fn gossip(identity: &Identity, options: &NetworkOptions) -> Result<Gossipsub, StartError> {
    let topics: Vec<_> = (options.topics.iter())
        .map(|topic| IdentTopic::new(topic.as_str()))
        .collect();
    let mut config = ConfigBuilder::default();
    for topic in &topics {
        config.max_transmit_size_for_topic(GOSSIP_MESSAGE_MAX, topic.hash());
    }
    // Few messages, small meshes: with up to nine nodes everybody is in everybody's.
    let config = config
        .mesh_n(4)
        .mesh_n_low(3)
        .mesh_n_high(8)
        .mesh_outbound_min(1)
        .gossip_lazy(3)
        .flood_publish(false)
        .heartbeat_initial_delay(Duration::from_millis(200))
        .history_length(10)
        .history_gossip(5)
        .duplicate_cache_time(Duration::from_secs(120))
        .max_transmit_size(GOSSIP_BUFFER_MAX)
        .max_control_messages_sent(GOSSIP_IDS_MAX)
        .connection_handler_queue_len(GOSSIP_QUEUE_MAX)
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        .message_id_fn(|message| MessageId::new(&blake3::hash(&message.data).as_bytes()[..16]))
        .build()
        .map_err(|error| StartError::Gossip(error.to_string()))?;
    let filter = MaxCountSubscriptionFilter {
        filter: WhitelistSubscriptionFilter(topics.iter().map(IdentTopic::hash).collect()),
        max_subscribed_topics: TOPICS_MAX,
        max_subscriptions_per_request: 2 * TOPICS_MAX,
    };
    let mut gossip = Gossipsub::new_with_subscription_filter(
        MessageAuthenticity::Signed(identity.keypair().clone()),
        config,
        filter,
    )
    .map_err(|error| StartError::Gossip(error.to_owned()))?;
    let (params, thresholds) = scores(&topics);
    gossip
        .with_peer_score(params, thresholds)
        .map_err(StartError::Gossip)?;
    for topic in &topics {
        gossip
            .subscribe(topic)
            .map_err(|error| StartError::Gossip(error.to_string()))?;
    }
    Ok(gossip)
}

/// Only what cannot happen to an honest peer costs points: messages that were rejected. A quiet
/// peer, a slow one and a whole office behind one address are no offenders.
fn scores(topics: &[IdentTopic]) -> (PeerScoreParams, PeerScoreThresholds) {
    let topic = TopicScoreParams {
        topic_weight: 1.0,
        time_in_mesh_weight: 0.0,
        first_message_deliveries_weight: 0.0,
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        // Squared and halved every seven seconds: the fourth within seconds silences a peer.
        invalid_message_deliveries_weight: -10.0,
        invalid_message_deliveries_decay: 0.9,
        ..TopicScoreParams::default()
    };
    let params = PeerScoreParams {
        topics: (topics.iter())
            .map(|name| (name.hash(), topic.clone()))
            .collect(),
        ip_colocation_factor_weight: 0.0,
        behaviour_penalty_weight: 0.0,
        slow_peer_weight: 0.0,
        ..PeerScoreParams::default()
    };
    let thresholds = PeerScoreThresholds {
        gossip_threshold: -40.0,
        publish_threshold: -80.0,
        graylist_threshold: -100.0,
        ..PeerScoreThresholds::default()
    };
    (params, thresholds)
}
