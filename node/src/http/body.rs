//! Response bodies.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use attic_store::{BlockReader, StoreError};
use bytes::Bytes;
use futures::future::BoxFuture;
use http_body::{Body as HttpBody, Frame, SizeHint};
use thiserror::Error;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::spawn_blocking;

use crate::app::App;
use crate::http::connection::Busy;
use crate::http::error::chain;
use crate::http::ingest::joined;
use crate::http::mend::Mender;
use crate::mesh::flight::FlightError;
use crate::mesh::flight::body::FlightReader;
use crate::metrics::Source;
use crate::upstream::PullError;
use crate::upstream::body::PullReader;

/// Any body the node sends.
pub(crate) struct Body {
    content: Content,
    /// Marks the connection as busy until the body is dropped.
    _busy: Option<Busy>,
}

enum Content {
    Bytes(Option<Bytes>),
    Nar(Box<NarBody>),
    Flight(Box<FlightBody>),
    Routed(axum::body::Body),
}

impl Body {
    /// These bytes.
    pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
        Body {
            content: Content::Bytes(Some(bytes.into())),
            _busy: None,
        }
    }

    /// No bytes.
    pub(crate) fn empty() -> Body {
        Body {
            content: Content::Bytes(None),
            _busy: None,
        }
    }

    /// A NAR, block by block.
    pub(crate) fn nar(nar: NarBody) -> Body {
        Body {
            content: Content::Nar(Box::new(nar)),
            _busy: None,
        }
    }

    /// A NAR as it comes from elsewhere.
    pub(crate) fn flight(flight: FlightBody) -> Body {
        Body {
            content: Content::Flight(Box::new(flight)),
            _busy: None,
        }
    }

    /// A body made by a route.
    pub(crate) fn routed(body: axum::body::Body) -> Body {
        Body {
            content: Content::Routed(body),
            _busy: None,
        }
    }

    /// The same body, which keeps its connection busy.
    pub(crate) fn held(self, busy: Busy) -> Body {
        Body {
            _busy: Some(busy),
            ..self
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut self.content {
            Content::Bytes(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Content::Nar(nar) => {
                let block = ready!(nar.poll_block(cx));
                Poll::Ready(block.map(|block| Ok(Frame::data(block?))))
            }
            Content::Flight(flight) => {
                let block = ready!(flight.poll_block(cx));
                Poll::Ready(block.map(|block| Ok(Frame::data(block?))))
            }
            Content::Routed(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| Ok(frame?))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Bytes(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Content::Nar(nar) => nar.left == 0,
            Content::Flight(flight) => flight.left == 0,
            Content::Routed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Bytes(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Content::Nar(nar) => SizeHint::with_exact(nar.left),
            Content::Flight(flight) => SizeHint::with_exact(flight.left),
            Content::Routed(body) => body.size_hint(),
        }
    }
}

/// A range of a NAR, read one block ahead of the socket while few others are.
///
/// Yields exactly the announced length, or an error that makes the server break the connection.
pub(crate) struct NarBody {
    app: Arc<App>,
    /// The next block, when it is here.
    ready: Option<Bytes>,
    /// The block after it, when it is being read.
    ahead: Option<BoxFuture<'static, Block>>,
    /// When nothing is being read.
    reader: Option<BlockReader>,
    /// Leave to hold a block that the socket has not asked for.
    leave: Option<OwnedSemaphorePermit>,
    /// What repairs damage that is met on the way, once.
    mender: Option<Mender>,
    left: u64,
}

/// A reader on its way back, with what it read.
pub(crate) type Block = (BlockReader, Result<Option<Bytes>, StoreError>);

impl NarBody {
    /// `first`, which `reader` has just yielded, and what follows it: `len` bytes together.
    pub(crate) fn new(
        app: Arc<App>,
        (first, reader): (Bytes, BlockReader),
        len: u64,
        mender: Option<Mender>,
    ) -> NarBody {
        app.nar_bodies.fetch_add(1, Ordering::Relaxed);
        NarBody {
            app,
            ready: Some(first),
            ahead: None,
            reader: Some(reader),
            leave: None,
            mender,
            left: len,
        }
    }

    fn poll_block(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, NarBodyError>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        if self.ready.is_none() && self.ahead.is_none() {
            self.read_next();
        }
        while let Some(ahead) = &mut self.ahead {
            let (reader, block) = ready!(ahead.as_mut().poll(cx));
            self.ahead = None;
            match (block, self.mender.take()) {
                (Ok(block), mender) => {
                    (self.ready, self.mender) = (block, mender);
                    self.reader = Some(reader);
                }
                (Err(error @ StoreError::Chunk(_)), Some(mender)) => {
                    self.app.read_failed("nar", &error);
                    self.ahead = Some(Box::pin(mender.read_on(self.left, reader, error)));
                }
                (Err(error), _) => {
                    self.app.read_failed("nar", &error);
                    return Poll::Ready(Some(Err(NarBodyError::Read(error))));
                }
            }
        }
        let taken = self
            .ready
            .take()
            .filter(|block| block.len() as u64 <= self.left);
        let Some(block) = taken else {
            return Poll::Ready(Some(Err(NarBodyError::Length)));
        };
        self.left -= block.len() as u64;
        self.app
            .metrics
            .sent(Source::Local)
            .inc_by(block.len() as u64);
        self.app.metrics.nar_sent.inc_by(block.len() as u64);
        self.read_ahead();
        Poll::Ready(Some(Ok(block)))
    }

    /// Reads the next block already, unless many bodies do: two hundred slow clients must not hold
    /// two blocks each.
    fn read_ahead(&mut self) {
        if self.leave.is_none() {
            self.leave = Arc::clone(&self.app.read_ahead).try_acquire_owned().ok();
        }
        if self.left > 0 && self.leave.is_some() {
            self.read_next();
        }
    }

    fn read_next(&mut self) {
        if let Some(mut reader) = self.reader.take() {
            let len_max = self.app.block_len();
            let read = spawn_blocking(move || {
                let block = reader.next_block_within(len_max);
                (reader, block)
            });
            self.ahead = Some(Box::pin(async { joined(read.await) }));
        }
    }
}

impl Drop for NarBody {
    fn drop(&mut self) {
        self.app.nar_bodies.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A range of a NAR in flight.
///
/// Yields exactly the announced length, or an error that makes the server break the connection.
pub(crate) struct FlightBody {
    app: Arc<App>,
    source: Source,
    next: BoxFuture<'static, Landed>,
    left: u64,
}

/// What reads a NAR while it comes.
pub(crate) enum Reader {
    Peers(FlightReader),
    Upstream(PullReader),
}

/// A reader on its way back, with what landed.
type Landed = (Reader, Result<Option<Bytes>, NarBodyError>);

impl FlightBody {
    /// What `reader` yields: `len` bytes.
    pub(crate) fn new(app: Arc<App>, reader: Reader, len: u64) -> FlightBody {
        let source = match &reader {
            Reader::Peers(_) => Source::Peer,
            Reader::Upstream(_) => Source::Upstream,
        };
        FlightBody {
            app,
            source,
            next: Box::pin(landed(reader)),
            left: len,
        }
    }

    fn poll_block(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, NarBodyError>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let (reader, block) = ready!(self.next.as_mut().poll(cx));
        self.next = Box::pin(landed(reader));
        let block = match block {
            Ok(block) => block.filter(|block| block.len() as u64 <= self.left),
            Err(error) => {
                tracing::warn!(cause = chain(&error), "NAR broke off");
                return Poll::Ready(Some(Err(error)));
            }
        };
        let Some(block) = block else {
            return Poll::Ready(Some(Err(NarBodyError::Length)));
        };
        let len = block.len() as u64;
        self.left -= len;
        self.app.metrics.sent(self.source).inc_by(len);
        self.app.metrics.nar_sent.inc_by(len);
        Poll::Ready(Some(Ok(block)))
    }
}

async fn landed(mut reader: Reader) -> Landed {
    let block = match &mut reader {
        Reader::Peers(reader) => reader.next().await.map_err(NarBodyError::Flight),
        Reader::Upstream(reader) => reader.next().await.map_err(NarBodyError::Pull),
    };
    (reader, block)
}

/// Why a NAR broke off after its status line.
#[derive(Debug, Error)]
pub(crate) enum NarBodyError {
    /// A block could not be read undamaged.
    #[error("read NAR")]
    Read(#[source] StoreError),
    /// It could not be had from peers.
    #[error("fetch NAR from peers")]
    Flight(#[source] FlightError),
    /// It could not be had from upstreams.
    #[error("fetch NAR from upstream")]
    Pull(#[source] PullError),
    /// The store yielded more or fewer bytes than it announced.
    #[error("NAR is not of its announced length")]
    Length,
}
