//! The front door of the backends: one directory of packs with its index.
//!
//! All calls block; asynchronous callers run them on blocking threads. A [`Store`] is a cheap
//! handle, safe to share.
//!
//! The order law: chunk durable → manifest → path row → the caller hears of it. A crash at any
//! point leaves garbage for [`Store::collect`], never a path without its chunks.

mod append;
mod ballast;
mod commit;
mod recover;
mod rows;
mod sequence;
mod size;

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::StoreError;
use crate::evicted::Evicted;
use crate::hash::{ChunkId, NarHash};
use crate::index::{Index, is_in_use};
use crate::lease::{Lease, LeaseTable};
use crate::locator::{Location, Locator, LocatorError, LocatorOptions};
use crate::pack::FooterEntry;
use crate::pack_set::PackSet;
use crate::pool::Pool;
use crate::reader::NarCache;
use crate::record::RecordKind;

use ballast::Ballast;
use sequence::Sequence;

pub(crate) use append::{Appender, Stored};
pub(crate) use recover::location;
pub use size::Usage;

/// How a store behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes at which a pack is sealed; 16 to 64 MiB. Below a size cap at most a sixteenth of it: what
    /// lives in a pack must fit beside it.
    pub pack_len_target: u64,
    /// The most bytes on disk; least recently used paths are evicted below it.
    pub size_cap: Option<u64>,
    /// How long an uploaded NAR may wait for the narinfo that publishes it.
    pub upload_grace: Duration,
    /// The largest NAR taken, in bytes.
    pub nar_size_max: u64,
    /// Threads that hash and compress.
    pub threads: usize,
    /// Packs whose live share is below this are rewritten by collection; 0 to 1.
    pub compact_below: f64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            pack_len_target: 32 << 20,
            size_cap: None,
            upload_grace: Duration::from_secs(24 * 3600),
            nar_size_max: 128 << 30,
            threads: std::thread::available_parallelism().map_or(2, usize::from),
            compact_below: 0.5,
        }
    }
}

/// A store of chunks, manifests and paths in one directory.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) dir: PathBuf,
    pub(crate) options: Options,
    pub(crate) packs: PackSet,
    pub(crate) index: Index,
    pub(crate) locator: Locator,
    pub(crate) leases: Arc<LeaseTable>,
    pub(crate) pool: Pool,
    pub(crate) nars: NarCache,
    /// NARs not to be served, as in the index.
    pub(crate) damaged: RwLock<HashSet<NarHash>>,
    /// The numbers of rows.
    seq: Sequence,
    commits: commit::Queue,
    touches: rows::Touches,
    /// Held shared while rows are published, exclusively while unreferenced NARs are dropped.
    pub(crate) publishing: RwLock<()>,
    /// One collection or verification at a time.
    pub(crate) housekeeping: Mutex<()>,
    pub(crate) size: size::Size,
    pub(crate) evicted: Evicted,
    ballast: Ballast,
    /// Keeps other processes out until the store is dropped.
    _lock: File,
}

impl Store {
    /// Opens the store in `dir`, creating it if it is absent, and recovers from a crash.
    ///
    /// An index that cannot be opened is rebuilt from the packs.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if another process has it open, [`StoreError::Format`] if it is of
    /// another version, [`StoreError::Io`] if the directory or a pack cannot be read.
    pub fn open(dir: &Path, mut options: Options) -> Result<Store, StoreError> {
        if let Some(cap) = options.size_cap {
            options.pack_len_target = options.pack_len_target.min(cap / PACKS_UNDER_CAP);
        }
        let lock = lock(dir)?;
        check_format(dir)?;
        let packs = PackSet::open(&dir.join("packs"), options.pack_len_target)?;
        let reserve = match options.size_cap {
            Some(cap) => INDEX_RESERVE.min(cap / 32),
            None => INDEX_RESERVE,
        };
        let ballast = Ballast::new(dir, reserve / 2);
        let index = ballast.or_drop(|| open_index(&dir.join("index"), reserve))?;
        // Recovery writes to the index: it needs its space, as far as there is any.
        let _ = index.make_room(0);
        let locator = Locator::open(&dir.join("locator"), LocatorOptions::default())?;
        let inner = Inner {
            dir: dir.to_owned(),
            pool: Pool::new(options.threads),
            packs,
            index,
            locator,
            leases: Arc::default(),
            nars: NarCache::default(),
            damaged: RwLock::default(),
            seq: Sequence::open(dir)?,
            commits: commit::Queue::default(),
            touches: rows::Touches::default(),
            publishing: RwLock::default(),
            housekeeping: Mutex::default(),
            size: size::Size::default(),
            evicted: Evicted::load(dir),
            ballast,
            options,
            _lock: lock,
        };
        recover::run(&inner)?;
        // What is full now may have space later.
        let _ = inner.index.make_room(0);
        inner.ballast.take_on();
        inner.size.measure(&inner);
        Ok(Store {
            inner: Arc::new(inner),
        })
    }

