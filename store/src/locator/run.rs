//! Runs: immutable sorted files of entries, and how they are read.
//!
//! A run holds its packs whole: either all entries of a pack are in it or none is. So the list of
//! its packs says what is lost with the file, and a missing file needs no other evidence.
//!
//! **Shape**, little endian: [pages](super::page) | fence: first 8 bytes of each page's first id (8
//! a page, big-endian number) | filter (64 a block) | packs: id (16), entries (4) | trailer (64):
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `ANLOC1\n` and a zero |
//! | 8 | 8 | entries |
//! | 16 | 16 | span: first and last sequence number of the flushes merged here |
//! | 32 | 8 | packs, filter blocks (4 each) |
//! | 40 | 8 | zero |
//! | 48 | 8 | XXH3 of fence, filter and packs, seeded like the pages |
//! | 56 | 8 | XXH3 of bytes 0 to 55 |
//!
//! Fence, filter and packs are in memory, 1.4 bytes an entry; pages are read one at a time.

use std::fs::File;
use std::hash::Hasher;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use twox_hash::XxHash3_64;

use crate::hash::ChunkId;
use crate::locator::filter::{BLOCK_WORDS, Filter, lane};
use crate::locator::page::{ENTRIES_PER_PAGE, Entry, PAGE_LEN, Page};
use crate::locator::{Location, LocatorError};
use crate::pack_id::PackId;

/// An open run.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) tail: Tail,
    /// A page was found damaged: what the run lists can no longer be relied on.
    damaged: AtomicBool,
}

/// Everything of a run but its pages.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) entries: u64,
    pub(super) span: Span,
    pub(super) fence: Vec<u64>,
    pub(super) filter: Filter,
    pub(super) packs: Vec<RunPack>,
}

/// The flushes whose entries a run holds, by sequence number, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span {
    pub(super) first: u64,
    pub(super) last: u64,
}

/// A pack of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RunPack {
    pub(super) id: PackId,
    pub(super) entries: u32,
}

impl Run {
    pub(super) fn new(path: PathBuf, file: File, tail: Tail) -> Run {
        Run {
            path,
            file,
            tail,
            damaged: AtomicBool::new(false),
        }
    }

    /// Opens a run; `None` if it is torn, damaged, unreadable or of another version.
    ///
    /// Reads and checks all but the pages.
    ///
    /// # Errors
    /// If the file cannot be opened, which says nothing about what is in it.
    pub(super) fn open(path: &Path) -> io::Result<Option<Run>> {
        let file = File::open(path)?;
        let tail = read_tail(&file).ok().flatten();
        Ok(tail.map(|tail| Run::new(path.to_owned(), file, tail)))
    }

    /// The first copy of a chunk that `serves` takes, youngest pack first.
    ///
    /// # Errors
    /// [`LocatorError::Damaged`] or [`LocatorError::Read`] if a page of it cannot be had.
    pub(super) fn find(
        &self,
        id: &ChunkId,
        mut serves: impl FnMut(&Location) -> bool,
    ) -> Result<Option<Location>, LocatorError> {
        if !self.tail.filter.may_contain(id) {
            return Ok(None);
        }
        let key = lane(id, 0);
        let fence = &self.tail.fence;
        // Copies may begin on the page before the first that starts with the id's first bytes.
        let first = fence
            .partition_point(|start| *start < key)
            .saturating_sub(1);
        let end = fence.partition_point(|start| *start <= key);
        let mut bytes = [0; PAGE_LEN];
        for number in (first..end).rev() {
            self.read_pages(number, &mut bytes)?;
            let page = self.page(number, &bytes)?;
            for n in page.find(id).rev() {
                let at = self.location(number, &page.entry(n))?;
                if serves(&at) {
                    return Ok(Some(at));
                }
            }
        }
        Ok(None)
    }

    pub(super) fn pages(&self) -> usize {
        self.tail.fence.len()
    }

    /// Fills `bytes` with whole pages, the first being `number`.
    pub(super) fn read_pages(&self, number: usize, bytes: &mut [u8]) -> Result<(), LocatorError> {
        let offset = number as u64 * PAGE_LEN as u64;
        let read = self.file.read_exact_at(bytes, offset);
        read.map_err(|source| LocatorError::Read {
            path: self.path.clone(),
            source,
        })
    }

    /// Page `number`, whose bytes were read, if it is undamaged.
    pub(super) fn page<'a>(
        &self,
        number: usize,
        bytes: &'a [u8; PAGE_LEN],
    ) -> Result<Page<'a>, LocatorError> {
        let before = number as u64 * ENTRIES_PER_PAGE as u64;
        let len = (self.tail.entries - before).min(ENTRIES_PER_PAGE as u64);
        let page = Page::check(bytes, len as usize, self.tail.span.seed());
        page.filter(|page| lane(&page.entry(0).id, 0) == self.tail.fence[number])
            .ok_or_else(|| self.damage(number))
    }

    fn location(&self, page: usize, entry: &Entry) -> Result<Location, LocatorError> {
        let Entry {
            id: _,
            pack,
            offset,
            raw_len,
            frame_len,
        } = *entry;
        let pack = self
            .tail
            .packs
            .get(pack as usize)
            .ok_or_else(|| self.damage(page))?
            .id;
        Ok(Location {
            pack,
            offset,
            raw_len,
            frame_len,
        })
    }

    pub(super) fn damage(&self, page: usize) -> LocatorError {
        LocatorError::Damaged {
            path: self.path.clone(),
            page,
        }
    }

    pub(super) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Acquire)
    }

    pub(super) fn set_damaged(&self) {
        self.damaged.store(true, Ordering::Release);
    }
}

