//! Request bodies: into memory when small, into a blocking reader when large.
//!
//! Storing a NAR is work for a blocking thread, its body arrives on an asynchronous one. Between
//! them lies a channel of [`QUEUE`] pieces: a slow disk slows the client down, and memory stays
//! flat. An upload whose client vanishes ends in an error, never in a short body taken for whole.

use std::io::{self, BufRead, Read};
use std::panic::resume_unwind;
use std::pin::pin;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::header::{CONTENT_ENCODING, CONTENT_LENGTH, EXPECT, HeaderMap, TRANSFER_ENCODING};
use thiserror::Error;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::decode::{Decoder, Encoding};

/// What a body may cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes.
    pub(crate) len_max: u64,
    /// Longest pause between two pieces.
    pub(crate) idle: Duration,
}

/// Why a body was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum BodyFault {
    /// The client paused for too long.
    #[error("the request body stalled")]
    Idle,
    /// More bytes than allowed.
    #[error("the request body is longer than {0} bytes")]
    TooLarge(u64),
    /// Neither a length nor chunks: its end could not be told from a break.
    #[error("the request body has no length")]
    Unframed,
    /// The connection broke, or the framing is malformed.
    #[error("the request body is incomplete")]
    Broken,
    /// A content coding the node does not decode.
    #[error("content encoding {0} is not supported")]
    Encoding(String),
}

/// Looks at a body before it is read: its end must be told, and if it announces its length, within
/// `len_max` bytes.
///
/// Some of a body that is refused is drained, so that the client gets to see the answer; a client
/// that waits for leave to send is not given it.
pub(crate) async fn check_announced<B>(
    headers: &HeaderMap,
    body: &mut B,
    len_max: u64,
) -> Result<(), BodyFault>
where
    B: Body<Data = Bytes> + Unpin,
{
    if !has_body(headers) {
        return Err(BodyFault::Unframed);
    }
    if announced_len(headers).is_none_or(|len| len <= len_max) {
        return Ok(());
    }
    if !headers.contains_key(EXPECT) {
        drain(body).await;
    }
    Err(BodyFault::TooLarge(len_max))
}

/// Whether the head of a request says where its body ends, and so that it has one.
pub(crate) fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING)
}

