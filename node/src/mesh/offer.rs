//! The answering side of the exchange: sends chunks to peers that ask.
//!
//! One task owns the [`Provider`], which decides whom to send what. Streams feed it frames and take
//! frames from it; look-ups and reads run on blocking threads. NARs of the store are read in large
//! runs ahead of what is asked; chunks of a NAR in flight one by one.
//!
//! A peer can make this side hold no more than [`QUEUE_MAX`] short frames and what the provider lets
//! be unsent: if it does not read its answers its stream ends. While [`JOBS_MAX`] look-ups and
//! reads are under way no frames are taken from anybody.

mod serving;
mod stream;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use attic_p2p::bulk::BulkStream;
use attic_p2p::ids::{ClusterId, NodeId};
use attic_p2p::provider::{Action, Event, JobId, Provider, ProviderStats};
use attic_p2p::wire::{Frame, Object};
use attic_store::{NarHash, Store};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval};

use crate::http::ingest::joined;
use crate::mesh::exchange::Exchange;
use crate::mesh::flight::{Flights, Gained};

use serving::{Ahead, Done, Found, Run, Served, look_up, read_run};
pub(crate) use stream::Pace;
use stream::{StreamParts, serve_stream};

/// Whether a peer may read a NAR: by the scopes of its certificate, and the caches that show it.
pub(crate) trait Permission: Send + Sync + 'static {
    /// Called on a blocking thread, for every request.
    fn may_read(&self, peer: NodeId, nar: &NarHash) -> bool;
}

/// What an offer works with.
pub(crate) struct OfferParts {
    pub(crate) cluster: ClusterId,
    pub(crate) store: Store,
    pub(crate) flights: Flights,
    /// Told of peers that break the protocol.
    pub(crate) exchange: Exchange,
    pub(crate) permission: Arc<dyn Permission>,
    pub(crate) pace: Arc<Pace>,
    /// From [`gains`](crate::mesh::flight::gains), as the flights'.
    pub(crate) gained: mpsc::Receiver<Gained>,
}

/// The running answering side. It ends when this is dropped.
pub(crate) struct Offer {
    inbox: mpsc::Sender<Incoming>,
    stats: watch::Receiver<ProviderStats>,
    task: JoinSet<()>,
}

impl Offer {
    /// Starts it in the tokio runtime this is called in.
    pub(crate) fn start(parts: OfferParts) -> Offer {
        let (inbox, incoming) = mpsc::channel(INBOX_MAX);
        let (told, stats) = watch::channel(ProviderStats::default());
        let desk = Desk::new(parts, inbox.downgrade(), told);
        let mut task = JoinSet::new();
        task.spawn(desk.run(incoming));
        Offer { inbox, stats, task }
    }

    /// Serves a stream that a peer opened. A stream of the same peer that is still open ends.
    pub(crate) async fn accept(&self, stream: BulkStream) {
        let _ = self.inbox.send(Incoming::Stream(stream)).await;
    }

    /// How busy it is, a second ago at most.
    pub(crate) fn stats(&self) -> ProviderStats {
        *self.stats.borrow()
    }

    /// Ends all streams, and waits for it.
    pub(crate) async fn shutdown(mut self) {
        self.task.shutdown().await;
    }
}

/// What reaches the task.
pub(super) enum Incoming {
    Stream(BulkStream),
    Frame(StreamId, Frame),
    /// Bytes of chunks and manifests that left.
    Sent(StreamId, u64),
    /// The stream ended.
    Over(StreamId),
}

/// One stream of a peer, among all it ever opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StreamId {
    peer: NodeId,
    number: u64,
}

/// A peer's stream.
struct Asker {
    id: StreamId,
    queue: mpsc::Sender<Frame>,
    task: AbortHandle,
}

