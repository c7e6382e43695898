//! Upstreams: binary caches elsewhere that are asked for what neither this node nor its cluster has.
//!
//! A path that an upstream has is answered at once, with the plain NAR as its only form, because its
//! compressed form here is not known before it is here. The NAR comes when it is asked for: it is
//! sent while it is stored, and when it is whole the path is published in the cache it was asked of,
//! as if it had been pushed. From then on it is a path like any other.
//!
//! What an upstream says is believed when a key configured for that very upstream signed it, and
//! passed on with the signatures it came with. Everything that goes wrong is "not here".
//!
//! Nodes of a cluster share downloads: [`pull`](crate::mesh::pull).
//!
//! - [`health`]: whether an upstream is worth asking; [`client`]: how they are asked;
//! - [`flight`]: one download per NAR; [`source`]: from whichever upstream can give it; [`body`]: to
//!   whoever waits for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use attic_p2p::ids::{CacheId, NodeId};
use attic_store::narinfo::{Compression, Unverified};
use attic_store::{
    CacheInfo, CacheName, FileHash, NarHash, NarInfo, PathInfo, StoreDir, StoreError,
    StorePathHash, TrustedKeys,
};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout, timeout_at};
use url::Url;

use crate::api::UpstreamStatus;
use crate::caches::{Cache, Caches};
use crate::clock::unix_now;
use crate::config::{Config, PullThroughConfig, UpstreamConfig};
use crate::http::error::chain;
use crate::http::ingest::joined;
use crate::metrics::UpstreamMetrics;
use crate::publish::{Publisher, may_show};
use crate::recent::{Bounds, Recent};

use self::client::{Client, FetchError};
use self::flight::{Flights, publish};
use self::health::{Health, Trouble};

pub(crate) mod body;
mod client;
pub(crate) mod flight;
mod health;
mod peer;
mod source;

pub(crate) use self::flight::{Follower, PullError};

/// All upstreams of a node. What it does ends when it is dropped.
pub(crate) struct Upstreams {
    inner: Arc<Inner>,
}

struct Inner {
    upstreams: Vec<Upstream>,
    settings: PullThroughConfig,
    nar_size_max: u64,
    publisher: Publisher,
    state: Mutex<State>,
    flights: Flights,
    /// One permit per NAR that is read from an upstream.
    downloads: Arc<Semaphore>,
    /// One permit per NAR that is first asked of other nodes. Who has one may wait for an upstream, and for
    /// nodes that do; nobody waits for one of these.
    shares: Arc<Semaphore>,
    /// One permit per path that is asked about.
    lookups: Arc<Semaphore>,
    /// True once what does not move is to end.
    closing: watch::Sender<bool>,
    /// True once everything is to end.
    stop: watch::Sender<bool>,
}

/// One upstream.
struct Upstream {
    config: UpstreamConfig,
    keys: TrustedKeys,
    client: Client,
    /// As configured, or as it said itself.
    priority: AtomicU32,
    health: Mutex<Health>,
    metrics: UpstreamMetrics,
    /// Whether it was logged that what it says is not signed as it should be.
    mistrusted: AtomicBool,
}

/// A path of a cache: [`Cache::id`] and hash part.
type Key = (u32, StorePathHash);

struct State {
    /// Look-ups under way.
    lookups: BTreeMap<Key, UnderWay>,
    /// What upstreams have.
    known: Recent<Key, Arc<Found>>,
    /// The same by cache and NAR, for longer: clients remember what they were told. Who comes later
    /// still names the path, and upstreams are asked again.
    nars: Recent<(u32, NarHash), Arc<Found>>,
    /// What no upstream has.
    absent: Recent<Key, ()>,
    /// NARs that an upstream does not have as it says.
    spoilt: Recent<(usize, NarHash), ()>,
    /// Peers that are not asked for NARs of a cluster's cache: they have no upstreams for it, or do not
    /// deliver.
    unhelpful: Recent<(NodeId, CacheId), ()>,
}

