//! Keeps copies of what was pushed here on other nodes.
//!
//! Each path that is announced here waits in a queue until enough members say to hold its NAR. As
//! long as they do not, the members whom rendezvous hashing chooses are asked to; they fetch it like
//! anything else. The queue is in memory: after a start it is filled from what is said and not held
//! elsewhere.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use attic_p2p::ids::{CacheId, NodeId};
use attic_p2p::placement::choose;
use attic_p2p::wire::Priority;
use attic_store::StorePathHash;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::app::App;
use crate::http::error::chain;
use crate::http::ingest::joined;
use crate::mesh::Mesh;
use crate::mesh::query::{HASHES_MAX, Query, Reply};

/// A path that may need copies.
type Key = (CacheId, StorePathHash);

/// Paths that wait for their copies.
#[derive(Default)]
pub(crate) struct Replicas {
    queue: Mutex<VecDeque<Waiting>>,
    news: Notify,
}

struct Waiting {
    key: Key,
    /// Not looked at before.
    due: Instant,
}

impl Replicas {
    /// Puts paths into the queue. The oldest go when it is full: a restart finds them again.
    pub(crate) fn add(&self, cache: CacheId, hashes: &[StorePathHash]) {
        let mut queue = self.queue();
        let due = Instant::now() + SETTLE;
        for hash in hashes {
            if queue.len() >= QUEUE_MAX {
                queue.pop_front();
            }
            let key = (cache, *hash);
            queue.push_back(Waiting { key, due });
        }
        drop(queue);
        self.news.notify_one();
    }

    /// How many paths are in the queue.
    pub(crate) fn waiting(&self) -> usize {
        self.queue().len()
    }

    /// Some of those that are due.
    fn take_due(&self) -> Vec<Key> {
        let now = Instant::now();
        let mut queue = self.queue();
        let mut due = Vec::new();
        for _ in 0..queue.len() {
            let Some(waiting) = queue.pop_front() else {
                break;
            };
            if waiting.due <= now && due.len() < HASHES_MAX {
                due.push(waiting.key);
            } else {
                queue.push_back(waiting);
            }
        }
        due
    }

