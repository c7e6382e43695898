//! Disk space that is given up when there is no other.
//!
//! Opening the index writes a little, and so does removing something from a store on a full disk. A
//! file that holds nothing but space is deleted for that, and made again when there is room.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, fallocate};

use crate::error::StoreError;

/// The file, of a store that has at most so much to spare.
pub(super) struct Ballast {
    path: PathBuf,
    len: u64,
    /// Whether it is shorter than that, or may be.
    short: AtomicBool,
}

impl Ballast {
    /// In the store's folder `dir`. Does not touch disk.
    pub(super) fn new(dir: &Path, len: u64) -> Ballast {
        Ballast {
            path: dir.join("ballast"),
            len,
            short: AtomicBool::new(true),
        }
    }

    /// As [`Ballast::take_on`], if it was dropped or could not be made whole. Cheap otherwise.
    pub(super) fn make_whole(&self) {
        if self.short.load(Ordering::Relaxed) {
            self.take_on();
        }
    }

    /// Makes it as long as the disk allows. Whatever fails, the store works without.
    pub(super) fn take_on(&self) {
        self.short.store(self.bytes() < self.len, Ordering::Relaxed);
        if !self.short.load(Ordering::Relaxed) {
            return;
        }
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&self.path);
        let Ok(file) = file else { return };
        let mut len = self.len;
        while len >= LEN_MIN && fallocate(&file, FallocateFlags::empty(), 0, len).is_err() {
            len /= 2;
        }
        self.short.store(len < self.len, Ordering::Relaxed);
    }

    /// Bytes it takes on disk.
    pub(super) fn bytes(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |file| file.blocks() * BLOCK_LEN)
    }

    /// Runs `work`; if there is no space for it, runs it again with the ballast gone, and takes on
    /// what is left of it.
    ///
    /// # Errors
    /// Those of `work`.
    pub(super) fn or_drop<T>(
        &self,
        mut work: impl FnMut() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match work() {
            Err(StoreError::NoSpace { what, cap, source }) => match fs::remove_file(&self.path) {
                Ok(()) => {
                    tracing::warn!(what, "no space left; going on with the ballast's");
                    let outcome = work();
                    self.take_on();
                    outcome
                }
                Err(_) => Err(StoreError::NoSpace { what, cap, source }),
            },
            outcome => outcome,
        }
    }
}

/// The unit of `st_blocks`.
const BLOCK_LEN: u64 = 512;
/// Less is not worth a file.
const LEN_MIN: u64 = 16 << 10;