/// The length that the head of a request announces, if it does.
pub(crate) fn announced_len(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads a whole body into memory. Dropping the future loses what was read.
pub(crate) async fn read_small<B>(body: B, limits: Limits) -> Result<Bytes, BodyFault>
where
    B: Body<Data = Bytes>,
{
    let mut body = pin!(body);
    let mut whole = BytesMut::new();
    while let Some(piece) = next_piece(&mut body, limits.idle).await? {
        if (whole.len() + piece.len()) as u64 > limits.len_max {
            drain(&mut body).await;
            return Err(BodyFault::TooLarge(limits.len_max));
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}

/// Reads a small body and undoes its `Content-Encoding`. The limit counts for both forms.
pub(crate) async fn read_decoded<B>(
    headers: &HeaderMap,
    body: B,
    limits: Limits,
) -> Result<Bytes, BodyFault>
where
    B: Body<Data = Bytes>,
{
    let encoding = content_encoding(headers)?;
    let encoded = read_small(body, limits).await?;
    if encoding == Encoding::Identity {
        return Ok(encoded);
    }
    let decode = move || {
        let mut plain = Vec::new();
        let decoder = Decoder::new(encoding, encoded.reader()).map_err(|_| BodyFault::Broken)?;
        decoder
            .take(limits.len_max + 1)
            .read_to_end(&mut plain)
            .map_err(|_| BodyFault::Broken)?;
        if plain.len() as u64 > limits.len_max {
            return Err(BodyFault::TooLarge(limits.len_max));
        }
        Ok(Bytes::from(plain))
    };
    joined(spawn_blocking(decode).await)
}

/// The content coding of a body; none and `identity` are the same.
fn content_encoding(headers: &HeaderMap) -> Result<Encoding, BodyFault> {
    let Some(value) = headers.get(CONTENT_ENCODING) else {
        return Ok(Encoding::Identity);
    };
    let name = value.to_str().unwrap_or("?").trim().to_ascii_lowercase();
    match name.as_str() {
        "identity" | "" => Ok(Encoding::Identity),
        "gzip" | "x-gzip" => Ok(Encoding::Gzip),
        "br" => Ok(Encoding::Br),
        "zstd" => Ok(Encoding::Zstd),
        "xz" => Ok(Encoding::Xz),
        "bzip2" => Ok(Encoding::Bzip2),
        _ => Err(BodyFault::Encoding(name.chars().take(32).collect())),
    }
}

/// Lets `work` read a body on a blocking thread, and returns what it returns.
///
/// When the body fails, `work` reads an error and its outcome is dropped; when `work` stops
/// reading early, some of the rest is drained so that the client gets to see the answer. Dropping
/// the future ends the body in an error too; `work` then finishes by itself.
pub(crate) async fn ingest<B, T>(
    body: B,
    limits: Limits,
    work: impl FnOnce(&mut BodyReader) -> T + Send + 'static,
) -> Result<T, BodyFault>
where
    B: Body<Data = Bytes>,
    T: Send + 'static,
{
    let mut body = pin!(body);
    let (pieces, receiver) = channel(QUEUE);
    let worker = spawn_blocking(move || work(&mut BodyReader::new(receiver)));
    let pumped = pump(&mut body, limits, pieces).await;
    let outcome = joined(worker.await);
    match pumped? {
        Pumped::All => {}
        Pumped::Unwanted => drain(&mut body).await,
    }
    Ok(outcome)
}

/// How pumping ended.
enum Pumped {
    All,
    /// The reader stopped before the end.
    Unwanted,
}

async fn pump<B>(body: &mut B, limits: Limits, pieces: Sender<Piece>) -> Result<Pumped, BodyFault>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut left = limits.len_max;
    while let Some(piece) = next_piece(body, limits.idle).await? {
        left = left
            .checked_sub(piece.len() as u64)
            .ok_or(BodyFault::TooLarge(limits.len_max))?;
        if pieces.send(Piece::Data(piece)).await.is_err() {
            return Ok(Pumped::Unwanted);
        }
    }
    // A reader that is gone by now had all it wanted.
    let _ = pieces.send(Piece::End).await;
    Ok(Pumped::All)
}

/// The next bytes of a body, never empty; `None` at its end.
async fn next_piece<B>(body: &mut B, idle: Duration) -> Result<Option<Bytes>, BodyFault>
where
    B: Body<Data = Bytes> + Unpin,
{
    loop {
        let frame = timeout(idle, body.frame())
            .await
            .map_err(|_| BodyFault::Idle)?;
        let Some(frame) = frame else { return Ok(None) };
        let data = frame.map_err(|_| BodyFault::Broken)?.into_data();
        // Trailers say nothing the node needs.
        if let Some(data) = data.ok().filter(|data| !data.is_empty()) {
            return Ok(Some(data));
        }
    }
}

/// Reads and drops some more of a body: a connection closed with unread bytes is reset, and the
/// reset may overtake the answer.
pub(crate) async fn drain<B>(body: &mut B)
where
    B: Body<Data = Bytes> + Unpin,
{
    let read = async {
        let mut left = DRAIN_MAX;
        while let Ok(Some(piece)) = next_piece(body, DRAIN_TIME).await {
            left = left.saturating_sub(piece.len());
            if left == 0 {
                return;
            }
        }
    };
    let _ = timeout(DRAIN_TIME, read).await;
}

/// The outcome of a blocking task; its panic goes on here.
pub(crate) fn joined<T>(outcome: Result<T, tokio::task::JoinError>) -> T {
    match outcome {
        Ok(outcome) => outcome,
        // Blocking tasks are never aborted, so this is a panic.
        Err(error) => resume_unwind(error.into_panic()),
    }
}

/// What a [`BodyReader`] is told.
pub(crate) enum Piece {
    Data(Bytes),
    /// The body is whole. Without it, it broke off.
    End,
}

/// A body as a blocking reader. Yields an error, not an end, when the body breaks off.
pub(crate) struct BodyReader {
    pieces: Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

impl BodyReader {
    /// A reader, and where the pieces go in that it reads.
    pub(crate) fn channel() -> (Sender<Piece>, BodyReader) {
        let (pieces, receiver) = channel(QUEUE);
        (pieces, BodyReader::new(receiver))
    }

    fn new(pieces: Receiver<Piece>) -> BodyReader {
        BodyReader {
            pieces,
            current: Bytes::new(),
            ended: false,
        }
    }
}

impl BufRead for BodyReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(data)) => self.current = data,
                Some(Piece::End) => self.ended = true,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount);
    }
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut available = self.fill_buf()?;
        let len = available.read(buffer)?;
        self.consume(len);
        Ok(len)
    }
}

/// Pieces between the connection and the blocking thread; each is at most one socket read.
const QUEUE: usize = 8;
const DRAIN_MAX: usize = 4 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(2);
