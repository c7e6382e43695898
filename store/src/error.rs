//! Errors of the backends, by what the caller can do about them.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::frame::FrameError;
use crate::hash::{ChunkId, NarHash};
use crate::locator::LocatorError;
use crate::manifest::ManifestError;
use crate::nar::NarError;
use crate::store_path::StorePath;

/// The store could not do what was asked.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The disk, a quota or the size cap leaves no room. Nothing was changed; reads go on.
    #[error("no space left: {what}")]
    NoSpace {
        /// What did not fit.
        what: String,
        /// The size cap in bytes, if that is what leaves no room.
        cap: Option<u64>,
        /// The system's error, if there is one.
        source: Option<io::Error>,
    },
    /// A path was to be published that refers to one that was evicted lately. Nothing was changed.
    #[error(
        "{path} refers to {reference}, which was evicted to stay below the size cap of {cap} bytes"
    )]
    ReferenceEvicted {
        /// What was to be published.
        path: StorePath,
        /// What it refers to.
        reference: StorePath,
        /// The size cap in bytes.
        cap: u64,
    },
    /// Another process has the store open.
    #[error("store {0} is in use by another process")]
    Locked(PathBuf),
    /// A file could not be read or written.
    #[error("{action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The chunk locator table failed; it can be rebuilt from the packs.
    #[error("chunk locator table")]
    Locator(#[source] crate::locator::LocatorError),
    /// The index failed; it can be rebuilt from the packs.
    #[error("index")]
    Index(#[source] sled::Error),
    /// The index holds a row that does not decode; it can be rebuilt from the packs.
    #[error("index row {0} does not decode")]
    IndexRow(&'static str),
    /// The store directory is of a version this program does not know.
    #[error("store {path} has format {found}, this program reads {known}")]
    Format {
        /// The store directory.
        path: PathBuf,
        /// The version found.
        found: String,
        /// The version known.
        known: &'static str,
    },
    /// A stored chunk is gone or damaged; it was quarantined and a re-push heals it.
    #[error("chunk {0} is missing or damaged")]
    Chunk(ChunkId),
    /// A path was to be published whose NAR is not here, or has another size.
    #[error("NAR {0} is not in the store with that size")]
    NarAbsent(NarHash),
    /// The manifest of a NAR is damaged; a re-push heals it.
    #[error("manifest of {0} is damaged")]
    Manifest(NarHash),
}

impl StoreError {
    /// Wraps an I/O error, telling a full disk from the rest.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> StoreError {
        if is_full(&source) {
            let what = format!("{action} {}", path.display());
            let source = Some(source);
            return StoreError::NoSpace {
                what,
                cap: None,
                source,
            };
        }
        StoreError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

impl From<LocatorError> for StoreError {
    fn from(error: LocatorError) -> StoreError {
        match error {
            LocatorError::Write { path, source } if is_full(&source) => {
                StoreError::io("write locator table", &path, source)
            }
            error => StoreError::Locator(error),
        }
    }
}

impl From<sled::Error> for StoreError {
    fn from(error: sled::Error) -> StoreError {
        match error {
            sled::Error::Io(source) if is_full(&source) => StoreError::NoSpace {
                what: "write index".to_owned(),
                cap: None,
                source: Some(source),
            },
            error => StoreError::Index(error),
        }
    }
}

/// Whether a write failed for want of space.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// A NAR, a frame or a chunk list was not taken.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The bytes are not a NAR.
    #[error("not a valid NAR")]
    Nar(#[from] NarError),
    /// The NAR is larger than the store takes.
    #[error("NAR is larger than {0} bytes")]
    TooLarge(u64),
    /// The source failed before the NAR was complete.
    #[error("read NAR")]
    Source(#[source] io::Error),
    /// A frame is damaged or lies about its length.
    #[error("frame of chunk {id}")]
    Frame {
        /// The chunk it was sent for.
        id: ChunkId,
        /// What is wrong with it.
        source: FrameError,
    },
    /// A frame holds another chunk than it was sent for.
    #[error("frame sent for chunk {0} holds another chunk")]
    WrongChunk(ChunkId),
    /// The NAR has too many chunks.
    #[error("manifest")]
    Manifest(#[from] ManifestError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
