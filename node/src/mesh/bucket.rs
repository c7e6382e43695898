//! The cluster's bucket, as this node sees it: which packs it has, what lies where in them, and reads.
//!
//! What is known of the bucket is on this node's disk, so that to look something up costs no request. It
//! is learnt from the ends of packs, by a listing at the start and now and then, and between those from
//! what keepers say to have made durable. It may be out of date: what is read may be gone, and is
//! checked before anybody gets it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use attic_p2p::ids::{ClusterId, ManifestId, NodeId};
use attic_p2p::journal::{ENTRY_LEN_MAX, Entry, journal_prefix};
use attic_p2p::signed::Signed;
use attic_store::bucket::pack::{
    PACK_END_LEN, PACKS, PackContents, PackEnd, Place, is_manifest, read_pack_end,
};
use attic_store::bucket::{Bucket, BucketError, BucketIndex, Object, each_object};
use attic_store::manifest::Manifest;
use attic_store::{ChunkId, LocatorError, PackId};
use bytes::Bytes;
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use crate::app::App;
use crate::http::error::chain;
use crate::http::ingest::joined;
use crate::mesh::Mesh;
use crate::recent::{Bounds, Recent};

pub(crate) mod collect;
pub(crate) mod prefixed;
pub(crate) mod source;
pub(crate) mod write_behind;

/// A bucket, and what is known of it.
pub(crate) struct SharedBucket {
    pub(crate) remote: Arc<dyn Bucket>,
    /// For people: `s3://bucket/prefix`.
    pub(crate) name: String,
    cluster: ClusterId,
    index: BucketIndex,
    /// The last entry that was read of each keeper's journal.
    read: Mutex<BTreeMap<NodeId, String>>,
    /// Copies that were found to be damaged since the start.
    damaged: Mutex<HashSet<(PackId, u32)>>,
    /// Told when a keeper said what it made durable, or something is missed.
    pub(crate) news: Notify,
    /// Told when more is known.
    learnt: Notify,
    /// What was looked for in vain lately.
    missed: Mutex<Recent<ManifestId, ()>>,
    /// Whether it was listed since the start.
    is_known: watch::Sender<bool>,
}

