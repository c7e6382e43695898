//! Finding a path in the cluster: directory first, live peers second, one deadline.
//!
//! The directory answers for everything that gossip has brought. For what it has not, connected
//! peers are asked; one look-up per path at a time, whoever waits for it. When the deadline has
//! passed the answer is "not here", and the look-up goes on: a retry finds what it brought.
//!
//! A question names a path. It is put to those only who may know of it: see [`Audience`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use attic_p2p::ids::{CacheId, NodeId};
use attic_p2p::network::Network;
use attic_p2p::record::{PathRecord, Record};
use attic_store::{NarHash, StorePathHash};
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;

use crate::http::ingest::joined;
use crate::mesh::audience::Audience;
use crate::mesh::bucket::SharedBucket;
use crate::mesh::query::{Query, Reply};
use crate::mesh::view::DirectoryView;

/// A path of a cluster's cache.
type Key = (CacheId, StorePathHash);

/// Looks paths up in the cluster.
pub(crate) struct Finder {
    view: DirectoryView,
    network: Network,
    audience: Audience,
    deadline: Duration,
    bucket: Option<Arc<SharedBucket>>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Look-ups under way, and what they found.
    probes: BTreeMap<Key, watch::Receiver<Probe>>,
    /// What peers answered, the latest last; the directory will know it soon.
    heard: VecDeque<Heard>,
    /// What was removed here; the directory will know it soon.
    removed: BTreeMap<Key, Instant>,
}

impl State {
    fn is_removed(&self, key: &Key) -> bool {
        let at = self.removed.get(key);
        at.is_some_and(|at| at.elapsed() < HEARD_FOR)
    }
}

/// How a look-up stands.
#[derive(Clone, Debug)]
enum Probe {
    UnderWay,
    Over(Option<Arc<PathRecord>>),
}

/// What a peer said.
#[derive(Clone)]
struct Heard {
    record: Arc<PathRecord>,
    from: NodeId,
    at: Instant,
}

impl Finder {
    pub(crate) fn new(
        view: DirectoryView,
        network: Network,
        audience: Audience,
        deadline: Duration,
        bucket: Option<Arc<SharedBucket>>,
    ) -> Finder {
        Finder {
            view,
            network,
            audience,
            deadline,
            bucket,
            state: Arc::default(),
        }
    }

    /// The path, if somebody who is connected has it.
    ///
    /// Takes at most the deadline. Dropping the future does not stop a look-up that others wait for.
    pub(crate) async fn path(
        &self,
        cache: CacheId,
        hash: StorePathHash,
    ) -> Option<Arc<PathRecord>> {
        if self.state().is_removed(&(cache, hash)) {
            return None;
        }
        let view = self.view.clone();
        let bucket = self.bucket.clone();
        let known = joined(
            spawn_blocking(move || {
                let record = view.path(cache, &hash)?;
                let in_bucket = bucket.is_some_and(|bucket| bucket.has(&record.manifest));
                Some((record, in_bucket))
            })
            .await,
        );
        if let Some((record, in_bucket)) = known {
            if !self.sources(&record.info.nar_hash).is_empty() {
                return Some(Arc::new(record));
            }
            // Nobody who is connected has it.
            if let Some(bucket) = self.bucket.as_ref().filter(|bucket| bucket.is_reachable())
                && (in_bucket || bucket.has_by_now(record.manifest).await)
            {
                return Some(Arc::new(record));
            }
        }
        if let Some(record) =
            self.heard(|record| record.cache == cache && *record.info.path.hash() == hash)
            && !self.sources(&record.info.nar_hash).is_empty()
        {
            return Some(record);
        }
        let mut probe = self.probe((cache, hash));
        let over = timeout(
            self.deadline,
            probe.wait_for(|probe| matches!(probe, Probe::Over(_))),
        );
        match over.await {
            Ok(Ok(probe)) => match &*probe {
                Probe::Over(found) => found.clone(),
                Probe::UnderWay => None,
            },
            Ok(Err(_)) | Err(_) => None,
        }
    }

