use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use attic_p2p::bulk::{BulkStream, FRAME_LEN_MAX, OpenError, STREAMS_OUT_MAX};
use attic_p2p::control::{REQUEST_LEN_MAX, RESPONSE_LEN_MAX};
use attic_p2p::gate::{Answer, Gate, Refusal};
use attic_p2p::identity::Identity;
use attic_p2p::ids::NodeId;
use attic_p2p::network::{
    DialError, GOSSIP_LEN_MAX, Network, NetworkEvent, NetworkOptions, PublishError, RequestError,
    StartError, Topic, Verdict,
};
use attic_p2p::upgrade::with_streams;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt, join, ready};
use libp2p::Multiaddr;
use libp2p::gossipsub::{self, IdentTopic};
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{self, Swarm, SwarmEvent};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// Far more than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Admits whoever says the same word.
pub(crate) struct Word(pub(crate) &'static str);

impl Gate for Word {
    fn hello(&self, _: NodeId) -> Vec<u8> {
        self.0.into()
    }

    fn answer(&self, _: NodeId, hello: &[u8]) -> BoxFuture<'_, Answer> {
        let admit = hello == self.0.as_bytes();
        let reply = if admit { self.0 } else { "no" };
        let reply = reply.into();
        ready(Answer { reply, admit }).boxed()
    }

    fn accept(&self, _: NodeId, reply: &[u8]) -> Result<(), Refusal> {
        match reply {
            b"no" => Err(Refusal::new("they do not like our word")),
            reply if reply == self.0.as_bytes() => Ok(()),
            _ => Err(Refusal::new("we do not like their word")),
        }
    }
}

/// A gate that admits everybody as a listener, and nobody as a dialer.
struct Picky;

impl Gate for Picky {
    fn hello(&self, _: NodeId) -> Vec<u8> {
        b"word".into()
    }

    fn answer(&self, _: NodeId, _: &[u8]) -> BoxFuture<'_, Answer> {
        panic!("a gate that panics")
    }

    fn accept(&self, _: NodeId, _: &[u8]) -> Result<(), Refusal> {
        Err(Refusal::new("we like nobody"))
    }
}

pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) address: Multiaddr,
    pub(crate) network: Network,
    pub(crate) events: mpsc::Receiver<NetworkEvent>,
}

fn topic() -> Topic {
    Topic::new("test")
}

pub(crate) fn options() -> NetworkOptions {
    NetworkOptions {
        listen: vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()],
        topics: vec![topic()],
        ..NetworkOptions::default()
    }
}

impl Node {
    async fn start(seed: u8) -> Node {
        Node::with(seed, options(), Arc::new(Word("word"))).await
    }

    pub(crate) async fn with(seed: u8, options: NetworkOptions, gate: Arc<dyn Gate>) -> Node {
        let identity = Identity::from_seed([seed; 32]);
        let id = identity.node_id();
        let (network, mut events) = Network::start(options, gate, identity).unwrap();
        let address = match next(&mut events).await {
            NetworkEvent::Listening(address) => address,
            event => panic!("{event:?}"),
        };
        let address = address.with(Protocol::P2p(id.peer_id().unwrap()));
        Node {
            id,
            address,
            network,
            events,
        }
    }

    /// Connects two nodes; both have heard of it.
    async fn meet(&mut self, other: &mut Node) {
        let met = self.network.dial(other.address.clone()).await;
        assert_eq!(met, Ok(other.id));
        self.up(other.id).await;
        other.up(self.id).await;
    }

    pub(crate) async fn up(&mut self, peer: NodeId) {
        self.until(|event| matches!(event, NetworkEvent::PeerUp { node, .. } if *node == peer))
            .await;
    }

    async fn down(&mut self, peer: NodeId) {
        self.until(|event| matches!(event, NetworkEvent::PeerDown { node } if *node == peer))
            .await;
    }