    /// Puts paths back that still lack copies.
    fn put_back(&self, keys: Vec<Key>) {
        let due = Instant::now() + RETRY;
        let mut queue = self.queue();
        for key in keys {
            if queue.len() < QUEUE_MAX {
                queue.push_back(Waiting { key, due });
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.queue.lock().expect("no panic under this lock")
    }
}

/// Sees to the copies until the mesh is stopped.
pub(crate) async fn replicate(app: Arc<App>, mesh: Arc<Mesh>) {
    let wanted = app.config.mesh.replicas;
    loop {
        let due = mesh.replicas.take_due();
        if due.is_empty() {
            let _ = timeout(LOOK_EVERY, mesh.replicas.news.notified()).await;
            continue;
        }
        let looking = Arc::clone(&mesh);
        let plan = joined(spawn_blocking(move || looking.lacking(due, wanted)).await);
        let mut lacking = Vec::new();
        for ((node, cache), hashes) in plan {
            lacking.extend(hashes.iter().map(|hash| (cache, *hash)));
            if let Some(node) = node {
                let question = Query::Hold { cache, hashes }.encode();
                // Whether it did, the directory will tell.
                let answer = mesh.network.request(node, question).await;
                let accepted = answer.ok().and_then(|bytes| Reply::decode(&bytes));
                tracing::debug!(%node, ?accepted, "asked for copies");
            }
        }
        lacking.sort();
        lacking.dedup();
        mesh.replicas.put_back(lacking);
    }
}

/// Whom to ask to hold which paths of a cache; nobody, where nobody is there to be asked.
type Plan = BTreeMap<(Option<NodeId>, CacheId), Vec<StorePathHash>>;

/// What came of handing over, in NARs.
pub(crate) struct HandOver {
    /// Another member holds them now.
    pub(crate) handed_off: u64,
    /// No other member says to hold them.
    pub(crate) left: u64,
}

struct HandOverPlan {
    lacking: Plan,
    /// What the cluster has not heard of.
    unsaid: Vec<Key>,
}

impl HandOverPlan {
    /// Paths that nobody else holds yet, each once.
    fn left(&self) -> Vec<Key> {
        let lacking = self.lacking.iter();
        let lacking =
            lacking.flat_map(|((_, cache), hashes)| hashes.iter().map(|hash| (*cache, *hash)));
        let left: BTreeSet<Key> = lacking.chain(self.unsaid.iter().copied()).collect();
        left.into_iter().collect()
    }
}

impl Mesh {
    fn lacking(&self, due: Vec<Key>, wanted: usize) -> Plan {
        let mut plan = Plan::new();
        let connected: Vec<NodeId> = self
            .network
            .peers()
            .into_iter()
            .map(|peer| peer.node)
            .collect();
        for (cache, hash) in due {
            let Some(record) = self.view.path(cache, &hash) else {
                // Removed, or not said yet: then the outbox announces it, and it comes back.
                continue;
            };
            let holders = self.view.holders(&record.info.nar_hash);
            let missing = wanted.saturating_sub(1 + holders.len());
            if missing == 0 {
                continue;
            }
            let may = |node: &NodeId| !holders.contains(node) && self.view.may_read(*node, cache);
            let candidates = connected.iter().copied().filter(may);
            let chosen = choose(record.info.nar_hash.as_bytes(), candidates, missing);
            if chosen.is_empty() {
                plan.entry((None, cache)).or_default().push(hash);
            }
            for node in chosen {
                plan.entry((Some(node), cache)).or_default().push(hash);
            }
        }
        plan
    }

    /// Sees to it that what only this node holds is held by another, as far as there is one and it
    /// does not take too long. Returns how many NARs found another holder, and how many did not.
    pub(crate) async fn hand_over(self: &Arc<Self>, app: &Arc<App>) -> HandOver {
        let (looking, asking) = (Arc::clone(self), Arc::clone(app));
        let sole = spawn_blocking(move || looking.announcer.sole_holdings(&asking));
        let sole = joined(sole.await).unwrap_or_else(|error| {
            tracing::error!(
                cause = chain(&error),
                "what only this node holds is not known"
            );
            Vec::new()
        });
        let mut left = sole.clone();
        let started = Instant::now();
        while !left.is_empty() && started.elapsed() < HAND_OVER_MAX {
            let (looking, due) = (Arc::clone(self), left);
            let plan = joined(spawn_blocking(move || looking.plan_hand_over(due)).await);
            left = plan.left();
            for ((node, cache), hashes) in plan.lacking {
                let Some(node) = node else {
                    continue;
                };
                for hashes in hashes.chunks(HASHES_MAX) {
                    let hashes = hashes.to_vec();
                    let question = Query::Hold { cache, hashes }.encode();
                    // Whether it does is seen in the next round.
                    let _ = self.network.request(node, question).await;
                }
            }
            let nothing_moves = left.len() == plan.unsaid.len() && self.announcer.noted() == 0;
            if nothing_moves || self.network.peers().is_empty() {
                break;
            }
            sleep(HAND_OVER_PAUSE).await;
        }
        HandOver {
            handed_off: (sole.len() - left.len()) as u64,
            left: left.len() as u64,
        }
    }

    /// Who is to take which of the paths `due`. Nobody takes what no log says.
    fn plan_hand_over(&self, due: Vec<Key>) -> HandOverPlan {
        let is_said = |(cache, hash): &Key| self.view.path(*cache, hash).is_some();
        let (said, unsaid) = due.into_iter().partition(is_said);
        // Two holders: this one, which leaves, and another.
        let lacking = self.lacking(said, 2);
        HandOverPlan { lacking, unsaid }
    }

    /// Begins to hold paths that another node pushed; returns how many.
    pub(crate) async fn hold(
        self: &Arc<Self>,
        app: &App,
        cache: CacheId,
        hashes: &[StorePathHash],
    ) -> u32 {
        let Some(local) = app.caches.find_shared(&cache) else {
            return 0;
        };
        let mut accepted = 0;
        for hash in hashes {
            let here = app.store.path(&local.name, hash);
            if matches!(here, Ok(Some(_))) {
                accepted += 1;
                continue;
            }
            let Some(record) = self.finder.path(cache, *hash).await else {
                continue;
            };
            if !self.has_room_for(&record).await {
                continue;
            }
            let Ok(flight) = self.fetch(record, Priority::Background) else {
                break;
            };
            accepted += 1;
            // Ends with the flight; there are only so many in the background.
            tokio::spawn(async move {
                if let Err(error) = flight.landed().await {
                    tracing::debug!(%error, "a copy was not made");
                }
            });
        }
        accepted
    }
}

/// How long a node that leaves waits for others to take over.
const HAND_OVER_MAX: Duration = Duration::from_secs(30);
const HAND_OVER_PAUSE: Duration = Duration::from_millis(250);
/// Paths that wait at most.
const QUEUE_MAX: usize = 100_000;
/// How long gossip gets to tell of a path before copies are asked for.
const SETTLE: Duration = Duration::from_millis(300);
/// How long a node gets to make a copy before anybody is asked again.
const RETRY: Duration = Duration::from_secs(10);
/// How often the queue is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