/// A look-up that somebody began.
#[derive(Clone)]
struct UnderWay {
    begun: Instant,
    outcome: watch::Receiver<Lookup>,
}

/// How a look-up stands.
#[derive(Clone, Debug)]
enum Lookup {
    UnderWay,
    Over(Option<Arc<Found>>),
}

/// What an upstream has, as it says under a signature that was verified.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) info: PathInfo,
    /// Which upstream.
    upstream: usize,
    /// Where its NAR is, and how it comes.
    url: Url,
    compression: Compression,
    file_hash: Option<FileHash>,
    store_dir: StoreDir,
    /// All that may be asked for this path.
    asked: Arc<[usize]>,
}

/// What an upstream is asked.
struct Question {
    hash: StorePathHash,
    store_dir: StoreDir,
    /// All that may be asked it.
    asked: Arc<[usize]>,
}

/// What an upstream said about a path.
enum Answer {
    Found(Arc<Found>),
    /// It does not have it.
    Absent,
    /// It was not asked, could not say, or is not believed.
    Unknown,
}

impl Upstreams {
    /// The upstreams of a configuration, with their counters in the same order. Nothing is asked
    /// before [`Upstreams::start`]. Reads the certificates of the machine if there are upstreams.
    pub(crate) fn new(
        config: &Config,
        publisher: Publisher,
        metrics: Vec<UpstreamMetrics>,
    ) -> Upstreams {
        let configs = config.upstreams.iter().cloned();
        let upstreams = configs.zip(metrics).map(|(config, metrics)| Upstream {
            keys: TrustedKeys::new(config.public_keys.clone()),
            client: Client::new(config.connect_timeout, config.timeout),
            priority: AtomicU32::new(config.priority.unwrap_or(PRIORITY_UNKNOWN)),
            health: Mutex::default(),
            mistrusted: AtomicBool::new(false),
            config,
            metrics,
        });
        let settings = config.pull_through.clone();
        Upstreams {
            inner: Arc::new(Inner {
                upstreams: upstreams.collect(),
                nar_size_max: config.store.nar_size_max,
                publisher,
                state: Mutex::new(State::new(settings.negative_ttl)),
                flights: Flights::default(),
                downloads: Arc::new(Semaphore::new(settings.downloads_max)),
                shares: Arc::new(Semaphore::new(settings.downloads_max)),
                lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)),
                closing: watch::Sender::new(false),
                stop: watch::Sender::new(false),
                settings,
            }),
        }
    }

    /// Begins to learn the priorities that are not configured. In a tokio runtime.
    pub(crate) fn start(&self) {
        if self.inner.upstreams.iter().any(Upstream::learns_priority) {
            tokio::spawn(learn_priorities(Arc::clone(&self.inner)));
        }
    }

    /// The path, if an upstream of the cache has it.
    ///
    /// Takes at most the deadline, which all who ask while a look-up goes on share: one that is late
    /// already is waited for by nobody. Dropping the future does not stop a look-up, and what it finds
    /// is remembered.
    pub(crate) async fn path(&self, cache: &Arc<Cache>, hash: StorePathHash) -> Option<Arc<Found>> {
        let patience = self.inner.settings.deadline;
        self.look_up(cache, hash, |begun| begun + patience).await
    }

    /// The path with this hash part and this NAR, if an upstream of the cache has it. Upstreams are
    /// asked again unless it is remembered what they said.
    ///
    /// Takes at most [`NAR_LOOKUP_MAX`], which is longer than a question after the path itself may take:
    /// whoever wants the NAR was told that it is here. Dropping the future is safe.
    pub(crate) async fn path_with_nar(
        &self,
        cache: &Arc<Cache>,
        hash: StorePathHash,
        nar: &NarHash,
    ) -> Option<Arc<Found>> {
        let deadline = Instant::now() + NAR_LOOKUP_MAX;
        let found = self.look_up(cache, hash, |_| deadline).await?;
        if found.info.nar_hash == *nar {
            return Some(found);
        }
        // Upstreams may have different builds of one path.
        let is_it = |info: &PathInfo| info.nar_hash == *nar && may_show(cache, info);
        let tried = BTreeSet::from([found.upstream]);
        let other = self.inner.another(&found, &tried, is_it);
        let found = timeout_at(deadline.into(), other).await.ok()??;
        self.inner
            .state()
            .found_nar(cache.id, &found, Instant::now());
        Some(found)
    }

    /// What is remembered of a path, or what a look-up finds by the time that `until` makes of its
    /// beginning.
    async fn look_up(
        &self,
        cache: &Arc<Cache>,
        hash: StorePathHash,
        until: impl FnOnce(Instant) -> Instant,
    ) -> Option<Arc<Found>> {
        let asked = self.inner.of(cache);
        if asked.is_empty() {
            return None;
        }
        let key = (cache.id, hash);
        if let Some(found) = self.inner.known(cache, &key) {
            return Some(found);
        }
        let UnderWay { begun, mut outcome } = self.inner.lookup(cache, key, asked)?;
        let over = outcome.wait_for(|lookup| matches!(lookup, Lookup::Over(_)));
        let mut closing = self.inner.closing.subscribe();
        let over = tokio::select! {
            over = timeout_at(until(begun).into(), over) => over,
            _ = closing.wait_for(|closing| *closing) => return None,
        };
        match over {
            Ok(Ok(lookup)) => match &*lookup {
                Lookup::Over(found) => found.clone(),
                Lookup::UnderWay => None,
            },
            Ok(Err(_)) | Err(_) => None,
        }
    }

    /// Whether any upstream is asked for what a cache does not have.
    pub(crate) fn are_asked_for(&self, cache: &Cache) -> bool {
        !self.inner.of(cache).is_empty()
    }

    /// A path of the cache with this NAR, if it is remembered that an upstream has one.
    pub(crate) fn nar(&self, cache: &Cache, nar: &NarHash) -> Option<Arc<Found>> {
        if !self.are_asked_for(cache) {
            return None;
        }
        let found = self
            .inner
            .state()
            .nars
            .find(&(cache.id, *nar), Instant::now())
            .cloned();
        found.filter(|found| may_show(cache, &found.info))
    }

    /// Whether the NAR of a path is here, is on its way, or can be taken in beside all that are.
    pub(crate) async fn has_room_for(&self, found: &Found) -> bool {
        let (inner, nar) = (Arc::clone(&self.inner), found.info.nar_hash);
        let size = found.info.nar_size;
        let has_room = move || -> Result<bool, StoreError> {
            let store = &inner.publisher.store;
            Ok(match inner.flights.others_len(&nar) {
                None => true,
                Some(others) => {
                    store.nar(&nar)?.is_some() || store.admits(others.saturating_add(size))?
                }
            })
        };
        let has_room = joined(spawn_blocking(has_room).await);
        has_room.unwrap_or_else(|error| {
            let cause = chain(&error);
            tracing::error!(cause, "it is not known what there is room for");
            false
        })
    }

    /// Publishes a path whose NAR is here because of another one; whether it was.
    pub(crate) async fn adopt(&self, cache: &Arc<Cache>, found: &Arc<Found>) -> bool {
        let (inner, cache) = (Arc::clone(&self.inner), Arc::clone(cache));
        let found = Arc::clone(found);
        let adopt = move || -> Result<bool, StoreError> {
            let (store, nar) = (&inner.publisher.store, found.info.nar_hash);
            let lease = store.lease();
            store.hold(&lease, [nar]);
            if store.open_nar(&nar)?.is_none() {
                return Ok(false);
            }
            publish(&inner, &cache, found.info.clone());
            Ok(true)
        };
        joined(spawn_blocking(adopt).await).unwrap_or_else(|error| {
            tracing::error!(cause = chain(&error), "read NAR");
            false
        })
    }

    /// Joins in fetching the NAR of a path, or begins to. When it is here the path is published.
    ///
    /// **Errors**: [`PullError::TooMany`], [`PullError::Ended`].
    pub(crate) fn fetch(
        &self,
        cache: &Arc<Cache>,
        found: Arc<Found>,
    ) -> Result<Follower, PullError> {
        self.inner.flights.follow(&self.inner, cache, found)
    }

    /// Joins in fetching a NAR, if that has begun.
    pub(crate) fn join(&self, nar: &NarHash) -> Option<Follower> {
        self.inner.flights.join(nar)
    }

    /// How they are doing, in the order of the configuration.
    pub(crate) fn status(&self, caches: &Caches) -> Vec<UpstreamStatus> {
        let status = |upstream: &Upstream| upstream.status(caches);
        self.inner.upstreams.iter().map(status).collect()
    }

    /// Logs which caches the configuration names and the node does not have: they may come later, or be
    /// a mistake.
    pub(crate) fn warn_of_unknown_caches(&self, caches: &Caches) {
        for upstream in &self.inner.upstreams {
            for cache in upstream.unknown_caches(caches) {
                let url = &upstream.config.url;
                tracing::warn!(%url, %cache, "upstream is for a cache that is not there");
            }
        }
    }

    /// Sets the gauges.
    pub(crate) fn measure(&self) {
        for upstream in &self.inner.upstreams {
            let health = upstream.health();
            upstream
                .metrics
                .unavailable
                .set(u64::from(health.is_open()));
            let latency = health.latency().unwrap_or_default();
            upstream.metrics.latency.set(latency.as_secs_f64());
        }
    }

    /// Prepares for the end: nobody waits for answers any more, and a download of which nothing comes
    /// is given up soon. Those that move go on.
    pub(crate) fn close(&self) {
        self.inner.closing.send_replace(true);
    }

    /// Ends all downloads and waits until their threads have left the store.
    pub(crate) async fn shutdown(&self) {
        self.inner.stop.send_replace(true);
        self.inner.flights.finish().await;
    }
}