    /// The next event of this kind; others are passed over.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&NetworkEvent) -> bool) -> NetworkEvent {
        loop {
            let event = next(&mut self.events).await;
            if wanted(&event) {
                return event;
            }
        }
    }

    async fn gossip(&mut self) -> NetworkEvent {
        self.until(|event| matches!(event, NetworkEvent::Gossip { .. }))
            .await
    }

    pub(crate) async fn bulk(&mut self) -> BulkStream {
        let event = self.until(|event| matches!(event, NetworkEvent::Bulk { .. }));
        match event.await {
            NetworkEvent::Bulk { stream, .. } => stream,
            _ => unreachable!(),
        }
    }

    /// Publishes as soon as somebody is there to take it.
    async fn publish(&self, text: &'static str) {
        eventually(async || {
            let bytes = Bytes::from_static(text.as_bytes());
            match self.network.publish(&topic(), bytes).await {
                Ok(()) => true,
                Err(PublishError::NoPeers) => false,
                Err(error) => panic!("{error}"),
            }
        })
        .await;
    }

    /// Answers requests with what was asked, for ever.
    fn echo(mut self) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move {
            while let Some(event) = self.events.recv().await {
                if let NetworkEvent::Request { bytes, reply, .. } = event {
                    let _ = reply.send(bytes);
                }
            }
        })
    }
}

/// Long messages that fit into the window of a stream, so that they are sent without a pause.
const BURST: u64 = 12;

/// A message of the greatest length, different for each number.
fn long(number: u64) -> Bytes {
    let mut bytes = vec![0; GOSSIP_LEN_MAX];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    bytes.into()
}

/// A member that speaks gossip alone, and does nothing by itself.
struct Gossiper {
    id: NodeId,
    /// As long as nobody polls it, what its connection reads piles up there.
    swarm: Swarm<gossipsub::Behaviour>,
}

impl Gossiper {
    /// One that is connected to `other`, and has heard what it has subscribed to.
    async fn meet(seed: u8, other: &mut Node) -> Gossiper {
        let identity = Identity::from_seed([seed; 32]);
        let id = identity.node_id();
        let keypair = Keypair::ed25519_from_bytes([seed; 32]).unwrap();
        let peer = keypair.public().to_peer_id();
        let transport = with_streams(&identity, Arc::new(Word("word")), None, 64).unwrap();
        let author = gossipsub::MessageAuthenticity::Signed(keypair);
        let config = gossipsub::Config::default();
        let mut gossip = gossipsub::Behaviour::new(author, config).unwrap();
        gossip
            .subscribe(&IdentTopic::new(topic().as_str()))
            .unwrap();
        let config = swarm::Config::with_executor(|task| {
            tokio::spawn(task);
        });
        let config = config.with_idle_connection_timeout(PATIENCE);
        let mut swarm = Swarm::new(transport, gossip, peer, config);
        swarm.dial(other.address.clone()).unwrap();
        let subscribed = async {
            loop {
                let event = swarm.select_next_some().await;
                if let SwarmEvent::Behaviour(gossipsub::Event::Subscribed { .. }) = event {
                    return;
                }
            }
        };
        timeout(PATIENCE, subscribed).await.expect("a subscription");
        other.up(id).await;
        Gossiper { id, swarm }
    }

    /// Queues a message; it is sent when this task waits.
    fn publish(&mut self, bytes: Bytes) {
        let gossip = self.swarm.behaviour_mut();
        let topic = IdentTopic::new(topic().as_str());
        gossip.publish(topic, bytes).unwrap();
    }

    /// Takes what comes, for ever.
    async fn run(mut self) {
        loop {
            self.swarm.select_next_some().await;
        }
    }
}

async fn next(events: &mut mpsc::Receiver<NetworkEvent>) -> NetworkEvent {
    let event = timeout(PATIENCE, events.recv()).await;
    event.expect("an event in time").expect("a running network")
}

/// Asks again and again until it is so.
pub(crate) async fn eventually(mut is_so: impl AsyncFnMut() -> bool) {
    let asked = async {
        while !is_so().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, asked).await.expect("so in time");
}

#[tokio::test]
async fn admitted_nodes_are_peers_of_each_other() {
    let (mut a, mut b) = (Node::start(1).await, Node::start(2).await);
    a.meet(&mut b).await;
    for (node, peer) in [(&a, &b), (&b, &a)] {
        eventually(async || {
            let peers = node.network.peers();
            let shown = peers.iter().any(|info| {
                info.node == peer.id
                    && info.connections == 1
                    && info.agent.starts_with("attic-node/")
                    && info.rtt.is_some()
            });
            assert!(peers.len() <= 1, "{peers:?}");
            shown
        })
        .await;
    }
    assert_eq!(a.network.dial(b.address.clone()).await, Ok(b.id));
    a.network.shutdown().await;
    b.down(a.id).await;
    assert_eq!(a.network.dial(b.address).await, Err(DialError::Unavailable));
}

