//! Reading NARs back.
//!
//! A [`NarReader`] knows where every chunk of its NAR lies before the first byte is asked for. Its
//! [`BlockReader`]s yield blocks of about [`BLOCK_LEN`] bytes: chunks that lie side by side in a
//! pack are one read. Every frame is checked against the manifest before it is handed out, so
//! decayed bytes are never served: the block fails, the copy is quarantined, the NAR is hidden.
//!
//! What can be known before the first byte is looked at then: every chunk is located, and every pack
//! that holds one is there and long enough. Bytes that decayed in place are met when their block is
//! read. So a NAR that decays is cut short for those who read it at that moment, for one reader if
//! nobody does, and is not here for everybody after.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rustix::buffer::spare_capacity;

use crate::error::StoreError;
use crate::frame::{FrameDecoder, check};
use crate::hash::{ChunkId, NarHash};
use crate::index::NarRow;
use crate::lease::Lease;
use crate::locator::Location;
use crate::manifest::{Manifest, ManifestEntry};
use crate::pack::{FooterEntry, PackFile, is_decay};
use crate::pack_id::PackId;
use crate::record::{HEADER_LEN, ImportedManifest, PackSalt, RecordHeader, RecordKind};
use crate::store::{Inner, Store};

/// Bytes a block aims at: 16 chunks or more of a usual NAR.
pub const BLOCK_LEN: usize = 1 << 20;

/// A NAR that can be read to the end, as far as can be known beforehand.
///
/// Holds a lease: what it reads is not collected under it.
#[derive(Clone)]
pub struct NarReader {
    store: Arc<Inner>,
    row: NarRow,
    nar: Arc<Located>,
    /// Only held.
    _lease: Lease,
}

/// A manifest and where its chunks lie.
pub(crate) struct Located {
    manifest: Manifest,
    at: Vec<Location>,
    /// How long each pack must be at least.
    packs: BTreeMap<PackId, u64>,
}

impl Located {
    fn new(manifest: Manifest, at: Vec<Location>) -> Located {
        let mut packs = BTreeMap::new();
        for at in &at {
            let end: &mut u64 = packs.entry(at.pack).or_default();
            *end = record_end(at).max(*end);
        }
        Located {
            manifest,
            at,
            packs,
        }
    }
}

/// Where the record of a chunk ends in its pack.
fn record_end(at: &Location) -> u64 {
    u64::from(at.offset) + HEADER_LEN as u64 + u64::from(at.frame_len)
}

/// What a [`BlockReader`] yields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Concatenated frames: the `.nar.zst`.
    Frames,
    /// The plain NAR.
    Plain,
}

impl Store {
    /// A reader of a NAR; `None` if it, or any of its chunks, is not here. All packs it needs are
    /// there then, and as long as they must be.
    ///
    /// # Errors
    /// [`StoreError`] if index or packs cannot be read.
    pub fn open_nar(&self, hash: &NarHash) -> Result<Option<NarReader>, StoreError> {
        for _ in 0..COPIES_MAX {
            let Some((row, nar)) = self.inner.find_nar(hash)? else {
                return Ok(None);
            };
            let lease = self.lease();
            for pack in nar.packs.keys() {
                // Not to be had means condemned: then its live chunks are being copied elsewhere,
                // and the reader looks them up again when the pack is gone.
                lease.pin(*pack);
            }
            if !self.inner.forget_lost(&nar)? {
                return Ok(Some(NarReader {
                    store: Arc::clone(&self.inner),
                    row,
                    nar,
                    _lease: lease,
                }));
            }
        }
        Ok(None)
    }
}

