//! One bulk stream on which this node asks a peer.
//!
//! A link numbers its questions, and hands every answer to whoever asked. Nothing is repeated: when
//! a link ends, everybody who waits hears [`Answer::Gone`] and asks anew, on another link or another
//! peer.
//!
//! A peer can make a link remember no more than was asked: answers to nothing, more answers than
//! chunks, and more bytes than it has credit for end the link and are [`Misdeed`]s. Credit is given
//! when a chunk's [`Received`] is dropped, so what lies in this node's memory is bounded whatever
//! the peer does; beyond the memory all links share, a link stops reading.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use attic_p2p::bulk::{BulkError, BulkReceiver, BulkSender, OpenError};
use attic_p2p::ids::{ClusterId, NodeId};
use attic_p2p::network::Network;
use attic_p2p::wire::{
    CREDIT_WINDOW, ChunkRange, CreditMeter, Decoder, Encoded, Frame, Have, Hello, MANIFEST_LEN_MAX,
    Object, PROTOCOL, Priority, RequestNumber, WireError,
};
use bytes::Bytes;
use thiserror::Error;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

/// What is asked of a peer.
#[derive(Clone, Debug)]
pub(crate) enum Question {
    /// What it holds, now and from now on.
    Have(Object),
    /// The encoded manifest.
    Manifest(Object),
    /// Chunks.
    Chunks {
        object: Object,
        ranges: Vec<ChunkRange>,
        priority: Priority,
        deadline: Duration,
    },
}

/// A question's name, unique in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AskId(u64);

impl AskId {
    pub(crate) fn next() -> AskId {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        AskId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// An answer, or a part of one.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) node: NodeId,
    pub(crate) ask: AskId,
    pub(crate) answer: Answer,
}

/// What a peer says.
#[derive(Debug)]
pub(crate) enum Answer {
    Have(Have),
    /// More segments.
    Gained(Vec<u32>),
    /// Who else is fetching it.
    Others(Vec<NodeId>),
    /// A frame that was asked for; nothing about it is verified.
    Chunk {
        chunk: u32,
        bytes: Received,
    },
    /// A part of a manifest.
    Manifest {
        offset: u32,
        total: u32,
        bytes: Bytes,
    },
    Busy(Duration),
    NotFound(Option<u32>),
    /// The peer could not or would not.
    Error,
    /// The link ended; nothing more will come.
    Gone,
}

/// A frame in memory. Dropping it gives the peer credit for the next one.
#[derive(Debug)]
pub(crate) struct Received {
    bytes: Bytes,
    consumed: Arc<Consumed>,
    _memory: OwnedSemaphorePermit,
}

impl Received {
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// A frame that no peer sent.
    pub(crate) fn of_bucket(bytes: Bytes, memory: OwnedSemaphorePermit) -> Received {
        Received {
            bytes,
            consumed: Arc::default(),
            _memory: memory,
        }
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.consumed.add(self.bytes.len() as u64);
    }
}

/// Bytes that left this node's memory and for which no credit was given.
#[derive(Debug, Default)]
struct Consumed {
    bytes: AtomicU64,
    news: Notify,
}

impl Consumed {
    fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.news.notify_one();
    }
}

/// A question that was asked. Dropping it withdraws it; answers already heard may still be taken.
#[derive(Debug)]
pub(crate) struct Asked {
    id: AskId,
    of: AskedOf,
}

/// Who answers.
#[derive(Debug)]
enum AskedOf {
    Link(Arc<Link>, RequestNumber),
    Task(AbortHandle),
}

impl Asked {
    /// A question that a task answers.
    pub(crate) fn of_task(id: AskId, task: AbortHandle) -> Asked {
        Asked {
            id,
            of: AskedOf::Task(task),
        }
    }

    pub(crate) fn id(&self) -> AskId {
        self.id
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        match &self.of {
            AskedOf::Link(link, number) => link.withdraw(*number),
            AskedOf::Task(task) => task.abort(),
        }
    }
}

/// Where answers go. Its receiver must be drained: links wait for it.
pub(crate) type Listener = mpsc::Sender<Heard>;

/// A stream to one peer, open or being opened.
#[derive(Debug)]
pub(crate) struct Link {
    node: NodeId,
    outbox: mpsc::Sender<Encoded>,
    routes: Mutex<Routes>,
    consumed: Arc<Consumed>,
    /// Credit given since the stream opened.
    granted: AtomicU64,
    closing: Notify,
}

