//! Downloads of NARs from peers: one at a time for each NAR, however many wait for it.
//!
//! A flight gets the manifest, keeps chunks that are here already, fetches the others from all peers
//! that hold some, and makes the NAR of them. Every chunk is verified before it is stored, and
//! stored before it counts; the whole is hashed before the flight has *landed*. Whoever wants the
//! NAR holds a [`Follower`]: a client reads chunks as they land, a replication just waits. A flight
//! that nobody followed for a while ends; one follower leaving disturbs no other.
//!
//! What is on the way can be offered to others: [`Flights::view`]. Nodes that fetch the same NAR at the
//! same time find each other at the nodes that hold it: whoever asks a holder what it has is told who
//! else did, and asks those; and whoever is asked about a NAR in flight asks back. So nothing is
//! broadcast, nothing has to expire, and only who may read a NAR learns who fetches it.

pub(crate) mod body;
mod course;
mod intake;
mod manifest;
mod run;
mod state;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use attic_p2p::fetch::{FetchError, FetchStats, Tier};
use attic_p2p::ids::{ManifestId, NodeId};
use attic_p2p::wire::{Object, Priority};
use attic_store::manifest::Manifest;
use attic_store::{ChunkId, FileHash, ImportError, Imported, NarHash, Store, StoreError};
use thiserror::Error;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::mesh::exchange::Exchange;

pub(crate) use state::FlightView;
use state::{Shared, Stage};

/// The most flights at a time. Whoever wants one more is refused.
pub(crate) const FLIGHTS_MAX: usize = 256;
/// Of these, how many may be for nobody but a replication.
pub(crate) const BACKGROUND_MAX: usize = 32;
/// A flight without followers ends after this long.
pub(crate) const LINGER: Duration = Duration::from_secs(2);

/// Who may have a NAR: what the directory knows.
///
/// All methods are called often and must not block.
pub(crate) trait Sources: Send + Sync + 'static {
    /// Connected nodes that hold the NAR, best first, without this one.
    fn of(&self, nar: &NarHash) -> Vec<(NodeId, Tier)>;

    /// How near a node is; `None` if it is not connected.
    fn tier(&self, node: &NodeId) -> Option<Tier>;

    /// Connected nodes that may be fetching the same NAR just now, from where everything comes from:
    /// nobody can tell who they are. None, where they meet at its holders.
    fn fellows(&self, _nar: &NarHash) -> Vec<(NodeId, Tier)> {
        Vec::new()
    }

    /// Marked as changed whenever `of` may say something new.
    fn changes(&self) -> watch::Receiver<()>;
}

/// A NAR to fetch, as a signed record announces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) nar: NarHash,
    pub(crate) manifest: ManifestId,
    /// Bytes of the NAR.
    pub(crate) nar_size: u64,
    /// Hash and bytes of its `.nar.zst`, if they were announced.
    pub(crate) file: Option<(FileHash, u64)>,
}

impl Wanted {
    /// Bytes of its frames; of the NAR, which are about as many or more, if that was not announced.
    fn file_len(&self) -> u64 {
        self.file.map_or(self.nar_size, |(_, len)| len)
    }

    pub(crate) fn object(&self) -> Object {
        Object {
            nar: self.nar,
            manifest: self.manifest,
        }
    }
}

/// News of a NAR in flight, for who serves it to others.
#[derive(Debug)]
pub(crate) enum Gained {
    /// It is known how it is cut: from now on there is a [`Flights::view`] of it.
    Begun(Object),
    /// These segments of it can be had here.
    Segments { object: Object, segments: Vec<u32> },
}

/// Between flights and the offer.
pub(crate) fn gains() -> (mpsc::Sender<Gained>, mpsc::Receiver<Gained>) {
    mpsc::channel(GAINS_MAX)
}

/// All flights of a node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Flights {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    table: Mutex<Table>,
    counters: Counters,
    landings: broadcast::Sender<NarHash>,
}

/// What a flight works with.
#[derive(Clone)]
struct Parts {
    store: Store,
    exchange: Exchange,
    sources: Arc<dyn Sources>,
    gains: mpsc::Sender<Gained>,
}

#[derive(Default)]
struct Table {
    flights: BTreeMap<NarHash, Arc<Shared>>,
    tasks: JoinSet<()>,
    closed: bool,
}

#[derive(Default)]
struct Counters {
    started: AtomicU64,
    landed: AtomicU64,
    failed: AtomicU64,
    arrived: AtomicU64,
    hedged: AtomicU64,
    wasted: AtomicU64,
}