impl Drop for Upstreams {
    fn drop(&mut self) {
        self.inner.stop.send_replace(true);
    }
}

impl Inner {
    /// The upstreams that are asked for what a cache does not have.
    fn of(&self, cache: &Cache) -> Arc<[usize]> {
        let is_for = |upstream: &Upstream| match &*upstream.config.caches {
            [] => cache.settings.public,
            named => named.contains(&cache.name),
        };
        let numbered = self.upstreams.iter().enumerate();
        let asked = numbered.filter(|(_, upstream)| is_for(upstream));
        asked.map(|(index, _)| index).collect()
    }

    /// What is remembered of a path, if it is still good.
    fn known(&self, cache: &Cache, key: &Key) -> Option<Arc<Found>> {
        let now = Instant::now();
        let found = self.state().known.find(key, now).cloned()?;
        let is_good = self.is_sound(&found, now)
            && !self.upstreams[found.upstream].health().is_dead()
            && may_show(cache, &found.info);
        is_good.then_some(found)
    }

    /// Whether nothing speaks against the NAR of a path.
    fn is_sound(&self, found: &Found, now: Instant) -> bool {
        let key = (found.upstream, found.info.nar_hash);
        self.state().spoilt.find(&key, now).is_none()
    }

    /// The look-up of a path: the one under way, or a new one; `None` if it is known to be in vain,
    /// or there are too many.
    fn lookup(
        self: &Arc<Self>,
        cache: &Arc<Cache>,
        key: Key,
        asked: Arc<[usize]>,
    ) -> Option<UnderWay> {
        let mut state = self.state();
        if state.absent.find(&key, Instant::now()).is_some() {
            return None;
        }
        if let Some(lookup) = state.lookups.get(&key) {
            return Some(lookup.clone());
        }
        let permit = Arc::clone(&self.lookups).try_acquire_owned().ok()?;
        let (done, outcome) = watch::channel(Lookup::UnderWay);
        let begun = Instant::now();
        let lookup = UnderWay { begun, outcome };
        state.lookups.insert(key, lookup.clone());
        drop(state);
        let (inner, cache) = (Arc::clone(self), Arc::clone(cache));
        let mut stop = self.stop.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                () = inner.look(&cache, key, asked, done) => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
            drop(permit);
        });
        Some(lookup)
    }

    /// Asks upstreams for a path, the preferred ones first; the first good answer counts. Those that
    /// are not as quick are heard to the end, for what it says about them.
    async fn look(
        self: &Arc<Self>,
        cache: &Arc<Cache>,
        key: Key,
        asked: Arc<[usize]>,
        done: watch::Sender<Lookup>,
    ) {
        let priority = |index: usize| self.upstreams[index].priority.load(Ordering::Relaxed);
        let mut groups = groups(&asked, priority);
        let deadline = self.settings.deadline;
        // A little before whoever waits gives up: the next question must meet what is noted then.
        let late_at = Instant::now() + deadline - deadline / 10;
        let mut asking = JoinSet::new();
        let (mut found, mut all_say_no) = (None, true);
        while found.is_none() && !(groups.is_empty() && asking.is_empty()) {
            let head_start = deadline / HEAD_START;
            let answer = tokio::select! {
                Some(answer) = asking.join_next() => Some(answer.unwrap_or(Answer::Unknown)),
                () = sleep(head_start), if !asking.is_empty() && !groups.is_empty() => None,
                else => None,
            };
            let Some(answer) = answer else {
                all_say_no &= self.ask_group(&mut asking, &mut groups, cache, key, &asked, late_at);
                continue;
            };
            match answer {
                Answer::Found(answer) if may_show(cache, &answer.info) => found = Some(answer),
                Answer::Absent => {}
                Answer::Found(_) | Answer::Unknown => all_say_no = false,
            }
        }
        self.state().looked(key, found.as_ref(), all_say_no);
        // Nobody waits for it any more: then it is remembered.
        let _ = done.send(Lookup::Over(found));
        while asking.join_next().await.is_some() {}
    }

    /// Asks the next group; whether all of it could be asked.
    fn ask_group(
        self: &Arc<Self>,
        asking: &mut JoinSet<Answer>,
        groups: &mut VecDeque<Vec<usize>>,
        cache: &Arc<Cache>,
        key: Key,
        asked: &Arc<[usize]>,
        late_at: Instant,
    ) -> bool {
        let left = late_at.saturating_duration_since(Instant::now());
        // Whoever is asked late is not to be called late for that.
        let patience = left.max(self.settings.deadline / HEAD_START);
        let mut all = true;
        for index in groups.pop_front().unwrap_or_default() {
            if !self.upstreams[index].admits() {
                all = false;
                continue;
            }
            let (inner, asked) = (Arc::clone(self), Arc::clone(asked));
            let store_dir = cache.settings.store_dir.clone();
            asking.spawn(async move {
                let question = Question {
                    hash: key.1,
                    store_dir,
                    asked,
                };
                inner.ask(index, question, patience).await
            });
        }
        all
    }

    /// Asks one upstream for a path. One that takes longer than `patience` is noted then, and heard all
    /// the same.
    async fn ask(&self, index: usize, question: Question, patience: Duration) -> Answer {
        let (upstream, begun) = (&self.upstreams[index], Instant::now());
        let name = format!("{}.narinfo", question.hash);
        let Ok(url) = upstream.config.url.join(&name) else {
            return Answer::Unknown;
        };
        let mut reply = Box::pin(upstream.client.small(&url, NarInfo::LEN_MAX));
        let text = match timeout(patience, &mut reply).await {
            Ok(text) => text,
            Err(_) => {
                upstream.failed(&FetchError::Silent(patience));
                reply.await
            }
        };
        match text {
            Ok(text) => {
                upstream.health().answered(begun.elapsed(), patience);
                let Some(text) = text else {
                    return Answer::Absent;
                };
                match self.believed(index, question, &text) {
                    Some(found) => Answer::Found(Arc::new(found)),
                    None => Answer::Unknown,
                }
            }
            Err(error) => {
                upstream.failed(&error);
                Answer::Unknown
            }
        }
    }

    /// What an upstream says, if it answers the question and a key of the upstream signed it.
    fn believed(&self, index: usize, question: Question, text: &[u8]) -> Option<Found> {
        let Question {
            hash,
            store_dir,
            asked,
        } = question;
        let upstream = &self.upstreams[index];
        let narinfo = match NarInfo::parse(text, &store_dir) {
            Ok(narinfo) => narinfo,
            Err(error) => {
                upstream.odd(&format!("the narinfo of {hash} is none: {error}"));
                return None;
            }
        };
        if *narinfo.info.path.hash() != hash {
            upstream.odd(&format!("the narinfo of {hash} is that of another path"));
            return None;
        }
        let narinfo = match Unverified::new(narinfo).verify(&upstream.keys, &store_dir) {
            Ok(narinfo) => narinfo,
            Err(error) => {
                upstream.mistrust(&chain(&error));
                return None;
            }
        };
        let found = Found {
            url: upstream.config.url.join(&narinfo.url).ok()?,
            upstream: index,
            compression: narinfo.compression,
            file_hash: narinfo.file_hash,
            info: narinfo.info,
            store_dir,
            asked,
        };
        let is_good = self.is_sound(&found, Instant::now());
        let is_good = is_good && found.info.nar_size <= self.nar_size_max;
        is_good.then(|| {
            upstream.metrics.hits.inc();
            found
        })
    }

    /// The same path from upstreams that were not tried, asked one after the other until it is what is
    /// wanted.
    async fn another(
        &self,
        first: &Found,
        tried: &BTreeSet<usize>,
        is_it: impl Fn(&PathInfo) -> bool,
    ) -> Option<Arc<Found>> {
        let priority = |index: usize| self.upstreams[index].priority.load(Ordering::Relaxed);
        let others = groups(&first.asked, priority).into_iter().flatten();
        for index in others.filter(|index| !tried.contains(index)) {
            if !self.upstreams[index].admits() {
                continue;
            }
            let question = Question {
                hash: *first.info.path.hash(),
                store_dir: first.store_dir.clone(),
                asked: Arc::clone(&first.asked),
            };
            let patience = self.settings.deadline;
            // Whoever is late is noted, and not waited for.
            let answer = timeout(patience * 2, self.ask(index, question, patience)).await;
            if let Ok(Answer::Found(found)) = answer
                && is_it(&found.info)
            {
                return Some(found);
            }
        }
        None
    }

    /// Notes that the NAR of a path is not what the upstream says, and does not believe it for a while.
    fn spoilt(&self, found: &Found, fault: &str) {
        let upstream = &self.upstreams[found.upstream];
        let (url, path) = (&upstream.config.url, &found.info.path);
        tracing::warn!(%url, %path, fault, "upstream gives wrong bytes");
        upstream.note(Trouble::Broken, fault.to_owned());
        self.disbelieve(found);
    }

    /// Does not believe for a while that an upstream has a NAR: others may.
    fn disbelieve(&self, found: &Found) {
        let key = (found.upstream, found.info.nar_hash);
        self.state().spoilt.keep(key, (), 1, Instant::now());
    }

    /// Forgets what is remembered of a path whose NAR was not to be had: the next question is asked
    /// of upstreams again, and of others than those which are not believed.
    fn forget(&self, cache: &Cache, info: &PathInfo) {
        let mut state = self.state();
        state.known.forget(&(cache.id, *info.path.hash()));
        state.nars.forget(&(cache.id, info.nar_hash));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }
}