#[tokio::test]
async fn a_refused_dialer_learns_why_and_nobody_is_a_peer() {
    let mut a = Node::with(1, options(), Arc::new(Word("wort"))).await;
    let mut b = Node::start(2).await;
    let refusal = Refusal::new("they do not like our word");
    let dialed = a.network.dial(b.address.clone()).await;
    assert_eq!(dialed, Err(DialError::Refused(refusal)));
    eventually(async || b.network.status().counters.inbound_failed == 1).await;
    assert!(a.network.peers().is_empty() && b.network.peers().is_empty());
    assert!(a.events.try_recv().is_err() && b.events.try_recv().is_err());
}

#[tokio::test]
async fn a_dialer_may_refuse_a_listener() {
    let a = Node::with(1, options(), Arc::new(Picky)).await;
    let mut b = Node::start(2).await;
    let dialed = a.network.dial(b.address.clone()).await;
    let refusal = Refusal::new("we like nobody");
    assert_eq!(dialed, Err(DialError::Refused(refusal)));
    eventually(async || b.network.status().counters.inbound_failed == 1).await;
    assert!(b.events.try_recv().is_err());
}

#[tokio::test]
async fn a_gate_that_panics_ends_one_connection_and_nothing_else() {
    let a = Node::with(1, options(), Arc::new(Picky)).await;
    let b = Node::start(2).await;
    let dialed = b.network.dial(a.address.clone()).await;
    assert!(
        matches!(dialed, Err(DialError::Unreachable(_))),
        "{dialed:?}"
    );
    assert_eq!(a.network.status().counters.restarts, 0);
}

#[tokio::test]
async fn dialing_nobody_says_what_is_wrong() {
    let (a, b) = (Node::start(1).await, Node::start(2).await);
    b.network.shutdown().await;
    let dialed = a.network.dial(b.address).await;
    assert!(
        matches!(&dialed, Err(DialError::Unreachable(text)) if text.contains("refused")),
        "{dialed:?}"
    );
    let mine = a.address.clone();
    assert_eq!(a.network.dial(mine.clone()).await, Err(DialError::Myself));
    let mut nameless = mine.clone();
    nameless.pop();
    assert_eq!(
        a.network.dial(nameless.clone()).await,
        Err(DialError::Myself)
    );
    let c = Node::start(3).await;
    let wrong = nameless.with(Protocol::P2p(c.id.peer_id().unwrap()));
    assert_eq!(c.network.dial(wrong.clone()).await, Err(DialError::Myself));
    let d = Node::start(4).await;
    assert_eq!(d.network.dial(wrong).await, Err(DialError::Other(a.id)));
    let udp: Multiaddr = "/ip4/127.0.0.1/udp/1".parse().unwrap();
    assert_eq!(
        a.network.dial(udp.clone()).await,
        Err(DialError::Address(udp))
    );
}

#[tokio::test]
async fn host_names_are_resolved() {
    let (a, b) = (Node::start(1).await, Node::start(2).await);
    let port = b.address.iter().nth(1).unwrap();
    let named = Multiaddr::empty()
        .with(Protocol::Dns4("localhost".into()))
        .with(port);
    assert_eq!(a.network.dial(named).await, Ok(b.id));
}

#[tokio::test]
async fn a_place_that_is_taken_is_an_error_of_the_start() {
    let a = Node::start(1).await;
    let mut listen = a.address.clone();
    listen.pop();
    let taken = NetworkOptions {
        listen: vec![listen],
        ..options()
    };
    let identity = Identity::from_seed([2; 32]);
    let started = Network::start(taken, Arc::new(Word("word")), identity);
    assert!(matches!(started, Err(StartError::Listen { .. })));
}

