//! From bytes to an imported NAR.
//!
//! A NAR is *imported* once its chunks and manifest are stored: it can be read by its hash, but no
//! cache shows it until a path is published with it. There are two ways in:
//!
//! - [`Store::import`] takes a NAR stream in one pass: parse, SHA-256, cut, and on the pool's
//!   threads BLAKE3, look-up and zstd;
//! - [`Store::put_frame`] takes single chunks, already framed, and [`Store::assemble`] makes a NAR
//!   of stored chunks, hashing and parsing the whole.
//!
//! Memory: a window of 16 chunks an import, whatever the size of the NAR, and its manifest.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use sha2::{Digest, Sha256};

use crate::chunker::{Chunker, ChunkerParams};
use crate::error::{ImportError, StoreError};
use crate::frame;
use crate::hash::{ChunkId, FileHash, NarHash};
use crate::lease::Lease;
use crate::locator::Location;
use crate::manifest::{CHUNKS_MAX, Manifest, ManifestEntry, ManifestError};
use crate::nar::{NarLimits, NarParser};
use crate::pool::Scratch;
use crate::store::{Appender, Inner, Store, Stored};

/// A NAR that is in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// SHA-256 of the NAR.
    pub nar_hash: NarHash,
    /// Bytes of the NAR.
    pub nar_size: u64,
    /// SHA-256 of its `.nar.zst`.
    pub file_hash: FileHash,
    /// Bytes of its `.nar.zst`.
    pub file_size: u64,
    /// Bytes of chunks that were not in the store before.
    pub new_raw_bytes: u64,
    /// Bytes of their frames.
    pub new_bytes: u64,
}

/// The outcome of [`Store::assemble`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Assembled {
    /// The NAR is imported.
    Done(Imported),
    /// These positions of the chunk list are not in the store, or damaged. Nothing was stored.
    Missing(Vec<u32>),
}

impl Store {
    /// Imports a NAR from a stream. The lease holds its chunks.
    ///
    /// Not safe to abandon in the middle by killing the thread, but any error, also of `nar`
    /// itself, leaves only garbage that collection removes.
    ///
    /// # Errors
    /// [`ImportError::Nar`] for anything but exactly one NAR, [`ImportError::TooLarge`],
    /// [`ImportError::Source`] if `nar` fails, [`ImportError::Store`].
    pub fn import(&self, lease: &Lease, nar: &mut dyn Read) -> Result<Imported, ImportError> {
        self.import_watched(lease, nar, &mut |_| {})
    }