impl Span {
    /// The span of runs that lie side by side.
    pub(super) fn hull(self, other: Span) -> Span {
        Span {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
        }
    }

    /// Whether a run of this span replaces one of the other.
    pub(super) fn contains(self, other: Span) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// Seed of the run's checksums: a block left over from another run does not pass for its own.
    pub(super) fn seed(self) -> u64 {
        self.first ^ self.last.rotate_left(32)
    }

    pub(super) fn file_name(self) -> String {
        format!("{:016x}-{:016x}.run", self.first, self.last)
    }
}

/// The fixed end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trailer {
    pub(super) entries: u64,
    pub(super) span: Span,
    pub(super) packs: u32,
    pub(super) filter_blocks: u32,
    pub(super) tail_check: u64,
}

impl Trailer {
    pub(super) fn encode(&self) -> [u8; TRAILER_LEN] {
        let mut bytes = [0; TRAILER_LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..16].copy_from_slice(&self.entries.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.span.first.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.span.last.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.packs.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.filter_blocks.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.tail_check.to_le_bytes());
        let check = XxHash3_64::oneshot(&bytes[..56]);
        bytes[56..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; TRAILER_LEN]) -> Option<Trailer> {
        let u64_at =
            |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("a slice of 8"));
        let u32_at =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("a slice of 4"));
        let intact = bytes.starts_with(MAGIC) && u64_at(56) == XxHash3_64::oneshot(&bytes[..56]);
        intact.then(|| Trailer {
            entries: u64_at(8),
            span: Span {
                first: u64_at(16),
                last: u64_at(24),
            },
            packs: u32_at(32),
            filter_blocks: u32_at(36),
            tail_check: u64_at(48),
        })
    }

    fn pages(&self) -> u64 {
        self.entries.div_ceil(ENTRIES_PER_PAGE as u64)
    }

    /// Bytes of the whole file; `None` if they cannot be counted.
    fn file_len(&self) -> Option<u64> {
        let pages = self.pages().checked_mul(PAGE_LEN as u64 + 8)?;
        let filter = u64::from(self.filter_blocks) * (BLOCK_WORDS * 8) as u64;
        let packs = u64::from(self.packs) * PACK_LEN as u64;
        pages.checked_add(filter + packs + TRAILER_LEN as u64)
    }
}

/// Reads all but the pages; allocates no more than the file is long.
fn read_tail(file: &File) -> io::Result<Option<Tail>> {
    let len = file.metadata()?.len();
    let Some(at) = len.checked_sub(TRAILER_LEN as u64) else {
        return Ok(None);
    };
    let mut bytes = [0; TRAILER_LEN];
    file.read_exact_at(&mut bytes, at)?;
    let trailer = Trailer::decode(&bytes).filter(|trailer| trailer.file_len() == Some(len));
    let Some(trailer) = trailer else {
        return Ok(None);
    };
    let at = trailer.pages() * PAGE_LEN as u64;
    let check = XxHash3_64::with_seed(trailer.span.seed());
    let mut reader = TailReader { file, at, check };
    let fence = reader.words(trailer.pages() as usize)?;
    let filter = reader.words(trailer.filter_blocks as usize * BLOCK_WORDS)?;
    let packs = reader.packs(trailer.packs as usize)?;
    let tail = Tail {
        entries: trailer.entries,
        span: trailer.span,
        fence,
        filter: Filter::from_words(filter),
        packs,
    };
    Ok((reader.check.finish() == trailer.tail_check).then_some(tail))
}

/// Reads a tail front to back, a block at a time, and hashes it.
struct TailReader<'a> {
    file: &'a File,
    at: u64,
    check: XxHash3_64,
}

impl TailReader<'_> {
    fn words(&mut self, count: usize) -> io::Result<Vec<u64>> {
        self.items(count, |bytes: &[u8; 8]| u64::from_le_bytes(*bytes))
    }

    fn packs(&mut self, count: usize) -> io::Result<Vec<RunPack>> {
        self.items(count, |bytes: &[u8; PACK_LEN]| {
            let (id, entries) = bytes.split_at(16);
            RunPack {
                id: PackId::from_bytes(id.try_into().expect("a slice of 16")),
                entries: u32::from_le_bytes(entries.try_into().expect("a slice of 4")),
            }
        })
    }

    fn items<T, const LEN: usize>(
        &mut self,
        count: usize,
        decode: impl Fn(&[u8; LEN]) -> T,
    ) -> io::Result<Vec<T>> {
        let mut items = Vec::with_capacity(count);
        let mut block = vec![0; ITEMS_PER_READ * LEN];
        while items.len() < count {
            let bytes = &mut block[..(count - items.len()).min(ITEMS_PER_READ) * LEN];
            self.file.read_exact_at(bytes, self.at)?;
            self.at += bytes.len() as u64;
            self.check.write(bytes);
            items.extend(bytes.as_chunks::<LEN>().0.iter().map(&decode));
        }
        Ok(items)
    }
}

const MAGIC: &[u8; 8] = b"ANLOC1\n\0";
const TRAILER_LEN: usize = 64;
/// Bytes of a pack in the list.
const PACK_LEN: usize = 20;
const ITEMS_PER_READ: usize = 8192;
