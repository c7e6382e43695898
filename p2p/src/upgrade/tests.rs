use std::pin::Pin;
use std::task::{Context, Poll};

use futures::future::ready;
use libp2p::Multiaddr;
use libp2p::core::Endpoint;
use libp2p::core::transport::{DialOpts, PortUse};

use super::*;
use crate::gate::Answer;

/// A gate that admits everybody.
pub(crate) struct Everybody;

impl Gate for Everybody {
    fn hello(&self, _: NodeId) -> Vec<u8> {
        Vec::new()
    }

    fn answer(&self, _: NodeId, _: &[u8]) -> BoxFuture<'_, Answer> {
        let reply = Vec::new();
        let admit = true;
        ready(Answer { reply, admit }).boxed()
    }

    fn accept(&self, _: NodeId, _: &[u8]) -> Result<(), Refusal> {
        Ok(())
    }
}

/// A connection to `address` that keeps to no limit of ours.
pub(crate) async fn connect(seed: u8, address: Multiaddr) -> StreamMuxerBox {
    let identity = Identity::from_seed([seed; 32]);
    let mut transport = with_streams(&identity, Arc::new(Everybody), None, 2000).unwrap();
    let opts = DialOpts {
        role: Endpoint::Dialer,
        port_use: PortUse::New,
    };
    transport.dial(address, opts).unwrap().await.unwrap().1
}

/// Somebody who connects and then says nothing.
struct Silent;

impl AsyncRead for Silent {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Pending
    }
}

impl AsyncWrite for Silent {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_says_nothing_is_dropped_in_time() {
    let secured = Secured {
        noise: noise::Config::new(Identity::from_seed([1; 32]).keypair()).unwrap(),
        gate: Arc::new(Everybody),
    };
    let begun = tokio::time::Instant::now();
    let listened = secured.clone().upgrade_inbound(Silent, PROTOCOL).await;
    assert!(matches!(listened, Err(UpgradeError::Deadline)));
    let dialed = secured.upgrade_outbound(Silent, PROTOCOL).await;
    assert!(matches!(dialed, Err(UpgradeError::Deadline)));
    assert!(begun.elapsed() < UPGRADE_DEADLINE * 2 + Duration::from_secs(1));
}

#[tokio::test]
async fn messages_have_a_bound_both_ways() {
    use futures::io::Cursor;

    let longest = vec![7; GATE_MESSAGE_LEN_MAX];
    let mut channel = Cursor::new(Vec::new());
    send(&mut channel, &longest).await.unwrap();
    channel.set_position(0);
    assert_eq!(receive(&mut channel).await.unwrap(), longest);

    let mut channel = Cursor::new(Vec::new());
    for len in [GATE_MESSAGE_LEN_MAX + 1, 65_536 + 1] {
        let sent = send(&mut channel, &vec![7; len]).await;
        assert!(matches!(sent, Err(UpgradeError::Length(_))));
    }
    assert!(channel.get_ref().is_empty());
    let mut channel = Cursor::new(vec![0xff; 70_000]);
    let received = receive(&mut channel).await;
    assert!(matches!(received, Err(UpgradeError::Length(65_535))));
}