    /// Imports a NAR from a stream, as [`Store::import`], and tells `landed` of every chunk, in order,
    /// once it is stored and can be read under the lease.
    ///
    /// What has landed is part of no NAR yet, and of none if the import fails.
    ///
    /// # Errors
    /// As [`Store::import`].
    pub fn import_watched(
        &self,
        lease: &Lease,
        nar: &mut dyn Read,
        landed: &mut dyn FnMut(&ManifestEntry),
    ) -> Result<Imported, ImportError> {
        let mut import = Import::new(&self.inner, lease, landed);
        let mut buffer = vec![0; READ_LEN];
        loop {
            match nar.read(&mut buffer) {
                Ok(0) => return import.finish(),
                Ok(len) => import.push(&buffer[..len])?,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ImportError::Source(error)),
            }
        }
    }

    /// Stores one chunk sent as a frame, after checking that it is the chunk. Idempotent.
    ///
    /// Any zstd frame of the chunk will do on the wire. What is stored is our own frame of it: served
    /// bytes must not depend on who sent a chunk first, nor need more memory than ours to decode.
    ///
    /// # Errors
    /// [`ImportError::Frame`] and [`ImportError::WrongChunk`] for a lying frame,
    /// [`ImportError::Store`].
    pub fn put_frame(
        &self,
        lease: &Lease,
        id: ChunkId,
        raw_len: u32,
        frame: &[u8],
    ) -> Result<(), ImportError> {
        self.put_frames(lease, &[(id, raw_len, frame)])
    }

    /// Stores several chunks, as [`Store::put_frame`], side by side.
    ///
    /// # Errors
    /// As [`Store::put_frame`]; the chunks before the faulty one are stored.
    pub fn put_frames(
        &self,
        lease: &Lease,
        frames: &[(ChunkId, u32, &[u8])],
    ) -> Result<(), ImportError> {
        let mut appender = Appender::new(&self.inner);
        let mut flying: VecDeque<Receiver<Checked>> = VecDeque::new();
        let mut store = |done: Receiver<Checked>| {
            if let Some(chunk) = done.recv().map_err(|_| worker_lost())?? {
                appender.chunk(lease, chunk.id, chunk.raw_len, &chunk.frame)?;
            }
            Ok::<_, ImportError>(())
        };
        let mut outcome = Ok(());
        for (id, raw_len, frame) in frames {
            let (inner, lease) = (Arc::clone(&self.inner), lease.clone());
            let (id, raw_len, frame) = (*id, *raw_len, frame.to_vec());
            flying.push_back(
                self.inner.pool.submit(move |scratch| {
                    check_frame(&inner, &lease, id, raw_len, &frame, scratch)
                }),
            );
            if flying.len() == WINDOW
                && let Some(first) = flying.pop_front()
            {
                outcome = store(first);
                if outcome.is_err() {
                    break;
                }
            }
        }
        for rest in flying {
            let stored = store(rest);
            outcome = outcome.and(stored);
        }
        outcome
    }

    /// Makes a NAR of stored chunks: reads them all, hashes and parses the whole.
    ///
    /// `seen` gets every chunk in order with its plain bytes.
    ///
    /// # Errors
    /// [`ImportError::Nar`], [`ImportError::TooLarge`], [`ImportError::Manifest`] and
    /// [`ImportError::Store`]; nothing is visible then.
    pub fn assemble(
        &self,
        lease: &Lease,
        chunks: &[ChunkId],
        seen: &mut dyn FnMut(&ChunkId, &[u8]),
    ) -> Result<Assembled, ImportError> {
        if chunks.len() > CHUNKS_MAX {
            return Err(ManifestError::Chunks(chunks.len()).into());
        }
        let found = self.inner.lookup_many(chunks)?;
        let missing: Vec<u32> = (0..)
            .zip(chunks.iter().zip(&found))
            .filter(|(_, (id, at))| !at.is_some_and(|at| self.inner.hold(lease, id, &at)))
            .map(|(index, _)| index)
            .collect();
        if !missing.is_empty() {
            return Ok(Assembled::Missing(missing));
        }
        let located: Vec<(ChunkId, Location)> = chunks
            .iter()
            .copied()
            .zip(found.into_iter().flatten())
            .collect();
        Assembly::new(&self.inner, lease).run(&located, seen)
    }
}

/// The parts of an import that see the whole NAR: its hashes, its structure, its chunk list.
struct Whole {
    nar_size_max: u64,
    nar_size: u64,
    nar_hash: Sha256,
    file_hash: Sha256,
    parser: NarParser,
    entries: Vec<ManifestEntry>,
    new_raw_bytes: u64,
    new_bytes: u64,
}

impl Whole {
    fn new(nar_size_max: u64) -> Whole {
        Whole {
            nar_size_max,
            nar_size: 0,
            nar_hash: Sha256::new(),
            file_hash: Sha256::new(),
            parser: NarParser::new(NarLimits::default()),
            entries: Vec::new(),
            new_raw_bytes: 0,
            new_bytes: 0,
        }
    }

    fn nar_bytes(&mut self, bytes: &[u8]) -> Result<(), ImportError> {
        self.nar_size += bytes.len() as u64;
        if self.nar_size > self.nar_size_max {
            return Err(ImportError::TooLarge(self.nar_size_max));
        }
        self.parser.push(bytes)?;
        self.nar_hash.update(bytes);
        Ok(())
    }

