//! The asking side of the exchange: one stream to each peer that is asked for something.
//!
//! Streams are opened on demand and close when they rest. A peer to which none can be opened is left
//! alone for a while, twice as long each time. What is learnt about peers is in one [`PeerTable`]
//! for all downloads.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant};

use attic_p2p::ids::{ClusterId, NodeId};
use attic_p2p::network::Network;
use attic_p2p::peer_stats::PeerTable;
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::http::error::chain;
use crate::mesh::bucket::SharedBucket;
use crate::mesh::bucket::source::{BUCKET, BucketSource};
use crate::mesh::link::{
    Asked, Link, LinkError, LinkParts, Listener, MEMORY_UNIT, Question, Traffic,
};

/// Bytes of chunks that all downloads together hold in memory.
pub(crate) const MEMORY_LEN_MAX: usize = 256 << 20;

/// The asking side. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Exchange {
    inner: Arc<Inner>,
}

struct Inner {
    me: NodeId,
    network: Network,
    cluster: ClusterId,
    epoch: Instant,
    peers: Mutex<PeerTable>,
    links: Mutex<BTreeMap<NodeId, Way>>,
    memory: Arc<Semaphore>,
    traffic: Arc<Traffic>,
    bans: [AtomicU64; BanCause::ALL.len()],
    tasks: Mutex<JoinSet<()>>,
    /// Answers for [`BUCKET`].
    bucket: OnceLock<BucketSource>,
}

/// How a peer is reached.
#[derive(Default)]
struct Way {
    link: Option<Arc<Link>>,
    failures: Option<NonZeroU32>,
    retry_at: Option<Instant>,
}

/// Why a peer is not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum Unreachable {
    #[error("the peer is kept out")]
    Banned,
    #[error("no stream to the peer could be opened lately")]
    Resting,
    #[error("the exchange is shut down")]
    Shutdown,
}

/// Why a peer was kept out, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BanCause {
    /// It sent bytes that are not what they claim to be.
    WrongBytes,
    /// It does not follow the protocol.
    Protocol,
    /// It passed on what no honest node has in its logs.
    Records,
    /// It does without measure what costs this node time.
    Flood,
}

impl BanCause {
    pub(crate) const ALL: [BanCause; 4] = [
        BanCause::WrongBytes,
        BanCause::Protocol,
        BanCause::Records,
        BanCause::Flood,
    ];
}

impl Exchange {
    /// An exchange that has no stream yet. Runs in the tokio runtime it is used in.
    pub(crate) fn new(network: Network, me: NodeId, cluster: ClusterId) -> Exchange {
        Exchange {
            inner: Arc::new(Inner {
                me,
                network,
                cluster,
                epoch: Instant::now(),
                peers: Mutex::default(),
                links: Mutex::default(),
                memory: Arc::new(Semaphore::new(MEMORY_LEN_MAX / MEMORY_UNIT)),
                traffic: Arc::default(),
                bans: [const { AtomicU64::new(0) }; BanCause::ALL.len()],
                tasks: Mutex::default(),
                bucket: OnceLock::new(),
            }),
        }
    }

    /// Has a bucket answer for [`BUCKET`]. Only the first one does.
    pub(crate) fn add_bucket(&self, shared: Arc<SharedBucket>) {
        let memory = Arc::clone(&self.inner.memory);
        let _ = self.inner.bucket.set(BucketSource::new(shared, memory));
    }

    /// This node.
    pub(crate) fn me(&self) -> NodeId {
        self.inner.me
    }

    /// Asks a peer; answers go to `listener`, and the last may be that the stream is gone. Never
    /// blocks.
    ///
    /// **Errors**: [`Unreachable`]; nothing is heard then.
    pub(crate) fn ask(
        &self,
        node: NodeId,
        question: Question,
        listener: &Listener,
    ) -> Result<Asked, Unreachable> {
        if node == BUCKET {
            let bucket = self.inner.bucket.get().ok_or(Unreachable::Resting)?;
            if self.inner.memory.is_closed() {
                return Err(Unreachable::Shutdown);
            }
            return Ok(bucket.ask(question, listener));
        }
        let banned = |now, peers: &mut PeerTable| peers.banned_until(now, &node).is_some();
        if self.with_peers(banned) {
            return Err(Unreachable::Banned);
        }
        let link = self.inner.link(node)?;
        link.ask(question, listener)
            .map_err(|_| Unreachable::Resting)
    }

    /// Uses what is known of peers; `f` also gets the time as the table counts it. `f` must be
    /// short.
    pub(crate) fn with_peers<R>(&self, f: impl FnOnce(Duration, &mut PeerTable) -> R) -> R {
        let mut peers = self.inner.peers.lock().expect("no panic under this lock");
        f(self.inner.epoch.elapsed(), &mut peers)
    }

    /// Keeps out a peer that did what no honest one does.
    pub(crate) fn ban(&self, node: NodeId, cause: BanCause, why: &str) {
        self.inner.ban(node, cause, why);
    }

    /// Keeps out a peer as the table has noted already.
    pub(crate) fn shun(&self, node: NodeId, time: Duration, cause: BanCause, why: &str) {
        self.inner.shun(node, time, cause, why);
    }

