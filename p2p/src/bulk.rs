//! Bulk streams: long-lived byte streams between two nodes, cut into frames.
//!
//! A stream carries opaque frames both ways, each whole or not at all. What is in them is the
//! business of whoever opened it. Streams are few and live long: opening one costs a round trip,
//! and a node gives each peer a handful.
//!
//! **Shape** on the wire: a big-endian `u32`, then that many bytes, at most [`FRAME_LEN_MAX`].

mod behaviour;

use std::fmt::{Debug, Formatter, Result as FmtResult};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::io::{ReadHalf, WriteHalf};
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::Stream;
use thiserror::Error;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

pub(crate) use crate::bulk::behaviour::{Behaviour, Event};
use crate::ids::NodeId;

/// Longest frame, in bytes: a mebibyte and its header.
pub const FRAME_LEN_MAX: usize = 1024 * 1024 + 128;

/// Within it a frame that has begun to arrive must be complete.
pub const FRAME_DEADLINE: Duration = Duration::from_secs(15);

/// Streams a node has open to one peer at a time, not counting those the peer opened.
pub const STREAMS_OUT_MAX: usize = 4;

/// Streams a peer may have open to us on one connection. Beyond what it is told to use, because it
/// may close a stream and open the next before we have noticed.
const STREAMS_IN_MAX: usize = 8;

/// How much of a frame goes out together with its length: what the multiplexer sends at once.
const FIRST_WRITE_LEN: usize = 16 * 1024;

/// An open bulk stream. Dropping it ends it for both sides, and frames that were sent but have not
/// left yet are lost; after [`BulkSender::finish`] and the peer's end they have arrived.
pub struct BulkStream {
    sender: BulkSender,
    receiver: BulkReceiver,
}

impl BulkStream {
    fn new(node: NodeId, stream: Stream, slot: OwnedSemaphorePermit) -> BulkStream {
        let (reader, writer) = stream.split();
        let slot = Arc::new(slot);
        BulkStream {
            sender: BulkSender {
                node,
                writer,
                first: BytesMut::new(),
                whole: true,
                _slot: Arc::clone(&slot),
            },
            receiver: BulkReceiver {
                node,
                reader,
                part: Part::Length([0; 4]),
                filled: 0,
                deadline: None,
                _slot: slot,
            },
        }
    }

    /// Who is at the other end.
    pub fn node(&self) -> NodeId {
        self.sender.node
    }

    /// Its two directions, to be used by two tasks. The stream ends when both are dropped.
    pub fn split(self) -> (BulkSender, BulkReceiver) {
        (self.sender, self.receiver)
    }
}

impl Debug for BulkStream {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.debug_tuple("BulkStream").field(&self.node()).finish()
    }
}

/// The outgoing direction.
pub struct BulkSender {
    node: NodeId,
    writer: WriteHalf<Stream>,
    /// The length and the beginning of the frame that is being sent.
    first: BytesMut,
    /// Whether what was sent so far ends at the end of a frame.
    whole: bool,
    _slot: Arc<OwnedSemaphorePermit>,
}

impl BulkSender {
    /// Who is at the other end.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Sends one frame, which is `head` then `body`: two slices save a copy where the frame is a
    /// header and a chunk.
    ///
    /// Waits while the peer does not read; how long that may take is for the caller to decide.
    /// The bytes are on their way when this returns, with no flush needed.
    ///
    /// **Cancellation**: dropping it in the middle leaves half a frame behind; every later call
    /// gives [`BulkError::Torn`].
    ///
    /// **Errors**: [`BulkError::Length`], with nothing sent; [`BulkError::Io`] when the peer or the
    /// connection is gone.
    pub async fn send(&mut self, head: &[u8], body: &[u8]) -> Result<(), BulkError> {
        let len = head.len() + body.len();
        if len > FRAME_LEN_MAX {
            return Err(BulkError::Length(len));
        }
        if !self.whole {
            return Err(BulkError::Torn);
        }
        let prefix = u32::try_from(len).map_err(|_| BulkError::Length(len))?;
        self.first.clear();
        self.first.extend_from_slice(&prefix.to_be_bytes());
        self.first.extend_from_slice(head);
        let room = FIRST_WRITE_LEN.saturating_sub(self.first.len());
        let (early, late) = body.split_at(room.min(body.len()));
        self.first.extend_from_slice(early);
        self.whole = false;
        self.writer.write_all(&self.first).await?;
        self.writer.write_all(late).await?;
        self.whole = true;
        Ok(())
    }

