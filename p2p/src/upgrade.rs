//! The transport: TCP or a circuit through a relay, noise, the gate, yamux.
//!
//! A relay carries bytes and learns nothing from them; whoever comes over one passes the same gate,
//! and so does whoever comes through a hole that was punched.
//!
//! The secured upgrade is noise under a name of our own, so that other libp2p programs on the same
//! network do not even begin a handshake, followed by the gate's two messages inside the encrypted
//! channel. Noise proves both static keys, so a message captured here is of no use elsewhere.
//!
//! ```text
//! dialer                          listener
//!   hello   (u16 length, bytes) →
//!           ← reply (u16 length, bytes)
//!   1       (one byte: accepted) →
//! ```

use std::future::Future;
use std::io;
use std::iter;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{Boxed, OptionalTransport, Transport};
use libp2p::core::upgrade::{
    InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo, Version,
};
use libp2p::{PeerId, noise, relay, tcp, yamux};
use thiserror::Error;
use tokio::time::timeout;

use crate::gate::{GATE_MESSAGE_LEN_MAX, Gate, Refusal};
use crate::identity::Identity;
use crate::ids::NodeId;

/// What the secured upgrade is called.
const PROTOCOL: &str = "/attic-node/noise/1";

/// For noise and the gate together.
const UPGRADE_DEADLINE: Duration = Duration::from_secs(5);

/// For connecting, negotiating and the upgrade together.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Streams of one connection at a time, of both sides. Whoever opens one more loses the connection.
///
/// Peers that keep to the limits of the protocols above use at most 52: 32 control requests, 12
/// bulk streams, and 8 of gossip, ping and identify. Each may hold 256 KiB in flight.
const STREAMS_MAX: usize = 64;

/// What the dialer sends when it accepts.
const ACCEPTED: u8 = 1;

/// The transport of a node: whatever comes out of it has passed `gate`. Without `circuits` it knows
/// no relays.
///
/// **Errors**: [`noise::Error`] when the identity cannot sign.
pub(crate) fn transport(
    identity: &Identity,
    gate: Arc<dyn Gate>,
    circuits: Option<relay::client::Transport>,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, noise::Error> {
    with_streams(identity, gate, circuits, STREAMS_MAX)
}

/// The same with another number of streams: for programs that try what a node does with peers that
/// keep to no limits.
///
/// **Errors**: [`noise::Error`] when the identity cannot sign.
pub fn with_streams(
    identity: &Identity,
    gate: Arc<dyn Gate>,
    circuits: Option<relay::client::Transport>,
    streams_max: usize,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, noise::Error> {
    let secured = Secured {
        noise: noise::Config::new(identity.keypair())?,
        gate,
    };
    let mut muxer = yamux::Config::default();
    muxer.set_max_num_streams(streams_max);
    let circuits = circuits.map_or_else(OptionalTransport::none, OptionalTransport::some);
    let tcp = tcp::tokio::Transport::new(tcp::Config::new().nodelay(true));
    Ok(circuits
        .or_transport(tcp)
        .upgrade(Version::V1Lazy)
        .authenticate(secured)
        .multiplex(muxer)
        .timeout(CONNECT_DEADLINE)
        .boxed())
}

/// Noise, then the gate.
#[derive(Clone)]
struct Secured {
    noise: noise::Config,
    gate: Arc<dyn Gate>,
}

impl UpgradeInfo for Secured {
    type Info = &'static str;
    type InfoIter = iter::Once<&'static str>;

    fn protocol_info(&self) -> Self::InfoIter {
        iter::once(PROTOCOL)
    }
}

impl<T> InboundConnectionUpgrade<T> for Secured
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = (PeerId, noise::Output<T>);
    type Error = UpgradeError;
    type Future = BoxFuture<'static, Result<Self::Output, UpgradeError>>;

    fn upgrade_inbound(self, socket: T, info: Self::Info) -> Self::Future {
        guarded(async move {
            let (peer, mut channel) = self.noise.upgrade_inbound(socket, info).await?;
            listen(&*self.gate, node_of(&peer)?, &mut channel).await?;
            Ok((peer, channel))
        })
    }
}

impl<T> OutboundConnectionUpgrade<T> for Secured
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = (PeerId, noise::Output<T>);
    type Error = UpgradeError;
    type Future = BoxFuture<'static, Result<Self::Output, UpgradeError>>;

    fn upgrade_outbound(self, socket: T, info: Self::Info) -> Self::Future {
        guarded(async move {
            let (peer, mut channel) = self.noise.upgrade_outbound(socket, info).await?;
            dial(&*self.gate, node_of(&peer)?, &mut channel).await?;
            Ok((peer, channel))
        })
    }
}

