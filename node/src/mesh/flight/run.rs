//! The task of one flight.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use attic_p2p::fetch::{FetchError, NO_SOURCE_AFTER, SOURCES_MAX, Tier};
use attic_p2p::ids::NodeId;
use attic_p2p::wire::{Have, SegmentSet};
use attic_store::{Assembled, ImportError, Imported, StoreError};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep, sleep_until};

use super::course::Course;
use super::intake::{BATCH_MAX, Checked, take_in};
use super::manifest::{Joined, Parts as ManifestParts, plan};
use super::state::{Plan, Shared, Stage};
use super::{FlightError, Gained, Inner, LINGER, Parts};
use crate::http::error::chain;
use crate::http::ingest::joined;
use crate::mesh::exchange::BanCause;
use crate::mesh::link::{Answer, AskId, Asked, Heard, Listener, Question};

/// Flies to the end, or until nobody has followed for a while, and takes the flight out of the
/// table.
///
/// `asking` are peers that fetch the same, as they are met.
pub(super) async fn run(flights: Arc<Inner>, flight: Arc<Shared>, asking: mpsc::Receiver<NodeId>) {
    let _undecided = Undecided {
        flights: Arc::clone(&flights),
        flight: Arc::clone(&flight),
    };
    let mut run = Run::new(&flights.parts, Arc::clone(&flight), asking);
    let outcome = tokio::select! {
        outcome = run.fly(&flights) => outcome,
        () = abandoned(&flights, &flight) => Err(FlightError::Ended),
    };
    // A batch that is being stored is not cut off.
    if let Some(batch) = run.batch.take() {
        let _ = batch.await;
    }
    match outcome {
        Ok(imported) => {
            flights.counters.landed.fetch_add(1, Ordering::Relaxed);
            // Nobody may be listening.
            let _ = flights.landings.send(imported.nar_hash);
            flight.advance(Stage::Landed(imported));
        }
        Err(error) => {
            tracing::info!(nar = %flight.wanted.nar, cause = chain(&error), "download ended");
            flight.advance(Stage::Failed(error));
        }
    }
}

/// Sees to it that no follower waits for a flight that is gone, whatever ended it.
struct Undecided {
    flights: Arc<Inner>,
    flight: Arc<Shared>,
}

impl Drop for Undecided {
    fn drop(&mut self) {
        self.flight.advance(Stage::Failed(FlightError::Ended));
        self.flights.remove(&self.flight);
    }
}

/// Returns when nobody has followed for a while; the flight is out of the table then.
async fn abandoned(flights: &Inner, flight: &Shared) {
    loop {
        flight.unfollowed().await;
        sleep(LINGER).await;
        if flights.remove_unfollowed(flight) {
            return;
        }
    }
}

/// What a flight's task holds.
struct Run {
    parts: Parts,
    flight: Arc<Shared>,
    listener: Listener,
    inbox: mpsc::Receiver<Heard>,
    changes: watch::Receiver<()>,
    asking: mpsc::Receiver<NodeId>,
    peers: BTreeMap<NodeId, Peer>,
    /// Who is fetching the same, or was.
    crowd: BTreeSet<NodeId>,
    /// Whether the offer knows of the flight.
    begun: bool,
    /// Frames being verified and stored.
    batch: Option<JoinHandle<Result<Vec<Checked>, ImportError>>>,
}

/// A peer that may be a source.
struct Peer {
    tier: Tier,
    query: Asked,
    have: Option<Have>,
}

/// A peer that was asked for the manifest.
struct Informant {
    node: NodeId,
    _asked: Asked,
    parts: ManifestParts,
}

impl Run {
    fn new(parts: &Parts, flight: Arc<Shared>, asking: mpsc::Receiver<NodeId>) -> Run {
        let (listener, inbox) = mpsc::channel(INBOX_MAX);
        Run {
            parts: parts.clone(),
            flight,
            listener,
            inbox,
            changes: parts.sources.changes(),
            asking,
            peers: BTreeMap::new(),
            crowd: BTreeSet::new(),
            begun: false,
            batch: None,
        }
    }

    async fn fly(&mut self, flights: &Inner) -> Result<Imported, FlightError> {
        let plan = Arc::new(self.find_manifest().await?);
        self.flight.planned(Arc::clone(&plan));
        let mut course = Course::new(
            Arc::clone(&self.flight),
            Arc::clone(&plan),
            self.parts.exchange.clone(),
            self.listener.clone(),
        );
        course.hold(self.find_here(&plan).await?);
        let fetched = self.fetch(&mut course).await;
        flights.count(course.stats());
        drop(course);
        self.peers.clear();
        // Links do not wait for a flight that no longer listens.
        self.inbox.close();
        while self.inbox.try_recv().is_ok() {}
        fetched?;
        self.assemble(&plan).await
    }