impl Store {
    /// The frame of one chunk, checked as far as its record goes; `None` if no undamaged copy of it
    /// is here. Reads the disk, so it may block.
    ///
    /// A chunk may be collected unless a lease holds it.
    ///
    /// # Errors
    /// [`StoreError`] if locators or packs cannot be read.
    pub fn frame(&self, id: &ChunkId) -> Result<Option<Bytes>, StoreError> {
        for _ in 0..COPIES_MAX {
            let Some(at) = self.inner.lookup(id)? else {
                return Ok(None);
            };
            if let Some((frame, _)) = self.inner.read_frame(id, &at)? {
                return Ok(Some(frame.into()));
            }
        }
        Ok(None)
    }

    /// The manifest of a NAR, whether or not all its chunks are here.
    ///
    /// # Errors
    /// [`StoreError`] if index or packs cannot be read.
    pub fn manifest(&self, hash: &NarHash) -> Result<Option<Manifest>, StoreError> {
        self.inner.manifest(hash)
    }
}

impl NarReader {
    /// What it is made of.
    pub fn manifest(&self) -> &Manifest {
        &self.nar.manifest
    }

    /// Sizes and hashes of the NAR.
    pub fn row(&self) -> &NarRow {
        &self.row
    }

    /// The bytes `range` of the `.nar.zst`; clipped to its size.
    pub fn frames(&self, range: Range<u64>) -> BlockReader {
        BlockReader::new(self.clone(), Form::Frames, range)
    }

    /// The bytes `range` of the plain NAR; clipped to its size.
    pub fn plain(&self, range: Range<u64>) -> BlockReader {
        BlockReader::new(self.clone(), Form::Plain, range)
    }
}

/// Yields a range of a NAR block by block.
pub struct BlockReader {
    nar: NarReader,
    form: Form,
    /// The next chunk.
    chunk: usize,
    /// Where that chunk starts in the whole.
    position: u64,
    range: Range<u64>,
    decoder: Option<FrameDecoder>,
}

impl BlockReader {
    fn new(nar: NarReader, form: Form, range: Range<u64>) -> BlockReader {
        let size = match form {
            Form::Frames => nar.row.file_size,
            Form::Plain => nar.row.nar_size,
        };
        let range = range.start.min(size)..range.end.min(size);
        let mut reader = BlockReader {
            nar,
            form,
            chunk: 0,
            position: 0,
            range,
            decoder: None,
        };
        reader.seek();
        reader
    }

    /// The next block; `None` at the end of the range. Reads the disk, so it may block.
    ///
    /// # Errors
    /// [`StoreError::Chunk`] if a chunk has no undamaged copy; the NAR is then hidden until it is
    /// pushed again. Other [`StoreError`]s if the disk fails.
    pub fn next_block(&mut self) -> Result<Option<Bytes>, StoreError> {
        self.next_block_within(BLOCK_LEN)
    }

    /// As [`BlockReader::next_block`], with blocks of `len_max` bytes at most, or of one chunk.
    ///
    /// # Errors
    /// As [`BlockReader::next_block`].
    pub fn next_block_within(&mut self, len_max: usize) -> Result<Option<Bytes>, StoreError> {
        if self.range.is_empty() || self.position >= self.range.end {
            return Ok(None);
        }
        let start = self.position;
        let mut block = match self.form {
            Form::Frames => self.read_frames(len_max)?,
            Form::Plain => self.read_plain(len_max)?,
        };
        let skip = self.range.start.saturating_sub(start) as usize;
        let end = (self.range.end - start).min(block.len() as u64) as usize;
        block.truncate(end);
        Ok(Some(Bytes::from(block).slice(skip..)))
    }

    fn seek(&mut self) {
        while let Some(entry) = self.entries().get(self.chunk) {
            let next = self.position + self.len_of(entry);
            if next > self.range.start {
                return;
            }
            (self.chunk, self.position) = (self.chunk + 1, next);
        }
    }

    fn read_frames(&mut self, len_max: usize) -> Result<Vec<u8>, StoreError> {
        let run = self.next_run(len_max);
        let mut bytes = self.read_run(&run)?;
        // Close the gaps that the record headers leave.
        let mut filled = 0;
        let mut at = 0;
        for entry in &self.entries()[run.clone()] {
            let frame = at + HEADER_LEN..at + HEADER_LEN + entry.frame_len as usize;
            at = frame.end;
            let len = frame.len();
            bytes.copy_within(frame, filled);
            filled += len;
        }
        bytes.truncate(filled);
        self.advance(&run);
        Ok(bytes)
    }

