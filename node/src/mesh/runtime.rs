//! The task that drives the replica: network events in, its actions out.
//!
//! The replica is a value behind a lock that queries take as well. Handling an event may wait for
//! the disk, so it runs on a blocking thread; one event at a time, in the order they came.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use attic_p2p::directory::Change;
use attic_p2p::ids::NodeId;
use attic_p2p::network::{
    GossipToken, Network, NetworkEvent, PublishError, Topic, Verdict as GossipVerdict,
};
use attic_p2p::record::Record;
use attic_p2p::replica::{Action, Event, Repairs, Replica, Verdict};
use attic_p2p::time::Millis;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep_until;

use crate::clock::unix_now_millis;
use crate::http::ingest::joined;
use crate::mesh::exchange::{BanCause, Exchange};
use crate::mesh::log::LogFiles;
use crate::mesh::query::{Query, Reply};

/// The replica, for whoever asks its directory.
pub(crate) type SharedReplica = Arc<Mutex<Replica<LogFiles>>>;

pub(crate) fn lock(replica: &SharedReplica) -> MutexGuard<'_, Replica<LogFiles>> {
    replica.lock().expect("no panic under this lock")
}

/// What else happens to the mesh than the replica's business.
#[derive(Debug)]
pub(crate) enum News {
    /// The directory changed.
    Changed(Vec<Change>),
    /// A peer came.
    PeerUp(NodeId),
    /// A peer went.
    PeerDown(NodeId),
    /// Somebody was reached at this address.
    Reached(NodeId, attic_p2p::Multiaddr),
    /// A peer asks something that is not the replica's.
    Asked {
        from: NodeId,
        query: Query,
        reply: oneshot::Sender<Bytes>,
    },
    /// A peer opened a bulk stream.
    Bulk(attic_p2p::bulk::BulkStream),
    /// The log takes records now.
    Writable,
}

/// Drives a replica until it is dropped.
pub(crate) struct Runtime {
    replica: SharedReplica,
    network: Network,
    exchange: Exchange,
    topic: Topic,
    events: mpsc::Receiver<NetworkEvent>,
    records: mpsc::Receiver<Vec<Record>>,
    news: mpsc::Sender<News>,
    answers: (mpsc::Sender<Answer>, mpsc::Receiver<Answer>),
    /// Who waits for the replica's response to a request.
    asked: BTreeMap<u64, oneshot::Sender<Bytes>>,
    next_id: u64,
    asking: JoinSet<()>,
    wake: Option<Instant>,
    was_starting: bool,
    repairs: Repairs,
    clock: Clock,
    counters: watch::Sender<Counters>,
}

/// What a peer answered to a request of the replica.
struct Answer {
    from: NodeId,
    id: u64,
    bytes: Option<Bytes>,
}

/// For metrics.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) gossip_sent: u64,
    pub(crate) gossip_received: u64,
    pub(crate) gossip_rejected: u64,
    pub(crate) sync_sent_bytes: u64,
    pub(crate) sync_received_bytes: u64,
    pub(crate) misbehaved: u64,
    pub(crate) rejected_records: u64,
}

/// What a runtime is made of.
pub(crate) struct Setup {
    pub(crate) replica: SharedReplica,
    pub(crate) network: Network,
    /// Told of peers that misbehave.
    pub(crate) exchange: Exchange,
    pub(crate) topic: Topic,
    pub(crate) events: mpsc::Receiver<NetworkEvent>,
    pub(crate) records: mpsc::Receiver<Vec<Record>>,
    pub(crate) news: mpsc::Sender<News>,
    pub(crate) counters: watch::Sender<Counters>,
}

impl Runtime {
    pub(crate) fn new(setup: Setup) -> Runtime {
        Runtime {
            replica: setup.replica,
            network: setup.network,
            exchange: setup.exchange,
            topic: setup.topic,
            events: setup.events,
            records: setup.records,
            news: setup.news,
            answers: mpsc::channel(ANSWERS_MAX),
            asked: BTreeMap::new(),
            next_id: 0,
            asking: JoinSet::new(),
            wake: None,
            was_starting: true,
            repairs: Repairs::default(),
            clock: Clock::new(),
            counters: setup.counters,
        }
    }

