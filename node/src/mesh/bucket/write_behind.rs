//! Makes paths durable: a keeper's work.
//!
//! What is to be written follows from the logs: every record of a path that no keeper has called durable.
//! So nothing has to be remembered across a crash but what the bucket itself remembers, and an outage of
//! the bucket costs no disk. Records wait in a queue in memory, which is filled from the directory at the
//! start and now and then; a keeper takes its own and those that rendezvous hashing gives it at once, and
//! the others when nobody else did for a while.
//!
//! A batch goes through these steps, and each begins only when the one before was answered, as
//! [`attic_p2p::collector::Writer`] has it:
//!
//! 1. Chunks that are not known to be in the bucket go into new packs, each under a name of its own.
//! 2. An [entry](attic_p2p::journal) says which record needs which packs. It also carries what the logs
//!    said since the entry before.
//! 3. All keepers' condemnations are read.
//! 4. Every pack that is needed is seen to be there.
//! 5. The records are called durable in this node's log.
//!
//! Where 3 or 4 fail for a pack, that pack is forgotten and the records that need it begin again, with
//! other packs. A pack or entry whose upload was not answered is not tried again: its name is burnt, and
//! what it was to hold goes under another one. If it did arrive, a listing finds it, and the chunks in it
//! are known from then on.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use attic_p2p::collector::{Done, Unreadable, Writer};
use attic_p2p::identity::Identity;
use attic_p2p::ids::{CacheId, ClusterId, Dot, ManifestId, NodeId};
use attic_p2p::journal::{
    CONDEMNATIONS, Condemnations, Entry, Reference, entry_key, journal_prefix, read_entry_key,
};
use attic_p2p::placement::rank;
use attic_p2p::record::{PathRecord, Record};
use attic_p2p::signed::Signed;
use attic_p2p::wire::Priority;
use attic_store::bucket::pack::{BuiltPack, PackBuilder, Place, holds_chunk};
use attic_store::bucket::{BucketError, Object, each_object};
use attic_store::manifest::Manifest;
use attic_store::{LocatorError, PackId, StoreError, StorePathHash};
use thiserror::Error;
use tokio::sync::{Mutex as AsyncMutex, Notify, OnceCell};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use super::{ReadError, SharedBucket, keys};
use crate::app::App;
use crate::auth::random;
use crate::data_dir::{Secrecy, read_file, replace_file};
use crate::http::error::chain;
use crate::http::ingest::joined;
use crate::mesh::Mesh;

/// A path of a cache of the cluster.
type Key = (CacheId, StorePathHash);

/// Paths that may have to be made durable, and how that goes.
#[derive(Default)]
pub(crate) struct Backlog {
    state: Mutex<State>,
    news: Notify,
    /// Whether the node stops.
    ends: AtomicBool,
    /// Told when what logs said last is in the journal.
    ended: Notify,
    /// This keeper's journal, once it is known how far it goes.
    journal: OnceCell<AsyncMutex<Journal>>,
}

#[derive(Default)]
struct State {
    /// When each is looked at next.
    waiting: BTreeMap<Key, Waiting>,
    /// Whether some are not among these.
    overflowed: bool,
    /// Records called durable since the start.
    written: u64,
    /// Why the last attempt failed.
    trouble: Option<String>,
}

#[derive(Clone, Copy)]
struct Waiting {
    due: Instant,
    failures: u32,
}

/// How far a keeper is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// Paths that wait.
    pub(crate) waiting: usize,
    /// Records called durable since the start.
    pub(crate) written: u64,
    /// Why the last attempt failed.
    pub(crate) trouble: Option<String>,
}

impl Backlog {
    /// Has a path looked at soon.
    pub(crate) fn add(&self, key: Key) {
        self.add_at(key, Instant::now());
        self.news.notify_one();
    }

    fn add_at(&self, key: Key, due: Instant) {
        let mut state = self.state();
        if state.waiting.len() >= WAITING_MAX && !state.waiting.contains_key(&key) {
            state.overflowed = true;
            return;
        }
        let waiting = state
            .waiting
            .entry(key)
            .or_insert(Waiting { due, failures: 0 });
        waiting.due = waiting.due.min(due);
    }