    /// Asks peers for the manifest, a second one when the first lets us wait.
    async fn find_manifest(&mut self) -> Result<Plan, FlightError> {
        let mut asked: BTreeMap<AskId, Informant> = BTreeMap::new();
        let mut refused: BTreeMap<NodeId, Instant> = BTreeMap::new();
        let mut progressed = Instant::now();
        let mut next_ask = progressed;
        self.find_peers();
        loop {
            if asked.len() < INFORMANTS_MAX && (asked.is_empty() || Instant::now() >= next_ask) {
                if let Some(informant) = self.ask_manifest(&asked, &refused) {
                    asked.insert(informant._asked.id(), informant);
                }
                next_ask = Instant::now() + SECOND_INFORMANT_AFTER;
            }
            tokio::select! {
                Some(heard) = self.inbox.recv() => {
                    let Some(informant) = asked.get_mut(&heard.ask) else {
                        self.note(heard, None);
                        continue;
                    };
                    let node = heard.node;
                    match self.part(informant, heard.answer) {
                        Told::More => progressed = Instant::now(),
                        Told::Plan(plan) => return *plan,
                        Told::Nothing(retry) => {
                            asked.remove(&heard.ask);
                            refused.insert(node, Instant::now() + retry);
                        }
                    }
                }
                Ok(()) = self.changes.changed() => self.find_peers(),
                Some(node) = self.asking.recv() => self.meet([node]),
                () = sleep(SECOND_INFORMANT_AFTER) => self.find_peers(),
            }
            if progressed.elapsed() >= NO_SOURCE_AFTER {
                return Err(FetchError::NoSource.into());
            }
        }
    }

    /// Asks one more peer for the manifest: one that is said to be near, and was not asked.
    fn ask_manifest(
        &mut self,
        asked: &BTreeMap<AskId, Informant>,
        refused: &BTreeMap<NodeId, Instant>,
    ) -> Option<Informant> {
        let now = Instant::now();
        let fit = |node: &NodeId| {
            refused.get(node).is_none_or(|until| *until <= now)
                && asked.values().all(|informant| informant.node != *node)
        };
        let known = self.peers.iter().filter(|(node, _)| fit(node));
        let silent = |peer: &Peer| !matches!(peer.have, Some(Have::Complete | Have::Partial(_)));
        let best = known.min_by_key(|(_, peer)| (silent(peer), peer.tier));
        let node = *best?.0;
        let question = Question::Manifest(self.flight.wanted.object());
        let asked = self
            .parts
            .exchange
            .ask(node, question, &self.listener)
            .ok()?;
        Some(Informant {
            node,
            _asked: asked,
            parts: ManifestParts::default(),
        })
    }

    /// Takes what a peer says about the manifest.
    fn part(&self, informant: &mut Informant, answer: Answer) -> Told {
        match answer {
            Answer::Manifest {
                offset,
                total,
                bytes,
            } => {
                let wanted = &self.flight.wanted;
                match informant.parts.join(wanted, offset, total, &bytes) {
                    Joined::More => Told::More,
                    Joined::Whole(whole) => {
                        Told::Plan(Box::new(plan(wanted, whole).ok_or(FlightError::Announced)))
                    }
                    Joined::Bad => {
                        let why = "sent a manifest that is not what was asked for";
                        let exchange = &self.parts.exchange;
                        exchange.ban(informant.node, BanCause::WrongBytes, why);
                        Told::Nothing(RETRY_AFTER_NOTHING)
                    }
                }
            }
            Answer::Busy(retry) => Told::Nothing(retry),
            Answer::NotFound(_)
            | Answer::Error
            | Answer::Gone
            | Answer::Have(_)
            | Answer::Gained(_)
            | Answer::Others(_)
            | Answer::Chunk { .. } => Told::Nothing(RETRY_AFTER_NOTHING),
        }
    }

    /// The chunks that are in the store; the lease holds them from now on. Where one chunk of the
    /// NAR decayed others may have: then each is looked at.
    async fn find_here(&self, plan: &Arc<Plan>) -> Result<Vec<u32>, FlightError> {
        let (flight, plan) = (Arc::clone(&self.flight), Arc::clone(plan));
        let find = move || -> Result<Vec<u32>, StoreError> {
            let suspect = flight.store.is_damaged(&flight.wanted.nar);
            let missing = flight.store.missing(&flight.lease, &plan.ids())?;
            let mut here = Vec::new();
            for (chunk, missing) in (0..).zip(missing) {
                if !missing && (!suspect || flight.frame(plan.entry(chunk))?.is_some()) {
                    here.push(chunk);
                }
            }
            Ok(here)
        };
        Ok(joined(spawn_blocking(find).await)?)
    }