    fn read_plain(&mut self, len_max: usize) -> Result<Vec<u8>, StoreError> {
        let run = self.next_run(len_max);
        let bytes = self.read_run(&run)?;
        let mut decoder = self.decoder.take().unwrap_or_default();
        let raw_len = self.entries()[run.clone()]
            .iter()
            .map(|entry| entry.raw_len as usize)
            .sum();
        let mut plain = Vec::with_capacity(raw_len);
        let mut at = 0;
        for entry in &self.entries()[run.clone()] {
            let frame = &bytes[at + HEADER_LEN..at + HEADER_LEN + entry.frame_len as usize];
            at += HEADER_LEN + frame.len();
            if decoder
                .decode_into(frame, entry.raw_len as usize, &mut plain)
                .is_err()
            {
                return Err(self.lost(entry.id)?);
            }
        }
        self.decoder = Some(decoder);
        self.advance(&run);
        Ok(plain)
    }

    /// The next chunks that lie side by side, up to a block.
    fn next_run(&self, len_max: usize) -> Range<usize> {
        let (entries, at) = (self.entries(), &self.nar.nar.at);
        let mut end = self.chunk + 1;
        let mut len = self.len_of(&entries[self.chunk]);
        while let Some(entry) = entries.get(end) {
            let (here, next) = (&at[end - 1], &at[end]);
            let beside = here.pack == next.pack && record_end(here) == u64::from(next.offset);
            let wanted = self.position + len < self.range.end;
            len += self.len_of(entry);
            if !(beside && wanted && len <= len_max as u64) {
                break;
            }
            end += 1;
        }
        self.chunk..end
    }

    /// The records of a run, each checked against the manifest.
    fn read_run(&self, run: &Range<usize>) -> Result<Vec<u8>, StoreError> {
        let entries = &self.entries()[run.clone()];
        let at = &self.nar.nar.at[run.clone()];
        let len: usize = entries
            .iter()
            .map(|entry| HEADER_LEN + entry.frame_len as usize)
            .sum();
        if let Some(pack) = self.nar.store.packs.file(at[0].pack)? {
            let bytes = pack.read_at(len, u64::from(at[0].offset));
            match bytes {
                Ok(bytes) if run_intact(&bytes, entries, pack.salt()) => return Ok(bytes),
                Ok(_) => {}
                Err(StoreError::Io { source, .. }) if is_decay(&source) => {}
                Err(error) => return Err(error),
            }
        }
        self.read_one_by_one(entries, at)
    }

    /// The slow way: each record by itself, from any undamaged copy.
    fn read_one_by_one(
        &self,
        entries: &[ManifestEntry],
        at: &[Location],
    ) -> Result<Vec<u8>, StoreError> {
        let store = &self.nar.store;
        let mut out = Vec::new();
        for (entry, at) in entries.iter().zip(at) {
            let mut at = Some(*at);
            let mut tries = 0;
            let frame = loop {
                let Some(here) = at.filter(|_| tries < COPIES_MAX) else {
                    return Err(self.lost(entry.id)?);
                };
                match store.read_frame(&entry.id, &here)? {
                    Some((frame, check)) if check == entry.frame_check => break frame,
                    Some(_) | None => {}
                }
                at = store.lookup(&entry.id)?;
                tries += 1;
            };
            let key = *entry.id.as_bytes();
            let header = RecordHeader::new(RecordKind::Chunk, key, entry.raw_len, &frame);
            out.extend_from_slice(&header.encode(&NO_PACK));
            out.extend_from_slice(&frame);
        }
        Ok(out)
    }