    /// A path of the cache with this NAR, if the directory or a peer told of one.
    pub(crate) async fn nar(&self, cache: CacheId, nar: NarHash) -> Option<Arc<PathRecord>> {
        let view = self.view.clone();
        let known = joined(spawn_blocking(move || view.nar(cache, &nar)).await);
        let heard = |record: &PathRecord| record.cache == cache && record.info.nar_hash == nar;
        let record = known.map(Arc::new).or_else(|| self.heard(heard))?;
        let key = (cache, *record.info.path.hash());
        (!self.state().is_removed(&key)).then_some(record)
    }

    /// Who may be asked for what.
    pub(crate) fn audience(&self) -> &Audience {
        &self.audience
    }

    /// Connected nodes that say to hold a NAR.
    pub(crate) fn sources(&self, nar: &NarHash) -> Vec<NodeId> {
        let status = self.network.status();
        let is_connected = |node: &NodeId| status.peers.iter().any(|peer| peer.node == *node);
        let mut sources = self.view.holders(nar);
        let state = self.state();
        let heard = state.heard.iter();
        sources.extend(
            heard
                .filter(|heard| heard.record.info.nar_hash == *nar)
                .map(|heard| heard.from),
        );
        sources.sort();
        sources.dedup();
        sources.retain(is_connected);
        sources
    }

    /// All connected nodes.
    pub(crate) fn connected(&self) -> Vec<NodeId> {
        let status = self.network.status();
        status.peers.iter().map(|peer| peer.node).collect()
    }

    /// Whether a node is connected.
    pub(crate) fn is_connected(&self, node: &NodeId) -> bool {
        let status = self.network.status();
        status.peers.iter().any(|peer| peer.node == *node)
    }

    /// Whether a peer told lately of a path of the cache with this NAR.
    pub(crate) fn has_heard_of_nar(&self, cache: CacheId, nar: &NarHash) -> bool {
        let of = |record: &PathRecord| record.cache == cache && record.info.nar_hash == *nar;
        self.heard(of).is_some()
    }

    /// Whether a peer told of this record, and the directory may know it later.
    pub(crate) fn has_heard(&self, record: &PathRecord) -> bool {
        self.heard(|heard| heard == record).is_some()
    }

    /// Forgets what peers told of a path, because the directory has a word on it.
    pub(crate) fn forget(&self, cache: CacheId, hash: &StorePathHash) {
        let other =
            |heard: &Heard| heard.record.cache != cache || heard.record.info.path.hash() != hash;
        let mut state = self.state();
        state.heard.retain(other);
        state.removed.remove(&(cache, *hash));
    }

    /// Answers as if paths that were removed here were gone already.
    pub(crate) fn hide(&self, cache: CacheId, hashes: &[StorePathHash]) {
        let mut state = self.state();
        let now = Instant::now();
        state.removed.retain(|_, at| at.elapsed() < HEARD_FOR);
        for hash in hashes.iter().take(HEARD_MAX) {
            state.removed.insert((cache, *hash), now);
        }
        drop(state);
        for hash in hashes {
            let other = |heard: &Heard| {
                heard.record.cache != cache || heard.record.info.path.hash() != hash
            };
            self.state().heard.retain(other);
        }
    }

    /// A path that a peer told of lately.
    pub(crate) fn heard_of(&self, cache: CacheId, hash: &StorePathHash) -> Option<Arc<PathRecord>> {
        self.heard(|record| record.cache == cache && record.info.path.hash() == hash)
    }

    fn heard(&self, wanted: impl Fn(&PathRecord) -> bool) -> Option<Arc<PathRecord>> {
        let state = self.state();
        let fresh = |heard: &&Heard| heard.at.elapsed() < HEARD_FOR;
        let mut latest = state.heard.iter().rev().filter(fresh);
        latest
            .find(|heard| wanted(&heard.record))
            .map(|heard| Arc::clone(&heard.record))
    }