/// The upgrade within its deadline. A panic in it, or in the gate, is an error of this connection.
fn guarded<F, O>(upgrade: F) -> BoxFuture<'static, Result<O, UpgradeError>>
where
    F: Future<Output = Result<O, UpgradeError>> + Send + 'static,
{
    let caught = AssertUnwindSafe(timeout(UPGRADE_DEADLINE, upgrade)).catch_unwind();
    async move {
        match caught.await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(UpgradeError::Deadline),
            Err(_) => Err(UpgradeError::Panicked),
        }
    }
    .boxed()
}

fn node_of(peer: &PeerId) -> Result<NodeId, UpgradeError> {
    NodeId::from_peer_id(peer).ok_or(UpgradeError::KeyType)
}

/// The dialer's half of the conversation.
async fn dial<C>(gate: &dyn Gate, remote: NodeId, channel: &mut C) -> Result<(), UpgradeError>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    send(channel, &gate.hello(remote)).await?;
    let reply = receive(channel).await?;
    gate.accept(remote, &reply).map_err(UpgradeError::Refused)?;
    channel.write_all(&[ACCEPTED]).await?;
    channel.flush().await?;
    Ok(())
}

/// The listener's half of the conversation.
async fn listen<C>(gate: &dyn Gate, remote: NodeId, channel: &mut C) -> Result<(), UpgradeError>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let hello = receive(channel).await?;
    let answer = gate.answer(remote, &hello).await;
    send(channel, &answer.reply).await?;
    if !answer.admit {
        // The dialer reads the reply before it sees the end.
        channel.close().await?;
        return Err(UpgradeError::Denied);
    }
    let mut verdict = [0];
    channel.read_exact(&mut verdict).await?;
    if verdict != [ACCEPTED] {
        return Err(UpgradeError::NotAccepted);
    }
    Ok(())
}

async fn send<C>(channel: &mut C, message: &[u8]) -> Result<(), UpgradeError>
where
    C: AsyncWrite + Unpin,
{
    let len = u16::try_from(message.len()).ok();
    let len = len.filter(|len| usize::from(*len) <= GATE_MESSAGE_LEN_MAX);
    let len = len.ok_or(UpgradeError::Length(message.len()))?;
    channel.write_all(&len.to_be_bytes()).await?;
    channel.write_all(message).await?;
    channel.flush().await?;
    Ok(())
}

async fn receive<C>(channel: &mut C) -> Result<Vec<u8>, UpgradeError>
where
    C: AsyncRead + Unpin,
{
    let mut len = [0; 2];
    channel.read_exact(&mut len).await?;
    let len = usize::from(u16::from_be_bytes(len));
    if len > GATE_MESSAGE_LEN_MAX {
        return Err(UpgradeError::Length(len));
    }
    let mut message = vec![0; len];
    channel.read_exact(&mut message).await?;
    Ok(message)
}

/// Why a connection was not upgraded.
#[derive(Debug, Error)]
pub(crate) enum UpgradeError {
    /// Our gate does not want a listener we dialed, or the listener said it does not want us.
    #[error("{0}")]
    Refused(Refusal),
    /// Our gate does not want a dialer; it was told why.
    #[error("the dialer is not admitted")]
    Denied,
    /// The dialer did not want us.
    #[error("the dialer did not accept the answer")]
    NotAccepted,
    #[error("a message of {0} bytes")]
    Length(usize),
    #[error("the remote's key is not an ed25519 one")]
    KeyType,
    #[error("no end within {} s", UPGRADE_DEADLINE.as_secs())]
    Deadline,
    #[error("panic")]
    Panicked,
    #[error("handshake")]
    Noise(#[from] noise::Error),
    #[error("read or write")]
    Io(#[from] io::Error),
}

#[cfg(test)]
pub(crate) mod tests;
