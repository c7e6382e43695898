//! Disk space held for sled's log before it is needed.
//!
//! A sled whose log meets a full disk fails for good: every later write is refused until the
//! database is opened anew. So space behind the end of the log is allocated in advance, and whoever
//! is about to write asks first and is refused instead. Whoever else fills the disk then costs this
//! store its writes, never its index, and writes go on as soon as there is space again.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

use crate::error::StoreError;

/// The allocated space behind the end of a log.
pub(super) struct Reserve {
    path: PathBuf,
    file: File,
    /// Bytes to keep allocated.
    len: u64,
    /// Held while more is allocated.
    growing: Mutex<()>,
}

impl Reserve {
    /// For the log at `path`, which must exist, of about `len` bytes.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub(super) fn open(path: PathBuf, len: u64) -> Result<Reserve, StoreError> {
        let file = File::options().write(true).open(&path);
        let file = file.map_err(|error| StoreError::io("open", &path, error))?;
        Ok(Reserve {
            path,
            file,
            len,
            growing: Mutex::default(),
        })
    }

    /// Makes sure that `len` bytes can be written, and half of the reserve is left after that.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] if they may not fit.
    pub(super) fn ensure(&self, len: u64) -> Result<(), StoreError> {
        self.ensure_beyond(len, self.len / 2)
    }

    /// As [`Reserve::ensure`], for what removes something: half of what is left for others will do.
    ///
    /// # Errors
    /// As [`Reserve::ensure`].
    pub(super) fn ensure_for_removal(&self, len: u64) -> Result<(), StoreError> {
        self.ensure_beyond(len, self.len / 4)
    }

    fn ensure_beyond(&self, len: u64, beyond: u64) -> Result<(), StoreError> {
        if self.ahead()?.1 >= len + beyond {
            return Ok(());
        }
        let _alone = self.growing.lock().expect("no panic under this lock");
        let (end, _) = self.ahead()?;
        match fallocate(
            &self.file,
            FallocateFlags::KEEP_SIZE,
            0,
            end + self.len + len,
        ) {
            Ok(()) => Ok(()),
            // The file system cannot reserve: what is free has to do.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => self.ensure_free(len + beyond),
            Err(_) if self.ahead()?.1 >= len + beyond => Ok(()),
            // Less than wanted is better than nothing.
            Err(_) if self.take_on(end, len + beyond) => Ok(()),
            Err(error) => Err(StoreError::io(
                "reserve space for",
                &self.path,
                error.into(),
            )),
        }
    }

    /// Allocates what there is behind the end, less than wanted; whether that is `enough`.
    fn take_on(&self, end: u64, enough: u64) -> bool {
        let mut len = self.len / 2;
        while len >= BEHIND_MIN {
            if fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, end + len).is_ok() {
                return len >= enough;
            }
            len /= 2;
        }
        false
    }

    /// The end of the log, and the bytes allocated behind it.
    fn ahead(&self) -> Result<(u64, u64), StoreError> {
        let metadata = self.file.metadata();
        let metadata = metadata.map_err(|error| StoreError::io("stat", &self.path, error))?;
        // Holes before the end count against it, so that they are filled as well.
        let allocated = metadata.blocks() * BLOCK_LEN;
        Ok((metadata.len(), allocated.saturating_sub(metadata.len())))
    }

    fn ensure_free(&self, len: u64) -> Result<(), StoreError> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let disk = statvfs(dir).map_err(|error| StoreError::io("stat", dir, error.into()))?;
        if disk.f_bavail * disk.f_frsize >= len {
            return Ok(());
        }
        let what = format!(
            "less than {len} bytes free on the disk of {}",
            dir.display()
        );
        Err(StoreError::NoSpace {
            what,
            cap: None,
            source: None,
        })
    }
}

/// The least that is worth allocating.
const BEHIND_MIN: u64 = 16 << 10;
/// The unit of `st_blocks`.
const BLOCK_LEN: u64 = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_allocated_behind_the_end_and_the_end_stays() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("log");
        std::fs::write(&path, [1; 10_000]).expect("writes");
        let reserve = Reserve::open(path.clone(), 1 << 20).expect("opens");
        for len in [0, 100, 3 << 20] {
            reserve.ensure(len).expect("there is space");
            reserve.ensure_for_removal(len).expect("there is space");
            assert_eq!(std::fs::metadata(&path).expect("stat").len(), 10_000);
        }
        let (_, ahead) = reserve.ahead().expect("stat");
        // A file system that cannot reserve has nothing ahead.
        assert!(!(4096..3 << 20).contains(&ahead), "{ahead}");
    }
}