    fn entry(
        &mut self,
        entry: ManifestEntry,
        frame: &[u8],
        stored: Stored,
    ) -> Result<(), ImportError> {
        if self.entries.len() == CHUNKS_MAX {
            return Err(ManifestError::Chunks(CHUNKS_MAX + 1).into());
        }
        self.file_hash.update(frame);
        if stored == Stored::Now {
            self.new_raw_bytes += u64::from(entry.raw_len);
            self.new_bytes += u64::from(entry.frame_len);
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Stores listing and manifest.
    fn finish(self, store: &Inner, lease: &Lease) -> Result<Imported, ImportError> {
        let listing = self.parser.finish()?;
        let listing = match listing.json() {
            Some(json) => store.store_listing(lease, json.as_bytes())?,
            None => Vec::new(),
        };
        let nar_hash = NarHash::from_bytes(self.nar_hash.finalize().into());
        let file_hash = FileHash::from_bytes(self.file_hash.finalize().into());
        let manifest = Manifest::new(nar_hash, file_hash, self.entries, listing)?;
        lease.hold(nar_hash);
        Appender::new(store).manifest(&manifest)?;
        store.set_damaged(&nar_hash, false)?;
        Ok(Imported {
            nar_hash,
            nar_size: manifest.nar_size(),
            file_hash,
            file_size: manifest.file_size(),
            new_raw_bytes: self.new_raw_bytes,
            new_bytes: self.new_bytes,
        })
    }
}

/// One NAR stream on its way into the store.
struct Import<'a> {
    store: &'a Arc<Inner>,
    lease: &'a Lease,
    whole: Whole,
    chunker: Chunker,
    window: Window<'a>,
}

impl<'a> Import<'a> {
    fn new(
        store: &'a Arc<Inner>,
        lease: &'a Lease,
        landed: &'a mut dyn FnMut(&ManifestEntry),
    ) -> Import<'a> {
        Import {
            store,
            lease,
            whole: Whole::new(store.options.nar_size_max),
            chunker: Chunker::new(ChunkerParams::CURRENT),
            window: Window::new(store, lease, landed),
        }
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), ImportError> {
        self.whole.nar_bytes(bytes)?;
        // A slow source must not hold back what came from it.
        self.window.write_ready(&mut self.whole)?;
        let (window, whole) = (&mut self.window, &mut self.whole);
        let mut outcome = Ok(());
        self.chunker.push(bytes, &mut |chunk| {
            if outcome.is_ok() {
                outcome = window.push(chunk, whole);
            }
        });
        outcome
    }

    fn finish(mut self) -> Result<Imported, ImportError> {
        let (window, whole) = (&mut self.window, &mut self.whole);
        let mut outcome = Ok(());
        self.chunker.finish(&mut |chunk| {
            if outcome.is_ok() {
                outcome = window.push(chunk, whole);
            }
        });
        outcome?;
        self.window.drain(0, &mut self.whole)?;
        drop(self.window);
        self.whole.finish(self.store, self.lease)
    }
}

/// Chunks being hashed and compressed, written in order.
struct Window<'a> {
    store: &'a Arc<Inner>,
    lease: &'a Lease,
    appender: Appender<'a>,
    flying: VecDeque<Receiver<Result<Prepared, StoreError>>>,
    /// Is told of every chunk that is written.
    landed: &'a mut dyn FnMut(&ManifestEntry),
}

/// A chunk with its frame, read from the store or made.
struct Prepared {
    id: ChunkId,
    raw_len: u32,
    frame: Vec<u8>,
    check: u64,
    /// Where the frame was read from, unless it was made.
    read_at: Option<Location>,
}