    /// Fetches what is missing.
    async fn fetch(&mut self, course: &mut Course) -> Result<(), FlightError> {
        for (node, peer) in &self.peers {
            if let Some(have) = &peer.have {
                course.source(*node, peer.tier, have.clone());
            }
        }
        course.readers_moved();
        let mut search_at = Instant::now() + SEARCH_EVERY;
        loop {
            self.tell_gained(course);
            self.promise(course);
            if let Some(outcome) = course.over() {
                return Ok(outcome?);
            }
            self.store_arrivals(course);
            if std::mem::take(&mut course.searching) {
                search_at = Instant::now();
            }
            let wake = Instant::now() + course.rest();
            tokio::select! {
                Some(heard) = self.inbox.recv() => self.note(heard, Some(course)),
                checked = done(&mut self.batch) => course.checked(checked?),
                () = self.flight.moved.notified() => course.readers_moved(),
                Ok(()) = self.changes.changed() => self.find_peers(),
                Some(node) = self.asking.recv() => self.meet([node]),
                () = sleep_until(search_at) => {
                    self.find_peers();
                    search_at = Instant::now() + SEARCH_EVERY;
                }
                () = sleep_until(wake) => course.tick(),
            }
        }
    }

    /// Hands the next frames to be verified and stored, if none are.
    fn store_arrivals(&mut self, course: &mut Course) {
        let Some(plan) = self.flight.plan().filter(|_| self.batch.is_none()) else {
            return;
        };
        if course.arrivals.is_empty() {
            return;
        }
        let len = course.arrivals.len().min(BATCH_MAX);
        let arrivals = course.arrivals.drain(..len).collect();
        let (flight, plan) = (Arc::clone(&self.flight), Arc::clone(plan));
        self.batch = Some(spawn_blocking(move || take_in(&flight, &plan, arrivals)));
    }

    /// Says that the NAR will be complete, once every segment is here or at a source.
    fn promise(&self, course: &Course) {
        if !matches!(self.flight.stage(), Stage::Searching) {
            return;
        }
        let mut covered = course.held().clone();
        for peer in self.peers.values() {
            match &peer.have {
                Some(Have::Complete) => covered = SegmentSet::full(covered.len()),
                Some(Have::Partial(have)) => have.iter().for_each(|segment| {
                    covered.insert(segment);
                }),
                Some(Have::Nothing) | None => {}
            }
        }
        if covered.is_full() {
            self.flight.advance(Stage::Promised);
        }
    }

    /// Tells the offer that there is a flight, then of new segments. What it cannot take now, it is
    /// told next time.
    fn tell_gained(&mut self, course: &mut Course) {
        if self.begun && course.gained.is_empty() {
            return;
        }
        if let Ok(slot) = self.parts.gains.try_reserve() {
            let object = self.flight.wanted.object();
            let segments = std::mem::take(&mut course.gained);
            // Whoever hears of the beginning looks what there is already.
            slot.send(match std::mem::replace(&mut self.begun, true) {
                true => Gained::Segments { object, segments },
                false => Gained::Begun(object),
            });
        }
    }

    /// Asks peers that are said to have something what they have.
    fn find_peers(&mut self) {
        self.changes.mark_unchanged();
        let nar = &self.flight.wanted.nar;
        let (sources, fellows) = (self.parts.sources.of(nar), self.parts.sources.fellows(nar));
        for (node, tier) in sources.into_iter().chain(fellows) {
            self.ask_have(node, tier);
        }
        for node in std::mem::take(&mut self.crowd) {
            self.meet([node]);
        }
    }

    /// Asks peers that fetch the same what they have, now and, if they are lost, again.
    fn meet(&mut self, nodes: impl IntoIterator<Item = NodeId>) {
        for node in nodes {
            if self.crowd.len() < PEERS_MAX {
                self.crowd.insert(node);
            }
            if let Some(tier) = self.parts.sources.tier(&node) {
                self.ask_have(node, tier);
            }
        }
    }

    /// Asks a peer what it has, unless it was asked.
    fn ask_have(&mut self, node: NodeId, tier: Tier) {
        let asked = node == self.parts.exchange.me() || self.peers.contains_key(&node);
        if asked || self.peers.len() >= PEERS_MAX {
            return;
        }
        let question = Question::Have(self.flight.wanted.object());
        if let Ok(query) = self.parts.exchange.ask(node, question, &self.listener) {
            let peer = Peer {
                tier,
                query,
                have: None,
            };
            self.peers.insert(node, peer);
        }
    }