#[tokio::test]
async fn nodes_that_dial_each_other_at_once_keep_one_connection() {
    let (a, mut b) = (Node::start(1).await, Node::start(2).await);
    let dials = join(
        a.network.dial(b.address.clone()),
        b.network.dial(a.address.clone()),
    );
    assert_eq!(dials.await, (Ok(b.id), Ok(a.id)));
    let (a_network, b_network, b_id) = (a.network.clone(), b.network.clone(), b.id);
    b.up(a.id).await;
    let _echo = b.echo();
    let question = Bytes::from_static(b"still there?");
    // A request that is on its way over the connection that goes fails, and may be repeated.
    eventually(async || a_network.request(b_id, question.clone()).await == Ok(question.clone()))
        .await;
    eventually(async || {
        let one = |network: &Network| {
            let peers = network.peers();
            peers.len() == 1 && peers[0].connections == 1
        };
        one(&a_network) && one(&b_network)
    })
    .await;
    assert_eq!(
        a_network.request(b_id, question.clone()).await,
        Ok(question)
    );
}

#[tokio::test]
async fn gossip_goes_on_only_when_it_is_accepted() {
    let mut a = Node::start(1).await;
    let mut b = Node::start(2).await;
    let mut c = Node::start(3).await;
    a.meet(&mut b).await;
    c.meet(&mut b).await;
    for (text, verdict) in [
        ("bad", Verdict::Reject),
        ("odd", Verdict::Ignore),
        ("good", Verdict::Accept),
    ] {
        a.publish(text).await;
        let NetworkEvent::Gossip {
            from, bytes, token, ..
        } = b.gossip().await
        else {
            unreachable!()
        };
        assert_eq!((from, &bytes[..]), (a.id, text.as_bytes()));
        b.network.report(token, verdict).await;
    }
    let NetworkEvent::Gossip { from, bytes, .. } = c.gossip().await else {
        unreachable!()
    };
    assert_eq!((from, &bytes[..]), (b.id, &b"good"[..]));
}

#[tokio::test]
async fn gossip_has_bounds() {
    let mut a = Node::start(1).await;
    let topic = topic();
    let lonely = a.network.publish(&topic, Bytes::from_static(b"hello"));
    assert_eq!(lonely.await, Err(PublishError::NoPeers));
    let mut b = Node::start(2).await;
    a.meet(&mut b).await;
    let long = Bytes::from(vec![0; GOSSIP_LEN_MAX + 1]);
    let published = a.network.publish(&topic, long).await;
    assert_eq!(published, Err(PublishError::Length(GOSSIP_LEN_MAX + 1)));
    let longest = Bytes::from(vec![7; GOSSIP_LEN_MAX]);
    eventually(async || a.network.publish(&topic, longest.clone()).await.is_ok()).await;
    assert!(matches!(b.gossip().await, NetworkEvent::Gossip { bytes, .. } if bytes == longest));
    let again = a.network.publish(&topic, longest.clone()).await;
    assert_eq!(again, Err(PublishError::Duplicate));
}

/// Where two long messages lay behind each other in a stream, the reader gave the stream up, and was deaf
/// to that peer from then on: after a push to a busy cluster, nodes that had restarted heard nothing.
#[tokio::test]
async fn long_gossip_may_come_in_a_burst() {
    let mut a = Node::start(1).await;
    let mut peer = Gossiper::meet(2, &mut a).await;
    for number in 0..BURST {
        peer.publish(long(number));
    }
    let peer = tokio::spawn(peer.run());
    let mut missing: BTreeSet<Bytes> = (0..BURST).map(long).collect();
    while !missing.is_empty() {
        let NetworkEvent::Gossip { bytes, .. } = a.gossip().await else {
            unreachable!()
        };
        assert!(missing.remove(&bytes), "nothing else, and nothing twice");
    }
    peer.abort();
}

#[tokio::test]
async fn gossip_that_a_peer_does_not_take_is_counted_and_told() {
    let mut a = Node::start(1).await;
    // It has subscribed, and takes nothing.
    let deaf = Gossiper::meet(2, &mut a).await;
    a.publish("first").await;
    let network = a.network.clone();
    let publisher = tokio::spawn(async move {
        for number in 0.. {
            // Congested, in the end.
            let _ = network.publish(&topic(), long(number)).await;
        }
    });
    let unsent = a.until(|event| matches!(event, NetworkEvent::GossipUnsent { .. }));
    let event = unsent.await;
    publisher.abort();
    assert!(matches!(event, NetworkEvent::GossipUnsent { node } if node == deaf.id));
    eventually(async || a.network.status().counters.gossip_unsent > 0).await;
    assert_eq!(a.network.status().counters.gossip_dropped, 0);
}