impl State {
    fn new(negative_ttl: Duration) -> State {
        let bounds = |ttl, len_max| Bounds {
            ttl,
            len_max,
            weight_max: KNOWN_BYTES,
        };
        State {
            lookups: BTreeMap::new(),
            known: Recent::new(bounds(KNOWN_FOR, KNOWN_MAX)),
            nars: Recent::new(bounds(NARS_KNOWN_FOR, KNOWN_MAX)),
            absent: Recent::new(bounds(negative_ttl, ABSENT_MAX)),
            spoilt: Recent::new(bounds(negative_ttl.min(SPOILT_MAX_FOR), SPOILT_MAX)),
            unhelpful: Recent::new(bounds(UNHELPFUL_FOR, UNHELPFUL_MAX)),
        }
    }

    /// Notes the outcome of a look-up.
    fn looked(&mut self, key: Key, found: Option<&Arc<Found>>, all_say_no: bool) {
        self.lookups.remove(&key);
        let now = Instant::now();
        match found {
            Some(found) => self.found(key, found, now),
            None if all_say_no => self.absent.keep(key, (), 1, now),
            None => {}
        }
    }

    fn found(&mut self, key: Key, found: &Arc<Found>, now: Instant) {
        let weight = found.weight();
        self.known.keep(key, Arc::clone(found), weight, now);
        self.found_nar(key.0, found, now);
    }

