use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use futures::AsyncWrite;
use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerExt, SubstreamBox};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;
use crate::upgrade::tests::{Everybody, connect};

const PATIENCE: Duration = Duration::from_secs(30);

/// The beginning of a stream that speaks this protocol, whose name has 18 letters.
fn negotiated(protocol: &str, then: &[u8]) -> Vec<u8> {
    assert_eq!(protocol.len(), 18);
    let begin = format!("\x13/multistream/1.0.0\n\x13{protocol}\n");
    [begin.as_bytes(), then].concat()
}

struct Node {
    id: NodeId,
    address: Multiaddr,
    network: Network,
    events: mpsc::Receiver<NetworkEvent>,
}

async fn start(seed: u8) -> Node {
    let identity = Identity::from_seed([seed; 32]);
    let id = identity.node_id();
    let options = NetworkOptions {
        listen: vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()],
        ..NetworkOptions::default()
    };
    let (network, mut events) = Network::start(options, Arc::new(Everybody), identity).unwrap();
    let address = match events.recv().await {
        Some(NetworkEvent::Listening(address)) => address,
        event => panic!("{event:?}"),
    };
    Node {
        id,
        address,
        network,
        events,
    }
}

/// The next event that `pick` takes.
async fn wait<T>(node: &mut Node, pick: impl Fn(NetworkEvent) -> Option<T>) -> T {
    let waited = timeout(PATIENCE, async {
        loop {
            let event = node.events.recv().await.expect("a running network");
            if let Some(picked) = pick(event) {
                return picked;
            }
        }
    });
    waited.await.expect("an event in time")
}

/// Somebody else can still use `victim`.
async fn assert_serves(victim: &mut Node) {
    let other = start(99).await;
    let (id, address) = (victim.id, victim.address.clone());
    assert_eq!(other.network.dial(address).await, Ok(id));
    let question = Bytes::from_static(b"well?");
    let asked = tokio::spawn(async move { other.network.request(id, question).await });
    let reply = wait(victim, |event| match event {
        NetworkEvent::Request { reply, .. } => Some(reply),
        _ => None,
    });
    reply.await.send(Bytes::from_static(b"well.")).unwrap();
    assert_eq!(asked.await.unwrap(), Ok(Bytes::from_static(b"well.")));
}

