//! Nodes that meet through a relay: the gate holds for them, bulk stays out, and holes are punched.
//! And nodes that find out where they can be reached.

use std::sync::Arc;

use attic_p2p::bulk::OpenError;
use attic_p2p::gate::{Answer, Gate, Refusal};
use attic_p2p::ids::NodeId;
use attic_p2p::network::{DialError, NetworkEvent, NetworkOptions};
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, ready};
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

use crate::network::{Node, Word, eventually, options};

/// Admits everybody, and says to each what each wants to hear.
struct Flatterer;

impl Gate for Flatterer {
    fn hello(&self, _: NodeId) -> Vec<u8> {
        b"word".into()
    }

    fn answer(&self, _: NodeId, hello: &[u8]) -> BoxFuture<'_, Answer> {
        let reply = hello.into();
        ready(Answer { reply, admit: true }).boxed()
    }

    fn accept(&self, _: NodeId, _: &[u8]) -> Result<(), Refusal> {
        Ok(())
    }
}

async fn relay() -> Node {
    let options = NetworkOptions {
        relay_server: true,
        ..options()
    };
    Node::with(1, options, Arc::new(Flatterer)).await
}

/// A node that is reached through `relay`, and the address of that.
async fn behind(relay: &Node, seed: u8, gate: impl Gate, punching: bool) -> (Node, Multiaddr) {
    let options = NetworkOptions {
        relays: vec![relay.address.clone()],
        hole_punching: punching,
        ..options()
    };
    let node = Node::with(seed, options, Arc::new(gate)).await;
    let mut circuit = None;
    eventually(async || {
        let addresses = node.network.listen_addresses();
        let is_circuit =
            |address: &Multiaddr| address.iter().any(|part| part == Protocol::P2pCircuit);
        circuit = addresses.into_iter().find(is_circuit);
        circuit.is_some()
    })
    .await;
    let peer = node.id.peer_id().unwrap();
    let circuit = circuit.unwrap().with(Protocol::P2p(peer));
    (node, circuit)
}

fn is_relayed(node: &Node, peer: NodeId) -> Option<bool> {
    let peers = node.network.peers();
    let info = peers.iter().find(|info| info.node == peer)?;
    Some(info.relayed)
}

#[tokio::test]
async fn nodes_meet_through_a_relay_and_bulk_stays_out() {
    let relay = relay().await;
    let (mut a, address) = behind(&relay, 2, Word("word"), false).await;
    let (b, _) = behind(&relay, 3, Word("word"), false).await;
    assert_eq!(b.network.dial(address).await, Ok(a.id));
    a.up(b.id).await;
    for (node, peer) in [(&a, b.id), (&b, a.id)] {
        eventually(async || is_relayed(node, peer) == Some(true)).await;
        assert_eq!(is_relayed(node, relay.id), Some(false));
    }
    let asked = tokio::spawn({
        let (network, a) = (b.network.clone(), a.id);
        async move { network.request(a, Bytes::from_static(b"hello")).await }
    });
    let event = a
        .until(|event| matches!(event, NetworkEvent::Request { .. }))
        .await;
    let NetworkEvent::Request { bytes, reply, .. } = event else {
        unreachable!();
    };
    reply.send(bytes).unwrap();
    assert_eq!(asked.await.unwrap(), Ok(Bytes::from_static(b"hello")));
    let opened = b.network.open_bulk(a.id).await;
    assert!(matches!(opened, Err(OpenError::NotConnected)), "{opened:?}");
    eventually(async || relay.network.status().counters.circuits_carried == 1).await;
    assert_eq!(b.network.status().counters.punched, 0);
}

/// The relay lets a stranger in that the node behind it does not want: the stranger gets the node's
/// refusal, from its gate, and is nobody's peer there.
#[tokio::test]
async fn a_stranger_gets_no_further_through_a_relay_than_without() {
    let relay = relay().await;
    let (mut a, address) = behind(&relay, 2, Word("word"), true).await;
    let (stranger, _) = behind(&relay, 3, Word("wort"), true).await;
    let dialed = stranger.network.dial(address).await;
    let refusal = Refusal::new("they do not like our word");
    assert_eq!(dialed, Err(DialError::Refused(refusal)));
    eventually(async || relay.network.status().counters.circuits_carried >= 1).await;
    eventually(async || a.network.status().counters.inbound_failed >= 1).await;
    assert_eq!(is_relayed(&a, stranger.id), None);
    assert_eq!(is_relayed(&stranger, a.id), None);
    while let Ok(event) = a.events.try_recv() {
        let text = format!("{event:?}");
        assert!(!text.contains(&format!("{:?}", stranger.id)), "{text}");
    }
}

/// Without routers in between the hole is there already; the way to it is the one that is tested.
#[tokio::test]
async fn nodes_that_met_through_a_relay_do_without_it_when_they_can() {
    let relay = relay().await;
    let (mut a, address) = behind(&relay, 2, Word("word"), true).await;
    let (b, _) = behind(&relay, 3, Word("word"), true).await;
    assert_eq!(b.network.dial(address).await, Ok(a.id));
    a.up(b.id).await;
    for (node, peer) in [(&a, b.id), (&b, a.id)] {
        eventually(async || is_relayed(node, peer) == Some(false)).await;
    }
    eventually(async || b.network.open_bulk(a.id).await.is_ok()).await;
    eventually(async || {
        let counters = [&a, &b].map(|node| node.network.status().counters);
        counters
            .iter()
            .map(|counters| counters.punched)
            .sum::<u64>()
            >= 1
    })
    .await;
}

/// A node that knows no relays does not try what it cannot do, and says so.
#[tokio::test]
async fn circuits_are_off_unless_asked_for() {
    let relay = relay().await;
    let (_a, address) = behind(&relay, 2, Word("word"), false).await;
    let plain = Node::with(3, options(), Arc::new(Word("word"))).await;
    let dialed = plain.network.dial(address).await;
    assert!(
        matches!(dialed, Err(DialError::Unreachable(_))),
        "{dialed:?}"
    );
    assert_eq!(relay.network.status().counters.circuits_carried, 0);
}

/// One asks the other, which dials back: that confirms the address and disturbs nobody. In both orders
/// of names, which decide who closes what.
#[tokio::test]
async fn nodes_find_out_for_each_other_which_addresses_can_be_reached() {
    let options = || NetworkOptions {
        autonat: true,
        ..options()
    };
    for [asker, asked] in [[1, 2], [2, 1]] {
        let mut asker = Node::with(asker, options(), Arc::new(Word("word"))).await;
        let asked = Node::with(asked, options(), Arc::new(Word("word"))).await;
        assert_eq!(
            asker.network.dial(asked.address.clone()).await,
            Ok(asked.id)
        );
        asker.up(asked.id).await;
        eventually(async || asker.network.status().counters.confirmed > 0).await;
        for (node, peer) in [(&asker, asked.id), (&asked, asker.id)] {
            eventually(async || {
                let peers = node.network.peers();
                let peer = peers.iter().find(|info| info.node == peer);
                peer.is_some_and(|peer| peer.connections == 1)
            })
            .await;
        }
        while let Ok(event) = asker.events.try_recv() {
            let is_down = matches!(event, NetworkEvent::PeerDown { .. });
            assert!(!is_down, "{event:?}");
        }
    }
}