    /// The look-up of a path: the one under way, or a new one.
    fn probe(&self, key: Key) -> watch::Receiver<Probe> {
        let mut state = self.state();
        if let Some(probe) = state.probes.get(&key) {
            return probe.clone();
        }
        let (done, probe) = watch::channel(Probe::UnderWay);
        let peers = self.peers();
        if peers.is_empty() || state.probes.len() >= PROBES_MAX {
            let _ = done.send(Probe::Over(None));
            return probe;
        }
        state.probes.insert(key, probe.clone());
        drop(state);
        let (view, network) = (self.view.clone(), self.network.clone());
        let (state, audience) = (Arc::clone(&self.state), self.audience.clone());
        tokio::spawn(async move {
            let peers = joined(spawn_blocking(move || audience.of(key, peers)).await);
            let found = ask_all(&network, &view, peers, key).await;
            let mut state = state.lock().expect("no panic under this lock");
            state.probes.remove(&key);
            let record = found.map(|heard| {
                if state.heard.len() == HEARD_MAX {
                    state.heard.pop_front();
                }
                let record = Arc::clone(&heard.record);
                state.heard.push_back(heard);
                record
            });
            drop(state);
            let _ = done.send(Probe::Over(record));
        });
        probe
    }

    /// Who can be asked, the nearest first.
    fn peers(&self) -> Vec<NodeId> {
        let mut peers = self.network.peers();
        peers.sort_by_key(|peer| (peer.rtt.unwrap_or(Duration::MAX), peer.node));
        peers.into_iter().map(|peer| peer.node).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }
}

/// Asks peers at once; the first good answer counts.
async fn ask_all(
    network: &Network,
    view: &DirectoryView,
    peers: Vec<NodeId>,
    key: Key,
) -> Option<Heard> {
    let question = Query::Paths {
        cache: key.0,
        hashes: vec![key.1],
    }
    .encode();
    let mut asking = JoinSet::new();
    for node in peers.into_iter().take(ASKED_MAX) {
        let (network, question) = (network.clone(), question.clone());
        asking.spawn(async move { (node, network.request(node, question).await) });
    }
    while let Some(answered) = asking.join_next().await {
        let Ok((from, Ok(bytes))) = answered else {
            continue;
        };
        let Some(Reply::Paths(answers)) = Reply::decode(&bytes) else {
            continue;
        };
        let Some(Some(record)) = answers.into_iter().next() else {
            continue;
        };
        let view = view.clone();
        let record = joined(spawn_blocking(move || believed(&view, key, &record)).await);
        if let Some(record) = record {
            let record = Arc::new(record);
            let at = Instant::now();
            return Some(Heard { record, from, at });
        }
    }
    None
}

/// The record, if it answers the question and a key of the cache signed it.
fn believed(view: &DirectoryView, key: Key, record: &[u8]) -> Option<PathRecord> {
    let Ok(Record::Path(record)) = Record::decode(record) else {
        return None;
    };
    let config = view.cache(key.0)?;
    let fingerprint = record.info.fingerprint(&config.store_dir);
    let signed = config
        .trusted_keys()
        .verify(&fingerprint, &record.info.signatures)
        .is_some();
    let fits = record.cache == key.0 && *record.info.path.hash() == key.1;
    (signed && fits).then_some(record)
}

/// Peers asked about one path.
const ASKED_MAX: usize = 8;
/// Look-ups under way; beyond, a path that the directory does not know is not here.
const PROBES_MAX: usize = 1024;
/// How long an answer counts: gossip is late by less.
const HEARD_FOR: Duration = Duration::from_secs(30);
/// Answers that are remembered until the directory knows them.
const HEARD_MAX: usize = 1024;