#[derive(Debug)]
struct Routes {
    open: BTreeMap<RequestNumber, Route>,
    next: RequestNumber,
    /// Answers that may still come to questions that were withdrawn.
    late: u64,
    closed: bool,
    used: Instant,
}

#[derive(Debug)]
struct Route {
    listener: Listener,
    ask: AskId,
    expects: Expects,
    /// Answers that may still come.
    left: u32,
}

/// What kind of answer fits.
#[derive(Debug)]
enum Expects {
    Have,
    Manifest,
    Chunks(Vec<ChunkRange>),
}

/// What a link needs from the node.
pub(crate) struct LinkParts {
    pub(crate) network: Network,
    pub(crate) cluster: ClusterId,
    /// In units of [`MEMORY_UNIT`].
    pub(crate) memory: Arc<Semaphore>,
    /// Counts bytes of chunks.
    pub(crate) traffic: Arc<Traffic>,
}

/// Bytes of chunks, by peer, since the start.
#[derive(Default)]
pub(crate) struct Traffic {
    by_peer: Mutex<BTreeMap<NodeId, Moved>>,
}

/// Bytes of chunks moved to and from a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

impl Traffic {
    pub(crate) fn sent(&self, node: NodeId, bytes: u64) {
        self.count(node, |moved| moved.sent += bytes);
    }

    pub(crate) fn received(&self, node: NodeId, bytes: u64) {
        self.count(node, |moved| moved.received += bytes);
    }

    /// What was moved to and from one peer.
    pub(crate) fn of(&self, node: &NodeId) -> Moved {
        let by_peer = self.by_peer.lock().expect("no panic under this lock");
        by_peer.get(node).copied().unwrap_or_default()
    }

    /// What was moved to and from all peers.
    pub(crate) fn all(&self) -> Moved {
        let by_peer = self.by_peer.lock().expect("no panic under this lock");
        let add = |sum: Moved, moved: &Moved| Moved {
            sent: sum.sent + moved.sent,
            received: sum.received + moved.received,
        };
        by_peer.values().fold(Moved::default(), add)
    }

    fn count(&self, node: NodeId, count: impl FnOnce(&mut Moved)) {
        let mut by_peer = self.by_peer.lock().expect("no panic under this lock");
        if by_peer.len() < TRAFFIC_PEERS_MAX || by_peer.contains_key(&node) {
            count(by_peer.entry(node).or_default());
        }
    }
}

/// Peers whose bytes are counted.
const TRAFFIC_PEERS_MAX: usize = 4096;

/// Why no question can be asked on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the stream has ended")]
pub(crate) struct Closed;

