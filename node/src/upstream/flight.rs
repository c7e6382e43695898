//! Downloads of NARs from upstreams: one at a time for each NAR, however many wait for it.
//!
//! A flight imports the NAR and tells of every chunk that is stored; whoever wants the NAR holds a
//! [`Follower`] and reads chunks as they land ([`PullReader`](super::body::PullReader)). What was read
//! by then may be wrong, and is seen to be when the whole is hashed: therefore the last chunk is for
//! nobody before. When the NAR is what was announced, the paths for which it was fetched are
//! published, and then it has *landed*. Of what another node of the cluster gives nothing is for anybody
//! before the whole is known to be right: peers are believed less than upstreams, and their bytes reach no
//! client unless they are the right ones.
//!
//! One follower leaving disturbs no other. A flight that nobody follows goes on for [`LINGER`], so
//! that a client whose connection was cut finds it where it was, and is then ended: what nobody
//! waits for is not worth the line, which others use.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use attic_store::{ChunkId, ImportError, Lease, NarHash, PathInfo, StoreError};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep, timeout_at};

use super::peer::Delegates;
use super::source::{NarSource, SourceParts};
use super::{Found, Inner};
use crate::caches::Cache;
use crate::http::error::chain;
use crate::http::ingest::joined;
use crate::publish::{Arrival, PublishError};

/// The most flights at a time, also those that wait. Whoever wants one more is refused.
const FLIGHTS_MAX: usize = 256;
/// Paths that one flight is for.
const WISHES_MAX: usize = 64;
/// A flight without followers ends after this long.
const LINGER: Duration = Duration::from_secs(10);
/// Bytes of a NAR of which somebody is told at once that they landed.
const LANDED_LEN: u64 = 8 << 20;
/// While the node stops, a flight of which nothing comes for this long ends.
const STALLED_MAX: Duration = Duration::from_secs(2);

/// All flights of a node.
#[derive(Default)]
pub(super) struct Flights {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    flights: BTreeMap<NarHash, Arc<Shared>>,
    tasks: JoinSet<()>,
    closed: bool,
}

/// One flight.
pub(super) struct Shared {
    pub(super) nar: NarHash,
    /// Bytes of the NAR.
    pub(super) size: u64,
    /// Holds what landed, as long as anybody refers to the flight.
    lease: Lease,
    landed: Mutex<Vec<Landed>>,
    /// Whether some of it came from a peer: then nothing is read before the whole is known to be right.
    guarded: Arc<AtomicBool>,
    /// Marked as changed whenever a chunk has landed.
    stage: watch::Sender<Stage>,
    followers: watch::Sender<usize>,
    wishes: Mutex<Vec<(Arc<Cache>, PathInfo)>>,
}

/// A chunk that is stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Landed {
    pub(super) chunk: ChunkId,
    /// Where it begins in the NAR, and ends.
    pub(super) begin: u64,
    pub(super) end: u64,
}

/// How far a flight is.
#[derive(Clone, Debug)]
pub(super) enum Stage {
    Flying,
    /// The NAR is in the store.
    Landed,
    Failed(PullError),
}