/// What the task holds.
struct Desk {
    parts: OfferParts,
    inbox: mpsc::WeakSender<Incoming>,
    told: watch::Sender<ProviderStats>,
    epoch: Instant,
    provider: Provider,
    askers: BTreeMap<NodeId, Asker>,
    next_stream: u64,
    streams: JoinSet<()>,
    jobs: JoinSet<Done>,
    /// Lets so many jobs use a blocking thread at a time.
    threads: Arc<Semaphore>,
    /// What was looked up lately, and when it was used last.
    served: BTreeMap<Object, (Served, Instant)>,
    /// Done without a thread, to be told to the provider.
    ready: VecDeque<Done>,
    ahead: Ahead,
}

impl Desk {
    fn new(
        parts: OfferParts,
        inbox: mpsc::WeakSender<Incoming>,
        told: watch::Sender<ProviderStats>,
    ) -> Desk {
        Desk {
            parts,
            inbox,
            told,
            epoch: Instant::now(),
            provider: Provider::new(),
            askers: BTreeMap::new(),
            next_stream: 0,
            streams: JoinSet::new(),
            jobs: JoinSet::new(),
            threads: Arc::new(Semaphore::new(THREADS)),
            served: BTreeMap::new(),
            ready: VecDeque::new(),
            ahead: Ahead::default(),
        }
    }