    fn found_nar(&mut self, cache: u32, found: &Arc<Found>, now: Instant) {
        let weight = found.weight();
        let nar = (cache, found.info.nar_hash);
        self.nars.keep(nar, Arc::clone(found), weight, now);
    }
}

impl Found {
    /// Memory that it takes, about.
    fn weight(&self) -> usize {
        FOUND_BYTES + self.info.references.len() * REFERENCE_BYTES
    }
}

impl Upstream {
    fn learns_priority(&self) -> bool {
        self.config.priority.is_none()
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().expect("no panic under this lock")
    }

    /// Whether it may be asked now.
    fn admits(&self) -> bool {
        self.health().admits(Instant::now())
    }

    /// Whether what it said it has may be fetched now.
    fn admits_download(&self) -> bool {
        let mut health = self.health();
        !health.is_dead() || health.admits(Instant::now())
    }

    fn recovered(&self) {
        self.health().recovered();
    }

    fn failed(&self, error: &FetchError) {
        self.note(error.trouble(), chain(error));
    }

    fn note(&self, trouble: Trouble, error: String) {
        self.metrics.errors.inc();
        let mut health = self.health();
        let was_open = health.is_open();
        health.failed(Instant::now(), trouble, error);
        let opens = !was_open && health.is_open();
        let cause = health.last_error().unwrap_or_default().to_owned();
        drop(health);
        if opens {
            let url = &self.config.url;
            tracing::warn!(%url, cause, "upstream is left alone for a while");
        }
    }