/// What flights did since the start, and how many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FlightStats {
    pub(crate) flying: usize,
    pub(crate) started: u64,
    pub(crate) landed: u64,
    pub(crate) failed: u64,
    /// Bytes of chunks that arrived and were needed.
    pub(crate) arrived: u64,
    /// Bytes asked of a second peer because the first was late.
    pub(crate) hedged: u64,
    /// Bytes that arrived twice.
    pub(crate) wasted: u64,
}

/// Why there is no NAR.
#[derive(Clone, Debug, Error)]
pub(crate) enum FlightError {
    /// What is missing cannot be had from anybody.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// It could not be promised in time; the flight goes on.
    #[error("not known in time to be complete")]
    Late,
    /// The manifest is not the NAR's, or contradicts what was announced.
    #[error("the manifest is not that of what was announced")]
    Announced,
    /// The chunks are those of the manifest, and the whole is not the NAR.
    #[error("the whole is not the NAR that was announced")]
    WrongNar,
    /// The same NAR is in flight, cut or framed in another way.
    #[error("the NAR is in flight in another form")]
    Conflict,
    /// [`FLIGHTS_MAX`] or [`BACKGROUND_MAX`].
    #[error("too many downloads")]
    TooMany,
    /// A chunk was lost after it was stored.
    #[error("chunk {0} is lost")]
    Lost(ChunkId),
    /// The flight was ended from this side.
    #[error("the download was ended")]
    Ended,
    /// The store failed.
    #[error("store")]
    Store(#[source] Arc<ImportError>),
}

impl Flights {
    /// No flights yet. They run in the tokio runtime in which they are begun.
    pub(crate) fn new(
        store: Store,
        exchange: Exchange,
        sources: Arc<dyn Sources>,
        gains: mpsc::Sender<Gained>,
    ) -> Flights {
        let parts = Parts {
            store,
            exchange,
            sources,
            gains,
        };
        Flights {
            inner: Arc::new(Inner {
                parts,
                table: Mutex::default(),
                counters: Counters::default(),
                landings: broadcast::Sender::new(LANDINGS_MAX),
            }),
        }
    }

    /// Joins the flight of a NAR, or begins it. The caller has looked for the NAR in the store.
    ///
    /// **Errors**: [`FlightError::TooMany`], [`FlightError::Conflict`], [`FlightError::Ended`] after
    /// a shutdown.
    pub(crate) fn follow(&self, wanted: Wanted, who: Priority) -> Result<Follower, FlightError> {
        let mut table = self.inner.table();
        if table.closed {
            return Err(FlightError::Ended);
        }
        if let Some(flight) = table.flights.get(&wanted.nar) {
            return match flight.wanted == wanted {
                true => Ok(Follower::new(Arc::clone(flight), who)),
                false => Err(FlightError::Conflict),
            };
        }
        let background = |flight: &&Arc<Shared>| flight.priority() == Priority::Background;
        let too_many = table.flights.len() >= FLIGHTS_MAX
            || who == Priority::Background
                && table.flights.values().filter(background).count() >= BACKGROUND_MAX;
        if too_many {
            return Err(FlightError::TooMany);
        }
        let (met, asking) = mpsc::channel(MET_MAX);
        let flight = Arc::new(Shared::new(wanted, &self.inner.parts.store, met));
        let follower = Follower::new(Arc::clone(&flight), who);
        table.flights.insert(flight.wanted.nar, Arc::clone(&flight));
        while table.tasks.try_join_next().is_some() {}
        table
            .tasks
            .spawn(run::run(Arc::clone(&self.inner), flight, asking));
        self.inner.counters.started.fetch_add(1, Ordering::Relaxed);
        Ok(follower)
    }

    /// Whether a NAR of so many bytes is here, is on its way, or can be taken in beside all that are.
    /// Blocks on the disk.
    ///
    /// **Errors**: the store's.
    pub(crate) fn has_room_for(&self, nar: &NarHash, len: u64) -> Result<bool, StoreError> {
        let store = &self.inner.parts.store;
        let table = self.inner.table();
        if table.flights.contains_key(nar) {
            return Ok(true);
        }
        let lens = table
            .flights
            .values()
            .map(|flight| flight.wanted.file_len());
        let flying = lens.fold(0, u64::saturating_add);
        drop(table);
        Ok(store.nar(nar)?.is_some() || store.admits(flying.saturating_add(len))?)
    }

    /// What can be had of an object that is in flight.
    pub(crate) fn view(&self, object: &Object) -> Option<FlightView> {
        let flight = Arc::clone(self.inner.table().flights.get(&object.nar)?);
        (flight.wanted.object() == *object).then(|| FlightView::of(flight))?
    }

