//! How much disk the store takes, and keeping it below its cap.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::statvfs;

use crate::error::StoreError;
use crate::store::{Inner, Store};

/// Bytes on disk, kept current without asking the disk at every append.
#[derive(Default)]
pub(crate) struct Size {
    packs: AtomicU64,
    /// Index and locator, when last measured.
    derived: AtomicU64,
    /// The size at which eviction is worth another try, after one that freed too little.
    retry_at: AtomicU64,
    /// Paths evicted since the store was opened.
    pub(crate) evicted_paths: AtomicU64,
    /// Bytes that collections freed since then.
    pub(crate) freed_bytes: AtomicU64,
}

/// What the store holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of all packs.
    pub pack_bytes: u64,
    /// Packs.
    pub packs: u64,
    /// Bytes of index and locator table, as of the last maintenance.
    pub derived_bytes: u64,
    /// Chunks, counting copies.
    pub chunks: u64,
    /// NARs that are not servable until they are pushed again.
    pub damaged_nars: u64,
    /// The cap, if there is one.
    pub size_cap: Option<u64>,
}

impl Store {
    /// Paths evicted since the store was opened, whoever needed the room: a collection or a write.
    /// Grows after they are gone.
    pub fn evicted_paths(&self) -> u64 {
        self.inner.size.evicted_paths.load(Ordering::Acquire)
    }

    /// Bytes of packs freed since then.
    pub fn freed_bytes(&self) -> u64 {
        self.inner.size.freed_bytes.load(Ordering::Relaxed)
    }

    /// Refuses `len` bytes that cannot fit under the cap, even if all is evicted that may be.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`]; [`StoreError`] if the index cannot be read.
    pub fn check_fits(&self, len: u64) -> Result<(), StoreError> {
        let room = self.room_for(len)?;
        if len <= room {
            return Ok(());
        }
        let what = format!("{len} bytes can never fit under the size cap, which leaves {room}");
        Err(StoreError::NoSpace {
            what,
            cap: self.inner.options.size_cap,
            source: None,
        })
    }

    /// Bytes that fit under the cap when all is evicted that may be: less than `len` only if `len`
    /// bytes cannot fit, as only what is large is worth a look at all pins.
    ///
    /// # Errors
    /// [`StoreError`] if the index cannot be read.
    pub fn room_for(&self, len: u64) -> Result<u64, StoreError> {
        let Some(pressure) = self.inner.pressure() else {
            return Ok(u64::MAX);
        };
        let derived = self.inner.size.derived.load(Ordering::Relaxed);
        let room = pressure.start.saturating_sub(derived);
        match len > room / 8 {
            true => Ok(room.saturating_sub(self.inner.pinned_bytes()?)),
            false => Ok(room),
        }
    }

    /// Whether `len` more bytes can be taken in, whatever is evicted for them.
    ///
    /// # Errors
    /// [`StoreError`] if the index or the state of the disk cannot be read.
    pub fn admits(&self, len: u64) -> Result<bool, StoreError> {
        match self.inner.check_free_space(len) {
            Ok(()) => Ok(self.room_for(len)? >= len),
            Err(StoreError::NoSpace { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What the store holds. Cheap.
    pub fn usage(&self) -> Usage {
        let damaged = self
            .inner
            .damaged
            .read()
            .expect("no panic under this lock")
            .len();
        Usage {
            pack_bytes: self.inner.packs.size_bytes(),
            packs: self.inner.packs.ids().len() as u64,
            derived_bytes: self.inner.size.derived.load(Ordering::Relaxed),
            chunks: self.inner.locator.len_estimate(),
            damaged_nars: damaged as u64,
            size_cap: self.inner.options.size_cap,
        }
    }
}

impl Size {
    /// Counts bytes just appended.
    pub(super) fn add(&self, len: u64) {
        self.packs.fetch_add(len, Ordering::Relaxed);
    }

    /// Counts afresh.
    pub(crate) fn measure(&self, store: &Inner) {
        self.packs
            .store(store.packs.size_bytes(), Ordering::Relaxed);
        self.measure_derived(store);
    }

    /// Counts afresh what is not packs.
    fn measure_derived(&self, store: &Inner) {
        let derived = ["index", "locator"].map(|name| dir_bytes(&store.dir.join(name)));
        let derived = derived.iter().sum::<u64>() + store.ballast.bytes();
        self.derived.store(derived, Ordering::Relaxed);
    }

    /// Bytes on disk.
    pub(crate) fn total(&self) -> u64 {
        self.packs.load(Ordering::Relaxed) + self.derived.load(Ordering::Relaxed)
    }
}

impl Inner {
    /// Whether `len` more bytes fit without anything to be done for it.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] if the disk itself is nearly full.
    pub(crate) fn has_room(&self, len: u64) -> Result<bool, StoreError> {
        self.check_free_space(len)?;
        let Some(pressure) = self.pressure() else {
            return Ok(true);
        };
        if self.size.total() + len > pressure.start {
            // Here it matters how much the index has grown.
            self.size.measure_derived(self);
        }
        let retry_at = self.size.retry_at.load(Ordering::Relaxed);
        Ok(self.size.total() + len <= pressure.start.max(retry_at.min(pressure.cap)))
    }

    /// Makes sure that `len` more bytes fit under the cap, evicting if they do not.
    ///
    /// What is on disk never passes the cap for a chunk, also while garbage cannot be freed because
    /// somebody uses its pack: then the chunk is refused. Beyond it come, for as long as until the
    /// next look, what must not be refused (rows, manifests, listings, footers) and the growth of the
    /// index between two measurements: together less than a hundredth, which is why
    /// [`Inner::pressure`] starts below the cap.
    pub(crate) fn make_room(&self, len: u64) -> Result<(), StoreError> {
        let Some(pressure) = self.pressure() else {
            return Ok(());
        };
        let cap = pressure.cap;
        self.relieve(pressure, len)?;
        let size = self.size.total() + len;
        let retry_at = if size <= pressure.start {
            0
        } else {
            size + (cap - pressure.start) / 8
        };
        self.size.retry_at.store(retry_at, Ordering::Relaxed);
        if size <= cap {
            return Ok(());
        }
        let what = format!("size cap of {cap} bytes reached, and nothing may be evicted");
        Err(StoreError::NoSpace {
            what,
            cap: self.options.size_cap,
            source: None,
        })
    }
}

impl Inner {
    /// Refuses chunks before the disk is quite full: rows, and what removes them, need some room as
    /// well.
    pub(crate) fn check_free_space(&self, len: u64) -> Result<(), StoreError> {
        let root = self.packs.root();
        let disk = statvfs(root).map_err(|error| StoreError::io("stat", root, error.into()))?;
        let reserve = RESERVE_MAX.min(disk.f_blocks * disk.f_frsize / 8);
        if len.saturating_add(reserve) <= disk.f_bavail * disk.f_frsize {
            self.ballast.make_whole();
            return Ok(());
        }
        let what = format!(
            "less than {reserve} bytes free on the disk of {}",
            root.display()
        );
        Err(StoreError::NoSpace {
            what,
            cap: None,
            source: None,
        })
    }
}

/// Disk left free for index and rows: 64 MiB, on a small disk an eighth.
const RESERVE_MAX: u64 = 64 << 20;

/// Bytes of the files in a folder; files that vanish meanwhile count as nothing.
fn dir_bytes(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => dir_bytes(&entry.path()),
            // Space may be held behind the end of a file.
            Ok(metadata) => metadata.len().max(metadata.blocks() * 512),
            Err(_) => 0,
        })
        .sum()
}