    /// Notes what is wrong without making it worse to ask.
    fn odd(&self, fault: &str) {
        self.metrics.errors.inc();
        tracing::info!(url = %self.config.url, fault, "upstream is not as it should be");
    }

    /// Notes a path that no key signed which is configured for it.
    fn mistrust(&self, fault: &str) {
        self.metrics.errors.inc();
        if !self.mistrusted.swap(true, Ordering::Relaxed) {
            let url = &self.config.url;
            tracing::warn!(%url, fault, "upstream is not believed: see its public-keys");
        }
    }

    /// The caches that it is for and that are not there.
    fn unknown_caches(&self, caches: &Caches) -> Vec<CacheName> {
        let named = self.config.caches.iter();
        let unknown = named.filter(|name| caches.find(name.as_str()).is_none());
        unknown.cloned().collect()
    }

    fn status(&self, caches: &Caches) -> UpstreamStatus {
        let health = self.health();
        let now = Instant::now();
        let ago = |at: Instant| now.saturating_duration_since(at).as_secs();
        let millis = |latency: Duration| u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
        UpstreamStatus {
            url: self.config.url.to_string(),
            priority: self.priority.load(Ordering::Relaxed),
            healthy: !health.is_open(),
            failing_since: health
                .failing_since()
                .map(|at| unix_now().saturating_sub(ago(at))),
            last_error: health.last_error().map(str::to_owned),
            latency_ms: health.latency().map(millis),
            narinfo_hits: self.metrics.hits.get(),
            received_bytes: self.metrics.bytes.get(),
            errors: self.metrics.errors.get(),
            unknown_caches: self.unknown_caches(caches),
        }
    }
}

