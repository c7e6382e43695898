//! Connections that keep to no limit of the protocols above them.

use std::error::Error;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use attic_p2p::gate::Gate;
use attic_p2p::identity::Identity;
use attic_p2p::upgrade::with_streams;
use futures::AsyncWrite;
use futures::future::{join, join_all};
use libp2p::Multiaddr;
use libp2p::core::Endpoint;
use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerExt, SubstreamBox};
use libp2p::core::transport::{DialOpts, PortUse, Transport};
use libp2p::multiaddr::Protocol;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::Mode;

/// Does it to the first of `addresses`, until killed.
pub(super) async fn run(
    mode: Mode,
    identity: &Identity,
    gate: Arc<dyn Gate>,
    addresses: &[Multiaddr],
) -> Result<(), Box<dyn Error>> {
    let address = addresses.first().ok_or("no address")?;
    // Half-open connections besides, by nobody in particular.
    let silent = match mode {
        Mode::SlowLoris => SILENT,
        _ => 0,
    };
    let strangers = join_all((0..silent).map(|_| stranger(address.clone())));
    join(assault(mode, identity, gate, address), strangers)
        .await
        .0
}

async fn assault(
    mode: Mode,
    identity: &Identity,
    gate: Arc<dyn Gate>,
    address: &Multiaddr,
) -> Result<(), Box<dyn Error>> {
    loop {
        match timeout(CONNECT_TIME, connect(identity, Arc::clone(&gate), address)).await {
            Ok(Ok(muxer)) => {
                println!("connected");
                hold(mode, muxer).await;
                println!("cut off");
            }
            // Refused, because it was noticed.
            Ok(Err(_)) | Err(_) => sleep(RETRY_AFTER).await,
        }
    }
}

async fn connect(
    identity: &Identity,
    gate: Arc<dyn Gate>,
    address: &Multiaddr,
) -> Result<StreamMuxerBox, Box<dyn Error>> {
    let mut transport = with_streams(identity, gate, None, STREAMS + 1)?;
    let opts = DialOpts {
        role: Endpoint::Dialer,
        port_use: PortUse::New,
    };
    Ok(transport.dial(address.clone(), opts)?.await?.1)
}

/// Opens streams and keeps them, until the other side ends the connection.
async fn hold(mode: Mode, mut muxer: StreamMuxerBox) {
    let (count, begin) = match mode {
        // Within the limits, and each with the beginning of a frame of a mebibyte.
        Mode::SlowLoris => (8, opening(&[0, 0x10, 0, 0, 1, 2, 3])),
        _ => (STREAMS, opening(&[])),
    };
    let mut streams: Vec<SubstreamBox> = Vec::new();
    let mut drip = Box::pin(sleep(DRIP_EVERY));
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(Err(_)) = muxer.poll_unpin(cx) {
                return Poll::Ready(());
            }
            if streams.len() < count {
                match muxer.poll_outbound_unpin(cx) {
                    Poll::Ready(Ok(mut stream)) => {
                        let _ = Pin::new(&mut stream).poll_write(cx, &begin);
                        streams.push(stream);
                        continue;
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => {}
                }
            }
            if Future::poll(drip.as_mut(), cx).is_pending() {
                return Poll::Pending;
            }
            drip.as_mut().reset(Instant::now() + DRIP_EVERY);
            // Where the other side has given up on a frame, a new one is begun.
            streams.retain_mut(|stream| {
                let write = Pin::new(stream).poll_write(cx, &[0]);
                !matches!(write, Poll::Ready(Err(_)))
            });
        }
    })
    .await;
}

/// Negotiates the protocol of bulk streams without waiting, and goes on with `then`.
fn opening(then: &[u8]) -> Vec<u8> {
    let begin = b"\x13/multistream/1.0.0\n\x13/attic-node/bulk/1\n";
    [&begin[..], then].concat()
}

/// Connects, and says nothing, for ever.
async fn stranger(address: Multiaddr) {
    let mut parts = address.iter();
    let (Some(Protocol::Ip4(ip)), Some(Protocol::Tcp(port))) = (parts.next(), parts.next()) else {
        return;
    };
    loop {
        if let Ok(socket) = TcpStream::connect((ip, port)).await {
            // Until it is closed by the other side.
            let _ = timeout(SILENT_TIME, socket.readable()).await;
        }
        sleep(RETRY_AFTER).await;
    }
}

const STREAMS: usize = 1000;
/// Fewer than a node takes in at a time: who is admitted shall be able to come in besides.
const SILENT: usize = 24;
const SILENT_TIME: Duration = Duration::from_secs(60);
const CONNECT_TIME: Duration = Duration::from_secs(5);
const RETRY_AFTER: Duration = Duration::from_millis(50);
const DRIP_EVERY: Duration = Duration::from_secs(1);