    /// Tells the peer that no more frames come. The other direction stays open.
    ///
    /// **Errors**: [`BulkError::Io`] when the peer or the connection is gone.
    pub async fn finish(mut self) -> Result<(), BulkError> {
        Ok(self.writer.close().await?)
    }
}

/// The incoming direction.
pub struct BulkReceiver {
    node: NodeId,
    reader: ReadHalf<Stream>,
    part: Part,
    /// Bytes of `part` that have arrived.
    filled: usize,
    /// When the frame that has begun must be complete.
    deadline: Option<Instant>,
    _slot: Arc<OwnedSemaphorePermit>,
}

/// What is being read.
enum Part {
    Length([u8; 4]),
    Frame(BytesMut),
}

impl BulkReceiver {
    /// Who is at the other end.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The next frame; `None` when the peer has finished.
    ///
    /// Waits for ever for a frame to begin, and [`FRAME_DEADLINE`] for it to end.
    ///
    /// **Cancellation**: may be dropped and called again; no byte is lost.
    ///
    /// **Errors**: [`BulkError::Length`] for a longer frame than there are, before anything is
    /// allocated for it; [`BulkError::Deadline`]; [`BulkError::Io`] when the peer or the connection
    /// is gone, and when the stream ends within a frame. The stream is of no use after any of them.
    pub async fn receive(&mut self) -> Result<Option<Bytes>, BulkError> {
        loop {
            if let Some(frame) = self.advance()? {
                return Ok(Some(frame));
            }
            let rest = match &mut self.part {
                Part::Length(bytes) => &mut bytes[self.filled..],
                Part::Frame(bytes) => &mut bytes[self.filled..],
            };
            let read = self.reader.read(rest);
            let count = match self.deadline {
                None => read.await?,
                Some(at) => timeout_at(at, read)
                    .await
                    .map_err(|_| BulkError::Deadline)??,
            };
            if count == 0 {
                return match self.deadline {
                    None => Ok(None),
                    Some(_) => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                };
            }
            self.filled += count;
            self.deadline
                .get_or_insert_with(|| Instant::now() + FRAME_DEADLINE);
        }
    }

    /// Goes to the next part when this one is complete; the frame, if that completes one.
    fn advance(&mut self) -> Result<Option<Bytes>, BulkError> {
        if let Part::Length(bytes) = &self.part
            && self.filled == bytes.len()
        {
            let len = u32::from_be_bytes(*bytes) as usize;
            if len > FRAME_LEN_MAX {
                return Err(BulkError::Length(len));
            }
            self.part = Part::Frame(BytesMut::zeroed(len));
            self.filled = 0;
        }
        if let Part::Frame(bytes) = &mut self.part
            && self.filled == bytes.len()
        {
            let frame = bytes.split().freeze();
            self.part = Part::Length([0; 4]);
            self.filled = 0;
            self.deadline = None;
            return Ok(Some(frame));
        }
        Ok(None)
    }
}

/// Why a bulk stream is of no use any more.
#[derive(Debug, Error)]
pub enum BulkError {
    /// A frame longer than [`FRAME_LEN_MAX`].
    #[error("a frame of {0} bytes")]
    Length(usize),
    /// A frame began and did not end in time.
    #[error("a frame not complete within {} s", FRAME_DEADLINE.as_secs())]
    Deadline,
    /// An earlier frame was not sent to its end.
    #[error("a frame was left half sent")]
    Torn,
    /// The peer or the connection is gone.
    #[error("bulk stream")]
    Io(#[from] io::Error),
}

/// Why no bulk stream was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// There is no connection to the peer, only one through a relay, or it went away.
    #[error("not connected")]
    NotConnected,
    /// [`STREAMS_OUT_MAX`] are open already.
    #[error("as many bulk streams as may be are open")]
    TooMany,
    /// The peer did not answer, or does not speak this protocol.
    #[error("the peer does not take bulk streams")]
    Unsupported,
    /// The network is not running, or has too much to do.
    #[error("the network is not available")]
    Unavailable,
}
