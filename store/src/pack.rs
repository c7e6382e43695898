//! Pack files: the truth on disk.
//!
//! A pack is written front to back by one writer and never changed: a 32-byte head, records
//! ([`crate::record`]), and, once it is sealed, a footer record listing them and a 32-byte tail that
//! finds the footer. A pack without a footer (its writer died) is read by walking its records.
//!
//! **Shape**: head = magic `ANPACK1\n`, pack id (16 bytes), salt (8). Tail = offset of the footer
//! record (8 bytes, little endian), salt (8), XXH3 of those 16 bytes, magic `ANPACKE\n`. Footer body:
//! 48 bytes a record = key (32), offset, raw length, body length (4 each), kind (1), 3 zero bytes.
//!
//! Names are random and never reused, so an open file never changes its meaning.

mod scan;
mod writer;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::StoreError;
use crate::frame;
use crate::pack_id::PackId;
use crate::record::{HEADER_LEN, PackSalt, RecordHeader, RecordKind};
use twox_hash::XxHash3_64;

pub(crate) use scan::{Contents, footer_place, read_contents, read_footer_record, recover};
pub(crate) use writer::PackWriter;

/// Where a record lies in a pack, as a footer lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FooterEntry {
    pub(crate) kind: RecordKind,
    pub(crate) key: [u8; 32],
    pub(crate) offset: u32,
    pub(crate) raw_len: u32,
    pub(crate) body_len: u32,
}

impl FooterEntry {
    /// The entry of the record with this header at `offset`.
    pub(crate) fn new(header: &RecordHeader, offset: u32) -> FooterEntry {
        let RecordHeader {
            kind,
            key,
            raw_len,
            body_len,
            body_check: _,
        } = *header;
        FooterEntry {
            kind,
            key,
            offset,
            raw_len,
            body_len,
        }
    }

    /// Bytes of header and body together.
    pub(crate) fn record_len(&self) -> u64 {
        HEADER_LEN as u64 + u64::from(self.body_len)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.key);
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.raw_len.to_le_bytes());
        out.extend_from_slice(&self.body_len.to_le_bytes());
        out.extend_from_slice(&[self.kind as u8, 0, 0, 0]);
    }

    fn decode(bytes: &[u8; FOOTER_ENTRY_LEN]) -> Option<FooterEntry> {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        Some(FooterEntry {
            kind: RecordKind::from_byte(bytes[44])?,
            key: bytes[..32].try_into().expect("32 bytes"),
            offset: u32_at(32),
            raw_len: u32_at(36),
            body_len: u32_at(40),
        })
    }
}

/// An open pack. Reads take `&self` and may run at once with the one writer's appends.
#[derive(Debug)]
pub(crate) struct PackFile {
    pub(crate) id: PackId,
    path: PathBuf,
    file: File,
    salt: PackSalt,
    /// Bytes written by this process.
    written: AtomicU64,
    /// Bytes known to be on the disk.
    synced: AtomicU64,
    /// A sync failed: what was written since the last one may be lost, whatever later syncs say.
    sync_failed: AtomicBool,
}

impl PackFile {
    /// Opens an existing pack for reading.
    pub(crate) fn open(root: &Path, id: PackId) -> Result<PackFile, StoreError> {
        let path = pack_path(root, id);
        let file = File::open(&path).map_err(|error| StoreError::io("open pack", &path, error))?;
        let salt =
            scan::read_salt(&file).map_err(|error| StoreError::io("read pack", &path, error))?;
        Ok(PackFile::new(id, path, file, salt))
    }

    fn new(id: PackId, path: PathBuf, file: File, salt: PackSalt) -> PackFile {
        PackFile {
            id,
            path,
            file,
            salt,
            written: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            sync_failed: AtomicBool::new(false),
        }
    }

    /// The salt of its record headers.
    pub(crate) fn salt(&self) -> &PackSalt {
        &self.salt
    }

    /// Fills `out` from `offset`.
    pub(crate) fn read_exact_at(&self, out: &mut [u8], offset: u64) -> Result<(), StoreError> {
        self.file
            .read_exact_at(out, offset)
            .map_err(|error| self.read_error(error))
    }

    /// The record at `offset` with its body; `None` if it is damaged, not of `kind` and `key`, or on
    /// a part of the disk that cannot be read.
    pub(crate) fn read_record(
        &self,
        at: &FooterEntry,
    ) -> Result<Option<(RecordHeader, Vec<u8>)>, StoreError> {
        let mut bytes = vec![0; at.record_len() as usize];
        match self.read_exact_at(&mut bytes, u64::from(at.offset)) {
            Err(StoreError::Io { source, .. }) if is_decay(&source) => return Ok(None),
            outcome => outcome?,
        }
        let Some(header) = intact(&bytes, at, &self.salt) else {
            return Ok(None);
        };
        bytes.drain(..HEADER_LEN);
        Ok(Some((header, bytes)))
    }