/// Why there is no NAR.
#[derive(Clone, Debug, Error)]
pub(crate) enum PullError {
    /// No upstream could give it.
    #[error("no upstream gave it: {0}")]
    Unavailable(Box<str>),
    /// What came is not the NAR that was announced.
    #[error("what came is not the NAR that was announced")]
    WrongNar,
    /// It did not begin to come in time; the flight goes on.
    #[error("it does not come in time")]
    Late,
    /// [`FLIGHTS_MAX`].
    #[error("too many downloads")]
    TooMany,
    /// The node stops, or everybody left.
    #[error("the download was ended")]
    Ended,
    /// No chunk begins there.
    #[error("no chunk begins at {0}")]
    Misplaced(u64),
    /// A chunk was lost after it was stored.
    #[error("chunk {0} is lost")]
    Lost(ChunkId),
    /// The store failed.
    #[error("store")]
    Store(#[source] Arc<ImportError>),
}

impl From<StoreError> for PullError {
    fn from(error: StoreError) -> PullError {
        PullError::Store(Arc::new(error.into()))
    }
}

impl Flights {
    /// Joins the flight of a NAR, or begins it. The caller has looked for the NAR in the store.
    ///
    /// **Errors**: [`PullError::TooMany`], [`PullError::Ended`] after the stop.
    pub(super) fn follow(
        &self,
        inner: &Arc<Inner>,
        cache: &Arc<Cache>,
        found: Arc<Found>,
    ) -> Result<Follower, PullError> {
        let mut table = self.table();
        if table.closed {
            return Err(PullError::Ended);
        }
        if let Some(flight) = table.flights.get(&found.info.nar_hash) {
            flight.wish(cache, &found.info);
            return Ok(Follower::new(Arc::clone(flight)));
        }
        if table.flights.len() >= FLIGHTS_MAX {
            return Err(PullError::TooMany);
        }
        let flight = Arc::new(Shared {
            nar: found.info.nar_hash,
            size: found.info.nar_size,
            lease: inner.publisher.store.lease(),
            landed: Mutex::default(),
            guarded: Arc::default(),
            stage: watch::Sender::new(Stage::Flying),
            followers: watch::Sender::new(0),
            wishes: Mutex::default(),
        });
        flight.wish(cache, &found.info);
        let follower = Follower::new(Arc::clone(&flight));
        table.flights.insert(flight.nar, Arc::clone(&flight));
        while table.tasks.try_join_next().is_some() {}
        let wanted = (Arc::clone(cache), found);
        table.tasks.spawn(run(Arc::clone(inner), flight, wanted));
        Ok(follower)
    }

    /// Joins the flight of a NAR, if there is one.
    pub(super) fn join(&self, nar: &NarHash) -> Option<Follower> {
        let table = self.table();
        table.flights.get(nar).cloned().map(Follower::new)
    }

    /// Bytes of the NARs under way; `None` if `nar` is one of them.
    pub(super) fn others_len(&self, nar: &NarHash) -> Option<u64> {
        let table = self.table();
        let lens = table.flights.values().map(|flight| flight.size);
        let sum = lens.fold(0, u64::saturating_add);
        (!table.flights.contains_key(nar)).then_some(sum)
    }

    /// Waits for the end of all flights, which have been told to end. There are no more after that.
    pub(super) async fn finish(&self) {
        let mut tasks = {
            let mut table = self.table();
            table.closed = true;
            std::mem::take(&mut table.tasks)
        };
        while tasks.join_next().await.is_some() {}
    }

    /// Takes a flight out of the table if nobody follows it; whether it did.
    fn remove_unfollowed(&self, flight: &Shared) -> bool {
        let mut table = self.table();
        let unfollowed = *flight.followers.borrow() == 0;
        if unfollowed {
            table.flights.remove(&flight.nar);
        }
        unfollowed
    }