#[tokio::test]
async fn a_flood_of_gossip_is_cut_off() {
    let mut a = Node::start(1).await;
    let mut b = Node::start(2).await;
    a.meet(&mut b).await;
    a.publish("first").await;
    b.gossip().await;
    // More than a peer may send at once; the node takes everything it is given.
    let taken = tokio::spawn(async move {
        while b.network.status().counters.gossip_limited == 0 {
            b.gossip().await;
        }
    });
    let mut number = 0u64;
    while !taken.is_finished() {
        number += 1;
        let bytes = Bytes::copy_from_slice(&number.to_be_bytes());
        let _ = a.network.publish(&topic(), bytes).await;
        assert!(number < 1_000_000, "never limited");
    }
    taken.await.unwrap();
}

#[tokio::test]
async fn requests_are_answered_or_fail_in_time() {
    let mut a = Node::start(1).await;
    let mut b = Node::start(2).await;
    let hello = Bytes::from_static(b"hello");
    let nobody = a.network.request(b.id, hello.clone()).await;
    assert_eq!(nobody, Err(RequestError::NotConnected));
    a.meet(&mut b).await;

    let long = vec![0; REQUEST_LEN_MAX + 1];
    let asked = a.network.request(b.id, long.into()).await;
    assert_eq!(asked, Err(RequestError::Length(REQUEST_LEN_MAX + 1)));

    let answer = Bytes::from(vec![9; RESPONSE_LEN_MAX]);
    let (asked, ()) = join(a.network.request(b.id, hello.clone()), async {
        let event = b.until(|event| matches!(event, NetworkEvent::Request { .. }));
        let NetworkEvent::Request { from, bytes, reply } = event.await else {
            unreachable!()
        };
        assert_eq!((from, &bytes), (a.id, &hello));
        reply.send(answer.clone()).unwrap();
    })
    .await;
    assert_eq!(asked, Ok(answer));

    // An answer that is too long, and one that is not given.
    for reply_with in [Some(vec![0; RESPONSE_LEN_MAX + 1]), None] {
        let (asked, ()) = join(a.network.request(b.id, hello.clone()), async {
            let event = b.until(|event| matches!(event, NetworkEvent::Request { .. }));
            let NetworkEvent::Request { reply, .. } = event.await else {
                unreachable!()
            };
            if let Some(bytes) = reply_with {
                reply.send(bytes.into()).unwrap();
            }
        })
        .await;
        assert_eq!(asked, Err(RequestError::Failed));
    }
}

#[tokio::test]
async fn requests_to_one_peer_are_bounded_and_time_out() {
    let mut a = Node::start(1).await;
    let mut b = Node::start(2).await;
    a.meet(&mut b).await;
    let asks = (0..20).map(|_| a.network.request(b.id, Bytes::from_static(b"well?")));
    let outcomes = futures::future::join_all(asks).await;
    let count = |error| {
        outcomes
            .iter()
            .filter(|outcome| **outcome == Err(error))
            .count()
    };
    assert_eq!(count(RequestError::TooMany), 4, "{outcomes:?}");
    // The peer's node never took the requests out of its queue.
    assert_eq!(
        count(RequestError::Deadline) + count(RequestError::Failed),
        16
    );
}