impl<'a> Window<'a> {
    fn new(
        store: &'a Arc<Inner>,
        lease: &'a Lease,
        landed: &'a mut dyn FnMut(&ManifestEntry),
    ) -> Window<'a> {
        Window {
            store,
            lease,
            appender: Appender::new(store),
            flying: VecDeque::new(),
            landed,
        }
    }

    fn push(&mut self, chunk: &[u8], whole: &mut Whole) -> Result<(), ImportError> {
        self.drain(WINDOW - 1, whole)?;
        let (store, lease, chunk) = (Arc::clone(self.store), self.lease.clone(), chunk.to_vec());
        let job = move |scratch: &mut Scratch| prepare(&store, &lease, &chunk, scratch);
        self.flying.push_back(self.store.pool.submit(job));
        Ok(())
    }

    /// Writes chunks until at most `len` are in flight.
    fn drain(&mut self, len: usize, whole: &mut Whole) -> Result<(), ImportError> {
        while self.flying.len() > len
            && let Some(first) = self.flying.pop_front()
        {
            let prepared = first.recv().map_err(|_| worker_lost())??;
            self.write(prepared, whole)?;
        }
        Ok(())
    }

    /// Writes the chunks whose turn it is and that are prepared. Waits for none.
    fn write_ready(&mut self, whole: &mut Whole) -> Result<(), ImportError> {
        while let Some(first) = self.flying.front() {
            let prepared = match first.try_recv() {
                Ok(prepared) => prepared?,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(worker_lost()),
            };
            self.flying.pop_front();
            self.write(prepared, whole)?;
        }
        Ok(())
    }

    fn write(&mut self, prepared: Prepared, whole: &mut Whole) -> Result<(), ImportError> {
        let Prepared {
            id,
            raw_len,
            mut frame,
            mut check,
            read_at,
        } = prepared;
        let (at, stored) = self.appender.chunk(self.lease, id, raw_len, &frame)?;
        // The manifest pins the bytes that are stored, whoever stored them.
        if stored == Stored::Before
            && read_at != Some(at)
            && let Some((there, its_check)) = self.store.frame_of(self.lease, &id, at)?
        {
            (frame, check) = (there, its_check);
        }
        let frame_len = frame.len() as u32;
        let entry = ManifestEntry {
            id,
            raw_len,
            frame_len,
            frame_check: check,
        };
        whole.entry(entry, &frame, stored)?;
        (self.landed)(&entry);
        Ok(())
    }
}

impl Drop for Window<'_> {
    /// Waits for the jobs in flight: they hold the store.
    fn drop(&mut self) {
        for job in self.flying.drain(..) {
            let _ = job.recv();
        }
    }
}

/// Decodes a frame that was sent for a chunk, and makes ours; `None` if the chunk is here already.
fn check_frame(
    store: &Inner,
    lease: &Lease,
    id: ChunkId,
    raw_len: u32,
    frame: &[u8],
    scratch: &mut Scratch,
) -> Checked {
    let chunk = scratch
        .decoder
        .decode(frame, raw_len as usize)
        .map_err(|source| ImportError::Frame { id, source })?;
    if ChunkId::of(&chunk) != id {
        return Err(ImportError::WrongChunk(id));
    }
    if store.locate(lease, &id)?.is_some() {
        return Ok(None);
    }
    let frame = encode(scratch, &chunk);
    let check = frame::check(&frame);
    Ok(Some(Prepared {
        id,
        raw_len,
        frame,
        check,
        read_at: None,
    }))
}

/// The frame of a chunk: the stored one if there is one, since the manifest pins its bytes.
fn prepare(
    store: &Inner,
    lease: &Lease,
    chunk: &[u8],
    scratch: &mut Scratch,
) -> Result<Prepared, StoreError> {
    let (id, raw_len) = (ChunkId::of(chunk), chunk.len() as u32);
    if let Some(at) = store.locate(lease, &id)?
        && let Some((frame, check)) = store.read_frame(&id, &at)?
    {
        return Ok(Prepared {
            id,
            raw_len,
            frame,
            check,
            read_at: Some(at),
        });
    }
    let frame = encode(scratch, chunk);
    let check = frame::check(&frame);
    Ok(Prepared {
        id,
        raw_len,
        frame,
        check,
        read_at: None,
    })
}

fn encode(scratch: &mut Scratch, chunk: &[u8]) -> Vec<u8> {
    scratch
        .encoder
        .encode(chunk)
        .expect("the chunk was cut or decoded within its bounds")
}