    /// Takes a flight that is over out of the table, unless another took its place.
    fn remove(&self, flight: &Arc<Shared>) {
        let mut table = self.table();
        let here = table.flights.get(&flight.nar);
        if here.is_some_and(|here| Arc::ptr_eq(here, flight)) {
            table.flights.remove(&flight.nar);
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no panic under this lock")
    }
}

/// A flight from its beginning to its end.
async fn run(inner: Arc<Inner>, flight: Arc<Shared>, wanted: (Arc<Cache>, Arc<Found>)) {
    let (end, ended) = watch::channel(false);
    let mut stop = inner.stop.subscribe();
    let received = Arc::new(AtomicU64::new(0));
    let mut work = Box::pin(work(&inner, &flight, wanted, ended, Arc::clone(&received)));
    let unwanted = async {
        tokio::select! {
            () = flight.abandoned(&inner.flights) => {}
            () = stalled(&inner, &received) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    };
    let outcome = tokio::select! {
        outcome = &mut work => {
            if let Err(PullError::WrongNar | PullError::Unavailable(_)) = &outcome {
                flight.forget(&inner);
            }
            outcome
        }
        () = unwanted => {
            end.send_replace(true);
            // The thread that imports must not be left behind: it holds the store.
            work.await.map_err(|_| PullError::Ended)
        }
    };
    inner.flights.remove(&flight);
    if let Err(error) = &outcome {
        tracing::info!(nar = %flight.nar, cause = chain(error), "NAR not to be had from upstreams");
    }
    flight.stage.send_replace(match outcome {
        Ok(()) => Stage::Landed,
        Err(error) => Stage::Failed(error),
    });
}

/// Waits until the node stops and then nothing is received for [`STALLED_MAX`], or up to twice that.
async fn stalled(inner: &Inner, received: &AtomicU64) {
    let mut closing = inner.closing.subscribe();
    // The sender lives as long as `inner`.
    let _ = closing.wait_for(|closing| *closing).await;
    loop {
        let before = received.load(Ordering::Relaxed);
        sleep(STALLED_MAX).await;
        if received.load(Ordering::Relaxed) == before {
            return;
        }
    }
}

/// Waits for its turn, and imports the NAR. Not to be dropped once it has begun to.
async fn work(
    inner: &Arc<Inner>,
    flight: &Arc<Shared>,
    (cache, found): (Arc<Cache>, Arc<Found>),
    mut ended: watch::Receiver<bool>,
    received: Arc<AtomicU64>,
) -> Result<(), PullError> {
    let (looking, wanted) = (Arc::clone(inner), Arc::clone(&found));
    let find = move || Delegates::find(&looking, &cache, &wanted);
    let delegates = joined(spawn_blocking(find).await);
    let is_first_here = delegates.as_ref().is_none_or(Delegates::is_empty);
    let turns = match is_first_here {
        true => &inner.downloads,
        false => &inner.shares,
    };
    let turn = tokio::select! {
        turn = Arc::clone(turns).acquire_owned() => turn.map_err(|_| PullError::Ended)?,
        _ = ended.wait_for(|ended| *ended) => return Err(PullError::Ended),
    };
    let (turn, share) = match is_first_here {
        true => (Some(turn), None),
        false => (None, Some(turn)),
    };
    let source = NarSource::new(
        SourceParts {
            inner: Arc::clone(inner),
            first: found,
            stop: ended.clone(),
            received,
            guarded: Arc::clone(&flight.guarded),
        },
        delegates,
        turn,
    );
    let (inner, flight) = (Arc::clone(inner), Arc::clone(flight));
    let imported = joined(spawn_blocking(move || flight.import(&inner, source)).await);
    drop(share);
    imported
}

impl Shared {
    /// Blocks until the NAR is here and published, or cannot be had.
    fn import(&self, inner: &Inner, mut source: NarSource) -> Result<(), PullError> {
        loop {
            match self.try_to_import(inner, &mut source) {
                Err(PullError::WrongNar | PullError::Unavailable(_)) if source.begin_again() => {
                    // Nobody has read any of it.
                    self.landed().clear();
                    self.guarded.store(false, Ordering::Release);
                }
                outcome => break outcome?,
            }
        }
        source.check_file();
        if let Some(fault) = source.fault() {
            tracing::info!(nar = %self.nar, fault, "NAR taken from elsewhere");
        }
        let is_shared = source.came_from_peer();
        for (cache, info) in std::mem::take(&mut *self.wishes()) {
            if !(is_shared && keep_said(inner, &cache, &info)) {
                publish(inner, &cache, info);
            }
        }
        Ok(())
    }

    fn try_to_import(&self, inner: &Inner, source: &mut NarSource) -> Result<(), PullError> {
        let store = &inner.publisher.store;
        let mut begin = 0;
        let mut landed = |entry: &attic_store::manifest::ManifestEntry| {
            let end = begin + u64::from(entry.raw_len);
            let chunk = entry.id;
            self.land(Landed { chunk, begin, end });
            begin = end;
        };
        let imported = match store.import_watched(&self.lease, &mut *source, &mut landed) {
            Ok(imported) => imported,
            Err(ImportError::Source(error)) => {
                return Err(PullError::Unavailable(error.to_string().into()));
            }
            Err(error @ ImportError::Store(_)) => return Err(PullError::Store(Arc::new(error))),
            // It is not a NAR at all.
            Err(_) => {
                source.disown();
                return Err(PullError::WrongNar);
            }
        };
        if (imported.nar_hash, imported.nar_size) != (self.nar, self.size) {
            source.disown();
            return Err(PullError::WrongNar);
        }
        Ok(())
    }

    fn land(&self, landed: Landed) {
        self.landed().push(landed);
        self.stage.send_modify(|_| {});
    }

    /// Chunks of the NAR, from the one in which `position` lies, that may be read now: up to `len`
    /// bytes, and one chunk if there is any.
    ///
    /// **Errors**: why there will be no more.
    pub(super) fn readable(&self, position: u64, len: u64) -> Result<Vec<Landed>, PullError> {
        let is_whole = match &*self.stage.borrow() {
            Stage::Flying => false,
            Stage::Landed => true,
            Stage::Failed(error) => return Err(error.clone()),
        };
        let landed = self.landed();
        if !is_whole && self.guarded.load(Ordering::Acquire) {
            return Ok(Vec::new());
        }
        let first = landed.partition_point(|landed| landed.end <= position);
        let mut end = position;
        let readable = landed[first..].iter().take_while(|landed| {
            let wanted = end - position < len;
            end = landed.end;
            wanted && (is_whole || landed.end < self.size)
        });
        Ok(readable.copied().collect())
    }

    pub(super) fn stages(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    /// Notes a path that is to be published when the NAR has landed.
    fn wish(&self, cache: &Arc<Cache>, info: &PathInfo) {
        let mut wishes = self.wishes();
        let is_there = |(there, said): &(Arc<Cache>, PathInfo)| {
            there.id == cache.id && said.path.hash() == info.path.hash()
        };
        if wishes.len() < WISHES_MAX && !wishes.iter().any(is_there) {
            wishes.push((Arc::clone(cache), info.clone()));
        }
    }

    /// Forgets where the NAR was said to be.
    fn forget(&self, inner: &Inner) {
        for (cache, info) in &*self.wishes() {
            inner.forget(cache, info);
        }
    }

    /// Waits until nobody has followed for [`LINGER`], and takes it out of the table.
    async fn abandoned(&self, flights: &Flights) {
        let mut followers = self.followers.subscribe();
        loop {
            // The sender lives as long as `self`.
            let _ = followers.wait_for(|followers| *followers == 0).await;
            tokio::select! {
                () = sleep(LINGER) => if flights.remove_unfollowed(self) {
                    return;
                },
                _ = followers.wait_for(|followers| *followers > 0) => {}
            }
        }
    }

    fn landed(&self) -> MutexGuard<'_, Vec<Landed>> {
        self.landed.lock().expect("no panic under this lock")
    }

    fn wishes(&self) -> MutexGuard<'_, Vec<(Arc<Cache>, PathInfo)>> {
        self.wishes.lock().expect("no panic under this lock")
    }
}

/// Publishes a path whose NAR is here, as if it had been pushed; the lease that holds the NAR must
/// live until this returns. Blocks.
pub(super) fn publish(inner: &Inner, cache: &Cache, info: PathInfo) {
    let path = info.path.clone();
    let outcome = inner.publisher.publish(cache, vec![info], Arrival::Pulled);
    for error in outcome.into_iter().filter_map(Result::err) {
        // It is served all the same, and fetched again once it was collected.
        match &error {
            PublishError::NoKey(_) => {
                tracing::debug!(%path, cache = %cache.name, "path not kept: no key to sign it");
            }
            error => {
                tracing::warn!(%path, cache = %cache.name, cause = chain(error), "path not kept");
            }
        }
    }
}

/// Keeps a path that came from a peer as the cluster says it, so that not everybody says it anew; whether
/// it could. The lease that holds the NAR must live until this returns. Blocks.
fn keep_said(inner: &Inner, cache: &Cache, info: &PathInfo) -> bool {
    let publisher = &inner.publisher;
    let Some((id, mesh)) = cache.settings.shared_as.zip(publisher.mesh.get()) else {
        return false;
    };
    let said = Handle::current().block_on(mesh.finder.path(id, *info.path.hash()));
    let Some(said) = said.filter(|said| said.info.nar_hash == info.nar_hash) else {
        return false;
    };
    match publisher.keep(cache, said.info.clone()) {
        Ok(true) => mesh.announcer.hold(cache, id, &info.nar_hash),
        Ok(false) => {}
        Err(error) => {
            let path = &info.path;
            tracing::debug!(%path, cause = chain(&error), "path not kept as the cluster says it");
            return false;
        }
    }
    true
}

/// Somebody who wants a flight to go on. What it fetches is not collected while there is one.
pub(crate) struct Follower {
    pub(super) flight: Arc<Shared>,
}

impl Follower {
    /// Only under the table's lock: a flight that nobody follows is taken out under it.
    fn new(flight: Arc<Shared>) -> Follower {
        flight.followers.send_modify(|followers| *followers += 1);
        Follower { flight }
    }