    /// Hides the NAR because a chunk of it is lost, unless it was imported anew meanwhile.
    fn lost(&self, id: ChunkId) -> Result<StoreError, StoreError> {
        let hash = self.nar.nar.manifest.nar_hash();
        if self
            .nar
            .store
            .index
            .nar(hash)?
            .is_some_and(|row| row.seq == self.nar.row.seq)
        {
            self.nar.store.set_damaged(hash, true)?;
            self.nar.store.keep_findings();
        }
        Ok(StoreError::Chunk(id))
    }

    fn advance(&mut self, run: &Range<usize>) {
        let len: u64 = self.entries()[run.clone()]
            .iter()
            .map(|entry| self.len_of(entry))
            .sum();
        self.position += len;
        self.chunk = run.end;
    }

    fn entries(&self) -> &[ManifestEntry] {
        self.nar.nar.manifest.chunks()
    }

    fn len_of(&self, entry: &ManifestEntry) -> u64 {
        match self.form {
            Form::Frames => u64::from(entry.frame_len),
            Form::Plain => u64::from(entry.raw_len),
        }
    }
}

impl PackFile {
    /// `len` bytes at `offset`.
    fn read_at(&self, len: usize, offset: u64) -> Result<Vec<u8>, StoreError> {
        let mut out = Vec::with_capacity(len);
        while out.len() < len {
            let at = offset + out.len() as u64;
            match rustix::io::pread(self.as_fd(), spare_capacity(&mut out), at) {
                Ok(0) => return Err(self.read_error(std::io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(self.read_error(error.into())),
            }
        }
        out.truncate(len);
        Ok(out)
    }
}

/// Whether `bytes` are exactly the records that hold these chunks.
fn run_intact(bytes: &[u8], entries: &[ManifestEntry], salt: &PackSalt) -> bool {
    let mut rest = bytes;
    for entry in entries {
        let Some((head, tail)) = rest.split_first_chunk::<HEADER_LEN>() else {
            return false;
        };
        let Some((frame, tail)) = tail.split_at_checked(entry.frame_len as usize) else {
            return false;
        };
        let named = RecordHeader::decode(head, salt).is_ok_and(|header| {
            header.key == *entry.id.as_bytes() && header.body_check == entry.frame_check
        });
        if !named || check(frame) != entry.frame_check {
            return false;
        }
        rest = tail;
    }
    rest.is_empty()
}

impl Inner {
    /// A NAR that is not marked as damaged, with all its chunks located.
    ///
    /// One that is not whole is marked. A collection may move its manifest while it is looked for:
    /// then it is looked for again, and a NAR that is dropped meanwhile is just not here.
    fn find_nar(&self, hash: &NarHash) -> Result<Option<(NarRow, Arc<Located>)>, StoreError> {
        if self.is_damaged(hash) {
            return Ok(None);
        }
        let mut row = self.index.nar(hash)?;
        while let Some(here) = row {
            if let Some(nar) = self.located(hash, &here)? {
                return Ok(Some((here, nar)));
            }
            row = self.index.nar(hash)?;
            if row.as_ref() == Some(&here) {
                self.set_damaged(hash, true)?;
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// Forgets the copies of a NAR's chunks that lie in packs which are gone, or behind the end of
    /// packs that were cut; whether there were any. Other copies are found from then on, if any.
    fn forget_lost(&self, nar: &Located) -> Result<bool, StoreError> {
        let mut lost = false;
        for (pack, end) in &nar.packs {
            let len = self.packs.len_on_disk(*pack)?.unwrap_or(0);
            if len >= *end {
                continue;
            }
            lost = true;
            let entries = nar.manifest.chunks().iter().zip(&nar.at);
            entries
                .filter(|(_, at)| at.pack == *pack && record_end(at) > len)
                .for_each(|(entry, at)| self.locator.forget(&entry.id, at));
        }
        if lost {
            self.nars.forget(nar.manifest.nar_hash());
        }
        Ok(lost)
    }

    /// The manifest of a NAR; `None` if it is not here or damaged.
    pub(crate) fn manifest(&self, hash: &NarHash) -> Result<Option<Manifest>, StoreError> {
        match self.index.nar(hash)? {
            Some(row) => self.manifest_at(hash, &row),
            None => Ok(None),
        }
    }

    /// The manifest that an index row points to; `None` if it is damaged.
    pub(crate) fn manifest_at(
        &self,
        hash: &NarHash,
        row: &NarRow,
    ) -> Result<Option<Manifest>, StoreError> {
        let at = FooterEntry {
            kind: RecordKind::Manifest,
            key: *hash.as_bytes(),
            offset: row.offset,
            raw_len: row.body_len,
            body_len: row.body_len,
        };
        let Some(pack) = self.packs.file(row.pack)? else {
            return Ok(None);
        };
        let manifest = pack
            .read_record(&at)?
            .and_then(|(_, body)| Manifest::decode(ImportedManifest::decode(&body)?.manifest).ok());
        Ok(manifest.filter(|manifest| manifest.nar_hash() == hash))
    }

    /// A NAR with all its chunks located; `None` if one is not here.
    fn located(&self, hash: &NarHash, row: &NarRow) -> Result<Option<Arc<Located>>, StoreError> {
        if let Some(nar) = self.nars.find(hash, row.seq) {
            return Ok(Some(nar));
        }
        let Some(manifest) = self.manifest_at(hash, row)? else {
            return Ok(None);
        };
        let ids: Vec<ChunkId> = manifest.chunks().iter().map(|entry| entry.id).collect();
        let found = self.lookup_many(&ids)?;
        let Some(at) = found.into_iter().collect::<Option<Vec<Location>>>() else {
            return Ok(None);
        };
        let nar = Arc::new(Located::new(manifest, at));
        self.nars.keep(row.seq, Arc::clone(&nar));
        Ok(Some(nar))
    }
}

/// Located NARs served lately, bounded by their number of chunks.
#[derive(Default)]
pub(crate) struct NarCache {
    /// The most recently used last.
    nars: Mutex<VecDeque<(u64, Arc<Located>)>>,
}

impl NarCache {
    fn find(&self, hash: &NarHash, seq: u64) -> Option<Arc<Located>> {
        let mut nars = self.nars.lock().expect("no panic under this lock");
        let of =
            |(known, nar): &(u64, Arc<Located>)| *known == seq && nar.manifest.nar_hash() == hash;
        let position = nars.iter().rposition(of)?;
        let entry = nars.remove(position)?;
        let nar = Arc::clone(&entry.1);
        nars.push_back(entry);
        Some(nar)
    }

    fn keep(&self, seq: u64, nar: Arc<Located>) {
        let mut nars = self.nars.lock().expect("no panic under this lock");
        nars.push_back((seq, nar));
        let mut chunks: usize = nars.iter().map(|(_, nar)| nar.at.len()).sum();
        while (chunks > CACHED_CHUNKS_MAX || nars.len() > CACHED_NARS_MAX) && nars.len() > 1 {
            if let Some((_, nar)) = nars.pop_front() {
                chunks -= nar.at.len();
            }
        }
    }

    /// Drops what is known of a NAR.
    pub(crate) fn forget(&self, hash: &NarHash) {
        let mut nars = self.nars.lock().expect("no panic under this lock");
        nars.retain(|(_, nar)| nar.manifest.nar_hash() != hash);
    }

    /// Drops everything, because packs were rewritten.
    pub(crate) fn clear(&self) {
        self.nars.lock().expect("no panic under this lock").clear();
    }
}

/// 76 bytes each: 20 MB.
const CACHED_CHUNKS_MAX: usize = 1 << 18;
const CACHED_NARS_MAX: usize = 1024;
const COPIES_MAX: usize = 4;
/// Salt of records that are made up for a moment and checked by nobody.
const NO_PACK: PackSalt = PackSalt::from_bytes([0; 8]);