/// How a link ended, unless it rested for long.
#[derive(Debug, Error)]
pub(crate) enum LinkError {
    #[error("open bulk stream")]
    Open(#[from] OpenError),
    #[error("no bulk stream within {} s", OPEN_DEADLINE.as_secs())]
    OpenDeadline,
    #[error(transparent)]
    Stream(#[from] BulkError),
    #[error("the peer takes nothing")]
    Stuck,
    #[error("the peer ended the stream")]
    Ended,
    #[error(transparent)]
    Misdeed(#[from] Misdeed),
}

/// What no peer does that follows the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum Misdeed {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("no greeting, or a second one")]
    Greeting,
    #[error("greeting of another cluster")]
    Cluster,
    #[error("answer to nothing that was asked")]
    Unasked,
    #[error("more bytes than it had credit for")]
    Overrun,
}

impl Link {
    /// A link whose [`Link::run`] is yet to be run, with what it needs.
    pub(crate) fn new(node: NodeId) -> (Arc<Link>, mpsc::Receiver<Encoded>) {
        let (outbox, queue) = mpsc::channel(OUTBOX_MAX);
        let routes = Routes {
            open: BTreeMap::new(),
            next: 0,
            late: 0,
            closed: false,
            used: Instant::now(),
        };
        let link = Link {
            node,
            outbox,
            routes: Mutex::new(routes),
            consumed: Arc::default(),
            granted: AtomicU64::new(CREDIT_WINDOW.into()),
            closing: Notify::new(),
        };
        (Arc::new(link), queue)
    }

    /// Asks; answers go to `listener`. Never blocks.
    ///
    /// **Errors**: the link has ended, or ends now because the peer takes no questions.
    pub(crate) fn ask(
        self: &Arc<Link>,
        question: Question,
        listener: &Listener,
    ) -> Result<Asked, Closed> {
        let (expects, left) = expectation(&question);
        let id = AskId::next();
        let mut routes = self.routes();
        if routes.closed {
            return Err(Closed);
        }
        let number = routes.free_number();
        let route = Route {
            listener: listener.clone(),
            ask: id,
            expects,
            left,
        };
        let frame = frame(number, question).encode();
        if self.outbox.try_send(frame).is_err() {
            routes.closed = true;
            self.closing.notify_one();
            return Err(Closed);
        }
        routes.open.insert(number, route);
        routes.used = Instant::now();
        drop(routes);
        let link = Arc::clone(self);
        let of = AskedOf::Link(link, number);
        Ok(Asked { id, of })
    }

    /// Whether it takes no more questions.
    pub(crate) fn is_closed(&self) -> bool {
        self.routes().closed
    }

    /// Ends the link soon.
    pub(crate) fn close(&self) {
        self.closing.notify_one();
    }

    /// Opens the stream and serves it to its end; then all who wait hear of it.
    ///
    /// **Cancellation**: those who wait hear nothing if this is dropped. Only the end of the
    /// whole exchange does so.
    pub(crate) async fn run(
        &self,
        parts: &LinkParts,
        queue: mpsc::Receiver<Encoded>,
    ) -> Result<(), LinkError> {
        let outcome = tokio::select! {
            outcome = self.converse(parts, queue) => outcome,
            () = self.rest() => Ok(()),
            () = self.closing.notified() => Err(LinkError::Stuck),
        };
        let waiting = {
            let mut routes = self.routes();
            routes.closed = true;
            std::mem::take(&mut routes.open)
        };
        for route in waiting.into_values() {
            let heard = self.heard(route.ask, Answer::Gone);
            let _ = route.listener.send(heard).await;
        }
        outcome
    }

    async fn converse(
        &self,
        parts: &LinkParts,
        queue: mpsc::Receiver<Encoded>,
    ) -> Result<(), LinkError> {
        let opening = timeout(OPEN_DEADLINE, parts.network.open_bulk(self.node));
        let stream = opening.await.map_err(|_| LinkError::OpenDeadline)??;
        let (sender, receiver) = stream.split();
        tokio::select! {
            outcome = self.write(sender, queue, parts.cluster) => outcome,
            outcome = self.read(receiver, parts) => outcome,
        }
    }

    /// Sends questions and credit until the stream fails.
    async fn write(
        &self,
        mut sender: BulkSender,
        mut queue: mpsc::Receiver<Encoded>,
        cluster: ClusterId,
    ) -> Result<(), LinkError> {
        send(&mut sender, greeting(cluster).encode()).await?;
        let mut meter = CreditMeter::default();
        loop {
            let frame = tokio::select! {
                frame = queue.recv() => match frame {
                    Some(frame) => frame,
                    // The link is in use as long as this runs, and holds the other end.
                    None => return pending().await,
                },
                () = self.consumed.news.notified() => {
                    let bytes = self.consumed.bytes.swap(0, Ordering::Relaxed);
                    match meter.consumed(u32::try_from(bytes).unwrap_or(u32::MAX)) {
                        None => continue,
                        Some(bytes) => {
                            // Before the peer can know of it.
                            self.granted.fetch_add(bytes.into(), Ordering::Relaxed);
                            Frame::Credit { bytes }.encode()
                        }
                    }
                }
            };
            send(&mut sender, frame).await?;
        }
    }

    /// Takes answers until the stream fails.
    async fn read(&self, mut receiver: BulkReceiver, parts: &LinkParts) -> Result<(), LinkError> {
        let mut decoder = Decoder::new();
        let mut greeted = false;
        let mut received = 0;
        loop {
            let bytes = if greeted {
                receiver.receive().await?
            } else {
                let greeting = timeout(HELLO_DEADLINE, receiver.receive()).await;
                greeting.map_err(|_| LinkError::Stuck)??
            };
            decoder.feed(&bytes.ok_or(LinkError::Ended)?);
            while let Some(frame) = decoder.next().map_err(Misdeed::Wire)? {
                if let Frame::Hello(hello) = frame {
                    check_greeting(&hello, parts.cluster, greeted)?;
                    greeted = true;
                    continue;
                }
                if !greeted {
                    return Err(Misdeed::Greeting.into());
                }
                self.take(frame, &mut received, parts).await?;
            }
        }
    }

    /// Hands an answer to whoever asked.
    async fn take(
        &self,
        frame: Frame,
        received: &mut u64,
        parts: &LinkParts,
    ) -> Result<(), LinkError> {
        let Some((number, said, over)) = said(frame) else {
            return Ok(());
        };
        if let Said::Chunk { bytes, .. } = &said {
            *received += bytes.len() as u64;
            if *received > self.granted.load(Ordering::Relaxed) {
                return Err(Misdeed::Overrun.into());
            }
            parts.traffic.received(self.node, bytes.len() as u64);
        }
        let Some((listener, ask)) = self.routes().route(number, &said, over)? else {
            if let Said::Chunk { bytes, .. } = &said {
                self.consumed.add(bytes.len() as u64);
            }
            return Ok(());
        };
        let answer = match said {
            Said::Other(answer) => answer,
            Said::Chunk { chunk, bytes } => {
                let units = (bytes.len() / MEMORY_UNIT + 1) as u32;
                let memory = Arc::clone(&parts.memory).acquire_many_owned(units).await;
                let received = Received {
                    bytes,
                    consumed: Arc::clone(&self.consumed),
                    _memory: memory.map_err(|_| LinkError::Ended)?,
                };
                Answer::Chunk {
                    chunk,
                    bytes: received,
                }
            }
        };
        // Whoever stopped listening has dropped its `Asked` or is about to.
        let _ = listener.send(self.heard(ask, answer)).await;
        Ok(())
    }

    /// Returns once nothing was asked for a while; nothing can be asked then.
    async fn rest(&self) {
        loop {
            sleep(REST_AFTER / 4).await;
            let mut routes = self.routes();
            if routes.open.is_empty() && routes.used.elapsed() >= REST_AFTER {
                routes.closed = true;
                return;
            }
        }
    }

    fn withdraw(&self, number: RequestNumber) {
        let mut routes = self.routes();
        let Some(route) = routes.open.remove(&number) else {
            return;
        };
        let late = match route.expects {
            Expects::Have => DELTAS_LATE_MAX,
            Expects::Manifest | Expects::Chunks(_) => route.left,
        };
        routes.late = (routes.late + u64::from(late)).min(LATE_MAX);
        routes.used = Instant::now();
        let cancel = Frame::Cancel { req: number }.encode();
        if !routes.closed && self.outbox.try_send(cancel).is_err() {
            self.closing.notify_one();
        }
    }

    fn heard(&self, ask: AskId, answer: Answer) -> Heard {
        let node = self.node;
        Heard { node, ask, answer }
    }

    fn routes(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().expect("no panic under this lock")
    }
}

impl Routes {
    fn free_number(&mut self) -> RequestNumber {
        loop {
            self.next = self.next.wrapping_add(1);
            if !self.open.contains_key(&self.next) {
                return self.next;
            }
        }
    }

    /// Who asked; `None` if they no longer want to know.
    fn route(
        &mut self,
        number: RequestNumber,
        said: &Said,
        over: bool,
    ) -> Result<Option<(Listener, AskId)>, Misdeed> {
        self.used = Instant::now();
        let Some(route) = self.open.get_mut(&number) else {
            self.late = self.late.checked_sub(1).ok_or(Misdeed::Unasked)?;
            return Ok(None);
        };
        if !route.expects.fits(said) || route.left == 0 {
            return Err(Misdeed::Unasked);
        }
        route.left -= 1;
        let to = (route.listener.clone(), route.ask);
        let all_chunks = matches!(route.expects, Expects::Chunks(_)) && route.left == 0;
        if over || all_chunks {
            self.open.remove(&number);
        }
        Ok(Some(to))
    }
}

/// A frame of an answerer, before there is room for its bytes.
enum Said {
    Chunk { chunk: u32, bytes: Bytes },
    Other(Answer),
}

/// Takes an answer apart: its number, what it says, whether it is the last. `None` for frames of an
/// asker, which mean nothing here.
fn said(frame: Frame) -> Option<(RequestNumber, Said, bool)> {
    Some(match frame {
        Frame::Have { req, have } => (req, Said::Other(Answer::Have(have)), false),
        Frame::HaveDelta { req, segments } => (req, Said::Other(Answer::Gained(segments)), false),
        Frame::Others { req, nodes } => (req, Said::Other(Answer::Others(nodes)), false),
        Frame::Data {
            req,
            chunk,
            last,
            bytes,
        } => (req, Said::Chunk { chunk, bytes }, last),
        Frame::Busy { req, retry } => (req, Said::Other(Answer::Busy(retry)), true),
        Frame::NotFound { req, chunk } => {
            (req, Said::Other(Answer::NotFound(chunk)), chunk.is_none())
        }
        Frame::Error { req, .. } => (req, Said::Other(Answer::Error), true),
        Frame::Manifest {
            req,
            offset,
            total,
            bytes,
        } => {
            let last = u64::from(offset) + bytes.len() as u64 >= u64::from(total);
            let part = Answer::Manifest {
                offset,
                total,
                bytes,
            };
            (req, Said::Other(part), last)
        }
        Frame::Hello(_)
        | Frame::HaveQuery { .. }
        | Frame::Get { .. }
        | Frame::GetMany { .. }
        | Frame::Cancel { .. }
        | Frame::Credit { .. }
        | Frame::ManifestQuery { .. } => return None,
    })
}

impl Expects {
    fn fits(&self, said: &Said) -> bool {
        let asked = |chunk: u32| match self {
            Expects::Chunks(ranges) => ranges
                .iter()
                .any(|range| chunk >= range.first && chunk - range.first < range.count),
            Expects::Have | Expects::Manifest => false,
        };
        match said {
            Said::Chunk { chunk, .. } => asked(*chunk),
            Said::Other(Answer::NotFound(Some(chunk))) => asked(*chunk),
            Said::Other(Answer::Have(_) | Answer::Gained(_) | Answer::Others(_)) => {
                matches!(self, Expects::Have)
            }
            Said::Other(Answer::Manifest { .. }) => matches!(self, Expects::Manifest),
            Said::Other(
                Answer::Busy(_)
                | Answer::NotFound(None)
                | Answer::Error
                | Answer::Chunk { .. }
                | Answer::Gone,
            ) => true,
        }
    }
}

/// What answers fit a question, and how many of them.
fn expectation(question: &Question) -> (Expects, u32) {
    match question {
        Question::Have(_) => (Expects::Have, HAVES_MAX),
        Question::Manifest(_) => (Expects::Manifest, MANIFEST_PARTS_MAX),
        Question::Chunks { ranges, .. } => {
            let count = ranges
                .iter()
                .fold(0u32, |sum, range| sum.saturating_add(range.count));
            (Expects::Chunks(ranges.clone()), count)
        }
    }
}

fn frame(req: RequestNumber, question: Question) -> Frame {
    match question {
        Question::Have(object) => Frame::HaveQuery { req, object },
        Question::Manifest(object) => Frame::ManifestQuery { req, object },
        Question::Chunks {
            object,
            ranges,
            priority,
            deadline,
        } => Frame::Get {
            req,
            object,
            ranges,
            priority,
            deadline,
        },
    }
}

/// What either side of a stream says first.
pub(crate) fn greeting(cluster: ClusterId) -> Frame {
    Frame::Hello(Hello {
        protocol: PROTOCOL,
        capabilities: 0,
        window: CREDIT_WINDOW,
        cluster,
    })
}

/// Whether a greeting is the one to expect.
///
/// **Errors**: it is a second one, or of another cluster or no known protocol.
pub(crate) fn check_greeting(
    hello: &Hello,
    cluster: ClusterId,
    greeted: bool,
) -> Result<(), Misdeed> {
    if greeted || hello.protocol < PROTOCOL {
        return Err(Misdeed::Greeting);
    }
    match hello.cluster == cluster {
        true => Ok(()),
        false => Err(Misdeed::Cluster),
    }
}

async fn send(sender: &mut BulkSender, frame: Encoded) -> Result<(), LinkError> {
    let sent = timeout(SEND_DEADLINE, sender.send(&frame.head, &frame.body)).await;
    Ok(sent.map_err(|_| LinkError::Stuck)??)
}

/// Bytes that one permit of the shared memory stands for.
pub(crate) const MEMORY_UNIT: usize = 1024;
/// For the first frame of a stream.
pub(crate) const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// For a frame to leave.
pub(crate) const SEND_DEADLINE: Duration = Duration::from_secs(30);
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// A stream without questions is closed after this long.
const REST_AFTER: Duration = Duration::from_secs(60);
/// Questions that wait to be sent. With one more the peer counts as stuck.
const OUTBOX_MAX: usize = 4096;
/// Answers to one query of what is held: a segment is gained once.
const HAVES_MAX: u32 = 1 << 16;
/// A manifest comes in parts of 64 KiB or more.
const MANIFEST_PARTS_MAX: u32 = (MANIFEST_LEN_MAX >> 16) as u32;
/// Answers that all withdrawn questions excuse, and those of them about what is held.
const LATE_MAX: u64 = 1 << 20;
const DELTAS_LATE_MAX: u32 = 1024;