/// Why something cannot be had of a bucket.
#[derive(Debug, Error)]
pub(crate) enum ReadError {
    #[error(transparent)]
    Bucket(#[from] BucketError),
    #[error("what is known of the bucket cannot be read")]
    Index(#[from] LocatorError),
}

impl SharedBucket {
    /// The bucket of a cluster; what is known of it is in `dir`. Blocks on the disk.
    ///
    /// **Errors**: `dir` cannot be used.
    pub(crate) fn open(
        remote: Arc<dyn Bucket>,
        name: String,
        cluster: ClusterId,
        dir: &Path,
    ) -> Result<SharedBucket, LocatorError> {
        let index = BucketIndex::open(dir).or_else(|error| {
            tracing::warn!(
                cause = chain(&error),
                "what is known of the bucket is learnt anew"
            );
            // Nothing is lost: the bucket says it again.
            let _ = std::fs::remove_dir_all(dir);
            BucketIndex::open(dir)
        })?;
        Ok(SharedBucket {
            remote,
            name,
            cluster,
            index,
            read: Mutex::default(),
            damaged: Mutex::default(),
            news: Notify::new(),
            learnt: Notify::new(),
            missed: Mutex::new(Recent::new(Bounds {
                ttl: MISSED_FOR,
                len_max: MISSED_MAX,
                weight_max: MISSED_MAX,
            })),
            is_known: watch::Sender::new(false),
        })
    }

    /// What is known to be where. Its methods block on the disk.
    pub(crate) fn index(&self) -> &BucketIndex {
        &self.index
    }

    /// Whether the bucket was reached lately, as far as is known.
    pub(crate) fn is_reachable(&self) -> bool {
        let health = self.remote.health();
        let open_until = health.breaker_open_until;
        health.failing_since.is_none() && open_until.is_none_or(|until| until <= SystemTime::now())
    }

    /// Where a sound copy of something is; `None` if none is known. Blocks on the disk.
    pub(crate) fn find(&self, key: &[u8; 32]) -> Result<Option<Place>, LocatorError> {
        let place = self.index.find(key)?;
        Ok(place.filter(|place| !self.damaged().contains(&(place.pack, place.offset))))
    }

    /// Whether the bucket has a manifest, as far as is known. Blocks on the disk.
    pub(crate) fn has(&self, manifest: &ManifestId) -> bool {
        matches!(self.find(manifest.as_bytes()), Ok(Some(_)))
    }

    /// Whether the bucket has a manifest, after a look at what is new there if it is not known to. Takes
    /// [`MISS_PATIENCE`] at most.
    pub(crate) async fn has_by_now(self: &Arc<Self>, manifest: ManifestId) -> bool {
        let now = Instant::now();
        let missed = || self.missed.lock().expect("no panic under this lock");
        if missed().find(&manifest, now).is_some() {
            return false;
        }
        loop {
            let learnt = self.learnt.notified();
            let looking = Arc::clone(self);
            if joined(spawn_blocking(move || looking.has(&manifest)).await) {
                return true;
            }
            self.news.notify_one();
            let left = MISS_PATIENCE.saturating_sub(now.elapsed());
            if timeout(left, learnt).await.is_err() {
                missed().keep(manifest, (), 1, now);
                return false;
            }
        }
    }

    /// Where all chunks of a manifest are, those of its listing last. Blocks on the disk.
    pub(crate) fn places(&self, manifest: &Manifest) -> Result<Vec<Option<Place>>, LocatorError> {
        let find = |id: &ChunkId| self.find(id.as_bytes());
        manifest.all_chunks().map(|entry| find(&entry.id)).collect()
    }

    /// An encoded manifest, checked; `None` if the bucket has it no more.
    pub(crate) async fn manifest(
        self: &Arc<Self>,
        id: ManifestId,
    ) -> Result<Option<Bytes>, ReadError> {
        let looking = Arc::clone(self);
        let found = joined(spawn_blocking(move || looking.find(id.as_bytes())).await)?;
        let Some(place) = found else {
            return Ok(None);
        };
        let Some(bytes) = self.read(&place.pack, place.range()).await? else {
            return Ok(None);
        };
        match is_manifest(id.as_bytes(), &bytes) {
            true => Ok(Some(bytes)),
            false => {
                self.is_damaged(&place);
                Ok(None)
            }
        }
    }

    /// Bytes of a pack; `None` if it is gone, which is noted.
    pub(crate) async fn read(
        &self,
        pack: &PackId,
        range: std::ops::Range<u64>,
    ) -> Result<Option<Bytes>, BucketError> {
        let key = pack.object_key();
        match self.remote.get_range(&key, range).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(BucketError::NotFound { .. }) => {
                tracing::error!(%pack, "a pack is not in the bucket any more");
                self.index.forget(*pack);
                Ok(None)
            }
            Err(BucketError::Truncated { .. }) => {
                tracing::error!(%pack, "a pack of the bucket is too short");
                self.index.forget(*pack);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Notes that a copy is damaged: it is not used again until the next start.
    pub(crate) fn is_damaged(&self, place: &Place) {
        tracing::error!(pack = %place.pack, offset = place.offset, "damaged bytes in the bucket");
        let mut damaged = self.damaged();
        if damaged.len() < DAMAGED_MAX {
            damaged.insert((place.pack, place.offset));
        }
    }

    /// Damaged copies that were found since the start.
    pub(crate) fn damaged_count(&self) -> usize {
        self.damaged().len()
    }

    /// Waits until the bucket was listed since the start: what it has is not written again.
    pub(crate) async fn known(&self) {
        let mut is_known = self.is_known.subscribe();
        // The sender lives as long as `self`.
        let _ = is_known.wait_for(|is_known| *is_known).await;
    }

    /// Learns which packs there are from a listing.
    ///
    /// **Errors**: the bucket's; what was learnt stays.
    pub(crate) async fn learn_all(self: &Arc<Self>) -> Result<(), ReadError> {
        let looking = Arc::clone(self);
        let before = joined(spawn_blocking(move || looking.index.packs()).await);
        let mut listed = BTreeSet::new();
        let mut unknown = Vec::new();
        let look = |object: Object| {
            if let Some(pack) = PackId::of_object_key(&object.key) {
                listed.insert(pack);
                if !before.contains(&pack) {
                    unknown.push((pack, object.len));
                }
            }
        };
        each_object(&*self.remote, PACKS, None, look).await?;
        self.learn(unknown).await?;
        // What came while it was listed is not among those that were known before.
        for pack in before.difference(&listed) {
            tracing::info!(%pack, "a pack has left the bucket");
            self.index.forget(*pack);
        }
        self.flush().await;
        self.is_known.send_replace(true);
        Ok(())
    }

    /// Learns of packs that journals of `keepers` name and that are not known yet.
    ///
    /// **Errors**: the bucket's; what was learnt stays.
    pub(crate) async fn learn_new(
        self: &Arc<Self>,
        keepers: impl IntoIterator<Item = NodeId>,
    ) -> Result<(), ReadError> {
        let looking = Arc::clone(self);
        let known = joined(spawn_blocking(move || looking.index.packs()).await);
        for keeper in keepers {
            let prefix = journal_prefix(&keeper);
            loop {
                let after = self.read_up_to().get(&keeper).cloned();
                let page = self.remote.list(&prefix, after.as_deref()).await?;
                for object in &page.objects {
                    let packs = self.packs_of(&keeper, &object.key).await?;
                    let mut unknown = Vec::new();
                    for pack in packs.difference(&known) {
                        if let Some(len) = self.remote.head(&pack.object_key()).await? {
                            unknown.push((*pack, len));
                        }
                    }
                    self.learn(unknown).await?;
                    self.read_up_to().insert(keeper, object.key.clone());
                }
                if page.is_last || page.objects.is_empty() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// The packs that an entry of a journal names.
    async fn packs_of(&self, keeper: &NodeId, key: &str) -> Result<BTreeSet<PackId>, BucketError> {
        let entry = match read_entry(&*self.remote, &self.cluster, keeper, key).await {
            Err(BucketError::NotFound { .. }) => None,
            read => read?,
        };
        let references = entry.map(|entry| entry.references).unwrap_or_default();
        let packs = references.iter().flat_map(|reference| &reference.packs);
        Ok(packs.map(|(pack, _)| *pack).collect())
    }

    /// Reads the ends of packs.
    async fn learn(self: &Arc<Self>, packs: Vec<(PackId, u64)>) -> Result<(), ReadError> {
        let mut packs = packs.into_iter();
        let mut reading = JoinSet::new();
        loop {
            while reading.len() < ENDS_AT_ONCE
                && let Some((pack, len)) = packs.next()
            {
                let shared = Arc::clone(self);
                reading.spawn(async move { (pack, shared.contents(pack, len).await) });
            }
            let Some(read) = reading.join_next().await else {
                return Ok(());
            };
            let (pack, contents) = joined(read);
            let Some(contents) = contents? else {
                tracing::error!(%pack, "an object of the bucket is no whole pack");
                continue;
            };
            self.add(pack, contents).await;
        }
    }

    /// What a pack of `len` bytes holds; `None` if it is damaged or gone.
    async fn contents(&self, pack: PackId, len: u64) -> Result<Option<PackContents>, BucketError> {
        let mut from = len.saturating_sub(PACK_END_LEN);
        for _ in 0..2 {
            let key = pack.object_key();
            let end = match self.remote.get_range(&key, from..len).await {
                Ok(end) => end,
                Err(BucketError::NotFound { .. } | BucketError::Truncated { .. }) => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
            match read_pack_end(len, &end) {
                PackEnd::Whole(contents) => return Ok(Some(contents)),
                PackEnd::Longer(at) => from = at,
                PackEnd::Damaged => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Adds a pack that is in the bucket.
    pub(crate) async fn add(self: &Arc<Self>, pack: PackId, contents: PackContents) {
        let shared = Arc::clone(self);
        let added = spawn_blocking(move || {
            shared.index.add(pack, &contents);
            shared.upkeep();
        });
        joined(added.await);
    }

    async fn flush(self: &Arc<Self>) {
        let shared = Arc::clone(self);
        let flushed = spawn_blocking(move || {
            if let Err(error) = shared.index.flush() {
                tracing::warn!(
                    cause = chain(&error),
                    "what is known of the bucket is not written"
                );
            }
        });
        joined(flushed.await);
    }

    fn upkeep(&self) {
        loop {
            match self.index.maintain() {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(
                        cause = chain(&error),
                        "what is known of the bucket is not written"
                    );
                    return;
                }
            }
        }
    }

    fn read_up_to(&self) -> MutexGuard<'_, BTreeMap<NodeId, String>> {
        self.read.lock().expect("no panic under this lock")
    }

    fn damaged(&self) -> MutexGuard<'_, HashSet<(PackId, u32)>> {
        self.damaged.lock().expect("no panic under this lock")
    }
}

/// The keys of all objects that begin with `prefix`, in order.
///
/// **Errors**: the bucket's.
pub(crate) async fn keys(remote: &dyn Bucket, prefix: &str) -> Result<Vec<String>, BucketError> {
    let mut keys = Vec::new();
    each_object(remote, prefix, None, |object| keys.push(object.key)).await?;
    Ok(keys)
}

/// An entry of a keeper's journal; `None` if it is not that, which is logged.
///
/// **Errors**: the bucket's; that there is none is one.
pub(crate) async fn read_entry(
    remote: &dyn Bucket,
    cluster: &ClusterId,
    keeper: &NodeId,
    key: &str,
) -> Result<Option<Entry>, BucketError> {
    let bytes = remote.get(key, ENTRY_OBJECT_LEN_MAX).await?;
    let read = Signed::<Entry>::decode(&bytes).ok();
    let entry = read.and_then(|signed| signed.check(cluster, keeper).cloned().ok());
    if entry.is_none() {
        tracing::error!(key, "an entry of a journal in the bucket cannot be read");
    }
    Ok(entry)
}

/// Keeps what is known of the bucket up to date, until the mesh is stopped.
pub(crate) async fn tend(mesh: Arc<Mesh>, shared: Arc<SharedBucket>) {
    let mut pause = PAUSE_MIN;
    loop {
        match shared.learn_all().await {
            Ok(()) => break,
            Err(error) => {
                tracing::warn!(
                    bucket = shared.name,
                    cause = chain(&error),
                    "the bucket is not read yet"
                );
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
    tracing::info!(
        bucket = shared.name,
        objects = shared.index.len(),
        "the bucket is known"
    );
    mesh.sources_changed.send_replace(());
    let mut listed = Instant::now();
    loop {
        // While nothing can be had of it nobody asks, so it is for this to see that it is back.
        let every = match shared.is_reachable() {
            true => LEARN_EVERY,
            false => LOOK_AFTER_FAILURE,
        };
        let _ = timeout(every, shared.news.notified()).await;
        // One word is often followed by others.
        sleep(LEARN_PAUSE).await;
        let keepers = mesh
            .view
            .keepers()
            .into_iter()
            .filter(|node| *node != mesh.me);
        let keepers: Vec<NodeId> = keepers.collect();
        let outcome = match listed.elapsed() < LIST_EVERY {
            true => shared.learn_new(keepers).await,
            false => {
                listed = Instant::now();
                shared.learn_all().await
            }
        };
        match outcome {
            Ok(()) => {
                shared.learnt.notify_waiters();
                mesh.sources_changed.send_replace(());
            }
            Err(error) => {
                tracing::debug!(
                    cause = chain(&error),
                    "what is new in the bucket is not known"
                );
            }
        }
    }
}

/// Opens the bucket of a cluster as the node is configured to; `None` without one.
///
/// **Errors**: what is known of it cannot be kept.
pub(crate) fn configured(
    app: &App,
    cluster: ClusterId,
    dir: &Path,
) -> Result<Option<Arc<SharedBucket>>, LocatorError> {
    let Some((remote, name)) = app.open_bucket(&format!("{cluster}/")) else {
        return Ok(None);
    };
    Ok(Some(Arc::new(SharedBucket::open(
        remote, name, cluster, dir,
    )?)))
}

/// An entry with its signature.
const ENTRY_OBJECT_LEN_MAX: u64 = ENTRY_LEN_MAX as u64 + 64;
/// Ends of packs that are read at once.
const ENDS_AT_ONCE: usize = 16;
/// Damaged copies that are remembered.
const DAMAGED_MAX: usize = 65_536;
/// After a bucket could not be read.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How often a bucket that fails is looked at.
const LOOK_AFTER_FAILURE: Duration = Duration::from_secs(5);
/// How often journals are looked at without a word of their keepers.
const LEARN_EVERY: Duration = Duration::from_secs(5 * 60);
const LEARN_PAUSE: Duration = Duration::from_millis(300);
/// How long somebody who misses something waits for a look at the bucket.
const MISS_PATIENCE: Duration = Duration::from_secs(2);
/// How long what was looked for in vain is not looked for again, and how much of that is remembered.
const MISSED_FOR: Duration = Duration::from_secs(30);
const MISSED_MAX: usize = 4096;
/// How often all packs are listed.
const LIST_EVERY: Duration = Duration::from_secs(60 * 60);