    /// Has the whole directory looked through soon.
    pub(crate) fn rescan(&self) {
        self.state().overflowed = true;
        self.news.notify_one();
    }

    /// Has the journal carry what logs said last, as far as that takes no longer than [`LAST_MAX`].
    pub(crate) async fn finish(&self) {
        self.ends.store(true, Ordering::Relaxed);
        self.news.notify_one();
        if timeout(LAST_MAX, self.ended.notified()).await.is_err() {
            tracing::warn!("what was said last is not in the bucket's journal");
        }
    }

    /// How far it is.
    pub(crate) fn progress(&self) -> Progress {
        let state = self.state();
        Progress {
            waiting: state.waiting.len(),
            written: state.written,
            trouble: state.trouble.clone(),
        }
    }

    /// Takes paths that are due.
    fn take_due(&self, most: usize) -> Vec<(Key, u32)> {
        let now = Instant::now();
        let mut state = self.state();
        let due = state
            .waiting
            .iter()
            .filter(|(_, waiting)| waiting.due <= now);
        let due: Vec<_> = due
            .map(|(key, waiting)| (*key, waiting.failures))
            .take(most)
            .collect();
        for (key, _) in &due {
            state.waiting.remove(key);
        }
        due
    }

    /// Puts a path back whose attempt failed.
    fn put_back(&self, key: Key, failures: u32) {
        let pause = (RETRY_MIN * (1 << failures.min(8))).min(RETRY_MAX);
        let mut state = self.state();
        let (due, failures) = (Instant::now() + pause, failures.saturating_add(1));
        state
            .waiting
            .entry(key)
            .or_insert(Waiting { due, failures });
    }

    fn next_due(&self) -> Option<Instant> {
        self.state()
            .waiting
            .values()
            .map(|waiting| waiting.due)
            .min()
    }

    fn went_well(&self, written: usize) {
        let mut state = self.state();
        state.written += written as u64;
        if state.trouble.take().is_some() {
            // What failed with it goes together now, in few requests.
            let now = Instant::now();
            let failed = state.waiting.values_mut();
            failed
                .filter(|waiting| waiting.failures > 0)
                .for_each(|waiting| waiting.due = now);
        }
    }

    fn went_wrong(&self, why: String) {
        self.state().trouble = Some(why);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }
}

impl Mesh {
    /// Has the journal carry all that logs say. False if it is not known yet how far it goes.
    ///
    /// **Errors**: any [`WriteError`].
    pub(super) async fn carry(
        self: &Arc<Mesh>,
        shared: &Arc<SharedBucket>,
    ) -> Result<bool, WriteError> {
        let Some(journal) = self.backlog.journal.get() else {
            return Ok(false);
        };
        journal.lock().await.carry(self, shared).await?;
        Ok(true)
    }
}