/// Asks upstreams for the priorities that are not configured: until they say it, and once a day.
async fn learn_priorities(inner: Arc<Inner>) {
    let mut stop = inner.stop.subscribe();
    let learn = async {
        loop {
            let mut rest = PRIORITIES_EVERY;
            for upstream in inner.upstreams.iter().filter(|up| up.learns_priority()) {
                match learn_priority(upstream).await {
                    Some(priority) => upstream.priority.store(priority, Ordering::Relaxed),
                    None => rest = PRIORITIES_AGAIN,
                }
            }
            sleep(rest).await;
        }
    };
    tokio::select! {
        () = learn => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

async fn learn_priority(upstream: &Upstream) -> Option<u32> {
    let url = upstream.config.url.join("nix-cache-info").ok()?;
    let text = upstream.client.small(&url, CacheInfo::LEN_MAX).await;
    let text = text.ok()??;
    let info = CacheInfo::parse(&text, &StoreDir::default()).ok()?;
    let says_it = text
        .split(|byte| *byte == b'\n')
        .any(|line| line.starts_with(b"Priority:"));
    Some(if says_it {
        info.priority
    } else {
        PRIORITY_UNKNOWN
    })
}

/// Upstreams in the order in which they are asked, those of one priority at once. Pure.
fn groups(asked: &[usize], priority: impl Fn(usize) -> u32) -> VecDeque<Vec<usize>> {
    let mut groups: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for &index in asked {
        groups.entry(priority(index)).or_default().push(index);
    }
    groups.into_values().collect()
}

/// The priority of an upstream that has not said it.
const PRIORITY_UNKNOWN: u32 = 40;
const PRIORITIES_EVERY: Duration = Duration::from_secs(24 * 3600);
const PRIORITIES_AGAIN: Duration = Duration::from_secs(60);
/// Each group of upstreams is asked alone for this part of the deadline.
const HEAD_START: u32 = 4;
/// Paths asked about at a time; beyond, a path is not here.
const LOOKUPS_MAX: usize = 1024;
/// How long upstreams are asked again for a path whose NAR is wanted. None of them is silent for
/// longer by default.
const NAR_LOOKUP_MAX: Duration = Duration::from_secs(20);
/// How long an answer is given again without asking.
const KNOWN_FOR: Duration = Duration::from_secs(600);
const NARS_KNOWN_FOR: Duration = Duration::from_secs(24 * 3600);
/// Answers that are remembered, and what they may take, about.
const KNOWN_MAX: usize = 16 << 10;
const KNOWN_BYTES: usize = 32 << 20;
/// What an answer takes, about, and each of its references.
const FOUND_BYTES: usize = 1 << 10;
const REFERENCE_BYTES: usize = 128;
const ABSENT_MAX: usize = 64 << 10;
/// How long an upstream is not believed to have a NAR that it gave wrong, or not at all, at most:
/// otherwise as long as it is remembered that nobody has a path.
const SPOILT_MAX_FOR: Duration = Duration::from_secs(600);
const SPOILT_MAX: usize = 4096;
/// How long a peer is not asked again.
const UNHELPFUL_FOR: Duration = Duration::from_secs(300);
const UNHELPFUL_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    /// S8: by priority, and those of one at once.
    #[test]
    fn s8_upstreams_are_asked_by_priority_and_equal_ones_at_once() {
        let priorities = [40, 10, 40, 0, 50];
        let asked = |asked: &[usize]| Vec::from(groups(asked, |index| priorities[index]));
        assert_eq!(
            asked(&[0, 1, 2, 3, 4]),
            [vec![3], vec![1], vec![0, 2], vec![4]]
        );
        assert_eq!(asked(&[2, 0]), [vec![2, 0]]);
        assert_eq!(asked(&[]), Vec::<Vec<usize>>::new());
    }
}