    /// Waits until the byte at `position` may be read. May be dropped and called again.
    ///
    /// **Errors**: [`PullError::Late`] when `deadline` passes; the flight goes on. Why it failed.
    pub(crate) async fn ready(&self, position: u64, deadline: Instant) -> Result<(), PullError> {
        let mut stages = self.flight.stages();
        loop {
            stages.mark_unchanged();
            if !self.flight.readable(position, 1)?.is_empty() {
                return Ok(());
            }
            if position >= self.flight.size {
                return self.landed(deadline).await;
            }
            // The sender lives as long as `self`.
            let changed = timeout_at(deadline, stages.changed()).await;
            changed
                .map_err(|_| PullError::Late)?
                .map_err(|_| PullError::Ended)?;
        }
    }

    /// Chunks of the NAR that may be read now, the first of which begins at `from`, with how long each is.
    ///
    /// **Errors**: as [`Follower::ready`]; none begins there.
    pub(crate) fn landed_from(&self, from: u64) -> Result<Vec<(ChunkId, u32)>, PullError> {
        let landed = self.flight.readable(from, LANDED_LEN)?;
        if landed.first().is_some_and(|first| first.begin != from) {
            return Err(PullError::Misplaced(from));
        }
        let len = |landed: &Landed| (landed.end - landed.begin) as u32;
        Ok(landed.iter().map(|at| (at.chunk, len(at))).collect())
    }

    /// Waits until the NAR is in the store. May be dropped and called again.
    ///
    /// **Errors**: as [`Follower::ready`].
    pub(crate) async fn landed(&self, deadline: Instant) -> Result<(), PullError> {
        let mut stages = self.flight.stages();
        let over = stages.wait_for(|stage| !matches!(stage, Stage::Flying));
        let stage = timeout_at(deadline, over).await;
        let stage = stage
            .map_err(|_| PullError::Late)?
            .map_err(|_| PullError::Ended)?;
        match &*stage {
            Stage::Failed(error) => Err(error.clone()),
            Stage::Landed | Stage::Flying => Ok(()),
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.flight
            .followers
            .send_modify(|followers| *followers -= 1);
    }
}