/// Why a batch was not written.
#[derive(Debug, Error)]
pub(crate) enum WriteError {
    #[error(transparent)]
    Bucket(#[from] BucketError),
    #[error("what is known of the bucket cannot be read")]
    Index(#[from] LocatorError),
    #[error("store")]
    Store(#[from] StoreError),
    #[error("condemnations {0} cannot be read")]
    Condemnations(String),
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

impl From<ReadError> for WriteError {
    fn from(error: ReadError) -> WriteError {
        match error {
            ReadError::Bucket(error) => error.into(),
            ReadError::Index(error) => error.into(),
        }
    }
}

/// Makes durable what is not, until the mesh is stopped.
pub(crate) async fn write_behind(app: Arc<App>, mesh: Arc<Mesh>, shared: Arc<SharedBucket>) {
    while !mesh.is_writing_behind() {
        sleep(LOOK_EVERY).await;
    }
    let journal = mesh
        .backlog
        .journal
        .get_or_init(|| async { AsyncMutex::new(Journal::begin(&app, &mesh, &shared).await) });
    let journal = journal.await;
    shared.known().await;
    let mut scan_at = Instant::now();
    let mut carry_at = Instant::now() + CARRY_EVERY;
    loop {
        if !mesh.is_writing_behind() {
            sleep(LOOK_EVERY).await;
            continue;
        }
        let missed = std::mem::take(&mut mesh.backlog.state().overflowed);
        if missed || scan_at <= Instant::now() {
            fill(&mesh).await;
            scan_at = Instant::now() + SCAN_EVERY;
        }
        let due = mesh.backlog.take_due(BATCH_PATHS_MAX);
        if due.is_empty() {
            let is_last = mesh.backlog.ends.load(Ordering::Relaxed);
            if is_last || carry_at <= Instant::now() {
                carry_at = Instant::now() + CARRY_EVERY;
                if let Err(error) = journal.lock().await.carry(&mesh, &shared).await {
                    mesh.backlog.went_wrong(chain(&error).to_string());
                }
            }
            if is_last {
                mesh.backlog.ended.notify_one();
                return;
            }
            let next = mesh.backlog.next_due();
            let next = next.map_or(LOOK_EVERY, |at| {
                at.saturating_duration_since(Instant::now())
            });
            let next = next.clamp(Duration::from_millis(10), LOOK_EVERY);
            let _ = timeout(next, mesh.backlog.news.notified()).await;
            continue;
        }
        let failures: BTreeMap<Key, u32> = due.iter().copied().collect();
        let keys = due.into_iter().map(|(key, _)| key).collect();
        let items = gather(&app, &mesh, keys, &failures).await;
        if items.is_empty() {
            continue;
        }
        let wanted: Vec<Key> = items.iter().map(|item| item.key).collect();
        match write(&app, &mesh, &shared, journal, items).await {
            Ok(conflicts) => {
                for key in conflicts {
                    mesh.backlog
                        .put_back(key, failures.get(&key).copied().unwrap_or(0));
                }
            }
            Err(error) => {
                tracing::warn!(
                    bucket = shared.name,
                    paths = wanted.len(),
                    cause = chain(&error),
                    "paths are not durable yet"
                );
                mesh.backlog.went_wrong(chain(&error).to_string());
                for key in wanted {
                    mesh.backlog
                        .put_back(key, failures.get(&key).copied().unwrap_or(0));
                }
                if matches!(&error, WriteError::Bucket(BucketError::Unclear { .. })) {
                    // It may have arrived: then it need not be written again.
                    let _ = shared.learn_all().await;
                }
                sleep(RETRY_MIN).await;
            }
        }
    }
}

/// Puts into the queue what the directory knows and nobody called durable.
async fn fill(mesh: &Arc<Mesh>) {
    let looking = Arc::clone(mesh);
    let filled = spawn_blocking(move || {
        for (cache, ..) in looking.view.caches() {
            let mut after = None;
            loop {
                let page = looking.view.not_durable(cache, after, PAGE);
                let Some((last, _)) = page.last() else {
                    break;
                };
                after = Some(*last);
                for (hash, dots) in page {
                    looking.want_durable((cache, hash), &dots);
                }
            }
        }
    });
    joined(filled.await);
}

impl Mesh {
    /// Sees to it that records of a path are made durable, by this keeper or, first, by another.
    pub(crate) fn want_durable(&self, key: Key, dots: &[Dot]) {
        let own = dots.iter().any(|dot| dot.node == self.me);
        let due = match own || self.is_first_keeper(&key, dots) {
            true => Instant::now(),
            false => Instant::now() + OTHERS_FIRST,
        };
        self.backlog.add_at(key, due);
        self.backlog.news.notify_one();
    }

    /// Whether of the keepers that are connected this one is first in rank for a path that others said.
    /// A keeper sees to its own.
    fn is_first_keeper(&self, key: &Key, dots: &[Dot]) -> bool {
        let peers = self.network.peers();
        let connected = |node: &NodeId| peers.iter().any(|peer| peer.node == *node);
        let keepers = self.view.keepers().into_iter();
        let keepers: Vec<NodeId> = keepers.filter(connected).collect();
        if dots.iter().any(|dot| keepers.contains(&dot.node)) {
            return false;
        }
        let ranked = rank(key.1.as_bytes(), keepers.into_iter().chain([self.me]));
        ranked.first() == Some(&self.me)
    }
}

/// A path of which records are to be made durable.
struct Item {
    key: Key,
    dots: Vec<Dot>,
    manifest: Arc<Manifest>,
    encoded: Vec<u8>,
    /// Keeps its chunks here.
    _lease: attic_store::Lease,
}

/// Finds what of these paths is to be made durable, and fetches what is not here.
async fn gather(
    app: &Arc<App>,
    mesh: &Arc<Mesh>,
    keys: Vec<Key>,
    failures: &BTreeMap<Key, u32>,
) -> Vec<Item> {
    let mut items = Vec::new();
    let mut fetching = JoinSet::new();
    for key in keys {
        let (asking, looking) = (Arc::clone(app), Arc::clone(mesh));
        match joined(spawn_blocking(move || looking.item(&asking, key)).await) {
            Ok(Found::Here(item)) => items.push(*item),
            Ok(Found::Nothing) => {}
            Ok(Found::Elsewhere(record)) => {
                let mesh = Arc::clone(mesh);
                while fetching.len() >= FETCHES_MAX {
                    let _ = fetching.join_next().await;
                }
                let failures = failures.get(&key).copied().unwrap_or(0);
                fetching.spawn(async move {
                    let landed = match mesh.fetch(record, Priority::Background) {
                        Ok(flight) => timeout(FETCH_MAX, flight.landed()).await,
                        Err(error) => Ok(Err(error)),
                    };
                    match landed {
                        Ok(Ok(_)) => mesh.backlog.add(key),
                        Ok(Err(_)) | Err(_) => mesh.backlog.put_back(key, failures),
                    }
                });
            }
            Err(error) => {
                tracing::error!(
                    cause = chain(&error),
                    "a path cannot be read to be made durable"
                );
                mesh.backlog
                    .put_back(key, failures.get(&key).copied().unwrap_or(0));
            }
        }
    }
    // What comes is made durable with the next batch; this one does not wait for it.
    if items.is_empty() {
        while fetching.join_next().await.is_some() {}
    } else {
        fetching.detach_all();
    }
    items
}

enum Found {
    Here(Box<Item>),
    /// It is to be fetched first.
    Elsewhere(Arc<PathRecord>),
    /// It is durable, removed, or none of this node's business.
    Nothing,
}

impl Mesh {
    fn item(&self, app: &App, key: Key) -> Result<Found, StoreError> {
        let (cache, hash) = key;
        let mut dots = self.view.dots_not_durable(cache, hash);
        if dots.is_empty() || app.caches.find_shared(&cache).is_none() {
            return Ok(Found::Nothing);
        }
        // What nobody trusts need not last.
        let Some(record) = self.view.path(cache, &hash) else {
            return Ok(Found::Nothing);
        };
        // Of one path there may be two NARs; it is the one that is served that lasts.
        dots.retain(|dot| self.view.manifest_of(*dot) == Some(record.manifest));
        if dots.is_empty() {
            return Ok(Found::Nothing);
        }
        let lease = app.store.lease();
        app.store.hold(&lease, [record.info.nar_hash]);
        let here = app.store.nar(&record.info.nar_hash)?.is_some();
        let manifest = match here {
            true => app.store.manifest(&record.info.nar_hash)?,
            false => None,
        };
        let Some(manifest) = manifest else {
            return Ok(Found::Elsewhere(Arc::new(record)));
        };
        let encoded = manifest.encode();
        if ManifestId::of(&encoded) != record.manifest {
            tracing::error!(%hash, "a path is stored here in another form than it was told of");
            return Ok(Found::Nothing);
        }
        Ok(Found::Here(Box::new(Item {
            key,
            dots,
            manifest: Arc::new(manifest),
            encoded,
            _lease: lease,
        })))
    }
}

/// Makes paths durable; returns those whose packs were condemned or gone.
///
/// **Errors**: any [`WriteError`]; none of the paths is called durable then.
async fn write(
    app: &Arc<App>,
    mesh: &Arc<Mesh>,
    shared: &Arc<SharedBucket>,
    journal: &AsyncMutex<Journal>,
    items: Vec<Item>,
) -> Result<Vec<Key>, WriteError> {
    let mut items = items.into_iter().peekable();
    let mut conflicts = Vec::new();
    while items.peek().is_some() {
        let mut packing = Packing::new(Arc::clone(app), Arc::clone(shared));
        let mut batch: Vec<(Item, BTreeMap<PackId, u32>)> = Vec::new();
        while let Some(item) = items.peek() {
            let needs = packing.add(item).await?;
            batch.extend(items.next().map(|item| (item, needs)));
            if packing.written >= BATCH_LEN_MAX {
                break;
            }
        }
        packing.finish().await?;
        let reference = |(item, needs): &(Item, BTreeMap<PackId, u32>)| {
            let packs: Vec<_> = needs.iter().map(|(pack, used)| (*pack, *used)).collect();
            item.dots
                .iter()
                .map(move |dot| Reference {
                    dot: *dot,
                    packs: packs.clone(),
                })
                .collect::<Vec<_>>()
        };
        let references = batch.iter().flat_map(reference).collect();
        let Done {
            durable,
            unreliable,
        } = conclude(mesh, shared, journal, references).await?;
        for pack in &unreliable {
            tracing::warn!(%pack, "a pack is not to be relied on; its chunks are written anew");
            shared.index().forget(*pack);
        }
        let conflicting = batch
            .into_iter()
            .filter(|(_, needs)| needs.keys().any(|pack| unreliable.contains(pack)));
        conflicts.extend(conflicting.map(|(item, _)| item.key));
        let count = durable.len();
        let announcer = Arc::clone(&mesh.announcer);
        let said = spawn_blocking(move || {
            let words = durable
                .chunks(DOTS_MAX)
                .map(|dots| Record::Durable(dots.to_vec()));
            words.for_each(|word| announcer.say_all(vec![word]));
        });
        joined(said.await);
        mesh.backlog.went_well(count);
    }
    Ok(conflicts)
}

/// Writes references, and looks which of them can be relied on.
///
/// **Errors**: any [`WriteError`]; none of them can then.
async fn conclude(
    mesh: &Arc<Mesh>,
    shared: &Arc<SharedBucket>,
    journal: &AsyncMutex<Journal>,
    references: Vec<Reference>,
) -> Result<Done, WriteError> {
    let mut writer = Writer::new(references);
    loop {
        writer = match writer {
            Writer::Refer(refer) => {
                let references = refer.references().to_vec();
                journal.lock().await.write(mesh, shared, references).await?;
                refer.written()
            }
            Writer::List(list) => {
                let keys = keys(&*shared.remote, CONDEMNATIONS).await?;
                list.listed(keys.iter().map(String::as_str))?
            }
            Writer::Read(read) => {
                let (keeper, key) = read.next();
                let condemnations = condemnations(shared, keeper, key).await?;
                read.read(&condemnations)
            }
            Writer::Seek(seek) => {
                let there = present(shared, seek.packs()).await?;
                seek.sought(&there)
            }
            Writer::Done(done) => return Ok(done),
        };
    }
}

/// What a keeper condemns, by an object that was listed.
pub(super) async fn condemnations(
    shared: &SharedBucket,
    keeper: &NodeId,
    key: &str,
) -> Result<Condemnations, WriteError> {
    let bytes = match shared.remote.get(key, CONDEMNATIONS_LEN_MAX).await {
        Ok(bytes) => bytes,
        // A newer version has taken its place, and this one was cleared away.
        Err(BucketError::NotFound { .. }) => {
            return Err(WriteError::Condemnations(key.to_owned()));
        }
        Err(error) => return Err(error.into()),
    };
    let read = Signed::<Condemnations>::decode(&bytes).ok();
    let sets = read.and_then(|signed| signed.verify(keeper).cloned().ok());
    sets.ok_or_else(|| WriteError::Condemnations(key.to_owned()))
}

/// Which of these packs are there.
pub(super) async fn present(
    shared: &Arc<SharedBucket>,
    packs: &BTreeSet<PackId>,
) -> Result<BTreeSet<PackId>, WriteError> {
    let mut packs = packs.iter().copied();
    let mut asking = JoinSet::new();
    let mut present = BTreeSet::new();
    loop {
        while asking.len() < HEADS_MAX
            && let Some(pack) = packs.next()
        {
            let shared = Arc::clone(shared);
            asking.spawn(async move { (pack, shared.remote.head(&pack.object_key()).await) });
        }
        let Some(answered) = asking.join_next().await else {
            return Ok(present);
        };
        let (pack, len) = joined(answered);
        if len?.is_some() {
            present.insert(pack);
        }
    }
}

/// Packs that are being made and written.
struct Packing {
    app: Arc<App>,
    shared: Arc<SharedBucket>,
    builder: PackBuilder,
    /// What this batch puts into which pack.
    placed: HashMap<[u8; 32], PackId>,
    writing: JoinSet<Result<BuiltPack, BucketError>>,
    /// Bytes of packs that were finished.
    written: usize,
}

impl Packing {
    fn new(app: Arc<App>, shared: Arc<SharedBucket>) -> Packing {
        Packing {
            app,
            shared,
            builder: PackBuilder::new(random()),
            placed: HashMap::new(),
            writing: JoinSet::new(),
            written: 0,
        }
    }

    /// Sees to it that all of a NAR is in packs; returns these, with the bytes it needs of each.
    async fn add(&mut self, item: &Item) -> Result<BTreeMap<PackId, u32>, WriteError> {
        let mut needs = BTreeMap::new();
        let mut need = |pack: PackId, len: u32| {
            let used: &mut u32 = needs.entry(pack).or_default();
            *used = used.saturating_add(len);
        };
        let entries: Vec<_> = item.manifest.all_chunks().copied().collect();
        for group in entries.chunks(GROUP) {
            let (app, shared) = (Arc::clone(&self.app), Arc::clone(&self.shared));
            let placed: Vec<Option<PackId>> = group
                .iter()
                .map(|entry| self.placed.get(entry.id.as_bytes()).copied())
                .collect();
            let looked: Vec<_> = group.iter().copied().zip(placed).collect();
            let read = spawn_blocking(move || {
                let read =
                    |(entry, placed): (attic_store::manifest::ManifestEntry, Option<PackId>)| {
                        if let Some(pack) = placed {
                            return Ok((entry, Chunk::In(pack)));
                        }
                        if let Some(Place { pack, .. }) = shared.find(entry.id.as_bytes())? {
                            return Ok((entry, Chunk::In(pack)));
                        }
                        // A pack that claims a chunk it does not hold would spoil every path that relies on it.
                        let frame = app.store.frame(&entry.id)?;
                        let good = frame.filter(|frame| {
                            frame.len() == entry.frame_len as usize
                                && holds_chunk(&entry.id, entry.raw_len, frame)
                        });
                        Ok((entry, good.map_or(Chunk::Lost, Chunk::New)))
                    };
                looked
                    .into_iter()
                    .map(read)
                    .collect::<Result<Vec<_>, WriteError>>()
            });
            for (entry, chunk) in joined(read.await)? {
                match chunk {
                    Chunk::In(pack) => need(pack, entry.frame_len),
                    Chunk::Lost => {
                        return Err(StoreError::Chunk(entry.id).into());
                    }
                    Chunk::New(frame) => {
                        let key = *entry.id.as_bytes();
                        // It may occur twice in a group.
                        if let Some(pack) = self.placed.get(&key) {
                            need(*pack, entry.frame_len);
                            continue;
                        }
                        self.builder.add_chunk(&entry.id, entry.raw_len, &frame);
                        self.placed.insert(key, self.builder.id());
                        need(self.builder.id(), entry.frame_len);
                        self.write_full().await?;
                    }
                }
            }
        }
        let key = *blake3::hash(&item.encoded).as_bytes();
        let (shared, len) = (Arc::clone(&self.shared), item.encoded.len() as u32);
        let known = joined(spawn_blocking(move || shared.find(&key)).await)?;
        match known
            .map(|place| place.pack)
            .or(self.placed.get(&key).copied())
        {
            Some(pack) => need(pack, len),
            None => {
                self.builder.add_manifest(&item.encoded);
                self.placed.insert(key, self.builder.id());
                need(self.builder.id(), len);
                self.write_full().await?;
            }
        }
        Ok(needs)
    }

    async fn write_full(&mut self) -> Result<(), WriteError> {
        if self.builder.is_full() {
            self.write_one().await?;
        }
        Ok(())
    }

    /// Begins to write the pack that is being made; waits if too many are on their way.
    async fn write_one(&mut self) -> Result<(), WriteError> {
        while self.writing.len() >= UPLOADS_MAX {
            self.next_written().await?;
        }
        let builder = std::mem::replace(&mut self.builder, PackBuilder::new(random()));
        let pack = builder.finish();
        self.written += pack.bytes.len();
        let shared = Arc::clone(&self.shared);
        self.writing.spawn(async move {
            let key = pack.id.object_key();
            shared
                .remote
                .put(&key, pack.bytes.clone())
                .await
                .map(|()| pack)
        });
        Ok(())
    }

    async fn next_written(&mut self) -> Result<(), WriteError> {
        let Some(written) = self.writing.join_next().await else {
            return Ok(());
        };
        let pack = joined(written)?;
        self.shared.add(pack.id, pack.contents).await;
        Ok(())
    }

    /// Waits until everything is written.
    async fn finish(mut self) -> Result<(), WriteError> {
        if !self.builder.is_empty() {
            self.write_one().await?;
        }
        while !self.writing.is_empty() {
            self.next_written().await?;
        }
        Ok(())
    }
}

enum Chunk {
    /// In the bucket, or about to be.
    In(PackId),
    New(bytes::Bytes),
    Lost,
}

/// This keeper's journal in the bucket.
struct Journal {
    identity: Identity,
    next: u64,
    /// How far each log is in it.
    carried: BTreeMap<NodeId, u64>,
    path: std::path::PathBuf,
}

impl Journal {
    /// Finds out how far the journal goes. Returns once the bucket has answered.
    async fn begin(app: &App, mesh: &Mesh, shared: &SharedBucket) -> Journal {
        let mut pause = RETRY_MIN;
        let last = loop {
            match Journal::last(mesh, shared).await {
                Ok(last) => break last,
                Err(error) => {
                    mesh.backlog.went_wrong(chain(&error).to_string());
                    sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
        };
        Journal::publish_genesis(app, mesh).await;
        let path = mesh.announcer.files.bucket().join("carried");
        let identity = app.identity();
        let mut journal = Journal {
            identity,
            next: 1,
            carried: BTreeMap::new(),
            path,
        };
        if let Some((key, number)) = last {
            journal.next = number + 1;
            journal.read_carried(&key);
        }
        journal
    }

    /// Writes which cluster this is where [`crate::http::bucket`] looks for it, if nobody has.
    async fn publish_genesis(app: &App, mesh: &Mesh) {
        let Some((whole, _)) = app.open_bucket("") else {
            return;
        };
        let key = genesis_key(&mesh.cluster);
        let mut pause = RETRY_MIN;
        loop {
            let written = match whole.head(&key).await {
                Ok(Some(_)) => return,
                // Whoever else does the same writes the same.
                Ok(None) => {
                    whole
                        .put(&key, mesh.members.genesis().encode().into())
                        .await
                }
                Err(error) => Err(error),
            };
            match written {
                Ok(()) => return,
                Err(error) => mesh.backlog.went_wrong(chain(&error).to_string()),
            }
            sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// The last entry of this keeper's journal.
    async fn last(
        mesh: &Mesh,
        shared: &SharedBucket,
    ) -> Result<Option<(String, u64)>, BucketError> {
        let mut last = None;
        let look = |object: Object| last = Some(object.key);
        each_object(&*shared.remote, &journal_prefix(&mesh.me), None, look).await?;
        Ok(last.and_then(|key| {
            let (_, number) = read_entry_key(&key)?;
            Some((key, number))
        }))
    }

    /// What is noted about the logs counts only if the bucket still has the entry it was noted with.
    fn read_carried(&mut self, last: &str) {
        let text = read_file(&self.path).unwrap_or_default();
        let mut lines = text.lines();
        if lines.next() != Some(last) {
            return;
        }
        let carried = lines.filter_map(|line| {
            let (node, seq) = line.split_once(' ')?;
            Some((node.parse().ok()?, seq.parse().ok()?))
        });
        self.carried = carried.collect();
    }

    /// Carries what logs said since the last entry, if anything.
    async fn carry(
        &mut self,
        mesh: &Arc<Mesh>,
        shared: &Arc<SharedBucket>,
    ) -> Result<(), WriteError> {
        self.write(mesh, shared, Vec::new()).await
    }

    /// Writes entries until the journal has these references and all of the logs.
    async fn write(
        &mut self,
        mesh: &Arc<Mesh>,
        shared: &Arc<SharedBucket>,
        references: Vec<Reference>,
    ) -> Result<(), WriteError> {
        let mut references = references;
        loop {
            let (looking, carried) = (Arc::clone(mesh), self.carried.clone());
            let looked =
                spawn_blocking(move || looking.view.segments_beyond(&carried, SEGMENTS_LEN_MAX));
            let beyond = joined(looked.await);
            // References come last: what they are about is in the journal then.
            let said = match beyond.is_all {
                true => take_some(&mut references),
                false => Vec::new(),
            };
            if said.is_empty() && beyond.segments.is_empty() {
                return Ok(());
            }
            let entry = Entry {
                cluster: mesh.cluster,
                keeper: mesh.me,
                references: said,
                segments: beyond.segments,
            };
            let number = self.next;
            self.next += 1;
            let key = entry_key(&mesh.me, number, u32::from_le_bytes(random()));
            let bytes = Signed::new(entry, &self.identity).encode();
            shared.remote.put(&key, bytes.into()).await?;
            self.carried = beyond.carried;
            self.note(&key);
            if beyond.is_all && references.is_empty() {
                return Ok(());
            }
        }
    }

    /// Notes how far the logs are in the journal. If that is lost, they are carried once more.
    fn note(&self, last: &str) {
        let lines = self
            .carried
            .iter()
            .map(|(node, seq)| format!("{node} {seq}\n"));
        let text = format!("{last}\n{}", lines.collect::<String>());
        if let Err(error) = replace_file(&self.path, &text, Secrecy::Public) {
            tracing::warn!(
                cause = chain(&error),
                "how far the journal goes is not noted"
            );
        }
    }
}

/// Takes references off the end, as many as an entry has room for.
fn take_some(references: &mut Vec<Reference>) -> Vec<Reference> {
    let mut len = 0;
    let len_of = |reference: &Reference| REFERENCE_LEN + NEED_LEN * reference.packs.len();
    let taken = references.iter().rev().take_while(|reference| {
        len += len_of(reference);
        len <= REFERENCES_LEN_MAX
    });
    let count = taken.count().max(1).min(references.len());
    references.split_off(references.len() - count)
}

/// What logs have beyond what a journal carries.
pub(crate) struct Beyond {
    pub(crate) segments: Vec<Vec<u8>>,
    /// How far each log is with these.
    pub(crate) carried: BTreeMap<NodeId, u64>,
    /// Whether that is all there is.
    pub(crate) is_all: bool,
}

/// Where, below the prefix of the configuration, it says which clusters there are.
pub(crate) const GENESES: &str = "cluster/";

/// The key of a cluster's genesis.
pub(crate) fn genesis_key(cluster: &ClusterId) -> String {
    format!("{GENESES}{cluster}")
}

/// Paths that wait.
const WAITING_MAX: usize = 200_000;
/// Paths that are made durable together.
const BATCH_PATHS_MAX: usize = 1000;
/// Bytes of new packs after which a batch is concluded.
const BATCH_LEN_MAX: usize = 128 << 20;
/// Packs on their way to the bucket.
const UPLOADS_MAX: usize = 3;
/// Packs that are looked for at once.
const HEADS_MAX: usize = 16;
/// NARs that are fetched at once, to be made durable.
const FETCHES_MAX: usize = 8;
const FETCH_MAX: Duration = Duration::from_secs(30 * 60);
/// Chunks read at a time.
const GROUP: usize = 32;
/// Hash parts read at a time.
const PAGE: usize = 1 << 12;
/// Bytes of segments in one entry.
const SEGMENTS_LEN_MAX: usize = 8 << 20;
/// Bytes of references in one entry, and of one at most, with that for each pack.
const REFERENCES_LEN_MAX: usize = 4 << 20;
const REFERENCE_LEN: usize = 64;
const NEED_LEN: usize = 24;
const CONDEMNATIONS_LEN_MAX: u64 = 64 << 20;
/// Records called durable in one record.
const DOTS_MAX: usize = 256;
/// How long another keeper has for what is its to do.
const OTHERS_FIRST: Duration = Duration::from_secs(30);
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the whole directory is looked through.
const SCAN_EVERY: Duration = Duration::from_secs(10 * 60);
/// How long a stop waits for the journal.
const LAST_MAX: Duration = Duration::from_secs(3);
/// How often what no path waits for is carried: removals, keys, pins.
const CARRY_EVERY: Duration = Duration::from_secs(30);