    /// Makes everything written so far durable.
    ///
    /// After a failure every later call fails as well: the system forgets what it could not write,
    /// so a second sync that succeeds proves nothing. Opening the store anew takes stock.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        let failed = |error| StoreError::io("sync pack", &self.path, error);
        if self.sync_failed.load(Ordering::Acquire) {
            return Err(failed(io::Error::other(
                "an earlier sync failed; restart the node",
            )));
        }
        let written = self.written.load(Ordering::Acquire);
        if self.synced.load(Ordering::Acquire) < written {
            self.file.sync_data().map_err(|error| {
                self.sync_failed.store(true, Ordering::Release);
                failed(error)
            })?;
            self.synced.fetch_max(written, Ordering::AcqRel);
        }
        Ok(())
    }

    /// The open file.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The error of a read that failed.
    pub(crate) fn read_error(&self, error: io::Error) -> StoreError {
        StoreError::io("read pack", &self.path, error)
    }

    /// Bytes of the file, as long as it has a name; `None` once somebody deleted it.
    pub(crate) fn len_if_named(&self) -> Result<Option<u64>, StoreError> {
        let metadata = self.file.metadata();
        let metadata = metadata.map_err(|error| StoreError::io("stat pack", &self.path, error))?;
        Ok((metadata.nlink() > 0).then_some(metadata.len()))
    }

    /// Bytes of the file.
    pub(crate) fn len(&self) -> Result<u64, StoreError> {
        let metadata = self.file.metadata();
        Ok(metadata
            .map_err(|error| StoreError::io("stat pack", &self.path, error))?
            .len())
    }
}

/// The header of the record in `bytes`, if the record is undamaged and the one `at` names.
pub(crate) fn intact(bytes: &[u8], at: &FooterEntry, salt: &PackSalt) -> Option<RecordHeader> {
    let (header, body) = bytes.split_first_chunk::<HEADER_LEN>()?;
    let header = RecordHeader::decode(header, salt).ok()?;
    let named = header.kind == at.kind && header.key == at.key && header.body_len == at.body_len;
    (named && body.len() == header.body_len as usize && frame::check(body) == header.body_check)
        .then_some(header)
}

/// The head of a pack.
pub(crate) fn head(id: PackId, salt: PackSalt) -> [u8; HEAD_LEN as usize] {
    let mut head = [0; HEAD_LEN as usize];
    head[..8].copy_from_slice(HEAD_MAGIC);
    head[8..24].copy_from_slice(id.as_bytes());
    head[24..].copy_from_slice(salt.as_bytes());
    head
}

/// What ends a pack whose records end at `at`: the footer record and the tail.
pub(crate) fn footer(entries: &[FooterEntry], at: u64, salt: &PackSalt) -> Vec<u8> {
    let mut body = Vec::with_capacity(entries.len() * FOOTER_ENTRY_LEN);
    entries.iter().for_each(|entry| entry.encode(&mut body));
    let header = RecordHeader::new(RecordKind::Footer, [0; 32], body.len() as u32, &body);
    let mut tail = [0; TAIL_LEN];
    tail[..8].copy_from_slice(&at.to_le_bytes());
    tail[8..16].copy_from_slice(salt.as_bytes());
    let check = XxHash3_64::oneshot(&tail[..16]);
    tail[16..24].copy_from_slice(&check.to_le_bytes());
    tail[24..].copy_from_slice(TAIL_MAGIC);
    [&header.encode(salt)[..], &body, &tail].concat()
}

/// Whether a read failed because of what lies there, not because of the system's state.
pub(crate) fn is_decay(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
        || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// The file of a pack below the packs' folder: `<first 2 hex digits>/<id>.pack`.
pub(crate) fn pack_path(root: &Path, id: PackId) -> PathBuf {
    let name = id.to_string();
    root.join(&name[..2]).join(format!("{name}.pack"))
}

pub(crate) const HEAD_LEN: u64 = 32;
const HEAD_MAGIC: &[u8; 8] = b"ANPACK1\n";
const TAIL_LEN: usize = 32;
const TAIL_MAGIC: &[u8; 8] = b"ANPACKE\n";
const FOOTER_ENTRY_LEN: usize = 48;