    /// Deletes what can be rebuilt from packs, so that the next [`Store::open`] rebuilds it.
    ///
    /// Access times are lost with the index: every path counts as last served when published.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if a process has the store open, [`StoreError::Io`].
    pub fn forget_index(dir: &Path) -> Result<(), StoreError> {
        let _lock = lock(dir)?;
        remove_dir(&dir.join("index"))?;
        remove_dir(&dir.join("locator"))
    }

    /// Seals all packs and makes everything durable. The store stays usable.
    ///
    /// # Errors
    /// [`StoreError`]; nothing acknowledged is lost, the next open recovers.
    pub fn close(&self) -> Result<(), StoreError> {
        self.inner.evicted.save(&self.inner.dir);
        self.inner.flush_touches()?;
        self.inner.seal_idle()?;
        self.inner.locator.flush()?;
        self.inner.index.flush()
    }

    /// A lease: chunks seen or written under it survive collection until it is dropped.
    pub fn lease(&self) -> Lease {
        self.inner.lease()
    }

    /// Holds NARs: paths with them, and what they refer to, are not evicted from now on. Which of them
    /// are there must be looked at after this.
    pub fn hold(&self, lease: &Lease, nars: impl IntoIterator<Item = NarHash>) {
        // Never between the plan of an eviction and its end.
        let _shared = self
            .inner
            .publishing
            .read()
            .expect("no panic under this lock");
        nars.into_iter().for_each(|nar| lease.hold(nar));
    }

    /// One step of background work; `true` if there is more to do at once.
    ///
    /// Merges locator runs, writes out access times, measures the size.
    ///
    /// # Errors
    /// [`StoreError`]; what was not done is tried again by the next step.
    pub fn maintain(&self) -> Result<bool, StoreError> {
        self.inner.index.make_room(0)?;
        self.inner.ballast.take_on();
        self.inner.flush_touches()?;
        self.inner.size.measure(&self.inner);
        recover::locate_again(&self.inner)?;
        Ok(self.inner.locator.maintain()?)
    }

    /// For each chunk, whether it has to be sent. Those that need not be are held by the lease.
    ///
    /// # Errors
    /// [`StoreError`] if the locator table cannot be read.
    pub fn missing(&self, lease: &Lease, ids: &[ChunkId]) -> Result<Vec<bool>, StoreError> {
        let found = self.inner.lookup_many(ids)?;
        let is_held = |(id, at): (&ChunkId, Option<Location>)| {
            at.is_some_and(|at| self.inner.hold(lease, id, &at))
        };
        Ok(ids.iter().zip(found).map(|at| !is_held(at)).collect())
    }
}

impl Inner {
    pub(crate) fn lease(&self) -> Lease {
        Lease::new(&self.leases)
    }

    /// The number of the next row.
    pub(crate) fn next_seq(&self) -> Result<u64, StoreError> {
        self.seq.next()
    }

    /// Where a chunk lies; `None` if it is not here.
    pub(crate) fn lookup(&self, id: &ChunkId) -> Result<Option<Location>, StoreError> {
        Ok(self.lookup_many(std::slice::from_ref(id))?.pop().flatten())
    }

    /// Where chunks lie, in their order.
    pub(crate) fn lookup_many(&self, ids: &[ChunkId]) -> Result<Vec<Option<Location>>, StoreError> {
        match self.locator.lookup_many(ids) {
            Err(error @ (LocatorError::Damaged { .. } | LocatorError::Read { .. })) => {
                tracing::warn!(%error, "locator run set aside; reading its packs again");
                recover::locate_again(self)?;
                Ok(self.locator.lookup_many(ids)?)
            }
            outcome => Ok(outcome?),
        }
    }

    /// Where a chunk lies, held by the lease from now on; `None` if it has to be stored (again).
    pub(crate) fn locate(
        &self,
        lease: &Lease,
        id: &ChunkId,
    ) -> Result<Option<Location>, StoreError> {
        Ok(self.lookup(id)?.filter(|at| self.hold(lease, id, at)))
    }

    /// Has the lease hold a chunk that was found at a place; `false` if it must not rely on it.
    pub(crate) fn hold(&self, lease: &Lease, id: &ChunkId, at: &Location) -> bool {
        lease.hold_chunk(id, at.pack, || self.packs.contains(at.pack))
    }

    /// The frame of a chunk at a location, undamaged; `None` if this copy is not to be had.
    ///
    /// A damaged copy is quarantined.
    pub(crate) fn read_frame(
        &self,
        id: &ChunkId,
        at: &Location,
    ) -> Result<Option<(Vec<u8>, u64)>, StoreError> {
        let Some(pack) = self.packs.file(at.pack)? else {
            self.locator.forget(id, at);
            return Ok(None);
        };
        match pack.read_record(&footer_entry(id, at)) {
            Ok(Some((header, frame))) => Ok(Some((frame, header.body_check))),
            Ok(None) => self.quarantine(id, at).map(|()| None),
            Err(error) => Err(error),
        }
    }