/// Stored chunks being read and decoded, joined in order.
struct Assembly<'a> {
    store: &'a Arc<Inner>,
    lease: &'a Lease,
    whole: Whole,
}

/// A stored chunk, decoded; `None` if no copy of it can be read.
type Decoded = Result<Option<DecodedChunk>, StoreError>;

/// Frame, entry and plain bytes.
type DecodedChunk = (Vec<u8>, ManifestEntry, Vec<u8>);

/// A frame on its way to be checked; `None` if its chunk is here already.
type Checked = Result<Option<Prepared>, ImportError>;

impl<'a> Assembly<'a> {
    fn new(store: &'a Arc<Inner>, lease: &'a Lease) -> Assembly<'a> {
        Assembly {
            store,
            lease,
            whole: Whole::new(store.options.nar_size_max),
        }
    }

    fn run(
        mut self,
        located: &[(ChunkId, Location)],
        seen: &mut dyn FnMut(&ChunkId, &[u8]),
    ) -> Result<Assembled, ImportError> {
        let mut flying: VecDeque<Receiver<Decoded>> = VecDeque::new();
        let mut missing = Vec::new();
        let mut next = located.iter();
        let mut outcome = Ok(());
        for index in 0..located.len() {
            while flying.len() < WINDOW
                && outcome.is_ok()
                && let Some((id, at)) = next.next()
            {
                flying.push_back(self.fetch(*id, *at));
            }
            // Jobs in flight hold the store: after a failure the rest of them is waited for.
            let Some(first) = flying.pop_front() else {
                break;
            };
            let decoded = first.recv();
            if outcome.is_ok() {
                outcome = decoded
                    .map_err(|_| worker_lost())
                    .and_then(|decoded| self.join(index as u32, decoded?, &mut missing, seen));
            }
        }
        outcome?;
        if missing.is_empty() {
            self.whole
                .finish(self.store, self.lease)
                .map(Assembled::Done)
        } else {
            Ok(Assembled::Missing(missing))
        }
    }

    /// Takes the next chunk; once one is missing only the others that are missing matter.
    fn join(
        &mut self,
        index: u32,
        decoded: Option<DecodedChunk>,
        missing: &mut Vec<u32>,
        seen: &mut dyn FnMut(&ChunkId, &[u8]),
    ) -> Result<(), ImportError> {
        match decoded {
            Some((frame, entry, chunk)) if missing.is_empty() => {
                self.whole.nar_bytes(&chunk)?;
                self.whole.entry(entry, &frame, Stored::Before)?;
                seen(&entry.id, &chunk);
            }
            Some(_) => {}
            None => missing.push(index),
        }
        Ok(())
    }

    fn fetch(&self, id: ChunkId, at: Location) -> Receiver<Decoded> {
        let (store, lease) = (Arc::clone(self.store), self.lease.clone());
        self.store
            .pool
            .submit(move |scratch| store.read_chunk(&lease, &id, at, scratch))
    }
}

impl Inner {
    /// A chunk from the copy at `at` or any other; `None` if none is undamaged.
    fn read_chunk(
        &self,
        lease: &Lease,
        id: &ChunkId,
        at: Location,
        scratch: &mut Scratch,
    ) -> Decoded {
        let mut at = Some(at);
        for _ in 0..COPIES_MAX {
            let Some(here) = at else { return Ok(None) };
            if let Some((frame, check)) = self.read_frame(id, &here)? {
                match scratch.decoder.decode(&frame, here.raw_len as usize) {
                    Ok(chunk) => {
                        let (raw_len, frame_len) = (here.raw_len, here.frame_len);
                        let id = *id;
                        let entry = ManifestEntry {
                            id,
                            raw_len,
                            frame_len,
                            frame_check: check,
                        };
                        return Ok(Some((frame, entry, chunk)));
                    }
                    Err(_) => self.quarantine(id, &here)?,
                }
            }
            at = self.locate(lease, id)?;
        }
        Ok(None)
    }