    /// Notes that a peer asks about an object, which it may read: if it is in flight here, both fetch
    /// it.
    pub(crate) fn met(&self, object: &Object, node: NodeId) {
        let table = self.inner.table();
        let flight = table.flights.get(&object.nar);
        if let Some(flight) = flight.filter(|flight| flight.wanted.object() == *object) {
            // Whoever is too much for the flight now asks another time, or others.
            let _ = flight.met.try_send(node);
        }
    }

    /// Tells of every NAR that lands from now on. Who is slow misses some.
    pub(crate) fn landings(&self) -> broadcast::Receiver<NarHash> {
        self.inner.landings.subscribe()
    }

    pub(crate) fn stats(&self) -> FlightStats {
        let counters = &self.inner.counters;
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FlightStats {
            flying: self.inner.table().flights.len(),
            started: of(&counters.started),
            landed: of(&counters.landed),
            failed: of(&counters.failed),
            arrived: of(&counters.arrived),
            hedged: of(&counters.hedged),
            wasted: of(&counters.wasted),
        }
    }

    /// Ends all flights; followers hear [`FlightError::Ended`].
    pub(crate) async fn shutdown(&self) {
        let mut tasks = {
            let mut table = self.inner.table();
            table.closed = true;
            std::mem::take(&mut table.tasks)
        };
        tasks.shutdown().await;
    }
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no panic under this lock")
    }

    /// Takes a flight that has come to its end out of the table, unless another took its place.
    fn remove(&self, flight: &Arc<Shared>) {
        let mut table = self.table();
        let nar = &flight.wanted.nar;
        if table
            .flights
            .get(nar)
            .is_some_and(|here| Arc::ptr_eq(here, flight))
        {
            table.flights.remove(nar);
        }
        if !matches!(flight.stage(), Stage::Landed(_)) {
            self.counters.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes a flight out of the table if nobody follows it; whether it did.
    fn remove_unfollowed(&self, flight: &Shared) -> bool {
        let mut table = self.table();
        let unfollowed = flight.followers() == 0;
        if unfollowed {
            table.flights.remove(&flight.wanted.nar);
        }
        unfollowed
    }

    fn count(&self, stats: FetchStats) {
        let add = |counter: &AtomicU64, bytes| counter.fetch_add(bytes, Ordering::Relaxed);
        add(&self.counters.arrived, stats.arrived);
        add(&self.counters.hedged, stats.hedged);
        add(&self.counters.wasted, stats.wasted);
    }
}

/// Somebody who wants a flight to go on. What it fetches is not collected while there is one.
pub(crate) struct Follower {
    flight: Arc<Shared>,
    who: Priority,
}

impl Follower {
    /// Only under the table's lock: a flight that nobody follows is taken out under it.
    fn new(flight: Arc<Shared>, who: Priority) -> Follower {
        flight.joined(who);
        Follower { flight, who }
    }

    /// What is fetched.
    pub(crate) fn wanted(&self) -> &Wanted {
        &self.flight.wanted
    }

    /// The manifest, once it is known.
    pub(crate) fn manifest(&self) -> Option<&Manifest> {
        self.flight.plan().map(|plan| &plan.manifest)
    }

    /// Waits until every chunk is here or has a source that is connected, so that the NAR can be
    /// promised. May be dropped and called again.
    ///
    /// **Errors**: [`FlightError::Late`] when `deadline` passes; the flight goes on. Whatever else
    /// ended the flight.
    pub(crate) async fn ready(&self, deadline: Instant) -> Result<&Manifest, FlightError> {
        let reached = self
            .flight
            .reached(|stage| !matches!(stage, Stage::Searching));
        let reached = tokio::time::timeout_at(deadline, reached);
        match reached.await.map_err(|_| FlightError::Late)? {
            Stage::Failed(error) => Err(error),
            Stage::Searching | Stage::Promised | Stage::Landed(_) => {
                self.manifest().ok_or(FlightError::Ended)
            }
        }
    }

    /// Waits until the NAR is in the store. May be dropped and called again.
    ///
    /// **Errors**: why it will not be.
    pub(crate) async fn landed(&self) -> Result<Imported, FlightError> {
        let over = |stage: &Stage| matches!(stage, Stage::Landed(_) | Stage::Failed(_));
        match self.flight.reached(over).await {
            Stage::Landed(imported) => Ok(imported),
            Stage::Failed(error) => Err(error),
            Stage::Searching | Stage::Promised => Err(FlightError::Ended),
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.flight.left(self.who);
    }
}

/// News of flights that the offer has not taken; more wait in their flights.
const GAINS_MAX: usize = 1024;
/// Peers that asked about a NAR in flight and are not asked back yet.
const MET_MAX: usize = 64;
/// Landings that a listener has not taken.
const LANDINGS_MAX: usize = 1024;
