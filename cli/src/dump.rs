//! The NAR of a file-system tree, as `nix-store --dump` writes it.
//!
//! Names are sorted as bytes, a file is executable when its owner may execute it, links are not
//! followed, and nothing else of the metadata counts. Memory is one read buffer and the names of
//! the directories on the way to the current file.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs::{self, File, FileType, Metadata};
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::vec;

use attic_store::nar::{NarWriteError, NarWriter};
use thiserror::Error;

/// Why a tree has no NAR.
#[derive(Debug, Error)]
pub enum DumpError {
    /// A file, link or directory cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A device, socket or pipe: a NAR cannot hold one.
    #[error("{} is a {kind}, which no NAR can hold", path.display())]
    Unsupported {
        /// Which.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// A file shrank or grew while it was read.
    #[error("{} changed while it was read", path.display())]
    Changed {
        /// Which.
        path: PathBuf,
    },
    /// A name or link target that a NAR cannot hold.
    #[error("archive {}", path.display())]
    Unwritable {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: NarWriteError,
    },
    /// `sink` broke off.
    #[error("stopped")]
    Stopped,
}

/// Passes the NAR of `root` to `sink`, piece by piece, and gives its length in bytes.
///
/// Blocks on the file system. Ends soon after `sink` first breaks; it is not called again.
///
/// **Errors**: any [`DumpError`]; what `sink` got until then is not a whole NAR.
pub fn dump(root: &Path, mut sink: impl FnMut(&[u8]) -> ControlFlow<()>) -> Result<u64, DumpError> {
    let stopped = Cell::new(false);
    let writer = NarWriter::new(|bytes: &[u8]| {
        if !stopped.get() {
            stopped.set(sink(bytes).is_break());
        }
    });
    let buffer = vec![0; READ_LEN];
    Walk {
        writer,
        path: root.to_owned(),
        open: Vec::new(),
        buffer,
        stopped: &stopped,
    }
    .run()
}

struct Walk<'a, S> {
    writer: NarWriter<S>,
    /// The node being written.
    path: PathBuf,
    /// For each directory above it, the names not yet written.
    open: Vec<vec::IntoIter<OsString>>,
    buffer: Vec<u8>,
    stopped: &'a Cell<bool>,
}

impl<S: FnMut(&[u8])> Walk<'_, S> {
    fn run(mut self) -> Result<u64, DumpError> {
        self.node()?;
        while let Some(names) = self.open.last_mut() {
            if let Some(name) = names.next() {
                self.path.push(&name);
                let begun = self.writer.entry(name.as_bytes());
                begun.map_err(|source| self.unwritable(source))?;
                self.node()?;
            } else {
                self.open.pop();
                let ended = self.writer.directory_end();
                ended.map_err(|source| self.unwritable(source))?;
                self.path.pop();
            }
        }
        let path = self.path;
        self.writer
            .finish()
            .map_err(|source| DumpError::Unwritable { path, source })
    }

    /// Writes the node at the path: whole and leaving it again, or the beginning of a directory.
    fn node(&mut self) -> Result<(), DumpError> {
        if self.stopped.get() {
            return Err(DumpError::Stopped);
        }
        let metadata = fs::symlink_metadata(&self.path).map_err(|source| self.unread(source))?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            return self.directory();
        }
        if kind.is_file() {
            self.file()?;
        } else if kind.is_symlink() {
            self.link()?;
        } else {
            let path = self.path.clone();
            return Err(DumpError::Unsupported {
                path,
                kind: describe(kind),
            });
        }
        self.path.pop();
        Ok(())
    }

    fn directory(&mut self) -> Result<(), DumpError> {
        let names = sorted_names(&self.path).map_err(|source| self.unread(source))?;
        let begun = self.writer.directory_begin();
        begun.map_err(|source| self.unwritable(source))?;
        self.open.push(names.into_iter());
        Ok(())
    }

    fn link(&mut self) -> Result<(), DumpError> {
        let target = fs::read_link(&self.path).map_err(|source| self.unread(source))?;
        let written = self.writer.symlink(target.as_os_str().as_bytes());
        written.map_err(|source| self.unwritable(source))
    }

    fn file(&mut self) -> Result<(), DumpError> {
        let mut file = File::open(&self.path).map_err(|source| self.unread(source))?;
        let metadata = file.metadata().map_err(|source| self.unread(source))?;
        let begun = self
            .writer
            .regular(is_executable(&metadata), metadata.len());
        begun.map_err(|source| self.unwritable(source))?;
        let mut left = metadata.len();
        loop {
            let len = file
                .read(&mut self.buffer)
                .map_err(|source| self.unread(source))?;
            let unexpected = if len == 0 {
                left > 0
            } else {
                len as u64 > left
            };
            if unexpected {
                return Err(DumpError::Changed {
                    path: self.path.clone(),
                });
            }
            if len == 0 {
                return Ok(());
            }
            let written = self.writer.contents(&self.buffer[..len]);
            written.map_err(|source| self.unwritable(source))?;
            if self.stopped.get() {
                return Err(DumpError::Stopped);
            }
            left -= len as u64;
        }
    }

    fn unread(&self, source: io::Error) -> DumpError {
        DumpError::Read {
            path: self.path.clone(),
            source,
        }
    }

    fn unwritable(&self, source: NarWriteError) -> DumpError {
        DumpError::Unwritable {
            path: self.path.clone(),
            source,
        }
    }
}

fn sorted_names(dir: &Path) -> io::Result<Vec<OsString>> {
    let names = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name()));
    let mut names = names.collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    Ok(names)
}

fn is_executable(metadata: &Metadata) -> bool {
    metadata.permissions().mode() & OWNER_EXECUTE != 0
}

fn describe(kind: FileType) -> &'static str {
    match () {
        () if kind.is_socket() => "socket",
        () if kind.is_fifo() => "pipe",
        () if kind.is_char_device() => "character device",
        () if kind.is_block_device() => "block device",
        () => "special file",
    }
}

const OWNER_EXECUTE: u32 = 0o100;

/// Bytes per read: large enough to make system calls cheap, small enough to stay in the cache until
/// the chunker has seen them.
const READ_LEN: usize = 256 << 10;