    /// The frame of a chunk that the lease holds, from the copy at `at` or, should a collection move
    /// it meanwhile, from where it is then; `None` if no copy is undamaged.
    fn frame_of(
        &self,
        lease: &Lease,
        id: &ChunkId,
        at: Location,
    ) -> Result<Option<(Vec<u8>, u64)>, StoreError> {
        let mut at = Some(at);
        for _ in 0..COPIES_MAX {
            let Some(here) = at else { break };
            if let Some(found) = self.read_frame(id, &here)? {
                return Ok(Some(found));
            }
            at = self.locate(lease, id)?;
        }
        Ok(None)
    }

    /// Stores bytes that belong to no NAR (a log) as chunks.
    pub(crate) fn store_small(
        &self,
        lease: &Lease,
        bytes: &[u8],
    ) -> Result<Vec<ManifestEntry>, StoreError> {
        self.store_cut(bytes, |appender, id, raw_len, frame| {
            appender.chunk(lease, id, raw_len, frame)
        })
    }

    /// Stores the listing of a NAR that is here, as chunks, also when there is no room for another NAR.
    fn store_listing(&self, lease: &Lease, bytes: &[u8]) -> Result<Vec<ManifestEntry>, StoreError> {
        self.store_cut(bytes, |appender, id, raw_len, frame| {
            appender.last_chunk(lease, id, raw_len, frame)
        })
    }

    /// Cuts bytes into chunks, and has `put` store each.
    fn store_cut(
        &self,
        bytes: &[u8],
        mut put: impl FnMut(
            &mut Appender<'_>,
            ChunkId,
            u32,
            &[u8],
        ) -> Result<(Location, Stored), StoreError>,
    ) -> Result<Vec<ManifestEntry>, StoreError> {
        let mut encoder = frame::FrameEncoder::new();
        let mut appender = Appender::new(self);
        let mut entries = Vec::new();
        let mut outcome = Ok(());
        let mut store = |chunk: &[u8]| {
            let (id, raw_len) = (ChunkId::of(chunk), chunk.len() as u32);
            let frame = encoder
                .encode(chunk)
                .expect("the chunker keeps to the length of a chunk");
            let stored = put(&mut appender, id, raw_len, &frame);
            let (frame_len, frame_check) = (frame.len() as u32, frame::check(&frame));
            entries.push(ManifestEntry {
                id,
                raw_len,
                frame_len,
                frame_check,
            });
            if let (Err(error), true) = (stored, outcome.is_ok()) {
                outcome = Err(error);
            }
        };
        let mut chunker = Chunker::new(ChunkerParams::CURRENT);
        chunker.push(bytes, &mut store);
        chunker.finish(&mut store);
        outcome.map(|()| entries)
    }

    /// The bytes that [`Inner::store_small`] stored; `None` if a chunk is gone.
    pub(crate) fn read_small(
        &self,
        ids: impl Iterator<Item = ChunkId>,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let lease = self.lease();
        let mut decoder = frame::FrameDecoder::new();
        let mut out = Vec::new();
        'chunks: for id in ids {
            // A copy may be damaged, or moved by a collection just now: then there may be another.
            for _ in 0..COPIES_MAX {
                let Some(at) = self.lookup(&id)? else {
                    return Ok(None);
                };
                lease.pin(at.pack);
                if let Some((frame, _)) = self.read_frame(&id, &at)? {
                    match decoder.decode_into(&frame, at.raw_len as usize, &mut out) {
                        Ok(()) => continue 'chunks,
                        Err(_) => self.quarantine(&id, &at)?,
                    }
                }
            }
            return Ok(None);
        }
        Ok(Some(out))
    }
}

fn worker_lost() -> ImportError {
    ImportError::Source(std::io::Error::other("a worker failed; see the log"))
}

/// Chunks in flight for one import: 16 of 512 KiB are 8 MiB at the most, 2 MiB as a rule.
const WINDOW: usize = 16;
/// Copies of a chunk tried before it counts as lost.
const COPIES_MAX: usize = 4;
const READ_LEN: usize = 256 << 10;