/// Opens `count` streams with these first bytes and keeps them open; returns when the other side has
/// ended the connection.
async fn hold_streams(
    mut muxer: StreamMuxerBox,
    count: usize,
    bytes: Vec<u8>,
    opened: watch::Sender<usize>,
) {
    let mut streams: Vec<SubstreamBox> = Vec::new();
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(Err(_)) = muxer.poll_unpin(cx) {
                return Poll::Ready(());
            }
            if streams.len() == count {
                return Poll::Pending;
            }
            match muxer.poll_outbound_unpin(cx) {
                Poll::Ready(Ok(mut stream)) => {
                    let _ = Pin::new(&mut stream).poll_write(cx, &bytes);
                    streams.push(stream);
                    opened.send_replace(streams.len());
                }
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_thousand_streams_are_bounded_and_harm_nobody() {
    let complete = negotiated("/attic-node/bulk/1", b"");
    // Streams that ask for the protocol, and streams that never say what they want.
    for (seed, begin, bulk_max) in [(2, complete, 8), (3, b"\x13/multi".to_vec(), 0)] {
        let mut victim = start(1).await;
        let muxer = connect(seed, victim.address.clone()).await;
        let (opened, mut watched) = watch::channel(0);
        let hostile = tokio::spawn(hold_streams(muxer, 1000, begin, opened));
        // All are open, or the connection is over.
        let all = watched.wait_for(|opened| *opened == 1000);
        let _ = timeout(PATIENCE, all).await.expect("an end in time");
        let mut bulk = Vec::new();
        while let Ok(event) = victim.events.try_recv() {
            if let NetworkEvent::Bulk { stream, .. } = event {
                bulk.push(stream);
            }
        }
        assert!(bulk.len() <= bulk_max, "{} bulk streams", bulk.len());
        assert_serves(&mut victim).await;
        assert_eq!(victim.network.status().counters.restarts, 0);
        hostile.abort();
    }
}

#[tokio::test]
async fn surplus_bulk_streams_are_reset_and_the_others_live() {
    let mut victim = start(1).await;
    let muxer = connect(2, victim.address.clone()).await;
    let begin = negotiated("/attic-node/bulk/1", b"");
    let hostile = tokio::spawn(hold_streams(muxer, 20, begin, watch::channel(0).0));
    let mut streams = Vec::new();
    for _ in 0..8 {
        streams.push(
            wait(&mut victim, |event| match event {
                NetworkEvent::Bulk { stream, .. } => Some(stream),
                _ => None,
            })
            .await,
        );
    }
    assert_serves(&mut victim).await;
    // Shown within a second.
    let mut status = victim.network.status.clone();
    let counted = status.wait_for(|status| status.counters.bulk_dropped == 12);
    timeout(PATIENCE, counted).await.unwrap().unwrap();
    assert!(!hostile.is_finished());
    hostile.abort();
}

#[tokio::test]
async fn garbage_on_streams_harms_nobody() {
    let mut victim = start(1).await;
    let oversized = [0xff; 64];
    for (seed, first) in [
        (2, vec![0xff; 200]),
        (3, b"\x13/multistream/1.0.0\n\x05/no\n".to_vec()),
        (4, negotiated("/attic-node/sync/1", &oversized)),
        (5, negotiated("/attic-node/sync/1", &[0, 0, 0])),
    ] {
        let muxer = connect(seed, victim.address.clone()).await;
        let hostile = tokio::spawn(hold_streams(muxer, 20, first, watch::channel(0).0));
        assert_serves(&mut victim).await;
        hostile.abort();
    }
}

#[tokio::test]
async fn an_oversized_frame_is_refused_before_it_is_read() {
    let mut victim = start(1).await;
    let muxer = connect(2, victim.address.clone()).await;
    let begin = negotiated("/attic-node/bulk/1", &[0xff; 64]);
    let hostile = tokio::spawn(hold_streams(muxer, 1, begin, watch::channel(0).0));
    let stream = wait(&mut victim, |event| match event {
        NetworkEvent::Bulk { stream, .. } => Some(stream),
        _ => None,
    });
    let (_, mut receiver) = stream.await.split();
    let received = timeout(PATIENCE, receiver.receive()).await.unwrap();
    assert!(
        matches!(received, Err(crate::bulk::BulkError::Length(0xffff_ffff))),
        "{received:?}"
    );
    hostile.abort();
}

#[tokio::test]
async fn strangers_on_the_socket_harm_nobody() {
    let mut victim = start(1).await;
    let port = victim.address.iter().find_map(|part| match part {
        libp2p::multiaddr::Protocol::Tcp(port) => Some(port),
        _ => None,
    });
    let place = ("127.0.0.1", port.unwrap());
    let mut sockets = Vec::new();
    for first in [
        &b""[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x13/multistream/1.0.0\n\x07/noise\n\x00\x20garbage",
        b"\x13/multistream/1.0.0\n\x14/attic-node/noise/1\n\xff\xff",
        &[0xff; 1000],
    ] {
        let mut socket = TcpStream::connect(place).await.unwrap();
        socket.write_all(first).await.unwrap();
        sockets.push(socket);
    }
    assert_serves(&mut victim).await;
}

#[tokio::test]
async fn after_a_panic_the_network_is_there_again() {
    let mut a = start(1).await;
    let mut b = start(2).await;
    b.network.learn(vec![a.address.clone()]).await;
    let up = |event| matches!(event, NetworkEvent::PeerUp { .. }).then_some(());
    let down = |event| matches!(event, NetworkEvent::PeerDown { .. }).then_some(());
    wait(&mut a, up).await;
    wait(&mut b, up).await;
    for restarts in 1..=2 {
        a.network.commands.send(Command::Panic).await.unwrap();
        wait(&mut a, down).await;
        wait(&mut b, down).await;
        // At the same port, so that the peer finds it.
        wait(&mut a, up).await;
        wait(&mut b, up).await;
        assert_eq!(a.network.status().counters.restarts, restarts);
    }
    assert_eq!(a.network.listen_addresses(), [a.address.clone()]);
    assert_serves(&mut a).await;
}