#[tokio::test]
async fn bulk_streams_carry_frames_whole_and_in_order() {
    let mut a = Node::start(1).await;
    let mut b = Node::start(2).await;
    a.meet(&mut b).await;
    let (mut there, _back) = a.network.open_bulk(b.id).await.unwrap().split();
    let (_back, mut here) = b.bulk().await.split();
    // 64 MiB in frames of all lengths, checked by their contents.
    let lengths = [
        0,
        1,
        4,
        16 * 1024 - 4,
        16 * 1024,
        65_537,
        500_000,
        FRAME_LEN_MAX,
    ];
    let mut total = 0;
    let lengths = std::iter::from_fn({
        let mut cycle = lengths.into_iter().cycle();
        move || {
            (total < 64 * 1024 * 1024).then(|| {
                let len = cycle.next().unwrap();
                total += len;
                len
            })
        }
    });
    let lengths: Vec<usize> = lengths.collect();
    let frame = |index: usize, len: usize| -> Vec<u8> {
        (0..len)
            .map(|at| ((index * 31) ^ (at * 7 + at / 256)) as u8)
            .collect()
    };
    let sent = lengths.clone();
    let sender = tokio::spawn(async move {
        for (index, len) in sent.into_iter().enumerate() {
            let frame = frame(index, len);
            let (head, body) = frame.split_at(len.min(10));
            there.send(head, body).await.unwrap();
        }
        assert!(there.send(&[0], &vec![0; FRAME_LEN_MAX]).await.is_err());
        there.finish().await.unwrap();
    });
    for (index, len) in lengths.into_iter().enumerate() {
        let got = here.receive().await.unwrap().unwrap();
        assert!(got == frame(index, len), "frame {index} of {len} bytes");
    }
    assert!(here.receive().await.unwrap().is_none());
    sender.await.unwrap();
}

#[tokio::test]
async fn bulk_streams_to_one_peer_are_bounded_and_given_back() {
    let mut a = Node::start(1).await;
    let mut b = Node::start(2).await;
    let nobody = a.network.open_bulk(b.id).await;
    assert_eq!(nobody.unwrap_err(), OpenError::NotConnected);
    a.meet(&mut b).await;
    let mut held = Vec::new();
    for _ in 0..STREAMS_OUT_MAX {
        held.push((a.network.open_bulk(b.id).await.unwrap(), b.bulk().await));
    }
    let more = a.network.open_bulk(b.id).await;
    assert_eq!(more.unwrap_err(), OpenError::TooMany);
    held.pop();
    assert!(a.network.open_bulk(b.id).await.is_ok());
}

#[tokio::test]
async fn a_bulk_stream_ends_with_its_peer() {
    let mut a = Node::start(1).await;
    let mut b = Node::start(2).await;
    a.meet(&mut b).await;
    let (mut sender, mut receiver) = a.network.open_bulk(b.id).await.unwrap().split();
    let _theirs = b.bulk().await;
    b.network.shutdown().await;
    let ended = timeout(PATIENCE, receiver.receive()).await.unwrap();
    assert!(!matches!(ended, Ok(Some(_))), "{ended:?}");
    a.down(b.id).await;
    assert!(sender.send(b"", b"anybody?").await.is_err());
}

#[tokio::test]
async fn a_peer_that_restarts_is_found_again() {
    let mut b = Node::start(2).await;
    let always = NetworkOptions {
        peers: vec![b.address.clone()],
        ..options()
    };
    let mut a = Node::with(1, always, Arc::new(Word("word"))).await;
    a.up(b.id).await;
    b.up(a.id).await;
    b.network.shutdown().await;
    a.down(b.id).await;
    let mut listen = b.address.clone();
    listen.pop();
    let same = NetworkOptions {
        listen: vec![listen],
        ..options()
    };
    let _again = Node::with(2, same, Arc::new(Word("word"))).await;
    a.up(b.id).await;
}

#[tokio::test]
async fn a_banned_node_stays_out_until_its_time_is_over() {
    let mut a = Node::start(1).await;
    let mut b = Node::start(2).await;
    a.meet(&mut b).await;
    a.network.ban(b.id, Duration::from_secs(2), "lies").await;
    a.down(b.id).await;
    b.down(a.id).await;
    let bans = a.network.status().bans.clone();
    assert_eq!((bans[0].node, &*bans[0].why), (b.id, "lies"));
    // Both let it through at first: one behaviour after the transport says no.
    let _ = b.network.dial(a.address.clone()).await;
    assert!(a.network.peers().is_empty());
    assert_eq!(
        a.network.dial(b.address.clone()).await,
        Err(DialError::Denied)
    );
    eventually(async || a.network.status().bans.is_empty()).await;
    a.meet(&mut b).await;
}