    /// Notes what a peer says, for the scheduler too if there is one yet.
    fn note(&mut self, heard: Heard, course: Option<&mut Course>) {
        let node = heard.node;
        let known = self.peers.get_mut(&node);
        let Some(peer) = known.filter(|peer| peer.query.id() == heard.ask) else {
            if let Some(course) = course {
                course.answer(node, heard.ask, heard.answer);
            }
            return;
        };
        match heard.answer {
            Answer::Have(have) => {
                peer.have = Some(have.clone());
                if let Some(course) = course {
                    course.source(node, peer.tier, have);
                }
            }
            Answer::Gained(segments) => self.gained(node, segments, course),
            Answer::Others(nodes) => self.meet(nodes),
            // A peer that cannot say is asked again when sources are looked for.
            Answer::Gone | Answer::NotFound(_) | Answer::Error | Answer::Busy(_) => {
                self.peers.remove(&node);
                if let Some(course) = course {
                    course.gone(node);
                }
            }
            Answer::Chunk { .. } | Answer::Manifest { .. } => {}
        }
    }

    /// Notes that a peer holds more. One that held nothing has begun to fetch.
    fn gained(&mut self, node: NodeId, gained: Vec<u32>, course: Option<&mut Course>) {
        let Some(peer) = self.peers.get_mut(&node) else {
            return;
        };
        let segments = self.flight.plan().map(|plan| plan.layout.segments());
        match (&mut peer.have, segments) {
            (Some(Have::Partial(have)), _) => {
                for &segment in &gained {
                    have.insert(segment);
                }
                if let Some(course) = course {
                    course.gains(node, gained);
                }
            }
            (Some(Have::Nothing), Some(segments)) => {
                let mut have = SegmentSet::empty(segments);
                for segment in gained {
                    have.insert(segment);
                }
                peer.have = Some(Have::Partial(have.clone()));
                if let Some(course) = course {
                    course.source(node, peer.tier, Have::Partial(have));
                }
            }
            // How many segments there are is not known: it is asked again once it is.
            (Some(Have::Nothing), None) => {
                self.peers.remove(&node);
            }
            (Some(Have::Complete) | None, _) => {}
        }
    }

    /// Makes the NAR of its chunks.
    async fn assemble(&self, plan: &Arc<Plan>) -> Result<Imported, FlightError> {
        let (flight, of) = (Arc::clone(&self.flight), Arc::clone(plan));
        let assemble = move || {
            flight
                .store
                .assemble(&flight.lease, &of.ids(), &mut |_, _| {})
        };
        match joined(spawn_blocking(assemble).await)? {
            Assembled::Done(imported) => {
                let file = (imported.file_hash, imported.file_size);
                let is_it = imported.nar_hash == self.flight.wanted.nar
                    && file == (*plan.manifest.file_hash(), plan.manifest.file_size());
                is_it.then_some(imported).ok_or(FlightError::WrongNar)
            }
            Assembled::Missing(lost) => {
                let lost = lost.first().copied().unwrap_or_default();
                Err(FlightError::Lost(plan.entry(lost).id))
            }
        }
    }
}

/// What a peer told about the manifest.
enum Told {
    More,
    Plan(Box<Result<Plan, FlightError>>),
    /// It is not asked again for so long.
    Nothing(Duration),
}

/// The outcome of a batch; never, if there is none.
async fn done(
    batch: &mut Option<JoinHandle<Result<Vec<Checked>, ImportError>>>,
) -> Result<Vec<Checked>, ImportError> {
    match batch {
        None => std::future::pending().await,
        Some(running) => {
            let outcome = running.await;
            *batch = None;
            joined(outcome)
        }
    }
}

impl From<ImportError> for FlightError {
    fn from(error: ImportError) -> FlightError {
        FlightError::Store(Arc::new(error))
    }
}

impl From<StoreError> for FlightError {
    fn from(error: StoreError) -> FlightError {
        ImportError::from(error).into()
    }
}

/// Answers that wait for the flight; links wait when there are more.
const INBOX_MAX: usize = 256;
/// Peers that are asked what they have of one NAR.
const PEERS_MAX: usize = SOURCES_MAX;
/// Peers that are asked for a manifest at a time.
const INFORMANTS_MAX: usize = 2;
const SECOND_INFORMANT_AFTER: Duration = Duration::from_millis(150);
const RETRY_AFTER_NOTHING: Duration = Duration::from_millis(500);
/// Sources are looked for at least this often: links that failed are tried again.
const SEARCH_EVERY: Duration = Duration::from_millis(500);