    async fn run(mut self, mut incoming: mpsc::Receiver<Incoming>) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                came = incoming.recv(), if self.jobs.len() < JOBS_MAX => match came {
                    Some(came) => self.take(came),
                    None => return,
                },
                Some(gained) = self.parts.gained.recv() => self.step(match gained {
                    Gained::Begun(object) => Event::Begun { object },
                    Gained::Segments { object, segments } => Event::Gained { object, segments },
                }),
                Some(done) = self.jobs.join_next() => self.done(joined(done)),
                _ = self.streams.join_next(), if !self.streams.is_empty() => {}
                _ = tick.tick() => self.tick(),
            }
            while let Some(done) = self.ready.pop_front() {
                self.done(done);
            }
        }
    }

    fn take(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Stream(stream) => self.open(stream),
            Incoming::Frame(id, frame) if self.is_open(id) => {
                let peer = id.peer;
                self.step(Event::Frame { peer, frame });
            }
            Incoming::Sent(id, bytes) if self.is_open(id) => {
                let peer = id.peer;
                self.step(Event::Sent { peer, bytes });
            }
            Incoming::Over(id) if self.is_open(id) => self.close(id.peer),
            Incoming::Frame(..) | Incoming::Sent(..) | Incoming::Over(_) => {}
        }
    }

    fn is_open(&self, id: StreamId) -> bool {
        self.askers
            .get(&id.peer)
            .is_some_and(|asker| asker.id == id)
    }

    fn open(&mut self, stream: BulkStream) {
        let Some(inbox) = self.inbox.upgrade() else {
            return;
        };
        let peer = stream.node();
        self.close(peer);
        self.next_stream += 1;
        let id = StreamId {
            peer,
            number: self.next_stream,
        };
        let (queue, frames) = mpsc::channel(QUEUE_MAX);
        let parts = StreamParts {
            id,
            cluster: self.parts.cluster,
            exchange: self.parts.exchange.clone(),
            pace: Arc::clone(&self.parts.pace),
            inbox,
        };
        let task = self.streams.spawn(serve_stream(stream, frames, parts));
        self.askers.insert(peer, Asker { id, queue, task });
    }

    /// Ends a peer's stream, if it has one.
    fn close(&mut self, peer: NodeId) {
        if let Some(asker) = self.askers.remove(&peer) {
            asker.task.abort();
            self.step(Event::Gone { peer });
        }
    }

    fn tick(&mut self) {
        self.step(Event::Tick);
        self.served.retain(|_, (_, used)| used.elapsed() < KEPT_FOR);
        self.ahead.forget_old();
        self.told.send_replace(self.provider.stats());
    }

    /// Lets the provider handle an event and does what it says.
    fn step(&mut self, event: Event) {
        let actions = self.provider.handle(self.epoch.elapsed(), event);
        for action in actions {
            match action {
                Action::LookUp { job, peer, object } => self.look_up(job, peer, object),
                Action::Read { job, object, chunk } => self.read(job, object, chunk),
                Action::Send { peer, frame } => self.send(peer, frame),
            }
        }
    }

    fn send(&mut self, peer: NodeId, frame: Frame) {
        let Some(asker) = self.askers.get(&peer) else {
            return;
        };
        if asker.queue.try_send(frame).is_err() {
            tracing::debug!(%peer, "stream ended: the peer does not read");
            self.close(peer);
        }
    }

    fn look_up(&mut self, job: JobId, peer: NodeId, object: Object) {
        let known = self.served.get(&object).map(|(served, _)| served.clone());
        let store = self.parts.store.clone();
        let flights = self.parts.flights.clone();
        let permission = Arc::clone(&self.parts.permission);
        self.work(move || {
            if !permission.may_read(peer, &object.nar) {
                return Done::Refused { job };
            }
            flights.met(&object, peer);
            Done::LookUp {
                job,
                object,
                found: look_up(&store, &flights, &object, known),
            }
        });
    }

    /// Reads a chunk: it may have been read ahead, or be about to be.
    fn read(&mut self, job: JobId, object: Object, chunk: u32) {
        let Some((served, used)) = self.served.get_mut(&object) else {
            self.ready.push_back(Done::Chunk { job, bytes: None });
            return;
        };
        *used = Instant::now();
        if let Some(bytes) = self.ahead.take(&object, chunk) {
            let bytes = Some(bytes);
            self.ready.push_back(Done::Chunk { job, bytes });
            return;
        }
        if self.ahead.wait(&object, chunk, job) {
            return;
        }
        let run = Run::beginning(object, chunk, served);
        self.ahead.begin(&run, job);
        let served = served.clone();
        self.work(move || Done::Run(read_run(&served, run)));
    }

    /// Does something on a blocking thread, when one is free.
    fn work(&mut self, work: impl FnOnce() -> Done + Send + 'static) {
        let threads = Arc::clone(&self.threads);
        self.jobs.spawn(async move {
            // The semaphore is never closed.
            let _thread = threads.acquire_owned().await;
            joined(spawn_blocking(work).await)
        });
    }

    /// Keeps what was found for the reads to come, instead of what was not used for longest.
    fn keep(&mut self, object: Object, served: Served) {
        self.served.insert(object, (served, Instant::now()));
        let len = |served: &BTreeMap<Object, (Served, Instant)>| -> usize {
            served.values().map(|(served, _)| served.len()).sum()
        };
        while self.served.len() > SERVED_MAX
            || self.served.len() > 1 && len(&self.served) > SERVED_LEN_MAX
        {
            let oldest = self.served.iter().min_by_key(|(_, (_, used))| *used);
            let Some(oldest) = oldest.map(|(object, _)| *object) else {
                return;
            };
            self.served.remove(&oldest);
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::LookUp { job, object, found } => match found {
                Some(Found { served, holding }) => {
                    self.keep(object, served);
                    self.step(Event::Found { job, holding });
                }
                None => self.step(Event::Absent { job }),
            },
            Done::Refused { job } => self.step(Event::Forbidden { job }),
            Done::Chunk { job, bytes } => self.step(Event::Read { job, bytes }),
            Done::Run(run) => {
                for (job, bytes) in self.ahead.finish(run) {
                    self.step(Event::Read { job, bytes });
                }
            }
        }
    }
}

/// What waits for the task. Streams with more wait.
const INBOX_MAX: usize = 256;
/// Look-ups and reads under way beyond which no more is taken on.
const JOBS_MAX: usize = 512;
/// Frames that wait for a stream: more than there are chunks in what the provider lets be unsent.
/// One more ends it.
const QUEUE_MAX: usize = 64 << 10;
/// NARs kept open to be read, and bytes of their manifests. A read of one that had to make room is
/// answered as not found, and asked for again.
const SERVED_MAX: usize = 256;
const SERVED_LEN_MAX: usize = 128 << 20;
/// A NAR that is not read for so long is closed: open ones cannot be collected.
const KEPT_FOR: Duration = Duration::from_secs(30);
/// Blocking threads at work for peers.
const THREADS: usize = 8;
const TICK: Duration = Duration::from_millis(250);