    /// Runs until the network or everybody with records is gone.
    pub(crate) async fn run(mut self) {
        self.handle(Event::Tick, None).await;
        loop {
            let wake = self.wake.unwrap_or_else(|| Instant::now() + IDLE);
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => self.network_event(event).await,
                    None => return,
                },
                records = self.records.recv() => match records {
                    Some(records) => self.handle(Event::Local(records), None).await,
                    None => return,
                },
                Some(answer) = self.answers.1.recv() => {
                    let len = answer.bytes.as_ref().map_or(0, Bytes::len) as u64;
                    self.count(|counters| counters.sync_received_bytes += len);
                    let Answer { from, id, bytes } = answer;
                    self.handle(Event::Response { from, id, bytes }, None).await;
                }
                Some(_) = self.asking.join_next() => {}
                () = sleep_until(wake.into()) => {
                    self.wake = None;
                    self.handle(Event::Tick, None).await;
                }
            }
        }
    }

    async fn network_event(&mut self, event: NetworkEvent) {
        match event {
            NetworkEvent::PeerUp { node, .. } => {
                self.handle(Event::PeerUp(node), None).await;
                self.tell(News::PeerUp(node)).await;
            }
            NetworkEvent::PeerDown { node } => {
                self.handle(Event::PeerDown(node), None).await;
                self.tell(News::PeerDown(node)).await;
            }
            NetworkEvent::Reached { node, address } => {
                self.tell(News::Reached(node, address)).await;
            }
            NetworkEvent::Gossip {
                from, bytes, token, ..
            } => {
                self.count(|counters| counters.gossip_received += 1);
                self.handle(Event::Gossip { from, bytes }, Some(token))
                    .await;
            }
            NetworkEvent::GossipUnsent { node } => self.handle(Event::Unsent(node), None).await,
            NetworkEvent::Request { from, bytes, reply } => self.request(from, bytes, reply).await,
            NetworkEvent::Bulk { stream, .. } => self.tell(News::Bulk(stream)).await,
            NetworkEvent::Misbehaved { node, what } => {
                self.count(|counters| counters.misbehaved += 1);
                self.exchange.ban(node, BanCause::Flood, &what.to_string());
            }
            NetworkEvent::Listening(address) => tracing::info!(%address, "listening for nodes"),
        }
    }

    async fn request(&mut self, from: NodeId, bytes: Bytes, reply: oneshot::Sender<Bytes>) {
        match Query::decode(&bytes) {
            Some(Query::Sync(bytes)) => {
                self.asked.retain(|_, waiting| !waiting.is_closed());
                let id = self.new_id();
                self.asked.insert(id, reply);
                self.handle(Event::Request { from, id, bytes }, None).await;
            }
            Some(query) => self.tell(News::Asked { from, query, reply }).await,
            // Dropping `reply` says that it failed.
            None => tracing::debug!(%from, "a question nobody knows"),
        }
    }

    /// Hands an event to the replica and does what it says.
    async fn handle(&mut self, event: Event, token: Option<GossipToken>) {
        let now = self.clock.now();
        let replica = Arc::clone(&self.replica);
        let handled = spawn_blocking(move || {
            let mut replica = lock(&replica);
            let actions = replica.handle(now, event);
            (actions, replica.is_starting(), replica.repairs())
        });
        let (actions, is_starting, repairs) = joined(handled.await);
        self.tell_repairs(repairs);
        let mut token = token;
        for action in actions {
            self.act(action, &mut token).await;
        }
        if let Some(token) = token {
            self.network.report(token, GossipVerdict::Ignore).await;
        }
        if self.was_starting && !is_starting {
            self.was_starting = false;
            self.tell(News::Writable).await;
        }
    }

    /// Tells people what the replica found.
    fn tell_repairs(&mut self, repairs: Repairs) {
        let before = std::mem::replace(&mut self.repairs, repairs);
        if repairs.damaged > before.damaged {
            tracing::error!(
                segments = repairs.damaged,
                "parts of the cluster's logs decayed"
            );
        }
        if repairs.mended > before.mended {
            tracing::warn!(left = repairs.damaged, "a decayed segment came again");
        }
        if repairs.healed > before.healed {
            tracing::error!("what was folded from the logs was wrong, and was folded anew");
        }
        if repairs.contradicted > before.contradicted {
            tracing::warn!("a peer's state does not follow from the logs");
        }
    }

    async fn act(&mut self, action: Action, token: &mut Option<GossipToken>) {
        match action {
            Action::Publish(bytes) => self.publish(bytes).await,
            Action::Judge(verdict) => self.judge(verdict, token.take()).await,
            Action::Request { to, id, bytes } => self.ask(to, id, bytes),
            Action::Respond { id, bytes } => {
                if let Some(reply) = self.asked.remove(&id) {
                    let len = bytes.len() as u64;
                    self.count(|counters| counters.sync_sent_bytes += len);
                    // Whoever asked may be gone.
                    let _ = reply.send(Reply::Sync(bytes).encode());
                }
            }
            Action::Changed(changes) => self.tell(News::Changed(changes)).await,
            Action::Misbehaved { node, why } => {
                self.count(|counters| counters.misbehaved += 1);
                self.exchange.ban(node, BanCause::Records, &why);
            }
            Action::Rejected(records) => {
                let count = records.len();
                self.count(|counters| counters.rejected_records += count as u64);
                tracing::error!(
                    count,
                    "records were not written: this node's log is as long as mesh.log-max lets it be, \
                     too much waits to be written, or one is longer than a record may be"
                );
            }
            Action::LogFailed(error) => {
                tracing::error!(
                    cause = crate::http::error::chain(&error),
                    "the log cannot be used"
                );
            }
            Action::Wake(at) => self.wake = Some(self.clock.instant(at)),
        }
    }

    async fn publish(&mut self, bytes: Bytes) {
        match self.network.publish(&self.topic, bytes).await {
            Ok(()) => self.count(|counters| counters.gossip_sent += 1),
            // Anti-entropy brings it to whoever comes.
            Err(PublishError::NoPeers | PublishError::Duplicate) => {}
            Err(error) => tracing::debug!(%error, "gossip not sent"),
        }
    }

    async fn judge(&mut self, verdict: Verdict, token: Option<GossipToken>) {
        let verdict = match verdict {
            Verdict::Accept => GossipVerdict::Accept,
            Verdict::Ignore => GossipVerdict::Ignore,
            Verdict::Reject => GossipVerdict::Reject,
        };
        if verdict == GossipVerdict::Reject {
            self.count(|counters| counters.gossip_rejected += 1);
        }
        if let Some(token) = token {
            self.network.report(token, verdict).await;
        }
    }

    /// Sends a request of the replica; the answer comes back as an event.
    fn ask(&mut self, to: NodeId, id: u64, bytes: Bytes) {
        let len = bytes.len() as u64;
        self.count(|counters| counters.sync_sent_bytes += len);
        let (network, answers) = (self.network.clone(), self.answers.0.clone());
        self.asking.spawn(async move {
            let response = network.request(to, Query::Sync(bytes).encode()).await;
            let bytes = match response.ok().and_then(|bytes| Reply::decode(&bytes)) {
                Some(Reply::Sync(bytes)) => Some(bytes),
                _ => None,
            };
            let answer = Answer {
                from: to,
                id,
                bytes,
            };
            let _ = answers.send(answer).await;
        });
    }

    async fn tell(&mut self, news: News) {
        // Ends when nobody takes news any more, which is when the mesh ends.
        let _ = self.news.send(news).await;
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn count(&self, change: impl FnOnce(&mut Counters)) {
        self.counters.send_modify(change);
    }
}

/// The time in milliseconds since 1970 that does not go back while the program runs.
struct Clock {
    start: Instant,
    start_millis: u64,
}

impl Clock {
    fn new() -> Clock {
        Clock {
            start: Instant::now(),
            start_millis: unix_now_millis(),
        }
    }

    fn now(&self) -> Millis {
        Millis(self.start_millis + self.start.elapsed().as_millis() as u64)
    }

    fn instant(&self, at: Millis) -> Instant {
        let after = at.0.saturating_sub(self.start_millis);
        // One millisecond late rather than early: an early tick finds nothing due.
        self.start + Duration::from_millis(after.saturating_add(1).min(WAKE_MAX))
    }
}

/// Requests of the replica under way are fewer by far.
const ANSWERS_MAX: usize = 64;
/// How often the replica is asked when it has no wish.
const IDLE: Duration = Duration::from_secs(60);
/// A year: later wishes are forgotten ones.
const WAKE_MAX: u64 = 365 * 24 * 3600 * 1000;