    /// Counts bytes of chunks, to and from each peer.
    pub(crate) fn traffic(&self) -> &Traffic {
        &self.inner.traffic
    }

    /// Times a peer was kept out since the start.
    pub(crate) fn bans(&self, cause: BanCause) -> u64 {
        self.inner.bans[cause as usize].load(Ordering::Relaxed)
    }

    /// Misdeeds of a peer that are not forgiven yet: each makes its next ban longer.
    pub(crate) fn strikes(&self, node: &NodeId) -> u32 {
        self.with_peers(|now, peers| peers.strikes(now, node))
    }

    /// Ends all streams and waits for them. Nothing can be asked afterwards.
    pub(crate) async fn shutdown(&self) {
        self.inner.memory.close();
        let mut tasks = std::mem::take(&mut *self.inner.tasks());
        tasks.shutdown().await;
        self.inner.links().clear();
    }
}

impl Inner {
    /// The stream to a peer, opened if there is none.
    fn link(self: &Arc<Inner>, node: NodeId) -> Result<Arc<Link>, Unreachable> {
        if self.memory.is_closed() {
            return Err(Unreachable::Shutdown);
        }
        let mut links = self.links();
        let now = Instant::now();
        // The table holds whoever is asked or was lately.
        if links.len() >= WAYS_MAX {
            links.retain(|_, way| way.is_of_use(now));
        }
        let way = links.entry(node).or_default();
        if let Some(link) = way.link.as_ref().filter(|link| !link.is_closed()) {
            return Ok(Arc::clone(link));
        }
        if way.retry_at.is_some_and(|at| now < at) {
            return Err(Unreachable::Resting);
        }
        let (link, queue) = Link::new(node);
        way.link = Some(Arc::clone(&link));
        drop(links);
        let (running, inner) = (Arc::clone(&link), Arc::downgrade(self));
        let parts = LinkParts {
            network: self.network.clone(),
            cluster: self.cluster,
            memory: Arc::clone(&self.memory),
            traffic: Arc::clone(&self.traffic),
        };
        self.spawn(async move {
            let outcome = running.run(&parts, queue).await;
            if let Some(inner) = Weak::upgrade(&inner) {
                inner.ended(node, &running, outcome);
            }
        });
        Ok(link)
    }

    /// Notes how a link ended.
    fn ended(self: &Arc<Inner>, node: NodeId, link: &Arc<Link>, outcome: Result<(), LinkError>) {
        {
            let mut links = self.links();
            let Some(way) = links.get_mut(&node) else {
                return;
            };
            if way
                .link
                .as_ref()
                .is_some_and(|here| Arc::ptr_eq(here, link))
            {
                way.link = None;
            }
            way.rest(&outcome);
        }
        match outcome {
            Ok(()) => {}
            Err(LinkError::Misdeed(misdeed)) => {
                self.ban(node, BanCause::Protocol, &misdeed.to_string());
            }
            Err(error) => tracing::debug!(peer = %node, cause = chain(&error), "link ended"),
        }
    }

    fn ban(self: &Arc<Inner>, node: NodeId, cause: BanCause, why: &str) {
        let time = {
            let mut peers = self.peers.lock().expect("no panic under this lock");
            let now = self.epoch.elapsed();
            // What was still on its way when it was banned is the same misdeed.
            if peers.banned_until(now, &node).is_some() {
                return;
            }
            peers.ban(now, node)
        };
        self.shun(node, time, cause, why);
    }

    fn shun(self: &Arc<Inner>, node: NodeId, time: Duration, cause: BanCause, why: &str) {
        tracing::warn!(peer = %node, ?time, why, "peer kept out");
        self.bans[cause as usize].fetch_add(1, Ordering::Relaxed);
        if let Some(way) = self.links().get(&node)
            && let Some(link) = &way.link
        {
            link.close();
        }
        let (network, why) = (self.network.clone(), why.to_owned());
        self.spawn(async move { network.ban(node, time, why).await });
    }

    /// Runs a task until it ends, or the exchange does. Their number is bounded by that of peers.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<NodeId, Way>> {
        self.links.lock().expect("no panic under this lock")
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().expect("no panic under this lock")
    }
}

impl Way {
    /// When to try again after a link ended: at once if there was a stream at all.
    fn rest(&mut self, outcome: &Result<(), LinkError>) {
        let failed = matches!(
            outcome,
            Err(LinkError::Open(_) | LinkError::OpenDeadline | LinkError::Stuck)
        );
        if !failed {
            (self.failures, self.retry_at) = (None, None);
            return;
        }
        let failures = self.failures.map_or(0, NonZeroU32::get);
        let time = (RETRY_AFTER * (1 << failures.min(16))).min(RETRY_AFTER_MAX);
        self.failures = NonZeroU32::new(failures.saturating_add(1));
        self.retry_at = Some(Instant::now() + time);
    }

    fn is_of_use(&self, now: Instant) -> bool {
        self.link.is_some() || self.retry_at.is_some_and(|at| now < at)
    }
}

/// Peers beyond which those that are of no use are forgotten.
const WAYS_MAX: usize = 256;
/// After the first failure; doubled with each.
const RETRY_AFTER: Duration = Duration::from_millis(200);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);