    /// Runs `work`, which removes something; on a full disk with the ballast's space.
    ///
    /// # Errors
    /// Those of `work`, which may run twice.
    pub(crate) fn with_ballast<T>(
        &self,
        work: impl FnMut() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.ballast.or_drop(work)
    }

    /// Takes a damaged copy of a chunk out of use, for good.
    pub(crate) fn quarantine(&self, id: &ChunkId, at: &Location) -> Result<(), StoreError> {
        tracing::error!(chunk = %id, pack = %at.pack, offset = at.offset, "damaged chunk quarantined");
        self.locator.forget(id, at);
        self.index.add_bad_copy(id, at)?;
        self.keep_findings();
        Ok(())
    }

    /// Makes durable what was found to be damaged. A start after a crash must not offer it again:
    /// a sound copy that took its place may be gone by then, and a reader be cut short.
    ///
    /// If the disk does not take it, that reader finds the same once more.
    pub(crate) fn keep_findings(&self) {
        if let Err(error) = self.index.flush() {
            tracing::warn!(%error, "damage found is not noted durably");
        }
    }

    /// Marks a NAR as not servable, or clears the mark.
    pub(crate) fn set_damaged(&self, nar: &NarHash, damaged: bool) -> Result<(), StoreError> {
        let mut set = self.damaged.write().expect("no panic under this lock");
        let changed = if damaged {
            set.insert(*nar)
        } else {
            set.remove(nar)
        };
        if changed {
            self.index.set_damaged(nar, damaged)?;
            self.nars.forget(nar);
        }
        Ok(())
    }

    /// Whether a NAR is marked as not servable.
    pub(crate) fn is_damaged(&self, nar: &NarHash) -> bool {
        self.damaged
            .read()
            .expect("no panic under this lock")
            .contains(nar)
    }
}

/// The footer entry a chunk's record must have.
pub(crate) fn footer_entry(id: &ChunkId, at: &Location) -> FooterEntry {
    FooterEntry {
        kind: RecordKind::Chunk,
        key: *id.as_bytes(),
        offset: at.offset,
        raw_len: at.raw_len,
        body_len: at.frame_len,
    }
}

/// Seconds since 1970 by the system's clock; for people and for LRU, never for safety.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn lock(dir: &Path) -> Result<File, StoreError> {
    fs::create_dir_all(dir).map_err(|error| StoreError::io("create folder", dir, error))?;
    let path = dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = file.map_err(|error| StoreError::io("open", &path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(StoreError::io("lock", &path, error)),
    }
}

fn check_format(dir: &Path) -> Result<(), StoreError> {
    let path = dir.join("format");
    match fs::read_to_string(&path) {
        Ok(found) if found.trim() == FORMAT => Ok(()),
        // Empty: a crash cut off the first start.
        Ok(found) if !found.trim().is_empty() => {
            let (path, found) = (dir.to_owned(), found.trim().to_owned());
            Err(StoreError::Format {
                path,
                found,
                known: FORMAT,
            })
        }
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io("read", &path, error))
        }
        Ok(_) | Err(_) => write_durably(&path, FORMAT),
    }
}

/// Replaces a small file so that after a crash it is the old or the new one.
pub(crate) fn write_durably(path: &Path, text: &str) -> Result<(), StoreError> {
    let staged = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&staged)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&staged, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|error| StoreError::io("write", path, error))
}

fn open_index(dir: &Path, reserve: u64) -> Result<Index, StoreError> {
    match Index::open(dir, reserve) {
        Err(StoreError::Index(error)) if is_damage(&error) => {
            tracing::warn!(%error, "index is damaged; rebuilding it from the packs");
            remove_dir(dir)?;
            Index::open(dir, reserve)
        }
        outcome => outcome,
    }
}

/// Whether an error of the index comes from its files rather than from the state of the system.
fn is_damage(error: &sled::Error) -> bool {
    use std::io::ErrorKind;
    match error {
        sled::Error::Corruption { .. } => true,
        error if is_in_use(error) => false,
        sled::Error::Io(error) => {
            !matches!(
                error.kind(),
                ErrorKind::StorageFull
                    | ErrorKind::QuotaExceeded
                    | ErrorKind::PermissionDenied
                    | ErrorKind::ReadOnlyFilesystem
                    | ErrorKind::OutOfMemory
            ) && error
                .raw_os_error()
                .is_none_or(|code| !OUT_OF_FILES.contains(&code))
        }
        sled::Error::CollectionNotFound(_)
        | sled::Error::Unsupported(_)
        | sled::Error::ReportableBug(_) => false,
    }
}

fn remove_dir(dir: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io("remove folder", dir, error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Packs that fit under a size cap, at least.
const PACKS_UNDER_CAP: u64 = 16;
/// Disk held for the index, so that a full disk never fails it; less under a small cap.
const INDEX_RESERVE: u64 = 2 << 20;
const FORMAT: &str = "attic-node store 1";
/// ENFILE and EMFILE.
const OUT_OF_FILES: [i32; 2] = [23, 24];
